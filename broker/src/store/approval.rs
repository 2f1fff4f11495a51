//! What an approval's export is made of.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sqlx::PgPool;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Result, word};
use crate::approval::{self, Enrolment, Key, Lease};
use crate::lease::{Assurance, Decision, LeaseId};
use crate::verify::EnrolledKey;

/// A lease that people were asked to sign, as of one moment.
#[derive(Debug)]
pub struct Approval {
    pub lease: Lease,
    pub statement: Vec<u8>,
    pub signatures: Vec<approval::Signature>,
}

/// A signature with its key, as the database tells it.
#[derive(Debug, Deserialize)]
struct Row {
    person: String,
    decision: Decision,
    #[serde(with = "time::serde::rfc3339")]
    signed_at: OffsetDateTime,
    signature: String,
    assurance: Assurance,
    touched: Option<bool>,
    verified: Option<bool>,
    key: Key,
}

/// One step of how a key came to be enrolled: whose it is, with the act, and the admin's key that signed that.
#[derive(Debug)]
pub struct Step {
    pub person: String,
    pub key: Key,
    pub signer: EnrolledKey,
    /// The act that enrolled the signer's key, if one did.
    pub signer_enrolled_by: Option<Uuid>,
}

/// How a key came to be enrolled, back to one that an operator set up, but no further than so many steps.
pub async fn enrolment(pool: &PgPool, fingerprint: &str, steps: i32) -> Result<Vec<Step>> {
    let rows = sqlx::query!(
        r#"
        with recursive step as (
            select k.fingerprint, 1 as number from person_key k where k.fingerprint = $1
            union all
            select x.fingerprint, s.number + 1
              from step s
              join person_key k on k.fingerprint = s.fingerprint
              join act_signature x on x.act_id = k.enrolled_by and x.decision = 'approve'
             where s.number < $2
        )
        select k.person, k.public_key, k.fingerprint, k.assurance, k.evidence, k.enrolled_at, k.revoked_at,
               a.bytes, x.signature, x.person as signer, x.signed_at, y.public_key as signer_key, y.assurance as signer_assurance,
               y.enrolled_at as signer_enrolled_at, y.revoked_at as signer_revoked_at, y.enrolled_by as signer_enrolled_by
          from step s
          join person_key k on k.fingerprint = s.fingerprint
          join act a on a.id = k.enrolled_by
          join act_signature x on x.act_id = a.id and x.decision = 'approve'
          join person_key y on y.fingerprint = x.fingerprint
         order by s.number
        "#,
        fingerprint,
        steps,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|it| {
            Ok(Step {
                person: it.person,
                key: Key {
                    public_key: it.public_key,
                    fingerprint: it.fingerprint,
                    assurance: word(&it.assurance)?,
                    evidence: it.evidence,
                    enrolled_at: it.enrolled_at,
                    revoked_at: it.revoked_at,
                    enrolled_by: Some(Enrolment {
                        statement: STANDARD.encode(it.bytes),
                        signature: it.signature,
                        signer: it.signer,
                        public_key: it.signer_key.clone(),
                        signed_at: it.signed_at,
                    }),
                },
                signer: EnrolledKey {
                    public_key: it.signer_key,
                    assurance: word(&it.signer_assurance)?,
                    enrolled_at: it.signer_enrolled_at,
                    revoked_at: it.signer_revoked_at,
                },
                signer_enrolled_by: it.signer_enrolled_by,
            })
        })
        .collect()
}

/// What people signed about a lease; nothing if nobody was asked to. One statement, so that state and signatures are
/// of one moment.
pub async fn approval(pool: &PgPool, id: LeaseId) -> Result<Option<Approval>> {
    let row = sqlx::query!(
        r#"
        select state as "state!", tier as "tier!", approved_at, claim_by, claimed_at, issued_at, ends_at, ended_at, end_reason,
               bytes as "bytes!", signatures as "signatures!: Json<Vec<Row>>"
          from log_approvals where lease_id = $1
        "#,
        id.0
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let statement = row.bytes;
    let signatures = row.signatures.0.into_iter().map(|it| approval::Signature {
        message: approval::message(it.decision, &statement),
        person: it.person,
        decision: it.decision,
        signed_at: it.signed_at,
        signature: it.signature,
        assurance: it.assurance,
        touched: it.touched,
        verified: it.verified,
        key: it.key,
    });
    Ok(Some(Approval {
        lease: Lease {
            id,
            state: word(&row.state)?,
            tier: word(&row.tier)?,
            approved_at: row.approved_at,
            claim_by: row.claim_by,
            claimed_at: row.claimed_at,
            issued_at: row.issued_at,
            ends_at: row.ends_at,
            ended_at: row.ended_at,
            end_reason: row.end_reason,
        },
        signatures: signatures.collect(),
        statement,
    }))
}
