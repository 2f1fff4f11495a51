//! Who may sign an act of authority.

use time::OffsetDateTime;

use super::Rejection;
use crate::lease::{Decision, FreezeKind};
use crate::statement::act::{ADMINS, Act, ActTerms};

/// The person behind a key.
#[derive(Clone, Copy, Debug)]
pub struct ActSigner<'a> {
    pub handle: &'a str,
    pub active: bool,
    /// As of today.
    pub groups: &'a [String],
}

/// Whether `signer` may decide about `terms` at `now`. Compares people, never keys.
pub fn check_act_signer(
    terms: &ActTerms,
    decision: Decision,
    signer: ActSigner<'_>,
    now: OffsetDateTime,
) -> Result<(), Rejection> {
    if !signer.active {
        return Err(Rejection::PersonDisabled);
    }
    let me = signer.handle;
    let admin = signer.groups.iter().any(|it| it == ADMINS);
    if let Act::AdminChange(change) = &terms.act {
        let own = change.handle() == me;
        match decision {
            // Whoever is concerned, and any admin, can stop it.
            Decision::Refuse if own || admin => return Ok(()),
            Decision::Refuse => return Err(Rejection::NotEligible),
            Decision::Approve if change.is_ones_own() && (own || admin) => {}
            Decision::Approve if own || terms.proposed_by.as_deref() == Some(me) => {
                return Err(Rejection::Concerned);
            }
            Decision::Approve if !admin => return Err(Rejection::NotEligible),
            Decision::Approve => {}
        }
    }
    match &terms.act {
        Act::Thaw(it)
            if it.frozen_by == me
                || it.freeze == FreezeKind::Sponsor && it.target.as_deref() == Some(me) =>
        {
            return Err(Rejection::Concerned);
        }
        Act::TaskStart(it) if it.sponsor != me => return Err(Rejection::NotEligible),
        _ => {}
    }
    if !terms.signers.eligible.iter().any(|it| it == me) {
        return Err(Rejection::NotEligible);
    }
    if terms.sign_by < now {
        return Err(Rejection::TooLate);
    }
    Ok(())
}
