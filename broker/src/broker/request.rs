//! Asking: what a request comes to, and opening a lease for it.

use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Broker;
use crate::config::Span;
use crate::error::{Error, Result};
use crate::identity::Agent;
use crate::lease::{LeaseId, LeaseState, WouldBe};
use crate::narrow::{Holder, NarrowError, Narrowed, check_request, narrow};
use crate::policy::{Asked, Decision, Usage};
use crate::statement::{
    Account, AgentTerms, AgentWords, ComparedTo, LeaseStatement, LeaseTerms, Rules, Signers,
    canonical,
};
use crate::store::{self, Admission, NewLease, NewOutcome, NewSession, Opened, Terms};
use crate::{catalogue, wire};

impl Broker {
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
        let digest = Sha256::digest(
            canonical(&request.words()).map_err(|error| Error::Invalid(error.to_string()))?,
        );
        let lease = |decided_by, outcome| NewLease {
            id,
            agent,
            idempotency_key,
            request_sha256: digest.into(),
            join: request.join.then_some(self.limits().redeliver_until.0),
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
            Opened::New { warrant, receipt } => {
                if let Some(why) = denial {
                    return Err(Error::Denied { lease_id: Some(id), why });
                }
                let credentials = match warrant {
                    Some(warrant) => Some(self.mint_and_settle(agent, warrant, signed).await?),
                    None => None,
                };
                let mut lease = self.lease_of(agent, id).await?;
                (lease.credentials, lease.receipt) = (credentials, Some(receipt));
                Ok(lease)
            }
            Opened::Known => self.repeat(agent, idempotency_key, &digest, request.deliver).await,
            Opened::Joined(id) => self.answer_with(agent, id, request.deliver).await,
            Opened::TaskEnded => Err(Error::TaskEnded),
            Opened::OverBudget(exceeded) => {
                self.refuse_over_budget(agent, Some(&request.scope), exceeded, now).await?;
                Err(Error::OverBudget(exceeded))
            }
            Opened::Frozen => {
                let denied = NewOutcome::Denied { why: "frozen".to_owned() };
                let denied = lease(Vec::new(), denied);
                match store::open(&self.pool, &self.scribe, &self.limits(), denied).await? {
                    Opened::New { .. } => Err(Error::Frozen(Some(id))),
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
        let groups = self.sponsor_groups(&agent.sponsor).await?.ok_or(Error::TaskEnded)?;
        match self.config.policy.decide(self.facts(agent, &groups), asked, now) {
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
                if agent.origin.actor_unknown {
                    return deny(
                        "people would have to sign, and nobody knows who set this off: who that is must not sign. The issuer's `actors` name them"
                            .into(),
                    );
                }
                except.extend(agent.origin.actor.clone());
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
                let last = store::last_approved(&self.pool, agent, &scope.name).await?;
                let sealed = self.seal(
                    agent,
                    request,
                    task,
                    scope,
                    &narrowed,
                    last.map(|it| compare(&it, &narrowed)),
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
            // Known: not of a request without a key.
            Admission::Open | Admission::Known => {}
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
        compared_to: Option<ComparedTo>,
        signers: Signers,
        decided_by: Vec<String>,
        id: LeaseId,
        now: OffsetDateTime,
    ) -> Result<LeaseStatement> {
        let origin = &self.config.settings.origin;
        let terms = LeaseTerms {
            broker: self.tokens.issuer(),
            lease_id: id,
            agent: AgentTerms {
                name: agent.name.clone(),
                issuer: agent.origin.issuer.clone().unwrap_or_else(|| origin.clone()),
            },
            sponsor: agent.sponsor.clone(),
            actor: agent.origin.actor.clone(),
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
            compared_to,
            conditions: scope.conditions.clone(),
            signers,
            rules: Rules { sha256: self.config.sha256.clone(), decided_by },
            requested_at: now,
            sign_by: now + self.limits().sign_within.0,
            claim_within_seconds: self.limits().claim_within.seconds(),
            nonce: super::nonce(),
        };
        Ok(LeaseStatement::new(terms)?)
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
        self.answer_with(agent, id, deliver).await
    }

    /// Answers with a lease that was there before.
    async fn answer_with(&self, agent: &Agent, id: LeaseId, deliver: bool) -> Result<wire::Lease> {
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

    /// What the agent had before; nobody looks where no rule asks.
    pub(super) async fn usage(&self, agent: &Agent, now: OffsetDateTime) -> Result<Usage> {
        if !self.config.policy.reads_usage() {
            return Ok(Usage::default());
        }
        let used =
            store::usage(&self.pool, &agent.name, &agent.sponsor, agent.task_id, now).await?;
        Ok(used.agent)
    }
}

/// What `narrowed` has that the last lease had not.
fn compare(last: &store::LastApproved, narrowed: &Narrowed) -> ComparedTo {
    let actions = narrowed.actions.iter().map(|it| &it.action);
    let resources = narrowed.resources.iter();
    ComparedTo {
        lease_id: last.lease_id,
        at: last.at,
        new_actions: actions.filter(|it| !last.actions.contains(it)).cloned().collect(),
        new_resources: resources.filter(|it| !last.resources.contains(it)).cloned().collect(),
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
