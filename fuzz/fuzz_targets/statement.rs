//! A statement's bytes, as stored or as a server sends them. What is read is canonical: it is those bytes and no others.
#![no_main]

use broker::statement::LeaseStatement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(sealed) = LeaseStatement::from_bytes(bytes.to_vec()) else { return };
    assert_eq!(sealed.bytes(), bytes);
    // RFC 8785 escapes every control character but DEL.
    assert!(bytes.iter().all(|it| (0x20..=0x7f).contains(it)));
    let again = LeaseStatement::new(sealed.terms().clone()).expect("what was read can be written");
    assert_eq!(again.bytes(), bytes);
    broker_fuzz::shown(&sealed);
});
