//! People, keys and tasks with the real programs, as an operator, an admin, a sponsor and an agent type them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::program::{Dev, binary, dev_dir, text};
use tokio::process::Command;

/// What a program did.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(it: Output) -> Self {
        Self { code: it.status.code(), out: text(&it.stdout), err: text(&it.stderr) }
    }
}

impl Ran {
    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {self:#?}"))
    }

    #[track_caller]
    fn says(self, words: &str) -> Self {
        assert!(self.err.contains(words), "{words}: {self:#?}");
        self
    }
}

/// `broker`, as somebody at a machine of their own types it: no agent's token, and sessions of their own.
async fn person(dev: &Dev, who: &str, args: &[&str]) -> Ran {
    let mut command = as_person(dev, who, args);
    command.output().await.expect("it runs").into()
}

fn as_person(dev: &Dev, who: &str, args: &[&str]) -> Command {
    let mut command = dev.command(binary("broker"), args);
    command.env_remove("BROKER_TOKEN").env("XDG_STATE_HOME", dev.dir.join(format!("state-{who}")));
    command
}

async fn agent(dev: &Dev, token: &str, args: &[&str]) -> Ran {
    let mut command = dev.command(binary("broker"), args);
    command.env("BROKER_TOKEN", token);
    command.output().await.expect("it runs").into()
}

/// `brokerd person`, on the server's host.
async fn operator(dev: &Dev, args: &[&str]) -> Ran {
    let config = dev.dir.join("config").display().to_string();
    let args = [&["person", "--config", &config], args].concat();
    dev.run(binary("brokerd"), &args).await.into()
}

async fn ops(dev: &Dev, sql: &'static str) -> Value {
    let url = &dev.environment["BROKER_OPS_DATABASE_URL"];
    let mut connection = PgConnection::connect(url).await.expect("operations connect");
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect(sql)
}

#[tokio::test]
async fn people_keys_and_tasks_change_by_what_is_typed_and_signed() {
    let (_root, dir) = dev_dir();
    let dev = Dev::start(&dir, &BTreeMap::new()).await;
    sponsors_start_and_end_tasks(&dev).await;
    an_operator_proposes_and_another_admin_signs(&dev).await;
    an_export_shows_who_enrolled_the_signers_key(&dev).await;
    keys_are_revoked_and_freezes_ended(&dev).await;
    a_disabled_sponsor_takes_the_agents_along(&dev).await;
    assert!(dev.server.stop("TERM").await.success());
}

