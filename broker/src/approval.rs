//! An approval as a file: the statement of a lease with everybody's signatures and keys, and its check without us. Pure.
//!
//! The file is a DSSE envelope (secure-systems-lab/dsse, `envelope.md` v1) in canonical JSON with one newline at its
//! end, sealed by the instance's key. There is exactly one spelling of it: any other byte is another file, and not valid.
//!
//! What is checked is what the file can prove: who signed what, with which keys, and that this was enough. What it
//! cannot prove is on the instance's word: which keys were whose, the times, what the rules and groups were then,
//! and that nothing came after `exported_at`. `docs/approvals.md` has the list.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ssh_key::PublicKey;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

use crate::lease::{Assurance, Decision, LeaseId, LeaseState, Tier};
use crate::statement::act::{Act, ActStatement, Change, NewKey, is_name};
use crate::statement::{LeaseStatement, LeaseTerms, Meaning, canonical, pre_authentication};
use crate::verify::{
    Demand, EnrolledKey, Rejection, Signer, Touch, UnverifiedSignature, check_signature,
    check_signer,
};

pub const PAYLOAD_TYPE: &str = "application/vnd.broker.approval-export.v1+json";

/// A larger file is not ours; bounds what is parsed.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;

/// How far apart the clocks of two replicas may be.
const SKEW: Duration = Duration::MINUTE;

/// As late as another replica's clock may have said that it was. A stranger's file may name the end of all time.
fn later(at: OffsetDateTime) -> OffsetDateTime {
    at.saturating_add(SKEW)
}

/// The file: a DSSE envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema), schema(as = ApprovalExport))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// The export, in standard base64.
    payload: String,
    payload_type: String,
    /// Exactly one, by the instance's key.
    signatures: Vec<Seal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
struct Seal {
    /// RFC 7638 thumbprint of the instance's public key.
    keyid: String,
    /// Ed25519 over the pre-authentication encoding, in standard base64.
    sig: String,
}

impl Envelope {
    /// The bytes of the file.
    pub fn file(&self) -> Vec<u8> {
        let mut file = canonical(self).expect("strings serialize");
        file.push(b'\n');
        file
    }
}

/// What is in the envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub instance_key: Jwk,
    pub origin: String,
    #[serde(with = "time::serde::rfc3339")]
    pub exported_at: OffsetDateTime,
    pub lease: Lease,
    /// The exact bytes that people signed about, in standard base64.
    pub statement: String,
    pub signatures: Vec<Signature>,
}

/// An Ed25519 public key (RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwk {
    crv: String,
    kty: String,
    x: String,
}

impl Jwk {
    pub fn of(public: [u8; 32]) -> Self {
        let x = URL_SAFE_NO_PAD.encode(public);
        Self { crv: "Ed25519".into(), kty: "OKP".into(), x }
    }

    /// For a set of keys (RFC 7517): with its id, and what it is for.
    pub fn published(&self) -> serde_json::Value {
        let Self { crv, kty, x } = self;
        serde_json::json!({ "kty": kty, "crv": crv, "x": x, "kid": self.thumbprint(), "use": "sig", "alg": "EdDSA" })
    }

    /// RFC 7638: SHA-256 of its members in order, without white space.
    pub fn thumbprint(&self) -> String {
        let members = canonical(self).expect("strings serialize");
        URL_SAFE_NO_PAD.encode(Sha256::digest(members))
    }

    fn key(&self) -> Option<VerifyingKey> {
        if self.crv != "Ed25519" || self.kty != "OKP" {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(&self.x).ok()?;
        VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok()
    }
}

/// What became of the lease. What was asked for is in the statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    pub id: LeaseId,
    pub state: LeaseState,
    pub tier: Tier,
    #[serde(with = "time::serde::rfc3339::option")]
    pub approved_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub claim_by: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub claimed_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub issued_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ends_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub end_reason: Option<String>,
}

/// One person's decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    pub person: String,
    pub decision: Decision,
    #[serde(with = "time::serde::rfc3339")]
    pub signed_at: OffsetDateTime,
    /// As it came.
    pub signature: String,
    /// Of the key when it signed, as recorded then.
    pub assurance: Assurance,
    /// What the authenticator said of the human, as recorded then; nothing for keys that cannot tell.
    pub touched: Option<bool>,
    pub verified: Option<bool>,
    /// The exact bytes that the signature is over, in standard base64, so that other tools need nothing of ours.
    pub message: String,
    pub key: Key,
}

