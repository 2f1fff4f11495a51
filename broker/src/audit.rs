//! The audit log's events: what can happen, and the canonical body that is stored and hashed. Pure.
//!
//! Envelope names are those of `CloudEvents` 1.0. A body holds no secret: nothing here takes one.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::lease::LeaseId;
use crate::statement::canonical;
use crate::wire;

/// Everything that is recorded. The text is the event's `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    LeaseDenied,
    LeasePending,
    LeaseApproved,
    /// Rules, a freeze or an ended task stopped a claim; the lease is as it was.
    ClaimRefused,
    LeaseIssued,
    LeaseExpired,
    LeaseRefused,
    LeaseWithdrawn,
    LeaseLapsed,
    LeaseFailed,
    /// Stopped before its time.
    LeaseRevoked,
    /// AWS is about to be asked.
    SessionIssuing,
    SessionIssued,
    /// The same credentials, handed to the same agent again.
    SessionRedelivered,
    SessionFailed,
    /// AWS minted it, but by then nobody was entitled to it: nothing left the broker.
    SessionDropped,
    SessionExpired,
    /// Stopped here; AWS may still take it, until it expires at the latest.
    SessionRevoking,
    /// AWS was seen to refuse it.
    SessionStopped,
    /// All sessions of a role are stopped: its policy has no room for more single ones.
    RoleCutOff,
    /// A session of the broker's own is about to be minted, to try a role's deny policy with.
    ProbeIssuing,
    /// The deny policy on a role was written, or removed.
    StopWritten,
    SignatureAccepted,
    SignatureRejected,
    LoginAccepted,
    LoginRejected,
    /// An act of authority is drawn up, and waits for its signature.
    StatementProposed,
    /// It is signed; it takes effect now, or after its cool-down.
    StatementSigned,
    StatementRefused,
    /// Not signed in time.
    StatementLapsed,
    /// What it builds on was no longer so.
    StatementFailed,
    TaskStarted,
    TaskEnded,
    /// Nothing more is issued to what it covers.
    FreezeCreated,
    FreezeThawed,
    PersonAdded,
    PersonGroupsChanged,
    PersonDisabled,
    PersonEnabled,
    KeyEnrolled,
    KeyRevoked,
    /// A set of scopes and rules was in force for the first time.
    RulesetInForce,
    /// A request that found no room in a budget; recorded once a minute for each agent and budget.
    BudgetExceeded,
    /// The doctor finds something else than it did the last time.
    DoctorFound,
    /// The log over the events began.
    LogStarted,
    /// Another key signs the log's checkpoints from now on.
    LogRotated,
    /// The log goes on after events were lost.
    LogRecovered,
    /// A month's events were exported, to be dropped.
    LogPartitionExported,
    LogPartitionDropped,
}

impl EventType {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeaseDenied => "lease.denied",
            Self::LeasePending => "lease.pending",
            Self::LeaseApproved => "lease.approved",
            Self::ClaimRefused => "lease.claim-refused",
            Self::LeaseIssued => "lease.issued",
            Self::LeaseExpired => "lease.expired",
            Self::LeaseRefused => "lease.refused",
            Self::LeaseWithdrawn => "lease.withdrawn",
            Self::LeaseLapsed => "lease.lapsed",
            Self::LeaseFailed => "lease.failed",
            Self::LeaseRevoked => "lease.revoked",
            Self::SessionIssuing => "session.issuing",
            Self::SessionIssued => "session.issued",
            Self::SessionRedelivered => "session.redelivered",
            Self::SessionFailed => "session.failed",
            Self::SessionDropped => "session.dropped",
            Self::SessionExpired => "session.expired",
            Self::SessionRevoking => "session.revoking",
            Self::SessionStopped => "session.stopped",
            Self::RoleCutOff => "role.cut-off",
            Self::ProbeIssuing => "probe.issuing",
            Self::StopWritten => "stop.written",
            Self::SignatureAccepted => "signature.accepted",
            Self::SignatureRejected => "signature.rejected",
            Self::LoginAccepted => "login.accepted",
            Self::LoginRejected => "login.rejected",
            Self::StatementProposed => "statement.proposed",
            Self::StatementSigned => "statement.signed",
            Self::StatementRefused => "statement.refused",
            Self::StatementLapsed => "statement.lapsed",
            Self::StatementFailed => "statement.failed",
            Self::TaskStarted => "task.started",
            Self::TaskEnded => "task.ended",
            Self::FreezeCreated => "freeze.created",
            Self::FreezeThawed => "freeze.thawed",
            Self::PersonAdded => "person.added",
            Self::PersonGroupsChanged => "person.groups-changed",
            Self::PersonDisabled => "person.disabled",
            Self::PersonEnabled => "person.enabled",
            Self::KeyEnrolled => "key.enrolled",
            Self::KeyRevoked => "key.revoked",
            Self::RulesetInForce => "ruleset.in-force",
            Self::BudgetExceeded => "budget.exceeded",
            Self::DoctorFound => "doctor.found",
            Self::LogStarted => "log.started",
            Self::LogRotated => "log.rotated",
            Self::LogRecovered => "log.recovered",
            Self::LogPartitionExported => "log.partition-exported",
            Self::LogPartitionDropped => "log.partition-dropped",
        }
    }
}

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
        let actor = match actor {
            Actor::Agent(name) => format!("agent:{name}"),
            Actor::Person(handle) => format!("person:{handle}"),
            Actor::Broker => "broker".to_owned(),
            Actor::Operator => "operator".to_owned(),
            Actor::Unknown => "unknown".to_owned(),
        };
        let envelope = Envelope {
            specversion: "1.0",
            id: Uuid::now_v7(),
            source: &self.source,
            kind: kind.as_str(),
            time: now.format(&Rfc3339).expect("a year of four digits"),
            actor,
            data: Data { subject, detail },
        };
        canonical(&envelope).expect("an event is an object of strings and small numbers")
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
}
