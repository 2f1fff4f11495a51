//! The record: every change has its event, in the same transaction, saying the same as its columns; and the views
//! tell the whole story to whoever reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use axum::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::audit::{EventType, Scribe};
use broker::lease::LeaseId;
use broker::statement::{Meaning, canonical, sha256_hex};
use broker::store;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tests::keys::Key;
use tests::sts::{FakeSts, Mood};
use tests::{
    AGENT, Answer, PRODUCTION_OBJECT, STAGING_OBJECT, Setup, TestBroker, production_write,
    wide_budgets,
};
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};
use uuid::Uuid;

/// `seq`, `id`, `type`, `body` and `leaf_hash` of `log_events`.
type LogRow = (i64, Uuid, String, Vec<u8>, Vec<u8>);

/// What is recorded of leases, sessions, logins and tokens; acts of authority have a walk of their own.
const EVENT_TYPES: [&str; 30] = [
    "auth.rejected",
    "budget.exceeded",
    "freeze.created",
    "lease.approved",
    "lease.claim-refused",
    "lease.denied",
    "lease.expired",
    "lease.failed",
    "lease.issued",
    "lease.lapsed",
    "lease.pending",
    "lease.refused",
    "lease.revoked",
    "lease.withdrawn",
    "login.accepted",
    "login.rejected",
    "probe.issuing",
    "role.cut-off",
    "ruleset.in-force",
    "session.dropped",
    "session.expired",
    "session.failed",
    "session.issued",
    "session.issuing",
    "session.redelivered",
    "session.revoking",
    "session.stopped",
    "signature.accepted",
    "signature.rejected",
    "stop.written",
];

const STAGING_ROLE: &str = "arn:aws:iam::000000000000:role/broker-staging";
const PRODUCTION_ROLE: &str = "arn:aws:iam::000000000000:role/broker-production";

const LEASE_ENDS: [&str; 7] =
    ["denied", "refused", "withdrawn", "lapsed", "failed", "expired", "revoked"];

// --------------------------------------------------------------------------------------------------------- the walk

/// A broker whose leases came to every state, in every way.
struct Walk {
    broker: TestBroker,
    /// What became of a lease, and how, to the lease.
    leases: BTreeMap<(&'static str, &'static str), LeaseId>,
}

impl Walk {
    async fn new() -> Self {
        let sts = FakeSts::start().await;
        let broker = TestBroker::new(Setup { settings: wide_budgets(), ..Setup::fake(&sts) }).await;
        let mut walk = Self { broker, leases: BTreeMap::new() };
        walk.people_and_rules_end_some().await;
        walk.the_cloud_ends_some(&sts).await;
        walk.time_ends_some(&sts).await;
        walk.others_go_on().await;
        walk.one_is_over_budget(&sts).await;
        walk.people_stop_some().await;
        walk.aws_is_told().await;
        walk
    }

    fn keep(&mut self, state: &'static str, how: &'static str, id: LeaseId) {
        assert!(self.leases.insert((state, how), id).is_none());
    }

    fn id(&self, state: &'static str, how: &'static str) -> LeaseId {
        self.leases[&(state, how)]
    }

    async fn approved(&self) -> LeaseId {
        let id = self.broker.pending_lease().await;
        let answer = self.broker.approve(id, &self.broker.bob).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        id
    }

    async fn claimed(&self, id: LeaseId) -> LeaseId {
        let answer = self.broker.claim(id).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        id
    }

    async fn people_and_rules_end_some(&mut self) {
        let denied = self.broker.post("/v1/leases", json!({ "scope": "admin" })).await;
        self.keep("denied", "no such scope", lease_id(&denied.body));

        for (how, reason) in [("for a reason", Some("not on a Friday")), ("wordlessly", None)] {
            let id = self.broker.pending_lease().await;
            refuse(&self.broker, id, &self.broker.carol, reason).await;
            self.keep("refused", how, id);
        }
        for (how, id) in [
            ("while it waited", self.broker.pending_lease().await),
            ("when signed", self.approved().await),
            ("when allowed", self.broker.staging_lease().await),
        ] {
            let path = format!("/v1/leases/{id}/withdraw");
            let answer = self.broker.post(&path, json!({ "reason": "not needed" })).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            self.keep("withdrawn", how, id);
        }
    }

    async fn the_cloud_ends_some(&mut self, sts: &FakeSts) {
        sts.set(Mood::Error { status: 403, code: "AccessDenied" });
        let signed = self.approved().await;
        assert!(!self.broker.claim(signed).await.status.is_success());
        self.keep("failed", "refused by the cloud", signed);
        // An unsigned lease may try again; this one does not, and its window passes.
        let unsigned = self.broker.staging_lease().await;
        assert!(!self.broker.claim(unsigned).await.status.is_success());
        self.keep("expired", "without a mint", unsigned);
        sts.set(Mood::Good { now: self.broker.clock.now() });

        // The cloud answers after a sweep has given up waiting.
        let signed = self.approved().await;
        let calls = sts.calls();
        sts.hold().await;
        let give_up = async {
            sts.arrived(calls + 1).await;
            self.broker.clock.advance(Duration::minutes(1));
            assert_eq!(self.broker.broker.sweep().await.expect("swept"), 1);
            sts.release();
        };
        let (claim, ()) = tokio::join!(self.broker.claim(signed), give_up);
        assert_eq!(claim.status, StatusCode::CONFLICT, "{}", claim.body);
        self.keep("failed", "nobody settled it", signed);
    }

    async fn time_ends_some(&mut self, sts: &FakeSts) {
        sts.set(Mood::Good { now: self.broker.clock.now() });
        let leases = [
            ("lapsed", "not signed in time", self.broker.pending_lease().await),
            ("lapsed", "signed and not claimed", self.approved().await),
            ("lapsed", "allowed and not claimed", self.broker.staging_lease().await),
            ("expired", "unsigned", self.claimed(self.broker.staging_lease().await).await),
            ("expired", "signed", self.claimed(self.approved().await).await),
        ];
        for (state, how, id) in leases {
            self.keep(state, how, id);
        }
        assert_eq!(self.broker.broker.sweep().await.expect("swept"), 0, "nothing is due");
        self.broker.clock.advance(Duration::minutes(31));
        sts.set(Mood::Good { now: self.broker.clock.now() });
        // Two sessions, the five leases above, and the one that was never minted.
        assert_eq!(self.broker.broker.sweep().await.expect("swept"), 8);
        assert_eq!(self.broker.broker.sweep().await.expect("swept"), 0, "once");
    }

    /// Leases that are open, and events of what changes no lease.
    async fn others_go_on(&mut self) {
        let pending = self.broker.pending_lease().await;
        let signed = self.claimed(self.approved().await).await;
        let unsigned = self.claimed(self.broker.staging_lease().await).await;
        self.keep("pending", "", pending);
        self.keep("issued", "signed", signed);
        self.keep("issued", "unsigned", unsigned);
        self.claimed(unsigned).await;

        for (key, reason) in [(&self.broker.alice, "sponsor"), (&Key::software(), "unknown-key")] {
            let rejected = self.broker.approve(pending, key).await;
            assert_eq!(rejected.reason(), reason);
        }
        let approved = self.approved().await;
        self.keep("approved", "", approved);
        let path = format!("/v1/leases/{approved}");
        let stranger = self.broker.send(Method::GET, &path, Some("x.y.z"), &[], None).await;
        assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);

