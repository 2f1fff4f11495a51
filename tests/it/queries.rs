//! What the pages tell operations to ask: every query of them runs as operations, on a database in which everything has
//! happened, and answers what its page says.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use broker::clock::Clock;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tests::history::{self, PAGES, Query};
use tests::stack::Database;
use tests::sts::{FakeSts, Mood};
use tests::{AGENT, Setup, TestBroker, start_task, wide_budgets};
use time::{Duration, OffsetDateTime};

/// Enough that each way a lease can go is gone several times.
const EVENTS: u64 = 20_000;

fn all() -> Vec<Query> {
    PAGES.into_iter().flat_map(history::queries).collect()
}

/// The query of docs/queries.md that is said to be for this.
fn what_says(about: &str) -> Query {
    let mut queries = history::queries("queries.md");
    queries.retain(|it| it.about.starts_with(about));
    assert_eq!(queries.len(), 1, "{about}");
    queries.remove(0)
}

async fn ops(database: &Database) -> PgConnection {
    PgConnection::connect(&database.ops_url).await.expect("operations connect")
}

/// What operations get, each row as JSON.
async fn ask(ops: &mut PgConnection, sql: &str) -> sqlx::Result<Vec<Value>> {
    let sql = format!("select to_jsonb(it) from ({sql}\n) it");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(ops).await
}

async fn filled() -> Database {
    let database = Database::new().await;
    history::fill(&database, EVENTS).await;
    database
}

// ----------------------------------------------------------------------------------------------- every query of a page

#[tokio::test]
async fn every_query_of_the_pages_answers_operations() {
    let database = filled().await;
    let variables = history::variables(&database).await;
    let mut ops = ops(&database).await;
    let queries = all();
    assert!(queries.len() >= 36, "{}", queries.len());
    let mut silent = Vec::new();
    for query in queries {
        match ask(&mut ops, &query.with(&variables)).await {
            Ok(rows) if !rows.is_empty() => {}
            answer => silent.push(format!("{}, {}: {answer:?}", query.page, query.about)),
        }
    }
    assert_eq!(silent, Vec::<String>::new());
}

#[tokio::test]
async fn every_view_has_an_example_on_a_page() {
    let database = Database::new().await;
    let sql = "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'v'";
    let mut without: Vec<String> =
        sqlx::query_scalar(sql).fetch_all(&database.owner).await.expect("views");
    assert!(without.len() >= 17, "{without:?}");
    let queries = all();
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
    without.retain(|view| {
        !queries.iter().any(|it| it.text.split(|it| !is_name(it)).any(|word| word == view))
    });
    assert_eq!(without, Vec::<String>::new());
}

/// What finds the rows of a query on docs/queries.md. Of the index on a partition PostgreSQL makes up the name.
const FOUND_BY: [(&str, &str); 20] = [
    ("Everything that happened around one agent", "agent_recorded_at_idx"),
    ("Everything that happened around one agent", "type_recorded_at_idx"),
    ("Whose key", "session_by_key"),
    ("Whose key", "probe_by_key"),
    ("Which keys", "session_by_time"),
    ("What is stopped here", "session_open"),
    ("Everything that one person did", "actor_recorded_at_idx"),
    ("What could write", "lease_signed_by_time"),
    ("Who approved or refused", "signature_by_time"),
    ("Pairs who", "signature_by_time"),
    ("How long people took", "signature_by_time"),
    ("Leases that nobody had to sign", "lease_by_time"),
    ("What was denied", "lease_by_time"),
    ("Who was refused and came again", "lease_by_time"),
    ("Who asked for more", "lease_by_time"),
    ("Signatures that did not count", "type_recorded_at_idx"),
    ("Who ran into a budget", "type_recorded_at_idx"),
    ("Tasks that were started", "act_by_kind"),
    ("What changed about people", "act_by_kind"),
    ("What changed about people", "session_of_freeze"),
];

/// Of a small table PostgreSQL reads all, whatever there is; forbidden to, it shows what it does on a large one.
async fn plan(ops: &mut PgConnection, sql: &str) -> String {
    sqlx::raw_sql("set enable_seqscan = off").execute(&mut *ops).await.expect("a setting");
    let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!("explain {sql}")))
        .fetch_all(ops)
        .await
        .expect(sql);
    lines.join("\n")
}

