//! Home directories: what lies about in them, in files that no other check knows by their names. A list of names is
//! never long enough: who keeps a token in `~/.secrets` told no tool of it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::environment::NEEDED;
use super::ground::{FILE_LIMIT, read};
use super::scan::{self, Hit};
use super::{Check, Look, Severity, project, tools};

/// Of one home.
const FILES: usize = 5_000;
const ALL_LIMIT: usize = 64 << 20;
/// What is no text says so in its beginning.
const HEAD: usize = 8 << 10;

/// Folders that are gone through, and how deep. Of all others whose names begin with a dot, the files directly in them.
const FOLDERS: &[(&str, usize)] = &[
    (".aws", 2),
    (".kube", 2),
    (".ssh", 4),
    (".config", 3),
    (".claude", 2),
    (".cursor", 2),
    (".codex", 2),
    (".codeium", 2),
    (".gemini", 2),
    (".continue", 2),
    (".azure", 1),
    (".docker", 2),
    (".databricks", 1),
    (".terraform.d", 1),
    (".cache/huggingface", 0),
    (".local/share/opencode", 0),
    ("Downloads", 0),
    ("Desktop", 0),
    ("Library/Preferences", 0),
    ("Library/Application Support", 1),
];

/// What tools fill, and browsers: thousands of files, in which they alone know their way.
const FILLED: &[&str] = &[
    ".claude/file-history",
    ".claude/plugins",
    ".claude/projects",
    ".claude/shell-snapshots",
    ".claude/statsig",
    ".claude/todos",
    ".codex/sessions",
    ".config/BraveSoftware",
    ".config/chromium",
    ".config/gcloud/logs",
    ".config/gcloud/virtenv",
    ".config/google-chrome",
    ".config/microsoft-edge",
    ".cursor/extensions",
    ".cursor/projects",
    ".kube/cache",
];

/// Users who are no people are said to live there, among programs and devices.
const OF_THE_SYSTEM: &[&str] =
    &["bin", "dev", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var/cache"];

/// What other checks read, who know what has expired there.
const OF_OTHER_CHECKS: &[&str] = &[".aws/boto", ".aws/cli", ".aws/login", ".aws/sso"];

/// Where agents keep the login that they live on, as they do in [`NEEDED`]. What else is in these files counts.
const LOGINS: &[(&str, &[&str])] = &[
    (".claude/.credentials.json", &["claudeAiOauth"]),
    (".claude.json", &["oauthAccount", "primaryApiKey"]),
    (".codex/auth.json", &["OPENAI_API_KEY", "tokens"]),
    (".config/cursor/auth.json", &["accessToken", "refreshToken"]),
];

/// The check's name: what it finds, another check may say better.
pub(super) const ID: &str = "home-file";

pub(super) const CHECKS: &[Check] = &[Check {
    id: ID,
    severity: Severity::High,
    looks: "files up to 1 MiB of all homes that can be read, as those of a project: at the top, in dotfolders, agents' own settings among them, in Downloads and Desktop, and in macOS' Library: AWS keys are critical, what is only called a secret and looks random is medium; not the login that an agent lives on, nor what another check says of the same file",
    gains: "whatever that service gives to who has it: `grep -r` in the home directory is all it takes",
    fix: "revoke it where it was made, take it out of the file, and keep the next one where the agent's user cannot read it",
    run: files,
}];

fn files(look: &mut Look<'_>) {
    let mut seen = BTreeSet::new();
    for (at, home) in look.ground.homes.iter().enumerate() {
        // Our own is one wherever it is.
        if at > 0 && OF_THE_SYSTEM.iter().any(|it| home.starts_with(look.ground.at(it))) {
            continue;
        }
        let walk = Walk { home, seen: &mut seen, stores: BTreeSet::new(), note: Notes::default() };
        walk.run(look);
    }
}

/// One home.
struct Walk<'a> {
    home: &'a Path,
    /// Folders, and files that were found, by the kernel's numbers: links lead to what was seen, and in circles.
    seen: &'a mut BTreeSet<(u64, u64)>,
    /// Where git was told to keep passwords.
    stores: BTreeSet<PathBuf>,
    note: Notes,
}

#[derive(Default)]
struct Notes {
    files: usize,
    bytes: usize,
    limit: bool,
    filled: Vec<&'static str>,
    deep: usize,
    links: usize,
    long: usize,
    no_text: usize,
}

