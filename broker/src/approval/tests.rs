use ed25519_dalek::{Signer as _, SigningKey};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey};
use time::macros::datetime;

use super::*;
use crate::statement::lease::tests::terms;

const SIGNED: OffsetDateTime = datetime!(2026-01-01 12:10 UTC);

/// A small export: one software key's approval, sealed by `instance`.
fn export(instance: &SigningKey) -> Export {
    let instance_key = Jwk::of(instance.verifying_key().to_bytes());
    let mut terms = terms();
    terms.broker.instance_key = instance_key.thumbprint();
    terms.signers.assurance = Assurance::Software;
    let statement = LeaseStatement::new(terms).unwrap();
    let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
    let meaning = Meaning::LeaseApproval;
    let signature =
        key.sign(meaning.namespace(), HashAlg::Sha512, &meaning.message(statement.bytes()));
    Export {
        instance_key,
        origin: statement.terms().broker.origin.clone(),
        exported_at: SIGNED + Duration::HOUR,
        lease: Lease {
            id: statement.terms().lease_id,
            state: LeaseState::Approved,
            tier: statement.terms().tier,
            approved_at: Some(SIGNED),
            claim_by: Some(SIGNED + Duration::minutes(15)),
            claimed_at: None,
            issued_at: None,
            ends_at: None,
            ended_at: None,
            end_reason: None,
        },
        statement: STANDARD.encode(statement.bytes()),
        signatures: vec![Signature {
            person: "bob".into(),
            decision: Decision::Approve,
            signed_at: SIGNED,
            signature: signature.unwrap().to_pem(LineEnding::LF).unwrap(),
            assurance: Assurance::Software,
            touched: None,
            verified: None,
            message: message(Decision::Approve, statement.bytes()),
            key: Key {
                public_key: key.public_key().to_openssh().unwrap(),
                fingerprint: key.public_key().fingerprint(HashAlg::Sha256).to_string(),
                assurance: Assurance::Software,
                evidence: "a test".into(),
                enrolled_at: SIGNED - Duration::DAY,
                revoked_at: None,
                enrolled_by: None,
            },
        }],
    }
}

fn instance() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn file(export: &Export, instance: &SigningKey) -> Vec<u8> {
    seal(export, |message| instance.sign(message).to_bytes()).unwrap().file()
}

fn fault(file: &[u8]) -> Fault {
    let findings = verify(file, None).unwrap_err();
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings[0].fault
}

#[test]
fn no_byte_of_the_file_can_be_another_be_missing_or_be_added() {
    let good = file(&export(&instance()), &instance());
    assert!(verify(&good, None).unwrap().is_approved());
    let other = |bytes: &[u8], what: &str, at: usize| {
        assert!(verify(bytes, None).is_err(), "{what} at byte {at}");
    };
    let spoil = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] = good[at] ^ 0x01;
        other(&bytes, "a flipped bit", at);
        // A character of the same alphabet, or else one that JSON means something by.
        bytes[at] = if good[at].is_ascii_alphanumeric() { good[at] ^ 0x20 } else { b'"' };
        if bytes[at] == good[at] {
            bytes[at] = b'A';
        }
        other(&bytes, "another character", at);
        other(&[&good[..at], &good[at + 1..]].concat(), "a missing byte", at);
        other(&[&good[..at], b" ", &good[at..]].concat(), "a blank", at);
    };
    std::thread::scope(|scope| {
        let spoil = &spoil;
        for from in 0..4 {
            let places = (from..good.len()).step_by(4);
            scope.spawn(move || places.for_each(spoil));
        }
    });
    for end in (0..good.len()).step_by(97) {
        other(&good[..end], "the end", end);
    }
    for more in [&b"\n"[..], b" ", b"\0", b"{}", &good] {
        other(&[&good, more].concat(), "something after it", good.len());
        other(&[more, &good].concat(), "something before it", 0);
    }
}

