use p256::ecdsa::signature::Signer as _;
use proptest::prelude::*;
use serde_json::json;
use ssh_key::{Algorithm, PrivateKey, rand_core::OsRng};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::statement::Meaning;
use crate::verify::{Demand, EnrolledKey, UnverifiedSignature, check_signature};

const NOW: OffsetDateTime = datetime!(2026-01-01 12:10 UTC);
const ORIGIN: &str = "https://broker.example";
const RP_ID: &str = "broker.example";
const BODY: &[u8] = b"{\"lease\":\"read the bucket\"}";
const TOUCHED: u8 = USER_PRESENT | USER_VERIFIED;

const CHROMIUM: &str = include_str!("../fixtures/chromium.json");
const PASSKEY_RS: &str = include_str!("../fixtures/passkey-rs.json");

fn enrolled(public_key: String, assurance: Assurance) -> EnrolledKey {
    EnrolledKey { public_key, assurance, enrolled_at: NOW - Duration::DAY, revoked_at: None }
}

fn judge(
    assertion: &str,
    key: &Passkey,
    (meaning, body, origin): (Meaning, &[u8], &str),
    assurance: Assurance,
) -> Result<Touch, Rejection> {
    let signature = UnverifiedSignature::parse(assertion)?;
    let key = enrolled(key.to_text(), Assurance::Verified);
    let demand = Demand { meaning, body, origin, assurance };
    check_signature(&signature, &key, demand, NOW).map(|it| it.expect("passkeys tell of the touch"))
}

/// An authenticator that does as it is told.
enum Secret {
    Es256(p256::ecdsa::SigningKey),
    EdDsa(ed25519_dalek::SigningKey),
}

impl Secret {
    fn es256() -> Self {
        Self::Es256(p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap())
    }

    fn ed_dsa() -> Self {
        Self::EdDsa(ed25519_dalek::SigningKey::from_bytes(&[7; 32]))
    }

    fn spki(&self) -> Vec<u8> {
        let document = match self {
            Self::Es256(key) => {
                p256::PublicKey::from(key.verifying_key()).to_public_key_der().unwrap()
            }
            Self::EdDsa(key) => key.verifying_key().to_public_key_der().unwrap(),
        };
        document.into_vec()
    }

    fn passkey(&self) -> Passkey {
        Passkey::new(vec![1; 32], self.spki(), RP_ID.into(), false).unwrap()
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Es256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Self::EdDsa(key) => key.sign(message).to_vec(),
        }
    }
}

/// An assertion in parts, good until a test spoils one of them.
#[derive(Clone)]
struct Draft {
    credential_id: Vec<u8>,
    client_data: String,
    rp_id: String,
    flags: u8,
    /// After the counter.
    rest: Vec<u8>,
    /// What the passkey's stored form says of copies.
    backup_eligible: bool,
}

fn challenge(meaning: Meaning, body: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(meaning.message(body)))
}

impl Draft {
    fn new(meaning: Meaning, body: &[u8]) -> Self {
        Self {
            credential_id: vec![1; 32],
            client_data: format!(
                r#"{{"type":"webauthn.get","challenge":"{}","origin":"{ORIGIN}","crossOrigin":false}}"#,
                challenge(meaning, body)
            ),
            rp_id: RP_ID.into(),
            flags: TOUCHED,
            rest: vec![],
            backup_eligible: false,
        }
    }

    fn approval() -> Self {
        Self::new(Meaning::LeaseApproval, BODY)
    }

    fn replace(&mut self, from: &str, to: &str) {
        assert!(self.client_data.contains(from), "{from}");
        self.client_data = self.client_data.replace(from, to);
    }

    fn authenticator_data(&self) -> Vec<u8> {
        let rp_id_sha256 = Sha256::digest(&self.rp_id);
        [&*rp_id_sha256, &[self.flags, 0, 0, 1, 2], &self.rest].concat()
    }

    fn signed(&self) -> Vec<u8> {
        [&*self.authenticator_data(), &*Sha256::digest(&self.client_data)].concat()
    }

    fn parts(&self, secret: &Secret) -> Parts {
        Parts {
            credential_id: self.credential_id.clone(),
            client_data: self.client_data.clone().into_bytes(),
            authenticator_data: self.authenticator_data(),
            signature: secret.sign(&self.signed()),
        }
    }

