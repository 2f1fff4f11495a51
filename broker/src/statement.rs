//! Statements: the canonical bytes that a person signs. Pure.
//!
//! Shape: in-toto Statement v1 (<https://in-toto.io/Statement/v1>). Bytes: RFC 8785 (JCS) with every non-ASCII
//! character escaped, serialized once by the broker and never again. A signature covers the DSSE pre-authentication
//! encoding of those bytes, whose payload type carries what is meant.

pub mod act;
pub mod lease;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::lease::{Assurance, Decision};
pub use lease::*;

const IN_TOTO: &str = "https://in-toto.io/Statement/v1";

/// What a signature says. Each meaning has a payload type and an SSHSIG namespace of its own, so that a
/// signature made for one can never be read as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    LeaseApproval,
    LeaseRefusal,
    TaskStart,
    Thaw,
    AdminChange,
    AdminChangeRefusal,
    /// Opens a reading session; approves nothing.
    Login,
}

impl Meaning {
    pub const ALL: &[Self] = &[
        Self::LeaseApproval,
        Self::LeaseRefusal,
        Self::TaskStart,
        Self::Thaw,
        Self::AdminChange,
        Self::AdminChangeRefusal,
        Self::Login,
    ];

    pub const fn payload_type(self) -> &'static str {
        match self {
            Self::LeaseApproval => "application/vnd.broker.lease-approval.v1+json",
            Self::LeaseRefusal => "application/vnd.broker.lease-refusal.v1+json",
            Self::TaskStart => "application/vnd.broker.task-start.v1+json",
            Self::Thaw => "application/vnd.broker.thaw.v1+json",
            Self::AdminChange => "application/vnd.broker.admin-change.v1+json",
            Self::AdminChangeRefusal => "application/vnd.broker.admin-change-refusal.v1+json",
            Self::Login => "application/vnd.broker.login.v1+json",
        }
    }

    /// The SSHSIG namespace (`ssh-keygen -Y sign -n …`).
    pub const fn namespace(self) -> &'static str {
        match self {
            Self::LeaseApproval => "lease-approval@broker",
            Self::LeaseRefusal => "lease-refusal@broker",
            Self::TaskStart => "task-start@broker",
            Self::Thaw => "thaw@broker",
            Self::AdminChange => "admin-change@broker",
            Self::AdminChangeRefusal => "admin-change-refusal@broker",
            Self::Login => "login@broker",
        }
    }

    /// The bytes that are signed.
    pub fn message(self, body: &[u8]) -> Vec<u8> {
        pre_authentication(self.payload_type(), body)
    }
}

/// DSSE's pre-authentication encoding of a payload and its type (secure-systems-lab/dsse, `protocol.md` v1).
pub fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

impl From<Decision> for Meaning {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Approve => Self::LeaseApproval,
            Decision::Refuse => Self::LeaseRefusal,
        }
    }
}

/// What a statement is about: its predicate, with what in-toto wants to know of it.
pub trait Terms: Serialize + DeserializeOwned {
    /// The in-toto `predicateType`.
    fn predicate_type(&self) -> &'static str;

    /// The in-toto subject's name, and the hex of its SHA-256.
    fn subject(&self) -> (String, String);

    /// Whether they say one thing, and what a person is shown is all of it.
    fn check(&self) -> Result<(), StatementError>;
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    subject: [Subject; 1],
    predicate: T,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

impl Subject {
    fn of(terms: &impl Terms) -> Self {
        let (name, sha256) = terms.subject();
        Self { name, digest: BTreeMap::from([("sha256".to_owned(), sha256)]) }
    }
}

/// A statement as stored: the bytes, and what follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<T> {
    bytes: Vec<u8>,
    terms: T,
}

#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("the statement is not valid JSON of the expected shape: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("the statement is not in canonical form")]
    NotCanonical,
    #[error("the statement is of another kind")]
    OtherKind,
    #[error("the statement contradicts itself: {0}")]
    Contradiction(&'static str),
}