#[test]
fn other_spellings_of_the_same_envelope_are_other_files() {
    let envelope = seal(&export(&instance()), |it| instance().sign(it).to_bytes()).unwrap();
    let good = String::from_utf8(envelope.file()).unwrap();
    let Envelope { payload, .. } = &envelope;
    let seal = &envelope.signatures[0];
    let reordered = format!(
        r#"{{"payloadType":"{PAYLOAD_TYPE}","payload":"{payload}","signatures":[{{"keyid":"{}","sig":"{}"}}]}}"#,
        seal.keyid, seal.sig,
    );
    let doubled = good.replacen(r#"{"payload""#, r#"{"payload":"e30=","payload""#, 1);
    let unknown = good.replacen(r#""sig":"#, r#""note":"x","sig":"#, 1);
    for (spelling, fault_is) in [
        (reordered + "\n", Fault::NotCanonical),
        (good.replace("+json", "\\u002bjson"), Fault::NotCanonical),
        (good.replace('/', "\\/"), Fault::NotCanonical),
        (good.replacen(':', ": ", 1), Fault::NotCanonical),
        (good.replace('\n', "\r\n"), Fault::NotCanonical),
        (doubled, Fault::NotAnExport),
        (unknown, Fault::NotAnExport),
        (good.replace("approval-export.v1", "approval-export.v2"), Fault::NotAnExport),
        // Sixty-four bytes end in two equal signs and four idle bits.
        (good.replace(&seal.sig, seal.sig.trim_end_matches('=')), Fault::NotCanonical),
        (good.replace(&seal.sig, &idle_bit(&seal.sig)), Fault::NotCanonical),
        (good.replace(&seal.sig, &url_safe(&seal.sig)), Fault::NotCanonical),
        (good.replace(payload, &url_safe(payload)), Fault::NotCanonical),
    ] {
        assert_ne!(spelling, good);
        assert_eq!(fault(spelling.as_bytes()), fault_is, "{spelling}");
    }
    let twice = Envelope {
        signatures: vec![envelope.signatures[0].clone(), envelope.signatures[0].clone()],
        ..envelope.clone()
    };
    assert_eq!(fault(&twice.file()), Fault::NotAnExport);
    let none = Envelope { signatures: vec![], ..envelope };
    assert_eq!(fault(&none.file()), Fault::NotAnExport);
    assert_eq!(fault(&vec![b' '; MAX_FILE_BYTES + 1]), Fault::NotAnExport);
}

/// The same text in the other alphabet.
fn url_safe(text: &str) -> String {
    let other = text.replace('+', "-").replace('/', "_");
    if other == text { format!("-{}", &text[1..]) } else { other }
}

/// The same bytes in a text whose last character carries a bit that means nothing.
fn idle_bit(text: &str) -> String {
    let bare = text.trim_end_matches('=');
    let last = char::from(bare.as_bytes()[bare.len() - 1] + 1);
    format!("{}{last}{}", &bare[..bare.len() - 1], &text[bare.len()..])
}

#[test]
fn a_payload_in_another_spelling_is_not_valid_though_its_seal_is() {
    let payload = String::from_utf8(canonical(&export(&instance())).unwrap()).unwrap();
    let same = |spelling: &str| {
        let signature = instance().sign(&pre_authentication(PAYLOAD_TYPE, spelling.as_bytes()));
        let keyid = Jwk::of(instance().verifying_key().to_bytes()).thumbprint();
        Envelope {
            payload: STANDARD.encode(spelling),
            payload_type: PAYLOAD_TYPE.into(),
            signatures: vec![Seal { keyid, sig: STANDARD.encode(signature.to_bytes()) }],
        }
    };
    assert!(verify(&same(&payload).file(), None).is_ok(), "the control");
    for spelling in [
        payload.replacen(':', ": ", 1),
        payload.replace("13:10:00Z", "13:10:00.000Z"),
        payload.replace("13:10:00Z", "13:10:00+00:00"),
        payload.replace("12:10:00Z", "12:10:00z"),
    ] {
        assert_ne!(spelling, payload);
        assert_eq!(fault(&same(&spelling).file()), Fault::NotCanonical, "{spelling}");
    }
}

#[test]
fn a_seal_for_another_payload_type_is_no_seal() {
    let export = export(&instance());
    let payload = canonical(&export).unwrap();
    for message in [payload.clone(), Meaning::LeaseApproval.message(&payload), vec![]] {
        let envelope = seal(&export, |_| instance().sign(&message).to_bytes()).unwrap();
        assert_eq!(fault(&envelope.file()), Fault::SealBroken);
    }
    // The neutral element as key and as nonce: without strict checks it verifies over any message.
    let mut weak = export;
    let mut point = [0; 32];
    point[0] = 1;
    weak.instance_key = Jwk::of(point);
    let mut any = [0; 64];
    any[0] = 1;
    assert_eq!(fault(&seal(&weak, |_| any).unwrap().file()), Fault::SealBroken);
}

#[test]
fn the_seal_is_the_pinned_keys_and_the_one_that_people_signed_for() {
    let (export, other) = (export(&instance()), SigningKey::from_bytes(&[8; 32]));
    let good = file(&export, &instance());
    let pin = export.instance_key.thumbprint();
    assert!(verify(&good, Some(&pin)).unwrap().is_pinned());
    assert!(!verify(&good, None).unwrap().is_pinned());
    for wrong in ["", "x", &pin[1..], &pin.to_uppercase()] {
        let findings = verify(&good, Some(wrong)).unwrap_err();
        assert_eq!(findings[0].fault, Fault::NotThePinnedKey, "{wrong}");
    }
    // Another instance cannot seal under this one's id, nor put its own in its place.
    assert_eq!(fault(&file(&export, &other)), Fault::SealBroken);
    let mut stolen = export.clone();
    stolen.instance_key = Jwk::of(other.verifying_key().to_bytes());
    assert_eq!(fault(&file(&stolen, &other)), Fault::OtherInstance);
    let mut envelope = seal(&stolen, |it| other.sign(it).to_bytes()).unwrap();
    envelope.signatures[0].keyid.clone_from(&pin);
    assert_eq!(fault(&envelope.file()), Fault::InstanceKey);
    let mut elsewhere = export;
    elsewhere.origin = "https://broker.example.com".into();
    assert_eq!(fault(&file(&elsewhere, &instance())), Fault::OtherInstance);
}

#[test]
fn the_thumbprint_is_that_of_rfc_8037() {
    // Appendix A.3.
    let jwk = Jwk {
        crv: "Ed25519".into(),
        kty: "OKP".into(),
        x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into(),
    };
    assert_eq!(jwk.thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    assert!(jwk.key().is_some());
}

#[test]
fn state_and_times_say_what_the_signatures_say() {
    use LeaseState as S;
    let base = export(&instance());
    let with = |state: S, change: &dyn Fn(&mut Export)| {
        let mut it = base.clone();
        it.lease.state = state;
        if state.is_terminal() {
            it.lease.ended_at = Some(SIGNED + Duration::HOUR);
        }
        change(&mut it);
        verify(&file(&it, &instance()), None).map_err(|it| it[0].fault)
    };
    let issued = |it: &mut Export| {
        it.lease.claimed_at = Some(SIGNED + Duration::MINUTE);
        it.lease.issued_at = Some(SIGNED + Duration::MINUTE);
        it.lease.ends_at = Some(SIGNED + Duration::HOUR);
    };
    let unapproved = |it: &mut Export| (it.lease.approved_at, it.lease.claim_by) = (None, None);
    let unsigned = |it: &mut Export| {
        unapproved(it);
        it.signatures.clear();
    };
    for (state, change) in [
        (S::Approved, &(|_: &mut Export| {}) as &dyn Fn(&mut Export)),
        (S::Issued, &issued),
        (S::Expired, &issued),
        (S::Failed, &|it| it.lease.claimed_at = Some(SIGNED)),
        (S::Revoked, &issued),
        (S::Revoked, &|_| {}),
        (S::Withdrawn, &|_| {}),
        (S::Lapsed, &|_| {}),
    ] {
        assert!(with(state, change).unwrap().is_approved(), "{state}");
        let signers = |it: &mut Export| {
            change(it);
            it.signatures.clear();
        };
        assert_eq!(with(state, &signers).unwrap_err(), Fault::TooFew, "{state}");
        let early = |it: &mut Export| {
            change(it);
            it.lease.approved_at = Some(SIGNED - Duration::minutes(2));
        };
        assert_eq!(with(state, &early).unwrap_err(), Fault::TooFew, "{state}");
    }
    for state in [S::Pending, S::Withdrawn, S::Lapsed, S::Revoked] {
        assert!(!with(state, &unsigned).unwrap().is_approved(), "{state}");
        // Signed, and yet not approved.
        assert_eq!(with(state, &unapproved).unwrap_err(), Fault::State, "{state}");
    }
    for (state, change) in [
        (S::Pending, &(|_: &mut Export| {}) as &dyn Fn(&mut Export)),
        (S::Denied, &unsigned),
        (S::Refused, &unsigned),
        (S::Refused, &|_| {}),
        (S::Approved, &unapproved),
        (S::Issued, &|_| {}),
        (S::Issued, &|it| (issued(it), it.lease.claimed_at = None).0),
        (S::Approved, &|it| it.lease.ended_at = Some(SIGNED)),
        (S::Expired, &|it| it.lease.ended_at = None),
        (S::Approved, &|it| it.lease.claimed_at = Some(SIGNED + Duration::HOUR)),
        (S::Approved, &|it| it.lease.claimed_at = Some(SIGNED - Duration::HOUR)),
    ] {
        assert_eq!(with(state, change).unwrap_err(), Fault::State, "{state}");
    }
}

#[test]
fn a_time_at_the_end_of_all_time_panics_nothing() {
    // The second is later than any time in UTC.
    for end in [datetime!(9999-12-31 23:59:59 UTC), datetime!(9999-12-31 23:59:59 -1)] {
        let spoilt = |spoil: fn(&mut Export, OffsetDateTime)| {
            let mut export = export(&instance());
            spoil(&mut export, end);
            verify(&file(&export, &instance()), None)
        };
        assert!(spoilt(|it, end| it.signatures[0].signed_at = end).is_err());
        assert!(spoilt(|it, end| it.lease.issued_at = Some(end)).is_err());
        assert!(spoilt(|it, end| it.lease.approved_at = Some(end)).is_ok());
        let late = spoilt(|it, end| {
            it.lease.claimed_at = it.lease.approved_at;
            it.lease.claim_by = Some(end);
        });
        assert!(late.is_ok());
        let revoked = spoilt(|it, end| it.signatures[0].key.revoked_at = Some(end)).unwrap();
        assert!(revoked.for_ssh_keygen().len() <= 1);
    }
}

#[test]
fn what_goes_to_ssh_keygen_is_one_line_whatever_is_in_the_key() {
    let mut export = export(&instance());
    export.signatures[0].key.public_key.push_str(" bob@laptop");
    let found = verify(&file(&export, &instance()), None).unwrap().for_ssh_keygen();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].allowed_signer.matches('\n').count(), 1);
    assert!(found[0].allowed_signer.starts_with(
        "bob namespaces=\"lease-approval@broker\",valid-after=\"20251231121000Z\" ssh-ed25519 AAAA"
    ));
    assert!(!found[0].allowed_signer.contains("laptop"));
    assert_eq!(found[0].signed_at, "20260101121000Z");
}
