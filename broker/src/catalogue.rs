//! Scopes: what may be asked for, and how dangerous that is. Tiers are computed, never declared. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use time::Duration;

use crate::arn::Arn;
use crate::config::Span;
use crate::lease::{ActionClass, Assurance, Environment, Tier};

/// Every action we know, with its class. See `docs/tiers.md`.
const ACTIONS: &str = include_str!("catalogue/actions.tsv");

/// The window of a signed lease, and the shortest STS session (`API_AssumeRole`, `DurationSeconds`).
pub const SHORTEST_SESSION: Duration = Duration::minutes(15);
/// Role chaining caps sessions at an hour.
const LONGEST_SESSION: Duration = Duration::hours(1);

/// `scopes.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopesFile {
    /// Account number to the alias that people know it by.
    accounts: BTreeMap<String, String>,
    #[serde(default)]
    environments: BTreeMap<String, EnvironmentFile>,
    #[serde(default, rename = "scope")]
    scopes: Vec<toml::Spanned<ScopeFile>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvironmentFile {
    /// Account numbers that are this environment as a whole.
    #[serde(default)]
    accounts: Vec<String>,
    /// ARN patterns that are this environment, whatever the account.
    #[serde(default)]
    resources: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeFile {
    name: String,
    description: String,
    account: String,
    region: String,
    /// Name or path and name of the role in that account.
    role: String,
    #[serde(default)]
    external_id: Option<String>,
    /// IAM actions, spelled out.
    actions: Vec<String>,
    /// ARNs, wildcards allowed.
    resources: Vec<String>,
    /// The longest window of a lease.
    #[serde(default)]
    max_ttl: Option<Span>,
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
}

#[derive(Clone, Debug)]
pub struct Scope {
    pub name: String,
    pub description: String,
    pub account: String,
    pub account_alias: String,
    pub region: String,
    pub role_arn: String,
    pub external_id: Option<String>,
    /// In IAM's own spelling, sorted.
    pub actions: Vec<Action>,
    pub resources: Vec<Arn>,
    pub environment: Environment,
    pub tier: Tier,
    pub tier_because: String,
    pub max_ttl: Duration,
    /// `None` exactly when the tier is unsigned.
    pub signers: Option<SignerRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Action {
    /// `service:Name`, as AWS spells it.
    pub name: &'static str,
    pub class: ActionClass,
}

/// Who has to sign: `count` distinct people of any of `groups`, each with a key of at least `assurance`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerRule {
    pub groups: Vec<String>,
    pub count: u16,
    pub assurance: Assurance,
}

impl Catalogue {
    /// Builds the catalogue, or says which scope does not load and why. `text` is the file, for line numbers.
    pub fn build(file: ScopesFile, text: &str, software_keys: bool) -> Result<Self, String> {
        let environments = Environments::build(file.environments)?;
        let mut scopes = BTreeMap::new();
        for spanned in file.scopes {
            let line = text[..spanned.span().start].matches('\n').count() + 1;
            let scope = spanned.into_inner();
            let name = scope.name.clone();
            let scope = Scope::build(scope, &file.accounts, &environments, software_keys)
                .map_err(|why| format!("line {line}: scope {name:?} does not load: {why}"))?;
            if scopes.insert(name.clone(), scope).is_some() {
                return Err(format!(
                    "line {line}: scope {name:?} is there twice; give one another name"
                ));
            }
        }
        Ok(Self { scopes })
    }

    pub fn scope(&self, name: &str) -> Option<&Scope> {
        self.scopes.get(name)
    }

    /// All scopes, by name.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.scopes.values()
    }
}

impl Scope {
    fn build(
        file: ScopeFile,
        accounts: &BTreeMap<String, String>,
        environments: &Environments,
        software_keys: bool,
    ) -> Result<Self, String> {
        if !is_name(&file.name) {
            return Err("a name is lower-case letters, digits and `-`, at most 64".into());
        }
        let account_alias = accounts.get(&file.account).cloned().ok_or_else(|| {
            format!("account {:?} has no alias; add it to [accounts]", file.account)
        })?;
        if !is_account(&file.account) {
            return Err(format!("account {:?} is not twelve digits", file.account));
        }
        let mut actions =
            file.actions.iter().map(|it| action(it)).collect::<Result<Vec<_>, _>>()?;
        actions.sort();
        actions.dedup();
        let mut resources = file
            .resources
            .iter()
            .map(|it| Arn::parse(it).map_err(|error| error.to_string()))
            .collect::<Result<Vec<_>, _>>()?;
        resources.sort();
        resources.dedup();
        if actions.is_empty() || resources.is_empty() {
            return Err("it has no actions or no resources; name at least one of each".into());
        }
        if let Some(other) =
            resources.iter().find(|it| !matches!(it.account(), "") && it.account() != file.account)
        {
            return Err(format!("{other} is in another account than the role"));
        }

        let environment = resources
            .iter()
            .map(|it| environments.of(it, &file.account))
            .max()
            .expect("there is at least one resource");
        let exact = resources.iter().all(Arn::is_exact);
        let (mut tier, mut tier_because) = computed_tier(&actions, environment, exact)?;
        if let Some(declared) = file.tier {
            if declared < tier {
                return Err(format!("it declares tier {declared}, but is {tier}: {tier_because}"));
            }
            if tier < declared {
                (tier, tier_because) = (declared, format!("declared {declared} in scopes.toml"));
            }
        }
        let signers = signer_rule(file.signers, tier, software_keys)?;
        let longest = longest_window(tier, environment);
        let max_ttl = file.max_ttl.map_or(longest, |it| it.0);
        if max_ttl < SHORTEST_SESSION || longest < max_ttl {
            return Err(format!(
                "max_ttl must be between {} and {} for {tier} in {environment}",
                Span(SHORTEST_SESSION),
                Span(longest)
            ));
        }
        let role_arn = format!("arn:aws:iam::{}:role/{}", file.account, file.role);
        if !Arn::parse(&role_arn).is_ok_and(|it| it.is_exact()) {
            return Err(format!("role {:?} is not the name of one role", file.role));
        }
        Ok(Self {
            name: file.name,
            description: file.description,
            account: file.account,
            account_alias,
            region: file.region,
            role_arn,
            external_id: file.external_id,
            actions,
            resources,
            environment,
            tier,
            tier_because,
            max_ttl,
            signers,
        })
    }

