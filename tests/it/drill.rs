//! The runbook's commands, typed as the page says, print what the page says.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tests::program::{binary, program, signal, text};
use tokio::io::AsyncReadExt;

/// Of these some 40 s are the cut-off of all roles, waited out once.
const LIMIT: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_does_what_it_says() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/drill.sh");
    let programs = binary("brokerd");
    let target = programs.ancestors().nth(2).expect("target/debug").display().to_string();
    let environment = BTreeMap::from([("CARGO_TARGET_DIR".to_owned(), target)]);
    let mut drill = program(script, &environment)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the drill starts");
    let mut stdout = drill.stdout.take().expect("piped");
    let mut said = Vec::new();
    let ended = tokio::time::timeout(LIMIT, stdout.read_to_end(&mut said)).await;
    if ended.is_err() {
        // So that it stops what it started.
        signal(&drill, "TERM").await;
    }
    let status = drill.wait().await.expect("it ends");
    let said = text(&said);
    assert!(status.success() && ended.is_ok(), "{status}\n{said}");
    assert!(said.contains("All of it is as the page says"), "{said}");
}
