//! What is printed. stdout is data, stderr is words; secrets leave only through [`env`] and [`credential_process`].

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use broker::lease::{LeaseId, LeaseState};
use broker::problem::{Kind, Problem};
use broker::render::{name, words};
use broker::wire::{Credentials, Explanation, Lease, Scope, WhoAmI};
use clap::ValueEnum;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::refusal::{self, Refusal};

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// The broker was not reached: the one exit code that no problem document can carry.
pub(crate) const UNREACHABLE: u8 = 7;

/// What `eval` gets when nothing was issued, so that old credentials do not live on.
const NOTHING_ISSUED: &str =
    "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; false\n";

/// How the answer is written on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people; no credentials. The default on a terminal
    Text,
    /// For programs; no credentials. The default elsewhere
    Json,
    /// For `eval`: exports the credentials
    Env,
    /// For `credential_process` in ~/.aws/config: holds the credentials
    CredentialProcess,
}

impl Format {
    pub(crate) fn holds_credentials(self) -> bool {
        matches!(self, Self::Env | Self::CredentialProcess)
    }
}

/// Why a command did not do what it was asked to, and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    /// Set when the broker answered with a problem document.
    pub(crate) kind: Option<Kind>,
    pub(crate) retry_after: Option<Duration>,
    /// What `eval` gets instead.
    instead: &'static str,
    told: Box<Told>,
}

#[derive(Debug)]
struct Told {
    refusal: Refusal,
    /// Further lines, for people.
    lines: Vec<String>,
    document: Option<Document>,
}

/// What a failure puts on stdout, the refusal's own members apart.
#[derive(Debug)]
enum Document {
    Problem(Value),
    Lease(Box<Lease>),
    /// Of a file that was checked: no refusal's shape.
    Verdict(Value),
}

impl Failure {
    fn new(exit: u8, refusal: Refusal) -> Self {
        let told = Box::new(Told { refusal, lines: Vec::new(), document: None });
        Self { exit, kind: None, retry_after: None, instead: NOTHING_ISSUED, told }
    }

    fn own(
        kind: Kind,
        title: Option<&str>,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let title = title.unwrap_or(kind.title());
        let refusal = Refusal::new(kind.uri(), title, detail.into(), next.into());
        Self::new(kind.exit_code(), refusal)
    }

    /// The command, its settings or a local file are not as they have to be.
    pub(crate) fn invalid(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::own(Kind::InvalidRequest, Some("The command cannot be carried out"), detail, next)
    }

    pub(crate) fn unauthenticated(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::own(Kind::Unauthenticated, None, detail, next)
    }

    pub(crate) fn unreachable(detail: impl Into<String>, next: impl Into<String>) -> Self {
        let title = "The broker cannot be reached";
        let mut refusal = Refusal::new(refusal::UNREACHABLE, title, detail.into(), next.into());
        refusal.next_command = Some(refusal::command(&["whoami"]));
        Self::new(UNREACHABLE, refusal)
    }

    pub(crate) fn unexpected(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::own(Kind::Internal, Some("Unexpected"), detail, next)
    }

    /// Under way, and not done in the time that was given.
    pub(crate) fn not_yet(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::untyped(Kind::CloudUnavailable.exit_code(), "Not done yet", detail, next)
    }

    fn untyped(exit: u8, title: &str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(exit, Refusal::new(refusal::UNTYPED, title, detail.into(), next.into()))
    }

    /// An HTTP status with a body that is not a problem document: a proxy's, or not a broker's.
    pub(crate) fn status(status: u16) -> Self {
        let kind = match status {
            401 => Kind::Unauthenticated,
            429 => Kind::OverBudget,
            502..=504 => Kind::CloudUnavailable,
            _ => Kind::Internal,
        };
        let detail = format!("HTTP status {status}, without a problem document");
        let next = "Check that BROKER_URL names the broker, and what stands between it and you.";
        Self::untyped(kind.exit_code(), "The answer is not the broker's", detail, next)
    }

