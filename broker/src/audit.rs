//! The audit log's events: what can happen, and the canonical body that is stored and hashed. Pure.
//!
//! Envelope names are those of `CloudEvents` 1.0. A body holds no secret: nothing here takes one.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::lease::LeaseId;
use crate::statement::canonical;
use crate::wire;

/// Makes [`EventType`] of one table: what it is recorded for, in a sentence; the text; and what its `detail` may have.
macro_rules! events {
    ($(#[doc = $when:literal] $member:ident = $text:literal [$($detail:ident),*],)+) => {
        /// Everything that is recorded. The text is the event's `type`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventType { $(#[doc = $when] $member),+ }

        impl EventType {
            /// Every type, in declaration order.
            pub const ALL: &[Self] = &[$(Self::$member),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$member => $text),+ }
            }

            /// When it is recorded: one sentence.
            pub const fn when(self) -> &'static str {
                match self { $(Self::$member => $when.trim_ascii()),+ }
            }

            /// The members that `data.detail` may have, besides [`CUT`].
            pub const fn detail(self) -> &'static [&'static str] {
                match self { $(Self::$member => &[$(stringify!($detail)),*]),+ }
            }
        }
    };
}

events! {
    /// The scope, the rules or a freeze deny a request.
    LeaseDenied = "lease.denied" [decided_by, rules_sha256, statement_sha256, task, tier, why],
    /// A request waits for signatures.
    LeasePending = "lease.pending" [decided_by, rules_sha256, statement_sha256, task, tier, why],
    /// A request needs no signature; or the last one that it needs has come.
    LeaseApproved = "lease.approved" [decided_by, rules_sha256, statement_sha256, task, tier, why],
    /// Rules, a freeze or an ended task stopped a claim; the lease is as it was.
    ClaimRefused = "lease.claim-refused" [count, since, why],
    /// The lease's first session was issued.
    LeaseIssued = "lease.issued" [access_key_id, session_name, statement_sha256, tier],
    /// Its window, or its one session, has ended.
    LeaseExpired = "lease.expired" [why],
    /// A signer said no.
    LeaseRefused = "lease.refused" [why],
    /// Its agent took it back.
    LeaseWithdrawn = "lease.withdrawn" [why],
    /// It was not signed, or not claimed, in time.
    LeaseLapsed = "lease.lapsed" [why],
    /// The one mint of a signed lease failed, or nobody knows how it ended.
    LeaseFailed = "lease.failed" [access_key_id, session_name, why],
    /// It was stopped before its time: by whoever may, or because its task or its sponsor ended.
    LeaseRevoked = "lease.revoked" [why],
    /// AWS is about to be asked for a session.
    SessionIssuing = "session.issuing" [decided_by, session_name],
    /// AWS minted it, and its credentials are about to be delivered.
    SessionIssued = "session.issued" [access_key_id, session_name],
    /// The same credentials are about to be delivered to the same agent again.
    SessionRedelivered = "session.redelivered" [],
    /// AWS refused, answered wrongly, or nobody knows how it answered; no credential left.
    SessionFailed = "session.failed" [access_key_id, why],
    /// AWS minted it, but by then nobody was entitled to it: nothing left the broker.
    SessionDropped = "session.dropped" [access_key_id, session_name],
    /// AWS has ended it, by time.
    SessionExpired = "session.expired" [],
    /// It was stopped here; AWS may still take it, until it expires at the latest.
    SessionRevoking = "session.revoking" [freeze_id, why],
    /// AWS was seen to refuse it: in which Region, how long after, by which probe.
    SessionStopped = "session.stopped" [after_milliseconds, probe_id, region],
    /// All sessions of a role are stopped: its deny policy has no room for more single ones.
    RoleCutOff = "role.cut-off" [role_arn, why],
    /// AWS is about to be asked for a session of the broker's own, to try a role's deny policy with.
    ProbeIssuing = "probe.issuing" [probe_id, role_arn, session_name],
    /// The deny policy on a role was written, or removed: how many sessions it names, its cut-off, its probe.
    StopWritten = "stop.written" [cut_off, probe_id, role_arn, sessions],
    /// A signature over a lease's statement counts.
    SignatureAccepted = "signature.accepted" [assurance, decided_by, decision, key_fingerprint, why],
    /// A signature over a statement does not count, for this reason; the actor is whoever it proves to be from.
    SignatureRejected = "signature.rejected" [act_id, count, decided_by, decision, key_fingerprint, reason, since],
    /// A person opened a reading session.
    LoginAccepted = "login.accepted" [key_fingerprint],
    /// A login was refused, for this reason; the actor is whoever its signature proves to be from.
    LoginRejected = "login.rejected" [count, key_fingerprint, reason, since],
    /// A token was not believed, for this reason; the actor is whom it was made for, if we had signed it and it has expired. Of a workload's, `issuer` and `subject` are what its issuer signed.
    AuthRejected = "auth.rejected" [count, issuer, reason, since, subject, task_id],
    /// An act of authority is drawn up, and waits for its signature.
    StatementProposed = "statement.proposed" [about, act, act_id],
    /// An act of authority is signed; it takes effect now, or after its cool-down.
    StatementSigned = "statement.signed" [about, act, act_id, assurance, decided_by, effective_at, key_fingerprint],
    /// Whoever is concerned, or an admin, refused it.
    StatementRefused = "statement.refused" [about, act, act_id, why],
    /// It was not signed in time.
    StatementLapsed = "statement.lapsed" [about, act, act_id, why],
    /// When its day came, what it builds on was no longer so.
    StatementFailed = "statement.failed" [about, act, act_id, why],
    /// A sponsor's signature handed a task to an agent, or a workload's token started one.
    TaskStarted = "task.started" [about, act, act_id, actor_unknown, claims, issuer, set_off_by, subject, task, task_id],
    /// The token that started a workload's task came again, where it may, and was given the task's token again.
    TaskResumed = "task.resumed" [count, issuer, since, subject, task, task_id],
    /// The agent or the sponsor ended it, or the sponsor was disabled.
    TaskEnded = "task.ended" [task, task_id, why],
    /// A person ordered that nothing more is issued to what it covers.
    FreezeCreated = "freeze.created" [freeze_id, kind, roles, target, why],
    /// Another person's signature ended a freeze.
    FreezeThawed = "freeze.thawed" [about, act, act_id],
    /// A person was added: by a signed act, or at bootstrap by the operator.
    PersonAdded = "person.added" [about, act, act_id, person],
    /// A person's groups were changed.
    PersonGroupsChanged = "person.groups-changed" [about, act, act_id],
    /// A person was disabled, and their agents with them.
    PersonDisabled = "person.disabled" [about, act, act_id],
    /// A person was enabled again.
    PersonEnabled = "person.enabled" [about, act, act_id],
    /// A key counts from now on: by a signed act, or at bootstrap by the operator.
    KeyEnrolled = "key.enrolled" [about, act, act_id, person],
    /// A key no longer counts.
    KeyRevoked = "key.revoked" [about, act, act_id],
    /// A set of scopes and rules was judged by for the first time.
    RulesetInForce = "ruleset.in-force" [rules_sha256],
    /// A request found no room in a budget; once a minute for each agent and budget.
    BudgetExceeded = "budget.exceeded" [budget, count, limit, of, retry_at, since, task_id],
    /// The doctor finds something else than it did the last time; all that it finds now.
    DoctorFound = "doctor.found" [findings],
    /// The log over the events begins: its name and the key that signs it.
    LogStarted = "log.started" [key, origin],
    /// Another key signs checkpoints from the next one on, which both sign.
    LogRotated = "log.rotated" [new, old],
    /// The log goes on under another name, after events were lost: what is left, and the checkpoint that was anchored.
    LogRecovered = "log.recovered" [anchored, epoch, origin, size],
    /// A month's events were written to a file, to be dropped.
    LogPartitionExported = "log.partition-exported" [events, first_index, last_index, partition, sha256],
    /// A month's events that were exported before are dropped; their hashes stay.
    LogPartitionDropped = "log.partition-dropped" [before, partition],
}

