//! What variables hold: this process's, and other processes' that can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::ground::{Ground, read};
use super::scan::{self, Kind, Style, is_random_key, is_secret_name};
use super::{Check, Look, Severity, aws};

const PROCESSES: usize = 4096;
const ENVIRONMENT_LIMIT: usize = 256 << 10;

/// What an agent lives on, and what lets it write nothing in production.
pub(super) const NEEDED: &[&str] = &[
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "BROKER_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CODEX_API_KEY",
    "CURSOR_API_KEY",
    "GEMINI_API_KEY",
    "OPENAI_API_KEY",
];

/// What other checks are about; a session's token opens nothing alone.
const OF_OTHER_CHECKS: &[&str] = &[
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "BROKER_ADMIN_DATABASE_URL",
    "BROKER_DATABASE_URL",
    "BROKER_OPS_DATABASE_URL",
    "BROKER_RETENTION_DATABASE_URL",
    "BROKER_SEQUENCER_DATABASE_URL",
];

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "env-aws-key",
        severity: Severity::Critical,
        looks: "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN: a user's key is critical, a session's high",
        gains: "whatever its user or role may do, with any program",
        fix: "`unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN` before the agent starts; `broker exec --scope SCOPE -- COMMAND` gives each command its own",
        run: aws_key,
    },
    Check {
        id: "env-aws-profile",
        severity: Severity::Medium,
        looks: "AWS_PROFILE, AWS_DEFAULT_PROFILE, unless the profile's credential_process is this program",
        gains: "the profile's credentials, without naming it",
        fix: "`unset AWS_PROFILE AWS_DEFAULT_PROFILE` before the agent starts",
        run: aws_profile,
    },
    Check {
        id: "env-aws-web-identity",
        severity: Severity::High,
        looks: "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN",
        gains: "sessions of that role, as often as it likes, for as long as the token is renewed",
        fix: "unset both, and mount no such token for the agent (in Kubernetes a service account without a role, `automountServiceAccountToken: false`)",
        run: aws_web_identity,
    },
    Check {
        id: "env-aws-container",
        severity: Severity::High,
        looks: "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, AWS_CONTAINER_CREDENTIALS_FULL_URI, unless a running process of this very program serves it",
        gains: "sessions of the task's or the pod's role, renewed for as long as it runs",
        fix: "give the agent's task or pod no role; unsetting the variable hides it, and takes nothing away",
        run: aws_container,
    },
    Check {
        id: "env-bedrock-token",
        severity: Severity::Medium,
        looks: "AWS_BEARER_TOKEN_BEDROCK",
        gains: "calls of Amazon Bedrock in your account, and what they cost; a long-term key is an IAM user's",
        fix: "give the agent a short-term key, and its user or role nothing but `bedrock:InvokeModel*`",
        run: bedrock_token,
    },
    Check {
        id: "env-secret",
        severity: Severity::High,
        looks: "variables that are called tokens, secrets or passwords, or keys and look random, whatever else has a token in its maker's form or an AWS key in it, and URLs with a password; not the broker's own token, nor keys of model providers",
        gains: "whatever that service gives to who has it: repositories, hosting, databases",
        fix: "unset it before the agent starts (`env -u NAME COMMAND`), or give the agent a token of its own that may do less",
        run: secret,
    },
    Check {
        id: "process-environment",
        severity: Severity::High,
        looks: "environments of other processes that can be read (/proc), for AWS keys and the broker's database URLs",
        gains: "what was kept from its own environment: `cat /proc/*/environ` is all it takes",
        fix: "run the agent as a user of its own, or in a container with its own process namespace",
        run: processes,
    },
];

/// `AKIA…`, and what that is.
pub(super) fn kind_of_key(id: &str) -> (Severity, &'static str) {
    match id.get(..4) {
        Some("ASIA") => (Severity::High, "ASIA…, a session's"),
        Some("AKIA") => (Severity::Critical, "AKIA…, long-lived"),
        _ => (Severity::Critical, "of a form that is not AWS's"),
    }
}

