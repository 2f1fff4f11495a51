//! From an approved lease to credentials, once or again; and taking a lease back.

use std::collections::{BTreeSet, HashSet};
use std::sync::PoisonError;

use secrecy::ExposeSecret;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::refuse::{Refusal, Whom};
use super::sign::agent_of;
use super::{Broker, Delivered};
use crate::audit::EventType;
use crate::aws::Minted;
use crate::config::Span;
use crate::error::{Error, Result};
use crate::identity::Agent;
use crate::lease::{self, LeaseId, LeaseState, Tier};
use crate::narrow::{Holder, narrow};
use crate::policy::{AgentFacts, Asked, Decision, PersonFacts, Ruling, Usage};
use crate::statement::{AssumeRole, LeaseStatement, Meaning};
use crate::store::{self, Approval, Claimable, Granted, Obstacle, Warrant};
use crate::verify::{self, Demand, Rejection, Signer, UnverifiedSignature};
use crate::wire;

impl Broker {
    /// Hands out credentials under a lease: the live session's again, or a new session's.
    pub async fn credentials(&self, agent: &Agent, id: LeaseId) -> Result<wire::Credentials> {
        let now = self.clock.now();
        if let Some(credentials) = self.redeliver(agent, id, now).await? {
            return Ok(credentials);
        }
        let claimable = store::claimable(&self.pool, id, agent).await?.ok_or(Error::NotFound)?;
        let signed = 0 < claimable.lease.signatures_needed;
        check_state(&claimable.lease, signed)?;
        match self.claim(agent, &claimable, signed, now).await {
            Ok(warrant) => self.mint_and_settle(agent, warrant, signed).await,
            Err(error) => {
                self.record_refused_claim(agent, &claimable.lease, &error, now).await?;
                Err(error)
            }
        }
    }

    /// Judges once more what was judged at request, and claims.
    async fn claim(
        &self,
        agent: &Agent,
        claimable: &Claimable,
        signed: bool,
        now: OffsetDateTime,
    ) -> Result<Warrant> {
        let lease = &claimable.lease;
        let groups = self.sponsor_groups(&lease.sponsor).await?;
        let grant = if signed {
            let mut enrolled = HashSet::new();
            for approval in &claimable.approvals {
                if approval.enrolled_by.is_none() || self.is_enrolled(&approval.fingerprint).await?
                {
                    enrolled.insert(approval.fingerprint.as_str());
                }
            }
            self.check_approvals(claimable, &enrolled, agent, groups.as_deref(), now)?
        } else {
            Grant {
                actions: lease.actions.clone(),
                resources: lease.resources.clone(),
                window: claimable.window,
                assume_role: claimable.assume_role.clone(),
                statement_sha256: None,
            }
        };
        let groups = groups.ok_or(Error::TaskEnded)?;
        let by = self.check_rules(self.facts(agent, &groups), lease, &grant, now)?;
        let scope = self.config.catalogue.scope(&lease.scope);
        let destroys = lease.tier.max(scope.map(|it| it.tier)) == Some(Tier::Destructive);
        if destroys && let Err(why) = self.log.anchored(lease.id).await? {
            return Err(Error::NotAnchored { id: lease.id, why });
        }
        // That may have taken a while.
        self.log.gate()?;
        let now = if destroys { self.clock.now() } else { now };
        let granted =
            Granted { assume_role: grant.assume_role, statement_sha256: grant.statement_sha256 };
        let claimed =
            store::claim(&self.pool, &self.scribe, lease, granted, &by, agent, now).await?;
        match claimed {
            Some(warrant) => Ok(warrant),
            None => Err(self.why_not_claimed(agent, lease.id, signed, now).await?),
        }
    }

