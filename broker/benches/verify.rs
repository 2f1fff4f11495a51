//! What checking an exported log costs, against what SHA-256 alone costs on the same bytes:
//! `cargo bench -p broker --bench verify --no-default-features`.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use broker::log::export::{End, FORMAT, Header, Line};
use broker::log::verify::{Options, Verdict, verify};
use broker::log::{Checkpoint, Frontier, LogKey, SignedCheckpoint, leaf_hash};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

const ENTRIES: u64 = 200_000;
const ROUNDS: usize = 7;

fn main() {
    // Cargo says `--bench` when it is to measure, and nothing when it tests all targets.
    let entries = if std::env::args().any(|it| it == "--bench") { ENTRIES } else { 300 };
    let Log { file, bodies, checkpoints, key } = log(entries);
    let bytes: usize = bodies.iter().map(Vec::len).sum();
    println!(
        "{entries} entries, {} bytes each, {} MB as a file",
        bytes / bodies.len(),
        file.len() / 1_000_000
    );
    let mut best = [Duration::MAX; 4];
    for _ in 0..ROUNDS {
        let hashed = timed(|| {
            for body in &bodies {
                black_box(Sha256::digest(body));
            }
        });
        let all = timed(|| {
            black_box(Sha256::digest(&file));
        });
        let verified = timed(|| {
            let report = verify(file.as_bytes(), Options::default(), |_| {}).expect("in memory");
            assert_eq!(report.verdict(), Verdict::Good, "{}", report.text());
        });
        let signatures = timed(|| {
            for it in &checkpoints {
                it.verify(&key).expect("ours");
            }
        });
        for (best, it) in best.iter_mut().zip([all, hashed, verified, signatures]) {
            *best = it.min(*best);
        }
    }
    let [all, hashed, verified, signatures] = best.map(|it| it.as_secs_f64() * 1e3);
    println!(
        "verify {verified:.1} ms; SHA-256 alone on one thread {all:.1} ms for the file, {hashed:.1} ms for what is hashed of it: shares of {:.2} (goal 0.5) and {:.2}",
        all / verified,
        hashed / verified
    );
    println!(
        "the signatures of {} checkpoints alone {signatures:.1} ms, on one thread",
        checkpoints.len()
    );
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

struct Log {
    file: String,
    bodies: Vec<Vec<u8>>,
    checkpoints: Vec<SignedCheckpoint>,
    /// What the checkpoints are verified with.
    key: String,
}

/// An export with a checkpoint after each hundred entries.
fn log(entries: u64) -> Log {
    let (key, origin) = (LogKey::from_bytes(&[7; 32]), "bench.test/log".to_owned());
    let header = Header {
        format: FORMAT.to_owned(),
        origin: origin.clone(),
        key: key.verifier_key(&origin),
        exported_at: OffsetDateTime::UNIX_EPOCH,
    };
    let mut file = Line::Export(header).text();
    let (mut frontier, mut bodies) = (Frontier::default(), Vec::new());
    let mut checkpoints = Vec::new();
    for n in 0..entries {
        let (id, time) =
            (format!("01a1ff5c-a5a7-7579-8765-{n:012}"), "2026-11-21T18:57:46.957891Z");
        let lease = format!("01a1ff5c-a5a7-7579-9999-{:012}", n / 6);
        let body = format!(
            r#"{{"actor":"agent:agent-{0}","data":{{"agent":"agent-{0}","detail":{{"access_key_id":"ASIA509E86CDED7D41EF","session_name":"{lease}-0d95ff3a"}},"lease_id":"{lease}","scope":"staging-rw","session_id":"{id}","sponsor":"alice"}},"id":"{id}","source":"https://broker.example.com","specversion":"1.0","time":"{time}","type":"session.issued"}}"#,
            n % 300
        );
        let hash = leaf_hash(body.as_bytes());
        frontier.append(hash, |_| {});
        writeln!(
            file,
            "{{\"event\":{{\"index\":{n},\"leaf_hash\":\"{hash}\",\"seq\":{n},\"recorded_at\":\"2026-11-21T18:57:46.959002Z\",\"id\":\"{id}\",\"type\":\"session.issued\",\"occurred_at\":\"{time}\",\"actor\":\"agent:agent-{0}\",\"agent\":\"agent-{0}\",\"sponsor\":\"alice\",\"scope\":\"staging-rw\",\"lease_id\":\"{lease}\",\"session_id\":\"{id}\"}},\"body\":{body}}}",
            n % 300
        )
        .expect("a string takes it");
        bodies.push(body.into_bytes());
        if n % 100 == 99 || n + 1 == entries {
            let checkpoint =
                Checkpoint { origin: origin.clone(), size: n + 1, root: frontier.root() };
            let signed = checkpoint.sign(&[&key]).expect("it signs");
            file += &Line::Checkpoint(signed.note().to_owned()).text();
            checkpoints.push(signed);
        }
    }
    file += &Line::End(End { size: entries, waiting: 0 }).text();
    Log { file, bodies, checkpoints, key: key.verifier_key(&origin) }
}
