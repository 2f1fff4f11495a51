//! Writes the log as a file: what `crate::log::verify` reads.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use sqlx::PgPool;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::lease::LeaseId;
use crate::log::Hash;
use crate::log::export::{
    Approval, Columns, End, Entry, FORMAT, Header, Line, Pruned, Text, Unrecorded, Waiting,
};
use crate::store::log::{self as store, EntryRow, EventRow};

/// So many entries are read at once.
pub const PAGE: i64 = 1000;

/// Which log, and as of when: the first line.
pub async fn header(pool: &PgPool, now: OffsetDateTime) -> sqlx::Result<Option<String>> {
    let Some((key, origin)) = store::first_key(pool).await? else { return Ok(None) };
    let header = Header { format: FORMAT.to_owned(), origin, key, exported_at: now };
    Ok(Some(Line::Export(header).text()))
}

/// Entries from `from` on with everything that stands between them, and the index of the next page; none when it was the last.
///
/// `size` is how many entries the log had when the export began.
pub async fn page(pool: &PgPool, from: u64, size: u64) -> sqlx::Result<(String, Option<u64>)> {
    let limit = PAGE.min(i64::try_from(size.saturating_sub(from)).unwrap_or(PAGE));
    let rows = store::entries(pool, from, limit).await?;
    let to = rows.last().map_or(from, |it| u64::try_from(it.index).unwrap_or_default() + 1);
    let mut checkpoints = store::checkpoints(pool, from, to).await?.into_iter().peekable();
    let mut out = String::with_capacity(rows.len() * 1200);
    for row in rows {
        out.push_str(&entry(pool, &row).await?);
        let index = u64::try_from(row.index).unwrap_or_default();
        while let Some((_, note)) = checkpoints.next_if(|(size, _)| *size == index + 1) {
            out.push_str(&Line::Checkpoint(note).text());
        }
    }
    Ok((out, (from < to && to < size).then_some(to)))
}

/// What stands after the last entry. `after` is the number up to which nobody looks for waiting events.
pub async fn tail(pool: &PgPool, size: u64, mut after: i64) -> sqlx::Result<String> {
    let mut out = String::new();
    let mut waiting = 0;
    loop {
        let rows = store::waiting(pool, after, PAGE).await?;
        let Some(last) = rows.last() else { break };
        after = last.seq;
        for row in rows {
            let Some(event) = &row.event else { continue };
            waiting += 1;
            let body = raw(&event.body);
            let waiting = columns(None, None, row.seq, row.recorded_at, event);
            let line = Waiting { waiting, body: &body };
            out.push_str(&serde_json::to_string(&line).expect("strings and numbers serialize"));
            out.push('\n');
        }
    }
    for (kind, id, event) in store::unrecorded(pool).await? {
        out.push_str(&Line::Unrecorded(Unrecorded { kind, id: id.to_string(), event }).text());
    }
    Ok(out + &Line::End(End { size, waiting }).text())
}

/// One entry's line, and after it what people signed about the lease that it tells of.
pub async fn entry(pool: &PgPool, row: &EntryRow) -> sqlx::Result<String> {
    let index = u64::try_from(row.index).unwrap_or_default();
    let leaf_hash = Hash(row.leaf_hash.as_slice().try_into().unwrap_or_default());
    let Some(event) = &row.event else {
        return Ok(Line::Pruned(Pruned { index, leaf_hash }).text());
    };
    let body = raw(&event.body);
    let columns = columns(Some(index), Some(leaf_hash), row.seq, row.recorded_at, event);
    let line = Entry { event: columns, body: &body };
    let mut out = serde_json::to_string(&line).expect("strings and numbers serialize") + "\n";
    if let ("lease.issued", Some(lease)) = (event.kind.as_str(), event.lease_id) {
        approval(pool, LeaseId(lease), &mut out).await?;
    }
    Ok(out)
}

/// The bytes as they are. What is no JSON was not written by us, and hashes to something else.
fn raw(body: &[u8]) -> Box<RawValue> {
    let text = String::from_utf8(body.to_vec()).ok();
    let raw = text.and_then(|it| RawValue::from_string(it).ok());
    raw.unwrap_or_else(|| RawValue::from_string("null".to_owned()).expect("it is JSON"))
}

fn columns(
    index: Option<u64>,
    leaf_hash: Option<Hash>,
    seq: i64,
    recorded_at: OffsetDateTime,
    event: &EventRow,
) -> Columns<'_> {
    let text = |it: String| Text(it.into());
    let time = |at: OffsetDateTime| text(at.format(&Rfc3339).unwrap_or_default());
    Columns {
        index,
        leaf_hash,
        seq,
        recorded_at: time(recorded_at),
        id: text(event.id.to_string()),
        kind: Text(event.kind.as_str().into()),
        occurred_at: time(event.occurred_at),
        actor: Text(event.actor.as_str().into()),
        agent: borrowed(event.agent.as_ref()),
        sponsor: borrowed(event.sponsor.as_ref()),
        scope: borrowed(event.scope.as_ref()),
        lease_id: event.lease_id.map(|it| text(it.to_string())),
        session_id: event.session_id.map(|it| text(it.to_string())),
        doc_differs: !event.doc_is_body,
    }
}

/// What people signed about a lease, if it is one that people sign.
async fn approval(pool: &PgPool, id: LeaseId, out: &mut String) -> sqlx::Result<()> {
    let Some(it) = crate::store::approval(pool, id).await? else { return Ok(()) };
    let approval = Approval {
        lease: it.lease,
        statement: STANDARD.encode(it.statement),
        signatures: it.signatures,
    };
    out.push_str(&Line::Approval(Box::new(approval)).text());
    Ok(())
}

fn borrowed(it: Option<&String>) -> Option<Text<'_>> {
    it.map(|it| Text(it.as_str().into()))
}
