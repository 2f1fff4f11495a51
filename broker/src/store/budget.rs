//! Budgets: who is over one, and what is left. They are enforced where a lease is opened.

use serde_json::json;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Result, Terms, word};
use crate::config::Limits;
use crate::identity::Agent;
use crate::lease::{Budgeted, LeaseState, Whose};
use crate::policy::Usage;

/// The budget that has no room for a request; of several, the one that takes longest to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub budget: Budgeted,
    pub of: Whose,
    pub limit: i64,
    /// When there will be room for the same request, if nothing else is asked until then.
    pub retry_at: OffsetDateTime,
    /// From when it was asked until then.
    pub wait: Duration,
}

/// Who is over which budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverBudget {
    pub sponsor: String,
    pub agent: String,
    pub of: Whose,
    pub budget: Budgeted,
}

/// Records that an agent is over a budget, once a minute for each: a loop in an agent must not fill the log. `false` if it was
/// recorded within this minute.
pub async fn tell_exceeded(
    pool: &PgPool,
    who: &OverBudget,
    event: Vec<u8>,
    now: OffsetDateTime,
) -> Result<bool> {
    // Looks before it writes: a loop that is told already costs no commit.
    let row = sqlx::query!(
        r#"
        with due as (
            insert into over_budget as o (sponsor, agent, whose, budget, told_at)
            select $1, $2, $3, $4, $5
             where not exists (select from over_budget o where o.sponsor = $1 and o.agent = $2 and o.whose = $3 and o.budget = $4
                                                           and $5::timestamptz - interval '1 minute' < o.told_at)
            on conflict (sponsor, agent, whose, budget) do update set told_at = excluded.told_at
             where o.told_at <= excluded.told_at - interval '1 minute'
            returning o.told_at
        )
        select append_event($6) as seq from due
        "#,
        who.sponsor,
        who.agent,
        who.of.as_str(),
        who.budget.as_str(),
        now,
        event,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.is_some())
}

/// What a request meets at the gate that a new lease goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Open,
    /// The same agent used the same idempotency key before.
    Known,
    TaskEnded,
    Frozen,
    OverBudget(Exceeded),
}

impl Admission {
    /// Reads the answer of `admit()`; the rest is there when it is a budget's.
    pub(super) fn read(
        verdict: &str,
        budget: Option<String>,
        whose: Option<String>,
        allowed: Option<i64>,
        retry_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<Self> {
        Ok(match (verdict, budget, whose, allowed, retry_at) {
            ("open", ..) => Self::Open,
            ("known", ..) => Self::Known,
            ("task-ended", ..) => Self::TaskEnded,
            ("frozen", ..) => Self::Frozen,
            ("over-budget", Some(budget), Some(of), Some(limit), Some(retry_at)) => {
                let (budget, of) = (word(&budget)?, word(&of)?);
                Self::OverBudget(Exceeded { budget, of, limit, retry_at, wait: retry_at - now })
            }
            _ => return Err(sqlx::Error::Decode(format!("admit() says {verdict:?}").into())),
        })
    }
}

/// Asks the gate that a new lease goes through, without one: nothing is written, and nothing is reserved.
pub async fn admission(
    pool: &PgPool,
    limits: &Limits,
    agent: &Agent,
    state: LeaseState,
    scope: &str,
    terms: Option<&Terms>,
    now: OffsetDateTime,
) -> Result<Admission> {
    let empty = Vec::new();
    let row = sqlx::query!(
        r#"
        select verdict as "verdict!", budget, whose, allowed, retry_at
          from admit(agent => $1, sponsor => $2, task_id => $3, idempotency_key => null, state => $4, scope => $5,
                     environment => $6, resources => $7, limits => $8, at => $9,
                     join_sha256 => null, join_margin => null)
        "#,
        agent.name,
        agent.sponsor,
        agent.task_id,
        state.as_str(),
        scope,
        terms.map(|it| it.environment),
        terms.map_or(&empty, |it| &it.resources) as &Vec<String>,
        json!({ "agent": limits.agent, "task": limits.task, "sponsor": limits.sponsor }),
        now,
    )
    .fetch_one(pool)
    .await?;
    Admission::read(&row.verdict, row.budget, row.whose, row.allowed, row.retry_at, now)
}

/// What counts against the budgets at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// The agent, under this sponsor.
    pub agent: Usage,
    pub task: Usage,
    pub sponsor: Usage,
}

/// What counts against the budgets of `agent`, of its task and of its sponsor. Nothing is reserved by looking.
pub async fn usage(
    pool: &PgPool,
    agent: &str,
    sponsor: &str,
    task_id: Uuid,
    now: OffsetDateTime,
) -> Result<Used> {
    let rows = sqlx::query!(
        r#"
        select whose as "whose!", budget as "budget!", count(*) as "used!"
          from counted($1, $2, $3, $4) group by whose, budget
        "#,
        agent,
        sponsor,
        task_id,
        now,
    )
    .fetch_all(pool)
    .await?;
    let mut used = Used::default();
    for row in rows {
        let of = match word(&row.whose)? {
            Whose::Agent => &mut used.agent,
            Whose::Task => &mut used.task,
            Whose::Sponsor => &mut used.sponsor,
        };
        let field = match word(&row.budget)? {
            Budgeted::LiveLeases => &mut of.live_leases,
            Budgeted::PendingLeases => &mut of.pending_leases,
            Budgeted::RequestsPerMinute => &mut of.requests_last_minute,
            Budgeted::ScopesPerHour => &mut of.scopes_last_hour,
            Budgeted::ResourcesPerHour => &mut of.resources_last_hour,
            Budgeted::SignedPerDay => &mut of.signed_last_day,
        };
        *field = row.used;
    }
    Ok(used)
}
