//! Makes the keys and the seeds anew: `cargo run --example seeds`. What signs is no secret: it is below.
//!
//! Statements are real ones, kept in `seeds/statement`; the others are made from them.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::approval::{
    self as approval_file, Enrolment, Export, Lease, Signature, message, verify,
};
use broker::lease::{Assurance, Decision, FreezeKind, LeaseState};
use broker::log::export::{Approval, Columns, End, Entry, FORMAT, Header, Line, Pruned};
use broker::log::proof::{HEADER, Proof};
use broker::log::tree::tile_place;
use broker::log::verify::{Options, Verdict, verify as verify_log};
use broker::log::{Checkpoint, Frontier, LogKey, SignedCheckpoint, leaf_hash};
use broker::statement::act::{
    Act, ActKind, ActStatement, ActTerms, Change, Evidence, NewKey, NewPerson, TaskStart, Thaw,
};
use broker::statement::{Issuer, LeaseStatement, Meaning, Signers};
use broker::verify::{Demand, SK_APPLICATION, UnverifiedSignature, check_signature};
use broker_fuzz::{NOW, SIGNED, armor, enrolled};
use broker_fuzz::{approval, log, passkey, workload};
use ed25519_dalek::Signer;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use time::Duration;
use uuid::Uuid;

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

fn write(path: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(&path, bytes).expect("written");
}

fn public_line(key: &Key) -> String {
    format!("{} {}", key.kind, STANDARD.encode(&key.public))
}

/// Real assertions, and the parts of good ones of our own.
fn passkeys() {
    for (at, case) in passkey::CASES.iter().enumerate() {
        let text = case.assertion.to_string();
        let parsed = UnverifiedSignature::parse(&text).expect("a real one parses");
        let demand = Demand {
            meaning: case.meaning(),
            body: case.body.as_bytes(),
            origin: &case.origin,
            assurance: Assurance::Software,
        };
        let judged = check_signature(&parsed, &enrolled(&case.key.to_text()), demand, NOW);
        assert_eq!(judged.is_ok(), case.is_good(), "{}", case.name);
        write(&format!("seeds/assertion/{at}-{}", case.name.replace(' ', "-")), text.as_bytes());
    }
    let client_data = passkey::good_client_data(Meaning::LeaseApproval, SIGNED);
    write("seeds/client-data/approval", &client_data);
    write("seeds/client-data/login", &passkey::good_client_data(Meaning::Login, SIGNED));
    let framed = String::from_utf8(client_data).expect("text").replace("false", "true");
    write("seeds/client-data/framed", framed.as_bytes());
    let data = passkey::good_authenticator_data();
    write("seeds/authenticator-data/verified", &data);
    for (name, flags) in [("present", 0x01), ("synced", 0x1d), ("extended", 0x85)] {
        let mut data = data.clone();
        data[32] = flags;
        if name == "extended" {
            // An empty map in CBOR.
            data.push(0xa0);
        }
        write(&format!("seeds/authenticator-data/{name}"), &data);
    }
}

fn new_key(key: &Key) -> NewKey {
    let public_key = public_line(key);
    let parsed = UnverifiedSignature::parse(&armor(&sshsig(key, Meaning::Login, SIGNED)));
    NewKey {
        fingerprint: parsed.expect("ours parses").claimed_fingerprint(),
        public_key,
        assurance: Assurance::Verified,
        evidence: Evidence::Seen,
    }
}

fn act(broker: &Issuer, act: Act) -> ActStatement {
    let cool_down = matches!(&act, Act::AdminChange(it) if it.cools_down());
    let signer = if act.kind() == ActKind::TaskStart { "alice" } else { "carol" };
    ActStatement::new(ActTerms {
        broker: broker.clone(),
        id: Uuid::from_bytes([3; 16]),
        act,
        proposed_by: Some("alice".into()),
        signers: Signers {
            eligible: vec![signer.into()],
            needed: 1,
            assurance: Assurance::Software,
        },
        proposed_at: NOW,
        sign_by: NOW + Duration::HOUR,
        cool_down_seconds: if cool_down { 3600 } else { 0 },
        nonce: "00".repeat(32),
    })
    .expect("an act")
}

