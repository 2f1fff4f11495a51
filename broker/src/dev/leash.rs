//! Child processes that never outlive us, not even when we are killed with SIGKILL.
//!
//! A child runs under a small shell whose standard input is a pipe, and only we hold its other end.
//! The kernel closes that end whenever we go, for whatever reason; a watcher beside the child sees
//! the end of the pipe and sends the child its stop signal, and SIGKILL if that does not help. This
//! needs nothing but POSIX, so it works the same on Linux and macOS.
//!
//! The child is in a process group of its own: Ctrl-C on our terminal does not reach it, and we
//! stop our children in the order we like.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};

/// `$1` is the signal, `$2` the seconds of patience, the rest is the command.
///
/// The watcher looks at the child's process id only while this shell has not waited for the child,
/// so the id cannot have passed to another process: the watcher ends as soon as the child has.
const WRAPPER: &str = r#"
signal=$1 patience=$2
shift 2
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(
    while read -r _; do :; done
    kill -s "$signal" "$child"
    while [ "$patience" -gt 0 ]; do
        sleep 1
        patience=$((patience - 1))
    done
    kill -s KILL "$child"
) <&3 3<&- >/dev/null 2>&1 &
watcher=$!
exec 3<&- <&-
wait "$child"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"#;

/// How long a child may take to end after its stop signal.
const PATIENCE_SECONDS: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum LeashError {
    #[error("cannot open the log file {path}: {source}; choose a directory that can be written to")]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot start {program}: {source}; check that it is installed and can be run")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("cannot wait for {program}: {source}; look for a leftover process of that name")]
    Wait { program: PathBuf, source: io::Error },
}

/// What a child is asked to end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGINT. Only for programs that install their own handler, as Postgres does (a fast
    /// shutdown): a shell starts its background processes with this signal ignored.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// A user to run as; only root can choose one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// A program with its arguments and its whole environment: nothing of ours is inherited.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    run_as: Option<RunAs>,
}

