//! Acts of authority: a task is started, a freeze ends, people and keys change, each by what a person signs.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::config::Config;
use broker::lease::Assurance;
use broker::people::{self, Command};
use broker::statement::act::{ActStatement, ActTerms, Change};
use broker::statement::{Issuer, Meaning, Signers};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tests::keys::Key;
use tests::sts::FakeSts;
use tests::{AGENT, Answer, Setup, TestBroker, enrol, production_write};
use time::Duration;
use uuid::Uuid;

/// What is recorded of acts of authority, and of what they do.
pub(crate) const EVENT_TYPES: [&str; 16] = [
    "freeze.thawed",
    "key.enrolled",
    "key.revoked",
    "lease.revoked",
    "person.added",
    "person.disabled",
    "person.enabled",
    "person.groups-changed",
    "session.revoking",
    "statement.failed",
    "statement.lapsed",
    "statement.proposed",
    "statement.refused",
    "statement.signed",
    "task.ended",
    "task.started",
];

/// A broker with two admins, erin and frank, beside the others.
struct World {
    sts: FakeSts,
    broker: TestBroker,
    erin: Key,
    frank: Key,
}

impl World {
    async fn new(software_keys: bool) -> Self {
        let sts = FakeSts::start().await;
        let broker = TestBroker::new(Setup { software_keys, ..Setup::fake(&sts) }).await;
        let now = broker.clock.now();
        let database = &broker.database;
        let erin = enrol(database, "erin", &["admins"], software_keys, now).await;
        let frank = enrol(database, "frank", &["admins"], software_keys, now).await;
        Self { sts, broker, erin, frank }
    }

    /// What a person's session may do.
    async fn as_person(
        &self,
        person: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let (token, _) = self.broker.broker.tokens.login_token(person, self.broker.clock.now());
        let token = secrecy::ExposeSecret::expose_secret(&token).to_owned();
        self.broker.send(method, path, Some(&token), &[], body).await
    }

    /// Has a statement drawn up for `person`.
    async fn draft(&self, person: &str, body: Value) -> Draft {
        let answer =
            self.as_person(person, Method::POST, "/v1/statements/drafts", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        Draft::of(&answer.body)
    }

    async fn task_start(&self, person: &str) -> Draft {
        let body =
            json!({ "kind": "task-start", "agent": AGENT, "task": "OPS-7", "ttl_seconds": 3600 });
        self.draft(person, body).await
    }

    async fn send(&self, id: Uuid, decision: &str, signature: &str) -> Answer {
        let body = json!({ "id": id, "decision": decision, "signature": signature });
        self.broker.send(Method::POST, "/v1/statements", None, &[], Some(body)).await
    }

    async fn sign(&self, draft: &Draft, key: &Key) -> Answer {
        self.send(draft.id, "approve", &draft.signed(key, draft.meaning())).await
    }

    async fn refuse(&self, draft: &Draft, key: &Key) -> Answer {
        self.send(draft.id, "refuse", &draft.signed(key, Meaning::AdminChangeRefusal)).await
    }

    /// What an operator on the server's host types.
    async fn operator(&self, command: Command) -> anyhow::Result<Draft> {
        let config = Config::load(self.broker.config_dir.path()).unwrap();
        let mut owner = self.broker.database.owner.acquire().await.unwrap();
        let now = self.broker.clock.now();
        let outcome = people::run(&command, &config, &mut owner, now).await?;
        let id: Uuid = outcome.data.trim().parse().unwrap();
        let answer =
            self.as_person("erin", Method::GET, &format!("/v1/statements/{id}"), None).await;
        let answer = if answer.status == StatusCode::OK {
            answer
        } else {
            self.as_person("frank", Method::GET, &format!("/v1/statements/{id}"), None).await
        };
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        Ok(Draft::of(&answer.body))
    }

    async fn groups(&self, handle: &str, add: &[&str], remove: &[&str]) -> Draft {
        let list = |it: &[&str]| it.iter().map(ToString::to_string).collect();
        let command =
            Command::Groups { handle: handle.into(), add: list(add), remove: list(remove) };
        self.operator(command).await.unwrap()
    }

    async fn one(&self, sql: &str) -> Option<String> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_optional(&self.broker.database.owner)
            .await
            .expect(sql)
            .flatten()
    }

    async fn state(&self, draft: &Draft) -> String {
        self.one(&format!("select state from act where id = '{}'", draft.id)).await.unwrap()
    }

    async fn groups_of(&self, handle: &str) -> String {
        let sql =
            format!("select array_to_string(groups, ',') from person where handle = '{handle}'");
        self.one(&sql).await.unwrap()
    }

    async fn event_types(&self) -> BTreeSet<String> {
        sqlx::query_scalar("select distinct type from event")
            .fetch_all(&self.broker.database.owner)
            .await
            .unwrap()
            .into_iter()
            .collect()
    }
}

struct Draft {
    id: Uuid,
    kind: String,
    bytes: Vec<u8>,
    body: Value,
}

impl Draft {
    fn of(body: &Value) -> Self {
        Self {
            id: body["id"].as_str().unwrap().parse().unwrap(),
            kind: body["kind"].as_str().unwrap().to_owned(),
            bytes: STANDARD.decode(body["statement"].as_str().unwrap()).unwrap(),
            body: body.clone(),
        }
    }

    fn meaning(&self) -> Meaning {
        match self.kind.as_str() {
            "task-start" => Meaning::TaskStart,
            "thaw" => Meaning::Thaw,
            _ => Meaning::AdminChange,
        }
    }

    fn signed(&self, key: &Key, meaning: Meaning) -> String {
        key.sign_as(meaning.namespace(), &meaning.message(&self.bytes))
    }
}

#[track_caller]
fn rejected(answer: &Answer, reason: &str) {
    assert_eq!(
        (answer.status, answer.problem(), answer.reason()),
        (StatusCode::FORBIDDEN, "/problems/signature-rejected", reason),
        "{}",
        answer.body
    );
}

#[track_caller]
fn done(answer: &Answer) {
    assert_eq!(
        (answer.status, &answer.body["state"]),
        (StatusCode::OK, &json!("done")),
        "{}",
        answer.body
    );
}

