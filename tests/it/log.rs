//! The log over the events: what gets a place in it, what is signed, and what an export proves.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use broker::audit::{Actor, EventType, Subject};
use broker::aws::AwsOptions;
use broker::clock::Clock;
use broker::config::Config;
use broker::log::proof::{self, Proof};
use broker::log::verify::{Options, Verdict};
use broker::log::{Checkpoint, LogKey, SignedCheckpoint, leaf_hash};
use broker::recover::{self, Logins, Outcome};
use broker::sequencer::LogError;
use broker::{server, store};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tests::logs::{check, codes, export, now, story};
use tests::program::until;
use tests::sts::{FakeSts, Mood};
use tests::{PRODUCTION_OBJECT, Setup, TestBroker};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_export_of_what_happened_is_valid_and_every_event_is_in_it() {
    let (_sts, broker) = now().await;
    story(&broker).await;
    let file = export(&broker).await;
    let report = check(&file, Options::default());
    assert_eq!(report.verdict(), Verdict::Good, "{}\n{file}", report.text());
    let events: i64 = sqlx::query_scalar("select count(*) from event")
        .fetch_one(&broker.database.owner)
        .await
        .unwrap();
    assert_eq!(report.entries, u64::try_from(events).unwrap());
    assert_eq!((report.approvals, report.waiting), (1, 0));
    assert!(!report.pinned);
    // A single byte of any line makes it another story.
    for (number, line) in file.lines().enumerate().filter(|(_, it)| it.starts_with("{\"event\"")) {
        let changed = file.replacen(
            line,
            &line.replacen("\"body\":{\"actor\":\"", "\"body\":{\"actor\":\"x", 1),
            1,
        );
        let report = check(&changed, Options::default());
        assert_eq!(codes(&report)[0], "body-changed", "line {number}: {}", report.text());
    }
}

fn destroy() -> Value {
    json!({
        "scope": "prod-destructive",
        "reason": "a stray object",
        "rollback": "it is in the backup",
        "actions": ["s3:DeleteObject"],
        "resources": [PRODUCTION_OBJECT],
    })
}

/// Waits for new connections, after a copy has cut every one.
async fn is_connected(broker: &TestBroker) {
    until("the server has new connections", SOON, async || {
        broker.broker.log.tick().await.is_ok()
            && broker.get("/v1/leases").await.status == StatusCode::OK
    })
    .await;
}

/// What an operator would hear, and how it ends.
async fn recover(broker: &TestBroker, config: &Config, yes: bool) -> (Outcome, String) {
    let database = &broker.database;
    let logins = Logins { admin: &database.admin_url, sequencer: &database.sequencer_url };
    let mut said = String::new();
    let say = |words: &str| said = format!("{said}{words}\n");
    let run = recover::run(config, logins, &broker.clock, yes, say);
    let outcome = Box::pin(run).await.expect("it runs");
    (outcome, said)
}

#[tokio::test]
async fn a_restored_database_is_not_served_until_everything_that_was_open_is_void() {
    let (sts, broker) = now().await;
    let answer = broker.post("/v1/leases", destroy()).await;
    let id = answer.id();
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    let pending = broker.pending_lease().await;
    broker.sequence().await;
    // The base backup. Then the approval is used, and an anchor has the proof of it.
    let backup = broker.database.copy().await;
    // The copy cut every connection.
    is_connected(&broker).await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    broker.anchor().await;
    let anchored = store::log::head(&broker.broker.log.pool).await.unwrap().unwrap();

    let restored = broker.on(backup, sts.options()).await;
    let config = Config::load(broker.config_dir.path()).unwrap();
    // A server that was running all the while sees it at the next round, one that starts at once; and nothing is signed.
    let error = restored.broker.log.compare().await.expect_err("it is behind");
    assert!(matches!(error, LogError::Behind(_)), "{error}");
    for answer in
        [restored.claim(id).await, restored.get("/v1/leases").await, restored.get("/readyz").await]
    {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.problem(), "/problems/log-behind", "{}", answer.body);
        assert!(answer.body["next"].as_str().unwrap().contains("brokerd recover"));
    }
    assert_eq!(restored.broker.log.tick().await.unwrap(), 0, "nothing is signed");

    let (outcome, said) = recover(&restored, &config, false).await;
    assert_eq!(outcome, Outcome::Asked);
    assert!(said.contains(&format!("a checkpoint of {} entries", anchored.size)), "{said}");
    assert_eq!(restored.state(id).await, "approved", "nothing is changed");
    let (outcome, said) = recover(&restored, &config, true).await;
    assert_eq!(outcome, Outcome::Done);
    assert!(said.contains("voided 2 leases, 0 acts and 1 tasks"), "{said}");
    for id in [id, pending] {
        assert_eq!(restored.state(id).await, "revoked");
    }

    // A server that starts now serves, and what was used once is not used again.
    let served = broker.on(restored.database.share(), sts.options()).await;
    served.broker.log.compare().await.expect("it is the newest now");
    let calls = sts.calls();
    assert_ne!(served.claim(id).await.status, StatusCode::OK);
    assert_ne!(
        served.post("/v1/leases", json!({ "scope": "staging-ro" })).await.status,
        StatusCode::CREATED
    );
    assert_eq!(sts.calls(), calls, "AWS was not asked");
    let frozen: i64 = sqlx::query_scalar(
        "select count(*) from \"freeze\" where kind = 'all' and thawed_at is null",
    )
    .fetch_one(&served.database.owner)
    .await
    .unwrap();
    assert_eq!(frozen, 1);
    served.sequence().await;
    served.anchor().await;

    // The log tells of the loss, and nothing else is wrong with it; also to one who has the lost checkpoint.
    let file = export(&served).await;
    let lost = SignedCheckpoint::parse(anchored.note.as_deref().unwrap()).unwrap();
    for anchors in [vec![], vec![lost]] {
        let report = check(&file, Options { anchors, ..Options::default() });
        assert_eq!(
            (report.verdict(), codes(&report)),
            (Verdict::Incomplete, vec!["lost"]),
            "{}",
            report.text()
        );
    }
    let (outcome, _) = recover(&served, &config, true).await;
    assert_eq!(outcome, Outcome::Nothing, "once is enough");
}

