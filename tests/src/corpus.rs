//! A corpus of requests over realistic scopes, and what each should come to, worked out from the scope and the
//! request alone: this file reads what people write, and calls nothing of the code that it judges.

use std::collections::BTreeMap;

use broker::wire::LeaseRequest;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::oracle::Call;

/// `scopes.toml` of the corpus.
pub const SCOPES: &str = include_str!("../corpus/scopes.toml");

/// When the leases begin.
pub const NOW: OffsetDateTime = time::macros::datetime!(2026-01-01 12:00 UTC);

/// Resource types and the form of their ARNs (Service Authorization Reference). `{name}` stands for letters other
/// than `/` and `:`, `{path}` for letters other than `:`, `{rest}` for any.
const KINDS: &[(&str, &str)] = &[
    ("bucket", "arn:aws:s3:::{name}"),
    ("object", "arn:aws:s3:::{name}/{rest}"),
    ("table", "arn:aws:dynamodb:{name}:{name}:table/{name}"),
    ("index", "arn:aws:dynamodb:{name}:{name}:table/{name}/index/{name}"),
    ("queue", "arn:aws:sqs:{name}:{name}:{name}"),
    ("topic", "arn:aws:sns:{name}:{name}:{name}"),
    ("log-group", "arn:aws:logs:{name}:{name}:log-group:{path}"),
    ("log-stream", "arn:aws:logs:{name}:{name}:log-group:{path}:log-stream:{path}"),
    ("function", "arn:aws:lambda:{name}:{name}:function:{name}"),
    ("key", "arn:aws:kms:{name}:{name}:key/{name}"),
    ("repository", "arn:aws:ecr:{name}:{name}:repository/{path}"),
    ("service", "arn:aws:ecs:{name}:{name}:service/{name}/{name}"),
    ("stream", "arn:aws:kinesis:{name}:{name}:stream/{name}"),
    ("secret", "arn:aws:secretsmanager:{name}:{name}:secret:{path}"),
    ("parameter", "arn:aws:ssm:{name}:{name}:parameter/{path}"),
    ("db", "arn:aws:rds:{name}:{name}:db:{name}"),
    ("stack", "arn:aws:cloudformation:{name}:{name}:stack/{name}/{name}"),
    ("instance", "arn:aws:ec2:{name}:{name}:instance/{name}"),
    ("role", "arn:aws:iam::{name}:role/{path}"),
    ("user", "arn:aws:iam::{name}:user/{path}"),
    ("zone", "arn:aws:route53:::hostedzone/{name}"),
];

