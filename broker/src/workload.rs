//! Workloads: what comes with a token that somebody else signed, and which agent it is.
//!
//! Names carry trust: what is read before the signature is checked is called [`Unverified`], and only tells which issuer and which
//! key to check it with. Whoever signs, where their keys are and what they sign with comes from the configuration. Pure: who asks
//! for keys, and when, is `identity::issuers`' business.

pub mod issuer;
pub mod pattern;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};

use self::issuer::{Issuer, PublicAlgorithm, SetsOff};
use self::pattern::Pattern;
use crate::statement::act::is_line;

/// A longer token is none of a workload: those of GitHub, GitLab, Kubernetes and SPIFFE have some two thousand bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How much two clocks may differ.
const LEEWAY: Duration = Duration::seconds(30);
/// A token that is good for longer is a standing credential.
const LONGEST_LIFE: Duration = Duration::DAY;
const MAX_KEY_ID_BYTES: usize = 255;
/// All claims together that a task keeps: they travel in its token.
const MAX_CLAIMS_BYTES: usize = 1024;

/// Why there is no key to check a token with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// The issuer has none of this id, as far as we know.
    #[error("the issuer has no such key")]
    Unknown,
    #[error("the issuer's keys cannot be had")]
    Unavailable,
}

/// Why a workload's token is not exchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    #[error("it has more than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("it is no signed JWT: {0}")]
    Malformed(&'static str),
    #[error("its issuer is not one of those that are configured")]
    UnknownIssuer,
    #[error("its issuer does not sign with this algorithm")]
    WrongAlgorithm,
    #[error(transparent)]
    Key(#[from] NoKey),
    #[error("its signature is not the issuer's")]
    BadSignature,
    #[error("it is for another audience, or for several")]
    WrongAudience,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYetValid,
    #[error("it would be good for more than a day")]
    TooLongLived,
    #[error("no agent is configured for its subject and claims")]
    NotMapped,
    #[error("more than one agent is configured for its subject and claims")]
    Ambiguous,
    #[error("the claims that its task would keep are missing, too long, or no text")]
    UnusableClaims,
    #[error("it was exchanged before, and is taken once")]
    Replayed,
    #[error("the task that it was exchanged for has ended")]
    TaskEnded,
    #[error("the sponsor of its agent is not an active person")]
    NoSponsor,
}

impl WorkloadError {
    /// The stable code of answers and of the record.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::Malformed(_) => "malformed",
            Self::UnknownIssuer => "unknown-issuer",
            Self::WrongAlgorithm => "wrong-algorithm",
            Self::Key(NoKey::Unknown) => "unknown-key",
            Self::Key(NoKey::Unavailable) => "keys-unavailable",
            Self::BadSignature => "bad-signature",
            Self::WrongAudience => "wrong-audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::TooLongLived => "too-long-lived",
            Self::NotMapped => "not-mapped",
            Self::Ambiguous => "ambiguous",
            Self::UnusableClaims => "unusable-claims",
            Self::Replayed => "replayed",
            Self::TaskEnded => "task-ended",
            Self::NoSponsor => "no-sponsor",
        }
    }
}

/// A workload that proved to be one: which agent it is, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub issuer: String,
    pub subject: String,
    pub agent: String,
    pub sponsor: String,
    pub task: String,
    pub set_off: SetOff,
    /// Those that rules may ask for.
    pub claims: BTreeMap<String, String>,
    pub ttl: Duration,
    /// Of what the issuer signed: the same token has the same, however its signature is written.
    pub token_sha256: [u8; 32],
    /// Whether it is taken once.
    pub once: bool,
}

/// Who set it off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetOff {
    BySponsor,
    By(String),
    /// By somebody, and we do not know whom.
    BySomebody,
}

/// What the token says before anybody has vouched for it.
pub struct Unverified<'a> {
    /// What is signed: header and claims, as they came.
    pub message: &'a str,
    /// In base64url.
    pub signature: &'a str,
    pub issuer: String,
    pub key_id: String,
    algorithm: String,
    payload: Vec<u8>,
}

/// Claims that their issuer signed.
pub struct Verified<'a> {
    issuer: &'a Issuer,
    claims: Map<String, Value>,
    token_sha256: [u8; 32],
}