#[tokio::test]
async fn a_server_that_has_seen_more_of_the_log_signs_no_other_story() {
    let (_sts, broker) = now().await;
    story(&broker).await;
    broker.staging_lease().await;
    // Taken back under a running server, with no anchor asked.
    broker
        .as_owner(
            "alter table log_state disable trigger log_state_guard;
        alter table log_leaf disable trigger log_leaf_is_fixed;
        delete from log_leaf; update log_state set size = 0, frontier = ''",
        )
        .await;
    let error = broker.broker.log.tick().await.expect_err("it is behind");
    assert!(matches!(error, LogError::Behind(_)), "{error}");
    assert_eq!(broker.get("/v1/leases").await.problem(), "/problems/log-behind");
}

#[tokio::test]
async fn who_may_read_everything_gets_the_log_over_http_and_nobody_else_learns_that_there_is_one() {
    let (_sts, broker) = now().await;
    story(&broker).await;
    let event: Uuid =
        sqlx::query_scalar("select id from event where type = 'lease.issued' limit 1")
            .fetch_one(&broker.database.owner)
            .await
            .unwrap();
    let paths = [
        "/v1/audit/events".to_owned(),
        "/v1/audit/checkpoint".to_owned(),
        "/v1/audit/tile/0/000.p/1".to_owned(),
        "/v1/audit/tile/entries/000.p/1".to_owned(),
        format!("/v1/audit/events/{event}/proof"),
    ];
    let login = |handle: &str| {
        broker.broker.tokens.login_token(handle, broker.clock.now()).0.expose_secret().to_owned()
    };
    for path in &paths {
        assert_eq!(broker.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
        for (handle, status) in [("dave", StatusCode::NOT_FOUND), ("carol", StatusCode::OK)] {
            let token = login(handle);
            let answer = broker.send(Method::GET, path, Some(&token), &[], None).await;
            assert_eq!(answer.status, status, "{path}: {handle}: {}", answer.body);
        }
    }
    let key = store::log::head(&broker.broker.log.pool).await.unwrap().unwrap().key;
    let token = login("carol");
    let answer = broker.send(Method::GET, &paths[4], Some(&token), &[], None).await;
    let text = answer.body.as_str().expect("a text").to_owned();
    let proof = Proof::parse(&text).expect("a proof");
    assert_eq!(proof.verify(&key), Ok(()));
    let file = export(&broker).await;
    let from_file =
        proof::from_export(|| Ok(file.as_bytes()), event).unwrap().expect("it is there");
    assert_eq!(from_file.file(), text);
    assert_eq!(
        check(&file, Options { key: Some(key), ..Options::default() }).verdict(),
        Verdict::Good
    );
}

#[tokio::test]
async fn a_busy_log_has_ten_checkpoints_a_second_and_no_more() {
    let (_sts, broker) = now().await;
    broker.sequence().await;
    let number = async |sql: &'static str| -> i64 {
        sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.expect(sql)
    };
    let checkpoints = "select count(*) from log_checkpoint";
    let before = number(checkpoints).await;
    let started = tokio::time::Instant::now();
    let log = broker.broker.clone();
    let running = tokio::spawn(async move { log.log.run().await });
    let mut written = 0;
    while started.elapsed() < Duration::from_secs(2) {
        let told = broker.broker.tell(
            EventType::SignatureRejected,
            Actor::Broker,
            Subject::default(),
            json!({ "count": written }),
        );
        told.await.expect("recorded");
        written += 1;
    }
    until("every event has its place", SOON, async || {
        number("select count(*) from log_waiting").await == 0
    })
    .await;
    running.abort();
    assert!(running.await.expect_err("it ticks for ever").is_cancelled());
    let most = i64::try_from(started.elapsed().as_millis() / 100).expect("some seconds") + 2;
    let signed = number(checkpoints).await - before;
    assert!((2..=most).contains(&signed), "{signed} of at most {most}");

    let report = check(&export(&broker).await, Options::default());
    assert_eq!((report.verdict(), report.waiting), (Verdict::Good, 0), "{}", report.text());
    let all = number("select count(*) from event").await;
    assert!(written < all);
    assert_eq!(i64::try_from(report.entries).expect("a count"), all);
    let places = number("select count(distinct (seq, event_id)) from log_leaf").await;
    assert_eq!(places, all);
}

