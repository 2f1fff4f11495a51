//! The human's path: whose signature counts, over what, and when. Each refusal has its reason and its record.

use axum::http::{Method, StatusCode};
use broker::lease::LeaseId;
use broker::statement::Meaning;
use serde_json::json;
use tests::keys::{Key, SoftPasskey};
use tests::sts::{FakeSts, Mood};
use tests::{Answer, Setup, TestBroker, enrol, production_write};
use time::Duration;

fn rejected(answer: &Answer, reason: &str) {
    assert_eq!(
        (answer.status, answer.problem()),
        (StatusCode::FORBIDDEN, "/problems/signature-rejected"),
        "{}",
        answer.body
    );
    assert_eq!(answer.reason(), reason);
    assert!(answer.body["next"].is_string());
}

/// The reasons of recorded rejections, in order.
async fn recorded(broker: &TestBroker, id: LeaseId) -> Vec<String> {
    let sql = "select doc #>> '{data,detail,reason}' from event where lease_id = $1 and type = 'signature.rejected' order by seq";
    sqlx::query_scalar(sql).bind(id.0).fetch_all(&broker.database.owner).await.unwrap()
}

#[tokio::test]
async fn one_eligible_person_approves_and_the_agent_claims_once() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let approved = broker.approve(id, &broker.bob).await;
    assert_eq!(
        (approved.status, &approved.body["state"]),
        (StatusCode::OK, &json!("approved")),
        "{}",
        approved.body
    );
    assert_eq!(sts.calls(), 0, "a signature mints nothing");
    let claim = broker.claim(id).await;
    assert_eq!(claim.status, StatusCode::OK, "{}", claim.body);
    assert_eq!(sts.last_request()["DurationSeconds"], "900");
    assert!(!sts.last_request()["Policy"].contains("CurrentTime"));
    assert_eq!(
        broker.events(id).await,
        [
            "lease.pending",
            "signature.accepted",
            "lease.approved",
            "session.issuing",
            "session.issued",
            "lease.issued"
        ]
    );
    // Elsewhere, where the live session is not in memory, there is no second mint.
    let replica = broker.replica(sts.options()).await;
    let second = replica.claim(id).await;
    assert_eq!(
        (second.status, second.problem()),
        (StatusCode::CONFLICT, "/problems/already-issued")
    );
    assert_eq!(sts.calls(), 1);
}

#[tokio::test]
async fn the_sponsor_a_bystander_and_a_stranger_are_refused_each_with_a_reason() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    rejected(&broker.approve(id, &broker.alice).await, "sponsor");
    rejected(&broker.approve(id, &broker.dave).await, "not-eligible");
    rejected(&broker.approve(id, &Key::software()).await, "unknown-key");
    // The sponsor's voice does not count against the agent either.
    let refusal = broker.alice.sign("refuse", &broker.statement(id).await);
    rejected(&broker.send_signature(id, "refuse", &refusal).await, "sponsor");
    assert_eq!(broker.state(id).await, "pending");
    assert_eq!(recorded(&broker, id).await, ["sponsor", "not-eligible", "unknown-key", "sponsor"]);
}

