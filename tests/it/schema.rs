//! What must never happen is refused by the schema itself, whatever the server believes and whoever has a hand in
//! the database: the server's role, the owner, or a superuser who switched ordinary triggers off.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

use broker::audit::EventType;
use broker::store;
use serde_json::json;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tests::keys::Key;
use tests::stack::Database;
use tests::sts::FakeSts;
use tests::{TestBroker, enrol};
use uuid::Uuid;

/// SQLSTATE `integrity_constraint_violation`: what our own triggers raise.
const GUARD: &str = "23000";
const CHECK: &str = "23514";
const NOT_NULL: &str = "23502";
const UNIQUE: &str = "23505";
const FOREIGN_KEY: &str = "23503";
const DENIED: &str = "42501";
const READ_ONLY: &str = "25006";

/// When everything here happens.
const AT: &str = "'2026-01-01 12:00Z'::timestamptz";

const LEASE_STATES: [&str; 10] = [
    "pending",
    "approved",
    "issued",
    "expired",
    "denied",
    "refused",
    "withdrawn",
    "lapsed",
    "failed",
    "revoked",
];
const OPEN_LEASE_STATES: [&str; 3] = ["pending", "approved", "issued"];
const LEASE_TRANSITIONS: [(&str, &str); 13] = [
    ("pending", "approved"),
    ("pending", "refused"),
    ("pending", "withdrawn"),
    ("pending", "lapsed"),
    ("pending", "revoked"),
    ("approved", "issued"),
    ("approved", "withdrawn"),
    ("approved", "lapsed"),
    ("approved", "failed"),
    ("approved", "expired"),
    ("approved", "revoked"),
    ("issued", "expired"),
    ("issued", "revoked"),
];

const SESSION_STATES: [&str; 6] = ["issuing", "live", "failed", "expired", "revoking", "stopped"];
const SESSION_TRANSITIONS: [(&str, &str); 7] = [
    ("issuing", "live"),
    ("issuing", "failed"),
    ("issuing", "revoking"),
    ("live", "expired"),
    ("live", "revoking"),
    ("revoking", "stopped"),
    ("revoking", "expired"),
];

/// What a lease's row may still learn, and so what the server's role may write.
const LEASE_MUTABLE: [&str; 8] = [
    "state",
    "approved_at",
    "claim_by",
    "claimed_at",
    "issued_at",
    "ends_at",
    "ended_at",
    "end_reason",
];
const SESSION_MUTABLE: [&str; 14] = [
    "state",
    "settled_at",
    "access_key_id",
    "expires_at",
    "failure",
    "deliveries",
    "last_delivered_at",
    "revoking_at",
    "stop_reason",
    "freeze_id",
    "denied_at",
    "probe_id",
    "stopped_at",
    "stopped_region",
];
const ROLE_STOP_MUTABLE: [&str; 7] = [
    "cut_off",
    "written_at",
    "written_cut_off",
    "next_check_at",
    "failures",
    "next_try_at",
    "last_error",
];
const PROBE_MUTABLE: [&str; 8] = [
    "access_key_id",
    "expires_at",
    "tried_at",
    "proven_at",
    "denied_at",
    "refused_at",
    "region",
    "failure",
];

/// The role that sessions here are minted from, and one that has nothing to do with them.
const ROLE: &str = "arn:aws:iam::000000000000:role/broker-staging";
const OTHER_ROLE: &str = "arn:aws:iam::000000000000:role/broker-backup";
/// A probe on that role, refused after a policy that was written at [`AT`].
const PROBE: Uuid = Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0001);
/// How far a probe comes, and what it has seen then.
const PROBE_STEPS: [(&str, &str); 5] = [
    ("issuing", ""),
    ("minted", "access_key_id = 'ASIA2', expires_at = $AT + interval '15m'"),
    ("proven", "tried_at = $AT, proven_at = $AT"),
    ("denied", "denied_at = $AT"),
    ("refused", "tried_at = $AT, refused_at = $AT, region = 'us-east-1'"),
];

fn quoted(text: impl Display) -> String {
    format!("'{text}'")
}

// ------------------------------------------------------------------------------------------------------- the hands

/// Somebody with a hand in the database.
struct Hand {
    name: &'static str,
    connection: PgConnection,
}

impl Hand {
    /// Tries something and takes it back: how many rows it changed, or the SQLSTATE and why not.
    async fn tries(&mut self, sql: &str) -> Result<u64, (String, String)> {
        let mut transaction = self.connection.begin().await.expect("a transaction");
        let tried = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *transaction).await;
        transaction.rollback().await.expect("taken back");
        let error = match tried {
            Ok(done) => return Ok(done.rows_affected()),
            Err(error) => error.into_database_error().expect("an answer of the database"),
        };
        let code = error.code().expect("a SQLSTATE").into_owned();
        let why = match error.constraint() {
            // PostgreSQL numbers checks; what they say is what we know them by.
            Some(name) if code == CHECK => {
                self.check(name, error.table().unwrap_or_default()).await
            }
            _ => error.message().to_owned(),
        };
        Err((code, why))
    }

    async fn check(&mut self, name: &str, table: &str) -> String {
        let sql = "select pg_get_constraintdef(oid) from pg_constraint
                    where conname = $1 and conrelid = to_regclass(quote_ident($2)) and contype = 'c'";
        let check = sqlx::query_scalar(sql).bind(name).bind(table);
        check.fetch_one(&mut self.connection).await.expect("the check")
    }

    async fn may(&mut self, sql: &str) {
        let tried = self.tries(sql).await;
        assert!(matches!(tried, Ok(1..)), "{} may not: {sql}: {tried:?}", self.name);
    }

    async fn may_not(&mut self, sql: &str, code: &str, why: &str) {
        let tried = self.tries(sql).await;
        let refused = matches!(&tried, Err((it, text)) if it == code && text.contains(why));
        assert!(refused, "{}, not refused by {code} {why:?}: {sql}: {tried:?}", self.name);
    }

    /// Does it, and it stays done.
    async fn does(&mut self, sql: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await;
        assert!(matches!(&done, Ok(it) if it.rows_affected() > 0), "{sql}: {done:?}");
    }
}

/// A row of which tests insert copies.
struct Template {
    table: &'static str,
    columns: Vec<String>,
    id: Uuid,
}

impl Template {
    async fn new(owner: &mut PgConnection, table: &'static str, id: Uuid) -> Self {
        let sql = "select attname::text from pg_attribute
                    where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = ''";
        let columns = sqlx::query_scalar(sql).bind(table).fetch_all(owner).await.expect("columns");
        Self { table, columns, id }
    }

    /// A statement that inserts a copy in which some columns are otherwise.
    fn copy(&self, with: &[(&str, &str)]) -> String {
        for (name, _) in with {
            assert!(self.columns.iter().any(|it| it == name), "{} has no {name}", self.table);
        }
        let value = |column: &String| {
            let other = with.iter().find(|(name, _)| name == column);
            other.map_or(column.as_str(), |(_, value)| value).to_owned()
        };
        let values: Vec<_> = self.columns.iter().map(value).collect();
        format!(
            "insert into {table} ({}) select {} from {table} where id = '{}'",
            self.columns.join(", "),
            values.join(", "),
            self.id,
            table = self.table,
        )
    }
}

/// A database with a pending lease, an approved one and a session in it, and everybody's hands.
struct World {
    broker: TestBroker,
    app: Hand,
    owner: Hand,
    /// A superuser for whom only triggers that are `enable always` fire, and no foreign key is checked.
    replica: Hand,
    signed: Template,
    unsigned: Template,
    session: Template,
}

impl World {
    async fn new() -> Self {
        let sts = FakeSts::start().await;
        let broker = TestBroker::fake(&sts).await;
        let (signed, unsigned, claimed) = (
            broker.pending_lease().await.0,
            broker.staging_lease().await.0,
            broker.staging_lease().await,
        );
        assert!(broker.claim(claimed).await.status.is_success());

        let app = PgConnection::connect(&broker.database.app_url).await.expect("the server's role");
        let mut owner = store::admin(&broker.database.admin_url).await.expect("the owner");
        let mut replica =
            PgConnection::connect(&broker.database.superuser_url).await.expect("a superuser");
        sqlx::raw_sql("set session_replication_role = replica")
            .execute(&mut replica)
            .await
            .expect("a superuser may");
        let session: Uuid = sqlx::query_scalar("select id from session where lease_id = $1")
            .bind(claimed.0)
            .fetch_one(&mut owner)
            .await
            .expect("the session");
        let mut world = Self {
            signed: Template::new(&mut owner, "lease", signed).await,
            unsigned: Template::new(&mut owner, "lease", unsigned).await,
            session: Template::new(&mut owner, "session", session).await,
            broker,
            app: Hand { name: "broker_app", connection: app },
            owner: Hand { name: "broker_owner", connection: owner },
            replica: Hand { name: "a replica's superuser", connection: replica },
        };
        for role in [ROLE, OTHER_ROLE] {
            world.owner.does(&format!("insert into role_stop (role_arn) values ('{role}')")).await;
        }
        world.probe_comes_to("refused", PROBE, ROLE, AT).await;
        world
    }

    fn hands(&mut self) -> [&mut Hand; 3] {
        [&mut self.app, &mut self.owner, &mut self.replica]
    }

    async fn everybody_may(&mut self, sql: &str) {
        for hand in self.hands() {
            hand.may(sql).await;
        }
    }

    async fn nobody_may(&mut self, sql: &str, code: &str, why: &str) {
        for hand in self.hands() {
            hand.may_not(sql, code, why).await;
        }
    }

    /// The server's role has no right to it; who has every right meets a guard.
    async fn guarded(&mut self, sql: &str, why: &str) {
        self.app.may_not(sql, DENIED, "permission denied for table").await;
        self.owner.may_not(sql, GUARD, why).await;
        self.replica.may_not(sql, GUARD, why).await;
    }

    /// It is the guards that refuse, and nothing else: without them it would be done.
    async fn only_guards_refuse(&mut self, tables: &[&str], sql: &str) {
        let off = |table: &&str| format!("alter table {table} disable trigger user; ");
        let sql = tables.iter().map(off).collect::<String>() + sql;
        let tried = self.owner.tries(&sql).await;
        assert!(tried.is_ok(), "{sql}: {tried:?}");
    }