fn aws_key(look: &mut Look<'_>) {
    let id = look.ground.text("AWS_ACCESS_KEY_ID");
    // The older tools' names count too.
    let secret = ["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"]
        .into_iter()
        .find(|it| look.ground.variable(it).is_some());
    let Some(secret) = secret else { return };
    let (severity, what) =
        id.as_deref().map_or((Severity::High, "its id is not here"), kind_of_key);
    look.found_at(severity, secret, format!("an access key: {what}"));
}

fn aws_profile(look: &mut Look<'_>) {
    for variable in ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"] {
        let Some(profile) = look.ground.text(variable) else { continue };
        if !aws::is_brokers_profile(look, &profile) {
            look.found(variable, format!("names the profile {profile}"));
        }
    }
}

fn aws_web_identity(look: &mut Look<'_>) {
    let Some(path) = look.ground.file_of("AWS_WEB_IDENTITY_TOKEN_FILE") else { return };
    if look.ground.variable("AWS_ROLE_ARN").is_some() && look.read(&path).is_some() {
        look.found(
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "a token that can be read, and a role to assume with it",
        );
    }
}

fn aws_container(look: &mut Look<'_>) {
    if look.ground.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some() {
        look.found("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "the path of a task's credentials");
    }
    let name = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    let Some(uri) = look.ground.text(name) else { return };
    match loopback_port(&uri).and_then(|port| served_by_us(look.ground, port)) {
        Some(pid) => look.left_out(&format!("{name}: `broker exec`, process {pid}, serves it; what its lease may do is not looked at")),
        None => look.found(name, "the address of credentials"),
    }
}

fn loopback_port(uri: &str) -> Option<u16> {
    let uri: ureq::http::Uri = uri.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    matches!(host, "127.0.0.1" | "localhost" | "::1").then(|| uri.port_u16()).flatten()
}

/// The process that listens on that port, if it runs this very program. A variable that an agent sets does not make
/// one: the socket is the kernel's word, and so is the program's file. Elsewhere than on Linux nobody is recognized.
fn served_by_us(ground: &Ground, port: u16) -> Option<u32> {
    let ours = fs::metadata(ground.program.as_ref()?).ok()?;
    let listening = ["tcp", "tcp6"].map(|it| {
        let table = read(&ground.at("/proc/net").join(it), 8 << 20).unwrap_or_default().0;
        listeners(&String::from_utf8_lossy(&table), port)
    });
    let listening: BTreeSet<_> =
        listening.concat().into_iter().map(|it| format!("socket:[{it}]")).collect();
    if listening.is_empty() {
        return None;
    }
    // Whoever else listens there, on another address, might be the one that answers, and so might whoever was handed the
    // same socket: then all have to be ours.
    let mut found = BTreeMap::new();
    let all = process_dirs(ground);
    if all.len() > PROCESSES {
        return None;
    }
    for (pid, dir) in all {
        let fds = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        let held = fds
            .filter_map(|it| fs::read_link(it.path()).ok())
            .map(|it| it.to_string_lossy().into_owned())
            .filter(|it| listening.contains(it));
        let held: Vec<_> = held.collect();
        let runs_ours = fs::metadata(dir.join("exe"))
            .is_ok_and(|it| (it.dev(), it.ino()) == (ours.dev(), ours.ino()));
        if !held.is_empty() && !runs_ours {
            return None;
        }
        found.extend(held.into_iter().map(|it| (it, pid)));
    }
    (found.len() == listening.len()).then(|| found.into_values().next()).flatten()
}

/// Inodes of sockets that listen on `port`, of a table as /proc/net/tcp has it.
fn listeners(table: &str, port: u16) -> Vec<String> {
    let row = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let here =
            fields.get(1)?.ends_with(&format!(":{port:04X}")) && fields.get(3) == Some(&"0A");
        here.then(|| fields.get(9).map(|it| (*it).to_owned())).flatten()
    };
    table.lines().filter_map(row).collect()
}