    /// The broker's own problem document; `value` is the same, whole.
    pub(crate) fn problem(problem: Problem, value: Value) -> Self {
        let uri = value["type"].as_str().unwrap_or_default();
        let kind = Kind::from_uri(uri);
        let exit = kind.unwrap_or(Kind::Internal).exit_code();
        let title = problem.title.as_deref().or(kind.map(Kind::title)).unwrap_or("Problem");
        let more = problem.extensions;
        let next = more.next.unwrap_or_else(|| next_after(exit, more.lease_id));
        let refusal = Refusal::new(uri, title, problem.detail.unwrap_or_default(), next);
        let kind_of = kind.unwrap_or(Kind::Internal);
        let mut refusal = refusal.of_kind(kind_of, more.lease_id, more.reason.as_deref());
        refusal.retry_at = more.retry_at.map(refusal::not_before);
        let lines = refusal.retry_at.iter().map(|at| format!("retry at  {at}")).collect();
        let mut failure = Self::new(exit, refusal);
        failure.kind = kind;
        failure.told.lines = lines;
        failure.told.document = Some(Document::Problem(value));
        failure
    }

    /// A file that is not what it should be; `verdict` says so to programs.
    pub(crate) fn not_valid(
        detail: impl Into<String>,
        next: impl Into<String>,
        verdict: Value,
    ) -> Self {
        let exit = Kind::SignatureRejected.exit_code();
        let mut failure = Self::untyped(exit, "Not valid", detail, next);
        failure.told.document = Some(Document::Verdict(verdict));
        failure
    }

    /// What is there is good, and something is not there.
    pub(crate) fn incomplete(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::untyped(Kind::Pending.exit_code(), "Not complete", detail, next)
    }

    /// A lease that cannot be used, or not yet.
    pub(crate) fn lease(lease: Lease) -> Self {
        let kind = match lease.state {
            LeaseState::Pending => Kind::Pending,
            LeaseState::Denied => Kind::Denied,
            LeaseState::Refused => Kind::Refused,
            _ => Kind::Ended,
        };
        let id = lease.id;
        let mut failure = if lease.state == LeaseState::Pending {
            Self::own(kind, None, "", "").waiting_for(&lease)
        } else {
            let why = lease.end_reason.as_deref().map(|it| format!(": {it}")).unwrap_or_default();
            let rules = match lease.decided_by.as_slice() {
                rules if lease.state == LeaseState::Denied && !rules.is_empty() => {
                    format!(" (decided by {})", rules.join(", "))
                }
                _ => String::new(),
            };
            let next = lease.next.clone();
            let next = next.unwrap_or_else(|| next_after(kind.exit_code(), Some(id)));
            Self::own(kind, None, format!("lease {id} is {}{why}{rules}", lease.state), next)
        };
        let told = failure.told.as_mut();
        told.refusal = told.refusal.clone().of_lease(&lease);
        told.document = Some(Document::Lease(Box::new(lease)));
        failure
    }

    /// The same, about a pending lease: what is missing, who can give it, and how to go on.
    pub(crate) fn waiting_for(mut self, lease: &Lease) -> Self {
        let told = self.told.as_mut();
        told.refusal = told.refusal.clone().of_lease(lease);
        told.refusal.detail = waits_for(lease);
        told.refusal.next = lease.next.clone().unwrap_or_else(|| {
            "Give the code and the lease id to one of them, then resume. \
             No other credential is needed or meant for this."
                .to_owned()
        });
        told.lines = ways(lease);
        self
    }

    /// A lease of which no more is known than that it waits.
    pub(crate) fn left_pending(id: LeaseId) -> Self {
        let next = format!(
            "Resume with `broker exec --lease {id} -- COMMAND`, or take it back with `broker withdraw {id}`."
        );
        let mut failure =
            Self::own(Kind::Pending, None, format!("lease {id} waits for signatures"), next);
        let refusal = failure.told.refusal.clone();
        failure.told.refusal = refusal.of_kind(Kind::Pending, Some(id), None);
        failure
    }

    /// What somebody who ran out of patience reads, and runs.
    pub(crate) fn with_next(mut self, next: impl Into<String>, command: Vec<String>) -> Self {
        self.told.refusal.next = next.into();
        self.told.refusal.next_command = Some(command);
        self
    }

    /// Whether the same request may well succeed a little later.
    pub(crate) fn may_pass(&self) -> bool {
        self.exit == UNREACHABLE || self.exit == Kind::OverBudget.exit_code()
    }

    /// What `eval` gets instead of what this command would have set.
    pub(crate) fn or_else_unset(mut self, instead: &'static str) -> Self {
        self.instead = instead;
        self
    }

    /// What it says to programs.
    pub(crate) fn refusal(&self) -> &Refusal {
        &self.told.refusal
    }

