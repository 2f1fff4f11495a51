//! What AWS allows a session to do and what it refuses, scope by scope: a session that the broker really minted, the
//! AWS CLI, and the emulator, whose roles may do far more than any scope.

use std::collections::BTreeMap;

use Outcome::{Allowed, Denied};
use axum::http::StatusCode;
use serde_json::{Value, json};
use tests::program::aws_calls;
use tests::{Setup, TestBroker, stack};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Allowed,
    /// By IAM, and for no other reason.
    Denied,
}

/// Calls in order, each as one types it after `aws`.
type Table = &'static [(Outcome, &'static str)];

/// Refused to every session, whatever its scope: what the roles may do and no scope mentions, what makes a session
/// into another, and the other environments. (`Allowed` is what AWS allows everybody.)
const ANY_SCOPE: Table = &[
    (Allowed, "sts get-caller-identity"),
    (
        Denied,
        "sts assume-role --role-arn arn:aws:iam::000000000000:role/broker-production --role-session-name again",
    ),
    (Denied, "iam list-roles"),
    (Denied, "dynamodb list-tables"),
    (Denied, "secretsmanager list-secrets"),
    (Denied, "s3api create-bucket --bucket enforced-new-bucket"),
];

const STAGING_RO: Table = &[
    (Allowed, "s3api list-objects-v2 --bucket staging-app-data"),
    (Allowed, "s3api get-bucket-location --bucket staging-app-data"),
    (Allowed, "s3api get-object --bucket staging-app-data --key config/app.json /dev/null"),
    (Denied, "s3api put-object --bucket staging-app-data --key tmp/enforced-ro"),
    (Denied, "s3api delete-object --bucket staging-app-data --key tmp/enforced-ro"),
    (Denied, "s3api get-bucket-policy --bucket staging-app-data"),
    (Denied, "s3api list-objects-v2 --bucket prod-app-data"),
    (Denied, "s3api get-object --bucket prod-app-data --key config/app.json /dev/null"),
    (Denied, "s3api get-object --bucket backup-app-data --key snapshots/2026-01-01.sql /dev/null"),
];

const STAGING_RW: Table = &[
    (Allowed, "s3api put-object --bucket staging-app-data --key tmp/enforced-rw"),
    (Allowed, "s3api get-object --bucket staging-app-data --key tmp/enforced-rw /dev/null"),
    (Allowed, "s3api delete-object --bucket staging-app-data --key tmp/enforced-rw"),
    (Allowed, "s3api list-objects-v2 --bucket staging-app-data"),
    (Denied, "s3api delete-bucket --bucket staging-app-data"),
    (
        Denied,
        "s3api put-object-acl --bucket staging-app-data --key config/app.json --acl public-read",
    ),
    (Denied, "s3api put-object --bucket prod-app-data --key tmp/enforced-rw"),
    (Denied, "s3api delete-object --bucket prod-app-data --key config/app.json"),
    (Denied, "s3api delete-object --bucket backup-app-data --key snapshots/2026-01-01.sql"),
    (
        Denied,
        "s3api copy-object --copy-source prod-app-data/config/app.json --bucket staging-app-data --key tmp/enforced-copy",
    ),
];

const PROD_RO: Table = &[
    (Allowed, "s3api list-objects-v2 --bucket prod-app-data"),
    (Allowed, "s3api get-object --bucket prod-app-data --key config/app.json /dev/null"),
    (Denied, "s3api get-object --bucket prod-app-data --key reports/2026-01.csv /dev/null"),
    (Denied, "s3api put-object --bucket prod-app-data --key config/app.json"),
    (Denied, "s3api delete-object --bucket prod-app-data --key config/app.json"),
    (Denied, "s3api list-objects-v2 --bucket staging-app-data"),
    (Denied, "s3api get-object --bucket backup-app-data --key snapshots/2026-01-01.sql /dev/null"),
];

/// Signed for `s3:PutObject` on `tmp/enforced-1`.
const PROD_RW: Table = &[
    (Allowed, "s3api put-object --bucket prod-app-data --key tmp/enforced-1"),
    (Denied, "s3api put-object --bucket prod-app-data --key tmp/enforced-2"),
    (Denied, "s3api put-object --bucket prod-app-data --key config/app.json"),
    // In the scope, and not in what was signed.
    (Denied, "s3api get-object --bucket prod-app-data --key tmp/enforced-1 /dev/null"),
    (Denied, "s3api delete-object --bucket prod-app-data --key tmp/enforced-1"),
    (Denied, "s3api list-objects-v2 --bucket prod-app-data"),
    (Denied, "s3api put-object --bucket staging-app-data --key tmp/enforced-1"),
];

/// Signed for `s3:DeleteObject` on `tmp/enforced-3`.
const PROD_DESTRUCTIVE: Table = &[
    (Allowed, "s3api delete-object --bucket prod-app-data --key tmp/enforced-3"),
    (Denied, "s3api delete-object --bucket prod-app-data --key tmp/enforced-4"),
    (Denied, "s3api delete-bucket --bucket prod-app-data"),
    (Denied, "s3api put-object --bucket prod-app-data --key tmp/enforced-3"),
    (Denied, "s3api get-object --bucket prod-app-data --key config/app.json /dev/null"),
    (Denied, "s3api delete-object --bucket backup-app-data --key snapshots/2026-01-01.sql"),
    (Denied, "s3api delete-object --bucket staging-app-data --key tmp/enforced-3"),
];