    /// A claim that rules or a freeze refused is part of the story; one that the state refused is not news.
    async fn record_refused_claim(
        &self,
        agent: &Agent,
        lease: &wire::Lease,
        error: &Error,
        now: OffsetDateTime,
    ) -> Result<()> {
        let denied = matches!(error, Error::Denied { .. } | Error::NoLonger { .. });
        if !denied && !matches!(error, Error::Frozen(_) | Error::TaskEnded) {
            return Ok(());
        }
        let why = error.to_string();
        let whom = Whom::Agent(agent.name.clone());
        let refusal = Refusal::new(EventType::ClaimRefused, whom, &why, now).of(lease.into());
        self.refuse(Refusal { detail: json!({ "why": why }), ..refusal }).await
    }

    async fn redeliver(
        &self,
        agent: &Agent,
        id: LeaseId,
        now: OffsetDateTime,
    ) -> Result<Option<wire::Credentials>> {
        let kept = {
            let delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
            delivered
                .get(&id)
                .filter(|it| it.agent == agent.name && it.sponsor == agent.sponsor)
                .filter(|it| now < it.minted.expires_at - self.limits().redeliver_until.0)
                .map(|it| {
                    (
                        it.scope.clone(),
                        wire_credentials(it.session_id, &it.region, &it.minted, it.until),
                    )
                })
        };
        let Some((scope, credentials)) = kept else { return Ok(None) };
        let session_id = credentials.session_id;
        let receipt =
            store::redeliver(&self.pool, &self.scribe, agent, &scope, id, session_id, now).await?;
        Ok(receipt.map(|it| wire::Credentials { receipt: Some(it), ..credentials }))
    }

    /// Rules can only tighten between request and claim: today's catalogue must compile the very same input. Says which
    /// rules let it.
    fn check_rules(
        &self,
        agent: AgentFacts<'_>,
        lease: &wire::Lease,
        grant: &Grant,
        now: OffsetDateTime,
    ) -> Result<Vec<String>> {
        let deny = |why: &str| {
            Err(Error::NoLonger { id: lease.id, why: format!("the rules have changed: {why}") })
        };
        let Some(scope) = self.config.catalogue.scope(&lease.scope) else {
            return deny("the scope is gone");
        };
        let asked = wire::LeaseRequest {
            scope: lease.scope.clone(),
            actions: Some(grant.actions.clone()),
            resources: Some(grant.resources.clone()),
            ttl_seconds: Some(Span(grant.window).seconds()),
            reason: lease.reason.clone(),
            rollback: lease.rollback.clone(),
            ..wire::LeaseRequest::default()
        };
        let holder = Holder { agent: &lease.agent, sponsor: &lease.sponsor, task: &lease.task };
        let Ok(still) = narrow(scope, &asked, holder, lease.id, lease.requested_at) else {
            return deny("the scope no longer holds this");
        };
        if still.assume_role != grant.assume_role {
            return deny("the scope would grant something else now");
        }
        let asked = Asked {
            scope,
            actions: still.actions.iter().map(|it| (it.action.as_str(), it.class)).collect(),
            window: grant.window,
            task: &lease.task,
            // What the agent had before was judged at request; by now this lease is part of what it has.
            usage: Usage::default(),
        };
        match self.config.policy.decide(agent, asked, now) {
            Decision::Deny { by } if by.is_empty() => deny("no rule allows it now"),
            Decision::Deny { by } => deny(&format!("it is forbidden by {} now", by.join(", "))),
            Decision::NeedSignatures { rule, .. } if lease.signatures_needed < rule.count => {
                deny("it needs more signatures now")
            }
            Decision::NeedSignatures { by, .. } | Decision::Allow { by } => Ok(by),
        }
    }

