//! Stops sessions on AWS: a deny policy on their role, written by the revoker, and a probe that sees AWS refuse it.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_iam::error::{ProvideErrorMetadata, SdkError};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;

use super::{Access, STOP_POLICY};

/// IAM's quota for all inline policies of a role together, white space not counted (`reference_iam-quotas`).
const INLINE_POLICY_CHARS: usize = 10_240;
/// What the name of a probe takes of it.
const ROOM_FOR_A_PROBE: usize = 64;

const NO_SUCH_ENTITY: &str = "NoSuchEntity";
/// What the names of the broker's own probes begin with. No lease's session is named so: those begin with the lease's id.
pub const PROBE_NAME: &str = "probe-";

/// Which sessions of a role AWS refuses. Its JSON says no more than this, so that what is on a role can be read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopPolicy {
    /// All that began before: a whole second, as AWS counts.
    pub cut_off: Option<OffsetDateTime>,
    /// Those of these names.
    pub session_names: BTreeSet<String>,
}

impl StopPolicy {
    pub fn is_empty(&self) -> bool {
        self.cut_off.is_none() && self.session_names.is_empty()
    }

    /// The policy document. Keys that are documented to be in every request of a role's session: `aws:TokenIssueTime`, and
    /// `aws:userid`, which is the role's unique id, a colon and the session's name.
    pub fn document(&self) -> String {
        let deny = |id: &str, condition: Value| json!({ "Sid": id, "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition });
        let cut_off = self.cut_off.map(|it| {
            let at = it.format(&Rfc3339).expect("a year of four digits");
            deny("AllBefore", json!({ "DateLessThan": { "aws:TokenIssueTime": at } }))
        });
        let named = (!self.session_names.is_empty()).then(|| {
            let ids: Vec<_> = self.session_names.iter().map(|it| format!("*:{it}")).collect();
            deny("These", json!({ "StringLike": { "aws:userid": ids } }))
        });
        let statements: Vec<_> = cut_off.into_iter().chain(named).collect();
        json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
    }

    /// Reads a document of ours; `None` is one that somebody else wrote, or changed.
    fn read(document: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(document).ok()?;
        let mut policy = Self::default();
        for statement in value["Statement"].as_array()? {
            let condition = &statement["Condition"];
            if let Some(at) = condition["DateLessThan"]["aws:TokenIssueTime"].as_str() {
                policy.cut_off = Some(OffsetDateTime::parse(at, &Rfc3339).ok()?);
            }
            let ids = condition["StringLike"]["aws:userid"].as_array();
            for id in ids.into_iter().flatten() {
                policy.session_names.insert(id.as_str()?.strip_prefix("*:")?.to_owned());
            }
        }
        (serde_json::from_str::<Value>(&policy.document()).ok()? == value).then_some(policy)
    }

    /// Whether IAM may take it, with one more name: as the role's only inline policy it would.
    pub fn fits(&self) -> bool {
        let chars = self.document().chars().filter(|it| !it.is_whitespace()).count();
        chars + ROOM_FOR_A_PROBE <= INLINE_POLICY_CHARS
    }

    /// Whether it names sessions of leases, not probes alone.
    pub fn names_leases(&self) -> bool {
        self.session_names.iter().any(|it| !it.starts_with(PROBE_NAME))
    }

    /// Whether `there`, on a role, says no more than this; but for probes that have served, if there is to be a policy
    /// anyhow: the next write leaves them out.
    pub fn is_all_of(&self, there: &Self) -> bool {
        let mut there = there.clone();
        if !self.is_empty() {
            there.session_names.retain(|it| !it.starts_with(PROBE_NAME));
        }
        self.covers(&there)
    }

    /// Whether everything that `other` refuses is refused by this too.
    pub fn covers(&self, other: &Self) -> bool {
        other.cut_off <= self.cut_off && self.session_names.is_superset(&other.session_names)
    }
}

/// Why a role's policy was not read or written. Nothing in it is secret.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// IAM has no room for it on this role.
    #[error("the role has no room for the policy")]
    NoRoom,
    #[error("IAM refused: {0}")]
    Refused(String),
    #[error("IAM was not reached, or did not answer as it should: {0}")]
    Unclear(String),
}

impl StopError {
    /// That the policy is not there is no error.
    pub fn is_no_such_role(&self) -> bool {
        matches!(self, Self::Refused(code) if code == NO_SUCH_ENTITY)
    }
}

/// What is on a role.
#[derive(Debug, PartialEq, Eq)]
pub enum OnRole {
    Nothing,
    Ours(StopPolicy),
    /// A policy of that name that we did not write so.
    Foreign,
}

/// The IAM clients of the revoker, by account.
#[derive(Debug)]
pub struct Revoker {
    access: Access,
    clients: Mutex<HashMap<String, aws_sdk_iam::Client>>,
}

impl Revoker {
    pub fn new(access: Access) -> Self {
        Self { access, clients: Mutex::default() }
    }

    async fn client(&self, role_arn: &str) -> aws_sdk_iam::Client {
        let account = role_arn.split(':').nth(4).unwrap_or_default();
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(account) {
            return client.clone();
        }
        let config = self.access.load(&self.access.settings.revoker, Some(account)).await;
        let client = aws_sdk_iam::Client::new(&config);
        clients.insert(account.to_owned(), client.clone());
        client
    }