    /// Words for stderr: `error: title: detail`, then `next: …`.
    pub(crate) fn words(&self) -> String {
        let Told { refusal, lines, document: _ } = self.told.as_ref();
        let label = if self.exit == Kind::Pending.exit_code() { "pending" } else { "error" };
        let mut out = format!("{label}: {}", words(&refusal.title));
        let mut detail = refusal.detail.trim().to_owned();
        if let Some(id) = refusal.lease_id.as_deref().filter(|it| !detail.contains(it)) {
            let _ = write!(detail, " (lease {id})");
        }
        let detail = detail.trim().lines().chain(lines.iter().map(String::as_str));
        for (at, line) in detail.enumerate() {
            out.push_str(if at == 0 { ": " } else { "\n  " });
            out.push_str(&words(line));
        }
        for (at, line) in refusal.next.lines().enumerate() {
            out.push_str(if at == 0 { "\nnext: " } else { "\n  " });
            out.push_str(&words(line));
        }
        out.push('\n');
        out
    }

    /// Data for stdout, in `format`.
    pub(crate) fn data(&self, format: Format) -> String {
        match (format, &self.told.document) {
            (Format::Env, _) => self.instead.to_owned(),
            (Format::Text, Some(Document::Lease(lease))) => lease_text(lease),
            (Format::CredentialProcess | Format::Text, _) => String::new(),
            (Format::Json, Some(Document::Verdict(verdict))) => pretty(verdict),
            (Format::Json, Some(Document::Problem(problem))) => self.json(problem.clone()),
            (Format::Json, Some(Document::Lease(lease))) => {
                let bare = Lease { credentials: None, ..lease.as_ref().clone() };
                self.json(serde_json::to_value(bare).expect("our own types are JSON"))
            }
            (Format::Json, None) => self.json(Value::Null),
        }
    }

    /// The refusal's members, in place of or beside those of what the broker answered.
    fn json(&self, answer: Value) -> String {
        let refusal = serde_json::to_value(self.refusal()).expect("our own types are JSON");
        let (mut all, refusal) = match (answer, refusal) {
            (Value::Object(answer), Value::Object(refusal)) => (answer, refusal),
            (_, refusal) => return pretty(&refusal),
        };
        all.extend(refusal);
        pretty(&all)
    }
}

/// Says why a command ends otherwise than it should have: words, then data. Gives its exit code.
pub(crate) fn end(failure: &Failure, format: Format) -> u8 {
    note(failure.words().trim_end());
    match data(&failure.data(format)) {
        Ok(()) => failure.exit,
        Err(worse) => {
            note(worse.words().trim_end());
            worse.exit
        }
    }
}

/// What a pending lease waits for.
pub(crate) fn waits_for(lease: &Lease) -> String {
    let missing = refusal::missing(lease);
    format!(
        "lease {} waits for {missing} signature{} of {}",
        lease.id,
        if missing == 1 { "" } else { "s" },
        refusal::not_yet_signed(lease).join(", "),
    )
}

/// What to tell the people that a pending lease waits for, and how to go on.
pub(crate) fn ways(lease: &Lease) -> Vec<String> {
    let id = lease.id;
    let mut lines = Vec::new();
    lines.extend(lease.short_code.iter().map(|code| format!("code      {code}")));
    lines.extend(lease.sign_by.map(|by| format!("sign by   {}", utc(by))));
    lines.push(format!("sign      broker sign {id}   (one of them, with their own key)"));
    lines.extend(lease.link.iter().map(|it| format!("link      {it}   (for them: how to)")));
    lines.push(format!("resume    broker exec --lease {id} -- COMMAND"));
    lines.push(format!("          broker credentials --lease {id}"));
    lines.push(format!("withdraw  broker withdraw {id}"));
    lines
}

/// What to do after a failure whose document does not say.
fn next_after(exit: u8, lease: Option<LeaseId>) -> String {
    let lease = lease.map_or_else(|| "ID".to_owned(), |id| id.to_string());
    match exit {
        2 => "Correct the command; `broker help` shows how.".to_owned(),
        3 => format!(
            "`broker show {lease}` says who may sign; then `broker exec --lease {lease} -- COMMAND`."
        ),
        4 => "`broker scopes` lists what you may ask for; your sponsor can have more allowed."
            .to_owned(),
        5 => format!(
            "`broker show {lease}` gives the signer's reason; change the request, then ask again."
        ),
        6 => "Ask for a new lease with `broker lease`.".to_owned(),
        8 => "Get a new token from your sponsor, or log in with `broker login --key FILE`."
            .to_owned(),
        9 => "Try again in a little while; the same command is safe to repeat.".to_owned(),
        _ => "Try again; if it stays, tell the broker's operators when it happened.".to_owned(),
    }
}

