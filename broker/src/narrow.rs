//! From a request to the exact `AssumeRole` input. Contained in the scope's ceiling, or refused; never trimmed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::actions;
use crate::arn::{Arn, ArnError, minimal};
use crate::catalogue::{SHORTEST_SESSION, Scope, ScopeAction};
use crate::config::Span;
use crate::lease::{Field, LeaseId, Tier};
use crate::statement::{ActionTerms, AssumeRole, session_policy, sha256_hex};
use crate::wire::LeaseRequest;

/// `API_AssumeRole`, `Policy`: at most 2,048 characters.
const MAX_POLICY_CHARS: usize = 2048;
const MAX_WORDS: usize = 1000;
const MAX_SCOPE_NAME: usize = 64;
/// Beyond these nothing could fit the session policy; they bound what we look at. Comparing ARNs takes the square of their
/// length: with all that a body can hold, more than a second.
const MAX_ITEMS: usize = 100;
const MAX_LIST_CHARS: usize = 4 * MAX_POLICY_CHARS;

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
    /// Sorted; at least one.
    pub actions: Vec<ActionTerms>,
    /// Sorted; at least one. `*` first, if there is an action that AWS grants on nothing else.
    pub resources: Vec<String>,
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
    #[error("AWS cannot grant {action} on any of the resources asked for; it takes {takes}")]
    Ungrantable { action: &'static str, takes: String },
    #[error(
        "AWS can grant none of the actions asked for on {0}; leave it out, or name an action that takes it"
    )]
    Untaken(Arn),
    #[error("at most {limit} {what} fit one request of this scope")]
    TooMany { what: &'static str, limit: usize },
    #[error("a {0} lease names its exact actions and resources")]
    NotNamed(Tier),
    #[error("{0} has a wildcard; a signed lease names exact ARNs")]
    NotExact(Arn),
    #[error("{0:?} has a wildcard; a signed lease names exact actions")]
    NotExactAction(String),
    #[error("{0:?} does not name one service; write it out, as in `s3:Get*`")]
    NoService(String),
    #[error("this scope needs a request to say its {0}")]
    Missing(Field),
    #[error("{what}: at most {limit} characters")]
    TooLong { what: &'static str, limit: usize },
    #[error("{what}: control characters cannot be part of it")]
    Control { what: &'static str },
    #[error("{0:?} is not a task: use letters, digits and `_.:/=+@-`, at most 128")]
    Task(String),
    #[error("the window must be between {} and {}", Span(*shortest), Span(*longest))]
    Window { shortest: Duration, longest: Duration },
    #[error(transparent)]
    PolicyTooLong(#[from] PolicyTooLong),
}

/// The session policy has no room for what was asked. It is never widened to fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the session policy would take {chars} characters, and AWS takes {MAX_POLICY_CHARS}: {} too many. The {actions} actions take {action_chars}, the {resources} resources {resource_chars}. Name only those that the task needs{longest}, or ask for two leases",
    chars - MAX_POLICY_CHARS
)]
pub struct PolicyTooLong {
    pub chars: usize,
    pub actions: usize,
    pub action_chars: usize,
    pub resources: usize,
    pub resource_chars: usize,
    longest: String,
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
    check_required(scope, request)?;
    let (actions, resources) = fit_together(scope, request)?;
    let window = request.ttl_seconds.map_or(SHORTEST_SESSION, |it| Duration::seconds(it.into()));
    if window < SHORTEST_SESSION || scope.max_ttl < window {
        return Err(NarrowError::Window { shortest: SHORTEST_SESSION, longest: scope.max_ttl });
    }
    let actions: Vec<_> = actions.into_iter().map(ScopeAction::terms).collect();
    let mut resources: Vec<_> = resources.into_iter().map(|it| it.as_str().to_owned()).collect();
    if actions.iter().any(|it| it.any_resource) && !resources.iter().any(|it| it == "*") {
        resources.insert(0, "*".to_owned());
    }
    // A signed lease's session begins when it is claimed, which nobody knows yet; STS ends it after its duration.
    let ends_at = scope.tier.is_unsigned().then(|| now + window);
    let policy = compile(scope, &actions, &resources, ends_at)?;
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
        if MAX_ITEMS < named(list) {
            return Err(NarrowError::TooMany { what, limit: MAX_ITEMS });
        }
        if MAX_LIST_CHARS < list.iter().map(String::len).sum() {
            return Err(NarrowError::TooLong { what, limit: MAX_LIST_CHARS });
        }
        check_names(what, list, MAX_POLICY_CHARS)?;
    }
    check_names("scope", std::slice::from_ref(&request.scope), MAX_SCOPE_NAME)
}

