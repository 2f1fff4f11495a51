//! The harness: real PostgreSQL and an emulator that enforces IAM, started once a run; a database of its own for
//! each test; fakes at the wire only.

pub mod corpus;
pub mod history;
pub mod issuer;
pub mod keys;
pub mod logs;
pub mod mcp;
pub mod oracle;
pub mod program;
pub mod relay;
pub mod site;
pub mod stack;
pub mod sts;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use broker::aws::AwsOptions;
use broker::broker::Broker;
use broker::clock::Clock;
use broker::config::Config;
use broker::dev::PRINCIPALS;
use broker::identity::{TaskGrant, Tokens};
use broker::lease::{Assurance, LeaseId};
use broker::{http, server};
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tower::ServiceExt;
use uuid::Uuid;

use crate::keys::Key;
use crate::stack::Database;
use crate::sts::FakeSts;

pub const AGENT: &str = "demo-agent";
pub const STAGING_OBJECT: &str = "arn:aws:s3:::staging-app-data/tmp/scratch-1.txt";
pub const PRODUCTION_OBJECT: &str = "arn:aws:s3:::prod-app-data/config/app.json";

/// One broker with a database of its own. Nothing runs in the background: tests sweep when they mean to.
pub struct TestBroker {
    pub broker: Arc<Broker>,
    pub clock: Clock,
    pub database: Database,
    pub router: Router,
    /// A task token of `demo-agent`, whose sponsor is alice.
    pub token: String,
    pub alice: Key,
    pub bob: Key,
    pub carol: Key,
    pub dave: Key,
    pub config_dir: TempDir,
}

/// What an answer was.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    async fn of(router: Router, request: Request<Body>) -> Self {
        let answer = router.oneshot(request).await.expect("infallible");
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// The problem's `type`, or nothing.
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }

    pub fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or_default()
    }

    pub fn id(&self) -> LeaseId {
        self.body["id"].as_str().expect("a lease").parse().expect("an id")
    }
}

/// The broker's own, in the demo's account.
const HOME: &str = "[home]\nresources = [\"arn:aws:s3:::broker-*\"]";

/// The rest of table `[log]` that every test has: the anchor is a folder in the configuration's.
const LOG: &str = "[log]\norigin = \"broker.test/log\"\nkey = \"log.pem\"\nwait = \"2s\"\nanchors = [{ kind = \"file\", name = \"folder\", path = \"anchor\" }]";

/// How a test wants its broker.
pub struct Setup {
    pub clock: Clock,
    pub aws: AwsOptions,
    /// Whether plain keys may sign, as in `brokerd dev`; otherwise everybody holds simulated hardware keys.
    pub software_keys: bool,
    /// More of `broker.toml`.
    pub settings: String,
    /// Instead of the repository's `config/scopes.toml`.
    pub scopes: Option<String>,
}

impl Setup {
    /// A clock that stands still and an STS that the test scripts.
    pub fn fake(sts: &FakeSts) -> Self {
        Self {
            clock: Clock::manual(time::macros::datetime!(2026-01-01 12:00 UTC)),
            aws: sts.options(),
            software_keys: true,
            settings: String::new(),
            scopes: None,
        }
    }

    /// Real time and the emulator.
    pub fn real() -> Self {
        Self {
            clock: Clock::default(),
            aws: stack::shared().aws(),
            software_keys: true,
            settings: String::new(),
            scopes: None,
        }
    }
}

impl TestBroker {
    /// A broker over a scripted STS, at a time that stands still.
    pub async fn fake(sts: &FakeSts) -> Self {
        Self::new(Setup::fake(sts)).await
    }

    pub async fn new(setup: Setup) -> Self {
        let database = Database::new().await;
        let config_dir = tempfile::tempdir().expect("a temporary directory");
        write_config(config_dir.path(), "http://localhost:1", &setup);
        let config = Config::load(config_dir.path()).expect("the test configuration is valid");
        let composed = server::compose(config, database.logins(), setup.aws, setup.clock.clone());
        let broker = Box::pin(composed).await.expect("composing does no I/O that can fail");

        let people = People::enrol(&database, setup.software_keys, setup.clock.now()).await;
        let token = start_task(&database, &broker.tokens, AGENT, "alice", setup.clock.now()).await;
        let router = http::router(broker.clone());
        Self {
            broker,
            clock: setup.clock,
            router,
            token,
            alice: people.alice,
            bob: people.bob,
            carol: people.carol,
            dave: people.dave,
            database,
            config_dir,
        }
    }

    /// The pool of the server's own role.
    pub fn pool(&self) -> &PgPool {
        &self.broker.pool
    }