/// Actions that calls are made of, and what they take; nothing is `*` only. Those that no scope has are there to
/// be refused.
const ACTIONS: &[(&str, &[&str])] = &[
    ("cloudformation:DeleteStack", &["stack"]),
    ("cloudformation:DescribeStackEvents", &["stack"]),
    ("cloudformation:ListStacks", &[]),
    ("dynamodb:BatchGetItem", &["table"]),
    ("dynamodb:DeleteTable", &["table"]),
    ("dynamodb:DescribeTable", &["table"]),
    ("dynamodb:GetItem", &["table"]),
    ("dynamodb:ListTables", &[]),
    ("dynamodb:PutItem", &["table"]),
    ("dynamodb:Query", &["table", "index"]),
    ("dynamodb:Scan", &["table", "index"]),
    ("ec2:DescribeInstances", &[]),
    ("ec2:DescribeVpcs", &[]),
    ("ec2:StartInstances", &["instance"]),
    ("ec2:StopInstances", &["instance"]),
    ("ec2:TerminateInstances", &["instance"]),
    ("ecr:BatchDeleteImage", &["repository"]),
    ("ecr:BatchGetImage", &["repository"]),
    ("ecr:DescribeImages", &["repository"]),
    ("ecr:DescribeRepositories", &["repository"]),
    ("ecs:DeleteService", &["service"]),
    ("ecs:DescribeServices", &["service"]),
    ("ecs:ListClusters", &[]),
    ("ecs:UpdateService", &["service"]),
    ("iam:DeleteRole", &["role"]),
    ("iam:GetAccountSummary", &[]),
    ("iam:GetRole", &["role"]),
    ("iam:GetUser", &["user"]),
    ("iam:ListAttachedRolePolicies", &["role"]),
    ("iam:ListRoles", &[]),
    ("iam:PassRole", &["role"]),
    ("kinesis:GetRecords", &["stream"]),
    ("kinesis:PutRecord", &["stream"]),
    ("kms:Decrypt", &["key"]),
    ("kms:DescribeKey", &["key"]),
    ("kms:Encrypt", &["key"]),
    ("lambda:GetFunction", &["function"]),
    ("lambda:GetFunctionConfiguration", &["function"]),
    ("lambda:InvokeFunction", &["function"]),
    ("logs:DeleteLogGroup", &["log-group"]),
    ("logs:DescribeLogStreams", &["log-group"]),
    ("logs:FilterLogEvents", &["log-group"]),
    ("logs:GetLogEvents", &["log-stream"]),
    ("rds:DeleteDBInstance", &["db"]),
    ("rds:DescribeDBInstances", &["db"]),
    ("rds:RebootDBInstance", &["db"]),
    ("rds:StartDBInstance", &["db"]),
    ("rds:StopDBInstance", &["db"]),
    ("route53:ChangeResourceRecordSets", &["zone"]),
    ("route53:DeleteHostedZone", &["zone"]),
    ("route53:GetHostedZone", &["zone"]),
    ("route53:ListHostedZones", &[]),
    ("route53:ListResourceRecordSets", &["zone"]),
    ("s3:DeleteBucket", &["bucket"]),
    ("s3:DeleteObject", &["object"]),
    ("s3:GetBucketLocation", &["bucket"]),
    ("s3:GetBucketPolicy", &["bucket"]),
    ("s3:GetObject", &["object"]),
    ("s3:GetObjectTagging", &["object"]),
    ("s3:GetObjectVersion", &["object"]),
    ("s3:ListAllMyBuckets", &[]),
    ("s3:ListBucket", &["bucket"]),
    ("s3:ListBucketVersions", &["bucket"]),
    ("s3:PutObject", &["object"]),
    ("secretsmanager:DeleteSecret", &["secret"]),
    ("secretsmanager:DescribeSecret", &["secret"]),
    ("secretsmanager:GetSecretValue", &["secret"]),
    ("secretsmanager:ListSecretVersionIds", &["secret"]),
    ("sns:DeleteTopic", &["topic"]),
    ("sns:GetTopicAttributes", &["topic"]),
    ("sns:ListTopics", &[]),
    ("sns:Publish", &["topic"]),
    ("sqs:DeleteQueue", &["queue"]),
    ("sqs:GetQueueAttributes", &["queue"]),
    ("sqs:GetQueueUrl", &["queue"]),
    ("sqs:ReceiveMessage", &["queue"]),
    ("sqs:SendMessage", &["queue"]),
    ("ssm:GetParameter", &["parameter"]),
    ("ssm:PutParameter", &["parameter"]),
];

/// Services that AWS has in one Region, whatever the caller's (IAM user guide, `aws:RequestedRegion`).
const GLOBAL: [&str; 2] = ["iam", "route53"];
const GLOBAL_REGION: &str = "us-east-1";
/// Where a bucket is, is asked before one knows.
const ANY_REGION: [&str; 2] = ["s3:GetBucketLocation", "s3:ListAllMyBuckets"];
/// Actions that may be about AWS's own resources, so that no condition can demand the account: the ARN says whose.
const ACCOUNT_IN_ARN: [&str; 1] = ["ssm:GetParameter"];