    /// A lease that came to `state` the lawful way; once approved, by bob. Those that were issued were claimed.
    async fn lease_in(&mut self, state: &str, signed: bool) -> Uuid {
        let id = Uuid::new_v4();
        let own = quoted(id);
        let mut with = vec![("id", own.as_str())];
        if state == "denied" {
            with.extend([
                ("state", "'denied'"),
                ("sign_by", "null"),
                ("ended_at", AT),
                ("end_reason", "'no'"),
            ]);
        }
        let template = if signed { &self.signed } else { &self.unsigned };
        self.owner.does(&template.copy(&with)).await;
        if signed && state != "denied" {
            let sql = format!(
                "insert into statement (lease_id, bytes) values ('{id}', convert_to('{id}', 'UTF8'))"
            );
            self.owner.does(&sql).await;
        }
        let path: &[&str] = match (state, signed) {
            ("pending", true) | ("denied", _) | ("approved", false) => &[],
            ("approved", true) => &["approved"],
            ("issued", true) => &["approved", "issued"],
            ("expired", true) => &["approved", "issued", "expired"],
            ("failed", true) => &["approved", "failed"],
            ("expired", false) => &["issued", "expired"],
            (state, _) => &[state],
        };
        for step in path {
            if *step == "approved" {
                self.owner.does(&signature(id, "bob", &self.broker.bob, &[])).await;
            }
            self.owner.does(&lease_to(step, id)).await;
        }
        id
    }

    async fn claimed_lease(&mut self, signed: bool) -> Uuid {
        let id = self.lease_in("approved", signed).await;
        self.owner.does(&format!("update lease set claimed_at = {AT} where id = '{id}'")).await;
        id
    }

    /// A statement that inserts a session about to be minted under a lease.
    fn session_of(&self, lease: Uuid, signed: bool) -> String {
        self.session_as(Uuid::new_v4(), lease, signed, &ISSUING)
    }

    fn session_as(&self, id: Uuid, lease: Uuid, signed: bool, state: &[(&str, &str)]) -> String {
        let (own, lease, signed) = (quoted(id), quoted(lease), signed.to_string());
        let mut with =
            vec![("id", &*own), ("session_name", &own), ("lease_id", &lease), ("signed", &signed)];
        with.extend(state);
        self.session.copy(&with)
    }

    /// A session that came to `state` the lawful way, under an unsigned lease.
    async fn session_in(&mut self, state: &str) -> Uuid {
        let lease = self.claimed_lease(false).await;
        let id = Uuid::new_v4();
        self.owner.does(&self.session_as(id, lease, false, &ISSUING)).await;
        let path: &[&str] = match state {
            "issuing" => &[],
            "expired" => &["live", "expired"],
            "stopped" => &["live", "revoking", "stopped"],
            state => &[state],
        };
        for step in path {
            self.owner.does(&session_to(step, id)).await;
        }
        id
    }

    /// A probe on a role, all of it at some time.
    async fn probe_comes_to(&mut self, last: &str, id: Uuid, role: &str, at: &str) {
        self.owner.does(&new_probe(id, role, at)).await;
        for (step, set) in &PROBE_STEPS[1..] {
            if PROBE_STEPS.iter().position(|it| it.0 == *step)
                <= PROBE_STEPS.iter().position(|it| it.0 == last)
            {
                let set = set.replace("$AT", at);
                self.owner.does(&format!("update probe set {set} where id = '{id}'")).await;
            }
        }
    }

    async fn probe_at(&mut self, last: &str) -> Uuid {
        let id = Uuid::new_v4();
        self.probe_comes_to(last, id, ROLE, AT).await;
        id
    }

    /// Each column of a table but the generated ones, with an expression that differs from what it holds.
    async fn other_values(&mut self, table: &str) -> Vec<(String, String)> {
        let sql = "select attname::text, format_type(atttypid, atttypmod) from pg_attribute
                    where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = ''";
        let columns: Vec<(String, String)> = sqlx::query_as(sql)
            .bind(table)
            .fetch_all(&mut self.owner.connection)
            .await
            .expect("columns");
        let other = |(name, kind): (String, String)| {
            let other = match kind.as_str() {
                "uuid" => "gen_random_uuid()".to_owned(),
                "text" => format!("coalesce({name}, '') || 'x'"),
                "text[]" => format!("{name} || '{{x}}'"),
                "bytea" => format!("sha256({name})"),
                "jsonb" => "'{}'".to_owned(),
                "boolean" => format!("not {name}"),
                "smallint" | "integer" => format!("{name} + 1"),
                "timestamp with time zone" => format!("coalesce({name}, {AT}) + interval '1s'"),
                kind => panic!("what differs from a {kind}?"),
            };
            (name, other)
        };
        columns.into_iter().map(other).collect()
    }
}

const ISSUING: [(&str, &str); 6] = [
    ("state", "'issuing'"),
    ("settled_at", "null"),
    ("access_key_id", "null"),
    ("expires_at", "null"),
    ("deliveries", "0"),
    ("last_delivered_at", "null"),
];

/// A statement that brings a lease to a state, with every column that the state's own checks ask for.
fn lease_to(state: &str, id: Uuid) -> String {
    let once = |column: &str, after: &str| {
        format!(", {column} = coalesce({column}, {AT} + interval '{after}')")
    };
    let mut set = format!("state = '{state}'");
    if matches!(state, "approved" | "issued" | "expired" | "failed") {
        set += &(once("approved_at", "0") + &once("claim_by", "15m"));
    }
    if state == "issued" {
        set += &(once("claimed_at", "0") + &once("issued_at", "0") + &once("ends_at", "15m"));
    }
    if !OPEN_LEASE_STATES.contains(&state) {
        set += &(once("ended_at", "0") + ", end_reason = 'x'");
    }
    format!("update lease set {set} where id = '{id}'")
}

fn session_to(state: &str, id: Uuid) -> String {
    let mut set = format!("state = '{state}'");
    if state != "issuing" {
        let _ = write!(set, ", settled_at = coalesce(settled_at, {AT})");
    }
    if matches!(state, "live" | "expired") {
        let _ = write!(
            set,
            ", access_key_id = coalesce(access_key_id, 'ASIA1'), expires_at = coalesce(expires_at, {AT})"
        );
    }
    match state {
        "failed" => set += ", failure = 'x'",
        "revoking" => {
            let _ = write!(
                set,
                ", revoking_at = coalesce(revoking_at, {AT}), stop_reason = coalesce(stop_reason, 'x')"
            );
        }
        "stopped" => return stop(id, &[]),
        _ => {}
    }
    format!("update session set {set} where id = '{id}'")
}

/// A statement that calls a session stopped, as [`PROBE`] has seen it, some of it otherwise.
fn stop(id: Uuid, with: &[(&str, &str)]) -> String {
    let probe = quoted(PROBE);
    let columns = [
        ("state", "'stopped'"),
        ("access_key_id", "coalesce(access_key_id, 'ASIA1')"),
        ("expires_at", "coalesce(expires_at, settled_at)"),
        ("denied_at", AT),
        ("probe_id", &probe),
        ("stopped_at", AT),
        ("stopped_region", "'us-east-1'"),
    ];
    let value = |(name, value): &(&str, &str)| {
        let value = with.iter().find(|(it, _)| it == name).map_or(*value, |(_, other)| *other);
        format!("{name} = {value}")
    };
    let set: Vec<_> = columns.iter().map(value).collect();
    format!("update session set {} where id = '{id}'", set.join(", "))
}

/// A statement that inserts a probe about to be minted.
fn new_probe(id: Uuid, role: &str, at: &str) -> String {
    format!(
        "insert into probe (id, role_arn, session_name, claimed_at) values ('{id}', '{role}', 'probe-{id}', {at})"
    )
}

/// A statement that inserts a software key's approval, some of it otherwise.
fn signature(lease: Uuid, person: &str, key: &Key, with: &[(&str, &str)]) -> String {
    let (lease, person, key) = (quoted(lease), quoted(person), quoted(key.fingerprint()));
    let columns = [
        ("lease_id", lease.as_str()),
        ("person", &person),
        ("fingerprint", &key),
        ("decision", "'approve'"),
        ("signature", "'as it came'"),
        ("assurance", "'software'"),
        ("signed_at", AT),
    ];
    let value = |(name, value): &(&str, &str)| {
        with.iter().find(|(it, _)| it == name).map_or(*value, |(_, other)| *other).to_owned()
    };
    let names: Vec<_> = columns.iter().map(|it| it.0).collect();
    let values: Vec<_> = columns.iter().map(value).collect();
    format!("insert into signature ({}) values ({})", names.join(", "), values.join(", "))
}

// ------------------------------------------------------------------------------------------------------- signatures

#[tokio::test]
async fn nobody_who_stands_behind_a_lease_signs_for_it() {
    let mut world = World::new().await;
    let (alice, bob) = (world.broker.alice.clone(), world.broker.bob.clone());
    // Even where a list names the sponsor and whoever set a pipeline off, by mistake or by malice.
    let with = async |world: &mut World, with: &[(&str, &str)]| {
        let id = Uuid::new_v4();
        let own = quoted(id);
        let with = [&[("id", &*own), ("eligible_signers", "'{alice,bob,carol}'")], with].concat();
        let lease = world.signed.copy(&with);
        world.owner.does(&lease).await;
        let statement = format!("insert into statement (lease_id, bytes) values ('{id}', '{id}')");
        world.owner.does(&statement).await;
        id
    };
    let production = with(&mut world, &[]).await;
    // Whoever set them off: their tasks say so.
    let mut tasks = Vec::new();
    for actor in ["bob", "alice"] {
        let id = Uuid::new_v4();
        let task = format!(
            "insert into task (id, agent, sponsor, task, started_at, expires_at, issuer, subject, token_sha256, actor, claims)
             select '{id}', agent, sponsor, task, started_at, expires_at, 'i', 's', sha256('{actor}'), '{actor}', '{{}}' from task limit 1"
        );
        world.owner.does(&task).await;
        tasks.push(quoted(id));
    }
    let piped = with(&mut world, &[("actor", "'bob'"), ("task_id", &tasks[0])]).await;
    let staging = [("tier", "'staging-sensitive'"), ("environment", "'staging'")];
    let sensitive = with(&mut world, &staging).await;
    let by_alice = [("actor", "'alice'"), ("task_id", &*tasks[1])];
    let piped_sensitive = with(&mut world, &[staging, by_alice].concat()).await;
    let destructive = with(&mut world, &[("tier", "'destructive'")]).await;

    let behind = "stands behind lease";
    world.nobody_may(&signature(production, "alice", &alice, &[]), GUARD, behind).await;
    world.nobody_may(&signature(destructive, "alice", &alice, &[]), GUARD, behind).await;
    world.nobody_may(&signature(piped, "bob", &bob, &[]), GUARD, behind).await;
    world.nobody_may(&signature(piped_sensitive, "alice", &alice, &[]), GUARD, behind).await;

    world.everybody_may(&signature(production, "bob", &bob, &[])).await;
    world.everybody_may(&signature(sensitive, "alice", &alice, &[])).await;
}

