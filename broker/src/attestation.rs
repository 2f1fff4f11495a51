//! Judges OpenSSH's hardware-key attestation: did a device of a maker the operator trusts make this key? Pure.
//!
//! `ssh-keygen -O write-attestation=FILE -O challenge=FILE` keeps what the authenticator said when the key was made
//! (OpenSSH, PROTOCOL.u2f, "SSH U2F/FIDO attestation"). An `sk-` public key alone proves nothing: software makes the
//! same bytes. The maker's signature over the new key, our application and our challenge does.
//!
//! Everything is refused that is not positively right. Paths, time and signatures are `webpki`'s business, which the
//! TLS stack uses as well; `x509-parser` reads what `WebAuthn` asks of a certificate beyond that. CBOR is read here:
//! the credential's key is compared with the one encoding that CTAP2 allows, so that no key is ever parsed out of it.

use std::time::Duration;

use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use ssh_key::PublicKey;
use ssh_key::public::KeyData;
use time::OffsetDateTime;
use uuid::Uuid;
use webpki::aws_lc_rs as algorithm;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use crate::lease::Assurance;
use crate::render;
use crate::verify::SK_APPLICATION;

/// A certificate is about 1 KiB, the rest some hundred bytes; this bounds what we parse.
pub const MAX_ATTESTATION_BYTES: usize = 16 * 1024;

/// The challenge keeps an old attestation from being shown again, so it has to be beyond guessing.
pub const MIN_CHALLENGE_BYTES: usize = 16;

const FORMAT: &[u8] = b"ssh-sk-attest-v01";
const FORMAT_WITHOUT_DATA: &[u8] = b"ssh-sk-attest-v00";

/// The flags of authenticator data (`WebAuthn`, section 6.1). The two bits without a name are reserved.
const USER_PRESENT: u8 = 0x01;
const USER_VERIFIED: u8 = 0x04;
const BACKUP_ELIGIBLE: u8 = 0x08;
const BACKED_UP: u8 = 0x10;
const CREDENTIAL: u8 = 0x40;
const EXTENSIONS: u8 = 0x80;
const RESERVED: u8 = 0x22;

/// CTAP2's own limit on the length of a credential's name.
const MAX_CREDENTIAL_ID_BYTES: usize = 1023;

/// CTAP2 nests its messages no deeper.
const MAX_CBOR_DEPTH: u8 = 4;

/// id-fido-gen-ce-aaguid: the model that the certificate was made for (`WebAuthn`, section 8.2.1).
const AAGUID: Oid<'static> = oid!(1.3.6.1.4.1.45724.1.1.4);

/// What a packed attestation's certificate says of its purpose (`WebAuthn`, section 8.2.1).
const AUTHENTICATOR_ATTESTATION: &str = "Authenticator Attestation";

/// anyExtendedKeyUsage, 2.5.29.37.0. No usage is defined for attestation: a certificate that names others and not
/// this one is for something else.
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

/// What a root may have signed with. Makers use SHA-512 too (Yubico's root of 2024); SHA-1 is not here.
static ROOT_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithm::ECDSA_P256_SHA256,
    algorithm::ECDSA_P256_SHA384,
    algorithm::ECDSA_P384_SHA256,
    algorithm::ECDSA_P384_SHA384,
    algorithm::RSA_PKCS1_2048_8192_SHA256,
    algorithm::RSA_PKCS1_2048_8192_SHA384,
    algorithm::RSA_PKCS1_2048_8192_SHA512,
];

