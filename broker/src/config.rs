//! The configuration directory: one typed tree, where parsing is validating.
//!
//! `broker.toml`, `scopes.toml` and `policies/*.cedar`; see `config/` in the repository. Unknown fields are
//! errors. Secrets and database URLs are not here: they come from the environment or from files named there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use time::{Duration, OffsetDateTime};

use crate::actions;
use crate::arn::Arn;
use crate::attestation::Roots;
use crate::catalogue::Catalogue;
use crate::catalogue::environment::{Home, HomeFile, check_account};
use crate::identity::issuers::Issuers;
use crate::lease::Assurance;
use crate::policy::Policy;
pub use crate::span::Span;
use crate::statement::{canonical, sha256_hex};
use crate::workload::issuer::Issuer;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {error}; make it readable for this user, or pass --config DIR", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: {error}", path.display())]
    Toml { path: PathBuf, error: Box<toml::de::Error> },
    #[error("{}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
}

/// Everything that `brokerd` is told by files.
#[derive(Debug)]
pub struct Config {
    pub settings: Settings,
    pub catalogue: Catalogue,
    pub policy: Policy,
    /// Rule files: name to text.
    pub rules: BTreeMap<String, String>,
    /// Everything that decides about requests, as canonical JSON.
    pub ruleset: Vec<u8>,
    /// Its SHA-256, in hex: what leases name.
    pub sha256: String,
    /// The makers whose attestation counts, if any does.
    pub attestation_roots: Option<Roots>,
    pub issuers: Issuers,
}

/// `broker.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where agents and people reach us; also the issuer and audience of our tokens.
    pub origin: String,
    pub listen: SocketAddr,
    /// Says that a proxy in front ends TLS. Without it we listen on loopback only.
    #[serde(default)]
    pub behind_tls_proxy: bool,
    /// Ed25519 private key (PKCS #8, PEM) of this installation; relative to the configuration directory.
    pub instance_key: PathBuf,
    /// Those of before: the tokens that they signed stay good until they end.
    #[serde(default)]
    pub former_instance_keys: Vec<PathBuf>,
    /// Whose tokens of workloads are exchanged for task tokens.
    #[serde(default)]
    pub issuers: Vec<Issuer>,
    pub aws: Aws,
    /// What the broker itself is made of, out of every scope's reach.
    pub home: HomeFile,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub authority: Authority,
    #[serde(default)]
    pub doctor: Doctor,
    pub log: Log,
    /// Settings that only `brokerd dev` accepts.
    #[serde(default)]
    pub dev: Option<Dev>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// The Regional STS endpoint that is used.
    pub region: String,
    /// How long one call may take; longer counts as used.
    #[serde(default = "Aws::default_timeout")]
    pub call_timeout: Span,
    /// When all of a role's sessions are stopped, those count that begin until so long after the last mint could have
    /// begun: a session that AWS was making just then would outlive the stop.
    #[serde(default = "Aws::default_stop_margin")]
    pub stop_margin: Span,
    /// The file with the profiles named below, relative to the configuration directory; if there is none, where every AWS
    /// tool looks.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// Who mints, and may do nothing else.
    pub minter: Principal,
    /// Who writes the policies that stop sessions, and may do nothing else.
    pub revoker: Principal,
    /// Who looks, and changes nothing.
    pub doctor: Principal,
    /// Who else may change IAM in the accounts: people's break-glass roles. ARNs, `*` and `?` match.
    #[serde(default)]
    pub administrators: Vec<String>,
}

/// An IAM user or role of the broker's own.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    pub arn: String,
    /// Whose credentials to call with. Without it they come from the environment, as in every AWS tool.
    #[serde(default)]
    pub profile: Option<String>,
    /// The role of this name is assumed in accounts other than the principal's own, for what is done there.
    #[serde(default)]
    pub role: Option<String>,
}

impl Principal {
    /// The account that it is in.
    pub fn account(&self) -> &str {
        self.arn.split(':').nth(4).unwrap_or_default()
    }