    fn judge(&self, secret: &Secret, assurance: Assurance) -> Result<Touch, Rejection> {
        let key = Passkey { backup_eligible: self.backup_eligible, ..secret.passkey() };
        let demanded = (Meaning::LeaseApproval, BODY, ORIGIN);
        judge(&self.parts(secret).json().to_string(), &key, demanded, assurance)
    }
}

/// An assertion as it travels.
#[derive(Clone)]
struct Parts {
    credential_id: Vec<u8>,
    client_data: Vec<u8>,
    authenticator_data: Vec<u8>,
    signature: Vec<u8>,
}

impl Parts {
    fn json(&self) -> Value {
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "id": text(&self.credential_id),
            "rawId": text(&self.credential_id),
            "type": "public-key",
            "authenticatorAttachment": "cross-platform",
            "clientExtensionResults": {},
            "response": {
                "clientDataJSON": text(&self.client_data),
                "authenticatorData": text(&self.authenticator_data),
                "signature": text(&self.signature),
                "userHandle": text(b"bob"),
            },
        })
    }

    fn judge(&self, key: &Passkey) -> Result<Touch, Rejection> {
        let demanded = (Meaning::LeaseApproval, BODY, ORIGIN);
        judge(&self.json().to_string(), key, demanded, Assurance::Verified)
    }
}

#[test]
fn a_good_assertion_counts_and_tells_of_touch_pin_and_counter() {
    for secret in [Secret::es256(), Secret::ed_dsa()] {
        for assurance in [Assurance::Software, Assurance::Present, Assurance::Verified] {
            let touch = Draft::approval().judge(&secret, assurance);
            assert_eq!(touch, Ok(Touch { present: true, verified: true, counter: 0x0102 }));
        }
    }
}

#[test]
fn a_challenge_of_one_meaning_or_body_is_not_another() {
    use Meaning::{LeaseApproval, LeaseRefusal, Login};
    let secret = Secret::es256();
    for signed in [LeaseApproval, LeaseRefusal, Login] {
        let text = Draft::new(signed, BODY).parts(&secret).json().to_string();
        for demanded in [LeaseApproval, LeaseRefusal, Login] {
            let judged = |body| {
                judge(&text, &secret.passkey(), (demanded, body, ORIGIN), Assurance::Verified)
            };
            assert_eq!(judged(BODY).is_ok(), demanded == signed, "{signed:?} as {demanded:?}");
            assert_eq!(judged(b"{}"), Err(Rejection::NotThisStatement));
        }
    }
}

