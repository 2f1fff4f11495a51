//! What the command line costs whoever starts it, beside the AWS CLI: `make bench`, or `cargo bench -p tests --bench client`
//! after release builds of `broker` and `brokerd`.
//!
//! Whole processes in turn, against `brokerd dev`: a ratio is that of two neighbours, whatever else the machine does. Also the
//! memory of a client that waits, and the size of both programs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::program::{Dev, aws_cli, binary, dev_dir, http, memory_kib, text};
use tests::site::production_write_arguments;
use tests::write_secret;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const ROUNDS: usize = 25;
/// Whoever is slow does fewer rounds, so that the whole stays below two minutes.
const LONG_ENOUGH: Duration = Duration::from_secs(70);
/// For one process.
const LIMIT: Duration = Duration::from_secs(20);
const SCOPE: &str = "staging-ro";

/// One line of the table.
struct Row {
    name: String,
    what: What,
    took: Vec<Duration>,
}

enum What {
    /// A program and its arguments, and what is in its standard output when it did what it is measured for.
    Process(PathBuf, Vec<String>, &'static str),
    /// What `broker credentials --scope` asks for, sent from here.
    Request,
}

/// `brokerd dev`, and what the programs are started with.
struct Bench {
    dev: Dev,
    /// With a profile of keys, `keys`, and one of `broker profile add`, `leased`.
    aws_config: PathBuf,
}

#[tokio::main]
async fn main() {
    // Cargo says `--bench` when it is to measure, and nothing when it tests all targets.
    if !std::env::args().any(|it| it == "--bench") {
        return;
    }
    let (root, dir) = dev_dir();
    let dev = Dev::start(&dir, &[].into()).await;
    let bench = Bench { dev, aws_config: root.path().join("aws.config") };
    let mut rows = bench.rows().await;
    bench.measure(&mut rows).await;
    print(&rows);
    bench.memory().await;
    sizes(root.path());
    assert!(bench.dev.server.stop("TERM").await.success());
}

impl Bench {
    fn command(&self, program: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = self.dev.command(program, args);
        command.env("AWS_CONFIG_FILE", &self.aws_config);
        command.env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command
    }

