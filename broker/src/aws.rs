//! The only module that talks to AWS: as the minter, the revoker or the doctor, each with credentials of its own.

pub mod anchor;
pub mod look;
pub mod mint;
pub mod stop;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_sts::config::SharedCredentialsProvider;

pub use self::anchor::Bucket;
pub use self::look::look;
pub use self::mint::{MintError, Minted, Probe, ProbeAnswer, Sts};
pub use self::stop::{OnRole, PROBE_NAME, Revoker, StopError, StopPolicy};
use crate::config::{Aws, Principal};

/// The inline policy on each role that stops sessions. The revoker alone writes it.
pub const STOP_POLICY: &str = "broker-stopped";
/// What a role lets the broker's own probe do, to see whether a stop is in effect: it tells whose account an access key id
/// belongs to, and nothing else. (`sts:GetCallerIdentity` cannot serve: it is always allowed.)
pub const PROBE_ACTION: &str = "sts:GetAccessKeyInfo";

/// Where AWS is and who we are to it. What is `None` comes from the configuration or the environment, as in every AWS tool.
#[derive(Clone, Debug, Default)]
pub struct AwsOptions {
    pub endpoint: Option<String>,
    /// The minter's.
    pub credentials: Option<SharedCredentialsProvider>,
}

/// Makes the configuration of AWS clients, with the SDK's own retries off: a call whose outcome nobody knows must not be
/// made twice.
#[derive(Clone, Debug)]
pub struct Access {
    pub settings: Aws,
    options: AwsOptions,
}

impl Access {
    pub fn new(settings: Aws, options: AwsOptions) -> Self {
        Self { settings, options }
    }

    /// For calls as `principal`, in `account` if that is not its own.
    pub async fn load(&self, principal: &Principal, account: Option<&str>) -> SdkConfig {
        let timeout = self.settings.call_timeout.std();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.settings.region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(timeout).build());
        if let Some(endpoint) = &self.options.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let given = self.options.credentials.clone();
        if let Some(given) = given.filter(|_| *principal == self.settings.minter) {
            loader = loader.credentials_provider(given);
        } else if let Some(profile) = &principal.profile {
            let mut provider = ProfileFileCredentialsProvider::builder().profile_name(profile);
            if let Some(file) = &self.settings.credentials_file {
                let only =
                    EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file);
                provider = provider.profile_files(only.build());
            }
            loader = loader.credentials_provider(provider.build());
        }
        let config = loader.load().await;
        let arn = account.map(|it| principal.arn_in(it)).filter(|it| *it != principal.arn);
        let Some(arn) = arn else { return config };
        let assumed = AssumeRoleProvider::builder(arn).session_name("broker").configure(&config);
        let provider = SharedCredentialsProvider::new(assumed.build().await);
        config.into_builder().credentials_provider(provider).build()
    }
}
