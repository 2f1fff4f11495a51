//! A database with a long history in it, and the queries that the pages of `docs/` ask of one.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::stack::Database;

/// Fills a database with about `events` events of thirteen months, and all that they tell of.
pub async fn fill(database: &Database, events: u64) {
    let mut superuser = superuser(database).await;
    let mut transaction = superuser.begin().await.expect("a transaction");
    sqlx::raw_sql(AssertSqlSafe(format!("set local fill.events = {events}")))
        .execute(&mut *transaction)
        .await
        .expect("a setting");
    let history = include_str!("history.sql");
    sqlx::raw_sql(history).execute(&mut *transaction).await.expect("a history");
    transaction.commit().await.expect("written");
    // What autovacuum does in time: statistics, and pages known to be all visible.
    sqlx::raw_sql("vacuum analyze").execute(&mut superuser).await.expect("vacuumed");
}

/// Somebody to whom no right is denied.
pub async fn superuser(database: &Database) -> PgConnection {
    PgConnection::connect(&database.superuser_url).await.expect("a superuser")
}

/// One query of a page.
#[derive(Clone, Debug)]
pub struct Query {
    pub page: &'static str,
    /// What the page says it is for.
    pub about: String,
    /// As it stands there.
    pub text: String,
}

impl Query {
    /// The query about what is in a database: `psql`'s variables and the pages' example lease are replaced.
    pub fn with(&self, variables: &BTreeMap<&'static str, String>) -> String {
        variables.iter().fold(self.text.clone(), |text, (name, value)| {
            let quoted = format!("'{}'", value.replace('\'', "''"));
            text.replace(&format!(":'{name}'"), &quoted).replace(&format!("'{name}'"), &quoted)
        })
    }
}

/// The lease that the pages show.
pub const EXAMPLE_LEASE: &str = "01a1fbfd-389d-76f3-9869-267028a6e6bb";
/// Pages of which every query is asked.
pub const PAGES: [&str; 5] = ["queries.md", "record.md", "people.md", "stopping.md", "log.md"];

/// All queries of a page, in order: statements in blocks of SQL, and what `psql -c` is told in a console.
pub fn queries(page: &'static str) -> Vec<Query> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&path).expect(page);
    let (mut queries, mut about) = (Vec::new(), String::new());
    let mut block: Option<(bool, Vec<&str>)> = None;
    for line in text.lines() {
        match &mut block {
            Some((is_sql, lines)) if line == "```" => {
                let statements = if *is_sql { statements(lines) } else { told_to_psql(lines) };
                let query = |text| Query { page, about: about.clone(), text };
                queries.extend(statements.into_iter().map(query));
                block = None;
            }
            Some((_, lines)) => lines.push(line),
            None if line.starts_with("```") => block = Some((line.starts_with("```sql"), vec![])),
            None if line.starts_with("**") || line.starts_with('#') => {
                let bold = line.strip_prefix("**").and_then(|it| it.split_once("**"));
                let name = bold.map_or(line.trim_start_matches(['#', ' ']), |(it, _)| it);
                name.trim_end_matches('.').clone_into(&mut about);
            }
            None => {}
        }
    }
    queries
}

/// The statements of a block of SQL: each ends with a line.
fn statements(lines: &[&str]) -> Vec<String> {
    let text = lines.join("\n") + "\n";
    let statements = text.split(";\n").map(|it| it.trim().to_owned());
    statements.filter(|it| !it.is_empty()).collect()
}

/// The SQL of each line `$ psql … -c "…"`.
fn told_to_psql(lines: &[&str]) -> Vec<String> {
    let told = |line: &&str| {
        let (_, sql) = line.strip_prefix("$ psql ")?.split_once("-c \"")?;
        Some(sql.strip_suffix('"')?.to_owned())
    };
    lines.iter().filter_map(told).collect()
}

/// What the pages' variables stand for in a database that was [filled](fill): an agent that did much in the last minutes.
pub async fn variables(database: &Database) -> BTreeMap<&'static str, String> {
    let mut superuser = superuser(database).await;
    let mut text = async |sql: &'static str| {
        let value: String =
            sqlx::query_scalar(sql).fetch_one(&mut superuser).await.expect("the fill makes one");
        value
    };
    BTreeMap::from([
        ("agent", "demo-agent".to_owned()),
        ("person", "bob".to_owned()),
        ("key", text("select access_key_id from session where state = 'live' order by id limit 1").await),
        ("at", text("select (now() - interval '2 minutes')::text").await),
        ("since", text("select (now() - interval '3 hours')::text").await),
        ("until", text("select now()::text").await),
        (
            EXAMPLE_LEASE,
            text("select lease_id::text from session where signed and state = 'live' order by id limit 1")
                .await,
        ),
    ])
}
