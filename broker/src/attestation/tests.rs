//! A maker and its devices, made here, and every way in which what they say must not be believed.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_RSA_SHA256, PKCS_RSA_SHA512, RsaKeySize, SignatureAlgorithm, SigningKey,
};
use ssh_key::public::{Ed25519PublicKey, SkEcdsaSha2NistP256, SkEd25519};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, PrivateKey};
use time::macros::datetime;

use super::AttestationError as Refused;
use super::*;
use crate::people;
use crate::statement::act::Evidence;

const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);
const CHALLENGE: &[u8] = b"sixteen bytes or more, from the broker";
const MODEL: [u8; 16] = *b"a model's AAGUID";
const PLAIN: u8 = CREDENTIAL | USER_PRESENT | USER_VERIFIED;

/// The authority of somebody who makes devices.
struct Maker {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Maker {
    fn new() -> Self {
        Self::with(KeyPair::generate().unwrap(), |_| {})
    }

    fn with(key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Maker's Root");
        params.not_before = datetime!(2020-01-01 0:00 UTC);
        params.not_after = datetime!(2030-01-01 0:00 UTC);
        change(&mut params);
        let pem = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn roots(&self) -> Roots {
        Roots::from_pem(&self.pem).unwrap()
    }
}

/// One device about to make a key. The fields are what a test changes.
struct Device {
    flavour: Flavour,
    certificate: CertificateParams,
    application: &'static str,
    flags: u8,
    counter: u32,
    model: [u8; 16],
    credential_id: Vec<u8>,
    extensions: &'static [u8],
    algorithm: &'static SignatureAlgorithm,
}

impl Device {
    fn new() -> Self {
        let mut certificate = CertificateParams::default();
        certificate.is_ca = IsCa::ExplicitNoCa;
        certificate.not_before = datetime!(2025-01-01 0:00 UTC);
        certificate.not_after = datetime!(2027-01-01 0:00 UTC);
        let name = &mut certificate.distinguished_name;
        name.push(DnType::OrganizationName, "Maker");
        name.push(DnType::OrganizationalUnitName, AUTHENTICATOR_ATTESTATION);
        name.push(DnType::CommonName, "Device 1");
        certificate.custom_extensions = vec![aaguid(&[&[0x04, 0x10], &MODEL[..]].concat())];
        Self {
            flavour: Flavour::Packed,
            certificate,
            application: SK_APPLICATION,
            flags: PLAIN,
            counter: 7,
            model: MODEL,
            credential_id: vec![0x2a; 64],
            extensions: &[],
            algorithm: &PKCS_ECDSA_P256_SHA256,
        }
    }

    /// A device of the older kind, as the client shows it, and with the bare certificate of such devices.
    fn u2f() -> Self {
        let mut device = Self::new();
        device.flavour = Flavour::U2f;
        device.flags = CREDENTIAL | USER_PRESENT;
        device.counter = 0;
        device.model = [0; 16];
        device.certificate.custom_extensions.clear();
        device.certificate.is_ca = IsCa::NoCa;
        device.certificate.distinguished_name.remove(DnType::OrganizationalUnitName);
        device
    }

    fn data(&self, key: &PublicKey) -> Vec<u8> {
        let length = u16::try_from(self.credential_id.len()).unwrap().to_be_bytes();
        [
            Sha256::digest(self.application).as_slice(),
            &[self.flags],
            &self.counter.to_be_bytes(),
            &self.model,
            &length,
            &self.credential_id,
            &cose(key),
            self.extensions,
        ]
        .concat()
    }

    fn attest(&self, maker: &Maker, key: &PublicKey) -> Vec<u8> {
        self.attest_data(maker, key, &self.data(key))
    }

    fn attest_data(&self, maker: &Maker, key: &PublicKey, data: &[u8]) -> Vec<u8> {
        let device = KeyPair::generate_for(self.algorithm).unwrap();
        let certificate = self.certificate.signed_by(&device, &maker.issuer).unwrap();
        let hash = Sha256::digest(CHALLENGE);
        let message = match self.flavour {
            Flavour::Packed => [data, &hash].concat(),
            Flavour::U2f => {
                let application = Sha256::digest(self.application);
                [&[0], &application[..], &hash, &self.credential_id, &point(key)].concat()
            }
        };
        blob(&[FORMAT, certificate.der(), &device.sign(&message).unwrap(), &bytes(data)])
    }

