//! Judges signatures: is it over these bytes, by this key, with a human's touch, from somebody who may? Pure.
//!
//! Used alike by the server, the command line and offline checks. Parsing and cryptography of SSH signatures are
//! `ssh-key`'s; what neither it nor `ssh-keygen -Y verify` looks at (the FIDO flags and application) is checked
//! here. Passkeys are judged in [`webauthn`].

pub mod act;
pub mod webauthn;

use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey, SshSig};
use time::OffsetDateTime;

use crate::lease::{Assurance, LeaseId};
use crate::statement::{LeaseTerms, Meaning};
pub use webauthn::{Assertion, Passkey};

/// The FIDO application that our `sk-*` keys are made for (`ssh-keygen -O application=ssh:broker`), so that the
/// key's own prompt names us.
pub const SK_APPLICATION: &str = "ssh:broker";

/// An armored SSHSIG or an assertion is some hundred bytes; this bounds what we parse.
const MAX_SIGNATURE_BYTES: usize = 8 * 1024;

// The same bits in OpenSSH's FIDO signatures and in WebAuthn's authenticator data.
const USER_PRESENT: u8 = 0x01;
const USER_VERIFIED: u8 = 0x04;

/// Makes [`Rejection`] of one table: variant, stable code, text.
macro_rules! rejections {
    ($($variant:ident = $code:literal: $text:literal,)+) => {
        /// Why a signature does not count. Each has a stable code, recorded with the rejection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum Rejection { $(#[error($text)] $variant),+ }

        impl Rejection {
            /// Every one, in declaration order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The stable code: `reason` in problem documents and events.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }
        }
    };
}

rejections! {
    Malformed = "malformed": "this is neither an armored SSH signature nor a passkey's assertion",
    WrongNamespace = "wrong-namespace": "the signature was made for another purpose (namespace)",
    UnknownKey = "unknown-key": "nobody here has enrolled this key",
    NotThisStatement = "not-this-statement": "the signature is not over this statement",
    WrongOrigin = "wrong-origin": "the passkey signed on another page than the broker's",
    CrossOrigin = "cross-origin": "the passkey signed inside of another site's page",
    WrongRp = "wrong-rp": "the passkey was made for another site than the broker's",
    KeyNotEnrolledYet = "key-not-enrolled-yet": "the key was not enrolled yet",
    KeyRevoked = "key-revoked": "the key has been revoked",
    WrongApplication = "wrong-application": "the key was made for another application than {SK_APPLICATION}",
    AssuranceTooLow = "assurance-too-low": "the key's assurance is lower than this statement demands",
    NotTouched = "not-touched": "the key was not touched for this signature",
    NotVerified = "not-verified": "neither PIN nor biometric was given for this signature",
    Synced = "synced": "the passkey can leave its device, which this statement does not allow",
    BackupState = "backup-state": "what the passkey says of its copies contradicts itself or its enrolment",
    PersonDisabled = "person-disabled": "this person is disabled",
    Sponsor = "sponsor": "this person stands behind the agent, and cannot sign for it",
    Actor = "actor": "this person set the request off, and cannot sign for it",
    Concerned = "concerned": "this person is concerned, or asked for it: somebody else has to sign",
    NotEligible = "not-eligible": "this person may not sign for this",
    ForbiddenByRule = "forbidden-by-rule": "the rules do not let this person decide about it",
    AlreadySigned = "already-signed": "this person has signed already",
    TooLate = "too-late": "the time to sign is over",
    NotPending = "not-pending": "it is not waiting for signatures",
    NoLongerSo = "no-longer-so": "what it builds on is no longer so",
    StaleNonce = "stale-nonce": "the nonce is unknown, used or too old",
}

