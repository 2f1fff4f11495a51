//! What the live accounts, the database and this host say: what the checks look at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use time::OffsetDateTime;

use super::document::Document;

/// Everything that was looked at, each part as far as it could be read.
#[derive(Debug)]
pub struct Estate {
    pub now: OffsetDateTime,
    pub cloud: Cloud,
    pub database: Part<Database>,
    pub files: Vec<KeyFile>,
    /// Fingerprint of the instance's own key, as a person's key would have.
    pub instance_key: Option<String>,
}

pub type Part<T> = Result<T, Unread>;

/// Why something could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unread {
    /// It answered, and not to us.
    #[error("refused: {0}")]
    Refused(String),
    #[error("not reached: {0}")]
    Unreachable(String),
    /// We have nothing to ask with.
    #[error("not asked: {0}")]
    NotAsked(String),
}

#[derive(Debug)]
pub struct Cloud {
    /// Who the doctor is, as STS says.
    pub doctor: Part<Answer>,
    pub minter: Part<Answer>,
    pub accounts: BTreeMap<String, Part<Account>>,
    /// Policies of the buckets that scopes may reach, by bucket; `None` where there is none.
    pub buckets: BTreeMap<String, Part<Option<Document>>>,
    /// Access keys of those of the broker's own principals that are users, by ARN.
    pub access_keys: BTreeMap<String, Part<Vec<AccessKey>>>,
}

/// What STS answered to `GetCallerIdentity`.
#[derive(Clone, Debug)]
pub struct Answer {
    pub arn: String,
    /// The host that was asked.
    pub host: String,
    /// How far its clock is ahead of ours, in seconds, give or take one; if it said.
    pub ahead: Option<i64>,
}

/// Users and roles of an account, by ARN.
#[derive(Debug, Default)]
pub struct Account {
    pub identities: BTreeMap<String, Identity>,
}

/// A user or a role.
#[derive(Debug)]
pub struct Identity {
    pub arn: String,
    /// `AIDA…` or `AROA…`.
    pub id: String,
    /// Its own, and those of its groups.
    pub policies: Vec<Policy>,
    pub boundary: Option<Policy>,
    /// Of a role.
    pub trust: Option<Document>,
    /// Of a role of ours.
    pub longest_session_seconds: Option<i32>,
}

#[derive(Debug)]
pub struct Policy {
    pub name: String,
    /// If it is a managed one.
    pub arn: Option<String>,
    pub document: Document,
}

#[derive(Debug)]
pub struct AccessKey {
    pub id: String,
    pub active: bool,
    pub made_at: OffsetDateTime,
}

#[derive(Debug)]
pub struct Database {
    /// Who we are to it.
    pub login: String,
    pub ahead_seconds: i64,
    /// If we may know; 0 where there is none.
    pub schema_version: Option<i64>,
    /// What its catalogs say, a line each; see [`crate::store::CATALOG`].
    pub facts: BTreeSet<String>,
    /// Those that are not revoked.
    pub keys: Vec<PersonKey>,
    /// When the oldest checkpoint was signed that no anchor has, nor one that covers it.
    pub unanchored_since: Option<OffsetDateTime>,
}

#[derive(Debug)]
pub struct PersonKey {
    pub person: String,
    pub fingerprint: String,
    pub assurance: String,
    pub enrolled_at: OffsetDateTime,
}

/// A file with a secret in it.
#[derive(Debug)]
pub struct KeyFile {
    pub what: &'static str,
    pub path: PathBuf,
    /// Permission bits; `None` if it is not there.
    pub mode: Option<u32>,
    pub written_at: Option<OffsetDateTime>,
}

impl Identity {
    /// Whether it could do something that `action` (in lower case) matches on something that `resource` matches.
    pub fn may(&self, action: &str, resource: &str) -> bool {
        let allowed = self.policies.iter().any(|it| it.document.may_allow(action, resource));
        let bound = self.boundary.as_ref().is_none_or(|it| it.document.may_allow(action, resource));
        let all = self.policies.iter().chain(&self.boundary);
        allowed && bound && !all.into_iter().any(|it| it.document.surely_denies(action, resource))
    }
}