    fn check(&self) -> Result<Attested, Refused> {
        let maker = Maker::new();
        let key = ecdsa();
        check(&self.attest(&maker, &key), CHALLENGE, &key, &maker.roots(), NOW)
    }
}

fn aaguid(value: &[u8]) -> CustomExtension {
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 45724, 1, 1, 4], value.to_vec())
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}

fn ssh_string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn blob(fields: &[&[u8]]) -> Vec<u8> {
    let fields: Vec<_> = fields.iter().flat_map(|it| ssh_string(it)).collect();
    [&fields[..], &[0; 8]].concat()
}

/// A CBOR byte string. Written apart from the reader, for lengths as they occur.
fn bytes(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    match u8::try_from(length) {
        Ok(length) => [&[0x58, length], data].concat(),
        Err(_) => [&[0x59], &length.to_be_bytes()[..], data].concat(),
    }
}

/// The COSE key, written apart from the code under test.
fn cose(key: &PublicKey) -> Vec<u8> {
    if let KeyData::SkEd25519(key) = key.key_data() {
        return [&hex::decode("a4010103272006215820").unwrap(), &key.public_key().0[..]].concat();
    }
    let point = point(key);
    let mut out = hex::decode("a5010203262001215820").unwrap();
    out.extend(&point[1..33]);
    out.extend([0x22, 0x58, 0x20]);
    out.extend(&point[33..65]);
    out
}

fn point(key: &PublicKey) -> Vec<u8> {
    let KeyData::SkEcdsaSha2NistP256(key) = key.key_data() else { panic!("not on P-256") };
    key.ec_point().as_bytes().to_vec()
}

fn ecdsa_for(application: &str) -> PublicKey {
    let curve = EcdsaCurve::NistP256;
    let private = PrivateKey::random(&mut OsRng, Algorithm::Ecdsa { curve }).unwrap();
    let KeyData::Ecdsa(ssh_key::public::EcdsaPublicKey::NistP256(point)) =
        private.public_key().key_data()
    else {
        panic!("not on P-256")
    };
    KeyData::from(SkEcdsaSha2NistP256::new(*point, application)).into()
}

fn ecdsa() -> PublicKey {
    ecdsa_for(SK_APPLICATION)
}

fn ed25519() -> PublicKey {
    let private = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
    let KeyData::Ed25519(Ed25519PublicKey(key)) = private.public_key().key_data() else {
        panic!("not on Ed25519")
    };
    KeyData::from(SkEd25519::new(Ed25519PublicKey(*key), SK_APPLICATION)).into()
}

#[test]
fn a_device_of_a_trusted_maker_attests_a_key_of_either_kind() {
    let maker = Maker::new();
    for key in [ed25519(), ecdsa()] {
        let attestation = Device::new().attest(&maker, &key);
        let attested = check(&attestation, CHALLENGE, &key, &maker.roots(), NOW).unwrap();
        assert_eq!(attested.flavour, Flavour::Packed);
        assert_eq!(attested.aaguid, Some(Uuid::from_bytes(MODEL)));
        assert!(attested.user_verified);
        assert_eq!(attested.cred_protect, None);
        assert_eq!(attested.subject, "CN=Device 1, O=Maker, OU=Authenticator Attestation");
        assert_eq!(attested.root_sha256, maker.roots().0[0].sha256);
        let certificate = Blob::parse(&attestation).unwrap().certificate;
        assert_eq!(attested.certificate_sha256, hex::encode(Sha256::digest(certificate)));
    }
}

#[test]
fn what_the_device_says_of_pin_and_protection_is_passed_on() {
    let mut device = Device::new();
    device.flags = CREDENTIAL | USER_PRESENT | EXTENSIONS;
    // {"credProtect": 3, "hmac-secret": true}
    device.extensions = b"\xa2\x6bcredProtect\x03\x6bhmac-secret\xf5";
    let attested = device.check().unwrap();
    assert!(!attested.user_verified);
    assert_eq!(attested.cred_protect, Some(3));
}

#[test]
fn a_u2f_device_attests_keys_on_p256_and_never_a_pin() {
    let attested = Device::u2f().check().unwrap();
    assert_eq!(attested.flavour, Flavour::U2f);
    assert_eq!(attested.aaguid, None);
    assert!(!attested.user_verified);
}