/// Signed for `s3:DeleteObject` on `snapshots/enforced-5`.
const BACKUP_DESTROY: Table = &[
    (Allowed, "s3api delete-object --bucket backup-app-data --key snapshots/enforced-5"),
    (Denied, "s3api delete-object --bucket backup-app-data --key snapshots/2026-01-01.sql"),
    (Denied, "s3api get-object --bucket backup-app-data --key snapshots/2026-01-01.sql /dev/null"),
    (Denied, "s3api delete-bucket --bucket backup-app-data"),
    (Denied, "s3api put-object --bucket backup-app-data --key snapshots/enforced-5"),
    (Denied, "s3api delete-object --bucket prod-app-data --key tmp/enforced-5"),
];

/// Asks for the lease; if it waits for a signature, bob signs it; and gets its credentials.
async fn mint(body: Value) -> Value {
    let broker = TestBroker::new(Setup::real()).await;
    let lease = broker.post("/v1/leases", body).await;
    if lease.status == StatusCode::ACCEPTED {
        let signed = broker.approve(lease.id(), &broker.bob).await;
        assert_eq!(signed.status, StatusCode::OK, "{}", signed.body);
    } else {
        assert_eq!(lease.status, StatusCode::CREATED, "{}", lease.body);
    }
    let claimed = broker.claim(lease.id()).await;
    assert_eq!(claimed.status, StatusCode::OK, "{}", claimed.body);
    claimed.body
}

/// Makes each call of `table` and of [`ANY_SCOPE`] with one session, and compares.
async fn enforces(body: Value, table: Table) {
    let credentials = Box::pin(mint(body)).await;
    let secret = |name: &str| credentials[name].as_str().expect("a credential").to_owned();
    let environment = BTreeMap::from(
        [
            ("AWS_ACCESS_KEY_ID", secret("access_key_id")),
            ("AWS_SECRET_ACCESS_KEY", secret("secret_access_key")),
            ("AWS_SESSION_TOKEN", secret("session_token")),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", stack::shared().endpoint.clone()),
            ("AWS_MAX_ATTEMPTS", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let calls: Vec<_> = table.iter().chain(ANY_SCOPE).collect();
    let answers = aws_calls(&environment, &calls.iter().map(|it| it.1).collect::<Vec<_>>()).await;
    let mut surprises = Vec::new();
    for ((expected, call), (status, said)) in calls.iter().zip(&answers) {
        let outcome = match status {
            0 => Some(Allowed),
            _ if said.contains("(AccessDenied") => Some(Denied),
            _ => None,
        };
        if outcome != Some(*expected) {
            surprises
                .push(format!("aws {call}\n  is not {expected:?}: exit status {status} {said}"));
        }
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}

/// A body that asks for one action on one ARN of a signed scope.
fn exactly(scope: &str, action: &str, resource: &str) -> Value {
    json!({
        "scope": scope, "actions": [action], "resources": [resource], "reason": "to see what AWS says",
        "rollback": "nothing to undo",
    })
}

#[tokio::test]
async fn staging_ro_reads_staging_and_nothing_else() {
    enforces(json!({ "scope": "staging-ro" }), STAGING_RO).await;
}

#[tokio::test]
async fn staging_rw_works_on_staging_and_nowhere_else() {
    enforces(json!({ "scope": "staging-rw" }), STAGING_RW).await;
}

#[tokio::test]
async fn prod_ro_sees_production_and_changes_nothing() {
    enforces(json!({ "scope": "prod-ro" }), PROD_RO).await;
}

#[tokio::test]
async fn prod_rw_writes_the_one_object_that_was_signed() {
    let resource = "arn:aws:s3:::prod-app-data/tmp/enforced-1";
    enforces(exactly("prod-rw", "s3:PutObject", resource), PROD_RW).await;
}

#[tokio::test]
async fn prod_destructive_deletes_the_one_object_that_was_signed() {
    let resource = "arn:aws:s3:::prod-app-data/tmp/enforced-3";
    enforces(exactly("prod-destructive", "s3:DeleteObject", resource), PROD_DESTRUCTIVE).await;
}

#[tokio::test]
async fn backup_destroy_deletes_the_one_recovery_point_that_was_signed() {
    let resource = "arn:aws:s3:::backup-app-data/snapshots/enforced-5";
    enforces(exactly("backup-destroy", "s3:DeleteObject", resource), BACKUP_DESTROY).await;
}

#[tokio::test]
async fn every_scope_of_the_example_configuration_has_its_table_here() {
    let broker = TestBroker::new(Setup::real()).await;
    let names: Vec<_> =
        broker.broker.config.catalogue.scopes().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        ["backup-destroy", "prod-destructive", "prod-ro", "prod-rw", "staging-ro", "staging-rw"]
    );
}
