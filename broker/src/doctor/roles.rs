//! The roles that leases are minted from: trust, permissions, boundary, session length.

use super::document::{Document, Principal, Statement};
use super::estate::{Identity, Policy};
use super::{Check, Found, Ground, LeaseRole, Severity, found, unread};
use crate::aws::PROBE_ACTION;
use crate::lease::Environment;
use crate::role::{
    NO_CREDENTIALS, NOT_OWN, SESSION_ACTIONS, THIS_ACCOUNT, THIS_ENVIRONMENT, is_stop,
};

const TRUST: &str = "set the trust policy that `brokerd check --role ROLE` prints";
const PERMISSIONS: &str =
    "give the role the permission policy that `brokerd check --role ROLE` prints, and no other";
const BOUNDARY: &str = "attach the permissions boundary that `brokerd check --role ROLE` prints";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "account-unread",
        severity: Severity::Critical,
        wants: "the doctor can read the IAM of each account: critical if AWS refuses, high if it is away",
        gains: "whatever is wrong there stays unseen",
        fix: "give the doctor's principal the policy that `brokerd check --role doctor` prints, and see that AWS is reached",
        run: account_unread,
    },
    Check {
        id: "role-missing",
        severity: Severity::High,
        wants: "each role that a scope uses is there",
        gains: "who may make roles can make it, with a trust policy of their own",
        fix: "make the role from what `brokerd check --role ROLE` prints, or take its scopes out",
        run: role_missing,
    },
    Check {
        id: "trust-wildcard",
        severity: Severity::Critical,
        wants: "no role lets everybody assume it",
        gains: "anybody with an AWS account gets the role's whole ceiling, with no lease and no signature",
        fix: TRUST,
        run: |ground| {
            each_principal(ground, |_, it| {
                (*it == Principal::Everybody)
                    .then(|| "its trust policy lets everybody in".to_owned())
            })
        },
    },
    Check {
        id: "trust-other",
        severity: Severity::Critical,
        wants: "the minter is the only principal of each trust policy: no other user, role, account, service or federation",
        gains: "whoever it is gets the role's whole ceiling past the broker: no lease, no signature, no record",
        fix: TRUST,
        run: |ground| each_principal(ground, trust_other),
    },
    Check {
        id: "trust-deleted",
        severity: Severity::Medium,
        wants: "no trust policy names somebody who was deleted (`AIDA…`, `AROA…`)",
        gains: "nothing by itself; the policy is not what somebody believes it to be, and a new minter of the same name is not let in",
        fix: TRUST,
        run: |ground| each_principal(ground, trust_deleted),
    },
    Check {
        id: "trust-chaining",
        severity: Severity::Critical,
        wants: "no role is trusted by itself or by another role of leases",
        gains: "a leased session renews itself for ever, or becomes another role: its lease's end and limits are worth nothing",
        fix: TRUST,
        run: |ground| {
            each_principal(ground, |ground, it| {
                leased(ground, it)
                    .map(|role| format!("its trust policy lets sessions of {role} in"))
            })
        },
    },
    Check {
        id: "role-chains",
        severity: Severity::Critical,
        wants: "no other role in the account trusts a role of leases by name",
        gains: "a leased session becomes that role, with all that it may do",
        fix: "take the role of leases out of that role's trust policy",
        run: role_chains,
    },
    Check {
        id: "trust-no-minter",
        severity: Severity::Medium,
        wants: "each trust policy lets the minter assume the role, tag the session and set its source identity",
        gains: "nothing; leases on the role fail",
        fix: TRUST,
        run: trust_no_minter,
    },
    Check {
        id: "trust-source-identity",
        severity: Severity::High,
        wants: "each trust policy demands `sts:SourceIdentity`",
        gains: "who has the minter's keys makes sessions that CloudTrail ties to no lease",
        fix: TRUST,
        run: |ground| {
            each_admission(
                ground,
                |_, it| !it.demands_any("sts:sourceidentity"),
                "does not demand sts:SourceIdentity",
            )
        },
    },
    Check {
        id: "trust-external-id",
        severity: Severity::High,
        wants: "each trust policy demands the `sts:ExternalId` of the role's scopes, if they have one",
        gains: "another installation that shares the minter can be talked into using this role (the confused deputy)",
        fix: TRUST,
        run: |ground| {
            each_admission(ground, no_external_id, "does not demand the scopes' sts:ExternalId")
        },
    },
    Check {
        id: "trust-actions",
        severity: Severity::Medium,
        wants: "each trust policy allows `sts:AssumeRole`, `sts:TagSession` and `sts:SetSourceIdentity` only",
        gains: "sessions by other ways than the broker's, such as a web identity's",
        fix: TRUST,
        run: trust_actions,
    },
    Check {
        id: "session-duration",
        severity: Severity::Medium,
        wants: "no role allows sessions of more than an hour",
        gains: "who has the minter's keys makes sessions of up to twelve hours",
        fix: "set MaxSessionDuration to 3600",
        run: session_duration,
    },
    Check {
        id: "policy-beyond-ceiling",
        severity: Severity::High,
        wants: "no policy of a role allows what no scope of it has",
        gains: "a session that is minted past the broker, or a fault in a session policy, reaches it",
        fix: PERMISSIONS,
        run: policy_beyond_ceiling,
    },
    Check {
        id: "policy-credentials",
        severity: Severity::Critical,
        wants: "no policy of a role lets it assume roles, get other credentials or change IAM",
        gains: "a session outlives its lease, as another role or with keys that it makes for itself",
        fix: PERMISSIONS,
        run: policy_credentials,
    },
    Check {
        id: "policy-narrow",
        severity: Severity::Low,
        wants: "each role may do all that its scopes have",
        gains: "nothing; calls of leases are refused",
        fix: PERMISSIONS,
        run: policy_narrow,
    },
    Check {
        id: "policy-no-probe",
        severity: Severity::Medium,
        wants: "each role may call what the broker's probe of a stop calls",
        gains: "nobody sees whether a stop is in effect: a session is taken for stopped, or for live, without proof",
        fix: PERMISSIONS,
        run: policy_no_probe,
    },
    Check {
        id: "stop-allows",
        severity: Severity::Critical,
        wants: "the policy that stops sessions denies, and allows nothing",
        gains: "whoever wrote it gave the role rights where nobody looks",
        fix: "delete the inline policy; the broker writes it anew. Find out who wrote it: only the revoker may",
        run: stop_allows,
    },
    Check {
        id: "boundary-missing",
        severity: Severity::High,
        wants: "each role has a permissions boundary that can be read",
        gains: "who may attach a policy to the role gives its sessions anything",
        fix: BOUNDARY,
        run: boundary_missing,
    },
    Check {
        id: "boundary-credentials",
        severity: Severity::High,
        wants: "each boundary explicitly denies `sts:AssumeRole*`, other new credentials, and IAM",
        gains: "a role elsewhere that trusts this one by name lets its sessions in: an explicit denial is all that stops that",
        fix: BOUNDARY,
        run: |ground| boundary_denies(ground, &[NO_CREDENTIALS], "other credentials and IAM"),
    },
    Check {
        id: "boundary-environment",
        severity: Severity::High,
        wants: "each boundary explicitly denies what is outside its role's account and environment",
        gains: "a resource policy that names the role or its session opens another environment to it",
        fix: BOUNDARY,
        run: |ground| {
            boundary_denies(
                ground,
                &[THIS_ACCOUNT, THIS_ENVIRONMENT],
                "what is outside its environment",
            )
        },
    },
    Check {
        id: "boundary-home",
        severity: Severity::High,
        wants: "each boundary explicitly denies the broker's own",
        gains: "a session that changes the broker's roles, log or database decides about every other lease",
        fix: BOUNDARY,
        run: |ground| boundary_denies(ground, &[NOT_OWN], "the broker's own"),
    },
    Check {
        id: "boundary-wide",
        severity: Severity::Medium,
        wants: "no boundary allows services that no scope of its role is about",
        gains: "a policy that somebody attaches to the role works in those services too",
        fix: BOUNDARY,
        run: boundary_wide,
    },
    Check {
        id: "backup-reach",
        severity: Severity::Critical,
        wants: "no role but those of backup scopes may do anything to what is backup",
        gains: "one session destroys data and its backups: the accident that there are backups for",
        fix: PERMISSIONS,
        run: backup_reach,
    },
    Check {
        id: "environment-mixed",
        severity: Severity::Medium,
        wants: "the scopes that use a role are of one environment",
        gains: "the milder environment's leases are minted from a role that may do more",
        fix: "give each environment a role of its own",
        run: environment_mixed,
    },
];

