//! The stop button: what was issued is refused by AWS, that alone, provably, whatever goes away meanwhile.

use std::path::Path;
use std::time::Duration;

use aws_sdk_iam::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::ProvideErrorMetadata;
use axum::http::{Method, StatusCode};
use broker::aws::{AwsOptions, STOP_POLICY};
use broker::clock::Clock;
use broker::identity::{Caller, Reader};
use broker::lease::{FreezeKind, LeaseId};
use broker::store::HeldRole;
use broker::wire;
use serde_json::{Value, json};
use tests::program::{Server, free_port, http, until};
use tests::relay::Relay;
use tests::sts::FakeSts;
use tests::{AGENT, Answer, Sender, Setup, TestBroker, stack, start_task, wide_budgets};
use tokio::task::{AbortHandle, JoinSet};
use uuid::Uuid;

/// On a busy machine, too.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// A broker with a role of its own at the emulator's, so that what is stopped on it is nobody else's.
pub(crate) struct Stage {
    pub(crate) broker: TestBroker,
    pub(crate) iam: aws_sdk_iam::Client,
    pub(crate) role: String,
    /// Does what `brokerd serve` does in the background.
    rounds: AbortHandle,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.rounds.abort();
    }
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(stack::shared().aws(), Clock::default()).await
    }

    pub(crate) async fn with(aws: AwsOptions, clock: Clock) -> Self {
        let role = format!("stop-{}", &Uuid::new_v4().simple().to_string()[..12]);
        let iam = administrator();
        let mut scopes = include_str!("../../config/scopes.toml").to_owned();
        // A freeze of everything cuts all of them off.
        for (demo, own) in [
            ("broker-staging", role.clone()),
            ("broker-production", format!("{role}-production")),
            ("broker-backup", format!("{role}-backup")),
        ] {
            make_role(&iam, &own).await;
            scopes = scopes.replace(&format!("role = \"{demo}\""), &format!("role = \"{own}\""));
        }
        let setup = Setup {
            aws,
            clock,
            // A cut-off that is over soon.
            settings: format!("call_timeout = \"3s\"\nstop_margin = \"1s\"\n{}", wide_budgets()),
            scopes: Some(scopes),
            // What `brokerd serve` takes.
            software_keys: false,
        };
        let broker = TestBroker::new(setup).await;
        let rounds = rounds_of(&broker);
        Self { broker, iam, role, rounds }
    }

    /// A lease on staging with a session, and its credentials.
    pub(crate) async fn session(&self) -> (LeaseId, Value) {
        self.session_of(&self.broker.token, "staging-rw").await
    }

    pub(crate) async fn session_of(&self, token: &str, scope: &str) -> (LeaseId, Value) {
        let body = json!({ "scope": scope, "deliver": true });
        let answer =
            self.broker.send(Method::POST, "/v1/leases", Some(token), &[], Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        (answer.id(), answer.body["credentials"].clone())
    }

    pub(crate) async fn revoke(&self, id: LeaseId) -> Answer {
        let path = format!("/v1/leases/{id}/revoke");
        self.broker.post(&path, json!({ "reason": "it deletes what it should not" })).await
    }

    pub(crate) async fn freeze(&self, kind: FreezeKind, target: Option<&str>) -> wire::Freeze {
        let request =
            wire::FreezeRequest { kind, target: target.map(str::to_owned), reason: "drill".into() };
        self.broker.broker.freeze(&carol(&self.broker), &request).await.expect("carol is of ops")
    }

    async fn sessions_of(&self, id: LeaseId) -> Vec<wire::Session> {
        let lease = self.broker.broker.lease(&carol(&self.broker), id).await;
        lease.expect("carol is of ops").sessions
    }

    /// Waits until all sessions of the lease are stopped.
    pub(crate) async fn stopped(&self, id: LeaseId) -> Vec<wire::Session> {
        until("AWS refuses it", SOON, async || {
            self.broker.sessions(id).await.iter().all(|it| it == "stopped")
        })
        .await;
        self.sessions_of(id).await
    }

    /// The policy that is on the role.
    pub(crate) async fn policy(&self) -> Option<Value> {
        let request = self.iam.get_role_policy().role_name(&self.role).policy_name(STOP_POLICY);
        match request.send().await {
            Ok(answer) => {
                let document =
                    form_urlencoded::parse(format!("d={}", answer.policy_document).as_bytes())
                        .next()
                        .expect("a document")
                        .1
                        .into_owned();
                assert!(document.len() <= 10_240, "{} characters", document.len());
                Some(serde_json::from_str(&document).expect("JSON"))
            }
            Err(error) if error.code() == Some("NoSuchEntity") => None,
            Err(error) => panic!("{error:?}"),
        }
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.broker.database.owner).await.expect(sql)
    }
}

