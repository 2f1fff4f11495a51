//! Writing a new lease: judged already, gated once more by what the database knows.

use serde_json::json;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use super::{Admission, Exceeded, NewSession, Result, Warrant};
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::config::Limits;
use crate::identity::Agent;
use crate::lease::{Assurance, LeaseId, LeaseState};
use crate::statement::{AssumeRole, LeaseStatement};
use crate::wire::{self, Receipt};

/// A lease to be written: everything that is known when it is asked for.
#[derive(Debug)]
pub struct NewLease<'a> {
    pub id: LeaseId,
    pub agent: &'a Agent,
    pub idempotency_key: Option<&'a str>,
    pub request_sha256: [u8; 32],
    /// Whether an open lease of this task in the same words will do; one that ends within this time will not.
    pub join: Option<Duration>,
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
#[expect(clippy::large_enum_variant, reason = "made and consumed once a request, on one stack")]
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
        sealed: LeaseStatement,
    },
}

/// What became of a new lease.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "made and consumed once a request, on one stack")]
pub enum Opened {
    /// Written; with the warrant if it was claimed in the same commit.
    New {
        warrant: Option<Warrant>,
        receipt: Receipt,
    },
    /// The same agent used the same idempotency key before.
    Known,
    /// This lease is open, and asks for the same. Nothing is written.
    Joined(LeaseId),
    TaskEnded,
    Frozen,
    /// No room in a budget. Nothing is written.
    OverBudget(Exceeded),
}

/// Writes a lease, its statement, its claim and their events: one statement, one commit.
#[expect(clippy::too_many_lines, reason = "one statement, with a line for each of its parameters")]
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
        "statement_sha256": sealed.as_ref().map(LeaseStatement::sha256),
    });
    let kind = match state {
        LeaseState::Denied => EventType::LeaseDenied,
        LeaseState::Pending => EventType::LeasePending,
        _ => EventType::LeaseApproved,
    };
    let told = scribe.entry(kind, actor, subject, detail, now);
    let receipt = told.receipt();
    let mut events = vec![told.body];
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
    let row = sqlx::query!(
        r#"
        with gate as materialized (
            select * from admit(agent => $3, sponsor => $4, task_id => $5, idempotency_key => $2, state => $21, scope => $9,
                                environment => $10, resources => $16, limits => $27, at => $22,
                                join_sha256 => case when $34::int is not null then $26::bytea end, join_margin => $34 * interval '1 second')
        ), written as (
            insert into lease (id, idempotency_key, agent, sponsor, task_id, task, reason, rollback, scope, environment, tier,
                               account, region, role_arn, actions, resources, assume_role, window_seconds, rules_sha256,
                               decided_by, state, requested_at, sign_by, signatures_needed, eligible_signers, request_sha256,
                               approved_at, claim_by, ends_at, claimed_at, ended_at, end_reason, actor)
            select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::int, $19, $20, $21, $22, $23,
                   $24, $25, $26, approved_at, approved_at + $28::int * interval '1 second',
                   approved_at + $18::int * interval '1 second', case when $29::uuid is not null then $22 end,
                   case when $21 = 'denied' then $22 end, $30, $35
              from gate, (select case when $21 = 'approved' then $22 end) as it (approved_at)
             where verdict = 'open'
            on conflict (agent, sponsor, idempotency_key) do nothing
            returning id
        ), sealed as (
            insert into statement (lease_id, bytes) select id, $31 from written where $31::bytea is not null
        ), claimed as (
            insert into session (id, lease_id, signed, state, session_name, claimed_at)
            select $29, id, false, 'issuing', $32, $22 from written where $29::uuid is not null
        ), told as (
            select append_event(body) from written, unnest($33::bytea[]) as body
        )
        select verdict as "verdict!", budget, whose, allowed, retry_at, lease_id,
               exists (select from written) as "written!", (select count(*) from told) as "told!"
          from gate
        "#,
        id.0,
        lease.idempotency_key,
        agent.name,
        agent.sponsor,
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
        &lease.decided_by,
        state.as_str(),
        now,
        sealed.as_ref().map(|it| it.terms().sign_by),
        signers.map_or(0, |it| i16::try_from(it.needed).unwrap_or(i16::MAX)),
        signers.map_or(&empty, |it| &it.eligible) as &Vec<String>,
        &lease.request_sha256[..],
        json!({ "agent": limits.agent, "task": limits.task, "sponsor": limits.sponsor }),
        i32::try_from(limits.claim_within.seconds()).expect("at most a year"),
        claim.as_ref().map(|it| it.id),
        why,
        sealed.as_ref().map(LeaseStatement::bytes),
        claim.as_ref().map(|it| it.name.as_str()),
        &events[..],
        lease.join.map(|it| i32::try_from(it.whole_seconds()).unwrap_or(i32::MAX)),
        agent.origin.actor,
    )
    .fetch_one(pool)
    .await?;

    if let ("joined", Some(id)) = (row.verdict.as_str(), row.lease_id) {
        return Ok(Opened::Joined(LeaseId(id)));
    }
    let admission =
        Admission::read(&row.verdict, row.budget, row.whose, row.allowed, row.retry_at, now)?;
    Ok(match admission {
        Admission::Open if row.written => {
            let warrant = claim.zip(terms).map(|(session, terms)| {
                let Terms { assume_role, region, tier, window, .. } = terms;
                let until = Some(now + window);
                let (statement_sha256, tier) = (None, Some(tier));
                Warrant {
                    lease_id: id,
                    session,
                    assume_role,
                    statement_sha256,
                    tier,
                    region,
                    until,
                }
            });
            Opened::New { warrant, receipt }
        }
        Admission::Open | Admission::Known => Opened::Known,
        Admission::TaskEnded => Opened::TaskEnded,
        Admission::Frozen => Opened::Frozen,
        Admission::OverBudget(exceeded) => Opened::OverBudget(exceeded),
    })
}