/// What is wrong, the change that makes it so, and the answer.
type Wrong = (&'static str, fn(&mut Draft), Rejection);

/// Each rule of the browser's part. The signature is good in all of them.
const CLIENT_DATA: &[Wrong] = &[
    (
        "a registration",
        |it| it.replace("webauthn.get", "webauthn.create"),
        Rejection::WrongNamespace,
    ),
    ("a payment", |it| it.replace("webauthn.get", "payment.get"), Rejection::WrongNamespace),
    (
        "a type in capitals",
        |it| it.replace("webauthn.get", "WEBAUTHN.GET"),
        Rejection::WrongNamespace,
    ),
    ("no type", |it| it.replace("\"type\"", "\"kind\""), Rejection::Malformed),
    ("a type that is no text", |it| it.replace("\"webauthn.get\"", "1"), Rejection::Malformed),
    ("no challenge", |it| it.replace("\"challenge\"", "\"chalenge\""), Rejection::Malformed),
    (
        "a padded challenge",
        |it| it.replace("\",\"origin\"", "=\",\"origin\""),
        Rejection::NotThisStatement,
    ),
    (
        "an empty challenge",
        |it| {
            it.replace(&challenge(Meaning::LeaseApproval, BODY), "");
        },
        Rejection::NotThisStatement,
    ),
    ("no origin", |it| it.replace("\"origin\"", "\"orig\""), Rejection::Malformed),
    ("another origin", |it| it.replace(ORIGIN, "https://evil.example"), Rejection::WrongOrigin),
    ("a subdomain", |it| it.replace(ORIGIN, "https://a.broker.example"), Rejection::WrongOrigin),
    ("the domain above", |it| it.replace(ORIGIN, "https://example"), Rejection::WrongOrigin),
    (
        "another port",
        |it| it.replace(ORIGIN, "https://broker.example:8443"),
        Rejection::WrongOrigin,
    ),
    (
        "the port that is meant anyway",
        |it| it.replace(ORIGIN, "https://broker.example:443"),
        Rejection::WrongOrigin,
    ),
    ("another scheme", |it| it.replace(ORIGIN, "http://broker.example"), Rejection::WrongOrigin),
    ("capitals", |it| it.replace(ORIGIN, "https://Broker.example"), Rejection::WrongOrigin),
    ("a slash", |it| it.replace(ORIGIN, "https://broker.example/"), Rejection::WrongOrigin),
    (
        "an origin that goes on",
        |it| it.replace(ORIGIN, "https://broker.example.evil.example"),
        Rejection::WrongOrigin,
    ),
    ("an app", |it| it.replace(ORIGIN, "android:apk-key-hash:AAAA"), Rejection::WrongOrigin),
    ("another site's frame", |it| it.replace("false", "true"), Rejection::CrossOrigin),
    ("a frame, unclearly", |it| it.replace("false", "\"true\""), Rejection::Malformed),
    ("a frame, null", |it| it.replace("false", "null"), Rejection::Malformed),
    (
        "a page around it",
        |it| it.replace("false", "false,\"topOrigin\":\"https://evil.example\""),
        Rejection::CrossOrigin,
    ),
    (
        "our own page around it",
        |it| it.replace("false", "false,\"topOrigin\":\"https://broker.example\""),
        Rejection::CrossOrigin,
    ),
    (
        "no page around it, said aloud",
        |it| it.replace("false", "false,\"topOrigin\":null"),
        Rejection::CrossOrigin,
    ),
    (
        "two origins",
        |it| it.replace("{", "{\"origin\":\"https://evil.example\","),
        Rejection::Malformed,
    ),
    (
        "two origins, one of them escaped",
        |it| it.replace("{", "{\"\\u006frigin\":\"https://evil.example\","),
        Rejection::Malformed,
    ),
    ("a stranger's member twice", |it| it.replace("{", "{\"a\":1,\"a\":1,"), Rejection::Malformed),
    ("something after it", |it| it.client_data.push_str("{}"), Rejection::Malformed),
    ("no object", |it| it.client_data = "[]".into(), Rejection::Malformed),
    ("nothing", |it| it.client_data.clear(), Rejection::Malformed),
];

/// Each rule of the authenticator's part, where the signature is good and `verified` is demanded.
const AUTHENTICATOR_DATA: &[Wrong] = &[
    ("another credential", |it| it.credential_id[0] = 2, Rejection::UnknownKey),
    ("a credential id that is too short", |it| it.credential_id.truncate(15), Rejection::Malformed),
    ("another site", |it| it.rp_id = "evil.example".into(), Rejection::WrongRp),
    ("the site above", |it| it.rp_id = "example".into(), Rejection::WrongRp),
    ("no touch", |it| it.flags = USER_VERIFIED, Rejection::NotTouched),
    ("no PIN", |it| it.flags = USER_PRESENT, Rejection::NotVerified),
    ("nothing at all", |it| it.flags = 0, Rejection::NotTouched),
    ("copied, but no copies allowed", |it| it.flags |= BACKED_UP, Rejection::BackupState),
    ("copies allowed since", |it| it.flags |= BACKUP_ELIGIBLE, Rejection::BackupState),
    ("copies forbidden since", |it| it.backup_eligible = true, Rejection::BackupState),
    (
        "may be copied",
        |it| {
            it.backup_eligible = true;
            it.flags |= BACKUP_ELIGIBLE;
        },
        Rejection::Synced,
    ),
    (
        "is copied",
        |it| {
            it.backup_eligible = true;
            it.flags |= BACKUP_ELIGIBLE | BACKED_UP;
        },
        Rejection::Synced,
    ),
    ("a key in it", |it| it.flags |= ATTESTED_CREDENTIAL, Rejection::Malformed),
    (
        "a key in it, with bytes",
        |it| {
            it.flags |= ATTESTED_CREDENTIAL;
            it.rest = vec![0; 20];
        },
        Rejection::Malformed,
    ),
    (
        "a key besides extensions",
        |it| {
            it.flags |= ATTESTED_CREDENTIAL | EXTENSIONS;
            it.rest = vec![0xa0];
        },
        Rejection::Malformed,
    ),
    ("bytes that nothing announced", |it| it.rest = vec![0xa0], Rejection::Malformed),
    ("extensions announced and missing", |it| it.flags |= EXTENSIONS, Rejection::Malformed),
    (
        "extensions that are no map",
        |it| {
            it.flags |= EXTENSIONS;
            it.rest = vec![0x01];
        },
        Rejection::Malformed,
    ),
];

#[test]
fn each_rule_has_its_rejection() {
    for secret in [Secret::es256(), Secret::ed_dsa()] {
        for (what, spoil, rejection) in CLIENT_DATA.iter().chain(AUTHENTICATOR_DATA) {
            let mut draft = Draft::approval();
            spoil(&mut draft);
            assert_eq!(draft.judge(&secret, Assurance::Verified), Err(*rejection), "{what}");
        }
    }
}

#[test]
fn what_browsers_and_authenticators_may_add_does_no_harm() {
    let additions: &[fn(&mut Draft)] = &[
        |it| it.replace(",\"crossOrigin\":false", ""),
        |it| it.replace("{", "{\"other_keys_can_be_added_here\":{\"a\":[1,null]},"),
        |it| it.replace("{", " { \n"),
        |it| it.replace("webauthn.get", "\\u0077ebauthn.get"),
        |it| {
            it.flags |= EXTENSIONS;
            it.rest = vec![0xa1, 0x61, b'a', 0xf5];
        },
    ];
    for add in additions {
        let mut draft = Draft::approval();
        add(&mut draft);
        let judged = draft.judge(&Secret::es256(), Assurance::Verified);
        assert!(judged.is_ok(), "{}: {judged:?}", draft.client_data);
    }
}

#[test]
fn a_passkey_that_may_be_copied_counts_where_a_touch_is_enough() {
    let mut draft = Draft::approval();
    draft.backup_eligible = true;
    for flags in [BACKUP_ELIGIBLE, BACKUP_ELIGIBLE | BACKED_UP] {
        draft.flags = flags | USER_PRESENT;
        let touch = Touch { present: true, verified: false, counter: 0x0102 };
        assert_eq!(draft.judge(&Secret::es256(), Assurance::Present), Ok(touch));
        draft.flags = flags;
        let untouched = draft.judge(&Secret::es256(), Assurance::Software);
        assert_eq!(untouched, Err(Rejection::NotTouched), "even for nothing");
    }
}

#[test]
fn a_passkey_of_another_site_does_not_count_for_the_broker() {
    let secret = Secret::es256();
    for rp_id in ["example", "evil.example", "a.broker.example"] {
        let key = Passkey { rp_id: rp_id.into(), ..secret.passkey() };
        let mut draft = Draft::approval();
        draft.rp_id = rp_id.into();
        assert_eq!(draft.parts(&secret).judge(&key), Err(Rejection::WrongRp), "{rp_id}");
    }
}

#[test]
fn the_site_is_the_host_of_the_origin() {
    for (origin, expected) in [
        ("https://broker.example", Some("broker.example")),
        ("https://broker.example:8443", Some("broker.example")),
        ("http://localhost:8750", Some("localhost")),
        ("https://broker.example:", None),
        ("https://broker.example:99999", None),
        ("https://a@broker.example", None),
        ("https://broker.example/", None),
        ("https://[::1]:8750", None),
        ("https://", None),
        ("broker.example", None),
        ("", None),
    ] {
        assert_eq!(host(origin), expected, "{origin}");
    }
}

#[test]
fn a_signature_has_one_encoding_and_either_s() {
    let secret = Secret::es256();
    let key = secret.passkey();
    let parts = Draft::approval().parts(&secret);
    let with = |signature: Vec<u8>| Parts { signature, ..parts.clone() }.judge(&key);
    let low = p256::ecdsa::Signature::from_der(&parts.signature).unwrap();
    let (r, s) = low.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r, -s).unwrap();
    assert!(with(other.to_der().as_bytes().to_vec()).is_ok());

    assert_eq!(with(low.to_vec()), Err(Rejection::NotThisStatement), "r and s side by side");
    assert_eq!(with(vec![]), Err(Rejection::NotThisStatement));
    assert_eq!(with([&*parts.signature, &[0]].concat()), Err(Rejection::NotThisStatement));
    // The length in two bytes: BER, which is not DER.
    let long = [&[0x30, 0x81][..], &parts.signature[1..]].concat();
    assert_eq!(with(long), Err(Rejection::NotThisStatement));
    // One more zero in front of `r`.
    let mut padded = parts.signature.clone();
    padded[1] += 1;
    padded[3] += 1;
    padded.insert(4, 0);
    assert_eq!(with(padded), Err(Rejection::NotThisStatement));
    let zero = vec![0x30, 6, 2, 1, 0, 2, 1, 0];
    assert_eq!(with(zero), Err(Rejection::NotThisStatement));

    let secret = Secret::ed_dsa();
    let parts = Draft::approval().parts(&secret);
    let long = [&*parts.signature, &[0]].concat();
    let judged = Parts { signature: long, ..parts }.judge(&secret.passkey());
    assert_eq!(judged, Err(Rejection::NotThisStatement));
}