fn rounds_of(broker: &TestBroker) -> AbortHandle {
    let broker = broker.broker.clone();
    let rounds = tokio::spawn(async move {
        loop {
            if let Ok(mut roles) = broker.stop_sessions().await {
                roles.detach_all();
            }
            let _ =
                tokio::time::timeout(Duration::from_millis(300), broker.something_to_stop()).await;
        }
    });
    rounds.abort_handle()
}

pub(crate) fn carol(broker: &TestBroker) -> Caller {
    let token_expires_at = broker.clock.now() + time::Duration::HOUR;
    Caller::Person(Reader { handle: "carol".into(), token_expires_at })
}

fn administrator() -> aws_sdk_iam::Client {
    let shared = stack::shared();
    let (id, secret) = &shared.admin_key;
    let config = aws_sdk_iam::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(&shared.endpoint)
        .credentials_provider(Credentials::new(id, secret, None, None, "test"));
    aws_sdk_iam::Client::from_conf(config.build())
}

/// A role like the demo's, that the broker's principals may use.
async fn make_role(iam: &aws_sdk_iam::Client, role: &str) {
    let session = json!(["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"]);
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": { "AWS": "arn:aws:iam::000000000000:user/broker" },
        "Action": session,
        "Condition": {
            "StringLike": { "sts:SourceIdentity": "?*" },
            "StringEquals": { "sts:ExternalId": stack::shared().external_id },
        },
    }]});
    let made = iam.create_role().role_name(role).assume_role_policy_document(trust.to_string());
    made.send().await.expect("a role");
    let allow = |actions: &Value, resource: &str| {
        let statement = json!({ "Effect": "Allow", "Action": actions, "Resource": resource });
        json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
    };
    let may = allow(&json!(["s3:*", "sts:GetAccessKeyInfo"]), "*");
    let put = iam.put_role_policy().role_name(role).policy_name("everything").policy_document(may);
    put.send().await.expect("a policy");
    let roles = "arn:aws:iam::000000000000:role/stop-*";
    let stop = json!(["iam:GetRolePolicy", "iam:PutRolePolicy", "iam:DeleteRolePolicy"]);
    for (user, actions) in [("broker", session), ("broker-revoker", stop)] {
        let put = iam.put_user_policy().user_name(user).policy_name("stop-tests");
        put.policy_document(allow(&actions, roles)).send().await.expect("a policy");
    }
}

/// Whether AWS lets a session read what its scope is for.
pub(crate) async fn works(credentials: &Value) -> bool {
    let text = |name: &str| credentials[name].as_str().expect("a credential").to_owned();
    let (id, secret) = (text("access_key_id"), text("secret_access_key"));
    let token = Some(text("session_token"));
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(&stack::shared().endpoint)
        .force_path_style(true)
        .credentials_provider(Credentials::new(id, secret, token, None, "test"));
    let s3 = aws_sdk_s3::Client::from_conf(config.build());
    match s3.list_objects_v2().bucket("staging-app-data").send().await {
        Ok(_) => true,
        Err(error) if error.code() == Some("AccessDenied") => false,
        Err(error) => panic!("{error:?}"),
    }
}

// ----------------------------------------------------------------------------------------------------- what is stopped

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_leases_session_is_refused_and_no_other() {
    let stage = Stage::new().await;
    let (id, credentials) = stage.session().await;
    let (other, others) = stage.session().await;
    assert!(works(&credentials).await && works(&others).await);

    let answer = stage.revoke(id).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.body["state"], "revoked");
    assert_eq!(answer.body["end_reason"], "it deletes what it should not");
    let sessions = stage.stopped(id).await;
    assert!(!works(&credentials).await, "AWS lets a stopped session");
    assert!(works(&others).await, "another lease on the role was stopped with it");
    assert_eq!(stage.broker.sessions(other).await, ["live"]);

    // When, and who said so.
    let session = &sessions[0];
    let (from, at) = (session.revoking_at.expect("stopped"), session.stopped_at.expect("stopped"));
    assert_eq!(session.stopped_region.as_deref(), Some("us-east-1"));
    println!("time to effect: {:.3} s", (at - from).as_seconds_f64());
    let sql = "select (seconds_to_stop >= 0 and seconds_to_deny <= seconds_to_stop and last_error is null)::int::int8 from stopped_sessions";
    assert_eq!(stage.count(sql).await, 1);
    let events = stage.broker.events(id).await;
    let tail: Vec<_> = events.iter().rev().take(3).rev().map(String::as_str).collect();
    assert_eq!(tail, ["lease.revoked", "session.revoking", "session.stopped"]);

    // Once more changes nothing; and nothing is issued under it any more.
    let again = stage.revoke(id).await;
    assert_eq!((again.status, &again.body["state"]), (StatusCode::OK, &json!("revoked")));
    assert_eq!(stage.broker.events(id).await, events);
    let claim = stage.broker.claim(id).await;
    assert_eq!((claim.problem(), claim.reason()), ("/problems/ended", "revoked"));
}

