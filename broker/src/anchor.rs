//! Anchors: where checkpoints are kept out of the reach of whoever has the database or this host.
//!
//! Each keeps a checkpoint under `EPOCH/SIZE`, numbers with leading zeroes, and never overwrites one. Names in that order are
//! in the order of the log, so that the newest is found by listing from what is known on.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::aws::{Access, Bucket};
use crate::config::Anchor as Settings;
use crate::log::SignedCheckpoint;
use crate::log::checkpoint::MAX_NOTE_BYTES;

/// A folder answers within that.
const PATIENCE: Duration = Duration::from_secs(10);

/// A place where a checkpoint is kept: the log's epoch and the size.
pub type Place = (i32, u64);

#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    #[error("{place}: {error}")]
    File { place: String, error: io::Error },
    #[error("{0}")]
    Aws(String),
    #[error("{0} is kept there, and is not a checkpoint")]
    Foreign(String),
    #[error("another checkpoint is kept there as {0}")]
    Taken(String),
    #[error("it has not answered for {} s", PATIENCE.as_secs())]
    Late,
}

pub struct Anchor {
    pub name: String,
    kind: Kind,
}

enum Kind {
    /// A folder elsewhere: a mount of another machine. One look at a time: a mount that hangs keeps one thread, and not more and more.
    File(PathBuf, Arc<Semaphore>),
    Bucket(Box<Bucket>),
}

impl Anchor {
    pub fn new(settings: &Settings, access: &Access) -> Self {
        let kind = match settings {
            Settings::File { path, .. } => Kind::File(path.clone(), Arc::new(Semaphore::new(1))),
            Settings::S3(bucket) => {
                Kind::Bucket(Box::new(Bucket::new(bucket.clone(), access.clone())))
            }
        };
        Self { name: settings.name().to_owned(), kind }
    }

    /// The newest checkpoint that is kept there, if it is at `from` or later.
    pub async fn newest(
        &self,
        from: Place,
    ) -> Result<Option<(i32, SignedCheckpoint)>, AnchorError> {
        let found = match &self.kind {
            Kind::Bucket(bucket) => bucket.newest(&key(from)).await?,
            Kind::File(dir, turn) => {
                let dir = dir.clone();
                blocking(turn, move || newest_file(&dir, &key(from))).await?
            }
        };
        let Some((key, note)) = found else { return Ok(None) };
        let epoch = key.split('/').next().and_then(|it| it.parse().ok());
        let signed = SignedCheckpoint::parse(&note).ok();
        match epoch.zip(signed) {
            Some((epoch, signed)) if self::key((epoch, signed.checkpoint.size)) == key => {
                Ok(Some((epoch, signed)))
            }
            _ => Err(AnchorError::Foreign(key)),
        }
    }

    /// Keeps a checkpoint there. The same one may come again.
    pub async fn put(&self, epoch: i32, signed: &SignedCheckpoint) -> Result<(), AnchorError> {
        let key = key((epoch, signed.checkpoint.size));
        let note = signed.note().to_owned();
        let there = match &self.kind {
            Kind::Bucket(bucket) => bucket.put(&key, &note).await?,
            Kind::File(dir, turn) => {
                let (dir, key, note) = (dir.clone(), key.clone(), note.clone());
                blocking(turn, move || put_file(&dir, &key, &note)).await?
            }
        };
        if there == note { Ok(()) } else { Err(AnchorError::Taken(key)) }
    }
}

fn key((epoch, size): Place) -> String {
    format!("{epoch:06}/{size:020}")
}

async fn blocking<T: Send + 'static>(
    turn: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, AnchorError> + Send + 'static,
) -> Result<T, AnchorError> {
    let failed = |error: tokio::task::JoinError| AnchorError::Aws(error.to_string());
    let working = async {
        let turn = turn.clone().acquire_owned().await.expect("nobody closes it");
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    };
    tokio::time::timeout(PATIENCE, working).await.unwrap_or(Err(AnchorError::Late))
}

/// Reads what somebody else may have put there: a file, and no longer than a checkpoint is.
fn read_note(path: &Path) -> io::Result<String> {
    let there = fs::symlink_metadata(path)?;
    if !there.is_file() || MAX_NOTE_BYTES < there.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a checkpoint"));
    }
    let mut note = String::new();
    fs::File::open(path)?.take(MAX_NOTE_BYTES).read_to_string(&mut note)?;
    Ok(note)
}

