//! Whatever happens to servers, connections, clocks and transactions: in the end every event has one place in the log, and all of
//! it is as it was signed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use broker::aws::{Access, AwsOptions};
use broker::clock::Clock;
use broker::config::Config;
use broker::log::verify::{Options, Verdict};
use broker::sequencer::Sequencer;
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres, Transaction};
use tests::TestBroker;
use tests::program::until;
use tests::stack::Database;
use tokio::task::JoinSet;

use crate::log_attacks::{World, check, export, whole};
use crate::processes::site;

const SOON: Duration = Duration::from_secs(30);

/// An event's body, by the system's clock.
fn body() -> Vec<u8> {
    let now = Clock::default().now();
    let now = now.format(&time::format_description::well_known::Rfc3339).expect("a time");
    let id = uuid::Uuid::now_v7();
    let body =
        json!({ "actor": "broker", "data": {}, "id": id, "time": now, "type": "tests.event" });
    body.to_string().into_bytes()
}

async fn append(pool: impl sqlx::Executor<'_, Database = Postgres>) -> sqlx::Result<i64> {
    sqlx::query_scalar("select append_event($1)").bind(body()).fetch_one(pool).await
}

/// Tasks that append events, until told to stop: alone, several in one transaction, and some that are rolled back.
struct Writers {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
}

impl Writers {
    fn start(database: &Database, count: usize) -> Self {
        let pool = PgPoolOptions::new().max_connections(u32::try_from(count).expect("few"));
        let pool = pool.connect_lazy(&database.app_url).expect("a URL");
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for writer in 0..count {
            let (pool, stop, written) = (pool.clone(), stop.clone(), written.clone());
            tasks.spawn(async move {
                let mut round = writer;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    written.fetch_add(write(&pool, round).await, Ordering::SeqCst);
                }
            });
        }
        Self { tasks, stop, written }
    }

    fn written(&self) -> usize {
        self.written.load(Ordering::SeqCst)
    }

    /// Waits until so many more are written.
    async fn write(&self, more: usize) {
        let enough = self.written() + more;
        until("events are written", SOON, async || enough <= self.written()).await;
    }

    async fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.expect("no panic");
        }
        self.written()
    }
}

/// Writes a few events in one transaction, or takes them back. Returns how many are there.
async fn write(pool: &PgPool, round: usize) -> usize {
    let mut transaction = pool.begin().await.expect("a transaction");
    let events = round % 4 + 1;
    for _ in 0..events {
        append(&mut *transaction).await.expect("appended");
    }
    if round.is_multiple_of(5) {
        transaction.rollback().await.expect("rolled back");
        return 0;
    }
    transaction.commit().await.expect("committed");
    events
}

async fn floor(world: &World) -> i64 {
    world.number("select floor from log_scan").await
}

/// The log goes on by an event.
async fn goes_on(world: &World) {
    append(world.broker.pool()).await.expect("appended");
    assert_ne!(world.broker.broker.log.tick().await.expect("it ticks"), 0);
}

// -------------------------------------------------------------------------------------------- processes go away

/// With how long it took from the recording of an event to the checkpoint that covers it.
#[tokio::test]
async fn a_server_that_is_killed_at_any_point_leaves_no_gap_and_no_fork() {
    let (database, site) = site("", "").await;
    let superuser = PgPool::connect(&database.superuser_url).await.expect("it answers");
    let writers = Writers::start(&database, 4);
    for round in 0..4 {
        let node = site.first().await;
        // Not at the same point of its work each time.
        writers.write(150 + 70 * round).await;
        node.kill().await;
    }
    let (first, second) = tokio::join!(site.first(), site.another());
    writers.write(300).await;
    first.kill().await;
    writers.write(300).await;
    let written = writers.stop().await;
    let waiting = "select count(*) from log_waiting";
    until("every event has its place", SOON, async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&superuser).await.expect(waiting) == 0
    })
    .await;
    second.kill().await;

    // Of the last two seconds: before that, nobody was there for a while.
    let lag = "select format('%s events, p50 %s ms, p99 %s ms', count(*), round(1000 * percentile_cont(0.5) within group (order by lag)),
                             round(1000 * percentile_cont(0.99) within group (order by lag)))
                 from (select extract(epoch from (select min(c.signed_at) from log_checkpoint c where c.size > l.index) - l.recorded_at)::float8 as lag
                         from log_leaf l where l.recorded_at > (select max(recorded_at) - interval '2 seconds' from log_leaf)) it";
    let lag: String = sqlx::query_scalar(lag).fetch_one(&superuser).await.expect(lag);
    println!("from recorded to under a checkpoint: {lag}");

    let config = Config::load(&site.config_dir).expect("loaded before");
    let access = Access::new(config.settings.aws.clone(), AwsOptions::default());
    let clock = Clock::default();
    let log = Sequencer::new(&config, &database.sequencer_url, &access, clock.clone());
    let log = log.expect("composed before");
    assert_eq!(log.compare().await.map(|()| "good").expect("none is ahead"), "good");
    let report = check(&export(&log.pool, &clock).await, Options::default());
    assert_eq!((report.verdict(), report.waiting), (Verdict::Good, 0), "{}", report.text());
    let there = "select count(*) from event where type = 'tests.event'";
    let there: i64 = sqlx::query_scalar(there).fetch_one(&superuser).await.expect(there);
    assert_eq!(usize::try_from(there).expect("a count"), written);
    let all: i64 = sqlx::query_scalar("select count(*) from event")
        .fetch_one(&superuser)
        .await
        .expect("a count");
    assert_eq!(i64::try_from(report.entries).expect("a count"), all);
}

