//! A table of decisions that are expected of a configuration, and whether it makes them. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::catalogue::{SHORTEST_SESSION, Scope};
use crate::config::{Config, Span};
use crate::lease::{Assurance, Decision as Vote, LeaseId, spelled};
use crate::narrow::{Holder, NarrowError, narrow};
use crate::policy::{Act, AgentFacts, Asked, Decision, PersonFacts, Ruling, Target, Usage, Who};
use crate::wire::LeaseRequest;

const MONDAY_NOON: OffsetDateTime = time::macros::datetime!(2026-01-05 12:00 UTC);

/// A file of cases, as `config/cases.toml` shows it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CasesFile {
    #[serde(default, rename = "case")]
    cases: Vec<toml::Spanned<Case>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    action: ActName,
    expect: Expected,
    /// The rules that should decide; any, where left out.
    by: Option<Vec<String>>,
    /// Part of what a refusal should say.
    because: Option<String>,

    /// Who acts: an agent with its sponsor, or a person with their groups. For `sign` and `revoke` by a person, `agent`
    /// is whose lease it is.
    agent: Option<String>,
    sponsor: Option<String>,
    #[serde(default)]
    sponsor_groups: Vec<String>,
    issuer: Option<String>,
    actor: Option<String>,
    #[serde(default)]
    claims: BTreeMap<String, String>,
    person: Option<String>,
    #[serde(default)]
    groups: Vec<String>,

    scope: Option<String>,
    actions: Option<Vec<String>>,
    resources: Option<Vec<String>>,
    ttl: Option<Span>,
    task: Option<String>,
    reason: Option<String>,
    rollback: Option<String>,
    #[serde(default)]
    usage: Usage,
    decision: Option<Vote>,
    assurance: Option<Assurance>,
    /// Of a freeze or a thaw: `agent:NAME`, `sponsor:HANDLE`, `scope:NAME`, `environment:NAME` or `all`.
    target: Option<String>,
    /// RFC 3339; a Monday noon where left out.
    at: Option<String>,
}

spelled! {
    /// An action of the rules' schema.
    ActName {
        Request = "request",
        Sign = "sign",
        Revoke = "revoke",
        Freeze = "freeze",
        Thaw = "thaw",
        StartTask = "start_task",
        ReadHistory = "read_history",
    }
}

spelled! {
    /// What a case comes to.
    Expected {
        Allow = "allow",
        /// Pending until people have signed.
        Sign = "sign",
        Deny = "deny",
        /// Not a request that the scope could judge.
        Invalid = "invalid",
    }
}

/// What one case came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub name: String,
    pub line: usize,
    /// What is wrong, if something is.
    pub wrong: Option<String>,
}

/// What a configuration decides.
struct Answer {
    what: Expected,
    by: Vec<String>,
    why: String,
}

/// Runs a file of cases. An error is about the file: a case that cannot be put, or none at all.
pub fn run(config: &Config, text: &str) -> Result<Vec<Outcome>, String> {
    let file: CasesFile = toml::from_str(text).map_err(|error| error.to_string())?;
    if file.cases.is_empty() {
        return Err("there is no [[case]]; nothing would be tested".into());
    }
    let mut outcomes = Vec::with_capacity(file.cases.len());
    for spanned in file.cases {
        let line = text[..spanned.span().start].matches('\n').count() + 1;
        let case = spanned.into_inner();
        let answer =
            case.put(config).map_err(|why| format!("line {line}: case {:?}: {why}", case.name))?;
        outcomes.push(Outcome { wrong: case.compare(&answer), name: case.name, line });
    }
    Ok(outcomes)
}

impl Case {
    fn put(&self, config: &Config) -> Result<Answer, String> {
        let now = match &self.at {
            None => MONDAY_NOON,
            Some(at) => OffsetDateTime::parse(at, &time::format_description::well_known::Rfc3339)
                .map_err(|_| {
                format!("at = {at:?} is not a time: write `2026-01-05T12:00:00Z`")
            })?,
        };
        if self.action == ActName::Request {
            return self.request(config, now);
        }
        let who = match (&self.person, &self.agent) {
            (Some(handle), _) => Who::Person(PersonFacts { handle, groups: &self.groups }),
            (None, Some(_)) => Who::Agent(self.agent(config)?),
            (None, None) => return Err("say who acts: `person` or `agent`".into()),
        };
        let act = match self.action {
            ActName::Request => unreachable!("returned above"),
            ActName::Sign => Act::Sign {
                scope: self.scope(config)?,
                decision: self.decision.unwrap_or(Vote::Approve),
                agent: self.agent(config)?,
                assurance: self.assurance.unwrap_or(Assurance::Verified),
            },
            ActName::Revoke => {
                Act::Revoke { scope: self.scope(config)?, agent: self.agent(config)? }
            }
            // Of an agent's name alone, or of what begins by a sponsor's signature, the server knows none of these.
            ActName::Freeze | ActName::Thaw | ActName::StartTask
                if self.issuer.is_some() || self.actor.is_some() || !self.claims.is_empty() =>
            {
                return Err(
                    "`issuer`, `actor` and `claims` go with `request`, `sign` and `revoke`"
                        .to_owned(),
                );
            }
            ActName::Freeze => Act::Freeze(self.target(config)?),
            ActName::Thaw => Act::Thaw(self.target(config)?),
            ActName::StartTask => Act::StartTask {
                agent: self.agent(config)?,
                window: self.ttl.map_or(Duration::HOUR, |it| it.0),
                task: self.task(),
            },
            ActName::ReadHistory => Act::ReadHistory,
        };
        Ok(match config.policy.rule(who, &act, now) {
            Ruling::Allow { by } => Answer { what: Expected::Allow, by, why: String::new() },
            Ruling::Deny { by } => Answer { what: Expected::Deny, why: denial(&by), by },
        })
    }