#[test]
fn what_u2f_does_not_sign_is_what_the_client_makes_up() {
    for change in [
        (|device| device.flags = PLAIN) as fn(&mut Device),
        |device| device.counter = 1,
        |device| device.model = MODEL,
        |device| {
            device.flags |= EXTENSIONS;
            device.extensions = b"\xa1\x6bcredProtect\x03";
        },
    ] {
        let mut device = Device::u2f();
        change(&mut device);
        assert_eq!(device.check(), Err(Refused::BadSignature));
    }
    // The two messages start with different bytes, so that no signature is good for both.
    assert_ne!(Sha256::digest(SK_APPLICATION)[0], 0);
}

#[test]
fn the_bare_certificate_of_a_u2f_device_is_not_enough_for_packed() {
    for change in [
        (|it| it.is_ca = IsCa::NoCa) as fn(&mut CertificateParams),
        |it| assert!(it.distinguished_name.remove(DnType::OrganizationalUnitName)),
        |it| it.distinguished_name.push(DnType::OrganizationalUnitName, "Web Server"),
    ] {
        let mut device = Device::new();
        change(&mut device.certificate);
        assert_eq!(device.check(), Err(Refused::CertificatePurpose));
    }
}

#[test]
fn a_key_in_software_or_for_another_application_is_not_attested() {
    let maker = Maker::new();
    let key = ecdsa();
    let attestation = Device::new().attest(&maker, &key);
    let refused = |key: &PublicKey| check(&attestation, CHALLENGE, key, &maker.roots(), NOW);
    let software = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
    assert_eq!(refused(software.public_key()), Err(Refused::NotASecurityKey));
    assert_eq!(refused(&ecdsa_for("ssh:")), Err(Refused::WrongApplication));
    // The label says ours, the device says theirs.
    let mut device = Device::new();
    device.application = "ssh:";
    assert_eq!(device.check(), Err(Refused::WrongRelyingParty));
}

#[test]
fn an_attestation_of_another_key_is_not_this_keys() {
    let maker = Maker::new();
    let (key, other) = (ecdsa(), ecdsa());
    let attestation = Device::new().attest(&maker, &other);
    for key in [key, ed25519()] {
        let refused = check(&attestation, CHALLENGE, &key, &maker.roots(), NOW);
        assert_eq!(refused, Err(Refused::OtherKey));
    }
    // Nor can the key be put into what another device signed.
    let key = ecdsa();
    let mut theirs = attestation.clone();
    let at = theirs.windows(77).position(|it| it == cose(&other)).unwrap();
    theirs[at..at + 77].copy_from_slice(&cose(&key));
    let refused = check(&theirs, CHALLENGE, &key, &maker.roots(), NOW);
    assert_eq!(refused, Err(Refused::BadSignature));
}

#[test]
fn another_challenge_or_a_short_one_is_refused() {
    let maker = Maker::new();
    let key = ed25519();
    let attestation = Device::new().attest(&maker, &key);
    let answer = |challenge: &[u8]| check(&attestation, challenge, &key, &maker.roots(), NOW);
    assert!(answer(CHALLENGE).is_ok());
    for challenge in [&CHALLENGE[1..], &[CHALLENGE, b"\n"].concat(), &Sha256::digest(CHALLENGE)] {
        assert_eq!(answer(challenge), Err(Refused::BadSignature));
    }
    for short in [&b""[..], &CHALLENGE[..15]] {
        assert_eq!(answer(short), Err(Refused::ChallengeTooShort));
    }
}

#[test]
fn every_flag_that_matters_is_looked_at() {
    for (flags, expected) in [
        (PLAIN & !CREDENTIAL, Refused::NoCredential),
        (PLAIN & !USER_PRESENT, Refused::NotTouched),
        (PLAIN | BACKUP_ELIGIBLE, Refused::Synced),
        (PLAIN | BACKED_UP, Refused::Synced),
        (PLAIN | 0x02, Refused::UnknownFlags),
        (PLAIN | 0x20, Refused::UnknownFlags),
        (PLAIN | EXTENSIONS, Refused::MalformedData),
    ] {
        let mut device = Device::new();
        device.flags = flags;
        assert_eq!(device.check(), Err(expected), "{flags:#x}");
    }
}