/// Why an attestation proves nothing. Each has a stable code, recorded with the refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AttestationError {
    #[error("only an ed25519-sk or ecdsa-sk key can be attested")]
    NotASecurityKey,
    #[error("the key was made for another application than {SK_APPLICATION}")]
    WrongApplication,
    #[error("a challenge has at least {MIN_CHALLENGE_BYTES} bytes")]
    ChallengeTooShort,
    #[error("an attestation has at most {MAX_ATTESTATION_BYTES} bytes")]
    TooLarge,
    #[error("this is not an attestation as ssh-keygen writes it")]
    Malformed,
    #[error("this attestation is of OpenSSH 8.3 or older, which left out what the device signed")]
    OldFormat,
    #[error("this attestation is of a format that is not known here")]
    UnknownFormat,
    #[error("fields that OpenSSH reserves are in use")]
    ReservedInUse,
    #[error("no certificate stands behind the attestation")]
    NoCertificate,
    #[error("the authenticator data cannot be read")]
    MalformedData,
    #[error("the device made the key for another application")]
    WrongRelyingParty,
    #[error("the device says nothing of a new key")]
    NoCredential,
    #[error("the device was not touched when it made the key")]
    NotTouched,
    #[error("the key can leave its device, to be synced or backed up")]
    Synced,
    #[error("the device set flags whose meaning is not known here")]
    UnknownFlags,
    #[error("the attestation is of another key")]
    OtherKey,
    #[error("the certificate cannot be read")]
    MalformedCertificate,
    #[error("the certificate is not of version 3")]
    CertificateVersion,
    #[error("the certificate is an authority's, not a device's")]
    CertificateOfAuthority,
    #[error("the certificate is not for the attestation of authenticators")]
    CertificatePurpose,
    #[error("the certificate's key is not on P-256")]
    CertificateKey,
    #[error("the certificate is not valid yet")]
    CertificateNotYetValid,
    #[error("the certificate has expired")]
    CertificateExpired,
    #[error("no trusted root has signed the certificate")]
    UntrustedCertificate,
    #[error("the root that signed the certificate is not valid now")]
    RootNotValid,
    #[error("the certificate names its model in a form that is not allowed")]
    MalformedModel,
    #[error("the certificate is for another model than the device says it is")]
    OtherModel,
    #[error("the device's signature is not over this key and challenge")]
    BadSignature,
}

impl AttestationError {
    /// The stable code: `reason` in problem documents and events.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotASecurityKey => "not-a-security-key",
            Self::WrongApplication => "wrong-application",
            Self::ChallengeTooShort => "challenge-too-short",
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
            Self::OldFormat => "old-format",
            Self::UnknownFormat => "unknown-format",
            Self::ReservedInUse => "reserved-in-use",
            Self::NoCertificate => "no-certificate",
            Self::MalformedData => "malformed-data",
            Self::WrongRelyingParty => "wrong-relying-party",
            Self::NoCredential => "no-credential",
            Self::NotTouched => "not-touched",
            Self::Synced => "synced",
            Self::UnknownFlags => "unknown-flags",
            Self::OtherKey => "other-key",
            Self::MalformedCertificate => "malformed-certificate",
            Self::CertificateVersion => "certificate-version",
            Self::CertificateOfAuthority => "certificate-of-authority",
            Self::CertificatePurpose => "certificate-purpose",
            Self::CertificateKey => "certificate-key",
            Self::CertificateNotYetValid => "certificate-not-yet-valid",
            Self::CertificateExpired => "certificate-expired",
            Self::UntrustedCertificate => "untrusted-certificate",
            Self::RootNotValid => "root-not-valid",
            Self::MalformedModel => "malformed-model",
            Self::OtherModel => "other-model",
            Self::BadSignature => "bad-signature",
        }
    }
}

/// Which of the two statements of `WebAuthn` the device signed. OpenSSH does not write down which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// FIDO2, "packed": over the authenticator data as it is.
    Packed,
    /// U2F, "fido-u2f": over the application, the challenge and the key. Such a device knows neither PIN nor model.
    U2f,
}

/// What a good attestation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    pub flavour: Flavour,
    /// The model; U2F devices have none.
    pub aaguid: Option<Uuid>,
    /// Whether PIN or biometric was given when the key was made. Each later signature says so for itself.
    pub user_verified: bool,
    /// `credProtect`: 3 is a key that the device uses only with PIN or biometric (`-O verify-required`).
    pub cred_protect: Option<u8>,
    /// SHA-256 of the device's certificate and of the root that signed it, in hex.
    pub certificate_sha256: String,
    pub root_sha256: String,
    /// The device certificate's subject, in printable ASCII.
    pub subject: String,
}

/// The makers' certificates that the operator trusts: each by itself, for what it signed directly.
///
/// OpenSSH keeps the device's own certificate only, never one between it and a root. A maker's intermediate authority
/// is therefore listed here like a root.
#[derive(Debug)]
pub struct Roots(Vec<Root>);

#[derive(Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    sha256: String,
    /// In Unix seconds, both included.
    valid: (i64, i64),
}

impl Roots {
    /// Reads one or more certificates of authorities, in PEM. Text between them is skipped.
    ///
    /// # Errors
    ///
    /// In words, with the certificate's place in the file.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let mut roots = Vec::new();
        for (at, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()).enumerate() {
            let at = at + 1;
            let (kind, der) = section.map_err(|error| format!("block {at}: {error}"))?;
            if kind != SectionKind::Certificate {
                return Err(format!("block {at} is not a certificate"));
            }
            roots.push(Root::new(&der).map_err(|error| format!("certificate {at} {error}"))?);
        }
        if roots.is_empty() {
            return Err("there is no certificate".into());
        }
        Ok(Self(roots))
    }
}

