//! What the checks look at, and how they read it: regular files only, up to a limit, never waiting for a writer.
//! What could not be looked at is kept, because it is not clean.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use broker::render::name;
use rustix::fs::OFlags;
use time::OffsetDateTime;

use super::metadata::Metadata;
use super::project::Project;
use super::ssh::Sockets;
use super::{Check, Finding, NotChecked, Severity, scan};

/// No file of credentials is longer.
pub(super) const FILE_LIMIT: usize = 1 << 20;
/// A directory with more entries is not one that a tool keeps credentials in.
const ENTRIES: usize = 4096;

/// This machine, as the process that asks sees it.
pub(super) struct Ground {
    pub(super) now: OffsetDateTime,
    /// `/`, but in tests.
    pub(super) root: PathBuf,
    pub(super) environment: BTreeMap<String, OsString>,
    pub(super) uid: u32,
    pub(super) gids: BTreeSet<u32>,
    /// The program that runs.
    pub(super) program: Option<PathBuf>,
    /// Our own home first, then those of the machine's other users.
    pub(super) homes: Vec<PathBuf>,
    /// `None` if nobody was to ask.
    pub(super) metadata: Option<Metadata>,
    pub(super) sockets: Sockets,
    pub(super) projects: Vec<Project>,
}

impl Ground {
    /// A variable that is set to something.
    pub(super) fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.get(name).map(OsString::as_os_str).filter(|it| !it.is_empty())
    }

    /// The same as text, with a mark for what is none.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.variable(name).map(|it| it.to_string_lossy().into_owned())
    }

    /// Where `path`, which is absolute, is on the machine that is looked at.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The file that a variable names, with `~` for the home directory as AWS's tools take it.
    pub(super) fn file_of(&self, variable: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.variable(variable)?);
        Some(match (path.strip_prefix("~"), self.homes.first()) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path,
        })
    }

    /// Where tools look for `file` of the home directory: in every home, and where a variable has moved it to.
    pub(super) fn places(&self, file: &str) -> Vec<PathBuf> {
        const MOVED: [(&str, &str); 8] = [
            (".config/gcloud/", "CLOUDSDK_CONFIG"),
            (".azure/", "AZURE_CONFIG_DIR"),
            (".docker/", "DOCKER_CONFIG"),
            (".config/gh/", "GH_CONFIG_DIR"),
            (".cargo/", "CARGO_HOME"),
            (".npmrc", "NPM_CONFIG_USERCONFIG"),
            (".config/", "XDG_CONFIG_HOME"),
            (".local/state/", "XDG_STATE_HOME"),
        ];
        let mut all: Vec<_> = self.homes.iter().map(|it| it.join(file)).collect();
        for (prefix, variable) in MOVED {
            let moved = file.strip_prefix(prefix).zip(self.file_of(variable));
            all.extend(moved.map(|(rest, dir)| if rest.is_empty() { dir } else { dir.join(rest) }));
        }
        all.sort();
        all.dedup();
        all
    }

    fn is_ours(&self, path: &Path) -> bool {
        let near = path.ancestors().find_map(|it| fs::metadata(it).ok());
        near.is_some_and(|it| it.uid() == self.uid)
            || self.homes.first().is_some_and(|it| path.starts_with(it))
    }
}

/// The homes of `root`'s users: ours, by `HOME` and by the machine's own list, then everybody's.
pub(super) fn homes(root: &Path, own: Option<&Path>, uid: u32) -> Vec<PathBuf> {
    let list = fs::read(root.join("etc/passwd")).unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    let mut all: Vec<PathBuf> = own.into_iter().map(Path::to_owned).collect();
    let mut others = Vec::new();
    for line in list.lines() {
        let fields: Vec<_> = line.split(':').collect();
        let [_, _, id, _, _, home, ..] = fields[..] else { continue };
        let home = root.join(home.trim_start_matches('/'));
        // HOME may say anything; the machine knows better.
        if id.parse() == Ok(uid) { all.push(home) } else { others.push(home) }
    }
    all.append(&mut others);
    // Directory services' users, and those of macOS, are on no list.
    for dir in ["home", "Users"] {
        let mut found: Vec<_> = fs::read_dir(root.join(dir))
            .into_iter()
            .flatten()
            .flatten()
            .map(|it| it.path())
            .collect();
        found.sort();
        all.append(&mut found);
    }
    all.push(root.join("root"));
    let mut seen = BTreeSet::new();
    all.retain(|it| it.is_dir() && seen.insert(it.canonicalize().unwrap_or_else(|_| it.clone())));
    all
}

