//! Makes the keys and the seeds anew: `cargo run --example seeds`. What signs is no secret: it is below.
//!
//! Statements are real ones, kept in `seeds/statement`; the others are made from them.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::statement::{LeaseStatement, Meaning};
use broker::verify::{SK_APPLICATION, UnverifiedSignature, check_signature};
use broker_fuzz::{MEANINGS, NOW, SIGNED, armor, enrolled};
use ed25519_dalek::Signer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

/// A touch and a PIN, and the counter.
const TAIL: [u8; 5] = [0x05, 0, 0, 0, 7];

struct Key {
    name: &'static str,
    kind: &'static str,
    /// In OpenSSH's wire format.
    public: Vec<u8>,
    /// Signs a blob: what follows the algorithm's name in a signature.
    sign: Box<dyn Fn(&[u8]) -> Vec<u8>>,
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes(), bytes].concat()
}

/// A positive integer: without leading zeros, and with one where it would look negative.
fn mpint(bytes: &[u8]) -> Vec<u8> {
    let bytes = &bytes[bytes.iter().take_while(|it| **it == 0).count()..];
    let sign: &[u8] = if bytes.first().is_some_and(|it| 0x80 <= *it) { &[0] } else { &[] };
    string(&[sign, bytes].concat())
}

fn keys() -> [Key; 4] {
    let ed25519 = || ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let p256 = || p256::ecdsa::SigningKey::from_slice(&[7; 32]).expect("a scalar");
    let point = p256().verifying_key().to_encoded_point(false).as_bytes().to_vec();
    let ecdsa = move |data: &[u8]| {
        let signature: p256::ecdsa::Signature = p256().sign(data);
        let (r, s) = signature.split_bytes();
        string(&[mpint(&r), mpint(&s)].concat())
    };
    // OpenSSH's PROTOCOL.u2f: hash(application) || flags || counter || hash(data).
    let touched =
        |data: &[u8]| [&Sha256::digest(SK_APPLICATION)[..], &TAIL, &Sha256::digest(data)].concat();
    let public = ed25519().verifying_key().to_bytes();
    let of = |kind: &str, rest: &[&[u8]]| {
        rest.iter().fold(string(kind.as_bytes()), |all, it| [all, string(it)].concat())
    };
    let application = SK_APPLICATION.as_bytes();
    let (kinds, curve) = (
        [
            "ssh-ed25519",
            "ecdsa-sha2-nistp256",
            "sk-ssh-ed25519@openssh.com",
            "sk-ecdsa-sha2-nistp256@openssh.com",
        ],
        b"nistp256",
    );
    [
        Key {
            name: "ed25519",
            kind: kinds[0],
            public: of(kinds[0], &[&public]),
            sign: Box::new(move |data| string(&ed25519().sign(data).to_bytes())),
        },
        Key {
            name: "p256",
            kind: kinds[1],
            public: of(kinds[1], &[curve, &point]),
            sign: Box::new(ecdsa),
        },
        Key {
            name: "sk-ed25519",
            kind: kinds[2],
            public: of(kinds[2], &[&public, application]),
            sign: Box::new(move |data| {
                [string(&ed25519().sign(&touched(data)).to_bytes()), TAIL.to_vec()].concat()
            }),
        },
        Key {
            name: "sk-p256",
            kind: kinds[3],
            public: of(kinds[3], &[curve, &point, application]),
            sign: Box::new(move |data| [ecdsa(&touched(data)), TAIL.to_vec()].concat()),
        },
    ]
}

/// SSHSIG's bytes (OpenSSH's PROTOCOL.sshsig).
fn sshsig(key: &Key, meaning: Meaning, body: &[u8]) -> Vec<u8> {
    let head = [string(meaning.namespace().as_bytes()), string(b""), string(b"sha512")].concat();
    let hash = string(&Sha512::digest(meaning.message(body)));
    let data = [b"SSHSIG", head.as_slice(), &hash].concat();
    let signature = [string(key.kind.as_bytes()), (key.sign)(&data)].concat();
    let version = 1_u32.to_be_bytes();
    [b"SSHSIG", &version[..], &string(&key.public), &head, &string(&signature)].concat()
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, bytes).expect("written");
    };
    let mut some = String::new();
    for key in keys() {
        let public = format!("{} {}\n", key.kind, STANDARD.encode(&key.public));
        write(&format!("keys/{}.pub", key.name), public.as_bytes());
        for meaning in MEANINGS {
            let bytes = sshsig(&key, meaning, SIGNED);
            some = armor(&bytes);
            let demand = broker::verify::Demand {
                meaning,
                body: SIGNED,
                origin: "",
                assurance: broker::lease::Assurance::Software,
            };
            let parsed = UnverifiedSignature::parse(&some).expect("ours parses");
            check_signature(&parsed, &enrolled(&public), demand, NOW).expect("ours verifies");
            let name = format!("{}-{}", key.name, meaning.namespace().replace('@', "-"));
            write(&format!("seeds/sshsig/{name}"), &bytes);
            write(&format!("seeds/armor/{name}"), some.as_bytes());
        }
    }
    for entry in fs::read_dir(root.join("seeds/statement")).expect("real statements") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name");
        let bytes = fs::read(entry.path()).expect("a statement");
        let sealed = LeaseStatement::from_bytes(bytes.clone()).expect("a statement");
        let whole: Value = serde_json::from_slice(&bytes).expect("JSON");
        write(&format!("seeds/terms/{name}"), whole["predicate"].to_string().as_bytes());
        let answer = json!({
            "id": sealed.terms().lease_id, "statement": STANDARD.encode(&bytes), "sha256": sealed.sha256(),
            "short_code": sealed.short_code(),
        });
        write(&format!("seeds/wire/statement-{name}"), answer.to_string().as_bytes());
    }
    let bodies = [
        (
            "signature",
            json!({ "decision": "approve", "signature": some, "statement_sha256": "00", "reason": "x" }),
        ),
        ("login", json!({ "nonce": "a.b.c", "signature": some })),
        ("nonce", json!({ "nonce": "a.b.c", "expires_at": "2026-01-01T12:10:00Z" })),
        (
            "session",
            json!({ "person": "bob", "token": "a.b.c", "expires_at": "2026-01-01T12:10:00Z" }),
        ),
        (
            "request",
            json!({
                "scope": "prod-rw", "task": "T-1", "reason": "new worker count", "rollback": "put the old object back",
                "actions": ["s3:PutObject"], "resources": ["arn:aws:s3:::prod-app-data/config/app.json"],
                "ttl_seconds": 900, "deliver": true,
            }),
        ),
    ];
    for (name, body) in bodies {
        write(&format!("seeds/wire/{name}"), body.to_string().as_bytes());
    }
}
