//! An approval leaves the broker as a file, and convinces, or does not, by itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker::approval::{self, Enrolment, Export, Jwk, verify};
use broker::identity::Tokens;
use broker::lease::{Assurance, Decision, LeaseId, LeaseState};
use broker::statement::act::{
    Act, ActStatement, ActTerms, Change, Evidence, NewKey, NewPerson, TaskStart,
};
use broker::statement::{Issuer, LeaseStatement, Meaning, Signers};
use http_body_util::BodyExt as _;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tests::keys::Key;
use tests::program::{binary, program, text};
use tests::sts::FakeSts;
use tests::{Setup, TestBroker, enrol};
use time::Duration;
use tower::ServiceExt as _;
use uuid::Uuid;

/// A broker whose people hold keys with touch and PIN.
async fn with_hardware(sts: &FakeSts) -> TestBroker {
    TestBroker::new(Setup { software_keys: false, ..Setup::fake(sts) }).await
}

/// The file as it is served to the agent, byte for byte.
async fn file(broker: &TestBroker, id: LeaseId) -> Vec<u8> {
    let request = Request::get(format!("/v1/leases/{id}/approval"))
        .header("authorization", format!("Bearer {}", broker.token))
        .body(Body::empty())
        .unwrap();
    let answer = broker.router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/json");
    answer.into_body().collect().await.unwrap().to_bytes().to_vec()
}

/// What is in a file.
fn inside(file: &[u8]) -> Export {
    let envelope: Value = serde_json::from_slice(file).unwrap();
    let payload = STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

/// The file of an export that this instance seals: what somebody could do who holds its key.
fn sealed(broker: &TestBroker, export: &Export) -> Vec<u8> {
    approval::seal(export, |it| broker.broker.tokens.key_of("").sign(it)).unwrap().file()
}

/// The codes of what is wrong with an export that this instance seals.
fn codes(broker: &TestBroker, export: &Export) -> Vec<&'static str> {
    let found = verify(&sealed(broker, export), Some(broker.broker.tokens.key_id()));
    found.map_or_else(|it| it.iter().map(|it| it.fault.code()).collect(), |_| vec![])
}

/// An approved lease's export.
async fn approved(broker: &TestBroker) -> Export {
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    inside(&file(broker, id).await)
}

#[tokio::test]
async fn an_export_tells_at_every_stage_what_was_signed_and_what_became_of_it() {
    let sts = FakeSts::start().await;
    let broker = with_hardware(&sts).await;
    let pin = broker.broker.tokens.key_id();
    let id = broker.pending_lease().await;
    let check = async || verify(&file(&broker, id).await, Some(pin)).unwrap();

    let pending = check().await;
    assert!(!pending.is_approved() && pending.export().signatures.is_empty());
    assert_eq!(pending.export().lease.state, LeaseState::Pending);

    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    let approved = check().await;
    assert!(approved.is_approved() && approved.is_pinned());
    assert_eq!(approved.key_id(), pin);
    assert_eq!(approved.statement().bytes(), broker.statement(id).await);
    let signature = &approved.export().signatures[0];
    assert_eq!((signature.person.as_str(), signature.decision), ("bob", Decision::Approve));
    assert_eq!((signature.touched, signature.verified), (Some(true), Some(true)));
    assert_eq!(signature.key.fingerprint, broker.bob.fingerprint());
    assert_eq!(signature.key.evidence, "made by a test");
    let message = Meaning::LeaseApproval.message(approved.statement().bytes());
    assert_eq!(STANDARD.decode(&signature.message).unwrap(), message);

    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    let issued = check().await;
    assert_eq!(issued.export().lease.state, LeaseState::Issued);
    // A key that is revoked later was good when it signed.
    broker.clock.advance(Duration::HOUR);
    broker.broker.sweep().await.unwrap();
    broker
        .as_owner("update person_key set revoked_at = enrolled_at + interval '2 hours' where person = 'bob'")
        .await;
    let expired = check().await;
    assert!(expired.is_approved());
    assert_eq!(expired.export().lease.state, LeaseState::Expired);

    let refused = broker.pending_lease().await;
    let signature = broker.carol.sign("refuse", &broker.statement(refused).await);
    assert_eq!(broker.send_signature(refused, "refuse", &signature).await.status, StatusCode::OK);
    let file = file(&broker, refused).await;
    assert!(!verify(&file, Some(pin)).unwrap().is_approved());
    let mut turned = inside(&file);
    turned.lease = Export { lease: expired.export().lease.clone(), ..turned.clone() }.lease;
    turned.lease.id = refused;
    assert_eq!(codes(&broker, &turned), ["refused"]);
}

