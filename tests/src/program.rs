//! Our own programs, run as their users run them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const START_LIMIT: Duration = Duration::from_mins(2);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// `brokerd` or `broker`, built beside the tests.
pub fn binary(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("our own path");
    let path = tests.ancestors().nth(2).expect("target/debug/deps").join(name);
    assert!(
        path.exists(),
        "{} is not built; run `cargo build --workspace` first, or `make test`",
        path.display()
    );
    path
}

/// The AWS CLI: what `make test` installs, or the one in `PATH`.
pub fn aws_cli() -> String {
    #[expect(clippy::disallowed_methods, reason = "the edge of the tests")]
    std::env::var("AWS_CLI").ok().filter(|it| !it.is_empty()).unwrap_or_else(|| "aws".to_owned())
}

/// Runs the AWS CLI for each of `calls`, in order and in one process: its exit status, and what it said to stderr.
pub async fn aws_calls(
    environment: &BTreeMap<String, String>,
    calls: &[&str],
) -> Vec<(i32, String)> {
    let python = Path::new(&aws_cli()).with_file_name("python");
    assert!(
        python.exists(),
        "AWS_CLI is not what scripts/setup.sh installs; run `make test`, or `scripts/setup.sh` and then this with \
         AWS_CLI=\"$(scripts/setup.sh --print-aws)\""
    );
    let mut child = program(python, environment)
        .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/src/calls.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python runs");
    // Few enough to fit the pipe, so that nobody waits for the other.
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(calls.join("\n").as_bytes()).await.expect("it listens");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    assert!(output.status.success(), "see above what Python said");
    let answers = text(&output.stdout);
    answers.lines().map(|it| serde_json::from_str(it).expect("status and words")).collect()
}

/// A program with an environment of its own: nothing of this process's AWS or broker settings.
pub fn program(path: impl AsRef<Path>, environment: &BTreeMap<String, String>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the edge of the tests")]
    let inherited = ["PATH", "HOME", "LANG", "XDG_CACHE_HOME", "SSL_CERT_FILE", "TMPDIR"]
        .into_iter()
        .filter_map(|name| Some((name, std::env::var(name).ok()?)));
    let mut command = Command::new(path.as_ref());
    command.env_clear().envs(inherited).envs(environment).env("AWS_EC2_METADATA_DISABLED", "true");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Sends a signal by its name.
pub async fn signal(child: &Child, name: &str) {
    let id = child.id().expect("still running").to_string();
    let status = Command::new("kill").args(["-s", name, &id]).status().await.expect("kill runs");
    assert!(status.success());
}

/// A running `brokerd`.
pub struct Server {
    pub child: Child,
    pub log: PathBuf,
}

impl Server {
    pub async fn stop(mut self, how: &str) -> ExitStatus {
        signal(&self.child, how).await;
        tokio::time::timeout(STOP_LIMIT, self.child.wait())
            .await
            .expect("it stops in time")
            .expect("it ends")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts `brokerd ARGS`, logging to `log`.
    pub fn start(args: &[&str], environment: &BTreeMap<String, String>, log: &Path) -> Self {
        let file = std::fs::File::create(log).expect("a log file");
        let child = program(binary("brokerd"), environment)
            .args(args)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("brokerd starts");
        Self { child, log: log.to_owned() }
    }
}

/// A running `brokerd dev`, and its `dev.env`.
pub struct Dev {
    pub server: Server,
    pub dir: PathBuf,
    pub environment: BTreeMap<String, String>,
}

impl Dev {
    /// Starts it on `dir` and waits until it is ready.
    pub async fn start(dir: &Path, more: &BTreeMap<String, String>) -> Self {
        let file = dir.join("dev.env");
        let _ = std::fs::remove_file(&file);
        let dir_name = dir.display().to_string();
        let log = dir.with_extension("log");
        let mut server =
            Server::start(&["dev", "--dir", &dir_name, "--listen", "127.0.0.1:0"], more, &log);
        let ready = async {
            while !file.exists() {
                if let Ok(Some(status)) = server.child.try_wait() {
                    panic!(
                        "brokerd dev ended ({status}):\n{}",
                        std::fs::read_to_string(&log).unwrap_or_default()
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(START_LIMIT, ready).await.expect("ready in time");
        let text = std::fs::read_to_string(&file).expect("dev.env");
        let environment = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        Self { server, dir: dir.to_owned(), environment }
    }

    /// Runs `broker ARGS` with `dev.env`.
    pub async fn broker(&self, args: &[&str]) -> Output {
        self.run(binary("broker"), args).await
    }

    pub async fn run(&self, path: impl AsRef<Path>, args: &[&str]) -> Output {
        self.command(path, args).output().await.expect("it runs")
    }

    /// The same, for more settings. People's sessions are kept beside the directory, and `broker` is in `BROKER_CLI`.
    pub fn command(&self, path: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = program(path, &self.environment);
        command.args(args).env("XDG_STATE_HOME", self.dir.with_extension("state"));
        command.env("AWS_CLI", aws_cli()).env("BROKER_CLI", binary("broker"));
        command
    }

    pub fn key(&self, person: &str) -> String {
        format!("{}/{person}", self.environment["BROKER_KEYS"])
    }
}

/// A directory for `brokerd dev` that PostgreSQL's user can pass through.
pub fn dev_dir() -> (TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o711))
        .expect("our own directory");
    let dir = root.path().join("dev");
    (root, dir)
}

/// What an HTTP server answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// JSON, or else text.
    pub body: Value,
}

impl Reply {
    /// The problem's `type`, or nothing.
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }
}

/// Sends one request to this machine's `port`, on a connection of its own.
pub async fn http(
    port: u16,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request(method, path, token, body).as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = text(&answer);
    let unfinished =
        || io::Error::new(io::ErrorKind::UnexpectedEof, format!("hung up after {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(unfinished)?;
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).ok_or_else(unfinished)?;
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    Ok(Reply { status, body })
}

/// A request as it travels, asking the server to close the connection after its answer.
pub fn request(method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> String {
    let token = token.map(|it| format!("Authorization: Bearer {it}\r\n")).unwrap_or_default();
    let body = body.map(ToString::to_string).unwrap_or_default();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// A port that nobody listens on.
pub async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Whether somebody listens on that port of this machine.
pub async fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

/// Looks until `holds`, and fails when it does not within `limit`.
pub async fn until(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let look = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(limit, look).await.is_ok(), "not within {limit:?}: {what}");
}

/// What a program printed, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `/proc` says of a running process's memory, in KiB: `VmRSS` now, `VmHWM` at its most. Linux only.
pub fn memory_kib(process: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|it| it.strip_prefix(what)?.strip_prefix(':'));
    let line = line.expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
