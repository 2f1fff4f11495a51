//! All that an agent has, turned on one pending lease: none of it approves, and AWS is never asked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use broker::clock::Clock;
use broker::lease::LeaseId;
use broker::statement::LeaseStatement;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tests::keys::Key;
use tests::program::{binary, program, text, until};
use tests::sts::{FakeSts, Mood, TOKEN_MARK};
use tests::{Answer, Sender, Setup, TestBroker, production_write, wide_budgets};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

const EXIT_INVALID: i32 = 2;
const EXIT_DENIED: i32 = 4;

/// An agent with its token, a key of its own, and two leases that wait: one to write, one to destroy.
struct Agent {
    sts: FakeSts,
    broker: TestBroker,
    url: String,
    write: LeaseId,
    destroy: LeaseId,
    key: Key,
    home: TempDir,
}

impl Agent {
    async fn new() -> Self {
        // The command line knows only the real time.
        let clock = Clock::default();
        let sts = FakeSts::with(Mood::Good { now: clock.now() }).await;
        let setup = Setup { clock, settings: wide_budgets(), ..Setup::fake(&sts) };
        let broker = TestBroker::new(setup).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = broker.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });

        let write = broker.pending_lease().await;
        let mut request = production_write();
        request["scope"] = json!("prod-destructive");
        request["actions"] = json!(["s3:DeleteObject"]);
        let destroy = broker.post("/v1/leases", request).await.id();
        let home = tempfile::tempdir().expect("a temporary directory");
        Self { sts, broker, url, write, destroy, key: Key::software(), home }
    }

    /// After `tool`: nobody has signed, both leases wait, and AWS was not asked.
    async fn got_nowhere(&self, tool: &str) {
        for lease in [self.write, self.destroy] {
            assert_eq!(self.broker.state(lease).await, "pending", "{tool}");
            assert!(self.broker.sessions(lease).await.is_empty(), "{tool}");
        }
        let sql = "select count(*) from signature where lease_id in ($1, $2)";
        let signatures = sqlx::query_scalar::<_, i64>(sql).bind(self.write.0).bind(self.destroy.0);
        let signatures = signatures.fetch_one(&self.broker.database.owner).await.expect(sql);
        assert_eq!((signatures, self.sts.calls()), (0, 0), "{tool}");
    }

    async fn sign(&self, lease: LeaseId, body: Value, headers: &[(&str, &str)]) -> Answer {
        let path = format!("/v1/leases/{lease}/signatures");
        self.broker.send(Method::POST, &path, None, headers, Some(body)).await
    }

    /// Sends `signature` as each decision over the lease to write; it does not count, and this is why.
    async fn does_not_count(&self, signature: &str, reason: &str) {
        for decision in ["approve", "refuse"] {
            let answer = self.broker.send_signature(self.write, decision, signature).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);
            if decision == "approve" {
                assert_eq!(answer.reason(), reason, "{}", answer.body);
            }
        }
    }

    /// Writes a key as OpenSSH keeps it, and says where.
    fn key_file(&self, name: &str, key: &Key) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.home.path().join(name);
        std::fs::write(&path, key.private_key()).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
        std::fs::write(path.with_extension("pub"), key.public_key() + "\n").expect("written");
        path
    }

    /// Runs `broker ARGS` as the agent can: with its token, without a terminal, and with `typed` on standard input.
    async fn run(&self, args: &[&str], typed: &str, more: &[(&str, &str)]) -> Output {
        let mut environment = BTreeMap::from([
            ("BROKER_URL".to_owned(), self.url.clone()),
            ("BROKER_TOKEN".to_owned(), self.broker.token.clone()),
        ]);
        environment.extend(more.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        // A session of its own has no controlling terminal, wherever the tests run.
        let mut child = program("setsid", &environment)
            .arg("--wait")
            .arg(binary("broker"))
            .args(args)
            .env("HOME", self.home.path())
            .env("XDG_STATE_HOME", self.home.path().join("state"))
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setsid runs");
        // Whoever does not read it ends before it is written.
        let _ = child.stdin.take().expect("piped").write_all(typed.as_bytes()).await;
        let ended = tokio::time::timeout(Duration::from_mins(1), child.wait_with_output()).await;
        ended.expect("it asks nobody").expect("it ends")
    }
}

