//! A passkey's signature as it comes: JSON that a page sends.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| broker_fuzz::judge(text));
