//! Stopping: one lease, or whatever a freeze covers. Then waits until AWS is seen to refuse what it had issued.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use broker::lease::{FreezeKind, LeaseId, SessionState};
use broker::render;
use broker::wire::{Freeze, FreezeList, FreezeRequest, Lease, RevokeRequest, Session};
use clap::Args;
use uuid::Uuid;

use crate::agent::print_lease;
use crate::client::Client;
use crate::output::{self, Failure, Result};
use crate::{Context, now, sign};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Stops a lease: nothing is issued under it any more, and AWS refuses what was
#[derive(Args)]
#[command(
    after_help = "Example:\n  broker revoke 01a1fbfd-3545-7606-ae51-92561ad63577 --reason 'it deletes what it should not'"
)]
pub(crate) struct RevokeArgs {
    /// The lease
    id: LeaseId,
    /// Why, in words
    #[arg(long)]
    reason: String,
    /// Your key, if you are not logged in and no agent [default: `key` in the configuration]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    patience: Patience,
}

/// Freezes: nothing is issued to what it covers until another person thaws it, and AWS refuses what was
#[derive(Args)]
#[command(
    after_help = "Examples:\n  broker freeze --agent coder --reason 'it deletes what it should not'\n  broker freeze --all --reason 'nobody knows yet' --key ~/.ssh/id_ed25519_sk"
)]
pub(crate) struct FreezeArgs {
    #[command(flatten)]
    what: What,
    /// Why, in words
    #[arg(long)]
    reason: String,
    /// Your key, if you are not logged in [default: `key` in the configuration]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    patience: Patience,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Everything that an agent of this name holds and asks for
    #[arg(long)]
    agent: Option<String>,
    /// The same of all agents that this person stands behind
    #[arg(long, value_name = "PERSON")]
    sponsor: Option<String>,
    /// Everything on this scope
    #[arg(long)]
    scope: Option<String>,
    /// Everything in development, staging, production or backup
    #[arg(long)]
    environment: Option<String>,
    /// Everything
    #[arg(long)]
    all: bool,
}

impl What {
    fn request(self, reason: String) -> FreezeRequest {
        let named = [
            (FreezeKind::Agent, self.agent),
            (FreezeKind::Sponsor, self.sponsor),
            (FreezeKind::Scope, self.scope),
            (FreezeKind::Environment, self.environment),
        ];
        let named = named.into_iter().find_map(|(kind, target)| Some((kind, Some(target?))));
        let (kind, target) = named.unwrap_or((FreezeKind::All, None));
        FreezeRequest { kind, target, reason }
    }
}