/// Keeps a set of scopes and rules, unless it is kept already.
pub async fn keep_ruleset(
    pool: &PgPool,
    scribe: &Scribe,
    content: &[u8],
    sha256: &str,
    now: OffsetDateTime,
) -> Result<()> {
    let detail = json!({ "rules_sha256": sha256 });
    let event =
        scribe.body(EventType::RulesetInForce, Actor::Broker, Subject::default(), detail, now);
    sqlx::query!(
        r#"
        with kept as (
            insert into ruleset (content, first_in_force_at) values ($1, $2)
            on conflict (sha256) do nothing returning sha256
        )
        select append_event($3) as seq from kept
        "#,
        content,
        now,
        event,
    )
    .fetch_optional(pool)
    .await?;
    Ok(())
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

/// A lease that people approved: what a new request is compared with.
#[derive(Debug)]
pub struct LastApproved {
    pub lease_id: LeaseId,
    /// When they approved it.
    pub at: OffsetDateTime,
    pub actions: Vec<String>,
    pub resources: Vec<String>,
}

/// The last lease that people approved for this agent, its sponsor and this scope.
pub async fn last_approved(
    pool: &PgPool,
    agent: &Agent,
    scope: &str,
) -> Result<Option<LastApproved>> {
    let row = sqlx::query!(
        r#"
        select id, approved_at as "approved_at!", actions, resources from lease
         where agent = $1 and sponsor = $2 and scope = $3 and signed and approved_at is not null
         order by approved_at desc, id desc limit 1
        "#,
        agent.name,
        agent.sponsor,
        scope,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|it| LastApproved {
        lease_id: LeaseId(it.id),
        at: it.approved_at,
        actions: it.actions,
        resources: it.resources,
    }))
}

/// The lease that this agent opened with this key, and what it had asked.
pub async fn by_idempotency_key(
    pool: &PgPool,
    agent: &Agent,
    key: &str,
) -> Result<Option<(LeaseId, Vec<u8>)>> {
    let row = sqlx::query!(
        "select id, request_sha256 from lease where agent = $1 and sponsor = $2 and idempotency_key = $3",
        agent.name,
        agent.sponsor,
        key
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|it| (LeaseId(it.id), it.request_sha256)))
}