    /// Sends a request as the agent.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(&self.token), &[], Some(body)).await
    }

    /// Reads as the agent.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Some(&self.token), &[], None).await
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        Sender::of(self).send(method, path, token, headers, body).await
    }

    /// Exchanges the token of a workload.
    pub async fn exchange(&self, token: &str) -> Answer {
        self.send_form("/v1/token", issuer::exchange_form(token)).await
    }

    pub async fn send_form(&self, path: &str, form: String) -> Answer {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(form));
        Answer::of(self.router.clone(), request.expect("a request")).await
    }

    /// An unsigned lease on staging, approved and not claimed.
    pub async fn staging_lease(&self) -> LeaseId {
        let answer = self.post("/v1/leases", json!({ "scope": "staging-rw" })).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        answer.id()
    }

    /// A request for a production write that waits for its signature.
    pub async fn pending_lease(&self) -> LeaseId {
        let answer = self.post("/v1/leases", production_write()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
        answer.id()
    }

    /// The bytes that a signer signs.
    pub async fn statement(&self, id: LeaseId) -> Vec<u8> {
        let sql = "select bytes from statement where lease_id = $1";
        sqlx::query_scalar(sql)
            .bind(id.0)
            .fetch_one(&self.database.owner)
            .await
            .expect("a statement")
    }

    /// Sends `key`'s approval of what is stored.
    pub async fn approve(&self, id: LeaseId, key: &Key) -> Answer {
        let signature = key.sign("approve", &self.statement(id).await);
        let answer = self.send_signature(id, "approve", &signature).await;
        // No server is behind us that would.
        if answer.body["tier"] == "destructive" {
            Box::pin(self.anchor()).await;
        }
        answer
    }

    /// Gives every event its place in the log, begins that if need be, and takes the newest checkpoint to the anchor.
    pub async fn anchor(&self) {
        self.sequence().await;
        assert_eq!(self.broker.log.anchor().await.expect("the anchor is there"), 1);
    }

    /// Gives every event its place in the log, and begins that if need be.
    pub async fn sequence(&self) {
        self.broker.log.begin().await.expect("the log begins");
        while self.broker.log.tick().await.expect("the log goes on") != 0 {}
    }

    pub async fn send_signature(&self, id: LeaseId, decision: &str, signature: &str) -> Answer {
        let body = json!({ "decision": decision, "signature": signature });
        self.send(Method::POST, &format!("/v1/leases/{id}/signatures"), None, &[], Some(body)).await
    }

    pub async fn claim(&self, id: LeaseId) -> Answer {
        self.post(&format!("/v1/leases/{id}/credentials"), json!({})).await
    }

    pub async fn state(&self, id: LeaseId) -> String {
        let sql = "select state from lease where id = $1";
        sqlx::query_scalar(sql).bind(id.0).fetch_one(&self.database.owner).await.expect("a lease")
    }

    /// The states of the lease's sessions, oldest first.
    pub async fn sessions(&self, id: LeaseId) -> Vec<String> {
        let sql = "select state from session where lease_id = $1 order by claimed_at, id";
        sqlx::query_scalar(sql).bind(id.0).fetch_all(&self.database.owner).await.expect("sessions")
    }

    /// Types of the lease's events, in order.
    pub async fn events(&self, id: LeaseId) -> Vec<String> {
        let sql = "select type from event where lease_id = $1 order by seq";
        sqlx::query_scalar(sql).bind(id.0).fetch_all(&self.database.owner).await.expect("events")
    }

    /// Runs a statement as the owner: what an administrator's hand could do.
    pub async fn as_owner(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.database.owner).await.expect(sql);
    }

    /// Ends every freeze without a signature, as only an administrator could, who takes the guard away.
    pub async fn thaw(&self) {
        self.as_owner(
            "alter table \"freeze\" disable trigger freeze_guard;
             update \"freeze\" set thawed_at = now(), thawed_by = 'nobody' where thawed_at is null;
             alter table \"freeze\" enable always trigger freeze_guard",
        )
        .await;
    }

    /// A second replica: another process would share only the database, the configuration and STS.
    pub async fn replica(&self, aws: AwsOptions) -> Self {
        Box::pin(self.on(self.database.share(), aws)).await
    }

    /// A server with the same configuration, and its folders, on a database that may be another.
    pub async fn on(&self, database: Database, aws: AwsOptions) -> Self {
        let config = Config::load(self.config_dir.path()).expect("loaded before");
        let composed = server::compose(config, database.logins(), aws, self.clock.clone());
        let broker = Box::pin(composed).await.expect("composed before");
        Self {
            router: http::router(broker.clone()),
            broker,
            clock: self.clock.clone(),
            database,
            token: self.token.clone(),
            alice: self.alice.clone(),
            bob: self.bob.clone(),
            carol: self.carol.clone(),
            dave: self.dave.clone(),
            config_dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }
}

/// Sends to a broker, from a task of its own.
#[derive(Clone)]
pub struct Sender(Router);

impl Sender {
    pub fn of(broker: &TestBroker) -> Self {
        Self(broker.router.clone())
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        Answer::of(self.0.clone(), request.expect("a request")).await
    }
}

/// More of `broker.toml`: budgets that no test uses up. More of table `limits` may follow.
pub fn wide_budgets() -> String {
    format!("[limits]\n{}\n", broker::dev::WIDE_BUDGETS)
}