/// The probe is a session like any other: recorded before AWS is asked, seen to work before the policy, refused after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_is_recorded_and_worked_before_the_policy_that_refuses_it() {
    let stage = Stage::new().await;
    let (id, _) = stage.session().await;
    stage.revoke(id).await;
    stage.stopped(id).await;
    let probe: (bool, bool, bool, bool, String, String) = sqlx::query_as(
        "select claimed_at < proven_at, proven_at < denied_at, denied_at <= refused_at, failure is null, region, session_name from probe",
    )
    .fetch_one(&stage.broker.database.owner)
    .await
    .expect("one probe");
    assert_eq!(
        (probe.0, probe.1, probe.2, probe.3, probe.4.as_str()),
        (true, true, true, true, "us-east-1")
    );
    let policy = stage.policy().await.expect("a policy").to_string();
    assert!(policy.contains(&probe.5), "the policy does not cover the probe: {policy}");
    let sql = "select (select seq from event where type = 'probe.issuing') < (select seq from event where type = 'stop.written')";
    let in_order: bool =
        sqlx::query_scalar(sql).fetch_one(&stage.broker.database.owner).await.expect("events");
    assert!(in_order);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_freeze_of_the_environment_all_are_refused_and_after_the_thaw_new_ones_work() {
    let stage = Stage::new().await;
    let (first, one) = stage.session().await;
    let (second, two) = stage.session().await;
    let unclaimed = stage.broker.staging_lease().await;
    let freeze = stage.freeze(FreezeKind::Environment, Some("staging")).await;
    assert_eq!(freeze.sessions, 2);
    for id in [first, second] {
        let sessions = stage.stopped(id).await;
        assert!(sessions[0].stopped_at.is_some());
    }
    assert!(!works(&one).await && !works(&two).await);
    // Every session that began before, known to us or not.
    let policy = stage.policy().await.expect("a policy");
    let cut_off = policy["Statement"][0]["Condition"]["DateLessThan"]["aws:TokenIssueTime"].clone();
    assert!(cut_off.is_string(), "{policy}");
    for id in [first, second, unclaimed] {
        assert_eq!(stage.broker.claim(id).await.problem(), "/problems/frozen");
    }
    let events = stage.count("select count(*) from event where type = 'freeze.created'").await;
    assert_eq!(events, 1);

    thaw(&stage.broker).await;
    let early = stage.broker.claim(unclaimed).await;
    assert_eq!(early.problem(), "/problems/role-cut-off", "{}", early.body);
    assert!(early.headers.contains_key("retry-after") && early.body["retry_at"].is_string());
    let mut fresh = Value::Null;
    until("new sessions begin", SOON, async || {
        let answer = stage.broker.claim(unclaimed).await;
        fresh = answer.body.clone();
        answer.status == StatusCode::OK
    })
    .await;
    assert!(works(&fresh).await, "minted after the thaw and refused");
    assert!(!works(&one).await && !works(&two).await, "the thaw let old sessions live again");
}

