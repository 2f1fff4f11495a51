//! Checks an exported log with nothing but the file, the log's key, and checkpoints that are known from elsewhere.
//!
//! In two steps. [`examine`] looks at one line by itself: it hashes, compares and parses, and may run on as many threads as
//! there are. [`Verifier`] takes what it found in the order of the file. Neither keeps more than the longest line, the tree's
//! right edge, and who holds which key: a log of any length takes the same memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::io::{self, BufRead, Read as _};
use std::ops::RangeInclusive;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::checkpoint::{NoteError, SignedCheckpoint, renamed};
use super::export::{
    Approval, Columns, End, FORMAT, Header, Line, MAX_LINE_BYTES, Pruned, Text, Unrecorded, Waiting,
};
use super::tree::{Frontier, Hash, leaf_hash};
use crate::approval::{self, Fault as ApprovalFault};
use crate::lease::Tier;
use crate::render::name;
use crate::statement::LeaseStatement;

/// What one thread examines at a time: small enough that memory does not matter, large enough that threads do not.
const CHUNK_BYTES: usize = 2 * 1024 * 1024;
/// So many findings are told one by one; of the others, how many there are.
const MAX_FINDINGS: usize = 100;
/// As far apart as the database's clock and a server's may be.
const SKEW: Duration = Duration::minutes(15);

/// What the one who checks knows from elsewhere.
#[derive(Clone, Debug)]
pub struct Options {
    /// The verifier key that the log began with. Without it, the file vouches for itself.
    pub key: Option<String>,
    /// Checkpoints that were kept elsewhere.
    pub anchors: Vec<SignedCheckpoint>,
    /// No event may be under no checkpoint for longer.
    pub covered_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { key: None, anchors: Vec::new(), covered_within: Duration::seconds(10) }
    }
}

/// What is wrong. Each has a stable code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("line {0} is not one of an exported log")]
    Line(u64),
    #[error("the file begins with another key than the one that was asked for")]
    NotThePinnedKey,
    #[error("the event's bytes are not those that were logged")]
    BodyChanged,
    #[error("column {0} is not what the event's bytes say")]
    ColumnDiffers(&'static str),
    #[error("the event is gone, and nothing tells that its month was exported")]
    Deleted,
    #[error("entries from here to before {0} are not in the file")]
    Gap(u64),
    #[error("the entries do not come to the root that was signed")]
    Root,
    #[error("the checkpoint does not count: {0}")]
    Checkpoint(NoteError),
    #[error("the checkpoint is of another log")]
    Origin,
    #[error("the checkpoint covers {0} entries, and stands after another number")]
    Order(u64),
    #[error("entries at the end are under no checkpoint")]
    NotCovered,
    #[error("an event was under no checkpoint for longer than it may be")]
    Stale,
    #[error("the {} {} has no event {}", name(kind), name(id), name(event))]
    Unrecorded { kind: String, id: String, event: String },
    #[error("lease {} was issued, and nobody's approval is there", name(.0))]
    ApprovalMissing(String),
    #[error("the approval of lease {} does not count: {why}", name(lease))]
    Approval { lease: String, why: String },
    #[error("the log does not tell that key {} was good then", name(.0))]
    Key(String),
    #[error("the anchored checkpoint of {0} entries does not count: {1}")]
    AnchorSignature(u64, NoteError),
    #[error("an anchored checkpoint of {0} entries says otherwise: there were two stories")]
    Forked(u64),
    #[error("an anchored checkpoint covers {0} entries: the newest ones are gone")]
    Behind(u64),
    #[error(
        "the log was taken up again after events were lost: {had} entries were left of {anchored}"
    )]
    Lost { had: u64, anchored: u64 },
    #[error("that a month was dropped is under no checkpoint yet")]
    DroppedOnItsWord,
    #[error(
        "the event that enrolled key {0} is in a month that was dropped: its owner and assurance are on the file's word"
    )]
    KeyOnItsWord(String),
    #[error("the file ends before its end")]
    Truncated,
}

