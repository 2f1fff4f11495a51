//! Judges signatures: is it over these bytes, by this key, with a human's touch, from somebody who may? Pure.
//!
//! Used alike by the server, the command line and offline checks. Parsing and cryptography are `ssh-key`'s;
//! what neither it nor `ssh-keygen -Y verify` looks at (the FIDO flags and application) is checked here.

pub mod act;

use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey, SshSig};
use time::OffsetDateTime;

use crate::lease::{Assurance, LeaseId};
use crate::statement::{LeaseTerms, Meaning};

/// The FIDO application that our `sk-*` keys are made for (`ssh-keygen -O application=ssh:broker`), so that the
/// key's own prompt names us.
pub const SK_APPLICATION: &str = "ssh:broker";

/// An armored SSHSIG is some hundred bytes; this bounds what we parse.
const MAX_SIGNATURE_BYTES: usize = 8 * 1024;

const USER_PRESENT: u8 = 0x01;
const USER_VERIFIED: u8 = 0x04;

/// Why a signature does not count. Each has a stable code, recorded with the rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    #[error("this is not an armored SSH signature")]
    Malformed,
    #[error("the signature was made for another purpose (namespace)")]
    WrongNamespace,
    #[error("nobody here has enrolled this key")]
    UnknownKey,
    #[error("the signature is not over this statement")]
    NotThisStatement,
    #[error("the key was not enrolled yet")]
    KeyNotEnrolledYet,
    #[error("the key has been revoked")]
    KeyRevoked,
    #[error("the key was made for another application than {SK_APPLICATION}")]
    WrongApplication,
    #[error("the key's assurance is lower than this statement demands")]
    AssuranceTooLow,
    #[error("the key was not touched for this signature")]
    NotTouched,
    #[error("neither PIN nor biometric was given for this signature")]
    NotVerified,
    #[error("this person is disabled")]
    PersonDisabled,
    #[error("this person stands behind the agent, and cannot sign for it")]
    Sponsor,
    #[error("this person set the request off, and cannot sign for it")]
    Actor,
    #[error("this person is concerned, or asked for it: another admin has to sign")]
    Concerned,
    #[error("this person may not sign for this")]
    NotEligible,
    #[error("the rules do not let this person decide about it")]
    ForbiddenByRule,
    #[error("this person has signed already")]
    AlreadySigned,
    #[error("the time to sign is over")]
    TooLate,
    #[error("it is not waiting for signatures")]
    NotPending,
    #[error("what it builds on is no longer so")]
    NoLongerSo,
    #[error("the nonce is unknown, used or too old")]
    StaleNonce,
}

impl Rejection {
    /// The stable code: `reason` in problem documents and events.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::WrongNamespace => "wrong-namespace",
            Self::UnknownKey => "unknown-key",
            Self::NotThisStatement => "not-this-statement",
            Self::KeyNotEnrolledYet => "key-not-enrolled-yet",
            Self::KeyRevoked => "key-revoked",
            Self::WrongApplication => "wrong-application",
            Self::AssuranceTooLow => "assurance-too-low",
            Self::NotTouched => "not-touched",
            Self::NotVerified => "not-verified",
            Self::PersonDisabled => "person-disabled",
            Self::Sponsor => "sponsor",
            Self::Actor => "actor",
            Self::Concerned => "concerned",
            Self::NotEligible => "not-eligible",
            Self::ForbiddenByRule => "forbidden-by-rule",
            Self::AlreadySigned => "already-signed",
            Self::TooLate => "too-late",
            Self::NotPending => "not-pending",
            Self::NoLongerSo => "no-longer-so",
            Self::StaleNonce => "stale-nonce",
        }
    }

    /// What the signer can do about it.
    pub const fn next(self) -> &'static str {
        match self {
            Self::Malformed | Self::WrongNamespace | Self::NotThisStatement => {
                "Sign with `broker sign`, which fetches the statement and signs exactly those bytes."
            }
            Self::UnknownKey | Self::KeyNotEnrolledYet | Self::KeyRevoked => {
                "Sign with a key that is enrolled for you, or have one enrolled."
            }
            Self::WrongApplication | Self::AssuranceTooLow => {
                "Sign with a hardware key made with `-O application=ssh:broker` and enrolled at the demanded assurance."
            }
            Self::NotTouched => "Touch the key when it asks.",
            Self::NotVerified => {
                "Use a key made with `-O verify-required`, and give its PIN or fingerprint."
            }
            Self::Sponsor
            | Self::Actor
            | Self::Concerned
            | Self::NotEligible
            | Self::ForbiddenByRule
            | Self::PersonDisabled => "Ask one of the eligible signers that it names.",
            Self::AlreadySigned => "Nothing to do: your decision is recorded.",
            Self::TooLate | Self::NotPending | Self::NoLongerSo => "It has to be asked for again.",
            Self::StaleNonce => "Ask for a new nonce and sign that.",
        }
    }
}

