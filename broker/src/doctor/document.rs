//! IAM policy documents, read with distrust. Pure.
//!
//! Whatever cannot be understood counts as allowing, and never as denying. Conditions of an `Allow` are not evaluated: it
//! counts as if they held. A `Deny` counts only without any, or with those that are asked for.

use serde_json::Value;

use crate::arn::{glob_contains, globs_overlap};

#[derive(Clone, Debug)]
pub struct Document {
    pub statements: Vec<Statement>,
}

#[derive(Clone, Debug)]
pub struct Statement {
    pub sid: String,
    pub allows: bool,
    /// Whom a resource policy is about; `None` in an identity's.
    pub principals: Vec<Principal>,
    /// In lower case.
    pub actions: Set,
    pub resources: Set,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    Everybody,
    Aws(String),
    /// Kind and name: a service, a federation.
    Other(String, String),
}

/// Patterns.
#[derive(Clone, Debug)]
pub enum Set {
    These(Vec<String>),
    AllBut(Vec<String>),
}

/// One test of a condition; operator and key in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub operator: String,
    pub key: String,
    pub values: Vec<String>,
}

impl Document {
    /// Of a policy as IAM and S3 give it: JSON, or JSON as it is in a URL.
    pub fn parse(text: &str) -> Self {
        let decoded = if text.trim_start().starts_with('{') { None } else { url_decoded(text) };
        let value = serde_json::from_str(decoded.as_deref().unwrap_or(text)).unwrap_or_default();
        Self::of(&value)
    }

    pub fn of(value: &Value) -> Self {
        let statements = match &value["Statement"] {
            Value::Array(all) => all.iter().map(Statement::of).collect(),
            one @ Value::Object(_) => vec![Statement::of(one)],
            _ => vec![Statement::of(&Value::Null)],
        };
        Self { statements }
    }

    /// One that nobody can read: it may say anything.
    pub fn unknown() -> Self {
        Self::of(&Value::Null)
    }

    pub fn allows(&self) -> impl Iterator<Item = &Statement> {
        self.statements.iter().filter(|it| it.allows)
    }

    pub fn denies(&self) -> impl Iterator<Item = &Statement> {
        self.statements.iter().filter(|it| !it.allows)
    }

    /// Whether it could let somebody do something that `action` matches on something that `resource` matches.
    pub fn may_allow(&self, action: &str, resource: &str) -> bool {
        self.allows().any(|it| it.actions.overlaps(action) && it.resources.overlaps(resource))
    }

    /// Whether it denies all that `action` matches on all that `resource` matches, whatever the circumstances.
    pub fn surely_denies(&self, action: &str, resource: &str) -> bool {
        self.denies().any(|it| {
            it.conditions.is_empty()
                && it.actions.contains(action)
                && it.resources.contains(resource)
        })
    }

    /// Whether everything that the denial `wanted` denies is denied here, in the same circumstances at least.
    pub fn denies_all_of(&self, wanted: &Statement) -> bool {
        let parts = wanted.parts();
        parts.iter().all(|(action, resource)| {
            self.denies().any(|it| {
                action.within(&it.actions)
                    && resource.within(&it.resources)
                    && it.conditions.iter().all(|its| wanted.conditions.contains(its))
            })
        })
    }

    /// What its statement `it` allows and nothing of `ceiling` does: the first such thing.
    pub fn beyond(it: &Statement, ceiling: &Self) -> Option<(String, String)> {
        let parts = it.parts();
        let beyond = parts.into_iter().find(|(action, resource)| {
            !ceiling.allows().any(|most| {
                action.within(&most.actions)
                    && resource.within(&most.resources)
                    && most.conditions.iter().all(|its| it.is_bound_by(its))
            })
        });
        beyond.map(|(action, resource)| (action.to_string(), resource.to_string()))
    }
}

impl Statement {
    fn of(value: &Value) -> Self {
        let allows = value["Effect"] != "Deny";
        let both = |yes: &str, no: &str, read: &dyn Fn(String) -> String| {
            let list = |it: &Value| {
                let texts = texts(it)?;
                Some(texts.into_iter().map(read).collect::<Vec<_>>())
            };
            match (&value[yes], &value[no]) {
                (Value::Null, Value::Null) => None,
                (Value::Null, not) => list(not).map(|it| Set::AllBut(resolved(it, !allows))),
                (these, _) => list(these).map(|it| Set::These(resolved(it, allows))),
            }
        };
        // Nothing that can be read: everything if allowed, nothing if denied.
        let unknown = || if allows { Set::everything() } else { Set::These(Vec::new()) };
        let actions = both("Action", "NotAction", &|it| it.to_lowercase());
        let resources = if value["Resource"].is_null() && value["NotResource"].is_null() {
            // A trust policy is about the role that it is of.
            Some(Set::everything())
        } else {
            both("Resource", "NotResource", &|it| it)
        };
        Self {
            sid: value["Sid"].as_str().unwrap_or_default().to_owned(),
            allows,
            principals: principals(value),
            actions: actions.unwrap_or_else(unknown),
            resources: resources.unwrap_or_else(unknown),
            conditions: conditions(&value["Condition"]),
        }
    }