impl Fault {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Line(_) => "not-a-log",
            Self::NotThePinnedKey => "not-the-pinned-key",
            Self::BodyChanged => "body-changed",
            Self::ColumnDiffers(_) => "column-differs",
            Self::Deleted => "deleted",
            Self::Gap(_) => "gap",
            Self::Root => "root",
            Self::Checkpoint(_) => "checkpoint",
            Self::Origin => "other-log",
            Self::Order(_) => "checkpoint-order",
            Self::NotCovered => "not-covered",
            Self::Stale => "stale",
            Self::Unrecorded { .. } => "unrecorded",
            Self::ApprovalMissing(_) => "approval-missing",
            Self::Approval { .. } => "approval",
            Self::Key(_) => "key",
            Self::AnchorSignature(..) => "anchor-signature",
            Self::Forked(_) => "forked",
            Self::Behind(_) => "behind",
            Self::Lost { .. } => "lost",
            Self::DroppedOnItsWord => "dropped-on-its-word",
            Self::KeyOnItsWord(_) => "key-on-its-word",
            Self::Truncated => "truncated",
        }
    }

    /// Whether it says that something is not there to be checked, not that something was changed.
    pub const fn is_incomplete(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. } | Self::DroppedOnItsWord | Self::KeyOnItsWord(_) | Self::Truncated
        )
    }
}

/// A fault and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub fault: Fault,
    /// The entry's index, or how many entries came before.
    pub at: u64,
    /// The event's id, if it is about one.
    pub event: Option<String>,
    /// The last checkpoint before that is good.
    pub good: Option<Good>,
}

/// A checkpoint that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Good {
    pub size: u64,
    /// When the last event that it covers was recorded.
    pub recorded_at: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}: ", self.at)?;
        if let Some(event) = &self.event {
            write!(f, "event {}: ", crate::render::name(event))?;
        }
        write!(f, "{} ({}); ", self.fault, self.fault.code())?;
        match &self.good {
            Some(good) => {
                let at = crate::render::name(&good.recorded_at);
                write!(
                    f,
                    "good up to the checkpoint of {} entries, the last recorded at {at}",
                    good.size
                )
            }
            None => write!(f, "no checkpoint before it is good"),
        }
    }
}

/// What a file comes to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub origin: String,
    /// The verifier key that it began with.
    pub key: String,
    pub pinned: bool,
    pub exported_at: Option<OffsetDateTime>,
    /// In the file: of a log with a gap, fewer than it has.
    pub entries: u64,
    /// Entries whose events were exported and dropped.
    pub pruned: u64,
    pub checkpoints: u64,
    pub anchors: u64,
    pub approvals: u64,
    pub waiting: u64,
    pub good: Option<Good>,
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more: u64,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// What is there is good; something is not there.
    Incomplete,
    NotValid,
}

