//! Other tools' standing credentials: Kubernetes, other clouds, hosting, registries, git, and what shells remember.

use std::path::{Path, PathBuf};

use super::project::{hits, severity, words};
use super::scan::{self, Hit, Kind, Style};
use super::{Check, Look, Severity};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "kubeconfig-token",
        severity: Severity::High,
        looks: "KUBECONFIG, ~/.kube/config and kubeconfigs in the project: tokens, passwords and client keys",
        gains: "whatever that user may do in the cluster; often everything",
        fix: "take the user out (`kubectl config delete-user NAME`), revoke the token, and give the agent a service account of its own with a role that reads",
        run: |look| kubeconfig(look, KEPT),
    },
    Check {
        id: "kubeconfig-exec",
        severity: Severity::Medium,
        looks: "the same files: commands that fetch a token, such as `aws eks get-token`",
        gains: "the cluster, as whoever the command's own credentials are",
        fix: "take those credentials away; the kubeconfig is worth nothing without them",
        run: |look| kubeconfig(look, FETCHED),
    },
    Check {
        id: "kube-service-account",
        severity: Severity::Medium,
        looks: "service account tokens in /var/run/secrets (kubernetes.io, eks.amazonaws.com)",
        gains: "whatever the pod's service account, or its AWS role, may do",
        fix: "`automountServiceAccountToken: false`, and a service account without rights or role",
        run: service_account,
    },
    Check {
        id: "other-cloud",
        severity: Severity::High,
        looks: "Google Cloud's and Azure's own files in ~/.config/gcloud and ~/.azure, and GOOGLE_APPLICATION_CREDENTIALS",
        gains: "that cloud, as the person or service account who logged in",
        fix: "`gcloud auth revoke --all`, `gcloud auth application-default revoke`, `az account clear`; log in as another user than the agent's",
        run: other_cloud,
    },
    Check {
        id: "tool-token",
        severity: Severity::High,
        looks: "tokens that tools keep in the home directory: gh, glab, Terraform, Vault, Docker, npm, PyPI, cargo, netrc, git, Railway, Fly, Heroku, Vercel, Netlify, Cloudflare, DigitalOcean, Pulumi, Supabase, PostgreSQL, MySQL",
        gains: "what that tool may do without asking: delete a volume, publish a package, merge its own change",
        fix: "log the tool out (`gh auth logout`, `railway logout`, `docker logout`, …), or run the agent with another home",
        run: tool_token,
    },
    Check {
        id: "shell-file",
        severity: Severity::High,
        looks: "start files and histories of shells: AWS keys, tokens, and what is called so and looks random",
        gains: "the key or token: `grep` in the home directory is what an agent does that lacks one",
        fix: "revoke it, then take the line out; put a blank before commands that the history is not to have (HISTCONTROL=ignorespace)",
        run: shell_file,
    },
];

/// Keys of a kubeconfig that hold a credential, and those that say how to get one.
const KEPT: &[&str] = &[
    "token",
    "password",
    "client-key-data",
    "client-key",
    "tokenFile",
    "id-token",
    "refresh-token",
    "access-token",
];
const FETCHED: &[&str] = &["command", "auth-provider"];

/// Without a grammar: a key of YAML or JSON at the beginning of a line, or behind a brace or comma, and its value.
fn kubeconfig(look: &mut Look<'_>, keys: &'static [&'static str]) {
    for path in kubeconfigs(look) {
        let Some(text) = look.read_text(&path) else { continue };
        let found = set(&text, keys);
        if !found.is_empty() {
            let found: Vec<_> =
                found.into_iter().map(|(line, key)| format!("line {line} {key}")).collect();
            look.found(&path, found.join(", "));
        }
    }
}

/// Which of these keys have a value, and in which line.
fn set(text: &str, keys: &'static [&'static str]) -> Vec<(usize, &'static str)> {
    let line_of = |key: &&'static str| {
        text.lines().position(|line| has_value(line, key)).map(|at| (at + 1, *key))
    };
    let mut found: Vec<_> = keys.iter().filter_map(line_of).collect();
    found.sort_unstable();
    found
}

