//! An agent that waits, and what a refusal says to it: `broker` against a server on loopback that comes and goes.

use std::collections::BTreeSet;
use std::process::{Output, Stdio};
use std::time::Duration;

use broker::lease::LeaseId;
use serde_json::{Value, json};
use tests::program::{binary, signal, text};
use tests::site::{Site, WaitingClient, production_write_arguments};
use tests::sts::FakeSts;
use tests::{Setup, wide_budgets};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

const SOON: Duration = Duration::from_secs(30);
const UNSET: &str = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; false\n";

async fn roomy(setup: impl FnOnce(&mut Setup)) -> Site {
    let sts = FakeSts::start().await;
    let mut setup_of = Setup { settings: wide_budgets(), ..Setup::fake(&sts) };
    setup(&mut setup_of);
    Site::with(setup_of, sts).await
}

#[tokio::test]
async fn whoever_waits_is_told_who_can_sign_and_then_each_change_in_a_line() {
    let mut site = roomy(|_| {}).await;
    let mut first = WaitingClient::start(&site, &["-o", "json"]).await;
    let mut second = WaitingClient::start(&site, &["-o", "json"]).await;
    assert_eq!(site.pending().await, 1, "the same request waits on one lease");
    let id = first.lease;
    assert_eq!(second.lease, id);
    let told = first.told.join("\n");
    for part in [
        &format!("lease {id} waits for 1 signature of bob, carol"),
        "  code      ",
        "  sign by   2026-01-01T",
        &format!("  sign      broker sign {id}"),
        &format!(
            "  link      {}/leases/{id}   (for them: how to)",
            site.broker.broker.config.settings.origin
        ),
        &format!("  withdraw  broker withdraw {id}"),
        "waiting up to 10m; Ctrl-C ends the waiting, and leaves the request as it is",
    ] {
        assert!(told.contains(part), "{part} is missing from\n{told}");
    }

    site.down();
    for waiting in [&mut first, &mut second] {
        waiting.says("the broker cannot be reached for now; still waiting").await;
    }
    site.up().await;
    for waiting in [&mut first, &mut second] {
        waiting.says("the broker answers again").await;
    }
    site.broker.approve(id, &site.broker.bob).await;
    for waiting in [&mut first, &mut second] {
        waiting.says(&format!("lease {id} is approved")).await;
    }
    let Output { status, stdout, stderr } = first.ends().await;
    assert_eq!(status.code(), Some(0));
    let lease: Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!((&lease["id"], &lease["state"]), (&json!(id), &json!("approved")));
    // Nothing but the next step is left to say, and nothing of a spinner was.
    let rest = text(&stderr);
    assert!(rest.starts_with("next: ") && rest.lines().count() == 1, "{rest}");
    assert!(!told.contains('\r'), "{told}");
    assert_eq!(second.ends().await.status.code(), Some(0));
}

#[tokio::test]
async fn another_lease_is_opened_only_for_whoever_says_so() {
    let site = roomy(|_| {}).await;
    let ask = async |more: &[&str]| {
        let mut arguments = vec!["lease".to_owned(), "-o".into(), "json".into()];
        arguments.extend(production_write_arguments());
        arguments.extend(more.iter().map(|it| (*it).to_owned()));
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = site.command(&arguments).output().await.unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["id"].clone()
    };
    let first = ask(&[]).await;
    assert_eq!((ask(&[]).await, site.pending().await), (first.clone(), 1));
    let other = ask(&["--new"]).await;
    assert_ne!(other, first);
    assert_eq!(site.pending().await, 2);
}

#[tokio::test]
async fn the_first_of_two_signatures_is_a_line_and_the_second_ends_the_waiting() {
    let scopes = include_str!("../../config/scopes.toml")
        .replace("assurance = \"present\" }", "count = 2 }");
    let site = roomy(|setup| setup.scopes = Some(scopes)).await;
    let mut waiting = WaitingClient::start(&site, &[]).await;
    let id = waiting.lease;
    assert!(waiting.told[0].contains("waits for 2 signatures of bob, carol"), "{:?}", waiting.told);
    site.broker.approve(id, &site.broker.bob).await;
    waiting.says("signed by bob; 1 more to come").await;
    site.broker.approve(id, &site.broker.carol).await;
    waiting.says(&format!("lease {id} is approved")).await;
    assert_eq!(waiting.ends().await.status.code(), Some(0));
}

