//! What an operator does with the log on the server's host: verify it, export it, change its key, put months away, and take it up
//! again after events were lost.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufReader, BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use time::{Date, Month, OffsetDateTime};

use crate::anchor::Anchor;
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::aws::{Access, AwsOptions};
use crate::clock::Clock;
use crate::config::Config;
use crate::log::verify::{self, MonthFile, Options, Report, Verdict};
use crate::log::{LogKey, SignedCheckpoint};
use crate::sequencer::Sequencer;
use crate::{export, store};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the log in the database against itself, its key and its anchors; changes nothing
    #[command(
        after_help = "Exit codes: 0 nothing is wrong; 1 it could not run; 2 usage; 3 what is there is good, something is not there; 4 not valid"
    )]
    Verify {
        #[command(flatten)]
        reader: Reader,
        #[command(flatten)]
        known: Known,
        /// How to print what was found
        #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
    /// Write the log as a file that `broker audit verify` checks anywhere
    Export {
        #[command(flatten)]
        reader: Reader,
        /// Where to [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print the verifier key that belongs to the configuration's key: what whoever verifies has to know from elsewhere
    Key,
    /// Hand the log over to another key; then start the servers with it
    Rotate {
        /// As login `broker_sequencer`
        #[arg(
            long,
            env = "BROKER_SEQUENCER_DATABASE_URL",
            hide_env_values = true,
            value_name = "URL"
        )]
        database_url: String,
        /// The new key: `openssl genpkey -algorithm ed25519 -out FILE`
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Write a month's events to a file, record that, and with --drop drop them from the database; the log's hashes stay
    Retire {
        /// As login `broker_retention`
        #[arg(
            long,
            env = "BROKER_RETENTION_DATABASE_URL",
            hide_env_values = true,
            value_name = "URL"
        )]
        database_url: String,
        /// Which month, UTC
        #[arg(long, value_name = "YYYY-MM", value_parser = parse_month)]
        month: Date,
        /// The file to write, or with --drop the one that was written
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Drop the month: it was exported to the file before, and an anchored checkpoint covers that
        #[arg(long)]
        drop: bool,
    },
}

/// Who reads.
#[derive(Debug, Args)]
pub struct Reader {
    /// As login `broker_ops`
    #[arg(long, env = "BROKER_OPS_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
}

/// What is known from elsewhere, besides what the configuration's anchors keep.
#[derive(Debug, Args)]
pub struct Known {
    /// The verifier key that the log began with
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// A checkpoint that was kept elsewhere; may be repeated
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
    /// The file of a month that was put away; may be repeated
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// Do not ask the configuration's anchors
    #[arg(long)]
    no_anchors: bool,
    /// How long an event may be under no checkpoint
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    covered_within: u32,
}

/// So many rounds to the anchors may fail.
const ROUNDS: i32 = 10;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Incomplete,
    NotValid,
}

fn parse_month(text: &str) -> Result<Date, String> {
    let read = || {
        let (year, month) = text.split_once('-')?;
        let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
        Date::from_calendar_date(year.parse().ok()?, month, 1).ok()
    };
    read().ok_or_else(|| "write a month like 2026-01".to_owned())
}

