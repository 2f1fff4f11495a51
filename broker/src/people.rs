//! `brokerd person`: who there is. An operator on the server's host sets the first two admins up; from then on this
//! only proposes, and another admin signs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use sqlx::PgConnection;
use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::attestation::{self, Roots};
use crate::audit::Scribe;
use crate::broker::{nonce, whole_microseconds};
use crate::config::Config;
use crate::identity::Tokens;
use crate::statement::Signers;
use crate::statement::act::{
    ADMINS, Act, ActStatement, ActTerms, Change, Evidence, NewKey, NewPerson,
};
use crate::store;
use crate::verify::SK_APPLICATION;

/// How long a change waits for an admin's signature.
const SIGN_WITHIN: Duration = Duration::days(7);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everybody, with their groups and keys
    List,
    /// A new person. The first two are the admins, and are enrolled at once
    Add {
        /// What they are called everywhere: small letters, digits, dots, dashes and underscores
        handle: String,
        /// Their name
        #[arg(long)]
        name: String,
        #[arg(long)]
        email: String,
        /// A group to be in; repeat for more
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Puts a person in groups, or takes them out
    Groups {
        handle: String,
        #[arg(long = "add", value_name = "GROUP")]
        add: Vec<String>,
        #[arg(long = "remove", value_name = "GROUP")]
        remove: Vec<String>,
    },
    /// Stops a person, and every task and open lease of the agents they stand behind
    Disable { handle: String },
    /// Lets a disabled person back in
    Enable { handle: String },
    /// A further key of a person
    EnrolKey {
        handle: String,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Revokes a key; its owner and any admin can do the same at once with `broker key revoke`
    RevokeKey {
        /// `SHA256:…`, as `brokerd person list` and `ssh-keygen -l` print it
        fingerprint: String,
    },
}

/// A key, and how it is known what it is kept in.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The public key: what `ssh-keygen -t ed25519-sk -O application=ssh:broker -O verify-required` wrote to FILE.pub
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Whoever signs the change has seen the hardware in this person's hand
    #[arg(long, requires = "key", conflicts_with = "attestation")]
    seen: bool,
    /// What `ssh-keygen -O write-attestation=FILE` wrote: its maker says what the key is kept in
    #[arg(long, value_name = "FILE", requires_all = ["key", "challenge"])]
    attestation: Option<PathBuf>,
    /// What `ssh-keygen -O challenge=FILE` was given: fresh random bytes, for instance of `openssl rand 32`
    #[arg(long, value_name = "FILE", requires = "attestation")]
    challenge: Option<PathBuf>,
}

/// What a command came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For stdout.
    pub data: String,
    /// For stderr.
    pub words: String,
}

