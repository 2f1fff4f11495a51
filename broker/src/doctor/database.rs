//! The database: who may what, and whether what must never happen is still refused.
//!
//! The catalogs are read as lines, and compared with the lines of a database that was just migrated,
//! [`store::CATALOG`]. Each check looks at one kind of line.

use std::collections::BTreeSet;

use super::estate::Database;
use super::surroundings::skew;
use super::{Check, Found, Ground, Severity, found, unread};
use crate::store;

/// Whose rights have checks of their own.
const OURS: [&str; 5] =
    ["broker_app", "broker_ops", "broker_sequencer", "broker_retention", "public"];

/// So many rounds to the anchors may fail.
const ROUNDS: i64 = 10;

const MIGRATE: &str = "find out who changed it and when; then restore the object from the migrations, as broker_owner";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "database-unread",
        severity: Severity::High,
        wants: "the doctor can read the database's catalogs: critical if it is refused, high if it is away, low if none was named",
        gains: "whatever is wrong there stays unseen",
        fix: "set BROKER_OPS_DATABASE_URL, or see that the database is there",
        run: |ground| unread([("the database".to_owned(), &ground.estate.database)]),
    },
    Check {
        id: "database-login",
        severity: Severity::Critical,
        wants: "we are connected as broker_app or broker_ops, not as the owner or a superuser",
        gains: "a fault in the server is then a fault in everything: nothing is refused to the owner",
        fix: "connect brokerd as broker_app, and the doctor as broker_ops",
        run: database_login,
    },
    Check {
        id: "role-attributes",
        severity: Severity::Critical,
        wants: "the broker's database roles are no superusers, make no roles, and pass by no row security",
        gains: "who has that login's password rewrites the record and approves what they like",
        fix: "alter role ROLE nosuperuser nocreaterole nocreatedb noreplication nobypassrls; broker_owner nologin",
        run: |ground| surplus(ground, "role"),
    },
    Check {
        id: "role-members",
        severity: Severity::Critical,
        wants: "broker_migrate alone may take the owner's role, and the logins are members of nothing else",
        gains: "who has that login's password drops triggers and rewrites the record",
        fix: "revoke THAT_ROLE from ROLE",
        run: |ground| surplus(ground, "member"),
    },
    Check {
        id: "object-owner",
        severity: Severity::Critical,
        wants: "broker_owner owns every table, view and function",
        gains: "the owner of a table switches off what guards it",
        fix: "alter table NAME owner to broker_owner",
        run: |ground| surplus(ground, "owner"),
    },
    Check {
        id: "trigger-missing",
        severity: Severity::Critical,
        wants: "every trigger of the migrations is there",
        gains: "signatures that do not count, statements that change, rows that go: the database takes them",
        fix: MIGRATE,
        run: trigger_missing,
    },
    Check {
        id: "trigger-off",
        severity: Severity::Critical,
        wants: "every trigger fires as the migrations say: `always`, even for who sets session_replication_role",
        gains: "signatures that do not count, statements that change, rows that go: the database takes them",
        fix: "alter table TABLE enable always trigger TRIGGER; then find out what was written meanwhile",
        run: trigger_off,
    },
    Check {
        id: "function-changed",
        severity: Severity::Critical,
        wants: "every function is the migrations': its text, its owner's rights or the caller's, its search path",
        gains: "a trigger that refuses nothing, or code that runs as the owner",
        fix: MIGRATE,
        run: function_changed,
    },
    Check {
        id: "grant-app",
        severity: Severity::High,
        wants: "broker_app has no right beyond the migrations': no delete, no truncate, no update of what is fixed",
        gains: "a fault in the server reaches what was to be out of its reach",
        fix: "revoke PRIVILEGE on TABLE from broker_app",
        run: |ground| grants(ground, |grantee| grantee == "broker_app"),
    },
    Check {
        id: "grant-ops",
        severity: Severity::High,
        wants: "broker_ops has no right beyond the migrations': it reads views",
        gains: "who is to look at the record reads or writes what is below it",
        fix: "revoke PRIVILEGE on TABLE from broker_ops",
        run: |ground| grants(ground, |grantee| grantee == "broker_ops"),
    },
    Check {
        id: "grant-log",
        severity: Severity::High,
        wants: "broker_sequencer and broker_retention have no right beyond the migrations': they run the log's functions and read views",
        gains: "who has one of these logins changes events, or leases",
        fix: "revoke PRIVILEGE on OBJECT from ROLE",
        run: |ground| grants(ground, |it| ["broker_sequencer", "broker_retention"].contains(&it)),
    },
    Check {
        id: "grant-public",
        severity: Severity::High,
        wants: "PUBLIC has no right: it makes nothing in schema public and no temporary tables",
        gains: "any login of the server makes a function or a table that ours is taken for",
        fix: "revoke PRIVILEGE on OBJECT from public",
        run: |ground| grants(ground, |grantee| grantee == "public"),
    },
    Check {
        id: "grant-other",
        severity: Severity::High,
        wants: "no other role has a right in the broker's database",
        gains: "a login that nobody thinks of reads or changes the record",
        fix: "revoke PRIVILEGE on OBJECT from ROLE",
        run: |ground| grants(ground, |it| !OURS.contains(&it)),
    },
    Check {
        id: "grant-missing",
        severity: Severity::Low,
        wants: "every right that the migrations grant is there",
        gains: "nothing; requests fail",
        fix: "grant it again, as broker_owner, as the migrations do",
        run: grant_missing,
    },
    Check {
        id: "schema-version",
        severity: Severity::High,
        wants: "the schema is of the version that this program was built for",
        gains: "guards of a newer version are not there, or are not what the program takes them for",
        fix: "brokerd migrate, or run the program that fits",
        run: schema_version,
    },
    Check {
        id: "database-clock",
        severity: Severity::High,
        wants: "the database's clock and ours agree: high beyond 60 s, medium beyond 5 s",
        gains: "the record's times do not tell what came first",
        fix: "let both hosts' clocks be set by NTP",
        run: database_clock,
    },
    Check {
        id: "log-unanchored",
        severity: Severity::High,
        wants: "what was signed of the log is at an anchor soon: within ten rounds of `anchor_every`",
        gains: "who has the database and the log's key rewrites all that happened since; what destroys is not issued",
        fix: "see the warnings of brokerd about anchors; a folder's mount, a bucket's principal",
        run: log_unanchored,
    },
];

