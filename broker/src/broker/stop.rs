//! Stopping: one lease, or whatever a freeze covers; and telling AWS, until AWS is seen to refuse.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration as StdDuration;

use time::{Duration, OffsetDateTime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Broker, NO_CLAIMS};
use crate::audit::Actor;
use crate::aws::{OnRole, Probe, ProbeAnswer, StopError, StopPolicy};
use crate::error::{Error, Result};
use crate::identity::Caller;
use crate::lease::{Environment, FreezeKind, LeaseId, LeaseState};
use crate::policy::{Act, AgentFacts, PersonFacts, Ruling, Target, Who};
use crate::store::{self, HeldRole, NewFreeze, ToStop, WhatStops};
use crate::wire;

/// Between two looks at whether AWS refuses a probe: at first, and after a while.
const LOOK_EVERY: StdDuration = StdDuration::from_millis(200);
const LOOK_EVERY_LATER: StdDuration = StdDuration::from_secs(2);
const LATER: u32 = 50;
/// How often it is noted that a probe is looked after.
const NOTE_EVERY: Duration = Duration::seconds(2);
/// A third of the database's connections: see [`Roles`].
const ROLES_AT_ONCE: usize = 10;
const LONGEST_REASON: usize = 1000;

impl Broker {
    /// Stops a lease, and every session under it.
    pub async fn revoke(&self, caller: &Caller, id: LeaseId, reason: &str) -> Result<wire::Lease> {
        let now = self.clock.now();
        let reason = reason_of(reason)?;
        let lease = self.lease(caller, id).await?;
        let (who, actor) = match caller {
            Caller::Agent(agent) => (None, Actor::Agent(&agent.name)),
            Caller::Person(reader) => {
                (Some(self.person(reader).await?), Actor::Person(&reader.handle))
            }
        };
        let groups = self.groups_of(&lease.sponsor).await?;
        let origin = store::origin(&self.pool, id).await?;
        let agent = AgentFacts {
            issuer: origin.issuer.as_deref().unwrap_or(&self.config.settings.origin),
            actor: origin.actor.as_deref(),
            claims: &origin.claims,
            ..self.agent_facts(&lease.agent, &lease.sponsor, &groups)
        };
        let rule = |act: &Act<'_>| {
            let who = match &who {
                Some(it) => Who::Person(PersonFacts { handle: &it.handle, groups: &it.groups }),
                None => Who::Agent(agent),
            };
            self.config.policy.rule(who, act, now)
        };
        let ruling = match self.config.catalogue.scope(&lease.scope) {
            Some(scope) => rule(&Act::Revoke { scope, agent }),
            // Where there is no scope any more to rule on, whoever may freeze the agent may stop its lease.
            None => rule(&Act::Freeze(Target::Agent(agent))),
        };
        if let Ruling::Deny { .. } = ruling {
            return Err(Error::Denied {
                lease_id: Some(id),
                why: "the rules do not let you stop it".into(),
            });
        }
        let receipt = store::revoke(&self.pool, &self.scribe, actor, &lease, reason, now).await?;
        if receipt.is_some() {
            self.to_stop.notify_one();
        }
        let lease = self.lease(caller, id).await?;
        match lease.state {
            LeaseState::Revoked => Ok(wire::Lease { receipt, ..lease }),
            state => Err(Error::Ended { id, state }),
        }
    }

    /// Orders that nothing is issued to what `request` names, and stops what was.
    pub async fn freeze(
        &self,
        caller: &Caller,
        request: &wire::FreezeRequest,
    ) -> Result<wire::Freeze> {
        let now = super::whole_microseconds(self.clock.now());
        let reason = reason_of(&request.reason)?;
        let me = self.caller_in_person(caller).await?;
        check_form(request)?;
        let person = PersonFacts { handle: &me.handle, groups: &me.groups };
        if let Ruling::Deny { .. } = self.rule_on_freeze(person, request, now).await? {
            return Err(Error::Denied { lease_id: None, why: "the rules do not let you".into() });
        }
        // Not before: what there is, is not for everybody to know.
        self.check_target(request).await?;
        let roles = self.roles_frozen_whole(request);
        let new = NewFreeze {
            id: Uuid::now_v7(),
            kind: request.kind,
            target: request.target.as_deref(),
            reason,
            person: &me.handle,
            roles: &roles,
            cut_off: self.cut_off(now),
        };
        let frozen = store::freeze(&self.pool, &self.scribe, Actor::Person(&me.handle), new, now);
        let receipt = Some(frozen.await?);
        // It stands. If this fails, the next round does it.
        if let Err(error) = store::stop_what_is_frozen(&self.pool, &self.scribe, now).await {
            tracing::warn!(?error, "what is frozen is not stopped yet");
        }
        self.to_stop.notify_one();
        let freeze = store::freezes(&self.pool, Some(new.id)).await?.pop();
        Ok(wire::Freeze { receipt, ..freeze.ok_or(Error::NotFound)? })
    }

    /// The freezes that stand.
    pub async fn freezes(&self, caller: &Caller) -> Result<wire::FreezeList> {
        self.caller_in_person(caller).await?;
        Ok(wire::FreezeList { freezes: store::freezes(&self.pool, None).await? })
    }

    pub async fn find_freeze(&self, caller: &Caller, id: Uuid) -> Result<wire::Freeze> {
        self.caller_in_person(caller).await?;
        store::freezes(&self.pool, Some(id)).await?.pop().ok_or(Error::NotFound)
    }

    /// A freeze of a name that is misspelled would stop nothing, without a word.
    async fn check_target(&self, request: &wire::FreezeRequest) -> Result<()> {
        let Some(target) = request.target.as_deref() else { return Ok(()) };
        let known = match request.kind {
            FreezeKind::Environment => target.parse::<Environment>().is_ok(),
            FreezeKind::Scope if self.config.catalogue.scope(target).is_some() => true,
            kind => store::is_known(&self.pool, kind, target).await?,
        };
        if known {
            return Ok(());
        }
        Err(Error::Invalid(format!("there is no {} {target:?}: check the name", request.kind)))
    }

    async fn rule_on_freeze(
        &self,
        person: PersonFacts<'_>,
        request: &wire::FreezeRequest,
        now: OffsetDateTime,
    ) -> Result<Ruling> {
        let rule = |target: Target<'_>| {
            self.config.policy.rule(Who::Person(person), &Act::Freeze(target), now)
        };
        let target = request.target.as_deref().unwrap_or_default();
        Ok(match request.kind {
            FreezeKind::Agent => {
                // Of an agent that several stand behind, each may stop it.
                let sponsor = if store::is_sponsor_of(&self.pool, person.handle, target).await? {
                    person.handle.to_owned()
                } else {
                    store::last_sponsor(&self.pool, target).await?.unwrap_or_default()
                };
                let groups = self.groups_of(&sponsor).await?;
                rule(Target::Agent(self.agent_facts(target, &sponsor, &groups)))
            }
            FreezeKind::Sponsor => {
                let groups = self.groups_of(target).await?;
                rule(Target::Sponsor(PersonFacts { handle: target, groups: &groups }))
            }
            // What no longer exists is ruled on as the widest thing there is.
            FreezeKind::Scope => {
                rule(self.config.catalogue.scope(target).map_or(Target::Everything, Target::Scope))
            }
            FreezeKind::Environment => {
                rule(target.parse().map_or(Target::Everything, Target::Environment))
            }
            FreezeKind::All => rule(Target::Everything),
        })
    }

    async fn groups_of(&self, handle: &str) -> Result<Vec<String>> {
        Ok(store::active_person(&self.pool, handle).await?.map(|it| it.groups).unwrap_or_default())
    }

    fn agent_facts<'a>(
        &'a self,
        name: &'a str,
        sponsor: &'a str,
        sponsor_groups: &'a [String],
    ) -> AgentFacts<'a> {
        let issuer = &self.config.settings.origin;
        AgentFacts { name, sponsor, sponsor_groups, issuer, actor: None, claims: NO_CLAIMS }
    }

    /// The roles of which a freeze leaves nothing.
    fn roles_frozen_whole(&self, request: &wire::FreezeRequest) -> Vec<String> {
        let target = request.target.as_deref().unwrap_or_default();
        let frozen = |environment: Environment| match request.kind {
            FreezeKind::All => true,
            FreezeKind::Environment => environment.as_str() == target,
            _ => false,
        };
        let scopes = || self.config.catalogue.scopes();
        let whole =
            |role: &str| scopes().filter(|it| it.role_arn == role).all(|it| frozen(it.environment));
        let mut roles: Vec<_> =
            scopes().map(|it| it.role_arn.clone()).filter(|it| whole(it)).collect();
        roles.sort();
        roles.dedup();
        roles
    }

    /// When all that can have begun by now has begun: AWS is told a time that is over for what was being minted, and new
    /// sessions wait for it. AWS counts in whole seconds.
    fn cut_off(&self, now: OffsetDateTime) -> OffsetDateTime {
        self.config.settings.aws.cut_off(now)
    }

    /// Returns when this server was told of something to stop.
    pub async fn something_to_stop(&self) {
        self.to_stop.notified().await;
    }

    /// One round: stops what is frozen, then tells AWS, each role by itself. Other servers may do the same: one at a time
    /// writes a role's policy.
    pub async fn stop_sessions(self: &Arc<Self>) -> Result<JoinSet<()>> {
        let now = self.clock.now();
        store::stop_what_is_frozen(&self.pool, &self.scribe, now).await?;
        let mut tasks = JoinSet::new();
        for role in store::roles_to_stop(&self.pool, now).await? {
            let Some(at_work) = AtWork::on(self, &role.role_arn) else { continue };
            let broker = self.clone();
            tasks.spawn(async move {
                let _at_work = at_work;
                let _turn = broker.roles.turns.acquire().await;
                if let Err(error) = broker.stop_on_role(&role).await {
                    tracing::warn!(role = role.role_arn, ?error, "AWS is not told to stop yet");
                }
            });
        }
        Ok(tasks)
    }

    /// Writes a role's policy as it has to be, if it is not, and starts to watch what it does.
    async fn stop_on_role(self: &Arc<Self>, role: &ToStop) -> Result<()> {
        let now = self.clock.now();
        let Some(mut held) = HeldRole::hold(&self.pool, &role.role_arn).await? else {
            return Ok(());
        };
        let what = held.what_stops(now).await?;
        if !what.policy.fits() {
            return self.cut_off_role(held, &what.policy, now).await;
        }
        let there = match self.revoker.read(&role.role_arn).await {
            Ok(there) => there,
            // A role that is gone, and of which nothing is to be stopped, is nobody's business any more.
            Err(error) if what.policy.is_empty() && error.is_no_such_role() => OnRole::Nothing,
            Err(error) => return Ok(held.failed(&error.to_string(), None, now).await?),
        };
        let (covered, exact) = match &there {
            OnRole::Nothing => (what.policy.is_empty(), what.policy.is_empty()),
            OnRole::Ours(there) => (there.covers(&what.policy), what.policy.is_all_of(there)),
            OnRole::Foreign => (false, false),
        };
        if covered && exact && what.unproven.is_empty() {
            return Ok(held.checked(&what.policy, now).await?);
        }
        // Nothing new is to be stopped, and something of what was is not there.
        let lost = !covered && what.unproven.is_empty() && held.has_written(what.policy.cut_off);
        if there == OnRole::Foreign || there == OnRole::Nothing && held.is_written() || lost {
            tracing::error!(
                role = role.role_arn,
                "the policy that stops sessions is not as it was left: somebody else changed it, or AWS did an earlier write late; it is written anew"
            );
        }
        // Until then AWS refuses everything that begins, and no probe could be seen to work.
        let shut_until = match &there {
            OnRole::Ours(it) => it.cut_off.filter(|it| now <= *it),
            _ => None,
        };
        let probe = if what.unproven.is_empty() || shut_until.is_some() {
            None
        } else {
            self.working_probe(role).await?
        };
        if covered && exact && probe.is_none() {
            let why = "AWS is told, and not yet seen to refuse: there is no session to try it with";
            return Ok(held.failed(why, shut_until, now).await?);
        }
        self.write_policy(held, what, probe).await
    }

    async fn write_policy(
        self: &Arc<Self>,
        held: HeldRole,
        what: WhatStops,
        probe: Option<WorkingProbe>,
    ) -> Result<()> {
        let WhatStops { mut policy, unproven } = what;
        let single = policy.names_leases();
        policy.session_names.extend(probe.as_ref().map(|it| it.session_name.clone()));
        let written = if policy.is_empty() {
            self.revoker.remove(&held.role_arn).await
        } else {
            self.revoker.write(&held.role_arn, &policy).await
        };
        let now = self.clock.now();
        match written {
            Ok(()) => {}
            // What else is on the role leaves less room than IAM gives; a cut-off makes some if there are single sessions.
            Err(StopError::NoRoom) if single => {
                return self.cut_off_role(held, &policy, now).await;
            }
            Err(error) => {
                if let Some(probe) = &probe {
                    store::probe_failed(&self.pool, probe.id, "the policy was not written").await?;
                }
                return Ok(held.failed(&error.to_string(), None, now).await?);
            }
        }
        let id = probe.as_ref().map(|it| it.id);
        held.written(&self.scribe, &policy, &unproven, id, now).await?;
        if let Some(probe) = probe {
            tokio::spawn(self.clone().watch_probe(probe));
        }
        Ok(())
    }

    async fn cut_off_role(
        &self,
        held: HeldRole,
        policy: &StopPolicy,
        now: OffsetDateTime,
    ) -> Result<()> {
        if policy.cut_off.is_some_and(|it| now < it) {
            let why =
                "the role's policy has no room, though all its sessions were stopped just now";
            return Ok(held.failed(why, None, now).await?);
        }
        tracing::warn!(
            role = held.role_arn,
            "its policy has no room: all its sessions are stopped"
        );
        held.cut_off(&self.scribe, self.cut_off(now), now).await?;
        self.to_stop.notify_one();
        Ok(())
    }

    /// A session on the role that AWS lets do what it is for; `None` if there is none to be had now.
    async fn working_probe(&self, role: &ToStop) -> Result<Option<WorkingProbe>> {
        let arn = &role.role_arn;
        let scope = self.config.catalogue.scopes().find(|it| it.role_arn == *arn);
        let external_id = scope.map_or(role.external_id.as_ref(), |it| it.external_id.as_ref());
        let new = store::new_probe(&self.pool, &self.scribe, arn, self.clock.now()).await?;
        let minted = self.sts.probe(arn, external_id.map(String::as_str), &new.session_name).await;
        let probe = match minted {
            Ok(probe) => probe,
            Err(error) => {
                tracing::warn!(role = arn, ?error, "no session to try the role's policy with");
                store::probe_failed(&self.pool, new.id, &error.to_string()).await?;
                return Ok(None);
            }
        };
        store::probe_minted(&self.pool, new.id, &probe.access_key_id, probe.expires_at).await?;
        let answer = probe.ask().await;
        if answer != ProbeAnswer::Let {
            tracing::warn!(
                role = arn,
                ?answer,
                "a new session may not do what the role's policy is tried with"
            );
            store::probe_failed(
                &self.pool,
                new.id,
                "AWS did not let it before the policy was written",
            )
            .await?;
            return Ok(None);
        }
        store::probe_works(&self.pool, new.id, self.clock.now()).await?;
        Ok(Some(WorkingProbe { id: new.id, session_name: new.session_name, probe }))
    }

    /// Asks AWS until it refuses the probe, and writes that down; or until the probe expires.
    async fn watch_probe(self: Arc<Self>, probe: WorkingProbe) {
        let mut noted_at = self.clock.now();
        for look in 0_u32.. {
            let answer = probe.probe.ask().await;
            let now = self.clock.now();
            let noted = match answer {
                ProbeAnswer::Refused => {
                    let region = &self.config.settings.aws.region;
                    match store::probe_refused(&self.pool, &self.scribe, probe.id, region, now)
                        .await
                    {
                        Ok(sessions) => {
                            tracing::info!(sessions, region, probe = %probe.id, "AWS refuses what was stopped");
                            return;
                        }
                        Err(error) => Err(error),
                    }
                }
                _ if probe.probe.expires_at <= now => {
                    store::probe_failed(&self.pool, probe.id, "it expired before AWS refused it")
                        .await
                }
                // That somebody looks after it, and is answered, is for the other servers to know.
                // By the time, not by the looks: AWS may be slow to answer.
                ProbeAnswer::Let if NOTE_EVERY <= now - noted_at => {
                    noted_at = now;
                    store::probe_works(&self.pool, probe.id, now).await
                }
                _ => Ok(()),
            };
            if let Err(error) = noted {
                tracing::warn!(?error, probe = %probe.id, "what AWS said to a probe is not written down yet");
            } else if probe.probe.expires_at <= now {
                return;
            }
            let pause = if look < LATER { LOOK_EVERY } else { LOOK_EVERY_LATER };
            tokio::time::sleep(pause).await;
        }
    }
}