#[tokio::test]
async fn nobody_signs_who_is_not_eligible_or_no_longer_there() {
    let mut world = World::new().await;
    let (bob, dave) = (world.broker.bob.clone(), world.broker.dave.clone());
    let id = world.lease_in("pending", true).await;
    world.nobody_may(&signature(id, "dave", &dave, &[]), GUARD, "dave may not sign").await;

    let good = signature(id, "bob", &bob, &[]);
    world.everybody_may(&good).await;
    world.owner.does("update person set disabled_at = created_at where handle = 'bob'").await;
    world.nobody_may(&good, GUARD, "the key of bob is not good").await;
    world.owner.does("update person set disabled_at = null where handle = 'bob'").await;
    world.everybody_may(&good).await;
}

#[tokio::test]
async fn a_key_signs_only_for_its_person_as_what_it_is_and_before_it_is_revoked() {
    let mut world = World::new().await;
    let (bob, carol) = (world.broker.bob.clone(), world.broker.carol.clone());
    let id = world.lease_in("pending", true).await;
    let not_good = "the key of bob is not good";
    world.nobody_may(&signature(id, "bob", &carol, &[]), GUARD, not_good).await;
    world.nobody_may(&signature(id, "bob", &Key::software(), &[]), GUARD, not_good).await;
    let stronger = signature(id, "bob", &bob, &[("assurance", "'verified'")]);
    world.nobody_may(&stronger, GUARD, not_good).await;

    let good = signature(id, "bob", &bob, &[]);
    world.everybody_may(&good).await;
    let revoke = |at: &str| format!("update person_key set revoked_at = {at} where person = 'bob'");
    world.owner.does(&revoke(AT)).await;
    world.nobody_may(&good, GUARD, not_good).await;
    world.owner.does(&revoke(&format!("{AT} + interval '1s'"))).await;
    world.everybody_may(&good).await;
}

#[tokio::test]
async fn nobody_signs_twice_whatever_keys_they_hold() {
    let mut world = World::new().await;
    let (bob, carol) = (world.broker.bob.clone(), world.broker.carol.clone());
    let second = enrol(&world.broker.database, "bob", &[], true, world.broker.clock.now()).await;
    let id = world.lease_in("pending", true).await;
    world.everybody_may(&signature(id, "bob", &second, &[])).await;
    world.owner.does(&signature(id, "bob", &bob, &[])).await;
    for key in [&bob, &second] {
        for decision in ["'approve'", "'refuse'"] {
            let again = signature(id, "bob", key, &[("decision", decision)]);
            world.nobody_may(&again, UNIQUE, "signature_pkey").await;
        }
    }
    world.everybody_may(&signature(id, "carol", &carol, &[])).await;
}

#[tokio::test]
async fn nobody_signs_late_or_what_does_not_wait_for_signatures() {
    let mut world = World::new().await;
    let (bob, carol) = (world.broker.bob.clone(), world.broker.carol.clone());
    let pending = world.lease_in("pending", true).await;
    let last = "'2026-01-01 12:30Z'";
    let late = "'2026-01-01 12:30:00.000001Z'";
    world.everybody_may(&signature(pending, "bob", &bob, &[("signed_at", last)])).await;
    let late = signature(pending, "bob", &bob, &[("signed_at", late)]);
    world.nobody_may(&late, GUARD, "is not waiting for signatures").await;
    // Nor before there was anything to sign.
    let early = signature(pending, "bob", &bob, &[("signed_at", "'2026-01-01 11:59:59Z'")]);
    world.nobody_may(&early, GUARD, "is not waiting for signatures").await;

    for state in LEASE_STATES {
        let id = world.lease_in(state, true).await;
        let sql = signature(id, "carol", &carol, &[]);
        if state == "pending" {
            world.everybody_may(&sql).await;
        } else {
            world.nobody_may(&sql, GUARD, "is not waiting for signatures").await;
        }
    }
}

#[tokio::test]
async fn a_lease_is_approved_only_by_as_many_people_as_it_needs() {
    let mut world = World::new().await;
    let (bob, carol) = (world.broker.bob.clone(), world.broker.carol.clone());
    let id = Uuid::new_v4();
    let own = quoted(id);
    let two = world.signed.copy(&[("id", &own), ("signatures_needed", "2")]);
    world.owner.does(&two).await;
    world
        .owner
        .does(&format!("insert into statement (lease_id, bytes) values ('{id}', '{id}')"))
        .await;
    let approve = lease_to("approved", id);
    let not_enough = "has not enough signatures";
    world.nobody_may(&approve, GUARD, not_enough).await;
    world.owner.does(&signature(id, "bob", &bob, &[])).await;
    world.nobody_may(&approve, GUARD, not_enough).await;
    // A refusal is a voice, but not for it.
    let refusal = signature(id, "carol", &carol, &[("decision", "'refuse'")]);
    for hand in world.hands() {
        hand.may_not(&format!("{refusal}; {approve}"), GUARD, not_enough).await;
    }
    world.owner.does(&signature(id, "carol", &carol, &[])).await;
    world.everybody_may(&approve).await;
}

#[tokio::test]
async fn a_refusal_is_not_outvoted() {
    let mut world = World::new().await;
    let (bob, carol) = (world.broker.bob.clone(), world.broker.carol.clone());
    let id = world.lease_in("pending", true).await;
    world.owner.does(&signature(id, "bob", &bob, &[])).await;
    world.everybody_may(&lease_to("approved", id)).await;
    let refusal = signature(id, "carol", &carol, &[("decision", "'refuse'")]);
    world.owner.does(&refusal).await;
    world.nobody_may(&lease_to("approved", id), GUARD, "was refused").await;
}

#[tokio::test]
async fn what_was_signed_and_who_signed_it_never_change_or_go_away() {
    let mut world = World::new().await;
    let id = world.lease_in("approved", true).await;
    let never = "are never changed or removed";
    for table in ["statement", "signature"] {
        for (column, other) in world.other_values(table).await {
            let sql = format!("update {table} set {column} = {other} where lease_id = '{id}'");
            world.guarded(&sql, never).await;
        }
        let delete = format!("delete from {table} where lease_id = '{id}'");
        world.guarded(&delete, never).await;
        world
            .guarded(&format!("truncate {table} cascade"), &format!("rows of {table} {never}"))
            .await;
        world
            .only_guards_refuse(&["statement", "signature"], &format!("truncate {table} cascade"))
            .await;
    }
    let change = format!("update statement set bytes = sha256(bytes) where lease_id = '{id}'");
    world.only_guards_refuse(&["statement"], &change).await;
    let change = format!(
        "update signature set person = 'carol', fingerprint = '{}' where lease_id = '{id}'",
        world.broker.carol.fingerprint()
    );
    world.only_guards_refuse(&["signature"], &change).await;
    world
        .only_guards_refuse(
            &["signature"],
            &format!("delete from signature where lease_id = '{id}'"),
        )
        .await;
}

#[tokio::test]
async fn only_a_lease_that_needs_signatures_has_a_statement_and_one_only() {
    let mut world = World::new().await;
    let sql = |lease: Uuid, signed: bool| {
        let bytes = Uuid::new_v4();
        format!(
            "insert into statement (lease_id, bytes, signed) values ('{lease}', '{bytes}', {signed})"
        )
    };
    let unsigned = world.lease_in("approved", false).await;
    world.nobody_may(&sql(unsigned, false), CHECK, "CHECK (signed)").await;
    for hand in [&mut world.app, &mut world.owner] {
        hand.may_not(&sql(unsigned, true), FOREIGN_KEY, "statement_lease_id_signed_fkey").await;
    }
    let id = Uuid::new_v4();
    let own = quoted(id);
    let lease = world.signed.copy(&[("id", &own)]);
    world.owner.does(&lease).await;
    world.everybody_may(&sql(id, true)).await;
    world.owner.does(&sql(id, true)).await;
    world.nobody_may(&sql(id, true), UNIQUE, "statement_pkey").await;
}

// ----------------------------------------------------------------------------------------------------------- leases

#[tokio::test]
async fn what_a_lease_asks_for_never_changes() {
    let mut world = World::new().await;
    for state in ["pending", "approved", "issued"] {
        let id = world.lease_in(state, true).await;
        for (column, other) in world.other_values("lease").await {
            let to = |value: &str| format!("update lease set {column} = {value} where id = '{id}'");
            if LEASE_MUTABLE.contains(&column.as_str()) {
                world.everybody_may(&to(&column)).await;
                continue;
            }
            world.guarded(&to(&other), "asks for cannot change").await;
            world.owner.may(&to(&column)).await;
        }
    }
}

#[tokio::test]
async fn the_times_of_a_lease_are_set_once() {
    let mut world = World::new().await;
    let id = world.lease_in("issued", true).await;
    for (column, why) in [
        ("approved_at", "are set once"),
        ("claim_by", "are set once"),
        ("claimed_at", "was claimed already"),
        ("issued_at", "are set once"),
        ("ends_at", "are set once"),
    ] {
        for other in [format!("{column} + interval '1s'"), "null".to_owned()] {
            let sql = format!("update lease set {column} = {other} where id = '{id}'");
            world.nobody_may(&sql, GUARD, why).await;
        }
        world
            .everybody_may(&format!("update lease set {column} = {column} where id = '{id}'"))
            .await;
    }
}

#[tokio::test]
async fn a_lease_goes_only_where_it_may_and_an_ended_one_nowhere() {
    let mut world = World::new().await;
    let bob = world.broker.bob.clone();
    for from in LEASE_STATES {
        let id = world.lease_in(from, true).await;
        if from == "pending" {
            world.owner.does(&signature(id, "bob", &bob, &[])).await;
        }
        for to in LEASE_STATES {
            let sql = lease_to(to, id);
            if LEASE_TRANSITIONS.contains(&(from, to)) {
                world.everybody_may(&sql).await;
            } else if !OPEN_LEASE_STATES.contains(&from) {
                world.nobody_may(&sql, GUARD, &format!("has ended ({from}) and stays so")).await;
            } else if from != to {
                world.nobody_may(&sql, GUARD, &format!("cannot go from {from} to {to}")).await;
            }
        }
    }
}