/// How many a list names. `*` stands for what AWS grants on nothing else, or is refused.
fn named(list: &[String]) -> usize {
    list.iter().filter(|it| *it != "*").count()
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

/// What a signer must be given, and what the scope requires besides.
fn check_required(scope: &Scope, request: &LeaseRequest) -> Result<(), NarrowError> {
    let blank = |text: &Option<String>| text.as_deref().unwrap_or_default().trim().is_empty();
    let missing = |field: &Field| match field {
        Field::Reason => blank(&request.reason),
        Field::Rollback => blank(&request.rollback),
        Field::Actions => request.actions.is_none(),
        Field::Resources => request.resources.is_none(),
    };
    let signed: &[Field] =
        if scope.tier.is_unsigned() { &[] } else { &[Field::Reason, Field::Rollback] };
    match signed.iter().chain(&scope.require).find(|it| missing(it)) {
        Some(field) => Err(NarrowError::Missing(*field)),
        None => Ok(()),
    }
}

/// The scope's actions and resources that are asked for, each of which AWS can grant on one of the others.
///
/// What is named must fit. Of what is left out, and so means the whole ceiling, only what fits is taken.
fn fit_together<'a>(
    scope: &'a Scope,
    request: &LeaseRequest,
) -> Result<(Vec<&'a ScopeAction>, Vec<Arn>), NarrowError> {
    let signed = !scope.tier.is_unsigned();
    check_list("actions", request.actions.as_deref(), scope.max_actions)?;
    check_list("resources", request.resources.as_deref(), scope.max_resources)?;
    // Each action, and whether it was spelled out: then it has to fit.
    let asked: Vec<(&ScopeAction, bool)> = match &request.actions {
        Some(texts) => named_actions(scope, texts, signed)?,
        None if signed => return Err(NarrowError::NotNamed(scope.tier)),
        None => scope.actions.iter().map(|it| (it, false)).collect(),
    };
    let takes_resources = asked.iter().any(|(it, _)| it.action.takes_resources());
    let arns = match &request.resources {
        Some(texts) => Some(named_resources(scope, texts, &asked, signed)?),
        None if signed && takes_resources => return Err(NarrowError::NotNamed(scope.tier)),
        None => None,
    };

    let mut actions = Vec::with_capacity(asked.len());
    let mut left_out = None;
    for (it, literal) in asked {
        let fits = |arns: &[Arn]| arns.iter().any(|arn| it.action.fits(arn));
        // All of the scope's actions fit some of the scope's ARNs.
        if !it.action.takes_resources() || arns.as_deref().is_none_or(fits) {
            actions.push(it);
        } else if literal {
            return Err(ungrantable(it));
        } else {
            left_out = Some(it);
        }
    }
    if let (true, Some(it)) = (actions.is_empty(), left_out) {
        return Err(ungrantable(it));
    }
    let taken = |arn: &&Arn| actions.iter().any(|it| it.action.fits(arn));
    let arns = match arns {
        None => scope.resources.iter().filter(taken).cloned().collect(),
        Some(arns) => match arns.iter().find(|it| !taken(it)) {
            Some(arn) => return Err(NarrowError::Untaken(arn.clone())),
            None => arns,
        },
    };
    // What is left out, or named by wildcard, is not more than what may be named.
    for (what, number, limit) in [
        ("actions", actions.len(), scope.max_actions),
        ("resources", arns.len(), scope.max_resources),
    ] {
        if usize::from(limit) < number {
            return Err(NarrowError::TooMany { what, limit: limit.into() });
        }
    }
    Ok((actions, arns))
}

fn ungrantable(it: &ScopeAction) -> NarrowError {
    NarrowError::Ungrantable { action: it.name(), takes: it.action.takes() }
}

