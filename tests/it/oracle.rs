//! Session policies, judged by others: what is allowed was in the scope and in the request, and what was asked for is
//! allowed. `docs/decisions/0015-policy-oracles.md` says who judges, and what they cannot.

use std::collections::BTreeMap;

use broker::catalogue::Catalogue;
use broker::catalogue::environment::{Home, HomeFile};
use broker::lease::LeaseId;
use broker::narrow::{Holder, NarrowError, Narrowed, narrow};
use serde_json::{Value, json};
use tests::corpus::{self, Asked, Dice, NOW, Question};
use tests::oracle::{Call, Case, Verdict, evaluate, simulate};
use uuid::Uuid;

const SEED: u64 = 20_260_101;
const REQUESTS: usize = 2100;
const HOLDER: Holder<'static> = Holder { agent: "demo-agent", sponsor: "alice", task: "T-1" };

fn catalogue() -> Catalogue {
    let home: HomeFile = toml::from_str("accounts = [\"999999999999\"]").unwrap();
    let file = toml::from_str(corpus::SCOPES).unwrap();
    Catalogue::build(file, corpus::SCOPES, Home::build(&home, &[]).unwrap(), false)
        .expect("the corpus's scopes load")
}

fn run(catalogue: &Catalogue, asked: &Asked) -> Result<Narrowed, NarrowError> {
    let scope = catalogue.scope(&asked.ceiling.name).expect("a scope of the corpus");
    narrow(scope, &asked.request, HOLDER, LeaseId(Uuid::nil()), NOW)
}

/// The corpus: as many requests of each scope, in turn.
fn corpus(dice: &mut Dice) -> Vec<Asked> {
    let ceilings = corpus::ceilings();
    (0..REQUESTS).map(|at| corpus::within(dice, &ceilings[at % ceilings.len()])).collect()
}

/// One request, its policy, and calls with what should become of them.
struct Judged {
    asked: Asked,
    policy: String,
    questions: Vec<Question>,
    calls: Vec<Call>,
}

impl Judged {
    fn new(asked: Asked, policy: String, questions: Vec<Question>) -> Self {
        let calls = questions.iter().map(|it| it.call.clone()).collect();
        Self { asked, policy, questions, calls }
    }

    fn case(&self) -> Case<'_> {
        Case { session: &self.policy, calls: &self.calls }
    }
}

/// Where an oracle does not say what should be, told so that one can look at it.
fn disagreements(all: &[Judged]) -> Vec<String> {
    let cases: Vec<_> = all.iter().map(Judged::case).collect();
    let simulated = simulate(&cases);
    let mut told = Vec::new();
    for ((judged, case), simulated) in all.iter().zip(&cases).zip(&simulated) {
        let evaluated = evaluate(case);
        for ((question, first), second) in judged.questions.iter().zip(simulated).zip(&evaluated) {
            let agrees = |it: &Verdict| match it {
                Verdict::Allowed => question.allowed,
                Verdict::ImplicitlyDenied | Verdict::ExplicitlyDenied => !question.allowed,
                Verdict::Nonsense(_) => false,
            };
            if !agrees(first) || !agrees(second) {
                told.push(format!(
                    "{} of {:?} {:?} {:?}\n  should be allowed: {}; iam-simulate: {first:?}, iam-rs: {second:?}\n  {:?}\n  {}",
                    question.twist,
                    judged.asked.ceiling.name,
                    judged.asked.request.actions,
                    judged.asked.request.resources,
                    question.allowed,
                    question.call,
                    judged.policy,
                ));
            }
        }
    }
    told
}

fn show(told: &[String]) -> String {
    let shown = told.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
    format!("seed {SEED}: {} disagreements\n{shown}", told.len())
}

#[test]
fn what_is_allowed_was_asked_for_and_what_was_asked_for_is_allowed() {
    let (catalogue, mut dice) = (catalogue(), Dice::new(SEED));
    let mut judged = Vec::with_capacity(REQUESTS);
    for asked in corpus(&mut dice) {
        let narrowed = run(&catalogue, &asked).unwrap_or_else(|error| {
            panic!("seed {SEED}: {error}: {:?}", asked.request);
        });
        let questions = corpus::questions(&mut dice, &asked);
        judged.push(Judged::new(asked, narrowed.assume_role.policy, questions));
    }
    let told = disagreements(&judged);
    assert!(told.is_empty(), "{}", show(&told));

    // How often each question was asked, and how often the answer was no.
    let mut asked: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for question in judged.iter().flat_map(|it| &it.questions) {
        let counts = asked.entry(question.twist).or_default();
        counts.0 += 1;
        counts.1 += usize::from(!question.allowed);
    }
    for (twist, (times, denied)) in &asked {
        let enough = match *twist {
            "inside" => 5000 <= *times && *denied == 0,
            "from another network, by a service in the holder's name" => {
                500 <= *times && *denied == 0
            }
            _ => 10 <= *denied,
        };
        assert!(enough, "{twist}: asked {times} times, {denied} to be denied: {asked:?}");
    }
    assert_eq!(asked.len(), 16, "{asked:?}");
}

