//! Who is calling: tokens of agents and people, all signed by this installation's key. A workload's token, which somebody else
//! signed, is exchanged for one of these: [`issuers`].
//!
//! Each kind of token has a media type of its own in its header (RFC 8725, section 3.11), so that one can never be
//! taken for another. The algorithm is pinned.

pub mod issuers;
pub mod jwks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signer as _, SigningKey};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::statement::Issuer;

/// A reading session lasts this long.
const LOGIN_TTL: Duration = Duration::hours(1);
/// A person has this long to sign a nonce.
const NONCE_TTL: Duration = Duration::minutes(2);
/// A longer token is not ours; bounds what we parse.
const MAX_TOKEN_BYTES: usize = 4096;

const TASK: &str = "task+jwt";
const LOGIN: &str = "login+jwt";
const NONCE: &str = "login-nonce+jwt";

/// An authenticated agent. Whether its task still lives is for the database to say, in the statement that acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub name: String,
    pub sponsor: String,
    pub task: String,
    pub task_id: Uuid,
    pub origin: Origin,
    pub token_expires_at: OffsetDateTime,
}

/// Where a task comes from, as its token has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Who vouched for the workload; nobody where the sponsor started the task.
    #[serde(rename = "workload_issuer", default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The person who set it off, if somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Somebody set it off, and nobody knows who: nobody could say who must not sign for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub actor_unknown: bool,
    /// Of the workload's token, for rules.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
}

/// A person's reading session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    pub handle: String,
    pub token_expires_at: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    Agent(Agent),
    Person(Reader),
}

/// A task as its token names it.
#[derive(Clone, Copy, Debug)]
pub struct TaskGrant<'a> {
    pub id: Uuid,
    pub agent: &'a str,
    pub sponsor: &'a str,
    pub task: &'a str,
    pub expires_at: OffsetDateTime,
}

/// Why a token is not believed. Logged and recorded; the caller learns only that it is not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("no bearer token")]
    Missing,
    #[error("longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    #[error("of another kind")]
    OtherKind,
    #[error("expired")]
    Expired {
        /// Whom we had made it for; nobody for a nonce.
        claimed: Option<Box<Caller>>,
    },
    /// A workload's, which the configuration does not have any more.
    #[error("of a workload that is not configured any more")]
    NotMapped { claimed: Box<Caller> },
    #[error("not valid: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
}

impl TokenError {
    /// The stable code of the record; nothing where there was no token.
    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Missing => return None,
            Self::TooLong => "too-long",
            Self::OtherKind => "other-kind",
            Self::Expired { .. } => "expired",
            Self::NotMapped { .. } => "not-mapped",
            Self::Invalid(error) => match error.kind() {
                ErrorKind::InvalidSignature => "bad-signature",
                ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => "other-broker",
                _ => "malformed",
            },
        })
    }

    /// Who the token says it is of, where we had signed it.
    pub fn claimed(&self) -> Option<&Caller> {
        match self {
            Self::Expired { claimed } => claimed.as_deref(),
            Self::NotMapped { claimed } => Some(claimed),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "cannot read the instance key {path}: {error}; make one with `openssl genpkey -algorithm ed25519 -out {path}`, readable by this user only"
    )]
    Read { path: String, error: std::io::Error },
    #[error(
        "the instance key {path} is not an Ed25519 private key in PKCS #8 PEM; make one with `openssl genpkey -algorithm ed25519`"
    )]
    Format { path: String },
}

/// Signs and checks our tokens.
pub struct Tokens {
    origin: String,
    key: InstanceKey,
    encoding: EncodingKey,
    /// Keys of before: tokens that they signed are good until they end, and nothing is signed with them but exports of statements that name them.
    former: Vec<InstanceKey>,
}

/// A key of the installation.
pub struct InstanceKey {
    /// RFC 7638 thumbprint of its public half.
    id: String,
    key: SigningKey,
    decoding: DecodingKey,
}

