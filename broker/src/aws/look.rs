//! Reads what the accounts are like, as the doctor: IAM, access keys, bucket policies, and STS's word for who we are.
//! Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use aws_config::retry::RetryConfig;
use aws_config::{Region, SdkConfig};
use aws_sdk_iam::types::{
    AttachedPolicy, EntityType, ManagedPolicyDetail, PolicyDetail, StatusType,
};
use aws_sdk_sts::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_sts::config::{ConfigBag, Intercept, ProvideCredentials, RuntimeComponents};
use aws_sdk_sts::error::{BoxError, DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sts::primitives::{DateTime, DateTimeFormat};
use time::{Duration, OffsetDateTime};

use super::Access;
use crate::arn::{Arn, globs_overlap};
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::config::Principal;
use crate::doctor::document::Document;
use crate::doctor::estate::{AccessKey, Account, Answer, Cloud, Identity, Part, Policy, Unread};
use crate::role::Role;

/// Reading twice does no harm.
const ATTEMPTS: u32 = 2;

/// Looks at all accounts of the catalogue, and at those of the broker's own principals.
pub async fn look(access: &Access, catalogue: &Catalogue, clock: &Clock) -> Cloud {
    let settings = &access.settings;
    let (doctor, minter) = tokio::join!(
        identify(access, &settings.doctor, clock),
        identify(access, &settings.minter, clock)
    );
    let mut cloud = Cloud {
        doctor,
        minter,
        accounts: BTreeMap::new(),
        buckets: BTreeMap::new(),
        access_keys: BTreeMap::new(),
    };
    let roles = Role::all(catalogue);
    let mut accounts: BTreeSet<_> = roles.iter().map(|it| it.account).collect();
    let own = settings.principals().map(|(_, it)| it);
    // Elsewhere than in its own account the doctor can look only where it has a role.
    let theirs = own.iter().map(|it| it.account());
    accounts.extend(theirs.filter(|it| *it == settings.doctor.account()));
    for account in accounts {
        // Who cannot be reached is not asked again and again.
        let read = match &cloud.doctor {
            Err(why) => Err(why.clone()),
            Ok(_) => Box::pin(look_at(access, account, &roles)).await,
        };
        cloud.accounts.insert(account.to_owned(), read);
    }
    if cloud.doctor.is_ok() {
        for principal in own.into_iter().filter(|it| it.account() == settings.doctor.account()) {
            if let Some((_, user)) =
                principal.arn.rsplit_once('/').filter(|(it, _)| it.contains(":user"))
            {
                let keys = access_keys(access, principal, user).await;
                cloud.access_keys.insert(principal.arn.clone(), keys);
            }
        }
        for (name, policy) in Box::pin(bucket_policies(access, catalogue)).await {
            cloud.buckets.insert(name, policy);
        }
    }
    cloud
}

/// The configuration of a client that only reads.
async fn reading(access: &Access, account: Option<&str>) -> SdkConfig {
    let config = access.load(&access.settings.doctor, account).await;
    let retry = RetryConfig::standard().with_max_attempts(ATTEMPTS);
    config.into_builder().retry_config(retry).build()
}

/// Notes what goes over the wire beside the answer: the host that was asked, and the time it says.
#[derive(Clone, Debug, Default)]
struct Wire(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    host: String,
    date: Option<String>,
}

impl Intercept for Wire {
    fn name(&self) -> &'static str {
        "Wire"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri();
        let host = uri.split_once("://").map_or(uri, |(_, it)| it);
        let host = host.split(['/', '?', ':']).next().unwrap_or_default();
        host.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).host);
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").map(str::to_owned);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).date = date;
        Ok(())
    }
}

/// Asks STS who `principal`'s credentials are.
async fn identify(access: &Access, principal: &Principal, clock: &Clock) -> Part<Answer> {
    let config = access.load(principal, None).await;
    let provider = config.credentials_provider();
    let provider =
        provider.ok_or_else(|| Unread::NotAsked("there are no credentials".to_owned()))?;
    provider.provide_credentials().await.map_err(|error| {
        Unread::NotAsked(format!("there are no credentials: {}", DisplayErrorContext(error)))
    })?;
    let wire = Wire::default();
    let sts = aws_sdk_sts::Client::new(&config);
    let before = clock.now();
    let request = sts.get_caller_identity().customize().interceptor(wire.clone());
    let answer = request.send().await.map_err(|error| unread(&error))?;
    let taken: Duration = clock.now() - before;
    let ours: OffsetDateTime = before + taken / 2_i32;
    let noted = wire.0.lock().unwrap_or_else(PoisonError::into_inner);
    let theirs =
        noted.date.as_ref().and_then(|it| DateTime::from_str(it, DateTimeFormat::HttpDate).ok());
    Ok(Answer {
        arn: answer.arn.unwrap_or_default(),
        host: noted.host.clone(),
        ahead: theirs.map(|it| it.secs() - ours.unix_timestamp()),
    })
}