#[tokio::test]
async fn what_a_query_asks_for_is_found_by_the_index_that_was_made_for_it() {
    let database = filled().await;
    let variables = history::variables(&database).await;
    let mut ops = ops(&database).await;
    let mut lost = Vec::new();
    for (about, index) in FOUND_BY {
        let plan = plan(&mut ops, &what_says(about).with(&variables)).await;
        if !plan.contains(index) {
            lost.push(format!("{about}: not by {index}\n{plan}"));
        }
    }
    let of = |page, about: &str| {
        history::queries(page).into_iter().find(|it| it.about == about).expect(about)
    };
    for (query, index) in [
        (of("stopping.md", "In SQL"), "session_by_stop"),
        (of("record.md", "`agent_activity`"), "Index Only Scan using lease_by_agent"),
        (of("record.md", "`lease_history`"), "lease_by_agent"),
        (of("record.md", "`approval_trail`"), "signature_by_time"),
        (of("record.md", "`lease_events`"), "lease_id_seq_idx"),
    ] {
        let plan = plan(&mut ops, &query.with(&variables)).await;
        if !plan.contains(index) {
            lost.push(format!("{}: not by {index}\n{plan}", query.about));
        }
    }
    assert_eq!(lost, Vec::<String>::new());
}

// ------------------------------------------------------------------------------------------------- what they are asked of

