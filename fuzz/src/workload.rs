//! An issuer as the configuration has one, and tokens of its.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::workload::issuer::Issuer;
use serde_json::{Value, json};

use crate::NOW;

/// As it would stand in `broker.toml`.
pub fn issuer() -> Issuer {
    serde_json::from_value(json!({
        "issuer": "https://issuer.test",
        "algorithms": ["RS256"],
        "jwks_file": "keys",
        "actor_claim": "actor_id",
        "actors": { "583231": "bob" },
        "workloads": [{
            "subject": "repo:acme/*:ref:refs/heads/main",
            "where": { "event_name": "push", "/kubernetes.io/pod": "p-*" },
            "agent": "shop-ci",
            "sponsor": "alice",
            "task_claim": "run_id",
            "claims": ["repository"],
        }],
    }))
    .expect("an issuer")
}

/// Good claims.
pub fn claims() -> Value {
    let now = NOW.unix_timestamp();
    json!({
        "iss": "https://issuer.test", "aud": "https://broker.example.com", "sub": "repo:acme/shop:ref:refs/heads/main",
        "iat": now, "nbf": now, "exp": now + 300, "jti": "1", "actor_id": "583231", "repository": "acme/shop",
        "run_id": 1234, "event_name": "push", "kubernetes.io": { "pod": "p-1" },
    })
}

/// The token of a header and claims, a line each, whose signature nobody looks at; without a second line the text is the token.
pub fn token_of(data: &[u8]) -> String {
    match data.iter().position(|it| *it == b'\n') {
        Some(at) => {
            let part = |it: &[u8]| URL_SAFE_NO_PAD.encode(it);
            format!("{}.{}.c2ln", part(&data[..at]), part(&data[at + 1..]))
        }
        None => String::from_utf8_lossy(data).into_owned(),
    }
}