/// The longest body: entry bundles of C2SP's tlog-tiles have 16 bits for its length.
pub const MAX_BODY_BYTES: usize = 65_535;
/// The member of `data.detail` that says that long strings and lists of it were cut, because the body would have been too long.
pub const CUT: &str = "cut";
/// How many characters a string, and how many items a list, may keep: what is tried one after the other.
const KEPT: [usize; 4] = [1000, 200, 40, 5];

/// Who did it.
#[derive(Clone, Copy, Debug)]
pub enum Actor<'a> {
    Agent(&'a str),
    Person(&'a str),
    /// Nobody: time, or the broker itself.
    Broker,
    /// Whoever is at the server's host.
    Operator,
    /// Somebody we could not name.
    Unknown,
}

/// What it is about. Whatever is known is said.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Subject<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<LeaseId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<Uuid>,
}

impl<'a> From<&'a wire::Lease> for Subject<'a> {
    fn from(lease: &'a wire::Lease) -> Self {
        Self {
            agent: Some(&lease.agent),
            sponsor: Some(&lease.sponsor),
            scope: Some(&lease.scope),
            lease_id: Some(lease.id),
            session_id: None,
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    specversion: &'static str,
    id: Uuid,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    time: String,
    actor: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    #[serde(flatten)]
    subject: Subject<'a>,
    #[serde(skip_serializing_if = "Value::is_null")]
    detail: Value,
}

/// Writes event bodies for one broker.
#[derive(Clone, Debug)]
pub struct Scribe {
    /// Our origin: the events' `source`.
    pub source: String,
}

/// An event to be appended.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: Uuid,
    /// Canonical, and at most [`MAX_BODY_BYTES`] long.
    pub body: Vec<u8>,
}