    /// Each of its actions with each of its resources.
    fn parts(&self) -> Vec<(Set, Set)> {
        let actions = self.actions.split();
        let resources = self.resources.split();
        let pairs = |action: &Set| {
            let action = action.clone();
            resources.iter().map(move |it| (action.clone(), it.clone())).collect::<Vec<_>>()
        };
        actions.iter().flat_map(pairs).collect()
    }

    /// The same, of a statement of ours, which has neither `NotAction` nor `NotResource`.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let texts = |(action, resource): (Set, Set)| (action.to_string(), resource.to_string());
        self.parts().into_iter().map(texts).collect()
    }

    /// Whether it demands what `condition` demands, or more.
    fn is_bound_by(&self, condition: &Condition) -> bool {
        self.conditions.iter().any(|it| {
            it.operator == condition.operator
                && it.key == condition.key
                && it.values.iter().all(|value| condition.values.contains(value))
        })
    }

    /// Whether it holds only where the key is there, and has one of some values; `good` says of each whether it will do.
    pub fn demands(&self, key: &str, good: impl Fn(&str, bool) -> bool) -> bool {
        self.conditions.iter().any(|it| {
            // `…IfExists` and `ForAllValues:` are true of a request without the key.
            let operator = it.operator.strip_prefix("foranyvalue:").unwrap_or(&it.operator);
            let like = operator == "stringlike";
            it.key == key
                && (like || operator == "stringequals")
                && !it.values.is_empty()
                && it.values.iter().all(|value| good(value, like))
        })
    }

    /// Whether it holds only where the key is there.
    pub fn demands_any(&self, key: &str) -> bool {
        let there = Condition {
            operator: "null".to_owned(),
            key: key.to_owned(),
            values: vec!["false".to_owned()],
        };
        self.conditions.contains(&there) || self.demands(key, |value, _| !value.is_empty())
    }
}

impl Set {
    fn everything() -> Self {
        Self::These(vec!["*".to_owned()])
    }

    pub fn overlaps(&self, pattern: &str) -> bool {
        match self {
            Self::These(all) => all.iter().any(|it| globs_overlap(it, pattern)),
            Self::AllBut(all) => !all.iter().any(|it| glob_contains(it, pattern)),
        }
    }

    pub fn contains(&self, pattern: &str) -> bool {
        match self {
            Self::These(all) => all.iter().any(|it| glob_contains(it, pattern)),
            Self::AllBut(all) => !all.iter().any(|it| globs_overlap(it, pattern)),
        }
    }

    /// Whether all of it is in `outer`. May say no where it is so.
    fn within(&self, outer: &Self) -> bool {
        match (self, outer) {
            (Self::These(all), outer) => all.iter().all(|it| outer.contains(it)),
            (Self::AllBut(_), Self::These(all)) => all.iter().any(|it| it == "*"),
            (Self::AllBut(inner), Self::AllBut(outer)) => {
                outer.iter().all(|it| inner.iter().any(|its| glob_contains(its, it)))
            }
        }
    }

    /// Whether it is no more than these patterns.
    pub fn is_within(&self, these: &[String]) -> bool {
        self.within(&Self::These(these.to_vec()))
    }

    /// What it is made of, or what it leaves out.
    pub fn patterns(&self) -> &[String] {
        match self {
            Self::These(all) | Self::AllBut(all) => all,
        }
    }

    /// Its patterns, each alone; what is all but some stays whole.
    fn split(&self) -> Vec<Self> {
        match self {
            Self::These(all) => all.iter().map(|it| Self::These(vec![it.clone()])).collect(),
            Self::AllBut(_) => vec![self.clone()],
        }
    }
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::These(all) => f.write_str(&all.join(", ")),
            Self::AllBut(all) => write!(f, "all but {}", all.join(", ")),
        }
    }
}

