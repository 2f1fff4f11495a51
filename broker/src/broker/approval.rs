//! An approval, for whoever checks it without us.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Broker;
use crate::approval::{self, Envelope, Export, Jwk};
use crate::error::{Error, Result};
use crate::identity::Caller;
use crate::lease::LeaseId;
use crate::store;

impl Broker {
    /// What people signed about a lease, sealed. It is not judged here: what does not add up, its reader has to see.
    pub async fn approval(&self, caller: &Caller, id: LeaseId) -> Result<Envelope> {
        self.lease(caller, id).await?;
        let found = store::approval(&self.pool, id).await?.ok_or(Error::Unsigned(id))?;
        let export = Export {
            instance_key: Jwk::of(self.tokens.public_key()),
            origin: self.config.settings.origin.clone(),
            exported_at: self.clock.now(),
            lease: found.lease,
            statement: STANDARD.encode(found.statement),
            signatures: found.signatures,
        };
        let sealed = approval::seal(&export, |message| self.tokens.sign_bytes(message));
        sealed.map_err(|error| Error::Internal(error.to_string()))
    }
}
