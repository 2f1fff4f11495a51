//! A private Postgres server from the binaries that are installed on this machine.
//!
//! Everything it needs is in one directory:
//!
//! | path | what |
//! | --- | --- |
//! | `postgres/` | the data, made by `initdb` on the first start |
//! | `postgres-socket/` | the unix socket (in the temporary directory when this path is too long) |
//! | `postgres.password` | the superuser's password, mode 600 |
//! | `postgres.port` | the port of the last start, taken again when it is free |
//! | `postgres.log`, `postgres.lock` | |
//!
//! Postgres refuses to run as root. Started by root, it runs as the owner of the data, or else as
//! `postgres` or `nobody`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::distr::Alphanumeric;
use secrecy::{ExposeSecret, SecretString};

use super::leash::{Leash, LeashError, Program, RunAs, StopSignal};
use super::place::{Place, PlaceError, file, is_free, remove_file, write};

const OLDEST_VERSION: u32 = 15;
const PORT_FILE: &str = "postgres.port";
const SUPERUSER: &str = "postgres";
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a server that lost its parent may take to end.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
/// `sockaddr_un` has room for 104 bytes on macOS and 108 on Linux, with the final zero.
const SOCKET_PATH_LIMIT: usize = 100;
const PORT_ATTEMPTS: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "no PostgreSQL {OLDEST_VERSION} or newer found in PATH or the usual places; install the \
         server (`apt-get install postgresql`, `brew install postgresql@17`)"
    )]
    NotInstalled,
    #[error(
        "{data} was made by PostgreSQL {made_by}, which is not installed; install it, or remove \
         {data} to begin anew"
    )]
    OtherVersion { data: PathBuf, made_by: String },
    #[error(
        "a PostgreSQL server (process {pid}) still runs on {data}; stop it, or choose another \
         `--dir`"
    )]
    StillRunning { data: PathBuf, pid: String },
    #[error(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it \
         as; make one, or start this as an ordinary user"
    )]
    NoUser,
    #[error(
        "PostgreSQL runs as user {uid}, who may not pass through {blocked}; choose another place \
         with `--dir` (such as /var/lib/broker), or `chmod o+x {blocked}`"
    )]
    Blocked { uid: u32, blocked: PathBuf },
    #[error(
        "{data} belongs to user {owner}, and this runs as user {uid}; choose another `--dir`, or \
         start this as the user who did before"
    )]
    OtherOwner { data: PathBuf, owner: u32, uid: u32 },
    #[error("{password} is missing, so nobody can log in to {data}; remove {data} to begin anew")]
    PasswordLost { password: PathBuf, data: PathBuf },
    #[error("initdb failed: {output}; free some space or fix what it names, then start again")]
    Initdb { output: String },
    #[error("PostgreSQL did not start; see {log}, which ends with:\n{tail}")]
    NotStarted { log: PathBuf, tail: String },
    #[error("cannot run {program}: {source}; check that it is installed and can be run")]
    Run { program: &'static str, source: io::Error },
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Leash(#[from] LeashError),
}

type Result<T> = std::result::Result<T, PostgresError>;

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The value of `PATH`: where the binaries are looked for first.
    pub search_path: OsString,
    /// `false` gives up safety in a crash for speed: for tests, whose data nobody misses.
    pub durable: bool,
}

/// A running server. It ends when this is dropped; [`stop`](Postgres::stop) also waits for it.
#[derive(Debug)]
pub struct Postgres {
    leash: Leash,
    port: u16,
    socket_dir: PathBuf,
    /// The socket directory is ours alone, under the temporary directory, and goes with the server.
    socket_dir_is_temporary: bool,
    password: SecretString,
    _place: Place,
}

