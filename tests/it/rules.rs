//! Scopes and rules in a running broker: what would happen and why, who may decide, and what was in force.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::sts::FakeSts;
use tests::{Setup, TestBroker, production_write};

async fn explain(broker: &TestBroker, body: Value) -> Value {
    let answer = broker.post("/v1/explain", body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body
}

/// Writes one more rule file, and starts another broker on the same database with it.
async fn with_rule(broker: &TestBroker, sts: &FakeSts, rule: &str) -> TestBroker {
    std::fs::write(broker.config_dir.path().join("policies/more.cedar"), rule).unwrap();
    broker.replica(sts.options()).await
}

async fn count(broker: &TestBroker, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.unwrap()
}

#[tokio::test]
async fn an_explanation_says_what_a_request_would_come_to_and_makes_nothing() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;

    let issued = explain(&broker, json!({ "scope": "staging-rw", "deliver": true })).await;
    assert_eq!((&issued["outcome"], &issued["tier"]), (&json!("issued"), &json!("staging-write")));
    assert_eq!(issued["decided_by"], json!(["agents-may-ask"]));
    let deletes =
        json!({ "action": "s3:DeleteObject", "class": "destructive", "any_resource": false });
    assert!(issued["actions"].as_array().unwrap().contains(&deletes), "{issued}");
    let policy: Value = serde_json::from_str(issued["session_policy"].as_str().unwrap()).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");

    let pending = explain(&broker, production_write()).await;
    assert_eq!(
        (&pending["outcome"], &pending["signatures_needed"]),
        (&json!("pending"), &json!(1))
    );
    assert_eq!(
        pending["eligible_signers"],
        json!(["bob", "carol"]),
        "the sponsor is not among them"
    );

    let outside = json!({ "scope": "staging-rw", "resources": ["arn:aws:s3:::prod-app-data/x"] });
    let outside = explain(&broker, outside).await;
    assert_eq!(outside["outcome"], "denied");
    assert!(outside["why"].as_str().unwrap().contains("is not within the scope's resources"));
    assert_eq!(outside["session_policy"], Value::Null);

    let nowhere = explain(&broker, json!({ "scope": "nowhere" })).await;
    assert_eq!((&nowhere["outcome"], &nowhere["tier"]), (&json!("denied"), &Value::Null));

    let vague =
        explain(&broker, json!({ "scope": "prod-rw", "reason": "r", "rollback": "b" })).await;
    assert_eq!(vague["outcome"], "invalid");
    assert!(vague["why"].as_str().unwrap().contains("names its exact actions"), "{vague}");

    let freeze = "insert into \"freeze\" (id, kind, target, reason, created_by, created_at)
                  values (gen_random_uuid(), 'environment', 'staging', 'r', 'carol', now())";
    broker.as_owner(freeze).await;
    let frozen = explain(&broker, json!({ "scope": "staging-rw" })).await;
    assert_eq!(frozen["outcome"], "frozen");

    assert_eq!(count(&broker, "select count(*) from lease").await, 0);
    assert_eq!(count(&broker, "select count(*) from event where type like 'lease%'").await, 0);
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn an_explanation_names_the_rule_that_forbids_and_is_for_agents_whose_task_lives() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let rule = "@id(\"no-destruction\") forbid (principal, action == Action::\"request\", resource) \
                when { context.classes.contains(\"destructive\") };";
    let strict = with_rule(&broker, &sts, rule).await;
    let denied = explain(&strict, json!({ "scope": "staging-rw" })).await;
    assert_eq!(
        (&denied["outcome"], &denied["decided_by"]),
        (&json!("denied"), &json!(["no-destruction"]))
    );
    // The rule is about what is asked for, not about the scope.
    let reads =
        explain(&strict, json!({ "scope": "staging-rw", "actions": ["s3:GetObject"] })).await;
    assert_eq!(reads["outcome"], "issued", "{reads}");
    broker.as_owner("update task set ended_at = started_at").await;
    let ended = broker.post("/v1/explain", json!({ "scope": "staging-rw" })).await;
    assert_eq!(ended.status, StatusCode::UNAUTHORIZED, "{}", ended.body);
}

