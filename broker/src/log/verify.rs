//! Checks an exported log with nothing but the file, the log's key, and checkpoints that are known from elsewhere.
//!
//! In two steps. [`examine`] looks at one line by itself, and may run on as many threads as there are. [`Verifier`] takes what it
//! found in the order of the file. Neither keeps more than the longest line, the tree's right edge, and who holds which key: a log
//! of any length takes the same memory.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, Read as _};
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::{mem, thread};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memchr_iter;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::checkpoint::{NoteError, SignedCheckpoint, renamed};
pub use super::examine::{Examined, examine};
use super::examine::{ExaminedEntry, Issued, KeyTold, Month, News};
use super::export::{Approval, End, FORMAT, Header, Line, MAX_LINE_BYTES, Pruned, Unrecorded};
pub use super::months::MonthFile;
use super::months::Months;
pub use super::report::{Fault, Finding, Good, Report, Verdict};
use super::tree::{Frontier, Hash};
use crate::approval::{self, Fault as ApprovalFault};
use crate::statement::LeaseStatement;

/// What one thread checks at a time: small enough that it stays in a core's cache, large enough that threads do not matter.
const CHUNK_BYTES: usize = 256 * 1024;
/// More would wait for their turn: an eighth of the work or more is done in the order of the file, by one at a time.
const MAX_THREADS: usize = 8;
/// RFC 3339, with nanoseconds and an offset.
const MAX_TIME_BYTES: usize = 40;
/// So many findings are told one by one; of the others, how many there are.
const MAX_FINDINGS: usize = 100;

/// What the one who checks knows from elsewhere.
#[derive(Clone, Debug)]
pub struct Options {
    /// The verifier key that the log began with. Without it, the file vouches for itself.
    pub key: Option<String>,
    /// Checkpoints that were kept elsewhere.
    pub anchors: Vec<SignedCheckpoint>,
    /// Somewhere checkpoints are kept: that none is compared is worth a word.
    pub anchored: bool,
    /// The verifier key that signs now, for whoever keeps the key itself.
    pub signed_by: Option<String>,
    /// No event may be under no checkpoint for longer.
    pub covered_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key: None,
            anchors: Vec::new(),
            anchored: false,
            signed_by: None,
            covered_within: Duration::seconds(10),
        }
    }
}

/// Entries whose event is not in the file, one after the other.
struct Gone {
    range: RangeInclusive<u64>,
    /// A month's file has them.
    given: bool,
    /// What was good before them.
    good: Option<Good>,
}

