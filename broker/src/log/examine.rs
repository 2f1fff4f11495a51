//! One line of an exported log, as far as it can be judged by itself: hashed, compared and parsed.

mod plain;

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::export::{Columns, Line, Text, Waiting};
use super::report::Fault;
use super::tree::{Hash, leaf_hash};
use crate::lease::Tier;

/// As far apart as the database's clock and a server's may be.
const SKEW: Duration = Duration::minutes(15);

/// One line, as far as it can be judged alone.
#[derive(Debug)]
pub enum Examined<'a> {
    Entry(ExaminedEntry<'a>),
    Waiting {
        id: Cow<'a, str>,
        recorded_at: Cow<'a, str>,
        faults: Vec<Fault>,
        news: Option<Box<News>>,
    },
    Other(Box<Line>),
    /// Nothing of ours.
    Foreign,
}

#[derive(Debug)]
pub struct ExaminedEntry<'a> {
    pub(super) index: u64,
    pub(super) hash: Hash,
    pub(super) id: Cow<'a, str>,
    pub(super) recorded_at: Cow<'a, str>,
    pub(super) faults: Vec<Fault>,
    pub(super) news: Option<Box<News>>,
}

impl ExaminedEntry<'_> {
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
    pub(super) lease: String,
    /// People had to sign for it.
    pub(super) signed: bool,
    pub(super) statement_sha256: Option<String>,
}

/// A key, as the event that enrolled it tells.
#[derive(Debug)]
pub struct KeyTold {
    pub(super) fingerprint: String,
    pub(super) person: String,
    pub(super) assurance: String,
}

/// What an event says that matters for what follows.
#[derive(Debug)]
pub enum News {
    Issued(Issued),
    KeyEnrolled(KeyTold),
    KeyRevoked(String),
    Rotated {
        new: String,
    },
    Recovered {
        anchored: String,
        had: u64,
        origin: String,
    },
    Exported {
        partition: String,
        month: Month,
    },
    /// And the months that were dropped before it.
    Dropped {
        partition: String,
        before: Vec<(String, Month)>,
    },
}

/// A month whose events were written to a file: how many, and between which indexes.
#[derive(Clone, Debug)]
pub struct Month {
    pub(super) events: u64,
    pub(super) range: RangeInclusive<u64>,
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
pub fn examine(line: &str) -> Examined<'_> {
    let line = line.strip_suffix('\n').unwrap_or(line);
    if let Some(entry) = line.strip_prefix("{\"event\":") {
        let examined = plain::examine(entry).or_else(|| examine_entry(entry));
        return examined.map_or(Examined::Foreign, Examined::Entry);
    }
    if line.starts_with("{\"waiting\":") {
        let Ok(Waiting { waiting, body }) = serde_json::from_str(line) else {
            return Examined::Foreign;
        };
        let (faults, news) = compare(&waiting, body.get());
        let (id, recorded_at) = (waiting.id.0, waiting.recorded_at.0);
        return Examined::Waiting { id, recorded_at, faults, news };
    }
    serde_json::from_str(line).map_or(Examined::Foreign, |it| Examined::Other(Box::new(it)))
}

/// Looks at an entry, whose line is cut and not parsed as a whole: the body is read once. Columns are an object of strings, in which
/// no quotation mark stands by itself, so the cut is where it looks to be.
fn examine_entry(line: &str) -> Option<ExaminedEntry<'_>> {
    let end = line.find("},\"body\":")?;
    let event: Columns<'_> = serde_json::from_str(&line[..=end]).ok()?;
    let body = line[end..].strip_prefix("},\"body\":")?.strip_suffix('}')?;
    let (index, logged) = (event.index?, event.leaf_hash?);
    let (mut faults, news) = compare(&event, body);
    if leaf_hash(body.as_bytes()) != logged {
        faults.insert(0, Fault::BodyChanged);
    }
    Some(ExaminedEntry {
        index,
        // What was logged, so that the entries after one that was changed are judged by themselves.
        hash: logged,
        id: event.id.0,
        recorded_at: event.recorded_at.0,
        faults,
        news,
    })
}