        let nonce =
            self.broker.send(Method::POST, "/v1/login/nonce", None, &[], Some(json!({}))).await;
        let nonce = nonce.body["nonce"].as_str().expect("a nonce").to_owned();
        for status in [StatusCode::OK, StatusCode::FORBIDDEN] {
            let body = json!({ "nonce": nonce, "signature": self.broker.bob.sign_login(&nonce) });
            let answer = self.broker.send(Method::POST, "/v1/login", None, &[], Some(body)).await;
            assert_eq!(answer.status, status, "{}", answer.body);
        }
    }

    /// On a server with less room.
    async fn one_is_over_budget(&mut self, sts: &FakeSts) {
        let path = self.broker.config_dir.path().join("broker.toml");
        let wide = std::fs::read_to_string(&path).expect("the configuration");
        std::fs::write(&path, wide.replace("live_leases = 2000", "live_leases = 1"))
            .expect("tight");
        let replica = self.broker.replica(sts.options()).await;
        std::fs::write(&path, wide).expect("as it was");
        let answer = replica.post("/v1/leases", json!({ "scope": "staging-ro" })).await;
        assert_eq!(answer.problem(), "/problems/over-budget", "{}", answer.body);
    }

    /// Two leases are revoked, one of them with a session; another session is frozen, and a freeze has ended.
    async fn people_stop_some(&mut self) {
        let (used, unused) = (self.claimed(self.approved().await).await, self.approved().await);
        let stop = json!({ "reason": "stop" });
        let own = self.broker.post(&format!("/v1/leases/{used}/revoke"), stop.clone()).await;
        let others = as_carol(&self.broker, &format!("/v1/leases/{unused}/revoke"), stop).await;
        for (how, id, answer) in [("by its agent", used, own), ("by operations", unused, others)] {
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            self.keep("revoked", how, id);
        }
        let frozen = self.broker.post("/v1/leases", json!({ "scope": "staging-ro" })).await.id();
        self.keep("issued", "frozen", self.claimed(frozen).await);
        for (kind, target, still) in
            [("environment", "backup", false), ("scope", "staging-ro", true)]
        {
            let body = json!({ "kind": kind, "target": target, "reason": "it runs wild" });
            let answer = as_carol(&self.broker, "/v1/freezes", body).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
            if !still {
                self.broker.thaw().await;
            }
        }
        assert_eq!(self.broker.claim(frozen).await.problem(), "/problems/frozen");
    }

    /// What the server writes of a role whose policy AWS takes, and of one where it has no room.
    async fn aws_is_told(&mut self) {
        let (pool, now) = (self.broker.pool(), self.broker.clock.now());
        let scribe = Scribe { source: "http://localhost:1".to_owned() };
        let take = async |role| {
            store::HeldRole::hold(pool, role).await.expect("asked").expect("nobody else has it")
        };
        let mut held = take(PRODUCTION_ROLE).await;
        let what = held.what_stops(now).await.expect("known");
        let probe = store::new_probe(pool, &scribe, PRODUCTION_ROLE, now).await.expect("written");
        let expires_at = now + Duration::minutes(15);
        store::probe_minted(pool, probe.id, "ASIAPROBE", expires_at).await.expect("written");
        store::probe_works(pool, probe.id, now).await.expect("written");
        let written_at = now + Duration::SECOND;
        held.written(&scribe, &what.policy, &what.unproven, Some(probe.id), written_at)
            .await
            .expect("written");
        let refused_at = now + Duration::milliseconds(2500);
        let stopped = store::probe_refused(pool, &scribe, probe.id, "us-east-1", refused_at).await;
        assert_eq!(stopped.expect("written"), 1);

        take(STAGING_ROLE).await.cut_off(&scribe, now, now).await.expect("written");
        take(STAGING_ROLE).await.failed("IAM refused", None, now).await.expect("written");
    }
}

/// Sends a request as carol, of operations.
async fn as_carol(broker: &TestBroker, path: &str, body: Value) -> Answer {
    let (token, _) = broker.broker.tokens.login_token("carol", broker.clock.now());
    broker.send(Method::POST, path, Some(token.expose_secret()), &[], Some(body)).await
}

fn lease_id(body: &Value) -> LeaseId {
    body["lease_id"].as_str().expect("a lease").parse().expect("an id")
}

async fn refuse(broker: &TestBroker, id: LeaseId, key: &Key, reason: Option<&str>) {
    let signature = key.sign("refuse", &broker.statement(id).await);
    let mut body = json!({ "decision": "refuse", "signature": signature });
    if let Some(reason) = reason {
        body["reason"] = json!(reason);
    }
    let path = format!("/v1/leases/{id}/signatures");
    let answer = broker.send(Method::POST, &path, None, &[], Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
}

/// Rows as the owner reads them, each as JSON.
async fn rows(broker: &TestBroker, sql: &str) -> Vec<Value> {
    let sql = format!("select to_jsonb(it) from ({sql}) it");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&broker.database.owner).await.expect("rows")
}

/// Somebody who reviews.
struct Ops(PgConnection);

impl Ops {
    async fn new(broker: &TestBroker) -> Self {
        Self(PgConnection::connect(&broker.database.ops_url).await.expect("operations connect"))
    }

    async fn rows(&mut self, sql: &str) -> Vec<Value> {
        let sql = format!("select to_jsonb(it) from ({sql}) it");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut self.0).await.expect("rows")
    }

    async fn row(&mut self, sql: &str) -> Value {
        let mut rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.remove(0)
    }
}

// ----------------------------------------------------------------------------------------------------------- events

#[derive(sqlx::FromRow)]
struct Event {
    id: Uuid,
    r#type: String,
    occurred_at: OffsetDateTime,
    actor: String,
    agent: Option<String>,
    sponsor: Option<String>,
    scope: Option<String>,
    lease_id: Option<Uuid>,
    session_id: Option<Uuid>,
    body: Vec<u8>,
    doc: Value,
    leaf_hash: Vec<u8>,
}