/// The actions named, with whether each was spelled out; each must be in the scope. A wildcard stands for what it
/// stands for in the scope itself: what AWS can grant on the scope's ARNs.
fn named_actions<'a>(
    scope: &'a Scope,
    texts: &[String],
    signed: bool,
) -> Result<Vec<(&'a ScopeAction, bool)>, NarrowError> {
    let mut named = BTreeMap::new();
    // What a wildcard met and passed by, so that a hundred wildcards look at it once.
    let mut elsewhere = BTreeSet::new();
    for text in texts {
        let outside = || NarrowError::Action(text.clone());
        if !text.contains(['*', '?']) {
            let it = scope.action(text).ok_or_else(outside)?;
            named.insert(it.name(), (it, true));
            continue;
        }
        if signed {
            return Err(NarrowError::NotExactAction(text.clone()));
        }
        if text.split_once(':').is_none_or(|(service, _)| service.contains(['*', '?'])) {
            return Err(NarrowError::NoService(text.clone()));
        }
        let mut found = false;
        for action in actions::matching(text) {
            match scope.action(action.name) {
                Some(it) => {
                    found = true;
                    named.entry(it.name()).or_insert((it, false));
                }
                None if elsewhere.contains(action.name) => {}
                None if action.is_grantable_on(&scope.resources) => {
                    return Err(NarrowError::Action(format!("{} (of {text})", action.name)));
                }
                None => {
                    elsewhere.insert(action.name);
                }
            }
        }
        if !found {
            return Err(outside());
        }
    }
    Ok(named.into_values().collect())
}

/// The ARNs named, without those that others contain; each must be within the scope's.
fn named_resources(
    scope: &Scope,
    texts: &[String],
    asked: &[(&ScopeAction, bool)],
    signed: bool,
) -> Result<Vec<Arn>, NarrowError> {
    let mut arns = BTreeSet::new();
    let on_anything = asked.iter().any(|(it, _)| !it.action.takes_resources());
    let alone = texts.iter().all(|it| it == "*");
    for text in texts {
        let arn = Arn::parse(text)?;
        let contained = scope.resources.iter().any(|it| it.contains(&arn));
        // Beside ARNs, it says what an action that AWS grants on `*` only says by itself.
        if arn.is_any() && on_anything && (signed || !alone || !contained) {
            continue;
        }
        if !contained {
            return Err(NarrowError::Resource(arn));
        }
        if signed && !arn.is_exact() {
            return Err(NarrowError::NotExact(arn));
        }
        arns.insert(arn);
    }
    Ok(minimal(arns.into_iter().collect()))
}

fn check_list(what: &'static str, asked: Option<&[String]>, limit: u16) -> Result<(), NarrowError> {
    let limit = usize::from(limit);
    match asked {
        Some([]) => Err(NarrowError::Empty(what)),
        Some(list) if limit < named(list) => Err(NarrowError::TooMany { what, limit }),
        _ => Ok(()),
    }
}

/// The session policy as it is sent.
fn compile(
    scope: &Scope,
    actions: &[ActionTerms],
    resources: &[String],
    ends_at: Option<OffsetDateTime>,
) -> Result<String, PolicyTooLong> {
    let ends_at = ends_at.map(|it| {
        let whole = it.replace_nanosecond(0).expect("zero is a nanosecond");
        whole.format(&Rfc3339).expect("a year of four digits")
    });
    let Scope { account, conditions, .. } = scope;
    let policy = session_policy(actions, resources, account, conditions, ends_at.as_deref());
    let chars = policy.chars().count();
    if chars <= MAX_POLICY_CHARS {
        return Ok(policy);
    }
    let names: Vec<_> = actions.iter().map(|it| it.action.as_str()).collect();
    let arns: Vec<_> = resources.iter().map(String::as_str).collect();
    Err(PolicyTooLong {
        chars,
        actions: names.len(),
        action_chars: total_chars(&names),
        resources: arns.len(),
        resource_chars: total_chars(&arns),
        longest: suggestion(&names, &arns, chars - MAX_POLICY_CHARS),
    })
}

/// With quotes and commas.
fn total_chars(list: &[&str]) -> usize {
    list.iter().map(|it| it.chars().count() + 3).sum()
}

