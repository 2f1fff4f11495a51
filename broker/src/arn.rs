//! ARNs with IAM's wildcards: what contains what, and what may overlap. Pure.
//!
//! `*` stands for any characters and `?` for one, within one of the six parts (IAM user guide, "IAM JSON policy
//! elements: Resource").

use std::fmt;

/// An ARN, possibly with wildcards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arn {
    text: String,
    /// Where each of the first five parts ends.
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
        let [prefix, partition, service, ..] = arn.parts();
        if prefix != "arn" || arn.resource().is_empty() || service.is_empty() {
            return Err(ArnError::Shape(owned()));
        }
        if partition != "aws" {
            return Err(ArnError::Partition(owned()));
        }
        if !service.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-') {
            return Err(ArnError::Service(owned()));
        }
        if arn.resource().split('/').any(|it| it == "." || it == "..") {
            return Err(ArnError::Dots(owned()));
        }
        Ok(arn)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The account part: twelve digits, empty where the service leaves it out (S3), or a pattern.
    pub fn account(&self) -> &str {
        self.parts()[4]
    }

    fn resource(&self) -> &str {
        &self.text[self.colons[4] + 1..]
    }

    fn parts(&self) -> [&str; 6] {
        let [first, second, third, fourth, fifth] = self.colons;
        let text = &self.text;
        [
            &text[..first],
            &text[first + 1..second],
            &text[second + 1..third],
            &text[third + 1..fourth],
            &text[fourth + 1..fifth],
            &text[fifth + 1..],
        ]
    }

    /// Whether it names one resource only.
    pub fn is_exact(&self) -> bool {
        !self.text.contains(['*', '?'])
    }

    /// Whether everything that `other` matches is matched by `self`. May say no where it is so; never yes where not.
    pub fn contains(&self, other: &Self) -> bool {
        self.parts().iter().zip(other.parts()).all(|(outer, inner)| glob_contains(outer, inner))
    }

    /// Whether the two could be about the same thing: whether something matches both, or, for S3, whether something
    /// in a bucket of the one is in a bucket of the other. Who may delete a bucket may destroy its objects.
    pub fn touches(&self, other: &Self) -> bool {
        let s3 = self.parts()[2] == "s3" && other.parts()[2] == "s3";
        self.overlaps(other) || (s3 && globs_overlap(&self.bucket(), &other.bucket()))
    }

    /// The buckets of an S3 resource, as a pattern. A wildcard may stand for the slash that ends the bucket's name.
    fn bucket(&self) -> String {
        let resource = self.resource();
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
        f.write_str(&self.text)
    }
}

/// Matches the pattern `outer` against `inner` as if `inner`'s wildcards were letters that only wildcards cover:
/// `?` covers one letter or `?`, `*` covers anything.
fn glob_contains(outer: &str, inner: &str) -> bool {
    let (outer, inner) = (outer.as_bytes(), inner.as_bytes());
    // reach[j]: outer[..i] covers inner[..j].
    let mut reach = vec![false; inner.len() + 1];
    reach[0] = true;
    for &left in outer {
        let mut next = vec![false; inner.len() + 1];
        next[0] = reach[0] && left == b'*';
        for (j, &right) in inner.iter().enumerate() {
            next[j + 1] = match left {
                b'*' => reach[j + 1] || next[j],
                b'?' => reach[j] && right != b'*',
                left => reach[j] && left == right,
            };
        }
        reach = next;
    }
    reach[inner.len()]
}

fn globs_overlap(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // reach[j]: a[..i] and b[..j] have a common match.
    let mut reach = vec![false; b.len() + 1];
    reach[0] = true;
    for j in 0..b.len() {
        reach[j + 1] = reach[j] && b[j] == b'*';
    }
    for &left in a {
        let mut next = vec![false; b.len() + 1];
        next[0] = reach[0] && left == b'*';
        for (j, &right) in b.iter().enumerate() {
            next[j + 1] = match (left, right) {
                (b'*', _) | (_, b'*') => reach[j] || reach[j + 1] || next[j],
                (b'?', _) | (_, b'?') => reach[j],
                (left, right) => left == right && reach[j],
            };
        }
        reach = next;
    }
    reach[b.len()]
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
        fn an_exact_name_is_contained_exactly_when_it_matches(outer in "[ab*?]{0,6}", text in "[ab]{0,6}") {
            prop_assert_eq!(glob_contains(&outer, &text), matches(outer.as_bytes(), text.as_bytes()));
        }
    }
}
