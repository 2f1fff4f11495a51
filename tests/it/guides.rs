//! The guides for agents, typed as they stand: each block of commands runs in an empty home against a broker and an AWS that
//! enforces IAM, and prints what the page says. A block that does not run says why, for the reader to see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::issuer::{FakeIssuer, SigningKey};
use tests::program::{aws_cli, binary, program, text};
use tests::{Setup, TestBroker, wide_budgets, write_secret};
use time::OffsetDateTime;
use tokio::net::TcpListener;

const GUIDES: [&str; 6] = [
    "shell.md",
    "claude-code.md",
    "codex-cli.md",
    "cursor.md",
    "github-actions.md",
    "kubernetes.md",
];
/// What the pages call the broker.
const PUBLISHED_URL: &str = "https://broker.example.com";
/// Of the form of a user's, and nobody's.
const KEY_ID: &str = "AKIAQ7ZN4XK2M5TRWB3D";
const SECRET: &str = "hT9vKq2LmXw7RzYc4NpBs8FdGj3UaEo6Vi1QtxWn";
const RUNNER_TOKEN: &str = "of-the-runner";

// --- pages

#[derive(Debug, PartialEq)]
enum Use {
    /// Commands, for whom, and which part of the story they are.
    Run { who: String, part: String },
    /// What a file holds, and whose and which it is.
    File { whose: String, path: String },
    /// The reader sees why.
    NotRun,
}

#[derive(Debug)]
struct Block {
    line: usize,
    language: String,
    text: String,
    r#use: Use,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/agents")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).expect(name)
}

