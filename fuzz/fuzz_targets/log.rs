//! The log as it comes from whoever has it: an export, a checkpoint, a proof, a tile's path. Nobody here has the log's key, so
//! nothing but the seeds is ever good; and reading takes no more memory or depth than what is read.
#![no_main]

use broker::log::SignedCheckpoint;
use broker::log::export::MAX_LINE_BYTES;
use broker::log::proof::{Proof, from_export};
use broker::log::tree::{MAX_SIZE, tile_place};
use broker::log::verify::{Options, Verdict, examine, verify};
use broker_fuzz::log::{EXPORT, NOTE, PROOF, bodies, key};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|bytes: &[u8]| {
    assert!(bytes.len() < MAX_LINE_BYTES);
    let anchor = SignedCheckpoint::parse(NOTE).expect("ours");
    let demanding = Options { key: Some(key()), anchors: vec![anchor], ..Options::default() };
    for options in [demanding, Options::default()] {
        let is_pinned = options.key.is_some();
        let report = verify(bytes, options, |_| ()).expect("it is in memory");
        let lines = bytes.split(|it| *it == b'\n').count() as u64;
        assert!(report.entries <= lines && report.checkpoints <= lines);
        // Without the key it could be any log, if its maker has a key at all.
        if is_pinned && report.verdict() == Verdict::Good {
            let mut rest = str::from_utf8(bytes).expect("what is no text is no line");
            for body in bodies(str::from_utf8(EXPORT).expect("text")) {
                rest =
                    rest.split_once(body).expect("an entry is gone or another, and nobody saw").1;
            }
        }
        for words in report.findings.iter().map(ToString::to_string) {
            broker_fuzz::draws_nothing(&words);
        }
        report.text().lines().for_each(broker_fuzz::draws_nothing);
        let _ = report.json();
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    let _ = examine(text);
    if let Ok(signed) = SignedCheckpoint::parse(text) {
        assert!(signed.checkpoint.size <= MAX_SIZE && signed.note() == text);
        if signed.verify(&key()).is_ok() {
            let ours = SignedCheckpoint::parse(NOTE).expect("ours");
            assert_eq!(signed.checkpoint, ours.checkpoint, "nobody signed this");
        }
    }
    if let Ok(proof) = Proof::parse(text) {
        assert_eq!(proof.file(), text);
        if proof.verify(&key()).is_ok() {
            let ours = Proof::parse(PROOF).expect("ours");
            assert_eq!((proof.index, proof.body), (ours.index, ours.body), "it is not under that");
        }
    }
    // The seeds' last entry.
    let event = Uuid::from_u128(6);
    if let Some(proof) = from_export(|| Ok(bytes), event).expect("it is text, in memory")
        && proof.verify(&key()).is_ok()
    {
        let body = str::from_utf8(&proof.body).expect("out of text");
        assert!(bodies(str::from_utf8(EXPORT).expect("text")).any(|it| it == body));
    }
    if let Some(place) = tile_place(text) {
        assert!((1..=256).contains(&place.width) && place.start < MAX_SIZE && place.level < 64);
    }
});
