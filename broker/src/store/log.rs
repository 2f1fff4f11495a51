//! The log over the events, as the sequencer and whoever verifies see it: none of this is on the way of a request.

use serde::Serialize;
use sqlx::{Executor, PgPool, Postgres, Transaction};
use time::{Date, OffsetDateTime};
use tlog_tiles::{HASH_SIZE, Tile, split_stored_hash_index};
use uuid::Uuid;

use super::Result;
use crate::lease::LeaseId;
use crate::log::tree::TILE_HEIGHT;
use crate::log::{Frontier, Hash};

/// Opens the sequencer's pool. It is small: one connection gives events their indexes, the others look where a claim's approval is.
pub fn log_pool(url: &str) -> Result<PgPool> {
    super::pool_of(url, 4, super::STATEMENT_TIMEOUT)
}

/// Opens the pool of those who read the log over HTTP: apart, so that they hold nobody up, and with time for a large one's last page.
pub fn readers_pool(url: &str) -> Result<PgPool> {
    super::pool_of(url, 2, "30s")
}

/// Opens a pool for an operator's command, which takes as long as a large log takes.
pub fn patient_pool(url: &str) -> Result<PgPool> {
    super::pool_of(url, 2, "0")
}

/// Where the log stands.
#[derive(Clone, Debug)]
pub struct Head {
    pub origin: String,
    pub epoch: i32,
    /// The verifier key that signs now.
    pub key: String,
    pub size: u64,
    pub frontier: Vec<u8>,
    /// The newest checkpoint.
    pub note: Option<String>,
}

/// Nothing before the log has begun.
pub async fn head(pool: impl Executor<'_, Database = Postgres>) -> Result<Option<Head>> {
    let row = sqlx::query!(
        r#"select origin as "origin!", epoch as "epoch!", key as "key!", size as "size!", frontier as "frontier!", note from log_heads"#
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|it| Head {
        origin: it.origin,
        epoch: it.epoch,
        key: it.key,
        size: unsigned(it.size),
        frontier: it.frontier,
        note: it.note,
    }))
}

/// Events up to this number have their place, or will never be there.
pub async fn floor(pool: &PgPool) -> Result<i64> {
    sqlx::query_scalar!(r#"select floor as "floor!" from log_heads"#).fetch_one(pool).await
}

/// Begins the log, unless there is one.
pub async fn begin(pool: &PgPool, origin: &str, key: &str, event: &[u8]) -> Result<()> {
    sqlx::query!("select log_begin($1, $2, $3)", origin, key, event).execute(pool).await?;
    Ok(())
}

/// Epoch and size of the newest checkpoint that an anchor took, as the database says.
pub async fn told_anchored(pool: &PgPool, anchor: &str) -> Result<Option<(i32, u64)>> {
    let row = sqlx::query!(
        r#"select epoch as "epoch!", size as "size!" from log_anchors where anchor = $1 order by epoch desc, size desc limit 1"#,
        anchor
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|it| (it.epoch, unsigned(it.size))))
}

/// When the first checkpoint was signed.
pub async fn first_signed(pool: &PgPool) -> Result<Option<OffsetDateTime>> {
    sqlx::query_scalar!(
        r#"select signed_at as "signed_at!" from log_checkpoints order by epoch, size limit 1"#
    )
    .fetch_optional(pool)
    .await
}

