//! A lease's terms, whatever is in them. The parts that follow from others are made to, so that what is left to refuse
//! is what a broken broker could write. What is sealed reads back as the same.
#![no_main]

use broker::render;
use broker::statement::{LeaseStatement, LeaseTerms, session_policy, sha256_hex};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(mut terms) = serde_json::from_slice::<LeaseTerms>(json) else { return };
    let policy = session_policy(
        &terms.actions,
        &terms.resources,
        &terms.account.id,
        &terms.conditions,
        None,
    );
    terms.assume_role.policy_sha256 = sha256_hex(policy.as_bytes());
    terms.assume_role.policy = policy;
    terms.assume_role.source_identity = terms.lease_id.to_string();
    let Ok(sealed) = LeaseStatement::new(terms.clone()) else { return };
    assert_eq!(*sealed.terms(), terms);
    let read =
        LeaseStatement::from_bytes(sealed.bytes().to_vec()).expect("what was written is read");
    assert_eq!(read, sealed);
    let shown = broker_fuzz::shown(&sealed);
    // A signer sees each thing that the policy names.
    for action in &terms.actions {
        assert!(shown.contains(&render::name(&action.action)), "{action:?} is not shown");
    }
    for resource in terms.resources.iter().filter(|it| *it != "*") {
        assert!(shown.contains(&render::name(resource)), "{resource:?} is not shown");
    }
});
