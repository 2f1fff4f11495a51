//! What the tools take and give. Schemas come from here, and so do the words that an agent reads about each member.
//!
//! What other people or agents wrote is made visible ([`broker::render`]) and stays a member of its own: it is data, and
//! whoever reads it can tell it from what the broker says.

use std::time::Duration;

use broker::lease::{LeaseId, LeaseState};
use broker::render::{name, words};
use broker::wire::{Explanation, Lease, LeaseRequest, Scope};
use rmcp::schemars;
use serde::{Deserialize, Serialize};

use super::not_right;
use crate::agent::duration;
use crate::output::{Result, utc};
use crate::profile;
use crate::refusal::{Refusal, missing, not_before, not_yet_signed, run_with};
use crate::settings::BrokerUrl;

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// What is asked for: `explain` takes that, `request_lease` more. serde refuses unknown members only of a struct that is
/// in no other, and so the members are written here once for both.
macro_rules! ask {
    ($name:ident { $($more:tt)* }) => {
        #[derive(Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            /// The scope, as `list_scopes` names it
            pub(super) scope: String,
            /// What the work is: a ticket or run id; the task that your token is for when left out
            #[serde(default)]
            pub(super) task: Option<String>,
            /// Why, in words: people read it before they sign. Signed tiers need it
            #[serde(default)]
            pub(super) reason: Option<String>,
            /// IAM actions, such as `s3:PutObject`. Left out: all of the scope's, where nobody signs
            #[serde(default)]
            pub(super) actions: Option<Vec<String>>,
            /// ARNs. Left out: all of the scope's, where nobody signs
            #[serde(default)]
            pub(super) resources: Option<Vec<String>>,
            /// How long, such as `15m` or `2h`; 15m when left out
            #[serde(default)]
            pub(super) ttl: Option<String>,
            /// How it would be undone, in words. Signed tiers need it
            #[serde(default)]
            pub(super) rollback: Option<String>,
            $($more)*
        }

        impl $name {
            /// Credentials are never asked for: they would come here, where a transcript is written.
            pub(super) fn request(self, join: bool) -> Result<LeaseRequest> {
                let ttl = self.ttl.as_deref().map(duration).transpose();
                let ttl = ttl.map_err(|error| not_right(&format!("ttl: {error}")))?;
                let seconds = |it: Duration| u32::try_from(it.as_secs()).expect("the parser saw to it");
                Ok(LeaseRequest {
                    scope: self.scope,
                    task: self.task,
                    reason: self.reason,
                    actions: self.actions,
                    resources: self.resources,
                    ttl_seconds: ttl.map(seconds),
                    rollback: self.rollback,
                    deliver: false,
                    join,
                })
            }
        }
    };
}

