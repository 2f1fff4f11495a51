//! What an agent, bad luck or bad clocks could do to the stop button.

use axum::http::{Method, StatusCode};
use broker::aws::AwsOptions;
use broker::clock::Clock;
use broker::lease::FreezeKind;
use secrecy::ExposeSecret;
use serde_json::json;
use tests::program::until;
use tests::relay::Relay;
use tests::sts::{FakeSts, Mood};
use tests::{Setup, TestBroker, stack, start_task};
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;

use crate::stop::{SOON, Stage, carol, works};

fn arn(role: &str) -> String {
    format!("arn:aws:iam::000000000000:role/{role}")
}

fn login(broker: &TestBroker, person: &str) -> String {
    let token = broker.broker.tokens.login_token(person, broker.clock.now()).0;
    token.expose_secret().to_owned()
}

// ------------------------------------------------------------------------------------------------------------- agents

/// Each stop has a probe, and a probe lives longer than it serves: an agent that stops its own leases one by one makes many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_that_have_served_take_no_room_from_what_is_to_be_stopped() {
    let stage = Stage::new().await;
    let sql = "with role as (insert into role_stop (role_arn) values ($1) returning role_arn)
        insert into probe (id, role_arn, session_name, claimed_at)
        select gen_random_uuid(), role_arn, 'probe-' || gen_random_uuid() || '-01234567', now() from role, generate_series(1, 210)";
    let role = arn(&stage.role);
    sqlx::query(sql).bind(role).execute(&stage.broker.database.owner).await.expect("probes");
    let served = "update probe set access_key_id = 'ASIA', expires_at = now() + interval '14 minutes', tried_at = now(),
                         proven_at = now(), denied_at = now(), refused_at = now(), region = 'us-east-1'";
    stage.broker.as_owner(served).await;
    let (id, credentials) = stage.session().await;
    let (_, others) = stage.session().await;
    stage.revoke(id).await;
    stage.stopped(id).await;
    assert!(!works(&credentials).await && works(&others).await);
    assert_eq!(stage.count("select count(*) from event where type = 'role.cut-off'").await, 0);
}

/// A policy has room for some two hundred sessions: who stops their own must not take all of it from the others.
#[tokio::test]
async fn an_agent_that_stops_its_own_leases_has_no_more_of_them_than_one_that_keeps_them() {
    let sts = FakeSts::start().await;
    let few = "[limits]\nagent = { live_leases = 3, requests_per_minute = 100 }\n".to_owned();
    let broker = TestBroker::new(Setup { settings: few, ..Setup::fake(&sts) }).await;
    let body = json!({ "scope": "staging-rw", "deliver": true });
    for _ in 0..3 {
        let id = broker.post("/v1/leases", body.clone()).await.id();
        let path = format!("/v1/leases/{id}/revoke");
        let stopped = broker.post(&path, json!({ "reason": "again" })).await;
        assert_eq!(stopped.status, StatusCode::OK, "{}", stopped.body);
    }
    let fourth = broker.post("/v1/leases", body.clone()).await;
    assert_eq!(fourth.problem(), "/problems/over-budget", "{}", fourth.body);
    assert_eq!(fourth.body["budget"], "live_leases");
    // Until they expire.
    broker.clock.advance(Duration::minutes(14));
    assert_eq!(broker.post("/v1/leases", body.clone()).await.problem(), "/problems/over-budget");
    broker.clock.advance(Duration::minutes(2));
    sts.set(Mood::Good { now: broker.clock.now() });
    let later = broker.post("/v1/leases", body).await;
    assert_eq!(later.status, StatusCode::CREATED, "{}", later.body);
}

