//! For agents: asks for leases, runs commands with them, looks at them, takes them back.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use broker::lease::{LeaseId, LeaseState};
use broker::problem::Kind;
use broker::wire::{Credentials, Explanation, Lease, LeasePage, LeaseRequest, ScopeList, WhoAmI};
use clap::Args;
use serde_json::json;

use crate::Context;
use crate::client::Client;
use crate::output::{self, Failure, Format, Result};

/// How long the broker holds one answer back while nothing changes.
const LONG_POLL_SECONDS: u64 = 30;
/// Small enough that a page of leases with long ceilings fits into one answer.
const PAGE: usize = 25;

/// Asks for a lease on a scope
///
/// Read-only and staging scopes are issued at once. Others wait for people to sign: the command then says who may,
/// and ends with exit code 3, or waits for them with --wait.
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
}

/// What is asked for within a scope.
#[derive(Args)]
struct Ask {
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
struct Patience {
    /// How long to wait for signatures, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
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

/// Runs a command with a lease's credentials and no other AWS credentials
///
/// The command takes this one's place: its exit code and its output are what you see.
/// `AWS_REGION` and `AWS_ENDPOINT_URL` are kept; profiles and every other source of AWS credentials are not.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker exec --scope staging-ro -- aws s3 ls
  broker exec --lease 0198c0de-0000-7000-8000-000000000000 --wait 10m -- terraform apply")]
pub(crate) struct ExecArgs {
    /// A lease that was asked for before
    #[arg(long, value_name = "ID", required_unless_present = "scope")]
    #[arg(conflicts_with_all = ["scope", "task", "reason", "actions", "resources", "ttl", "rollback"])]
    lease: Option<LeaseId>,
    /// The scope of a new lease
    #[arg(long)]
    scope: Option<String>,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    patience: Patience,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Prints a lease's credentials, as AWS tools read them from a `credential_process`
#[derive(Args)]
#[command(after_help = "\
Example, in ~/.aws/config:
  [profile staging]
  credential_process = broker credentials --lease 0198c0de-0000-7000-8000-000000000000")]
pub(crate) struct CredentialsArgs {
    /// The lease
    #[arg(long, value_name = "ID")]
    lease: LeaseId,
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
    let mut lease = ask(&client, args.scope, args.ask, deliver)?;
    if let (LeaseState::Pending, Some(wait)) = (lease.state, args.patience.wait) {
        let receipt = lease.receipt;
        lease = Lease { receipt, ..wait_for_people(&client, lease.id, wait)? };
    }
    if deliver {
        return print_credentials(context.format, &delivered(&client, lease)?);
    }
    let lease = usable(lease)?;
    context.print(|| output::lease_text(&lease), || output::lease_json(&lease))?;
    let id = lease.id;
    let next = lease.next.unwrap_or_else(|| format!("`broker exec --lease {id} -- COMMAND`"));
    output::note(&format!("next: {}", broker::render::words(&next)));
    Ok(())
}

pub(crate) fn exec(context: &Context, args: ExecArgs) -> Result<()> {
    // First of all: a signed lease gives credentials once, too dear for a command that is not there.
    let inherited: Vec<_> = std::env::vars_os().collect();
    let (name, arguments) = args.command.split_first().expect("clap requires a command");
    let program = find_program(name, &inherited)?;

    let client = context.as_agent()?;
    let wait = args.patience.wait;
    let credentials = match (args.lease, args.scope) {
        (Some(id), _) => match (claim(&client, id), wait) {
            (Err(failure), Some(wait)) if failure.kind == Some(Kind::Pending) => {
                delivered(&client, wait_for_people(&client, id, wait)?)?
            }
            (answer, _) => answer?,
        },
        (None, scope) => {
            let mut lease =
                ask(&client, scope.expect("clap requires one of them"), args.ask, true)?;
            if let (LeaseState::Pending, Some(wait)) = (lease.state, wait) {
                lease = wait_for_people(&client, lease.id, wait)?;
            }
            delivered(&client, lease)?
        }
    };
    let environment = child_environment(inherited, &credentials);
    drop(credentials);
    let error =
        Command::new(&program).arg0(name).args(arguments).env_clear().envs(environment).exec();
    Err(Failure::invalid(
        format!("{} cannot be run: {error}", program.display()),
        "Correct the command. The lease is used; `broker leases` shows it.",
    ))
}

pub(crate) fn credentials(context: &Context, args: &CredentialsArgs) -> Result<()> {
    if !context.format.holds_credentials() {
        return Err(Failure::invalid(
            "credentials are printed neither as text nor as plain JSON, where they would stay in a transcript",
            "Leave -o out, or use `-o env`; `broker show ID` shows the lease.",
        ));
    }
    print_credentials(context.format, &claim(&context.as_agent()?, args.lease)?)
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
    let request = args.ask.request(args.scope, false);
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
    fn request(self, scope: String, deliver: bool) -> LeaseRequest {
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
            join: false,
        }
    }
}

fn ask(client: &Client, scope: String, ask: Ask, deliver: bool) -> Result<Lease> {
    client.post_again("/v1/leases", &ask.request(scope, deliver))
}

fn claim(client: &Client, id: LeaseId) -> Result<Credentials> {
    client.post_again(&format!("/v1/leases/{id}/credentials"), &json!({}))
}

/// The lease, if it is good for credentials.
fn usable(lease: Lease) -> Result<Lease> {
    match lease.state {
        LeaseState::Approved | LeaseState::Issued => Ok(lease),
        _ => Err(Failure::lease(lease)),
    }
}

/// The credentials that came with the lease, or else those it gives.
fn delivered(client: &Client, lease: Lease) -> Result<Credentials> {
    let lease = usable(lease)?;
    let id = lease.id;
    lease.credentials.map_or_else(|| claim(client, id), Ok)
}

/// Long-polls until the lease is no longer pending, or `wait` is over. Outlives a broker that is away for a while.
fn wait_for_people(client: &Client, id: LeaseId, wait: Duration) -> Result<Lease> {
    let deadline = Instant::now() + wait;
    let path = format!("/v1/leases/{id}");
    let resume = format!(
        "The lease {id} may still be signed; resume with `broker exec --lease {id} -- COMMAND`."
    );
    output::note(&format!(
        "lease {id} is pending; waiting up to {}",
        humantime::format_duration(wait)
    ));
    let mut pause = Duration::from_secs(1);
    let mut away = false;
    loop {
        let asked_at = Instant::now();
        let left = deadline.saturating_duration_since(asked_at);
        let seconds = left.as_secs().min(LONG_POLL_SECONDS).to_string();
        let rest = match client.get::<Lease>(&path, &[("wait_seconds", &seconds)]) {
            Ok(lease) => {
                if lease.state != LeaseState::Pending {
                    output::note(&format!("lease {id} is {}", lease.state));
                    return Ok(lease);
                }
                if left.is_zero() {
                    return Ok(lease);
                }
                if away {
                    output::note("the broker answers again");
                }
                (away, pause) = (false, Duration::from_secs(1));
                // A broker that does not hold its answer back is not asked more than once a second.
                Duration::from_secs(1).saturating_sub(asked_at.elapsed())
            }
            Err(failure) if failure.may_pass() && !left.is_zero() => {
                if !away {
                    output::note("the broker cannot be reached for now; still waiting");
                }
                away = true;
                let rest = failure.retry_after.unwrap_or(pause).max(pause);
                pause = (pause * 2).min(Duration::from_secs(15));
                rest
            }
            Err(failure) if failure.may_pass() => return Err(failure.with_next(resume)),
            Err(failure) => return Err(failure),
        };
        std::thread::sleep(rest.min(deadline.saturating_duration_since(Instant::now())));
    }
}

fn print_credentials(format: Format, credentials: &Credentials) -> Result<()> {
    output::data(&match format {
        Format::Env => output::env(credentials)?,
        _ => output::credential_process(credentials),
    })
}

/// Whether AWS tools would take credentials, or another identity, from this variable.
fn is_credential_source(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_CREDENTIAL_FILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_PROFILE",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SECRET_KEY",
        "AWS_SECURITY_TOKEN",
    ];
    const PREFIXES: &[&str] = &[
        "AWS_BEARER_TOKEN",
        "AWS_CONTAINER_",
        "AWS_ROLE_",
        "AWS_SESSION_",
        "AWS_SSO_",
        "AWS_WEB_IDENTITY_",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|it| name.starts_with(it))
}

/// The environment of the child: what we inherited, with these credentials as the only ones in reach.
fn child_environment(
    inherited: Vec<(OsString, OsString)>,
    credentials: &Credentials,
) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<_, _> = inherited
        .into_iter()
        .filter(|(name, _)| !name.to_str().is_some_and(is_credential_source))
        .collect();
    let region = ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .iter()
        .find_map(|it| environment.get(OsStr::new(it)).filter(|it| !it.is_empty()).cloned())
        .unwrap_or_else(|| credentials.region.clone().into());
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        let value = environment.entry(name.into()).or_default();
        if value.is_empty() {
            value.clone_from(&region);
        }
    }
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", credentials.access_key_id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key),
        ("AWS_SESSION_TOKEN", &credentials.session_token),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ] {
        environment.insert(name.into(), value.into());
    }
    environment
}