/// The blocks of a page. One that does not say what becomes of it is an error, and so is a `Not run` without a reason.
fn blocks(page: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    // The paragraph before a block, and the line just before it.
    let (mut paragraph, mut before) = (String::new(), "");
    while let Some((number, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            if before.is_empty() && !line.is_empty() {
                paragraph.clear();
            }
            paragraph.extend([line, "\n"]);
            before = line;
            continue;
        };
        let text: Vec<_> = lines.by_ref().map(|(_, it)| it).take_while(|it| *it != "```").collect();
        let r#use = mark(before, &paragraph).ok_or(format!("line {}: run or not?", number + 1))?;
        let text = text.iter().flat_map(|it| [*it, "\n"]).collect();
        blocks.push(Block { line: number + 1, language: language.to_owned(), text, r#use });
        (before, paragraph) = ("", String::new());
    }
    Ok(blocks)
}

fn mark(before: &str, paragraph: &str) -> Option<Use> {
    if let Some(reason) = paragraph.strip_prefix("**Not run**") {
        return (before.is_empty() && 20 < reason.trim().len()).then_some(Use::NotRun);
    }
    let comment = before.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    if let Some(run) = comment.strip_prefix("run: ") {
        let (who, part) = run.split_once(", ").unwrap_or((run, ""));
        return Some(Use::Run { who: who.to_owned(), part: part.to_owned() });
    }
    let (whose, path) = comment.strip_prefix("file: ")?.split_once(' ')?;
    Some(Use::File { whose: whose.to_owned(), path: path.to_owned() })
}

/// Whether `said` is what the page says, where `…` stands for anything.
fn is_as_told(said: &str, told: &str) -> bool {
    let (said, told) = (said.trim_end(), told.trim_end());
    let mut pieces = told.split('…');
    let Some(mut rest) = said.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        let at = if last {
            rest.ends_with(piece).then(|| rest.len() - piece.len())
        } else {
            rest.find(piece)
        };
        let Some(at) = at else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty()
}

// --- where they are run

/// A broker that listens, and the folders of those who type.
struct Stage {
    broker: TestBroker,
    url: String,
    root: TempDir,
    /// What else stands differently on the page than here.
    here: Vec<(String, String)>,
}

impl Stage {
    /// `settings` are the server's, with its URL.
    async fn new(settings: impl FnOnce(&str) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let settings = wide_budgets() + &settings(&url);
        let broker = TestBroker::new(Setup { settings, ..Setup::real() }).await;
        let router = broker.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["home", "project", "sponsor", "tmp"] {
            std::fs::create_dir(root.path().join(name)).expect("our own directory");
        }
        let here = vec![(PUBLISHED_URL.to_owned(), url.clone())];
        let stage = Self { broker, url, root, here };
        stage.write("project/README.md", "A shop.\n");
        stage.write("sponsor/key", &stage.broker.alice.private_key());
        let config = format!("url = \"{}\"\nkey = \"../../key\"\n", stage.url);
        stage.write("sponsor/.config/broker/config.toml", &config);
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a file for its owner alone.
    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("our own directory");
        write_secret(&path, content);
    }

    /// The page's words, with what is different here.
    fn here(&self, text: &str) -> String {
        self.here.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
    }

    /// Runs a script as somebody, in the environment that they left, and keeps what they leave.
    async fn sh(&self, who: &str, script: &str) -> Output {
        let (home, folder) =
            if who == "sponsor" { ("sponsor", "sponsor") } else { ("home", "project") };
        let kept = self.path(&format!("{who}.environment"));
        if !kept.exists() {
            std::fs::write(&kept, "").expect("our own file");
        }
        let beside = |it: &Path| it.parent().expect("a folder").display().to_string();
        let path = format!(
            "{}:{}:/usr/bin:/bin",
            beside(&binary("broker")),
            beside(Path::new(&aws_cli()))
        );
        let kept = kept.display();
        let script = format!(
            ". '{kept}'\n{}\nstatus=$?\nexport -p >'{kept}'\nexit $status\n",
            self.here(script)
        );
        let mut command = program("sh", &BTreeMap::new());
        command.args(["-c", &script]).current_dir(self.path(folder)).env("PATH", path);
        command.env("HOME", self.path(home)).env("TMPDIR", self.path("tmp"));
        command.env("AWS_ENDPOINT_URL", &tests::stack::shared().endpoint);
        command.output().await.expect("sh runs")
    }

    /// Runs a block, and sees that it does and prints what the page says.
    async fn run(&self, who: &str, block: &Block) {
        let Block { line, language, text: commands, .. } = block;
        if language == "sh" {
            let output = self.sh(who, &format!("set -e\n{commands}set +e")).await;
            assert!(output.status.success(), "line {line}: {output:#?}");
            return;
        }
        assert_eq!(language, "console", "line {line}");
        let mut status = 0;
        for part in commands.strip_prefix("$ ").expect("a command").split("\n$ ") {
            let (command, told) = part.split_once('\n').unwrap_or((part, ""));
            let output = self.sh(who, &format!("(exit {status})\n{command} 2>&1")).await;
            status = output.status.code().expect("no signal");
            let said = text(&output.stdout);
            assert!(is_as_told(&said, told), "line {line}: {command}\n{said}\nis not\n{told}");
        }
    }

    /// Puts the file of a block where it belongs, if its syntax is right.
    async fn put(&self, whose: &str, path: &str, block: &Block) {
        let content = self.here(&block.text);
        match block.language.as_str() {
            "json" => drop(serde_json::from_str::<Value>(&content).expect(path)),
            "toml" => drop(toml::from_str::<toml::Table>(&content).expect(path)),
            "yaml" => drop(yaml(&content).await),
            "gitignore" => {}
            other => panic!("{path}: {other}"),
        }
        match (whose, path.strip_prefix("~/")) {
            ("agent", Some(path)) => self.write(&format!("home/{path}"), &content),
            ("project", None) => self.write(&format!("project/{path}"), &content),
            ("server", None) => {}
            _ => panic!("whose file is {path}?"),
        }
    }

    /// What the doctor finds of ours: below our folders, or in variables. The machine has findings of its own.
    fn ours(&self, report: &Value) -> Vec<String> {
        let root = self.root.path().display().to_string();
        let ours = |it: &str| {
            it.contains(&root) || it.bytes().all(|it| it == b'_' || it.is_ascii_uppercase())
        };
        let findings = report["findings"].as_array().expect("findings").iter();
        let findings = findings.filter(|it| ours(it["subject"].as_str().expect("text")));
        findings.map(|it| it["check"].as_str().expect("text").to_owned()).collect()
    }

    async fn doctor(&self, who: &str, block: &Block) -> (Vec<String>, Option<i32>) {
        assert_eq!(block.text, "broker doctor\n", "line {}", block.line);
        let output = self.sh(who, "broker doctor --no-network -o json").await;
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        (self.ours(&report), output.status.code())
    }

    /// The standing credentials of somebody who never had a broker.
    fn plant(&self) {
        let keys = format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
        self.write("home/.aws/credentials", &format!("[default]\n{keys}"));
        let login = json!({ "accessToken": SECRET, "expiresAt": "2999-01-01T00:00:00Z" });
        self.write("home/.aws/sso/cache/login.json", &login.to_string());
        let exported =
            format!("export AWS_ACCESS_KEY_ID={KEY_ID} AWS_SECRET_ACCESS_KEY={SECRET}\n");
        self.write("agent.environment", &exported);
    }

    /// Hands the token that the sponsor wrote to the agent, as root would.
    fn hand_over(&self) {
        let files = std::fs::read_dir(self.path("sponsor")).expect("a directory");
        let mut files = files.map(|it| it.expect("an entry").path());
        let token = files.find(|it| it.extension().is_some_and(|it| it == "token"));
        let token = std::fs::read_to_string(token.expect("a token")).expect("our own file");
        self.write("home/.config/broker/token", &token);
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.broker.database.owner).await.expect(sql)
    }
}

/// A YAML document, or several, by the reader that the AWS CLI brings.
async fn yaml(content: &str) -> Value {
    let python = Path::new(&aws_cli()).with_file_name("python");
    let read = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.argv[1]))))";
    let mut command = program(python, &BTreeMap::new());
    let output = command.args(["-I", "-c", read, content]).output().await.expect("Python runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[expect(clippy::disallowed_methods, reason = "the command line goes by real time")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

// --- the guides of agents that work at a machine

/// All that a guide says, in its order: what is found before is gone after, the lease works in staging, and AWS refuses production.
async fn follow(name: &str) {
    let stage = Stage::new(|_| String::new()).await;
    stage.plant();
    let mut told = Vec::new();
    for block in blocks(&page(name)).expect(name) {
        match &block.r#use {
            Use::NotRun => {}
            Use::File { whose, path } => stage.put(whose, path, &block).await,
            Use::Run { who, part } if part == "before" => {
                let (found, exit) = stage.doctor(who, &block).await;
                assert_eq!(exit, Some(3), "{name}");
                for planted in ["env-aws-key", "aws-key", "aws-sso-token"] {
                    assert!(found.iter().any(|it| it == planted), "{name}: {planted}: {found:?}");
                }
                told.push("before");
            }
            Use::Run { who, part } if part == "after" => {
                let (found, _) = stage.doctor(who, &block).await;
                assert!(found.is_empty(), "{name}: {found:?}");
                told.push("after");
            }
            Use::Run { who, .. } => {
                stage.run(who, &block).await;
                if who == "sponsor" {
                    stage.hand_over();
                }
            }
        }
    }
    assert_eq!(told, ["before", "after"], "{name}");
    let staging =
        "select count(*) from lease_history where scope like 'staging-%' and issued_at is not null";
    let sponsored = "select count(*) from tasks where sponsor = 'alice' and issuer is null and agent <> 'demo-agent'";
    assert!(1 <= stage.count(staging).await, "{name}");
    assert_eq!(stage.count(sponsored).await, 1, "{name}");
}

