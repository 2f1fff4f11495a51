//! Refusals in the record, and what else costs a caller nothing: of what is the same, the first at once, and what follows as one
//! number a minute. So a flood is counted, and makes no flood of writes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::Broker;
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::error::{Error, Result};
use crate::identity::{Agent, Caller, TokenError};
use crate::lease::LeaseId;
use crate::store::{self, OverBudget};

/// What is the same is written once in so long.
const EVERY: Duration = Duration::MINUTE;
/// So many of a kind are told apart at once, of those who proved who they are and of those who did not. The rest is one.
const APART_AT_MOST: usize = 100;

/// Who was refused: nobody, unless they proved to be it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Whom {
    #[default]
    Nobody,
    Agent(String),
    Person(String),
}

impl Whom {
    fn actor(&self) -> Actor<'_> {
        match self {
            Self::Nobody => Actor::Unknown,
            Self::Agent(name) => Actor::Agent(name),
            Self::Person(handle) => Actor::Person(handle),
        }
    }
}

impl From<Option<String>> for Whom {
    fn from(person: Option<String>) -> Self {
        person.map_or(Self::Nobody, Self::Person)
    }
}

/// One refusal, as it is told.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) kind: EventType,
    pub(super) whom: Whom,
    /// What sets it apart from others of its kind and whom: what it is about, and why. Nothing that a caller chooses at
    /// will.
    pub(super) about: Option<Uuid>,
    pub(super) why: String,
    pub(super) agent: Option<String>,
    pub(super) sponsor: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) lease_id: Option<LeaseId>,
    pub(super) detail: Value,
    /// Told once a minute by all servers together.
    pub(super) over_budget: Option<OverBudget>,
    pub(super) at: OffsetDateTime,
}

impl Refusal {
    /// One about nothing in particular.
    pub(super) fn new(kind: EventType, whom: Whom, why: &str, at: OffsetDateTime) -> Self {
        let (agent, sponsor, scope, lease_id, about) = (None, None, None, None, None);
        let why = why.to_owned();
        let (detail, over_budget) = (Value::Null, None);
        Self { kind, whom, about, why, agent, sponsor, scope, lease_id, detail, over_budget, at }
    }

    /// One about a lease.
    pub(super) fn of(self, subject: Subject<'_>) -> Self {
        Self {
            about: subject.lease_id.map(|it| it.0),
            agent: subject.agent.map(ToOwned::to_owned),
            sponsor: subject.sponsor.map(ToOwned::to_owned),
            scope: subject.scope.map(ToOwned::to_owned),
            lease_id: subject.lease_id,
            ..self
        }
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            agent: self.agent.as_deref(),
            sponsor: self.sponsor.as_deref(),
            scope: self.scope.as_deref(),
            lease_id: self.lease_id,
            session_id: None,
        }
    }
}

/// What shares its room with others, so that nobody crowds out what is of another kind, or of people who are known.
type Room = (EventType, bool);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    One {
        whom: Whom,
        about: Option<Uuid>,
        why: String,
    },
    /// All for which there was no room.
    Rest,
}

#[derive(Debug)]
struct Counted {
    /// When it was told last, or begun.
    from: OffsetDateTime,
    /// Those that nobody was told of yet, and the first of them.
    count: u64,
    since: Option<OffsetDateTime>,
    last: Refusal,
}

/// What is to be written of one key.
#[derive(Clone, Debug)]
struct Telling {
    room: Room,
    key: Key,
    last: Refusal,
    count: u64,
    /// Absent for the first of its kind, which is told by itself.
    since: Option<OffsetDateTime>,
}

impl Telling {
    fn body(&self, scribe: &Scribe, now: OffsetDateTime) -> Vec<u8> {
        let Self { last, since, .. } = self;
        let Some(since) = since else {
            return scribe.body(
                last.kind,
                last.whom.actor(),
                last.subject(),
                last.detail.clone(),
                last.at,
            );
        };
        let (actor, subject, mut detail) = match self.key {
            Key::One { .. } => (last.whom.actor(), last.subject(), last.detail.clone()),
            // Of several things: what is true of the last alone is left out.
            Key::Rest => {
                let reason = last.detail.get("reason").cloned();
                let detail = reason.map_or_else(|| json!({}), |it| json!({ "reason": it }));
                (Actor::Unknown, Subject::default(), detail)
            }
        };
        detail["count"] = json!(self.count);
        detail["since"] = json!(since.format(&Rfc3339).expect("a year of four digits"));
        scribe.body(last.kind, actor, subject, detail, now)
    }
}