/// Ticks and takes checkpoints to the anchor until told to stop, as two tasks of a server do.
fn keep_at_it(broker: &TestBroker, stop: &Arc<AtomicBool>, tasks: &mut JoinSet<usize>) {
    for anchors in [false, true] {
        let (broker, stop) = (broker.broker.clone(), stop.clone());
        tasks.spawn(async move {
            let mut given = 0;
            while !stop.load(Ordering::SeqCst) {
                given += broker.log.tick().await.expect("it ticks");
                if anchors {
                    broker.log.anchor().await.expect("nobody is behind");
                }
                tokio::task::yield_now().await;
            }
            given
        });
    }
}

#[tokio::test]
async fn servers_that_sign_at_once_give_every_event_one_place_and_halt_for_nothing() {
    let world = World::new().await;
    let other = world.broker.replica(world.sts.options()).await;
    world.broker.anchor().await;
    let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    for broker in [&world.broker, &other] {
        keep_at_it(broker, &stop, &mut tasks);
    }
    let writers = Writers::start(&world.broker.database, 4);
    writers.write(3000).await;
    let written = writers.stop().await;
    world.broker.sequence().await;
    stop.store(true, Ordering::SeqCst);
    let mut given = 0;
    while let Some(it) = tasks.join_next().await {
        given += it.expect("no panic");
    }
    let report = world.is_whole().await;
    let entries = usize::try_from(report.entries).expect("a count");
    assert!(written <= entries && given <= entries, "{written} {given} {entries}");
    for broker in [&world.broker, &other] {
        assert!(broker.broker.log.gate().is_ok());
        assert_eq!(broker.broker.log.anchor().await.expect("it is there"), 1);
    }
}

// -------------------------------------------------------------------------------------------- open transactions

async fn open(world: &World) -> (Transaction<'static, Postgres>, i64) {
    let mut transaction = world.broker.pool().begin().await.expect("a transaction");
    let seq = append(&mut *transaction).await.expect("appended");
    (transaction, seq)
}

#[tokio::test]
async fn a_transaction_that_stays_open_holds_nobody_up_and_has_its_place_when_it_ends() {
    let world = World::new().await;
    world.broker.sequence().await;
    let (transaction, seq) = open(&world).await;
    for _ in 0..5 {
        goes_on(&world).await;
        assert!(floor(&world).await < seq);
    }
    let last = "select max(seq) from log_leaf";
    assert!(seq < world.number(last).await, "others went by");
    transaction.commit().await.expect("committed");
    assert_eq!(world.broker.broker.log.tick().await.expect("it ticks"), 1);
    let at = "select seq from log_leaf order by index desc limit 1";
    assert_eq!(world.number(at).await, seq);
    // A transaction of another database holds it up, too.
    until("what is over is behind the floor", SOON, async || {
        goes_on(&world).await;
        seq <= floor(&world).await
    })
    .await;
    world.is_whole().await;
}

