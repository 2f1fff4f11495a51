//! A server on loopback that can be restarted, over a scripted STS and a clock that the test moves: what an agent's own
//! programs talk to.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use broker::lease::LeaseId;
use broker::server;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::ChildStderr;
use tokio::sync::oneshot;

use crate::program::{binary, free_port, http, memory_kib, program, until};
use crate::sts::{FakeSts, Mood, SECRET_MARK, TOKEN_MARK};
use crate::{Setup, TestBroker};

const SOON: Duration = Duration::from_secs(30);

pub struct Site {
    /// The keys, the clock and the database; not the one that serves.
    pub broker: TestBroker,
    pub sts: FakeSts,
    pub port: u16,
    serving: Option<Serving>,
}

struct Serving {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Site {
    pub async fn start() -> Self {
        let sts = FakeSts::start().await;
        Self::with(Setup::fake(&sts), sts).await
    }

    pub async fn with(setup: Setup, sts: FakeSts) -> Self {
        let broker = TestBroker::new(setup).await;
        let mut site = Self { broker, sts, port: free_port().await, serving: None };
        site.up().await;
        site
    }

    /// Starts the server, as another process of it would: it shares the database and the configuration.
    pub async fn up(&mut self) {
        let replica = self.broker.replica(self.sts.options()).await;
        let rounds = server::rounds(&replica.broker.config, self.sts.options());
        let listener = std::net::TcpListener::bind(("127.0.0.1", self.port));
        let listener = listener.expect("the port is free");
        listener.set_nonblocking(true).expect("our own socket");
        let (stop, stopped) = oneshot::channel();
        // A runtime of its own, with which everything of the server ends, connections too.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let serving =
                    server::serve(replica.broker, rounds, listener, std::future::pending());
                tokio::select! {
                    served = Box::pin(serving) => panic!("it serves until it is stopped: {served:?}"),
                    _ = stopped => {}
                }
            });
        });
        self.serving = Some(Serving { stop, thread });
        until("the server is ready", SOON, async || {
            http(self.port, "GET", "/readyz", None, None).await.is_ok_and(|it| it.status == 200)
        })
        .await;
    }

    /// Ends it in the middle of everything, as a machine that fails would: nobody listens, connections are cut.
    pub fn down(&mut self) {
        let Serving { stop, thread } = self.serving.take().expect("it is up");
        stop.send(()).expect("it listens");
        thread.join().expect("no panic");
    }

    /// Moves the clock, and has everything end that has to.
    pub async fn later(&self, by: time::Duration) {
        self.broker.clock.advance(by);
        self.sts.set(Mood::Good { now: self.broker.clock.now() });
        self.broker.broker.sweep().await.expect("swept");
    }

    /// Orders a freeze of everything, as the table says it.
    pub async fn freeze(&self) {
        let sql = "insert into \"freeze\" (id, kind, reason, created_by, created_at) values (gen_random_uuid(), 'all', 'r', 'carol', $1)";
        let order = sqlx::query(sql).bind(self.broker.clock.now());
        order.execute(&self.broker.database.owner).await.expect("frozen");
    }

    /// What an agent's programs know.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let url = format!("http://127.0.0.1:{}", self.port);
        let settings = [("BROKER_URL", url), ("BROKER_TOKEN", self.broker.token.clone())];
        settings.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// `broker ARGS` as the agent.
    pub fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = program(binary("broker"), &self.environment());
        command.args(args).env("HOME", self.broker.config_dir.path());
        command
    }

    /// Sends as the agent, past its programs.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        let token = Some(self.broker.token.as_str());
        http(self.port, "POST", path, token, Some(&body)).await.expect("an answer").body
    }

    pub async fn pending(&self) -> usize {
        let sql = "select count(*) from lease where state = 'pending'";
        let count: i64 =
            sqlx::query_scalar(sql).fetch_one(&self.broker.database.owner).await.expect("a count");
        usize::try_from(count).expect("no less than none")
    }

    /// Everything that no transcript of an agent may hold.
    pub fn secrets(&self) -> [&str; 3] {
        [SECRET_MARK, TOKEN_MARK, &self.broker.token]
    }
}

/// The arguments of `broker lease` that ask for what [`crate::production_write`] does.
pub fn production_write_arguments() -> Vec<String> {
    let body = crate::production_write();
    let text = |it: &Value| it.as_str().expect("text").to_owned();
    let mut arguments = Vec::new();
    for (flag, value) in [
        ("--scope", &body["scope"]),
        ("--reason", &body["reason"]),
        ("--rollback", &body["rollback"]),
        ("--action", &body["actions"][0]),
        ("--resource", &body["resources"][0]),
    ] {
        arguments.extend([flag.to_owned(), text(value)]);
    }
    arguments
}

/// The same, as an MCP tool takes it.
pub fn production_write_tool() -> Value {
    let body = crate::production_write();
    json!({
        "scope": body["scope"], "reason": body["reason"], "rollback": body["rollback"],
        "actions": body["actions"], "resources": body["resources"],
    })
}

/// A `broker lease --wait` under way.
pub struct WaitingClient {
    pub child: tokio::process::Child,
    pub lease: LeaseId,
    /// What it has said until it waited.
    pub told: Vec<String>,
    lines: Lines<BufReader<ChildStderr>>,
}

impl WaitingClient {
    /// Asks for [`crate::production_write`], and comes back when it waits.
    pub async fn start(site: &Site, more: &[&str]) -> Self {
        Self::start_with(site, "lease", more).await
    }

    /// The same with another command that asks and waits.
    pub async fn start_with(site: &Site, command: &str, more: &[&str]) -> Self {
        let arguments = production_write_arguments();
        let arguments = arguments.iter().map(String::as_str).chain(more.iter().copied());
        let arguments: Vec<_> = [command, "--wait", "10m"].into_iter().chain(arguments).collect();
        let mut command = site.command(&arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut waiting =
            Self { child, lease: LeaseId(uuid::Uuid::nil()), told: Vec::new(), lines };
        while !waiting.told.last().is_some_and(|it| it.starts_with("waiting up to")) {
            let line = waiting.line().await;
            waiting.told.push(line);
        }
        let id = waiting.told[0].split(' ').nth(1).expect("lease ID waits");
        waiting.lease = id.parse().expect("an id");
        waiting
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_mins(1), self.lines.next_line()).await;
        line.expect("in time").expect("text").expect("it says more")
    }

    /// The next line that it says is this one.
    pub async fn says(&mut self, line: &str) {
        assert_eq!(self.line().await, line);
    }

    /// Its end, with what it said since.
    pub async fn ends(self) -> Output {
        let Self { child, mut lines, lease: _, told: _ } = self;
        let mut rest = Vec::new();
        while let Some(line) = lines.next_line().await.expect("text") {
            rest.extend(line.bytes().chain(*b"\n"));
        }
        let output = child.wait_with_output().await.expect("it ends");
        Output { stderr: rest, ..output }
    }

    /// What it holds in memory now, in KiB. Linux only.
    pub fn resident_kib(&self) -> u64 {
        memory_kib(self.child.id().expect("it runs"), "VmRSS")
    }
}