fn account_unread(ground: &Ground<'_>) -> Vec<Found> {
    let accounts = ground.estate.cloud.accounts.iter();
    let missing = unread(accounts.map(|(id, it)| (format!("account {id}"), it)));
    // That nobody could ask is no smaller matter here.
    let at_least = |it: Found| match it.severity {
        Some(Severity::Low) => it.at(Severity::High),
        _ => it,
    };
    missing.into_iter().map(at_least).collect()
}

fn role_missing(ground: &Ground<'_>) -> Vec<Found> {
    let missing =
        ground.roles.iter().filter(|it| it.live.is_none() && ground.could_see(it.role.arn));
    missing.map(|it| found(it.role.arn, "scopes use it, and it is not there")).collect()
}

/// What `wrong` says of each principal that a role's trust policy lets in.
fn each_principal(
    ground: &Ground<'_>,
    wrong: impl Fn(&Ground<'_>, &Principal) -> Option<String>,
) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let statements = live.trust.iter().flat_map(Document::allows);
        let mut whats: Vec<_> = statements
            .flat_map(|it| &it.principals)
            .filter_map(|principal| wrong(ground, principal))
            .collect();
        whats.sort();
        whats.dedup();
        all.extend(whats.into_iter().map(|it| found(lease.role.arn, it)));
    }
    all
}