/// Wildcards that a request may ask for: what they stand for is in the scope.
const WILDCARDS: &[(&str, &str)] = &[
    ("staging-data", "s3:GetObject*"),
    ("staging-data", "s3:ListBucket?ersions"),
    ("staging-tables", "dynamodb:GetIt*"),
    ("staging-messages", "sqs:GetQueue*"),
    ("staging-account", "ecr:DescribeImage?"),
];

/// What a `*` or a `?` of a pattern may stand for.
const FILLINGS: &[&str] = &[
    "x",
    "q7",
    "app",
    "a/b",
    "",
    "orders",
    "app/in/2026-01.csv",
    "index/by-day",
    "f1:log-stream:s/1",
    "f1",
    "shop/web",
    "stream/s1",
    "0a1b2c3d",
];
const NETWORKS: [(&str, &[&str]); 3] = [
    ("203.0.113.0/24", &["203.0.113.9", "203.0.113.255"]),
    ("198.51.100.16/28", &["198.51.100.16", "198.51.100.31"]),
    ("2001:db8::/32", &["2001:db8::1", "2001:db8:ffff::9"]),
];
const ELSEWHERE: [&str; 4] = ["203.0.114.1", "198.51.100.32", "192.0.2.7", "2001:db9::1"];
const OTHER_ACCOUNT: &str = "999988887777";

/// Deterministic: the same seed, the same corpus (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("less than a usize")
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn pick_any<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(self.pick(from)) }
    }

    /// Yes, so many times in a hundred.
    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A scope, as its file says.
#[derive(Clone, Debug)]
pub struct Ceiling {
    pub name: String,
    account: String,
    regions: Vec<String>,
    actions: Vec<String>,
    resources: Vec<String>,
    secure_transport: bool,
    networks: Vec<String>,
    pass_role_to: Vec<String>,
    conditions: Vec<(String, String, Vec<String>)>,
    signed: bool,
}

/// The corpus's scopes.
pub fn ceilings() -> Vec<Ceiling> {
    let file: Value = toml::from_str(SCOPES).expect("TOML");
    file["scope"].as_array().expect("scopes").iter().map(Ceiling::read).collect()
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|it| it.as_str().expect("text").to_owned()).collect()
}

impl Ceiling {
    pub fn account(&self) -> &str {
        &self.account
    }

    pub fn resources(&self) -> &[String] {
        &self.resources
    }

    fn read(value: &Value) -> Self {
        let text = |it: &Value| it.as_str().expect("text").to_owned();
        let conditions = value["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            name: text(&value["name"]),
            account: text(&value["account"]),
            regions: texts(&value["regions"]),
            actions: texts(&value["actions"]),
            resources: texts(&value["resources"]),
            secure_transport: value["secure_transport"] == true,
            networks: texts(&value["source_networks"]),
            pass_role_to: texts(&value["pass_role_to"]),
            conditions: conditions
                .iter()
                .map(|it| (text(&it["operator"]), text(&it["key"]), texts(&it["values"])))
                .collect(),
            signed: value.get("signers").is_some(),
        }
    }

    /// Whether the scope has `action`: spelled out; or by a wildcard, if it is granted on ARNs.
    fn has(&self, action: &str) -> bool {
        let spelled_out = self.actions.iter().any(|it| it.eq_ignore_ascii_case(action));
        spelled_out || (!takes(action).is_empty() && self.actions.iter().any(|it| like(it, action)))
    }

    /// Actions of the scope that calls are made of, and that something of its resources fits.
    fn known_actions(&self) -> Vec<&'static str> {
        ACTIONS.iter().map(|it| it.0).filter(|it| self.has(it)).collect()
    }
}

fn takes(action: &str) -> &'static [&'static str] {
    let known = ACTIONS.iter().find(|it| it.0.eq_ignore_ascii_case(action));
    known.expect("an action of the corpus").1
}

/// Matches an action as IAM does: in any case, `*` any letters, `?` one.
fn like(pattern: &str, text: &str) -> bool {
    glob(pattern.to_ascii_lowercase().as_bytes(), text.to_ascii_lowercase().as_bytes())
}

