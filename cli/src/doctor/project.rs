//! Projects: every text file below a directory, whether git ignores it or not. An ignored `.env` is the usual find, and
//! a token in a file that has nothing to do with the task is what this product is there for.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::ground::read;
use super::scan::{self, Hit, Kind, Style};
use super::tools::is_kubeconfig;
use super::{Check, Look, Severity};

const DEPTH: usize = 24;
const FILES: usize = 50_000;
/// Of one file so much is read; of all together, so much.
const FILE_LIMIT: usize = 1 << 20;
const ALL_LIMIT: usize = 256 << 20;

/// Folders that tools fill: of a size that nobody writes by hand.
const LEFT_OUT: &[&str] = &[
    "node_modules",
    "target",
    "__pycache__",
    ".venv",
    "venv",
    ".tox",
    ".gradle",
    ".terraform",
    ".mypy_cache",
];

/// Of what Terraform fills, the state of its backend is read: the backend's keys are in it.
const TERRAFORMS: &str = ".terraform";

/// One directory, walked through.
#[derive(Default)]
pub(super) struct Project {
    pub(super) files: Vec<ProjectFile>,
    pub(super) kubeconfigs: Vec<PathBuf>,
    /// Folders with a broker.toml.
    pub(super) broker_folders: Vec<PathBuf>,
    /// What was not looked at, and why.
    pub(super) unseen: Vec<String>,
    /// The same of what is never looked at: folders that tools fill, and what is elsewhere.
    pub(super) left_out: Vec<String>,
}

pub(super) struct ProjectFile {
    pub(super) path: PathBuf,
    /// A repository's configuration.
    git: bool,
    pub(super) hits: Vec<Hit>,
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "project-aws-key",
        severity: Severity::Critical,
        looks: "every text file of the project: an AWS access key id near its secret, or a secret by its name",
        gains: "whatever the key's user or role may do",
        fix: "`aws iam delete-access-key`, then take it out of the file; git keeps it, so that deleting the key comes first",
        run: |look| tell(look, |file, hit| hit.kind == Kind::AwsKey && !is_state(&file.path)),
    },
    Check {
        id: "project-secret",
        severity: Severity::High,
        looks: ".env files, .tfvars, .npmrc, .netrc and other files of settings: what is called a token, secret or password and is no placeholder, and keys that look random; every text file: tokens by their makers' forms; what is only called so and looks random is medium",
        gains: "whatever that service gives to who has it: hosting, repositories, databases",
        fix: "revoke it where it was made, take it out of the file, and keep the next one where the agent's user cannot read it",
        run: secrets,
    },
    Check {
        id: "project-state",
        severity: Severity::High,
        looks: "Terraform state files (*.tfstate, those in .terraform too) with values that are called tokens, secrets or passwords",
        gains: "what Terraform made: database passwords, keys of users",
        fix: "move the state to a remote backend (`terraform init -migrate-state`), delete the local copies, and rotate what was in them",
        run: |look| tell(look, |file, hit| is_state(&file.path) && hit.kind != Kind::PrivateKey),
    },
    Check {
        id: "project-private-key",
        severity: Severity::Medium,
        looks: "every text file of the project: private keys without a passphrase",
        gains: "whatever takes the key: hosts, repositories, a service's identity",
        fix: "take the key out of the project, and make a new one",
        run: |look| tell(look, |_, hit| hit.kind == Kind::PrivateKey),
    },
    Check {
        id: "project-git-remote",
        severity: Severity::High,
        looks: ".git/config, those of submodules, and of the repository that a worktree belongs to: remotes with a password or token in their URL, and authorization headers",
        gains: "the repository, and all else that the token opens, past every review",
        fix: "`git remote set-url NAME https://HOST/PATH`, revoke the token, and use a deploy key or a credential helper of another user",
        run: |look| tell(look, |file, _| file.git),
    },
];

fn is_state(path: &Path) -> bool {
    path.file_name().is_some_and(|it| it.to_string_lossy().contains(".tfstate"))
}

/// A repository's configuration, and those of its submodules.
fn is_git(path: &Path) -> bool {
    path.ends_with("config") && in_git(path)
}

/// A person's own configuration of git, and what is included there by a name like it.
pub(super) fn is_git_of_home(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(".gitconfig") || path.ends_with(".config/git/config")
}

pub(super) fn is_left_out(name: &OsStr) -> bool {
    name.to_str().is_some_and(|it| LEFT_OUT.contains(&it))
}