fn trust_other(ground: &Ground<'_>, principal: &Principal) -> Option<String> {
    match principal {
        Principal::Everybody => None,
        Principal::Other(kind, name) => Some(format!("its trust policy lets {kind} {name} in")),
        Principal::Aws(name) => {
            let own = *name == ground.config.settings.aws.minter.arn;
            if own || is_deleted(name) || leased(ground, principal).is_some() {
                None
            } else if name.ends_with(":root") || !name.contains(':') {
                Some(format!(
                    "its trust policy lets {name} in: everybody there whom IAM lets assume roles"
                ))
            } else {
                Some(format!("its trust policy lets {name} in"))
            }
        }
    }
}

fn trust_deleted(_: &Ground<'_>, principal: &Principal) -> Option<String> {
    match principal {
        Principal::Aws(name) if is_deleted(name) => {
            Some(format!("its trust policy names {name}, who was deleted"))
        }
        _ => None,
    }
}

/// IAM writes the unique id where there was a name.
fn is_deleted(name: &str) -> bool {
    ["AIDA", "AROA"].iter().any(|it| name.starts_with(it))
}

/// The role of leases that a principal is, or is a session of.
fn leased(ground: &Ground<'_>, principal: &Principal) -> Option<String> {
    let Principal::Aws(name) = principal else { return None };
    let roles = ground.roles.iter().find(|it| names(name, it));
    roles.map(|it| it.role.arn.to_owned())
}

/// Whether `text` names a role of leases, a session of it, or it by its unique id.
pub(super) fn names(text: &str, lease: &LeaseRole<'_>) -> bool {
    let session = format!(":sts::{}:assumed-role/{}/", lease.role.account, lease.role.name());
    text == lease.role.arn
        || text.contains(&session)
        || lease.live.is_some_and(|it| !it.id.is_empty() && text.starts_with(&it.id))
}

