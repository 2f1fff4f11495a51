//! Passkeys: a `WebAuthn` assertion whose challenge is the SHA-256 of what is signed. Pure.
//!
//! The rules are those of `WebAuthn` Level 3, section 7.2
//! (<https://www.w3.org/TR/webauthn-3/#sctn-verifying-assertion>), for one question: did the holder of this enrolled
//! passkey sign these bytes, on the broker's own page? The challenge is not random, but what is signed holds a nonce
//! of the broker's, so it is as hard to guess and to repeat, and anybody can check the assertion later, without our
//! database.

use std::fmt;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::pkcs8::{DecodePublicKey, EncodePublicKey};
use p256::ecdsa::signature::Verifier;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{MAX_SIGNATURE_BYTES, Rejection, Touch, USER_PRESENT, USER_VERIFIED};
use crate::lease::Assurance;
use crate::statement::canonical;

// The flags of authenticator data, besides the two that OpenSSH has too.
const BACKUP_ELIGIBLE: u8 = 0x08;
const BACKED_UP: u8 = 0x10;
const ATTESTED_CREDENTIAL: u8 = 0x40;
const EXTENSIONS: u8 = 0x80;

/// Authenticator data without anything optional: the RP id's hash, flags and a counter.
const AUTHENTICATOR_DATA_BYTES: usize = 37;

/// What `WebAuthn` lets a credential id be.
const CREDENTIAL_ID_BYTES: std::ops::RangeInclusive<usize> = 16..=1023;

/// The name by which the broker knows a passkey: as OpenSSH writes fingerprints, of the credential id.
fn fingerprint(credential_id: &[u8]) -> String {
    format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(credential_id)))
}

/// Bytes that travel as base64url without padding, in the one spelling that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base64Url(Vec<u8>);

impl<'de> Deserialize<'de> for Base64Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_URL_SAFE_NO_PAD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for Base64Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_URL_SAFE_NO_PAD.encode(&self.0))
    }
}

/// The two algorithms that we check. An RSA key or another curve does not become a [`Passkey`].
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Es256(p256::ecdsa::VerifyingKey),
    EdDsa(ed25519_dalek::VerifyingKey),
}

impl Key {
    fn from_spki(der: &[u8]) -> Option<Self> {
        let (key, document) = if let Ok(key) = p256::PublicKey::from_public_key_der(der) {
            (Self::Es256(key.into()), key.to_public_key_der())
        } else {
            let key = ed25519_dalek::VerifyingKey::from_public_key_der(der).ok()?;
            if key.is_weak() {
                return None;
            }
            (Self::EdDsa(key), key.to_public_key_der())
        };
        // One key has one spelling, or it could be enrolled twice.
        (document.ok()?.as_bytes() == der).then_some(key)
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            // DER and nothing after it. WebAuthn does not ask for the lower of the two possible `s`.
            Self::Es256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            Self::EdDsa(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
        }
    }
}

/// An enrolled passkey, as it is stored: canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredPasskey", into = "StoredPasskey")]
pub struct Passkey {
    credential_id: Vec<u8>,
    /// DER of an X.509 `SubjectPublicKeyInfo`, as the browser's `getPublicKey()` gives it.
    spki: Vec<u8>,
    key: Key,
    rp_id: String,
    backup_eligible: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPasskey {
    backup_eligible: bool,
    credential_id: Base64Url,
    public_key: Base64Url,
    rp_id: String,
}

/// Why something is not a passkey that could be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum PasskeyError {
    #[error("not a passkey's JSON: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("the passkey's JSON is not in canonical form")]
    NotCanonical,
    #[error("a credential id has 16 to 1023 bytes")]
    CredentialId,
    #[error("the public key is neither ES256 (P-256) nor EdDSA (Ed25519) in DER")]
    PublicKey,
    #[error("the RP id is not a lower-case host name")]
    RpId,
}

impl Passkey {
    /// `spki` is the public key in DER; `backup_eligible` the flag BE as it was at registration.
    pub fn new(
        credential_id: Vec<u8>,
        spki: Vec<u8>,
        rp_id: String,
        backup_eligible: bool,
    ) -> Result<Self, PasskeyError> {
        if !CREDENTIAL_ID_BYTES.contains(&credential_id.len()) {
            return Err(PasskeyError::CredentialId);
        }
        let key = Key::from_spki(&spki).ok_or(PasskeyError::PublicKey)?;
        if !is_host(&rp_id) {
            return Err(PasskeyError::RpId);
        }
        Ok(Self { credential_id, spki, key, rp_id, backup_eligible })
    }