#[tokio::test]
async fn a_signal_ends_the_waiting_at_once_and_leaves_the_request_pending() {
    // Whoever runs the tests in the background has them, and so our programs, ignore SIGINT; one that has a handler here is as ever
    // there.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|it| it.strip_prefix("SigIgn:")).map(str::trim);
    let ignored = ignored.and_then(|it| u64::from_str_radix(it, 16).ok()).unwrap_or(0);
    let _handler = (ignored >> 1 & 1 == 1)
        .then(|| tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()));
    let site = roomy(|_| {}).await;
    for (name, format) in [("INT", "env"), ("TERM", "json"), ("HUP", "text")] {
        let waiting = WaitingClient::start(&site, &["-o", format]).await;
        let id = waiting.lease;
        signal(&waiting.child, name).await;
        let Output { status, stdout, stderr } =
            tokio::time::timeout(Duration::from_secs(5), waiting.ends()).await.expect("at once");
        let (stdout, stderr) = (text(&stdout), text(&stderr));
        assert_eq!(status.code(), Some(3), "{name}: {stderr}");
        for part in [format!("broker exec --lease {id}"), format!("broker withdraw {id}")] {
            assert!(stderr.contains(&part), "{name}: {stderr}");
        }
        assert!(stderr.lines().last().unwrap().starts_with("next: "), "{name}: {stderr}");
        match format {
            "env" => assert_eq!(stdout, UNSET),
            "json" => assert_eq!(
                serde_json::from_str::<Value>(&stdout).unwrap()["type"],
                "/problems/pending"
            ),
            _ => assert!(stdout.contains("state      pending"), "{stdout}"),
        }
        assert_eq!(site.broker.state(id).await, "pending", "{name}");
    }
    assert_eq!(site.pending().await, 1, "each resumed the same request");
}

#[tokio::test]
async fn a_command_that_was_waited_for_is_told_of_signals_and_is_not_left_alone() {
    for name in ["TERM", "HUP"] {
        let site = roomy(|_| {}).await;
        let work = format!(
            "trap 'echo told; exit 7' {name}; echo ready; while :; do sleep 1 & wait $!; done"
        );
        let mut waiting =
            WaitingClient::start_with(&site, "exec", &["--", "sh", "-c", &work]).await;
        site.broker.approve(waiting.lease, &site.broker.bob).await;
        let mut out = BufReader::new(waiting.child.stdout.take().expect("piped")).lines();
        let mut line = async || {
            let line = tokio::time::timeout(SOON, out.next_line()).await;
            line.expect("in time").expect("text")
        };
        assert_eq!(line().await.as_deref(), Some("ready"));
        signal(&waiting.child, name).await;
        assert_eq!(line().await.as_deref(), Some("told"), "{name}");
        let status = tokio::time::timeout(SOON, waiting.child.wait()).await.expect("in time");
        assert_eq!(status.expect("it ends").code(), Some(7), "{name}");
    }
}

