//! `broker doctor`: what this machine would let an agent do without the broker. Looks, changes nothing, prints no
//! secret. `docs/machine.md` has all checks. It reads as `brokerd doctor` does, which looks at the server's side.
//!
//! Gathering what takes time or a protocol comes first ([`gather`]). Each check is then a small function over that and
//! over files, and a row in the table of its module.

mod aws;
mod environment;
mod ground;
mod home;
mod host;
mod metadata;
mod own;
mod project;
mod scan;
mod ssh;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::process::Gid;
use serde::Serialize;
use time::OffsetDateTime;

use self::ground::{Ground, Look};
use crate::output::{self, Failure, Format, Result};

/// Says what this machine would let an agent do without the broker, and how to take it away
///
/// Run it as the user, in the directory and with the environment that the agent will have. It reads, changes nothing,
/// and prints no secret. It is no proof: what it cannot see is listed in the documentation.
#[derive(Args)]
#[command(after_help = "\
Examples:
  broker doctor                                  this machine, and the repository around the current directory
  broker doctor --project ~/app --project ~/lib  other projects
  broker doctor -o json | jq '.findings[].check'

A step of a pipeline that builds an agent's image; it fails on anything critical or high:
  docker run --rm --entrypoint broker agent-image doctor --no-network -o json || [ $? -eq 4 ]

Exit codes:
  0 nothing found    1 it could not run    2 usage    3 something critical or high
  4 something medium or low, or not everything could be looked at; what --except and --no-network
    leave out does not count, nor do folders that tools fill and links that lead out")]
pub(crate) struct DoctorArgs {
    /// A project to look through; may be repeated [default: the repository around the current directory]
    #[arg(long = "project", value_name = "DIR")]
    projects: Vec<PathBuf>,
    /// Leave a check out, by its id; may be repeated. It is then listed as not checked
    #[arg(long = "except", value_name = "CHECK")]
    except: Vec<String>,
    /// Do not ask instance and container metadata
    #[arg(long)]
    no_network: bool,
    /// List what was checked, too
    #[arg(short, long)]
    verbose: bool,
}

/// The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Writes production by itself, for as long as nobody notices.
    Critical,
    High,
    Medium,
    Low,
}

impl Severity {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }
}

/// Something that an agent could use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    severity: Severity,
    check: &'static str,
    /// A file, a variable, a socket, an address.
    subject: String,
    found: String,
    /// What an agent could do with it.
    gains: &'static str,
    fix: &'static str,
}

/// Something that nobody looked at, or not at all of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct NotChecked {
    check: &'static str,
    why: String,
    /// By `--except` or `--no-network`, or always. Whatever else nobody looked at is not clean.
    left_out: bool,
}

/// One check. A new one is a function and a row, both in one of the modules below.
struct Check {
    /// Never changed once released.
    id: &'static str,
    /// What its findings are, unless they say otherwise.
    severity: Severity,
    /// What it looks at.
    looks: &'static str,
    gains: &'static str,
    fix: &'static str,
    run: fn(&mut Look<'_>),
}

/// All checks, in the order of the documentation.
fn checks() -> impl Iterator<Item = &'static Check> {
    let modules = [
        environment::CHECKS,
        aws::CHECKS,
        metadata::CHECKS,
        ssh::CHECKS,
        project::CHECKS,
        tools::CHECKS,
        home::CHECKS,
        own::CHECKS,
        host::CHECKS,
    ];
    modules.into_iter().flatten()
}

/// What programs read. Fields are added, never taken away.
#[derive(Serialize)]
struct Report {
    findings: Vec<Finding>,
    checked: Vec<&'static str>,
    not_checked: Vec<NotChecked>,
}

impl Report {
    /// What could not be looked at is not clean, unless it was the caller who left it out.
    fn exit_code(&self) -> u8 {
        match self.findings.first() {
            Some(worst) if worst.severity <= Severity::High => 3,
            Some(_) => 4,
            None if self.not_checked.iter().any(|it| !it.left_out) => 4,
            None => 0,
        }
    }
}

pub(crate) fn doctor(format: Format, args: &DoctorArgs, now: OffsetDateTime) -> Result<u8> {
    if let Some(unknown) = args.except.iter().find(|id| checks().all(|it| it.id != **id)) {
        return Err(Failure::invalid(
            format!("there is no check {unknown:?}"),
            "`broker doctor -v` lists the checks.",
        ));
    }
    let ground = gather(args, now)?;
    let report = examine(&ground, &args.except);
    let text = || text(&report, args.verbose);
    output::data(&if format == Format::Text { text() } else { output::pretty(&report) })?;
    Ok(report.exit_code())
}