fn exits(output: &Output, code: i32, words: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}{said}", text(&output.stdout));
    assert!(said.contains(words), "{words:?} is missing from {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_an_agent_has_approves_its_request() {
    let agent = Agent::new().await;
    answers_prompts(&agent).await;
    forges_a_name(&agent).await;
    forges_tokens(&agent).await;
    enrols_a_key(&agent).await;
    uses_its_token_everywhere(&agent).await;
    uses_the_sponsors_key_in_an_ssh_agent(&agent).await;
    signs_with_keys_that_nobody_enrolled(&agent).await;
    replays_what_people_signed(&agent).await;
    claims_while_it_waits(&agent).await;
    withdraws_and_asks_again(&agent).await;

    // The control: one signature of the right person, and all of this was not for want of a way.
    let (broker, id) = (&agent.broker, agent.write);
    let counted = broker.approve(id, &broker.bob).await;
    assert_eq!(counted.body["state"], "approved", "{}", counted.body);
    assert_eq!(agent.sts.calls(), 0);
    let claim = broker.claim(id).await;
    assert_eq!((claim.status, agent.sts.calls()), (StatusCode::OK, 1), "{}", claim.body);
    assert_eq!(broker.state(agent.destroy).await, "pending");
}

async fn answers_prompts(agent: &Agent) {
    let key = agent.key_file("own", &agent.key);
    let key = key.to_str().expect("a path");
    let bytes = agent.broker.statement(agent.destroy).await;
    let code = LeaseStatement::from_bytes(bytes).expect("ours").short_code();
    for (lease, lacks) in [(agent.write, "no key"), (agent.destroy, "on a terminal only")] {
        let lease = lease.to_string();
        for typed in ["", "yes\n", "y\ny\ny\n", "approve\n", &format!("{code}\n{code}\n")] {
            // Without a key there is nothing to answer; with its own, nobody knows it.
            exits(&agent.run(&["sign", &lease], typed, &[]).await, EXIT_INVALID, lacks);
            let signed = agent.run(&["sign", &lease, "--key", key], typed, &[]).await;
            exits(&signed, EXIT_DENIED, "nobody here has enrolled this key");
        }
    }
    // A signature from elsewhere: for what destroys it asks a terminal first, whatever standard input says.
    let statement = agent.broker.statement(agent.destroy).await;
    let file = agent.home.path().join("made.sig");
    std::fs::write(&file, agent.key.sign("approve", &statement)).expect("written");
    let lease = agent.destroy.to_string();
    let args = ["sign", &lease, "--signature", file.to_str().expect("a path")];
    exits(&agent.run(&args, &format!("{code}\n"), &[]).await, EXIT_INVALID, "on a terminal only");
    agent.got_nowhere("standard input").await;
}

async fn forges_a_name(agent: &Agent) {
    let statement = agent.broker.statement(agent.write).await;
    let signature = agent.key.sign("approve", &statement);
    let body = |more: (&str, Value)| {
        let mut body = json!({ "decision": "approve", "signature": signature });
        body[more.0] = more.1;
        body
    };
    for field in ["person", "signer", "approver", "handle", "sub", "key", "fingerprint", "state"] {
        let answer = agent.sign(agent.write, body((field, json!("bob"))), &[]).await;
        assert_eq!(answer.problem(), "/problems/invalid-request", "{field}: {}", answer.body);
    }
    let decisions = ["Approve", "APPROVE", " approve", "approved", "approve\0", "yes", ""];
    let other = [json!(true), json!(1), json!(["approve"]), json!(null), json!({ "approve": {} })];
    for decision in decisions.map(|it| json!(it)).into_iter().chain(other) {
        let answer = agent.sign(agent.write, body(("decision", decision.clone())), &[]).await;
        assert_eq!(answer.problem(), "/problems/invalid-request", "{decision}: {}", answer.body);
    }
    let proxies = [
        "X-Forwarded-User",
        "X-Remote-User",
        "Remote-User",
        "X-Auth-Request-User",
        "X-Forwarded-Email",
        "X-User",
        "X-Broker-Person",
        "X-Amzn-Oidc-Identity",
        "Tailscale-User-Login",
        "Cookie",
        "From",
        "X-Original-User",
    ];
    for header in proxies {
        for value in ["bob", "bob@example.com", "person=bob; session=bob"] {
            let (sent, headers) = (body(("reason", json!("bob"))), [(header, value)]);
            let answer = agent.sign(agent.write, sent, &headers).await;
            assert_eq!(answer.reason(), "unknown-key", "{header}: {}", answer.body);
        }
    }
    agent.got_nowhere("a forged name").await;
}