impl InstanceKey {
    fn load(path: &Path) -> Result<(Self, SecretString), KeyError> {
        let name = path.display().to_string();
        let pem = std::fs::read_to_string(path)
            .map(SecretString::from)
            .map_err(|error| KeyError::Read { path: name.clone(), error })?;
        let bad = || KeyError::Format { path: name.clone() };
        let key = SigningKey::from_pkcs8_pem(pem.expose_secret()).map_err(|_| bad())?;
        let x = URL_SAFE_NO_PAD.encode(key.verifying_key().to_bytes());
        // RFC 7638: the members of the public key, in order, without white space.
        let thumbprint = Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
        let decoding = DecodingKey::from_ed_components(&x).map_err(|_| bad())?;
        Ok((Self { id: URL_SAFE_NO_PAD.encode(thumbprint), key, decoding }, pem))
    }

    /// Its Ed25519 public half.
    pub fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Signs bytes. They begin with what they are, so that none is ever a token.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(bytes).to_bytes()
    }
}

#[derive(Serialize, Deserialize)]
struct Claims<T> {
    iss: String,
    aud: String,
    iat: i64,
    exp: i64,
    jti: Uuid,
    #[serde(flatten)]
    more: T,
}

/// `sub` is the agent; the human behind it is named beside it (RFC 8693's delegation, with our own claim names).
#[derive(Serialize, Deserialize)]
struct TaskClaims {
    sub: String,
    sponsor: String,
    task: String,
    #[serde(flatten)]
    origin: Origin,
}

#[derive(Serialize, Deserialize)]
struct LoginClaims {
    sub: String,
}

#[derive(Serialize, Deserialize)]
struct NonceClaims {}

/// The fingerprint that the installation's key would have as a person's: `SHA256:…`.
pub fn fingerprint(path: &Path) -> Result<String, KeyError> {
    let (key, _) = InstanceKey::load(path)?;
    let public = ssh_key::public::Ed25519PublicKey(key.public());
    Ok(ssh_key::PublicKey::from(public).fingerprint(ssh_key::HashAlg::Sha256).to_string())
}

impl Tokens {
    /// Reads the installation's key, and those that it had before.
    pub fn load(path: &Path, former: &[PathBuf], origin: &str) -> Result<Self, KeyError> {
        let (key, pem) = InstanceKey::load(path)?;
        let bad = |_| KeyError::Format { path: path.display().to_string() };
        let encoding = EncodingKey::from_ed_pem(pem.expose_secret().as_bytes()).map_err(bad)?;
        let former = former.iter().map(|it| InstanceKey::load(it).map(|(key, _)| key));
        let former = former.collect::<Result<_, _>>()?;
        Ok(Self { origin: origin.to_owned(), key, encoding, former })
    }

    /// A new instance key, as PKCS #8 PEM.
    pub fn generate_key() -> SecretString {
        let mut seed = [0; 32];
        rand::fill(&mut seed);
        let pem =
            SigningKey::from_bytes(&seed).to_pkcs8_pem(LineEnding::LF).expect("a key encodes");
        SecretString::from(pem.to_string())
    }

    /// RFC 7638 thumbprint of the instance's public key.
    pub fn key_id(&self) -> &str {
        &self.key.id
    }

    /// All public keys that tokens are checked with, the one that signs first.
    pub fn public_keys(&self) -> impl Iterator<Item = [u8; 32]> {
        self.keys().map(InstanceKey::public)
    }

    /// The key that has this id, or else today's.
    pub fn key_of(&self, id: &str) -> &InstanceKey {
        self.keys().find(|it| it.id == id).unwrap_or(&self.key)
    }

    fn keys(&self) -> impl Iterator<Item = &InstanceKey> {
        std::iter::once(&self.key).chain(&self.former)
    }

    /// Who we are, in what people sign.
    pub fn issuer(&self) -> Issuer {
        Issuer { origin: self.origin.clone(), instance_key: self.key.id.clone() }
    }

    /// The token of a task that its sponsor started.
    pub fn task_token(&self, task: TaskGrant<'_>, now: OffsetDateTime) -> SecretString {
        self.workload_token(task, Origin::default(), now)
    }

    /// The token of a workload's task.
    pub fn workload_token(
        &self,
        task: TaskGrant<'_>,
        origin: Origin,
        now: OffsetDateTime,
    ) -> SecretString {
        let claims = TaskClaims {
            sub: task.agent.into(),
            sponsor: task.sponsor.into(),
            task: task.task.into(),
            origin,
        };
        self.sign(TASK, task.id, task.expires_at, now, claims)
    }

