//! Keys that sign without a human: what a test needs, and what an attacker has.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::lease::Decision;
use broker::statement::Meaning;
use broker::verify::{Passkey, SK_APPLICATION};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::public::{Ed25519PublicKey, KeyData, SkEd25519};
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, PublicKey, Signature, SshSig};
use tempfile::TempDir;

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

/// OpenSSH's own middleware for tests, in place of hardware: what `scripts/setup.sh --sk-dummy` fetches.
pub fn sk_dummy() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "the edge of the tests")]
    let set = std::env::var("SK_DUMMY").unwrap_or_default();
    let file = PathBuf::from(set);
    assert!(
        file.is_file(),
        "SK_DUMMY does not say where OpenSSH's sk-dummy.so is; run `make test`, or `scripts/setup.sh --sk-dummy` and then \
         this with SK_DUMMY=\"$(scripts/setup.sh --print-sk-dummy)\""
    );
    // As ssh-agent compares it.
    file.canonicalize().expect("it is there")
}

/// One of OpenSSH's programs, with nothing of our surroundings and no terminal: nobody is there to be asked.
fn openssh(name: &str) -> Command {
    let mut command = Command::new("setsid");
    command.args(["--wait", name]).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn done(mut command: Command) -> String {
    let output = command.output().expect("OpenSSH's programs are here");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {words}");
    String::from_utf8(output.stdout).expect("text")
}

/// A key that `ssh-keygen` made, in a folder of its own: a person's, with files and flags as OpenSSH has them.
pub struct KeyFile {
    dir: TempDir,
}

impl KeyFile {
    /// A security key with these options of `ssh-keygen -O`.
    pub fn security_key(options: &[&str]) -> Self {
        Self::of_hardware("ed25519-sk", options)
    }

    /// The same of a device that has no Ed25519.
    pub fn ecdsa() -> Self {
        Self::of_hardware("ecdsa-sk", &["application=ssh:broker", "verify-required"])
    }

    fn of_hardware(kind: &str, options: &[&str]) -> Self {
        let options: Vec<_> = options.iter().flat_map(|it| ["-O", it]).collect();
        let provider = sk_dummy();
        let provider = provider.to_str().expect("UTF-8");
        Self::made(&[&["-t", kind, "-w", provider][..], &options].concat())
    }

    /// What one has to have for production: made for the broker, with a touch and a PIN in each signature.
    pub fn verified() -> Self {
        Self::security_key(&["application=ssh:broker", "verify-required"])
    }

    /// A file and nothing else.
    pub fn plain() -> Self {
        Self::made(&["-t", "ed25519"])
    }

    fn made(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut keygen = openssh("ssh-keygen");
        keygen.args(["-q", "-N", "", "-C", "a test's"]).args(args);
        keygen.arg("-f").arg(dir.path().join("key"));
        done(keygen);
        Self { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub fn public_path(&self) -> PathBuf {
        self.dir.path().join("key.pub")
    }

    /// One line in OpenSSH's format.
    pub fn public_key(&self) -> String {
        let line = std::fs::read_to_string(self.public_path()).expect("a public key");
        line.trim().to_owned()
    }

    pub fn fingerprint(&self) -> String {
        let key = PublicKey::from_openssh(&self.public_key()).expect("a public key");
        key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Edits the private key's file so that no touch is asked for: the flags follow the application (PROTOCOL.u2f),
    /// the second time that it occurs.
    #[must_use]
    pub fn edited_to_ask_for_no_touch(self) -> Self {
        let text = std::fs::read_to_string(self.path()).expect("a private key");
        let body: String = text.lines().filter(|it| !it.starts_with('-')).collect();
        let mut bytes = STANDARD.decode(body).expect("base64");
        let application = SK_APPLICATION.as_bytes();
        let at = bytes.windows(application.len()).rposition(|it| it == application);
        let flags = &mut bytes[at.expect("it is made for the broker") + application.len()];
        assert_eq!(*flags & 1, 1, "a touch was asked for");
        *flags &= !1;
        let edited = format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
            STANDARD.encode(bytes)
        );
        std::fs::write(self.path(), edited).expect("our own file");
        self
    }

    /// Leaves only the public half: who signs now has it from somewhere else.
    pub fn without_its_private_half(&self) {
        std::fs::remove_file(self.path()).expect("our own file");
    }

    /// Signs a statement as `broker sign` does, meaning `approve` or `refuse`.
    pub fn sign(&self, decision: &str, body: &[u8]) -> String {
        let meaning = Meaning::from(decision.parse::<Decision>().expect("a decision"));
        self.sign_as(meaning.namespace(), &meaning.message(body))
    }

    /// Signs any message in any namespace with stock `ssh-keygen`.
    pub fn sign_as(&self, namespace: &str, message: &[u8]) -> String {
        self.signed(&self.path(), namespace, message, None)
    }

    /// The same with what `agent` holds.
    pub fn sign_by(&self, agent: &SshAgent, decision: &str, body: &[u8]) -> String {
        let meaning = Meaning::from(decision.parse::<Decision>().expect("a decision"));
        let message = meaning.message(body);
        self.signed(&self.public_path(), meaning.namespace(), &message, Some(agent))
    }

    fn signed(&self, key: &Path, namespace: &str, message: &[u8], by: Option<&SshAgent>) -> String {
        let file = self.dir.path().join("message");
        let signature = self.dir.path().join("message.sig");
        std::fs::write(&file, message).expect("our own file");
        let _ = std::fs::remove_file(&signature);
        let mut keygen = openssh("ssh-keygen");
        keygen.args(["-Y", "sign", "-n", namespace, "-f"]).arg(key).arg(file);
        match by {
            Some(agent) => keygen.env("SSH_AUTH_SOCK", agent.socket()),
            None => keygen.env("SSH_SK_PROVIDER", sk_dummy()),
        };
        done(keygen);
        std::fs::read_to_string(signature).expect("a signature")
    }
}

/// An ssh-agent that takes OpenSSH's middleware for tests. It ends with this.
pub struct SshAgent {
    child: Child,
    dir: TempDir,
}

impl SshAgent {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("socket");
        // In the foreground, so that it is ours to end; of nothing that could ask a person.
        let mut command = Command::new("ssh-agent");
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").arg("-D");
        command.arg("-P").arg(sk_dummy()).arg("-a").arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("ssh-agent is here");
        while UnixStream::connect(&socket).is_err() {
            assert!(child.try_wait().expect("our own child").is_none(), "ssh-agent ended");
            std::thread::yield_now();
        }
        Self { child, dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn add(&self, key: &KeyFile) {
        let mut add = openssh("ssh-add");
        add.arg("-q").arg("-S").arg(sk_dummy()).arg(key.path());
        add.env("SSH_AUTH_SOCK", self.socket());
        done(add);
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A passkey of this broker's page, in software: it says of the human and of its copies whatever it is told to.
pub struct SoftPasskey {
    secret: SigningKey,
    /// Where its holder thinks that they are.
    pub origin: String,
    /// User present 0x01, user verified 0x04, may be backed up 0x08, is 0x10.
    pub flags: u8,
    synced: bool,
}

impl SoftPasskey {
    const ID: &[u8] = b"a credential id of a test";

    pub fn new(synced: bool) -> Self {
        let flags = if synced { 0x1d } else { VERIFIED };
        let origin = "http://localhost:1".to_owned();
        Self { secret: Key::new(false).secret, origin, flags, synced }
    }

    /// As it is enrolled.
    pub fn enrolled(&self) -> Passkey {
        // RFC 8410: the algorithm's identifier, then the key.
        let mut spki = hex::decode("302a300506032b6570032100").expect("hex");
        spki.extend_from_slice(&self.secret.verifying_key().to_bytes());
        Passkey::new(Self::ID.to_vec(), spki, "localhost".to_owned(), self.synced)
            .expect("a passkey")
    }

    /// What the page sends: an assertion over `body` that means `meaning`.
    pub fn sign(&self, meaning: Meaning, body: &[u8]) -> String {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(meaning.message(body)));
        let client_data = serde_json::json!({
            "type": "webauthn.get", "challenge": challenge, "origin": self.origin, "crossOrigin": false,
        })
        .to_string();
        let mut data = Sha256::digest("localhost").to_vec();
        data.extend_from_slice(&[self.flags, 0, 0, 0, 7]);
        let mut signed = data.clone();
        signed.extend_from_slice(&Sha256::digest(&client_data));
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        serde_json::json!({
            "id": encode(Self::ID), "rawId": encode(Self::ID), "type": "public-key",
            "response": {
                "clientDataJSON": encode(client_data.as_bytes()),
                "authenticatorData": encode(&data),
                "signature": encode(&self.secret.sign(&signed).to_bytes()),
            },
        })
        .to_string()
    }
}