/// One text, or a list of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Bool(_) | Value::Number(_) => Some(vec![value.to_string()]),
        Value::Array(all) => all.iter().map(|it| it.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// What has a policy variable may be anything, or nothing: whichever allows more.
fn resolved(patterns: Vec<String>, more: bool) -> Vec<String> {
    let read = |it: String| match it.find("${") {
        None => Some(it),
        Some(at) => more.then(|| format!("{}*", &it[..at])),
    };
    patterns.into_iter().filter_map(read).collect()
}

fn principals(statement: &Value) -> Vec<Principal> {
    if !statement["NotPrincipal"].is_null() {
        return vec![Principal::Everybody];
    }
    match &statement["Principal"] {
        Value::Null => Vec::new(),
        Value::Object(kinds) => kinds
            .iter()
            .flat_map(|(kind, names)| {
                let names = texts(names).unwrap_or_else(|| vec!["*".to_owned()]);
                names.into_iter().map(move |name| match (kind.as_str(), name.as_str()) {
                    (_, "*") => Principal::Everybody,
                    ("AWS", _) => Principal::Aws(name),
                    _ => Principal::Other(kind.clone(), name),
                })
            })
            .collect(),
        _ => vec![Principal::Everybody],
    }
}

fn conditions(block: &Value) -> Vec<Condition> {
    let Value::Object(operators) = block else {
        // What is no block of conditions binds nothing; on a denial it must not look like none.
        let odd = Condition { operator: "?".into(), key: "?".into(), values: Vec::new() };
        return if block.is_null() { Vec::new() } else { vec![odd] };
    };
    let mut all = Vec::new();
    for (operator, keys) in operators {
        for (key, values) in keys.as_object().into_iter().flatten() {
            all.push(Condition {
                operator: operator.to_lowercase(),
                key: key.to_lowercase(),
                values: texts(values).unwrap_or_default(),
            });
        }
    }
    all
}

fn url_decoded(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = bytes.get(at + 1..at + 3).and_then(|it| std::str::from_utf8(it).ok())?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(statement: impl Into<Value>) -> Document {
        let statement: Value = statement.into();
        Document::of(&json!({ "Statement": statement }))
    }

    #[test]
    fn what_cannot_be_understood_allows_everything_and_denies_nothing() {
        for odd in ["", "no", "%7", "{}", "{\"Statement\":[1]}"] {
            assert!(Document::parse(odd).may_allow("iam:createuser", "x"), "{odd}");
        }
        let not = one(json!({ "Effect": "Allow", "NotAction": "s3:*", "NotResource": "y" }));
        assert!(not.may_allow("iam:createuser", "x"));
        assert!(!not.may_allow("s3:getobject", "x"));
        let variable = json!({ "Effect": "Allow", "Action": "S3:GetObject", "Resource": "arn:aws:s3:::${aws:username}/*" });
        assert!(one(variable).may_allow("s3:getobject", "arn:aws:s3:::any/x"));
        let variable = json!({ "Effect": "Deny", "Action": "*", "Resource": "arn:aws:s3:::${aws:username}/*" });
        assert!(!one(variable).surely_denies("s3:getobject", "arn:aws:s3:::any/x"));
        let when = json!({ "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": { "Bool": { "aws:MultiFactorAuthPresent": "false" } } });
        assert!(!one(when).surely_denies("s3:getobject", "x"));
        let text = "%7B%22Statement%22%3A%7B%22Effect%22%3A%22Deny%22%2C%22Action%22%3A%22*%22%2C%22Resource%22%3A%22*%22%7D%7D";
        assert!(Document::parse(text).surely_denies("iam:*", "x"));
    }

    #[test]
    fn only_an_operator_that_needs_the_key_demands_it() {
        let trust = |operator: &str, value: &str| {
            let it = one(json!({ "Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole",
                "Condition": { operator: { "STS:SourceIdentity": value } } }));
            it.statements[0].demands_any("sts:sourceidentity")
        };
        for good in ["StringLike", "stringequals", "ForAnyValue:StringLike"] {
            assert!(trust(good, "?*"), "{good}");
        }
        for not in ["StringLikeIfExists", "ForAllValues:StringLike", "StringNotEquals", "ArnLike"] {
            assert!(!trust(not, "?*"), "{not}");
        }
        assert!(trust("Null", "false") && !trust("Null", "true"));
    }

    #[test]
    fn a_statement_is_within_a_ceiling_only_with_its_conditions() {
        let ceiling = one(json!([
            { "Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::b/*",
              "Condition": { "StringEquals": { "aws:ResourceAccount": "1" } } },
            { "Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::b" },
        ]));
        let beyond = |it: Value| Document::beyond(&one(it).statements[0], &ceiling);
        let bound = json!({ "stringequals": { "AWS:resourceaccount": "1" } });
        let good = json!({ "Effect": "Allow", "Action": "s3:putobject", "Resource": ["arn:aws:s3:::b/a", "arn:aws:s3:::b/b*"], "Condition": bound });
        assert_eq!(beyond(good.clone()), None);
        let mut unbound = good.clone();
        unbound["Condition"] = Value::Null;
        assert!(beyond(unbound).is_some());
        let mut wider = good;
        wider["Action"] = json!("s3:Put*");
        assert_eq!(beyond(wider).unwrap().0, "s3:put*");
        let list =
            json!({ "Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::*" });
        assert_eq!(beyond(list).unwrap().1, "arn:aws:s3:::*");
        let not = json!({ "Effect": "Allow", "NotAction": "iam:*", "Resource": "arn:aws:s3:::b" });
        assert!(beyond(not).is_some());
    }
}
