//! Every SQL statement. The only module that talks to PostgreSQL.
//!
//! A state change and its events are one transaction, mostly one statement. Whoever locks a lease and a session
//! locks the lease first.

use std::str::FromStr;
use std::time::Duration as StdDuration;

use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::aws::{MintError, Minted};
use crate::config::Limits;
use crate::identity::{Agent, TaskGrant};
use crate::lease::{Assurance, Decision, LeaseId, LeaseState};
use crate::statement::{AssumeRole, Sealed};
use crate::verify::EnrolledKey;
use crate::wire;

pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Makes the cluster's roles; see the file.
pub const ROLES: &str = include_str!("../../migrations/bootstrap/roles.sql");

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

/// How long a request waits for a connection.
const POOL_WAIT: StdDuration = StdDuration::from_secs(2);
/// A pooled connection that was idle for so long is tried before it is used.
const STALE_AFTER: StdDuration = StdDuration::from_secs(5);
const STATEMENT_TIMEOUT: &str = "5s";

/// Proof that a lease was approved, is not frozen, and that this caller alone has claimed it.
///
/// Only this module makes one, and by then the claim is durable: whatever the cloud does next, the database
/// already says that it was asked.
#[derive(Debug)]
pub struct Warrant {
    lease_id: LeaseId,
    session: NewSession,
    assume_role: AssumeRole,
    region: String,
}

impl Warrant {
    /// Where the lease is to be used.
    pub fn region(&self) -> &str {
        &self.region
    }

    pub fn lease_id(&self) -> LeaseId {
        self.lease_id
    }

    pub fn session_id(&self) -> Uuid {
        self.session.id
    }

    pub fn session_name(&self) -> &str {
        &self.session.name
    }

    pub fn assume_role(&self) -> &AssumeRole {
        &self.assume_role
    }
}

/// A session about to be claimed. Its name ends in random letters, so that no policy can name it beforehand.
#[derive(Clone, Debug)]
pub struct NewSession {
    pub id: Uuid,
    pub name: String,
}

impl NewSession {
    pub fn for_lease(id: LeaseId) -> Self {
        Self { id: Uuid::now_v7(), name: format!("{id}-{:08x}", rand::random::<u32>()) }
    }
}

/// Opens the server's pool. Connects lazily: the database may come later than we do.
pub fn pool(url: &str) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("brokerd")
        .options([("statement_timeout", STATEMENT_TIMEOUT), ("timezone", "UTC")]);
    Ok(PgPoolOptions::new()
        .max_connections(32)
        .acquire_timeout(POOL_WAIT)
        // A ping before every use would be a round trip on the lease path.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for < STALE_AFTER {
                    return Ok(true);
                }
                Ok(connection.ping().await.is_ok())
            })
        })
        .connect_lazy_with(options))
}

/// Brings the schema up to date, as the owner.
pub async fn migrate(admin_url: &str) -> Result<(), sqlx::migrate::MigrateError> {
    let mut connection = admin(admin_url).await?;
    MIGRATOR.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Whether the database answers and its schema is the one that this program was built for.
pub async fn ready(pool: &PgPool) -> Result<bool> {
    let newest = MIGRATOR.iter().map(|it| it.version).max().unwrap_or_default();
    let applied =
        sqlx::query_scalar!(r#"select schema_version() as "version!""#).fetch_one(pool).await?;
    Ok(applied == newest)
}

/// Makes the event partitions of this month and the next two.
pub async fn make_partitions(pool: &PgPool, now: OffsetDateTime) -> Result<()> {
    for months in 0..3 {
        let day = (now + Duration::days(31 * months)).date();
        sqlx::query!("select make_event_partition($1)", day).execute(pool).await?;
    }
    Ok(())
}

/// Wakes `on_change` with each lease that changed, and with `None` when changes may have been missed.
pub async fn listen(pool: &PgPool, on_change: impl Fn(Option<LeaseId>)) -> Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen("lease_changed").await?;
    on_change(None);
    loop {
        let notification = listener.try_recv().await?;
        on_change(notification.and_then(|it| it.payload().parse().ok()));
    }
}

// ---------------------------------------------------------------------------------------------- requesting

/// A lease to be written: everything that is known when it is asked for.
#[derive(Debug)]
pub struct NewLease<'a> {
    pub id: LeaseId,
    pub agent: &'a Agent,
    pub idempotency_key: Option<&'a str>,
    pub request_sha256: [u8; 32],
    pub task: &'a str,
    pub request: &'a wire::LeaseRequest,
    pub rules_sha256: &'a str,
    pub decided_by: Vec<String>,
    pub outcome: NewOutcome,
    pub now: OffsetDateTime,
}

/// What a scope comes to for one request.
#[derive(Debug)]
pub struct Terms {
    pub environment: &'static str,
    pub tier: &'static str,
    pub account: String,
    pub region: String,
    pub actions: Vec<String>,
    pub resources: Vec<String>,
    pub window: Duration,
    pub assume_role: AssumeRole,
}

#[derive(Debug)]
pub enum NewOutcome {
    Denied {
        why: String,
    },
    /// Unsigned; with a session when its credentials are wanted in the same answer.
    Approved {
        terms: Terms,
        claim: Option<NewSession>,
    },
    Pending {
        terms: Terms,
        sealed: Sealed,
    },
}

