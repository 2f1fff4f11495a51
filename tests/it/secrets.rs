//! Secrets pass through, they never stay: not in a table, not in a log, not in an error.

use std::cell::RefCell;
use std::io;

use axum::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::sts::{FakeSts, Mood, SECRET_MARK, TOKEN_MARK};
use tests::{TestBroker, production_write};
use time::Duration;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::prelude::*;

/// Every spelling in which a secret could lie somewhere: as it is, in hex, in base64 at any alignment.
fn spellings(secret: &str) -> Vec<String> {
    let mut all = vec![secret.to_owned(), hex::encode(secret)];
    for shift in 0..3 {
        let shifted = [vec![b'x'; shift], secret.as_bytes().to_vec()].concat();
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = engine.encode(&shifted);
            // The first and last letters depend on what stands around the secret.
            all.push(text[4..text.len() - 4].to_owned());
        }
    }
    all
}

/// The places in `text` where one of `secrets` lies.
fn found(text: &str, secrets: &[String]) -> Vec<String> {
    let lower = text.to_lowercase();
    let mut found = Vec::new();
    for secret in secrets {
        for spelling in spellings(secret) {
            if text.contains(&spelling) || lower.contains(&hex::encode(secret)) {
                found.push(format!("{}… as {}…", &secret[..6], &spelling[..6]));
            }
        }
    }
    found
}

/// All rows of all tables, as text; byte columns appear in hex.
async fn everything_stored(broker: &TestBroker) -> String {
    let mut superuser = PgConnection::connect(&broker.database.superuser_url).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar("select format('%I', relname) from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')")
        .fetch_all(&mut superuser)
        .await
        .unwrap();
    assert!(tables.len() >= 12, "{tables:?}");
    let mut all = String::new();
    for table in tables {
        let sql = format!("select coalesce(string_agg(t::text, E'\\n'), '') from {table} t");
        let rows: String =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut superuser).await.unwrap();
        all.push_str(&rows);
    }
    all
}

thread_local! {
    /// What is logged on this thread, if it is captured.
    static LOG: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct ThreadLog;

impl io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.as_mut().map(|it| it.extend_from_slice(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Captures everything that is logged on this thread from now on, by us and by every library, down to `TRACE`.
fn capture_log() {
    // One subscriber for the whole process: interest in a log line is cached per line, not per thread.
    let captured = dynamic_filter_fn(|_, _| LOG.with_borrow(Option::is_some));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(|| ThreadLog)
        .with_filter(captured);
    tracing_subscriber::registry()
        .with(lines)
        .try_init()
        .expect("the only subscriber of these tests");
    LOG.set(Some(Vec::new()));
}

#[tokio::test]
async fn no_secret_is_in_a_table_a_log_or_an_error_after_a_full_run() {
    // This thread is the whole runtime of this test.
    capture_log();
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let mut errors = String::new();
    let mut note = |answer: &tests::Answer| {
        if !answer.status.is_success() {
            errors.push_str(&answer.body.to_string());
        }
    };

    // What succeeds.
    let issued = broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true })).await;
    assert!(issued.body.to_string().contains(SECRET_MARK), "the one place where it belongs");
    broker.claim(issued.id()).await;
    let signed = broker.pending_lease().await;
    broker.approve(signed, &broker.bob).await;
    assert_eq!(broker.claim(signed).await.status, StatusCode::OK);
    let shown = broker.get(&format!("/v1/leases/{signed}")).await;
    let listed = broker.get("/v1/leases").await;
    let nonce = broker.send(Method::POST, "/v1/login/nonce", None, &[], Some(json!({}))).await;
    let nonce = nonce.body["nonce"].as_str().unwrap().to_owned();
    let login = json!({ "nonce": nonce, "signature": broker.bob.sign_login(&nonce) });
    let login = broker.send(Method::POST, "/v1/login", None, &[], Some(login)).await;
    let login_token = login.body["token"].as_str().unwrap().to_owned();
    // What does not: every error we can provoke, some with the secret minted and thrown away.
    for mood in [
        Mood::Lasting { now: broker.clock.now(), seconds: 43_200 },
        Mood::OtherRole { now: broker.clock.now() },
        Mood::Garbage,
        Mood::Empty,
        Mood::Error { status: 403, code: "AccessDenied" },
        Mood::Error { status: 500, code: "InternalFailure" },
    ] {
        sts.set(mood);
        let id = broker.staging_lease().await;
        note(&broker.claim(id).await);
    }
    sts.set(Mood::Good { now: broker.clock.now() });
    let stopped = broker.staging_lease().await;
    sts.hold().await;
    let calls = sts.calls();
    let (answer, ()) = tokio::join!(broker.claim(stopped), async {
        sts.arrived(calls + 1).await;
        broker.clock.advance(Duration::minutes(1));
        broker.broker.sweep().await.unwrap();
        sts.release();
    });
    note(&answer);
    note(&broker.post("/v1/leases", json!({ "scope": "nope" })).await);
    note(&broker.post("/v1/leases", json!({ "scope": "staging-rw", "reason": 7 })).await);
    note(
        &broker
            .send(
                Method::POST,
                "/v1/leases",
                Some(&format!("{}x", broker.token)),
                &[],
                Some(production_write()),
            )
            .await,
    );
    note(&broker.send_signature(signed, "approve", "x").await);
    assert!(errors.len() > 1000);

    let secrets =
        [SECRET_MARK.to_owned(), TOKEN_MARK.to_owned(), broker.token.clone(), login_token];
    let stored = everything_stored(&broker).await;
    assert!(stored.contains("ASIAFAKEFAKE00000000"), "the key id is no secret, and is kept");
    assert_eq!(found(&stored, &secrets), [""; 0]);
    assert_eq!(found(&errors, &secrets), [""; 0]);
    assert_eq!(found(&format!("{}{}", shown.body, listed.body), &secrets), [""; 0]);
    let log = String::from_utf8(LOG.take().unwrap()).unwrap();
    assert!(
        log.contains("request refused") && log.contains("request failed"),
        "the log was captured"
    );
    assert_eq!(found(&log, &secrets), [""; 0]);

    // The control: planted anywhere, in any spelling, it is found.
    for (at, planted) in spellings(SECRET_MARK).into_iter().enumerate() {
        let reason = format!("oops: {planted}");
        assert!(!found(&reason, &secrets).is_empty(), "spelling {at}");
    }
    broker.as_owner("insert into login (nonce, fingerprint, person, at) select gen_random_uuid(), fingerprint, person, now() from person_key limit 1").await;
    let planted = json!({
        "id": uuid::Uuid::new_v4(), "type": "planted", "time": "2026-01-01T12:00:00Z", "actor": "broker",
        "data": { "detail": Value::from(SECRET_MARK) },
    });
    sqlx::query("select append_event($1)")
        .bind(planted.to_string().into_bytes())
        .execute(broker.pool())
        .await
        .unwrap();
    assert!(
        !found(&everything_stored(&broker).await, &secrets).is_empty(),
        "a planted secret is found"
    );
}