impl Report {
    pub fn verdict(&self) -> Verdict {
        if self.findings.is_empty() {
            Verdict::Good
        } else if self.more == 0 && self.findings.iter().all(|it| it.fault.is_incomplete()) {
            Verdict::Incomplete
        } else {
            Verdict::NotValid
        }
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |label: &str, value: String| {
            let _ = writeln!(out, "{label:<12} {value}");
        };
        line(
            "valid",
            match self.verdict() {
                Verdict::Good => "yes".to_owned(),
                Verdict::Incomplete => "as far as it goes: something is not there".to_owned(),
                Verdict::NotValid => "NO".to_owned(),
            },
        );
        line("log", name(&self.origin));
        let trust = if self.pinned { "as demanded" } else { "ON THE LOG'S OWN WORD" };
        line("began with", format!("{} ({trust})", name(&self.key)));
        line("entries", format!("{}, of them {} without their event", self.entries, self.pruned));
        let good = self.good.as_ref().map_or_else(
            || "none is good".to_owned(),
            |it| {
                format!(
                    "good up to {} entries, the last recorded at {}",
                    it.size,
                    name(&it.recorded_at)
                )
            },
        );
        line("checkpoints", format!("{}, {good}", self.checkpoints));
        line("anchors", format!("{} compared", self.anchors));
        line("approvals", format!("{} verified anew", self.approvals));
        line("waiting", format!("{} events under no checkpoint yet", self.waiting));
        for finding in &self.findings {
            line("finding", finding.to_string());
        }
        if 0 < self.more {
            line("and", format!("{} findings more", self.more));
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> String {
        let good = |it: &Option<Good>| {
            it.as_ref().map(|it| json!({ "size": it.size, "recorded_at": it.recorded_at }))
        };
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|it| {
                json!({ "code": it.fault.code(), "detail": it.fault.to_string(), "at": it.at, "event": it.event, "good": good(&it.good) })
            })
            .collect();
        let report = json!({
            "valid": self.verdict() != Verdict::NotValid,
            "complete": self.verdict() == Verdict::Good,
            "origin": self.origin,
            "key": self.key,
            "key_pinned": self.pinned,
            "entries": self.entries,
            "pruned": self.pruned,
            "checkpoints": self.checkpoints,
            "anchors": self.anchors,
            "approvals": self.approvals,
            "waiting": self.waiting,
            "good": good(&self.good),
            "findings": findings,
            "more_findings": self.more,
        });
        serde_json::to_string_pretty(&report).expect("strings and numbers serialize")
    }
}

/// One line, as far as it can be judged alone.
#[derive(Debug)]
pub enum Examined {
    Entry(Box<ExaminedEntry>),
    Waiting {
        id: String,
        recorded_at: String,
        faults: Vec<Fault>,
        news: Option<News>,
    },
    Other(Box<Line>),
    /// Nothing of ours.
    Foreign,
}

#[derive(Debug)]
pub struct ExaminedEntry {
    index: u64,
    hash: Hash,
    id: String,
    recorded_at: String,
    faults: Vec<Fault>,
    news: Option<News>,
}

impl ExaminedEntry {
    pub fn index(&self) -> u64 {
        self.index
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// As it went into the tree.
    pub fn hash(&self) -> Hash {
        self.hash
    }
}

/// A lease that was issued.
#[derive(Debug)]
pub struct Issued {
    lease: String,
    /// People had to sign for it.
    signed: bool,
    statement_sha256: Option<String>,
}

/// A key, as the event that enrolled it tells.
#[derive(Debug)]
pub struct KeyTold {
    fingerprint: String,
    person: String,
    assurance: String,
}

/// What an event says that matters for what follows.
#[derive(Debug)]
pub enum News {
    Issued(Issued),
    KeyEnrolled(KeyTold),
    KeyRevoked(String),
    Rotated { new: String },
    Recovered { anchored: String, had: u64, origin: String },
    Exported { partition: String, month: Month },
    Dropped { partition: String },
}

/// A month whose events were written to a file: how many, and between which indexes.
#[derive(Clone, Debug)]
pub struct Month {
    events: u64,
    range: RangeInclusive<u64>,
}

/// The parts of a body that columns repeat.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow)]
    time: Text<'a>,
    #[serde(borrow)]
    actor: Text<'a>,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow, default)]
    agent: Option<Text<'a>>,
    #[serde(borrow, default)]
    sponsor: Option<Text<'a>>,
    #[serde(borrow, default)]
    scope: Option<Text<'a>>,
    #[serde(borrow, default)]
    lease_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    session_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    detail: Option<&'a RawValue>,
}

/// Looks at one line by itself.
pub fn examine(line: &str) -> Examined {
    let line = line.strip_suffix('\n').unwrap_or(line);
    if let Some(entry) = line.strip_prefix("{\"event\":") {
        return examine_entry(entry).unwrap_or(Examined::Foreign);
    }
    if line.starts_with("{\"waiting\":") {
        let Ok(Waiting { waiting, body }) = serde_json::from_str(line) else {
            return Examined::Foreign;
        };
        let (faults, news) = compare(&waiting, body.get());
        let id = waiting.id.0.into_owned();
        let recorded_at = waiting.recorded_at.0.into_owned();
        return Examined::Waiting { id, recorded_at, faults, news };
    }
    serde_json::from_str(line).map_or(Examined::Foreign, |it| Examined::Other(Box::new(it)))
}

/// Looks at an entry, whose line is cut and not parsed as a whole: the body is read once. Columns are an object of strings, in which
/// no quotation mark stands by itself, so the cut is where it looks to be.
fn examine_entry(line: &str) -> Option<Examined> {
    let end = line.find("},\"body\":")?;
    let event: Columns<'_> = serde_json::from_str(&line[..=end]).ok()?;
    let body = line[end..].strip_prefix("},\"body\":")?.strip_suffix('}')?;
    let (index, logged) = (event.index?, event.leaf_hash?);
    let (mut faults, news) = compare(&event, body);
    if leaf_hash(body.as_bytes()) != logged {
        faults.insert(0, Fault::BodyChanged);
    }
    Some(Examined::Entry(Box::new(ExaminedEntry {
        index,
        // What was logged, so that the entries after one that was changed are judged by themselves.
        hash: logged,
        id: event.id.0.into_owned(),
        recorded_at: event.recorded_at.0.into_owned(),
        faults,
        news,
    })))
}

/// Compares the columns with the bytes.
fn compare(columns: &Columns<'_>, text: &str) -> (Vec<Fault>, Option<News>) {
    let Ok(body) = serde_json::from_str::<Body<'_>>(text) else {
        return (vec![Fault::ColumnDiffers("body")], None);
    };
    let data = &body.data;
    let optional = [
        ("agent", &columns.agent, &data.agent),
        ("sponsor", &columns.sponsor, &data.sponsor),
        ("scope", &columns.scope, &data.scope),
        ("lease_id", &columns.lease_id, &data.lease_id),
        ("session_id", &columns.session_id, &data.session_id),
    ];
    let mut faults: Vec<_> = optional
        .into_iter()
        .filter(|(_, column, told)| column != told)
        .map(|(name, ..)| Fault::ColumnDiffers(name))
        .collect();
    let required = [
        ("id", columns.id == body.id),
        ("type", columns.kind == body.kind),
        ("actor", columns.actor == body.actor),
        ("occurred_at", apart(&columns.occurred_at, &body.time) == Some(Duration::ZERO)),
        ("recorded_at", apart(&columns.recorded_at, &body.time).is_some_and(|it| it <= SKEW)),
        ("doc", !columns.doc_differs),
    ];
    faults.extend(
        required.into_iter().filter(|(_, same)| !same).map(|(name, _)| Fault::ColumnDiffers(name)),
    );
    let detail = data.detail.map_or("{}", RawValue::get);
    let lease = data.lease_id.as_ref().map(|it| it.as_str().to_owned());
    (faults, news(body.kind.as_str(), lease, detail))
}