/// The same numbers, in ranges that are in order and do not touch.
fn joined(mut ranges: Vec<RangeInclusive<u64>>) -> Vec<RangeInclusive<u64>> {
    ranges.sort_by_key(|it| *it.start());
    let mut joined: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
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
    /// The root did not hold once: that it does not later is no news.
    broken: bool,
    /// People's keys so far, by fingerprint; of one that was revoked, nothing.
    keys: HashMap<String, Option<KeyTold>>,
    /// Entries whose event is not in the file.
    gone: Vec<Gone>,
    /// By partition: what was exported, and is here all the same; and what was dropped then.
    exported: HashMap<String, Month>,
    dropped: HashMap<String, Month>,
    /// A lease that was issued, and whose approval has to be the next line.
    issued: Option<(Issued, String)>,
    end: Option<End>,
    months: Months,
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
            broken: false,
            keys: HashMap::new(),
            gone: Vec::new(),
            exported: HashMap::new(),
            dropped: HashMap::new(),
            issued: None,
            end: None,
            months: Months::default(),
        }
    }

    /// Takes the next line.
    pub fn take(&mut self, examined: Examined<'_>) {
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
            Examined::Entry(entry) => self.entry(entry),
            Examined::Waiting { id, recorded_at, faults, news } => {
                // A month may have been dropped this very moment, and nobody has signed that yet: whether it was exported is for
                // what is signed to say, and so are the months before it.
                if let Some(News::Dropped { partition, .. }) = news.map(|it| *it) {
                    self.put_away(News::Dropped { partition, before: Vec::new() });
                }
                self.waiting(id.into_owned(), &recorded_at, faults);
            }
            Examined::Other(line) => self.other(*line),
            Examined::Foreign => self.find(Fault::Line(self.line), None),
        }
    }

    /// Says what the file comes to.
    pub fn finish(mut self) -> Report {
        self.approval_is_due();
        self.check_gone();
        let size = self.next;
        match self.report.good.as_ref().map(|it| it.size) {
            None if size == 0 => self.find(Fault::NothingSigned, None),
            good if good.unwrap_or(0) < size && !self.broken => self.find(Fault::NotCovered, None),
            _ => {}
        }
        match self.end {
            None => self.find(Fault::Truncated, None),
            Some(end) if end.size != size => self.find(Fault::Gap(end.size), None),
            Some(end) if end.waiting != self.report.waiting => self.find(Fault::Truncated, None),
            Some(_) => {}
        }
        if self.options.anchored && self.options.anchors.is_empty() {
            self.find(Fault::NoAnchor, None);
        }
        let ours = self.options.signed_by.as_ref().map(|it| renamed(it, &self.origin));
        if 0 < size && ours.is_some_and(|it| it != renamed(&self.key, &self.origin)) {
            self.find(Fault::NotOurKey, None);
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
            Line::Pruned(it) => self.pruned(it),
            Line::Approval(approval) => self.approval(&approval),
            Line::Unrecorded(Unrecorded { kind, id, event }) => {
                self.find(Fault::Unrecorded { kind, id, event }, None);
            }
            Line::End(end) => self.end = Some(end),
        }
    }

    /// An entry without its event, unless a month's file has that.
    fn pruned(&mut self, Pruned { index, leaf_hash }: Pruned) {
        let mut found = false;
        for line in self.months.lines(index, leaf_hash) {
            match str::from_utf8(&line).map(examine) {
                Ok(Examined::Entry(entry)) => {
                    self.entry(entry);
                    found = true;
                }
                Ok(Examined::Other(it)) if found => {
                    if let Line::Approval(it) = *it {
                        self.approval(&it);
                    }
                }
                _ => {}
            }
        }
        if found {
            self.report.put_away += 1;
        } else {
            self.report.pruned += 1;
            self.in_order(index);
            self.append(leaf_hash);
        }
        match self.gone.last_mut() {
            Some(it) if it.given == found && it.range.end().checked_add(1) == Some(index) => {
                it.range = *it.range.start()..=index;
            }
            _ => {
                let good = self.report.good.clone();
                self.gone.push(Gone { range: index..=index, given: found, good });
            }
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

    fn entry(&mut self, entry: ExaminedEntry<'_>) {
        let ExaminedEntry { index, hash, id, recorded_at, faults, news } = entry;
        for fault in faults {
            self.find_at(fault, index, Some(id.clone().into_owned()));
        }
        self.in_order(index);
        // Into the room that is there: it is one a line.
        self.recorded_at.clear();
        // What is longer is no time, and is kept with many a finding.
        if recorded_at.len() <= MAX_TIME_BYTES {
            self.recorded_at.push_str(&recorded_at);
        }
        match news.map(|it| *it) {
            Some(News::Issued(issued)) => self.issued = Some((issued, id.into_owned())),
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
            // Whoever drops a month repeats those of before: the month that told of them may be gone too.
            News::Dropped { partition, before } => {
                let month = self.exported.remove(&partition);
                self.dropped.extend(month.map(|it| (partition, it)).into_iter().chain(before));
            }
            _ => {}
        }
    }

    /// Events that are not in the log's own file are those of months that were dropped, and no more of them, whoever has them.
    fn check_gone(&mut self) {
        let gone = mem::take(&mut self.gone);
        let Some(first) = gone.first() else { return };
        let found = self.report.findings.len();
        let dropped = joined(self.dropped.values().map(|it| it.range.clone()).collect());
        for Gone { range, good, .. } in &gone {
            let at = dropped.partition_point(|it| it.end() < range.start());
            let known = dropped.get(at).filter(|it| it.contains(range.start()));
            let next = known.map_or(*range.start(), |it| it.end().saturating_add(1));
            if next <= *range.end() {
                self.find_after(good.clone(), Fault::Deleted, next, None);
            }
        }
        if found < self.report.findings.len() {
            return;
        }
        // Somewhere in the months that were dropped: other months' events are between theirs.
        let told = self.dropped.values().fold(0, |all: u64, it| all.saturating_add(it.events));
        if told < self.report.pruned + self.report.put_away {
            return self.find_after(first.good.clone(), Fault::Deleted, *first.range.start(), None);
        }
        if let Some(it) = gone.iter().find(|it| !it.given) {
            let fault = Fault::PutAway(self.report.pruned);
            self.find_after(it.good.clone(), fault, *it.range.start(), None);
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
                None if 0 < self.report.pruned => {
                    self.find(Fault::KeyOnItsWord(key.clone()), event.clone());
                }
                _ => self.find(Fault::Key(key.clone()), event.clone()),
            }
        }
    }
}