/// Each value that a column may have, of every column that may have some only.
#[tokio::test]
async fn the_history_that_they_are_asked_of_has_every_state_of_every_table() {
    let database = filled().await;
    let sql = r"
        select conrelid::regclass::text, m[1], string_to_array(replace(replace(m[2], '''', ''), '::text', ''), ', ')
          from pg_constraint, lateral regexp_match(pg_get_constraintdef(oid), '^CHECK \(\((\w+) = ANY \(ARRAY\[([^\]]*)\]\)\)\)$') as m
         where contype = 'c' and connamespace = 'public'::regnamespace and m is not null";
    let columns: Vec<(String, String, Vec<String>)> =
        sqlx::query_as(sql).fetch_all(&database.owner).await.expect("checks");
    assert!(columns.len() >= 13, "{columns:?}");
    let mut missing = Vec::new();
    for (table, column, values) in columns {
        for value in values {
            let sql = format!("select exists (select from {table} where {column} = $1)");
            let there: bool = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(&value)
                .fetch_one(&database.owner)
                .await
                .expect("an answer");
            if !there {
                missing.push(format!("{table}.{column} = {value}"));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[tokio::test]
async fn a_fill_leaves_every_guard_as_it_was() {
    let database = Database::new().await;
    let sql = "select tgrelid::regclass::text, tgname::text, tgenabled::text from pg_trigger where not tgisinternal order by 1, 2";
    let mut superuser = history::superuser(&database).await;
    let before: Vec<(String, String, String)> =
        sqlx::query_as(sql).fetch_all(&mut superuser).await.expect("triggers");
    history::fill(&database, EVENTS).await;
    let mut after: Vec<(String, String, String)> =
        sqlx::query_as(sql).fetch_all(&mut superuser).await.expect("triggers");
    let partitions: Vec<_> =
        after.extract_if(.., |it| before.iter().all(|had| had.0 != it.0)).collect();
    assert_eq!(before, after);
    assert!(partitions.len() > 20, "thirteen months have guards too: {partitions:?}");
    assert!(partitions.iter().all(|it| it.2 == "A"), "{partitions:?}");
    let left = "select count(*) from pg_namespace where nspname = 'fill'";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut superuser).await.expect("a count");
    assert_eq!(left, 0);
}

#[tokio::test]
async fn those_who_approve_each_others_are_found_and_nobody_else() {
    let database = filled().await;
    let rows = ask(&mut ops(&database).await, &what_says("Pairs who").text).await.unwrap();
    let pairs: Vec<_> = rows.iter().map(|it| (&it["one"], &it["other"])).collect();
    assert_eq!(pairs, [(&json!("alice"), &json!("bob"))]);
}

// -------------------------------------------------------------------------------------------- what a broker really did

/// A broker in the present, so that "yesterday" is.
struct Present {
    broker: TestBroker,
    ops: PgConnection,
    began: OffsetDateTime,
}

impl Present {
    async fn new() -> Self {
        let began = Clock::default().now();
        let sts = FakeSts::with(Mood::Good { now: began }).await;
        let clock = Clock::manual(began);
        let setup = Setup { clock, settings: wide_budgets(), ..Setup::fake(&sts) };
        let broker = TestBroker::new(setup).await;
        let ops = ops(&broker.database).await;
        Self { broker, ops, began }
    }

    /// Asks a query of docs/queries.md about the demo's agent and this time.
    async fn ask(&mut self, about: &str, with: &[(&'static str, &str)]) -> Vec<Value> {
        let at = |it: OffsetDateTime| it.unix_timestamp().to_string();
        let mut variables = BTreeMap::from([("agent", AGENT.to_owned())]);
        for (name, moment) in
            [("since", self.began - Duration::MINUTE), ("until", self.began + Duration::HOUR)]
        {
            let sql = format!("select to_timestamp({})::text", at(moment));
            let text = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.ops).await;
            variables.insert(name, text.expect("a time"));
        }
        variables.extend(with.iter().map(|(name, value)| (*name, (*value).to_owned())));
        ask(&mut self.ops, &what_says(about).with(&variables)).await.expect(about)
    }
}

#[tokio::test]
async fn the_key_in_cloudtrail_leads_to_its_lease_alone() {
    let mut present = Present::new().await;
    let (mut ids, mut keys) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let id = present.broker.staging_lease().await;
        let claim = present.broker.claim(id).await;
        assert_eq!(claim.status, StatusCode::OK, "{}", claim.body);
        keys.push(claim.body["access_key_id"].as_str().expect("a key id").to_owned());
        ids.push(id);
    }
    assert_ne!(keys[0], keys[1]);
    for (id, key) in ids.iter().zip(&keys) {
        let rows = present.ask("Whose key", &[("key", key)]).await;
        let lease: Vec<_> = rows.iter().map(|it| (&it["minted_for"], &it["lease_id"])).collect();
        assert_eq!(lease, [(&json!("lease"), &json!(id))]);
    }
    assert!(present.ask("Whose key", &[("key", "ASIANOBODYS")]).await.is_empty());

    // While they can be used, and neither before nor after.
    for (minutes, usable) in [(-1, 0), (1, 2), (61, 0)] {
        let at = present.began + Duration::minutes(minutes);
        let sql = format!("select to_timestamp({})::text", at.unix_timestamp());
        let at: String =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut present.ops).await.unwrap();
        let rows = present.ask("Which keys", &[("at", &at)]).await;
        assert_eq!(rows.len(), usable, "after {minutes} minutes: {rows:?}");
    }
}

#[tokio::test]
async fn a_timeline_has_all_that_happened_around_an_agent_and_not_what_others_did() {
    let mut present = Present::new().await;
    let broker = &present.broker;
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.alice).await.reason(), "sponsor");
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    let now = broker.clock.now();
    let others =
        start_task(&broker.database, &broker.broker.tokens, "other-agent", "dave", now).await;
    let body = json!({ "scope": "staging-rw" });
    let method = axum::http::Method::POST;
    let answer = broker.send(method.clone(), "/v1/leases", Some(&others), &[], Some(body)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    let (login, _) = broker.broker.tokens.login_token("carol", now);
    let body = json!({ "kind": "agent", "target": AGENT, "reason": "it runs wild" });
    let login = Some(login.expose_secret());
    let answer = broker.send(method, "/v1/freezes", login, &[], Some(body)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);

    let rows = present.ask("Everything that happened around", &[]).await;
    let told: Vec<_> = rows
        .iter()
        .map(|it| (it["type"].as_str().expect("a type"), it["actor"].as_str().expect("an actor")))
        .collect();
    let agent = "agent:demo-agent";
    assert_eq!(
        told,
        [
            ("lease.pending", agent),
            ("signature.rejected", "person:alice"),
            ("signature.accepted", "person:bob"),
            ("lease.approved", "person:bob"),
            ("session.issuing", agent),
            ("session.issued", agent),
            ("lease.issued", agent),
            ("freeze.created", "person:carol"),
            ("session.revoking", "broker"),
        ]
    );
    let stopping = present.ask("What is stopped here", &[]).await;
    assert_eq!(stopping.len(), 1, "{stopping:?}");
    assert_eq!(stopping[0]["stop_reason"], json!("frozen: it runs wild"));
    let rejected = present.ask("Signatures that did not count", &[]).await;
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    let decided = present.ask("Everything that one person did", &[("person", "bob")]).await;
    let types: Vec<_> = decided.iter().map(|it| it["type"].as_str().expect("a type")).collect();
    assert_eq!(types, ["signature.accepted", "lease.approved"]);
}

#[tokio::test]
async fn who_was_refused_and_came_again_with_something_else_is_found() {
    let mut present = Present::new().await;
    let broker = &present.broker;
    // The same again is not something else.
    for _ in 0..2 {
        let denied = broker.post("/v1/leases", json!({ "scope": "admin" })).await;
        assert_eq!(denied.problem(), "/problems/denied", "{}", denied.body);
    }
    let rows = present.ask("Who was refused and came again", &[]).await;
    assert_eq!(rows, Vec::<Value>::new());

    let broker = &present.broker;
    broker.clock.advance(Duration::minutes(5));
    let other = broker.staging_lease().await;
    // Too late to have to do with it.
    broker.clock.advance(Duration::minutes(56));
    let late = broker.post("/v1/leases", json!({ "scope": "staging-ro" })).await;
    assert_eq!(late.status, StatusCode::CREATED, "{}", late.body);
    let rows = present.ask("Who was refused and came again", &[]).await;
    let again: Vec<_> =
        rows.iter().map(|it| (&it["scope"], &it["again"], &it["again_scope"])).collect();
    let (asked, got) = (json!("admin"), json!("staging-rw"));
    assert_eq!(again, [(&asked, &json!(other), &got), (&asked, &json!(other), &got)]);
    let denied = present.ask("What was denied", &[]).await;
    assert_eq!(denied.len(), 2, "{denied:?}");
}
