//! The rules: who may ask, sign, stop, start and read. Cedar policies; deny by default, forbid wins. Pure.
//!
//! Rules narrow what the tiers allow and never widen it: whether people must sign follows from the scope's tier.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context, Decision as Verdict, Entities, Entity, EntityId, EntityTypeName,
    EntityUid, Policy as Rule, PolicyId, PolicySet, Request, RestrictedExpression, Schema,
    ValidationMode, Validator,
};
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

use crate::catalogue::{Scope, SignerRule};
use crate::config::ConfigError;
use crate::lease::{self, ActionClass, Assurance, Environment};

/// What rules may speak of.
const SCHEMA: &str = include_str!("policy/schema.cedarschema");

#[derive(Debug)]
pub struct Policy {
    rules: PolicySet,
    schema: Schema,
    names: Names,
    authorizer: Authorizer,
    reads_usage: bool,
    reads_sponsor_groups: bool,
}

/// What the rules say, with the ids of the rules that said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    Allow {
        by: Vec<String>,
    },
    /// Without a rule to name, none allowed it.
    Deny {
        by: Vec<String>,
    },
}

/// What a request for a lease comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { by: Vec<String> },
    NeedSignatures { by: Vec<String>, rule: SignerRule },
    Deny { by: Vec<String> },
}

/// An agent, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct AgentFacts<'a> {
    pub name: &'a str,
    pub sponsor: &'a str,
    /// What rules may ask of the sponsor. Without them `principal.sponsor in Group::"…"` would be false of everybody.
    pub sponsor_groups: &'a [String],
    pub issuer: &'a str,
    /// Who set a pipeline off, if somebody did.
    pub actor: Option<&'a str>,
    /// Of its token.
    pub claims: &'a BTreeMap<String, String>,
}

/// A person, as rules see them.
#[derive(Clone, Copy, Debug)]
pub struct PersonFacts<'a> {
    pub handle: &'a str,
    pub groups: &'a [String],
}

/// Who does something.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    Agent(AgentFacts<'a>),
    Person(PersonFacts<'a>),
}

/// What an agent had before, for rules that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    pub live_leases: i64,
    pub pending_leases: i64,
    pub requests_last_minute: i64,
    pub scopes_last_hour: i64,
    pub resources_last_hour: i64,
    pub signed_last_day: i64,
}

/// A request for a lease that fits its scope.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub scope: &'a Scope,
    pub actions: Vec<(&'a str, ActionClass)>,
    pub window: Duration,
    pub task: &'a str,
    pub usage: Usage,
}

