//! The log in the eyes of a verifier that shares no code with ours: both say yes to the same, and no to the same.

use std::fs;
use std::path::Path;
use std::process::Output;

use axum::http::StatusCode;
use broker::aws::AwsOptions;
use broker::identity::Tokens;
use broker::log::proof::{Proof, ProofError, from_export};
use broker::log::verify::{Options, Verdict};
use broker::log::{LogKey, SignedCheckpoint};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use tests::logs::{
    check, codes, export, export_by_http, grow, independent, login, mirror, must_read, now, pin,
    read, story, tile_paths,
};
use tests::{TestBroker, write_secret};

/// A key that is not the log's.
fn another_key() -> String {
    LogKey::from_bytes(&[3; 32]).verifier_key("broker.test/log")
}

fn is_good(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// It has to say what is wrong, not to fall over.
fn is_refused(output: &Output, what: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    assert!(said.starts_with("WRONG: "), "{what}: {said}");
    said
}

fn write(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("written");
    path.to_str().expect("a plain name").to_owned()
}

/// Every checkpoint that was signed, the smallest first.
async fn checkpoints(broker: &TestBroker) -> Vec<String> {
    let sql = "select note from log_checkpoint order by size";
    sqlx::query_scalar(sql).fetch_all(&broker.database.owner).await.expect("checkpoints")
}

async fn proof_of(broker: &TestBroker, token: &str, index: i64) -> String {
    let sql = "select event_id::text from log_leaf where index = $1";
    let id: String =
        sqlx::query_scalar(sql).bind(index).fetch_one(&broker.database.owner).await.expect("it");
    let proof = must_read(broker, token, &format!("/v1/audit/events/{id}/proof")).await;
    String::from_utf8(proof.into()).expect("text")
}

fn pinned(key: &str) -> Options {
    Options { key: Some(key.to_owned()), ..Options::default() }
}

/// What both say of an exported file.
async fn judge(folder: &TempDir, file: &str, key: &str) -> (Verdict, Output) {
    let report = check(file, pinned(key));
    let path = write(folder, "export", file);
    (report.verdict(), independent(&["export", &path, "--key", key]).await)
}

#[tokio::test]
async fn a_whole_log_is_good_to_both_and_its_checkpoints_follow_each_other() {
    let (_sts, broker) = now().await;
    story(&broker).await;
    for size in [256, 257, 512, 1030] {
        grow(&broker, size).await;
    }
    let (carol, key, folder) =
        (login(&broker, "carol"), pin(&broker), tempfile::tempdir().unwrap());
    let (file, parts) = export_by_http(&broker, &carol).await;
    assert_eq!(parts, 2);
    let local = export(&broker).await;
    let after_header = |it: &str| it.split_once('\n').unwrap().1.to_owned();
    assert_eq!(after_header(&file), after_header(&local));
    let (ours, theirs) = judge(&folder, &file, &key).await;
    assert_eq!(ours, Verdict::Good);
    is_good(&theirs);
    assert!(String::from_utf8_lossy(&theirs.stdout).contains("1030 entries"));

    let tiles = tempfile::tempdir().unwrap();
    mirror(&broker, &carol, tiles.path()).await;
    assert!(tile_paths(1030).contains(&"1/000.p/4".to_owned()));
    let tiles = tiles.path().to_str().unwrap();
    is_good(&independent(&["tiles", tiles, "--key", &key]).await);

    let notes = checkpoints(&broker).await;
    assert!(5 <= notes.len());
    let paths: Vec<_> = notes
        .iter()
        .enumerate()
        .map(|(at, note)| write(&folder, &format!("checkpoint-{at}"), note))
        .collect();
    let export = folder.path().join("export");
    for (old, new) in paths.iter().zip(&paths[1..]).chain([(&paths[0], &paths[4])]) {
        for source in [tiles, export.to_str().unwrap()] {
            is_good(&independent(&["consistency", source, old, new, "--key", &key]).await);
        }
        let swapped = independent(&["consistency", tiles, new, old, "--key", &key]).await;
        is_refused(&swapped, "the later one first");
    }
    for index in [0, 1, 255, 256, 511, 512, 1029] {
        let proof = proof_of(&broker, &carol, index).await;
        let parsed = Proof::parse(&proof).unwrap();
        assert_eq!(parsed.index, u64::try_from(index).unwrap());
        assert_eq!(parsed.verify(&key), Ok(()));
        let event: serde_json::Value = serde_json::from_slice(&parsed.body).unwrap();
        let event = event["id"].as_str().unwrap().parse().unwrap();
        let taken = from_export(|| Ok(file.as_bytes()), event).unwrap().unwrap();
        let path = write(&folder, "taken", &taken.file());
        is_good(&independent(&["proof", &path, "--key", &key]).await);
        let path = write(&folder, "proof", &proof);
        is_good(&independent(&["proof", &path, "--key", &key]).await);
    }
}

/// The first line that contains something, and what follows it.
fn line<'a>(file: &'a str, holds: &str) -> &'a str {
    file.split_inclusive('\n').find(|it| it.contains(holds)).expect(holds)
}