#[tokio::test]
async fn every_event_says_in_its_columns_what_its_canonical_body_says() {
    let walk = Walk::new().await;
    let sql =
        "select e.*, l.leaf_hash from event e join log_events l on l.seq = e.seq order by seq";
    let events: Vec<Event> =
        sqlx::query_as(sql).fetch_all(&walk.broker.database.owner).await.unwrap();
    let types: BTreeSet<_> = events.iter().map(|it| it.r#type.as_str()).collect();
    assert_eq!(types, BTreeSet::from(EVENT_TYPES), "the walk leaves out no type");
    assert!(events.iter().any(|it| it.actor == "unknown"), "nor a stranger");
    assert!(events.iter().any(|it| it.actor == "broker"), "nor time");

    let mut ids = BTreeSet::new();
    for event in events {
        let body: Value = serde_json::from_slice(&event.body).unwrap();
        assert_eq!(canonical(&body).unwrap(), event.body, "{body}");
        assert_eq!(event.doc, body);
        let leaf = Sha256::new().chain_update([0]).chain_update(&event.body).finalize();
        assert_eq!(event.leaf_hash, leaf.as_slice());

        let id = |it: Uuid| it.to_string();
        let time = OffsetDateTime::parse(
            body["time"].as_str().unwrap(),
            &time::format_description::well_known::Rfc3339,
        );
        let data = &body["data"];
        assert_eq!(time.unwrap(), event.occurred_at);
        assert_eq!(body["id"], json!(id(event.id)));
        assert_eq!(body["type"], json!(event.r#type));
        assert_eq!(body["actor"], json!(event.actor));
        assert_eq!(data["agent"], json!(event.agent));
        assert_eq!(data["sponsor"], json!(event.sponsor));
        assert_eq!(data["scope"], json!(event.scope));
        assert_eq!(data["lease_id"], json!(event.lease_id.map(id)));
        assert_eq!(data["session_id"], json!(event.session_id.map(id)));

        assert_eq!(
            (&body["specversion"], &body["source"]),
            (&json!("1.0"), &json!("http://localhost:1"))
        );
        let fields: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["actor", "data", "id", "source", "specversion", "time", "type"]);
        assert!(ids.insert(event.id), "an id of its own");
        // Nothing that is known is left out.
        if event.lease_id.is_some() {
            let lease = (&event.agent, &event.sponsor, &event.scope);
            assert!(matches!(lease, (Some(_), Some(_), Some(_))), "{body}");
        }
        assert_eq!(
            event.session_id.is_some(),
            event.r#type.starts_with("session.")
                || event.r#type == "lease.issued"
                || (event.r#type == "lease.failed"),
            "{body}"
        );
    }
}

/// Types that other tests have: the doctor's in `doctor`, a workload's in `workloads`, and those of the log.
const ELSEWHERE: [&str; 7] = [
    "doctor.found",
    "log.partition-dropped",
    "log.partition-exported",
    "log.recovered",
    "log.rotated",
    "log.started",
    "task.resumed",
];

#[test]
fn each_type_of_the_catalogue_is_written_in_some_walk() {
    let walked = EVENT_TYPES.iter().chain(&crate::acts::EVENT_TYPES).chain(&ELSEWHERE);
    let catalogue: BTreeSet<_> = EventType::ALL.iter().map(|it| it.as_str()).collect();
    assert_eq!(walked.copied().collect::<BTreeSet<_>>(), catalogue);
    assert_eq!(catalogue.len(), EventType::ALL.len(), "a type is there twice");
    for it in EventType::ALL {
        assert!(it.when().ends_with('.') && !it.when().contains('|'), "{it:?}: one sentence");
        assert!(it.detail().is_sorted(), "{it:?}");
    }
}

/// What the documentation's table says is what the code writes.
#[test]
fn the_documentation_has_every_type() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md");
    let documentation = std::fs::read_to_string(path).expect("docs/events.md");
    let rows = EventType::ALL.iter().map(|it| {
        let detail: Vec<_> = it.detail().iter().map(|it| format!("`{it}`")).collect();
        format!("| `{}` | {} | {} |\n", it.as_str(), it.when(), detail.join(", "))
    });
    let table = rows.collect::<Vec<_>>().concat();
    assert!(
        documentation.ends_with(&format!("\n| --- | --- | --- |\n{table}")),
        "docs/events.md should end with:\n{table}"
    );
}

/// The answer's receipt is an event's, of this type.
async fn has_receipt(broker: &TestBroker, answer: &Value, kind: &str) {
    let receipt = &answer["receipt"];
    let sql = format!(
        "select type, encode(leaf_hash, 'hex') as leaf_hash from log_events where id = '{}'",
        receipt["event_id"].as_str().unwrap_or_else(|| panic!("{kind}: no receipt in {answer}"))
    );
    let event = rows(broker, &sql).await.remove(0);
    assert_eq!(event, json!({ "type": kind, "leaf_hash": receipt["leaf_hash"] }));
}

#[tokio::test]
async fn whoever_changes_something_gets_the_receipt_of_its_event() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { settings: wide_budgets(), ..Setup::fake(&sts) }).await;
    let key = [("idempotency-key", "k")];
    let body = json!({ "scope": "staging-rw", "deliver": true });
    let ask = async || {
        let body = Some(body.clone());
        broker.send(Method::POST, "/v1/leases", Some(&broker.token), &key, body).await
    };
    let issued = ask().await;
    has_receipt(&broker, &issued.body, "lease.approved").await;
    has_receipt(&broker, &issued.body["credentials"], "session.issued").await;
    // A repeat opens no lease; it hands the same session out again.
    let repeat = ask().await;
    assert_eq!((repeat.id(), &repeat.body["receipt"]), (issued.id(), &Value::Null));
    has_receipt(&broker, &repeat.body["credentials"], "session.redelivered").await;
    let again = broker.claim(issued.id()).await;
    has_receipt(&broker, &again.body, "session.redelivered").await;

    let pending = broker.post("/v1/leases", production_write()).await;
    has_receipt(&broker, &pending.body, "lease.pending").await;
    let signed = broker.approve(pending.id(), &broker.bob).await;
    has_receipt(&broker, &signed.body, "signature.accepted").await;
    has_receipt(&broker, &broker.claim(pending.id()).await.body, "session.issued").await;
    let shown = broker.get(&format!("/v1/leases/{}", pending.id())).await;
    assert_eq!(shown.body["state"], "issued", "{}", shown.body);
    assert!(shown.body.get("receipt").is_none(), "{}", shown.body);

    let unused = broker.staging_lease().await;
    let withdrawn = broker.post(&format!("/v1/leases/{unused}/withdraw"), json!({})).await;
    has_receipt(&broker, &withdrawn.body, "lease.withdrawn").await;
    let revoke = format!("/v1/leases/{}/revoke", issued.id());
    let stop = json!({ "reason": "stop" });
    let revoked = broker.post(&revoke, stop.clone()).await;
    has_receipt(&broker, &revoked.body, "lease.revoked").await;
    let repeat = broker.post(&revoke, stop).await;
    assert_eq!((repeat.status, repeat.body.get("receipt")), (StatusCode::OK, None), "done before");

    let freeze = json!({ "kind": "scope", "target": "staging-ro", "reason": "r" });
    let frozen = as_carol(&broker, "/v1/freezes", freeze).await;
    has_receipt(&broker, &frozen.body, "freeze.created").await;
    let draft = json!({ "kind": "task-start", "agent": "a", "task": "T", "ttl_seconds": 900 });
    let draft = as_carol(&broker, "/v1/statements/drafts", draft).await.body;
    let statement = STANDARD.decode(draft["statement"].as_str().expect("bytes")).expect("base64");
    let meaning = Meaning::TaskStart;
    let signature = broker.carol.sign_as(meaning.namespace(), &meaning.message(&statement));
    let sign = json!({ "id": draft["id"], "decision": "approve", "signature": signature });
    let started = broker.send(Method::POST, "/v1/statements", None, &[], Some(sign)).await;
    has_receipt(&broker, &started.body, "statement.signed").await;
    let end = format!("/v1/tasks/{}/end", draft["id"].as_str().expect("an id"));
    has_receipt(&broker, &as_carol(&broker, &end, json!({})).await.body, "task.ended").await;
}