/// Refusals of the last minute, in this server's memory.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Room, HashMap<Key, Counted>>>);

impl Refusals {
    fn rooms(&self) -> MutexGuard<'_, HashMap<Room, HashMap<Key, Counted>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one, and says what there is to write at once.
    fn note(&self, refusal: Refusal) -> Option<Telling> {
        let room = (refusal.kind, refusal.whom != Whom::Nobody);
        let Refusal { whom, about, why, at, .. } = refusal.clone();
        let mut key = Key::One { whom, about, why };
        let mut rooms = self.rooms();
        let counted = rooms.entry(room).or_default();
        if !counted.contains_key(&key) && APART_AT_MOST <= counted.len() {
            key = Key::Rest;
        }
        let Some(there) = counted.get_mut(&key) else {
            let last = refusal.clone();
            counted.insert(key.clone(), Counted { from: at, count: 0, since: None, last });
            return Some(Telling { room, key, last: refusal, count: 1, since: None });
        };
        there.count += 1;
        there.since.get_or_insert(at);
        let before = std::mem::replace(&mut there.last, refusal);
        // Of several: who they were is not who the last one was.
        if 1 < there.count && before.detail.get("subject") != there.last.detail.get("subject") {
            there.last.detail["subject"] = Value::Null;
        }
        if !is_over(there.from, at) {
            return None;
        }
        let alone = there.count == 1;
        let mut telling = take(room, &key, there, at);
        if alone {
            telling.since = None;
        }
        Some(telling)
    }

    /// What was counted, and was not written for a minute; of `all`, whenever it was. What is quiet is forgotten.
    fn due(&self, now: OffsetDateTime, all: bool) -> Vec<Telling> {
        let mut due = Vec::new();
        let mut rooms = self.rooms();
        for (room, counted) in rooms.iter_mut() {
            counted.retain(|key, it| {
                if !all && !is_over(it.from, now) {
                    return true;
                }
                if 0 < it.count {
                    due.push(take(*room, key, it, now));
                    return true;
                }
                false
            });
        }
        due
    }

    /// Counts again what could not be written.
    fn put_back(&self, telling: Telling, now: OffsetDateTime) {
        let Telling { room, key, last, count, since } = telling;
        let since = since.unwrap_or(last.at);
        let mut rooms = self.rooms();
        let there = rooms.entry(room).or_default().entry(key);
        let there = there.or_insert(Counted { from: now, count: 0, since: None, last });
        there.count += count;
        there.since = Some(there.since.map_or(since, |it| it.min(since)));
    }
}

/// Whether what was written at `from` may be written again. A clock that was set back holds nothing up.
fn is_over(from: OffsetDateTime, now: OffsetDateTime) -> bool {
    !(Duration::ZERO..EVERY).contains(&(now - from))
}

fn take(room: Room, key: &Key, counted: &mut Counted, now: OffsetDateTime) -> Telling {
    counted.from = now;
    let (count, since) = (std::mem::take(&mut counted.count), counted.since.take());
    Telling { room, key: key.clone(), last: counted.last.clone(), count, since }
}

/// Writes; what cannot be written is counted again, and told later.
async fn tell(
    pool: PgPool,
    scribe: Scribe,
    refusals: Arc<Refusals>,
    tellings: Vec<Telling>,
    now: OffsetDateTime,
) -> Result<()> {
    let (mut plain, mut told) = (Vec::new(), Ok(()));
    for telling in tellings {
        let Some(key) = &telling.last.over_budget else {
            plain.push(telling);
            continue;
        };
        match store::tell_exceeded(&pool, key, telling.body(&scribe, now), now).await {
            Ok(true) => {}
            // Another server has told of it within this minute.
            Ok(false) => refusals.put_back(telling, now),
            Err(error) => {
                told = Err(error.into());
                refusals.put_back(telling, now);
            }
        }
    }
    if plain.is_empty() {
        return told;
    }
    let bodies: Vec<_> = plain.iter().map(|it| it.body(&scribe, now)).collect();
    if let Err(error) = store::tell_all(&pool, &bodies).await {
        told = Err(error.into());
        for it in plain {
            refusals.put_back(it, now);
        }
    }
    told
}