/// How far apart two times are; nothing if one is none.
fn apart(one: &Text<'_>, other: &Text<'_>) -> Option<Duration> {
    if one == other {
        return Some(Duration::ZERO);
    }
    let read = |it: &Text<'_>| OffsetDateTime::parse(it.as_str(), &Rfc3339).ok();
    Some((read(one)? - read(other)?).abs())
}

fn news(kind: &str, lease: Option<String>, detail: &str) -> Option<News> {
    if !["lease.issued", "key.enrolled", "key.revoked"].contains(&kind) && !kind.starts_with("log.")
    {
        return None;
    }
    let detail: serde_json::Value = serde_json::from_str(detail).ok()?;
    let text = |pointer: &str| detail.pointer(pointer)?.as_str().map(str::to_owned);
    let number = |pointer: &str| detail.pointer(pointer)?.as_u64();
    match kind {
        "lease.issued" => {
            let told = text("/tier");
            let tier: Option<Tier> = told.as_ref().and_then(|it| it.parse().ok());
            // A tier that nobody knows has to be signed. Events of the first versions told none: there, an approval may follow.
            let signed = told.is_some() && tier.is_none_or(|it| Tier::StagingSensitive <= it);
            let statement_sha256 = text("/statement_sha256");
            (signed || told.is_none()).then_some(News::Issued(Issued {
                lease: lease?,
                signed,
                statement_sha256,
            }))
        }
        // At bootstrap; by an act; with the person that an act adds.
        "key.enrolled" => {
            let whose = [
                ("/person/key", "/person/handle"),
                ("/act/key", "/act/handle"),
                ("/act/person/key", "/act/person/handle"),
            ];
            whose.into_iter().find_map(|(key, handle)| {
                Some(News::KeyEnrolled(KeyTold {
                    fingerprint: text(&format!("{key}/fingerprint"))?,
                    assurance: text(&format!("{key}/assurance"))?,
                    person: text(handle)?,
                }))
            })
        }
        "key.revoked" => text("/act/fingerprint").map(News::KeyRevoked),
        "log.rotated" => Some(News::Rotated { new: text("/new")? }),
        "log.recovered" => Some(News::Recovered {
            anchored: text("/anchored")?,
            had: number("/size")?,
            origin: text("/origin")?,
        }),
        "log.partition-exported" => {
            let range = number("/first_index")?..=number("/last_index")?;
            let month = Month { events: number("/events")?, range };
            Some(News::Exported { partition: text("/partition")?, month })
        }
        "log.partition-dropped" => Some(News::Dropped { partition: text("/partition")? }),
        _ => None,
    }
}

