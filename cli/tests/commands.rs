//! The built `broker`, against a small fake of the server on this machine.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker::lease::{ActionClass, Assurance, Environment, FreezeKind, LeaseId, Tier};
use broker::statement::act::{Act, ActStatement, ActTerms, Change, TaskStart, Thaw};
use broker::statement::{
    Account, ActionTerms, AgentTerms, AgentWords, AssumeRole, Conditions, Issuer, LeaseStatement,
    LeaseTerms, Meaning, Rules, Signers, session_policy, sha256_hex,
};
use broker::verify::{Demand, EnrolledKey, UnverifiedSignature, check_signature};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::macros::datetime;

const ID: &str = "01920000-0000-7000-8000-000000000001";
const UNSET: &str = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; false\n";
const SECRET: &str = "s3cr3t/+key";

#[derive(Clone, Debug)]
struct Request {
    /// `POST /v1/leases`, with its query.
    line: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

enum Answer {
    Json(u16, Value),
    /// Closes the connection without a word.
    HangUp,
    Redirect(String),
}

type Seen = Arc<Mutex<Vec<Request>>>;

/// A server that answers each request as `answer` says, given how many came before it.
fn serve(answer: impl Fn(usize, &Request) -> Answer + Send + 'static) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some(request) = read(&stream) else { continue };
            let before = log.lock().unwrap().len();
            log.lock().unwrap().push(request.clone());
            let (status, location, body) = match answer(before, &request) {
                Answer::Json(status, body) => (status, String::new(), body.to_string()),
                Answer::Redirect(to) => (307, format!("location: {to}\r\n"), String::new()),
                Answer::HangUp => continue,
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{location}content-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (url, seen)
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|it| *it != 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let line = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
    Some(Request { line, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
}

/// `broker` with nothing of the caller's environment, and a home of its own.
fn broker(url: &str, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_broker"));
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .env("BROKER_URL", url)
        .stdin(Stdio::null());
    command
}

fn run(url: &str, args: &[&str]) -> Output {
    let home = TempDir::new().unwrap();
    broker(url, home.path(), args).env("BROKER_TOKEN", "agent-token").output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        out(output),
        err(output)
    );
}

fn lease(state: &str) -> Value {
    json!({
        "id": ID, "state": state, "agent": "demo-agent", "sponsor": "alice", "task": "OPS-7", "reason": null,
        "rollback": null, "scope": "prod-rw", "environment": "production", "tier": "production-write",
        "account": "000000000000", "region": "eu-west-1", "role_arn": "arn:aws:iam::000000000000:role/broker",
        "actions": ["s3:PutObject"], "resources": ["arn:aws:s3:::prod/x"],
        "requested_at": "2026-01-01T12:00:00Z", "sign_by": "2026-01-01T12:30:00Z", "approved_at": null,
        "claim_by": null, "issued_at": null, "ends_at": null, "ended_at": null, "end_reason": null,
        "decided_by": ["agents-may-ask"], "signatures_needed": 1, "eligible_signers": ["bob", "carol"],
        "signatures": [], "short_code": "WERC-8GMR", "sessions": [], "next": null,
    })
}

fn credentials() -> Value {
    json!({
        "session_id": ID, "access_key_id": "ASIAEXAMPLE", "secret_access_key": SECRET, "session_token": "tok==",
        "expires_at": "2026-01-01T12:15:00Z", "region": "eu-west-1",
    })
}

fn issued() -> Value {
    let mut lease = lease("issued");
    lease["credentials"] = credentials();
    lease
}

fn problem(kind: &str, status: u16) -> Answer {
    let kind = format!("/problems/{kind}");
    Answer::Json(
        status,
        json!({ "type": kind, "title": "T", "status": status, "detail": "d", "next": "n" }),
    )
}

#[test]
fn a_pending_lease_exits_3_says_who_may_sign_and_unsets_old_credentials() {
    let (url, seen) = serve(|_, _| Answer::Json(202, lease("pending")));
    let env = run(&url, &["lease", "--scope", "prod-rw", "-o", "env"]);
    assert_exit(&env, 3);
    assert_eq!(out(&env), UNSET);
    for part in
        ["bob, carol", "WERC-8GMR", &format!("broker sign {ID}"), &format!("broker withdraw {ID}")]
    {
        assert!(err(&env).contains(part), "{part} is missing from {}", err(&env));
    }
    let text = run(&url, &["lease", "--scope", "prod-rw"]);
    assert_exit(&text, 3);
    assert_eq!(serde_json::from_str::<Value>(&out(&text)).unwrap()["id"], ID);

    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].line, "POST /v1/leases");
    assert_eq!(seen[0].headers["authorization"], "Bearer agent-token");
    assert_eq!((&seen[0].body["deliver"], &seen[1].body["deliver"]), (&json!(true), &json!(false)));
    assert_ne!(seen[0].headers["idempotency-key"], seen[1].headers["idempotency-key"]);
}

#[test]
fn every_failure_with_env_output_prints_the_unset_line_and_its_exit_code() {
    let unreachable = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let (denied, _) = serve(|_, _| problem("denied", 403));
    let (frozen, _) = serve(|_, _| problem("frozen", 403));
    let (busy, _) = serve(|_, _| problem("over-budget", 429));
    let (stranger, _) = serve(|_, _| problem("unauthenticated", 401));
    let (refused, _) = serve(|_, _| Answer::Json(201, lease("refused")));
    let (other, _) = serve(|_, _| Answer::Json(200, json!("hello")));
    for (url, args, code) in [
        (unreachable.as_str(), &["lease", "--scope", "s", "-o", "env"][..], 7),
        (&denied, &["lease", "--scope", "s", "-o", "env"], 4),
        (&frozen, &["credentials", "--lease", ID, "-o", "env"], 6),
        (&busy, &["lease", "--scope", "s", "-oenv"], 9),
        (&stranger, &["lease", "--scope", "s", "--output=env"], 8),
        (&refused, &["lease", "--scope", "s", "-o", "env"], 5),
        (&other, &["lease", "--scope", "s", "-o", "env"], 1),
        (&other, &["lease", "-o", "env"], 2),
        (&other, &["lease", "-o", "env", "--scope", "s", "--ttl", "soon"], 2),
        (&other, &["whoami", "-o", "env"], 2),
        ("http://example.com", &["lease", "-o", "env", "--scope", "s"], 2),
    ] {
        let output = run(url, args);
        assert_exit(&output, code);
        assert_eq!(out(&output), UNSET, "{args:?}");
        assert!(!err(&output).is_empty());
    }
    let home = TempDir::new().unwrap();
    std::fs::create_dir_all(home.path().join(".config/broker")).unwrap();
    std::fs::write(home.path().join(".config/broker/config.toml"), "urll = 1").unwrap();
    let output =
        broker(&other, home.path(), &["lease", "--scope", "s", "-o", "env"]).output().unwrap();
    assert_exit(&output, 2);
    assert_eq!(out(&output), UNSET);
}

#[test]
fn who_is_over_budget_is_told_when_to_come_back() {
    let (url, seen) = serve(|_, _| {
        let mut document = json!({ "type": "/problems/over-budget", "title": "Over budget", "status": 429, "detail": "d", "next": "n" });
        document["retry_at"] = json!("2026-01-01T12:01:00.5Z");
        document["budget"] = json!("requests_per_minute");
        Answer::Json(429, document)
    });
    let output = run(&url, &["lease", "--scope", "s", "-o", "json"]);
    assert_exit(&output, 9);
    assert_eq!(err(&output), "error: Over budget: d\n  retry at  2026-01-01T12:01:01Z\nnext: n\n");
    let document: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(document["budget"], "requests_per_minute");
    assert_eq!(seen.lock().unwrap().len(), 1, "asking again by itself would not help");
}

#[test]
fn a_problem_document_is_told_on_stderr_and_given_whole_as_json() {
    let (url, _) = serve(|_, _| problem("denied", 403));
    let output = run(&url, &["lease", "--scope", "s", "-o", "json"]);
    assert_exit(&output, 4);
    assert_eq!(err(&output), "error: T: d\nnext: n\n");
    assert_eq!(serde_json::from_str::<Value>(&out(&output)).unwrap()["type"], "/problems/denied");
    let text = run(&url, &["lease", "--scope", "s", "-o", "text"]);
    assert_eq!(out(&text), "");
}

#[test]
fn credentials_are_printed_only_in_the_formats_that_are_for_them() {
    let (url, _) = serve(|_, _| Answer::Json(201, issued()));
    for format in ["text", "json"] {
        let output = run(&url, &["lease", "--scope", "s", "-o", format]);
        assert_exit(&output, 0);
        assert!(!out(&output).contains(SECRET) && !err(&output).contains(SECRET), "{format}");
        assert!(!out(&output).contains("tok=="), "{format}");
    }
    let env = run(&url, &["lease", "--scope", "s", "-o", "env"]);
    assert!(out(&env).contains("export AWS_SECRET_ACCESS_KEY='s3cr3t/+key'\n"), "{}", out(&env));
    let process = run(&url, &["lease", "--scope", "s", "-o", "credential-process"]);
    assert_eq!(serde_json::from_str::<Value>(&out(&process)).unwrap()["SecretAccessKey"], SECRET);

    let (url, seen) = serve(|_, _| Answer::Json(200, credentials()));
    let process = run(&url, &["credentials", "--lease", ID]);
    assert_exit(&process, 0);
    assert_eq!(serde_json::from_str::<Value>(&out(&process)).unwrap()["Version"], 1);
    assert_eq!(seen.lock().unwrap()[0].line, format!("POST /v1/leases/{ID}/credentials"));
    for format in ["text", "json"] {
        assert_exit(&run(&url, &["credentials", "--lease", ID, "-o", format]), 2);
    }
    assert_eq!(
        seen.lock().unwrap().len(),
        1,
        "nothing may be claimed for a format that cannot show it"
    );
}

#[test]
fn a_lost_connection_is_retried_with_the_same_idempotency_key_and_twice_at_most() {
    let (url, seen) =
        serve(
            |before, _| {
                if before < 2 { Answer::HangUp } else { Answer::Json(201, lease("approved")) }
            },
        );
    assert_exit(&run(&url, &["lease", "--scope", "s"]), 0);
    let keys: Vec<_> =
        seen.lock().unwrap().iter().map(|it| it.headers["idempotency-key"].clone()).collect();
    assert_eq!(keys, [keys[0].as_str(); 3]);

    let (url, seen) = serve(|_, _| Answer::HangUp);
    assert_exit(&run(&url, &["lease", "--scope", "s"]), 7);
    assert_eq!(seen.lock().unwrap().len(), 3);
}

#[test]
fn waiting_outlives_a_broker_that_is_away_and_then_delivers() {
    let (url, seen) = serve(|before, request| match before {
        0 => Answer::Json(202, lease("pending")),
        1 => Answer::HangUp,
        2 => problem("database-unavailable", 503),
        _ if request.line.starts_with("GET ") => Answer::Json(200, lease("approved")),
        _ => Answer::Json(200, credentials()),
    });
    let output = run(&url, &["lease", "--scope", "s", "--wait", "1m", "-o", "credential-process"]);
    assert_exit(&output, 0);
    assert!(out(&output).contains(SECRET));
    assert!(err(&output).contains(&format!("lease {ID} is approved")), "{}", err(&output));
    let lines: Vec<_> = seen.lock().unwrap().iter().map(|it| it.line.clone()).collect();
    assert_eq!(lines[1], format!("GET /v1/leases/{ID}?wait_seconds=30"));
    assert_eq!(lines.last().unwrap(), &format!("POST /v1/leases/{ID}/credentials"));
}

#[test]
fn a_wait_that_is_over_leaves_the_lease_pending_and_exits_3() {
    let (url, _) = serve(|_, _| Answer::Json(202, lease("pending")));
    let output = run(&url, &["lease", "--scope", "s", "--wait", "1s", "-o", "env"]);
    assert_exit(&output, 3);
    assert_eq!(out(&output), UNSET);
}

#[test]
fn exec_runs_the_command_with_these_credentials_alone() {
    let (url, seen) = serve(|_, _| Answer::Json(201, issued()));
    let script = "echo $AWS_ACCESS_KEY_ID $AWS_REGION $AWS_CONFIG_FILE ${AWS_PROFILE-none} $BROKER_TOKEN; exit 42";
    let home = TempDir::new().unwrap();
    let args = ["exec", "--scope", "s", "--env", "--", "sh", "-c", script];
    let output = broker(&url, home.path(), &args)
        .env("BROKER_TOKEN", "agent-token")
        .env("AWS_PROFILE", "admin")
        .output()
        .unwrap();
    assert_exit(&output, 42);
    assert_eq!(out(&output), "ASIAEXAMPLE eu-west-1 /dev/null none agent-token\n");
    assert_eq!(seen.lock().unwrap()[0].body["deliver"], true);
}

/// RFC 3339, so many minutes from now.
#[expect(
    clippy::disallowed_methods,
    reason = "the edge of the tests: the endpoint goes by real time"
)]
fn in_minutes(minutes: i64) -> String {
    let at = time::OffsetDateTime::now_utc() + time::Duration::minutes(minutes);
    at.format(&time::format_description::well_known::Rfc3339).unwrap()
}

