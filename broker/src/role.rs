//! The documents that the roles of leases should have, and those of the broker's own principals. Pure.
//!
//! One place makes them: what `brokerd check --role` prints is what the doctor compares with, and what `brokerd dev`
//! gives to the demo's roles.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use crate::actions;
use crate::arn::{Arn, minimal};
use crate::aws::{PROBE_ACTION, STOP_POLICY};
use crate::catalogue::{Catalogue, Scope, ScopeAction};
use crate::config::Aws;
use crate::lease::Environment;
use crate::statement::{ActionTerms, session_policy};

/// What the minter does to a role, and all that it does.
pub const SESSION_ACTIONS: [&str; 3] =
    ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"];
/// What the revoker does to a role.
pub const STOP_ACTIONS: [&str; 3] =
    ["iam:GetRolePolicy", "iam:PutRolePolicy", "iam:DeleteRolePolicy"];
/// What the doctor calls. None of it takes an ARN of its own, or what it is about is not known beforehand.
pub const LOOK_ACTIONS: [&str; 5] = [
    "iam:GetAccountAuthorizationDetails",
    "iam:GetRole",
    "iam:ListAccessKeys",
    "s3:GetBucketPolicy",
    "s3:ListAllMyBuckets",
];
/// No session lasts longer: a role's own limit need not either. IAM takes nothing below (`API_CreateRole`).
pub const LONGEST_SESSION_SECONDS: u32 = 3_600;
/// Ways from a session to credentials that outlive it, or that are somebody else's.
const TO_CREDENTIALS: [&str; 2] = ["sts:Assume*", "sts:Get*Token"];

/// Names of a boundary's denials.
pub const NO_CREDENTIALS: &str = "NoOtherCredentials";
pub const THIS_ACCOUNT: &str = "ThisAccountOnly";
pub const THIS_ENVIRONMENT: &str = "ThisEnvironmentOnly";
pub const NOT_OWN: &str = "NotTheBrokersOwn";

/// A role that leases are minted from, with the scopes that use it.
#[derive(Clone, Debug)]
pub struct Role<'a> {
    pub arn: &'a str,
    pub account: &'a str,
    /// At least one, by name.
    pub scopes: Vec<&'a Scope>,
}

/// What one role should have.
#[derive(Clone, Debug, Serialize)]
pub struct Documents {
    pub role_arn: String,
    pub trust_policy: Value,
    pub permission_policy: Value,
    pub permissions_boundary: Value,
    pub max_session_duration: u32,
}

impl<'a> Role<'a> {
    /// All of them, by ARN.
    pub fn all(catalogue: &'a Catalogue) -> Vec<Self> {
        let mut roles: BTreeMap<&str, Self> = BTreeMap::new();
        for scope in catalogue.scopes() {
            let arn = scope.role_arn.as_str();
            let role = Self { arn, account: &scope.account, scopes: Vec::new() };
            roles.entry(arn).or_insert(role).scopes.push(scope);
        }
        roles.into_values().collect()
    }

    /// Its name, without a path.
    pub fn name(&self) -> &'a str {
        self.arn.rsplit('/').next().unwrap_or_default()
    }

    /// The strictest of its scopes'.
    pub fn environment(&self) -> Environment {
        self.scopes.iter().map(|it| it.environment).max().unwrap_or(Environment::Production)
    }

    /// What `sts:ExternalId` may be, if all scopes that use the role give one.
    pub fn external_ids(&self) -> Option<BTreeSet<&'a str>> {
        self.scopes.iter().map(|it| it.external_id.as_deref()).collect()
    }

    fn actions(&self) -> impl Iterator<Item = &'a ScopeAction> {
        self.scopes.iter().flat_map(|it| &it.actions)
    }

    fn resources(&self) -> impl Iterator<Item = &'a Arn> {
        self.scopes.iter().flat_map(|it| &it.resources)
    }
}