// ------------------------------------------------------------------------------------------------------------- tasks

#[tokio::test]
async fn a_sponsor_starts_a_task_with_their_own_key_and_its_token_is_the_agents() {
    let world = World::new(false).await;
    let draft = world.task_start("alice").await;
    let answer = world.sign(&draft, &world.broker.alice).await;
    done(&answer);
    let token = answer.body["task"]["token"].as_str().unwrap();
    let who = world.broker.send(Method::GET, "/v1/whoami", Some(token), &[], None).await;
    assert_eq!(
        (&who.body["agent"], &who.body["sponsor"], &who.body["task"]),
        (&json!(AGENT), &json!("alice"), &json!("OPS-7"))
    );
    let lease = world
        .broker
        .send(Method::POST, "/v1/leases", Some(token), &[], Some(json!({ "scope": "staging-rw" })))
        .await;
    assert_eq!(lease.status, StatusCode::CREATED, "{}", lease.body);
    // Once: the same signature starts no second task.
    rejected(&world.sign(&draft, &world.broker.alice).await, "already-signed");
    let tasks = world.one("select count(*)::text from task where started_by is not null").await;
    assert_eq!(tasks.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_task_starts_by_nobody_elses_signature_and_no_other() {
    let world = World::new(false).await;
    let draft = world.task_start("alice").await;
    let TestBroker { alice, bob, .. } = &world.broker;
    rejected(&world.sign(&draft, bob).await, "not-eligible");
    rejected(&world.sign(&draft, &Key::hardware()).await, "unknown-key");
    rejected(&world.sign(&draft, &alice.with_flags(0)).await, "not-touched");
    for meaning in Meaning::ALL.iter().filter(|it| **it != Meaning::TaskStart) {
        let signature = draft.signed(alice, *meaning);
        rejected(&world.send(draft.id, "approve", &signature).await, "wrong-namespace");
    }
    let other = world.task_start("alice").await;
    let signature = other.signed(alice, Meaning::TaskStart);
    rejected(&world.send(draft.id, "approve", &signature).await, "not-this-statement");
    let refused = world.send(draft.id, "refuse", &signature).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);

    // Nor is it an approval of anything, nor an approval it.
    let id = world.broker.pending_lease().await;
    let lease = world.broker.statement(id).await;
    let as_approval = draft.signed(bob, Meaning::TaskStart);
    rejected(&world.broker.send_signature(id, "approve", &as_approval).await, "wrong-namespace");
    let as_task = alice.sign("approve", &lease);
    rejected(&world.send(draft.id, "approve", &as_task).await, "wrong-namespace");

    world.broker.clock.advance(Duration::minutes(11));
    let signature = draft.signed(alice, Meaning::TaskStart);
    rejected(&world.send(draft.id, "approve", &signature).await, "too-late");
    assert_eq!(
        world.one("select count(*)::text from task where started_by is not null").await.as_deref(),
        Some("0")
    );
    world.broker.broker.sweep().await.unwrap();
    assert_eq!(world.state(&draft).await, "lapsed");
    assert_eq!(world.sts.calls(), 0);
}

#[tokio::test]
async fn an_agent_can_have_nothing_drawn_up() {
    let world = World::new(true).await;
    for body in [
        json!({ "kind": "task-start", "agent": "mine", "task": "x", "ttl_seconds": 3600 }),
        json!({ "kind": "thaw", "freeze_id": Uuid::now_v7() }),
        json!({ "kind": "revoke-key", "fingerprint": world.erin.fingerprint() }),
        json!({ "kind": "admin-change", "change": "add-person" }),
    ] {
        let answer = world.broker.post("/v1/statements/drafts", body).await;
        assert!(answer.status.is_client_error(), "{}", answer.body);
    }
    for path in ["/v1/statements", &format!("/v1/statements/{}", Uuid::now_v7())] {
        assert_eq!(world.broker.get(path).await.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(world.one("select count(*)::text from act").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_task_that_ends_takes_its_token_and_open_leases_with_it() {
    let world = World::new(true).await;
    let (broker, token) = (&world.broker, &world.broker.token);
    let pending = broker.pending_lease().await;
    let staging = broker.staging_lease().await;
    assert_eq!(broker.claim(staging).await.status, StatusCode::OK);
    let task = world.one("select id::text from task").await.unwrap();
    let path = format!("/v1/tasks/{task}/end");

    let stranger = world.as_person("bob", Method::POST, &path, None).await;
    assert_eq!(stranger.status, StatusCode::NOT_FOUND);
    assert_eq!(broker.state(pending).await, "pending");
    let ended = world.as_person("alice", Method::POST, &path, None).await;
    assert_eq!(
        (ended.status, &ended.body["leases"]),
        (StatusCode::OK, &json!(2)),
        "{}",
        ended.body
    );
    assert_eq!(
        (broker.state(pending).await, broker.state(staging).await),
        ("revoked".into(), "revoked".into())
    );
    assert_eq!(broker.sessions(staging).await, ["revoking"]);
    let again = broker.send(Method::GET, "/v1/whoami", Some(token), &[], None).await;
    assert_eq!(again.status, StatusCode::UNAUTHORIZED);
    assert_eq!(broker.approve(pending, &broker.bob).await.reason(), "not-pending");
}

// -------------------------------------------------------------------------------------------------------------- thaw

#[tokio::test]
async fn a_freeze_is_ended_by_an_admin_who_did_not_order_it() {
    let world = World::new(false).await;
    let freeze = |by: &str, kind: &str, target: &str| {
        format!(
            "insert into \"freeze\" (id, kind, target, reason, created_by, created_at)
             values (gen_random_uuid(), '{kind}', {target}, 'it runs wild', '{by}', '2026-01-01') returning id::text"
        )
    };
    let thaw = |id: &str| json!({ "kind": "thaw", "freeze_id": id });
    let id = world.one(&freeze("erin", "all", "null")).await.unwrap();
    let draft = async |person: &str, id: &str| {
        world.as_person(person, Method::POST, "/v1/statements/drafts", Some(thaw(id))).await
    };
    assert_eq!(draft("erin", &id).await.status, StatusCode::BAD_REQUEST, "her own");
    assert_eq!(draft("bob", &id).await.status, StatusCode::FORBIDDEN, "no admin");
    assert_eq!(draft("frank", &Uuid::now_v7().to_string()).await.status, StatusCode::NOT_FOUND);
    let frozen = world.broker.post("/v1/leases", json!({ "scope": "staging-rw" })).await;
    assert_eq!(frozen.problem(), "/problems/frozen");

    let draft_of_frank = world.draft("frank", thaw(&id)).await;
    rejected(&world.sign(&draft_of_frank, &world.erin).await, "concerned");
    rejected(&world.sign(&draft_of_frank, &world.frank.with_flags(1)).await, "not-verified");
    done(&world.sign(&draft_of_frank, &world.frank).await);
    let by = world.one("select thawed_by from \"freeze\"").await;
    assert_eq!(by.as_deref(), Some("frank"));
    world.broker.staging_lease().await;

    // The one who stands behind a frozen agent, and the sponsor who is frozen, do not let themselves go.
    world.broker.as_owner("alter table person disable trigger person_guard; update person set groups = '{admins}' where handle = 'alice'").await;
    for (kind, target) in [("agent", "'demo-agent'"), ("sponsor", "'alice'")] {
        let id = world.one(&freeze("erin", kind, target)).await.unwrap();
        let own = world.draft("alice", thaw(&id)).await;
        rejected(&world.sign(&own, &world.broker.alice).await, "concerned");
        done(&world.sign(&world.draft("frank", thaw(&id)).await, &world.frank).await);
    }
}

// ------------------------------------------------------------------------------------------------------------ people

#[tokio::test]
async fn the_first_two_admins_are_set_up_and_from_then_on_nobody_is_without_a_signature() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { software_keys: false, ..Setup::fake(&sts) }).await;
    let config = Config::load(broker.config_dir.path()).unwrap();
    let mut owner = broker.database.owner.acquire().await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut run = async |line: &str| {
        let command = people_command(line);
        people::run(&command, &config, &mut owner, broker.clock.now()).await
    };
    let file = |name: &str, key: &Key| {
        let path = files.path().join(name);
        std::fs::write(&path, key.public_key()).unwrap();
        path.display().to_string()
    };
    let (erin, frank) = (Key::hardware(), Key::hardware());
    let (erins, franks) = (file("erin.pub", &erin), file("frank.pub", &frank));
    let plain = file("plain.pub", &Key::software());
    let add =
        |who: &str, rest: &str| format!("add {who} --name {who} --email {who}@example.com {rest}");
    for (line, why) in [
        (add("gina", ""), "the first two people are the admins"),
        (add("erin", "--group admins"), "add --key"),
        (add("erin", &format!("--group admins --key {erins}")), "of assurance verified"),
        (add("erin", &format!("--group admins --key {plain} --seen")), "of assurance verified"),
        (add("Erin", &format!("--group admins --key {erins} --seen")), "a handle is small letters"),
        ("disable bob".to_owned(), "first set up two admins"),
        ("disable nobody".to_owned(), "there is no person"),
    ] {
        let error = run(&line).await.unwrap_err().to_string();
        assert!(error.contains(why), "{line}: {error}");
    }
    run(&add("erin", &format!("--group admins --key {erins} --seen"))).await.unwrap();
    let second =
        run(&add("frank", &format!("--group admins --key {franks} --seen"))).await.unwrap();
    assert!(second.words.contains("another admin signs"), "{}", second.words);

    // From now on nothing happens by itself, whatever the command, and whoever writes.
    let before: Vec<Value> = people_rows(&broker).await;
    let proposed =
        run(&add("mallory", &format!("--group admins --key {plain} --seen"))).await.unwrap();
    assert!(proposed.words.contains("proposed, and nothing more"), "{}", proposed.words);
    run("groups bob --add admins").await.unwrap();
    run("disable frank").await.unwrap();
    assert_eq!(people_rows(&broker).await, before);
    drop(owner);
    for sql in [
        "insert into person (handle, display_name, email, created_at) values ('mallory', 'm', 'm', now())",
        "update person set groups = '{admins}' where handle = 'bob'",
        "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) select 'SHA256:' || repeat('A', 43), 'erin', 'x', 'verified', 'x', now()",
        "update person_key set assurance = 'software'",
        "update person_key set revoked_at = now()",
        "set local broker.act = '00000000-0000-7000-8000-000000000000'; update person set groups = '{admins}' where handle = 'bob'",
        "delete from person_key",
        "delete from person where handle = 'dave'",
        "delete from bootstrap",
        "truncate bootstrap",
    ] {
        let refused = sqlx::raw_sql(sql).execute(&broker.database.owner).await.unwrap_err();
        let code = refused.as_database_error().unwrap().code().unwrap().into_owned();
        assert!(code == "23000" || code == "0A000", "{sql}: {refused}");
    }
    assert_eq!(people_rows(&broker).await, before);
}

fn people_command(line: &str) -> Command {
    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }
    <Line as clap::Parser>::try_parse_from(["person"].into_iter().chain(line.split_whitespace()))
        .expect(line)
        .command
}

async fn people_rows(broker: &TestBroker) -> Vec<Value> {
    sqlx::query_scalar("select to_jsonb(it) from (select p.*, (select array_agg(k order by k.fingerprint) from person_key k where k.person = p.handle) as keys from person p order by handle) it")
        .fetch_all(&broker.database.owner)
        .await
        .unwrap()
}

#[tokio::test]
async fn another_admin_signs_what_an_operator_proposed_and_it_waits_a_day() {
    let world = World::new(false).await;
    let draft = world.groups("dave", &["production-signers"], &[]).await;
    assert_eq!(draft.body["eligible_signers"], json!(["erin", "frank"]));
    for (key, why) in [
        (&world.broker.bob, "not-eligible"),
        (&world.broker.dave, "concerned"),
        (&world.erin.with_flags(1), "not-verified"),
        (&Key::hardware(), "unknown-key"),
    ] {
        rejected(&world.sign(&draft, key).await, why);
    }
    let signed = world.sign(&draft, &world.erin).await;
    assert_eq!(
        (signed.status, &signed.body["state"]),
        (StatusCode::OK, &json!("signed")),
        "{}",
        signed.body
    );
    rejected(&world.sign(&draft, &world.frank).await, "not-pending");
    let clock = &world.broker.clock;
    clock.advance(Duration::hours(23));
    world.broker.broker.sweep().await.unwrap();
    assert_eq!(world.groups_of("dave").await, "");
    clock.advance(Duration::hours(1) + Duration::SECOND);
    world.broker.broker.sweep().await.unwrap();
    assert_eq!(
        (world.groups_of("dave").await, world.state(&draft).await),
        ("production-signers".into(), "done".into())
    );
}

#[tokio::test]
async fn in_the_cool_down_an_admin_or_whoever_is_concerned_stops_it_and_a_bad_key_does_too() {
    let world = World::new(false).await;
    let later = async || {
        world.broker.clock.advance(Duration::days(1) + Duration::SECOND);
        world.broker.broker.sweep().await.unwrap();
    };
    for (key, may) in [(&world.broker.dave, true), (&world.frank, true), (&world.broker.bob, false)]
    {
        let draft = world.groups("dave", &["production-signers"], &[]).await;
        assert_eq!(world.sign(&draft, &world.erin).await.status, StatusCode::OK);
        let refused = world.refuse(&draft, key).await;
        if may {
            assert_eq!(
                (refused.status, &refused.body["state"]),
                (StatusCode::OK, &json!("refused")),
                "{}",
                refused.body
            );
            later().await;
            assert_eq!(
                (world.state(&draft).await, world.groups_of("dave").await),
                ("refused".into(), String::new())
            );
        } else {
            rejected(&refused, "not-eligible");
            // What was said for it is not said against it.
            let replay = draft.signed(&world.frank, Meaning::AdminChange);
            rejected(&world.send(draft.id, "refuse", &replay).await, "wrong-namespace");
        }
    }
    // The signer's key turns out to be stolen.
    let draft = world.groups("dave", &["backup-signers"], &[]).await;
    assert_eq!(world.sign(&draft, &world.erin).await.status, StatusCode::OK);
    let revoke = json!({ "kind": "revoke-key", "fingerprint": world.erin.fingerprint() });
    done(&world.sign(&world.draft("frank", revoke).await, &world.frank).await);
    later().await;
    assert_eq!(world.state(&draft).await, "failed");
    assert!(!world.groups_of("dave").await.contains("backup-signers"));
    let reason =
        world.one(&format!("select end_reason from act where id = '{}'", draft.id)).await.unwrap();
    assert!(reason.contains("revoked"), "{reason}");
}

#[tokio::test]
async fn a_change_that_builds_on_what_is_no_longer_so_comes_to_nothing() {
    let world = World::new(true).await;
    let (one, two) =
        (world.groups("dave", &["ops"], &[]).await, world.groups("dave", &["auditors"], &[]).await);
    done(&world.sign(&one, &world.erin).await);
    rejected(&world.sign(&two, &world.erin).await, "no-longer-so");
    assert_eq!(
        (world.groups_of("dave").await.as_str(), world.state(&two).await.as_str()),
        ("ops", "proposed")
    );
    // Nobody is left who could change people: not that way.
    done(&world.sign(&world.groups("erin", &[], &["admins"]).await, &world.frank).await);
    let last = world.operator(Command::Disable { handle: "frank".into() }).await;
    assert!(last.err().unwrap().to_string().contains("no admin but frank"));
}

#[tokio::test]
async fn a_disabled_sponsors_agents_lose_their_tokens_and_open_leases_at_once() {
    let world = World::new(false).await;
    let broker = &world.broker;
    let (pending, staging) = (broker.pending_lease().await, broker.staging_lease().await);
    let approved = broker.pending_lease().await;
    assert_eq!(broker.approve(approved, &broker.bob).await.status, StatusCode::OK);
    let draft = world.operator(Command::Disable { handle: "alice".into() }).await.unwrap();
    assert_eq!(broker.state(pending).await, "pending", "a proposal does nothing");
    done(&world.sign(&draft, &world.erin).await);
    for id in [pending, staging, approved] {
        assert_eq!(broker.state(id).await, "revoked");
        let claim = broker.claim(id).await;
        assert_eq!(claim.reason(), "revoked", "{}", claim.body);
        assert!(broker.events(id).await.contains(&"lease.revoked".to_owned()));
    }
    let request = broker.post("/v1/leases", production_write()).await;
    assert_eq!(request.status, StatusCode::UNAUTHORIZED);
    // Nor does she start another task, or come back by herself.
    let session = world.as_person("alice", Method::GET, "/v1/whoami", None).await;
    assert_eq!(session.reason(), "person-disabled");
    assert_eq!(world.sts.calls(), 0);

    let back = world.operator(Command::Enable { handle: "alice".into() }).await.unwrap();
    rejected(&world.sign(&back, &broker.alice).await, "person-disabled");
    assert_eq!(world.sign(&back, &world.frank).await.body["state"], "signed", "that waits");
    let ended = world.one("select count(*)::text from task where ended_at is null").await;
    assert_eq!(ended.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_key_is_revoked_at_once_by_its_owner_or_an_admin_and_what_it_signed_before_stays() {
    let world = World::new(false).await;
    let broker = &world.broker;
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    let revoke = |key: &Key| json!({ "kind": "revoke-key", "fingerprint": key.fingerprint() });
    for person in ["carol", "dave"] {
        let answer = world
            .as_person(person, Method::POST, "/v1/statements/drafts", Some(revoke(&broker.bob)))
            .await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.body);
    }
    let draft = world.draft("bob", revoke(&broker.bob)).await;
    rejected(&world.sign(&draft, &broker.carol).await, "not-eligible");
    done(&world.sign(&draft, &broker.bob).await);
    // Approved with a key that is no good any more: not claimed.
    let claim = broker.claim(id).await;
    assert_eq!(claim.problem(), "/problems/denied", "{}", claim.body);
    assert_eq!(world.sts.calls(), 0);
    let other = broker.pending_lease().await;
    broker.clock.advance(Duration::SECOND);
    rejected(&broker.approve(other, &broker.bob).await, "key-revoked");
    // An admin, somebody else's; and a key that is revoked is not revoked again.
    done(&world.sign(&world.draft("erin", revoke(&broker.carol)).await, &world.erin).await);
    let again = world
        .as_person("erin", Method::POST, "/v1/statements/drafts", Some(revoke(&broker.carol)))
        .await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_new_person_and_a_new_key_count_from_their_enrolment_on() {
    let world = World::new(true).await;
    let files = tempfile::tempdir().unwrap();
    let (gina, second) = (Key::software(), Key::software());
    let file = |name: &str, key: &Key| {
        let path = files.path().join(name);
        std::fs::write(&path, format!("{} some words", key.public_key())).unwrap();
        path.display().to_string()
    };
    let line = format!(
        "add gina --name Gina --email gina@example.com --group production-signers --key {}",
        file("gina.pub", &gina)
    );
    let draft = world.operator(people_command(&line)).await.unwrap();
    let id = world.broker.pending_lease().await;
    rejected(&world.broker.approve(id, &gina).await, "unknown-key");
    done(&world.sign(&draft, &world.frank).await);
    // She was no eligible signer when the first was asked for.
    rejected(&world.broker.approve(id, &gina).await, "not-eligible");
    let next = world.broker.pending_lease().await;
    assert_eq!(world.broker.approve(next, &gina).await.status, StatusCode::OK);
    let line = format!("enrol-key gina --key {}", file("second.pub", &second));
    done(&world.sign(&world.operator(people_command(&line)).await.unwrap(), &world.erin).await);
    let third = world.broker.pending_lease().await;
    assert_eq!(world.broker.approve(third, &second).await.status, StatusCode::OK);
    // One person, one voice, whatever key.
    rejected(&world.broker.approve(third, &gina).await, "already-signed");
    let by = world.one("select approved_by from enrolled_keys where person = 'gina' order by enrolled_at limit 1").await;
    assert_eq!(by.as_deref(), Some("frank"));
    let taken = people_command(&format!("enrol-key bob --key {}", file("taken.pub", &gina)));
    assert!(world.operator(taken).await.err().unwrap().to_string().contains("enrolled already"));
}

#[tokio::test]
async fn the_database_refuses_an_act_that_the_code_should_have_refused() {
    let world = World::new(false).await;
    let draft = world.groups("dave", &["ops"], &[]).await;
    let sign = |person: &str, key: &Key, decision: &str, at: &str| {
        format!(
            "insert into act_signature (act_id, person, fingerprint, decision, signature, assurance, signed_at)
             values ('{}', '{person}', '{}', '{decision}', 'x', 'verified', {at})",
            draft.id,
            key.fingerprint()
        )
    };
    let at = "timestamptz '2026-01-01 12:00:01+00'";
    let TestBroker { bob, dave, .. } = &world.broker;
    let mut app = <sqlx::PgConnection as sqlx::Connection>::connect(&world.broker.database.app_url)
        .await
        .unwrap();
    for (sql, why) in [
        (sign("dave", dave, "approve", at), "may not sign"),
        (sign("bob", bob, "approve", at), "may not sign"),
        (sign("erin", bob, "approve", at), "is not good"),
        (sign("erin", &world.erin, "approve", "timestamptz '2027-01-01'"), "is not waiting"),
        (sign("bob", bob, "refuse", at), "is no admin"),
        (format!("update act set state = 'done', ended_at = now() where id = '{}'", draft.id), "cannot go from"),
        (format!("update act set state = 'signed', signed_at = {at}, effective_at = {at} where id = '{}'", draft.id), "is not signed"),
        (format!("update act set bytes = 'x' where id = '{}'", draft.id), "permission denied"),
        (format!("select apply_act('{}', {at})", draft.id), "is not due"),
        ("update person set groups = '{admins}'".to_owned(), "permission denied"),
        ("insert into task (id, agent, sponsor, task, started_at, expires_at) values (gen_random_uuid(), 'a', 'alice', 'x', now(), now() + interval '1h')".to_owned(), "permission denied"),
        ("update \"freeze\" set thawed_at = now()".to_owned(), "permission denied"),
    ] {
        refused(&mut app, &sql, why).await;
    }
    // Signed, but neither by hand nor early.
    sqlx::raw_sql(AssertSqlSafe(sign("erin", &world.erin, "approve", at)))
        .execute(&mut app)
        .await
        .unwrap();
    let to = |state: &str, effective: &str| {
        format!(
            "update act set state = '{state}', signed_at = {at}, effective_at = {effective} where id = '{}'",
            draft.id
        )
    };
    refused(&mut app, &to("signed", at), "is not signed").await;
    let after = format!("{at} + interval '1 day'");
    sqlx::raw_sql(AssertSqlSafe(to("signed", &after))).execute(&mut app).await.unwrap();
    refused(&mut app, &format!("select apply_act('{}', {at})", draft.id), "is not due").await;
    let by_hand =
        format!("update act set state = 'done', ended_at = {after} where id = '{}'", draft.id);
    refused(&mut app, &by_hand, "done by doing it").await;
    // And a signature that nobody made is found out before anything is done.
    world.broker.clock.advance(Duration::days(2));
    world.broker.broker.sweep().await.unwrap();
    assert_eq!(
        (world.state(&draft).await.as_str(), world.groups_of("dave").await.as_str()),
        ("failed", "")
    );
}

async fn refused(app: &mut sqlx::PgConnection, sql: &str, why: &str) {
    let error = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(app).await.expect_err(sql);
    assert!(error.to_string().contains(why), "{sql}: {error}");
}

// ------------------------------------------------------------------------------------------------------------ record

#[tokio::test]
async fn each_act_leaves_its_events_and_no_token() {
    let world = World::new(true).await;
    let started = world.sign(&world.task_start("alice").await, &world.broker.alice).await;
    let token = started.body["task"]["token"].as_str().unwrap().to_owned();
    world.broker.staging_lease().await;
    let staged = world.broker.staging_lease().await;
    world.broker.claim(staged).await;
    let freeze = world.one("insert into \"freeze\" (id, kind, target, reason, created_by, created_at) values (gen_random_uuid(), 'scope', 'x', 'y', 'erin', now()) returning id::text").await.unwrap();
    done(
        &world
            .sign(
                &world.draft("frank", json!({ "kind": "thaw", "freeze_id": freeze })).await,
                &world.frank,
            )
            .await,
    );
    done(&world.sign(&world.groups("dave", &["ops"], &[]).await, &world.erin).await);
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("k.pub");
    std::fs::write(&path, Key::software().public_key()).unwrap();
    let add = format!("add gina --name G --email g@example.com --key {}", path.display());
    done(&world.sign(&world.operator(people_command(&add)).await.unwrap(), &world.erin).await);
    let revoke = json!({ "kind": "revoke-key", "fingerprint": world.broker.bob.fingerprint() });
    done(&world.sign(&world.draft("bob", revoke).await, &world.broker.bob).await);
    for line in ["disable alice", "enable alice"] {
        done(&world.sign(&world.operator(people_command(line)).await.unwrap(), &world.erin).await);
    }
    let refused = world.operator(people_command("disable carol")).await.unwrap();
    assert_eq!(world.refuse(&refused, &world.frank).await.body["state"], "refused");
    let fails = world.groups("dave", &["auditors"], &[]).await;
    world.task_start("carol").await;
    world.broker.as_owner("alter table act disable trigger act_guard; update act set state = 'signed', signed_at = proposed_at, effective_at = proposed_at where state = 'proposed' and kind = 'admin-change'").await;
    world.broker.clock.advance(Duration::minutes(11));
    world.broker.broker.sweep().await.unwrap();
    assert_eq!(world.state(&fails).await, "failed");

    let seen = world.event_types().await;
    for kind in EVENT_TYPES {
        assert!(seen.contains(kind), "{kind} is missing in {seen:?}");
    }
    let dump: Vec<String> = sqlx::query_scalar("select convert_from(body, 'UTF8') from event union all select to_jsonb(a)::text from act a union all select to_jsonb(t)::text from task t")
        .fetch_all(&world.broker.database.owner)
        .await
        .unwrap();
    assert!(!dump.iter().any(|it| it.contains(&token)));
    let told: Vec<Value> = sqlx::query_scalar("select doc -> 'data' -> 'detail' from event where type like 'person.%' or type like 'key.%'")
        .fetch_all(&world.broker.database.owner)
        .await
        .unwrap();
    assert!(told.iter().all(|it| it["about"].is_string()), "{told:?}");
}

#[tokio::test]
async fn who_may_see_a_statement_and_nobody_else() {
    let world = World::new(true).await;
    let draft = world.groups("dave", &["ops"], &[]).await;
    let path = format!("/v1/statements/{}", draft.id);
    for (person, sees) in
        [("erin", true), ("frank", true), ("dave", true), ("bob", false), ("alice", false)]
    {
        let answer = world.as_person(person, Method::GET, &path, None).await;
        assert_eq!(answer.status == StatusCode::OK, sees, "{person}: {}", answer.body);
        let list = world.as_person(person, Method::GET, "/v1/statements", None).await;
        assert_eq!(
            list.body["statements"].as_array().unwrap().len(),
            usize::from(sees),
            "{person}"
        );
    }
}

// ----------------------------------------------------------------------------------------------------------- attacks

impl World {
    /// Whoever has the server's database login.
    async fn app(&self) -> sqlx::PgConnection {
        <sqlx::PgConnection as sqlx::Connection>::connect(&self.broker.database.app_url)
            .await
            .unwrap()
    }

    fn terms(&self, act: broker::statement::act::Act, eligible: &str) -> ActTerms {
        let now = self.broker.clock.now();
        ActTerms {
            broker: Issuer { origin: "http://other.example".into(), instance_key: "other".into() },
            id: Uuid::now_v7(),
            act,
            proposed_by: None,
            signers: Signers {
                eligible: vec![eligible.into()],
                needed: 1,
                assurance: Assurance::Software,
            },
            proposed_at: now.replace_nanosecond(0).unwrap(),
            sign_by: now.replace_nanosecond(0).unwrap() + Duration::days(1),
            cool_down_seconds: 0,
            nonce: "00".repeat(32),
        }
    }

    /// Inserts an act as the server's login does.
    async fn inserts(&self, app: &mut sqlx::PgConnection, terms: &ActTerms, bytes: &[u8]) {
        sqlx::query("insert into act (id, bytes, kind, proposed_by, proposed_at, sign_by) values ($1, $2, $3, $4, $5, $6)")
            .bind(terms.id)
            .bind(bytes)
            .bind(terms.act.kind().as_str())
            .bind(&terms.proposed_by)
            .bind(terms.proposed_at)
            .bind(terms.sign_by)
            .execute(app)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_servers_database_login_enrols_no_key_that_no_admin_signed_for() {
    let world = World::new(false).await;
    let mallory = Key::hardware();
    let mut app = world.app().await;
    let key = broker::statement::act::NewKey {
        public_key: mallory.public_key(),
        fingerprint: mallory.fingerprint(),
        assurance: Assurance::Verified,
        evidence: broker::statement::act::Evidence::Seen,
    };
    let change = Change::EnrolKey { handle: "bob".into(), key };
    let terms = world.terms(broker::statement::act::Act::AdminChange(change), "erin");
    let sealed = ActStatement::new(terms.clone()).unwrap();
    world.inserts(&mut app, &terms, sealed.bytes()).await;
    for sql in [
        format!("insert into act_signature (act_id, person, fingerprint, decision, signature, assurance, signed_at)
                 values ('{}', 'erin', '{}', 'approve', 'nobody made this', 'verified', '{}')", terms.id, world.erin.fingerprint(), terms.proposed_at),
        format!("update act set state = 'signed', signed_at = '{0}', effective_at = '{0}' where id = '{1}'", terms.proposed_at, terms.id),
        format!("select apply_act('{}', '{}')", terms.id, terms.proposed_at),
    ] {
        if sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut app).await.is_err() {
            break;
        }
    }
    let lease = world.broker.pending_lease().await;
    let answer = world.broker.approve(lease, &mallory).await;
    let claim = world.broker.claim(lease).await;
    assert_ne!(
        (answer.status, claim.status),
        (StatusCode::OK, StatusCode::OK),
        "a forged enrolment approved a production write: {}",
        claim.body["credentials"]["access_key_id"]
    );
}

#[tokio::test]
async fn the_servers_database_login_does_not_end_a_cool_down() {
    let world = World::new(false).await;
    let draft = world.groups("dave", &["admins"], &[]).await;
    assert_eq!(world.sign(&draft, &world.erin).await.body["state"], "signed");
    let mut app = world.app().await;
    let sql = format!("select apply_act('{}', 'infinity')", draft.id);
    let _ = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut app).await;
    assert_eq!(world.groups_of("dave").await, "", "at once, a day early");
}

#[tokio::test]
async fn what_another_broker_drew_up_or_nobody_would_is_not_done_whoever_signed_it() {
    let world = World::new(false).await;
    let mut app = world.app().await;
    let change =
        Change::SetGroups { handle: "dave".into(), from: Vec::new(), to: vec!["admins".into()] };
    // Of another origin and instance, without a cool-down, and content with a software key.
    let terms = world.terms(broker::statement::act::Act::AdminChange(change), "erin");
    let sealed = ActStatement::new(terms.clone()).unwrap();
    world.inserts(&mut app, &terms, sealed.bytes()).await;
    let signature = world
        .erin
        .sign_as(Meaning::AdminChange.namespace(), &Meaning::AdminChange.message(sealed.bytes()));
    let answer = world.send(terms.id, "approve", &signature).await;
    assert_eq!(world.groups_of("dave").await, "", "{}", answer.body);
}

#[tokio::test]
async fn one_act_that_cannot_be_read_does_not_stop_all_sweeping_and_all_other_acts() {
    let world = World::new(false).await;
    let mut app = world.app().await;
    let good = world.groups("dave", &["ops"], &[]).await;
    assert_eq!(world.sign(&good, &world.erin).await.body["state"], "signed");
    let lease = world.broker.pending_lease().await;
    // As a newer version could have left it behind.
    let change = Change::EnablePerson { handle: "dave".into(), groups: vec![] };
    let terms = world.terms(broker::statement::act::Act::AdminChange(change), "erin");
    let bytes = ActStatement::new(terms.clone()).unwrap().bytes().to_vec();
    let bytes = String::from_utf8(bytes).unwrap().replacen("\":", "\": ", 1);
    world.inserts(&mut app, &terms, bytes.as_bytes()).await;
    let list = world.as_person("erin", Method::GET, "/v1/statements", None).await;
    world.broker.clock.advance(Duration::days(2));
    let swept = world.broker.broker.sweep().await;
    assert_eq!(
        (
            list.status,
            swept.is_ok(),
            world.broker.state(lease).await.as_str(),
            world.state(&good).await.as_str()
        ),
        (StatusCode::OK, true, "lapsed", "done"),
    );
}

#[tokio::test]
async fn one_admin_does_not_silence_the_others_and_then_wait_the_cool_down_out() {
    let world = World::new(false).await;
    let draft = world.groups("dave", &["admins"], &[]).await;
    assert_eq!(world.sign(&draft, &world.erin).await.body["state"], "signed");
    let revoke = json!({ "kind": "revoke-key", "fingerprint": world.frank.fingerprint() });
    let revoked = world.sign(&world.draft("erin", revoke).await, &world.erin).await;
    world.broker.clock.advance(Duration::SECOND);
    let refused = world.refuse(&draft, &world.frank).await;
    world.broker.clock.advance(Duration::days(1));
    world.broker.broker.sweep().await.unwrap();
    assert_eq!(
        world.groups_of("dave").await,
        "",
        "revoked: {}, refused: {}",
        revoked.body["state"],
        refused.body
    );
}

#[tokio::test]
async fn whoever_approved_a_change_can_still_stop_it_in_its_cool_down() {
    let world = World::new(false).await;
    let draft = world.groups("dave", &["admins"], &[]).await;
    assert_eq!(world.sign(&draft, &world.erin).await.body["state"], "signed");
    let refused = world.refuse(&draft, &world.erin).await;
    assert_eq!(refused.status, StatusCode::OK, "{}", refused.body);
}

#[tokio::test]
async fn drafts_of_a_stolen_reading_session_do_not_keep_a_key_from_being_revoked() {
    let world = World::new(false).await;
    for _ in 0..20 {
        world.task_start("bob").await;
    }
    let revoke = json!({ "kind": "revoke-key", "fingerprint": world.broker.bob.fingerprint() });
    let answer = world.as_person("bob", Method::POST, "/v1/statements/drafts", Some(revoke)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
}

#[tokio::test]
async fn a_security_key_that_could_never_sign_is_not_enrolled_at_bootstrap() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { software_keys: false, ..Setup::fake(&sts) }).await;
    let config = Config::load(broker.config_dir.path()).unwrap();
    let mut owner = broker.database.owner.acquire().await.unwrap();
    let files = tempfile::tempdir().unwrap();
    for handle in ["erin", "frank"] {
        // `ssh-keygen -t ed25519-sk`, without `-O application=ssh:broker`.
        let path = files.path().join(handle);
        std::fs::write(&path, Key::hardware_for("ssh:").public_key()).unwrap();
        let line = format!(
            "add {handle} --name X --email x@example.com --group admins --key {} --seen",
            path.display()
        );
        let outcome =
            people::run(&people_command(&line), &config, &mut owner, broker.clock.now()).await;
        assert!(outcome.is_err(), "{}", outcome.unwrap().words);
    }
}

#[tokio::test]
async fn what_begins_while_its_task_is_being_ended_does_not_outlive_it() {
    let world = World::new(false).await;
    let broker = &world.broker;
    let held = broker.staging_lease().await;
    let task = world.one("select id::text from task where sponsor = 'alice'").await.unwrap();
    // Anything that makes the transaction wait: a claim in progress, many leases to stop.
    let mut holder = broker.database.owner.begin().await.unwrap();
    sqlx::query("select from lease where id = $1 for update")
        .bind(held.0)
        .execute(&mut *holder)
        .await
        .unwrap();
    let (sender, token) = (tests::Sender::of(broker), broker.token.clone());
    let ending = tokio::spawn(async move {
        let path = format!("/v1/tasks/{task}/end");
        sender.send(Method::POST, &path, Some(&token), &[], Some(json!({}))).await
    });
    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    let (sender, token) = (tests::Sender::of(broker), broker.token.clone());
    let late = tokio::spawn(async move {
        let body = json!({ "scope": "staging-rw", "deliver": true });
        sender.send(Method::POST, "/v1/leases", Some(&token), &[], Some(body)).await
    });
    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    holder.rollback().await.unwrap();
    let (ended, late) = (ending.await.unwrap(), late.await.unwrap());
    assert_eq!(ended.status, StatusCode::OK, "{}", ended.body);
    assert!(late.body["credentials"].is_null(), "{}", late.body);
    assert_ne!(late.status, StatusCode::CREATED);
    let live = "select count(*)::text from session where state = 'live'";
    assert_eq!(world.one(live).await.as_deref(), Some("0"), "its task has ended");
}

#[tokio::test]
async fn junk_signatures_of_nobody_are_counted_and_fill_no_record() {
    let world = World::new(false).await;
    let draft = world.task_start("alice").await;
    for _ in 0..50 {
        rejected(&world.send(draft.id, "approve", "junk").await, "malformed");
    }
    let told = "select string_agg(actor || coalesce(doc #>> '{data,detail,count}', '-'), ' ' order by seq) from event
                 where type = 'signature.rejected' and doc #>> '{data,detail,act_id}' = ";
    let told = format!("{told}'{}'", draft.id);
    assert_eq!(world.one(&told).await.as_deref(), Some("unknown-"));
    world.broker.clock.advance(Duration::MINUTE);
    world.broker.broker.tell_refusals().await;
    assert_eq!(world.one(&told).await.as_deref(), Some("unknown- unknown49"));
}

#[tokio::test]
async fn an_act_that_names_no_cool_down_has_none() {
    let world = World::new(false).await;
    let mut app = world.app().await;
    let change = Change::EnablePerson { handle: "dave".into(), groups: vec![] };
    let terms = world.terms(broker::statement::act::Act::AdminChange(change), "erin");
    let bytes = ActStatement::new(terms.clone()).unwrap().bytes().to_vec();
    let bytes = String::from_utf8(bytes).unwrap().replace("\"cool_down_seconds\":0,", "");
    let inserted = sqlx::query("insert into act (id, bytes, kind, proposed_at, sign_by) values ($1, $2, 'admin-change', $3, $4)")
        .bind(terms.id)
        .bind(bytes.as_bytes())
        .bind(terms.proposed_at)
        .bind(terms.sign_by)
        .execute(&mut app)
        .await;
    if inserted.is_err() {
        return;
    }
    let sign = format!("insert into act_signature (act_id, person, fingerprint, decision, signature, assurance, signed_at)
                 values ('{}', 'erin', '{}', 'approve', 'x', 'verified', '{}')", terms.id, world.erin.fingerprint(), terms.proposed_at);
    sqlx::raw_sql(AssertSqlSafe(sign)).execute(&mut app).await.unwrap();
    refused(&mut app, &format!("update act set state = 'signed', signed_at = '{}', effective_at = '-infinity' where id = '{}'", terms.proposed_at, terms.id), "is not signed").await;
}

#[tokio::test]
async fn a_task_ends_whoever_waits_and_says_so() {
    let world = World::new(false).await;
    let broker = &world.broker;
    let lease = broker.staging_lease().await;
    let task = world.one("select id::text from task where sponsor = 'alice'").await.unwrap();
    broker.as_owner("alter table task disable trigger task_guard; update task set expires_at = started_at + interval '1 minute'").await;
    broker.clock.advance(Duration::minutes(2));
    let answer = world
        .as_person("alice", Method::POST, &format!("/v1/tasks/{task}/end"), Some(json!({})))
        .await;
    assert_eq!(
        (answer.status == StatusCode::NOT_FOUND, broker.state(lease).await.as_str()),
        (true, "approved"),
        "it says that there is no such task, and has stopped its lease: {}",
        answer.body
    );
}

#[tokio::test]
async fn whoever_is_concerned_stops_it_with_whatever_key_they_have() {
    let world = World::new(false).await;
    // A key without hardware: good for logging in, and not for approving.
    world.broker.as_owner("alter table person_key disable trigger person_key_guard; update person_key set assurance = 'present' where person = 'dave'").await;
    let draft = world.operator(Command::Disable { handle: "dave".into() }).await.unwrap();
    let refused = world.refuse(&draft, &world.broker.dave).await;
    assert_eq!(refused.status, StatusCode::OK, "{}", refused.body);
}

#[tokio::test]
async fn of_two_hundred_drafts_none_hides_what_admins_have_to_see() {
    let world = World::new(false).await;
    let change = world.groups("dave", &["admins"], &[]).await;
    assert_eq!(world.sign(&change, &world.erin).await.body["state"], "signed");
    world.broker.clock.advance(Duration::SECOND);
    for i in 0..10 {
        let handle = format!("p{i}");
        let sql = format!(
            "alter table person disable trigger person_guard; insert into person (handle, display_name, email, created_at) values ('{handle}', 'x', 'x', now())"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&world.broker.database.owner).await.unwrap();
        for _ in 0..20 {
            world.task_start(&handle).await;
        }
    }
    let list = world.as_person("frank", Method::GET, "/v1/statements", None).await;
    let list = list.body["statements"].as_array().unwrap();
    assert!(
        list.iter().any(|it| it["id"] == json!(change.id)),
        "of {} statements none is the change that can still be refused",
        list.len()
    );
}