/// Tokens that say that their bearer is bob, signed by nobody, by the public key, and by another key.
async fn forges_tokens(agent: &Agent) {
    let broker = &agent.broker;
    let pem = std::fs::read_to_string(broker.config_dir.path().join("instance.pem"));
    let public = SigningKey::from_pkcs8_pem(&pem.expect("a key")).expect("Ed25519").verifying_key();
    let encode = |it: &Value| URL_SAFE_NO_PAD.encode(it.to_string());
    let decode = |it: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(it).expect("base64")).expect("JSON")
    };
    let parts: Vec<_> = broker.token.split('.').collect();
    let (header, claims) = (decode(parts[0]), decode(parts[1]));
    let pem_line = STANDARD.encode(public.as_bytes());
    let secrets = [public.as_bytes().to_vec(), pem_line.into_bytes(), Vec::new()];
    let other = SigningKey::from_bytes(&[9; 32]);
    for kind in ["task+jwt", "login+jwt"] {
        let (mut header, mut claims) = (header.clone(), claims.clone());
        header["typ"] = json!(kind);
        claims["sub"] = json!("bob");
        let mut forged = vec![format!("{}.{}.{}", encode(&header), encode(&claims), parts[2])];
        for none in ["none", "None", "NONE", ""] {
            header["alg"] = json!(none);
            let unsigned = format!("{}.{}.", encode(&header), encode(&claims));
            forged.extend([format!("{unsigned}{}", parts[2]), unsigned]);
        }
        header["alg"] = json!("HS256");
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        for secret in &secrets {
            let mac = URL_SAFE_NO_PAD.encode(hmac_sha256(secret, signed.as_bytes()));
            forged.push(format!("{signed}.{mac}"));
        }
        // With its key in the header, as some libraries believe.
        header["alg"] = json!("EdDSA");
        let x = URL_SAFE_NO_PAD.encode(other.verifying_key().as_bytes());
        header["jwk"] = json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = ed25519_dalek::Signer::sign(&other, signed.as_bytes()).to_bytes();
        forged.push(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)));
        for token in forged {
            let lease = format!("/v1/leases/{}", agent.write);
            for path in ["/v1/whoami", &lease, &format!("{lease}/statement")] {
                let answer = broker.send(Method::GET, path, Some(&token), &[], None).await;
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{token}: {}", answer.body);
            }
            let claim = format!("{lease}/credentials");
            let claim = broker.send(Method::POST, &claim, Some(&token), &[], Some(json!({}))).await;
            assert_eq!(claim.status, StatusCode::UNAUTHORIZED, "{token}: {}", claim.body);
        }
    }
    agent.got_nowhere("a forged token").await;
}

/// RFC 2104.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |with: u8| -> Vec<u8> {
        let mut block = key.to_vec();
        block.resize(64, 0);
        block.iter().map(|it| it ^ with).collect()
    };
    let inner = Sha256::digest([&padded(0x36), message].concat());
    Sha256::digest([padded(0x5c), inner.to_vec()].concat()).to_vec()
}

async fn enrols_a_key(agent: &Agent) {
    let key = json!({
        "person": "bob", "handle": "bob", "public_key": agent.key.public_key(), "fingerprint": agent.key.fingerprint(),
        "assurance": "verified", "evidence": "bob says so",
    });
    let paths = [
        "/v1/people",
        "/v1/people/bob",
        "/v1/people/bob/keys",
        "/v1/persons",
        "/v1/keys",
        "/v1/enrol",
        "/v1/enroll",
        "/v1/signers",
        "/v1/statements",
        "/v1/freezes",
        "/v1/admin",
        "/v1/tasks",
        "/v1/events",
        "/people",
        "/keys",
        "/admin",
        "/debug",
        "/metrics",
        "/v1/../people",
    ];
    for path in paths {
        for method in [Method::POST, Method::PUT, Method::PATCH] {
            let body = Some(key.clone());
            let answer =
                agent.broker.send(method, path, Some(&agent.broker.token), &[], body).await;
            assert!(answer.status.is_client_error(), "{path}: {} {}", answer.status, answer.body);
        }
    }
    let nonce = agent.broker.post("/v1/login/nonce", json!({})).await.body["nonce"].clone();
    let nonce = nonce.as_str().expect("a nonce");
    let login = json!({ "nonce": nonce, "signature": agent.key.sign_login(nonce) });
    assert_eq!(agent.broker.post("/v1/login", login).await.reason(), "unknown-key");
    let held: bool =
        sqlx::query_scalar("select exists (select from person_key where fingerprint = $1)")
            .bind(agent.key.fingerprint())
            .fetch_one(&agent.broker.database.owner)
            .await
            .expect("an answer");
    assert!(!held);
    agent.got_nowhere("its own key").await;
}

