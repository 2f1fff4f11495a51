//! Checkpoints: how large the tree is and what its root is, signed (C2SP tlog-checkpoint in a C2SP signed-note).

use std::path::Path;

use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{SignatureError, Signer as _, SigningKey};
use secrecy::{ExposeSecret, SecretString};
use signed_note::{Note, StandardVerifier, Verifier, VerifierList};

use super::tree::{Hash, MAX_SIZE};

/// A note that a stranger sends may not be larger.
pub const MAX_NOTE_BYTES: u64 = 16 * 1024;

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Which log: a name like `broker.example.com/log`.
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

/// A checkpoint with its signatures, which nobody has verified yet.
#[derive(Clone, Debug, PartialEq)]
pub struct SignedCheckpoint {
    pub checkpoint: Checkpoint,
    note: String,
}

/// Why a note is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    #[error("it is not a checkpoint (C2SP tlog-checkpoint in a signed note)")]
    Malformed,
    #[error("that is no verifier key (C2SP signed-note: NAME+HASH+KEY)")]
    Key,
    #[error("it is not signed by that key")]
    NotSigned,
    #[error("its signature is not valid")]
    BadSignature,
}

impl SignedCheckpoint {
    /// Reads a note.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if MAX_NOTE_BYTES < note.len() as u64 {
            return Err(NoteError::Malformed);
        }
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| NoteError::Malformed)?;
        let text = str::from_utf8(parsed.text()).map_err(|_| NoteError::Malformed)?;
        // No extension lines: nothing is signed that nobody looks at.
        let [origin, size, root, ""] = text.split('\n').collect::<Vec<_>>()[..] else {
            return Err(NoteError::Malformed);
        };
        let checkpoint = Checkpoint {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| NoteError::Malformed)?,
            root: Hash::parse_hash(root).map_err(|_| NoteError::Malformed)?,
        };
        // One spelling.
        if origin.is_empty()
            || MAX_SIZE < checkpoint.size
            || checkpoint.text() != parsed.text()
            || parsed.to_bytes() != note.as_bytes()
        {
            return Err(NoteError::Malformed);
        }
        Ok(Self { checkpoint, note: note.to_owned() })
    }

    /// Whether the holder of a key has signed it.
    pub fn verify(&self, key: &str) -> Result<(), NoteError> {
        let verifier = StandardVerifier::new(key).map_err(|_| NoteError::Key)?;
        if verifier.name() != self.checkpoint.origin {
            return Err(NoteError::NotSigned);
        }
        let note = Note::from_bytes(self.note.as_bytes()).map_err(|_| NoteError::Malformed)?;
        match note.verify(&VerifierList::new(vec![Box::new(verifier)])) {
            Ok(_) => Ok(()),
            Err(signed_note::NoteError::UnverifiedNote) => Err(NoteError::NotSigned),
            Err(_) => Err(NoteError::BadSignature),
        }
    }

    /// The note, as it is kept and sent.
    pub fn note(&self) -> &str {
        &self.note
    }
}

impl Checkpoint {
    fn text(&self) -> Vec<u8> {
        format!("{}\n{}\n{}\n", self.origin, self.size, self.root).into_bytes()
    }

    /// Signs it with each of the keys.
    pub fn sign(&self, keys: &[&LogKey]) -> Result<SignedCheckpoint, NoteError> {
        let signers: Vec<_> = keys.iter().map(|key| key.signer(&self.origin)).collect();
        let signers: Vec<_> = signers.iter().map(|it| it as &dyn signed_note::Signer).collect();
        let mut note = Note::new(&self.text(), &[]).map_err(|_| NoteError::Malformed)?;
        note.add_sigs(&signers).map_err(|_| NoteError::Malformed)?;
        let note = String::from_utf8(note.to_bytes()).map_err(|_| NoteError::Malformed)?;
        Ok(SignedCheckpoint { checkpoint: self.clone(), note })
    }
}

/// The key that signs checkpoints. PostgreSQL never sees it.
pub struct LogKey(SigningKey);

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "cannot read the log's key {path}: {error}; make one with `openssl genpkey -algorithm ed25519 -out {path}`, readable by the server's user only"
    )]
    Read { path: String, error: std::io::Error },
    #[error(
        "the log's key {path} is not an Ed25519 private key in PKCS #8 PEM; make one with `openssl genpkey -algorithm ed25519`"
    )]
    Format { path: String },
}