/// The same of a kubeconfig that nobody named.
pub(super) fn kubeconfig_hits(text: &str) -> impl Iterator<Item = Hit> {
    let hit = |(line, key): (usize, &str)| Hit { line, kind: Kind::Token, what: key.to_owned() };
    set(text, KEPT).into_iter().map(hit)
}

fn has_value(line: &str, key: &str) -> bool {
    line.match_indices(key).any(|(at, _)| {
        let begins = line[..at]
            .chars()
            .next_back()
            .is_none_or(|it| matches!(it, ' ' | '"' | '\'' | '{' | ',' | '\t'));
        let rest = line[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
        let value = rest.strip_prefix(':').map(str::trim);
        let empty = |it: &str| matches!(it, "\"\"" | "''" | "null" | "~") || it.starts_with('#');
        // An object of settings follows: the provider itself is the finding.
        let block = key == "auth-provider";
        begins && value.is_some_and(|it| block || !it.is_empty() && !empty(it))
    })
}

fn kubeconfigs(look: &mut Look<'_>) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    if let Some(list) = look.ground.variable("KUBECONFIG") {
        all.extend(std::env::split_paths(list).filter(|it| !it.as_os_str().is_empty()));
    }
    for home in &look.ground.homes {
        all.push(home.join(".kube/config"));
    }
    all.extend(look.ground.projects.iter().flat_map(|it| it.kubeconfigs.iter().cloned()));
    all.sort();
    all.dedup();
    all
}

fn service_account(look: &mut Look<'_>) {
    for path in ["kubernetes.io/serviceaccount/token", "eks.amazonaws.com/serviceaccount/token"] {
        for run in ["/var/run/secrets", "/run/secrets"] {
            let path = look.ground.at(run).join(path);
            // The one is a link to the other.
            let twice = run == "/run/secrets" && look.ground.at("/var/run").is_symlink();
            if !twice && look.read(&path).is_some_and(|it| !it.is_empty()) {
                look.found(&path, "a service account's token");
            }
        }
    }
}

const CLOUDS: &[(&str, Sign)] = &[
    (".config/gcloud/application_default_credentials.json", Sign::Content),
    // SQLite's: what was revoked leaves tables without rows.
    (".config/gcloud/credentials.db", Sign::Words(&["refresh_token", "private_key"])),
    (".azure/msal_token_cache.json", Sign::Words(&["\"secret\""])),
    (".azure/msal_token_cache.bin", Sign::Content),
    (".azure/accessTokens.json", Sign::Words(&["accessToken"])),
    (".azure/service_principal_entries.json", Sign::Words(&["client_secret", "certificate"])),
    (".azure/service_principal_entries.bin", Sign::Content),
];

fn other_cloud(look: &mut Look<'_>) {
    kept(look, CLOUDS, "a login, or a service account's key");
    let mut paths: Vec<PathBuf> =
        look.ground.file_of("GOOGLE_APPLICATION_CREDENTIALS").into_iter().collect();
    for dir in look.ground.places(".config/gcloud/legacy_credentials") {
        paths.extend(look.list(&dir).into_iter().map(|it| it.join("adc.json")));
    }
    for path in paths {
        if look.read(&path).is_some_and(|it| !it.trim_ascii().is_empty()) {
            look.found(&path, "a login, or a service account's key");
        }
    }
}

/// A file below a home directory, and how to tell that there is a token in it.
enum Sign {
    /// One of these, with a value behind it.
    Keys(&'static [&'static str]),
    /// One of these, anywhere.
    Words(&'static [&'static str]),
    /// Whatever is there.
    Content,
    /// What a file of that name in a project is read for.
    Scanned,
}