/// A parsed SSHSIG, not yet believed.
#[derive(Clone, Debug)]
pub struct UnverifiedSignature(SshSig);

impl UnverifiedSignature {
    pub fn parse(armored: &str) -> Result<Self, Rejection> {
        if MAX_SIGNATURE_BYTES < armored.len() {
            return Err(Rejection::Malformed);
        }
        SshSig::from_pem(armored.trim()).map(Self).map_err(|_| Rejection::Malformed)
    }

    /// `SHA256:…` of the key that claims to have signed: a hint for the look-up, proof of nothing.
    pub fn claimed_fingerprint(&self) -> String {
        self.0.public_key().fingerprint(HashAlg::Sha256).to_string()
    }
}

/// A person's enrolled key, as the verifier needs it.
#[derive(Clone, Debug)]
pub struct EnrolledKey {
    /// One line in OpenSSH's format.
    pub public_key: String,
    pub assurance: Assurance,
    /// From when on it counts, and until when.
    pub enrolled_at: OffsetDateTime,
    pub revoked_at: Option<OffsetDateTime>,
}

/// What the authenticator said of the human in this one signature; `None` for keys that have no such flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    pub present: bool,
    pub verified: bool,
}

/// What a signature has to be, to count.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    pub meaning: Meaning,
    /// What it is over: a statement's bytes, or a nonce.
    pub body: &'a [u8],
    /// The broker's origin, which a passkey's signature names.
    pub origin: &'a str,
    pub assurance: Assurance,
}

/// Checks that `signature` is `key`'s and meets `demand`, as of `at`.
pub fn check_signature(
    signature: &UnverifiedSignature,
    key: &EnrolledKey,
    demand: Demand<'_>,
    at: OffsetDateTime,
) -> Result<Option<Touch>, Rejection> {
    let Demand { meaning, body, assurance: demanded, .. } = demand;
    let signature = &signature.0;
    if signature.namespace() != meaning.namespace() {
        return Err(Rejection::WrongNamespace);
    }
    let public = PublicKey::from_openssh(&key.public_key).map_err(|_| Rejection::UnknownKey)?;
    if public.key_data() != signature.public_key() {
        return Err(Rejection::UnknownKey);
    }
    public
        .verify(meaning.namespace(), &meaning.message(body), signature)
        .map_err(|_| Rejection::NotThisStatement)?;
    if at < key.enrolled_at {
        return Err(Rejection::KeyNotEnrolledYet);
    }
    if key.revoked_at.is_some_and(|it| it <= at) {
        return Err(Rejection::KeyRevoked);
    }
    if key.assurance < demanded {
        return Err(Rejection::AssuranceTooLow);
    }
    let touch = touch(public.key_data(), signature)?;
    match (demanded, touch) {
        (Assurance::Software, None) => {}
        (Assurance::Present | Assurance::Verified, None) => return Err(Rejection::AssuranceTooLow),
        (_, Some(touch)) if !touch.present => return Err(Rejection::NotTouched),
        (Assurance::Verified, Some(touch)) if !touch.verified => {
            return Err(Rejection::NotVerified);
        }
        (_, Some(_)) => {}
    }
    Ok(touch)
}