#[tokio::test]
async fn the_guide_of_a_plain_shell_does_what_it_says() {
    follow("shell.md").await;
}

#[tokio::test]
async fn the_guide_of_claude_code_does_what_it_says_as_far_as_it_runs_here() {
    follow("claude-code.md").await;
}

#[tokio::test]
async fn the_guide_of_codex_cli_does_what_it_says_as_far_as_it_runs_here() {
    follow("codex-cli.md").await;
}

#[tokio::test]
async fn the_guide_of_cursor_does_what_it_says_as_far_as_it_runs_here() {
    follow("cursor.md").await;
}

// --- GitHub Actions

/// GitHub's endpoint for a job's tokens, as a runner names it: what it was asked, and with what.
#[derive(Clone)]
struct Endpoint {
    issuer: Arc<FakeIssuer>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    async fn start(issuer: Arc<FakeIssuer>) -> (Self, String) {
        let endpoint = Self { issuer, asked: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(job_token).with_state(endpoint.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (endpoint, format!("http://{address}/81//idtoken/7b1e?api-version=2.0"))
    }
}

async fn job_token(State(endpoint): State<Endpoint>, request: Request) -> Response {
    let asked = request.uri().to_string();
    endpoint.asked.lock().expect("no panic").push(asked);
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|it| it.to_str().ok());
    if bearer != Some(&format!("Bearer {RUNNER_TOKEN}")) {
        return (StatusCode::UNAUTHORIZED, "no token").into_response();
    }
    let query = request.uri().query().unwrap_or_default();
    let mut query = form_urlencoded::parse(query.as_bytes());
    let audience = query.find(|(name, _)| name == "audience").map(|(_, it)| it.into_owned());
    let mut claims = endpoint.issuer.claims(now());
    claims["iss"] = json!("https://token.actions.githubusercontent.com");
    claims["aud"] = json!(audience.unwrap_or("https://github.com/acme".to_owned()));
    let more = [
        ("repository_id", "1296269"),
        ("run_attempt", "1"),
        ("ref", "refs/heads/main"),
        ("workflow_ref", "acme/shop/.github/workflows/staging.yml@refs/heads/main"),
    ];
    for (name, value) in more {
        claims[name] = json!(value);
    }
    axum::Json(json!({ "count": 1, "value": endpoint.issuer.sign(&claims) })).into_response()
}

/// The issuers that the page writes into `broker.toml`, with the keys of ours and the URL that they are asked for here.
fn issuers(name: &str, url: &str, keys: &str) -> String {
    let blocks = blocks(&page(name)).expect(name);
    let settings = blocks.iter().find(|it| {
        it.r#use == Use::File { whose: "server".to_owned(), path: "issuers".to_owned() }
    });
    let settings = &settings.expect("the server's settings").text;
    let with_keys: Vec<_> = settings
        .lines()
        .map(|line| if line.starts_with("jwks_") { keys } else { line })
        .flat_map(|line| {
            // The harness's broker calls itself otherwise than it is reached.
            let audience = format!("audience = \"{url}\"");
            let more = line.starts_with("algorithms").then_some(audience);
            [Some(line.to_owned()), more].into_iter().flatten()
        })
        .collect();
    assert!(with_keys.iter().any(|it| it == keys), "{name}");
    with_keys.join("\n")
}

/// A job, where its steps leave variables for those after them.
struct Job {
    stage: Stage,
}

impl Job {
    async fn new(issuer: &FakeIssuer, endpoint: &str) -> Self {
        let keys = format!("jwks_uri = \"{}\"", issuer.jwks_uri);
        let stage = Stage::new(|url| issuers("github-actions.md", url, &keys)).await;
        let variables = [
            ("ACTIONS_ID_TOKEN_REQUEST_URL", endpoint.to_owned()),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", RUNNER_TOKEN.to_owned()),
            ("RUNNER_TEMP", stage.path("tmp").display().to_string()),
            ("GITHUB_ENV", stage.path("tmp/github-env").display().to_string()),
        ];
        let exported = variables.map(|(name, value)| format!("export {name}='{value}'\n"));
        stage.write("job.environment", &exported.concat());
        Self { stage }
    }