/// Where events of one month are; the migrations cannot name them.
const MONTH: &str = "event_MONTH";

/// What should be there: a table of each month has what the migrations give to such a table.
fn expected(database: &Database) -> BTreeSet<String> {
    let words = database.facts.iter().flat_map(|it| it.split(' '));
    let months: BTreeSet<_> = words.filter(|it| is_month(it)).collect();
    let lines = store::CATALOG.lines().map(str::trim_end).filter(|it| !it.is_empty());
    let each = lines.flat_map(|line| {
        if line.contains(MONTH) {
            months.iter().map(|it| line.replace(MONTH, it)).collect()
        } else {
            vec![line.to_owned()]
        }
    });
    each.collect()
}

fn is_month(word: &str) -> bool {
    word.strip_prefix("event_")
        .is_some_and(|it| it.len() == 6 && it.bytes().all(|it| it.is_ascii_digit()))
}

/// Lines of `kind` that are there and should not be, and those that should be and are not.
fn differences(ground: &Ground<'_>, kind: &str) -> (Vec<String>, Vec<String>) {
    let Ok(database) = &ground.estate.database else { return Default::default() };
    // A schema of another version has other lines, and a check of its own.
    if database.schema_version.is_some_and(|it| it != store::newest_migration()) {
        return Default::default();
    }
    let expected = expected(database);
    let of_kind = |it: &&String| it.split(' ').next() == Some(kind);
    let surplus = database.facts.difference(&expected).filter(of_kind).cloned().collect();
    let missing = expected.difference(&database.facts).filter(of_kind).cloned().collect();
    (surplus, missing)
}

/// A finding of a line: about its second word.
fn about(line: &str, what: impl Into<String>) -> Found {
    found(line.split(' ').nth(1).unwrap_or_default(), what)
}

