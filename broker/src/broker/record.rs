//! The log, for people who may read everything: what a verifier needs, over HTTP.

use uuid::Uuid;

use super::Broker;
use crate::error::{Error, Result};
use crate::export;
use crate::identity::Caller;
use crate::log::tree::{TilePlace, tile_place};
use crate::store;

/// A part of an export.
pub struct Page {
    pub lines: String,
    /// Where the next part begins, and how many entries the whole has; none after the last.
    pub next: Option<(u64, u64)>,
}

impl Broker {
    /// A part of the log's export: the first without `from`. `size` is that of the export as it was begun.
    pub async fn export_page(&self, caller: &Caller, from: Option<(u64, u64)>) -> Result<Page> {
        self.may_read_the_log(caller).await?;
        let pool = &self.log.readers;
        let (mut lines, from, size) = if let Some((from, size)) = from {
            (String::new(), from, size)
        } else {
            let header = export::header(pool, self.clock.now()).await?;
            let head = store::log::head(pool).await?;
            let (header, head) = header.zip(head).ok_or(Error::NotFound)?;
            (header, 0, head.size)
        };
        let (entries, next) = export::page(pool, from, size).await?;
        lines += &entries;
        if next.is_none() {
            // What is new; all that has no place is for the server's host to look for.
            let floor = store::log::floor(pool).await?;
            lines += &export::tail(pool, size, floor).await?;
        }
        Ok(Page { lines, next: next.map(|it| (it, size)) })
    }

    /// The newest checkpoint.
    pub async fn checkpoint(&self, caller: &Caller) -> Result<String> {
        self.may_read_the_log(caller).await?;
        let head = store::log::head(&self.log.readers).await?;
        head.and_then(|it| it.note).ok_or(Error::NotFound)
    }

    /// A tile, or a bundle of entries, by its path after `tile/` (C2SP tlog-tiles).
    pub async fn tile(&self, caller: &Caller, path: &str) -> Result<Vec<u8>> {
        self.may_read_the_log(caller).await?;
        let TilePlace { bundle, level, start, width } = tile_place(path).ok_or(Error::NotFound)?;
        let (pool, width) = (&self.log.readers, u64::from(width));
        if !bundle {
            let data = store::log::tile(pool, level, start, width).await?;
            let whole = data.len() as u64 == width * tlog_tiles::HASH_SIZE as u64;
            return if whole { Ok(data) } else { Err(Error::NotFound) };
        }
        let rows =
            store::log::entries(pool, start, i64::try_from(width).unwrap_or_default()).await?;
        let mut bytes = Vec::new();
        let mut count = 0;
        for event in rows.into_iter().filter_map(|it| it.event) {
            let length = u16::try_from(event.body.len());
            let length = length.map_err(|error| Error::Internal(error.to_string()))?;
            bytes.extend(length.to_be_bytes());
            bytes.extend(event.body);
            count += 1;
        }
        if count == width { Ok(bytes) } else { Err(Error::NotFound) }
    }

    /// Proof that an event is in the log, as a file.
    pub async fn proof(&self, caller: &Caller, event: Uuid) -> Result<String> {
        self.may_read_the_log(caller).await?;
        Ok(self.log.prove(event).await?.ok_or(Error::NotFound)?.file())
    }

    /// Whoever may read every lease's history.
    async fn may_read_the_log(&self, caller: &Caller) -> Result<()> {
        if self.sees_all(caller).await? { Ok(()) } else { Err(Error::NotFound) }
    }
}