/// Writes data. A reader that has seen enough (`| head`) is not a failure.
pub(crate) fn data(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::unexpected(
            format!("standard output cannot be written: {error}"),
            "Check where the output goes.",
        )),
        _ => Ok(()),
    }
}

/// Writes words for people. Nobody being there to read them is no reason to fail.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub(crate) fn pretty(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("our own types are JSON");
    text.push('\n');
    text
}

/// RFC 3339 UTC, to the second.
pub(crate) fn utc(at: OffsetDateTime) -> String {
    // In UTC, but for what is later than any time there.
    let at = at.checked_to_offset(time::UtcOffset::UTC).unwrap_or(at);
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// `3m 12s`; nothing shorter than a second, nothing negative.
pub(crate) fn span(length: time::Duration) -> String {
    let seconds = u64::try_from(length.whole_seconds()).unwrap_or(0);
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// The lease as JSON, whatever came with it never.
pub(crate) fn lease_json(lease: &Lease) -> String {
    pretty(&Lease { credentials: None, ..lease.clone() })
}

pub(crate) fn lease_text(lease: &Lease) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:<10} {value}");
    };
    line("lease", &lease.id.to_string());
    line("state", lease.state.as_str());
    let judged = lease.environment.zip(lease.tier);
    let judged = judged.map(|(environment, tier)| format!(" ({environment}, {tier})"));
    line("scope", &(name(&lease.scope) + &judged.unwrap_or_default()));
    for (label, it) in
        [("account", &lease.account), ("region", &lease.region), ("role", &lease.role_arn)]
    {
        if let Some(it) = it {
            line(label, &name(it));
        }
    }
    line("agent", &format!("{}, sponsored by {}", name(&lease.agent), name(&lease.sponsor)));
    line("task", &words(&lease.task));
    for (label, text) in [("reason", &lease.reason), ("rollback", &lease.rollback)] {
        if let Some(text) = text {
            line(label, &words(text));
        }
    }
    for (label, list) in [("may do", &lease.actions), ("on", &lease.resources)] {
        for (at, it) in list.iter().enumerate() {
            line(if at == 0 { label } else { "" }, &name(it));
        }
    }
    line("requested", &utc(lease.requested_at));
    for (label, at) in [
        ("sign by", lease.sign_by.filter(|_| lease.state == LeaseState::Pending)),
        ("approved", lease.approved_at),
        ("claim by", lease.claim_by.filter(|_| lease.state == LeaseState::Approved)),
        ("issued", lease.issued_at),
        ("ends", lease.ends_at),
        ("ended", lease.ended_at),
    ] {
        if let Some(at) = at {
            line(label, &utc(at));
        }
    }
    if let Some(why) = &lease.end_reason {
        line("because", &words(why));
    }
    if lease.signatures_needed != 0 {
        let eligible = name(&lease.eligible_signers.join(", "));
        line("needs", &format!("{} of {eligible}", lease.signatures_needed));
    }
    if let Some(code) = &lease.short_code {
        line("code", &name(code));
    }
    for it in &lease.signatures {
        line(
            "signed",
            &format!("{} by {} at {}", it.decision, name(&it.person), utc(it.signed_at)),
        );
    }
    for it in &lease.sessions {
        let key = it.access_key_id.as_deref().unwrap_or("-");
        let until = it.expires_at.map(|at| format!(" until {}", utc(at))).unwrap_or_default();
        let failure =
            it.failure.as_deref().map(|it| format!(": {}", words(it))).unwrap_or_default();
        line("session", &format!("{} {}{until}{failure}", it.state, name(key)));
    }
    out
}

pub(crate) const LEASE_COLUMNS: &[&str] =
    &["LEASE", "STATE", "AGENT", "SCOPE", "TIER", "TASK", "REQUESTED", "ENDS"];

pub(crate) fn lease_row(lease: &Lease) -> Vec<String> {
    vec![
        lease.id.to_string(),
        lease.state.to_string(),
        name(&lease.agent),
        name(&lease.scope),
        tier(lease),
        words(&lease.task),
        utc(lease.requested_at),
        lease.ended_at.or(lease.ends_at).map_or_else(|| "-".to_owned(), utc),
    ]
}