/// Credentials number `number`, good for so many minutes.
fn good_for(number: usize, minutes: i64) -> Value {
    let mut it = credentials();
    it["access_key_id"] = json!(format!("ASIA{number}"));
    it["expires_at"] = json!(in_minutes(minutes));
    it
}

/// An unsigned lease with credentials, and when its window ends.
fn unsigned(number: usize, minutes: i64, window_minutes: i64) -> Value {
    let mut it = lease("issued");
    it["signatures_needed"] = json!(0);
    it["ends_at"] = json!(in_minutes(window_minutes));
    it["credentials"] = good_for(number, minutes);
    it
}

/// A command under `broker exec` that tells where its endpoint is, and runs until its input ends.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
    token: String,
    environment: String,
}

impl Running {
    fn start(url: &str, script: &str) -> Self {
        Self::with(url, script, ("BROKER_TOKEN", "agent-token".as_ref()))
    }

    fn with(url: &str, script: &str, (name, token): (&str, &Path)) -> Self {
        let home = TempDir::new().unwrap();
        let script = format!("env; echo READY; {script}");
        let args = ["exec", "--scope", "s", "--task", "OPS-7", "--", "sh", "-c", &script];
        let mut child = broker(url, home.path(), &args)
            .env(name, token)
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/of/another")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut environment = String::new();
        while !environment.ends_with("READY\n") {
            assert_ne!(stdout.read_line(&mut environment).unwrap(), 0, "it ended: {environment}");
        }
        let value = |name: &str| {
            environment.lines().find_map(|it| it.strip_prefix(name)).unwrap_or_default().to_owned()
        };
        let uri = value("AWS_CONTAINER_CREDENTIALS_FULL_URI=http://");
        let address = uri.strip_suffix("/credentials").expect("its path").to_owned();
        let token = value("AWS_CONTAINER_AUTHORIZATION_TOKEN=");
        Self { child, stdout, address, token, environment }
    }

    fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        // It may have answered and hung up before it was sent all.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn request(&self) -> String {
        let Self { address, token, .. } = self;
        format!(
            "GET /credentials HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\nAuthorization: {token}\r\n\r\n"
        )
    }

    /// The status and the document.
    fn get(&self) -> (u16, Value) {
        let answer = self.send(&self.request());
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    fn key(&self) -> Value {
        let (status, document) = self.get();
        assert_eq!(status, 200, "{document}");
        document["AccessKeyId"].clone()
    }

    /// Ends the command's input, and so the command.
    fn end(mut self) -> Output {
        drop(self.child.stdin.take());
        let address = self.address.clone();
        let output = self.child.wait_with_output().unwrap();
        assert!(TcpStream::connect(address).is_err(), "the endpoint is gone with the command");
        output
    }
}

#[test]
fn the_endpoint_of_exec_serves_who_has_its_token_and_is_gone_with_the_command() {
    let (url, seen) = serve(|_, _| Answer::Json(201, unsigned(1, 15, 60)));
    let running = Running::start(&url, "cat; exit 42");
    let Running { address, token, environment, .. } = &running;
    for secret in [SECRET, "ASIA1", "tok==", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] {
        assert!(!environment.contains(secret), "{secret} is in {environment}");
    }
    assert!(environment.contains("AWS_CONFIG_FILE=/dev/null\n"), "{environment}");
    assert!(address.starts_with("127.0.0.1:") && 43 <= token.len(), "{environment}");

    let good = running.request();
    assert!(running.send(&good).contains("\r\ncache-control: no-store\r\n"));
    let (status, document) = running.get();
    assert_eq!(status, 200);
    assert_eq!(document["AccessKeyId"], "ASIA1");
    assert_eq!(document["SecretAccessKey"], SECRET);
    assert_eq!(document["Token"], "tok==");
    assert_eq!(document["AccountId"], "000000000000");
    assert_eq!(document["Expiration"], in_minutes(15)[..19].to_owned() + "Z");

    let authorization = format!("Authorization: {token}\r\n");
    let host = format!("Host: {address}\r\n");
    for (what, request, status) in [
        ("no token", good.replace(&authorization, ""), "401"),
        ("another token", good.replace(&token[1..], "x"), "401"),
        ("half the token", good.replace(&token[20..], ""), "401"),
        ("the token twice", good.replace(&authorization, &authorization.repeat(2)), "401"),
        ("no host", good.replace(&host, ""), "400"),
        ("a host that resolves here", good.replace("127.0.0.1", "evil.example"), "400"),
        ("another spelling of it", good.replace("127.0.0.1", "localhost"), "400"),
        ("another path", good.replace("/credentials", "/credentials/"), "404"),
        ("the root", good.replace("/credentials", "/"), "404"),
        ("another method", good.replace("GET", "POST"), "405"),
        ("no HTTP", "\x16\x03\x01 hello\r\n\r\n".to_owned(), "400"),
        ("half a request", good[..30].to_owned() + "\0", "400"),
        ("a flood", good.replace("*/*", &"x".repeat(20_000)), "431"),
    ] {
        let answer = running.send(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
        assert!(!answer.contains(SECRET) && !answer.contains(token.as_str()), "{what}: {answer}");
        assert!(
            answer.contains("\"Code\":") && answer.contains("\"Message\":"),
            "{what}: {answer}"
        );
    }
    // Who says nothing holds up nobody.
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(running.key(), "ASIA1");
    drop(silent);
    assert_eq!(seen.lock().unwrap().len(), 1, "it gave what it had");
    assert_exit(&running.end(), 42);
}

#[test]
fn credentials_that_end_soon_are_renewed_by_one_request_however_many_ask() {
    let (url, seen) = serve(|before, _| match before {
        0 => Answer::Json(201, unsigned(1, 4, 60)),
        _ => Answer::Json(200, good_for(2, 60)),
    });
    let running = Running::start(&url, "cat");
    let keys: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| running.key())).collect();
        asking.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert_eq!(keys, ["ASIA2"; 8]);
    assert_exit(&running.end(), 0);
    let lines: Vec<_> = seen.lock().unwrap().iter().map(|it| it.line.clone()).collect();
    assert_eq!(lines, ["POST /v1/leases", &format!("POST /v1/leases/{ID}/credentials")]);
}

