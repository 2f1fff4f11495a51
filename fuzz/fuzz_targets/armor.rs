//! A signature as it comes: text that says it is an armored SSHSIG.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| broker_fuzz::judge(text));