#[test]
fn a_signature_of_another_key_under_the_same_credential_id_does_not_count() {
    let other = Secret::Es256(p256::ecdsa::SigningKey::from_slice(&[8; 32]).unwrap());
    for secret in [Secret::es256(), Secret::ed_dsa()] {
        let judged = Draft::approval().parts(&other).judge(&secret.passkey());
        assert_eq!(judged, Err(Rejection::NotThisStatement));
    }
}

#[test]
fn no_flipped_bit_counts() {
    for secret in [Secret::es256(), Secret::ed_dsa()] {
        let key = secret.passkey();
        let good = Draft::approval().parts(&secret);
        assert!(good.judge(&key).is_ok());
        let fields: [fn(&mut Parts) -> &mut Vec<u8>; 4] = [
            |it| &mut it.credential_id,
            |it| &mut it.client_data,
            |it| &mut it.authenticator_data,
            |it| &mut it.signature,
        ];
        for (field, bytes) in fields.iter().enumerate() {
            for at in 0..bytes(&mut good.clone()).len() {
                for bit in 0..8 {
                    let mut bad = good.clone();
                    bytes(&mut bad)[at] ^= 1 << bit;
                    assert!(bad.judge(&key).is_err(), "field {field}, byte {at}, bit {bit}");
                }
                let mut short = good.clone();
                bytes(&mut short).truncate(at);
                assert!(short.judge(&key).is_err(), "field {field}, up to byte {at}");
            }
        }
    }
}