#[tokio::test]
async fn a_wait_that_is_over_says_how_to_resume_and_to_withdraw() {
    let site = roomy(|_| {}).await;
    let mut arguments = vec!["lease".to_owned(), "--wait".into(), "1s".into()];
    arguments.extend(production_write_arguments());
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let output = site.command(&arguments).output().await.unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let last = stderr.split("pending: Not signed yet").nth(1).expect("it says so at the end");
    assert!(last.contains("resume    broker exec") && last.contains("withdraw  broker"), "{last}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = document["id"].as_str().unwrap();
    let next = ["broker", "exec", "--lease", id, "--wait", "10m", "--", "COMMAND"];
    assert_eq!(document["next_command"], json!(next));
}

/// What is left on a terminal of what was written to it.
fn screen(written: &str) -> String {
    let mut shown = String::new();
    for line in written.split('\n') {
        let (mut cells, mut at) = (Vec::new(), 0);
        for character in line.chars() {
            if character == '\r' {
                at = 0;
                continue;
            }
            cells.resize(cells.len().max(at + 1), ' ');
            cells[at] = character;
            at += 1;
        }
        let line: String = cells.into_iter().collect();
        shown += line.trim_end();
        shown.push('\n');
    }
    shown
}

#[tokio::test]
async fn on_a_terminal_a_spinner_counts_down_and_leaves_nothing() {
    let site = roomy(|_| {}).await;
    for terminal in ["xterm", "dumb"] {
        let quoted = |it: &String| format!("'{it}'");
        let arguments: Vec<_> = production_write_arguments().iter().map(quoted).collect();
        let broker = binary("broker");
        let line = format!("'{}' lease --new --wait 10m {}", broker.display(), arguments.join(" "));
        let mut command = site.command(&[]);
        *command.as_std_mut() = std::process::Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env_clear().envs(site.environment());
        command.env("PATH", "/usr/bin:/bin").env("TERM", terminal).env("SHELL", "/bin/sh");
        command.env("HOME", site.broker.config_dir.path()).kill_on_drop(true);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script runs");
        let keyboard = child.stdin.take().unwrap();
        let mut shown = child.stdout.take().unwrap();
        let mut written = Vec::new();
        let spins = "9m 5";
        let begun = if terminal == "dumb" { "waiting up to" } else { spins };
        let mut read = async |until: Option<&str>| {
            let mut part = [0; 4096];
            loop {
                let length = shown.read(&mut part).await.unwrap_or(0);
                written.extend_from_slice(&part[..length]);
                let so_far = text(&written);
                if length == 0 || until.is_some_and(|it| so_far.contains(it)) {
                    return so_far;
                }
            }
        };
        let so_far = tokio::time::timeout(SOON, read(Some(begun))).await.expect("it waits");
        let id = so_far.split("lease ").nth(1).unwrap().split(' ').next().unwrap();
        let id: LeaseId = id.parse().expect("an id");
        site.broker.approve(id, &site.broker.bob).await;
        let all = tokio::time::timeout(SOON, read(None)).await.expect("it ends");
        drop(keyboard);
        let left = screen(&all);
        assert!(left.contains(&format!("\nlease {id} is approved\n")), "{left}");
        assert!(!left.contains("waiting for a signature") && !left.contains(" left"), "{left}");
        assert_eq!(all.contains("waiting for a signature"), terminal != "dumb", "{all:?}");
        assert!(!all.contains('\u{1b}'), "not even a sequence that a terminal might not know");
        child.wait().await.unwrap();
    }
}

/// What `broker ARGS -o json` says when it is refused: the document has every member, whatever the refusal is.
async fn refused(site: &Site, args: &[&str], exit: i32) -> Value {
    let mut args = args.to_vec();
    let at = args.iter().position(|it| *it == "--").unwrap_or(args.len());
    args.splice(at..at, ["-o", "json"]);
    let output = site.command(&args).output().await.expect("it runs");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {stderr}");
    let document: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{args:?}: {stdout}"));
    let members: BTreeSet<_> = document.as_object().unwrap().keys().map(String::as_str).collect();
    let all = [
        "type",
        "title",
        "detail",
        "lease_id",
        "state",
        "missing",
        "retry_at",
        "next",
        "next_command",
    ];
    assert!(members.is_superset(&BTreeSet::from(all)), "{args:?}: {stdout}");
    let next = document["next"].as_str().expect("a next step");
    assert!(!next.is_empty() && stderr.contains("\nnext: "), "{args:?}: {stderr}");
    if let Some(words) = document["next_command"].as_array() {
        assert_eq!(words[0], "broker", "{stdout}");
    }
    for secret in site.secrets() {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{args:?}: a secret");
    }
    document
}

#[tokio::test]
async fn every_refusal_says_in_the_same_members_what_is_missing_and_what_to_run_next() {
    let mut site = roomy(|_| {}).await;
    let write = production_write_arguments();
    let ask: Vec<_> =
        ["lease", "--new"].into_iter().chain(write.iter().map(String::as_str)).collect();
    let new = async |site: &Site| -> LeaseId {
        refused(site, &ask, 3).await["lease_id"].as_str().unwrap().parse().unwrap()
    };
    let with = async |site: &Site, id: LeaseId, exit: i32| {
        refused(site, &["exec", "--lease", &id.to_string(), "--", "true"], exit).await
    };
    let told = |it: &Value| json!([it["type"], it["state"], it["next_command"][1]]);

    let pending = new(&site).await;
    for document in [refused(&site, &ask, 3).await, with(&site, pending, 3).await] {
        assert_eq!(told(&document), json!(["/problems/pending", "pending", "exec"]));
        let missing = &document["missing"];
        assert_eq!((&missing["signatures"], &missing["of"]), (&json!(1), &json!(["bob", "carol"])));
        assert_eq!(
            (&missing["sign_with"][0], &missing["sign_with"][1]),
            (&json!("broker"), &json!("sign"))
        );
        assert!(missing["code"].is_string() && missing["sign_by"].is_string(), "{document}");
    }

    let denied = refused(&site, &["lease", "--scope", "nothing"], 4).await;
    assert_eq!(told(&denied), json!(["/problems/denied", null, "scopes"]));

    let no = site.broker.bob.sign("refuse", &site.broker.statement(pending).await);
    site.broker.send_signature(pending, "refuse", &no).await;
    assert_eq!(
        told(&with(&site, pending, 5).await),
        json!(["/problems/refused", "refused", "show"])
    );

    let withdrawn = new(&site).await;
    site.post(&format!("/v1/leases/{withdrawn}/withdraw"), json!({})).await;
    assert_eq!(
        told(&with(&site, withdrawn, 6).await),
        json!(["/problems/ended", "withdrawn", "show"])
    );

    let revoked = site.broker.staging_lease().await;
    site.post(&format!("/v1/leases/{revoked}/revoke"), json!({ "reason": "enough" })).await;
    assert_eq!(told(&with(&site, revoked, 6).await), json!(["/problems/ended", "revoked", "show"]));

    let used = new(&site).await;
    site.broker.approve(used, &site.broker.bob).await;
    site.broker.claim(used).await;
    let twice = with(&site, used, 6).await;
    assert_eq!(told(&twice), json!(["/problems/already-issued", null, "show"]));
    assert!(twice["next"].as_str().unwrap().contains("--new"), "{twice}");

    // In the middle of waiting, and otherwise: a lease that ended names how to ask for it again.
    let lapsing = new(&site).await;
    let expired = site.broker.staging_lease().await;
    site.broker.claim(expired).await;
    let mut waiting = WaitingClient::start(&site, &["-o", "json"]).await;
    site.later(time::Duration::hours(1)).await;
    waiting.says(&format!("lease {} is lapsed", waiting.lease)).await;
    let document: Value = serde_json::from_slice(&waiting.ends().await.stdout).unwrap();
    assert_eq!(told(&document), json!(["/problems/ended", "lapsed", "lease"]));
    assert_eq!(document["next_command"].as_array().unwrap().len(), 14, "in the same words");
    assert_eq!(told(&with(&site, lapsing, 6).await), json!(["/problems/ended", "lapsed", "show"]));
    assert_eq!(told(&with(&site, expired, 6).await), json!(["/problems/ended", "expired", "show"]));
    let nobody = LeaseId(uuid::Uuid::now_v7());
    assert_eq!(told(&with(&site, nobody, 2).await), json!(["/problems/not-found", null, "leases"]));

    site.freeze().await;
    assert_eq!(told(&refused(&site, &ask, 6).await), json!(["/problems/frozen", null, null]));
    site.broker.as_owner("update task set ended_at = started_at").await;
    let over = refused(&site, &ask, 8).await;
    assert_eq!(told(&over), json!(["/problems/unauthenticated", null, null]));
    assert!(over["next"].as_str().unwrap().contains("sponsor"), "{over}");
    site.broker.token = "no-token".to_owned();
    assert_eq!(
        told(&refused(&site, &ask, 8).await),
        json!(["/problems/unauthenticated", null, null])
    );
    site.down();
    assert_eq!(
        told(&refused(&site, &ask, 7).await),
        json!(["/problems/unreachable", null, "whoami"])
    );
}

#[tokio::test]
async fn whoever_is_over_budget_is_told_when_to_come_back() {
    let sts = FakeSts::start().await;
    let settings = "[limits]\nagent.requests_per_minute = 1\n".to_owned();
    let site = Site::with(Setup { settings, ..Setup::fake(&sts) }, sts).await;
    site.broker.staging_lease().await;
    let document = refused(&site, &["lease", "--scope", "staging-rw", "--new"], 9).await;
    assert_eq!(document["type"], "/problems/over-budget");
    assert_eq!(document["retry_at"], "2026-01-01T12:01:00Z", "{document}");
    assert_eq!(
        (&document["budget"], &document["limit"]),
        (&json!("requests_per_minute"), &json!(1))
    );
}

#[tokio::test]
async fn waiting_takes_little_memory() {
    let site = roomy(|_| {}).await;
    let waiting = WaitingClient::start(&site, &[]).await;
    let resident = waiting.resident_kib();
    assert!(resident < 48 * 1024, "{resident} KiB");
}