/// Matches an ARN as IAM does: part by part.
pub fn covers(pattern: &str, arn: &str) -> bool {
    let parts = |text: &'_ str| text.splitn(6, ':').map(str::to_owned).collect::<Vec<_>>();
    let (pattern, arn) = (parts(pattern), parts(arn));
    pattern.len() == arn.len()
        && pattern.iter().zip(&arn).all(|(a, b)| glob(a.as_bytes(), b.as_bytes()))
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..]))
        }
        (Some(b'?'), Some(_)) => glob(&pattern[1..], &text[1..]),
        (Some(a), Some(b)) if a == b => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

/// Whether `arn` has the form of a resource type.
fn is_a(kind: &str, arn: &str) -> bool {
    fn fits(form: &str, text: &str) -> bool {
        let Some((letters, rest)) = form.split_once('{') else { return form == text };
        let (variable, rest) = rest.split_once('}').expect("a form");
        let Some(text) = text.strip_prefix(letters) else { return false };
        let excluded: &[u8] = match variable {
            "name" => b"/:",
            "path" => b":",
            _ => b"",
        };
        let most = text.bytes().take_while(|it| !excluded.contains(it)).count();
        (1..=most).any(|it| fits(rest, &text[it..]))
    }
    let form = KINDS.iter().find(|it| it.0 == kind).expect("a resource type of the corpus").1;
    fits(form, arn)
}

/// The resource types that `arn` has the form of: an ARN of two is nobody's.
fn kinds_of(arn: &str) -> Vec<&'static str> {
    KINDS.iter().map(|it| it.0).filter(|it| is_a(it, arn)).collect()
}

/// An ARN of `kind` that `pattern` covers, if one comes to mind.
fn instance(dice: &mut Dice, pattern: &str, kind: &str, ceiling: &Ceiling) -> Option<String> {
    let form = KINDS.iter().find(|it| it.0 == kind).expect("a resource type of the corpus").1;
    if pattern.split(':').nth(2) != form.split(':').nth(2) {
        return None;
    }
    (0..200).find_map(|_| {
        let mut arn = String::new();
        for (at, part) in pattern.splitn(6, ':').enumerate() {
            if at == 3 && part.contains('*') {
                arn.push_str(&dice.pick(&ceiling.regions));
            } else {
                for letter in part.chars() {
                    match letter {
                        '*' => arn.push_str(dice.pick(FILLINGS)),
                        '?' => arn.push('7'),
                        letter => arn.push(letter),
                    }
                }
            }
            if at < 5 {
                arn.push(':');
            }
        }
        let tidy = !arn.contains("//") && !arn.ends_with('/');
        (tidy && is_a(kind, &arn) && kinds_of(&arn) == [kind]).then_some(arn)
    })
}

/// One request and its scope.
#[derive(Clone, Debug)]
pub struct Asked {
    pub ceiling: Ceiling,
    pub request: LeaseRequest,
}