impl Root {
    fn new(der: &[u8]) -> Result<Self, String> {
        let certificate = read(der).ok_or("cannot be read")?;
        let subject = render::name(&certificate.subject().to_string());
        let refuse = |why: &str| Err(format!("({subject}) {why}"));
        match certificate.basic_constraints() {
            Ok(Some(it)) if it.value.ca => {}
            _ => return refuse("is not an authority's"),
        }
        match certificate.key_usage() {
            Ok(Some(it)) if !it.value.key_cert_sign() => {
                return refuse("may not sign certificates");
            }
            Ok(_) => {}
            Err(_) => return refuse("has a key usage that cannot be read"),
        }
        let owned = CertificateDer::from(der);
        let Ok(anchor) = webpki::anchor_from_trusted_cert(&owned) else {
            return refuse("cannot be used as a root");
        };
        let validity = certificate.validity();
        Ok(Self {
            anchor: anchor.to_owned(),
            sha256: hex::encode(Sha256::digest(der)),
            valid: (validity.not_before.timestamp(), validity.not_after.timestamp()),
        })
    }

    fn is_valid_at(&self, at: OffsetDateTime) -> bool {
        (self.valid.0..=self.valid.1).contains(&at.unix_timestamp())
    }
}

/// Checks that a device under one of `roots` made `key`, for us, in answer to `challenge`.
///
/// `challenge` is the content of the file that `ssh-keygen` was given, byte for byte. That it is fresh, and not used
/// twice, is the caller's to know: nothing in the attestation says when it was made.
///
/// Device certificate and root have to be valid at `now`. To judge again what was enrolled long ago, give the time of
/// enrolment.
pub fn check(
    attestation: &[u8],
    challenge: &[u8],
    key: &PublicKey,
    roots: &Roots,
    now: OffsetDateTime,
) -> Result<Attested, AttestationError> {
    let key = Enrolled::new(key)?;
    if challenge.len() < MIN_CHALLENGE_BYTES {
        return Err(AttestationError::ChallengeTooShort);
    }
    let blob = Blob::parse(attestation)?;
    let data = Data::parse(blob.data, &key)?;
    let leaf = Leaf::new(blob.certificate)?;
    let der = CertificateDer::from(blob.certificate);
    let device = EndEntityCert::try_from(&der).map_err(|error| match error {
        webpki::Error::UnsupportedCriticalExtension => AttestationError::CertificatePurpose,
        _ => AttestationError::MalformedCertificate,
    })?;
    let root = root_of(&device, roots, now)?;
    if leaf.model.is_some_and(|it| it != data.model) {
        return Err(AttestationError::OtherModel);
    }
    let client_data_hash = Sha256::digest(challenge);
    let signed = |message: &[u8]| signed(&device, message, blob.signature);
    let packed = [blob.data, client_data_hash.as_slice()].concat();
    let flavour = match (signed(&packed), data.u2f_message(&key, &client_data_hash)) {
        (Ok(()), _) if leaf.says_authenticator => Flavour::Packed,
        (Ok(()), _) => return Err(AttestationError::CertificatePurpose),
        // The two messages cannot be mistaken: this one starts with a zero, and our application's hash does not.
        (Err(AttestationError::BadSignature), Some(message)) => {
            signed(&message).map(|()| Flavour::U2f)?
        }
        (Err(error), _) => return Err(error),
    };
    Ok(Attested {
        flavour,
        aaguid: (data.model != [0; 16]).then(|| Uuid::from_bytes(data.model)),
        user_verified: data.flags & USER_VERIFIED != 0,
        cred_protect: data.cred_protect,
        certificate_sha256: hex::encode(Sha256::digest(blob.certificate)),
        root_sha256: root.sha256.clone(),
        subject: leaf.subject,
    })
}

/// What an enrolled key may count for: an `sk-` key is hardware only if somebody knows so, by a good attestation or
/// by having seen it. Whether PIN or biometric was given, each signature says for itself.
pub fn assurance(key: &str, hardware_known: bool) -> Assurance {
    match PublicKey::from_openssh(key) {
        Ok(key) if hardware_known && Enrolled::new(&key).is_ok() => Assurance::Verified,
        _ => Assurance::Software,
    }
}

