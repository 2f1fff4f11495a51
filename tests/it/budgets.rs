//! Small grants compose: what an agent, a task and a sponsor may ask for and hold, enforced in the database.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration as StdDuration;

use axum::http::{Method, StatusCode};
use broker::identity::TaskGrant;
use broker::policy::Usage;
use broker::store::{self, Used};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::program::until;
use tests::sts::FakeSts;
use tests::{AGENT, Answer, PRODUCTION_OBJECT, Setup, TestBroker, production_write};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;
use uuid::Uuid;

const BUDGETS: [&str; 6] = [
    "live_leases",
    "pending_leases",
    "requests_per_minute",
    "scopes_per_hour",
    "resources_per_hour",
    "signed_per_day",
];
const WHOSE: [&str; 3] = ["agent", "task", "sponsor"];
const OVER: (StatusCode, &str) = (StatusCode::TOO_MANY_REQUESTS, "/problems/over-budget");

/// Table `[limits]` with one tight budget, or some, and room for everything else.
fn limits(tight: &[(&str, &str, u32)]) -> String {
    let mut text = String::from("[limits]\n");
    for whose in WHOSE {
        for budget in BUDGETS {
            let given = tight.iter().find(|it| (it.0, it.1) == (whose, budget));
            let limit = given.map_or(1000, |it| it.2);
            let _ = writeln!(text, "{whose}.{budget} = {limit}");
        }
    }
    text
}

async fn broker_with(tight: &[(&str, &str, u32)]) -> (FakeSts, TestBroker) {
    let sts = FakeSts::start().await;
    let setup = Setup { settings: limits(tight), ..Setup::fake(&sts) };
    let broker = TestBroker::new(setup).await;
    (sts, broker)
}

/// Starts a task that lasts longer than any budget looks back, and makes its token.
async fn task(broker: &TestBroker, agent: &str, sponsor: &str) -> (Uuid, String) {
    let now = broker.clock.now();
    let (id, expires_at) = (Uuid::now_v7(), now + Duration::days(30));
    let grant = TaskGrant { id, agent, sponsor, task: "T-2", expires_at };
    tests::insert_task(&broker.database.owner, grant, now).await;
    (id, broker.broker.tokens.task_token(grant, now).expose_secret().to_owned())
}

async fn ask(broker: &TestBroker, token: &str, body: Value) -> Answer {
    broker.send(Method::POST, "/v1/leases", Some(token), &[], Some(body)).await
}

/// A request that uses up some of `budget` beside those with other numbers.
fn one_of(budget: &str, number: usize) -> Value {
    match budget {
        "live_leases" => json!({ "scope": "staging-rw" }),
        "pending_leases" | "signed_per_day" => production_write(),
        // Denied, and asked all the same.
        "requests_per_minute" if number % 2 == 1 => json!({ "scope": "nope" }),
        "requests_per_minute" => json!({ "scope": "staging-ro" }),
        "resources_per_hour" => {
            let resource = format!("arn:aws:s3:::staging-app-data/{number}");
            json!({ "scope": "staging-rw", "resources": [resource] })
        }
        "scopes_per_hour" if number == 3 => production_write(),
        "scopes_per_hour" => {
            let scope = ["staging-ro", "staging-rw", "prod-ro"][number];
            json!({ "scope": scope })
        }
        other => panic!("{other}"),
    }
}

/// How long the first of three requests counts, if it is left to itself.
fn lasts(budget: &str) -> Duration {
    match budget {
        "live_leases" => Duration::minutes(15),
        "pending_leases" => Duration::minutes(30),
        "requests_per_minute" => Duration::MINUTE,
        "signed_per_day" => Duration::DAY,
        _ => Duration::HOUR,
    }
}

fn is_over(answer: &Answer, budget: &str, of: &str, limit: u32, retry_at: OffsetDateTime) {
    let body = &answer.body;
    assert_eq!((answer.status, answer.problem()), OVER, "{budget} of {of}: {body}");
    assert_eq!((&body["budget"], &body["of"]), (&json!(budget), &json!(of)), "{body}");
    assert_eq!(body["limit"], limit, "{body}");
    assert_eq!(body["retry_at"], retry_at.format(&Rfc3339).unwrap(), "{budget} of {of}: {body}");
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("the {of}'s budget of {limit} ")), "{detail}");
    assert!(body["next"].as_str().unwrap().contains("sk again at `retry_at`"), "{body}");
}

