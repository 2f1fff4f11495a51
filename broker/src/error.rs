//! Every way a request can fail, and the problem document each becomes.

use axum::extract::rejection::{
    BytesRejection, FormRejection, JsonRejection, PathRejection, QueryRejection,
};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::aws::MintError;
use crate::identity::TokenError;
use crate::lease::{Budgeted, LeaseId, LeaseState};
use crate::problem::{Extension, Kind, NO_LONGER, Problem};
use crate::sequencer::LogError;
use crate::statement::StatementError;
use crate::store::Exceeded;
use crate::verify::Rejection;
use crate::workload::{NoKey, WorkloadError};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the request carries no token that is good here")]
    Token(#[from] TokenError),
    #[error("this workload's token is not exchanged: {0}")]
    Workload(#[from] WorkloadError),
    #[error("the task of this token has ended, or its sponsor is disabled")]
    TaskEnded,
    #[error("this is for {0}")]
    OtherCaller(&'static str),
    #[error("{0}")]
    Invalid(String),
    #[error("the body is larger than 64 KiB")]
    TooLarge,
    #[error("the request did not arrive, or was not answered, in time")]
    TooSlow,
    #[error("there is nothing here for this caller")]
    NotFound,
    #[error("nobody was asked to sign lease {0}: there is no approval to export")]
    Unsigned(LeaseId),
    #[error("this path does not take that method")]
    MethodNotAllowed,
    #[error("{why}")]
    Denied { lease_id: Option<LeaseId>, why: String },
    /// An open lease that today's rules, or today's keys and people, do not bear any more.
    #[error("{why}")]
    NoLonger { id: LeaseId, why: String },
    #[error("{rejection}")]
    Rejected { lease_id: Option<LeaseId>, rejection: Rejection },
    #[error("another request was made with this Idempotency-Key")]
    IdempotencyMismatch,
    #[error("lease {0} waits for signatures")]
    Pending(LeaseId),
    #[error("lease {id} is {state}")]
    Ended { id: LeaseId, state: LeaseState },
    #[error("a standing freeze covers this agent, sponsor, scope or environment")]
    Frozen(Option<LeaseId>),
    #[error("all sessions of the role of lease {id} were stopped; new ones begin at {}", rfc3339(*.until))]
    RoleCutOff { id: LeaseId, until: OffsetDateTime, wait: Duration },
    #[error(
        "lease {id} is approved, and destroys: it waits until a checkpoint that covers its approval is kept elsewhere ({why})"
    )]
    NotAnchored { id: LeaseId, why: String },
    #[error("nothing is served: {0}")]
    LogBehind(String),
    #[error("nothing is served before the database is compared with the log's anchors: {0}")]
    NotCompared(String),
    #[error("lease {0} was issued, once, and its credentials are not here any more")]
    AlreadyIssued(LeaseId),
    #[error("lease {0} is in use, and cannot be taken back")]
    InUse(LeaseId),
    #[error("lease {0} was stopped while AWS was asked; what AWS minted was thrown away")]
    StoppedMeanwhile(LeaseId),
    #[error("no credentials were issued under lease {id}")]
    Mint { id: LeaseId, signed: bool, source: MintError },
    #[error("the {}'s budget of {} {} has no room for this until {}", .0.of, .0.limit, .0.budget.plain(), rfc3339(.0.retry_at))]
    OverBudget(Exceeded),
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
    #[error("the stored statement cannot be read")]
    Statement(#[from] StatementError),
    #[error("something is wrong here")]
    Internal(String),
}

impl Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Workload(WorkloadError::Key(NoKey::Unavailable)) => Kind::IssuerUnavailable,
            Self::Workload(_) | Self::Token(_) | Self::TaskEnded | Self::OtherCaller(_) => {
                Kind::Unauthenticated
            }
            Self::Invalid(_) => Kind::InvalidRequest,
            Self::TooLarge => Kind::TooLarge,
            Self::TooSlow => Kind::TooSlow,
            Self::NotFound | Self::Unsigned(_) => Kind::NotFound,
            Self::MethodNotAllowed => Kind::MethodNotAllowed,
            Self::Denied { .. } | Self::NoLonger { .. } => Kind::Denied,
            Self::Rejected { .. } => Kind::SignatureRejected,
            Self::IdempotencyMismatch => Kind::IdempotencyMismatch,
            Self::Pending(_) => Kind::Pending,
            Self::Ended { state: LeaseState::Refused, .. } => Kind::Refused,
            Self::Ended { state: LeaseState::Denied, .. } => Kind::Denied,
            Self::Ended { .. } | Self::StoppedMeanwhile(_) => Kind::Ended,
            Self::Frozen(_) => Kind::Frozen,
            Self::RoleCutOff { .. } => Kind::RoleCutOff,
            Self::NotAnchored { .. } => Kind::NotAnchored,
            Self::LogBehind(_) => Kind::LogBehind,
            Self::NotCompared(_) => Kind::DatabaseUnavailable,
            Self::AlreadyIssued(_) | Self::InUse(_) => Kind::AlreadyIssued,
            Self::Mint { source: MintError::TooLarge { .. }, .. } => Kind::PolicyTooLarge,
            Self::Mint { source: MintError::Refused { .. } | MintError::Wrong { .. }, .. } => {
                Kind::CloudRefused
            }
            Self::Mint { .. } => Kind::CloudUnavailable,
            Self::OverBudget(_) => Kind::OverBudget,
            Self::Database(error) if is_away(error) => Kind::DatabaseUnavailable,
            Self::Database(_) | Self::Statement(_) | Self::Internal(_) => Kind::Internal,
        }
    }

    fn lease_id(&self) -> Option<LeaseId> {
        match self {
            Self::Denied { lease_id, .. }
            | Self::Rejected { lease_id, .. }
            | Self::Frozen(lease_id) => *lease_id,
            Self::Unsigned(id)
            | Self::Pending(id)
            | Self::AlreadyIssued(id)
            | Self::InUse(id)
            | Self::StoppedMeanwhile(id) => Some(*id),
            Self::Ended { id, .. }
            | Self::NoLonger { id, .. }
            | Self::Mint { id, .. }
            | Self::RoleCutOff { id, .. }
            | Self::NotAnchored { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// What to do next: a caller that is given no way forward looks for another credential.
    fn next(&self) -> String {
        match self {
            Self::Token(_) => "Pass a token in `Authorization: Bearer TOKEN`: an agent its task token, a person the one that `broker login` gets.".into(),
            Self::Workload(WorkloadError::Key(NoKey::Unavailable)) => "Try again in a minute; the broker asks the issuer for its keys again.".into(),
            Self::Workload(WorkloadError::Expired | WorkloadError::NotYetValid | WorkloadError::Replayed | WorkloadError::TaskEnded) => "Have the issuer make a new token, and exchange that, once; if it does not help, compare the clocks.".into(),
            Self::Workload(_) => "Operations: compare `[[issuers]]` in broker.toml with what the token says (`iss`, `aud`, `sub`, claims).".into(),
            Self::TaskEnded => "Ask the sponsor to start a task and hand over its token; a workload exchanges a new token of its platform.".into(),
            Self::OtherCaller(who) => format!("Call with the token of {who}."),
            Self::Invalid(_) => "Correct the request; `/openapi.json` says what it takes.".into(),
            Self::TooLarge => "Send less.".into(),
            Self::TooSlow => "Send the whole request at once, and try again.".into(),
            Self::NotFound => "Check the id, and that the lease is this caller's: `broker leases` lists them.".into(),
            Self::Unsigned(id) => format!("`broker show {id}` has what the rules decided, and why; nothing more was needed, or it never came so far."),
            Self::MethodNotAllowed => "See `/openapi.json`.".into(),
            Self::Denied { .. } => "`broker scopes` shows what may be asked for; if the task needs more, ask its sponsor. No other credential on this machine is meant for it.".into(),
            Self::NoLonger { .. } => "Ask anew, by today's rules, with `broker lease --new` in the same words; if that is denied, ask the sponsor. No other credential on this machine is meant for it.".into(),
            Self::Rejected { rejection, .. } => rejection.next().into(),
            Self::IdempotencyMismatch => "Use a new Idempotency-Key for a new request.".into(),
            Self::Pending(id) => format!("Have an eligible person run `broker sign {id}`; then ask again, or wait with `--wait`."),
            Self::Ended { id, state: LeaseState::Refused } => format!("`broker show {id}` has the signer's reason; answer that before asking again."),
            Self::Ended { state: LeaseState::Revoked, .. } => "Ask the sponsor why it was revoked; then go on, or not.".into(),
            Self::Ended { .. } => "Ask for a new lease.".into(),
            Self::AlreadyIssued(_) => "Ask for a new lease; in the same words with `broker lease --new`.".into(),
            Self::InUse(_) => "Let it expire; what was handed out is good until then.".into(),
            Self::Frozen(_) => "Stop, and ask the sponsor or operations; nothing is issued until a person thaws it.".into(),
            Self::RoleCutOff { .. } => "Try again at `retry_at`: the lease stays as it is, AWS would refuse what begins before.".into(),
            Self::NotAnchored { id, .. } => format!("Ask again in a few seconds: `broker exec --lease {id} -- COMMAND`; nothing has to be signed again. If it stays so, operations see to the log's anchors."),
            Self::NotCompared(_) => "Try again in a minute; no credentials left the broker.".into(),
            Self::LogBehind(_) => "Tell operations: the database was restored, or is not the newest; `brokerd recover` says what is missing. No other credential on this machine is meant for this.".into(),
            Self::StoppedMeanwhile(_) => "Ask the sponsor why it was stopped.".into(),
            Self::Mint { source: MintError::TooLarge { .. }, .. } => "Ask for a new lease on fewer actions and ARNs, or on shorter ones: half of them, if nothing else says how many. Tags count too: agent, sponsor, scope and task.".into(),
            Self::Mint { signed: true, .. } => "A signed lease mints once: ask for a new lease, and have it signed.".into(),
            Self::Mint { source: MintError::Refused { .. }, .. } => "Operations: compare the role's trust policy with the scope.".into(),
            Self::Mint { .. } => "Try again in a minute.".into(),
            Self::OverBudget(Exceeded { budget: Budgeted::LiveLeases | Budgeted::PendingLeases, .. }) => "Take back what is not needed (`broker leases`, `broker withdraw`), or ask again at `retry_at`. No other credential on this machine is meant for it.".into(),
            Self::OverBudget(_) => "Ask again at `retry_at`, and not before; if the task needs more, ask its sponsor. No other credential on this machine is meant for it.".into(),
            Self::Database(error) if is_away(error) => "Try again in a minute; no credentials left the broker.".into(),
            Self::Database(_) | Self::Statement(_) | Self::Internal(_) => "Tell operations; the server's log says more.".into(),
        }
    }
}

/// Rounded up, and at least one: whoever comes back then is not too early.
fn whole_seconds(wait: Duration) -> i64 {
    let begun = i64::from(0 < wait.subsec_nanoseconds());
    (wait.whole_seconds() + begun).max(1)
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).expect("a year of four digits")
}

/// Whether the database could not be asked, as opposed to having said something unexpected.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        // Class 08: connection; 57P: shutting down or starting up; 53: out of connections, memory or disk;
        // 57014: the statement timeout.
        sqlx::Error::Database(error) => error.code().is_some_and(|it| {
            it.starts_with("08") || it.starts_with("57P") || it.starts_with("53") || it == "57014"
        }),
        _ => false,
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let kind = self.kind();
        let status = StatusCode::from_u16(kind.status()).expect("our statuses are statuses");
        if status.is_server_error() {
            // Logged here, at the edge, and nowhere else. The caller sees only our own words.
            tracing::error!(problem = kind.uri(), lease_id = self.lease_id().map(tracing::field::display), error = ?self, "request failed");
        } else {
            tracing::info!(problem = kind.uri(), lease_id = self.lease_id().map(tracing::field::display), error = ?self, "request refused");
        }
        let reason = match &self {
            Self::Rejected { rejection, .. } => Some(rejection.code().to_owned()),
            Self::Workload(error) => Some(error.code().to_owned()),
            Self::Ended { state, .. } => Some(state.to_string()),
            Self::NoLonger { .. } => Some(NO_LONGER.to_owned()),
            _ => None,
        };
        let mut extension = Extension {
            next: Some(self.next()),
            reason,
            lease_id: self.lease_id(),
            ..Extension::default()
        };
        if let Self::OverBudget(exceeded) = &self {
            extension.retry_at = Some(exceeded.retry_at);
            extension.budget = Some(exceeded.budget.to_string());
            extension.of = Some(exceeded.of.to_string());
            extension.limit = Some(exceeded.limit);
        }
        if let Self::RoleCutOff { until, .. } = &self {
            extension.retry_at = Some(*until);
        }
        let problem = problem(kind, self.to_string(), extension);
        let mut response = (status, serde_json::to_string(&problem).expect("a problem serializes"))
            .into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let wait = match &self {
            Self::OverBudget(exceeded) => Some(exceeded.wait),
            Self::RoleCutOff { wait, .. } => Some(*wait),
            _ => None,
        };
        if let Some(wait) = wait {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        match kind {
            Kind::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Kind::NotAnchored => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
            }
            Kind::CloudUnavailable | Kind::DatabaseUnavailable | Kind::IssuerUnavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
            }
            _ => {}
        }
        response
    }
}

