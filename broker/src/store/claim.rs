//! From an approved lease to a settled session: claim, settle, deliver again.

use serde_json::json;
use sqlx::PgPool;
use sqlx::types::Json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Find, NewSession, Result, Viewer, Warrant, find, word};
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::aws::{MintError, Minted};
use crate::identity::Agent;
use crate::lease::{LeaseId, Tier};
use crate::statement::AssumeRole;
use crate::verify::EnrolledKey;
use crate::wire::{self, Receipt};

/// What a claim is made from: the lease as stored, and for a signed one the statement and who approved it.
#[derive(Debug)]
pub struct Claimable {
    pub lease: wire::Lease,
    /// As it was compiled; what counts for an unsigned lease.
    pub assume_role: AssumeRole,
    pub window: Duration,
    /// What counts for a signed lease.
    pub statement: Option<Vec<u8>>,
    pub approvals: Vec<Approval>,
}

/// An approval as stored, to be verified anew.
#[derive(Debug)]
pub struct Approval {
    pub person: String,
    /// The person's groups today.
    pub groups: Vec<String>,
    pub signature: String,
    pub signed_at: OffsetDateTime,
    pub fingerprint: String,
    pub key: EnrolledKey,
    /// The act that enrolled the key, if one did.
    pub enrolled_by: Option<Uuid>,
}

pub async fn claimable(pool: &PgPool, id: LeaseId, agent: &Agent) -> Result<Option<Claimable>> {
    let viewer = Viewer::Agent { name: &agent.name, sponsor: &agent.sponsor };
    let Some(lease) = find(pool, Find { id: Some(id), ..Find::by(viewer) }).await?.pop() else {
        return Ok(None);
    };
    let row = sqlx::query!(
        r#"
        select l.assume_role as "assume_role: Json<AssumeRole>", l.window_seconds, s.bytes as "bytes?"
          from lease l left join statement s on s.lease_id = l.id where l.id = $1
        "#,
        id.0
    )
    .fetch_one(pool)
    .await?;
    let (Some(Json(assume_role)), Some(window)) = (row.assume_role, row.window_seconds) else {
        return Ok(None);
    };
    let window = Duration::seconds(window.into());
    let approvals = if row.bytes.is_none() { Vec::new() } else { approvals(pool, id).await? };
    Ok(Some(Claimable { lease, assume_role, window, statement: row.bytes, approvals }))
}

async fn approvals(pool: &PgPool, id: LeaseId) -> Result<Vec<Approval>> {
    let rows = sqlx::query!(
        r#"
        select g.person, p.groups, g.signature, g.signed_at, g.fingerprint, k.public_key, k.assurance, k.enrolled_at, k.revoked_at,
               k.enrolled_by
          from signature g
          join person p on p.handle = g.person
          join person_key k on k.fingerprint = g.fingerprint
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
                groups: it.groups,
                signature: it.signature,
                signed_at: it.signed_at,
                fingerprint: it.fingerprint,
                enrolled_by: it.enrolled_by,
                key: EnrolledKey {
                    public_key: it.public_key,
                    assurance: word(&it.assurance)?,
                    enrolled_at: it.enrolled_at,
                    revoked_at: it.revoked_at,
                },
            })
        })
        .collect()
}

/// What a claim entitles to.
#[derive(Debug)]
pub struct Granted {
    pub assume_role: AssumeRole,
    /// Of the bytes that were signed, in hex.
    pub statement_sha256: Option<String>,
}