impl Postgres {
    /// Starts the server of `dir`, which is made when it does not exist, and waits until it accepts
    /// connections. The first start makes the database cluster.
    pub async fn start(dir: &Path, options: &Options) -> Result<Self> {
        let place = Place::take(dir, "postgres").await?;
        let cluster = Cluster::find(place.dir(), options).await?;
        cluster.prepare(options).await?;
        let password = cluster.password()?;
        cluster.clear_leftovers().await?;
        let (socket_dir, socket_dir_is_temporary) = cluster.socket_dir()?;

        let mut attempt = 1;
        let (leash, port) = loop {
            let port = place.free_port(PORT_FILE)?;
            match cluster.run(port, &socket_dir, options).await {
                Ok(leash) => break (leash, port),
                // Somebody took the port between our look and the server's.
                Err(_) if attempt < PORT_ATTEMPTS && !is_free(port) => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        place.remember_port(PORT_FILE, port)?;
        Ok(Self { leash, port, socket_dir, socket_dir_is_temporary, password, _place: place })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the unix socket, as libpq's `host` takes it.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The password of the superuser `postgres`.
    pub fn superuser_password(&self) -> &SecretString {
        &self.password
    }

    /// A `postgres://` URL for `role`, over 127.0.0.1.
    pub fn url(&self, role: &str, password: &SecretString, database: &str) -> SecretString {
        let [role, password, database] =
            [role, password.expose_secret(), database].map(percent_encode);
        let url = format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.port);
        SecretString::from(url)
    }

    /// A `postgres://` URL for the superuser, over 127.0.0.1.
    pub fn superuser_url(&self, database: &str) -> SecretString {
        self.url(SUPERUSER, &self.password, database)
    }

    /// Waits until the server ends by itself, which it should not. May be cancelled.
    pub async fn exited(&mut self) -> Result<std::process::ExitStatus> {
        Ok(self.leash.exited().await?)
    }

    /// Disconnects all clients, writes a checkpoint and ends.
    pub async fn stop(self) -> Result<()> {
        self.leash.stop().await?;
        if self.socket_dir_is_temporary {
            file("cannot remove", &self.socket_dir, fs::remove_dir_all(&self.socket_dir))?;
        }
        Ok(())
    }
}

/// The database cluster of one directory, and the binaries and the user it runs with.
struct Cluster {
    dir: PathBuf,
    data: PathBuf,
    binaries: PathBuf,
    run_as: Option<RunAs>,
}

impl Cluster {
    async fn find(dir: &Path, options: &Options) -> Result<Self> {
        let data = dir.join("postgres");
        let made_by = match fs::read_to_string(data.join("PG_VERSION")) {
            Ok(version) => Some(version.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(file("cannot read", &data, Err(error))?),
        };
        let binaries = find_binaries(&options.search_path, made_by.as_deref()).await;
        let binaries = match (binaries, made_by) {
            (Some(binaries), _) => binaries,
            (None, Some(made_by)) => return Err(PostgresError::OtherVersion { data, made_by }),
            (None, None) => return Err(PostgresError::NotInstalled),
        };

        let uid = own_uid().await?;
        let owner = fs::metadata(&data).ok().map(|metadata| (metadata.uid(), metadata.gid()));
        let run_as = match (uid, owner) {
            (0, Some((uid, gid))) if uid != 0 => Some(RunAs { uid, gid }),
            (0, _) => Some(user_for_root()?),
            (_, Some((owner, _))) if owner != uid => {
                return Err(PostgresError::OtherOwner { data, owner, uid });
            }
            _ => None,
        };
        if let Some(run_as) = run_as {
            let ours = metadata(dir)?;
            if ours.uid() == uid && !may_pass(&ours, run_as) {
                // The files in it keep their own modes.
                let open = Permissions::from_mode(ours.mode() | 0o001);
                file("cannot change the mode of", dir, fs::set_permissions(dir, open))?;
            }
            check_passage(dir, run_as)?;
        }
        Ok(Self { dir: dir.to_owned(), data, binaries, run_as })
    }

    fn program(&self, name: &str) -> Program {
        Program::new(self.binaries.join(name))
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .run_as(self.run_as)
    }

    /// A directory that only the server's user can look into.
    fn make_private_dir(&self, path: &Path) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => file("cannot make", path, made)?,
        }
        self.give(path)
    }

    /// Makes the server's user the owner of `path`.
    fn give(&self, path: &Path) -> Result<()> {
        let Some(RunAs { uid, gid }) = self.run_as else { return Ok(()) };
        Ok(file("cannot change the owner of", path, chown(path, Some(uid), Some(gid)))?)
    }

    fn password_file(&self) -> PathBuf {
        self.dir.join("postgres.password")
    }

    fn password(&self) -> Result<SecretString> {
        let path = self.password_file();
        match fs::read_to_string(&path) {
            Ok(password) => Ok(SecretString::from(password.trim_end())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(PostgresError::PasswordLost { password: path, data: self.data.clone() })
            }
            Err(error) => Ok(file("cannot read", &path, Err(error))?),
        }
    }

    /// Makes the data with `initdb` unless it is there. A cluster gets its name when it is whole,
    /// so that one whose making was interrupted is made again.
    async fn prepare(&self, options: &Options) -> Result<()> {
        if self.data.exists() {
            return Ok(());
        }
        let unfinished = self.dir.join("postgres.unfinished");
        if unfinished.exists() {
            file("cannot remove", &unfinished, fs::remove_dir_all(&unfinished))?;
        }
        self.make_private_dir(&unfinished)?;
        let password: String =
            rand::rng().sample_iter(&Alphanumeric).take(32).map(char::from).collect();
        write(&self.password_file(), format!("{password}\n").as_bytes(), 0o600)?;
        // A copy that the server's user may read.
        let password_for_initdb = self.dir.join("postgres.unfinished.password");
        write(&password_for_initdb, format!("{password}\n").as_bytes(), 0o600)?;
        self.give(&password_for_initdb)?;

        let mut pwfile = OsString::from("--pwfile=");
        pwfile.push(&password_for_initdb);
        let mut initdb = self
            .program("initdb")
            .arg("-D")
            .arg(&unfinished)
            .arg(format!("--username={SUPERUSER}"))
            .arg("--auth=scram-sha-256")
            .arg(pwfile)
            .arg("--encoding=UTF8")
            .arg("--no-locale")
            .arg("--data-checksums");
        if !options.durable {
            initdb = initdb.arg("--no-sync");
        }
        let ran = initdb.command().output().await;
        file("cannot remove", &password_for_initdb, fs::remove_file(&password_for_initdb))?;
        let output = ran.map_err(|source| PostgresError::Run { program: "initdb", source })?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(PostgresError::Initdb { output });
        }
        Ok(file("cannot name", &self.data, fs::rename(&unfinished, &self.data))?)
    }