/// A key, as it was enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub public_key: String,
    pub fingerprint: String,
    pub assurance: Assurance,
    /// How the assurance is known.
    pub evidence: String,
    #[serde(with = "time::serde::rfc3339")]
    pub enrolled_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// The signed act that enrolled it; nothing for a key from bootstrap.
    pub enrolled_by: Option<Enrolment>,
}

/// An admin's signature under the change that enrolled a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The exact bytes, in standard base64.
    pub statement: String,
    /// As it came.
    pub signature: String,
    pub signer: String,
    /// The signer's. How it was enrolled in its turn is not in the file.
    pub public_key: String,
    #[serde(with = "time::serde::rfc3339")]
    pub signed_at: OffsetDateTime,
}

/// The message that a decision's signature is over, as the export has it.
pub fn message(decision: Decision, statement: &[u8]) -> String {
    STANDARD.encode(Meaning::from(decision).message(statement))
}

/// Puts an export into its envelope, which `sign` seals with the key that the export names.
pub fn seal(
    export: &Export,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> Result<Envelope, serde_json::Error> {
    let payload = canonical(export)?;
    let sig = STANDARD.encode(sign(&pre_authentication(PAYLOAD_TYPE, &payload)));
    Ok(Envelope {
        payload: STANDARD.encode(payload),
        payload_type: PAYLOAD_TYPE.to_owned(),
        signatures: vec![Seal { keyid: export.instance_key.thumbprint(), sig }],
    })
}

/// Why a file is not valid. Each has a stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("this is not an approval's export")]
    NotAnExport,
    #[error("it is not in its one canonical form")]
    NotCanonical,
    #[error("the instance's key is not the one that its key id is of")]
    InstanceKey,
    #[error("the instance's signature is not over this payload")]
    SealBroken,
    #[error("it is sealed by another instance key than the one that was asked for")]
    NotThePinnedKey,
    #[error("the statement is not one that people sign")]
    Statement,
    #[error("people signed for another instance than the one that sealed this")]
    OtherInstance,
    #[error("people signed about another lease, or another tier")]
    OtherLease,
    #[error("the signature does not count: {0}")]
    Signature(Rejection),
    #[error("the message is not what this decision's signature is over")]
    OtherMessage,
    #[error("what was recorded of key and touch is not what the signature says")]
    OtherRecord,
    #[error("that is no name")]
    NotAName,
    #[error("it was signed before it was asked for")]
    BeforeRequest,
    #[error("the same person, or the same key, is counted twice")]
    Twice,
    #[error("fewer people approved in time than the statement demands")]
    TooFew,
    #[error("somebody refused")]
    Refused,
    #[error("state and times say otherwise than the signatures, or each other")]
    State,
    #[error("what enrolled the key is not a change that an admin signs")]
    EnrolmentStatement,
    #[error("what enrolled the key was about another key, person or instance")]
    EnrolmentOfAnother,
    #[error("who enrolled the key was not one who could")]
    EnrolmentSigner,
    #[error("the key counts from before its enrolment was signed and its cool-down over")]
    EnrolmentTime,
    #[error("the signature that enrolled the key does not count: {0}")]
    EnrolmentSignature(Rejection),
}

impl Fault {
    /// The stable code. A signature's is that of its rejection.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotAnExport => "not-an-export",
            Self::NotCanonical => "not-canonical",
            Self::InstanceKey => "instance-key",
            Self::SealBroken => "seal-broken",
            Self::NotThePinnedKey => "not-the-pinned-key",
            Self::Statement => "statement",
            Self::OtherInstance => "other-instance",
            Self::OtherLease => "other-lease",
            Self::Signature(rejection) => rejection.code(),
            Self::OtherMessage => "other-message",
            Self::OtherRecord => "other-record",
            Self::NotAName => "not-a-name",
            Self::BeforeRequest => "before-request",
            Self::Twice => "twice",
            Self::TooFew => "too-few",
            Self::Refused => "refused",
            Self::State => "state",
            Self::EnrolmentStatement => "enrolment-statement",
            Self::EnrolmentOfAnother => "enrolment-of-another",
            Self::EnrolmentSigner => "enrolment-signer",
            Self::EnrolmentTime => "enrolment-time",
            Self::EnrolmentSignature(_) => "enrolment-signature",
        }
    }
}