#[test]
fn a_window_that_is_over_is_asked_for_again_in_the_same_words_unless_somebody_ended_it() {
    let (url, seen) = serve(|_, request| match request.line.as_str() {
        "POST /v1/leases" if request.headers["idempotency-key"].is_empty() => Answer::HangUp,
        "POST /v1/leases" => Answer::Json(201, unsigned(1, 60, 3)),
        _ => Answer::Json(200, lease("expired")),
    });
    let running = Running::start(&url, "cat");
    // The session lasts an hour, and its lease three minutes.
    assert_eq!(running.get().1["Expiration"], in_minutes(3)[..19].to_owned() + "Z");
    assert_exit(&running.end(), 0);
    {
        let seen = seen.lock().unwrap();
        let lines: Vec<_> = seen.iter().map(|it| it.line.as_str()).collect();
        assert_eq!(lines, ["POST /v1/leases", &format!("GET /v1/leases/{ID}"), "POST /v1/leases"]);
        assert_eq!(seen[0].body, seen[2].body);
        assert_eq!((&seen[2].body["task"], &seen[2].body["join"]), (&json!("OPS-7"), &json!(true)));
    }

    let (url, seen) = serve(|before, _| match before {
        0 => Answer::Json(201, unsigned(1, 60, 3)),
        _ => Answer::Json(200, lease("revoked")),
    });
    let running = Running::start(&url, "cat");
    let (status, document) = running.get();
    assert_eq!((status, &document["Code"]), (403, &json!("ended")));
    assert!(document["Message"].as_str().unwrap().contains("is revoked"), "{document}");
    let output = running.end();
    assert!(err(&output).contains("broker: no new credentials: "), "{}", err(&output));
    assert_eq!(seen.lock().unwrap().len(), 2, "nobody asked for another");
}

#[test]
fn the_token_of_the_next_task_renews_what_the_last_one_got_but_for_what_somebody_stopped() {
    for (state, given) in [("expired", true), ("issued", true), ("revoked", false)] {
        let (url, seen) = serve(move |before, request| match (before, request.line.as_str()) {
            (0, _) => Answer::Json(201, unsigned(1, 4, 60)),
            (_, "POST /v1/leases") => Answer::Json(201, unsigned(2, 60, 60)),
            _ => Answer::Json(200, lease(state)),
        });
        let dir = TempDir::new().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "first").unwrap();
        let running = Running::with(&url, "cat", ("BROKER_TOKEN_FILE", &token));
        std::fs::write(&token, "second").unwrap();
        assert_eq!(running.get().0 == 200, given, "{state}");
        assert_exit(&running.end(), 0);
        let seen = seen.lock().unwrap();
        let tokens: Vec<_> = seen.iter().map(|it| it.headers["authorization"].as_str()).collect();
        let asked = ["Bearer first", "Bearer second", "Bearer second"];
        assert_eq!(tokens, asked[..if given { 3 } else { 2 }], "{state}");
        assert_eq!(seen[1].line, format!("GET /v1/leases/{ID}"));
    }
}

#[test]
fn a_refusal_reaches_the_command_in_the_brokers_words_and_takes_back_what_was_there() {
    let (url, seen) = serve(|before, _| match before {
        0 => Answer::Json(201, unsigned(1, 4, 60)),
        1..3 => problem("frozen", 403),
        _ => Answer::Json(200, good_for(2, 60)),
    });
    let running = Running::start(&url, "cat");
    for _ in 0..2 {
        let (status, document) = running.get();
        assert_eq!((status, &document["Code"]), (403, &json!("frozen")));
        assert_eq!(document["Message"], "T: d; next: n");
    }
    // Within a second the broker is not asked again; after it, it gives again.
    let asked = std::time::Instant::now();
    while running.get().0 != 200 {
        assert!(asked.elapsed().as_secs() < 20, "it never gives again");
    }
    let output = running.end();
    let lines: Vec<_> = err(&output).lines().map(str::to_owned).collect();
    let told = ["broker: no new credentials: T: d; next: n", "broker: credentials are given again"];
    assert_eq!(lines, told, "once each");
    assert_eq!(seen.lock().unwrap().len(), 4);
}

#[test]
fn a_broker_that_is_away_and_a_lease_that_gives_once_take_nothing_back() {
    for (answer, code) in [("database-unavailable", 503), ("already-issued", 409)] {
        let (url, _) = serve(move |before, _| match before {
            0 => Answer::Json(201, unsigned(1, 4, 60)),
            _ => problem(answer, code),
        });
        let running = Running::start(&url, "cat");
        assert_eq!(running.key(), "ASIA1");
        assert_exit(&running.end(), 0);
        // Of what is over, only the reason is left.
        let (url, _) = serve(move |before, _| match before {
            0 => Answer::Json(201, unsigned(1, -1, 60)),
            _ => problem(answer, code),
        });
        let running = Running::start(&url, "cat");
        let (status, document) = running.get();
        assert_eq!(document["Code"], answer);
        assert_eq!(status, if code == 503 { 503 } else { 403 });
    }
}

