//! Two servers on one database, and what happens when a process, a client or the database goes away in the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use broker::clock::Clock;
use broker::dev::postgres::{self, Postgres};
use broker::identity::{TaskGrant, Tokens};
use broker::store;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
use tempfile::TempDir;
use tests::keys::Key;
use tests::program::{
    Reply, Server, dev_dir, free_port, http, listens, request, signal, text, until,
};
use tests::stack::{self, Database};
use tests::sts::{FakeSts, Mood, SECRET_MARK, TOKEN_MARK};
use tests::{
    AGENT, Setup, insert_person, insert_task, production_write, wide_budgets, write_config,
    write_secret,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

/// On a busy machine, too; a long poll takes longer.
const SOON: Duration = Duration::from_secs(20);
const AWAY: (u16, &str) = (503, "/problems/database-unavailable");

/// What servers share: a database, an STS, a configuration and its instance key, and people with security keys.
pub(crate) struct Site {
    sts: FakeSts,
    pub(crate) environment: BTreeMap<String, String>,
    owner: PgPool,
    bob: Key,
    /// A task token of `demo-agent`, whose sponsor is alice.
    token: String,
    pub(crate) config_dir: PathBuf,
    first_port: u16,
    root: TempDir,
}

/// A database as the server's logins and as its owner.
pub(crate) struct Urls {
    app: String,
    sequencer: String,
    admin: String,
}

impl Urls {
    fn of(it: &Database) -> Self {
        let (app, sequencer) = (it.app_url.clone(), it.sequencer_url.clone());
        Self { app, sequencer, admin: it.admin_url.clone() }
    }
}

impl Site {
    async fn new(urls: &Urls, aws: &str, limits: &str) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let config_dir = root.path().join("config");
        let clock = Clock::default();
        let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
        let setup = Setup {
            clock: clock.clone(),
            aws: sts.options(),
            software_keys: false,
            settings: format!("{aws}\n{}{limits}\n", wide_budgets()),
            scopes: None,
        };
        let first_port = free_port().await;
        let origin = format!("http://localhost:{first_port}");
        write_config(&config_dir, &origin, &setup);
        let tokens = Tokens::load(&config_dir.join("instance.pem"), &[], &origin).expect("a key");

        let as_owner = PgPoolOptions::new().max_connections(3).after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql("set role broker_owner").execute(connection).await?;
                Ok(())
            })
        });
        let owner = as_owner.connect_lazy(&urls.admin).expect("a URL");
        let now = clock.now();
        let bob = insert_person(&owner, "bob", &["production-signers"], false, now).await;
        insert_person(&owner, "alice", &["production-signers"], false, now).await;
        let expires_at = now + time::Duration::hours(8);
        let id = Uuid::now_v7();
        let grant = TaskGrant { id, agent: AGENT, sponsor: "alice", task: "T-1", expires_at };
        insert_task(&owner, grant, now).await;

        let environment = [
            ("BROKER_DATABASE_URL", &*urls.app),
            ("BROKER_SEQUENCER_DATABASE_URL", &urls.sequencer),
            ("AWS_ACCESS_KEY_ID", "AKIAFAKEFAKEFAKEFAKE"),
            ("AWS_SECRET_ACCESS_KEY", "fake"),
            ("AWS_ENDPOINT_URL", &sts.endpoint),
        ];
        Self {
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            owner,
            token: tokens.task_token(grant, now).expose_secret().to_owned(),
            sts,
            bob,
            config_dir,
            first_port,
            root,
        }
    }

    /// Starts the server that the origin names.
    pub(crate) async fn first(&self) -> Node<'_> {
        self.serve(self.config_dir.clone(), self.first_port).await
    }

    /// Starts another one: the same configuration, but for where it listens.
    pub(crate) async fn another(&self) -> Node<'_> {
        let port = free_port().await;
        let dir = self.root.path().join(port.to_string());
        std::fs::create_dir_all(dir.join("policies")).expect("a directory");
        for name in [
            "broker.toml",
            "scopes.toml",
            "instance.pem",
            "log.pem",
            "aws.credentials",
            "policies/agents.cedar",
            "policies/people.cedar",
        ] {
            let text = std::fs::read_to_string(self.config_dir.join(name)).expect(name);
            let listen = |port| format!("listen = \"127.0.0.1:{port}\"");
            write_secret(&dir.join(name), &text.replace(&listen(self.first_port), &listen(port)));
        }
        let anchor = self.config_dir.join("anchor");
        std::os::unix::fs::symlink(anchor, dir.join("anchor")).expect("the same folder");
        self.serve(dir, port).await
    }

    async fn serve(&self, config_dir: PathBuf, port: u16) -> Node<'_> {
        let log = self.root.path().join(format!("{}.log", Uuid::new_v4()));
        let config = config_dir.display().to_string();
        let mut server = Server::start(&["serve", "--config", &config], &self.environment, &log);
        until("the server is ready", Duration::from_mins(1), async || {
            if let Ok(Some(status)) = server.child.try_wait() {
                panic!("brokerd serve ended ({status}):\n{}", server.log());
            }
            http(port, "GET", "/readyz", None, None).await.is_ok_and(|it| it.status == 200)
        })
        .await;
        Node { site: self, server, port }
    }

    async fn one<T>(&self, sql: &'static str, lease: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let id: Uuid = lease.parse().expect("an id");
        sqlx::query_scalar(sql).bind(id).fetch_one(&self.owner).await.expect(sql)
    }

    async fn state(&self, lease: &str) -> String {
        self.one("select state from lease where id = $1", lease).await
    }

    /// States of the lease's sessions, in order.
    async fn sessions(&self, lease: &str) -> Vec<String> {
        let sql =
            "select array (select state from session where lease_id = $1 order by claimed_at, id)";
        self.one(sql, lease).await
    }

    /// That the sweep, no earlier than after three seconds, found the lease's only claim lost.
    async fn settled_by_the_sweep(&self, lease: &str) {
        until("the sweep settles the claim", Duration::from_secs(30), async || {
            self.sessions(lease).await == ["failed"]
        })
        .await;
        let sql = "select access_key_id is null and expires_at is null and failure like 'nobody settled the claim%'
                          and claimed_at + interval '3 seconds' < settled_at
                     from session where lease_id = $1";
        assert!(
            self.one::<bool>(sql, lease).await,
            "the sweep settled it, and knows of no credentials"
        );
        let sql = "select count(*) from event where lease_id = $1 and type = 'session.failed' and actor = 'broker'";
        assert_eq!(self.one::<i64>(sql, lease).await, 1);
    }

    /// That no credentials are in a table or in a log.
    async fn holds_no_credentials(&self) {
        let sql = "select string_agg(l::text, '') || string_agg(coalesce(s::text, ''), '') ||
                          (select string_agg(convert_from(e.body, 'utf8'), '') from event e)
                     from lease l left join session s on s.lease_id = l.id";
        let everything: String = sqlx::query_scalar(sql).fetch_one(&self.owner).await.expect(sql);
        assert!(everything.contains(AGENT) && no_secret(&everything));
        for entry in std::fs::read_dir(self.root.path()).expect("our own directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|it| it == "log") {
                assert!(
                    no_secret(&std::fs::read_to_string(&path).expect("a log")),
                    "{}",
                    path.display()
                );
            }
        }
    }
}