/// What became of a new lease.
#[derive(Debug)]
pub enum Opened {
    /// Written; with the warrant if it was claimed in the same commit.
    New(Option<Warrant>),
    /// The same agent used the same idempotency key before.
    Known,
    TaskEnded,
    Frozen,
    TooMany(&'static str),
}

/// Writes a lease, its statement, its claim and their events: one statement, one commit.
pub async fn open(
    pool: &PgPool,
    scribe: &Scribe,
    limits: &Limits,
    lease: NewLease<'_>,
) -> Result<Opened> {
    let NewLease { id, agent, request, now, .. } = lease;
    let (state, terms, sealed, claim, why) = match lease.outcome {
        NewOutcome::Denied { why } => (LeaseState::Denied, None, None, None, Some(why)),
        NewOutcome::Approved { terms, claim } => {
            (LeaseState::Approved, Some(terms), None, claim, None)
        }
        NewOutcome::Pending { terms, sealed } => {
            (LeaseState::Pending, Some(terms), Some(sealed), None, None)
        }
    };

    let mut subject = Subject {
        agent: Some(&agent.name),
        sponsor: Some(&agent.sponsor),
        scope: Some(&request.scope),
        lease_id: Some(id),
        session_id: None,
    };
    let actor = Actor::Agent(&agent.name);
    let detail = json!({
        "task": lease.task,
        "tier": terms.as_ref().map(|it| it.tier),
        "decided_by": &lease.decided_by,
        "rules_sha256": lease.rules_sha256,
        "why": &why,
        "statement_sha256": sealed.as_ref().map(Sealed::sha256),
    });
    let kind = match state {
        LeaseState::Denied => EventType::LeaseDenied,
        LeaseState::Pending => EventType::LeasePending,
        _ => EventType::LeaseApproved,
    };
    let mut events = vec![scribe.body(kind, actor, subject, detail, now)];
    if let Some(session) = &claim {
        subject.session_id = Some(session.id);
        events.push(scribe.body(
            EventType::SessionIssuing,
            actor,
            subject,
            json!({ "session_name": session.name }),
            now,
        ));
    }

    let signers = sealed.as_ref().map(|it| &it.terms().signers);
    let terms_ref = terms.as_ref();
    let empty = Vec::new();
    let approved = state == LeaseState::Approved;
    let row = sqlx::query!(
        r#"
        with gate as materialized (
            select case
                when not task_is_live($7, $24) then 'task-ended'
                when (select count(*) from lease l where l.agent = $4 and $24 - interval '1 minute' < l.requested_at) >= $32
                    then 'lease requests a minute for this agent'
                when $22 = 'denied' then 'open'
                when is_frozen($4, $5, $11, $12) then 'frozen'
                when $22 = 'pending' and (select count(*) from lease l where l.agent = $4 and l.state = 'pending') >= $33
                    then 'pending leases of this agent'
                when (select count(*) from lease l where l.agent = $4 and l.state in ('approved', 'issued')) >= $34
                    then 'live leases of this agent'
                when (select count(*) from lease l where l.sponsor = $5 and l.state in ('approved', 'issued')) >= $35
                    then 'live leases of this sponsor'
                else 'open' end as verdict
        ), written as (
            insert into lease (id, idempotency_key, request_sha256, agent, sponsor, actor, task_id, task, reason, rollback,
                               scope, environment, tier, account, region, role_arn, actions, resources, assume_role,
                               window_seconds, rules_sha256, decided_by, signatures_needed, eligible_signers, state,
                               requested_at, sign_by, approved_at, claim_by, claimed_at, ends_at, ended_at, end_reason)
            select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                   $36, $37, $23, $22, $24, $25, $26, $27, $28, $29, $30, $31
              from gate where verdict = 'open'
            on conflict (agent, idempotency_key) do nothing
            returning id
        ), sealed as (
            insert into statement (lease_id, bytes) select id, $38 from written where $38::bytea is not null
        ), claimed as (
            insert into session (id, lease_id, signed, state, session_name, claimed_at)
            select $39, id, false, 'issuing', $40, $24 from written where $39::uuid is not null
        ), told as (
            select append_event(body) from written, unnest($41::bytea[]) as body
        )
        select verdict as "verdict!", exists (select from written) as "written!", (select count(*) from told) as "told!"
          from gate
        "#,
        id.0,
        lease.idempotency_key,
        &lease.request_sha256[..],
        agent.name,
        agent.sponsor,
        None::<String>,
        agent.task_id,
        lease.task,
        request.reason,
        request.rollback,
        request.scope,
        terms_ref.map(|it| it.environment),
        terms_ref.map(|it| it.tier),
        terms_ref.map(|it| it.account.as_str()),
        terms_ref.map(|it| it.region.as_str()),
        terms_ref.map(|it| it.assume_role.role_arn.as_str()),
        terms_ref.map_or_else(|| request.actions.as_ref().unwrap_or(&empty), |it| &it.actions) as &Vec<String>,
        terms_ref.map_or_else(|| request.resources.as_ref().unwrap_or(&empty), |it| &it.resources) as &Vec<String>,
        terms_ref.map(|it| json!(it.assume_role)),
        terms_ref.map(|it| i32::try_from(it.window.whole_seconds()).expect("at most eight hours")),
        lease.rules_sha256,
        state.as_str(),
        signers.map_or(&empty, |it| &it.eligible) as &Vec<String>,
        now,
        sealed.as_ref().map(|it| it.terms().sign_by),
        approved.then_some(now),
        approved.then_some(now + limits.claim_within.0),
        claim.as_ref().map(|_| now),
        terms_ref.filter(|_| approved).map(|it| now + it.window),
        (state == LeaseState::Denied).then_some(now),
        why,
        i64::from(limits.lease_requests_per_minute),
        i64::from(limits.pending_leases_per_agent),
        i64::from(limits.live_leases_per_agent),
        i64::from(limits.live_leases_per_sponsor),
        &lease.decided_by,
        signers.map_or(0, |it| i16::try_from(it.needed).unwrap_or(i16::MAX)),
        sealed.as_ref().map(Sealed::bytes),
        claim.as_ref().map(|it| it.id),
        claim.as_ref().map(|it| it.name.as_str()),
        &events[..],
    )
    .fetch_one(pool)
    .await?;

    Ok(match row.verdict.as_str() {
        "open" if !row.written => Opened::Known,
        "open" => Opened::New(claim.zip(terms).map(|(session, terms)| Warrant {
            lease_id: id,
            session,
            assume_role: terms.assume_role,
            region: terms.region,
        })),
        "task-ended" => Opened::TaskEnded,
        "frozen" => Opened::Frozen,
        "lease requests a minute for this agent" => {
            Opened::TooMany("lease requests a minute for this agent")
        }
        "pending leases of this agent" => Opened::TooMany("pending leases of this agent"),
        "live leases of this agent" => Opened::TooMany("live leases of this agent"),
        _ => Opened::TooMany("live leases of this sponsor"),
    })
}

/// Everybody who could sign: active, in one of `groups`, with a key of at least `assurance`, and not in `except`.
pub async fn eligible_signers(
    pool: &PgPool,
    groups: &[String],
    assurance: Assurance,
    except: &[String],
) -> Result<Vec<String>> {
    let good: Vec<String> =
        Assurance::ALL.iter().filter(|it| assurance <= **it).map(ToString::to_string).collect();
    sqlx::query_scalar!(
        r#"
        select p.handle from person p
         where p.disabled_at is null and p.groups && $1::text[] and not p.handle = any ($3::text[])
           and exists (select from person_key k where k.person = p.handle and k.revoked_at is null and k.assurance = any ($2::text[]))
         order by p.handle
        "#,
        groups,
        &good,
        except,
    )
    .fetch_all(pool)
    .await
}

/// The lease that this agent opened with this key, and what it had asked.
pub async fn by_idempotency_key(
    pool: &PgPool,
    agent: &Agent,
    key: &str,
) -> Result<Option<(LeaseId, Vec<u8>)>> {
    let row = sqlx::query!(
        "select id, request_sha256 from lease where agent = $1 and idempotency_key = $2",
        agent.name,
        key
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|it| (LeaseId(it.id), it.request_sha256)))
}

