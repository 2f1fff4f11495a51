//! Approvals as files, and the key of the instance that seals them.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::approval::{self, Export, Jwk, verify};
use broker::statement::Meaning;
use ed25519_dalek::{Signer, SigningKey};

/// What this instance has sealed.
pub const FILES: [&[u8]; 2] = [
    include_bytes!("../seeds/approval/file-approved"),
    include_bytes!("../seeds/approval/file-refused"),
];

fn instance() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

pub fn jwk() -> Jwk {
    Jwk::of(instance().verifying_key().to_bytes())
}

/// The instance's key id.
pub fn pin() -> String {
    jwk().thumbprint()
}

/// Seals whatever an export says, but for whose it is.
pub fn seal(export: Export) -> Result<Vec<u8>, serde_json::Error> {
    let export = Export { instance_key: jwk(), ..export };
    approval::seal(&export, |it| instance().sign(it).to_bytes()).map(|it| it.file())
}

static SIGNED: LazyLock<Vec<(Meaning, Vec<u8>)>> = LazyLock::new(|| {
    let read = |file| verify(file, Some(&pin())).expect("a good file");
    let signed = FILES.map(read).into_iter().flat_map(|file| {
        let statement = STANDARD.decode(&file.export().statement).expect("base64");
        let of = move |it: &approval::Signature| (Meaning::from(it.decision), statement.clone());
        file.export().signatures.iter().map(of).collect::<Vec<_>>()
    });
    signed.collect()
});

/// What people have decided about which statement.
pub fn signed() -> &'static [(Meaning, Vec<u8>)] {
    &SIGNED
}
