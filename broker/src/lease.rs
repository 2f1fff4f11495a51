//! The nouns: what a lease is made of, and the states it may be in. No I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A lease's id: a `UUIDv7`. Also the `SourceIdentity` of every session minted under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema), schema(value_type = Uuid))]
#[serde(transparent)]
pub struct LeaseId(pub Uuid);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LeaseId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Makes a fieldless enum whose members have one fixed spelling: in JSON, in SQL and on screen.
macro_rules! spelled {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $member:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $member),+ }

        impl $name {
            /// Every member, in declaration order.
            pub const ALL: &[Self] = &[$(Self::$member),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$member => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::lease::UnknownWord;

            fn from_str(text: &str) -> Result<Self, $crate::lease::UnknownWord> {
                Self::ALL.iter().copied().find(|it| it.as_str() == text).ok_or_else(|| $crate::lease::UnknownWord {
                    what: stringify!($name),
                    text: text.to_owned(),
                    expected: Self::ALL.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

pub(crate) use spelled;

#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a {what}; expected one of: {expected}")]
pub struct UnknownWord {
    pub(crate) what: &'static str,
    pub(crate) text: String,
    pub(crate) expected: String,
}

spelled! {
    /// What a lease may touch, from harmless to dear. What matches no environment is production.
    Environment {
        Development = "development",
        Staging = "staging",
        Production = "production",
        Backup = "backup",
    }
}

spelled! {
    /// What a freeze is of.
    FreezeKind {
        Agent = "agent",
        Sponsor = "sponsor",
        Scope = "scope",
        Environment = "environment",
        /// Everything.
        All = "all",
    }
}

spelled! {
    /// How dangerous a scope is. Computed, never declared; ordered from harmless to destructive.
    Tier {
        ReadOnly = "read-only",
        StagingWrite = "staging-write",
        StagingSensitive = "staging-sensitive",
        ProductionWrite = "production-write",
        Destructive = "destructive",
    }
}

impl Tier {
    /// Whether a lease of this tier is issued without anybody's signature.
    pub const fn is_unsigned(self) -> bool {
        matches!(self, Self::ReadOnly | Self::StagingWrite)
    }

    /// Whether the human who stands behind the agent may sign for it.
    pub const fn sponsor_may_sign(self) -> bool {
        matches!(self, Self::StagingSensitive)
    }
}

spelled! {
    /// What an IAM action does, as far as danger goes.
    ActionClass {
        /// Reads configuration.
        Read = "read",
        /// Reads what customers store.
        DataRead = "data-read",
        Write = "write",
        Tag = "tag",
        /// May lose data, depending on its parameters.
        Review = "review",
        Destructive = "destructive",
        /// Runs something that IAM does not see.
        OpaqueExec = "opaque-exec",
        /// Touches audit, retention or keys.
        Tamper = "tamper",
        /// Hands out secrets.
        Credential = "credential",
        /// Widens somebody's permissions.
        Privesc = "privesc",
    }
}

impl ActionClass {
    /// What a signer reads beside the action, in plain words.
    pub const fn plain(self) -> &'static str {
        match self {
            Self::Read => "reads configuration",
            Self::DataRead => "reads stored data",
            Self::Write => "writes",
            Self::Tag => "changes tags",
            Self::Review => "writes, and can overwrite or lose data",
            Self::Destructive => "DESTROYS",
            Self::OpaqueExec => "RUNS COMMANDS that AWS does not check",
            Self::Tamper => "TAMPERS with audit, retention or keys",
            Self::Credential => "HANDS OUT SECRETS",
            Self::Privesc => "WIDENS PERMISSIONS",
        }
    }
}

spelled! {
    /// How sure we are that a human's hand made a signature.
    Assurance {
        /// A key that a program can use by itself. Signs in dev mode only.
        Software = "software",
        /// Attested hardware, or hardware seen in person by an admin; a touch in each signature.
        Present = "present",
        /// The same with PIN or biometric in each signature, and not synced.
        Verified = "verified",
    }
}

spelled! {
    /// Where a lease stands. Terminal states stay terminal.
    LeaseState {
        /// Waiting for people to sign.
        Pending = "pending",
        /// May be claimed for credentials.
        Approved = "approved",
        /// Credentials were minted and their delivery recorded.
        Issued = "issued",
        /// Its window or its one session has ended.
        Expired = "expired",
        /// The rules said no.
        Denied = "denied",
        /// A signer said no.
        Refused = "refused",
        /// The agent took it back.
        Withdrawn = "withdrawn",
        /// Not signed in time, or approved and not claimed in time.
        Lapsed = "lapsed",
        /// A signed lease whose one mint failed.
        Failed = "failed",
        /// Stopped by a person.
        Revoked = "revoked",
    }
}

impl LeaseState {
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Approved | Self::Issued)
    }
}

spelled! {
    /// Where one STS session stands.
    SessionState {
        /// Claimed; AWS has been, or is about to be, asked.
        Issuing = "issuing",
        Live = "live",
        /// AWS refused, answered wrongly, or nobody knows how it answered. No credential left.
        Failed = "failed",
        Expired = "expired",
        /// Stopped here; AWS has not yet been seen to refuse it.
        Revoking = "revoking",
        /// AWS was seen to refuse it.
        Stopped = "stopped",
    }
}

spelled! {
    /// What a request would come to.
    WouldBe {
        /// Issued at once.
        Issued = "issued",
        /// Pending until people have signed.
        Pending = "pending",
        /// Refused by the scope or the rules.
        Denied = "denied",
        /// Not a request that the scope could judge.
        Invalid = "invalid",
        /// A freeze stands.
        Frozen = "frozen",
        /// A budget has no room for it now.
        OverBudget = "over-budget",
    }
}

spelled! {
    /// A field of a lease request that a scope can require.
    Field {
        Reason = "reason",
        Rollback = "rollback",
        Actions = "actions",
        Resources = "resources",
    }
}

spelled! {
    /// What a person says to a statement.
    Decision { Approve = "approve", Refuse = "refuse" }
}

spelled! {
    /// What a budget limits.
    Budgeted {
        LiveLeases = "live_leases",
        PendingLeases = "pending_leases",
        RequestsPerMinute = "requests_per_minute",
        ScopesPerHour = "scopes_per_hour",
        ResourcesPerHour = "resources_per_hour",
        SignedPerDay = "signed_per_day",
    }
}

impl Budgeted {
    /// In plain words, after a number.
    pub const fn plain(self) -> &'static str {
        match self {
            Self::LiveLeases => "live leases",
            Self::PendingLeases => "pending leases",
            Self::RequestsPerMinute => "requests a minute",
            Self::ScopesPerHour => "scopes an hour",
            Self::ResourcesPerHour => "resources an hour",
            Self::SignedPerDay => "leases a day that people sign",
        }
    }
}

spelled! {
    /// Whose budget.
    Whose { Agent = "agent", Task = "task", Sponsor = "sponsor" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reads_back_as_itself_in_text_and_json() {
        for tier in Tier::ALL {
            assert_eq!(tier.as_str().parse::<Tier>().unwrap(), *tier);
            assert_eq!(serde_json::to_value(tier).unwrap(), tier.as_str());
        }
        assert!("Read-Only".parse::<Tier>().is_err());
    }

    #[test]
    fn only_the_two_lowest_tiers_are_unsigned() {
        let unsigned: Vec<_> = Tier::ALL.iter().filter(|it| it.is_unsigned()).collect();
        assert_eq!(unsigned, [&Tier::ReadOnly, &Tier::StagingWrite]);
    }
}