/// A dump that was restored into a new cluster: transactions have small numbers there.
#[tokio::test]
async fn a_horizon_of_another_cluster_is_taken_anew() {
    let world = World::new().await;
    world.broker.sequence().await;
    let (transaction, seq) = open(&world).await;
    transaction.rollback().await.expect("rolled back");
    goes_on(&world).await;
    let horizon =
        "update log_scan set seen = greatest(seen, $1), seen_by = '0', horizon = '9999999999'";
    let set = sqlx::query(horizon).bind(seq).execute(&world.superuser).await;
    assert_eq!(set.expect("a superuser may").rows_affected(), 1);
    until("the floor goes on", SOON, async || {
        goes_on(&world).await;
        seq <= floor(&world).await
    })
    .await;
    world.is_whole().await;
}

#[tokio::test]
async fn a_transaction_that_is_taken_back_leaves_a_number_that_nobody_waits_for() {
    let world = World::new().await;
    world.broker.sequence().await;
    let (transaction, seq) = open(&world).await;
    goes_on(&world).await;
    goes_on(&world).await;
    assert!(floor(&world).await < seq);
    transaction.rollback().await.expect("rolled back");
    // A transaction of another database holds it up, too.
    until("what is over is behind the floor", SOON, async || {
        goes_on(&world).await;
        seq <= floor(&world).await
    })
    .await;
    world.is_whole().await;
}

/// The transaction has its id, but no number yet, when the sequencer looks; then others are given numbers before it.
#[tokio::test]
async fn a_number_that_is_taken_late_in_an_old_transaction_is_not_passed_over() {
    let world = World::new().await;
    world.broker.sequence().await;
    let mut old = world.broker.pool().begin().await.expect("a transaction");
    sqlx::query("select pg_current_xact_id()").execute(&mut *old).await.expect("an id");
    for _ in 0..3 {
        goes_on(&world).await;
    }
    let seq = append(&mut *old).await.expect("appended");
    for _ in 0..3 {
        goes_on(&world).await;
        assert!(floor(&world).await < seq);
    }
    old.commit().await.expect("committed");
    world.is_whole().await;
}

/// Its id is larger than any that is over: a snapshot's end is before it.
#[tokio::test]
async fn a_number_that_is_taken_while_the_sequencer_writes_is_not_passed_over() {
    let world = World::new().await;
    world.broker.sequence().await;
    for _ in 0..6 {
        goes_on(&world).await;
        let (transaction, seq) = {
            world.event().await;
            let (block, tick) = held_up(&world).await;
            let open = open(&world).await;
            block.rollback().await.expect("let go");
            assert_eq!(tick.await.expect("no panic").expect("it ticks"), 1);
            open
        };
        for _ in 0..4 {
            goes_on(&world).await;
        }
        assert!(floor(&world).await < seq, "somebody is to come with {seq}");
        transaction.commit().await.expect("committed");
        assert_eq!(world.broker.broker.log.tick().await.expect("it ticks"), 1);
    }
    world.is_whole().await;
}

type Tick = tokio::task::JoinHandle<broker::sequencer::Result<usize>>;

/// A tick that has the right to give places, has an id, and waits to write them.
async fn held_up(world: &World) -> (Transaction<'static, Postgres>, Tick) {
    let mut block = world.superuser.begin().await.expect("a transaction");
    sqlx::query("lock table log_leaf in exclusive mode")
        .execute(&mut *block)
        .await
        .expect("locked");
    let broker = world.broker.broker.clone();
    let tick = tokio::spawn(async move { broker.log.tick().await });
    let waits =
        "select count(*) from pg_locks where not granted and relation = 'log_leaf'::regclass";
    until("it waits", SOON, async || world.number(waits).await == 1).await;
    (block, tick)
}

// -------------------------------------------------------------------------------------- clocks and connections

#[tokio::test]
async fn a_clock_that_is_set_back_changes_the_times_and_not_the_order() {
    let clock = Clock::manual(Clock::default().now());
    let world = World::at(clock.clone(), "").await;
    world.broker.sequence().await;
    for step in [-10, 19, -15, 8] {
        clock.advance(time::Duration::minutes(step));
        world.event().await;
        assert_eq!(world.broker.broker.log.tick().await.expect("it ticks"), 1);
    }
    clock.advance(time::Duration::minutes(-2));
    world.is_whole().await;
    let back = "select count(*) from (select signed_at < lag(signed_at) over (order by size) as it from log_checkpoint) b where it";
    assert_eq!(world.number(back).await, 2, "the clock went back while it signed");
    // A server whose clock is off by more than the verifier allows says so in what it writes.
    clock.advance(time::Duration::hours(-1));
    world.event().await;
    world.broker.sequence().await;
    let report = check(&world.export().await, Options::default());
    let found: Vec<_> = report.findings.iter().map(|it| it.fault.to_string()).collect();
    assert_eq!(found, ["column recorded_at is not what the event's bytes say"]);
}