impl LogKey {
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let name = path.display().to_string();
        let pem = std::fs::read_to_string(path)
            .map(SecretString::from)
            .map_err(|error| KeyError::Read { path: name.clone(), error })?;
        let key = SigningKey::from_pkcs8_pem(pem.expose_secret());
        key.map(Self).map_err(|_| KeyError::Format { path: name })
    }

    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// What verifies its signatures under checkpoints of that origin: `NAME+HASH+KEY`.
    pub fn verifier_key(&self, origin: &str) -> String {
        signed_note::new_ed25519_verifier_key(origin, &self.0.verifying_key())
    }

    fn signer<'a>(&'a self, origin: &'a str) -> NoteSigner<'a> {
        let public = [&[1][..], self.0.verifying_key().as_bytes()].concat();
        NoteSigner { origin, id: signed_note::key_id(origin, &public), key: &self.0 }
    }
}

struct NoteSigner<'a> {
    origin: &'a str,
    id: u32,
    key: &'a SigningKey,
}

impl signed_note::Signer for NoteSigner<'_> {
    fn name(&self) -> &str {
        self.origin
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        Ok(self.key.try_sign(message)?.to_vec())
    }
}

/// The same key under the name of another origin: a log that goes on after events were lost has a new one.
pub fn renamed(key: &str, origin: &str) -> Option<String> {
    if key.split('+').next() == Some(origin) {
        return Some(key.to_owned());
    }
    // A plus is a letter of base64 too.
    let public = key.splitn(3, '+').nth(2)?;
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, public).ok()?;
    let verifier = format!("{origin}+{:08x}+{public}", signed_note::key_id(origin, &bytes));
    StandardVerifier::new(&verifier).ok().map(|_| verifier)
}

/// The name of a log that begins its `epoch`: the first has the plain one.
pub fn origin_of(base: &str, epoch: i32) -> String {
    if epoch == 1 { base.to_owned() } else { format!("{base}/{epoch}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::leaf_hash;

    fn signed() -> (LogKey, SignedCheckpoint) {
        let key = LogKey::from_bytes(&[7; 32]);
        let checkpoint =
            Checkpoint { origin: "example.com/log".into(), size: 3, root: leaf_hash(b"x") };
        let signed = checkpoint.sign(&[&key]).unwrap();
        (key, signed)
    }

    #[test]
    fn a_checkpoint_is_read_as_it_was_signed() {
        let (key, signed) = signed();
        let read = SignedCheckpoint::parse(signed.note()).unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.verify(&key.verifier_key("example.com/log")), Ok(()));
        assert!(signed.note().starts_with("example.com/log\n3\n"));
    }

    #[test]
    fn another_key_name_or_text_does_not_verify() {
        let (key, signed) = signed();
        let other = LogKey::from_bytes(&[8; 32]);
        let verify = |key: &str| signed.verify(key);
        assert_eq!(verify(&other.verifier_key("example.com/log")), Err(NoteError::NotSigned));
        assert_eq!(verify(&key.verifier_key("example.org/log")), Err(NoteError::NotSigned));
        assert_eq!(verify("nonsense"), Err(NoteError::Key));
        let larger = signed.note().replacen("\n3\n", "\n4\n", 1);
        let larger = SignedCheckpoint::parse(&larger).unwrap();
        assert_eq!(
            larger.verify(&key.verifier_key("example.com/log")),
            Err(NoteError::BadSignature)
        );
    }

    #[test]
    fn what_is_no_checkpoint_is_not_read() {
        let (_, signed) = signed();
        let note = signed.note();
        let extended = note.replacen("\n\n", "\nmore\n\n", 1);
        let zeroes = note.replacen("\n3\n", "\n03\n", 1);
        let endless = note.replacen("\n3\n", "\n18446744073709551615\n", 1);
        let cut = &note[1..note.len() - 3];
        for text in ["", "x", "a\n1\nb\n\n", &extended, &zeroes, &endless, cut] {
            assert_eq!(SignedCheckpoint::parse(text), Err(NoteError::Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_key_can_be_renamed() {
        for seed in 0..=255 {
            let key = LogKey::from_bytes(&[seed; 32]);
            let renamed = renamed(&key.verifier_key("example.com/log"), "example.com/log/2");
            assert_eq!(renamed, Some(key.verifier_key("example.com/log/2")));
        }
    }
}