/// What a freeze is about, and a thaw.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    Agent(AgentFacts<'a>),
    Sponsor(PersonFacts<'a>),
    Scope(&'a Scope),
    Environment(Environment),
    Everything,
}

/// What is ruled on.
#[derive(Clone, Debug)]
pub enum Act<'a> {
    Request(Asked<'a>),
    Sign {
        scope: &'a Scope,
        decision: lease::Decision,
        agent: AgentFacts<'a>,
        assurance: Assurance,
    },
    Revoke {
        scope: &'a Scope,
        agent: AgentFacts<'a>,
    },
    Freeze(Target<'a>),
    Thaw(Target<'a>),
    StartTask {
        agent: AgentFacts<'a>,
        window: Duration,
        task: &'a str,
    },
    ReadHistory,
}

/// Cedar's names, parsed once.
#[derive(Debug)]
struct Names {
    action: EntityTypeName,
    agent: EntityTypeName,
    person: EntityTypeName,
    group: EntityTypeName,
    scope: EntityTypeName,
    environment: EntityTypeName,
    broker: EntityTypeName,
}

impl Names {
    fn new() -> Self {
        let name = |it: &str| EntityTypeName::from_str(it).expect("a name of our own schema");
        Self {
            action: name("Action"),
            agent: name("Agent"),
            person: name("Person"),
            group: name("Group"),
            scope: name("Scope"),
            environment: name("Environment"),
            broker: name("Broker"),
        }
    }
}

impl Policy {
    /// Parses and validates rule files. No rules at all deny everything.
    pub fn parse(files: &[(PathBuf, String)]) -> Result<Self, ConfigError> {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("our own schema parses");
        let invalid =
            |path: &Path, message: String| ConfigError::Invalid { path: path.to_owned(), message };
        let validator = Validator::new(schema.clone());
        let mut rules = PolicySet::new();
        for (path, text) in files {
            let parsed =
                PolicySet::from_str(text).map_err(|error| invalid(path, located(text, &error)))?;
            if parsed.templates().next().is_some() {
                return Err(invalid(
                    path,
                    "templates are not supported; write the rule out".into(),
                ));
            }
            let mut of_file = PolicySet::new();
            for policy in parsed.policies() {
                let id = policy.annotation("id").ok_or_else(|| {
                    invalid(
                        path,
                        format!("a rule has no id; write @id(\"…\") before it:\n{policy}"),
                    )
                })?;
                let policy = policy.new_id(PolicyId::new(id));
                let twice = |error| invalid(path, format!("{error}; give each rule another @id"));
                of_file.add(policy.clone()).map_err(twice)?;
                rules.add(policy).map_err(twice)?;
            }
            let report = validator.validate(&of_file, ValidationMode::Strict);
            if !report.validation_passed() {
                let errors: Vec<_> =
                    report.validation_errors().map(|it| located(text, it)).collect();
                return Err(invalid(path, errors.join("\n")));
            }
        }
        let reads_usage = rules.policies().any(asks_for_usage);
        let reads_sponsor_groups = rules.policies().any(asks_for_sponsor_groups);
        let (names, authorizer) = (Names::new(), Authorizer::new());
        Ok(Self { rules, schema, names, authorizer, reads_usage, reads_sponsor_groups })
    }

    /// Whether a rule may ask what the agent had before. Where none does, nobody has to look.
    pub fn reads_usage(&self) -> bool {
        self.reads_usage
    }

    /// Likewise, whether a rule about requests or signatures may ask for the groups of an agent's sponsor.
    pub fn reads_sponsor_groups(&self) -> bool {
        self.reads_sponsor_groups
    }

    /// Decides about a request that fits its scope.
    pub fn decide(&self, agent: AgentFacts<'_>, asked: Asked<'_>, now: OffsetDateTime) -> Decision {
        let scope = asked.scope;
        match self.rule(Who::Agent(agent), &Act::Request(asked), now) {
            Ruling::Deny { by } => Decision::Deny { by },
            Ruling::Allow { by } => match &scope.signers {
                None => Decision::Allow { by },
                Some(rule) => Decision::NeedSignatures { by, rule: rule.clone() },
            },
        }
    }

    /// What the rules say to an act. Anything that cannot be evaluated denies.
    pub fn rule(&self, who: Who<'_>, act: &Act<'_>, now: OffsetDateTime) -> Ruling {
        self.evaluate(who, act, now).unwrap_or(Ruling::Deny { by: Vec::new() })
    }

    fn evaluate<'a>(&'a self, who: Who<'a>, act: &Act<'a>, now: OffsetDateTime) -> Option<Ruling> {
        let mut ground =
            Ground { names: &self.names, agents: Vec::new(), entities: Vec::with_capacity(4) };
        let principal = ground.who(who)?;
        let (name, resource, mut context) = ground.act(act)?;
        context.push(("time".to_owned(), time_of(now)?));
        let entities = Entities::from_entities(ground.entities, None).ok()?;
        let context = Context::from_pairs(context).ok()?;
        let action = uid(&self.names.action, name);
        let request =
            Request::new(principal, action, resource, context, Some(&self.schema)).ok()?;
        let answer = self.authorizer.is_authorized(&request, &self.rules, &entities);
        // A rule that cannot be evaluated is skipped by Cedar; a forbid that is skipped would open the door.
        if answer.diagnostics().errors().next().is_some() {
            return None;
        }
        let mut by: Vec<_> = answer.diagnostics().reason().map(ToString::to_string).collect();
        by.sort();
        Some(match answer.decision() {
            Verdict::Allow => Ruling::Allow { by },
            Verdict::Deny => Ruling::Deny { by },
        })
    }
}

/// What one evaluation needs to know of the world.
struct Ground<'a> {
    names: &'a Names,
    agents: Vec<AgentFacts<'a>>,
    entities: Vec<Entity>,
}

type Pairs = Vec<(String, RestrictedExpression)>;

impl<'a> Ground<'a> {
    fn who(&mut self, who: Who<'a>) -> Option<EntityUid> {
        match who {
            Who::Agent(agent) => self.agent(agent),
            Who::Person(person) => Some(self.person(person)),
        }
    }

    fn person(&mut self, person: PersonFacts<'_>) -> EntityUid {
        let me = uid(&self.names.person, person.handle);
        if self.entities.iter().any(|it| it.uid() == me) {
            return me;
        }
        let groups = person.groups.iter().map(|it| uid(&self.names.group, it)).collect();
        self.entities.push(Entity::new_no_attrs(me.clone(), groups));
        me
    }

    fn agent(&mut self, agent: AgentFacts<'a>) -> Option<EntityUid> {
        let me = uid(&self.names.agent, agent.name);
        if let Some(known) = self.agents.iter().find(|it| it.name == agent.name) {
            // Agents of two sponsors are two, whatever they are called, but rules would take them for one.
            let same = (known.sponsor, known.issuer) == (agent.sponsor, agent.issuer);
            return same.then_some(me);
        }
        self.agents.push(agent);
        let sponsor =
            self.person(PersonFacts { handle: agent.sponsor, groups: agent.sponsor_groups });
        let mut attributes = vec![
            pair("sponsor", RestrictedExpression::new_entity_uid(sponsor)),
            pair("issuer", text(agent.issuer)),
        ];
        attributes.extend(agent.actor.map(|it| pair("actor", text(it))));
        let claims = agent.claims.iter().map(|(name, value)| pair(name, text(value)));
        self.entities.push(Entity::new_with_tags(me.clone(), attributes, [], claims).ok()?);
        Some(me)
    }

    fn scope(&mut self, scope: &Scope) -> Option<EntityUid> {
        let me = uid(&self.names.scope, &scope.name);
        let environment = uid(&self.names.environment, scope.environment.as_str());
        let attributes = [
            pair("environment", text(scope.environment.as_str())),
            pair("tier", text(scope.tier.as_str())),
            pair("account", text(&scope.account)),
        ];
        let parents = [environment].into();
        self.entities.push(Entity::new(me.clone(), attributes.into(), parents).ok()?);
        Some(me)
    }

    fn target(&mut self, target: Target<'a>) -> Option<EntityUid> {
        Some(match target {
            Target::Agent(agent) => self.agent(agent)?,
            Target::Sponsor(sponsor) => self.person(sponsor),
            Target::Scope(scope) => self.scope(scope)?,
            Target::Environment(it) => uid(&self.names.environment, it.as_str()),
            Target::Everything => self.broker(),
        })
    }

    fn broker(&self) -> EntityUid {
        uid(&self.names.broker, "this")
    }

    /// The action's name, its resource, and its context but for the time.
    fn act(&mut self, act: &Act<'a>) -> Option<(&'static str, EntityUid, Pairs)> {
        Some(match act {
            Act::Request(asked) => ("request", self.scope(asked.scope)?, asked.context()?),
            Act::Sign { scope, decision, agent, assurance } => {
                let agent = RestrictedExpression::new_entity_uid(self.agent(*agent)?);
                let context = vec![
                    pair("decision", text(decision.as_str())),
                    pair("agent", agent),
                    pair("assurance", text(assurance.as_str())),
                ];
                ("sign", self.scope(scope)?, context)
            }
            Act::Revoke { scope, agent } => {
                let agent = RestrictedExpression::new_entity_uid(self.agent(*agent)?);
                ("revoke", self.scope(scope)?, vec![pair("agent", agent)])
            }
            Act::Freeze(target) => ("freeze", self.target(*target)?, Vec::new()),
            Act::Thaw(target) => ("thaw", self.target(*target)?, Vec::new()),
            Act::StartTask { agent, window, task } => {
                let context = vec![seconds("ttl_seconds", *window), pair("task", text(task))];
                ("start_task", self.agent(*agent)?, context)
            }
            Act::ReadHistory => ("read_history", self.broker(), Vec::new()),
        })
    }
}

impl Asked<'_> {
    fn context(&self) -> Option<Pairs> {
        let actions = self.actions.iter().map(|(name, _)| text(name));
        let mut classes: Vec<_> = self.actions.iter().map(|(_, class)| *class).collect();
        classes.sort_unstable();
        classes.dedup();
        let classes = classes.into_iter().map(|it| text(it.as_str()));
        let count = |name, value| pair(name, RestrictedExpression::new_long(value));
        let usage = RestrictedExpression::new_record([
            count("live_leases", self.usage.live_leases),
            count("pending_leases", self.usage.pending_leases),
            count("requests_last_minute", self.usage.requests_last_minute),
            count("scopes_last_hour", self.usage.scopes_last_hour),
            count("resources_last_hour", self.usage.resources_last_hour),
            count("signed_last_day", self.usage.signed_last_day),
        ]);
        Some(vec![
            seconds("ttl_seconds", self.window),
            pair("task", text(self.task)),
            pair("actions", RestrictedExpression::new_set(actions)),
            pair("classes", RestrictedExpression::new_set(classes)),
            pair("usage", usage.ok()?),
        ])
    }
}

