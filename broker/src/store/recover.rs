//! Taking up a database again that events were lost from: all that was open in it is void.

use serde_json::json;
use sqlx::{PgConnection, Postgres, Transaction};
use time::OffsetDateTime;

use super::act::{Which, end};
use super::stop::stop_lease;
use super::{NewFreeze, Result, freeze};
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::lease::LeaseId;
use crate::statement::act::{ActState, ActStatement};

const WHY: &str = "the database was taken up again after events were lost";

/// What was voided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Voided {
    pub leases: usize,
    pub acts: usize,
    pub tasks: usize,
}

/// Voids every open lease, act and task, and freezes everything: what was claimed, signed, revoked or ended in the events that are
/// lost is not known here.
pub async fn void_everything(
    transaction: &mut Transaction<'_, Postgres>,
    scribe: &Scribe,
    new: NewFreeze<'_>,
    now: OffsetDateTime,
) -> Result<Voided> {
    freeze(&mut **transaction, scribe, Actor::Operator, new, now).await?;
    let tasks = end_tasks(transaction, scribe, now).await?;
    let leases = sqlx::query!(
        r#"
        select id, agent, sponsor, scope from lease where state in ('pending', 'approved', 'issued') order by id for update
        "#
    )
    .fetch_all(&mut **transaction)
    .await?;
    for lease in &leases {
        let subject = Subject {
            agent: Some(&lease.agent),
            sponsor: Some(&lease.sponsor),
            scope: Some(&lease.scope),
            lease_id: Some(LeaseId(lease.id)),
            session_id: None,
        };
        stop_lease(transaction, scribe, Actor::Operator, subject, lease.id, WHY, now).await?;
    }
    let acts = sqlx::query!(
        r#"select id, bytes, state = 'signed' as "signed!" from act where ended_at is null order by id for update"#
    )
    .fetch_all(&mut **transaction)
    .await?;
    let count = acts.len();
    for act in acts {
        let statement = ActStatement::from_bytes(act.bytes).ok();
        let which = Which { id: act.id, terms: statement.as_ref().map(ActStatement::terms) };
        let state = if act.signed { ActState::Failed } else { ActState::Lapsed };
        end(transaction, scribe, which, state, Actor::Operator, WHY, now).await?;
    }
    Ok(Voided { leases: leases.len(), acts: count, tasks })
}

/// Every role that a lease was ever on.
pub async fn roles_of_leases(owner: &mut PgConnection) -> Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select distinct role_arn as "role!" from lease where role_arn is not null"#
    )
    .fetch_all(owner)
    .await
}

async fn end_tasks(
    connection: &mut PgConnection,
    scribe: &Scribe,
    now: OffsetDateTime,
) -> Result<usize> {
    let tasks = sqlx::query!(
        "update task set ended_at = $1 where ended_at is null and $1 < expires_at returning id, agent, sponsor, task",
        now
    )
    .fetch_all(&mut *connection)
    .await?;
    for task in &tasks {
        let subject = Subject {
            agent: Some(&task.agent),
            sponsor: Some(&task.sponsor),
            ..Subject::default()
        };
        let detail = json!({ "task_id": task.id, "task": task.task, "why": WHY });
        let event = scribe.body(EventType::TaskEnded, Actor::Operator, subject, detail, now);
        sqlx::query!("select append_event($1) as seq", event).fetch_one(&mut *connection).await?;
    }
    Ok(tasks.len())
}

/// Lets the log go on under another name, with the event that tells why.
pub async fn next_epoch(
    transaction: &mut Transaction<'_, Postgres>,
    epoch: i32,
    origin: &str,
    key: &str,
    event: &[u8],
) -> Result<()> {
    sqlx::query!("update log_state set epoch = $1, origin = $2, key = $3", epoch, origin, key)
        .execute(&mut **transaction)
        .await?;
    sqlx::query!("select append_event($1) as seq", event).fetch_one(&mut **transaction).await?;
    Ok(())
}