    /// Takes over what a step wrote into `GITHUB_ENV`.
    fn next(&self) {
        let file = self.stage.path("tmp/github-env");
        let Ok(written) = std::fs::read_to_string(&file) else { return };
        std::fs::remove_file(file).expect("our own file");
        let kept = self.stage.path("job.environment");
        let mut environment = std::fs::read_to_string(&kept).expect("our own file");
        for (name, value) in written.lines().filter_map(|it| it.split_once('=')) {
            environment.extend(["export ", name, "='", value, "'\n"]);
        }
        std::fs::write(kept, environment).expect("our own file");
    }

    async fn step(&self, script: &str) {
        // What else the machine has is not the job's.
        let script = script.replace("[ $? -eq 4 ]", "[ $? -le 4 ]");
        let output = self.stage.sh("job", &format!("set -e\n{script}set +e")).await;
        assert!(output.status.success(), "{script}: {output:#?}");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains("eyJ"), "no token is printed: {said}");
        self.next();
    }
}

#[tokio::test]
async fn the_guide_of_github_actions_does_what_it_says_at_a_stand_in_for_github() {
    let issuer = Arc::new(FakeIssuer::start().await);
    let (endpoint, address) = Endpoint::start(issuer.clone()).await;
    let job = Job::new(&issuer, &address).await;
    let stage = &job.stage;
    let all = blocks(&page("github-actions.md")).expect("a page");

    let workflow = all.iter().find(|it| it.language == "yaml").expect("a workflow");
    let workflow = yaml(&stage.here(&workflow.text)).await[0].take();
    assert_eq!(workflow["permissions"], json!({ "contents": "read", "id-token": "write" }));
    let work = &workflow["jobs"]["staging"];
    let variables = work["env"].as_object().expect("variables");
    let variables =
        variables.iter().map(|(name, value)| format!("{name}={}\n", value.as_str().expect("text")));
    stage.write("tmp/github-env", &variables.collect::<String>());
    job.next();
    let steps = work["steps"].as_array().expect("steps");
    let (uses, runs): (Vec<_>, Vec<_>) = steps.iter().partition(|it| it.get("uses").is_some());
    assert_eq!((uses.len(), runs.len()), (1, 4));
    assert_eq!(uses[0]["with"]["persist-credentials"], false, "no token of GitHub's in the folder");
    for step in runs {
        let script = step["run"].as_str().expect("a script");
        job.step(&format!("{}\n", script.trim_end())).await;
    }
    let asked = std::mem::take(&mut *endpoint.asked.lock().expect("no panic"));
    let audience: String = form_urlencoded::byte_serialize(stage.url.as_bytes()).collect();
    assert_eq!(asked, [format!("/81//idtoken/7b1e?api-version=2.0&audience={audience}")]);
    let report = std::fs::read(stage.path("tmp/doctor.json")).expect("a report");
    assert_eq!(stage.ours(&serde_json::from_slice(&report).expect("JSON")), Vec::<String>::new());
    let done = "select count(*) from lease_history where agent = 'shop-ci' and actor = 'bob' and task = '1234' and scope = 'staging-rw'";
    let ended = "select count(*) from tasks where agent = 'shop-ci' and ended_at is not null";
    assert_eq!((stage.count(done).await, stage.count(ended).await), (1, 1));

    for block in &all {
        if let Use::Run { who, .. } = &block.r#use {
            stage.run(who, block).await;
            job.next();
        }
    }
    let pending =
        "select count(*) from lease_history where agent = 'shop-ci' and state = 'pending'";
    assert_eq!(stage.count(pending).await, 1);
}