impl Walk<'_> {
    fn run(mut self, look: &mut Look<'_>) {
        let mut waiting = VecDeque::from([(self.home.to_owned(), 0)]);
        waiting.extend(FOLDERS.iter().map(|(it, depth)| (self.home.join(it), *depth)));
        let dotted = look.list(self.home).into_iter().filter(|it| {
            let name = it.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with('.') && it.is_dir()
        });
        waiting.extend(dotted.map(|it| (it, 0)));
        while let Some((dir, depth)) = waiting.pop_front() {
            let Ok(about) = fs::metadata(&dir) else { continue };
            if !self.seen.insert((about.dev(), about.ino())) {
                continue;
            }
            for path in look.list(&dir) {
                match fs::metadata(&path) {
                    Ok(about) if about.is_dir() => self.enter(&mut waiting, path, depth),
                    Ok(about) if about.is_file() => self.file(look, &path, &about),
                    Ok(_) => {}
                    Err(error) => look.missed(&path, &error),
                }
            }
        }
        for store in &self.stores {
            // Passwords are all that git keeps there.
            if look.read(store).is_some_and(|it| !it.trim_ascii().is_empty()) {
                look.found(store, "git's passwords: its credential helper keeps them there");
            }
        }
        self.note.tell(look, self.home);
    }

    fn enter(&mut self, waiting: &mut VecDeque<(PathBuf, usize)>, path: PathBuf, depth: usize) {
        let Ok(name) = path.strip_prefix(self.home) else { return };
        let is = |it: &&&str| name == Path::new(**it);
        // Other folders of a home are projects, to be named.
        if name.components().count() == 1 || OF_OTHER_CHECKS.iter().any(|it| is(&it)) {
            return;
        }
        if let Some(filled) = FILLED.iter().find(is) {
            self.note.filled.push(filled);
        } else if FOLDERS.iter().any(|(it, _)| name == Path::new(it)) {
            // It waits already, to a depth of its own.
        } else if depth == 0 || path.file_name().is_some_and(project::is_left_out) {
            self.note.deep += 1;
        } else if path.is_symlink() && !path.canonicalize().is_ok_and(|it| self.is_inside(&it)) {
            self.note.links += 1;
        } else {
            waiting.push_back((path, depth - 1));
        }
    }

    fn is_inside(&self, path: &Path) -> bool {
        self.home.canonicalize().is_ok_and(|it| path.starts_with(it))
    }

    fn file(&mut self, look: &mut Look<'_>, path: &Path, about: &Metadata) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let public = name.ends_with(".pub")
            || name.starts_with("known_hosts")
            || name.starts_with("authorized_keys");
        if public || self.seen.contains(&(about.dev(), about.ino())) {
            return;
        }
        let telling = project::is_telling(path);
        if about.len() > FILE_LIMIT as u64 && !telling {
            self.note.long += 1;
            return;
        }
        self.note.files += 1;
        if self.note.files > FILES || self.note.bytes > ALL_LIMIT {
            self.note.limit = true;
            return;
        }
        // Most of what is no text is pictures, and large.
        if read(path, HEAD).is_ok_and(|(head, _)| scan::text(&head).is_none()) {
            self.note.no_text += usize::from(telling);
            return;
        }
        let Some(content) = look.read(path) else { return };
        self.note.bytes += content.len();
        if project::is_git_of_home(path) {
            let text = scan::text(&content).unwrap_or_default();
            self.stores.extend(text.lines().filter_map(|it| store_of(it, self.home)));
        }
        let hits = self.hits(path, content);
        if let Some(severity) = project::severity(&hits) {
            self.stores.remove(path);
            // Under another name it may be read in another way: it has been seen once it was found.
            self.seen.insert((about.dev(), about.ino()));
            look.found_at(severity, path, project::words(&hits.iter().collect::<Vec<_>>()));
        }
    }

    /// As of a project's file, but for what an agent lives on.
    fn hits(&self, path: &Path, content: Vec<u8>) -> Vec<Hit> {
        let login = LOGINS.iter().find(|(it, _)| path == self.home.join(it));
        let rest = login.and_then(|(_, members)| without(&content, members));
        let content = rest.unwrap_or(content);
        let mut hits = project::all_hits(path, &content);
        if tools::is_kubeconfig(path, &content) {
            hits.extend(tools::kubeconfig_hits(&String::from_utf8_lossy(&content)));
        }
        hits.retain(|it| !NEEDED.contains(&it.what.as_str()));
        scan::settled(hits)
    }
}

impl Notes {
    fn tell(self, look: &mut Look<'_>, home: &Path) {
        let home = home.display();
        if self.limit {
            let mib = ALL_LIMIT >> 20;
            look.unseen(format!("{home}: only {FILES} files and {mib} MiB were looked through"));
        }
        if self.no_text > 0 {
            let count = self.no_text;
            look.unseen(format!(
                "{home}: {count} files whose names say that they could hold secrets are no text"
            ));
        }
        if self.long > 0 {
            look.left_out(&format!("{home}: {} files are longer than 1 MiB", self.long));
        }
        if !self.filled.is_empty() {
            let filled = self.filled.join(", ");
            look.left_out(&format!("{home}: folders that tools fill: {filled}"));
        }
        if self.deep > 0 {
            look.left_out(&format!("{home}: {} folders are deeper in its dotfolders", self.deep));
        }
        if self.links > 0 {
            look.left_out(&format!("{home}: {} symbolic links lead out of it", self.links));
        }
    }
}

/// A JSON object without these members. Nothing if it is none.
fn without(content: &[u8], members: &[&str]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(content).ok()?;
    let object = value.as_object_mut()?;
    object.retain(|name, _| !members.contains(&name.as_str()));
    serde_json::to_vec_pretty(&value).ok()
}

/// The file of `helper = store --file F`.
fn store_of(line: &str, home: &Path) -> Option<PathBuf> {
    let (name, command) = line.split_once('=')?;
    let (_, options) = command.split_once("store")?;
    let (_, file) = options.split_once("--file")?;
    let file = file.trim_start_matches(['=', ' ', '\t', '"', '\'', '\\']);
    let file = file.split(['"', '\'', '\\', ' ', '\t', '\r']).next()?;
    let below = ["~/", "$HOME/"].into_iter().find_map(|it| file.strip_prefix(it));
    let path = below.map_or_else(|| PathBuf::from(file), |it| home.join(it));
    (name.trim().eq_ignore_ascii_case("helper") && path.is_absolute()).then_some(path)
}