/// A request of some of the ceiling, or all of it.
pub fn within(dice: &mut Dice, ceiling: &Ceiling) -> Asked {
    let known = ceiling.known_actions();
    let mut actions: Vec<&str> = (0..=dice.below(4)).map(|_| dice.pick(&known)).collect();
    actions.sort_unstable();
    actions.dedup();
    let kinds: Vec<_> = actions.iter().filter_map(|it| dice.pick_any(takes(it))).collect();
    let mut resources = Vec::new();
    for kind in kinds {
        for _ in 0..=dice.below(2) {
            resources.extend(narrower(dice, ceiling, kind));
        }
    }
    let mut texts: Vec<String> = actions
        .iter()
        .map(|it| if dice.percent(15) { it.to_uppercase() } else { (*it).to_owned() })
        .collect();
    let wild: Vec<_> = WILDCARDS.iter().filter(|it| it.0 == ceiling.name).collect();
    if !wild.is_empty() && dice.percent(25) {
        let (_, pattern) = dice.pick(&wild);
        texts.push((*pattern).to_owned());
        let standing_for = known.iter().filter(|it| like(pattern, it));
        for kind in standing_for.flat_map(|it| takes(it)).collect::<Vec<_>>() {
            resources.extend(narrower(dice, ceiling, kind));
        }
    }
    let (everything, everywhere) = (dice.percent(8), dice.percent(20));
    let unsigned = !ceiling.signed;
    Asked {
        ceiling: ceiling.clone(),
        request: LeaseRequest {
            scope: ceiling.name.clone(),
            reason: Some("because".into()),
            rollback: Some("undo".into()),
            actions: (!(unsigned && everything)).then_some(texts),
            resources: if resources.is_empty() || (unsigned && everywhere) {
                None
            } else {
                Some(resources)
            },
            ttl_seconds: unsigned.then(|| 900 + u32::try_from(dice.below(900)).expect("small")),
            ..LeaseRequest::default()
        },
    }
}

/// An ARN of the ceiling for `kind`, or a narrower pattern of it.
fn narrower(dice: &mut Dice, ceiling: &Ceiling, kind: &str) -> Option<String> {
    let fitting: Vec<_> = ceiling
        .resources
        .iter()
        .filter_map(|it| Some((it, instance(dice, it, kind, ceiling)?)))
        .collect();
    if fitting.is_empty() {
        return None;
    }
    let (pattern, exact) = dice.pick(&fitting);
    if ceiling.signed || dice.percent(50) {
        return Some(exact);
    }
    if dice.percent(20) {
        return Some(pattern.clone());
    }
    // All that begins so: it is within the pattern when that ends in a wildcard, and after its last other one.
    if pattern.ends_with('*') {
        let keep = exact.len() - dice.below(3).min(exact.len() - shared(pattern, &exact));
        let wider = format!("{}*", &exact[..keep]);
        return Some(wider);
    }
    Some(exact)
}

/// How long the part is that an ARN has from its pattern, up to the pattern's last wildcard.
fn shared(pattern: &str, exact: &str) -> usize {
    let head = pattern.trim_end_matches('*');
    // The shortest beginning of `exact` that the pattern's head covers.
    (0..=exact.len())
        .find(|it| glob(head.as_bytes(), &exact.as_bytes()[..*it]))
        .expect("an instance")
}

/// The request, made to reach outside its scope, and how.
pub fn beyond(dice: &mut Dice, asked: &Asked) -> Option<(&'static str, LeaseRequest)> {
    let Asked { ceiling, request } = asked;
    let mut request = request.clone();
    let resources = request.resources.clone().unwrap_or_default();
    let resource = |arn: String| {
        let outside = !ceiling.resources.iter().any(|it| covers(it, &arn));
        let mut list = resources.clone();
        list.push(arn);
        outside.then_some(Some(list))
    };
    let an_arn = resources.iter().find(|it| !it.contains(['*', '?'])).cloned();
    let how = match dice.below(8) {
        0 => {
            let others: Vec<_> = ACTIONS.iter().filter(|it| !ceiling.has(it.0)).collect();
            let mut list = request.actions.clone().unwrap_or_default();
            list.push(dice.pick(&others).0.to_owned());
            request.actions = Some(list);
            "an action of no concern"
        }
        1 => {
            let wider = ["*", "*:*", "?*:*", "s3:*", "iam:*", "dynamodb:*", "sqs:*", "ec2:*"];
            request.actions = Some(vec![dice.pick(&wider).to_owned()]);
            "a wildcard for more actions"
        }
        2 => {
            request.resources = resource(an_arn?.replace(&ceiling.account, OTHER_ACCOUNT))?;
            "another account"
        }
        3 => {
            request.resources = resource(format!("{}-2", an_arn?.replace("staging", "prod")))?;
            "another name"
        }
        4 => {
            let arn = an_arn?;
            let region = arn.split(':').nth(3).filter(|it| !it.is_empty())?.to_owned();
            request.resources = resource(arn.replace(&region, "ap-south-1"))?;
            "another Region"
        }
        5 => {
            // All that begins like a pattern, but with its last letter free: `staging-*` as `staging*`.
            if ceiling.resources.is_empty() {
                return None;
            }
            let pattern = dice.pick(&ceiling.resources).trim_end_matches('*').to_owned();
            let mut cut = pattern;
            cut.pop()?;
            let (head, more) = (format!("{cut}*"), format!("{cut}~zz"));
            let outside = !ceiling.resources.iter().any(|it| covers(it, &more));
            if !outside || head.matches(':').count() < 5 || head.ends_with(":*") {
                return None;
            }
            request.resources = Some([resources, vec![head]].concat());
            "a wider wildcard"
        }
        6 => {
            request.actions = Some(vec![]);
            "no action"
        }
        _ => {
            request.resources = Some(vec![]);
            "no resource"
        }
    };
    Some((how, request))
}