/// Three fit, the fourth does not and is told when it will; then it does. Who has another budget is not held up.
async fn three_and_no_more(budget: &str, whose: &str) {
    let (_sts, broker) = broker_with(&[(whose, budget, 3)]).await;
    let (_, mine) = task(&broker, AGENT, "alice").await;
    let (_, my_other_task) = task(&broker, AGENT, "alice").await;
    let (_, my_colleague) = task(&broker, "other-agent", "alice").await;
    let (_, namesake) = task(&broker, AGENT, "bob").await;
    // Who shares the budget, and who does not though as near to it as can be.
    let (shares, apart) = match whose {
        "agent" => (&my_other_task, vec![&my_colleague, &namesake]),
        "task" => (&mine, vec![&my_other_task, &my_colleague]),
        _ => (&my_colleague, vec![&namesake]),
    };
    let first_at = broker.clock.now();
    for number in 0..3 {
        let token = if number == 1 { shares } else { &mine };
        let answer = ask(&broker, token, one_of(budget, number)).await;
        assert_ne!(answer.status, OVER.0, "{budget} of {whose}, {number}: {}", answer.body);
        broker.clock.advance(Duration::seconds(10));
    }
    let retry_at = first_at + lasts(budget);

    for token in [&mine, shares] {
        let fourth = ask(&broker, token, one_of(budget, 3)).await;
        is_over(&fourth, budget, whose, 3, retry_at);
        let wait = (retry_at - broker.clock.now()).whole_seconds();
        assert_eq!(fourth.headers["retry-after"], wait.to_string().as_str());
    }
    for token in apart {
        let answer = ask(&broker, token, one_of(budget, 3)).await;
        assert_ne!(answer.status, OVER.0, "{budget} of {whose}: {}", answer.body);
    }
    if budget == "scopes_per_hour" || budget == "resources_per_hour" {
        // The third once more is nothing new.
        let again = ask(&broker, &mine, one_of(budget, 2)).await;
        assert_eq!(again.status, StatusCode::CREATED, "{}", again.body);
    }

    broker.clock.advance(retry_at - broker.clock.now() - Duration::SECOND);
    let early = ask(&broker, &mine, one_of(budget, 3)).await;
    is_over(&early, budget, whose, 3, retry_at);
    assert_eq!(early.headers["retry-after"], "1");
    broker.clock.advance(Duration::SECOND);
    let then = ask(&broker, &mine, one_of(budget, 3)).await;
    assert_ne!(then.status, OVER.0, "{budget} of {whose}: {}", then.body);
    // And that filled it again, until the second one goes.
    let next =
        ask(&broker, &mine, one_of(budget, 4 - usize::from(budget == "scopes_per_hour") * 4)).await;
    is_over(&next, budget, whose, 3, retry_at + Duration::seconds(10));
}

#[tokio::test]
async fn an_agents_budget_is_used_up_by_all_its_tasks_and_nobody_else() {
    for budget in BUDGETS {
        Box::pin(three_and_no_more(budget, "agent")).await;
    }
}

#[tokio::test]
async fn a_tasks_budget_is_used_up_by_that_task_alone() {
    for budget in BUDGETS {
        Box::pin(three_and_no_more(budget, "task")).await;
    }
}

#[tokio::test]
async fn a_sponsors_budget_is_used_up_by_all_their_agents() {
    for budget in BUDGETS {
        Box::pin(three_and_no_more(budget, "sponsor")).await;
    }
}

#[tokio::test]
async fn of_several_budgets_the_one_that_takes_longest_says_when() {
    let (_sts, broker) =
        broker_with(&[("agent", "requests_per_minute", 1), ("sponsor", "scopes_per_hour", 1)])
            .await;
    let at = broker.clock.now();
    broker.staging_lease().await;
    let both = broker.post("/v1/leases", json!({ "scope": "prod-ro" })).await;
    is_over(&both, "scopes_per_hour", "sponsor", 1, at + Duration::HOUR);
    let one = broker.post("/v1/leases", json!({ "scope": "staging-rw" })).await;
    is_over(&one, "requests_per_minute", "agent", 1, at + Duration::MINUTE);
}

