//! The AWS clients that people use, with the broker's credentials: out of a profile that `broker profile add` wrote, and
//! from the endpoint of `broker exec`. They work in staging, AWS refuses them production, and nothing secret is left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::Response;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::program::{aws_cli, binary, program, text};
use tests::{Setup, TestBroker, wide_budgets};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::process::Command;
use tower::ServiceExt;

const STAGING: &str = "staging-app-data";
const PRODUCTION: &str = "prod-app-data";
const RUN_LIMIT: Duration = Duration::from_mins(1);
const INIT_LIMIT: Duration = Duration::from_mins(1);
/// What `sh` runs as the child of `broker exec`: it tells what the test looks for afterwards.
const TELLING: &str = r#"echo "token $AWS_CONTAINER_AUTHORIZATION_TOKEN"; env >&2; exec "$@""#;
/// A reason that a shell, Python and the readers of configuration files could each misread in their own way.
const REASON: &str = r#"don't "stop" $HOME `id` \n 100%#1;= [x] *"#;

/// The broker's answers on their way to the command line.
#[derive(Clone)]
struct Way {
    router: Router,
    /// What is told as the end of every session, instead of its own.
    ends_in: Option<Duration>,
    secrets: Arc<Mutex<BTreeSet<String>>>,
}

/// A broker that listens, and a home for whoever calls it.
struct Served {
    broker: TestBroker,
    url: String,
    secrets: Arc<Mutex<BTreeSet<String>>>,
    home: TempDir,
}

