//! Failing well: whatever breaks, there is no credential without its record, and nothing is stuck.

use axum::http::StatusCode;
use serde_json::json;
use tests::sts::{FakeSts, Mood, SECRET_MARK};
use tests::{TestBroker, wide_budgets};
use time::Duration;

/// Every way in which STS can let us down, with the problem it becomes.
fn moods(now: time::OffsetDateTime) -> Vec<(&'static str, Mood, &'static str)> {
    vec![
        (
            "without room",
            Mood::Error { status: 400, code: "PackedPolicyTooLarge" },
            "/problems/policy-too-large",
        ),
        ("refusing", Mood::Error { status: 403, code: "AccessDenied" }, "/problems/cloud-refused"),
        (
            "broken",
            Mood::Error { status: 500, code: "InternalFailure" },
            "/problems/cloud-unavailable",
        ),
        (
            "throttling for ever",
            Mood::Throttling { now, calls: usize::MAX },
            "/problems/cloud-unavailable",
        ),
        ("garbage", Mood::Garbage, "/problems/cloud-unavailable"),
        ("empty", Mood::Empty, "/problems/cloud-refused"),
        ("longer than asked", Mood::Lasting { now, seconds: 43_200 }, "/problems/cloud-refused"),
        ("shorter than asked", Mood::Lasting { now, seconds: 60 }, "/problems/cloud-refused"),
        ("another role", Mood::OtherRole { now }, "/problems/cloud-refused"),
    ]
}

#[tokio::test]
async fn whatever_sts_does_wrong_nothing_is_issued_and_everything_is_recorded() {
    let sts = FakeSts::start().await;
    let settings = wide_budgets();
    let broker = TestBroker::new(tests::Setup { settings, ..tests::Setup::fake(&sts) }).await;
    for (name, mood, problem) in moods(broker.clock.now()) {
        sts.set(mood);
        let unsigned = broker.staging_lease().await;
        let signed = broker.pending_lease().await;
        broker.approve(signed, &broker.bob).await;
        for id in [unsigned, signed] {
            let claim = broker.claim(id).await;
            assert_eq!(claim.problem(), problem, "{name}: {}", claim.body);
            assert!(!claim.body.to_string().contains(SECRET_MARK));
            assert_eq!(broker.sessions(id).await, ["failed"], "{name}");
        }
        // An unsigned lease may try again; a signed one had its one mint.
        assert_eq!(broker.state(unsigned).await, "approved", "{name}");
        assert_eq!(broker.state(signed).await, "failed", "{name}");
        assert_eq!(
            broker.events(signed).await[3..],
            ["session.issuing", "session.failed", "lease.failed"],
            "{name}"
        );
        sts.set(Mood::Good { now: broker.clock.now() });
        assert_eq!(broker.claim(unsigned).await.status, StatusCode::OK, "{name}");
        assert_eq!(broker.claim(signed).await.reason(), "failed", "{name}");
    }
}

#[tokio::test]
async fn a_session_that_sts_minted_wrongly_is_accounted_for_by_its_key_id() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    sts.set(Mood::Lasting { now: broker.clock.now(), seconds: 43_200 });
    let id = broker.staging_lease().await;
    broker.claim(id).await;
    let key: String = sqlx::query_scalar("select access_key_id from session where lease_id = $1")
        .bind(id.0)
        .fetch_one(&broker.database.owner)
        .await
        .unwrap();
    assert_eq!(key, "ASIAFAKEFAKE00000000");
}

#[tokio::test]
async fn sts_is_asked_again_only_when_it_throttled_or_was_never_reached() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    sts.set(Mood::Throttling { now: broker.clock.now(), calls: 1 });
    let id = broker.staging_lease().await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    assert_eq!(sts.calls(), 2);

    for mood in [
        Mood::Garbage,
        Mood::Error { status: 500, code: "InternalFailure" },
        Mood::Error { status: 403, code: "AccessDenied" },
    ] {
        let calls = sts.calls();
        sts.set(mood);
        let id = broker.staging_lease().await;
        assert!(!broker.claim(id).await.status.is_success());
        assert_eq!(sts.calls(), calls + 1);
    }

    // Nobody listens there.
    let nowhere =
        broker::aws::AwsOptions { endpoint: Some("http://127.0.0.1:9".into()), ..sts.options() };
    let replica = broker.replica(nowhere).await;
    let id = broker.staging_lease().await;
    let claim = replica.claim(id).await;
    assert_eq!(
        (claim.status, claim.problem()),
        (StatusCode::SERVICE_UNAVAILABLE, "/problems/cloud-unavailable")
    );
    assert_eq!(claim.headers["retry-after"], "10");
    assert_eq!(replica.sessions(id).await, ["failed"]);
}

#[tokio::test]
async fn a_call_that_is_not_answered_in_time_counts_as_used() {
    let sts = FakeSts::start().await;
    let settings = "call_timeout = \"1s\"\n".to_owned();
    let broker = TestBroker::new(tests::Setup { settings, ..tests::Setup::fake(&sts) }).await;
    sts.set(Mood::Silent);
    let id = broker.pending_lease().await;
    broker.approve(id, &broker.bob).await;
    let claim = broker.claim(id).await;
    assert_eq!(
        (claim.status, claim.problem()),
        (StatusCode::SERVICE_UNAVAILABLE, "/problems/cloud-unavailable")
    );
    assert_eq!((sts.calls(), broker.state(id).await.as_str()), (1, "failed"));
}