#[tokio::test]
async fn a_job_that_github_gives_no_token_is_told_what_is_missing_and_not_to_look_at_the_broker() {
    let issuer = Arc::new(FakeIssuer::start().await);
    let (_endpoint, address) = Endpoint::start(issuer.clone()).await;
    let job = Job::new(&issuer, &address).await;
    let exchange = format!("BROKER_URL={} broker task exchange --github", job.stage.url);
    let refused =
        job.stage.sh("job", &format!("ACTIONS_ID_TOKEN_REQUEST_TOKEN=x {exchange}")).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:#?}");
    let said = text(&refused.stderr);
    assert!(said.contains("GitHub") && said.contains("id-token: write"), "{said}");
    assert!(!said.contains("BROKER_URL"), "{said}");
    let outside =
        job.stage.sh("job", &format!("unset ACTIONS_ID_TOKEN_REQUEST_URL\n{exchange}")).await;
    assert_eq!(outside.status.code(), Some(2), "{outside:#?}");
    let elsewhere = format!("ACTIONS_ID_TOKEN_REQUEST_URL=http://github.test/x {exchange}");
    let elsewhere = job.stage.sh("job", &elsewhere).await;
    assert_eq!(elsewhere.status.code(), Some(2), "in clear to another machine: {elsewhere:#?}");
}

