//! What one lease costs, counted: durable commits and calls to STS. `docs/lease-path.md` says these figures.

use axum::http::StatusCode;
use broker::lease::LeaseId;
use serde_json::json;
use tests::TestBroker;
use tests::sts::FakeSts;

/// Transactions that wrote something: each takes one id. The database is the test's own, the counter the cluster's;
/// so the events, which carry their transaction's id, say which were ours.
async fn commits(broker: &TestBroker, id: LeaseId) -> i64 {
    let sql = "select count(distinct xid) from event where lease_id = $1";
    let told: i64 =
        sqlx::query_scalar(sql).bind(id.0).fetch_one(&broker.database.owner).await.unwrap();
    // No row of the lease was last written by a transaction that told nothing.
    let untold = "
        with rows as (
            select xmin from lease where id = $1 union all select xmin from session where lease_id = $1
            union all select xmin from statement where lease_id = $1 union all select xmin from signature where lease_id = $1)
        select count(*) from rows
         where not exists (select from event e where e.lease_id = $1 and e.xid::text::bigint % 4294967296 = rows.xmin::text::bigint)";
    let untold: i64 =
        sqlx::query_scalar(untold).bind(id.0).fetch_one(&broker.database.owner).await.unwrap();
    assert_eq!(untold, 0, "a change without its event in the same transaction");
    told
}

#[tokio::test]
async fn an_unsigned_lease_with_credentials_costs_two_commits_and_one_call() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let lease = broker.post("/v1/leases", json!({ "scope": "staging-rw", "deliver": true })).await;
    assert_eq!(lease.status, StatusCode::CREATED);
    assert_eq!((commits(&broker, lease.id()).await, sts.calls()), (2, 1));
    // The same session again: its delivery is recorded, AWS is not asked.
    assert_eq!(broker.claim(lease.id()).await.status, StatusCode::OK);
    assert_eq!((commits(&broker, lease.id()).await, sts.calls()), (3, 1));
}

#[tokio::test]
async fn an_unsigned_lease_without_credentials_costs_one_commit_and_no_call() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.staging_lease().await;
    assert_eq!((commits(&broker, id).await, sts.calls()), (1, 0));
}

#[tokio::test]
async fn a_request_that_joins_an_open_lease_costs_no_commit_but_that_of_its_delivery() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let body = |deliver| json!({ "scope": "staging-rw", "join": true, "deliver": deliver });
    let id = broker.post("/v1/leases", body(true)).await.id();
    // Who locked the sponsor's row last: whoever opens a lease has to, whoever joins one must not.
    let locker = async || -> String {
        let sql = "select xmax::text from person where handle = 'alice'";
        sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.unwrap()
    };
    let before = locker().await;
    assert_eq!(broker.post("/v1/leases", body(false)).await.id(), id);
    assert_eq!((commits(&broker, id).await, locker().await), (2, before.clone()));
    assert_eq!(broker.post("/v1/leases", body(true)).await.id(), id);
    assert_eq!((commits(&broker, id).await, locker().await, sts.calls()), (3, before.clone(), 1));
    broker.staging_lease().await;
    assert_ne!(locker().await, before, "the control");
}

#[tokio::test]
async fn a_signed_lease_costs_four_commits_and_one_call() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    assert_eq!(commits(&broker, id).await, 1);
    broker.approve(id, &broker.bob).await;
    assert_eq!((commits(&broker, id).await, sts.calls()), (2, 0));
    broker.claim(id).await;
    assert_eq!((commits(&broker, id).await, sts.calls()), (4, 1));
}