#[test]
fn authenticator_data_is_read_to_its_last_byte() {
    for extensions in [
        &b""[..],
        b"\xa0\x00",
        b"\xa1\x6bcredProtect",
        b"\xa1\x6bcredProtect\x00",
        b"\xa1\x6bcredProtect\x04",
        b"\xa1\x6bcredProtect\x18\x03",
        b"\xa2\x6bcredProtect\x01\x6bcredProtect\x03",
        b"\xa1\x01\x03",
        b"\x81\x01",
        b"\xbf\xff",
        b"\xa1\x61a\xf9\x3c\x00",
        b"\xa1\x61a\x81\x81\x81\x81\x81\x01",
        b"\xa1\x61a\x9a\xff\xff\xff\xff",
        b"\xa1\x61a\xba\xff\xff\xff\xff",
    ] {
        let mut device = Device::new();
        device.flags |= EXTENSIONS;
        device.extensions = extensions;
        assert_eq!(device.check(), Err(Refused::MalformedData), "{extensions:x?}");
    }
    let mut device = Device::new();
    device.extensions = b"\xa0";
    assert_eq!(device.check(), Err(Refused::MalformedData));

    let mut device = Device::new();
    device.flags |= EXTENSIONS;
    device.extensions = b"\xa1\x61a\x83\x20\xa1\x61b\x42xy\xf6";
    assert_eq!(device.check().unwrap().cred_protect, None);

    for (length, good) in [(0, false), (1, true), (1023, true), (1024, false)] {
        let mut device = Device::new();
        device.credential_id = vec![1; length];
        assert_eq!(device.check().is_ok(), good, "{length}");
    }
    let (maker, key) = (Maker::new(), ecdsa());
    let data = Device::new().data(&key);
    for length in 0..data.len() {
        let attestation = Device::new().attest_data(&maker, &key, &data[..length]);
        let refused = check(&attestation, CHALLENGE, &key, &maker.roots(), NOW).unwrap_err();
        assert!(matches!(refused, Refused::MalformedData | Refused::OtherKey), "{length}");
    }
}

#[test]
fn the_blob_has_exactly_the_fields_that_openssh_writes() {
    let (maker, key) = (Maker::new(), ecdsa());
    let good = Device::new().attest(&maker, &key);
    let parts = Blob::parse(&good).unwrap();
    let fields = [FORMAT, parts.certificate, parts.signature, &bytes(parts.data)];
    let answer = |blob: &[u8]| check(blob, CHALLENGE, &key, &maker.roots(), NOW).map(|_| ());
    assert_eq!(answer(&blob(&fields)), Ok(()));

    let with = |at: usize, value: &[u8]| {
        let mut fields = fields;
        fields[at] = value;
        answer(&blob(&fields))
    };
    let v00 = blob(&[FORMAT_WITHOUT_DATA, fields[1], fields[2]]);
    assert_eq!(answer(&v00), Err(Refused::OldFormat));
    assert_eq!(with(0, b"ssh-sk-attest-v02"), Err(Refused::UnknownFormat));
    assert_eq!(with(1, b""), Err(Refused::NoCertificate));
    assert_eq!(with(1, b"0"), Err(Refused::MalformedCertificate));
    assert_eq!(with(1, &[fields[1], b"\0"].concat()), Err(Refused::MalformedCertificate));
    assert_eq!(with(2, b""), Err(Refused::BadSignature));
    // Not in a byte string, in one that is too short or too long, in a longer head than it needs, in a text.
    let data = parts.data;
    let length = u8::try_from(data.len()).unwrap();
    for data in [
        data,
        &[&[0x58, length - 1], data].concat(),
        &[&[0x58, length + 1], data].concat(),
        &[&[0x59, 0, length], data].concat(),
        &[&[0x78, length], data].concat(),
        &[&[0x5f, 0x58, length], data, &[0xff]].concat(),
        b"",
    ] {
        assert_eq!(with(3, data), Err(Refused::MalformedData));
    }
    for at in 0..good.len() {
        assert_eq!(answer(&good[..at]), Err(Refused::Malformed), "cut at {at}");
    }
    assert_eq!(answer(&[&good[..], b"\0"].concat()), Err(Refused::Malformed));
    let mut reserved = good.clone();
    reserved[good.len() - 5] = 1;
    assert_eq!(answer(&reserved), Err(Refused::ReservedInUse));
    let mut reserved = [&good[..], b"x"].concat();
    reserved[good.len() - 1] = 1;
    assert_eq!(answer(&reserved), Err(Refused::ReservedInUse));
    let huge = vec![0; MAX_ATTESTATION_BYTES + 1];
    assert_eq!(answer(&huge), Err(Refused::TooLarge));
    assert_eq!(answer(&huge[1..]), Err(Refused::UnknownFormat));
}