    /// Who it is in `account`: itself, or the role that it assumes there.
    pub fn arn_in(&self, account: &str) -> String {
        match &self.role {
            Some(role) if account != self.account() => {
                format!("arn:aws:iam::{account}:role/{role}")
            }
            _ => self.arn.clone(),
        }
    }

    fn validate(&self, name: &str) -> Result<(), String> {
        let form =
            "write that of an IAM user or role, like `arn:aws:iam::111122223333:role/broker`";
        let (kind, path) = Arn::parse(&self.arn)
            .ok()
            .filter(|it| it.service() == "iam" && check_account(it.account()).is_ok())
            .and_then(|it| {
                it.as_str()
                    .splitn(6, ':')
                    .last()?
                    .split_once('/')
                    .map(|(kind, path)| (kind.to_owned(), path.to_owned()))
            })
            .unwrap_or_default();
        if !["user", "role"].contains(&kind.as_str())
            || path.is_empty()
            || path.contains(['*', '?'])
        {
            return Err(format!("{name}.arn = {:?}: {form}", self.arn));
        }
        Ok(())
    }
}

impl Aws {
    fn default_timeout() -> Span {
        Span(Duration::seconds(5))
    }

    fn default_stop_margin() -> Span {
        Span(Duration::seconds(30))
    }

    /// The time that AWS is told when all that may have begun by now is to be refused: a whole second, as AWS counts.
    pub fn cut_off(&self, now: OffsetDateTime) -> OffsetDateTime {
        let at = now + self.stop_margin.0 + self.call_timeout.0;
        at.replace_nanosecond(0).expect("zero is a nanosecond") + Duration::SECOND
    }

