//! Acts of authority: drawn up, signed, and done from the signed bytes.

use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::sign::{KeyHolder, key_holder};
use super::stop::stop_lease;
use super::{Result, word};
use crate::audit::{Actor, Entry, EventType, Scribe, Subject};
use crate::lease::{Assurance, Decision, FreezeKind, LeaseId};
use crate::statement::act::{ADMINS, Act, ActKind, ActState, ActStatement, ActTerms, Change};
use crate::verify::Touch;
use crate::wire::{self, Receipt};

/// SQLSTATE of `apply_act()` when what an act builds on is no longer so.
const NO_LONGER_SO: &str = "BR001";

/// An act as stored.
#[derive(Debug)]
pub struct StoredAct {
    pub id: Uuid,
    pub bytes: Vec<u8>,
    pub state: ActState,
    pub signed_at: Option<OffsetDateTime>,
    pub effective_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
    pub end_reason: Option<String>,
    pub signatures: Vec<wire::Signature>,
}

/// Which acts, newest first.
#[derive(Clone, Copy, Debug)]
pub enum FindActs<'a> {
    One(Uuid),
    /// Those that may still come to something and that concern this person; for an admin also all that change people.
    /// Those that are signed come first: they can still be refused.
    Open {
        handle: &'a str,
        admin: bool,
    },
    /// Those whose cool-down is over, the oldest first.
    Due(OffsetDateTime),
}

pub async fn acts(pool: &PgPool, find: FindActs<'_>) -> Result<Vec<StoredAct>> {
    let (id, handle, admin, due) = match find {
        FindActs::One(id) => (Some(id), None, false, None),
        FindActs::Open { handle, admin } => (None, Some(handle), admin, None),
        FindActs::Due(at) => (None, None, false, Some(at)),
    };
    let rows = sqlx::query!(
        r#"
        select a.id, a.bytes, a.state, a.signed_at, a.effective_at, a.ended_at, a.end_reason,
               coalesce((select jsonb_agg(jsonb_build_object(
                            'person', g.person, 'decision', g.decision, 'key_fingerprint', g.fingerprint,
                            'assurance', g.assurance, 'signed_at', g.signed_at) order by g.signed_at)
                           from act_signature g where g.act_id = a.id), '[]') as "signatures!: Json<Vec<wire::Signature>>"
          from act a
         where a.id = $1
            or a.state in ('proposed', 'signed')
               and ($3 and a.kind = 'admin-change' or a.doc -> 'signers' -> 'eligible' ? $2 or a.proposed_by = $2
                    or $2 in (a.doc -> 'act' ->> 'handle', a.doc -> 'act' ->> 'sponsor'))
            or a.state = 'signed' and a.effective_at <= $4
         order by a.state = 'signed' desc, a.effective_at, a.proposed_at desc limit 200
        "#,
        id,
        handle,
        admin,
        due,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|it| {
            Ok(StoredAct {
                id: it.id,
                bytes: it.bytes,
                state: word(&it.state)?,
                signed_at: it.signed_at,
                effective_at: it.effective_at,
                ended_at: it.ended_at,
                end_reason: it.end_reason,
                signatures: it.signatures.0,
            })
        })
        .collect()
}

/// How many acts of `handle`'s of this kind wait for a signature.
pub async fn open_drafts(pool: &PgPool, handle: &str, kind: ActKind) -> Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "open!" from act where proposed_by = $1 and state = 'proposed' and kind = $2"#,
        handle,
        kind.as_str(),
    )
    .fetch_one(pool)
    .await
}

/// Stores a statement that waits for its signature, with its event.
pub async fn propose(
    executor: impl PgExecutor<'_>,
    scribe: &Scribe,
    statement: &ActStatement,
) -> Result<()> {
    let terms = statement.terms();
    let actor = terms.proposed_by.as_deref().map_or(Actor::Operator, Actor::Person);
    let event = entry(
        scribe,
        EventType::StatementProposed,
        actor,
        terms.into(),
        json!({}),
        terms.proposed_at,
    )
    .body;
    sqlx::query!(
        r#"
        with proposed as (
            insert into act (id, bytes, kind, proposed_by, proposed_at, sign_by) values ($1, $2, $3, $4, $5, $6) returning id
        )
        select append_event($7) as seq from proposed
        "#,
        terms.id,
        statement.bytes(),
        terms.act.kind().as_str(),
        terms.proposed_by,
        terms.proposed_at,
        terms.sign_by,
        event,
    )
    .fetch_one(executor)
    .await?;
    Ok(())
}