#[tokio::test]
async fn an_export_that_was_changed_is_good_to_neither() {
    let (_sts, broker) = now().await;
    story(&broker).await;
    grow(&broker, 60).await;
    let (key, folder) = (pin(&broker), tempfile::tempdir().unwrap());
    let file = export(&broker).await;
    let (ours, theirs) = judge(&folder, &file, &key).await;
    assert_eq!(ours, Verdict::Good);
    is_good(&theirs);

    let (one, two) = (line(&file, "{\"count\":30}"), line(&file, "{\"count\":31}"));
    let checkpoint = line(&file, "{\"checkpoint\":");
    let last_checkpoint = file.split_inclusive('\n').rfind(|it| it.contains("{\"checkpoint\":"));
    let last_checkpoint = last_checkpoint.unwrap();
    let approval = line(&file, "{\"approval\":");
    let end = line(&file, "{\"end\":");
    let replaced = |from: &str, to: &str| {
        let changed = file.replacen(from, to, 1);
        assert_ne!(changed, file, "{from}");
        changed
    };
    let within = |line: &str, from: &str, to: &str| {
        let changed = line.replacen(from, to, 1);
        assert_ne!(changed, line, "{from}");
        replaced(line, &changed)
    };
    let cases = [
        ("a number in a body", replaced("{\"count\":30}", "{\"count\":39}")),
        ("a space in a body", replaced("{\"count\":30}", "{\"count\": 30}")),
        ("a column", within(one, "\"actor\":\"broker\"", "\"actor\":\"person:bob\"")),
        ("a column too many", within(one, "\"actor\":", "\"doc_differs\":true,\"actor\":")),
        ("a time", within(one, "\"occurred_at\":\"20", "\"occurred_at\":\"19")),
        ("a dropped entry", replaced(one, "")),
        ("a doubled entry", replaced(one, &format!("{one}{one}"))),
        ("two entries swapped", file.replacen(&format!("{one}{two}"), &format!("{two}{one}"), 1)),
        ("a dropped approval", replaced(approval, "")),
        (
            "an approval of something else",
            within(approval, "\"statement\":\"e", "\"statement\":\"f"),
        ),
        ("the newest checkpoint dropped", replaced(last_checkpoint, "")),
        ("an older checkpoint in its place", replaced(last_checkpoint, checkpoint)),
        ("a checkpoint's size", within(last_checkpoint, "\\n60\\n", "\\n61\\n")),
        ("a checkpoint's name", within(checkpoint, "broker.test/log\\n", "broker.test/lag\\n")),
        ("no end", replaced(end, "")),
        ("another end", within(end, "60", "59")),
        ("something after the end", format!("{file}{one}")),
        (
            "another header",
            replaced("\"origin\":\"broker.test/log\"", "\"origin\":\"broker.test/lag\""),
        ),
        ("no header", after_first_line(&file)),
        (
            "something that no event tells",
            replaced(
                end,
                &format!(
                    "{{\"unrecorded\":{{\"kind\":\"lease\",\"id\":\"1\",\"event\":\"lease.issued\"}}}}\n{end}"
                ),
            ),
        ),
        ("an entry without its event", replaced(one, &pruned(one))),
    ];
    for (what, changed) in cases {
        assert_ne!(changed, file, "{what}");
        let (ours, theirs) = judge(&folder, &changed, &key).await;
        assert_ne!(ours, Verdict::Good, "{what}");
        is_refused(&theirs, what);
    }
    let (ours, theirs) = judge(&folder, &file, &another_key()).await;
    assert_eq!(ours, Verdict::NotValid);
    is_refused(&theirs, "another key");
}

fn after_first_line(file: &str) -> String {
    file.split_once('\n').expect("lines").1.to_owned()
}

/// The line that stands for an entry whose month was dropped.
fn pruned(entry: &str) -> String {
    let entry: serde_json::Value = serde_json::from_str(entry).expect("an entry");
    let (index, hash) = (&entry["event"]["index"], &entry["event"]["leaf_hash"]);
    format!("{{\"pruned\":{{\"index\":{index},\"leaf_hash\":{hash}}}}}\n")
}

