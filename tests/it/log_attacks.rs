//! What somebody with every right in PostgreSQL can do to the log, and who notices: a verifier with the database alone, one who
//! kept a checkpoint elsewhere, a server that starts afterwards, and the one that runs.
//!
//! Each attack has a row. What nobody notices is in the table too: there its columns say so.

use std::collections::BTreeSet;
use std::io::Cursor;

use axum::http::StatusCode;
use broker::audit::{Actor, EventType, Scribe, Subject};
use broker::auditing::write_export;
use broker::clock::Clock;
use broker::lease::LeaseId;
use broker::log::verify::{Finding, MonthFile, Options, Report, Verdict, verify, verify_with};
use broker::log::{Checkpoint, Frontier, Hash, LogKey, SignedCheckpoint, leaf_hash};
use broker::sequencer::LogError;
use serde_json::{Value, json};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tests::sts::{FakeSts, Mood};
use tests::{Setup, TestBroker};
use time::OffsetDateTime;

use crate::anchors::retire;

/// Takes every guard away, as only a superuser can.
const UNGUARD: &str = "do $$
declare
    it text;
begin
    for it in select c.oid::regclass from pg_class c where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace loop
        execute format('alter table %s disable trigger all', it);
    end loop;
end
$$;";

/// A broker whose clock goes, like the database's, and somebody who may do everything there.
pub(crate) struct World {
    pub(crate) broker: TestBroker,
    pub(crate) sts: FakeSts,
    pub(crate) superuser: PgPool,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::at(Clock::default(), "").await
    }

    pub(crate) async fn at(clock: Clock, settings: &str) -> Self {
        let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
        let setup = Setup { clock, settings: settings.to_owned(), ..Setup::fake(&sts) };
        let broker = TestBroker::new(setup).await;
        let superuser = PgPoolOptions::new().max_connections(4);
        let superuser =
            superuser.connect(&broker.database.superuser_url).await.expect("it answers");
        let world = Self { broker, sts, superuser };
        // The people of the tests are there without a word of it.
        tests::logs::tell_keys(&world.broker, &["bob", "carol"]).await;
        world
    }

    async fn tell(&self, kind: EventType, detail: Value) {
        let told = self.broker.broker.tell(kind, Actor::Operator, Subject::default(), detail);
        told.await.expect("recorded");
    }

    /// Something happens.
    pub(crate) async fn event(&self) {
        self.tell(EventType::KeyEnrolled, json!({})).await;
    }

    /// A lease that was signed and issued, and an unsigned one; with checkpoints on the way, and the newest at the anchor.
    async fn story(&self) {
        self.broker.sequence().await;
        let id = self.broker.pending_lease().await;
        self.broker.sequence().await;
        assert_eq!(self.broker.approve(id, &self.broker.bob).await.status, StatusCode::OK);
        self.broker.sequence().await;
        assert_eq!(self.broker.claim(id).await.status, StatusCode::OK);
        self.broker.sequence().await;
        let id = self.broker.staging_lease().await;
        assert_eq!(self.broker.claim(id).await.status, StatusCode::OK);
        self.broker.anchor().await;
    }

    pub(crate) async fn sql(&self, sql: impl Into<String>) -> sqlx::Result<()> {
        let sql = sql.into();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.superuser).await.map(drop)
    }

    /// Runs it with every guard taken away.
    pub(crate) async fn attack(&self, sql: &str) {
        if let Err(error) = self.sql(format!("{UNGUARD}{sql}")).await {
            panic!("{sql}: {error}");
        }
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.superuser).await.expect(sql)
    }

    /// The newest checkpoint, as somebody else has kept it.
    async fn kept(&self) -> SignedCheckpoint {
        let sql = "select note from log_checkpoint order by epoch desc, size desc limit 1";
        let note: String = sqlx::query_scalar(sql).fetch_one(&self.superuser).await.expect(sql);
        SignedCheckpoint::parse(&note).expect("a checkpoint")
    }

    pub(crate) fn key(&self) -> LogKey {
        LogKey::load(&self.broker.config_dir.path().join("log.pem")).expect("the log's key")
    }

    pub(crate) async fn export(&self) -> String {
        export(&self.broker.broker.log.pool, &self.broker.clock).await
    }

    pub(crate) async fn check(&self, anchors: Vec<SignedCheckpoint>) -> Report {
        let key = Some(self.key().verifier_key("broker.test/log"));
        check(&self.export().await, Options { key, anchors, ..Options::default() })
    }

    /// That every event is in the log, once, and everything is as it was signed.
    pub(crate) async fn is_whole(&self) -> Report {
        whole(&self.superuser, &self.broker).await
    }

    /// What a server that starts now does.
    async fn starts(&self) -> &'static str {
        let replica = self.broker.replica(self.sts.options()).await;
        match replica.broker.log.compare().await {
            Ok(()) => "serves",
            Err(error) => kind(&error),
        }
    }

    /// What the one that runs does when the next thing happens.
    async fn goes_on(&self) -> &'static str {
        self.event().await;
        let log = &self.broker.broker.log;
        match log.tick().await {
            Ok(0) => "idle",
            Ok(_) => match log.anchor().await {
                Ok(_) => "signs",
                Err(error) => kind(&error),
            },
            Err(error) => kind(&error),
        }
    }

    /// Takes the log back to its first `size` entries, and everything that it signed since.
    pub(crate) async fn roll_back(&self, size: u64) {
        let mut frontier = Frontier::default();
        let sql = "select leaf_hash from log_leaf where index < $1 order by index";
        let leaves: Vec<Vec<u8>> = sqlx::query_scalar(sql)
            .bind(i64::try_from(size).expect("small"))
            .fetch_all(&self.superuser)
            .await
            .expect(sql);
        for leaf in leaves {
            frontier.append(Hash(leaf.try_into().expect("a hash")), |_| {});
        }
        let frontier = hex::encode(frontier.bytes());
        self.attack(&format!(
            "delete from event where seq in (select seq from log_leaf where index >= {size}) or seq not in (select seq from log_leaf);
             delete from log_leaf where index >= {size};
             delete from log_anchored where size > {size};
             delete from log_checkpoint where size > {size};
             update log_scan set floor = 0, seen = 0, horizon = null;
             update log_state set size = {size}, frontier = '\\x{frontier}'"
        ))
        .await;
    }

    /// Signs every checkpoint that covers the entry of a rotation with that key alone.
    pub(crate) async fn resign_from_rotation(&self, key: &LogKey) {
        self.attack("select 1").await;
        let sql = "select note from log_checkpoint
                    where size > (select l.index from log_leaf l join event e on e.seq = l.seq where e.type = 'log.rotated')";
        let notes: Vec<String> =
            sqlx::query_scalar(sql).fetch_all(&self.superuser).await.expect(sql);
        assert!(!notes.is_empty());
        for note in notes {
            let it = SignedCheckpoint::parse(&note).expect("a checkpoint").checkpoint;
            let sql = "update log_checkpoint set note = $2 where size = $1";
            let changed = sqlx::query(sql)
                .bind(i64::try_from(it.size).expect("small"))
                .bind(it.sign(&[key]).expect("signed").note().to_owned());
            changed.execute(&self.superuser).await.expect(sql);
        }
    }

    /// Changes the event at `index` and computes everything that follows from it anew, signed by `key`.
    async fn rewrite(&self, index: i64, key: &LogKey) {
        self.attack(&format!(
            "update event set body = convert_to(jsonb_set(doc, '{{data,detail,forged}}', 'true')::text, 'UTF8')
              where seq = (select seq from log_leaf where index = {index});
             update log_leaf l set leaf_hash = e.leaf_hash from log_events e where e.seq = l.seq"
        ))
        .await;
        let sql = "select e.body from log_leaf l join event e on e.seq = l.seq order by l.index";
        let bodies: Vec<Vec<u8>> =
            sqlx::query_scalar(sql).fetch_all(&self.superuser).await.expect(sql);
        let mut frontier = Frontier::default();
        for body in bodies {
            frontier.append(leaf_hash(&body), |_| {});
            let (size, root) = (frontier.size(), frontier.root());
            let checkpoint = Checkpoint { origin: "broker.test/log".into(), size, root };
            let signed = checkpoint.sign(&[key]).expect("signed");
            let sql = "update log_checkpoint set root = $2, note = $3 where size = $1";
            let changed = sqlx::query(sql)
                .bind(i64::try_from(size).expect("small"))
                .bind(&root.0[..])
                .bind(signed.note());
            changed.execute(&self.superuser).await.expect(sql);
        }
        let sql = "update log_state set frontier = $1";
        let changed = sqlx::query(sql).bind(frontier.bytes());
        changed.execute(&self.superuser).await.expect(sql);
    }
}