/// A freeze that stands.
#[derive(Debug)]
pub struct Freeze {
    pub kind: FreezeKind,
    pub target: Option<String>,
    pub reason: String,
    pub created_by: String,
    pub created_at: OffsetDateTime,
}

pub async fn standing_freeze(pool: &PgPool, id: Uuid) -> Result<Option<Freeze>> {
    let row = sqlx::query!(
        r#"select kind, target, reason, created_by, created_at from "freeze" where id = $1 and thawed_at is null"#,
        id
    )
    .fetch_optional(pool)
    .await?;
    row.map(|it| {
        Ok(Freeze {
            kind: word(&it.kind)?,
            target: it.target,
            reason: it.reason,
            created_by: it.created_by,
            created_at: it.created_at,
        })
    })
    .transpose()
}

/// Who last handed a task to `agent`.
pub async fn last_sponsor(pool: &PgPool, agent: &str) -> Result<Option<String>> {
    sqlx::query_scalar!(
        "select sponsor from task where agent = $1 order by started_at desc limit 1",
        agent
    )
    .fetch_optional(pool)
    .await
}

/// Whether `person` stands behind an agent of that name, or did.
pub async fn is_sponsor_of(pool: &PgPool, person: &str, agent: &str) -> Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from task where agent = $1 and sponsor = $2) as "is!""#,
        agent,
        person
    )
    .fetch_one(pool)
    .await
}

/// Whose key it is, unless it is revoked.
pub async fn owner_of_key(pool: &PgPool, fingerprint: &str) -> Result<Option<String>> {
    sqlx::query_scalar!(
        "select person from person_key where fingerprint = $1 and revoked_at is null",
        fingerprint
    )
    .fetch_optional(pool)
    .await
}

/// The signature that an act waits with, to be verified anew.
#[derive(Debug)]
pub struct ActApproval {
    pub signature: String,
    pub signed_at: OffsetDateTime,
    pub fingerprint: String,
    pub holder: KeyHolder,
}

pub async fn act_approval(pool: &PgPool, id: Uuid) -> Result<Option<ActApproval>> {
    let row = sqlx::query!(
        "select signature, signed_at, fingerprint from act_signature where act_id = $1 and decision = 'approve'",
        id
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let holder = key_holder(pool, &row.fingerprint).await?;
    Ok(holder.map(|holder| ActApproval {
        signature: row.signature,
        signed_at: row.signed_at,
        fingerprint: row.fingerprint,
        holder,
    }))
}

/// A signature that was judged good.
#[derive(Debug)]
pub struct NewActSignature<'a> {
    pub person: &'a str,
    pub fingerprint: &'a str,
    pub decision: Decision,
    /// As it came.
    pub text: &'a str,
    pub assurance: Assurance,
    pub touch: Option<Touch>,
    pub reason: Option<&'a str>,
    /// The rules that let the person sign.
    pub decided_by: &'a [String],
}

/// What became of a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    /// With the receipt of the event that tells of the signature.
    Yes(Receipt),
    /// Somebody was faster.
    No,
    /// It is good, but what the act builds on is no longer so; nothing was written.
    NoLongerSo,
}