#[tokio::test]
async fn every_end_of_a_lease_has_its_one_event() {
    let walk = Walk::new().await;
    let ends: BTreeSet<_> = LEASE_ENDS.iter().map(|it| format!("lease.{it}")).collect();
    for ((state, how), id) in &walk.leases {
        assert_eq!(walk.broker.state(*id).await, *state, "{how}");
        let events = walk.broker.events(*id).await;
        let ends: Vec<_> = events.iter().filter(|it| ends.contains(*it)).collect();
        if !LEASE_ENDS.contains(state) {
            assert_eq!(ends, [""; 0], "{state} {how}");
            continue;
        }
        let end = format!("lease.{state}");
        assert_eq!(ends, [&end], "{state} {how}: {events:?}");
        // What becomes of a session that nobody may have any more is told after the end.
        let after = ["session.dropped", "session.revoking", "session.stopped"];
        let told_last = events.iter().rfind(|it| !after.contains(&it.as_str()));
        assert_eq!(told_last, Some(&end), "{state} {how}: {events:?}");

        let sql = format!("select l.ended_at = e.occurred_at as same_time, l.end_reason, e.doc #>> '{{data,detail,why}}' as why
                             from lease l join event e on e.lease_id = l.id and e.type = '{end}' where l.id = '{id}'");
        let row = rows(&walk.broker, &sql).await.remove(0);
        assert_eq!(row["same_time"], true, "{state} {how}");
        match *how {
            "wordlessly" => assert_eq!(row["end_reason"], "refused by a signer"),
            _ => assert_eq!(row["end_reason"], row["why"], "{state} {how}"),
        }
        let silent = *state == "expired";
        assert_eq!(row["end_reason"].is_null(), silent, "{state} {how}: {row}");
    }
    let states: BTreeSet<_> = walk.leases.keys().map(|it| it.0).collect();
    assert!(LEASE_ENDS.iter().all(|it| states.contains(it)));
}

#[tokio::test]
async fn an_end_that_time_brings_says_that_nobody_did_it() {
    let walk = Walk::new().await;
    for (state, how, why) in [
        ("lapsed", "not signed in time", json!("not signed in time")),
        ("lapsed", "signed and not claimed", json!("not claimed in time")),
        ("lapsed", "allowed and not claimed", json!("not claimed in time")),
        ("expired", "unsigned", Value::Null),
        ("expired", "signed", Value::Null),
        ("expired", "without a mint", Value::Null),
    ] {
        let sql = format!(
            "select actor, doc #>> '{{data,detail,why}}' as why from event where lease_id = '{}' and type = 'lease.{state}'",
            walk.id(state, how)
        );
        let row = rows(&walk.broker, &sql).await.remove(0);
        assert_eq!(row, json!({ "actor": "broker", "why": why }), "{how}");
    }
}

// ----------------------------------------------------------------------------------------------------- transactions

/// The one transaction that last wrote these rows and appended these events, the newest of their types.
async fn one_transaction(broker: &TestBroker, id: LeaseId, rows: &[&str], events: &[&str]) -> i64 {
    let mut transactions = Vec::new();
    for table in rows {
        let key = if *table == "lease" { "id" } else { "lease_id" };
        let sql = format!("select xmin::text::bigint from {table} where {key} = $1");
        transactions.push(transaction(broker, sql, id).await);
    }
    for kind in events {
        let sql = format!(
            "select xid::text::bigint % (1::bigint << 32) from event where lease_id = $1 and type = '{kind}' order by seq desc limit 1"
        );
        transactions.push(transaction(broker, sql, id).await);
    }
    assert!(
        transactions.windows(2).all(|it| it[0] == it[1]),
        "{rows:?} {events:?}: {transactions:?}"
    );
    transactions[0]
}

async fn transaction(broker: &TestBroker, sql: String, id: LeaseId) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(id.0)
        .fetch_one(&broker.database.owner)
        .await
        .expect("a transaction")
}

#[tokio::test]
async fn a_change_and_its_event_are_one_transaction() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { settings: wide_budgets(), ..Setup::fake(&sts) }).await;
    let one =
        async |id, rows: &[&str], events: &[&str]| one_transaction(&broker, id, rows, events).await;

    let id = broker.pending_lease().await;
    let requested = one(id, &["lease", "statement"], &["lease.pending"]).await;
    broker.approve(id, &broker.bob).await;
    let signed = one(id, &["lease", "signature"], &["signature.accepted", "lease.approved"]).await;
    // While the cloud is asked, the claim is there with its event; the outcome comes with its own.
    sts.hold().await;
    let while_minting = async {
        sts.arrived(1).await;
        let claimed = one(id, &["lease", "session"], &["session.issuing"]).await;
        sts.release();
        claimed
    };
    let (answer, claimed) = tokio::join!(broker.claim(id), while_minting);
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let settled = one(id, &["lease", "session"], &["session.issued", "lease.issued"]).await;
    broker.claim(id).await;
    let redelivered = one(id, &["session"], &["session.redelivered"]).await;
    broker.clock.advance(Duration::minutes(16));
    broker.broker.sweep().await.unwrap();
    let expired = one(id, &["lease", "session"], &["session.expired", "lease.expired"]).await;
    let all = [requested, signed, claimed, settled, redelivered, expired];
    assert_eq!(BTreeSet::from(all).len(), all.len(), "each its own: {all:?}");

    sts.set(Mood::Error { status: 403, code: "AccessDenied" });
    let id = broker.pending_lease().await;
    broker.approve(id, &broker.bob).await;
    broker.claim(id).await;
    one(id, &["lease", "session"], &["session.failed", "lease.failed"]).await;

    let id = broker.pending_lease().await;
    refuse(&broker, id, &broker.carol, None).await;
    one(id, &["lease", "signature"], &["signature.accepted", "lease.refused"]).await;
    let id = broker.pending_lease().await;
    broker.post(&format!("/v1/leases/{id}/withdraw"), json!({})).await;
    one(id, &["lease"], &["lease.withdrawn"]).await;
    let denied = broker.post("/v1/leases", json!({ "scope": "admin" })).await;
    one(lease_id(&denied.body), &["lease"], &["lease.denied"]).await;
    sts.set(Mood::Good { now: broker.clock.now() });
    let id = broker.staging_lease().await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    broker.post(&format!("/v1/leases/{id}/revoke"), json!({ "reason": "stop" })).await;
    one(id, &["lease", "session"], &["lease.revoked", "session.revoking"]).await;
    let (unsigned, unclaimed) = (broker.pending_lease().await, broker.staging_lease().await);
    one(unclaimed, &["lease"], &["lease.approved"]).await;
    broker.clock.advance(Duration::minutes(31));
    broker.broker.sweep().await.unwrap();
    one(unsigned, &["lease"], &["lease.lapsed"]).await;
    one(unclaimed, &["lease"], &["lease.lapsed"]).await;

    // Asked for and claimed in one commit.
    sts.set(Mood::Good { now: broker.clock.now() });
    sts.hold().await;
    let calls = sts.calls();
    let while_minting = async {
        sts.arrived(calls + 1).await;
        let sql = "select id from lease where state = 'approved' and claimed_at is not null";
        let id: Uuid = sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.unwrap();
        one(LeaseId(id), &["lease", "session"], &["lease.approved", "session.issuing"]).await;
        sts.release();
    };
    let ask = broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true }));
    let (answer, ()) = tokio::join!(ask, while_minting);
    one(answer.id(), &["lease", "session"], &["session.issued", "lease.issued"]).await;
}

