//! The one source of the current time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use time::{Duration, OffsetDateTime};

/// Tells the time: the system's, or one that a test sets. Clones of a manual clock move together.
///
/// The edge reads it once a request; everything below takes `now`. Times are whole microseconds, as PostgreSQL
/// keeps them, so that what is signed and what is stored are equal.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Seconds since the Unix epoch; `None` reads the system clock.
    manual: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// A clock that stands still at `start` until [`Clock::advance`].
    #[must_use]
    pub fn manual(start: OffsetDateTime) -> Self {
        Self { manual: Some(Arc::new(AtomicI64::new(start.unix_timestamp()))) }
    }

    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        if let Some(seconds) = &self.manual {
            return OffsetDateTime::from_unix_timestamp(seconds.load(Ordering::SeqCst))
                .expect("a manual clock starts at a valid time");
        }
        #[expect(clippy::disallowed_methods, reason = "the only place that reads system time")]
        let now = OffsetDateTime::now_utc();
        now.replace_microsecond(now.microsecond()).expect("a microsecond of its own is valid")
    }

    /// Moves a manual clock on. Panics on the system clock: time is not ours to change.
    pub fn advance(&self, by: Duration) {
        let seconds = self.manual.as_ref().expect("only a manual clock can be advanced");
        seconds.fetch_add(by.whole_seconds(), Ordering::SeqCst);
    }
}
