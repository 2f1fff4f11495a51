//! `broker` by itself: what it is made of, what it tells about itself, and what it does where no broker is.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tests::program::{binary, free_port, program, text};

const UNSET: &str = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; false\n";
const ID: &str = "0198c0de-0000-7000-8000-000000000000";
const COMMANDS: [&str; 25] = [
    "approval",
    "audit",
    "completions",
    "credentials",
    "doctor",
    "exec",
    "explain",
    "freeze",
    "freezes",
    "key",
    "lease",
    "leases",
    "login",
    "man",
    "mcp",
    "pending",
    "profile",
    "revoke",
    "scopes",
    "show",
    "sign",
    "task",
    "thaw",
    "whoami",
    "withdraw",
];

async fn run(name: &str, environment: &[(&str, &str)], args: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a temporary directory");
    let environment: BTreeMap<_, _> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut command = program(binary(name), &environment);
    command.args(args).env("HOME", home.path()).output().await.expect("it runs")
}

/// Names of the packages that end up in `package`.
async fn dependencies(package: &str) -> Vec<String> {
    let output = tokio::process::Command::new(env!("CARGO"))
        .args(["tree", "-p", package, "-e", "normal", "--prefix", "none", "--locked", "--offline"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .await
        .expect("cargo runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().filter_map(|it| it.split(' ').next()).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_command_line_has_neither_a_database_nor_the_aws_sdk_in_it() {
    let heavy = |all: &[String]| {
        let heavy = |it: &&String| {
            it.starts_with("sqlx") || it.starts_with("aws-") && !it.starts_with("aws-lc")
        };
        all.iter().filter(heavy).cloned().collect::<Vec<_>>()
    };
    let cli = dependencies("cli").await;
    assert!(cli.contains(&"broker".to_owned()), "it shares the server's words and verifier");
    assert_eq!(heavy(&cli), Vec::<String>::new());
    let server = heavy(&dependencies("broker").await);
    assert!(
        server.iter().any(|it| it == "sqlx") && server.iter().any(|it| it == "aws-sdk-sts"),
        "{server:?}"
    );
}

#[tokio::test]
async fn every_command_explains_itself_and_no_help_shows_a_secret() {
    let overview = text(&run("broker", &[], &["--help"]).await.stdout);
    let listed =
        overview.split("Commands:\n").nth(1).expect("a list").split("\n\n").next().expect("a list");
    let mut listed: Vec<_> = listed
        .lines()
        .filter(|it| it.starts_with("  ") && !it.starts_with("   "))
        .filter_map(|it| it.split_whitespace().next())
        .filter(|it| *it != "help")
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, COMMANDS);

    let secrets = [
        ("BROKER_TOKEN", "s3cr3t-token"),
        ("BROKER_TOKEN_FILE", "/s3cr3t-file"),
        ("BROKER_URL", "http://localhost:1/s3cr3t-path"),
        ("BROKER_DATABASE_URL", "postgres://u:s3cr3t@db/broker"),
        ("BROKER_ADMIN_DATABASE_URL", "postgres://u:s3cr3t@db/broker"),
        ("BROKER_OPS_DATABASE_URL", "postgres://u:s3cr3t@db/broker"),
        ("AWS_SECRET_ACCESS_KEY", "s3cr3t-key"),
        ("AWS_SESSION_TOKEN", "s3cr3t-session"),
    ];
    let ours = [None].into_iter().chain(COMMANDS.map(Some)).map(|it| ("broker", it));
    let servers =
        [None, Some("serve"), Some("dev"), Some("migrate"), Some("person"), Some("check")]
            .map(|it| ("brokerd", it));
    for (name, command) in ours.chain(servers) {
        for help in ["--help", "-h"] {
            let args: Vec<_> = command.into_iter().chain([help]).collect();
            let output = run(name, &secrets, &args).await;
            let printed = text(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{name} {args:?}");
            assert!(printed.contains("Usage:"), "{name} {args:?}: {printed}");
            assert!(
                !printed.contains("s3cr3t") && output.stderr.is_empty(),
                "{name} {args:?}: {printed}"
            );
        }
    }
    let unknown = run("broker", &[], &["approve", "--help"]).await;
    assert_eq!(unknown.status.code(), Some(2));
}

#[tokio::test]
async fn completions_are_made_for_each_shell_and_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run("broker", &[], &["completions", shell]).await;
        let script = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for word in COMMANDS.iter().chain(&["rollback", "credential-process"]) {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
    let bash = run("broker", &[], &["completions", "bash"]).await.stdout;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bash).expect("our own file");
    let parsed = program("bash", &BTreeMap::new())
        .arg("-n")
        .arg(file.path())
        .output()
        .await
        .expect("bash runs");
    assert!(parsed.status.success(), "{}", text(&parsed.stderr));
    assert_eq!(run("broker", &[], &["completions", "csh"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn where_no_broker_listens_every_command_says_so_and_issues_nothing() {
    let url = format!("http://127.0.0.1:{}", free_port().await);
    let environment = [("BROKER_URL", url.as_str()), ("BROKER_TOKEN", "s3cr3t-token")];
    let commands: [&[&str]; 12] = [
        &["whoami"],
        &["scopes"],
        &["leases"],
        &["pending"],
        &["show", ID],
        &["withdraw", ID],
        &["approval", "export", ID],
        &["lease", "--scope", "staging-rw"],
        &["credentials", "--lease", ID],
        &["exec", "--scope", "staging-rw", "--", "echo", "it ran"],
        &["lease", "--scope", "staging-rw", "-o", "env"],
        &["credentials", "--lease", ID, "-o", "env"],
    ];
    let mut running = tokio::task::JoinSet::new();
    for args in commands {
        let environment = environment.map(|(name, value)| (name, value.to_owned()));
        running.spawn(async move {
            let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
            (args, run("broker", &environment, args).await)
        });
    }
    for (args, output) in running.join_all().await {
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(7), "{args:?}: {stderr}");
        assert!(
            stderr.contains("cannot be reached") && stderr.contains("\nnext: "),
            "{args:?}: {stderr}"
        );
        assert!(!stderr.contains("s3cr3t") && !stdout.contains("it ran"), "{args:?}");
        match args {
            [.., "-o", "env"] => assert_eq!(stdout, UNSET, "{args:?}"),
            // Its reader takes nothing but a document with credentials; the child's output is the child's.
            ["credentials" | "exec", ..] => assert_eq!(stdout, "", "{args:?}"),
            _ => {
                let document: Value =
                    serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{args:?}: {stdout}"));
                assert!(document["next"].is_string(), "{args:?}: {stdout}");
            }
        }
    }
}

#[tokio::test]
async fn without_a_token_or_with_a_wrong_command_nothing_old_lives_on() {
    let cases: [(&[&str], i32, &str); 5] = [
        (&["lease", "--scope", "staging-rw", "-o", "env"], 8, UNSET),
        (&["credentials", "--lease", ID, "-o", "env"], 8, UNSET),
        (&["lease", "-o", "env"], 2, UNSET),
        (&["lease", "--scope", "s", "--token", "t", "-o", "env"], 2, UNSET),
        (&["credentials", "--lease", ID], 8, ""),
    ];
    for (args, code, stdout) in cases {
        let output = run("broker", &[], args).await;
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(code), stdout),
            "{args:?}"
        );
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    // A shell that evaluates it ends up with nothing, and knows.
    let script = r#"eval "$("$BROKER_CLI" lease --scope s -o env)" && echo issued; echo "left: ${AWS_ACCESS_KEY_ID-nothing}""#;
    let environment = BTreeMap::from([("AWS_ACCESS_KEY_ID".to_owned(), "AKIAOLD".to_owned())]);
    let mut shell = program("sh", &environment);
    shell.args(["-c", script]).env("BROKER_CLI", binary("broker"));
    assert_eq!(text(&shell.output().await.expect("sh runs").stdout), "left: nothing\n");
}