/// Compares the columns with the bytes.
fn compare(columns: &Columns<'_>, text: &str) -> (Vec<Fault>, Option<Box<News>>) {
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
        (
            "occurred_at",
            apart(columns.occurred_at.as_str(), body.time.as_str()) == Some(Duration::ZERO),
        ),
        (
            "recorded_at",
            apart(columns.recorded_at.as_str(), body.time.as_str()).is_some_and(|it| it <= SKEW),
        ),
        ("doc", !columns.doc_differs),
    ];
    faults.extend(
        required.into_iter().filter(|(_, same)| !same).map(|(name, _)| Fault::ColumnDiffers(name)),
    );
    let kind = body.kind.as_str();
    if !has_news(kind) {
        return (faults, None);
    }
    // Deeper, or with larger numbers, than anything of ours.
    let Ok(detail) = serde_json::from_str(data.detail.map_or("{}", RawValue::get)) else {
        faults.push(Fault::ColumnDiffers("body"));
        return (faults, None);
    };
    let lease = data.lease_id.as_ref().map(|it| it.as_str().to_owned());
    (faults, news(kind, lease, &detail).map(Box::new))
}

/// How far apart two times are; nothing if one is none.
fn apart(one: &str, other: &str) -> Option<Duration> {
    if one == other {
        return Some(Duration::ZERO);
    }
    let read = |it| OffsetDateTime::parse(it, &Rfc3339).ok();
    Some((read(one)? - read(other)?).abs())
}

/// Whether an event of this type may have news.
fn has_news(kind: &str) -> bool {
    ["lease.issued", "key.enrolled", "key.revoked"].contains(&kind) || kind.starts_with("log.")
}

/// A month of which an event tells, by its partition.
fn month(told: &Value) -> Option<(String, Month)> {
    let number = |name: &str| told[name].as_u64();
    let range = number("first_index")?..=number("last_index")?;
    Some((told["partition"].as_str()?.to_owned(), Month { events: number("events")?, range }))
}