/// Takes the lines of a file in their order.
pub struct Verifier {
    options: Options,
    report: Report,
    line: u64,
    frontier: Frontier,
    recorded_at: String,
    /// Now in force.
    origin: String,
    key: String,
    /// Told by an entry, and in force with the checkpoint that covers it.
    next_key: Option<String>,
    next_origin: Option<String>,
    /// Checkpoints from elsewhere that are not reached yet, by size.
    anchors: BTreeMap<u64, Vec<SignedCheckpoint>>,
    /// The index of the next entry: how many there are in the tree, as long as none is missing.
    next: u64,
    /// Those that were, with the root there: until a checkpoint says whose story it is.
    reached: Vec<(SignedCheckpoint, Hash)>,
    /// That a month was dropped is told by an event under no checkpoint.
    on_its_word: bool,
    /// The root did not hold once: that it does not later is no news.
    broken: bool,
    /// People's keys so far, by fingerprint; of one that was revoked, nothing.
    keys: HashMap<String, Option<KeyTold>>,
    /// Entries without their event, one after the other, and what was good before them.
    pruned: Vec<(RangeInclusive<u64>, Option<Good>)>,
    /// By partition: what was exported, and is here all the same; and what was dropped then.
    exported: HashMap<String, Month>,
    dropped: Vec<Month>,
    /// A lease that was issued, and whose approval has to be the next line.
    issued: Option<(Issued, String)>,
    end: Option<End>,
}

impl Verifier {
    pub fn new(options: Options) -> Self {
        let mut anchors: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for anchor in &options.anchors {
            anchors.entry(anchor.checkpoint.size).or_default().push(anchor.clone());
        }
        Self {
            report: Report { anchors: options.anchors.len() as u64, ..Report::default() },
            options,
            line: 0,
            frontier: Frontier::default(),
            recorded_at: String::new(),
            origin: String::new(),
            key: String::new(),
            next_key: None,
            next_origin: None,
            anchors,
            next: 0,
            reached: Vec::new(),
            on_its_word: false,
            broken: false,
            keys: HashMap::new(),
            pruned: Vec::new(),
            exported: HashMap::new(),
            dropped: Vec::new(),
            issued: None,
            end: None,
        }
    }

    /// Takes the next line.
    pub fn take(&mut self, examined: Examined) {
        self.line += 1;
        if self.end.is_some() || (self.line == 1) != is_header(&examined) {
            return self.find(Fault::Line(self.line), None);
        }
        let is_approval =
            matches!(&examined, Examined::Other(it) if matches!(**it, Line::Approval(_)));
        if !is_approval {
            self.approval_is_due();
        }
        match examined {
            Examined::Entry(entry) => self.entry(*entry),
            Examined::Waiting { id, recorded_at, faults, news } => {
                // A month may have been dropped this very moment; nobody has signed that yet.
                if let Some(it @ News::Dropped { .. }) = news {
                    self.on_its_word = true;
                    self.put_away(it);
                }
                self.waiting(id, &recorded_at, faults);
            }
            Examined::Other(line) => self.other(*line),
            Examined::Foreign => self.find(Fault::Line(self.line), None),
        }
    }

    /// Says what the file comes to.
    pub fn finish(mut self) -> Report {
        self.approval_is_due();
        self.check_pruned();
        if self.on_its_word && 0 < self.report.pruned {
            self.find(Fault::DroppedOnItsWord, None);
        }
        let size = self.next;
        if self.report.good.as_ref().map_or(0, |it| it.size) < size && !self.broken {
            self.find(Fault::NotCovered, None);
        }
        match self.end {
            None => self.find(Fault::Truncated, None),
            Some(end) if end.size != size => self.find(Fault::Gap(end.size), None),
            Some(end) if end.waiting != self.report.waiting => self.find(Fault::Truncated, None),
            Some(_) => {}
        }
        self.compare_reached();
        for anchor in std::mem::take(&mut self.anchors).into_values().flatten() {
            // Whoever took up a log after a loss has said which anchored checkpoint it was behind. Of a part, or of one with a
            // gap, there is nothing more to say.
            if self.end.is_some() && self.frontier.size() == size {
                self.anchor_ahead(&anchor);
            }
        }
        self.report
    }

