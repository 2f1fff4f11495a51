//! The log over the events: what gets a place in it, what is signed, and what an export proves.

use axum::http::StatusCode;
use broker::audit::{Actor, EventType, Subject};
use broker::auditing::write_export;
use broker::clock::Clock;
use broker::log::verify::{Options, Report, Verdict, verify};
use serde_json::json;
use sqlx::PgPool;
use tests::sts::{FakeSts, Mood};
use tests::{Setup, TestBroker};

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
async fn now() -> TestBroker {
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
    broker
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
    let broker = now().await;
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
