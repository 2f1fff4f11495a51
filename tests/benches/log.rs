//! What the log costs those who write events: events a second with the sequencer at work, against plain inserts without a log, and
//! against a hash chain under a lock, in one run on a PostgreSQL that flushes: `cargo bench -p tests --bench log`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use broker::audit::{Actor, EventType, Scribe, Subject};
use broker::aws::{Access, AwsOptions};
use broker::clock::Clock;
use broker::config::Config;
use broker::dev::postgres::{self, Postgres};
use broker::sequencer::Sequencer;
use broker::store;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tests::program::dev_dir;
use tests::{Setup, stack, write_config};
use tokio::sync::Notify;
use uuid::Uuid;

const CLIENTS: [usize; 2] = [8, 32];
const ROUNDS: usize = 5;
const EACH: Duration = Duration::from_secs(3);

/// Events as they are without a log: the same table, check and indexes, but that by number, and nobody who looks for them. And as they
/// would be with a chain.
const RIVALS: &str = r"
create table plain_event (like event including defaults including constraints including generated) partition by range (recorded_at);
create table plain_event_default partition of plain_event default;
alter table plain_event add primary key (recorded_at, seq);
create index on plain_event (lease_id, seq) where lease_id is not null;
create index on plain_event (type, recorded_at);
create index on plain_event (actor, recorded_at);
create index on plain_event (agent, recorded_at) where agent is not null;
create function append_plain(body bytea) returns bigint
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare doc jsonb := event_doc(body); new_seq bigint;
begin
    insert into plain_event (id, type, occurred_at, actor, agent, sponsor, scope, lease_id, session_id, body)
    values ((doc ->> 'id')::uuid, doc ->> 'type', (doc ->> 'time')::timestamptz, doc ->> 'actor', doc -> 'data' ->> 'agent', doc -> 'data' ->> 'sponsor',
            doc -> 'data' ->> 'scope', (doc -> 'data' ->> 'lease_id')::uuid, (doc -> 'data' ->> 'session_id')::uuid, body)
    returning seq into new_seq;
    return new_seq;
end
$$;
create table chain_head (hash bytea not null);
insert into chain_head values ('');
create function append_chained(body bytea) returns bigint
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform pg_advisory_xact_lock(1);
    update chain_head set hash = sha256(hash || body);
    return append_plain(body);
end
$$;
";

#[tokio::main]
async fn main() {
    // Cargo says `--bench` when it is to measure, and nothing when it tests all targets.
    if !std::env::args().any(|it| it == "--bench") {
        return;
    }
    let (root, dir) = dev_dir();
    let search_path = stack::options(&dir).search_path;
    let options = postgres::Options { search_path, durable: true };
    let postgres = Postgres::start(&dir, &options).await.expect("PostgreSQL starts");
    let url = |role: &str| {
        postgres.url(role, &SecretString::from("bench"), "broker").expose_secret().to_owned()
    };
    let superuser = postgres.superuser_url("postgres");
    let mut superuser = PgConnection::connect(superuser.expose_secret()).await.expect("connects");
    let passwords =
        "alter role broker_migrate password 'bench'; alter role broker_sequencer password 'bench'";
    for sql in [store::ROLES, passwords, "create database broker owner broker_owner"] {
        sqlx::raw_sql(sql).execute(&mut superuser).await.expect(sql);
    }
    store::migrate(&url("broker_migrate")).await.expect("the schema is made");
    let mut owner = store::admin(&url("broker_migrate")).await.expect("connects");
    sqlx::raw_sql(RIVALS).execute(&mut owner).await.expect("rivals");

    let config_dir = root.path().join("config");
    let setup = Setup::real();
    write_config(&config_dir, "http://localhost:1", &setup);
    let config = Config::load(&config_dir).expect("valid");
    let access = Access::new(config.settings.aws.clone(), AwsOptions::default());
    let log = Sequencer::new(&config, &url("broker_sequencer"), &access, Clock::default());
    let log = Arc::new(log.expect("composed"));
    log.begin().await.expect("it begins");

    println!("events a second, {ROUNDS} rounds of {EACH:?}; shares are medians of each round's:");
    for clients in CLIENTS {
        let mut rounds: [Vec<f64>; 5] = Default::default();
        for _ in 0..ROUNDS {
            let mut rates = [0.0; 3];
            for (rate, function) in
                rates.iter_mut().zip(["append_plain", "append_event", "append_chained"])
            {
                let done = Arc::new(Notify::new());
                let sequencing =
                    (function == "append_event").then(|| sequence(log.clone(), done.clone()));
                *rate = measure(&url("broker_migrate"), function, clients).await;
                done.notify_one();
                if let Some(task) = sequencing {
                    let behind = task.await.expect("it does not panic");
                    println!(
                        "  {clients} clients: {behind} events left to sequence when the writers stopped"
                    );
                }
            }
            let [plain, logged, chained] = rates;
            let told = [plain, logged, chained, logged / plain, chained / plain];
            rounds.iter_mut().zip(told).for_each(|(all, it)| all.push(it));
        }
        let [plain, logged, chained, of_plain, chained_of_plain] = rounds.map(median);
        println!(
            "{clients} clients: plain {plain:.0}, with the log {logged:.0} ({of_plain:.2} of plain; goal 0.9), chained {chained:.0} ({chained_of_plain:.2} of plain)"
        );
    }
    superuser.close().await.expect("closed");
    owner.close().await.expect("closed");
    log.pool.close().await;
    postgres.stop().await.expect("stopped");
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Sequences as a server does, then counts what was left.
fn sequence(log: Arc<Sequencer>, done: Arc<Notify>) -> tokio::task::JoinHandle<usize> {
    tokio::spawn(async move {
        tokio::select! {
            () = log.run() => {}
            () = done.notified() => {}
        }
        let mut left = 0;
        loop {
            match log.tick().await.expect("it goes on") {
                0 => return left,
                some => left += some,
            }
        }
    })
}

async fn measure(url: &str, function: &str, clients: usize) -> f64 {
    let written = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (url, sql, written) =
                (url.to_owned(), format!("select {function}($1)"), written.clone());
            tokio::spawn(async move {
                let mut owner = store::admin(&url).await.expect("connects");
                let scribe = Scribe { source: "https://broker.example.com".into() };
                let clock = Clock::default();
                while start.elapsed() < EACH {
                    let body = body(&scribe, &clock);
                    sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
                        .bind(body)
                        .execute(&mut owner)
                        .await
                        .expect("written");
                    written.fetch_add(1, Ordering::Relaxed);
                }
                owner.close().await.expect("closed");
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("it does not panic");
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of some thousands")]
    let written = written.load(Ordering::Relaxed) as f64;
    written / start.elapsed().as_secs_f64()
}

/// An event of the usual size.
fn body(scribe: &Scribe, clock: &Clock) -> Vec<u8> {
    let lease = broker::lease::LeaseId(Uuid::now_v7());
    let subject = Subject {
        agent: Some("demo-agent"),
        sponsor: Some("alice"),
        scope: Some("staging-rw"),
        lease_id: Some(lease),
        session_id: Some(lease.0),
    };
    let detail = json!({ "access_key_id": "ASIA509E86CDED7D41EF", "session_name": format!("{lease}-0d95ff3a") });
    scribe.body(EventType::SessionIssued, Actor::Agent("demo-agent"), subject, detail, clock.now())
}
