//! Who else reaches the roles: the broker's own principals, whoever may change IAM, and resource policies.

use super::document::{Document, Principal, Statement};
use super::estate::Identity;
use super::roles::names;
use super::{Check, Found, Ground, Severity, found, unread};
use crate::arn::glob_contains;
use crate::role::STOP_ACTIONS;

const OWN: &str = "give the principal the policy that `brokerd check --role minter` (revoker, doctor) prints, and no other, of its own or of a group";
const CHANGES: &str =
    "take the right away from them, or, if they are to have it, name them in aws.administrators";

/// What changes a role, beside its inline policies.
const ROLE_CHANGES: [&str; 8] = [
    "iam:attachrolepolicy",
    "iam:deleterole",
    "iam:deleterolepermissionsboundary",
    "iam:detachrolepolicy",
    "iam:putrolepermissionsboundary",
    "iam:updateassumerolepolicy",
    "iam:updaterole",
    "iam:updateroledescription",
];
/// What changes a managed policy, its boundary among them.
const POLICY_CHANGES: [&str; 4] = [
    "iam:createpolicyversion",
    "iam:deletepolicy",
    "iam:deletepolicyversion",
    "iam:setdefaultpolicyversion",
];
/// What makes somebody into a user, or gives a user more.
const USER_CHANGES: [&str; 7] = [
    "iam:addusertogroup",
    "iam:attachuserpolicy",
    "iam:createaccesskey",
    "iam:createloginprofile",
    "iam:deleteuserpermissionsboundary",
    "iam:putuserpolicy",
    "iam:updateloginprofile",
];

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "principal-missing",
        severity: Severity::High,
        wants: "the minter, the revoker and the doctor are there",
        gains: "who may make users or roles can make one of that name, and is the broker then",
        fix: "make the principal, or correct its ARN in broker.toml",
        run: principal_missing,
    },
    Check {
        id: "minter-beyond",
        severity: Severity::Critical,
        wants: "the minter may assume the scopes' roles, and nothing else",
        gains: "who takes over the server does that in AWS directly: past scopes, signatures and the record",
        fix: OWN,
        run: |ground| beyond(ground, "minter"),
    },
    Check {
        id: "revoker-beyond",
        severity: Severity::High,
        wants: "the revoker may write the policies that stop sessions, and nothing else",
        gains: "who takes over the server does that in AWS directly",
        fix: OWN,
        run: |ground| beyond(ground, "revoker"),
    },
    Check {
        id: "doctor-beyond",
        severity: Severity::High,
        wants: "the doctor may read what it looks at, and nothing else",
        gains: "who takes over the server, or a host that the doctor runs on, does that in AWS directly",
        fix: OWN,
        run: |ground| beyond(ground, "doctor"),
    },
    Check {
        id: "revoker-unable",
        severity: Severity::High,
        wants: "the revoker may read, write and delete inline policies of each role",
        gains: "stolen sessions: nobody can stop them before they expire",
        fix: OWN,
        run: revoker_unable,
    },
    Check {
        id: "stop-writable",
        severity: Severity::Critical,
        wants: "nobody but the revoker and the administrators writes or deletes inline policies of a role",
        gains: "they end a stop, so that revoked sessions work again; or they give the role what they like",
        fix: CHANGES,
        run: stop_writable,
    },
    Check {
        id: "role-changeable",
        severity: Severity::High,
        wants: "nobody but the administrators changes a role's trust, boundary or policies",
        gains: "they let themselves into the role, or take its boundary off",
        fix: CHANGES,
        run: role_changeable,
    },
    Check {
        id: "principal-changeable",
        severity: Severity::High,
        wants: "nobody but the administrators makes keys for the broker's own principals, or changes them",
        gains: "they become the minter or the revoker, with a key of their own",
        fix: CHANGES,
        run: principal_changeable,
    },
    Check {
        id: "bucket-unread",
        severity: Severity::Medium,
        wants: "the doctor can read the policy of each bucket that a scope reaches",
        gains: "a bucket policy that lets sessions in past their boundary stays unseen",
        fix: "give the doctor's principal the policy that `brokerd check --role doctor` prints",
        run: bucket_unread,
    },
    Check {
        id: "bucket-names-us",
        severity: Severity::High,
        wants: "no policy of a bucket that a scope reaches lets a role of leases, or a session of it, in by name",
        gains: "what a resource policy gives to a session by name is not held by the role's policies or boundary, and stays when the scope goes",
        fix: "take the role out of the bucket's policy: what it may is in its own policy",
        run: bucket_names_us,
    },
    Check {
        id: "bucket-public",
        severity: Severity::High,
        wants: "no policy of a bucket that a scope reaches lets everybody in without a condition",
        gains: "the scope's data, without a lease",
        fix: "name whom the bucket's policy lets in, or block public access",
        run: bucket_public,
    },
];

fn principal_missing(ground: &Ground<'_>) -> Vec<Found> {
    let missing =
        ground.principals.iter().filter(|it| it.live.is_none() && ground.could_see(&it.arn));
    missing.map(|it| found(&it.arn, format!("it is the {}, and is not there", it.name))).collect()
}

