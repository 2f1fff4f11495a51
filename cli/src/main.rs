//! `broker`: the command line of the broker, for agents, signers and operations.
//!
//! stdout is data, stderr is words; what an agent prints becomes its transcript, so secrets are printed only when
//! the output format asks for them. Every command ends with an exit code that says what happened.

mod act;
mod agent;
mod approval;
mod audit;
mod client;
mod doctor;
mod endpoint;
mod exchange;
mod exec;
mod mcp;
mod output;
mod profile;
mod refusal;
mod settings;
mod sign;
mod source;
mod stop;
mod wait;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use time::OffsetDateTime;

use client::Client;
use output::{Failure, Format, Result};
use settings::{Global, Settings};

const HELP: &str = "\
Examples:
  broker scopes                                         what may I ask for?
  broker explain --scope prod-rw                        what would happen, and why?
  broker exec --scope staging-ro -- aws s3 ls           run one command with a lease's credentials
  broker profile add staging --scope staging-ro         a profile that leases on demand, for any AWS tool
  eval \"$(broker lease --scope staging-rw --task OPS-7 --reason 'fix the job' -o env)\"
  broker lease --scope prod-rw --action s3:PutObject --resource arn:aws:s3:::app/config.json \\
      --task OPS-7 --reason 'roll the flag back' --rollback 'put version 41 back' --wait 10m
  broker pending                                        what waits for a signature?
  broker sign ID --key ~/.ssh/id_ed25519_sk             read it, touch the key
  broker audit verify approval.json                     who approved what? needs no broker
  broker doctor                                         what could an agent do here without the broker?

Environment:
  BROKER_URL         where the broker is [default: http://localhost:8750]
  BROKER_TOKEN       the agent's token
  BROKER_TOKEN_FILE  file that holds it
  NO_COLOR           no colour

Configuration (optional): $XDG_CONFIG_HOME/broker/config.toml with `url`, `token_file` and `key`.

Exit codes:
  0 done                             5 refused by a signer
  1 unexpected                       6 expired, lapsed, revoked, withdrawn or frozen
  2 usage or invalid request         7 broker unreachable
  3 pending, not signed yet          8 not authenticated
  4 denied by the rules, not valid   9 try again later
`exec` has its command's; `doctor` has its own, which its help tells";

/// Asks for short-lived cloud credentials, and signs requests for them
#[derive(Parser)]
#[command(name = "broker", version, after_help = HELP, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Lease(agent::LeaseArgs),
    Exec(exec::ExecArgs),
    Credentials(agent::CredentialsArgs),
    /// Writes profiles for AWS tools that lease credentials on demand
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    Leases(agent::LeasesArgs),
    Show(agent::ShowArgs),
    Withdraw(agent::WithdrawArgs),
    /// Lists the scopes that may be asked for
    Scopes,
    Explain(agent::ExplainArgs),
    Mcp(mcp::McpArgs),
    /// Says who the broker takes the caller for
    Whoami,
    Sign(sign::SignArgs),
    Pending(sign::PendingArgs),
    Login(sign::LoginArgs),
    /// Starts and ends tasks of agents
    #[command(subcommand)]
    Task(act::TaskCommand),
    Revoke(stop::RevokeArgs),
    Freeze(stop::FreezeArgs),
    /// Lists the freezes that stand
    Freezes,
    Thaw(act::ThawArgs),
    /// Revokes keys
    #[command(subcommand)]
    Key(act::KeyCommand),
    /// Exports approvals
    #[command(subcommand)]
    Approval(approval::ApprovalCommand),
    /// Exports the log, proves events, and checks what was exported without the broker
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    Doctor(doctor::DoctorArgs),
    /// Prints a shell's completion script
    #[command(
        after_help = "Example:\n  broker completions bash > ~/.local/share/bash-completion/completions/broker"
    )]
    Completions {
        shell: Shell,
    },
    /// Prints the manual page, or that of one command
    #[command(after_help = "Example:\n  broker man lease | man -l -")]
    Man {
        command: Option<String>,
    },
}

impl Command {
    /// What to write when `-o` does not say.
    fn default_format(&self) -> Format {
        match self {
            Self::Credentials(_) => Format::CredentialProcess,
            // Standard output is the child's.
            Self::Exec(_) => Format::Text,
            // Standard output is the protocol's.
            Self::Mcp(_) => Format::Text,
            // The token alone, for a shell's `$(…)`.
            Self::Task(act::TaskCommand::Start(_) | act::TaskCommand::Exchange(_)) => Format::Text,
            Self::Login(args) if args.as_json => Format::Json,
            _ if std::io::stdout().is_terminal() => Format::Text,
            _ => Format::Json,
        }
    }

    /// Whether the command is about credentials, so that `-o env` and `-o credential-process` make sense.
    fn may_print_credentials(&self) -> bool {
        matches!(
            self,
            Self::Lease(_)
                | Self::Credentials(_)
                | Self::Task(act::TaskCommand::Start(_) | act::TaskCommand::Exchange(_))
        )
    }
}

/// What every command that talks to the broker works with.
pub(crate) struct Context {
    settings: Settings,
    format: Format,
}

impl Context {
    /// A client that speaks for the agent.
    fn as_agent(&self) -> Result<Client> {
        let Some(token) = self.settings.token()? else {
            return Err(Failure::unauthenticated(
                "there is no agent's token",
                "Set BROKER_TOKEN or BROKER_TOKEN_FILE to the token that your sponsor started for this task.",
            ));
        };
        Client::new(&self.settings.url, Some(&token))
    }