    /// Verifies every stored approval anew over the stored bytes, counts people, and reads the grant from the bytes.
    fn check_approvals(
        &self,
        claimable: &Claimable,
        enrolled: &HashSet<&str>,
        agent: &Agent,
        sponsor_groups: Option<&[String]>,
        now: OffsetDateTime,
    ) -> Result<Grant> {
        let lease = &claimable.lease;
        let why = "its approvals do not count any more: a key was revoked, a signer left, or the rules ask for more";
        let deny = || Error::NoLonger { id: lease.id, why: why.into() };
        let sealed = LeaseStatement::from_bytes(claimable.statement.clone().ok_or_else(deny)?)?;
        let scope = self.config.catalogue.scope(&lease.scope).ok_or_else(deny)?;
        let rule = scope.signers.as_ref().ok_or_else(deny)?;
        // What was signed, or what is asked today, whichever is stricter.
        let mut terms = sealed.terms().clone();
        terms.tier = terms.tier.max(scope.tier);
        let demand = Demand {
            meaning: Meaning::LeaseApproval,
            body: sealed.bytes(),
            origin: &sealed.terms().broker.origin,
            assurance: rule.assurance.max(terms.signers.assurance),
        };
        let mut people = BTreeSet::new();
        let of_enrolled = |it: &&Approval| enrolled.contains(it.fingerprint.as_str());
        for approval in claimable.approvals.iter().filter(of_enrolled) {
            let good = UnverifiedSignature::parse(&approval.signature).and_then(|signature| {
                verify::check_signature(&signature, &approval.key, demand, now)?;
                let in_group = rule.groups.iter().any(|it| approval.groups.contains(it));
                let signer = Signer { handle: &approval.person, active: true, in_group };
                verify::check_signer(&terms, &signer, approval.signed_at)?;
                let person = PersonFacts { handle: &approval.person, groups: &approval.groups };
                let (approve, assurance) = (lease::Decision::Approve, approval.key.assurance);
                // As of when they signed: office hours are not over because the agent claims late.
                let agent = agent_of(&terms, sponsor_groups, &agent.origin.claims);
                match self.rule_on_signing(
                    person,
                    &terms.scope,
                    agent,
                    approve,
                    assurance,
                    approval.signed_at,
                ) {
                    Ruling::Allow { .. } => Ok(()),
                    Ruling::Deny { .. } => Err(Rejection::ForbiddenByRule),
                }
            });
            if good.is_ok() {
                people.insert(approval.person.as_str());
            }
        }
        let needed = terms.signers.needed.max(rule.count).max(1);
        if terms.lease_id != lease.id || people.len() < usize::from(needed) {
            return Err(deny());
        }
        Ok(Grant {
            actions: terms.actions.into_iter().map(|it| it.action).collect(),
            resources: terms.resources,
            window: claimable.window,
            assume_role: terms.assume_role,
            statement_sha256: Some(sealed.sha256()),
        })
    }

    /// Says why a claim lost, from what the database says now.
    async fn why_not_claimed(
        &self,
        agent: &Agent,
        id: LeaseId,
        signed: bool,
        now: OffsetDateTime,
    ) -> Result<Error> {
        let obstacle = store::claim_obstacle(&self.pool, id, agent, now).await?;
        let lease = self.lease_of(agent, id).await?;
        Ok(match (obstacle, lease.state) {
            (Obstacle::TaskEnded, _) => Error::TaskEnded,
            (Obstacle::OtherTask, _) => {
                Error::Denied { lease_id: Some(id), why: "it was opened under another task".into() }
            }
            (Obstacle::Frozen, _) => Error::Frozen(Some(id)),
            (Obstacle::RoleCutOff(until), state) if !state.is_terminal() => {
                Error::RoleCutOff { id, until, wait: until - now }
            }
            (_, LeaseState::Pending) => Error::Pending(id),
            (_, state) if state.is_terminal() => Error::Ended { id, state },
            _ if signed && !lease.sessions.is_empty() => Error::AlreadyIssued(id),
            _ if lease.claim_by.is_some_and(|it| it < now) && lease.sessions.is_empty() => {
                Error::Ended { id, state: LeaseState::Lapsed }
            }
            _ if lease.ends_at.is_some_and(|it| it <= now) => {
                Error::Ended { id, state: LeaseState::Expired }
            }
            _ => Error::NoLonger {
                id,
                why: "a signer was disabled, or a signer's key was revoked".into(),
            },
        })
    }

