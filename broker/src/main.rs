//! `brokerd`: parse, connect, serve.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use broker::aws::{Access, AwsOptions};
use broker::clock::Clock;
use broker::config::Config;
use broker::doctor::{self, Severity};
use broker::sequencer::LogError;
use broker::server::Databases;
use broker::{auditing, check, dev, people, recover, server, store};
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The broker's server: issues scoped, short-lived cloud credentials to AI agents.
#[derive(Parser)]
#[command(version, after_help = "Try it without an account: brokerd dev")]
struct Args {
    #[command(subcommand)]
    command: Command,

    /// What to log, as tracing's directives
    #[arg(long, env = "BROKER_LOG", default_value = "info,aws_config=warn", global = true)]
    log: String,
}

#[derive(Subcommand)]
enum Command {
    /// Serve agents and people
    Serve {
        #[arg(long, env = "BROKER_CONFIG", default_value = "/etc/broker", value_name = "DIR")]
        config: PathBuf,
        /// The server's database, as role `broker_app`
        #[arg(long, env = "BROKER_DATABASE_URL", hide_env_values = true, value_name = "URL")]
        database_url: String,
        /// The same database, as role `broker_sequencer`: it signs the log
        #[arg(
            long,
            env = "BROKER_SEQUENCER_DATABASE_URL",
            hide_env_values = true,
            value_name = "URL"
        )]
        sequencer_database_url: String,
        /// Serve, whatever the doctor finds
        #[arg(long)]
        despite_findings: bool,
    },
    /// Read the live accounts, the database and this host, and say what is not as it should be; changes nothing
    #[command(
        after_help = "Exit codes: 0 nothing found; 1 it could not run; 2 usage; 3 something critical or high; 4 something medium or low"
    )]
    Doctor {
        #[arg(long, env = "BROKER_CONFIG", default_value = "/etc/broker", value_name = "DIR")]
        config: PathBuf,
        /// The database, as login `broker_ops`; without it the database is not looked at
        #[arg(long, env = "BROKER_OPS_DATABASE_URL", hide_env_values = true, value_name = "URL")]
        database_url: Option<String>,
        /// How to print the findings
        #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
    /// Run the whole product on this machine: private PostgreSQL, AWS emulator, demo people and scopes
    Dev {
        /// Where everything is kept [default: `~/.local/state/broker/dev`, for root `/var/lib/broker-dev`]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        #[arg(long, default_value = "127.0.0.1:8750", value_name = "ADDR")]
        listen: SocketAddr,
        #[command(flatten)]
        user: User,
    },
    /// Bring the database's schema up to date
    Migrate {
        /// As login `broker_migrate`
        #[arg(long, env = "BROKER_ADMIN_DATABASE_URL", hide_env_values = true, value_name = "URL")]
        database_url: String,
    },
    /// Set up the first two admins; from then on propose changes of people and keys, which another admin signs
    #[command(
        after_help = "Examples:\n  brokerd person add erin --name 'Erin Ellis' --email erin@example.com --group admins --key erin.pub --seen\n  brokerd person groups bob --add production-signers"
    )]
    Person {
        #[arg(long, env = "BROKER_CONFIG", default_value = "/etc/broker", value_name = "DIR")]
        config: PathBuf,
        /// As login `broker_migrate`
        #[arg(long, env = "BROKER_ADMIN_DATABASE_URL", hide_env_values = true, value_name = "URL")]
        database_url: String,
        #[command(subcommand)]
        command: people::Command,
    },
    /// Take up a database again that is behind its log, because it was restored: void what is open, freeze everything
    #[command(
        after_help = "Exit codes: 0 done, or there is nothing to do; 1 it could not run; 2 usage; 3 the database is behind, and --yes was not given"
    )]
    Recover {
        #[arg(long, env = "BROKER_CONFIG", default_value = "/etc/broker", value_name = "DIR")]
        config: PathBuf,
        /// As login `broker_migrate`
        #[arg(long, env = "BROKER_ADMIN_DATABASE_URL", hide_env_values = true, value_name = "URL")]
        database_url: String,
        /// As login `broker_sequencer`
        #[arg(
            long,
            env = "BROKER_SEQUENCER_DATABASE_URL",
            hide_env_values = true,
            value_name = "URL"
        )]
        sequencer_database_url: String,
        /// Do it, instead of saying what is missing
        #[arg(long)]
        yes: bool,
    },
    /// Verify, export and keep the log over the events
    Audit {
        #[arg(
            long,
            env = "BROKER_CONFIG",
            default_value = "/etc/broker",
            value_name = "DIR",
            global = true
        )]
        config: PathBuf,
        #[command(subcommand)]
        command: auditing::Command,
    },
    /// Check the configuration, and print the scopes with their computed tiers
    #[command(
        after_help = "Exit codes: 0 valid and as expected; 1 not valid, or a case is decided otherwise; 2 usage; 3 valid, and looser than --diff OLD"
    )]
    Check {
        #[arg(long, env = "BROKER_CONFIG", default_value = "/etc/broker", value_name = "DIR")]
        config: PathBuf,
        #[command(flatten)]
        what: CheckArgs,
    },
}