    /// A client that reads: for the agent, or else for the person who is logged in.
    fn as_reader(&self) -> Result<Client> {
        let token = match self.settings.token()? {
            Some(token) => Some(token),
            None => self.settings.login(now()).map(|it| it.token.into()),
        };
        if token.is_none() {
            return Err(Failure::unauthenticated(
                "there is neither an agent's token nor a person's session",
                "Agents set BROKER_TOKEN or BROKER_TOKEN_FILE; people run `broker login --key FILE`.",
            ));
        }
        Client::new(&self.settings.url, token.as_ref())
    }

    /// A client for the person who is logged in, or else for the agent.
    fn as_person_or_agent(&self) -> Result<Client> {
        match self.settings.login(now()) {
            Some(session) => Client::new(&self.settings.url, Some(&session.token.into())),
            None => self.as_reader(),
        }
    }

    fn print(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> String) -> Result<()> {
        output::data(&if self.format == Format::Text { text() } else { json() })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the edge: everything below takes the time from here"
)]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() && asks_for_env(&args) {
                let _ = output::data(&Failure::invalid("", "").data(Format::Env));
            }
            return ExitCode::from(u8::from(error.use_stderr()) * 2);
        }
    };
    let asked = cli.global.output;
    let format = asked.unwrap_or_else(|| cli.command.default_format());
    match run(cli, format) {
        Ok(exit) => ExitCode::from(exit),
        Err(failure) => ExitCode::from(output::end(&failure, format)),
    }
}

/// Runs the command: its exit code, when nothing failed.
fn run(cli: Cli, format: Format) -> Result<u8> {
    if format.holds_credentials() && !cli.command.may_print_credentials() {
        return Err(Failure::invalid(
            "this command has no credentials to print",
            "Use `-o text` or `-o json` here; `-o env` and `-o credential-process` go with `lease` and `credentials`.",
        ));
    }
    let context =
        || -> Result<Context> { Ok(Context { settings: Settings::load(&cli.global)?, format }) };
    let done = match cli.command {
        // What it finds is an exit code, and no failure.
        Command::Doctor(args) => return doctor::doctor(format, &args, now()),
        Command::Lease(args) => agent::lease(&context()?, args),
        Command::Exec(args) => exec::exec(context()?, args),
        Command::Credentials(args) => agent::credentials(&context()?, args),
        Command::Profile(command) => profile::profile(&context()?, command),
        Command::Leases(args) => agent::leases(&context()?, &args),
        Command::Show(args) => agent::show(&context()?, &args),
        Command::Withdraw(args) => agent::withdraw(&context()?, &args),
        Command::Scopes => agent::scopes(&context()?),
        Command::Explain(args) => agent::explain(&context()?, args),
        Command::Mcp(_) => mcp::serve(context()?),
        Command::Whoami => agent::whoami(&context()?),
        Command::Sign(args) => sign::sign(&context()?, &args),
        Command::Pending(args) => sign::pending(&context()?, &args),
        Command::Login(args) => sign::login(&context()?, &args),
        Command::Task(command) => act::task(&context()?, &command),
        Command::Revoke(args) => stop::revoke(&context()?, &args),
        Command::Freeze(args) => stop::freeze(&context()?, args),
        Command::Freezes => stop::freezes(&context()?),
        Command::Thaw(args) => act::thaw(&context()?, &args),
        Command::Key(command) => act::key(&context()?, &command),
        Command::Approval(approval::ApprovalCommand::Export(args)) => {
            approval::export(&context()?, &args)
        }
        // Neither settings nor a broker: whoever checks a file needs the file alone.
        Command::Audit(audit::AuditCommand::Verify(args)) => audit::verify(format, &args),
        Command::Audit(audit::AuditCommand::Export(args)) => audit::export(&context()?, &args),
        Command::Audit(audit::AuditCommand::Prove(args)) => audit::prove(context, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "broker", &mut script);
            output::bytes(&script)
        }
        Command::Man { command } => man(command.as_deref()),
    };
    done.map(|()| 0)
}

fn man(name: Option<&str>) -> Result<()> {
    let mut root = Cli::command();
    root.build();
    let page = match name {
        None => Some(&root),
        Some(name) => root.find_subcommand(name),
    };
    let page = page.ok_or_else(|| {
        let next = "`broker help` lists the commands.";
        Failure::invalid(format!("there is no command {:?}", name.unwrap_or_default()), next)
    })?;
    let mut roff = Vec::new();
    clap_mangen::Man::new(page.clone()).render(&mut roff).expect("writing to memory does not fail");
    output::bytes(&roff)
}

/// Whether a command line that could not be parsed asks for `-o env`: its reader evaluates what comes out.
fn asks_for_env(args: &[OsString]) -> bool {
    let args = args.iter().skip(1).map(|it| it.to_string_lossy()).take_while(|it| it != "--");
    let mut before = String::new();
    for arg in args {
        let joined = ["-oenv", "-o=env", "--output=env"].contains(&arg.as_ref());
        if joined || (arg == "env" && (before == "-o" || before == "--output")) {
            return true;
        }
        before = arg.into_owned();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_request_for_env_is_seen_in_any_spelling_but_not_in_the_childs_arguments() {
        let asks =
            |line: &str| asks_for_env(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in [
            "broker lease -o env",
            "broker -oenv lease",
            "broker lease --output=env --bad",
            "b -o=env",
        ] {
            assert!(asks(line), "{line}");
        }
        for line in
            ["broker exec --scope s -- x -o env", "broker lease -o json env", "broker lease"]
        {
            assert!(!asks(line), "{line}");
        }
    }

    #[test]
    fn there_is_no_flag_for_the_token() {
        assert!(Cli::try_parse_from(["broker", "scopes", "--token", "t"]).is_err());
        assert!(!Cli::command().get_arguments().any(clap::Arg::is_hide_set));
    }
}
