//! What travels over HTTP, as the server writes it and the command line reads it.
//!
//! Times are RFC 3339 UTC; durations are whole seconds and say so in their names.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::lease::{
    ActionClass, Assurance, Decision, Environment, FreezeKind, LeaseId, LeaseState, SessionState,
    Tier, WouldBe,
};
use crate::statement::act::{ActKind, ActState};

/// `POST /v1/leases`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    pub scope: String,
    /// Ticket or run id; the task token's own task when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Why, in words. At most 1,000 characters. Signed tiers need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// IAM actions, within the scope's; unsigned tiers take wildcards within one service, like `s3:Get*`. Left out: all of the
    /// scope's (unsigned tiers only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<Vec<String>>,
    /// ARNs, within the scope's. Left out: all of the scope's (unsigned tiers only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Vec<String>>,
    /// Length of the lease's window, in seconds; 900 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// How to undo it, in words. Signed tiers need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<String>,
    /// Whether credentials are wanted in the same answer.
    #[serde(default)]
    pub deliver: bool,
    /// Whether an open lease will do that this task asked for in the same words: it is answered, and none is opened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub join: bool,
}

impl LeaseRequest {
    /// What is asked for, without how it is to be answered: two that are equal here ask for the same.
    #[must_use]
    pub fn words(&self) -> Self {
        Self { deliver: false, join: false, ..self.clone() }
    }
}

/// A lease, as whoever may see it sees it. Never holds a secret, except in `credentials`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Lease {
    pub id: LeaseId,
    pub state: LeaseState,
    pub agent: String,
    pub sponsor: String,
    pub task: String,
    pub reason: Option<String>,
    pub rollback: Option<String>,
    pub scope: String,
    /// This and the next four are absent where a denied request named nothing that exists.
    pub environment: Option<Environment>,
    pub tier: Option<Tier>,
    /// Twelve digits.
    pub account: Option<String>,
    pub region: Option<String>,
    pub role_arn: Option<String>,
    pub actions: Vec<String>,
    pub resources: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub sign_by: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub approved_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub claim_by: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub issued_at: Option<OffsetDateTime>,
    /// When an unsigned lease's window, or a signed lease's one session, ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ends_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Why it was denied, refused, withdrawn or failed.
    pub end_reason: Option<String>,
    /// The rules that decided.
    pub decided_by: Vec<String>,
    pub signatures_needed: u16,
    /// Who may sign; empty when nobody has to.
    pub eligible_signers: Vec<String>,
    pub signatures: Vec<Signature>,
    /// First 40 bits of the statement's SHA-256; the signer sees the same. What destroys has it for its agent alone, who
    /// tells the signer.
    pub short_code: Option<String>,
    /// While it waits for signatures: a page that tells people how to give one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    pub sessions: Vec<Session>,
    /// What to do next, in one sentence, when there is something to do.
    pub next: Option<String>,
    /// Present only in the answer to the request that asked to have them delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Of the event that tells what this answer did; absent where nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// What whoever changed something is given, to find it in the record: later, and without believing the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Receipt {
    pub event_id: Uuid,
    /// RFC 6962's hash of the event's body as a leaf, in lower-case hex.
    pub leaf_hash: String,
}

/// One person's decision over a lease's statement.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Signature {
    pub person: String,
    pub decision: Decision,
    pub key_fingerprint: String,
    pub assurance: Assurance,
    #[serde(with = "time::serde::rfc3339")]
    pub signed_at: OffsetDateTime,
}

/// One STS session minted under a lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Session {
    pub id: Uuid,
    pub state: SessionState,
    pub session_name: String,
    pub access_key_id: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub claimed_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    pub failure: Option<String>,
    /// When it was stopped here; AWS may take it until `stopped_at`, or until it expires.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub revoking_at: Option<OffsetDateTime>,
    /// When AWS was seen to refuse it.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub stopped_at: Option<OffsetDateTime>,
    /// The Region whose endpoint refused.
    #[serde(default)]
    pub stopped_region: Option<String>,
}

/// `POST /v1/leases/{id}/revoke`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// Why; at most 1,000 characters.
    pub reason: String,
}

/// `POST /v1/freezes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FreezeRequest {
    pub kind: FreezeKind,
    /// The agent, sponsor, scope or environment; absent for `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Why; at most 1,000 characters.
    pub reason: String,
}

