//! Profiles in `~/.aws/config` whose credentials come from the broker when a tool wants them, and are kept nowhere.

mod ini;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use broker::render::name;
use broker::wire::LeaseRequest;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::Context;
use crate::agent::Ask;
use crate::output::{self, Failure, Result};

const OPTION: &str = "credential_process";
pub(crate) const CREDENTIALS: &str = "credentials";
const URL: &str = "--url";
const SCOPE: &str = "--scope";
/// Other sources of credentials, which tools take before a process or instead of it.
const OTHER_SOURCES: [&str; 4] =
    ["aws_access_key_id", "role_arn", "sso_session", "web_identity_token_file"];

#[derive(Subcommand)]
pub(crate) enum ProfileCommand {
    Add(AddArgs),
    /// Lists the profiles that `broker profile add` wrote
    List,
    Remove(RemoveArgs),
}

/// Writes a profile into ~/.aws/config that leases credentials on demand
///
/// Tools that use the profile start `broker credentials`, which asks the broker, and is given again what is live. Nothing
/// secret is written: the token comes from `BROKER_TOKEN` or `BROKER_TOKEN_FILE` when the tool runs. The rest of the file
/// stays as it is. `AWS_CONFIG_FILE` names another file.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker profile add staging --scope staging-ro --region us-east-1
  AWS_PROFILE=staging aws s3 ls
  broker profile add job --scope staging-rw --task OPS-7 --reason 'fix the job'")]
pub(crate) struct AddArgs {
    /// The profile's name; `default` is what tools take when they are told none
    name: String,
    /// The scope, as `broker scopes` lists it
    #[arg(long)]
    scope: String,
    #[command(flatten)]
    ask: Ask,
    /// The AWS Region that tools work in
    #[arg(long)]
    region: Option<String>,
    /// Replaces a profile of that name that is not of this broker; never one that has keys in ~/.aws/credentials
    #[arg(long)]
    force: bool,
}

/// Removes a profile that `broker profile add` wrote
#[derive(Args)]
#[command(after_help = "Example:\n  broker profile remove staging")]
pub(crate) struct RemoveArgs {
    /// The profile's name
    name: String,
}

/// Where AWS tools keep their files. Parsed without any argument.
#[derive(Parser)]
struct Places {
    #[arg(long, env = "AWS_CONFIG_FILE")]
    config: Option<OsString>,
    #[arg(long, env = "AWS_SHARED_CREDENTIALS_FILE")]
    keys: Option<OsString>,
    #[arg(long, env = "HOME")]
    home: Option<OsString>,
    #[arg(long, env = "PATH")]
    path: Option<OsString>,
}

impl Places {
    fn read() -> Result<Self> {
        Self::try_parse_from(["broker"])
            .map_err(|error| Failure::unexpected(error.to_string(), "Correct the environment."))
    }

    fn file(&self, named: Option<&OsString>, below_home: &str) -> Result<PathBuf> {
        let home = self.home.as_ref().filter(|it| !it.is_empty()).map(PathBuf::from);
        let named = named.filter(|it| !it.is_empty()).map(PathBuf::from);
        let file = match (named, home) {
            (Some(named), Some(home)) => match named.strip_prefix("~") {
                Ok(rest) => home.join(rest),
                Err(_) => named,
            },
            (Some(named), None) => named,
            (None, Some(home)) => home.join(below_home),
            (None, None) => {
                let next = "Set one of them, then repeat the command.";
                return Err(Failure::invalid("neither AWS_CONFIG_FILE nor HOME is set", next));
            }
        };
        Ok(file)
    }

    fn config(&self) -> Result<PathBuf> {
        self.file(self.config.as_ref(), ".aws/config")
    }

    /// Whether the file of shared credentials has keys under this name, which tools take before any process.
    fn has_keys(&self, profile: &str) -> Result<bool> {
        let path = self.file(self.keys.as_ref(), ".aws/credentials")?;
        let heading = format!("[{profile}]");
        let text = fs::read(path).unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).lines().any(|it| it.trim().starts_with(&heading)))
    }

    /// This program by the name in PATH that an upgrade keeps, or else by the file that it is.
    fn program(&self) -> Result<PathBuf> {
        let own = std::env::current_exe().map_err(|error| {
            let next = "Run it by its path.";
            Failure::unexpected(format!("it is not known where this program is: {error}"), next)
        })?;
        let same =
            |it: &PathBuf| it.is_absolute() && it.canonicalize().ok() == own.canonicalize().ok();
        let folders = self.path.iter().flat_map(std::env::split_paths);
        Ok(folders.map(|it| it.join("broker")).find(same).unwrap_or(own))
    }
}

