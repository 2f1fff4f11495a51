//! A whole task of a scripted agent, through the command line and through MCP: what the agent reads of it holds no
//! secret, and a next step at every refusal. What it was refused, it got in the end by doing what it was told.

use std::process::Output;

use broker::lease::LeaseId;
use serde_json::{Value, json};
use tests::mcp::Client;
use tests::program::text;
use tests::site::{Site, production_write_arguments, production_write_tool};
use tests::sts::FakeSts;
use tests::{Setup, wide_budgets};

/// What the agent does once it may: all that its environment has of AWS credentials is the way to them.
const WORK: [&str; 4] = [
    "--",
    "sh",
    "-c",
    "test -n \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\" && test -z \"$AWS_SESSION_TOKEN\" && echo worked",
];

/// An agent that writes down everything that it is told.
struct Agent {
    site: Site,
    transcript: String,
}

impl Agent {
    /// Runs `broker ARGS`; a refusal has its next step in words and, as JSON, in members.
    async fn runs(&mut self, args: &[&str], exit: i32) -> Value {
        let Output { status, stdout, stderr } =
            self.site.command(args).output().await.expect("it runs");
        let (stdout, stderr) = (text(&stdout), text(&stderr));
        self.transcript.extend(["$ broker ", &args.join(" "), "\n", &stdout, &stderr]);
        assert_eq!(status.code(), Some(exit), "{}", self.transcript);
        let document = serde_json::from_str(&stdout).unwrap_or(Value::String(stdout));
        if exit != 0 {
            assert!(stderr.contains("\nnext: "), "no next step: {stderr}");
            assert!(document.is_string() || document["next"].is_string(), "{document}");
        }
        document
    }

    /// Runs the command that the refusal names, with the agent's own work in it.
    async fn does_as_told(&mut self, refusal: &Value, exit: i32) -> Value {
        let words = refusal["next_command"].as_array().expect("a command");
        let words: Vec<_> = words.iter().map(|it| it.as_str().expect("a word")).collect();
        let args = match words.as_slice() {
            ["broker", args @ .., "--", "COMMAND"] => [args, &WORK[..]].concat(),
            ["broker", args @ ..] => args.to_vec(),
            other => panic!("{other:?}"),
        };
        let args: Vec<_> = args.iter().map(|it| (*it).to_owned()).collect();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        self.runs(&args, exit).await
    }

    async fn is_signed_for(&self, lease: &Value) -> LeaseId {
        let id: LeaseId = lease.as_str().expect("an id").parse().expect("an id");
        let answer = self.site.broker.approve(id, &self.site.broker.bob).await;
        assert_eq!(answer.body["state"], "approved", "{}", answer.body);
        id
    }
}

async fn agent() -> Agent {
    let sts = FakeSts::start().await;
    let setup = Setup { settings: wide_budgets(), ..Setup::fake(&sts) };
    Agent { site: Site::with(setup, sts).await, transcript: String::new() }
}

/// No secret, in any spelling that a tool or an encoder might give it.
fn clean(site: &Site, transcript: &str) {
    for secret in site.secrets() {
        let escaped = serde_json::to_string(secret).expect("text");
        for spelling in [secret, escaped.trim_matches('"'), &hex::encode(secret)] {
            assert!(!transcript.contains(spelling), "a secret is in the transcript");
        }
    }
}

