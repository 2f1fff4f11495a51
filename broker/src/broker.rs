//! The use cases. Each public method is one request, read top to bottom.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use secrecy::ExposeSecret;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use tokio::sync::{OnceCell, broadcast};
use uuid::Uuid;

use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::aws::{Minted, Sts};
use crate::clock::Clock;
use crate::config::{Config, Limits, Span};
use crate::error::{Error, Result};
use crate::identity::{Agent, Caller, Reader, Tokens};
use crate::lease::{Assurance, LeaseId, LeaseState, WouldBe};
use crate::narrow::{Holder, NarrowError, Narrowed, check_request, narrow};
use crate::policy::{Act, AgentFacts, Asked, Decision, PersonFacts, Ruling, Usage, Who};
use crate::statement::{
    Account, AgentTerms, AgentWords, AssumeRole, Issuer, LeaseTerms, Meaning, Rules, Sealed,
    Signers, canonical,
};
use crate::store::{
    self, Admission, Claimable, Find, NewLease, NewOutcome, NewSession, NewSignature, Obstacle,
    Opened, Terms, Viewer, Warrant,
};
use crate::verify::{self, Rejection, Signer, UnverifiedSignature};
use crate::{catalogue, lease, wire};

/// The longest long poll.
const MAX_WAIT: std::time::Duration = std::time::Duration::from_secs(30);
const MAX_PAGE: i64 = 200;

/// Our own task tokens carry no claims for rules to ask about.
const NO_CLAIMS: &BTreeMap<String, String> = &BTreeMap::new();

pub struct Broker {
    pub config: Config,
    pub pool: PgPool,
    pub sts: Sts,
    pub tokens: Tokens,
    pub clock: Clock,
    scribe: Scribe,
    /// Set once the ruleset in force is in the database.
    kept: OnceCell<()>,
    delivered: Mutex<HashMap<LeaseId, Delivered>>,
    /// Leases that changed; `None` when some may have been missed.
    changes: broadcast::Sender<Option<LeaseId>>,
}

/// A live session's credentials, kept in memory only, to be handed to the same agent again.
struct Delivered {
    agent: String,
    sponsor: String,
    scope: String,
    session_id: Uuid,
    region: String,
    minted: Minted,
}

impl Broker {
    pub fn new(config: Config, pool: PgPool, sts: Sts, tokens: Tokens, clock: Clock) -> Self {
        let scribe = Scribe { source: config.settings.origin.clone() };
        let (changes, _) = broadcast::channel(1024);
        let (kept, delivered) = (OnceCell::new(), Mutex::default());
        Self { config, pool, sts, tokens, clock, scribe, kept, delivered, changes }
    }

    // ---------------------------------------------------------------------------------------- the agent's path

    /// Opens a lease for `agent`, or refuses. With `deliver`, an unsigned lease comes with its credentials.
    pub async fn request(
        &self,
        agent: &Agent,
        idempotency_key: Option<&str>,
        request: &wire::LeaseRequest,
    ) -> Result<wire::Lease> {
        let now = self.clock.now();
        let id = LeaseId(Uuid::now_v7());
        let task = request.task.as_deref().unwrap_or(&agent.task);
        check_request(request, task).map_err(|error| Error::Invalid(error.to_string()))?;
        let digest =
            Sha256::digest(canonical(request).map_err(|error| Error::Invalid(error.to_string()))?);
        let lease = |decided_by, outcome| NewLease {
            id,
            agent,
            idempotency_key,
            request_sha256: digest.into(),
            task,
            request,
            rules_sha256: &self.config.sha256,
            decided_by,
            outcome,
            now,
        };

        self.keep_ruleset(now).await?;
        let (decided_by, outcome) = self.decide(agent, request, task, id, now).await?;
        let denial = match &outcome {
            NewOutcome::Denied { why } => Some(why.clone()),
            _ => None,
        };
        let signed = matches!(outcome, NewOutcome::Pending { .. });
        let opened =
            store::open(&self.pool, &self.scribe, &self.limits(), lease(decided_by, outcome))
                .await?;
        match opened {
            Opened::New(warrant) => {
                if let Some(why) = denial {
                    return Err(Error::Denied { lease_id: Some(id), why });
                }
                let credentials = match warrant {
                    Some(warrant) => Some(self.mint_and_settle(agent, warrant, signed).await?),
                    None => None,
                };
                let mut lease = self.lease_of(agent, id).await?;
                lease.credentials = credentials;
                Ok(lease)
            }
            Opened::Known => self.repeat(agent, idempotency_key, &digest, request.deliver).await,
            Opened::TaskEnded => Err(Error::TaskEnded),
            Opened::OverBudget(exceeded) => {
                let scope = &request.scope;
                store::tell_exceeded(&self.pool, &self.scribe, agent, scope, exceeded, now).await?;
                Err(Error::OverBudget(exceeded))
            }
            Opened::Frozen => {
                let denied = NewOutcome::Denied { why: "frozen".to_owned() };
                let denied = lease(Vec::new(), denied);
                match store::open(&self.pool, &self.scribe, &self.limits(), denied).await? {
                    Opened::New(_) => Err(Error::Frozen(Some(id))),
                    // Somebody else's answer to the same key, or a limit, was first: there is no lease of this id.
                    _ => Err(Error::Frozen(None)),
                }
            }
        }
    }