fn news(kind: &str, lease: Option<String>, detail: &Value) -> Option<News> {
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
            let (partition, month) = month(detail)?;
            Some(News::Exported { partition, month })
        }
        "log.partition-dropped" => {
            let before = detail["before"].as_array().map_or(&[][..], Vec::as_slice);
            let before = before.iter().filter_map(month).collect();
            Some(News::Dropped { partition: text("/partition")?, before })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::io::{self, BufReader, Read};

    use super::*;
    use crate::log::export::{End, FORMAT, Header, MAX_LINE_BYTES};
    use crate::log::tree::Frontier;
    use crate::log::verify::{Options, Report, Verdict, Verifier, verify};
    use crate::log::{Checkpoint, LogKey};

    const TIME: &str = "2026-03-04T05:06:07Z";

    /// A log of several chunks, with a checkpoint now and then.
    fn log() -> String {
        let (key, origin) = (LogKey::from_bytes(&[7; 32]), "example.com/log".to_owned());
        let header = Header {
            format: FORMAT.to_owned(),
            origin: origin.clone(),
            key: key.verifier_key(&origin),
            exported_at: OffsetDateTime::UNIX_EPOCH,
        };
        let mut file = Line::Export(header).text();
        let mut frontier = Frontier::default();
        for n in 0..3_000_u64 {
            let why = "x".repeat(usize::try_from(n % 700).unwrap());
            let body = format!(
                r#"{{"actor":"broker","data":{{"detail":{{"why":"{why}"}}}},"id":"{n}","source":"s","specversion":"1.0","time":"{TIME}","type":"lease.lapsed"}}"#
            );
            let hash = leaf_hash(body.as_bytes());
            frontier.append(hash, |_| {});
            writeln!(
                file,
                "{{\"event\":{{\"index\":{n},\"leaf_hash\":\"{hash}\",\"seq\":{n},\"recorded_at\":\"{TIME}\",\"id\":\"{n}\",\"type\":\"lease.lapsed\",\"occurred_at\":\"{TIME}\",\"actor\":\"broker\"}},\"body\":{body}}}"
            )
            .unwrap();
            if n % 500 == 499 {
                let checkpoint =
                    Checkpoint { origin: origin.clone(), size: n + 1, root: frontier.root() };
                let signed = checkpoint.sign(&[&key]).unwrap();
                file += &Line::Checkpoint(signed.note().to_owned()).text();
            }
        }
        file + &Line::End(End { size: 3_000, waiting: 0 }).text()
    }

    fn check(file: &[u8]) -> Report {
        verify(file, Options::default(), |_| {}).unwrap()
    }

    fn codes(report: &Report) -> Vec<&'static str> {
        report.findings.iter().map(|it| it.fault.code()).collect()
    }

    #[test]
    fn chunks_come_to_what_their_lines_come_to() {
        let good = log();
        assert!(1_000_000 < good.len());
        let changed = good.replace("\"index\":1234,", "\"index\":1235,");
        let cut = &good[..good.len() - 900_000];
        for file in [&good, &changed, cut, good.trim_end(), &good.replacen('\n', "\n\n", 1)] {
            let mut verifier = Verifier::new(Options::default());
            file.split_inclusive('\n').for_each(|it| verifier.take(examine(it)));
            assert_eq!(check(file.as_bytes()).json(), verifier.finish().json());
        }
        assert_eq!(check(good.as_bytes()).verdict(), Verdict::Good);
        assert_eq!(check(good.as_bytes()).entries, 3_000);
    }

    #[test]
    fn a_line_that_is_no_text_or_too_long_is_not_of_a_log() {
        let mut file = log().into_bytes();
        let at = file.iter().rposition(|it| *it == b'x').unwrap();
        file[at] = 0xff;
        assert_eq!(codes(&check(&file))[0], "not-a-log");
        let file = log();
        let long =
            file.replacen("\"why\":\"x", &format!("\"why\":\"{}", "x".repeat(MAX_LINE_BYTES)), 1);
        assert_eq!(codes(&check(long.as_bytes()))[0], "not-a-log");
    }

    /// Reads so much, and then no more.
    struct Broken<'a>(&'a [u8]);

    impl Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("the disk is gone")),
                bytes => Ok(bytes),
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_comes_to_nothing() {
        let file = log();
        for length in [0, 10, file.len() / 2, file.len()] {
            let broken = BufReader::new(Broken(&file.as_bytes()[..length]));
            let error = verify(broken, Options::default(), |_| {}).unwrap_err();
            assert_eq!(error.to_string(), "the disk is gone");
        }
    }

    #[test]
    fn news_that_cannot_be_read_is_a_fault() {
        let id = "019caaaa-0000-7000-8000-000000000003";
        let time = TIME;
        for detail in ["[".repeat(200) + &"]".repeat(200), "1e999".to_owned()] {
            for (kind, faults) in [("key.revoked", 1), ("session.issued", 0)] {
                let body = format!(
                    r#"{{"actor":"broker","data":{{"detail":{{"deep":{detail}}}}},"id":"{id}","source":"x","specversion":"1.0","time":"{time}","type":"{kind}"}}"#
                );
                let hash = leaf_hash(body.as_bytes());
                let line = format!(
                    r#"{{"event":{{"index":0,"leaf_hash":"{hash}","seq":1,"recorded_at":"{time}","id":"{id}","type":"{kind}","occurred_at":"{time}","actor":"broker"}},"body":{body}}}"#
                );
                let Examined::Entry(entry) = examine(&line) else { panic!("{line}") };
                assert_eq!(entry.faults.len(), faults, "{kind}: {:?}", entry.faults);
                assert!(entry.news.is_none());
            }
        }
    }
}