/// What to check, besides that it is valid.
#[derive(clap::Args)]
struct CheckArgs {
    /// Say what is looser than in that configuration
    #[arg(long, value_name = "OLD", group = "one")]
    diff: Option<PathBuf>,
    /// Print the IAM policy that the scope's role should have
    #[arg(long, value_name = "SCOPE", group = "one")]
    policy: Option<String>,
    /// Print all that a role should have: trust, permissions, boundary. `minter`, `revoker` and `doctor` are the broker's own
    #[arg(long, value_name = "ROLE", group = "one")]
    role: Option<String>,
    /// Try a table of expected decisions, as in config/cases.toml
    #[arg(long, value_name = "FILE", group = "one")]
    cases: Option<PathBuf>,
    /// How to print the scopes
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// `brokerd check --diff` found something looser.
const LOOSER: u8 = 3;

/// Where this user keeps things.
#[derive(clap::Args)]
struct User {
    #[arg(long, env = "HOME", hide = true)]
    home: Option<PathBuf>,
    #[arg(long = "xdg-state-home", env = "XDG_STATE_HOME", hide = true)]
    state: Option<PathBuf>,
    #[arg(long = "xdg-cache-home", env = "XDG_CACHE_HOME", hide = true)]
    cache: Option<PathBuf>,
    #[arg(long, env = "PATH", hide = true, default_value = "/usr/local/bin:/usr/bin:/bin")]
    search_path: OsString,
}

impl User {
    /// Root's home is closed to the user that PostgreSQL runs as.
    fn dev_dir(&self) -> anyhow::Result<PathBuf> {
        match (&self.state, &self.home) {
            (Some(state), _) if state.is_absolute() => Ok(state.join("broker/dev")),
            (_, Some(home)) if home == "/root" => Ok("/var/lib/broker-dev".into()),
            (_, Some(home)) => Ok(home.join(".local/state/broker/dev")),
            (_, None) => anyhow::bail!("neither HOME nor XDG_STATE_HOME is set; pass --dir DIR"),
        }
    }