pub(crate) fn profile(context: &Context, command: ProfileCommand) -> Result<()> {
    match command {
        ProfileCommand::Add(args) => add(context, args),
        ProfileCommand::List => list(context),
        ProfileCommand::Remove(args) => remove(&args),
    }
}

fn add(context: &Context, args: AddArgs) -> Result<()> {
    let AddArgs { name, scope, ask, region, force } = args;
    let places = Places::read()?;
    check_name(&name)?;
    let plain = |it: &String| it.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
    if region.as_ref().is_some_and(|it| it.is_empty() || !plain(it)) {
        return Err(Failure::invalid("that is no AWS Region", "Correct --region."));
    }
    if places.has_keys(&name)? {
        return Err(Failure::invalid(
            format!("profile {name} is in the file of shared credentials too, which comes first"),
            "Remove it there, or take another name.",
        ));
    }
    let url = context.settings.url.to_string();
    let process = command_line(&places.program()?, &url, ask.request(scope, false, false))?;
    let mut mine = vec![(OPTION, process.as_str())];
    mine.extend(region.as_deref().map(|it| ("region", it)));
    let path = places.config()?;
    edit(&path, |text| match ini::find(text, &name).as_slice() {
        [] => Ok(ini::append(text, &name, &mine)),
        [at] if broker_of(text, at).as_deref() == Some(&url) => Ok(ini::set(text, at, &mine)),
        found if force => {
            let text = found.iter().rev().fold(text.to_vec(), |text, at| ini::cut(&text, at));
            Ok(ini::append(&text, &name, &mine))
        }
        _ => Err(Failure::invalid(
            format!("{} has a profile {name} that is not of this broker", path.display()),
            "Take another name, or --force to replace it.",
        )),
    })?;
    context.print(
        || format!("profile    {name}\nfile       {}\nprocess    {process}\n", path.display()),
        || output::pretty(&json!({ "profile": name, "file": path, OPTION: process })),
    )?;
    output::note(&format!(
        "next: run tools with AWS_PROFILE={name}, without AWS keys in their environment, and with BROKER_TOKEN or a \
         token file where `broker` finds it: the profile holds none."
    ));
    Ok(())
}

fn list(context: &Context) -> Result<()> {
    let path = Places::read()?.config()?;
    let text = read(&path).map_err(|error| cannot("read", &path, &error))?;
    let found = ini::profiles(&text).into_iter();
    let found = found.filter(|(_, at)| broker_of(&text, at).is_some());
    let found = found.filter_map(|(it, at)| Some((it, ini::option(&text, &at, OPTION)?)));
    let found: Vec<_> = found.collect();
    let rows =
        || found.iter().map(|(it, process)| vec![name(it), name(process)]).collect::<Vec<_>>();
    let member = |(it, process): &(String, String)| json!({ "profile": it, OPTION: process });
    let members = || found.iter().map(member).collect::<Vec<_>>();
    context.print(
        || output::table(&["PROFILE", "PROCESS"], &rows()),
        || output::pretty(&json!({ "file": path, "profiles": members() })),
    )
}

fn remove(args: &RemoveArgs) -> Result<()> {
    let path = Places::read()?.config()?;
    edit(&path, |text| match ini::find(text, &args.name).as_slice() {
        [at] if broker_of(text, at).is_some() => Ok(ini::cut(text, at)),
        _ => Err(Failure::invalid(
            format!("{} has no profile {} of `broker profile add`", path.display(), args.name),
            "`broker profile list` shows which there are.",
        )),
    })?;
    output::note(&format!("profile {} is removed from {}", args.name, path.display()));
    Ok(())
}

/// A name that every tool reads out of `[profile NAME]` as it is.
fn check_name(name: &str) -> Result<()> {
    let plain = |it: u8| it.is_ascii_alphanumeric() || b"-_.@+".contains(&it);
    if name.is_empty() || 64 < name.len() || !name.bytes().all(plain) {
        return Err(Failure::invalid(
            "a profile's name is up to 64 letters, digits and - _ . @ +: tools misread others",
            "Take another name.",
        ));
    }
    Ok(())
}