    pub async fn read(&self, role_arn: &str) -> Result<OnRole, StopError> {
        let request = self.client(role_arn).await.get_role_policy();
        match request.role_name(name(role_arn)).policy_name(STOP_POLICY).send().await {
            Ok(answer) => {
                let document = percent_decode(&answer.policy_document);
                Ok(StopPolicy::read(&document).map_or(OnRole::Foreign, OnRole::Ours))
            }
            Err(error) if is_no_such_policy(&error) => Ok(OnRole::Nothing),
            Err(error) => Err(describe(&error)),
        }
    }

    pub async fn write(&self, role_arn: &str, policy: &StopPolicy) -> Result<(), StopError> {
        let request = self.client(role_arn).await.put_role_policy();
        let request = request.role_name(name(role_arn)).policy_name(STOP_POLICY);
        let answer = request.policy_document(policy.document()).send().await;
        answer.map(drop).map_err(|error| describe(&error))
    }

    pub async fn remove(&self, role_arn: &str) -> Result<(), StopError> {
        let request = self.client(role_arn).await.delete_role_policy();
        match request.role_name(name(role_arn)).policy_name(STOP_POLICY).send().await {
            Err(error) if !is_no_such_policy(&error) => Err(describe(&error)),
            _ => Ok(()),
        }
    }
}

/// What IAM calls the role: its ARN has the path too.
fn name(role_arn: &str) -> &str {
    role_arn.rsplit('/').next().unwrap_or_default()
}

/// IAM answers with documents in URL encoding (RFC 3986).
fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The role's absence is another thing than the policy's, with the same code.
fn is_no_such_policy<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    error.code() == Some(NO_SUCH_ENTITY)
        && error.message().is_some_and(|it| it.to_ascii_lowercase().contains("policy"))
}

fn describe<E, R>(error: &SdkError<E, R>) -> StopError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match error.code() {
        Some("LimitExceeded") => StopError::NoRoom,
        // IAM's own words name our principal: the log has them.
        Some(code) if matches!(error, SdkError::ServiceError(_)) => {
            tracing::warn!(code, message = error.message(), "IAM refused");
            StopError::Refused(code.to_owned())
        }
        _ => StopError::Unclear(
            aws_sdk_iam::error::DisplayErrorContext(error).to_string().chars().take(300).collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    fn names(count: usize) -> BTreeSet<String> {
        (0..count).map(|it| format!("019f8a00-0000-7000-8000-{it:012}-01234567")).collect()
    }

    #[test]
    fn what_is_written_can_be_read_back_and_nothing_else_is_taken_for_it() {
        let whole = StopPolicy {
            cut_off: Some(datetime!(2026-01-01 12:00:36 UTC)),
            session_names: names(3),
        };
        assert_eq!(StopPolicy::read(&whole.document()).as_ref(), Some(&whole));
        let changed = whole.document().replacen("Deny", "Allow", 1);
        assert_eq!(StopPolicy::read(&changed), None);
        let more = whole.document().replace(
            "\"Statement\":[",
            "\"Statement\":[{\"Effect\":\"Allow\",\"Action\":\"*\",\"Resource\":\"*\"},",
        );
        assert_eq!(StopPolicy::read(&more), None);
        assert_eq!(StopPolicy::read("{}"), None);
    }

    #[test]
    fn a_role_has_room_for_some_two_hundred_sessions() {
        let of = |count| StopPolicy { cut_off: None, session_names: names(count) };
        let room = (0..400).take_while(|it| of(*it).fits()).last();
        assert_eq!(room, Some(200));
        assert!(of(0).is_empty() && !of(1).is_empty());
    }

    #[test]
    fn probes_that_have_served_may_stay_in_a_policy_but_not_alone() {
        let probe = format!("{PROBE_NAME}019f8a00-0000-7000-8000-000000000000-01234567");
        let of = |count, probe: Option<&String>| {
            let session_names = names(count).into_iter().chain(probe.cloned()).collect();
            StopPolicy { cut_off: None, session_names }
        };
        assert!(of(1, None).is_all_of(&of(1, Some(&probe))));
        assert!(!of(1, None).is_all_of(&of(2, Some(&probe))));
        assert!(!of(0, None).is_all_of(&of(0, Some(&probe))));
        assert!(of(1, Some(&probe)).names_leases() && !of(0, Some(&probe)).names_leases());
    }

    #[test]
    fn a_policy_covers_another_only_if_nothing_of_it_is_left_out() {
        let at = |second| Some(datetime!(2026-01-01 12:00 UTC) + Duration::seconds(second));
        let policy = |cut_off, count| StopPolicy { cut_off, session_names: names(count) };
        assert!(policy(at(1), 2).covers(&policy(at(0), 1)));
        assert!(policy(at(1), 2).covers(&policy(None, 2)));
        assert!(!policy(None, 2).covers(&policy(at(0), 2)));
        assert!(!policy(at(0), 2).covers(&policy(at(1), 2)));
        assert!(!policy(at(1), 1).covers(&policy(at(1), 2)));
    }
}
