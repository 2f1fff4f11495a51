//! The signer's hands and eyes: keys as OpenSSH makes them, with its own stand-in for the hardware, stock OpenSSH's
//! programs and the real `broker`; and what of a request a person gets to see.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};

use axum::http::{Method, StatusCode};
use broker::clock::Clock;
use broker::lease::LeaseId;
use broker::statement::{ComparedTo, LeaseStatement, Meaning, short_code};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::keys::{Key, KeyFile, SshAgent, sk_dummy};
use tests::program::{binary, program, text};
use tests::sts::{FakeSts, Mood};
use tests::{Answer, Setup, TestBroker, production_write, start_task};
use time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;

/// A broker that takes no software keys.
async fn production(sts: &FakeSts) -> TestBroker {
    TestBroker::new(Setup { software_keys: false, ..Setup::fake(sts) }).await
}

/// Gives bob one more key.
async fn enrol(broker: &TestBroker, key: &KeyFile, assurance: &str) {
    let sql = "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) values ($1, 'bob', $2, $3, 'made by a test', '2026-01-01')";
    sqlx::query(sql)
        .bind(key.fingerprint())
        .bind(key.public_key())
        .bind(assurance)
        .execute(&broker.database.owner)
        .await
        .unwrap();
}

/// Something destructive, for which the configuration demands `verified`; a production write takes `present`.
fn destruction() -> Value {
    let mut body = production_write();
    body["scope"] = json!("prod-destructive");
    body["actions"] = json!(["s3:DeleteObject"]);
    body
}

async fn asked(broker: &TestBroker, body: Value) -> LeaseId {
    let answer = broker.post("/v1/leases", body).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
    answer.id()
}

async fn approve(broker: &TestBroker, id: LeaseId, key: &KeyFile) -> Answer {
    let signature = key.sign("approve", &broker.statement(id).await);
    broker.send_signature(id, "approve", &signature).await
}

/// Not counted, for this reason, and nothing came of it.
async fn rejected(broker: &TestBroker, sts: &FakeSts, id: LeaseId, answer: &Answer, reason: &str) {
    assert_eq!(answer.problem(), "/problems/signature-rejected", "{}", answer.body);
    assert_eq!(answer.reason(), reason, "{}", answer.body);
    assert_eq!(broker.state(id).await, "pending");
    let sql = "select doc #>> '{data,detail,reason}' from event where lease_id = $1 and type = 'signature.rejected' order by seq desc limit 1";
    let recorded: String =
        sqlx::query_scalar(sql).bind(id.0).fetch_one(&broker.database.owner).await.unwrap();
    assert_eq!(recorded, reason);
    assert_eq!(broker.claim(id).await.problem(), "/problems/pending");
    assert_eq!(sts.calls(), 0);
}

/// Touch and PIN of the one signature that counted.
async fn flags(broker: &TestBroker, id: LeaseId) -> (Option<bool>, Option<bool>) {
    let sql = "select touched, verified from signature where lease_id = $1";
    sqlx::query_as(sql).bind(id.0).fetch_one(&broker.database.owner).await.unwrap()
}

#[tokio::test]
async fn a_touch_and_a_pin_through_ssh_agent_approve_what_destroys() {
    let sts = FakeSts::start().await;
    let broker = production(&sts).await;
    let (key, agent) = (KeyFile::verified(), SshAgent::start());
    enrol(&broker, &key, "verified").await;
    agent.add(&key);
    key.without_its_private_half();
    let id = asked(&broker, destruction()).await;
    let signature = key.sign_by(&agent, "approve", &broker.statement(id).await);
    let answer = broker.send_signature(id, "approve", &signature).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(flags(&broker, id).await, (Some(true), Some(true)));
    broker.anchor().await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    assert_eq!(sts.calls(), 1);
}