impl Entry {
    /// What whoever caused the event is given to find it by.
    pub fn receipt(&self) -> wire::Receipt {
        // RFC 6962, section 2.1.
        let leaf = Sha256::new().chain_update([0]).chain_update(&self.body).finalize();
        wire::Receipt { event_id: self.id, leaf_hash: hex::encode(leaf) }
    }
}

impl Scribe {
    /// The canonical body of an event. `detail` is an object of further facts, or null.
    pub fn body(
        &self,
        kind: EventType,
        actor: Actor<'_>,
        subject: Subject<'_>,
        detail: Value,
        now: OffsetDateTime,
    ) -> Vec<u8> {
        self.entry(kind, actor, subject, detail, now).body
    }

    /// The same, for whoever gives a receipt of it.
    pub fn entry(
        &self,
        kind: EventType,
        actor: Actor<'_>,
        subject: Subject<'_>,
        detail: Value,
        now: OffsetDateTime,
    ) -> Entry {
        debug_assert!(
            detail.is_null()
                || detail
                    .as_object()
                    .is_some_and(|it| it.keys().all(|it| kind.detail().contains(&it.as_str()))),
            "the catalogue of events does not have all of {kind:?} {detail}"
        );
        let actor = match actor {
            Actor::Agent(name) => format!("agent:{name}"),
            Actor::Person(handle) => format!("person:{handle}"),
            Actor::Broker => "broker".to_owned(),
            Actor::Operator => "operator".to_owned(),
            Actor::Unknown => "unknown".to_owned(),
        };
        let mut envelope = Envelope {
            specversion: "1.0",
            id: Uuid::now_v7(),
            source: &self.source,
            kind: kind.as_str(),
            time: now.format(&Rfc3339).expect("a year of four digits"),
            actor,
            data: Data { subject, detail },
        };
        let bytes = |it: &Envelope<'_>| {
            canonical(it).expect("an event is an object of strings and small numbers")
        };
        let mut body = bytes(&envelope);
        for most in KEPT {
            if body.len() <= MAX_BODY_BYTES {
                break;
            }
            cut(&mut envelope.data.detail, most);
            envelope.data.detail[CUT] = Value::Bool(true);
            body = bytes(&envelope);
        }
        Entry { id: envelope.id, body }
    }
}

