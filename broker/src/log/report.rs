//! What checking a log comes to: what is wrong, where, and since which good checkpoint.

use std::fmt::{self, Write as _};

use serde_json::json;
use time::OffsetDateTime;

use super::checkpoint::NoteError;
use crate::render::name;

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
    #[error(
        "the events of {0} entries were put away with their months: their files were not given"
    )]
    PutAway(u64),
    #[error("nothing in the file is under a checkpoint")]
    NothingSigned,
    #[error("no anchor answered: that nothing newer is gone is on the log's own word")]
    NoAnchor,
    #[error("the log is signed by another key than ours")]
    NotOurKey,
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
            Self::PutAway(_) => "put-away",
            Self::NothingSigned => "nothing-signed",
            Self::NoAnchor => "no-anchor",
            Self::NotOurKey => "not-our-key",
            Self::KeyOnItsWord(_) => "key-on-its-word",
            Self::Truncated => "truncated",
        }
    }

    /// Whether it says that something is not there to be checked, not that something was changed.
    pub const fn is_incomplete(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. }
                | Self::PutAway(_)
                | Self::NothingSigned
                | Self::NoAnchor
                | Self::KeyOnItsWord(_)
                | Self::Truncated
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
    /// Entries without their event.
    pub pruned: u64,
    /// Entries whose events are in files of months that were put away.
    pub put_away: u64,
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
        let of = match (self.pruned, self.put_away) {
            (0, 0) => String::new(),
            (pruned, 0) => format!(", of them {pruned} without their event"),
            (0, put_away) => format!(", of them {put_away} from files of months"),
            (pruned, put_away) => format!(
                ", of them {put_away} from files of months, and {pruned} without their event"
            ),
        };
        line("entries", format!("{}{of}", self.entries));
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
        let anchors = match self.anchors {
            0 => "NONE compared: that nothing newer is gone is on the log's own word".to_owned(),
            some => format!("{some} compared"),
        };
        line("anchors", anchors);
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
            "put_away": self.put_away,
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
