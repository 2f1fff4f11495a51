//! `broker exec`: a command with a lease's credentials and no others, from an endpoint that renews them while it runs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use broker::lease::{LeaseId, LeaseState};
use broker::problem::Kind;
use broker::wire::{Lease, LeaseRequest};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::Context;
use crate::agent::{self, Ask, Patience};
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::output::{Failure, Result};
use crate::source::{Leased, Source};
use crate::wait;

/// Runs a command with a lease's credentials and no other AWS credentials
///
/// The command's exit code and its output are what you see. AWS tools in it take credentials from an endpoint on this
/// machine, which renews them while the command runs and is gone when it ends; the two variables that lead there are the
/// command's alone. `AWS_REGION` and `AWS_ENDPOINT_URL` are kept; profiles and every other source of AWS credentials are not.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker exec --scope staging-ro -- aws s3 ls
  broker exec --scope staging-ro --env -- ./old-tool
  broker exec --lease 0198c0de-0000-7000-8000-000000000000 --wait 10m -- terraform apply")]
pub(crate) struct ExecArgs {
    /// A lease that was asked for before
    #[arg(long, value_name = "ID", required_unless_present = "scope")]
    #[arg(conflicts_with_all = ["scope", "task", "reason", "actions", "resources", "ttl", "rollback"])]
    lease: Option<LeaseId>,
    /// The scope of a lease, as `broker scopes` lists it
    #[arg(long)]
    scope: Option<String>,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    patience: Patience,
    /// Another lease, even if one is open that this task asked for in the same words
    #[arg(long, conflicts_with = "lease")]
    new: bool,
    /// Plain variables instead of the endpoint, for tools that know no other way; they are not renewed
    #[arg(long)]
    env: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn exec(context: Context, args: ExecArgs) -> Result<()> {
    // First of all: a signed lease gives credentials once, too dear for a command that is not there.
    let inherited: Vec<_> = std::env::vars_os().collect();
    let (name, arguments) = args.command.split_first().expect("clap requires a command");
    let program = find_program(name, &inherited)?;
    let endpoint = if args.env { None } else { Some(Endpoint::open()?) };

    let client = context.as_agent()?;
    let request = args.scope.map(|it| args.ask.request(it, true, !args.new));
    let leased = match (args.lease, &request) {
        (Some(id), _) => claimed(&context, &client, id, &args.patience)?,
        (None, request) => asked(
            &context,
            &client,
            request.as_ref().expect("clap requires one of them"),
            &args.patience,
        )?,
    };
    let region = leased.credentials.region.clone();
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments).env_clear();
    let Some(endpoint) = endpoint else {
        let it = &leased.credentials;
        let variables = [
            ("AWS_ACCESS_KEY_ID", it.access_key_id.as_str()),
            ("AWS_SECRET_ACCESS_KEY", &it.secret_access_key),
            ("AWS_SESSION_TOKEN", &it.session_token),
        ];
        command.envs(child_environment(inherited, &region, &variables));
        drop(leased);
        return Err(cannot_run(&program, &command.exec()));
    };
    let variables = endpoint.variables();
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    command.envs(child_environment(inherited, &region, &variables));
    endpoint.serve(Source::new(context, client, request, leased));
    match run(&mut command) {
        Ok(status) => std::process::exit(exit_code(status)),
        Err(error) => Err(cannot_run(&program, &error)),
    }
}

fn cannot_run(program: &Path, error: &std::io::Error) -> Failure {
    Failure::invalid(
        format!("{} cannot be run: {error}", program.display()),
        "Correct the command. The lease is used; `broker leases` shows it.",
    )
}

/// Credentials of the lease, and when its window ends.
fn claimed(context: &Context, client: &Client, id: LeaseId, patience: &Patience) -> Result<Leased> {
    let credentials = match (agent::claim(client, id), patience.wait) {
        (Err(failure), Some(wait)) if failure.kind == Some(Kind::Pending) => {
            return agent::delivered(client, wait::for_people(context, client, id, None, wait)?);
        }
        (answer, _) => answer?,
    };
    // What was claimed is not given up because this cannot be read.
    let lease = client.get::<Lease>(&format!("/v1/leases/{id}"), &[]).ok();
    let (account, ends_at) = lease.map(|it| (it.account, it.ends_at)).unwrap_or_default();
    Ok(Leased { id, account, ends_at, signed: false, credentials })
}

fn asked(
    context: &Context,
    client: &Client,
    request: &LeaseRequest,
    patience: &Patience,
) -> Result<Leased> {
    let mut lease = agent::ask(client, request)?;
    if let (LeaseState::Pending, Some(wait)) = (lease.state, patience.wait) {
        lease = wait::for_people(context, client, lease.id, Some(lease), wait)?;
    }
    agent::delivered(client, lease)
}

/// Runs the command to its end. It gets the signals that we get, but for those that a terminal sends to both of us.
fn run(command: &mut Command) -> std::io::Result<ExitStatus> {
    let passed = [SIGHUP, SIGTERM, SIGUSR1, SIGUSR2];
    let ignored = wait::ignored_signals();
    // What `nohup` or a shell ignores for us, the command inherits as ignored; a handler of ours would undo that.
    let listened = passed.iter().chain(&[SIGINT, SIGQUIT]).filter(|it| !ignored.contains(it));
    let mut signals = Signals::new(listened.chain(&[SIGCHLD]))?;
    wait::hand_over_signals();
    let mut child = command.spawn()?;
    loop {
        for signal in signals.wait() {
            if signal == SIGCHLD {
                if let Some(status) = child.try_wait()? {
                    return Ok(status);
                }
            } else if passed.contains(&signal)
                && let Some(signal) = Signal::from_named_raw(signal)
            {
                // It has not been waited for, so the id is still its own.
                let _ = kill_process(Pid::from_child(&child), signal);
            }
        }
    }
}

/// The command's own exit code; as in a shell, 128 and the signal's number where one ended it.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1)
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

/// The environment of the child: what we inherited, with `credentials` as the only ones in reach.
fn child_environment(
    inherited: Vec<(OsString, OsString)>,
    region: &str,
    credentials: &[(&str, &str)],
) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<_, _> = inherited
        .into_iter()
        .filter(|(name, _)| !name.to_str().is_some_and(is_credential_source))
        .collect();
    let region = ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .iter()
        .find_map(|it| environment.get(OsStr::new(it)).filter(|it| !it.is_empty()).cloned())
        .unwrap_or_else(|| region.into());
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        let value = environment.entry(name.into()).or_default();
        if value.is_empty() {
            value.clone_from(&region);
        }
    }
    let nothing_else = [
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        // botocore asks `~/.boto` before the endpoint.
        ("BOTO_CONFIG", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    for (name, value) in credentials.iter().chain(&nothing_else) {
        environment.insert((*name).into(), (*value).into());
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

    const KEYS: [(&str, &str); 3] = [
        ("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "sec/ret+'quote$(x)"),
        ("AWS_SESSION_TOKEN", "token=="),
    ];

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
        let child = child_environment(inherited, "eu-west-1", &KEYS);
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
            ("BOTO_CONFIG", "/dev/null"),
            ("BROKER_TOKEN", "kept"),
            ("PATH", "/bin"),
        ];
        let expected: BTreeMap<OsString, OsString> =
            expected.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        assert_eq!(child, expected);
        assert_eq!(
            child_environment(vec![], "eu-west-1", &[])["AWS_REGION".as_ref() as &OsStr],
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
