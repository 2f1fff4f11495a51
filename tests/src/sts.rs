//! An STS that does what a test says, at the wire: it speaks HTTP, counts, and can be slow, rude or wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_sdk_sts::config::{Credentials, SharedCredentialsProvider};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use broker::aws::AwsOptions;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// What STS answers.
#[derive(Clone, Debug)]
pub enum Mood {
    /// Mints what was asked, starting at this time.
    Good {
        now: OffsetDateTime,
    },
    /// Mints sessions that last otherwise than asked.
    Lasting {
        now: OffsetDateTime,
        seconds: i64,
    },
    /// Mints for another role than asked.
    OtherRole {
        now: OffsetDateTime,
    },
    /// Answers with an error document.
    Error {
        status: u16,
        code: &'static str,
    },
    /// Throttles so many calls, then mints.
    Throttling {
        now: OffsetDateTime,
        calls: usize,
    },
    Garbage,
    /// A well-formed answer with nothing in it.
    Empty,
    /// Never answers.
    Silent,
}

pub struct FakeSts {
    pub endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    mood: Mutex<Mood>,
    calls: AtomicUsize,
    /// The form of each call.
    requests: Mutex<Vec<BTreeMap<String, String>>>,
    /// Each answer needs a permit; a gate that is open has plenty.
    gate: Semaphore,
}

const PLENTY: usize = 100_000;

impl FakeSts {
    /// Starts one whose clock stands at the tests' start.
    pub async fn start() -> Self {
        Self::with(Mood::Good { now: time::macros::datetime!(2026-01-01 12:00 UTC) }).await
    }

    pub async fn with(mood: Mood) -> Self {
        let shared = Arc::new(Shared {
            mood: Mutex::new(mood),
            calls: AtomicUsize::new(0),
            requests: Mutex::default(),
            gate: Semaphore::new(PLENTY),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, shared }
    }

    pub fn options(&self) -> AwsOptions {
        let credentials = Credentials::new("AKIAFAKEFAKEFAKEFAKE", "fake", None, None, "test");
        AwsOptions {
            endpoint: Some(self.endpoint.clone()),
            credentials: Some(SharedCredentialsProvider::new(credentials)),
        }
    }

    pub fn set(&self, mood: Mood) {
        *self.shared.mood.lock().expect("no panic") = mood;
    }

    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// The last call's parameters.
    pub fn last_request(&self) -> BTreeMap<String, String> {
        self.shared.requests.lock().expect("no panic").last().cloned().expect("a call")
    }

    /// Holds answers back until [`FakeSts::release`].
    pub async fn hold(&self) {
        self.shared
            .gate
            .acquire_many(PLENTY.try_into().expect("fits"))
            .await
            .expect("open")
            .forget();
    }

    pub fn release(&self) {
        self.shared.gate.add_permits(PLENTY);
    }

    /// Returns once `count` calls have arrived.
    pub async fn arrived(&self, count: usize) {
        let arrival = async {
            while self.calls() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), arrival)
            .await
            .expect("the call arrives");
    }
}

async fn answer(State(shared): State<Arc<Shared>>, body: String) -> Response {
    let form: BTreeMap<String, String> =
        form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    // It is an STS that mints and knows nothing else: the doctor finds it away.
    if form.get("Action").is_none_or(|it| it != "AssumeRole") {
        return error(503, "ServiceUnavailable");
    }
    shared.requests.lock().expect("no panic").push(form.clone());
    let call = shared.calls.fetch_add(1, Ordering::SeqCst);
    drop(shared.gate.acquire().await.expect("open"));
    let mood = shared.mood.lock().expect("no panic").clone();
    let asked = form.get("DurationSeconds").and_then(|it| it.parse().ok()).unwrap_or(0);
    let role = form.get("RoleArn").map_or("", String::as_str);
    match mood {
        Mood::Good { now } => minted(&form, role, now, asked, call),
        Mood::Lasting { now, seconds } => minted(&form, role, now, seconds, call),
        Mood::OtherRole { now } => minted(&form, "arn:aws:iam::000000000000:role/admin", now, asked, call),
        Mood::Throttling { calls, .. } if call < calls => error(400, "Throttling"),
        Mood::Throttling { now, .. } => minted(&form, role, now, asked, call),
        Mood::Error { status, code } => error(status, code),
        Mood::Garbage => (StatusCode::OK, "<html>It works!</html>").into_response(),
        Mood::Empty => xml(StatusCode::OK, "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult></AssumeRoleResult></AssumeRoleResponse>".into()),
        Mood::Silent => std::future::pending().await,
    }
}

/// The secret of the fake's sessions begins with this, and the token with the next.
pub const SECRET_MARK: &str = "fAkE/SeCrEt+KeY/oF+a/MiNtEd+SeSsIoN";
pub const TOKEN_MARK: &str = "FwoGZXIvYXdzEFAKEtokenOFaMINTEDsession";

fn minted(
    form: &BTreeMap<String, String>,
    role: &str,
    now: OffsetDateTime,
    seconds: i64,
    call: usize,
) -> Response {
    let expiration = (now + Duration::seconds(seconds)).format(&Rfc3339).expect("a time");
    let session = form.get("RoleSessionName").map_or("", String::as_str);
    let identity = form.get("SourceIdentity").map_or("", String::as_str);
    let name = role.rsplit('/').next().unwrap_or_default();
    let body = format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
         <SourceIdentity>{identity}</SourceIdentity>\
         <AssumedRoleUser><AssumedRoleId>AROAFAKE:{session}</AssumedRoleId>\
         <Arn>arn:aws:sts::000000000000:assumed-role/{name}/{session}</Arn></AssumedRoleUser>\
         <Credentials><AccessKeyId>ASIAFAKEFAKE{call:08}</AccessKeyId>\
         <SecretAccessKey>{SECRET_MARK}{call}</SecretAccessKey><SessionToken>{TOKEN_MARK}{call}</SessionToken>\
         <Expiration>{expiration}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    );
    xml(StatusCode::OK, body)
}

fn error(status: u16, code: &str) -> Response {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>no</Message></Error><RequestId>1</RequestId></ErrorResponse>"
    );
    xml(StatusCode::from_u16(status).expect("a status"), body)
}

fn xml(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/xml")], body).into_response()
}