fn kind(error: &LogError) -> &'static str {
    match error {
        LogError::Behind(_) => "halts",
        LogError::Changed | LogError::Checkpoint(_) => "does not sign",
        LogError::OtherKey { .. } => "has another key",
        LogError::Database(_) | LogError::Tree(_) => "fails",
        error => panic!("{error}"),
    }
}

pub(crate) async fn export(pool: &PgPool, clock: &Clock) -> String {
    let mut file = Vec::new();
    write_export(pool, &mut file, clock.now(), &mut |_| ()).await.expect("exported");
    String::from_utf8(file).expect("text")
}

pub(crate) fn check(file: &str, options: Options) -> Report {
    verify(file.as_bytes(), options, |_| ()).expect("it is in memory")
}

/// That every event has its place in the log, once, and all of it is good.
pub(crate) async fn whole(superuser: &PgPool, broker: &TestBroker) -> Report {
    broker.sequence().await;
    let report = check(&export(&broker.broker.log.pool, &broker.clock).await, Options::default());
    assert_eq!(report.verdict(), Verdict::Good, "{}", report.text());
    let sql = "select (select count(*) from event), count(*), count(distinct l.seq), count(distinct l.event_id), min(index), max(index) + 1
                 from log_leaf l join event e on (e.recorded_at, e.seq, e.id) = (l.recorded_at, l.seq, l.event_id)";
    let counts: (i64, i64, i64, i64, i64, i64) =
        sqlx::query_as(sql).fetch_one(superuser).await.expect(sql);
    let all = counts.0;
    assert_eq!(counts, (all, all, all, all, 0, all));
    let entries = i64::try_from(report.entries).expect("small");
    assert_eq!((entries, report.waiting, report.pruned), (all, 0, 0));
    report
}

fn codes(report: &Report) -> BTreeSet<&'static str> {
    report.findings.iter().map(|it| it.fault.code()).collect()
}

