//! STS as it answers, clocks, access keys, and files on this host.

use time::Duration;

use super::estate::Answer;
use super::{Check, Found, Ground, Severity, found, unread};
use crate::config::Principal;

const YEAR: Duration = Duration::days(365);
const LONGEST_ACCESS_KEY: Duration = Duration::days(90);
/// Beyond this AWS and we disagree about when a lease ends; far beyond, STS refuses our signature.
const SKEW_SECONDS: u64 = 5;
const BAD_SKEW_SECONDS: u64 = 60;
const ROTATE: &str =
    "make a second key, put it where brokerd reads it, restart, and delete the old one";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "sts-unread",
        severity: Severity::Critical,
        wants: "STS answers the doctor and the minter: critical if it refuses, high if it is away, low if their credentials are not here",
        gains: "nothing by itself; leases cannot be minted, or nobody looks after the account",
        fix: "see the profiles and credentials that broker.toml names, and that STS is reached",
        run: sts_unread,
    },
    Check {
        id: "minter-other",
        severity: Severity::Critical,
        wants: "the minter's and the doctor's credentials are those of the principals that broker.toml names",
        gains: "the broker mints as somebody whose rights nobody checked",
        fix: "put the right credentials where broker.toml says, or correct the ARN there",
        run: minter_other,
    },
    Check {
        id: "sts-endpoint",
        severity: Severity::High,
        wants: "outside of dev mode STS is asked at AWS's own host",
        gains: "whoever is there sees each request's policy and hands out credentials of their own making",
        fix: "unset AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_STS, and endpoint_url in AWS's configuration files",
        run: sts_endpoint,
    },
    Check {
        id: "sts-region",
        severity: Severity::Medium,
        wants: "STS is asked in the Region that broker.toml names, not globally or elsewhere",
        gains: "nothing by itself; an outage elsewhere stops leases, and CloudTrail has them where nobody looks",
        fix: "set aws.region, and unset AWS_USE_FIPS_ENDPOINT, AWS_STS_REGIONAL_ENDPOINTS and endpoint overrides",
        run: sts_region,
    },
    Check {
        id: "aws-clock",
        severity: Severity::High,
        wants: "AWS's clock and ours agree: high beyond 60 s, medium beyond 5 s",
        gains: "leases that AWS lets go on after they ended here",
        fix: "let this host's clock be set by NTP",
        run: aws_clock,
    },
    Check {
        id: "keys-unread",
        severity: Severity::Medium,
        wants: "the doctor can list the access keys of the broker's own principals",
        gains: "a key too many, or too old, stays unseen",
        fix: "give the doctor's principal the policy that `brokerd check --role doctor` prints",
        run: keys_unread,
    },
    Check {
        id: "access-key-old",
        severity: Severity::Medium,
        wants: "no active access key of the minter, the revoker or the doctor is older than 90 days",
        gains: "a key that leaked at any time since then still works",
        fix: ROTATE,
        run: access_key_old,
    },
    Check {
        id: "access-key-two",
        severity: Severity::Low,
        wants: "none of the principals has two active access keys",
        gains: "a key that nobody uses is missed by nobody",
        fix: "delete the one that is not in use",
        run: access_key_two,
    },
    Check {
        id: "file-open",
        severity: Severity::Critical,
        wants: "the instance key, those of before, the log's key and the file of AWS credentials are for their owner alone",
        gains: "anybody on this host makes tokens of any agent, signs another story, or is the minter",
        fix: "chmod 600 FILE, then make new keys: others could read these",
        run: file_open,
    },
    Check {
        id: "log-anchors",
        severity: Severity::High,
        wants: "the log has an anchor: broker.toml names one in table [log]",
        gains: "who has the database and the log's key rewrites what happened; and what destroys is never issued",
        fix: "add a folder that another machine keeps, or a bucket with Object Lock (docs/log.md, Anchors)",
        run: log_anchors,
    },
    Check {
        id: "instance-key-old",
        severity: Severity::Low,
        wants: "the instance key is not older than a year",
        gains: "a copy that was taken at any time since then still makes tokens",
        fix: "make a new one, and keep the old one in former_instance_keys until its tokens have ended (docs/workloads.md)",
        run: instance_key_old,
    },
    Check {
        id: "key-software",
        severity: Severity::High,
        wants: "outside of dev mode nobody has a key that a program can use by itself",
        gains: "who has that person's files signs as them, without a touch, wherever `software` counts",
        fix: "have the person enrol a hardware key, and revoke this one: `brokerd person revoke`",
        run: key_software,
    },
    Check {
        id: "key-is-instance",
        severity: Severity::Critical,
        wants: "the instance key is nobody's key",
        gains: "who has the server's file signs as that person",
        fix: "revoke the person's key, and make a new instance key",
        run: key_is_instance,
    },
    Check {
        id: "key-old",
        severity: Severity::Low,
        wants: "no person's key is older than a year",
        gains: "a key that was lost or copied since then may still count",
        fix: "ask the person whether they still have it; enrol a new one and revoke it",
        run: key_old,
    },
];

