//! SSHSIG's bytes, armored by us: a fuzzer does not learn base64.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| broker_fuzz::judge(&broker_fuzz::armor(bytes)));
