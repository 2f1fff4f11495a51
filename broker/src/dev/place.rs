//! The directory in which a child keeps its data, its port and its log.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("{dir} is in use by another process of ours; stop that one, or choose another `--dir`")]
    InUse { dir: PathBuf },
    #[error("{doing} {path}: {source}; check the path and its permissions")]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot find a free port: {0}; check that ports on 127.0.0.1 can be opened")]
    Port(io::Error),
}

type Result<T> = std::result::Result<T, PlaceError>;

/// A directory that nobody else uses for the same purpose while this value lives.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    _lock: File,
}

impl Place {
    /// Makes `dir` when it is not there and takes it for `purpose`, which names the lock file. The
    /// lock goes with the process, however that ends; one that is just ending gets a moment.
    pub async fn take(dir: &Path, purpose: &str) -> Result<Self> {
        let dir = make_dir(dir)?;
        let path = dir.join(format!("{purpose}.lock"));
        let lock = open_lock(&path)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { dir, _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(POLL).await;
                }
                Err(TryLockError::WouldBlock) => return Err(PlaceError::InUse { dir }),
                Err(TryLockError::Error(source)) => return file("cannot lock", &path, Err(source)),
            }
        }
    }

    /// The directory, absolute and without links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The port of last time, from the file `name`, when it is free; or else another free one.
    pub fn free_port(&self, name: &str) -> Result<u16> {
        let before = fs::read_to_string(self.path(name)).ok();
        let before = before.and_then(|text| text.trim().parse().ok());
        if let Some(port) = before.filter(|port| is_free(*port)) {
            return Ok(port);
        }
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|any| any.local_addr());
        Ok(address.map_err(PlaceError::Port)?.port())
    }

    pub fn remember_port(&self, name: &str, port: u16) -> Result<()> {
        write(&self.path(name), format!("{port}\n").as_bytes(), 0o644)
    }
}

/// Whether nobody listens on that port of 127.0.0.1.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Makes `dir`, for us alone, when it is not there; absolute and without links.
pub fn make_dir(dir: &Path) -> Result<PathBuf> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    file("cannot make", dir, made)?;
    file("cannot resolve", dir, fs::canonicalize(dir))
}

pub fn open_lock(path: &Path) -> Result<File> {
    let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    file("cannot open", path, opened)
}

/// Writes a whole file of that mode: a reader sees the old content or the new.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let new = path.with_added_extension("new");
    let replace = || {
        remove_file(&new)?;
        let mut file = File::options().create_new(true).write(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    file("cannot write", path, replace())
}

/// Removes a file that need not be there.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Says what was done to which path when it failed.
pub fn file<T>(doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| PlaceError::File { doing, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> PathBuf {
        let name = format!("place-{:016x}", rand::random::<u64>());
        std::env::temp_dir().join(name)
    }

    #[tokio::test]
    async fn a_place_is_taken_once_and_free_again_afterwards() {
        let dir = scratch();
        let place = Place::take(&dir, "thing").await.unwrap();
        assert!(matches!(Place::take(&dir, "thing").await, Err(PlaceError::InUse { .. })));
        Place::take(&dir, "other").await.unwrap();
        drop(place);
        Place::take(&dir, "thing").await.unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_port_is_taken_again_unless_somebody_has_it() {
        let dir = scratch();
        let place = Place::take(&dir, "thing").await.unwrap();
        let first = place.free_port("port").unwrap();
        place.remember_port("port", first).unwrap();
        assert_eq!(place.free_port("port").unwrap(), first);
        let _squatter = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        assert_ne!(place.free_port("port").unwrap(), first);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_written_file_has_its_mode_from_the_start_and_replaces_the_old_one() {
        use std::os::unix::fs::PermissionsExt;
        let dir = make_dir(&scratch()).unwrap();
        let path = dir.join("secret");
        for text in ["long before", "now"] {
            write(&path, text.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