/// A standing order that nothing is issued to what it covers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Freeze {
    pub id: Uuid,
    pub kind: FreezeKind,
    pub target: Option<String>,
    pub reason: String,
    pub created_by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    pub thawed_by: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub thawed_at: Option<OffsetDateTime>,
    /// STS sessions that it stopped.
    pub sessions: i64,
    /// Those of them that AWS was not yet seen to refuse, and that have not expired.
    pub not_yet_stopped: i64,
    /// When AWS was seen to refuse the last one so far.
    #[serde(with = "time::serde::rfc3339::option")]
    pub stopped_at: Option<OffsetDateTime>,
    /// Roles that are cut off as a whole, sessions that we do not know of among them, and whose policy is not written yet.
    pub roles_not_told: i64,
    /// Of the event that tells what this answer did; absent where nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// `GET /v1/freezes`: those that stand, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct FreezeList {
    pub freezes: Vec<Freeze>,
}

/// `GET /v1/leases`: newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct LeasePage {
    pub leases: Vec<Lease>,
    /// Pass as `after` to get the next page; absent on the last one.
    pub next_cursor: Option<LeaseId>,
}

/// AWS credentials of one session. `Debug` prints no secret.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Credentials {
    pub session_id: Uuid,
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    pub region: String,
    /// Of the event that tells of their delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("session_id", &self.session_id)
            .field("access_key_id", &self.access_key_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// `GET /v1/leases/{id}/statement`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct StatementBytes {
    /// The lease it is about.
    pub id: LeaseId,
    /// The exact bytes, in standard base64.
    pub statement: String,
    /// Of the bytes, in lower-case hex.
    pub sha256: String,
    pub short_code: String,
}

/// `POST /v1/leases/{id}/signatures`. Authenticated by the signature itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SignatureRequest {
    pub decision: Decision,
    /// An armored SSHSIG (`-----BEGIN SSH SIGNATURE-----`) over the DSSE pre-authentication encoding of the
    /// statement, in the namespace of the decision's payload type.
    pub signature: String,
    /// SHA-256 of the statement the signer saw, in hex: a mismatch is told apart from a bad signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement_sha256: Option<String>,
    /// Why not, in words; kept with a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/login/nonce`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct LoginNonce {
    /// Sign it as it is, as the body of payload type `application/vnd.broker.login.v1+json`.
    pub nonce: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// `POST /v1/login`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    pub nonce: String,
    /// An armored SSHSIG.
    pub signature: String,
}

/// A person's reading session. It approves nothing.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct LoginSession {
    pub person: String,
    pub token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

impl fmt::Debug for LoginSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginSession").field("person", &self.person).finish_non_exhaustive()
    }
}

/// `GET /v1/scopes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ScopeList {
    pub scopes: Vec<Scope>,
}

/// A scope that the caller may ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Scope {
    pub name: String,
    pub description: String,
    pub environment: Environment,
    pub tier: Tier,
    /// What makes it this tier.
    pub tier_because: String,
    pub account: String,
    /// Where it may be used; credentials are delivered for the first.
    pub regions: Vec<String>,
    pub actions: Vec<String>,
    pub resources: Vec<String>,
    pub max_ttl_seconds: u32,
    pub signatures_needed: u16,
    pub signer_groups: Vec<String>,
}

/// `POST /v1/explain`: what a request would come to, had it been made now. No lease is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Explanation {
    pub outcome: WouldBe,
    /// In words.
    pub why: String,
    /// When there will be room in the budget that has none now.
    #[serde(with = "time::serde::rfc3339::option")]
    pub retry_at: Option<OffsetDateTime>,
    /// The rules that decided; empty where none was asked, or none allowed it.
    pub decided_by: Vec<String>,
    pub scope: String,
    /// This and the next two are absent where there is no such scope.
    pub environment: Option<Environment>,
    pub tier: Option<Tier>,
    pub tier_because: Option<String>,
    /// What the lease would allow; this and what follows is empty where it would not be one.
    pub actions: Vec<ExplainedAction>,
    pub resources: Vec<String>,
    /// The session policy that AWS would enforce, as text.
    pub session_policy: Option<String>,
    /// Of the lease's window, and of one session under it.
    pub ttl_seconds: Option<u32>,
    pub session_seconds: Option<u32>,
    pub signatures_needed: u16,
    pub eligible_signers: Vec<String>,
    /// What a signer's key needs at least.
    pub assurance: Option<Assurance>,
}

/// One action that a lease would allow.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ExplainedAction {
    pub action: String,
    pub class: ActionClass,
    /// AWS grants it on `*` only, whatever the resources say.
    pub any_resource: bool,
}

/// `GET /v1/whoami`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum WhoAmI {
    Agent {
        agent: String,
        sponsor: String,
        /// Who set it off, if somebody else did who is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        actor: Option<String>,
        task: String,
        task_id: Uuid,
        #[serde(with = "time::serde::rfc3339")]
        token_expires_at: OffsetDateTime,
    },
    Person {
        person: String,
        display_name: String,
        groups: Vec<String>,
        #[serde(with = "time::serde::rfc3339")]
        token_expires_at: OffsetDateTime,
    },
}

