//! `brokerd doctor`: reads the live accounts, the database and this host, changes nothing, and says what is not as the
//! catalogue has it: how bad it is, what somebody gains by it, and what to do. `docs/doctor.md` has all checks.
//!
//! Gathering comes first ([`look`]), each part as far as it can be read. Each check is then a small pure function of what
//! was gathered, and a row in the table of its module.

pub mod document;
pub mod estate;

mod database;
mod reach;
mod roles;
mod surroundings;

pub mod rounds;

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use sqlx::PgPool;

use self::document::Document;
use self::estate::{Estate, Identity, KeyFile, Part, Unread};
use crate::aws::{self, Access};
use crate::clock::Clock;
use crate::config::Config;
use crate::identity;
use crate::role::{Documents, Role, own_policies};
use crate::store;

/// The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// `brokerd serve` does not start.
    Critical,
    High,
    Medium,
    Low,
}

impl Severity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub check: &'static str,
    /// An ARN, a table, a file.
    pub subject: String,
    pub found: String,
    /// What an attacker has of it.
    pub gains: &'static str,
    pub fix: &'static str,
}

/// One check. A new one is a function and a row, both in one of the modules below.
pub struct Check {
    /// Never changed once released.
    pub id: &'static str,
    /// What its findings are, unless they say otherwise.
    pub severity: Severity,
    /// What it demands.
    pub wants: &'static str,
    pub gains: &'static str,
    pub fix: &'static str,
    run: fn(&Ground<'_>) -> Vec<Found>,
}

/// What a check found. Check and table make a [`Finding`] of it.
struct Found {
    subject: String,
    what: String,
    severity: Option<Severity>,
}

fn found(subject: impl Into<String>, what: impl Into<String>) -> Found {
    Found { subject: subject.into(), what: what.into(), severity: None }
}

impl Found {
    fn at(mut self, severity: Severity) -> Self {
        self.severity = Some(severity);
        self
    }
}

/// All checks, in the order of the documentation.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [roles::CHECKS, reach::CHECKS, surroundings::CHECKS, database::CHECKS].into_iter().flatten()
}

/// What the checks look at: what there is, and what should be.
struct Ground<'a> {
    estate: &'a Estate,
    config: &'a Config,
    roles: Vec<LeaseRole<'a>>,
    principals: Vec<OwnPrincipal<'a>>,
}

/// A role that leases are minted from.
struct LeaseRole<'a> {
    role: Role<'a>,
    permissions: Document,
    boundary: Document,
    longest_session_seconds: u32,
    /// `None` if it is not there, or nobody could look.
    live: Option<&'a Identity>,
}

/// One of the broker's own principals, in one account.
struct OwnPrincipal<'a> {
    name: &'static str,
    arn: String,
    policy: Document,
    live: Option<&'a Identity>,
}

impl<'a> Ground<'a> {
    fn new(estate: &'a Estate, config: &'a Config) -> Self {
        let (catalogue, aws) = (&config.catalogue, &config.settings.aws);
        let mut ground = Self { estate, config, roles: Vec::new(), principals: Vec::new() };
        for role in Role::all(catalogue) {
            let wanted = Documents::of(&role, catalogue, &aws.minter.arn);
            ground.roles.push(LeaseRole {
                permissions: Document::of(&wanted.permission_policy),
                boundary: Document::of(&wanted.permissions_boundary),
                longest_session_seconds: wanted.max_session_duration,
                live: ground.identity(role.arn),
                role,
            });
        }
        let policies = own_policies(catalogue, aws);
        for ((name, policy), (_, principal)) in policies.iter().zip(aws.principals()) {
            let mut arns: Vec<_> =
                estate.cloud.accounts.keys().map(|it| principal.arn_in(it)).collect();
            arns.push(principal.arn.clone());
            arns.sort();
            arns.dedup();
            for arn in arns {
                let (live, policy) = (ground.identity(&arn), Document::of(policy));
                ground.principals.push(OwnPrincipal { name, arn, policy, live });
            }
        }
        ground
    }