fn role_chains(ground: &Ground<'_>) -> Vec<Found> {
    let others =
        ground.identities().filter(|it| ground.roles.iter().all(|own| own.role.arn != it.arn));
    let mut all = Vec::new();
    for other in others {
        let statements = other.trust.iter().flat_map(Document::allows);
        for principal in statements.flat_map(|it| &it.principals) {
            if let Some(role) = leased(ground, principal) {
                all.push(found(&other.arn, format!("its trust policy lets sessions of {role} in")));
            }
        }
    }
    all
}

/// The statements of a trust policy that let the minter in.
fn admissions<'a>(ground: &Ground<'_>, live: &'a Identity) -> Vec<&'a Statement> {
    let minter = Principal::Aws(ground.config.settings.aws.minter.arn.clone());
    let statements = live.trust.iter().flat_map(Document::allows);
    let assumes =
        |it: &&Statement| it.principals.contains(&minter) && it.actions.overlaps("sts:assumerole");
    statements.filter(assumes).collect()
}

fn trust_no_minter(ground: &Ground<'_>) -> Vec<Found> {
    let minter = Principal::Aws(ground.config.settings.aws.minter.arn.clone());
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let statements: Vec<_> = live.trust.iter().flat_map(Document::allows).collect();
        let lets = |action: &str| {
            statements
                .iter()
                .any(|it| it.principals.contains(&minter) && it.actions.contains(action))
        };
        let lacks: Vec<_> =
            SESSION_ACTIONS.into_iter().filter(|it| !lets(&it.to_lowercase())).collect();
        if !lacks.is_empty() {
            let what = format!("its trust policy does not let the minter {}", lacks.join(", "));
            all.push(found(lease.role.arn, what));
        }
    }
    all
}

/// The roles of which a statement that lets the minter in is wrong.
fn each_admission(
    ground: &Ground<'_>,
    wrong: impl Fn(&LeaseRole<'_>, &Statement) -> bool,
    what: &str,
) -> Vec<Found> {
    let roles = ground
        .live_roles()
        .filter(|(lease, live)| admissions(ground, live).into_iter().any(|it| wrong(lease, it)));
    roles.map(|(lease, _)| found(lease.role.arn, format!("its trust policy {what}"))).collect()
}

fn no_external_id(lease: &LeaseRole<'_>, statement: &Statement) -> bool {
    let Some(ids) = lease.role.external_ids() else { return false };
    !statement.demands("sts:externalid", |value, like| {
        ids.contains(value) && !(like && value.contains(['*', '?']))
    })
}

fn trust_actions(ground: &Ground<'_>) -> Vec<Found> {
    let own = SESSION_ACTIONS.map(str::to_lowercase);
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let statements = live.trust.iter().flat_map(Document::allows);
        let more = statements.into_iter().find(|it| !it.actions.is_within(&own));
        if let Some(more) = more {
            all.push(found(lease.role.arn, format!("its trust policy allows {}", more.actions)));
        }
    }
    all
}

fn session_duration(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let most = i32::try_from(lease.longest_session_seconds).unwrap_or(i32::MAX);
        if let Some(seconds) = live.longest_session_seconds.filter(|it| most < *it) {
            all.push(found(lease.role.arn, format!("its sessions may last {seconds} s")));
        }
    }
    all
}

/// A role's policies but the one that stops its sessions.
fn granting(live: &Identity) -> impl Iterator<Item = &Policy> {
    live.policies.iter().filter(|it| it.arn.is_some() || !is_stop(&it.name))
}

fn policy_beyond_ceiling(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        for policy in granting(live) {
            let beyond =
                policy.document.allows().find_map(|it| Document::beyond(it, &lease.permissions));
            if let Some((action, resource)) = beyond {
                let what = format!(
                    "its policy {} allows {action} on {resource}, or without a condition of the scopes",
                    policy.name
                );
                all.push(found(lease.role.arn, what));
            }
        }
    }
    all
}