fn no_secret(text: &str) -> bool {
    !text.contains(SECRET_MARK) && !text.contains(TOKEN_MARK)
}

/// One running `brokerd serve`.
pub(crate) struct Node<'a> {
    site: &'a Site,
    pub(crate) server: Server,
    port: u16,
}

impl Node<'_> {
    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        http(self.port, method, path, Some(&self.site.token), body.as_ref())
            .await
            .expect("an answer")
    }

    /// An unsigned lease on staging, approved and not claimed.
    async fn staging_lease(&self) -> String {
        let reply = self.send("POST", "/v1/leases", Some(json!({ "scope": "staging-rw" }))).await;
        assert_eq!(reply.status, 201, "{}", reply.body);
        reply.body["id"].as_str().expect("an id").to_owned()
    }

    async fn pending_lease(&self) -> String {
        let reply = self.send("POST", "/v1/leases", Some(production_write())).await;
        assert_eq!(reply.status, 202, "{}", reply.body);
        reply.body["id"].as_str().expect("an id").to_owned()
    }

    /// A lease on production that bob has signed and nobody has claimed.
    async fn signed_lease(&self) -> String {
        let id = self.pending_lease().await;
        let bytes: Vec<u8> =
            self.site.one("select bytes from statement where lease_id = $1", &id).await;
        let body =
            json!({ "decision": "approve", "signature": self.site.bob.sign("approve", &bytes) });
        let reply =
            http(self.port, "POST", &format!("/v1/leases/{id}/signatures"), None, Some(&body))
                .await;
        let reply = reply.expect("an answer");
        assert_eq!(
            (reply.status, &reply.body["state"]),
            (200, &json!("approved")),
            "{}",
            reply.body
        );
        id
    }

    async fn claim(&self, lease: &str) -> Reply {
        self.send("POST", &credentials(lease), Some(json!({}))).await
    }

    /// Claims in the background.
    fn start_claim(&self, lease: &str) -> tokio::task::JoinHandle<std::io::Result<Reply>> {
        let (port, token, path) = (self.port, self.site.token.clone(), credentials(lease));
        tokio::spawn(async move { http(port, "POST", &path, Some(&token), Some(&json!({}))).await })
    }

    /// That the server ends soon after it is told to, while somebody has sent `request` and holds the connection.
    async fn stops_in_spite_of(mut self, request: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("it listens");
        stream.write_all(request.as_bytes()).await.expect("sent");
        // Connections are taken in order: with this answer, the one before is the server's.
        assert_eq!(self.send("GET", "/v1/whoami", None).await.status, 200);
        signal(&self.server.child, "TERM").await;
        let ended = tokio::time::timeout(SOON, self.server.child.wait()).await;
        let ended = ended.expect("it stops, whoever holds a connection").expect("it ends");
        assert!(ended.success(), "{ended}");
    }

    pub(crate) async fn kill(self) {
        assert!(!self.server.stop("KILL").await.success());
    }
}

