//! AWS's own files: credentials, profiles, and caches of logins.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::environment::kind_of_key;
use super::ground::Ground;
use super::{Check, Look, Severity};
use crate::profile::{self, CREDENTIALS};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "aws-key",
        severity: Severity::Critical,
        looks: "~/.aws/credentials, ~/.aws/config, AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, ~/.boto, /etc/boto.cfg, ~/.s3cfg of all homes that can be read: a user's key is critical, a session's high",
        gains: "whatever its user or role may do: `aws --profile NAME`, or any program that reads the file",
        fix: "`aws iam delete-access-key`, take it out of the file, and let people log in (`aws sso login`) as another user than the agent's; `broker exec` for the agent",
        run: keys,
    },
    Check {
        id: "aws-sso-token",
        severity: Severity::Critical,
        looks: "~/.aws/sso/cache: access tokens that have not expired (critical), and refresh tokens (high)",
        gains: "every permission set of that person in every account, by `aws sso get-role-credentials`: administrator, if they are",
        fix: "`aws sso logout`; log in as another user than the agent's",
        run: sso_token,
    },
    Check {
        id: "aws-login-cache",
        severity: Severity::Critical,
        looks: "~/.aws/login/cache, AWS_LOGIN_CACHE_DIRECTORY: what `aws login` keeps, unless it has expired",
        gains: "that person's console session, with all its rights, renewed for hours",
        fix: "`aws logout --all`; log in as another user than the agent's",
        run: login_cache,
    },
    Check {
        id: "aws-cli-cache",
        severity: Severity::High,
        looks: "~/.aws/cli/cache, ~/.aws/boto/cache: sessions that have not expired",
        gains: "the session's role, until it expires",
        fix: "`rm -r ~/.aws/cli/cache`; use the profile as another user than the agent's",
        run: cli_cache,
    },
    Check {
        id: "aws-profile-role",
        severity: Severity::Medium,
        looks: "profiles with role_arn and source_profile, credential_source or web_identity_token_file",
        gains: "the role, with the source's credentials if those are in reach",
        fix: "take the profile away, or have the role's trust policy let nobody in but the broker's minter",
        run: profile_role,
    },
    Check {
        id: "aws-profile-sso",
        severity: Severity::Low,
        looks: "profiles with sso_session, sso_start_url or login_session",
        gains: "nothing by itself: the next login of a person on this machine",
        fix: "keep the profile in a home that the agent's user cannot read, and log in there",
        run: profile_sso,
    },
    Check {
        id: "aws-credential-process",
        severity: Severity::High,
        looks: "profiles with a credential_process that is not `credentials` of this very program, and nothing else",
        gains: "whatever the command hands out, as often as it likes",
        fix: "take it out, or have `broker` write the profile: `broker profile add NAME --scope SCOPE`",
        run: credential_process,
    },
];

/// A section of an INI file, as AWS's tools read it.
#[derive(Debug, Default)]
struct Section {
    name: String,
    values: BTreeMap<String, String>,
}

