//! The bytes of a statement about an act of authority. What is read is canonical, and what it can mean is its own kind.
#![no_main]

use broker::lease::Decision;
use broker::statement::Meaning;
use broker::statement::act::{ActKind, ActStatement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(sealed) = ActStatement::from_bytes(bytes.to_vec()) else { return };
    assert_eq!(sealed.bytes(), bytes);
    assert!(bytes.iter().all(|it| (0x20..=0x7f).contains(it)));
    let again = ActStatement::new(sealed.terms().clone()).expect("what was read can be written");
    assert_eq!(again.bytes(), bytes);
    let (approves, refuses) = match sealed.terms().act.kind() {
        ActKind::TaskStart => (Meaning::TaskStart, None),
        ActKind::Thaw => (Meaning::Thaw, None),
        ActKind::AdminChange => (Meaning::AdminChange, Some(Meaning::AdminChangeRefusal)),
    };
    assert_eq!(sealed.terms().meaning(Decision::Approve), Some(approves));
    assert_eq!(sealed.terms().meaning(Decision::Refuse), refuses);
    broker_fuzz::draws_nothing(&broker::render::act::act(&sealed));
});