    /// Keeps what requests are judged by: once, before the first.
    async fn keep_ruleset(&self, now: OffsetDateTime) -> Result<()> {
        let (pool, scribe, config) = (&self.pool, &self.scribe, &self.config);
        let keep = || store::keep_ruleset(pool, scribe, &config.ruleset, &config.sha256, now);
        self.kept.get_or_try_init(keep).await?;
        Ok(())
    }

    /// Judges a request: contained in its scope, allowed by the rules, and signable if it must be signed.
    async fn decide(
        &self,
        agent: &Agent,
        request: &wire::LeaseRequest,
        task: &str,
        id: LeaseId,
        now: OffsetDateTime,
    ) -> Result<(Vec<String>, NewOutcome)> {
        let deny = |why: String| Ok((Vec::new(), NewOutcome::Denied { why }));
        let Some(scope) = self.config.catalogue.scope(&request.scope) else {
            return deny(format!("there is no scope {:?}", request.scope));
        };
        let holder = Holder { agent: &agent.name, sponsor: &agent.sponsor, task };
        let narrowed = match narrow(scope, request, holder, id, now) {
            Ok(narrowed) => narrowed,
            Err(error @ (NarrowError::Action(_) | NarrowError::Resource(_))) => {
                return deny(format!("scope {}: {error}", scope.name));
            }
            Err(error) => return Err(Error::Invalid(error.to_string())),
        };
        // Waiting would not help.
        let at_once = self.limits().resources_at_once();
        if usize::try_from(at_once).is_ok_and(|it| it < narrowed.resources.len()) {
            return deny(format!(
                "it is on {} resources, and a budget is {at_once} an hour: ask for fewer",
                narrowed.resources.len()
            ));
        }
        let asked = Asked {
            scope,
            actions: narrowed.actions.iter().map(|it| (it.action.as_str(), it.class)).collect(),
            window: narrowed.window,
            task,
            usage: self.usage(agent, now).await?,
        };
        match self.config.policy.decide(self.facts(agent), asked, now) {
            Decision::Deny { by } if by.is_empty() => deny("no rule allows it".into()),
            Decision::Deny { by } => {
                let why = format!("forbidden by {}", by.join(", "));
                Ok((by, NewOutcome::Denied { why }))
            }
            Decision::Allow { by } => {
                let claim = request.deliver.then(|| NewSession::for_lease(id));
                Ok((by, NewOutcome::Approved { terms: terms(scope, narrowed), claim }))
            }
            Decision::NeedSignatures { by, rule } => {
                let mut except = Vec::new();
                if !scope.tier.sponsor_may_sign() {
                    except.push(agent.sponsor.clone());
                }
                let eligible =
                    store::eligible_signers(&self.pool, &rule.groups, rule.assurance, &except)
                        .await?;
                if eligible.len() < usize::from(rule.count) {
                    return deny(format!(
                        "it needs {} signatures, and {} people could sign",
                        rule.count,
                        eligible.len()
                    ));
                }
                let signers = Signers { eligible, needed: rule.count, assurance: rule.assurance };
                let sealed = self.seal(
                    agent,
                    request,
                    task,
                    scope,
                    &narrowed,
                    signers,
                    by.clone(),
                    id,
                    now,
                )?;
                Ok((by, NewOutcome::Pending { terms: terms(scope, narrowed), sealed }))
            }
        }
    }