#[tokio::test]
async fn whoever_may_see_the_lease_may_export_it_and_nobody_else() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let get = async |token: &str, id: LeaseId| {
        let path = format!("/v1/leases/{id}/approval");
        broker.send(Method::GET, &path, Some(token), &[], None).await
    };
    let session = |who: &str| {
        let (token, _) = broker.broker.tokens.login_token(who, broker.clock.now());
        token.expose_secret().to_owned()
    };
    for who in ["alice", "bob", "carol"] {
        assert_eq!(get(&session(who), id).await.status, StatusCode::OK, "{who}");
    }
    let other = tests::start_task(
        &broker.database,
        &broker.broker.tokens,
        "other",
        "bob",
        broker.clock.now(),
    );
    for token in [session("dave"), other.await] {
        let answer = get(&token, id).await;
        assert_eq!(
            (answer.status, answer.problem()),
            (StatusCode::NOT_FOUND, "/problems/not-found")
        );
        assert!(answer.body.get("lease_id").is_none(), "{}", answer.body);
    }
    assert_eq!(get(&broker.token, LeaseId(Uuid::now_v7())).await.status, StatusCode::NOT_FOUND);

    let unsigned = broker.staging_lease().await;
    let answer = get(&broker.token, unsigned).await;
    assert_eq!((answer.status, answer.problem()), (StatusCode::NOT_FOUND, "/problems/not-found"));
    assert_eq!(answer.body["lease_id"], unsigned.to_string());
    assert!(answer.body["detail"].as_str().unwrap().contains("nobody was asked to sign"));
    assert!(answer.body["next"].as_str().unwrap().contains("broker show"));
}

/// One change of an export, and the codes of what is then wrong with it.
type Attack<'a> = (&'a dyn Fn(&mut Export), &'a [&'a str]);

