//! Acts of authority beside the decision about a lease: a person has a statement drawn up, reads it, and signs.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker::lease::Decision;
use broker::problem::Kind;
use broker::render;
use broker::statement::act::{ActState, ActStatement};
use broker::wire::{
    Act, ActList, ActRequest, ActSignature, EndedTask, Receipt, SignedAct, StartedTask, WhoAmI,
};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use tempfile::NamedTempFile;
use uuid::Uuid;

use crate::client::Client;
use crate::output::{self, Failure, Format, Result};
use crate::sign::{self, SignArgs};
use crate::{Context, now};

#[derive(Subcommand)]
pub(crate) enum TaskCommand {
    /// Starts a task of an agent's, by your signature: prints the token that the agent calls the broker with
    ///
    /// You stand behind what the agent does with it. The token asks for leases; it approves nothing.
    #[command(after_help = "\
Examples:
  broker task start --agent coder --task OPS-7 --write-token ~/.config/broker/token
  BROKER_TOKEN=$(broker task start --agent coder --task OPS-7) claude
  eval \"$(broker task start --agent coder --task OPS-7 -o env)\"")]
    Start(StartArgs),
    Exchange(crate::exchange::ExchangeArgs),
    /// Ends a task: its token, and every lease that is open under it
    #[command(after_help = "Example:\n  broker task end 01a1fbfd-3545-7606-ae51-92561ad63577")]
    End {
        /// The task, as `task start` named it; without it, the one of the agent's own token
        id: Option<Uuid>,
    },
}

#[derive(Args)]
pub(crate) struct StartArgs {
    /// What the agent is called
    #[arg(long)]
    agent: String,
    /// Ticket or run id
    #[arg(long)]
    task: String,
    /// How long the token is good
    #[arg(long, default_value = "8h", value_parser = crate::agent::duration)]
    ttl: Duration,
    /// Write the token to this file, for its owner alone to read, instead of printing it
    #[arg(long, value_name = "FILE")]
    write_token: Option<PathBuf>,
    /// Your key [default: `key` in the configuration]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Ends a freeze that somebody else ordered, by your signature
#[derive(Args)]
#[command(
    after_help = "Example:\n  broker thaw 01a1fbfd-3545-7606-ae51-92561ad63577 --key ~/.ssh/id_ed25519_sk"
)]
pub(crate) struct ThawArgs {
    /// The freeze
    id: Uuid,
    /// Your key [default: `key` in the configuration]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Revokes a key at once: one of your own, or as an admin anybody's. What it signed before stays signed
    #[command(after_help = "Example:\n  broker key revoke SHA256:… --key ~/.ssh/other_sk")]
    Revoke {
        /// `SHA256:…`, as `ssh-keygen -l` prints it
        fingerprint: String,
        /// The key to sign with [default: `key` in the configuration]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
}

pub(crate) fn task(context: &Context, command: &TaskCommand) -> Result<()> {
    match command {
        // So that the agent does not go on under an older task.
        TaskCommand::Start(args) => start(context, args)
            .map_err(|failure| failure.or_else_unset("unset BROKER_TOKEN; false\n")),
        TaskCommand::Exchange(args) => crate::exchange::exchange(context, args)
            .map_err(|failure| failure.or_else_unset("unset BROKER_TOKEN; false\n")),
        TaskCommand::End { id } => end(context, *id),
    }
}

fn start(context: &Context, args: &StartArgs) -> Result<()> {
    refuse_credential_process(context)?;
    let request = ActRequest::TaskStart {
        agent: args.agent.clone(),
        task: args.task.clone(),
        ttl_seconds: u32::try_from(args.ttl.as_secs()).expect("the parser saw to it"),
    };
    // Before anything is signed: a token that has nowhere to go would be lost.
    let file = args.write_token.as_deref().map(NewFile::beside).transpose()?;
    let signed = draw_up_and_sign(context, &request, args.key.as_deref())?;
    hand_over(context, signed.task, signed.receipt.as_ref(), file)
}

pub(crate) fn refuse_credential_process(context: &Context) -> Result<()> {
    if context.format == Format::CredentialProcess {
        return Err(Failure::invalid(
            "a task's token is no AWS credential",
            "Use `-o text`, `-o json` or `-o env`.",
        ));
    }
    Ok(())
}

/// Gives the token of a task that was started to whoever asked: in a file, to a shell, or as it is.
pub(crate) fn hand_over(
    context: &Context,
    task: Option<StartedTask>,
    receipt: Option<&Receipt>,
    file: Option<NewFile<'_>>,
) -> Result<()> {
    // It goes onto a terminal or into a shell: what is no token is neither printed nor evaluated.
    let is_token =
        |it: &str| it.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(&it));
    let Some(task) = task.filter(|it| is_token(&it.token)) else {
        return Err(Failure::unexpected(
            "the broker started a task and told no token",
            "End it with `broker task end`, and tell the broker's operators.",
        ));
    };
    output::note(&format!(
        "task {} of agent {} runs until {}; `broker task end {}` ends it",
        task.id,
        render::name(&task.agent),
        output::utc(task.expires_at),
        task.id
    ));
    if let Some(file) = file {
        return file.write(&format!("{}\n", task.token)).map_err(|error| {
            Failure::unexpected(
                format!("the token cannot be written: {error}"),
                format!("End the task with `broker task end {}`, and start another.", task.id),
            )
        });
    }
    if context.format == Format::Env {
        return output::data(&format!("export BROKER_TOKEN='{}'\n", task.token));
    }
    let told = Told { task: &task, receipt };
    context.print(|| format!("{}\n", task.token), || output::pretty(&told))
}