#[test]
fn the_command_gets_the_signals_that_broker_gets_and_its_end_is_told_as_a_shell_does() {
    let (url, _) = serve(|_, _| Answer::Json(201, unsigned(1, 15, 60)));
    let signal = |running: &Running, name: &str| {
        let id = running.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    };
    // Nothing of ours is caught in the command.
    let mut running = Running::start(&url, "exec cat");
    let input = running.child.stdin.take();
    signal(&running, "TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(128 + 15));
    drop(input);

    let traps =
        "trap 'echo hup; exit 7' HUP; trap 'echo int' INT; echo SET; while :; do sleep 0.02; done";
    let mut running = Running::start(&url, traps);
    let input = running.child.stdin.take();
    let mut line = String::new();
    running.stdout.read_line(&mut line).unwrap();
    // A terminal sends this to both; sent to broker alone it stays there.
    signal(&running, "INT");
    signal(&running, "HUP");
    running.stdout.read_to_string(&mut line).unwrap();
    drop(input);
    assert_eq!(line, "SET\nhup\n");
    assert_eq!(running.child.wait().unwrap().code(), Some(7));
}

#[test]
fn exec_asks_for_nothing_when_there_is_no_such_command_and_leaves_stdout_alone_when_pending() {
    let (url, seen) = serve(|_, _| problem("pending", 409));
    assert_exit(&run(&url, &["exec", "--lease", ID, "--", "no-such-program"]), 2);
    assert_eq!(seen.lock().unwrap().len(), 0);
    let output = run(&url, &["exec", "--lease", ID, "--", "true"]);
    assert_exit(&output, 3);
    assert_eq!(out(&output), "");
    assert_exit(&run(&url, &["exec", "--", "true"]), 2);
    assert_exit(&run(&url, &["exec", "--lease", ID, "--scope", "s", "--", "true"]), 2);
}

#[test]
fn a_profile_is_written_beside_what_others_wrote_and_holds_no_token() {
    let home = TempDir::new().unwrap();
    let aws = home.path().join(".aws");
    let config = aws.join("config");
    let profile = |args: &[&str]| {
        let args: Vec<_> = ["profile"].iter().chain(args).copied().collect();
        broker("http://localhost:1", home.path(), &args)
            .env("BROKER_TOKEN", "s3cr3t-token")
            .output()
            .unwrap()
    };
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let text = || std::fs::read_to_string(&config).unwrap();

    let added = profile(&[
        "add",
        "work",
        "--scope",
        "s",
        "--reason",
        "don't \"stop\"",
        "--region",
        "us-east-1",
    ]);
    assert_exit(&added, 0);
    let program = env!("CARGO_BIN_EXE_broker");
    let process = format!(
        r#"{program} credentials --url http://localhost:1 --scope s --reason 'don'\''t "stop"'"#
    );
    assert_eq!(
        text(),
        format!("[profile work]\ncredential_process = {process}\nregion = us-east-1\n")
    );
    assert_eq!((mode(&aws), mode(&config)), (0o700, 0o600));
    assert_eq!(serde_json::from_str::<Value>(&out(&added)).unwrap()["credential_process"], process);
    assert!(err(&added).contains("BROKER_TOKEN"), "{}", err(&added));

    // Behind a link, with somebody's words and their own access; and this profile is changed in its place.
    let real = home.path().join("dotfiles");
    let theirs = "# mine\r\n[profile other]\r\nregion=x\r\n";
    std::fs::write(&real, format!("{theirs}{}", text())).unwrap();
    std::fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink(&real, &config).unwrap();
    assert_exit(
        &profile(&["add", "work", "--scope", "t", "--ttl", "1h", "--action", "s3:Get*"]),
        0,
    );
    let process = format!(
        "{program} credentials --url http://localhost:1 --scope t --ttl 3600s --action 's3:Get*'"
    );
    assert_eq!(
        text(),
        format!("{theirs}[profile work]\ncredential_process = {process}\r\nregion = us-east-1\n")
    );
    assert!(config.is_symlink());
    assert_eq!(mode(&real), 0o640);

    // What is another's stays, unless told otherwise.
    let before = text();
    for args in [
        &["add", "other", "--scope", "s"][..],
        &["add", "work", "--scope", "s", "--url", "http://localhost:2"],
        &["add", "a b", "--scope", "s"],
        &["add", "new", "--scope", "s", "--reason", "line\nline"],
        &["add", "new", "--scope", "s", "--region", "x y"],
        &["remove", "other"],
        &["remove", "nothing"],
    ] {
        let output = profile(args);
        assert_exit(&output, 2);
        assert!(err(&output).contains("\nnext: "), "{}", err(&output));
        assert_eq!(text(), before, "{args:?}");
    }
    std::fs::write(aws.join("credentials"), "[keys]\naws_access_key_id = AKIA\n").unwrap();
    assert_exit(&profile(&["add", "keys", "--scope", "s"]), 2);
    assert_exit(&profile(&["add", "keys", "--scope", "s", "--force"]), 2);
    assert_exit(&profile(&["add", "other", "--scope", "s", "--force"]), 0);
    assert!(!text().contains("region=x") && text().starts_with("# mine\r\n"), "{}", text());

    let listed = profile(&["list", "-o", "text"]);
    let names: Vec<_> =
        out(&listed).lines().map(|it| it.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["PROFILE", "work", "other"]);
    for name in ["work", "other"] {
        assert_exit(&profile(&["remove", name]), 0);
    }
    assert_eq!(text().trim_end(), "# mine");
    assert_exit(&profile(&["add", "default", "--scope", "s"]), 0);
    assert!(text().contains("\n[default]\r\n"), "{}", text());
    assert!(!text().contains("s3cr3t"));
}

#[test]
fn a_token_follows_no_redirect_and_no_proxy() {
    let (elsewhere, seen) = serve(|_, _| Answer::Json(201, lease("approved")));
    let target = elsewhere.clone();
    let (url, _) = serve(move |_, _| Answer::Redirect(format!("{target}/v1/leases")));
    assert_exit(&run(&url, &["lease", "--scope", "s"]), 1);

    let home = TempDir::new().unwrap();
    let (here, _) = serve(|_, _| Answer::Json(201, lease("approved")));
    let output = broker(&here, home.path(), &["lease", "--scope", "s"])
        .env("BROKER_TOKEN", "agent-token")
        .env("HTTP_PROXY", &elsewhere)
        .env("ALL_PROXY", &elsewhere)
        .output()
        .unwrap();
    assert_exit(&output, 0);
    assert_eq!(seen.lock().unwrap().len(), 0);
}

#[test]
fn lists_are_read_page_by_page_and_filters_are_escaped() {
    let (url, seen) = serve(|before, _| {
        let cursor = if before == 0 { json!(ID) } else { Value::Null };
        Answer::Json(200, json!({ "leases": [lease("pending")], "next_cursor": cursor }))
    });
    let output = run(&url, &["leases", "--state", "pending", "--agent", "a&b c", "-o", "text"]);
    assert_exit(&output, 0);
    assert_eq!(out(&output).matches(ID).count(), 2);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].line, "GET /v1/leases?limit=25&state=pending&agent=a%26b%20c");
    assert_eq!(
        seen[1].line,
        format!("GET /v1/leases?limit=25&state=pending&agent=a%26b%20c&after={ID}")
    );
}

#[test]
fn without_a_token_the_way_to_one_is_said() {
    let home = TempDir::new().unwrap();
    for (args, way) in
        [(["lease", "--scope=s"], "BROKER_TOKEN"), (["leases", "--limit=1"], "broker login --key")]
    {
        let output = broker("http://localhost:1", home.path(), &args).output().unwrap();
        assert_exit(&output, 8);
        assert!(err(&output).lines().last().unwrap().contains(way), "{}", err(&output));
    }
}

#[test]
fn help_completions_and_manual_pages_are_there_without_a_broker() {
    for args in [
        &["--help"][..],
        &["lease", "--help"],
        &["completions", "bash"],
        &["man"],
        &["man", "exec"],
    ] {
        let output = run("http://example.com", args);
        assert_exit(&output, 0);
        assert!(!out(&output).contains("agent-token"));
        assert!(!out(&output).is_empty());
    }
    assert!(out(&run("", &["man", "exec"])).contains("broker-exec"));
    assert_exit(&run("", &["man", "no-such"]), 2);
    assert_exit(&run("", &["no-such-command"]), 2);
}

#[test]
fn an_explanation_is_asked_for_once_and_exits_0_whatever_it_says() {
    let answer = json!({
        "outcome": "over-budget", "why": "no room\u{1b}[2J", "retry_at": "2026-01-01T12:01:00Z", "decided_by": ["agents-may-ask"],
        "scope": "prod-rw", "environment": "production", "tier": "production-write", "tier_because": "s3:PutObject is review in production",
        "actions": [{ "action": "s3:PutObject", "class": "review", "any_resource": false }, { "action": "s3:ListAllMyBuckets", "class": "read", "any_resource": true }],
        "resources": ["*", "arn:aws:s3:::app/config.json"], "session_policy": "{}", "ttl_seconds": 900, "session_seconds": 900,
        "signatures_needed": 1, "eligible_signers": ["bob", "carol"], "assurance": "verified",
    });
    let given = answer.clone();
    let (url, seen) = serve(move |_, _| Answer::Json(200, given.clone()));
    let args = ["explain", "--scope", "prod-rw", "--action", "s3:PutObject", "--ttl", "15m"];
    let output = run(&url, &[&args[..], &["-o", "text"]].concat());
    assert_exit(&output, 0);
    let text = out(&output);
    for line in [
        "outcome    over-budget: no room\\u{1b}[2J",
        "ask again  2026-01-01T12:01:00Z",
        "by rules   agents-may-ask",
        "s3:ListAllMyBuckets          reads configuration, on anything in the account",
        "on         arn:aws:s3:::app/config.json",
        "signers    1 of bob, carol, with keys of assurance verified",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(seen.lock().unwrap().len(), 1);
    let request = seen.lock().unwrap()[0].clone();
    assert!(request.line.starts_with("POST /v1/explain"), "{}", request.line);
    assert_eq!(
        request.body,
        json!({ "scope": "prod-rw", "actions": ["s3:PutObject"], "ttl_seconds": 900, "deliver": false })
    );
    let output = run(&url, &[&args[..], &["-o", "json"]].concat());
    assert_exit(&output, 0);
    assert_eq!(serde_json::from_str::<Value>(&out(&output)).unwrap()["session_policy"], "{}");
}

/// Base64url, which one in 64 begins with a dash.
#[test]
fn any_key_id_can_be_demanded_of_an_export() {
    for id in ["-bcDEF", "--cDEF", "abcDEF"] {
        let output = run("", &["audit", "verify", "/nonexistent", "--instance-key", id]);
        assert_exit(&output, 2);
        assert!(err(&output).contains("/nonexistent cannot be read"), "{id}: {}", err(&output));
    }
}

/// A revoked lease whose session AWS refuses, or not yet.
fn stopped(state: &str) -> Value {
    let mut lease = lease("revoked");
    let stopped = state == "stopped";
    lease["sessions"] = json!([{
        "id": ID, "state": state, "session_name": "s", "access_key_id": "ASIAEXAMPLE", "claimed_at": "2026-01-01T12:00:00Z",
        "expires_at": "2026-01-01T12:15:00Z", "failure": null, "revoking_at": "2026-01-01T12:01:00Z",
        "stopped_at": stopped.then_some("2026-01-01T12:01:03.5Z"), "stopped_region": stopped.then_some("eu-west-1"),
    }]);
    lease
}

#[test]
fn revoke_waits_until_aws_refuses_and_says_when_and_who_says_so() {
    let (url, seen) = serve(|before, _| {
        Answer::Json(200, stopped(if before < 2 { "revoking" } else { "stopped" }))
    });
    let output = run(&url, &["revoke", ID, "--reason", "it deletes"]);
    assert_exit(&output, 0);
    assert!(err(&output).contains("AWS refuses it, as eu-west-1 says, 3.5 s after"), "{output:?}");
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].line, format!("POST /v1/leases/{ID}/revoke"));
    assert_eq!(seen[0].body, json!({ "reason": "it deletes" }));
    assert_eq!(seen[2].line, format!("GET /v1/leases/{ID}"));

    // Stopped here is not stopped at AWS, and is not said to be.
    let (url, seen) = serve(|_, _| Answer::Json(200, stopped("revoking")));
    let output = run(&url, &["revoke", ID, "--reason", "it deletes", "--wait", "0s"]);
    assert_exit(&output, 9);
    assert!(err(&output).contains("AWS was not yet seen to refuse 1 sessions"), "{output:?}");
    assert_eq!(seen.lock().unwrap().len(), 1);

    let output = run(&url, &["revoke", ID]);
    assert_exit(&output, 2);
}

