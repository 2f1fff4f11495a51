//! Scopes: what may be asked for, and how dangerous that is. Tiers are computed, never declared. Pure.

mod conditions;
pub mod environment;
pub mod tier;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::Duration;

use self::environment::{EnvironmentFile, Environments, Home, check_account};
use self::tier::{Naming, at_least_as_strict, remedy, tier_of};
use crate::actions::{self, Action};
use crate::arn::{Arn, minimal};
use crate::config::Span;
use crate::lease::{ActionClass, Assurance, Environment, Field, Tier};
use crate::statement::{ActionTerms, Condition, Conditions};

/// The window of a signed lease, and the shortest STS session (`API_AssumeRole`, `DurationSeconds`).
pub const SHORTEST_SESSION: Duration = Duration::minutes(15);
/// Role chaining caps sessions at an hour.
const LONGEST_SESSION: Duration = Duration::hours(1);
/// Of each, in one signed request: what a person can read before signing.
const MAX_SIGNED_ITEMS: u16 = 20;
/// Beyond this nothing could fit a session policy; bounds what we look at.
const MAX_ITEMS: u16 = 100;
/// Passing a role to a service lets the service do what the role may.
const PASS_ROLE: &str = "iam:PassRole";

/// `scopes.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopesFile {
    /// Account number to the alias that people know it by.
    accounts: BTreeMap<String, String>,
    #[serde(default)]
    environments: BTreeMap<String, EnvironmentFile>,
    /// Action, wildcards allowed, to the class that it has here. Only stricter ones load.
    #[serde(default)]
    stricter: BTreeMap<String, ActionClass>,
    #[serde(default, rename = "scope")]
    scopes: Vec<toml::Spanned<ScopeFile>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeFile {
    name: String,
    description: String,
    account: String,
    /// Where it may be used; credentials are delivered for the first.
    regions: Vec<String>,
    /// Name or path and name of the role in that account.
    role: String,
    #[serde(default)]
    external_id: Option<String>,
    /// IAM actions, wildcards allowed.
    actions: Vec<String>,
    /// ARNs, wildcards allowed. Left out where no action takes one.
    #[serde(default)]
    resources: Vec<String>,
    /// Calls must come over TLS.
    #[serde(default)]
    secure_transport: bool,
    /// CIDR blocks that calls must come from, unless an AWS service makes them in the holder's name.
    #[serde(default)]
    source_networks: Vec<String>,
    /// Services that `iam:PassRole` may pass its role to, as principals.
    #[serde(default)]
    pass_role_to: Vec<String>,
    /// Further IAM conditions, on everything that the scope allows.
    #[serde(default)]
    conditions: Vec<Condition>,
    /// What a request must say, beyond what its tier demands.
    #[serde(default)]
    require: Vec<Field>,
    /// The longest window of a lease.
    #[serde(default)]
    max_ttl: Option<Span>,
    /// The most actions that one request may name.
    #[serde(default)]
    max_actions: Option<u16>,
    /// The most ARNs that one request may name.
    #[serde(default)]
    max_resources: Option<u16>,
    #[serde(default)]
    signers: Option<SignersFile>,
    /// At least this tier. A lower one than computed does not load.
    #[serde(default)]
    tier: Option<Tier>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignersFile {
    groups: Vec<String>,
    #[serde(default = "one")]
    count: u16,
    #[serde(default)]
    assurance: Option<Assurance>,
}

fn one() -> u16 {
    1
}

#[derive(Debug)]
pub struct Catalogue {
    scopes: BTreeMap<String, Scope>,
    environments: Environments,
    home: Home,
}

#[derive(Clone, Debug)]
pub struct Scope {
    pub name: String,
    pub description: String,
    pub account: String,
    pub account_alias: String,
    pub role_arn: String,
    pub external_id: Option<String>,
    /// Expanded, sorted by name.
    pub actions: Vec<ScopeAction>,
    /// Sorted. Empty only where no action takes an ARN.
    pub resources: Vec<Arn>,
    /// Carried into every session policy. `regions` has at least one; credentials are delivered for the first.
    pub conditions: Conditions,
    /// Sorted.
    pub require: Vec<Field>,
    pub environment: Environment,
    pub tier: Tier,
    pub tier_because: String,
    pub max_ttl: Duration,
    pub max_actions: u16,
    pub max_resources: u16,
    /// `None` exactly when the tier is unsigned.
    pub signers: Option<SignerRule>,
}

/// An action as a scope has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeAction {
    pub action: &'static Action,
    /// Its class here: the table's, or a stricter one of this installation.
    pub class: ActionClass,
    /// Spelled out in the scope, rather than by a wildcard.
    pub literal: bool,
    /// What it alone would make of the scope.
    pub tier: Tier,
}

impl ScopeAction {
    pub fn name(&self) -> &'static str {
        self.action.name
    }

    /// As a statement has it.
    pub fn terms(&self) -> ActionTerms {
        ActionTerms {
            action: self.action.name.to_owned(),
            class: self.class,
            any_resource: !self.action.takes_resources(),
            any_region: self.action.any_region,
            any_account: !self.action.resource_account,
        }
    }
}

/// Who has to sign: `count` distinct people of any of `groups`, each with a key of at least `assurance`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignerRule {
    pub groups: Vec<String>,
    pub count: u16,
    pub assurance: Assurance,
}

/// What scopes are built against.
struct Ground<'a> {
    accounts: &'a BTreeMap<String, String>,
    environments: &'a Environments,
    stricter: &'a BTreeMap<&'static str, ActionClass>,
    home: &'a Home,
    software_keys: bool,
}

