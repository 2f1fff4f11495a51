//! Gives committed events their place in the log, signs checkpoints, and takes them to the anchors.
//!
//! Any number of servers may do it: one at a time has the right, for the length of one transaction, and what it writes is
//! written only if the log still is where it was. The key is here and never in PostgreSQL, so whoever rewrites the tables cannot
//! sign; and before we sign we see that what we build on is what we signed last.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration as StdDuration;

use sqlx::{PgPool, Postgres, Transaction};
use time::OffsetDateTime;
use tlog_tiles::{EMPTY_HASH, Error as TreeError, HashReader, tree_hash};
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use crate::anchor::{Anchor, Place};
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::aws::Access;
use crate::clock::Clock;
use crate::config::Config;
use crate::lease::LeaseId;
use crate::log::checkpoint::{KeyError, NoteError, origin_of};
use crate::log::proof::Proof;
use crate::log::tree::TILE_HEIGHT;
use crate::log::{Checkpoint, Frontier, Hash, LogKey, SignedCheckpoint, leaf_hash};
use crate::store::log::{self as store, Head, Integration, Pending};

/// So many events get their index at once.
const BATCH: i32 = 4096;
/// Between two ticks: what came meanwhile has one checkpoint.
const TICK: StdDuration = StdDuration::from_millis(100);
/// So many claims may wait for their approval to be anchored at once; others are told at once.
const WAITERS: usize = 16;
/// Between two looks at whether an approval is anchored by now.
const LOOK_EVERY: StdDuration = StdDuration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("BROKER_SEQUENCER_DATABASE_URL is not a PostgreSQL URL")]
    Url(#[source] sqlx::Error),
    #[error("the log has not begun: there is no server yet that signs it")]
    NotBegun,
    #[error("the log in the database is {there:?}, and the configuration's is {ours:?}")]
    OtherLog { there: String, ours: String },
    #[error(
        "the log is signed by {there:?}, and our key is {ours:?}; `brokerd audit rotate` changes keys"
    )]
    OtherKey { there: String, ours: String },
    #[error("the newest checkpoint in the database does not count: {0}")]
    Checkpoint(#[from] NoteError),
    #[error("the log in the database is not what was signed: somebody changed it")]
    Changed,
    #[error("the database is behind its log: {0}; nothing is served until `brokerd recover`")]
    Behind(String),
    #[error(
        "the log has moved on meanwhile: another server or another `brokerd recover` is at it; stop those, then run it again"
    )]
    MovedOn,
    #[error("no anchor answered: {0}")]
    NoAnchor(String),
    #[error("the log's tree is not whole: {0}")]
    Tree(#[from] TreeError),
}

pub type Result<T, E = LogError> = std::result::Result<T, E>;

pub struct Sequencer {
    pub pool: PgPool,
    /// For those who read the log over HTTP.
    pub readers: PgPool,
    key: LogKey,
    origin: String,
    scribe: Scribe,
    clock: Clock,
    anchors: Vec<Anchored>,
    wait: StdDuration,
    /// The largest log that this process has seen signed, with its root: a smaller one is one that was taken back.
    seen: Mutex<(Place, Hash)>,
    /// Why nothing is served any more.
    halted: OnceLock<String>,
    /// The comparison with the anchors has gone well.
    compared: OnceLock<()>,
    /// Why nothing is served yet: what the comparison with the anchors came to so far.
    waits: Mutex<Option<String>>,
    /// A lease waits for its approval to be anchored.
    hurry: Notify,
    /// Claims that may wait for that at once.
    waiting: Semaphore,
}

struct Anchored {
    anchor: Anchor,
    /// The newest checkpoint there that we know to be of our log.
    known: Mutex<Place>,
    /// Why it did not answer the last time.
    error: Mutex<Option<String>>,
}

impl Sequencer {
    /// Composes one. Nothing is connected yet.
    pub fn new(config: &Config, url: &str, access: &Access, clock: Clock) -> Result<Self> {
        let settings = &config.settings.log;
        let anchored = |it| Anchored {
            anchor: Anchor::new(it, access),
            known: Mutex::default(),
            error: Mutex::default(),
        };
        Ok(Self {
            pool: store::log_pool(url).map_err(LogError::Url)?,
            readers: store::readers_pool(url).map_err(LogError::Url)?,
            key: LogKey::load(&settings.key)?,
            origin: settings.origin.clone(),
            scribe: Scribe { source: config.settings.origin.clone() },
            clock,
            anchors: settings.anchors.iter().map(anchored).collect(),
            wait: settings.wait.std(),
            seen: Mutex::new((Place::default(), EMPTY_HASH)),
            halted: OnceLock::new(),
            compared: OnceLock::new(),
            waits: Mutex::default(),
            hurry: Notify::new(),
            waiting: Semaphore::new(WAITERS),
        })
    }