    /// The broker's own principals, by name.
    pub fn principals(&self) -> [(&'static str, &Principal); 3] {
        [("minter", &self.minter), ("revoker", &self.revoker), ("doctor", &self.doctor)]
    }

    /// What the principals are in any account: ARNs, of which some are patterns.
    pub fn own(&self) -> Vec<String> {
        let roles = self.principals().into_iter().filter_map(|(_, it)| it.role.as_ref());
        let roles = roles.map(|it| format!("arn:aws:iam::*:role/{it}"));
        self.principals().into_iter().map(|(_, it)| it.arn.clone()).chain(roles).collect()
    }

    fn validate(&self) -> Result<(), String> {
        let all = self.principals();
        for (name, it) in all {
            it.validate(&format!("aws.{name}"))?;
        }
        for (index, (name, it)) in all.iter().enumerate() {
            for (other, that) in &all[index + 1..] {
                if it.arn == that.arn || it.profile.is_some() && it.profile == that.profile {
                    return Err(format!(
                        "aws.{name} and aws.{other} are the same: whoever takes over one of them must not have the other"
                    ));
                }
            }
        }
        if self.revoker.profile.is_none() || self.doctor.profile.is_none() {
            return Err("aws.revoker and aws.doctor need a `profile`: the environment has the minter's credentials".into());
        }
        if self.minter.role.is_some() {
            return Err("aws.minter.role: the minter is the same in all accounts; the roles' trust policies name it".into());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dev {
    /// Lets keys that a program can use by itself sign for anything.
    pub software_keys: bool,
}

/// When the server looks after itself.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Doctor {
    pub every: Span,
}

impl Default for Doctor {
    fn default() -> Self {
        Self { every: Span(Duration::minutes(15)) }
    }
}

/// The log over the events, and where its checkpoints are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Its name: the origin of its checkpoints. It outlives hosts and addresses, and never changes.
    pub origin: String,
    /// Ed25519 private key (PKCS #8, PEM) that signs checkpoints; relative to the configuration directory.
    pub key: PathBuf,
    /// How often the newest checkpoint goes to the anchors, besides whenever a lease waits for it.
    #[serde(default = "Log::default_anchor_every")]
    pub anchor_every: Span,
    /// How long a claim waits for its approval to be anchored, before it is told to come again.
    #[serde(default = "Log::default_wait")]
    pub wait: Span,
    /// Without any, no destructive lease is issued.
    #[serde(default)]
    pub anchors: Vec<Anchor>,
}

/// Where checkpoints are kept out of reach.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Anchor {
    /// A folder that another machine keeps.
    File { name: String, path: PathBuf },
    /// A bucket with Object Lock, best in another account.
    S3(AnchorBucket),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorBucket {
    pub name: String,
    pub bucket: String,
    pub region: String,
    /// What names begin with, like `checkpoints/`.
    #[serde(default)]
    pub prefix: String,
    /// How long nobody can remove a checkpoint, in Object Lock's compliance mode.
    #[serde(default = "AnchorBucket::default_retain")]
    pub retain: Span,
    /// Who puts, reads and lists there, and may do nothing else.
    pub principal: Principal,
}

impl AnchorBucket {
    fn default_retain() -> Span {
        Span(Duration::days(400))
    }
}

impl Anchor {
    pub fn name(&self) -> &str {
        match self {
            Self::File { name, .. } => name,
            Self::S3(bucket) => &bucket.name,
        }
    }
}

impl Log {
    fn default_anchor_every() -> Span {
        Span(Duration::minutes(1))
    }

    fn default_wait() -> Span {
        Span(Duration::seconds(5))
    }

    fn buckets(&self) -> impl Iterator<Item = &AnchorBucket> {
        self.anchors.iter().filter_map(|it| match it {
            Anchor::S3(bucket) => Some(bucket),
            Anchor::File { .. } => None,
        })
    }

    /// What of AWS belongs to it: ARNs.
    fn own(&self) -> impl Iterator<Item = String> {
        self.buckets()
            .flat_map(|it| [it.principal.arn.clone(), format!("arn:aws:s3:::{}", it.bucket)])
    }

    fn validate(&self, aws: &Aws) -> Result<(), String> {
        let plain = |it: char| it.is_ascii_alphanumeric() || "./:_-".contains(it);
        if self.origin.is_empty() || !self.origin.chars().all(plain) {
            return Err(format!(
                "log.origin = {:?}: write a name like `broker.example.com/log`",
                self.origin
            ));
        }
        for (index, anchor) in self.anchors.iter().enumerate() {
            let name = anchor.name();
            if name.is_empty() || self.anchors[..index].iter().any(|it| it.name() == name) {
                return Err(format!(
                    "log.anchors: each has a name of its own, and {name:?} is none"
                ));
            }
        }
        for bucket in self.buckets() {
            let principal = &bucket.principal;
            principal.validate(&format!("log.anchors: {}: principal", bucket.name))?;
            if principal.profile.is_none() {
                return Err(format!(
                    "log.anchors: {}: the principal needs a `profile`: the environment has the minter's credentials",
                    bucket.name
                ));
            }
            let same = |it: &Principal| it.arn == principal.arn || it.profile == principal.profile;
            if let Some((other, _)) = aws.principals().into_iter().find(|(_, it)| same(it)) {
                return Err(format!(
                    "log.anchors: {}: the principal is aws.{other}: whoever takes over one of them must not have the other",
                    bucket.name
                ));
            }
        }
        Ok(())
    }
}

/// What acts of authority ask for, beside the decision about a lease: that follows from its scope.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authority {
    /// What a sponsor's key needs at least, to start a task.
    pub start_task: Assurance,
    /// What a key needs to end a freeze.
    pub thaw: Assurance,
    /// What an admin's key needs to change people, groups and keys.
    pub change_people: Assurance,
    /// How long a change of people waits after its signature, in which it can be refused.
    pub cool_down: Span,
    pub longest_task: Span,
    /// Certificates (PEM) of the makers whose attestation of a hardware key counts; relative to the configuration
    /// directory.
    pub attestation_roots: Option<PathBuf>,
}

impl Default for Authority {
    fn default() -> Self {
        Self {
            start_task: Assurance::Present,
            thaw: Assurance::Verified,
            change_people: Assurance::Verified,
            cool_down: Span(Duration::DAY),
            longest_task: Span(Duration::hours(8)),
            attestation_roots: None,
        }
    }
}

/// Budgets, enforced in the database so that they hold across replicas, and times.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of one agent of one sponsor.
    pub agent: Budget,
    /// Of one task of an agent.
    pub task: Budget,
    /// Of one sponsor: all of their agents together.
    #[serde(deserialize_with = "sponsor_budget")]
    pub sponsor: Budget,
    /// How long a pending lease waits for signatures.
    pub sign_within: Span,
    /// How long an approved lease waits to be claimed.
    pub claim_within: Span,
    /// A claim that nobody settled for so long was left by a crash; longer than an AWS call may take.
    pub settle_within: Span,
    /// A session is handed out again until this long before its end.
    pub redeliver_until: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            agent: Budget::AGENT,
            task: Budget::AGENT,
            sponsor: Budget::SPONSOR,
            sign_within: Span(Duration::minutes(30)),
            claim_within: Span(Duration::minutes(15)),
            settle_within: Span(Duration::seconds(30)),
            redeliver_until: Span(Duration::minutes(5)),
        }
    }
}

