//! An AWS account on this machine: `ministack` behind `launcher.py`, which makes it refuse what AWS
//! refuses, with the demo users, roles and buckets of `seed.py`.
//!
//! `ministack` lives in a Python environment of its own in a cache directory, made once, every
//! package pinned by its hashes. The account's state is in one directory:
//!
//! | path | what |
//! | --- | --- |
//! | `emulator/` | users, roles, buckets and objects, and the two scripts |
//! | `emulator.keys.json` | access keys of the admin and of the broker's principals, mode 600 |
//! | `emulator.port` | the port of the last start, taken again when it is free |
//! | `emulator.log`, `emulator.lock` | |
//!
//! Users, roles and buckets are written when the emulator stops, objects at once. After a crash the
//! seeding at the next start makes again what is missing. STS sessions end with the process.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::distr::Alphanumeric;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use tokio::process::Command;

use super::leash::{Leash, LeashError, Program, StopSignal};
use super::place::{Place, PlaceError, file, is_free, make_dir, open_lock, write};
use crate::catalogue::Catalogue;
use crate::catalogue::environment;
use crate::config::Aws;
use crate::role::{Documents, own_policies};

const NAME: &str = "ministack-1.5.33";
const REQUIREMENTS: &str = include_str!("emulator/requirements.txt");
const LAUNCHER: &str = include_str!("emulator/launcher.py");
const SEED: &str = include_str!("emulator/seed.py");

/// The account that the emulator serves.
pub const ACCOUNT: &str = "000000000000";
pub const REGION: &str = "us-east-1";

const PORT_FILE: &str = "emulator.port";
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long an emulator that lost its parent may take to save its state and end.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
const PORT_ATTEMPTS: usize = 3;
const OLDEST_PYTHON: (u32, u32) = (3, 10);