// --- Kubernetes

/// A pod whose mounts are folders.
struct Pod {
    stage: Stage,
    key: SigningKey,
    manifest: Value,
    /// What the server reads the public keys from, when it wants them.
    _keys: tempfile::NamedTempFile,
}

impl Pod {
    async fn new() -> Self {
        let key = SigningKey::rsa("cluster-1");
        let keys = tempfile::NamedTempFile::new().expect("a file");
        let set = json!({ "keys": [key.jwk()] }).to_string();
        std::fs::write(keys.path(), set).expect("our own file");
        let file = format!("jwks_file = \"{}\"", keys.path().display());
        let mut stage = Stage::new(|url| issuers("kubernetes.md", url, &file)).await;
        for folder in ["cluster-token", "task-token"] {
            std::fs::create_dir(stage.path(folder)).expect("our own directory");
        }
        let mounts = [
            ("/var/run/secrets/broker", "cluster-token"),
            ("/run/broker", "task-token"),
            ("/tmp/doctor.json", "tmp/doctor.json"),
        ];
        for (there, here) in mounts {
            stage.here.push((there.to_owned(), stage.path(here).display().to_string()));
        }
        let all = blocks(&page("kubernetes.md")).expect("a page");
        let manifest = all.iter().find(|it| it.language == "yaml").expect("a manifest");
        let manifest = yaml(&manifest.text).await;
        Self { stage, key, manifest, _keys: keys }
    }

    fn spec(&self) -> &Value {
        &self.manifest[1]["spec"]
    }

    /// What the kubelet writes: a token of this pod's, for the audience that the manifest asks for.
    fn project(&self) {
        let source = &self.spec()["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
        let now = now().unix_timestamp();
        let claims = json!({
            "iss": "https://kubernetes.default.svc.cluster.local", "sub": "system:serviceaccount:agents:coder",
            "aud": [self.stage.here(source["audience"].as_str().expect("text"))],
            "iat": now, "nbf": now, "exp": now + source["expirationSeconds"].as_i64().expect("a number"),
            "jti": uuid::Uuid::new_v4(),
            "kubernetes.io": { "namespace": "agents", "pod": { "name": "coder" }, "serviceaccount": { "name": "coder" } },
        });
        self.stage.write("cluster-token/token", &self.key.sign(&self.key.header(), &claims));
    }

    /// Runs a container's command with its variables.
    async fn container(&self, it: &Value) -> Output {
        // What else the machine has is not the pod's.
        let script = Self::script(it).replace("[ $? -eq 4 ]", "[ $? -le 4 ]");
        self.stage.sh("pod", &script).await
    }

    fn script(it: &Value) -> String {
        let mut script = String::new();
        for variable in it["env"].as_array().expect("variables") {
            let part = |name: &str| variable[name].as_str().expect("text");
            script.extend(["export ", part("name"), "='", part("value"), "'\n"]);
        }
        let command = it["args"][0].as_str().expect("a script").replace("sleep 600", "break");
        format!("{script}({command})")
    }

    async fn tasks(&self) -> i64 {
        self.stage.count("select count(*) from tasks where agent = 'coder'").await
    }
}

#[tokio::test]
async fn the_guide_of_kubernetes_does_what_it_says_with_a_stand_in_for_the_cluster() {
    let pod = Pod::new().await;
    let spec = pod.spec();
    let (sidecar, agent) = (&spec["initContainers"][0], &spec["containers"][0]);
    // No token of the cluster's reaches the agent's container, and the one that there is, is for the broker alone.
    assert_eq!(pod.manifest[0]["automountServiceAccountToken"], false);
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["volumes"][0]["name"], "cluster-token");
    let mounts = |it: &Value| it["volumeMounts"].to_string();
    assert!(mounts(sidecar).contains("cluster-token") && !mounts(agent).contains("cluster-token"));
    let token = &spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], sidecar["env"][0]["value"]);
    assert_eq!(
        (&sidecar["restartPolicy"], &spec["securityContext"]["runAsNonRoot"]),
        (&json!("Always"), &json!(true))
    );

    pod.project();
    for _ in 0..2 {
        let started = pod.container(sidecar).await;
        assert!(text(&started.stderr).contains("of agent coder"), "{started:#?}");
    }
    assert_eq!(pod.tasks().await, 1, "the same token is the same task");
    pod.project();
    pod.container(sidecar).await;
    assert_eq!(pod.tasks().await, 2, "another token is another");

    let worked = pod.container(agent).await;
    assert!(worked.status.success(), "{worked:#?}");
    let report = std::fs::read(pod.stage.path("tmp/doctor.json")).expect("a report");
    assert_eq!(
        pod.stage.ours(&serde_json::from_slice(&report).expect("JSON")),
        Vec::<String>::new()
    );
    // With a key in reach it does not begin.
    let leases = "select count(*) from lease_history";
    let before = pod.stage.count(leases).await;
    let key = "export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE AWS_SECRET_ACCESS_KEY=x";
    let stopped = pod.stage.sh("pod", &format!("({key}\n{})", Pod::script(agent))).await;
    assert!(!stopped.status.success(), "{stopped:#?}");
    assert_eq!(pod.stage.count(leases).await, before, "{stopped:#?}");
    for block in blocks(&page("kubernetes.md")).expect("a page") {
        if let Use::Run { who, .. } = &block.r#use {
            pod.stage.run(who, &block).await;
        }
    }
    assert!(pod.stage.sh("pod", "broker task end").await.status.success());
    let late = pod.container(sidecar).await;
    assert!(text(&late.stderr).contains("has ended"), "{late:#?}");
    assert_eq!(pod.tasks().await, 2, "what was ended does not come back");
}