#[tokio::test]
async fn what_the_holder_of_the_instance_key_changes_shows_in_what_people_signed() {
    let sts = FakeSts::start().await;
    let broker = with_hardware(&sts).await;
    let (good, other) = (approved(&broker).await, approved(&broker).await);
    assert_eq!(codes(&broker, &good), [""; 0], "the control");
    let statement = LeaseStatement::from_bytes(STANDARD.decode(&good.statement).unwrap()).unwrap();
    let by = |it: &mut Export, person: &str, key: &Key| {
        let record = &mut it.signatures[0];
        person.clone_into(&mut record.person);
        record.signature = key.sign("approve", statement.bytes());
        (record.key.public_key, record.key.fingerprint) = (key.public_key(), key.fingerprint());
    };
    let at = statement.terms().sign_by;
    let attacks: &[Attack<'_>] = &[
        // The signature of another lease, with and without its message, and with its statement.
        (
            &|it| it.signatures.clone_from(&other.signatures),
            &["other-message", "not-this-statement"],
        ),
        (
            &|it| it.signatures[0].signature.clone_from(&other.signatures[0].signature),
            &["not-this-statement"],
        ),
        (
            &|it| {
                it.signatures.clone_from(&other.signatures);
                it.statement.clone_from(&other.statement);
            },
            &["other-lease"],
        ),
        (&|it| it.lease.id = other.lease.id, &["other-lease"]),
        (&|it| it.lease.tier = broker::lease::Tier::Destructive, &["other-lease"]),
        (&|it| it.statement.clone_from(&it.signatures[0].message), &["statement"]),
        // Signers.
        (&|it| it.signatures.clear(), &["too-few"]),
        (&|it| by(it, "alice", &broker.alice), &["sponsor"]),
        (&|it| by(it, "dave", &broker.dave), &["not-eligible"]),
        // Whose key it is, where no signed change says so, is this instance's word: the one lie that no file shows.
        (&|it| it.signatures[0].person = "carol".into(), &[]),
        (&|it| it.signatures[0].person = "dave".into(), &["not-eligible"]),
        (&|it| it.signatures[0].person = "../bob".into(), &["not-a-name", "not-eligible"]),
        (&|it| it.signatures.push(it.signatures[0].clone()), &["twice"]),
        (
            &|it| {
                it.signatures.push(it.signatures[0].clone());
                it.signatures[1].person = "carol".into();
            },
            &["twice"],
        ),
        (
            &|it| it.signatures[0].decision = Decision::Refuse,
            &["other-message", "wrong-namespace", "refused"],
        ),
        // Keys.
        (&|it| it.signatures[0].key.public_key = broker.carol.public_key(), &["unknown-key"]),
        (&|it| it.signatures[0].key.fingerprint = broker.carol.fingerprint(), &["unknown-key"]),
        (&|it| it.signatures[0].key.enrolled_at += Duration::SECOND, &["key-not-enrolled-yet"]),
        (
            &|it| it.signatures[0].key.revoked_at = Some(it.signatures[0].signed_at),
            &["key-revoked"],
        ),
        (
            &|it| {
                it.signatures[0].key.revoked_at =
                    Some(it.signatures[0].signed_at + Duration::SECOND);
            },
            &[],
        ),
        (&|it| it.signatures[0].key.assurance = Assurance::Software, &["assurance-too-low"]),
        (&|it| it.signatures[0].key.assurance = Assurance::Present, &["other-record"]),
        // What the hardware said.
        (&|it| by(it, "bob", &broker.bob.with_flags(0)), &["not-touched"]),
        (&|it| by(it, "bob", &broker.bob.with_flags(1)), &["other-record"]),
        (&|it| by(it, "bob", &Key::hardware_for("ssh:")), &["wrong-application"]),
        (&|it| by(it, "bob", &Key::software()), &["assurance-too-low"]),
        (&|it| it.signatures[0].verified = Some(false), &["other-record"]),
        (&|it| it.signatures[0].touched = None, &["other-record"]),
        (&|it| it.signatures[0].message.clear(), &["other-message"]),
        // Times.
        (&|it| it.signatures[0].signed_at = at + Duration::SECOND, &["too-late", "too-few"]),
        (
            &|it| {
                it.signatures[0].signed_at -= Duration::HOUR;
                it.signatures[0].key.enrolled_at -= Duration::DAY;
            },
            &["before-request"],
        ),
        // What became of it.
        (&|it| it.lease.state = LeaseState::Pending, &["state"]),
        (&|it| it.lease.state = LeaseState::Denied, &["state"]),
        (&|it| it.lease.state = LeaseState::Issued, &["state"]),
        (&|it| it.lease.approved_at = None, &["state"]),
    ];
    for (at, (attack, expected)) in attacks.iter().enumerate() {
        let mut it = good.clone();
        attack(&mut it);
        assert_eq!(codes(&broker, &it), *expected, "attack {at}");
    }
}

#[tokio::test]
async fn another_instance_cannot_speak_for_the_one_that_people_signed_for() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let other = TestBroker::fake(&sts).await;
    let mut export = approved(&broker).await;
    // The whole export, changed and sealed anew.
    export.lease.state = LeaseState::Revoked;
    export.lease.ended_at = Some(export.exported_at);
    assert_eq!(codes(&broker, &export), [""; 0], "the control");
    export.instance_key = Jwk::of(other.broker.tokens.key_of("").public());
    let resealed = sealed(&other, &export);
    assert_eq!(verify(&resealed, None).unwrap_err()[0].fault.code(), "other-instance");
    let pin = broker.broker.tokens.key_id();
    assert_eq!(verify(&resealed, Some(pin)).unwrap_err()[0].fault.code(), "not-the-pinned-key");

    // The statement and the signature of another instance, under this one's seal.
    let theirs = approved(&other).await;
    let mut ours = theirs.clone();
    ours.instance_key = Jwk::of(broker.broker.tokens.key_of("").public());
    assert_eq!(codes(&broker, &ours), ["other-instance"]);
    ours.instance_key = theirs.instance_key;
    assert_eq!(codes(&broker, &ours), ["seal-broken"]);
}