/// Its own token, on every documented route with every method, and in every place where a signature goes.
async fn uses_its_token_everywhere(agent: &Agent) {
    /// What it may do: read its own, and ask.
    const MAY: [(&str, &str); 13] = [
        ("GET", "/v1/leases"),
        ("POST", "/v1/leases"),
        ("GET", "/v1/leases/{id}"),
        ("GET", "/v1/leases/{id}/statement"),
        ("GET", "/v1/leases/{id}/approval"),
        ("POST", "/v1/login/nonce"),
        ("GET", "/v1/scopes"),
        ("POST", "/v1/explain"),
        ("GET", "/v1/whoami"),
        ("GET", "/healthz"),
        ("GET", "/.well-known/jwks.json"),
        ("GET", "/readyz"),
        ("GET", "/leases/{id}"),
    ];
    let broker = &agent.broker;
    let token = &broker.token;
    let signature = json!({ "decision": "approve", "signature": token });
    let document = serde_json::to_value(broker::http::api_document()).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let mut did = Vec::new();
    for path in paths.keys() {
        let bodies = [
            production_write(),
            json!({}),
            signature.clone(),
            json!({ "kind": "task-start", "agent": "mine", "task": "x", "ttl_seconds": 3600 }),
            json!({ "kind": "revoke-key", "fingerprint": broker.bob.fingerprint() }),
            json!({ "id": agent.write, "decision": "approve", "signature": token }),
            json!({ "nonce": token, "signature": token }),
            json!({ "state": "approved" }),
        ];
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"] {
            // What it withdraws it does not get either.
            if (method, path.as_str()) == ("POST", "/v1/leases/{id}/withdraw") {
                continue;
            }
            for body in &bodies {
                let to = path.replace("{id}", &agent.write.to_string());
                let verb: Method = method.parse().expect("a method");
                let answer = broker.send(verb, &to, Some(token), &[], Some(body.clone())).await;
                assert!(!answer.body.to_string().contains(TOKEN_MARK), "{method} {path}");
                let asked = if method == "HEAD" { "GET" } else { method };
                if answer.status.is_success() {
                    assert!(MAY.contains(&(asked, path)), "{method} {path}: {}", answer.body);
                    did.push((asked.to_owned(), path.clone()));
                }
            }
        }
    }
    for (method, path) in MAY {
        assert!(
            did.contains(&(method.into(), path.into())),
            "{method} {path} is not what it may do"
        );
    }
    agent.got_nowhere("its own token").await;
}

/// `ssh-agent`, until it is dropped.
async fn ssh_agent(socket: &Path, key: &Path) -> Child {
    let agent = Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(socket)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("ssh-agent runs");
    until("ssh-agent listens", Duration::from_secs(20), async || socket.exists()).await;
    let added = Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", socket).status();
    assert!(added.await.expect("ssh-add runs").success());
    agent
}

/// Alice's key is on the same machine, and her `ssh-agent` signs whatever it is asked to. She is the sponsor.
async fn uses_the_sponsors_key_in_an_ssh_agent(agent: &Agent) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("agent");
    let key = agent.key_file("alice", &agent.broker.alice);
    let mut running = ssh_agent(&socket, &key).await;
    std::fs::remove_file(&key).expect("only in the agent now");
    let public = key.with_extension("pub");
    let (lease, public) = (agent.write.to_string(), public.to_str().expect("a path"));
    let with = [("SSH_AUTH_SOCK", socket.to_str().expect("a path"))];
    for more in [&[][..], &["--refuse", "--reason", "no"]] {
        let args = [&["sign", &lease, "--key", public], more].concat();
        let signed = agent.run(&args, "yes\n", &with).await;
        exits(&signed, EXIT_DENIED, "stands behind the agent");
    }
    running.kill().await.expect("ours");
    // She was there, and that she was is on record.
    let events = agent.broker.events(agent.write).await;
    assert!(events.iter().all(|it| it != "signature.accepted"), "{events:?}");
    let sql = "select count(*) from event where lease_id = $1 and type = 'signature.rejected' and actor = 'person:alice'";
    let told = sqlx::query_scalar::<_, i64>(sql).bind(agent.write.0);
    assert_eq!(told.fetch_one(&agent.broker.database.owner).await.expect(sql), 2);
    agent.got_nowhere("the sponsor's key").await;
}

async fn signs_with_keys_that_nobody_enrolled(agent: &Agent) {
    let statement = agent.broker.statement(agent.write).await;
    for key in [&agent.key, &Key::hardware(), &Key::hardware_for("ssh:"), &Key::software()] {
        agent.does_not_count(&key.sign("approve", &statement), "unknown-key").await;
    }
    agent.got_nowhere("strangers' keys").await;
}