fn tier(lease: &Lease) -> String {
    lease.tier.map_or_else(|| "-".to_owned(), |it| it.to_string())
}

pub(crate) const PENDING_COLUMNS: &[&str] =
    &["LEASE", "CODE", "AGENT", "SPONSOR", "SCOPE", "TIER", "AGE", "SIGN BY", "SIGNED"];

pub(crate) fn pending_row(lease: &Lease, now: OffsetDateTime) -> Vec<String> {
    vec![
        lease.id.to_string(),
        name(lease.short_code.as_deref().unwrap_or("-")),
        name(&lease.agent),
        name(&lease.sponsor),
        name(&lease.scope),
        tier(lease),
        span(now - lease.requested_at),
        lease.sign_by.map_or_else(|| "-".to_owned(), utc),
        format!("{} of {}", lease.signatures.len(), lease.signatures_needed),
    ]
}

pub(crate) fn scopes_text(scopes: &[Scope]) -> String {
    let columns =
        ["SCOPE", "TIER", "ENVIRONMENT", "ACCOUNT", "AT MOST", "SIGNATURES", "DESCRIPTION"];
    let rows: Vec<_> = scopes
        .iter()
        .map(|it| {
            let signatures = match it.signatures_needed {
                0 => "none".to_owned(),
                needed => format!("{needed} of {}", name(&it.signer_groups.join(", "))),
            };
            vec![
                name(&it.name),
                it.tier.to_string(),
                it.environment.to_string(),
                name(&it.account),
                span(time::Duration::seconds(it.max_ttl_seconds.into())),
                signatures,
                words(&it.description),
            ]
        })
        .collect();
    table(&columns, &rows)
}

pub(crate) fn explanation_text(it: &Explanation) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:<10} {value}");
    };
    line("outcome", &format!("{}: {}", it.outcome, words(&it.why)));
    if let Some(retry_at) = it.retry_at {
        line("ask again", &utc(retry_at));
    }
    if !it.decided_by.is_empty() {
        line("by rules", &name(&it.decided_by.join(", ")));
    }
    line("scope", &name(&it.scope));
    if let (Some(tier), Some(because)) = (it.tier, &it.tier_because) {
        line("tier", &format!("{tier}: {}", words(because)));
    }
    for (at, action) in it.actions.iter().enumerate() {
        let on = if action.any_resource { ", on anything in the account" } else { "" };
        let text = format!("{:<28} {}{on}", name(&action.action), action.class.plain());
        line(if at == 0 { "may do" } else { "" }, &text);
    }
    for (at, arn) in it.resources.iter().filter(|it| *it != "*").enumerate() {
        line(if at == 0 { "on" } else { "" }, &name(arn));
    }
    if let (Some(ttl), Some(session)) = (it.ttl_seconds, it.session_seconds) {
        let text = |seconds: u32| span(time::Duration::seconds(seconds.into()));
        line("for", &format!("{}, in sessions of {}", text(ttl), text(session)));
    }
    if let Some(assurance) = it.assurance {
        let needed = it.signatures_needed;
        let eligible = name(&it.eligible_signers.join(", "));
        line("signers", &format!("{needed} of {eligible}, with keys of assurance {assurance}"));
    }
    out
}

pub(crate) fn whoami_text(who: &WhoAmI) -> String {
    match who {
        WhoAmI::Agent { agent, sponsor, actor, task, task_id: _, token_expires_at } => format!(
            "agent      {}\nsponsor    {}\n{}task       {}\ntoken ends {}\n",
            name(agent),
            name(sponsor),
            actor.as_ref().map_or_else(String::new, |it| format!("set off by {}\n", name(it))),
            words(task),
            utc(*token_expires_at)
        ),
        WhoAmI::Person { person, display_name, groups, token_expires_at } => format!(
            "person     {} ({})\ngroups     {}\nlogin ends {}\n",
            name(person),
            words(display_name),
            name(&groups.join(", ")),
            utc(*token_expires_at)
        ),
    }
}