/// A task that was started, as `-o json` has it.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    task: &'a StartedTask,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<&'a Receipt>,
}

/// A file for its owner alone to read, that takes its place when it is whole. What was there stays until then.
pub(crate) struct NewFile<'a> {
    path: &'a Path,
    file: NamedTempFile,
}

impl<'a> NewFile<'a> {
    pub(crate) fn beside(path: &'a Path) -> Result<Self> {
        let dir = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let private = Permissions::from_mode(0o600);
        let file =
            tempfile::Builder::new().prefix(".broker-").permissions(private).tempfile_in(dir);
        file.map(|file| Self { path, file }).map_err(|error| {
            Failure::invalid(
                format!("{} cannot be written: {error}", path.display()),
                "Name a file in a folder of yours.",
            )
        })
    }

    fn write(mut self, text: &str) -> std::io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.file.as_file().sync_all()?;
        self.file.persist(self.path)?;
        Ok(())
    }
}

fn end(context: &Context, id: Option<Uuid>) -> Result<()> {
    let client = match id {
        Some(_) => context.as_person_or_agent()?,
        None => context.as_agent()?,
    };
    let id = match (id, &id) {
        (Some(id), _) => id,
        (None, _) => match client.get("/v1/whoami", &[])? {
            WhoAmI::Agent { task_id, .. } => task_id,
            WhoAmI::Person { .. } => {
                return Err(Failure::invalid("a person has no task", "Name the task."));
            }
        },
    };
    let ended: EndedTask = client.post(&format!("/v1/tasks/{id}/end"), &json!({}))?;
    output::note(&format!("task {} has ended, with {} open leases", ended.id, ended.leases));
    context.print(String::new, || output::pretty(&ended))
}

pub(crate) fn thaw(context: &Context, args: &ThawArgs) -> Result<()> {
    let request = ActRequest::Thaw { freeze_id: args.id };
    let signed = draw_up_and_sign(context, &request, args.key.as_deref())?;
    print(context, signed)
}

pub(crate) fn key(context: &Context, command: &KeyCommand) -> Result<()> {
    let KeyCommand::Revoke { fingerprint, key } = command;
    let request = ActRequest::RevokeKey { fingerprint: fingerprint.clone() };
    let signed = draw_up_and_sign(context, &request, key.as_deref())?;
    print(context, signed)
}

/// What `broker sign` does with an id that is no lease's: shows the statement, and signs or refuses it.
pub(crate) fn sign(context: &Context, act: &Act, args: &SignArgs) -> Result<()> {
    let sealed = open(act)?;
    if sealed.terms().id != args.id.0 {
        return Err(Failure::unexpected(
            "the broker answered with another statement, and it is not signed",
            "Tell the broker's operators.",
        ));
    }
    let decision = args.decision();
    let meaning = sealed.terms().meaning(decision).ok_or_else(|| {
        Failure::invalid("this is not refused", "Do not sign it: it lapses by itself.")
    })?;
    show(context, &sealed, decision);
    let name = format!("statement-{}.dsse", act.id);
    if args.print {
        output::note(&sign::how_to_sign_elsewhere(args, meaning, &name));
        return output::bytes(&meaning.message(sealed.bytes()));
    }
    let signature = args.signature_over(context, meaning, sealed.bytes(), &name)?;
    let signed = send(context, &sealed, decision, signature, args.reason.clone())?;
    print(context, signed)
}