async fn replays_what_people_signed(agent: &Agent) {
    let broker = &agent.broker;
    // A good approval of the same request, asked a second time.
    let twin = broker.pending_lease().await;
    let good = broker.bob.sign("approve", &broker.statement(twin).await);
    let counted = broker.send_signature(twin, "approve", &good).await;
    assert_eq!(counted.body["state"], "approved", "{}", counted.body);
    agent.does_not_count(&good, "not-this-statement").await;
    // The same, found while nobody has counted it yet.
    let twin = broker.pending_lease().await;
    let unsent = broker.bob.sign("approve", &broker.statement(twin).await);
    agent.does_not_count(&unsent, "not-this-statement").await;
    // A good login, and one over what the agent would rather have signed.
    let nonce = broker.post("/v1/login/nonce", json!({})).await.body["nonce"].clone();
    let nonce = nonce.as_str().expect("a nonce");
    let signature = broker.bob.sign_login(nonce);
    let login = json!({ "nonce": nonce, "signature": signature });
    let session = broker.post("/v1/login", login.clone()).await;
    assert_eq!(session.body["person"], "bob", "{}", session.body);
    assert_eq!(broker.post("/v1/login", login).await.reason(), "stale-nonce");
    agent.does_not_count(&signature, "wrong-namespace").await;
    let statement = String::from_utf8(broker.statement(agent.write).await).expect("ASCII");
    let as_nonce = broker.bob.sign_login(&statement);
    agent.does_not_count(&as_nonce, "wrong-namespace").await;
    // And bob's session, were it found on his machine: it reads.
    let token = session.body["token"].as_str().expect("a token");
    for route in ["credentials", "withdraw"] {
        let path = format!("/v1/leases/{}/{route}", agent.write);
        let answer = broker.send(Method::POST, &path, Some(token), &[], Some(json!({}))).await;
        assert!(answer.status.is_client_error(), "{route}: {}", answer.body);
    }
    agent.got_nowhere("replays").await;
}

async fn claims_while_it_waits(agent: &Agent) {
    let mut claims = JoinSet::new();
    for number in 0..50 {
        let (sender, token) = (Sender::of(&agent.broker), agent.broker.token.clone());
        let lease = if number % 2 == 0 { agent.write } else { agent.destroy };
        claims.spawn(async move {
            let path = format!("/v1/leases/{lease}/credentials");
            sender.send(Method::POST, &path, Some(&token), &[], Some(json!({}))).await
        });
    }
    for claim in claims.join_all().await {
        assert_eq!(claim.problem(), "/problems/pending", "{}", claim.body);
    }
    // Waiting is no way in either.
    let mut waits = JoinSet::new();
    for _ in 0..20 {
        let (sender, token) = (Sender::of(&agent.broker), agent.broker.token.clone());
        let path = format!("/v1/leases/{}?wait_seconds=1", agent.write);
        waits.spawn(async move { sender.send(Method::GET, &path, Some(&token), &[], None).await });
    }
    for wait in waits.join_all().await {
        assert_eq!(wait.body["state"], "pending", "{}", wait.body);
    }
    agent.got_nowhere("fifty claims").await;
}

async fn withdraws_and_asks_again(agent: &Agent) {
    let broker = &agent.broker;
    let headers = [("Idempotency-Key", "again")];
    let ask = async |body: Value| {
        broker.send(Method::POST, "/v1/leases", Some(&broker.token), &headers, Some(body)).await
    };
    let id = ask(production_write()).await.id();
    assert_eq!(broker.approve(id, &broker.bob).await.body["state"], "approved");
    // What was approved does not become another request...
    let mut other = production_write();
    other["resources"] = json!(["arn:aws:s3:::prod-app-data/config/other.json"]);
    assert_eq!(ask(other).await.problem(), "/problems/idempotency-mismatch");
    // ... and not a second one, nor the same again once it is taken back.
    let back = broker.post(&format!("/v1/leases/{id}/withdraw"), json!({})).await;
    assert_eq!(back.body["state"], "withdrawn", "{}", back.body);
    let again = ask(production_write()).await;
    assert_eq!((again.id(), &again.body["state"]), (id, &json!("withdrawn")), "{}", again.body);
    assert_eq!(broker.claim(id).await.problem(), "/problems/ended");
    // Bob's approval is of that request alone.
    let new = broker.pending_lease().await;
    let old = broker.bob.sign("approve", &broker.statement(id).await);
    assert_eq!(broker.send_signature(new, "approve", &old).await.reason(), "not-this-statement");
    assert_eq!(broker.claim(new).await.problem(), "/problems/pending");
    agent.got_nowhere("asking again").await;
}