/// A call, how it differs from what was asked, and whether it should be allowed.
#[derive(Clone, Debug)]
pub struct Question {
    pub call: Call,
    pub twist: &'static str,
    pub allowed: bool,
}

/// Calls inside what was asked, and calls that each differ from one of those in one thing.
pub fn questions(dice: &mut Dice, asked: &Asked) -> Vec<Question> {
    let mut all = Vec::new();
    let known = asked.ceiling.known_actions();
    let mine: Vec<_> = known.iter().filter(|it| asked.names(it)).copied().collect();
    for _ in 0..3 {
        let action = dice.pick(&mine);
        let Some(call) = asked.call_inside(dice, action) else { continue };
        all.push(("inside", call.clone()));
        for _ in 0..3 {
            all.extend(twisted(dice, asked, &call));
        }
    }
    all.into_iter()
        .map(|(twist, call)| Question { allowed: asked.allows(&call), call, twist })
        .collect()
}

/// `call`, with one thing about it changed.
fn twisted(dice: &mut Dice, asked: &Asked, call: &Call) -> Option<(&'static str, Call)> {
    let mut call = call.clone();
    let twist = if dice.percent(65) {
        under_other_circumstances(dice, asked, &mut call)
    } else {
        about_something_else(dice, asked, &mut call)
    };
    Some((twist?, call))
}

fn under_other_circumstances(
    dice: &mut Dice,
    asked: &Asked,
    call: &mut Call,
) -> Option<&'static str> {
    let conditions = &asked.ceiling.conditions;
    let regional = !GLOBAL.contains(&call.action.split(':').next()?);
    let passes_role = call.action == "iam:PassRole";
    let mut set = |key: &str, value: &str| {
        call.context.insert(key.to_owned(), value.to_owned());
    };
    Some(match dice.below(9) {
        0 if !ACCOUNT_IN_ARN.contains(&call.action.as_str()) => {
            set("aws:ResourceAccount", OTHER_ACCOUNT);
            OTHER_ACCOUNT.clone_into(&mut call.account);
            "a resource of another account"
        }
        1 if regional => {
            set("aws:RequestedRegion", "ap-south-1");
            "in another Region"
        }
        2 if regional => {
            call.context.remove("aws:RequestedRegion");
            "in no Region that it says"
        }
        3 => {
            let late = if dice.percent(50) { Duration::ZERO } else { Duration::HOUR };
            set("aws:CurrentTime", &rfc3339(asked.end() + late));
            "when the window has ended"
        }
        4 => {
            set("aws:SecureTransport", "false");
            "without TLS"
        }
        5 => {
            set("aws:SourceIp", dice.pick(&ELSEWHERE));
            "from another network"
        }
        6 => {
            set("aws:SourceIp", dice.pick(&ELSEWHERE));
            set("aws:ViaAWSService", "true");
            "from another network, by a service in the holder's name"
        }
        7 => {
            call.context.remove("aws:SourceIp");
            "from nowhere that it says"
        }
        8 if !conditions.is_empty() && dice.percent(50) => {
            call.context.remove(&dice.pick(conditions).1);
            "without what a condition asks for"
        }
        8 if !conditions.is_empty() => {
            let other = dice.pick(&["ledger", "other", "payments", "eng-7", "Payments"]);
            set(&dice.pick(conditions).1, other);
            "with another value for a condition"
        }
        _ if passes_role => {
            set("iam:PassedToService", "lambda.amazonaws.com");
            "passing the role to another service"
        }
        _ => return None,
    })
}