impl Program {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: Vec::new(), environment: Vec::new(), run_as: None }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn run_as(mut self, run_as: Option<RunAs>) -> Self {
        self.run_as = run_as;
        self
    }

    /// The command by itself, without a leash, for what is soon over. It ends when its future is
    /// dropped.
    pub fn command(&self) -> Command {
        self.command_under(&[])
    }

    /// The command behind the words of `prefix`.
    fn command_under(&self, prefix: &[OsString]) -> Command {
        let mut words = prefix.to_vec();
        words.push(self.path.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(&self.args);
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        // Our own directory need not exist for another user.
        command.current_dir("/");
        if let Some(RunAs { uid, gid }) = self.run_as {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// A running child. Dropping it ends the child too, without waiting.
#[derive(Debug)]
pub struct Leash {
    wrapper: Child,
    pipe: Option<ChildStdin>,
    program: PathBuf,
    log: PathBuf,
}

impl Leash {
    /// Starts `program`; what it prints is appended to `log` (mode 600).
    pub fn spawn(program: &Program, signal: StopSignal, log: &Path) -> Result<Self, LeashError> {
        let signal = match signal {
            StopSignal::Interrupt => "INT",
            StopSignal::Terminate => "TERM",
        };
        let log_error = |source| LeashError::Log { path: log.to_owned(), source };
        let output =
            File::options().create(true).append(true).mode(0o600).open(log).map_err(log_error)?;
        let errors = output.try_clone().map_err(log_error)?;
        let patience = PATIENCE_SECONDS.to_string();
        let prefix = ["/bin/sh", "-c", WRAPPER, "leash", signal, &patience].map(OsString::from);
        let mut wrapper = program
            .command_under(&prefix)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|source| LeashError::Spawn { program: program.path.clone(), source })?;
        let pipe = wrapper.stdin.take();
        Ok(Self { wrapper, pipe, program: program.path.clone(), log: log.to_owned() })
    }

    /// Waits until the child ends by itself. Its status is the shell's: 128 + n for signal n.
    /// May be cancelled.
    pub async fn exited(&mut self) -> Result<ExitStatus, LeashError> {
        // Not `Child::wait`'s own handling of stdin: the pipe was taken out of the child before.
        let status = self.wrapper.wait().await;
        status.map_err(|source| LeashError::Wait { program: self.program.clone(), source })
    }

    /// The status of a child that has ended already.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, LeashError> {
        let status = self.wrapper.try_wait();
        status.map_err(|source| LeashError::Wait { program: self.program.clone(), source })
    }

    /// Asks the child to end and waits for it; kills what is left of its process group when it
    /// takes longer than the watcher's patience.
    pub async fn stop(mut self) -> Result<ExitStatus, LeashError> {
        drop(self.pipe.take());
        let limit = Duration::from_secs(PATIENCE_SECONDS + 3);
        if let Ok(status) = tokio::time::timeout(limit, self.exited()).await {
            return status;
        }
        // Nobody has waited for the wrapper yet, so its id still names its group.
        if let Some(group) = self.wrapper.id() {
            let program = self.program.display();
            tracing::warn!(%program, "did not end when asked to, killing it");
            let killed = Command::new("/bin/sh")
                .args(["-c", r#"kill -s KILL -- "-$1""#, "leash", &group.to_string()])
                .status()
                .await;
            killed.map_err(|source| LeashError::Wait { program: self.program.clone(), source })?;
        }
        self.exited().await
    }

    /// The last lines of the log, for an error message.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log).unwrap_or_default()
    }
}

/// The last few lines of a log file.
fn log_tail(path: &Path) -> io::Result<String> {
    const TAIL_BYTES: u64 = 2_000;
    const TAIL_LINES: usize = 8;
    let mut file = File::open(path)?;
    let length = fs::metadata(path)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program::new("/bin/sh").arg("-c").arg(script).env("PATH", "/usr/bin:/bin")
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("leash-{name}-{:016x}", rand::random::<u64>()));
        fs::create_dir(&dir).unwrap();
        dir
    }

    fn alive(pid: &str) -> bool {
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", r#"kill -s 0 "$1" 2>/dev/null"#, "alive", pid])
            .status();
        status.unwrap().success()
    }

    /// The process id that a child wrote as the first line of its log.
    async fn pid_in(log: &Path) -> String {
        loop {
            if let Some((pid, _)) = fs::read_to_string(log).unwrap_or_default().split_once('\n') {
                return pid.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_gone(pid: &str) {
        let gone = async {
            while alive(pid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the child lives on");
    }

    #[tokio::test]
    async fn a_child_that_ends_by_itself_has_its_status_and_its_log() {
        let dir = scratch("ends");
        let log = dir.join("log");
        let program = shell("echo said; echo complained >&2; exit 7");
        let mut leash = Leash::spawn(&program, StopSignal::Terminate, &log).unwrap();
        assert_eq!(leash.exited().await.unwrap().code(), Some(7));
        assert_eq!(leash.log_tail(), "said\ncomplained");
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_stopped_child_gets_its_signal_and_its_time() {
        let dir = scratch("stop");
        let log = dir.join("log");
        let script = "trap 'echo stopping; exit 3' TERM; echo $$; while :; do sleep 0.1; done";
        let leash = Leash::spawn(&shell(script), StopSignal::Terminate, &log).unwrap();
        let pid = pid_in(&log).await;
        assert!(alive(&pid));
        assert_eq!(leash.stop().await.unwrap().code(), Some(3));
        assert!(fs::read_to_string(&log).unwrap().ends_with("stopping\n"));
        assert!(!alive(&pid));
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_dropped_leash_ends_the_child() {
        let dir = scratch("drop");
        let log = dir.join("log");
        let leash = Leash::spawn(&shell("echo $$; exec sleep 600"), StopSignal::Terminate, &log);
        let pid = pid_in(&log).await;
        drop(leash.unwrap());
        until_gone(&pid).await;
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_child_inherits_nothing_from_our_environment() {
        let dir = scratch("env");
        let log = dir.join("log");
        let program = Program::new("/usr/bin/env").env("ONLY", "this");
        let mut leash = Leash::spawn(&program, StopSignal::Terminate, &log).unwrap();
        leash.exited().await.unwrap();
        let printed = fs::read_to_string(&log).unwrap();
        // A shell adds what is its own.
        let own = ["PWD=", "OLDPWD=", "SHLVL=", "_="];
        let given: Vec<_> =
            printed.lines().filter(|line| !own.iter().any(|name| line.starts_with(name))).collect();
        assert_eq!(given, ["ONLY=this"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