#[tokio::test]
async fn a_lease_starts_pending_approved_by_rules_alone_or_denied() {
    let mut world = World::new().await;
    let id = quoted(Uuid::new_v4());
    let end = [("ended_at", AT), ("end_reason", "'x'")];
    let approved = [("approved_at", AT), ("claim_by", AT)];
    let issued = [("claimed_at", AT), ("issued_at", AT), ("ends_at", AT)];
    for state in LEASE_STATES {
        let quoted_state = quoted(state);
        let mut with = vec![("id", id.as_str()), ("state", &quoted_state)];
        if state != "pending" {
            with.extend(approved);
        }
        if state == "issued" {
            with.extend(issued);
        }
        if !OPEN_LEASE_STATES.contains(&state) {
            with.extend(end);
        }
        let signed = world.signed.copy(&with);
        let unsigned = world.unsigned.copy(&with);
        let cannot = format!("a lease cannot start as {state}");
        match state {
            "pending" => {
                world.everybody_may(&signed).await;
                world.nobody_may(&unsigned, CHECK, "(state <> 'pending'::text)").await;
            }
            "approved" => {
                world.everybody_may(&unsigned).await;
                world.nobody_may(&signed, GUARD, &cannot).await;
            }
            "denied" => {
                world.everybody_may(&unsigned).await;
                with.push(("sign_by", "null"));
                let signed = world.signed.copy(&with);
                world.everybody_may(&signed).await;
            }
            _ => {
                world.nobody_may(&signed, GUARD, &cannot).await;
                world.nobody_may(&unsigned, GUARD, &cannot).await;
            }
        }
    }
}

#[tokio::test]
async fn the_tier_says_whether_people_sign_whatever_the_row_says() {
    let mut world = World::new().await;
    let id = quoted(Uuid::new_v4());
    let rule = "(signatures_needed = 0)";
    for (tier, alone) in [
        ("read-only", true),
        ("staging-write", true),
        ("staging-sensitive", false),
        ("production-write", false),
        ("destructive", false),
    ] {
        let tier = quoted(tier);
        let by_rules = world.unsigned.copy(&[("id", &id), ("tier", &tier)]);
        let by_people = world.signed.copy(&[("id", &id), ("tier", &tier)]);
        let (lawful, unlawful) = if alone { (by_rules, by_people) } else { (by_people, by_rules) };
        world.everybody_may(&lawful).await;
        world.nobody_may(&unlawful, CHECK, rule).await;
    }
    let fewer = world.signed.copy(&[("id", &id), ("signatures_needed", "3")]);
    world.nobody_may(&fewer, CHECK, "cardinality(eligible_signers)").await;
    let negative = world.signed.copy(&[("id", &id), ("signatures_needed", "-1")]);
    world.nobody_may(&negative, CHECK, "signatures_needed").await;
    for words in ["reason", "rollback"] {
        let silent = world.signed.copy(&[("id", &id), (words, "null")]);
        world.nobody_may(&silent, CHECK, "(reason IS NOT NULL) AND (rollback IS NOT NULL)").await;
    }
    for column in ["actions", "resources"] {
        let empty = world.unsigned.copy(&[("id", &id), (column, "'{}'")]);
        world.nobody_may(&empty, CHECK, &format!("cardinality({column}) > 0")).await;
    }
    for column in
        ["environment", "tier", "account", "region", "role_arn", "assume_role", "window_seconds"]
    {
        let nowhere = world.unsigned.copy(&[("id", &id), (column, "null")]);
        world.nobody_may(&nowhere, CHECK, "ROW(environment, tier, account").await;
    }
}

#[tokio::test]
async fn a_lease_and_its_sessions_never_go_away() {
    let mut world = World::new().await;
    let never = "are never changed or removed";
    let lease = world.lease_in("approved", false).await;
    let session = world.session_in("live").await;
    let all = ["lease", "statement", "signature", "session"];
    for (table, id) in [("lease", lease), ("session", session)] {
        let delete = format!("delete from {table} where id = '{id}'");
        let truncate = format!("truncate {table} cascade");
        world.guarded(&delete, &format!("rows of {table} {never}")).await;
        world.guarded(&truncate, &format!("rows of {table} {never}")).await;
        world.only_guards_refuse(&all, &delete).await;
        world.only_guards_refuse(&all, &truncate).await;
    }
    world.guarded("truncate session", "rows of session are never changed or removed").await;
}

// --------------------------------------------------------------------------------------------------------- sessions

#[tokio::test]
async fn a_session_is_minted_only_under_a_lease_that_is_approved_and_claimed() {
    let mut world = World::new().await;
    let not_claimed = "is not claimed";
    for signed in [false, true] {
        let unclaimed = world.lease_in("approved", signed).await;
        let sql = world.session_of(unclaimed, signed);
        world.nobody_may(&sql, GUARD, not_claimed).await;
        let claimed = world.claimed_lease(signed).await;
        let sql = world.session_of(claimed, signed);
        world.everybody_may(&sql).await;

        let issued = world.lease_in("issued", signed).await;
        let sql = world.session_of(issued, signed);
        if signed {
            world.nobody_may(&sql, GUARD, not_claimed).await;
        } else {
            world.everybody_may(&sql).await;
        }
        // A lease that ended after its claim.
        for (_, ended) in
            LEASE_TRANSITIONS.iter().filter(|(from, to)| *from == "approved" && *to != "issued")
        {
            let id = world.claimed_lease(signed).await;
            world.owner.does(&lease_to(ended, id)).await;
            let sql = world.session_of(id, signed);
            world.nobody_may(&sql, GUARD, not_claimed).await;
        }
    }
    for state in ["pending", "denied", "refused"] {
        let id = world.lease_in(state, true).await;
        let sql = world.session_of(id, true);
        world.nobody_may(&sql, GUARD, not_claimed).await;
    }
    let nowhere = world.session_of(Uuid::new_v4(), false);
    for hand in [&mut world.app, &mut world.owner] {
        hand.may_not(&nowhere, FOREIGN_KEY, "session_lease_id_signed_fkey").await;
    }
    world.replica.may_not(&nowhere, GUARD, not_claimed).await;
}

#[tokio::test]
async fn one_approval_is_one_mint() {
    let mut world = World::new().await;
    let signed = world.claimed_lease(true).await;
    let unsigned = world.claimed_lease(false).await;
    for (id, is_signed) in [(signed, true), (unsigned, false)] {
        let first = world.session_of(id, is_signed);
        world.owner.does(&first).await;
    }
    let second = world.session_of(unsigned, false);
    world.everybody_may(&second).await;
    let second = world.session_of(signed, true);
    world.nobody_may(&second, UNIQUE, "session_signed_once").await;
    // Nor when the first one failed.
    world.owner.does(&format!("update session set state = 'failed', settled_at = {AT}, failure = 'x' where lease_id = '{signed}'")).await;
    world.nobody_may(&second, UNIQUE, "session_signed_once").await;
}

#[tokio::test]
async fn a_session_cannot_call_its_lease_unsigned_to_be_minted_again() {
    let mut world = World::new().await;
    let signed = world.claimed_lease(true).await;
    let lie = world.session_of(signed, false);
    for hand in [&mut world.app, &mut world.owner] {
        hand.may_not(&lie, FOREIGN_KEY, "session_lease_id_signed_fkey").await;
    }
    // Where foreign keys are not checked, the guard is all there is.
    world.replica.may_not(&lie, GUARD, "is not claimed").await;
    let truth = world.session_of(signed, true);
    world.everybody_may(&truth).await;
}

#[tokio::test]
async fn a_session_goes_only_where_it_may() {
    let mut world = World::new().await;
    for from in SESSION_STATES {
        let id = world.session_in(from).await;
        for to in SESSION_STATES {
            let sql = session_to(to, id);
            if from == to || SESSION_TRANSITIONS.contains(&(from, to)) {
                world.everybody_may(&sql).await;
            } else {
                world.nobody_may(&sql, GUARD, &format!("cannot go from {from} to {to}")).await;
            }
        }
    }
}

#[tokio::test]
async fn a_session_starts_before_the_cloud_is_asked() {
    let mut world = World::new().await;
    let lease = world.claimed_lease(false).await;
    let probe = quoted(PROBE);
    for state in SESSION_STATES {
        let state_text = quoted(state);
        let mut with = ISSUING.to_vec();
        with[0] = ("state", &state_text);
        if state != "issuing" {
            with[1] = ("settled_at", AT);
        }
        if matches!(state, "live" | "expired" | "stopped") {
            with[2] = ("access_key_id", "'ASIA1'");
            with[3] = ("expires_at", AT);
        }
        with.push(("failure", "'x'"));
        if matches!(state, "revoking" | "stopped") {
            with.extend([("revoking_at", AT), ("stop_reason", "'x'")]);
        }
        if state == "stopped" {
            with.extend([("denied_at", AT), ("probe_id", &*probe), ("stopped_at", AT)]);
            with.push(("stopped_region", "'us-east-1'"));
        }
        let sql = world.session_as(Uuid::new_v4(), lease, false, &with);
        if state == "issuing" {
            world.everybody_may(&sql).await;
        } else {
            world.nobody_may(&sql, GUARD, &format!("a session cannot start as {state}")).await;
        }
    }
}

#[tokio::test]
async fn only_a_live_session_is_handed_out() {
    let mut world = World::new().await;
    for state in SESSION_STATES {
        let id = world.session_in(state).await;
        let sql = format!(
            "update session set deliveries = deliveries + 1, last_delivered_at = {AT} where id = '{id}'"
        );
        if state == "live" {
            world.everybody_may(&sql).await;
        } else {
            world.nobody_may(&sql, GUARD, "is not live").await;
        }
    }
}

#[tokio::test]
async fn what_a_session_is_never_changes() {
    let mut world = World::new().await;
    let id = world.session_in("live").await;
    world
        .owner
        .does(&format!(
            "update session set deliveries = 2, last_delivered_at = {AT} where id = '{id}'"
        ))
        .await;
    let cannot = "cannot change";
    let to = |column: &str, value: &str| {
        format!("update session set {column} = {value} where id = '{id}'")
    };
    for (column, other) in world.other_values("session").await {
        if !SESSION_MUTABLE.contains(&column.as_str()) {
            world.guarded(&to(&column, &other), cannot).await;
            world.owner.may(&to(&column, &column)).await;
        }
    }
    for (column, other) in [
        ("access_key_id", "'ASIA2'"),
        ("access_key_id", "null"),
        ("expires_at", "expires_at + interval '1s'"),
        ("expires_at", "null"),
        ("deliveries", "1"),
    ] {
        world.nobody_may(&to(column, other), GUARD, cannot).await;
        world.everybody_may(&to(column, column)).await;
    }
}

// --------------------------------------------------------------------------------------------------------- stopping

