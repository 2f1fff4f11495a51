//! The request of a lease: what a person judges, and the IAM policy that follows from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Issuer, Rules, Sealed, Signers, StatementError, Terms, sha256_hex};
use crate::lease::{ActionClass, Environment, LeaseId, Tier};

/// The condition keys that `session_policy` writes itself, in lower case, and the field of a scope that each is for.
pub const OWN_KEYS: [(&str, &str); 7] = [
    ("aws:resourceaccount", "account"),
    ("aws:requestedregion", "regions"),
    ("aws:securetransport", "secure_transport"),
    ("aws:sourceip", "source_networks"),
    ("aws:viaawsservice", "source_networks"),
    ("iam:passedtoservice", "pass_role_to"),
    ("aws:currenttime", "max_ttl"),
];

/// The statement that is signed for a lease.
pub type LeaseStatement = Sealed<LeaseTerms>;

/// Everything a person must judge, and everything AWS will enforce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseTerms {
    pub broker: Issuer,
    pub lease_id: LeaseId,
    pub agent: AgentTerms,
    pub sponsor: String,
    /// Who set a pipeline off, if somebody did.
    pub actor: Option<String>,
    /// The task that the sponsor started, which the agent's token names.
    pub sponsor_task: String,
    /// The agent's words. Untrusted: shown in a labelled box, with nothing in them obeyed.
    pub agent_says: AgentWords,
    pub scope: String,
    pub environment: Environment,
    pub tier: Tier,
    pub tier_because: String,
    pub account: Account,
    pub region: String,
    pub assume_role: AssumeRole,
    pub actions: Vec<ActionTerms>,
    pub resources: Vec<String>,
    /// Nothing to compare with: people have approved nothing yet for this agent, sponsor and scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared_to: Option<ComparedTo>,
    pub conditions: Conditions,
    pub signers: Signers,
    pub rules: Rules,
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub sign_by: OffsetDateTime,
    pub claim_within_seconds: u32,
    /// 32 random bytes in hex: makes the bytes unpredictable and unrepeatable.
    pub nonce: String,
}

/// The last lease that people approved for the same agent, sponsor and scope, and what it did not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparedTo {
    pub lease_id: LeaseId,
    /// When it was approved.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub new_actions: Vec<String>,
    pub new_resources: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentTerms {
    pub name: String,
    /// Who vouched for its identity.
    pub issuer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentWords {
    pub task: String,
    pub reason: String,
    pub rollback: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Twelve digits.
    pub id: String,
    pub alias: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionTerms {
    pub action: String,
    pub class: ActionClass,
    /// AWS grants it on `*` only, whatever the resources say.
    #[serde(default, skip_serializing_if = "is_false")]
    pub any_resource: bool,
    /// It is not bound to a Region: a global service's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub any_region: bool,
    /// Its requests do not say whose resource they are about, so no condition can demand it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub any_account: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(it: &bool) -> bool {
    !it
}

/// The input of `sts:AssumeRole`, whole but for the session name, which is made at claim so that no resource
/// policy can name it beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssumeRole {
    pub role_arn: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// The session policy, as the text that is sent.
    pub policy: String,
    /// SHA-256 of that text, in hex.
    pub policy_sha256: String,
    pub duration_seconds: u32,
    /// Session tags.
    pub tags: BTreeMap<String, String>,
    /// The lease id: it survives role chaining and joins CloudTrail.
    pub source_identity: String,
}

/// What every use of a lease is held to, besides its actions and resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Where calls may go. Calls of global services are free of it: AWS has them all in one Region.
    pub regions: Vec<String>,
    /// Calls must come over TLS.
    pub secure_transport: bool,
    /// CIDR blocks that calls must come from, unless an AWS service makes them in the holder's name. Empty: anywhere.
    pub source_networks: Vec<String>,
    /// The services that `iam:PassRole` may pass a role to.
    pub pass_role_to: Vec<String>,
    /// Whatever else the scope demands, sorted.
    pub more: Vec<Condition>,
}

/// One line of an IAM policy's `Condition`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub operator: String,
    pub key: String,
    pub values: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy<'a> {
    version: &'static str,
    statement: Vec<PolicyStatement<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PolicyStatement<'a> {
    effect: &'static str,
    action: Vec<&'a str>,
    resource: Vec<&'a str>,
    /// Operator → key → values. Sorted, so that the same request always gives the same text.
    condition: ConditionBlock<'a>,
}

type ConditionBlock<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Values<'a>>>;