    /// Begins the log, unless it has begun.
    pub async fn begin(&self) -> Result<()> {
        if store::head(&self.pool).await?.is_some() {
            return Ok(());
        }
        let key = self.key.verifier_key(&self.origin);
        let detail = serde_json::json!({ "origin": self.origin, "key": key });
        let event = self.tell(EventType::LogStarted, Actor::Broker, detail);
        Ok(store::begin(&self.pool, &self.origin, &key, &event).await?)
    }

    fn tell(&self, kind: EventType, actor: Actor<'_>, detail: serde_json::Value) -> Vec<u8> {
        self.scribe.body(kind, actor, Subject::default(), detail, self.clock.now())
    }

    /// Nothing is served until [`compare`](Self::compare) has gone well, if it has not.
    pub fn hold_back(&self, why: String) {
        if self.compared.get().is_some() {
            return;
        }
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Whether something may be served.
    pub fn gate(&self) -> Result<(), crate::error::Error> {
        if let Some(why) = self.halted.get() {
            return Err(crate::error::Error::LogBehind(why.clone()));
        }
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.as_ref().map_or(Ok(()), |why| Err(crate::error::Error::NotCompared(why.clone())))
    }

    /// Gives the next events their indexes, and signs. Returns how many; none if another server is at it.
    pub async fn tick(&self) -> Result<usize> {
        // What was restored is not to be signed: that would be a second story.
        if self.gate().is_err() {
            return Ok(0);
        }
        let seen = self.seen();
        let mut transaction = self.pool.begin().await?;
        let events = store::pending(&mut transaction, BATCH).await?;
        if events.is_empty() {
            // Here, and not some time after: the next tick wants the lock, ours or another server's.
            transaction.rollback().await?;
            return Ok(0);
        }
        let head = store::head(&mut *transaction).await?.ok_or(LogError::NotBegun)?;
        let frontier = self.check(&head, seen)?;
        let head = self.advance(&mut transaction, head, frontier, &events, None).await?;
        let Some((head, frontier)) = head else {
            transaction.rollback().await?;
            return Ok(0);
        };
        transaction.commit().await?;
        self.saw((head.epoch, head.size), frontier.root());
        Ok(events.len())
    }

    /// Ticks for ever. Events wait for the next tick, so that a busy log has ten checkpoints a second and not one for each event;
    /// more than fit into a tick are taken at once.
    pub async fn run(&self) {
        let mut before = None;
        loop {
            match self.tick().await {
                Ok(some) if some == BATCH.unsigned_abs() as usize => continue,
                Ok(_) => before = None,
                Err(error) => {
                    let error = error.to_string();
                    if before.as_ref() != Some(&error) {
                        tracing::warn!(error, "events get no place in the log");
                    }
                    before = Some(error);
                }
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Gives those events their indexes in the transaction, behind what `head` says; nothing if another server was first. `new_key`
    /// takes over.
    async fn advance(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        head: Head,
        mut frontier: Frontier,
        events: &[Pending],
        new_key: Option<&LogKey>,
    ) -> Result<Option<(Head, Frontier)>> {
        let mut nodes = Vec::new();
        let mut leaf_hashes = Vec::with_capacity(events.len());
        for event in events {
            // Of the body, whatever the row says.
            let hash = leaf_hash(&event.body);
            leaf_hashes.push(hash);
            frontier.append(hash, |it| {
                if 0 < it.height && it.height % TILE_HEIGHT == 0 {
                    let index = i64::try_from(it.index).expect("a bigint's worth of events");
                    nodes.push((i16::from(it.height / TILE_HEIGHT), index, it.hash));
                }
            });
        }
        let now = self.clock.now();
        let checkpoint = Checkpoint {
            origin: head.origin.clone(),
            size: frontier.size(),
            root: frontier.root(),
        };
        let keys: Vec<_> = std::iter::once(&self.key).chain(new_key).collect();
        let signed = checkpoint.sign(&keys)?;
        let key = new_key.unwrap_or(&self.key).verifier_key(&head.origin);
        let integration = Integration {
            before: &head,
            events,
            leaf_hashes,
            nodes,
            frontier: &frontier,
            key: &key,
            note: signed.note(),
            now,
        };
        if !store::integrate(transaction, integration).await? {
            return Ok(None);
        }
        let note = Some(signed.note().to_owned());
        let head = Head { key, size: frontier.size(), frontier: frontier.bytes(), note, ..head };
        Ok(Some((head, frontier)))
    }

    /// Whether we may build on what the database says: our log, our key, and the very tree that we signed. `seen` is from before
    /// the head was read: what another task of ours signs in the meantime is no going back.
    fn check(&self, head: &Head, seen: (Place, Hash)) -> Result<Frontier> {
        let checked = self.check_head(head, seen);
        if let Err(error @ (LogError::Changed | LogError::Checkpoint(_))) = &checked {
            self.halt(error.to_string());
        }
        checked
    }

    fn check_head(&self, head: &Head, seen: (Place, Hash)) -> Result<Frontier> {
        let origin = origin_of(&self.origin, head.epoch);
        if head.origin != origin {
            return Err(LogError::OtherLog { there: head.origin.clone(), ours: origin });
        }
        let ours = self.key.verifier_key(&origin);
        if head.key != ours {
            return Err(LogError::OtherKey { there: head.key.clone(), ours });
        }
        let (place, root) = seen;
        if (head.epoch, head.size) < place {
            let why = format!("it has {} entries, and this server has seen {}", head.size, place.1);
            return Err(self.halt(why));
        }
        let frontier = Frontier::read(head.size, &head.frontier).ok_or(LogError::Changed)?;
        match &head.note {
            None if (head.epoch, head.size) == (1, 0) => {}
            // The first checkpoint after events were lost is written where they are known to be.
            None => return Err(LogError::Changed),
            Some(note) => {
                let signed = SignedCheckpoint::parse(note)?;
                signed.verify(&ours)?;
                let it = &signed.checkpoint;
                if (it.size, it.root) != (frontier.size(), frontier.root()) {
                    return Err(LogError::Changed);
                }
            }
        }
        // Signed with our key, but not by us.
        if (head.epoch, head.size) == place && frontier.root() != root {
            let why = format!("this server has seen another story of the {} entries", head.size);
            return Err(self.halt(why));
        }
        Ok(frontier)
    }

    fn seen(&self) -> (Place, Hash) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, place: Place, root: Hash) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 < place {
            *seen = (place, root);
        }
    }

    fn halt(&self, why: String) -> LogError {
        if self.halted.set(why.clone()).is_ok() {
            tracing::error!(why, "the database is behind its log; nothing is served any more");
        }
        LogError::Behind(why)
    }

    /// Compares the database with the anchors, before anything is served: none may be ahead of it, and one has to answer. Begins
    /// the log if there is none.
    pub async fn compare(&self) -> Result<()> {
        self.begin().await?;
        let seen = self.seen();
        let head = store::head(&self.pool).await?.ok_or(LogError::NotBegun)?;
        match self.check(&head, seen) {
            // Another server signs: this one serves, and signs nothing.
            Ok(_) | Err(LogError::OtherKey { .. }) => {}
            Err(error) => return Err(error),
        }
        let (mut errors, mut shown) = (Vec::new(), false);
        for it in &self.anchors {
            match self.compare_one(it).await? {
                Ok(has) => shown |= has,
                Err(why) => errors.push(format!("{}: {why}", it.anchor.name)),
            }
        }
        // One that keeps nothing yet says nothing of what the silent ones keep.
        if !errors.is_empty() && !shown && (0 < head.size || errors.len() == self.anchors.len()) {
            return Err(LogError::NoAnchor(errors.join("; ")));
        }
        self.compared.get_or_init(|| ());
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Compares with the newest checkpoint of one anchor, if it has one; the inner error is why it did not answer as it should.
    async fn compare_one(&self, it: &Anchored) -> Result<Result<bool, String>> {
        let known = *it.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the anchor: another server may be taking the next one there.
        let told = store::told_anchored(&self.pool, &it.anchor.name).await?;
        let newest = match it.anchor.newest(known).await {
            Ok(newest) => newest,
            Err(error) => return Ok(Err(error.to_string())),
        };
        // A mount that is missing looks like a folder that is empty.
        let before = told.unwrap_or_default().max(known);
        let there = newest.as_ref().map_or((0, 0), |(epoch, it)| (*epoch, it.checkpoint.size));
        if there < before {
            return Ok(Err(format!(
                "it had a checkpoint of {} entries, and has it no more",
                before.1
            )));
        }
        let Some((epoch, signed)) = newest else { return Ok(Ok(false)) };
        let there = &signed.checkpoint;
        if there.origin != origin_of(&self.origin, epoch) {
            return Ok(Err(format!("it keeps checkpoints of {:?}", there.origin)));
        }
        // After the anchor: another server may have signed in the meantime, and taken it there.
        let head = store::head(&self.pool).await?.ok_or(LogError::NotBegun)?;
        let ahead = (head.epoch, head.size) < (epoch, there.size);
        if let Err(error) = signed.verify(&self.key.verifier_key(&there.origin)) {
            // Signed by a key of before: what is in the database too is good all the same.
            if ahead || !self.is_ours(epoch, &signed).await? {
                let why = format!(
                    "the newest checkpoint there ({} entries) does not count: {error}",
                    there.size
                );
                return Ok(Err(why));
            }
        }
        if ahead {
            let why = format!(
                "{} has a checkpoint of {} entries, the database {}",
                it.anchor.name, there.size, head.size
            );
            return Err(self.halt(why));
        }
        // Where the log was taken up again after a loss, what comes before has another story at its end.
        if epoch == head.epoch && self.root(there.size).await? != there.root {
            let why =
                format!("{} has another story of the first {} entries", it.anchor.name, there.size);
            return Err(self.halt(why));
        }
        *it.known.lock().unwrap_or_else(PoisonError::into_inner) = (epoch, there.size);
        self.saw((epoch, there.size), there.root);
        Ok(Ok(true))
    }

    async fn is_ours(&self, epoch: i32, signed: &SignedCheckpoint) -> Result<bool> {
        let ours = store::checkpoint(&self.pool, epoch, signed.checkpoint.size).await?;
        Ok(ours.is_some_and(|it| it == signed.note()))
    }

    /// The root of the tree of the first `size` entries.
    pub async fn root(&self, size: u64) -> Result<Hash> {
        with_hashes(&self.pool, |hashes| tree_hash(size, hashes)).await
    }

    /// Takes the newest checkpoint to every anchor that does not have it yet. Returns how many have it now.
    pub async fn anchor(&self) -> Result<usize> {
        if self.gate().is_err() {
            return Ok(0);
        }
        let seen = self.seen();
        let Some(head) = store::head(&self.pool).await? else { return Ok(0) };
        let root = self.check(&head, seen)?.root();
        let Some(note) = &head.note else { return Ok(0) };
        // Another server has gone on since: from where we were?
        let ((epoch, size), before) = seen;
        if epoch == head.epoch && size < head.size && self.root(size).await? != before {
            let why = format!("this server has seen another story of the first {size} entries");
            return Err(self.halt(why));
        }
        // What goes there is what the entries come to, not only what was signed.
        if self.root(head.size).await? != root {
            return Err(self.halt("its entries do not come to what was signed".to_owned()));
        }
        self.saw((head.epoch, head.size), root);
        let signed = SignedCheckpoint::parse(note)?;
        let mut taken = 0;
        for it in &self.anchors {
            let outcome = self.anchor_one(it, &head, &signed).await?;
            if let Err(why) = &outcome {
                tracing::warn!(
                    anchor = it.anchor.name,
                    why,
                    "an anchor did not take the checkpoint"
                );
            }
            taken += usize::from(outcome.is_ok());
            *it.error.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err();
        }
        Ok(taken)
    }

    async fn anchor_one(
        &self,
        it: &Anchored,
        head: &Head,
        signed: &SignedCheckpoint,
    ) -> Result<Result<(), String>> {
        let place = (head.epoch, head.size);
        if let Err(why) = self.compare_one(it).await? {
            return Ok(Err(why));
        }
        let known = *it.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known < place {
            match it.anchor.put(head.epoch, signed).await {
                Ok(()) => {}
                // Of our key or not, and another story or not: that is for the next comparison.
                Err(error) => return Ok(Err(error.to_string())),
            }
            *it.known.lock().unwrap_or_else(PoisonError::into_inner) = place;
        }
        let now = self.clock.now();
        store::tell_anchored(&self.pool, &it.anchor.name, head.epoch, head.size, now).await?;
        Ok(Ok(()))
    }

    /// Waits until the approval of a lease is anchored, for a while. Otherwise says why it is not.
    pub async fn anchored(&self, id: LeaseId) -> Result<Result<(), String>> {
        // Whoever asks again and again costs no more than so many looks at once.
        let Ok(_place) = self.waiting.try_acquire() else {
            self.hurry.notify_one();
            let anchored = self.is_anchored(id).await?;
            return Ok(if anchored { Ok(()) } else { Err(self.why_not_anchored()) });
        };
        let patience = tokio::time::Instant::now() + self.wait;
        while !self.is_anchored(id).await? {
            if patience <= tokio::time::Instant::now() {
                return Ok(Err(self.why_not_anchored()));
            }
            self.hurry.notify_one();
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Ok(()))
    }

    /// Whether an anchor has been seen, by this server, to keep a checkpoint of our log that covers the approval. What the
    /// database says of anchors, whoever has it can write.
    async fn is_anchored(&self, id: LeaseId) -> Result<bool> {
        let Some((epoch, index)) = store::approval_index(&self.pool, id).await? else {
            return Ok(false);
        };
        let covers = |it: &Anchored| {
            let known = *it.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.0 == epoch && index < known.1
        };
        Ok(self.anchors.iter().any(covers))
    }

    fn why_not_anchored(&self) -> String {
        if self.anchors.is_empty() {
            return "no anchor is configured".to_owned();
        }
        let told = |it: &Anchored| {
            let error = it.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Some(format!("{}: {}", it.anchor.name, error?))
        };
        let errors: Vec<_> = self.anchors.iter().filter_map(told).collect();
        if errors.is_empty() { "no anchor has it yet".to_owned() } else { errors.join("; ") }
    }

    /// Ends when a lease waits for its approval to be anchored.
    pub async fn somebody_waits(&self) {
        self.hurry.notified().await;
    }

    /// Proves that an event is in the log. Nothing if it has no place there yet, or is not here any more.
    pub async fn prove(&self, event: Uuid) -> Result<Option<Proof>> {
        let pool = &self.readers;
        let Some(index) = store::index_of(pool, event).await? else { return Ok(None) };
        let Some(note) = store::checkpoint_over(pool, index).await? else { return Ok(None) };
        let checkpoint = SignedCheckpoint::parse(&note)?;
        let entry = store::entries(pool, index, 1).await?.pop();
        let Some(body) = entry.and_then(|it| it.event).map(|it| it.body) else { return Ok(None) };
        let proof =
            with_hashes(pool, |hashes| Proof::new(body.clone(), index, checkpoint.clone(), hashes));
        Ok(Some(proof.await?))
    }

    /// Hands the log over to another key: the event that tells it is under a checkpoint that both have signed.
    pub async fn rotate(&self, new: &LogKey, now: OffsetDateTime) -> Result<Head> {
        // What was restored is not to be signed, here neither.
        self.compare().await?;
        let seen = self.seen();
        let mut transaction = self.pool.begin().await?;
        store::lock(&mut transaction).await?;
        let mut head = store::head(&mut *transaction).await?.ok_or(LogError::NotBegun)?;
        let mut frontier = self.check(&head, seen)?;
        let detail = serde_json::json!({ "old": head.key, "new": new.verifier_key(&head.origin) });
        let event = self.scribe.body(
            EventType::LogRotated,
            Actor::Operator,
            Subject::default(),
            detail,
            now,
        );
        store::append(&mut transaction, &event).await?;
        loop {
            let events = store::pending(&mut transaction, BATCH).await?;
            let last = events.iter().any(|it| it.body == event);
            let new = last.then_some(new);
            let advanced = self.advance(&mut transaction, head, frontier, &events, new).await?;
            (head, frontier) = advanced.ok_or(LogError::Changed)?;
            if last {
                transaction.commit().await?;
                return Ok(head);
            }
        }
    }
}

/// How far a database is behind its anchors.
#[derive(Debug)]
pub struct Behind {
    pub head: Head,
    /// The newest checkpoint that an anchor keeps.
    pub anchored: SignedCheckpoint,
    pub epoch: i32,
}

impl Sequencer {
    /// How far the database is behind; nothing if it is not. And the anchors that did not answer, and why: they may keep a newer
    /// checkpoint.
    pub async fn behind(&self) -> Result<(Option<Behind>, Vec<String>)> {
        self.begin().await?;
        let head = store::head(&self.pool).await?.ok_or(LogError::NotBegun)?;
        let (mut newest, mut silent, mut errors) = (None, Vec::new(), 0);
        for it in &self.anchors {
            let name = &it.anchor.name;
            match it.anchor.newest((0, 0)).await {
                Ok(Some((epoch, signed))) => {
                    let origin = origin_of(&self.origin, epoch);
                    if let Err(error) = signed.verify(&self.key.verifier_key(&origin)) {
                        silent
                            .push(format!("{name}: its newest checkpoint does not count: {error}"));
                        errors += 1;
                    } else if newest.as_ref().is_none_or(
                        |(before, it): &(i32, SignedCheckpoint)| {
                            (*before, it.checkpoint.size) < (epoch, signed.checkpoint.size)
                        },
                    ) {
                        newest = Some((epoch, signed));
                    }
                }
                Ok(None) => silent.push(format!("{name}: it keeps no checkpoint")),
                Err(error) => {
                    silent.push(format!("{name}: {error}"));
                    errors += 1;
                }
            }
        }
        let Some((epoch, anchored)) = newest else {
            return if errors == 0 {
                Ok((None, silent))
            } else {
                Err(LogError::NoAnchor(silent.join("; ")))
            };
        };
        let behind = (head.epoch, head.size) < (epoch, anchored.checkpoint.size);
        Ok((behind.then_some(Behind { head, anchored, epoch }), silent))
    }

    /// Lets the log go on behind what is left of it, under a new name, in the owner's transaction: what was voided there, and
    /// that the log was taken up again, is under its first checkpoint.
    pub async fn go_on(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        behind: &Behind,
        now: OffsetDateTime,
    ) -> Result<Head> {
        let seen = self.seen();
        store::lock(transaction).await?;
        let before = store::head(&mut **transaction).await?.ok_or(LogError::NotBegun)?;
        if (before.epoch, before.size) != (behind.head.epoch, behind.head.size) {
            return Err(LogError::MovedOn);
        }
        let frontier = self.check(&before, seen)?;
        let epoch = behind.epoch.max(before.epoch) + 1;
        let (origin, size) = (origin_of(&self.origin, epoch), before.size);
        let key = self.key.verifier_key(&origin);
        let detail = serde_json::json!({ "anchored": behind.anchored.note(), "size": size, "epoch": epoch, "origin": origin });
        let event = self.scribe.body(
            EventType::LogRecovered,
            Actor::Operator,
            Subject::default(),
            detail,
            now,
        );
        crate::store::next_epoch(transaction, epoch, &origin, &key, &event).await?;
        let head = Head { origin, epoch, key, ..before };
        // One checkpoint over everything: the first of the new name covers the event that tells of it.
        let events = store::pending(transaction, i32::MAX).await?;
        let advanced = self.advance(transaction, head, frontier, &events, None).await?;
        Ok(advanced.ok_or(LogError::Changed)?.0)
    }
}

/// Runs something over hashes of the tree: once to see which, once with them.
async fn with_hashes<T>(pool: &PgPool, run: impl Fn(&Hashes) -> Result<T, TreeError>) -> Result<T> {
    let asked = Hashes::default();
    // What comes out of no hashes at all is nothing yet.
    let _ = run(&asked);
    let indexes = asked.asked.into_inner().unwrap_or_else(PoisonError::into_inner);
    let hashes = store::stored_hashes(pool, &indexes).await?;
    let known = indexes.into_iter().zip(hashes).collect();
    Ok(run(&Hashes { known, ..Hashes::default() })?)
}

#[derive(Default)]
struct Hashes {
    asked: Mutex<Vec<u64>>,
    known: std::collections::HashMap<u64, Hash>,
}

impl HashReader for Hashes {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, TreeError> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).extend(indexes);
        let get = |it| self.known.get(it).copied().unwrap_or(tlog_tiles::EMPTY_HASH);
        Ok(indexes.iter().map(get).collect())
    }
}