/// What waits for a signature of this person's, or concerns them otherwise. An agent has none.
pub(crate) fn open_acts(client: &Client) -> Result<Vec<Act>> {
    match client.get::<ActList>("/v1/statements", &[]) {
        Ok(list) => Ok(list.statements),
        Err(failure) if failure.kind == Some(Kind::Unauthenticated) => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

fn draw_up_and_sign(
    context: &Context,
    request: &ActRequest,
    key: Option<&Path>,
) -> Result<SignedAct> {
    let signing_key = sign::key(context, key)?;
    // Whoever names a key is the person whose key it is, whoever was logged in before.
    let kept = context.settings.login(now()).filter(|_| key.is_none());
    let ask = |token: String| -> Result<Act> {
        Client::new(&context.settings.url, Some(&token.into()))?
            .post("/v1/statements/drafts", request)
    };
    let act = match kept.map(|it| ask(it.token)) {
        // There is none, or it ended early.
        None => ask(sign::open_session(context, &signing_key)?.token)?,
        Some(Err(failure)) if failure.kind == Some(Kind::Unauthenticated) => {
            ask(sign::open_session(context, &signing_key)?.token)?
        }
        Some(answer) => answer?,
    };
    let sealed = open(&act)?;
    if !is_what_was_asked(&sealed, request) {
        return Err(Failure::unexpected(
            "the broker drew up something else than was asked, and it is not signed",
            "Tell the broker's operators.",
        ));
    }
    show(context, &sealed, Decision::Approve);
    let meaning = sealed.terms().meaning(Decision::Approve).expect("every act can be approved");
    let name = format!("statement-{}.dsse", act.id);
    let signature = sign::ssh_sign_named(&signing_key, meaning, sealed.bytes(), &name)?;
    send(context, &sealed, Decision::Approve, signature, None)
}

fn is_what_was_asked(sealed: &ActStatement, request: &ActRequest) -> bool {
    use broker::statement::act::{Act, Change};
    match (request, &sealed.terms().act) {
        (ActRequest::TaskStart { agent, task, ttl_seconds }, Act::TaskStart(it)) => {
            it.agent == *agent && it.task == *task && it.ttl_seconds == *ttl_seconds
        }
        (ActRequest::Thaw { freeze_id }, Act::Thaw(it)) => it.freeze_id == *freeze_id,
        (
            ActRequest::RevokeKey { fingerprint },
            Act::AdminChange(Change::RevokeKey { fingerprint: it, .. }),
        ) => it == fingerprint,
        _ => false,
    }
}

/// Believes nothing about a statement but its own bytes.
fn open(act: &Act) -> Result<ActStatement> {
    let wrong = |what: &str| {
        Failure::unexpected(
            format!("the statement is not what it has to be, and is not signed: {what}"),
            "Do not sign it by other means; tell the broker's operators.",
        )
    };
    let bytes = STANDARD.decode(&act.statement).map_err(|_| wrong("it is not base64"))?;
    let sealed = ActStatement::from_bytes(bytes).map_err(|error| wrong(&error.to_string()))?;
    if sealed.sha256() != act.sha256 || sealed.terms().id != act.id {
        return Err(wrong("it is another one"));
    }
    Ok(sealed)
}

fn show(context: &Context, sealed: &ActStatement, decision: Decision) {
    sign::heading(decision, context.settings.color);
    output::note(render::act::act(sealed).trim_end());
}

fn send(
    context: &Context,
    sealed: &ActStatement,
    decision: Decision,
    signature: String,
    reason: Option<String>,
) -> Result<SignedAct> {
    let request = ActSignature {
        id: sealed.terms().id,
        decision,
        signature,
        statement_sha256: Some(sealed.sha256()),
        reason,
    };
    // The signature itself says who sends it.
    Client::new(&context.settings.url, None)?.post("/v1/statements", &request)
}

fn print(context: &Context, signed: SignedAct) -> Result<()> {
    // Whatever came with it is for whoever starts a task, and shown to nobody else.
    let signed = SignedAct { task: None, ..signed };
    let act = &signed.act;
    output::note(&match (act.state, act.effective_at) {
        (ActState::Signed, Some(at)) => format!(
            "signed; it takes effect at {}, and can be refused until then: `broker sign {} --refuse --reason WHY`",
            output::utc(at),
            act.id
        ),
        (state, _) => format!("it is {state}"),
    });
    context.print(|| text(act), || output::pretty(&signed))
}

/// One act in lines.
pub(crate) fn text(act: &Act) -> String {
    let by = act.proposed_by.as_deref().unwrap_or("operator");
    let cooling = act.effective_at.filter(|_| act.state == ActState::Signed);
    let cooling = cooling.map(|at| format!("  takes effect at {}\n", output::utc(at)));
    format!(
        "{}  {} {}  {}  asked by {}  sign by {}\n{}",
        act.id,
        act.kind,
        render::name(act.about.as_deref().unwrap_or_default()),
        act.state,
        render::name(by),
        output::utc(act.sign_by),
        cooling.unwrap_or_default()
    )
}