fn sections(text: &str) -> Vec<Section> {
    let mut all: Vec<Section> = Vec::new();
    for line in text.lines() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = bare.strip_prefix('[') {
            let name = name.split(']').next().unwrap_or_default().trim();
            let name = name.strip_prefix("profile ").unwrap_or(name).trim().trim_matches('"');
            all.push(Section { name: name.to_owned(), values: BTreeMap::new() });
        } else if let Some((key, value)) = bare.split_once(['=', ':']) {
            if all.is_empty() {
                all.push(Section::default());
            }
            let section = all.last_mut().expect("there is one now");
            section.values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    all
}

/// Every profile of the files of AWS's CLI and SDKs, with the file.
fn profiles(look: &mut Look<'_>) -> Vec<(PathBuf, Section)> {
    let mut paths: Vec<PathBuf> = Vec::new();
    paths.extend(look.ground.file_of("AWS_SHARED_CREDENTIALS_FILE"));
    paths.extend(look.ground.file_of("AWS_CONFIG_FILE"));
    for home in &look.ground.homes {
        paths.extend([home.join(".aws/credentials"), home.join(".aws/config")]);
    }
    read_all(look, paths)
}

fn read_all(look: &mut Look<'_>, mut paths: Vec<PathBuf>) -> Vec<(PathBuf, Section)> {
    let mut seen = std::collections::BTreeSet::new();
    paths.retain(|it| seen.insert(it.clone()));
    let mut all = Vec::new();
    for path in paths {
        let Some(text) = look.read_text(&path) else { continue };
        all.extend(sections(&text).into_iter().map(|it| (path.clone(), it)));
    }
    all
}

fn keys(look: &mut Look<'_>) {
    let mut all = profiles(look);
    let mut others: Vec<PathBuf> = look.ground.file_of("BOTO_CONFIG").into_iter().collect();
    others.push(look.ground.at("/etc/boto.cfg"));
    for home in &look.ground.homes {
        others.extend([home.join(".boto"), home.join(".s3cfg"), home.join(".aws/credentials.bak")]);
    }
    all.append(&mut read_all(look, others));
    for (path, section) in all {
        let value = |names: [&str; 2]| {
            let mut found = names.iter().filter_map(|it| section.values.get(*it));
            found.find(|it| !it.is_empty())
        };
        if value(["aws_secret_access_key", "secret_key"]).is_none() {
            continue;
        }
        let (severity, what) = value(["aws_access_key_id", "access_key"])
            .map_or((Severity::High, "its id is elsewhere"), |it| kind_of_key(it));
        look.found_at(severity, &path, format!("profile {}: an access key: {what}", section.name));
    }
}

fn profile_role(look: &mut Look<'_>) {
    for (path, section) in profiles(look) {
        let sources = ["source_profile", "credential_source", "web_identity_token_file"];
        let source = sources.into_iter().find(|it| section.values.contains_key(*it));
        if let (true, Some(source)) = (section.values.contains_key("role_arn"), source) {
            look.found(&path, format!("profile {}: a role, by {source}", section.name));
        }
    }
}

fn profile_sso(look: &mut Look<'_>) {
    for (path, section) in profiles(look) {
        let names = ["sso_session", "sso_start_url", "login_session"];
        let session = section.name.starts_with("sso-session");
        if let (false, Some(by)) =
            (session, names.into_iter().find(|it| section.values.contains_key(*it)))
        {
            look.found(&path, format!("profile {}: {by}", section.name));
        }
    }
}

fn credential_process(look: &mut Look<'_>) {
    for (path, section) in profiles(look) {
        let Some(command) = section.values.get("credential_process") else { continue };
        if !is_this_program(look.ground, command) {
            look.found(&path, format!("profile {}: a credential_process", section.name));
        }
    }
}

/// Whether `profile` gets its credentials from this program, and from nowhere else.
pub(super) fn is_brokers_profile(look: &mut Look<'_>, profile: &str) -> bool {
    let all = profiles(look);
    let mut named = all.iter().filter(|(_, it)| it.name == profile).peekable();
    named.peek().is_some()
        && named.all(|(_, it)| {
            let ours = it
                .values
                .get("credential_process")
                .is_some_and(|it| is_this_program(look.ground, it));
            ours && !it.values.contains_key("aws_secret_access_key")
                && !it.values.contains_key("role_arn")
        })
}

/// Whether `command` is `broker credentials` of the very file that runs now, and nothing else: a program that is only
/// called `broker` is not it, `broker exec` runs others, and many tools give the command to a shell, which takes more out
/// of it than words.
fn is_this_program(ground: &Ground, command: &str) -> bool {
    let Some(words) = profile::plain_words(command) else { return false };
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let ([first, CREDENTIALS, ..], Some(ours)) = (&words[..], &ground.program) else {
        return false;
    };
    let file = if first.contains('/') {
        // Where another path leads is for the directory that a tool runs in to say.
        Some(PathBuf::from(first)).filter(|it| it.is_absolute())
    } else {
        let path = ground.variable("PATH").unwrap_or_default();
        std::env::split_paths(path).map(|it| it.join(first)).find(|it| it.is_file())
    };
    let id = |path: &Path| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    file.is_some_and(|it| id(&it).is_some() && id(&it) == id(ours))
}

/// JSON files below `dirs`, with their names.
fn documents(look: &mut Look<'_>, dirs: Vec<PathBuf>) -> Vec<(PathBuf, Value)> {
    let mut all = Vec::new();
    for dir in dirs {
        for path in look.list(&dir) {
            if path.extension().is_none_or(|it| it != "json") {
                continue;
            }
            let Some(content) = look.read(&path) else { continue };
            match serde_json::from_slice(&content) {
                Ok(value) => all.push((path, value)),
                Err(_) => look.unseen(format!("{}: it is not JSON", path.display())),
            }
        }
    }
    all
}

fn in_homes(look: &Look<'_>, folders: &[&str]) -> Vec<PathBuf> {
    let homes = look.ground.homes.iter();
    homes.flat_map(|home| folders.iter().map(|it| home.join(it))).collect()
}

/// Whether `value` says a time that is over. What says none is not.
pub(super) fn is_over(value: &Value, now: OffsetDateTime) -> bool {
    // Older tools write `…UTC`.
    let text = value.as_str().unwrap_or_default().replace("UTC", "Z");
    OffsetDateTime::parse(&text, &Rfc3339).is_ok_and(|it| it <= now)
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|it| !it.is_empty())
}

fn sso_token(look: &mut Look<'_>) {
    let dirs = in_homes(look, &[".aws/sso/cache"]);
    for (path, it) in documents(look, dirs) {
        let now = look.ground.now;
        if is_text(&it["accessToken"]) && !is_over(&it["expiresAt"], now) {
            look.found(&path, "an access token that has not expired");
        } else if is_text(&it["refreshToken"]) && !is_over(&it["registrationExpiresAt"], now) {
            look.found_at(
                Severity::High,
                &path,
                "a refresh token, with which the next access token is made",
            );
        }
    }
}

fn login_cache(look: &mut Look<'_>) {
    let mut dirs = in_homes(look, &[".aws/login/cache"]);
    dirs.extend(look.ground.file_of("AWS_LOGIN_CACHE_DIRECTORY"));
    for (path, it) in documents(look, dirs) {
        let over = is_over(&it["accessToken"]["expiresAt"], look.ground.now);
        if is_text(&it["refreshToken"]) || is_text(&it["accessToken"]["secretAccessKey"]) && !over {
            look.found(&path, "a login, or what renews it");
        }
    }
}

fn cli_cache(look: &mut Look<'_>) {
    let dirs = in_homes(look, &[".aws/cli/cache", ".aws/boto/cache"]);
    for (path, it) in documents(look, dirs) {
        let session = &it["Credentials"];
        if is_text(&session["SecretAccessKey"]) && !is_over(&session["Expiration"], look.ground.now)
        {
            look.found(&path, "a session that has not expired");
        }
    }
}