    /// What a request would come to now, and why. Nothing is recorded, because nothing happens.
    pub async fn explain(
        &self,
        agent: &Agent,
        request: &wire::LeaseRequest,
    ) -> Result<wire::Explanation> {
        let now = self.clock.now();
        if !store::task_is_live(&self.pool, agent, now).await? {
            return Err(Error::TaskEnded);
        }
        let task = request.task.as_deref().unwrap_or(&agent.task);
        check_request(request, task).map_err(|error| Error::Invalid(error.to_string()))?;
        let scope = self.config.catalogue.scope(&request.scope);
        let mut explanation = explanation(scope, &request.scope);
        let judged = self.decide(agent, request, task, LeaseId(Uuid::now_v7()), now).await;
        let (decided_by, outcome) = match judged {
            Ok(judged) => judged,
            Err(Error::Invalid(why)) => {
                explanation.why = why;
                return Ok(explanation);
            }
            Err(error) => return Err(error),
        };
        explanation.decided_by = decided_by;
        let (state, terms) = match outcome {
            NewOutcome::Denied { why } => {
                (explanation.outcome, explanation.why) = (WouldBe::Denied, why);
                (LeaseState::Denied, None)
            }
            NewOutcome::Approved { terms, .. } => {
                (explanation.outcome, explanation.why) =
                    (WouldBe::Issued, "it would be issued at once".into());
                (LeaseState::Approved, Some(terms))
            }
            NewOutcome::Pending { terms, sealed } => {
                let signers = &sealed.terms().signers;
                let eligible = signers.eligible.join(", ");
                (explanation.outcome, explanation.why) = (
                    WouldBe::Pending,
                    format!("it would wait for {} of {eligible}", signers.needed),
                );
                explanation.signatures_needed = signers.needed;
                explanation.eligible_signers.clone_from(&signers.eligible);
                explanation.assurance = Some(signers.assurance);
                (LeaseState::Pending, Some(terms))
            }
        };
        let (limits, name) = (self.limits(), &request.scope);
        let admission =
            store::admission(&self.pool, &limits, agent, state, name, terms.as_ref(), now).await?;
        match admission {
            Admission::Open => {}
            Admission::TaskEnded => return Err(Error::TaskEnded),
            Admission::Frozen => {
                (explanation.outcome, explanation.why) = (
                    WouldBe::Frozen,
                    "a freeze stands; nothing is issued until it is lifted".into(),
                );
            }
            Admission::OverBudget(exceeded) => {
                (explanation.outcome, explanation.why) =
                    (WouldBe::OverBudget, Error::OverBudget(exceeded).to_string());
                explanation.retry_at = Some(exceeded.retry_at);
            }
        }
        if let (Some(scope), Some(terms)) = (scope, terms) {
            explain_terms(&mut explanation, scope, terms);
        }
        Ok(explanation)
    }