/// A file that several threads check, and whose turn it is to take what they found.
struct Queue<R, T> {
    file: R,
    /// Comes from the thread with the chunk before the next one.
    turn: Receiver<T>,
}

/// Checks a file, on as many threads as there are. `progress` hears how many entries were checked.
pub fn verify(
    file: impl BufRead + Send,
    options: Options,
    progress: impl FnMut(u64) + Send,
) -> io::Result<Report> {
    verify_with(file, Vec::new(), options, progress)
}

/// Checks a file together with those of months that were put away.
pub fn verify_with(
    file: impl BufRead + Send,
    months: Vec<MonthFile>,
    options: Options,
    progress: impl FnMut(u64) + Send,
) -> io::Result<Report> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let (first, turn) = sync_channel(1);
    let verifier = Verifier { months: Months::new(months), ..Verifier::new(options) };
    first.send((verifier, progress)).expect("it is ours");
    let queue = Mutex::new(Queue { file, turn });
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| check_chunks(&queue))).collect();
        let mut ended = running.into_iter().map(|it| it.join().expect("checking does not panic"));
        ended.try_for_each(|it| it)
    })?;
    let turn = queue.into_inner().expect("nobody panicked").turn;
    let (mut verifier, _) = turn.recv().expect("the last chunk's");
    verifier.months.failed()?;
    Ok(verifier.finish())
}

/// Examines one chunk after the other while others do the same, and takes each when its turn comes.
fn check_chunks(queue: &Mutex<Queue<impl BufRead, (Verifier, impl FnMut(u64))>>) -> io::Result<()> {
    let mut chunk = Vec::new();
    loop {
        let (turn, next) = {
            let mut queue = queue.lock().expect("reading does not panic");
            read_chunk(&mut queue.file, &mut chunk)?;
            if chunk.is_empty() {
                return Ok(());
            }
            let (next, after) = sync_channel(1);
            (mem::replace(&mut queue.turn, after), next)
        };
        let examined = examine_chunk(&chunk);
        // Nobody has it any more if another thread has panicked.
        let Ok((mut verifier, mut progress)) = turn.recv() else { return Ok(()) };
        for it in examined {
            verifier.take(it);
        }
        progress(verifier.frontier.size());
        let _ = next.send((verifier, progress));
    }
}

/// Whole lines, as they are: what is no text is nothing of ours.
fn read_chunk(file: &mut impl BufRead, chunk: &mut Vec<u8>) -> io::Result<()> {
    let limit = |bytes| u64::try_from(bytes).unwrap_or(u64::MAX);
    chunk.clear();
    file.by_ref().take(limit(CHUNK_BYTES)).read_to_end(chunk)?;
    if chunk.last().is_some_and(|it| *it != b'\n') {
        file.by_ref().take(limit(MAX_LINE_BYTES)).read_until(b'\n', chunk)?;
    }
    Ok(())
}

fn examine_chunk(chunk: &[u8]) -> Vec<Examined<'_>> {
    let mut from = 0;
    let ends = memchr_iter(b'\n', chunk).map(|it| it + 1).chain([chunk.len()]);
    let lines = ends.map(|end| &chunk[mem::replace(&mut from, end)..end]);
    lines
        .filter(|it| !it.is_empty())
        .map(|it| match str::from_utf8(it) {
            // A longer one may have been read whole, or not.
            Ok(line) if line.len() <= MAX_LINE_BYTES => examine(line),
            _ => Examined::Foreign,
        })
        .collect()
}

fn is_header(examined: &Examined) -> bool {
    matches!(examined, Examined::Other(it) if matches!(**it, Line::Export(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_where_they_meet() {
        assert_eq!(joined(Vec::new()), []);
        assert_eq!(joined(vec![8..=9, 0..=3, 2..=5, 6..=6, 1..=1]), [0..=6, 8..=9]);
        assert_eq!(joined(vec![5..=u64::MAX, 0..=9, u64::MAX..=u64::MAX]), [0..=u64::MAX]);
    }
}