// --- all of them

#[test]
fn every_block_of_a_guide_says_whether_it_runs_and_why_not() {
    for name in GUIDES {
        let blocks = blocks(&page(name)).unwrap_or_else(|error| panic!("{name}, {error}"));
        let run = |it: &&Block| matches!(it.r#use, Use::Run { .. });
        assert!(blocks.iter().any(|it| run(&it)), "{name}");
    }
    let says = |before: &str| blocks(&format!("words\n\n{before}```sh\ntrue\n```\n"));
    assert!(says("").is_err() && says("**Not run**.\n\n").is_err(), "it has to say so, and why");
    let not_run = says("**Not run**: there is no such tool here.\n\n").expect("it says why");
    assert_eq!(not_run[0].r#use, Use::NotRun);
    let run = says("<!-- run: agent, before -->\n").expect("it says so");
    assert_eq!(run[0].r#use, Use::Run { who: "agent".into(), part: "before".into() });

    for (told, same) in [
        ("a…d", true),
        ("a…c", false),
        ("…", true),
        ("abcd", true),
        ("abc", false),
        ("…b…", true),
        ("…x…", false),
    ] {
        assert_eq!(is_as_told("abcd\n", told), same, "{told}");
    }
}

/// As GitHub makes an anchor of a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
    kept.map(|it| if it == ' ' { '-' } else { it }).collect()
}

#[test]
fn every_link_of_the_guides_leads_somewhere() {
    let mut links = 0;
    for entry in std::fs::read_dir(folder()).expect("a directory") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        let page = page(&name);
        for link in page.split("](").skip(1).filter_map(|it| it.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let path = if path.is_empty() { folder().join(&name) } else { folder().join(path) };
            let target =
                std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{name}: {link}"));
            let there = |it: &str| it.starts_with('#') && anchor(it) == fragment;
            assert!(fragment.is_empty() || target.lines().any(there), "{name}: {link}");
            links += 1;
        }
    }
    let index = page("README.md");
    for name in GUIDES {
        assert!(index.contains(&format!("({name})")), "{name} is not in the index");
    }
    assert!(20 < links, "{links} links");
}