#[test]
fn only_a_root_in_the_list_makes_a_device_trusted() {
    let (maker, key) = (Maker::new(), ecdsa());
    let attestation = Device::new().attest(&maker, &key);
    let answer = |roots: &str| {
        let roots = Roots::from_pem(roots).unwrap();
        check(&attestation, CHALLENGE, &key, &roots, NOW).map(|it| it.root_sha256)
    };
    // Another maker of the same name.
    let other = Maker::new();
    assert_eq!(answer(&other.pem), Err(Refused::UntrustedCertificate));
    let stranger = Maker::with(KeyPair::generate().unwrap(), |it| {
        it.distinguished_name.push(DnType::CommonName, "Stranger");
    });
    assert_eq!(answer(&stranger.pem), Err(Refused::UntrustedCertificate));
    let expected = maker.roots().0[0].sha256.clone();
    for pem in [
        [&*other.pem, &stranger.pem, &maker.pem].concat(),
        [&*maker.pem, &stranger.pem, &other.pem].concat(),
    ] {
        assert_eq!(answer(&pem), Ok(expected.clone()));
    }
}

/// As Yubico has it from firmware 5.7.4 on: of the authorities between, OpenSSH keeps none.
#[test]
fn an_authority_between_device_and_root_counts_when_it_is_listed_itself() {
    let root = Maker::with(KeyPair::generate().unwrap(), |it| {
        it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        it.distinguished_name.push(DnType::CommonName, "Root Above");
    });
    let maker = Maker::new();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "Maker's Root");
    let between = params.signed_by(maker.issuer.key(), &root.issuer).unwrap();
    let key = ed25519();
    let attestation = Device::new().attest(&maker, &key);
    let answer = |pem: &str| {
        let roots = Roots::from_pem(pem).unwrap();
        check(&attestation, CHALLENGE, &key, &roots, NOW).map(|_| ())
    };
    let between = pem("CERTIFICATE", between.der());
    assert_eq!(answer(&between), Ok(()));
    assert_eq!(answer(&[&*root.pem, &between].concat()), Ok(()));
    assert_eq!(answer(&root.pem), Err(Refused::UntrustedCertificate));
}

#[test]
fn roots_of_every_usual_algorithm_count() {
    let rsa = |bits, algorithm| KeyPair::generate_rsa_for(algorithm, bits).unwrap();
    for key in [
        rsa(RsaKeySize::_2048, &PKCS_RSA_SHA256),
        rsa(RsaKeySize::_2048, &PKCS_RSA_SHA512),
        rsa(RsaKeySize::_4096, &PKCS_RSA_SHA256),
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
    ] {
        let name = format!("{:?}", key.algorithm());
        let (maker, key) = (Maker::with(key, |_| {}), ed25519());
        let attestation = Device::new().attest(&maker, &key);
        let answer = check(&attestation, CHALLENGE, &key, &maker.roots(), NOW);
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let (maker, key) = (Maker::with(key, |_| {}), ed25519());
    let attestation = Device::new().attest(&maker, &key);
    let answer = check(&attestation, CHALLENGE, &key, &maker.roots(), NOW);
    assert_eq!(answer, Err(Refused::UntrustedCertificate));
}

#[test]
fn a_device_is_no_root_and_a_root_is_no_device() {
    // A device's own certificate in the list is refused when the list is read.
    let (device, maker) = (Device::new(), Maker::new());
    let key = KeyPair::generate().unwrap();
    let own = pem("CERTIFICATE", device.certificate.self_signed(&key).unwrap().der());
    let error = Roots::from_pem(&[&*maker.pem, &own].concat()).unwrap_err();
    assert_eq!(
        error,
        "certificate 2 (CN=Device 1, O=Maker, OU=Authenticator Attestation) is not an authority's"
    );
    // A certificate that signs itself, and is an authority's, is still none of a device.
    let key = ecdsa();
    let authority = KeyPair::generate().unwrap();
    let mut params = device.certificate.clone();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).unwrap();
    let data = device.data(&key);
    let message = [&data[..], &Sha256::digest(CHALLENGE)].concat();
    let attestation =
        blob(&[FORMAT, root.der(), &authority.sign(&message).unwrap(), &bytes(&data)]);
    let roots = Roots::from_pem(&pem("CERTIFICATE", root.der())).unwrap();
    let answer = check(&attestation, CHALLENGE, &key, &roots, NOW);
    assert_eq!(answer, Err(Refused::CertificateOfAuthority));
    // Nor is a device's certificate an authority over another's.
    let mut device = Device::new();
    device.certificate.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(device.check(), Err(Refused::CertificateOfAuthority));
}