/// How much may be asked for and held; each at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Approved and issued leases that have not ended.
    pub live_leases: u32,
    pub pending_leases: u32,
    /// All that were recorded, denied ones too.
    pub requests_per_minute: u32,
    /// Distinct scopes of requests that were not denied.
    pub scopes_per_hour: u32,
    /// Distinct resources of requests that were not denied; a pattern is one.
    pub resources_per_hour: u32,
    /// Requests that people had to sign, and that were not denied.
    pub signed_per_day: u32,
}

impl Budget {
    const AGENT: Self = Self {
        live_leases: 20,
        pending_leases: 5,
        requests_per_minute: 10,
        scopes_per_hour: 10,
        resources_per_hour: 100,
        signed_per_day: 20,
    };
    const SPONSOR: Self = Self {
        live_leases: 50,
        pending_leases: 20,
        requests_per_minute: 60,
        scopes_per_hour: 20,
        resources_per_hour: 300,
        signed_per_day: 50,
    };

    /// As written in the file, and `default` where nothing is.
    fn read<'de, D: Deserializer<'de>>(file: D, default: Self) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            live_leases: Option<u32>,
            pending_leases: Option<u32>,
            requests_per_minute: Option<u32>,
            scopes_per_hour: Option<u32>,
            resources_per_hour: Option<u32>,
            signed_per_day: Option<u32>,
        }
        let it = Written::deserialize(file)?;
        Ok(Self {
            live_leases: it.live_leases.unwrap_or(default.live_leases),
            pending_leases: it.pending_leases.unwrap_or(default.pending_leases),
            requests_per_minute: it.requests_per_minute.unwrap_or(default.requests_per_minute),
            scopes_per_hour: it.scopes_per_hour.unwrap_or(default.scopes_per_hour),
            resources_per_hour: it.resources_per_hour.unwrap_or(default.resources_per_hour),
            signed_per_day: it.signed_per_day.unwrap_or(default.signed_per_day),
        })
    }

    /// Each by name.
    pub const fn numbers(&self) -> [(&'static str, u32); 6] {
        [
            ("live_leases", self.live_leases),
            ("pending_leases", self.pending_leases),
            ("requests_per_minute", self.requests_per_minute),
            ("scopes_per_hour", self.scopes_per_hour),
            ("resources_per_hour", self.resources_per_hour),
            ("signed_per_day", self.signed_per_day),
        ]
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(file: D) -> Result<Self, D::Error> {
        Self::read(file, Self::AGENT)
    }
}

fn sponsor_budget<'de, D: Deserializer<'de>>(file: D) -> Result<Budget, D::Error> {
    Budget::read(file, Budget::SPONSOR)
}

impl Limits {
    /// Each budget with its name.
    fn budgets(&self) -> [(&'static str, &Budget); 3] {
        [("agent", &self.agent), ("task", &self.task), ("sponsor", &self.sponsor)]
    }

    /// The most resources that one request can be on: more are over a budget at any time.
    pub fn resources_at_once(&self) -> u32 {
        let most = self.budgets().map(|(_, it)| it.resources_per_hour);
        most.into_iter().min().unwrap_or_default()
    }

    /// Each by name, where more allows more.
    pub fn numbers(&self) -> Vec<(String, u32)> {
        let budgets = self.budgets().into_iter().flat_map(|(whose, budget)| {
            budget.numbers().map(|(name, limit)| (format!("{whose}.{name}"), limit))
        });
        let times = [("sign_within", self.sign_within), ("claim_within", self.claim_within)];
        let times = times.map(|(name, it)| (format!("{name} seconds"), it.seconds()));
        budgets.chain(times).collect()
    }
}

/// What decides about requests, as it is kept in the database under its digest.
#[derive(Serialize)]
struct Ruleset<'a> {
    /// `scopes.toml`, as text.
    scopes: &'a str,
    /// Rule files: name to text.
    policies: &'a BTreeMap<String, String>,
    home: &'a HomeFile,
    /// The broker's own principals, which are out of reach too.
    principals: &'a [String],
    /// SHA-256 of the table of actions, in hex.
    action_table: &'static str,
    software_keys: bool,
    /// Who comes as which agent without a sponsor's signature, and who is taken for having set it off.
    #[serde(skip_serializing_if = "<[Issuer]>::is_empty")]
    issuers: &'a [Issuer],
}

impl Config {
    /// Reads and validates the directory. No side effect.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("broker.toml");
        let text = read(&path)?;
        let mut settings: Settings = parse(&path, &text)?;
        settings.instance_key = dir.join(&settings.instance_key);
        for key in &mut settings.former_instance_keys {
            *key = dir.join(&*key);
        }
        let invalid = |message| ConfigError::Invalid { path: path.clone(), message };
        settings.validate().map_err(invalid)?;
        if let Some(file) = &mut settings.aws.credentials_file {
            *file = dir.join(&*file);
        }
        settings.log.key = dir.join(&settings.log.key);
        for anchor in &mut settings.log.anchors {
            if let Anchor::File { path, .. } = anchor {
                *path = dir.join(&*path);
            }
        }
        let own: Vec<_> = settings.aws.own().into_iter().chain(settings.log.own()).collect();
        let home = Home::build(&settings.home, &own).map_err(invalid)?;
        let attestation_roots = match &settings.authority.attestation_roots {
            None => None,
            Some(name) => {
                let path = dir.join(name);
                let roots = Roots::from_pem(&read(&path)?);
                Some(roots.map_err(|message| ConfigError::Invalid { path, message })?)
            }
        };
        let issuers = Issuers::load(&settings.issuers, dir).map_err(invalid)?;
        let software_keys = settings.counts_software_keys();

        let path = dir.join("scopes.toml");
        let scopes = read(&path)?;
        let catalogue = Catalogue::build(parse(&path, &scopes)?, &scopes, home, software_keys)
            .map_err(|message| ConfigError::Invalid { path, message })?;

        let files = read_rules(&dir.join("policies"))?;
        let policy = Policy::parse(&files)?;
        let name = |it: &Path| it.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rules = files.into_iter().map(|(path, text)| (name(&path), text)).collect();

        let ruleset = canonical(&Ruleset {
            scopes: &scopes,
            policies: &rules,
            home: &settings.home,
            principals: &own,
            action_table: actions::sha256(),
            software_keys,
            issuers: &settings.issuers,
        })
        .expect("texts serialize");
        let sha256 = sha256_hex(&ruleset);
        Ok(Self { settings, catalogue, policy, rules, ruleset, sha256, attestation_roots, issuers })
    }
}

