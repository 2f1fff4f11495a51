//! Signs one statement with passkey-rs, a passkey that is software and says so of itself: UP, UV, BE and BS.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use passkey::authenticator::{Authenticator, UiHint, UserCheck, UserValidationMethod};
use passkey::client::{Client, DefaultClientData};
use passkey::crypto::{iana, rust_crypto::RustCryptoBackend};
use passkey::types::{Passkey, ctap2::*, webauthn::*};
use serde_json::json;
use sha2::{Digest, Sha256};

struct Yes;

#[async_trait::async_trait]
impl UserValidationMethod for Yes {
    type PasskeyItem = Passkey;
    async fn check_user<'a>(
        &self,
        _: UiHint<'a, Passkey>,
        _: bool,
        _: bool,
    ) -> Result<UserCheck, Ctap2Error> {
        Ok(UserCheck { presence: true, verification: true })
    }
    fn is_verification_enabled(&self) -> Option<bool> {
        Some(true)
    }
    fn is_presence_enabled(&self) -> bool {
        true
    }
}

const ORIGIN: &str = "https://broker.example";
const BODY: &str = r#"{"lease":"read the bucket"}"#;
const TYPE: &str = "application/vnd.broker.lease-approval.v1+json";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let origin = url::Url::parse(ORIGIN).unwrap();
    let authenticator =
        Authenticator::new(Aaguid::new_empty(), None::<Passkey>, Yes, RustCryptoBackend);
    let mut client = Client::new(authenticator);
    let registration = CredentialCreationOptions {
        public_key: PublicKeyCredentialCreationOptions {
            rp: PublicKeyCredentialRpEntity { id: None, name: "broker".into() },
            user: PublicKeyCredentialUserEntity {
                id: vec![1, 2, 3, 4].into(),
                display_name: "Bob".into(),
                name: "bob".into(),
            },
            challenge: vec![0; 32].into(),
            pub_key_cred_params: vec![PublicKeyCredentialParameters {
                ty: PublicKeyCredentialType::PublicKey,
                alg: iana::Algorithm::ES256,
            }],
            timeout: None,
            exclude_credentials: None,
            authenticator_selection: None,
            hints: None,
            attestation: AttestationConveyancePreference::None,
            attestation_formats: None,
            extensions: None,
        },
    };
    let created = client.register(&origin, registration, DefaultClientData).await.unwrap();
    let message = format!("DSSEv1 {} {TYPE} {} {BODY}", TYPE.len(), BODY.len());
    let request = CredentialRequestOptions {
        public_key: PublicKeyCredentialRequestOptions {
            challenge: Sha256::digest(message).to_vec().into(),
            timeout: None,
            rp_id: Some("broker.example".into()),
            allow_credentials: None,
            user_verification: UserVerificationRequirement::Required,
            hints: None,
            attestation: AttestationConveyancePreference::None,
            attestation_formats: None,
            extensions: None,
        },
    };
    let signed = client.authenticate(&origin, request, DefaultClientData).await.unwrap();
    let spki = created.response.public_key.unwrap().to_vec();
    eprintln!("spki {} bytes, flags {:#x}", spki.len(), signed.response.authenticator_data[32]);
    let b64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let registered = created.response.authenticator_data.to_vec();
    let document = json!({
        "made_by": "passkey 0.6.0",
        "origin": ORIGIN,
        "cases": [{
            "name": "es256",
            "key": {
                "backup_eligible": registered[32] & 0x08 != 0,
                "credential_id": created.id,
                "public_key": b64(&spki),
                "rp_id": "broker.example",
            },
            "meaning": "lease-approval",
            "body": BODY,
            "assertion": {
                "id": signed.id,
                "rawId": b64(&signed.raw_id),
                "response": {
                    "authenticatorData": b64(&signed.response.authenticator_data),
                    "clientDataJSON": b64(&signed.response.client_data_json),
                    "signature": b64(&signed.response.signature),
                },
                "type": "public-key",
            },
        }],
    });
    println!("{}", serde_json::to_string_pretty(&document).unwrap());
}
