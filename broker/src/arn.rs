//! ARNs with IAM's wildcards: what contains what, and what may overlap. Pure.
//!
//! `*` stands for any characters and `?` for one, within one of the six parts (IAM user guide, "IAM JSON policy
//! elements: Resource"). AWS may let a `*` that ends a part run on over the colon; the account, which is written out or
//! demanded by a condition, still binds it. `*` alone stands for every ARN.

use std::fmt;

/// An ARN, possibly with wildcards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arn {
    text: String,
    /// Where each of the first five parts ends; nowhere in `*`.
    colons: [usize; 5],
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    #[error("{0:?} is not an ARN: write `arn:aws:SERVICE:REGION:ACCOUNT:RESOURCE`")]
    Shape(String),
    #[error("{0:?} is in another partition than `aws`")]
    Partition(String),
    #[error("{0:?} does not name one service in lower case; write it as AWS does, like `s3`")]
    Service(String),
    #[error("{0:?} has a `.` or `..` path segment, which services read differently from IAM")]
    Dots(String),
    #[error("{0:?} has a character that a session policy cannot carry, or a policy variable")]
    Character(String),
}

impl Arn {
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        if text == "*" {
            return Ok(Self::any());
        }
        let owned = || text.to_owned();
        // U+0020–00FF is what STS takes in a session policy (API_AssumeRole, Policy); DEL to U+009F are controls.
        if text.chars().any(|it| it.is_control() || u32::from(it) > 0xff) || text.contains("${") {
            return Err(ArnError::Character(owned()));
        }
        let mut colons = [0; 5];
        let mut found = text.match_indices(':').map(|(at, _)| at);
        for colon in &mut colons {
            *colon = found.next().ok_or_else(|| ArnError::Shape(owned()))?;
        }
        let arn = Self { text: owned(), colons };
        let [prefix, partition, service, .., resource] = arn.parts();
        if prefix != "arn" || resource.is_empty() || service.is_empty() {
            return Err(ArnError::Shape(owned()));
        }
        if partition != "aws" {
            return Err(ArnError::Partition(owned()));
        }
        if !service.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-') {
            return Err(ArnError::Service(owned()));
        }
        if resource.split('/').any(|it| it == "." || it == "..") {
            return Err(ArnError::Dots(owned()));
        }
        Ok(arn)
    }

    /// `*`: every ARN.
    pub fn any() -> Self {
        Self { text: "*".to_owned(), colons: [0; 5] }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_any(&self) -> bool {
        self.text == "*"
    }

    pub fn service(&self) -> &str {
        self.parts()[2]
    }

    /// The Region part: empty where the service leaves it out, or a pattern.
    pub fn region(&self) -> &str {
        self.parts()[3]
    }

    /// The account part: twelve digits, empty where the service leaves it out (S3), or a pattern.
    pub fn account(&self) -> &str {
        self.parts()[4]
    }

    /// Whether its Region part says `region`, or may.
    pub fn is_in_region(&self, region: &str) -> bool {
        glob_contains(self.region(), region)
    }

    /// Whether its account part says `account`, or may.
    pub fn is_in(&self, account: &str) -> bool {
        glob_contains(self.account(), account)
    }

    fn parts(&self) -> [&str; 6] {
        if self.is_any() {
            return ["arn", "aws", "*", "*", "*", "*"];
        }
        split(&self.text, self.colons)
    }

    /// Whether it names one resource only.
    pub fn is_exact(&self) -> bool {
        is_exact(&self.text)
    }

    /// Whether everything that `other` matches is matched by `self`. May say no where it is so; never yes where not.
    pub fn contains(&self, other: &Self) -> bool {
        self.parts().iter().zip(other.parts()).all(|(outer, inner)| glob_contains(outer, inner))
    }

    /// Whether everything that `other` matches is matched by `self`, and, for S3, is in a bucket of which `self` names
    /// all: `*-staging/*` also matches `production/x-staging/y`, which it is not about.
    pub fn covers(&self, other: &Self) -> bool {
        let [.., resource] = self.parts();
        let buckets = resource.split_once('/').map_or(resource, |(bucket, _)| bucket);
        self.contains(other) && (self.service() != "s3" || glob_contains(buckets, &other.bucket()))
    }

    /// Whether the two could be about the same thing: whether something matches both, or is part of what the other
    /// matches, as a log group's stream or a table's index is; or, for S3, whether something in a bucket of the one is in
    /// a bucket of the other. Who may delete a bucket may destroy its objects.
    pub fn touches(&self, other: &Self) -> bool {
        let s3 = self.service() == "s3" && other.service() == "s3";
        self.overlaps(other)
            || self.has_part(other)
            || other.has_part(self)
            || (s3 && globs_overlap(&self.bucket(), &other.bucket()))
    }

    /// Whether something that `other` matches could be below something that `self` matches.
    fn has_part(&self, other: &Self) -> bool {
        let ([head @ .., whole], [other_head @ .., part]) = (self.parts(), other.parts());
        head.iter().zip(other_head).all(|(a, b)| globs_overlap(a, b))
            && [":*", "/*"].iter().any(|below| globs_overlap(&format!("{whole}{below}"), part))
    }

    /// The buckets of an S3 resource, as a pattern. A wildcard may stand for the slash that ends the bucket's name, and
    /// nobody can see of which bucket an access point is.
    pub fn bucket(&self) -> String {
        let [.., account, resource] = self.parts();
        if !account.is_empty() && globs_overlap(resource, "accesspoint/*") {
            return "*".to_owned();
        }
        match resource.find(['/', '*', '?']) {
            None => resource.to_owned(),
            Some(end) if resource[end..].starts_with('/') => resource[..end].to_owned(),
            Some(end) => format!("{}*", &resource[..end]),
        }
    }

    /// Whether something could match both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.parts().iter().zip(other.parts()).all(|(a, b)| globs_overlap(a, b))
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// Leaves out what is there twice, and what another one contains.
pub fn minimal(mut arns: Vec<Arn>) -> Vec<Arn> {
    arns.dedup();
    if arns.iter().all(Arn::is_exact) {
        return arns;
    }
    let within_another = |it: &Arn| {
        arns.iter().any(|other| other != it && other.contains(it) && !it.contains(other))
    };
    arns.iter().filter(|it| !within_another(it)).cloned().collect()
}

/// A resource type as AWS defines it: a name, and the form of its ARNs.
///
/// Where the form has a variable, its pattern has `*` for any characters, `~` for any but `/`, `^` for any but `:`, and
/// `|` for any but both: an S3 bucket's name ends where the object's begins.
#[derive(Debug)]
pub struct Kind {
    name: &'static str,
    pattern: &'static str,
    parts: [&'static str; 6],
}

impl Kind {
    /// `pattern` is of our own making; panics if it is no ARN, or too long.
    pub fn new(name: &'static str, pattern: &'static str) -> Self {
        let mut colons = [0; 5];
        let mut found = pattern.match_indices(':').map(|(at, _)| at);
        for colon in &mut colons {
            *colon = found.next().expect("five colons");
        }
        assert!(pattern.len() < 128, "{pattern} is too long");
        Self { name, pattern, parts: split(pattern, colons) }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn service(&self) -> &'static str {
        self.parts[2]
    }

    /// Whether `arn` matches something of this type.
    pub fn overlaps(&self, arn: &Arn) -> bool {
        // A Region or an account that AWS writes is never empty; of Backup's recovery points, which are anybody's, nobody says.
        let parts = arn.parts();
        let written = self.service() == "*"
            || (3..5).all(|at| self.parts[at].is_empty() || !parts[at].is_empty());
        written && self.parts.iter().zip(parts).all(|(kind, part)| kind_overlaps(kind, part))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pattern.replace(['~', '^', '|'], "*"))
    }
}

fn split(text: &str, colons: [usize; 5]) -> [&str; 6] {
    let [first, second, third, fourth, fifth] = colons;
    [
        &text[..first],
        &text[first + 1..second],
        &text[second + 1..third],
        &text[third + 1..fourth],
        &text[fourth + 1..fifth],
        &text[fifth + 1..],
    ]
}

fn is_exact(text: &str) -> bool {
    !text.bytes().any(|it| matches!(it, b'*' | b'?'))
}

/// Matches the pattern `outer` against `inner` as if `inner`'s wildcards were letters that only wildcards cover:
/// `?` covers one letter or `?`, `*` covers anything.
pub fn glob_contains(outer: &str, inner: &str) -> bool {
    let covers = |left, right| right != b'*' && (left == right || left == b'?');
    glob_matches(outer.as_bytes(), inner.as_bytes(), covers)
}

/// Whether `pattern` matches `text`, where `*` is any letters and `covers` says what another letter of it stands for.
pub fn glob_matches(pattern: &[u8], text: &[u8], covers: impl Fn(u8, u8) -> bool) -> bool {
    let (mut at, mut read) = (0, 0);
    // The last `*` and what it covers so far; a later one makes an earlier one's choice final.
    let mut star = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(letter) if covers(*letter, text[read]) => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((star_at, from)) = star else { return false };
                star = Some((star_at, from + 1));
                (at, read) = (star_at + 1, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|it| *it == b'*')
}

/// Whether something matches both patterns.
pub fn globs_overlap(a: &str, b: &str) -> bool {
    if is_exact(b) {
        return glob_contains(a, b);
    }
    if is_exact(a) {
        return glob_contains(b, a);
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // reach[j]: a[..i] and b[..j] have a common match.
    let mut reach = vec![false; b.len() + 1];
    reach[0] = true;
    for j in 0..b.len() {
        reach[j + 1] = reach[j] && b[j] == b'*';
    }
    for &left in a {
        let mut diagonal = reach[0];
        reach[0] = reach[0] && left == b'*';
        for (j, &right) in b.iter().enumerate() {
            let above = reach[j + 1];
            reach[j + 1] = match (left, right) {
                (b'*', _) | (_, b'*') => diagonal || above || reach[j],
                (b'?', _) | (_, b'?') => diagonal,
                (left, right) => left == right && diagonal,
            };
            diagonal = above;
        }
    }
    reach[b.len()]
}

/// Whether something matches both a resource type's pattern and `part`. Walks the set of places in the pattern that
/// are reached, one bit each.
fn kind_overlaps(kind: &str, part: &str) -> bool {
    let kind = kind.as_bytes();
    let end = kind.len();
    // A place before a variable is also one after it: the variable may be empty.
    let close = |mut places: u128| {
        for (at, byte) in kind.iter().enumerate() {
            if places >> at & 1 == 1 && excludes(*byte).is_some() {
                places |= 1 << (at + 1);
            }
        }
        places
    };
    let mut places = close(1);
    for &byte in part.as_bytes() {
        let mut next = 0;
        if byte == b'*' {
            // It may go on to any later place.
            next = (1_u128 << end << 1).wrapping_sub(1) & !((1 << places.trailing_zeros()) - 1);
        } else {
            for (at, letter) in kind.iter().enumerate().filter(|(at, _)| places >> at & 1 == 1) {
                match excludes(*letter) {
                    Some(excluded) if byte == b'?' || !excluded.contains(&byte) => next |= 1 << at,
                    None if byte == b'?' || byte == *letter => next |= 1 << (at + 1),
                    _ => {}
                }
            }
        }
        if next == 0 {
            return false;
        }
        places = close(next);
    }
    places >> end & 1 == 1
}

/// What a variable of a resource type's pattern does not stand for; `None` for a letter.
fn excludes(byte: u8) -> Option<&'static [u8]> {
    match byte {
        b'*' => Some(b""),
        b'~' => Some(b"/"),
        b'^' => Some(b":"),
        b'|' => Some(b"/:"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arn(text: &str) -> Arn {
        Arn::parse(text).unwrap()
    }

    #[test]
    fn a_bucket_name_that_begins_like_another_is_another() {
        let staging = arn("arn:aws:s3:::staging-app-data/*");
        assert!(staging.contains(&arn("arn:aws:s3:::staging-app-data/a/b")));
        assert!(!staging.contains(&arn("arn:aws:s3:::staging-app-data-2/a")));
        assert!(!staging.contains(&arn("arn:aws:s3:::staging-app-data")));
        assert!(!staging.contains(&arn("arn:aws:s3:::staging-app-dat?/a")));
        assert!(!staging.contains(&arn("arn:aws:s3:::*")));
        assert!(!staging.contains(&arn("arn:aws:s3:::STAGING-app-data/a")));
    }

    #[test]
    fn wildcards_overlap_where_one_name_could_match_both() {
        let production = arn("arn:aws:s3:::prod-*");
        assert!(production.overlaps(&arn("arn:aws:s3:::*-data")));
        assert!(production.overlaps(&arn("arn:aws:s3:::pro?-x")));
        assert!(!production.overlaps(&arn("arn:aws:s3:::staging-*")));
        assert!(!production.overlaps(&arn("arn:aws:dynamodb:::prod-x")));
    }

    #[test]
    fn a_bucket_and_what_is_in_it_touch() {
        let objects = arn("arn:aws:s3:::ledger/*");
        assert!(objects.touches(&arn("arn:aws:s3:::ledger")));
        assert!(arn("arn:aws:s3:::ledger").touches(&arn("arn:aws:s3:::ledger/2026")));
        assert!(arn("arn:aws:s3:::led*").touches(&objects));
        assert!(
            arn("arn:aws:s3:::led*x/y").touches(&arn("arn:aws:s3:::ledger")),
            "`*` may stand for a slash"
        );
        assert!(!objects.touches(&arn("arn:aws:s3:::ledger-2")));
    }

    #[test]
    fn what_another_reader_could_read_differently_is_refused() {
        use ArnError as E;
        let refused = |text: &str| Arn::parse(text).unwrap_err();
        assert!(matches!(refused("s3:::x"), E::Shape(_)));
        assert!(matches!(refused("arn:aws:s3:::"), E::Shape(_)));
        assert!(matches!(refused("**"), E::Shape(_)));
        assert!(matches!(refused("arn:aws-cn:s3:::x"), E::Partition(_)));
        assert!(matches!(refused("arn:*:s3:::x"), E::Partition(_)));
        assert!(matches!(refused("arn:aws:*:::x"), E::Service(_)));
        assert!(matches!(refused("arn:aws:S3:::x"), E::Service(_)));
        assert!(matches!(refused("arn:aws:s3:::b/../c"), E::Dots(_)));
        assert!(matches!(refused("arn:aws:s3:::b/./c"), E::Dots(_)));
        assert!(matches!(refused("arn:aws:s3:::b/\u{7f}"), E::Character(_)));
        assert!(matches!(refused("arn:aws:s3:::b/\u{430}"), E::Character(_)));
        assert!(matches!(refused("arn:aws:s3:::b/${aws:username}"), E::Character(_)));
    }

    #[test]
    fn a_star_alone_is_every_arn() {
        let any = arn("*");
        assert!(any.contains(&arn("arn:aws:s3:::b/k")) && any.contains(&any));
        assert!(!arn("arn:aws:s3:::*").contains(&any) && arn("arn:aws:s3:::b").touches(&any));
        assert!(!any.is_exact());
    }

    #[test]
    fn a_resource_type_ends_where_its_neighbour_begins() {
        let bucket = Kind::new("bucket", "arn:aws:s3:::~");
        let object = Kind::new("object", "arn:aws:s3:::~/*");
        let function = Kind::new("function", "arn:aws:lambda:*:*:function:^");
        for (kind, text, expected) in [
            (&bucket, "arn:aws:s3:::b", true),
            (&bucket, "arn:aws:s3:::b/k", false),
            (&bucket, "arn:aws:s3:::b*", true),
            (&bucket, "arn:aws:s3:::b?", true),
            (&bucket, "arn:aws:s3:::b/*", false),
            (&bucket, "*", true),
            (&object, "arn:aws:s3:::b", false),
            (&object, "arn:aws:s3:::b/k/l", true),
            (&object, "arn:aws:s3:::b*k", true),
            (&function, "arn:aws:lambda:us-east-1:111122223333:function:f", true),
            (&function, "arn:aws:lambda:us-east-1:111122223333:function:f:1", false),
            (&function, "arn:aws:lambda:*:111122223333:func*", true),
            (&function, "arn:aws:lambda:us-east-1:111122223333:layer:f", false),
        ] {
            assert_eq!(kind.overlaps(&arn(text)), expected, "{kind} and {text}");
        }
    }

    /// An independent matcher to hold the tables against: plain recursion over characters.
    fn matches(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                matches(&pattern[1..], text) || (!text.is_empty() && matches(pattern, &text[1..]))
            }
            (Some(b'?'), Some(_)) => matches(&pattern[1..], &text[1..]),
            (Some(a), Some(b)) if a == b => matches(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn containing_and_overlapping_agree_with_what_matches(
            outer in "[ab*?]{0,6}", inner in "[ab*?]{0,6}", text in "[ab]{0,6}",
        ) {
            let both = matches(outer.as_bytes(), text.as_bytes());
            let in_inner = matches(inner.as_bytes(), text.as_bytes());
            if glob_contains(&outer, &inner) && in_inner {
                prop_assert!(both, "{outer} was said to contain {inner}, but not {text}");
            }
            if both && in_inner {
                prop_assert!(globs_overlap(&outer, &inner));
            }
        }

        #[test]
        fn a_type_overlaps_whatever_has_a_name_in_common(
            kind in "[a/*~]{0,6}", part in "[a/*?]{0,6}", text in "[ab/]{0,6}",
        ) {
            fn of_kind(kind: &[u8], text: &[u8]) -> bool {
                match (kind.first(), text.first()) {
                    (None, None) => true,
                    (Some(b'*' | b'~'), _) if of_kind(&kind[1..], text) => true,
                    (Some(b'*'), Some(_)) => of_kind(kind, &text[1..]),
                    (Some(b'~'), Some(letter)) => *letter != b'/' && of_kind(kind, &text[1..]),
                    (Some(a), Some(b)) => a == b && of_kind(&kind[1..], &text[1..]),
                    _ => false,
                }
            }
            if of_kind(kind.as_bytes(), text.as_bytes()) && matches(part.as_bytes(), text.as_bytes()) {
                prop_assert!(kind_overlaps(&kind, &part));
            }
            if is_exact(&part) {
                prop_assert_eq!(kind_overlaps(&kind, &part), of_kind(kind.as_bytes(), part.as_bytes()));
            }
        }

        #[test]
        fn an_exact_name_is_contained_exactly_when_it_matches(outer in "[ab*?]{0,6}", text in "[ab]{0,6}") {
            prop_assert_eq!(glob_contains(&outer, &text), matches(outer.as_bytes(), text.as_bytes()));
        }
    }
}