#[test]
fn device_and_root_have_to_be_valid_now() {
    let old = |it: &mut CertificateParams| it.not_after = datetime!(2025-06-01 0:00 UTC);
    let (maker, retired) = (Maker::new(), Maker::with(KeyPair::generate().unwrap(), old));
    let key = ecdsa();
    let attestation = Device::new().attest(&maker, &key);
    let at = |now| check(&attestation, CHALLENGE, &key, &maker.roots(), now).map(|_| ());
    assert_eq!(at(datetime!(2025-01-01 0:00 UTC)), Ok(()));
    assert_eq!(at(datetime!(2027-01-01 0:00 UTC)), Ok(()));
    assert_eq!(at(datetime!(2024-12-31 23:59:59 UTC)), Err(Refused::CertificateNotYetValid));
    assert_eq!(at(datetime!(2027-01-01 0:00:01 UTC)), Err(Refused::CertificateExpired));
    assert_eq!(at(datetime!(1969-01-01 0:00 UTC)), Err(Refused::CertificateNotYetValid));

    let attestation = Device::new().attest(&retired, &key);
    let at = |now| check(&attestation, CHALLENGE, &key, &retired.roots(), now).map(|_| ());
    assert_eq!(at(datetime!(2025-06-01 0:00 UTC)), Ok(()));
    assert_eq!(at(NOW), Err(Refused::RootNotValid));

    let young = |it: &mut CertificateParams| it.not_before = NOW + time::Duration::SECOND;
    let young = Maker::with(KeyPair::generate().unwrap(), young);
    let attestation = Device::new().attest(&young, &key);
    let answer = check(&attestation, CHALLENGE, &key, &young.roots(), NOW);
    assert_eq!(answer, Err(Refused::RootNotValid));
}

#[test]
fn the_certificates_model_is_the_devices() {
    let octets = |model: &[u8]| [&[0x04, 0x10], model].concat();
    let with = |value: &[u8], critical| {
        let mut device = Device::new();
        let mut extension = aaguid(value);
        extension.set_criticality(critical);
        device.certificate.custom_extensions = vec![extension];
        device.check().map(|it| it.aaguid.unwrap().into_bytes())
    };
    assert_eq!(with(&octets(&MODEL), false), Ok(MODEL));
    assert_eq!(with(&octets(&[1; 16]), false), Err(Refused::OtherModel));
    assert_eq!(with(&octets(&MODEL), true), Err(Refused::MalformedModel));
    assert_eq!(with(&MODEL, false), Err(Refused::MalformedModel));
    assert_eq!(with(&octets(&MODEL[1..]), false), Err(Refused::MalformedModel));
    assert_eq!(with(&octets(&[0; 17]), false), Err(Refused::MalformedModel));
    let mut device = Device::new();
    device.certificate.custom_extensions = vec![aaguid(&octets(&MODEL)), aaguid(&octets(&MODEL))];
    assert_eq!(device.check(), Err(Refused::MalformedCertificate));
    // A maker of one model need not name it.
    let mut device = Device::new();
    device.certificate.custom_extensions.clear();
    assert_eq!(device.check().unwrap().aaguid, Some(Uuid::from_bytes(MODEL)));
}

#[test]
fn a_certificate_for_something_else_is_refused() {
    let critical = || {
        let mut it = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        it.set_criticality(true);
        it
    };
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut device = Device::new();
        change(&mut device.certificate);
        device.check().map(|_| ())
    };
    let no = Err(Refused::CertificatePurpose);
    assert_eq!(with(&|it| it.key_usages = vec![KeyUsagePurpose::DigitalSignature]), Ok(()));
    assert_eq!(with(&|it| it.key_usages = vec![KeyUsagePurpose::KeyAgreement]), no);
    assert_eq!(with(&|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]), Ok(()));
    assert_eq!(with(&|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]), no);
    assert_eq!(with(&|it| it.custom_extensions.push(critical())), no);
}