#[test]
fn an_envelope_that_is_not_one_does_not_parse() {
    let good = Draft::approval().parts(&Secret::es256()).json();
    assert!(UnverifiedSignature::parse(&format!("\n{good}\n")).is_ok());
    let id = good["id"].as_str().unwrap();
    let wrong: &[(&str, Value)] = &[
        ("/type", json!("password")),
        ("/type", json!(null)),
        ("/id", json!(BASE64_URL_SAFE_NO_PAD.encode([2; 32]))),
        ("/rawId", json!(BASE64_URL_SAFE_NO_PAD.encode([2; 32]))),
        ("/rawId", json!(format!("{id}="))),
        ("/rawId", json!(format!(" {id}"))),
        // Another spelling of the same bytes: the last character has bits to spare.
        ("/rawId", json!(format!("{}F", &id[..id.len() - 1]))),
        ("/response", json!(null)),
        ("/response/signature", json!("+/+/")),
        ("/response/signature", json!([1, 2, 3])),
        ("/response/userHandle", json!("not base64url!")),
        ("/response/clientDataJSON", json!("")),
        ("/response/clientDataJSON", json!(BASE64_URL_SAFE_NO_PAD.encode([0xff; 8]))),
        ("/response/authenticatorData", json!("")),
    ];
    for (pointer, value) in wrong {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value.clone();
        let parsed = UnverifiedSignature::parse(&bad.to_string()).map(|_| ());
        assert_eq!(parsed, Err(Rejection::Malformed), "{pointer}: {value}");
    }
    let text = good.to_string();
    let twice = text.replacen('{', "{\"type\":\"public-key\",", 1);
    let huge = text.replacen('{', &format!("{{\"more\":\"{}\",", "A".repeat(8 * 1024)), 1);
    let nested = format!("\"response\":{{\"more\":{}1{},", "[".repeat(999), "]".repeat(999));
    let deep = text.replace("\"response\":{", &nested);
    let inner_twice = text.replace("\"response\":{", "\"response\":{\"more\":1,\"more\":1,");
    let response = &good["response"];
    let list = json!([
        response["clientDataJSON"],
        response["authenticatorData"],
        response["signature"],
        null
    ]);
    let inner_list = text.replace(&response.to_string(), &list.to_string());
    let outer_list = json!([id, id, "public-key", response]).to_string();
    let (two, within) = (format!("{text}{text}"), format!("[{text}]"));
    for bad in [two, within, twice, huge, deep, inner_twice, inner_list, outer_list] {
        assert_ne!(bad, text);
        assert_eq!(Assertion::parse(&bad).map(|_| ()), Err(Rejection::Malformed));
        assert_eq!(UnverifiedSignature::parse(&bad).map(|_| ()), Err(Rejection::Malformed));
    }
}