impl Ground<'_> {
    /// Its class in this installation.
    fn class_of(&self, action: &Action) -> ActionClass {
        self.stricter.get(action.name).copied().unwrap_or(action.class)
    }
}

impl Catalogue {
    /// Builds the catalogue, or says of each scope that does not load where it is and why. `text` is the file.
    pub fn build(
        file: ScopesFile,
        text: &str,
        home: Home,
        software_keys: bool,
    ) -> Result<Self, String> {
        for account in file.accounts.keys() {
            check_account(account).map_err(|error| format!("[accounts]: {error}"))?;
        }
        let environments = Environments::build(file.environments)?;
        let stricter = stricter_classes(&file.stricter)?;
        let roles = file.scopes.iter().filter_map(|it| {
            let it = it.as_ref();
            Arn::parse(&role_arn(&it.account, &it.role)).ok()
        });
        let home = home.with_roles(roles);
        let ground = Ground {
            accounts: &file.accounts,
            environments: &environments,
            stricter: &stricter,
            home: &home,
            software_keys,
        };
        let mut scopes = BTreeMap::new();
        let mut wrong = Vec::new();
        for spanned in file.scopes {
            let line = text[..spanned.span().start].matches('\n').count() + 1;
            let file = spanned.into_inner();
            let name = file.name.clone();
            match Scope::build(file, &ground) {
                Ok(scope) => {
                    if scopes.insert(name.clone(), scope).is_some() {
                        wrong.push(format!(
                            "line {line}: scope {name:?} is there twice; give one another name"
                        ));
                    }
                }
                Err(why) => {
                    wrong.push(format!("line {line}: scope {name:?} does not load: {why}"));
                }
            }
        }
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        Ok(Self { scopes, environments, home })
    }

    pub fn scope(&self, name: &str) -> Option<&Scope> {
        self.scopes.get(name)
    }

    /// All scopes, by name.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.scopes.values()
    }

    /// Which accounts and ARNs are which environment.
    pub fn environments(&self) -> &Environments {
        &self.environments
    }

    /// What no scope reaches: the broker's own, with the roles that leases are minted from.
    pub fn home(&self) -> &Home {
        &self.home
    }
}

impl Scope {
    fn build(file: ScopeFile, ground: &Ground<'_>) -> Result<Self, String> {
        if !is_name(&file.name) {
            return Err("a name is lower-case letters, digits and `-`, at most 64".into());
        }
        check_account(&file.account)?;
        let account_alias = ground.accounts.get(&file.account).cloned().ok_or_else(|| {
            format!("account {:?} has no alias; add it to [accounts]", file.account)
        })?;
        let role_arn = check_role(&file)?;
        let conditions = conditions::build(&file)?;
        let resources = resources(&file)?;
        let named = expand(&file.actions, &resources)?;
        let environment = environment(&named, &resources, &file.account, ground.environments);
        let reach = check_reach(&file, &named, &resources, ground);
        let judged = judge(&named, &resources, &file, environment, ground);
        let mut actions = match (reach, judged) {
            (Ok(()), judged) => judged?,
            (Err(reach), Ok(_)) => return Err(reach),
            (Err(reach), Err(danger)) => return Err(format!("{reach}; {danger}")),
        };
        actions.sort_by_key(ScopeAction::name);
        let decisive = actions.iter().rev().max_by_key(|it| it.tier).expect("at least one action");
        let (mut tier, mut tier_because) =
            (decisive.tier, format!("{} is {} in {environment}", decisive.name(), decisive.class));
        if let Some(declared) = file.tier {
            if declared < tier {
                return Err(format!("it declares tier {declared}, but is {tier}: {tier_because}"));
            }
            if tier < declared {
                (tier, tier_because) = (declared, format!("declared {declared} in scopes.toml"));
            }
        }
        let signers = signer_rule(file.signers, tier, ground.software_keys)?;
        let max_ttl = max_ttl(file.max_ttl, tier, environment)?;
        let most = if tier.is_unsigned() { MAX_ITEMS } else { MAX_SIGNED_ITEMS };
        let limit = |what, given: Option<u16>| match given.unwrap_or(most) {
            given if (1..=most).contains(&given) => Ok(given),
            _ => Err(format!("{what} must be between 1 and {most} for {tier}")),
        };
        let mut require = file.require;
        require.sort_unstable();
        require.dedup();
        Ok(Self {
            name: file.name,
            description: file.description,
            account: file.account,
            account_alias,
            role_arn,
            external_id: file.external_id,
            actions,
            resources,
            conditions,
            require,
            environment,
            tier,
            tier_because,
            max_ttl,
            max_actions: limit("max_actions", file.max_actions)?,
            max_resources: limit("max_resources", file.max_resources)?,
            signers,
        })
    }

    /// The scope's action of that name, in any case.
    pub fn action(&self, name: &str) -> Option<&ScopeAction> {
        let known = actions::find(name)?;
        let at = self.actions.binary_search_by_key(&known.name, ScopeAction::name).ok()?;
        Some(&self.actions[at])
    }

    /// Where its credentials are delivered for.
    pub fn region(&self) -> &str {
        &self.conditions.regions[0]
    }

    /// How long one STS session lasts under a lease whose window is `window`.
    pub fn session_length(&self, window: Duration) -> Duration {
        window.clamp(SHORTEST_SESSION, LONGEST_SESSION)
    }
}

