//! Lengths of time, as people write them.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use time::Duration;

/// A span of whole seconds, written `15m` or `8h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl Span {
    /// Whole seconds.
    pub fn seconds(self) -> u32 {
        u32::try_from(self.0.whole_seconds()).expect("a span is between a second and a year")
    }

    pub fn std(self) -> std::time::Duration {
        self.0.unsigned_abs()
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a span of time: write whole seconds or more, like `90s`, `15m` or `8h`"
            )
        };
        let span = humantime::parse_duration(&text).map_err(|_| bad())?;
        if span.subsec_nanos() != 0 || span.as_secs() == 0 || 366 * 24 * 3600 < span.as_secs() {
            return Err(bad());
        }
        Ok(Self(Duration::seconds(span.as_secs().try_into().map_err(|_| bad())?)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.std()).fmt(f)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