/// By what only an administrator's hand could do: thawing by a signed statement has its own tests.
async fn thaw(broker: &TestBroker) {
    broker
        .as_owner(
            "alter table \"freeze\" disable trigger freeze_guard;
             update \"freeze\" set thawed_at = now(), thawed_by = 'bob' where thawed_at is null;
             alter table \"freeze\" enable always trigger freeze_guard",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_stops_what_it_names_and_nothing_else() {
    let stage = Stage::new().await;
    let now = stage.broker.clock.now();
    let tokens = &stage.broker.broker.tokens;
    let other_agent = start_task(&stage.broker.database, tokens, "other", "alice", now).await;
    let bobs = start_task(&stage.broker.database, tokens, "third", "bob", now).await;
    let (first, of_agent) = stage.session().await;
    let (_, of_other) = stage.session_of(&other_agent, "staging-rw").await;
    let (_, of_bob) = stage.session_of(&bobs, "staging-rw").await;
    let (_, of_bob_ro) = stage.session_of(&bobs, "staging-ro").await;
    let all = [&of_agent, &of_other, &of_bob, &of_bob_ro];
    let expect = async |wanted: [bool; 4]| {
        let mut seen = [true; 4];
        for (seen, credentials) in seen.iter_mut().zip(all) {
            *seen = works(credentials).await;
        }
        assert_eq!(seen, wanted);
    };
    expect([true; 4]).await;
    stage.freeze(FreezeKind::Agent, Some(AGENT)).await;
    stage.stopped(first).await;
    expect([false, true, true, true]).await;
    let freeze = stage.freeze(FreezeKind::Sponsor, Some("alice")).await;
    until("alice's are stopped", SOON, async || not_yet(&stage, freeze.id).await == 0).await;
    expect([false, false, true, true]).await;
    let freeze = stage.freeze(FreezeKind::Scope, Some("staging-rw")).await;
    until("staging-rw's are stopped", SOON, async || not_yet(&stage, freeze.id).await == 0).await;
    expect([false, false, false, true]).await;
    let freeze = stage.freeze(FreezeKind::All, None).await;
    until("all are stopped", SOON, async || not_yet(&stage, freeze.id).await == 0).await;
    expect([false; 4]).await;
    // Those too that nobody knows of.
    let policy = stage.policy().await.expect("a policy");
    assert_eq!(policy["Statement"][0]["Sid"], "AllBefore", "{policy}");
}

async fn not_yet(stage: &Stage, freeze: Uuid) -> i64 {
    let freeze = stage.broker.broker.find_freeze(&carol(&stage.broker), freeze).await;
    freeze.expect("it is there").not_yet_stopped
}

// -------------------------------------------------------------------------------------------------------- many at once

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_hundred_revocations_at_once_none_is_lost() {
    let stage = Stage::new().await;
    let (kept, _) = stage.session().await;
    let mut leases = Vec::new();
    for _ in 0..500 {
        leases.push(stage.session().await);
    }
    let mut revoking = JoinSet::new();
    for (id, _) in &leases {
        let (sender, token) = (Sender::of(&stage.broker), stage.broker.token.clone());
        let path = format!("/v1/leases/{id}/revoke");
        revoking.spawn(async move {
            // More than the pool takes at once are told to come again.
            loop {
                let body = json!({ "reason": "all at once" });
                let answer = sender.send(Method::POST, &path, Some(&token), &[], Some(body)).await;
                if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                    return answer.status;
                }
            }
        });
    }
    while let Some(status) = revoking.join_next().await {
        assert_eq!(status.expect("no panic"), StatusCode::OK);
    }
    until("all are stopped", SOON, async || {
        stage.count("select count(*) from session where state = 'revoking'").await == 0
    })
    .await;
    let stopped = stage.count("select count(*) from session where state = 'stopped'").await;
    assert!(500 <= stopped, "{stopped}");
    // A valid policy, within IAM's limit: `policy` sees to that.
    let policy = stage.policy().await.expect("a policy");
    assert_eq!(policy["Version"], "2012-10-17");
    for (id, credentials) in leases.iter().step_by(50).chain(leases.last()) {
        assert!(!works(credentials).await, "{id}");
    }
    // There was no room for so many, so the whole role was cut off: the one that was not revoked is told so, too.
    let cut_off = stage.count("select count(*) from event where type = 'role.cut-off'").await;
    let lost = stage.sessions_of(kept).await;
    assert_eq!((cut_off, lost[0].state.as_str()), (1, "stopped"));
    assert_eq!(stage.broker.state(kept).await, "issued");
    let sql = "select (max(seconds_to_stop) * 1000)::int8 from stopped_sessions";
    println!("500 at once: the last was refused after {} ms", stage.count(sql).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_revoke_on_one_role_lose_nothing() {
    let stage = Stage::new().await;
    let two = stage.broker.replica(stack::shared().aws()).await;
    let rounds = rounds_of(&two);
    let mut leases = Vec::new();
    for _ in 0..60 {
        leases.push(stage.session().await);
    }
    let mut revoking = JoinSet::new();
    for (at, (id, _)) in leases.iter().enumerate() {
        let server = if at % 2 == 0 { &stage.broker } else { &two };
        let (sender, token) = (Sender::of(server), stage.broker.token.clone());
        let path = format!("/v1/leases/{id}/revoke");
        revoking.spawn(async move {
            tokio::time::sleep(Duration::from_millis(at as u64 * 20)).await;
            let body = json!({ "reason": "by both" });
            sender.send(Method::POST, &path, Some(&token), &[], Some(body)).await.status
        });
    }
    while let Some(status) = revoking.join_next().await {
        assert_eq!(status.expect("no panic"), StatusCode::OK);
    }
    for (id, credentials) in &leases {
        stage.stopped(*id).await;
        assert!(!works(credentials).await, "{id}");
    }
    let policy = stage.policy().await.expect("a policy").to_string();
    let names = stage.count("select count(*) from session where state = 'stopped'").await;
    let sql = "select session_name from session";
    let all: Vec<String> =
        sqlx::query_scalar(sql).fetch_all(&stage.broker.database.owner).await.expect("names");
    assert_eq!(names, 60);
    assert!(all.iter().all(|it| policy.contains(it)), "the policy forgot some");
    rounds.abort();
}

// --------------------------------------------------------------------------------------------------- what goes away

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_iam_is_away_the_tables_say_no_and_afterwards_aws_does() {
    let relay = Relay::start(&stack::shared().endpoint).await;
    let aws = AwsOptions { endpoint: Some(relay.endpoint.clone()), credentials: None };
    let stage = Stage::with(aws, Clock::default()).await;
    let (id, credentials) = stage.session().await;
    relay.iam_is_away(true);
    assert_eq!(stage.revoke(id).await.status, StatusCode::OK);
    assert_eq!(stage.broker.claim(id).await.reason(), "revoked");
    until("it is tried again", SOON, async || {
        stage.count("select coalesce(max(failures), 0)::int8 from role_stop").await >= 3
    })
    .await;
    // Operations see that it is not done, and why.
    let sql = "select count(*) from stopped_sessions where state = 'revoking' and last_error like '%IAM%' and denied_at is null";
    assert_eq!(stage.count(sql).await, 1);
    assert!(works(&credentials).await, "the emulator is no AWS if this is refused already");
    relay.iam_is_away(false);
    stage.stopped(id).await;
    assert!(!works(&credentials).await);
}

/// Whoever tells AWS may have to wait for it; whoever freezes may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_waits_for_nobody_who_asks_aws() {
    let stage = Stage::new().await;
    let (_, credentials) = stage.session().await;
    stage.rounds.abort();
    let arn = format!("arn:aws:iam::000000000000:role/{}", stage.role);
    let mut held =
        HeldRole::hold(stage.broker.pool(), &arn).await.expect("it answers").expect("nobody else");
    held.what_stops(stage.broker.clock.now()).await.expect("it answers");
    // The server's statement timeout would end it if it waited.
    let freeze = stage.freeze(FreezeKind::All, None).await;
    assert_eq!((freeze.sessions, freeze.roles_not_told), (1, 3));
    assert!(
        HeldRole::hold(stage.broker.pool(), &arn).await.expect("it answers").is_none(),
        "two write at once"
    );
    drop(held);
    let rounds = rounds_of(&stage.broker);
    until("AWS is told", SOON, async || !works(&credentials).await).await;
    rounds.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_the_middle_is_followed_by_one_that_finishes() {
    let relay = Relay::start(&stack::shared().endpoint).await;
    let aws = AwsOptions { endpoint: Some(relay.endpoint.clone()), credentials: None };
    let stage = Stage::with(aws, Clock::default()).await;
    // The policy is written, and then the only one who has the probe is gone.
    let (id, credentials) = stage.session().await;
    relay.sts_leaves_after_put();
    stage.revoke(id).await;
    until("the policy is written", SOON, async || {
        stage.count("select count(*) from session where denied_at is not null").await == 1
    })
    .await;
    stage.rounds.abort();
    assert_eq!(stage.broker.sessions(id).await, ["revoking"]);
    // Its probe is not looked after any more, as far as anybody else can tell.
    stage.broker.as_owner("update probe set tried_at = tried_at - interval '1 minute'").await;
    let two = stage.broker.replica(stack::shared().aws()).await;
    let rounds = rounds_of(&two);
    stage.stopped(id).await;
    assert!(!works(&credentials).await);
    assert!(2 <= stage.count("select count(*) from probe").await);
    rounds.abort();
}

/// Starts `brokerd serve` on the stage's configuration, database and role.
async fn serve(stage: &Stage, dir: &Path, endpoint: &str) -> (Server, u16) {
    let port = free_port().await;
    let config = dir.join(port.to_string());
    // Servers of one log have the same anchor.
    let anchor = dir.join("anchor");
    for dir in [&config.join("policies"), &anchor] {
        std::fs::create_dir_all(dir).expect("a directory");
    }
    let anchor = format!("path = \"{}\"", anchor.display());
    for name in [
        "broker.toml",
        "scopes.toml",
        "instance.pem",
        "log.pem",
        "aws.credentials",
        "policies/agents.cedar",
        "policies/people.cedar",
    ] {
        let text = std::fs::read_to_string(stage.broker.config_dir.path().join(name)).expect(name);
        let text = text.replace("127.0.0.1:1\"", &format!("127.0.0.1:{port}\""));
        let text = text.replace("path = \"anchor\"", &anchor);
        std::fs::write(config.join(name), text).expect(name);
    }
    let environment = [
        ("BROKER_DATABASE_URL", stage.broker.database.app_url.as_str()),
        ("BROKER_SEQUENCER_DATABASE_URL", stage.broker.database.sequencer_url.as_str()),
        ("AWS_ENDPOINT_URL", endpoint),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let dir_name = config.display().to_string();
    // The role may do more than its scopes, as those of the tests do.
    let args = ["serve", "--config", &dir_name, "--despite-findings"];
    let server = Server::start(&args, &environment, &config.with_extension("log"));
    until("the server is ready", SOON, async || {
        http(port, "GET", "/readyz", None, None).await.is_ok_and(|it| it.status == 200)
    })
    .await;
    (server, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_while_it_tells_aws_is_followed_by_one_that_does() {
    let relay = Relay::start(&stack::shared().endpoint).await;
    let stage = Stage::new().await;
    stage.rounds.abort();
    let (id, credentials) = stage.session().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (first, port) = serve(&stage, dir.path(), &relay.endpoint).await;
    relay.iam_is_away(true);
    let path = format!("/v1/leases/{id}/revoke");
    let body = json!({ "reason": "now" });
    let answer = http(port, "POST", &path, Some(&stage.broker.token), Some(&body)).await;
    assert_eq!(answer.expect("it answers").status, 200);
    until("it has tried", SOON, async || {
        stage.count("select coalesce(max(failures), 0)::int8 from role_stop").await >= 1
    })
    .await;
    first.stop("KILL").await;
    assert!(works(&credentials).await && stage.broker.sessions(id).await == ["revoking"]);
    relay.iam_is_away(false);
    let (second, _) = serve(&stage, dir.path(), &relay.endpoint).await;
    stage.stopped(id).await;
    assert!(!works(&credentials).await);

    // The probe's credentials passed through, and stayed nowhere.
    let secrets = relay.secrets();
    assert!(2 <= secrets.len() && secrets.iter().all(|it| 16 <= it.len()), "nothing was overheard");
    let sql = "select (select string_agg(p::text, '') from probe p) || (select string_agg(r::text, '') from role_stop r)
                      || (select string_agg(s::text, '') from session s) || (select string_agg(convert_from(e.body, 'utf8'), '') from event e)";
    let tables: String =
        sqlx::query_scalar(sql).fetch_one(&stage.broker.database.owner).await.expect(sql);
    let log = second.log();
    assert!(tables.contains("probe-") && log.contains("AWS refuses what was stopped"), "{log}");
    assert!(secrets.iter().all(|it| !tables.contains(it) && !log.contains(it)));
    assert!(second.stop("TERM").await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_somebody_removes_or_changes_is_written_anew() {
    let stage = Stage::new().await;
    let (id, credentials) = stage.session().await;
    stage.revoke(id).await;
    stage.stopped(id).await;
    let removed = stage.iam.delete_role_policy().role_name(&stage.role).policy_name(STOP_POLICY);
    removed.send().await.expect("an administrator may");
    assert!(works(&credentials).await);
    let look = "update role_stop set next_check_at = now()";
    stage.broker.as_owner(look).await;
    until("it is back", SOON, async || !works(&credentials).await).await;

    let allow = json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] });
    let put = stage.iam.put_role_policy().role_name(&stage.role).policy_name(STOP_POLICY);
    put.policy_document(allow.to_string()).send().await.expect("an administrator may");
    assert!(works(&credentials).await);
    stage.broker.as_owner(look).await;
    until("it is as it was", SOON, async || !works(&credentials).await).await;
    assert_eq!(stage.broker.sessions(id).await, ["stopped"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_is_taken_out_of_the_policy_and_the_policy_off_the_role() {
    let clock = Clock::manual(Clock::default().now());
    let stage = Stage::with(stack::shared().aws(), clock).await;
    let (id, _) = stage.session().await;
    stage.revoke(id).await;
    stage.stopped(id).await;
    assert!(stage.policy().await.is_some());
    stage.broker.clock.advance(time::Duration::hours(2));
    until("the policy is removed", SOON, async || stage.policy().await.is_none()).await;
    let sql = "select count(*) from role_stop where written_at is null";
    until("that is written down", SOON, async || stage.count(sql).await == 1).await;
}

// ------------------------------------------------------------------------------------------------------------ races

const ROUNDS: usize = 40;

/// How a round stops what another task is just getting.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    Revoke,
    Freeze,
}

/// Two servers, an STS that answers when it likes, and everything that hands out credentials at once with what stops it.
/// The log's order under the lease's lock is the order in which it happened.
async fn race(stop: Stop) {
    let sts = FakeSts::start().await;
    let setup = Setup { settings: wide_budgets(), ..Setup::fake(&sts) };
    let one = TestBroker::new(setup).await;
    let two = one.replica(sts.options()).await;
    let mut wins = [0; 3];
    for round in 0..ROUNDS {
        let signed = round % 3 == 2;
        let id = if signed {
            let id = one.pending_lease().await;
            one.approve(id, &one.bob).await;
            id
        } else {
            one.staging_lease().await
        };
        if round % 3 == 1 {
            // The server that has the session hands it out again.
            assert_eq!(one.claim(id).await.status, StatusCode::OK);
        }
        let before = deliveries(&one, id).await;
        let mut getting = JoinSet::new();
        for (at, server) in [&one, &two, &one].into_iter().enumerate() {
            let (sender, token) = (Sender::of(server), one.token.clone());
            let (wait, path) = (round * (at + 3) % 17, format!("/v1/leases/{id}/credentials"));
            let pool = one.database.owner.clone();
            getting.spawn(async move {
                pings(&pool, wait).await;
                sender.send(Method::POST, &path, Some(&token), &[], Some(json!({}))).await
            });
        }
        pings(&one.database.owner, round * 7 % 19).await;
        match stop {
            Stop::Revoke => {
                let path = format!("/v1/leases/{id}/revoke");
                let body = json!({ "reason": "now" });
                let token = Some(one.token.as_str());
                let answer = two.send(Method::POST, &path, token, &[], Some(body)).await;
                // A signed lease is over when its one mint was lost.
                let over = [StatusCode::OK, StatusCode::CONFLICT];
                assert!(over.contains(&answer.status), "{}", answer.body);
            }
            Stop::Freeze => {
                let request = wire::FreezeRequest {
                    kind: FreezeKind::Agent,
                    target: Some(AGENT.into()),
                    reason: "now".into(),
                };
                two.broker.freeze(&carol(&two), &request).await.expect("carol is of ops");
            }
        }
        let stopped_at: i64 = scalar(&one, "select max(seq) from event", id).await;
        let mut got = 0;
        while let Some(answer) = getting.join_next().await {
            got += i64::from(answer.expect("no panic").status == StatusCode::OK);
        }
        assert_eq!(
            deliveries(&one, id).await - before,
            got,
            "delivered and not recorded, or the other way round"
        );
        let last: Option<i64> = scalar(
            &one,
            "select max(seq) from event where lease_id = $1 and type in ('session.issued', 'session.redelivered')",
            id,
        )
        .await;
        assert!(last.is_none_or(|it| it <= stopped_at), "round {round}: delivered after {stop:?}");
        // Nothing that was handed out is live, and nothing more is handed out.
        let live: i64 = scalar(
            &one,
            "select count(*) from session where lease_id = $1 and state in ('issuing', 'live')",
            id,
        )
        .await;
        assert_eq!(live, 0, "round {round}");
        for server in [&one, &two] {
            assert_ne!(server.claim(id).await.status, StatusCode::OK, "round {round}");
        }
        wins[usize::try_from(got.min(2)).expect("small")] += 1;
        if stop == Stop::Freeze {
            thaw(&one).await;
        }
    }
    println!("{stop:?}: stopped first {}, one delivered {}, more {}", wins[0], wins[1], wins[2]);
}

async fn scalar<T>(broker: &TestBroker, sql: &'static str, id: LeaseId) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let query = sqlx::query_scalar(sql);
    let query = if sql.contains("$1") { query.bind(id.0) } else { query };
    query.fetch_one(&broker.database.owner).await.expect(sql)
}

async fn deliveries(broker: &TestBroker, id: LeaseId) -> i64 {
    let sql = "select coalesce(sum(deliveries), 0)::int8 from session where lease_id = $1";
    scalar(broker, sql, id).await
}

/// Takes some time, as much as the database does.
async fn pings(pool: &sqlx::PgPool, count: usize) {
    for _ in 0..count {
        sqlx::query("select 1").execute(pool).await.expect("it answers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_got_while_the_lease_is_revoked_is_delivered_before_it_or_not_at_all() {
    race(Stop::Revoke).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_got_while_the_agent_is_frozen_is_delivered_before_it_or_not_at_all() {
    race(Stop::Freeze).await;
}

#[tokio::test]
async fn what_aws_minted_while_it_was_stopped_is_recorded_and_never_delivered() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    sts.hold().await;
    let (sender, token) = (Sender::of(&broker), broker.token.clone());
    let path = format!("/v1/leases/{id}/credentials");
    let claim = tokio::spawn(async move {
        sender.send(Method::POST, &path, Some(&token), &[], Some(json!({}))).await
    });
    sts.arrived(1).await;
    let path = format!("/v1/leases/{id}/revoke");
    assert_eq!(broker.post(&path, json!({ "reason": "now" })).await.status, StatusCode::OK);
    sts.release();
    let answer = claim.await.expect("no panic");
    assert_eq!(answer.problem(), "/problems/ended", "{}", answer.body);
    let sql = "select state || ' ' || deliveries || ' ' || (access_key_id is not null) from session where lease_id = $1";
    assert_eq!(scalar::<String>(&broker, sql, id).await, "failed 0 true");
    assert!(broker.events(id).await.contains(&"session.dropped".to_owned()));
}

// -------------------------------------------------------------------------------------------------------- who may stop

#[tokio::test]
async fn who_may_see_a_lease_and_is_let_by_the_rules_stops_it() {
    let stage = Stage::new().await;
    let broker = &stage.broker;
    let id = broker.staging_lease().await;
    let revoke = async |token: &str, reason: &str| {
        let path = format!("/v1/leases/{id}/revoke");
        broker.send(Method::POST, &path, Some(token), &[], Some(json!({ "reason": reason }))).await
    };
    let now = broker.clock.now();
    let login = |person: &str| {
        secrecy::ExposeSecret::expose_secret(&broker.broker.tokens.login_token(person, now).0)
            .to_owned()
    };
    // Another agent, and a person who has nothing to do with it, are told that there is no such lease.
    let other = start_task(&broker.database, &broker.broker.tokens, "other", "alice", now).await;
    assert_eq!(revoke(&other, "why").await.status, StatusCode::NOT_FOUND);
    assert_eq!(revoke(&login("dave"), "why").await.status, StatusCode::NOT_FOUND);
    for reason in ["", "  ", "two\nlines"] {
        assert_eq!(revoke(&login("alice"), reason).await.problem(), "/problems/invalid-request");
    }
    assert_eq!(broker.state(id).await, "approved");
    // Its sponsor; what was approved and not claimed is held too.
    assert_eq!(revoke(&login("alice"), "not needed").await.status, StatusCode::OK);
    assert_eq!(broker.claim(id).await.reason(), "revoked");

    // A signer sees what waits for them, and may refuse it; to stop it they have to be let.
    let pending = broker.pending_lease().await;
    let path = format!("/v1/leases/{pending}/revoke");
    let body = json!({ "reason": "why" });
    let bob = broker.send(Method::POST, &path, Some(&login("bob")), &[], Some(body.clone())).await;
    assert_eq!(bob.problem(), "/problems/denied");
    let carol = broker.send(Method::POST, &path, Some(&login("carol")), &[], Some(body)).await;
    assert_eq!((carol.status, &carol.body["state"]), (StatusCode::OK, &json!("revoked")));
}

#[tokio::test]
async fn operations_freeze_anything_sponsors_their_own_and_nobody_a_name_that_is_misspelled() {
    let stage = Stage::new().await;
    let broker = &stage.broker;
    let now = broker.clock.now();
    let bobs = start_task(&broker.database, &broker.broker.tokens, "third", "bob", now).await;
    let login = |person: &str| {
        secrecy::ExposeSecret::expose_secret(&broker.broker.tokens.login_token(person, now).0)
            .to_owned()
    };
    let freeze = async |token: &str, kind: &str, target: Option<&str>| {
        let body = json!({ "kind": kind, "target": target, "reason": "why" });
        let body = if target.is_none() { json!({ "kind": kind, "reason": "why" }) } else { body };
        broker.send(Method::POST, "/v1/freezes", Some(token), &[], Some(body)).await
    };
    for (kind, target) in [
        ("agent", Some("third")),
        ("sponsor", Some("bob")),
        ("scope", Some("staging-rw")),
        ("environment", Some("staging")),
        ("all", None),
    ] {
        let alice = freeze(&login("alice"), kind, target).await;
        assert_eq!(alice.problem(), "/problems/denied", "{kind}");
    }
    let agent = freeze(&bobs, "agent", Some("third")).await;
    assert_eq!(agent.status, StatusCode::UNAUTHORIZED, "a freeze is a person's");
    for (kind, target) in [
        ("agent", Some("thirt")),
        ("sponsor", Some("bop")),
        ("scope", Some("staging")),
        ("environment", Some("prod")),
        ("all", Some("staging")),
        ("agent", None),
    ] {
        let carol = freeze(&login("carol"), kind, target).await;
        assert_eq!(carol.problem(), "/problems/invalid-request", "{kind} {target:?}");
    }
    assert_eq!(stage.count("select count(*) from \"freeze\"").await, 0);
    for (person, kind, target) in
        [("bob", "agent", "third"), ("alice", "sponsor", "alice"), ("carol", "scope", "prod-rw")]
    {
        let frozen = freeze(&login(person), kind, Some(target)).await;
        assert_eq!(frozen.status, StatusCode::CREATED, "{}", frozen.body);
        assert_eq!(frozen.body["created_by"], person);
    }
    let listed = broker.send(Method::GET, "/v1/freezes", Some(&login("dave")), &[], None).await;
    assert_eq!(listed.body["freezes"].as_array().map(Vec::len), Some(3));
    let asked = broker.post("/v1/leases", json!({ "scope": "staging-rw" })).await;
    assert_eq!(asked.problem(), "/problems/frozen", "alice's agents are frozen with her");
}