/// What a tool runs for credentials. With the broker's URL: the profile is of that broker, whoever uses it.
fn command_line(program: &Path, url: &str, it: LeaseRequest) -> Result<String> {
    let program = program.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::invalid("the path of `broker` is not UTF-8", "Install it elsewhere.")
    })?;
    let mut words = vec![program, CREDENTIALS.to_owned(), URL.to_owned(), url.to_owned()];
    let ttl = it.ttl_seconds.map(|it| format!("{it}s"));
    let one = [(SCOPE, Some(it.scope)), ("--task", it.task), ("--reason", it.reason)];
    let more = [("--ttl", ttl), ("--rollback", it.rollback)];
    let lists = [("--action", it.actions), ("--resource", it.resources)];
    let lists = lists
        .into_iter()
        .flat_map(|(flag, them)| them.into_iter().flatten().map(move |it| (flag, Some(it))));
    for (flag, value) in one.into_iter().chain(more).chain(lists) {
        match value {
            Some(value) if value.starts_with('-') => words.push(format!("{flag}={value}")),
            Some(value) => words.extend([flag.to_owned(), value]),
            None => {}
        }
    }
    let words: Vec<_> = words.iter().map(|it| quoted(it)).collect::<Result<_>>()?;
    Ok(words.join(" "))
}

/// One word as every tool reads it: Python's tools split the command like a POSIX shell, others give it to one; and some
/// take what begins with ` #` or ` ;` for a comment before that.
fn quoted(word: &str) -> Result<String> {
    let plain = |it: u8| it.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&it);
    if !word.is_empty() && word.bytes().all(plain) {
        return Ok(word.to_owned());
    }
    let comment = |it: &str| {
        let mut before = ' ';
        it.chars().any(|c| {
            let begins = matches!(c, '#' | ';') && before.is_whitespace();
            before = c;
            begins
        })
    };
    // At its beginning a quote stands before it.
    if word.chars().any(char::is_control) || comment(word.trim_start_matches(['#', ';'])) {
        return Err(Failure::invalid(
            format!(
                "no profile can hold {word:?}: a line's end, a control character, or a # or ; after a space"
            ),
            "Say it in other words.",
        ));
    }
    Ok(format!("'{}'", word.replace('\'', r"'\''")))
}

/// The words that [`quoted`] made a command of.
fn split(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut within) = (None::<String>, false);
    let mut rest = command.chars();
    while let Some(it) = rest.next() {
        match it {
            '\'' => {
                within = !within;
                word.get_or_insert_default();
            }
            '\\' if !within => word.get_or_insert_default().extend(rest.next()),
            ' ' if !within => words.extend(word.take()),
            it => word.get_or_insert_default().push(it),
        }
    }
    words.extend(word);
    words
}

/// The words of `command`, if it is written as [`quoted`] would: then every tool, and a shell, reads just these.
pub(crate) fn plain_words(command: &str) -> Option<Vec<String>> {
    let words = split(command);
    let again: Vec<_> = words.iter().map(|it| quoted(it)).collect::<Result<_>>().ok()?;
    (again.join(" ") == command).then_some(words)
}

/// The URL of the broker that `broker profile add` wrote the profile at `at` for; nothing if it did not.
fn broker_of(text: &[u8], at: &std::ops::Range<usize>) -> Option<String> {
    let words = split(&ini::option(text, at, OPTION)?);
    match words.as_slice() {
        [program, command, flag, url, ..]
            if program.starts_with('/') && command == CREDENTIALS && flag == URL =>
        {
            Some(url.clone())
        }
        _ => None,
    }
}

