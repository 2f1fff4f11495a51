//! Every field of a real statement, changed in turn: a signature is over all of it, and so is what is minted.

use axum::http::StatusCode;
use broker::lease::{Assurance, LeaseId};
use broker::statement::{LeaseStatement, Meaning, canonical};
use broker::verify::{Demand, EnrolledKey, Rejection, UnverifiedSignature, check_signature};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::TestBroker;
use tests::sts::FakeSts;

/// Where in a statement something was changed, and the statement that it gives.
type Change = (String, Vec<u8>);

/// The statement with one leaf, or one key, changed; for each of them.
fn changes(statement: &[u8]) -> Vec<Change> {
    let whole: Value = serde_json::from_slice(statement).expect("JSON");
    let mut paths = Vec::new();
    walk(&whole, "", &mut paths);
    let mut changes = Vec::new();
    for path in &paths {
        for value in others(whole.pointer(path).expect("walked")) {
            let mut other = whole.clone();
            *other.pointer_mut(path).expect("walked") = value.clone();
            changes.push((format!("{path} = {value}"), canonical(&other).expect("JSON")));
        }
        let (parent, key) = path.rsplit_once('/').unwrap_or_default();
        let mut other = whole.clone();
        if let Some(members) = other.pointer_mut(parent).and_then(Value::as_object_mut)
            && let Some(value) = members.remove(&key.replace("~1", "/").replace("~0", "~"))
        {
            changes.push((format!("without {path}"), canonical(&other).expect("JSON")));
            let members = other.pointer_mut(parent).and_then(Value::as_object_mut);
            members.expect("as before").insert(format!("{key}x"), value);
            changes.push((format!("{path}x"), canonical(&other).expect("JSON")));
        }
    }
    assert!(changes.iter().all(|(_, bytes)| bytes != statement));
    changes
}

/// Pointers (RFC 6901) to everything in `value` but itself.
fn walk(value: &Value, at: &str, paths: &mut Vec<String>) {
    if !at.is_empty() {
        paths.push(at.to_owned());
    }
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = key.replace('~', "~0").replace('/', "~1");
                walk(value, &format!("{at}/{key}"), paths);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                walk(value, &format!("{at}/{index}"), paths);
            }
        }
        _ => {}
    }
}

/// Values that it might have had instead. Containers change with what is in them, and by one more.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => vec![json!("x")],
        Value::Bool(it) => vec![json!(!it)],
        Value::Number(it) => vec![json!(it.as_u64().expect("a count") + 1)],
        Value::String(it) => {
            let mut last = it.clone();
            let end = if last.pop() == Some('1') { '2' } else { '1' };
            vec![json!(format!("{last}{end}")), json!(format!("{it} ")), json!("")]
        }
        Value::Array(items) => {
            let first = items.first().cloned().unwrap_or_else(|| json!("x"));
            vec![json!([items.as_slice(), &[first]].concat()), json!(items.get(1..))]
        }
        Value::Object(members) => {
            let mut more = members.clone();
            more.insert("more".into(), json!("x"));
            vec![Value::Object(more)]
        }
    }
    .into_iter()
    .filter(|it| it != value)
    .collect()
}

/// An administrator's hand, past every trigger.
struct Hand {
    connection: PgConnection,
    id: LeaseId,
}

impl Hand {
    async fn new(broker: &TestBroker, id: LeaseId) -> Self {
        let mut connection = PgConnection::connect(&broker.database.superuser_url).await.unwrap();
        let sql = "alter table statement disable trigger all";
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        Self { connection, id }
    }

    async fn store(&mut self, bytes: &[u8]) {
        let sql = "update statement set bytes = $2 where lease_id = $1";
        let stored =
            sqlx::query(sql).bind(self.id.0).bind(bytes).execute(&mut self.connection).await;
        assert_eq!(stored.unwrap().rows_affected(), 1);
    }
}

#[tokio::test]
async fn a_signature_over_a_statement_with_any_field_changed_does_not_count() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let statement = broker.statement(id).await;
    let good = broker.bob.sign("approve", &statement);
    let parsed = UnverifiedSignature::parse(&good).unwrap();
    let key = EnrolledKey {
        public_key: broker.bob.public_key(),
        assurance: Assurance::Software,
        enrolled_at: broker.clock.now(),
        revoked_at: None,
    };
    let judge = |body: &[u8]| {
        let (meaning, assurance) = (Meaning::LeaseApproval, Assurance::Software);
        let demand = Demand { meaning, body, origin: "http://localhost:1", assurance };
        check_signature(&parsed, &key, demand, broker.clock.now())
    };
    let changes = changes(&statement);
    println!("{} changes of one statement", changes.len());
    assert!(150 < changes.len(), "{}", changes.len());
    for (what, bytes) in &changes {
        assert_eq!(judge(bytes), Err(Rejection::NotThisStatement), "{what}");
        let signature = broker.bob.sign("approve", bytes);
        let answer = broker.send_signature(id, "approve", &signature).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{what}: {}", answer.body);
        assert_eq!(answer.reason(), "not-this-statement", "{what}");
    }
    assert_eq!((broker.state(id).await.as_str(), sts.calls()), ("pending", 0));
    assert_eq!(judge(&statement), Ok(None), "the control");
    let counted = broker.send_signature(id, "approve", &good).await;
    assert_eq!(counted.body["state"], "approved", "the control: {}", counted.body);
}

#[tokio::test]
async fn a_signature_does_not_count_over_what_a_hand_has_stored_instead() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let statement = broker.statement(id).await;
    let good = broker.bob.sign("approve", &statement);
    let mut hand = Hand::new(&broker, id).await;
    let mut read = 0;
    for (what, bytes) in changes(&statement) {
        hand.store(&bytes).await;
        let answer = broker.send_signature(id, "approve", &good).await;
        assert!(!answer.status.is_success(), "{what}: {}", answer.body);
        // What does not even contradict itself is told apart from the signed one by the signature alone.
        if LeaseStatement::from_bytes(bytes).is_ok() {
            read += 1;
            assert_eq!(answer.reason(), "not-this-statement", "{what}: {}", answer.body);
        }
    }
    println!("{read} of them are statements too");
    assert!(20 < read, "{read}");
    assert_eq!((broker.state(id).await.as_str(), sts.calls()), ("pending", 0));
    hand.store(&statement).await;
    let counted = broker.send_signature(id, "approve", &good).await;
    assert_eq!(counted.body["state"], "approved", "the control: {}", counted.body);
}

#[tokio::test]
async fn an_approved_lease_is_not_claimed_over_what_a_hand_has_stored_since() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let statement = broker.statement(id).await;
    assert_eq!(broker.approve(id, &broker.bob).await.body["state"], "approved");
    let mut hand = Hand::new(&broker, id).await;
    for (what, bytes) in changes(&statement) {
        hand.store(&bytes).await;
        let claim = broker.claim(id).await;
        assert!(!claim.status.is_success(), "{what}: {}", claim.body);
        assert!(claim.body["session_token"].is_null(), "{what}");
        assert_eq!(broker.sessions(id).await.len(), 0, "{what}");
    }
    assert_eq!((broker.state(id).await.as_str(), sts.calls()), ("approved", 0));
    hand.store(&statement).await;
    assert_eq!(broker.claim(id).await.status, StatusCode::OK, "the control");
    assert_eq!(sts.calls(), 1);
}
