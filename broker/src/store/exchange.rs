//! Tasks that workloads' tokens start.

use serde_json::json;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Result;
use crate::identity::Origin;
use crate::workload::Workload;

/// A task to be started.
#[derive(Debug)]
pub struct WorkloadTask<'a> {
    pub id: Uuid,
    pub workload: &'a Workload,
    /// As its token is going to say.
    pub origin: &'a Origin,
    pub expires_at: OffsetDateTime,
    pub event: Vec<u8>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedWorkload {
    New {
        id: Uuid,
        expires_at: OffsetDateTime,
    },
    /// The same token started this one before, and it still lives.
    Known {
        id: Uuid,
        expires_at: OffsetDateTime,
    },
    /// The same token started one before, which has ended.
    Ended,
    NoSponsor,
    /// The agent has started `most` within the last minute.
    OverBudget {
        retry_at: OffsetDateTime,
    },
}

/// Starts a workload's task, once for each token, with its event: one statement, one commit.
pub async fn start_workload_task(
    pool: &PgPool,
    task: WorkloadTask<'_>,
    most: i64,
    now: OffsetDateTime,
) -> Result<StartedWorkload> {
    let WorkloadTask { workload, origin, .. } = task;
    let row = sqlx::query!(
        r#"
        select verdict as "verdict!", task_id, ends_at, retry_at
          from start_workload_task(id => $1, agent => $2, sponsor => $3, task => $4, issuer => $5, subject => $6, token_sha256 => $7,
                                   actor => $8, actor_unknown => $9, claims => $10, at => $11, expires_at => $12, most => $13,
                                   event => $14)
        "#,
        task.id,
        workload.agent,
        workload.sponsor,
        workload.task,
        workload.issuer,
        workload.subject,
        &workload.token_sha256[..],
        origin.actor,
        origin.actor_unknown,
        json!(origin.claims),
        now,
        task.expires_at,
        most,
        task.event,
    )
    .fetch_one(pool)
    .await?;
    Ok(match (row.verdict.as_str(), row.task_id, row.ends_at, row.retry_at) {
        ("started", Some(id), Some(expires_at), _) => StartedWorkload::New { id, expires_at },
        ("known", Some(id), Some(expires_at), _) => StartedWorkload::Known { id, expires_at },
        ("ended", ..) => StartedWorkload::Ended,
        ("no-sponsor", ..) => StartedWorkload::NoSponsor,
        ("over-budget", .., Some(retry_at)) => StartedWorkload::OverBudget { retry_at },
        (verdict, ..) => {
            let says = format!("start_workload_task() says {verdict:?}");
            return Err(sqlx::Error::Decode(says.into()));
        }
    })
}