/// This machine. Nothing here, and no variable, can make the places that are looked at fewer.
fn gather(args: &DoctorArgs, now: OffsetDateTime) -> Result<Ground> {
    let root = PathBuf::from("/");
    let environment: BTreeMap<_, _> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .collect();
    let uid = rustix::process::geteuid().as_raw();
    let mut groups = rustix::process::getgroups().unwrap_or_default();
    groups.push(rustix::process::getegid());
    let own = environment.get("HOME").map(PathBuf::from).filter(|it| it.is_absolute());
    let homes = ground::homes(&root, own.as_deref(), uid);
    let mut projects = Vec::new();
    for dir in dirs(args)? {
        projects.push(project::walk(&dir));
    }
    Ok(Ground {
        now,
        sockets: ssh::gather(&root, &environment, &homes),
        root,
        environment,
        uid,
        gids: groups.into_iter().map(Gid::as_raw).collect(),
        program: std::env::current_exe().ok(),
        homes,
        metadata: (!args.no_network).then(|| metadata::gather(metadata::ADDRESSES)),
        projects,
    })
}

/// The directories to look through.
fn dirs(args: &DoctorArgs) -> Result<Vec<PathBuf>> {
    let wrong = |dir: &Path, what: &dyn std::fmt::Display| {
        Failure::invalid(
            format!("{} cannot be looked through: {what}", dir.display()),
            "Name a directory with --project DIR.",
        )
    };
    if args.projects.is_empty() {
        let here = std::env::current_dir().map_err(|error| wrong(Path::new("."), &error))?;
        let repository = here.ancestors().find(|it| it.join(".git").exists());
        return Ok(vec![repository.unwrap_or(&here).to_owned()]);
    }
    let mut all = BTreeSet::new();
    for dir in &args.projects {
        let dir = dir.canonicalize().map_err(|error| wrong(dir, &error))?;
        if !dir.is_dir() {
            return Err(wrong(&dir, &"it is not a directory"));
        }
        all.insert(dir);
    }
    Ok(all.into_iter().collect())
}

/// What all checks find, the worst first.
fn examine(ground: &Ground, except: &[String]) -> Report {
    let mut report = Report { findings: Vec::new(), checked: Vec::new(), not_checked: Vec::new() };
    let mut unwanted = Vec::new();
    for check in checks() {
        let mut look = Look::new(ground, check);
        (check.run)(&mut look);
        if except.iter().any(|it| it == check.id) {
            let why = "left out by --except".to_owned();
            report.not_checked.push(NotChecked { check: check.id, why, left_out: true });
            unwanted.append(&mut look.findings);
            continue;
        }
        report.checked.push(check.id);
        report.findings.append(&mut look.findings);
        report.not_checked.append(&mut look.not_checked);
    }
    report.findings = said_once(report.findings, &unwanted);
    report.findings.sort();
    report.findings.dedup();
    report.not_checked.sort();
    report.not_checked.dedup();
    report
}

/// Without what lies about in a home's file that a check which knows the file found as well. What the caller left out
/// by that check's name comes back by no other's.
fn said_once(mut findings: Vec<Finding>, unwanted: &[Finding]) -> Vec<Finding> {
    let known: BTreeSet<_> = findings
        .iter()
        .chain(unwanted)
        .filter(|it| it.check != home::ID)
        // A note about a file does not stand for a key in it.
        .filter(|it| it.severity <= Severity::High || it.check.starts_with("project-"))
        .map(|it| it.subject.clone())
        .collect();
    findings.retain(|it| it.check != home::ID || !known.contains(&it.subject));
    findings
}

