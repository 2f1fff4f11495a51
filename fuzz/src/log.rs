//! A log, and the key that signs it.

use broker::log::LogKey;

/// What it was named.
pub const ORIGIN: &str = "broker.test/log";

/// All of it.
pub const EXPORT: &[u8] = include_bytes!("../seeds/log/export");

/// Its newest checkpoint.
pub const NOTE: &str = include_str!("../seeds/log/checkpoint");

/// That its last entry is in it.
pub const PROOF: &str = include_str!("../seeds/log/proof");

pub fn signs() -> LogKey {
    LogKey::from_bytes(&[11; 32])
}

/// The verifier key.
pub fn key() -> String {
    signs().verifier_key(ORIGIN)
}

/// The entries' bytes of an export, in their order: what no other file may leave out that is good too.
pub fn bodies(export: &str) -> impl Iterator<Item = &str> {
    let entries = export.lines().filter(|it| it.starts_with("{\"event\":"));
    entries.filter_map(|it| it.split_once(",\"body\":")?.1.strip_suffix('}'))
}
