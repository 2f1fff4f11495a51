//! The agent's path: asking, narrowing, claiming, and what it may not do.

use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use axum::http::{Method, StatusCode};
use broker::identity::TaskGrant;
use secrecy::ExposeSecret;
use serde_json::json;
use tests::sts::FakeSts;
use tests::{
    AGENT, Answer, PRODUCTION_OBJECT, STAGING_OBJECT, Setup, TestBroker, production_write,
    start_task,
};
use time::Duration;

#[tokio::test]
async fn a_staging_lease_comes_at_once_and_with_credentials_on_request() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let plain = broker
        .post("/v1/leases", json!({ "scope": "staging-rw", "task": "T-9", "reason": "try" }))
        .await;
    assert_eq!(plain.status, StatusCode::CREATED);
    assert_eq!(plain.body["state"], "approved");
    assert_eq!(plain.body["task"], "T-9");
    assert!(plain.body.get("credentials").is_none());
    assert_eq!(sts.calls(), 0, "nobody asked for credentials");

    let full = broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true })).await;
    assert_eq!(full.status, StatusCode::CREATED, "{}", full.body);
    assert_eq!(full.body["state"], "issued");
    assert_eq!(full.body["credentials"]["access_key_id"], "ASIAFAKEFAKE00000000");
    assert_eq!(
        broker.events(full.id()).await,
        ["lease.approved", "session.issuing", "session.issued", "lease.issued"]
    );
}

#[tokio::test]
async fn sts_is_asked_for_exactly_what_was_narrowed() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let body = json!({
        "scope": "staging-rw", "task": "T-9", "deliver": true, "ttl_seconds": 7200,
        "actions": ["S3:getobject"], "resources": [STAGING_OBJECT],
    });
    let lease = broker.post("/v1/leases", body).await;
    assert_eq!(lease.status, StatusCode::CREATED, "{}", lease.body);
    let asked = sts.last_request();
    let id = lease.id().to_string();
    assert_eq!(asked["RoleArn"], "arn:aws:iam::000000000000:role/broker-staging");
    assert_eq!(asked["DurationSeconds"], "3600", "role chaining caps at an hour");
    assert_eq!(asked["SourceIdentity"], id);
    assert_eq!(asked["ExternalId"], tests::stack::shared().external_id);
    let suffix =
        asked["RoleSessionName"].strip_prefix(&format!("{id}-")).expect("begins with the lease id");
    assert_eq!(suffix.len(), 8, "random letters that no policy can name beforehand");
    assert_eq!(
        asked["Policy"],
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:GetObject"],"Resource":["{STAGING_OBJECT}"],"Condition":{{"DateLessThan":{{"aws:CurrentTime":"2026-01-01T14:00:00Z"}},"StringEquals":{{"aws:RequestedRegion":"us-east-1","aws:ResourceAccount":"000000000000"}}}}}}]}}"#
        )
    );
    let tags: Vec<_> = (1..=4)
        .map(|at| {
            (
                asked[&format!("Tags.member.{at}.Key")].as_str(),
                asked[&format!("Tags.member.{at}.Value")].as_str(),
            )
        })
        .collect();
    let expected = [
        ("broker:agent", AGENT),
        ("broker:scope", "staging-rw"),
        ("broker:sponsor", "alice"),
        ("broker:task", "T-9"),
    ];
    assert_eq!(tags, expected);
}

#[tokio::test]
async fn an_sdk_works_with_what_the_emulators_sts_minted() {
    let broker = TestBroker::new(Setup::real()).await;
    let body = json!({ "scope": "staging-ro", "task": "T-9", "deliver": true });
    let lease = broker.post("/v1/leases", body).await;
    assert_eq!(lease.status, StatusCode::CREATED, "{}", lease.body);
    let of = |name: &str| lease.body["credentials"][name].as_str().expect(name).to_owned();
    let credentials = Credentials::new(
        of("access_key_id"),
        of("secret_access_key"),
        Some(of("session_token")),
        None,
        "leased",
    );
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(of("region")))
        .endpoint_url(&tests::stack::shared().endpoint)
        .credentials_provider(credentials)
        .build();
    let who = aws_sdk_sts::Client::from_conf(config).get_caller_identity().send().await.unwrap();
    let session = lease.body["sessions"][0]["session_name"].as_str().unwrap();
    let arn = format!("arn:aws:sts::000000000000:assumed-role/broker-staging/{session}");
    assert_eq!(who.arn(), Some(arn.as_str()));
}