#[test]
fn an_ssh_key_and_a_passkey_are_never_taken_for_each_other() {
    let secret = Secret::ed_dsa();
    let meaning = Meaning::LeaseApproval;
    let demand = Demand { meaning, body: BODY, origin: ORIGIN, assurance: Assurance::Software };
    // The very same Ed25519 key in both forms.
    let keypair = ssh_key::private::Ed25519Keypair::from_seed(&[7; 32]);
    let ssh = PrivateKey::from(keypair);
    let line = enrolled(ssh.public_key().to_openssh().unwrap(), Assurance::Verified);
    let passkey = enrolled(secret.passkey().to_text(), Assurance::Verified);
    let sealed =
        ssh.sign(meaning.namespace(), ssh_key::HashAlg::Sha512, &meaning.message(BODY)).unwrap();
    let by_ssh =
        UnverifiedSignature::parse(&sealed.to_pem(ssh_key::LineEnding::LF).unwrap()).unwrap();
    let json = Draft::approval().parts(&secret).json().to_string();
    let by_passkey = UnverifiedSignature::parse(&json).unwrap();
    let check = |signature, key| check_signature(signature, key, demand, NOW).map(|_| ());
    assert_eq!(check(&by_ssh, &line), Ok(()));
    assert_eq!(check(&by_passkey, &passkey), Ok(()));
    assert_eq!(check(&by_ssh, &passkey), Err(Rejection::UnknownKey));
    assert_eq!(check(&by_passkey, &line), Err(Rejection::UnknownKey));
    // A stored key that is not as we write it is nobody's.
    let mut spoilt = passkey.clone();
    spoilt.public_key = spoilt.public_key.replacen('{', "{ ", 1);
    assert_eq!(check(&by_passkey, &spoilt), Err(Rejection::UnknownKey));
    let other = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
    assert_ne!(by_passkey.claimed_fingerprint(), by_ssh.claimed_fingerprint());
    assert_ne!(
        other.fingerprint(ssh_key::HashAlg::Sha256).to_string(),
        by_ssh.claimed_fingerprint()
    );
}

#[test]
fn a_passkey_counts_only_while_it_is_enrolled_and_at_its_assurance() {
    let secret = Secret::es256();
    let json = Draft::approval().parts(&secret).json().to_string();
    let signature = UnverifiedSignature::parse(&json).unwrap();
    let good = enrolled(secret.passkey().to_text(), Assurance::Present);
    let check = |key: &EnrolledKey, assurance| {
        let meaning = Meaning::LeaseApproval;
        let demand = Demand { meaning, body: BODY, origin: ORIGIN, assurance };
        check_signature(&signature, key, demand, NOW).map(|_| ())
    };
    assert_eq!(check(&good, Assurance::Present), Ok(()));
    assert_eq!(check(&good, Assurance::Verified), Err(Rejection::AssuranceTooLow));
    let late = EnrolledKey { enrolled_at: NOW + Duration::SECOND, ..good.clone() };
    assert_eq!(check(&late, Assurance::Present), Err(Rejection::KeyNotEnrolledYet));
    let revoked = EnrolledKey { revoked_at: Some(NOW), ..good };
    assert_eq!(check(&revoked, Assurance::Present), Err(Rejection::KeyRevoked));
}

#[test]
fn the_claimed_fingerprint_is_the_enrolled_one_in_the_form_of_openssh() {
    let secret = Secret::es256();
    let assertion = Assertion::parse(&Draft::approval().parts(&secret).json().to_string()).unwrap();
    // printf '\1%.0s' {1..32} | openssl dgst -sha256 -binary | base64
    let expected = "SHA256:cs1uhCLEB/ttCYaQ8RMLfe1+wvf14dML2dUh8BU2N5M";
    assert_eq!(assertion.claimed_fingerprint(), expected);
    assert_eq!(secret.passkey().fingerprint(), expected);
    assert_eq!(assertion.credential_id(), secret.passkey().credential_id());
}

