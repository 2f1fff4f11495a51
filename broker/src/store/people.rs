//! What an operator sets up: people, their keys, and tasks.

use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Result;
use crate::identity::TaskGrant;
use crate::lease::Assurance;

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

/// The agent's task that lives longest beyond `until`, if there is one: its id and its end.
pub async fn running_task(
    owner: &mut PgConnection,
    agent: &str,
    sponsor: &str,
    until: OffsetDateTime,
) -> Result<Option<(Uuid, OffsetDateTime)>> {
    let row = sqlx::query!(
        r#"
        select id, expires_at from task
         where agent = $1 and sponsor = $2 and ended_at is null and $3 < expires_at
         order by expires_at desc limit 1
        "#,
        agent,
        sponsor,
        until,
    )
    .fetch_optional(owner)
    .await?;
    Ok(row.map(|it| (it.id, it.expires_at)))
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