/// Takes the token apart.
pub fn read(token: &str) -> Result<Unverified<'_>, WorkloadError> {
    if MAX_TOKEN_BYTES < token.len() {
        return Err(WorkloadError::TooLong);
    }
    let malformed = WorkloadError::Malformed;
    let (message, signature) = token.rsplit_once('.').ok_or(malformed("it has no three parts"))?;
    let (header, payload) = message.split_once('.').ok_or(malformed("it has no three parts"))?;
    let part = |text: &str| {
        URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed("a part of it is not base64url"))
    };
    let header: Header =
        serde_json::from_slice(&part(header)?).map_err(|_| malformed("its header"))?;
    header.check()?;
    let payload = part(payload)?;
    let Strict(claims) = serde_json::from_slice(&payload).map_err(|_| malformed("its claims"))?;
    let issuer =
        claims.get("iss").and_then(Value::as_str).ok_or(malformed("it names no issuer"))?;
    Ok(Unverified {
        message,
        signature,
        algorithm: header.alg,
        key_id: header.kid.unwrap_or_default(),
        issuer: issuer.to_owned(),
        payload,
    })
}

/// RFC 7515, section 4.1. A member that stands there twice is an error.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// What would have us look elsewhere for a key, or read the token otherwise.
    jku: Option<IgnoredAny>,
    jwk: Option<IgnoredAny>,
    x5u: Option<IgnoredAny>,
    x5c: Option<IgnoredAny>,
    crit: Option<IgnoredAny>,
    b64: Option<IgnoredAny>,
    enc: Option<IgnoredAny>,
    zip: Option<IgnoredAny>,
}

impl Header {
    fn check(&self) -> Result<(), WorkloadError> {
        let Self { jku, jwk, x5u, x5c, crit, b64, enc, zip, .. } = self;
        if [jku, jwk, x5u, x5c, crit, b64, enc, zip].into_iter().any(Option::is_some) {
            return Err(WorkloadError::Malformed("its header brings a key, or wants more"));
        }
        let typ = self.typ.as_deref();
        if typ.is_some_and(|it| !["JWT", "JOSE"].iter().any(|of| it.eq_ignore_ascii_case(of))) {
            return Err(WorkloadError::Malformed("it is of another type"));
        }
        match &self.kid {
            Some(it) if !it.is_empty() && it.len() <= MAX_KEY_ID_BYTES => Ok(()),
            _ => Err(WorkloadError::Malformed("it names no key")),
        }
    }
}

/// A JSON object of which no member stands there twice: two readers would read two things.
struct Strict(Map<String, Value>);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Strict;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Strict, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = from.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a member stands there twice"));
                    }
                }
                Ok(Strict(members))
            }
        }
        from.deserialize_map(Members)
    }
}

impl Unverified<'_> {
    /// The algorithm that the token names, if the configuration has it for this issuer.
    pub fn algorithm(&self, issuer: &Issuer) -> Result<PublicAlgorithm, WorkloadError> {
        let named = |it: &PublicAlgorithm| it.as_str() == self.algorithm;
        issuer.algorithms.iter().copied().find(named).ok_or(WorkloadError::WrongAlgorithm)
    }

    /// What was signed, if `is_signed` by the issuer: whether its key verifies the signature over the message.
    pub fn verify<'i>(
        &self,
        issuer: &'i Issuer,
        is_signed: impl FnOnce(PublicAlgorithm) -> bool,
    ) -> Result<Verified<'i>, WorkloadError> {
        if self.issuer != issuer.issuer {
            return Err(WorkloadError::UnknownIssuer);
        }
        if !is_signed(self.algorithm(issuer)?) {
            return Err(WorkloadError::BadSignature);
        }
        let Strict(claims) = serde_json::from_slice(&self.payload)
            .map_err(|_| WorkloadError::Malformed("its claims"))?;
        Ok(Verified { issuer, claims, token_sha256: Sha256::digest(self.message).into() })
    }
}

