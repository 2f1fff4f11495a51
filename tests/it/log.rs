//! The log over the events: what gets a place in it, what is signed, and what an export proves.

use axum::http::{Method, StatusCode};
use broker::audit::{Actor, EventType, Subject};
use broker::auditing::write_export;
use broker::clock::Clock;
use broker::config::Config;
use broker::log::SignedCheckpoint;
use broker::log::proof::{self, Proof};
use broker::log::verify::{Options, Report, Verdict, verify};
use broker::recover::{self, Logins, Outcome};
use broker::sequencer::LogError;
use broker::store;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::program::until;
use tests::sts::{FakeSts, Mood};
use tests::{PRODUCTION_OBJECT, Setup, TestBroker};
use uuid::Uuid;

/// Exports the log of a broker's database, as a server's host would.
async fn export(broker: &TestBroker) -> String {
    let mut file = Vec::new();
    let pool: &PgPool = &broker.broker.log.pool;
    write_export(pool, &mut file, broker.clock.now(), &mut |_| ()).await.expect("exported");
    String::from_utf8(file).expect("text")
}

fn check(file: &str, options: Options) -> Report {
    verify(file.as_bytes(), options, |_| ()).expect("it is in memory")
}

fn codes(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|it| it.fault.code()).collect()
}

/// A broker whose clock goes, like the database's.
async fn now() -> (FakeSts, TestBroker) {
    let clock = Clock::default();
    let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
    let broker = TestBroker::new(Setup { clock, ..Setup::fake(&sts) }).await;
    // The people of the tests are there without a word of it.
    for key in [&broker.alice, &broker.bob, &broker.carol, &broker.dave] {
        let detail = json!({ "person": { "key": { "fingerprint": key.fingerprint() } } });
        let told =
            broker.broker.tell(EventType::KeyEnrolled, Actor::Operator, Subject::default(), detail);
        told.await.expect("recorded");
    }
    (sts, broker)
}

/// A signed lease that was issued, an unsigned one, and a destructive one.
async fn story(broker: &TestBroker) {
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    let id = broker.staging_lease().await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    broker.sequence().await;
}

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
    until("the server has new connections", std::time::Duration::from_secs(20), async || {
        broker.broker.log.tick().await.is_ok()
            && broker.get("/v1/leases").await.status == StatusCode::OK
    })
    .await;
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