/// One of each, and the one that enrols bob's key.
fn acts(broker: &Issuer, bobs: &Key) -> ActStatement {
    let handle = || "bob".to_owned();
    let key = || new_key(bobs);
    let attested = Evidence::Attested {
        format: "ssh-sk-attest-v01".into(),
        attestation: "AA==".into(),
        challenge: "AA==".into(),
        certificate_sha256: "00".repeat(32),
        hardware_is: "a key, \u{202e}or so".into(),
    };
    let changes = [
        Change::AddPerson {
            person: NewPerson {
                handle: handle(),
                display_name: "Bob \u{202e}B\u{e9}".into(),
                email: "bob@example.com".into(),
                groups: vec!["admins".into(), "signers".into()],
                key: Some(NewKey { evidence: attested, ..key() }),
            },
        },
        Change::SetGroups { handle: handle(), from: vec!["admins".into()], to: vec![] },
        Change::DisablePerson { handle: handle(), was_admin: true },
        Change::EnablePerson { handle: handle(), groups: vec!["ops".into()] },
        Change::RevokeKey { handle: handle(), fingerprint: key().fingerprint },
    ];
    let task = TaskStart {
        agent: "demo-agent".into(),
        sponsor: "alice".into(),
        task: "T-1".into(),
        ttl_seconds: 3600,
    };
    let thaw = Thaw {
        freeze_id: Uuid::from_bytes([4; 16]),
        freeze: FreezeKind::Agent,
        target: Some("demo-agent".into()),
        frozen_by: "bob".into(),
        frozen_because: "it asks\nfor too much".into(),
        frozen_at: NOW,
    };
    let enrols = act(broker, Act::AdminChange(Change::EnrolKey { handle: handle(), key: key() }));
    write("seeds/act/enrol-key", enrols.bytes());
    write("seeds/act/task-start", act(broker, Act::TaskStart(task)).bytes());
    write("seeds/act/thaw", act(broker, Act::Thaw(thaw)).bytes());
    for (at, change) in changes.into_iter().enumerate() {
        let bytes = act(broker, Act::AdminChange(change)).bytes().to_vec();
        write(&format!("seeds/act/change-{at}"), &bytes);
    }
    enrols
}