/// Columns as wide as their widest cell; nothing is cut.
pub(crate) fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([columns[at].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    let head: Vec<_> = columns.iter().map(|it| (*it).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Shell commands that make the credentials the only ones, for `eval`.
pub(crate) fn env(credentials: &Credentials) -> Result<String> {
    let region = &credentials.region;
    if region.is_empty() || !region.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-') {
        return Err(malformed());
    }
    // A profile, or another session's expiry, would come before or spoil what is exported here.
    let mut out =
        "unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SECURITY_TOKEN AWS_CREDENTIAL_EXPIRATION\n"
            .to_owned();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", &credentials.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key),
        ("AWS_SESSION_TOKEN", &credentials.session_token),
    ] {
        let _ = writeln!(out, "export {name}={}", quoted(value)?);
    }
    let _ =
        writeln!(out, "export AWS_REGION=\"${{AWS_REGION:-${{AWS_DEFAULT_REGION:-{region}}}}}\"");
    out.push_str("export AWS_DEFAULT_REGION=\"${AWS_DEFAULT_REGION:-$AWS_REGION}\"\n");
    Ok(out)
}

/// The document that AWS SDKs read from a `credential_process`.
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>
pub(crate) fn credential_process(credentials: &Credentials) -> String {
    pretty(&json!({
        "Version": 1,
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "SessionToken": credentials.session_token,
        "Expiration": utc(credentials.expires_at),
    }))
}

/// One word of POSIX shell that stands for exactly `value`.
fn quoted(value: &str) -> Result<String> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(malformed());
    }
    Ok(format!("'{}'", value.replace('\'', r"'\''")))
}

