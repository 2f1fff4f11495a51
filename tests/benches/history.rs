//! What the queries of the pages cost on a long history, and what that history costs a request for a lease:
//! `EVENTS=10000000 cargo bench -p tests --bench history`.
//!
//! Ten million events take some 20 GB in the temporary directory, and a quarter of an hour to be written. They are removed at the
//! end, and when it is interrupted; what a crash left is removed by the next run of the tests.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use broker::clock::Clock;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tests::history::{self, PAGES};
use tests::stack::Database;
use tests::sts::{FakeSts, Mood};
use tests::{Setup, TestBroker, wide_budgets};
use tokio::signal::unix::{SignalKind, signal};

/// Unless the environment says otherwise.
const EVENTS: u64 = 100_000;
/// How often a query is asked, after it was asked once.
const ROUNDS: usize = 9;
/// How many leases are requested of each broker, after some that do not count.
const LEASES: u32 = 300;
const UNCOUNTED: u32 = 20;
const GOAL: Duration = Duration::from_millis(50);
/// After so long PostgreSQL's statistics say what an idle connection did.
const STATISTICS: Duration = Duration::from_secs(11);

#[tokio::main]
async fn main() {
    // Cargo says `--bench` when it is to measure, and nothing when it tests all targets.
    if !std::env::args().any(|it| it == "--bench") {
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "the edge of the benchmark")]
    let events = std::env::var("EVENTS").ok().filter(|it| !it.is_empty());
    let events = events.map_or(EVENTS, |it| it.parse().expect("EVENTS is a number"));

    let sts = FakeSts::start().await;
    let (full, empty) = (broker(&sts).await, broker(&sts).await);
    let mut terminated = signal(SignalKind::terminate()).expect("a handler");
    let interrupted = tokio::select! {
        () = measure(&full, &empty, &sts, events) => false,
        _ = tokio::signal::ctrl_c() => true,
        _ = terminated.recv() => true,
    };
    remove(&full.database).await;
    if interrupted {
        std::process::exit(130);
    }
}

async fn broker(sts: &FakeSts) -> TestBroker {
    let settings = wide_budgets()
        .replace("requests_per_minute = 600", "requests_per_minute = 100000")
        .replace("resources_per_hour = 10000", "resources_per_hour = 1000000");
    TestBroker::new(Setup { clock: Clock::default(), settings, ..Setup::fake(sts) }).await
}

/// Twenty gigabytes are not left to the next run.
async fn remove(database: &Database) {
    let elsewhere = database.superuser_url.replace(&database.name, "postgres");
    let mut superuser = PgConnection::connect(&elsewhere).await.expect("PostgreSQL answers");
    let sql = format!("drop database {} with (force)", database.name);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut superuser).await.expect("dropped");
}

async fn measure(full: &TestBroker, empty: &TestBroker, sts: &FakeSts, events: u64) {
    eprintln!("writing a history of {events} events");
    let began = Instant::now();
    history::fill(&full.database, events).await;
    let took = began.elapsed();
    let mut superuser = history::superuser(&full.database).await;
    let sql = "select count(*), pg_database_size(current_database()) from event";
    let (events, bytes): (i64, i64) =
        sqlx::query_as(sql).fetch_one(&mut superuser).await.expect("a count");
    println!("{events} events, {} MB, written in {} s\n", bytes / 1_000_000, took.as_secs());
    queries(&full.database).await;
    leases(full, empty, sts).await;
}

/// Each query of the pages, as operations ask it: planning it is part of it.
async fn queries(database: &Database) {
    let variables = history::variables(database).await;
    let mut ops = PgConnection::connect(&database.ops_url).await.expect("operations connect");
    println!("    rows  median ms  under {} ms  query", GOAL.as_millis());
    for query in PAGES.into_iter().flat_map(history::queries) {
        let sql = query.with(&variables);
        let (mut rows, mut took) = (0, Vec::new());
        for _ in 0..=ROUNDS {
            let asked = Instant::now();
            let answer = sqlx::raw_sql(AssertSqlSafe(sql.clone())).fetch_all(&mut ops).await;
            took.push(asked.elapsed());
            rows = answer.expect(&query.text).len();
        }
        let median = median(took.split_off(1));
        println!(
            "{rows:>8}  {:>9.1}  {:<11}  {}: {}",
            median.as_secs_f64() * 1e3,
            if median < GOAL { "yes" } else { "NO" },
            query.page,
            query.about,
        );
    }
}

/// Requests for a lease with its credentials, of the one broker and the other in turn: how long the answer took, and
/// how long PostgreSQL was at work for it.
async fn leases(full: &TestBroker, empty: &TestBroker, sts: &FakeSts) {
    let before = [at_work(&full.database).await, at_work(&empty.database).await];
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..UNCOUNTED + LEASES {
        for (broker, took) in [full, empty].into_iter().zip(&mut took) {
            sts.set(Mood::Good { now: broker.clock.now() });
            let asked = Instant::now();
            let body = json!({ "scope": "staging-rw", "deliver": true });
            let answer = broker.post("/v1/leases", body).await;
            let answered = asked.elapsed();
            assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
            if UNCOUNTED <= round {
                took.push(answered);
            }
        }
    }
    let after = [at_work(&full.database).await, at_work(&empty.database).await];
    println!("\na lease with its credentials, in milliseconds, {LEASES} of each\n");
    println!("              here  on an empty database  ratio");
    let told = |what: &str, [full, empty]: [f64; 2]| {
        println!("{what:<10}  {full:>6.2}  {empty:>20.2}  {:>5.2}", full / empty);
    };
    told("median", took.map(|it| median(it).as_secs_f64() * 1e3));
    let each = |it: usize| (after[it] - before[it]) / f64::from(UNCOUNTED + LEASES);
    told("PostgreSQL", [each(0), each(1)]);
}

/// For how many milliseconds a database was at work.
async fn at_work(database: &Database) -> f64 {
    tokio::time::sleep(STATISTICS).await;
    let mut superuser = history::superuser(database).await;
    let sql = "select active_time from pg_stat_database where datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(&mut superuser).await.expect("statistics")
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() / 2]
}
