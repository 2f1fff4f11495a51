//! Every AWS action: what it does at its worst, and what it can be granted on. Pure.
//!
//! The table is vendored, see `docs/actions.md`: `scripts/actions.sh` makes it from public data and our own lists. It is
//! unpacked once, at first use; looking an action up allocates nothing.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::LazyLock;

use crate::arn::{Arn, Kind, glob_matches};
use crate::lease::ActionClass;

/// zlib over lines of tab-separated fields: `s` service, `t` resource type, `a` action.
const PACKED: &[u8] = include_bytes!("actions/table.zz");
/// What `PACKED` comes to is a little over a megabyte; far more than that is not our table.
const MOST_BYTES: usize = 16 << 20;

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::unpack(PACKED));

/// One IAM action.
#[derive(Debug)]
pub struct Action {
    /// `service:Name`, as AWS spells it.
    pub name: &'static str,
    /// AWS's own access level, as published: `Read`, `List`, `Write`, `Tagging`, `Permissions management`, or two.
    pub level: &'static str,
    /// Our judgement.
    pub class: ActionClass,
    /// Whether requests carry `aws:ResourceAccount`, so that a policy may demand it.
    pub resource_account: bool,
    /// Whether requests are not bound to the caller's Region: global services and actions.
    pub any_region: bool,
    /// The resource types it takes. None: AWS grants it on `*` only.
    kinds: &'static [&'static Kind],
}

impl Action {
    pub fn service(&self) -> &'static str {
        self.name.split_once(':').map_or(self.name, |(service, _)| service)
    }

    /// Whether AWS grants it on ARNs; else on `*` only.
    pub fn takes_resources(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// Whether AWS could grant it on something that `arn` matches.
    pub fn fits(&self, arn: &Arn) -> bool {
        self.kinds.iter().any(|it| it.overlaps(arn))
    }

    /// Whether a wildcard of a scope on `arns` stands for it: what takes no ARN is meant only where everything is.
    pub fn is_grantable_on(&self, arns: &[Arn]) -> bool {
        if self.takes_resources() {
            arns.iter().any(|arn| self.fits(arn))
        } else {
            arns.is_empty() || arns.iter().any(Arn::is_any)
        }
    }

    /// Whether it takes ARNs of `service`: mostly its own, but Backup's recovery points are anybody's.
    pub fn acts_on(&self, service: &str) -> bool {
        self.kinds.iter().any(|it| matches!(it.service(), "*") || it.service() == service)
    }

    /// What it takes, for people: `bucket (arn:aws:s3:::*)`.
    pub fn takes(&self) -> String {
        let mut kinds: Vec<_> =
            self.kinds.iter().map(|it| format!("{} ({it})", it.name())).collect();
        kinds.dedup();
        kinds.join(" or ")
    }
}

impl PartialEq for Action {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Action {}

/// Finds an action by its name in any case, as IAM does.
pub fn find(name: &str) -> Option<&'static Action> {
    let (prefix, verb) = name.split_once(':')?;
    let actions = &TABLE.actions[service(prefix)?.actions.clone()];
    let verb_of = |it: &Action| &it.name[prefix.len() + 1..];
    let at = actions.binary_search_by(|it| ignoring_case(verb_of(it), verb)).ok()?;
    Some(&actions[at])
}

/// The actions that `pattern` stands for, in order: `*` is any letters and `?` one, in any case. What names no service
/// stands for nothing, but `*` for all.
pub fn matching(pattern: &str) -> impl Iterator<Item = &'static Action> {
    // Mostly of one service, which is named.
    let range = match pattern.split_once(':') {
        None if pattern != "*" => 0..0,
        Some((prefix, _)) if !prefix.contains(['*', '?']) => {
            service(prefix).map_or(0..0, |it| it.actions.clone())
        }
        _ => 0..TABLE.actions.len(),
    };
    let pattern = pattern.as_bytes();
    TABLE.actions[range].iter().filter(move |it| matches_ignoring_case(pattern, it.name.as_bytes()))
}

