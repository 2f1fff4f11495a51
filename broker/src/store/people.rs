//! People and their keys, as an operator on the server's host sees them and sets them up.

use sqlx::{Connection, PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Result, word};
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::lease::Assurance;
use crate::statement::act::NewPerson;

/// Opens the administrator's connection, acting as the owner.
pub async fn admin(url: &str) -> Result<PgConnection> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql("set role broker_owner").execute(&mut connection).await?;
    Ok(connection)
}

/// Whether people change by signed acts alone by now.
pub async fn bootstrap_is_over(owner: impl PgExecutor<'_>) -> Result<bool> {
    sqlx::query_scalar!(r#"select exists (select from bootstrap) as "over!""#)
        .fetch_one(owner)
        .await
}

/// A person, with their keys.
#[derive(Debug)]
pub struct Enrolled {
    pub handle: String,
    pub display_name: String,
    /// Sorted.
    pub groups: Vec<String>,
    pub disabled: bool,
    pub keys: Vec<EnrolledWith>,
}

#[derive(Debug)]
pub struct EnrolledWith {
    pub fingerprint: String,
    pub assurance: Assurance,
    pub revoked: bool,
}

/// Everybody, by handle.
pub async fn everybody(owner: &mut PgConnection) -> Result<Vec<Enrolled>> {
    let people = sqlx::query!(
        r#"select handle, display_name, groups, disabled_at is not null as "disabled!" from person order by handle"#
    )
    .fetch_all(&mut *owner)
    .await?;
    let keys = sqlx::query!(
        r#"select person, fingerprint, assurance, revoked_at is not null as "revoked!" from person_key order by enrolled_at"#
    )
    .fetch_all(owner)
    .await?;
    let mut everybody: Vec<_> = people
        .into_iter()
        .map(|mut it| {
            it.groups.sort_unstable();
            Enrolled {
                handle: it.handle,
                display_name: it.display_name,
                groups: it.groups,
                disabled: it.disabled,
                keys: Vec::new(),
            }
        })
        .collect();
    for key in keys {
        let assurance = word(&key.assurance)?;
        let key = (key.person, key.fingerprint, key.revoked);
        if let Some(person) = everybody.iter_mut().find(|it| it.handle == key.0) {
            person.keys.push(EnrolledWith { fingerprint: key.1, assurance, revoked: key.2 });
        }
    }
    Ok(everybody)
}

/// Sets a person up without anybody's signature, with their events: before there are two admins, and never after.
pub async fn enrol(
    owner: &mut PgConnection,
    scribe: &Scribe,
    person: &NewPerson,
    now: OffsetDateTime,
) -> Result<()> {
    let mut transaction = owner.begin().await?;
    let tell = |kind| {
        let detail = serde_json::json!({ "about": person.handle, "person": person });
        scribe.body(kind, Actor::Operator, Subject::default(), detail, now)
    };
    sqlx::query!(
        r#"
        with added as (
            insert into person (handle, display_name, email, groups, created_at) values ($1, $2, $3, $4, $5) returning handle
        )
        select append_event($6) as seq from added
        "#,
        person.handle,
        person.display_name,
        person.email,
        &person.groups,
        now,
        tell(EventType::PersonAdded),
    )
    .fetch_one(&mut *transaction)
    .await?;
    if let Some(key) = &person.key {
        let evidence =
            serde_json::to_string(&key.evidence).expect("evidence is an object of strings");
        sqlx::query!(
            r#"
            with enrolled as (
                insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at)
                values ($1, $2, $3, $4, $5, $6) returning fingerprint
            )
            select append_event($7) as seq from enrolled
            "#,
            key.fingerprint,
            person.handle,
            key.public_key,
            key.assurance.as_str(),
            evidence,
            now,
            tell(EventType::KeyEnrolled),
        )
        .fetch_one(&mut *transaction)
        .await?;
    }
    transaction.commit().await
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
