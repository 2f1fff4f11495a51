//! The rules: which agent may ask for which scope. Cedar policies; deny by default, forbid wins. Pure.
//!
//! Rules narrow what the tiers allow and never widen it: whether people must sign follows from the scope's tier.

use std::path::PathBuf;
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context, Decision as Verdict, Entities, Entity, EntityId, EntityTypeName,
    EntityUid, PolicyId, PolicySet, Request, RestrictedExpression, Schema, ValidationMode,
    Validator,
};
use time::Duration;

use crate::catalogue::{Scope, SignerRule};
use crate::config::ConfigError;
use crate::narrow::Holder;

/// What rules may speak of.
const SCHEMA: &str = include_str!("policy/schema.cedarschema");

#[derive(Debug)]
pub struct Policy {
    rules: PolicySet,
    schema: Schema,
}

/// What the rules say to one request, with the ids of the rules that said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { by: Vec<String> },
    NeedSignatures { by: Vec<String>, rule: SignerRule },
    Deny { by: Vec<String> },
}

impl Policy {
    /// Parses and validates rule files. No rules at all deny everything.
    pub fn parse(files: &[(PathBuf, String)]) -> Result<Self, ConfigError> {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("our own schema parses");
        let mut rules = PolicySet::new();
        for (path, text) in files {
            let invalid = |message: String| ConfigError::Invalid { path: path.clone(), message };
            let parsed = PolicySet::from_str(text).map_err(|error| invalid(error.to_string()))?;
            for policy in parsed.policies() {
                let id = policy.annotation("id").ok_or_else(|| {
                    invalid(format!("a rule has no id; write @id(\"…\") before it:\n{policy}"))
                })?;
                let policy = policy.new_id(PolicyId::new(id));
                rules
                    .add(policy)
                    .map_err(|error| invalid(format!("{error}; give each rule another @id")))?;
            }
            if parsed.templates().next().is_some() {
                return Err(invalid("templates are not supported; write the rule out".into()));
            }
        }
        let report = Validator::new(schema.clone()).validate(&rules, ValidationMode::Strict);
        if !report.validation_passed() {
            let errors =
                report.validation_errors().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            let path = files.first().map(|(path, _)| path.clone()).unwrap_or_default();
            return Err(ConfigError::Invalid { path, message: errors });
        }
        Ok(Self { rules, schema })
    }

    /// Decides whether `holder` may have `window` of `scope`. Anything that cannot be evaluated denies.
    pub fn decide(&self, holder: Holder<'_>, scope: &Scope, window: Duration) -> Decision {
        match self.evaluate(holder, scope, window) {
            Some((true, by)) => match &scope.signers {
                None => Decision::Allow { by },
                Some(rule) => Decision::NeedSignatures { by, rule: rule.clone() },
            },
            Some((false, by)) => Decision::Deny { by },
            None => Decision::Deny { by: Vec::new() },
        }
    }

    fn evaluate(
        &self,
        holder: Holder<'_>,
        scope: &Scope,
        window: Duration,
    ) -> Option<(bool, Vec<String>)> {
        let text = |it: &str| RestrictedExpression::new_string(it.to_owned());
        let sponsor = uid("Person", holder.sponsor)?;
        let agent = uid("Agent", holder.agent)?;
        let target = uid("Scope", &scope.name)?;
        let agent_attributes =
            [("sponsor".to_owned(), RestrictedExpression::new_entity_uid(sponsor.clone()))];
        let scope_attributes = [
            ("environment".to_owned(), text(scope.environment.as_str())),
            ("tier".to_owned(), text(scope.tier.as_str())),
        ];
        let entities = [
            Entity::new_no_attrs(sponsor, [].into()),
            Entity::new(agent.clone(), agent_attributes.into(), [].into()).ok()?,
            Entity::new(target.clone(), scope_attributes.into(), [].into()).ok()?,
        ];
        let entities = Entities::from_entities(entities, Some(&self.schema)).ok()?;
        let context = Context::from_pairs([
            ("ttl_seconds".to_owned(), RestrictedExpression::new_long(window.whole_seconds())),
            ("task".to_owned(), text(holder.task)),
        ])
        .ok()?;
        let request =
            Request::new(agent, uid("Action", "request")?, target, context, Some(&self.schema))
                .ok()?;
        let answer = Authorizer::new().is_authorized(&request, &self.rules, &entities);
        // A rule that cannot be evaluated is skipped by Cedar; a forbid that is skipped would open the door.
        if answer.diagnostics().errors().next().is_some() {
            return None;
        }
        let mut by: Vec<_> = answer.diagnostics().reason().map(ToString::to_string).collect();
        by.sort();
        Some((answer.decision() == Verdict::Allow, by))
    }
}

fn uid(kind: &str, id: &str) -> Option<EntityUid> {
    Some(EntityUid::from_type_name_and_id(EntityTypeName::from_str(kind).ok()?, EntityId::new(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::tests::{SCOPES, load};

    fn policy(text: &str) -> Result<Policy, ConfigError> {
        Policy::parse(&[(PathBuf::from("rules.cedar"), text.to_owned())])
    }

    fn decide(policy: &Policy, scope: &str) -> Decision {
        let holder = Holder { agent: "demo-agent", sponsor: "alice", task: "T-1" };
        policy.decide(holder, load(SCOPES).unwrap().scope(scope).unwrap(), Duration::minutes(15))
    }

    const ASK: &str = "@id(\"ask\") permit (principal, action == Action::\"request\", resource);";

    #[test]
    fn no_rules_deny_everything() {
        let none = Policy::parse(&[]).unwrap();
        assert_eq!(decide(&none, "staging-rw"), Decision::Deny { by: vec![] });
    }

    #[test]
    fn the_tier_decides_about_signatures_and_a_rule_that_permits_cannot_waive_them() {
        let ask = policy(ASK).unwrap();
        assert_eq!(decide(&ask, "staging-rw"), Decision::Allow { by: vec!["ask".into()] });
        let Decision::NeedSignatures { rule, .. } = decide(&ask, "prod-rw") else {
            panic!("not signed")
        };
        assert_eq!(rule.count, 1);
    }

    #[test]
    fn forbid_wins_and_names_itself() {
        let rules = format!(
            "{ASK} @id(\"not-alice\") forbid (principal, action, resource) when {{ principal.sponsor == Person::\"alice\" }};"
        );
        assert_eq!(
            decide(&policy(&rules).unwrap(), "staging-rw"),
            Decision::Deny { by: vec!["not-alice".into()] }
        );
    }

    #[test]
    fn a_rule_that_speaks_of_what_is_not_there_does_not_load() {
        for wrong in [
            "@id(\"x\") permit (principal, action == Action::\"request\", resource) when { resource.teir == \"x\" };",
            "permit (principal, action, resource);",
            "@id(\"x\") permit (principal, action",
        ] {
            assert!(policy(wrong).is_err(), "{wrong}");
        }
        assert!(policy(&format!("{ASK}{ASK}")).is_err(), "one id twice");
    }
}