/// The rule files of a directory, by name.
fn read_rules(dir: &Path) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    let unreadable = |error| ConfigError::Read { path: dir.to_owned(), error };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|it| it == "cedar") {
            files.push(path);
        }
    }
    files.sort();
    files.into_iter().map(|path| read(&path).map(|text| (path, text))).collect()
}

impl Settings {
    /// What acts of authority ask for here: in dev mode the demo people have nothing but files, and nobody to wait for.
    pub fn demanded(&self, assurance: Assurance) -> Assurance {
        if self.counts_software_keys() { Assurance::Software } else { assurance }
    }

    /// How long changes of people wait.
    pub fn cool_down(&self) -> Duration {
        if self.counts_software_keys() { Duration::ZERO } else { self.authority.cool_down.0 }
    }

    pub fn counts_software_keys(&self) -> bool {
        self.dev.is_some_and(|it| it.software_keys)
    }

    fn validate(&self) -> Result<(), String> {
        let (scheme, host) = self.origin.split_once("://").unwrap_or_default();
        let host_name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let local = matches!(host_name, "localhost" | "127.0.0.1" | "[::1]");
        if host.is_empty()
            || host.contains('/')
            || !(scheme == "https" || scheme == "http" && local)
        {
            return Err(format!(
                "origin = {:?}: write `https://HOST`, without a path (plain http is for localhost only)",
                self.origin
            ));
        }
        if !self.listen.ip().is_loopback() && !self.behind_tls_proxy {
            return Err(format!(
                "listen = \"{}\" is plain HTTP beyond loopback: listen on 127.0.0.1, or put a TLS proxy in front and write `behind_tls_proxy = true`",
                self.listen
            ));
        }
        self.aws.validate()?;
        self.log.validate(&self.aws)?;
        for (index, issuer) in self.issuers.iter().enumerate() {
            issuer.validate(self.authority.longest_task)?;
            if self.issuers[..index].iter().any(|it| it.issuer == issuer.issuer) {
                return Err(format!("issuers: {} is there twice", issuer.issuer));
            }
        }
        let Authority { start_task, thaw, change_people, .. } = self.authority;
        if start_task.min(thaw).min(change_people) < Assurance::Present {
            return Err("[authority] asks for `present` or `verified`: a program can use a software key by itself".into());
        }
        if self.limits.settle_within.0 < self.aws.call_timeout.0 * 3 {
            return Err("limits.settle_within must be at least three times aws.call_timeout, or a slow mint is taken for a crashed one".into());
        }
        for (whose, budget) in self.limits.budgets() {
            if let Some((name, _)) = budget.numbers().into_iter().find(|(_, limit)| *limit == 0) {
                return Err(format!(
                    "limits.{whose}.{name} = 0: write 1 or more; that nothing is issued to somebody is a freeze, or a rule in policies/"
                ));
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Read { path: path.to_owned(), error })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text)
        .map_err(|error| ConfigError::Toml { path: path.to_owned(), error: Box::new(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let settings: Settings = toml::from_str(text).map_err(|error| error.to_string())?;
        settings.validate().map(|()| settings)
    }

    const GOOD: &str = "origin = \"https://broker.example\"\nlisten = \"127.0.0.1:8750\"\ninstance_key = \"k.pem\"\n[aws]\nregion = \"eu-west-1\"\nminter = { arn = \"arn:aws:iam::999999999999:user/minter\" }\nrevoker = { arn = \"arn:aws:iam::999999999999:user/revoker\", profile = \"revoker\" }\ndoctor = { arn = \"arn:aws:iam::999999999999:user/doctor\", profile = \"doctor\" }\n[log]\norigin = \"broker.example/log\"\nkey = \"log.pem\"\n[home]\naccounts = [\"999999999999\"]\n";

    #[test]
    fn an_anchor_has_a_name_and_a_principal_of_its_own() {
        let with = |anchors: &str| {
            let text = GOOD.replace("log.pem\"\n", &format!("log.pem\"\nanchors = [{anchors}]\n"));
            settings(&text).map(drop)
        };
        let bucket = |name: &str, user: &str, profile: &str| {
            format!(
                "{{ kind = \"s3\", name = \"{name}\", bucket = \"b\", region = \"eu-west-1\", principal = {{ arn = \"arn:aws:iam::111111111111:user/{user}\"{profile} }} }}"
            )
        };
        let own = ", profile = \"anchor\"";
        let folder = "{ kind = \"file\", name = \"folder\", path = \"/mnt/elsewhere\" }";
        assert_eq!(with(&format!("{folder}, {}", bucket("vault", "anchor", own))), Ok(()));
        for (anchors, why) in [
            (format!("{folder}, {folder}"), "name of its own"),
            (bucket("vault", "anchor", ""), "needs a `profile`"),
            (bucket("vault", "anchor", ", profile = \"revoker\""), "is aws.revoker"),
            (
                "{ kind = \"file\", name = \"x\", path = \"/\", bucket = \"b\" }".to_owned(),
                "unknown field",
            ),
            ("{ kind = \"mail\", name = \"x\" }".to_owned(), "unknown variant"),
        ] {
            let error = with(&anchors).expect_err(&anchors);
            assert!(error.contains(why), "{anchors}: {error}");
        }
    }

    #[test]
    fn plain_http_beyond_loopback_needs_the_operators_word() {
        assert!(settings(GOOD).is_ok());
        let wide = GOOD.replace("127.0.0.1", "0.0.0.0");
        assert!(settings(&wide).unwrap_err().contains("behind_tls_proxy"));
        assert!(settings(&format!("behind_tls_proxy = true\n{wide}")).is_ok());
        assert!(settings(&GOOD.replace("https", "http")).unwrap_err().contains("origin"));
    }

    #[test]
    fn an_unknown_field_and_a_span_without_a_unit_say_where_and_what() {
        let unknown = settings(&format!("{GOOD}sts = 1\n")).unwrap_err();
        assert!(unknown.contains("line 14") && unknown.contains("unknown field"), "{unknown}");
        let span = settings(&format!("{GOOD}[limits]\nsign_within = \"30\"\n")).unwrap_err();
        assert!(span.contains("write whole seconds or more"), "{span}");
    }

    #[test]
    fn a_software_key_is_never_enough_for_an_act_of_authority() {
        for name in ["start_task", "thaw", "change_people"] {
            let with = |word: &str| settings(&format!("{GOOD}[authority]\n{name} = \"{word}\"\n"));
            assert!(with("software").unwrap_err().contains("[authority] asks for"), "{name}");
            assert!(with("present").is_ok(), "{name}");
        }
    }

    #[test]
    fn a_budget_keeps_its_defaults_beside_what_is_written_and_is_never_zero() {
        let written = settings(&format!(
            "{GOOD}[limits]\nsign_within = \"1h\"\n[limits.sponsor]\nlive_leases = 3\n[limits.task]\nscopes_per_hour = 2\n"
        ));
        let limits = written.unwrap().limits;
        assert_eq!(limits.agent, Budget::AGENT);
        assert_eq!(limits.task, Budget { scopes_per_hour: 2, ..Budget::AGENT });
        assert_eq!(limits.sponsor, Budget { live_leases: 3, ..Budget::SPONSOR });

        let zero = settings(&format!("{GOOD}[limits.sponsor]\nsigned_per_day = 0\n")).unwrap_err();
        assert!(zero.contains("limits.sponsor.signed_per_day = 0: write 1 or more"), "{zero}");
        let unknown = settings(&format!("{GOOD}[limits.task]\nleases = 1\n")).unwrap_err();
        assert!(unknown.contains("unknown field") && unknown.contains("leases"), "{unknown}");
        let old = settings(&format!("{GOOD}[limits]\nlive_leases_per_agent = 1\n")).unwrap_err();
        assert!(old.contains("unknown field") && old.contains("`agent`"), "{old}");
    }
}
