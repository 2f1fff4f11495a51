//! An MCP client that we did not write, and what it saw.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::program::{binary, program};
use crate::site::Site;

pub struct Client {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// How often the server asked the client for something.
    pub asked: u64,
    /// Every answer, as it came.
    pub transcript: String,
}

impl Client {
    /// Starts `broker mcp` as the agent, and the client; with what the server says of itself.
    pub async fn start(site: &Site) -> (Self, Value) {
        Self::with(site, site.environment()).await
    }

    pub async fn with(site: &Site, environment: BTreeMap<String, String>) -> (Self, Value) {
        let mut child = program(python(), &environment)
            .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/mcp/client.py")])
            .arg(binary("broker"))
            .arg("mcp")
            .env("HOME", site.broker.config_dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python runs");
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut client = Self { child, stdin, lines, asked: 0, transcript: String::new() };
        let hello = client.line().await;
        (client, hello)
    }

    async fn line(&mut self) -> Value {
        let line = self.lines.next_line().await.expect("text").expect("see above what Python said");
        let value: Value = serde_json::from_str(&line).expect("the client writes JSON");
        // As an agent reads it, and not with the escapes of JSON that hide a character.
        self.transcript += &readable(&value);
        value
    }

    /// Calls a tool, or `list`.
    pub async fn call(&mut self, method: &str, arguments: Value) -> Value {
        let line = format!("{}\n", json!([method, arguments]));
        self.stdin.write_all(line.as_bytes()).await.expect("it listens");
        let mut answer = self.line().await;
        self.asked = answer["asked"].as_u64().expect("a count");
        answer["got"].take()
    }

    /// Calls a tool that gives what it was asked for: its structured content.
    pub async fn got(&mut self, tool: &str, arguments: Value) -> Value {
        let mut answer = self.call(tool, arguments).await;
        assert_eq!(answer["isError"], false, "{answer}");
        answer["structuredContent"].take()
    }

    /// Calls a tool that refuses: in its result, with what to do next in words and in members.
    pub async fn refused(&mut self, tool: &str, arguments: Value) -> Value {
        let mut answer = self.call(tool, arguments).await;
        assert_eq!(answer["isError"], true, "{answer}");
        let text = answer["content"][0]["text"].as_str().expect("text").to_owned();
        let refusal = &answer["structuredContent"]["refusal"];
        let next = refusal["next"].as_str().expect("a next step");
        assert!(!next.is_empty() && text.contains("next: "), "{answer}");
        answer["structuredContent"].take()
    }

    /// Hangs up, and sees that no secret was in anything that was said.
    pub async fn end(self, site: &Site) {
        let Self { mut child, stdin, lines: _, asked: _, transcript } = self;
        drop(stdin);
        assert!(child.wait().await.expect("it ends").success());
        for secret in site.secrets() {
            assert!(!transcript.contains(secret), "a secret is in what the tools said");
        }
    }
}

fn readable(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text}\n"),
        Value::Array(all) => all.iter().map(readable).collect(),
        Value::Object(all) => {
            all.iter().flat_map(|(name, it)| [format!("{name}: "), readable(it)]).collect()
        }
        other => format!("{other}\n"),
    }
}

/// The Python of what `scripts/setup.sh --mcp-client` installs.
fn python() -> String {
    #[expect(clippy::disallowed_methods, reason = "the edge of the tests")]
    let python = std::env::var("MCP_CLIENT").unwrap_or_default();
    assert!(
        !python.is_empty(),
        "MCP_CLIENT is not set; run `make test`, or `scripts/setup.sh --mcp-client` and then this with \
         MCP_CLIENT=\"$(scripts/setup.sh --print-mcp-client)\""
    );
    python
}