#[tokio::test]
async fn a_change_whose_event_cannot_be_written_does_not_happen() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { settings: wide_budgets(), ..Setup::fake(&sts) }).await;
    let (pending, unsigned) = (broker.pending_lease().await, broker.pending_lease().await);
    let (approved, unclaimed) = (broker.pending_lease().await, broker.staging_lease().await);
    broker.approve(approved, &broker.bob).await;
    let stored = async || {
        let mut all = Vec::new();
        let tables = [
            "lease",
            "statement",
            "signature",
            "session",
            "login",
            "\"freeze\"",
            "role_stop",
            "event",
        ];
        for table in tables {
            all.push(
                rows(
                    &broker,
                    &format!("select it as row, xmin::text from {table} it order by it::text"),
                )
                .await,
            );
        }
        all
    };
    let before = stored().await;
    let nonce = broker.send(Method::POST, "/v1/login/nonce", None, &[], Some(json!({}))).await;
    let nonce = nonce.body["nonce"].as_str().unwrap().to_owned();

    broker.as_owner("revoke execute on function append_event(bytea) from broker_app").await;
    let login = json!({ "nonce": nonce, "signature": broker.bob.sign_login(&nonce) });
    let refusal = broker.carol.sign("refuse", &broker.statement(pending).await);
    for answer in [
        broker.post("/v1/leases", json!({ "scope": "staging-rw" })).await,
        broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true })).await,
        broker.post("/v1/leases", json!({ "scope": "admin" })).await,
        broker.post("/v1/leases", production_write()).await,
        broker.approve(pending, &broker.bob).await,
        broker.approve(pending, &broker.alice).await,
        broker.send_signature(pending, "refuse", &refusal).await,
        broker.post(&format!("/v1/leases/{pending}/withdraw"), json!({})).await,
        broker.post(&format!("/v1/leases/{approved}/revoke"), json!({ "reason": "stop" })).await,
        as_carol(&broker, "/v1/freezes", json!({ "kind": "all", "reason": "stop" })).await,
        broker.claim(approved).await,
        broker.claim(unclaimed).await,
        broker.send(Method::POST, "/v1/login", None, &[], Some(login.clone())).await,
    ] {
        assert!(answer.status.is_server_error(), "{} {}", answer.status, answer.body);
    }
    broker.clock.advance(Duration::minutes(31));
    assert!(broker.broker.sweep().await.is_err());
    assert_eq!(stored().await, before);
    assert_eq!(sts.calls(), 0);

    broker.as_owner("grant execute on function append_event(bytea) to broker_app").await;
    assert_eq!(broker.broker.sweep().await.unwrap(), 4, "the control");
    for id in [pending, unsigned, approved, unclaimed] {
        assert_eq!(broker.events(id).await.last().unwrap(), "lease.lapsed");
    }
}

// ------------------------------------------------------------------------------------------------------- partitions

/// Names of the partitions of a month and the next two.
fn three_months(day: Date) -> [String; 3] {
    let next = |it: Date| it.replace_day(28).unwrap() + Duration::days(4);
    let name = |it: Date| it.format(format_description!("event_[year][month]")).unwrap();
    [day, next(day), next(next(day))].map(name)
}

async fn partitions(broker: &TestBroker) -> BTreeSet<String> {
    let sql =
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'event'::regclass";
    let names: Vec<String> =
        sqlx::query_scalar(sql).fetch_all(&broker.database.owner).await.unwrap();
    names.into_iter().collect()
}

/// Today, as PostgreSQL has it: partitions follow its clock, not ours.
async fn today(broker: &TestBroker) -> Date {
    sqlx::query_scalar("select current_date").fetch_one(&broker.database.owner).await.unwrap()
}

async fn sqlstate(broker: &TestBroker, sql: &str) -> String {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&broker.database.owner).await;
    let error = done.expect_err(sql).into_database_error().expect("the database refuses");
    error.code().expect("a SQLSTATE").into_owned()
}

#[tokio::test]
async fn events_land_in_the_partition_of_their_month() {
    let walk = Walk::new().await;
    let there = partitions(&walk.broker).await;
    for month in three_months(today(&walk.broker).await) {
        assert!(there.contains(&month), "{month}: {there:?}");
    }
    let sql = "select tableoid::regclass::text as found, 'event_' || to_char(recorded_at at time zone 'UTC', 'YYYYMM') as month, count(*)
                 from event group by 1, 2";
    let found = rows(&walk.broker, sql).await;
    assert!(!found.is_empty());
    for row in found {
        assert_eq!(row["found"], row["month"]);
    }
    for table in there.iter().map(String::as_str).chain(["event"]) {
        assert_eq!(sqlstate(&walk.broker, &format!("truncate {table}")).await, "23000", "{table}");
    }
}

/// The first day of the month so many months after today's.
async fn month_after(broker: &TestBroker, months: i32) -> Date {
    let sql = "select (date_trunc('month', current_date) + make_interval(months => $1))::date";
    sqlx::query_scalar(sql).bind(months).fetch_one(&broker.database.owner).await.unwrap()
}

/// Writes an event that is recorded on some day.
async fn record_on(broker: &TestBroker, day: Date) -> String {
    broker.staging_lease().await;
    let sql = "insert into event (recorded_at, id, type, occurred_at, actor, body)
               select $1::date, id, type, occurred_at, actor, body from event where type = 'ruleset.in-force' limit 1
               returning tableoid::regclass::text";
    sqlx::query_scalar(sql).bind(day).fetch_one(&broker.database.owner).await.unwrap()
}

#[tokio::test]
async fn a_partition_is_made_once_and_guarded_from_its_first_day() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let day = month_after(&broker, 6).await;
    let make = async |day: Date| {
        sqlx::query("select make_event_partition($1)").bind(day).execute(broker.pool()).await
    };
    let before = partitions(&broker).await;
    make(day).await.unwrap();
    let after = partitions(&broker).await;
    let [name, ..] = three_months(day);
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), [&name]);
    make(day).await.unwrap();
    make(day + Duration::days(27)).await.unwrap();
    assert_eq!(partitions(&broker).await, after);

    assert_eq!(record_on(&broker, day).await, name);
    for sql in [
        format!("truncate {name}"),
        format!("delete from {name}"),
        format!("update {name} set actor = 'broker'"),
        "truncate event".to_owned(),
    ] {
        assert_eq!(sqlstate(&broker, &sql).await, "23000", "{sql}");
    }
    // Whoever holds the server's role cannot fill the schema with them.
    let far = make(day + Duration::days(366)).await.unwrap_err().into_database_error().unwrap();
    assert_eq!(far.code().as_deref(), Some("22023"));
}

#[tokio::test]
async fn on_the_last_day_of_a_long_month_the_next_month_is_prepared_too() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    // A month of 31 days, beyond what is there already, with a shorter one after it.
    let mut last_day = None;
    for months in 4..9 {
        let (first, next) =
            (month_after(&broker, months).await, month_after(&broker, months + 1).await);
        if first.month().length(first.year()) == 31 && next.month().length(next.year()) < 31 {
            last_day = Some(first.replace_day(31).unwrap());
            break;
        }
    }
    let last_day = last_day.expect("one of five");
    store::make_partitions(broker.pool(), last_day.midnight().assume_utc()).await.unwrap();
    let there = partitions(&broker).await;
    for month in three_months(last_day) {
        assert!(there.contains(&month), "{month} of {last_day}: {there:?}");
    }
}

#[tokio::test]
async fn a_month_that_nobody_prepared_does_not_keep_the_next_ones_from_being_prepared() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let day = month_after(&broker, 6).await;
    assert_eq!(record_on(&broker, day).await, "event_default", "its events are not lost");
    // Whether this month can still have its own partition does not matter; the next ones must.
    let _ = store::make_partitions(broker.pool(), day.midnight().assume_utc()).await;
    let there = partitions(&broker).await;
    for month in &three_months(day)[1..] {
        assert!(there.contains(month), "{month}: {there:?}");
    }
}

