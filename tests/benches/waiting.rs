//! From a signature to the credentials of the agent that waits for it, while others wait too: `cargo bench -p tests`.
//!
//! One server on loopback over the tests' PostgreSQL, an STS that answers at once, and for each agent a connection of
//! its own that waits for its lease. A connection has two ends here: `make bench` raises the limit on open files.

use std::io;
use std::time::{Duration, Instant};

use broker::clock::Clock;
use broker::lease::LeaseId;
use broker::server;
use serde_json::{Value, json};
use tests::program::{Reply, http, until};
use tests::site::WaitingClient;
use tests::sts::{FakeSts, Mood};
use tests::{Setup, TestBroker, wide_budgets};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How many agents wait at once.
const WAITERS: [usize; 4] = [1, 50, 500, 1];
/// How many of them are answered, one after another.
const ANSWERED: usize = 100;
const SOON: Duration = Duration::from_secs(20);

struct Site {
    broker: TestBroker,
    port: u16,
}

/// An agent that waits, and what it gets.
struct Waiting {
    lease: LeaseId,
    gets: JoinHandle<io::Result<Instant>>,
}

#[tokio::main]
async fn main() {
    // Cargo says `--bench` when it is to measure, and nothing when it tests all targets.
    if !std::env::args().any(|it| it == "--bench") {
        return;
    }
    let site = Site::start().await;
    println!(
        "signature to credentials, in milliseconds\n\nwaiting  answered     min  median     p99     max"
    );
    for waiters in WAITERS {
        let mut took = Vec::new();
        // A single agent waits anew each time; of many, those who wait on are the crowd.
        let rounds = if waiters == 1 { ANSWERED } else { 1 };
        for _ in 0..rounds {
            took.extend(site.measure(waiters).await);
        }
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!(
            "{waiters:>7}  {:>8}  {:>6.1}  {:>6.1}  {:>6.1}  {:>6.1}",
            took.len(),
            at(0),
            at(50),
            at(99),
            at(100)
        );
    }
    let site = tests::site::Site::start().await;
    let waiting = WaitingClient::start(&site, &[]).await;
    println!("\na waiting `broker lease --wait` holds {} KiB of memory", waiting.resident_kib());
}

impl Site {
    async fn start() -> Self {
        let clock = Clock::default();
        let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
        // More than a demo needs: hundreds of requests that wait at once.
        let settings = wide_budgets()
            .replace("requests_per_minute = 600", "requests_per_minute = 100000")
            .replace("pending_leases = 200", "pending_leases = 5000")
            .replace("pending_leases = 500", "pending_leases = 5000")
            .replace("resources_per_hour = 10000", "resources_per_hour = 1000000");
        let broker = TestBroker::new(Setup { clock, settings, ..Setup::fake(&sts) }).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let rounds = server::rounds(&broker.broker.config, sts.options());
        let shutdown = std::future::pending();
        tokio::spawn(server::serve(broker.broker.clone(), rounds, listener, shutdown));
        let site = Self { broker, port };
        until("the server is ready", SOON, async || {
            site.send("GET", "/readyz", None).await.is_ok_and(|it| it.status == 200)
        })
        .await;
        site
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Reply> {
        http(self.port, method, path, Some(&self.broker.token), body).await
    }

    /// Has `waiters` agents wait, and some of them answered in turn: how long each of these took.
    async fn measure(&self, waiters: usize) -> Vec<Duration> {
        let mut waiting = Vec::new();
        for _ in 0..waiters {
            let lease = self.broker.pending_lease().await;
            let (port, token) = (self.port, self.broker.token.clone());
            waiting.push(Waiting { lease, gets: tokio::spawn(wait(port, token, lease)) });
        }
        // All of them are heard by the time that a request sent after them is answered, and then some.
        for _ in 0..20 {
            self.send("GET", "/v1/whoami", None).await.expect("an answer");
        }
        let mut took = Vec::new();
        // Not the first ones: those who wait longest and shortest alike.
        let step = waiters.div_ceil(ANSWERED);
        let (answered, others): (Vec<_>, Vec<_>) =
            waiting.into_iter().enumerate().partition(|(at, _)| at % step == 0);
        for (_, Waiting { lease, gets }) in answered {
            let signature = self.broker.bob.sign("approve", &self.broker.statement(lease).await);
            let body = json!({ "decision": "approve", "signature": signature });
            let path = format!("/v1/leases/{lease}/signatures");
            let sent = Instant::now();
            let signed = self.send("POST", &path, Some(&body)).await.expect("an answer");
            assert_eq!(signed.status, 200, "{}", signed.body);
            let got = gets.await.expect("no panic").expect("credentials");
            took.push(got.duration_since(sent));
        }
        for (_, Waiting { lease, gets }) in others {
            gets.abort();
            let path = format!("/v1/leases/{lease}/withdraw");
            let back = self.send("POST", &path, Some(&json!({}))).await.expect("an answer");
            assert_eq!(back.status, 200, "{}", back.body);
        }
        took
    }
}

/// What an agent does: waits until its lease is decided, then claims it. When it held the credentials.
async fn wait(port: u16, token: String, lease: LeaseId) -> io::Result<Instant> {
    let path = format!("/v1/leases/{lease}?wait_seconds=30");
    loop {
        let reply = http(port, "GET", &path, Some(&token), None).await?;
        match reply.body["state"].as_str() {
            Some("pending") => {}
            Some("approved") => break,
            _ => return Err(io::Error::other(format!("{} {}", reply.status, reply.body))),
        }
    }
    let path = format!("/v1/leases/{lease}/credentials");
    let reply = http(port, "POST", &path, Some(&token), Some(&json!({}))).await?;
    if reply.body["session_token"].is_string() {
        Ok(Instant::now())
    } else {
        Err(io::Error::other(format!("{} {}", reply.status, reply.body)))
    }
}
