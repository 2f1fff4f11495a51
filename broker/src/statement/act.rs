//! Acts of authority beside the decision about a lease: a task is started, a freeze ends, people and keys change.

use serde::{Deserialize, Serialize};
use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Issuer, Meaning, Sealed, Signers, StatementError, Terms, canonical, sha256_hex};
use crate::lease::{Assurance, Decision, FreezeKind, spelled};
use crate::verify::SK_APPLICATION;

/// The statement that is signed for an act.
pub type ActStatement = Sealed<ActTerms>;

/// Whoever is in it may change people and keys.
pub const ADMINS: &str = "admins";

spelled! {
    /// What an act is about, and part of its payload type.
    ActKind {
        TaskStart = "task-start",
        Thaw = "thaw",
        AdminChange = "admin-change",
    }
}

spelled! {
    /// Where an act stands.
    ActState {
        Proposed = "proposed",
        /// Signed, and in its cool-down.
        Signed = "signed",
        Done = "done",
        Refused = "refused",
        /// Not signed in time.
        Lapsed = "lapsed",
        /// What it builds on was no longer so when it should have taken effect.
        Failed = "failed",
    }
}

/// Everything that whoever signs must judge, and exactly what is then done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActTerms {
    pub broker: Issuer,
    pub id: Uuid,
    pub act: Act,
    /// The person who had it drawn up; without one, an operator on the server's host.
    pub proposed_by: Option<String>,
    pub signers: Signers,
    #[serde(with = "time::serde::rfc3339")]
    pub proposed_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub sign_by: OffsetDateTime,
    /// How long after the signature it takes effect; until then it can be refused.
    pub cool_down_seconds: u32,
    /// 32 random bytes in hex: makes the bytes unpredictable and unrepeatable.
    pub nonce: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Act {
    TaskStart(TaskStart),
    Thaw(Thaw),
    AdminChange(Change),
}

/// A sponsor hands a task to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStart {
    pub agent: String,
    pub sponsor: String,
    pub task: String,
    pub ttl_seconds: u32,
}

/// A standing freeze ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thaw {
    pub freeze_id: Uuid,
    pub freeze: FreezeKind,
    /// Whom or what it is about; nothing if about everything.
    pub target: Option<String>,
    pub frozen_by: String,
    pub frozen_because: String,
    #[serde(with = "time::serde::rfc3339")]
    pub frozen_at: OffsetDateTime,
}

