//! The log over the events: exported, checked without the broker, and proven event by event.

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, BufWriter, IsTerminal as _, Read as _, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use broker::log::SignedCheckpoint;
use broker::log::proof::{HEADER, MAX_FILE_BYTES, Proof};
use broker::log::verify::{self, MonthFile, Options, Report, Verdict};
use broker::render::{name, words};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::Duration;
use uuid::Uuid;

use crate::Context;
use crate::approval::{self, ApprovalArgs};
use crate::output::{self, Failure, Format, Result};

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    Export(ExportArgs),
    Verify(VerifyArgs),
    Prove(ProveArgs),
}

/// Writes the whole log as one file that anybody can check: every event, every checkpoint, and who approved what
///
/// For people who may read everything, after `broker login`. The file holds no secret.
#[derive(Args)]
#[command(after_help = "\
Example:
  broker audit export -f log.ndjson
  broker audit verify log.ndjson --key KEY --anchor checkpoint.txt")]
pub(crate) struct ExportArgs {
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Checks what the broker exported: the log, one event's proof, or an approval
///
/// Needs no broker, no configuration and no network. Exit code 0: valid (an approval also is when it says that nobody
/// approved; `approved` tells). 3: what is there is good, something is not there. 4: not valid. 2: it cannot be read.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker audit verify log.ndjson --key KEY --anchor checkpoint.txt
  broker audit verify event.tlog-proof --key KEY
  broker audit verify approval.json --instance-key KEYID -o json | jq -e .approved
  broker audit verify approval.json --extract DIR       # then check with ssh-keygen")]
pub(crate) struct VerifyArgs {
    /// What `broker audit export`, `broker audit prove` or `broker approval export` wrote
    file: PathBuf,
    /// The log: the verifier key that it began with, as its operators tell it (`brokerd audit key`)
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The log: a checkpoint that was kept elsewhere; may be repeated
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
    /// The log: the file of a month that was put away, or an older export; may be repeated
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// The log: how many seconds an event may be under no checkpoint
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    covered_within: u32,
    #[command(flatten)]
    approval: ApprovalArgs,
}

/// Proves that one event is in the log, as a file (C2SP tlog-proof) that holds the event
///
/// Asks the broker, as one who may read everything; or takes it from an exported log, without the broker.
#[derive(Args)]
#[command(after_help = "\
Example:
  broker audit prove EVENT -f event.tlog-proof
  broker audit verify event.tlog-proof --key KEY")]
pub(crate) struct ProveArgs {
    /// The event's id
    event: Uuid,
    /// An exported log to take it from
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) fn export(context: &Context, args: &ExportArgs) -> Result<()> {
    let client = context.as_person_or_agent()?;
    let Some(path) = &args.file else {
        return client.get_pages("/v1/audit/events", output::bytes);
    };
    let unwritten = |error: std::io::Error| approval::unwritten(path, &error);
    // Names, addresses and reasons are for nobody else on this machine.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(unwritten)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(unwritten)?;
    let mut file = BufWriter::new(file);
    let mut progress = Progress::new("entries exported");
    client.get_pages("/v1/audit/events", |page| {
        progress
            .add(page.split(|it| *it == b'\n').filter(|it| it.starts_with(b"{\"event\"")).count());
        file.write_all(page).map_err(unwritten)
    })?;
    file.flush().map_err(unwritten)?;
    progress.end();
    output::note(&format!(
        "next: `broker audit verify {}` checks it, here or anywhere",
        words(&path.display().to_string())
    ));
    Ok(())
}

pub(crate) fn prove(context: impl FnOnce() -> Result<Context>, args: &ProveArgs) -> Result<()> {
    let proof = if let Some(path) = &args.from {
        let open = || File::open(path).map(BufReader::new);
        let unread = |error: std::io::Error| unreadable(path, &error.to_string());
        let proof = broker::log::proof::from_export(open, args.event).map_err(unread)?;
        let none = || {
            Failure::invalid(
                format!("event {} is under no checkpoint of {}", args.event, path.display()),
                "Check the id; an event of the last moments has its place a little later: export again.",
            )
        };
        proof.ok_or_else(none)?.file()
    } else {
        let path = format!("/v1/audit/events/{}/proof", args.event);
        context()?.as_person_or_agent()?.get_text(&path)?
    };
    match &args.file {
        None => output::bytes(proof.as_bytes()),
        Some(path) => {
            std::fs::write(path, proof).map_err(|error| approval::unwritten(path, &error))
        }
    }
}

pub(crate) fn verify(format: Format, args: &VerifyArgs) -> Result<()> {
    let mut file = File::open(&args.file)
        .map(BufReader::new)
        .map_err(|error| unreadable(&args.file, &error.to_string()))?;
    let begins = file.fill_buf().map_err(|error| unreadable(&args.file, &error.to_string()))?;
    if begins.starts_with(HEADER.as_bytes()) {
        return verify_proof(format, args, file);
    }
    if !begins.starts_with(b"{\"export\":") {
        return approval::verify(format, &args.file, &args.approval);
    }
    let anchors = args.anchor.iter().map(|it| read_checkpoint(it)).collect::<Result<Vec<_>>>()?;
    let options = Options {
        key: args.key.clone(),
        anchors,
        covered_within: Duration::seconds(args.covered_within.into()),
        ..Options::default()
    };
    let months = args.with.iter().map(|it| open(it)).collect::<Result<Vec<_>>>()?;
    let mut progress = Progress::new("entries checked");
    let report = verify::verify_with(file, months, options, |entries| progress.at(entries))
        .map_err(|error| unreadable(&args.file, &error.to_string()))?;
    progress.end();
    if report.verdict() == Verdict::NotValid {
        return Err(not_valid(&report));
    }
    output::data(&match format {
        Format::Text => report.text(),
        _ => report.json() + "\n",
    })?;
    if !report.pinned {
        output::note(&format!(
            "The key {} is trusted on the file's own word, and all else with it.\nCompare it with the one that the broker's \
             operators tell you, then repeat with `--key KEY`.",
            name(&report.key)
        ));
    }
    if report.verdict() == Verdict::Incomplete {
        return Err(Failure::incomplete(
            "what is in the file is good; the findings say what is not in it",
            "Have the log exported again; give months that were put away with `--with FILE`; if events are lost, ask the broker's operators when and why.",
        ));
    }
    Ok(())
}

fn verify_proof(format: Format, args: &VerifyArgs, file: BufReader<File>) -> Result<()> {
    let mut text = String::new();
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX) + 1;
    file.take(limit)
        .read_to_string(&mut text)
        .map_err(|error| unreadable(&args.file, &error.to_string()))?;
    let Some(key) = &args.key else {
        return Err(Failure::invalid(
            "a proof names no key that it could be checked with",
            "Pass the log's verifier key with `--key KEY`; its operators have it from `brokerd audit key`.",
        ));
    };
    let proof = Proof::parse(&text).and_then(|it| it.verify(key).map(|()| it));
    let proof = proof.map_err(|error| {
        let next = "Believe nothing in the file. Have the event proven again, and check the key.";
        let document = json!({ "valid": false, "detail": error.to_string(), "next": next });
        Failure::not_valid(error.to_string(), next, document)
    })?;
    let checkpoint = &proof.checkpoint.checkpoint;
    let event: Value = serde_json::from_slice(&proof.body).unwrap_or_default();
    output::data(&match format {
        Format::Text => format!(
            "valid        yes\nlog          {}\nentry        {} of {}\n\n{}",
            name(&checkpoint.origin),
            proof.index,
            checkpoint.size,
            // As text it could draw what it likes.
            words(&output::pretty(&event)),
        ),
        _ => output::pretty(&json!({
            "valid": true, "origin": checkpoint.origin, "index": proof.index, "size": checkpoint.size, "event": event,
        })),
    })
}