    /// A reading session for `person`, and when it ends.
    pub fn login_token(&self, person: &str, now: OffsetDateTime) -> (SecretString, OffsetDateTime) {
        let expires_at = now + LOGIN_TTL;
        (
            self.sign(LOGIN, Uuid::new_v4(), expires_at, now, LoginClaims { sub: person.into() }),
            expires_at,
        )
    }

    /// A nonce to sign for a login. It is no secret; the database sees to it that it is used once.
    pub fn login_nonce(&self, now: OffsetDateTime) -> (String, OffsetDateTime) {
        let expires_at = now + NONCE_TTL;
        let token = self.sign(NONCE, Uuid::new_v4(), expires_at, now, NonceClaims {});
        (token.expose_secret().to_owned(), expires_at)
    }

    /// The id of a nonce that is ours and still fresh.
    pub fn check_nonce(&self, nonce: &str, now: OffsetDateTime) -> Result<Uuid, TokenError> {
        let claims = self.open::<NonceClaims>(NONCE, nonce)?;
        if claims.exp <= now.unix_timestamp() {
            return Err(TokenError::Expired { claimed: None });
        }
        Ok(claims.jti)
    }

    /// Authenticates the value of an `Authorization` header.
    pub fn authenticate(
        &self,
        header: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Caller, TokenError> {
        let header = header.ok_or(TokenError::Missing)?;
        let (scheme, token) = header.split_once(' ').ok_or(TokenError::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(TokenError::Missing);
        }
        let (caller, exp) = match self.open::<TaskClaims>(TASK, token) {
            Ok(claims) => {
                let agent = Agent {
                    name: claims.more.sub,
                    sponsor: claims.more.sponsor,
                    task: claims.more.task,
                    task_id: claims.jti,
                    origin: claims.more.origin,
                    token_expires_at: instant(claims.exp)?,
                };
                (Caller::Agent(agent), claims.exp)
            }
            Err(TokenError::OtherKind) => {
                let claims = self.open::<LoginClaims>(LOGIN, token)?;
                let token_expires_at = instant(claims.exp)?;
                let reader = Reader { handle: claims.more.sub, token_expires_at };
                (Caller::Person(reader), claims.exp)
            }
            Err(error) => return Err(error),
        };
        if exp <= now.unix_timestamp() {
            return Err(TokenError::Expired { claimed: Some(Box::new(caller)) });
        }
        Ok(caller)
    }

    fn sign<T: Serialize>(
        &self,
        kind: &str,
        id: Uuid,
        expires_at: OffsetDateTime,
        now: OffsetDateTime,
        more: T,
    ) -> SecretString {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(kind.to_owned());
        header.kid = Some(self.key.id.clone());
        let claims = Claims {
            iss: self.origin.clone(),
            aud: self.origin.clone(),
            iat: now.unix_timestamp(),
            exp: expires_at.unix_timestamp(),
            jti: id,
            more,
        };
        jsonwebtoken::encode(&header, &claims, &self.encoding).expect("a token encodes").into()
    }

    /// The claims of a token that we signed. Whether it has expired is for the caller to ask.
    fn open<T: DeserializeOwned>(&self, kind: &str, token: &str) -> Result<Claims<T>, TokenError> {
        if MAX_TOKEN_BYTES < token.len() {
            return Err(TokenError::TooLong);
        }
        let header = jsonwebtoken::decode_header(token)?;
        if header.typ.as_deref() != Some(kind) {
            return Err(TokenError::OtherKind);
        }
        let named = header.kid.as_deref();
        // Keys of before are for tasks that began then. Sessions of people, and nonces, are soon made anew.
        let keys = self.keys().take(if kind == TASK { usize::MAX } else { 1 });
        let key = { keys }.find(|it| Some(it.id.as_str()) == named);
        let key =
            key.ok_or_else(|| jsonwebtoken::errors::Error::from(ErrorKind::InvalidSignature))?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[&self.origin]);
        validation.set_audience(&[&self.origin]);
        validation.set_required_spec_claims(&["iss", "aud", "exp"]);
        // Checked by the caller against our own clock.
        validation.validate_exp = false;
        Ok(jsonwebtoken::decode::<Claims<T>>(token, &key.decoding, &validation)?.claims)
    }
}

