//! Passkeys: one whose holder signs whatever a browser hands over, and what real ones have signed.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::lease::Assurance;
use broker::statement::Meaning;
use broker::verify::webauthn::Passkey;
use broker::verify::{Demand, UnverifiedSignature, check_signature};
use ed25519_dalek::pkcs8::EncodePublicKey;
use ed25519_dalek::{Signer, SigningKey};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{NOW, SIGNED, UNSIGNED, enrolled};

pub const ORIGIN: &str = "http://localhost:8750";
pub const RP_ID: &str = "localhost";

const CREDENTIAL_ID: [u8; 32] = [1; 32];

fn holder() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// The holder's passkey, as enrolled.
pub fn passkey(backup_eligible: bool) -> Passkey {
    let spki = holder().verifying_key().to_public_key_der().expect("a key has a form").into_vec();
    Passkey::new(CREDENTIAL_ID.to_vec(), spki, RP_ID.to_owned(), backup_eligible)
        .expect("a good passkey")
}

pub fn challenge(meaning: Meaning, body: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(meaning.message(body)))
}

/// What an honest browser says on the broker's own page.
pub fn good_client_data(meaning: Meaning, body: &[u8]) -> Vec<u8> {
    let challenge = challenge(meaning, body);
    format!(
        r#"{{"type":"webauthn.get","challenge":"{challenge}","origin":"{ORIGIN}","crossOrigin":false}}"#
    )
    .into_bytes()
}

/// What an authenticator says after a touch and a PIN, for a passkey that stays where it is.
pub fn good_authenticator_data() -> Vec<u8> {
    [&Sha256::digest(RP_ID)[..], &[0x05, 0, 0, 0, 7]].concat()
}

/// What is under an assertion's signature.
fn signed_bytes(client_data: &[u8], authenticator_data: &[u8]) -> Vec<u8> {
    [authenticator_data, &Sha256::digest(client_data)].concat()
}

/// The holder's signature over these two.
pub fn sign(client_data: &[u8], authenticator_data: &[u8]) -> Vec<u8> {
    holder().sign(&signed_bytes(client_data, authenticator_data)).to_vec()
}

/// An assertion as it travels.
pub fn assertion(client_data: &[u8], authenticator_data: &[u8], signature: &[u8]) -> String {
    let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let id = base64(&CREDENTIAL_ID);
    json!({
        "id": id, "rawId": id, "type": "public-key",
        "response": {
            "clientDataJSON": base64(client_data),
            "authenticatorData": base64(authenticator_data),
            "signature": base64(signature),
        },
    })
    .to_string()
}

/// Whether it counts, on the broker's page; if so, with the counter that it was said to have.
pub fn counts(
    signature: &UnverifiedSignature,
    passkey: &Passkey,
    meaning: Meaning,
    body: &[u8],
    assurance: Assurance,
) -> Option<u32> {
    let demand = Demand { meaning, body, origin: ORIGIN, assurance };
    let touch = check_signature(signature, &enrolled(&passkey.to_text()), demand, NOW).ok()?;
    Some(touch.expect("a passkey tells of the touch").counter)
}

/// One signature by a real authenticator in a real browser, or by another implementation.
#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub key: Passkey,
    pub meaning: String,
    pub body: String,
    pub assertion: Value,
    #[serde(skip)]
    pub origin: String,
}

#[derive(Deserialize)]
struct Fixture {
    origin: String,
    cases: Vec<Case>,
}

impl Case {
    pub fn meaning(&self) -> Meaning {
        let said = |it: &&Meaning| it.namespace() == format!("{}@broker", self.meaning);
        *Meaning::ALL.iter().find(said).expect("a meaning")
    }

    /// Whether it is one that counts: made on the broker's own page, in no frame.
    pub fn is_good(&self) -> bool {
        !["another port", "in a frame of another origin"].contains(&self.name.as_str())
    }

    fn is_accepted(
        &self,
        it: &UnverifiedSignature,
        meaning: Meaning,
        body: &[u8],
        assurance: Assurance,
    ) -> bool {
        let demand = Demand { meaning, body, origin: &self.origin, assurance };
        check_signature(it, &enrolled(&self.key.to_text()), demand, NOW).is_ok()
    }

    /// Whether `text` says of browser and authenticator what this does: what both have put under the signature.
    fn is_same(&self, text: &Value) -> bool {
        ["clientDataJSON", "authenticatorData"]
            .iter()
            .all(|it| text["response"][it] == self.assertion["response"][it])
    }
}

pub static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let files = [
        include_str!("../../broker/src/verify/fixtures/chromium.json"),
        include_str!("../../broker/src/verify/fixtures/passkey-rs.json"),
    ];
    let read = |file| serde_json::from_str::<Fixture>(file).expect("a fixture");
    files
        .map(read)
        .into_iter()
        .flat_map(|Fixture { origin, cases }| {
            cases.into_iter().map(move |case| Case { origin: origin.clone(), ..case })
        })
        .collect()
});

/// Checks an assertion against every real passkey and what each has signed. What counts is what its holder signed,
/// for what they meant by it.
pub fn judge(text: &str, signature: &UnverifiedSignature) {
    let said: Value = serde_json::from_str(text.trim()).expect("what was parsed is JSON");
    let claimed = signature.claimed_fingerprint();
    let mut seen = Vec::new();
    for case in CASES.iter() {
        let key = case.key.fingerprint();
        if seen.contains(&key) {
            continue;
        }
        seen.push(key.clone());
        let demands = Meaning::ALL.iter().map(|it| (*it, case.body.as_bytes()));
        let others = UNSIGNED.into_iter().chain([SIGNED, br#"{"lease":"drop the bucket"}"#]);
        for (meaning, body) in demands.chain(others.map(|it| (Meaning::LeaseApproval, it))) {
            if !case.is_accepted(signature, meaning, body, Assurance::Software) {
                assert!(!case.is_accepted(signature, meaning, body, Assurance::Verified));
                continue;
            }
            assert_eq!(claimed, key);
            let signed = CASES.iter().any(|it| {
                it.is_good()
                    && it.is_same(&said)
                    && (it.key == case.key && it.origin == case.origin)
                    && (it.meaning() == meaning && it.body.as_bytes() == body)
            });
            assert!(signed, "a forgery: {meaning:?} over {body:?} by {text}");
            let good = |assurance| case.is_accepted(signature, meaning, body, assurance);
            assert!(!good(Assurance::Verified) || good(Assurance::Present));
            assert!(!good(Assurance::Verified) || !case.key.backup_eligible());
        }
    }
}