#[test]
fn a_passkey_is_stored_in_one_spelling() {
    for secret in [Secret::es256(), Secret::ed_dsa()] {
        let text = secret.passkey().to_text();
        assert_eq!(Passkey::parse(&text).unwrap(), secret.passkey());
        for bad in [
            format!(" {text}"),
            format!("{text}\n"),
            text.replace('{', "{\"backup_eligible\":false,"),
            text.replace('}', ",\"z\":1}"),
            text.replace("false", "0"),
            text.replace("\"backup_eligible\":false,", ""),
            text.replace("broker.example\"", "BROKER.example\""),
            text.replace("broker.example\"", "https://broker.example\""),
            text.replace("broker.example\"", "\""),
            text.replace("AQE\"", "AQE=\""),
            String::new(),
        ] {
            assert_ne!(bad, text);
            assert!(Passkey::parse(&bad).is_err(), "{bad}");
        }
    }
}

#[test]
fn only_a_p256_or_ed25519_key_in_der_is_a_passkeys() {
    let new =
        |id: usize, spki: &[u8]| Passkey::new(vec![1; id], spki.to_vec(), RP_ID.into(), false);
    let spki = Secret::es256().spki();
    for id in [16, 1023] {
        assert!(new(id, &spki).is_ok(), "{id}");
    }
    for id in [0, 15, 1024] {
        assert!(matches!(new(id, &spki), Err(PasskeyError::CredentialId)), "{id}");
    }
    let rejected = |spki: &[u8]| matches!(new(32, spki), Err(PasskeyError::PublicKey));
    let ed25519 = Secret::ed_dsa().spki();
    for good in [&spki, &ed25519] {
        assert!(!rejected(good));
        assert!(rejected(&[&**good, &[0]].concat()));
        assert!(rejected(&good[..good.len() - 1]));
    }
    // Not on the curve.
    let mut off = spki.clone();
    *off.last_mut().unwrap() ^= 1;
    assert!(rejected(&off));
    // secp384r1's name on it.
    let curve = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let at = spki.windows(8).position(|it| it == curve).unwrap();
    let mut other = spki.clone();
    other[at + 7] = 0x06;
    assert!(rejected(&other));
    // A point of low order, under which one signature is good for many messages.
    let low_order = [&ed25519[..ed25519.len() - 32], &[1], &[0; 31]].concat();
    assert!(rejected(&low_order));
    assert!(rejected(b""));
    // The same P-256 key, its point compressed.
    let point = &spki[spki.len() - 64..];
    let sign = 2 + (point[63] & 1);
    let compressed = [
        &[0x30, 0x39, 0x30, 0x13][..],
        &spki[4..spki.len() - 68],
        &[0x03, 0x22, 0x00, sign],
        &point[..32],
    ]
    .concat();
    assert!(p256::PublicKey::from_public_key_der(&compressed).is_ok());
    assert!(rejected(&compressed));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recording {
    made_by: String,
    origin: String,
    cases: Vec<Recorded>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    name: String,
    key: Passkey,
    meaning: String,
    body: String,
    assertion: Value,
}

impl Recording {
    fn judge(&self, name: &str, assurance: Assurance) -> Result<Touch, Rejection> {
        self.judge_as(name, Meaning::LeaseApproval, assurance)
    }

    /// As a signature of `meaning` over [`BODY`], whatever it was made for.
    fn judge_as(
        &self,
        name: &str,
        meaning: Meaning,
        assurance: Assurance,
    ) -> Result<Touch, Rejection> {
        let case = self.cases.iter().find(|it| it.name == name).expect(name);
        let demanded = (meaning, BODY, &*self.origin);
        judge(&case.assertion.to_string(), &case.key, demanded, assurance)
    }
}

fn touched(verified: bool, counter: u32) -> Touch {
    Touch { present: true, verified, counter }
}

#[test]
fn what_a_browser_signed_is_judged_as_what_it_is() {
    use Assurance::{Present, Verified};
    let chromium: Recording = serde_json::from_str(CHROMIUM).unwrap();
    assert!(chromium.made_by.starts_with("Chromium "));
    assert_eq!(chromium.judge("es256", Verified), Ok(touched(true, 2)));
    assert_eq!(chromium.judge("eddsa", Verified), Ok(touched(true, 2)));
    let other = chromium.judge("another statement", Verified);
    assert_eq!(other, Err(Rejection::NotThisStatement));
    assert_eq!(chromium.judge("another port", Verified), Err(Rejection::WrongOrigin));
    let framed = chromium.judge("in a frame of another origin", Verified);
    assert_eq!(framed, Err(Rejection::CrossOrigin));
    assert_eq!(chromium.judge("without PIN", Verified), Err(Rejection::NotVerified));
    assert_eq!(chromium.judge("without PIN", Present), Ok(touched(false, 2)));
    assert_eq!(chromium.judge("synced", Verified), Err(Rejection::Synced));
    assert_eq!(chromium.judge("synced", Present), Ok(touched(true, 2)));

    for (name, meaning) in [("refusal", Meaning::LeaseRefusal), ("login", Meaning::Login)] {
        assert!(chromium.judge_as(name, meaning, Verified).is_ok());
        assert_eq!(chromium.judge(name, Verified), Err(Rejection::NotThisStatement));
        let as_it = chromium.judge_as("es256", meaning, Verified);
        assert_eq!(as_it, Err(Rejection::NotThisStatement));
    }
    assert_eq!(chromium.cases.len(), 9, "each is judged above");
}

#[test]
fn what_software_signed_says_so_and_counts_where_a_touch_is_enough() {
    let software: Recording = serde_json::from_str(PASSKEY_RS).unwrap();
    assert!(software.made_by.starts_with("passkey "));
    assert_eq!(software.judge("es256", Assurance::Verified), Err(Rejection::Synced));
    assert_eq!(software.judge("es256", Assurance::Present), Ok(touched(true, 0)));
    // It was enrolled as what it is: one that forgets to say so is another.
    let case = &software.cases[0];
    let hidden = Passkey { backup_eligible: false, ..case.key.clone() };
    let demanded = (Meaning::LeaseApproval, BODY, &*software.origin);
    let judged = judge(&case.assertion.to_string(), &hidden, demanded, Assurance::Present);
    assert_eq!(judged, Err(Rejection::BackupState));
}

#[test]
fn each_recording_is_over_what_it_says() {
    for recording in [CHROMIUM, PASSKEY_RS] {
        let recording: Recording = serde_json::from_str(recording).unwrap();
        for case in &recording.cases {
            let Ok(UnverifiedSignature::Passkey(assertion)) =
                UnverifiedSignature::parse(&case.assertion.to_string())
            else {
                panic!("{}", case.name);
            };
            let meaning = [Meaning::LeaseApproval, Meaning::LeaseRefusal, Meaning::Login]
                .into_iter()
                .find(|it| it.namespace() == format!("{}@broker", case.meaning))
                .unwrap();
            let expected = challenge(meaning, case.body.as_bytes());
            assert_eq!(assertion.client_data.challenge, expected, "{}", case.name);
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_is_not_an_assertion_panics(text in "\\PC{0,200}", bytes in any::<Vec<u8>>()) {
        prop_assert!(Assertion::parse(&text).is_err());
        let object = ["{", &text].concat();
        prop_assert!(UnverifiedSignature::parse(&object).is_err());
        prop_assert!(Passkey::parse(&text).is_err());
        prop_assert!(Key::from_spki(&bytes).is_none());
        prop_assert!(ClientData::parse(&bytes).is_none());
        let _ = AuthenticatorData::parse(&bytes);
        let good = Draft::approval().parts(&Secret::es256());
        for bad in [
            Parts { client_data: bytes.clone(), ..good.clone() },
            Parts { authenticator_data: bytes.clone(), ..good.clone() },
            Parts { signature: bytes.clone(), ..good.clone() },
            Parts { credential_id: bytes.clone(), ..good },
        ] {
            prop_assert!(bad.judge(&Secret::es256().passkey()).is_err());
        }
    }

    /// In the text as it travels: what is spoilt may be something that nobody reads, but never what counts.
    #[test]
    fn a_good_assertion_spoilt_anywhere_says_the_same_or_does_not_count(
        at in any::<prop::sample::Index>(),
        with in any::<char>(),
        keep in 0_usize..3,
    ) {
        let secret = Secret::es256();
        let good = Draft::approval().parts(&secret);
        let mut text: Vec<char> = good.json().to_string().chars().collect();
        let at = at.index(text.len());
        text.splice(at..(at + keep).min(text.len()), [with]);
        let text = String::from_iter(text);
        let demanded = (Meaning::LeaseApproval, BODY, ORIGIN);
        let judged = judge(&text, &secret.passkey(), demanded, Assurance::Verified);
        if judged.is_ok() {
            let assertion = Assertion::parse(&text).unwrap();
            prop_assert_eq!(assertion.signature, good.signature);
            prop_assert!(assertion.signed.starts_with(&good.authenticator_data));
        }
    }
}
