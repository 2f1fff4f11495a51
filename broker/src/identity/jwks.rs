//! The keys of an issuer (RFC 7517): from where the configuration says, kept for a while, and asked for again not too often.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use crate::workload::NoKey;
use crate::workload::issuer::PublicAlgorithm;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use tokio::sync::{Mutex, RwLock};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Older keys are asked for again; those of a file, which costs nobody anything, as often as may be.
const FRESH: Duration = Duration::HOUR;
/// Older keys are not believed, whatever hinders us from asking for newer ones.
const TOO_OLD: Duration = Duration::DAY;
/// Between two times that we ask, whatever comes: unknown key ids cost the sender nothing.
const ASK_EVERY: Duration = Duration::seconds(30);
const TIMEOUT: StdDuration = StdDuration::from_secs(5);
const MAX_BYTES: u64 = 256 * 1024;
const MAX_KEYS: usize = 100;

/// Where the keys are.
#[derive(Clone, Debug)]
pub enum Source {
    Url(ureq::Agent, String),
    File(PathBuf),
}

impl Source {
    /// An URL, whose host is trusted by the certificates in `roots` (PEM), or by those of this machine.
    pub fn url(url: &str, roots: Option<&str>) -> Result<Self, String> {
        let roots = match roots {
            None => RootCerts::PlatformVerifier,
            Some(pem) => {
                let certificates: Result<Vec<Certificate<'static>>, _> = parse_pem(pem.as_bytes())
                    .filter_map(|it| match it {
                        Ok(PemItem::Certificate(it)) => Some(Ok(it)),
                        Ok(_) => None,
                        Err(error) => Some(Err(error.to_string())),
                    })
                    .collect();
                let certificates = certificates?;
                if certificates.is_empty() {
                    return Err("there is no certificate in it".to_owned());
                }
                RootCerts::new_with_certs(&certificates)
            }
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(roots)
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            // The keys are where the configuration says, and nowhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("brokerd/", env!("CARGO_PKG_VERSION")));
        let config = if url.starts_with("http:") { config.proxy(None) } else { config };
        Ok(Self::Url(config.build().new_agent(), url.to_owned()))
    }

    fn fresh(&self) -> Duration {
        match self {
            Self::Url(..) => FRESH,
            Self::File(_) => ASK_EVERY,
        }
    }

    /// Asks. Blocks.
    fn read(&self) -> Result<HashMap<String, Key>, String> {
        let text = match self {
            Self::Url(agent, url) => {
                let mut answer = agent.get(url).call().map_err(|error| error.to_string())?;
                if answer.status() != 200 {
                    return Err(format!("the answer's status is {}", answer.status()));
                }
                let body = answer.body_mut().with_config().limit(MAX_BYTES).read_to_vec();
                body.map_err(|error| error.to_string())?
            }
            Self::File(path) => {
                let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
                let mut text = Vec::new();
                file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| error.to_string())?;
                text
            }
        };
        parse(&text)
    }
}

/// One public key, and what it may have signed with.
#[derive(Clone, Debug)]
pub struct Key {
    algorithms: &'static [Algorithm],
    decoding: DecodingKey,
}

impl Key {
    /// Whether `signature` (base64url) over `message` is by this key and this algorithm.
    pub fn verifies(&self, signature: &str, message: &[u8], algorithm: PublicAlgorithm) -> bool {
        let it = named(algorithm);
        self.algorithms.contains(&it)
            && jsonwebtoken::crypto::verify(signature, message, &self.decoding, it).unwrap_or(false)
    }

    /// A key that signs: neither a secret that is shared, nor one for another use.
    fn read(jwk: &Jwk) -> Option<(String, Self)> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let common = &jwk.common;
        let id = common.key_id.clone()?;
        match &common.public_key_use {
            None | Some(PublicKeyUse::Signature) => {}
            // SPIFFE's name for the same.
            Some(PublicKeyUse::Other(it)) if it == "jwt-svid" => {}
            Some(_) => return None,
        }
        let all: &'static [Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
            AlgorithmParameters::EllipticCurve(it) => match it.curve {
                EllipticCurve::P256 => &[ES256],
                EllipticCurve::P384 => &[ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(it) if it.curve == EllipticCurve::Ed25519 => &[EdDSA],
            _ => return None,
        };
        let algorithms = match common.key_algorithm {
            None => all,
            Some(named) => {
                let at = all.iter().position(|it| format!("{it:?}") == named.to_string())?;
                &all[at..=at]
            }
        };
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        Some((id, Self { algorithms, decoding }))
    }
}