// ------------------------------------------------------------------------------------------------ claiming

/// What a claim is made from: the lease as stored, and for a signed one the statement and who approved it.
#[derive(Debug)]
pub struct Claimable {
    pub lease: wire::Lease,
    pub assume_role: AssumeRole,
    pub statement: Option<Vec<u8>>,
    pub approvals: Vec<Approval>,
}

/// An approval as stored, to be verified anew.
#[derive(Debug)]
pub struct Approval {
    pub person: String,
    pub signature: String,
    pub signed_at: OffsetDateTime,
    pub key: EnrolledKey,
}

pub async fn claimable(pool: &PgPool, id: LeaseId, agent: &Agent) -> Result<Option<Claimable>> {
    let viewer = Viewer::Agent { name: &agent.name, sponsor: &agent.sponsor };
    let Some(lease) = find(pool, Find { id: Some(id), ..Find::by(viewer) }).await?.pop() else {
        return Ok(None);
    };
    let row = sqlx::query!(
        r#"
        select l.assume_role as "assume_role: Json<AssumeRole>", s.bytes as "bytes?"
          from lease l left join statement s on s.lease_id = l.id where l.id = $1
        "#,
        id.0
    )
    .fetch_one(pool)
    .await?;
    let Some(Json(assume_role)) = row.assume_role else { return Ok(None) };
    let approvals = if row.bytes.is_none() { Vec::new() } else { approvals(pool, id).await? };
    Ok(Some(Claimable { lease, assume_role, statement: row.bytes, approvals }))
}

async fn approvals(pool: &PgPool, id: LeaseId) -> Result<Vec<Approval>> {
    let rows = sqlx::query!(
        r#"
        select g.person, g.signature, g.signed_at, k.public_key, k.assurance, k.revoked_at
          from signature g join person_key k on k.fingerprint = g.fingerprint
         where g.lease_id = $1 and g.decision = 'approve'
        "#,
        id.0
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|it| {
            Ok(Approval {
                person: it.person,
                signature: it.signature,
                signed_at: it.signed_at,
                key: EnrolledKey {
                    public_key: it.public_key,
                    assurance: word(&it.assurance)?,
                    revoked_at: it.revoked_at,
                },
            })
        })
        .collect()
}

/// Claims an approved lease for `agent`: one compare-and-swap. `None` when it may not be claimed, whatever the reason.
///
/// It checks again that the task lives, that nothing is frozen, and that as many active people with unrevoked keys
/// have approved as are needed. Of several claims of a signed lease, one wins, once.
pub async fn claim(
    pool: &PgPool,
    scribe: &Scribe,
    lease: &wire::Lease,
    assume_role: AssumeRole,
    agent: &Agent,
    now: OffsetDateTime,
) -> Result<Option<Warrant>> {
    let session = NewSession::for_lease(lease.id);
    let subject = Subject {
        agent: Some(&lease.agent),
        sponsor: Some(&lease.sponsor),
        scope: Some(&lease.scope),
        lease_id: Some(lease.id),
        session_id: Some(session.id),
    };
    let detail = json!({ "session_name": session.name });
    let event =
        scribe.body(EventType::SessionIssuing, Actor::Agent(&agent.name), subject, detail, now);
    let row = sqlx::query!(
        r#"
        with claimed as (
            update lease l set claimed_at = coalesce(l.claimed_at, $4)
             where l.id = $1 and l.agent = $2 and l.sponsor = $3
               and (l.state = 'approved' and (l.claimed_at is not null or $4 <= l.claim_by) or l.state = 'issued')
               and (l.signatures_needed = 0 or l.claimed_at is null)
               and (l.ends_at is null or $4 < l.ends_at)
               and task_is_live($5, $4) and not is_frozen(l.agent, l.sponsor, l.scope, l.environment)
               and l.signatures_needed <= (
                   select count(*) from signature g
                     join person p on p.handle = g.person join person_key k on k.fingerprint = g.fingerprint
                    where g.lease_id = l.id and g.decision = 'approve' and p.disabled_at is null and k.revoked_at is null)
            returning l.id, l.signatures_needed > 0 as signed
        ), minting as (
            insert into session (id, lease_id, signed, state, session_name, claimed_at)
            select $6, id, signed, 'issuing', $7, $4 from claimed
        )
        select append_event($8) as seq from claimed
        "#,
        lease.id.0,
        agent.name,
        agent.sponsor,
        now,
        agent.task_id,
        session.id,
        session.name,
        event,
    )
    .fetch_optional(pool)
    .await?;
    let region = lease.region.clone().unwrap_or_default();
    Ok(row.map(|_| Warrant { lease_id: lease.id, session, assume_role, region }))
}