/// The classes that this installation gives to actions, each at least as strict as the table's.
fn stricter_classes(
    file: &BTreeMap<String, ActionClass>,
) -> Result<BTreeMap<&'static str, ActionClass>, String> {
    let mut classes = BTreeMap::new();
    for (pattern, class) in file {
        if actions::matching(pattern).next().is_none() {
            return Err(format!("[stricter]: {pattern:?} is not an action we know"));
        }
        for action in actions::matching(pattern) {
            if !at_least_as_strict(*class, action.class) {
                return Err(format!(
                    "[stricter]: {} is {}, and {class} would be less strict somewhere; leave it out",
                    action.name, action.class
                ));
            }
            if classes.insert(action.name, *class).is_some_and(|it| it != *class) {
                return Err(format!("[stricter]: {} has two classes; leave one", action.name));
            }
        }
    }
    Ok(classes)
}

/// The role's ARN. Refuses what STS would, when somebody has signed already (`API_CreateRole`, `API_AssumeRole`).
fn check_role(file: &ScopeFile) -> Result<String, String> {
    let role_arn = role_arn(&file.account, &file.role);
    let name = file.role.rsplit('/').next().unwrap_or_default();
    let letter = |it: char| it.is_ascii_alphanumeric() || "_+=,.@-/".contains(it);
    let good = (1..=64).contains(&name.len())
        && file.role.len() <= 512
        && file.role.chars().all(letter)
        && Arn::parse(&role_arn).is_ok();
    if !good {
        return Err(format!("role {:?} is not the name of one role", file.role));
    }
    let letter = |it: char| it.is_ascii_alphanumeric() || "_+=,.@:/-".contains(it);
    match &file.external_id {
        Some(it) if !(2..=1224).contains(&it.len()) || !it.chars().all(letter) => {
            Err("external_id: 2 to 1,224 letters, digits and `_+=,.@:/-`".into())
        }
        _ => Ok(role_arn),
    }
}

fn role_arn(account: &str, role: &str) -> String {
    format!("arn:aws:iam::{account}:role/{role}")
}

fn resources(file: &ScopeFile) -> Result<Vec<Arn>, String> {
    let mut resources = file
        .resources
        .iter()
        .map(|it| Arn::parse(it).map_err(|error| error.to_string()))
        .collect::<Result<Vec<_>, _>>()?;
    resources.sort();
    let resources = minimal(resources);
    for arn in &resources {
        if !arn.is_any() && !arn.account().is_empty() && arn.account() != file.account {
            return Err(format!(
                "{arn} is not in account {} alone, where the role is",
                file.account
            ));
        }
        let regions = &file.regions;
        let region = arn.region();
        if !arn.is_any() && !region.is_empty() && !regions.iter().any(|it| arn.is_in_region(it)) {
            return Err(format!(
                "{arn} is in none of the scope's regions ({})",
                regions.join(", ")
            ));
        }
    }
    Ok(resources)
}

/// The actions of a scope, each with whether it was spelled out. A wildcard stands for what AWS can grant on the
/// scope's ARNs; what it grants on `*` only is named literally, or by a scope that says `*`.
fn expand(texts: &[String], resources: &[Arn]) -> Result<Vec<(&'static Action, bool)>, String> {
    let mut named: BTreeMap<&'static str, (&'static Action, bool)> = BTreeMap::new();
    for text in texts {
        if !text.contains(['*', '?']) {
            let action = actions::find(text).ok_or_else(|| {
                format!("{text:?} is not an action we know; see `docs/actions.md` for what we know")
            })?;
            if action.takes_resources() && !action.is_grantable_on(resources) {
                return Err(format!(
                    "AWS cannot grant {} on any of its resources; it takes {}",
                    action.name,
                    action.takes()
                ));
            }
            named.insert(action.name, (action, true));
            continue;
        }
        let mut found = false;
        for action in actions::matching(text).filter(|it| it.is_grantable_on(resources)) {
            found = true;
            named.entry(action.name).or_insert((action, false));
        }
        if !found {
            return Err(format!(
                "{text:?} stands for nothing that AWS can grant on the scope's resources; name ARNs that fit, or `*`"
            ));
        }
    }
    if named.is_empty() {
        return Err("it has no actions; name at least one".into());
    }
    Ok(named.into_values().collect())
}

