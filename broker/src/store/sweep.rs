//! What time ends, and what a crash left behind.

use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Result;
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::config::Limits;
use crate::lease::LeaseId;

const LOST: &str = "nobody settled the claim; whether AWS minted is unknown, and counts as used";

/// Ends what time has ended, and settles what a crash left behind. Returns how many rows changed.
///
/// Any replica may sweep. Rows that somebody holds are left for next time.
pub async fn sweep(
    pool: &PgPool,
    scribe: &Scribe,
    limits: &Limits,
    now: OffsetDateTime,
) -> Result<usize> {
    let mut transaction = pool.begin().await?;
    let elected = sqlx::query!("select only_row from sweeper for update skip locked")
        .fetch_optional(&mut *transaction)
        .await?;
    if elected.is_none() {
        return Ok(0);
    }
    let sessions = sweep_sessions(&mut transaction, scribe, limits, now).await?;
    let leases = sweep_leases(&mut transaction, scribe, now).await?;
    let acts = super::act::sweep_acts(&mut transaction, scribe, now).await?;
    transaction.commit().await?;
    Ok(sessions + leases + acts)
}

async fn sweep_sessions(
    connection: &mut PgConnection,
    scribe: &Scribe,
    limits: &Limits,
    now: OffsetDateTime,
) -> Result<usize> {
    let rows = sqlx::query!(
        r#"
        select s.id, s.lease_id, s.state = 'issuing' as "lost!",
               s.signed and l.state = 'approved' as "spends_lease!", l.agent, l.sponsor, l.scope
          from session s join lease l on l.id = s.lease_id
         where s.state = 'issuing' and s.claimed_at < $1
            or s.state in ('live', 'revoking') and s.expires_at < $2
         limit 500 for update skip locked
        "#,
        now - limits.settle_within.0,
        now,
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in &rows {
        let subject = Subject {
            agent: Some(&row.agent),
            sponsor: Some(&row.sponsor),
            scope: Some(&row.scope),
            lease_id: Some(LeaseId(row.lease_id)),
            session_id: Some(row.id),
        };
        let body = |kind, detail| scribe.body(kind, Actor::Broker, subject, detail, now);
        if row.lost {
            let event = body(EventType::SessionFailed, json!({ "why": LOST }));
            end_session(connection, row.id, "failed", Some(LOST), event, now).await?;
            if row.spends_lease {
                let event = body(EventType::LeaseFailed, json!({ "why": LOST }));
                end_lease(connection, row.lease_id, "failed", Some(LOST), event, now).await?;
            }
        } else {
            let event = body(EventType::SessionExpired, Value::Null);
            end_session(connection, row.id, "expired", None, event, now).await?;
        }
    }
    Ok(rows.len())
}

async fn sweep_leases(
    connection: &mut PgConnection,
    scribe: &Scribe,
    now: OffsetDateTime,
) -> Result<usize> {
    let rows = sqlx::query!(
        r#"
        select l.id, l.agent, l.sponsor, l.scope, l.claimed_at is null as "unclaimed!",
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
    .fetch_all(&mut *connection)
    .await?;
    for row in &rows {
        let subject = Subject {
            agent: Some(&row.agent),
            sponsor: Some(&row.sponsor),
            scope: Some(&row.scope),
            lease_id: Some(LeaseId(row.id)),
            session_id: None,
        };
        let (state, kind) = if row.unclaimed {
            ("lapsed", EventType::LeaseLapsed)
        } else {
            ("expired", EventType::LeaseExpired)
        };
        let event = scribe.body(kind, Actor::Broker, subject, json!({ "why": row.why }), now);
        end_lease(connection, row.id, state, row.why.as_deref(), event, now).await?;
    }
    Ok(rows.len())
}

async fn end_session(
    connection: &mut PgConnection,
    id: Uuid,
    state: &str,
    failure: Option<&str>,
    event: Vec<u8>,
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query!(
        r#"
        with ended as (
            update session set state = $2, settled_at = coalesce(settled_at, $3), failure = coalesce(failure, $4)
             where id = $1 returning id
        )
        select append_event($5) as seq from ended
        "#,
        id,
        state,
        now,
        failure,
        event,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

async fn end_lease(
    connection: &mut PgConnection,
    id: Uuid,
    state: &str,
    why: Option<&str>,
    event: Vec<u8>,
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query!(
        r#"
        with ended as (
            update lease set state = $2, ended_at = $3, end_reason = $4 where id = $1 returning id
        )
        select append_event($5) as seq from ended
        "#,
        id,
        state,
        now,
        why,
        event,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