#[tokio::test]
async fn a_signature_over_anything_else_does_not_count() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let (id, other) = (broker.pending_lease().await, broker.pending_lease().await);
    let statement = broker.statement(id).await;
    let approve = async |signature: &str| broker.send_signature(id, "approve", signature).await;

    let mut changed = statement.clone();
    let at = changed.windows(8).position(|it| it == b"app.json").unwrap();
    changed[at] = b'A';
    rejected(&approve(&broker.bob.sign("approve", &changed)).await, "not-this-statement");
    rejected(
        &approve(&broker.bob.sign("approve", &broker.statement(other).await)).await,
        "not-this-statement",
    );
    rejected(&approve(&broker.bob.sign("refuse", &statement)).await, "wrong-namespace");
    rejected(&approve(&broker.bob.sign_as("git", &statement)).await, "wrong-namespace");
    rejected(
        &approve(&broker.bob.sign_as("lease-approval@broker", &statement)).await,
        "not-this-statement",
    );
    rejected(
        &approve(
            &broker
                .bob
                .sign_as("lease-approval@broker", &Meaning::LeaseRefusal.message(&statement)),
        )
        .await,
        "not-this-statement",
    );
    rejected(
        &approve(&broker.bob.sign_as("lease-approval@broker", b"")).await,
        "not-this-statement",
    );
    rejected(&approve("bob says yes").await, "malformed");
    // The bytes the signer says they saw are not the stored ones.
    let body = json!({ "decision": "approve", "signature": broker.bob.sign("approve", &statement), "statement_sha256": "00".repeat(32) });
    let sent = broker
        .send(Method::POST, &format!("/v1/leases/{id}/signatures"), None, &[], Some(body))
        .await;
    rejected(&sent, "not-this-statement");
    // A good approval of one lease, replayed on another.
    let good = broker.bob.sign("approve", &statement);
    rejected(&broker.send_signature(other, "approve", &good).await, "not-this-statement");
    assert_eq!(broker.state(id).await, "pending");
    // What is the same is told once, and then as a number.
    let told = ["not-this-statement", "wrong-namespace", "malformed"];
    assert_eq!(recorded(&broker, id).await, told);
    broker.clock.advance(Duration::MINUTE);
    broker.broker.tell_refusals().await;
    let sql = "select sum(coalesce((doc #>> '{data,detail,count}')::int, 1)) from event where lease_id = $1 and type = 'signature.rejected'";
    let all: i64 =
        sqlx::query_scalar(sql).bind(id.0).fetch_one(&broker.database.owner).await.unwrap();
    assert_eq!(all, 9);
    assert_eq!(approve(&good).await.status, StatusCode::OK, "the control");
    assert_eq!(broker.state(other).await, "pending");
}

#[tokio::test]
async fn once_is_enough_and_late_is_too_late() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    rejected(&broker.approve(id, &broker.bob).await, "already-signed");
    rejected(&broker.approve(id, &broker.carol).await, "not-pending");

    let late = broker.pending_lease().await;
    broker.clock.advance(Duration::minutes(30) + Duration::SECOND);
    rejected(&broker.approve(late, &broker.bob).await, "too-late");
    broker.broker.sweep().await.unwrap();
    assert_eq!(broker.state(late).await, "lapsed");
    rejected(&broker.approve(late, &broker.bob).await, "too-late");
    assert_eq!(broker.claim(late).await.reason(), "lapsed");
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn a_refusal_ends_the_request() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let signature = broker.carol.sign("refuse", &broker.statement(id).await);
    let body = json!({ "decision": "refuse", "signature": signature, "reason": "not on a Friday" });
    let path = format!("/v1/leases/{id}/signatures");
    let refused = broker.send(Method::POST, &path, None, &[], Some(body)).await;
    assert_eq!((refused.status, &refused.body["state"]), (StatusCode::OK, &json!("refused")));
    let claim = broker.claim(id).await;
    assert_eq!((claim.status, claim.problem()), (StatusCode::CONFLICT, "/problems/refused"));
    rejected(&broker.approve(id, &broker.bob).await, "not-pending");
    assert_eq!(sts.calls(), 0);
    let shown = broker.get(&format!("/v1/leases/{id}")).await;
    assert_eq!(shown.body["end_reason"], "not on a Friday");
}

#[tokio::test]
async fn two_signatures_are_two_people_whatever_keys_they_hold() {
    let sts = FakeSts::start().await;
    let scopes = include_str!("../../config/scopes.toml")
        .replace("assurance = \"present\" }", "count = 2 }");
    let broker = TestBroker::new(Setup { scopes: Some(scopes), ..Setup::fake(&sts) }).await;
    // Bob's second key.
    let second = enrol(&broker.database, "bob", &[], true, broker.clock.now()).await;
    let id = broker.pending_lease().await;
    let first = broker.approve(id, &broker.bob).await;
    assert_eq!(first.body["state"], "pending");
    rejected(&broker.approve(id, &second).await, "already-signed");
    assert_eq!(broker.claim(id).await.problem(), "/problems/pending");
    let last = broker.approve(id, &broker.carol).await;
    assert_eq!(last.body["state"], "approved");
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    assert_eq!(sts.calls(), 1);
}