fn about_something_else(dice: &mut Dice, asked: &Asked, call: &mut Call) -> Option<&'static str> {
    let Asked { ceiling, request } = asked;
    let kinds = kinds_of(&call.resource);
    Some(match dice.below(4) {
        0 => {
            let same_kind = |takes: &[&str]| kinds.iter().any(|it| takes.contains(it));
            let others = ACTIONS.iter().filter(|it| it.0 != call.action && same_kind(it.1));
            let others: Vec<_> = others.collect();
            dice.pick_any(&others)?.0.clone_into(&mut call.action);
            call.context.remove("iam:PassedToService");
            "another action on the same resource"
        }
        1 if call.resource != "*" => {
            let neighbour = match dice.below(4) {
                0 => format!("{}-2", call.resource),
                1 => call.resource.replacen("staging", "prod", 1),
                2 => call.resource.replace(&ceiling.account, OTHER_ACCOUNT),
                _ => call.resource[..call.resource.len() - 1].to_owned(),
            };
            if kinds_of(&neighbour) != kinds {
                return None;
            }
            call.resource = neighbour;
            "a neighbouring resource"
        }
        2 if call.resource != "*" => {
            let kind = dice.pick_any(takes(&call.action))?;
            let pattern = dice.pick(&ceiling.resources);
            call.resource = instance(dice, &pattern, kind, ceiling)?;
            "another resource of the scope"
        }
        3 => {
            let others = ceiling.known_actions().into_iter().filter(|it| !asked.names(it));
            let action = dice.pick_any(&others.collect::<Vec<_>>())?;
            let mut whole = asked.clone();
            whole.request = LeaseRequest { actions: None, resources: None, ..request.clone() };
            *call = whole.call_inside(dice, action)?;
            "another action of the scope"
        }
        _ => return None,
    })
}

impl Asked {
    /// Whether the request is about `action`, of those that its scope has.
    fn names(&self, action: &str) -> bool {
        let asked = self.request.actions.as_ref();
        self.ceiling.has(action) && asked.is_none_or(|list| list.iter().any(|it| like(it, action)))
    }

    fn resources(&self) -> &[String] {
        self.request.resources.as_ref().unwrap_or(&self.ceiling.resources)
    }

    fn end(&self) -> OffsetDateTime {
        NOW + Duration::seconds(self.request.ttl_seconds.unwrap_or(900).into())
    }