#[tokio::test]
async fn a_production_write_waits_and_no_call_to_sts_is_made() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let body = {
        let mut body = production_write();
        body["deliver"] = json!(true);
        body
    };
    let lease = broker.post("/v1/leases", body).await;
    assert_eq!(lease.status, StatusCode::ACCEPTED);
    assert_eq!(
        lease.body["eligible_signers"],
        json!(["bob", "carol"]),
        "never the sponsor, never dave"
    );
    assert!(
        lease.body["next"].as_str().unwrap().contains(lease.body["short_code"].as_str().unwrap())
    );
    let claim = broker.claim(lease.id()).await;
    assert_eq!((claim.status, claim.problem()), (StatusCode::CONFLICT, "/problems/pending"));
    assert_eq!(claim.body["lease_id"], lease.body["id"]);
    assert_eq!(sts.calls(), 0);
    assert_eq!(broker.sessions(lease.id()).await, [""; 0]);
}

#[tokio::test]
async fn what_does_not_fit_the_scope_is_denied_by_name_and_recorded() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let cases = [
        (
            json!({ "scope": "staging-rw", "resources": ["arn:aws:s3:::prod-app-data/x"] }),
            "arn:aws:s3:::prod-app-data/x is not within",
        ),
        (
            json!({ "scope": "staging-rw", "resources": ["arn:aws:s3:::*"] }),
            "arn:aws:s3:::* is not within",
        ),
        (
            json!({ "scope": "staging-ro", "actions": ["s3:DeleteObject"] }),
            "\"s3:DeleteObject\" is not among",
        ),
        (json!({ "scope": "admin" }), "there is no scope \"admin\""),
    ];
    for (body, why) in cases {
        let answer = broker.post("/v1/leases", body).await;
        assert_eq!((answer.status, answer.problem()), (StatusCode::FORBIDDEN, "/problems/denied"));
        assert!(answer.body["detail"].as_str().unwrap().contains(why), "{}", answer.body);
        assert!(answer.body["next"].as_str().unwrap().contains("ask its sponsor"));
        let id = answer.body["lease_id"].as_str().unwrap().parse().unwrap();
        assert_eq!(broker.state(id).await, "denied");
        assert_eq!(broker.events(id).await, ["lease.denied"]);
    }
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn a_request_that_is_not_one_is_invalid_and_says_what_is_wrong() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let cases = [
        (json!({}), "missing field `scope`"),
        (json!({ "scope": "staging-rw", "tier": "read-only" }), "unknown field `tier`"),
        (json!({ "scope": "staging-rw", "actions": [] }), "empty list"),
        (json!({ "scope": "staging-rw", "ttl_seconds": 60 }), "between 15m and 8h"),
        (json!({ "scope": "staging-rw", "task": "a b" }), "is not a task"),
        (json!({ "scope": "staging-rw", "reason": "x".repeat(1001) }), "at most 1000 characters"),
        (
            json!({ "scope": "staging-rw", "resources": ["arn:aws:s3:::staging-app-data/../x"] }),
            "path segment",
        ),
        (
            json!({ "scope": "prod-rw", "reason": "r", "rollback": "b" }),
            "exact actions and resources",
        ),
        (
            json!({ "scope": "prod-rw", "reason": "r", "rollback": "b", "actions": ["s3:PutObject"], "resources": ["arn:aws:s3:::prod-app-data/*"] }),
            "has a wildcard",
        ),
        (
            json!({ "scope": "prod-rw", "reason": "r", "actions": ["s3:PutObject"], "resources": [PRODUCTION_OBJECT] }),
            "this scope needs a request to say its rollback",
        ),
    ];
    for (body, why) in cases {
        let answer = broker.post("/v1/leases", body).await;
        assert_eq!(
            (answer.status, answer.problem()),
            (StatusCode::BAD_REQUEST, "/problems/invalid-request")
        );
        assert!(answer.body["detail"].as_str().unwrap().contains(why), "{}", answer.body);
    }
    let huge = broker.post("/v1/leases", json!({ "scope": "x".repeat(70_000) })).await;
    assert_eq!(
        (huge.status, huge.problem()),
        (StatusCode::PAYLOAD_TOO_LARGE, "/problems/too-large")
    );
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn the_same_key_and_request_give_the_same_lease_and_another_request_does_not() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let ask = async |token: &str, body| {
        broker
            .send(
                Method::POST,
                "/v1/leases",
                Some(token),
                &[("idempotency-key", "k-1")],
                Some(body),
            )
            .await
    };
    let body = json!({ "scope": "staging-rw", "deliver": true });
    let first = ask(&broker.token, body.clone()).await;
    let again = ask(&broker.token, body.clone()).await;
    assert_eq!(first.id(), again.id());
    assert_eq!(
        again.body["credentials"]["session_token"], first.body["credentials"]["session_token"],
        "the live session is handed out again"
    );
    assert_eq!(sts.calls(), 1);
    let other = ask(&broker.token, json!({ "scope": "staging-ro", "deliver": true })).await;
    assert_eq!((other.status.as_u16(), other.problem()), (422, "/problems/idempotency-mismatch"));

    // Another agent's key is another key.
    let stranger = start_task(
        &broker.database,
        &broker.broker.tokens,
        "other-agent",
        "alice",
        broker.clock.now(),
    )
    .await;
    assert_ne!(ask(&stranger, body).await.id(), first.id());
}

