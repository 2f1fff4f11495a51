//! What a browser says of where it signed, whatever it is: the holder of the passkey has signed it. It counts only if
//! another reader, which is this one, finds in it the broker's page and the very message.
#![no_main]

use broker::lease::Assurance;
use broker::statement::Meaning;
use broker::verify::UnverifiedSignature;
use broker_fuzz::passkey::{
    ORIGIN, assertion, challenge, counts, good_authenticator_data, good_client_data, passkey, sign,
};
use broker_fuzz::{SIGNED, UNSIGNED};
use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Refuses a member that is there twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    r#type: String,
    challenge: String,
    origin: String,
    #[serde(default)]
    cross_origin: bool,
    top_origin: Option<IgnoredAny>,
}

fuzz_target!(|client_data: &[u8]| {
    let data = good_authenticator_data();
    let text = assertion(client_data, &data, &sign(client_data, &data));
    let Ok(signature) = UnverifiedSignature::parse(&text) else { return };
    let key = passkey(false);
    let demands = Meaning::ALL.iter().map(|it| (*it, SIGNED));
    let others = UNSIGNED.map(|it| (Meaning::LeaseApproval, it));
    for (meaning, body) in demands.chain(others) {
        if counts(&signature, &key, meaning, body, Assurance::Verified).is_none() {
            continue;
        }
        let said: Said = serde_json::from_slice(client_data).expect("all that is needed, once");
        assert_eq!(said.r#type, "webauthn.get");
        assert_eq!(said.challenge, challenge(meaning, body));
        assert_eq!(said.origin, ORIGIN);
        assert!(!said.cross_origin && said.top_origin.is_none());
    }
    // A good signature stays with what it is over.
    let good = good_client_data(Meaning::LeaseApproval, SIGNED);
    let text = assertion(client_data, &data, &sign(&good, &data));
    let moved = UnverifiedSignature::parse(&text).expect("as above, but for the signature");
    let accepted = counts(&moved, &key, Meaning::LeaseApproval, SIGNED, Assurance::Software);
    assert_eq!(accepted.is_some(), client_data == good);
});