/// The roles that this server is at work on: each once, and a few at a time. Each holds one connection to the database while
/// AWS is asked, and needs a second one now and then; the lease path needs the others.
pub(super) struct Roles {
    at_work: Mutex<HashSet<String>>,
    turns: Semaphore,
}

impl Default for Roles {
    fn default() -> Self {
        Self { at_work: Mutex::default(), turns: Semaphore::new(ROLES_AT_ONCE) }
    }
}

/// That this server is at work on a role, or waits for its turn.
struct AtWork {
    broker: Arc<Broker>,
    role_arn: String,
}

impl AtWork {
    /// `None` if it is already.
    fn on(broker: &Arc<Broker>, role_arn: &str) -> Option<Self> {
        let mut at_work = broker.roles.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        at_work
            .insert(role_arn.to_owned())
            .then(|| Self { broker: broker.clone(), role_arn: role_arn.to_owned() })
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let at_work = &self.broker.roles.at_work;
        at_work.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.role_arn);
    }
}

/// A recorded session of the broker's own that AWS was seen to let.
struct WorkingProbe {
    id: Uuid,
    session_name: String,
    probe: Probe,
}

fn check_form(request: &wire::FreezeRequest) -> Result<()> {
    match (request.kind, &request.target) {
        (FreezeKind::All, Some(_)) => Err(Error::Invalid("`all` has no target".into())),
        (FreezeKind::All, None) | (_, Some(_)) => Ok(()),
        (kind, None) => Err(Error::Invalid(format!("name the {kind} to freeze"))),
    }
}

fn reason_of(text: &str) -> Result<&str> {
    let text = text.trim();
    if text.is_empty()
        || LONGEST_REASON < text.chars().count()
        || text.chars().any(char::is_control)
    {
        return Err(Error::Invalid(format!(
            "say why, in one line of at most {LONGEST_REASON} characters"
        )));
    }
    Ok(text)
}
