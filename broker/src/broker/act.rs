//! Acts of authority: a person has a statement drawn up, signs it, and it is done.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::refuse::Refusal;
use super::sign::{Proven, claimed_fingerprint};
use super::{Broker, NO_CLAIMS};
use crate::audit::{Actor, EventType};
use crate::error::{Error, Result};
use crate::identity::{Caller, TaskGrant};
use crate::lease::{Assurance, Decision, FreezeKind};
use crate::policy::{self, AgentFacts, PersonFacts, Ruling, Target, Who};
use crate::statement::Signers;
use crate::statement::act::{
    ADMINS, Act, ActKind, ActState, ActStatement, ActTerms, Change, TaskStart, Thaw, is_line,
    is_name,
};
use crate::store::{self, Counted, FindActs, NewActSignature};
use crate::verify::act::{ActSigner, check_act_signer};
use crate::verify::{Demand, Rejection, UnverifiedSignature, check_signature};
use crate::wire;

/// How long what one draws up for oneself waits for one's signature.
const SIGN_OWN_WITHIN: Duration = Duration::minutes(10);
const OPEN_DRAFTS_AT_MOST: i64 = 20;

impl Broker {
    /// Draws up a statement for the caller to sign. This gives nobody anything.
    pub async fn propose(&self, caller: &Caller, request: &wire::ActRequest) -> Result<wire::Act> {
        let now = whole_microseconds(self.clock.now());
        let me = self.caller_in_person(caller).await?;
        let authority = &self.config.settings.authority;
        let (act, assurance) = match request {
            wire::ActRequest::TaskStart { agent, task, ttl_seconds } => {
                let longest = authority.longest_task;
                if !is_name(agent) || !is_line(task) {
                    return Err(Error::Invalid("an agent's name is small letters, digits, dots, dashes and underscores; a task is one line".into()));
                }
                if !(60..=longest.seconds()).contains(ttl_seconds) {
                    return Err(Error::Invalid(format!("a task runs for 1m to {longest}")));
                }
                let task = TaskStart {
                    agent: agent.clone(),
                    sponsor: me.handle.clone(),
                    task: task.clone(),
                    ttl_seconds: *ttl_seconds,
                };
                (Act::TaskStart(task), authority.start_task)
            }
            wire::ActRequest::Thaw { freeze_id } => {
                let freeze = store::standing_freeze(&self.pool, *freeze_id).await?;
                let freeze = freeze.ok_or(Error::NotFound)?;
                if freeze.created_by == me.handle {
                    return Err(Error::Invalid(
                        "you froze it yourself: another person has to thaw it".into(),
                    ));
                }
                let thaw = Thaw {
                    freeze_id: *freeze_id,
                    freeze: freeze.kind,
                    target: freeze.target,
                    frozen_by: freeze.created_by,
                    frozen_because: freeze.reason,
                    frozen_at: whole_microseconds(freeze.created_at),
                };
                (Act::Thaw(thaw), authority.thaw)
            }
            wire::ActRequest::RevokeKey { fingerprint } => {
                let owner = store::owner_of_key(&self.pool, fingerprint).await?;
                let may = |it: &String| *it == me.handle || me.groups.iter().any(|it| it == ADMINS);
                let handle = owner.filter(may).ok_or(Error::NotFound)?;
                // Whatever key its owner has left will do: it only takes away from themselves.
                let own = handle == me.handle;
                let change = Change::RevokeKey { handle, fingerprint: fingerprint.clone() };
                let assurance = if own { authority.start_task } else { authority.change_people };
                (Act::AdminChange(change), assurance)
            }
        };
        let kind = act.kind();
        // Revoking a key must not wait for whoever fills the list.
        if kind != ActKind::AdminChange
            && OPEN_DRAFTS_AT_MOST <= store::open_drafts(&self.pool, &me.handle, kind).await?
        {
            return Err(Error::Invalid(format!(
                "{OPEN_DRAFTS_AT_MOST} statements of yours wait for a signature already; they lapse within ten minutes"
            )));
        }
        let terms = ActTerms {
            broker: self.tokens.issuer(),
            id: Uuid::now_v7(),
            act,
            proposed_by: Some(me.handle.clone()),
            signers: Signers {
                eligible: vec![me.handle.clone()],
                needed: 1,
                assurance: self.config.settings.demanded(assurance),
            },
            proposed_at: now,
            sign_by: now + SIGN_OWN_WITHIN,
            cool_down_seconds: 0,
            nonce: nonce(),
        };
        let person = PersonFacts { handle: &me.handle, groups: &me.groups };
        if let Ruling::Deny { .. } = self.rule_on_act(person, &terms, now).await? {
            return Err(Error::Denied { lease_id: None, why: "the rules do not let you".into() });
        }
        let statement = ActStatement::new(terms)?;
        store::propose(&self.pool, &self.scribe, &statement).await?;
        self.find_act(statement.terms().id).await
    }