#[derive(Args)]
struct Patience {
    /// How long to wait until AWS is seen to refuse; `0s` not at all
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

pub(crate) fn revoke(context: &Context, args: &RevokeArgs) -> Result<()> {
    let client = match &args.key {
        Some(key) => as_person(context, Some(key))?,
        None => context.as_person_or_agent()?,
    };
    let path = format!("/v1/leases/{}", args.id);
    let request = RevokeRequest { reason: args.reason.clone() };
    let mut lease: Lease = client.post(&format!("{path}/revoke"), &request)?;
    output::note(&format!("lease {} is revoked: nothing more is issued under it", lease.id));
    let open = |lease: &Lease| {
        lease.sessions.iter().filter(|it| it.state == SessionState::Revoking).count()
    };
    let left = args.patience.wait_for(open(&lease), "sessions", || {
        lease = Lease { receipt: lease.receipt.take(), ..client.get(&path, &[])? };
        Ok(open(&lease))
    });
    for it in &lease.sessions {
        output::note(&effect(it));
    }
    print_lease(context, &lease)?;
    finish(left?, "sessions", "`broker show ID` and the view stopped_sessions say when it does")
}

/// What became of a session at AWS.
fn effect(session: &Session) -> String {
    let key = render::name(session.access_key_id.as_deref().unwrap_or("without a key id"));
    match (session.state, session.revoking_at, session.stopped_at) {
        (SessionState::Stopped, Some(from), Some(at)) => {
            let region = render::name(session.stopped_region.as_deref().unwrap_or_default());
            let seconds = (at - from).as_seconds_f64();
            format!("session {key}: AWS refuses it, as {region} says, {seconds:.1} s after")
        }
        (SessionState::Revoking, ..) => {
            let until = session.expires_at.map(output::utc).unwrap_or_default();
            format!("session {key}: AWS was not yet seen to refuse it; it ends at {until}")
        }
        (state, ..) => format!("session {key}: {state}"),
    }
}

pub(crate) fn freeze(context: &Context, args: FreezeArgs) -> Result<()> {
    let client = as_person(context, args.key.as_deref())?;
    let request = args.what.request(args.reason);
    let mut freeze: Freeze = client.post("/v1/freezes", &request)?;
    output::note(&format!(
        "frozen: nothing more is issued; another person ends it with `broker thaw {}`",
        freeze.id
    ));
    let path = format!("/v1/freezes/{}", freeze.id);
    let mut left = args.patience.wait_for(count(freeze.not_yet_stopped), "sessions", || {
        freeze = Freeze { receipt: freeze.receipt.take(), ..client.get(&path, &[])? };
        Ok(count(freeze.not_yet_stopped))
    });
    let mut of_what = "sessions";
    // Sessions that the broker does not know of are refused by the roles' policies, too.
    if matches!(left, Ok(0)) {
        of_what = "roles";
        left = args.patience.wait_for(count(freeze.roles_not_told), of_what, || {
            freeze = Freeze { receipt: freeze.receipt.take(), ..client.get(&path, &[])? };
            Ok(count(freeze.roles_not_told))
        });
    }
    if let (0, Some(at)) = (freeze.not_yet_stopped, freeze.stopped_at) {
        let seconds = (at - freeze.created_at).as_seconds_f64();
        let sessions = freeze.sessions;
        output::note(&format!("AWS refuses all {sessions} sessions, {seconds:.1} s after"));
    }
    context.print(|| table(std::slice::from_ref(&freeze)), || output::pretty(&freeze))?;
    finish(
        left?,
        of_what,
        "`broker freezes` and the views stopped_sessions and role_stops say when it does",
    )
}

pub(crate) fn freezes(context: &Context) -> Result<()> {
    let list: FreezeList = as_person(context, None)?.get("/v1/freezes", &[])?;
    context.print(|| table(&list.freezes), || output::pretty(&list))
}

/// For whoever is logged in, or else holds the key.
fn as_person(context: &Context, key: Option<&Path>) -> Result<Client> {
    let kept = context.settings.login(now()).filter(|_| key.is_none());
    let token = match kept {
        Some(kept) => kept.token,
        None => sign::open_session(context, &sign::key(context, key)?)?.token,
    };
    Client::new(&context.settings.url, Some(&token.into()))
}

fn count(number: i64) -> usize {
    usize::try_from(number).unwrap_or_default()
}

impl Patience {
    /// Asks `left` again and again until nothing is left, or time is up. Returns what is left.
    fn wait_for(
        &self,
        open: usize,
        of_what: &str,
        mut left: impl FnMut() -> Result<usize>,
    ) -> Result<usize> {
        let deadline = Instant::now() + self.wait;
        let mut open = open;
        if 0 < open {
            output::note(&format!(
                "waiting up to {} until AWS refuses {open} {of_what}",
                humantime::format_duration(self.wait)
            ));
        }
        while 0 < open && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
            match left() {
                Ok(now) if now < open => {
                    open = now;
                    output::note(&format!("{open} left"));
                }
                Ok(now) => open = now,
                // It is stopped here whatever happens to the answer.
                Err(failure) if failure.may_pass() => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(open)
    }
}

fn finish(left: usize, of_what: &str, next: &str) -> Result<()> {
    if left == 0 {
        return Ok(());
    }
    Err(Failure::not_yet(
        format!("stopped here, but AWS was not yet seen to refuse {left} {of_what}"),
        format!(
            "The broker goes on trying; {next}. In a hurry, see the runbook: AWS is slow to forget."
        ),
    ))
}

fn table(freezes: &[Freeze]) -> String {
    let columns = ["freeze", "what", "since", "by", "sessions", "not yet stopped", "reason"];
    let rows: Vec<_> = freezes
        .iter()
        .map(|it| {
            let target = it.target.as_deref().map(render::name).unwrap_or_default();
            vec![
                Uuid::to_string(&it.id),
                format!("{} {target}", it.kind).trim_end().to_owned(),
                output::utc(it.created_at),
                render::name(&it.created_by),
                it.sessions.to_string(),
                it.not_yet_stopped.to_string(),
                render::words(&it.reason),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}
