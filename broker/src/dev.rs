//! `brokerd dev`: the whole product on one machine, without an account and without other configuration.
//!
//! Composes what `brokerd serve` runs with a private PostgreSQL, an AWS emulator that enforces IAM, demo people,
//! an agent and scopes. Everything is kept in one directory, and everything it started stops with it.

pub mod emulator;
pub mod leash;
pub mod place;
pub mod postgres;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey};
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;

use self::emulator::Emulator;
use self::postgres::Postgres;
use crate::audit::Scribe;
use crate::aws::AwsOptions;
use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::{Caller, Reader, TaskGrant, Tokens};
use crate::lease::Decision;
use crate::server::Databases;
use crate::statement::Meaning;
use crate::statement::act::{ADMINS, Evidence, NewPerson};
use crate::{people, server, store, wire};

const SCOPES: &str = include_str!("../../config/scopes.toml");
const AGENT_RULES: &str = include_str!("../../config/policies/agents.cedar");
const PEOPLE_RULES: &str = include_str!("../../config/policies/people.cedar");
/// What `config/scopes.toml` says where the emulator's own external id belongs.
const EXTERNAL_ID: &str = "external_id = \"demo\"";
/// What a shell reads to use the stack; there while it runs.
const ENVIRONMENT: &str = "dev.env";
/// Table `[limits]`, as far as it is budgets: enough for whatever is tried by hand or by a test.
pub const WIDE_BUDGETS: &str = "\
agent = { live_leases = 2000, pending_leases = 200, requests_per_minute = 600, scopes_per_hour = 1000, resources_per_hour = 10000, signed_per_day = 5000 }
task = { live_leases = 2000, pending_leases = 200, requests_per_minute = 600, scopes_per_hour = 1000, resources_per_hour = 10000, signed_per_day = 5000 }
sponsor = { live_leases = 5000, pending_leases = 500, requests_per_minute = 600, scopes_per_hour = 1000, resources_per_hour = 10000, signed_per_day = 5000 }";
/// The rest of table `[aws]`: who is who in the emulator's account.
pub const PRINCIPALS: &str = "\
credentials_file = \"aws.credentials\"
minter = { arn = \"arn:aws:iam::000000000000:user/broker\", profile = \"broker\" }
revoker = { arn = \"arn:aws:iam::000000000000:user/broker-revoker\", profile = \"broker-revoker\" }
doctor = { arn = \"arn:aws:iam::000000000000:user/broker-doctor\", profile = \"broker-doctor\" }
administrators = [\"arn:aws:iam::000000000000:user/emulator-admin\"]
";
/// Table `[log]`. The folder is beside the configuration's: enough to see how it works, not to be out of reach.
pub const LOG: &str = "\
[log]
origin = \"broker.localhost/log\"
key = \"log.pem\"
anchors = [{ kind = \"file\", name = \"folder\", path = \"../anchor\" }]
";
/// Table `[home]`.
const HOME: &str = "resources = [\"arn:aws:s3:::broker-*\"]\n";
const DATABASE: &str = "broker";
const AGENT: &str = "demo-agent";
const TASK: &str = "demo";
const TOKEN_TTL: Duration = Duration::hours(8);

/// Handle, name and groups of the demo people. Alice stands behind the agent, and is a signer who must not sign for it. The
/// admins come last: once there are two, people change by what admins sign.
const PEOPLE: [(&str, &str, &[&str]); 6] = [
    ("alice", "Alice Adams", &["production-signers"]),
    ("bob", "Bob Brown", &["production-signers", "backup-signers"]),
    ("carol", "Carol Clark", &["production-signers", "backup-signers", "ops"]),
    ("dave", "Dave Drew", &[]),
    ("erin", "Erin Ellis", &[ADMINS]),
    ("frank", "Frank Ford", &[ADMINS]),
];

#[derive(Debug)]
pub struct Options {
    pub dir: PathBuf,
    pub listen: SocketAddr,
    /// Where the emulator is installed, once.
    pub cache_dir: PathBuf,
    /// `PATH`.
    pub search_path: OsString,
}

/// The database and the cloud, running, with their keys.
pub struct Stack {
    pub postgres: Postgres,
    pub emulator: Emulator,
    pub logins: Logins,
    pub dir: PathBuf,
}

/// Passwords of the database's logins.
#[derive(Debug)]
pub struct Logins {
    pub app: SecretString,
    pub migrate: SecretString,
    pub ops: SecretString,
    pub sequencer: SecretString,
    pub retention: SecretString,
}

#[derive(Serialize, Deserialize)]
struct LoginsFile {
    #[serde(default = "password")]
    app: String,
    #[serde(default = "password")]
    migrate: String,
    #[serde(default = "password")]
    ops: String,
    #[serde(default = "password")]
    sequencer: String,
    #[serde(default = "password")]
    retention: String,
}

impl Stack {
    /// Starts PostgreSQL and the emulator side by side, and makes the roles. `durable` is off in tests only.
    pub async fn start(
        options: &Options,
        durable: bool,
        short_sessions: bool,
    ) -> anyhow::Result<Self> {
        let dir = place::make_dir(&options.dir)?;
        let postgres_options =
            postgres::Options { search_path: options.search_path.clone(), durable };
        let emulator_options = emulator::Options {
            search_path: options.search_path.clone(),
            seed: Some(demo(&dir)?),
            short_sessions,
            control_policies: None,
        };
        let (postgres, emulator) = tokio::join!(
            Postgres::start(&dir, &postgres_options),
            Emulator::start(&dir, &options.cache_dir, &emulator_options),
        );
        let (postgres, emulator) = (postgres?, emulator?);
        let logins = logins(&dir)?;
        let mut superuser =
            PgConnection::connect(postgres.superuser_url("postgres").expose_secret()).await?;
        sqlx::raw_sql(store::ROLES).execute(&mut superuser).await?;
        for (role, password) in [
            ("broker_app", &logins.app),
            ("broker_migrate", &logins.migrate),
            ("broker_ops", &logins.ops),
            ("broker_sequencer", &logins.sequencer),
            ("broker_retention", &logins.retention),
        ] {
            // Our own letters and digits: nothing to quote. DDL takes no parameters.
            let sql = format!("alter role {role} password '{}'", password.expose_secret());
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut superuser).await?;
        }
        superuser.close().await?;
        Ok(Self { postgres, emulator, logins, dir })
    }

    /// Makes a database with the schema in it, unless it is there.
    pub async fn make_database(&self, name: &str) -> anyhow::Result<()> {
        let mut superuser =
            PgConnection::connect(self.postgres.superuser_url("postgres").expose_secret()).await?;
        let there: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(name)
                .fetch_one(&mut superuser)
                .await?;
        if !there {
            let sql = format!("create database {name} owner broker_owner");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut superuser).await?;
        }
        superuser.close().await?;
        store::migrate(self.admin_url(name).expose_secret()).await?;
        Ok(())
    }

    pub fn app_url(&self, database: &str) -> SecretString {
        self.postgres.url("broker_app", &self.logins.app, database)
    }

    pub fn admin_url(&self, database: &str) -> SecretString {
        self.postgres.url("broker_migrate", &self.logins.migrate, database)
    }

    pub fn ops_url(&self, database: &str) -> SecretString {
        self.postgres.url("broker_ops", &self.logins.ops, database)
    }

    pub fn sequencer_url(&self, database: &str) -> SecretString {
        self.postgres.url("broker_sequencer", &self.logins.sequencer, database)
    }

    pub fn retention_url(&self, database: &str) -> SecretString {
        self.postgres.url("broker_retention", &self.logins.retention, database)
    }

    /// Stops what was started, the database last.
    pub async fn stop(self) -> anyhow::Result<()> {
        let emulator = self.emulator.stop().await;
        self.postgres.stop().await?;
        emulator?;
        Ok(())
    }

    /// Ends when one of the two has ended by itself.
    async fn broken(&mut self) -> String {
        tokio::select! {
            status = self.postgres.exited() => format!("PostgreSQL ended ({status:?}); see postgres.log"),
            status = self.emulator.exited() => format!("the AWS emulator ended ({status:?}); see emulator.log"),
        }
    }
}

/// Runs the stack until `shutdown`.
pub async fn run(
    options: Options,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen).await.with_context(|| {
        format!("cannot listen on {}; pass --listen 127.0.0.1:0 for a free port", options.listen)
    })?;
    let mut stack = Stack::start(&options, true, false).await?;
    // Whoever waits for it must not find that of a run which is over.
    let environment = stack.dir.join(ENVIRONMENT);
    place::remove_file(&environment)?;
    let served = serve(&mut stack, listener, shutdown).await;
    place::remove_file(&environment)?;
    let stopped = stack.stop().await;
    served.and(stopped)
}

async fn serve(
    stack: &mut Stack,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    stack.make_database(DATABASE).await?;
    let origin = format!("http://localhost:{}", listener.local_addr()?.port());
    let clock = Clock::default();
    let config_dir = stack.dir.join("config");
    write_config(&config_dir, &origin, listener.local_addr()?, &stack.emulator)?;
    let config = Config::load(&config_dir)?;
    let keys = write_keys(&stack.dir.join("keys"))?;
    let (app_url, sequencer_url) = (stack.app_url(DATABASE), stack.sequencer_url(DATABASE));
    let databases =
        Databases { app: app_url.expose_secret(), sequencer: sequencer_url.expose_secret() };
    let aws = AwsOptions { endpoint: Some(stack.emulator.endpoint()), ..AwsOptions::default() };
    let rounds = server::rounds(&config, aws.clone());
    let composed = server::compose(config, databases, aws, clock.clone());
    let broker = Box::pin(composed).await?;

    let mut owner = store::admin(stack.admin_url(DATABASE).expose_secret()).await?;
    let now = clock.now();
    enrol_people(&mut owner, &Scribe { source: origin.clone() }, &keys, now).await?;
    let token = task_token(&mut owner, &broker, &keys[0], now).await.unwrap_or_else(|error| {
        // She was disabled, or her key was revoked: what is there is still to be looked at.
        tracing::warn!(?error, "the demo agent has no task; start one with `broker task start`");
        SecretString::default()
    });
    owner.close().await?;
    broker.log.compare().await?;

    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(broker, rounds, listener, async move {
        tokio::select! {
            () = shutdown => {}
            _ = stopping => {}
        }
    }));
    write_env(stack, &origin, &token)?;
    tracing::info!(url = origin, env = %stack.dir.join(ENVIRONMENT).display(), "ready");
    tokio::select! {
        served = serving => served?,
        why = stack.broken() => {
            drop(stop);
            anyhow::bail!(why)
        }
    }
}

/// What the demo account is made from: the scopes as they are, or as they will be.
fn demo(dir: &Path) -> anyhow::Result<emulator::Demo> {
    let path = dir.join("config/scopes.toml");
    let scopes = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => SCOPES.to_owned(),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let aws = format!("region = \"{}\"\n{PRINCIPALS}", emulator::REGION);
    Ok(emulator::Demo { scopes, aws, home: HOME.to_owned() })
}

fn logins(dir: &Path) -> anyhow::Result<Logins> {
    let path = dir.join("database.logins.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "{}".to_owned(),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let file: LoginsFile = serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged; delete it", path.display()))?;
    place::write(&path, &serde_json::to_vec(&file)?, 0o600)?;
    Ok(Logins {
        app: file.app.into(),
        migrate: file.migrate.into(),
        ops: file.ops.into(),
        sequencer: file.sequencer.into(),
        retention: file.retention.into(),
    })
}

fn password() -> String {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes);
    hex::encode(bytes)
}

