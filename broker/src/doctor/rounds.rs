//! The doctor's rounds: before the server serves, and then again and again.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Finding, Severity, examine, look};
use crate::audit::{Actor, EventType, Subject};
use crate::aws::Access;
use crate::broker::Broker;

/// Looks, and remembers what it said last.
#[derive(Debug)]
pub struct Rounds {
    access: Access,
    /// `None` before the first.
    last: Option<BTreeSet<Finding>>,
}

impl Rounds {
    pub fn new(access: Access) -> Self {
        Self { access, last: None }
    }

    pub fn has_looked(&self) -> bool {
        self.last.is_some()
    }

    /// Looks once: logs what is new and what is gone, records an event if anything is, and returns all there is.
    pub async fn go(&mut self, broker: &Broker) -> Vec<Finding> {
        let estate =
            Box::pin(look(&broker.config, &self.access, Some(&broker.pool), &broker.clock)).await;
        let findings = examine(&estate, &broker.config);
        let now: BTreeSet<_> = findings.iter().cloned().collect();
        let first = self.last.is_none();
        let before = self.last.replace(now.clone()).unwrap_or_default();
        for it in now.difference(&before) {
            tell(it);
        }
        for it in before.difference(&now) {
            tracing::info!(check = it.check, subject = it.subject, "the doctor no longer finds");
        }
        if first && now.is_empty() {
            tracing::info!("the doctor found nothing");
        }
        if before != now {
            record(broker, &findings).await;
        }
        findings
    }
}

fn tell(it: &Finding) {
    let (severity, check, subject) = (it.severity.as_str(), it.check, it.subject.as_str());
    let (found, gains, fix) = (it.found.as_str(), it.gains, it.fix);
    match it.severity {
        Severity::Critical => {
            tracing::error!(severity, check, subject, found, gains, fix, "the doctor finds");
        }
        Severity::High | Severity::Medium => {
            tracing::warn!(severity, check, subject, found, gains, fix, "the doctor finds");
        }
        Severity::Low => {
            tracing::info!(severity, check, subject, found, gains, fix, "the doctor finds");
        }
    }
}

/// Says in the record what there is now. A database that is away is told by the log alone.
async fn record(broker: &Broker, findings: &[Finding]) {
    let words: Vec<_> = findings
        .iter()
        .map(|it| json!({ "severity": it.severity, "check": it.check, "subject": it.subject }))
        .collect();
    let detail = json!({ "findings": words });
    if let Err(error) =
        broker.tell(EventType::DoctorFound, Actor::Broker, Subject::default(), detail).await
    {
        tracing::warn!(?error, "the doctor's findings are not in the record");
    }
}
