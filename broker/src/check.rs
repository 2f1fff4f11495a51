//! What `brokerd check` says: what a configuration comes to, what a change of it loosens, which policy a role should
//! have, and whether the rules decide as expected. Pure.

pub mod cases;
pub mod diff;

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::catalogue::{Catalogue, Scope, ScopeAction, SignerRule};
use crate::config::{Config, Span};
use crate::lease::{ActionClass, Environment, Field, Tier};
use crate::role::{Documents, Role, own_policies};
use crate::statement::{ActionTerms, Conditions, session_policy};

/// IAM's quotas for a managed policy, and for all inline policies of a role, white space not counted
/// (`reference_iam-quotas`).
pub(crate) const MANAGED_POLICY_CHARS: usize = 6_144;
const INLINE_POLICY_CHARS: usize = 10_240;

/// A catalogue as it was computed, for programs.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// What leases name as their rules.
    pub sha256: &'a str,
    /// Where the table of actions comes from.
    pub actions_from: &'static [String],
    pub scopes: Vec<ScopeReport<'a>>,
}

#[derive(Debug, Serialize)]
pub struct ScopeReport<'a> {
    pub name: &'a str,
    pub description: &'a str,
    pub tier: Tier,
    pub tier_because: &'a str,
    pub environment: Environment,
    pub account: &'a str,
    pub role_arn: &'a str,
    pub actions: Vec<ActionReport>,
    pub resources: Vec<&'a str>,
    pub conditions: &'a Conditions,
    pub require: &'a [Field],
    pub max_ttl_seconds: u32,
    pub max_actions: u16,
    pub max_resources: u16,
    pub signers: Option<&'a SignerRule>,
}

#[derive(Debug, Serialize)]
pub struct ActionReport {
    pub action: &'static str,
    /// As AWS publishes it.
    pub level: &'static str,
    pub class: ActionClass,
    /// What it alone would make of the scope.
    pub tier: Tier,
    /// Spelled out in the scope, rather than by a wildcard.
    pub literal: bool,
    /// Whether AWS grants it on `*` only.
    pub any_resource: bool,
}

impl<'a> Report<'a> {
    pub fn of(config: &'a Config) -> Self {
        Self {
            sha256: &config.sha256,
            actions_from: crate::actions::sources(),
            scopes: config.catalogue.scopes().map(ScopeReport::of).collect(),
        }
    }
}

impl<'a> ScopeReport<'a> {
    fn of(scope: &'a Scope) -> Self {
        let action = |it: &ScopeAction| ActionReport {
            action: it.name(),
            level: it.action.level,
            class: it.class,
            tier: it.tier,
            literal: it.literal,
            any_resource: !it.action.takes_resources(),
        };
        Self {
            name: &scope.name,
            description: &scope.description,
            tier: scope.tier,
            tier_because: &scope.tier_because,
            environment: scope.environment,
            account: &scope.account,
            role_arn: &scope.role_arn,
            actions: scope.actions.iter().map(action).collect(),
            resources: scope.resources.iter().map(crate::arn::Arn::as_str).collect(),
            conditions: &scope.conditions,
            require: &scope.require,
            max_ttl_seconds: Span(scope.max_ttl).seconds(),
            max_actions: scope.max_actions,
            max_resources: scope.max_resources,
            signers: scope.signers.as_ref(),
        }
    }
}

/// The catalogue for people: a line a scope, and under those that a wildcard made, every action that keeps it from
/// being read-only.
pub fn text(catalogue: &Catalogue) -> String {
    let mut out = String::new();
    for scope in catalogue.scopes() {
        let signers = match &scope.signers {
            None => "issued at once".to_owned(),
            Some(rule) => {
                format!("{} of {}, {}", rule.count, rule.groups.join("|"), rule.assurance)
            }
        };
        let (name, tier, because) = (&scope.name, scope.tier, &scope.tier_because);
        let _ = writeln!(out, "{name:<20} {tier:<18} {signers:<34} {because}");
        if scope.actions.iter().any(|it| !it.literal) {
            let _ = writeln!(out, "    {} actions, by wildcard", scope.actions.len());
            for ((tier, class), names) in not_read_only(scope) {
                let _ = writeln!(out, "    not read-only: {tier}, {class}: {}", names.join(", "));
            }
        }
    }
    out
}