/// Writes the configuration: what depends on this start anew, what a person may have edited only once.
fn write_config(
    dir: &Path,
    origin: &str,
    listen: SocketAddr,
    emulator: &Emulator,
) -> anyhow::Result<()> {
    place::make_dir(&dir.join("policies"))?;
    place::write(&dir.join("aws.credentials"), emulator.profiles().as_bytes(), 0o600)?;
    let settings = format!(
        "# Written at each start of `brokerd dev`.\norigin = \"{origin}\"\nlisten = \"{listen}\"\ninstance_key = \"instance.pem\"\n\n\
         [aws]\nregion = \"{}\"\n{PRINCIPALS}\n\
         [home]\n{HOME}\n[limits]\n{WIDE_BUDGETS}\n{LOG}\n\
         # Only `brokerd dev` accepts this table: the demo people's keys are files that any program can use.\n[dev]\nsoftware_keys = true\n",
        emulator::REGION
    );
    place::write(&dir.join("broker.toml"), settings.as_bytes(), 0o600)?;
    let scopes = with_external_id(SCOPES, emulator.external_id());
    let once = [
        ("scopes.toml", scopes.as_str()),
        ("policies/agents.cedar", AGENT_RULES),
        ("policies/people.cedar", PEOPLE_RULES),
    ];
    for (name, text) in once {
        if !dir.join(name).exists() {
            place::write(&dir.join(name), text.as_bytes(), 0o600)?;
        }
    }
    for name in ["instance.pem", "log.pem"] {
        if !dir.join(name).exists() {
            let key = Tokens::generate_key();
            place::write(&dir.join(name), key.expose_secret().as_bytes(), 0o600)?;
        }
    }
    place::make_dir(&dir.join("../anchor"))?;
    Ok(())
}