#[tokio::test]
async fn a_scope_that_nobody_could_sign_is_denied_and_does_not_wait_for_nobody() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    broker
        .as_owner("update person set disabled_at = created_at where handle in ('bob', 'carol')")
        .await;
    let answer = broker.post("/v1/leases", production_write()).await;
    assert_eq!(answer.problem(), "/problems/denied");
    assert!(
        answer.body["detail"].as_str().unwrap().contains("0 people could sign"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn a_signer_who_is_no_longer_good_does_not_count_when_signing_or_claiming() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    broker.as_owner("update person set groups = '{}' where handle = 'bob'").await;
    rejected(&broker.approve(id, &broker.bob).await, "not-eligible");
    broker.as_owner("update person set groups = '{production-signers}', disabled_at = created_at where handle = 'bob'").await;
    rejected(&broker.approve(id, &broker.bob).await, "person-disabled");
    broker.as_owner("update person set disabled_at = null where handle = 'bob'").await;
    broker.as_owner("update person_key set revoked_at = enrolled_at where person = 'bob'").await;
    rejected(&broker.approve(id, &broker.bob).await, "key-revoked");
    broker.as_owner("update person_key set revoked_at = null where person = 'bob'").await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);

    for (spoil, mend) in [
        (
            "update person set disabled_at = created_at where handle = 'bob'",
            "update person set disabled_at = null",
        ),
        (
            "update person_key set revoked_at = enrolled_at where person = 'bob'",
            "update person_key set revoked_at = null",
        ),
    ] {
        broker.as_owner(spoil).await;
        assert_eq!(broker.claim(id).await.problem(), "/problems/denied", "{spoil}");
        broker.as_owner(mend).await;
    }
    assert_eq!(sts.calls(), 0);
    assert_eq!(broker.claim(id).await.status, StatusCode::OK, "the control");
}

#[tokio::test]
async fn hardware_keys_count_only_with_the_touch_and_pin_that_the_statement_demands() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { software_keys: false, ..Setup::fake(&sts) }).await;
    let ask = |scope: &str, action: &str| {
        let mut body = production_write();
        body["scope"] = json!(scope);
        body["actions"] = json!([action]);
        body
    };
    let write = broker.post("/v1/leases", ask("prod-rw", "s3:PutObject")).await.id();
    let destroy = broker.post("/v1/leases", ask("prod-destructive", "s3:DeleteObject")).await.id();
    let with = |flags| broker.bob.with_flags(flags);
    rejected(&broker.approve(write, &with(0x00)).await, "not-touched");
    rejected(&broker.approve(write, &with(0x04)).await, "not-touched");
    rejected(&broker.approve(destroy, &with(0x01)).await, "not-verified");
    assert_eq!(
        broker.approve(write, &with(0x01)).await.status,
        StatusCode::OK,
        "a touch is enough for `present`"
    );
    assert_eq!(broker.approve(destroy, &with(0x05)).await.status, StatusCode::OK);

    // A key file, however it is enrolled, is not hardware.
    let id = broker.post("/v1/leases", ask("prod-rw", "s3:PutObject")).await.id();
    let file = Key::software();
    let sql = "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) values ($1, 'bob', $2, 'verified', 'a lie', '2026-01-01')";
    sqlx::query(sql)
        .bind(file.fingerprint())
        .bind(file.public_key())
        .execute(&broker.database.owner)
        .await
        .unwrap();
    rejected(&broker.approve(id, &file).await, "assurance-too-low");
    // Hardware made for another purpose.
    let foreign = Key::hardware_for("ssh:");
    sqlx::query(sql)
        .bind(foreign.fingerprint())
        .bind(foreign.public_key())
        .execute(&broker.database.owner)
        .await
        .unwrap();
    rejected(&broker.approve(id, &foreign).await, "wrong-application");
    assert_eq!(broker.claim(id).await.problem(), "/problems/pending");
}