    /// As the server would: narrow, then decide.
    fn request(&self, config: &Config, now: OffsetDateTime) -> Result<Answer, String> {
        let agent = self.agent(config)?;
        let scope = self.scope(config)?;
        let holder = Holder { agent: agent.name, sponsor: agent.sponsor, task: self.task() };
        let words = |it: &Option<String>| it.clone().or_else(|| Some("a case".to_owned()));
        let request = LeaseRequest {
            scope: scope.name.clone(),
            task: None,
            reason: words(&self.reason),
            actions: self.actions.clone(),
            resources: self.resources.clone(),
            ttl_seconds: Some(Span(self.ttl.map_or(SHORTEST_SESSION, |it| it.0)).seconds()),
            rollback: words(&self.rollback),
            deliver: false,
            join: false,
        };
        let narrowed = match narrow(scope, &request, holder, LeaseId(Uuid::nil()), now) {
            Ok(narrowed) => narrowed,
            Err(error) => {
                let outside = matches!(error, NarrowError::Action(_) | NarrowError::Resource(_));
                let what = if outside { Expected::Deny } else { Expected::Invalid };
                return Ok(Answer { what, by: Vec::new(), why: error.to_string() });
            }
        };
        let asked = Asked {
            scope,
            actions: narrowed.actions.iter().map(|it| (it.action.as_str(), it.class)).collect(),
            window: narrowed.window,
            task: self.task(),
            usage: self.usage,
        };
        Ok(match config.policy.decide(agent, asked, now) {
            Decision::Allow { by } => Answer { what: Expected::Allow, by, why: String::new() },
            Decision::NeedSignatures { by, .. } => {
                Answer { what: Expected::Sign, by, why: String::new() }
            }
            Decision::Deny { by } => Answer { what: Expected::Deny, why: denial(&by), by },
        })
    }

    fn compare(&self, answer: &Answer) -> Option<String> {
        let Answer { what, by, why } = answer;
        let said = match (by.as_slice(), why.as_str()) {
            ([], "") => what.to_string(),
            ([], why) => format!("{what}: {why}"),
            (by, _) => format!("{what} by {}", by.join(", ")),
        };
        if *what != self.expect {
            return Some(format!("expected {}, was {said}", self.expect));
        }
        if let Some(expected) = &self.by {
            let mut expected = expected.clone();
            expected.sort();
            if expected != *by {
                return Some(format!(
                    "expected {} by {}, was {said}",
                    self.expect,
                    expected.join(", ")
                ));
            }
        }
        match &self.because {
            Some(part) if !why.contains(part.as_str()) => {
                Some(format!("expected {} because of {part:?}, was {said}", self.expect))
            }
            _ => None,
        }
    }

    fn task(&self) -> &str {
        self.task.as_deref().unwrap_or("case")
    }

    fn scope<'a>(&self, config: &'a Config) -> Result<&'a Scope, String> {
        let name = self.scope.as_deref().ok_or("say which `scope`")?;
        config.catalogue.scope(name).ok_or_else(|| format!("there is no scope {name:?}"))
    }

    fn agent<'a>(&'a self, config: &'a Config) -> Result<AgentFacts<'a>, String> {
        Ok(AgentFacts {
            name: self.agent.as_deref().ok_or("say which `agent`")?,
            sponsor: self.sponsor.as_deref().ok_or("say who is its `sponsor`")?,
            sponsor_groups: &self.sponsor_groups,
            issuer: self.issuer.as_deref().unwrap_or(&config.settings.origin),
            actor: self.actor.as_deref(),
            claims: &self.claims,
        })
    }

    fn target<'a>(&'a self, config: &'a Config) -> Result<Target<'a>, String> {
        let text = self.target.as_deref().ok_or("say which `target`")?;
        Ok(match text.split_once(':') {
            None if text == "all" => Target::Everything,
            Some(("agent", name)) => Target::Agent(AgentFacts { name, ..self.agent(config)? }),
            Some(("sponsor", handle)) => {
                Target::Sponsor(PersonFacts { handle, groups: &self.sponsor_groups })
            }
            Some(("scope", name)) => Target::Scope(
                config
                    .catalogue
                    .scope(name)
                    .ok_or_else(|| format!("there is no scope {name:?}"))?,
            ),
            Some(("environment", name)) => Target::Environment(
                name.parse().map_err(|it: crate::lease::UnknownWord| it.to_string())?,
            ),
            _ => {
                return Err(format!(
                    "target = {text:?}: write `agent:NAME`, `sponsor:HANDLE`, `scope:NAME`, `environment:NAME` or `all`"
                ));
            }
        })
    }
}

fn denial(by: &[String]) -> String {
    if by.is_empty() {
        "no rule allows it".to_owned()
    } else {
        format!("forbidden by {}", by.join(", "))
    }
}