#[tokio::test]
async fn a_task_through_the_command_line_leaves_no_secret_and_a_next_step_at_each_refusal() {
    let mut agent = agent().await;
    let scopes = agent.runs(&["scopes", "-o", "json"], 0).await;
    assert!(scopes["scopes"].as_array().is_some_and(|it| 3 < it.len()), "{scopes}");
    let write: Vec<_> = production_write_arguments();
    let write: Vec<_> = write.iter().map(String::as_str).collect();
    let ask: Vec<_> = ["lease", "-o", "json"].iter().chain(&write).copied().collect();
    let explain: Vec<_> = ["explain", "-o", "json"].iter().chain(&write).copied().collect();
    assert_eq!(agent.runs(&explain, 0).await["outcome"], "pending");

    let staging = [&["exec", "--scope", "staging-rw"][..], &WORK].concat();
    let worked = agent.runs(&staging, 0).await;
    assert!(worked.as_str().unwrap().starts_with("worked"), "{worked}");

    // Denied: told what may be asked for.
    let denied = agent.runs(&["lease", "--scope", "prod-admin", "-o", "json"], 4).await;
    assert!(agent.does_as_told(&denied, 0).await["scopes"].is_array());

    // Pending: told whom to tell what, and runs what it was told as soon as somebody has signed.
    let pending = agent.runs(&ask, 3).await;
    assert!(pending["next"].as_str().unwrap().contains(pending["short_code"].as_str().unwrap()));
    agent.is_signed_for(&pending["lease_id"]).await;
    let worked = agent.does_as_told(&pending, 0).await;
    assert!(worked.as_str().unwrap().starts_with("worked"), "{worked}");

    // Expired: nobody signed in time; the lease itself names how to ask again, in the same words.
    let new = [&ask[..], &["--new"]].concat();
    let late = agent.runs(&new, 3).await;
    agent.site.later(time::Duration::hours(1)).await;
    let ended = agent.does_as_told(&late, 6).await;
    assert_eq!(ended, json!(""), "standard output is the child's");
    let again = agent
        .runs(
            &["lease", "-o", "json", "--wait", "1s"]
                .iter()
                .chain(&write)
                .copied()
                .collect::<Vec<_>>(),
            3,
        )
        .await;
    assert_ne!(again["lease_id"], late["lease_id"]);

    // Frozen: no command helps, and it is told to stop and whom to ask.
    agent.site.freeze().await;
    let frozen = agent.runs(&new, 6).await;
    assert_eq!(
        (&frozen["type"], &frozen["next_command"]),
        (&json!("/problems/frozen"), &Value::Null)
    );
    assert!(frozen["next"].as_str().unwrap().contains("ask the sponsor"), "{frozen}");

    assert!(agent.transcript.len() > 10_000, "it was all written down");
    clean(&agent.site, &agent.transcript);
}

#[tokio::test]
async fn a_task_through_mcp_leaves_no_secret_and_a_next_step_at_each_refusal() {
    let mut agent = agent().await;
    let (mut client, _) = Client::start(&agent.site).await;
    client.call("list", json!({})).await;
    client.got("list_scopes", json!({})).await;
    client.got("explain", production_write_tool()).await;
    let run = |lease: &Value| json!({ "next_command": lease["use"]["exec"] });

    let staging = client.got("request_lease", json!({ "scope": "staging-rw" })).await;
    let worked = agent.does_as_told(&run(&staging), 0).await;
    assert!(worked.as_str().unwrap().starts_with("worked"), "{worked}");
    client.refused("request_lease", json!({ "scope": "prod-admin" })).await;

    let pending = client.got("request_lease", production_write_tool()).await;
    assert_eq!(pending["refusal"]["type"], "/problems/pending");
    assert!(pending["next"].as_str().unwrap().contains("lease_status"), "{pending}");
    agent.is_signed_for(&pending["lease"]["id"]).await;
    let wait = json!({ "id": pending["lease"]["id"], "wait_seconds": 30 });
    let signed = client.got("lease_status", wait).await;
    let worked = agent.does_as_told(&run(&signed), 0).await;
    assert!(worked.as_str().unwrap().starts_with("worked"), "{worked}");

    let mut another = production_write_tool();
    another["new"] = json!(true);
    let late = client.got("request_lease", another.clone()).await;
    agent.site.later(time::Duration::hours(1)).await;
    let ended = client.got("lease_status", json!({ "id": late["lease"]["id"] })).await;
    assert_eq!(ended["refusal"]["state"], "lapsed");
    assert!(!ended["next"].as_str().unwrap().is_empty(), "{ended}");
    agent.site.freeze().await;
    let frozen = client.refused("request_lease", another).await;
    assert_eq!(frozen["refusal"]["type"], "/problems/frozen");
    assert_eq!(client.asked, 0, "nobody was asked to approve anything");

    agent.transcript += &client.transcript;
    clean(&agent.site, &agent.transcript);
    client.end(&agent.site).await;
}
