//! For auditors: an approval as a file, and its check with nothing but the file.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use broker::approval::{Envelope, Fault, Finding, MAX_FILE_BYTES, Signature, StockCheck, Verified};
use broker::lease::LeaseId;
use broker::render::{name, words};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::Context;
use crate::output::{self, Failure, Format, Result};

#[derive(Subcommand)]
pub(crate) enum ApprovalCommand {
    Export(ExportArgs),
}

/// Writes what people signed about a lease as one file that anybody can check
///
/// The file holds the exact statement, every signature, the keys with their enrolment, and what became of the lease,
/// sealed by the broker's instance key. It holds no secret. Any byte changed makes it not valid.
#[derive(Args)]
#[command(after_help = "\
Example:
  broker approval export ID -f approval.json
  broker audit verify approval.json")]
pub(crate) struct ExportArgs {
    /// The lease
    id: LeaseId,
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// How an exported approval is checked.
#[derive(Args)]
pub(crate) struct ApprovalArgs {
    /// An approval: key id of the instance that has to have sealed it
    // One in 64 begins with a dash.
    #[arg(long, value_name = "KEYID", allow_hyphen_values = true)]
    instance_key: Option<String>,
    /// An approval: write messages, signatures and keys there, for `ssh-keygen -Y verify`
    #[arg(long, value_name = "DIR")]
    extract: Option<PathBuf>,
}

pub(crate) fn export(context: &Context, args: &ExportArgs) -> Result<()> {
    let path = format!("/v1/leases/{}/approval", args.id);
    // There is one spelling of an envelope, so that what is written is what was sent.
    let file = context.as_reader()?.get::<Envelope>(&path, &[])?.file();
    let Some(path) = &args.file else { return output::bytes(&file) };
    fs::write(path, file).map_err(|error| unwritten(path, &error))?;
    output::note(&format!(
        "next: `broker audit verify {}` checks it, here or anywhere",
        words(&path.display().to_string())
    ));
    Ok(())
}

/// Checks an exported approval.
pub(crate) fn verify(format: Format, file: &Path, args: &ApprovalArgs) -> Result<()> {
    let file = read(file)?;
    let verified = broker::approval::verify(&file, args.instance_key.as_deref())
        .map_err(|findings| not_valid(&findings))?;
    if let Some(dir) = &args.extract {
        extract(dir, &verified)?;
    }
    output::data(&match format {
        Format::Text => text(&verified),
        _ => output::pretty(&document(&verified)),
    })?;
    if !verified.is_pinned() {
        output::note(&format!(
            "The instance key {} is trusted on the file's own word, and all else with it: anybody can make a key and seal \
             with it.\nCompare it with the one that the broker's operators tell you, then repeat with \
             `--instance-key KEYID`.",
            verified.key_id()
        ));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX) + 1;
    File::open(path).and_then(|it| it.take(limit).read_to_end(&mut bytes)).map_err(|error| {
        Failure::invalid(
            format!("{} cannot be read: {error}", path.display()),
            "Name the file that `broker approval export` wrote.",
        )
    })?;
    Ok(bytes)
}

fn not_valid(findings: &[Finding]) -> Failure {
    let detail: Vec<_> = findings.iter().map(ToString::to_string).collect();
    let next = match findings {
        [Finding { fault: Fault::NotThePinnedKey, .. }] => {
            "Ask the broker's operators for the key id; if it is the one you gave, the file is from elsewhere."
        }
        _ => {
            "Believe nothing in the file. Have the lease exported again; if that is not valid either, tell the broker's operators and security."
        }
    };
    let listed: Vec<_> = findings
        .iter()
        .map(|it| json!({ "code": it.fault.code(), "person": it.person, "detail": it.fault.to_string() }))
        .collect();
    Failure::not_valid(
        detail.join("\n"),
        next,
        json!({ "valid": false, "findings": listed, "next": next }),
    )
}

/// What was found, for programs.
fn document(verified: &Verified) -> Value {
    let (export, sealed) = (verified.export(), verified.statement());
    let signatures: Vec<_> = export
        .signatures
        .iter()
        .map(|it| {
            json!({
                "person": it.person,
                "decision": it.decision,
                "signed_at": output::utc(it.signed_at),
                "key_fingerprint": it.key.fingerprint,
                "assurance": it.assurance,
                "touched": it.touched,
                "verified": it.verified,
                "evidence": it.key.evidence,
                "enrolled_at": output::utc(it.key.enrolled_at),
                "enrolled_by": it.key.enrolled_by.as_ref().map(|it| &it.signer),
                "revoked_at": it.key.revoked_at.map(output::utc),
            })
        })
        .collect();
    json!({
        "valid": true,
        "approved": verified.is_approved(),
        "instance_key": verified.key_id(),
        "instance_key_pinned": verified.is_pinned(),
        "origin": export.origin,
        "exported_at": output::utc(export.exported_at),
        "lease": export.lease,
        "signatures_needed": sealed.terms().signers.needed,
        "assurance_needed": sealed.terms().signers.assurance,
        "statement_sha256": sealed.sha256(),
        "short_code": sealed.short_code(),
        "request": sealed.terms(),
        "signatures": signatures,
    })
}

/// What was found, for people.
fn text(verified: &Verified) -> String {
    let (export, sealed) = (verified.export(), verified.statement());
    let (lease, signers) = (&export.lease, &sealed.terms().signers);
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:<11} {value}");
    };
    line("valid", "yes");
    line(
        "approved",
        &if verified.is_approved() {
            format!("yes, by {} at `{}` or better", signers.needed, signers.assurance)
        } else {
            format!("NO: the lease is {}", lease.state)
        },
    );
    line("state", &format!("{} when exported, {}", lease.state, output::utc(export.exported_at)));
    for (label, at) in [
        ("approved at", lease.approved_at),
        ("claimed", lease.claimed_at),
        ("issued", lease.issued_at),
        ("ends", lease.ends_at),
        ("ended", lease.ended_at),
    ] {
        if let Some(at) = at {
            line(label, &output::utc(at));
        }
    }
    if let Some(why) = &lease.end_reason {
        line("because", &words(why));
    }
    let trust = if verified.is_pinned() { "as demanded" } else { "ON THE FILE'S OWN WORD" };
    line("sealed by", &format!("{} ({trust})", verified.key_id()));
    let _ = writeln!(out, "\nWhat they signed:\n{}", broker::render::statement(sealed));
    let columns =
        ["PERSON", "DECISION", "SIGNED", "ASSURANCE", "TOUCH", "PIN", "KEY", "ENROLLED BY"];
    let rows: Vec<_> = export.signatures.iter().map(row).collect();
    out.push_str(&output::table(&columns, &rows));
    out
}