    fn identity(&self, arn: &str) -> Option<&'a Identity> {
        let account = self.estate.cloud.accounts.get(account_of(arn))?;
        account.as_ref().ok()?.identities.get(arn)
    }

    /// Whether somebody looked for it, and could have seen it.
    fn could_see(&self, arn: &str) -> bool {
        self.estate.cloud.accounts.get(account_of(arn)).is_some_and(Result::is_ok)
    }

    fn identities(&self) -> impl Iterator<Item = &'a Identity> {
        self.estate.cloud.accounts.values().flatten().flat_map(|it| it.identities.values())
    }

    /// Our roles that are there, each with how it is.
    fn live_roles(&self) -> impl Iterator<Item = (&LeaseRole<'a>, &'a Identity)> {
        self.roles.iter().filter_map(|it| Some((it, it.live?)))
    }

    fn dev(&self) -> bool {
        self.config.settings.dev.is_some()
    }
}

fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// What all checks find, the worst first.
pub fn examine(estate: &Estate, config: &Config) -> Vec<Finding> {
    let ground = Ground::new(estate, config);
    let mut findings: Vec<_> = checks()
        .flat_map(|check| {
            (check.run)(&ground).into_iter().map(move |it| Finding {
                severity: it.severity.unwrap_or(check.severity),
                check: check.id,
                subject: it.subject,
                found: it.what,
                gains: check.gains,
                fix: check.fix,
            })
        })
        .collect();
    findings.sort();
    findings.dedup();
    findings
}

/// Looks at everything. Reads only.
pub async fn look(
    config: &Config,
    access: &Access,
    pool: Option<&PgPool>,
    clock: &Clock,
) -> Estate {
    let database = async {
        match pool {
            Some(pool) => store::look(pool, clock).await,
            None => Err(Unread::NotAsked(
                "no database was named; set BROKER_OPS_DATABASE_URL, or pass --database-url URL"
                    .to_owned(),
            )),
        }
    };
    let cloud = Box::pin(aws::look(access, &config.catalogue, clock));
    let (cloud, database) = tokio::join!(cloud, Box::pin(database));
    let settings = &config.settings;
    let mut files = vec![
        key_file("the instance key", &settings.instance_key),
        key_file("the log's key", &settings.log.key),
    ];
    let former = settings.former_instance_keys.iter();
    files.extend(former.map(|it| key_file("a former instance key", it)));
    if let Some(path) = &settings.aws.credentials_file {
        files.push(key_file("the file of AWS credentials", path));
    }
    let instance_key = identity::fingerprint(&settings.instance_key).ok();
    Estate { now: clock.now(), cloud, database, files, instance_key }
}

fn key_file(what: &'static str, path: &std::path::Path) -> KeyFile {
    use std::os::unix::fs::PermissionsExt;
    let there = std::fs::metadata(path).ok();
    KeyFile {
        what,
        path: path.to_owned(),
        mode: there.as_ref().map(|it| it.permissions().mode() & 0o777),
        written_at: there.and_then(|it| it.modified().ok()).map(Into::into),
    }
}

/// What is missing in `parts`, as findings: refused is critical, away is high, and not asked is low.
fn unread<'a, T: 'a>(parts: impl IntoIterator<Item = (String, &'a Part<T>)>) -> Vec<Found> {
    let missing =
        parts.into_iter().filter_map(|(subject, part)| Some((subject, part.as_ref().err()?)));
    let tell = |(subject, why): (String, &Unread)| {
        found(subject, why.to_string()).at(match why {
            Unread::Refused(_) => Severity::Critical,
            Unread::Unreachable(_) => Severity::High,
            Unread::NotAsked(_) => Severity::Low,
        })
    };
    missing.map(tell).collect()
}

/// Findings for people: a line each, and below it what is gained and what to do.
pub fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for it in findings {
        let _ = writeln!(out, "{:<9} {:<24} {}", it.severity.as_str(), it.check, it.subject);
        let _ = writeln!(out, "{:<9} found  {}", "", it.found);
        let _ = writeln!(out, "{:<9} gains  {}", "", it.gains);
        let _ = writeln!(out, "{:<9} fix    {}", "", it.fix);
    }
    let mut counts: BTreeMap<Severity, usize> = BTreeMap::new();
    for it in findings {
        *counts.entry(it.severity).or_default() += 1;
    }
    let counts: Vec<_> =
        counts.iter().map(|(it, count)| format!("{count} {}", it.as_str())).collect();
    let checks = checks().count();
    let _ = if counts.is_empty() {
        writeln!(out, "{checks} checks found nothing")
    } else {
        writeln!(out, "{checks} checks found {}", counts.join(", "))
    };
    out
}