fn credentials(lease: &str) -> String {
    format!("/v1/leases/{lease}/credentials")
}

pub(crate) async fn site(aws: &str, limits: &str) -> (Database, Site) {
    let database = Database::new().await;
    let site = Site::new(&Urls::of(&database), aws, limits).await;
    (database, site)
}

/// As short as the configuration allows, so that a test need not wait long for the sweep.
async fn hasty_site() -> (Database, Site) {
    site("call_timeout = \"1s\"", "settle_within = \"3s\"").await
}

// ------------------------------------------------------------------------------------------------- two at once

#[tokio::test]
async fn of_eight_claims_at_two_servers_one_mints_and_the_others_hear_why_not() {
    // In batches that a busy machine answers in time: beyond the pool's wait a claim is told to come back.
    const BATCHES: usize = 5;
    const BATCH: usize = 4;
    let (_database, site) = site("call_timeout = \"30s\"", "settle_within = \"90s\"").await;
    let (first, second) = tokio::join!(site.first(), site.another());
    let mut keys = BTreeSet::new();
    let mut lease = String::new();
    for batch in 1..=BATCHES {
        let mut leases = BTreeSet::new();
        for _ in 0..BATCH {
            leases.insert(first.signed_lease().await);
        }
        // STS answers nobody until everybody who lost has been told: no claim can be served from a finished one.
        site.sts.hold().await;
        let mut claims = JoinSet::new();
        for lease in &leases {
            for node in [&first, &second].repeat(4) {
                let claim = node.start_claim(lease);
                let lease = lease.clone();
                claims.spawn(
                    async move { (lease, claim.await.expect("no panic").expect("an answer")) },
                );
            }
            for _ in 0..7 {
                let (loser, reply) =
                    claims.join_next().await.expect("more claims").expect("no panic");
                assert_eq!(
                    (reply.status, reply.problem()),
                    (409, "/problems/already-issued"),
                    "{}",
                    reply.body
                );
                assert!(loser == *lease && no_secret(&reply.body.to_string()), "{}", reply.body);
            }
        }
        site.sts.arrived(batch * BATCH).await;
        site.sts.release();
        let mut winners = BTreeSet::new();
        while let Some(claim) = claims.join_next().await {
            let (lease, reply) = claim.expect("no panic");
            assert_eq!(reply.status, 200, "{}", reply.body);
            keys.insert(reply.body["access_key_id"].to_string());
            winners.insert(lease);
        }
        assert_eq!(winners, leases, "one winner for each lease");
        for lease in &leases {
            let stands = (site.state(lease).await, site.sessions(lease).await);
            assert_eq!(stands, ("issued".into(), vec!["live".to_owned()]));
        }
        lease = leases.pop_last().expect("a lease");
    }
    let all = BATCHES * BATCH;
    assert_eq!((keys.len(), site.sts.calls()), (all, all), "one call of STS for each lease");

    // Whoever minted hands the live session out again; the other one never can, and mints nothing.
    let mut again = [first.claim(&lease).await, second.claim(&lease).await];
    again.sort_by_key(|it| it.status);
    assert_eq!(again.each_ref().map(|it| it.status), [200, 409]);
    assert_eq!(again[1].problem(), "/problems/already-issued");
    assert_eq!((site.sts.calls(), site.sessions(&lease).await.len()), (all, 1));
}

