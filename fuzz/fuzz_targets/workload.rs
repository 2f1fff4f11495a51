//! Workloads' tokens, with every signature good: what an issuer signs, or somebody who has its key, becomes an agent that the
//! configuration names or nothing.

#![no_main]

use broker::workload::{SetOff, WorkloadError, read};
use broker_fuzz::{NOW, workload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let issuer = workload::issuer();
    // Header and claims, a line each, so that what is changed is not their base64; or a token as it came.
    let token = workload::token_of(data);
    let Ok(unverified) = read(&token) else { return };
    // A signature that is not good is never more than that.
    assert!(unverified.verify(&issuer, |_| false).is_err());
    let mut asked = false;
    let verified = unverified.verify(&issuer, |algorithm| {
        asked = true;
        assert_eq!(algorithm.as_str(), "RS256", "the one that is pinned");
        true
    });
    let Ok(verified) = verified else { return };
    assert!(asked);
    let judged = verified.workload("https://broker.example.com", NOW);
    let again = unverified.verify(&issuer, |_| true).expect("as before");
    assert_eq!(again.workload("https://broker.example.com", NOW), judged);
    match judged {
        Ok(it) => {
            assert_eq!((it.agent.as_str(), it.sponsor.as_str()), ("shop-ci", "alice"));
            assert!(
                it.subject.starts_with("repo:acme/")
                    && it.subject.ends_with(":ref:refs/heads/main")
            );
            assert_eq!(it.subject.matches(':').count(), 3, "{}", it.subject);
            let texts = it.claims.values().chain([&it.subject, &it.task]);
            assert!(
                texts.into_iter().all(|it| it.len() <= 255 && !it.chars().any(char::is_control))
            );
            assert!(
                matches!(it.set_off, SetOff::BySomebody) || it.set_off == SetOff::By("bob".into())
            );
        }
        Err(error) => {
            assert!(!matches!(error, WorkloadError::BadSignature | WorkloadError::Replayed))
        }
    }
});