    /// Deals with the `postmaster.pid` of a server that was not stopped properly. Its own server
    /// may still be ending; the process id may also belong to somebody else by now, and Postgres
    /// would take that process for its server.
    async fn clear_leftovers(&self) -> Result<()> {
        let path = self.data.join("postmaster.pid");
        let deadline = Instant::now() + LEFTOVER_LIMIT;
        loop {
            let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
            let pid = text.lines().next().unwrap_or_default().trim().to_owned();
            if !self.is_server(&pid).await {
                return Ok(file("cannot remove", &path, remove_file(&path))?);
            }
            if Instant::now() > deadline {
                return Err(PostgresError::StillRunning { data: self.data.clone(), pid });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether process `pid` is a server on this data: its command line names the directory.
    async fn is_server(&self, pid: &str) -> bool {
        let Ok(pid) = pid.parse::<u32>() else { return false };
        let program = Program::new("/bin/ps").arg("-ww").arg("-o").arg("args=").arg("-p");
        let Ok(output) = program.arg(pid.to_string()).command().output().await else {
            return true; // without `ps`, let Postgres decide
        };
        let data = self.data.as_os_str().as_bytes();
        output.stdout.windows(data.len()).any(|part| part == data)
    }

    /// The directory for the socket, and whether it is a temporary one.
    fn socket_dir(&self) -> Result<(PathBuf, bool)> {
        let wanted = self.dir.join("postgres-socket");
        if wanted.as_os_str().len() + "/.s.PGSQL.65535".len() <= SOCKET_PATH_LIMIT {
            // The lock file of a server that crashed could name a process of today.
            if wanted.exists() {
                file("cannot remove", &wanted, fs::remove_dir_all(&wanted))?;
            }
            self.make_private_dir(&wanted)?;
            return Ok((wanted, false));
        }
        let name = format!("broker-{:016x}", rand::random::<u64>());
        let short = std::env::temp_dir().join(name);
        self.make_private_dir(&short)?;
        Ok((short, true))
    }

    /// Starts the server and waits until it is ready.
    async fn run(&self, port: u16, socket_dir: &Path, options: &Options) -> Result<Leash> {
        let log = self.dir.join("postgres.log");
        let mut server = self
            .program("postgres")
            .arg("-D")
            .arg(&self.data)
            .arg("-p")
            .arg(port.to_string())
            .arg("-k")
            .arg(socket_dir);
        let mut settings = vec!["listen_addresses=127.0.0.1", "max_connections=200"];
        if !options.durable {
            settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"]);
        }
        for setting in settings {
            server = server.arg("-c").arg(setting);
        }
        let mut leash = Leash::spawn(&server, StopSignal::Interrupt, &log)?;
        let deadline = Instant::now() + START_LIMIT;
        while !self.is_ready() {
            if leash.try_wait()?.is_some() || Instant::now() > deadline {
                let tail = leash.log_tail();
                leash.stop().await?;
                return Err(PostgresError::NotStarted { log, tail });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(leash)
    }

    /// The eighth line of `postmaster.pid` says whether the server accepts connections.
    fn is_ready(&self) -> bool {
        let pid_file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        pid_file.lines().nth(7).is_some_and(|status| status.trim() == "ready")
    }
}

/// The directory that has the binaries of version `made_by`, or of any good version when none is
/// given.
async fn find_binaries(search_path: &OsStr, made_by: Option<&str>) -> Option<PathBuf> {
    for dir in candidates(search_path) {
        if !dir.join("initdb").is_file() {
            continue;
        }
        let program = Program::new(dir.join("postgres")).arg("--version");
        let Ok(output) = program.command().output().await else { continue };
        let Some(version) = major_version(&String::from_utf8_lossy(&output.stdout)) else {
            continue;
        };
        let good = match made_by {
            Some(made_by) => made_by == version.to_string(),
            None => version >= OLDEST_VERSION,
        };
        if good {
            return Some(dir);
        }
    }
    None
}

/// `PATH` first, then where Debian, the packages of the Postgres project and Homebrew put each
/// version, newest first.
fn candidates(search_path: &OsStr) -> Vec<PathBuf> {
    const VERSIONED: [(&str, &str); 4] = [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
    ];
    let mut dirs: Vec<PathBuf> = std::env::split_paths(search_path).collect();
    for (parent, prefix) in VERSIONED {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let versions: BTreeSet<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
            .collect();
        let newest_first = versions.iter().rev();
        dirs.extend(newest_first.map(|version| format!("{parent}/{prefix}{version}/bin").into()));
    }
    dirs
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// Our effective user id.
async fn own_uid() -> Result<u32> {
    let output = Program::new("/usr/bin/id").arg("-u").command().output().await;
    let failed = |source| PostgresError::Run { program: "id", source };
    let text = output.map_err(failed)?.stdout;
    let uid = String::from_utf8_lossy(&text).trim().parse();
    uid.map_err(|_| failed(io::ErrorKind::InvalidData.into()))
}

/// Who runs the server that root starts.
fn user_for_root() -> Result<RunAs> {
    let path = Path::new("/etc/passwd");
    let users = file("cannot read", path, fs::read_to_string(path))?;
    let user = ["postgres", "nobody"].iter().find_map(|name| find_user(&users, name));
    user.ok_or(PostgresError::NoUser)
}

/// The user of that name in the text of `/etc/passwd`.
fn find_user(users: &str, name: &str) -> Option<RunAs> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        (found && uid != 0).then_some(RunAs { uid, gid })
    })
}

/// Checks that `user` can pass through `dir` and all directories above it.
fn check_passage(dir: &Path, user: RunAs) -> Result<()> {
    for ancestor in dir.ancestors() {
        if !may_pass(&metadata(ancestor)?, user) {
            return Err(PostgresError::Blocked { uid: user.uid, blocked: ancestor.to_owned() });
        }
    }
    Ok(())
}

fn may_pass(dir: &fs::Metadata, user: RunAs) -> bool {
    let needed = if dir.uid() == user.uid {
        0o100
    } else if dir.gid() == user.gid {
        0o010
    } else {
        0o001
    };
    dir.mode() & needed != 0
}

fn metadata(path: &Path) -> Result<fs::Metadata> {
    Ok(file("cannot look at", path, fs::metadata(path))?)
}

/// Keeps the unreserved characters of RFC 3986, section 2.3, as they are.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes everything");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(major_version(debian), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_version("postgres: command not found"), None);
    }

    #[test]
    fn users_are_found_by_their_whole_name_and_never_root() {
        let users = "postgresql:x:7:8::/:/bin/sh\npostgres:x:101:104:PostgreSQL:/var:/bin/bash\n\
                     nobody:x:0:0::/:/bin/false\n";
        assert_eq!(find_user(users, "postgres"), Some(RunAs { uid: 101, gid: 104 }));
        assert_eq!(find_user(users, "nobody"), None);
        assert_eq!(find_user(users, "broker"), None);
    }

    #[test]
    fn a_url_cannot_be_broken_by_its_parts() {
        assert_eq!(percent_encode("p@ss/w:rd?#%é"), "p%40ss%2Fw%3Ard%3F%23%25%C3%A9");
        assert_eq!(percent_encode("broker_app-1.~"), "broker_app-1.~");
    }
}