/// What a pooler or a network does: each of the sequencer's sessions ends, whatever it was at.
const END_SESSIONS: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                             where datname = current_database() and usename = 'broker_sequencer'";

#[tokio::test]
async fn a_session_that_is_lost_between_ticks_or_in_one_loses_no_event() {
    let world = World::new().await;
    world.broker.sequence().await;
    let writers = Writers::start(&world.broker.database, 2);
    let (mut lost, mut went_on) = (0, 0);
    while lost < 20 || went_on < 20 {
        let log = &world.broker.broker.log;
        let (ended, ticked) = tokio::join!(world.number(END_SESSIONS), log.tick());
        lost += ended;
        went_on += i32::from(ticked.is_ok());
        // The pool notices a session that is gone when it is asked for.
        went_on += i32::from(log.tick().await.is_ok());
    }
    writers.stop().await;
    let other = world.broker.replica(world.sts.options()).await;
    whole(&world.superuser, &other).await;
}

#[tokio::test]
async fn a_session_that_is_lost_before_its_commit_has_done_nothing() {
    let world = World::new().await;
    world.broker.sequence().await;
    let before = world.number("select size from log_state").await;
    world.event().await;
    let (block, tick) = held_up(&world).await;
    // Nobody else is let in as long as it is at it, nor waits.
    let other = world.broker.replica(world.sts.options()).await;
    assert_eq!(other.broker.log.tick().await.expect("it is not the leader"), 0);
    assert_eq!(world.number(END_SESSIONS).await.min(1), 1);
    tick.await.expect("no panic").expect_err("its session is lost");
    block.rollback().await.expect("let go");
    assert_eq!(world.number("select size from log_state").await, before);
    let other = world.broker.replica(world.sts.options()).await;
    assert_eq!(other.broker.log.tick().await.expect("it goes on"), 1);
    whole(&world.superuser, &other).await;
}

// --------------------------------------------------------------------------------------------------- many at once

#[tokio::test]
async fn more_events_than_are_taken_at_once_have_their_places_in_order() {
    let world = World::new().await;
    world.broker.sequence().await;
    let before = world.number("select size from log_state").await;
    let many = "select count(append_event(convert_to(jsonb_build_object('id', gen_random_uuid(), 'type', 'tests.event', 'time', now(),
                             'actor', 'broker', 'data', '{}'::jsonb)::text, 'UTF8'))) from generate_series(1, 70000)";
    sqlx::query(many).execute(&world.superuser).await.expect("appended");
    let mut ticks = 0;
    while world.broker.broker.log.tick().await.expect("it ticks") != 0 {
        ticks += 1;
    }
    assert_eq!(ticks, 70_000_usize.div_ceil(4096));
    let report = world.is_whole().await;
    assert_eq!(i64::try_from(report.entries).expect("a count"), before + 70_000);
    let inner = "select count(*) from log_node where level = 1";
    assert_eq!(world.number(inner).await, (before + 70_000) / 256);
    assert_eq!(world.number("select count(*) from log_node where level = 2").await, 1);
    // The stored hashes are those of the tree that was signed: over all levels of tiles.
    let size = report.entries;
    let signed = report.good.expect("signed").size;
    assert_eq!(signed, size);
    let root = world.broker.broker.log.root(size).await.expect("whole");
    let told = "select encode(root, 'base64') from log_checkpoint order by size desc limit 1";
    let told: String = sqlx::query_scalar(told).fetch_one(&world.superuser).await.expect(told);
    assert_eq!(root.to_string(), told);
    let disordered = "select count(*) from (select seq < lag(seq) over (order by index) as it from log_leaf) l where it";
    assert_eq!(world.number(disordered).await, 0);
    let event = "select event_id from log_leaf where index = 66000";
    let event: uuid::Uuid =
        sqlx::query_scalar(event).fetch_one(&world.superuser).await.expect(event);
    let proof = world.broker.broker.log.prove(event).await.expect("whole").expect("there");
    let key = world.key().verifier_key("broker.test/log");
    assert_eq!((proof.index, proof.verify(&key)), (66_000, Ok(())));
}