/// Counts a signature, and does what was signed unless there is a cool-down: one transaction.
pub async fn sign_act(
    pool: &PgPool,
    scribe: &Scribe,
    terms: &ActTerms,
    signature: NewActSignature<'_>,
    now: OffsetDateTime,
) -> Result<Counted> {
    let mut transaction = pool.begin().await?;
    let state: Option<ActState> =
        sqlx::query_scalar!("select state from act where id = $1 for update", terms.id)
            .fetch_optional(&mut *transaction)
            .await?
            .map(|it| word(&it))
            .transpose()?;
    let approves = signature.decision == Decision::Approve;
    match state {
        Some(ActState::Proposed) => {}
        Some(ActState::Signed) if !approves => {}
        _ => return Ok(Counted::No),
    }
    let inserted = sqlx::query!(
        r#"
        insert into act_signature (act_id, person, fingerprint, decision, signature, assurance, touched, verified, reason, signed_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (act_id, person, decision) do nothing
        "#,
        terms.id,
        signature.person,
        signature.fingerprint,
        signature.decision.as_str(),
        signature.text,
        signature.assurance.as_str(),
        signature.touch.map(|it| it.present),
        signature.touch.map(|it| it.verified),
        signature.reason,
        now,
    )
    .execute(&mut *transaction)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(Counted::No);
    }
    let actor = Actor::Person(signature.person);
    if !approves {
        let why = signature.reason.unwrap_or("refused by an admin");
        let ended =
            end(&mut transaction, scribe, terms.into(), ActState::Refused, actor, why, now).await?;
        transaction.commit().await?;
        return Ok(ended.map_or(Counted::No, Counted::Yes));
    }
    let effective_at = now + Duration::seconds(terms.cool_down_seconds.into());
    let detail = json!({
        "key_fingerprint": signature.fingerprint,
        "assurance": signature.assurance,
        "decided_by": signature.decided_by,
        "effective_at": effective_at.unix_timestamp(),
    });
    let event = entry(scribe, EventType::StatementSigned, actor, terms.into(), detail, now);
    sqlx::query!(
        r#"
        with signed as (
            update act set state = 'signed', signed_at = $2, effective_at = $3 where id = $1 returning id
        )
        select append_event($4) as seq from signed
        "#,
        terms.id,
        now,
        effective_at,
        event.body,
    )
    .fetch_one(&mut *transaction)
    .await?;
    if terms.cool_down_seconds == 0 && !apply(&mut transaction, scribe, terms, actor, now).await? {
        return Ok(Counted::NoLongerSo);
    }
    transaction.commit().await?;
    Ok(Counted::Yes(event.receipt()))
}