#[tokio::test]
async fn why_a_session_is_stopped_is_said_when_it_is_and_once() {
    let mut world = World::new().await;
    let freeze = world.freeze().await;
    let cannot = "is stopped cannot change";
    let words = format!("revoking_at = {AT}, stop_reason = 'x', freeze_id = '{freeze}'");
    for state in SESSION_STATES {
        let id = world.session_in(state).await;
        let say = |set: &str| format!("update session set {set} where id = '{id}'");
        for set in words.split(", ") {
            let set = set.replace("12:00Z", "12:01Z").replace("'x'", "'y'");
            world.nobody_may(&say(&set), GUARD, cannot).await;
        }
        let revoking = format!("state = 'revoking', settled_at = {AT}, {words}");
        match state {
            "issuing" | "live" => world.everybody_may(&say(&revoking)).await,
            "revoking" => world.nobody_may(&say(&revoking), GUARD, cannot).await,
            _ => world.nobody_may(&say(&revoking), GUARD, "cannot go from").await,
        }
    }
    let id = world.session_in("live").await;
    for said in [format!("coalesce(revoking_at, {AT})"), "coalesce(stop_reason, 'x')".to_owned()] {
        let silent = session_to("revoking", id).replace(&said, "null");
        world.nobody_may(&silent, CHECK, "ROW(revoking_at, stop_reason) IS NOT NULL").await;
    }
    let empty = session_to("revoking", id).replace("'x'", "''");
    world.nobody_may(&empty, CHECK, "stop_reason <> ''").await;
    let unknown = format!(
        "{}; update session set freeze_id = gen_random_uuid() where id = '{id}'",
        session_to("revoking", id)
    );
    world.nobody_may(&unknown, GUARD, cannot).await;
    let unknown =
        session_to("revoking", id).replace(" where", ", freeze_id = gen_random_uuid() where");
    for hand in [&mut world.app, &mut world.owner] {
        hand.may_not(&unknown, FOREIGN_KEY, "session_freeze_id_fkey").await;
    }
}

#[tokio::test]
async fn nothing_is_called_stopped_that_aws_was_not_seen_to_refuse() {
    let mut world = World::new().await;
    let id = world.session_in("revoking").await;
    let other_role = Uuid::new_v4();
    world.probe_comes_to("refused", other_role, OTHER_ROLE, AT).await;
    let mut probes = vec![("another role's".to_owned(), other_role)];
    for (step, _) in &PROBE_STEPS[..4] {
        probes.push((format!("{step} only"), world.probe_at(step).await));
    }
    probes.push(("none".to_owned(), Uuid::new_v4()));
    let nobody = "nobody has seen AWS refuse session";
    // The clocks of two servers may be a minute apart, and no more.
    for (before, good) in [("1m", true), ("61s", false)] {
        let at = format!("({AT} - interval '{before}')");
        let probe = Uuid::new_v4();
        world.probe_comes_to("refused", probe, ROLE, &at).await;
        let sql = stop(id, &[("probe_id", &quoted(probe)), ("denied_at", &at)]);
        if good {
            world.everybody_may(&sql).await;
        } else {
            world.nobody_may(&sql, GUARD, nobody).await;
        }
    }
    for (which, probe) in probes {
        let sql = format!("/* {which} */ {}", stop(id, &[("probe_id", &quoted(probe))]));
        world.nobody_may(&sql, GUARD, nobody).await;
    }
    let earlier = format!("{AT} - interval '1 microsecond'");
    let later = format!("{AT} + interval '1 microsecond'");
    for (column, other) in [
        ("probe_id", "null"),
        ("denied_at", &*earlier),
        ("denied_at", &*later),
        ("denied_at", "null"),
        ("stopped_at", &*earlier),
        ("stopped_at", "null"),
        ("stopped_region", "'eu-west-1'"),
        ("stopped_region", "null"),
    ] {
        world.nobody_may(&stop(id, &[(column, other)]), GUARD, nobody).await;
    }
    world.everybody_may(&stop(id, &[])).await;
    world.everybody_may(&stop(id, &[("stopped_at", &later)])).await;
    world.only_guards_refuse(&["session"], &stop(id, &[("stopped_region", "'eu-west-1'")])).await;
    // Without the guard it is still no stop that has no time, policy, probe or Region.
    for column in ["denied_at", "probe_id", "stopped_at", "stopped_region"] {
        let sql = format!(
            "alter table session disable trigger session_guard; {}",
            stop(id, &[(column, "null")])
        );
        world.owner.may_not(&sql, CHECK, "stopped").await;
    }
}

#[tokio::test]
async fn what_aws_does_about_a_session_is_said_while_it_is_being_stopped() {
    let mut world = World::new().await;
    let proven = [
        ("denied_at", AT.to_owned()),
        ("probe_id", quoted(PROBE)),
        ("stopped_region", "'us-east-1'".to_owned()),
    ];
    for state in SESSION_STATES {
        let id = world.session_in(state).await;
        for (column, value) in &proven {
            let other = if state == "stopped" { "null" } else { value };
            let sql = format!("update session set {column} = {other} where id = '{id}'");
            if state == "revoking" {
                world.everybody_may(&sql).await;
            } else {
                world.nobody_may(&sql, GUARD, "is stopped cannot change").await;
            }
        }
    }
    let id = world.session_in("stopped").await;
    let again =
        format!("update session set stopped_at = stopped_at + interval '1s' where id = '{id}'");
    world.nobody_may(&again, GUARD, "is stopped cannot change").await;
    let id = world.session_in("revoking").await;
    let early = format!("update session set stopped_at = {AT} where id = '{id}'");
    world.nobody_may(&early, CHECK, "(state = 'stopped'::text) = (stopped_at IS NOT NULL)").await;
    let unknown = format!("update session set probe_id = gen_random_uuid() where id = '{id}'");
    for hand in [&mut world.app, &mut world.owner] {
        hand.may_not(&unknown, FOREIGN_KEY, "session_probe_id_fkey").await;
    }
}

#[tokio::test]
async fn what_a_probe_has_seen_never_changes() {
    let mut world = World::new().await;
    let cannot = "has seen cannot change";
    let to = |column: &str, value: &str| {
        format!("update probe set {column} = {value} where id = '{PROBE}'")
    };
    for (column, other) in world.other_values("probe").await {
        if !PROBE_MUTABLE.contains(&column.as_str()) {
            world.guarded(&to(&column, &other), cannot).await;
            world.owner.may(&to(&column, &column)).await;
        } else if column == "tried_at" {
            world.everybody_may(&to(&column, &other)).await;
        } else if column != "failure" {
            for other in [&other, "null"] {
                world.nobody_may(&to(&column, other), GUARD, cannot).await;
            }
            world.everybody_may(&to(&column, &column)).await;
        }
    }
    let failed = world.probe_at("denied").await;
    world.owner.does(&format!("update probe set failure = 'x' where id = '{failed}'")).await;
    for other in ["'y'", "null"] {
        let sql = format!("update probe set failure = {other} where id = '{failed}'");
        world.nobody_may(&sql, GUARD, cannot).await;
    }
    for sql in [format!("delete from probe where id = '{PROBE}'"), "truncate probe cascade".into()]
    {
        world.guarded(&sql, "rows of probe are never changed or removed").await;
        world.only_guards_refuse(&["probe", "session"], &sql).await;
    }
}

#[tokio::test]
async fn a_probe_sees_one_thing_after_another() {
    let mut world = World::new().await;
    let new = Uuid::new_v4();
    world.everybody_may(&new_probe(new, ROLE, AT)).await;
    for set in PROBE_STEPS[1..].iter().flat_map(|it| it.1.split(", ")).chain(["failure = 'x'"]) {
        let (column, value) = set.split_once(" = ").expect("a column and its value");
        let sql = new_probe(new, ROLE, AT)
            .replace("claimed_at)", &format!("claimed_at, {column})"))
            .replace(&format!("{AT})"), &format!("{AT}, {})", value.replace("$AT", AT)));
        world.nobody_may(&sql, GUARD, "a probe starts before it has seen anything").await;
    }
    for hand in [&mut world.app, &mut world.owner] {
        let nowhere = new_probe(new, "arn:aws:iam::000000000000:role/nobodys", AT);
        hand.may_not(&nowhere, FOREIGN_KEY, "probe_role_arn_fkey").await;
    }
    let twice =
        new_probe(new, ROLE, AT).replace(&format!("probe-{new}"), &format!("probe-{PROBE}"));
    world.nobody_may(&twice, UNIQUE, "probe_session_name_key").await;

    for (step, set, why) in [
        ("issuing", "access_key_id = 'ASIA2'", "(access_key_id IS NULL) = (expires_at IS NULL)"),
        ("issuing", "expires_at = $AT", "(access_key_id IS NULL) = (expires_at IS NULL)"),
        ("issuing", "tried_at = $AT, proven_at = $AT", "access_key_id IS NOT NULL"),
        ("minted", "proven_at = $AT", "tried_at IS NOT NULL"),
        ("minted", "tried_at = $AT, proven_at = $AT - interval '1s'", "claimed_at <= proven_at"),
        ("minted", "denied_at = $AT", "proven_at IS NOT NULL"),
        ("proven", "denied_at = $AT - interval '1s'", "proven_at <= denied_at"),
        ("proven", "refused_at = $AT, region = 'us-east-1'", "denied_at IS NOT NULL"),
        ("denied", "refused_at = $AT", "(refused_at IS NULL) = (region IS NULL)"),
        ("denied", "region = 'us-east-1'", "(refused_at IS NULL) = (region IS NULL)"),
        (
            "denied",
            "refused_at = $AT - interval '1s', region = 'us-east-1'",
            "denied_at <= refused_at",
        ),
        ("denied", "refused_at = $AT, region = 'us-east-1', failure = 'x'", "failure IS NULL"),
        ("refused", "failure = 'x'", "failure IS NULL"),
        ("issuing", "failure = ''", "failure <> ''"),
    ] {
        let id = world.probe_at(step).await;
        let set = set.replace("$AT", AT);
        world.nobody_may(&format!("update probe set {set} where id = '{id}'"), CHECK, why).await;
    }
    for ((step, _), (_, set)) in PROBE_STEPS.iter().zip(&PROBE_STEPS[1..]) {
        let id = world.probe_at(step).await;
        let set = set.replace("$AT", AT);
        world.everybody_may(&format!("update probe set {set} where id = '{id}'")).await;
        world.everybody_may(&format!("update probe set failure = 'x' where id = '{id}'")).await;
    }
}

