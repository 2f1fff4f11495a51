//! An approval as a file; and what is in one, whatever it is, sealed by an instance whose key a stranger has. Such a
//! stranger may write what is on the instance's word, but nobody's signature under another statement.
#![no_main]

use broker::approval::{Export, verify};
use broker::statement::Meaning;
use broker_fuzz::approval::{FILES, pin, signed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for pin in [None, Some(pin())] {
        match verify(bytes, pin.as_deref()) {
            Ok(_) => assert!(FILES.contains(&bytes), "nobody sealed this"),
            Err(findings) => {
                findings.iter().for_each(|it| broker_fuzz::draws_nothing(&it.to_string()))
            }
        }
    }
    let Ok(export) = serde_json::from_slice::<Export>(bytes) else { return };
    let Ok(file) = broker_fuzz::approval::seal(export) else { return };
    let verified = match verify(&file, Some(&pin())) {
        Ok(verified) => verified,
        Err(findings) => {
            return findings.iter().for_each(|it| broker_fuzz::draws_nothing(&it.to_string()));
        }
    };
    let statement = verified.statement();
    let people = &verified.export().signatures;
    assert!(
        !verified.is_approved() || usize::from(statement.terms().signers.needed) <= people.len()
    );
    for signature in people {
        let meaning = Meaning::from(signature.decision);
        assert!(
            signed().contains(&(meaning, statement.bytes().to_vec())),
            "a forgery: {meaning:?} by {}",
            signature.person
        );
    }
    let stock = verified.for_ssh_keygen();
    // One line each, whatever is in the file.
    assert!(stock.iter().all(|it| it.allowed_signer.matches('\n').count() == 1));
});