fn problem(kind: Kind, detail: String, extension: Extension) -> Problem {
    problem_details::ProblemDetails::new()
        .with_type(axum::http::Uri::from_static(kind.uri()))
        .with_status(StatusCode::from_u16(kind.status()).expect("our statuses are statuses"))
        .with_title(kind.title())
        .with_detail(detail)
        .with_extensions(extension)
}

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Self {
        match rejection {
            JsonRejection::BytesRejection(rejection) => rejection.into(),
            other => Self::Invalid(other.body_text()),
        }
    }
}

impl From<BytesRejection> for Error {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Self::TooLarge
        } else {
            Self::Invalid(rejection.body_text())
        }
    }
}

impl From<FormRejection> for Error {
    fn from(rejection: FormRejection) -> Self {
        match rejection {
            FormRejection::BytesRejection(rejection) => rejection.into(),
            // The parser's own words could quote the token.
            _ => Self::Invalid(
                "the body is not what a token exchange takes: grant_type, subject_token and subject_token_type, form-encoded".into(),
            ),
        }
    }
}

impl From<PathRejection> for Error {
    fn from(_: PathRejection) -> Self {
        // An id that is no id names nothing.
        Self::NotFound
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        Self::Invalid(rejection.body_text())
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Database(error) => Self::Database(error),
            LogError::Behind(why) => Self::LogBehind(why),
            other => Self::Internal(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_whole_seconds_and_never_too_short() {
        for (wait, told) in [
            (Duration::seconds(59), 59),
            (Duration::microseconds(59_000_001), 60),
            (Duration::microseconds(1), 1),
            (Duration::ZERO, 1),
            (Duration::seconds(-5), 1),
        ] {
            assert_eq!(whole_seconds(wait), told, "{wait}");
        }
    }
}