#[tokio::test]
async fn what_is_minted_is_what_was_signed_and_not_what_the_lease_row_says() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    broker.approve(id, &broker.bob).await;
    // A hand with the owner's rights, past every trigger, widens the stored input and the stored actions.
    let mut superuser =
        <sqlx::PgConnection as sqlx::Connection>::connect(&broker.database.superuser_url)
            .await
            .unwrap();
    sqlx::raw_sql("alter table lease disable trigger all; update lease set assume_role = jsonb_set(assume_role, '{policy}', '\"{}\"'); alter table lease enable trigger all")
        .execute(&mut superuser)
        .await
        .unwrap();
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    assert!(
        sts.last_request()["Policy"].contains("\"s3:PutObject\""),
        "made from the signed bytes"
    );

    // The same hand changes the statement: the stored approval no longer verifies over it.
    let id = broker.pending_lease().await;
    broker.approve(id, &broker.bob).await;
    let calls = sts.calls();
    let wider = "alter table statement disable trigger all; update statement set bytes = convert_to(replace(convert_from(bytes, 'UTF8'), 'new worker count', 'old worker count'), 'UTF8'); alter table statement enable trigger all";
    sqlx::raw_sql(wider).execute(&mut superuser).await.unwrap();
    let claim = broker.claim(id).await;
    assert_eq!(claim.problem(), "/problems/denied", "{}", claim.body);
    assert_eq!(sts.calls(), calls);
}

#[tokio::test]
async fn a_signer_who_left_the_group_does_not_count_at_claim() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    broker.approve(id, &broker.bob).await;
    broker.as_owner("update person set groups = '{}' where handle = 'bob'").await;
    assert_eq!(broker.claim(id).await.problem(), "/problems/denied");
    assert_eq!(broker.events(id).await.last().unwrap(), "lease.claim-refused");
    broker.as_owner("update person set groups = '{production-signers}' where handle = 'bob'").await;
    assert_eq!(sts.calls(), 0);
    assert_eq!(broker.claim(id).await.status, StatusCode::OK, "the control");
}

#[tokio::test]
async fn a_row_that_a_hand_wrote_mints_only_what_the_catalogue_compiles() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    broker.staging_lease().await;
    // As the server's own role: a second approved lease, like the first but for its policy.
    let forged = "insert into lease (id, request_sha256, agent, sponsor, task_id, task, scope, environment, tier, account, region, role_arn,
            actions, resources, assume_role, window_seconds, rules_sha256, decided_by, signatures_needed, eligible_signers, state,
            requested_at, approved_at, claim_by, ends_at)
        select '01a00000-0000-7000-8000-000000000001', request_sha256, agent, sponsor, task_id, task, scope, environment, tier, account, region, role_arn,
            actions, resources, jsonb_set(assume_role, '{policy}', '\"{}\"'), window_seconds, rules_sha256, decided_by, signatures_needed, eligible_signers, state,
            requested_at, approved_at, claim_by, ends_at from lease";
    sqlx::query(forged).execute(broker.pool()).await.unwrap();
    let claim = broker.claim("01a00000-0000-7000-8000-000000000001".parse().unwrap()).await;
    assert_eq!(claim.problem(), "/problems/denied", "{}", claim.body);
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn eight_claims_at_once_through_two_replicas_mint_once() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let replica = broker.replica(sts.options()).await;
    for round in 1..=10 {
        let id = broker.pending_lease().await;
        broker.approve(id, &broker.bob).await;
        let (one, two) = (&broker, &replica);
        let answers = tokio::join!(
            one.claim(id),
            two.claim(id),
            one.claim(id),
            two.claim(id),
            one.claim(id),
            two.claim(id),
            one.claim(id),
            two.claim(id),
        );
        let answers: [Answer; 8] = answers.into();
        let minted: std::collections::BTreeSet<_> = answers
            .iter()
            .filter(|it| it.status.is_success())
            .map(|it| it.body["session_token"].to_string())
            .collect();
        assert_eq!(
            minted.len(),
            1,
            "one session, delivered perhaps again by the replica that minted it"
        );
        for answer in answers.iter().filter(|it| !it.status.is_success()) {
            assert!(
                matches!(answer.problem(), "/problems/already-issued" | "/problems/ended"),
                "{}",
                answer.body
            );
        }
        assert_eq!(sts.calls(), round);
        assert_eq!(broker.sessions(id).await, ["live"]);
    }
}