// ----------------------------------------------------------------------------------------- a process goes away

#[tokio::test]
async fn a_server_killed_between_claim_and_outcome_leaves_no_credentials_and_nothing_open() {
    let (_database, site) = hasty_site().await;
    let node = site.first().await;
    let (signed, unsigned) = (node.signed_lease().await, node.staging_lease().await);
    site.sts.hold().await;
    let claims = [node.start_claim(&signed), node.start_claim(&unsigned)];
    site.sts.arrived(2).await;
    node.kill().await;
    for claim in claims {
        claim.await.expect("no panic").expect_err("nobody answers any more");
    }
    for lease in [&signed, &unsigned] {
        assert_eq!(
            site.sessions(lease).await,
            ["issuing"],
            "the claim was recorded before STS was asked"
        );
    }

    let node = site.first().await;
    site.settled_by_the_sweep(&signed).await;
    site.settled_by_the_sweep(&unsigned).await;
    assert_eq!(site.state(&signed).await, "failed");
    assert_eq!(site.state(&unsigned).await, "approved");
    site.holds_no_credentials().await;

    site.sts.release();
    let refused = node.claim(&signed).await;
    assert_eq!((refused.status, refused.problem()), (409, "/problems/ended"), "{}", refused.body);
    assert_eq!((refused.body["reason"].as_str(), site.sts.calls()), (Some("failed"), 2));
    assert_eq!(site.sessions(&signed).await, ["failed"]);
    let claimed = node.claim(&unsigned).await;
    assert_eq!((claimed.status, site.sts.calls()), (200, 3), "{}", claimed.body);
    assert_eq!(site.sessions(&unsigned).await, ["failed", "live"]);
    assert_eq!(site.state(&unsigned).await, "issued");
}

#[tokio::test]
async fn a_server_told_to_stop_lets_a_claim_under_way_end() {
    let (_database, site) = site("", "").await;
    let node = site.first().await;
    let lease = node.signed_lease().await;
    site.sts.hold().await;
    let claim = node.start_claim(&lease);
    site.sts.arrived(1).await;
    signal(&node.server.child, "TERM").await;
    until("no new connection is taken", SOON, async || !listens(node.port).await).await;
    site.sts.release();
    let reply = claim.await.expect("no panic").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut server = node.server;
    let ended =
        tokio::time::timeout(SOON, server.child.wait()).await.expect("it stops").expect("it ends");
    assert!(ended.success(), "{ended}");
    assert_eq!(
        (site.state(&lease).await, site.sessions(&lease).await),
        ("issued".into(), vec!["live".to_owned()])
    );
}

#[tokio::test]
async fn a_server_told_to_stop_does_not_wait_for_a_long_poll() {
    let (_database, site) = hasty_site().await;
    let node = site.first().await;
    let lease = node.pending_lease().await;
    let path = format!("/v1/leases/{lease}?wait_seconds=30");
    node.stops_in_spite_of(&request("GET", &path, Some(&site.token), None)).await;
}