#[tokio::test]
async fn nobody_elses_lease_is_there_for_an_agent() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    let tokens = &broker.broker.tokens;
    let now = broker.clock.now();
    // Another agent of the same sponsor, and an agent of the same name of another sponsor.
    for (agent, sponsor) in [("other-agent", "alice"), (AGENT, "bob")] {
        let token = start_task(&broker.database, tokens, agent, sponsor, now).await;
        let send = async |method, path: &str, body| {
            broker.send(method, path, Some(&token), &[], body).await
        };
        for (method, path) in [
            (Method::GET, format!("/v1/leases/{id}")),
            (Method::POST, format!("/v1/leases/{id}/credentials")),
            (Method::GET, format!("/v1/leases/{id}/statement")),
        ] {
            let answer = send(method, &path, None).await;
            assert_eq!(
                (answer.status, answer.problem()),
                (StatusCode::NOT_FOUND, "/problems/not-found"),
                "{path}"
            );
        }
        let withdraw =
            send(Method::POST, &format!("/v1/leases/{id}/withdraw"), Some(json!({}))).await;
        assert_eq!(withdraw.status, StatusCode::NOT_FOUND);
        assert_eq!(send(Method::GET, "/v1/leases", None).await.body["leases"], json!([]));
    }
    assert_eq!(broker.state(id).await, "approved");
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn a_token_is_good_only_while_its_task_and_its_sponsor_are() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    for (end, mend) in [
        (
            "update task set ended_at = started_at",
            "alter table task disable trigger task_guard; update task set ended_at = null",
        ),
        (
            "update person set disabled_at = created_at where handle = 'alice'",
            "update person set disabled_at = null",
        ),
    ] {
        broker.as_owner(end).await;
        let request =
            broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true })).await;
        for answer in [
            request,
            broker.claim(id).await,
            broker.get("/v1/scopes").await,
            broker.get("/v1/whoami").await,
        ] {
            assert_eq!(
                (answer.status, answer.problem()),
                (StatusCode::UNAUTHORIZED, "/problems/unauthenticated"),
                "{end}"
            );
        }
        broker.as_owner(mend).await;
    }
    assert_eq!(sts.calls(), 0);
    broker.clock.advance(Duration::hours(9));
    assert_eq!(broker.get("/v1/whoami").await.status, StatusCode::UNAUTHORIZED, "expired");
}

#[tokio::test]
async fn a_live_session_is_handed_out_again_until_shortly_before_its_end() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let answer =
        broker.post("/v1/leases", json!({ "scope": "staging-rw", "ttl_seconds": 7200 })).await;
    let id = answer.id();
    let first = broker.claim(id).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.body);
    let again = broker.claim(id).await;
    let session = |it: &Answer| {
        json!([it.body["session_id"], it.body["session_token"], it.body["expires_at"]])
    };
    assert_eq!(session(&again), session(&first), "{}", again.body);
    assert_eq!(sts.calls(), 1);
    assert_eq!(broker.events(id).await.last().unwrap(), "session.redelivered");

    // Five minutes before the session's end the agent gets another session of the same lease.
    broker.clock.advance(Duration::minutes(56));
    sts.set(tests::sts::Mood::Good { now: broker.clock.now() });
    let fresh = broker.claim(id).await;
    assert_eq!(fresh.status, StatusCode::OK, "{}", fresh.body);
    assert_ne!(fresh.body["access_key_id"], first.body["access_key_id"]);
    assert_eq!(sts.calls(), 2);
    assert_eq!(broker.sessions(id).await, ["live", "live"]);
}

