//! Keys that sign without a human: what a test needs, and what an attacker has.

use broker::lease::Decision;
use broker::statement::Meaning;
use broker::verify::SK_APPLICATION;
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::public::{Ed25519PublicKey, KeyData, SkEd25519};
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, PublicKey, Signature, SshSig};

/// A touch and a PIN.
pub const VERIFIED: u8 = 0x05;

/// An SSH key: a plain file, or the same pretending to be FIDO hardware.
#[derive(Clone)]
pub struct Key {
    secret: SigningKey,
    hardware: bool,
    application: String,
    /// What the pretended authenticator says of the human.
    flags: u8,
}

impl Key {
    pub fn software() -> Self {
        Self::new(false)
    }

    /// As a security key would answer that was touched and given its PIN. (That it is no hardware shows only at
    /// enrolment, which is why enrolment is not the agent's.)
    pub fn hardware() -> Self {
        Self::new(true)
    }

    fn new(hardware: bool) -> Self {
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        seed[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let secret = SigningKey::from_bytes(&seed);
        Self { secret, hardware, application: SK_APPLICATION.to_owned(), flags: VERIFIED }
    }

    /// The same key, whose authenticator says something else of the human.
    #[must_use]
    pub fn with_flags(&self, flags: u8) -> Self {
        Self { flags, ..self.clone() }
    }

    /// A hardware key that was made for another purpose.
    pub fn hardware_for(application: &str) -> Self {
        Self { application: application.to_owned(), ..Self::hardware() }
    }

    fn key_data(&self) -> KeyData {
        let public = Ed25519PublicKey(self.secret.verifying_key().to_bytes());
        if self.hardware {
            KeyData::SkEd25519(SkEd25519::new(public, self.application.clone()))
        } else {
            KeyData::Ed25519(public)
        }
    }

    /// One line in OpenSSH's format.
    pub fn public_key(&self) -> String {
        PublicKey::from(self.key_data()).to_openssh().expect("a public key")
    }

    pub fn fingerprint(&self) -> String {
        PublicKey::from(self.key_data()).fingerprint(HashAlg::Sha256).to_string()
    }

    /// The private key as a file for `ssh-keygen`.
    pub fn private_key(&self) -> String {
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&self.secret.to_bytes()));
        let key = PrivateKey::new(pair, "test").expect("a private key");
        key.to_openssh(LineEnding::LF).expect("a private key").to_string()
    }

    /// Signs a statement, meaning `approve` or `refuse`.
    pub fn sign(&self, decision: &str, body: &[u8]) -> String {
        let meaning = Meaning::from(decision.parse::<Decision>().expect("a decision"));
        self.sign_as(meaning.namespace(), &meaning.message(body))
    }

    pub fn sign_login(&self, nonce: &str) -> String {
        self.sign_as(Meaning::Login.namespace(), &Meaning::Login.message(nonce.as_bytes()))
    }

    /// Signs any message in any namespace, as an armored SSHSIG.
    pub fn sign_as(&self, namespace: &str, message: &[u8]) -> String {
        let data = SshSig::signed_data(namespace, HashAlg::Sha512, message).expect("signed data");
        let signature = if self.hardware {
            // OpenSSH's PROTOCOL.u2f: the authenticator signs hash(application) || flags || counter || hash(data).
            let tail = [self.flags, 0, 0, 0, 7];
            let mut signed = Sha256::digest(&self.application).to_vec();
            signed.extend_from_slice(&tail);
            signed.extend_from_slice(&Sha256::digest(&data));
            let mut bytes = self.secret.sign(&signed).to_bytes().to_vec();
            bytes.extend_from_slice(&tail);
            Signature::new(Algorithm::SkEd25519, bytes)
        } else {
            Signature::new(Algorithm::Ed25519, self.secret.sign(&data).to_bytes().to_vec())
        };
        let signature = signature.expect("a signature");
        let armored =
            SshSig::new(self.key_data(), namespace, HashAlg::Sha512, signature).expect("an SSHSIG");
        armored.to_pem(LineEnding::LF).expect("armor")
    }
}
