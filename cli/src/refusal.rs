//! What a refusal says to programs. The same members from every command with `-o json` and from every MCP tool, so
//! that an agent which learned one knows all: what is missing, and what to do instead of looking elsewhere.

use broker::lease::{LeaseId, LeaseState};
use broker::problem::{Kind, NO_LONGER};
use broker::render::words;
use broker::wire::Lease;
use rmcp::schemars;
use serde::Serialize;
use time::OffsetDateTime;

use crate::output::utc;

/// The `type` of a failure that the broker cannot name: it was not there.
pub(crate) const UNREACHABLE: &str = "/problems/unreachable";
/// RFC 9457's `type` for what the title alone tells.
pub(crate) const UNTYPED: &str = "about:blank";
/// Stands in a command for the one that the caller wants to run.
const COMMAND: &str = "COMMAND";

/// Why nothing was got, or not yet, and how to go on.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct Refusal {
    /// What kind of refusal it is, for programs to match on, such as `/problems/pending` or `/problems/denied`
    pub(crate) r#type: String,
    pub(crate) title: String,
    pub(crate) detail: String,
    /// The lease it is about
    pub(crate) lease_id: Option<String>,
    /// Where that lease stands, such as `pending` or `refused`
    pub(crate) state: Option<String>,
    /// The signatures that a pending lease waits for
    pub(crate) missing: Option<Missing>,
    /// When the same request may be made again, in RFC 3339
    pub(crate) retry_at: Option<String>,
    /// What to do next, in words
    pub(crate) next: String,
    /// The command to run next, word by word. A last word `COMMAND` stands for your own command and its arguments.
    /// Null where no command helps and a person has to act
    pub(crate) next_command: Option<Vec<String>>,
}

/// Signatures that a lease waits for.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct Missing {
    /// How many
    pub(crate) signatures: u16,
    /// People who may give them, each once; nobody else can, and no agent
    pub(crate) of: Vec<String>,
    /// What to tell them, so that they sign this request and no other
    pub(crate) code: Option<String>,
    /// When the request lapses, in RFC 3339
    pub(crate) sign_by: Option<String>,
    /// What one of them runs, with their own key
    pub(crate) sign_with: Vec<String>,
    /// A page to send them, which says how to sign
    pub(crate) link: Option<String>,
}

impl Refusal {
    pub(crate) fn new(r#type: &str, title: &str, detail: String, next: String) -> Self {
        Self {
            r#type: r#type.to_owned(),
            title: title.to_owned(),
            detail,
            lease_id: None,
            state: None,
            missing: None,
            retry_at: None,
            next,
            next_command: None,
        }
    }

    /// What the broker's answer was about, and what follows from its kind.
    pub(crate) fn of_kind(
        mut self,
        kind: Kind,
        lease: Option<LeaseId>,
        reason: Option<&str>,
    ) -> Self {
        self.lease_id = lease.map(|it| it.to_string());
        self.state = match kind {
            Kind::Ended => reason.map(str::to_owned),
            Kind::Pending => Some(LeaseState::Pending.to_string()),
            Kind::Refused => Some(LeaseState::Refused.to_string()),
            _ => None,
        };
        self.next_command = match (kind, lease) {
            (Kind::Pending, Some(id)) => Some(wait_for(id)),
            (Kind::NotAnchored | Kind::RoleCutOff, Some(id)) => Some(run_with(id)),
            (Kind::Refused | Kind::Ended | Kind::AlreadyIssued, Some(id)) => {
                Some(command(&["show", &id.to_string()]))
            }
            (Kind::Denied, Some(id)) if reason == Some(NO_LONGER) => {
                Some(command(&["show", &id.to_string()]))
            }
            (Kind::Denied, _) => Some(command(&["scopes"])),
            (Kind::NotFound, _) => Some(command(&["leases"])),
            _ => None,
        };
        self
    }

    /// Of a lease that cannot be used, or not yet.
    pub(crate) fn of_lease(mut self, lease: &Lease) -> Self {
        self.lease_id = Some(lease.id.to_string());
        self.state = Some(lease.state.to_string());
        self.missing = Missing::of(lease);
        self.next_command = match lease.state {
            LeaseState::Pending => Some(wait_for(lease.id)),
            LeaseState::Denied => Some(command(&["scopes"])),
            // A person had a reason, which is to be read before anything is asked for again.
            LeaseState::Refused | LeaseState::Revoked => {
                Some(command(&["show", &lease.id.to_string()]))
            }
            _ => Some(ask_again(lease)),
        };
        self
    }

    /// With everything that does not show, or draws over what does, made visible: what it quotes was written by others.
    pub(crate) fn visible(mut self) -> Self {
        for text in [&mut self.title, &mut self.detail, &mut self.next] {
            *text = words(text);
        }
        let lists = [self.missing.as_mut().map(|it| &mut it.of), self.next_command.as_mut()];
        for text in lists.into_iter().flatten().flatten() {
            *text = words(text);
        }
        self
    }
}

impl Missing {
    /// Nothing, unless the lease waits for people.
    pub(crate) fn of(lease: &Lease) -> Option<Self> {
        (lease.state == LeaseState::Pending).then(|| Self {
            signatures: missing(lease),
            of: not_yet_signed(lease),
            code: lease.short_code.clone(),
            sign_by: lease.sign_by.map(utc),
            sign_with: command(&["sign", &lease.id.to_string()]),
            link: lease.link.clone(),
        })
    }
}

/// How many signatures a lease still waits for.
pub(crate) fn missing(lease: &Lease) -> u16 {
    let given = u16::try_from(lease.signatures.len()).unwrap_or(u16::MAX);
    lease.signatures_needed.saturating_sub(given)
}

/// Who may sign and has not: nobody signs twice.
pub(crate) fn not_yet_signed(lease: &Lease) -> Vec<String> {
    let signed = |person: &String| lease.signatures.iter().any(|it| it.person == *person);
    lease.eligible_signers.iter().filter(|it| !signed(it)).cloned().collect()
}

/// A time to come back at: a second begun is one to wait for.
pub(crate) fn not_before(at: OffsetDateTime) -> String {
    utc(at + time::Duration::nanoseconds(999_999_999))
}

pub(crate) fn command(words: &[&str]) -> Vec<String> {
    std::iter::once("broker").chain(words.iter().copied()).map(str::to_owned).collect()
}

/// Runs something with the lease's credentials.
pub(crate) fn run_with(id: LeaseId) -> Vec<String> {
    command(&["exec", "--lease", &id.to_string(), "--", COMMAND])
}

/// The same, as soon as it is signed.
fn wait_for(id: LeaseId) -> Vec<String> {
    command(&["exec", "--lease", &id.to_string(), "--wait", "10m", "--", COMMAND])
}

/// Asks for a lease in the words in which this one was asked for.
fn ask_again(lease: &Lease) -> Vec<String> {
    let mut words = vec!["lease", "--scope", &lease.scope, "--task", &lease.task];
    words.extend(lease.actions.iter().flat_map(|it| ["--action", it]));
    words.extend(lease.resources.iter().flat_map(|it| ["--resource", it]));
    words.extend(lease.reason.iter().flat_map(|it| ["--reason", it]));
    words.extend(lease.rollback.iter().flat_map(|it| ["--rollback", it]));
    command(&words)
}
