//! Reading: who may see what.

use tokio::sync::broadcast;

use super::Broker;
use crate::config::Span;
use crate::error::{Error, Result};
use crate::identity::{Agent, Caller, Reader};
use crate::lease::{LeaseId, LeaseState};
use crate::policy::{Act, Asked, Decision, PersonFacts, Ruling, Who};
use crate::statement::LeaseStatement;
use crate::store::{self, Find, Viewer};
use crate::verify::Rejection;
use crate::{catalogue, pages, wire};

/// The longest long poll.
const MAX_WAIT: std::time::Duration = std::time::Duration::from_secs(30);
const MAX_PAGE: i64 = 200;

impl Broker {
    /// One lease, as `caller` may see it.
    pub async fn lease(&self, caller: &Caller, id: LeaseId) -> Result<wire::Lease> {
        let viewer = self.viewer(caller).await?;
        self.find_one(viewer.as_viewer(), id).await
    }

    /// One lease, once it is no longer pending, or after `wait`, whichever is first.
    pub async fn lease_when_changed(
        &self,
        caller: &Caller,
        id: LeaseId,
        wait: std::time::Duration,
    ) -> Result<wire::Lease> {
        // Before the first look: what changes after it is not missed.
        let mut changes = self.changes.subscribe();
        let viewer = self.viewer(caller).await?;
        let first = self.find_one(viewer.as_viewer(), id).await?;
        if first.state != LeaseState::Pending {
            return Ok(first);
        }
        let decided = async {
            loop {
                match changes.recv().await {
                    Ok(Some(other)) if other != id => continue,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                }
                let now = self.find_one(viewer.as_viewer(), id).await?;
                if now.state != first.state {
                    return Ok(now);
                }
            }
        };
        tokio::time::timeout(wait.min(MAX_WAIT), decided).await.unwrap_or(Ok(first.clone()))
    }

    /// A page of leases, newest first.
    pub async fn leases(
        &self,
        caller: &Caller,
        state: Option<LeaseState>,
        agent: Option<&str>,
        after: Option<LeaseId>,
        limit: Option<u16>,
    ) -> Result<wire::LeasePage> {
        let viewer = self.viewer(caller).await?;
        let limit = i64::from(limit.unwrap_or(50)).clamp(1, MAX_PAGE);
        let find = Find { state, agent, after, limit: limit + 1, ..Find::by(viewer.as_viewer()) };
        let mut leases = store::find(&self.pool, find).await?;
        let more = limit < i64::try_from(leases.len()).unwrap_or(i64::MAX);
        if more {
            leases.pop();
        }
        let leases: Vec<_> = leases.into_iter().map(|it| self.with_next(it)).collect();
        let next_cursor = leases.last().filter(|_| more).map(|it| it.id);
        Ok(wire::LeasePage { leases, next_cursor })
    }

    /// The exact bytes that are signed for a lease.
    pub async fn statement(&self, caller: &Caller, id: LeaseId) -> Result<LeaseStatement> {
        self.lease(caller, id).await?;
        let bytes = store::statement(&self.pool, id).await?.ok_or(Error::NotFound)?;
        Ok(LeaseStatement::from_bytes(bytes)?)
    }

    /// The scopes that this agent would not be denied, asked for the shortest window.
    pub async fn scopes(&self, agent: &Agent) -> Result<wire::ScopeList> {
        if !store::task_is_live(&self.pool, agent, self.clock.now()).await? {
            return Err(Error::TaskEnded);
        }
        let now = self.clock.now();
        let usage = self.usage(agent, now).await?;
        let groups = self.sponsor_groups(&agent.sponsor).await?.ok_or(Error::TaskEnded)?;
        let allowed = |scope: &&catalogue::Scope| {
            let asked = Asked {
                scope,
                actions: scope.actions.iter().map(|it| (it.name(), it.class)).collect(),
                window: catalogue::SHORTEST_SESSION,
                task: &agent.task,
                usage,
            };
            let decision = self.config.policy.decide(self.facts(agent, &groups), asked, now);
            !matches!(decision, Decision::Deny { .. })
        };
        let scopes = self.config.catalogue.scopes().filter(allowed).map(wire_scope).collect();
        Ok(wire::ScopeList { scopes })
    }

    pub async fn whoami(&self, caller: &Caller) -> Result<wire::WhoAmI> {
        match caller {
            Caller::Agent(agent) => {
                if !store::task_is_live(&self.pool, agent, self.clock.now()).await? {
                    return Err(Error::TaskEnded);
                }
                Ok(wire::WhoAmI::Agent {
                    agent: agent.name.clone(),
                    sponsor: agent.sponsor.clone(),
                    actor: agent.origin.actor.clone(),
                    task: agent.task.clone(),
                    task_id: agent.task_id,
                    token_expires_at: agent.token_expires_at,
                })
            }
            Caller::Person(reader) => {
                let person = self.person(reader).await?;
                Ok(wire::WhoAmI::Person {
                    person: person.handle,
                    display_name: person.display_name,
                    groups: person.groups,
                    token_expires_at: reader.token_expires_at,
                })
            }
        }
    }