#[tokio::test]
async fn a_security_key_without_ed25519_will_do() {
    let key = KeyFile::ecdsa();
    let served = Served::with(&key).await;
    let (broker, agent) = (&served.broker, SshAgent::start());
    agent.add(&key);
    let (path, provider, socket) = (key.path().display().to_string(), sk_dummy(), agent.socket());
    let id = asked(broker, production_write()).await;
    let by_file = ["sign", &id.to_string(), "--key", &path];
    ended(&served.broker(&by_file, &[("SSH_SK_PROVIDER", provider.as_path())]).await, 0);
    assert_eq!(flags(broker, id).await, (Some(true), Some(true)));
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    let id = asked(broker, production_write()).await;
    let by_agent = ["sign", &id.to_string(), "--key", "agent"];
    ended(&served.broker(&by_agent, &[("SSH_AUTH_SOCK", socket.as_path())]).await, 0);
    assert_eq!(flags(broker, id).await, (Some(true), Some(true)));
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_touch_alone_counts_where_presence_is_enough_and_nowhere_else() {
    let sts = FakeSts::start().await;
    let broker = production(&sts).await;
    let key = KeyFile::security_key(&["application=ssh:broker"]);
    enrol(&broker, &key, "verified").await;
    let destroy = asked(&broker, destruction()).await;
    rejected(&broker, &sts, destroy, &approve(&broker, destroy, &key).await, "not-verified").await;
    let write = asked(&broker, production_write()).await;
    let answer = approve(&broker, write, &key).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(flags(&broker, write).await, (Some(true), Some(false)));
    // The best of signatures does not make up for how the key was enrolled.
    let seen = KeyFile::verified();
    enrol(&broker, &seen, "present").await;
    let answer = approve(&broker, destroy, &seen).await;
    rejected(&broker, &sts, destroy, &answer, "assurance-too-low").await;
}

#[tokio::test]
async fn a_key_that_was_not_touched_signs_and_does_not_count() {
    let sts = FakeSts::start().await;
    let broker = production(&sts).await;
    let id = asked(&broker, production_write()).await;
    for key in [
        KeyFile::security_key(&["application=ssh:broker", "no-touch-required"]),
        // What an agent on the signer's machine can do to the file.
        KeyFile::security_key(&["application=ssh:broker"]).edited_to_ask_for_no_touch(),
        KeyFile::verified().edited_to_ask_for_no_touch(),
    ] {
        enrol(&broker, &key, "verified").await;
        rejected(&broker, &sts, id, &approve(&broker, id, &key).await, "not-touched").await;
    }
}

#[tokio::test]
async fn a_key_for_another_purpose_or_of_no_hardware_does_not_count() {
    let sts = FakeSts::start().await;
    let broker = production(&sts).await;
    let id = asked(&broker, production_write()).await;
    for application in ["application=ssh:", "application=ssh:broker2", "application=ssh:github"] {
        let key = KeyFile::security_key(&[application, "verify-required"]);
        enrol(&broker, &key, "verified").await;
        rejected(&broker, &sts, id, &approve(&broker, id, &key).await, "wrong-application").await;
    }
    // Whatever the table says of it.
    for assurance in ["software", "present", "verified"] {
        let key = KeyFile::plain();
        enrol(&broker, &key, assurance).await;
        rejected(&broker, &sts, id, &approve(&broker, id, &key).await, "assurance-too-low").await;
    }
    // A file that poses as hardware, flags and all, counts as what it was enrolled as.
    let posing = Key::hardware();
    let sql = "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) values ($1, 'bob', $2, 'software', 'seen for what it is', '2026-01-01')";
    let query = sqlx::query(sql).bind(posing.fingerprint()).bind(posing.public_key());
    query.execute(&broker.database.owner).await.unwrap();
    let answer = broker.approve(id, &posing).await;
    rejected(&broker, &sts, id, &answer, "assurance-too-low").await;
    let stranger = KeyFile::verified();
    rejected(&broker, &sts, id, &approve(&broker, id, &stranger).await, "unknown-key").await;
}

#[tokio::test]
async fn what_a_good_key_signed_for_anything_else_does_not_count() {
    let sts = FakeSts::start().await;
    let broker = production(&sts).await;
    let key = KeyFile::verified();
    enrol(&broker, &key, "verified").await;
    let id = asked(&broker, production_write()).await;
    let other = asked(&broker, production_write()).await;
    let statement = broker.statement(id).await;
    let (approval, refusal) = (Meaning::LeaseApproval, Meaning::LeaseRefusal);
    let message = approval.message(&statement);
    // The other lease's own statement, but for its id: as near as another can be.
    let near = String::from_utf8(broker.statement(other).await).unwrap();
    let near = near.replace(&other.to_string(), &id.to_string()).into_bytes();

    let cases = [
        ("a commit", "git", message.clone(), "wrong-namespace"),
        ("a file", "file", message.clone(), "wrong-namespace"),
        ("a login", "login@broker", message.clone(), "wrong-namespace"),
        ("a refusal", refusal.namespace(), refusal.message(&statement), "wrong-namespace"),
        ("an approval, as a refusal", refusal.namespace(), message.clone(), "wrong-namespace"),
        ("no broker's", "lease-approval@broker.example", message.clone(), "wrong-namespace"),
        ("bare bytes", approval.namespace(), statement.clone(), "not-this-statement"),
        ("nothing", approval.namespace(), vec![], "not-this-statement"),
        (
            "a refusal, as an approval",
            approval.namespace(),
            refusal.message(&statement),
            "not-this-statement",
        ),
        (
            "another lease",
            approval.namespace(),
            approval.message(&broker.statement(other).await),
            "not-this-statement",
        ),
        ("another statement", approval.namespace(), approval.message(&near), "not-this-statement"),
    ];
    for (what, namespace, message, reason) in cases {
        let answer = broker.send_signature(id, "approve", &key.sign_as(namespace, &message)).await;
        assert_eq!(answer.reason(), reason, "{what}: {}", answer.body);
        rejected(&broker, &sts, id, &answer, reason).await;
    }
    // The very approval, sent as a refusal: a refusal needs its own signature.
    let good = key.sign("approve", &statement);
    let replayed = broker.send_signature(id, "refuse", &good).await;
    rejected(&broker, &sts, id, &replayed, "wrong-namespace").await;
    let elsewhere = broker.send_signature(other, "approve", &good).await;
    rejected(&broker, &sts, other, &elsewhere, "not-this-statement").await;

    assert_eq!(broker.send_signature(id, "approve", &good).await.status, StatusCode::OK);
    let again = broker.send_signature(id, "approve", &good).await;
    assert_eq!(again.reason(), "already-signed", "{}", again.body);
    assert_eq!(broker.state(other).await, "pending");
}

/// A broker on a port of this machine, in real time, with bob's key enrolled and nothing of bob's but a home.
struct Served {
    broker: TestBroker,
    url: String,
    home: TempDir,
    sts: FakeSts,
}

impl Served {
    async fn with(key: &KeyFile) -> Self {
        let clock = Clock::default();
        let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
        let setup = Setup { clock, software_keys: false, ..Setup::fake(&sts) };
        let broker = TestBroker::new(setup).await;
        enrol(&broker, key, "verified").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = broker.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let home = tempfile::tempdir().unwrap();
        Self { broker, url, home, sts }
    }

    /// A program in bob's hands, without a terminal.
    fn command(&self, args: &[&str], more: &[(&str, &Path)]) -> Command {
        let mut command = program("setsid", &BTreeMap::new());
        command.arg("--wait").args(args).env("HOME", self.home.path()).env("BROKER_URL", &self.url);
        command.envs(more.iter().copied());
        command
    }

    async fn broker(&self, args: &[&str], more: &[(&str, &Path)]) -> Output {
        let broker = binary("broker");
        let args = [&[broker.to_str().unwrap()][..], args].concat();
        self.command(&args, more).output().await.unwrap()
    }

    /// The same at a terminal, where `typed` is typed.
    async fn at_a_terminal(&self, args: &[&str], typed: &str, more: &[(&str, &Path)]) -> Output {
        let words: Vec<_> = args.iter().map(|it| format!("'{it}'")).collect();
        let line = format!("'{}' {}", binary("broker").display(), words.join(" "));
        let mut command = program("script", &BTreeMap::new());
        command.args(["-qec", &line, "/dev/null"]);
        command.env("HOME", self.home.path()).env("BROKER_URL", &self.url);
        command.envs(more.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut keyboard = child.stdin.take().unwrap();
        keyboard.write_all(format!("{typed}\n").as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        drop(keyboard);
        output
    }

    async fn state(&self, id: LeaseId) -> String {
        self.broker.state(id).await
    }
}

#[track_caller]
fn ended(output: &Output, code: i32) -> String {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    stderr
}

#[tokio::test]
async fn broker_sign_works_with_a_security_key_by_file_by_agent_and_by_stock_ssh_keygen() {
    let key = KeyFile::verified();
    let served = Served::with(&key).await;
    let (broker, provider) = (&served.broker, sk_dummy());
    let path = key.path().display().to_string();
    let with_provider = [("SSH_SK_PROVIDER", provider.as_path())];

    // The key's own file.
    let id = asked(broker, production_write()).await;
    let sign = ["sign", &id.to_string(), "--key", &path];
    let shown = ended(&served.broker(&sign, &with_provider).await, 0);
    assert!(shown.contains(&short_code(&broker.statement(id).await)), "{shown}");
    assert_eq!(served.state(id).await, "approved");
    assert_eq!(flags(broker, id).await, (Some(true), Some(true)));

    // The bytes to stock OpenSSH, and what it made of them back.
    let id = asked(broker, production_write()).await;
    let printed = served.broker(&["sign", &id.to_string(), "--print"], &[]).await;
    let how = ended(&printed, 0);
    assert!(how.contains("ssh-keygen -Y sign -n lease-approval@broker -f KEY"), "{how}");
    let request = served.home.path().join("request");
    std::fs::write(&request, &printed.stdout).unwrap();
    let request = request.to_str().unwrap();
    let namespace = Meaning::LeaseApproval.namespace();
    let keygen = ["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", &path, request];
    ended(&served.command(&keygen, &with_provider).output().await.unwrap(), 0);
    let signature = format!("{request}.sig");
    ended(&served.broker(&["sign", &id.to_string(), "--signature", &signature], &[]).await, 0);
    assert_eq!(served.state(id).await, "approved");

    // What ssh-agent holds, which is more than this key.
    let agent = SshAgent::start();
    let (plain, ssh) = (KeyFile::plain(), KeyFile::security_key(&["application=ssh:"]));
    for it in [&plain, &ssh, &key] {
        agent.add(it);
    }
    key.without_its_private_half();
    let socket = agent.socket();
    let with_agent = [("SSH_AUTH_SOCK", socket.as_path())];
    let id = asked(broker, production_write()).await;
    ended(&served.broker(&["sign", &id.to_string(), "--key", "agent"], &with_agent).await, 0);
    assert_eq!(served.state(id).await, "approved");
    assert_eq!(flags(broker, id).await, (Some(true), Some(true)));
    assert_eq!(served.sts.calls(), 0);
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
}

#[tokio::test]
async fn broker_sign_of_destruction_wants_the_code_that_only_the_agent_has() {
    let key = KeyFile::verified();
    let served = Served::with(&key).await;
    let (broker, agent) = (&served.broker, SshAgent::start());
    agent.add(&key);
    let socket = agent.socket();
    let with_agent = [("SSH_AUTH_SOCK", socket.as_path())];
    let answer = broker.post("/v1/leases", destruction()).await;
    let (id, code) = (answer.id(), answer.body["short_code"].as_str().unwrap().to_owned());
    assert_eq!(code, short_code(&broker.statement(id).await), "the agent is told");
    let sign = ["sign", &id.to_string(), "--key", "agent"];

    let alone = ended(&served.broker(&sign, &with_agent).await, 2);
    assert!(alone.contains("on a terminal only") && !alone.contains(&code), "{alone}");
    // All that bob's hands can read does not have it either.
    for args in [
        &["pending", "-o", "text"][..],
        &["pending", "-o", "json"],
        &["leases", "-o", "text"],
        &["leases", "-o", "json"],
        &["show", &id.to_string(), "-o", "text"],
        &["show", &id.to_string(), "-o", "json"],
    ] {
        let output = served.broker(args, &with_agent).await;
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(stdout.contains(&id.to_string()), "{args:?}: {stdout}{stderr}");
        assert!(!stdout.contains(&code) && !stderr.contains(&code), "{args:?}: {stdout}{stderr}");
    }
    let wrong = served.at_a_terminal(&sign, "0000-0000", &with_agent).await;
    ended(&wrong, 2);
    assert!(!text(&wrong.stdout).contains(&code));
    assert_eq!(broker.events(id).await, ["lease.pending"], "nothing was sent");
    ended(&served.at_a_terminal(&sign, &code, &with_agent).await, 0);
    assert_eq!(served.state(id).await, "approved");
    assert_eq!(flags(broker, id).await, (Some(true), Some(true)));
}

#[tokio::test]
async fn only_the_agent_is_given_the_code_of_what_destroys() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let destroy = asked(&broker, destruction()).await;
    let write = asked(&broker, production_write()).await;
    let session = async |key: &Key| {
        let answer = broker.send(Method::POST, "/v1/login/nonce", None, &[], Some(json!({}))).await;
        let nonce = answer.body["nonce"].as_str().unwrap().to_owned();
        let body = json!({ "nonce": nonce, "signature": key.sign_login(&nonce) });
        let answer = broker.send(Method::POST, "/v1/login", None, &[], Some(body)).await;
        answer.body["token"].as_str().unwrap().to_owned()
    };
    // A signer, operations, and the sponsor.
    for key in [&broker.bob, &broker.carol, &broker.alice] {
        let token = session(key).await;
        for (id, given) in [(destroy, false), (write, true)] {
            let one = format!("/v1/leases/{id}");
            let answer = broker.send(Method::GET, &one, Some(&token), &[], None).await;
            let code = short_code(&broker.statement(id).await);
            assert_eq!(answer.body["short_code"].is_string(), given, "{}", answer.body);
            assert_eq!(answer.body.to_string().contains(&code), given, "{}", answer.body);
            let list = broker.send(Method::GET, "/v1/leases", Some(&token), &[], None).await;
            assert_eq!(list.body.to_string().contains(&code), given, "{}", list.body);
        }
    }
    for id in [destroy, write] {
        let code = short_code(&broker.statement(id).await);
        assert_eq!(broker.get(&format!("/v1/leases/{id}")).await.body["short_code"], code);
    }
    // The answer to a signature is a person's too.
    let code = short_code(&broker.statement(destroy).await);
    let answer = broker.approve(destroy, &broker.bob).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert!(!answer.body.to_string().contains(&code), "{}", answer.body);
}

#[tokio::test]
async fn a_statement_says_what_is_new_since_the_last_lease_that_people_approved() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let compared = async |id: LeaseId| -> Option<ComparedTo> {
        let sealed = LeaseStatement::from_bytes(broker.statement(id).await).unwrap();
        sealed.terms().compared_to.clone()
    };
    let asks = |actions: &[&str], names: &[&str]| {
        let mut body = production_write();
        let arn = |it: &&str| format!("arn:aws:s3:::prod-app-data/config/{it}");
        body["actions"] = json!(actions);
        body["resources"] = names.iter().map(arn).collect();
        body
    };
    let first = asked(&broker, asks(&["s3:PutObject"], &["app.json"])).await;
    assert_eq!(compared(first).await, None);
    // Not approved, or refused: nobody agreed to it.
    let refused = asked(&broker, asks(&["s3:GetObject"], &["other.json"])).await;
    assert_eq!(compared(refused).await, None);
    let refusal = broker.bob.sign("refuse", &broker.statement(refused).await);
    assert_eq!(broker.send_signature(refused, "refuse", &refusal).await.status, StatusCode::OK);
    // Unsigned leases are nothing that people approved.
    broker.staging_lease().await;
    assert_eq!(broker.approve(first, &broker.bob).await.status, StatusCode::OK);

    let wider = asked(&broker, asks(&["s3:GetObject", "s3:PutObject"], &["app.json", "b.json"]));
    let wider = wider.await;
    let last = compared(wider).await.expect("something to compare with");
    assert_eq!((last.lease_id, last.at), (first, broker.clock.now()));
    assert_eq!(last.new_actions, ["s3:GetObject"]);
    assert_eq!(last.new_resources, ["arn:aws:s3:::prod-app-data/config/b.json"]);

    // The last one that was approved counts, whichever was asked for last; and it stays so when it has ended.
    broker.clock.advance(Duration::minutes(1));
    assert_eq!(broker.approve(wider, &broker.carol).await.status, StatusCode::OK);
    let narrow = asked(&broker, asks(&["s3:GetObject"], &["b.json"])).await;
    let last = compared(narrow).await.unwrap();
    assert_eq!((last.lease_id, last.at), (wider, broker.clock.now()));
    assert!(last.new_actions.is_empty() && last.new_resources.is_empty());

    // Another scope, another agent, another sponsor: each has its own past.
    let destroy = asked(&broker, destruction()).await;
    assert_eq!(compared(destroy).await, None);
    for (agent, sponsor) in [("other-agent", "alice"), (tests::AGENT, "bob")] {
        let now = broker.clock.now();
        let tokens = &broker.broker.tokens;
        let token = start_task(&broker.database, tokens, agent, sponsor, now).await;
        let body = Some(asks(&["s3:PutObject"], &["app.json"]));
        let answer = broker.send(Method::POST, "/v1/leases", Some(&token), &[], body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
        assert_eq!(compared(answer.id()).await, None, "{agent} of {sponsor}");
    }
}