/// Written as a string if it is one value: characters are dear.
struct Values<'a>(Vec<&'a str>);

impl Serialize for Values<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

/// What actions have in common when one policy statement can hold them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Together {
    on: On,
    any_region: bool,
    any_account: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum On {
    Resources,
    /// `iam:PassRole`, which has a condition of its own.
    Roles,
    /// AWS grants them on `*` only.
    Anything,
}

/// The IAM policy that allows `actions` on `resources` of `account` under `conditions`, until `ends_at` (RFC 3339) if
/// that is given. The same input, in any order, always gives the same text.
///
/// S3's ARNs name no account: without `aws:ResourceAccount`, a bucket of that name in any account would do. Among
/// `resources`, `*` beside ARNs only stands for what is granted on nothing else.
pub fn session_policy(
    actions: &[ActionTerms],
    resources: &[String],
    account: &str,
    conditions: &Conditions,
    ends_at: Option<&str>,
) -> String {
    let mut together: BTreeMap<Together, Vec<&str>> = BTreeMap::new();
    for action in actions {
        let key = Together {
            on: match action.action.as_str() {
                _ if action.any_resource => On::Anything,
                "iam:PassRole" => On::Roles,
                _ => On::Resources,
            },
            any_region: action.any_region,
            any_account: action.any_account,
        };
        together.entry(key).or_default().push(&action.action);
    }
    let mut statement: Vec<_> = together
        .into_iter()
        .map(|(key, mut action)| {
            action.sort_unstable();
            action.dedup();
            PolicyStatement {
                effect: "Allow",
                action,
                resource: on(key.on, resources),
                condition: condition(key, account, conditions, ends_at),
            }
        })
        .collect();
    if !conditions.source_networks.is_empty() {
        statement.push(outside(&conditions.source_networks));
    }
    serde_json::to_string(&Policy { version: "2012-10-17", statement }).expect("strings serialize")
}

fn on(on: On, resources: &[String]) -> Vec<&str> {
    let all = resources.iter().map(String::as_str);
    let mut list: Vec<_> = match on {
        On::Anything => vec!["*"],
        On::Roles => all.filter(|it| it.starts_with("arn:aws:iam:")).collect(),
        On::Resources => all.filter(|it| resources.len() == 1 || *it != "*").collect(),
    };
    list.sort_unstable();
    list.dedup();
    list
}

fn condition<'a>(
    key: Together,
    account: &'a str,
    conditions: &'a Conditions,
    ends_at: Option<&'a str>,
) -> ConditionBlock<'a> {
    let mut condition = ConditionBlock::new();
    let mut demand = |operator, key, values| {
        condition.entry(operator).or_default().insert(key, Values(values));
    };
    if !key.any_account {
        // What takes no ARN acts in the caller's account; some of it says so, and then it has to be right.
        let operator = if key.on == On::Anything { "StringEqualsIfExists" } else { "StringEquals" };
        demand(operator, "aws:ResourceAccount", vec![account]);
    }
    if !key.any_region {
        demand("StringEquals", "aws:RequestedRegion", strings(&conditions.regions));
    }
    if conditions.secure_transport {
        demand("Bool", "aws:SecureTransport", vec!["true"]);
    }
    if let Some(ends_at) = ends_at {
        demand("DateLessThan", "aws:CurrentTime", vec![ends_at]);
    }
    if key.on == On::Roles {
        demand("StringEquals", "iam:PassedToService", strings(&conditions.pass_role_to));
    }
    for Condition { operator, key, values } in &conditions.more {
        demand(operator, key, strings(values));
    }
    condition
}

/// Refuses calls from elsewhere. Absent keys count as elsewhere: a call through a VPC endpoint has no public address,
/// and one that does not say whether a service made it was not made by one.
fn outside(networks: &[String]) -> PolicyStatement<'_> {
    let one = |key, values| BTreeMap::from([(key, Values(values))]);
    PolicyStatement {
        effect: "Deny",
        action: vec!["*"],
        resource: vec!["*"],
        condition: BTreeMap::from([
            ("BoolIfExists", one("aws:ViaAWSService", vec!["false"])),
            ("NotIpAddress", one("aws:SourceIp", strings(networks))),
        ]),
    }
}