/// A server as `brokerd serve` runs it, until told to stop.
async fn serve(broker: &TestBroker, aws: AwsOptions) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let rounds = server::rounds(&broker.broker.config, aws);
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move { drop(stopped.await) };
    let serving = server::serve(broker.broker.clone(), rounds, listener, shutdown);
    let serving = tokio::spawn(async move { serving.await.expect("it serves") });
    (stop, serving)
}

/// Whether somebody has tried to tell AWS what is cut off.
async fn has_told_aws(broker: &TestBroker) -> bool {
    let tried = "select count(*) from role_stop where 0 < failures or written_at is not null or next_try_at is not null";
    let tried: i64 =
        sqlx::query_scalar(tried).fetch_one(&broker.database.owner).await.expect(tried);
    tried != 0
}

/// What it knows of leases and stops is of before: time ends nothing in it, and AWS hears nothing of it.
#[tokio::test]
async fn nothing_is_swept_or_stopped_in_a_database_that_is_behind_its_anchor() {
    let clock = Clock::manual(Clock::default().now());
    let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
    let control = TestBroker::new(Setup { clock: clock.clone(), ..Setup::fake(&sts) }).await;
    let id = control.pending_lease().await;
    control.as_owner("insert into role_stop (role_arn, cut_off) values ('arn:aws:iam::000000000000:role/broker-production', date_trunc('second', now(), 'UTC'))").await;
    control.sequence().await;
    let backup = control.database.copy().await;
    is_connected(&control).await;
    control.staging_lease().await;
    control.anchor().await;
    let restored = control.on(backup, sts.options()).await;
    clock.advance(time::Duration::minutes(31));

    let (stop, serving) = serve(&restored, sts.options()).await;
    let (stop_control, serving_control) = serve(&control, sts.options()).await;
    until("it has compared", SOON, async || {
        restored.get("/readyz").await.problem() == "/problems/log-behind"
    })
    .await;
    until("the other one has swept and told", SOON, async || {
        control.state(id).await == "lapsed" && has_told_aws(&control).await
    })
    .await;
    // Some sweeps more.
    for _ in 0..3 {
        let other = control.pending_lease().await;
        clock.advance(time::Duration::minutes(31));
        until("the other one has swept", SOON, async || control.state(other).await == "lapsed")
            .await;
    }
    assert_eq!(restored.state(id).await, "pending");
    assert_eq!(restored.events(id).await, ["lease.pending"]);
    assert!(!has_told_aws(&restored).await);
    let probes: i64 = sqlx::query_scalar("select count(*) from probe")
        .fetch_one(&restored.database.owner)
        .await
        .expect("a count");
    assert_eq!(probes, 0);
    drop((stop, stop_control));
    serving.await.expect("no panic");
    serving_control.await.expect("no panic");
    assert_eq!(restored.state(id).await, "pending");
}

/// An anchor has a checkpoint of entries that the database does not have.
fn is_ahead(broker: &TestBroker, size: u64) {
    let dir = broker.config_dir.path();
    let key = LogKey::load(&dir.join("log.pem")).expect("the log's key");
    let root = leaf_hash(b"what is lost");
    let checkpoint = Checkpoint { origin: "broker.test/log".into(), size, root };
    let epoch = dir.join("anchor/000001");
    std::fs::create_dir_all(&epoch).expect("made");
    let note = checkpoint.sign(&[&key]).expect("signed").note().to_owned();
    std::fs::write(epoch.join(format!("{size:020}")), note).expect("written");
}

