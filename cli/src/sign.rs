//! For signers: what waits, the exact statement, the key's touch. A login reads; only a signature approves.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker::lease::{ActionClass, Assurance, Decision, LeaseId, LeaseState, Tier};
use broker::problem::Kind;
use broker::render::{name, words};
use broker::statement::{LeaseStatement, Meaning};
use broker::verify::{
    Demand, EnrolledKey, SK_APPLICATION, UnverifiedSignature, check_signature, message_file_name,
};
use broker::wire::{
    Act, Lease, LoginNonce, LoginRequest, LoginSession, SignatureRequest, StatementBytes,
};
use clap::Args;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};
use tempfile::TempDir;
use uuid::Uuid;

use crate::client::Client;
use crate::output::{self, Failure, Result};
use crate::{Context, act, agent, now};

const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Instead of a key's file: whichever ssh-agent holds.
pub(crate) const AGENT_KEY: &str = "agent";
const PENDING_AT_MOST: usize = 200;
/// The verifier takes no larger one.
const MAX_SIGNATURE_BYTES: u64 = 8 * 1024;

/// Shows the exact statement of a lease, or of a change of people, and signs it with your key
///
/// Nothing is asked but the key's own touch and PIN. For a destructive lease whoever asked for it tells you its
/// short code, which you type on a terminal; it is shown nowhere. Signing is done by `ssh-keygen`. The word `agent`
/// means the one security key in ssh-agent that is made for the broker; a .pub file, that key of ssh-agent's.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker sign ID --key ~/.ssh/id_ed25519_sk
  broker sign ID --key agent
  broker sign ID --key ~/.ssh/id_ed25519_sk --refuse --reason 'not during the sale'

With a key on another machine:
  broker sign ID --print > request
  ssh-keygen -Y sign -n lease-approval@broker -f KEY request
  broker sign ID --signature request.sig")]
pub(crate) struct SignArgs {
    /// The lease, or the statement that was proposed
    pub(crate) id: LeaseId,
    /// Your key [default: `key` in the configuration]
    #[arg(long, value_name = "FILE|agent")]
    key: Option<PathBuf>,
    /// Refuse instead of approve
    #[arg(long, requires = "reason")]
    refuse: bool,
    /// Why not; the agent reads it
    #[arg(long, requires = "refuse")]
    pub(crate) reason: Option<String>,
    /// Sign nothing: print the bytes to sign, and how
    #[arg(long, conflicts_with = "signature")]
    pub(crate) print: bool,
    /// Send a signature that was made elsewhere
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

/// Lists what waits for a signature: leases, and for people what else concerns them
#[derive(Args)]
pub(crate) struct PendingArgs {
    /// Go on until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Opens a person's session for reading; it approves nothing
#[derive(Args)]
#[command(after_help = "Example:\n  broker login --key ~/.ssh/id_ed25519_sk")]
pub(crate) struct LoginArgs {
    /// Your key [default: `key` in the configuration]
    #[arg(long, value_name = "FILE|agent")]
    key: Option<PathBuf>,
    /// The same as -o json
    #[arg(long)]
    pub(crate) as_json: bool,
}

pub(crate) fn login(context: &Context, args: &LoginArgs) -> Result<()> {
    let session = open_session(context, &key(context, args.key.as_deref())?)?;
    let until = output::utc(session.expires_at);
    context.print(
        || format!("logged in as {} until {until}\n", name(&session.person)),
        || output::pretty(&json!({ "person": session.person, "expires_at": until })),
    )
}

impl SignArgs {
    pub(crate) fn decision(&self) -> Decision {
        if self.refuse { Decision::Refuse } else { Decision::Approve }
    }