/// Runs one command. `say` hears words for people.
pub async fn run(
    command: &Command,
    config: &Config,
    clock: &Clock,
    mut say: impl FnMut(&str),
) -> anyhow::Result<Outcome> {
    match command {
        Command::Verify { reader, known, output } => {
            let pool = store::log::patient_pool(&reader.database_url)?;
            let mut options = known.options(known.anchors()?);
            if !known.no_anchors {
                options.anchored = is_anchored(&pool, config, clock.now()).await?;
                options.anchors.extend(ask_anchors(&pool, config, &mut say).await?);
            }
            match LogKey::load(&config.settings.log.key) {
                Ok(key) => options.signed_by = Some(key.verifier_key(&config.settings.log.origin)),
                Err(error) => say(&format!("warning: {error}; whose key signs is not compared")),
            }
            let months = known.months()?;
            let report = verify_database(&pool, months, options, clock.now(), &mut say).await?;
            print(&report, output)?;
            Ok(outcome(&report))
        }
        Command::Export { reader, file } => {
            let pool = store::log::patient_pool(&reader.database_url)?;
            match file {
                Some(path) => {
                    let mut options = private();
                    let file = options.create(true).truncate(true).open(path);
                    let file = file.with_context(|| path.display().to_string())?;
                    // One that was there has its own mode.
                    file.set_permissions(Permissions::from_mode(0o600))?;
                    write_export(&pool, BufWriter::new(file), clock.now(), &mut say).await?;
                    say(&format!("next: `broker audit verify {}`, anywhere", path.display()));
                }
                None => {
                    write_export(&pool, std::io::stdout().lock(), clock.now(), &mut say).await?;
                }
            }
            Ok(Outcome::Done)
        }
        Command::Key => {
            let key = LogKey::load(&config.settings.log.key)?;
            writeln!(std::io::stdout(), "{}", key.verifier_key(&config.settings.log.origin))?;
            Ok(Outcome::Done)
        }
        Command::Rotate { database_url, to } => {
            let access = Access::new(config.settings.aws.clone(), AwsOptions::default());
            let log = Sequencer::new(config, database_url, &access, clock.clone())?;
            let head = log.rotate(&LogKey::load(to)?, clock.now()).await?;
            say(&format!(
                "from entry {} on the log is signed by {}\nnext: set `key` in table [log] to {}, start every server again, and tell whoever verifies; the old key has nothing more to sign: remove it",
                head.size,
                head.key,
                to.display()
            ));
            Ok(Outcome::Done)
        }
        Command::Retire { database_url, month, file, drop } => {
            let pool = store::log::patient_pool(database_url)?;
            let scribe = Scribe { source: config.settings.origin.clone() };
            if *drop {
                drop_month(&pool, &scribe, *month, file, clock.now()).await?;
                say(
                    "dropped; the log's hashes are kept, so that proofs and checkpoints hold: keep the file",
                );
            } else {
                let told = export_month(&pool, &scribe, *month, file, clock.now()).await?;
                say(&told);
            }
            Ok(Outcome::Done)
        }
    }
}

impl Known {
    fn anchors(&self) -> anyhow::Result<Vec<SignedCheckpoint>> {
        self.anchor.iter().map(|path| read_note(path)).collect()
    }

    fn months(&self) -> anyhow::Result<Vec<MonthFile>> {
        let open = |path: &PathBuf| -> anyhow::Result<MonthFile> {
            let file = File::open(path).with_context(|| path.display().to_string())?;
            Ok(Box::new(BufReader::new(file)))
        };
        self.with.iter().map(open).collect()
    }

    fn options(&self, anchors: Vec<SignedCheckpoint>) -> Options {
        Options {
            key: self.key.clone(),
            anchors,
            covered_within: time::Duration::seconds(self.covered_within.into()),
            ..Options::default()
        }
    }
}

fn read_note(path: &Path) -> anyhow::Result<SignedCheckpoint> {
    let read = || anyhow::Ok(SignedCheckpoint::parse(&std::fs::read_to_string(path)?)?);
    read().with_context(|| path.display().to_string())
}

/// Whether an anchor has to have something by now.
async fn is_anchored(pool: &PgPool, config: &Config, now: OffsetDateTime) -> sqlx::Result<bool> {
    let settings = &config.settings.log;
    let since = store::log::first_signed(pool).await?;
    let is_due = since.is_some_and(|it| it + settings.anchor_every.0 * ROUNDS < now);
    Ok(is_due && !settings.anchors.is_empty())
}

/// The newest checkpoint of each of the configuration's anchors that answers.
async fn ask_anchors(
    pool: &PgPool,
    config: &Config,
    say: &mut impl FnMut(&str),
) -> sqlx::Result<Vec<SignedCheckpoint>> {
    let access = Access::new(config.settings.aws.clone(), AwsOptions::default());
    let mut newest = Vec::new();
    for settings in &config.settings.log.anchors {
        match Anchor::new(settings, &access).newest((0, 0)).await {
            Ok(Some((_, signed))) => newest.push(signed),
            Ok(None) => {
                if let Some((_, size)) = store::log::told_anchored(pool, settings.name()).await? {
                    say(&format!(
                        "warning: anchor {} had a checkpoint of {size} entries, and is empty",
                        settings.name()
                    ));
                }
            }
            Err(error) => {
                say(&format!("warning: anchor {} did not answer: {error}", settings.name()));
            }
        }
    }
    Ok(newest)
}

/// Exports the log to a file that nobody else sees, and checks that.
async fn verify_database(
    pool: &PgPool,
    months: Vec<MonthFile>,
    options: Options,
    now: OffsetDateTime,
    say: &mut impl FnMut(&str),
) -> anyhow::Result<Report> {
    let mut file = scratch_file()?;
    write_export(pool, BufWriter::new(&mut file), now, say).await?;
    file.seek(SeekFrom::Start(0))?;
    Ok(verify::verify_with(BufReader::new(file), months, options, |_| {})?)
}