/// Why a lease that its agent may see could not be claimed, beyond what its state says.
pub async fn claim_obstacle(
    pool: &PgPool,
    id: LeaseId,
    agent: &Agent,
    now: OffsetDateTime,
) -> Result<Obstacle> {
    let row = sqlx::query!(
        r#"
        select task_is_live($2, $3) as "live!", is_frozen(l.agent, l.sponsor, l.scope, l.environment) as "frozen!"
          from lease l where l.id = $1
        "#,
        id.0,
        agent.task_id,
        now
    )
    .fetch_one(pool)
    .await?;
    Ok(match row {
        it if !it.live => Obstacle::TaskEnded,
        it if it.frozen => Obstacle::Frozen,
        _ => Obstacle::Other,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    TaskEnded,
    Frozen,
    Other,
}

/// Writes how minting ended. Consumes the warrant: it is settled once.
///
/// Returns whether the outcome was written. If not, a sweep, a stop or a freeze was first, and the credentials must
/// be dropped: nobody is entitled to them any more.
pub async fn settle(
    pool: &PgPool,
    scribe: &Scribe,
    agent: &Agent,
    warrant: Warrant,
    outcome: Result<&Minted, &MintError>,
    now: OffsetDateTime,
) -> Result<bool> {
    let subject = Subject {
        agent: Some(&agent.name),
        sponsor: Some(&agent.sponsor),
        scope: warrant.assume_role.tags.get("broker:scope").map(String::as_str),
        lease_id: Some(warrant.lease_id),
        session_id: Some(warrant.session.id),
    };
    let actor = Actor::Agent(&agent.name);
    match outcome {
        Ok(minted) => {
            let detail = json!({ "access_key_id": minted.access_key_id, "session_name": warrant.session.name });
            let session_event =
                scribe.body(EventType::SessionIssued, actor, subject, detail.clone(), now);
            let lease_event =
                scribe.body(EventType::LeaseIssued, actor, subject, detail.clone(), now);
            let settled = sqlx::query!(
                r#"
                with held as materialized (
                    select l.id, l.state from lease l
                     where l.id = $1 and l.state in ('approved', 'issued')
                       and not is_frozen(l.agent, l.sponsor, l.scope, l.environment)
                       for update
                ), settled as (
                    update session s set state = 'live', settled_at = $3, access_key_id = $4, expires_at = $5,
                                         deliveries = 1, last_delivered_at = $3
                      from held where s.id = $2 and s.lease_id = held.id and s.state = 'issuing'
                    returning s.lease_id
                ), issued as (
                    update lease l set state = 'issued', issued_at = $3, ends_at = coalesce(l.ends_at, $5)
                      from settled, held
                     where l.id = settled.lease_id and held.state = 'approved' and l.state = 'approved'
                    returning l.id
                ), told as (
                    select append_event($6) from settled union all select append_event($7) from issued
                )
                select count(*) as "told!" from told
                "#,
                warrant.lease_id.0,
                warrant.session.id,
                now,
                minted.access_key_id,
                minted.expires_at,
                session_event,
                lease_event,
            )
            .fetch_one(pool)
            .await?
            .told
                > 0;
            if !settled {
                let dropped =
                    scribe.body(EventType::SessionDropped, actor, subject, detail.clone(), now);
                let failed = scribe.body(EventType::LeaseFailed, actor, subject, detail, now);
                record_dropped(pool, &warrant, minted, [dropped, failed], now).await?;
            }
            Ok(settled)
        }
        Err(error) => {
            let failure = error.to_string();
            let detail = json!({ "why": failure, "access_key_id": error.access_key_id() });
            let session_event =
                scribe.body(EventType::SessionFailed, actor, subject, detail.clone(), now);
            let lease_event = scribe.body(EventType::LeaseFailed, actor, subject, detail, now);
            let settled = sqlx::query!(
                r#"
                with held as materialized (
                    select l.id from lease l where l.id = $1 for update
                ), settled as (
                    update session s set state = 'failed', settled_at = $3, failure = $4, access_key_id = $5
                      from held where s.id = $2 and s.lease_id = held.id and s.state = 'issuing'
                    returning s.lease_id, s.signed
                ), failed as (
                    update lease l set state = 'failed', ended_at = $3, end_reason = $4
                      from settled where l.id = settled.lease_id and settled.signed and l.state = 'approved'
                    returning l.id
                ), told as (
                    select append_event($6) from settled union all select append_event($7) from failed
                )
                select count(*) as "told!" from told
                "#,
                warrant.lease_id.0,
                warrant.session.id,
                now,
                failure,
                error.access_key_id(),
                session_event,
                lease_event,
            )
            .fetch_one(pool)
            .await?
            .told
                > 0;
            Ok(settled)
        }
    }
}

/// Keeps the key id of a session that AWS minted and nobody got, so that it can be accounted for.
async fn record_dropped(
    pool: &PgPool,
    warrant: &Warrant,
    minted: &Minted,
    events: [Vec<u8>; 2],
    now: OffsetDateTime,
) -> Result<()> {
    let [session_event, lease_event] = events;
    sqlx::query!(
        r#"
        with held as materialized (
            select l.id from lease l where l.id = $1 for update
        ), dropped as (
            update session s
               set access_key_id = $3, expires_at = $4, settled_at = coalesce(s.settled_at, $5),
                   state = case s.state when 'issuing' then 'failed' else s.state end,
                   failure = coalesce(s.failure, case s.state when 'issuing' then 'stopped while AWS was asked' end)
              from held where s.id = $2 and s.access_key_id is null and s.expires_at is null
            returning s.lease_id, s.signed
        ), failed as (
            update lease l set state = 'failed', ended_at = $5, end_reason = 'stopped while AWS was asked'
              from dropped where l.id = dropped.lease_id and dropped.signed and l.state = 'approved'
            returning l.id
        ), told as (
            select append_event($6) from held union all select append_event($7) from failed
        )
        select count(*) as "told!" from told
        "#,
        warrant.lease_id.0,
        warrant.session.id,
        minted.access_key_id,
        minted.expires_at,
        now,
        session_event,
        lease_event,
    )
    .fetch_one(pool)
    .await?;
    Ok(())
}

/// Records that a live session is handed to its agent again, and says whether it may be.
pub async fn redeliver(
    pool: &PgPool,
    scribe: &Scribe,
    agent: &Agent,
    lease_id: LeaseId,
    session_id: Uuid,
    now: OffsetDateTime,
) -> Result<bool> {
    let subject = Subject {
        agent: Some(&agent.name),
        sponsor: Some(&agent.sponsor),
        lease_id: Some(lease_id),
        session_id: Some(session_id),
        ..Subject::default()
    };
    let event = scribe.body(
        EventType::SessionRedelivered,
        Actor::Agent(&agent.name),
        subject,
        serde_json::Value::Null,
        now,
    );
    let row = sqlx::query!(
        r#"
        with delivered as (
            update session s set deliveries = s.deliveries + 1, last_delivered_at = $3
              from lease l
             where s.id = $1 and s.lease_id = $2 and s.state = 'live' and $3 < s.expires_at
               and l.id = s.lease_id and l.agent = $4 and l.sponsor = $5 and l.state = 'issued' and $3 < l.ends_at
               and task_is_live($6, $3) and not is_frozen(l.agent, l.sponsor, l.scope, l.environment)
            returning s.id
        )
        select append_event($7) as seq from delivered
        "#,
        session_id,
        lease_id.0,
        now,
        agent.name,
        agent.sponsor,
        agent.task_id,
        event,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.is_some())
}

// ------------------------------------------------------------------------------------------------- signing

/// A person's key, with the person.
#[derive(Debug)]
pub struct KeyHolder {
    pub person: String,
    pub display_name: String,
    pub active: bool,
    pub groups: Vec<String>,
    pub key: EnrolledKey,
}

pub async fn key_holder(pool: &PgPool, fingerprint: &str) -> Result<Option<KeyHolder>> {
    let row = sqlx::query!(
        r#"
        select p.handle, p.display_name, p.disabled_at, p.groups, k.public_key, k.assurance, k.revoked_at
          from person_key k join person p on p.handle = k.person where k.fingerprint = $1
        "#,
        fingerprint
    )
    .fetch_optional(pool)
    .await?;
    row.map(|it| {
        Ok(KeyHolder {
            person: it.handle,
            display_name: it.display_name,
            active: it.disabled_at.is_none(),
            groups: it.groups,
            key: EnrolledKey {
                public_key: it.public_key,
                assurance: word(&it.assurance)?,
                revoked_at: it.revoked_at,
            },
        })
    })
    .transpose()
}

/// What a signature is judged against.
#[derive(Debug)]
pub struct Signable {
    pub state: LeaseState,
    pub scope: String,
    pub agent: String,
    pub sponsor: String,
    pub statement: Vec<u8>,
    /// Everybody who has decided.
    pub decided: Vec<String>,
}

pub async fn signable(pool: &PgPool, id: LeaseId) -> Result<Option<Signable>> {
    let row = sqlx::query!(
        r#"
        select l.state, l.scope, l.agent, l.sponsor, s.bytes,
               array (select g.person from signature g where g.lease_id = l.id) as "decided!"
          from lease l join statement s on s.lease_id = l.id where l.id = $1
        "#,
        id.0
    )
    .fetch_optional(pool)
    .await?;
    row.map(|it| {
        Ok(Signable {
            state: word(&it.state)?,
            scope: it.scope,
            agent: it.agent,
            sponsor: it.sponsor,
            statement: it.bytes,
            decided: it.decided,
        })
    })
    .transpose()
}

/// A signature that was judged good.
#[derive(Debug)]
pub struct NewSignature<'a> {
    pub lease_id: LeaseId,
    pub signable: &'a Signable,
    pub person: &'a str,
    pub fingerprint: &'a str,
    pub decision: Decision,
    pub armored: &'a str,
    pub assurance: Assurance,
    pub touch: Option<crate::verify::Touch>,
    pub reason: Option<&'a str>,
}

/// Counts a signature: one statement. `false` when the lease stopped waiting, or the person decided, in between.
pub async fn sign(
    pool: &PgPool,
    scribe: &Scribe,
    limits: &Limits,
    signature: NewSignature<'_>,
    now: OffsetDateTime,
) -> Result<bool> {
    let NewSignature { lease_id, signable, person, decision, .. } = signature;
    let subject = Subject {
        agent: Some(&signable.agent),
        sponsor: Some(&signable.sponsor),
        scope: Some(&signable.scope),
        lease_id: Some(lease_id),
        session_id: None,
    };
    let actor = Actor::Person(person);
    let detail = json!({
        "decision": decision,
        "key_fingerprint": signature.fingerprint,
        "assurance": signature.assurance,
        "why": signature.reason,
    });
    let accepted = scribe.body(EventType::SignatureAccepted, actor, subject, detail, now);
    let ended = match decision {
        Decision::Approve => EventType::LeaseApproved,
        Decision::Refuse => EventType::LeaseRefused,
    };
    let ended = scribe.body(ended, actor, subject, json!({ "why": signature.reason }), now);
    let refusal = signature.reason.unwrap_or("refused by a signer");

    let mut transaction = pool.begin().await?;
    // The lease's row lock puts two signers, a sweep and a withdrawal in order.
    let pending = sqlx::query!(
        "select id from lease where id = $1 and state = 'pending' and $2 <= sign_by for update",
        lease_id.0,
        now
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if pending.is_none() {
        return Ok(false);
    }
    let counted = sqlx::query!(
        r#"
        with counted as (
            insert into signature (lease_id, person, fingerprint, decision, signature, assurance, touched, verified, reason, signed_at)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
            on conflict (lease_id, person) do nothing returning lease_id
        )
        select append_event($11) as seq from counted
        "#,
        lease_id.0,
        person,
        signature.fingerprint,
        decision.as_str(),
        signature.armored,
        signature.assurance.as_str(),
        signature.touch.map(|it| it.present),
        signature.touch.map(|it| it.verified),
        signature.reason,
        now,
        accepted,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if counted.is_none() {
        return Ok(false);
    }
    sqlx::query!(
        r#"
        with decided as (
            update lease l
               set state = case $2 when 'approve' then 'approved' else 'refused' end,
                   approved_at = case $2 when 'approve' then $3::timestamptz end,
                   claim_by = case $2 when 'approve' then $4::timestamptz end,
                   ended_at = case $2 when 'refuse' then $3::timestamptz end,
                   end_reason = case $2 when 'refuse' then $5 end
             where l.id = $1
               and ($2 = 'refuse' or l.signatures_needed <=
                    (select count(*) from signature g where g.lease_id = l.id and g.decision = 'approve'))
            returning l.id
        )
        select append_event($6) as seq from decided
        "#,
        lease_id.0,
        decision.as_str(),
        now,
        now + limits.claim_within.0,
        refusal,
        ended,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// Appends one event that comes with no other change, such as a rejection.
pub async fn tell(pool: &PgPool, event: Vec<u8>) -> Result<()> {
    sqlx::query!("select append_event($1) as seq", event).fetch_one(pool).await?;
    Ok(())
}

/// The agent takes back what it has not used. `false` when there is nothing to take back.
pub async fn withdraw(
    pool: &PgPool,
    scribe: &Scribe,
    agent: &Agent,
    lease: &wire::Lease,
    reason: Option<&str>,
    now: OffsetDateTime,
) -> Result<bool> {
    let subject = Subject {
        agent: Some(&lease.agent),
        sponsor: Some(&lease.sponsor),
        scope: Some(&lease.scope),
        lease_id: Some(lease.id),
        session_id: None,
    };
    let reason = reason.unwrap_or("withdrawn by the agent");
    let event = scribe.body(
        EventType::LeaseWithdrawn,
        Actor::Agent(&agent.name),
        subject,
        json!({ "why": reason }),
        now,
    );
    let row = sqlx::query!(
        r#"
        with withdrawn as (
            update lease set state = 'withdrawn', ended_at = $4, end_reason = $5
             where id = $1 and agent = $2 and sponsor = $3
               and (state = 'pending' or state = 'approved' and claimed_at is null)
            returning id
        )
        select append_event($6) as seq from withdrawn
        "#,
        lease.id.0,
        agent.name,
        agent.sponsor,
        now,
        reason,
        event,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.is_some())
}

// ------------------------------------------------------------------------------------------------- reading

/// Who looks: nobody sees a lease that is not theirs to see.
#[derive(Clone, Copy, Debug)]
pub enum Viewer<'a> {
    Agent {
        name: &'a str,
        sponsor: &'a str,
    },
    /// Sees what they sponsor and what they may sign; `all` for operations.
    Person {
        handle: &'a str,
        all: bool,
    },
}

/// Which leases, newest first.
#[derive(Clone, Copy, Debug)]
pub struct Find<'a> {
    pub viewer: Viewer<'a>,
    pub id: Option<LeaseId>,
    pub state: Option<LeaseState>,
    pub agent: Option<&'a str>,
    /// Older than this one.
    pub after: Option<LeaseId>,
    pub limit: i64,
}

impl<'a> Find<'a> {
    pub fn by(viewer: Viewer<'a>) -> Self {
        Self { viewer, id: None, state: None, agent: None, after: None, limit: 1 }
    }
}

pub async fn find(pool: &PgPool, find: Find<'_>) -> Result<Vec<wire::Lease>> {
    let (name, sponsor, handle, all) = match find.viewer {
        Viewer::Agent { name, sponsor } => (Some(name), Some(sponsor), None, false),
        Viewer::Person { handle, all } => (None, None, Some(handle), all),
    };
    let rows = sqlx::query!(
        r#"
        select l.id, l.state, l.agent, l.sponsor, l.task, l.reason, l.rollback, l.scope, l.environment, l.tier,
               l.account, l.region, l.role_arn, l.actions, l.resources, l.requested_at, l.sign_by, l.approved_at,
               l.claim_by, l.issued_at, l.ends_at, l.ended_at, l.end_reason, l.decided_by, l.signatures_needed,
               l.eligible_signers, t.bytes as "bytes?",
               coalesce((select jsonb_agg(jsonb_build_object(
                            'person', g.person, 'decision', g.decision, 'key_fingerprint', g.fingerprint,
                            'assurance', g.assurance, 'signed_at', g.signed_at) order by g.signed_at)
                           from signature g where g.lease_id = l.id), '[]') as "signatures!: Json<Vec<wire::Signature>>",
               coalesce((select jsonb_agg(jsonb_build_object(
                            'id', s.id, 'state', s.state, 'session_name', s.session_name, 'access_key_id', s.access_key_id,
                            'claimed_at', s.claimed_at, 'expires_at', s.expires_at, 'failure', s.failure) order by s.claimed_at)
                           from session s where s.lease_id = l.id), '[]') as "sessions!: Json<Vec<wire::Session>>"
          from lease l left join statement t on t.lease_id = l.id
         where ($1::uuid is null or l.id = $1)
           and (l.agent = $2 and l.sponsor = $3 or l.sponsor = $4 or $4 = any (l.eligible_signers) or $5)
           and ($6::text is null or l.state = $6) and ($7::text is null or l.agent = $7)
           and ($8::uuid is null or l.id < $8)
         order by l.id desc limit $9
        "#,
        find.id.map(|it| it.0),
        name,
        sponsor,
        handle,
        all,
        find.state.map(LeaseState::as_str),
        find.agent,
        find.after.map(|it| it.0),
        find.limit,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|it| {
            Ok(wire::Lease {
                id: LeaseId(it.id),
                state: word(&it.state)?,
                agent: it.agent,
                sponsor: it.sponsor,
                task: it.task,
                reason: it.reason,
                rollback: it.rollback,
                scope: it.scope,
                environment: it.environment.as_deref().map(word).transpose()?,
                tier: it.tier.as_deref().map(word).transpose()?,
                account: it.account,
                region: it.region,
                role_arn: it.role_arn,
                actions: it.actions,
                resources: it.resources,
                requested_at: it.requested_at,
                sign_by: it.sign_by,
                approved_at: it.approved_at,
                claim_by: it.claim_by,
                issued_at: it.issued_at,
                ends_at: it.ends_at,
                ended_at: it.ended_at,
                end_reason: it.end_reason,
                decided_by: it.decided_by,
                signatures_needed: u16::try_from(it.signatures_needed).unwrap_or_default(),
                eligible_signers: it.eligible_signers,
                signatures: it.signatures.0,
                short_code: it.bytes.as_deref().map(crate::statement::short_code),
                sessions: it.sessions.0,
                next: None,
                credentials: None,
            })
        })
        .collect()
}

/// The exact bytes of a lease's statement.
pub async fn statement(pool: &PgPool, id: LeaseId) -> Result<Option<Vec<u8>>> {
    sqlx::query_scalar!("select bytes from statement where lease_id = $1", id.0)
        .fetch_optional(pool)
        .await
}

#[derive(Debug)]
pub struct Person {
    pub handle: String,
    pub display_name: String,
    pub groups: Vec<String>,
}

/// A person who is not disabled.
pub async fn active_person(pool: &PgPool, handle: &str) -> Result<Option<Person>> {
    sqlx::query_as!(
        Person,
        "select handle, display_name, groups from person where handle = $1 and disabled_at is null",
        handle
    )
    .fetch_optional(pool)
    .await
}

/// Whether an agent's task lives and its sponsor is active.
pub async fn task_is_live(pool: &PgPool, agent: &Agent, now: OffsetDateTime) -> Result<bool> {
    sqlx::query_scalar!(r#"select task_is_live($1, $2) as "live!""#, agent.task_id, now)
        .fetch_one(pool)
        .await
}

/// Spends a login nonce. `false` when it was spent before.
pub async fn spend_nonce(
    pool: &PgPool,
    nonce: Uuid,
    fingerprint: &str,
    person: &str,
    event: Vec<u8>,
    now: OffsetDateTime,
) -> Result<bool> {
    let row = sqlx::query!(
        r#"
        with spent as (
            insert into login (nonce, fingerprint, person, at) values ($1, $2, $3, $4) on conflict do nothing returning nonce
        )
        select append_event($5) as seq from spent
        "#,
        nonce,
        fingerprint,
        person,
        now,
        event,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.is_some())
}

// ----------------------------------------------------------------------------------------- people and tasks

/// A person and their key, as an operator enrols them.
#[derive(Clone, Copy, Debug)]
pub struct NewPerson<'a> {
    pub handle: &'a str,
    pub display_name: &'a str,
    pub email: &'a str,
    pub groups: &'a [String],
    pub fingerprint: &'a str,
    pub public_key: &'a str,
    pub assurance: Assurance,
    /// How the assurance is known.
    pub evidence: &'a str,
}

/// Opens the administrator's connection, acting as the owner.
pub async fn admin(url: &str) -> Result<PgConnection> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql("set role broker_owner").execute(&mut connection).await?;
    Ok(connection)
}

/// Enrols a person with a key; whoever is there already stays as they are.
pub async fn enrol(
    owner: &mut PgConnection,
    person: NewPerson<'_>,
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query!(
        r#"
        with person as (
            insert into person (handle, display_name, email, groups, created_at) values ($1, $2, $3, $4, $9)
            on conflict do nothing
        )
        insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at)
        values ($5, $1, $6, $7, $8, $9) on conflict do nothing
        "#,
        person.handle,
        person.display_name,
        person.email,
        person.groups,
        person.fingerprint,
        person.public_key,
        person.assurance.as_str(),
        person.evidence,
        now,
    )
    .execute(owner)
    .await?;
    Ok(())
}

/// Starts a task, with its event.
pub async fn start_task(
    owner: &mut PgConnection,
    task: TaskGrant<'_>,
    event: Vec<u8>,
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query!(
        r#"
        with started as (
            insert into task (id, agent, sponsor, task, started_at, expires_at) values ($1, $2, $3, $4, $5, $6) returning id
        )
        select append_event($7) as seq from started
        "#,
        task.id,
        task.agent,
        task.sponsor,
        task.task,
        now,
        task.expires_at,
        event,
    )
    .fetch_one(owner)
    .await?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------ sweeping

/// Ends what time has ended, and settles what a crash left behind. Returns how many rows changed.
///
/// Any replica may sweep; of those that try at once, one does. Rows that somebody holds are left for next time.
pub async fn sweep(
    pool: &PgPool,
    scribe: &Scribe,
    limits: &Limits,
    now: OffsetDateTime,
) -> Result<u64> {
    const LOCK: i64 = 0x0062_726f_6b65_7201;
    let mut transaction = pool.begin().await?;
    let elected =
        sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "elected!""#, LOCK)
            .fetch_one(&mut *transaction)
            .await?;
    if !elected {
        return Ok(0);
    }
    let mut changed = 0;

    let sessions = sqlx::query!(
        r#"
        select s.id, s.lease_id, s.state, s.signed, l.state as lease_state, l.agent, l.sponsor, l.scope
          from session s join lease l on l.id = s.lease_id
         where s.state = 'issuing' and s.claimed_at < $1
            or s.state in ('live', 'revoking') and s.expires_at < $2
         limit 500 for update skip locked
        "#,
        now - limits.settle_within.0,
        now,
    )
    .fetch_all(&mut *transaction)
    .await?;
    for row in sessions {
        let subject = Subject {
            agent: Some(&row.agent),
            sponsor: Some(&row.sponsor),
            scope: Some(&row.scope),
            lease_id: Some(LeaseId(row.lease_id)),
            session_id: Some(row.id),
        };
        let why = "nobody settled the claim; whether AWS minted is unknown, and counts as used";
        let lost = row.state == "issuing";
        let (kind, detail) = if lost {
            (EventType::SessionFailed, json!({ "why": why }))
        } else {
            (EventType::SessionExpired, serde_json::Value::Null)
        };
        let event = scribe.body(kind, Actor::Broker, subject, detail, now);
        sqlx::query!(
            r#"
            with ended as (
                update session set state = $2, settled_at = coalesce(settled_at, $3), failure = coalesce(failure, $4)
                 where id = $1 returning id
            )
            select append_event($5) as seq from ended
            "#,
            row.id,
            if lost { "failed" } else { "expired" },
            now,
            lost.then_some(why),
            event,
        )
        .fetch_one(&mut *transaction)
        .await?;
        changed += 1;
        if lost && row.signed && row.lease_state == "approved" {
            let event = scribe.body(
                EventType::LeaseFailed,
                Actor::Broker,
                subject,
                json!({ "why": why }),
                now,
            );
            sqlx::query!(
                r#"
                with ended as (
                    update lease set state = 'failed', ended_at = $2, end_reason = $3 where id = $1 returning id
                )
                select append_event($4) as seq from ended
                "#,
                row.lease_id,
                now,
                why,
                event,
            )
            .fetch_one(&mut *transaction)
            .await?;
            changed += 1;
        }
    }

    let leases = sqlx::query!(
        r#"
        select l.id, l.agent, l.sponsor, l.scope,
               case when l.state = 'pending' or l.claimed_at is null then 'lapsed' else 'expired' end as "next!",
               case when l.state = 'pending' then 'not signed in time'
                    when l.claimed_at is null then 'not claimed in time' end as why
          from lease l
         where l.state = 'pending' and l.sign_by < $1
            or l.state = 'approved' and l.claimed_at is null and l.claim_by < $1
            or l.state in ('approved', 'issued') and l.ends_at < $1
         limit 500 for update skip locked
        "#,
        now,
    )
    .fetch_all(&mut *transaction)
    .await?;
    for row in leases {
        let subject = Subject {
            agent: Some(&row.agent),
            sponsor: Some(&row.sponsor),
            scope: Some(&row.scope),
            lease_id: Some(LeaseId(row.id)),
            session_id: None,
        };
        let kind =
            if row.next == "lapsed" { EventType::LeaseLapsed } else { EventType::LeaseExpired };
        let event = scribe.body(kind, Actor::Broker, subject, json!({ "why": row.why }), now);
        sqlx::query!(
            r#"
            with ended as (
                update lease set state = $2, ended_at = $3, end_reason = $4 where id = $1 returning id
            )
            select append_event($5) as seq from ended
            "#,
            row.id,
            row.next,
            now,
            row.why,
            event,
        )
        .fetch_one(&mut *transaction)
        .await?;
        changed += 1;
    }
    transaction.commit().await?;
    Ok(changed)
}

/// Reads one of our own words; anything else means that the schema and this program differ.
fn word<T: FromStr<Err = crate::lease::UnknownWord>>(text: &str) -> Result<T> {
    text.parse().map_err(|error: crate::lease::UnknownWord| sqlx::Error::Decode(Box::new(error)))
}