/// Takes the right to give events their indexes, until the transaction ends; waits for whoever has it.
pub async fn lock(transaction: &mut Transaction<'_, Postgres>) -> Result<()> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('broker.log', 0))")
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Appends an event of the log's own.
pub async fn append(transaction: &mut Transaction<'_, Postgres>, event: &[u8]) -> Result<()> {
    sqlx::query!("select append_event($1) as seq", event).fetch_one(&mut **transaction).await?;
    Ok(())
}

/// The checkpoint of that epoch and size.
pub async fn checkpoint(pool: &PgPool, epoch: i32, size: u64) -> Result<Option<String>> {
    sqlx::query_scalar!(
        r#"select note as "note!" from log_checkpoints where epoch = $1 and size = $2"#,
        epoch,
        signed(size)
    )
    .fetch_optional(pool)
    .await
}

/// An event that has no index yet.
#[derive(Debug)]
pub struct Pending {
    pub seq: i64,
    pub recorded_at: OffsetDateTime,
    pub id: Uuid,
    pub kind: String,
    pub body: Vec<u8>,
}

/// The next events without an index; none if another server is at it. The right to give them one ends with the transaction.
pub async fn pending(
    transaction: &mut Transaction<'_, Postgres>,
    batch: i32,
) -> Result<Vec<Pending>> {
    sqlx::query_as!(
        Pending,
        r#"select seq as "seq!", recorded_at as "recorded_at!", id as "id!", type as "kind!", body as "body!" from log_pending($1)"#,
        batch
    )
    .fetch_all(&mut **transaction)
    .await
}

/// Events with their indexes, the hashes that follow, and the checkpoint that says so.
#[derive(Debug)]
pub struct Integration<'a> {
    pub before: &'a Head,
    pub events: &'a [Pending],
    pub leaf_hashes: Vec<Hash>,
    /// Level, index, hash.
    pub nodes: Vec<(i16, i64, Hash)>,
    pub frontier: &'a Frontier,
    pub key: &'a str,
    pub note: &'a str,
    pub now: OffsetDateTime,
}

/// Writes it, unless the log is not any more where it was: then `false`, and nothing is written.
pub async fn integrate(
    transaction: &mut Transaction<'_, Postgres>,
    it: Integration<'_>,
) -> Result<bool> {
    let seqs: Vec<_> = it.events.iter().map(|it| it.seq).collect();
    let recorded: Vec<_> = it.events.iter().map(|it| it.recorded_at).collect();
    let ids: Vec<_> = it.events.iter().map(|it| it.id).collect();
    let bytes = |hash: &Hash| hash.0.to_vec();
    let leaf_hashes: Vec<_> = it.leaf_hashes.iter().map(bytes).collect();
    let levels: Vec<_> = it.nodes.iter().map(|it| it.0).collect();
    let indexes: Vec<_> = it.nodes.iter().map(|it| it.1).collect();
    let hashes: Vec<_> = it.nodes.iter().map(|it| bytes(&it.2)).collect();
    let done = sqlx::query_scalar!(
        r#"select log_integrate($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) as "done!""#,
        it.before.epoch,
        signed(it.before.size),
        &seqs,
        &recorded,
        &ids,
        &leaf_hashes,
        &levels,
        &indexes,
        &hashes,
        it.frontier.bytes(),
        it.key,
        &it.frontier.root().0[..],
        it.note,
        it.now,
    );
    done.fetch_one(&mut **transaction).await
}

/// Hashes of complete subtrees, by their stored hash index (RFC 6962 trees as `tlog_tiles` counts them).
pub async fn stored_hashes(pool: &PgPool, indexes: &[u64]) -> Result<Vec<Hash>> {
    let mut hashes = Vec::with_capacity(indexes.len());
    for index in indexes {
        let (height, n) = split_stored_hash_index(*index);
        let (level, rest) = (height / TILE_HEIGHT, height % TILE_HEIGHT);
        let data = tile(pool, level, n << rest, 1 << rest).await?;
        if data.len() != HASH_SIZE << rest {
            return Err(sqlx::Error::RowNotFound);
        }
        hashes.push(Tile::subtree_hash(&data));
    }
    Ok(hashes)
}

/// `count` hashes of a level of tiles from `start` on, one after the other, as far as they are there.
pub async fn tile(pool: &PgPool, level: u8, start: u64, count: u64) -> Result<Vec<u8>> {
    let (from, to) = (signed(start), signed(start + count));
    let rows = if level == 0 {
        sqlx::query_scalar!(
            r#"select leaf_hash as "hash!" from log_leaves where $1 <= index and index < $2 order by index"#,
            from,
            to
        )
        .fetch_all(pool)
        .await?
    } else {
        sqlx::query_scalar!(
            r#"select hash as "hash!" from log_nodes where level = $1 and $2 <= index and index < $3 order by index"#,
            i16::from(level),
            from,
            to
        )
        .fetch_all(pool)
        .await?
    };
    Ok(rows.concat())
}

/// Records that an anchor has the checkpoint of that size.
pub async fn tell_anchored(
    pool: &PgPool,
    anchor: &str,
    epoch: i32,
    size: u64,
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query!("select log_tell_anchored($1, $2, $3, $4)", anchor, epoch, signed(size), now)
        .execute(pool)
        .await?;
    Ok(())
}