fn sts_unread(ground: &Ground<'_>) -> Vec<Found> {
    let cloud = &ground.estate.cloud;
    let aws = &ground.config.settings.aws;
    unread([(aws.minter.arn.clone(), &cloud.minter), (aws.doctor.arn.clone(), &cloud.doctor)])
}

/// Those who answered, each with who it should be.
fn answers<'a>(ground: &Ground<'a>) -> Vec<(&'a Principal, &'a Answer)> {
    let (cloud, aws) = (&ground.estate.cloud, &ground.config.settings.aws);
    let both = [(&aws.minter, &cloud.minter), (&aws.doctor, &cloud.doctor)];
    both.into_iter().filter_map(|(who, it)| Some((who, it.as_ref().ok()?))).collect()
}

fn minter_other(ground: &Ground<'_>) -> Vec<Found> {
    let other = answers(ground).into_iter().filter(|(who, it)| !is_same(&who.arn, &it.arn));
    other
        .map(|(who, it)| found(&who.arn, format!("its credentials are those of {}", it.arn)))
        .collect()
}

/// Whether STS's name for a caller is that of the user or role `arn`. A session does not tell its role's path.
fn is_same(arn: &str, caller: &str) -> bool {
    let Some((head, role)) = arn.split_once(":role/") else { return arn == caller };
    let name = role.rsplit('/').next().unwrap_or_default();
    let account = head.rsplit(':').next().unwrap_or_default();
    caller.starts_with(&format!("arn:aws:sts::{account}:assumed-role/{name}/"))
}

/// The Region in the name of a host of AWS's own: empty for the global one.
fn region_of(host: &str) -> Option<&str> {
    let name = host.strip_suffix(".amazonaws.com")?;
    match name.split_once('.') {
        None => (name == "sts").then_some(""),
        Some(("sts" | "sts-fips", region)) => Some(region),
        Some(_) => None,
    }
}

fn sts_endpoint(ground: &Ground<'_>) -> Vec<Found> {
    if ground.dev() {
        return Vec::new();
    }
    let other = answers(ground).into_iter().find(|(_, it)| region_of(&it.host).is_none());
    other.into_iter().map(|(_, it)| found("STS", format!("{} answers for it", it.host))).collect()
}

fn sts_region(ground: &Ground<'_>) -> Vec<Found> {
    let wanted = ground.config.settings.aws.region.as_str();
    let other = answers(ground)
        .into_iter()
        .find(|(_, it)| region_of(&it.host).is_some_and(|region| region != wanted));
    other
        .into_iter()
        .map(|(_, it)| found("STS", format!("{} was asked, not {wanted}", it.host)))
        .collect()
}

/// What is to be said of clocks that are so far apart.
pub(super) fn skew(subject: &str, ahead_seconds: i64) -> Option<Found> {
    let apart = ahead_seconds.unsigned_abs();
    let severity = if BAD_SKEW_SECONDS < apart { Severity::High } else { Severity::Medium };
    (SKEW_SECONDS < apart).then(|| {
        found(subject, format!("its clock is {ahead_seconds} s ahead of ours")).at(severity)
    })
}