    /// What may still come to something and concerns the caller.
    pub async fn open_acts(&self, caller: &Caller) -> Result<wire::ActList> {
        let me = self.caller_in_person(caller).await?;
        let admin = me.groups.iter().any(|it| it == ADMINS);
        let acts = store::acts(&self.pool, FindActs::Open { handle: &me.handle, admin }).await?;
        // One that this version cannot read must not hide the others.
        let readable = acts.into_iter().filter_map(|it| {
            let id = it.id;
            let act = wire_act(it);
            act.inspect_err(|error| tracing::error!(%id, ?error, "a statement cannot be read")).ok()
        });
        Ok(wire::ActList { statements: readable.collect() })
    }

    /// One act, if it concerns the caller.
    pub async fn act(&self, caller: &Caller, id: Uuid) -> Result<wire::Act> {
        let me = self.caller_in_person(caller).await?;
        let act = self.find_act(id).await?;
        let concerned = me.groups.iter().any(|it| it == ADMINS)
            || act.eligible_signers.contains(&me.handle)
            || [&act.about, &act.proposed_by].contains(&&Some(me.handle));
        if concerned { Ok(act) } else { Err(Error::NotFound) }
    }

    async fn find_act(&self, id: Uuid) -> Result<wire::Act> {
        let found = store::acts(&self.pool, FindActs::One(id)).await?.pop();
        wire_act(found.ok_or(Error::NotFound)?)
    }

    pub(super) async fn caller_in_person(&self, caller: &Caller) -> Result<store::Person> {
        match caller {
            Caller::Person(reader) => self.person(reader).await,
            Caller::Agent(_) => Err(Error::OtherCaller("a person")),
        }
    }

    /// Judges a signature over an act, and does what was signed or records why not.
    pub async fn sign_act(&self, request: &wire::ActSignature) -> Result<wire::SignedAct> {
        let now = self.clock.now();
        let stored = store::acts(&self.pool, FindActs::One(request.id)).await?.pop();
        let stored = stored.ok_or(Error::NotFound)?;
        let sealed = ActStatement::from_bytes(stored.bytes.clone())?;
        let terms = sealed.terms();
        let Some(meaning) = terms.meaning(request.decision) else {
            return Err(Error::Invalid(
                "this is not refused: it lapses unless it is signed".into(),
            ));
        };
        if request.statement_sha256.as_ref().is_some_and(|it| *it != sealed.sha256()) {
            return Err(self
                .reject_act(terms, request, Rejection::NotThisStatement, None, now)
                .await?);
        }
        let assurance = match request.decision {
            Decision::Approve => terms.signers.assurance,
            // To stop something a weaker key will do.
            Decision::Refuse => self.config.settings.demanded(Assurance::Present),
        };
        let (body, origin) = (sealed.bytes(), terms.broker.origin.as_str());
        let demand = Demand { meaning, body, origin, assurance };
        let proven = match self.prove(&request.signature, demand, now).await? {
            Ok(proven) => proven,
            Err(rejection) => {
                return Err(self.reject_act(terms, request, rejection, None, now).await?);
            }
        };
        let person = proven.holder.person.clone();
        let no = |rejection| self.reject_act(terms, request, rejection, Some(&person), now);
        let decided_by =
            match self.judge_act(&stored, terms, &proven, request.decision, now).await? {
                Ok(decided_by) => decided_by,
                Err(rejection) => return Err(no(rejection).await?),
            };
        let reason = request.reason.as_ref().map(|it| it.chars().take(1000).collect::<String>());
        let signature = NewActSignature {
            person: &person,
            fingerprint: &proven.fingerprint,
            decision: request.decision,
            text: &request.signature,
            assurance: proven.holder.key.assurance,
            touch: proven.touch,
            reason: reason.as_deref(),
            decided_by: &decided_by,
        };
        let counted = store::sign_act(&self.pool, &self.scribe, terms, signature, now).await?;
        let receipt = match counted {
            Counted::Yes(receipt) => Some(receipt),
            Counted::No => return Err(no(Rejection::NotPending).await?),
            Counted::NoLongerSo => return Err(no(Rejection::NoLongerSo).await?),
        };
        let task = match &terms.act {
            Act::TaskStart(task) => Some(self.started(terms.id, task, now)),
            _ => None,
        };
        Ok(wire::SignedAct { act: self.find_act(terms.id).await?, task, receipt })
    }