/// The fewest items, the longest first, that make room for `excess` characters; nothing when they are too many to say.
fn suggestion(actions: &[&str], resources: &[&str], excess: usize) -> String {
    const MOST: usize = 5;
    let longer = if total_chars(actions) < total_chars(resources) { resources } else { actions };
    let mut list = longer.to_vec();
    list.sort_by_key(|it| std::cmp::Reverse(it.len()));
    let mut room = 0;
    let enough = list.iter().take_while(|it| {
        let more = room < excess;
        room += it.chars().count() + 3;
        more
    });
    let drop: Vec<_> = enough.copied().collect();
    if room < excess || drop.len() == list.len() || MOST < drop.len() {
        return String::new();
    }
    format!(" (without {} it fits)", drop.join(" and "))
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
            r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:DeleteObject","s3:GetObject","s3:ListBucket","s3:PutObject"],"Resource":["arn:aws:s3:::staging-app","arn:aws:s3:::staging-app/*"],"Condition":{"DateLessThan":{"aws:CurrentTime":"2026-01-01T12:15:00Z"},"StringEquals":{"aws:RequestedRegion":"us-east-1","aws:ResourceAccount":"111122223333"}}}]}"#
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
        assert_eq!(resource("*"), NarrowError::Resource(Arn::any()));
        let action = |text: &str| run(&ask("staging-rw", Some(&[text]), None)).unwrap_err();
        for outside in
            ["s3:PutBucketPolicy", "s3:Nothing*", "", "s3:GetObject ", "s3:Get\u{41e}bject"]
        {
            assert_eq!(action(outside), NarrowError::Action(outside.into()));
        }
        for vague in ["*", "*:*", "s*", "s?:GetObject"] {
            assert_eq!(action(vague), NarrowError::NoService(vague.into()));
        }
        for outside in ["s3:*", "s3:*Object"] {
            assert!(
                matches!(action(outside), NarrowError::Action(it) if it.ends_with(&format!("(of {outside})")))
            );
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
        assert_eq!(run(&blank), Err(NarrowError::Missing(Field::Rollback)));
        let silent = LeaseRequest { reason: None, ..exact };
        assert_eq!(run(&silent), Err(NarrowError::Missing(Field::Reason)));
    }

    fn scope(more: &str) -> Scope {
        let (head, _) = SCOPES.split_once("[[scope]]").unwrap();
        let text = format!(
            "{head}[[scope]]\nname = \"s\"\ndescription = \"\"\naccount = \"111122223333\"\nregions = [\"us-east-1\", \"eu-west-1\"]\nrole = \"r\"\n{more}\n"
        );
        load(&text).unwrap().scope("s").unwrap().clone()
    }

    fn within(scope: &Scope, request: &LeaseRequest) -> Result<Narrowed, NarrowError> {
        narrow(scope, request, HOLDER, LeaseId(Uuid::nil()), NOW)
    }

    #[test]
    fn what_is_named_must_fit_and_of_what_is_left_out_only_what_fits_is_taken() {
        let object = "arn:aws:s3:::staging-app/a";
        let on_object = run(&ask("staging-rw", None, Some(&[object]))).unwrap();
        let names: Vec<_> = on_object.actions.iter().map(|it| it.action.as_str()).collect();
        assert_eq!(names, ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"]);
        let listing = run(&ask("staging-rw", Some(&["s3:ListBucket"]), None)).unwrap();
        assert_eq!(listing.resources, ["arn:aws:s3:::staging-app"]);
        let never = run(&ask("staging-rw", Some(&["s3:ListBucket"]), Some(&[object])));
        assert!(matches!(never, Err(NarrowError::Ungrantable { action: "s3:ListBucket", .. })));
        let bucket = "arn:aws:s3:::staging-app";
        let spare = run(&ask("staging-rw", Some(&["s3:GetObject"]), Some(&[bucket, object])));
        assert_eq!(spare, Err(NarrowError::Untaken(Arn::parse(bucket).unwrap())));
    }

    #[test]
    fn an_arn_within_another_is_left_out() {
        let asked = [
            "arn:aws:s3:::staging-app/*",
            "arn:aws:s3:::staging-app/a",
            "arn:aws:s3:::staging-app/b*",
        ];
        let narrowed = run(&ask("staging-rw", Some(&["s3:GetObject"]), Some(&asked))).unwrap();
        assert_eq!(narrowed.resources, ["arn:aws:s3:::staging-app/*"]);
    }

    #[test]
    fn a_wildcard_in_a_request_stands_for_actions_of_the_ceiling_or_is_refused() {
        let scope = scope(
            "actions = [\"s3:ListBucket\", \"s3:ListBucketVersions\"]\nresources = [\"arn:aws:s3:::staging-app\"]",
        );
        let two =
            within(&scope, &ask("s", Some(&["s3:listbucketv*", "s3:ListBucket"]), None)).unwrap();
        assert_eq!(two.actions.len(), 2);
        let more = within(&scope, &ask("s", Some(&["s3:ListBucket*"]), None));
        assert!(matches!(more, Err(NarrowError::Action(_))), "{more:?}");
        let wild = ask("prod-rw", Some(&["s3:PutObjec?"]), Some(&["arn:aws:s3:::prod-app/x"]));
        assert_eq!(run(&wild), Err(NarrowError::NotExactAction("s3:PutObjec?".into())));
    }

    #[test]
    fn what_aws_grants_on_nothing_but_everything_has_a_statement_of_its_own() {
        let scope = scope(
            "actions = [\"s3:ListAllMyBuckets\", \"sqs:ListQueues\", \"s3:ListBucket\"]\nresources = [\"arn:aws:s3:::staging-app\"]",
        );
        let all = within(&scope, &ask("s", None, None)).unwrap();
        assert_eq!(all.resources, ["*", "arn:aws:s3:::staging-app"]);
        let policy: serde_json::Value = serde_json::from_str(&all.assume_role.policy).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        let of = |action: &str| {
            let found = statements
                .iter()
                .find(|it| it["Action"].as_array().unwrap().iter().any(|it| it == action));
            found.unwrap().clone()
        };
        assert_eq!(
            of("s3:ListBucket")["Resource"],
            serde_json::json!(["arn:aws:s3:::staging-app"])
        );
        assert_eq!(of("sqs:ListQueues")["Resource"], serde_json::json!(["*"]));
        let condition = &of("s3:ListBucket")["Condition"];
        assert_eq!(
            condition["StringEquals"]["aws:RequestedRegion"],
            serde_json::json!(["us-east-1", "eu-west-1"])
        );
        // It is a global action, and its requests go to one Region whatever the caller's.
        assert!(!of("s3:ListAllMyBuckets").to_string().contains("RequestedRegion"));
        let again = ask("s", Some(&["s3:ListAllMyBuckets", "sqs:ListQueues"]), Some(&["*"]));
        assert_eq!(within(&scope, &again).unwrap().resources, ["*"]);
    }

    #[test]
    fn the_ceilings_conditions_are_always_carried_over() {
        let scope = scope(
            "actions = [\"s3:ListBucket\", \"iam:GetAccountSummary\"]\nresources = [\"arn:aws:s3:::staging-app\"]\nsecure_transport = true\n\
             source_networks = [\"203.0.113.0/24\"]\nconditions = [{ operator = \"StringLike\", key = \"aws:PrincipalTag/x\", values = [\"a*\"] }]",
        );
        let narrowed = within(&scope, &ask("s", None, None)).unwrap();
        let policy: serde_json::Value = serde_json::from_str(&narrowed.assume_role.policy).unwrap();
        let (allow, deny): (Vec<_>, Vec<_>) =
            policy["Statement"].as_array().unwrap().iter().partition(|it| it["Effect"] == "Allow");
        assert_eq!((allow.len(), deny.len()), (2, 1));
        for statement in allow {
            let condition = &statement["Condition"];
            assert_eq!(condition["Bool"]["aws:SecureTransport"], "true");
            assert_eq!(condition["StringLike"]["aws:PrincipalTag/x"], "a*");
            assert_eq!(condition["DateLessThan"]["aws:CurrentTime"], "2026-01-01T12:15:00Z");
            let global = statement["Action"] == serde_json::json!(["iam:GetAccountSummary"]);
            assert_eq!(condition["StringEquals"]["aws:RequestedRegion"].is_null(), global);
        }
        assert_eq!(
            deny[0]["Condition"],
            serde_json::json!({
                "BoolIfExists": { "aws:ViaAWSService": "false" },
                "NotIpAddress": { "aws:SourceIp": "203.0.113.0/24" },
            })
        );
    }

    #[test]
    fn a_scope_says_what_a_request_must_say_and_how_much_it_may() {
        let scope = scope(
            "actions = [\"s3:ListBucket\"]\nresources = [\"arn:aws:s3:::staging-*\"]\nrequire = [\"reason\", \"resources\"]\nmax_resources = 1",
        );
        let named = ask("s", None, Some(&["arn:aws:s3:::staging-a"]));
        assert!(within(&scope, &named).is_ok());
        let silent = LeaseRequest { reason: None, ..named.clone() };
        assert_eq!(within(&scope, &silent), Err(NarrowError::Missing(Field::Reason)));
        assert_eq!(
            within(&scope, &ask("s", None, None)),
            Err(NarrowError::Missing(Field::Resources))
        );
        let two = ask("s", None, Some(&["arn:aws:s3:::staging-a", "arn:aws:s3:::staging-b"]));
        assert_eq!(within(&scope, &two), Err(NarrowError::TooMany { what: "resources", limit: 1 }));
    }

    #[test]
    fn what_was_granted_is_granted_again_when_it_is_claimed() {
        let staging = "resources = [\"arn:aws:s3:::staging-app\"]";
        let signed = "signers = { groups = [\"ops\"] }";
        let queue = "arn:aws:sqs:us-east-1:111122223333:q";
        for (more, resources) in [
            (format!("actions = [\"s3:ListAllMyBuckets\", \"s3:ListBucket\"]\n{staging}"), None),
            (
                "actions = [\"sqs:ListQueues\", \"sqs:GetQueueAttributes\"]\nresources = [\"*\"]"
                    .into(),
                None,
            ),
            (
                "actions = [\"sqs:ListQueues\", \"sqs:GetQueueAttributes\"]\nresources = [\"*\"]"
                    .into(),
                Some(queue),
            ),
            (
                format!(
                    "actions = [\"sqs:ListQueues\", \"sqs:SendMessage\"]\nresources = [\"*\"]\n{signed}"
                ),
                Some(queue),
            ),
            (
                format!(
                    "actions = [\"sqs:ListQueues\", \"sqs:SendMessage\"]\nresources = [\"{queue}\"]\nmax_resources = 1\n{signed}"
                ),
                Some(queue),
            ),
        ] {
            let scope = scope(&more);
            let actions: Vec<_> = scope.actions.iter().map(ScopeAction::name).collect();
            let asked = resources.map(|it| [it]);
            let first = within(&scope, &ask("s", Some(&actions), asked.as_ref().map(|it| &it[..])))
                .unwrap();
            let stored: Vec<_> = first.resources.iter().map(String::as_str).collect();
            let again = within(&scope, &ask("s", Some(&actions), Some(&stored))).unwrap();
            assert_eq!(again, first, "{more}");
        }
    }

    #[test]
    fn leaving_out_or_a_wildcard_is_not_more_than_may_be_named() {
        let more = "actions = [\"s3:ListBucket\", \"s3:ListBucketVersions\"]\nresources = [\"arn:aws:s3:::staging-a\", \"arn:aws:s3:::staging-b\"]";
        let few = scope(&format!("{more}\nmax_actions = 1"));
        for actions in [
            None,
            Some(&["s3:ListBucketV*", "s3:ListBucket"][..]),
            Some(&["s3:listbuc?et*s", "s3:ListBucket"][..]),
        ] {
            let refused = within(&few, &ask("s", actions, None));
            assert_eq!(refused, Err(NarrowError::TooMany { what: "actions", limit: 1 }));
        }
        let few = scope(&format!("{more}\nmax_resources = 1"));
        let refused = within(&few, &ask("s", None, None));
        assert_eq!(refused, Err(NarrowError::TooMany { what: "resources", limit: 1 }));
    }

    #[test]
    fn what_could_not_fit_is_refused_before_it_is_compared() {
        let long: Vec<_> = (0..30)
            .map(|it| format!("arn:aws:s3:::staging-app/*{}{it}", "a".repeat(1900)))
            .collect();
        let long: Vec<_> = long.iter().map(String::as_str).collect();
        let refused = run(&ask("staging-rw", None, Some(&long)));
        assert_eq!(refused, Err(NarrowError::TooLong { what: "resources", limit: MAX_LIST_CHARS }));
    }

    #[test]
    fn a_policy_that_is_too_long_says_what_to_leave_out() {
        let long = format!("arn:aws:s3:::staging-app/{}", "x".repeat(900));
        let longer = format!("arn:aws:s3:::staging-app/{}", "y".repeat(1000));
        let asked = ["arn:aws:s3:::staging-app/a", &long, &longer];
        let error = run(&ask("staging-rw", Some(&["s3:GetObject"]), Some(&asked))).unwrap_err();
        let NarrowError::PolicyTooLong(error) = error else { panic!("{error}") };
        let words = error.to_string();
        assert!(words.contains(&format!("(without {longer} it fits)")), "{words}");
        let fits = ["arn:aws:s3:::staging-app/a", &long];
        assert!(run(&ask("staging-rw", Some(&["s3:GetObject"]), Some(&fits))).is_ok());
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