/// A lease that bob approved with a key that carol enrolled, which is handed back; and one that carol refused with a passkey.
fn approvals() -> Export {
    let [carols, _, bobs, _] = keys();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/statement/write");
    let real = LeaseStatement::from_bytes(fs::read(kept).expect("a statement")).expect("one");
    let mut terms = real.terms().clone();
    terms.broker = Issuer { origin: passkey::ORIGIN.into(), instance_key: approval::pin() };
    let sealed = LeaseStatement::new(terms.clone()).expect("a statement");
    let enrols = acts(&terms.broker, &bobs);
    let key = new_key(&bobs);
    let at = terms.requested_at + Duration::MINUTE;
    let signature = Signature {
        person: "bob".into(),
        decision: Decision::Approve,
        signed_at: at,
        signature: armor(&sshsig(&bobs, Meaning::LeaseApproval, sealed.bytes())),
        assurance: Assurance::Verified,
        touched: Some(true),
        verified: Some(true),
        message: message(Decision::Approve, sealed.bytes()),
        key: approval_file::Key {
            public_key: key.public_key,
            fingerprint: key.fingerprint,
            assurance: key.assurance,
            evidence: "seen".into(),
            enrolled_at: NOW + Duration::HOUR,
            revoked_at: None,
            enrolled_by: Some(Enrolment {
                statement: STANDARD.encode(enrols.bytes()),
                signature: armor(&sshsig(&carols, Meaning::AdminChange, enrols.bytes())),
                signer: "carol".into(),
                public_key: public_line(&carols),
                signed_at: NOW,
            }),
        },
    };
    let lease = Lease {
        id: terms.lease_id,
        state: LeaseState::Approved,
        tier: terms.tier,
        approved_at: Some(at),
        claim_by: Some(at + Duration::MINUTE),
        claimed_at: None,
        issued_at: None,
        ends_at: None,
        ended_at: None,
        end_reason: None,
    };
    let approved = Export {
        instance_key: approval::jwk(),
        origin: terms.broker.origin.clone(),
        exported_at: at,
        lease,
        statement: STANDARD.encode(sealed.bytes()),
        signatures: vec![signature],
    };
    let mut refused = approved.clone();
    let client_data = passkey::good_client_data(Meaning::LeaseRefusal, sealed.bytes());
    let data = passkey::good_authenticator_data();
    let by_passkey = passkey::sign(&client_data, &data);
    let carol = &mut refused.signatures[0];
    carol.person = "carol".into();
    carol.decision = Decision::Refuse;
    carol.signature = passkey::assertion(&client_data, &data, &by_passkey);
    carol.message = message(Decision::Refuse, sealed.bytes());
    carol.key.public_key = passkey::passkey(false).to_text();
    carol.key.fingerprint = passkey::passkey(false).fingerprint();
    carol.key.enrolled_by = None;
    refused.lease.state = LeaseState::Refused;
    (refused.lease.approved_at, refused.lease.claim_by) = (None, None);
    refused.lease.ended_at = Some(at);
    for (name, export) in [("approved", approved.clone()), ("refused", refused)] {
        let inside = serde_json::to_vec(&export).expect("JSON");
        let file = approval::seal(export).expect("a file");
        verify(&file, Some(&approval::pin())).expect("ours verifies");
        write(&format!("seeds/approval/inside-{name}"), &inside);
        write(&format!("seeds/approval/file-{name}"), &file);
    }
    approved
}

/// A log as it grows, and its export.
struct Log {
    key: LogKey,
    origin: String,
    frontier: Frontier,
    file: String,
}

impl Log {
    fn new(key: LogKey) -> Self {
        let origin = log::ORIGIN.to_owned();
        let header = Header {
            format: FORMAT.into(),
            origin: origin.clone(),
            key: key.verifier_key(&origin),
            exported_at: NOW,
        };
        let mut log = Self { key, origin, frontier: Frontier::default(), file: String::new() };
        log.line(Line::Export(header));
        log
    }

    fn line(&mut self, line: Line) {
        self.file += &line.text();
    }

    /// An event's row, and its bytes.
    fn event(&self, kind: &str, more: Value) -> (Value, String) {
        let id = Uuid::from_u128(self.frontier.size().into()).to_string();
        let time = "2026-01-01T12:00:00Z";
        let mut columns = json!({ "seq": self.frontier.size() + 1, "recorded_at": time, "id": id, "type": kind, "occurred_at": time, "actor": "broker" });
        for name in ["agent", "sponsor", "scope", "lease_id", "session_id"] {
            if !more[name].is_null() {
                columns[name] = more[name].clone();
            }
        }
        let body = json!({ "actor": "broker", "data": more, "id": id, "source": "http://localhost:1", "specversion": "1.0", "time": time, "type": kind });
        (columns, body.to_string())
    }

    fn entry(&mut self, kind: &str, data: Value) {
        let (mut columns, body) = self.event(kind, data);
        let hash = leaf_hash(body.as_bytes());
        columns["index"] = self.frontier.size().into();
        columns["leaf_hash"] = hash.to_string().into();
        // In the order that an export has them in, so that the short way is tried too.
        let columns = columns.to_string();
        let event: Columns<'_> = serde_json::from_str(&columns).expect("columns");
        let body = RawValue::from_string(body).expect("JSON");
        let line = Entry { event, body: &body };
        self.file += &(serde_json::to_string(&line).expect("strings and numbers serialize") + "\n");
        self.frontier.append(hash, |_| {});
    }

    fn pruned(&mut self) {
        let leaf_hash = leaf_hash(b"long ago");
        self.line(Line::Pruned(Pruned { index: self.frontier.size(), leaf_hash }));
        self.frontier.append(leaf_hash, |_| {});
    }