fn beyond(ground: &Ground<'_>, name: &str) -> Vec<Found> {
    let mut all = Vec::new();
    for own in ground.principals.iter().filter(|it| it.name == name) {
        for policy in own.live.iter().flat_map(|it| &it.policies) {
            let beyond = policy.document.allows().find_map(|it| Document::beyond(it, &own.policy));
            if let Some((action, resource)) = beyond {
                let what = format!("its policy {} allows {action} on {resource}", policy.name);
                all.push(found(&own.arn, what));
            }
        }
    }
    all
}

fn revoker_unable(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, _) in ground.live_roles() {
        let arn = ground.config.settings.aws.revoker.arn_in(lease.role.account);
        let Some(live) = ground.identity(&arn) else { continue };
        let lacks = STOP_ACTIONS.iter().find(|it| !live.may(&it.to_lowercase(), lease.role.arn));
        if let Some(action) = lacks {
            all.push(found(arn, format!("it may not {action} on {}", lease.role.arn)));
        }
    }
    all
}

/// Whether somebody is to change IAM, by our settings.
fn is_administrator(ground: &Ground<'_>, arn: &str) -> bool {
    ground.config.settings.aws.administrators.iter().any(|it| glob_contains(it, arn))
}

/// Everybody in the accounts who is neither an administrator nor a role of leases.
fn others<'a>(ground: &Ground<'a>) -> Vec<&'a Identity> {
    let leased = |arn: &str| ground.roles.iter().any(|it| it.role.arn == arn);
    ground
        .identities()
        .filter(|it| !is_administrator(ground, &it.arn) && !leased(&it.arn))
        .collect()
}

fn stop_writable(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, _) in ground.live_roles() {
        let revoker = ground.config.settings.aws.revoker.arn_in(lease.role.account);
        for it in others(ground).into_iter().filter(|it| it.arn != revoker) {
            let may = ["iam:putrolepolicy", "iam:deleterolepolicy"]
                .into_iter()
                .find(|action| it.may(action, lease.role.arn));
            if let Some(action) = may {
                all.push(found(lease.role.arn, format!("{} may {action} on it", it.arn)));
            }
        }
    }
    all
}

fn role_changeable(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let managed: Vec<_> =
            live.policies.iter().chain(&live.boundary).filter_map(|it| it.arn.as_deref()).collect();
        for it in others(ground) {
            let role = ROLE_CHANGES.into_iter().find(|action| it.may(action, lease.role.arn));
            let policy = POLICY_CHANGES
                .into_iter()
                .find(|action| managed.iter().any(|policy| it.may(action, policy)));
            if let Some(action) = role.or(policy) {
                let on = if role.is_some() { "on it" } else { "on a policy of it" };
                all.push(found(lease.role.arn, format!("{} may {action} {on}", it.arn)));
            }
        }
    }
    all
}

fn principal_changeable(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for own in ground.principals.iter().filter(|it| it.live.is_some()) {
        let changes: Vec<_> = if own.arn.contains(":user/") {
            USER_CHANGES.to_vec()
        } else {
            ROLE_CHANGES.into_iter().chain(["iam:putrolepolicy"]).collect()
        };
        for it in others(ground) {
            if let Some(action) = changes.iter().find(|action| it.may(action, &own.arn)) {
                let what = format!("{} may {action} on the {}", it.arn, own.name);
                all.push(found(&own.arn, what));
            }
        }
    }
    all
}

fn bucket_unread(ground: &Ground<'_>) -> Vec<Found> {
    let buckets = &ground.estate.cloud.buckets;
    let parts = buckets.iter().map(|(name, it)| (format!("arn:aws:s3:::{name}"), it));
    unread(parts).into_iter().map(|it| it.at(Severity::Medium)).collect()
}

/// The statements of each bucket's policy that let somebody in.
fn letting_in<'a>(ground: &Ground<'a>) -> Vec<(&'a String, &'a Statement)> {
    let policies = ground.estate.cloud.buckets.iter();
    let policies = policies.filter_map(|(name, it)| Some((name, it.as_ref().ok()?.as_ref()?)));
    policies.flat_map(|(name, policy)| policy.allows().map(move |it| (name, it))).collect()
}

fn bucket_names_us(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (bucket, statement) in letting_in(ground) {
        let listed = statement.principals.iter().filter_map(|it| match it {
            Principal::Aws(name) => Some(name),
            _ => None,
        });
        // Everybody, on condition that it is us, is us.
        let everybody = statement.principals.contains(&Principal::Everybody);
        let tested = statement.conditions.iter().filter(|_| everybody).flat_map(|it| &it.values);
        let ours = listed.chain(tested).find(|it| ground.roles.iter().any(|role| names(it, role)));
        if let Some(name) = ours {
            all.push(found(format!("arn:aws:s3:::{bucket}"), format!("its policy lets {name} in")));
        }
    }
    all
}

fn bucket_public(ground: &Ground<'_>) -> Vec<Found> {
    let open = letting_in(ground).into_iter().filter(|(_, it)| {
        it.principals.contains(&Principal::Everybody) && it.conditions.is_empty()
    });
    open.map(|(bucket, _)| found(format!("arn:aws:s3:::{bucket}"), "its policy lets everybody in"))
        .collect()
}