fn in_git(path: &Path) -> bool {
    path.ancestors().skip(1).any(|it| it.ends_with(".git"))
}

/// Whether its name says that it could hold a secret: then it is said if it could not be looked through.
pub(super) fn is_telling(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let begins = [".env", ".netrc", "_netrc", "credentials", "secrets"];
    manner(path).0 == Style::Settings || begins.iter().any(|it| name.starts_with(it))
}

fn secrets(look: &mut Look<'_>) {
    for project in &look.ground.projects {
        for why in &project.unseen {
            look.unseen(why);
        }
        for why in &project.left_out {
            look.left_out(why);
        }
    }
    let wanted = |file: &ProjectFile, kind: Kind, hit: &Hit| {
        hit.kind == kind && !is_state(&file.path) && !file.git
    };
    tell(look, |file, hit| wanted(file, Kind::Token, hit));
    tell_at(look, Severity::Medium, |file, hit| wanted(file, Kind::Random, hit));
}

fn tell(look: &mut Look<'_>, wanted: impl Fn(&ProjectFile, &Hit) -> bool) {
    tell_as(look, None, wanted);
}

fn tell_at(look: &mut Look<'_>, severity: Severity, wanted: impl Fn(&ProjectFile, &Hit) -> bool) {
    tell_as(look, Some(severity), wanted);
}

/// One finding a file, however much is in it.
fn tell_as(
    look: &mut Look<'_>,
    severity: Option<Severity>,
    wanted: impl Fn(&ProjectFile, &Hit) -> bool,
) {
    let ground = look.ground;
    for file in ground.projects.iter().flat_map(|it| &it.files) {
        let hits: Vec<_> = file.hits.iter().filter(|it| wanted(file, it)).collect();
        if hits.is_empty() {
            continue;
        }
        let what = words(&hits);
        match severity {
            Some(severity) => look.found_at(severity, &file.path, what),
            None => look.found(&file.path, what),
        }
    }
}

/// `line 3 RAILWAY_TOKEN, line 9 a GitHub token, and 4 more`.
pub(super) fn words(hits: &[&Hit]) -> String {
    let mut all: Vec<_> =
        hits.iter().take(5).map(|it| format!("line {} {}", it.line, it.what)).collect();
    if hits.len() > 5 {
        all.push(format!("and {} more", hits.len() - 5));
    }
    all.join(", ")
}

/// How a file is read, by its name, and which names of values are secrets there beside the usual ones.
pub(super) fn manner(path: &Path) -> (Style, &'static [&'static str]) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let example = ["example", "sample", "template", ".dist", ".tmpl", ".tpl"]
        .iter()
        .any(|it| name.contains(it));
    let extension = name.rsplit_once('.').map_or("", |(_, it)| it);
    if example {
        return (Style::Any, &[]);
    }
    match name.as_str() {
        ".npmrc" | ".yarnrc" | ".yarnrc.yml" => (Style::Settings, &["_auth", "_authToken"]),
        ".envrc"
        | ".pypirc"
        | ".git-credentials"
        | ".my.cnf"
        | ".boto"
        | ".s3cfg"
        | "gradle.properties"
        | "local.settings.json" => (Style::Settings, &[]),
        "config.json" | ".dockercfg" if name == ".dockercfg" || in_folder(path, ".docker") => {
            (Style::Settings, &["auth", "identitytoken"])
        }
        "config" if in_folder(path, ".git") => (Style::Settings, &[]),
        ".databrickscfg" | ".secret" | ".secrets" | "secrets" => (Style::Settings, &[]),
        _ if is_git_of_home(path) => (Style::Settings, &[]),
        _ if name.starts_with(".env.")
            || is_secrets(&name, extension)
            || name.contains(".tfstate") =>
        {
            (Style::Settings, &[])
        }
        _ if name.contains(".tfvars") || extension == "env" => (Style::Settings, &[]),
        _ => (Style::Any, &[]),
    }
}

/// `secrets.yaml` is one, and `secrets.rs` is a program.
fn is_secrets(name: &str, extension: &str) -> bool {
    let begins = name.starts_with("secrets.") || name.starts_with("credentials.");
    begins && matches!(extension, "yaml" | "yml" | "json" | "toml" | "ini" | "properties" | "txt")
}

fn in_folder(path: &Path, folder: &str) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|it| it == folder)
}