#[test]
fn a_request_that_reaches_outside_its_scope_is_refused() {
    let (catalogue, mut dice) = (catalogue(), Dice::new(SEED + 1));
    let mut tried: BTreeMap<&str, usize> = BTreeMap::new();
    for mut asked in corpus(&mut dice) {
        let Some((how, request)) = corpus::beyond(&mut dice, &asked) else { continue };
        *tried.entry(how).or_default() += 1;
        asked.request = request;
        if let Ok(narrowed) = run(&catalogue, &asked) {
            panic!("seed {SEED}: {how} was granted: {:?}\n{narrowed:?}", asked.request);
        }
    }
    assert!(tried.len() == 8 && tried.values().all(|it| 50 <= *it), "{tried:?}");
}

type Mistake = (&'static str, fn(&mut Value));

/// What the narrowing could get wrong, done to what it makes.
const MISTAKES: [Mistake; 9] = [
    ("it forgets the account", |it| forget(it, "aws:ResourceAccount")),
    ("it forgets the Region", |it| forget(it, "aws:RequestedRegion")),
    ("it forgets the end", |it| forget(it, "aws:CurrentTime")),
    ("it forgets TLS", |it| forget(it, "aws:SecureTransport")),
    ("it forgets a condition of the scope", |it| forget(it, "aws:ResourceTag/team")),
    ("it forgets whom a role is passed to", |it| forget(it, "iam:PassedToService")),
    ("it forgets the networks", |it| {
        let statements = it["Statement"].as_array_mut().unwrap();
        statements.retain(|it| it["Effect"] == "Allow");
    }),
    ("it allows all of the service", |it| {
        each_allow(it, |it| {
            let first = it["Action"][0].as_str().unwrap().split(':').next().unwrap().to_owned();
            it["Action"] = json!([format!("{first}:*")]);
        });
    }),
    ("it allows more resources", |it| {
        each_allow(it, |it| {
            for arn in it["Resource"].as_array_mut().unwrap() {
                let text = arn.as_str().unwrap();
                *arn = json!(format!("{}*", text.trim_end_matches('*')));
            }
        });
    }),
];

fn each_allow(policy: &mut Value, change: impl Fn(&mut Value)) {
    let statements = policy["Statement"].as_array_mut().unwrap().iter_mut();
    statements.filter(|it| it["Effect"] == "Allow").for_each(change);
}

fn forget(policy: &mut Value, key: &str) {
    each_allow(policy, |it| {
        for conditions in it["Condition"].as_object_mut().unwrap().values_mut() {
            conditions.as_object_mut().unwrap().remove(key);
        }
        it["Condition"].as_object_mut().unwrap().retain(|_, it| it != &json!({}));
    });
}

#[test]
fn the_oracles_notice_each_mistake_that_the_narrowing_could_make() {
    let (catalogue, mut dice) = (catalogue(), Dice::new(SEED));
    let asked: Vec<_> = corpus(&mut dice).into_iter().take(119).collect();
    for (mistake, make) in MISTAKES {
        let mut judged = Vec::new();
        for asked in &asked {
            let policy = run(&catalogue, asked).unwrap().assume_role.policy;
            let mut wrong: Value = serde_json::from_str(&policy).unwrap();
            make(&mut wrong);
            let questions = corpus::questions(&mut dice, asked);
            judged.push(Judged::new(asked.clone(), wrong.to_string(), questions));
        }
        let told = disagreements(&judged);
        let fooled = "should be allowed: false; iam-simulate: Allowed, iam-rs: Allowed";
        assert!(told.iter().any(|it| it.contains(fooled)), "{mistake}: {}", show(&told));
    }
}

/// AWS answers `GetCallerIdentity` whatever policies say (`API_GetCallerIdentity`): iam-simulate knows, iam-rs does not.
#[test]
fn iam_rs_is_wrong_about_who_one_is_which_aws_tells_everybody() {
    let session = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":["sts:*"],"Resource":["*"]}]}"#;
    let call = Call {
        action: "sts:GetCallerIdentity".into(),
        resource: "*".into(),
        account: "111122223333".into(),
        context: BTreeMap::new(),
    };
    let case = Case { session, calls: &[call] };
    assert_eq!(evaluate(&case), [Verdict::ExplicitlyDenied]);
    assert_eq!(simulate(&[case]), [[Verdict::Allowed]]);
}

/// A call that AWS does not have is no answer, so that a corpus of such calls proves nothing and shows it.
#[test]
fn iam_simulate_says_which_calls_there_cannot_be() {
    let session = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:*"],"Resource":["*"],"Condition":{"Null":{"lambda:FunctionArn":"true"}}}]}"#;
    let call = |action: &str, resource: &str, context: &[(&str, &str)]| Call {
        action: action.into(),
        resource: resource.into(),
        account: "111122223333".into(),
        context: context.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    };
    let object = "arn:aws:s3:::staging-app/x";
    let calls = [
        call("s3:GetObject", object, &[]),
        call("s3:GetObjekt", object, &[]),
        call("s3:GetObject", "arn:aws:s3:::staging-app", &[]),
        call("s3:ListAllMyBuckets", object, &[]),
        call("s3:GetObject", object, &[("lambda:FunctionArn", "arn:aws:lambda:::f")]),
    ];
    let verdicts = simulate(&[Case { session, calls: &calls }]).remove(0);
    let nonsense = |text: &str| Verdict::Nonsense(text.into());
    assert_eq!(
        verdicts,
        [
            Verdict::Allowed,
            nonsense("invalid.action"),
            nonsense("no.resource.types"),
            nonsense("must.use.wildcard"),
            nonsense("Allowed without a look at [\"lambda:FunctionArn\"]"),
        ]
    );
}
