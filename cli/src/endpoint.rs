//! The container credentials endpoint of `broker exec`: one document, for whoever on this machine holds the token.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use crate::output::{Failure, Result};
use crate::source::{Refusal, Source};

const PATH: &str = "/credentials";
const TOKEN_BYTES: usize = 32;
/// More than any SDK sends.
const MAX_HEAD_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many are served at a time; more are hung up on.
const MAX_CLIENTS: usize = 32;

/// Listens on this machine's loopback address alone. It is gone with this process.
pub(crate) struct Endpoint {
    listener: TcpListener,
    gate: Gate,
}

/// What a request has to have.
struct Gate {
    host: String,
    token: String,
}

impl Endpoint {
    pub(crate) fn open() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let opened = listener.and_then(|it| Ok((it.local_addr()?, it)));
        let mut secret = [0; TOKEN_BYTES];
        let failed = |what: String| {
            let next = "Free some, or take `--env`: plain variables, which are not renewed.";
            Failure::unexpected(format!("the credentials endpoint cannot be opened: {what}"), next)
        };
        let (address, listener) = opened.map_err(|error| failed(error.to_string()))?;
        getrandom::fill(&mut secret).map_err(|error| failed(error.to_string()))?;
        let gate = Gate { host: address.to_string(), token: URL_SAFE_NO_PAD.encode(secret) };
        Ok(Self { listener, gate })
    }

    /// How the child finds it and gets in.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{}{PATH}", self.gate.host)),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", self.gate.token.clone()),
        ]
    }

    /// Answers from `source`, each client on a thread of its own, until this process ends.
    pub(crate) fn serve(self, source: Arc<Source>) {
        let served = Arc::new((self.gate, source));
        std::thread::spawn(move || {
            for stream in self.listener.incoming() {
                // Out of file descriptors, perhaps; that passes.
                let Ok(stream) = stream else {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                };
                // Each client's thread holds one, and the listening thread the first.
                if Arc::strong_count(&served) <= MAX_CLIENTS {
                    let served = Arc::clone(&served);
                    let _ = std::thread::Builder::new()
                        .spawn(move || answer(stream, &served.0, &served.1));
                }
            }
        });
    }
}

/// One request, one answer, and the connection is over. Nobody is there to be told of a client that went away.
fn answer(mut stream: TcpStream, gate: &Gate, source: &Arc<Source>) {
    let (status, body) = match read(&mut stream, gate).and_then(|()| source.give()) {
        Ok(document) => (200, document),
        Err(it) => (it.status, json!({ "Code": it.code, "Message": it.message })),
    };
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let _ = stream.write_all(response(status, &body).as_bytes());
    let _ = stream.shutdown(Shutdown::Both);
}

fn response(status: u16, body: &Value) -> String {
    let reason = if status == 200 { "OK" } else { "No" };
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn refused(status: u16, code: &'static str, message: &str) -> Refusal {
    Refusal { status, code, message: message.to_owned() }
}

/// Reads a request's head, within limits of size and time, and lets it through the gate or not.
fn read(stream: &mut TcpStream, gate: &Gate) -> Result<(), Refusal> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    loop {
        let slow = || refused(408, "too-slow", "the request did not come in time");
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(slow());
        }
        let mut some = [0; 1024];
        let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut some));
        match read {
            Ok(0) => return Err(refused(400, "bad-request", "the request ended early")),
            Ok(length) => head.extend_from_slice(&some[..length]),
            Err(_) => return Err(slow()),
        }
        if let Some(verdict) = gate.judge(&head) {
            return verdict;
        }
        if MAX_HEAD_BYTES < head.len() {
            return Err(refused(431, "too-large", "the request's head is too large"));
        }
    }
}

impl Gate {
    /// Whether the request may have the credentials; nothing while its head is not whole.
    fn judge(&self, head: &[u8]) -> Option<Result<(), Refusal>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(head) {
            Ok(status) if status.is_complete() => Some(self.check(&request)),
            Ok(_) => None,
            Err(_) => Some(Err(refused(400, "bad-request", "this is no HTTP request"))),
        }
    }

    fn check(&self, request: &httparse::Request<'_, '_>) -> Result<(), Refusal> {
        // Said twice, it is not said.
        let one = |name: &str| {
            let mut values = request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name));
            values.next().filter(|_| values.next().is_none()).map(|it| it.value)
        };
        // A page in a browser that had this address by a name of its own would say that name.
        if one("host") != Some(self.host.as_bytes()) {
            return Err(refused(400, "wrong-host", "the request is for another host"));
        }
        if request.path != Some(PATH) {
            return Err(refused(404, "not-found", "there is nothing here"));
        }
        if request.method != Some("GET") {
            return Err(refused(405, "method-not-allowed", "only GET is answered"));
        }
        let token = one("authorization").unwrap_or_default();
        if !bool::from(token.ct_eq(self.token.as_bytes())) {
            return Err(refused(401, "unauthenticated", "the token is not that of this endpoint"));
        }
        Ok(())
    }
}