impl Broker {
    /// Sees to it that a refusal is recorded: now, or with others like it. Whoever hangs up stops nothing; and if it cannot be
    /// written now, that is an error, and it is told later.
    pub(super) async fn refuse(&self, refusal: Refusal) -> Result<()> {
        let now = refusal.at;
        let Some(telling) = self.refusals.note(refusal) else { return Ok(()) };
        let refusals = self.refusals.clone();
        let told = tell(self.pool.clone(), self.scribe.clone(), refusals, vec![telling], now);
        tokio::spawn(told).await.map_err(|error| Error::Internal(error.to_string()))?
    }

    /// Records that a token was not believed; and whose it was, if we had signed it. A request without one is no news. It is
    /// not believed whether that can be written or not.
    pub async fn refuse_token(&self, error: &TokenError) {
        let Some(reason) = error.code() else { return };
        let now = self.clock.now();
        let (whom, agent) = match error.claimed() {
            None => (Whom::Nobody, None),
            Some(Caller::Agent(agent)) => (Whom::Agent(agent.name.clone()), Some(agent)),
            Some(Caller::Person(reader)) => (Whom::Person(reader.handle.clone()), None),
        };
        let refusal = Refusal::new(EventType::AuthRejected, whom, reason, now);
        let (about, sponsor) = agent.map(|it| (it.task_id, it.sponsor.clone())).unzip();
        let agent = agent.map(|it| it.name.clone());
        let detail = match about {
            Some(task_id) => json!({ "reason": reason, "task_id": task_id }),
            None => json!({ "reason": reason }),
        };
        let refusal = Refusal { about, agent, sponsor, detail, ..refusal };
        if let Err(error) = self.refuse(refusal).await {
            tracing::warn!(?error, "a token that was not believed is not in the record yet");
        }
    }

    /// Records that there is no room in a budget.
    pub(super) async fn refuse_over_budget(
        &self,
        agent: &Agent,
        scope: Option<&str>,
        exceeded: store::Exceeded,
        now: OffsetDateTime,
    ) -> Result<()> {
        let store::Exceeded { budget, of, limit, retry_at, .. } = exceeded;
        let detail = json!({
            "budget": budget,
            "of": of,
            "limit": limit,
            "retry_at": retry_at.format(&Rfc3339).expect("a year of four digits"),
            "task_id": agent.task_id,
        });
        let (name, sponsor) = (agent.name.clone(), agent.sponsor.clone());
        let why = format!("{sponsor} {of} {budget}");
        let whom = Whom::Agent(name.clone());
        let refusal = Refusal::new(EventType::BudgetExceeded, whom, &why, now);
        let over_budget = OverBudget { sponsor, agent: name, of, budget };
        let subject = Subject {
            agent: Some(&agent.name),
            sponsor: Some(&agent.sponsor),
            scope,
            ..Subject::default()
        };
        let refusal = refusal.of(subject);
        self.refuse(Refusal { detail, over_budget: Some(over_budget), ..refusal }).await
    }

    /// Writes what was counted and not written for a minute.
    pub async fn tell_refusals(&self) {
        let now = self.clock.now();
        self.tell_counted(self.refusals.due(now, false), now).await;
    }

    /// Writes all that was counted, because this server stops.
    pub async fn tell_all_refusals(&self) {
        let now = self.clock.now();
        let mut due = self.refusals.due(now, true);
        for it in &mut due {
            it.last.over_budget = None;
        }
        self.tell_counted(due, now).await;
    }