/// The log's epoch, and the place in it of a lease's approval; nothing if it has none yet.
pub async fn approval_index(pool: &PgPool, id: LeaseId) -> Result<Option<(i32, u64)>> {
    let row = sqlx::query!(
        r#"
        select h.epoch as "epoch!", e.index as "index!" from log_entries e, log_heads h
         where e.lease_id = $1 and e.type = 'lease.approved' order by e.index limit 1
        "#,
        id.0
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|it| (it.epoch, unsigned(it.index))))
}

/// An entry of the log with its event's row. Once its month is dropped, the event is not there.
#[derive(Debug)]
pub struct EntryRow {
    pub index: i64,
    pub leaf_hash: Vec<u8>,
    pub seq: i64,
    pub recorded_at: OffsetDateTime,
    pub event: Option<EventRow>,
}

/// The columns of an event.
#[derive(Debug)]
pub struct EventRow {
    pub id: Uuid,
    pub kind: String,
    pub occurred_at: OffsetDateTime,
    pub actor: String,
    pub agent: Option<String>,
    pub sponsor: Option<String>,
    pub scope: Option<String>,
    pub lease_id: Option<Uuid>,
    pub session_id: Option<Uuid>,
    pub body: Vec<u8>,
    pub doc_is_body: bool,
}

/// A row of the views of entries and of waiting events. What may not be there is not.
struct Record {
    index: Option<i64>,
    leaf_hash: Option<Vec<u8>>,
    seq: i64,
    recorded_at: OffsetDateTime,
    id: Option<Uuid>,
    kind: Option<String>,
    occurred_at: Option<OffsetDateTime>,
    actor: Option<String>,
    agent: Option<String>,
    sponsor: Option<String>,
    scope: Option<String>,
    lease_id: Option<Uuid>,
    session_id: Option<Uuid>,
    body: Option<Vec<u8>>,
    doc_is_body: Option<bool>,
}

impl From<Record> for EntryRow {
    fn from(it: Record) -> Self {
        Self {
            index: it.index.unwrap_or_default(),
            leaf_hash: it.leaf_hash.unwrap_or_default(),
            seq: it.seq,
            recorded_at: it.recorded_at,
            event: it.id.map(|id| EventRow {
                id,
                kind: it.kind.unwrap_or_default(),
                occurred_at: it.occurred_at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
                actor: it.actor.unwrap_or_default(),
                agent: it.agent,
                sponsor: it.sponsor,
                scope: it.scope,
                lease_id: it.lease_id,
                session_id: it.session_id,
                body: it.body.unwrap_or_default(),
                doc_is_body: it.doc_is_body.unwrap_or_default(),
            }),
        }
    }
}

/// Entries from `from` on, at most `limit`.
pub async fn entries(pool: &PgPool, from: u64, limit: i64) -> Result<Vec<EntryRow>> {
    let rows = sqlx::query_as!(
        Record,
        r#"
        select index, leaf_hash, seq as "seq!", recorded_at as "recorded_at!", id, type as kind,
               occurred_at, actor, agent, sponsor, scope, lease_id, session_id, body, doc_is_body
          from log_entries where $1 <= index and index < $1 + $2 order by index
        "#,
        signed(from),
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(EntryRow::from).collect())
}

/// What was exported of a month.
#[derive(Debug)]
pub struct Exported {
    pub month: Date,
    pub events: i64,
    pub first_index: i64,
    pub last_index: i64,
    pub sha256: [u8; 32],
}

/// Entries of a month, by the database's clock, behind an index.
pub async fn month(pool: &PgPool, month: Date, after: i64, limit: i64) -> Result<Vec<EntryRow>> {
    let rows = sqlx::query_as!(
        Record,
        r#"
        select index, leaf_hash, seq as "seq!", recorded_at as "recorded_at!", id, type as kind,
               occurred_at, actor, agent, sponsor, scope, lease_id, session_id, body, doc_is_body
          from log_entries
         where recorded_at >= $1::date::timestamp at time zone 'UTC'
           and recorded_at < ($1::date + interval '1 month') at time zone 'UTC'
           and $2 < index and id is not null
         order by index limit $3
        "#,
        month,
        after,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(EntryRow::from).collect())
}