async fn sponsors_start_and_end_tasks(dev: &Dev) {
    // The demo's own was started so.
    let row = ops(dev, "select to_jsonb(it) from (select kind, state, about, signer, proposed_by from act_history) it").await;
    assert_eq!(
        row,
        json!({ "kind": "task-start", "state": "done", "about": "alice", "signer": "alice", "proposed_by": "alice" })
    );
    let alice = dev.key("alice");
    let start = ["task", "start", "--agent", "coder", "--task", "OPS-9", "--key", &alice];
    let with = |more: &[&'static str]| -> Vec<&str> { [&start[..], more].concat() };
    // As for a shell's `$(…)`.
    let started = person(dev, "alice", &with(&[])).await.ended(0);
    let started = started.says("a task of agent coder").says("it approves nothing");
    let token = started.out.trim();
    let me = agent(dev, token, &["whoami"]).await.ended(0).json();
    assert_eq!((&me["agent"], &me["task"]), (&json!("coder"), &json!("OPS-9")));
    agent(dev, token, &["lease", "--scope", "staging-rw"]).await.ended(0);
    // It starts nothing, and signs nothing.
    let own = agent(dev, token, &["task", "start", "--agent", "mine", "--task", "x"]).await;
    own.ended(2).says("there is no key to sign with");

    person(dev, "alice", &with(&["--ttl", "9h"])).await.ended(2).says("a task runs for 1m to 8h");
    let as_json = person(dev, "alice", &with(&["-o", "json"])).await.ended(0).json();
    assert!(as_json["token"].is_string() && as_json["sponsor"] == "alice", "{as_json}");
    let env = person(dev, "alice", &with(&["-o", "env"])).await.ended(0);
    let mut shell =
        dev.command("sh", &["-c", &format!("{}\"$0\" whoami", env.out.replace('\n', "; "))]);
    shell.arg(binary("broker"));
    let in_shell: Ran = shell.output().await.expect("it runs").into();
    assert_eq!(in_shell.ended(0).json()["agent"], "coder");
    // Whoever names a key is the one whose key it is, whoever logged in before.
    let bob = dev.key("bob");
    let args = ["task", "start", "--agent", "coder", "--task", "x", "--key", &bob];
    let bobs = person(dev, "alice", &[&args[..], &["-o", "json"]].concat()).await.ended(0).json();
    assert_eq!(bobs["sponsor"], "bob");

    let file = dev.dir.join("coder.token");
    std::fs::write(&file, "an older one\n").expect("a file");
    let name = file.display().to_string();
    let written = [&start[..], &["--write-token", &name]].concat();
    assert_eq!(person(dev, "alice", &written).await.ended(0).out, "");
    let mode = std::fs::metadata(&file).expect("a file").permissions().mode() & 0o777;
    let token = std::fs::read_to_string(&file).expect("a token");
    assert_eq!((mode, token.contains("older")), (0o600, false));
    let pending = agent(
        dev,
        token.trim(),
        &[
            "lease",
            "--scope",
            "prod-rw",
            "--action",
            "s3:PutObject",
            "--resource",
            "arn:aws:s3:::prod-app-data/config/app.json",
            "--reason",
            "a",
            "--rollback",
            "b",
            "-o",
            "json",
        ],
    );
    let id = pending.await.ended(3).json()["id"].as_str().expect("a lease").to_owned();
    agent(dev, token.trim(), &["task", "end"]).await.ended(0).says("with 1 open lease");
    agent(dev, token.trim(), &["whoami"]).await.ended(8);
    let lease = person(dev, "alice", &["show", &id]).await.ended(0).json();
    assert_eq!(lease["state"], "revoked");
}

async fn an_operator_proposes_and_another_admin_signs(dev: &Dev) {
    let key = dev.dir.join("gina").display().to_string();
    let made = dev.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]).await;
    assert!(made.status.success());
    let public = format!("{key}.pub");
    let add = [
        "add",
        "gina",
        "--name",
        "Gina Grey",
        "--email",
        "gina@example.com",
        "--group",
        "production-signers",
        "--key",
        &public,
    ];
    let proposed =
        operator(dev, &add).await.ended(0).says("proposed, and nothing more: one of erin, frank");
    let id = proposed.says("person gina").out.trim().to_owned();
    assert!(!operator(dev, &["list"]).await.ended(0).out.contains("gina"));

    let (erin, frank, bob) = (dev.key("erin"), dev.key("frank"), dev.key("bob"));
    person(dev, "erin", &["login", "--key", &erin]).await.ended(0);
    let waits = person(dev, "erin", &["pending"]).await.ended(0).json();
    assert_eq!(waits["statements"][0]["id"], json!(id), "{waits}");
    let waits = person(dev, "erin", &["pending", "-o", "text"]).await.ended(0);
    assert!(waits.out.contains(&id) && waits.out.contains("admin-change gina"), "{waits:?}");

    // Neither whom it is not for, nor an agent.
    person(dev, "bob", &["sign", &id, "--key", &bob]).await.ended(2);
    let demo = dev.environment["BROKER_TOKEN"].clone();
    agent(dev, &demo, &["sign", &id, "--key", &bob]).await.ended(2);

    // With stock OpenSSH, as on another machine.
    let printed =
        as_person(dev, "erin", &["sign", &id, "--print"]).output().await.expect("it runs");
    let file = dev.dir.join("change");
    std::fs::write(&file, &printed.stdout).expect("a file");
    let name = file.display().to_string();
    let stock = ["-q", "-Y", "sign", "-n", "admin-change@broker", "-f", &erin, &name];
    assert!(dev.run("ssh-keygen", &stock).await.status.success());
    let signature = format!("{name}.sig");
    let signed = person(dev, "erin", &["sign", &id, "--signature", &signature]).await.ended(0);
    assert_eq!(signed.json()["state"], "done");
    assert!(operator(dev, &["list"]).await.ended(0).out.contains("gina"));

    // The one whom it is about cannot sign it, and can refuse it; and so can any admin.
    for (who, key) in [("gina", key), ("frank", frank)] {
        let proposed = operator(dev, &["groups", "gina", "--add", "backup-signers"]).await.ended(0);
        let sign = ["sign", proposed.out.trim(), "--key", &key];
        if who == "gina" {
            assert_eq!(person(dev, who, &sign).await.ended(4).json()["reason"], "concerned");
        }
        let refuse = [&sign[..], &["--refuse", "--reason", "not now"]].concat();
        assert_eq!(person(dev, who, &refuse).await.ended(0).json()["state"], "refused");
    }
}