#[tokio::test]
async fn of_a_signature_a_withdrawal_and_a_sweep_at_once_one_wins() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    for _ in 0..15 {
        let id = broker.pending_lease().await;
        broker.clock.advance(Duration::minutes(30));
        sts.set(Mood::Good { now: broker.clock.now() });
        let withdraw = async { broker.post(&format!("/v1/leases/{id}/withdraw"), json!({})).await };
        let (signed, other, withdrawn, _) = tokio::join!(
            broker.approve(id, &broker.bob),
            broker.approve(id, &broker.carol),
            withdraw,
            broker.broker.sweep(),
        );
        let state = broker.state(id).await;
        let approvals = [&signed, &other].iter().filter(|it| it.status.is_success()).count();
        match state.as_str() {
            "withdrawn" => assert!(withdrawn.status.is_success()),
            "approved" => assert_eq!(approvals, 1),
            other => panic!("{other}"),
        }
        let ends = broker.events(id).await.into_iter().filter(|it| it == "lease.withdrawn").count();
        assert_eq!(ends, usize::from(state == "withdrawn"));
    }
}

#[tokio::test]
async fn a_login_opens_reading_once_and_approves_nothing() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let nonce = async || {
        let answer = broker.send(Method::POST, "/v1/login/nonce", None, &[], Some(json!({}))).await;
        answer.body["nonce"].as_str().unwrap().to_owned()
    };
    let login = async |nonce: &str, signature: String| {
        let body = json!({ "nonce": nonce, "signature": signature });
        broker.send(Method::POST, "/v1/login", None, &[], Some(body)).await
    };
    let first = nonce().await;
    let signature = broker.bob.sign_login(&first);
    let session = login(&first, signature.clone()).await;
    assert_eq!(session.status, StatusCode::OK, "{}", session.body);
    let token = session.body["token"].as_str().unwrap();
    rejected(&login(&first, signature).await, "stale-nonce");

    let read = async |path: &str| broker.send(Method::GET, path, Some(token), &[], None).await;
    assert_eq!(read("/v1/whoami").await.body["person"], "bob");
    assert_eq!(read(&format!("/v1/leases/{id}")).await.status, StatusCode::OK);
    assert_eq!(read(&format!("/v1/leases/{id}/statement")).await.status, StatusCode::OK);
    // Reading is all: no route of the agent's takes it, and signing needs the key itself.
    for path in [
        "/v1/leases".to_owned(),
        format!("/v1/leases/{id}/credentials"),
        format!("/v1/leases/{id}/withdraw"),
    ] {
        let answer = broker
            .send(Method::POST, &path, Some(token), &[], Some(json!({ "scope": "staging-rw" })))
            .await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }

    // Dave may sign nothing and sponsors nobody: the lease is not there for him. Carol, in ops, sees all.
    for (key, status) in [
        (&broker.dave, StatusCode::NOT_FOUND),
        (&broker.carol, StatusCode::OK),
        (&broker.alice, StatusCode::OK),
    ] {
        let nonce = nonce().await;
        let session = login(&nonce, key.sign_login(&nonce)).await;
        let token = session.body["token"].as_str().unwrap().to_owned();
        let answer =
            broker.send(Method::GET, &format!("/v1/leases/{id}"), Some(&token), &[], None).await;
        assert_eq!(answer.status, status);
    }
    let other = nonce().await;
    rejected(&login(&other, Key::software().sign_login(&other)).await, "unknown-key");
    rejected(&login(&other, broker.bob.sign("approve", other.as_bytes())).await, "wrong-namespace");
    rejected(&login(&broker.token, broker.bob.sign_login(&broker.token)).await, "stale-nonce");
    broker.clock.advance(Duration::minutes(3));
    rejected(&login(&other, broker.bob.sign_login(&other)).await, "stale-nonce");
    assert_eq!(sts.calls(), 0);
}