/// One check at work: what it looks at, and what it has to say.
pub(super) struct Look<'a> {
    pub(super) ground: &'a Ground,
    check: &'static Check,
    pub(super) findings: Vec<Finding>,
    pub(super) not_checked: Vec<NotChecked>,
}

impl<'a> Look<'a> {
    pub(super) fn new(ground: &'a Ground, check: &'static Check) -> Self {
        Self { ground, check, findings: Vec::new(), not_checked: Vec::new() }
    }

    pub(super) fn found(&mut self, subject: impl AsRef<OsStr>, what: impl AsRef<str>) {
        self.found_at(self.check.severity, subject, what);
    }

    /// The last gate: nothing that looks like a secret passes, whatever a file or a folder is called.
    pub(super) fn found_at(
        &mut self,
        severity: Severity,
        subject: impl AsRef<OsStr>,
        what: impl AsRef<str>,
    ) {
        self.findings.push(Finding {
            severity,
            check: self.check.id,
            subject: shown(subject),
            found: shown(what.as_ref()),
            gains: self.check.gains,
            fix: self.check.fix,
        });
    }

    pub(super) fn unseen(&mut self, why: impl AsRef<str>) {
        self.miss(why.as_ref(), false);
    }

    /// The same for what the caller did not want looked at, and for what is never looked at.
    pub(super) fn left_out(&mut self, why: &str) {
        self.miss(why, true);
    }

    fn miss(&mut self, why: &str, left_out: bool) {
        self.not_checked.push(NotChecked { check: self.check.id, why: shown(why), left_out });
    }

    /// A file's content, if it is there for us. What is ours and cannot be read is said.
    pub(super) fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        match read(path, FILE_LIMIT) {
            Ok((content, whole)) => {
                if !whole {
                    self.unseen(format!("{}: only its first MiB was read", path.display()));
                }
                Some(content)
            }
            Err(error) => {
                self.missed(path, &error);
                None
            }
        }
    }

    /// The same as text, with marks for what is none.
    pub(super) fn read_text(&mut self, path: &Path) -> Option<String> {
        self.read(path).map(|it| String::from_utf8_lossy(&it).into_owned())
    }

    /// What is in a directory, in order.
    pub(super) fn list(&mut self, dir: &Path) -> Vec<PathBuf> {
        match fs::read_dir(dir) {
            Ok(entries) => {
                let mut all: Vec<_> =
                    entries.flatten().take(ENTRIES + 1).map(|it| it.path()).collect();
                if all.len() > ENTRIES {
                    all.truncate(ENTRIES);
                    self.unseen(format!(
                        "{}: only {ENTRIES} of its entries were looked at",
                        dir.display()
                    ));
                }
                all.sort();
                all
            }
            Err(error) => {
                self.missed(dir, &error);
                Vec::new()
            }
        }
    }

    pub(super) fn missed(&mut self, path: &Path, error: &std::io::Error) {
        let absent = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        // Other people's files are to be out of reach; our own could be opened by whoever may change their mode.
        if !absent && self.ground.is_ours(path) {
            self.unseen(format!("{}: {}", path.display(), error.kind()));
        }
    }
}

/// As it may be printed: no secret, and nothing that moves a terminal's cursor.
pub(super) fn shown(text: impl AsRef<OsStr>) -> String {
    name(&scan::without_secrets(&text.as_ref().to_string_lossy()))
}

/// The first `limit` bytes of a regular file, and whether that is all.
pub(super) fn read(path: &Path, limit: usize) -> std::io::Result<(Vec<u8>, bool)> {
    let not_regular = || std::io::Error::new(ErrorKind::NotFound, "not a regular file");
    if !fs::metadata(path)?.is_file() {
        return Err(not_regular());
    }
    // Should it have become a FIFO meanwhile, opening it waits for nobody.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).expect("flags are small");
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(not_regular());
    }
    let mut content = Vec::new();
    // By what comes, not by its length: files below /proc have none.
    file.take(limit as u64 + 1).read_to_end(&mut content)?;
    let whole = content.len() <= limit;
    content.truncate(limit);
    Ok((content, whole))
}
