//! The use cases. Each public method is one request, read top to bottom.

mod request;

mod approval;
mod claim;
mod refuse;
mod sign;

mod act;
mod exchange;
mod read;
mod record;
mod stop;

pub(crate) use self::act::{nonce, whole_microseconds};
pub use self::record::Page;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::{Notify, OnceCell, broadcast};
use uuid::Uuid;

use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::aws::{Minted, Revoker, Sts};
use crate::clock::Clock;
use crate::config::{Config, Limits};
use crate::error::Result;
use crate::identity::{Agent, Tokens};
use crate::lease::LeaseId;
use crate::policy::AgentFacts;
use crate::sequencer::Sequencer;
use crate::store;

/// Of an agent whose token nobody shows: what is ruled about it, and not what it asks for.
const NO_CLAIMS: &BTreeMap<String, String> = &BTreeMap::new();

pub struct Broker {
    pub config: Config,
    pub pool: PgPool,
    pub sts: Sts,
    revoker: Revoker,
    pub tokens: Tokens,
    pub log: Sequencer,
    pub clock: Clock,
    scribe: Scribe,
    /// Set once the ruleset in force is in the database.
    kept: OnceCell<()>,
    delivered: Mutex<HashMap<LeaseId, Delivered>>,
    /// Leases that changed; `None` when some may have been missed.
    changes: broadcast::Sender<Option<LeaseId>>,
    /// Something is to be stopped on AWS.
    to_stop: Notify,
    /// Whose policies this server writes.
    roles: stop::Roles,
    refusals: Arc<refuse::Refusals>,
}

/// AWS, as the minter and as the revoker.
pub struct Cloud {
    pub sts: Sts,
    pub revoker: Revoker,
}

/// A live session's credentials, kept in memory only, to be handed to the same agent again.
struct Delivered {
    agent: String,
    sponsor: String,
    scope: String,
    session_id: Uuid,
    region: String,
    minted: Minted,
    /// When AWS refuses it, if that is before it ends.
    until: Option<OffsetDateTime>,
}

impl Broker {
    pub fn new(
        config: Config,
        pool: PgPool,
        cloud: Cloud,
        tokens: Tokens,
        log: Sequencer,
        clock: Clock,
    ) -> Self {
        let Cloud { sts, revoker } = cloud;
        let scribe = Scribe { source: config.settings.origin.clone() };
        let (changes, _) = broadcast::channel(1024);
        Self {
            config,
            pool,
            sts,
            revoker,
            tokens,
            log,
            clock,
            scribe,
            kept: OnceCell::new(),
            delivered: Mutex::default(),
            changes,
            to_stop: Notify::new(),
            roles: stop::Roles::default(),
            refusals: Arc::default(),
        }
    }

    /// An agent, as rules see it.
    fn facts<'a>(&'a self, agent: &'a Agent, sponsor_groups: &'a [String]) -> AgentFacts<'a> {
        AgentFacts {
            name: &agent.name,
            sponsor: &agent.sponsor,
            sponsor_groups,
            issuer: agent.origin.issuer.as_deref().unwrap_or(&self.config.settings.origin),
            actor: agent.origin.actor.as_deref(),
            claims: &agent.origin.claims,
        }
    }

    /// The groups of an agent's sponsor, unless the sponsor is disabled; nobody looks where no rule asks.
    async fn sponsor_groups(&self, sponsor: &str) -> Result<Option<Vec<String>>> {
        if !self.config.policy.reads_sponsor_groups() {
            return Ok(Some(Vec::new()));
        }
        Ok(store::active_person(&self.pool, sponsor).await?.map(|it| it.groups))
    }

    /// Records an event that comes with no other change.
    pub async fn tell(
        &self,
        kind: EventType,
        actor: Actor<'_>,
        subject: Subject<'_>,
        detail: serde_json::Value,
    ) -> Result<()> {
        let event = self.scribe.body(kind, actor, subject, detail, self.clock.now());
        Ok(store::tell(&self.pool, event).await?)
    }

    fn limits(&self) -> Limits {
        self.config.settings.limits
    }

    /// Ends what time has ended; see [`store::sweep`].
    pub async fn sweep(&self) -> Result<usize> {
        let now = self.clock.now();
        let swept = store::sweep(&self.pool, &self.scribe, &self.limits(), now).await?;
        Ok(swept + self.finish_acts(now).await?)
    }

    /// Passes the database's notices on to whoever waits. Ends only with an error.
    pub async fn watch(&self) -> Result<()> {
        Ok(store::listen(&self.pool, |id| drop(self.changes.send(id))).await?)
    }
}