impl Verified<'_> {
    /// What the workload is called by its issuer.
    pub fn subject(&self) -> Option<&str> {
        self.claims.get("sub").and_then(Value::as_str).filter(|it| is_line(it))
    }

    /// Which workload it is of. `origin` is the audience of issuers that name no other.
    pub fn workload(self, origin: &str, now: OffsetDateTime) -> Result<Workload, WorkloadError> {
        let subject = self.subject().map(ToOwned::to_owned);
        let Self { issuer, claims: signed, token_sha256 } = self;
        let audience = issuer.audience.as_deref().unwrap_or(origin);
        // A token that others take too, others can bring.
        let for_us = match signed.get("aud") {
            Some(Value::String(it)) => it == audience,
            Some(Value::Array(all)) => matches!(&all[..], [Value::String(it)] if it == audience),
            _ => false,
        };
        if !for_us {
            return Err(WorkloadError::WrongAudience);
        }
        check_times(&signed, now)?;

        let subject = subject.ok_or(WorkloadError::Malformed("it names no subject"))?;
        let signed = Value::Object(signed);
        let holds_all = |conditions: &BTreeMap<String, Pattern>| {
            conditions.iter().all(|(name, pattern)| {
                claim(&signed, name).is_some_and(|value| pattern.matches(&value))
            })
        };
        let fits =
            |it: &&issuer::Workload| it.subject.matches(&subject) && holds_all(&it.conditions);
        let mut matching = issuer.workloads.iter().filter(fits);
        let mapping = matching.next().ok_or(WorkloadError::NotMapped)?;
        if matching.next().is_some() {
            return Err(WorkloadError::Ambiguous);
        }

        let task = match &mapping.task_claim {
            None => subject.clone(),
            Some(name) => claim(&signed, name).ok_or(WorkloadError::UnusableClaims)?,
        };
        let kept = mapping.claims.iter().map(|name| Some((name.clone(), claim(&signed, name)?)));
        let claims: BTreeMap<_, _> =
            kept.collect::<Option<_>>().ok_or(WorkloadError::UnusableClaims)?;
        if MAX_CLAIMS_BYTES < claims.iter().map(|(name, value)| name.len() + value.len()).sum() {
            return Err(WorkloadError::UnusableClaims);
        }
        let set_off = match mapping.set_off_by {
            SetsOff::Sponsor => SetOff::BySponsor,
            SetsOff::Actor => {
                let named = issuer.actor_claim.as_ref().filter(|_| holds_all(&issuer.actor_where));
                let named = named.and_then(|name| claim(&signed, name));
                let person = named.and_then(|it| issuer.actors.get(&it));
                person.map_or(SetOff::BySomebody, |it| SetOff::By(it.clone()))
            }
        };
        Ok(Workload {
            issuer: issuer.issuer.clone(),
            subject,
            agent: mapping.agent.clone(),
            sponsor: mapping.sponsor.clone(),
            task,
            set_off,
            claims,
            ttl: mapping.ttl.0,
            token_sha256,
            once: issuer.once,
        })
    }
}

/// RFC 7519, section 4.1. A token without an end is none.
fn check_times(signed: &Map<String, Value>, now: OffsetDateTime) -> Result<(), WorkloadError> {
    let time = |name: &'static str| match signed.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_f64()
            .filter(|it| (0.0..253_402_300_800.0).contains(it))
            .map(Some)
            .ok_or(WorkloadError::Malformed("a time in it")),
    };
    #[expect(clippy::cast_precision_loss, reason = "seconds of this millennium are exact")]
    let (now, leeway) = (now.unix_timestamp() as f64, LEEWAY.as_seconds_f64());
    let expires = time("exp")?.ok_or(WorkloadError::Malformed("it never expires"))?;
    if expires + leeway <= now {
        return Err(WorkloadError::Expired);
    }
    if [time("nbf")?, time("iat")?].into_iter().flatten().any(|it| now + leeway < it) {
        return Err(WorkloadError::NotYetValid);
    }
    let longest = LONGEST_LIFE.as_seconds_f64();
    if now + longest < expires || time("iat")?.is_some_and(|it| it + longest < expires) {
        return Err(WorkloadError::TooLongLived);
    }
    Ok(())
}

/// A claim as text: by its name, or by a JSON Pointer. Lists and objects are no text.
fn claim(signed: &Value, name: &str) -> Option<String> {
    let value = if name.starts_with('/') { signed.pointer(name) } else { signed.get(name) };
    let text = match value? {
        Value::String(it) => it.clone(),
        Value::Number(it) => it.to_string(),
        Value::Bool(it) => it.to_string(),
        _ => return None,
    };
    is_line(&text).then_some(text)
}