/// The file that `name` stands for: itself if it has a slash, or else the first executable along PATH.
fn find_program(name: &OsStr, environment: &[(OsString, OsString)]) -> Result<PathBuf> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    let missing = || {
        Failure::invalid(
            format!("there is no program `{}`; nothing was asked for", name.display()),
            "Correct the command behind `--`.",
        )
    };
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|it| is_program(it)).ok_or_else(missing);
    }
    let path = environment.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value);
    let folders = path.into_iter().flat_map(std::env::split_paths);
    folders
        .map(|it| it.join(name))
        .find(|it| !name.is_empty() && is_program(it))
        .ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::credentials;

    #[test]
    fn a_duration_is_whole_seconds_with_a_unit() {
        assert_eq!(duration("15m"), Ok(Duration::from_mins(15)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        for bad in ["", "15", "0s", "500ms", "-1m", "1000years", "soon"] {
            assert!(duration(bad).unwrap_err().contains("15m"), "{bad}");
        }
    }

    #[test]
    fn a_child_gets_this_leases_credentials_and_no_other_source() {
        let inherited = [
            ("PATH", "/bin"),
            ("AWS_PROFILE", "admin"),
            ("AWS_DEFAULT_PROFILE", "admin"),
            ("AWS_ACCESS_KEY_ID", "AKIAOLD"),
            ("AWS_SECRET_ACCESS_KEY", "old"),
            ("AWS_SESSION_TOKEN", "old"),
            ("AWS_SESSION_EXPIRATION", "old"),
            ("AWS_SECURITY_TOKEN", "old"),
            ("AWS_CREDENTIAL_EXPIRATION", "old"),
            ("AWS_ROLE_ARN", "old"),
            ("AWS_ROLE_SESSION_NAME", "old"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/old"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://old"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "old"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/old"),
            ("AWS_CONFIG_FILE", "/old"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:4566"),
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:4567"),
            ("AWS_CA_BUNDLE", "/ca.pem"),
            ("AWS_DEFAULT_REGION", "us-west-2"),
            ("BROKER_TOKEN", "kept"),
        ];
        let inherited = inherited.map(|(name, value)| (name.into(), value.into())).to_vec();
        let child = child_environment(inherited, &credentials());
        let expected = [
            ("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE"),
            ("AWS_CA_BUNDLE", "/ca.pem"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_DEFAULT_REGION", "us-west-2"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:4566"),
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:4567"),
            ("AWS_REGION", "us-west-2"),
            ("AWS_SECRET_ACCESS_KEY", "sec/ret+'quote$(x)"),
            ("AWS_SESSION_TOKEN", "token=="),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            ("BROKER_TOKEN", "kept"),
            ("PATH", "/bin"),
        ];
        let expected: BTreeMap<OsString, OsString> =
            expected.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        assert_eq!(child, expected);
        assert_eq!(
            child_environment(vec![], &credentials())["AWS_REGION".as_ref() as &OsStr],
            "eu-west-1"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_found_out_before_anything_is_asked_for() {
        let path = [("PATH".into(), "/nonexistent:/bin".into())];
        assert_eq!(find_program("sh".as_ref(), &path).unwrap(), Path::new("/bin/sh"));
        assert!(find_program("/bin/sh".as_ref(), &[]).is_ok());
        for name in ["no-such-program", "/etc/passwd", "", "/"] {
            assert_eq!(find_program(name.as_ref(), &path).unwrap_err().exit, 2, "{name}");
        }
    }
}
