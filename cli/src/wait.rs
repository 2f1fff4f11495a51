//! Waiting for people: says once who can sign and how, then a line for each change, and nothing else. A broker that is
//! away for a while is waited for too; whoever stops waiting leaves the request as it is, and is told how to go on.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use broker::lease::{LeaseId, LeaseState};
use broker::render::words;
use broker::wire::Lease;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Context;
use crate::client::Client;
use crate::output::{self, Failure, Format, Result, waits_for, ways};
use crate::refusal;

/// How long the broker holds one answer back while nothing changes.
pub(crate) const LONG_POLL_SECONDS: u64 = 30;
/// The same for who waits for several signatures: one that is not the last wakes nobody.
const SHORTER_POLL_SECONDS: u64 = 5;
/// The pause after the first failure; each further one is twice as long, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const FRAME: Duration = Duration::from_millis(150);
/// As wide as the spinner's line ever is.
const SPINNER_WIDTH: usize = 60;

/// Set when somebody else answers signals from now on.
static HANDED_OVER: AtomicBool = AtomicBool::new(false);

/// Leaves signals to whoever calls this: a command that runs now is told of them, and not ended by our end.
pub(crate) fn hand_over_signals() {
    HANDED_OVER.store(true, Ordering::SeqCst);
}

/// Signals that whoever started us has us ignore, as Linux tells; elsewhere it is not known.
pub(crate) fn ignored_signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|it| it.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|it| u64::from_str_radix(it.trim(), 16).ok()).unwrap_or(0);
    (1..=64).filter(|it| mask >> (it - 1) & 1 == 1).collect()
}

/// Long-polls until the lease is no longer pending, or `wait` is over. `known` is the lease, if it was just answered.
pub(crate) fn for_people(
    context: &Context,
    client: &Client,
    id: LeaseId,
    known: Option<Lease>,
    wait: Duration,
) -> Result<Lease> {
    let deadline = Instant::now() + wait;
    let path = format!("/v1/leases/{id}");
    let watch = Watch::start(context, id, deadline);
    let mut asked = known.is_some();
    if let Some(lease) = known {
        watch.saw(&lease, wait);
    }
    let (mut pause, mut away) = (PAUSE, false);
    loop {
        let asked_at = Instant::now();
        let left = deadline.saturating_duration_since(asked_at);
        // Whoever was away answers at once, so that we know.
        let hold = if asked && !away { left.as_secs().min(watch.longest_poll()) } else { 0 };
        let rest = match client.get::<Lease>(&path, &[("wait_seconds", &hold.to_string())]) {
            Ok(lease) if lease.state == LeaseState::Pending => {
                if away {
                    watch.say("the broker answers again");
                }
                (away, pause) = (false, PAUSE);
                watch.saw(&lease, left);
                if left.is_zero() {
                    return Ok(lease);
                }
                // A broker that does not hold its answer back is not asked more than once a second.
                let rest = if asked { PAUSE } else { Duration::ZERO };
                asked = true;
                rest.saturating_sub(asked_at.elapsed())
            }
            Ok(lease) => {
                watch.say(&format!("lease {id} is {}", lease.state));
                return Ok(lease);
            }
            Err(failure) if failure.may_pass() && !left.is_zero() => {
                if !away {
                    watch.say("the broker cannot be reached for now; still waiting");
                }
                away = true;
                let rest = failure.retry_after.unwrap_or(pause).max(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
                rest
            }
            Err(failure) if failure.may_pass() => return Err(may_still_be_signed(failure, id)),
            Err(failure) => return Err(failure),
        };
        std::thread::sleep(rest.min(deadline.saturating_duration_since(Instant::now())));
    }
}

fn may_still_be_signed(failure: Failure, id: LeaseId) -> Failure {
    let next = format!(
        "The lease {id} may still be signed; resume with `broker exec --lease {id} -- COMMAND`, \
         or take it back with `broker withdraw {id}`."
    );
    failure.with_next(next, refusal::run_with(id))
}

/// What is on the screen while we wait, and what a signal does then.
struct Watch(Arc<Shared>);

struct Shared {
    id: LeaseId,
    deadline: Instant,
    format: Format,
    screen: Mutex<Screen>,
}

#[derive(Default)]
struct Screen {
    /// As it was last answered.
    lease: Option<Lease>,
    /// Whether the spinner's line is there.
    drawn: bool,
    over: bool,
}

impl Watch {
    fn start(context: &Context, id: LeaseId, deadline: Instant) -> Self {
        let screen = Mutex::default();
        let shared = Arc::new(Shared { id, deadline, format: context.format, screen });
        // Whoever cannot listen to signals is ended by them, as ever, and the request stays as it is.
        let ignored = ignored_signals();
        let listened = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|it| !ignored.contains(it));
        if let Ok(mut signals) = Signals::new(listened) {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || signals.forever().for_each(|it| shared.interrupted(it)));
        }
        if context.settings.spinner {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.spin());
        }
        Self(shared)
    }

    /// Says what is new about a pending lease.
    fn saw(&self, lease: &Lease, left: Duration) {
        let mut screen = self.0.screen();
        let before = screen.lease.replace(lease.clone());
        let line = match before {
            None => {
                let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
                let ways = ways(lease).join("\n  ");
                let stop = "Ctrl-C ends the waiting, and leaves the request as it is";
                format!("{}\n  {ways}\nwaiting up to {left}; {stop}", waits_for(lease))
            }
            Some(before) => {
                let new = lease.signatures.iter().skip(before.signatures.len());
                let new: Vec<_> = new.map(|it| it.person.as_str()).collect();
                if new.is_empty() {
                    return;
                }
                let missing = refusal::missing(lease);
                format!("signed by {}; {missing} more to come", new.join(", "))
            }
        };
        screen.say(&line);
    }

    fn say(&self, line: &str) {
        self.0.screen().say(line);
    }

    fn longest_poll(&self) -> u64 {
        let several = |it: &Lease| 1 < refusal::missing(it);
        let several = self.0.screen().lease.as_ref().is_some_and(several);
        if several { SHORTER_POLL_SECONDS } else { LONG_POLL_SECONDS }
    }
}