/// The flags of a FIDO signature (OpenSSH's PROTOCOL.u2f): the last five bytes are flags and a counter.
fn touch(key: &KeyData, signature: &SshSig) -> Result<Option<Touch>, Rejection> {
    let application = match key {
        KeyData::SkEd25519(key) => key.application(),
        KeyData::SkEcdsaSha2NistP256(key) => key.application(),
        _ => return Ok(None),
    };
    if application != SK_APPLICATION {
        return Err(Rejection::WrongApplication);
    }
    let bytes = signature.signature_bytes();
    let flags = bytes.len().checked_sub(5).map(|at| bytes[at]).ok_or(Rejection::Malformed)?;
    Ok(Some(Touch { present: flags & USER_PRESENT != 0, verified: flags & USER_VERIFIED != 0 }))
}

/// The person behind a key, as the judgement needs them.
#[derive(Clone, Debug)]
pub struct Signer<'a> {
    pub handle: &'a str,
    pub active: bool,
    /// In one of the scope's signing groups today.
    pub in_group: bool,
}

/// Whether `signer` may decide over `terms` at `now`. Compares people, never keys.
pub fn check_signer(
    terms: &LeaseTerms,
    signer: &Signer<'_>,
    now: OffsetDateTime,
) -> Result<(), Rejection> {
    if !signer.active {
        return Err(Rejection::PersonDisabled);
    }
    if signer.handle == terms.sponsor && !terms.tier.sponsor_may_sign() {
        return Err(Rejection::Sponsor);
    }
    if terms.actor.as_deref() == Some(signer.handle) {
        return Err(Rejection::Actor);
    }
    let named = terms.signers.eligible.iter().any(|it| it == signer.handle);
    if !named || !signer.in_group {
        return Err(Rejection::NotEligible);
    }
    if terms.sign_by < now {
        return Err(Rejection::TooLate);
    }
    Ok(())
}

/// The name under which a lease's statement travels to `ssh-keygen`.
pub fn message_file_name(id: LeaseId) -> String {
    format!("lease-{id}.dsse")
}

#[cfg(test)]
mod tests {
    use ssh_key::rand_core::OsRng;
    use ssh_key::{Algorithm, LineEnding, PrivateKey};
    use time::Duration;
    use time::macros::datetime;