/// Keeps the beginning of every string and list.
fn cut(value: &mut Value, most: usize) {
    match value {
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(most) {
                text.truncate(end);
                text.push('\u{2026}');
            }
        }
        Value::Array(items) => {
            items.truncate(most);
            for it in items {
                cut(it, most);
            }
        }
        Value::Object(members) => members.values_mut().for_each(|it| cut(it, most)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_body_is_canonical_and_says_who_and_what() {
        let scribe = Scribe { source: "http://localhost:8750".into() };
        let subject = Subject { agent: Some("demo-agent"), ..Subject::default() };
        let now = datetime!(2026-01-01 12:00 UTC);
        let body = scribe.body(
            EventType::LeaseDenied,
            Actor::Agent("demo-agent"),
            subject,
            json!({"why": "\u{f6}"}),
            now,
        );
        let text = String::from_utf8(body.clone()).unwrap();
        assert!(text.starts_with(r#"{"actor":"agent:demo-agent","data":{"agent":"demo-agent","detail":{"why":"\u00f6"}},"id":""#));
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(canonical(&value).unwrap(), body);
        assert_eq!(value["time"], "2026-01-01T12:00:00Z");
    }

    #[test]
    fn no_body_is_longer_than_a_bundle_of_the_log_takes() {
        let scribe = Scribe { source: format!("https://{}.example", "x".repeat(200)) };
        let now = datetime!(2026-01-01 12:00 UTC);
        // Each letter takes twelve bytes, as two halves.
        let long = "\u{1f600}".repeat(1500);
        let finding = json!({ "severity": "low", "check": long, "subject": long });
        let details = [
            (EventType::DoctorFound, json!({ "findings": vec![finding; 60] })),
            (
                EventType::FreezeCreated,
                json!({ "why": long, "target": long, "roles": vec![&long; 60] }),
            ),
            (
                EventType::StatementSigned,
                json!({ "act": { "person": { "groups": vec![&long; 60] } } }),
            ),
        ];
        for (kind, detail) in details {
            let subject = Subject { agent: Some("a"), scope: Some("s"), ..Subject::default() };
            let body = scribe.body(kind, Actor::Broker, subject, detail, now);
            assert!(body.len() <= MAX_BODY_BYTES, "{kind:?}: {}", body.len());
            let value: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (&value["data"]["detail"][CUT], &value["data"]["scope"]),
                (&json!(true), &json!("s"))
            );
            assert_eq!(canonical(&value).unwrap(), body);
        }
        // The longest that is left as it is: nobody loses a word without need.
        let detail = |length: usize| json!({ "why": "x".repeat(length) });
        let subject = Subject::default();
        let body = |length| {
            scribe.body(EventType::LeaseDenied, Actor::Broker, subject, detail(length), now)
        };
        let room = MAX_BODY_BYTES - body(0).len();
        assert_eq!(body(room).len(), MAX_BODY_BYTES);
        assert!(body(room + 1).len() < 2000, "cut");
    }

    #[test]
    #[should_panic(expected = "the catalogue of events does not have")]
    fn what_the_catalogue_does_not_name_is_in_no_detail() {
        let scribe = Scribe { source: "http://localhost:8750".into() };
        let now = datetime!(2026-01-01 12:00 UTC);
        scribe.body(
            EventType::SessionExpired,
            Actor::Broker,
            Subject::default(),
            json!({"why": 1}),
            now,
        );
    }

    #[test]
    fn a_receipt_is_the_leaf_of_the_body() {
        let entry = Entry { id: Uuid::nil(), body: b"L123456".to_vec() };
        // A leaf of RFC 9162's test log in certificate transparency's repositories.
        assert_eq!(
            entry.receipt().leaf_hash,
            "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
        );
    }
}
