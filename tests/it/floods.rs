//! Refusals in floods: each is counted, a handful is written, and what was refused is refused.

use std::time::Duration as StdDuration;

use axum::http::{Method, StatusCode};
use broker::identity::TaskGrant;
use broker::server;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::Connection;
use tests::keys::Key;
use tests::program::until;
use tests::sts::FakeSts;
use tests::{AGENT, Answer, Sender, Setup, TestBroker};
use time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::budgets::somebody_waits;

/// Every event of a type, the oldest first.
async fn told(broker: &TestBroker, kind: &str) -> Vec<Value> {
    let sql = "select doc from event where type = $1 order by seq";
    sqlx::query_scalar(sql).bind(kind).fetch_all(&broker.database.owner).await.unwrap()
}

/// How many refusals these events stand for.
fn counted(events: &[Value]) -> u64 {
    events.iter().map(|it| it["data"]["detail"]["count"].as_u64().unwrap_or(1)).sum()
}

/// A minute goes by, and the server looks.
async fn a_minute_later(broker: &TestBroker) {
    broker.clock.advance(Duration::MINUTE);
    broker.broker.tell_refusals().await;
}

async fn whoami(broker: &TestBroker, token: &str) -> Answer {
    broker.send(Method::GET, "/v1/whoami", Some(token), &[], None).await
}

/// Sends all of these, two at once, and finds each of them refused.
async fn all_forbidden(broker: &TestBroker, path: &str, bodies: Vec<Value>) {
    let mut senders = JoinSet::new();
    for bodies in bodies.chunks(bodies.len() / 2) {
        let (sender, path, bodies) = (Sender::of(broker), path.to_owned(), bodies.to_vec());
        senders.spawn(async move {
            for body in bodies {
                let answer = sender.send(Method::POST, &path, None, &[], Some(body)).await;
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);
            }
        });
    }
    senders.join_all().await;
}