impl Rejection {
    /// What the signer can do about it.
    pub const fn next(self) -> &'static str {
        match self {
            Self::Malformed | Self::WrongNamespace | Self::NotThisStatement => {
                "Sign with `broker sign` or on the broker's own page, which sign exactly the statement's bytes."
            }
            Self::WrongOrigin | Self::CrossOrigin => {
                "Open the broker's own page, at the origin that the statement names, and sign there."
            }
            Self::WrongRp | Self::BackupState => {
                "Have a passkey enrolled on the broker's own page."
            }
            Self::Synced => {
                "Sign with a security key, or with a passkey that is bound to one device."
            }
            Self::UnknownKey | Self::KeyNotEnrolledYet | Self::KeyRevoked => {
                "Sign with a key that is enrolled for you, or have one enrolled."
            }
            Self::WrongApplication | Self::AssuranceTooLow => {
                "Sign with a hardware key made with `-O application=ssh:broker` and enrolled at the demanded assurance."
            }
            Self::NotTouched => "Touch the key when it asks.",
            Self::NotVerified => {
                "Give the key's PIN or fingerprint; an SSH key is made with `-O verify-required` for that."
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

/// A parsed signature, not yet believed.
#[derive(Clone, Debug)]
pub enum UnverifiedSignature {
    Ssh(SshSig),
    Passkey(Assertion),
}

impl UnverifiedSignature {
    /// Reads an armored SSHSIG, or the JSON of a passkey's assertion.
    pub fn parse(text: &str) -> Result<Self, Rejection> {
        if MAX_SIGNATURE_BYTES < text.len() {
            return Err(Rejection::Malformed);
        }
        let text = text.trim();
        if text.starts_with('{') {
            return Assertion::parse(text).map(Self::Passkey);
        }
        SshSig::from_pem(text).map(Self::Ssh).map_err(|_| Rejection::Malformed)
    }

    /// `SHA256:…` of the key that claims to have signed: a hint for the look-up, proof of nothing.
    pub fn claimed_fingerprint(&self) -> String {
        match self {
            Self::Ssh(signature) => signature.public_key().fingerprint(HashAlg::Sha256).to_string(),
            Self::Passkey(assertion) => assertion.claimed_fingerprint(),
        }
    }
}

/// A person's enrolled key, as the verifier needs it.
#[derive(Clone, Debug)]
pub struct EnrolledKey {
    /// One line in OpenSSH's format, or a [`Passkey`]'s JSON.
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
    /// How often the authenticator signed, as it says. Many say 0 for ever, and copies count apart: never judged.
    pub counter: u32,
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
    let demanded = demand.assurance;
    let proven = Proven::check(signature, &key.public_key, demand)?;
    if at < key.enrolled_at {
        return Err(Rejection::KeyNotEnrolledYet);
    }
    if key.revoked_at.is_some_and(|it| it <= at) {
        return Err(Rejection::KeyRevoked);
    }
    if key.assurance < demanded {
        return Err(Rejection::AssuranceTooLow);
    }
    let touch = proven.touch(demanded)?;
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

/// A signature that is an enrolled key's and over the demanded bytes. What the human did is still open.
enum Proven<'a> {
    Ssh(PublicKey, &'a SshSig),
    Passkey(Passkey, &'a Assertion),
}

impl<'a> Proven<'a> {
    fn check(
        signature: &'a UnverifiedSignature,
        enrolled: &str,
        demand: Demand<'_>,
    ) -> Result<Self, Rejection> {
        let Demand { meaning, body, origin, .. } = demand;
        let message = meaning.message(body);
        match (signature, enrolled.starts_with('{')) {
            (UnverifiedSignature::Ssh(signature), false) => {
                if signature.namespace() != meaning.namespace() {
                    return Err(Rejection::WrongNamespace);
                }
                let public =
                    PublicKey::from_openssh(enrolled).map_err(|_| Rejection::UnknownKey)?;
                if public.key_data() != signature.public_key() {
                    return Err(Rejection::UnknownKey);
                }
                public
                    .verify(meaning.namespace(), &message, signature)
                    .map_err(|_| Rejection::NotThisStatement)?;
                Ok(Self::Ssh(public, signature))
            }
            (UnverifiedSignature::Passkey(assertion), true) => {
                let passkey = Passkey::parse(enrolled).map_err(|_| Rejection::UnknownKey)?;
                assertion.check(&passkey, &message, origin)?;
                Ok(Self::Passkey(passkey, assertion))
            }
            _ => Err(Rejection::UnknownKey),
        }
    }

    fn touch(&self, demanded: Assurance) -> Result<Option<Touch>, Rejection> {
        match self {
            Self::Ssh(key, signature) => touch(key.key_data(), signature),
            Self::Passkey(passkey, assertion) => assertion.touch(passkey, demanded).map(Some),
        }
    }
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
    let Some([flags, counter @ ..]) = signature.signature_bytes().last_chunk::<5>() else {
        return Err(Rejection::Malformed);
    };
    Ok(Some(Touch {
        present: flags & USER_PRESENT != 0,
        verified: flags & USER_VERIFIED != 0,
        counter: u32::from_be_bytes(*counter),
    }))
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
    use std::collections::BTreeSet;

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
            check(&UnverifiedSignature::Ssh(raw), &enrolled, b"{}"),
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
    fn each_rejection_has_a_code_of_its_own_and_says_what_to_do() {
        let codes: BTreeSet<&str> = Rejection::ALL.iter().map(|it| it.code()).collect();
        assert_eq!(codes.len(), Rejection::ALL.len());
        for rejection in Rejection::ALL {
            let code = rejection.code();
            let kebab = code
                .split('-')
                .all(|word| !word.is_empty() && word.bytes().all(|it| it.is_ascii_lowercase()));
            assert!(kebab, "{code}");
            assert!(!rejection.to_string().is_empty() && rejection.next().ends_with('.'), "{code}");
        }
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