    /// Whether a good signature counts: the rules that let it, or why not.
    async fn judge_act(
        &self,
        stored: &store::StoredAct,
        terms: &ActTerms,
        proven: &Proven,
        decision: Decision,
        now: OffsetDateTime,
    ) -> Result<std::result::Result<Vec<String>, Rejection>> {
        let holder = &proven.holder;
        // Whoever approved may still refuse.
        let mut there = stored.signatures.iter();
        if there.any(|it| it.person == holder.person && it.decision == decision) {
            return Ok(Err(Rejection::AlreadySigned));
        }
        if decision == Decision::Approve && !self.is_as_here(terms) {
            return Ok(Err(Rejection::NoLongerSo));
        }
        match (stored.state, decision) {
            (ActState::Proposed, _) | (ActState::Signed, Decision::Refuse) => {}
            (ActState::Lapsed, _) => return Ok(Err(Rejection::TooLate)),
            _ => return Ok(Err(Rejection::NotPending)),
        }
        let signer =
            ActSigner { handle: &holder.person, active: holder.active, groups: &holder.groups };
        if let Err(rejection) = check_act_signer(terms, decision, signer, now) {
            return Ok(Err(rejection));
        }
        if let Act::Thaw(Thaw { freeze: FreezeKind::Agent, target: Some(agent), .. }) = &terms.act
            && store::is_sponsor_of(&self.pool, &holder.person, agent).await?
        {
            return Ok(Err(Rejection::Concerned));
        }
        let person = PersonFacts { handle: &holder.person, groups: &holder.groups };
        Ok(match self.rule_on_act(person, terms, now).await? {
            Ruling::Allow { by } => Ok(by),
            Ruling::Deny { .. } => Err(Rejection::ForbiddenByRule),
        })
    }

    /// Whether this broker would draw it up so today: another's statement, or one from before the configuration asked for
    /// more, is drawn up anew.
    fn is_as_here(&self, terms: &ActTerms) -> bool {
        let settings = &self.config.settings;
        let authority = &settings.authority;
        let (assurance, cool_down) = match &terms.act {
            Act::TaskStart(it) if authority.longest_task.seconds() < it.ttl_seconds => {
                return false;
            }
            Act::TaskStart(_) => (authority.start_task, Duration::ZERO),
            Act::Thaw(_) => (authority.thaw, Duration::ZERO),
            Act::AdminChange(it) if it.cools_down() => {
                (authority.change_people, settings.cool_down())
            }
            Act::AdminChange(it) if it.is_ones_own() => (authority.start_task, Duration::ZERO),
            Act::AdminChange(_) => (authority.change_people, Duration::ZERO),
        };
        terms.broker == self.tokens.issuer()
            && settings.demanded(assurance) <= terms.signers.assurance
            && cool_down.whole_seconds() <= terms.cool_down_seconds.into()
    }