/// The library's name.
fn named(algorithm: PublicAlgorithm) -> Algorithm {
    match algorithm {
        PublicAlgorithm::RS256 => Algorithm::RS256,
        PublicAlgorithm::RS384 => Algorithm::RS384,
        PublicAlgorithm::RS512 => Algorithm::RS512,
        PublicAlgorithm::PS256 => Algorithm::PS256,
        PublicAlgorithm::PS384 => Algorithm::PS384,
        PublicAlgorithm::PS512 => Algorithm::PS512,
        PublicAlgorithm::ES256 => Algorithm::ES256,
        PublicAlgorithm::ES384 => Algorithm::ES384,
        PublicAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

/// The keys of a set that can be used, by id. An id that two keys have is nobody's.
pub fn parse(text: &[u8]) -> Result<HashMap<String, Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let Set { keys } =
        serde_json::from_slice(text).map_err(|_| "it is not a JWK set".to_owned())?;
    if MAX_KEYS < keys.len() {
        return Err(format!("it has more than {MAX_KEYS} keys"));
    }
    let mut by_id: HashMap<String, Option<Key>> = HashMap::new();
    // Each by itself: one of a kind that we do not know spoils no other.
    let keys = keys.into_iter().filter_map(|it| serde_json::from_value::<Jwk>(it).ok());
    for (id, key) in keys.filter_map(|it| Key::read(&it)) {
        by_id.entry(id).and_modify(|it| *it = None).or_insert(Some(key));
    }
    Ok(by_id.into_iter().filter_map(|(id, key)| Some((id, key?))).collect())
}

/// What we know of an issuer's keys.
#[derive(Debug)]
pub struct Jwks {
    source: Source,
    known: RwLock<Known>,
    /// Held by whoever asks; when somebody did last.
    asked_at: Mutex<Option<OffsetDateTime>>,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashMap<String, Key>,
    at: Option<OffsetDateTime>,
}

impl Known {
    /// The key of this id, if we know it since less than `age`.
    fn get(&self, id: &str, age: Duration, now: OffsetDateTime) -> Option<Key> {
        self.at.filter(|it| (now - *it).abs() < age).and_then(|_| self.keys.get(id)).cloned()
    }
}

impl Jwks {
    pub fn new(source: Source) -> Self {
        Self { source, known: RwLock::default(), asked_at: Mutex::default() }
    }

    /// The key of this id. Asks where the keys are when they are old, or when the id is new: at most twice a minute, one at a
    /// time. Keys that are known are found without waiting for that.
    pub async fn key(&self, id: &str, now: OffsetDateTime) -> Result<Key, NoKey> {
        if let Some(key) = self.known.read().await.get(id, self.source.fresh(), now) {
            return Ok(key);
        }
        let mut asked_at = self.asked_at.lock().await;
        if asked_at.is_none_or(|it| ASK_EVERY <= (now - it).abs()) {
            *asked_at = Some(now);
            let source = self.source.clone();
            let read = tokio::task::spawn_blocking(move || source.read()).await;
            match read.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(keys) => *self.known.write().await = Known { keys, at: Some(now) },
                Err(error) => tracing::warn!(source = %self.source, %error, "an issuer's keys"),
            }
        }
        let known = self.known.read().await;
        let Some(at) = known.at.filter(|it| (now - *it).abs() < TOO_OLD) else {
            return Err(NoKey::Unavailable);
        };
        match known.get(id, TOO_OLD, now) {
            Some(key) => Ok(key),
            // Old keys say nothing about a new id.
            None if FRESH <= (now - at).abs() => Err(NoKey::Unavailable),
            None => Err(NoKey::Unknown),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(_, url) => f.write_str(url),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