/// Refuses what no tier could allow: the broker's own, what nothing binds to the account, and what nothing takes.
fn check_reach(
    file: &ScopeFile,
    named: &[(&'static Action, bool)],
    resources: &[Arn],
    ground: &Ground<'_>,
) -> Result<(), String> {
    let account = &file.account;
    if ground.home.owns_account(account) {
        return Err(format!("account {account} is the broker's own, which no scope reaches"));
    }
    for arn in resources {
        let acts_on = |service: &str| named.iter().any(|(it, _)| it.acts_on(service));
        if let Some(own) = ground.home.touched_by(arn, account, acts_on) {
            let by = named.iter().find(|(it, _)| it.acts_on(own.service()));
            let by = by.map(|(it, _)| format!("{} on ", it.name)).unwrap_or_default();
            return Err(format!(
                "{by}{arn} may be about {own}, the broker's own, which no scope reaches"
            ));
        }
        if !named.iter().any(|(action, _)| action.fits(arn)) {
            return Err(format!("none of its actions can be granted on {arn}; leave it out"));
        }
    }
    for (action, _) in named {
        if !action.takes_resources() {
            let class = ground.class_of(action);
            if class != ActionClass::Read
                && let Some(own) = ground.home.in_account(action.service(), account)
            {
                return Err(format!(
                    "{} takes no ARN, so it may be about {own}, the broker's own, which no scope reaches",
                    action.name
                ));
            }
        } else if !action.resource_account {
            let bound = |it: &&Arn| !action.fits(it) || it.is_exact() || it.account() == account;
            if let Some(loose) = resources.iter().find(|it| !bound(it)) {
                return Err(format!(
                    "nothing would bind {} on {loose} to account {account}: AWS does not say whose it is; name exact ARNs",
                    action.name
                ));
            }
        }
        if action.name == PASS_ROLE && file.pass_role_to.is_empty() {
            return Err(format!(
                "{PASS_ROLE} needs `pass_role_to = [\"SERVICE.amazonaws.com\"]`: the services that it may pass its role to"
            ));
        }
    }
    if !file.pass_role_to.is_empty() && !named.iter().any(|(it, _)| it.name == PASS_ROLE) {
        return Err(format!(
            "pass_role_to is for {PASS_ROLE}, which it does not have; leave it out"
        ));
    }
    Ok(())
}

/// The strictest environment that the scope reaches.
fn environment(
    named: &[(&'static Action, bool)],
    resources: &[Arn],
    account: &str,
    environments: &Environments,
) -> Environment {
    let by_arn = resources.iter().map(|it| environments.of(it, account));
    let by_action = named
        .iter()
        .filter(|(it, _)| !it.takes_resources())
        .map(|(it, _)| environments.of_account(it.service(), account));
    by_arn.chain(by_action).max().unwrap_or(Environment::Production)
}

/// Each action's tier in `environment`; or all those that cannot be leased there, and what to do about them.
fn judge(
    named: &[(&'static Action, bool)],
    resources: &[Arn],
    file: &ScopeFile,
    environment: Environment,
    ground: &Ground<'_>,
) -> Result<Vec<ScopeAction>, String> {
    let mut judged = Vec::with_capacity(named.len());
    let mut cannot: BTreeMap<ActionClass, Vec<&str>> = BTreeMap::new();
    for (action, literal) in named {
        let class = ground.class_of(action);
        let mut on = resources.iter().filter(|it| action.fits(it)).peekable();
        let naming = Naming {
            literal: *literal,
            exact: on.peek().is_some() && on.all(Arn::is_exact),
            passes_role: action.name == PASS_ROLE && !file.pass_role_to.is_empty(),
        };
        match tier_of(class, environment, naming) {
            Some(tier) => judged.push(ScopeAction { action, class, literal: *literal, tier }),
            None => cannot.entry(class).or_default().push(action.name),
        }
    }
    if cannot.is_empty() {
        return Ok(judged);
    }
    let reasons = cannot.iter().map(|(class, names)| {
        let verb = if names.len() == 1 { "is" } else { "are" };
        format!(
            "{} {verb} {class}, which cannot be leased so in {environment} ({})",
            names.join(", "),
            remedy(*class, environment)
        )
    });
    Err(reasons.collect::<Vec<_>>().join("; "))
}

/// What the tier demands at least, and what the scope adds to it.
fn signer_rule(
    file: Option<SignersFile>,
    tier: Tier,
    software_keys: bool,
) -> Result<Option<SignerRule>, String> {
    let floor = match tier {
        Tier::ReadOnly | Tier::StagingWrite => {
            return match file {
                None => Ok(None),
                Some(_) => Err(format!(
                    "{tier} is issued unsigned; declare a higher tier to have it signed"
                )),
            };
        }
        Tier::StagingSensitive | Tier::ProductionWrite => Assurance::Present,
        Tier::Destructive => Assurance::Verified,
    };
    let file = file
        .ok_or_else(|| format!("{tier} needs signers; add `signers = {{ groups = [\"…\"] }}`"))?;
    if file.groups.is_empty() || file.count == 0 {
        return Err("signers needs at least one group and a count of at least one".into());
    }
    let default =
        if tier == Tier::StagingSensitive { Assurance::Present } else { Assurance::Verified };
    let assurance = file.assurance.unwrap_or(default);
    if assurance < floor {
        return Err(format!("{tier} needs keys of at least assurance {floor}, not {assurance}"));
    }
    let assurance = if software_keys { Assurance::Software } else { assurance };
    Ok(Some(SignerRule { groups: file.groups, count: file.count, assurance }))
}

fn longest_window(tier: Tier, environment: Environment) -> Duration {
    match (tier, environment) {
        (Tier::ProductionWrite | Tier::Destructive, _) => SHORTEST_SESSION,
        (_, Environment::Production | Environment::Backup) => Duration::hours(1),
        (_, Environment::Development | Environment::Staging) => Duration::hours(8),
    }
}

/// How long a lease's window may be.
fn max_ttl(given: Option<Span>, tier: Tier, environment: Environment) -> Result<Duration, String> {
    let longest = longest_window(tier, environment);
    let max_ttl = given.map_or(longest, |it| it.0);
    if max_ttl < SHORTEST_SESSION || longest < max_ttl {
        return Err(format!(
            "max_ttl must be between {} and {} for {tier} in {environment}",
            Span(SHORTEST_SESSION),
            Span(longest)
        ));
    }
    Ok(max_ttl)
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::environment::HomeFile;
    use super::*;

    /// The broker's own.
    const HOME: &str = r#"
accounts = ["999999999999"]
resources = ["arn:aws:s3:::broker-log*", "arn:aws:iam::111122223333:role/broker", "arn:aws:rds:us-east-1:111122223333:db:broker"]
"#;

    pub(crate) const SCOPES: &str = r#"
[accounts]
"111122223333" = "acme"

[environments.staging]
resources = ["arn:aws:s3:::staging-*"]

[environments.backup]
resources = ["arn:aws:s3:::backup-*"]

[[scope]]
name = "staging-rw"
description = "Work on staging data"
account = "111122223333"
regions = ["us-east-1"]
role = "broker-staging"
actions = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]
resources = ["arn:aws:s3:::staging-app", "arn:aws:s3:::staging-app/*"]
max_ttl = "8h"

[[scope]]
name = "prod-rw"
description = "Write production data"
account = "111122223333"
regions = ["us-east-1"]
role = "broker-production"
actions = ["s3:GetObject", "s3:PutObject"]
resources = ["arn:aws:s3:::prod-app/*"]
signers = { groups = ["ops"], assurance = "present" }
"#;

    pub(crate) fn load(text: &str) -> Result<Catalogue, String> {
        let home: HomeFile = toml::from_str(HOME).unwrap();
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        Catalogue::build(file, text, Home::build(&home, &[]).unwrap(), false)
    }

    fn scope(actions: &str, resources: &str, more: &str) -> Result<Scope, String> {
        let (head, _) = SCOPES.split_once("[[scope]]").unwrap();
        let text = format!(
            "{head}[[scope]]\nname = \"s\"\ndescription = \"\"\naccount = \"111122223333\"\nregions = [\"us-east-1\"]\nrole = \"r\"\nactions = {actions}\nresources = {resources}\n{more}\n"
        );
        load(&text).map(|it| it.scope("s").unwrap().clone())
    }

    #[test]
    fn the_tier_follows_from_what_is_reached_and_done() {
        let catalogue = load(SCOPES).unwrap();
        assert_eq!(catalogue.scope("staging-rw").unwrap().tier, Tier::StagingWrite);
        let production = catalogue.scope("prod-rw").unwrap();
        assert_eq!(
            (production.environment, production.tier),
            (Environment::Production, Tier::ProductionWrite)
        );
        assert_eq!(production.tier_because, "s3:GetObject is data-read in production");
        assert_eq!(production.signers.as_ref().unwrap().assurance, Assurance::Present);
    }

    #[test]
    fn what_no_environment_covers_is_production() {
        let sign = "signers = { groups = [\"ops\"] }";
        for resource in ["arn:aws:s3:::other/*", "arn:aws:s3:::ba*", "arn:aws:s3:::stag*"] {
            let scope = scope("[\"s3:PutObject\"]", &format!("[\"{resource}\"]"), sign).unwrap();
            assert!(
                Environment::Production <= scope.environment,
                "{resource} is {}",
                scope.environment
            );
        }
        // `ba*` reaches the backups too, and the strictest counts.
        assert_eq!(
            scope("[\"s3:PutObject\"]", "[\"arn:aws:s3:::ba*\"]", sign).unwrap().tier,
            Tier::Destructive
        );
    }

    #[test]
    fn of_an_account_and_of_patterns_the_strictest_counts() {
        let environments = |text: &str| Environments::build(toml::from_str(text).unwrap()).unwrap();
        let all = environments(
            "[staging]\naccounts = [\"111111111111\"]\nresources = [\"arn:aws:s3:::staging-*\"]\n\
             [production]\nresources = [\"arn:aws:s3:::ledger/*\"]\n[backup]\naccounts = [\"222222222222\"]\n",
        );
        let of = |arn: &str, account: &str| all.of(&Arn::parse(arn).unwrap(), account);
        assert_eq!(of("arn:aws:s3:::staging-x/*", "222222222222"), Environment::Backup);
        assert_eq!(of("arn:aws:s3:::ledger", "111111111111"), Environment::Production);
        assert_eq!(of("arn:aws:s3:::anything", "111111111111"), Environment::Staging);
        assert_eq!(of("arn:aws:s3:::staging-x/*", "333333333333"), Environment::Staging);
        assert_eq!(of("arn:aws:s3:::anything", "333333333333"), Environment::Production);
    }

    #[test]
    fn a_pattern_of_buckets_does_not_cover_objects_of_other_buckets() {
        let all = Environments::build(
            toml::from_str("[staging]\nresources = [\"arn:aws:s3:::acme-*-staging\", \"arn:aws:s3:::acme-*-staging/*\"]\n").unwrap(),
        )
        .unwrap();
        let of = |arn: &str| all.of(&Arn::parse(arn).unwrap(), "111122223333");
        assert_eq!(of("arn:aws:s3:::acme-app-staging/*"), Environment::Staging);
        assert_eq!(of("arn:aws:s3:::acme-app-staging"), Environment::Staging);
        // AWS would let it through to `acme-prod`, whose objects may have any name.
        assert_eq!(of("arn:aws:s3:::acme-prod/x-staging/y"), Environment::Production);
        assert_eq!(of("arn:aws:s3:::acme-*-staging/*"), Environment::Production);
    }

    #[test]
    fn what_is_part_of_the_brokers_own_is_the_brokers_own() {
        let (head, _) = SCOPES.split_once("[[scope]]").unwrap();
        let head = head.replace(
            "[environments.staging]\n",
            "[environments.staging]\naccounts = [\"111122223333\"]\n",
        );
        for (own, action, resource) in [
            (
                "logs:us-east-1:111122223333:log-group:/broker",
                "logs:DeleteLogStream",
                "logs:us-east-1:111122223333:log-group:/broker:log-stream:x",
            ),
            (
                "logs:us-east-1:111122223333:log-group:/broker:*",
                "logs:DeleteLogGroup",
                "logs:us-east-1:111122223333:log-group:/broker",
            ),
            (
                "dynamodb:us-east-1:111122223333:table/broker",
                "dynamodb:Query",
                "dynamodb:us-east-1:111122223333:table/broker/index/x",
            ),
            (
                "s3:::broker-log",
                "s3:DeleteObject",
                "s3:us-east-1:111122223333:accesspoint/any/object/x",
            ),
        ] {
            let home = Home::build(
                &toml::from_str(&format!("resources = [\"arn:aws:{own}\"]")).unwrap(),
                &[],
            )
            .unwrap();
            let text = format!(
                "{head}[[scope]]\nname = \"s\"\ndescription = \"\"\naccount = \"111122223333\"\nregions = [\"us-east-1\"]\nrole = \"r\"\nactions = [\"{action}\"]\nresources = [\"arn:aws:{resource}\"]\nsigners = {{ groups = [\"ops\"] }}\n"
            );
            let why =
                Catalogue::build(toml::from_str(&text).unwrap(), &text, home, false).unwrap_err();
            assert!(why.contains("the broker's own"), "{own}: {why}");
        }
    }

    #[test]
    fn a_pattern_that_protects_nothing_does_not_load() {
        let home = |arn: &str| {
            let file = toml::from_str(&format!("resources = [\"arn:aws:{arn}\"]")).unwrap();
            Home::build(&file, &[]).map(|_| ())
        };
        for good in [
            "s3:::broker-*",
            "rds:*:111122223333:*:broker*",
            "iam::111122223333:role/broker",
            "kms:us-east-1:111122223333:key/*",
            "logs:us-east-1:111122223333:log-group:/broker:*",
            "ec2:us-east-1:111122223333:instance/i-0",
        ] {
            assert_eq!(home(good), Ok(()), "{good}");
        }
        for wrong in [
            "s3:us-east-1:111122223333:broker-log",
            "iam:us-east-1:111122223333:role/broker",
            "dynamodb:us-east-1::table/broker",
            "dynamodb:us-east-1:111122223333:broker",
            "dynamo:us-east-1:111122223333:table/broker",
        ] {
            let why = home(wrong).unwrap_err();
            assert!(why.contains("no resource that we know"), "{wrong}: {why}");
        }
    }

    #[test]
    fn a_lower_tier_than_computed_does_not_load_and_a_higher_one_counts() {
        let declare = |tier: &str| {
            scope(
                "[\"s3:GetObject\"]",
                "[\"arn:aws:s3:::prod-app/*\"]",
                &format!("tier = \"{tier}\"\nsigners = {{ groups = [\"ops\"] }}"),
            )
        };
        assert!(
            declare("staging-write")
                .unwrap_err()
                .contains("but is production-write: s3:GetObject is data-read")
        );
        assert_eq!(declare("destructive").unwrap().tier, Tier::Destructive);
    }

    #[test]
    fn a_scope_that_cannot_be_judged_does_not_load() {
        let staging = "[\"arn:aws:s3:::staging-app/*\"]";
        let buckets = "[\"arn:aws:s3:::staging-*\"]";
        let why = |actions: &str, resources: &str, more: &str| {
            scope(actions, resources, more).unwrap_err()
        };
        assert!(why("[\"s3:MadeUp\"]", staging, "").contains("not an action we know"));
        assert!(why("[\"s3:Delete*\"]", staging, "").contains("name it literally"));
        assert!(why("[]", staging, "").contains("no actions"));
        assert!(why("[\"s3:GetObject\"]", "[]", "").contains("it takes"));
        assert!(why("[\"s3:PutBucketPolicy\"]", buckets, "").contains("cannot be leased"));
        assert!(why("[\"s3:PutLifecycleConfiguration\"]", buckets, "").contains("no wildcards"));
        assert!(
            why("[\"s3:PutObject\"]", "[\"arn:aws:s3:::prod-app/*\"]", "")
                .contains("needs signers")
        );
        let nobody = "signers = { groups = [] }";
        assert!(
            why("[\"s3:PutObject\"]", "[\"arn:aws:s3:::prod-app/*\"]", nobody)
                .contains("at least one group")
        );
        let weak = "signers = { groups = [\"ops\"], assurance = \"software\" }";
        assert!(
            why("[\"s3:PutObject\"]", "[\"arn:aws:s3:::prod-app/*\"]", weak)
                .contains("at least assurance present")
        );
        let weak = "signers = { groups = [\"ops\"], assurance = \"present\" }";
        assert!(
            why("[\"s3:DeleteObject\"]", "[\"arn:aws:s3:::prod-app/*\"]", weak)
                .contains("at least assurance verified")
        );
    }

    fn why(actions: &str, resources: &str, more: &str) -> String {
        scope(actions, resources, more).map(|it| it.tier).unwrap_err()
    }

    #[test]
    fn a_wildcard_stands_for_what_aws_can_grant_on_the_scopes_arns() {
        let bucket = "[\"arn:aws:s3:::staging-app\"]";
        let scope = scope("[\"s3:List*\", \"S3:getbucketlocation\"]", bucket, "").unwrap();
        let names: Vec<_> = scope.actions.iter().map(ScopeAction::name).collect();
        assert!(names.contains(&"s3:ListBucket") && names.contains(&"s3:GetBucketLocation"));
        // Of objects and of everything: neither can be granted on a bucket.
        assert!(!names.contains(&"s3:ListMultipartUploadParts"));
        assert!(!names.contains(&"s3:ListAllMyBuckets"));
        let literal: Vec<_> = scope.actions.iter().filter(|it| it.literal).collect();
        assert_eq!(literal.len(), 1);
        assert!(why("[\"s4:*\"]", bucket, "").contains("stands for nothing"));
        assert!(why("[\"s3:GetObject\"]", bucket, "").contains("it takes"));
        assert!(
            why(
                "[\"s3:ListBucket\"]",
                "[\"arn:aws:s3:::staging-app\", \"arn:aws:s3:::staging-app/*\"]",
                ""
            )
            .contains("none of its actions can be granted on arn:aws:s3:::staging-app/*")
        );
    }

    #[test]
    fn a_wildcard_over_everything_names_every_action_that_keeps_it_from_loading() {
        let (head, _) = SCOPES.split_once("[[scope]]").unwrap();
        let text = head
            .replace(
                "[environments.staging]\n",
                "[environments.staging]\naccounts = [\"222222222222\"]\n",
            )
            .replace("acme\"", "acme\"\n\"222222222222\" = \"lab\"")
            + "[[scope]]\nname = \"s\"\ndescription = \"\"\naccount = \"222222222222\"\nregions = [\"us-east-1\"]\nrole = \"r\"\nactions = [\"*:Get*\"]\nresources = [\"arn:aws:secretsmanager:us-east-1:222222222222:secret:*\", \"arn:aws:ssm:us-east-1:222222222222:parameter/*\"]\n";
        let why = load(&text).unwrap_err();
        for action in [
            "secretsmanager:GetSecretValue",
            "ssm:GetParameter",
            "ssm:GetParameters",
            "ssm:GetParametersByPath",
        ] {
            assert!(why.contains(action), "{action} in {why}");
        }
        assert!(why.contains("credential") && !why.contains("secretsmanager:GetResourcePolicy"));
    }

    #[test]
    fn describing_everything_is_not_reading_only_and_each_reason_is_said() {
        let why = why("[\"*:Describe*\"]", "[\"*\"]", "");
        for named in [
            "cognito-idp:DescribeUserPoolClient",
            "storagegateway:DescribeChapCredentials",
            "backup:DescribeRecoveryPoint on * may be about",
        ] {
            assert!(why.contains(named), "{named} in {why}");
        }
        assert!(!why.contains("ec2:DescribeInstances,"), "it reads");
        let only = scope("[\"sqs:*Attributes\", \"sqs:List*\"]", "[\"*\"]", "").unwrap_err();
        assert!(only.contains("sqs:SetQueueAttributes is privesc"), "{only}");
    }

    #[test]
    fn the_brokers_own_is_out_of_reach() {
        let sign = "signers = { groups = [\"ops\"] }";
        for (actions, resources, own) in [
            ("s3:GetObject", "arn:aws:s3:::broker-log/*", "broker-log"),
            ("s3:GetObject", "arn:aws:s3:::*", "broker-log"),
            ("s3:ListBucket", "arn:aws:s3:::broker-l?g-2", "broker-log"),
            ("iam:GetRole", "arn:aws:iam::111122223333:role/broker", "role/broker"),
            ("iam:GetRole", "arn:aws:iam::111122223333:role/*", "role/"),
            // The role that this very scope is minted from.
            ("iam:GetRole", "arn:aws:iam::111122223333:role/r", "role/r"),
            ("rds:DescribeDBInstances", "arn:aws:rds:us-east-1:111122223333:db:*", "db:broker"),
            ("s3:ListBucket", "*", "broker-log"),
            ("iam:GetRole", "*", "role/broker"),
            ("backup:DescribeRecoveryPoint", "*", "the broker's own"),
        ] {
            let why = why(&format!("[\"{actions}\"]"), &format!("[\"{resources}\"]"), sign);
            assert!(why.contains("the broker's own") && why.contains(own), "{resources}: {why}");
        }
        // What takes nothing of the kind is not about it.
        assert!(scope("[\"sqs:GetQueueAttributes\"]", "[\"*\"]", "").is_ok());
        let text = SCOPES.replace("111122223333", "999999999999");
        assert!(load(&text).unwrap_err().contains("is the broker's own"));
    }

    #[test]
    fn what_takes_no_arn_reaches_all_of_its_account() {
        let scope = scope("[\"s3:ListAllMyBuckets\"]", "[]", "").unwrap();
        assert_eq!((scope.environment, scope.tier), (Environment::Backup, Tier::ReadOnly));
        let why = why("[\"s3:PutAccountPublicAccessBlock\"]", "[]", "");
        assert!(why.contains("takes no ARN") && why.contains("broker-log"), "{why}");
    }

    #[test]
    fn what_nothing_binds_to_the_account_needs_exact_arns() {
        let sign = "signers = { groups = [\"ops\"] }";
        let why =
            why("[\"ebs:GetSnapshotBlock\"]", "[\"arn:aws:ec2:us-east-1::snapshot/*\"]", sign);
        assert!(why.contains("nothing would bind ebs:GetSnapshotBlock"), "{why}");
    }

    #[test]
    fn an_installation_can_only_be_stricter() {
        let with = |line: &str| load(&format!("[stricter]\n{line}\n{SCOPES}"));
        let scopes = with("\"s3:PutObject\" = \"destructive\"").unwrap_err();
        assert!(
            scopes.contains("destructive needs keys of at least assurance verified"),
            "{scopes}"
        );
        let looser = with("\"s3:DeleteObject\" = \"write\"").unwrap_err();
        assert!(looser.contains("would be less strict"), "{looser}");
        assert!(with("\"s3:Nothing\" = \"write\"").unwrap_err().contains("not an action we know"));
        let twice = with("\"s3:PutObject\" = \"destructive\"\n\"s3:PutObjec?\" = \"tamper\"");
        assert!(twice.unwrap_err().contains("two classes"));
    }

    #[test]
    fn a_role_is_passed_to_named_services_only() {
        let role = "[\"arn:aws:iam::111122223333:role/worker\"]";
        let sign = "signers = { groups = [\"ops\"] }";
        let services = "pass_role_to = [\"lambda.amazonaws.com\"]";
        let pass = "[\"iam:PassRole\"]";
        assert!(why(pass, role, sign).contains("pass_role_to"));
        let scope = scope(pass, role, &format!("{sign}\n{services}")).unwrap();
        assert_eq!(scope.tier, Tier::Destructive);
        assert_eq!(scope.conditions.pass_role_to, ["lambda.amazonaws.com"]);
        let wide =
            why(pass, "[\"arn:aws:iam::111122223333:role/work*\"]", &format!("{sign}\n{services}"));
        assert!(wide.contains("iam:PassRole is privesc"), "{wide}");
        let other =
            why("[\"iam:CreateAccessKey\"]", "[\"arn:aws:iam::111122223333:user/x\"]", sign);
        assert!(other.contains("no scope may have it"), "{other}");
        assert!(
            why("[\"s3:ListBucket\"]", "[\"arn:aws:s3:::staging-app\"]", services)
                .contains("leave it out")
        );
    }

    #[test]
    fn a_condition_that_would_not_do_what_it_seems_to_does_not_load() {
        let with = |more: &str| {
            scope("[\"s3:ListBucket\"]", "[\"arn:aws:s3:::staging-app\"]", more)
                .map(|it| it.conditions)
        };
        let one = |operator: &str, key: &str, value: &str| {
            with(&format!(
                "conditions = [{{ operator = \"{operator}\", key = \"{key}\", values = [{value}] }}]"
            ))
        };
        assert_eq!(one("StringEquals", "aws:ResourceTag/team", "\"a\"").unwrap().more.len(), 1);
        for (operator, key, value) in [
            ("StringIs", "aws:ResourceTag/team", "\"a\""),
            ("ForAllValues:StringEquals", "aws:TagKeys", "\"a\""),
            ("StringEquals", "aws:ResourceAccount", "\"111122223333\""),
            ("DateLessThan", "AWS:CurrentTime", "\"2030-01-01T00:00:00Z\""),
            ("StringEquals", "team", "\"a\""),
            ("StringEquals", "aws:ResourceTag/team", ""),
            ("StringEquals", "aws:ResourceTag/team", "\"${aws:username}\""),
            ("StringEquals", "aws:ResourceTag/team", "\"\u{430}\""),
        ] {
            assert!(one(operator, key, value).is_err(), "{operator} {key} {value}");
        }
        for wrong in [
            "source_networks = [\"0.0.0.0/0\"]",
            "source_networks = [\"203.0.113.0\"]",
            "conditions = [{ operator = \"StringLike\", key = \"aws:X\", values = [\"a\"] }, { operator = \"StringLike\", key = \"aws:x\", values = [\"b\"] }]",
            "source_networks = [\"203.0.113.0/33\"]",
            "pass_role_to = [\"*.amazonaws.com\"]",
        ] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
        assert!(with("source_networks = [\"203.0.113.0/24\", \"2001:db8::/32\"]").is_ok());
    }

    #[test]
    fn a_role_or_external_id_that_sts_would_refuse_does_not_load() {
        let with = |role: &str, more: &str| {
            let (head, _) = SCOPES.split_once("[[scope]]").unwrap();
            let text = format!(
                "{head}[[scope]]\nname = \"s\"\ndescription = \"\"\naccount = \"111122223333\"\nregions = [\"us-east-1\"]\nrole = \"{role}\"\nactions = [\"s3:ListBucket\"]\nresources = [\"arn:aws:s3:::staging-a\"]\n{more}\n"
            );
            load(&text).map(|_| ())
        };
        assert!(with("path/to/broker-staging", "external_id = \"ab\"").is_ok());
        for role in ["", "a/", "x*", "../x", "r\u{f6}le", &"x".repeat(65)] {
            assert!(with(role, "").unwrap_err().contains("not the name of one role"), "{role}");
        }
        for id in ["x", "a b", &"x".repeat(1225)] {
            assert!(with("r", &format!("external_id = \"{id}\"")).is_err(), "{id}");
        }
    }

    #[test]
    fn arns_are_in_the_scopes_account_and_regions() {
        let queue = |arn: &str| {
            scope("[\"sqs:GetQueueAttributes\"]", &format!("[\"{arn}\"]"), "").map(|_| ())
        };
        assert!(queue("arn:aws:sqs:us-east-1:111122223333:q").is_ok());
        assert!(queue("arn:aws:sqs:*:111122223333:q").is_ok());
        assert!(queue("arn:aws:sqs:eu-west-1:111122223333:q").unwrap_err().contains("regions"));
        assert!(queue("arn:aws:sqs:us-east-1:444455556666:q").unwrap_err().contains("account"));
        assert!(queue("arn:aws:sqs:us-east-1:*:q").unwrap_err().contains("account"));
    }

    #[test]
    fn every_scope_that_does_not_load_is_named() {
        let text = SCOPES.replace("s3:PutObject", "s3:PutObjekt");
        let why = load(&text).unwrap_err();
        assert_eq!(why.lines().count(), 2, "{why}");
        assert!(why.contains("\"staging-rw\"") && why.contains("\"prod-rw\""));
    }
}