#[test]
fn freeze_names_one_thing_and_a_key_is_enough_to_freeze_with() {
    let (home, key, _) = home_with_key();
    let (url, seen) = serve(|_, request| match request.line.split('/').next_back().unwrap() {
        "nonce" => {
            Answer::Json(200, json!({ "nonce": "n0nce", "expires_at": "2100-01-01T00:00:00Z" }))
        }
        "login" => Answer::Json(
            200,
            json!({ "person": "carol", "token": "carols", "expires_at": "2100-01-01T00:00:00Z" }),
        ),
        _ => Answer::Json(
            201,
            json!({
                "id": ID, "kind": "environment", "target": "production", "reason": "r", "created_by": "carol",
                "created_at": "2026-01-01T12:00:00Z", "thawed_by": null, "thawed_at": null, "sessions": 2, "not_yet_stopped": 0, "roles_not_told": 0,
                "stopped_at": "2026-01-01T12:00:02Z",
            }),
        ),
    });
    let with = |args: &[&str]| {
        let key = key.to_str().unwrap();
        let args: Vec<_> =
            ["freeze", "--reason", "r", "--key", key].iter().chain(args).copied().collect();
        broker(&url, home.path(), &args).output().unwrap()
    };
    for args in [&[][..], &["--all", "--agent", "x"], &["--scope", "x", "--sponsor", "y"]] {
        assert_exit(&with(args), 2);
    }
    assert!(seen.lock().unwrap().is_empty());
    let output = with(&["--environment", "production"]);
    assert_exit(&output, 0);
    let words = err(&output);
    assert!(words.contains("AWS refuses all 2 sessions, 2.0 s after"), "{words}");
    assert!(words.contains(&format!("broker thaw {ID}")), "{words}");
    let seen = seen.lock().unwrap();
    let last = seen.last().unwrap();
    assert_eq!(last.line, "POST /v1/freezes");
    assert_eq!(last.headers["authorization"], "Bearer carols");
    assert_eq!(last.body, json!({ "kind": "environment", "target": "production", "reason": "r" }));
}

fn sealed(tier: Tier) -> LeaseStatement {
    let actions = vec![ActionTerms {
        action: "s3:PutObject".into(),
        class: ActionClass::Review,
        any_resource: false,
        any_region: false,
        any_account: false,
    }];
    let resources = vec!["arn:aws:s3:::prod-app-data/config.json".into()];
    let conditions = Conditions {
        regions: vec!["us-east-1".into()],
        secure_transport: false,
        source_networks: vec![],
        pass_role_to: vec![],
        more: vec![],
    };
    let policy = session_policy(&actions, &resources, "000000000000", &conditions, None);
    LeaseStatement::new(LeaseTerms {
        broker: Issuer { origin: "http://localhost:8750".into(), instance_key: "kid".into() },
        lease_id: ID.parse::<LeaseId>().unwrap(),
        agent: AgentTerms { name: "demo-agent".into(), issuer: "broker".into() },
        sponsor: "alice".into(),
        actor: None,
        sponsor_task: "demo".into(),
        agent_says: AgentWords {
            task: "OPS-7".into(),
            reason: "because".into(),
            rollback: "undo".into(),
        },
        scope: "prod-rw".into(),
        environment: Environment::Production,
        tier,
        tier_because: "s3:PutObject".into(),
        account: Account { id: "000000000000".into(), alias: "demo".into() },
        region: "us-east-1".into(),
        assume_role: AssumeRole {
            role_arn: "arn:aws:iam::000000000000:role/broker-production".into(),
            external_id: None,
            policy_sha256: sha256_hex(policy.as_bytes()),
            policy,
            duration_seconds: 900,
            tags: BTreeMap::new(),
            source_identity: ID.into(),
        },
        actions,
        resources,
        compared_to: None,
        conditions,
        signers: Signers {
            eligible: vec!["bob".into()],
            needed: 1,
            assurance: Assurance::Software,
        },
        rules: Rules { sha256: "00".repeat(32), decided_by: vec!["agents-may-ask".into()] },
        requested_at: datetime!(2026-01-01 12:00 UTC),
        sign_by: datetime!(2026-01-01 12:30 UTC),
        claim_within_seconds: 900,
        nonce: "ab".repeat(32),
    })
    .unwrap()
}

fn statement_answer(sealed: &LeaseStatement) -> Value {
    json!({
        "id": ID, "statement": STANDARD.encode(sealed.bytes()), "sha256": sealed.sha256(),
        "short_code": sealed.short_code(),
    })
}

/// A server with one lease to sign; whoever logs in is bob, for an hour that never ends.
fn signing_server(statement: Value) -> (String, Seen) {
    serve(move |_, request| match request.line.split('/').next_back().unwrap() {
        "nonce" => {
            Answer::Json(200, json!({ "nonce": "n0nce", "expires_at": "2100-01-01T00:00:00Z" }))
        }
        "login" => Answer::Json(
            200,
            json!({ "person": "bob", "token": "bobs-token", "expires_at": "2100-01-01T00:00:00Z" }),
        ),
        "statement"
            if request.headers.get("authorization").is_some_and(|it| it == "Bearer bobs-token") =>
        {
            Answer::Json(200, statement.clone())
        }
        "signatures" => Answer::Json(200, lease("approved")),
        _ => problem("not-found", 404),
    })
}

/// A home with a software key in it, and the key.
fn home_with_key() -> (TempDir, PathBuf, EnrolledKey) {
    let home = TempDir::new().unwrap();
    let key = home.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    let public_key =
        std::fs::read_to_string(home.path().join("key.pub")).unwrap().trim().to_owned();
    let enrolled = EnrolledKey {
        public_key,
        assurance: Assurance::Software,
        enrolled_at: datetime!(2026-01-01 12:00 UTC),
        revoked_at: None,
    };
    (home, key, enrolled)
}

#[track_caller]
fn assert_signed(armored: &Value, key: &EnrolledKey, meaning: Meaning, body: &[u8]) {
    let signature = UnverifiedSignature::parse(armored.as_str().unwrap()).unwrap();
    let now = datetime!(2026-01-01 12:10 UTC);
    let demand = Demand { meaning, body, origin: "", assurance: Assurance::Software };
    check_signature(&signature, key, demand, now).unwrap();
}

#[test]
fn sign_logs_in_shows_the_statement_and_sends_a_signature_over_exactly_those_bytes() {
    let sealed = sealed(Tier::ProductionWrite);
    let (url, seen) = signing_server(statement_answer(&sealed));
    let (home, key, enrolled) = home_with_key();
    let key = key.to_str().unwrap();
    let tmp = home.path().join("tmp");
    std::fs::create_dir(&tmp).unwrap();

    // An agent's token in the signer's environment is not what the statement is read with.
    let output = broker(&url, home.path(), &["sign", ID, "--key", key, "-o", "text"])
        .env("BROKER_TOKEN", "agent-token")
        .env("TMPDIR", &tmp)
        .output()
        .unwrap();
    assert_exit(&output, 0);
    for part in [
        "You are about to APPROVE",
        &sealed.short_code(),
        "s3:PutObject",
        "the agent's words, reason",
    ] {
        assert!(err(&output).contains(part), "{part} is missing from {}", err(&output));
    }
    assert!(!err(&output).contains('\u{1b}'), "no colour where there is no terminal");
    assert!(out(&output).contains("approved"));
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0, "nothing is left behind");
    let requests = std::mem::take(&mut *seen.lock().unwrap());
    assert_signed(&requests[1].body["signature"], &enrolled, Meaning::Login, b"n0nce");
    assert_eq!(requests[3].line, format!("POST /v1/leases/{ID}/signatures"));
    assert_signed(
        &requests[3].body["signature"],
        &enrolled,
        Meaning::LeaseApproval,
        sealed.bytes(),
    );
    assert_eq!(requests[3].body["statement_sha256"], sealed.sha256());
    assert!(!requests[3].headers.contains_key("authorization"));

    // The session is kept; a refusal is another meaning, and says why.
    let args = ["sign", ID, "--key", key, "--refuse", "--reason", "not today"];
    assert_exit(&broker(&url, home.path(), &args).output().unwrap(), 0);
    let requests = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(requests.len(), 2);
    assert_signed(&requests[1].body["signature"], &enrolled, Meaning::LeaseRefusal, sealed.bytes());
    assert_eq!(
        (&requests[1].body["decision"], &requests[1].body["reason"]),
        (&json!("refuse"), &json!("not today"))
    );
}

#[test]
fn a_signature_made_with_stock_ssh_keygen_over_the_printed_bytes_is_sent_as_it_is() {
    let sealed = sealed(Tier::ProductionWrite);
    let (url, seen) = signing_server(statement_answer(&sealed));
    let (home, key, enrolled) = home_with_key();
    assert_exit(
        &broker(&url, home.path(), &["login", "--key", key.to_str().unwrap()]).output().unwrap(),
        0,
    );

    let printed = broker(&url, home.path(), &["sign", ID, "--print"]).output().unwrap();
    assert_exit(&printed, 0);
    assert_eq!(printed.stdout, Meaning::LeaseApproval.message(sealed.bytes()));
    assert!(err(&printed).contains("ssh-keygen -Y sign -n lease-approval@broker -f KEY"));
    let file = home.path().join("request");
    std::fs::write(&file, &printed.stdout).unwrap();
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-q", "-Y", "sign", "-n", "lease-approval@broker", "-f"]).arg(&key).arg(&file);
    assert!(sign.status().unwrap().success());

    let signature = home.path().join("request.sig");
    let args = ["sign", ID, "--signature", signature.to_str().unwrap()];
    assert_exit(&broker(&url, home.path(), &args).output().unwrap(), 0);
    let requests = seen.lock().unwrap();
    assert_signed(
        &requests.last().unwrap().body["signature"],
        &enrolled,
        Meaning::LeaseApproval,
        sealed.bytes(),
    );
}