#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    #[error(
        "the AWS emulator needs python3, 3.10 or newer: {found}; install it (`apt-get install \
         python3 python3-venv`, `brew install python`)"
    )]
    Python { found: String },
    #[error(
        "cannot install the AWS emulator: {step} failed: {output}; check that python3-venv is \
         installed and that pip can reach its index, then start again"
    )]
    Install { step: &'static str, output: String },
    #[error("the AWS emulator of a process before still runs on {state}; stop it and start again")]
    StillRunning { state: PathBuf },
    #[error("the AWS emulator did not start; see {log}, which ends with:\n{tail}")]
    NotStarted { log: PathBuf, tail: String },
    #[error("cannot make the demo account: {output}; remove {state} to begin anew")]
    Seed { output: String, state: PathBuf },
    #[error("{path} does not hold keys; remove it and start again")]
    Keys { path: PathBuf },
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Leash(#[from] LeashError),
}

type Result<T> = std::result::Result<T, EmulatorError>;

/// How to start an emulator.
#[derive(Debug, Clone)]
pub struct Options {
    /// The value of `PATH`: where `python3` is looked for.
    pub search_path: OsString,
    /// Make, or repair, the demo account.
    pub seed: Option<Demo>,
    /// Let tests ask for sessions of less than 15 minutes.
    pub short_sessions: bool,
    /// A JSON list of service control policies, one per organisation level.
    pub control_policies: Option<PathBuf>,
}

/// What the demo account is made from.
#[derive(Debug, Clone)]
pub struct Demo {
    /// `scopes.toml`, with or without the emulator's external id.
    pub scopes: String,
    /// Tables `[aws]` and `[home]` of `broker.toml`.
    pub aws: String,
    pub home: String,
}

impl Demo {
    /// The documents of its roles, and of the broker's own principals, as `seed.py` takes them.
    fn documents(&self, external_id: &str) -> std::result::Result<serde_json::Value, String> {
        let scopes = super::with_external_id(&self.scopes, external_id);
        let text = |error: toml::de::Error| error.to_string();
        let aws: Aws = toml::from_str(&self.aws).map_err(text)?;
        let home =
            environment::Home::build(&toml::from_str(&self.home).map_err(text)?, &aws.own())?;
        let file = toml::from_str(&scopes).map_err(text)?;
        let catalogue = Catalogue::build(file, &scopes, home, true)?;
        let users: BTreeMap<_, _> = own_policies(&catalogue, &aws)
            .into_iter()
            .zip(aws.principals())
            .map(|((_, policy), (_, it))| {
                (it.arn.rsplit('/').next().unwrap_or_default().to_owned(), policy)
            })
            .collect();
        let roles = Documents::all(&catalogue, &aws.minter.arn);
        Ok(serde_json::json!({ "users": users, "roles": roles }))
    }
}

/// A running emulator. It ends when this is dropped; [`stop`](Emulator::stop) also waits for it.
#[derive(Debug)]
pub struct Emulator {
    leash: Leash,
    port: u16,
    keys: Keys,
    _place: Place,
}

/// An access key id and its secret.
#[derive(Debug, Clone, Deserialize)]
pub struct AccessKey {
    pub access_key_id: String,
    #[serde(deserialize_with = "secret")]
    pub secret_access_key: SecretString,
}

fn secret<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

/// The keys of one directory.
#[derive(Debug, Deserialize)]
struct Keys {
    admin: AccessKey,
    /// What the demo roles' trust policies want in `sts:ExternalId`.
    external_id: String,
    /// User to key: made by the emulator when the demo account is seeded.
    #[serde(default)]
    users: BTreeMap<String, AccessKey>,
}

impl Emulator {
    /// Starts the emulator of `dir`, which is made when it does not exist, and waits until it
    /// answers. The first start installs it under `cache_dir`.
    pub async fn start(dir: &Path, cache_dir: &Path, options: &Options) -> Result<Self> {
        let place = Place::take(dir, "emulator").await?;
        let python = install(&make_dir(cache_dir)?, &options.search_path).await?;
        let state = make_dir(&place.path("emulator"))?;
        let home = Home { place, state };
        home.prepare().await?;
        let mut keys = home.keys()?;

        let mut attempt = 1;
        let (leash, port) = loop {
            let port = home.place.free_port(PORT_FILE)?;
            match home.run(&python, port, &keys.admin, options).await {
                Ok(leash) => break (leash, port),
                // Somebody took the port between our look and the emulator's.
                Err(_) if attempt < PORT_ATTEMPTS && !is_free(port) => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        home.place.remember_port(PORT_FILE, port)?;
        if let Some(demo) = &options.seed {
            keys.users.extend(home.seed(&python, port, &keys, demo).await?);
            home.save(&keys)?;
        }
        Ok(Self { leash, port, keys, _place: home.place })
    }

    /// Where AWS clients find every service: their `endpoint_url`.
    pub fn endpoint(&self) -> String {
        endpoint(self.port)
    }

    /// The keys of the broker's own principals, by the names of their IAM users: `broker`, who mints, `broker-revoker`
    /// and `broker-doctor`. None for an account that was never seeded.
    pub fn users(&self) -> &BTreeMap<String, AccessKey> {
        &self.keys.users
    }

    /// The same, as a file of AWS profiles.
    pub fn profiles(&self) -> String {
        self.keys.users.iter().fold(String::new(), |all, (user, key)| {
            format!(
                "{all}[{user}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
                key.access_key_id,
                key.secret_access_key.expose_secret()
            )
        })
    }

    /// The IAM user `emulator-admin`, who may do everything.
    pub fn admin_keys(&self) -> &AccessKey {
        &self.keys.admin
    }

    /// What `sts:ExternalId` must be to assume the demo roles.
    pub fn external_id(&self) -> &str {
        &self.keys.external_id
    }

    /// Waits until the emulator ends by itself, which it should not. May be cancelled.
    pub async fn exited(&mut self) -> Result<std::process::ExitStatus> {
        Ok(self.leash.exited().await?)
    }

    /// Saves the account's state and ends.
    pub async fn stop(self) -> Result<()> {
        self.leash.stop().await?;
        Ok(())
    }
}

/// The directory of one emulator.
struct Home {
    place: Place,
    state: PathBuf,
}

impl Home {
    /// Writes the scripts and waits for an emulator of before that is still ending: it saves its
    /// state when it notices that its parent was killed.
    async fn prepare(&self) -> Result<()> {
        make_dir(&self.state.join("tmp"))?;
        write(&self.launcher(), LAUNCHER.as_bytes(), 0o600)?;
        write(&self.seed_script(), SEED.as_bytes(), 0o600)?;
        let deadline = Instant::now() + LEFTOVER_LIMIT;
        let launcher = self.launcher();
        let processes = Program::new("/bin/ps").arg("-ww").arg("-A").arg("-o").arg("args=");
        loop {
            // Without `ps` there is nothing to wait for.
            let Ok(output) = processes.command().output().await else { return Ok(()) };
            if !String::from_utf8_lossy(&output.stdout).contains(&*launcher.to_string_lossy()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(EmulatorError::StillRunning { state: self.state.clone() });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn seed_script(&self) -> PathBuf {
        self.state.join("seed.py")
    }

    fn launcher(&self) -> PathBuf {
        self.state.join("launcher.py")
    }

    fn keys_file(&self) -> PathBuf {
        self.place.path("emulator.keys.json")
    }

    /// The keys of before, or new ones for the admin.
    fn keys(&self) -> Result<Keys> {
        let path = self.keys_file();
        match fs::read(&path) {
            // An error of serde's might quote a secret.
            Ok(text) => serde_json::from_slice(&text).map_err(|_| EmulatorError::Keys { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let admin = AccessKey {
                    access_key_id: access_key_id(),
                    secret_access_key: SecretString::from(random_text(40)),
                };
                let keys = Keys { admin, external_id: random_text(24), users: BTreeMap::new() };
                self.save(&keys)?;
                Ok(keys)
            }
            Err(error) => Ok(file("cannot read", &path, Err(error))?),
        }
    }

    fn save(&self, keys: &Keys) -> Result<()> {
        let exposed = |key: &AccessKey| {
            serde_json::json!({
                "access_key_id": key.access_key_id,
                "secret_access_key": key.secret_access_key.expose_secret(),
            })
        };
        let text = serde_json::json!({
            "admin": exposed(&keys.admin),
            "external_id": keys.external_id,
            "users": keys.users.iter().map(|(user, key)| (user, exposed(key))).collect::<BTreeMap<_, _>>(),
        });
        Ok(write(&self.keys_file(), format!("{text:#}\n").as_bytes(), 0o600)?)
    }

    /// A Python program in the emulator's environment, cut off from ours and from the user's
    /// packages.
    fn script(&self, python: &Path, script: &Path) -> Program {
        Program::new(python)
            .arg("-I")
            .arg(script)
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.state)
            .env("TMPDIR", self.state.join("tmp"))
            .env("LANG", "C.UTF-8")
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// Starts the emulator and waits until it answers.
    async fn run(
        &self,
        python: &Path,
        port: u16,
        admin: &AccessKey,
        options: &Options,
    ) -> Result<Leash> {
        let instance = random_text(16);
        let mut launcher = self
            .script(python, &self.launcher())
            .env("AUTH", "true")
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", port.to_string())
            .env("MINISTACK_ACCOUNT_ID", ACCOUNT)
            .env("MINISTACK_REGION", REGION)
            .env("IOT_MTLS_ENABLED", "0")
            .env("SFTP_ENABLED", "0")
            .env("PERSIST_STATE", "1")
            .env("STATE_DIR", &self.state)
            .env("S3_PERSIST", "1")
            .env("S3_DATA_DIR", self.state.join("s3"))
            .env("DOCKER_HOST", "unix:///nonexistent")
            .env("EMULATOR_INSTANCE", &instance)
            .env("EMULATOR_ADMIN_ACCESS_KEY_ID", &admin.access_key_id)
            .env("EMULATOR_ADMIN_SECRET_ACCESS_KEY", admin.secret_access_key.expose_secret());
        if options.short_sessions {
            launcher = launcher.env("EMULATOR_ALLOW_SHORT_SESSIONS", "1");
        }
        if let Some(path) = &options.control_policies {
            launcher = launcher.env("EMULATOR_SCP_FILE", path);
        }
        let log = self.place.path("emulator.log");
        let mut leash = Leash::spawn(&launcher, StopSignal::Terminate, &log)?;
        let deadline = Instant::now() + START_LIMIT;
        while !answers(port, &instance).await {
            if leash.try_wait()?.is_some() || Instant::now() > deadline {
                let tail = leash.log_tail();
                leash.stop().await?;
                return Err(EmulatorError::NotStarted { log, tail });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(leash)
    }

    /// Makes or repairs the demo account. Returns the keys that are new, by user.
    async fn seed(
        &self,
        python: &Path,
        port: u16,
        keys: &Keys,
        demo: &Demo,
    ) -> Result<BTreeMap<String, AccessKey>> {
        let failed = |output| EmulatorError::Seed { output, state: self.state.clone() };
        let documents = demo.documents(&keys.external_id).map_err(failed)?;
        let known: BTreeMap<_, _> =
            keys.users.iter().map(|(user, key)| (user, &key.access_key_id)).collect();
        let seed = self
            .script(python, &self.seed_script())
            .env("EMULATOR_ENDPOINT", endpoint(port))
            .env("EMULATOR_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", &keys.admin.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", keys.admin.secret_access_key.expose_secret())
            .env("KNOWN_ACCESS_KEY_IDS", serde_json::json!(known).to_string())
            .env("DOCUMENTS", documents.to_string());
        let output = seed.command().output().await.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(last_line(&output.stderr)));
        }
        // The text holds secrets, which an error of serde's might quote.
        serde_json::from_slice(&output.stdout)
            .map_err(|_| failed("seed.py did not print keys".to_owned()))
    }
}

fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Whether the emulator that was started as `instance` answers on that port.
async fn answers(port: u16, instance: &str) -> bool {
    let ask = move || -> io::Result<String> {
        let limit = Duration::from_millis(500);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(
            b"GET /_ministack/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        )?;
        let mut answer = String::new();
        stream.take(4_096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(answer)) => answer.starts_with("HTTP/1.1 200") && answer.contains(instance),
        _ => false,
    }
}

/// The Python of an environment that has the emulator; makes it when it is not there. An
/// environment gets its name when it is whole, and only one process makes it.
async fn install(cache_dir: &Path, search_path: &OsStr) -> Result<PathBuf> {
    let (python, version) = find_python(search_path).await?;
    // An environment works with the Python minor version that made it.
    let name = format!("{NAME}-py{version}");
    let whole = cache_dir.join(&name);
    let its_python = whole.join("bin/python");
    if its_python.exists() {
        return Ok(its_python);
    }
    tracing::info!("installing the AWS emulator (once) in {}", whole.display());
    let lock_path = cache_dir.join(format!("{name}.lock"));
    let lock = open_lock(&lock_path)?;
    // Waits for another process that installs; the lock goes with the file at the end.
    let locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
    let locked = locked.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    let _lock = file("cannot lock", &lock_path, locked)?;
    if its_python.exists() {
        return Ok(its_python);
    }

    remove_leftovers(cache_dir, &name)?;
    // A name of its own: the pip of an installation that was killed may still write to the last
    // one.
    let unfinished = cache_dir.join(format!("{name}.unfinished-{}", random_text(8)));
    // Unlike the emulator itself, pip needs our environment: the proxy, the index, the
    // certificates.
    let mut venv = Command::new(&python);
    venv.arg("-I").arg("-m").arg("venv").arg(&unfinished);
    succeed("python3 -m venv", venv).await?;
    let requirements = unfinished.join("requirements.txt");
    write(&requirements, REQUIREMENTS.as_bytes(), 0o644)?;
    let mut pip = Command::new(unfinished.join("bin/python"));
    pip.args(["-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--require-hashes", "--only-binary", ":all:", "--requirement"])
        .arg(&requirements);
    succeed("pip install", pip).await?;
    file("cannot name", &whole, fs::rename(&unfinished, &whole))?;
    Ok(its_python)
}

/// Removes environments that are not whole, or whose Python is gone.
fn remove_leftovers(cache_dir: &Path, name: &str) -> Result<()> {
    let unfinished = format!("{name}.unfinished-");
    for entry in file("cannot list", cache_dir, fs::read_dir(cache_dir))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&unfinished)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            // Another time: it is in nobody's way.
            tracing::debug!(path = %entry.path().display(), %error, "cannot remove");
        }
    }
    let broken = cache_dir.join(name);
    if broken.exists() {
        file("cannot remove", &broken, fs::remove_dir_all(&broken))?;
    }
    Ok(())
}

/// The `python3` in `search_path`, and its version, such as `3.11`.
async fn find_python(search_path: &OsStr) -> Result<(PathBuf, String)> {
    let python = std::env::split_paths(search_path)
        .map(|dir| dir.join("python3"))
        .find(|path| path.is_file())
        .ok_or_else(|| EmulatorError::Python { found: "there is none in PATH".to_owned() })?;
    // The executable itself, not a shim that chooses one by the directory it is called from.
    let script = "import sys; print(*sys.version_info[:2]); print(sys.executable)";
    let output = Command::new(&python).args(["-I", "-c", script]).kill_on_drop(true).output().await;
    let text = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => return Err(EmulatorError::Python { found: last_line(&output.stderr) }),
        Err(error) => return Err(EmulatorError::Python { found: error.to_string() }),
    };
    let unclear = || EmulatorError::Python { found: format!("{} says {text}", python.display()) };
    let (version, executable) = text.split_once('\n').ok_or_else(unclear)?;
    let (major, minor) = version.split_once(' ').ok_or_else(unclear)?;
    let number = |part: &str| part.trim().parse::<u32>().map_err(|_| unclear());
    let (major, minor) = (number(major)?, number(minor)?);
    if (major, minor) < OLDEST_PYTHON {
        return Err(EmulatorError::Python { found: format!("found {major}.{minor}") });
    }
    Ok((PathBuf::from(executable.trim()), format!("{major}.{minor}")))
}

/// Runs a step of the installation.
async fn succeed(step: &'static str, mut command: Command) -> Result<()> {
    let failed = |output| EmulatorError::Install { step, output };
    let output = command.kill_on_drop(true).output().await.map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Err(failed(last_line(said)))
}

/// Where Python says what went wrong.
fn last_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim_end().lines().last().unwrap_or("it said nothing").to_owned()
}

fn random_text(length: usize) -> String {
    rand::rng().sample_iter(&Alphanumeric).take(length).map(char::from).collect()
}

/// Twenty characters, like those of AWS.
fn access_key_id() -> String {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut rng = rand::rng();
    let random = (0..16).map(|_| char::from(BASE32[rng.random_range(0..BASE32.len())]));
    "AKIA".chars().chain(random).collect()
}