/// Claims an approved lease for `agent`: one compare-and-swap. `None` when it may not be claimed, whatever the reason.
///
/// It checks again that the task lives, that nothing is frozen, that AWS would not refuse it, and that as many active people with unrevoked keys
/// have approved as are needed: once it holds the lease, so that what was committed while it waited is seen. Of several claims of a signed lease, one wins, once.
pub async fn claim(
    pool: &PgPool,
    scribe: &Scribe,
    lease: &wire::Lease,
    granted: Granted,
    decided_by: &[String],
    agent: &Agent,
    now: OffsetDateTime,
) -> Result<Option<Warrant>> {
    let session = NewSession::for_lease(lease.id);
    let subject = Subject { session_id: Some(session.id), ..Subject::from(lease) };
    let detail = json!({ "session_name": session.name, "decided_by": decided_by });
    let event =
        scribe.body(EventType::SessionIssuing, Actor::Agent(&agent.name), subject, detail, now);
    let row = sqlx::query!(
        r#"
        with held as materialized (
            select l.* from lease l
             where l.id = $1 and l.agent = $2 and l.sponsor = $3
               and (l.state = 'approved' and (l.claimed_at is not null or $4 <= l.claim_by) or l.state = 'issued')
               and (l.signatures_needed = 0 or l.claimed_at is null)
               and (l.ends_at is null or $4 < l.ends_at)
               and l.task_id = $5
               for update
        ), may as materialized (
            select h.id from held h
             where task_is_live(h.task_id, h.agent, h.sponsor, $4)
               and not is_frozen(h.agent, h.sponsor, h.scope, h.environment)
               and not role_is_cut_off(h.role_arn, $4)
               and has_its_approvals(h.id, h.signatures_needed)
               and (h.tier <> 'destructive' or is_anchored(h.id))
        ), claimed as (
            update lease l set claimed_at = coalesce(l.claimed_at, $4) from may where l.id = may.id
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
    Ok(row.map(|_| Warrant {
        lease_id: lease.id,
        session,
        assume_role: granted.assume_role,
        statement_sha256: granted.statement_sha256,
        tier: lease.tier.map(Tier::as_str),
        region,
        until: lease.ends_at.filter(|_| lease.signatures_needed == 0),
    }))
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
        select task_is_live($2, $3, $4, $5) as "live!", l.task_id = $2 as "same_task!",
               is_frozen(l.agent, l.sponsor, l.scope, l.environment) as "frozen!",
               (select r.cut_off from role_stop r where r.role_arn = l.role_arn and $5 < r.cut_off) as cut_off
          from lease l where l.id = $1
        "#,
        id.0,
        agent.task_id,
        agent.name,
        agent.sponsor,
        now
    )
    .fetch_one(pool)
    .await?;
    Ok(match row {
        it if !it.live => Obstacle::TaskEnded,
        it if !it.same_task => Obstacle::OtherTask,
        it if it.frozen => Obstacle::Frozen,
        it if it.cut_off.is_some() => Obstacle::RoleCutOff(it.cut_off.unwrap_or(now)),
        _ => Obstacle::Other,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    TaskEnded,
    /// The lease was opened under another task of the same agent.
    OtherTask,
    Frozen,
    /// All sessions of its role were stopped; new ones begin from then on.
    RoleCutOff(OffsetDateTime),
    Other,
}

/// Writes how minting ended. Consumes the warrant: it is settled once.
///
/// Returns the receipt of the session's event if the outcome was written. If not, a sweep, a stop or a freeze was first,
/// and the credentials must be dropped: nobody is entitled to them any more.
pub async fn settle(
    pool: &PgPool,
    scribe: &Scribe,
    agent: &Agent,
    warrant: Warrant,
    outcome: Result<&Minted, &MintError>,
    now: OffsetDateTime,
) -> Result<Option<Receipt>> {
    let subject = Subject {
        agent: Some(&agent.name),
        sponsor: Some(&agent.sponsor),
        scope: Some(warrant.scope()),
        lease_id: Some(warrant.lease_id),
        session_id: Some(warrant.session.id),
    };
    let actor = Actor::Agent(&agent.name);
    match outcome {
        Ok(minted) => {
            let detail = json!({ "access_key_id": minted.access_key_id, "session_name": warrant.session.name });
            let issued =
                scribe.entry(EventType::SessionIssued, actor, subject, detail.clone(), now);
            let of_lease = warrant.with_what_was_signed(detail.clone());
            let lease_event = scribe.body(EventType::LeaseIssued, actor, subject, of_lease, now);
            let settled = sqlx::query!(
                r#"
                with locked as materialized (
                    select l.* from lease l where l.id = $1 and l.state in ('approved', 'issued') for update
                ), held as materialized (
                    select l.id, l.state from locked l
                     where task_is_live(l.task_id, l.agent, l.sponsor, $3)
                       and not is_frozen(l.agent, l.sponsor, l.scope, l.environment)
                       and not role_is_cut_off(l.role_arn, (select s.claimed_at from session s where s.id = $2))
                       and has_its_approvals(l.id, l.signatures_needed)
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
                issued.body,
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
            Ok(settled.then(|| issued.receipt()))
        }
        Err(error) => {
            let failure = error.to_string();
            let detail = json!({ "why": failure, "access_key_id": error.access_key_id() });
            let session_event =
                scribe.entry(EventType::SessionFailed, actor, subject, detail.clone(), now);
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
                session_event.body,
                lease_event,
            )
            .fetch_one(pool)
            .await?
            .told
                > 0;
            Ok(settled.then(|| session_event.receipt()))
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

/// Records that a live session is handed to its agent again, if it may be.
pub async fn redeliver(
    pool: &PgPool,
    scribe: &Scribe,
    agent: &Agent,
    scope: &str,
    lease_id: LeaseId,
    session_id: Uuid,
    now: OffsetDateTime,
) -> Result<Option<Receipt>> {
    let subject = Subject {
        agent: Some(&agent.name),
        sponsor: Some(&agent.sponsor),
        scope: Some(scope),
        lease_id: Some(lease_id),
        session_id: Some(session_id),
    };
    let event = scribe.entry(
        EventType::SessionRedelivered,
        Actor::Agent(&agent.name),
        subject,
        serde_json::Value::Null,
        now,
    );
    let row = sqlx::query!(
        r#"
        with held as materialized (
            select l.* from lease l
             where l.id = $2 and l.agent = $4 and l.sponsor = $5 and l.state = 'issued' and $3 < l.ends_at and l.task_id = $6
               for update
        ), may as materialized (
            select h.id from held h
             where task_is_live(h.task_id, h.agent, h.sponsor, $3)
               and not is_frozen(h.agent, h.sponsor, h.scope, h.environment)
        ), delivered as (
            update session s set deliveries = s.deliveries + 1, last_delivered_at = $3
              from may where s.id = $1 and s.lease_id = may.id and s.state = 'live' and $3 < s.expires_at
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
        event.body,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|_| event.receipt()))
}
