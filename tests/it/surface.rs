//! The whole surface: every documented route without authority, and nothing undocumented.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use broker::http::api_document;
use serde_json::{Value, json};
use tests::sts::FakeSts;
use tests::{AGENT, Answer, TestBroker};
use tower::ServiceExt as _;

/// Routes that need no token, with what a caller without any authority gets.
const OPEN: [(&str, &str, u16); 9] = [
    ("post", "/v1/leases/{id}/signatures", 403),
    ("post", "/v1/statements", 404),
    ("post", "/v1/login/nonce", 200),
    ("post", "/v1/login", 403),
    ("post", "/v1/token", 400),
    ("get", "/healthz", 200),
    ("get", "/readyz", 200),
    ("get", "/.well-known/jwks.json", 200),
    ("get", "/leases/{id}", 200),
];

#[tokio::test]
async fn the_page_of_a_lease_shows_nothing_of_it_nor_whether_it_is_there() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let lease = broker.get(&format!("/v1/leases/{id}")).await;
    assert_eq!(lease.body["link"], format!("http://localhost:1/leases/{id}"));
    let code = lease.body["short_code"].as_str().unwrap();
    let page = async |id: &str| {
        let request = Request::get(format!("/leases/{id}")).body(Body::empty()).unwrap();
        let answer = broker.router.clone().oneshot(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = axum::body::to_bytes(body, 1 << 16).await.unwrap();
        (head, String::from_utf8(body.to_vec()).unwrap())
    };
    let (head, text) = page(&id.to_string()).await;
    assert_eq!(head.headers["content-type"], "text/html; charset=utf-8");
    assert!(
        head.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'")
    );
    assert!(text.contains(&format!("BROKER_URL=http://localhost:1 broker sign {id}")), "{text}");
    for word in [code, "alice", AGENT, "prod-rw", "config/app.json"] {
        assert!(!text.contains(word), "{word}");
    }
    let other = "01920000-0000-7000-8000-000000000001";
    assert_eq!(page(other).await.1, text.replace(&id.to_string(), other));
    for no_lease in ["x", "%3Cscript%3E", "%27%3Becho"] {
        let (head, text) = page(no_lease).await;
        assert!(head.status.is_client_error() && !text.contains("<script>"), "{no_lease}: {text}");
    }
    // A lease that waits for nobody has no such page to send.
    let staging = broker.staging_lease().await;
    assert_eq!(broker.get(&format!("/v1/leases/{staging}")).await.body["link"], Value::Null);
}

#[tokio::test]
async fn every_route_of_the_document_without_authority_gives_nothing_away() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let id = broker.pending_lease().await;
    let document = serde_json::to_value(api_document()).unwrap();
    let mut seen = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            seen += 1;
            let body = match path.as_str() {
                "/v1/leases/{id}/signatures" => json!({ "decision": "approve", "signature": "x" }),
                "/v1/statements" => {
                    json!({ "id": id, "decision": "approve", "signature": "x" })
                }
                "/v1/statements/drafts" => json!({ "kind": "thaw", "freeze_id": id }),
                "/v1/login" => json!({ "nonce": "x", "signature": "x" }),
                _ => json!({ "scope": "staging-rw" }),
            };
            let send = async |token: Option<&str>| {
                let method: Method = method.to_uppercase().parse().unwrap();
                let body = (method == Method::POST).then(|| body.clone());
                broker.send(method, &path.replace("{id}", &id.to_string()), token, &[], body).await
            };
            let open = OPEN.iter().find(|(m, p, _)| m == method && p == path);
            for token in [None, Some(""), Some("x.y.z"), Some("null")] {
                let answer = send(token).await;
                if let Some((_, _, status)) = open {
                    assert_eq!(answer.status.as_u16(), *status, "{method} {path}");
                } else {
                    assert_eq!(
                        answer.status,
                        StatusCode::UNAUTHORIZED,
                        "{method} {path}: {}",
                        answer.body
                    );
                    assert_eq!(answer.headers["www-authenticate"], "Bearer");
                }
                if !answer.status.is_success() {
                    is_a_problem(&answer);
                }
                assert_eq!(answer.headers["cache-control"], "no-store", "{method} {path}");
            }
        }
    }
    assert!(seen >= 15, "{seen} routes");
    assert_eq!(sts.calls(), 0);
    let leases: i64 = sqlx::query_scalar("select count(*) from lease")
        .fetch_one(&broker.database.owner)
        .await
        .unwrap();
    assert_eq!(leases, 1);
}

fn is_a_problem(answer: &Answer) {
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{}", answer.body);
    for member in ["type", "title", "detail", "next"] {
        assert!(answer.body[member].is_string(), "{member} is missing in {}", answer.body);
    }
    assert_eq!(answer.body["status"], answer.status.as_u16());
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_too() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let missing = broker.get("/v1/nothing").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    is_a_problem(&missing);
    let method = broker.send(Method::DELETE, "/v1/leases", Some(&broker.token), &[], None).await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
    is_a_problem(&method);
    let id = broker.get("/v1/leases/not-an-id").await;
    assert_eq!(id.status, StatusCode::NOT_FOUND);
    is_a_problem(&id);
    let body = broker
        .send(
            Method::POST,
            "/v1/leases",
            Some(&broker.token),
            &[("content-type", "application/json")],
            None,
        )
        .await;
    assert_eq!(body.status, StatusCode::BAD_REQUEST);
    is_a_problem(&body);
}

/// Every request a router without document would take is in the document: asked by the harness's own list.
#[tokio::test]
async fn the_document_is_served_and_names_every_schema_it_uses() {
    let sts = FakeSts::start().await;
    let broker = TestBroker::fake(&sts).await;
    let document = broker.send(Method::GET, "/openapi.json", None, &[], None).await.body;
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let name = reference.strip_prefix("#/components/schemas/").expect("a local schema");
        assert!(schemas.contains_key(name), "{name} is used and not defined");
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                match (key.as_str(), value) {
                    ("$ref", Value::String(reference)) => references.push(reference.clone()),
                    _ => collect(value, references),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|it| collect(it, references)),
        _ => {}
    }
}