/// An attack, and what is seen of it.
struct Row {
    what: &'static str,
    sql: &'static str,
    /// What a verifier finds with the database alone: codes, and the first one's index.
    alone: (&'static [&'static str], Option<u64>),
    /// What it finds besides, with a checkpoint that was kept elsewhere.
    kept: &'static [&'static str],
    /// What a server that starts now does.
    starts: &'static str,
    /// What the one that runs does at its next tick.
    runs: &'static str,
}

/// How many entries the first checkpoint of a story covers.
const FIRST: u64 = 3;

/// Nothing is found.
const NOTHING: (&[&str], Option<u64>) = (&[], None);

const ROWS: [Row; 21] = [
    // Neither hashes old events again: that is what a verifier is for.
    Row {
        what: "an event's body is edited",
        sql: "update event set body = convert_to(jsonb_set(doc, '{data,detail,forged}', 'true')::text, 'UTF8')
               where seq = (select seq from log_leaf where index = 5)",
        alone: (&["body-changed"], Some(5)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "an event is deleted",
        sql: "delete from event where seq = (select seq from log_leaf where index = 1)",
        alone: (&["deleted"], Some(1)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "an event and its leaf are deleted",
        sql: "delete from event where seq = (select seq from log_leaf where index = 1); delete from log_leaf where index = 1",
        alone: (&["gap"], Some(1)),
        kept: &[],
        starts: "fails",
        runs: "fails",
    },
    Row {
        what: "two events change places",
        sql: "update log_leaf set seq = -seq where index in (1, 2);
              update log_leaf l set seq = -o.seq, recorded_at = o.recorded_at, event_id = o.event_id from log_leaf o
               where l.index in (1, 2) and o.index = 3 - l.index",
        alone: (&["body-changed"], Some(1)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "an event's body and its leaf's hash are edited",
        sql: "update event set body = convert_to(jsonb_set(doc, '{data,detail,forged}', 'true')::text, 'UTF8')
               where seq = (select seq from log_leaf where index = 1);
              update log_leaf l set leaf_hash = e.leaf_hash from log_events e where e.seq = l.seq",
        alone: (&["root"], None),
        kept: &["forked"],
        starts: "halts",
        runs: "halts",
    },
    Row {
        what: "the month is truncated",
        sql: "do $$ begin execute 'truncate event_' || to_char(now() at time zone 'UTC', 'YYYYMM'); end $$",
        alone: (&["deleted", "unrecorded"], Some(0)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "the month is detached",
        sql: "do $$ begin execute 'alter table event detach partition event_' || to_char(now() at time zone 'UTC', 'YYYYMM'); end $$",
        alone: (&["deleted", "unrecorded"], Some(0)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "an event's time of recording is moved",
        sql: "update event set recorded_at = recorded_at + interval '1 minute' where seq = (select seq from log_leaf where index = 1)",
        alone: (&["deleted"], Some(1)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "it is moved to another month, with its leaf's",
        sql: "update event set recorded_at = recorded_at + interval '1 month' where seq = (select seq from log_leaf where index = 1);
              update log_leaf l set recorded_at = e.recorded_at from event e where e.seq = l.seq",
        alone: (&["column-differs"], Some(1)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    // As far as clocks may be apart, the database's is nobody's witness but its own: `time` in the body is the server's.
    Row {
        what: "it is moved by a few minutes, with its leaf's",
        sql: "update event set recorded_at = recorded_at + interval '5 minutes' where seq = (select seq from log_leaf where index = 1);
              update log_leaf l set recorded_at = e.recorded_at from event e where e.seq = l.seq",
        alone: NOTHING,
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "an event's number is changed",
        sql: "update event set seq = nextval('event_seq') where seq = (select seq from log_leaf where index = 1)",
        alone: (&["deleted"], Some(1)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    // It is of no use but to look an event's place up; a proof of that place has the event that is there.
    Row {
        what: "a leaf names another event",
        sql: "update log_leaf set event_id = gen_random_uuid() where index = 1",
        alone: NOTHING,
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "an event is inserted below the floor",
        sql: "insert into event (seq, id, type, occurred_at, actor, body)
              select -1, id, d ->> 'type', (d ->> 'time')::timestamptz, d ->> 'actor', convert_to(d::text, 'UTF8')
                from (select gen_random_uuid() as id) i,
                     lateral (select jsonb_build_object('id', id, 'type', 'config.loaded', 'time', now(), 'actor', 'operator', 'data', '{}'::jsonb) as d) d;
              update event set recorded_at = recorded_at - interval '11 seconds' where seq = -1",
        alone: (&["stale"], None),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "the newest checkpoint is deleted",
        sql: "delete from log_anchored; delete from log_checkpoint where size = (select size from log_state)",
        alone: (&["not-covered"], None),
        kept: &[],
        starts: "does not sign",
        runs: "does not sign",
    },
    // It says nothing that the ones after it do not.
    Row {
        what: "an old checkpoint is deleted",
        sql: "delete from log_checkpoint where size = (select min(size) from log_checkpoint)",
        alone: NOTHING,
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "the frontier is changed",
        sql: "update log_state set frontier = set_byte(frontier, 0, 255 - get_byte(frontier, 0))",
        alone: NOTHING,
        kept: &[],
        starts: "does not sign",
        runs: "does not sign",
    },
    Row {
        what: "the log's key is another one",
        sql: "update log_state set key = first_origin || '+00000000+AAAA'",
        alone: NOTHING,
        kept: &[],
        starts: "serves",
        runs: "has another key",
    },
    Row {
        what: "the log began with another key",
        sql: "update log_state set first_key = first_origin || '+00000000+AAAA'",
        alone: (&["not-the-pinned-key"], Some(0)),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "a session is there that nobody asked for",
        sql: "insert into session select (jsonb_populate_record(s, jsonb_build_object('id', gen_random_uuid(), 'session_name', 'by-hand'))).*
                from session s where not signed limit 1",
        alone: (&["unrecorded"], None),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    Row {
        what: "a key was enrolled after it signed",
        sql: "update person_key set enrolled_at = now() + interval '1 hour' where person = 'bob'",
        alone: (&["approval"], None),
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
    // Since when it counts is in the log: the entry that enrols it has to come before.
    Row {
        what: "a key was enrolled long before",
        sql: "update person_key set enrolled_at = enrolled_at - interval '1 year' where person = 'bob'",
        alone: NOTHING,
        kept: &[],
        starts: "serves",
        runs: "signs",
    },
];

impl Row {
    /// What is otherwise than the row says.
    async fn wrong(&self) -> Vec<String> {
        let world = World::new().await;
        world.story().await;
        let kept = world.kept().await;
        assert_eq!(world.check(vec![kept.clone()]).await.verdict(), Verdict::Good);
        let sizes = sizes(&world).await;
        world.attack(self.sql).await;
        let mut wrong = Vec::new();

        let report = world.check(Vec::new()).await;
        let mut expected: BTreeSet<_> = self.alone.0.iter().copied().collect();
        let first = self.alone.1.map(|at| (at, sizes.iter().copied().filter(|it| *it <= at).max()));
        let told = |it: &Finding| (it.at, it.good.as_ref().map(|it| it.size));
        if codes(&report) != expected
            || first.is_some_and(|it| {
                let mut found = report.findings.iter();
                found.find(|it| it.fault.code() == self.alone.0[0]).map(told) != Some(it)
            })
        {
            wrong.push(format!("{}: {first:?}: {}", self.what, report.text()));
        }
        let report = world.check(vec![kept]).await;
        expected.extend(self.kept);
        if codes(&report) != expected {
            wrong.push(format!("{}: with a checkpoint: {}", self.what, report.text()));
        }
        let did = (world.starts().await, world.goes_on().await);
        if did != (self.starts, self.runs) {
            wrong.push(format!("{}: {did:?}", self.what));
        }
        wrong
    }
}

/// How many entries each checkpoint covers.
async fn sizes(world: &World) -> Vec<u64> {
    let sql = "select size from log_checkpoint order by size";
    let sizes: Vec<i64> = sqlx::query_scalar(sql).fetch_all(&world.superuser).await.expect(sql);
    sizes.into_iter().map(|it| u64::try_from(it).expect("a size")).collect()
}

#[tokio::test]
async fn what_a_superuser_does_to_the_log_is_seen_or_said_here_not_to_be() {
    let mut wrong = Vec::new();
    for row in &ROWS {
        wrong.extend(Box::pin(row.wrong()).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each column of an event; the last ones are in no export, as nothing that anybody checks depends on them.
#[tokio::test]
async fn a_column_that_is_edited_without_the_body_is_seen() {
    let changes = [
        ("id", "gen_random_uuid()"),
        ("type", "'lease.denied'"),
        ("occurred_at", "occurred_at + interval '1 second'"),
        ("actor", "'person:mallory'"),
        ("agent", "'other'"),
        ("sponsor", "null"),
        ("scope", "'prod-rw'"),
        ("lease_id", "gen_random_uuid()"),
        ("session_id", "null"),
        ("doc", "doc || '{\"forged\": true}'"),
    ];
    let world = World::new().await;
    world.story().await;
    world
        .attack(
            "alter table event drop constraint columns_are_as_doc; alter table event alter column doc drop expression;
             create table before as select * from event where type = 'session.issued' and scope = 'staging-rw'",
        )
        .await;
    let at = world.number("select l.index from log_leaf l join before b on b.seq = l.seq").await;
    for (column, value) in changes {
        let which = "where seq = (select seq from before)";
        world.attack(&format!("update event set {column} = {value} {which}")).await;
        let report = world.check(Vec::new()).await;
        let told = format!("column {column} is not what the event's bytes say");
        let found = report.findings.iter().find(|it| it.fault.to_string() == told);
        let found = found.unwrap_or_else(|| panic!("{column}: {}", report.text()));
        assert_eq!(i64::try_from(found.at).expect("small"), at, "{column}");
        let back =
            format!("update event e set {column} = b.{column} from before b where e.seq = b.seq");
        world.attack(&back).await;
        assert_eq!(world.check(Vec::new()).await.verdict(), Verdict::Good, "{column}");
    }
    world.attack("update event set xid = '1'").await;
    assert_eq!(world.check(Vec::new()).await.verdict(), Verdict::Good);
}

#[tokio::test]
async fn what_every_other_role_may_do_the_guards_refuse() {
    let world = World::new().await;
    world.story().await;
    let changes = [
        "update event set actor = 'x'",
        "delete from event",
        "truncate event",
        "update log_leaf set index = index + 100",
        "delete from log_leaf",
        "truncate log_leaf",
        "update log_checkpoint set size = size + 1",
        "delete from log_checkpoint",
        "delete from log_anchored",
        "truncate log_node",
        "delete from log_node",
        "update log_state set size = size - 1",
        "update log_state set epoch = 0",
        "update log_state set first_key = 'x'",
        "delete from log_state",
        "delete from log_scan",
        "delete from log_partition",
        "truncate log_partition",
        "insert into log_checkpoint select epoch, size - 1, root, note, signed_at from log_checkpoint order by size desc limit 1",
    ];
    // A transaction each: the role is gone with what was refused.
    for prefix in [
        "",
        "set local session_replication_role = replica;",
        "create role almighty in role pg_write_all_data, pg_read_all_data; set local role almighty;",
    ] {
        for change in changes {
            // Without a row, a guard for each row is silent: there is nothing to lose.
            let seed = "insert into log_node select 1, 0, leaf_hash from log_leaf limit 1 on conflict do nothing;
                        insert into log_partition values ('2020-01-01', 1, 0, 0, sha256(''), now()) on conflict do nothing;";
            let seed =
                if change.contains("node") || change.contains("partition") { seed } else { "" };
            let refused = world.sql(format!("{seed}{prefix}{change}")).await;
            let error = refused.err().unwrap_or_else(|| panic!("{prefix} {change}"));
            let code = error.as_database_error().and_then(DatabaseError::code).unwrap_or_default();
            // That role may write rows, and neither truncate nor call what an event's columns are made with.
            let lacks = prefix.contains("almighty") && code == "42501" && !change.contains("log_");
            assert!(
                code == "23000" || lacks || change.starts_with("truncate"),
                "{prefix} {change}: {error}"
            );
        }
    }
    world.is_whole().await;
}

#[tokio::test]
async fn a_log_that_is_taken_back_is_behind_what_others_have() {
    let world = World::new().await;
    world.story().await;
    let kept = world.kept().await;
    world.roll_back(FIRST).await;
    // The database alone tells the story of then, which was true then; but leases are there that it does not tell of.
    let report = world.check(Vec::new()).await;
    assert_eq!(codes(&report), ["unrecorded"].into(), "{}", report.text());
    world.attack("truncate lease cascade").await;
    assert_eq!(world.check(Vec::new()).await.verdict(), Verdict::Good);
    let report = world.check(vec![kept.clone()]).await;
    assert_eq!(codes(&report), ["behind"].into(), "{}", report.text());
    assert_eq!(report.findings[0].good.as_ref().map(|it| it.size), Some(FIRST));
    assert_eq!((world.starts().await, world.goes_on().await), ("halts", "halts"));
    // The one that runs has halted for good, whatever it is told.
    assert_eq!(world.broker.get("/readyz").await.problem(), "/problems/log-behind");
    assert_eq!(world.broker.broker.log.tick().await.expect("it does nothing"), 0);
    assert_eq!(world.number("select size from log_state").await, 3);
}

#[tokio::test]
async fn a_server_that_never_signed_does_not_go_on_with_a_log_that_was_taken_back() {
    let world = World::new().await;
    world.story().await;
    let follower = world.broker.replica(world.sts.options()).await;
    follower.broker.log.anchor().await.expect("it looks");
    world.roll_back(FIRST).await;
    world.event().await;
    let error = follower.broker.log.tick().await.expect_err("it has seen more");
    assert!(matches!(error, LogError::Behind(_)), "{error}");
    assert_eq!(world.number("select size from log_state").await, 3);
}

#[tokio::test]
async fn a_log_that_is_rewritten_without_its_key_is_not_signed() {
    let world = World::new().await;
    world.story().await;
    let kept = world.kept().await;
    world.rewrite(1, &LogKey::from_bytes(&[7; 32])).await;
    let report = world.check(Vec::new()).await;
    assert_eq!(codes(&report), ["checkpoint", "not-covered"].into(), "{}", report.text());
    assert!(report.good.is_none());
    let report = world.check(vec![kept]).await;
    assert_eq!(codes(&report), ["checkpoint", "forked", "not-covered"].into(), "{}", report.text());
    let did = (world.starts().await, world.goes_on().await);
    assert_eq!(did, ("does not sign", "does not sign"));
}

#[tokio::test]
async fn a_log_that_is_rewritten_with_its_key_is_another_story_than_the_anchors() {
    let world = World::new().await;
    world.story().await;
    let kept = world.kept().await;
    world.rewrite(1, &world.key()).await;
    // Who holds the key and the database, and nobody kept a checkpoint: that is not to be seen, and what anchors are for.
    assert_eq!(world.check(Vec::new()).await.verdict(), Verdict::Good);
    let size = kept.checkpoint.size;
    let report = world.check(vec![kept]).await;
    assert_eq!(codes(&report), ["forked"].into(), "{}", report.text());
    assert_eq!(report.findings[0].at, size);
    assert_eq!((world.starts().await, world.goes_on().await), ("halts", "halts"));
}

#[tokio::test]
async fn a_rewritten_log_that_has_grown_is_seen_at_the_next_look_at_the_anchor() {
    let world = World::new().await;
    world.story().await;
    world.rewrite(1, &world.key()).await;
    // Somebody with the key has signed more, before a server that runs looks: it is larger than what that one has seen.
    let thief = world.broker.replica(world.sts.options()).await;
    world.event().await;
    assert_eq!(thief.broker.log.tick().await.expect("it has not compared"), 1);
    assert_eq!(world.goes_on().await, "halts");
}

#[tokio::test]
async fn another_story_is_seen_by_a_server_that_signed_the_first_one_without_any_anchor() {
    let world = World::new().await;
    world.story().await;
    world.rewrite(1, &world.key()).await;
    let thief = world.broker.replica(world.sts.options()).await;
    world.event().await;
    assert_eq!(thief.broker.log.tick().await.expect("it has not compared"), 1);
    let anchor = world.broker.config_dir.path().join("anchor");
    std::fs::remove_dir_all(anchor).expect("it is away");
    let error = world.broker.broker.log.anchor().await.expect_err("it has seen the first one");
    assert!(error.to_string().contains("this server has seen another story"), "{error}");
    assert!(world.broker.broker.log.gate().is_err(), "it serves nothing more");
}

/// The window: an event that no checkpoint covers yet. At the tick of a server that is a tenth of a second, and as long as
/// nobody signs; an event that waits for longer than ten seconds is `stale` to a verifier. What is changed in it is signed as
/// it is then, and nobody can tell; that the event is gone is seen only if a lease or a session needs it.
#[tokio::test]
async fn an_event_that_is_under_no_checkpoint_yet_is_signed_as_it_is_then() {
    let world = World::new().await;
    world.story().await;
    world.event().await;
    world
        .attack(
            "update event set body = convert_to(jsonb_set(doc, '{data,detail,forged}', 'true')::text, 'UTF8')
              where seq not in (select seq from log_leaf)",
        )
        .await;
    world.is_whole().await;
    let forged = "select count(*) from event where doc -> 'data' -> 'detail' ? 'forged'";
    assert_eq!(world.number(forged).await, 1);
    // A lease's events can be changed, and not left out.
    let id = world.broker.staging_lease().await;
    world.attack("delete from event where seq not in (select seq from log_leaf)").await;
    world.broker.sequence().await;
    let report = world.check(Vec::new()).await;
    assert_eq!(codes(&report), ["unrecorded"].into(), "{id}: {}", report.text());
}

#[tokio::test]
async fn an_approval_that_nobody_gave_is_seen() {
    // A lease that waits for its signature, issued by hand, with the events that should tell of it.
    let forge = |tier: &str| {
        format!(
            "update lease set state = 'issued', approved_at = requested_at, claimed_at = requested_at, issued_at = requested_at
              where id = (select lease_id from log_leaf l join event e on e.seq = l.seq where e.type = 'lease.pending' order by l.index desc limit 1);
             select append_event(convert_to(jsonb_build_object('id', gen_random_uuid(), 'type', t, 'time', now(), 'actor', 'broker', 'data',
                        jsonb_build_object('lease_id', l.id, 'agent', l.agent, 'sponsor', l.sponsor, 'scope', l.scope,
                                           'detail', jsonb_build_object('tier', {tier})))::text, 'UTF8'))
               from lease l, unnest(array['lease.approved', 'lease.issued']) as t where l.state = 'issued' and l.tier = 'production-write'"
        )
    };
    let without = "truncate signature, statement cascade;";
    for (first, tier, found) in [
        ("", "l.tier", &["approval"][..]),
        // The event lies about how dangerous it was.
        ("", "'staging'", &["approval"]),
        (without, "l.tier", &["approval-missing"]),
        (without, "'nobody knows this one'", &["approval-missing"]),
    ] {
        let world = World::new().await;
        world.broker.sequence().await;
        world.broker.pending_lease().await;
        world.broker.sequence().await;
        drop_checks(&world, "lease").await;
        world.attack(&format!("{first}{}", forge(tier))).await;
        world.broker.sequence().await;
        let report = world.check(Vec::new()).await;
        assert_eq!(codes(&report), found.iter().copied().collect(), "{tier}: {}", report.text());
    }
}

async fn drop_checks(world: &World, table: &str) {
    let sql = format!(
        "do $$ declare it text; begin
             for it in select conname from pg_constraint where conrelid = '{table}'::regclass and contype = 'c' loop
                 execute format('alter table {table} drop constraint %I', it);
             end loop;
         end $$"
    );
    world.sql(sql).await.expect("a superuser may");
}

#[tokio::test]
async fn a_signature_that_is_replaced_is_seen() {
    for who in ["dave", "bob"] {
        let world = World::new().await;
        world.story().await;
        let sql = "select lease_id from signature";
        let id: uuid::Uuid = sqlx::query_scalar(sql).fetch_one(&world.superuser).await.expect(sql);
        let statement = world.broker.statement(LeaseId(id)).await;
        // Somebody who was not asked has signed; the one who was has signed something else.
        let (key, bytes) = match who {
            "dave" => (&world.broker.dave, statement),
            _ => (&world.broker.bob, [&statement[..], b" "].concat()),
        };
        world.attack("select 1").await;
        let sql = "update signature set person = $1, fingerprint = $2, signature = $3";
        let changed =
            sqlx::query(sql).bind(who).bind(key.fingerprint()).bind(key.sign("approve", &bytes));
        changed.execute(&world.superuser).await.expect(sql);
        let report = world.check(Vec::new()).await;
        assert!(codes(&report).contains("approval"), "{who}: {}", report.text());
    }
}

/// Only somebody with the server's login can write this; then no verifier could read one line as one entry.
#[tokio::test]
async fn an_event_of_more_than_one_line_is_refused() {
    let world = World::new().await;
    world.story().await;
    let body = json!({ "id": uuid::Uuid::new_v4(), "type": "planted", "time": "2026-01-01T12:00:00Z", "actor": "broker", "data": {} });
    let body = body.to_string().replace("\"data\"", "\n\"data\"");
    let planted = sqlx::query("select append_event($1)").bind(body.into_bytes());
    planted.execute(world.broker.pool()).await.expect_err("it is no line");
    world.is_whole().await;
}

// ------------------------------------------------------------------------------------------------ the exported file

/// The lines of the file's entries, in their order.
fn entries(file: &str) -> Vec<&str> {
    file.lines().filter(|it| it.starts_with("{\"event\":")).collect()
}

/// The file without one of its lines.
fn without(file: &str, line: &str) -> String {
    file.replacen(&format!("{line}\n"), "", 1)
}

#[tokio::test]
async fn an_entry_that_is_left_out_of_a_file_is_a_gap_and_not_counted() {
    let world = World::new().await;
    world.story().await;
    let file = world.export().await;
    let entries = entries(&file);
    for (index, line) in entries.iter().enumerate() {
        let report = check(&without(&file, line), Options::default());
        assert_eq!(report.verdict(), Verdict::NotValid);
        assert_eq!(report.entries, entries.len() as u64 - 1, "{index}: {}", report.text());
        let gap = report.findings.iter().find(|it| it.fault.code() == "gap");
        let gap = gap.unwrap_or_else(|| panic!("{index}: {}", report.text()));
        assert_eq!(gap.at, index as u64, "{}", report.text());
    }
    // One that nothing else needs, and that no checkpoint comes right after: that it is not there is all that there is to say, and
    // nothing after it is good.
    let at = usize::try_from(FIRST).expect("small");
    let after = format!("{}\n{}\n", entries[at], entries[at + 1]);
    assert!(file.contains(&after));
    let report = check(&without(&file, entries[at]), Options::default());
    assert_eq!(codes(&report), ["gap"].into(), "{}", report.text());
    assert_eq!(report.good.map(|it| it.size), Some(FIRST));
}

#[tokio::test]
async fn an_approval_in_a_file_that_is_called_another_persons_is_seen() {
    let world = World::new().await;
    world.story().await;
    let file = world.export().await;
    let line = file.lines().find(|it| it.starts_with("{\"approval\":")).expect("an approval");
    // Another signer, whose own key is in the log; and somebody who signs for nothing.
    for (person, found) in [("carol", &["key"][..]), ("mallory", &["approval", "key"])] {
        let told = format!("\"person\":\"{person}\"");
        let changed = line.replacen("\"person\":\"bob\"", &told, 1);
        assert_ne!(changed, line);
        let report = check(&file.replacen(line, &changed, 1), Options::default());
        assert_eq!(codes(&report), found.iter().copied().collect(), "{}", report.text());
        assert_eq!(report.verdict(), Verdict::NotValid);
    }
}

#[tokio::test]
async fn a_file_whose_origin_is_not_its_keys_name_is_of_another_log() {
    let world = World::new().await;
    world.story().await;
    let file = world.export().await;
    // A key has one name, which its checkpoints bear; by itself, that the header has another is all that there is to say.
    for (what, changed, found) in [
        (
            "\"origin\":\"broker.test/log\"",
            "\"origin\":\"example.com/log\"",
            &["not-covered", "other-log"][..],
        ),
        ("\"key\":\"broker.test/log+", "\"key\":\"example.com/log+", &["other-log"]),
    ] {
        let header = file.lines().next().expect("a header");
        let changed = header.replacen(what, changed, 1);
        assert_ne!(changed, header);
        let report = check(&file.replacen(header, &changed, 1), Options::default());
        assert_eq!(codes(&report), found.iter().copied().collect(), "{what}: {}", report.text());
        let first = &report.findings[0];
        assert_eq!((first.fault.code(), first.at), ("other-log", 0), "{what}");
        assert_eq!(report.verdict(), Verdict::NotValid);
    }
}

/// An event under no checkpoint, as anybody can write one.
fn waiting(kind: EventType, detail: Value, now: OffsetDateTime) -> String {
    let scribe = Scribe { source: "https://broker.test".into() };
    let body = scribe.body(kind, Actor::Operator, Subject::default(), detail, now);
    let body = String::from_utf8(body).expect("text");
    let doc: Value = serde_json::from_str(&body).expect("JSON");
    let columns = json!({ "seq": 1_000_000, "recorded_at": doc["time"], "id": doc["id"], "type": doc["type"],
                          "occurred_at": doc["time"], "actor": doc["actor"] });
    format!("{{\"waiting\":{columns},\"body\":{body}}}\n")
}

/// The file with that many entries from `first` on without their events, as those of a month that was dropped, and with lines before
/// one that begins so.
fn forged(file: &str, pruned: std::ops::Range<usize>, lines: &[String], before: &str) -> String {
    let mut out = String::new();
    let (mut index, mut skip) = (0, false);
    for line in file.lines() {
        if line.starts_with(before) {
            out += &lines.concat();
        }
        if line.starts_with("{\"event\":") {
            skip = pruned.contains(&index);
            index += 1;
            if skip {
                let entry: Value = serde_json::from_str(line).expect("JSON");
                let entry = &entry["event"];
                let it = json!({ "pruned": { "index": entry["index"], "leaf_hash": entry["leaf_hash"] } });
                out += &it.to_string();
                out.push('\n');
                continue;
            }
        }
        // What people signed for what is gone would be about nothing.
        if !skip || !line.starts_with("{\"approval\":") {
            let end = format!("\"waiting\":{}}}}}", lines.len());
            out += &line.replacen("\"waiting\":0}}", &end, 1);
            out.push('\n');
        }
    }
    out
}

const END: &str = "{\"end\":";

#[tokio::test]
async fn a_month_that_only_waiting_events_call_exported_was_not_put_away() {
    let world = World::new().await;
    world.story().await;
    let file = world.export().await;
    let (count, now) = (entries(&file).len(), world.broker.clock.now());
    let exported = |first: usize, last: usize| {
        let detail = json!({ "partition": "event_202602", "events": last - first + 1, "first_index": first,
                             "last_index": last, "sha256": "00".repeat(32) });
        waiting(EventType::LogPartitionExported, detail, now)
    };
    let dropped =
        waiting(EventType::LogPartitionDropped, json!({ "partition": "event_202602" }), now);
    let all = [exported(0, count - 1), dropped.clone()];
    let month = json!({ "partition": "event_202601", "events": count, "first_index": 0, "last_index": count });
    let repeats = json!({ "partition": "event_202602", "before": [month] });
    // The lines themselves are as those of a log where it was.
    let report = check(&forged(&file, 0..0, &all, END), Options::default());
    assert_eq!((report.verdict(), report.waiting), (Verdict::Good, 2), "{}", report.text());

    for lines in [
        &[][..],
        &all[..1],
        &all[1..],
        &all[..],
        &[exported(3, 4), dropped.clone()],
        &[dropped.clone(), exported(3, 4), dropped.clone()],
        // It tells of months that were dropped before it: that counts once it is signed.
        &[waiting(EventType::LogPartitionDropped, repeats, now)],
    ] {
        for before in [END, "{\"event\":{\"index\":3,"] {
            let report = check(&forged(&file, 3..5, lines, before), Options::default());
            let told = (codes(&report), report.verdict(), report.pruned);
            assert_eq!(told, (["deleted"].into(), Verdict::NotValid, 2), "{}", report.text());
            assert_eq!(report.findings[0].at, 3);
        }
    }
    // Whichever it is, and all of them.
    for pruned in (0..count).map(|it| it..it + 1).chain(std::iter::once(0..count)) {
        let report = check(&forged(&file, pruned.clone(), &all, END), Options::default());
        assert!(codes(&report).contains("deleted"), "{pruned:?}: {}", report.text());
    }
}

/// Then there is a file that has the events, and nobody has seen it.
#[tokio::test]
async fn a_month_that_was_exported_and_is_called_dropped_is_missing_until_its_file_is_given() {
    let world = World::new().await;
    world.story().await;
    let today = world.broker.clock.now().date();
    let this = today.replace_day(1).expect("a month");
    let month = retire(&world, this, "this", false);
    month.await.expect("exported");
    world.event().await;
    world.event().await;
    world.broker.anchor().await;
    let file = world.export().await;
    let (count, now) = (entries(&file).len(), world.broker.clock.now());
    let told = entries(&file).iter().position(|it| it.contains("\"log.partition-exported\""));
    let told = told.expect("it is told");
    let partition = format!("event_{}{:02}", this.year(), u8::from(this.month()));
    let exported = |last: usize| {
        let detail = json!({ "partition": partition, "events": last + 1, "first_index": 0, "last_index": last,
                             "sha256": "00".repeat(32) });
        waiting(EventType::LogPartitionExported, detail, now)
    };
    let dropped = waiting(EventType::LogPartitionDropped, json!({ "partition": partition }), now);
    let early = "{\"event\":{\"index\":1,";
    for (pruned, lines, before, found) in [
        (3..5, vec![dropped.clone()], END, "put-away"),
        (3..5, vec![dropped.clone(), dropped.clone()], END, "put-away"),
        // Nobody has exported what comes after, whatever is said of it since; nor does the log tell any more of what is gone.
        (told + 1..count, vec![exported(count), dropped.clone()], END, "deleted"),
        (0..told + 1, vec![dropped.clone()], END, "deleted"),
        // It was not exported yet.
        (3..5, vec![dropped.clone()], early, "deleted"),
        (3..5, vec![], END, "deleted"),
    ] {
        let forged = forged(&file, pruned.clone(), &lines, before);
        let report = check(&forged, Options::default());
        assert_eq!(codes(&report), [found].into(), "{pruned:?}: {}", report.text());
        let verdict = if found == "put-away" { Verdict::Incomplete } else { Verdict::NotValid };
        assert_eq!(report.verdict(), verdict, "{pruned:?}");
        // An older export has them all: what nobody put away was deleted all the same.
        let months: Vec<MonthFile> = vec![Box::new(Cursor::new(file.clone()))];
        let report = verify_with(forged.as_bytes(), months, Options::default(), |_| ());
        let report = report.expect("it is in memory");
        let found: &[_] = if found == "put-away" { &[] } else { &[found] };
        assert_eq!(
            codes(&report),
            found.iter().copied().collect(),
            "{pruned:?}: {}",
            report.text()
        );
        assert_eq!(report.put_away, pruned.len() as u64);
    }
    // Whatever is taken for dropped, no file without it is good.
    for pruned in (0..count).map(|it| it..it + 1).chain(std::iter::once(0..count)) {
        for lines in [vec![dropped.clone()], vec![exported(count), dropped.clone()]] {
            let report = check(&forged(&file, pruned.clone(), &lines, END), Options::default());
            assert_ne!(report.verdict(), Verdict::Good, "{pruned:?}: {}", report.text());
            assert!(!codes(&report).is_disjoint(&["put-away", "deleted"].into()), "{pruned:?}");
        }
    }
}
