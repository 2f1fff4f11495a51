//! What travels as JSON: bodies that the server reads, and answers that the command line believes. What is read is
//! written as what reads as the same.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::statement::LeaseStatement;
use broker::wire::{
    Lease, LeaseRequest, LoginNonce, LoginRequest, LoginSession, SignatureRequest, StatementBytes,
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn read<T: Serialize + DeserializeOwned>(json: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(json).ok()?;
    let written = serde_json::to_value(&value).expect("what was read can be written");
    let again: T = serde_json::from_value(written.clone()).expect("what was written is read");
    assert_eq!(serde_json::to_value(&again).expect("written before"), written);
    Some(value)
}

fuzz_target!(|json: &[u8]| {
    if let Some(request) = read::<SignatureRequest>(json) {
        broker_fuzz::judge(&request.signature);
    }
    if let Some(request) = read::<LoginRequest>(json) {
        broker_fuzz::judge(&request.signature);
    }
    if let Some(answer) = read::<StatementBytes>(json)
        && let Ok(bytes) = STANDARD.decode(&answer.statement)
    {
        let _ = LeaseStatement::from_bytes(bytes);
    }
    read::<LeaseRequest>(json);
    read::<Lease>(json);
    read::<LoginNonce>(json);
    read::<LoginSession>(json);
});