fn malformed() -> Failure {
    Failure::unexpected(
        "the credentials hold what no credentials hold, and are not passed to a shell",
        "Check that BROKER_URL names the broker, and tell its operators.",
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use broker::lease::{Environment, Tier};
    use broker::wire::Receipt;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    fn receipt() -> Receipt {
        Receipt { event_id: Uuid::from_u128(9), leaf_hash: "f".repeat(64) }
    }

    pub(crate) fn credentials() -> Credentials {
        Credentials {
            session_id: Uuid::from_u128(7),
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: "sec/ret+'quote$(x)".into(),
            session_token: "token==".into(),
            expires_at: datetime!(2026-01-01 12:15:00.5 UTC),
            region: "eu-west-1".into(),
            receipt: Some(receipt()),
        }
    }

    pub(crate) fn lease(state: LeaseState) -> Lease {
        Lease {
            id: LeaseId(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001)),
            state,
            agent: "demo-agent".into(),
            sponsor: "alice".into(),
            task: "OPS-7".into(),
            reason: Some("rotate\u{1b}[2Jit".into()),
            rollback: None,
            scope: "prod-rw".into(),
            environment: Some(Environment::Production),
            tier: Some(Tier::ProductionWrite),
            account: Some("000000000000".into()),
            region: Some("eu-west-1".into()),
            role_arn: Some("arn:aws:iam::000000000000:role/broker".into()),
            actions: vec!["s3:PutObject".into()],
            resources: vec!["arn:aws:s3:::prod/x".into()],
            requested_at: datetime!(2026-01-01 12:00 UTC),
            sign_by: Some(datetime!(2026-01-01 12:30 UTC)),
            approved_at: None,
            claim_by: None,
            issued_at: None,
            ends_at: None,
            ended_at: None,
            end_reason: None,
            decided_by: vec![],
            signatures_needed: 1,
            eligible_signers: vec!["bob".into(), "carol".into()],
            signatures: vec![],
            short_code: Some("WERC-8GMR".into()),
            link: None,
            sessions: vec![],
            next: None,
            credentials: Some(credentials()),
            receipt: Some(receipt()),
        }
    }

    #[test]
    fn every_state_of_a_lease_has_its_exit_code() {
        for (state, exit) in [
            (LeaseState::Pending, 3),
            (LeaseState::Denied, 4),
            (LeaseState::Refused, 5),
            (LeaseState::Expired, 6),
            (LeaseState::Lapsed, 6),
            (LeaseState::Revoked, 6),
            (LeaseState::Withdrawn, 6),
            (LeaseState::Failed, 6),
        ] {
            assert_eq!(Failure::lease(lease(state)).exit, exit, "{state}");
        }
    }

    #[test]
    fn a_problem_document_decides_the_exit_code_and_the_words() {
        for kind in Kind::ALL {
            let value = json!({
                "type": kind.uri(), "title": kind.title(), "status": kind.status(),
                "detail": "d\u{1b}[31m", "lease_id": lease(LeaseState::Denied).id,
            });
            let failure = Failure::problem(serde_json::from_value(value.clone()).unwrap(), value);
            assert_eq!(failure.exit, kind.exit_code(), "{kind:?}");
            let words = failure.words();
            assert!(words.contains("d\\u{1b}[31m (lease 01920000-"), "{words}");
            assert!(words.lines().last().unwrap().starts_with("next: "), "{words}");
        }
        assert_eq!(Failure::status(302).exit, 1);
        assert_eq!(Failure::status(503).exit, 9);
    }

    #[test]
    fn a_pending_lease_says_what_is_missing_and_how_to_go_on() {
        let words = Failure::lease(lease(LeaseState::Pending)).words();
        for part in [
            "waits for 1 signature of bob, carol",
            "WERC-8GMR",
            "broker sign 01920000-",
            "broker exec --lease 01920000-",
            "broker credentials --lease 01920000-",
            "broker withdraw 01920000-",
            "\nnext: ",
        ] {
            assert!(words.contains(part), "{part} is missing from\n{words}");
        }
    }

    #[test]
    fn neither_text_nor_json_ever_holds_a_secret_or_a_control_character() {
        let secrets = credentials();
        for state in LeaseState::ALL {
            let lease = lease(*state);
            let mut shown =
                vec![lease_text(&lease), lease_json(&lease), lease_row(&lease).join(" ")];
            shown.push(format!("{lease:?}"));
            let failure = Failure::lease(lease);
            shown.extend([failure.data(Format::Text), failure.data(Format::Json), failure.words()]);
            for text in shown {
                assert!(!text.contains(&secrets.secret_access_key), "{text}");
                assert!(!text.contains(&secrets.session_token), "{text}");
                assert!(text.chars().all(|it| it == '\n' || !it.is_control()), "{text:?}");
            }
        }
    }

    #[test]
    fn a_failure_unsets_old_credentials_and_prints_no_document_for_aws() {
        for failure in [Failure::lease(lease(LeaseState::Pending)), Failure::invalid("d", "n")] {
            assert_eq!(
                failure.data(Format::Env),
                "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; false\n"
            );
            assert_eq!(failure.data(Format::CredentialProcess), "");
        }
    }

    #[test]
    fn the_shell_reads_back_exactly_what_was_issued() {
        let script = env(&credentials()).unwrap();
        let print = "printf '%s|' \"$AWS_SECRET_ACCESS_KEY\" \"$AWS_REGION\" \"$AWS_DEFAULT_REGION\" \"${AWS_PROFILE-}\"";
        let run = |region: &[(&str, &str)]| {
            let output = std::process::Command::new("/bin/sh")
                .args(["-euc", &format!("{script}{print}")])
                .env_clear()
                .env("AWS_PROFILE", "admin")
                .envs(region.iter().copied())
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run(&[]), "sec/ret+'quote$(x)|eu-west-1|eu-west-1||");
        assert_eq!(run(&[("AWS_DEFAULT_REGION", "x")]), "sec/ret+'quote$(x)|x|x||");
    }

    #[test]
    fn what_could_break_out_of_a_shell_word_is_refused() {
        for value in ["", "a\nb", "a\0b", "a\u{1b}b"] {
            assert_eq!(quoted(value).unwrap_err().exit, 1);
        }
        let region = Credentials { region: "x}\";id".into(), ..credentials() };
        assert!(env(&region).is_err());
    }

    #[test]
    fn the_credential_process_document_is_what_aws_sdks_read() {
        let value: Value = serde_json::from_str(&credential_process(&credentials())).unwrap();
        assert_eq!(value["Version"], 1);
        assert_eq!(value["AccessKeyId"], "ASIAEXAMPLE");
        assert_eq!(value["Expiration"], "2026-01-01T12:15:00Z");
        let members: BTreeSet<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let all = ["Version", "AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"];
        assert_eq!(members, BTreeSet::from(all));
    }

    #[test]
    fn a_receipt_is_shown_as_json_only() {
        let lease = lease(LeaseState::Issued);
        let hash = receipt().leaf_hash;
        assert!(lease_json(&lease).contains(&hash));
        assert!(!lease_text(&lease).contains(&hash));
        assert!(!env(&credentials()).unwrap().contains(&hash));
    }

    #[test]
    fn a_table_keeps_ids_whole() {
        let shown = table(&["ID", "B"], &[vec!["long-identifier".into(), "x".into()]]);
        assert_eq!(shown, "ID               B\nlong-identifier  x\n");
    }
}
