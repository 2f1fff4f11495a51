//! The human's path: signatures over statements, and logins.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;
use serde_json::json;
use time::OffsetDateTime;

use super::Broker;
use super::refuse::Refusal;
use crate::approval::check_enrolment;
use crate::audit::{Actor, EventType, Subject};
use crate::error::{Error, Result};
use crate::lease::{self, Assurance, LeaseId, LeaseState};
use crate::policy::{Act, AgentFacts, PersonFacts, Ruling, Who};
use crate::statement::{LeaseStatement, LeaseTerms, Meaning};
use crate::store::{self, NewSignature, Viewer};
use crate::verify::{self, Demand, Rejection, Signer, UnverifiedSignature};
use crate::wire;

impl Broker {
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
        let receipt = store::sign(&self.pool, &self.scribe, &self.limits(), signature, now).await?;
        if receipt.is_some() {
            let viewer = Viewer::Person { handle: &holder.person, all: false };
            return Ok(wire::Lease { receipt, ..self.find_one(viewer, id).await? });
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
        let sealed = LeaseStatement::from_bytes(signable.statement.clone())?;
        let terms = sealed.terms();
        if request.statement_sha256.as_ref().is_some_and(|it| *it != sealed.sha256()) {
            return Ok(Err(Rejection::NotThisStatement.into()));
        }
        let demand = Demand {
            meaning: request.decision.into(),
            body: sealed.bytes(),
            origin: &terms.broker.origin,
            assurance: terms.signers.assurance,
        };
        let Proven { holder, fingerprint, touch } =
            match self.prove(&request.signature, demand, now).await? {
                Ok(proven) => proven,
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
        let groups = self.sponsor_groups(&terms.sponsor).await?;
        let (decision, assurance) = (request.decision, holder.key.assurance);
        let agent = agent_of(terms, groups.as_deref(), &signable.claims);
        match self.rule_on_signing(facts, &terms.scope, agent, decision, assurance, now) {
            Ruling::Allow { by: decided_by } => {
                Ok(Ok(Counting { holder, fingerprint, touch, decided_by }))
            }
            Ruling::Deny { by: decided_by } => {
                let not = NotCounting::of(Rejection::ForbiddenByRule, person);
                Ok(Err(NotCounting { decided_by, ..not }))
            }
        }
    }

    /// Whose good signature this is.
    pub(super) async fn prove(
        &self,
        text: &str,
        demand: Demand<'_>,
        now: OffsetDateTime,
    ) -> Result<std::result::Result<Proven, Rejection>> {
        let signature = match UnverifiedSignature::parse(text) {
            Ok(signature) => signature,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let fingerprint = signature.claimed_fingerprint();
        let Some(holder) = store::key_holder(&self.pool, &fingerprint).await? else {
            return Ok(Err(Rejection::UnknownKey));
        };
        let touch = match verify::check_signature(&signature, &holder.key, demand, now) {
            Ok(touch) => touch,
            Err(rejection) => return Ok(Err(rejection)),
        };
        if holder.enrolled_by.is_some() && !self.is_enrolled(&fingerprint).await? {
            return Ok(Err(Rejection::UnknownKey));
        }
        Ok(Ok(Proven { holder, fingerprint, touch }))
    }

    /// Whether signatures lead from this key back to one that an operator set up. The database alone cannot say so: who
    /// writes there could have written that an admin signed.
    pub(super) async fn is_enrolled(&self, fingerprint: &str) -> Result<bool> {
        let origin = &self.config.settings.origin;
        let steps = store::enrolment(&self.pool, fingerprint, ENROLMENTS_AT_MOST).await?;
        let good = steps.iter().all(|step| {
            let enrolled_by = step.key.enrolled_by.as_ref();
            enrolled_by.is_some_and(|it| {
                check_enrolment(&step.key, &step.person, it, &step.signer, origin).is_ok()
            })
        });
        let whole = steps.last().is_some_and(|it| it.signer_enrolled_by.is_none());
        if !good || !whole {
            tracing::error!(fingerprint, "a key is in the database whose enrolment nobody signed");
        }
        Ok(good && whole)
    }

    /// Whether the rules let this person decide about a lease of `agent`, whose sponsor is there.
    pub(super) fn rule_on_signing(
        &self,
        person: PersonFacts<'_>,
        scope: &str,
        agent: Option<AgentFacts<'_>>,
        decision: lease::Decision,
        assurance: Assurance,
        at: OffsetDateTime,
    ) -> Ruling {
        let (Some(scope), Some(agent)) = (self.config.catalogue.scope(scope), agent) else {
            return Ruling::Deny { by: Vec::new() };
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
        let fingerprint = claimed_fingerprint(&request.signature);
        let detail = json!({
            "decision": request.decision,
            "reason": rejection.code(),
            "key_fingerprint": fingerprint,
            "decided_by": decided_by,
        });
        let why = format!("{} {}", request.decision, rejection.code());
        let refusal = Refusal::new(EventType::SignatureRejected, person.into(), &why, now);
        self.refuse(Refusal { detail, ..refusal.of(signable.subject(id)) }).await?;
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
                let (kind, reason) = (EventType::LoginRejected, rejection.code());
                let fingerprint = claimed_fingerprint(&request.signature);
                let detail = json!({ "reason": reason, "key_fingerprint": fingerprint });
                let refusal = Refusal::new(kind, person.into(), reason, now);
                self.refuse(Refusal { detail, ..refusal }).await?;
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
        let demand = Demand {
            meaning: Meaning::Login,
            body: request.nonce.as_bytes(),
            origin: &self.config.settings.origin,
            // Reading asks for no assurance of its own: any enrolled key opens it, and it approves nothing.
            assurance: Assurance::Software,
        };
        match verify::check_signature(&signature, &holder.key, demand, now) {
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
}

/// Whose key a signature claims to be of: proof of nothing.
pub(super) fn claimed_fingerprint(signature: &str) -> Option<String> {
    UnverifiedSignature::parse(signature).ok().map(|it| it.claimed_fingerprint())
}

/// So many keys may have enrolled one another in a row.
const ENROLMENTS_AT_MOST: i32 = 32;

/// A signature that is good in itself, with whose it is.
pub(super) struct Proven {
    pub(super) holder: store::KeyHolder,
    pub(super) fingerprint: String,
    pub(super) touch: Option<verify::Touch>,
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

/// The agent whose lease `terms` are of, unless its sponsor is gone: as the statement names it, with its task's `claims`.
pub(super) fn agent_of<'a>(
    terms: &'a LeaseTerms,
    sponsor_groups: Option<&'a [String]>,
    claims: &'a BTreeMap<String, String>,
) -> Option<AgentFacts<'a>> {
    Some(AgentFacts {
        name: &terms.agent.name,
        sponsor: &terms.sponsor,
        sponsor_groups: sponsor_groups?,
        issuer: &terms.agent.issuer,
        actor: terms.actor.as_deref(),
        claims,
    })
}