    /// How long one STS session lasts under a lease whose window is `window`.
    pub fn session_length(&self, window: Duration) -> Duration {
        window.clamp(SHORTEST_SESSION, LONGEST_SESSION)
    }
}

/// Finds an action by its name in any case, as IAM does.
pub fn action(name: &str) -> Result<Action, String> {
    let found = ACTIONS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('\t'))
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    let Some((name, class)) = found else {
        return Err(format!(
            "{name:?} is not an action we know; spell one action out, without wildcards"
        ));
    };
    Ok(Action { name, class: class.parse().expect("the table names classes only") })
}

/// The strictest tier of the actions in `environment`, and what makes it so; or why there can be no such lease.
fn computed_tier(
    actions: &[Action],
    environment: Environment,
    exact: bool,
) -> Result<(Tier, String), String> {
    let mut strictest = None;
    for action in actions {
        let tier = tier_of(action.class, environment, exact).ok_or_else(|| {
            format!(
                "{} is {}, which cannot be leased in {environment}{}",
                action.name,
                action.class,
                if exact { "" } else { " (or only with ARNs without wildcards)" }
            )
        })?;
        if strictest.as_ref().is_none_or(|(highest, _)| *highest < tier) {
            strictest =
                Some((tier, format!("{} is {} in {environment}", action.name, action.class)));
        }
    }
    Ok(strictest.expect("there is at least one action"))
}