/// What is in one file, read as its name says.
pub(super) fn hits(path: &Path, content: &[u8]) -> Vec<Hit> {
    scan::settled(all_hits(path, content))
}

/// What a file with these is, by the worst of them.
pub(super) fn severity(hits: &[Hit]) -> Option<Severity> {
    hits.iter().map(|it| it.kind).min().map(|worst| match worst {
        Kind::AwsKey => Severity::Critical,
        Kind::Random => Severity::Medium,
        Kind::Token | Kind::PrivateKey => Severity::High,
    })
}

/// The same, of which a line may have several.
pub(super) fn all_hits(path: &Path, content: &[u8]) -> Vec<Hit> {
    let (style, names) = manner(path);
    let mut hits = scan::all(style, names, content);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let text = scan::text(content).unwrap_or_default();
    if name == ".netrc" || name == "_netrc" {
        hits.extend(netrc(&text));
    }
    if is_git(path) || is_git_of_home(path) {
        hits.extend(git_config(&text));
    }
    hits
}

/// Names and values, with nothing but blanks between them.
fn netrc(text: &str) -> Vec<Hit> {
    let mut hits = Vec::new();
    let mut before = String::new();
    for (at, line) in text.lines().enumerate() {
        for word in line.split_whitespace().take_while(|it| !it.starts_with('#')) {
            if before == "password" {
                hits.push(Hit { line: at + 1, kind: Kind::Token, what: "a password".to_owned() });
            }
            word.clone_into(&mut before);
        }
    }
    hits
}

/// What a token looks like to git: before the `@` of a remote, or a header.
fn git_config(text: &str) -> Vec<Hit> {
    let hit = |(at, line): (usize, &str)| {
        let lower = line.to_lowercase();
        let header = lower.contains("extraheader") && lower.contains("authorization:");
        // Over ssh a user is `git`, and no secret.
        let mut urls = line.split("https://").skip(1).chain(line.split("http://").skip(1));
        let secret = urls.any(|it| {
            let user = it.split('/').next().and_then(|it| it.rsplit_once('@')).map(|(it, _)| it);
            user.is_some_and(|it| {
                it.split_once(':').is_some_and(|(_, it)| !it.is_empty()) || it.len() >= 20
            })
        });
        let what =
            if header { "an authorization header" } else { "a remote with a token in its URL" };
        (header || secret).then(|| Hit { line: at + 1, kind: Kind::Token, what: what.to_owned() })
    };
    text.lines().enumerate().filter_map(hit).collect()
}

/// Everything below `dir`, within limits; no link is followed, and nothing but regular files is opened.
pub(super) fn walk(dir: &Path) -> Project {
    let mut project = Project::default();
    let mut note = Notes::default();
    if dir.parent().is_none() {
        project
            .unseen
            .push("the whole machine is no project: name one with --project DIR".to_owned());
        return project;
    }
    let mut waiting = vec![(dir.to_owned(), 0)];
    let (mut files, mut bytes) = (0, 0);
    let root = dir;
    while let Some((dir, depth)) = waiting.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries.flatten(),
            Err(error) => {
                note.unreadable.push(format!("{}: {}", dir.display(), error.kind()));
                continue;
            }
        };
        let mut entries: Vec<_> = entries.map(|it| it.path()).collect();
        if dir != root && dir.ends_with(TERRAFORMS) {
            entries.retain(|it| it.extension().is_some_and(|it| it == "tfstate") && it.is_file());
        }
        entries.sort();
        for path in entries {
            let Ok(about) = fs::symlink_metadata(&path) else { continue };
            if about.is_symlink() {
                note.links += usize::from(!inside(&path, &project_root(dir.as_path(), depth)));
            } else if about.is_dir() {
                note.enter(&mut waiting, path, depth);
            } else if about.is_file() {
                files += 1;
                if files > FILES || bytes > ALL_LIMIT {
                    note.limit = true;
                    break;
                }
                match read(&path, FILE_LIMIT) {
                    Ok((content, whole)) => {
                        bytes += content.len();
                        note.long += usize::from(!whole);
                        note.no_text +=
                            usize::from(scan::text(&content).is_none() && is_telling(&path));
                        if is_kubeconfig(&path, &content) {
                            project.kubeconfigs.push(path.clone());
                        }
                        if path.ends_with("broker.toml") {
                            project.broker_folders.extend(path.parent().map(Path::to_owned));
                        }
                        if path.ends_with(".git") {
                            project.files.extend(elsewhere(&path, &content, root));
                        }
                        let hits = hits(&path, &content);
                        if !hits.is_empty() {
                            let git = is_git(&path);
                            project.files.push(ProjectFile { path, git, hits });
                        }
                    }
                    Err(error) => {
                        note.unreadable.push(format!("{}: {}", path.display(), error.kind()));
                    }
                }
            }
        }
        if note.limit {
            break;
        }
    }
    project.left_out = note.by_design(dir);
    project.unseen = note.told(dir);
    project
}