fn strings(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

impl Terms for LeaseTerms {
    fn predicate_type(&self) -> &'static str {
        "urn:broker:lease-request:v1"
    }

    /// The digest is that of the session policy.
    fn subject(&self) -> (String, String) {
        (format!("lease-request/{}", self.lease_id), self.assume_role.policy_sha256.clone())
    }

    fn check(&self) -> Result<(), StatementError> {
        let role = &self.assume_role;
        if role.policy_sha256 != sha256_hex(role.policy.as_bytes()) {
            return Err(StatementError::Contradiction("policy_sha256 is not the policy's"));
        }
        if role.source_identity != self.lease_id.to_string() {
            return Err(StatementError::Contradiction("source_identity is not the lease id"));
        }
        // What the signer is shown is what AWS gets: the policy says the same as the lists, and nothing else.
        let (actions, resources) = (&self.actions, &self.resources);
        let shown = session_policy(actions, resources, &self.account.id, &self.conditions, None);
        if role.policy != shown {
            return Err(StatementError::Contradiction("the policy is not what the lists say"));
        }
        if actions.is_empty() || resources.is_empty() {
            return Err(StatementError::Contradiction("it names nothing"));
        }
        let wild = |it: &str| it != "*" && it.contains(['*', '?']);
        if actions.iter().any(|it| it.action == "*" || wild(&it.action))
            || resources.iter().any(|it| wild(it))
            || (resources.iter().any(|it| it == "*") && !actions.iter().any(|it| it.any_resource))
        {
            return Err(StatementError::Contradiction(
                "a signed request names nothing by wildcard",
            ));
        }
        check_lists(self)?;
        check_comparison(self)?;
        // One STS session of a signed lease; role chaining caps it at an hour (`API_AssumeRole`).
        if !(900..=3600).contains(&role.duration_seconds) {
            return Err(StatementError::Contradiction("no session lasts so long, or so short"));
        }
        if !role.role_arn.starts_with(&format!("arn:aws:iam::{}:role/", self.account.id)) {
            return Err(StatementError::Contradiction("the role is in another account"));
        }
        Ok(())
    }
}

/// Whether each line that a signer reads is one thing that the policy says, and says nothing else.
fn check_lists(terms: &LeaseTerms) -> Result<(), StatementError> {
    let twice = |list: &mut Vec<String>| {
        list.sort_unstable();
        list.windows(2).any(|it| it[0] == it[1])
    };
    let (actions, conditions) = (&terms.actions, &terms.conditions);
    let mut names: Vec<_> = actions.iter().map(|it| it.action.to_ascii_lowercase()).collect();
    if twice(&mut names) || twice(&mut terms.resources.clone()) {
        return Err(StatementError::Contradiction("it names something twice"));
    }
    let arn = |it: &&String| it.starts_with("arn:aws:");
    if !terms.resources.iter().all(|it| it == "*" || arn(&it))
        || (!terms.resources.iter().any(|it| arn(&it)) && !actions.iter().all(|it| it.any_resource))
    {
        return Err(StatementError::Contradiction("an action is on nothing that it names"));
    }
    let keys = conditions.more.iter().map(|it| (it.operator.as_str(), it.key.to_ascii_lowercase()));
    let mut keys: Vec<_> = keys.collect();
    keys.sort_unstable();
    if keys.windows(2).any(|it| it[0] == it[1])
        || keys.iter().any(|(_, key)| OWN_KEYS.iter().any(|(own, _)| own == key))
    {
        return Err(StatementError::Contradiction("one condition takes the place of another"));
    }
    let passes = |it: &ActionTerms| it.action.eq_ignore_ascii_case("iam:PassRole");
    let to_nobody = conditions.pass_role_to.is_empty()
        || !terms.resources.iter().any(|it| it.starts_with("arn:aws:iam:"));
    if conditions.regions.is_empty()
        || actions.iter().any(|it| passes(it) && (it.action != "iam:PassRole" || to_nobody))
    {
        return Err(StatementError::Contradiction("a condition that it needs is missing"));
    }
    Ok(())
}

