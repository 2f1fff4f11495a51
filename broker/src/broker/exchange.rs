//! Workloads: the token of a trusted issuer for one of ours (RFC 8693).

use secrecy::ExposeSecret as _;
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Broker;
use super::refuse::{Refusal, Whom};
use crate::audit::{Actor, EventType, Subject};
use crate::error::{Error, Result};
use crate::identity::issuers::{Disbelieved, Vouched};
use crate::identity::{Agent, Caller, Origin, TaskGrant, TokenError};
use crate::lease::{Budgeted, Whose};
use crate::store::{self, Exceeded, WorkloadTask};
use crate::wire;
use crate::workload::{SetOff, Workload, WorkloadError};

impl Broker {
    /// Whose token this is. What the configuration takes back, it takes back from those who have it.
    pub fn authenticate(&self, header: Option<&str>) -> std::result::Result<Caller, TokenError> {
        match self.tokens.authenticate(header, self.clock.now())? {
            Caller::Agent(agent) if !self.config.issuers.vouch_for(&agent) => {
                Err(TokenError::NotMapped { claimed: Box::new(Caller::Agent(agent)) })
            }
            caller => Ok(caller),
        }
    }

    /// Starts the task of a workload that proves who it is, and gives it the task's token. The same token again is the same
    /// task, where it may come again; and never another.
    pub async fn exchange(&self, request: &wire::TokenRequest) -> Result<wire::IssuedToken> {
        let now = self.clock.now();
        request.check().map_err(|why| Error::Invalid(why.to_owned()))?;
        let origin = &self.config.settings.origin;
        let judged = self.config.issuers.authenticate(&request.subject_token, origin, now).await;
        let workload = match judged {
            Ok(workload) => workload,
            Err(Disbelieved { why, vouched }) => {
                return Err(self.refuse_workload(why, vouched, None, now).await);
            }
        };
        match self.start(&workload, now).await {
            Err(Error::Workload(why)) => {
                let Workload { issuer, subject, .. } = &workload;
                let (issuer, subject) = (issuer.clone(), Some(subject.clone()));
                let vouched = Some(Vouched { issuer, subject });
                Err(self.refuse_workload(why, vouched, Some(&workload), now).await)
            }
            started => started,
        }
    }

    async fn start(&self, workload: &Workload, now: OffsetDateTime) -> Result<wire::IssuedToken> {
        let Workload { agent, sponsor, task, .. } = workload;
        let (named, actor_unknown) = match &workload.set_off {
            SetOff::BySponsor => (None, false),
            SetOff::By(person) => (Some(person), false),
            SetOff::BySomebody => (None, true),
        };
        // Who is no person here, or none any more, is nobody that we know.
        let actor = match named {
            Some(handle) => store::active_person(&self.pool, handle).await?.map(|it| it.handle),
            None => None,
        };
        let actor_unknown = actor_unknown || named.is_some() && actor.is_none();
        let origin = Origin {
            issuer: Some(workload.issuer.clone()),
            actor,
            actor_unknown,
            claims: workload.claims.clone(),
        };
        let id = Uuid::now_v7();
        let ttl = workload.ttl.min(self.config.settings.authority.longest_task.0);
        let subject = Subject { agent: Some(agent), sponsor: Some(sponsor), ..Subject::default() };
        let detail = json!({
            "task": task,
            "task_id": id,
            "issuer": workload.issuer,
            "subject": workload.subject,
            "set_off_by": origin.actor,
            "actor_unknown": origin.actor_unknown,
            "claims": origin.claims,
        });
        let event =
            self.scribe.body(EventType::TaskStarted, Actor::Agent(agent), subject, detail, now);
        let limit = i64::from(self.limits().agent.requests_per_minute);
        let new = WorkloadTask { id, workload, origin: &origin, expires_at: now + ttl, event };
        let started = store::start_workload_task(&self.pool, new, limit, now).await?;
        let (id, expires_at) = match started {
            store::StartedWorkload::New { id, expires_at } => (id, expires_at),
            store::StartedWorkload::Known { .. } if workload.once => {
                return Err(WorkloadError::Replayed.into());
            }
            store::StartedWorkload::Known { id, expires_at } => {
                self.tell_resumed(workload, id, now).await?;
                (id, expires_at)
            }
            store::StartedWorkload::Ended => return Err(WorkloadError::TaskEnded.into()),
            store::StartedWorkload::NoSponsor => return Err(WorkloadError::NoSponsor.into()),
            store::StartedWorkload::OverBudget { retry_at } => {
                let (budget, of) = (Budgeted::RequestsPerMinute, Whose::Agent);
                let wait = retry_at - now;
                let exceeded = Exceeded { budget, of, limit, retry_at, wait };
                let agent = Agent {
                    name: agent.clone(),
                    sponsor: sponsor.clone(),
                    task: task.clone(),
                    task_id: id,
                    origin,
                    token_expires_at: now,
                };
                self.refuse_over_budget(&agent, None, exceeded, now).await?;
                return Err(Error::OverBudget(exceeded));
            }
        };
        let grant = TaskGrant { id, agent, sponsor, task, expires_at };
        let actor = origin.actor.clone();
        let token = self.tokens.workload_token(grant, origin, now);
        Ok(wire::IssuedToken {
            access_token: token.expose_secret().to_owned(),
            issued_token_type: wire::ACCESS_TOKEN.to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: u32::try_from((expires_at - now).whole_seconds()).unwrap_or_default(),
            task_id: id,
            agent: agent.clone(),
            sponsor: sponsor.clone(),
            actor,
            task: task.clone(),
            expires_at,
        })
    }

    /// Records that a workload was given its task again; counted as refusals are, because it costs as little to ask. What cannot
    /// be recorded is not given.
    async fn tell_resumed(&self, workload: &Workload, id: Uuid, now: OffsetDateTime) -> Result<()> {
        let Workload { agent, sponsor, task, issuer, subject, .. } = workload;
        let whom = Whom::Agent(agent.clone());
        let again = Refusal::new(EventType::TaskResumed, whom, "", now);
        let (agent, sponsor) = (Some(agent.clone()), Some(sponsor.clone()));
        let detail = json!({ "task": task, "task_id": id, "issuer": issuer, "subject": subject });
        self.refuse(Refusal { about: Some(id), agent, sponsor, detail, ..again }).await
    }

    /// Records that a workload's token was not believed: whose it is, as far as its issuer's signature says.
    async fn refuse_workload(
        &self,
        error: WorkloadError,
        vouched: Option<Vouched>,
        workload: Option<&Workload>,
        now: OffsetDateTime,
    ) -> Error {
        let reason = error.code();
        let mut detail = json!({ "reason": reason });
        let mut why = reason.to_owned();
        if let Some(Vouched { issuer, subject }) = vouched {
            // Issuers are ours to name; whoever has an account there has a subject, and may choose it.
            why.extend([" ", &issuer]);
            detail["issuer"] = json!(issuer);
            if let Some(subject) = subject {
                detail["subject"] = json!(subject);
            }
        }
        let agent = workload.map(|it| it.agent.clone());
        let whom = agent.clone().map_or(Whom::Nobody, Whom::Agent);
        let refusal = Refusal::new(EventType::AuthRejected, whom, &why, now);
        let sponsor = workload.map(|it| it.sponsor.clone());
        let refusal = Refusal { agent, sponsor, detail, ..refusal };
        if let Err(error) = self.refuse(refusal).await {
            tracing::warn!(?error, "a token that was not believed is not in the record yet");
        }
        error.into()
    }
}