#[tokio::test]
async fn a_log_that_has_moved_on_since_somebody_looked_is_not_taken_up_there() {
    let (_sts, broker) = now().await;
    story(&broker).await;
    is_ahead(&broker, 1_000);
    let log = &broker.broker.log;
    let behind = log.behind().await.expect("it answers").0.expect("it is behind");
    let place = async || {
        let head = store::log::head(&log.pool).await.unwrap().unwrap();
        (head.epoch, head.size, head.origin)
    };
    let mut owner = store::admin(&broker.database.admin_url).await.unwrap();
    let now = broker.clock.now();

    // A server that has not looked at the anchor yet signs.
    broker.staging_lease().await;
    assert_ne!(log.tick().await.expect("it has not compared"), 0);
    let before = place().await;
    let mut transaction = owner.begin().await.unwrap();
    let error = log.go_on(&mut transaction, &behind, now).await.expect_err("it has moved on");
    assert!(matches!(error, LogError::MovedOn), "{error}");
    // Even if what was begun there were kept.
    transaction.commit().await.unwrap();
    assert_eq!(place().await, before);

    // Two who look, one after the other, and then go on both.
    let one = log.behind().await.expect("it answers").0.expect("it is behind");
    let other = log.behind().await.expect("it answers").0.expect("it is behind");
    let mut transaction = owner.begin().await.unwrap();
    log.go_on(&mut transaction, &one, now).await.expect("nobody was first");
    transaction.commit().await.unwrap();
    let after = place().await;
    assert_eq!(after.0, 2);
    for old in [&other, &behind] {
        let mut transaction = owner.begin().await.unwrap();
        let error = log.go_on(&mut transaction, old, now).await.expect_err("somebody was first");
        assert!(matches!(error, LogError::MovedOn), "{error}");
        transaction.rollback().await.unwrap();
    }
    assert_eq!(place().await, after);
    let told: i64 = sqlx::query_scalar("select count(*) from event where type = 'log.recovered'")
        .fetch_one(&broker.database.owner)
        .await
        .unwrap();
    assert_eq!(told, 1);
}

/// A catalogue without that scope.
fn without_scope(scopes: &str, name: &str) -> String {
    let named = format!("name = \"{name}\"");
    let tables = scopes.split("[[scope]]").filter(|it| !it.contains(&named));
    tables.collect::<Vec<_>>().join("[[scope]]")
}

/// Sessions of it may live on for hours after nobody may ask for it any more.
#[tokio::test]
async fn recovering_cuts_off_the_roles_also_of_scopes_that_are_gone() {
    let gone = "arn:aws:iam::000000000000:role/broker-gone";
    let clock = Clock::default();
    let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
    let scopes = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/scopes.toml");
    let scopes = std::fs::read_to_string(scopes).expect("the repository's");
    let (before, scope) = scopes.split_once("name = \"staging-rw\"").expect("a scope");
    let scope = scope.replacen("role = \"broker-staging\"", "role = \"broker-gone\"", 1);
    let scopes = Some(format!("{before}name = \"staging-rw\"{scope}"));
    let broker = TestBroker::new(Setup { clock, scopes, ..Setup::fake(&sts) }).await;
    let id = broker.staging_lease().await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    broker.sequence().await;
    is_ahead(&broker, 1_000);

    let path = broker.config_dir.path().join("scopes.toml");
    let scopes = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, without_scope(&scopes, "staging-rw")).unwrap();
    let config = Config::load(broker.config_dir.path()).unwrap();
    assert!(config.catalogue.scopes().all(|it| it.role_arn != gone));
    let cut_off = async || -> Vec<String> {
        let sql = "select role_arn from role_stops where cut_off is not null order by 1";
        sqlx::query_scalar(sql).fetch_all(&broker.database.owner).await.expect(sql)
    };
    let (outcome, _) = recover(&broker, &config, false).await;
    assert_eq!((outcome, cut_off().await.len()), (Outcome::Asked, 0));
    let (outcome, said) = recover(&broker, &config, true).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    let roles = ["backup", "gone", "production", "staging"];
    assert_eq!(
        cut_off().await,
        roles.map(|it| format!("arn:aws:iam::000000000000:role/broker-{it}"))
    );
    // The session that was live then is among what AWS is to refuse.
    assert_eq!(broker.sessions(id).await, ["revoking"]);
    let told = "select count(*) from event where type = 'freeze.created' and doc #> '{data,detail,roles}' ? $1";
    let told: i64 =
        sqlx::query_scalar(told).bind(gone).fetch_one(&broker.database.owner).await.expect(told);
    assert_eq!(told, 1);
    let covers =
        "select bool_and(s.claimed_at < r.cut_off) from session s join lease l on l.id = s.lease_id
                    join role_stop r on r.role_arn = l.role_arn where l.role_arn = $1";
    let covers: bool = sqlx::query_scalar(covers)
        .bind(gone)
        .fetch_one(&broker.database.owner)
        .await
        .expect(covers);
    assert!(covers);
}
