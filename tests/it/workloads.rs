//! Workloads: tokens of trusted issuers become task tokens, each once; whatever else comes is refused.

use axum::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tests::issuer::{FakeIssuer, Publishes, SigningKey, exchange_form};
use tests::sts::FakeSts;
use tests::{AGENT, Answer, Setup, TestBroker, production_write, start_task};
use time::Duration;

/// A broker that trusts one issuer.
struct Stage {
    issuer: FakeIssuer,
    broker: TestBroker,
    sts: FakeSts,
}

impl Stage {
    async fn new() -> Self {
        Self::with("").await
    }

    /// `more` is said of the issuer.
    async fn with(more: &str) -> Self {
        Self::of(FakeIssuer::start().await, more).await
    }

    async fn of(issuer: FakeIssuer, more: &str) -> Self {
        let sts = FakeSts::start().await;
        let settings = issuer.settings(more);
        let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
        Self { issuer, broker, sts }
    }

    fn claims(&self) -> Value {
        self.issuer.claims(self.broker.clock.now())
    }

    /// The claims, with some changed; `null` takes one away.
    fn claims_but(&self, changes: Value) -> Value {
        let mut claims = self.claims();
        let Value::Object(changes) = changes else { panic!("no object") };
        for (name, value) in changes {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(&name)),
                value => claims[name] = value,
            }
        }
        claims
    }

    fn token(&self) -> String {
        self.issuer.sign(&self.claims())
    }

    /// Exchanges a token with these claims for a task token.
    async fn task_token(&self, claims: &Value) -> String {
        let answer = self.broker.exchange(&self.issuer.sign(claims)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer.body["access_token"].as_str().expect("a token").to_owned()
    }

    async fn lease(&self, token: &str, body: Value) -> Answer {
        self.broker.send(Method::POST, "/v1/leases", Some(token), &[], Some(body)).await
    }

    /// Says that a token is refused for this reason: nothing starts, and the answer does not repeat it.
    async fn refuses(&self, token: &str, reason: &str) {
        let answer = self.broker.exchange(token).await;
        let kind = (answer.status, answer.problem(), answer.reason());
        assert_eq!(kind, (StatusCode::UNAUTHORIZED, "/problems/unauthenticated", reason));
        assert!(answer.body["next"].as_str().is_some_and(|it| !it.is_empty()), "{}", answer.body);
        let signature = token.rsplit('.').next().unwrap();
        let quoted = !signature.is_empty() && answer.body.to_string().contains(signature);
        assert!(!quoted, "{}", answer.body);
        let (tasks, told): (i64, i64) = self
            .row("select (select count(*) from task where issuer is not null), (select count(*) from event where type = 'auth.rejected')")
            .await;
        assert_eq!((tasks, told), (0, 1), "{reason}");
    }

    async fn row<T>(&self, sql: &'static str) -> T
    where
        T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
    {
        sqlx::query_as(sql).fetch_one(&self.broker.database.owner).await.expect(sql)
    }
}

#[tokio::test]
async fn a_workload_becomes_the_agent_that_the_configuration_says() {
    for key in [SigningKey::rsa("k"), SigningKey::ec("k"), SigningKey::ed25519("k")] {
        let stage = Stage::of(FakeIssuer::with(key).await, "").await;
        let token = stage.token();
        let answer = stage.broker.exchange(&token).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let told = |name: &str| answer.body[name].clone();
        assert_eq!(
            json!([
                told("agent"),
                told("sponsor"),
                told("actor"),
                told("task"),
                told("expires_in")
            ]),
            json!(["shop-ci", "alice", "bob", "1234", 3600])
        );
        assert_eq!(told("token_type"), "Bearer");
        assert_eq!(told("issued_token_type"), "urn:ietf:params:oauth:token-type:access_token");

        let task = answer.body["access_token"].as_str().unwrap();
        let lease = stage.lease(task, json!({ "scope": "staging-rw", "deliver": true })).await;
        assert_eq!(lease.status, StatusCode::CREATED, "{}", lease.body);
        let whoami = stage.broker.send(Method::GET, "/v1/whoami", Some(task), &[], None).await;
        assert_eq!(whoami.body["actor"], "bob", "{}", whoami.body);
        assert_eq!(stage.sts.calls(), 1);

        let (row,): (Value,) = stage
            .row("select jsonb_build_object('issuer', issuer, 'subject', subject, 'actor', actor, 'claims', claims) from tasks where issuer is not null")
            .await;
        assert_eq!(
            row,
            json!({
                "issuer": "https://issuer.test", "subject": "repo:acme/shop:ref:refs/heads/main", "actor": "bob",
                "claims": { "repository": "acme/shop", "run_id": "1234" },
            })
        );
        let (kept,): (i64,) = stage
            .row("select count(*) from lease_history where agent = 'shop-ci' and actor = 'bob'")
            .await;
        assert_eq!(kept, 1);
        // Neither token is in the record.
        let (doc,): (String,) = stage.row("select string_agg(doc::text, '') from event").await;
        for secret in [token.rsplit('.').next().unwrap(), task.rsplit('.').next().unwrap()] {
            assert!(!doc.contains(secret));
        }
        assert!(doc.contains("task.started") && doc.contains(r#""set_off_by": "bob""#), "{doc}");
    }
}

#[tokio::test]
async fn who_set_a_workload_off_cannot_sign_for_it() {
    let stage = Stage::new().await;
    let token = stage.task_token(&stage.claims()).await;
    let pending = stage.lease(&token, production_write()).await;
    assert_eq!(pending.status, StatusCode::ACCEPTED, "{}", pending.body);
    assert_eq!(
        pending.body["eligible_signers"],
        json!(["carol"]),
        "not alice, its sponsor, nor bob"
    );
    let statement = stage.broker.statement(pending.id()).await;
    let statement: Value = serde_json::from_slice(&statement).unwrap();
    let terms = &statement["predicate"];
    assert_eq!(
        (&terms["actor"], &terms["agent"]["issuer"]),
        (&json!("bob"), &json!("https://issuer.test"))
    );
    let refused = stage.broker.approve(pending.id(), &stage.broker.bob).await;
    assert_eq!(
        (refused.status, refused.reason()),
        (StatusCode::FORBIDDEN, "actor"),
        "{}",
        refused.body
    );
    let signed = stage.broker.approve(pending.id(), &stage.broker.carol).await;
    assert_eq!(signed.body["state"], "approved", "{}", signed.body);
}

#[tokio::test]
async fn an_unmapped_actor_gets_staging_and_no_scope_that_people_sign() {
    let stage = Stage::new().await;
    // Nobody that the configuration knows; nobody at all; and a handle that no person has.
    for (number, actor) in [json!("666"), Value::Null, json!("2")].into_iter().enumerate() {
        let token = stage.task_token(&stage.claims_but(json!({ "actor_id": actor }))).await;
        let staging = stage.lease(&token, json!({ "scope": "staging-rw" })).await;
        assert_eq!(staging.status, StatusCode::CREATED, "{}", staging.body);
        let production = stage.lease(&token, production_write()).await;
        assert_eq!(
            (production.status, production.problem()),
            (StatusCode::FORBIDDEN, "/problems/denied")
        );
        let why = production.body["detail"].as_str().unwrap();
        assert!(why.contains("nobody knows who set this off"), "{why}");
        let (unknown,): (i64,) = stage.row("select count(*) from tasks where actor_unknown").await;
        assert_eq!(usize::try_from(unknown).unwrap(), number + 1);
    }
    // Who was disabled since is nobody any more.
    stage.broker.as_owner("update person set disabled_at = created_at where handle = 'bob'").await;
    let token = stage.task_token(&stage.claims()).await;
    assert_eq!(stage.lease(&token, production_write()).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_the_sponsor_has_run_by_itself_may_ask_for_what_people_sign() {
    let issuer = FakeIssuer::start().await;
    let settings =
        issuer.settings("").replace("task_claim", "set_off_by = \"sponsor\"\ntask_claim");
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    let stage = Stage { issuer, broker, sts };
    let token = stage.task_token(&stage.claims_but(json!({ "actor_id": null }))).await;
    let pending = stage.lease(&token, production_write()).await;
    assert_eq!(pending.body["eligible_signers"], json!(["bob", "carol"]), "{}", pending.body);
}

#[tokio::test]
async fn the_database_refuses_a_signed_lease_that_does_not_say_who_set_it_off() {
    let stage = Stage::new().await;
    let known = stage.task_token(&stage.claims()).await;
    let unknown = stage.task_token(&stage.claims_but(json!({ "actor_id": "666" }))).await;
    let pending = stage.lease(&known, production_write()).await.id();
    stage.lease(&unknown, json!({ "scope": "staging-rw" })).await;
    // A server that forgets the actor, names another, asks the actor to sign, or asks for a task nobody knows the actor of.
    for (change, why) in [
        ("l.actor := null", "does not say who set it off"),
        ("l.actor := 'dave'", "does not say who set it off"),
        (
            "l.actor := null; l.task_id := (select id from task where actor_unknown)",
            "does not say who set it off",
        ),
    ] {
        let sql = format!(
            "do $$ declare l lease; begin select * into strict l from lease where id = '{pending}';
             l.id := gen_random_uuid(); {change};
             insert into lease (id, request_sha256, agent, sponsor, actor, task_id, task, reason, rollback, scope, environment, tier, account,
                region, role_arn, actions, resources, assume_role, window_seconds, rules_sha256, decided_by, signatures_needed,
                eligible_signers, state, requested_at, sign_by)
             values (l.id, l.request_sha256, l.agent, l.sponsor, l.actor, l.task_id, l.task, l.reason, l.rollback, l.scope, l.environment,
                l.tier, l.account, l.region, l.role_arn, l.actions, l.resources, l.assume_role, l.window_seconds, l.rules_sha256,
                l.decided_by, l.signatures_needed, l.eligible_signers, 'pending', l.requested_at, l.sign_by); end $$"
        );
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(stage.broker.pool()).await;
        let error = done.expect_err(change).to_string();
        assert!(error.contains(why), "{change}: {error}");
    }
    let change = "update task set actor = 'carol' where actor = 'bob'";
    let error = sqlx::raw_sql(change).execute(&stage.broker.database.owner).await.unwrap_err();
    assert!(error.to_string().contains("a task only ends"), "{error}");
}

#[tokio::test]
async fn a_token_is_taken_once() {
    let stage = Stage::new().await;
    let token = stage.token();
    assert_eq!(stage.broker.exchange(&token).await.status, StatusCode::OK);
    let again = stage.broker.exchange(&token).await;
    assert_eq!((again.status, again.reason()), (StatusCode::UNAUTHORIZED, "replayed"));
    // Nor at another server, nor when it has expired but for the leeway, nor when its task has ended.
    let other = stage.broker.replica(stage.sts.options()).await;
    assert_eq!(other.exchange(&token).await.reason(), "replayed");
    stage.broker.clock.advance(Duration::seconds(329));
    assert_eq!(stage.broker.exchange(&token).await.reason(), "replayed");
    stage.broker.as_owner("update task set ended_at = started_at where issuer is not null").await;
    assert_eq!(stage.broker.exchange(&token).await.reason(), "task-ended");
    let (tasks,): (i64,) = stage.row("select count(*) from task where issuer is not null").await;
    assert_eq!(tasks, 1);
}

#[tokio::test]
async fn a_token_whose_signature_is_written_otherwise_is_the_same_token() {
    let stage = Stage::of(FakeIssuer::with(SigningKey::ec("k")).await, "").await;
    let token = stage.token();
    assert_eq!(stage.broker.exchange(&token).await.status, StatusCode::OK);
    // ECDSA: with s, the order minus s signs the same.
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature =
        p256::ecdsa::Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    let (r, s) = signature.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
    let other = format!("{message}.{}", URL_SAFE_NO_PAD.encode(other.to_bytes()));
    assert_ne!(other, token);
    assert_eq!(stage.broker.exchange(&other).await.reason(), "replayed");
}

#[tokio::test]
async fn of_the_same_token_at_two_servers_at_once_one_starts_a_task() {
    let stage = Stage::new().await;
    let token = stage.token();
    let other = stage.broker.replica(stage.sts.options()).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        let (here, there) = tokio::join!(stage.broker.exchange(&token), other.exchange(&token));
        answers.extend([here.status, there.status]);
    }
    assert_eq!(answers.iter().filter(|it| it.is_success()).count(), 1, "{answers:?}");
}

#[tokio::test]
async fn where_a_token_may_come_again_it_is_the_same_task_until_that_ends() {
    let stage = Stage::with("once = false").await;
    let token = stage.token();
    let first = stage.broker.exchange(&token).await;
    let again = stage.broker.exchange(&token).await;
    assert_eq!(again.status, StatusCode::OK, "{}", again.body);
    assert_eq!(again.body["task_id"], first.body["task_id"]);
    assert_eq!(again.body["expires_at"], first.body["expires_at"]);
    let told = "select doc #>> '{data,agent}', doc #>> '{data,detail,subject}', doc #>> '{data,detail,task_id}' from event where type = 'task.resumed'";
    let (agent, subject, task): (String, String, String) = stage.row(told).await;
    assert_eq!((&*agent, &*subject), ("shop-ci", "repo:acme/shop:ref:refs/heads/main"));
    assert_eq!(task, first.body["task_id"].as_str().unwrap());
    let end = format!("/v1/tasks/{}/end", first.body["task_id"].as_str().unwrap());
    let bearer = first.body["access_token"].as_str();
    let ended = stage.broker.send(Method::POST, &end, bearer, &[], Some(json!({}))).await;
    assert_eq!(ended.status, StatusCode::OK, "{}", ended.body);
    let late = stage.broker.exchange(&token).await;
    assert_eq!((late.status, late.reason()), (StatusCode::UNAUTHORIZED, "task-ended"));
    let second = again.body["access_token"].as_str().unwrap();
    assert_eq!(
        stage.lease(second, json!({ "scope": "staging-rw" })).await.status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_token_that_comes_again_and_would_be_anothers_today_is_given_nothing() {
    let stage = Stage::with("once = false").await;
    let token = stage.token();
    assert_eq!(stage.broker.exchange(&token).await.status, StatusCode::OK);
    let file = stage.broker.config_dir.path().join("broker.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    for (there, instead) in [
        ("agent = \"shop-ci\"", "agent = \"other\""),
        ("sponsor = \"alice\"", "sponsor = \"dave\""),
        ("583231 = \"bob\"", "583231 = \"carol\""),
        ("583231 = \"bob\", ", ""),
    ] {
        assert!(before.contains(there), "{there}");
        std::fs::write(&file, before.replace(there, instead)).unwrap();
        let replica = stage.broker.replica(stage.sts.options()).await;
        assert_eq!(replica.exchange(&token).await.reason(), "task-ended", "{there}");
    }
}

#[tokio::test]
async fn a_sponsor_who_is_disabled_has_no_workloads() {
    let stage = Stage::new().await;
    let token = stage.task_token(&stage.claims()).await;
    stage
        .broker
        .as_owner("update person set disabled_at = created_at where handle = 'alice'")
        .await;
    assert_eq!(
        stage.lease(&token, json!({ "scope": "staging-rw" })).await.status,
        StatusCode::UNAUTHORIZED
    );
    let refused = stage.broker.exchange(&stage.token()).await;
    assert_eq!((refused.status, refused.reason()), (StatusCode::UNAUTHORIZED, "no-sponsor"));
}

#[tokio::test]
async fn an_agent_starts_no_more_tasks_a_minute_than_its_budget_of_requests() {
    let stage = Stage::new().await;
    for _ in 0..10 {
        stage.task_token(&stage.claims()).await;
    }
    let over = stage.broker.exchange(&stage.token()).await;
    assert_eq!(
        (over.status, over.problem()),
        (StatusCode::TOO_MANY_REQUESTS, "/problems/over-budget")
    );
    stage.broker.clock.advance(Duration::seconds(61));
    stage.task_token(&stage.claims()).await;
}

#[tokio::test]
async fn who_runs_a_pipeline_again_is_somebody_unknown() {
    let stage = Stage::with("actor_where = { run_attempt = \"1\" }").await;
    // The token still names who set the first run off.
    for attempt in [json!("2"), json!(2), json!("11"), Value::Null] {
        let token = stage.task_token(&stage.claims_but(json!({ "run_attempt": attempt }))).await;
        let production = stage.lease(&token, production_write()).await;
        assert_eq!(production.status, StatusCode::FORBIDDEN, "{attempt}: {}", production.body);
    }
    let token = stage.task_token(&stage.claims_but(json!({ "run_attempt": "1" }))).await;
    let pending = stage.lease(&token, production_write()).await;
    assert_eq!(pending.body["eligible_signers"], json!(["carol"]), "{}", pending.body);
    let statement = stage.broker.statement(pending.id()).await;
    let statement = broker::statement::LeaseStatement::from_bytes(statement).unwrap();
    let shown = broker::render::statement(&statement);
    assert!(shown.contains("alice, by the broker's configuration"), "{shown}");
    assert!(shown.contains("| the agent's words, what it runs for:\n  |   1234"), "{shown}");
    assert!(!shown.contains("who started task"), "{shown}");
}

#[tokio::test]
async fn who_comes_again_or_too_often_makes_nobody_wait() {
    let stage = Stage::new().await;
    let token = stage.token();
    for _ in 0..9 {
        stage.task_token(&stage.claims()).await;
    }
    assert_eq!(stage.broker.exchange(&token).await.status, StatusCode::OK);
    let fresh = stage.token();
    // Somebody asks for a lease, and takes long.
    let mut transaction = stage.broker.database.owner.begin().await.unwrap();
    sqlx::query("select from person where handle = 'alice' for no key update")
        .execute(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(stage.broker.exchange(&token).await.reason(), "replayed");
    assert_eq!(stage.broker.exchange(&fresh).await.problem(), "/problems/over-budget");
    transaction.rollback().await.unwrap();
    let (told,): (i64,) = stage
        .row("select count(*) from event where type = 'budget.exceeded' and agent = 'shop-ci'")
        .await;
    assert_eq!(told, 1);
}

#[tokio::test]
async fn rules_on_signing_and_on_stopping_see_what_the_workloads_token_said() {
    let stage = Stage::new().await;
    let token = stage.task_token(&stage.claims()).await;
    let ask = async || stage.lease(&token, production_write()).await.id();
    let (early, late, kept) = (ask().await, ask().await, ask().await);
    let carol = &stage.broker.carol;
    assert_eq!(stage.broker.approve(early, carol).await.status, StatusCode::OK);
    let rules = format!(
        "@id(\"not-this-run\") forbid (principal is Person, action == Action::\"sign\", resource is Scope)
         when {{ context.agent.hasTag(\"run_id\") && context.agent.getTag(\"run_id\") == \"1234\" }};
         @id(\"no-stopping\") forbid (principal is Agent, action == Action::\"revoke\", resource is Scope)
         when {{ principal.issuer == \"{}\" && principal has actor && principal.hasTag(\"repository\") }};",
        stage.issuer.name
    );
    let revoke = async |broker: &TestBroker| {
        let (path, body) = (format!("/v1/leases/{kept}/revoke"), json!({ "reason": "r" }));
        broker.send(Method::POST, &path, Some(&token), &[], Some(body)).await
    };
    std::fs::write(stage.broker.config_dir.path().join("policies/more.cedar"), rules).unwrap();
    let strict = stage.broker.replica(stage.sts.options()).await;
    assert_eq!(strict.approve(late, carol).await.reason(), "forbidden-by-rule");
    let path = format!("/v1/leases/{early}/credentials");
    let claim = strict.send(Method::POST, &path, Some(&token), &[], None).await;
    assert_eq!((claim.problem(), claim.reason()), ("/problems/denied", "no-longer"));
    assert_eq!(revoke(&strict).await.problem(), "/problems/denied");
    assert_eq!(revoke(&stage.broker).await.status, StatusCode::OK, "without that rule it may");
}

#[tokio::test]
async fn what_the_configuration_takes_back_is_taken_from_tasks_that_began_before() {
    let stage = Stage::new().await;
    let token = stage.task_token(&stage.claims()).await;
    let file = stage.broker.config_dir.path().join("broker.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    for (there, instead) in [
        (stage.issuer.name.as_str(), "https://elsewhere.example"),
        ("agent = \"shop-ci\"", "agent = \"other\""),
        ("sponsor = \"alice\"", "sponsor = \"dave\""),
        ("583231 = \"bob\", ", ""),
    ] {
        assert!(before.contains(there), "{there}");
        std::fs::write(&file, before.replace(there, instead)).unwrap();
        let replica = stage.broker.replica(stage.sts.options()).await;
        let answer = replica.send(Method::GET, "/v1/whoami", Some(&token), &[], None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{there}: {}", answer.body);
    }
    std::fs::write(&file, before).unwrap();
    let replica = stage.broker.replica(stage.sts.options()).await;
    let answer = replica.send(Method::GET, "/v1/whoami", Some(&token), &[], None).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let told = "select count(*) from event where type = 'auth.rejected' and actor = 'agent:shop-ci' and doc #>> '{data,detail,reason}' = 'not-mapped'";
    assert_eq!(stage.row::<(i64,)>(told).await, (4,));
}

#[tokio::test]
async fn the_record_has_whose_word_counted() {
    let stage = Stage::new().await;
    let token = stage.task_token(&stage.claims()).await;
    let id = stage.lease(&token, json!({ "scope": "staging-rw" })).await.id();
    let sql = "select r.issuers from rulesets r join lease_history l on l.rules_sha256 = r.sha256 where l.id = $1";
    let issuers: Value =
        sqlx::query_scalar(sql).bind(id.0).fetch_one(&stage.broker.database.owner).await.unwrap();
    assert_eq!(issuers[0]["issuer"], json!(stage.issuer.name));
    assert_eq!(issuers[0]["actors"]["583231"], "bob");
    assert_eq!(issuers[0]["workloads"][0]["where"], json!({ "event_name": "push" }));
}

#[tokio::test]
async fn the_servers_login_starts_no_task_of_a_workload_for_longer_than_a_day() {
    let stage = Stage::new().await;
    let start = async |hours: i32| {
        let sql = format!(
            "select start_workload_task(id => gen_random_uuid(), agent => 'a', sponsor => 'alice', task => 't', issuer => 'i', subject => 's',
                token_sha256 => sha256('{hours}'), actor => null, actor_unknown => false, claims => '{{}}', at => now(),
                expires_at => now() + interval '{hours} hours', most => 100, event => null)"
        );
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(stage.broker.pool()).await;
        done.expect_err("there is no event").to_string()
    };
    assert!(start(25).await.contains("a day at most"));
    assert!(!start(24).await.contains("a day at most"));
}

// --- what an attacker would send

#[tokio::test]
async fn a_token_without_a_signature_is_refused() {
    let stage = Stage::new().await;
    let mut header = stage.issuer.key.header();
    header["alg"] = json!("none");
    let token = stage.issuer.key.sign(&header, &stage.claims());
    let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
    stage.refuses(&unsigned, "wrong-algorithm").await;
}

#[tokio::test]
async fn a_token_whose_signature_was_taken_away_is_refused() {
    let stage = Stage::new().await;
    let token = stage.token();
    stage.refuses(&format!("{}.", token.rsplit_once('.').unwrap().0), "bad-signature").await;
}

#[tokio::test]
async fn the_public_key_is_no_shared_secret() {
    let stage = Stage::new().await;
    // Everybody has the public key: as the secret of an HMAC it would sign for everybody.
    let modulus = stage.issuer.key.jwk()["n"].as_str().unwrap().to_owned();
    for secret in [modulus.clone().into_bytes(), URL_SAFE_NO_PAD.decode(&modulus).unwrap()] {
        let forger = SigningKey::shared("key-1", &secret);
        let answer = stage.broker.exchange(&forger.sign(&forger.header(), &stage.claims())).await;
        assert_eq!(answer.reason(), "wrong-algorithm");
        // Nor under the name of the algorithm that is expected.
        let answer =
            stage.broker.exchange(&forger.sign(&stage.issuer.key.header(), &stage.claims())).await;
        assert_eq!(answer.reason(), "bad-signature");
    }
}

#[tokio::test]
async fn a_shared_secret_in_the_key_set_is_no_key() {
    let stage = Stage::new().await;
    let secret = json!({ "kty": "oct", "kid": "shared", "k": URL_SAFE_NO_PAD.encode("secret"), "alg": "HS256" });
    stage.issuer.publish(Publishes::Keys(vec![secret, stage.issuer.key.jwk()]));
    let forger = SigningKey::shared("shared", b"secret");
    let header = json!({ "alg": "RS256", "kid": "shared" });
    stage.refuses(&forger.sign(&header, &stage.claims()), "unknown-key").await;
}

#[tokio::test]
async fn an_algorithm_that_is_not_pinned_for_the_issuer_is_refused() {
    let stage = Stage::new().await;
    // The right key, and an algorithm of the same family.
    let key = SigningKey { algorithm: Algorithm::RS512, ..stage.issuer.key.clone() };
    stage.refuses(&key.sign(&key.header(), &stage.claims()), "wrong-algorithm").await;
}

#[tokio::test]
async fn a_key_for_one_algorithm_does_not_verify_another() {
    let issuer = FakeIssuer::start().await;
    let settings = issuer.settings("").replace("[\"RS256\"]", "[\"RS256\", \"PS256\"]");
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    let stage = Stage { issuer, broker, sts };
    let key = SigningKey { algorithm: Algorithm::PS256, ..stage.issuer.key.clone() };
    // Its JWK says RS256.
    stage.refuses(&key.sign(&key.header(), &stage.claims()), "bad-signature").await;
}

#[tokio::test]
async fn a_signature_by_another_key_of_the_same_name_is_refused() {
    let stage = Stage::new().await;
    let thief = SigningKey::rsa("key-1");
    stage.refuses(&thief.sign(&thief.header(), &stage.claims()), "bad-signature").await;
}

#[tokio::test]
async fn claims_that_were_changed_after_signing_are_refused() {
    let stage = Stage::new().await;
    let token = stage.token();
    let [header, _, signature]: [&str; 3] =
        token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let claims = stage.claims_but(json!({ "actor_id": "1" })).to_string();
    let changed = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(claims));
    stage.refuses(&changed, "bad-signature").await;
}

#[tokio::test]
async fn an_issuer_that_is_not_configured_is_refused_and_never_asked() {
    let stage = Stage::new().await;
    let theirs = FakeIssuer::with(SigningKey::rsa("key-1")).await;
    let origin = theirs.jwks_uri.rsplit_once('/').unwrap().0.to_owned();
    // An attacker's issuer; ours with a slash; ours in capitals.
    for name in [origin.as_str(), "https://issuer.test/", "https://ISSUER.test"] {
        let claims = stage.claims_but(json!({ "iss": name }));
        let answer = stage.broker.exchange(&theirs.sign(&claims)).await;
        assert_eq!(answer.reason(), "unknown-issuer", "{name}");
    }
    assert_eq!((theirs.asked(), stage.issuer.asked()), (0, 0));
}

#[tokio::test]
async fn keys_that_a_token_brings_or_points_to_are_not_looked_at() {
    let theirs = FakeIssuer::with(SigningKey::rsa("key-1")).await;
    let stage = Stage::new().await;
    let more = [
        json!({ "jku": theirs.jwks_uri }),
        json!({ "x5u": theirs.jwks_uri }),
        json!({ "jwk": theirs.key.jwk() }),
        json!({ "x5c": ["MIIB"] }),
        json!({ "crit": ["exp"] }),
        json!({ "b64": false }),
        json!({ "zip": "DEF" }),
    ];
    for more in more {
        let mut header = theirs.key.header();
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = stage.broker.exchange(&theirs.key.sign(&header, &stage.claims())).await;
        assert_eq!(
            (answer.status, answer.reason()),
            (StatusCode::UNAUTHORIZED, "malformed"),
            "{more}"
        );
    }
    assert_eq!((theirs.asked(), stage.issuer.asked()), (0, 0));
}

#[tokio::test]
async fn a_key_id_is_a_name_and_nothing_else() {
    let stage = Stage::new().await;
    let long = "k".repeat(256);
    for (id, reason) in [
        ("../../../../dev/null", "unknown-key"),
        ("key-1'; drop table task; --", "unknown-key"),
        ("https://evil.test/key", "unknown-key"),
        ("key-1\u{0}", "unknown-key"),
        ("KEY-1", "unknown-key"),
        ("", "malformed"),
        (&long, "malformed"),
    ] {
        let mut header = stage.issuer.key.header();
        header["kid"] = json!(id);
        let answer = stage.broker.exchange(&stage.issuer.key.sign(&header, &stage.claims())).await;
        assert_eq!((answer.status, answer.reason()), (StatusCode::UNAUTHORIZED, reason), "{id}");
    }
    let mut header = stage.issuer.key.header();
    header.as_object_mut().unwrap().remove("kid");
    let answer = stage.broker.exchange(&stage.issuer.key.sign(&header, &stage.claims())).await;
    assert_eq!(answer.reason(), "malformed", "no id at all");
    assert_eq!(stage.issuer.asked(), 1, "and a flood of them asks the issuer nothing");
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let stage = Stage::new().await;
    stage
        .refuses(
            &stage.issuer.sign(&stage.claims_but(json!({ "aud": "https://other.test" }))),
            "wrong-audience",
        )
        .await;
}

#[tokio::test]
async fn a_token_for_several_audiences_or_none_is_refused() {
    let stage = Stage::new().await;
    for aud in [
        json!(["http://localhost:1", "https://other.test"]),
        json!([]),
        json!(["http://localhost:1", "http://localhost:1"]),
        json!("http://localhost:1/"),
        json!({ "http://localhost:1": true }),
        Value::Null,
    ] {
        let answer = stage
            .broker
            .exchange(&stage.issuer.sign(&stage.claims_but(json!({ "aud": aud }))))
            .await;
        assert_eq!(answer.reason(), "wrong-audience", "{aud}");
    }
    stage.task_token(&stage.claims_but(json!({ "aud": ["http://localhost:1"] }))).await;
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let stage = Stage::new().await;
    let token = stage.token();
    stage.broker.clock.advance(Duration::seconds(330));
    stage.refuses(&token, "expired").await;
}

#[tokio::test]
async fn a_token_is_good_to_the_end_of_the_leeway_and_not_a_second_longer() {
    let stage = Stage::new().await;
    let (early, late) = (stage.token(), stage.token());
    stage.broker.clock.advance(Duration::seconds(329));
    assert_eq!(stage.broker.exchange(&early).await.status, StatusCode::OK);
    stage.broker.clock.advance(Duration::SECOND);
    assert_eq!(stage.broker.exchange(&late).await.reason(), "expired");
}

#[tokio::test]
async fn a_token_that_is_not_valid_yet_is_refused() {
    let stage = Stage::new().await;
    let soon = stage.broker.clock.now().unix_timestamp() + 31;
    for name in ["nbf", "iat"] {
        let token = stage.issuer.sign(&stage.claims_but(json!({ name: soon })));
        assert_eq!(stage.broker.exchange(&token).await.reason(), "not-yet-valid", "{name}");
    }
}

#[tokio::test]
async fn a_token_that_never_ends_or_lasts_for_days_is_refused() {
    let stage = Stage::new().await;
    let now = stage.broker.clock.now().unix_timestamp();
    for (exp, reason) in [
        (Value::Null, "malformed"),
        (json!("2099-01-01"), "malformed"),
        (json!(-1), "malformed"),
        (json!(1e300), "malformed"),
        (json!(now + 86_401), "too-long-lived"),
    ] {
        let token = stage.issuer.sign(&stage.claims_but(json!({ "exp": exp })));
        assert_eq!(stage.broker.exchange(&token).await.reason(), reason, "{exp}");
    }
    // Nor one that was good for a year, on its last day.
    let old = stage.claims_but(json!({ "iat": now - 86_400, "nbf": now - 86_400 }));
    assert_eq!(stage.broker.exchange(&stage.issuer.sign(&old)).await.reason(), "too-long-lived");
}

#[tokio::test]
async fn a_huge_token_is_refused_unread() {
    let stage = Stage::new().await;
    let token = stage.issuer.sign(&stage.claims_but(json!({ "more": "x".repeat(8192) })));
    stage.refuses(&token, "too-long").await;
    let larger = stage.broker.send_form("/v1/token", exchange_form(&"x".repeat(70_000))).await;
    assert_eq!(
        (larger.status, larger.problem()),
        (StatusCode::PAYLOAD_TOO_LARGE, "/problems/too-large")
    );
    assert_eq!(stage.issuer.asked(), 0);
}

#[tokio::test]
async fn a_deeply_nested_token_is_refused() {
    let stage = Stage::new().await;
    let deep = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    let claims = stage.claims().to_string();
    let claims = format!("{},\"deep\":{deep}}}", claims.strip_suffix('}').unwrap());
    let token = stage.issuer.key.sign_text(&stage.issuer.key.header().to_string(), &claims);
    stage.refuses(&token, "malformed").await;
}

#[tokio::test]
async fn a_claim_that_stands_there_twice_is_refused() {
    let stage = Stage::new().await;
    let claims = stage.claims().to_string();
    for (name, value) in [
        ("iss", "\"https://issuer.test\""),
        ("sub", "\"x\""),
        ("exp", "9999999999"),
        ("actor_id", "\"1\""),
    ] {
        let claims = format!("{},\"{name}\":{value}}}", claims.strip_suffix('}').unwrap());
        let token = stage.issuer.key.sign_text(&stage.issuer.key.header().to_string(), &claims);
        assert_eq!(stage.broker.exchange(&token).await.reason(), "malformed", "{name}");
    }
    let header = stage.issuer.key.header().to_string();
    let header = format!("{},\"alg\":\"none\"}}", header.strip_suffix('}').unwrap());
    let token = stage.issuer.key.sign_text(&header, &claims);
    assert_eq!(stage.broker.exchange(&token).await.reason(), "malformed");
}

#[tokio::test]
async fn what_is_no_signed_token_is_refused() {
    let stage = Stage::new().await;
    let token = stage.token();
    for text in [
        "",
        ".",
        "..",
        "...",
        "x",
        "x.y",
        "x.y.z",
        "{}.{}.x",
        &format!("{token}.x"),
        &format!("{token}=="),
        &format!(" {token}"),
        &token.replace('.', ".."),
        &token.to_uppercase(),
        "e30.e30.e30",
        "\u{0}",
    ] {
        let answer = stage.broker.exchange(text).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{text:?}");
        assert!(
            ["malformed", "bad-signature"].contains(&answer.reason()),
            "{text:?}: {}",
            answer.body
        );
    }
}

#[tokio::test]
async fn no_token_of_ours_is_a_workloads_nor_theirs_one_of_ours() {
    let stage = Stage::new().await;
    let answer = stage.broker.exchange(&stage.broker.token).await;
    assert_eq!((answer.status, answer.reason()), (StatusCode::UNAUTHORIZED, "malformed"));
    for token in [
        stage.token(),
        stage
            .issuer
            .key
            .sign(&json!({ "alg": "RS256", "typ": "task+jwt", "kid": "key-1" }), &stage.claims()),
    ] {
        let lease = stage.lease(&token, json!({ "scope": "staging-rw" })).await;
        assert_eq!(lease.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn a_subject_or_a_claim_that_does_not_fit_is_nobodys() {
    let stage = Stage::new().await;
    for changes in [
        json!({ "sub": "repo:acme/shop:ref:refs/heads/main:evil" }),
        json!({ "sub": "repo:evil/x:repo:acme/shop:ref:refs/heads/main" }),
        json!({ "sub": "repo:acme/shop2:ref:refs/heads/main" }),
        json!({ "sub": "REPO:acme/shop:ref:refs/heads/main" }),
        json!({ "sub": "repo:acme/shop:pull_request" }),
        json!({ "event_name": "pull_request" }),
        json!({ "event_name": "pushed" }),
        json!({ "event_name": ["push"] }),
        json!({ "event_name": null }),
    ] {
        let token = stage.issuer.sign(&stage.claims_but(changes.clone()));
        assert_eq!(stage.broker.exchange(&token).await.reason(), "not-mapped", "{changes}");
    }
    for sub in [
        json!(null),
        json!(""),
        json!("a\nb"),
        json!(["repo:acme/shop:ref:refs/heads/main"]),
        json!("x".repeat(300)),
    ] {
        let token = stage.issuer.sign(&stage.claims_but(json!({ "sub": sub })));
        assert_eq!(stage.broker.exchange(&token).await.reason(), "malformed", "{sub}");
    }
}

#[tokio::test]
async fn a_workload_that_would_be_two_agents_is_none() {
    let issuer = FakeIssuer::start().await;
    let settings = format!(
        "{}\n[[issuers.workloads]]\nsubject = \"repo:acme/shop:ref:refs/heads/main\"\nagent = \"other\"\nsponsor = \"bob\"\n",
        issuer.settings("")
    );
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    let stage = Stage { issuer, broker, sts };
    stage.refuses(&stage.token(), "ambiguous").await;
}

#[tokio::test]
async fn claims_that_a_task_would_keep_are_there_and_short() {
    let stage = Stage::new().await;
    for changes in [
        json!({ "run_id": null }),
        json!({ "run_id": { "a": 1 } }),
        json!({ "repository": null }),
        json!({ "repository": "x".repeat(300) }),
        json!({ "repository": "a\u{1b}[2J" }),
    ] {
        let token = stage.issuer.sign(&stage.claims_but(changes.clone()));
        assert_eq!(stage.broker.exchange(&token).await.reason(), "unusable-claims", "{changes}");
    }
}

// --- the issuer's keys

#[tokio::test]
async fn keys_are_asked_for_once_and_new_ones_when_they_come() {
    let stage = Stage::new().await;
    stage.task_token(&stage.claims()).await;
    stage.task_token(&stage.claims()).await;
    assert_eq!(stage.issuer.asked(), 1);
    // The issuer rotates: both keys are there for a while.
    let new = SigningKey::rsa("key-2");
    stage.issuer.publish(Publishes::Keys(vec![stage.issuer.key.jwk(), new.jwk()]));
    stage.broker.clock.advance(Duration::seconds(31));
    let answer = stage.broker.exchange(&new.sign(&new.header(), &stage.claims())).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    stage.task_token(&stage.claims()).await;
    assert_eq!(stage.issuer.asked(), 2);
    // What the issuer took away is not believed beyond the hour for which keys are kept.
    stage.issuer.publish(Publishes::Keys(vec![new.jwk()]));
    stage.broker.clock.advance(Duration::HOUR);
    assert_eq!(stage.broker.exchange(&stage.token()).await.reason(), "unknown-key");
}

#[tokio::test]
async fn keys_of_before_count_for_a_day_when_the_issuer_is_away_and_then_nothing_does() {
    let stage = Stage::new().await;
    stage.task_token(&stage.claims()).await;
    stage.issuer.publish(Publishes::Status(500));
    stage.broker.clock.advance(Duration::hours(23));
    stage.task_token(&stage.claims()).await;
    let unknown = SigningKey::rsa("key-2");
    let answer = stage.broker.exchange(&unknown.sign(&unknown.header(), &stage.claims())).await;
    let away = (StatusCode::SERVICE_UNAVAILABLE, "/problems/issuer-unavailable");
    assert_eq!((answer.status, answer.problem()), away, "it may be new");
    stage.broker.clock.advance(Duration::hours(1));
    let answer = stage.broker.exchange(&stage.token()).await;
    assert_eq!((answer.status, answer.problem()), away);
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn what_is_no_key_set_gives_no_key() {
    for answer in [
        Publishes::Nothing,
        Publishes::Text("<html>".into()),
        Publishes::Text("[".repeat(300_000)),
        Publishes::Status(404),
        Publishes::Redirect("http://127.0.0.1:1/keys".into()),
    ] {
        let stage = Stage::new().await;
        stage.issuer.publish(answer);
        let refused = stage.broker.exchange(&stage.token()).await;
        assert_eq!(refused.problem(), "/problems/issuer-unavailable", "{}", refused.body);
    }
}

#[tokio::test]
async fn a_redirect_to_other_keys_is_not_followed() {
    let stage = Stage::new().await;
    let theirs = FakeIssuer::with(SigningKey::rsa("key-1")).await;
    stage.issuer.publish(Publishes::Redirect(theirs.jwks_uri.clone()));
    let answer =
        stage.broker.exchange(&theirs.key.sign(&theirs.key.header(), &stage.claims())).await;
    assert_eq!((answer.problem(), theirs.asked()), ("/problems/issuer-unavailable", 0));
}

#[tokio::test]
async fn a_key_of_an_unknown_kind_spoils_no_other_and_a_name_that_two_have_is_nobodys() {
    let stage = Stage::new().await;
    let strange = json!({ "kty": "XYZ", "kid": "x", "alg": 7 });
    let encryption = {
        let mut jwk = stage.issuer.key.jwk();
        (jwk["use"], jwk["kid"]) = (json!("enc"), json!("enc"));
        jwk
    };
    stage.issuer.publish(Publishes::Keys(vec![strange, encryption, stage.issuer.key.jwk()]));
    stage.task_token(&stage.claims()).await;
    let mut header = stage.issuer.key.header();
    header["kid"] = json!("enc");
    let answer = stage.broker.exchange(&stage.issuer.key.sign(&header, &stage.claims())).await;
    assert_eq!(answer.reason(), "unknown-key", "a key for encryption signs nothing");

    let twin = SigningKey::rsa("key-1");
    stage.issuer.publish(Publishes::Keys(vec![twin.jwk(), stage.issuer.key.jwk()]));
    stage.broker.clock.advance(Duration::HOUR);
    assert_eq!(stage.broker.exchange(&stage.token()).await.reason(), "unknown-key");
}

#[tokio::test]
async fn keys_may_be_in_a_file() {
    let issuer = FakeIssuer::with(SigningKey::ec("k")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "keys": [issuer.key.jwk()] }).to_string()).unwrap();
    let settings = issuer.settings("").replace(
        &format!("jwks_uri = \"{}\"", issuer.jwks_uri),
        &format!("jwks_file = \"{}\"", file.path().display()),
    );
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    let stage = Stage { issuer, broker, sts };
    stage.task_token(&stage.claims()).await;
    assert_eq!(stage.issuer.asked(), 0);
    // What is taken out of the file is out.
    let other = SigningKey::ec("other");
    std::fs::write(file.path(), json!({ "keys": [other.jwk()] }).to_string()).unwrap();
    stage.broker.clock.advance(Duration::seconds(30));
    assert_eq!(stage.broker.exchange(&stage.token()).await.reason(), "unknown-key");
}

#[tokio::test]
async fn who_is_refused_is_recorded_as_far_as_the_issuer_vouches() {
    let stage = Stage::new().await;
    let stranger = stage.claims_but(json!({ "sub": "repo:mallory/shop:ref:refs/heads/main" }));
    let forged = SigningKey::rsa("key-1");
    stage.refuses(&forged.sign(&forged.header(), &stranger), "bad-signature").await;
    assert_eq!(stage.broker.exchange(&stage.issuer.sign(&stranger)).await.reason(), "not-mapped");
    let told = "select doc #> '{data,detail,issuer}', doc #> '{data,detail,subject}' from event where type = 'auth.rejected' and doc #>> '{data,detail,reason}' = 'bad-signature'";
    assert_eq!(stage.row::<(Option<Value>, Option<Value>)>(told).await, (None, None));
    let told = "select doc #>> '{data,detail,issuer}', doc #>> '{data,detail,subject}' from event where type = 'auth.rejected' and doc #>> '{data,detail,reason}' = 'not-mapped'";
    let (issuer, subject): (String, String) = stage.row(told).await;
    assert_eq!(
        (issuer, &*subject),
        (stage.issuer.name.clone(), "repo:mallory/shop:ref:refs/heads/main")
    );
}

// --- the exchange itself

#[tokio::test]
async fn an_exchange_of_another_kind_is_invalid_and_is_told_without_the_token() {
    let stage = Stage::new().await;
    let token = stage.token();
    let good = exchange_form(&token);
    for form in [
        good.replace("token-exchange", "refresh"),
        good.replace("token-type%3Ajwt", "token-type%3Asaml2"),
        format!("{good}&actor_token=x"),
        format!("subject_token={token}"),
        format!("{{\"subject_token\":\"{token}\"}}"),
        String::new(),
    ] {
        let answer = stage.broker.send_form("/v1/token", form).await;
        assert_eq!(
            (answer.status, answer.problem()),
            (StatusCode::BAD_REQUEST, "/problems/invalid-request")
        );
        assert!(!answer.body.to_string().contains(token.rsplit('.').next().unwrap()));
    }
    let more = format!("{good}&scope=x&resource=y");
    assert_eq!(
        stage.broker.send_form("/v1/token", more).await.status,
        StatusCode::OK,
        "OAuth ignores what it does not know"
    );
}

#[tokio::test]
async fn tokens_of_before_a_key_was_rotated_stay_good_and_those_of_a_key_that_is_gone_do_not() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let (dir, now) = (broker.config_dir.path(), broker.clock.now());
    let pending = broker.pending_lease().await;
    broker.approve(pending, &broker.bob).await;
    std::fs::rename(dir.join("instance.pem"), dir.join("before.pem")).unwrap();
    let new = broker::identity::Tokens::generate_key();
    tests::write_secret(&dir.join("instance.pem"), secrecy::ExposeSecret::expose_secret(&new));
    let settings = std::fs::read_to_string(dir.join("broker.toml")).unwrap();

    let gone = broker.replica(sts.options()).await;
    assert_eq!(gone.get("/v1/whoami").await.status, StatusCode::UNAUTHORIZED);
    std::fs::write(
        dir.join("broker.toml"),
        settings.replace("instance_key", "former_instance_keys = [\"before.pem\"]\ninstance_key"),
    )
    .unwrap();
    let rotated = broker.replica(sts.options()).await;
    assert_eq!(rotated.get("/v1/whoami").await.status, StatusCode::OK);
    assert_eq!(rotated.claim(pending).await.status, StatusCode::OK, "what was signed before");
    let new = start_task(&rotated.database, &rotated.broker.tokens, AGENT, "alice", now).await;
    let send = async |broker: &TestBroker, token: &str| {
        broker.send(Method::GET, "/v1/whoami", Some(token), &[], None).await.status
    };
    assert_eq!(
        (send(&rotated, &new).await, send(&broker, &new).await),
        (StatusCode::OK, StatusCode::UNAUTHORIZED)
    );

    // The approval of before names the key of before, and is sealed by it.
    let approval = rotated.get(&format!("/v1/leases/{pending}/approval")).await;
    let file = format!("{}\n", approval.body);
    let old = broker.broker.tokens.key_id();
    let checked = broker::approval::verify(file.as_bytes(), Some(old));
    assert!(checked.is_ok(), "{checked:?}");
    assert_ne!(rotated.broker.tokens.key_id(), old);
}