#[tokio::test]
async fn credentials_end_when_the_window_does_however_long_their_session_lasts() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let lease = broker.staging_lease().await;
    let ends = broker.get(&format!("/v1/leases/{lease}")).await.body["ends_at"].clone();
    broker.clock.advance(Duration::minutes(4));
    sts.set(tests::sts::Mood::Good { now: broker.clock.now() });
    for _ in 0..2 {
        let claimed = broker.claim(lease).await;
        assert_eq!(claimed.body["expires_at"], ends, "{}", claimed.body);
    }
    let sql = "select expires_at from session where lease_id = $1";
    let session: time::OffsetDateTime =
        sqlx::query_scalar(sql).bind(lease.0).fetch_one(&broker.database.owner).await.unwrap();
    assert_eq!(session, broker.clock.now() + Duration::minutes(15), "what AWS says is recorded");
}

#[tokio::test]
async fn an_agent_takes_back_what_it_has_not_used() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    for id in [broker.staging_lease().await, broker.pending_lease().await] {
        let answer = broker
            .post(&format!("/v1/leases/{id}/withdraw"), json!({ "reason": "not needed" }))
            .await;
        assert_eq!((answer.status, &answer.body["state"]), (StatusCode::OK, &json!("withdrawn")));
        assert_eq!(answer.body["end_reason"], "not needed");
        let claim = broker.claim(id).await;
        assert_eq!((claim.problem(), claim.reason()), ("/problems/ended", "withdrawn"));
        let again = broker.post(&format!("/v1/leases/{id}/withdraw"), json!({})).await;
        assert_eq!(again.problem(), "/problems/ended");
    }
    let used = broker.staging_lease().await;
    broker.claim(used).await;
    let answer = broker.post(&format!("/v1/leases/{used}/withdraw"), json!({})).await;
    assert_eq!(answer.problem(), "/problems/already-issued");
}

#[tokio::test]
async fn a_claim_and_a_request_stop_at_a_freeze_of_any_kind() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    let used = broker.staging_lease().await;
    assert_eq!(broker.claim(used).await.status, StatusCode::OK);
    let calls = sts.calls();
    for (kind, target) in [
        ("all", None),
        ("agent", Some(AGENT)),
        ("sponsor", Some("alice")),
        ("scope", Some("staging-rw")),
        ("environment", Some("staging")),
    ] {
        let freeze = sqlx::query(
            "insert into \"freeze\" (id, kind, target, reason, created_by, created_at) values (gen_random_uuid(), $1, $2, 'test', 'carol', now())",
        );
        freeze.bind(kind).bind(target).execute(&broker.database.owner).await.unwrap();
        // The third has a live session in memory: it is not handed out again either.
        for answer in [
            broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true })).await,
            broker.claim(id).await,
            broker.claim(used).await,
        ] {
            assert_eq!(
                (answer.status, answer.problem()),
                (StatusCode::FORBIDDEN, "/problems/frozen"),
                "{kind}"
            );
        }
        broker.thaw().await;
    }
    // Freezes of others do not matter.
    broker.as_owner("insert into \"freeze\" (id, kind, target, reason, created_by, created_at) values (gen_random_uuid(), 'agent', 'somebody-else', 'test', 'carol', now())").await;
    assert_eq!(sts.calls(), calls);
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
}