    /// A call that the request is for: in time, from the right place, on something that it names.
    fn call_inside(&self, dice: &mut Dice, action: &str) -> Option<Call> {
        let Ceiling { account, regions, conditions, .. } = &self.ceiling;
        let resource = match dice.pick_any(takes(action)) {
            None => "*".to_owned(),
            Some(kind) => {
                let all = self.resources();
                let found = (0..8).find_map(|_| {
                    let pattern = dice.pick(all);
                    instance(dice, &pattern, kind, &self.ceiling)
                });
                found?
            }
        };
        let region = match resource.split(':').nth(3).unwrap_or_default() {
            _ if GLOBAL.contains(&action.split(':').next()?) => GLOBAL_REGION,
            "" => &dice.pick(regions),
            region => region,
        };
        let network = match self.ceiling.networks.as_slice() {
            [] => "192.0.2.7",
            some => {
                let network = dice.pick(some);
                let (_, inside) =
                    NETWORKS.iter().find(|it| it.0 == network).expect("a network of the corpus");
                dice.pick(inside)
            }
        };
        let whole_window = usize::try_from((self.end() - NOW).whole_seconds()).expect("positive");
        let time = NOW + Duration::seconds(i64::try_from(dice.below(whole_window)).expect("small"));
        let mut context = BTreeMap::from(
            [
                ("aws:ResourceAccount", account.as_str()),
                ("aws:RequestedRegion", region),
                ("aws:CurrentTime", &rfc3339(time)),
                ("aws:SecureTransport", "true"),
                ("aws:SourceIp", network),
                ("aws:ViaAWSService", "false"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        for (operator, key, values) in conditions {
            let value = match operator.as_str() {
                "StringNotEquals" => "something-else".to_owned(),
                _ => dice.pick(values).replace('*', "anything"),
            };
            context.insert(key.clone(), value);
        }
        if action == "iam:PassRole" {
            context.insert("iam:PassedToService".to_owned(), self.ceiling.pass_role_to[0].clone());
        }
        Some(Call { action: action.to_owned(), resource, account: account.clone(), context })
    }

    /// What the request and its scope say of `call`.
    pub fn allows(&self, call: &Call) -> bool {
        let Ceiling {
            account, regions, secure_transport, networks, pass_role_to, conditions, ..
        } = &self.ceiling;
        let context = |key: &str| call.context.get(key).map(String::as_str);
        let kinds = takes(&call.action);
        let on = if kinds.is_empty() {
            call.resource == "*" && context("aws:ResourceAccount").is_none_or(|it| it == account)
        } else {
            let of_kind = kinds.iter().any(|it| is_a(it, &call.resource));
            // Of what is asked, that is; and `narrow` has to see to it that this is in the scope.
            let within = |list: &[String]| list.iter().any(|it| covers(it, &call.resource));
            let named = within(self.resources()) && within(&self.ceiling.resources);
            let mine = if ACCOUNT_IN_ARN.contains(&call.action.as_str()) {
                call.resource.split(':').nth(4)
            } else {
                context("aws:ResourceAccount")
            };
            of_kind && named && mine == Some(account)
        };
        let service = call.action.split(':').next().expect("a service");
        let free = GLOBAL.contains(&service) || ANY_REGION.contains(&call.action.as_str());
        let region = context("aws:RequestedRegion");
        let there = free || region.is_some_and(|it| regions.iter().any(|region| region == it));
        let in_time = self.ceiling.signed
            || context("aws:CurrentTime").is_some_and(|it| parse(it) < self.end());
        let private = !secure_transport || context("aws:SecureTransport") == Some("true");
        let inside = |it: &str| {
            NETWORKS
                .iter()
                .any(|(name, inside)| networks.iter().any(|it| it == name) && inside.contains(&it))
        };
        let from = networks.is_empty()
            || context("aws:ViaAWSService") == Some("true")
            || context("aws:SourceIp").is_some_and(inside);
        let passes = call.action != "iam:PassRole"
            || context("iam:PassedToService")
                .is_some_and(|it| pass_role_to.iter().any(|to| to == it));
        let also = conditions.iter().all(|(operator, key, values)| {
            let given = context(key);
            match operator.as_str() {
                "StringEquals" => given.is_some_and(|it| values.iter().any(|value| value == it)),
                "StringLike" => given.is_some_and(|it| {
                    values.iter().any(|value| glob(value.as_bytes(), it.as_bytes()))
                }),
                "StringNotEquals" => given.is_none_or(|it| values.iter().all(|value| value != it)),
                other => panic!("the corpus does not know {other}"),
            }
        });
        self.names(&call.action) && on && there && in_time && private && from && passes && also
    }
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("a time")
}

fn parse(text: &str) -> OffsetDateTime {
    OffsetDateTime::parse(text, &Rfc3339).expect("a time")
}
