//! Who may see which lease, and what they see.

use std::collections::BTreeMap;

use sqlx::PgPool;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::{Result, word};
use crate::identity::{Agent, Origin};
use crate::lease::{LeaseId, LeaseState, Tier};
use crate::{statement, wire};

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

/// Where the task of a lease comes from.
pub async fn origin(pool: &PgPool, id: LeaseId) -> Result<Origin> {
    let row = sqlx::query!(
        r#"
        select t.issuer, t.actor, t.actor_unknown, t.claims as "claims: Json<BTreeMap<String, String>>"
          from lease l join task t on t.id = l.task_id where l.id = $1
        "#,
        id.0
    )
    .fetch_one(pool)
    .await?;
    let claims = row.claims.map(|it| it.0).unwrap_or_default();
    Ok(Origin { issuer: row.issuer, actor: row.actor, actor_unknown: row.actor_unknown, claims })
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
                            'claimed_at', s.claimed_at, 'expires_at', s.expires_at, 'failure', s.failure,
                            'revoking_at', s.revoking_at, 'stopped_at', s.stopped_at, 'stopped_region', s.stopped_region) order by s.claimed_at)
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
            let tier: Option<Tier> = it.tier.as_deref().map(word).transpose()?;
            // Who signs this has to be told the code by who asked for it: here only the agent gets to know it.
            let told = handle.is_some() && tier == Some(Tier::Destructive);
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
                tier,
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
                signatures_needed: u16::try_from(it.signatures_needed)
                    .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
                eligible_signers: it.eligible_signers,
                signatures: it.signatures.0,
                short_code: it.bytes.filter(|_| !told).as_deref().map(statement::short_code),
                link: None,
                sessions: it.sessions.0,
                next: None,
                credentials: None,
                receipt: None,
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
    sqlx::query_scalar!(
        r#"select task_is_live($1, $2, $3, $4) as "live!""#,
        agent.task_id,
        agent.name,
        agent.sponsor,
        now
    )
    .fetch_one(pool)
    .await
}