/// The configuration of a repository of which this is a worktree (gitrepository-layout(5)): its `.git` is a file that
/// says where the rest is. What is inside the project is walked through anyway.
fn elsewhere(git: &Path, content: &[u8], root: &Path) -> Option<ProjectFile> {
    let text = scan::text(content)?;
    let line = text.lines().find_map(|it| it.strip_prefix("gitdir:"))?;
    let dir = git.parent()?.join(line.trim());
    let common = read(&dir.join("commondir"), FILE_LIMIT).ok();
    let common = common.and_then(|(it, _)| scan::text(&it).map(|it| dir.join(it.trim())));
    let path = common.unwrap_or(dir).join("config").canonicalize().ok()?;
    if root.canonicalize().is_ok_and(|it| path.starts_with(it)) {
        return None;
    }
    let (content, _) = read(&path, FILE_LIMIT).ok()?;
    let hits = scan::scan(Style::Settings, &[], &content);
    let text = scan::text(&content).unwrap_or_default();
    let hits = scan::settled([hits, git_config(&text)].concat());
    (!hits.is_empty()).then_some(ProjectFile { path, git: true, hits })
}

/// Where the walk began, `depth` directories above.
fn project_root(dir: &Path, depth: usize) -> PathBuf {
    dir.ancestors().nth(depth).unwrap_or(dir).to_owned()
}

fn inside(link: &Path, root: &Path) -> bool {
    let target = link.canonicalize();
    // What leads nowhere, or in a circle, leads to no file.
    target.is_err()
        || target.is_ok_and(|it| root.canonicalize().is_ok_and(|root| it.starts_with(root)))
}

#[derive(Default)]
struct Notes {
    unreadable: Vec<String>,
    left_out: BTreeMap<String, usize>,
    links: usize,
    long: usize,
    no_text: usize,
    deep: usize,
    limit: bool,
}

impl Notes {
    fn enter(&mut self, waiting: &mut Vec<(PathBuf, usize)>, path: PathBuf, depth: usize) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What git keeps there is compressed; the rest of its folder may hold whatever somebody put there.
        if name == "objects" && in_git(&path) {
            return;
        }
        if LEFT_OUT.contains(&name.as_str()) {
            if name == TERRAFORMS && depth < DEPTH {
                waiting.push((path, depth + 1));
            }
            *self.left_out.entry(name).or_default() += 1;
        } else if depth >= DEPTH {
            self.deep += 1;
        } else {
            waiting.push((path, depth + 1));
        }
    }

    /// What is never looked at: nobody could have everything here seen.
    fn by_design(&self, dir: &Path) -> Vec<String> {
        let dir = dir.display();
        let mut all = Vec::new();
        if self.links > 0 {
            all.push(format!("{dir}: {} symbolic links lead out of it", self.links));
        }
        let left_out: Vec<_> =
            self.left_out.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        if !left_out.is_empty() {
            all.push(format!("{dir}: folders that tools fill: {}", left_out.join(", ")));
        }
        all
    }

    fn told(self, dir: &Path) -> Vec<String> {
        let dir = dir.display();
        let mut all = Vec::new();
        if self.limit {
            all.push(format!(
                "{dir}: only {FILES} files and {} MiB were looked through",
                ALL_LIMIT >> 20
            ));
        }
        if self.long > 0 {
            all.push(format!("{dir}: of {} files only the first MiB was read", self.long));
        }
        if self.no_text > 0 {
            all.push(format!(
                "{dir}: {} files whose names say that they could hold secrets are no text",
                self.no_text
            ));
        }
        if self.deep > 0 {
            all.push(format!("{dir}: {} folders are deeper than {DEPTH}", self.deep));
        }
        let count = self.unreadable.len();
        all.extend(self.unreadable.into_iter().take(20));
        if count > 20 {
            all.push(format!("{dir}: {} more could not be read", count - 20));
        }
        all
    }
}