#[test]
fn a_statement_that_is_not_what_it_says_is_not_signed() {
    let good = sealed(Tier::ProductionWrite);
    let changed = |field: &str, value: Value| {
        let mut answer = statement_answer(&good);
        answer[field] = value;
        answer
    };
    let spaced = String::from_utf8(good.bytes().to_vec()).unwrap().replacen("\":", "\": ", 1);
    for answer in [
        changed("sha256", json!("00".repeat(32))),
        changed("short_code", json!("0000-0000")),
        changed("statement", json!(STANDARD.encode(spaced))),
        changed("statement", json!("***")),
        changed("id", json!("01920000-0000-7000-8000-000000000002")),
    ] {
        let (url, seen) = signing_server(answer);
        let (home, key, _) = home_with_key();
        let output = broker(&url, home.path(), &["sign", ID, "--key", key.to_str().unwrap()])
            .output()
            .unwrap();
        assert_exit(&output, 1);
        assert!(!seen.lock().unwrap().iter().any(|it| it.line.ends_with("/signatures")));
    }
    // Another lease's statement, whole and good, under the id that was asked for.
    let other = "01920000-0000-7000-8000-000000000002";
    let (url, seen) = signing_server(changed("id", json!(other)));
    let (home, key, _) = home_with_key();
    let args = ["sign", other, "--key", key.to_str().unwrap()];
    assert_exit(&broker(&url, home.path(), &args).output().unwrap(), 1);
    assert!(!seen.lock().unwrap().iter().any(|it| it.line.ends_with("/signatures")));
}

/// A signer at work: logged in, at a broker with one lease to sign, with an `ssh-keygen` that tells that it ran.
struct Desk {
    home: TempDir,
    key: String,
    url: String,
    seen: Seen,
}

impl Desk {
    fn of(sealed: &LeaseStatement) -> Self {
        Self::at(signing_server(statement_answer(sealed)))
    }

    fn at((url, seen): (String, Seen)) -> Self {
        let (home, key, _) = home_with_key();
        let key = key.to_str().unwrap().to_owned();
        assert_exit(&broker(&url, home.path(), &["login", "--key", &key]).output().unwrap(), 0);
        let bin = home.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let tells = "#!/bin/sh\n: >\"$HOME/ran\"\nexec /usr/bin/ssh-keygen \"$@\"\n";
        std::fs::write(bin.join("ssh-keygen"), tells).unwrap();
        std::fs::set_permissions(bin.join("ssh-keygen"), Permissions::from_mode(0o755)).unwrap();
        seen.lock().unwrap().clear();
        Self { home, key, url, seen }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.home.path()).env("BROKER_URL", &self.url);
        command.env("PATH", format!("{}/bin:/usr/bin:/bin", self.home.path().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a shell's `line`, in which `$BROKER` is the program, on a terminal at which `typed` is typed. What the
    /// terminal shows is the output.
    fn at_a_terminal(&self, line: &str, typed: &str, more: &[(&str, &str)]) -> Output {
        let mut script = self.command("script");
        script.args(["-qec", line, "/dev/null"]).env("BROKER", env!("CARGO_BIN_EXE_broker"));
        let mut child = script.envs(more.iter().copied()).spawn().unwrap();
        let mut keyboard = child.stdin.take().unwrap();
        writeln!(keyboard, "{typed}").unwrap();
        let output = child.wait_with_output().unwrap();
        // Until here: its end would be the terminal's.
        drop(keyboard);
        output
    }

    /// Runs `broker` in a session of its own, which has no terminal, with `input` as its standard input.
    fn without_a_terminal(&self, args: &[&str], input: &str) -> Output {
        let mut setsid = self.command("setsid");
        setsid.args(["--wait", env!("CARGO_BIN_EXE_broker")]).args(args);
        let mut child = setsid.spawn().unwrap();
        let _ = writeln!(child.stdin.take().unwrap(), "{input}");
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn assert_nothing_was_signed(&self, output: &Output) {
        assert_exit(output, 2);
        self.assert_no_signature(output);
    }

    #[track_caller]
    fn assert_no_signature(&self, output: &Output) {
        assert!(!self.home.path().join("ran").exists(), "ssh-keygen ran: {}", out(output));
        let sends =
            |it: &Request| it.line.ends_with("/signatures") || it.line == "POST /v1/statements";
        assert!(!self.seen.lock().unwrap().iter().any(sends), "{}", out(output));
    }

    /// Runs `broker` as one who is logged in and whose configuration names the key: it signs for nothing else first.
    fn run(&self, args: &[&str]) -> Output {
        let config = self.home.path().join(".config/broker");
        std::fs::create_dir_all(&config).unwrap();
        std::fs::write(config.join("config.toml"), format!("key = \"{}\"\n", self.key)).unwrap();
        self.command(env!("CARGO_BIN_EXE_broker")).args(args).output().unwrap()
    }
}

#[test]
fn who_is_not_trusted_is_asked_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.unwrap().write_all(b"this is no TLS");
        }
    });
    assert_exit(&run(&url, &["lease", "--scope", "s"]), 7);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn a_destructive_lease_is_not_approved_without_a_terminal_but_is_refused() {
    let sealed = sealed(Tier::Destructive);
    let desk = Desk::of(&sealed);
    let (key, code) = (desk.key.as_str(), sealed.short_code());
    let file = desk.home.path().join("signature");
    std::fs::write(&file, "made elsewhere").unwrap();
    for args in [
        &["sign", ID, "--key", key][..],
        &["sign", ID, "--key", key, "-o", "json"],
        &["sign", ID, "--signature", file.to_str().unwrap()],
    ] {
        let output = desk.without_a_terminal(args, &code);
        assert!(err(&output).contains("on a terminal only"), "{}", err(&output));
        assert!(!err(&output).contains(&code) && !out(&output).contains(&code));
        desk.assert_nothing_was_signed(&output);
    }
    let refuse = ["sign", ID, "--key", key, "--refuse", "--reason", "no"];
    assert_exit(&desk.without_a_terminal(&refuse, ""), 0);
}

#[test]
fn a_destructive_lease_is_signed_by_who_was_told_its_code_and_by_nobody_else() {
    let sealed = sealed(Tier::Destructive);
    let desk = Desk::of(&sealed);
    let (key, code) = (desk.key.as_str(), sealed.short_code());
    let sign = format!("\"$BROKER\" sign {ID} --key '{key}'");
    let other = "0000-0000";
    let piped = format!("yes '{code}' | {sign}");
    let variables = [("BROKER_CODE", code.as_str()), ("SHORT_CODE", &code), ("BROKER_YES", "1")];
    for (line, more) in [(&sign, &[][..]), (&piped, &[]), (&sign, &variables)] {
        let output = desk.at_a_terminal(line, other, more);
        let screen = out(&output);
        assert!(
            screen.contains("not shown: whoever asked for this has to tell it to you"),
            "{screen}"
        );
        assert!(screen.contains("that is not the code; nothing was signed"), "{screen}");
        assert!(!screen.contains(&code), "{screen}");
        desk.assert_nothing_was_signed(&output);
    }
    for nothing in ["", "y", "yes"] {
        desk.assert_nothing_was_signed(&desk.at_a_terminal(&sign, nothing, &[]));
    }

    let output = desk.at_a_terminal(&sign, &code.to_lowercase().replace('-', " "), &[]);
    assert_exit(&output, 0);
    assert!(desk.home.path().join("ran").exists());
    let sent = desk.seen.lock().unwrap().last().unwrap().clone();
    assert_eq!(sent.line, format!("POST /v1/leases/{ID}/signatures"));
    assert_eq!(sent.body["statement_sha256"], sealed.sha256());
}

#[test]
fn a_signature_made_elsewhere_over_something_destructive_takes_the_code_too() {
    let sealed = sealed(Tier::Destructive);
    let desk = Desk::of(&sealed);
    let home = desk.home.path();
    let printed = broker(&desk.url, home, &["sign", ID, "--print"]).output().unwrap();
    assert_exit(&printed, 0);
    assert!(!err(&printed).contains(&sealed.short_code()), "{}", err(&printed));
    std::fs::write(home.join("request"), &printed.stdout).unwrap();
    let mut keygen = Command::new("/usr/bin/ssh-keygen");
    keygen.args(["-q", "-Y", "sign", "-n", "lease-approval@broker", "-f", &desk.key]);
    assert!(keygen.arg(home.join("request")).status().unwrap().success());

    let file = home.join("request.sig");
    let sign = format!("\"$BROKER\" sign {ID} --signature '{}'", file.display());
    desk.assert_nothing_was_signed(&desk.at_a_terminal(&sign, "0000-0000", &[]));
    assert_exit(&desk.at_a_terminal(&sign, &sealed.short_code(), &[]), 0);
    let sent = desk.seen.lock().unwrap().last().unwrap().clone();
    assert_eq!(sent.body["signature"], std::fs::read_to_string(file).unwrap());
}

