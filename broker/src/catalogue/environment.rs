//! Which accounts and ARNs are which environment, and which are the broker's own. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::actions;
use crate::arn::Arn;
use crate::lease::Environment;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentFile {
    /// Account numbers that are this environment as a whole.
    #[serde(default)]
    accounts: Vec<String>,
    /// ARN patterns that are this environment, whatever the account.
    #[serde(default)]
    resources: Vec<String>,
}

/// `[home]` of `broker.toml`: what the broker itself is made of. No scope reaches it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HomeFile {
    /// Accounts that are the broker's alone.
    #[serde(default)]
    accounts: Vec<String>,
    /// Its roles and users, database, keys and log bucket in accounts that it shares: ARN patterns.
    #[serde(default)]
    resources: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Home {
    accounts: Vec<String>,
    resources: Vec<Arn>,
}

impl Home {
    /// What the file names, and `principals`, ARNs of the broker's own.
    pub fn build(file: &HomeFile, principals: &[String]) -> Result<Self, String> {
        if file.accounts.is_empty() && file.resources.is_empty() {
            return Err("[home] names nothing: write the broker's own accounts, or the ARNs of its roles, database, keys and log bucket".into());
        }
        for account in &file.accounts {
            check_account(account).map_err(|error| format!("[home]: {error}"))?;
        }
        let mut resources = arns(&file.resources).map_err(|error| format!("[home]: {error}"))?;
        resources.extend(arns(principals)?);
        Ok(Self { accounts: file.accounts.clone(), resources })
    }

    /// Adds what leases are minted from: whoever may change those roles may change every lease.
    #[must_use]
    pub fn with_roles(mut self, roles: impl IntoIterator<Item = Arn>) -> Self {
        self.resources.extend(roles);
        self.resources.sort();
        self.resources.dedup();
        self
    }

    pub fn owns_account(&self, account: &str) -> bool {
        self.accounts.iter().any(|it| it == account)
    }

    /// The broker's own that a scope on `arn` in `account` could be about. A scope on `*` is about what its actions
    /// take: `acts_on` says whether they take ARNs of a service.
    pub fn touched_by(
        &self,
        arn: &Arn,
        account: &str,
        acts_on: impl Fn(&str) -> bool,
    ) -> Option<&Arn> {
        let touched = |it: &&Arn| {
            may_be_in(it, account) && it.touches(arn) && (!arn.is_any() || acts_on(it.service()))
        };
        self.resources.iter().find(touched)
    }

    /// The broker's own that an action of `service` which takes no ARN could be about.
    pub fn in_account(&self, service: &str, account: &str) -> Option<&Arn> {
        self.resources.iter().find(|it| may_be_in(it, account) && it.service() == service)
    }

    pub fn accounts(&self) -> &[String] {
        &self.accounts
    }

    pub fn resources(&self) -> &[Arn] {
        &self.resources
    }
}

/// Which accounts and ARNs are which environment. What nothing covers is production.
#[derive(Debug)]
pub struct Environments {
    accounts: BTreeMap<String, Environment>,
    resources: Vec<(Arn, Environment)>,
}

impl Environments {
    pub fn build(file: BTreeMap<String, EnvironmentFile>) -> Result<Self, String> {
        let mut all = Self { accounts: BTreeMap::new(), resources: Vec::new() };
        for (name, file) in file {
            let environment: Environment =
                name.parse().map_err(|error| format!("[environments]: {error}"))?;
            for account in file.accounts {
                check_account(&account)
                    .map_err(|error| format!("[environments.{name}]: {error}"))?;
                if all.accounts.insert(account.clone(), environment).is_some() {
                    return Err(format!(
                        "[environments.{name}]: account {account} is in two environments"
                    ));
                }
            }
            let patterns =
                arns(&file.resources).map_err(|error| format!("[environments.{name}]: {error}"))?;
            all.resources.extend(patterns.into_iter().map(|it| (it, environment)));
        }
        Ok(all)
    }

    /// The strictest environment of what `arn` could be about in `account`.
    pub fn of(&self, arn: &Arn, account: &str) -> Environment {
        let covered = self.resources.iter().any(|(it, _)| it.covers(arn));
        let touched = self
            .resources
            .iter()
            .filter(|(it, _)| may_be_in(it, account) && it.touches(arn))
            .map(|(_, environment)| *environment);
        touched.chain(self.floor(account, covered)).max().unwrap_or(Environment::Production)
    }

    /// The strictest environment of what an action of `service` that takes no ARN could be about in `account`.
    pub fn of_account(&self, service: &str, account: &str) -> Environment {
        let touched = self
            .resources
            .iter()
            .filter(|(it, _)| may_be_in(it, account) && it.service() == service)
            .map(|(_, environment)| *environment);
        touched.chain(self.floor(account, false)).max().unwrap_or(Environment::Production)
    }

    /// What `account` is as a whole, if anything says so.
    pub fn of_whole(&self, account: &str) -> Option<Environment> {
        self.accounts.get(account).copied()
    }

    /// The patterns that say what is which environment, as far as they may be about `account`.
    pub fn patterns(&self, account: &str) -> impl Iterator<Item = (&Arn, Environment)> {
        self.resources
            .iter()
            .filter(move |(it, _)| may_be_in(it, account))
            .map(|(it, environment)| (it, *environment))
    }

    /// What the account alone says.
    fn floor(&self, account: &str, covered: bool) -> Option<Environment> {
        match self.accounts.get(account) {
            Some(environment) => Some(*environment),
            None if covered => None,
            None => Some(Environment::Production),
        }
    }
}

/// Whether something that `pattern` matches may be in `account`. S3's ARNs do not say.
fn may_be_in(pattern: &Arn, account: &str) -> bool {
    pattern.account().is_empty() || pattern.is_in(account)
}

pub fn check_account(account: &str) -> Result<(), String> {
    if account.len() == 12 && account.bytes().all(|it| it.is_ascii_digit()) {
        return Ok(());
    }
    Err(format!("account {account:?} is not twelve digits"))
}

fn arns(texts: &[String]) -> Result<Vec<Arn>, String> {
    let read = |text: &String| {
        let arn = Arn::parse(text).map_err(|error| error.to_string())?;
        // What is misspelled would protect nothing, without a word.
        if arn.is_any() || actions::are_of_a_known_form(&arn) {
            Ok(arn)
        } else {
            Err(format!(
                "no resource that we know has an ARN like {arn}: compare its Region, account and type with AWS's form"
            ))
        }
    };
    texts.iter().map(read).collect()
}
