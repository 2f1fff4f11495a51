//! Patterns for what a token says of a workload.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text in which `*` stands for one or more characters, none of them `/` or `:`. It matches a value as a whole, never a part of
/// it: `repo:acme/*:ref:refs/heads/main` is any repository of acme's, and no branch that somebody called
/// `x:ref:refs/heads/main`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(String);

impl Pattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, value: &str) -> bool {
        let (mut pattern, mut rest) = (self.0.as_bytes(), value.as_bytes());
        // Where to go on from when what follows the last `*` does not match: it then stands for one more character.
        let mut retry: Option<(&[u8], &[u8])> = None;
        loop {
            if let Some((b'*', after)) = pattern.split_first() {
                let Some(more) = one_more(rest) else { return false };
                (pattern, rest, retry) = (after, more, Some((after, more)));
                continue;
            }
            match (pattern.split_first(), rest.split_first()) {
                (None, None) => return true,
                (Some((a, pattern_left)), Some((b, rest_left))) if a == b => {
                    (pattern, rest) = (pattern_left, rest_left);
                }
                _ => {
                    let Some((after, from)) = retry else { return false };
                    let Some(more) = one_more(from) else { return false };
                    (pattern, rest, retry) = (after, more, Some((after, more)));
                }
            }
        }
    }
}

/// What is left after one byte that `*` may stand for.
fn one_more(rest: &[u8]) -> Option<&[u8]> {
    let (first, rest) = rest.split_first()?;
    (!b"/:".contains(first)).then_some(rest)
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() || text.contains("**") || text.chars().any(char::is_control) {
            return Err(format!(
                "{text:?} is not a pattern: write the value, with `*` for one or more characters that are neither `/` nor `:`"
            ));
        }
        Ok(Self(text))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn a_star_stands_for_some_of_one_segment() {
        for (text, value, matches) in [
            ("repo:acme/shop:ref:refs/heads/main", "repo:acme/shop:ref:refs/heads/main", true),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/shop:ref:refs/heads/main", true),
            (
                "repo:acme/*:ref:refs/heads/main",
                "repo:acme/shop:ref:refs/heads/x:ref:refs/heads/main",
                false,
            ),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/:ref:refs/heads/main", false),
            ("repo:acme/*:ref:refs/heads/main", "repo:acme/shop:ref:refs/heads/main2", false),
            ("repo:acme/*:ref:refs/heads/main", "xrepo:acme/shop:ref:refs/heads/main", false),
            ("repo:acme/*", "repo:acme-evil/shop", false),
            ("repo:acme/*", "repo:acme/shop/pull", false),
            (
                "system:serviceaccount:*:broker-agent",
                "system:serviceaccount:shop:broker-agent",
                true,
            ),
            (
                "system:serviceaccount:shop:*",
                "system:serviceaccount:shop:a:system:serviceaccount:shop:b",
                false,
            ),
            ("*-ci-*", "a-ci-ci-b", true),
            ("*-ci-*", "-ci-b", false),
            ("*ab", "aab", true),
            ("main", "Main", false),
            ("main", "main\n", false),
        ] {
            assert_eq!(pattern(text).matches(value), matches, "{text} {value:?}");
        }
        for bad in ["", "a**", "a\nb"] {
            assert!(Pattern::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_has_no_star_matches_itself_alone(text in "[a-z/:.]{1,20}", value in "[a-z/:.]{0,20}") {
            prop_assert!(pattern(&text).matches(&text));
            prop_assert_eq!(pattern(&text).matches(&value), text == value);
        }

        #[test]
        fn no_match_is_partial(
            parts in prop::collection::vec("[a-z:/]{1,6}", 1..4),
            values in prop::collection::vec("[a-z]{1,6}", 3),
            more in "[a-z:/]{1,4}",
        ) {
            let (mut text, mut value) = (parts[0].clone(), parts[0].clone());
            for (part, filled) in parts[1..].iter().zip(&values) {
                text += "*";
                text += part;
                value += filled;
                value += part;
            }
            prop_assert!(pattern(&text).matches(&value), "{} {}", text, value);
            // Anchored at both ends, and across no separator: what is put before or behind is not covered.
            let around = [format!("{value}:{more}:"), format!(":{more}:{value}"), format!("\u{0}{value}")];
            prop_assert!(around.iter().all(|it| !pattern(&text).matches(it)));
        }

        #[test]
        fn it_judges_as_a_list_of_all_ways_would(text in "[ab*:]{1,8}", value in "[ab:]{0,10}") {
            prop_assume!(!text.contains("**"));
            prop_assert_eq!(pattern(&text).matches(&value), slowly(text.as_bytes(), value.as_bytes()));
        }

        #[test]
        fn any_text_is_judged(text in any::<String>(), value in any::<String>()) {
            if let Ok(it) = Pattern::try_from(text) {
                it.matches(&value);
            }
        }
    }

    /// The definition, by trying every length of every star.
    fn slowly(pattern: &[u8], value: &[u8]) -> bool {
        match pattern.split_first() {
            None => value.is_empty(),
            Some((b'*', rest)) => (1..=value.len())
                .take_while(|n| !b"/:".contains(&value[n - 1]))
                .any(|n| slowly(rest, &value[n..])),
            Some((first, rest)) => value.first() == Some(first) && slowly(rest, &value[1..]),
        }
    }
}