    fn cache_dir(&self) -> anyhow::Result<PathBuf> {
        match (&self.cache, &self.home) {
            (Some(cache), _) if cache.is_absolute() => Ok(cache.join("broker")),
            (_, Some(home)) => Ok(home.join(".cache/broker")),
            (_, None) => anyhow::bail!("neither HOME nor XDG_CACHE_HOME is set; set one"),
        }
    }
}

/// Writes a line to stderr; whoever reads may have seen enough.
macro_rules! say {
    ($($text:tt)*) => { let _ = writeln!(std::io::stderr(), $($text)*); };
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let terminal = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&args.log))
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    if terminal {
        logs.init();
    } else {
        logs.json().init();
    }
    match run(args.command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve { config, database_url, sequencer_database_url, despite_findings } => {
            let databases = Databases { app: &database_url, sequencer: &sequencer_database_url };
            Box::pin(serve(config, databases, despite_findings)).await?;
        }
        Command::Doctor { config, database_url, output } => {
            let config = Config::load(&config)?;
            return Box::pin(examine(&config, database_url.as_deref(), &output)).await;
        }
        Command::Dev { dir, listen, user } => {
            let dir = dir.map_or_else(|| user.dev_dir(), Ok)?;
            let cache_dir = user.cache_dir()?;
            let options = dev::Options { dir, listen, cache_dir, search_path: user.search_path };
            Box::pin(dev::run(options, stopped()?)).await?;
        }
        Command::Migrate { database_url } => {
            store::migrate(&database_url).await?;
            eprintln!("the schema is up to date");
        }
        Command::Person { config, database_url, command } => {
            let config = Config::load(&config)?;
            let mut owner = store::admin(&database_url).await?;
            let now = Clock::default().now();
            let outcome = people::run(&command, &config, &mut owner, now).await?;
            let _ = std::io::stdout().write_all(outcome.data.as_bytes());
            say!("{}", outcome.words.trim_end());
        }
        Command::Recover { config, database_url, sequencer_database_url, yes } => {
            let config = Config::load(&config)?;
            let logins =
                recover::Logins { admin: &database_url, sequencer: &sequencer_database_url };
            let clock = Clock::default();
            let run = recover::run(&config, logins, &clock, yes, |words| {
                say!("{words}");
            });
            if Box::pin(run).await? == recover::Outcome::Asked {
                return Ok(ExitCode::from(INCOMPLETE));
            }
        }
        Command::Audit { config, command } => {
            let config = Config::load(&config)?;
            let clock = Clock::default();
            let run = auditing::run(&command, &config, &clock, |words| {
                say!("{words}");
            });
            return Ok(match Box::pin(run).await? {
                auditing::Outcome::Done => ExitCode::SUCCESS,
                auditing::Outcome::Incomplete => ExitCode::from(INCOMPLETE),
                auditing::Outcome::NotValid => ExitCode::from(NOT_VALID),
            });
        }
        Command::Check { config, what } => return check(&Config::load(&config)?, &what),
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(
    dir: PathBuf,
    databases: Databases<'_>,
    despite_findings: bool,
) -> anyhow::Result<()> {
    let config = Config::load(&dir)?;
    anyhow::ensure!(
        config.settings.dev.is_none(),
        "{}: [dev] is for `brokerd dev` only; remove the table: `brokerd serve` counts no software keys",
        dir.join("broker.toml").display()
    );
    let listen = config.settings.listen;
    let stopped = stopped()?;
    let mut rounds = server::rounds(&config, AwsOptions::default());
    let composed = server::compose(config, databases, AwsOptions::default(), Clock::default());
    let broker = Box::pin(composed).await?;
    let findings = rounds.go(&broker).await;
    let critical = findings.iter().filter(|it| it.severity == Severity::Critical).count();
    if 0 < critical && despite_findings {
        tracing::error!(critical, "serving in spite of what the doctor found");
    } else if 0 < critical {
        anyhow::bail!(
            "not serving: the doctor found {critical} critical things, which are logged above; `brokerd doctor` says them again with what to do, `brokerd serve --despite-findings` serves all the same"
        );
    }
    // That the database or the anchors are away is no reason to end: nothing is served until they are there.
    if let Err(error @ LogError::Behind(_)) = broker.log.compare().await {
        anyhow::bail!("not serving: {error}");
    }
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    tracing::info!(%listen, "serving");
    server::serve(broker, rounds, listener, stopped).await
}

/// `brokerd audit verify`: what is there is good, something is not there.
const INCOMPLETE: u8 = 3;
/// Something in the log is not what was signed.
const NOT_VALID: u8 = 4;
/// `brokerd doctor` found something critical or high.
const GRAVE: u8 = 3;
/// It found something less.
const SLIGHT: u8 = 4;

async fn examine(
    config: &Config,
    database_url: Option<&str>,
    output: &str,
) -> anyhow::Result<ExitCode> {
    let clock = Clock::default();
    let pool = database_url.map(store::pool).transpose();
    let pool = pool.context("BROKER_OPS_DATABASE_URL is not a PostgreSQL URL")?;
    let access = Access::new(config.settings.aws.clone(), AwsOptions::default());
    let estate = doctor::look(config, &access, pool.as_ref(), &clock).await;
    let findings = doctor::examine(&estate, config);
    let data = if output == "json" {
        serde_json::to_string_pretty(&serde_json::json!({ "findings": findings }))? + "\n"
    } else {
        doctor::text(&findings)
    };
    let _ = std::io::stdout().write_all(data.as_bytes());
    Ok(match findings.first().map(|it| it.severity) {
        None => ExitCode::SUCCESS,
        Some(Severity::Critical | Severity::High) => ExitCode::from(GRAVE),
        Some(Severity::Medium | Severity::Low) => ExitCode::from(SLIGHT),
    })
}

/// Says what a valid configuration comes to: stdout is data, stderr is words.
fn check(config: &Config, what: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let data = if let Some(old) = &what.diff {
        let lines = check::diff::loosened(&Config::load(old)?, config);
        if lines.is_empty() {
            say!("nothing is looser than in {}", old.display());
        } else {
            say!("looser than in {}:", old.display());
            code = ExitCode::from(LOOSER);
        }
        lines.iter().fold(String::new(), |all, line| all + line + "\n")
    } else if let Some(name) = &what.policy {
        let scope = config.catalogue.scope(name).with_context(|| {
            format!("there is no scope {name:?}; `brokerd check` prints those that are there")
        })?;
        let policy = check::RolePolicy::of(scope, &config.catalogue);
        say!("for {}: {}", scope.role_arn, policy.advice());
        policy.text + "\n"
    } else if let Some(which) = &what.role {
        let documents = check::RoleDocuments::of(which, config).with_context(|| {
            format!("no scope uses a role {which:?}; name one, by name or ARN, or minter, revoker or doctor")
        })?;
        for line in &documents.advice {
            say!("{line}");
        }
        documents.text + "\n"
    } else if let Some(path) = &what.cases {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let outcomes = check::cases::run(config, &text)
            .map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
        let wrong = outcomes.iter().filter(|it| it.wrong.is_some()).count();
        say!("{} cases, {wrong} decided otherwise", outcomes.len());
        if 0 < wrong {
            code = ExitCode::FAILURE;
        }
        outcomes.iter().fold(String::new(), |all, it| match &it.wrong {
            None => format!("{all}ok     {}\n", it.name),
            Some(wrong) => format!("{all}WRONG  {} (line {}): {wrong}\n", it.name, it.line),
        })
    } else if what.output == "json" {
        serde_json::to_string_pretty(&check::Report::of(config))? + "\n"
    } else {
        check::text(&config.catalogue)
    };
    let _ = std::io::stdout().write_all(data.as_bytes());
    say!("the configuration is valid: sha256 {}", config.sha256);
    Ok(code)
}

/// Ends at the first SIGINT or SIGTERM.
fn stopped() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
    })
}