#[tokio::test]
async fn rules_that_became_stricter_stop_a_claim() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let (unsigned, signed) = (broker.staging_lease().await, broker.pending_lease().await);
    assert_eq!(broker.approve(signed, &broker.bob).await.status, StatusCode::OK);
    let scopes = broker.config_dir.path().join("scopes.toml");
    let before = std::fs::read_to_string(&scopes).unwrap();
    let rules = broker.config_dir.path().join("policies/more.cedar");

    let stricter = before
        .replace("\"s3:PutObject\", \"s3:DeleteObject\"]", "\"s3:PutObject\"]")
        .replace("assurance = \"present\" }", "count = 2 }");
    std::fs::write(&scopes, stricter).unwrap();
    let replica = broker.replica(sts.options()).await;
    for id in [unsigned, signed] {
        let claim = replica.claim(id).await;
        assert_eq!(claim.problem(), "/problems/denied", "{}", claim.body);
        assert_eq!(claim.reason(), "no-longer");
        assert!(claim.body["next"].as_str().unwrap().contains("--new"), "{}", claim.body);
        let detail = claim.body["detail"].as_str().unwrap();
        let why = if id == signed { "approvals do not count" } else { "the rules have changed" };
        assert!(detail.contains(why), "{detail}");
    }

    std::fs::write(&scopes, before).unwrap();
    std::fs::write(&rules, "@id(\"holiday\") forbid (principal, action, resource);").unwrap();
    let replica = broker.replica(sts.options()).await;
    assert_eq!(replica.claim(unsigned).await.problem(), "/problems/denied");
    assert_eq!(sts.calls(), 0);

    std::fs::remove_file(&rules).unwrap();
    let replica = broker.replica(sts.options()).await;
    assert_eq!(replica.claim(unsigned).await.status, StatusCode::OK);
    assert_eq!(replica.claim(signed).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_rule_about_the_window_holds_at_claim_too() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let ask = async |seconds: u32| {
        broker
            .post("/v1/leases", json!({ "scope": "staging-rw", "ttl_seconds": seconds }))
            .await
            .id()
    };
    let (short, long) = (ask(900).await, ask(28_800).await);
    let rule = "@id(\"at-most-an-hour\") forbid (principal, action == Action::\"request\", resource) when { context.ttl_seconds > 3600 };";
    std::fs::write(broker.config_dir.path().join("policies/more.cedar"), rule).unwrap();
    let replica = broker.replica(sts.options()).await;
    let refused = replica.claim(long).await;
    assert_eq!(refused.problem(), "/problems/denied");
    assert!(refused.body["detail"].as_str().unwrap().contains("forbidden by at-most-an-hour"));
    assert_eq!(replica.claim(short).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_lease_is_its_tasks_and_ends_with_it() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    let tokens = &broker.broker.tokens;
    let other = start_task(&broker.database, tokens, AGENT, "alice", broker.clock.now()).await;
    let path = format!("/v1/leases/{id}/credentials");
    let claim = async || broker.send(Method::POST, &path, Some(&other), &[], None).await;
    let answer = claim().await;
    assert_eq!(answer.problem(), "/problems/denied");
    assert!(answer.body["detail"].as_str().unwrap().contains("another task"));
    // Nor is the live session of the one handed to the other.
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    assert_eq!(claim().await.problem(), "/problems/denied");
    assert_eq!(sts.calls(), 1);
}

#[tokio::test]
async fn a_token_that_names_anothers_task_is_not_good() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let task: uuid::Uuid =
        sqlx::query_scalar("select id from task").fetch_one(&broker.database.owner).await.unwrap();
    let expires_at = broker.clock.now() + Duration::HOUR;
    for (agent, sponsor) in [("other-agent", "alice"), (AGENT, "carol")] {
        let grant = TaskGrant { id: task, agent, sponsor, task: "T-1", expires_at };
        let token = broker.broker.tokens.task_token(grant, broker.clock.now());
        let body = Some(json!({ "scope": "staging-rw" }));
        let answer =
            broker.send(Method::POST, "/v1/leases", Some(token.expose_secret()), &[], body).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn letters_that_nothing_can_carry_are_refused_before_anything_is_written() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    for body in [
        json!({ "scope": "staging-rw", "reason": "a\u{0}b" }),
        json!({ "scope": "st\u{0}" }),
        json!({ "scope": "none", "reason": "x".repeat(1001) }),
        json!({ "scope": "none", "actions": ["x".repeat(3000)] }),
        json!({ "scope": "none", "task": "\u{1b}[2J" }),
        json!({ "scope": "none", "actions": ["\u{1b}[2J"] }),
    ] {
        let answer = broker.post("/v1/leases", body).await;
        assert_eq!(answer.problem(), "/problems/invalid-request", "{}", answer.body);
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from lease")
        .fetch_one(&broker.database.owner)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn the_same_request_again_is_answered_at_the_limit_too() {
    let sts = FakeSts::start().await;
    let settings = "[limits]\nagent.requests_per_minute = 1\n".to_owned();
    let broker = TestBroker::new(Setup { settings, ..Setup::fake(&sts) }).await;
    let ask = async || {
        let body = Some(json!({ "scope": "staging-rw" }));
        broker
            .send(
                Method::POST,
                "/v1/leases",
                Some(&broker.token),
                &[("idempotency-key", "k")],
                body,
            )
            .await
    };
    let first = ask().await;
    assert_eq!(ask().await.id(), first.id());
    assert_eq!(
        broker.post("/v1/leases", json!({ "scope": "staging-rw" })).await.problem(),
        "/problems/over-budget"
    );
}

#[tokio::test]
async fn lists_come_in_pages_newest_first() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, broker.staging_lease().await.to_string());
    }
    let list = |page: &tests::Answer| {
        page.body["leases"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let first = broker.get("/v1/leases?limit=3").await;
    assert_eq!(list(&first), ids[..3]);
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let second = broker.get(&format!("/v1/leases?limit=3&after={cursor}")).await;
    assert_eq!(list(&second), ids[3..]);
    assert!(second.body["next_cursor"].is_null());
    assert_eq!(broker.get("/v1/leases?state=pending").await.body["leases"], json!([]));
    assert_eq!(broker.get("/v1/leases?state=gone").await.problem(), "/problems/invalid-request");
}