    /// No approval has followed the lease that was issued.
    fn approval_is_due(&mut self) {
        if let Some((issued, event)) = self.issued.take()
            && issued.signed
        {
            self.find(Fault::ApprovalMissing(issued.lease), Some(event));
        }
    }

    fn find(&mut self, fault: Fault, event: Option<String>) {
        self.find_at(fault, self.next, event);
    }

    fn find_at(&mut self, fault: Fault, at: u64, event: Option<String>) {
        let good = self.report.good.clone();
        self.find_after(good, fault, at, event);
    }

    fn find_after(&mut self, good: Option<Good>, fault: Fault, at: u64, event: Option<String>) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(Finding { fault, at, event, good });
        } else {
            self.report.more += 1;
        }
    }

    fn other(&mut self, line: Line) {
        match line {
            Line::Export(header) => self.header(header),
            Line::Checkpoint(note) => self.checkpoint(&note),
            Line::Pruned(Pruned { index, leaf_hash }) => {
                self.in_order(index);
                match self.pruned.last_mut() {
                    Some((last, _)) if *last.end() + 1 == index => *last = *last.start()..=index,
                    _ => self.pruned.push((index..=index, self.report.good.clone())),
                }
                self.report.pruned += 1;
                self.append(leaf_hash);
            }
            Line::Approval(approval) => self.approval(&approval),
            Line::Unrecorded(Unrecorded { kind, id, event }) => {
                self.find(Fault::Unrecorded { kind, id, event }, None);
            }
            Line::End(end) => self.end = Some(end),
        }
    }

    fn header(&mut self, header: Header) {
        if header.format != FORMAT {
            self.find(Fault::Line(self.line), None);
        }
        if self.options.key.as_ref().is_some_and(|it| *it != header.key) {
            self.find(Fault::NotThePinnedKey, None);
        }
        self.report.pinned = self.options.key.is_some();
        if header.key.split('+').next() != Some(header.origin.as_str()) {
            self.find(Fault::Origin, None);
        }
        // What is asked for counts, whatever the file says.
        self.key = self.options.key.clone().unwrap_or_else(|| header.key.clone());
        self.origin.clone_from(&header.origin);
        self.report.origin = header.origin;
        self.report.key.clone_from(&self.key);
        self.report.exported_at = Some(header.exported_at);
    }

    /// Says so if this is not the next entry. What follows can be judged only by itself then.
    fn in_order(&mut self, index: u64) {
        if index != self.next {
            self.find(Fault::Gap(index), None);
            self.broken = true;
            self.next = index;
        }
    }

    fn entry(&mut self, entry: ExaminedEntry) {
        let ExaminedEntry { index, hash, id, recorded_at, faults, news } = entry;
        for fault in faults {
            self.find_at(fault, index, Some(id.clone()));
        }
        self.in_order(index);
        self.recorded_at = recorded_at;
        match news {
            Some(News::Issued(issued)) => self.issued = Some((issued, id)),
            Some(News::KeyEnrolled(key)) => {
                self.keys.entry(key.fingerprint.clone()).or_insert(Some(key));
            }
            Some(News::KeyRevoked(key)) => {
                self.keys.insert(key, None);
            }
            Some(News::Rotated { new }) => self.next_key = Some(new),
            Some(News::Recovered { anchored, had, origin }) => {
                self.recovered(&anchored, had, origin);
            }
            Some(it @ (News::Exported { .. } | News::Dropped { .. })) => self.put_away(it),
            None => {}
        }
        self.append(hash);
    }

    /// A month was exported, or dropped after that.
    fn put_away(&mut self, news: News) {
        match news {
            News::Exported { partition, month } => drop(self.exported.insert(partition, month)),
            News::Dropped { partition } => self.dropped.extend(self.exported.remove(&partition)),
            _ => {}
        }
    }

    /// Events that are not here are those of months that were dropped, and no more of them.
    fn check_pruned(&mut self) {
        let pruned = std::mem::take(&mut self.pruned);
        let told = self.dropped.iter().fold(0, |all: u64, it| all.saturating_add(it.events));
        let found = self.report.findings.len();
        // Months are next to each other, and overlap a little: who writes first is not always recorded first.
        let mut dropped: Vec<_> = self.dropped.iter().map(|it| it.range.clone()).collect();
        dropped.sort_by_key(|it| *it.start());
        for (missing, good) in &pruned {
            let mut next = *missing.start();
            for range in dropped.iter().filter(|it| it.end() >= missing.start()) {
                if range.contains(&next) {
                    next = range.end().saturating_add(1);
                }
            }
            if next <= *missing.end() {
                self.find_after(good.clone(), Fault::Deleted, next, None);
            }
        }
        // Somewhere in the months that were dropped: other months' events are between theirs.
        if let Some((first, good)) = pruned.first()
            && self.report.findings.len() == found
            && told < self.report.pruned
        {
            self.find_after(good.clone(), Fault::Deleted, *first.start(), None);
        }
    }

    fn append(&mut self, hash: Hash) {
        self.report.entries += 1;
        let gap = self.next != self.frontier.size();
        self.next = self.next.saturating_add(1);
        if gap {
            return;
        }
        self.frontier.append(hash, |_| {});
        if let Some(anchors) = self.anchors.remove(&self.frontier.size()) {
            let root = self.frontier.root();
            self.reached.extend(anchors.into_iter().map(|it| (it, root)));
        }
    }

    /// Compares the anchored checkpoints that were reached since the last one. One of another name is about entries that are not
    /// here.
    fn compare_reached(&mut self) {
        for (anchor, root) in std::mem::take(&mut self.reached) {
            let size = anchor.checkpoint.size;
            if anchor.checkpoint.origin != self.origin {
                self.anchors.entry(size).or_default().push(anchor);
            } else if let Err(error) = self.verify_anchor(&anchor) {
                self.find(Fault::AnchorSignature(size, error), None);
            } else if anchor.checkpoint.root != root {
                self.find(Fault::Forked(size), None);
            }
        }
    }

    fn verify_anchor(&self, anchor: &SignedCheckpoint) -> Result<(), NoteError> {
        let origin = &anchor.checkpoint.origin;
        let known = [Some(&self.key), self.next_key.as_ref()].into_iter().flatten();
        known
            .filter_map(|it| renamed(it, origin))
            .map(|it| anchor.verify(&it))
            .find(|it| *it != Err(NoteError::NotSigned))
            .unwrap_or(Err(NoteError::NotSigned))
    }

    /// An anchored checkpoint that the file never came to.
    fn anchor_ahead(&mut self, anchor: &SignedCheckpoint) {
        let size = anchor.checkpoint.size;
        let told = self.report.findings.iter().any(|it| {
            matches!(it.fault, Fault::Lost { anchored, had } if had < size && size <= anchored)
        });
        if !told {
            self.find(Fault::Behind(size), None);
        }
    }

    fn recovered(&mut self, anchored: &str, had: u64, origin: String) {
        let anchored =
            SignedCheckpoint::parse(anchored).ok().filter(|it| self.verify_anchor(it).is_ok());
        // Nobody takes up a log again that was not behind, nor under the same name.
        match anchored {
            Some(it) if had < it.checkpoint.size && origin != self.origin => {
                self.find(Fault::Lost { had, anchored: it.checkpoint.size }, None);
                self.next_origin = Some(origin);
            }
            _ => self.find(Fault::Origin, None),
        }
    }

    fn checkpoint(&mut self, note: &str) {
        self.report.checkpoints += 1;
        let signed = match SignedCheckpoint::parse(note) {
            Ok(signed) => signed,
            Err(error) => return self.find(Fault::Checkpoint(error), None),
        };
        let checkpoint = &signed.checkpoint;
        let origin = self.next_origin.as_ref().unwrap_or(&self.origin);
        if checkpoint.origin != *origin {
            return self.find(Fault::Origin, None);
        }
        let named = |key: &str| renamed(key, &checkpoint.origin).unwrap_or_default();
        // A change of keys is signed by the old one and by the new.
        let keys = [Some(named(&self.key)), self.next_key.as_deref().map(named)];
        for key in keys.into_iter().flatten() {
            if let Err(error) = signed.verify(&key) {
                return self.find(Fault::Checkpoint(error), None);
            }
        }
        if checkpoint.size != self.frontier.size() {
            let size = checkpoint.size;
            if !self.broken {
                self.find(Fault::Order(size), None);
            }
            return;
        }
        if checkpoint.root != self.frontier.root() {
            if !std::mem::replace(&mut self.broken, true) {
                self.find(Fault::Root, None);
            }
            return;
        }
        self.key = self.next_key.take().unwrap_or_else(|| std::mem::take(&mut self.key));
        self.origin = self.next_origin.take().unwrap_or_else(|| std::mem::take(&mut self.origin));
        self.compare_reached();
        self.report.good =
            Some(Good { size: self.frontier.size(), recorded_at: self.recorded_at.clone() });
    }

    fn waiting(&mut self, id: String, recorded_at: &str, faults: Vec<Fault>) {
        self.report.waiting += 1;
        for fault in faults {
            self.find(fault, Some(id.clone()));
        }
        let since = OffsetDateTime::parse(recorded_at, &Rfc3339).ok();
        let age = self.report.exported_at.zip(since).map(|(now, since)| now - since);
        if age.is_none_or(|it| self.options.covered_within < it) {
            self.find(Fault::Stale, Some(id));
        }
    }

    fn approval(&mut self, it: &Approval) {
        let lease = it.lease.id.to_string();
        let issued = self.issued.take();
        let event = issued.as_ref().map(|(_, event)| event.clone());
        self.report.approvals += 1;
        let not_good = |this: &mut Self, why: String| {
            this.find(Fault::Approval { lease: lease.clone(), why }, event.clone());
        };
        let statement = STANDARD.decode(&it.statement).ok();
        let Some(statement) = statement.and_then(|it| LeaseStatement::from_bytes(it).ok()) else {
            return not_good(self, ApprovalFault::Statement.to_string());
        };
        for finding in approval::check(&it.lease, &statement, &it.signatures) {
            not_good(self, finding.to_string());
        }
        if it.lease.approved_at.is_none() {
            not_good(self, ApprovalFault::TooFew.to_string());
        }
        match &issued {
            // An entry of before these were told names no statement.
            Some((issued, _))
                if issued.lease == lease
                    && issued
                        .statement_sha256
                        .as_ref()
                        .is_none_or(|it| *it == statement.sha256()) => {}
            _ => not_good(self, "it is not what the log says was issued".to_owned()),
        }
        for signature in &it.signatures {
            let key = &signature.key.fingerprint;
            match self.keys.get(key) {
                Some(Some(told))
                    if told.person == signature.person
                        && told.assurance == signature.key.assurance.as_str() => {}
                None if !self.pruned.is_empty() => {
                    self.find(Fault::KeyOnItsWord(key.clone()), event.clone());
                }
                _ => self.find(Fault::Key(key.clone()), event.clone()),
            }
        }
    }
}