/// `POST /v1/statements/drafts`: what the caller wants to sign.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ActRequest {
    /// The caller, as its sponsor, hands a task to an agent.
    TaskStart {
        agent: String,
        /// Ticket or run id.
        task: String,
        /// How long its token is good; 28,800 at most unless configured otherwise.
        ttl_seconds: u32,
    },
    /// Ends a freeze that somebody else ordered.
    Thaw { freeze_id: Uuid },
    /// Revokes a key of the caller's own; an admin, of anybody's.
    RevokeKey {
        /// `SHA256:…`
        fingerprint: String,
    },
}

/// An act of authority: its statement, and where it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Act {
    pub id: Uuid,
    pub kind: ActKind,
    pub state: ActState,
    /// The exact bytes, in standard base64.
    pub statement: String,
    /// Of the bytes, in lower-case hex.
    pub sha256: String,
    pub short_code: String,
    /// The person it changes something for, or who stands behind the task.
    pub about: Option<String>,
    /// Absent for an operator on the server's host.
    pub proposed_by: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub proposed_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub sign_by: OffsetDateTime,
    pub eligible_signers: Vec<String>,
    pub signatures: Vec<Signature>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub signed_at: Option<OffsetDateTime>,
    /// When it takes effect, or did; until then an admin can refuse it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub effective_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub end_reason: Option<String>,
}

/// `GET /v1/statements`: those that may still come to something and concern the caller, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ActList {
    pub statements: Vec<Act>,
}

/// `POST /v1/statements`. Authenticated by the signature itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ActSignature {
    pub id: Uuid,
    pub decision: Decision,
    /// As in `POST /v1/leases/{id}/signatures`, in the namespace of the statement's payload type.
    pub signature: String,
    /// SHA-256 of the statement the signer saw, in hex: a mismatch is told apart from a bad signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement_sha256: Option<String>,
    /// Why not, in words; kept with a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What became of a signed act.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SignedAct {
    #[serde(flatten)]
    pub act: Act,
    /// Of a task that was started: the agent's token, told once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<StartedTask>,
    /// Of the event that tells what this answer did; absent where nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// A task, with the token that the agent calls with.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct StartedTask {
    pub id: Uuid,
    pub agent: String,
    pub sponsor: String,
    pub task: String,
    pub token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

impl fmt::Debug for StartedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartedTask").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What is exchanged: a JWT (RFC 8693, section 3).
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// What is given for it.
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The one grant of `/v1/token`.
pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// `POST /v1/token`, form-encoded: a token exchange (RFC 8693, section 2.1). Parameters that are not here are ignored, as OAuth
/// wants it.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct TokenRequest {
    /// `urn:ietf:params:oauth:grant-type:token-exchange`.
    pub grant_type: String,
    /// The workload's token.
    pub subject_token: String,
    /// `urn:ietf:params:oauth:token-type:jwt`.
    pub subject_token_type: String,
    /// Not supported: who acts is in the subject token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_token: Option<String>,
}

impl TokenRequest {
    pub fn new(subject_token: String) -> Self {
        let (grant_type, subject_token_type) = (TOKEN_EXCHANGE.to_owned(), JWT.to_owned());
        Self { grant_type, subject_token, subject_token_type, actor_token: None }
    }

    /// Whether it is the one exchange that there is; or why not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.grant_type != TOKEN_EXCHANGE {
            return Err("grant_type is urn:ietf:params:oauth:grant-type:token-exchange");
        }
        if self.subject_token_type != JWT {
            return Err("subject_token_type is urn:ietf:params:oauth:token-type:jwt");
        }
        if self.actor_token.is_some() {
            return Err("there is no actor_token here: the subject token says who set it off");
        }
        Ok(())
    }
}

impl fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRequest").finish_non_exhaustive()
    }
}

/// A task token for a workload's (RFC 8693, section 2.2.1), and what it is good for.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct IssuedToken {
    /// The task token.
    pub access_token: String,
    pub issued_token_type: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds.
    pub expires_in: u32,
    pub task_id: Uuid,
    pub agent: String,
    pub sponsor: String,
    /// Who set it off, if somebody did who is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    pub task: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("task_id", &self.task_id).finish_non_exhaustive()
    }
}

/// `POST /v1/tasks/{id}/end`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct EndedTask {
    pub id: Uuid,
    /// How many open leases ended with it.
    pub leases: u64,
    /// Of the event that tells what this answer did; absent where nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}