fn row(it: &Signature) -> Vec<String> {
    let says = |flag: Option<bool>| match flag {
        Some(true) => "yes",
        Some(false) => "no",
        None => "cannot tell",
    };
    vec![
        name(&it.person),
        it.decision.to_string(),
        output::utc(it.signed_at),
        it.assurance.to_string(),
        says(it.touched).to_owned(),
        says(it.verified).to_owned(),
        name(&it.key.fingerprint),
        it.key.enrolled_by.as_ref().map_or_else(|| "bootstrap".to_owned(), |it| name(&it.signer)),
    ]
}

/// Writes what `ssh-keygen` needs, and says how to run it.
fn extract(dir: &Path, verified: &Verified) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| unwritten(dir, &error))?;
    let checks = verified.for_ssh_keygen();
    let signers: String = checks.iter().map(|it| it.allowed_signer.as_str()).collect();
    write_new(&dir.join("allowed_signers"), signers.as_bytes())?;
    for check in &checks {
        let message = format!("message-{}", check.person);
        write_new(&dir.join(&message), &check.message)?;
        write_new(&dir.join(message + ".sig"), check.signature.as_bytes())?;
        output::note(&command(dir, check));
    }
    for it in &verified.export().signatures {
        if !checks.iter().any(|check| check.person == it.person) {
            output::note(&format!("# {} signed with what ssh-keygen does not know", it.person));
        }
    }
    output::note("# ssh-keygen looks at neither touch nor PIN, and not at who may sign");
    Ok(())
}

/// The command line that checks one signature, for a shell.
fn command(dir: &Path, check: &StockCheck) -> String {
    let dir = dir.display().to_string();
    let file = |name: &str| format!("'{}'", format!("{dir}/{name}").replace('\'', r"'\''"));
    let StockCheck { person, namespace, signed_at, .. } = check;
    format!(
        "ssh-keygen -Y verify -f {} -I {person} -n {namespace} -O verify-time={signed_at} -s {} < {}",
        file("allowed_signers"),
        file(&format!("message-{person}.sig")),
        file(&format!("message-{person}")),
    )
}

/// Writes a file that was not there: what is checked is nothing left over from before.
fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut it| it.write_all(content))
        .map_err(|error| unwritten(path, &error))
}

pub(crate) fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::invalid(
        format!("{} cannot be written: {error}", path.display()),
        "Name a place that is yours to write; extract into a folder that is new.",
    )
}