    /// What the rules say to an act. They say nothing to changes of people: those are the admins'.
    async fn rule_on_act(
        &self,
        person: PersonFacts<'_>,
        terms: &ActTerms,
        now: OffsetDateTime,
    ) -> Result<Ruling> {
        let rule = |act: policy::Act<'_>| self.config.policy.rule(Who::Person(person), &act, now);
        let agent = |name, sponsor, sponsor_groups| AgentFacts {
            name,
            sponsor,
            sponsor_groups,
            issuer: &self.config.settings.origin,
            actor: None,
            claims: NO_CLAIMS,
        };
        let thaw = match &terms.act {
            Act::AdminChange(_) => return Ok(Ruling::Allow { by: Vec::new() }),
            Act::TaskStart(task) => {
                return Ok(rule(policy::Act::StartTask {
                    agent: agent(&task.agent, &task.sponsor, person.groups),
                    window: Duration::seconds(task.ttl_seconds.into()),
                    task: &task.task,
                }));
            }
            Act::Thaw(thaw) => thaw,
        };
        let target = thaw.target.as_deref().unwrap_or_default();
        let groups = async |handle: &str| -> Result<Vec<String>> {
            Ok(store::active_person(&self.pool, handle)
                .await?
                .map(|it| it.groups)
                .unwrap_or_default())
        };
        // What no longer exists is ruled on as the widest thing there is.
        Ok(match thaw.freeze {
            FreezeKind::Agent => {
                let sponsor = store::last_sponsor(&self.pool, target).await?.unwrap_or_default();
                let groups = groups(&sponsor).await?;
                rule(policy::Act::Thaw(Target::Agent(agent(target, &sponsor, &groups))))
            }
            FreezeKind::Sponsor => {
                let groups = groups(target).await?;
                let sponsor = PersonFacts { handle: target, groups: &groups };
                rule(policy::Act::Thaw(Target::Sponsor(sponsor)))
            }
            FreezeKind::Scope => rule(policy::Act::Thaw(
                self.config.catalogue.scope(target).map_or(Target::Everything, Target::Scope),
            )),
            FreezeKind::Environment => rule(policy::Act::Thaw(
                target.parse().map_or(Target::Everything, Target::Environment),
            )),
            FreezeKind::All => rule(policy::Act::Thaw(Target::Everything)),
        })
    }

