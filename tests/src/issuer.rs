//! An issuer of workloads' tokens, at the wire: it has keys, publishes them, and signs whatever a test says.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;

/// A key that signs tokens.
#[derive(Clone)]
pub struct SigningKey {
    pub id: String,
    pub algorithm: Algorithm,
    pub encoding: EncodingKey,
    /// Its public half, as a JWK.
    pub jwk: Value,
}

impl SigningKey {
    pub fn rsa(id: &str) -> Self {
        use aws_lc_rs::encoding::AsDer as _;
        use aws_lc_rs::rsa::{KeyPair, KeySize};
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("it encodes");
        // The crate wants PKCS #1, which is what PKCS #8 has in its octet string.
        let encoding = EncodingKey::from_rsa_der(pkcs1(der.as_ref()));
        Self::new(id, Algorithm::RS256, encoding)
    }

    pub fn ec(id: &str) -> Self {
        use p256::pkcs8::EncodePrivateKey as _;
        let mut seed = [7; 32];
        rand::fill(&mut seed[1..]);
        let key = p256::SecretKey::from_slice(&seed).expect("less than the order");
        let der = key.to_pkcs8_der().expect("it encodes");
        let encoding = EncodingKey::from_ec_der(der.as_bytes());
        Self::new(id, Algorithm::ES256, encoding)
    }

    pub fn ed25519(id: &str) -> Self {
        use ed25519_dalek::pkcs8::EncodePrivateKey as _;
        let mut seed = [0; 32];
        rand::fill(&mut seed);
        let key = ed25519_dalek::SigningKey::from_bytes(&seed);
        let der = key.to_pkcs8_der().expect("it encodes");
        let encoding = EncodingKey::from_ed_der(der.as_bytes());
        let x = URL_SAFE_NO_PAD.encode(key.verifying_key().to_bytes());
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": id });
        Self { id: id.to_owned(), algorithm: Algorithm::EdDSA, encoding, jwk }
    }

    fn new(id: &str, algorithm: Algorithm, encoding: EncodingKey) -> Self {
        let mut jwk = json!(Jwk::from_encoding_key(&encoding, algorithm).expect("a key"));
        (jwk["kid"], jwk["use"]) = (json!(id), json!("sig"));
        Self { id: id.to_owned(), algorithm, encoding, jwk }
    }

    /// One with a secret that is shared: what an issuer's key must never be taken for.
    pub fn shared(id: &str, secret: &[u8]) -> Self {
        let (algorithm, encoding) = (Algorithm::HS256, EncodingKey::from_secret(secret));
        Self { id: id.to_owned(), algorithm, encoding, jwk: Value::Null }
    }

    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// A JWT of this header and these claims, whatever they are.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", part(header), part(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.encoding, self.algorithm);
        format!("{message}.{}", signature.expect("it signs"))
    }

    pub fn header(&self) -> Value {
        json!({ "alg": format!("{:?}", self.algorithm), "typ": "JWT", "kid": self.id })
    }
}

/// The last octet string of a PKCS #8 document: the key itself.
fn pkcs1(pkcs8: &[u8]) -> &[u8] {
    // SEQUENCE (4 bytes of head), version (3), algorithm (15), OCTET STRING (4 bytes of head).
    &pkcs8[26..]
}

pub struct FakeIssuer {
    /// Its `iss`: an https URL that nobody ever asks.
    pub name: String,
    /// Where its keys are.
    pub jwks_uri: String,
    pub key: SigningKey,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: AtomicUsize,
    answer: Mutex<Publishes>,
}

/// What it says when it is asked for its keys.
#[derive(Clone, Default)]
pub enum Publishes {
    #[default]
    Nothing,
    Keys(Vec<Value>),
    Text(String),
    Status(u16),
    Redirect(String),
}

impl FakeIssuer {
    pub async fn start() -> Self {
        Self::with(SigningKey::rsa("key-1")).await
    }

    pub async fn with(key: SigningKey) -> Self {
        let shared = Arc::new(Shared::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let jwks_uri = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let router = Router::new().route("/keys", get(keys)).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let issuer = Self { name: "https://issuer.test".into(), jwks_uri, key, shared };
        issuer.publish(Publishes::Keys(vec![issuer.key.jwk()]));
        issuer
    }

    pub fn publish(&self, answer: Publishes) {
        *self.shared.answer.lock().expect("not poisoned") = answer;
    }

    /// How often it was asked for its keys.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Claims of a job on main that octocat set off, good now.
    pub fn claims(&self, now: OffsetDateTime) -> Value {
        let now = now.unix_timestamp();
        json!({
            "iss": self.name,
            "aud": "http://localhost:1",
            "sub": "repo:acme/shop:ref:refs/heads/main",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "jti": uuid::Uuid::new_v4(),
            "actor_id": "583231",
            "repository": "acme/shop",
            "run_id": "1234",
            "run_attempt": "1",
            "event_name": "push",
        })
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.key.sign(&self.key.header(), claims)
    }

    /// What `broker.toml` says of it. `more` goes to the issuer, before its workload.
    pub fn settings(&self, more: &str) -> String {
        let Self { name, jwks_uri, .. } = self;
        let algorithm = format!("{:?}", self.key.algorithm);
        let first =
            if more.contains("actor_where") { "" } else { "actor_where = { run_attempt = \"1\" }" };
        format!(
            r#"
[[issuers]]
issuer = "{name}"
algorithms = ["{algorithm}"]
jwks_uri = "{jwks_uri}"
actor_claim = "actor_id"
actors = {{ 583231 = "bob", 1 = "alice", 2 = "nobody-here" }}
{first}
{more}
[[issuers.workloads]]
subject = "repo:acme/shop:ref:refs/heads/*"
where = {{ event_name = "push" }}
agent = "shop-ci"
sponsor = "alice"
task_claim = "run_id"
claims = ["repository", "run_id"]
"#
        )
    }
}

async fn keys(State(shared): State<Arc<Shared>>) -> Response {
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let answer = shared.answer.lock().expect("not poisoned").clone();
    let json = |text: String| ([(header::CONTENT_TYPE, "application/json")], text).into_response();
    match answer {
        Publishes::Nothing => json("{}".to_owned()),
        Publishes::Keys(keys) => json(json!({ "keys": keys }).to_string()),
        Publishes::Text(text) => json(text),
        Publishes::Status(status) => {
            StatusCode::from_u16(status).expect("a status").into_response()
        }
        Publishes::Redirect(to) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
    }
}

/// The form of a token exchange.
pub fn exchange_form(token: &str) -> String {
    let form: BTreeMap<_, _> = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("subject_token", token),
    ]
    .into();
    form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()
}
