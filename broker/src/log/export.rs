//! The log as a file: one JSON object a line, in the order of the log, written by `broker audit export`.
//!
//! | line | what |
//! | --- | --- |
//! | `{"export":{…}}` | first: which log, and with which key it began |
//! | `{"event":{…},"body":{…}}` | an entry: the columns of its row, and the exact bytes that are hashed, as they are |
//! | `{"pruned":{…}}` | an entry whose month was put away and dropped: its hash alone |
//! | `{"checkpoint":"…"}` | a signed note, right after the last entry that it covers |
//! | `{"approval":{…}}` | after a signed lease's `lease.issued`: what people signed |
//! | `{"waiting":{…},"body":{…}}` | an event that is under no checkpoint yet |
//! | `{"unrecorded":{…}}` | a lease or session without the event that has to tell of it |
//! | `{"end":{…}}` | last: without it, the file is a part of one |

use std::borrow::Cow;
use std::io::{self, BufRead, Read as _};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::tree::Hash;
use crate::approval;

/// The format's name.
pub const FORMAT: &str = "broker-log/v1";

/// A line may not be longer: a body has at most 64 KiB, an approval about a hundred signatures.
pub const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// The next line with its newline; nothing at the end. Of one that is too long, the part that a line may have.
pub fn read_line(file: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
    file.take(limit).read_until(b'\n', &mut line)?;
    Ok(line)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub format: String,
    /// Of the log's first epoch.
    pub origin: String,
    /// The verifier key that the log began with; later ones are told by the log itself.
    pub key: String,
    #[serde(with = "time::serde::rfc3339")]
    pub exported_at: OffsetDateTime,
}

/// Text of a line, borrowed where it holds no escapes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl Text<'_> {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The columns of an event's row: for whoever filters in SQL. They have to say what the body says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns<'a> {
    /// Its place in the log; a waiting event has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// As it went into the tree, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "base64_option")]
    pub leaf_hash: Option<Hash>,
    pub seq: i64,
    #[serde(borrow)]
    pub recorded_at: Text<'a>,
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub occurred_at: Text<'a>,
    #[serde(borrow)]
    pub actor: Text<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub lease_id: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<Text<'a>>,
    /// There when the row's readable copy is not what the bytes say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doc_differs: bool,
}

/// An entry with its bytes. They stand in the line as they are: a body is one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry<'a> {
    #[serde(borrow)]
    pub event: Columns<'a>,
    #[serde(borrow)]
    pub body: &'a RawValue,
}

/// An event that is under no checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting<'a> {
    #[serde(borrow)]
    pub waiting: Columns<'a>,
    #[serde(borrow)]
    pub body: &'a RawValue,
}

/// An entry without its event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pruned {
    pub index: u64,
    #[serde(serialize_with = "base64")]
    pub leaf_hash: Hash,
}

fn base64<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}

#[expect(clippy::ref_option, reason = "serde passes the field")]
fn base64_option<S: Serializer>(hash: &Option<Hash>, serializer: S) -> Result<S::Ok, S::Error> {
    match hash {
        Some(hash) => base64(hash, serializer),
        None => serializer.serialize_none(),
    }
}

/// What people signed about a lease that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    pub lease: approval::Lease,
    /// The exact bytes that people signed about, in standard base64.
    pub statement: String,
    pub signatures: Vec<approval::Signature>,
}

/// Something that no event tells of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unrecorded {
    pub kind: String,
    pub id: String,
    /// The type of the event that is not there.
    pub event: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// How many entries the log has.
    pub size: u64,
    pub waiting: u64,
}

/// A line that holds one thing under its name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Line {
    Export(Header),
    Checkpoint(String),
    Pruned(Pruned),
    Approval(Box<Approval>),
    Unrecorded(Unrecorded),
    End(End),
}

impl Line {
    /// The line, with its newline.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers serialize") + "\n"
    }
}