/// A claim that is being minted, and what STS minted comes too late.
async fn minted_too_late(
    signed: bool,
    meanwhile: impl AsyncFnOnce(&TestBroker, broker::lease::LeaseId),
) {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = if signed { broker.pending_lease().await } else { broker.staging_lease().await };
    if signed {
        broker.approve(id, &broker.bob).await;
    }
    sts.hold().await;
    let stop = async {
        sts.arrived(1).await;
        meanwhile(&broker, id).await;
        sts.release();
    };
    let (claim, ()) = tokio::join!(broker.claim(id), stop);
    assert_eq!(
        (claim.status, claim.problem()),
        (StatusCode::CONFLICT, "/problems/ended"),
        "{}",
        claim.body
    );
    assert!(!claim.body.to_string().contains(SECRET_MARK), "what STS minted is not handed out");
    let again = broker.claim(id).await;
    assert_ne!(
        again.body["secret_access_key"],
        format!("{SECRET_MARK}0"),
        "nor kept to be handed out later"
    );

    // It is recorded all the same: AWS minted it.
    let row: (String, Option<String>, i32) =
        sqlx::query_as("select state, access_key_id, deliveries from session where lease_id = $1 order by claimed_at limit 1")
            .bind(id.0)
            .fetch_one(&broker.database.owner)
            .await
            .unwrap();
    assert!(matches!(row.0.as_str(), "failed" | "revoking"), "{row:?}");
    assert_eq!((row.1.as_deref(), row.2), (Some("ASIAFAKEFAKE00000000"), 0));
    assert!(broker.events(id).await.contains(&"session.dropped".to_owned()));
    if signed {
        assert!(!again.status.is_success(), "{}", again.body);
        assert!(matches!(broker.state(id).await.as_str(), "failed" | "revoked"));
    }
}

#[tokio::test]
async fn a_claim_that_was_swept_while_minting_delivers_nothing() {
    for signed in [false, true] {
        Box::pin(minted_too_late(signed, async |broker, _| {
            broker.clock.advance(Duration::minutes(1));
            assert!(broker.broker.sweep().await.unwrap() > 0);
        }))
        .await;
    }
}

#[tokio::test]
async fn a_claim_whose_lease_was_revoked_while_minting_delivers_nothing() {
    for signed in [false, true] {
        Box::pin(minted_too_late(signed, async |broker, _| {
            broker.as_owner("update lease set state = 'revoked', ended_at = now(), end_reason = 'stop'; update session set state = 'revoking', settled_at = now(), revoking_at = now(), stop_reason = 'stop'").await;
        }))
        .await;
    }
}

#[tokio::test]
async fn a_claim_that_was_frozen_while_minting_delivers_nothing() {
    for signed in [false, true] {
        Box::pin(minted_too_late(signed, async |broker, _| {
            broker.as_owner("insert into \"freeze\" (id, kind, reason, created_by, created_at) values (gen_random_uuid(), 'all', 'stop', 'carol', now())").await;
        }))
        .await;
    }
}

#[tokio::test]
async fn a_claim_whose_people_or_task_went_while_minting_delivers_nothing() {
    for (signed, stop) in [
        (false, "update person set disabled_at = created_at where handle = 'alice'"),
        (true, "update task set ended_at = started_at"),
        (true, "update person set disabled_at = created_at where handle = 'bob'"),
        (true, "update person_key set revoked_at = enrolled_at where person = 'bob'"),
    ] {
        Box::pin(minted_too_late(signed, async |broker, _| broker.as_owner(stop).await)).await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_a_settled_lease() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    sts.hold().await;
    // The handler is dropped while STS is being asked, as axum does when a client goes away.
    tokio::select! {
        _ = broker.claim(id) => panic!("STS has not answered yet"),
        () = sts.arrived(1) => {}
    }
    assert_eq!(broker.sessions(id).await, ["issuing"]);
    sts.release();
    let settled = async {
        while broker.sessions(id).await != ["live"] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), settled)
        .await
        .expect("it settles by itself");
    assert_eq!(broker.state(id).await, "issued");
    // The agent asks again and gets the session it had not heard of.
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    assert_eq!(sts.calls(), 1);
}

#[tokio::test]
async fn what_time_ends_ends_with_its_event() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let (unclaimed, used) = (broker.staging_lease().await, broker.staging_lease().await);
    let unsigned = broker.pending_lease().await;
    broker.claim(used).await;
    assert_eq!(broker.broker.sweep().await.unwrap(), 0, "nothing is due");
    broker.clock.advance(Duration::minutes(31));
    // Before any sweep, time alone is enough to refuse.
    assert_eq!(broker.claim(unclaimed).await.reason(), "lapsed");
    assert_eq!(broker.claim(used).await.reason(), "expired");
    broker.broker.sweep().await.unwrap();
    assert_eq!(broker.events(unclaimed).await.last().unwrap(), "lease.lapsed");
    assert_eq!(broker.events(unsigned).await.last().unwrap(), "lease.lapsed");
    let events = broker.events(used).await;
    assert_eq!(events[events.len() - 2..], ["session.expired", "lease.expired"]);
    assert_eq!(broker.broker.sweep().await.unwrap(), 0, "once");
    let problem = broker.post(&format!("/v1/leases/{used}/credentials"), json!({})).await;
    assert_eq!(problem.problem(), "/problems/ended");
}