/// For people: a line for each finding, and below it what an agent could do, and what to do about it.
fn text(report: &Report, verbose: bool) -> String {
    let mut out = String::new();
    for it in &report.findings {
        let _ = writeln!(out, "{:<9} {:<24} {}", it.severity.as_str(), it.check, it.subject);
        let _ = writeln!(out, "{:<9} found  {}", "", it.found);
        let _ = writeln!(out, "{:<9} gains  {}", "", it.gains);
        let _ = writeln!(out, "{:<9} fix    {}", "", it.fix);
    }
    for it in &report.not_checked {
        let _ = writeln!(out, "{:<9} {:<24} {}", "unseen", it.check, it.why);
    }
    if verbose {
        for it in checks().filter(|it| report.checked.contains(&it.id)) {
            let _ = writeln!(out, "{:<9} {:<24} {}", "checked", it.id, it.looks);
        }
    }
    let mut counts: BTreeMap<Severity, usize> = BTreeMap::new();
    for it in &report.findings {
        *counts.entry(it.severity).or_default() += 1;
    }
    let counts: Vec<_> =
        counts.iter().map(|(it, count)| format!("{count} {}", it.as_str())).collect();
    let found = if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") };
    let _ = write!(out, "{} checks found {found}", report.checked.len());
    if !report.not_checked.is_empty() {
        let _ = write!(out, "; not everything could be looked at");
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::net::{SocketAddr, TcpListener};

    use time::macros::datetime;

    use super::*;

    /// A machine of which everything is below `root`, and whose only user is number 1000.
    fn machine(root: &Path) -> Ground {
        fs::create_dir_all(root.join("home/bob")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("proc/1")).unwrap();
        fs::write(root.join("etc/passwd"), "bob:x:1000:1000::/home/bob:/bin/sh\n").unwrap();
        Ground {
            now: datetime!(2026-01-01 12:00 UTC),
            root: root.to_owned(),
            environment: BTreeMap::new(),
            uid: 1000,
            gids: BTreeSet::new(),
            program: None,
            homes: ground::homes(root, None, 1000),
            metadata: Some(metadata::Metadata::default()),
            sockets: ssh::Sockets::default(),
            projects: Vec::new(),
        }
    }

    fn write(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn found(ground: &Ground) -> Vec<(&'static str, Severity)> {
        examine(ground, &[]).findings.iter().map(|it| (it.check, it.severity)).collect()
    }

    /// What the documentation's table says, is what the checks say.
    #[test]
    fn the_documentation_has_every_check() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/machine.md");
        let documentation = fs::read_to_string(path).unwrap();
        let rows = checks().map(|it| {
            let severity = it.severity.as_str();
            format!("| `{}` | {severity} | {} | {} | {} |\n", it.id, it.looks, it.gains, it.fix)
        });
        let table = rows.collect::<Vec<_>>().concat();
        assert!(documentation.contains(&table), "docs/machine.md should have:\n{table}");
        let ids: BTreeSet<_> = checks().map(|it| it.id).collect();
        assert_eq!(ids.len(), checks().count(), "an id is there twice");
    }

    #[test]
    fn a_clean_machine_is_quiet_and_everything_on_it_was_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let mut ground = machine(dir.path());
        write(&dir.path().join("proc/1/environ"), "PATH=/bin\0AWS_REGION=x\0");
        write(&dir.path().join("home/bob/app/main.rs"), "fn main() {}");
        ground.projects.push(project::walk(&dir.path().join("home/bob/app")));
        let report = examine(&ground, &[]);
        assert_eq!((report.findings, report.not_checked), (vec![], vec![]));
        assert_eq!(report.checked.len(), checks().count());
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_clean_unless_the_caller_left_it_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut ground = machine(dir.path());
        ground.metadata = None;
        let except = ["tool-token".to_owned()];
        let report = examine(&ground, &except);
        assert_eq!((report.findings.len(), report.exit_code()), (0, 0));
        let mute =
            ssh::Socket { path: "/s".into(), guess: ssh::Guess::No, answer: ssh::Answer::Silent };
        ground.sockets.asked = vec![mute];
        let report = examine(&ground, &except);
        assert_eq!((report.findings.len(), report.exit_code()), (0, 4));
        let except = ["tool-token".to_owned(), "ssh-agent-key".to_owned()];
        assert_eq!(examine(&ground, &except).exit_code(), 0);
        write(&dir.path().join("home/bob/.aws/credentials"), "[a]\naws_secret_access_key = x\n");
        assert_eq!(examine(&ground, &[]).exit_code(), 3);
    }

    #[test]
    fn what_the_system_and_other_homes_hold_is_found() {
        let key = "[a]\naws_access_key_id = AKIA1\naws_secret_access_key = x\n";
        for (path, content, check, severity) in [
            ("etc/boto.cfg", key, "aws-key", Severity::Critical),
            ("home/alice/.aws/credentials", key, "aws-key", Severity::Critical),
            ("root/.aws/credentials", key, "aws-key", Severity::Critical),
            (
                "var/run/secrets/kubernetes.io/serviceaccount/token",
                "t",
                "kube-service-account",
                Severity::Medium,
            ),
            (
                "proc/7/environ",
                "A=b\0AWS_SECRET_ACCESS_KEY=x\0",
                "process-environment",
                Severity::High,
            ),
            ("proc/7/environ", "BROKER_DATABASE_URL=x\0", "process-environment", Severity::High),
            ("etc/broker/aws.credentials", key, "broker-server-file", Severity::Critical),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(&dir.path().join(path), content);
            assert_eq!(found(&machine(dir.path())), [(check, severity)], "{path}");
        }
    }

    #[test]
    fn another_home_by_variable_does_not_hide_the_users_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut ground = machine(dir.path());
        // Where nobody would look who does not ask the machine.
        write(&dir.path().join("etc/passwd"), "bob:x:1000:1000::/srv/bob:/bin/sh\n");
        write(&dir.path().join("srv/bob/.vault-token"), "t");
        fs::create_dir(dir.path().join("empty")).unwrap();
        ground.homes = ground::homes(dir.path(), Some(&dir.path().join("empty")), 1000);
        assert_eq!(found(&ground), [("tool-token", Severity::High)]);
    }

    #[test]
    fn groups_that_are_root_are_found_and_so_is_root() {
        let dir = tempfile::tempdir().unwrap();
        let mut ground = machine(dir.path());
        write(&dir.path().join("etc/group"), "docker:x:998:bob\nstaff:x:50:\n");
        ground.gids.extend([50, 998]);
        assert_eq!(found(&ground), [("root-group", Severity::Medium)]);
        ground.uid = 0;
        assert_eq!(found(&ground), [("root-user", Severity::Low)]);
    }

    #[test]
    fn a_socket_of_a_container_engine_is_found_where_it_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let ground = machine(dir.path());
        fs::create_dir_all(dir.path().join("var/run")).unwrap();
        let _listener =
            std::os::unix::net::UnixListener::bind(dir.path().join("var/run/docker.sock")).unwrap();
        assert_eq!(found(&ground), [("container-socket", Severity::High)]);
    }

    #[test]
    fn an_ssh_agent_with_hardware_keys_alone_is_no_finding() {
        let dir = tempfile::tempdir().unwrap();
        let mut ground = machine(dir.path());
        let key =
            |kind: &str| ssh::AgentKey { kind: kind.to_owned(), fingerprint: "SHA256:x".into() };
        let socket = |keys| ssh::Socket {
            path: "/s".into(),
            guess: ssh::Guess::No,
            answer: ssh::Answer::Keys(keys),
        };
        let hardware = key("sk-ssh-ed25519@openssh.com");
        ground.sockets.asked = vec![socket(vec![hardware.clone()])];
        assert_eq!(found(&ground), []);
        ground.sockets.asked = vec![socket(vec![hardware, key("ssh-ed25519")])];
        assert_eq!(found(&ground), [("ssh-agent-key", Severity::High)]);
    }

    #[test]
    fn metadata_is_told_by_what_it_hands_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut ground = machine(dir.path());
        let instance = |roles: &[&str]| metadata::Instance {
            version_1: true,
            roles: roles.iter().map(|it| (*it).to_owned()).collect(),
        };
        let container: SocketAddr = "169.254.170.2:80".parse().unwrap();
        for (metadata, expected) in [
            ((Some(instance(&["admin"])), vec![]), ("instance-role", Severity::Critical)),
            ((Some(instance(&[])), vec![]), ("instance-metadata", Severity::Low)),
            ((None, vec![container]), ("container-metadata", Severity::Medium)),
        ] {
            let (instance, containers) = metadata;
            ground.metadata = Some(metadata::Metadata { instance, containers });
            assert_eq!(found(&ground), [expected]);
        }
        ground.metadata = None;
        let report = examine(&ground, &[]);
        assert_eq!((report.findings.len(), report.not_checked.len()), (0, 3));
    }

    /// On Linux alone the kernel says who listens.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_endpoint_of_broker_exec_is_known_by_the_program_that_listens() {
        let dir = tempfile::tempdir().unwrap();
        let mut ground = machine(dir.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/x", listener.local_addr().unwrap());
        let name = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        ground.environment.insert(name.to_owned(), OsString::from(&uri));
        ground.root = PathBuf::from("/");
        let check = checks().find(|it| it.id == "env-aws-container").unwrap();
        let count = |ground: &Ground| {
            let mut look = Look::new(ground, check);
            (check.run)(&mut look);
            (look.findings.len(), look.not_checked.len())
        };
        // This test listens, so that its program is the one to be.
        ground.program = std::env::current_exe().ok();
        assert_eq!(count(&ground), (0, 1));
        // Whoever else holds the socket could answer as well.
        let inherited = std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
        let mut other = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(inherited)
            .spawn()
            .unwrap();
        assert_eq!(count(&ground), (1, 0));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(count(&ground), (0, 1));
        ground.program = Some(PathBuf::from("/bin/sh"));
        assert_eq!(count(&ground), (1, 0));
        ground.program = std::env::current_exe().ok();
        drop(listener);
        assert_eq!(count(&ground), (1, 0));
    }

    #[test]
    fn words_for_people_say_all_and_move_no_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let ground = machine(dir.path());
        write(
            &dir.path().join("home/bob/.ssh/\u{1b}[2J"),
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n-----END PRIVATE KEY-----\n",
        );
        let report = examine(&ground, &["tool-token".to_owned()]);
        let text = text(&report, true);
        assert!(text.starts_with("high      ssh-key-open"), "{text}");
        assert!(text.contains("\\u{1b}[2J") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("unseen    tool-token               left out by --except"), "{text}");
        assert!(
            text.ends_with("checks found 1 high; not everything could be looked at\n"),
            "{text}"
        );
    }
}