impl<T: Terms> Sealed<T> {
    /// Seals `terms` into canonical bytes. This happens once in a statement's life.
    pub fn new(terms: T) -> Result<Self, StatementError> {
        let bytes = canonical(&Envelope {
            kind: IN_TOTO.to_owned(),
            predicate_type: terms.predicate_type().to_owned(),
            subject: [Subject::of(&terms)],
            predicate: terms,
        })?;
        Self::from_bytes(bytes)
    }

    /// Reads stored bytes back; anything but our own canonical form is an error.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, StatementError> {
        let statement: Envelope<T> = serde_json::from_slice(&bytes)?;
        // A duplicate key, another order or another spelling would let two readers see two statements.
        if canonical(&statement)? != bytes {
            return Err(StatementError::NotCanonical);
        }
        let terms = statement.predicate;
        if statement.kind != IN_TOTO || statement.predicate_type != terms.predicate_type() {
            return Err(StatementError::OtherKind);
        }
        terms.check()?;
        if statement.subject != [Subject::of(&terms)] {
            return Err(StatementError::Contradiction("subject is not the request"));
        }
        Ok(Self { bytes, terms })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn terms(&self) -> &T {
        &self.terms
    }

    /// SHA-256 of the bytes, in lower-case hex.
    pub fn sha256(&self) -> String {
        sha256_hex(&self.bytes)
    }

    pub fn short_code(&self) -> String {
        short_code(&self.bytes)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Where the broker is reached.
    pub origin: String,
    /// Key id of the instance's public key: RFC 7638 thumbprint.
    pub instance_key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signers {
    pub eligible: Vec<String>,
    pub needed: u16,
    pub assurance: Assurance,
}

/// What was in force when the request was judged: SHA-256 of the configuration, in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub sha256: String,
    pub decided_by: Vec<String>,
}

/// The first 40 bits of the SHA-256 of `bytes`, in Crockford's base 32: eight characters, as `XXXX-XXXX`.
pub fn short_code(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let digest = Sha256::digest(bytes);
    let bits = digest[..5].iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let mut code = String::with_capacity(9);
    for place in (0..8).rev() {
        if place == 3 {
            code.push('-');
        }
        let digit = usize::try_from(bits >> (5 * place) & 31).expect("five bits fit");
        code.push(char::from(ALPHABET[digit]));
    }
    code
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// RFC 8785 with every character but printable ASCII as `\uXXXX`, so that the bytes look the same on every screen.
pub fn canonical<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let text = serde_json_canonicalizer::to_string(value)?;
    let mut bytes = Vec::with_capacity(text.len());
    let mut units = [0_u16; 2];
    for character in text.chars() {
        if let Ok(ascii) = u8::try_from(character)
            && ascii.is_ascii()
            && ascii != 0x7f
        {
            bytes.push(ascii);
        } else {
            // JSON allows non-ASCII only inside strings, where an escape means the same.
            for unit in character.encode_utf16(&mut units) {
                bytes.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meaning_has_a_type_and_a_namespace_of_its_own() {
        assert_eq!(Meaning::ALL.len(), Meaning::Login as usize + 1);
        for (at, one) in Meaning::ALL.iter().enumerate() {
            let name = one.namespace().strip_suffix("@broker").unwrap();
            assert_eq!(one.payload_type(), format!("application/vnd.broker.{name}.v1+json"));
            assert!(Meaning::ALL[..at].iter().all(|it| it.namespace() != one.namespace()));
        }
    }

    #[test]
    fn no_control_character_is_in_the_bytes_as_it_is() {
        assert_eq!(canonical(&"\u{7}\u{7f}").unwrap(), br#""\u0007\u007f""#);
    }

    #[test]
    fn the_message_is_dsse_pre_authentication_encoding() {
        let message = Meaning::Login.message(b"{}");
        assert_eq!(message, b"DSSEv1 36 application/vnd.broker.login.v1+json 2 {}");
    }

    #[test]
    fn the_short_code_is_forty_bits_in_crockford_base_32() {
        // SHA-256("") begins e3b0c44298.
        assert_eq!(short_code(b""), "WERC-8GMR");
    }
}