#[tokio::test]
async fn a_cut_off_only_moves_on_until_nothing_can_be_left_of_what_it_is_about() {
    let mut world = World::new().await;
    let ago =
        |span: &str| format!("date_trunc('second', clock_timestamp() - interval '{span}', 'UTC')");
    let stays = "what is cut off from";
    let set = |column: &str, value: &str| {
        format!("update role_stop set {column} = {value} where role_arn = '{ROLE}'")
    };
    for (since, over) in [("11h 58m", false), ("12h 2m", true)] {
        world
            .everybody_may(&format!("{}; {}", set("cut_off", "null"), set("cut_off", &ago(since))))
            .await;
        let first = set("cut_off", &ago(since));
        for hand in world.hands() {
            let then = |value: &str| format!("{first}; {}", set("cut_off", value));
            hand.may(&then("cut_off")).await;
            hand.may(&then("cut_off + interval '1s'")).await;
            hand.may_not(&then("cut_off - interval '1s'"), GUARD, stays).await;
            if over {
                hand.may(&then("null")).await;
            } else {
                hand.may_not(&then("null"), GUARD, stays).await;
            }
        }
    }
    for (column, other) in world.other_values("role_stop").await {
        if ROLE_STOP_MUTABLE.contains(&column.as_str()) {
            world.everybody_may(&set(&column, &column)).await;
        } else {
            world.guarded(&set(&column, &other), stays).await;
        }
    }
    world.nobody_may(&set("failures", "-1"), CHECK, "failures >= 0").await;
    world.nobody_may(&set("written_cut_off", AT), CHECK, "written_at IS NOT NULL").await;
    let new = "insert into role_stop (role_arn, cut_off) values ('arn:aws:iam::000000000000:role/x', '2026-01-01')";
    world.everybody_may(new).await;
    for sql in [
        format!("delete from role_stop where role_arn = '{OTHER_ROLE}'"),
        "truncate role_stop cascade".to_owned(),
    ] {
        world.guarded(&sql, "rows of role_stop are never changed or removed").await;
        let tables = ["role_stop", "role_writer", "probe", "session"];
        world.only_guards_refuse(&tables, &sql).await;
    }
}

/// Its rows are there to be held, by whoever writes a role's policy, and for nothing else.
#[tokio::test]
async fn what_is_held_to_write_a_roles_policy_is_never_changed() {
    let mut world = World::new().await;
    let new = format!("insert into role_writer (role_arn) values ('{ROLE}')");
    let hold = format!("select from role_writer where role_arn = '{ROLE}' for update");
    world.everybody_may(&format!("{new}; {hold}")).await;
    world.owner.does(&new).await;
    world.everybody_may(&hold).await;
    let change =
        format!("update role_writer set role_arn = '{OTHER_ROLE}' where role_arn = '{ROLE}'");
    world.nobody_may(&change, GUARD, "rows of role_writer are never changed or removed").await;
    for sql in ["delete from role_writer", "truncate role_writer"] {
        world.guarded(sql, "rows of role_writer are never changed or removed").await;
    }
}

/// As the server asks.
async fn is_cut_off(world: &mut World, role: &str, at: &str) -> bool {
    let sql = format!("select role_is_cut_off('{role}', {at})");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(&mut world.app.connection)
        .await
        .expect("asked")
}

#[tokio::test]
async fn a_role_is_cut_off_from_what_began_before() {
    let mut world = World::new().await;
    assert!(!is_cut_off(&mut world, ROLE, AT).await, "there is no cut-off");
    let cut_off = format!("update role_stop set cut_off = {AT} where role_arn = '{ROLE}'");
    world.owner.does(&cut_off).await;
    assert!(is_cut_off(&mut world, ROLE, &format!("{AT} - interval '1 microsecond'")).await);
    assert!(!is_cut_off(&mut world, ROLE, AT).await, "what begins then is not covered");
    assert!(!is_cut_off(&mut world, ROLE, &format!("{AT} + interval '1s'")).await);
    assert!(!is_cut_off(&mut world, OTHER_ROLE, &format!("{AT} - interval '1s'")).await);
    assert!(!is_cut_off(&mut world, "arn:aws:iam::000000000000:role/nobodys", AT).await);
}

// ------------------------------------------------------------------------------------------------ freezes and events

/// A statement that inserts a freeze that carol ordered.
fn new_freeze(id: Uuid, with: &str) -> String {
    format!(
        "insert into \"freeze\" (id, kind, reason, created_by, created_at, thawed_at, thawed_by)
         values ('{id}', 'all', 'stop', 'carol', {AT}, {with})"
    )
}

fn thaw(id: Uuid, by: &str) -> String {
    format!("update \"freeze\" set thawed_at = {AT}, thawed_by = {by} where id = '{id}'")
}

impl World {
    async fn freeze(&mut self) -> Uuid {
        let id = Uuid::new_v4();
        self.owner.does(&new_freeze(id, "null, null")).await;
        id
    }

    /// An act that names a freeze, signed by bob.
    async fn signed_act(&mut self, kind: &str, freeze: Uuid) -> Uuid {
        let id = Uuid::new_v4();
        let doc = json!({ "predicate": {
            "id": id, "proposed_by": "bob", "proposed_at": "2026-01-01T12:00:00Z", "sign_by": "2026-01-01T12:30:00Z", "cool_down_seconds": 0,
            "act": { "kind": kind, "freeze_id": freeze, "sponsor": "bob", "agent": "a", "task": "t", "ttl_seconds": 60 },
            "signers": { "eligible": ["bob"], "assurance": "software" },
        }});
        let fingerprint = self.broker.bob.fingerprint();
        self.owner
            .does(&format!(
                "insert into act (id, bytes, kind, proposed_by, proposed_at, sign_by)
                 values ('{id}', convert_to('{doc}', 'UTF8'), '{kind}', 'bob', {AT}, {AT} + interval '30m');
                 insert into act_signature (act_id, person, fingerprint, decision, signature, assurance, signed_at)
                 values ('{id}', 'bob', '{fingerprint}', 'approve', 'x', 'software', {AT});
                 update act set state = 'signed', signed_at = {AT}, effective_at = {AT} where id = '{id}'"
            ))
            .await;
        id
    }
}

#[tokio::test]
async fn a_freeze_is_thawed_only_by_doing_what_was_signed_and_by_whom() {
    let mut world = World::new().await;
    let (id, other) = (world.freeze().await, world.freeze().await);
    let signed = "is thawed by a signed statement";
    let by_act = world.signed_act("thaw", id).await;
    let by_other_act = world.signed_act("thaw", other).await;
    let by_task = world.signed_act("task-start", id).await;
    // Whoever owns the tables can call an act done, and say that it is what happens now.
    let done = |act: Uuid| {
        format!("update act set state = 'done', ended_at = {AT} where id = '{act}'; {}", now(act))
    };
    let thaw_it = thaw(id, "'bob'");
    for hand in [&mut world.owner, &mut world.replica] {
        hand.may_not(&thaw_it, GUARD, signed).await;
        let not_done = format!("{}; {thaw_it}", now(by_act));
        hand.may_not(&not_done, GUARD, signed).await;
    }
    for act in [by_other_act, by_task] {
        world.owner.may_not(&format!("{}; {thaw_it}", done(act)), GUARD, signed).await;
    }
    let by_carol = format!("{}; {}", done(by_act), thaw(id, "'carol'"));
    let by_dave = format!("{}; {}", done(by_act), thaw(id, "'dave'"));
    let by_nobody = format!("{}; {}", done(by_act), thaw(id, "null"));
    for sql in [by_carol, by_dave, by_nobody] {
        world.owner.may_not(&sql, GUARD, signed).await;
    }
    world.owner.may(&format!("{}; {thaw_it}", done(by_act))).await;
    world.everybody_may(&format!("select apply_act('{by_act}', {AT})")).await;

    // What was done before is not done again.
    world
        .owner
        .does(&format!("update act set state = 'done', ended_at = {AT} where id = '{by_act}'"))
        .await;
    for hand in [&mut world.owner, &mut world.replica] {
        hand.may_not(&format!("{}; {thaw_it}", now(by_act)), GUARD, signed).await;
    }
    world.app.may_not(&thaw_it, DENIED, "permission denied for table freeze").await;
    // Without the guard the table still knows who ordered it.
    let unguarded = "alter table \"freeze\" disable trigger freeze_guard; ";
    let rules = [("'carol'", "thawed_by <> created_by"), ("null", "(thawed_by IS NULL)")];
    for (by, why) in rules {
        world.owner.may_not(&format!("{unguarded}{}", thaw(id, by)), CHECK, why).await;
    }
    world.only_guards_refuse(&["\"freeze\""], &thaw_it).await;
}

/// A statement that says which act is being done.
fn now(act: Uuid) -> String {
    format!("select set_config('broker.act', '{act}', true)")
}

#[tokio::test]
async fn a_freeze_starts_standing_and_what_it_says_stays() {
    let mut world = World::new().await;
    let standing = new_freeze(Uuid::new_v4(), "null, null");
    world.everybody_may(&standing).await;
    let thawed = new_freeze(Uuid::new_v4(), &format!("{AT}, 'bob'"));
    world.nobody_may(&thawed, GUARD, "a freeze starts standing").await;

    let id = world.freeze().await;
    let act = world.signed_act("thaw", id).await;
    for (column, other) in world.other_values("freeze").await {
        let sql = format!("update \"freeze\" set {column} = {other} where id = '{id}'");
        let why = if column == "thawed_at" { "is thawed by" } else { "cannot change" };
        // Without the time of its end, who ended it is a check's to refuse.
        if column == "thawed_by" {
            world.app.may_not(&sql, DENIED, "permission denied for table").await;
            world.owner.may_not(&sql, CHECK, "thawed_by").await;
            world.replica.may_not(&sql, CHECK, "thawed_by").await;
        } else {
            world.guarded(&sql, why).await;
        }
    }
    world.owner.does(&format!("select apply_act('{act}', {AT})")).await;
    for (column, other) in world.other_values("freeze").await {
        for other in [other.as_str(), "null", &column] {
            let sql = format!("update \"freeze\" set {column} = {other} where id = '{id}'");
            world.guarded(&sql, "cannot change").await;
        }
    }
    let all = ["\"freeze\"", "session"];
    for sql in
        [format!("delete from \"freeze\" where id = '{id}'"), "truncate \"freeze\" cascade".into()]
    {
        world.guarded(&sql, "rows of freeze are never changed or removed").await;
        world.only_guards_refuse(&all, &sql).await;
    }
}

const EVENT_COLUMNS: [&str; 10] = [
    "id",
    "type",
    "occurred_at",
    "actor",
    "agent",
    "sponsor",
    "scope",
    "lease_id",
    "session_id",
    "body",
];

/// A statement that inserts the copy of an event in which one column is otherwise.
fn copy_event(column: &str, other: &str) -> String {
    let values = EVENT_COLUMNS.map(|it| if it == column { other } else { it });
    format!(
        "insert into event ({}) select {} from event where type = 'session.issuing' limit 1",
        EVENT_COLUMNS.join(", "),
        values.join(", ")
    )
}

const APPEND_EVENT: &str = r#"select append_event('{"id":"00000000-0000-0000-0000-000000000001","type":"lease.denied","time":"2026-01-01T12:00:00Z","actor":"broker","data":{}}')"#;

