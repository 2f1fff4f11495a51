//! For workloads: the token that their platform gave them for a task token of the broker's.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use broker::wire::{IssuedToken, JWT, StartedTask, TOKEN_EXCHANGE};
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::Context;
use crate::act::{self, NewFile};
use crate::client::Client;
use crate::output::{Failure, Result};
use crate::settings::BrokerUrl;

/// Longer than any token that the broker reads.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// Exchanges the token of a workload for a task token, and prints that
///
/// For what runs where no sponsor signs: Kubernetes, GitHub Actions, GitLab, SPIFFE. The platform vouches for the workload; the
/// broker's configuration says which agent it is, and who stands behind it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  eval \"$(broker task exchange --workload-token /var/run/secrets/broker/token -o env)\"    Kubernetes, SPIFFE
  eval \"$(broker task exchange --github -o env)\"                                          GitHub Actions
  eval \"$(printenv BROKER_JWT | broker task exchange --workload-token - -o env)\"          GitLab: id_tokens")]
pub(crate) struct ExchangeArgs {
    /// The file that has the workload's token; `-` reads it from standard input
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "github",
        conflicts_with = "github"
    )]
    workload_token: Option<PathBuf>,
    /// Ask GitHub Actions for the workload's token; the job needs `permissions: id-token: write`
    #[arg(long)]
    github: bool,
    /// The audience that GitHub's token is for [default: the broker's URL]
    #[arg(long, value_name = "URL", requires = "github")]
    audience: Option<String>,
    /// Write the task token to this file, for its owner alone to read, instead of printing it
    #[arg(long, value_name = "FILE")]
    write_token: Option<PathBuf>,
}

pub(crate) fn exchange(context: &Context, args: &ExchangeArgs) -> Result<()> {
    act::refuse_credential_process(context)?;
    let file = args.write_token.as_deref().map(NewFile::beside).transpose()?;
    let subject_token = match &args.workload_token {
        Some(path) => read(path)?,
        None => ask_github(context, args)?,
    };
    let form = [
        ("grant_type", TOKEN_EXCHANGE),
        ("subject_token_type", JWT),
        ("subject_token", subject_token.expose_secret()),
    ];
    let client = Client::new(&context.settings.url, None)?;
    let issued: IssuedToken = client.post_form("/v1/token", &form)?;
    let task = StartedTask {
        id: issued.task_id,
        agent: issued.agent,
        sponsor: issued.sponsor,
        task: issued.task,
        token: issued.access_token,
        expires_at: issued.expires_at,
    };
    act::hand_over(context, Some(task), None, file)
}

fn read(path: &Path) -> Result<SecretString> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Failure::invalid(
            format!("the workload's token cannot be read from {}: {error}", path.display()),
            "Name the file that the platform puts it in, or `-`.",
        )
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Failure::invalid(
            format!("there is no token in {}", path.display()),
            "Name the file that the platform puts it in, or `-`.",
        ));
    }
    Ok(token.into())
}

/// GitHub's own protocol: the job's environment has an URL, and a token for it alone.
fn ask_github(context: &Context, args: &ExchangeArgs) -> Result<SecretString> {
    #[derive(Deserialize)]
    struct Answer {
        value: SecretString,
    }
    let outside = || {
        Failure::invalid(
            "this is no job of GitHub Actions that may ask for a token",
            "Give the job `permissions: id-token: write`; elsewhere name the token with --workload-token.",
        )
    };
    let (url, bearer) = context.settings.github_job().ok_or_else(outside)?;
    let (base, path) = url
        .split_once("://")
        .and_then(|(scheme, rest)| {
            let (host, path) = rest.split_once('/')?;
            Some((format!("{scheme}://{host}"), format!("/{path}")))
        })
        .ok_or_else(outside)?;
    // Checks the scheme, as for the broker: a token goes over TLS, or stays on this machine.
    let base: BrokerUrl = base.parse()?;
    let audience = args.audience.clone().unwrap_or_else(|| context.settings.url.to_string());
    let answer = Client::new(&base, Some(bearer))?.get(&path, &[("audience", &audience)]);
    // Nothing is wrong with the broker then.
    let answer: Answer = answer.map_err(|failure| {
        Failure::unexpected(
            format!("GitHub Actions gave no token: {}", failure.refusal().detail),
            "Give the job `permissions: id-token: write`, and run it again. No other credential stands in for it.",
        )
    })?;
    Ok(answer.value)
}