/// A fault, and whose signature has it if it is one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub fault: Fault,
    pub person: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(person) = &self.person {
            write!(f, "{}: ", crate::render::name(person))?;
        }
        write!(f, "{} ({})", self.fault, self.fault.code())
    }
}

/// An export that is valid. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct Verified {
    export: Export,
    statement: LeaseStatement,
    key_id: String,
    pinned: bool,
}

impl Verified {
    pub fn export(&self) -> &Export {
        &self.export
    }

    pub fn statement(&self) -> &LeaseStatement {
        &self.statement
    }

    /// The key id of the instance that sealed it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Whether the caller said beforehand which instance key it has to be. Otherwise the file vouches for itself.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Whether enough people approved. A valid file may as well be about a request that was refused, or waits.
    pub fn is_approved(&self) -> bool {
        self.export.lease.approved_at.is_some()
    }

    /// What stock `ssh-keygen -Y verify` needs, for each SSH signature.
    pub fn for_ssh_keygen(&self) -> Vec<StockCheck> {
        self.export.signatures.iter().filter_map(|it| self.stock_check(it)).collect()
    }

    fn stock_check(&self, it: &Signature) -> Option<StockCheck> {
        let second = format_description!("[year][month][day][hour][minute][second]Z");
        let stamp =
            |at: OffsetDateTime| at.checked_to_offset(time::UtcOffset::UTC)?.format(second).ok();
        let meaning = Meaning::from(it.decision);
        let key = PublicKey::from_openssh(&it.key.public_key).ok()?;
        // Without its comment, which could be anything.
        let key = PublicKey::from(key.key_data().clone()).to_openssh().ok()?;
        let until = match it.key.revoked_at {
            Some(at) => format!(",valid-before=\"{}\"", stamp(at)?),
            None => String::new(),
        };
        let (namespace, person) = (meaning.namespace(), &it.person);
        let from = stamp(it.key.enrolled_at)?;
        Some(StockCheck {
            person: person.clone(),
            namespace,
            message: meaning.message(self.statement.bytes()),
            signature: format!("{}\n", it.signature.trim()),
            signed_at: stamp(it.signed_at)?,
            allowed_signer: format!(
                "{person} namespaces=\"{namespace}\",valid-after=\"{from}\"{until} {key}\n"
            ),
        })
    }
}

/// One signature, as OpenSSH's own tools check it (`ssh-keygen(1)`, ALLOWED SIGNERS).
#[derive(Clone, Debug)]
pub struct StockCheck {
    /// Safe as part of a file name.
    pub person: String,
    pub namespace: &'static str,
    pub message: Vec<u8>,
    pub signature: String,
    /// For `-O verify-time`.
    pub signed_at: String,
    /// A line of the file of allowed signers.
    pub allowed_signer: String,
}

