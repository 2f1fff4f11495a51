//! Requests in the same words: whoever asks again for what is open already is given that, and opens nothing.

use axum::http::{Method, StatusCode};
use broker::lease::LeaseId;
use serde_json::{Value, json};
use tests::sts::FakeSts;
use tests::{AGENT, Sender, TestBroker, production_write, start_task};
use time::Duration;

/// The request, which any open lease in its words will do for.
fn joining(mut body: Value) -> Value {
    body["join"] = json!(true);
    body
}

async fn ask(broker: &TestBroker, body: Value) -> LeaseId {
    let answer = broker.post("/v1/leases", body).await;
    assert!(answer.status.is_success(), "{}", answer.body);
    answer.id()
}

async fn leases(broker: &TestBroker) -> i64 {
    let sql = "select count(*) from lease";
    sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.unwrap()
}

#[tokio::test]
async fn a_request_in_the_same_words_joins_the_open_lease_and_its_session() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let body = json!({ "scope": "staging-rw", "deliver": true });
    let first = broker.post("/v1/leases", joining(body.clone())).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.body);
    // Far more than an agent may ask in a minute: what opens nothing costs nothing.
    for _ in 0..30 {
        let again = broker.post("/v1/leases", joining(body.clone())).await;
        assert_eq!(again.id(), first.id());
        let session = |it: &Value| it["credentials"]["session_id"].clone();
        assert_eq!(session(&again.body), session(&first.body));
    }
    let quiet = json!({ "scope": "staging-rw" });
    assert_eq!(ask(&broker, joining(quiet.clone())).await, first.id(), "how it is answered aside");
    assert_eq!((sts.calls(), leases(&broker).await), (1, 1));
    assert_ne!(ask(&broker, quiet).await, first.id(), "who does not ask to join does not");
}

#[tokio::test]
async fn other_words_another_task_and_another_agent_do_not_join() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let first = ask(&broker, joining(json!({ "scope": "staging-rw", "reason": "r" }))).await;
    let others = [
        json!({ "scope": "staging-ro", "reason": "r" }),
        json!({ "scope": "staging-rw", "reason": "s" }),
        json!({ "scope": "staging-rw" }),
        json!({ "scope": "staging-rw", "reason": "r", "task": "T-2" }),
        json!({ "scope": "staging-rw", "reason": "r", "ttl_seconds": 1800 }),
        json!({ "scope": "staging-rw", "reason": "r", "actions": ["s3:GetObject"] }),
    ];
    for other in others {
        assert_ne!(ask(&broker, joining(other.clone())).await, first, "{other}");
    }
    let (tokens, now) = (&broker.broker.tokens, broker.clock.now());
    for (agent, sponsor) in [(AGENT, "alice"), ("other-agent", "alice"), (AGENT, "bob")] {
        let token = start_task(&broker.database, tokens, agent, sponsor, now).await;
        let body = joining(json!({ "scope": "staging-rw", "reason": "r" }));
        let answer = broker.send(Method::POST, "/v1/leases", Some(&token), &[], Some(body)).await;
        assert_ne!(answer.id(), first, "another task of {agent}, {sponsor}");
    }
}

#[tokio::test]
async fn of_many_at_once_one_opens_and_all_wait_on_it() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let sender = Sender::of(&broker);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (sender, token) = (sender.clone(), broker.token.clone());
        asked.spawn(async move {
            let body = Some(joining(production_write()));
            let answer = sender.send(Method::POST, "/v1/leases", Some(&token), &[], body).await;
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
            answer.id()
        });
    }
    let mut ids = asked.join_all().await;
    ids.dedup();
    assert_eq!((ids.len(), leases(&broker).await), (1, 1));
    // A signature is for all of them, and the session goes to whoever asks first, once.
    broker.approve(ids[0], &broker.bob).await;
    assert_eq!(ask(&broker, joining(production_write())).await, ids[0]);
    assert_eq!(broker.claim(ids[0]).await.status, StatusCode::OK);
    let mut wanted = joining(production_write());
    wanted["deliver"] = json!(true);
    let again = broker.post("/v1/leases", wanted).await;
    assert_eq!((again.status, again.id()), (StatusCode::CREATED, ids[0]));
    assert_eq!(sts.calls(), 1);
}

#[tokio::test]
async fn what_has_ended_or_soon_will_is_not_joined() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let body = || joining(json!({ "scope": "staging-rw" }));
    let first = ask(&broker, body()).await;
    broker.clock.advance(Duration::seconds(10 * 60 - 1));
    assert_eq!(ask(&broker, body()).await, first, "its window has more than five minutes left");
    broker.clock.advance(Duration::seconds(2));
    let second = ask(&broker, body()).await;
    assert_ne!(second, first, "whoever is given it could do little with it");

    let stop = json!({ "reason": "enough" });
    broker.post(&format!("/v1/leases/{second}/revoke"), stop).await;
    let third = ask(&broker, body()).await;
    assert_ne!(third, second, "it was stopped");

    let pending = ask(&broker, joining(production_write())).await;
    broker.post(&format!("/v1/leases/{pending}/withdraw"), json!({})).await;
    let next = ask(&broker, joining(production_write())).await;
    assert_ne!(next, pending, "it was taken back");
    broker.clock.advance(Duration::minutes(30));
    assert_ne!(ask(&broker, joining(production_write())).await, next, "nobody signed it in time");
}

#[tokio::test]
async fn a_freeze_is_no_way_to_join() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let body = || joining(json!({ "scope": "staging-rw", "deliver": true }));
    ask(&broker, body()).await;
    sqlx::query("insert into \"freeze\" (id, kind, reason, created_by, created_at) values (gen_random_uuid(), 'all', 'r', 'carol', $1)")
        .bind(broker.clock.now())
        .execute(&broker.database.owner)
        .await
        .unwrap();
    // Neither its session, nor the lease alone, nor one in other words.
    let others =
        [json!({ "scope": "staging-rw" }), json!({ "scope": "staging-rw", "reason": "r" })];
    for body in others.map(joining).into_iter().chain([body()]) {
        let answer = broker.post("/v1/leases", body.clone()).await;
        assert_eq!(answer.problem(), "/problems/frozen", "{body}: {}", answer.body);
    }
    assert_eq!(sts.calls(), 1);
}