fn aws_clock(ground: &Ground<'_>) -> Vec<Found> {
    let ahead = answers(ground).into_iter().find_map(|(_, it)| it.ahead);
    ahead.and_then(|it| skew("AWS", it)).into_iter().collect()
}

fn keys_unread(ground: &Ground<'_>) -> Vec<Found> {
    // Of whom is not there, there is nothing to list.
    let missing = |arn: &str| ground.could_see(arn) && ground.identity(arn).is_none();
    let keys = ground.estate.cloud.access_keys.iter().filter(|(arn, _)| !missing(arn));
    let parts = keys.map(|(arn, it)| (arn.clone(), it));
    unread(parts).into_iter().map(|it| it.at(Severity::Medium)).collect()
}

fn access_key_old(ground: &Ground<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for (arn, keys) in &ground.estate.cloud.access_keys {
        let keys = keys.iter().flatten().filter(|it| it.active);
        for key in keys.filter(|it| it.made_at + LONGEST_ACCESS_KEY < ground.estate.now) {
            let days = (ground.estate.now - key.made_at).whole_days();
            all.push(found(arn, format!("its access key {} is {days} days old", key.id)));
        }
    }
    all
}

fn access_key_two(ground: &Ground<'_>) -> Vec<Found> {
    let keys = ground.estate.cloud.access_keys.iter();
    let two = keys.filter(|(_, it)| 1 < it.iter().flatten().filter(|it| it.active).count());
    two.map(|(arn, _)| found(arn, "it has two active access keys")).collect()
}

fn file_open(ground: &Ground<'_>) -> Vec<Found> {
    let open = ground.estate.files.iter().filter_map(|it| {
        let mode = it.mode.filter(|mode| mode & 0o077 != 0)?;
        let what = format!("{}: its mode is {mode:03o}", it.what);
        Some(found(it.path.display().to_string(), what))
    });
    open.collect()
}

fn log_anchors(ground: &Ground<'_>) -> Vec<Found> {
    let none = ground.config.settings.log.anchors.is_empty();
    none.then(|| found("the log", "no checkpoint of it is kept elsewhere")).into_iter().collect()
}

fn instance_key_old(ground: &Ground<'_>) -> Vec<Found> {
    let keys =
        ground.estate.files.iter().filter(|it| it.path == ground.config.settings.instance_key);
    let old = keys.filter(|it| it.written_at.is_some_and(|at| at + YEAR < ground.estate.now));
    old.map(|it| found(it.path.display().to_string(), "it was written more than a year ago"))
        .collect()
}

fn key_software(ground: &Ground<'_>) -> Vec<Found> {
    if ground.config.settings.counts_software_keys() {
        return Vec::new();
    }
    let keys = ground.estate.database.iter().flat_map(|it| &it.keys);
    let software = keys.filter(|it| it.assurance == "software");
    software
        .map(|it| found(&it.fingerprint, format!("{}'s key is kept in software", it.person)))
        .collect()
}

fn key_is_instance(ground: &Ground<'_>) -> Vec<Found> {
    let Some(own) = &ground.estate.instance_key else { return Vec::new() };
    let keys = ground.estate.database.iter().flat_map(|it| &it.keys);
    let same = keys.filter(|it| it.fingerprint == *own);
    same.map(|it| found(&it.fingerprint, format!("{}'s key is the instance's own", it.person)))
        .collect()
}

fn key_old(ground: &Ground<'_>) -> Vec<Found> {
    let keys = ground.estate.database.iter().flat_map(|it| &it.keys);
    let old = keys.filter(|it| it.enrolled_at + YEAR < ground.estate.now);
    old.map(|it| {
        found(&it.fingerprint, format!("{}'s key was enrolled more than a year ago", it.person))
    })
    .collect()
}
