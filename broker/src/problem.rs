//! Problem documents (RFC 9457): the kinds of failure a caller can meet, with everything that follows from a kind.

use serde::{Deserialize, Serialize};

/// The `reason` of a denial that meets an open lease: rules, keys or people have changed since.
pub const NO_LONGER: &str = "no-longer";

/// The `type` of a problem. Never changed once released: programs match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    InvalidRequest,
    TooLarge,
    TooSlow,
    Unauthenticated,
    NotFound,
    MethodNotAllowed,
    Denied,
    SignatureRejected,
    IdempotencyMismatch,
    Pending,
    Refused,
    Ended,
    Frozen,
    RoleCutOff,
    NotAnchored,
    AlreadyIssued,
    PolicyTooLarge,
    CloudRefused,
    CloudUnavailable,
    IssuerUnavailable,
    DatabaseUnavailable,
    LogBehind,
    OverBudget,
    Internal,
}

impl Kind {
    pub const ALL: &[Self] = &[
        Self::InvalidRequest,
        Self::TooLarge,
        Self::TooSlow,
        Self::Unauthenticated,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Denied,
        Self::SignatureRejected,
        Self::IdempotencyMismatch,
        Self::Pending,
        Self::Refused,
        Self::Ended,
        Self::Frozen,
        Self::RoleCutOff,
        Self::NotAnchored,
        Self::AlreadyIssued,
        Self::PolicyTooLarge,
        Self::CloudRefused,
        Self::CloudUnavailable,
        Self::IssuerUnavailable,
        Self::DatabaseUnavailable,
        Self::LogBehind,
        Self::OverBudget,
        Self::Internal,
    ];

    /// The problem's `type`, its HTTP status, its title, and the exit code of a command that meets it.
    const fn row(self) -> (&'static str, u16, &'static str, u8) {
        match self {
            Self::InvalidRequest => {
                ("/problems/invalid-request", 400, "The request is not valid", 2)
            }
            Self::TooLarge => ("/problems/too-large", 413, "The request is too large", 2),
            Self::TooSlow => ("/problems/too-slow", 408, "The request took too long", 9),
            Self::Unauthenticated => ("/problems/unauthenticated", 401, "Not authenticated", 8),
            Self::NotFound => ("/problems/not-found", 404, "Not found", 2),
            Self::MethodNotAllowed => {
                ("/problems/method-not-allowed", 405, "Method not allowed", 2)
            }
            Self::Denied => ("/problems/denied", 403, "Denied by the rules", 4),
            Self::SignatureRejected => {
                ("/problems/signature-rejected", 403, "The signature does not count", 4)
            }
            Self::IdempotencyMismatch => (
                "/problems/idempotency-mismatch",
                422,
                "This Idempotency-Key was used for another request",
                2,
            ),
            Self::Pending => ("/problems/pending", 409, "Not signed yet", 3),
            Self::Refused => ("/problems/refused", 409, "Refused by a signer", 5),
            Self::Ended => ("/problems/ended", 409, "The lease has ended", 6),
            Self::Frozen => ("/problems/frozen", 403, "Frozen", 6),
            Self::RoleCutOff => {
                ("/problems/role-cut-off", 409, "The role's sessions were just stopped", 9)
            }
            Self::NotAnchored => {
                ("/problems/not-anchored", 409, "The approval is not anchored yet", 9)
            }
            Self::AlreadyIssued => {
                ("/problems/already-issued", 409, "Issued already, and only once", 6)
            }
            Self::PolicyTooLarge => {
                ("/problems/policy-too-large", 422, "AWS has no room for the session policy", 2)
            }
            Self::CloudRefused => {
                ("/problems/cloud-refused", 502, "AWS did not issue credentials", 1)
            }
            Self::CloudUnavailable => ("/problems/cloud-unavailable", 503, "AWS STS is away", 9),
            Self::IssuerUnavailable => {
                ("/problems/issuer-unavailable", 503, "The issuer's keys cannot be had", 9)
            }
            Self::DatabaseUnavailable => {
                ("/problems/database-unavailable", 503, "The database is away", 9)
            }
            Self::LogBehind => ("/problems/log-behind", 503, "The database is behind its log", 9),
            Self::OverBudget => ("/problems/over-budget", 429, "Over budget", 9),
            Self::Internal => ("/problems/internal", 500, "Internal error", 1),
        }
    }

    pub const fn uri(self) -> &'static str {
        self.row().0
    }

    pub const fn status(self) -> u16 {
        self.row().1
    }

    pub const fn title(self) -> &'static str {
        self.row().2
    }

    /// The exit code of a command that ends with this problem.
    pub const fn exit_code(self) -> u8 {
        self.row().3
    }

    /// The kind with this `type`, if it is one of ours.
    pub fn from_uri(uri: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.uri() == uri)
    }
}

/// What we add to RFC 9457's members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// What to do next, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// A stable code within the kind, such as the reason a signature was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<crate::lease::LeaseId>,
    /// When the same request may be made again, and the next three: the budget that has no room until then.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub retry_at: Option<time::OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// Whose budget: the agent's, its task's or its sponsor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// A problem document as it travels.
pub type Problem = problem_details::ProblemDetails<Extension>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_once_and_found_by_its_uri() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_uri(kind.uri()), Some(*kind));
        }
        assert_eq!(Kind::ALL.len(), Kind::Internal as usize + 1);
    }
}
