//! Keys, signatures, logins, and what ends a request before it is claimed.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::types::Json;
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Result, word};
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::config::Limits;
use crate::identity::Agent;
use crate::lease::{Assurance, Decision, LeaseId, LeaseState};
use crate::verify::{EnrolledKey, Touch};
use crate::wire::{self, Receipt};

/// A person's key, with the person.
#[derive(Debug)]
pub struct KeyHolder {
    pub person: String,
    pub display_name: String,
    pub active: bool,
    pub groups: Vec<String>,
    pub key: EnrolledKey,
    /// The act that enrolled it; nothing for a key from before there were two admins.
    pub enrolled_by: Option<Uuid>,
}

pub async fn key_holder(pool: &PgPool, fingerprint: &str) -> Result<Option<KeyHolder>> {
    let row = sqlx::query!(
        r#"
        select p.handle, p.display_name, p.disabled_at, p.groups, k.public_key, k.assurance, k.enrolled_at, k.revoked_at, k.enrolled_by
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
                enrolled_at: it.enrolled_at,
                revoked_at: it.revoked_at,
            },
            enrolled_by: it.enrolled_by,
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
    /// What its task's token says that rules may ask for.
    pub claims: BTreeMap<String, String>,
    /// Everybody who has decided.
    pub decided: Vec<String>,
}

impl Signable {
    /// What events about its lease, `id`, say.
    pub fn subject(&self, id: LeaseId) -> Subject<'_> {
        Subject {
            agent: Some(&self.agent),
            sponsor: Some(&self.sponsor),
            scope: Some(&self.scope),
            lease_id: Some(id),
            session_id: None,
        }
    }
}

pub async fn signable(pool: &PgPool, id: LeaseId) -> Result<Option<Signable>> {
    let row = sqlx::query!(
        r#"
        select l.state, l.scope, l.agent, l.sponsor, s.bytes, t.claims as "claims: Json<BTreeMap<String, String>>",
               array (select g.person from signature g where g.lease_id = l.id) as "decided!"
          from lease l join statement s on s.lease_id = l.id join task t on t.id = l.task_id where l.id = $1
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
            claims: it.claims.map(|it| it.0).unwrap_or_default(),
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
    pub touch: Option<Touch>,
    pub reason: Option<&'a str>,
    /// The rules that let the person sign.
    pub decided_by: &'a [String],
}

/// Counts a signature: one statement. Nothing when the lease stopped waiting, or the person decided, in between.
pub async fn sign(
    pool: &PgPool,
    scribe: &Scribe,
    limits: &Limits,
    signature: NewSignature<'_>,
    now: OffsetDateTime,
) -> Result<Option<Receipt>> {
    let NewSignature { lease_id, signable, person, decision, .. } = signature;
    let subject = signable.subject(lease_id);
    let actor = Actor::Person(person);
    let detail = json!({
        "decision": decision,
        "key_fingerprint": signature.fingerprint,
        "assurance": signature.assurance,
        "why": signature.reason,
        "decided_by": signature.decided_by,
    });
    let accepted = scribe.entry(EventType::SignatureAccepted, actor, subject, detail, now);
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
        return Ok(None);
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
        accepted.body,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if counted.is_none() {
        return Ok(None);
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
    Ok(Some(accepted.receipt()))
}

/// Appends one event that comes with no other change, such as a rejection.
pub async fn tell(pool: &PgPool, event: Vec<u8>) -> Result<()> {
    sqlx::query!("select append_event($1) as seq", event).fetch_one(pool).await?;
    Ok(())
}

/// The same of several, in one statement: all of them, or none.
pub async fn tell_all(executor: impl PgExecutor<'_>, events: &[Vec<u8>]) -> Result<()> {
    sqlx::query!("select append_event(body) as seq from unnest($1::bytea[]) as body", events)
        .fetch_all(executor)
        .await?;
    Ok(())
}

/// The agent takes back what it has not used. Nothing when there is nothing to take back.
pub async fn withdraw(
    pool: &PgPool,
    scribe: &Scribe,
    agent: &Agent,
    lease: &wire::Lease,
    reason: Option<&str>,
    now: OffsetDateTime,
) -> Result<Option<Receipt>> {
    let subject = Subject::from(lease);
    let reason = reason.unwrap_or("withdrawn by the agent");
    let event = scribe.entry(
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
        event.body,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|_| event.receipt()))
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