/// The tier table of `docs/tiers.md`. `exact`: no ARN of the scope has a wildcard. `None` is not leasable.
fn tier_of(class: ActionClass, environment: Environment, exact: bool) -> Option<Tier> {
    use ActionClass as C;
    use Environment as E;
    use Tier as T;
    Some(match (class, environment) {
        (C::Read, _) | (C::DataRead, E::Development | E::Staging) => T::ReadOnly,
        (C::DataRead, E::Production) if exact => T::ReadOnly,
        (C::DataRead, E::Production | E::Backup) => T::ProductionWrite,
        (C::Write | C::Tag | C::Review | C::Destructive, E::Development | E::Staging) => {
            T::StagingWrite
        }
        (C::Write | C::Tag | C::Review, E::Production) => T::ProductionWrite,
        (C::Destructive, E::Production) => T::Destructive,
        (C::Write | C::Tag | C::Review | C::Destructive, E::Backup) => T::Destructive,
        (C::OpaqueExec | C::Tamper | C::Credential, E::Development | E::Staging) if exact => {
            T::StagingSensitive
        }
        (C::OpaqueExec | C::Tamper | C::Credential, E::Production) => T::Destructive,
        (C::Tamper, E::Backup) => T::Destructive,
        (C::OpaqueExec | C::Tamper | C::Credential | C::Privesc, _) => return None,
    })
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

/// Which accounts and ARNs are which environment.
struct Environments {
    accounts: BTreeMap<String, Environment>,
    resources: Vec<(Arn, Environment)>,
}

impl Environments {
    fn build(file: BTreeMap<String, EnvironmentFile>) -> Result<Self, String> {
        let mut all = Self { accounts: BTreeMap::new(), resources: Vec::new() };
        for (name, file) in file {
            let environment: Environment =
                name.parse().map_err(|error| format!("[environments]: {error}"))?;
            for account in file.accounts {
                if !is_account(&account) {
                    return Err(format!(
                        "[environments.{name}]: account {account:?} is not twelve digits"
                    ));
                }
                if let Some(other) = all.accounts.insert(account.clone(), environment) {
                    return Err(format!(
                        "[environments.{name}]: account {account} is {other} already"
                    ));
                }
            }
            for resource in file.resources {
                let arn = Arn::parse(&resource)
                    .map_err(|error| format!("[environments.{name}]: {error}"))?;
                all.resources.push((arn, environment));
            }
        }
        Ok(all)
    }

    /// The strictest environment that `arn` may reach: of every pattern that it touches, and of its account if that
    /// is somebody's. What nothing covers is production.
    fn of(&self, arn: &Arn, account: &str) -> Environment {
        let touched =
            self.resources.iter().filter(|(pattern, _)| pattern.touches(arn)).map(|(_, it)| *it);
        let owner = self.accounts.get(account).copied();
        let covered =
            owner.is_some() || self.resources.iter().any(|(pattern, _)| pattern.contains(arn));
        let rest = if covered { None } else { Some(Environment::Production) };
        touched.chain(owner).chain(rest).max().expect("what is not covered has a rest")
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|it| it.is_ascii_digit())
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
region = "us-east-1"
role = "broker-staging"
actions = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]
resources = ["arn:aws:s3:::staging-app", "arn:aws:s3:::staging-app/*"]
max_ttl = "8h"

[[scope]]
name = "prod-rw"
description = "Write production data"
account = "111122223333"
region = "us-east-1"
role = "broker-production"
actions = ["s3:GetObject", "s3:PutObject"]
resources = ["arn:aws:s3:::prod-app/*"]
signers = { groups = ["ops"], assurance = "present" }
"#;

    pub(crate) fn load(text: &str) -> Result<Catalogue, String> {
        Catalogue::build(toml::from_str(text).map_err(|error| error.to_string())?, text, false)
    }

    fn scope(actions: &str, resources: &str, more: &str) -> Result<Scope, String> {
        let (head, _) = SCOPES.split_once("[[scope]]").unwrap();
        let text = format!(
            "{head}[[scope]]\nname = \"s\"\ndescription = \"\"\naccount = \"111122223333\"\nregion = \"us-east-1\"\nrole = \"r\"\nactions = {actions}\nresources = {resources}\n{more}\n"
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
    fn every_cell_of_the_tier_table_is_as_documented() {
        use ActionClass as C;
        use Environment as E;
        let row = |class, exact| {
            [E::Staging, E::Production, E::Backup]
                .map(|it| tier_of(class, it, exact).map_or("-", Tier::as_str))
        };
        assert_eq!(row(C::Read, false), ["read-only"; 3]);
        assert_eq!(row(C::DataRead, true), ["read-only", "read-only", "production-write"]);
        assert_eq!(row(C::DataRead, false), ["read-only", "production-write", "production-write"]);
        for class in [C::Write, C::Tag, C::Review] {
            assert_eq!(row(class, false), ["staging-write", "production-write", "destructive"]);
        }
        assert_eq!(row(C::Destructive, false), ["staging-write", "destructive", "destructive"]);
        for class in [C::OpaqueExec, C::Credential] {
            assert_eq!(row(class, true), ["staging-sensitive", "destructive", "-"]);
            assert_eq!(row(class, false), ["-", "destructive", "-"]);
        }
        assert_eq!(row(C::Tamper, true), ["staging-sensitive", "destructive", "destructive"]);
        assert_eq!(row(C::Privesc, true), ["-"; 3]);
        for class in C::ALL {
            for exact in [false, true] {
                assert_eq!(
                    tier_of(*class, E::Development, exact),
                    tier_of(*class, E::Staging, exact)
                );
            }
        }
    }

    #[test]
    fn what_no_environment_covers_is_production() {
        let sign = "signers = { groups = [\"ops\"] }";
        for resource in ["arn:aws:s3:::other/*", "arn:aws:s3:::*", "arn:aws:s3:::stag*"] {
            let scope = scope("[\"s3:PutObject\"]", &format!("[\"{resource}\"]"), sign).unwrap();
            assert!(
                Environment::Production <= scope.environment,
                "{resource} is {}",
                scope.environment
            );
        }
        // `*` reaches the backups too, and the strictest counts.
        assert_eq!(
            scope("[\"s3:PutObject\"]", "[\"arn:aws:s3:::*\"]", sign).unwrap().tier,
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
        let why = |actions: &str, resources: &str, more: &str| {
            scope(actions, resources, more).unwrap_err()
        };
        assert!(why("[\"s3:MadeUp\"]", staging, "").contains("not an action we know"));
        assert!(why("[\"s3:Get*\"]", staging, "").contains("not an action we know"));
        assert!(why("[]", staging, "").contains("no actions"));
        assert!(why("[\"s3:GetObject\"]", "[]", "").contains("no actions or no resources"));
        assert!(why("[\"s3:PutBucketPolicy\"]", staging, "").contains("cannot be leased"));
        assert!(
            why("[\"s3:PutLifecycleConfiguration\"]", staging, "").contains("without wildcards")
        );
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

    #[test]
    fn the_action_table_is_sorted_and_well_formed() {
        let names: Vec<_> = ACTIONS.lines().filter(|it| !it.starts_with('#')).collect();
        assert!(names.is_sorted());
        for line in names {
            let (name, class) = line.split_once('\t').unwrap();
            assert_eq!(action(&name.to_uppercase()).unwrap().name, name);
            class.parse::<ActionClass>().unwrap();
        }
    }
}