fn instant(seconds: i64) -> Result<OffsetDateTime, TokenError> {
    let beyond = |_| TokenError::Expired { claimed: None };
    OffsetDateTime::from_unix_timestamp(seconds).map_err(beyond)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn tokens(origin: &str) -> Tokens {
        let dir = std::env::temp_dir().join(format!("broker-key-{}", Uuid::new_v4()));
        std::fs::write(&dir, Tokens::generate_key().expose_secret()).unwrap();
        let tokens = Tokens::load(&dir, &[], origin).unwrap();
        std::fs::remove_file(dir).unwrap();
        tokens
    }

    fn task(tokens: &Tokens) -> String {
        let grant = TaskGrant {
            id: Uuid::nil(),
            agent: "demo-agent",
            sponsor: "alice",
            task: "T-1",
            expires_at: NOW + Duration::HOUR,
        };
        tokens.task_token(grant, NOW).expose_secret().to_owned()
    }

    fn bearer(tokens: &Tokens, token: &str, now: OffsetDateTime) -> Result<Caller, TokenError> {
        tokens.authenticate(Some(&format!("Bearer {token}")), now)
    }

    #[test]
    fn a_task_token_names_the_agent_and_its_sponsor_until_it_expires() {
        let tokens = tokens("https://a.example");
        let token = task(&tokens);
        let Caller::Agent(agent) = bearer(&tokens, &token, NOW).unwrap() else {
            panic!("not an agent")
        };
        assert_eq!((agent.name.as_str(), agent.sponsor.as_str()), ("demo-agent", "alice"));
        let expired = bearer(&tokens, &token, NOW + Duration::HOUR).unwrap_err();
        assert_eq!(expired.claimed(), Some(&Caller::Agent(agent)));
        assert_eq!(expired.code(), Some("expired"));
    }

    #[test]
    fn one_kind_of_token_is_never_another() {
        let tokens = tokens("https://a.example");
        let (nonce, _) = tokens.login_nonce(NOW);
        assert!(matches!(bearer(&tokens, &nonce, NOW), Err(TokenError::OtherKind)));
        assert!(matches!(tokens.check_nonce(&task(&tokens), NOW), Err(TokenError::OtherKind)));
        let (login, _) = tokens.login_token("bob", NOW);
        assert!(matches!(bearer(&tokens, login.expose_secret(), NOW), Ok(Caller::Person(_))));
        assert!(matches!(
            tokens.check_nonce(login.expose_secret(), NOW),
            Err(TokenError::OtherKind)
        ));
    }

    #[test]
    fn a_key_of_before_is_good_for_tasks_alone() {
        let (before, mut now) = (tokens("https://a.example"), tokens("https://a.example"));
        let (login, nonce) = (before.login_token("bob", NOW).0, before.login_nonce(NOW).0);
        let task = task(&before);
        now.former.push(before.key);
        assert!(matches!(bearer(&now, &task, NOW), Ok(Caller::Agent(_))));
        assert!(matches!(bearer(&now, login.expose_secret(), NOW), Err(TokenError::Invalid(_))));
        assert!(matches!(now.check_nonce(&nonce, NOW), Err(TokenError::Invalid(_))));
    }

    #[test]
    fn tokens_of_another_key_another_audience_or_no_algorithm_are_refused() {
        let (ours, theirs) = (tokens("https://a.example"), tokens("https://a.example"));
        assert!(matches!(bearer(&ours, &task(&theirs), NOW), Err(TokenError::Invalid(_))));

        let mut elsewhere = tokens("https://b.example");
        elsewhere.encoding = ours.encoding.clone();
        assert!(matches!(bearer(&ours, &task(&elsewhere), NOW), Err(TokenError::Invalid(_))));

        let token = task(&ours);
        let (_, rest) = token.split_once('.').unwrap();
        for header in [r#"{"alg":"none","typ":"task+jwt"}"#, r#"{"alg":"HS256","typ":"task+jwt"}"#]
        {
            let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
            assert!(bearer(&ours, &forged, NOW).is_err());
        }
        let unsigned = token.rsplit_once('.').unwrap().0;
        assert!(bearer(&ours, &format!("{unsigned}."), NOW).is_err());
        assert!(matches!(bearer(&ours, &"x".repeat(5000), NOW), Err(TokenError::TooLong)));
        assert!(matches!(ours.authenticate(None, NOW), Err(TokenError::Missing)));
        assert!(matches!(ours.authenticate(Some("Basic eA=="), NOW), Err(TokenError::Missing)));
    }
}