    /// Reads what [`Passkey::to_text`] wrote; any other spelling is an error.
    pub fn parse(text: &str) -> Result<Self, PasskeyError> {
        let passkey: Self = serde_json::from_str(text)?;
        if passkey.to_text() != text {
            return Err(PasskeyError::NotCanonical);
        }
        Ok(passkey)
    }

    pub fn to_text(&self) -> String {
        let bytes = canonical(self).expect("strings and a flag are JSON");
        String::from_utf8(bytes).expect("canonical JSON is ASCII")
    }

    /// As [`Assertion::claimed_fingerprint`].
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.credential_id)
    }

    pub fn credential_id(&self) -> &[u8] {
        &self.credential_id
    }

    pub fn rp_id(&self) -> &str {
        &self.rp_id
    }

    /// Whether it may be copied to other devices.
    pub fn backup_eligible(&self) -> bool {
        self.backup_eligible
    }
}

impl TryFrom<StoredPasskey> for Passkey {
    type Error = PasskeyError;

    fn try_from(it: StoredPasskey) -> Result<Self, PasskeyError> {
        Self::new(it.credential_id.0, it.public_key.0, it.rp_id, it.backup_eligible)
    }
}

impl From<Passkey> for StoredPasskey {
    fn from(it: Passkey) -> Self {
        Self {
            backup_eligible: it.backup_eligible,
            credential_id: Base64Url(it.credential_id),
            public_key: Base64Url(it.spki),
            rp_id: it.rp_id,
        }
    }
}

fn is_host(text: &str) -> bool {
    let allowed =
        |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, b'.' | b'-');
    (1..=253).contains(&text.len()) && text.bytes().all(allowed)
}

/// The host of an origin such as `https://HOST` or `http://localhost:8750`.
fn host(origin: &str) -> Option<&str> {
    let (_, authority) = origin.split_once("://")?;
    let host = match authority.split_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some(_) => return None,
        None => authority,
    };
    is_host(host).then_some(host)
}

/// A parsed assertion, not yet believed: what `PublicKeyCredential.toJSON()` gives after `navigator.credentials.get()`.
#[derive(Clone, Debug)]
pub struct Assertion {
    credential_id: Vec<u8>,
    client_data: ClientData,
    authenticator_data: AuthenticatorData,
    /// Authenticator data and the client data's SHA-256, as they came: the bytes under the signature.
    signed: Vec<u8>,
    signature: Vec<u8>,
}

/// `WebAuthn` Level 3, `AuthenticationResponseJSON`. Members that nobody reads here may be there: nothing vouches for
/// them, and browsers add to them.
#[derive(Deserialize)]
struct ResponseJson {
    id: Base64Url,
    #[serde(rename = "rawId")]
    raw_id: Base64Url,
    #[serde(rename = "type")]
    kind: String,
    response: Members,
}

#[derive(Deserialize)]
struct AuthenticatorResponseJson {
    #[serde(rename = "clientDataJSON")]
    client_data_json: Base64Url,
    #[serde(rename = "authenticatorData")]
    authenticator_data: Base64Url,
    signature: Base64Url,
    // Says whose account it is, unsigned. We know that from the credential id.
    #[serde(rename = "userHandle")]
    _user_handle: Option<Base64Url>,
}

impl Assertion {
    pub fn parse(text: &str) -> Result<Self, Rejection> {
        // An object: serde would take a list of the same members, too.
        if MAX_SIGNATURE_BYTES < text.len() || !text.starts_with('{') {
            return Err(Rejection::Malformed);
        }
        let json: ResponseJson = serde_json::from_str(text).map_err(|_| Rejection::Malformed)?;
        let response = Value::Object(json.response.0);
        let AuthenticatorResponseJson { client_data_json, authenticator_data, signature, .. } =
            serde_json::from_value(response).map_err(|_| Rejection::Malformed)?;
        if json.kind != "public-key"
            || json.id != json.raw_id
            || !CREDENTIAL_ID_BYTES.contains(&json.id.0.len())
        {
            return Err(Rejection::Malformed);
        }
        let client_data = ClientData::parse(&client_data_json.0).ok_or(Rejection::Malformed)?;
        let mut signed = authenticator_data.0;
        let authenticator_data = AuthenticatorData::parse(&signed).ok_or(Rejection::Malformed)?;
        signed.extend_from_slice(&Sha256::digest(&client_data_json.0));
        Ok(Self {
            credential_id: json.id.0,
            client_data,
            authenticator_data,
            signed,
            signature: signature.0,
        })
    }

    /// The credential that claims to have signed: a hint for the look-up, proof of nothing.
    pub fn credential_id(&self) -> &[u8] {
        &self.credential_id
    }

