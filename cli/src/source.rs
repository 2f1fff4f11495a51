//! Credentials of a lease, kept in memory while they are good, and renewed when somebody asks for them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use broker::lease::{LeaseId, LeaseState};
use broker::problem::Kind;
use broker::wire::{Credentials, Lease, LeaseRequest};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::Context;
use crate::client::Client;
use crate::output::{self, Failure, Result, UNREACHABLE};
use crate::{agent, now};

/// What ends sooner is renewed. The broker hands the same session out again until then, and AWS SDKs ask at least this
/// early, botocore ten minutes earlier still.
const EARLY: time::Duration = time::Duration::minutes(5);
/// How long whoever asks waits for a renewal while the old credentials are good: the JavaScript SDK hangs up after a
/// second.
const SHORT: Duration = Duration::from_millis(500);
/// And when there are none: as long as a request to the broker may take.
const LONG: Duration = Duration::from_secs(45);
/// The broker is not asked again before that when it had nothing new.
const PAUSE: Duration = Duration::from_secs(1);

/// A lease with the credentials that it gave.
#[derive(Clone)]
pub(crate) struct Leased {
    pub(crate) id: LeaseId,
    pub(crate) account: Option<String>,
    /// When the lease's window ends; AWS refuses what is used later, however long its session lasts.
    pub(crate) ends_at: Option<OffsetDateTime>,
    /// Whether people signed it: it then gives once.
    pub(crate) signed: bool,
    pub(crate) credentials: Credentials,
}

/// Why there are no credentials, as an HTTP status and in the words of the broker.
#[derive(Clone)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

pub(crate) struct Source {
    context: Context,
    /// What to ask for when the lease's window is over. Nothing where people signed, or a lease was named.
    again: Option<LeaseRequest>,
    state: Mutex<State>,
    renewed: Condvar,
}

struct State {
    leased: Leased,
    /// Who got it: with the token of then.
    client: Arc<Client>,
    /// The broker has refused: what is in memory is not handed out any more.
    stopped: bool,
    refusal: Option<Refusal>,
    renewing: bool,
    pause: Option<Instant>,
}

impl State {
    /// When the credentials end, or the lease's window before them.
    fn end(&self) -> OffsetDateTime {
        let end = self.leased.credentials.expires_at;
        self.leased.ends_at.map_or(end, |it| it.min(end))
    }

    fn good_for(&self, length: time::Duration) -> bool {
        !self.stopped && now() + length < self.end()
    }

    /// The document of a container's credentials provider.
    /// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
    fn give(&self) -> Result<Value, Refusal> {
        if !self.good_for(time::Duration::ZERO) {
            let not_yet = || Refusal {
                status: 503,
                code: "not-yet",
                message: "the broker has not answered yet; ask again".to_owned(),
            };
            return Err(self.refusal.clone().unwrap_or_else(not_yet));
        }
        let it = &self.leased.credentials;
        let mut document = json!({
            "AccessKeyId": it.access_key_id,
            "SecretAccessKey": it.secret_access_key,
            "Token": it.session_token,
            "Expiration": output::utc(self.end()),
        });
        if let Some(account) = &self.leased.account {
            document["AccountId"] = json!(account);
        }
        Ok(document)
    }
}

impl Source {
    /// `client` got the lease, in the words of `again` if there are any.
    pub(crate) fn new(
        context: Context,
        client: Client,
        again: Option<LeaseRequest>,
        leased: Leased,
    ) -> Arc<Self> {
        let again = again.filter(|_| !leased.signed);
        let client = Arc::new(client);
        let (refusal, pause) = (None, None);
        let state = State { leased, client, stopped: false, refusal, renewing: false, pause };
        Arc::new(Self { context, again, state: Mutex::new(state), renewed: Condvar::new() })
    }