#[tokio::test]
async fn a_server_told_to_stop_does_not_wait_for_a_request_that_never_ends() {
    let (_database, site) = hasty_site().await;
    let node = site.first().await;
    node.stops_in_spite_of("POST /v1/leases HTTP/1.1\r\nHost: localhost\r\n").await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_claim_open() {
    let (_database, site) = site("", "").await;
    let node = site.first().await;
    let leases = [node.signed_lease().await, node.staging_lease().await];
    site.sts.hold().await;
    for (number, lease) in leases.iter().enumerate() {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.expect("it listens");
        let request = request("POST", &credentials(lease), Some(&site.token), Some(&json!({})));
        stream.write_all(request.as_bytes()).await.expect("sent");
        site.sts.arrived(number + 1).await;
        assert_eq!(site.sessions(lease).await, ["issuing"]);
        // We say that we are done, and the server hangs up: it has given the request up.
        stream.shutdown().await.expect("closed");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("the end");
        assert_eq!(text(&answer), "");
    }
    site.sts.release();
    for lease in &leases {
        until("the claim is settled", SOON, async || site.sessions(lease).await == ["live"]).await;
        assert_eq!(site.state(lease).await, "issued");
    }
    assert_eq!(site.sts.calls(), 2);
    // What was minted for the agent is its own when it comes back.
    assert_eq!(node.claim(&leases[0]).await.status, 200);
    assert_eq!(site.sts.calls(), 2);
}

// ---------------------------------------------------------------------------------------- the database goes away

/// A PostgreSQL of one test, to be stopped and started again.
struct OwnPostgres {
    postgres: Postgres,
    options: postgres::Options,
    dir: PathBuf,
    root: TempDir,
}

impl OwnPostgres {
    async fn start() -> Self {
        let (root, dir) = dev_dir();
        let options =
            postgres::Options { search_path: stack::options(&dir).search_path, durable: false };
        let postgres = Postgres::start(&dir, &options).await.expect("PostgreSQL starts");
        let url = postgres.superuser_url("postgres");
        let mut superuser = PgConnection::connect(url.expose_secret()).await.expect("it answers");
        let logins = "alter role broker_app password 'test'; alter role broker_migrate password 'test'; alter role broker_sequencer password 'test'";
        for sql in [store::ROLES, logins, "create database broker owner broker_owner"] {
            sqlx::raw_sql(sql).execute(&mut superuser).await.expect(sql);
        }
        superuser.close().await.expect("closed");
        let own = Self { postgres, options, dir, root };
        store::migrate(&own.url("broker_migrate")).await.expect("the schema is made");
        own
    }

    fn url(&self, role: &str) -> String {
        self.postgres.url(role, &SecretString::from("test"), "broker").expose_secret().to_owned()
    }

    fn urls(&self) -> Urls {
        let [app, sequencer, admin] =
            ["broker_app", "broker_sequencer", "broker_migrate"].map(|it| self.url(it));
        Urls { app, sequencer, admin }
    }

    async fn stop(self) -> Stopped {
        self.postgres.stop().await.expect("PostgreSQL stops");
        Stopped { options: self.options, dir: self.dir, root: self.root }
    }
}

struct Stopped {
    options: postgres::Options,
    dir: PathBuf,
    root: TempDir,
}

impl Stopped {
    async fn start(self) -> OwnPostgres {
        let postgres =
            Postgres::start(&self.dir, &self.options).await.expect("PostgreSQL starts again");
        OwnPostgres { postgres, options: self.options, dir: self.dir, root: self.root }
    }
}

#[tokio::test]
async fn while_the_database_is_away_every_route_says_so_soon_and_aws_is_not_asked() {
    let own = OwnPostgres::start().await;
    tokio::task::spawn_blocking(stack::shared).await.expect("the stack starts");
    let site = Site::new(&own.urls(), "", "").await;
    let node = site.first().await;
    let (signed, unsigned) = (node.signed_lease().await, node.staging_lease().await);
    let pending = node.pending_lease().await;
    let bytes: Vec<u8> =
        site.one("select bytes from statement where lease_id = $1", &pending).await;
    let nonce = http(node.port, "POST", "/v1/login/nonce", None, None).await.expect("an answer");
    let nonce = nonce.body["nonce"].as_str().expect("a nonce").to_owned();
    let signature = json!({ "decision": "approve", "signature": site.bob.sign("approve", &bytes) });
    let login = json!({ "nonce": nonce, "signature": site.bob.sign_login(&nonce) });
    let stopped = own.stop().await;

    let routes = [
        ("POST", "/v1/leases".to_owned(), Some(json!({ "scope": "staging-rw" }))),
        ("POST", "/v1/leases".to_owned(), Some(json!({ "scope": "staging-rw", "deliver": true }))),
        ("POST", "/v1/leases".to_owned(), Some(production_write())),
        ("GET", "/v1/leases".to_owned(), None),
        ("GET", format!("/v1/leases/{signed}"), None),
        ("GET", format!("/v1/leases/{pending}?wait_seconds=30"), None),
        ("GET", format!("/v1/leases/{pending}/statement"), None),
        ("POST", credentials(&signed), Some(json!({}))),
        ("POST", credentials(&unsigned), Some(json!({}))),
        ("POST", format!("/v1/leases/{pending}/withdraw"), Some(json!({}))),
        ("POST", format!("/v1/leases/{pending}/signatures"), Some(signature)),
        ("POST", "/v1/login".to_owned(), Some(login)),
        ("GET", "/v1/scopes".to_owned(), None),
        ("GET", "/v1/whoami".to_owned(), None),
        ("GET", "/readyz".to_owned(), None),
    ];
    // At first on connections that have just been cut, then without any.
    for _ in 0..2 {
        let mut asked = JoinSet::new();
        for (method, path, body) in routes.clone() {
            let (port, token) = (node.port, site.token.clone());
            asked.spawn(async move {
                let begun = Instant::now();
                let reply = http(port, method, &path, Some(&token), body.as_ref())
                    .await
                    .expect("an answer");
                (method, path, reply, begun.elapsed())
            });
        }
        for (method, path, reply, took) in asked.join_all().await {
            assert_eq!((reply.status, reply.problem()), AWAY, "{method} {path}: {}", reply.body);
            assert!(reply.body["next"].is_string(), "{method} {path}: {}", reply.body);
            assert!(took < Duration::from_millis(4500), "{method} {path} took {took:?}");
        }
    }
    assert_eq!(site.sts.calls(), 0);
    // What needs no database is there, and who is nobody is told so.
    assert_eq!(node.send("GET", "/healthz", None).await.status, 200);
    let nobody = http(node.port, "GET", "/v1/whoami", None, None).await.expect("an answer");
    assert_eq!((nobody.status, nobody.problem()), (401, "/problems/unauthenticated"));

    let _own = stopped.start().await;
    until("it is ready again", SOON, async || {
        node.send("GET", "/readyz", None).await.status == 200
    })
    .await;
    // Nothing of what was asked meanwhile has happened.
    assert_eq!(site.state(&pending).await, "pending");
    let leases: i64 = sqlx::query_scalar("select count(*) from lease")
        .fetch_one(&site.owner)
        .await
        .expect("a count");
    assert_eq!((leases, site.sessions(&signed).await.len()), (3, 0));
    assert_eq!(node.claim(&signed).await.status, 200);
    assert_eq!(site.sts.calls(), 1);
}

#[tokio::test]
async fn when_the_database_dies_between_claim_and_outcome_nobody_gets_what_was_minted() {
    let own = OwnPostgres::start().await;
    tokio::task::spawn_blocking(stack::shared).await.expect("the stack starts");
    let (aws, limits) = ("call_timeout = \"2s\"", "settle_within = \"6s\"");
    let site = Site::new(&own.urls(), aws, limits).await;
    let node = site.first().await;
    let (signed, unsigned) = (node.signed_lease().await, node.staging_lease().await);
    site.sts.hold().await;
    let claims = [node.start_claim(&signed), node.start_claim(&unsigned)];
    site.sts.arrived(2).await;
    let stopped = own.stop().await;
    site.sts.release();
    for claim in claims {
        let reply = claim.await.expect("no panic").expect("an answer");
        assert_eq!((reply.status, reply.problem()), AWAY, "{}", reply.body);
        assert!(no_secret(&reply.body.to_string()), "{}", reply.body);
    }

    let _own = stopped.start().await;
    until("it is ready again", SOON, async || {
        node.send("GET", "/readyz", None).await.status == 200
    })
    .await;
    site.settled_by_the_sweep(&signed).await;
    site.settled_by_the_sweep(&unsigned).await;
    assert_eq!(
        (site.state(&signed).await, site.state(&unsigned).await),
        ("failed".into(), "approved".into())
    );
    site.holds_no_credentials().await;
    let refused = node.claim(&signed).await;
    assert_eq!((refused.status, refused.problem()), (409, "/problems/ended"), "{}", refused.body);
    assert_eq!(site.sts.calls(), 2);
    assert_eq!(node.claim(&unsigned).await.status, 200);
    assert_eq!(site.sts.calls(), 3);
}

#[tokio::test]
async fn a_server_that_starts_before_its_database_becomes_ready_with_it() {
    let own = OwnPostgres::start().await;
    tokio::task::spawn_blocking(stack::shared).await.expect("the stack starts");
    let site = Site::new(&own.urls(), "", "").await;
    let stopped = own.stop().await;
    let log = site.root.path().join("early.log");
    let config = site.config_dir.display().to_string();
    let server = Server::start(&["serve", "--config", &config], &site.environment, &log);
    let node = Node { site: &site, server, port: site.first_port };
    until("it listens", SOON, async || listens(node.port).await).await;
    let early = node.send("GET", "/readyz", None).await;
    assert_eq!((early.status, early.problem()), AWAY, "{}", early.body);

    let _own = stopped.start().await;
    until("it is ready", SOON, async || node.send("GET", "/readyz", None).await.status == 200)
        .await;
    let lease = node.signed_lease().await;
    assert_eq!(node.claim(&lease).await.status, 200);
}