async fn an_export_shows_who_enrolled_the_signers_key(dev: &Dev) {
    let demo = dev.environment["BROKER_TOKEN"].clone();
    let ask = [
        "lease",
        "--scope",
        "prod-rw",
        "--action",
        "s3:PutObject",
        "--resource",
        "arn:aws:s3:::prod-app-data/config/app.json",
        "--reason",
        "a",
        "--rollback",
        "b",
        "-o",
        "json",
    ];
    let id =
        agent(dev, &demo, &ask).await.ended(3).json()["id"].as_str().expect("a lease").to_owned();
    let gina = dev.dir.join("gina").display().to_string();
    person(dev, "gina", &["sign", &id, "--key", &gina]).await.ended(0);
    agent(dev, &demo, &["exec", "--lease", &id, "--", "true"]).await.ended(0);
    let file = dev.dir.join("approval.json");
    let name = file.display().to_string();
    person(dev, "gina", &["approval", "export", &id, "-f", &name]).await.ended(0);
    let valid = person(dev, "nobody", &["audit", "verify", &name]).await.ended(0);
    assert_eq!(valid.json()["approved"], true);
    let text = std::fs::read_to_string(&file).expect("the file");
    let envelope: Value = serde_json::from_str(&text).expect("JSON");
    let payload = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        envelope["payload"].as_str().expect("a payload"),
    );
    let payload: Value = serde_json::from_slice(&payload.expect("base64")).expect("JSON");
    assert_eq!(payload["signatures"][0]["key"]["enrolled_by"]["signer"], "erin", "{payload}");
    for at in [text.len() / 3, text.len() / 2, text.len() - 60] {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        std::fs::write(&file, bytes).expect("the file");
        person(dev, "nobody", &["audit", "verify", &name]).await.ended(4);
    }
}

async fn keys_are_revoked_and_freezes_ended(dev: &Dev) {
    let gina = dev.dir.join("gina").display().to_string();
    let printed = dev.run("ssh-keygen", &["-lf", &format!("{gina}.pub")]).await;
    let line = text(&printed.stdout);
    let fingerprint = line.split(' ').nth(1).expect("a fingerprint");
    let (carol, erin) = (dev.key("carol"), dev.key("erin"));
    let revoke = |key| ["key", "revoke", fingerprint, "--key", key];
    person(dev, "carol", &revoke(&carol)).await.ended(2);
    person(dev, "erin", &revoke(&erin)).await.ended(0).says("it is done");
    person(dev, "gina", &["login", "--key", &gina]).await.ended(4).says("revoked");

    let url = &dev.environment["BROKER_ADMIN_DATABASE_URL"];
    let mut owner = PgConnection::connect(url).await.expect("the administrator connects");
    sqlx::raw_sql("set role broker_owner").execute(&mut owner).await.expect("the owner");
    let sql = "insert into \"freeze\" (id, kind, target, reason, created_by, created_at)
               values (gen_random_uuid(), 'scope', 'staging-ro', 'looking', 'erin', now()) returning id::text";
    let id: String = sqlx::query_scalar(sql).fetch_one(&mut owner).await.expect("a freeze");
    let demo = dev.environment["BROKER_TOKEN"].clone();
    agent(dev, &demo, &["lease", "--scope", "staging-ro"]).await.ended(6);
    let frank = dev.key("frank");
    person(dev, "erin", &["thaw", &id, "--key", &erin])
        .await
        .ended(2)
        .says("you froze it yourself");
    person(dev, "carol", &["thaw", &id, "--key", &carol]).await.ended(4);
    person(dev, "frank", &["thaw", &id, "--key", &frank])
        .await
        .ended(0)
        .says("the freeze of scope staging-ro");
    agent(dev, &demo, &["lease", "--scope", "staging-ro"]).await.ended(0);
}

async fn a_disabled_sponsor_takes_the_agents_along(dev: &Dev) {
    let erin = dev.key("erin");
    let proposed = operator(dev, &["disable", "alice"]).await.ended(0);
    let id = proposed.says("the tasks and open leases").out.trim().to_owned();
    let demo = dev.environment["BROKER_TOKEN"].clone();
    agent(dev, &demo, &["whoami"]).await.ended(0);
    person(dev, "erin", &["sign", &id, "--key", &erin]).await.ended(0);
    agent(dev, &demo, &["whoami"]).await.ended(8);
    let open = ops(
        dev,
        "select to_jsonb(count(*)) from lease_history where sponsor = 'alice' and state in ('pending', 'approved', 'issued')",
    );
    assert_eq!(open.await, json!(0));
}