    async fn tell_counted(&self, due: Vec<Telling>, now: OffsetDateTime) {
        let refusals = self.refusals.clone();
        if let Err(error) = tell(self.pool.clone(), self.scribe.clone(), refusals, due, now).await {
            tracing::warn!(?error, "refusals are not in the record yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn refusal(whom: Whom, why: &str, after: Duration) -> Refusal {
        Refusal::new(EventType::SignatureRejected, whom, why, NOW + after)
    }

    /// What was told: how many, and whether as a number.
    fn told(tellings: impl IntoIterator<Item = Telling>) -> Vec<(u64, bool)> {
        tellings.into_iter().map(|it| (it.count, it.since.is_some())).collect()
    }

    #[test]
    fn one_key_is_told_once_a_minute_whatever_is_sent() {
        let refusals = Refusals::default();
        let mut seen = Vec::new();
        for second in 0..300 {
            for _ in 0..10 {
                seen.extend(refusals.note(refusal(
                    Whom::Nobody,
                    "malformed",
                    Duration::seconds(second),
                )));
            }
            seen.extend(refusals.due(NOW + Duration::seconds(second), false));
        }
        seen.extend(refusals.due(NOW + Duration::seconds(300), true));
        assert_eq!(seen.iter().map(|it| it.count).sum::<u64>(), 3000);
        assert_eq!(seen.len(), 6, "{:?}", told(seen));
        assert_eq!(told(refusals.due(NOW + Duration::HOUR, true)), [], "once");
    }

    #[test]
    fn what_is_quiet_is_forgotten_and_the_next_is_a_first_again() {
        let refusals = Refusals::default();
        let note = |second| refusals.note(refusal(Whom::Nobody, "x", Duration::seconds(second)));
        assert_eq!(told(note(0)), [(1, false)]);
        assert_eq!(told(refusals.due(NOW + Duration::seconds(59), false)), []);
        assert_eq!(told(refusals.due(NOW + Duration::MINUTE, false)), []);
        assert!(refusals.rooms().values().all(HashMap::is_empty));
        assert_eq!(told(note(61)), [(1, false)]);
        // Alone after a minute in which nobody looked.
        assert_eq!(told(note(200)), [(1, false)]);
        assert_eq!(told(note(201)), []);
        assert_eq!(told(note(262)), [(2, true)]);
    }

    #[test]
    fn a_count_of_several_subjects_names_none_of_them() {
        let refusals = Refusals::default();
        let note = |subject: &str, second| {
            let it = refusal(Whom::Nobody, "not-mapped", Duration::seconds(second));
            refusals.note(Refusal { detail: json!({ "subject": subject }), ..it })
        };
        let subject = |telling: &Telling| telling.last.detail["subject"].clone();
        assert_eq!(note("a", 0).iter().map(subject).collect::<Vec<_>>(), ["a"]);
        assert!(note("a", 1).is_none() && note("a", 2).is_none());
        let same = refusals.due(NOW + Duration::MINUTE, false);
        assert_eq!(same.iter().map(subject).collect::<Vec<_>>(), ["a"]);
        for (at, who) in ["b", "b", "c", "b"].into_iter().enumerate() {
            assert!(note(who, 61 + i64::try_from(at).unwrap()).is_none());
        }
        let several = refusals.due(NOW + Duration::seconds(180), false);
        assert_eq!(several.iter().map(subject).collect::<Vec<_>>(), [Value::Null]);
    }

    #[test]
    fn what_varies_shares_one_key_in_the_end_and_crowds_out_nobody_who_is_known() {
        let refusals = Refusals::default();
        let mut written = 0;
        for number in 0..10_000_u32 {
            let why = format!("lease {number}");
            written += refusals.note(refusal(Whom::Nobody, &why, Duration::ZERO)).iter().count();
        }
        assert_eq!(written, APART_AT_MOST + 1);
        let known = Whom::Person("alice".into());
        let alice = refusals.note(refusal(known, "sponsor", Duration::ZERO)).expect("at once");
        assert!(matches!(alice.key, Key::One { .. }));
        let due = refusals.due(NOW + Duration::MINUTE, false);
        let [rest] = &due[..] else { panic!("{due:?}") };
        assert_eq!((&rest.key, rest.count), (&Key::Rest, 10_000 - written as u64));
    }

    #[test]
    fn what_could_not_be_written_is_told_later_and_whole() {
        let refusals = Refusals::default();
        let first = refusals.note(refusal(Whom::Nobody, "x", Duration::ZERO)).expect("the first");
        refusals.put_back(first, NOW);
        assert_eq!(told(refusals.note(refusal(Whom::Nobody, "x", Duration::SECOND))), []);
        let due = refusals.due(NOW + Duration::MINUTE, false);
        assert_eq!((told(due.clone()), due[0].since), (vec![(2, true)], Some(NOW)));
        refusals.put_back(due[0].clone(), NOW + Duration::MINUTE);
        assert_eq!(told(refusals.due(NOW + Duration::minutes(2), false)), [(2, true)]);
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nothing_up() {
        let refusals = Refusals::default();
        assert_eq!(told(refusals.note(refusal(Whom::Nobody, "x", Duration::DAY))), [(1, false)]);
        assert_eq!(told(refusals.note(refusal(Whom::Nobody, "x", Duration::ZERO))), [(1, false)]);
        assert_eq!(told(refusals.note(refusal(Whom::Nobody, "x", Duration::SECOND))), []);
    }
}