impl Drop for Watch {
    /// From here on a signal ends the process as if we had never listened.
    fn drop(&mut self) {
        let mut screen = self.0.screen();
        screen.erase();
        screen.over = true;
    }
}

impl Shared {
    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process at once, whatever it waits for. The lock is held to the end: nothing is claimed meanwhile.
    fn interrupted(&self, signal: i32) {
        if HANDED_OVER.load(Ordering::SeqCst) {
            return;
        }
        let mut screen = self.screen();
        if screen.over {
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            return;
        }
        screen.erase();
        let failure = match screen.lease.take() {
            Some(lease) => Failure::lease(lease),
            None => Failure::left_pending(self.id),
        };
        std::process::exit(output::end(&failure, self.format).into());
    }

    fn spin(&self) {
        for frame in ['|', '/', '-', '\\'].iter().cycle() {
            {
                let mut screen = self.screen();
                if screen.over {
                    return;
                }
                let left = self.deadline.saturating_duration_since(Instant::now());
                let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
                let line = format!("{frame} waiting for a signature, {left} left");
                let _ =
                    write!(std::io::stderr().lock(), "\r{line:<SPINNER_WIDTH$.SPINNER_WIDTH$}\r");
                screen.drawn = true;
            }
            std::thread::sleep(FRAME);
        }
    }
}

impl Screen {
    fn say(&mut self, text: &str) {
        self.erase();
        for line in text.lines() {
            output::note(&words(line));
        }
    }

    /// With blanks: no terminal takes those for anything else.
    fn erase(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(std::io::stderr().lock(), "\r{:SPINNER_WIDTH$}\r", "");
        }
    }
}