#[tokio::test]
async fn what_ended_early_leaves_room_at_once() {
    let (_sts, broker) =
        broker_with(&[("agent", "live_leases", 1), ("agent", "pending_leases", 1)]).await;
    let pending = broker.pending_lease().await;
    assert_eq!(broker.post("/v1/leases", production_write()).await.status, OVER.0);
    let live = broker.staging_lease().await;
    let body = json!({ "scope": "staging-ro" });
    assert_eq!(broker.post("/v1/leases", body.clone()).await.status, OVER.0);
    for id in [pending, live] {
        broker.post(&format!("/v1/leases/{id}/withdraw"), json!({})).await;
    }
    assert_eq!(broker.post("/v1/leases", production_write()).await.status, StatusCode::ACCEPTED);
    assert_eq!(broker.post("/v1/leases", body).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_live_lease_counts_until_it_ends_and_not_until_somebody_sweeps() {
    let (_sts, broker) = broker_with(&[("agent", "live_leases", 2)]).await;
    let at = broker.clock.now();
    // Claimed: it lasts for its window. Signed and claimed: for its session.
    let body = json!({ "scope": "staging-rw", "ttl_seconds": 3600, "deliver": true });
    assert_eq!(broker.post("/v1/leases", body).await.status, StatusCode::CREATED);
    let signed = broker.pending_lease().await;
    broker.approve(signed, &broker.bob).await;
    assert_eq!(broker.claim(signed).await.status, StatusCode::OK);
    let third = broker.post("/v1/leases", json!({ "scope": "staging-ro" })).await;
    is_over(&third, "live_leases", "agent", 2, at + Duration::minutes(15));
    broker.clock.advance(Duration::minutes(15));
    broker.staging_lease().await;
    let fourth = broker.post("/v1/leases", json!({ "scope": "staging-ro" })).await;
    is_over(&fourth, "live_leases", "agent", 2, at + Duration::minutes(30));
}

#[tokio::test]
async fn a_denial_counts_as_a_request_and_as_nothing_else() {
    let tight = BUDGETS.map(|it| ("agent", it, if it == "requests_per_minute" { 6 } else { 1 }));
    let (_sts, broker) = broker_with(&tight).await;
    let elsewhere = json!({ "scope": "staging-rw", "resources": [PRODUCTION_OBJECT] });
    for body in [json!({ "scope": "nope" }), json!({ "scope": "none" }), elsewhere] {
        assert_eq!(broker.post("/v1/leases", body).await.problem(), "/problems/denied");
    }
    let resource = "arn:aws:s3:::staging-app-data/1";
    let good = json!({ "scope": "staging-rw", "resources": [resource] });
    assert_eq!(broker.post("/v1/leases", good).await.status, StatusCode::CREATED);
    // Everything but requests is used up: a denial still is what it was.
    assert_eq!(
        broker.post("/v1/leases", json!({ "scope": "nope" })).await.problem(),
        "/problems/denied"
    );
    let denied = broker.post("/v1/leases", json!({ "scope": "nil" })).await;
    assert_eq!(denied.problem(), "/problems/denied");
    let at = broker.clock.now() + Duration::MINUTE;
    let seventh = broker.post("/v1/leases", json!({ "scope": "nope" })).await;
    is_over(&seventh, "requests_per_minute", "agent", 6, at);
    let rows: i64 = count(&broker, "select count(*) from lease").await;
    assert_eq!(rows, 6, "who is over budget writes no lease");
}

#[tokio::test]
async fn a_request_for_more_at_once_than_a_budget_is_denied_for_good() {
    let (_sts, broker) = broker_with(&[("task", "resources_per_hour", 1)]).await;
    // The whole ceiling: two resources.
    let answer = broker.post("/v1/leases", json!({ "scope": "staging-rw" })).await;
    assert_eq!(answer.problem(), "/problems/denied", "{}", answer.body);
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(
        detail.contains("it is on 2 resources, and a budget is 1 an hour: ask for fewer"),
        "{detail}"
    );
}

async fn count(broker: &TestBroker, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.unwrap()
}

/// Two servers, each with a pool of its own, and two tokens; what they answered to as many requests at once.
async fn at_once(
    servers: &[TestBroker; 2],
    tokens: &[String],
    bodies: impl IntoIterator<Item = (Option<String>, Value)>,
) -> Vec<Answer> {
    let mut asked = JoinSet::new();
    for (number, (key, body)) in bodies.into_iter().enumerate() {
        let server = &servers[number % 2];
        let request = tests::Sender::of(server);
        let token = tokens[number / 2 % tokens.len()].clone();
        asked.spawn(async move {
            let headers: Vec<_> = key.iter().map(|it| ("idempotency-key", it.as_str())).collect();
            request.send(Method::POST, "/v1/leases", Some(&token), &headers, Some(body)).await
        });
    }
    asked.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_at_once_on_two_servers_share_a_budget_of_five_to_the_last() {
    const ROUNDS: usize = 12;
    for (whose, budget) in [
        ("sponsor", "requests_per_minute"),
        ("agent", "live_leases"),
        ("sponsor", "resources_per_hour"),
        ("task", "pending_leases"),
    ] {
        let (sts, first) = broker_with(&[(whose, budget, 5)]).await;
        let second = first.replica(sts.options()).await;
        let servers = [first, second];
        let (_, mine) = task(&servers[0], AGENT, "alice").await;
        let (_, colleague) = task(&servers[0], "other-agent", "alice").await;
        let tokens = if whose == "sponsor" { vec![mine, colleague] } else { vec![mine] };
        for round in 0..ROUNDS {
            let bodies = (0..20).map(|it| (None, one_of(budget, it)));
            let answers = at_once(&servers, &tokens, bodies).await;
            let over = answers.iter().filter(|it| (it.status, it.problem()) == OVER).count();
            assert_eq!(over, 15, "{budget} of {whose}, round {round}");
            let written: i64 =
                sqlx::query_scalar("select count(*) from lease where requested_at = $1")
                    .bind(servers[0].clock.now())
                    .fetch_one(&servers[0].database.owner)
                    .await
                    .unwrap();
            assert_eq!(written, 5, "{budget} of {whose}, round {round}");
            servers[0].clock.advance(lasts(budget));
        }
        // Each agent was over in each round, many times and on both servers.
        let sql = "select count(*) from event where type = 'budget.exceeded'";
        let told = usize::try_from(count(&servers[0], sql).await).unwrap();
        assert_eq!(told, ROUNDS * tokens.len(), "{budget} of {whose}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_request_sent_twenty_times_at_once_is_one_lease_and_never_over_budget() {
    let (sts, first) = broker_with(
        &BUDGETS.map(|it| ("agent", it, if it == "resources_per_hour" { 2 } else { 1 })),
    )
    .await;
    let second = first.replica(sts.options()).await;
    let servers = [first, second];
    let (_, token) = task(&servers[0], AGENT, "alice").await;
    for round in 0..10 {
        let key = format!("key-{round}");
        let bodies = (0..20).map(|_| (Some(key.clone()), json!({ "scope": "staging-rw" })));
        let answers = at_once(&servers, std::slice::from_ref(&token), bodies).await;
        let ids: BTreeSet<_> = answers.iter().map(|it| it.body["id"].to_string()).collect();
        let problems: Vec<_> =
            answers.iter().map(Answer::problem).filter(|it| !it.is_empty()).collect();
        assert_eq!((ids.len(), problems), (1, vec![]), "round {round}");
        // The control: with another key it is another request.
        let other = ask(&servers[0], &token, json!({ "scope": "staging-rw" })).await;
        assert_eq!(other.status, OVER.0, "{}", other.body);
        servers[0].clock.advance(Duration::HOUR);
    }
    assert_eq!(count(&servers[0], "select count(*) from lease").await, 10);
}

#[tokio::test]
async fn being_over_budget_is_recorded_once_a_minute_for_each_agent_and_budget() {
    let (sts, broker) =
        broker_with(&[("sponsor", "live_leases", 1), ("agent", "scopes_per_hour", 2)]).await;
    let replica = broker.replica(sts.options()).await;
    let (_, colleague) = task(&broker, "other-agent", "alice").await;
    broker.staging_lease().await;
    let told =
        async || count(&broker, "select count(*) from event where type = 'budget.exceeded'").await;
    let body = json!({ "scope": "staging-rw" });
    for server in [&broker, &replica, &broker] {
        assert_eq!(server.post("/v1/leases", body.clone()).await.status, OVER.0);
    }
    assert_eq!(told().await, 1);
    broker.clock.advance(Duration::seconds(59));
    assert_eq!(replica.post("/v1/leases", body.clone()).await.status, OVER.0);
    assert_eq!(told().await, 1);
    assert_eq!(ask(&broker, &colleague, body.clone()).await.status, OVER.0);
    assert_eq!(told().await, 2, "another agent");
    broker.clock.advance(Duration::SECOND);
    assert_eq!(replica.post("/v1/leases", body.clone()).await.status, OVER.0);
    assert_eq!(told().await, 3, "another minute");

    let doc: Value = sqlx::query_scalar(
        "select doc from event where type = 'budget.exceeded' order by seq limit 1",
    )
    .fetch_one(&broker.database.owner)
    .await
    .unwrap();
    assert_eq!(doc["actor"], "agent:demo-agent");
    assert_eq!(doc["data"]["sponsor"], "alice");
    assert_eq!(doc["data"]["scope"], "staging-rw");
    let detail = &doc["data"]["detail"];
    assert_eq!(
        (&detail["budget"], &detail["of"], &detail["limit"]),
        (&json!("live_leases"), &json!("sponsor"), &json!(1))
    );
    assert_eq!(detail["retry_at"], "2026-01-01T12:15:00Z");
}

#[tokio::test]
async fn what_is_used_can_be_read_for_all_three_at_once() {
    let (_sts, broker) = broker_with(&[]).await;
    let (first, mine) = task(&broker, AGENT, "alice").await;
    let (second, my_other_task) = task(&broker, AGENT, "alice").await;
    let (_, colleague) = task(&broker, "other-agent", "alice").await;
    let (_, namesake) = task(&broker, AGENT, "bob").await;
    for (token, body) in [
        (&mine, json!({ "scope": "staging-rw" })),
        (&mine, json!({ "scope": "nope" })),
        (&my_other_task, json!({ "scope": "staging-ro" })),
        (&my_other_task, production_write()),
        (&colleague, json!({ "scope": "prod-ro" })),
        (&namesake, production_write()),
    ] {
        ask(&broker, token, body).await;
    }
    let usage = async |task: Uuid, at: OffsetDateTime| {
        store::usage(broker.pool(), AGENT, "alice", task, at).await.unwrap()
    };
    let now = broker.clock.now();
    let used = |numbers: [i64; 6]| Usage {
        live_leases: numbers[0],
        pending_leases: numbers[1],
        requests_last_minute: numbers[2],
        scopes_last_hour: numbers[3],
        resources_last_hour: numbers[4],
        signed_last_day: numbers[5],
    };
    let of_first = Used {
        agent: used([2, 1, 4, 3, 3, 1]),
        task: used([1, 0, 2, 1, 2, 0]),
        sponsor: used([3, 1, 5, 4, 4, 1]),
    };
    assert_eq!(usage(first, now).await, of_first);
    assert_eq!(usage(second, now).await.task, used([1, 1, 2, 2, 3, 1]));
    assert_eq!(usage(first, now + Duration::MINUTE).await.sponsor, used([3, 1, 0, 4, 4, 1]));
    assert_eq!(usage(first, now + Duration::HOUR).await.sponsor, used([0, 0, 0, 0, 0, 1]));
    assert_eq!(usage(first, now + Duration::DAY).await, Used::default());
}

#[tokio::test]
async fn counting_reads_ranges_of_indexes_and_never_the_whole_table() {
    let (_sts, broker) = broker_with(&[]).await;
    let (task, _) = task(&broker, AGENT, "alice").await;
    broker.staging_lease().await;
    // One sponsor has them all: the worst there is.
    let rows = "insert into lease (id, request_sha256, agent, sponsor, task_id, task, scope, actions, resources, rules_sha256,
                                   decided_by, signatures_needed, eligible_signers, state, requested_at, ended_at, end_reason)
                select gen_random_uuid(), sha256(''), 'demo-agent', 'alice', $1, 'T', 'staging-rw', '{s3:GetObject}', '{a,b}',
                       (select sha256 from ruleset),
                       '{}', 0, '{}', 'denied', $2 - it * interval '10 seconds', $2, 'no'
                  from generate_series(1, 20000) as it";
    let now = broker.clock.now();
    sqlx::query(rows).bind(task).bind(now).execute(&broker.database.owner).await.unwrap();
    sqlx::raw_sql("analyze lease").execute(&broker.database.owner).await.unwrap();

    let mut app = PgConnection::connect(&broker.database.app_url).await.unwrap();
    let mut transaction = app.begin().await.unwrap();
    let scans = async |connection: &mut PgConnection| -> i64 {
        let sql = "select pg_stat_get_xact_numscans('lease'::regclass)";
        sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
    };
    let limits = BTreeMap::from(WHOSE.map(|it| (it, BTreeMap::from(BUDGETS.map(|it| (it, 1000))))));
    for _ in 0..8 {
        let sql = "select verdict from admit($1, 'alice', $2, 'k', 'approved', 'staging-rw', 'staging', '{a}', $3, $4, null, null)";
        let verdict: String = sqlx::query_scalar(sql)
            .bind(AGENT)
            .bind(task)
            .bind(json!(limits))
            .bind(now)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        assert_eq!(verdict, "open");
    }
    assert_eq!(scans(&mut transaction).await, 0);
    sqlx::query("select count(*) from lease where reason is null")
        .execute(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(scans(&mut transaction).await, 1, "the control");
}

/// Until a request of the server waits for a lock.
pub(crate) async fn somebody_waits(broker: &TestBroker) {
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and usename = 'broker_app' and wait_event_type = 'Lock'";
    let mut superuser = PgConnection::connect(&broker.database.superuser_url).await.unwrap();
    let limit = StdDuration::from_secs(10);
    until("a request waits", limit, async || {
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut superuser).await.unwrap() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waited_sees_what_changed_meanwhile() {
    let (_sts, broker) = broker_with(&[]).await;
    let mut owner = broker.database.owner.begin().await.unwrap();
    // Somebody is about to disable the sponsor.
    let sql = "update person set disabled_at = created_at where handle = 'alice'";
    sqlx::raw_sql(sql).execute(&mut *owner).await.unwrap();
    let request = tests::Sender::of(&broker);
    let token = broker.token.clone();
    let asked = tokio::spawn(async move {
        let body = Some(json!({ "scope": "staging-rw" }));
        request.send(Method::POST, "/v1/leases", Some(&token), &[], body).await
    });
    somebody_waits(&broker).await;
    owner.commit().await.unwrap();
    let answer = asked.await.unwrap();
    assert_eq!(answer.problem(), "/problems/unauthenticated", "{}", answer.body);
    assert_eq!(count(&broker, "select count(*) from lease").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sponsor_who_is_held_up_holds_up_nobody_else_and_is_told_to_come_back() {
    let (_sts, broker) = broker_with(&[("agent", "live_leases", 1)]).await;
    let (_, of_bob) = task(&broker, AGENT, "bob").await;
    broker.staging_lease().await;
    let (_, colleague) = task(&broker, "other-agent", "alice").await;
    let body = json!({ "scope": "staging-rw" });
    assert_eq!(broker.post("/v1/leases", body.clone()).await.status, OVER.0);
    let mut owner = broker.database.owner.begin().await.unwrap();
    let sql = "select from person where handle = 'alice' for no key update";
    sqlx::raw_sql(sql).execute(&mut *owner).await.unwrap();
    // Who was over budget a moment ago needs no lock to hear it again.
    assert_eq!(broker.post("/v1/leases", body.clone()).await.status, OVER.0);
    assert_eq!(ask(&broker, &of_bob, body.clone()).await.status, StatusCode::CREATED);
    let held_up = ask(&broker, &colleague, body.clone()).await;
    assert_eq!(held_up.problem(), "/problems/database-unavailable", "{}", held_up.body);
    owner.rollback().await.unwrap();
    assert_eq!(ask(&broker, &colleague, body).await.status, StatusCode::CREATED);
}
