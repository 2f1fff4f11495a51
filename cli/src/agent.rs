//! For agents: asks for leases, looks at them, takes them back.

use std::time::Duration;

use broker::lease::{LeaseId, LeaseState};
use broker::problem::Kind;
use broker::wire::{Credentials, Explanation, Lease, LeasePage, LeaseRequest, ScopeList, WhoAmI};
use clap::Args;
use serde_json::json;

use crate::Context;
use crate::client::Client;
use crate::output::{self, Failure, Format, Result};
use crate::source::Leased;
use crate::wait;

/// Small enough that a page of leases with long ceilings fits into one answer.
const PAGE: usize = 25;

/// Asks for a lease on a scope
///
/// Read-only and staging scopes are issued at once. Others wait for people to sign: the command then says who may,
/// and ends with exit code 3, or waits for them with --wait. Asked again in the same words, it answers the lease that
/// is open already: whoever asks twice waits on one.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker lease --scope staging-ro
  eval \"$(broker lease --scope staging-rw --task OPS-7 --reason 'fix the job' -o env)\"
  broker lease --scope prod-rw --action s3:PutObject --resource arn:aws:s3:::app/config.json \\
      --reason 'roll the flag back' --rollback 'put version 41 back' --wait 10m

With -o env and nothing issued, old credentials are unset and the last command is `false`.")]
pub(crate) struct LeaseArgs {
    /// The scope, as `broker scopes` lists it
    #[arg(long)]
    scope: String,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    patience: Patience,
    /// Another lease, even if one is open that this task asked for in the same words
    #[arg(long)]
    new: bool,
}

/// What is asked for within a scope.
#[derive(Args, Clone)]
pub(crate) struct Ask {
    /// What the work is: a ticket or run id [default: the token's task]
    #[arg(long)]
    task: Option<String>,
    /// Why, in words; signed tiers need it
    #[arg(long)]
    reason: Option<String>,
    /// An IAM action, such as s3:PutObject, or s3:Get* where nobody signs; repeat for more [default: all of the scope's, where nobody signs]
    #[arg(long = "action", value_name = "ACTION")]
    actions: Vec<String>,
    /// An ARN; repeat for more [default: all of the scope's, where nobody signs]
    #[arg(long = "resource", value_name = "ARN")]
    resources: Vec<String>,
    /// How long, such as 15m or 2h [default: 15m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,
    /// How it would be undone, in words; signed tiers need it
    #[arg(long, value_name = "TEXT")]
    rollback: Option<String>,
}

#[derive(Args)]
pub(crate) struct Patience {
    /// How long to wait for signatures, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
}

/// Shows what a request would come to, and why, without making it
///
/// Nothing is asked for and nobody is told: the exit code is 0 whatever the answer. `-o json` has the session
/// policy that AWS would enforce.
#[derive(Args)]
#[command(after_help = "\
Example:
  broker explain --scope prod-rw --action s3:PutObject --resource arn:aws:s3:::app/config.json --reason r --rollback b")]
pub(crate) struct ExplainArgs {
    /// The scope, as `broker scopes` lists it
    #[arg(long)]
    scope: String,
    #[command(flatten)]
    ask: Ask,
}

/// Prints a lease's credentials, as AWS tools read them from a `credential_process`
///
/// With --scope it asks for a lease first, in one request. AWS tools start it whenever they need credentials, and show
/// what it says where there are none: who has to sign, or why not. `broker profile add` writes it into ~/.aws/config.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker credentials --scope staging-ro
  broker credentials --lease 0198c0de-0000-7000-8000-000000000000")]