/// Checks a file, with nothing else at hand. `pin` is the key id of the instance that has to have sealed it.
pub fn verify(file: &[u8], pin: Option<&str>) -> Result<Verified, Vec<Finding>> {
    let alone = |fault| vec![Finding { fault, person: None }];
    let (export, key_id) = open(file).map_err(alone)?;
    if pin.is_some_and(|it| it != key_id) {
        return Err(alone(Fault::NotThePinnedKey));
    }
    let statement = read_statement(&export).map_err(alone)?;
    let terms = statement.terms();
    let mut findings = check(&export.lease, &statement, &export.signatures);
    if terms.broker.instance_key != key_id || terms.broker.origin != export.origin {
        findings.insert(0, Finding { fault: Fault::OtherInstance, person: None });
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    Ok(Verified { export, statement, key_id, pinned: pin.is_some() })
}

/// Checks what people signed about a lease, with the keys that they signed with: everything but who says so.
pub fn check(lease: &Lease, statement: &LeaseStatement, signatures: &[Signature]) -> Vec<Finding> {
    let terms = statement.terms();
    let mut findings = Vec::new();
    let mut find = |fault, person: Option<&str>| {
        findings.push(Finding { fault, person: person.map(str::to_owned) });
    };
    if (terms.lease_id, terms.tier) != (lease.id, lease.tier) {
        find(Fault::OtherLease, None);
    }
    let (mut people, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for signature in signatures {
        let person = Some(signature.person.as_str());
        for fault in faults_of(signature, statement) {
            find(fault, person);
        }
        let first = people.insert(&signature.person);
        if !keys.insert(&signature.key.fingerprint) || !first {
            find(Fault::Twice, person);
        }
        if let Some(enrolment) = &signature.key.enrolled_by
            && let Err(fault) = check_enrolment(
                &signature.key,
                &signature.person,
                enrolment,
                &signer_of(enrolment),
                &terms.broker.origin,
            )
        {
            find(fault, person);
        }
    }
    if let Err(fault) = check_state(lease, signatures, terms) {
        find(fault, None);
    }
    findings
}

/// Takes an export out of its envelope, with the id of the key that sealed it.
fn open(file: &[u8]) -> Result<(Export, String), Fault> {
    if MAX_FILE_BYTES < file.len() {
        return Err(Fault::NotAnExport);
    }
    let envelope: Envelope = serde_json::from_slice(file).map_err(|_| Fault::NotAnExport)?;
    if envelope.file() != file {
        return Err(Fault::NotCanonical);
    }
    let [seal] = envelope.signatures.as_slice() else { return Err(Fault::NotAnExport) };
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(Fault::NotAnExport);
    }
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| Fault::NotCanonical);
    let payload = decode(&envelope.payload)?;
    let export: Export = serde_json::from_slice(&payload).map_err(|_| Fault::NotAnExport)?;
    if canonical(&export).ok().as_ref() != Some(&payload) {
        return Err(Fault::NotCanonical);
    }
    let key = export.instance_key.key().ok_or(Fault::InstanceKey)?;
    if export.instance_key.thumbprint() != seal.keyid {
        return Err(Fault::InstanceKey);
    }
    let signature = decode(&seal.sig)?.try_into().map_err(|_| Fault::SealBroken)?;
    let signature = ed25519_dalek::Signature::from_bytes(&signature);
    let message = pre_authentication(PAYLOAD_TYPE, &payload);
    key.verify_strict(&message, &signature).map_err(|_| Fault::SealBroken)?;
    Ok((export, seal.keyid.clone()))
}

fn read_statement(export: &Export) -> Result<LeaseStatement, Fault> {
    let bytes = STANDARD.decode(&export.statement).map_err(|_| Fault::Statement)?;
    LeaseStatement::from_bytes(bytes).map_err(|_| Fault::Statement)
}

/// What is wrong with one signature, by itself.
fn faults_of(it: &Signature, statement: &LeaseStatement) -> Vec<Fault> {
    let terms = statement.terms();
    let mut faults = Vec::new();
    if !is_name(&it.person) {
        faults.push(Fault::NotAName);
    }
    if it.message != message(it.decision, statement.bytes()) {
        faults.push(Fault::OtherMessage);
    }
    let demand = Demand {
        meaning: it.decision.into(),
        body: statement.bytes(),
        origin: &terms.broker.origin,
        assurance: terms.signers.assurance,
    };
    match check_key(it, demand) {
        Ok(touch) => {
            let says = (touch.map(|it| it.present), touch.map(|it| it.verified));
            if says != (it.touched, it.verified) || it.assurance != it.key.assurance {
                faults.push(Fault::OtherRecord);
            }
        }
        Err(rejection) => faults.push(Fault::Signature(rejection)),
    }
    // Groups, and who was active, are on the instance's word: it counted the signature.
    let signer = Signer { handle: &it.person, active: true, in_group: true };
    if let Err(rejection) = check_signer(terms, &signer, it.signed_at) {
        faults.push(Fault::Signature(rejection));
    }
    if later(it.signed_at) < terms.requested_at {
        faults.push(Fault::BeforeRequest);
    }
    faults
}

fn check_key(it: &Signature, demand: Demand<'_>) -> Result<Option<Touch>, Rejection> {
    let signature = UnverifiedSignature::parse(&it.signature)?;
    if signature.claimed_fingerprint() != it.key.fingerprint {
        return Err(Rejection::UnknownKey);
    }
    let key = EnrolledKey {
        public_key: it.key.public_key.clone(),
        assurance: it.key.assurance,
        enrolled_at: it.key.enrolled_at,
        revoked_at: it.key.revoked_at,
    };
    check_signature(&signature, &key, demand, it.signed_at)
}