fn not_read_only(scope: &Scope) -> BTreeMap<(Tier, ActionClass), Vec<&'static str>> {
    let mut names: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for it in scope.actions.iter().filter(|it| Tier::ReadOnly < it.tier) {
        names.entry((it.tier, it.class)).or_default().push(it.name());
    }
    names
}

/// The policy that a scope's role should have: its ceiling, and not the broker's own.
#[derive(Debug)]
pub struct RolePolicy {
    /// JSON, indented.
    pub text: String,
    /// What IAM counts against its quotas.
    pub chars: usize,
}

impl RolePolicy {
    /// For all scopes that use `scope`'s role attach one policy each.
    pub fn of(scope: &Scope, catalogue: &Catalogue) -> Self {
        let actions: Vec<ActionTerms> = scope.actions.iter().map(ScopeAction::terms).collect();
        let mut resources: Vec<_> =
            scope.resources.iter().map(|it| it.as_str().to_owned()).collect();
        if actions.iter().any(|it| it.any_resource) && !resources.iter().any(|it| it == "*") {
            resources.insert(0, "*".to_owned());
        }
        let ceiling = session_policy(&actions, &resources, &scope.account, &scope.conditions, None);
        let mut policy: serde_json::Value =
            serde_json::from_str(&ceiling).expect("our own policy is JSON");
        let own: Vec<_> = catalogue.home().resources().iter().map(ToString::to_string).collect();
        if !own.is_empty() {
            let keep_out = serde_json::json!({ "Effect": "Deny", "Action": "*", "Resource": own });
            policy["Statement"].as_array_mut().expect("statements").push(keep_out);
        }
        let chars = chars(&policy);
        let text = serde_json::to_string_pretty(&policy).expect("JSON is JSON");
        Self { text, chars }
    }

    /// What a person should know before attaching it.
    pub fn advice(&self) -> String {
        advice(self.chars)
    }
}

/// What IAM counts against its quotas.
fn chars(policy: &serde_json::Value) -> usize {
    policy.to_string().chars().filter(|it| !it.is_whitespace()).count()
}

fn advice(chars: usize) -> String {
    if chars <= MANAGED_POLICY_CHARS {
        format!("{chars} characters: fits a managed or an inline policy")
    } else if chars <= INLINE_POLICY_CHARS {
        format!(
            "{chars} characters: too long for a managed policy ({MANAGED_POLICY_CHARS}), fits as the role's only inline policy"
        )
    } else {
        format!(
            "{chars} characters: fits neither a managed policy ({MANAGED_POLICY_CHARS}) nor a role's inline policies ({INLINE_POLICY_CHARS}); name fewer actions, or make two scopes with a role each"
        )
    }
}

/// Everything that a role should have, or one of the broker's own principals, as JSON; and what to know of it.
pub struct RoleDocuments {
    /// JSON, indented.
    pub text: String,
    pub advice: Vec<String>,
}

impl RoleDocuments {
    /// `which` is the name or ARN of a role that scopes use, or `minter`, `revoker` or `doctor`.
    pub fn of(which: &str, config: &Config) -> Option<Self> {
        let (catalogue, aws) = (&config.catalogue, &config.settings.aws);
        let pretty =
            |it: &serde_json::Value| serde_json::to_string_pretty(it).expect("JSON is JSON");
        for ((name, policy), (_, principal)) in
            own_policies(catalogue, aws).into_iter().zip(aws.principals())
        {
            if name == which {
                let advice =
                    vec![format!("policy of {}: {}", principal.arn, advice(chars(&policy)))];
                let all = serde_json::json!({ "principal_arn": principal.arn, "permission_policy": policy });
                return Some(Self { text: pretty(&all), advice });
            }
        }
        let mut roles = Role::all(catalogue).into_iter();
        let role = roles.find(|it| it.arn == which || it.name() == which)?;
        let documents = Documents::of(&role, catalogue, &aws.minter.arn);
        let boundary = chars(&documents.permissions_boundary);
        let fits = if boundary <= MANAGED_POLICY_CHARS { "fits" } else { "is too long for" };
        let advice = vec![
            format!(
                "permission policy of {}: {}",
                role.arn,
                advice(chars(&documents.permission_policy))
            ),
            format!(
                "its boundary: {boundary} characters: {fits} a managed policy ({MANAGED_POLICY_CHARS})"
            ),
        ];
        let all = serde_json::to_value(&documents).expect("JSON is JSON");
        Some(Self { text: pretty(&all), advice })
    }
}
