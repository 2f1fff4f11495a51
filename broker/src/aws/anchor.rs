//! Checkpoints in a bucket with Object Lock: what is put there, nobody removes before its time.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockMode};
use tokio::sync::OnceCell;

use super::Access;
use crate::anchor::AnchorError;
use crate::clock::Clock;
use crate::config::AnchorBucket;
use crate::log::checkpoint::MAX_NOTE_BYTES;

pub struct Bucket {
    settings: AnchorBucket,
    access: Access,
    client: OnceCell<Client>,
    clock: Clock,
}

impl Bucket {
    pub fn new(settings: AnchorBucket, access: Access) -> Self {
        Self { settings, access, client: OnceCell::new(), clock: Clock::default() }
    }

    async fn client(&self) -> &Client {
        let made = self.client.get_or_init(|| async {
            let config = self.access.load(&self.settings.principal, None).await;
            let region = aws_sdk_s3::config::Region::new(self.settings.region.clone());
            // Not by host name: a bucket's may have dots, and an endpoint of one's own has no names.
            let config = aws_sdk_s3::config::Builder::from(&config).region(region);
            Client::from_conf(config.force_path_style(true).build())
        });
        made.await
    }

    /// The last name at `from` or later, without the prefix, and what was put there first.
    pub async fn newest(&self, from: &str) -> Result<Option<(String, String)>, AnchorError> {
        // Names all have one length: this is before `from`, and behind most others.
        let before = &from[..from.len() - 1];
        let Some((key, version)) = self.last_version(&self.settings.prefix, before).await? else {
            return Ok(None);
        };
        let name = key[self.settings.prefix.len()..].to_owned();
        if name.as_str() < from {
            return Ok(None);
        }
        Ok(Some((name, self.get(&key, &version).await?)))
    }

    /// The oldest version of the last key with the prefix, behind a name.
    ///
    /// A lock keeps a version; above it anybody who may put or delete can put another, or a marker that hides it.
    async fn last_version(
        &self,
        prefix: &str,
        after: &str,
    ) -> Result<Option<(String, String)>, AnchorError> {
        let client = self.client().await;
        let (mut marker, mut version_marker) = (Some(format!("{prefix}{after}")), None);
        let mut last = None;
        loop {
            let page = client.list_object_versions().bucket(&self.settings.bucket).prefix(prefix);
            let page = page.set_key_marker(marker).set_version_id_marker(version_marker);
            let page = page.send().await.map_err(|it| away(&it))?;
            // By key, and of one key the newest first; markers of deletion are told apart.
            if let Some(it) = page.versions().last() {
                last = it.key().zip(it.version_id()).map(|(it, id)| (it.to_owned(), id.to_owned()));
            }
            if page.is_truncated() != Some(true) || page.next_key_marker().is_none() {
                return Ok(last);
            }
            marker = page.next_key_marker;
            version_marker = page.next_version_id_marker;
        }
    }

    async fn get(&self, key: &str, version: &str) -> Result<String, AnchorError> {
        let object = self.client().await.get_object().bucket(&self.settings.bucket).key(key);
        let object = object.version_id(version).send().await.map_err(|it| away(&it))?;
        let foreign = || AnchorError::Foreign(key.to_owned());
        let length = object.content_length().and_then(|it| u64::try_from(it).ok());
        if length.is_none_or(|it| MAX_NOTE_BYTES < it) {
            return Err(foreign());
        }
        let bytes = object.body.collect().await.map_err(|it| AnchorError::Aws(it.to_string()))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| foreign())
    }

    /// Puts it there, locked, unless something is; and says what is there then.
    pub async fn put(&self, name: &str, note: &str) -> Result<String, AnchorError> {
        let key = format!("{}{name}", self.settings.prefix);
        let until = self.clock.now() + self.settings.retain.0;
        let put = self.client().await.put_object().bucket(&self.settings.bucket).key(&key);
        let put = put
            .body(ByteStream::from(note.as_bytes().to_vec()))
            .content_type("text/plain; charset=utf-8")
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .object_lock_mode(ObjectLockMode::Compliance)
            .object_lock_retain_until_date(DateTime::from_secs(until.unix_timestamp()))
            .if_none_match("*");
        match put.send().await {
            Ok(_) => Ok(note.to_owned()),
            Err(error) if status(&error) != Some(412) => Err(away(&error)),
            Err(_) => {
                let there = self.last_version(&key, "").await?;
                let (key, version) = there.ok_or_else(|| AnchorError::Foreign(key.clone()))?;
                self.get(&key, &version).await
            }
        }
    }
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|it| it.status().as_u16())
}

fn away<E: ProvideErrorMetadata>(error: &SdkError<E>) -> AnchorError {
    AnchorError::Aws(match error {
        SdkError::ServiceError(it) => {
            let code = it.err().code().unwrap_or("an error without a code");
            format!("S3 refused: {code}")
        }
        SdkError::TimeoutError(_) => "S3 did not answer in time".to_owned(),
        _ => "S3 was not reached, or did not answer as it should".to_owned(),
    })
}
