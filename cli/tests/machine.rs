//! The built `broker doctor`, on homes and projects with one standing credential each. What else is on the machine
//! that the tests run on is not looked at here: only what is below the case's own folders, and its own variables.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

// Put together here, so that no scanner takes this file for a leak: ours would, and rightly.
const ID: &str = concat!("AKIA", "Q7M2XK4RJ5TNW3PB");
const SESSION_ID: &str = concat!("ASIA", "Q7M2XK4RJ5TNW3PB");
const KEY: &str = concat!("hT4k/9QmZ2xVb7Lw", "Rn+5cYpD8sJf3GaE6uKo1BiX");
const TOKEN: &str = concat!("3f9c1b7e-52d4-4a86", "-9e0b-7d1f6a2c8b45");
const GITHUB: &str = concat!("ghp", "_9fK2mQx7LbR4tWz8VnC3yHj6PdS1gTa5EuXo");
const WORD: &str = concat!("tr0ub4dor", "-Kq82");
const SECRETS: [&str; 5] = [KEY, TOKEN, GITHUB, WORD, ID];

/// A home and a project, both empty.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home", "project"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn run(&self, environment: &[(&str, String)], args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_broker"))
            .args(["doctor", "--no-network"])
            .args(args)
            .current_dir(self.path("project"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.path("home"))
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The findings about this case: below its folders, or about its variables. Neither format prints a secret.
    fn doctor(&self, environment: &[(&str, String)]) -> Vec<(String, String)> {
        let report = self.report(environment);
        let ours = |subject: &str| {
            subject.contains(&self.dir.path().display().to_string())
                || environment.iter().any(|(name, _)| *name == subject)
        };
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|it| ours(it["subject"].as_str().unwrap()))
            .map(|it| {
                let text = |name: &str| it[name].as_str().unwrap().to_owned();
                (text("check"), text("severity"))
            })
            .collect()
    }

    fn report(&self, environment: &[(&str, String)]) -> Value {
        let json = self.run(environment, &["-o", "json"]);
        let text = self.run(environment, &["-o", "text", "-v"]);
        for output in [&json, &text] {
            let printed = [output.stdout.clone(), output.stderr.clone()].concat();
            let printed = String::from_utf8(printed).unwrap();
            for secret in SECRETS {
                assert!(!printed.contains(secret), "{secret} is printed: {printed}");
            }
        }
        // Each by itself: other tests' processes come and go, and are findings meanwhile.
        let words = String::from_utf8(text.stdout).unwrap();
        let says = |it: &str| words.lines().any(|line| line.starts_with(it));
        let bad = says("critical ") || says("high ");
        let missed = |it: &&str| it.starts_with("unseen ") && !it.contains("--no-network");
        let some = says("medium ") || says("low ") || words.lines().any(|it| missed(&it));
        let code = if bad { 3 } else { 4 * i32::from(some) };
        assert_eq!(text.status.code(), Some(code), "{words}");
        let report: Value = serde_json::from_slice(&json.stdout).unwrap();
        let worst = report["findings"].as_array().unwrap().first();
        let code = match worst.map(|it| it["severity"].as_str().unwrap()) {
            Some("critical" | "high") => 3,
            None if left_out(&report) => 0,
            _ => 4,
        };
        assert_eq!(json.status.code(), Some(code), "{report}");
        report
    }
}

/// Whether all that was not checked is what the caller left out.
fn left_out(report: &Value) -> bool {
    report["not_checked"].as_array().unwrap().iter().all(|it| it["left_out"] == true)
}

fn found(check: &str, severity: &str) -> Vec<(String, String)> {
    vec![(check.to_owned(), severity.to_owned())]
}

#[test]
fn a_clean_home_and_project_give_no_finding() {
    let machine = Machine::new();
    machine.write("project/src/main.rs", "fn main() { println!(\"hello\"); }\n");
    machine.write("home/.aws/config", "[default]\nregion = eu-west-1\n");
    assert_eq!(machine.doctor(&[]), vec![]);
}

/// A file with one credential, by its name and content, is one finding, by its check and severity.
fn each(cases: &[(&str, String, &str, &str)]) {
    for (name, content, check, severity) in cases {
        let machine = Machine::new();
        machine.write(name, content);
        assert_eq!(machine.doctor(&[]), found(check, severity), "{name}: {content}");
    }
}