    /// A signature over `body`, made now or elsewhere.
    pub(crate) fn signature_over(
        &self,
        context: &Context,
        meaning: Meaning,
        body: &[u8],
        name: &str,
    ) -> Result<String> {
        match &self.signature {
            Some(file) => read_signature(file),
            None => ssh_sign_named(&key(context, self.key.as_deref())?, meaning, body, name),
        }
    }
}

pub(crate) fn sign(context: &Context, args: &SignArgs) -> Result<()> {
    let decision = args.decision();
    let meaning = Meaning::from(decision);
    let sealed = match fetch(context, args)? {
        Fetched::Lease(sealed) => sealed,
        Fetched::Act(act) => return act::sign(context, &act, args),
    };
    show(&sealed, decision, context.settings.color);
    let name = message_file_name(args.id);
    if args.print {
        output::note(&how_to_sign_elsewhere(args, meaning, &name));
        return output::bytes(&meaning.message(sealed.bytes()));
    }
    // What is signed says whether it is destructive: not the lease's JSON, not what is on the screen.
    if decision == Decision::Approve && sealed.terms().tier == Tier::Destructive {
        ask_for_the_code(&sealed.short_code())?;
    }
    let signature = args.signature_over(context, meaning, sealed.bytes(), &name)?;
    let request = SignatureRequest {
        decision,
        signature,
        statement_sha256: Some(sealed.sha256()),
        reason: args.reason.clone(),
    };
    // The signature itself says who sends it.
    let client = Client::new(&context.settings.url, None)?;
    let lease: Lease = client.post(&format!("/v1/leases/{}/signatures", args.id), &request)?;
    output::note(&format!(
        "{} sent: {} of {} signatures, the lease is {}",
        if args.refuse { "refusal" } else { "approval" },
        lease.signatures.len(),
        lease.signatures_needed,
        lease.state,
    ));
    agent::print_lease(context, &lease)
}

pub(crate) fn pending(context: &Context, args: &PendingArgs) -> Result<()> {
    let client = context.as_reader()?;
    let mut told = BTreeSet::new();
    loop {
        let mut waiting = match Waiting::now(&client) {
            Err(failure) if args.watch && failure.may_pass() => {
                output::note(failure.words().trim_end());
                std::thread::sleep(WATCH_EVERY);
                continue;
            }
            waiting => waiting?,
        };
        if !args.watch {
            return context.print(|| waiting.text(), || output::pretty(&waiting));
        }
        // Only what is new, so that a pipe or a person sees each once.
        let ids = waiting.ids();
        waiting.leases.retain(|it| !told.contains(&it.id.0));
        waiting.statements.retain(|it| !told.contains(&it.id));
        if !waiting.ids().is_empty() {
            context.print(|| waiting.text(), || waiting.lines())?;
        }
        told = ids;
        std::thread::sleep(WATCH_EVERY);
    }
}

/// What waits for signatures, as far as the caller may see it.
#[derive(Serialize)]
struct Waiting {
    leases: Vec<Lease>,
    next_cursor: Option<LeaseId>,
    /// Tasks, thaws and changes of people.
    statements: Vec<Act>,
}

impl Waiting {
    fn now(client: &Client) -> Result<Self> {
        let page = agent::list(client, Some(LeaseState::Pending), None, PENDING_AT_MOST)?;
        let statements = act::open_acts(client)?;
        Ok(Self { leases: page.leases, next_cursor: page.next_cursor, statements })
    }

    fn ids(&self) -> BTreeSet<Uuid> {
        let leases = self.leases.iter().map(|it| it.id.0);
        leases.chain(self.statements.iter().map(|it| it.id)).collect()
    }

    fn text(&self) -> String {
        let statements = self.statements.iter().map(act::text);
        pending_text(&self.leases) + &statements.collect::<String>()
    }

