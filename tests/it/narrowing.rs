//! What narrowing and tiers promise of every request and every scope, not only of those that somebody thought of; and
//! the tricks that somebody did think of.

use std::sync::OnceLock;

use axum::http::StatusCode;
use broker::arn::ArnError;
use broker::catalogue::environment::{Home, HomeFile};
use broker::catalogue::{Catalogue, Scope};
use broker::lease::{LeaseId, Tier};
use broker::narrow::{Holder, NarrowError, Narrowed, narrow};
use broker::wire::LeaseRequest;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use serde_json::{Value, json};
use tests::TestBroker;
use tests::corpus::{self, Ceiling, Dice, NOW, covers};
use tests::oracle::{Call, Case, Verdict, evaluate, simulate};
use tests::sts::FakeSts;
use uuid::Uuid;

const HOLDER: Holder<'static> = Holder { agent: "demo-agent", sponsor: "alice", task: "T-1" };

fn load(text: &str) -> Result<Catalogue, String> {
    let home: HomeFile = toml::from_str("accounts = [\"999999999999\"]").unwrap();
    let file = toml::from_str(text).map_err(|error| error.to_string())?;
    Catalogue::build(file, text, Home::build(&home, &[]).unwrap(), false)
}

fn catalogue() -> &'static Catalogue {
    static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
    CATALOGUE.get_or_init(|| load(corpus::SCOPES).expect("the corpus's scopes load"))
}

fn scope(name: &str) -> &'static Scope {
    catalogue().scope(name).expect("a scope of the corpus")
}

fn run(request: &LeaseRequest) -> Result<Narrowed, NarrowError> {
    narrow(scope(&request.scope), request, HOLDER, LeaseId(Uuid::nil()), NOW)
}

fn policy(narrowed: &Narrowed) -> &str {
    &narrowed.assume_role.policy
}

fn ask(scope: &str, actions: &[&str], resources: &[&str]) -> LeaseRequest {
    let owned = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    LeaseRequest {
        scope: scope.into(),
        reason: Some("because".into()),
        rollback: Some("undo".into()),
        actions: (!actions.is_empty()).then(|| owned(actions)),
        resources: (!resources.is_empty()).then(|| owned(resources)),
        ..LeaseRequest::default()
    }
}

/// A scope of the corpus, and what requests of it are put together from.
#[derive(Debug)]
struct Ground {
    ceiling: Ceiling,
    actions: Vec<String>,
    resources: Vec<String>,
    /// An action and a resource that it is granted on, if requests may have wildcards.
    unsigned: Vec<(String, String)>,
    /// Calls in the scope and beside it.
    calls: Vec<Call>,
}

fn grounds() -> &'static [Ground] {
    static GROUNDS: OnceLock<Vec<Ground>> = OnceLock::new();
    GROUNDS.get_or_init(|| corpus::ceilings().into_iter().map(Ground::new).collect())
}

impl Ground {
    fn new(ceiling: Ceiling) -> Self {
        let mut dice = Dice::new(7);
        let (mut actions, mut resources, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..12 {
            let asked = corpus::within(&mut dice, &ceiling);
            let questions = corpus::questions(&mut dice, &asked);
            calls.extend(questions.into_iter().map(|it| it.call));
            actions.extend(asked.request.actions.unwrap_or_default());
            resources.extend(asked.request.resources.unwrap_or_default());
        }
        for list in [&mut actions, &mut resources] {
            list.sort();
            list.dedup();
        }
        let mut ground = Self { ceiling, actions, resources, unsigned: Vec::new(), calls };
        if scope(&ground.ceiling.name).tier.is_unsigned() {
            ground.unsigned = ground.pairs().collect();
        }
        ground
    }

    /// Each action with each resource that it is granted on.
    fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        let all = self.actions.iter().flat_map(|action| {
            self.resources.iter().map(|resource| (action.clone(), resource.clone()))
        });
        all.filter(|(action, resource)| {
            run(&self.request(vec![action.clone()], vec![resource.clone()])).is_ok()
        })
    }