    /// The credentials: those in memory until shortly before their end, then new ones. However many ask at once, the
    /// broker is asked once.
    pub(crate) fn give(self: &Arc<Self>) -> Result<Value, Refusal> {
        let mut state = self.state();
        if state.good_for(EARLY) {
            return state.give();
        }
        let paused = state.pause.is_some_and(|it| it.elapsed() < PAUSE);
        if !state.renewing && !paused {
            let source = Arc::clone(self);
            // Whoever asked may hang up before the broker has answered.
            let renewal = std::thread::Builder::new().spawn(move || source.renew());
            state.renewing = renewal.is_ok();
        }
        let patience = if state.good_for(time::Duration::ZERO) { SHORT } else { LONG };
        let waited = self.renewed.wait_timeout_while(state, patience, |it| it.renewing);
        waited.unwrap_or_else(PoisonError::into_inner).0.give()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self) {
        let answer = self.ask();
        let mut state = self.state();
        state.renewing = false;
        match answer {
            Ok((leased, client)) => {
                let key = |it: &Leased| it.credentials.access_key_id.clone();
                state.pause = (key(&state.leased) == key(&leased)).then(Instant::now);
                (state.leased, state.client, state.stopped) = (leased, client, false);
                if state.refusal.take().is_some() {
                    output::note("broker: credentials are given again");
                }
            }
            Err(failure) => {
                state.pause = Some(Instant::now());
                state.stopped |= stops(&failure);
                let refusal = refusal(&failure);
                if state.refusal.as_ref().is_none_or(|it| it.code != refusal.code) {
                    output::note(&format!("broker: no new credentials: {}", refusal.message));
                }
                state.refusal = Some(refusal);
            }
        }
        self.renewed.notify_all();
    }

    /// Another session of the lease; or, when its window ends before long, of another lease in the same words: the broker
    /// does not answer these with one that is as good as over. The token is read anew, as a task's may be followed by that of
    /// the next one, to which the lease does not belong.
    fn ask(&self) -> Result<(Leased, Arc<Client>)> {
        let (leased, before) = {
            let state = self.state();
            (state.leased.clone(), Arc::clone(&state.client))
        };
        let client = self.context.as_agent()?;
        let moved = !client.speaks_as(&before);
        let client = if moved { Arc::new(client) } else { before };
        let id = leased.id;
        let over = leased.ends_at.is_some_and(|it| it <= now() + EARLY);
        let Some(again) = self.again.as_ref().filter(|_| over || moved) else {
            let credentials = agent::claim(&client, id)?;
            return Ok((Leased { credentials, ..leased }, client));
        };
        // What somebody stopped is not asked for anew.
        let lease: Lease = client.get(&format!("/v1/leases/{id}"), &[])?;
        match lease.state {
            LeaseState::Approved | LeaseState::Issued | LeaseState::Expired => {
                Ok((agent::delivered(&client, agent::ask(&client, again)?)?, client))
            }
            _ => Err(Failure::lease(lease)),
        }
    }
}

/// Whether the broker has refused, so that what is in memory is not handed out any more either. That a signed lease gives
/// once stops nothing.
fn stops(failure: &Failure) -> bool {
    match failure.kind {
        Some(Kind::AlreadyIssued) => false,
        Some(Kind::RoleCutOff) => true,
        _ => (2..=6).contains(&failure.exit) || failure.exit == Kind::Unauthenticated.exit_code(),
    }
}

fn refusal(failure: &Failure) -> Refusal {
    let code = match (failure.kind, failure.exit) {
        (Some(kind), _) => kind.uri().trim_start_matches("/problems/"),
        (None, 3) => "pending",
        (None, 4) => "denied",
        (None, 5) => "refused",
        (None, 6) => "ended",
        (None, 8) => "unauthenticated",
        (None, UNREACHABLE) => "unreachable",
        (None, _) => "unexpected",
    };
    let refused = stops(failure) || failure.kind == Some(Kind::AlreadyIssued);
    let words = failure.words();
    let message = words.trim().trim_start_matches("error: ").replace('\n', "; ");
    Refusal { status: if refused { 403 } else { 503 }, code, message }
}