/// Names, addresses and reasons are for nobody else on this host.
fn private() -> OpenOptions {
    let mut options = File::options();
    options.write(true).mode(0o600);
    options
}

/// A file without a name: it is gone with us, however we end.
fn scratch_file() -> anyhow::Result<File> {
    let path = std::env::temp_dir().join(format!("brokerd-verify-{:016x}", rand::random::<u64>()));
    let file = private().read(true).create_new(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

pub async fn write_export(
    pool: &PgPool,
    mut file: impl Write,
    now: OffsetDateTime,
    say: &mut impl FnMut(&str),
) -> anyhow::Result<()> {
    let header = export::header(pool, now).await?;
    let head = store::log::head(pool).await?;
    let (header, head) = header.zip(head).context(
        "there is no log yet: it begins when a server starts; `brokerd serve` or `brokerd dev`",
    )?;
    file.write_all(header.as_bytes())?;
    let mut from = 0;
    loop {
        let (lines, next) = export::page(pool, from, head.size).await?;
        file.write_all(lines.as_bytes())?;
        let Some(next) = next else { break };
        from = next;
        if from % 100_000 == 0 {
            say(&format!("{from} of {} entries read", head.size));
        }
    }
    file.write_all(export::tail(pool, head.size, i64::MIN).await?.as_bytes())?;
    Ok(file.flush()?)
}

fn outcome(report: &Report) -> Outcome {
    match report.verdict() {
        Verdict::Good => Outcome::Done,
        Verdict::Incomplete => Outcome::Incomplete,
        Verdict::NotValid => Outcome::NotValid,
    }
}

fn print(report: &Report, output: &str) -> anyhow::Result<()> {
    let text = if output == "json" { report.json() + "\n" } else { report.text() };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Writes a month's entries, and records it.
async fn export_month(
    pool: &PgPool,
    scribe: &Scribe,
    month: Date,
    path: &Path,
    now: OffsetDateTime,
) -> anyhow::Result<String> {
    let file = private().create_new(true).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    let mut file = BufWriter::new(file);
    let mut hasher = Sha256::new();
    let (mut after, mut events, mut first) = (-1, 0_i64, None);
    loop {
        let rows = store::log::month(pool, month, after, export::PAGE).await?;
        let Some(last) = rows.last() else { break };
        after = last.index;
        first = first.or(Some(rows[0].index));
        events += i64::try_from(rows.len())?;
        for row in rows {
            let lines = export::entry(pool, &row).await?;
            hasher.update(&lines);
            file.write_all(lines.as_bytes())?;
        }
    }
    let first = first.with_context(|| format!("no event of {month} has its place in the log"))?;
    file.into_inner()?.sync_all()?;
    let sha256: [u8; 32] = hasher.finalize().into();
    let partition = partition_name(month);
    let detail = serde_json::json!({ "partition": partition, "events": events, "first_index": first, "last_index": after, "sha256": hex::encode(sha256) });
    let event = scribe.body(
        EventType::LogPartitionExported,
        Actor::Operator,
        Subject::default(),
        detail,
        now,
    );
    let exported =
        store::log::Exported { month, events, first_index: first, last_index: after, sha256 };
    store::log::tell_exported(pool, &exported, &event, now).await?;
    Ok(format!(
        "{events} events written to {}, sha256 {}\nnext: keep the file where it cannot be lost; when an anchored checkpoint covers this (a minute), the same with --drop",
        path.display(),
        hex::encode(sha256)
    ))
}

async fn drop_month(
    pool: &PgPool,
    scribe: &Scribe,
    month: Date,
    path: &Path,
    now: OffsetDateTime,
) -> anyhow::Result<()> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    std::io::copy(&mut file, &mut hasher)?;
    let sha256: [u8; 32] = hasher.finalize().into();
    let told = store::log::exported_sha256(pool, month).await?;
    ensure!(
        told.as_deref() == Some(hex::encode(sha256).as_str()),
        "{} is not the file that {month} was exported to; export it again",
        path.display()
    );
    let before = store::log::dropped_months(pool).await?;
    let detail = serde_json::json!({ "partition": partition_name(month), "before": before });
    let event = scribe.body(
        EventType::LogPartitionDropped,
        Actor::Operator,
        Subject::default(),
        detail,
        now,
    );
    Ok(store::log::drop_month(pool, month, &event, now).await?)
}

fn partition_name(month: Date) -> String {
    format!("event_{}{:02}", month.year(), u8::from(month.month()))
}