    /// Records a signature that does not count, and is then the error that says so.
    async fn reject_act(
        &self,
        terms: &ActTerms,
        request: &wire::ActSignature,
        rejection: Rejection,
        person: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Error> {
        let detail = json!({
            "act_id": terms.id,
            "decision": request.decision,
            "reason": rejection.code(),
            "key_fingerprint": claimed_fingerprint(&request.signature),
        });
        let (kind, whom) = (EventType::SignatureRejected, person.map(ToOwned::to_owned).into());
        let why = format!("{} {}", request.decision, rejection.code());
        let refusal = Refusal::new(kind, whom, &why, now);
        self.refuse(Refusal { about: Some(terms.id), detail, ..refusal }).await?;
        Ok(Error::Rejected { lease_id: None, rejection })
    }

    fn started(&self, id: Uuid, task: &TaskStart, now: OffsetDateTime) -> wire::StartedTask {
        let expires_at = now + Duration::seconds(task.ttl_seconds.into());
        let TaskStart { agent, sponsor, task, .. } = task;
        let token = self.tokens.task_token(TaskGrant { id, agent, sponsor, task, expires_at }, now);
        wire::StartedTask {
            id,
            agent: agent.clone(),
            sponsor: sponsor.clone(),
            task: task.clone(),
            token: token.expose_secret().to_owned(),
            expires_at,
        }
    }

    /// Ends a task, and every lease that is open under it: an agent its own, a sponsor theirs.
    pub async fn end_task(&self, caller: &Caller, id: Uuid) -> Result<wire::EndedTask> {
        let now = self.clock.now();
        let ended = match caller {
            Caller::Agent(agent) if agent.task_id == id => {
                let actor = Actor::Agent(&agent.name);
                store::end_task(&self.pool, &self.scribe, actor, id, &agent.sponsor, now).await?
            }
            Caller::Agent(_) => None,
            Caller::Person(reader) => {
                let me = self.person(reader).await?;
                let actor = Actor::Person(&me.handle);
                store::end_task(&self.pool, &self.scribe, actor, id, &me.handle, now).await?
            }
        };
        let (leases, receipt) = ended.ok_or(Error::NotFound)?;
        Ok(wire::EndedTask { id, leases, receipt: Some(receipt) })
    }

    /// Does what was signed and has cooled down, if the signature is still good. Returns how many acts ended.
    pub(super) async fn finish_acts(&self, now: OffsetDateTime) -> Result<usize> {
        let due = store::acts(&self.pool, FindActs::Due(now)).await?;
        let mut finished = 0;
        for stored in &due {
            match self.finish(stored, now).await {
                Ok(()) => finished += 1,
                // Each by itself: one that cannot be done must not hold up the others.
                Err(error) => tracing::error!(id = %stored.id, ?error, "a signed act is not done"),
            }
        }
        Ok(finished)
    }

    async fn finish(&self, stored: &store::StoredAct, now: OffsetDateTime) -> Result<()> {
        let sealed = ActStatement::from_bytes(stored.bytes.clone())?;
        let why_not = self.why_not_due(&sealed, now).await?;
        let why_not = why_not.map(|it| format!("its signature no longer counts: {it}"));
        let terms = sealed.terms();
        Ok(store::finish_act(&self.pool, &self.scribe, terms, why_not.as_deref(), now).await?)
    }

    /// Why the signature that an act waited with does not count any more.
    async fn why_not_due(
        &self,
        sealed: &ActStatement,
        now: OffsetDateTime,
    ) -> Result<Option<Rejection>> {
        let terms = sealed.terms();
        let (Some(meaning), Some(approval)) =
            (terms.meaning(Decision::Approve), store::act_approval(&self.pool, terms.id).await?)
        else {
            return Ok(Some(Rejection::UnknownKey));
        };
        let demand = Demand {
            meaning,
            body: sealed.bytes(),
            origin: &terms.broker.origin,
            assurance: terms.signers.assurance,
        };
        let store::ActApproval { signature, signed_at, fingerprint, holder } = approval;
        if !self.is_as_here(terms) {
            return Ok(Some(Rejection::NoLongerSo));
        }
        if holder.enrolled_by.is_some() && !self.is_enrolled(&fingerprint).await? {
            return Ok(Some(Rejection::UnknownKey));
        }
        let groups = &holder.groups;
        let signer = ActSigner { handle: &holder.person, active: holder.active, groups };
        let judged = UnverifiedSignature::parse(&signature)
            .and_then(|it| check_signature(&it, &holder.key, demand, now))
            .and_then(|_| check_act_signer(terms, Decision::Approve, signer, signed_at));
        Ok(judged.err())
    }
}

fn wire_act(stored: store::StoredAct) -> Result<wire::Act> {
    let sealed = ActStatement::from_bytes(stored.bytes)?;
    let terms = sealed.terms();
    Ok(wire::Act {
        id: stored.id,
        kind: terms.act.kind(),
        state: stored.state,
        statement: STANDARD.encode(sealed.bytes()),
        sha256: sealed.sha256(),
        short_code: sealed.short_code(),
        about: terms.act.about().map(ToOwned::to_owned),
        proposed_by: terms.proposed_by.clone(),
        proposed_at: terms.proposed_at,
        sign_by: terms.sign_by,
        eligible_signers: terms.signers.eligible.clone(),
        signatures: stored.signatures,
        signed_at: stored.signed_at,
        effective_at: stored.effective_at,
        ended_at: stored.ended_at,
        end_reason: stored.end_reason,
    })
}

/// The database keeps no finer time, and compares it with the statement's own.
pub(crate) fn whole_microseconds(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1000 * 1000).expect("less than a second")
}

/// 32 random bytes in hex.
pub(crate) fn nonce() -> String {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes);
    hex::encode(bytes)
}