    /// Builds the statement: the only time in the lease's life.
    #[expect(
        clippy::too_many_arguments,
        reason = "everything that a statement says, from where it is known"
    )]
    fn seal(
        &self,
        agent: &Agent,
        request: &wire::LeaseRequest,
        task: &str,
        scope: &catalogue::Scope,
        narrowed: &Narrowed,
        signers: Signers,
        decided_by: Vec<String>,
        id: LeaseId,
        now: OffsetDateTime,
    ) -> Result<Sealed> {
        let mut nonce = [0; 32];
        rand::fill(&mut nonce);
        let origin = &self.config.settings.origin;
        let terms = LeaseTerms {
            broker: Issuer {
                origin: origin.clone(),
                instance_key: self.tokens.key_id().to_owned(),
            },
            lease_id: id,
            agent: AgentTerms { name: agent.name.clone(), issuer: origin.clone() },
            sponsor: agent.sponsor.clone(),
            actor: None,
            sponsor_task: agent.task.clone(),
            agent_says: AgentWords {
                task: task.to_owned(),
                reason: request.reason.clone().unwrap_or_default(),
                rollback: request.rollback.clone().unwrap_or_default(),
            },
            scope: scope.name.clone(),
            environment: scope.environment,
            tier: scope.tier,
            tier_because: scope.tier_because.clone(),
            account: Account { id: scope.account.clone(), alias: scope.account_alias.clone() },
            region: scope.region().to_owned(),
            assume_role: narrowed.assume_role.clone(),
            actions: narrowed.actions.clone(),
            resources: narrowed.resources.clone(),
            conditions: scope.conditions.clone(),
            signers,
            rules: Rules { sha256: self.config.sha256.clone(), decided_by },
            requested_at: now,
            sign_by: now + self.limits().sign_within.0,
            claim_within_seconds: self.limits().claim_within.seconds(),
            nonce: hex::encode(nonce),
        };
        Ok(Sealed::new(terms)?)
    }

    /// Answers a request that was made before, in the state it has by now.
    async fn repeat(
        &self,
        agent: &Agent,
        key: Option<&str>,
        digest: &[u8],
        deliver: bool,
    ) -> Result<wire::Lease> {
        let key =
            key.ok_or_else(|| Error::Internal("a lease without a key was there before".into()))?;
        let (id, known) =
            store::by_idempotency_key(&self.pool, agent, key).await?.ok_or(Error::NotFound)?;
        if known != digest {
            return Err(Error::IdempotencyMismatch);
        }
        let mut lease = self.lease_of(agent, id).await?;
        if lease.state == LeaseState::Denied {
            return Err(Error::Denied {
                lease_id: Some(id),
                why: lease.end_reason.unwrap_or_default(),
            });
        }
        if deliver && matches!(lease.state, LeaseState::Approved | LeaseState::Issued) {
            let credentials = self.credentials(agent, id).await?;
            lease = self.lease_of(agent, id).await?;
            lease.credentials = Some(credentials);
        }
        Ok(lease)
    }

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
        let grant = if signed {
            self.check_approvals(claimable, now)?
        } else {
            Grant {
                actions: lease.actions.clone(),
                resources: lease.resources.clone(),
                window: claimable.window,
                assume_role: claimable.assume_role.clone(),
            }
        };
        self.check_rules(agent, lease, &grant, now)?;
        let claimed =
            store::claim(&self.pool, &self.scribe, lease, grant.assume_role, agent, now).await?;
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
        if !matches!(error, Error::Denied { .. } | Error::Frozen(_) | Error::TaskEnded) {
            return Ok(());
        }
        let subject = Subject::from(lease);
        let actor = Actor::Agent(&agent.name);
        let detail = json!({ "why": error.to_string() });
        let event = self.scribe.body(EventType::ClaimRefused, actor, subject, detail, now);
        Ok(store::tell(&self.pool, event).await?)
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
                    (it.scope.clone(), wire_credentials(it.session_id, &it.region, &it.minted))
                })
        };
        let Some((scope, credentials)) = kept else { return Ok(None) };
        let session_id = credentials.session_id;
        let recorded =
            store::redeliver(&self.pool, &self.scribe, agent, &scope, id, session_id, now).await?;
        Ok(recorded.then_some(credentials))
    }

    /// Rules can only tighten between request and claim: today's catalogue must compile the very same input.
    fn check_rules(
        &self,
        agent: &Agent,
        lease: &wire::Lease,
        grant: &Grant,
        now: OffsetDateTime,
    ) -> Result<()> {
        let deny = |why: &str| {
            Err(Error::Denied {
                lease_id: Some(lease.id),
                why: format!("the rules have changed: {why}"),
            })
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
        match self.config.policy.decide(self.facts(agent), asked, now) {
            Decision::Deny { .. } => deny("it is denied now"),
            Decision::NeedSignatures { rule, .. } if lease.signatures_needed < rule.count => {
                deny("it needs more signatures now")
            }
            Decision::NeedSignatures { .. } | Decision::Allow { .. } => Ok(()),
        }
    }

    /// Verifies every stored approval anew over the stored bytes, counts people, and reads the grant from the bytes.
    fn check_approvals(&self, claimable: &Claimable, now: OffsetDateTime) -> Result<Grant> {
        let lease = &claimable.lease;
        let why = "its approvals do not count any more: a key was revoked, a signer left, or the rules ask for more";
        let deny = || Error::Denied { lease_id: Some(lease.id), why: why.into() };
        let sealed = Sealed::from_bytes(claimable.statement.clone().ok_or_else(deny)?)?;
        let scope = self.config.catalogue.scope(&lease.scope).ok_or_else(deny)?;
        let rule = scope.signers.as_ref().ok_or_else(deny)?;
        // What was signed, or what is asked today, whichever is stricter.
        let mut terms = sealed.terms().clone();
        terms.tier = terms.tier.max(scope.tier);
        let demanded = rule.assurance.max(terms.signers.assurance);
        let mut people = BTreeSet::new();
        for approval in &claimable.approvals {
            let good = UnverifiedSignature::parse(&approval.signature).and_then(|signature| {
                let meaning = Meaning::LeaseApproval;
                verify::check_signature(
                    &signature,
                    &approval.key,
                    meaning,
                    sealed.bytes(),
                    demanded,
                    now,
                )?;
                let in_group = rule.groups.iter().any(|it| approval.groups.contains(it));
                let signer = Signer { handle: &approval.person, active: true, in_group };
                verify::check_signer(&terms, &signer, approval.signed_at)?;
                let person = PersonFacts { handle: &approval.person, groups: &approval.groups };
                let (approve, assurance) = (lease::Decision::Approve, approval.key.assurance);
                // As of when they signed: office hours are not over because the agent claims late.
                match self.rule_on_signing(person, &terms, approve, assurance, approval.signed_at) {
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
            (_, LeaseState::Pending) => Error::Pending(id),
            (_, state) if state.is_terminal() => Error::Ended { id, state },
            _ if signed && !lease.sessions.is_empty() => Error::AlreadyIssued(id),
            _ if lease.claim_by.is_some_and(|it| it < now) && lease.sessions.is_empty() => {
                Error::Ended { id, state: LeaseState::Lapsed }
            }
            _ if lease.ends_at.is_some_and(|it| it <= now) => {
                Error::Ended { id, state: LeaseState::Expired }
            }
            _ => Error::Denied {
                lease_id: Some(id),
                why: "a signer was disabled, or a signer's key was revoked".into(),
            },
        })
    }

    /// From a durable claim to a durable outcome. Credentials leave only when their delivery is recorded.
    async fn mint_and_settle(
        &self,
        agent: &Agent,
        warrant: Warrant,
        signed: bool,
    ) -> Result<wire::Credentials> {
        let (id, session_id) = (warrant.lease_id(), warrant.session_id());
        let (scope, region) = (warrant.scope().to_owned(), warrant.region().to_owned());
        let minted = self.sts.mint(&warrant).await;
        let now = self.clock.now();
        let settled =
            store::settle(&self.pool, &self.scribe, agent, warrant, minted.as_ref(), now).await?;
        let minted = minted.map_err(|source| Error::Mint { id, signed, source })?;
        if !settled {
            return Err(Error::StoppedMeanwhile(id));
        }
        let credentials = wire_credentials(session_id, &region, &minted);
        let kept = Delivered {
            agent: agent.name.clone(),
            sponsor: agent.sponsor.clone(),
            scope,
            session_id,
            region,
            minted,
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
        if !store::withdraw(&self.pool, &self.scribe, agent, &lease, reason.as_deref(), now).await?
        {
            let lease = self.lease_of(agent, id).await?;
            return Err(match lease.state {
                state if state.is_terminal() => Error::Ended { id, state },
                _ => Error::InUse(id),
            });
        }
        self.lease_of(agent, id).await
    }

    // ---------------------------------------------------------------------------------------- the human's path

    /// Judges one signature over a lease's statement, and counts it or records why not.
    pub async fn sign(&self, id: LeaseId, request: &wire::SignatureRequest) -> Result<wire::Lease> {
        let now = self.clock.now();
        let signable = store::signable(&self.pool, id).await?.ok_or(Error::NotFound)?;
        let Counting { holder, fingerprint, touch, decided_by } =
            match self.judge(&signable, request, now).await? {
                Ok(good) => good,
                Err(not) => return Err(self.reject(id, &signable, request, not, now).await?),
            };
        let reason = request.reason.as_ref().map(|it| it.chars().take(1000).collect::<String>());
        let signature = NewSignature {
            lease_id: id,
            signable: &signable,
            person: &holder.person,
            fingerprint: &fingerprint,
            decision: request.decision,
            armored: &request.signature,
            assurance: holder.key.assurance,
            touch,
            reason: reason.as_deref(),
            decided_by: &decided_by,
        };
        if store::sign(&self.pool, &self.scribe, &self.limits(), signature, now).await? {
            return self.find_one(Viewer::Person { handle: &holder.person, all: false }, id).await;
        }
        // Somebody was faster: look again to say who or what.
        let signable = store::signable(&self.pool, id).await?.ok_or(Error::NotFound)?;
        let rejection = standing(&signable, &holder.person).unwrap_or(Rejection::TooLate);
        let not = NotCounting::of(rejection, &holder.person);
        Err(self.reject(id, &signable, request, not, now).await?)
    }

    /// Every check of a signature, in the order in which a signer wants to hear of it.
    async fn judge(
        &self,
        signable: &store::Signable,
        request: &wire::SignatureRequest,
        now: OffsetDateTime,
    ) -> Result<std::result::Result<Counting, NotCounting>> {
        let sealed = Sealed::from_bytes(signable.statement.clone())?;
        let terms = sealed.terms();
        let signature = match UnverifiedSignature::parse(&request.signature) {
            Ok(signature) => signature,
            Err(rejection) => return Ok(Err(rejection.into())),
        };
        let fingerprint = signature.claimed_fingerprint();
        let Some(holder) = store::key_holder(&self.pool, &fingerprint).await? else {
            return Ok(Err(Rejection::UnknownKey.into()));
        };
        if request.statement_sha256.as_ref().is_some_and(|it| *it != sealed.sha256()) {
            return Ok(Err(Rejection::NotThisStatement.into()));
        }
        let checked = verify::check_signature(
            &signature,
            &holder.key,
            request.decision.into(),
            sealed.bytes(),
            terms.signers.assurance,
            now,
        );
        let touch = match checked {
            Ok(touch) => touch,
            Err(rejection) => return Ok(Err(rejection.into())),
        };
        // From here on it is theirs, whatever else is wrong with it.
        let person = holder.person.as_str();
        if let Some(rejection) = standing(signable, person) {
            return Ok(Err(NotCounting::of(rejection, person)));
        }
        let rule = self.config.catalogue.scope(&signable.scope).and_then(|it| it.signers.as_ref());
        let signer = Signer {
            handle: person,
            active: holder.active,
            in_group: rule
                .is_some_and(|it| it.groups.iter().any(|group| holder.groups.contains(group))),
        };
        if let Err(rejection) = verify::check_signer(terms, &signer, now) {
            return Ok(Err(NotCounting::of(rejection, person)));
        }
        let facts = PersonFacts { handle: person, groups: &holder.groups };
        match self.rule_on_signing(facts, terms, request.decision, holder.key.assurance, now) {
            Ruling::Allow { by: decided_by } => {
                Ok(Ok(Counting { holder, fingerprint, touch, decided_by }))
            }
            Ruling::Deny { by: decided_by } => {
                let not = NotCounting::of(Rejection::ForbiddenByRule, person);
                Ok(Err(NotCounting { decided_by, ..not }))
            }
        }
    }

    /// Whether the rules let this person decide about the lease that `terms` are of.
    fn rule_on_signing(
        &self,
        person: PersonFacts<'_>,
        terms: &LeaseTerms,
        decision: lease::Decision,
        assurance: Assurance,
        at: OffsetDateTime,
    ) -> Ruling {
        let Some(scope) = self.config.catalogue.scope(&terms.scope) else {
            return Ruling::Deny { by: Vec::new() };
        };
        let agent = AgentFacts {
            name: &terms.agent.name,
            sponsor: &terms.sponsor,
            issuer: &terms.agent.issuer,
            actor: terms.actor.as_deref(),
            claims: NO_CLAIMS,
        };
        let act = Act::Sign { scope, decision, agent, assurance };
        self.config.policy.rule(Who::Person(person), &act, at)
    }

    /// Records a signature that does not count, and is then the error that says so.
    async fn reject(
        &self,
        id: LeaseId,
        signable: &store::Signable,
        request: &wire::SignatureRequest,
        not: NotCounting,
        now: OffsetDateTime,
    ) -> Result<Error> {
        let NotCounting { rejection, person, decided_by } = not;
        let subject = signable.subject(id);
        let fingerprint =
            UnverifiedSignature::parse(&request.signature).ok().map(|it| it.claimed_fingerprint());
        let detail = json!({
            "decision": request.decision,
            "reason": rejection.code(),
            "key_fingerprint": fingerprint,
            "decided_by": decided_by,
        });
        let actor = person.as_deref().map_or(Actor::Unknown, Actor::Person);
        let event = self.scribe.body(EventType::SignatureRejected, actor, subject, detail, now);
        store::tell(&self.pool, event).await?;
        Ok(Error::Rejected { lease_id: Some(id), rejection })
    }

    /// Opens a reading session for whoever signed our nonce.
    pub async fn login(&self, request: &wire::LoginRequest) -> Result<wire::LoginSession> {
        let now = self.clock.now();
        match self.judge_login(request, now).await? {
            Ok(person) => {
                let (token, expires_at) = self.tokens.login_token(&person, now);
                Ok(wire::LoginSession {
                    person,
                    token: token.expose_secret().to_owned(),
                    expires_at,
                })
            }
            Err((rejection, person)) => {
                // Nobody in particular can fail as often as they like: that is for the log, not for the record.
                if let Some(person) = person {
                    let detail = json!({ "reason": rejection.code() });
                    let (kind, actor) = (EventType::LoginRejected, Actor::Person(&person));
                    let event = self.scribe.body(kind, actor, Subject::default(), detail, now);
                    store::tell(&self.pool, event).await?;
                }
                Err(Error::Rejected { lease_id: None, rejection })
            }
        }
    }

    /// The person who signed our nonce; or why not, with the person once the signature proves to be theirs.
    async fn judge_login(
        &self,
        request: &wire::LoginRequest,
        now: OffsetDateTime,
    ) -> Result<std::result::Result<String, (Rejection, Option<String>)>> {
        let Ok(nonce) = self.tokens.check_nonce(&request.nonce, now) else {
            return Ok(Err((Rejection::StaleNonce, None)));
        };
        let signature = match UnverifiedSignature::parse(&request.signature) {
            Ok(signature) => signature,
            Err(rejection) => return Ok(Err((rejection, None))),
        };
        let fingerprint = signature.claimed_fingerprint();
        let Some(holder) = store::key_holder(&self.pool, &fingerprint).await? else {
            return Ok(Err((Rejection::UnknownKey, None)));
        };
        let body = request.nonce.as_bytes();
        // Reading asks for no assurance of its own: any enrolled key opens it, and it approves nothing.
        let lowest = Assurance::Software;
        let checked =
            verify::check_signature(&signature, &holder.key, Meaning::Login, body, lowest, now);
        match checked {
            Ok(_) if holder.active => {}
            Ok(_) => return Ok(Err((Rejection::PersonDisabled, Some(holder.person)))),
            Err(rejection @ (Rejection::NotThisStatement | Rejection::WrongNamespace)) => {
                return Ok(Err((rejection, None)));
            }
            Err(rejection) => return Ok(Err((rejection, Some(holder.person)))),
        }
        let actor = Actor::Person(&holder.person);
        let detail = json!({ "key_fingerprint": fingerprint });
        let event =
            self.scribe.body(EventType::LoginAccepted, actor, Subject::default(), detail, now);
        let spent =
            store::spend_nonce(&self.pool, nonce, &fingerprint, &holder.person, event, now).await?;
        Ok(if spent {
            Ok(holder.person)
        } else {
            Err((Rejection::StaleNonce, Some(holder.person)))
        })
    }

    // ------------------------------------------------------------------------------------------------- reading

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
        let leases: Vec<_> = leases.into_iter().map(with_next).collect();
        let next_cursor = leases.last().filter(|_| more).map(|it| it.id);
        Ok(wire::LeasePage { leases, next_cursor })
    }

    /// The exact bytes that are signed for a lease.
    pub async fn statement(&self, caller: &Caller, id: LeaseId) -> Result<Sealed> {
        self.lease(caller, id).await?;
        let bytes = store::statement(&self.pool, id).await?.ok_or(Error::NotFound)?;
        Ok(Sealed::from_bytes(bytes)?)
    }

    /// The scopes that this agent would not be denied, asked for the shortest window.
    pub async fn scopes(&self, agent: &Agent) -> Result<wire::ScopeList> {
        if !store::task_is_live(&self.pool, agent, self.clock.now()).await? {
            return Err(Error::TaskEnded);
        }
        let now = self.clock.now();
        let usage = self.usage(agent, now).await?;
        let allowed = |scope: &&catalogue::Scope| {
            let asked = Asked {
                scope,
                actions: scope.actions.iter().map(|it| (it.name(), it.class)).collect(),
                window: catalogue::SHORTEST_SESSION,
                task: &agent.task,
                usage,
            };
            let decision = self.config.policy.decide(self.facts(agent), asked, now);
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
                    task: agent.task.clone(),
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

    async fn person(&self, reader: &Reader) -> Result<store::Person> {
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

    async fn lease_of(&self, agent: &Agent, id: LeaseId) -> Result<wire::Lease> {
        self.find_one(Viewer::Agent { name: &agent.name, sponsor: &agent.sponsor }, id).await
    }

    async fn find_one(&self, viewer: Viewer<'_>, id: LeaseId) -> Result<wire::Lease> {
        let found = store::find(&self.pool, Find { id: Some(id), ..Find::by(viewer) }).await?.pop();
        found.map(with_next).ok_or(Error::NotFound)
    }

    /// An agent, as rules see it.
    fn facts<'a>(&'a self, agent: &'a Agent) -> AgentFacts<'a> {
        AgentFacts {
            name: &agent.name,
            sponsor: &agent.sponsor,
            issuer: &self.config.settings.origin,
            actor: None,
            claims: NO_CLAIMS,
        }
    }

    /// What the agent had before; nobody looks where no rule asks.
    async fn usage(&self, agent: &Agent, now: OffsetDateTime) -> Result<Usage> {
        if !self.config.policy.reads_usage() {
            return Ok(Usage::default());
        }
        let used =
            store::usage(&self.pool, &agent.name, &agent.sponsor, agent.task_id, now).await?;
        Ok(used.agent)
    }

    fn limits(&self) -> Limits {
        self.config.settings.limits
    }

    // ---------------------------------------------------------------------------------------------- background

    /// Ends what time has ended; see [`store::sweep`].
    pub async fn sweep(&self) -> Result<usize> {
        Ok(store::sweep(&self.pool, &self.scribe, &self.limits(), self.clock.now()).await?)
    }

    /// Passes the database's notices on to whoever waits. Ends only with an error.
    pub async fn watch(&self) -> Result<()> {
        Ok(store::listen(&self.pool, |id| drop(self.changes.send(id))).await?)
    }
}

/// What a claim entitles to, from the signed bytes or, unsigned, from the lease.
struct Grant {
    actions: Vec<String>,
    resources: Vec<String>,
    window: Duration,
    assume_role: AssumeRole,
}

/// A signature that counts.
struct Counting {
    holder: store::KeyHolder,
    fingerprint: String,
    touch: Option<verify::Touch>,
    /// The rules that let the person sign.
    decided_by: Vec<String>,
}

/// One that does not; whose it is, once it proves to be theirs; and the rules that say no, if it was they.
struct NotCounting {
    rejection: Rejection,
    person: Option<String>,
    decided_by: Vec<String>,
}

impl NotCounting {
    fn of(rejection: Rejection, person: &str) -> Self {
        Self { rejection, person: Some(person.to_owned()), decided_by: Vec::new() }
    }
}

impl From<Rejection> for NotCounting {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, person: None, decided_by: Vec::new() }
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

/// Why nobody, or not this person, can decide any more.
fn standing(signable: &store::Signable, person: &str) -> Option<Rejection> {
    if signable.decided.iter().any(|it| it == person) {
        return Some(Rejection::AlreadySigned);
    }
    match signable.state {
        LeaseState::Pending => None,
        LeaseState::Lapsed => Some(Rejection::TooLate),
        _ => Some(Rejection::NotPending),
    }
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

fn terms(scope: &catalogue::Scope, narrowed: Narrowed) -> Terms {
    Terms {
        environment: scope.environment.as_str(),
        tier: scope.tier.as_str(),
        account: scope.account.clone(),
        region: scope.region().to_owned(),
        actions: narrowed.actions.into_iter().map(|it| it.action).collect(),
        resources: narrowed.resources,
        window: narrowed.window,
        assume_role: narrowed.assume_role,
    }
}

fn explain_terms(explanation: &mut wire::Explanation, scope: &catalogue::Scope, terms: Terms) {
    let action = |it: &catalogue::ScopeAction| wire::ExplainedAction {
        action: it.name().to_owned(),
        class: it.class,
        any_resource: !it.action.takes_resources(),
    };
    explanation.actions =
        terms.actions.iter().filter_map(|it| scope.action(it)).map(action).collect();
    explanation.resources = terms.resources;
    explanation.ttl_seconds = Some(Span(terms.window).seconds());
    explanation.session_seconds = Some(terms.assume_role.duration_seconds);
    explanation.session_policy = Some(terms.assume_role.policy);
}

/// Of what is not a request yet: invalid, until it proves to be one.
fn explanation(scope: Option<&catalogue::Scope>, name: &str) -> wire::Explanation {
    wire::Explanation {
        outcome: WouldBe::Invalid,
        why: String::new(),
        retry_at: None,
        decided_by: Vec::new(),
        scope: name.to_owned(),
        environment: scope.map(|it| it.environment),
        tier: scope.map(|it| it.tier),
        tier_because: scope.map(|it| it.tier_because.clone()),
        actions: Vec::new(),
        resources: Vec::new(),
        session_policy: None,
        ttl_seconds: None,
        session_seconds: None,
        signatures_needed: 0,
        eligible_signers: Vec::new(),
        assurance: None,
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

fn wire_credentials(session_id: Uuid, region: &str, minted: &Minted) -> wire::Credentials {
    wire::Credentials {
        session_id,
        access_key_id: minted.access_key_id.clone(),
        secret_access_key: minted.secret_access_key.expose_secret().to_owned(),
        session_token: minted.session_token.expose_secret().to_owned(),
        expires_at: minted.expires_at,
        region: region.to_owned(),
    }
}

/// Adds the way forward: an agent that is given none looks for another credential.
fn with_next(mut lease: wire::Lease) -> wire::Lease {
    let id = lease.id;
    lease.next = match lease.state {
        LeaseState::Pending => Some(format!(
            "Tell one of {} the code {}; they run `broker sign {id}`. Then `broker exec --lease {id} -- CMD`.",
            lease.eligible_signers.join(", "),
            lease.short_code.as_deref().unwrap_or_default(),
        )),
        LeaseState::Approved => Some(format!("Use it with `broker exec --lease {id} -- CMD`.")),
        LeaseState::Issued | LeaseState::Denied => None,
        _ => Some("Ask for a new lease if the task still needs one.".to_owned()),
    };
    lease
}