/// Whether the signatures bear what the state says. Whether each of them counts is found out elsewhere.
fn check_state(lease: &Lease, signatures: &[Signature], terms: &LeaseTerms) -> Result<(), Fault> {
    if signatures.iter().any(|it| it.decision == Decision::Refuse) {
        let refused = lease.state == LeaseState::Refused && lease.approved_at.is_none();
        return if refused { Ok(()) } else { Err(Fault::Refused) };
    }
    let by = lease.approved_at.map(later);
    let people: BTreeSet<_> = signatures
        .iter()
        .filter(|it| by.is_none_or(|by| it.signed_at <= by))
        .map(|it| it.person.as_str())
        .collect();
    let enough = terms.signers.needed != 0 && usize::from(terms.signers.needed) <= people.len();
    let approved = lease.approved_at.is_some();
    if approved && !enough {
        return Err(Fault::TooFew);
    }
    // A time without the one before it, or one that comes before it.
    let times = [lease.approved_at, lease.claimed_at, lease.issued_at];
    let in_order = times.windows(2).all(|it| match (it[0], it[1]) {
        (Some(first), Some(then)) => first <= later(then),
        (first, then) => first.is_some() || then.is_none(),
    });
    let late = lease.claim_by.zip(lease.claimed_at).is_some_and(|(by, at)| later(by) < at);
    let fits = match lease.state {
        LeaseState::Pending => !approved && !enough,
        LeaseState::Approved | LeaseState::Expired | LeaseState::Failed => approved,
        LeaseState::Issued => approved && lease.issued_at.is_some() && lease.ends_at.is_some(),
        // Before or after it was approved.
        LeaseState::Lapsed | LeaseState::Withdrawn | LeaseState::Revoked => approved == enough,
        // Nobody signs what the rules deny; and nobody refused.
        LeaseState::Denied | LeaseState::Refused => false,
    };
    let ended = lease.state.is_terminal() == lease.ended_at.is_some();
    let claim_by = approved == lease.claim_by.is_some();
    if in_order && !late && fits && ended && claim_by { Ok(()) } else { Err(Fault::State) }
}

/// Whether an admin's signature stands behind the enrolment of `person`'s `key` at the broker of `origin`. `signer` is
/// the admin's key.
///
/// Not the instance's key, which may have been renewed since: that is on the broker's word.
pub fn check_enrolment(
    key: &Key,
    person: &str,
    it: &Enrolment,
    signer: &EnrolledKey,
    origin: &str,
) -> Result<(), Fault> {
    let bytes = STANDARD.decode(&it.statement).map_err(|_| Fault::EnrolmentStatement)?;
    let statement = ActStatement::from_bytes(bytes).map_err(|_| Fault::EnrolmentStatement)?;
    let terms = statement.terms();
    let (Some((handle, new)), Some(meaning)) =
        (enrols(&terms.act), terms.meaning(Decision::Approve))
    else {
        return Err(Fault::EnrolmentStatement);
    };
    let same = (new.public_key == key.public_key, new.fingerprint == key.fingerprint);
    if handle != person
        || same != (true, true)
        || new.assurance != key.assurance
        || terms.broker.origin != origin
    {
        return Err(Fault::EnrolmentOfAnother);
    }
    // That the signer is neither the person concerned nor the proposer is a rule of the statement itself.
    if !terms.signers.eligible.contains(&it.signer) {
        return Err(Fault::EnrolmentSigner);
    }
    let cool_down = Duration::seconds(terms.cool_down_seconds.into());
    let good_from = it.signed_at.saturating_add(cool_down);
    if terms.sign_by < it.signed_at
        || later(it.signed_at) < terms.proposed_at
        || key.enrolled_at < good_from
    {
        return Err(Fault::EnrolmentTime);
    }
    let demand =
        Demand { meaning, body: statement.bytes(), origin, assurance: terms.signers.assurance };
    UnverifiedSignature::parse(&it.signature)
        .and_then(|parsed| check_signature(&parsed, signer, demand, it.signed_at))
        .map(|_| ())
        .map_err(Fault::EnrolmentSignature)
}

/// The admin's key, as far as a file tells of it: only its touch shows there.
fn signer_of(it: &Enrolment) -> EnrolledKey {
    EnrolledKey {
        public_key: it.public_key.clone(),
        assurance: Assurance::Verified,
        enrolled_at: it.signed_at,
        revoked_at: None,
    }
}

/// Whose key an act enrols, and which.
fn enrols(act: &Act) -> Option<(&str, &NewKey)> {
    match act {
        Act::AdminChange(Change::EnrolKey { handle, key }) => Some((handle, key)),
        Act::AdminChange(Change::AddPerson { person }) => {
            person.key.as_ref().map(|key| (person.handle.as_str(), key))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
