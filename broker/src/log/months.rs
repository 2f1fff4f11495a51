//! Files of months that were put away, read beside the log: entry by entry, as the log asks for them.

use std::io::{self, BufRead};

use super::examine::{Examined, examine};
use super::export::read_line;
use super::tree::Hash;

/// A month's file, read line by line.
pub type MonthFile = Box<dyn BufRead + Send>;

/// Months' files, each in the order of the log.
#[derive(Default)]
pub(super) struct Months {
    files: Vec<Month>,
    /// The first file that could not be read any more.
    error: Option<io::Error>,
}

struct Month {
    file: MonthFile,
    /// The next entry's index, hash and line.
    entry: Option<(u64, Hash, Vec<u8>)>,
    /// What stands after it: an approval at most.
    rest: Vec<Vec<u8>>,
}

impl Months {
    pub(super) fn new(files: Vec<MonthFile>) -> Self {
        let month = |file| Month { file, entry: None, rest: Vec::new() };
        Self { files: files.into_iter().map(month).collect(), error: None }
    }

    /// The lines about the entry at `index` with that hash; none if no file has it. Indexes are asked for in their order.
    pub(super) fn lines(&mut self, index: u64, hash: Hash) -> Vec<Vec<u8>> {
        for month in &mut self.files {
            match month.lines(index, hash) {
                Ok(None) => {}
                Ok(Some(lines)) => return lines,
                Err(error) => self.error = self.error.take().or(Some(error)),
            }
        }
        Vec::new()
    }

    pub(super) fn failed(&mut self) -> io::Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }
}

impl Month {
    fn lines(&mut self, index: u64, hash: Hash) -> io::Result<Option<Vec<Vec<u8>>>> {
        loop {
            match self.entry.take() {
                Some(it) if index < it.0 => {
                    self.entry = Some(it);
                    return Ok(None);
                }
                Some((at, its, line)) if (at, its) == (index, hash) => {
                    self.advance()?;
                    let rest = std::mem::take(&mut self.rest);
                    return Ok(Some([vec![line], rest].concat()));
                }
                _ => {}
            }
            self.advance()?;
            self.rest.clear();
            if self.entry.is_none() {
                return Ok(None);
            }
        }
    }

    /// Reads on to the next entry, and keeps what stands before it.
    fn advance(&mut self) -> io::Result<()> {
        loop {
            let line = read_line(&mut self.file)?;
            if line.is_empty() {
                return Ok(());
            }
            match str::from_utf8(&line).map(examine) {
                Ok(Examined::Entry(entry)) => {
                    self.entry = Some((entry.index(), entry.hash(), line));
                    return Ok(());
                }
                Ok(Examined::Other(_)) if self.rest.is_empty() => self.rest.push(line),
                _ => {}
            }
        }
    }
}
