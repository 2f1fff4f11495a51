//! Every SQL statement. The only module that talks to PostgreSQL.
//!
//! A state change and its events are one transaction, mostly one statement. Whoever locks a lease and a session
//! locks the lease first.

mod budget;
pub mod log;
mod look;
mod request;

mod claim;
mod sign;

mod act;
mod approval;
mod exchange;
mod people;
mod read;
mod recover;
mod stop;
mod sweep;

use std::str::FromStr;
use std::time::Duration as StdDuration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Connection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::act::{
    ActApproval, Counted, FindActs, Freeze, NewActSignature, StoredAct, act_approval, acts,
    end_task, finish_act, is_sponsor_of, last_sponsor, open_drafts, owner_of_key, propose,
    sign_act, standing_freeze,
};
pub use self::approval::{approval, enrolment};
pub use self::budget::{Admission, Exceeded, OverBudget, Used, admission, tell_exceeded, usage};
pub use self::claim::{
    Approval, Claimable, Granted, Obstacle, claim, claim_obstacle, claimable, redeliver, settle,
};
pub use self::exchange::{StartedWorkload, WorkloadTask, start_workload_task};
pub use self::look::{CATALOG, look, newest_migration};
pub use self::people::{Enrolled, admin, bootstrap_is_over, enrol, everybody, running_task};
pub use self::read::{Find, Person, Viewer, active_person, find, origin, statement, task_is_live};
pub use self::recover::{Voided, next_epoch, roles_of_leases, void_everything};
pub use self::request::{
    LastApproved, NewLease, NewOutcome, Opened, Terms, by_idempotency_key, eligible_signers,
    keep_ruleset, last_approved, open,
};
pub use self::sign::{
    KeyHolder, NewSignature, Signable, key_holder, sign, signable, spend_nonce, tell, tell_all,
    withdraw,
};
pub use self::stop::{
    HeldRole, NewFreeze, NewProbe, ToStop, WhatStops, freeze, freezes, is_known, new_probe,
    probe_failed, probe_minted, probe_refused, probe_works, revoke, roles_to_stop,
    stop_what_is_frozen,
};
pub use self::sweep::sweep;
use crate::lease::{LeaseId, UnknownWord};
use crate::statement::AssumeRole;

pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Makes the cluster's roles; see the file.
pub const ROLES: &str = include_str!("../../migrations/bootstrap/roles.sql");

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

/// How long a request waits for a connection.
const POOL_WAIT: StdDuration = StdDuration::from_secs(2);
/// A pooled connection that was idle for so long is tried before it is used.
const STALE_AFTER: StdDuration = StdDuration::from_secs(5);
const STATEMENT_TIMEOUT: &str = "5s";

/// Proof that a lease was approved, is not frozen, and that this caller alone has claimed it.
///
/// Only this module makes one, and by then the claim is durable: whatever the cloud does next, the database
/// already says that it was asked.
#[derive(Debug)]
pub struct Warrant {
    lease_id: LeaseId,
    session: NewSession,
    assume_role: AssumeRole,
    /// Of the bytes that were signed, in hex.
    statement_sha256: Option<String>,
    tier: Option<&'static str>,
    region: String,
    /// When the window of an unsigned lease ends: its session policy allows nothing later.
    until: Option<OffsetDateTime>,
}

impl Warrant {
    /// The scope's name, as the session's tags have it.
    pub fn scope(&self) -> &str {
        self.assume_role.tags.get("broker:scope").map_or("", String::as_str)
    }

    /// Where the lease is to be used.
    pub fn region(&self) -> &str {
        &self.region
    }

    pub fn lease_id(&self) -> LeaseId {
        self.lease_id
    }

    /// When AWS refuses what the session does, if that is before the session ends.
    pub fn until(&self) -> Option<OffsetDateTime> {
        self.until
    }

    pub fn session_id(&self) -> Uuid {
        self.session.id
    }

    pub fn session_name(&self) -> &str {
        &self.session.name
    }

    /// An event's detail, with the tier and the digest of the bytes that people signed: whoever verifies the log looks for them.
    fn with_what_was_signed(&self, mut detail: serde_json::Value) -> serde_json::Value {
        detail["tier"] = self.tier.into();
        detail["statement_sha256"] = self.statement_sha256.as_deref().into();
        detail
    }

    pub fn assume_role(&self) -> &AssumeRole {
        &self.assume_role
    }
}

/// A session about to be claimed. Its name ends in random letters, so that no policy can name it beforehand.
#[derive(Clone, Debug)]
pub struct NewSession {
    pub id: Uuid,
    pub name: String,
}

impl NewSession {
    pub fn for_lease(id: LeaseId) -> Self {
        Self { id: Uuid::now_v7(), name: format!("{id}-{:08x}", rand::random::<u32>()) }
    }
}

/// Opens the server's pool. Connects lazily: the database may come later than we do.
pub fn pool(url: &str) -> Result<PgPool> {
    pool_of(url, 32, STATEMENT_TIMEOUT)
}

fn pool_of(url: &str, connections: u32, statement_timeout: &str) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url)?.application_name("brokerd").options([
        ("statement_timeout", statement_timeout),
        ("timezone", "UTC"),
        ("synchronous_commit", "on"),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(POOL_WAIT)
        // A ping before every use would be a round trip on the lease path.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for < STALE_AFTER {
                    return Ok(true);
                }
                Ok(connection.ping().await.is_ok())
            })
        })
        .connect_lazy_with(options))
}

/// Brings the schema up to date, as the owner.
pub async fn migrate(admin_url: &str) -> Result<(), sqlx::migrate::MigrateError> {
    let mut connection = admin(admin_url).await?;
    MIGRATOR.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Whether the database answers and its schema is the one that this program was built for.
pub async fn ready(pool: &PgPool) -> Result<bool> {
    let applied =
        sqlx::query_scalar!(r#"select schema_version() as "version!""#).fetch_one(pool).await?;
    Ok(applied == newest_migration())
}

/// Makes the event partitions of this month and the next two.
pub async fn make_partitions(pool: &PgPool, now: OffsetDateTime) -> Result<()> {
    sqlx::query!(
        r#"
        select make_event_partition((date_trunc('month', $1::timestamptz at time zone 'UTC') + make_interval(months => ahead))::date)
          from generate_series(0, 2) as ahead
        "#,
        now,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Wakes `on_change` with each lease that changed, and with `None` when changes may have been missed.
pub async fn listen(pool: &PgPool, on_change: impl Fn(Option<LeaseId>)) -> Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen("lease_changed").await?;
    on_change(None);
    loop {
        let notification = listener.try_recv().await?;
        on_change(notification.and_then(|it| it.payload().parse().ok()));
    }
}

/// Reads one of our own words; anything else means that the schema and this program differ.
fn word<T: FromStr<Err = UnknownWord>>(text: &str) -> Result<T> {
    text.parse().map_err(|error: UnknownWord| sqlx::Error::Decode(Box::new(error)))
}