/// Checks a file, on as many threads as there are. `progress` hears how many entries were checked.
pub fn verify(
    mut file: impl BufRead,
    options: Options,
    mut progress: impl FnMut(u64),
) -> io::Result<Report> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut verifier = Verifier::new(options);
    loop {
        let chunks: Vec<_> = (0..threads)
            .map(|_| read_chunk(&mut file))
            .filter(|it| it.as_ref().map_or(true, |it| !it.is_empty()))
            .collect::<io::Result<_>>()?;
        if chunks.is_empty() {
            return Ok(verifier.finish());
        }
        let examined: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> =
                chunks.iter().map(|chunk| scope.spawn(|| examine_chunk(chunk))).collect();
            running.into_iter().map(|it| it.join().expect("examining does not panic")).collect()
        });
        examined.into_iter().flatten().for_each(|it| verifier.take(it));
        progress(verifier.frontier.size());
    }
}

/// Whole lines, as they are: what is no text is nothing of ours.
fn read_chunk(file: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::new();
    while chunk.len() < CHUNK_BYTES {
        let before = chunk.len();
        let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
        file.by_ref().take(limit).read_until(b'\n', &mut chunk)?;
        if chunk.len() == before {
            break;
        }
    }
    Ok(chunk)
}

fn examine_chunk(chunk: &[u8]) -> Vec<Examined> {
    let lines = chunk.split_inclusive(|it| *it == b'\n');
    lines.map(|it| str::from_utf8(it).map_or(Examined::Foreign, examine)).collect()
}

fn is_header(examined: &Examined) -> bool {
    matches!(examined, Examined::Other(it) if matches!(**it, Line::Export(_)))
}