#[tokio::test]
async fn a_rule_about_signing_holds_when_somebody_signs_and_is_named() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let rule = "@id(\"bob-is-away\") forbid (principal == Person::\"bob\", action == Action::\"sign\", resource) \
                when { context.decision == \"approve\" };";
    let strict = with_rule(&broker, &sts, rule).await;
    let id = strict.pending_lease().await;
    let refused = strict.approve(id, &strict.bob).await;
    assert_eq!((refused.status, refused.reason()), (StatusCode::FORBIDDEN, "forbidden-by-rule"));
    let detail = "select doc #> '{data,detail,decided_by}' from event where type = $1 order by seq desc limit 1";
    let named = async |kind: &'static str| -> Value {
        sqlx::query_scalar(detail).bind(kind).fetch_one(&broker.database.owner).await.unwrap()
    };
    assert_eq!(named("signature.rejected").await, json!(["bob-is-away"]));
    assert_eq!(strict.approve(id, &strict.carol).await.status, StatusCode::OK);
    assert_eq!(named("signature.accepted").await, json!(["signers-may-sign"]));
    assert_eq!(strict.claim(id).await.status, StatusCode::OK);
    assert_eq!(named("session.issuing").await, json!(["agents-may-ask"]));
}

#[tokio::test]
async fn a_rule_about_signing_that_came_later_voids_an_approval_before_it_is_used() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    let rule = "@id(\"not-bob\") forbid (principal == Person::\"bob\", action == Action::\"sign\", resource);";
    let strict = with_rule(&broker, &sts, rule).await;
    let claim = strict.claim(id).await;
    assert_eq!(claim.problem(), "/problems/denied", "{}", claim.body);
    assert_eq!(sts.calls(), 0);
    assert_eq!(
        broker.claim(id).await.status,
        StatusCode::OK,
        "the rule, and nothing else, said no"
    );
}

#[tokio::test]
async fn without_rules_nobody_may_do_anything() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    for file in ["agents.cedar", "people.cedar"] {
        std::fs::remove_file(broker.config_dir.path().join("policies").join(file)).unwrap();
    }
    let bare = broker.replica(sts.options()).await;
    let asked = bare.post("/v1/leases", json!({ "scope": "staging-ro" })).await;
    assert_eq!((asked.status, asked.problem()), (StatusCode::FORBIDDEN, "/problems/denied"));
    assert!(asked.body["detail"].as_str().unwrap().contains("no rule allows it"));
    assert_eq!(bare.approve(id, &bare.bob).await.reason(), "forbidden-by-rule");
    let scopes = bare.get("/v1/scopes").await;
    assert_eq!(scopes.body["scopes"], json!([]));
}

#[tokio::test]
async fn who_reads_everything_is_for_rules_to_say() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    broker.staging_lease().await;
    let read = async |broker: &TestBroker| {
        let nonce = broker.send(Method::POST, "/v1/login/nonce", None, &[], Some(json!({}))).await;
        let nonce = nonce.body["nonce"].as_str().unwrap().to_owned();
        let signed = json!({ "nonce": nonce, "signature": broker.carol.sign_login(&nonce) });
        let login = broker.send(Method::POST, "/v1/login", None, &[], Some(signed)).await;
        let token = login.body["token"].as_str();
        let answer = broker.send(Method::GET, "/v1/leases", token, &[], None).await;
        answer.body["leases"].as_array().unwrap().len()
    };
    assert_eq!(read(&broker).await, 1, "carol is in ops");
    let rule = "@id(\"closed\") forbid (principal, action == Action::\"read_history\", resource);";
    let closed = with_rule(&broker, &sts, rule).await;
    assert_eq!(read(&closed).await, 0);
}