/// The key to be enrolled, as the authenticator writes it.
struct Enrolled {
    /// The one CTAP2 encoding of its COSE key (RFC 9053, sections 7.1 and 7.2).
    cose: Vec<u8>,
    /// The uncompressed point, for keys on P-256.
    point: Option<[u8; 65]>,
}

impl Enrolled {
    fn new(key: &PublicKey) -> Result<Self, AttestationError> {
        let (application, enrolled) = match key.key_data() {
            KeyData::SkEd25519(key) => {
                // {1: 1 (OKP), 3: -8 (EdDSA), -1: 6 (Ed25519), -2: x}
                let head = [0xa4, 0x01, 0x01, 0x03, 0x27, 0x20, 0x06, 0x21, 0x58, 0x20];
                let cose = [&head, key.public_key().as_ref().as_slice()].concat();
                (key.application(), Self { cose, point: None })
            }
            KeyData::SkEcdsaSha2NistP256(key) => {
                let point = <[u8; 65]>::try_from(key.ec_point().as_bytes())
                    .ok()
                    .filter(|it| it[0] == 0x04)
                    .ok_or(AttestationError::NotASecurityKey)?;
                // {1: 2 (EC2), 3: -7 (ES256), -1: 1 (P-256), -2: x, -3: y}
                let head = [0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20];
                let cose = [&head, &point[1..33], &[0x22, 0x58, 0x20], &point[33..]].concat();
                (key.application(), Self { cose, point: Some(point) })
            }
            _ => return Err(AttestationError::NotASecurityKey),
        };
        if application == SK_APPLICATION {
            Ok(enrolled)
        } else {
            Err(AttestationError::WrongApplication)
        }
    }
}

/// The file's fields, each with what it may hold, none believed.
#[derive(Debug)]
struct Blob<'a> {
    certificate: &'a [u8],
    signature: &'a [u8],
    /// Authenticator data, out of its CBOR byte string.
    data: &'a [u8],
}

impl<'a> Blob<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, AttestationError> {
        if MAX_ATTESTATION_BYTES < bytes.len() {
            return Err(AttestationError::TooLarge);
        }
        let mut rest = bytes;
        let mut field = || string(&mut rest).ok_or(AttestationError::Malformed);
        match field()? {
            FORMAT => {}
            FORMAT_WITHOUT_DATA => return Err(AttestationError::OldFormat),
            _ => return Err(AttestationError::UnknownFormat),
        }
        let (certificate, signature, data) = (field()?, field()?, field()?);
        let (flags, mut rest) = rest.split_first_chunk::<4>().ok_or(AttestationError::Malformed)?;
        let reserved = string(&mut rest).ok_or(AttestationError::Malformed)?;
        if !rest.is_empty() {
            return Err(AttestationError::Malformed);
        }
        if *flags != [0; 4] || !reserved.is_empty() {
            return Err(AttestationError::ReservedInUse);
        }
        // Self-attestation: the key vouches for itself, as any software can.
        if certificate.is_empty() {
            return Err(AttestationError::NoCertificate);
        }
        let data = byte_string(data).ok_or(AttestationError::MalformedData)?;
        Ok(Self { certificate, signature, data })
    }
}

/// Authenticator data (`WebAuthn`, section 6.1), which says that the key is ours.
struct Data<'a> {
    relying_party: [u8; 32],
    flags: u8,
    counter: u32,
    model: [u8; 16],
    credential_id: &'a [u8],
    cred_protect: Option<u8>,
}

impl<'a> Data<'a> {
    fn parse(bytes: &'a [u8], key: &Enrolled) -> Result<Self, AttestationError> {
        let malformed = AttestationError::MalformedData;
        let (relying_party, rest) = bytes.split_first_chunk::<32>().ok_or(malformed)?;
        if *relying_party != *Sha256::digest(SK_APPLICATION) {
            return Err(AttestationError::WrongRelyingParty);
        }
        let (&flags, rest) = rest.split_first().ok_or(malformed)?;
        check_flags(flags)?;
        let (counter, rest) = rest.split_first_chunk::<4>().ok_or(malformed)?;
        let (model, rest) = rest.split_first_chunk::<16>().ok_or(malformed)?;
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(malformed)?;
        let length = usize::from(u16::from_be_bytes(*length));
        if !(1..=MAX_CREDENTIAL_ID_BYTES).contains(&length) {
            return Err(malformed);
        }
        let (credential_id, rest) = rest.split_at_checked(length).ok_or(malformed)?;
        let rest = rest.strip_prefix(&key.cose[..]).ok_or(AttestationError::OtherKey)?;
        let cred_protect = match (flags & EXTENSIONS != 0, rest) {
            (false, []) => None,
            (false, _) => return Err(malformed),
            (true, rest) => cred_protect(rest)?,
        };
        let counter = u32::from_be_bytes(*counter);
        Ok(Self {
            relying_party: *relying_party,
            flags,
            counter,
            model: *model,
            credential_id,
            cred_protect,
        })
    }