    /// `SHA256:…` of the credential id: a hint for the look-up, proof of nothing.
    pub fn claimed_fingerprint(&self) -> String {
        fingerprint(&self.credential_id)
    }

    /// Whether it is `passkey`'s and over `message`, signed on the page of `origin`. What is rejected for another
    /// reason than [`Rejection::UnknownKey`] or [`Rejection::NotThisStatement`] was signed by that passkey.
    pub(super) fn check(
        &self,
        passkey: &Passkey,
        message: &[u8],
        origin: &str,
    ) -> Result<(), Rejection> {
        if self.credential_id != passkey.credential_id {
            return Err(Rejection::UnknownKey);
        }
        if !passkey.key.has_signed(&self.signed, &self.signature) {
            return Err(Rejection::NotThisStatement);
        }
        let client = &self.client_data;
        // The payload type is under the challenge, as part of the message: one meaning is never read as another.
        if client.challenge != BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(message)) {
            return Err(Rejection::NotThisStatement);
        }
        if client.kind != "webauthn.get" {
            return Err(Rejection::WrongNamespace);
        }
        if client.cross_origin {
            return Err(Rejection::CrossOrigin);
        }
        // Byte by byte: neither a subdomain nor another port is the broker's page.
        if client.origin != origin {
            return Err(Rejection::WrongOrigin);
        }
        let rp_id_sha256: [u8; 32] = Sha256::digest(&passkey.rp_id).into();
        if host(origin) != Some(&*passkey.rp_id)
            || self.authenticator_data.rp_id_sha256 != rp_id_sha256
        {
            return Err(Rejection::WrongRp);
        }
        Ok(())
    }

    /// What the authenticator says of the human, once what it says of itself is what was enrolled and is good enough.
    pub(super) fn touch(&self, passkey: &Passkey, demanded: Assurance) -> Result<Touch, Rejection> {
        let AuthenticatorData { flags, counter, .. } = self.authenticator_data;
        let is_set = |flag| flags & flag != 0;
        let eligible = is_set(BACKUP_ELIGIBLE);
        // BE never changes in a passkey's life (WebAuthn Level 3, section 6.1.3).
        if eligible != passkey.backup_eligible || (is_set(BACKED_UP) && !eligible) {
            return Err(Rejection::BackupState);
        }
        if demanded == Assurance::Verified && eligible {
            return Err(Rejection::Synced);
        }
        Ok(Touch { present: is_set(USER_PRESENT), verified: is_set(USER_VERIFIED), counter })
    }
}

/// What the browser says of where it signed (`CollectedClientData`). Further members may be there.
#[derive(Clone, Debug)]
struct ClientData {
    kind: String,
    challenge: String,
    origin: String,
    /// In a frame of another site, by either of the two members that say so.
    cross_origin: bool,
}

impl ClientData {
    fn parse(json: &[u8]) -> Option<Self> {
        let Members(mut members) = serde_json::from_slice(json).ok()?;
        let mut text = |name| match members.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let (kind, challenge, origin) = (text("type")?, text("challenge")?, text("origin")?);
        let cross_origin = match members.get("crossOrigin") {
            None => false,
            Some(Value::Bool(it)) => *it,
            Some(_) => return None,
        };
        let cross_origin = cross_origin || members.contains_key("topOrigin");
        Some(Self { kind, challenge, origin, cross_origin })
    }
}

/// A JSON object in which no name occurs twice, so that no two readers see two.
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Distinct;

        impl<'de> Visitor<'de> for Distinct {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose names differ")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = map.next_entry()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name occurs twice"));
                    }
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Distinct)
    }
}

/// `WebAuthn` Level 3, section 6.1.
#[derive(Clone, Copy, Debug)]
struct AuthenticatorData {
    rp_id_sha256: [u8; 32],
    flags: u8,
    counter: u32,
}

impl AuthenticatorData {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<AUTHENTICATOR_DATA_BYTES>()?;
        let (rp_id_sha256, fixed) = fixed.split_first_chunk::<32>()?;
        let (&flags, counter) = fixed.split_first()?;
        // A key belongs into a registration only. Extensions are announced by their flag, are one CBOR map (major
        // type 5), and are not looked into: we ask for none.
        let extended = flags & EXTENSIONS != 0;
        let good_rest = match rest.first() {
            None => !extended,
            Some(first) => extended && first >> 5 == 5,
        };
        if flags & ATTESTED_CREDENTIAL != 0 || !good_rest {
            return None;
        }
        let counter = u32::from_be_bytes(counter.try_into().ok()?);
        Some(Self { rp_id_sha256: *rp_id_sha256, flags, counter })
    }
}

#[cfg(test)]
mod tests;