/// Does what was signed and has cooled down; or ends it, if there is a reason why not. Nothing happens if somebody was
/// faster.
pub async fn finish_act(
    pool: &PgPool,
    scribe: &Scribe,
    terms: &ActTerms,
    why_not: Option<&str>,
    now: OffsetDateTime,
) -> Result<()> {
    let mut transaction = pool.begin().await?;
    let due = sqlx::query!(
        "select id from act where id = $1 and state = 'signed' and effective_at <= $2 for update skip locked",
        terms.id,
        now,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if due.is_none() {
        return Ok(());
    }
    let mut why_not = why_not;
    if why_not.is_none() && !apply(&mut transaction, scribe, terms, Actor::Broker, now).await? {
        transaction.rollback().await?;
        transaction = pool.begin().await?;
        why_not = Some("what it builds on is no longer so");
    }
    if let Some(why) = why_not {
        end(&mut transaction, scribe, terms.into(), ActState::Failed, Actor::Broker, why, now)
            .await?;
    }
    transaction.commit().await
}

/// Ends what was not signed in time. Returns how many.
pub(super) async fn sweep_acts(
    connection: &mut PgConnection,
    scribe: &Scribe,
    now: OffsetDateTime,
) -> Result<usize> {
    let rows = sqlx::query!(
        r#"select id, bytes from act where state = 'proposed' and sign_by < $1 limit 200 for update skip locked"#,
        now
    )
    .fetch_all(&mut *connection)
    .await?;
    let lapsed = rows.len();
    for row in rows {
        // One that this version cannot read lapses like any other.
        let statement = ActStatement::from_bytes(row.bytes).ok();
        let terms = statement.as_ref().map(ActStatement::terms);
        let why = "not signed in time";
        end(
            connection,
            scribe,
            Which { id: row.id, terms },
            ActState::Lapsed,
            Actor::Broker,
            why,
            now,
        )
        .await?;
    }
    Ok(lapsed)
}

/// Ends an act that comes to nothing, with its event, whose receipt it returns. Nothing happens to one that has ended.
pub(super) async fn end(
    connection: &mut PgConnection,
    scribe: &Scribe,
    act: Which<'_>,
    state: ActState,
    actor: Actor<'_>,
    why: &str,
    now: OffsetDateTime,
) -> Result<Option<Receipt>> {
    let kind = match state {
        ActState::Refused => EventType::StatementRefused,
        ActState::Lapsed => EventType::StatementLapsed,
        _ => EventType::StatementFailed,
    };
    let event = entry(scribe, kind, actor, act, json!({ "why": why }), now);
    let ended = sqlx::query!(
        r#"
        with ended as (
            update act set state = $2, ended_at = $3, end_reason = $4 where id = $1 and ended_at is null returning id
        )
        select append_event($5) as seq from ended
        "#,
        act.id,
        state.as_str(),
        now,
        why,
        event.body,
    )
    .fetch_optional(connection)
    .await?;
    Ok(ended.map(|_| event.receipt()))
}

/// Does what was signed, with its events. `false` if what it builds on is no longer so: the transaction is void then.
async fn apply(
    connection: &mut PgConnection,
    scribe: &Scribe,
    terms: &ActTerms,
    actor: Actor<'_>,
    now: OffsetDateTime,
) -> Result<bool> {
    let applied = sqlx::query!("select apply_act($1, $2)", terms.id, now);
    match applied.execute(&mut *connection).await {
        Ok(_) => {}
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NO_LONGER_SO) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    let mut kinds = Vec::with_capacity(2);
    match &terms.act {
        Act::TaskStart(_) => kinds.push(EventType::TaskStarted),
        Act::Thaw(_) => kinds.push(EventType::FreezeThawed),
        Act::AdminChange(change) => {
            kinds.push(match change {
                Change::AddPerson { .. } => EventType::PersonAdded,
                Change::SetGroups { .. } => EventType::PersonGroupsChanged,
                Change::DisablePerson { .. } => EventType::PersonDisabled,
                Change::EnablePerson { .. } => EventType::PersonEnabled,
                Change::EnrolKey { .. } => EventType::KeyEnrolled,
                Change::RevokeKey { .. } => EventType::KeyRevoked,
            });
            if matches!(change, Change::AddPerson { person } if person.key.is_some()) {
                kinds.push(EventType::KeyEnrolled);
            }
        }
    }
    for kind in kinds {
        let event = entry(scribe, kind, actor, terms.into(), json!({}), now).body;
        sqlx::query!("select append_event($1) as seq", event).fetch_one(&mut *connection).await?;
    }
    if let (Act::AdminChange(Change::RevokeKey { handle, .. }), Actor::Person(signer)) =
        (&terms.act, actor)
        && handle != signer
    {
        stop_what_they_signed(connection, scribe, terms, signer, now).await?;
    }
    if let Act::AdminChange(Change::DisablePerson { handle, .. }) = &terms.act {
        let why = format!("the sponsor, {handle}, was disabled");
        end_sponsored(connection, scribe, actor, Sponsored::All { sponsor: handle }, &why, now)
            .await?;
    }
    Ok(true)
}

/// Whoever revokes another admin's key takes away their say. So what the revoker has signed, and the other could have
/// refused, comes to nothing.
async fn stop_what_they_signed(
    connection: &mut PgConnection,
    scribe: &Scribe,
    revocation: &ActTerms,
    signer: &str,
    now: OffsetDateTime,
) -> Result<()> {
    let ids = sqlx::query_scalar!(
        r#"
        select a.id from act a
          join act_signature g on g.act_id = a.id and g.decision = 'approve' and g.person = $1
         where a.state = 'signed'
           and exists (select from person p where p.handle = $2 and $3 = any (p.groups))
           for update of a
        "#,
        signer,
        revocation.act.about(),
        ADMINS,
    )
    .fetch_all(&mut *connection)
    .await?;
    for id in ids {
        let why = "its signer revoked the key of an admin who could have refused it";
        let act = Which { id, terms: None };
        end(connection, scribe, act, ActState::Failed, Actor::Person(signer), why, now).await?;
    }
    Ok(())
}

/// Which act, with its terms if this version can read them.
#[derive(Clone, Copy)]
pub(super) struct Which<'a> {
    pub(super) id: Uuid,
    pub(super) terms: Option<&'a ActTerms>,
}

impl<'a> From<&'a ActTerms> for Which<'a> {
    fn from(terms: &'a ActTerms) -> Self {
        Self { id: terms.id, terms: Some(terms) }
    }
}

