//! The agent's path over HTTP.

use axum::http::{Method, StatusCode};
use serde_json::json;
use tests::sts::FakeSts;
use tests::{AGENT, PRODUCTION_OBJECT, STAGING_OBJECT, Setup, TestBroker};

#[tokio::test]
async fn a_staging_lease_comes_at_once_and_with_credentials_on_request() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let plain = broker.post("/v1/leases", json!({ "scope": "staging-rw", "task": "T-9", "reason": "try" })).await;
    assert_eq!(plain.status, StatusCode::CREATED);
    assert_eq!(plain.body["state"], "approved");
    assert_eq!(plain.body["task"], "T-9");
    assert!(plain.body.get("credentials").is_none());
    assert_eq!(sts.calls(), 0, "nobody asked for credentials");

    let full = broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true })).await;
    assert_eq!(full.status, StatusCode::CREATED, "{}", full.body);
    assert_eq!(full.body["state"], "issued");
    assert_eq!(full.body["credentials"]["access_key_id"], "ASIAFAKEFAKE00000000");
    assert_eq!(broker.events(full.id()).await, ["lease.approved", "session.issuing", "session.issued", "lease.issued"]);
}