/// One change of people, groups or keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    AddPerson { person: NewPerson },
    SetGroups { handle: String, from: Vec<String>, to: Vec<String> },
    DisablePerson { handle: String, was_admin: bool },
    EnablePerson { handle: String, groups: Vec<String> },
    EnrolKey { handle: String, key: NewKey },
    RevokeKey { handle: String, fingerprint: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPerson {
    pub handle: String,
    pub display_name: String,
    pub email: String,
    /// Sorted.
    pub groups: Vec<String>,
    pub key: Option<NewKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// One line in OpenSSH's format, without a comment.
    pub public_key: String,
    /// `SHA256:…`, of that key.
    pub fingerprint: String,
    pub assurance: Assurance,
    pub evidence: Evidence,
}

/// How it is known what a key is kept in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "hardware", rename_all = "kebab-case")]
pub enum Evidence {
    /// It is not.
    Unknown,
    /// The admin who signs this has seen the hardware in this person's hand; at bootstrap, the operator.
    Seen,
    /// Its maker says so.
    Attested {
        /// `ssh-sk-attest-v01`.
        format: String,
        /// What `ssh-keygen -O write-attestation` wrote, in standard base64.
        attestation: String,
        /// What it was challenged with, in standard base64.
        challenge: String,
        /// SHA-256 of the attestation certificate, in hex.
        certificate_sha256: String,
        /// What the certificate says the hardware is.
        hardware_is: String,
    },
}

impl ActTerms {
    /// What a signature over these terms says; nothing if that cannot be said of them.
    pub const fn meaning(&self, decision: Decision) -> Option<Meaning> {
        match (&self.act, decision) {
            (Act::TaskStart(_), Decision::Approve) => Some(Meaning::TaskStart),
            (Act::Thaw(_), Decision::Approve) => Some(Meaning::Thaw),
            (Act::AdminChange(_), Decision::Approve) => Some(Meaning::AdminChange),
            (Act::AdminChange(_), Decision::Refuse) => Some(Meaning::AdminChangeRefusal),
            (Act::TaskStart(_) | Act::Thaw(_), Decision::Refuse) => None,
        }
    }
}

impl Act {
    pub const fn kind(&self) -> ActKind {
        match self {
            Self::TaskStart(_) => ActKind::TaskStart,
            Self::Thaw(_) => ActKind::Thaw,
            Self::AdminChange(_) => ActKind::AdminChange,
        }
    }

    /// The person it changes something for.
    pub fn about(&self) -> Option<&str> {
        match self {
            Self::TaskStart(it) => Some(&it.sponsor),
            Self::Thaw(_) => None,
            Self::AdminChange(it) => Some(it.handle()),
        }
    }
}

impl Change {
    pub fn handle(&self) -> &str {
        match self {
            Self::AddPerson { person } => &person.handle,
            Self::SetGroups { handle, .. }
            | Self::DisablePerson { handle, .. }
            | Self::EnablePerson { handle, .. }
            | Self::EnrolKey { handle, .. }
            | Self::RevokeKey { handle, .. } => handle,
        }
    }

    /// Whether it waits for the cool-down: what gives authority does, and what takes it from an admin, so that nobody
    /// ends the others' say at a stroke. What takes it from anybody else, or revokes a key, is done at once.
    pub fn cools_down(&self) -> bool {
        match self {
            Self::AddPerson { .. } | Self::EnablePerson { .. } | Self::EnrolKey { .. } => true,
            Self::SetGroups { from, to, .. } => {
                to.iter().any(|it| !from.contains(it)) || from.iter().any(|it| it == ADMINS)
            }
            Self::DisablePerson { was_admin, .. } => *was_admin,
            Self::RevokeKey { .. } => false,
        }
    }

    /// Whether the person concerned may do it themselves.
    pub const fn is_ones_own(&self) -> bool {
        matches!(self, Self::RevokeKey { .. })
    }

    pub fn new_key(&self) -> Option<&NewKey> {
        match self {
            Self::AddPerson { person } => person.key.as_ref(),
            Self::EnrolKey { key, .. } => Some(key),
            _ => None,
        }
    }
}

impl Terms for ActTerms {
    fn predicate_type(&self) -> &'static str {
        match self.act.kind() {
            ActKind::TaskStart => "urn:broker:task-start:v1",
            ActKind::Thaw => "urn:broker:thaw:v1",
            ActKind::AdminChange => "urn:broker:admin-change:v1",
        }
    }

    /// The digest is that of the act's own canonical JSON.
    fn subject(&self) -> (String, String) {
        let act = canonical(&self.act).expect("an act is an object of strings and small numbers");
        (format!("{}/{}", self.act.kind(), self.id), sha256_hex(&act))
    }

    fn check(&self) -> Result<(), StatementError> {
        let refuse = |what| Err(StatementError::Contradiction(what));
        let Signers { eligible, needed, .. } = &self.signers;
        if eligible.is_empty() || *needed != 1 {
            return refuse("one of those who are named signs it");
        }
        let named = |handle: &String| eligible.contains(handle);
        match &self.act {
            Act::TaskStart(task) => {
                if *eligible != [task.sponsor.clone()] {
                    return refuse("a task is started by its sponsor alone");
                }
                if !is_name(&task.agent) || !is_line(&task.task) || task.ttl_seconds < 60 {
                    return refuse("a task names an agent, a ticket and a time");
                }
            }
            Act::Thaw(thaw) => {
                if named(&thaw.frozen_by) {
                    return refuse("who froze it does not thaw it");
                }
                if (thaw.freeze == FreezeKind::All) != thaw.target.is_none() {
                    return refuse("a freeze is of something, or of everything");
                }
            }
            Act::AdminChange(change) => {
                if !change.is_ones_own()
                    && (eligible.iter().any(|it| it == change.handle())
                        || self.proposed_by.as_ref().is_some_and(named))
                {
                    return refuse("another admin signs it");
                }
                check_change(change)?;
            }
        }
        let waits = matches!(&self.act, Act::AdminChange(it) if it.cools_down());
        if !waits && self.cool_down_seconds != 0 {
            return refuse("it takes effect at once");
        }
        Ok(())
    }
}

/// Whether a change is one that can be.
pub fn check_change(change: &Change) -> Result<(), StatementError> {
    let refuse = |what| Err(StatementError::Contradiction(what));
    if !is_name(change.handle()) {
        return refuse("a handle is small letters, digits, dots, dashes and underscores");
    }
    let groups: &[&Vec<String>] = match change {
        Change::AddPerson { person } => {
            if !is_line(&person.display_name) || !is_line(&person.email) {
                return refuse("a person has a name and an address");
            }
            &[&person.groups]
        }
        Change::SetGroups { from, to, .. } => {
            if from == to {
                return refuse("it changes nothing");
            }
            &[from, to]
        }
        Change::EnablePerson { groups, .. } => &[groups],
        _ => &[],
    };
    let in_order = |list: &&Vec<String>| list.windows(2).all(|it| it[0] < it[1]);
    if !groups.iter().all(in_order) || !groups.iter().all(|it| it.iter().all(|it| is_name(it))) {
        return refuse("groups are named in order, each once");
    }
    let Some(key) = change.new_key() else { return Ok(()) };
    let Ok(public) = PublicKey::from_openssh(&key.public_key) else {
        return refuse("the key is not an SSH public key");
    };
    let bare = PublicKey::from(public.key_data().clone()).to_openssh().ok();
    if bare.as_ref() != Some(&key.public_key)
        || public.fingerprint(HashAlg::Sha256).to_string() != key.fingerprint
    {
        return refuse("the fingerprint is not the key's");
    }
    let hardware = match public.key_data() {
        KeyData::SkEd25519(it) => it.application() == SK_APPLICATION,
        KeyData::SkEcdsaSha2NistP256(it) => it.application() == SK_APPLICATION,
        _ => false,
    };
    if key.assurance != Assurance::Software && (!hardware || key.evidence == Evidence::Unknown) {
        return refuse("nobody knows that it is hardware made for this");
    }
    Ok(())
}

/// What people, agents and groups are called.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 63
        && bytes.next().is_some_and(|it| it.is_ascii_lowercase())
        && bytes.all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || b"._-".contains(&it))
}

/// One line of words, and not an essay.
pub fn is_line(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && !text.trim().is_empty()
        && !text.chars().any(char::is_control)
}