/// The demo's scopes, where the emulator's own external id belongs.
fn with_external_id(scopes: &str, external_id: &str) -> String {
    scopes.replace(EXTERNAL_ID, &format!("external_id = \"{external_id}\""))
}

/// The demo people's keys: made once.
fn write_keys(dir: &Path) -> anyhow::Result<Vec<PrivateKey>> {
    place::make_dir(dir)?;
    let mut keys = Vec::new();
    for (handle, ..) in PEOPLE {
        let path = dir.join(handle);
        let key = if path.exists() {
            PrivateKey::read_openssh_file(&path)?
        } else {
            let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519)?;
            key.set_comment(handle);
            place::write(&path, key.to_openssh(LineEnding::LF)?.as_bytes(), 0o600)?;
            place::write(
                &dir.join(format!("{handle}.pub")),
                key.public_key().to_openssh()?.as_bytes(),
                0o644,
            )?;
            key
        };
        keys.push(key);
    }
    Ok(keys)
}

/// Enrols whoever is not there yet.
async fn enrol_people(
    owner: &mut PgConnection,
    scribe: &Scribe,
    keys: &[PrivateKey],
    now: OffsetDateTime,
) -> anyhow::Result<()> {
    let there = store::everybody(owner).await?;
    for ((handle, display_name, groups), key) in PEOPLE.into_iter().zip(keys) {
        if there.iter().any(|it| it.handle == handle) {
            continue;
        }
        let person = NewPerson {
            handle: handle.to_owned(),
            display_name: display_name.to_owned(),
            email: format!("{handle}@example.com"),
            groups: groups.iter().map(ToString::to_string).collect(),
            // A file on this machine.
            key: Some(people::new_key(key.public_key(), Evidence::Unknown)?),
        };
        store::enrol(owner, scribe, &person, now).await?;
    }
    Ok(())
}