#[test]
fn lists_for_signers_show_the_code_of_everything_but_what_destroys() {
    let mut destructive = lease("pending");
    destructive["tier"] = json!("destructive");
    for (lease, shown) in [(lease("pending"), true), (destructive, false)] {
        let (url, _) = serve(move |_, request| match request.line.as_str() {
            // An agent has no statements to sign.
            "GET /v1/statements" => problem("unauthenticated", 401),
            _ => Answer::Json(200, json!({ "leases": [lease.clone()], "next_cursor": null })),
        });
        let output = run(&url, &["pending", "-o", "text"]);
        assert_exit(&output, 0);
        assert!(out(&output).contains("demo-agent"));
        assert_eq!(out(&output).contains("WERC-8GMR"), shown, "{}", out(&output));
    }
}

#[test]
fn colour_is_for_terminals_whose_owner_wants_it() {
    let sealed = sealed(Tier::ProductionWrite);
    let desk = Desk::of(&sealed);
    let sign = format!("\"$BROKER\" sign {ID} --key '{}'", desk.key);
    let colour = |line: &str, more: &[(&str, &str)]| {
        let output = desk.at_a_terminal(line, "", more);
        assert_exit(&output, 0);
        out(&output).contains('\u{1b}')
    };
    assert!(colour(&sign, &[]));
    assert!(!colour(&sign, &[("NO_COLOR", "1")]));
    assert!(!colour(&format!("{sign} --no-color"), &[]));
    assert!(!colour(&format!("{sign} 2>'{}/words'", desk.home.path().display()), &[]));
    let words = std::fs::read_to_string(desk.home.path().join("words")).unwrap();
    assert!(words.contains(&sealed.short_code()) && !words.contains('\u{1b}'), "{words}");
}

/// An ssh-agent of its own, which ends with it.
struct SshAgent {
    child: Child,
    socket: PathBuf,
}

impl SshAgent {
    fn start(home: &Path) -> Self {
        let socket = home.join("agent");
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        while UnixStream::connect(&socket).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "ssh-agent ended");
            std::thread::yield_now();
        }
        Self { child, socket }
    }

    fn add(&self, key: &Path) {
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket).stdin(Stdio::null());
        assert!(add.status().unwrap().success());
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn the_key_may_be_the_one_that_ssh_agent_holds() {
    let sealed = sealed(Tier::ProductionWrite);
    let (url, seen) = signing_server(statement_answer(&sealed));
    let (home, key, enrolled) = home_with_key();
    let agent = SshAgent::start(home.path());
    let sign = |args: &[&str]| {
        let args = [&["sign", ID][..], args].concat();
        broker(&url, home.path(), &args).env("SSH_AUTH_SOCK", &agent.socket).output().unwrap()
    };
    let none = sign(&["--key", "agent"]);
    assert_exit(&none, 2);
    assert!(err(&none).contains("-O application=ssh:broker -O verify-required"), "{}", err(&none));

    agent.add(&key);
    // Only the agent has it now.
    std::fs::rename(&key, home.path().join("elsewhere")).unwrap();
    assert_exit(&sign(&["--key", "agent"]), 0);
    let sent = seen.lock().unwrap().last().unwrap().clone();
    let signature = &sent.body["signature"];
    assert_signed(signature, &enrolled, Meaning::LeaseApproval, sealed.bytes());
    // The configuration may say so too.
    std::fs::create_dir_all(home.path().join(".config/broker")).unwrap();
    std::fs::write(home.path().join(".config/broker/config.toml"), "key = \"agent\"\n").unwrap();
    assert_exit(&sign(&[]), 0);

    let (other_home, other, _) = home_with_key();
    agent.add(&other);
    let several = sign(&["--key", "agent"]);
    assert_exit(&several, 2);
    assert_eq!(err(&several).matches("SHA256:").count(), 2, "{}", err(&several));
    drop(other_home);
    let public = home.path().join("key.pub");
    assert_exit(&sign(&["--key", public.to_str().unwrap()]), 0);

    let nobody = broker(&url, home.path(), &["sign", ID, "--key", "agent"]).output().unwrap();
    assert_exit(&nobody, 2);
    assert!(err(&nobody).contains("no ssh-agent to ask"), "{}", err(&nobody));
}

#[test]
fn login_prints_no_token_and_readers_use_the_session_when_there_is_no_agents_token() {
    let (url, seen) = signing_server(Value::Null);
    let (home, key, _) = home_with_key();
    let output = broker(&url, home.path(), &["login", "--key", key.to_str().unwrap(), "--as-json"])
        .output()
        .unwrap();
    assert_exit(&output, 0);
    assert_eq!(
        serde_json::from_str::<Value>(&out(&output)).unwrap(),
        json!({ "person": "bob", "expires_at": "2100-01-01T00:00:00Z" })
    );
    assert_exit(&broker(&url, home.path(), &["show", ID]).output().unwrap(), 2);
    assert_eq!(seen.lock().unwrap().last().unwrap().headers["authorization"], "Bearer bobs-token");
    assert_exit(
        &broker(&url, home.path(), &["show", ID]).env("BROKER_TOKEN", "a").output().unwrap(),
        2,
    );
    assert_eq!(seen.lock().unwrap().last().unwrap().headers["authorization"], "Bearer a");
    // A session is a person's, and asks for no lease.
    assert_exit(&broker(&url, home.path(), &["lease", "--scope", "s"]).output().unwrap(), 8);
}

// ---------------------------------------------------------------------------------------------- acts of authority

const FREEZE: &str = "01920000-0000-7000-8000-00000000000f";
const FINGERPRINT: &str = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const START: [&str; 8] = ["task", "start", "--agent", "coder", "--task", "OPS-9", "--ttl", "1h"];

fn coders_task() -> TaskStart {
    TaskStart {
        agent: "coder".into(),
        sponsor: "bob".into(),
        task: "OPS-9".into(),
        ttl_seconds: 3600,
    }
}

fn thaw_of(freeze: &str) -> Act {
    Act::Thaw(Thaw {
        freeze_id: freeze.parse().unwrap(),
        freeze: FreezeKind::All,
        target: None,
        frozen_by: "erin".into(),
        frozen_because: "it runs wild".into(),
        frozen_at: datetime!(2026-01-01 11:00 UTC),
    })
}

fn revocation_of(fingerprint: &str) -> Act {
    Act::AdminChange(Change::RevokeKey { handle: "bob".into(), fingerprint: fingerprint.into() })
}

/// An act that bob signs.
fn drawn_up(act: Act) -> ActStatement {
    let of_others = matches!(&act, Act::AdminChange(it) if !it.is_ones_own());
    ActStatement::new(ActTerms {
        broker: Issuer { origin: "http://localhost:8750".into(), instance_key: "kid".into() },
        id: ID.parse().unwrap(),
        act,
        proposed_by: (!of_others).then(|| "bob".into()),
        signers: Signers {
            eligible: vec!["bob".into()],
            needed: 1,
            assurance: Assurance::Software,
        },
        proposed_at: datetime!(2026-01-01 12:00 UTC),
        sign_by: datetime!(2026-01-01 12:10 UTC),
        cool_down_seconds: 0,
        nonce: "ab".repeat(32),
    })
    .unwrap()
}

fn act_answer(kind: &str, statement: &[u8]) -> Value {
    json!({
        "id": ID, "kind": kind, "state": "proposed", "statement": STANDARD.encode(statement),
        "sha256": sha256_hex(statement), "short_code": "WERC-8GMR", "about": "bob", "proposed_by": "bob",
        "proposed_at": "2026-01-01T12:00:00Z", "sign_by": "2026-01-01T12:10:00Z", "eligible_signers": ["bob"],
        "signatures": [], "signed_at": null, "effective_at": null, "ended_at": null, "end_reason": null,
    })
}

/// A server that draws this up whatever it is asked for, and takes every signature.
fn acting_server(act: Value) -> (String, Seen) {
    serve(move |_, request| match request.line.as_str() {
        "POST /v1/login/nonce" => {
            Answer::Json(200, json!({ "nonce": "n0nce", "expires_at": "2100-01-01T00:00:00Z" }))
        }
        "POST /v1/login" => Answer::Json(
            200,
            json!({ "person": "bob", "token": "bobs-token", "expires_at": "2100-01-01T00:00:00Z" }),
        ),
        "POST /v1/statements/drafts" => Answer::Json(201, act.clone()),
        "POST /v1/statements" => {
            let mut signed = act.clone();
            signed["state"] = json!("done");
            if signed["kind"] == "task-start" {
                signed["task"] = json!({
                    "id": ID, "agent": "coder", "sponsor": "bob", "task": "OPS-9", "token": "coders-token",
                    "expires_at": "2026-01-01T13:00:00Z",
                });
            }
            Answer::Json(200, signed)
        }
        line if line.starts_with("GET /v1/statements/") => Answer::Json(200, act.clone()),
        _ => problem("not-found", 404),
    })
}