fn service(prefix: &str) -> Option<&'static Service> {
    let services = &TABLE.services;
    let at = services.binary_search_by(|it| ignoring_case(it.prefix, prefix)).ok()?;
    Some(&services[at])
}

/// Whether what `arn` matches could be something that an action takes.
pub fn are_of_a_known_form(arn: &Arn) -> bool {
    let kinds = all().flat_map(|it| it.kinds);
    kinds.filter(|it| it.service() == arn.service()).any(|it| it.overlaps(arn))
}

/// All of them: by service, and there by name in lower case.
pub fn all() -> impl Iterator<Item = &'static Action> {
    TABLE.actions.iter()
}

/// Where the table comes from: name and version of each source.
pub fn sources() -> &'static [String] {
    &TABLE.sources
}

/// SHA-256 of the table as it is vendored, in hex.
pub fn sha256() -> &'static str {
    &TABLE.sha256
}

/// Unpacks the table once more, for the benchmark. What it takes is never given back.
#[doc(hidden)]
pub fn unpack_anew() -> usize {
    Table::unpack(PACKED).actions.len()
}

#[derive(Debug)]
struct Table {
    /// By prefix.
    services: Vec<Service>,
    /// By service, and there by name in lower case.
    actions: Vec<Action>,
    sources: Vec<String>,
    sha256: String,
}

#[derive(Debug)]
struct Service {
    prefix: &'static str,
    actions: Range<usize>,
}

impl Table {
    /// Unpacks our own table; it is part of the program, so anything wrong with it is a defect of the program.
    fn unpack(packed: &[u8]) -> Self {
        let text = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, MOST_BYTES)
            .expect("the table of actions is a zlib stream");
        let text: &'static str =
            String::from_utf8(text).expect("the table of actions is text").leak();
        let kinds = Self::kinds(text);
        let names = Self::names(text);

        let (mut services, mut actions) = (Vec::with_capacity(512), Vec::with_capacity(24_000));
        let mut sources = Vec::new();
        let mut taken: Vec<&'static Kind> = Vec::with_capacity(32_000);
        let mut taken_by = Vec::with_capacity(24_000);
        // How many types there were before this service's, and how many bytes of names are used.
        let (mut types_before, mut types, mut used) = (0, 0, 0);
        for line in text.lines() {
            let mut fields = line.split('\t');
            let mut field = || fields.next().unwrap_or_else(|| panic!("too few fields: {line:?}"));
            match field() {
                "broker-actions" => assert_eq!(field(), "1", "the table is of another form"),
                "source" => sources.push(format!("{} {}", field(), field())),
                "s" => {
                    types_before = types;
                    services
                        .push(Service { prefix: field(), actions: actions.len()..actions.len() });
                }
                "t" => types += 1,
                "a" => {
                    let service = services.last_mut().expect("a service is before its actions");
                    let length = service.prefix.len() + 1 + field().len();
                    let (level, class, flags) = (field(), field(), field());
                    let from = taken.len();
                    for at in field().split(',').filter(|it| !it.is_empty()) {
                        taken.push(&kinds[types_before + at.parse::<usize>().expect("an index")]);
                    }
                    taken_by.push(from..taken.len());
                    actions.push(Action {
                        name: &names[used..used + length],
                        level,
                        class: class.parse().expect("the table names classes only"),
                        resource_account: flags.contains('a'),
                        any_region: flags.contains('g'),
                        kinds: &[],
                    });
                    used += length;
                    service.actions.end = actions.len();
                }
                other => panic!("the table of actions has a line of kind {other:?}"),
            }
        }
        let taken: &'static [_] = taken.leak();
        for (action, range) in actions.iter_mut().zip(taken_by) {
            action.kinds = &taken[range];
        }
        Self { services, actions, sources, sha256: crate::statement::sha256_hex(packed) }
    }

    /// All resource types, in the order of the table.
    fn kinds(text: &'static str) -> &'static [Kind] {
        let lines = text.lines().filter_map(|it| it.strip_prefix("t\t")?.split_once('\t'));
        lines.map(|(name, pattern)| Kind::new(name, pattern)).collect::<Vec<_>>().leak()
    }

    /// All actions' names with their services', in the order of the table, one after the other.
    fn names(text: &str) -> &'static str {
        let mut names = String::with_capacity(text.len());
        let mut service = "";
        for line in text.lines() {
            if let Some(prefix) = line.strip_prefix("s\t") {
                service = prefix;
            } else if let Some((name, _)) =
                line.strip_prefix("a\t").and_then(|it| it.split_once('\t'))
            {
                names.extend([service, ":", name]);
            }
        }
        names.leak()
    }
}