/// Whether what is called new is asked for, once, and the comparison is with another lease.
fn check_comparison(terms: &LeaseTerms) -> Result<(), StatementError> {
    let Some(ComparedTo { lease_id, new_actions, new_resources, .. }) = &terms.compared_to else {
        return Ok(());
    };
    let asked = terms.actions.iter().map(|it| &it.action);
    let once = |list: &[String]| list.iter().enumerate().all(|(at, it)| !list[..at].contains(it));
    if *lease_id == terms.lease_id
        || !new_actions.iter().all(|new| asked.clone().any(|it| it == new))
        || !new_resources.iter().all(|new| terms.resources.contains(new))
        || !once(new_actions)
        || !once(new_resources)
    {
        return Err(StatementError::Contradiction("what it calls new is not what it asks for"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::lease::Assurance;

    pub(crate) fn terms() -> LeaseTerms {
        let actions = vec![ActionTerms {
            action: "s3:PutObject".into(),
            class: ActionClass::Review,
            any_resource: false,
            any_region: false,
            any_account: false,
        }];
        let resources = vec!["arn:aws:s3:::prod-app-data/config.json".into()];
        let conditions = Conditions {
            regions: vec!["us-east-1".into()],
            secure_transport: true,
            source_networks: vec![],
            pass_role_to: vec![],
            more: vec![],
        };
        let policy = session_policy(&actions, &resources, "000000000000", &conditions, None);
        let lease_id = LeaseId(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001));
        LeaseTerms {
            broker: Issuer { origin: "http://localhost:8750".into(), instance_key: "kid".into() },
            lease_id,
            agent: AgentTerms { name: "demo-agent".into(), issuer: "http://localhost:8750".into() },
            sponsor: "alice".into(),
            actor: None,
            sponsor_task: "demo".into(),
            agent_says: AgentWords {
                task: "OPS-7".into(),
                reason: "rotate the b\u{f6}x".into(),
                rollback: "put the old object back".into(),
            },
            scope: "prod-rw".into(),
            environment: Environment::Production,
            tier: Tier::ProductionWrite,
            tier_because: "s3:PutObject is review in production".into(),
            account: Account { id: "000000000000".into(), alias: "demo".into() },
            region: "us-east-1".into(),
            assume_role: AssumeRole {
                role_arn: "arn:aws:iam::000000000000:role/broker-production".into(),
                external_id: None,
                policy_sha256: sha256_hex(policy.as_bytes()),
                policy,
                duration_seconds: 900,
                tags: BTreeMap::from([("broker:scope".into(), "prod-rw".into())]),
                source_identity: lease_id.to_string(),
            },
            actions,
            resources,
            compared_to: None,
            conditions,
            signers: Signers {
                eligible: vec!["bob".into(), "carol".into()],
                needed: 1,
                assurance: Assurance::Verified,
            },
            rules: Rules { sha256: "00".repeat(32), decided_by: vec!["agents-may-ask".into()] },
            requested_at: datetime!(2026-01-01 12:00 UTC),
            sign_by: datetime!(2026-01-01 12:30 UTC),
            claim_within_seconds: 900,
            nonce: "ab".repeat(32),
        }
    }

    /// With an earlier lease, which had neither the action nor the ARN of [`terms`].
    pub(crate) fn comparison() -> ComparedTo {
        ComparedTo {
            lease_id: LeaseId(Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_0009)),
            at: datetime!(2025-12-24 18:00 UTC),
            new_actions: vec!["s3:PutObject".into()],
            new_resources: vec!["arn:aws:s3:::prod-app-data/config.json".into()],
        }
    }

    #[test]
    fn the_bytes_are_ascii_and_read_back_as_the_same_terms() {
        let sealed = LeaseStatement::new(terms()).unwrap();
        assert!(sealed.bytes().is_ascii());
        assert!(sealed.bytes().windows(6).any(|it| it == b"\\u00f6"));
        assert_eq!(LeaseStatement::from_bytes(sealed.bytes().to_vec()).unwrap(), sealed);
    }

    #[test]
    fn a_statement_of_before_there_were_comparisons_still_reads() {
        let sealed = LeaseStatement::new(terms()).unwrap();
        assert!(!sealed.bytes().windows(11).any(|it| it == b"compared_to"));
        let mut compared = terms();
        compared.compared_to = Some(comparison());
        let compared = LeaseStatement::new(compared).unwrap();
        assert_eq!(LeaseStatement::from_bytes(compared.bytes().to_vec()).unwrap(), compared);
    }

    #[test]
    fn only_what_is_asked_for_is_called_new() {
        let changes: [&dyn Fn(&mut ComparedTo); 5] = [
            &|it| it.new_actions = vec!["s3:GetObject".into()],
            &|it| it.new_resources = vec!["arn:aws:s3:::prod-app-data/other".into()],
            &|it| it.new_actions.push(it.new_actions[0].clone()),
            &|it| it.new_resources.push(it.new_resources[0].clone()),
            &|it| it.lease_id = terms().lease_id,
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut terms = terms();
            let mut comparison = comparison();
            change(&mut comparison);
            terms.compared_to = Some(comparison);
            let why = LeaseStatement::new(terms).unwrap_err();
            assert!(matches!(why, StatementError::Contradiction(_)), "{at}: {why}");
        }
    }

    #[test]
    fn a_policy_that_its_lists_do_not_show_is_not_a_statement() {
        let everything = ActionTerms {
            action: "s3:ListAllMyBuckets".into(),
            any_resource: true,
            ..terms().actions[0].clone()
        };
        let pass = |name: &str| ActionTerms { action: name.into(), ..terms().actions[0].clone() };
        let more = |operator: &str, key: &str| Condition {
            operator: operator.into(),
            key: key.into(),
            values: vec!["x".into()],
        };
        let changes: [&dyn Fn(&mut LeaseTerms); 9] = [
            // The other action would be on `*` too, with no line that says so.
            &|it| (it.actions.push(everything.clone()), it.resources = vec!["*".into()]).0,
            &|it| it.resources.push(it.resources[0].clone()),
            &|it| it.resources = vec!["prod".into()],
            &|it| it.actions.push(it.actions[0].clone()),
            &|it| it.conditions.regions.clear(),
            &|it| it.conditions.more = vec![more("StringEquals", "AWS:resourceaccount")],
            &|it| {
                it.conditions.more = vec![more("StringLike", "aws:x"), more("StringLike", "aws:X")];
            },
            &|it| it.actions = vec![pass("iam:PassRole")],
            &|it| {
                it.actions = vec![pass("iam:passrole")];
                it.resources = vec!["arn:aws:iam::000000000000:role/x".into()];
                it.conditions.pass_role_to = vec!["lambda.amazonaws.com".into()];
            },
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut terms = terms();
            change(&mut terms);
            let LeaseTerms { actions, resources, account, conditions, .. } = &terms;
            let policy = session_policy(actions, resources, &account.id, conditions, None);
            terms.assume_role.policy_sha256 = sha256_hex(policy.as_bytes());
            terms.assume_role.policy = policy;
            let why = LeaseStatement::new(terms).unwrap_err();
            assert!(matches!(why, StatementError::Contradiction(_)), "{at}: {why}");
        }
    }

    #[test]
    fn the_same_terms_always_give_the_same_bytes() {
        assert_eq!(
            LeaseStatement::new(terms()).unwrap().bytes(),
            LeaseStatement::new(terms()).unwrap().bytes()
        );
    }

    #[test]
    fn other_spellings_of_the_same_terms_are_refused() {
        let bytes = LeaseStatement::new(terms()).unwrap().bytes().to_vec();
        let text = String::from_utf8(bytes).unwrap();
        let spaced = text.replacen("\":", "\": ", 1);
        let doubled = text.replacen("\"scope\":", "\"scope\":\"staging-ro\",\"scope\":", 1);
        let raw = text.replace("\\u00f6", "\u{f6}");
        for other in [spaced, raw] {
            let read = LeaseStatement::from_bytes(other.into_bytes());
            assert!(matches!(read, Err(StatementError::NotCanonical)), "{read:?}");
        }
        assert!(LeaseStatement::from_bytes(doubled.into_bytes()).is_err());
    }

    #[test]
    fn a_statement_that_contradicts_itself_is_refused() {
        let mut policy = terms();
        policy.assume_role.policy.push(' ');
        let mut identity = terms();
        identity.assume_role.source_identity = "somebody".into();
        let seal_as_is = |mut it: LeaseTerms| {
            let LeaseTerms { actions, resources, conditions, .. } = &it;
            it.assume_role.policy =
                session_policy(actions, resources, "000000000000", conditions, None);
            it.assume_role.policy_sha256 = sha256_hex(it.assume_role.policy.as_bytes());
            it
        };
        let mut wild_action = terms();
        wild_action.actions[0].action = "s3:*".into();
        let mut wild_resource = terms();
        wild_resource.resources = vec!["arn:aws:s3:::prod-*".into()];
        let mut anything = terms();
        anything.resources = vec!["*".into()];
        let mut wider = terms();
        wider.assume_role.policy = wider.assume_role.policy.replace("config.json", "*");
        wider.assume_role.policy_sha256 = sha256_hex(wider.assume_role.policy.as_bytes());
        let mut lasting = terms();
        lasting.assume_role.duration_seconds = 43_200;
        let mut elsewhere = terms();
        elsewhere.assume_role.role_arn = "arn:aws:iam::111111111111:role/admin".into();
        let wild = [wild_action, wild_resource, anything].map(seal_as_is);
        for it in [policy, identity, wider, lasting, elsewhere].into_iter().chain(wild) {
            assert!(matches!(LeaseStatement::new(it), Err(StatementError::Contradiction(_))));
        }
    }
}