#[tokio::test]
async fn ten_thousand_bad_tokens_are_a_handful_of_events_that_add_up() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let (header, rest) = broker.token.split_once('.').unwrap();
    for number in 0..10_000 {
        let token = match number % 4 {
            0 => format!("{number}"),
            1 => format!("{header}.{number}.{number}"),
            2 => format!("{header}.x{rest}"),
            _ => format!("{number}{}", "x".repeat(5000)),
        };
        let path = ["/v1/whoami", "/v1/leases"][number % 2];
        let answer = broker.send(Method::GET, path, Some(&token), &[], None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let at_once = told(&broker, "auth.rejected").await;
    assert!((1..=4).contains(&at_once.len()), "{at_once:?}");
    assert_eq!(counted(&at_once), at_once.len() as u64, "each by itself");
    a_minute_later(&broker).await;
    let events = told(&broker, "auth.rejected").await;
    assert_eq!((events.len(), counted(&events)), (2 * at_once.len(), 10_000), "{events:?}");
    a_minute_later(&broker).await;
    assert_eq!(told(&broker, "auth.rejected").await.len(), events.len(), "and no more");
    for it in &events {
        assert_eq!((&it["actor"], &it["data"]["agent"]), (&json!("unknown"), &Value::Null));
        assert!(!it.to_string().contains("xxx") && !it.to_string().contains(header), "{it}");
    }
    let since = &events.last().unwrap()["data"]["detail"]["since"];
    assert_eq!(since, "2026-01-01T12:00:00Z");
}

#[tokio::test]
async fn a_token_that_was_ours_says_whose_and_a_forged_or_missing_one_nobodys() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let now = broker.clock.now();
    let id = Uuid::now_v7();
    let grant = TaskGrant {
        id,
        agent: AGENT,
        sponsor: "alice",
        task: "T",
        expires_at: now + Duration::MINUTE,
    };
    let task = broker.broker.tokens.task_token(grant, now);
    let (login, _) = broker.broker.tokens.login_token("bob", now);
    // Another broker's key, and the same claims.
    let other = TestBroker::fake(&sts).await;
    let forged = other.broker.tokens.task_token(grant, now);
    broker.clock.advance(Duration::HOUR);
    let (nonce, _) = broker.broker.tokens.login_nonce(broker.clock.now());
    for token in [&task, &login, &forged] {
        assert_eq!(whoami(&broker, token.expose_secret()).await.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(whoami(&broker, &nonce).await.status, StatusCode::UNAUTHORIZED);
    let events = told(&broker, "auth.rejected").await;
    let seen: Vec<_> = events
        .iter()
        .map(|it| {
            (&it["actor"], &it["data"]["agent"], &it["data"]["sponsor"], &it["data"]["detail"])
        })
        .map(|it| json!([it.0, it.1, it.2, it.3]))
        .collect();
    assert_eq!(
        seen,
        [
            json!(["agent:demo-agent", AGENT, "alice", { "reason": "expired", "task_id": id }]),
            json!(["person:bob", null, null, { "reason": "expired" }]),
            json!(["unknown", null, null, { "reason": "bad-signature" }]),
            json!(["unknown", null, null, { "reason": "other-kind" }]),
        ]
    );

    // Whoever sends no token is nobody's business: a browser at the wrong door.
    for headers in [&[][..], &[("authorization", "Basic eA==")], &[("authorization", "x")]] {
        let answer = broker.send(Method::GET, "/v1/whoami", None, headers, None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(told(&broker, "auth.rejected").await.len(), 4);
    assert_eq!(whoami(&broker, &broker.token).await.status, StatusCode::OK, "the control");
    assert_eq!(told(&broker, "auth.rejected").await.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_bad_signatures_are_a_handful_of_events_that_add_up() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let statement = broker.statement(id).await;
    let strangers: Vec<_> = (0..50).map(|_| Key::software().sign("approve", &statement)).collect();
    let not_this = broker.bob.sign("approve", b"{}");
    let bodies: Vec<_> = (0..10_000_usize)
        .map(|number| {
            let signature = match number % 10 {
                0 => &strangers[number / 10 % strangers.len()],
                1 => &not_this,
                _ => "bob says yes",
            };
            let decision = if number % 3 == 0 { "refuse" } else { "approve" };
            json!({ "decision": decision, "signature": signature })
        })
        .collect();
    all_forbidden(&broker, &format!("/v1/leases/{id}/signatures"), bodies).await;
    // Each reason and decision by itself, whatever key it claims to be of.
    assert_eq!(told(&broker, "signature.rejected").await.len(), 6);
    a_minute_later(&broker).await;
    let events = told(&broker, "signature.rejected").await;
    assert_eq!((events.len(), counted(&events)), (12, 10_000), "{events:?}");
    let lease = json!(id);
    assert!(events.iter().all(|it| it["data"]["lease_id"] == lease && it["actor"] == "unknown"));
    assert_eq!(broker.state(id).await, "pending");

    // Who proves to be somebody is told at once, in all this noise.
    assert_eq!(broker.approve(id, &broker.alice).await.reason(), "sponsor");
    let last = told(&broker, "signature.rejected").await.pop().unwrap();
    assert_eq!(
        (&last["actor"], &last["data"]["detail"]["count"]),
        (&json!("person:alice"), &Value::Null)
    );
}

#[tokio::test]
async fn a_flood_over_many_leases_hides_no_known_person_and_still_adds_up() {
    let sts = FakeSts::start().await;
    let settings = tests::wide_budgets();
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    let mut leases = Vec::new();
    for _ in 0..120 {
        leases.push(broker.pending_lease().await);
    }
    for id in leases.iter().chain(&leases) {
        assert_eq!(broker.send_signature(*id, "approve", "x").await.reason(), "malformed");
    }
    let last = *leases.last().unwrap();
    assert_eq!(broker.approve(last, &broker.alice).await.reason(), "sponsor");
    a_minute_later(&broker).await;
    let events = told(&broker, "signature.rejected").await;
    assert_eq!(counted(&events), 241);
    assert!(events.len() <= 2 * 100 + 3, "{}", events.len());
    assert_eq!(events.iter().filter(|it| it["actor"] == "person:alice").count(), 1);
    // What stands for several leases names none of them.
    let rest: Vec<_> = events.iter().filter(|it| it["data"]["lease_id"].is_null()).collect();
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0]["data"]["detail"]["reason"], "malformed");
    assert_eq!(rest[0]["data"]["detail"]["count"], 39);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_bad_logins_are_a_handful_of_events_that_add_up() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let (nonce, _) = broker.broker.tokens.login_nonce(broker.clock.now());
    let stranger = Key::software().sign_login(&nonce);
    let good = broker.bob.sign_login(&nonce);
    let login = |nonce: &str, signature: &str| json!({ "nonce": nonce, "signature": signature });
    let body = login(&nonce, &good);
    let first = broker.send(Method::POST, "/v1/login", None, &[], Some(body)).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.body);
    let bodies: Vec<_> = (0..10_000)
        .map(|number| match number % 10 {
            0 => login(&nonce, &stranger),
            // A signature of bob's that somebody has seen.
            1 => login(&nonce, &good),
            2 => login(&nonce, "x"),
            _ => login(&number.to_string(), "x"),
        })
        .collect();
    all_forbidden(&broker, "/v1/login", bodies).await;
    assert_eq!(told(&broker, "login.rejected").await.len(), 4);
    a_minute_later(&broker).await;
    let events = told(&broker, "login.rejected").await;
    assert_eq!((events.len(), counted(&events)), (8, 10_000), "{events:?}");
    let of_bob = events.iter().filter(|it| it["actor"] == "person:bob");
    let of_bob: Vec<_> = of_bob.cloned().collect();
    assert_eq!((of_bob.len(), counted(&of_bob)), (2, 1000));
    assert!(of_bob.iter().all(|it| it["data"]["detail"]["reason"] == "stale-nonce"));
}

#[tokio::test]
async fn claims_of_a_frozen_lease_in_a_loop_are_counted() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    broker
        .as_owner("insert into \"freeze\" (id, kind, reason, created_by, created_at) values (gen_random_uuid(), 'all', 'r', 'carol', now())")
        .await;
    for _ in 0..100 {
        assert_eq!(broker.claim(id).await.problem(), "/problems/frozen");
    }
    assert_eq!(broker.events(id).await, ["lease.approved", "lease.claim-refused"]);
    a_minute_later(&broker).await;
    let events = told(&broker, "lease.claim-refused").await;
    assert_eq!((events.len(), counted(&events)), (2, 100));
    assert!(events.iter().all(|it| it["data"]["lease_id"] == json!(id)));
    assert_eq!(events[0]["data"]["detail"]["why"], events[1]["data"]["detail"]["why"]);
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn requests_over_budget_on_two_servers_add_up() {
    let sts = FakeSts::start().await;
    let settings = "[limits.agent]\nlive_leases = 1\n".to_owned();
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    let replica = broker.replica(sts.options()).await;
    broker.staging_lease().await;
    let mut sent = 0;
    for minute in 1..=5 {
        for server in [&broker, &replica] {
            for _ in 0..20 {
                let over = server.post("/v1/leases", json!({ "scope": "staging-rw" })).await;
                assert_eq!(over.problem(), "/problems/over-budget", "{}", over.body);
                sent += 1;
            }
        }
        assert_eq!(told(&broker, "budget.exceeded").await.len(), minute, "one a minute");
        broker.clock.advance(Duration::MINUTE);
    }
    for server in [&broker, &replica] {
        server.broker.tell_all_refusals().await;
    }
    let events = told(&broker, "budget.exceeded").await;
    assert_eq!(counted(&events), sent, "{events:?}");
    assert!(events.iter().all(|it| it["data"]["detail"]["budget"] == "live_leases"));
}

#[tokio::test]
async fn who_hangs_up_is_recorded_all_the_same() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    // Nobody can append for now, so the answer waits, and its caller does not.
    let mut holder = sqlx::PgConnection::connect(&broker.database.superuser_url).await.unwrap();
    let mut holder = holder.begin().await.unwrap();
    sqlx::raw_sql("lock table event in access exclusive mode").execute(&mut *holder).await.unwrap();
    let sender = Sender::of(&broker);
    let hasty = tokio::spawn(async move {
        sender.send(Method::GET, "/v1/whoami", Some("x.y.z"), &[], None).await
    });
    somebody_waits(&broker).await;
    hasty.abort();
    assert!(hasty.await.unwrap_err().is_cancelled());
    holder.rollback().await.unwrap();
    until("it is recorded", StdDuration::from_secs(10), async || {
        told(&broker, "auth.rejected").await.len() == 1
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_all_the_same_and_counted_later() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    broker.as_owner("revoke execute on function append_event(bytea) from broker_app, public").await;
    // The first signature hears that it could not be recorded.
    assert_eq!(broker.approve(id, &broker.alice).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(whoami(&broker, "x.y.z").await.status, StatusCode::UNAUTHORIZED);
    for _ in 0..2 {
        assert_eq!(whoami(&broker, "x.y.z").await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(broker.approve(id, &broker.alice).await.reason(), "sponsor");
    }
    a_minute_later(&broker).await;
    broker.as_owner("grant execute on function append_event(bytea) to broker_app").await;
    assert_eq!(told(&broker, "auth.rejected").await, [json!(null); 0]);
    a_minute_later(&broker).await;
    for kind in ["auth.rejected", "signature.rejected"] {
        let events = told(&broker, kind).await;
        assert_eq!((events.len(), counted(&events)), (1, 3), "{events:?}");
        assert_eq!(events[0]["data"]["detail"]["since"], "2026-01-01T12:00:00Z");
    }
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_writes_what_it_has_counted() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    for _ in 0..30 {
        assert_eq!(whoami(&broker, "x.y.z").await.status, StatusCode::UNAUTHORIZED);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rounds = server::rounds(&broker.broker.config, sts.options());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let serving = tokio::spawn(server::serve(broker.broker.clone(), rounds, listener, shutdown));
    drop(stop);
    serving.await.unwrap().unwrap();
    let events = told(&broker, "auth.rejected").await;
    assert_eq!((events.len(), counted(&events)), (2, 30), "{events:?}");
}