/// Every partition of the events.
async fn partitions(world: &mut World) -> Vec<String> {
    let sql = "select inhrelid::regclass::text from pg_inherits where inhparent = 'event'::regclass order by 1";
    sqlx::query_scalar(sql).fetch_all(&mut world.owner.connection).await.expect("partitions")
}

#[tokio::test]
async fn events_are_appended_and_never_changed_or_removed() {
    let mut world = World::new().await;
    let never = "events are never changed or removed";
    let partitions = partitions(&mut world).await;
    assert!(partitions.len() > 3, "{partitions:?}");
    for table in partitions.iter().map(String::as_str).chain(["event"]) {
        for sql in [
            format!("update {table} set actor = 'broker'"),
            format!("update {table} set body = body"),
            format!("delete from {table}"),
        ] {
            world.app.may_not(&sql, DENIED, "permission denied for table").await;
            // A row trigger needs a row.
            let full: bool =
                sqlx::query_scalar(AssertSqlSafe(format!("select exists (select from {table})")))
                    .fetch_one(&mut world.owner.connection)
                    .await
                    .unwrap();
            if full {
                world.owner.may_not(&sql, GUARD, never).await;
                world.replica.may_not(&sql, GUARD, never).await;
            }
        }
        world.guarded(&format!("truncate {table}"), never).await;
        world.app.may_not(&format!("select from {table}"), DENIED, "permission denied").await;
    }
    for sql in ["update event set seq = seq + 1000", "delete from event", "truncate event"] {
        let tables: Vec<_> = partitions.iter().map(String::as_str).chain(["event"]).collect();
        world.only_guards_refuse(&tables, sql).await;
    }
    world.app.may_not(&copy_event("id", "id"), DENIED, "permission denied for table event").await;
    world
        .app
        .may_not("select nextval('event_seq')", DENIED, "permission denied for sequence event_seq")
        .await;
    world.app.may(APPEND_EVENT).await;
}

#[tokio::test]
async fn the_columns_of_an_event_cannot_differ_from_its_body_whoever_writes_it() {
    let mut world = World::new().await;
    for hand in [&mut world.owner, &mut world.replica] {
        hand.may(&copy_event("id", "id")).await;
        for (column, other) in [
            ("id", "gen_random_uuid()"),
            ("type", "'lease.refused'"),
            ("occurred_at", "occurred_at + interval '1s'"),
            ("actor", "'person:carol'"),
            ("agent", "'other-agent'"),
            ("agent", "null"),
            ("sponsor", "'carol'"),
            ("sponsor", "null"),
            ("scope", "'staging-ro'"),
            ("scope", "null"),
            ("lease_id", "gen_random_uuid()"),
            ("lease_id", "null"),
            ("session_id", "gen_random_uuid()"),
            ("session_id", "null"),
            // A body that says nothing agrees with nothing.
            ("body", "'{}'"),
            ("body", "convert_to((doc - 'id')::text, 'UTF8')"),
            ("body", "convert_to((doc - 'type')::text, 'UTF8')"),
            ("body", "convert_to((doc - 'time')::text, 'UTF8')"),
            ("body", "convert_to((doc - 'actor')::text, 'UTF8')"),
        ] {
            hand.may_not(&copy_event(column, other), CHECK, "doc").await;
        }
    }
}

/// The columns that say what the body says, with where it says that, and what else could stand there.
const TOLD_COLUMNS: [(&str, &str, &str); 9] = [
    ("id", "(d ->> 'id')::uuid", "gen_random_uuid()"),
    ("type", "d ->> 'type'", "'lease.refused'"),
    ("occurred_at", "(d ->> 'time')::timestamptz", "'2026-01-01 12:00:00.000001Z'"),
    ("actor", "d ->> 'actor'", "'person:carol'"),
    ("agent", "d -> 'data' ->> 'agent'", "'other-agent'"),
    ("sponsor", "d -> 'data' ->> 'sponsor'", "'carol'"),
    ("scope", "d -> 'data' ->> 'scope'", "'staging-ro'"),
    ("lease_id", "(d -> 'data' ->> 'lease_id')::uuid", "gen_random_uuid()"),
    ("session_id", "(d -> 'data' ->> 'session_id')::uuid", "gen_random_uuid()"),
];

/// A statement that inserts an event with those data, in which that column is otherwise.
fn insert_event(data: &str, column: &str, other: &str) -> String {
    let names = TOLD_COLUMNS.map(|it| it.0).join(", ");
    let values = TOLD_COLUMNS.map(|it| if it.0 == column { other } else { it.1 }).join(", ");
    format!(
        r#"insert into event ({names}, body) select {values}, convert_to(d::text, 'UTF8')
             from (select '{{"id":"00000000-0000-0000-0000-000000000001","type":"lease.denied","time":"2026-01-01T12:00:00Z","actor":"broker"{data}}}'::jsonb as d) b"#
    )
}

