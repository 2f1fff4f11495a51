//! The audit log as a Merkle tree over the events (RFC 6962), with signed checkpoints (C2SP), and its check without us. Pure.
//!
//! A leaf is an event's body, byte for byte. What a checkpoint covers cannot be changed, left out or put elsewhere without
//! another root; that there is only one story is for whoever keeps checkpoints elsewhere: the anchors. `docs/log.md` has it all.

pub mod checkpoint;
mod examine;
pub mod export;
mod months;
pub mod proof;
mod report;
pub mod tree;
pub mod verify;

pub use self::checkpoint::{Checkpoint, LogKey, SignedCheckpoint};
pub use self::tree::{Frontier, Hash, leaf_hash};