#[tokio::test]
async fn two_signatures_in_an_export_are_two_people() {
    let sts = FakeSts::start().await;
    let scopes = include_str!("../../config/scopes.toml")
        .replace("assurance = \"present\" }", "count = 2 }");
    let broker = TestBroker::new(Setup { scopes: Some(scopes), ..Setup::fake(&sts) }).await;
    let second = enrol(&broker.database, "bob", &[], true, broker.clock.now()).await;
    let id = broker.pending_lease().await;
    broker.approve(id, &broker.bob).await;
    let half = file(&broker, id).await;
    assert!(!verify(&half, None).unwrap().is_approved());
    assert_eq!(broker.approve(id, &broker.carol).await.body["state"], "approved");
    let good = inside(&file(&broker, id).await);
    assert_eq!(codes(&broker, &good), [""; 0], "the control");

    let mut missing = good.clone();
    missing.signatures.pop();
    assert_eq!(codes(&broker, &missing), ["too-few"]);
    // Bob's other key in carol's place.
    let mut twice = good;
    let statement = STANDARD.decode(&twice.statement).unwrap();
    let record = twice.signatures.iter_mut().find(|it| it.person == "carol").unwrap();
    record.person = "bob".into();
    record.signature = second.sign("approve", &statement);
    (record.key.public_key, record.key.fingerprint) = (second.public_key(), second.fingerprint());
    assert_eq!(codes(&broker, &twice), ["twice", "too-few"]);
}

/// A change that enrols bob's key, for the admin zoe to sign.
fn change(broker: &TestBroker, act: Act) -> ActTerms {
    let now = broker.clock.now();
    ActTerms {
        broker: Issuer {
            origin: broker.broker.config.settings.origin.clone(),
            instance_key: broker.broker.tokens.key_id().to_owned(),
        },
        id: Uuid::now_v7(),
        act,
        proposed_by: Some("alice".into()),
        signers: Signers {
            eligible: vec!["yves".into(), "zoe".into()],
            needed: 1,
            assurance: Assurance::Verified,
        },
        proposed_at: now - Duration::days(3),
        sign_by: now - Duration::days(2),
        cool_down_seconds: 24 * 60 * 60,
        nonce: "ab".repeat(32),
    }
}

fn new_key(key: &Key) -> NewKey {
    NewKey {
        public_key: key.public_key(),
        fingerprint: key.fingerprint(),
        assurance: Assurance::Verified,
        evidence: Evidence::Seen,
    }
}

fn enrolment(terms: ActTerms, zoe: &Key, meaning: Meaning) -> Enrolment {
    let signed_at = terms.sign_by - Duration::HOUR;
    let statement = ActStatement::new(terms).unwrap();
    Enrolment {
        statement: STANDARD.encode(statement.bytes()),
        signature: zoe.sign_as(meaning.namespace(), &meaning.message(statement.bytes())),
        signer: "zoe".into(),
        public_key: zoe.public_key(),
        signed_at,
    }
}

