//! Turns a warrant into AWS credentials.

use std::error::Error as _;

use aws_sdk_sts::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_sts::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::{AssumeRoleError, AssumeRoleOutput};
use aws_sdk_sts::types::Tag;
use secrecy::SecretString;
use time::{Duration, OffsetDateTime};

use super::{Access, PROBE_ACTION};
use crate::clock::Clock;
use crate::store::Warrant;

/// How far AWS's clock and ours may be apart.
const SKEW: Duration = Duration::minutes(1);
/// How often a call is made anew when STS throttled it or was never reached.
const ATTEMPTS: u32 = 3;
/// The shortest that AWS mints.
const PROBE_SECONDS: i32 = 900;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// The STS client of the minter.
#[derive(Clone, Debug)]
pub struct Sts {
    client: aws_sdk_sts::Client,
    config: aws_config::SdkConfig,
    clock: Clock,
}

/// What STS minted, checked against what was asked for.
#[derive(Debug)]
pub struct Minted {
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    pub session_token: SecretString,
    pub expires_at: OffsetDateTime,
}

/// Why there are no credentials. The text may go into our tables: it holds nothing secret.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    #[error("STS was not reached: {0}")]
    Unreachable(String),
    #[error("STS throttled the request")]
    Throttled,
    #[error("{0}; whether AWS minted is unknown, and counts as used")]
    Unknown(String),
    /// STS's own words name our principal: they go to the log, not into tables or answers.
    #[error("STS refused: {code}")]
    Refused { code: String, message: String },
    /// Session policy and tags together, once AWS has packed them; how it packs is not published.
    #[error("STS found the session policy and tags too large{}", .percent.as_ref().map(|it| format!(", {it} of the room there is")).unwrap_or_default())]
    TooLarge { percent: Option<String> },
    #[error("STS answered something else than was asked: {what}")]
    Wrong {
        what: &'static str,
        /// The session may exist at AWS: this is its key.
        access_key_id: Option<String>,
    },
}

impl MintError {
    /// The key id of a session that AWS may have minted all the same.
    pub fn access_key_id(&self) -> Option<&str> {
        match self {
            Self::Wrong { access_key_id, .. } => access_key_id.as_deref(),
            _ => None,
        }
    }

    fn worth_another_try(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Throttled)
    }
}

impl Sts {
    pub async fn new(access: &Access, clock: Clock) -> Self {
        let minter = access.load(&access.settings.minter, None).await;
        Self { client: aws_sdk_sts::Client::new(&minter), config: minter, clock }
    }

    /// Mints the credentials that `warrant` entitles its agent to.
    pub async fn mint(&self, warrant: &Warrant) -> Result<Minted, MintError> {
        let mut attempt = 1;
        loop {
            let answer = self.assume_role(warrant).await;
            match answer {
                Err(error) if attempt < ATTEMPTS && error.worth_another_try() => {
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
                Ok(answer) => return check(warrant, answer, self.clock.now()),
            }
        }
    }

    /// Mints a session of the broker's own on a role, for [`Probe::ask`] alone: it may do nothing else.
    pub async fn probe(
        &self,
        role_arn: &str,
        external_id: Option<&str>,
        session_name: &str,
    ) -> Result<Probe, MintError> {
        let policy = serde_json::json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": PROBE_ACTION, "Resource": "*" }],
        });
        let request = self
            .client
            .assume_role()
            .role_arn(role_arn)
            .role_session_name(session_name)
            .set_external_id(external_id.map(ToOwned::to_owned))
            .policy(policy.to_string())
            .duration_seconds(PROBE_SECONDS)
            .source_identity(session_name);
        let answer = request.send().await.map_err(|error| describe(&error))?;
        let Some(minted) = answer.credentials else {
            return Err(MintError::Wrong { what: "no credentials", access_key_id: None });
        };
        let expires_at = OffsetDateTime::from_unix_timestamp(minted.expiration.secs())
            .map_err(|_| MintError::Wrong { what: "an expiry beyond time", access_key_id: None })?;
        let credentials = Credentials::new(
            &minted.access_key_id,
            minted.secret_access_key,
            Some(minted.session_token),
            None,
            "probe",
        );
        let config = aws_sdk_sts::config::Builder::from(&self.config)
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        Ok(Probe {
            client: aws_sdk_sts::Client::from_conf(config),
            access_key_id: minted.access_key_id,
            expires_at,
        })
    }

    async fn assume_role(&self, warrant: &Warrant) -> Result<AssumeRoleOutput, MintError> {
        let input = warrant.assume_role();
        let duration = i32::try_from(input.duration_seconds).expect("at most twelve hours");
        let tags = input.tags.iter().map(|(key, value)| {
            Tag::builder().key(key).value(value).build().expect("a tag has a key and a value")
        });
        let request = self
            .client
            .assume_role()
            .role_arn(&input.role_arn)
            .role_session_name(warrant.session_name())
            .set_external_id(input.external_id.clone())
            .policy(&input.policy)
            .duration_seconds(duration)
            .set_tags(Some(tags.collect()))
            .source_identity(&input.source_identity);
        request.send().await.map_err(|error| describe(&error))
    }
}