fn open(path: &Path) -> Result<MonthFile> {
    let file = File::open(path).map_err(|error| unreadable(path, &error.to_string()))?;
    Ok(Box::new(BufReader::new(file)))
}

fn read_checkpoint(path: &Path) -> Result<SignedCheckpoint> {
    let text = std::fs::read_to_string(path).map_err(|it| unreadable(path, &it.to_string()))?;
    SignedCheckpoint::parse(&text).map_err(|it| unreadable(path, &it.to_string()))
}

fn unreadable(path: &Path, why: &str) -> Failure {
    Failure::invalid(
        format!("{} cannot be read: {why}", path.display()),
        "Name the file that the broker wrote: an export, a proof, a checkpoint.",
    )
}

fn not_valid(report: &Report) -> Failure {
    let next = "Keep the file as it is, and every checkpoint that was kept elsewhere. Tell the broker's operators and security.";
    let detail: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    let more = if report.more == 0 { String::new() } else { format!("\nand {} more", report.more) };
    let mut document: Value = serde_json::from_str(&report.json()).unwrap_or_default();
    document["next"] = json!(next);
    Failure::not_valid(detail.join("\n") + &more, next, document)
}

/// Says how far it is, once a second, to people only.
struct Progress {
    what: &'static str,
    count: u64,
    told: std::time::Instant,
    shown: bool,
}

impl Progress {
    fn new(what: &'static str) -> Self {
        Self { what, count: 0, told: std::time::Instant::now(), shown: false }
    }

    fn add(&mut self, more: usize) {
        self.at(self.count + more as u64);
    }

    fn at(&mut self, count: u64) {
        self.count = count;
        let second = std::time::Duration::from_secs(1);
        if self.told.elapsed() < second || !std::io::stderr().is_terminal() {
            return;
        }
        self.told = std::time::Instant::now();
        self.shown = true;
        let _ = write!(std::io::stderr(), "\r{} {}", self.count, self.what);
    }

    fn end(&self) {
        if self.shown {
            let _ = writeln!(std::io::stderr(), "\r{} {}", self.count, self.what);
        }
    }
}