#[test]
fn what_awss_tools_keep_is_found_and_no_secret_is_printed() {
    let long_lived = format!("[work]\naws_access_key_id = {ID}\naws_secret_access_key = {KEY}\n");
    let session = long_lived.replace(ID, SESSION_ID);
    let later = "2999-01-01T00:00:00Z";
    each(&[
        ("home/.aws/credentials", long_lived.clone(), "aws-key", "critical"),
        ("home/.aws/credentials", session, "aws-key", "high"),
        ("home/.aws/config", long_lived.replace("[work]", "[profile work]"), "aws-key", "critical"),
        ("home/.boto", long_lived.replace("[work]", "[Credentials]"), "aws-key", "critical"),
        (
            "home/.aws/config",
            "[profile a]\nrole_arn = arn:aws:iam::1:role/a\nsource_profile = b\n".into(),
            "aws-profile-role",
            "medium",
        ),
        (
            "home/.aws/config",
            "[profile a]\nsso_session = s\n[sso-session s]\nsso_start_url = https://s\n".into(),
            "aws-profile-sso",
            "low",
        ),
        (
            "home/.aws/config",
            "[profile a]\ncredential_process = /opt/broker credentials --lease x\n".into(),
            "aws-credential-process",
            "high",
        ),
        (
            "home/.aws/sso/cache/0a.json",
            format!(r#"{{"accessToken":"{TOKEN}","expiresAt":"{later}"}}"#),
            "aws-sso-token",
            "critical",
        ),
        (
            "home/.aws/sso/cache/0a.json",
            format!(
                r#"{{"accessToken":"a","expiresAt":"2020-01-01T00:00:00UTC","refreshToken":"{TOKEN}","registrationExpiresAt":"{later}"}}"#
            ),
            "aws-sso-token",
            "high",
        ),
        (
            "home/.aws/login/cache/0a.json",
            format!(r#"{{"accessToken":{{"secretAccessKey":"{KEY}","expiresAt":"{later}"}}}}"#),
            "aws-login-cache",
            "critical",
        ),
        (
            "home/.aws/cli/cache/0a.json",
            format!(r#"{{"Credentials":{{"SecretAccessKey":"{KEY}","Expiration":"{later}"}}}}"#),
            "aws-cli-cache",
            "high",
        ),
    ]);
}

#[test]
fn what_other_tools_keep_is_found_and_no_secret_is_printed() {
    let later = "2999-01-01T00:00:00Z";
    let kubeconfig = |user: &str| {
        format!(
            "apiVersion: v1\nclusters: []\ncurrent-context: c\nusers:\n- name: u\n  user:\n    {user}\n"
        )
    };
    let login = format!(
        r#"{{"brokers":{{"http://localhost:1":{{"person":"bob","token":"{TOKEN}","expires_at":"{later}"}}}}}}"#
    );
    each(&[
        ("home/.kube/config", kubeconfig(&format!("token: {TOKEN}")), "kubeconfig-token", "high"),
        ("home/.kube/config", kubeconfig("exec:\n      command: aws"), "kubeconfig-exec", "medium"),
        (
            "project/deploy/kubeconfig.yaml",
            kubeconfig(&format!("client-key-data: {TOKEN}")),
            "kubeconfig-token",
            "high",
        ),
        (
            "home/.config/gcloud/application_default_credentials.json",
            format!(r#"{{"refresh_token":"{TOKEN}"}}"#),
            "other-cloud",
            "high",
        ),
        (
            "home/.azure/msal_token_cache.json",
            format!(r#"{{"secret":"{TOKEN}"}}"#),
            "other-cloud",
            "high",
        ),
        (
            "home/.terraform.d/credentials.tfrc.json",
            format!("{{\"credentials\":{{\"h\":{{\"token\":\"{TOKEN}\"}}}}}}"),
            "tool-token",
            "high",
        ),
        (
            "home/.config/gh/hosts.yml",
            format!("github.com:\n    oauth_token: {GITHUB}\n"),
            "tool-token",
            "high",
        ),
        (
            "home/.docker/config.json",
            format!("{{\"auths\":{{\"r\":{{\"auth\":\"{TOKEN}\"}}}}}}"),
            "tool-token",
            "high",
        ),
        ("home/.vault-token", TOKEN.into(), "tool-token", "high"),
        (
            "home/.railway/config.json",
            format!("{{\n  \"user\": {{\n    \"token\": \"{TOKEN}\"\n  }}\n}}"),
            "tool-token",
            "high",
        ),
        ("home/.fly/config.yml", format!("access_token: {TOKEN}\n"), "tool-token", "high"),
        ("home/.netrc", format!("machine h\n  login l\n  password {WORD}\n"), "tool-token", "high"),
        (
            "home/.npmrc",
            format!("//registry.example.com/:_authToken={TOKEN}\n"),
            "tool-token",
            "high",
        ),
        ("home/.git-credentials", format!("https://u:{WORD}@h\n"), "tool-token", "high"),
        (
            "home/.bash_history",
            format!("export AWS_SECRET_ACCESS_KEY={KEY}\n"),
            "shell-file",
            "critical",
        ),
        ("home/.zshrc", format!("export GITHUB_TOKEN={GITHUB}\n"), "shell-file", "high"),
        ("home/.local/state/broker/login.json", login, "broker-login", "medium"),
        (
            "home/.local/state/broker/dev/dev.env",
            "BROKER_URL=http://localhost:1\n".into(),
            "broker-server-file",
            "medium",
        ),
    ]);
}

#[test]
fn what_lies_about_in_a_home_is_found_and_no_secret_is_printed() {
    let high = |name, content: String| (name, content, "home-file", "high");
    let servers = |env: &str| {
        format!("{{\n  \"mcpServers\": {{\n    \"x\": {{ \"env\": {{ {env} }} }}\n  }}\n}}\n")
    };
    let railway = servers(&format!("\"RAILWAY_TOKEN\": \"{TOKEN}\""));
    let kubeconfig = format!(
        "current-context: c\nclusters: []\nusers:\n- user:\n    client-key-data: {TOKEN}\n"
    );
    let git =
        format!("[url \"https://x:{WORD}@github.com/\"]\n\tinsteadOf = https://github.com/\n");
    each(&[
        high("home/.env", format!("DB_PASSWORD={WORD}\n")),
        high("home/.secrets", format!("export DB_PASSWORD={WORD}\n")),
        high("home/.zshrc.local", format!("export RAILWAY_TOKEN={TOKEN}\n")),
        ("home/.passwd-s3fs", format!("{ID}:{KEY}\n"), "home-file", "critical"),
        ("home/notes.txt", format!("const railwayToken = '{TOKEN}';\n"), "home-file", "medium"),
        high("home/.claude.json", railway.clone()),
        high("home/.cursor/mcp.json", railway.clone()),
        high(
            "home/.codex/config.toml",
            format!("[mcp_servers.x.env]\nRAILWAY_TOKEN = \"{TOKEN}\"\n"),
        ),
        high("home/.gemini/settings.json", railway),
        // The agent's own is no finding, and hides none beside it.
        high(
            "home/.claude/settings.json",
            servers(&format!("\"ANTHROPIC_API_KEY\": \"{TOKEN}\", \"RAILWAY_TOKEN\": \"{TOKEN}\"")),
        ),
        high(
            "home/.claude/.credentials.json",
            format!(
                r#"{{"claudeAiOauth":{{"accessToken":"{TOKEN}"}},"mcpOAuth":{{"x":"{GITHUB}"}}}}"#
            ),
        ),
        high("home/.databrickscfg", format!("[DEFAULT]\ntoken = {WORD}\n")),
        high("home/.config/a/b/c/deep.env", format!("DB_PASSWORD={WORD}\n")),
        high("home/.unheard-of/settings", format!("RAILWAY_TOKEN={TOKEN}\n")),
        high("home/.kube/prod.yaml", kubeconfig),
        high("home/Downloads/keys.env", format!("DB_PASSWORD={WORD}\n")),
        high("home/Desktop/todo.md", format!("use {GITHUB}\n")),
        high("home/Library/Preferences/x.plist", format!("<string>{GITHUB}</string>\n")),
        high("home/Library/Application Support/X/x.json", format!("[\"{GITHUB}\"]\n")),
        high("home/.gitconfig", git.clone()),
        high("home/.config/git/config", git),
    ]);
}

#[test]
fn a_file_of_a_home_is_said_once_and_by_the_check_that_knows_it() {
    let aws = format!("[a]\naws_access_key_id = {ID}\naws_secret_access_key = {KEY}\n");
    each(&[
        ("home/.aws/credentials", aws, "aws-key", "critical"),
        ("home/.my.cnf", format!("[client]\npassword={WORD}\n"), "tool-token", "high"),
        ("home/.bashrc", format!("RAILWAY_TOKEN={TOKEN}\n"), "shell-file", "high"),
        ("home/.kube/config", format!("users:\n- token: {GITHUB}\n"), "kubeconfig-token", "high"),
    ]);
    // A note about a file does not stand for a key in it.
    let machine = Machine::new();
    let text = format!("# RAILWAY_TOKEN={TOKEN}\n[profile a]\nsso_session = s\n");
    machine.write("home/.aws/config", text);
    let expected = [found("home-file", "high"), found("aws-profile-sso", "low")].concat();
    assert_eq!(machine.doctor(&[]), expected);
    // What was left out by a check's name does not come back by another's.
    let machine = Machine::new();
    machine.write("home/.bashrc", format!("RAILWAY_TOKEN={TOKEN}\n"));
    let output = machine.run(&[], &["-o", "json", "--except", "shell-file"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!report["findings"].to_string().contains(".bashrc"), "{report}");
}

#[test]
fn a_file_that_git_was_told_to_keep_passwords_in_is_found() {
    for (name, file) in
        [("home/.gitconfig", "~/.keep/git"), ("home/.config/git/config", "\"$HOME/.keep/git\"")]
    {
        let machine = Machine::new();
        machine.write("home/.keep/git", format!("https://u:{WORD}@git.internal\n"));
        assert_eq!(machine.doctor(&[]), vec![]);
        machine.write(name, format!("[credential]\n\thelper = store --file {file}\n"));
        assert_eq!(machine.doctor(&[]), found("home-file", "high"), "{name}");
    }
}

#[test]
fn what_a_home_has_of_an_agent_of_the_broker_and_in_public_is_no_finding() {
    let machine = Machine::new();
    let token = machine.write("home/.config/broker/token", format!("{TOKEN}\n"));
    fs::set_permissions(token, Permissions::from_mode(0o600)).unwrap();
    machine.write(
        "home/.config/broker/config.toml",
        "url = \"https://broker.internal\"\ntoken_file = \"token\"\nkey = \"~/.ssh/id.pub\"\n",
    );
    machine.write(
        "home/.claude.json",
        format!(
            "{{\"primaryApiKey\": \"{TOKEN}\",\n\"env\": {{ \"BROKER_TOKEN\": \"{TOKEN}\" }} }}\n"
        ),
    );
    machine.write(
        "home/.claude/.credentials.json",
        format!(r#"{{"claudeAiOauth":{{"accessToken":"{TOKEN}"}}}}"#),
    );
    machine.write("home/.codex/auth.json", format!(r#"{{"OPENAI_API_KEY":"{TOKEN}"}}"#));
    ssh_keygen(&machine.path("home/.ssh/closed"), "a passphrase", "ed25519");
    machine.write("home/.ssh/known_hosts", format!("# TOKEN={GITHUB}\n"));
    machine.write(
        "home/.gitconfig",
        "[user]\n\temail = a@b.internal\n[credential]\n\thelper = cache\n",
    );
    machine.write("home/app/.env", format!("DB_PASSWORD={WORD}\n"));
    assert_eq!(machine.doctor(&[]), vec![]);
}

#[test]
fn links_in_a_home_are_followed_once_and_not_in_circles() {
    let machine = Machine::new();
    machine.write("dotfiles/aws/old", format!("{ID}\n{KEY}\n"));
    machine.write("dotfiles/env", format!("RAILWAY_TOKEN={TOKEN}\n"));
    symlink(machine.path("dotfiles/aws"), machine.path("home/.aws")).unwrap();
    symlink(machine.path("dotfiles/env"), machine.path("home/.env")).unwrap();
    symlink(machine.path("dotfiles/env"), machine.path("home/.env.again")).unwrap();
    fs::create_dir_all(machine.path("home/.config/a")).unwrap();
    symlink("..", machine.path("home/.config/a/up")).unwrap();
    symlink(machine.path("dotfiles"), machine.path("home/.config/out")).unwrap();
    let expected = [found("home-file", "critical"), found("home-file", "high")].concat();
    assert_eq!(machine.doctor(&[]), expected);
    let report = machine.report(&[]).to_string();
    assert!(report.contains("home: 1 symbolic links lead out of it"), "{report}");
}

#[test]
fn what_is_not_looked_through_in_a_home_is_said() {
    let machine = Machine::new();
    let token = format!("GITHUB_TOKEN={GITHUB}\n");
    machine.write("home/film.txt", [token.as_bytes(), &vec![b'a'; 2 << 20]].concat());
    machine.write("home/.claude/projects/a/b.jsonl", &token);
    machine.write("home/.config/a/b/c/d/e.txt", &token);
    assert_eq!(machine.doctor(&[]), vec![]);
    let report = machine.report(&[]);
    for why in [
        "home: 1 files are longer than 1 MiB",
        "home: folders that tools fill: .claude/projects",
        "home: 1 folders are deeper in its dotfolders",
    ] {
        assert!(report["not_checked"].to_string().contains(why), "{why}: {report}");
    }
    machine.write("home/.env", [b"\0", token.as_bytes()].concat());
    let report = machine.report(&[]);
    assert!(report["not_checked"].to_string().contains("home: 1 files whose names"), "{report}");
    for number in 0..5_000 {
        machine.write(&format!("home/.config/many-{}/{number}", number % 2), "");
    }
    let report = machine.report(&[]);
    let limit = "home: only 5000 files and 64 MiB were looked through";
    assert!(report["not_checked"].to_string().contains(limit), "{report}");
}

#[test]
fn what_lies_about_in_a_project_is_found_and_no_secret_is_printed() {
    each(&[
        (
            "project/.env",
            format!("AWS_ACCESS_KEY_ID={ID}\nAWS_SECRET_ACCESS_KEY={KEY}\n"),
            "project-aws-key",
            "critical",
        ),
        ("project/notes/old.txt", format!("key {ID}\nand {KEY}\n"), "project-aws-key", "critical"),
        ("project/.env.local", format!("DB_PASSWORD={WORD}\n"), "project-secret", "high"),
        (
            "project/.env",
            format!("DATABASE_URL=postgres://app:{WORD}@db.internal/app\n"),
            "project-secret",
            "high",
        ),
        (
            "project/prod.env",
            format!("AWS_SECRET_ACCESS_KEY_PROD={KEY}\n"),
            "project-aws-key",
            "critical",
        ),
        ("project/.env", format!("DB_PASSWORD=/{WORD}\n"), "project-secret", "high"),
        ("project/prod.tfvars", format!("db_password = \"{WORD}\"\n"), "project-secret", "high"),
        ("project/.npmrc", format!("//r.internal/:_authToken={TOKEN}\n"), "project-secret", "high"),
        (
            "project/.netrc",
            format!("machine h login l password {WORD}\n"),
            "project-secret",
            "high",
        ),
        (
            "project/docs/how.md",
            format!("curl -H 'Authorization: Bearer {TOKEN}' https://api\n"),
            "project-secret",
            "high",
        ),
        ("project/src/a.py", format!("headers['x'] = '{GITHUB}'\n"), "project-secret", "high"),
        (
            "project/src/b.ts",
            format!("const railwayToken = '{TOKEN}';\n"),
            "project-secret",
            "medium",
        ),
        (
            "project/src/c.ts",
            format!("export const RAILWAY_TOKEN: string = \"{TOKEN}\";\n"),
            "project-secret",
            "high",
        ),
        (
            "project/web.config",
            format!("<add key=\"RailwayToken\" value=\"{TOKEN}\"/>\n"),
            "project-secret",
            "medium",
        ),
        ("project/Dockerfile", format!("ENV RAILWAY_TOKEN {TOKEN}\n"), "project-secret", "high"),
        // The incident that this product is there for: a token of a hosting platform, in a script for something else.
        (
            "project/scripts/domains.sh",
            format!("RAILWAY_TOKEN={TOKEN} railway domain\n"),
            "project-secret",
            "high",
        ),
        (
            "project/terraform.tfstate",
            format!("{{\n  \"password\": \"{WORD}\"\n}}\n"),
            "project-state",
            "high",
        ),
        (
            "project/.git/config",
            format!(
                "[remote \"origin\"]\n\turl = https://x-access-token:{GITHUB}@github.com/a/b\n"
            ),
            "project-git-remote",
            "high",
        ),
        (
            "project/.git/config",
            format!("[http]\n\textraheader = AUTHORIZATION: basic {WORD}\n"),
            "project-git-remote",
            "high",
        ),
    ]);
}

#[test]
fn a_variable_with_a_standing_credential_is_found_and_its_secret_is_not_printed() {
    let machine = Machine::new();
    let token = machine.write("elsewhere/token", TOKEN).display().to_string();
    let set = |name, value: &str| (name, value.to_owned());
    let cases = [
        (
            vec![set("AWS_ACCESS_KEY_ID", ID), set("AWS_SECRET_ACCESS_KEY", KEY)],
            "env-aws-key",
            "critical",
        ),
        (
            vec![
                set("AWS_ACCESS_KEY_ID", SESSION_ID),
                set("AWS_SECRET_ACCESS_KEY", KEY),
                set("AWS_SESSION_TOKEN", TOKEN),
            ],
            "env-aws-key",
            "high",
        ),
        (vec![set("AWS_PROFILE", "admin")], "env-aws-profile", "medium"),
        (
            vec![
                set("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
                set("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
            ],
            "env-aws-web-identity",
            "high",
        ),
        (vec![set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x")], "env-aws-container", "high"),
        (
            vec![
                set("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/x"),
                set("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN),
            ],
            "env-aws-container",
            "high",
        ),
        (vec![set("AWS_BEARER_TOKEN_BEDROCK", TOKEN)], "env-bedrock-token", "medium"),
        (vec![set("RAILWAY_TOKEN", TOKEN)], "env-secret", "high"),
        (vec![set("AWS_PROD_SECRET_ACCESS_KEY", KEY)], "env-secret", "high"),
        (vec![set("AWS_SECRET_ACCESS_KEY_PROD", KEY)], "env-secret", "high"),
        (vec![set("SECRET_ACCESS_KEY_PROD", KEY)], "env-secret", "high"),
        (vec![set("GITHUB_TOKEN_2", GITHUB)], "env-secret", "high"),
        (vec![set("PGPASSWORD", WORD)], "env-secret", "high"),
        (vec![set("SSHPASS", WORD)], "env-secret", "high"),
        (vec![set("OP_SESSION_my", TOKEN)], "env-secret", "high"),
        (vec![set("LINEAR_KEY", TOKEN)], "env-secret", "high"),
        (vec![set("FOR_THE_PIPELINE", GITHUB)], "env-secret", "high"),
        (vec![set("KEYS", &format!("{ID}:{KEY}"))], "env-secret", "high"),
        (vec![set("DB_PASSWORD", &format!("/{WORD}"))], "env-secret", "high"),
        (
            vec![set("BROKER_OTHER_DATABASE_URL", &format!("postgres://a:{WORD}@db.internal/a"))],
            "env-secret",
            "high",
        ),
        (
            vec![set("DATABASE_URL", &format!("postgres://a:{WORD}@db.internal/a"))],
            "env-secret",
            "high",
        ),
        (vec![set("BROKER_ADMIN_DATABASE_URL", "postgres:///b")], "broker-database", "critical"),
        (vec![set("BROKER_DATABASE_URL", "postgres:///b")], "broker-database", "critical"),
        (vec![set("BROKER_OPS_DATABASE_URL", "postgres:///b")], "broker-database", "medium"),
        (vec![set("BROKER_URL", "http://broker.internal:8750")], "broker-url-plain", "high"),
    ];
    for (environment, check, severity) in cases {
        assert_eq!(machine.doctor(&environment), found(check, severity), "{check}");
    }
    // What an agent lives on is no finding, nor is what AWS's tools need beside credentials.
    let fine = [
        set("BROKER_TOKEN", TOKEN),
        set("BROKER_URL", "http://localhost:8750"),
        set("ANTHROPIC_API_KEY", TOKEN),
        set("AWS_REGION", "eu-west-1"),
        set("GITHUB_TOKEN", ""),
        set("TOKEN_FILE", "/run/token"),
        set("GPG_KEY", TOKEN),
        set("SORT_KEY", "by-name"),
        set("DB_PASSWORD", &token),
    ];
    assert_eq!(machine.doctor(&fine), vec![]);
}

#[test]
fn examples_empty_values_and_references_are_no_finding() {
    let machine = Machine::new();
    machine.write(
        "project/.env.example",
        "AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE\nAWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\nDB_PASSWORD=changeme\nTOKEN=xxxxxxxxxxxx\n",
    );
    machine.write(
        "project/.env",
        "DB_PASSWORD=\nDB_PASSWORD=\"\"\nAPI_TOKEN=${API_TOKEN}\nSTRIPE_SECRET=$STRIPE\nJWT_SECRET=<your secret>\nTOKEN_FILE=/run/secrets/token\n\
         DATABASE_URL=postgres://postgres:postgres@localhost:5432/app\nPASSWORD_MIN_LENGTH=12\nTOKEN_TTL=3600\n# OLD_TOKEN=\n",
    );
    machine.write("project/src/a.ts", "const token = await getToken(user);\nlet password = form.password;\nconst accessToken = \"ACCESS_TOKEN_STORAGE_KEY_NAME\";\n");
    machine
        .write("project/package-lock.json", format!("{{\"integrity\": \"sha512-{KEY}{KEY}==\"}}"));
    machine.write("project/id.txt", format!("the key {ID} was deleted\n"));
    machine.write("project/vars.tfvars", "db_password = var.password\nregion = \"eu-west-1\"\n");
    machine.write("project/.git/config", "[remote \"origin\"]\n\turl = git@github.com:a/b.git\n");
    machine
        .write("home/.docker/config.json", "{\"credsStore\": \"desktop\", \"auths\": {\"r\": {}}}");
    machine
        .write("home/.config/gh/hosts.yml", "github.com:\n    user: bob\n    git_protocol: ssh\n");
    machine.write(
        "home/.aws/sso/cache/a.json",
        format!(r#"{{"accessToken":"{TOKEN}","expiresAt":"2020-01-01T00:00:00Z"}}"#),
    );
    assert_eq!(machine.doctor(&[]), vec![]);
}

#[test]
fn a_profile_that_leases_from_this_program_is_no_finding_and_one_from_its_namesake_is() {
    let machine = Machine::new();
    let profile = |program: &Path| {
        format!(
            "[profile agent]\ncredential_process = {} credentials --lease x\n",
            program.display()
        )
    };
    let named = [("AWS_PROFILE", "agent".to_owned())];
    machine.write("home/.aws/config", profile(Path::new(env!("CARGO_BIN_EXE_broker"))));
    assert_eq!(machine.doctor(&named), vec![]);
    let other = machine.write("elsewhere/broker", "#!/bin/sh\n");
    machine.write("home/.aws/config", profile(&other));
    let expected =
        [found("aws-credential-process", "high"), found("env-aws-profile", "medium")].concat();
    assert_eq!(machine.doctor(&named), expected);
}

#[test]
fn a_credential_process_that_runs_more_than_this_program_is_a_finding() {
    let machine = Machine::new();
    let broker = env!("CARGO_BIN_EXE_broker");
    let depth = Path::new(broker).ancestors().count();
    let expected = found("aws-credential-process", "high");
    for command in [
        format!("{broker} credentials --help >/dev/null; cat /secret/key.json"),
        format!("{broker} credentials --lease $(cat /secret/key.json)"),
        format!("{broker} credentials --lease x|cat /secret/key.json"),
        format!("{broker} exec --scope x -- cat /secret/key.json"),
        format!("{broker} --url http://localhost:1 exec --scope x -- cat /secret/key.json"),
        format!("\"{broker}\"{}/bin/cat credentials", "/..".repeat(depth)),
        format!("\"{broker}\" credentials --lease x"),
        format!("{broker}  credentials --lease x"),
        format!("{broker} 'credentials' --lease x"),
        format!("{broker} credentials --lease 'x"),
        broker.to_owned(),
    ] {
        machine.write("home/.aws/config", format!("[a]\ncredential_process = {command}\n"));
        assert_eq!(machine.doctor(&[]), expected, "{command}");
    }
    let quoted = format!("{broker} credentials --scope s --reason 'don'\\''t ask; again'");
    machine.write("home/.aws/config", format!("[a]\ncredential_process = {quoted}\n"));
    assert_eq!(machine.doctor(&[]), vec![]);
}

#[test]
fn a_variable_alone_does_not_pass_for_the_endpoint_of_broker_exec() {
    let machine = Machine::new();
    // Somebody listens there, who is not this program.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}/credentials", listener.local_addr().unwrap());
    let environment = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)];
    assert_eq!(machine.doctor(&environment), found("env-aws-container", "high"));
}

/// `ssh-agent` with keys, until it is dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(machine: &Machine) -> Self {
        Self::start_at(machine.path("agent.sock"))
    }

    fn start_at(socket: PathBuf) -> Self {
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "ssh-agent does not listen");
            std::thread::yield_now();
        }
        Self { child, socket }
    }

    fn add(&self, key: &Path) {
        let mut command = Command::new("ssh-add");
        command.arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket);
        assert!(command.status().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ssh_keygen(path: &Path, passphrase: &str, kind: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", passphrase, "-C", "bob", "-f"]).arg(path);
    assert!(command.status().unwrap().success());
}

#[test]
fn software_keys_in_an_ssh_agent_are_found_and_an_empty_agent_is_none() {
    let machine = Machine::new();
    let agent = Agent::start(&machine);
    let environment = [("SSH_AUTH_SOCK", agent.socket.display().to_string())];
    assert_eq!(machine.doctor(&environment), vec![]);
    for kind in ["ed25519", "rsa"] {
        let key = machine.path(&format!("elsewhere/{kind}"));
        ssh_keygen(&key, "", kind);
        agent.add(&key);
    }
    assert_eq!(machine.doctor(&environment), found("ssh-agent-key", "high"));
    let report = machine.report(&environment).to_string();
    assert!(report.contains("2 of 2 keys") && report.contains("ssh-ed25519 SHA256:"), "{report}");
    assert!(report.contains("ssh-rsa SHA256:"), "{report}");
}

#[test]
fn a_socket_that_is_no_agent_does_not_hang_it_and_is_said() {
    let machine = Machine::new();
    let socket = machine.path("mute.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let report = machine.report(&[("SSH_AUTH_SOCK", socket.display().to_string())]);
    let unseen = report["not_checked"].as_array().unwrap();
    let said = |it: &Value| {
        it["check"] == "ssh-agent-key" && it["why"].as_str().unwrap().contains("mute.sock")
    };
    assert!(unseen.iter().any(said), "{report}");
}

#[test]
fn private_keys_without_a_passphrase_are_found_and_those_with_one_are_none() {
    let machine = Machine::new();
    ssh_keygen(&machine.path("home/.ssh/closed"), "a passphrase", "ed25519");
    assert_eq!(machine.doctor(&[]), vec![]);
    ssh_keygen(&machine.path("home/.ssh/open"), "", "ed25519");
    assert_eq!(machine.doctor(&[]), found("ssh-key-open", "high"));

    let machine = Machine::new();
    ssh_keygen(&machine.path("home/.ssh/work/old/open"), "", "ed25519");
    assert_eq!(machine.doctor(&[]), found("ssh-key-open", "high"));

    let machine = Machine::new();
    ssh_keygen(&machine.path("project/deploy_key"), "", "ed25519");
    assert_eq!(machine.doctor(&[]), found("project-private-key", "medium"));

    let machine = Machine::new();
    ssh_keygen(&machine.path("keys/bob"), "", "ed25519");
    let keys = [("BROKER_KEYS", machine.path("keys").display().to_string())];
    assert_eq!(machine.doctor(&keys), found("broker-person-key", "high"));
}

#[test]
fn keys_of_a_brokers_server_are_found_where_its_configuration_says() {
    let machine = Machine::new();
    machine.write(
        "project/config/broker.toml",
        "instance_key = \"k/own.pem\"\nformer_instance_keys = [\"k/old.pem\"]\n[log]\nkey = \"log.pem\"\n",
    );
    assert_eq!(machine.doctor(&[]), vec![]);
    let expected =
        [found("broker-server-file", "critical"), found("project-private-key", "medium")].concat();
    for key in ["project/config/k/own.pem", "project/config/k/old.pem"] {
        ssh_keygen(&machine.path(key), "", "ed25519");
        assert_eq!(machine.doctor(&[]), expected, "{key}");
        std::fs::remove_file(machine.path(key)).unwrap();
    }
}

#[test]
fn a_token_file_for_everybody_is_found() {
    let machine = Machine::new();
    let file = machine.write("elsewhere/token", TOKEN);
    let environment = [("BROKER_TOKEN_FILE", file.display().to_string())];
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(machine.doctor(&environment), vec![]);
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(machine.doctor(&environment), found("broker-token-open", "medium"));
}

#[test]
fn what_is_no_regular_file_is_not_opened_and_links_are_not_followed_out() {
    let machine = Machine::new();
    for fifo in ["project/.env", "home/.netrc", "home/.vault-token"] {
        let made = Command::new("mkfifo").arg(machine.path(fifo)).status().unwrap();
        assert!(made.success());
    }
    fs::create_dir(machine.path("project/a")).unwrap();
    symlink(machine.path("project"), machine.path("project/a/up")).unwrap();
    symlink("loop", machine.path("project/loop")).unwrap();
    let outside = machine.write("elsewhere/secret.txt", format!("GITHUB_TOKEN={GITHUB}\n"));
    symlink(outside, machine.path("project/link.txt")).unwrap();
    assert_eq!(machine.doctor(&[]), vec![]);
    let report = machine.report(&[]).to_string();
    assert!(report.contains("1 symbolic links lead out of it"), "{report}");
}

#[test]
fn large_files_huge_lines_and_what_is_no_text_are_survived_and_limits_are_said() {
    let machine = Machine::new();
    let token = format!("GITHUB_TOKEN={GITHUB}\n");
    machine.write("project/large.log", [token.as_bytes(), &vec![b'a'; 10 << 20]].concat());
    machine.write("project/line.env", "A_TOKEN=:".repeat(200_000));
    machine.write("project/bytes.env", [0xff, 0xfe, b'=', 0xc3].repeat(1000));
    machine.write("project/zero.env", [0; 4096]);
    let report = machine.report(&[]);
    let large = machine.path("project/large.log").display().to_string();
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|it| it["subject"] == large.as_str()), "{report}");
    assert!(report.to_string().contains("of 2 files only the first MiB was read"), "{report}");
}

#[test]
fn text_in_utf_16_is_read_and_files_of_settings_that_are_no_text_are_said() {
    let line = format!("A=b\nDB_PASSWORD={WORD}\n");
    let wide = |bytes: fn(u16) -> [u8; 2]| {
        format!("\u{feff}{line}").encode_utf16().flat_map(bytes).collect::<Vec<u8>>()
    };
    let marked = format!("\u{feff}DB_PASSWORD={WORD}\n").into_bytes();
    for content in [wide(u16::to_le_bytes), wide(u16::to_be_bytes), marked] {
        let machine = Machine::new();
        machine.write("project/.env", &content);
        assert_eq!(machine.doctor(&[]), found("project-secret", "high"), "{content:?}");
    }
    let unsaid = |name: &str| {
        let machine = Machine::new();
        machine.write(name, [b"\0", line.as_bytes()].concat());
        assert_eq!(machine.doctor(&[]), vec![]);
        !machine.report(&[])["not_checked"].to_string().contains("1 files whose names say")
    };
    for name in [".env", ".env.local", "a.tfvars", "credentials", ".netrc", ".git/hooks/.env"] {
        assert!(!unsaid(&format!("project/{name}")), "{name}");
    }
    assert!(unsaid("project/image.png"));
}

#[test]
fn what_lies_in_gits_own_folder_is_found() {
    let remote = format!("[remote \"origin\"]\n\turl = https://u:{WORD}@github.com/a/b\n");
    each(&[
        ("project/.git/modules/a/config", remote, "project-git-remote", "high"),
        ("project/.git/keep/.env", format!("DB_PASSWORD={WORD}\n"), "project-secret", "high"),
        ("project/.git/hooks/pre-push", format!("# {GITHUB}\n"), "project-secret", "high"),
    ]);
}

#[test]
fn the_configuration_of_a_worktrees_repository_is_read_where_it_is() {
    let remote = format!("[remote \"origin\"]\n\turl = https://u:{WORD}@github.com/a/b\n");
    let machine = Machine::new();
    machine.write("main/.git/config", &remote);
    machine.write("main/.git/worktrees/a/commondir", "../..\n");
    assert_eq!(machine.doctor(&[]), vec![]);
    let git_dir = machine.path("main/.git/worktrees/a");
    machine.write("project/.git", format!("gitdir: {}\n", git_dir.display()));
    assert_eq!(machine.doctor(&[]), found("project-git-remote", "high"));
    // Relative, and without a common folder; and of a submodule, whose own is in the project.
    fs::remove_file(machine.path("main/.git/worktrees/a/commondir")).unwrap();
    fs::rename(machine.path("main/.git/config"), git_dir.join("config")).unwrap();
    machine.write("project/.git", "gitdir: ../main/.git/worktrees/a\n");
    assert_eq!(machine.doctor(&[]), found("project-git-remote", "high"));
    // Of a repository that nobody works in, whatever its folder is called.
    fs::rename(machine.path("main/.git"), machine.path("main/bare")).unwrap();
    machine.write("project/.git", "gitdir: ../main/bare/worktrees/a\n");
    assert_eq!(machine.doctor(&[]), found("project-git-remote", "high"));
    machine.write("project/.git", "gitdir: /dev/null/nothing\n");
    assert_eq!(machine.doctor(&[]), vec![]);

    let machine = Machine::new();
    machine.write("project/.git/modules/b/config", &remote);
    machine.write("project/b/.git", "gitdir: ../.git/modules/b\n");
    assert_eq!(machine.doctor(&[]), found("project-git-remote", "high"));
}

#[test]
fn state_that_terraform_keeps_of_its_backend_is_found_in_a_folder_that_it_fills() {
    let machine = Machine::new();
    let state = format!("{{\n \"access_key\": \"{ID}\",\n \"secret_key\": \"{KEY}\"\n}}\n");
    machine.write("project/infra/.terraform/terraform.tfstate", state);
    machine.write("project/infra/.terraform/modules/a.sh", format!("TOKEN={GITHUB}\n"));
    assert_eq!(machine.doctor(&[]), found("project-state", "high"));
    let report = machine.report(&[]).to_string();
    assert!(report.contains("folders that tools fill: .terraform (1)"), "{report}");
}

#[test]
fn a_shared_connection_of_ssh_is_found_while_somebody_listens_there() {
    let machine = Machine::new();
    for folder in ["home/.ssh/sockets", "home/.ssh/agent"] {
        fs::create_dir_all(machine.path(folder)).unwrap();
    }
    let bind = |name: &str| std::os::unix::net::UnixListener::bind(machine.path(name)).unwrap();
    drop(bind("home/.ssh/gone"));
    assert_eq!(machine.doctor(&[]), vec![]);
    for name in ["home/.ssh/bob@host:22", "home/.ssh/sockets/0a1b"] {
        let listener = bind(name);
        assert_eq!(machine.doctor(&[]), found("ssh-control-socket", "high"), "{name}");
        drop(listener);
    }
}

#[test]
fn an_ssh_agent_that_no_variable_names_is_found_where_agents_are_put() {
    for folder in ["home/.ssh", "run", "run/ssh"] {
        let machine = Machine::new();
        fs::create_dir_all(machine.path(folder)).unwrap();
        let environment = [("XDG_RUNTIME_DIR", machine.path("run").display().to_string())];
        let agent = Agent::start_at(machine.path(folder).join("own.sock"));
        assert_eq!(machine.doctor(&environment), vec![], "{folder}");
        let key = machine.path("elsewhere/key");
        ssh_keygen(&key, "", "ed25519");
        agent.add(&key);
        assert_eq!(machine.doctor(&environment), found("ssh-agent-key", "high"), "{folder}");
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    let machine = Machine::new();
    let file = machine.write("project/closed/.env", format!("DB_PASSWORD={WORD}\n"));
    fs::set_permissions(file.parent().unwrap(), Permissions::from_mode(0o000)).unwrap();
    let as_root = fs::read_dir(file.parent().unwrap()).is_ok();
    let report = machine.report(&[]);
    let said = report["not_checked"].to_string().contains("closed: permission denied");
    let subject = file.display().to_string();
    let seen =
        report["findings"].as_array().unwrap().iter().any(|it| it["subject"] == subject.as_str());
    fs::set_permissions(file.parent().unwrap(), Permissions::from_mode(0o700)).unwrap();
    // To root nothing is closed: then what is in it is found.
    assert_eq!((said, seen), (!as_root, as_root), "{report}");

    // A loop is unreadable to root too.
    symlink("credentials", machine.path("home/.aws-loop")).unwrap();
    fs::create_dir(machine.path("home/.aws")).unwrap();
    symlink("credentials", machine.path("home/.aws/credentials")).unwrap();
    let report = machine.report(&[]);
    assert!(report["not_checked"].to_string().contains(".aws/credentials: "), "{report}");
}

#[test]
fn the_report_lists_what_was_checked_and_what_was_not() {
    let machine = Machine::new();
    let report = machine.report(&[]);
    let checked = report["checked"].as_array().unwrap();
    assert!(checked.iter().any(|it| it == "aws-key") && checked.len() > 30, "{report}");
    let unseen = report["not_checked"].to_string();
    assert!(unseen.contains("instance-role") && unseen.contains("--no-network"), "{report}");

    machine.write("home/.vault-token", TOKEN);
    let output = machine.run(&[], &["-o", "json", "--except", "tool-token"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!report["findings"].to_string().contains("tool-token"), "{report}");
    let except = serde_json::json!({ "check": "tool-token", "why": "left out by --except", "left_out": true });
    assert!(report["not_checked"].as_array().unwrap().contains(&except), "{report}");
    let output = machine.run(&[], &["--except", "no-such"]);
    assert_eq!(output.status.code(), Some(2));
    let output = machine.run(&[], &["--project", "/no/such/directory"]);
    assert_eq!(output.status.code(), Some(2));
}
