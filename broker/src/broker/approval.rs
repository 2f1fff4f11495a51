//! An approval, for whoever checks it without us.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Broker;
use crate::approval::{self, Envelope, Export, Jwk};
use crate::error::{Error, Result};
use crate::identity::Caller;
use crate::lease::LeaseId;
use crate::statement::LeaseStatement;
use crate::store;

impl Broker {
    /// What people signed about a lease, sealed. It is not judged here: what does not add up, its reader has to see.
    pub async fn approval(&self, caller: &Caller, id: LeaseId) -> Result<Envelope> {
        self.lease(caller, id).await?;
        let found = store::approval(&self.pool, id).await?.ok_or(Error::Unsigned(id))?;
        // The key that the statement names, if it is still here: verifiers are to find one installation in both.
        let named = LeaseStatement::from_bytes(found.statement.clone());
        let named = named.map(|it| it.terms().broker.instance_key.clone());
        let key = self.tokens.key_of(named.as_deref().unwrap_or_default());
        let export = Export {
            instance_key: Jwk::of(key.public()),
            origin: self.config.settings.origin.clone(),
            exported_at: self.clock.now(),
            lease: found.lease,
            statement: STANDARD.encode(found.statement),
            signatures: found.signatures,
        };
        let sealed = approval::seal(&export, |message| key.sign(message));
        sealed.map_err(|error| Error::Internal(error.to_string()))
    }
}
