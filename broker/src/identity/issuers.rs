//! The issuers that are configured, and who comes with their tokens.

use std::path::Path;

use time::OffsetDateTime;

use super::jwks::{Jwks, Source};
use super::{Agent, Origin};
use crate::workload::issuer::Issuer;
use crate::workload::{Workload, WorkloadError, read};

/// A token that was not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disbelieved {
    pub why: WorkloadError,
    /// Who signed it, and for what, if that much is proven.
    pub vouched: Option<Vouched>,
}

/// What an issuer signed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    pub issuer: String,
    pub subject: Option<String>,
}

impl From<WorkloadError> for Disbelieved {
    fn from(why: WorkloadError) -> Self {
        Self { why, vouched: None }
    }
}

/// All issuers, with what we know of their keys.
#[derive(Debug, Default)]
pub struct Issuers(Vec<(Issuer, Jwks)>);

impl Issuers {
    /// Reads what the issuers' settings name in `dir`; no network.
    pub fn load(issuers: &[Issuer], dir: &Path) -> Result<Self, String> {
        let load = |issuer: &Issuer| {
            let source = match (&issuer.jwks_uri, &issuer.jwks_file) {
                (Some(uri), _) => {
                    let roots = issuer.ca_file.as_ref().map(|it| {
                        let path = dir.join(it);
                        std::fs::read_to_string(&path)
                            .map_err(|error| format!("{}: {error}", path.display()))
                    });
                    Source::url(uri, roots.transpose()?.as_deref())
                        .map_err(|error| format!("issuers: {}: ca_file: {error}", issuer.issuer))?
                }
                (None, file) => Source::File(dir.join(file.as_deref().unwrap_or(Path::new("")))),
            };
            Ok((issuer.clone(), Jwks::new(source)))
        };
        issuers.iter().map(load).collect::<Result<_, String>>().map(Self)
    }

    /// Whether a task that a workload's token started would still be this agent's, of this sponsor, and set off by somebody known.
    pub fn vouch_for(&self, agent: &Agent) -> bool {
        let Origin { issuer: Some(issuer), actor, .. } = &agent.origin else { return true };
        self.0.iter().any(|(it, _)| {
            it.issuer == *issuer
                && it
                    .workloads
                    .iter()
                    .any(|it| it.agent == agent.name && it.sponsor == agent.sponsor)
                && actor.as_ref().is_none_or(|actor| it.actors.values().any(|it| it == actor))
        })
    }

    /// Which workload this token is of. `origin` is the audience of issuers that name no other.
    pub async fn authenticate(
        &self,
        token: &str,
        origin: &str,
        now: OffsetDateTime,
    ) -> Result<Workload, Disbelieved> {
        let unverified = read(token)?;
        let (issuer, keys) = (self.0.iter())
            .find(|(it, _)| it.issuer == unverified.issuer)
            .ok_or(WorkloadError::UnknownIssuer)?;
        // Before anybody is asked for a key.
        unverified.algorithm(issuer)?;
        let key = keys.key(&unverified.key_id, now).await.map_err(WorkloadError::from)?;
        let signed = unverified.verify(issuer, |algorithm| {
            key.verifies(unverified.signature, unverified.message.as_bytes(), algorithm)
        })?;
        let subject = signed.subject().map(ToOwned::to_owned);
        signed.workload(origin, now).map_err(|why| Disbelieved {
            why,
            vouched: Some(Vouched { issuer: issuer.issuer.clone(), subject }),
        })
    }
}