    /// JSON, a line each.
    fn lines(&self) -> String {
        let leases = self.leases.iter().map(serde_json::to_string);
        let all = leases.chain(self.statements.iter().map(serde_json::to_string));
        all.map(|it| it.expect("what came as JSON") + "\n").collect()
    }
}

/// The list of those who sign, and so without the codes that they have to be told.
fn pending_text(leases: &[Lease]) -> String {
    let now = now();
    let row = |lease: &Lease| match lease.tier {
        Some(Tier::Destructive) => {
            output::pending_row(&Lease { short_code: None, ..lease.clone() }, now)
        }
        _ => output::pending_row(lease, now),
    };
    let rows: Vec<_> = leases.iter().map(row).collect();
    output::table(output::PENDING_COLUMNS, &rows)
}

/// A key that signs, by a file: its own, or the public half of one that ssh-agent holds.
pub(crate) struct Key {
    path: PathBuf,
    /// Where the public half is, as long as it is needed.
    _dir: Option<TempDir>,
}

impl Deref for Key {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

/// The key that the command names, or else the configuration. Of ssh-agent's, if it is the word `agent`.
pub(crate) fn key(context: &Context, named: Option<&Path>) -> Result<Key> {
    let next = "Name it: `--key FILE`, `--key agent`, or `key` in the configuration file. A .pub file means \
                ssh-agent's key.";
    let Some(key) = named.or(context.settings.key.as_deref()) else {
        return Err(Failure::invalid("there is no key to sign with", next));
    };
    if key == Path::new(AGENT_KEY) {
        return agents_key();
    }
    match File::open(key) {
        Ok(_) => Ok(Key { path: key.to_owned(), _dir: None }),
        Err(error) => Err(Failure::invalid(
            format!("the key {} cannot be read: {error}", key.display()),
            next,
        )),
    }
}

/// The one key that ssh-agent holds for this.
fn agents_key() -> Result<Key> {
    let listed = Command::new("ssh-add").arg("-L").stdin(Stdio::null()).output();
    let listed = listed.map_err(|error| not_run("ssh-add", &error))?;
    // 1 means that it has no keys.
    if !listed.status.success() && listed.status.code() != Some(1) {
        return Err(Failure::invalid(
            format!(
                "there is no ssh-agent to ask for a key: {}",
                words(String::from_utf8_lossy(&listed.stderr).trim())
            ),
            "Start one (`eval \"$(ssh-agent)\"`) and add your key to it (`ssh-add KEY`), or name a file: `--key FILE`.",
        ));
    }
    let public = choose(&String::from_utf8_lossy(&listed.stdout))?;
    let dir = private_dir()?;
    let path = dir.path().join("agent.pub");
    fs::write(&path, public + "\n").map_err(|error| no_room(&error))?;
    Ok(Key { path, _dir: Some(dir) })
}

/// Chooses from what `ssh-add -L` lists: the security key that is made for the broker. Where there is no security key
/// at all, a plain one will do, which only a development broker takes.
fn choose(listed: &str) -> Result<String> {
    let keys: Vec<_> = listed.lines().filter_map(|it| PublicKey::from_openssh(it).ok()).collect();
    let application = |it: &PublicKey| match it.key_data() {
        KeyData::SkEd25519(key) => Some(key.application().to_owned()),
        KeyData::SkEcdsaSha2NistP256(key) => Some(key.application().to_owned()),
        _ => None,
    };
    let (hardware, plain): (Vec<_>, Vec<_>) =
        keys.into_iter().partition(|it| application(it).is_some());
    let candidates = if hardware.is_empty() {
        plain
    } else {
        let ours = |it: &PublicKey| application(it).as_deref() == Some(SK_APPLICATION);
        hardware.into_iter().filter(ours).collect()
    };
    match candidates.as_slice() {
        [one] => one.to_openssh().map_err(|error| {
            let next = "Name the key's file instead: `--key FILE`.";
            Failure::unexpected(format!("ssh-agent's key cannot be written: {error}"), next)
        }),
        [] => Err(Failure::invalid(
            format!("ssh-agent has no key with application {SK_APPLICATION}"),
            format!(
                "Add yours with `ssh-add FILE`. To make one: `ssh-keygen -t ed25519-sk -O application={SK_APPLICATION} \
                 -O verify-required`; then have it enrolled."
            ),
        )),
        many => {
            let list = many
                .iter()
                .map(|it| format!("\n{} {}", it.fingerprint(HashAlg::Sha256), name(it.comment())));
            Err(Failure::invalid(
                format!(
                    "ssh-agent has {} keys that could sign:{}",
                    many.len(),
                    list.collect::<String>()
                ),
                "Name one of them by its public key's file: `--key FILE.pub`.",
            ))
        }
    }
}

/// Logs in with `key`, and keeps the session.
pub(crate) fn open_session(context: &Context, key: &Path) -> Result<LoginSession> {
    let client = Client::new(&context.settings.url, None)?;
    let LoginNonce { nonce, .. } = client.post("/v1/login/nonce", &json!({}))?;
    let signature = ssh_sign_named(key, Meaning::Login, nonce.as_bytes(), "login.dsse")?;
    let session: LoginSession = client.post("/v1/login", &LoginRequest { nonce, signature })?;
    context.settings.keep_login(&session, now())?;
    Ok(session)
}

/// What there is to sign under an id.
enum Fetched {
    Lease(Box<LeaseStatement>),
    Act(Box<Act>),
}

/// Fetches a statement, and believes nothing about a lease's but its own bytes.
fn fetch(context: &Context, args: &SignArgs) -> Result<Fetched> {
    let key = || key(context, args.key.as_deref());
    let fetch = |token: SecretString| -> Result<Fetched> {
        let client = Client::new(&context.settings.url, Some(&token))?;
        let answer = client.get(&format!("/v1/leases/{}/statement", args.id), &[]);
        match answer {
            Ok(answer) => check_statement(args.id, &answer).map(|it| Fetched::Lease(Box::new(it))),
            Err(not_found) if not_found.kind == Some(Kind::NotFound) => client
                .get(&format!("/v1/statements/{}", args.id), &[])
                .map(|it| Fetched::Act(Box::new(it)))
                .map_err(|_| not_found),
            Err(failure) => Err(failure),
        }
    };
    match (context.settings.login(now()), key()) {
        (Some(session), key) => match (fetch(session.token.into()), key) {
            // Somebody else's session, or one that ended early.
            (Err(failure), Ok(key))
                if matches!(failure.kind, Some(Kind::Unauthenticated | Kind::NotFound)) =>
            {
                fetch(open_session(context, &key)?.token.into())
            }
            (answer, _) => answer,
        },
        (None, Ok(key)) => fetch(open_session(context, &key)?.token.into()),
        (None, Err(no_key)) => match context.settings.token()? {
            Some(token) => fetch(token),
            None => Err(no_key),
        },
    }
}

fn check_statement(id: LeaseId, answer: &StatementBytes) -> Result<LeaseStatement> {
    let wrong = |what: &str| {
        Failure::unexpected(
            format!("the statement is not what it has to be, and is not signed: {what}"),
            "Do not sign this lease by other means; tell the broker's operators.",
        )
    };
    let bytes = STANDARD.decode(&answer.statement).map_err(|_| wrong("it is not base64"))?;
    let sealed = LeaseStatement::from_bytes(bytes).map_err(|error| wrong(&error.to_string()))?;
    if sealed.sha256() != answer.sha256 || sealed.short_code() != answer.short_code {
        return Err(wrong("its SHA-256 or its short code is another"));
    }
    if sealed.terms().lease_id != id || answer.id != id {
        return Err(wrong("it is about another lease"));
    }
    Ok(sealed)
}

/// Says what a signature is going to mean.
pub(crate) fn heading(decision: Decision, color: bool) {
    let heading = match decision {
        Decision::Approve => "You are about to APPROVE",
        Decision::Refuse => "You are about to REFUSE",
    };
    output::note(&paint(color, "1", heading));
}

fn paint(color: bool, code: &str, text: &str) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn show(sealed: &LeaseStatement, decision: Decision, color: bool) {
    let paint = |code, text| paint(color, code, text);
    heading(decision, color);
    for line in broker::render::statement(sealed).lines() {
        output::note(&match line {
            line if is_destructive(line) => paint("31", line),
            line if is_unusual(line) => paint("33", line),
            line => line.to_owned(),
        });
    }
}

/// Whether a rendered line tells of destruction. The agent's words, in their box, never do.
fn is_destructive(line: &str) -> bool {
    !line.starts_with("  |")
        && (line.contains(ActionClass::Destructive.plain()) || line.contains("DESTRUCTIVE"))
}

/// Whether a rendered line warns of another account, or says that something is new.
fn is_unusual(line: &str) -> bool {
    !line.starts_with("  |")
        && (line.starts_with("  ^ ")
            || line.starts_with("  wider than ")
            || line.get(15..19) == Some("NEW "))
}

pub(crate) fn how_to_sign_elsewhere(args: &SignArgs, meaning: Meaning, file: &str) -> String {
    let refuse = if args.refuse { " --refuse --reason REASON" } else { "" };
    format!(
        "\nTo sign these bytes with stock OpenSSH, from a file (never from standard input, where a PIN prompt eats them):\n  \
         broker sign {id}{refuse} --print > {file}\n  \
         ssh-keygen -Y sign -n {namespace} -f KEY {file}\n  \
         broker sign {id}{refuse} --signature {file}.sig",
        id = args.id,
        namespace = meaning.namespace(),
    )
}

/// Has a person at a terminal type the short code, which whoever asked told them: so the two have spoken, and about
/// this very request. Nothing else is asked: a program can write to standard input, or set a variable.
fn ask_for_the_code(code: &str) -> Result<()> {
    let mut tty = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(|_| {
        Failure::invalid(
            "a destructive lease is approved on a terminal only, and there is none",
            "Run the command yourself, in a terminal.",
        )
    })?;
    let mut typed = String::new();
    let asked =
        write!(tty, "This is destructive. Whoever asked for it tells you its code. The code: ")
            .and_then(|()| BufReader::new(tty.take(100)).read_line(&mut typed));
    match asked {
        Ok(_) if is_code(&typed, code) => Ok(()),
        _ => Err(Failure::invalid(
            "that is not the code; nothing was signed",
            "Ask whoever wants this for its code, by another way than this screen. Theirs is another? Then this is \
             not what they asked for: refuse it with `--refuse --reason REASON`.",
        )),
    }
}

/// Whether they are one code, as a person hears and writes it: Crockford's base 32 has no letters O, I and L.
fn is_code(typed: &str, code: &str) -> bool {
    let bare = |text: &str| -> String {
        let signs = text.chars().filter(|it| !it.is_whitespace() && *it != '-');
        let digit = |it: char| match it.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        };
        signs.map(digit).collect()
    };
    !code.is_empty() && bare(typed) == bare(code)
}

fn read_signature(file: &Path) -> Result<String> {
    let next = "Make it with `ssh-keygen -Y sign`, as `--print` shows.";
    let unread =
        |error| Failure::invalid(format!("{} cannot be read: {error}", file.display()), next);
    let mut text = String::new();
    let opened = File::open(file).map_err(unread)?;
    opened.take(MAX_SIGNATURE_BYTES + 1).read_to_string(&mut text).map_err(unread)?;
    UnverifiedSignature::parse(&text)
        .map_err(|error| Failure::invalid(format!("{}: {error}", file.display()), next))?;
    Ok(text)
}

/// Signs by `ssh-keygen`, whose prompts for touch and PIN are the user's own. Returns the armored signature.
pub(crate) fn ssh_sign_named(
    key: &Path,
    meaning: Meaning,
    body: &[u8],
    name: &str,
) -> Result<String> {
    let dir = private_dir()?;
    let file = dir.path().join(name);
    // In a file and not on standard input: without a terminal, a PIN prompt reads there and the empty message is signed.
    fs::write(&file, meaning.message(body)).map_err(|error| no_room(&error))?;
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-Y", "sign", "-n", meaning.namespace(), "-f"])
        .arg(key)
        .arg(&file)
        .stdout(Stdio::null());
    let status = run_to_its_end(&mut command).map_err(|error| not_run("ssh-keygen", &error))?;
    if !status.success() {
        return Err(Failure::invalid(
            format!("ssh-keygen did not sign ({status}); nothing was sent"),
            "Its own words are above. Check the key file and that the security key is plugged in, then repeat.",
        ));
    }
    let signature = read_signature(&file.with_file_name(format!("{name}.sig")))?;
    check_own(key, meaning, body, &signature)?;
    Ok(signature)
}

/// A folder that nobody else reads, for as long as it lives.
fn private_dir() -> Result<TempDir> {
    let private = Permissions::from_mode(0o700);
    let dir = tempfile::Builder::new().prefix("broker-").permissions(private).tempdir();
    dir.map_err(|error| no_room(&error))
}

fn no_room(error: &std::io::Error) -> Failure {
    Failure::unexpected(
        format!("the message cannot be handed to ssh-keygen: {error}"),
        "Check that TMPDIR is a folder with room in it.",
    )
}

fn not_run(program: &str, error: &std::io::Error) -> Failure {
    let what = if error.kind() == ErrorKind::NotFound {
        format!("{program} is not installed")
    } else {
        format!("{program} cannot be run: {error}")
    };
    Failure::invalid(what, "Install OpenSSH's client programs (8.2 or later).")
}

/// Waits for `command` whatever signal comes, so that what it works on can be removed. Ctrl-C ends it by itself, as
/// it belongs to the same terminal; for a signal to us alone we end it.
fn run_to_its_end(command: &mut Command) -> std::io::Result<ExitStatus> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let hooks = [(SIGINT, &interrupted), (SIGHUP, &stop), (SIGTERM, &stop)]
        .map(|(signal, flag)| signal_hook::flag::register(signal, Arc::clone(flag)));
    let result = command.spawn().and_then(|mut child| {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if stop.swap(false, Ordering::Relaxed) {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    for hook in hooks.into_iter().flatten() {
        signal_hook::low_level::unregister(hook);
    }
    result
}

/// Finds out here, and not from the broker, that a key signs otherwise than it has to. Needs the public key's file.
fn check_own(key: &Path, meaning: Meaning, body: &[u8], signature: &str) -> Result<()> {
    let now = now();
    let mut public = key.as_os_str().to_owned();
    if key.extension().is_none_or(|it| it != "pub") {
        public.push(".pub");
    }
    let Ok(public_key) = fs::read_to_string(public) else { return Ok(()) };
    let key = EnrolledKey {
        public_key: public_key.trim().to_owned(),
        assurance: Assurance::Software,
        enrolled_at: now,
        revoked_at: None,
    };
    // An SSH signature names no origin.
    let demand = Demand { meaning, body, origin: "", assurance: Assurance::Software };
    let checked = UnverifiedSignature::parse(signature)
        .and_then(|it| check_signature(&it, &key, demand, now));
    checked.map(|_| ()).map_err(|rejection| {
        Failure::invalid(format!("the signature would not count: {rejection}"), rejection.next())
    })
}

#[cfg(test)]
mod tests {
    use ssh_key::public::{Ed25519PublicKey, SkEd25519};

    use super::*;

    #[test]
    fn the_code_may_be_typed_in_any_case_and_without_its_dash() {
        for typed in ["WERC-8GMR\n", "werc8gmr", " Werc-8gmR ", "werc 8gmr"] {
            assert!(is_code(typed, "WERC-8GMR"), "{typed}");
        }
        for typed in ["", "\n", "y", "WERC-8GM", "WERC-8GMRX"] {
            assert!(!is_code(typed, "WERC-8GMR"), "{typed}");
        }
        assert!(!is_code("", ""));
        assert!(is_code("olI1-00oo", "0111-0000"), "as they were heard");
        assert!(!is_code("\u{212a}123", "K123"), "only ASCII has two cases here");
    }

    #[test]
    fn of_ssh_agents_keys_the_one_for_the_broker_is_chosen() {
        let key = |at: u8, application: Option<&str>| {
            let public = Ed25519PublicKey([at; 32]);
            let data = match application {
                Some(it) => KeyData::SkEd25519(SkEd25519::new(public, it)),
                None => KeyData::Ed25519(public),
            };
            PublicKey::new(data, format!("key-{at}")).to_openssh().unwrap()
        };
        let (ours, other) = (key(1, Some(SK_APPLICATION)), key(2, Some("ssh:")));
        let (plain, second) = (key(3, None), key(4, Some(SK_APPLICATION)));
        let list = |keys: &[&str]| keys.join("\n");
        assert_eq!(choose(&list(&[&plain, &other, &ours])).unwrap(), ours);
        assert_eq!(choose(&list(&[&plain])).unwrap(), plain, "a last resort");
        for none in [list(&[]), list(&[&other]), list(&[&plain, &other]), "nonsense\n".to_owned()] {
            let words = choose(&none).unwrap_err().words();
            assert!(
                words.contains(
                    "ssh-keygen -t ed25519-sk -O application=ssh:broker -O verify-required"
                ),
                "{words}"
            );
        }
        let words = choose(&list(&[&ours, &plain, &second])).unwrap_err().words();
        for part in ["2 keys", "SHA256:", "key-1", "key-4", "--key FILE.pub"] {
            assert!(words.contains(part), "{words}");
        }
        assert!(!words.contains("key-3"), "{words}");
    }

    #[test]
    fn destruction_is_marked_but_never_in_the_agents_words() {
        assert!(is_destructive("  may do       rds:DeleteDBInstance         DESTROYS"));
        assert!(is_destructive("  tier         DESTRUCTIVE: because"));
        assert!(!is_destructive("  |   DESTROYS nothing"));
        assert!(!is_destructive("  may do       s3:PutObject                 writes"));
        assert!(
            is_unusual("  on           NEW arn:aws:s3:::x") && is_unusual("  ^            is in")
        );
        assert!(!is_unusual("  on           arn:aws:s3:::NEW "));
        assert!(!is_unusual("  |            NEW words"), "in their box nothing is ours");
    }
}