    pub(super) async fn person(&self, reader: &Reader) -> Result<store::Person> {
        let person = store::active_person(&self.pool, &reader.handle).await?;
        let disabled = Error::Rejected { lease_id: None, rejection: Rejection::PersonDisabled };
        person.ok_or(disabled)
    }

    /// What a caller may look at, by what the database says of them now.
    async fn viewer<'a>(&self, caller: &'a Caller) -> Result<Sight<'a>> {
        match caller {
            Caller::Agent(agent) => {
                if !store::task_is_live(&self.pool, agent, self.clock.now()).await? {
                    return Err(Error::TaskEnded);
                }
                Ok(Sight::Agent(agent))
            }
            Caller::Person(reader) => {
                let person = self.person(reader).await?;
                let who = PersonFacts { handle: &person.handle, groups: &person.groups };
                let (act, now) = (Act::ReadHistory, self.clock.now());
                let ruling = self.config.policy.rule(Who::Person(who), &act, now);
                let all = matches!(ruling, Ruling::Allow { .. });
                Ok(Sight::Person { handle: person.handle, all })
            }
        }
    }

    /// Whether rules let the caller read everybody's history.
    pub(super) async fn sees_all(&self, caller: &Caller) -> Result<bool> {
        Ok(matches!(self.viewer(caller).await?, Sight::Person { all: true, .. }))
    }

    pub(super) async fn lease_of(&self, agent: &Agent, id: LeaseId) -> Result<wire::Lease> {
        self.find_one(Viewer::Agent { name: &agent.name, sponsor: &agent.sponsor }, id).await
    }

    pub(super) async fn find_one(&self, viewer: Viewer<'_>, id: LeaseId) -> Result<wire::Lease> {
        let found = store::find(&self.pool, Find { id: Some(id), ..Find::by(viewer) }).await?.pop();
        found.map(|it| self.with_next(it)).ok_or(Error::NotFound)
    }

    /// Adds the way forward: an agent that is given none looks for another credential.
    fn with_next(&self, mut lease: wire::Lease) -> wire::Lease {
        let id = lease.id;
        let pending = lease.state == LeaseState::Pending;
        lease.link = pending.then(|| pages::address(&self.config.settings.origin, id));
        lease.next = match lease.state {
            LeaseState::Pending => {
                let signers = lease.eligible_signers.join(", ");
                Some(match &lease.short_code {
                    Some(code) => format!(
                        "Tell one of {signers} the code {code}; they run `broker sign {id}`. Then `broker exec --lease {id} -- CMD`.",
                    ),
                    None => format!(
                        "One of {signers} runs `broker sign {id}`, and has to be told the code by whoever asked for the lease.",
                    ),
                })
            }
            LeaseState::Approved => Some(format!("Use it with `broker exec --lease {id} -- CMD`.")),
            LeaseState::Issued | LeaseState::Denied => None,
            LeaseState::Refused => Some(format!(
                "`broker show {id}` has the signer's reason; answer that before asking again."
            )),
            LeaseState::Revoked => {
                Some("Ask the sponsor why it was revoked; then go on, or not.".to_owned())
            }
            _ => Some("Ask for a new lease if the task still needs one.".to_owned()),
        };
        lease
    }
}

enum Sight<'a> {
    Agent(&'a Agent),
    Person { handle: String, all: bool },
}

impl Sight<'_> {
    fn as_viewer(&self) -> Viewer<'_> {
        match self {
            Self::Agent(agent) => Viewer::Agent { name: &agent.name, sponsor: &agent.sponsor },
            Self::Person { handle, all } => Viewer::Person { handle, all: *all },
        }
    }
}

fn wire_scope(scope: &catalogue::Scope) -> wire::Scope {
    wire::Scope {
        name: scope.name.clone(),
        description: scope.description.clone(),
        environment: scope.environment,
        tier: scope.tier,
        tier_because: scope.tier_because.clone(),
        account: scope.account.clone(),
        regions: scope.conditions.regions.clone(),
        actions: scope.actions.iter().map(|it| it.name().to_owned()).collect(),
        resources: scope.resources.iter().map(ToString::to_string).collect(),
        max_ttl_seconds: Span(scope.max_ttl).seconds(),
        signatures_needed: scope.signers.as_ref().map_or(0, |it| it.count),
        signer_groups: scope.signers.as_ref().map(|it| it.groups.clone()).unwrap_or_default(),
    }
}