fn ignoring_case(a: &str, b: &str) -> Ordering {
    let lower = |it: &u8| it.to_ascii_lowercase();
    a.as_bytes().iter().map(lower).cmp(b.as_bytes().iter().map(lower))
}

fn matches_ignoring_case(pattern: &[u8], text: &[u8]) -> bool {
    let covers = |left: u8, right: u8| left == b'?' || left.eq_ignore_ascii_case(&right);
    glob_matches(pattern, text, covers)
}

#[cfg(test)]
mod traps;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole_sorted_and_each_action_is_found_in_any_case() {
        let names: Vec<_> = all().map(|it| it.name).collect();
        assert!(20_000 < names.len(), "only {} actions", names.len());
        let key =
            |it: &str| it.to_lowercase().split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert!(names.windows(2).all(|it| key(it[0]) < key(it[1])));
        for name in names.iter().step_by(97) {
            assert_eq!(find(&name.to_uppercase()).unwrap().name, *name);
        }
        assert!(find("s3:GetObjec").is_none() && find("s3").is_none() && find("").is_none());
    }

    #[test]
    fn a_pattern_stands_for_what_iam_would_let_it_stand_for() {
        let names = |pattern: &str| matching(pattern).map(|it| it.name).collect::<Vec<_>>();
        assert_eq!(names("S3:getobject"), ["s3:GetObject"]);
        assert!(names("s3:Get?bject").contains(&"s3:GetObject"));
        assert!(names("s3:*Acl").contains(&"s3:PutBucketAcl"));
        assert!(names("s3:*").iter().all(|it| it.starts_with("s3:")));
        assert_eq!(names("*").len(), names("*:*").len());
        assert_eq!(names("*").len(), all().count());
        for nothing in ["s3", "", "s*", "**", "s3*GetObject"] {
            assert!(names(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn an_action_fits_the_arns_that_aws_grants_it_on() {
        let fits = |name: &str, arn: &str| find(name).unwrap().fits(&Arn::parse(arn).unwrap());
        assert!(fits("s3:GetObject", "arn:aws:s3:::b/k"));
        assert!(fits("s3:GetObject", "arn:aws:s3:::b*"));
        assert!(!fits("s3:GetObject", "arn:aws:s3:::b"));
        assert!(fits("s3:ListBucket", "arn:aws:s3:::b"));
        assert!(!fits("s3:ListBucket", "arn:aws:s3:::b/*"));
        assert!(!fits("s3:ListBucket", "arn:aws:sqs:us-east-1:111122223333:b"));
        assert!(!find("s3:ListAllMyBuckets").unwrap().takes_resources());
    }

    proptest::proptest! {
        #[test]
        fn matching_agrees_with_plain_recursion(pattern in "[aB*?]{0,7}", text in "[Ab]{0,7}") {
            fn plain(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.first(), text.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => plain(&pattern[1..], text) || (!text.is_empty() && plain(pattern, &text[1..])),
                    (Some(b'?'), Some(_)) => plain(&pattern[1..], &text[1..]),
                    (Some(a), Some(b)) => a.eq_ignore_ascii_case(b) && plain(&pattern[1..], &text[1..]),
                    _ => false,
                }
            }
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            proptest::prop_assert_eq!(matches_ignoring_case(pattern, text), plain(pattern, text));
        }
    }
}