fn policy_credentials(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let denials = lease.boundary.denies().filter(|it| it.sid == NO_CREDENTIALS);
        let actions: Vec<_> = denials.flat_map(|it| it.actions.patterns()).collect();
        for policy in granting(live) {
            // What allows everything is beyond the ceiling; this is about what was meant.
            let on_iam = |it: &&Statement| {
                ["arn:aws:iam:*", "arn:aws:sts:*"].iter().any(|arn| it.resources.overlaps(arn))
            };
            let statements =
                policy.document.allows().filter(on_iam).filter(|it| !it.actions.contains("*"));
            let hit = statements
                .flat_map(|it| actions.iter().filter(|action| it.actions.overlaps(action)))
                .next();
            if let Some(action) = hit {
                let what = format!("its policy {} allows something of {action}", policy.name);
                all.push(found(lease.role.arn, what));
            }
        }
    }
    all
}

fn policy_narrow(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let lacks =
            lease.permissions.allows().flat_map(Statement::pairs).find(|(action, resource)| {
                let granted = granting(live).any(|it| it.document.may_allow(action, resource));
                !granted && *action != PROBE_ACTION.to_lowercase()
            });
        if let Some((action, resource)) = lacks {
            all.push(found(lease.role.arn, format!("it may not {action} on {resource}")));
        }
    }
    all
}

fn policy_no_probe(ground: &Ground<'_>) -> Vec<Found> {
    let action = PROBE_ACTION.to_lowercase();
    let without = ground.live_roles().filter(|(_, live)| !live.may(&action, "*"));
    without.map(|(lease, _)| found(lease.role.arn, format!("it may not {PROBE_ACTION}"))).collect()
}

fn stop_allows(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        for policy in live.policies.iter().filter(|it| it.arn.is_none() && is_stop(&it.name)) {
            if policy.document.allows().next().is_some() {
                all.push(found(
                    lease.role.arn,
                    format!("its policy {} allows something", policy.name),
                ));
            }
        }
    }
    all
}

fn boundary_missing(ground: &Ground<'_>) -> Vec<Found> {
    let without = ground.live_roles().filter(|(_, live)| live.boundary.is_none());
    without.map(|(lease, _)| found(lease.role.arn, "it has no permissions boundary")).collect()
}

fn boundary_denies(ground: &Ground<'_>, names: &[&str], what: &str) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let Some(boundary) = &live.boundary else { continue };
        let mut wanted = lease.boundary.denies().filter(|it| names.contains(&it.sid.as_str()));
        if wanted.any(|it| !boundary.document.denies_all_of(it)) {
            let what = format!("its boundary {} does not deny all of {what}", boundary.name);
            all.push(found(lease.role.arn, what));
        }
    }
    all
}

fn boundary_wide(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (lease, live) in ground.live_roles() {
        let Some(boundary) = &live.boundary else { continue };
        let beyond =
            boundary.document.allows().find_map(|it| Document::beyond(it, &lease.boundary));
        if let Some((action, resource)) = beyond {
            let what = format!("its boundary {} allows {action} on {resource}", boundary.name);
            all.push(found(lease.role.arn, what));
        }
    }
    all
}

fn backup_reach(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    let others = ground.live_roles().filter(|(it, _)| it.role.environment() != Environment::Backup);
    for (lease, live) in others {
        let patterns = ground.config.catalogue.environments().patterns(lease.role.account);
        for (backup, _) in patterns.filter(|(_, it)| *it == Environment::Backup) {
            let action = format!("{}:*", backup.service());
            if live.may(&action, backup.as_str()) {
                all.push(found(lease.role.arn, format!("it may do something to {backup}")));
            }
        }
    }
    all
}

fn environment_mixed(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for lease in &ground.roles {
        let mut environments: Vec<_> = lease.role.scopes.iter().map(|it| it.environment).collect();
        environments.sort();
        environments.dedup();
        if 1 < environments.len() {
            let words: Vec<_> = environments.iter().map(ToString::to_string).collect();
            all.push(found(lease.role.arn, format!("its scopes are {}", words.join(" and "))));
        }
    }
    all
}