#[test]
fn the_devices_key_is_on_p256_and_its_certificate_of_version_3() {
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let mut device = Device::new();
        device.algorithm = algorithm;
        assert_eq!(device.check(), Err(Refused::CertificateKey));
    }
    let (maker, key) = (Maker::new(), ecdsa());
    let mut attestation = Device::new().attest(&maker, &key);
    // [0] { INTEGER 2 }, which is version 3.
    let at = attestation.windows(5).position(|it| it == [0xa0, 3, 2, 1, 2]).unwrap();
    attestation[at + 4] = 1;
    let answer = check(&attestation, CHALLENGE, &key, &maker.roots(), NOW);
    assert_eq!(answer, Err(Refused::CertificateVersion));
}

#[test]
fn a_list_of_roots_says_what_is_wrong_with_it() {
    let maker = Maker::new();
    let error = |pem: &str| Roots::from_pem(pem).unwrap_err();
    assert_eq!(error(""), "there is no certificate");
    assert_eq!(error("no roots yet"), "there is no certificate");
    let key = pem("PRIVATE KEY", &KeyPair::generate().unwrap().serialize_der());
    assert_eq!(error(&[&*maker.pem, &key].concat()), "block 2 is not a certificate");
    let cut = &maker.pem[..maker.pem.len() / 2];
    assert!(error(&[&*maker.pem, cut].concat()).starts_with("block 2: "));
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(error(junk), "certificate 1 cannot be read");
    let unable = Maker::with(KeyPair::generate().unwrap(), |it| {
        it.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    assert_eq!(error(&unable.pem), "certificate 1 (CN=Maker's Root) may not sign certificates");
    let commented = format!("# Maker\n{}\n# the end\n", maker.pem);
    assert_eq!(Roots::from_pem(&commented).unwrap().0.len(), 1);
}

/// Made by OpenSSH 9.2p1 with the middleware of its own tests (Debian's openssh-tests), in this folder's `fixtures`:
///
/// ```text
/// printf 'a challenge of the broker, 32 b.\n' > sk-dummy.challenge
/// ssh-keygen -w /usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so -t ed25519-sk -O application=ssh:broker \
///     -O challenge=sk-dummy.challenge -O write-attestation=sk-dummy-ed25519.attestation -N '' -C sk-dummy -f key
/// ```
#[test]
fn what_ssh_keygen_writes_is_read_and_a_device_of_software_is_refused() {
    let challenge = include_bytes!("fixtures/sk-dummy.challenge");
    for (attestation, key) in [
        (
            &include_bytes!("fixtures/sk-dummy-ed25519.attestation")[..],
            include_str!("fixtures/sk-dummy-ed25519.pub"),
        ),
        (
            include_bytes!("fixtures/sk-dummy-ecdsa.attestation"),
            include_str!("fixtures/sk-dummy-ecdsa.pub"),
        ),
    ] {
        let key = PublicKey::from_openssh(key).unwrap();
        assert!(Enrolled::new(&key).is_ok());
        // It has no certificate, an empty signature and no data: only the fields can be compared.
        assert_eq!(attestation, blob(&[FORMAT, b"", b"", b""]));
        let answer = check(attestation, challenge, &key, &Maker::new().roots(), NOW);
        assert_eq!(answer, Err(Refused::NoCertificate));
    }
}

#[test]
fn no_changed_bit_leads_to_another_good_answer() {
    let (maker, ed25519, ecdsa) = (Maker::new(), ed25519(), ecdsa());
    let roots = maker.roots();
    let mut protected = Device::new();
    protected.flags |= EXTENSIONS;
    protected.extensions = b"\xa1\x6bcredProtect\x03";
    for (attestation, key) in [
        (Device::new().attest(&maker, &ed25519), ed25519),
        (protected.attest(&maker, &ecdsa), ecdsa.clone()),
        (Device::u2f().attest(&maker, &ecdsa), ecdsa),
    ] {
        assert!(check(&attestation, CHALLENGE, &key, &roots, NOW).is_ok());
        for at in 0..attestation.len() {
            for bit in 0..8 {
                let mut changed = attestation.clone();
                changed[at] ^= 1 << bit;
                let answer = check(&changed, CHALLENGE, &key, &roots, NOW);
                assert!(answer.is_err(), "byte {at} bit {bit}: {answer:?}");
            }
        }
    }
}

#[test]
fn a_key_is_enrolled_at_what_its_attestation_proves_and_the_evidence_is_kept_whole() {
    let (maker, key) = (Maker::new(), ed25519());
    let blob = Device::new().attest(&maker, &key);
    let roots = maker.roots();
    let enrol = |roots: Option<&Roots>, challenge: &[u8]| {
        let evidence = people::attested(roots, &key, &blob, challenge, NOW)?;
        people::new_key(&key, evidence)
    };
    let new = enrol(Some(&roots), CHALLENGE).unwrap();
    assert_eq!(new.assurance, Assurance::Verified);
    let Evidence::Attested { attestation, challenge, certificate_sha256, .. } = &new.evidence
    else {
        panic!("{new:?}")
    };
    // Whoever doubts it later can judge it again.
    let (attestation, challenge) =
        (STANDARD.decode(attestation).unwrap(), STANDARD.decode(challenge).unwrap());
    let again = check(&attestation, &challenge, &key, &roots, NOW).unwrap();
    assert_eq!(again.certificate_sha256, *certificate_sha256);

    let why = enrol(Some(&roots), b"another challenge of some length").unwrap_err().to_string();
    assert!(why.contains("bad-signature"), "{why}");
    let why = enrol(Some(&Maker::new().roots()), CHALLENGE).unwrap_err().to_string();
    assert!(why.contains("untrusted-certificate"), "{why}");
    let why = enrol(None, CHALLENGE).unwrap_err().to_string();
    assert!(why.contains("no maker's word counts here"), "{why}");
}

#[test]
fn hardware_that_nobody_knows_of_is_software() {
    let openssh = |key: PublicKey| key.to_openssh().unwrap();
    let software = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
    let software = openssh(software.public_key().clone());
    for (key, hardware_known, expected) in [
        (&openssh(ed25519()), true, Assurance::Verified),
        (&openssh(ecdsa()), true, Assurance::Verified),
        (&openssh(ed25519()), false, Assurance::Software),
        (&openssh(ecdsa()), false, Assurance::Software),
        // A key that the signature check would refuse anyway.
        (&openssh(ecdsa_for("ssh:")), true, Assurance::Software),
        (&software, true, Assurance::Software),
        (&software, false, Assurance::Software),
        (&"sk-ssh-ed25519@openssh.com AAAA".into(), true, Assurance::Software),
        (&String::new(), true, Assurance::Software),
    ] {
        assert_eq!(assurance(key, hardware_known), expected, "{key} {hardware_known}");
    }
}

/// For the tests that ask many times.
static TRUSTED: LazyLock<(Roots, PublicKey)> = LazyLock::new(|| (Maker::new().roots(), ecdsa()));

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_and_never_panic(bytes: Vec<u8>, challenge: Vec<u8>, pem: String) {
        let (roots, key) = &*TRUSTED;
        prop_assert!(check(&bytes, &challenge, key, roots, NOW).is_err());
        prop_assert!(Roots::from_pem(&pem).is_err());
    }

    #[test]
    fn arbitrary_fields_are_refused_and_never_panic(
        certificate: Vec<u8>, signature: Vec<u8>, data: Vec<u8>, tail in "\\PC{0,20}"
    ) {
        let (roots, key) = &*TRUSTED;
        let application = Sha256::digest(SK_APPLICATION);
        let data = [&application[..], &[PLAIN | EXTENSIONS], &[0; 20], &[0, 1, 1], &cose(key), &data].concat();
        let blob = blob(&[FORMAT, &certificate, &signature, &bytes(&data)]);
        prop_assert!(check(&blob, CHALLENGE, key, roots, NOW).is_err());
        prop_assert!(check(&[&blob[..], tail.as_bytes()].concat(), CHALLENGE, key, roots, NOW).is_err());
    }

    #[test]
    fn arbitrary_cbor_never_panics(bytes: Vec<u8>) {
        let mut rest = &bytes[..];
        let skipped = skip_cbor(&mut rest, MAX_CBOR_DEPTH);
        prop_assert!(skipped.is_none() || rest.len() < bytes.len());
        let _ = (byte_string(&bytes), cred_protect(&bytes));
    }
}