    fn request(&self, actions: Vec<String>, resources: Vec<String>) -> LeaseRequest {
        LeaseRequest {
            actions: Some(actions).filter(|it| !it.is_empty()),
            resources: Some(resources).filter(|it| !it.is_empty()),
            ..ask(&self.ceiling.name, &[], &[])
        }
    }

    /// Which of the calls a policy allows.
    fn allowed(&self, policy: &str) -> Vec<bool> {
        let verdicts = evaluate(&Case { session: policy, calls: &self.calls });
        verdicts.into_iter().map(|it| it == Verdict::Allowed).collect()
    }
}

/// Cases that count: those that are not granted do not.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 300,
        max_global_rejects: 6000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn a_ground() -> impl Strategy<Value = &'static Ground> {
    any::<Index>().prop_map(|it| it.get(grounds()))
}

/// A request that may or may not hang together.
fn a_request() -> impl Strategy<Value = (&'static Ground, Vec<String>, Vec<String>)> {
    a_ground().prop_flat_map(|it| {
        let (actions, resources) = (it.actions.clone(), it.resources.clone());
        let (most_actions, most_resources) = (actions.len().min(6), resources.len().min(6));
        (
            Just(it),
            subsequence(actions, 1..=most_actions),
            subsequence(resources, 0..=most_resources),
        )
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn who_asks_for_less_is_never_allowed_more(
        (ground, actions, resources) in a_request(), drop in any::<[Index; 2]>(),
    ) {
        let more = run(&ground.request(actions.clone(), resources.clone()));
        let fewer = |mut list: Vec<String>, at: &Index| {
            if 1 < list.len() {
                list.remove(at.index(list.len()));
            }
            list
        };
        let less = run(&ground.request(fewer(actions, &drop[0]), fewer(resources, &drop[1])));
        prop_assume!(more.is_ok() && less.is_ok());
        let (of_more, of_less) = (ground.allowed(policy(&more?)), ground.allowed(policy(&less?)));
        for ((more, less), call) in of_more.iter().zip(&of_less).zip(&ground.calls) {
            prop_assert!(*more || !less, "{call:?}");
        }
    }

    #[test]
    fn narrowing_what_was_narrowed_changes_nothing((ground, actions, resources) in a_request()) {
        let once = run(&ground.request(actions, resources));
        prop_assume!(once.is_ok());
        let once = once?;
        let actions = once.actions.iter().map(|it| it.action.clone()).collect();
        prop_assert_eq!(run(&ground.request(actions, once.resources.clone()))?, once);
    }

    #[test]
    fn order_repetition_and_case_change_nothing(
        (ground, actions, resources) in a_request(), (turn, twice) in any::<(Index, Index)>(),
    ) {
        let once = run(&ground.request(actions.clone(), resources.clone()));
        let stir = |mut list: Vec<String>| {
            if !list.is_empty() {
                let again = twice.get(&list).clone();
                list.push(again);
                let middle = turn.index(list.len());
                list.rotate_left(middle);
            }
            list
        };
        let actions = stir(actions).iter().map(|it| it.to_lowercase()).collect();
        let again = run(&ground.request(actions, stir(resources)));
        prop_assert_eq!(once.is_ok(), again.is_ok());
        prop_assume!(once.is_ok());
        prop_assert_eq!(once?, again?);
    }

    #[test]
    fn no_wildcard_of_a_request_reaches_outside_the_ceiling(
        (ground, pair) in (a_ground(), any::<Index>()),
        cuts in prop::collection::vec((0..24_usize, 0..4_usize, "[*?]{1,2}"), 1..3),
        fillings in prop::collection::vec("[a-z/:*?.-]{0,5}", 8),
    ) {
        prop_assume!(!ground.unsigned.is_empty());
        let (action, mut text) = pair.get(&ground.unsigned).clone();
        for (from_end, length, wild) in &cuts {
            let begin = text.len().saturating_sub(*from_end);
            let end = (begin + length).min(text.len());
            text.replace_range(begin..end, wild);
        }
        let narrowed = run(&ground.request(vec![action], vec![text.clone()]));
        prop_assume!(narrowed.is_ok());
        let narrowed = narrowed?;
        let mut fillings = fillings.iter().cycle();
        let mut instance = String::new();
        for letter in narrowed.resources[0].chars() {
            match letter {
                '*' => instance.push_str(&fillings.next().unwrap().replace(['*', '?'], "x")),
                '?' => instance.push('q'),
                letter => instance.push(letter),
            }
        }
        prop_assume!(covers(&text, &instance));
        let mut ceiling = ground.ceiling.resources().iter();
        prop_assert!(ceiling.any(|it| covers(it, &instance)), "{text} reaches {instance}");
    }
}

/// What scopes are put together from: actions of each class, and resources of each environment.
const ACTIONS: [&str; 14] = [
    "s3:ListBucket",
    "s3:GetObject",
    "s3:GetObject*",
    "s3:PutObject",
    "s3:PutObjectTagging",
    "s3:DeleteObject",
    "s3:PutLifecycleConfiguration",
    "sqs:GetQueueAttributes",
    "sqs:SendMessage",
    "sqs:PurgeQueue",
    "sqs:ReceiveMessage",
    "lambda:InvokeFunction",
    "secretsmanager:GetSecretValue",
    "ec2:DescribeInstances",
];
const RESOURCES: [&str; 14] = [
    "arn:aws:s3:::staging-a",
    "arn:aws:s3:::staging-a/*",
    "arn:aws:s3:::staging-a/b",
    "arn:aws:s3:::staging-*",
    "arn:aws:s3:::prod-a",
    "arn:aws:s3:::prod-a/b",
    "arn:aws:s3:::prod-a/*",
    "arn:aws:s3:::backup-a/*",
    "arn:aws:sqs:us-east-1:111122223333:staging-q",
    "arn:aws:sqs:us-east-1:111122223333:q*",
    "arn:aws:lambda:us-east-1:111122223333:function:staging-f",
    "arn:aws:lambda:us-east-1:111122223333:function:f",
    "arn:aws:secretsmanager:us-east-1:111122223333:secret:staging/s",
    "arn:aws:secretsmanager:us-east-1:111122223333:secret:s*",
];
const ENVIRONMENTS: &str = r#"
[accounts]
"111122223333" = "shop"
[environments.staging]
resources = ["arn:aws:s3:::staging-*", "arn:aws:sqs:*:*:staging-*", "arn:aws:lambda:*:*:function:staging-*", "arn:aws:secretsmanager:*:*:secret:staging/*"]
[environments.production]
resources = []
accounts = []
[environments.backup]
resources = ["arn:aws:s3:::backup-*"]
accounts = []
"#;

/// The tier that the scope has; `None` if there can be no such scope.
fn tier(environments: &str, actions: &[&str], resources: &[&str]) -> Option<Tier> {
    let text = format!(
        "{environments}\n[[scope]]\nname = \"s\"\ndescription = \"\"\naccount = \"111122223333\"\n\
         regions = [\"us-east-1\"]\nrole = \"r\"\nactions = {actions:?}\nresources = {resources:?}\n"
    );
    // Whether it wants signers is for the tier to say.
    let either =
        load(&text).or_else(|_| load(&format!("{text}signers = {{ groups = [\"ops\"] }}\n")));
    either.ok().map(|it| it.scope("s").expect("it loads").tier)
}

/// Each action with each resource that a scope of these two alone may have.
fn pairs() -> &'static [(&'static str, &'static str)] {
    static PAIRS: OnceLock<Vec<(&str, &str)>> = OnceLock::new();
    PAIRS.get_or_init(|| {
        let all = ACTIONS.iter().flat_map(|action| RESOURCES.map(|it| (*action, it)));
        all.filter(|(action, resource)| tier(ENVIRONMENTS, &[action], &[resource]).is_some())
            .collect()
    })
}

fn not_less(before: Option<Tier>, after: Option<Tier>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => before <= after,
        // What cannot be is not less.
        _ => true,
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_action_or_resource_that_is_added_lowers_a_tier(
        chosen in subsequence(pairs().to_vec(), 1..5), (action, resource) in any::<(Index, Index)>(),
    ) {
        let (actions, resources): (Vec<_>, Vec<_>) = chosen.into_iter().unzip();
        let before = tier(ENVIRONMENTS, &actions, &resources);
        prop_assume!(before.is_some());
        let more_actions = [actions.as_slice(), &[*action.get(&ACTIONS)]].concat();
        let more_resources = [resources.as_slice(), &[resource.get(pairs()).1]].concat();
        prop_assert!(not_less(before, tier(ENVIRONMENTS, &more_actions, &resources)));
        prop_assert!(not_less(before, tier(ENVIRONMENTS, &actions, &more_resources)));
        prop_assert!(not_less(before, tier(ENVIRONMENTS, &more_actions, &more_resources)));
    }

    #[test]
    fn nothing_that_is_added_to_a_strict_environment_lowers_a_tier(
        chosen in subsequence(pairs().to_vec(), 1..5), pattern in any::<Index>(),
        name in prop::sample::select(vec!["production", "backup"]),
    ) {
        let (actions, resources): (Vec<_>, Vec<_>) = chosen.into_iter().unzip();
        let before = tier(ENVIRONMENTS, &actions, &resources);
        prop_assume!(before.is_some());
        let (head, tail) = ENVIRONMENTS.split_once(&format!("[environments.{name}]")).unwrap();
        let owner = tail.replacen("accounts = []", "accounts = [\"111122223333\"]", 1);
        let owned = format!("{head}[environments.{name}]{owner}");
        prop_assert!(not_less(before, tier(&owned, &actions, &resources)));
        let reached = format!("resources = [\"{}\", ", pattern.get(&RESOURCES));
        let reached = tail.replacen("resources = [", &reached, 1);
        let reached = format!("{head}[environments.{name}]{reached}");
        prop_assert!(not_less(before, tier(&reached, &actions, &resources)));
    }
}

#[test]
fn the_properties_above_are_about_requests_that_are_granted_and_scopes_that_load() {
    let mut granted = 0;
    for ground in grounds() {
        let here = ground.pairs().count();
        assert!(
            0 < here || ground.resources.is_empty(),
            "nothing of {} is granted",
            ground.ceiling.name
        );
        granted += here;
        let whole = run(&ground.request(ground.actions.clone(), ground.resources.clone()));
        if let Ok(whole) = whole {
            assert!(ground.allowed(policy(&whole)).contains(&true), "{}", ground.ceiling.name);
        }
    }
    assert!(300 < granted, "{granted}");
    let tiers: Vec<_> =
        pairs().iter().map(|(action, it)| tier(ENVIRONMENTS, &[action], &[it])).collect();
    for wanted in [
        Tier::ReadOnly,
        Tier::StagingWrite,
        Tier::StagingSensitive,
        Tier::ProductionWrite,
        Tier::Destructive,
    ] {
        assert!(tiers.contains(&Some(wanted)), "{wanted}");
    }
}

/// A request of `staging-work`, which has `s3:GetObject` and `arn:aws:s3:::staging-app/*`.
fn action(text: &str) -> Result<Narrowed, NarrowError> {
    run(&ask("staging-work", &[text], &["arn:aws:s3:::staging-app/x"]))
}

fn resource(text: &str) -> Result<Narrowed, NarrowError> {
    run(&ask("staging-work", &["s3:GetObject"], &[text]))
}

#[test]
fn letters_that_look_like_others_are_others() {
    assert!(
        action("s3:GetObject").is_ok() && resource("arn:aws:s3:::staging-app/x").is_ok(),
        "the control"
    );
    for text in [
        "s3:Get\u{41e}bject",       // Cyrillic O
        "s3:GetObje\u{441}t",       // Cyrillic es
        "\u{455}3:GetObject",       // Cyrillic dze
        "s3\u{ff1a}GetObject",      // full-width colon
        "s3:GetObject\u{200b}",     // zero width space
        "s3:\u{202e}GetObject",     // right-to-left override
        "s3:GetObjec\u{74}\u{301}", // combining acute accent
        "s3:L\u{131}stBucket",      // dotless i
        "s3:L\u{130}stBucket",      // dotted I, which lower case makes an i and a dot
        " s3:GetObject",
        "s3: GetObject",
        "s3:GetObject\u{a0}",
    ] {
        let refused = action(text).unwrap_err();
        assert!(
            matches!(refused, NarrowError::Action(_) | NarrowError::Control { .. }),
            "{text}: {refused}"
        );
    }
    for text in [
        "arn:aws:s3:::st\u{430}ging-app/x",  // Cyrillic a
        "arn:aws:s3:::staging\u{2010}app/x", // hyphen that is no minus
        "arn:aws:s3:::staging\u{ad}app/x",   // soft hyphen, which Latin-1 has
        "arn:aws:s3:::staging-app\u{2215}x", // division slash
        "arn:aws:s3:::staging-app/x\u{200b}",
        "\u{feff}arn:aws:s3:::staging-app/x",
        "arn:aws:s3\u{a789}::staging-app/x", // a colon that is a letter
    ] {
        assert!(resource(text).is_err(), "{text}");
    }
}

#[test]
fn case_is_nothing_in_an_action_and_everything_in_an_arn() {
    let plain = action("s3:GetObject").unwrap();
    for text in ["S3:GETOBJECT", "s3:getobject", "S3:gETobJECT"] {
        assert_eq!(action(text).as_ref(), Ok(&plain), "{text}");
    }
    for text in [
        "arn:aws:s3:::STAGING-app/x",
        "arn:aws:s3:::Staging-app/x",
        "ARN:aws:s3:::staging-app/x",
        "arn:AWS:s3:::staging-app/x",
        "arn:aws:S3:::staging-app/x",
    ] {
        assert!(resource(text).is_err(), "{text}");
    }
    // A key is what it is, in its own case.
    let upper = resource("arn:aws:s3:::staging-app/X").unwrap();
    assert_eq!(upper.resources, ["arn:aws:s3:::staging-app/X"]);
}

#[test]
fn an_encoded_character_stays_what_is_written() {
    for text in
        ["s3:Get%4fbject", "s3%3aGetObject", "s3:GetObject%00", "s3:%2a", "s3:Get\\u004fbject"]
    {
        assert!(matches!(action(text), Err(NarrowError::Action(_))), "{text}");
    }
    for text in [
        "arn:aws:s3:::staging%2dapp/x",
        "arn:aws:s3:::staging-app%2fx",
        "arn:aws:s3:::%2a",
        "arn%3aaws:s3:::staging-app/x",
        "arn:aws:s3:::staging&#45;app/x",
    ] {
        assert!(resource(text).is_err(), "{text}");
    }
    // As (part of) an object's key it is a key of just that name, for us and for AWS.
    let dots = "arn:aws:s3:::staging-app/%2e%2e/x";
    let narrowed = resource(dots).unwrap();
    assert_eq!(narrowed.resources, [dots]);
    let questions =
        ["arn:aws:s3:::staging-app/%2e%2e/x", "arn:aws:s3:::staging-app/../x", "arn:aws:s3:::x"];
    let context = [
        ("aws:ResourceAccount", "111122223333"),
        ("aws:RequestedRegion", "us-east-1"),
        ("aws:CurrentTime", "2026-01-01T12:00:01Z"),
        ("aws:SecureTransport", "true"),
    ];
    let calls = questions.map(|resource| Call {
        action: "s3:GetObject".into(),
        resource: resource.into(),
        account: "111122223333".into(),
        context: context.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    });
    let case = Case { session: policy(&narrowed), calls: &calls[..2] };
    let expected = [Verdict::Allowed, Verdict::ImplicitlyDenied];
    assert_eq!(evaluate(&case), expected);
    assert_eq!(simulate(&[case]), [expected]);
}

#[test]
fn an_empty_list_is_neither_everything_nor_nothing() {
    for name in ["staging-work", "prod-objects"] {
        let whole = ask(name, &["s3:GetObject"], &["arn:aws:s3:::staging-app/x"]);
        let actions = LeaseRequest { actions: Some(vec![]), ..whole.clone() };
        assert!(matches!(run(&actions), Err(NarrowError::Empty("actions"))));
        let resources = LeaseRequest { resources: Some(vec![]), ..whole };
        assert!(matches!(run(&resources), Err(NarrowError::Empty("resources"))));
    }
    assert!(action("").is_err() && resource("").is_err() && action(":").is_err());
}

#[test]
fn a_wildcard_for_everything_is_refused_in_every_scope() {
    for ground in grounds() {
        let name = &ground.ceiling.name;
        for text in [
            "*",
            "*:*",
            "**",
            "?*",
            "*:Get*",
            "s3:*",
            "s*",
            "iam:*",
            "??:*",
            "*Object",
            "arn:aws:*",
        ] {
            assert!(run(&ask(name, &[text], &[])).is_err(), "{name} grants {text}");
        }
        for text in [
            "*",
            "**",
            "arn:*",
            "arn:aws:*",
            "arn:aws:*:*:*:*",
            "arn:*:*:*:*:*",
            "arn:aws:s3:::*",
            "arn:aws:*:::*",
        ] {
            let takers = ground
                .actions
                .iter()
                .filter(|it| scope(name).action(it).is_some_and(|it| it.action.takes_resources()));
            for action in takers {
                let answer = run(&ask(name, &[action], &[text]));
                assert!(answer.is_err(), "{name} grants {action} on {text}: {answer:?}");
            }
        }
    }
}

#[test]
fn a_wildcard_of_the_scope_may_be_asked_for_as_the_scope_has_it() {
    // With the ARNs left out and with them: it stands for what AWS can grant there, as it does in the scope.
    let objects = "arn:aws:s3:::staging-x/*";
    let whole = run(&ask("staging-data", &["s3:Get*"], &[])).unwrap();
    let here = run(&ask("staging-data", &["s3:Get*"], &[objects])).unwrap();
    for (narrowed, action) in [(&whole, "s3:GetBucketLocation"), (&here, "s3:GetObject")] {
        assert!(narrowed.actions.iter().any(|it| it.action == action));
        assert!(narrowed.actions.iter().all(|it| it.action.starts_with("s3:Get")));
    }
    assert!(!here.actions.iter().any(|it| it.action == "s3:GetBucketLocation"));
}

#[test]
fn another_partition_is_refused() {
    for text in [
        "arn:aws-cn:s3:::staging-app/x",
        "arn:aws-us-gov:s3:::staging-app/x",
        "arn:aws-iso:s3:::staging-app/x",
        "arn:*:s3:::staging-app/x",
        "arn:aw?:s3:::staging-app/x",
        "arn:aws*:s3:::staging-app/x",
        "arn::s3:::staging-app/x",
    ] {
        assert!(matches!(resource(text), Err(NarrowError::Arn(ArnError::Partition(_)))), "{text}");
    }
}

#[test]
fn another_account_is_refused_and_no_wildcard_hides_one() {
    for ground in grounds() {
        let account = ground.ceiling.account();
        let named = ground.resources.iter().filter(|it| it.contains(account));
        for arn in named {
            for other in ["999988887777", "*", "????????????", "1*", "", "aws"] {
                let arn = arn.replace(account, other);
                for action in &ground.actions {
                    let answer = run(&ask(&ground.ceiling.name, &[action], &[&arn]));
                    assert!(answer.is_err(), "{action} on {arn}: {answer:?}");
                }
            }
        }
    }
    // What is S3's has no account in its name: the policy has it instead.
    assert!(resource("arn:aws:s3::999988887777:staging-app/x").is_err());
    assert!(resource("arn:aws:s3::111122223333:staging-app/x").is_err());
    let condition = r#""aws:ResourceAccount":"111122223333""#;
    assert!(policy(&resource("arn:aws:s3:::staging-app/x").unwrap()).contains(condition));
}

#[test]
fn a_bucket_of_another_environment_is_never_staging_whatever_its_name_begins_with() {
    let ledger = ENVIRONMENTS.replace(
        "[environments.production]\nresources = []",
        "[environments.production]\nresources = [\"arn:aws:s3:::staging-ledger\", \"arn:aws:s3:::staging-ledger/*\"]",
    );
    let tier = |resource: &str| tier(&ledger, &["s3:PutObject"], &[resource]);
    assert_eq!(tier("arn:aws:s3:::staging-app/*"), Some(Tier::StagingWrite), "the control");
    for reaches_the_ledger in [
        "arn:aws:s3:::staging-ledger/2026",
        "arn:aws:s3:::staging-ledger/*",
        "arn:aws:s3:::staging-*",
        "arn:aws:s3:::staging-l*/x",
        "arn:aws:s3:::staging-?edger/x",
        "arn:aws:s3:::staging-*r/x",
    ] {
        assert_eq!(tier(reaches_the_ledger), Some(Tier::ProductionWrite), "{reaches_the_ledger}");
    }
    // And staging's scope does not contain what is not staging's.
    for text in [
        "arn:aws:s3:::staging-app-data/x",
        "arn:aws:s3:::prod-app/x",
        "arn:aws:s3:::staging-app.prod-app/x",
        "arn:aws:s3:::backup-app/x",
        "arn:aws:s3:::prod-staging-app/x",
    ] {
        assert!(matches!(resource(text), Err(NarrowError::Resource(_))), "{text}");
    }
}

#[test]
fn a_path_that_leads_elsewhere_is_refused() {
    for text in [
        "arn:aws:s3:::staging-app/../prod-app/x",
        "arn:aws:s3:::staging-app/./x",
        "arn:aws:s3:::staging-app/a/..",
        "arn:aws:s3:::staging-app/..",
        "arn:aws:s3:::staging-app/.",
        "arn:aws:s3:::../prod-app/x",
    ] {
        let refused = resource(text).unwrap_err();
        assert!(matches!(refused, NarrowError::Arn(ArnError::Dots(_))), "{text}: {refused}");
    }
    // Three are a name.
    assert!(resource("arn:aws:s3:::staging-app/.../x").is_ok());
}

#[test]
fn no_policy_says_what_is_not_allowed_by_saying_what_is_not_meant() {
    let mut dice = Dice::new(11);
    for ceiling in corpus::ceilings().iter().cycle().take(340) {
        let asked = corpus::within(&mut dice, ceiling);
        let policy: Value = serde_json::from_str(policy(&run(&asked.request).unwrap())).unwrap();
        for statement in policy["Statement"].as_array().unwrap() {
            let keys: Vec<_> = statement.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["Effect", "Action", "Resource", "Condition"], "{statement}");
            let allows = statement["Effect"] == "Allow";
            assert!(allows || statement["Effect"] == "Deny", "{statement}");
            let wild = statement["Action"]
                .as_array()
                .unwrap()
                .iter()
                .any(|it| it.as_str().unwrap().contains('*'));
            assert!(!(allows && wild), "an action by wildcard: {statement}");
        }
    }
    for text in
        ["NotAction", "!s3:GetObject", "-s3:GetObject", "^s3:*", "{\"NotAction\":\"s3:PutObject\"}"]
    {
        assert!(action(text).is_err(), "{text}");
    }
    let file =
        corpus::SCOPES.replacen("actions = ", "not_actions = [\"s3:PutObject\"]\nactions = ", 1);
    assert!(load(&file).unwrap_err().contains("not_actions"));
}

#[tokio::test]
async fn a_request_that_says_what_it_does_not_want_is_refused() {
    let sts = FakeSts::start().await;
    let broker = Box::pin(TestBroker::fake(&sts)).await;
    for field in ["not_actions", "not_resources", "NotAction", "NotResource", "Action", "policy"] {
        let body = json!({ "scope": "staging-rw", field: ["s3:PutObject"] });
        let answer = broker.post("/v1/leases", body).await;
        assert!(
            answer.status.is_client_error() && answer.status != StatusCode::NOT_FOUND,
            "{field}: {}",
            answer.body
        );
    }
}