#[test]
fn what_was_asked_for_is_drawn_up_shown_and_signed() {
    let sealed = drawn_up(Act::TaskStart(coders_task()));
    let desk = Desk::at(acting_server(act_answer("task-start", sealed.bytes())));
    let output = desk.run(&START);
    assert_exit(&output, 0);
    assert_eq!(out(&output), "coders-token\n");
    for part in ["You are about to APPROVE", &sealed.short_code(), "a task of agent coder"] {
        assert!(err(&output).contains(part), "{part} is missing from {}", err(&output));
    }
    let seen = desk.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(
        seen[0].body,
        json!({ "kind": "task-start", "agent": "coder", "task": "OPS-9", "ttl_seconds": 3600 })
    );
    assert_eq!(seen[0].headers["authorization"], "Bearer bobs-token");
    assert!(!seen[1].headers.contains_key("authorization"));
    assert_eq!(seen[1].body["statement_sha256"], sealed.sha256());
    let public_key = std::fs::read_to_string(format!("{}.pub", desk.key)).unwrap();
    let key = EnrolledKey {
        public_key: public_key.trim().to_owned(),
        assurance: Assurance::Software,
        enrolled_at: datetime!(2026-01-01 12:00 UTC),
        revoked_at: None,
    };
    assert_signed(&seen[1].body["signature"], &key, Meaning::TaskStart, sealed.bytes());
}

#[test]
fn a_statement_of_something_else_than_was_asked_is_not_signed() {
    let task = |change: &dyn Fn(&mut TaskStart)| {
        let mut task = coders_task();
        change(&mut task);
        drawn_up(Act::TaskStart(task)).bytes().to_vec()
    };
    let asked = task(&|_| {});
    let bytes = |act: Act| drawn_up(act).bytes().to_vec();
    let lease = sealed(Tier::Destructive).bytes().to_vec();
    let thaw = ["thaw", FREEZE];
    let revoke = ["key", "revoke", FINGERPRINT];
    let other_key = FINGERPRINT.replace('A', "B");
    let cases: [(&str, &[&str], Vec<u8>); 11] = [
        ("another agent", &START, task(&|it| it.agent = "coder2".into())),
        ("longer", &START, task(&|it| it.ttl_seconds = 28_800)),
        ("another task", &START, task(&|it| it.task = "OPS-10".into())),
        ("a thaw", &START, bytes(thaw_of(FREEZE))),
        ("a change of people", &START, bytes(revocation_of(FINGERPRINT))),
        ("a lease", &START, lease.clone()),
        ("another freeze", &thaw, bytes(thaw_of(ID))),
        ("a task for a thaw", &thaw, asked.clone()),
        ("a lease for a thaw", &thaw, lease.clone()),
        ("another key", &revoke, bytes(revocation_of(&other_key))),
        (
            "another change",
            &revoke,
            bytes(Act::AdminChange(Change::EnablePerson {
                handle: "mallory".into(),
                groups: vec![],
            })),
        ),
    ];
    for (what, args, statement) in cases {
        // Whatever it says that it is.
        for kind in ["task-start", "thaw", "admin-change"] {
            let desk = Desk::at(acting_server(act_answer(kind, &statement)));
            let output = desk.run(args);
            assert_exit(&output, 1);
            assert_eq!(desk.seen.lock().unwrap().len(), 1, "{what}: asked once");
            assert!(err(&output).contains("not signed"), "{what}: {}", err(&output));
            desk.assert_no_signature(&output);
        }
    }
    // What was asked for, and another name or digest on it.
    let other = "01920000-0000-7000-8000-000000000002";
    for (field, value) in [("id", other), ("sha256", &"00".repeat(32)), ("statement", "***")] {
        let mut answer = act_answer("task-start", &asked);
        answer[field] = json!(value);
        let desk = Desk::at(acting_server(answer));
        let output = desk.run(&START);
        assert_exit(&output, 1);
        desk.assert_no_signature(&output);
    }
}

/// Nor under an id that a person was given: a lease would be approved here without its code being asked for.
#[test]
fn what_is_under_an_id_is_that_statement_and_no_lease() {
    let change = drawn_up(revocation_of(FINGERPRINT));
    let desk = Desk::at(acting_server(act_answer("admin-change", change.bytes())));
    let other = "01920000-0000-7000-8000-000000000002";
    let output = desk.run(&["sign", other]);
    assert_exit(&output, 1);
    desk.assert_no_signature(&output);
    let refused = desk.run(&["sign", ID, "--refuse", "--reason", "not now"]);
    assert_exit(&refused, 0);
    assert_eq!(desk.seen.lock().unwrap().last().unwrap().body["reason"], "not now");

    for tier in [Tier::ProductionWrite, Tier::Destructive] {
        let lease = sealed(tier);
        let desk = Desk::at(acting_server(act_answer("admin-change", lease.bytes())));
        let output = desk.run(&["sign", ID]);
        assert_exit(&output, 1);
        desk.assert_no_signature(&output);
        // Not even its bytes leave, for a signature elsewhere.
        let printed = desk.run(&["sign", ID, "--print"]);
        assert_exit(&printed, 1);
        assert!(!out(&printed).contains("DSSEv1"), "{}", out(&printed));
    }
    let task = drawn_up(Act::TaskStart(coders_task()));
    let desk = Desk::at(acting_server(act_answer("task-start", task.bytes())));
    let output = desk.run(&["sign", ID, "--refuse", "--reason", "never"]);
    assert_exit(&output, 2);
    desk.assert_no_signature(&output);
}

/// A server that draws up the task `T-1` of `coder`, and answers the signature with `token`; without one it refuses.
fn task_server(token: Option<&'static str>) -> (String, Seen) {
    let act = Act::TaskStart(TaskStart {
        agent: "coder".into(),
        sponsor: "bob".into(),
        task: "T-1".into(),
        ttl_seconds: 8 * 3600,
    });
    let sealed = ActStatement::new(ActTerms {
        broker: Issuer { origin: "http://localhost".into(), instance_key: "key".into() },
        id: ID.parse().unwrap(),
        act,
        proposed_by: Some("bob".into()),
        signers: Signers {
            eligible: vec!["bob".into()],
            needed: 1,
            assurance: Assurance::Software,
        },
        proposed_at: datetime!(2026-01-01 12:00 UTC),
        sign_by: datetime!(2026-01-01 12:10 UTC),
        cool_down_seconds: 0,
        nonce: "00".repeat(32),
    })
    .unwrap();
    let act = |state: &str| {
        json!({ "id": ID, "kind": "task-start", "state": state, "statement": STANDARD.encode(sealed.bytes()),
                "sha256": sealed.sha256(), "short_code": sealed.short_code(), "about": "bob", "proposed_by": "bob",
                "proposed_at": "2026-01-01T12:00:00Z", "sign_by": "2026-01-01T12:10:00Z", "eligible_signers": ["bob"],
                "signatures": [], "signed_at": null, "effective_at": null, "ended_at": null, "end_reason": null })
    };
    let (draft, mut done) = (act("proposed"), act("proposed"));
    done["task"] = json!({ "id": ID, "agent": "coder", "sponsor": "bob", "task": "T-1",
                           "token": token.unwrap_or_default(), "expires_at": "2100-01-01T00:00:00Z" });
    serve(move |_, request| match request.line.split('/').next_back().unwrap() {
        "nonce" => {
            Answer::Json(200, json!({ "nonce": "n0nce", "expires_at": "2100-01-01T00:00:00Z" }))
        }
        "login" => Answer::Json(
            200,
            json!({ "person": "bob", "token": "bobs-token", "expires_at": "2100-01-01T00:00:00Z" }),
        ),
        "drafts" => Answer::Json(201, draft.clone()),
        "statements" if token.is_some() => Answer::Json(200, done.clone()),
        _ => problem("not-found", 404),
    })
}

const TASK_START: [&str; 6] = ["task", "start", "--agent", "coder", "--task", "T-1"];

#[test]
fn what_a_broker_calls_a_token_is_not_run_by_the_sponsors_shell() {
    let (url, _) = task_server(Some("x'; touch owned; : '"));
    let (home, key, _) = home_with_key();
    let key = key.to_str().unwrap();
    let args = [&TASK_START[..], &["--key", key, "-o", "env"]].concat();
    let output = broker(&url, home.path(), &args).output().unwrap();
    let shell =
        Command::new("sh").args(["-c", &out(&output)]).current_dir(home.path()).status().unwrap();
    assert!(!home.path().join("owned").exists(), "{shell}: {}", out(&output));
}

#[test]
fn a_task_that_is_not_started_leaves_the_token_file_as_it_was() {
    let (url, _) = task_server(None);
    let (home, key, _) = home_with_key();
    let (key, file) = (key.to_str().unwrap(), home.path().join("token"));
    std::fs::write(&file, "a running agent's token\n").unwrap();
    let args = [&TASK_START[..], &["--key", key, "--write-token", file.to_str().unwrap()]].concat();
    let output = broker(&url, home.path(), &args).output().unwrap();
    assert!(err(&output).contains("You are about to APPROVE"), "{}", err(&output));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a running agent's token\n");
}

#[test]
fn a_task_that_is_not_started_leaves_no_older_token_in_the_environment() {
    let (url, _) = task_server(None);
    let (home, key, _) = home_with_key();
    let args = [&TASK_START[..], &["--key", key.to_str().unwrap(), "-o", "env"]].concat();
    let output = broker(&url, home.path(), &args).output().unwrap();
    let script = format!("BROKER_TOKEN=old; {}\necho \"<$BROKER_TOKEN>\"", out(&output));
    let shell = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(out(&shell), "<>\n", "the agent goes on under another task");
}
