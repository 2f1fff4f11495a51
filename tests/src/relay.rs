//! What stands between a broker and AWS: it passes everything on, unless a service is away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Passes connections on to the emulator. IAM and STS can be away, each by itself: a connection of an SDK is one service's.
pub struct Relay {
    pub endpoint: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    iam_away: AtomicBool,
    sts_away: AtomicBool,
    sts_leaves_after_put: AtomicBool,
    /// The secrets of every session that was minted through here.
    secrets: Mutex<Vec<String>>,
}

impl State {
    /// Remembers what is secret in an answer of STS.
    fn overhear(&self, answer: &[u8]) {
        let answer = String::from_utf8_lossy(answer);
        for name in ["SecretAccessKey", "SessionToken"] {
            let (open, close) = (format!("<{name}>"), format!("</{name}>"));
            let secret = answer.split_once(&open).and_then(|(_, it)| it.split_once(&close));
            if let Some((secret, _)) = secret {
                self.secrets.lock().expect("no panic").push(secret.to_owned());
            }
        }
    }

    /// Whether what was sent gets through.
    fn passes(&self, sent: &[u8]) -> bool {
        let has = |needle: &[u8]| sent.windows(needle.len()).any(|it| it == needle);
        if has(b"Action=PutRolePolicy") && self.sts_leaves_after_put.load(Ordering::SeqCst) {
            self.sts_away.store(true, Ordering::SeqCst);
        }
        !(has(b"/iam/aws4_request") && self.iam_away.load(Ordering::SeqCst)
            || has(b"/sts/aws4_request") && self.sts_away.load(Ordering::SeqCst))
    }
}

impl Relay {
    pub async fn start(upstream: &str) -> Self {
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::<State>::default();
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (shared, upstream) = (shared.clone(), upstream.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(upstream).await else { return };
                    let (mut from, mut back) = client.into_split();
                    let (mut answers, mut to) = server.into_split();
                    let hears = shared.clone();
                    let answering = tokio::spawn(async move {
                        let mut chunk = vec![0; 64 * 1024];
                        while let Ok(length @ 1..) = answers.read(&mut chunk).await {
                            hears.overhear(&chunk[..length]);
                            if back.write_all(&chunk[..length]).await.is_err() {
                                break;
                            }
                        }
                    });
                    let mut chunk = vec![0; 64 * 1024];
                    while let Ok(length @ 1..) = from.read(&mut chunk).await {
                        let sent = &chunk[..length];
                        if !shared.passes(sent) || to.write_all(sent).await.is_err() {
                            break;
                        }
                    }
                    answering.abort();
                });
            }
        });
        Self { endpoint, state }
    }

    /// The secrets of every session that was minted through here.
    pub fn secrets(&self) -> Vec<String> {
        self.state.secrets.lock().expect("no panic").clone()
    }

    pub fn iam_is_away(&self, away: bool) {
        self.state.iam_away.store(away, Ordering::SeqCst);
    }

    pub fn sts_is_away(&self, away: bool) {
        self.state.sts_leaves_after_put.store(false, Ordering::SeqCst);
        self.state.sts_away.store(away, Ordering::SeqCst);
    }

    /// STS goes away with the next policy that is written.
    pub fn sts_leaves_after_put(&self) {
        self.state.sts_leaves_after_put.store(true, Ordering::SeqCst);
    }
}