// ------------------------------------------------------------------------------------------------------------- clocks

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_began_after_the_cut_off_by_the_clock_of_aws_is_stopped_by_name() {
    let clock = Clock::manual(Clock::default().now() - Duration::seconds(20));
    let stage = Stage::with(stack::shared().aws(), clock).await;
    let (id, credentials) = stage.session().await;
    assert!(works(&credentials).await);
    stage.freeze(FreezeKind::Environment, Some("staging")).await;
    stage.stopped(id).await;
    assert!(!works(&credentials).await, "called stopped, and AWS lets it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_by_our_clock_alone_is_still_refused() {
    let relay = Relay::start(&stack::shared().endpoint).await;
    let aws = AwsOptions { endpoint: Some(relay.endpoint.clone()), credentials: None };
    let stage = Stage::with(aws, Clock::manual(Clock::default().now())).await;
    let (id, credentials) = stage.session().await;
    // No probe can be had: it stays revoking until it expires.
    relay.sts_is_away(true);
    stage.revoke(id).await;
    until("the policy is written", SOON, async || !works(&credentials).await).await;
    let sql = "select expires_at from session";
    let expires_at: OffsetDateTime =
        sqlx::query_scalar(sql).fetch_one(&stage.broker.database.owner).await.expect("a session");
    let clock = &stage.broker.clock;
    clock.advance(expires_at - clock.now() + Duration::seconds(5));
    // A row that a round holds is left for the next sweep.
    until("it expires", SOON, async || {
        stage.broker.broker.sweep().await.expect("swept");
        stage.broker.sessions(id).await == ["expired"]
    })
    .await;
    let sql = "select count(*) from role_stop where next_check_at > (select expires_at + interval '5 seconds' from session)";
    until("the role was looked at", SOON, async || stage.count(sql).await == 1).await;
    assert!(!works(&credentials).await, "AWS has not ended it yet, and lets it again");
    clock.advance(Duration::minutes(3));
    until("it is taken out", SOON, async || stage.policy().await.is_none()).await;
}

// ---------------------------------------------------------------------------------------------------------- bad luck

/// Each role at work holds a connection while AWS is asked. There are more roles than connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_iam_that_does_not_answer_leaves_the_database_to_the_lease_path() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let aws = AwsOptions { endpoint: Some(endpoint), credentials: None };
    let broker = TestBroker::new(Setup { aws, ..Setup::real() }).await;
    broker
        .as_owner(
            "insert into role_stop (role_arn, cut_off)
             select 'arn:aws:iam::000000000000:role/r' || n, date_trunc('second', now()) from generate_series(1, 60) n",
        )
        .await;
    let _asking = broker.broker.stop_sessions().await.expect("the database answers");
    // Some ask, and are not answered.
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(silent.accept().await.expect("a connection"));
    }
    for _ in 0..20 {
        broker.broker.stop_sessions().await.expect("the database answers").detach_all();
        assert_eq!(
            broker.get("/v1/leases").await.status,
            StatusCode::OK,
            "who stops has taken all connections"
        );
    }
}

#[tokio::test]
async fn a_freeze_that_could_not_stop_at_once_says_what_is_left() {
    let stage = Stage::new().await;
    let (id, credentials) = stage.session().await;
    let mut held = stage.broker.database.owner.begin().await.expect("a transaction");
    sqlx::query("select from lease where id = $1 for update")
        .bind(id.0)
        .execute(&mut *held)
        .await
        .expect("the lease's row");
    let freeze = stage.freeze(FreezeKind::Scope, Some("staging-rw")).await;
    assert_eq!((freeze.sessions, freeze.not_yet_stopped), (1, 1));
    held.rollback().await.expect("let go");
    stage.stopped(id).await;
    let freeze = stage.broker.broker.find_freeze(&carol(&stage.broker), freeze.id).await;
    let freeze = freeze.expect("it is there");
    assert_eq!((freeze.sessions, freeze.not_yet_stopped), (1, 0));
    assert!(!works(&credentials).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_gone_is_let_go_once_nothing_is_to_be_stopped_on_it() {
    let stage = Stage::new().await;
    let sql =
        "insert into role_stop (role_arn, written_at, next_check_at) values ($1, now(), now())";
    let gone = sqlx::query(sql).bind(arn("stop-gone"));
    gone.execute(&stage.broker.database.owner).await.expect("a row");
    let sql = "select count(*) from role_stop where written_at is null and last_error is null";
    until("it is let go", SOON, async || stage.count(sql).await == 1).await;
}

// ------------------------------------------------------------------------------------------------------------- rights

#[tokio::test]
async fn a_sponsor_stops_a_lease_whose_scope_is_gone() {
    let stage = Stage::new().await;
    let id = stage.broker.staging_lease().await;
    let path = stage.broker.config_dir.path().join("scopes.toml");
    let scopes = std::fs::read_to_string(&path).expect("scopes");
    std::fs::write(path, scopes.replace("staging-rw", "staging-other")).expect("written");
    let later = stage.broker.replica(stack::shared().aws()).await;
    let path = format!("/v1/leases/{id}/revoke");
    for (person, status) in [("bob", StatusCode::NOT_FOUND), ("alice", StatusCode::OK)] {
        let token = login(&later, person);
        let body = json!({ "reason": "why" });
        let answer = later.send(Method::POST, &path, Some(&token), &[], Some(body)).await;
        assert_eq!(answer.status, status, "{person}: {}", answer.body);
    }
}

#[tokio::test]
async fn who_may_not_freeze_is_not_told_which_names_there_are() {
    let stage = Stage::new().await;
    let broker = &stage.broker;
    let now = broker.clock.now();
    start_task(&broker.database, &broker.broker.tokens, "third", "bob", now).await;
    let token = login(broker, "dave");
    for (kind, known, unknown) in [
        ("agent", "third", "fourth"),
        ("sponsor", "bob", "bop"),
        ("scope", "staging-rw", "staging"),
        ("environment", "staging", "stage"),
    ] {
        for target in [known, unknown] {
            let body = json!({ "kind": kind, "target": target, "reason": "why" });
            let answer =
                broker.send(Method::POST, "/v1/freezes", Some(&token), &[], Some(body)).await;
            assert_eq!(answer.problem(), "/problems/denied", "{kind} {target}: {}", answer.body);
        }
    }
}