#[tokio::test]
async fn what_was_in_force_is_kept_whole_under_the_digest_that_leases_name() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    broker.staging_lease().await;
    let rule =
        "@id(\"more\") permit (principal is Agent, action == Action::\"request\", resource);";
    let changed = with_rule(&broker, &sts, rule).await;
    changed.staging_lease().await;
    changed.staging_lease().await;

    let sql = "select l.rules_sha256, r.scopes, r.policies from lease_history l join rulesets r on r.sha256 = l.rules_sha256 order by l.requested_at, l.id";
    let kept: Vec<(String, String, Value)> =
        sqlx::query_as(sql).fetch_all(&broker.database.owner).await.unwrap();
    assert_eq!(kept.len(), 3, "each lease names one that is kept");
    assert_eq!(kept[0].0, broker.broker.config.sha256);
    assert_eq!(kept[2].0, changed.broker.config.sha256);
    let scopes = std::fs::read_to_string(broker.config_dir.path().join("scopes.toml")).unwrap();
    assert_eq!(kept[0].1, scopes);
    assert_eq!((kept[0].2.get("more.cedar"), &kept[2].2["more.cedar"]), (None, &json!(rule)));
    let told = "select count(*) from event where type = 'ruleset.in-force'";
    assert_eq!(count(&broker, told).await, 2, "once each");

    for forbidden in
        ["update ruleset set content = 'x'", "delete from ruleset", "truncate ruleset cascade"]
    {
        let error = sqlx::raw_sql(forbidden).execute(&broker.database.owner).await.unwrap_err();
        assert!(error.to_string().contains("never changed or removed"), "{error}");
    }
    let unkept = "insert into lease (id, request_sha256, agent, sponsor, task_id, task, scope, actions, resources, rules_sha256, decided_by,
                                     signatures_needed, eligible_signers, state, requested_at, ended_at, end_reason)
                  select gen_random_uuid(), request_sha256, agent, sponsor, task_id, task, scope, '{}', '{}', 'made up', '{}',
                         0, '{}', 'denied', requested_at, requested_at, 'x' from lease limit 1";
    let error = sqlx::raw_sql(unkept).execute(&broker.database.owner).await.unwrap_err();
    assert!(error.to_string().contains("lease_rules_are_kept"), "{error}");
}

#[tokio::test]
async fn classes_can_be_made_stricter_for_an_installation() {
    let sts = FakeSts::start().await;
    let scopes = include_str!("../../config/scopes.toml")
        .replace("assurance = \"present\"", "assurance = \"verified\"")
        + "\n[stricter]\n\"s3:PutObject\" = \"destructive\"\n";
    let broker = TestBroker::new(Setup { scopes: Some(scopes), ..Setup::fake(&sts) }).await;
    let explained = explain(&broker, production_write()).await;
    assert_eq!(explained["tier"], "destructive");
    assert_eq!(explained["tier_because"], "s3:PutObject is destructive in production");
}

#[tokio::test]
async fn a_rule_may_count_what_the_agent_had() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let rule = "@id(\"one-at-a-time\") forbid (principal, action == Action::\"request\", resource) \
                when { 1 <= context.usage.live_leases };";
    let counting = with_rule(&broker, &sts, rule).await;
    let first = counting.staging_lease().await;
    assert_eq!(counting.claim(first).await.status, StatusCode::OK, "a lease is not in its own way");
    let second = counting.post("/v1/leases", json!({ "scope": "staging-ro" })).await;
    assert_eq!((second.status, second.problem()), (StatusCode::FORBIDDEN, "/problems/denied"));
    assert!(second.body["detail"].as_str().unwrap().contains("one-at-a-time"), "{}", second.body);
    assert_eq!(
        broker.post("/v1/leases", json!({ "scope": "staging-ro" })).await.status,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn an_explanation_says_when_a_budget_will_have_room_and_uses_nothing_up() {
    let sts = FakeSts::start().await;
    let settings = "[limits.agent]\nrequests_per_minute = 1\n".to_owned();
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    for _ in 0..3 {
        assert_eq!(explain(&broker, json!({ "scope": "staging-rw" })).await["outcome"], "issued");
    }
    broker.staging_lease().await;
    let over = explain(&broker, json!({ "scope": "staging-rw" })).await;
    assert_eq!(
        (&over["outcome"], &over["retry_at"]),
        (&json!("over-budget"), &json!("2026-01-01T12:01:00Z"))
    );
    assert_eq!(
        count(&broker, "select count(*) from event where type = 'budget.exceeded'").await,
        0
    );
}

#[tokio::test]
async fn a_rule_about_the_sponsors_groups_holds() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let rule = "@id(\"no-contractors\") forbid (principal is Agent, action == Action::\"request\", resource is Scope) \
                when { principal.sponsor in Group::\"contractors\" };";
    let strict = with_rule(&broker, &sts, rule).await;
    assert_eq!(
        strict.post("/v1/leases", json!({ "scope": "staging-rw" })).await.status,
        StatusCode::CREATED
    );
    let join = "update person set groups = groups || '{contractors}' where handle = 'alice'";
    sqlx::query(join).execute(&broker.database.owner).await.unwrap();
    let denied = strict.post("/v1/leases", json!({ "scope": "staging-rw" })).await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN, "{}", denied.body);
    assert!(denied.body["detail"].as_str().unwrap().contains("no-contractors"));
}