impl Documents {
    pub fn of(role: &Role<'_>, catalogue: &Catalogue, minter: &str) -> Self {
        Self {
            role_arn: role.arn.to_owned(),
            trust_policy: trust(role, minter),
            permission_policy: permissions(role, catalogue),
            permissions_boundary: boundary(role, catalogue),
            max_session_duration: LONGEST_SESSION_SECONDS,
        }
    }

    /// Those of all roles.
    pub fn all(catalogue: &Catalogue, minter: &str) -> Vec<Self> {
        Role::all(catalogue).iter().map(|it| Self::of(it, catalogue, minter)).collect()
    }
}

/// The policies of the minter, the revoker and the doctor, by those names: for identities in the principals' own
/// accounts. In another account the role that a principal assumes there has the statement about that account's roles.
pub fn own_policies(catalogue: &Catalogue, aws: &Aws) -> [(&'static str, Value); 3] {
    let roles = Role::all(catalogue);
    let arns: Vec<_> = roles.iter().map(|it| it.arn).collect();
    let look = json!({ "Effect": "Allow", "Action": LOOK_ACTIONS, "Resource": "*" });
    let own = |principal: &crate::config::Principal, statement: Value| {
        let mut all = vec![statement];
        if let Some(role) = &principal.role {
            let other: BTreeSet<_> = roles
                .iter()
                .filter(|it| it.account != principal.account())
                .map(|it| format!("arn:aws:iam::{}:role/{role}", it.account))
                .collect();
            if !other.is_empty() {
                all.push(
                    json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": other }),
                );
            }
        }
        document(&all)
    };
    let stop = json!({ "Effect": "Allow", "Action": STOP_ACTIONS, "Resource": arns });
    let mint = json!({ "Effect": "Allow", "Action": SESSION_ACTIONS, "Resource": arns });
    [
        ("minter", document(&[mint])),
        ("revoker", own(&aws.revoker, stop)),
        ("doctor", own(&aws.doctor, look)),
    ]
}

fn document(statements: &[Value]) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// The minter alone, for sessions that say whose they are.
fn trust(role: &Role<'_>, minter: &str) -> Value {
    let mut condition = json!({ "StringLike": { "sts:SourceIdentity": "?*" } });
    if let Some(ids) = role.external_ids() {
        let ids: Vec<_> = ids.into_iter().collect();
        let one_or_more = if let [id] = ids[..] { json!(id) } else { json!(ids) };
        condition["StringEquals"] = json!({ "sts:ExternalId": one_or_more });
    }
    document(&[json!({
        "Effect": "Allow",
        "Principal": { "AWS": minter },
        "Action": SESSION_ACTIONS,
        "Condition": condition,
    })])
}

/// The ceilings of all scopes that use the role, and what the probe of a stop calls.
fn permissions(role: &Role<'_>, catalogue: &Catalogue) -> Value {
    let mut statements: Vec<Value> = Vec::new();
    for scope in &role.scopes {
        let terms: Vec<ActionTerms> = scope.actions.iter().map(ScopeAction::terms).collect();
        let mut resources: Vec<_> =
            scope.resources.iter().map(|it| it.as_str().to_owned()).collect();
        if terms.iter().any(|it| it.any_resource) && !resources.iter().any(|it| it == "*") {
            resources.push("*".to_owned());
        }
        // A denial of one scope's would be on all that use the role; it is in the session policies of its own.
        let conditions = &scope.conditions;
        let policy = session_policy(&terms, &resources, &scope.account, conditions, None);
        let mut policy: Value = serde_json::from_str(&policy).expect("our own policy is JSON");
        let Value::Array(all) = policy["Statement"].take() else { continue };
        statements.extend(all.into_iter().filter(|it| it["Effect"] == "Allow"));
    }
    statements.push(json!({ "Effect": "Allow", "Action": [PROBE_ACTION], "Resource": ["*"] }));
    let mut seen = Vec::new();
    statements.retain(|it| {
        let new = !seen.contains(it);
        seen.push(it.clone());
        new
    });
    statements.extend(keep_out(catalogue));
    document(&statements)
}

/// Nothing of the broker's own.
fn keep_out(catalogue: &Catalogue) -> Option<Value> {
    let own: Vec<_> = catalogue.home().resources().iter().map(Arn::as_str).collect();
    (!own.is_empty())
        .then(|| json!({ "Sid": NOT_OWN, "Effect": "Deny", "Action": "*", "Resource": own }))
}

/// The most that the role may do, whatever policies it gets: docs/tiers.md says why it is put like this.
fn boundary(role: &Role<'_>, catalogue: &Catalogue) -> Value {
    let mut allowed: BTreeSet<String> = BTreeSet::from([PROBE_ACTION.to_owned()]);
    for it in role.actions() {
        let service = it.action.service();
        allowed.insert(match service {
            "iam" | "sts" => it.name().to_owned(),
            _ => format!("{service}:*"),
        });
    }
    let mut statements = vec![
        json!({ "Effect": "Allow", "Action": allowed, "Resource": "*" }),
        json!({ "Sid": NO_CREDENTIALS, "Effect": "Deny", "Action": to_credentials(role), "Resource": "*" }),
        json!({
            "Sid": THIS_ACCOUNT,
            "Effect": "Deny",
            "Action": "*",
            "Resource": "*",
            "Condition": {
                "Null": { "aws:ResourceAccount": "false" },
                "StringNotEquals": { "aws:ResourceAccount": role.account },
            },
        }),
    ];
    statements.extend(keep_out(catalogue));
    statements.extend(outside(role, catalogue));
    document(&statements)
}

/// Actions that lead to other credentials, as patterns; of what a scope has, all the others by name.
fn to_credentials(role: &Role<'_>) -> BTreeSet<String> {
    let leased: BTreeSet<_> = role.actions().map(ScopeAction::name).collect();
    let in_iam = leased.iter().any(|it| it.starts_with("iam:"));
    let iam = if in_iam { verbs("iam") } else { BTreeSet::from(["iam:*".to_owned()]) };
    let all = TO_CREDENTIALS.iter().map(ToString::to_string).chain(iam);
    all.flat_map(|pattern| {
        let names: Vec<_> = actions::matching(&pattern).map(|it| it.name).collect();
        if names.iter().any(|it| leased.contains(it)) {
            let rest = names.into_iter().filter(|it| !leased.contains(it));
            rest.map(str::to_owned).collect::<Vec<_>>()
        } else {
            vec![pattern]
        }
    })
    .collect()
}

/// A service's actions by the first word of their names.
fn verbs(service: &str) -> BTreeSet<String> {
    let pattern = format!("{service}:*");
    let names = actions::matching(&pattern).map(|it| it.name);
    let verb = |name: &str| {
        let (_, name) = name.split_once(':')?;
        let end =
            name[1..].find(|it: char| it.is_ascii_uppercase()).map_or(name.len(), |it| it + 1);
        Some(format!("{service}:{}*", &name[..end]))
    };
    names.filter_map(verb).collect()
}

/// Everything outside the role's environment. What is production cannot be named: it is what nothing names. So its roles
/// are denied what is named as something else, and the others all but their own.
fn outside(role: &Role<'_>, catalogue: &Catalogue) -> Option<Value> {
    let (own, environments) = (role.environment(), catalogue.environments());
    let patterns: Vec<_> = environments.patterns(role.account).collect();
    let whole = environments.of_whole(role.account) == Some(own);
    if own == Environment::Production || whole || role.resources().any(Arn::is_any) {
        let others: BTreeSet<_> = patterns
            .into_iter()
            .filter(|(it, environment)| {
                *environment != own && !role.resources().any(|leased| leased.touches(it))
            })
            .map(|(it, _)| it.as_str())
            .collect();
        return (!others.is_empty())
            .then(|| json!({ "Sid": THIS_ENVIRONMENT, "Effect": "Deny", "Action": "*", "Resource": others }));
    }
    // What takes no ARN is on `*`, which is none of these.
    let without_arn = role.actions().filter(|it| !it.action.takes_resources());
    let without_arn: BTreeSet<_> =
        without_arn.map(ScopeAction::name).chain([PROBE_ACTION]).collect();
    let own = patterns.into_iter().filter(|(_, it)| *it == own).map(|(it, _)| it.clone());
    let mut inside: Vec<_> = own.chain(role.resources().cloned()).collect();
    inside.sort();
    let inside: Vec<_> = minimal(inside).iter().map(ToString::to_string).collect();
    Some(
        json!({ "Sid": THIS_ENVIRONMENT, "Effect": "Deny", "NotAction": without_arn, "NotResource": inside }),
    )
}

/// Whether an inline policy of this name is the broker's own doing: it stops sessions.
pub fn is_stop(name: &str) -> bool {
    name == STOP_POLICY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::tests::{SCOPES, load};

    const MINTER: &str = "arn:aws:iam::111122223333:user/minter";

    fn documents(text: &str, role: &str) -> Documents {
        let catalogue = load(text).unwrap();
        let all = Documents::all(&catalogue, MINTER);
        all.into_iter().find(|it| it.role_arn.ends_with(role)).unwrap()
    }

    #[test]
    fn production_is_denied_what_is_named_and_the_others_all_but_their_own() {
        let production = documents(SCOPES, "broker-production").permissions_boundary;
        let statements = production["Statement"].as_array().unwrap();
        assert_eq!(
            statements.last().unwrap(),
            &json!({ "Sid": THIS_ENVIRONMENT, "Effect": "Deny", "Action": "*", "Resource": ["arn:aws:s3:::backup-*", "arn:aws:s3:::staging-*"] })
        );
        let staging = documents(SCOPES, "broker-staging").permissions_boundary;
        assert_eq!(
            staging["Statement"].as_array().unwrap().last().unwrap(),
            &json!({ "Sid": THIS_ENVIRONMENT, "Effect": "Deny", "NotAction": [PROBE_ACTION], "NotResource": ["arn:aws:s3:::staging-*"] })
        );
    }

    #[test]
    fn a_boundary_denies_every_way_to_other_credentials() {
        let boundary = documents(SCOPES, "broker-staging").permissions_boundary;
        assert_eq!(
            boundary["Statement"][1]["Action"],
            json!(["iam:*", "sts:Assume*", "sts:Get*Token"])
        );
        let passing = SCOPES.replace(
            "actions = [\"s3:GetObject\", \"s3:PutObject\"]\nresources = [\"arn:aws:s3:::prod-app/*\"]",
            "actions = [\"iam:PassRole\"]\nresources = [\"arn:aws:iam::111122223333:role/app\"]\npass_role_to = [\"lambda.amazonaws.com\"]",
        )
        .replace(", assurance = \"present\"", "");
        let boundary = documents(&passing, "broker-production").permissions_boundary;
        let denied: Vec<String> =
            serde_json::from_value(boundary["Statement"][1]["Action"].clone()).unwrap();
        assert!(
            denied.contains(&"iam:Create*".to_owned()) && denied.contains(&"iam:Put*".to_owned())
        );
        assert!(!denied.iter().any(|it| it == "iam:*" || it.starts_with("iam:Pass")), "{denied:?}");
        let chars = boundary.to_string().len();
        assert!(chars < crate::check::MANAGED_POLICY_CHARS, "{chars}");
    }

    #[test]
    fn the_trust_policy_names_the_minter_alone_and_an_external_id_only_where_all_scopes_have_it() {
        let trust = documents(SCOPES, "broker-staging").trust_policy;
        assert_eq!(trust["Statement"][0]["Principal"], json!({ "AWS": MINTER }));
        assert_eq!(
            trust["Statement"][0]["Condition"],
            json!({ "StringLike": { "sts:SourceIdentity": "?*" } })
        );
        let with = SCOPES.replace(
            "role = \"broker-staging\"",
            "role = \"broker-staging\"\nexternal_id = \"us\"",
        );
        let trust = documents(&with, "broker-staging").trust_policy;
        assert_eq!(
            trust["Statement"][0]["Condition"]["StringEquals"],
            json!({ "sts:ExternalId": "us" })
        );
    }
}