#[tokio::test]
async fn a_month_is_the_same_month_whatever_time_zone_a_hand_has_set() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let day = month_after(&broker, 6).await;
    let mut connection = PgConnection::connect(&broker.database.app_url).await.unwrap();
    sqlx::raw_sql("set timezone = 'Asia/Tokyo'").execute(&mut connection).await.unwrap();
    sqlx::query("select make_event_partition($1)")
        .bind(day)
        .execute(&mut connection)
        .await
        .unwrap();
    let [name, ..] = three_months(day);
    // The next month's, made by somebody else, meets it without a gap and without an overlap.
    store::make_partitions(broker.pool(), day.midnight().assume_utc()).await.unwrap();
    let sql = "select pg_get_expr(relpartbound, oid) from pg_class where relname = $1";
    let bounds: String =
        sqlx::query_scalar(sql).bind(name).fetch_one(&broker.database.owner).await.unwrap();
    let from = format!("FOR VALUES FROM ('{day} 00:00:00+00')");
    assert!(bounds.starts_with(&from), "{bounds}");
}

// ------------------------------------------------------------------------------------------------------------ views

#[tokio::test]
async fn the_history_of_a_lease_names_its_people_keys_sessions_and_way_back() {
    let sts = FakeSts::start().await;
    let scopes = include_str!("../../config/scopes.toml")
        .replace("assurance = \"present\" }", "count = 2 }");
    let broker = TestBroker::new(Setup { scopes: Some(scopes), ..Setup::fake(&sts) }).await;
    let id = broker.pending_lease().await;
    // In the order in which they signed, and not by name.
    for key in [&broker.carol, &broker.bob] {
        broker.clock.advance(Duration::SECOND);
        assert_eq!(broker.approve(id, key).await.status, StatusCode::OK);
    }
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);

    let mut ops = Ops::new(&broker).await;
    let mut row = ops.row(&format!("select * from lease_history where id = '{id}'")).await;
    let take = |row: &mut Value, name: &str| row.as_object_mut().unwrap().remove(name).expect(name);
    let names = take(&mut row, "session_names");
    assert_eq!(names, json!([sts.last_request()["RoleSessionName"]]));
    assert_eq!(take(&mut row, "statement_sha256"), json!(sha256_hex(&broker.statement(id).await)));
    assert_eq!(take(&mut row, "rules_sha256"), json!(broker.broker.config.sha256));
    let at = |time: &str| json!(format!("2026-01-01T12:{time}+00:00"));
    let expected = json!({
        "id": id, "agent": AGENT, "sponsor": "alice", "actor": null, "task": "T-1",
        "reason": "new worker count", "rollback": "put the old object back",
        "scope": "prod-rw", "environment": "production", "tier": "production-write",
        "account": "000000000000", "role_arn": "arn:aws:iam::000000000000:role/broker-production",
        "actions": ["s3:PutObject"], "resources": [PRODUCTION_OBJECT], "decided_by": ["agents-may-ask"],
        "state": "issued", "end_reason": null,
        "signers": ["carol", "bob"], "key_kinds": ["ssh-ed25519", "ssh-ed25519"], "assurances": ["software", "software"],
        "access_key_ids": ["ASIAFAKEFAKE00000000"],
        "requested_at": at("00:00"), "approved_at": at("00:02"), "issued_at": at("00:02"), "ends_at": at("15:00"), "ended_at": null, "signed": true,
    });
    assert_eq!(row, expected);
}

#[tokio::test]
async fn every_view_answers_on_leases_in_every_state() {
    let walk = Walk::new().await;
    let mut ops = Ops::new(&walk.broker).await;

    let history = ops.rows("select id, state from lease_history order by id").await;
    let mut leases: Vec<_> = walk.leases.iter().map(|((state, _), id)| (*id, *state)).collect();
    leases.sort_unstable();
    let expected: Vec<_> =
        leases.iter().map(|(id, state)| json!({ "id": id, "state": state })).collect();
    assert_eq!(history, expected, "each lease once");

    let pending = walk.id("pending", "");
    let waiting =
        ops.row("select id, signatures_missing, eligible_signers from pending_leases").await;
    assert_eq!(
        waiting,
        json!({ "id": pending, "signatures_missing": 1, "eligible_signers": ["bob", "carol"] })
    );

    let live = ops.rows("select lease_id, state, tier, deliveries, access_key_id is not null as known from live_sessions order by lease_id").await;
    let session = |how, state, tier, deliveries: i32| json!({ "lease_id": walk.id("issued", how), "state": state, "tier": tier, "deliveries": deliveries, "known": true });
    assert_eq!(
        live,
        [
            session("signed", "live", "production-write", 1),
            session("unsigned", "live", "staging-write", 2),
            session("frozen", "revoking", "read-only", 1),
        ]
    );

    let trail = ops.rows("select * from approval_trail order by lease_id, signer").await;
    let decided =
        |id: &LeaseId| trail.iter().filter(|it| it["lease_id"] == json!(id)).collect::<Vec<_>>();
    for ((state, how), id) in &walk.leases {
        let rows = decided(id);
        let by = match (*state, *how) {
            ("refused", _) => Some(("carol", "refuse")),
            ("withdrawn", "when signed")
            | ("lapsed", "signed and not claimed")
            | ("expired" | "issued", "signed") => Some(("bob", "approve")),
            ("failed" | "approved" | "revoked", _) => Some(("bob", "approve")),
            _ => None,
        };
        assert_eq!(rows.len(), usize::from(by.is_some()), "{state} {how}");
        let Some((signer, decision)) = by else { continue };
        let row = rows[0];
        let reason = if *how == "for a reason" { json!("not on a Friday") } else { Value::Null };
        for (column, value) in [
            ("signer", json!(signer)),
            ("decision", json!(decision)),
            ("assurance", json!("software")),
            ("agent", json!(AGENT)),
            ("sponsor", json!("alice")),
            ("system", json!("000000000000")),
            ("environment", json!("production")),
            ("tier", json!("production-write")),
            ("scope", json!("prod-rw")),
            ("actions", json!(["s3:PutObject"])),
            ("resources", json!([PRODUCTION_OBJECT])),
            ("rollback", json!("put the old object back")),
            ("reason", reason),
            ("lease_state", json!(state)),
        ] {
            assert_eq!(row[column], value, "{state} {how}: {column}");
        }
    }

    let activity = ops.row("select * from agent_activity").await;
    let count = |which: &str| walk.leases.keys().filter(|it| it.0 == which).count();
    // One expired without a mint, and one was revoked with a session.
    let issued = count("issued") + count("expired");
    let unsigned = [
        ("denied", "no such scope"),
        ("withdrawn", "when allowed"),
        ("expired", "without a mint"),
        ("lapsed", "allowed and not claimed"),
        ("expired", "unsigned"),
        ("issued", "unsigned"),
        ("issued", "frozen"),
    ];
    for (column, value) in [
        ("agent", json!(AGENT)),
        ("sponsor", json!("alice")),
        ("requests", json!(walk.leases.len())),
        ("issued", json!(issued)),
        ("denied", json!(count("denied"))),
        ("refused", json!(count("refused"))),
        ("needed_signatures", json!(walk.leases.len() - unsigned.len())),
        ("scopes", json!(["admin", "prod-rw", "staging-ro", "staging-rw"])),
        ("first_request", json!("2026-01-01T12:00:00+00:00")),
        ("last_request", json!("2026-01-01T12:32:00+00:00")),
    ] {
        assert_eq!(activity[column], value, "{column}");
    }
}