    /// What a program prints.
    async fn ran(&self, program: impl AsRef<Path>, args: &[&str]) -> String {
        let output = self.command(program, args).output().await.expect("it runs");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Writes the profiles, and says what is measured: the last is what the others are compared with.
    async fn rows(&self) -> Vec<Row> {
        let (broker, aws) = (binary("broker"), PathBuf::from(aws_cli()));
        let keys = std::fs::read(self.dev.dir.join("emulator.keys.json")).expect("the keys");
        let keys: Value = serde_json::from_slice(&keys).expect("JSON");
        let key = |name: &str| keys["users"]["broker"][name].as_str().expect("a key");
        let (id, secret) = (key("access_key_id"), key("secret_access_key"));
        let profile =
            format!("[profile keys]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        write_secret(&self.aws_config, &profile);
        self.ran(&broker, &["profile", "add", "leased", "--scope", SCOPE]).await;
        let lease = self.ran(&broker, &["lease", "--scope", SCOPE, "-o", "json"]).await;
        let lease: Value = serde_json::from_str(&lease).expect("JSON");
        let lease = lease["id"].as_str().expect("an id");

        // Version 1 of the AWS CLI has no `export-credentials`. What shows a profile's credentials finds them all the same.
        let export = ["configure", "export-credentials", "--profile", "keys"];
        let exports = self.command(&aws, &export).output().await.expect("it runs").status.success();
        let (exporting, leased, static_keys) = if exports {
            ("export-credentials", "SessionToken", "SecretAccessKey")
        } else {
            ("list", "custom-process", "config-file")
        };
        let endpoint = self.dev.environment["AWS_ENDPOINT_URL"].as_str();
        let external = keys["external_id"].as_str().expect("an external id");
        let assume = ["sts", "assume-role", "--profile", "keys", "--endpoint-url", endpoint];
        let role = ["--role-arn", "arn:aws:iam::000000000000:role/broker-staging"];
        let who = ["--role-session-name", "bench", "--source-identity", "bench"];
        let assume = [&assume[..], &role, &who, &["--external-id", external]].concat();

        let row = |name: &str, program: &Path, args: &[&str], prints| {
            let args = args.iter().copied().map(str::to_owned).collect();
            let what = What::Process(program.to_owned(), args, prints);
            Row { name: name.to_owned(), what, took: Vec::new() }
        };
        let request =
            Row { name: "that request alone".to_owned(), what: What::Request, took: Vec::new() };
        let scoped = format!("broker credentials --scope {SCOPE}");
        let configure = |profile: &str| format!("aws configure {exporting} --profile {profile}");
        let configured = |name: &'static str| ["configure", exporting, "--profile", name];
        vec![
            row("true", "true".as_ref(), &[], ""),
            row("broker --version", &broker, &["--version"], "broker "),
            request,
            row(&scoped, &broker, &["credentials", "--scope", SCOPE], "SessionToken"),
            row(
                "broker credentials --lease ID",
                &broker,
                &["credentials", "--lease", lease],
                "SessionToken",
            ),
            row("aws --version", &aws, &["--version"], "aws-cli"),
            row(&configure("keys"), &aws, &configured("keys"), static_keys),
            row(&configure("leased"), &aws, &configured("leased"), leased),
            row("aws sts assume-role", &aws, &assume, "SessionToken"),
        ]
    }

    /// Runs each in turn, round after round. The first round is for the caches, and sees that each does what it should.
    async fn measure(&self, rows: &mut [Row]) {
        let began = Instant::now();
        for round in 0..=ROUNDS {
            if 1 < round && LONG_ENOUGH < began.elapsed() {
                break;
            }
            for row in &mut *rows {
                let running = self.run(&row.what, round == 0);
                let took = tokio::time::timeout(LIMIT, running).await.expect("it ends in time");
                if 0 < round {
                    row.took.push(took);
                }
            }
        }
    }

    async fn run(&self, what: &What, look: bool) -> Duration {
        match what {
            What::Process(program, args, prints) => {
                let args: Vec<_> = args.iter().map(String::as_str).collect();
                if look {
                    let printed = self.ran(program, &args).await;
                    assert!(printed.contains(prints), "{args:?} prints no {prints:?}");
                }
                let mut command = self.command(program, &args);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                let started = Instant::now();
                let status = command.status().await.expect("it runs");
                let took = started.elapsed();
                assert!(status.success(), "{args:?}: {status}");
                took
            }
            What::Request => {
                let environment = &self.dev.environment;
                let (_, port) = environment["BROKER_URL"].rsplit_once(':').expect("a port");
                let port = port.parse().expect("a number");
                let body = json!({ "scope": SCOPE, "deliver": true, "join": true });
                let token = Some(environment["BROKER_TOKEN"].as_str());
                let started = Instant::now();
                let reply = http(port, "POST", "/v1/leases", token, Some(&body)).await;
                let took = started.elapsed();
                let reply = reply.expect("an answer").body;
                assert!(reply["credentials"]["session_token"].is_string(), "no credentials");
                took
            }
        }
    }

    /// What `broker lease --wait` holds while it waits for people. Linux only.
    async fn memory(&self) {
        let arguments = production_write_arguments();
        let arguments: Vec<_> = ["lease", "--wait", "1m"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str))
            .collect();
        let mut waiting = self.command(binary("broker"), &arguments);
        let waiting = waiting.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut waiting = waiting.spawn().expect("it starts");
        let mut lines = BufReader::new(waiting.stderr.take().expect("piped")).lines();
        let waits = async {
            while let Some(line) = lines.next_line().await.expect("text") {
                if line.starts_with("waiting up to") {
                    return;
                }
            }
            panic!("it ended before it waited");
        };
        tokio::time::timeout(LIMIT, waits).await.expect("it waits in time");
        let process = waiting.id().expect("it runs");
        let (all, anonymous) = (memory_kib(process, "VmRSS"), memory_kib(process, "RssAnon"));
        println!(
            "\na waiting `broker lease --wait`: {all} KiB of memory, {anonymous} KiB of it its own\n"
        );
        waiting.kill().await.expect("it was running");
    }
}

/// Milliseconds, and for each round how it compares with the last row's neighbour: the median of these.
fn print(rows: &[Row]) {
    let (last, _) = rows.split_last().expect("rows");
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "whole processes, {} rounds in turn, {processors} processors; milliseconds\n\n{:<46}  median     min  ratio to `{}`",
        last.took.len(),
        "",
        last.name
    );
    for row in rows {
        let ratios = row.took.iter().zip(&last.took);
        let ratios = ratios.map(|(row, last)| row.as_secs_f64() / last.as_secs_f64()).collect();
        let took: Vec<_> = row.took.iter().map(|it| it.as_secs_f64() * 1e3).collect();
        let min = took.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{:<46}  {:>6.1}  {min:>6.1}  {:.4}", row.name, median(took), median(ratios));
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_unstable_by(f64::total_cmp);
    of[of.len() / 2]
}

/// How large the programs are, as built and without their symbols.
fn sizes(scratch: &Path) {
    println!("KiB      as built  stripped");
    for name in ["broker", "brokerd"] {
        let (built, stripped) = (binary(name), scratch.join(name));
        let strip =
            std::process::Command::new("strip").arg("-o").args([&stripped, &built]).status();
        let bytes = |path: &Path| std::fs::metadata(path).expect("a file").len() / 1024;
        let without = strip.is_ok_and(|it| it.success()).then(|| bytes(&stripped));
        let without = without.map_or("-".to_owned(), |it| it.to_string());
        println!("{name:<7}  {:>8}  {without:>8}", bytes(&built));
    }
}