/// Runs one command on `owner`, a connection that acts as the owner.
pub async fn run(
    command: &Command,
    config: &Config,
    owner: &mut PgConnection,
    now: OffsetDateTime,
) -> anyhow::Result<Outcome> {
    let now = whole_microseconds(now);
    let people = store::everybody(owner).await?;
    let person = |handle: &str| {
        people.iter().find(|it| it.handle == handle).with_context(|| {
            format!("there is no person {handle:?}; `brokerd person list` has everybody")
        })
    };
    let change = match command {
        Command::List => return Ok(Outcome { data: table(&people), words: String::new() }),
        Command::Add { handle, name, email, groups, key } => {
            ensure!(
                !people.iter().any(|it| it.handle == *handle),
                "there is a person {handle:?} already; nobody's name is used again"
            );
            let mut groups = groups.clone();
            groups.sort_unstable();
            groups.dedup();
            let person = NewPerson {
                handle: handle.clone(),
                display_name: name.clone(),
                email: email.clone(),
                groups,
                key: key.read(config, now)?,
            };
            if !store::bootstrap_is_over(&mut *owner).await? {
                return bootstrap(config, owner, person, now).await;
            }
            Change::AddPerson { person }
        }
        Command::Groups { handle, add, remove } => {
            let from = person(handle)?.groups.clone();
            let mut to: Vec<_> = from.iter().filter(|it| !remove.contains(it)).cloned().collect();
            to.extend(add.iter().filter(|it| !from.contains(it)).cloned());
            to.sort_unstable();
            to.dedup();
            ensure!(from != to, "{handle} is in exactly those groups already: {}", from.join(", "));
            Change::SetGroups { handle: handle.clone(), from, to }
        }
        Command::Disable { handle } => {
            let person = person(handle)?;
            ensure!(!person.disabled, "{handle} is disabled already");
            let was_admin = person.groups.iter().any(|it| it == ADMINS);
            Change::DisablePerson { handle: handle.clone(), was_admin }
        }
        Command::Enable { handle } => {
            let person = person(handle)?;
            ensure!(person.disabled, "{handle} is not disabled");
            Change::EnablePerson { handle: handle.clone(), groups: person.groups.clone() }
        }
        Command::EnrolKey { handle, key } => {
            person(handle)?;
            let key = key.read(config, now)?.context("name the key: --key FILE.pub")?;
            ensure!(
                !people.iter().flat_map(|it| &it.keys).any(|it| it.fingerprint == key.fingerprint),
                "this key is enrolled already; one key belongs to one person, for ever"
            );
            Change::EnrolKey { handle: handle.clone(), key }
        }
        Command::RevokeKey { fingerprint } => {
            let good = |it: &&store::Enrolled| {
                it.keys.iter().any(|key| key.fingerprint == *fingerprint && !key.revoked)
            };
            let owner = people.iter().find(good).with_context(|| {
                format!("no key {fingerprint} is good here; `brokerd person list` has them all")
            })?;
            Change::RevokeKey { handle: owner.handle.clone(), fingerprint: fingerprint.clone() }
        }
    };
    ensure!(
        store::bootstrap_is_over(&mut *owner).await?,
        "first set up two admins: `brokerd person add HANDLE --group {ADMINS} --key FILE.pub --seen …`, twice"
    );
    propose(config, owner, &people, change, now).await
}

/// Sets up an admin, one of the first two, on the operator's word.
async fn bootstrap(
    config: &Config,
    owner: &mut PgConnection,
    person: NewPerson,
    now: OffsetDateTime,
) -> anyhow::Result<Outcome> {
    let demanded = config.settings.demanded(config.settings.authority.change_people);
    ensure!(
        person.groups.iter().any(|it| it == ADMINS),
        "the first two people are the admins, who then sign for all others: add --group {ADMINS}"
    );
    let Some(key) = &person.key else {
        bail!("an admin signs: add --key FILE.pub");
    };
    ensure!(
        demanded <= key.assurance,
        "an admin's key is of assurance {demanded} at least, this one is {}: a hardware key, made with \
         `ssh-keygen -t ed25519-sk -O application=ssh:broker -O verify-required`, that you have seen (--seen)",
        key.assurance
    );
    // The same checks as for a statement, which there is nobody to sign.
    crate::statement::act::check_change(&Change::AddPerson { person: person.clone() })?;
    let scribe = Scribe { source: config.settings.origin.clone() };
    store::enrol(owner, &scribe, &person, now).await?;
    let words = if store::bootstrap_is_over(&mut *owner).await? {
        format!(
            "{} is enrolled. From now on people and keys change only by what another admin signs.",
            person.handle
        )
    } else {
        format!(
            "{} is enrolled. Now the second admin: from then on they sign for each other.",
            person.handle
        )
    };
    Ok(Outcome { data: String::new(), words })
}

/// Draws up a change for another admin to sign.
async fn propose(
    config: &Config,
    owner: &mut PgConnection,
    people: &[store::Enrolled],
    change: Change,
    now: OffsetDateTime,
) -> anyhow::Result<Outcome> {
    let settings = &config.settings;
    let assurance = settings.demanded(settings.authority.change_people);
    let able = |it: &&store::Enrolled| {
        !it.disabled
            && it.handle != change.handle()
            && it.groups.iter().any(|it| it == ADMINS)
            && it.keys.iter().any(|it| !it.revoked && assurance <= it.assurance)
    };
    let eligible: Vec<_> = people.iter().filter(able).map(|it| it.handle.clone()).collect();
    ensure!(
        !eligible.is_empty(),
        "no admin but {} has a key of assurance {assurance} that could sign for this",
        change.handle()
    );
    let cool_down = if change.cools_down() { settings.cool_down() } else { Duration::ZERO };
    let terms = ActTerms {
        broker: Tokens::load(
            &settings.instance_key,
            &settings.former_instance_keys,
            &settings.origin,
        )?
        .issuer(),
        id: Uuid::now_v7(),
        act: Act::AdminChange(change),
        proposed_by: None,
        signers: Signers { eligible, needed: 1, assurance },
        proposed_at: now,
        sign_by: now + SIGN_WITHIN,
        cool_down_seconds: u32::try_from(cool_down.whole_seconds())?,
        nonce: nonce(),
    };
    let statement = ActStatement::new(terms)?;
    let scribe = Scribe { source: settings.origin.clone() };
    store::propose(&mut *owner, &scribe, &statement).await?;
    let terms = statement.terms();
    let mut words = crate::render::act::act(&statement);
    let _ = write!(
        words,
        "proposed, and nothing more: one of {} signs it with `broker sign {}`",
        terms.signers.eligible.join(", "),
        terms.id
    );
    Ok(Outcome { data: format!("{}\n", terms.id), words })
}

