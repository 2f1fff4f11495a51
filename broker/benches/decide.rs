//! What one request costs before anything is written: `cargo bench -p broker`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hint::black_box;
use std::path::PathBuf;

use broker::actions;
use broker::catalogue::environment::Home;
use broker::catalogue::{Catalogue, Scope};
use broker::lease::LeaseId;
use broker::narrow::{Holder, Narrowed, narrow};
use broker::policy::{AgentFacts, Asked, Decision, Policy, Usage};
use broker::wire::LeaseRequest;
use divan::Bencher;
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;

/// Counts allocations: the look-up of an action makes none.
#[global_allocator]
static ALLOC: divan::AllocProfiler = divan::AllocProfiler::system();

const NOW: OffsetDateTime = datetime!(2026-01-05 12:00 UTC);
const HOLDER: Holder<'static> = Holder { agent: "agent", sponsor: "alice", task: "T-1" };
const NO_CLAIMS: &BTreeMap<String, String> = &BTreeMap::new();

fn main() {
    actions::all().next().expect("the table loads");
    divan::main();
}

/// `count` scopes, each with `actions` read actions of S3, EC2 and others on a bucket and what is in it.
fn catalogue(count: usize, actions: usize) -> Catalogue {
    let names: Vec<_> = actions::all()
        .filter(|it| it.class == broker::lease::ActionClass::Read && !it.takes_resources())
        .take(actions.saturating_sub(2))
        .map(|it| format!("\"{}\"", it.name))
        .chain(["\"s3:GetObject\"".to_owned(), "\"s3:ListBucket\"".to_owned()])
        .collect();
    let mut text = "[accounts]\n\"111122223333\" = \"acme\"\n[environments.staging]\naccounts = [\"111122223333\"]\n".to_owned();
    for at in 0..count {
        let _ = write!(
            text,
            "[[scope]]\nname = \"scope-{at}\"\ndescription = \"\"\naccount = \"111122223333\"\nregions = [\"us-east-1\"]\nrole = \"r\"\n\
             actions = [{}]\nresources = [\"arn:aws:s3:::staging-{at}\", \"arn:aws:s3:::staging-{at}/*\"]\n",
            names.join(", ")
        );
    }
    let home = toml::from_str("accounts = [\"999999999999\"]").expect("a home");
    let home = Home::build(&home, &[]).expect("a home");
    Catalogue::build(toml::from_str(&text).expect("scopes"), &text, home, false).expect("they load")
}

fn request(scope: usize) -> LeaseRequest {
    LeaseRequest {
        scope: format!("scope-{scope}"),
        actions: Some(vec!["s3:GetObject".into(), "s3:ListBucket".into()]),
        resources: Some(vec![
            format!("arn:aws:s3:::staging-{scope}"),
            format!("arn:aws:s3:::staging-{scope}/reports/*"),
        ]),
        ..LeaseRequest::default()
    }
}

fn policy(rules: usize) -> Policy {
    let mut text = "@id(\"ask\") permit (principal is Agent, action == Action::\"request\", resource is Scope);\n".to_owned();
    for at in 1..rules {
        let _ = writeln!(
            text,
            "@id(\"not-{at}\") forbid (principal is Agent, action == Action::\"request\", resource == Scope::\"other-{at}\") when {{ context.ttl_seconds > 900 }};"
        );
    }
    Policy::parse(&[(PathBuf::from("rules.cedar"), text)]).expect("rules")
}

fn narrowed(scope: &Scope, request: &LeaseRequest) -> Narrowed {
    narrow(scope, request, HOLDER, LeaseId(Uuid::nil()), NOW).expect("within the scope")
}

fn decide(policy: &Policy, scope: &Scope, narrowed: &Narrowed) -> Decision {
    let agent = AgentFacts {
        name: "agent",
        sponsor: "alice",
        sponsor_groups: &[],
        issuer: "broker",
        actor: None,
        claims: NO_CLAIMS,
    };
    let asked = Asked {
        scope,
        actions: narrowed.actions.iter().map(|it| (it.action.as_str(), it.class)).collect(),
        window: narrowed.window,
        task: "T-1",
        usage: Usage::default(),
    };
    policy.decide(agent, asked, NOW)
}

/// Narrow and decide, by number of scopes.
#[divan::bench(args = [10, 1_000])]
fn narrow_and_decide(bencher: Bencher<'_, '_>, scopes: usize) {
    let (catalogue, policy, request) = (catalogue(scopes, 4), policy(2), request(scopes / 2));
    bencher.bench_local(|| {
        let scope = catalogue.scope(black_box(&request.scope)).expect("there");
        let narrowed = narrowed(scope, &request);
        decide(&policy, scope, &narrowed)
    });
}

/// Narrow alone, by number of actions in the scope's ceiling.
#[divan::bench(args = [2, 20, 200, 2_000])]
fn narrow_in_a_ceiling_of(bencher: Bencher<'_, '_>, actions: usize) {
    let (catalogue, request) = (catalogue(1, actions), request(0));
    let scope = catalogue.scope("scope-0").expect("there");
    bencher.bench_local(|| narrowed(black_box(scope), black_box(&request)));
}

/// Decide alone, by number of rules.
#[divan::bench(args = [1, 10, 100])]
fn decide_by(bencher: Bencher<'_, '_>, rules: usize) {
    let (catalogue, policy) = (catalogue(1, 4), policy(rules));
    let scope = catalogue.scope("scope-0").expect("there");
    let narrowed = narrowed(scope, &request(0));
    bencher.bench_local(|| decide(black_box(&policy), scope, &narrowed));
}

/// The look-up of one action by name.
#[divan::bench]
fn find_an_action(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| actions::find(black_box("S3:GETOBJECT")));
}

/// Unpacking the whole table, as at the start of the program. Few times: it is never given back.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn load_the_table(bencher: Bencher<'_, '_>) {
    bencher.bench_local(actions::unpack_anew);
}

/// Reading a catalogue, by number of scopes.
#[divan::bench(args = [10, 1_000], sample_count = 10, sample_size = 1)]
fn load_a_catalogue(bencher: Bencher<'_, '_>, scopes: usize) {
    bencher.bench_local(|| catalogue(black_box(scopes), 4));
}