/// A session that a role's policy is tried with. Its credentials never leave this value.
#[derive(Clone, Debug)]
pub struct Probe {
    client: aws_sdk_sts::Client,
    pub access_key_id: String,
    pub expires_at: OffsetDateTime,
}

/// What AWS says to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeAnswer {
    Let,
    Refused,
    /// Neither: not reached, throttled, expired.
    Unclear,
}

impl Probe {
    pub async fn ask(&self) -> ProbeAnswer {
        let request = self.client.get_access_key_info().access_key_id(&self.access_key_id);
        match request.send().await {
            Ok(_) => ProbeAnswer::Let,
            Err(error)
                if matches!(error.code(), Some("AccessDenied" | "AccessDeniedException")) =>
            {
                ProbeAnswer::Refused
            }
            Err(_) => ProbeAnswer::Unclear,
        }
    }
}

/// The `112%` of "Packed size of session tags consumes 112% of allotted space."
fn percent(message: &str) -> Option<String> {
    let word = message.split_whitespace().find(|it| it.ends_with('%'))?;
    let number = word.strip_suffix('%')?;
    ((1..=5).contains(&number.len()) && number.bytes().all(|it| it.is_ascii_digit()))
        .then(|| word.to_owned())
}

/// Sorts the SDK's errors by the only thing that matters: may STS have minted?
fn describe(error: &SdkError<AssumeRoleError>) -> MintError {
    match error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or("without a code").to_owned();
            if matches!(
                code.as_str(),
                "Throttling" | "ThrottlingException" | "RequestLimitExceeded"
            ) {
                return MintError::Throttled;
            }
            // An answer that cannot be read may have been a yes.
            let status = service.raw().status();
            if !status.is_client_error() || service.err().code().is_none() {
                return MintError::Unknown(format!("STS answered {status}: {code}"));
            }
            let message = service.err().message().unwrap_or_default();
            if matches!(code.as_str(), "PackedPolicyTooLarge" | "PackedPolicyTooLargeException") {
                return MintError::TooLarge { percent: percent(message) };
            }
            let message = message.chars().take(300).collect();
            MintError::Refused { code, message }
        }
        SdkError::ConstructionFailure(_) => MintError::Unreachable(text(error)),
        SdkError::DispatchFailure(_) if connection_refused(error) => {
            MintError::Unreachable(text(error))
        }
        SdkError::TimeoutError(_) => MintError::Unknown("STS did not answer in time".to_owned()),
        SdkError::ResponseError(_) => MintError::Unknown("STS's answer cannot be read".to_owned()),
        _ => MintError::Unknown(format!("the call to STS broke off: {}", text(error))),
    }
}

fn text(error: &SdkError<AssumeRoleError>) -> String {
    DisplayErrorContext(error).to_string()
}

/// Only a refused connection proves that no request arrived.
fn connection_refused(error: &SdkError<AssumeRoleError>) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        source = cause.source();
    }
    false
}

/// Distrusts the cloud's answer: what was minted must be what was asked for.
fn check(
    warrant: &Warrant,
    answer: AssumeRoleOutput,
    now: OffsetDateTime,
) -> Result<Minted, MintError> {
    let input = warrant.assume_role();
    let Some(minted) = answer.credentials else {
        return Err(MintError::Wrong { what: "no credentials", access_key_id: None });
    };
    let key = minted.access_key_id;
    if !(16..=128).contains(&key.len())
        || !key.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_')
    {
        return Err(MintError::Wrong {
            what: "an access key id of another form",
            access_key_id: None,
        });
    }
    let wrong = |what| Err(MintError::Wrong { what, access_key_id: Some(key.clone()) });
    if minted.secret_access_key.is_empty() || minted.session_token.is_empty() {
        return wrong("credentials without a secret");
    }
    let Ok(expires_at) = OffsetDateTime::from_unix_timestamp(minted.expiration.secs()) else {
        return wrong("an expiry beyond time");
    };
    let wanted = now + Duration::seconds(input.duration_seconds.into());
    if expires_at < wanted - SKEW || wanted + SKEW < expires_at {
        return wrong("another duration");
    }
    let suffix = format!("/{}", warrant.session_name());
    let role = input.role_arn.rsplit('/').next().unwrap_or_default();
    let arn = answer.assumed_role_user.map(|it| it.arn).unwrap_or_default();
    let assumed = arn.strip_suffix(&suffix).and_then(|it| it.rsplit('/').next());
    if assumed != Some(role) {
        return wrong("another role or session name");
    }
    if answer.source_identity.as_ref().is_some_and(|it| *it != input.source_identity) {
        return wrong("another source identity");
    }
    Ok(Minted {
        access_key_id: key,
        secret_access_key: minted.secret_access_key.into(),
        session_token: minted.session_token.into(),
        expires_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_cloud_words_only_a_percentage_is_repeated() {
        let said = |message| percent(message);
        assert_eq!(
            said("Packed size of session tags consumes 112% of allotted space.").as_deref(),
            Some("112%")
        );
        for other in ["", "arn:aws:iam::111122223333:role/x%", "1234567%", "%", "1.5%"] {
            assert_eq!(said(other), None, "{other}");
        }
    }
}