/// Records that a month was exported, with the event that tells it.
pub async fn tell_exported(
    pool: &PgPool,
    it: &Exported,
    event: &[u8],
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query!(
        "select log_tell_exported($1, $2, $3, $4, $5, $6, $7)",
        it.month,
        it.events,
        it.first_index,
        it.last_index,
        &it.sha256[..],
        now,
        event
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Months that were dropped.
pub async fn dropped_months(pool: &PgPool) -> Result<Vec<DroppedMonth>> {
    sqlx::query_as!(
        DroppedMonth,
        r#"
        select 'event_' || to_char(month, 'YYYYMM') as "partition!", events as "events!", first_index as "first_index!", last_index as "last_index!"
          from log_partitions where dropped_at is not null order by month
        "#
    )
    .fetch_all(pool)
    .await
}

/// A month that was dropped, as the event of the next one tells.
#[derive(Debug, Serialize)]
pub struct DroppedMonth {
    pub partition: String,
    pub events: i64,
    pub first_index: i64,
    pub last_index: i64,
}

/// SHA-256 of the file that a month was exported to, in hex.
pub async fn exported_sha256(pool: &PgPool, month: Date) -> Result<Option<String>> {
    sqlx::query_scalar!(r#"select sha256 as "sha256!" from log_partitions where month = $1"#, month)
        .fetch_optional(pool)
        .await
}

/// Drops a month's events, if everything is as it has to be.
pub async fn drop_month(
    pool: &PgPool,
    month: Date,
    event: &[u8],
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query!("select log_drop_month($1, $2, $3)", month, now, event).execute(pool).await?;
    Ok(())
}

/// Events that are under no checkpoint, from a number on: without an index, that is.
pub async fn waiting(pool: &PgPool, after_seq: i64, limit: i64) -> Result<Vec<EntryRow>> {
    let rows = sqlx::query_as!(
        Record,
        r#"
        select null::bigint as index, null::bytea as leaf_hash, seq as "seq!", recorded_at as "recorded_at!", id, type as kind,
               occurred_at, actor, agent, sponsor, scope, lease_id, session_id, body, true as doc_is_body
          from log_waiting where $1 < seq order by seq limit $2
        "#,
        after_seq,
        limit
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(EntryRow::from).collect())
}

/// Checkpoints that cover more than `after` entries and at most `to`, with how many.
pub async fn checkpoints(pool: &PgPool, after: u64, to: u64) -> Result<Vec<(u64, String)>> {
    let rows = sqlx::query!(
        r#"select size as "size!", note as "note!" from log_checkpoints where $1 < size and size <= $2 order by epoch, size"#,
        signed(after),
        signed(to)
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|it| (unsigned(it.size), it.note)).collect())
}

/// The smallest checkpoint that covers an entry, of the newest epoch.
pub async fn checkpoint_over(pool: &PgPool, index: u64) -> Result<Option<String>> {
    sqlx::query_scalar!(
        r#"select note as "note!" from log_checkpoints where $1 < size order by epoch desc, size limit 1"#,
        signed(index)
    )
    .fetch_optional(pool)
    .await
}

/// The place of an event in the log.
pub async fn index_of(pool: &PgPool, event: Uuid) -> Result<Option<u64>> {
    // Not along the log until there is one, which is as long as the log.
    let index = sqlx::query_scalar!(
        "select min(index) as index from (select index from log_leaves where event_id = $1 offset 0) as it",
        event
    )
    .fetch_one(pool)
    .await?;
    Ok(index.map(unsigned))
}

/// Leases and sessions without the event that has to tell of them: kind, id, type.
pub async fn unrecorded(pool: &PgPool) -> Result<Vec<(String, Uuid, String)>> {
    let rows = sqlx::query!(
        r#"select kind as "kind!", id as "id!", event as "event!" from log_unrecorded order by at, id, event"#
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|it| (it.kind, it.id, it.event)).collect())
}

/// The verifier key and the origin that the log began with.
pub async fn first_key(pool: &PgPool) -> Result<Option<(String, String)>> {
    let row =
        sqlx::query!(r#"select first_key as "key!", first_origin as "origin!" from log_heads"#)
            .fetch_optional(pool)
            .await?;
    Ok(row.map(|it| (it.key, it.origin)))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