#[tokio::test]
async fn a_key_counts_only_as_the_change_that_enrolled_it_says() {
    let sts = FakeSts::start().await;
    let broker = with_hardware(&sts).await;
    let export = approved(&broker).await;
    let zoe = Key::hardware();
    let of_bob =
        |key: &Key| Act::AdminChange(Change::EnrolKey { handle: "bob".into(), key: new_key(key) });
    let good = || enrolment(change(&broker, of_bob(&broker.bob)), &zoe, Meaning::AdminChange);
    let judge = |it: Enrolment| {
        let mut export = export.clone();
        export.signatures[0].key.enrolled_by = Some(it);
        codes(&broker, &export)
    };
    assert_eq!(judge(good()), [""; 0], "the control");
    let person = NewPerson {
        handle: "bob".into(),
        display_name: "Bob".into(),
        email: "bob@example.com".into(),
        groups: vec![],
        key: Some(new_key(&broker.bob)),
    };
    let added = change(&broker, Act::AdminChange(Change::AddPerson { person }));
    assert_eq!(judge(enrolment(added, &zoe, Meaning::AdminChange)), [""; 0], "the control");

    let by_terms = |spoil: &dyn Fn(&mut ActTerms)| {
        let mut terms = change(&broker, of_bob(&broker.bob));
        spoil(&mut terms);
        judge(enrolment(terms, &zoe, Meaning::AdminChange))
    };
    let another = |act| by_terms(&move |it| it.act = Clone::clone(&act));
    let carols = |handle: &str, key: &Key| {
        Act::AdminChange(Change::EnrolKey { handle: handle.into(), key: new_key(key) })
    };
    assert_eq!(another(carols("carol", &broker.bob)), ["enrolment-of-another"]);
    assert_eq!(another(carols("bob", &broker.carol)), ["enrolment-of-another"]);
    let weak = NewKey { assurance: Assurance::Present, ..new_key(&broker.bob) };
    let weak = Act::AdminChange(Change::EnrolKey { handle: "bob".into(), key: weak });
    assert_eq!(another(weak), ["enrolment-of-another"]);
    let elsewhere = "http://localhost:2";
    assert_eq!(by_terms(&|it| it.broker.origin = elsewhere.into()), ["enrolment-of-another"]);
    // The instance's key is renewed now and then.
    assert_eq!(by_terms(&|it| it.broker.instance_key = "another".into()), [""; 0]);
    assert_eq!(by_terms(&|it| it.signers.eligible = vec!["yves".into()]), ["enrolment-signer"]);
    assert_eq!(by_terms(&|it| it.cool_down_seconds *= 3), ["enrolment-time"]);
    assert_eq!(by_terms(&|it| it.proposed_at = it.sign_by), ["enrolment-time"]);

    // A change of another kind, or no change at all.
    let revoked = Act::AdminChange(Change::RevokeKey {
        handle: "bob".into(),
        fingerprint: broker.bob.fingerprint(),
    });
    let mut terms = change(&broker, revoked);
    terms.cool_down_seconds = 0;
    assert_eq!(judge(enrolment(terms, &zoe, Meaning::AdminChange)), ["enrolment-statement"]);
    let mut terms = change(
        &broker,
        Act::TaskStart(TaskStart {
            agent: "a".into(),
            sponsor: "zoe".into(),
            task: "T".into(),
            ttl_seconds: 60,
        }),
    );
    (terms.cool_down_seconds, terms.signers.eligible) = (0, vec!["zoe".into()]);
    assert_eq!(judge(enrolment(terms, &zoe, Meaning::TaskStart)), ["enrolment-statement"]);
    for statement in ["", "e30=", "?", &export.statement] {
        let it = Enrolment { statement: statement.into(), ..good() };
        assert_eq!(judge(it), ["enrolment-statement"], "{statement}");
    }

    // The admin's signature.
    let signed = |key: &Key, meaning| enrolment(change(&broker, of_bob(&broker.bob)), key, meaning);
    for it in [
        signed(&zoe, Meaning::AdminChangeRefusal),
        signed(&zoe, Meaning::LeaseApproval),
        signed(&zoe.with_flags(0), Meaning::AdminChange),
        signed(&zoe.with_flags(1), Meaning::AdminChange),
        signed(&Key::software(), Meaning::AdminChange),
        Enrolment { public_key: Key::hardware().public_key(), ..good() },
        Enrolment { signature: "zoe says yes".into(), ..good() },
        Enrolment { signature: export.signatures[0].signature.clone(), ..good() },
    ] {
        assert_eq!(judge(it), ["enrolment-signature"]);
    }
    let it = Enrolment { signer: "bob".into(), ..good() };
    assert_eq!(judge(it), ["enrolment-signer"]);
    let late = Enrolment { signed_at: broker.clock.now() - Duration::DAY, ..good() };
    assert_eq!(judge(late), ["enrolment-time"]);
}