impl KeyArgs {
    /// The key, with the assurance that follows from what is known of it.
    fn read(&self, config: &Config, now: OffsetDateTime) -> anyhow::Result<Option<NewKey>> {
        let Some(path) = &self.key else { return Ok(None) };
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let public = PublicKey::from_openssh(text.trim()).with_context(|| {
            format!("{} is not an SSH public key: name the .pub file", path.display())
        })?;
        let application = match public.key_data() {
            KeyData::SkEd25519(key) => key.application(),
            KeyData::SkEcdsaSha2NistP256(key) => key.application(),
            _ => SK_APPLICATION,
        };
        ensure!(
            application == SK_APPLICATION,
            "{} was made for {application:?} and could never sign here: make one with `-O application={SK_APPLICATION}`",
            path.display()
        );
        let evidence = match (&self.attestation, &self.challenge) {
            (Some(attestation), Some(challenge)) => {
                let roots = config.attestation_roots.as_ref();
                attested(roots, &public, &read(attestation)?, &read(challenge)?, now)?
            }
            _ if self.seen => Evidence::Seen,
            _ => Evidence::Unknown,
        };
        new_key(&public, evidence).map(Some)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What the maker of a key's hardware says of it, if it is one whom the operator trusts.
pub(crate) fn attested(
    roots: Option<&Roots>,
    key: &PublicKey,
    attestation: &[u8],
    challenge: &[u8],
    now: OffsetDateTime,
) -> anyhow::Result<Evidence> {
    let roots = roots.context(
        "no maker's word counts here: name their certificates in broker.toml, `attestation_roots` of [authority], or say --seen",
    )?;
    let attested =
        attestation::check(attestation, challenge, key, roots, now).map_err(|error| {
            anyhow::anyhow!("the attestation does not count: {error} ({})", error.code())
        })?;
    let model = attested.aaguid.map(|it| format!(", model {it}")).unwrap_or_default();
    Ok(Evidence::Attested {
        format: "ssh-sk-attest-v01".to_owned(),
        attestation: STANDARD.encode(attestation),
        challenge: STANDARD.encode(challenge),
        certificate_sha256: attested.certificate_sha256,
        hardware_is: format!("{}{model}", attested.subject),
    })
}

/// A key as it is enrolled: without its comment, which is anybody's words.
pub fn new_key(public: &PublicKey, evidence: Evidence) -> anyhow::Result<NewKey> {
    let bare = PublicKey::from(public.key_data().clone());
    let public_key = bare.to_openssh()?;
    Ok(NewKey {
        fingerprint: bare.fingerprint(HashAlg::Sha256).to_string(),
        assurance: attestation::assurance(&public_key, evidence != Evidence::Unknown),
        public_key,
        evidence,
    })
}

fn table(people: &[store::Enrolled]) -> String {
    let mut out = String::new();
    for person in people {
        let state = if person.disabled { "disabled" } else { "active" };
        let groups =
            if person.groups.is_empty() { "-".to_owned() } else { person.groups.join(",") };
        let _ = writeln!(
            out,
            "{:<16} {state:<8} {groups:<40} {}",
            person.handle,
            crate::render::words(&person.display_name)
        );
        for key in &person.keys {
            let state = if key.revoked { "revoked" } else { key.assurance.as_str() };
            let _ = writeln!(out, "  {:<52} {state}", key.fingerprint);
        }
    }
    out
}