fn surplus(ground: &Ground<'_>, kind: &str) -> Vec<Found> {
    let (surplus, _) = differences(ground, kind);
    surplus.iter().map(|line| about(line, format!("it should not be so: {line}"))).collect()
}

fn database_login(ground: &Ground<'_>) -> Vec<Found> {
    let login = ground.estate.database.as_ref().ok().map(|it| it.login.as_str());
    let other = login.filter(|it| !["broker_app", "broker_ops"].contains(it));
    other.into_iter().map(|it| found(it, "we are connected as this login")).collect()
}

/// `trigger TABLE NAME FIRES`, without how it fires.
fn trigger(line: &str) -> &str {
    line.rsplit_once(' ').map_or(line, |(it, _)| it)
}

fn trigger_missing(ground: &Ground<'_>) -> Vec<Found> {
    let (surplus, missing) = differences(ground, "trigger");
    let gone =
        missing.iter().filter(|it| surplus.iter().all(|other| trigger(other) != trigger(it)));
    gone.map(|it| about(it, format!("{} is not there", trigger(it)))).collect()
}

fn trigger_off(ground: &Ground<'_>) -> Vec<Found> {
    let (surplus, missing) = differences(ground, "trigger");
    let other = surplus.iter().filter_map(|it| {
        let wanted = missing.iter().find(|other| trigger(other) == trigger(it))?;
        let how = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
        let what = format!("{} fires {}, not {}", trigger(it), how(it), how(wanted));
        Some(about(it, what))
    });
    other.collect()
}

fn function_changed(ground: &Ground<'_>) -> Vec<Found> {
    let (surplus, missing) = differences(ground, "function");
    let name = |it: &str| it.split(' ').nth(1).unwrap_or_default().to_owned();
    let names: BTreeSet<_> = surplus.iter().chain(&missing).map(|it| name(it)).collect();
    let tell = |it: String| {
        let there = surplus.iter().any(|line| name(line) == it);
        let wanted = missing.iter().any(|line| name(line) == it);
        let what = match (there, wanted) {
            (true, true) => "it is not the migrations'",
            (true, false) => "it is there, and no migration made it",
            _ => "it is not there",
        };
        found(it, what)
    };
    names.into_iter().map(tell).collect()
}

fn grants(ground: &Ground<'_>, whose: impl Fn(&str) -> bool) -> Vec<Found> {
    let (surplus, _) = differences(ground, "grant");
    let grantee = |line: &str| line.split(' ').nth(2).unwrap_or_default().to_owned();
    let theirs = surplus.iter().filter(|it| whose(&grantee(it)));
    theirs.map(|line| about(line, format!("it should not be so: {line}"))).collect()
}

fn grant_missing(ground: &Ground<'_>) -> Vec<Found> {
    let (_, missing) = differences(ground, "grant");
    missing.iter().map(|line| about(line, format!("it is not so: {line}"))).collect()
}

fn schema_version(ground: &Ground<'_>) -> Vec<Found> {
    let Ok(database) = &ground.estate.database else { return Vec::new() };
    let wanted = store::newest_migration();
    let other = database.schema_version.filter(|it| *it != wanted);
    other
        .into_iter()
        .map(|it| found("the schema", format!("it is of version {it}, not {wanted}")))
        .collect()
}

fn log_unanchored(ground: &Ground<'_>) -> Vec<Found> {
    let Ok(database) = &ground.estate.database else { return Vec::new() };
    let Some(since) = database.unanchored_since else { return Vec::new() };
    let minutes = (ground.estate.now - since).whole_minutes();
    let patience = ROUNDS * ground.config.settings.log.anchor_every.0.whole_minutes().max(1);
    let late = patience < minutes && !ground.config.settings.log.anchors.is_empty();
    let what = format!("nothing that was signed in the last {minutes} minutes is at an anchor");
    late.then(|| found("the log", what)).into_iter().collect()
}

fn database_clock(ground: &Ground<'_>) -> Vec<Found> {
    let ahead = ground.estate.database.as_ref().ok().map(|it| it.ahead_seconds);
    ahead.and_then(|it| skew("the database", it)).into_iter().collect()
}