    /// What a U2F device would have signed (FIDO U2F Raw Message Formats, section 4.3), if this can be of one: the
    /// client then has made up the authenticator data, with zeros for all that U2F does not know.
    fn u2f_message(&self, key: &Enrolled, client_data_hash: &[u8]) -> Option<Vec<u8>> {
        let made_up =
            self.flags == USER_PRESENT | CREDENTIAL && self.counter == 0 && self.model == [0; 16];
        let point = key.point.filter(|_| made_up)?;
        Some([&[0], &self.relying_party[..], client_data_hash, self.credential_id, &point].concat())
    }
}

const fn check_flags(flags: u8) -> Result<(), AttestationError> {
    if flags & CREDENTIAL == 0 {
        Err(AttestationError::NoCredential)
    } else if flags & USER_PRESENT == 0 {
        Err(AttestationError::NotTouched)
    } else if flags & (BACKUP_ELIGIBLE | BACKED_UP) != 0 {
        Err(AttestationError::Synced)
    } else if flags & RESERVED != 0 {
        Err(AttestationError::UnknownFlags)
    } else {
        Ok(())
    }
}

/// What the device's certificate says of itself, before anybody has vouched for it.
struct Leaf {
    subject: String,
    model: Option<[u8; 16]>,
    /// Says that it is an authenticator's, and that it is no authority's: what "packed" demands. Certificates of U2F
    /// devices are older than these rules.
    says_authenticator: bool,
}

impl Leaf {
    fn new(der: &[u8]) -> Result<Self, AttestationError> {
        let malformed = AttestationError::MalformedCertificate;
        let certificate = read(der).ok_or(malformed)?;
        if certificate.version() != X509Version::V3 {
            return Err(AttestationError::CertificateVersion);
        }
        let constraints = certificate.basic_constraints().map_err(|_| malformed)?;
        if constraints.as_ref().is_some_and(|it| it.value.ca) {
            return Err(AttestationError::CertificateOfAuthority);
        }
        let usage = certificate.key_usage().map_err(|_| malformed)?;
        if usage.is_some_and(|it| !it.value.digital_signature()) {
            return Err(AttestationError::CertificatePurpose);
        }
        let model = match certificate.get_extension_unique(&AAGUID).map_err(|_| malformed)? {
            None => None,
            // An OCTET STRING of 16 bytes, and never critical.
            Some(it) => match it.value {
                [0x04, 0x10, model @ ..] if !it.critical => {
                    Some(model.try_into().map_err(|_| AttestationError::MalformedModel)?)
                }
                _ => return Err(AttestationError::MalformedModel),
            },
        };
        let mut units = certificate.subject().iter_organizational_unit();
        let unit = units.next().and_then(|it| it.as_str().ok());
        Ok(Self {
            subject: render::name(&certificate.subject().to_string()),
            model,
            says_authenticator: constraints.is_some()
                && unit == Some(AUTHENTICATOR_ATTESTATION)
                && units.next().is_none(),
        })
    }
}

/// The root that has signed the device's certificate, which is valid now, as is the certificate.
fn root_of<'a>(
    device: &EndEntityCert<'_>,
    roots: &'a Roots,
    now: OffsetDateTime,
) -> Result<&'a Root, AttestationError> {
    let seconds = u64::try_from(now.unix_timestamp())
        .map_err(|_| AttestationError::CertificateNotYetValid)?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let usage = KeyUsage::required_if_present(ANY_USAGE);
    // Several roots can have one name. The best answer counts, and otherwise the last one's reason.
    let mut refused = AttestationError::UntrustedCertificate;
    for root in roots.0.iter().filter(|it| it.anchor.subject.as_ref() == device.issuer()) {
        let anchor = std::slice::from_ref(&root.anchor);
        match device.verify_for_usage(ROOT_ALGORITHMS, anchor, &[], time, usage, None, None) {
            Ok(_) if root.is_valid_at(now) => return Ok(root),
            Ok(_) => refused = AttestationError::RootNotValid,
            Err(error) => refused = path_error(&error),
        }
    }
    Err(refused)
}