const TOOLS: &[(&str, Sign)] = &[
    (".config/gh/hosts.yml", Sign::Keys(&["oauth_token"])),
    (".config/glab-cli/config.yml", Sign::Keys(&["token"])),
    (".config/hub", Sign::Keys(&["oauth_token"])),
    (".terraform.d/credentials.tfrc.json", Sign::Keys(&["token"])),
    (".terraformrc", Sign::Keys(&["token"])),
    (".vault-token", Sign::Content),
    (".docker/config.json", Sign::Keys(&["auth", "identitytoken"])),
    (".config/containers/auth.json", Sign::Keys(&["auth"])),
    (".dockercfg", Sign::Keys(&["auth"])),
    (".npmrc", Sign::Scanned),
    (".yarnrc.yml", Sign::Scanned),
    (".pypirc", Sign::Scanned),
    (".netrc", Sign::Scanned),
    ("_netrc", Sign::Scanned),
    (".git-credentials", Sign::Content),
    (".config/git/credentials", Sign::Content),
    (".cargo/credentials.toml", Sign::Keys(&["token"])),
    (".cargo/credentials", Sign::Keys(&["token"])),
    (".gem/credentials", Sign::Content),
    (".railway/config.json", Sign::Keys(&["token", "accessToken"])),
    (".fly/config.yml", Sign::Keys(&["access_token"])),
    (".local/share/com.vercel.cli/auth.json", Sign::Keys(&["token"])),
    (".config/netlify/config.json", Sign::Keys(&["token"])),
    (".config/.wrangler/config/default.toml", Sign::Keys(&["oauth_token", "refresh_token"])),
    (".wrangler/config/default.toml", Sign::Keys(&["oauth_token", "refresh_token"])),
    (".config/doctl/config.yaml", Sign::Keys(&["access-token"])),
    (".pulumi/credentials.json", Sign::Keys(&["accessToken", "pulumi.com"])),
    (".supabase/access-token", Sign::Content),
    (".pgpass", Sign::Content),
    (".my.cnf", Sign::Scanned),
    (".mylogin.cnf", Sign::Content),
    (".config/rclone/rclone.conf", Sign::Keys(&["token", "secret_access_key", "pass"])),
];

fn tool_token(look: &mut Look<'_>) {
    kept(look, TOOLS, "a token or password");
}

/// What tools keep in home directories, or where variables say instead.
fn kept(look: &mut Look<'_>, files: &[(&str, Sign)], what: &str) {
    for (file, sign) in files {
        for path in look.ground.places(file) {
            let Some(content) = look.read(&path) else { continue };
            let text = String::from_utf8_lossy(&content);
            let found = match sign {
                Sign::Keys(keys) => text.lines().any(|line| keys.iter().any(|it| is_set(line, it))),
                Sign::Words(words) => words.iter().any(|it| text.contains(it)),
                Sign::Content => !content.trim_ascii().is_empty(),
                Sign::Scanned => !hits(&path, &content).is_empty(),
            };
            if found {
                look.found(&path, what);
            }
        }
    }
}

/// As [`has_value`], for TOML and INI too.
fn is_set(line: &str, key: &str) -> bool {
    has_value(line, key)
        || line.split_once('=').is_some_and(|(name, value)| {
            name.trim() == key && !value.trim().trim_matches(['"', '\'']).is_empty()
        })
}

fn shell_file(look: &mut Look<'_>) {
    const NAMES: &[&str] = &[
        ".bashrc",
        ".bash_profile",
        ".bash_login",
        ".bash_aliases",
        ".profile",
        ".zshrc",
        ".zshenv",
        ".zprofile",
        ".config/fish/config.fish",
        ".config/fish/fish_variables",
        ".bash_history",
        ".zsh_history",
        ".local/share/fish/fish_history",
        ".psql_history",
        ".python_history",
        ".node_repl_history",
    ];
    let homes = look.ground.homes.clone();
    for path in homes.iter().flat_map(|home| NAMES.iter().map(|it| home.join(it))) {
        let Some(content) = look.read(&path) else { continue };
        let hits = scan::scan(Style::Any, &[], &content);
        let Some(severity) = severity(&hits) else { continue };
        look.found_at(severity, &path, words(&hits.iter().collect::<Vec<_>>()));
    }
}

/// Whether a file of a project is a kubeconfig, by what it says of itself.
pub(super) fn is_kubeconfig(path: &Path, content: &[u8]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let fits = name.contains("kube")
        || name == "config"
        || matches!(extension.as_str(), "conf" | "json" | "yaml" | "yml");
    let has = |needle: &str| content.windows(needle.len()).any(|it| it == needle.as_bytes());
    fits && content.len() < 1 << 20 && has("current-context") && has("clusters") && has("users")
}