fn process_dirs(ground: &Ground) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(ground.at("/proc")).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|it| Some((it.file_name().to_str()?.parse().ok()?, it.path())))
        .take(PROCESSES + 1)
        .collect();
    all.sort();
    all
}

fn bedrock_token(look: &mut Look<'_>) {
    let name = "AWS_BEARER_TOKEN_BEDROCK";
    if look.ground.variable(name).is_some() {
        look.found(name, "a key of Amazon Bedrock");
    }
}

fn secret(look: &mut Look<'_>) {
    for (name, value) in &look.ground.environment {
        let known = [OF_OTHER_CHECKS, NEEDED].concat().contains(&name.as_str());
        if value.is_empty() || known {
            continue;
        }
        let text = value.to_string_lossy();
        let hits = scan::scan(Style::Any, &[], text.as_bytes());
        let secret = is_secret_name(name) || is_random_key(name, &text);
        if secret && !is_a_file(look.ground, value) {
            look.found(name, "is called a secret, and is set");
        } else if let Some(hit) = hits.iter().find(|it| it.kind != Kind::Random) {
            look.found(name, format!("has in it: {}", hit.what));
        } else if scan::has_url_password(&text, Style::Settings) {
            look.found(name, "a URL with a password");
        }
    }
}

/// Whether it says where a secret is kept. A password may begin with a slash as well: then no file is called so.
fn is_a_file(ground: &Ground, value: &OsStr) -> bool {
    let path = Path::new(value);
    path.is_absolute()
        && match fs::symlink_metadata(ground.at(path)) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::PermissionDenied,
        }
}

fn processes(look: &mut Look<'_>) {
    const NAMES: [&str; 8] = [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "BROKER_ADMIN_DATABASE_URL",
        "BROKER_DATABASE_URL",
        "BROKER_SEQUENCER_DATABASE_URL",
        "BROKER_RETENTION_DATABASE_URL",
        "BROKER_OPS_DATABASE_URL",
        "AWS_BEARER_TOKEN_BEDROCK",
    ];
    let all = process_dirs(look.ground);
    if all.len() > PROCESSES {
        look.unseen(format!("only {PROCESSES} processes were looked at"));
    }
    if all.is_empty() {
        look.unseen("there is no /proc here that says what processes run");
    }
    for (pid, dir) in all {
        let content = read(&dir.join("environ"), ENVIRONMENT_LIMIT).unwrap_or_default().0;
        let theirs = parse(&content);
        let has = |it: &&str| {
            let value = theirs.get(*it).filter(|it| !it.is_empty());
            // What is in our own environment is another check's.
            value.is_some_and(|value| look.ground.environment.get(*it) != Some(value))
        };
        let held: Vec<_> = NAMES.iter().copied().filter(has).collect();
        if !held.is_empty() {
            let command = read(&dir.join("comm"), 64).unwrap_or_default().0;
            let command = String::from_utf8_lossy(&command).trim().to_owned();
            look.found(process_name(&dir, pid), format!("{command} has {}", held.join(", ")));
        }
    }
}

fn process_name(dir: &Path, pid: u32) -> String {
    if dir.starts_with("/proc") { format!("process {pid}") } else { dir.display().to_string() }
}

/// Variables as the kernel shows them: with a NUL behind each.
fn parse(content: &[u8]) -> BTreeMap<String, OsString> {
    let pairs = content.split(|it| *it == 0).filter_map(|it| {
        let at = it.iter().position(|it| *it == b'=')?;
        let name = String::from_utf8_lossy(&it[..at]).into_owned();
        Some((name, OsString::from_vec(it[at + 1..].to_vec())))
    });
    pairs.collect()
}