/// The record `Time` of the schema.
fn time_of(now: OffsetDateTime) -> Option<RestrictedExpression> {
    let now = now.to_offset(UtcOffset::UTC).replace_nanosecond(0).ok()?;
    let weekday = now.weekday().to_string().to_ascii_lowercase();
    RestrictedExpression::new_record([
        pair("now", RestrictedExpression::new_datetime(now.format(&Rfc3339).ok()?)),
        pair("hour", RestrictedExpression::new_long(now.hour().into())),
        pair("weekday", text(&weekday)),
    ])
    .ok()
}

fn pair(name: &str, value: RestrictedExpression) -> (String, RestrictedExpression) {
    (name.to_owned(), value)
}

fn text(it: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(it.to_owned())
}

fn seconds(name: &str, span: Duration) -> (String, RestrictedExpression) {
    pair(name, RestrictedExpression::new_long(span.whole_seconds()))
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

/// A rule's names and texts as Cedar read them, whatever their spelling. `None` for one that cannot be written so.
fn words(rule: &Rule) -> Option<(String, String)> {
    let json = rule.to_json().ok()?;
    Some((json.to_string(), json["action"].to_string()))
}

/// Whether a rule may ask what an agent had before. Yes too often costs a look; no too often would cost a forbid.
fn asks_for_usage(rule: &Rule) -> bool {
    words(rule).is_none_or(|(all, _)| all.contains("\"usage\""))
}

/// Whether a rule about requests or signatures may ask for the groups of an agent's sponsor; likewise.
fn asks_for_sponsor_groups(rule: &Rule) -> bool {
    words(rule).is_none_or(|(all, action)| {
        let acts = ["\"All\"", "\"request\"", "\"sign\""].iter().any(|it| action.contains(it));
        acts && all.contains("\"sponsor\"") && all.contains("\"Group\"")
    })
}

/// An error with the line of the file that it is about, where Cedar says one.
fn located(text: &str, error: &dyn miette::Diagnostic) -> String {
    let offset = error.labels().and_then(|mut it| it.next()).map(|it| it.offset());
    match offset {
        Some(offset) => {
            let line = text[..text.floor_char_boundary(offset)].matches('\n').count() + 1;
            format!("line {line}: {error}")
        }
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::catalogue::tests::{SCOPES, load};

    const NOW: OffsetDateTime = datetime!(2026-01-05 12:30 UTC);
    const NO_CLAIMS: &BTreeMap<String, String> = &BTreeMap::new();
    const ASK: &str = "@id(\"ask\") permit (principal, action == Action::\"request\", resource);";

    fn policy(text: &str) -> Result<Policy, ConfigError> {
        Policy::parse(&[(PathBuf::from("rules.cedar"), text.to_owned())])
    }

    fn agent(claims: &BTreeMap<String, String>) -> AgentFacts<'_> {
        AgentFacts {
            name: "demo-agent",
            sponsor: "alice",
            sponsor_groups: &[],
            issuer: "https://broker.example",
            actor: None,
            claims,
        }
    }

    fn asked(scope: &Scope) -> Asked<'_> {
        Asked {
            scope,
            actions: scope.actions.iter().map(|it| (it.name(), it.class)).collect(),
            window: Duration::minutes(15),
            task: "T-1",
            usage: Usage { live_leases: 3, ..Usage::default() },
        }
    }

    fn decide(policy: &Policy, scope: &str) -> Decision {
        let catalogue = load(SCOPES).unwrap();
        policy.decide(agent(NO_CLAIMS), asked(catalogue.scope(scope).unwrap()), NOW)
    }

    /// Whether `ASK` with a forbid under this condition still lets the request through.
    fn forbidden_when(condition: &str) -> bool {
        let rules = format!(
            "{ASK} @id(\"not\") forbid (principal is Agent, action == Action::\"request\", resource is Scope) when {{ {condition} }};"
        );
        let decision = decide(&policy(&rules).unwrap(), "staging-rw");
        match decision {
            Decision::Deny { by } => {
                assert_eq!(by, ["not"]);
                true
            }
            Decision::Allow { .. } => false,
            Decision::NeedSignatures { .. } => panic!("staging-rw is unsigned"),
        }
    }

    #[test]
    fn no_rules_deny_everything() {
        let none = Policy::parse(&[]).unwrap();
        assert_eq!(decide(&none, "staging-rw"), Decision::Deny { by: vec![] });
        let bob = Who::Person(PersonFacts { handle: "bob", groups: &["ops".to_owned()] });
        let catalogue = load(SCOPES).unwrap();
        let scope = catalogue.scope("prod-rw").unwrap();
        let target = Target::Scope(scope);
        for act in [
            Act::Sign {
                scope,
                decision: lease::Decision::Approve,
                agent: agent(NO_CLAIMS),
                assurance: Assurance::Verified,
            },
            Act::Revoke { scope, agent: agent(NO_CLAIMS) },
            Act::Freeze(target),
            Act::Thaw(target),
            Act::StartTask { agent: agent(NO_CLAIMS), window: Duration::hours(8), task: "T-1" },
            Act::ReadHistory,
        ] {
            assert_eq!(none.rule(bob, &act, NOW), Ruling::Deny { by: vec![] }, "{act:?}");
        }
    }

    #[test]
    fn the_tier_decides_about_signatures_and_a_rule_that_permits_cannot_waive_them() {
        let ask = policy(ASK).unwrap();
        assert_eq!(decide(&ask, "staging-rw"), Decision::Allow { by: vec!["ask".into()] });
        let Decision::NeedSignatures { rule, .. } = decide(&ask, "prod-rw") else {
            panic!("not signed")
        };
        assert_eq!(rule.count, 1);
    }

    #[test]
    fn forbid_wins_and_names_itself() {
        assert!(forbidden_when("principal.sponsor == Person::\"alice\""));
        assert!(!forbidden_when("principal.sponsor == Person::\"bob\""));
    }

    #[test]
    fn rules_speak_of_everything_that_a_request_is() {
        for (condition, holds) in [
            ("principal == Agent::\"demo-agent\"", true),
            ("principal.issuer == \"https://broker.example\"", true),
            ("principal has actor", false),
            ("principal.hasTag(\"repository\")", false),
            ("resource in Environment::\"staging\"", true),
            ("resource in Environment::\"production\"", false),
            ("resource.tier == \"staging-write\" && resource.account == \"111122223333\"", true),
            ("context.classes.contains(\"destructive\")", true),
            ("context.classes.contains(\"privesc\")", false),
            ("context.actions.contains(\"s3:DeleteObject\")", true),
            ("context.ttl_seconds > 900", false),
            ("context.task == \"T-1\"", true),
            ("context.usage.live_leases >= 3", true),
            ("context.usage.live_leases > 3", false),
            ("context.time.hour == 12 && context.time.weekday == \"monday\"", true),
            ("context.time.now > datetime(\"2026-01-05T12:29:59Z\")", true),
            ("context.time.now.toTime() < duration(\"12h\")", false),
        ] {
            assert_eq!(forbidden_when(condition), holds, "{condition}");
        }
    }

    #[test]
    fn a_claim_of_a_token_is_a_tag_of_its_agent() {
        let rules = "@id(\"main\") permit (principal is Agent, action == Action::\"request\", resource is Scope) \
                     when { principal.hasTag(\"ref\") && principal.getTag(\"ref\") == \"refs/heads/main\" };";
        let policy = policy(rules).unwrap();
        let catalogue = load(SCOPES).unwrap();
        let scope = catalogue.scope("staging-rw").unwrap();
        let with = |branch: &str| {
            let claims = BTreeMap::from([("ref".to_owned(), branch.to_owned())]);
            policy.decide(agent(&claims), asked(scope), NOW)
        };
        assert!(matches!(with("refs/heads/main"), Decision::Allow { .. }));
        assert!(matches!(with("refs/heads/other"), Decision::Deny { .. }));
    }

    #[test]
    fn groups_sign_and_read() {
        let rules = "@id(\"ops-read\") permit (principal in Group::\"ops\", action == Action::\"read_history\", resource);\
                     @id(\"sign\") permit (principal is Person, action == Action::\"sign\", resource is Scope) \
                     when { context.decision == \"refuse\" || (context.assurance == \"verified\" && context.agent.sponsor != principal) };";
        let policy = policy(rules).unwrap();
        let groups = ["ops".to_owned()];
        let person = |handle, groups| Who::Person(PersonFacts { handle, groups });
        let read = |who| policy.rule(who, &Act::ReadHistory, NOW);
        assert_eq!(read(person("bob", &groups)), Ruling::Allow { by: vec!["ops-read".into()] });
        assert_eq!(read(person("bob", &[])), Ruling::Deny { by: vec![] });
        let catalogue = load(SCOPES).unwrap();
        let sign = |handle, decision, assurance| {
            let scope = catalogue.scope("prod-rw").unwrap();
            let act = Act::Sign { scope, decision, agent: agent(NO_CLAIMS), assurance };
            matches!(policy.rule(person(handle, &[]), &act, NOW), Ruling::Allow { .. })
        };
        assert!(sign("bob", lease::Decision::Approve, Assurance::Verified));
        assert!(!sign("bob", lease::Decision::Approve, Assurance::Present));
        assert!(!sign("alice", lease::Decision::Approve, Assurance::Verified));
        assert!(sign("alice", lease::Decision::Refuse, Assurance::Software));
    }

    #[test]
    fn the_sponsors_groups_count_when_their_agent_asks() {
        let rules = format!(
            "{ASK} @id(\"not\") forbid (principal is Agent, action == Action::\"request\", resource is Scope) \
             when {{ principal.sponsor in Group::\"contractors\" }};"
        );
        let policy = policy(&rules).unwrap();
        let catalogue = load(SCOPES).unwrap();
        let with = |groups: &[String]| {
            let agent = AgentFacts { sponsor_groups: groups, ..agent(NO_CLAIMS) };
            policy.decide(agent, asked(catalogue.scope("staging-rw").unwrap()), NOW)
        };
        assert!(policy.reads_sponsor_groups());
        assert!(matches!(with(&[]), Decision::Allow { .. }));
        assert_eq!(with(&["contractors".into()]), Decision::Deny { by: vec!["not".into()] });
    }

    #[test]
    fn agents_of_two_sponsors_are_never_taken_for_one() {
        let rules = "@id(\"own\") permit (principal is Agent, action == Action::\"revoke\", resource is Scope) when { principal == context.agent };";
        let policy = policy(rules).unwrap();
        let catalogue = load(SCOPES).unwrap();
        let scope = catalogue.scope("staging-rw").unwrap();
        let revoke = |sponsor| {
            let who = Who::Agent(AgentFacts { sponsor, ..agent(NO_CLAIMS) });
            policy.rule(who, &Act::Revoke { scope, agent: agent(NO_CLAIMS) }, NOW)
        };
        assert_eq!(revoke("alice"), Ruling::Allow { by: vec!["own".into()] });
        assert_eq!(revoke("mallory"), Ruling::Deny { by: vec![] });
    }

    #[test]
    fn every_act_is_one_that_the_schema_knows() {
        let policy = policy("@id(\"all\") permit (principal, action, resource);").unwrap();
        let catalogue = load(SCOPES).unwrap();
        let scope = catalogue.scope("prod-rw").unwrap();
        let groups = ["ops".to_owned()];
        let person = Who::Person(PersonFacts { handle: "bob", groups: &groups });
        let machine = Who::Agent(AgentFacts { actor: Some("carol"), ..agent(NO_CLAIMS) });
        let allowed = |who, act: Act<'_>| {
            assert_eq!(
                policy.rule(who, &act, NOW),
                Ruling::Allow { by: vec!["all".into()] },
                "{act:?}"
            );
        };
        allowed(machine, Act::Request(asked(scope)));
        allowed(machine, Act::Revoke { scope, agent: agent(NO_CLAIMS) });
        for target in [
            Target::Agent(agent(NO_CLAIMS)),
            Target::Sponsor(PersonFacts { handle: "alice", groups: &[] }),
            Target::Scope(scope),
            Target::Environment(Environment::Backup),
            Target::Everything,
        ] {
            allowed(person, Act::Freeze(target));
            allowed(machine, Act::Freeze(target));
            allowed(person, Act::Thaw(target));
        }
        allowed(
            person,
            Act::StartTask { agent: agent(NO_CLAIMS), window: Duration::HOUR, task: "T" },
        );
        allowed(person, Act::ReadHistory);
        // An agent does not sign, whatever a rule says.
        let sign = Act::Sign {
            scope,
            decision: lease::Decision::Approve,
            agent: agent(NO_CLAIMS),
            assurance: Assurance::Verified,
        };
        assert_eq!(policy.rule(machine, &sign, NOW), Ruling::Deny { by: vec![] });
    }

    #[test]
    fn a_rule_that_cannot_be_evaluated_denies() {
        let rules = format!(
            "{ASK} @id(\"overflow\") forbid (principal, action == Action::\"request\", resource) \
             when {{ context.ttl_seconds + 9223372036854775807 > 0 }};"
        );
        assert_eq!(decide(&policy(&rules).unwrap(), "staging-rw"), Decision::Deny { by: vec![] });
    }

    #[test]
    fn only_rules_that_count_make_somebody_look() {
        assert!(!policy(ASK).unwrap().reads_usage());
        let counts = "@id(\"few\") permit (principal, action == Action::\"request\", resource) when { context.usage.live_leases < 2 };";
        assert!(policy(counts).unwrap().reads_usage());
        let spelled = counts.replace("context.usage", "context[\"us\\u{61}ge\"]");
        assert!(policy(&spelled).unwrap().reads_usage());
        for (rule, reads) in [
            (ASK, false),
            (
                "@id(\"x\") permit (principal is Person, action == Action::\"revoke\", resource) when { principal == context.agent.sponsor || principal in Group::\"ops\" };",
                false,
            ),
            (
                "@id(\"x\") forbid (principal is Agent, action, resource is Scope) when { principal.sponsor in Group :: \"ops\" };",
                true,
            ),
            (
                "@id(\"x\") forbid (principal is Agent, action == Action::\"request\", resource) when { principal[\"spons\\u{6f}r\"] in Group::\"ops\" };",
                true,
            ),
            (
                "@id(\"x\") forbid (principal, action in [Action::\"sign\"], resource) when { context.agent.sponsor in Group::\"ops\" };",
                true,
            ),
        ] {
            assert_eq!(policy(rule).unwrap().reads_sponsor_groups(), reads, "{rule}");
        }
    }

    #[test]
    fn a_rule_that_speaks_of_what_is_not_there_does_not_load_and_its_line_is_said() {
        for (wrong, line) in [
            (
                "\n\n@id(\"x\") permit (principal, action == Action::\"request\", resource)\n when { resource.teir == \"x\" };",
                "line 4",
            ),
            ("permit (principal, action, resource);", "a rule has no id"),
            ("\n@id(\"x\") permit (principal, action", "line 2"),
            ("@id(\"x\") permit (principal == ?principal, action, resource);", "templates"),
        ] {
            let why = policy(wrong).unwrap_err().to_string();
            assert!(why.contains(line) && why.starts_with("rules.cedar"), "{why}");
        }
        assert!(policy(&format!("{ASK}{ASK}")).is_err(), "one id twice");
        let files = ["a.cedar", "b.cedar"].map(|it| (PathBuf::from(it), ASK.to_owned()));
        assert!(Policy::parse(&files).unwrap_err().to_string().starts_with("b.cedar"));
    }
}