    fn checkpoint(&mut self, new: Option<LogKey>) -> SignedCheckpoint {
        let root = self.frontier.root();
        let it = Checkpoint { origin: self.origin.clone(), size: self.frontier.size(), root };
        let keys: Vec<_> = std::iter::once(&self.key).chain(&new).collect();
        let signed = it.sign(&keys).expect("a note");
        if let Some(new) = new {
            self.key = new;
        }
        self.line(Line::Checkpoint(signed.note().to_owned()));
        signed
    }

    /// The file, with an event that waits.
    fn end(mut self) -> String {
        let (columns, body) = self.event("probe.issued", json!({ "detail": {} }));
        self.file += &format!("{{\"waiting\":{columns},\"body\":{body}}}\n");
        self.line(Line::End(End { size: self.frontier.size(), waiting: 1 }));
        self.file
    }
}

/// A log with an approval in it, its checkpoint, and a proof; and one that was through everything.
fn logs(approved: Export) {
    let signature = &approved.signatures[0];
    let key = signature.key.fingerprint.clone();
    let told = json!({ "fingerprint": key, "assurance": signature.key.assurance });
    let enrolled = json!({ "detail": { "act": { "handle": signature.person, "key": told } } });
    let statement = STANDARD.decode(&approved.statement).expect("base64");
    let sealed = LeaseStatement::from_bytes(statement).expect("a statement");
    let approval = Approval {
        lease: approved.lease.clone(),
        statement: approved.statement,
        signatures: approved.signatures,
    };
    let lease = approved.lease.id.to_string();
    let issued = json!({ "agent": "demo-agent", "sponsor": "alice", "scope": "prod-rw", "lease_id": lease,
        "detail": { "tier": sealed.terms().tier, "statement_sha256": sealed.sha256() } });
    let tell = |log: &mut Log| {
        log.entry("log.started", json!({}));
        log.entry("key.enrolled", enrolled.clone());
        log.checkpoint(None);
        log.entry("lease.issued", issued.clone());
        log.line(Line::Approval(Box::new(approval.clone())));
        log.entry("freeze.ended", json!({ "detail": {} }));
    };
    let mut whole = Log::new(log::signs());
    tell(&mut whole);
    whole.checkpoint(None);
    whole.entry("task.started", json!({}));
    whole.entry("task.ended", json!({}));
    let before = whole.frontier.clone();
    whole.entry("key.revoked", json!({ "detail": { "act": { "fingerprint": key } } }));
    let newest = whole.checkpoint(None);
    // The last entry's path: the subtrees that the tree ended with before it, the smallest first.
    let path = before.bytes();
    let path = path.chunks(32).rev().map(|it| STANDARD.encode(it) + "\n").collect::<String>();
    let file = whole.end();
    let body = log::bodies(&file).last().expect("an entry");
    let extra = STANDARD.encode(body);
    let index = before.size();
    let proof = format!("{HEADER}\nextra {extra}\nindex {index}\n{path}\n{}", newest.note());
    let read = Proof::parse(&proof).expect("ours parses");
    read.verify(&log::key()).expect("ours verifies");
    good(&file, Some(log::key()), vec![newest.clone()], Verdict::Good);
    write("seeds/log/export", file.as_bytes());
    write("seeds/log/checkpoint", newest.note().as_bytes());
    write("seeds/log/proof", proof.as_bytes());

    // Another log: it changed hands, lost its end, and months of it are elsewhere.
    let mut long = Log::new(LogKey::from_bytes(&[12; 32]));
    tell(&mut long);
    long.pruned();
    long.pruned();
    let month =
        json!({ "partition": "event_202501", "events": 2, "first_index": 0, "last_index": 5 });
    long.entry("log.partition-exported", json!({ "detail": month }));
    long.entry("log.partition-dropped", json!({ "detail": { "partition": "event_202501" } }));
    let next = || LogKey::from_bytes(&[13; 32]);
    let new = next().verifier_key(log::ORIGIN);
    long.entry("log.rotated", json!({ "detail": { "new": new } }));
    long.checkpoint(Some(next()));
    let (size, origin) = (long.frontier.size(), format!("{}/2", log::ORIGIN));
    let lost = Checkpoint { origin: log::ORIGIN.into(), size: size + 9, root: leaf_hash(b"lost") };
    let lost = lost.sign(&[&next()]).expect("a note");
    let detail = json!({ "anchored": lost.note(), "size": size, "origin": origin });
    long.entry("log.recovered", json!({ "detail": detail }));
    long.origin = origin;
    long.checkpoint(None);
    let file = long.end();
    good(&file, None, vec![lost], Verdict::Incomplete);
    write("seeds/log/long", file.as_bytes());
    for (name, path) in [("tile", "1/x001/000.p/255"), ("bundle", "entries/000")] {
        assert!(tile_place(path).is_some());
        write(&format!("seeds/log/{name}"), path.as_bytes());
    }
}

