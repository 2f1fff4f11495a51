//! What an authenticator says of itself and of the human, whatever it is: it has signed it. It counts only for its own
//! site, as what was enrolled, and for no more than it says was done.
#![no_main]

use broker::lease::Assurance;
use broker::statement::Meaning;
use broker::verify::UnverifiedSignature;
use broker_fuzz::SIGNED;
use broker_fuzz::passkey::{
    RP_ID, assertion, counts, good_authenticator_data, good_client_data, passkey, sign,
};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|data: &[u8]| {
    let client_data = good_client_data(Meaning::LeaseApproval, SIGNED);
    let text = assertion(&client_data, data, &sign(&client_data, data));
    let Ok(signature) = UnverifiedSignature::parse(&text) else { return };
    for eligible in [false, true] {
        let key = passkey(eligible);
        let good = |assurance| counts(&signature, &key, Meaning::LeaseApproval, SIGNED, assurance);
        let accepted =
            [Assurance::Software, Assurance::Present, Assurance::Verified].map(|it| good(it));
        // Enough for one demand is enough for each lower one.
        assert!(accepted.is_sorted_by_key(|it| it.is_none()));
        let Some(counter) = accepted[0] else { continue };
        assert_eq!(data[..32], Sha256::digest(RP_ID)[..]);
        assert_eq!(data[33..37], counter.to_be_bytes());
        let is_set = |bit: u8| data[32] >> bit & 1 == 1;
        let [present, verified, backup_eligible, backed_up, attested, extended] =
            [0, 2, 3, 4, 6, 7].map(is_set);
        assert!(backup_eligible == eligible && (!backed_up || eligible) && !attested);
        assert_eq!(extended, 37 < data.len());
        assert_eq!(accepted[1].is_some(), present);
        assert_eq!(accepted[2].is_some(), present && verified && !eligible);
    }
    // A good signature stays with what it is over.
    let good = good_authenticator_data();
    let text = assertion(&client_data, data, &sign(&client_data, &good));
    let moved = UnverifiedSignature::parse(&text).expect("as above, but for the signature");
    let accepted =
        counts(&moved, &passkey(false), Meaning::LeaseApproval, SIGNED, Assurance::Software);
    assert_eq!(accepted.is_some(), data == good);
});
