//! Short-lived, scoped cloud credentials for AI agents.
//!
//! # One lease, end to end
//!
//! A request flows one way: `http` → [`broker`] → {pure rules, one store, one cloud}. Nothing calls back up.
//!
//! 1. `http` authenticates the caller ([`identity`]) and hands the body to [`Broker::request`](broker::Broker::request).
//! 2. [`narrow`] checks that what is asked is contained in the scope's ceiling ([`catalogue`], whose tiers follow from
//!    what is known of each AWS action, [`actions`]) and compiles the exact `AssumeRole` input; [`policy`] decides: allow, needs signatures, or deny, naming the rules.
//! 3. [`store`] writes the lease and its events in one commit. An unsigned lease is `approved`; one that wants its
//!    credentials in the same answer is claimed in that same commit. A signed one is `pending`, and its
//!    [`statement`] is stored with it, byte for byte.
//! 4. A person signs the statement; [`verify`] judges the signature, [`store`] counts people.
//! 5. `store::claim` is one compare-and-swap. It returns a `Warrant`, which nothing else can make, and only after
//!    its commit. `aws::mint` takes a `Warrant`.
//! 6. `store::settle` consumes the warrant and writes the outcome. Only when that is committed do credentials leave.
//!
//! The modules without feature `server` are pure, and shared with the command line tool.

pub mod lease;
pub mod problem;
pub mod span;
pub mod wire;

pub mod render;
pub mod statement;
pub mod verify;

pub mod approval;

pub mod log;

pub mod workload;

#[cfg(feature = "server")]
pub mod attestation;

#[cfg(feature = "server")]
pub mod clock;
#[cfg(feature = "server")]
pub mod config;

#[cfg(feature = "server")]
pub mod arn;

#[cfg(feature = "server")]
pub mod actions;
#[cfg(feature = "server")]
pub mod catalogue;
#[cfg(feature = "server")]
pub mod narrow;
#[cfg(feature = "server")]
pub mod policy;

#[cfg(feature = "server")]
pub mod role;

#[cfg(feature = "server")]
pub mod check;
#[cfg(feature = "server")]
pub mod doctor;

#[cfg(feature = "server")]
pub mod broker;
#[cfg(feature = "server")]
pub mod error;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod identity;
#[cfg(feature = "server")]
pub mod pages;
#[cfg(feature = "server")]
pub mod server;

#[cfg(feature = "server")]
pub mod anchor;
#[cfg(feature = "server")]
pub mod audit;
#[cfg(feature = "server")]
pub mod aws;
#[cfg(feature = "server")]
pub mod export;
#[cfg(feature = "server")]
pub mod sequencer;
#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "server")]
pub mod auditing;
#[cfg(feature = "server")]
pub mod people;
#[cfg(feature = "server")]
pub mod recover;

#[cfg(feature = "server")]
pub mod dev;