    /// From a durable claim to a durable outcome. Credentials leave only when their delivery is recorded.
    pub(super) async fn mint_and_settle(
        &self,
        agent: &Agent,
        warrant: Warrant,
        signed: bool,
    ) -> Result<wire::Credentials> {
        let (id, session_id) = (warrant.lease_id(), warrant.session_id());
        let (scope, region) = (warrant.scope().to_owned(), warrant.region().to_owned());
        let until = warrant.until();
        let minted = self.sts.mint(&warrant).await;
        let now = self.clock.now();
        let settled =
            store::settle(&self.pool, &self.scribe, agent, warrant, minted.as_ref(), now).await?;
        let minted = minted.map_err(|source| Error::Mint { id, signed, source })?;
        if settled.is_none() {
            let obstacle = store::claim_obstacle(&self.pool, id, agent, now).await?;
            return Err(match obstacle {
                Obstacle::RoleCutOff(until) if !signed => {
                    Error::RoleCutOff { id, until, wait: until - now }
                }
                _ => Error::StoppedMeanwhile(id),
            });
        }
        let credentials = wire::Credentials {
            receipt: settled,
            ..wire_credentials(session_id, &region, &minted, until)
        };
        let kept = Delivered {
            agent: agent.name.clone(),
            sponsor: agent.sponsor.clone(),
            scope,
            session_id,
            region,
            minted,
            until,
        };
        let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        delivered.retain(|_, it| now < it.minted.expires_at);
        delivered.insert(id, kept);
        Ok(credentials)
    }

    /// The agent takes back a lease it has not used.
    pub async fn withdraw(
        &self,
        agent: &Agent,
        id: LeaseId,
        reason: Option<&str>,
    ) -> Result<wire::Lease> {
        let now = self.clock.now();
        if !store::task_is_live(&self.pool, agent, now).await? {
            return Err(Error::TaskEnded);
        }
        let lease = self.lease_of(agent, id).await?;
        let reason = reason.map(|it| it.chars().take(1000).collect::<String>());
        let receipt =
            store::withdraw(&self.pool, &self.scribe, agent, &lease, reason.as_deref(), now)
                .await?;
        let lease = self.lease_of(agent, id).await?;
        match (receipt, lease.state) {
            (Some(receipt), _) => Ok(wire::Lease { receipt: Some(receipt), ..lease }),
            (None, state) if state.is_terminal() => Err(Error::Ended { id, state }),
            (None, _) => Err(Error::InUse(id)),
        }
    }
}

/// What a claim entitles to, from the signed bytes or, unsigned, from the lease.
struct Grant {
    actions: Vec<String>,
    resources: Vec<String>,
    window: Duration,
    assume_role: AssumeRole,
    /// Of the bytes that were signed, in hex.
    statement_sha256: Option<String>,
}

/// What a lease's state alone says against a claim.
fn check_state(lease: &wire::Lease, signed: bool) -> Result<()> {
    match lease.state {
        LeaseState::Pending => Err(Error::Pending(lease.id)),
        LeaseState::Issued if signed => Err(Error::AlreadyIssued(lease.id)),
        LeaseState::Approved | LeaseState::Issued => Ok(()),
        state => Err(Error::Ended { id: lease.id, state }),
    }
}

/// Whoever holds credentials is told when they stop working, so that they are renewed and not found dead.
fn wire_credentials(
    session_id: Uuid,
    region: &str,
    minted: &Minted,
    until: Option<OffsetDateTime>,
) -> wire::Credentials {
    wire::Credentials {
        session_id,
        access_key_id: minted.access_key_id.clone(),
        secret_access_key: minted.secret_access_key.expose_secret().to_owned(),
        session_token: minted.session_token.expose_secret().to_owned(),
        expires_at: until.map_or(minted.expires_at, |it| it.min(minted.expires_at)),
        region: region.to_owned(),
        receipt: None,
    }
}
