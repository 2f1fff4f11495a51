//! From a request to the exact `AssumeRole` input. Contained in the scope's ceiling, or refused; never trimmed. Pure.

use std::collections::BTreeMap;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::arn::{Arn, ArnError};
use crate::catalogue::{Action, SHORTEST_SESSION, Scope};
use crate::config::Span;
use crate::lease::LeaseId;
use crate::statement::{AssumeRole, SessionPolicy, sha256_hex};
use crate::wire::LeaseRequest;

/// `API_AssumeRole`, `Policy`: at most 2,048 characters.
const MAX_POLICY_CHARS: usize = 2048;
const MAX_WORDS: usize = 1000;
const MAX_SCOPE_NAME: usize = 64;
const MAX_SIGNED_ITEMS: usize = 20;
/// Beyond this nothing could fit the session policy; bounds what we look at.
const MAX_ITEMS: usize = 100;

/// The human and the machine that a lease is for, as its session tags name them.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    pub agent: &'a str,
    pub sponsor: &'a str,
    pub task: &'a str,
}

/// What a request comes to: contained in its scope, and compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowed {
    pub actions: Vec<Action>,
    pub resources: Vec<Arn>,
    pub window: Duration,
    pub assume_role: AssumeRole,
}

/// The first thing that does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarrowError {
    #[error("{0:?} is not among the scope's actions")]
    Action(String),
    #[error("{0} is not within the scope's resources")]
    Resource(Arn),
    #[error(transparent)]
    Arn(#[from] ArnError),
    #[error("{0} was given as an empty list; leave it out for all of the scope's, or name some")]
    Empty(&'static str),
    #[error("at most {limit} {what} fit one request")]
    TooMany { what: &'static str, limit: usize },
    #[error("a {0} lease names its exact actions and resources")]
    NotNamed(crate::lease::Tier),
    #[error("{0} has a wildcard; a signed lease names exact ARNs")]
    NotExact(Arn),
    #[error("a signed lease needs a {0}")]
    Missing(&'static str),
    #[error("{what}: at most {limit} characters")]
    TooLong { what: &'static str, limit: usize },
    #[error("{what}: control characters cannot be part of it")]
    Control { what: &'static str },
    #[error("{0:?} is not a task: use letters, digits and `_.:/=+@-`, at most 128")]
    Task(String),
    #[error("the window must be between {} and {}", Span(*shortest), Span(*longest))]
    Window { shortest: Duration, longest: Duration },
    #[error(
        "the session policy would take {0} characters, and AWS takes {MAX_POLICY_CHARS}; name fewer or shorter ARNs, or ask for two leases"
    )]
    PolicyTooLong(usize),
}

/// Narrows `scope` to what `request` asks, for `holder`, as lease `id` that begins at `now`.
pub fn narrow(
    scope: &Scope,
    request: &LeaseRequest,
    holder: Holder<'_>,
    id: LeaseId,
    now: OffsetDateTime,
) -> Result<Narrowed, NarrowError> {
    check_request(request, holder.task)?;
    check_signable(scope, request)?;
    let actions = narrow_actions(scope, request.actions.as_deref())?;
    let resources = narrow_resources(scope, request.resources.as_deref())?;
    let window = request.ttl_seconds.map_or(SHORTEST_SESSION, |it| Duration::seconds(it.into()));
    if window < SHORTEST_SESSION || scope.max_ttl < window {
        return Err(NarrowError::Window { shortest: SHORTEST_SESSION, longest: scope.max_ttl });
    }
    // A signed lease's session begins when it is claimed, which nobody knows yet; STS ends it after its duration.
    let ends_at = scope.tier.is_unsigned().then(|| now + window);
    let policy = session_policy(scope, &actions, &resources, ends_at);
    let chars = policy.chars().count();
    if MAX_POLICY_CHARS < chars {
        return Err(NarrowError::PolicyTooLong(chars));
    }
    let tags = BTreeMap::from([
        ("broker:agent".to_owned(), holder.agent.to_owned()),
        ("broker:scope".to_owned(), scope.name.clone()),
        ("broker:sponsor".to_owned(), holder.sponsor.to_owned()),
        ("broker:task".to_owned(), holder.task.to_owned()),
    ]);
    let assume_role = AssumeRole {
        role_arn: scope.role_arn.clone(),
        external_id: scope.external_id.clone(),
        policy_sha256: sha256_hex(policy.as_bytes()),
        policy,
        duration_seconds: Span(scope.session_length(window)).seconds(),
        tags,
        source_identity: id.to_string(),
    };
    Ok(Narrowed { actions, resources, window, assume_role })
}

/// Checks what is true of any request, whatever its scope: lengths, and letters that nothing of ours can carry.
/// Before anything of it is recorded.
pub fn check_request(request: &LeaseRequest, task: &str) -> Result<(), NarrowError> {
    let task_letter = |it: char| it.is_ascii_alphanumeric() || "_.:/=+@-".contains(it);
    if !(1..=128).contains(&task.len()) || !task.chars().all(task_letter) {
        return Err(NarrowError::Task(task.to_owned()));
    }
    for (what, text) in [("reason", &request.reason), ("rollback", &request.rollback)] {
        let text = text.as_deref().unwrap_or_default();
        if MAX_WORDS < text.chars().count() {
            return Err(NarrowError::TooLong { what, limit: MAX_WORDS });
        }
        if text.contains('\0') {
            return Err(NarrowError::Control { what });
        }
    }
    for (what, list) in [("actions", &request.actions), ("resources", &request.resources)] {
        let list = list.as_deref().unwrap_or_default();
        if MAX_ITEMS < list.len() {
            return Err(NarrowError::TooMany { what, limit: MAX_ITEMS });
        }
        check_names(what, list, MAX_POLICY_CHARS)?;
    }
    check_names("scope", std::slice::from_ref(&request.scope), MAX_SCOPE_NAME)
}

fn check_names(what: &'static str, names: &[String], limit: usize) -> Result<(), NarrowError> {
    for name in names {
        if limit < name.len() {
            return Err(NarrowError::TooLong { what, limit });
        }
        if name.chars().any(char::is_control) {
            return Err(NarrowError::Control { what });
        }
    }
    Ok(())
}

/// What a signer must be given.
fn check_signable(scope: &Scope, request: &LeaseRequest) -> Result<(), NarrowError> {
    for (what, text) in [("reason", &request.reason), ("rollback", &request.rollback)] {
        if !scope.tier.is_unsigned() && text.as_deref().unwrap_or_default().trim().is_empty() {
            return Err(NarrowError::Missing(what));
        }
    }
    Ok(())
}

fn narrow_actions(scope: &Scope, asked: Option<&[String]>) -> Result<Vec<Action>, NarrowError> {
    let Some(asked) = check_list(scope, "actions", asked)? else {
        return Ok(scope.actions.clone());
    };
    let find = |name: &String| {
        let within = scope.actions.iter().find(|it| it.name.eq_ignore_ascii_case(name));
        within.cloned().ok_or_else(|| NarrowError::Action(name.clone()))
    };
    let mut actions = asked.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    actions.sort();
    actions.dedup();
    Ok(actions)
}

fn narrow_resources(scope: &Scope, asked: Option<&[String]>) -> Result<Vec<Arn>, NarrowError> {
    let Some(asked) = check_list(scope, "resources", asked)? else {
        return Ok(scope.resources.clone());
    };
    let mut resources = Vec::with_capacity(asked.len());
    for text in asked {
        let arn = Arn::parse(text)?;
        if !scope.resources.iter().any(|it| it.contains(&arn)) {
            return Err(NarrowError::Resource(arn));
        }
        if !scope.tier.is_unsigned() && !arn.is_exact() {
            return Err(NarrowError::NotExact(arn));
        }
        resources.push(arn);
    }
    resources.sort();
    resources.dedup();
    Ok(resources)
}

/// `None` is the whole ceiling, which only an unsigned lease may have.
fn check_list<'a>(
    scope: &Scope,
    what: &'static str,
    asked: Option<&'a [String]>,
) -> Result<Option<&'a [String]>, NarrowError> {
    let signed = !scope.tier.is_unsigned();
    let limit = if signed { MAX_SIGNED_ITEMS } else { MAX_ITEMS };
    match asked {
        None if signed => Err(NarrowError::NotNamed(scope.tier)),
        Some([]) => Err(NarrowError::Empty(what)),
        Some(list) if limit < list.len() => Err(NarrowError::TooMany { what, limit }),
        list => Ok(list),
    }
}

/// The session policy as it is sent.
fn session_policy(
    scope: &Scope,
    actions: &[Action],
    resources: &[Arn],
    ends_at: Option<OffsetDateTime>,
) -> String {
    let ends_at = ends_at.map(|it| {
        let whole = it.replace_nanosecond(0).expect("zero is a nanosecond");
        whole.format(&Rfc3339).expect("a year of four digits")
    });
    let actions = actions.iter().map(|it| it.name.to_owned()).collect();
    let resources = resources.iter().map(ToString::to_string).collect();
    SessionPolicy::new(actions, resources, &scope.account, ends_at).text()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::catalogue::tests::{SCOPES, load};

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00:00.5 UTC);
    const HOLDER: Holder<'static> = Holder { agent: "demo-agent", sponsor: "alice", task: "T-1" };

    fn ask(scope: &str, actions: Option<&[&str]>, resources: Option<&[&str]>) -> LeaseRequest {
        let owned = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect();
        LeaseRequest {
            scope: scope.into(),
            reason: Some("because".into()),
            rollback: Some("undo".into()),
            actions: actions.map(owned),
            resources: resources.map(owned),
            ..LeaseRequest::default()
        }
    }

    fn run(request: &LeaseRequest) -> Result<Narrowed, NarrowError> {
        let catalogue = load(SCOPES).unwrap();
        narrow(catalogue.scope(&request.scope).unwrap(), request, HOLDER, LeaseId(Uuid::nil()), NOW)
    }

    #[test]
    fn an_unsigned_request_may_have_the_whole_ceiling_until_its_window_ends() {
        let narrowed = run(&ask("staging-rw", None, None)).unwrap();
        assert_eq!(
            narrowed.assume_role.policy,
            r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:DeleteObject","s3:GetObject","s3:ListBucket","s3:PutObject"],"Resource":["arn:aws:s3:::staging-app","arn:aws:s3:::staging-app/*"],"Condition":{"DateLessThan":{"aws:CurrentTime":"2026-01-01T12:15:00Z"},"StringEquals":{"aws:ResourceAccount":"111122223333"}}}]}"#
        );
        assert_eq!(narrowed.assume_role.duration_seconds, 900);
        assert_eq!(narrowed.assume_role.tags["broker:sponsor"], "alice");
    }

    #[test]
    fn order_case_and_repetition_change_nothing() {
        let one = ask(
            "staging-rw",
            Some(&["s3:GetObject", "s3:PutObject"]),
            Some(&["arn:aws:s3:::staging-app/a"]),
        );
        let two = ask(
            "staging-rw",
            Some(&["S3:putobject", "s3:GetObject", "s3:PutObject"]),
            Some(&["arn:aws:s3:::staging-app/a", "arn:aws:s3:::staging-app/a"]),
        );
        assert_eq!(run(&one).unwrap(), run(&two).unwrap());
    }

    #[test]
    fn what_is_not_in_the_ceiling_is_refused_by_name() {
        let resource = |text: &str| run(&ask("staging-rw", None, Some(&[text]))).unwrap_err();
        for outside in [
            "arn:aws:s3:::prod-app/x",
            "arn:aws:s3:::staging-app2",
            "arn:aws:s3:::*",
            "arn:aws:s3:::staging-ap?/x",
        ] {
            assert_eq!(resource(outside), NarrowError::Resource(Arn::parse(outside).unwrap()));
        }
        assert!(matches!(resource("*"), NarrowError::Arn(_)));
        let action = |text: &str| run(&ask("staging-rw", Some(&[text]), None)).unwrap_err();
        for outside in ["s3:PutBucketPolicy", "s3:*", "*", "s3:GetObject ", "s3:Get\u{41e}bject"] {
            assert_eq!(action(outside), NarrowError::Action(outside.into()));
        }
        assert_eq!(
            run(&ask("staging-rw", Some(&[]), None)).unwrap_err(),
            NarrowError::Empty("actions")
        );
        assert_eq!(
            run(&ask("staging-rw", None, Some(&[]))).unwrap_err(),
            NarrowError::Empty("resources")
        );
    }

    #[test]
    fn a_signed_request_is_exact_and_says_why_and_how_to_undo_it() {
        let exact = ask("prod-rw", Some(&["s3:PutObject"]), Some(&["arn:aws:s3:::prod-app/x"]));
        let narrowed = run(&exact).unwrap();
        assert!(!narrowed.assume_role.policy.contains("CurrentTime"));
        assert!(matches!(
            run(&ask("prod-rw", None, Some(&["arn:aws:s3:::prod-app/x"]))),
            Err(NarrowError::NotNamed(_))
        ));
        assert!(matches!(
            run(&ask("prod-rw", Some(&["s3:PutObject"]), None)),
            Err(NarrowError::NotNamed(_))
        ));
        let wild = ask("prod-rw", Some(&["s3:PutObject"]), Some(&["arn:aws:s3:::prod-app/*"]));
        assert!(matches!(run(&wild), Err(NarrowError::NotExact(_))));
        let blank = LeaseRequest { rollback: Some("  ".into()), ..exact.clone() };
        assert_eq!(run(&blank), Err(NarrowError::Missing("rollback")));
        let silent = LeaseRequest { reason: None, ..exact };
        assert_eq!(run(&silent), Err(NarrowError::Missing("reason")));
    }

    #[test]
    fn limits_are_refusals_that_say_the_limit() {
        let window = |seconds| {
            run(&LeaseRequest { ttl_seconds: Some(seconds), ..ask("staging-rw", None, None) })
        };
        assert!(window(8 * 3600).is_ok());
        for wrong in [0, 899, 8 * 3600 + 1, u32::MAX] {
            assert!(window(wrong).unwrap_err().to_string().contains("between 15m and 8h"));
        }
        let names: Vec<_> =
            (0..100).map(|at| format!("arn:aws:s3:::staging-app/{at:030}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert!(matches!(
            run(&ask("staging-rw", None, Some(&names))),
            Err(NarrowError::PolicyTooLong(_))
        ));
        let wordy =
            LeaseRequest { reason: Some("\u{f6}".repeat(1001)), ..ask("staging-rw", None, None) };
        assert_eq!(run(&wordy), Err(NarrowError::TooLong { what: "reason", limit: 1000 }));
    }
}