#[tokio::test]
async fn the_views_of_stopping_say_what_was_stopped_when_and_what_is_in_the_way() {
    let walk = Walk::new().await;
    let mut ops = Ops::new(&walk.broker).await;
    let at = |time: &str| json!(format!("2026-01-01T12:32:{time}+00:00"));

    let freezes = ops.rows("select * from freezes").await;
    let freeze = |kind: &str, target: &str, sessions: i32| json!({ "kind": kind, "target": target, "reason": "it runs wild", "created_by": "carol", "created_at": at("00"), "sessions": sessions, "not_yet_stopped": sessions });
    let mut expected = [freeze("scope", "staging-ro", 1), freeze("environment", "backup", 0)];
    for (expected, (row, by)) in
        expected.iter_mut().zip(freezes.iter().zip([Value::Null, json!("nobody")]))
    {
        assert_eq!(row["thawed_at"].is_null(), by.is_null(), "{row}");
        expected["thawed_by"] = by;
        expected["id"] = row["id"].clone();
        expected["thawed_at"] = row["thawed_at"].clone();
    }
    assert_eq!(freezes, expected, "those that stand first");

    let mut stopped = ops.rows("select * from stopped_sessions").await;
    for row in &mut stopped {
        let row = row.as_object_mut().unwrap();
        assert!(row.remove("id").unwrap().is_string());
        let name = row.remove("session_name").unwrap();
        assert!(name.as_str().unwrap().starts_with(row["lease_id"].as_str().unwrap()), "{name}");
        assert!(row.remove("access_key_id").unwrap().as_str().unwrap().starts_with("ASIA"));
        assert!(row.remove("expires_at").unwrap().is_string());
    }
    let expected = [
        json!({
            "lease_id": walk.id("issued", "frozen"), "agent": AGENT, "sponsor": "alice", "scope": "staging-ro",
            "environment": "staging", "role_arn": STAGING_ROLE, "state": "revoking", "stop_reason": "frozen: it runs wild",
            "freeze_id": freezes[0]["id"], "revoking_at": at("00"), "denied_at": null, "stopped_at": null,
            "stopped_region": null, "seconds_to_deny": null, "seconds_to_stop": null, "last_error": "IAM refused",
        }),
        json!({
            "lease_id": walk.id("revoked", "by its agent"), "agent": AGENT, "sponsor": "alice", "scope": "prod-rw",
            "environment": "production", "role_arn": PRODUCTION_ROLE, "state": "stopped", "stop_reason": "stop",
            "freeze_id": null, "revoking_at": at("00"), "denied_at": at("01"), "stopped_at": at("02.5"),
            "stopped_region": "us-east-1", "seconds_to_deny": 1.000, "seconds_to_stop": 2.500, "last_error": null,
        }),
    ];
    assert_eq!(stopped, expected, "those that AWS may still take first");

    let roles = ops.rows("select * from role_stops order by role_arn").await;
    let backup = "arn:aws:iam::000000000000:role/broker-backup";
    let names: Vec<_> = roles.iter().map(|it| it["role_arn"].as_str().unwrap()).collect();
    assert_eq!(names, [backup, PRODUCTION_ROLE, STAGING_ROLE]);
    let of = |row: usize, columns: [&str; 4]| columns.map(|it| roles[row][it].clone());
    assert!(roles[0]["cut_off"].as_str() > at("00").as_str(), "no mint of then can be missed");
    let written = ["cut_off", "written_at", "next_check_at", "failures"];
    assert_eq!(of(0, written)[1..], [Value::Null, Value::Null, json!(0)]);
    assert_eq!(of(1, written), [Value::Null, at("01"), at("11"), json!(0)]);
    assert_eq!(of(2, written), [at("00"), Value::Null, Value::Null, json!(1)]);
    assert_eq!(
        of(2, ["next_try_at", "last_error", "failures", "cut_off"])[..2],
        [at("01"), json!("IAM refused")]
    );
}

#[tokio::test]
async fn the_timeline_and_the_log_hold_every_event_in_order() {
    let walk = Walk::new().await;
    let mut ops = Ops::new(&walk.broker).await;
    for ((state, how), id) in &walk.leases {
        let timeline = ops
            .rows(&format!("select * from lease_events where lease_id = '{id}' order by seq"))
            .await;
        let types: Vec<_> =
            timeline.iter().map(|it| it["type"].as_str().unwrap().to_owned()).collect();
        assert_eq!(types, walk.broker.events(*id).await, "{state} {how}");
        for row in timeline {
            assert_eq!(row["data"]["lease_id"], json!(id));
            assert_eq!(row["data"]["session_id"], row["session_id"]);
            assert!(row["actor"].is_string() && row["occurred_at"].is_string());
        }
    }
    let log: Vec<LogRow> =
        sqlx::query_as("select seq, id, type, body, leaf_hash from log_events order by seq")
            .fetch_all(&mut ops.0)
            .await
            .unwrap();
    let count: i64 = sqlx::query_scalar("select count(*) from event")
        .fetch_one(&walk.broker.database.owner)
        .await
        .unwrap();
    assert_eq!(i64::try_from(log.len()).unwrap(), count);
    for (_, id, kind, body, leaf) in log {
        assert_eq!(leaf, Sha256::new().chain_update([0]).chain_update(&body).finalize().as_slice());
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["id"], &body["type"]), (&json!(id), &json!(kind)));
    }
}

// --------------------------------------------------------------------------------------------- what did not come true

#[tokio::test]
async fn a_denied_request_is_recorded_with_why() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let rule = broker.config_dir.path().join("policies/rule.cedar");
    std::fs::write(
        rule,
        "@id(\"no-reading\") forbid (principal, action, resource == Scope::\"staging-ro\");",
    )
    .unwrap();
    let strict = broker.replica(sts.options()).await;
    broker.as_owner("insert into \"freeze\" (id, kind, target, reason, created_by, created_at) values (gen_random_uuid(), 'scope', 'prod-ro', 'stop', 'carol', now())").await;
    let nobody = "update person set disabled_at = created_at where handle in ('bob', 'carol')";
    broker.as_owner(nobody).await;

    let mut ops = Ops::new(&broker).await;
    for (body, why, by) in [
        (json!({ "scope": "admin" }), "there is no scope \"admin\"", json!([])),
        (
            json!({ "scope": "staging-rw", "actions": ["s3:DeleteBucket"] }),
            "scope staging-rw: \"s3:DeleteBucket\" is not among the scope's actions",
            json!([]),
        ),
        (
            json!({ "scope": "staging-rw", "resources": ["arn:aws:s3:::prod-app-data/x"] }),
            "scope staging-rw: arn:aws:s3:::prod-app-data/x is not within the scope",
            json!([]),
        ),
        (
            json!({ "scope": "staging-ro", "actions": ["s3:GetObject"], "resources": [STAGING_OBJECT], "reason": "look" }),
            "forbidden by no-reading",
            json!(["no-reading"]),
        ),
        (json!({ "scope": "prod-ro" }), "frozen", json!([])),
        (production_write(), "it needs 1 signatures, and 0 people could sign", json!([])),
    ] {
        let answer = strict.post("/v1/leases", body.clone()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);
        let id = lease_id(&answer.body);
        let row = ops.row(&format!("select * from lease_history where id = '{id}'")).await;
        assert_eq!(row["state"], "denied", "{row}");
        let told = row["end_reason"].as_str().unwrap();
        assert!(told.starts_with(why), "{told:?} is not {why:?}");
        assert_eq!(row["decided_by"], by, "{row}");
        assert_eq!(row["ended_at"], row["requested_at"]);
        for (column, value) in [
            ("agent", json!(AGENT)),
            ("sponsor", json!("alice")),
            ("scope", body["scope"].clone()),
            ("reason", body["reason"].clone()),
            ("rollback", body["rollback"].clone()),
        ] {
            assert_eq!(row[column], value, "{column}");
        }
        // What was asked for, as it was asked for.
        for column in ["actions", "resources"] {
            let asked = if body[column].is_null() { json!([]) } else { body[column].clone() };
            assert_eq!(row[column], asked, "{column}");
        }
        let event = ops
            .row(&format!("select type, actor, data from lease_events where lease_id = '{id}'"))
            .await;
        assert_eq!(
            (&event["type"], &event["actor"]),
            (&json!("lease.denied"), &json!(format!("agent:{AGENT}")))
        );
        assert_eq!(event["data"]["detail"]["why"], row["end_reason"]);
        assert_eq!(event["data"]["detail"]["decided_by"], by);
        assert_eq!(event["data"]["detail"]["rules_sha256"], json!(strict.broker.config.sha256));
    }
    assert_eq!(sts.calls(), 0);
}