/// The profile with which tools of this user's work under a lease on `scope`: `broker profile add` wrote it, for this
/// broker and for all that the scope allows, and it starts this very program. What cannot be read is as good as not there.
pub(crate) fn of_scope(url: &str, scope: &str) -> Option<String> {
    let places = Places::read().ok()?;
    let text = read(&places.config().ok()?).ok()?;
    let own = std::env::current_exe().ok()?.canonicalize().ok()?;
    let mut found = ini::profiles(&text).into_iter().filter(|(name, at)| {
        let alone = ini::find(&text, name).len() == 1
            && OTHER_SOURCES.iter().all(|it| ini::option(&text, at, it).is_none());
        alone
            && asks_for(&text, at, url, scope).and_then(|it| it.canonicalize().ok()).as_ref()
                == Some(&own)
    });
    let name = found.find(|(it, _)| check_name(it).is_ok() && !places.has_keys(it).unwrap_or(true));
    name.map(|(name, _)| name)
}

/// The program that the profile at `at` starts, if it asks this broker for a lease on all of `scope`.
fn asks_for(text: &[u8], at: &std::ops::Range<usize>, url: &str, scope: &str) -> Option<PathBuf> {
    broker_of(text, at).filter(|it| it == url)?;
    let words = split(&ini::option(text, at, OPTION)?);
    let narrower = |it: &String| it.starts_with("--action") || it.starts_with("--resource");
    match words.as_slice() {
        [program, _, _, _, flag, named, rest @ ..]
            if flag == SCOPE && named == scope && !rest.iter().any(narrower) =>
        {
            Some(program.into())
        }
        _ => None,
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::invalid(
        format!("{} cannot be {what}: {error}", path.display()),
        "Correct it, or name another file in AWS_CONFIG_FILE.",
    )
}

/// A file that is not there is as good as empty.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        text => text,
    }
}

/// Replaces the file in one step by what `change` makes of it. Who does the same at that time waits.
fn edit(path: &Path, change: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<()> {
    let wrong = |error: io::Error| cannot("written", path, &error);
    // What a link points to is written, and the link stays.
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => path.to_owned(),
        Err(error) => return Err(wrong(error)),
    };
    let dir = target.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(wrong)?;
    let folder = File::open(dir).map_err(wrong)?;
    folder.lock().map_err(wrong)?;
    let text = read(&target).map_err(wrong)?;
    let changed = change(&text)?;
    let write = || {
        let mode = fs::metadata(&target).map_or(0o600, |it| it.permissions().mode() & 0o7777);
        let mut file = tempfile::Builder::new().prefix(".config-").tempfile_in(dir)?;
        file.write_all(&changed)?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(&target)?;
        Ok(())
    };
    write().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_profiles_name_is_one_that_every_tool_reads_alike() {
        for good in ["default", "staging", "a.b-c_d@e+1"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in
            ["", "a b", "a]", "[a", "a\nb", "#a", "a;b", "a'b", "a\"b", "a=b", "\u{fc}", "a/b"]
        {
            assert_eq!(check_name(bad).unwrap_err().exit, 2, "{bad:?}");
        }
        assert!(check_name(&"a".repeat(65)).is_err());
    }

    #[test]
    fn a_word_that_a_file_cannot_hold_is_refused() {
        for bad in ["a\nb", "a #b", "a\t;b", "# #", "a\u{7f}"] {
            assert_eq!(quoted(bad).unwrap_err().exit, 2, "{bad:?}");
        }
        assert_eq!(quoted("arn:aws:s3:::b/k").unwrap(), "arn:aws:s3:::b/k");
        assert_eq!(quoted("arn:aws:s3:::b/*").unwrap(), "'arn:aws:s3:::b/*'");
        assert_eq!(quoted("don't $(rm)").unwrap(), r"'don'\''t $(rm)'");
        for good in ["#1", ";", "a#b", ""] {
            assert_eq!(quoted(good).unwrap(), format!("'{good}'"));
        }
    }

    proptest! {
        #[test]
        fn a_shell_reads_the_words_that_were_meant(words in proptest::collection::vec("[ -~\u{e0}-\u{ff}]{0,12}", 1..6)) {
            let quoted: Vec<_> = words.iter().map(|it| quoted(it)).filter_map(Result::ok).collect();
            prop_assume!(quoted.len() == words.len());
            let command = quoted.join(" ");
            prop_assert_eq!(&split(&command), &words);
            prop_assert_eq!(plain_words(&command), Some(words.clone()));
            let script = format!("printf '%s\\n' {command}");
            let said = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
            let expected: String = words.iter().map(|it| it.to_owned() + "\n").collect();
            prop_assert_eq!(String::from_utf8(said.stdout).unwrap(), expected);
        }
    }
}