/// An event about an act: its own words, and what else there is to say.
fn entry(
    scribe: &Scribe,
    kind: EventType,
    actor: Actor<'_>,
    act: Which<'_>,
    mut detail: Value,
    now: OffsetDateTime,
) -> Entry {
    detail["act_id"] = json!(act.id);
    if let Some(terms) = act.terms {
        detail["act"] = json!(terms.act);
        detail["about"] = json!(terms.act.about());
    }
    let subject = match act.terms.map(|it| &it.act) {
        Some(Act::TaskStart(it)) => {
            Subject { agent: Some(&it.agent), sponsor: Some(&it.sponsor), ..Subject::default() }
        }
        _ => Subject::default(),
    };
    scribe.entry(kind, actor, subject, detail, now)
}

/// What of a sponsor's ends.
#[derive(Clone, Copy, Debug)]
enum Sponsored<'a> {
    All { sponsor: &'a str },
    Task { id: Uuid, sponsor: &'a str },
}

/// Ends a task of `sponsor`'s, and the leases that are open under it: how many, with the receipt of the task's end. `None`
/// if there is no such task that runs.
pub async fn end_task(
    pool: &PgPool,
    scribe: &Scribe,
    actor: Actor<'_>,
    id: Uuid,
    sponsor: &str,
    now: OffsetDateTime,
) -> Result<Option<(u64, Receipt)>> {
    let mut transaction = pool.begin().await?;
    // What begins at the same time is either seen below, or finds the task ended.
    sqlx::query!("select hold_sponsor($1)", sponsor).execute(&mut *transaction).await?;
    let what = Sponsored::Task { id, sponsor };
    let ended = end_sponsored(&mut transaction, scribe, actor, what, "its task ended", now).await?;
    transaction.commit().await?;
    Ok(ended)
}

/// Ends tasks, and stops every lease that is open under them: how many, with the receipt of the last task's end. `None` if
/// no task ended.
async fn end_sponsored(
    connection: &mut PgConnection,
    scribe: &Scribe,
    actor: Actor<'_>,
    what: Sponsored<'_>,
    why: &str,
    now: OffsetDateTime,
) -> Result<Option<(u64, Receipt)>> {
    let (sponsor, task_id) = match what {
        Sponsored::All { sponsor } => (sponsor, None),
        Sponsored::Task { id, sponsor } => (sponsor, Some(id)),
    };
    let tasks = sqlx::query!(
        r#"
        update task set ended_at = $3
         where sponsor = $1 and ($2::uuid is null or id = $2) and ended_at is null and $3 < expires_at
        returning id, agent, task
        "#,
        sponsor,
        task_id,
        now,
    )
    .fetch_all(&mut *connection)
    .await?;
    if tasks.is_empty() && task_id.is_some() {
        return Ok(None);
    }
    let mut receipt = None;
    for task in &tasks {
        let subject =
            Subject { agent: Some(&task.agent), sponsor: Some(sponsor), ..Subject::default() };
        let detail = json!({ "task_id": task.id, "task": task.task, "why": why });
        let event = scribe.entry(EventType::TaskEnded, actor, subject, detail, now);
        receipt = Some(event.receipt());
        sqlx::query!("select append_event($1) as seq", event.body)
            .fetch_one(&mut *connection)
            .await?;
    }
    let leases = sqlx::query!(
        r#"
        select id, agent, scope from lease
         where sponsor = $1 and ($2::uuid is null or task_id = $2) and state in ('pending', 'approved', 'issued')
         order by id for update
        "#,
        sponsor,
        task_id,
    )
    .fetch_all(&mut *connection)
    .await?;
    for lease in &leases {
        let subject = Subject {
            agent: Some(&lease.agent),
            sponsor: Some(sponsor),
            scope: Some(&lease.scope),
            lease_id: Some(LeaseId(lease.id)),
            session_id: None,
        };
        stop_lease(connection, scribe, actor, subject, lease.id, why, now).await?;
    }
    let stopped = u64::try_from(leases.len()).unwrap_or(u64::MAX);
    Ok(receipt.map(|it| (stopped, it)))
}