/// Runs `broker ARGS` in `dir`, with a configuration that no command could use.
async fn run(dir: &Path, environment: &[(&str, &str)], args: &[&str]) -> Output {
    let environment: BTreeMap<_, _> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut command = program(binary("broker"), &environment);
    command.args(args).current_dir(dir).env("HOME", dir).env("XDG_STATE_HOME", dir);
    command.output().await.expect("it runs")
}

#[tokio::test]
async fn stock_openssh_agrees_with_us_and_knows_nothing_of_ours() {
    let sts = FakeSts::start().await;
    let broker = with_hardware(&sts).await;
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    let refused = broker.pending_lease().await;
    let refusal = broker.carol.sign("refuse", &broker.statement(refused).await);
    broker.send_signature(refused, "refuse", &refusal).await;

    for (id, person) in [(id, "bob"), (refused, "carol")] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.json"), file(&broker, id).await).unwrap();
        let extract = ["audit", "verify", "a.json", "--extract", "it's out"];
        let output = run(dir.path(), &[], &extract).await;
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words}");
        let line = words.lines().find(|it| it.starts_with("ssh-keygen ")).expect(&words).to_owned();
        let stock = async |line: &str| {
            let mut shell = program("sh", &BTreeMap::new());
            shell.args(["-c", line]).current_dir(dir.path()).output().await.expect("sh runs")
        };
        let good = stock(&line).await;
        assert!(good.status.success(), "{line}: {}", text(&good.stderr));
        assert!(text(&good.stdout).starts_with("Good \"lease-"), "{}", text(&good.stdout));
        // Another person, another purpose, a time before the key's, another message.
        let year = line.replace("verify-time=2026", "verify-time=2025");
        let purpose = line.replace("-n lease-", "-n xlease-");
        let who = line.replace(&format!("-I {person}"), "-I alice");
        for other in [year, purpose, who] {
            assert_ne!(other, line);
            assert!(!stock(&other).await.status.success(), "{other}");
        }
        let message = dir.path().join(format!("it's out/message-{person}"));
        let mut bytes = std::fs::read(&message).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        std::fs::write(&message, bytes).unwrap();
        assert!(!stock(&line).await.status.success(), "a changed message");
        // What lies there from before is not mixed with what is checked.
        assert_eq!(run(dir.path(), &[], &extract).await.status.code(), Some(2));
    }
}

#[tokio::test]
async fn the_command_line_exports_for_agent_and_person_and_checks_without_any_broker() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    let unsigned = broker.staging_lease().await.to_string();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(axum::serve(listener, broker.router.clone()).into_future());

    let dir = tempfile::tempdir().unwrap();
    let (lease, served) = (id.to_string(), file(&broker, id).await);
    let agent = [("BROKER_URL", url.as_str()), ("BROKER_TOKEN", &broker.token)];
    let printed = run(dir.path(), &agent, &["approval", "export", &lease]).await;
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed.stderr));
    assert_eq!(text(&printed.stdout), text(&served), "byte for byte");
    let written = run(dir.path(), &agent, &["approval", "export", &lease, "-f", "a.json"]).await;
    assert_eq!((written.status.code(), text(&written.stdout)), (Some(0), String::new()));
    assert_eq!(std::fs::read(dir.path().join("a.json")).unwrap(), served);
    let nothing = run(dir.path(), &agent, &["approval", "export", &unsigned]).await;
    assert_eq!(nothing.status.code(), Some(2));
    assert!(
        text(&nothing.stderr).contains("nobody was asked to sign"),
        "{}",
        text(&nothing.stderr)
    );

    let nobody = [("BROKER_URL", url.as_str())];
    let out = run(dir.path(), &nobody, &["approval", "export", &lease]).await;
    assert_eq!((out.status.code(), out.stdout.starts_with(b"{\"payload\"")), (Some(8), false));
    // The command line goes by the time of this machine.
    let ends = broker::clock::Clock::default().now() + Duration::HOUR;
    let ends = ends.format(&time::format_description::well_known::Rfc3339).unwrap();
    let (token, _) = broker.broker.tokens.login_token("carol", broker.clock.now());
    let session = json!({ "brokers": { &url: {
        "person": "carol", "token": token.expose_secret(), "expires_at": ends } } });
    std::fs::create_dir(dir.path().join("broker")).unwrap();
    std::fs::write(dir.path().join("broker/login.json"), session.to_string()).unwrap();
    let person = run(dir.path(), &nobody, &["approval", "export", &lease]).await;
    assert_eq!(text(&person.stdout), text(&served), "{}", text(&person.stderr));
    serving.abort();
    broker.broker.pool.close().await;
    check_offline(dir.path(), &lease, broker.broker.tokens.key_id()).await;
}