    use super::*;
    use crate::lease::Tier;
    use crate::statement::{LeaseStatement, lease::tests::terms};

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:10 UTC);

    fn key() -> (PrivateKey, EnrolledKey) {
        let private = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
        let enrolled = EnrolledKey {
            public_key: private.public_key().to_openssh().unwrap(),
            assurance: Assurance::Software,
            enrolled_at: NOW - Duration::DAY,
            revoked_at: None,
        };
        (private, enrolled)
    }

    fn sign(key: &PrivateKey, meaning: Meaning, body: &[u8]) -> UnverifiedSignature {
        let message = meaning.message(body);
        let signature = key.sign(meaning.namespace(), HashAlg::Sha512, &message).unwrap();
        UnverifiedSignature::parse(&signature.to_pem(LineEnding::LF).unwrap()).unwrap()
    }

    fn approval(body: &[u8], assurance: Assurance) -> Demand<'_> {
        Demand { meaning: Meaning::LeaseApproval, body, origin: "http://localhost:8750", assurance }
    }

    fn check(
        signature: &UnverifiedSignature,
        key: &EnrolledKey,
        body: &[u8],
    ) -> Result<Option<Touch>, Rejection> {
        check_signature(signature, key, approval(body, Assurance::Software), NOW)
    }

    #[test]
    fn a_good_signature_counts_and_every_changed_byte_of_the_statement_does_not() {
        let (private, enrolled) = key();
        let sealed = LeaseStatement::new(terms()).unwrap();
        let signature = sign(&private, Meaning::LeaseApproval, sealed.bytes());
        assert_eq!(check(&signature, &enrolled, sealed.bytes()), Ok(None));
        for at in 0..sealed.bytes().len() {
            let mut bytes = sealed.bytes().to_vec();
            bytes[at] ^= 1;
            assert_eq!(
                check(&signature, &enrolled, &bytes),
                Err(Rejection::NotThisStatement),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_signature_made_for_one_meaning_is_not_another() {
        let (private, enrolled) = key();
        for meaning in [Meaning::LeaseRefusal, Meaning::Login] {
            let signature = sign(&private, meaning, b"{}");
            assert_eq!(check(&signature, &enrolled, b"{}"), Err(Rejection::WrongNamespace));
        }
        // The right namespace around the wrong payload type.
        let raw = private
            .sign(
                Meaning::LeaseApproval.namespace(),
                HashAlg::Sha512,
                &Meaning::LeaseRefusal.message(b"{}"),
            )
            .unwrap();
        assert_eq!(
            check(&UnverifiedSignature(raw), &enrolled, b"{}"),
            Err(Rejection::NotThisStatement)
        );
    }

    #[test]
    fn another_key_a_revoked_key_and_a_weak_key_do_not_count() {
        let (private, mut enrolled) = key();
        let signature = sign(&private, Meaning::LeaseApproval, b"{}");
        assert_eq!(check(&signature, &key().1, b"{}"), Err(Rejection::UnknownKey));
        let demand = |enrolled: &EnrolledKey, demanded| {
            check_signature(&signature, enrolled, approval(b"{}", demanded), NOW)
        };
        assert_eq!(demand(&enrolled, Assurance::Present), Err(Rejection::AssuranceTooLow));
        // A label in our table does not make a plain key hardware.
        enrolled.assurance = Assurance::Verified;
        assert_eq!(demand(&enrolled, Assurance::Verified), Err(Rejection::AssuranceTooLow));
        enrolled.enrolled_at = NOW + Duration::SECOND;
        assert_eq!(demand(&enrolled, Assurance::Software), Err(Rejection::KeyNotEnrolledYet));
        enrolled.enrolled_at = NOW - Duration::DAY;
        enrolled.revoked_at = Some(NOW - Duration::SECOND);
        assert_eq!(demand(&enrolled, Assurance::Software), Err(Rejection::KeyRevoked));
    }

    #[test]
    fn nothing_that_is_not_a_signature_panics() {
        for text in ["", "x", "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----"] {
            assert_eq!(UnverifiedSignature::parse(text).unwrap_err(), Rejection::Malformed);
        }
        let huge = "A".repeat(MAX_SIGNATURE_BYTES + 1);
        assert_eq!(UnverifiedSignature::parse(&huge).unwrap_err(), Rejection::Malformed);
    }

    #[test]
    fn only_an_eligible_person_who_is_neither_sponsor_nor_actor_may_sign() {
        let bob = Signer { handle: "bob", active: true, in_group: true };
        let mut terms = terms();
        assert_eq!(check_signer(&terms, &bob, NOW), Ok(()));
        assert_eq!(
            check_signer(&terms, &Signer { active: false, ..bob }, NOW),
            Err(Rejection::PersonDisabled)
        );
        assert_eq!(
            check_signer(&terms, &Signer { in_group: false, ..bob }, NOW),
            Err(Rejection::NotEligible)
        );
        assert_eq!(
            check_signer(&terms, &Signer { handle: "dave", ..bob }, NOW),
            Err(Rejection::NotEligible)
        );
        assert_eq!(
            check_signer(&terms, &bob, terms.sign_by + Duration::SECOND),
            Err(Rejection::TooLate)
        );
        terms.actor = Some("bob".into());
        assert_eq!(check_signer(&terms, &bob, NOW), Err(Rejection::Actor));

        // Named as eligible or not, the sponsor never counts for production.
        terms.actor = None;
        terms.signers.eligible.push("alice".into());
        let alice = Signer { handle: "alice", ..bob };
        assert_eq!(check_signer(&terms, &alice, NOW), Err(Rejection::Sponsor));
        terms.tier = Tier::StagingSensitive;
        assert_eq!(check_signer(&terms, &alice, NOW), Ok(()));
    }
}