pub(crate) struct CredentialsArgs {
    /// A lease that was asked for before
    #[arg(long, value_name = "ID", required_unless_present = "scope")]
    #[arg(conflicts_with_all = ["scope", "task", "reason", "actions", "resources", "ttl", "rollback"])]
    lease: Option<LeaseId>,
    /// The scope of a lease, as `broker scopes` lists it
    #[arg(long)]
    scope: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

/// Lists leases, newest first
#[derive(Args)]
pub(crate) struct LeasesArgs {
    /// Only those in this state, such as pending or issued
    #[arg(long)]
    state: Option<LeaseState>,
    /// Only this agent's
    #[arg(long)]
    agent: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Shows one lease
#[derive(Args)]
pub(crate) struct ShowArgs {
    /// The lease
    id: LeaseId,
}

/// Takes back a lease that was not used
#[derive(Args)]
pub(crate) struct WithdrawArgs {
    /// The lease
    id: LeaseId,
    /// Why, in words
    #[arg(long)]
    reason: Option<String>,
}

/// `15m`, `2h`, `1h 30m`: whole seconds that fit the wire.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like 15m or 2h"))?;
    match u32::try_from(length.as_secs()) {
        Ok(1..) if length.subsec_nanos() == 0 => Ok(length),
        _ => Err("expected whole seconds, at least one; write it like 15m or 2h".to_owned()),
    }
}

pub(crate) fn lease(context: &Context, args: LeaseArgs) -> Result<()> {
    let client = context.as_agent()?;
    let deliver = context.format.holds_credentials();
    let mut lease = ask(&client, &args.ask.request(args.scope, deliver, !args.new))?;
    if let (LeaseState::Pending, Some(wait)) = (lease.state, args.patience.wait) {
        let (id, receipt) = (lease.id, lease.receipt.clone());
        lease = Lease { receipt, ..wait::for_people(context, &client, id, Some(lease), wait)? };
    }
    if deliver {
        return print_credentials(context.format, &delivered(&client, lease)?.credentials);
    }
    let lease = usable(lease)?;
    context.print(|| output::lease_text(&lease), || output::lease_json(&lease))?;
    let id = lease.id;
    let next = lease.next.unwrap_or_else(|| format!("`broker exec --lease {id} -- COMMAND`"));
    output::note(&format!("next: {}", broker::render::words(&next)));
    Ok(())
}

pub(crate) fn credentials(context: &Context, args: CredentialsArgs) -> Result<()> {
    if !context.format.holds_credentials() {
        return Err(Failure::invalid(
            "credentials are printed neither as text nor as plain JSON, where they would stay in a transcript",
            "Leave -o out, or use `-o env`; `broker show ID` shows the lease.",
        ));
    }
    let client = context.as_agent()?;
    let credentials = match (args.lease, args.scope) {
        (Some(id), _) => claim(&client, id)?,
        (None, scope) => {
            let request = args.ask.request(scope.expect("clap requires one of them"), true, true);
            delivered(&client, ask(&client, &request)?)?.credentials
        }
    };
    print_credentials(context.format, &credentials)
}

pub(crate) fn leases(context: &Context, args: &LeasesArgs) -> Result<()> {
    let page = list(&context.as_reader()?, args.state, args.agent.as_deref(), args.limit)?;
    let rows = || page.leases.iter().map(output::lease_row).collect::<Vec<_>>();
    context.print(|| output::table(output::LEASE_COLUMNS, &rows()), || output::pretty(&page))?;
    if page.next_cursor.is_some() {
        output::note("There are more; ask for them with a larger --limit.");
    }
    Ok(())
}

pub(crate) fn show(context: &Context, args: &ShowArgs) -> Result<()> {
    let lease: Lease = context.as_reader()?.get(&format!("/v1/leases/{}", args.id), &[])?;
    print_lease(context, &lease)
}

pub(crate) fn withdraw(context: &Context, args: &WithdrawArgs) -> Result<()> {
    let path = format!("/v1/leases/{}/withdraw", args.id);
    let lease: Lease = context.as_agent()?.post(&path, &json!({ "reason": args.reason }))?;
    print_lease(context, &lease)
}

pub(crate) fn scopes(context: &Context) -> Result<()> {
    let list: ScopeList = context.as_reader()?.get("/v1/scopes", &[])?;
    context.print(|| output::scopes_text(&list.scopes), || output::pretty(&list))
}

pub(crate) fn explain(context: &Context, args: ExplainArgs) -> Result<()> {
    let request = args.ask.request(args.scope, false, false);
    let answer: Explanation = context.as_agent()?.post("/v1/explain", &request)?;
    context.print(|| output::explanation_text(&answer), || output::pretty(&answer))
}

pub(crate) fn whoami(context: &Context) -> Result<()> {
    let who: WhoAmI = context.as_reader()?.get("/v1/whoami", &[])?;
    context.print(|| output::whoami_text(&who), || output::pretty(&who))
}

pub(crate) fn print_lease(context: &Context, lease: &Lease) -> Result<()> {
    context.print(|| output::lease_text(lease), || output::lease_json(lease))
}

/// Up to `limit` leases that the caller may see, newest first.
pub(crate) fn list(
    client: &Client,
    state: Option<LeaseState>,
    agent: Option<&str>,
    limit: usize,
) -> Result<LeasePage> {
    let mut all = LeasePage { leases: Vec::new(), next_cursor: None };
    while all.leases.len() < limit {
        let size = PAGE.min(limit - all.leases.len()).to_string();
        let after = all.next_cursor.map(|id| id.to_string());
        let mut query = vec![("limit", size.as_str())];
        query.extend(state.map(|it| ("state", it.as_str())));
        query.extend(agent.map(|it| ("agent", it)));
        query.extend(after.as_deref().map(|it| ("after", it)));
        let page: LeasePage = client.get("/v1/leases", &query)?;
        let empty = page.leases.is_empty();
        all.leases.extend(page.leases.into_iter().map(|it| Lease { credentials: None, ..it }));
        all.next_cursor = page.next_cursor;
        if empty || all.next_cursor.is_none() {
            break;
        }
    }
    Ok(all)
}

impl Ask {
    pub(crate) fn request(self, scope: String, deliver: bool, join: bool) -> LeaseRequest {
        LeaseRequest {
            scope,
            task: self.task,
            reason: self.reason,
            actions: Some(self.actions).filter(|it| !it.is_empty()),
            resources: Some(self.resources).filter(|it| !it.is_empty()),
            ttl_seconds: self
                .ttl
                .map(|it| u32::try_from(it.as_secs()).expect("the parser saw to it")),
            rollback: self.rollback,
            deliver,
            join,
        }
    }
}

pub(crate) fn ask(client: &Client, request: &LeaseRequest) -> Result<Lease> {
    client.post_again("/v1/leases", request)
}

pub(crate) fn claim(client: &Client, id: LeaseId) -> Result<Credentials> {
    let answer = client.post_again(&format!("/v1/leases/{id}/credentials"), &json!({}));
    answer.map_err(|failure: Failure| match failure.kind {
        Some(Kind::Pending) => {
            // The answer has the lease's id alone; who can sign is what the caller needs.
            match client.get::<Lease>(&format!("/v1/leases/{id}"), &[]) {
                Ok(lease) if lease.state == LeaseState::Pending => failure.waiting_for(&lease),
                _ => failure,
            }
        }
        _ => failure,
    })
}

/// The lease, if it is good for credentials.
fn usable(lease: Lease) -> Result<Lease> {
    match lease.state {
        LeaseState::Approved | LeaseState::Issued => Ok(lease),
        _ => Err(Failure::lease(lease)),
    }
}

/// The credentials that came with the lease, or else those it gives.
pub(crate) fn delivered(client: &Client, lease: Lease) -> Result<Leased> {
    let lease = usable(lease)?;
    let id = lease.id;
    let credentials = lease.credentials.map_or_else(|| claim(client, id), Ok)?;
    let signed = 0 < lease.signatures_needed;
    let (account, ends_at) = (lease.account, lease.ends_at);
    Ok(Leased { id, account, ends_at, signed, credentials })
}

fn print_credentials(format: Format, credentials: &Credentials) -> Result<()> {
    output::data(&match format {
        Format::Env => output::env(credentials)?,
        _ => output::credential_process(credentials),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_whole_seconds_with_a_unit() {
        assert_eq!(duration("15m"), Ok(Duration::from_mins(15)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        for bad in ["", "15", "0s", "500ms", "-1m", "1000years", "soon"] {
            assert!(duration(bad).unwrap_err().contains("15m"), "{bad}");
        }
    }
}