/// Users, roles, groups and their policies in `account`.
async fn look_at(access: &Access, account: &str, roles: &[Role<'_>]) -> Part<Account> {
    let iam = aws_sdk_iam::Client::new(&reading(access, Some(account)).await);
    let (mut users, mut live, mut groups, mut policies) = (vec![], vec![], vec![], vec![]);
    let mut marker = None;
    loop {
        let page = iam
            .get_account_authorization_details()
            .filter(EntityType::User)
            .filter(EntityType::Role)
            .filter(EntityType::Group)
            .filter(EntityType::LocalManagedPolicy)
            .filter(EntityType::AwsManagedPolicy)
            .set_marker(marker)
            .send()
            .await
            .map_err(|error| unread(&error))?;
        users.extend(page.user_detail_list.unwrap_or_default());
        live.extend(page.role_detail_list.unwrap_or_default());
        groups.extend(page.group_detail_list.unwrap_or_default());
        policies.extend(page.policies.unwrap_or_default());
        marker = page.marker.filter(|_| page.is_truncated);
        if marker.is_none() {
            break;
        }
    }
    let managed = documents(&policies);
    let mut account = Account::default();
    for it in users {
        let mut own = inline(it.user_policy_list());
        own.extend(attached(it.attached_managed_policies(), &managed));
        let theirs = groups.iter().filter(|group| {
            it.group_list().iter().any(|name| Some(name.as_str()) == group.group_name())
        });
        for group in theirs {
            own.extend(inline(group.group_policy_list()));
            own.extend(attached(group.attached_managed_policies(), &managed));
        }
        let boundary = it.permissions_boundary().and_then(|it| it.permissions_boundary_arn());
        account.add(Identity {
            arn: it.arn.clone().unwrap_or_default(),
            id: it.user_id.clone().unwrap_or_default(),
            policies: own,
            boundary: boundary.map(|it| managed_policy(it, &managed)),
            trust: None,
            longest_session_seconds: None,
        });
    }
    for it in live {
        let mut own = inline(it.role_policy_list());
        own.extend(attached(it.attached_managed_policies(), &managed));
        let boundary = it.permissions_boundary().and_then(|it| it.permissions_boundary_arn());
        account.add(Identity {
            arn: it.arn.clone().unwrap_or_default(),
            id: it.role_id.clone().unwrap_or_default(),
            policies: own,
            boundary: boundary.map(|it| managed_policy(it, &managed)),
            trust: Some(
                it.assume_role_policy_document().map_or_else(Document::unknown, Document::parse),
            ),
            longest_session_seconds: None,
        });
    }
    // The list does not say how long a role's sessions may last.
    for role in roles {
        let Some(known) = account.identities.get_mut(role.arn) else { continue };
        let answer = iam.get_role().role_name(role.name()).send().await;
        let it = answer.map_err(|error| unread(&error))?.role;
        let boundary =
            it.as_ref().and_then(|it| it.permissions_boundary()?.permissions_boundary_arn());
        known.boundary = boundary.map(|it| managed_policy(it, &managed));
        known.longest_session_seconds = it.and_then(|it| it.max_session_duration);
    }
    Ok(account)
}

impl Account {
    fn add(&mut self, identity: Identity) {
        self.identities.insert(identity.arn.clone(), identity);
    }
}

/// The texts in force of managed policies, by ARN.
fn documents(policies: &[ManagedPolicyDetail]) -> BTreeMap<&str, Document> {
    let default = |it: &ManagedPolicyDetail| {
        let versions = it.policy_version_list().iter();
        let version =
            versions.into_iter().find(|version| version.is_default_version)?.document()?;
        Some(Document::parse(version))
    };
    policies.iter().filter_map(|it| Some((it.arn()?, default(it)?))).collect()
}

fn managed_policy(arn: &str, managed: &BTreeMap<&str, Document>) -> Policy {
    Policy {
        name: arn.rsplit('/').next().unwrap_or_default().to_owned(),
        arn: Some(arn.to_owned()),
        document: managed.get(arn).cloned().unwrap_or_else(Document::unknown),
    }
}

fn attached(policies: &[AttachedPolicy], managed: &BTreeMap<&str, Document>) -> Vec<Policy> {
    let arns = policies.iter().map(|it| it.policy_arn().unwrap_or_default());
    arns.map(|it| managed_policy(it, managed)).collect()
}

fn inline(policies: &[PolicyDetail]) -> Vec<Policy> {
    let policy = |it: &PolicyDetail| Policy {
        name: it.policy_name().unwrap_or_default().to_owned(),
        arn: None,
        document: it.policy_document().map_or_else(Document::unknown, Document::parse),
    };
    policies.iter().map(policy).collect()
}

async fn access_keys(access: &Access, principal: &Principal, user: &str) -> Part<Vec<AccessKey>> {
    let iam = aws_sdk_iam::Client::new(&reading(access, Some(principal.account())).await);
    // Nobody has more than two: there is no second page.
    let answer = iam.list_access_keys().user_name(user).send().await;
    let keys = answer.map_err(|error| unread(&error))?.access_key_metadata;
    let key = |it: aws_sdk_iam::types::AccessKeyMetadata| {
        let made_at = it.create_date.map_or(0, |it| it.secs());
        AccessKey {
            id: it.access_key_id.unwrap_or_default(),
            active: it.status != Some(StatusType::Inactive),
            made_at: OffsetDateTime::from_unix_timestamp(made_at)
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        }
    };
    Ok(keys.into_iter().map(key).collect())
}

/// The policies of all buckets that scopes may reach.
async fn bucket_policies(
    access: &Access,
    catalogue: &Catalogue,
) -> Vec<(String, Part<Option<Document>>)> {
    // By account and Region: names, some of them patterns.
    let mut wanted: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for scope in catalogue.scopes() {
        let s3 = scope.actions.iter().any(|it| it.action.acts_on("s3"));
        let resources =
            scope.resources.iter().filter(|it| s3 && matches!(it.service(), "s3" | "*"));
        wanted
            .entry((&scope.account, scope.region()))
            .or_default()
            .extend(resources.map(Arn::bucket));
    }
    let mut all = Vec::new();
    for ((account, region), names) in wanted {
        let config = reading(access, Some(account)).await;
        let config = config.into_builder().region(Region::new(region.to_owned())).build();
        let settings = aws_sdk_s3::config::Builder::from(&config).force_path_style(true);
        let s3 = aws_sdk_s3::Client::from_conf(settings.build());
        let (patterns, mut exact): (BTreeSet<_>, BTreeSet<_>) =
            names.into_iter().partition(|it| it.contains(['*', '?']));
        if !patterns.is_empty() {
            match s3.list_buckets().send().await {
                Ok(list) => {
                    let names = list.buckets().iter().filter_map(|it| it.name());
                    let wanted = |name: &&str| patterns.iter().any(|it| globs_overlap(it, name));
                    exact.extend(names.filter(wanted).map(str::to_owned));
                }
                Err(error) => {
                    let why = unread(&error);
                    all.extend(patterns.into_iter().map(|it| (it, Err(why.clone()))));
                }
            }
        }
        for bucket in exact {
            let answer = s3.get_bucket_policy().bucket(&bucket).send().await;
            let policy = match answer {
                Ok(it) => Ok(it.policy().map(Document::parse)),
                Err(error)
                    if matches!(error.code(), Some("NoSuchBucketPolicy" | "NoSuchBucket")) =>
                {
                    Ok(None)
                }
                Err(error) => Err(unread(&error)),
            };
            all.push((bucket, policy));
        }
    }
    all
}

/// Whether AWS said no, or nothing.
fn unread<E, R>(error: &SdkError<E, R>) -> Unread
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let SdkError::ServiceError(service) = error else {
        return Unread::Unreachable(DisplayErrorContext(error).to_string());
    };
    let (code, message) = (service.err().code(), service.err().message().unwrap_or_default());
    let text = format!("{}: {message}", code.unwrap_or("without a code"));
    let text: String = text.chars().take(300).collect();
    match code {
        // Not about us, or not now.
        None
        | Some(
            "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "SlowDown"
            | "ServiceUnavailable"
            | "ServiceFailure"
            | "InternalFailure"
            | "InternalError"
            | "RequestTimeout",
        ) => Unread::Unreachable(text),
        Some(_) => Unread::Refused(text),
    }
}