fn told<T>(path: &Path, result: io::Result<T>) -> Result<T, AnchorError> {
    result.map_err(|error| AnchorError::File { place: path.display().to_string(), error })
}

/// The numbers among the names in a folder, the largest first.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.filter_map(|it| it.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> =
        names.filter(|it| it.bytes().all(|byte| byte.is_ascii_digit())).collect();
    names.sort_by(|one, other| other.cmp(one));
    Ok(names)
}

fn newest_file(dir: &Path, from: &str) -> Result<Option<(String, String)>, AnchorError> {
    // That the folder is not there is an error: it may be a mount that is missing. An empty one in it is of somebody who came
    // no further.
    for epoch in told(dir, names(dir))? {
        let folder = dir.join(&epoch);
        let Some(size) = told(&folder, names(&folder))?.into_iter().next() else { continue };
        let key = format!("{epoch}/{size}");
        if key.as_str() < from {
            return Ok(None);
        }
        let path = folder.join(size);
        return Ok(Some((key, told(&path, read_note(&path))?)));
    }
    Ok(None)
}

/// Writes a file unless it is there, and says what is in it then.
fn put_file(dir: &Path, key: &str, note: &str) -> Result<String, AnchorError> {
    let path = dir.join(key);
    let folder = path.parent().unwrap_or(dir);
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => told(folder, Err(error))?,
        _ => {}
    }
    let scratch = folder.join(format!(".{:016x}", rand::random::<u64>()));
    let write = || {
        let mut file = fs::File::create_new(&scratch)?;
        file.write_all(note.as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, this fails when the name is taken.
        match fs::hard_link(&scratch, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fs::File::open(folder)?.sync_all(),
        }
    };
    let written = write();
    let _ = fs::remove_file(&scratch);
    told(&path, written)?;
    told(&path, read_note(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Checkpoint, LogKey, leaf_hash};

    fn signed(size: u64, text: &str) -> SignedCheckpoint {
        let root = leaf_hash(text.as_bytes());
        let checkpoint = Checkpoint { origin: "example.com/log".into(), size, root };
        checkpoint.sign(&[&LogKey::from_bytes(&[7; 32])]).unwrap()
    }

    #[tokio::test]
    async fn a_folder_keeps_the_newest_and_never_another_under_its_name() {
        let dir = std::env::temp_dir().join(format!("anchor-{:016x}", rand::random::<u64>()));
        let anchor =
            Anchor { name: "a".into(), kind: Kind::File(dir.clone(), Arc::new(Semaphore::new(1))) };
        assert!(matches!(anchor.newest((1, 0)).await, Err(AnchorError::File { .. })));
        fs::create_dir(&dir).unwrap();
        assert!(anchor.newest((1, 0)).await.unwrap().is_none());
        for size in [9, 10, 200] {
            anchor.put(1, &signed(size, "x")).await.unwrap();
            assert_eq!(anchor.newest((1, 0)).await.unwrap(), Some((1, signed(size, "x"))));
        }
        anchor.put(1, &signed(200, "x")).await.unwrap();
        assert!(matches!(anchor.put(1, &signed(200, "y")).await, Err(AnchorError::Taken(_))));
        assert!(anchor.newest((1, 201)).await.unwrap().is_none());
        anchor.put(2, &signed(20, "z")).await.unwrap();
        assert_eq!(anchor.newest((1, 200)).await.unwrap(), Some((2, signed(20, "z"))));
        fs::create_dir(dir.join("999999")).unwrap();
        assert_eq!(anchor.newest((1, 200)).await.unwrap(), Some((2, signed(20, "z"))));
        let (newest, other) = (dir.join("000002/00000000000000000021"), dir.join("other"));
        fs::write(&newest, "nonsense").unwrap();
        assert!(matches!(anchor.newest((1, 0)).await, Err(AnchorError::Foreign(_))));
        // Whoever may write there does not have us read without an end, or wait.
        fs::File::create(&newest).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(anchor.newest((1, 0)).await, Err(AnchorError::File { .. })));
        fs::remove_file(&newest).unwrap();
        fs::write(&other, signed(21, "z").note()).unwrap();
        std::os::unix::fs::symlink(&other, &newest).unwrap();
        assert!(matches!(anchor.newest((1, 0)).await, Err(AnchorError::File { .. })));
        fs::remove_file(&newest).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&newest).status().unwrap();
        assert!(made.success());
        assert!(matches!(anchor.newest((1, 0)).await, Err(AnchorError::File { .. })));
        fs::remove_dir_all(dir).unwrap();
    }
}