ask!(Question {});
ask!(Request {
    /// Opens another lease, although one that was asked for in the same words is open
    #[serde(default)]
    pub(super) new: bool,
});

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    /// The lease
    pub(super) id: String,
    /// How long to wait, in seconds, while it is pending: 30 at most, and not at all when left out
    #[serde(default)]
    #[schemars(range(max = 30))]
    pub(super) wait_seconds: u64,
}

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Withdrawal {
    /// The lease
    pub(super) id: String,
    /// Why, in words
    #[serde(default)]
    pub(super) reason: Option<String>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct ScopesAnswer {
    pub(super) scopes: Vec<ScopeShape>,
    /// Why there is no list; null when there is one
    pub(super) refusal: Option<Refusal>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct ScopeShape {
    name: String,
    /// In the words of whoever configured it
    description: String,
    environment: String,
    tier: String,
    account: String,
    regions: Vec<String>,
    /// The most that can be asked for
    actions: Vec<String>,
    resources: Vec<String>,
    max_ttl_seconds: u32,
    /// How many people must sign; 0 where a lease is issued at once
    signatures_needed: u16,
    signer_groups: Vec<String>,
}

impl From<Scope> for ScopeShape {
    fn from(it: Scope) -> Self {
        Self {
            name: name(&it.name),
            description: words(&it.description),
            environment: it.environment.to_string(),
            tier: it.tier.to_string(),
            account: name(&it.account),
            regions: names(&it.regions),
            actions: names(&it.actions),
            resources: names(&it.resources),
            max_ttl_seconds: it.max_ttl_seconds,
            signatures_needed: it.signatures_needed,
            signer_groups: names(&it.signer_groups),
        }
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct ExplainAnswer {
    /// What the request would come to; null when the broker did not say
    pub(super) explanation: Option<ExplanationShape>,
    /// Why there is no explanation; null when there is one
    pub(super) refusal: Option<Refusal>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct ExplanationShape {
    /// What would become of the request, such as `allowed`, `pending` or `denied`
    outcome: String,
    /// In words
    why: String,
    /// When there will be room in the budget that has none now, in RFC 3339
    retry_at: Option<String>,
    decided_by: Vec<String>,
    scope: String,
    tier: Option<String>,
    tier_because: Option<String>,
    actions: Vec<String>,
    resources: Vec<String>,
    /// The session policy that AWS would enforce: a JSON document, as text
    session_policy: Option<String>,
    ttl_seconds: Option<u32>,
    session_seconds: Option<u32>,
    signatures_needed: u16,
    eligible_signers: Vec<String>,
}

impl From<&Explanation> for ExplanationShape {
    fn from(it: &Explanation) -> Self {
        Self {
            outcome: it.outcome.to_string(),
            why: words(&it.why),
            retry_at: it.retry_at.map(not_before),
            decided_by: names(&it.decided_by),
            scope: name(&it.scope),
            tier: it.tier.map(|it| it.to_string()),
            tier_because: it.tier_because.as_deref().map(words),
            actions: it.actions.iter().map(|it| name(&it.action)).collect(),
            resources: names(&it.resources),
            session_policy: it.session_policy.clone(),
            ttl_seconds: it.ttl_seconds,
            session_seconds: it.session_seconds,
            signatures_needed: it.signatures_needed,
            eligible_signers: names(&it.eligible_signers),
        }
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct LeaseAnswer {
    /// Null when there is none, or not for this caller
    pub(super) lease: Option<LeaseShape>,
    /// How to use it; null while it cannot be used
    pub(super) r#use: Option<Use>,
    /// Why it cannot be used, or not yet, and how to go on; null when it can, or was withdrawn as asked. A pending
    /// lease has one too: that is no error, somebody has to sign
    pub(super) refusal: Option<Refusal>,
    /// What to do next, in words
    pub(super) next: String,
}

/// How to use a lease. Credentials are never shown: commands run with them.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Use {
    /// Runs a command with the lease's credentials, word by word: put your own in place of `COMMAND`
    exec: Vec<String>,
    /// A profile of AWS's tools (`AWS_PROFILE`) that leases on this scope; null when there is none, and where people sign
    profile: Option<String>,
    /// Whether it gives credentials once: then do everything that needs them in one command
    once: bool,
    /// When it ends, in RFC 3339
    ends_at: Option<String>,
}

impl Use {
    /// What `broker` at `url` gave a lease for.
    pub(super) fn of(lease: &Lease, url: &BrokerUrl) -> Option<Self> {
        let once = lease.signatures_needed != 0;
        // A profile asks in its own words. Where people sign, that would be another request, for them to sign again.
        let profile = || profile::of_scope(&url.to_string(), &lease.scope).filter(|_| !once);
        matches!(lease.state, LeaseState::Approved | LeaseState::Issued).then(|| Self {
            exec: run_with(lease.id),
            profile: profile(),
            once,
            ends_at: lease.ends_at.or(lease.claim_by).map(utc),
        })
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct LeaseShape {
    #[schemars(with = "String")]
    id: LeaseId,
    /// `pending`, `approved`, `issued`; or, where nothing more comes of it, `denied`, `refused`, `expired`, `lapsed`,
    /// `withdrawn`, `revoked` or `failed`
    state: String,
    scope: String,
    environment: Option<String>,
    tier: Option<String>,
    account: Option<String>,
    region: Option<String>,
    task: String,
    /// In the words of whoever asked
    reason: Option<String>,
    /// In the words of whoever asked
    rollback: Option<String>,
    actions: Vec<String>,
    resources: Vec<String>,
    requested_at: String,
    sign_by: Option<String>,
    claim_by: Option<String>,
    ends_at: Option<String>,
    /// Why it ended, in the words of whoever ended it
    end_reason: Option<String>,
    signatures_needed: u16,
    /// How many of them are missing
    signatures_missing: u16,
    /// Who may sign and has not yet
    eligible_signers: Vec<String>,
    signed_by: Vec<String>,
    /// What the signer is shown too
    short_code: Option<String>,
}

impl From<&Lease> for LeaseShape {
    fn from(it: &Lease) -> Self {
        let pending = it.state == LeaseState::Pending;
        Self {
            id: it.id,
            state: it.state.to_string(),
            scope: name(&it.scope),
            environment: it.environment.map(|it| it.to_string()),
            tier: it.tier.map(|it| it.to_string()),
            account: it.account.as_deref().map(name),
            region: it.region.as_deref().map(name),
            task: words(&it.task),
            reason: it.reason.as_deref().map(words),
            rollback: it.rollback.as_deref().map(words),
            actions: names(&it.actions),
            resources: names(&it.resources),
            requested_at: utc(it.requested_at),
            sign_by: it.sign_by.map(utc),
            claim_by: it.claim_by.map(utc),
            ends_at: it.ends_at.map(utc),
            end_reason: it.end_reason.as_deref().map(words),
            signatures_needed: it.signatures_needed,
            signatures_missing: if pending { missing(it) } else { 0 },
            eligible_signers: if pending { names(&not_yet_signed(it)) } else { Vec::new() },
            signed_by: it.signatures.iter().map(|it| name(&it.person)).collect(),
            short_code: it.short_code.as_deref().map(name),
        }
    }
}

fn names(all: &[String]) -> Vec<String> {
    all.iter().map(|it| name(it)).collect()
}
