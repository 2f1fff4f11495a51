//! One event's inclusion proof as a file (C2SP tlog-proof): checked with the log's key and nothing else.
//!
//! The event's body is the `extra` line, so that the file tells what it proves.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufRead};
use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tlog_tiles::{EMPTY_HASH, Error, HashReader, check_record, prove_record, stored_hash_index};
use uuid::Uuid;

use super::checkpoint::{NoteError, SignedCheckpoint};
use super::export::{Entry, Line, read_line};
use super::tree::{Frontier, Hash, leaf_hash};
use super::verify::{Examined, examine};

pub const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// A larger file is not ours: a body has at most 64 KiB, and a path one hash for each bit of the size.
pub const MAX_FILE_BYTES: usize = 256 * 1024;

/// An event, its place, and the hashes that lead from it to the checkpoint's root. Nobody has verified it yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    pub body: Vec<u8>,
    pub index: u64,
    path: Vec<Hash>,
    pub checkpoint: SignedCheckpoint,
}

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("it is not a proof (C2SP tlog-proof, with the event as its extra data)")]
    Malformed,
    #[error("the checkpoint does not count: {0}")]
    Checkpoint(#[from] NoteError),
    #[error("this event is not under that checkpoint")]
    NotUnder,
}

/// Takes an event's proof from an exported log, without any key: who reads the proof checks it. Reads the file twice, and keeps a
/// hash for each level of the tree.
pub fn from_export<R: BufRead>(
    open: impl Fn() -> io::Result<R>,
    event: Uuid,
) -> io::Result<Option<Proof>> {
    let mut found = None;
    let mut checkpoint = None;
    let event = event.to_string();
    each_line(open()?, |line, examined| {
        match examined {
            Examined::Entry(entry) if entry.id() == event => {
                // What is no JSON is nothing of ours, whatever its line begins with.
                if let Ok(it) = serde_json::from_str::<Entry<'_>>(line) {
                    found = Some((entry.index(), it.body.get().as_bytes().to_vec()));
                }
            }
            Examined::Other(it) if found.is_some() => {
                if let Line::Checkpoint(note) = *it {
                    checkpoint = SignedCheckpoint::parse(&note).ok();
                    return ControlFlow::Break(());
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let Some(((index, body), checkpoint)) = found.zip(checkpoint) else { return Ok(None) };
    let wanted = Wanted::default();
    // Only to hear which hashes it takes.
    let _ = prove_record(checkpoint.checkpoint.size, index, &wanted);
    let mut hashes: HashMap<_, _> =
        wanted.0.into_inner().into_iter().map(|it| (it, EMPTY_HASH)).collect();
    let mut frontier = Frontier::default();
    each_line(open()?, |_, examined| {
        let hash = match examined {
            Examined::Entry(entry) => Some(entry.hash()),
            Examined::Other(it) => match *it {
                Line::Pruned(pruned) => Some(pruned.leaf_hash),
                _ => None,
            },
            _ => None,
        };
        if let Some(hash) = hash {
            frontier.append(hash, |it| {
                if let Some(hash) = hashes.get_mut(&stored_hash_index(it.height, it.index)) {
                    *hash = it.hash;
                }
            });
        }
        if frontier.size() == checkpoint.checkpoint.size {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(Proof::new(body, index, checkpoint, &Known(hashes)).ok())
}

/// Reads a file line by line, until somebody has enough.
fn each_line(
    mut file: impl BufRead,
    mut take: impl FnMut(&str, Examined) -> ControlFlow<()>,
) -> io::Result<()> {
    loop {
        let line = read_line(&mut file)?;
        if line.is_empty() {
            return Ok(());
        }
        // What is no text is nothing of ours.
        let Ok(line) = str::from_utf8(&line) else { continue };
        if take(line, examine(line)).is_break() {
            return Ok(());
        }
    }
}

#[derive(Default)]
struct Wanted(RefCell<Vec<u64>>);

impl HashReader for Wanted {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        self.0.borrow_mut().extend(indexes);
        Ok(vec![EMPTY_HASH; indexes.len()])
    }
}

struct Known(HashMap<u64, Hash>);

impl HashReader for Known {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        indexes.iter().map(|it| self.0.get(it).copied().ok_or(Error::IndexesNotInTree)).collect()
    }
}

impl Proof {
    /// Proves the entry at `index` under a checkpoint; `hashes` are those of its tree.
    pub fn new(
        body: Vec<u8>,
        index: u64,
        checkpoint: SignedCheckpoint,
        hashes: &impl HashReader,
    ) -> Result<Self, Error> {
        let path = prove_record(checkpoint.checkpoint.size, index, hashes)?;
        Ok(Self { body, index, path, checkpoint })
    }

    /// The text of the file.
    pub fn file(&self) -> String {
        let mut file =
            format!("{HEADER}\nextra {}\nindex {}\n", STANDARD.encode(&self.body), self.index);
        for hash in &self.path {
            writeln!(file, "{hash}").expect("a string takes it");
        }
        file + "\n" + self.checkpoint.note()
    }

    pub fn parse(file: &str) -> Result<Self, ProofError> {
        Self::read(file).filter(|it| it.file() == file).ok_or(ProofError::Malformed)
    }

    fn read(file: &str) -> Option<Self> {
        if MAX_FILE_BYTES < file.len() {
            return None;
        }
        let (head, note) = file.split_once("\n\n")?;
        let mut lines = head.split('\n');
        let header = lines.next()? == HEADER;
        let body = STANDARD.decode(lines.next()?.strip_prefix("extra ")?).ok()?;
        let index = lines.next()?.strip_prefix("index ")?.parse().ok()?;
        let path = lines.map(Hash::parse_hash).collect::<Result<_, _>>().ok()?;
        let checkpoint = SignedCheckpoint::parse(note).ok()?;
        header.then_some(Self { body, index, path, checkpoint })
    }

    /// Whether the event is where the proof says, under a checkpoint that the holder of `key` signed.
    pub fn verify(&self, key: &str) -> Result<(), ProofError> {
        self.checkpoint.verify(key)?;
        let tree = &self.checkpoint.checkpoint;
        if tree.size <= self.index {
            return Err(ProofError::NotUnder);
        }
        check_record(&self.path, tree.size, tree.root, self.index, leaf_hash(&self.body))
            .map_err(|_| ProofError::NotUnder)
    }
}