async fn pass(State(way): State<Way>, request: Request) -> Response {
    let (mut parts, body) = way.router.oneshot(request).await.expect("infallible").into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    let Ok(mut answer) = serde_json::from_slice::<Value>(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    let lease = answer.get("credentials").is_some();
    let credentials = if lease { &mut answer["credentials"] } else { &mut answer };
    for name in ["secret_access_key", "session_token"] {
        if let Some(secret) = credentials[name].as_str() {
            way.secrets.lock().expect("no panic").insert(secret.to_owned());
        }
    }
    if let Some(ends_in) = way.ends_in.filter(|_| credentials["expires_at"].is_string()) {
        credentials["expires_at"] = json!((now() + ends_in).format(&Rfc3339).expect("a time"));
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(answer.to_string()))
}

#[expect(clippy::disallowed_methods, reason = "the clients go by real time")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

impl Served {
    async fn start(settings: &str, ends_in: Option<Duration>) -> Self {
        let setup = Setup { settings: wide_budgets() + settings, ..Setup::real() };
        let broker = TestBroker::new(setup).await;
        let secrets = Arc::<Mutex<BTreeSet<String>>>::default();
        let way = Way { router: broker.router.clone(), ends_in, secrets: secrets.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(pass).with_state(way);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(home.path().join("tmp")).expect("our own directory");
        Self { broker, url, secrets, home }
    }

    /// A program of the agent's, which has the broker's token and nothing of AWS's but the emulator's address.
    fn command(&self, path: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = program(path, &BTreeMap::new());
        let clients = clients();
        command
            .args(args)
            .env("HOME", self.home.path())
            .env("TMPDIR", self.home.path().join("tmp"));
        command.env("BROKER_URL", &self.url).env("BROKER_TOKEN", &self.broker.token);
        command.env("AWS_ENDPOINT_URL", &tests::stack::shared().endpoint);
        command.env("AWS_CLI", aws_cli()).env("CLIENTS", clients);
        command.env("STAGING", STAGING).env("PRODUCTION", PRODUCTION);
        command
    }

    /// Runs a client until it has done two rounds, with so many sessions; returns those that AWS refused production to, one
    /// a round.
    async fn run(&self, client: Client, how: How, sessions: usize) -> Vec<String> {
        let name = format!("{client:?}-{how:?}").to_lowercase();
        let words = client.command();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let scope = ["--scope", "staging-rw", "--task", &name, "--reason", REASON, "--ttl", "1h"];
        let broker = binary("broker");
        let mut command = match how {
            How::Endpoint => {
                let telling = ["--", "sh", "-c", TELLING, "sh"];
                self.command(&broker, &[&["exec"], &scope[..], &telling, &words].concat())
            }
            How::Profile => {
                let add =
                    [&["profile", "add", &name, "--region", "us-east-1"], &scope[..]].concat();
                let added = self.command(&broker, &add).output().await.expect("it runs");
                assert!(added.status.success(), "{}", text(&added.stderr));
                let mut command = self.command(words[0], &words[1..]);
                command.env("AWS_PROFILE", &name);
                command
            }
        };
        let key = format!("clients/{name}-{}", uuid::Uuid::new_v4());
        let output = command
            .env("KEY", key)
            .env("ROUNDS", "2")
            .env("SESSIONS", sessions.to_string())
            .output();
        let output = tokio::time::timeout(RUN_LIMIT, output).await;
        let output = output.expect("it comes to its end").expect("it runs");
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{name}: {stdout}\n{stderr}");
        if how == How::Endpoint {
            let (_, token) = stdout.lines().find_map(|it| it.split_once("token ")).expect("told");
            assert!(43 <= token.len(), "{name}: {token}");
            self.clean(&stderr, &format!("the environment of {name}"));
            assert!(stderr.contains(token), "the environment was told");
            self.secrets.lock().expect("no panic").insert(token.to_owned());
        }
        let sessions: Vec<_> = stdout.lines().filter_map(session).collect();
        assert!(2 <= sessions.len(), "{name}: {stdout}");
        sessions
    }

    /// Fails where a secret is in `text`.
    #[track_caller]
    fn clean(&self, text: &str, what: &str) {
        for secret in self.secrets.lock().expect("no panic").iter() {
            assert!(!text.contains(secret.as_str()), "{what} holds {}…", &secret[..6]);
        }
    }

    /// Reads every file that is left, but for what links elsewhere.
    fn search(&self, dir: &Path) -> usize {
        let mut files = 0;
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("its kind");
            if kind.is_dir() {
                files += self.search(&entry.path());
            } else if kind.is_file() {
                let content = std::fs::read(entry.path()).expect("our own file");
                self.clean(&text(&content), &entry.path().display().to_string());
                files += 1;
            }
        }
        files
    }
}

/// What `make test` installs.
fn clients() -> PathBuf {
    let folder = std::env::var_os("CLIENTS").unwrap_or_default();
    assert!(
        Path::new(&folder).join("node_modules").exists(),
        "CLIENTS is not what scripts/setup.sh installs; run `make test`, or `scripts/setup.sh --clients` and then this with \
         CLIENTS=\"$(scripts/setup.sh --print-clients)\""
    );
    folder.into()
}

#[derive(Clone, Copy, Debug)]
enum Client {
    Cli,
    Boto3,
    JavaScript,
    Rust,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Endpoint,
    Profile,
}

impl Client {
    const ALL: [Self; 4] = [Self::Cli, Self::Boto3, Self::JavaScript, Self::Rust];

    fn command(self) -> Vec<String> {
        let python = Path::new(&aws_cli()).with_file_name("python");
        let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
        let words = match self {
            Self::Cli => vec!["/bin/sh".into(), file("s3.sh")],
            Self::Boto3 => vec![python, "-I".into(), file("s3.py")],
            Self::JavaScript => vec![clients().join("node"), file("s3.mjs")],
            Self::Rust => vec![binary("s3-client")],
        };
        words.into_iter().map(|it| it.display().to_string()).collect()
    }
}

/// The session's name, out of what AWS says when it refuses.
fn session(line: &str) -> Option<String> {
    let (_, session) = line.split_once("denied ")?.1.split_once("assumed-role/broker-staging/")?;
    session.split([' ', ':', '"']).next().map(str::to_owned)
}

/// All arguments of all processes, looked at for as long as this lives.
async fn processes(seen: Arc<Mutex<BTreeSet<String>>>) {
    loop {
        let output = Command::new("ps").args(["-A", "-ww", "-o", "args"]).output().await;
        let listed = text(&output.expect("ps runs").stdout);
        seen.lock().expect("no panic").extend(listed.lines().map(str::to_owned));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn every_client_works_in_staging_is_refused_production_and_leaves_nothing_secret() {
    let served = Arc::new(Served::start("", None).await);
    let seen = Arc::<Mutex<BTreeSet<String>>>::default();
    let looking = tokio::spawn(processes(seen.clone()));
    let mut running = tokio::task::JoinSet::new();
    for client in Client::ALL {
        let served = served.clone();
        // One after the other, as the machine has few cores, and no two at a time that write one file.
        running.spawn(async move {
            let mut sessions = Vec::new();
            for how in [How::Endpoint, How::Profile] {
                let of_this = served.run(client, how, 1).await;
                assert_eq!(
                    of_this[0], of_this[1],
                    "{client:?} {how:?}: what is live is used again"
                );
                sessions.push(of_this[0].clone());
            }
            sessions
        });
    }
    let sessions: BTreeSet<_> = running.join_all().await.into_iter().flatten().collect();
    assert_eq!(sessions.len(), 8, "one lease and one session for each: {sessions:?}");
    for session in &sessions {
        let id = session[..36].parse().expect("a session is named after its lease");
        assert_eq!(served.broker.state(id).await, "issued");
    }
    in_a_shell_with_a_history(&served).await;

    looking.abort();
    let seen = seen.lock().expect("no panic").clone();
    let told = |what: &str| seen.iter().any(|it| it.contains(what));
    assert!(told("exec --scope staging-rw") && told("s3.mjs"), "the processes were seen: {seen:?}");
    let secrets = served.secrets.lock().expect("no panic").len();
    assert!(8 * 2 + 4 <= secrets, "{secrets} secrets went by");
    for line in seen {
        served.clean(&line, "the list of processes");
    }
    let home = served.home.path();
    assert!(2 <= served.search(home), "the profiles and the history");
    // The control: planted, it is found.
    let secret = served.secrets.lock().expect("no panic").first().cloned().expect("one");
    std::fs::write(home.join("tmp/planted"), format!("x{secret}")).expect("our own file");
    let searching = std::panic::AssertUnwindSafe(|| served.search(home));
    assert!(std::panic::catch_unwind(searching).is_err(), "a planted secret is found");
}

/// What an interactive shell keeps of the commands.
async fn in_a_shell_with_a_history(served: &Served) {
    let home = served.home.path();
    let typed = "broker exec --scope staging-rw -- aws s3api head-bucket --bucket $STAGING && echo it works\n";
    let mut command = served.command("bash", &["--norc", "--noprofile", "-i"]);
    let beside = |path: &Path| path.parent().expect("a folder").display().to_string();
    let path =
        format!("{}:{}:/usr/bin:/bin", beside(&binary("broker")), beside(Path::new(&aws_cli())));
    command.env("HISTFILE", home.join(".bash_history")).env("PATH", path);
    std::fs::write(home.join("tmp/typed"), typed).expect("our own file");
    command.stdin(std::fs::File::open(home.join("tmp/typed")).expect("our own file"));
    let output = command.output().await.expect("bash runs");
    assert!(text(&output.stdout).contains("it works"), "{output:?}");
    let history = std::fs::read_to_string(home.join(".bash_history")).expect("a history");
    assert!(history.contains("broker exec"), "{history}");
}

#[tokio::test]
async fn what_ends_in_the_middle_of_a_run_is_renewed_without_the_programs_doing() {
    // The broker mints anew for every claim, and every session is told to end in a few seconds.
    let served = Served::start("redeliver_until = \"1h\"\n", Some(Duration::from_secs(3))).await;
    let served = &served;
    let run = |client, how| async move {
        let sessions = served.run(client, how, 2).await;
        let different: BTreeSet<_> = sessions.iter().collect();
        assert!(1 < different.len(), "{client:?} {how:?}: {sessions:?}");
        let leases: BTreeSet<_> = sessions.iter().map(|it| &it[..36]).collect();
        assert!(how == How::Profile || leases.len() == 1, "all of one lease: {sessions:?}");
    };
    for how in [How::Endpoint, How::Profile] {
        tokio::join!(run(Client::Boto3, how), run(Client::JavaScript, how), run(Client::Rust, how));
    }
}

/// Whether Terraform and its aws provider are to be had here. The provider may be in a local mirror, in a place that
/// Terraform documents or that `TERRAFORM_PLUGIN_DIR` names.
async fn terraform(served: &Served, dir: &Path) -> Result<(), String> {
    #[expect(clippy::disallowed_methods, reason = "the edge of the tests")]
    let mirror = std::env::var("TERRAFORM_PLUGIN_DIR").ok().filter(|it| !it.is_empty());
    let mirror = mirror.map(|it| format!("-plugin-dir={it}"));
    let args = ["init", "-input=false", "-no-color"];
    let args: Vec<_> = args.into_iter().chain(mirror.as_deref()).collect();
    let mut init = served.command("terraform", &args);
    let output = tokio::time::timeout(INIT_LIMIT, init.current_dir(dir).output()).await;
    match output {
        Err(_) => Err(format!("`terraform init` takes longer than {INIT_LIMIT:?}")),
        Ok(Err(error)) => Err(format!("terraform cannot be run: {error}")),
        Ok(Ok(it)) if it.status.success() => Ok(()),
        Ok(Ok(it)) => Err(format!("`terraform init` says {}", text(&it.stderr))),
    }
}

#[tokio::test]
async fn terraforms_provider_reads_staging_and_is_refused_production() {
    let served = Served::start("", None).await;
    let dir = served.home.path().join("terraform");
    std::fs::create_dir(&dir).expect("our own directory");
    let main = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/main.tf");
    std::fs::copy(main, dir.join("main.tf")).expect("our own file");
    if let Err(why) = terraform(&served, &dir).await {
        // Past the capture of tests: whoever reads the log has to see it.
        let _ = writeln!(
            std::io::stderr(),
            "NOT RUN: Terraform with the broker's credentials: {why}\n  Install terraform; where it reaches no registry, name \
             a mirror with hashicorp/aws in TERRAFORM_PLUGIN_DIR."
        );
        return;
    }
    let broker = binary("broker");
    let scope = ["--scope", "staging-rw", "--task", "terraform"];
    let add = [&["profile", "add", "tf", "--region", "us-east-1"], &scope[..]].concat();
    assert!(served.command(&broker, &add).output().await.expect("it runs").status.success());
    let plan = ["terraform", "plan", "-input=false", "-no-color"];
    let exec = [&["exec"], &scope[..], &["--"], &plan].concat();
    let mut from_profile = served.command(plan[0], &plan[1..]);
    from_profile.env("AWS_PROFILE", "tf");
    for mut command in [served.command(&broker, &exec), from_profile] {
        command.env("TF_VAR_staging", STAGING).env("TF_VAR_production", PRODUCTION);
        let output = command.current_dir(&dir).output().await.expect("it runs");
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{stdout}\n{stderr}");
        assert!(
            stdout.contains("data.aws_s3_objects.staging: Read complete"),
            "{stdout}\n{stderr}"
        );
        let stderr = stderr.replace("\n│ ", " ");
        assert!(stderr.contains("AccessDenied"), "{stderr}");
        assert!(stderr.contains("data.aws_s3_objects.production"), "{stderr}");
        assert!(stderr.contains("assumed-role/broker-staging/"), "{stderr}");
    }
    served.search(&dir);
}
