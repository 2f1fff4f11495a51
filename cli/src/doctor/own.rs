//! The broker's own: files and logins that only its server or its people should have.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::aws::is_over;
use super::scan::private_key;
use super::{Check, Look, Severity};
use crate::settings::BrokerUrl;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "broker-database",
        severity: Severity::Critical,
        looks: "BROKER_ADMIN_DATABASE_URL and BROKER_DATABASE_URL (critical), BROKER_SEQUENCER_DATABASE_URL and BROKER_RETENTION_DATABASE_URL (high), BROKER_OPS_DATABASE_URL (medium: it reads)",
        gains: "the broker's record: people, keys and approvals, or at least a look at all of them",
        fix: "keep these on the server's host; `unset` them before the agent starts, and change the passwords if it ran with them",
        run: database,
    },
    Check {
        id: "broker-server-file",
        severity: Severity::Critical,
        looks: "/etc/broker and folders of the project with a broker.toml: private keys and AWS credentials that can be read; `dev.env` of `brokerd dev` is medium",
        gains: "tokens of any agent, another story in the log, or the minter's place in AWS",
        fix: "keep the server on a host of its own; `chmod 600 FILE`, then make new keys and credentials: these could be read",
        run: server_file,
    },
    Check {
        id: "broker-person-key",
        severity: Severity::High,
        looks: "BROKER_KEYS: a folder of people's private keys without a passphrase",
        gains: "approvals in those people's names, wherever software keys count: at a `brokerd dev`",
        fix: "`unset BROKER_KEYS`; sign from another machine, or with a hardware key",
        run: person_key,
    },
    Check {
        id: "broker-login",
        severity: Severity::Medium,
        looks: "~/.local/state/broker/login.json, XDG_STATE_HOME: a person's session that has not expired",
        gains: "all that this person may see at the broker; no approval, which takes a key each time",
        fix: "delete the file; people log in as another user than the agent's",
        run: login,
    },
    Check {
        id: "broker-token-open",
        severity: Severity::Medium,
        looks: "BROKER_TOKEN_FILE and token_file of broker's configuration: readable by others",
        gains: "other users of this machine are the agent, at the broker",
        fix: "`chmod 600 FILE`",
        run: token_open,
    },
    Check {
        id: "broker-url-plain",
        severity: Severity::High,
        looks: "BROKER_URL: http to another machine",
        gains: "nothing here, since `broker` refuses it; whoever is on the way would have the token from a program that does not",
        fix: "set BROKER_URL to https://HOST",
        run: url_plain,
    },
];

fn database(look: &mut Look<'_>) {
    for (name, severity) in [
        ("BROKER_ADMIN_DATABASE_URL", Severity::Critical),
        ("BROKER_DATABASE_URL", Severity::Critical),
        ("BROKER_SEQUENCER_DATABASE_URL", Severity::High),
        ("BROKER_RETENTION_DATABASE_URL", Severity::High),
        ("BROKER_OPS_DATABASE_URL", Severity::Medium),
    ] {
        if look.ground.variable(name).is_some() {
            look.found_at(severity, name, "a login of the broker's database");
        }
    }
}

fn server_file(look: &mut Look<'_>) {
    let mut folders = vec![look.ground.at("/etc/broker")];
    folders.extend(look.ground.projects.iter().flat_map(|it| it.broker_folders.iter().cloned()));
    folders.sort();
    folders.dedup();
    for folder in folders {
        let mut paths: Vec<PathBuf> = ["instance.pem", "log.pem", "aws.credentials"]
            .iter()
            .map(|it| folder.join(it))
            .collect();
        if let Some(text) = look.read_text(&folder.join("broker.toml")) {
            paths.extend(named_files(&text).into_iter().map(|it| folder.join(it)));
        }
        paths.sort();
        paths.dedup();
        for path in paths {
            let Some(content) = look.read(&path) else { continue };
            if private_key(&content).is_some_and(|it| it.open) {
                look.found(&path, "a private key of the broker's");
            } else if content.windows(17).any(|it| it.eq_ignore_ascii_case(b"secret_access_key")) {
                look.found(&path, "AWS credentials of the broker's");
            }
        }
    }
    let mut dev = vec![look.ground.at("/var/lib/broker-dev/dev.env")];
    dev.extend(look.ground.places(".local/state/broker/dev/dev.env"));
    for path in dev {
        if look.read(&path).is_some() {
            look.found_at(Severity::Medium, &path, "the logins and keys of a `brokerd dev`");
        }
    }
}

/// Files that a broker.toml names for its keys and credentials.
fn named_files(text: &str) -> Vec<String> {
    let Ok(table) = text.parse::<toml::Table>() else { return Vec::new() };
    let of = |table: &toml::Table, name: &str| {
        table.get(name).and_then(toml::Value::as_str).map(str::to_owned)
    };
    let inner = |table_name: &str, name: &str| of(table.get(table_name)?.as_table()?, name);
    let former = table.get("former_instance_keys").and_then(toml::Value::as_array);
    let former = former.into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned));
    [of(&table, "instance_key"), inner("log", "key"), inner("aws", "credentials_file")]
        .into_iter()
        .flatten()
        .chain(former)
        .collect()
}

fn person_key(look: &mut Look<'_>) {
    let Some(folder) = look.ground.file_of("BROKER_KEYS") else { return };
    let mut keys = 0;
    for path in look.list(&folder) {
        let content = path.is_file().then(|| look.read(&path)).flatten();
        keys += usize::from(
            content.and_then(|it| private_key(&it)).is_some_and(|it| it.open && !it.hardware),
        );
    }
    if keys > 0 {
        look.found(&folder, format!("{keys} private keys without a passphrase"));
    }
}

fn login(look: &mut Look<'_>) {
    for path in look.ground.places(".local/state/broker/login.json") {
        let Some(content) = look.read(&path) else { continue };
        let Ok(value) = serde_json::from_slice::<Value>(&content) else { continue };
        let sessions = value["brokers"].as_object().into_iter().flat_map(|it| it.values());
        let live = sessions.filter(|it| !is_over(&it["expires_at"], look.ground.now)).count();
        if live > 0 {
            look.found(&path, "a person's session that has not expired");
        }
    }
}

fn token_open(look: &mut Look<'_>) {
    let mut paths: Vec<PathBuf> = look.ground.file_of("BROKER_TOKEN_FILE").into_iter().collect();
    for folder in look.ground.places(".config/broker") {
        let Some(text) = look.read_text(&folder.join("config.toml")) else { continue };
        let named = text.parse::<toml::Table>().ok();
        let named = named.and_then(|it| it.get("token_file")?.as_str().map(str::to_owned));
        paths.extend(named.map(|it| at_home(&folder, &it)));
    }
    paths.sort();
    paths.dedup();
    for path in paths {
        let mode = fs::metadata(&path).map(|it| it.mode() & 0o777);
        if let Some(mode) = mode.ok().filter(|it| it & 0o044 != 0) {
            look.found(&path, format!("its mode is {mode:o}"));
        }
    }
}

/// As the configuration takes it: from the home directory, or from the folder that it is in.
fn at_home(folder: &Path, file: &str) -> PathBuf {
    match (file.strip_prefix("~/"), folder.ancestors().nth(2)) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => folder.join(file),
    }
}

fn url_plain(look: &mut Look<'_>) {
    let Some(url) = look.ground.text("BROKER_URL") else { return };
    if url.to_ascii_lowercase().starts_with("http:") && url.parse::<BrokerUrl>().is_err() {
        look.found("BROKER_URL", "http, and not to this machine");
    }
}