/// Whoever can write the tables makes body, hash and columns agree; the root is what they cannot sign.
#[tokio::test]
async fn an_entry_that_agrees_with_its_hash_is_not_the_one_that_was_signed() {
    let (_sts, broker) = now().await;
    grow(&broker, 20).await;
    let (key, folder) = (pin(&broker), tempfile::tempdir().unwrap());
    let file = export(&broker).await;
    let old = line(&file, "{\"count\":10}");
    let body = |line: &str| {
        let body = line.split_once(",\"body\":").expect("a body").1;
        body.trim_end().strip_suffix('}').expect("a brace").to_owned()
    };
    let hash = |line: &str| broker::log::leaf_hash(body(line).as_bytes()).to_string();
    let new = old.replacen("{\"count\":10}", "{\"count\":99}", 1);
    let new = new.replacen(&hash(old), &hash(&new), 1);
    let forged = file.replacen(old, &new, 1);
    let report = check(&forged, pinned(&key));
    assert_eq!(codes(&report), ["root"]);
    let path = write(&folder, "export", &forged);
    let said = is_refused(&independent(&["export", &path, "--key", &key]).await, "forged");
    assert!(said.contains("do not come to the root"), "{said}");
}

#[tokio::test]
async fn a_proof_that_was_changed_proves_nothing_to_either() {
    let (_sts, broker) = now().await;
    grow(&broker, 300).await;
    let (carol, key, folder) =
        (login(&broker, "carol"), pin(&broker), tempfile::tempdir().unwrap());
    let proof = proof_of(&broker, &carol, 77).await;
    let other = proof_of(&broker, &carol, 78).await;
    let lines: Vec<_> = proof.split('\n').collect();
    let without = |at: usize| {
        let kept = lines.iter().enumerate().filter(|(it, _)| *it != at).map(|(_, it)| *it);
        kept.collect::<Vec<_>>().join("\n")
    };
    let swapped = |a: usize, b: usize| {
        let mut lines = lines.clone();
        lines.swap(a, b);
        lines.join("\n")
    };
    let extra = lines[3];
    let cases = [
        ("another event", proof.replacen(lines[1], other.split('\n').nth(1).unwrap(), 1)),
        ("another index", proof.replacen("\nindex 77\n", "\nindex 76\n", 1)),
        ("an index that is nowhere", proof.replacen("\nindex 77\n", "\nindex 300\n", 1)),
        ("an endless index", proof.replacen("\nindex 77\n", "\nindex 18446744073709551615\n", 1)),
        ("another spelling of the index", proof.replacen("\nindex 77\n", "\nindex 077\n", 1)),
        ("another hash", proof.replacen(extra, other.split('\n').nth(1).unwrap(), 1)),
        ("a hash less", without(3)),
        ("a hash twice", proof.replacen(extra, &format!("{extra}\n{extra}"), 1)),
        ("hashes in another order", swapped(3, 4)),
        ("another size", proof.replacen("\n300\n", "\n301\n", 1)),
        ("an endless size", proof.replacen("\n300\n", "\n18446744073709551615\n", 1)),
        ("no signature", proof.split_once("\u{2014}").unwrap().0.to_owned()),
        ("no event", without(1)),
        ("nothing", String::new()),
    ];
    for (what, changed) in cases {
        assert_ne!(changed, proof, "{what}");
        let ours = Proof::parse(&changed).and_then(|it| it.verify(&key));
        assert!(ours.is_err(), "{what}");
        let path = write(&folder, "proof", &changed);
        is_refused(&independent(&["proof", &path, "--key", &key]).await, what);
    }
    let parsed = Proof::parse(&proof).unwrap();
    assert!(matches!(parsed.verify(&another_key()), Err(ProofError::Checkpoint(_))));
    let path = write(&folder, "proof", &proof);
    is_good(&independent(&["proof", &path, "--key", &key]).await);
    is_refused(&independent(&["proof", &path, "--key", &another_key()]).await, "another key");
}