/// What was recorded of the newest rejection: who, which key, what they decided, and why it does not count.
async fn last_rejection(broker: &TestBroker, id: LeaseId) -> (String, String, String, String) {
    let sql = "select actor, coalesce(doc #>> '{data,detail,key_fingerprint}', ''), doc #>> '{data,detail,decision}', doc #>> '{data,detail,reason}'
                 from event where lease_id = $1 and type = 'signature.rejected' order by seq desc limit 1";
    sqlx::query_as(sql).bind(id.0).fetch_one(&broker.database.owner).await.expect("a rejection")
}

struct Rejections<'a> {
    broker: &'a TestBroker,
    seen: BTreeSet<String>,
    count: i64,
}

impl Rejections<'_> {
    /// Sends a signature, and finds it rejected and recorded. Who it was is said only of whoever proved to be it.
    async fn expect(
        &mut self,
        id: LeaseId,
        decision: &str,
        signature: &str,
        by: (&str, &str),
        reason: &str,
    ) {
        let (actor, fingerprint) = by;
        let answer = self.broker.send_signature(id, decision, signature).await;
        assert_eq!(
            (answer.status, answer.reason()),
            (StatusCode::FORBIDDEN, reason),
            "{}",
            answer.body
        );
        let recorded = last_rejection(self.broker, id).await;
        let expected =
            (actor.to_owned(), fingerprint.to_owned(), decision.to_owned(), reason.to_owned());
        assert_eq!(recorded, expected);
        let sql = "select count(*) from event where type = 'signature.rejected'";
        let count: i64 =
            sqlx::query_scalar(sql).fetch_one(&self.broker.database.owner).await.unwrap();
        self.count += 1;
        assert_eq!(count, self.count, "{reason}: each once");
        self.seen.insert(reason.to_owned());
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one way to be rejected after another")]
async fn each_rejected_signature_is_recorded_with_its_reason() {
    let sts = FakeSts::start().await;
    let setup = Setup { software_keys: false, settings: wide_budgets(), ..Setup::fake(&sts) };
    let broker = TestBroker::new(setup).await;
    let id = broker.pending_lease().await;
    let statement = broker.statement(id).await;
    let mut rejections = Rejections { broker: &broker, seen: BTreeSet::new(), count: 0 };
    let approve = |key: &Key| key.sign("approve", &statement);
    let enrolled = async |key: &Key| {
        let sql = "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) values ($1, 'bob', $2, 'verified', 'a lie', '2026-01-01')";
        sqlx::query(sql)
            .bind(key.fingerprint())
            .bind(key.public_key())
            .execute(&broker.database.owner)
            .await
            .unwrap();
    };
    let (bob, print) = (&broker.bob, broker.bob.fingerprint());

    // Nobody is named whose signature does not verify.
    let stranger = Key::hardware();
    rejections.expect(id, "approve", "bob says yes", ("unknown", ""), "malformed").await;
    rejections
        .expect(
            id,
            "approve",
            &approve(&stranger),
            ("unknown", &stranger.fingerprint()),
            "unknown-key",
        )
        .await;
    rejections
        .expect(
            id,
            "approve",
            &bob.sign("refuse", &statement),
            ("unknown", &print),
            "wrong-namespace",
        )
        .await;
    rejections.expect(id, "refuse", &approve(bob), ("unknown", &print), "wrong-namespace").await;
    rejections
        .expect(
            id,
            "approve",
            &bob.sign("approve", b"{}"),
            ("unknown", &print),
            "not-this-statement",
        )
        .await;
    rejections
        .expect(id, "approve", &approve(&bob.with_flags(0)), ("unknown", &print), "not-touched")
        .await;
    let foreign = Key::hardware_for("ssh:");
    enrolled(&foreign).await;
    rejections
        .expect(
            id,
            "approve",
            &approve(&foreign),
            ("unknown", &foreign.fingerprint()),
            "wrong-application",
        )
        .await;
    let file = Key::software();
    enrolled(&file).await;
    rejections
        .expect(
            id,
            "approve",
            &approve(&file),
            ("unknown", &file.fingerprint()),
            "assurance-too-low",
        )
        .await;
    broker.as_owner("update person_key set revoked_at = enrolled_at where person = 'bob'").await;
    rejections.expect(id, "approve", &approve(bob), ("unknown", &print), "key-revoked").await;
    broker.as_owner("update person_key set revoked_at = null").await;
    let mut destroy = production_write();
    destroy["scope"] = json!("prod-destructive");
    destroy["actions"] = json!(["s3:DeleteObject"]);
    let destroy = broker.post("/v1/leases", destroy).await.id();
    let touched = bob.with_flags(1).sign("approve", &broker.statement(destroy).await);
    rejections.expect(destroy, "approve", &touched, ("unknown", &print), "not-verified").await;

    // From here on it is known who signed.
    for (key, actor, reason) in
        [(&broker.alice, "person:alice", "sponsor"), (&broker.dave, "person:dave", "not-eligible")]
    {
        for decision in ["approve", "refuse"] {
            let signature = key.sign(decision, &statement);
            rejections.expect(id, decision, &signature, (actor, &key.fingerprint()), reason).await;
        }
    }
    broker.as_owner("update person set disabled_at = created_at where handle = 'bob'").await;
    rejections
        .expect(id, "approve", &approve(bob), ("person:bob", &print), "person-disabled")
        .await;
    broker.as_owner("update person set disabled_at = null").await;
    assert_eq!(broker.approve(id, bob).await.status, StatusCode::OK, "the control");
    rejections.expect(id, "approve", &approve(bob), ("person:bob", &print), "already-signed").await;
    let carol = ("person:carol", &*broker.carol.fingerprint());
    rejections.expect(id, "approve", &approve(&broker.carol), carol, "not-pending").await;
    broker.clock.advance(Duration::minutes(31));
    let late = broker.carol.sign("approve", &broker.statement(destroy).await);
    rejections.expect(destroy, "approve", &late, carol, "too-late").await;

    // All there are but `actor`, whom only a pipeline has, and `stale-nonce`, which is a login's.
    let all = [
        "already-signed",
        "assurance-too-low",
        "key-revoked",
        "malformed",
        "not-eligible",
        "not-pending",
        "not-this-statement",
        "not-touched",
        "not-verified",
        "person-disabled",
        "sponsor",
        "too-late",
        "unknown-key",
        "wrong-application",
        "wrong-namespace",
    ];
    assert_eq!(rejections.seen.iter().map(String::as_str).collect::<Vec<_>>(), all);
}
