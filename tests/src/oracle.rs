//! Second opinions on what a session may do: iam-simulate, in a process of its own, and iam-rs, in this one.
//! Neither has read our code.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iam_rs::{
    Arn, Context, ContextValue, Decision, IAMPolicy, IAMRequest, Principal, PrincipalId,
    evaluate_policy,
};
use serde_json::{Value, json};

/// Keys whose values are `true` and `false`; iam-rs wants to be told.
const BOOLEANS: [&str; 2] = ["aws:SecureTransport", "aws:ViaAWSService"];

/// One call to AWS, as its authorization sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub action: String,
    /// `*` for an action that takes no resource.
    pub resource: String,
    /// Whose the resource is.
    pub account: String,
    pub context: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    ImplicitlyDenied,
    ExplicitlyDenied,
    /// There is no such call: what is wrong with it.
    Nonsense(String),
}

/// What a session may call, and calls to judge.
pub struct Case<'a> {
    /// The session policy, of a role that may do everything.
    pub session: &'a str,
    pub calls: &'a [Call],
}

fn role() -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] })
}

/// Where `scripts/setup.sh --oracle` put it.
fn folder() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "the edge of the tests")]
    let set = std::env::var("POLICY_ORACLE").unwrap_or_default();
    let folder = PathBuf::from(set);
    assert!(
        folder.join("node").exists(),
        "POLICY_ORACLE does not say where the policy oracle is; run `make test`, or `scripts/setup.sh --oracle` and \
         then this with POLICY_ORACLE=\"$(scripts/setup.sh --print-oracle)\""
    );
    folder
}

/// iam-simulate's verdicts on each case's calls.
pub fn simulate(cases: &[Case<'_>]) -> Vec<Vec<Verdict>> {
    let folder = folder();
    let judge = Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle/judge.mjs");
    let mut child = Command::new(folder.join("node"))
        .arg(judge)
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the policy oracle starts");
    let (mut stdin, stdout) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let verdicts = std::thread::scope(|threads| {
        threads.spawn(move || {
            for case in cases {
                // When it has ended, what it said on the way is of more use than that nobody listens.
                let Ok(()) = writeln!(stdin, "{}", question(case)) else { break };
            }
        });
        let lines = BufReader::new(stdout).lines().map(|it| it.expect("the oracle answers"));
        lines.zip(cases).map(|(line, case)| read_answer(&line, case)).collect::<Vec<_>>()
    });
    assert!(child.wait().expect("it ends").success() && verdicts.len() == cases.len());
    verdicts
}

fn question(case: &Case<'_>) -> Value {
    let session: Value = serde_json::from_str(case.session).expect("a policy is JSON");
    let calls = case.calls.iter().map(|it| {
        json!({
            "principal": principal(it), "action": it.action, "resource": it.resource, "account": it.account,
            "context": it.context,
        })
    });
    json!({ "role": role(), "session": session, "questions": calls.collect::<Vec<_>>() })
}

/// A session in the account of the resource: whether another account lets it in is not our question.
fn principal(call: &Call) -> String {
    format!("arn:aws:sts::{}:assumed-role/broker/lease", call.account)
}

fn read_answer(line: &str, case: &Case<'_>) -> Vec<Verdict> {
    let answers: Vec<(String, Vec<String>)> = serde_json::from_str(line).expect("verdicts");
    assert_eq!(answers.len(), case.calls.len());
    let read = |(verdict, overlooked): (String, Vec<String>)| match verdict.as_str() {
        // A verdict that ignored what the policy asks about is not one.
        _ if overlooked.iter().any(|it| case.session.contains(it.as_str())) => {
            Verdict::Nonsense(format!("{verdict} without a look at {overlooked:?}"))
        }
        "Allowed" => Verdict::Allowed,
        "ImplicitlyDenied" => Verdict::ImplicitlyDenied,
        "ExplicitlyDenied" => Verdict::ExplicitlyDenied,
        _ => Verdict::Nonsense(verdict),
    };
    answers.into_iter().map(read).collect()
}

/// iam-rs's verdicts on the case's calls. It knows no layers: each policy has its say, and both must allow.
pub fn evaluate(case: &Case<'_>) -> Vec<Verdict> {
    let role = IAMPolicy::from_json(&role().to_string()).expect("a policy");
    let session = match IAMPolicy::from_json(case.session) {
        Ok(session) => session,
        Err(error) => return vec![Verdict::Nonsense(error.to_string()); case.calls.len()],
    };
    let judge = |call: &Call| {
        let resource = match call.resource.as_str() {
            // It has no word for "no resource"; this is the ARN that only `*` covers.
            "*" => Arn::parse("arn:aws:none:::none").expect("an ARN"),
            arn => Arn::parse(arn).map_err(|error| error.to_string())?,
        };
        let mut context = Context::new();
        for (key, value) in &call.context {
            let value = match value.parse() {
                Ok(value) if BOOLEANS.contains(&key.as_str()) => ContextValue::Boolean(value),
                _ => ContextValue::String(value.clone()),
            };
            context.insert(key.clone(), value);
        }
        let principal = Principal::Aws(PrincipalId::String(principal(call)));
        let request = IAMRequest::new_with_context(principal, &call.action, resource, context);
        let decide = |policy: &IAMPolicy| {
            evaluate_policy(policy, &request).map_err(|error| error.to_string())
        };
        Ok(match (decide(&role)?, decide(&session)?) {
            (Decision::Allow, Decision::Allow) => Verdict::Allowed,
            (Decision::Deny, _) | (_, Decision::Deny) => Verdict::ExplicitlyDenied,
            _ => Verdict::ImplicitlyDenied,
        })
    };
    case.calls
        .iter()
        .map(|it| judge(it).unwrap_or_else(|error: String| Verdict::Nonsense(error)))
        .collect()
}