fn change_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_mirror_with_one_byte_of_another_is_refused() {
    let (_sts, broker) = now().await;
    grow(&broker, 300).await;
    let old = checkpoints(&broker).await.remove(0);
    grow(&broker, 301).await;
    let (carol, key, folder) =
        (login(&broker, "carol"), pin(&broker), tempfile::tempdir().unwrap());
    mirror(&broker, &carol, folder.path()).await;
    let place = folder.path().to_str().unwrap();
    let all = ["tiles", place, "--key", &key];
    is_good(&independent(&all).await);
    is_refused(&independent(&["tiles", place, "--key", &another_key()]).await, "another key");
    let mut files: Vec<_> = tile_paths(301).iter().map(|it| format!("tile/{it}")).collect();
    assert_eq!(files.len(), 5);
    files.push("checkpoint".into());
    for file in files {
        let path = folder.path().join(&file);
        let kept = fs::read(&path).unwrap();
        change_a_byte(&path);
        is_refused(&independent(&all).await, &file);
        fs::write(&path, &kept[..kept.len() - 1]).unwrap();
        is_refused(&independent(&all).await, &file);
        fs::remove_file(&path).unwrap();
        is_refused(&independent(&all).await, &file);
        fs::write(&path, kept).unwrap();
    }
    // A checkpoint of another story, well signed: its root is of other entries.
    let (old, checkpoint) = (write(&folder, "old", &old), folder.path().join("checkpoint"));
    let signed = SignedCheckpoint::parse(&fs::read_to_string(&checkpoint).unwrap()).unwrap();
    let log_key = LogKey::load(&broker.config_dir.path().join("log.pem")).unwrap();
    let mut fork = signed.checkpoint.clone();
    fork.root = broker::log::leaf_hash(b"another story");
    let fork = write(&folder, "fork", fork.sign(&[&log_key]).unwrap().note());
    let honest = checkpoint.to_str().unwrap();
    is_good(&independent(&["consistency", place, &old, honest, "--key", &key]).await);
    is_refused(&independent(&["consistency", place, &old, &fork, "--key", &key]).await, "a fork");
    is_refused(&independent(&["consistency", place, &fork, honest, "--key", &key]).await, "a fork");
}

#[tokio::test]
async fn a_log_that_changed_hands_is_good_by_the_key_that_it_began_with() {
    let (_sts, broker) = now().await;
    story(&broker).await;
    let first = pin(&broker);
    let path = broker.config_dir.path().join("log.pem");
    let next = Tokens::generate_key();
    write_secret(&path.with_file_name("next.pem"), next.expose_secret());
    let next = LogKey::load(&path.with_file_name("next.pem")).unwrap();
    broker.broker.log.rotate(&next, broker.clock.now()).await.expect("handed over");
    fs::rename(path.with_file_name("next.pem"), &path).unwrap();
    // A server that was started again.
    let again = broker.replica(AwsOptions::default()).await;
    grow(&again, 40).await;
    let (key, carol, folder) = (pin(&broker), login(&again, "carol"), tempfile::tempdir().unwrap());
    assert_ne!(key, first);
    let file = export(&again).await;
    let (ours, theirs) = judge(&folder, &file, &first).await;
    assert_eq!(ours, Verdict::Good, "{}", check(&file, pinned(&first)).text());
    is_good(&theirs);
    let (ours, theirs) = judge(&folder, &file, &key).await;
    assert_eq!(ours, Verdict::NotValid);
    is_refused(&theirs, "the key that it ended with");
    // Nobody hands over but the old key: without its signature the new one's is a stranger's.
    let both = file.split_inclusive('\n').find(|it| it.matches('\u{2014}').count() == 2);
    let both = both.expect("a checkpoint that both signed");
    let (head, old, new) = {
        let mut parts = both.split("\u{2014} ");
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
    };
    let old = old.trim_end_matches('"');
    for (what, one) in [
        ("without the old key", format!("{head}\u{2014} {new}")),
        ("without the new key", format!("{head}\u{2014} {old}\"}}\n")),
    ] {
        let changed = file.replacen(both, &one, 1);
        assert_ne!(changed, file);
        let (ours, theirs) = judge(&folder, &changed, &first).await;
        assert_eq!(ours, Verdict::NotValid, "{what}");
        is_refused(&theirs, what);
    }
    let proof = proof_of(&again, &carol, 39).await;
    assert_eq!(Proof::parse(&proof).unwrap().verify(&key), Ok(()));
    assert!(Proof::parse(&proof).unwrap().verify(&first).is_err());
    let path = write(&folder, "proof", &proof);
    is_good(&independent(&["proof", &path, "--key", &key]).await);
    is_refused(&independent(&["proof", &path, "--key", &first]).await, "the key of before");
}