const fn path_error(error: &webpki::Error) -> AttestationError {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => AttestationError::CertificateExpired,
        Error::CertNotValidYet { .. } => AttestationError::CertificateNotYetValid,
        Error::CaUsedAsEndEntity => AttestationError::CertificateOfAuthority,
        Error::RequiredEkuNotFoundContext(_) => AttestationError::CertificatePurpose,
        Error::BadDer
        | Error::BadDerTime
        | Error::InvalidCertValidity
        | Error::EmptyEkuExtension
        | Error::ExtensionValueInvalid
        | Error::TrailingData(_) => AttestationError::MalformedCertificate,
        // The signature, its algorithm, or a limit that the root sets.
        _ => AttestationError::UntrustedCertificate,
    }
}

fn signed(
    device: &EndEntityCert<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), AttestationError> {
    use webpki::Error;
    device.verify_signature(algorithm::ECDSA_P256_SHA256, message, signature).map_err(|error| {
        match error {
            Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                AttestationError::CertificateKey
            }
            _ => AttestationError::BadSignature,
        }
    })
}

/// One certificate, and nothing after it.
fn read(der: &[u8]) -> Option<X509Certificate<'_>> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    rest.is_empty().then_some(certificate)
}

/// SSH's `string` (RFC 4251, section 5).
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let (string, tail) = tail.split_at_checked(u32::from_be_bytes(*length).try_into().ok()?)?;
    *rest = tail;
    Some(string)
}

/// One CBOR byte string (RFC 8949), and nothing after it.
fn byte_string(mut rest: &[u8]) -> Option<&[u8]> {
    let (major, length) = cbor_head(&mut rest)?;
    (major == 2 && usize::try_from(length).ok()? == rest.len()).then_some(rest)
}

/// `credProtect` from a map of extensions with text for keys, and nothing after it.
fn cred_protect(mut rest: &[u8]) -> Result<Option<u8>, AttestationError> {
    let malformed = AttestationError::MalformedData;
    let Some((5, pairs)) = cbor_head(&mut rest) else { return Err(malformed) };
    let mut found = None;
    for _ in 0..pairs {
        let Some((3, length)) = cbor_head(&mut rest) else { return Err(malformed) };
        let length = usize::try_from(length).map_err(|_| malformed)?;
        let (name, tail) = rest.split_at_checked(length).ok_or(malformed)?;
        rest = tail;
        if name == b"credProtect" {
            let Some((0, level @ 1..=3)) = cbor_head(&mut rest) else { return Err(malformed) };
            let level = u8::try_from(level).map_err(|_| malformed)?;
            if found.replace(level).is_some() {
                return Err(malformed);
            }
        } else {
            skip_cbor(&mut rest, MAX_CBOR_DEPTH).ok_or(malformed)?;
        }
    }
    if rest.is_empty() { Ok(found) } else { Err(malformed) }
}

/// Passes over one item of CTAP2's CBOR: nothing indefinite, no tags, no floats.
fn skip_cbor(rest: &mut &[u8], depth: u8) -> Option<()> {
    let (major, argument) = cbor_head(rest)?;
    let items = match major {
        0 | 1 => 0,
        2 | 3 => {
            *rest = rest.split_at_checked(argument.try_into().ok()?)?.1;
            0
        }
        4 => argument,
        5 => argument.checked_mul(2)?,
        // false, true and null.
        7 if (20..=22).contains(&argument) => 0,
        _ => return None,
    };
    for _ in 0..items {
        skip_cbor(rest, depth.checked_sub(1)?)?;
    }
    Some(())
}

/// The major type and argument of one item, in the shortest form, which is the only one that CTAP2 allows.
fn cbor_head(rest: &mut &[u8]) -> Option<(u8, u32)> {
    let (&first, tail) = rest.split_first()?;
    let (argument, tail) = match first & 0x1f {
        short @ 0..24 => (u32::from(short), tail),
        width @ 24..=26 => {
            let (bytes, tail) = tail.split_at_checked(1 << (width - 24))?;
            let argument = bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            let least = [24, 0x100, 0x1_0000][usize::from(width - 24)];
            if argument < least {
                return None;
            }
            (argument, tail)
        }
        _ => return None,
    };
    *rest = tail;
    Some((first >> 5, argument))
}

#[cfg(test)]
mod tests;