/// `audit verify` where there is no broker, and what is configured is wrong.
async fn check_offline(dir: &Path, lease: &str, pin: &str) {
    std::fs::create_dir_all(dir.join(".config/broker")).unwrap();
    std::fs::write(dir.join(".config/broker/config.toml"), "not = [toml").unwrap();
    let nowhere = [("BROKER_URL", "nowhere"), ("BROKER_TOKEN_FILE", "/nonexistent")];
    let check = async |args: &[&str]| {
        let args: Vec<_> = ["audit", "verify"].iter().chain(args).copied().collect();
        let output = run(dir, &nowhere, &args).await;
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, shown, words) = check(&["a.json", "-o", "text"]).await;
    assert_eq!(code, 0, "{words}");
    for part in ["approved    yes, by 1", "bob", "s3:PutObject", lease, "ON THE FILE'S OWN WORD"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(words.contains(pin) && words.contains("trusted on the file's own word"), "{words}");
    let (code, shown, words) = check(&["a.json", "--instance-key", pin]).await;
    let verdict: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, words.as_str()), (0, ""), "{shown}");
    for (member, value) in [
        ("valid", json!(true)),
        ("approved", json!(true)),
        ("instance_key_pinned", json!(true)),
        ("instance_key", json!(pin)),
    ] {
        assert_eq!(verdict[member], value, "{shown}");
    }
    assert_eq!(verdict["lease"]["id"], lease);
    assert_eq!(verdict["signatures"][0]["person"], "bob");

    let (code, shown, words) = check(&["a.json", "--instance-key", "another"]).await;
    let verdict: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &verdict["findings"][0]["code"]), (4, &json!("not-the-pinned-key")));
    assert!(words.contains("\nnext: "), "{words}");
    let mut bytes = std::fs::read(dir.join("a.json")).unwrap();
    bytes.push(b'\n');
    std::fs::write(dir.join("b.json"), bytes).unwrap();
    let (code, shown, words) = check(&["b.json", "--extract", "out"]).await;
    let verdict: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &verdict["valid"]), (4, &json!(false)), "{words}");
    assert_eq!(verdict["findings"][0]["code"], "not-canonical");
    assert!(!dir.join("out").exists(), "nothing of a file that is not valid is handed on");
    let (code, shown, _) = check(&["b.json", "-o", "text"]).await;
    assert_eq!((code, shown.as_str()), (4, ""));
    assert_eq!(check(&["missing.json"]).await.0, 2);
    assert_eq!(check(&["."]).await.0, 2);
    assert_eq!(check(&["/dev/zero"]).await.0, 4);
}

#[test]
fn the_key_id_in_tokens_and_in_exports_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("instance.pem");
    std::fs::write(&path, Tokens::generate_key().expose_secret()).unwrap();
    let tokens = Tokens::load(&path, &[], "http://localhost:1").unwrap();
    assert_eq!(Jwk::of(tokens.key_of("").public()).thumbprint(), tokens.key_id());
}