/// Written past `append_event()`, by whoever may write to the table.
#[tokio::test]
async fn each_column_of_an_event_says_what_its_body_says_also_that_it_says_nothing() {
    const FULL: &str = r#","data":{"agent":"demo-agent","sponsor":"alice","scope":"staging-rw","lease_id":"00000000-0000-0000-0000-000000000002","session_id":"00000000-0000-0000-0000-000000000003"}"#;
    const BARE: [&str; 4] = [r#","data":{}"#, r#","data":null"#, r#","data":"agent""#, ""];
    let mut world = World::new().await;
    let mut wrong = Vec::new();
    for hand in [&mut world.owner, &mut world.replica] {
        for data in BARE.into_iter().chain([FULL]) {
            hand.may(&insert_event(data, "", "")).await;
            for (column, _, other) in TOLD_COLUMNS {
                let always = ["id", "type", "occurred_at", "actor"].contains(&column);
                let mut tried = vec![(other, CHECK, "event_is_as_doc")];
                if always {
                    tried.push(("null", NOT_NULL, "null value in column"));
                } else if data == FULL {
                    tried.push(("null", CHECK, "event_is_as_doc"));
                }
                for (other, code, why) in tried {
                    let tried = hand.tries(&insert_event(data, column, other)).await;
                    if !matches!(&tried, Err((it, text)) if it == code && text.contains(why)) {
                        wrong
                            .push(format!("{}: {column} as {other}: {data}: {tried:?}", hand.name));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the log tells of itself decides what a verifier believes: keys, epochs, months that were put away.
#[tokio::test]
async fn the_servers_role_says_nothing_in_the_logs_name() {
    let mut world = World::new().await;
    let append = |kind: &str| APPEND_EVENT.replace("lease.denied", kind);
    let types: Vec<_> =
        EventType::ALL.iter().map(|it| it.as_str()).filter(|it| it.starts_with("log.")).collect();
    assert_eq!(types.len(), 5, "{types:?}");
    // The last ones are no types, and read as if they were.
    for kind in types.into_iter().chain(["log.", "log.x", "l\\\\u006fg.rotated"]) {
        let why = "events of the log are the log's";
        world.app.may_not(&append(kind), DENIED, why).await;
        // Whatever it calls itself.
        world.app.may_not(&format!("set role broker_app; {}", append(kind)), DENIED, why).await;
        world.owner.may(&append(kind)).await;
    }
    world.app.may(&append("logs.rotated")).await;
}

// ------------------------------------------------------------------------------------------------------------ rights

#[tokio::test]
async fn the_servers_role_cannot_change_the_schema_or_become_its_owner() {
    let mut world = World::new().await;
    for (sql, why) in [
        ("create table t ()", "permission denied for schema public"),
        ("create view v as select 1", "permission denied for schema public"),
        (
            "create function f() returns int language sql as 'select 1'",
            "permission denied for schema public",
        ),
        (
            "create function append_event(text) returns bigint language sql as 'select 1::bigint'",
            "permission denied for schema public",
        ),
        ("create schema s", "permission denied for database"),
        ("alter table lease disable trigger all", "must be owner of table lease"),
        ("alter table lease disable trigger lease_guard", "must be owner of table lease"),
        ("alter table \"freeze\" disable trigger freeze_guard", "must be owner of table freeze"),
        ("alter table probe disable trigger probe_guard", "must be owner of table probe"),
        ("alter table event disable trigger event_is_fixed", "must be owner of table event"),
        ("alter table lease add column c int", "must be owner of table lease"),
        ("alter table lease drop constraint lease_pkey", "must be owner of table lease"),
        ("alter table event detach partition event_default", "must be owner of table event"),
        ("drop trigger lease_guard on lease", "must be owner of relation lease"),
        ("drop table login", "must be owner of table login"),
        ("drop function append_event(bytea)", "must be owner of function append_event"),
        (
            "alter function append_event(bytea) security invoker",
            "must be owner of function append_event",
        ),
        ("grant select on event to broker_app", "permission denied for table event"),
        ("set role broker_owner", "permission denied to set role"),
        ("set role broker_migrate", "permission denied to set role"),
        ("set session_replication_role = replica", "permission denied to set parameter"),
        (
            "insert into person (handle, display_name, email, created_at) values ('eve', 'e', 'e', now())",
            "permission denied for table person",
        ),
        ("update person set disabled_at = null", "permission denied for table person"),
        ("update person_key set revoked_at = null", "permission denied for table person_key"),
        ("update task set expires_at = 'infinity'", "permission denied for table task"),
        ("delete from login", "permission denied for table login"),
        ("delete from sweeper", "permission denied for table sweeper"),
        ("delete from probe", "permission denied for table probe"),
        ("delete from role_stop", "permission denied for table role_stop"),
        ("delete from role_writer", "permission denied for table role_writer"),
        ("update \"freeze\" set thawed_at = now()", "permission denied for table freeze"),
        ("delete from over_budget", "permission denied for table over_budget"),
        ("update over_budget set agent = 'eve'", "permission denied for table over_budget"),
        ("select from person for no key update", "permission denied for table person"),
        ("select * from _sqlx_migrations", "permission denied for table _sqlx_migrations"),
    ] {
        world.app.may_not(sql, DENIED, why).await;
    }
    world.app.may("select from lease").await;
    // What the migrations' login may do, it may by taking the owner's role, and not by itself.
    let mut migrate = Hand {
        name: "broker_migrate",
        connection: PgConnection::connect(&world.broker.database.admin_url).await.unwrap(),
    };
    migrate.may_not("select from public.lease", DENIED, "permission denied for schema").await;
    migrate.may("set role broker_owner; select from public.lease").await;
    let parameter = "permission denied to set parameter";
    world.owner.may_not("set session_replication_role = replica", DENIED, parameter).await;
}

/// Relations of one kind in our schema.
async fn relations(world: &mut World, kinds: &str) -> Vec<String> {
    let sql = "select oid::regclass::text from pg_class
                where relnamespace = 'public'::regnamespace and relkind::text = any (string_to_array($1, null)) order by 1";
    sqlx::query_scalar(sql).bind(kinds).fetch_all(&mut world.owner.connection).await.expect("names")
}

async fn privilege(
    world: &mut World,
    function: &str,
    role: &str,
    object: &str,
    what: &str,
) -> bool {
    let kind = if function == "has_function_privilege" { "regprocedure" } else { "regclass" };
    let sql = format!("select {function}($1, $2::{kind}::oid, $3)");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(role)
        .bind(object)
        .bind(what)
        .fetch_one(&mut world.owner.connection)
        .await
        .expect("a privilege")
}

#[tokio::test]
async fn operations_read_every_view_and_nothing_else() {
    const ANY: &str = "select, insert, update, delete, truncate, references, trigger";
    const WRITE: &str = "insert, update, delete, truncate, references, trigger";
    let mut world = World::new().await;
    let ops = PgConnection::connect(&world.broker.database.ops_url).await.unwrap();
    let mut ops = Hand { name: "broker_ops", connection: ops };

    let tables = relations(&mut world, "rpm").await;
    assert!(tables.iter().any(|it| it == "event_default"), "{tables:?}");
    for table in tables {
        assert!(
            !privilege(&mut world, "has_table_privilege", "broker_ops", &table, ANY).await,
            "{table}"
        );
        let columns = "select, insert, update, references";
        assert!(
            !privilege(&mut world, "has_any_column_privilege", "broker_ops", &table, columns).await,
            "{table}"
        );
        ops.may_not(&format!("select from {table}"), DENIED, "permission denied for table").await;
    }
    let views = relations(&mut world, "v").await;
    let expected = [
        "act_history",
        "agent_activity",
        "approval_trail",
        "enrolled_keys",
        "event_history",
        "freezes",
        "lease_events",
        "lease_history",
        "live_sessions",
        "log_anchors",
        "log_approvals",
        "log_checkpoints",
        "log_entries",
        "log_events",
        "log_heads",
        "log_leaves",
        "log_nodes",
        "log_partitions",
        "log_unrecorded",
        "log_waiting",
        "pending_leases",
        "people",
        "probes",
        "role_stops",
        "rulesets",
        "session_history",
        "stopped_sessions",
        "tasks",
    ];
    assert_eq!(views, expected);
    for view in views {
        assert!(
            !privilege(&mut world, "has_table_privilege", "broker_ops", &view, WRITE).await,
            "{view}"
        );
        assert!(ops.tries(&format!("select * from {view}")).await.is_ok(), "{view}");
    }
    for sequence in relations(&mut world, "S").await {
        let any = "usage, select, update";
        assert!(
            !privilege(&mut world, "has_sequence_privilege", "broker_ops", &sequence, any).await,
            "{sequence}"
        );
    }
    assert!(
        privilege(&mut world, "has_table_privilege", "broker_app", "lease", "insert").await,
        "the control"
    );

    // Read only, and when a session sets itself free of that, without a right to write.
    ops.may_not("create table t ()", READ_ONLY, "read-only transaction").await;
    for (sql, why) in [
        ("delete from log_events", "permission denied for view log_events"),
        ("update log_events set type = 'x'", "permission denied for view log_events"),
        ("create table t ()", "permission denied for schema public"),
        ("select * from lease for update", "permission denied for table lease"),
    ] {
        ops.may_not(&format!("set transaction read write; {sql}"), DENIED, why).await;
    }
    // A copy of a database does not copy who may do what with it: look where the migrations ran.
    for role in ["broker_ops", "broker_app"] {
        let sql = "select has_database_privilege($1, 'template_broker', 'temporary, create')";
        let may: bool = sqlx::query_scalar(sql)
            .bind(role)
            .fetch_one(&mut world.owner.connection)
            .await
            .unwrap();
        assert!(!may, "{role} has room of its own to write in");
    }
}

#[tokio::test]
async fn operations_run_none_of_our_functions_and_the_server_only_those_it_needs() {
    let mut world = World::new().await;
    let sql = "select oid::regprocedure::text from pg_proc where pronamespace = 'public'::regnamespace order by 1";
    let functions: Vec<String> =
        sqlx::query_scalar(sql).fetch_all(&mut world.owner.connection).await.unwrap();
    let needed = BTreeSet::from([
        "admit(text,text,uuid,text,text,text,text,text[],jsonb,timestamp with time zone,bytea,interval)",
        "append_event(bytea)",
        "apply_act(uuid,timestamp with time zone)",
        "counted(text,text,uuid,timestamp with time zone)",
        "event_doc(bytea)",
        "has_its_approvals(uuid,smallint)",
        "hold_sponsor(text)",
        "is_anchored(uuid)",
        "is_frozen(text,text,text,text)",
        "make_event_partition(date)",
        "role_is_cut_off(text,timestamp with time zone)",
        "schema_version()",
        "start_workload_task(uuid,text,text,text,text,text,bytea,text,boolean,jsonb,timestamp with time zone,timestamp with time zone,bigint,bytea)",
        "task_is_live(uuid,text,text,timestamp with time zone)",
    ]);
    let mut of_ops = BTreeSet::new();
    let mut of_app = BTreeSet::new();
    for function in &functions {
        if privilege(&mut world, "has_function_privilege", "broker_ops", function, "execute").await
        {
            of_ops.insert(function.as_str());
        }
        if privilege(&mut world, "has_function_privilege", "broker_app", function, "execute").await
        {
            of_app.insert(function.as_str());
        }
    }
    assert_eq!(of_ops, BTreeSet::new());
    assert_eq!(of_app, needed);
}

#[tokio::test]
async fn functions_that_run_with_their_owners_rights_name_where_they_look() {
    let mut world = World::new().await;
    let sql = "select oid::regprocedure::text, proconfig from pg_proc where pronamespace = 'public'::regnamespace and prosecdef";
    let functions: Vec<(String, Option<Vec<String>>)> =
        sqlx::query_as(sql).fetch_all(&mut world.owner.connection).await.unwrap();
    assert!(functions.len() >= 3, "{functions:?}");
    for (function, config) in functions {
        let path = "search_path=pg_catalog, public, pg_temp".to_owned();
        assert!(config.unwrap_or_default().contains(&path), "{function}");
    }
}

#[tokio::test]
async fn every_view_and_every_column_of_it_says_what_it_is() {
    let mut world = World::new().await;
    let sql = "select c.relname || coalesce('.' || a.attname, ''), coalesce(d.description, '')
                 from pg_class c
                 left join lateral (
                     select attnum, attname from pg_attribute where attrelid = c.oid and attnum > 0 union all select 0, null
                 ) a on true
                 left join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = c.oid and d.objsubid = a.attnum
                where c.relnamespace = 'public'::regnamespace and c.relkind in ('v', 'm')";
    let comments: Vec<(String, String)> =
        sqlx::query_as(sql).fetch_all(&mut world.owner.connection).await.unwrap();
    assert!(comments.len() > 80, "{}", comments.len());
    let silent: Vec<_> = comments.iter().filter(|(_, text)| text.trim().is_empty()).collect();
    assert_eq!(silent, Vec::<&(String, String)>::new());
}

#[tokio::test]
async fn guards_fire_for_everybody_always() {
    // As in pg_trigger.h.
    const INSERT: i32 = 1 << 2;
    const DELETE: i32 = 1 << 3;
    const UPDATE: i32 = 1 << 4;
    const TRUNCATE: i32 = 1 << 5;
    let mut world = World::new().await;
    let sql = "select tgrelid::regclass::text, tgname::text, tgenabled::text, tgtype::int
                 from pg_trigger where not tgisinternal order by 1, 2";
    let triggers: Vec<(String, String, String, i32)> =
        sqlx::query_as(sql).fetch_all(&mut world.owner.connection).await.unwrap();
    let ordinary: Vec<_> =
        triggers.iter().filter(|it| it.2 != "A").map(|it| it.1.as_str()).collect();
    assert_eq!(ordinary, ["lease_changed"], "a notice guards nothing");

    let gone = DELETE | UPDATE | TRUNCATE;
    let partitions = partitions(&mut world).await;
    let kept = [
        ("statement", gone),
        ("lease", gone | INSERT),
        ("signature", gone | INSERT),
        ("session", gone | INSERT),
        ("probe", gone | INSERT),
        ("role_stop", gone),
        ("role_writer", gone),
        ("\"freeze\"", gone | INSERT),
    ];
    let events = partitions.iter().map(|it| (it.as_str(), gone));
    // A parent has no rows, and its TRUNCATE is its partitions'.
    for (table, guarded) in kept.into_iter().chain(events).chain([("event", DELETE | UPDATE)]) {
        let types = triggers.iter().filter(|it| it.0 == table && it.2 == "A").map(|it| it.3);
        assert_eq!(types.fold(0, |all, it| all | it) & guarded, guarded, "{table}");
    }
}

#[tokio::test]
async fn a_database_with_leases_in_it_is_brought_up_to_date_and_keeps_them() {
    let before_budgets = 20_261_121_000_007;
    let database = Database::empty().await;
    let older = store::MIGRATOR.iter().filter(|it| it.version < before_budgets).cloned().collect();
    let mut owner = store::admin(&database.admin_url).await.unwrap();
    Migrator::with_migrations(older).run(&mut owner).await.unwrap();
    let lease = "insert into lease (id, request_sha256, agent, sponsor, task_id, task, scope, actions, resources, rules_sha256, decided_by,
                                    signatures_needed, eligible_signers, state, requested_at, ended_at, end_reason)
                 select gen_random_uuid(), sha256('x'), 'a', 'alice', t.id, 't', 's', '{}', '{}', 'nobody kept it', '{}',
                        0, '{}', 'denied', now(), now(), 'x' from task t";
    sqlx::raw_sql(
        "insert into person (handle, display_name, email, created_at) values ('alice', 'a', 'a', now());
         insert into task (id, agent, sponsor, task, started_at, expires_at) values (gen_random_uuid(), 'a', 'alice', 't', now(), now() + interval '1 day')",
    )
    .execute(&mut owner)
    .await
    .unwrap();
    sqlx::raw_sql(lease).execute(&mut owner).await.unwrap();

    store::migrate(&database.admin_url).await.unwrap();
    let old: Vec<String> = sqlx::query_scalar("select rules_sha256 from lease_history")
        .fetch_all(&mut owner)
        .await
        .unwrap();
    assert_eq!(old, ["nobody kept it"], "what was judged by something that was not kept stays");
    let new = sqlx::raw_sql(lease).execute(&mut owner).await.unwrap_err();
    assert!(new.to_string().contains("lease_rules_are_kept"), "{new}");
}