#[tokio::test]
async fn nobody_but_ops_learns_that_there_is_a_log() {
    let (_sts, broker) = now().await;
    grow(&broker, 257).await;
    let (carol, sql) = (login(&broker, "carol"), "select event_id::text from log_leaf limit 1");
    let id: String = sqlx::query_scalar(sql).fetch_one(&broker.database.owner).await.unwrap();
    let mut routes = vec![
        "/v1/audit/events".to_owned(),
        "/v1/audit/events?from=1&size=2".to_owned(),
        format!("/v1/audit/events/{id}/proof"),
        "/v1/audit/checkpoint".to_owned(),
    ];
    routes.extend(tile_paths(257).iter().map(|it| format!("/v1/audit/tile/{it}")));
    let people = ["alice", "bob", "dave"].map(|it| login(&broker, it));
    let strangers: Vec<_> = people.into_iter().chain([broker.token.clone()]).collect();
    let nothing = read(&broker, &broker.token, "/v1/nothing").await.2;
    for path in &routes {
        must_read(&broker, &carol, path).await;
        for token in &strangers {
            let (status, _, body) = read(&broker, token, path).await;
            assert_eq!((status, &body), (StatusCode::NOT_FOUND, &nothing), "{path}");
        }
    }
}

#[tokio::test]
async fn a_tile_that_cannot_be_is_not_there() {
    let (_sts, broker) = now().await;
    grow(&broker, 300).await;
    let carol = login(&broker, "carol");
    for path in [
        "0/000.p/0",
        "0/000.p/00",
        "0/000.p/+0",
        "entries/000.p/0",
        "64/000",
        "255/000",
        "0/001",
        "0/001.p/45",
        "1/000",
        "1/000.p/2",
        "2/000.p/1",
        "data/000",
        // 2^56, whose first hash would have the number of the log's first; and the largest.
        "0/x072/x057/x594/x037/x927/936",
        "0/x018/x446/x744/x073/x709/x551/615",
        "entries/x072/x057/x594/x037/x927/936",
    ] {
        let (status, ..) = read(&broker, &carol, &format!("/v1/audit/tile/{path}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
}

// ---------------------------------------------------------------------------------------------------------- other logs

/// A log that somebody else made: `fuzz/examples/seeds.rs`.
fn made(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/log").join(name);
    fs::read_to_string(path).expect(name)
}

fn made_key(seed: u8) -> String {
    LogKey::from_bytes(&[seed; 32]).verifier_key("broker.test/log")
}

/// Its first months are elsewhere, it changed hands, its end was lost, and it goes on under another name.
#[tokio::test]
async fn what_happened_to_a_log_is_told_by_both() {
    let (file, folder) = (made("long"), tempfile::tempdir().unwrap());
    let report =
        check(&file, Options { covered_within: time::Duration::HOUR, ..pinned(&made_key(12)) });
    assert_eq!(report.verdict(), Verdict::Incomplete, "{}", report.text());
    assert_eq!(codes(&report), ["lost", "put-away"]);
    let path = write(&folder, "export", &file);
    let said = is_refused(&independent(&["export", &path, "--key", &made_key(12)]).await, "lost");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("events were lost"), "{said}");
    // Its export is gone: then the two entries are, too.
    let told = line(&file, "log.partition-exported");
    let untold = file.replacen("\"first_index\":0", "\"first_index\":5", 1);
    assert_ne!(untold, file, "{told}");
    let report = check(&untold, pinned(&made_key(12)));
    assert!(codes(&report).contains(&"deleted"), "{}", report.text());
    let path = write(&folder, "export", &untold);
    let said = is_refused(&independent(&["export", &path]).await, "untold");
    assert!(said.contains("entry 4 is gone"), "{said}");
}

/// A byte of another here and there: what one takes, the other takes, and only where nothing is signed.
#[tokio::test]
async fn of_a_changed_byte_both_think_the_same() {
    let (file, folder, key) = (made("export"), tempfile::tempdir().unwrap(), made_key(11));
    let is_ours = |file: &str| {
        let options = Options { covered_within: time::Duration::HOUR, ..pinned(&key) };
        check(file, options).verdict() == Verdict::Good
    };
    assert!(is_ours(&file));
    let (mut start, mut taken) = (0, 0);
    for whole in file.split_inclusive('\n') {
        // What people signed is more than the other one knows of.
        let is_approval = whole.starts_with("{\"approval\"");
        for part in 1..5 {
            let at = start + whole.len() * part / 5;
            let mut changed = file.clone().into_bytes();
            changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
            // Within a letter of more bytes than one, it is no text any more.
            let Ok(changed) = String::from_utf8(changed) else { continue };
            let ours = is_ours(&changed);
            let path = write(&folder, "export", &changed);
            let output = independent(&["export", &path, "--key", &key]).await;
            let what = format!("byte {at} of {whole}");
            if output.status.success() {
                taken += 1;
            } else {
                is_refused(&output, &what);
            }
            assert!(ours == output.status.success() || (is_approval && !ours), "{ours}: {what}");
        }
        start += whole.len();
    }
    assert!(taken < 10, "{taken}");
}