#[tokio::test]
async fn whoever_waits_for_a_signature_hears_of_it_at_once() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let watching = {
        let broker = broker.broker.clone();
        tokio::spawn(async move { broker.watch().await })
    };
    let id = broker.pending_lease().await;
    let path = format!("/v1/leases/{id}?wait_seconds=30");
    let wait = broker.get(&path);
    let sign = async {
        // The listener may still be connecting: a first notice, of any lease, shows that it hears.
        broker.approve(id, &broker.bob).await
    };
    let (waited, signed) =
        tokio::join!(tokio::time::timeout(std::time::Duration::from_secs(10), wait), sign);
    assert_eq!(signed.status, StatusCode::OK);
    assert_eq!(waited.expect("long before the thirty seconds").body["state"], "approved");
    watching.abort();
}

#[tokio::test]
async fn a_passkey_signs_as_a_key_does_and_only_on_the_brokers_own_page() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::new(Setup { software_keys: false, ..Setup::fake(&sts) }).await;
    let enrol = async |passkey: &SoftPasskey, assurance: &str| {
        let enrolled = passkey.enrolled();
        let sql = "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) values ($1, 'bob', $2, $3, 'a test', '2026-01-01')
                   on conflict (fingerprint) do update set public_key = excluded.public_key, assurance = excluded.assurance";
        let row = sqlx::query(sql).bind(enrolled.fingerprint()).bind(enrolled.to_text());
        row.bind(assurance).execute(&broker.database.owner).await.unwrap();
    };
    let mut passkey = SoftPasskey::new(false);
    enrol(&passkey, "verified").await;
    // What destroys asks for `verified`.
    let mut body = production_write();
    (body["scope"], body["actions"]) = (json!("prod-destructive"), json!(["s3:DeleteObject"]));
    let id = broker.post("/v1/leases", body).await.id();
    let statement = broker.statement(id).await;
    let approve = async |passkey: &SoftPasskey, meaning: Meaning| {
        broker.send_signature(id, "approve", &passkey.sign(meaning, &statement)).await
    };
    for meaning in Meaning::ALL.iter().filter(|it| **it != Meaning::LeaseApproval) {
        rejected(&approve(&passkey, *meaning).await, "not-this-statement");
    }
    rejected(
        &approve(&SoftPasskey::new(false), Meaning::LeaseApproval).await,
        "not-this-statement",
    );
    for origin in ["http://localhost:2", "https://localhost:1", "http://evil.localhost:1"] {
        passkey.origin = origin.to_owned();
        rejected(&approve(&passkey, Meaning::LeaseApproval).await, "wrong-origin");
    }
    passkey.origin = "http://localhost:1".to_owned();
    for (flags, why) in [(0x04, "not-touched"), (0x01, "not-verified"), (0x0d, "backup-state")] {
        passkey.flags = flags;
        rejected(&approve(&passkey, Meaning::LeaseApproval).await, why);
    }
    // One that may leave its device, whatever somebody wrote down of its assurance.
    let synced = SoftPasskey::new(true);
    enrol(&synced, "verified").await;
    rejected(&approve(&synced, Meaning::LeaseApproval).await, "synced");
    assert_eq!((broker.state(id).await.as_str(), sts.calls()), ("pending", 0));

    let passkey = SoftPasskey::new(false);
    enrol(&passkey, "verified").await;
    let approved = approve(&passkey, Meaning::LeaseApproval).await;
    assert_eq!(approved.status, StatusCode::OK, "{}", approved.body);
    broker.anchor().await;
    assert_eq!(
        broker.claim(id).await.status,
        StatusCode::OK,
        "and it is verified anew at the claim"
    );
}