fn good(file: &str, key: Option<String>, anchors: Vec<SignedCheckpoint>, verdict: Verdict) {
    let covered_within = Duration::HOUR;
    let options = Options { key, anchors, covered_within, ..Options::default() };
    let report = verify_log(file.as_bytes(), options, |_| ()).expect("it is in memory");
    assert_eq!(report.verdict(), verdict, "{}", report.text());
}

/// A good token, and what is refused for one reason each.
fn workloads() {
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "key-1" });
    let seed = |name: &str, header: &Value, changes: &Value| {
        let mut claims = workload::claims();
        let more = changes.as_object().expect("an object").clone();
        claims.as_object_mut().expect("an object").extend(more);
        write(&format!("seeds/workload/{name}"), format!("{header}\n{claims}").as_bytes());
        let token = workload::token_of(format!("{header}\n{claims}").as_bytes());
        let unverified = broker::workload::read(&token).ok()?;
        let verified = unverified
            .verify(&workload::issuer(), |_| true)
            .map(|it| it.workload("https://broker.example.com", NOW));
        Some(verified.is_ok_and(|it| it.is_ok()))
    };
    assert_eq!(seed("good", &header, &json!({})), Some(true));
    assert_eq!(
        seed("one-audience", &header, &json!({ "aud": ["https://broker.example.com"] })),
        Some(true)
    );
    assert_eq!(seed("nobody", &header, &json!({ "actor_id": "1" })), Some(true));
    assert_eq!(
        seed("two-audiences", &header, &json!({ "aud": ["https://broker.example.com", "x"] })),
        Some(false)
    );
    assert_eq!(seed("expired", &header, &json!({ "exp": 1 })), Some(false));
    assert_eq!(
        seed(
            "other-branch",
            &header,
            &json!({ "sub": "repo:acme/shop:ref:refs/heads/x:ref:refs/heads/main" })
        ),
        Some(false)
    );
    assert_eq!(seed("none", &json!({ "alg": "none", "kid": "key-1" }), &json!({})), Some(false));
    assert_eq!(
        seed(
            "brings-a-key",
            &json!({ "alg": "RS256", "kid": "key-1", "jku": "https://x" }),
            &json!({})
        ),
        None
    );
    write(
        "seeds/workload/token",
        workload::token_of(format!("{header}\n{}", workload::claims()).as_bytes()).as_bytes(),
    );
}

fn main() {
    passkeys();
    workloads();
    logs(approvals());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut some = String::new();
    for key in keys() {
        let public = public_line(&key) + "\n";
        write(&format!("keys/{}.pub", key.name), public.as_bytes());
        // What it is kept in and what it means are two things: not each with each.
        let meanings = if key.name == "ed25519" { Meaning::ALL } else { &[Meaning::LeaseApproval] };
        for meaning in meanings.iter().copied() {
            let bytes = sshsig(&key, meaning, SIGNED);
            some = armor(&bytes);
            let demand =
                Demand { meaning, body: SIGNED, origin: "", assurance: Assurance::Software };
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