/// A token for the demo agent's task: the running one if it has hours to go, or else one that its sponsor starts.
async fn task_token(
    owner: &mut PgConnection,
    broker: &Broker,
    sponsor_key: &PrivateKey,
    now: OffsetDateTime,
) -> anyhow::Result<SecretString> {
    let sponsor = PEOPLE[0].0;
    if let Some((id, expires_at)) =
        store::running_task(owner, AGENT, sponsor, now + TOKEN_TTL / 2).await?
    {
        let grant = TaskGrant { id, agent: AGENT, sponsor, task: TASK, expires_at };
        return Ok(broker.tokens.task_token(grant, now));
    }
    let reader = Reader { handle: sponsor.to_owned(), token_expires_at: now + Duration::MINUTE };
    let request = wire::ActRequest::TaskStart {
        agent: AGENT.to_owned(),
        task: TASK.to_owned(),
        ttl_seconds: u32::try_from(TOKEN_TTL.whole_seconds())?,
    };
    let act = broker.propose(&Caller::Person(reader), &request).await?;
    let message = Meaning::TaskStart.message(&STANDARD.decode(&act.statement)?);
    let signature = sponsor_key.sign(Meaning::TaskStart.namespace(), HashAlg::Sha512, &message)?;
    let signed = wire::ActSignature {
        id: act.id,
        decision: Decision::Approve,
        signature: signature.to_pem(LineEnding::LF)?,
        statement_sha256: Some(act.sha256),
        reason: None,
    };
    let started = broker.sign_act(&signed).await?.task.context("a task was started")?;
    Ok(started.token.into())
}

/// Writes `dev.env`, by rename, as the last thing: whoever sees it finds everything ready.
fn write_env(stack: &Stack, origin: &str, token: &SecretString) -> anyhow::Result<()> {
    let keys = stack.dir.join("keys");
    let rows = [
        ("BROKER_URL", origin.to_owned()),
        ("BROKER_TOKEN", token.expose_secret().to_owned()),
        ("BROKER_KEYS", keys.display().to_string()),
        ("BROKER_OPS_DATABASE_URL", stack.ops_url(DATABASE).expose_secret().to_owned()),
        ("BROKER_SEQUENCER_DATABASE_URL", stack.sequencer_url(DATABASE).expose_secret().to_owned()),
        ("BROKER_RETENTION_DATABASE_URL", stack.retention_url(DATABASE).expose_secret().to_owned()),
        ("BROKER_ADMIN_DATABASE_URL", stack.admin_url(DATABASE).expose_secret().to_owned()),
        ("AWS_ENDPOINT_URL", stack.emulator.endpoint()),
        ("AWS_REGION", emulator::REGION.to_owned()),
        ("AWS_DEFAULT_REGION", emulator::REGION.to_owned()),
    ];
    let mut text =
        String::from("# Written by `brokerd dev`. Use it with:  set -a; . THIS_FILE; set +a\n");
    for (name, value) in rows {
        let _ = writeln!(text, "{name}='{value}'");
    }
    place::write(&stack.dir.join(ENVIRONMENT), text.as_bytes(), 0o600)?;
    Ok(())
}