/// A body that asks for a write to production.
pub fn production_write() -> Value {
    json!({
        "scope": "prod-rw",
        "reason": "new worker count",
        "rollback": "put the old object back",
        "actions": ["s3:PutObject"],
        "resources": [PRODUCTION_OBJECT],
    })
}

/// The demo people, each with a key.
pub struct People {
    pub alice: Key,
    pub bob: Key,
    pub carol: Key,
    pub dave: Key,
}

impl People {
    pub async fn enrol(database: &Database, software: bool, now: OffsetDateTime) -> Self {
        let signers = ["production-signers", "backup-signers"];
        Self {
            alice: enrol(database, "alice", &signers, software, now).await,
            bob: enrol(database, "bob", &signers, software, now).await,
            carol: enrol(
                database,
                "carol",
                &["production-signers", "backup-signers", "ops"],
                software,
                now,
            )
            .await,
            dave: enrol(database, "dave", &[], software, now).await,
        }
    }
}

/// Enrols a person with a new key: a plain one, or simulated hardware. As an operator could, before there are two admins.
pub async fn enrol(
    database: &Database,
    handle: &str,
    groups: &[&str],
    software: bool,
    now: OffsetDateTime,
) -> Key {
    insert_person(&database.owner, handle, groups, software, now).await
}

/// Writes the rows of a person and a new key.
pub async fn insert_person(
    owner: &PgPool,
    handle: &str,
    groups: &[&str],
    software: bool,
    now: OffsetDateTime,
) -> Key {
    let key = if software { Key::software() } else { Key::hardware() };
    let assurance = if software { Assurance::Software } else { Assurance::Verified };
    let sql = "insert into person (handle, display_name, email, groups, created_at) values ($1, $1, $1 || '@example.com', $2, $3) on conflict do nothing";
    let person = sqlx::query(sql).bind(handle).bind(groups).bind(now);
    person.execute(owner).await.expect("enrolled");
    let sql = "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) values ($1, $2, $3, $4, 'made by a test', $5)";
    let enrolled = sqlx::query(sql)
        .bind(key.fingerprint())
        .bind(handle)
        .bind(key.public_key())
        .bind(assurance.as_str())
        .bind(now);
    enrolled.execute(owner).await.expect("enrolled");
    key
}

/// Starts a task and makes its token.
pub async fn start_task(
    database: &Database,
    tokens: &Tokens,
    agent: &str,
    sponsor: &str,
    now: OffsetDateTime,
) -> String {
    let id = Uuid::now_v7();
    let grant = TaskGrant { id, agent, sponsor, task: "T-1", expires_at: now + Duration::hours(8) };
    insert_task(&database.owner, grant, now).await;
    tokens.task_token(grant, now).expose_secret().to_owned()
}

/// Writes a task's row, which nobody signed for.
pub async fn insert_task(owner: &PgPool, task: TaskGrant<'_>, now: OffsetDateTime) {
    let sql = "insert into task (id, agent, sponsor, task, started_at, expires_at) values ($1, $2, $3, $4, $5, $6)";
    let inserted = sqlx::query(sql)
        .bind(task.id)
        .bind(task.agent)
        .bind(task.sponsor)
        .bind(task.task)
        .bind(now)
        .bind(task.expires_at);
    inserted.execute(owner).await.expect("a task");
}

/// Writes a configuration like the repository's, for the emulator's account.
pub fn write_config(dir: &Path, origin: &str, setup: &Setup) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let read = |name: &str| std::fs::read_to_string(repository.join(name)).expect(name);
    let external_id = format!("external_id = \"{}\"", stack::shared().external_id);
    let scopes = setup.scopes.clone().unwrap_or_else(|| read("scopes.toml"));
    let dev = if setup.software_keys { "[dev]\nsoftware_keys = true\n" } else { "" };
    let listen = origin.rsplit(':').next().unwrap_or("1");
    let settings = format!(
        "origin = \"{origin}\"\nlisten = \"127.0.0.1:{listen}\"\ninstance_key = \"instance.pem\"\n{HOME}\n{LOG}\n[aws]\nregion = \"us-east-1\"\n{PRINCIPALS}{}\n{dev}",
        setup.settings
    );
    for name in ["policies", "anchor"] {
        std::fs::create_dir_all(dir.join(name)).expect("a directory");
    }
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect(name);
    write("broker.toml", &settings);
    write_secret(&dir.join("aws.credentials"), &stack::shared().profiles);
    write("scopes.toml", &scopes.replace("external_id = \"demo\"", &external_id));
    for rules in ["policies/agents.cedar", "policies/people.cedar"] {
        write(rules, &read(rules));
    }
    for key in ["instance.pem", "log.pem"] {
        write_secret(&dir.join(key), Tokens::generate_key().expose_secret());
    }
}

/// Writes a file for its owner alone.
pub fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).expect("our own file");
}
