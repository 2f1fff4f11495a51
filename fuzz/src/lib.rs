//! What the targets have in common: enrolled keys, what their holders have signed, and what must never verify.
//!
//! The keys' private halves are below, so that `cargo run --example seeds` can make real signatures. A fuzzer that
//! mutates those gets deep into the verifier, and forges nothing: it does not know how to sign.

pub mod approval;
pub mod log;
pub mod passkey;
pub mod workload;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::lease::Assurance;
use broker::statement::{LeaseStatement, Meaning};
use broker::verify::{Demand, EnrolledKey, UnverifiedSignature, check_signature};
use time::OffsetDateTime;
use time::macros::datetime;

pub const NOW: OffsetDateTime = datetime!(2026-01-01 12:10 UTC);

/// What the seeds are signatures over, each meaning one.
pub const SIGNED: &[u8] = br#"{"what":"signed"}"#;

/// What nobody has signed.
pub const UNSIGNED: [&[u8]; 3] = [b"", br#"{"what":"signee"}"#, br#"{"what":"signed"} "#];

/// The public halves, as enrolled; `seeds` checks that they belong to its private ones.
pub const PUBLIC_KEYS: [&str; 4] = [
    include_str!("../keys/ed25519.pub"),
    include_str!("../keys/p256.pub"),
    include_str!("../keys/sk-ed25519.pub"),
    include_str!("../keys/sk-p256.pub"),
];

pub fn enrolled(public_key: &str) -> EnrolledKey {
    EnrolledKey {
        public_key: public_key.trim().to_owned(),
        assurance: Assurance::Verified,
        enrolled_at: NOW,
        revoked_at: None,
    }
}

fn verifies(
    signature: &UnverifiedSignature,
    key: &EnrolledKey,
    meaning: Meaning,
    body: &[u8],
    assurance: Assurance,
) -> bool {
    let demand = Demand { meaning, body, origin: "http://localhost:8750", assurance };
    check_signature(signature, key, demand, NOW).is_ok()
}

/// Checks a signature's text as the server would, against every key and every body.
///
/// Whatever it is, it is nobody's signature over what nobody has signed. If it is one over what was signed, then it is
/// by one key, with one meaning, and the key is the one that it claims.
pub fn judge(text: &str) {
    let Ok(signature) = UnverifiedSignature::parse(text) else { return };
    let claimed = signature.claimed_fingerprint();
    assert!(claimed.starts_with("SHA256:"));
    if matches!(signature, UnverifiedSignature::Passkey(_)) {
        passkey::judge(text, &signature);
    }
    let mut counted = 0;
    for public_key in PUBLIC_KEYS {
        let key = enrolled(public_key);
        let hardware = public_key.starts_with("sk-");
        for meaning in Meaning::ALL.iter().copied() {
            for body in UNSIGNED {
                assert!(
                    !verifies(&signature, &key, meaning, body, Assurance::Software),
                    "a forgery: {meaning:?} over {body:?} by {public_key}"
                );
            }
            let good = |assurance| verifies(&signature, &key, meaning, SIGNED, assurance);
            if good(Assurance::Software) {
                counted += 1;
                let enrolled = public_key.parse::<ssh_key::PublicKey>().expect("a public key");
                assert_eq!(claimed, enrolled.fingerprint(ssh_key::HashAlg::Sha256).to_string());
            }
            // What meets a demand meets every lower one, and a key file meets none but the lowest.
            assert!(!good(Assurance::Present) || (hardware && good(Assurance::Software)));
            assert!(!good(Assurance::Verified) || good(Assurance::Present));
        }
    }
    assert!(counted <= 1, "{counted} keys or meanings at once");
}

/// An SSHSIG's bytes in their armor, as `ssh-keygen` writes it.
pub fn armor(bytes: &[u8]) -> String {
    let body = STANDARD.encode(bytes);
    let mut text = "-----BEGIN SSH SIGNATURE-----\n".to_owned();
    for line in body.as_bytes().chunks(70) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str("-----END SSH SIGNATURE-----\n");
    text
}

/// What a signer is shown. They see all of it, and nothing that it draws.
pub fn shown(sealed: &LeaseStatement) -> String {
    let text = broker::render::statement(sealed);
    draws_nothing(&text);
    text
}

/// Text moves no cursor and turns no letters around.
pub fn draws_nothing(text: &str) {
    let bidi = ['\u{200e}'..='\u{200f}', '\u{202a}'..='\u{202e}', '\u{2066}'..='\u{2069}'];
    let draws = |it: char| {
        it.is_control() || it == '\u{61c}' || bidi.iter().any(|marks| marks.contains(&it))
    };
    let drawn = text.chars().find(|it| *it != '\n' && draws(*it));
    assert_eq!(drawn, None, "in {text}");
}
