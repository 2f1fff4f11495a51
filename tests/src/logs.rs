//! Logs to look at: brokers whose events have their places, and what whoever reads everything gets of them.

use std::path::Path;
use std::process::Output;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use broker::audit::{Actor, EventType, Subject};
use broker::auditing::write_export;
use broker::clock::Clock;
use broker::log::LogKey;
use broker::log::verify::{Options, Report, verify};
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::json;
use sqlx::PgPool;
use tower::ServiceExt;

use crate::program::program;
use crate::sts::{FakeSts, Mood};
use crate::{Setup, TestBroker};

/// A tile's width.
const TILE: u64 = 256;

/// Exports the log of a broker's database, as a server's host would.
pub async fn export(broker: &TestBroker) -> String {
    let mut file = Vec::new();
    let pool: &PgPool = &broker.broker.log.pool;
    write_export(pool, &mut file, broker.clock.now(), &mut |_| ()).await.expect("exported");
    String::from_utf8(file).expect("text")
}

pub fn check(file: &str, options: Options) -> Report {
    verify(file.as_bytes(), options, |_| ()).expect("it is in memory")
}

pub fn codes(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|it| it.fault.code()).collect()
}

/// A broker whose clock goes, like the database's, with its STS.
pub async fn now() -> (FakeSts, TestBroker) {
    let clock = Clock::default();
    let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
    let broker = TestBroker::new(Setup { clock, ..Setup::fake(&sts) }).await;
    tell_keys(&broker, &["alice", "bob", "carol", "dave"]).await;
    (sts, broker)
}

/// The people of the tests and their keys are there without a word of it; the log has to have one.
pub async fn tell_keys(broker: &TestBroker, handles: &[&str]) {
    let sql = "select person, fingerprint, assurance from person_key where person = any ($1) order by person";
    let keys = sqlx::query_as(sql).bind(handles).fetch_all(&broker.database.owner);
    let keys: Vec<(String, String, String)> = keys.await.expect("keys");
    for (handle, fingerprint, assurance) in keys {
        let key = json!({ "fingerprint": fingerprint, "assurance": assurance });
        let detail = json!({ "person": { "handle": handle, "key": key } });
        let told =
            broker.broker.tell(EventType::KeyEnrolled, Actor::Operator, Subject::default(), detail);
        told.await.expect("recorded");
    }
}

/// A signed lease that was issued, and an unsigned one.
pub async fn story(broker: &TestBroker) {
    let id = broker.pending_lease().await;
    assert_eq!(broker.approve(id, &broker.bob).await.status, StatusCode::OK);
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    let id = broker.staging_lease().await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK);
    broker.sequence().await;
}

/// Tells small things until the log has so many entries, and signs that.
pub async fn grow(broker: &TestBroker, size: u64) {
    broker.sequence().await;
    for n in size_of(broker).await..size {
        let detail = json!({ "count": n });
        let told = broker.broker.tell(
            EventType::SignatureRejected,
            Actor::Broker,
            Subject::default(),
            detail,
        );
        told.await.expect("recorded");
    }
    broker.sequence().await;
    assert_eq!(size_of(broker).await, size);
}

async fn size_of(broker: &TestBroker) -> u64 {
    let sql = "select size from log_state";
    let size: i64 = sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.expect("a log");
    u64::try_from(size).expect("a size")
}

/// The verifier key that the log began with, from the key's own file.
pub fn pin(broker: &TestBroker) -> String {
    let key = LogKey::load(&broker.config_dir.path().join("log.pem")).expect("the log's key");
    key.verifier_key("broker.test/log")
}

/// A person's reading session.
pub fn login(broker: &TestBroker, person: &str) -> String {
    let (token, _) = broker.broker.tokens.login_token(person, broker.clock.now());
    token.expose_secret().to_owned()
}

/// Reads something, byte for byte.
pub async fn read(broker: &TestBroker, token: &str, path: &str) -> (StatusCode, HeaderMap, Bytes) {
    let request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
    let request = request.body(Body::empty()).expect("a request");
    let answer = broker.router.clone().oneshot(request).await.expect("infallible");
    let (parts, body) = answer.into_parts();
    (parts.status, parts.headers, body.collect().await.expect("a body").to_bytes())
}

/// Reads what has to be there.
pub async fn must_read(broker: &TestBroker, token: &str, path: &str) -> Bytes {
    let (status, _, body) = read(broker, token, path).await;
    assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
    body
}

/// The export as it comes over HTTP, part by part; and how many parts it had.
pub async fn export_by_http(broker: &TestBroker, token: &str) -> (String, usize) {
    let (mut file, mut parts) = (String::new(), 0);
    let mut next = Some("/v1/audit/events".to_owned());
    while let Some(path) = next {
        let (status, headers, body) = read(broker, token, &path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        file += str::from_utf8(&body).expect("text");
        parts += 1;
        next = headers.get(header::LINK).map(|it| {
            let link = it.to_str().expect("text");
            let link = link.strip_prefix('<').and_then(|it| it.strip_suffix(">; rel=\"next\""));
            link.expect("the next part").to_owned()
        });
    }
    (file, parts)
}

/// The paths of a tree's tiles and bundles after `tile/` (C2SP tlog-tiles), for less than a thousand tiles.
pub fn tile_paths(size: u64) -> Vec<String> {
    let mut paths = Vec::new();
    let (mut level, mut count) = (0, size);
    while 0 < count {
        for index in 0..count.div_ceil(TILE) {
            let width = TILE.min(count - index * TILE);
            let partial = if width == TILE { String::new() } else { format!(".p/{width}") };
            paths.push(format!("{level}/{index:03}{partial}"));
            if level == 0 {
                paths.push(format!("entries/{index:03}{partial}"));
            }
        }
        (level, count) = (level + 1, count / TILE);
    }
    paths
}

/// Fetches the newest checkpoint with all its tiles into a folder, as a mirror would.
pub async fn mirror(broker: &TestBroker, token: &str, folder: &Path) {
    let checkpoint = must_read(broker, token, "/v1/audit/checkpoint").await;
    std::fs::write(folder.join("checkpoint"), checkpoint).expect("written");
    for path in tile_paths(size_of(broker).await) {
        let path = format!("tile/{path}");
        let tile = must_read(broker, token, &format!("/v1/audit/{path}")).await;
        let to = folder.join(path);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        std::fs::write(to, tile).expect("written");
    }
}

/// Asks the verifier that shares no code with ours.
pub async fn independent(arguments: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/verifier/verify_log.py");
    let mut python = program("python3", &std::collections::BTreeMap::new());
    python.args(["-I", script]).args(arguments).output().await.expect("Python runs")
}
