//! SSH: agents that sign for whoever reaches their socket, and private keys that are files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::DirEntry;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ssh_key::{HashAlg, PublicKey};

use super::scan::{self, private_key, string};
use super::{Check, Look, Severity};

/// How long all sockets together have to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// `ssh-agent` takes no longer messages either.
const MESSAGE_LIMIT: usize = 256 << 10;
/// So many are asked at once, and in all, beside those where nobody listens any more.
const SOCKETS: usize = 64;
const ENTRIES: usize = 4096;
/// Who speaks first does so at once.
const GREETING: Duration = Duration::from_millis(100);
/// Sockets, and folders of them, that are no agents': a question might disturb them.
const OTHERS: &[&str] = &[
    ".ICE-unix",
    ".X11-unix",
    ".s.PGSQL.",
    "Singleton",
    "bus",
    "dbus-",
    "docker",
    "mysql",
    "pipewire-",
    "podman",
    "systemd",
    "tmux-",
    "wayland-",
];
/// Folders of keys in folders of keys.
const KEYS_DEPTH: usize = 4;

/// A socket of an agent, and the keys that it lists.
pub(super) struct Socket {
    pub(super) path: PathBuf,
    pub(super) guess: Guess,
    pub(super) answer: Answer,
}

/// Whether a socket is where any program may have put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Guess {
    No,
    Yes,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Keys(Vec<AgentKey>),
    /// It is there for us, and did not answer as an agent does.
    Silent,
    /// The same in a folder of SSH's own: a connection that others may share.
    Shared,
}

/// Those where somebody listens.
#[derive(Default)]
pub(super) struct Sockets {
    pub(super) asked: Vec<Socket>,
    /// What was not asked, and why.
    pub(super) cut: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentKey {
    pub(super) kind: String,
    pub(super) fingerprint: String,
}

impl AgentKey {
    /// Whether its secret is in hardware that wants a touch.
    pub(super) fn is_hardware(&self) -> bool {
        self.kind.starts_with("sk-") || self.kind.starts_with("webauthn-sk-")
    }
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "ssh-agent-key",
        severity: Severity::High,
        looks: "SSH agents: SSH_AUTH_SOCK, and sockets in /tmp and its folders, ~/.ssh and its folders, ~/.gnupg and XDG_RUNTIME_DIR, for keys that are not `sk-`",
        gains: "signatures without a touch: `git push`, every host that the key opens, and approvals at a broker where software keys count",
        fix: "start the agent with SSH_AUTH_SOCK unset and as another user; or keep `sk-` keys only (`ssh-keygen -t ed25519-sk`), and `ssh-add -D` the others",
        run: agent_key,
    },
    Check {
        id: "ssh-control-socket",
        severity: Severity::High,
        looks: "sockets in ~/.ssh and its folders where somebody listens, and no agent: connections that SSH shares (ControlMaster)",
        gains: "the host at the other end, as whoever logged in there: without a key, a passphrase or a touch",
        fix: "`ssh -O exit HOST` closes it; `ControlMaster no` for this user, or run the agent as another",
        run: control_socket,
    },
    Check {
        id: "ssh-key-open",
        severity: Severity::High,
        looks: "private keys without a passphrase in ~/.ssh and its folders, of all homes that can be read",
        gains: "every host and repository that takes the key, and signatures in its owner's name",
        fix: "`ssh-keygen -p -f FILE` gives it a passphrase; better an `sk-` key. For an agent a deploy key of one repository",
        run: key_open,
    },
];

fn agent_key(look: &mut Look<'_>) {
    for why in &look.ground.sockets.cut {
        look.unseen(why);
    }
    for socket in &look.ground.sockets.asked {
        match &socket.answer {
            Answer::Keys(keys) => {
                let soft: Vec<_> = keys.iter().filter(|it| !it.is_hardware()).collect();
                if !soft.is_empty() {
                    let keys: Vec<_> = soft
                        .iter()
                        .take(8)
                        .map(|it| format!("{} {}", it.kind, it.fingerprint))
                        .collect();
                    let more = if soft.len() > 8 { ", and more" } else { "" };
                    let keys = keys.join(", ");
                    look.found(
                        &socket.path,
                        format!(
                            "{} of {} keys sign without a touch: {keys}{more}",
                            soft.len(),
                            socket.count()
                        ),
                    );
                }
            }
            Answer::Shared => {}
            Answer::Silent => {
                look.unseen(format!(
                    "{}: it did not answer as an SSH agent does",
                    socket.path.display()
                ));
            }
        }
    }
}

impl Socket {
    fn count(&self) -> usize {
        if let Answer::Keys(keys) = &self.answer { keys.len() } else { 0 }
    }
}

fn control_socket(look: &mut Look<'_>) {
    for socket in &look.ground.sockets.asked {
        if socket.answer == Answer::Shared {
            look.found(&socket.path, "somebody listens there who is no agent");
        }
    }
}

fn key_open(look: &mut Look<'_>) {
    let mut waiting: Vec<_> = look.ground.homes.iter().map(|it| (it.join(".ssh"), 0)).collect();
    while let Some((dir, depth)) = waiting.pop() {
        for path in look.list(&dir) {
            if path.is_dir() && !path.is_symlink() {
                if depth < KEYS_DEPTH {
                    waiting.push((path, depth + 1));
                } else {
                    look.unseen(format!("{}: it is too deep", path.display()));
                }
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".pub") || name.starts_with("known_hosts") || !path.is_file() {
                continue;
            }
            let Some(content) = look.read(&path) else { continue };
            if private_key(&content).is_some_and(|it| it.open && !it.hardware) {
                look.found(&path, "a private key without a passphrase");
            }
        }
    }
}

/// All sockets that an agent may listen at, asked side by side.
pub(super) fn gather(
    root: &Path,
    environment: &BTreeMap<String, OsString>,
    homes: &[PathBuf],
) -> Sockets {
    let mut places = Places::default();
    places.of_everybody(&root.join("tmp"));
    let users = places.entries(&root.join("run/user"));
    let mut runtimes: Vec<_> = users.into_iter().map(|it| it.path()).collect();
    runtimes.extend(environment.get("XDG_RUNTIME_DIR").map(PathBuf::from));
    for dir in runtimes {
        places.of_a_login(&dir);
    }
    for home in homes {
        let agents = places.entries(&home.join(".ssh/agent"));
        places.known.extend(agents.into_iter().map(|it| it.path()));
        places.known.insert(home.join(".gnupg/S.gpg-agent.ssh"));
        places.of_ssh(&home.join(".ssh"), 0);
    }
    // The one that every tool would ask comes first: no limit hides it.
    let named = environment.get("SSH_AUTH_SOCK").filter(|it| !it.is_empty()).map(PathBuf::from);
    places.known.retain(|it| Some(it) != named.as_ref());
    let Places { known, mut guessed, mut cut } = places;
    guessed.retain(|it| Some(it) != named.as_ref() && !known.contains(it));
    let known = named.into_iter().chain(known).map(|path| (path, Guess::No));
    let guessed = guessed.into_iter().map(|path| (path, Guess::Yes));
    let is_socket = |it: &Path| std::fs::metadata(it).is_ok_and(|it| it.file_type().is_socket());
    let all: Vec<_> = known.chain(guessed).filter(|(it, _)| is_socket(it)).collect();
    let mut sockets = ask_all(all);
    let in_ssh = |it: &Path| homes.iter().any(|home| it.starts_with(home.join(".ssh")));
    sockets.asked.retain_mut(|it| {
        let other = it.guess == Guess::Yes && it.answer == Answer::Silent;
        if other && in_ssh(&it.path) {
            it.answer = Answer::Shared;
        }
        // Whatever else listens there was never thought to be an agent.
        !other || it.answer == Answer::Shared
    });
    sockets.cut.append(&mut cut);
    sockets
}

/// Where agents listen by custom, and where they only might.
#[derive(Default)]
struct Places {
    known: BTreeSet<PathBuf>,
    guessed: BTreeSet<PathBuf>,
    cut: Vec<String>,
}

impl Places {
    fn entries(&mut self, dir: &Path) -> Vec<DirEntry> {
        let all = std::fs::read_dir(dir).into_iter().flatten().flatten().take(ENTRIES + 1);
        let mut all: Vec<_> = all.collect();
        if all.len() > ENTRIES {
            all.truncate(ENTRIES);
            let dir = dir.display();
            self.cut
                .push(format!("{dir}: only {ENTRIES} of its entries were looked at for sockets"));
        }
        all
    }

    /// The sockets among them, but for those of programs that are known to be none.
    fn guess(&mut self, entries: &[DirEntry]) {
        let sockets = entries.iter().filter(|it| {
            let name = it.file_name().to_string_lossy().into_owned();
            it.file_type().is_ok_and(|it| it.is_socket())
                && !OTHERS.iter().any(|it| name.starts_with(it))
        });
        self.guessed.extend(sockets.map(DirEntry::path));
    }

    /// `/tmp`, and the folders in it.
    fn of_everybody(&mut self, tmp: &Path) {
        let entries = self.entries(tmp);
        self.guess(&entries);
        for dir in entries.into_iter().filter(is_folder) {
            let name = dir.file_name().to_string_lossy().into_owned();
            if OTHERS.iter().any(|it| name.starts_with(it)) {
                continue;
            }
            let inside = self.entries(&dir.path());
            if name.starts_with("ssh-") {
                self.known.extend(inside.iter().map(DirEntry::path));
            } else {
                self.guess(&inside);
            }
        }
    }

    /// `XDG_RUNTIME_DIR`.
    fn of_a_login(&mut self, dir: &Path) {
        let names = [
            "ssh-agent.socket",
            "gcr/ssh",
            "keyring/ssh",
            "gnupg/S.gpg-agent.ssh",
            "openssh_agent",
        ];
        self.known.extend(names.map(|it| dir.join(it)));
        let entries = self.entries(dir);
        self.guess(&entries);
        for dir in entries.into_iter().filter(is_folder) {
            let name = dir.file_name().to_string_lossy().into_owned();
            if ["ssh", "agent", "keyring"].iter().any(|it| name.contains(it)) {
                let inside = self.entries(&dir.path());
                self.guess(&inside);
            }
        }
    }

    /// `~/.ssh`, where connections that are shared have their sockets too.
    fn of_ssh(&mut self, dir: &Path, depth: usize) {
        let entries = self.entries(dir);
        self.guess(&entries);
        // A link to where the agent of this login is.
        let links = entries.iter().filter(|it| it.file_type().is_ok_and(|it| it.is_symlink()));
        self.guessed.extend(links.filter_map(|it| it.path().canonicalize().ok()));
        for dir in entries.into_iter().filter(is_folder) {
            if depth < KEYS_DEPTH {
                self.of_ssh(&dir.path(), depth + 1);
            }
        }
    }
}

fn is_folder(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|it| it.is_dir())
}

/// Asks in this order, [`SOCKETS`] at once. One where nobody listens makes room for the next.
fn ask_all(paths: Vec<(PathBuf, Guess)>) -> Sockets {
    let (tell, told) = mpsc::channel();
    let mut sockets = Sockets::default();
    let mut waiting = BTreeSet::new();
    let mut paths = paths.into_iter();
    let began = Instant::now();
    loop {
        let room = SOCKETS - waiting.len() - sockets.asked.len();
        for (path, guess) in paths.by_ref().take(room) {
            let tell = tell.clone();
            waiting.insert((path.clone(), guess));
            // Connecting to a socket whose queue is full waits without a limit: then the thread ends with the program.
            std::thread::spawn(move || {
                let answer = ask(&path, guess);
                let _ = tell.send((path, guess, answer));
            });
        }
        if waiting.is_empty() {
            break;
        }
        let left = LIMIT.saturating_sub(began.elapsed());
        let Ok((path, guess, answer)) = told.recv_timeout(left) else { break };
        waiting.remove(&(path.clone(), guess));
        sockets.asked.extend(answer.map(|answer| Socket { path, guess, answer }));
    }
    let silent = |(path, guess)| Socket { path, guess, answer: Answer::Silent };
    let silent = waiting.into_iter().map(silent);
    sockets.asked.extend(silent);
    sockets.asked.sort_by(|a, b| a.path.cmp(&b.path));
    let left = paths.count();
    if left > 0 {
        let asked = sockets.asked.len();
        sockets.cut.push(format!("only {asked} sockets were asked, and {left} more were not"));
    }
    sockets
}

/// `SSH_AGENTC_REQUEST_IDENTITIES` (draft-ietf-sshm-ssh-agent): lists keys, and makes no agent sign or ask.
/// Nothing if nobody listens there, or not for us.
fn ask(path: &Path, guess: Guess) -> Option<Answer> {
    let mut stream = UnixStream::connect(path).ok()?;
    if guess == Guess::Yes && speaks_first(&mut stream) {
        return Some(Answer::Silent);
    }
    let mut exchange = || -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(LIMIT / 2))?;
        stream.set_write_timeout(Some(LIMIT / 2))?;
        stream.write_all(&[0, 0, 0, 1, 11])?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let mut answer = vec![0; length.min(MESSAGE_LIMIT)];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    Some(exchange().ok().and_then(|it| identities(&it)).map_or(Answer::Silent, Answer::Keys))
}

/// An agent waits to be asked. Who speaks first, or hangs up, is none, and is sent nothing.
fn speaks_first(stream: &mut UnixStream) -> bool {
    let limited = stream.set_read_timeout(Some(GREETING));
    limited.is_err() || stream.read(&mut [0; 64]).is_ok()
}

/// `SSH_AGENT_IDENTITIES_ANSWER`: how many, then each one's public key and comment.
pub(super) fn identities(answer: &[u8]) -> Option<Vec<AgentKey>> {
    let mut rest = answer.strip_prefix(&[12])?;
    let (count, keys) = rest.split_first_chunk::<4>()?;
    rest = keys;
    let mut all = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let key = string(&mut rest)?;
        string(&mut rest)?;
        let kind = scan::string(&mut { key })?;
        let fingerprint = PublicKey::from_bytes(key)
            .map_or_else(|_| String::new(), |it| it.fingerprint(HashAlg::Sha256).to_string());
        all.push(AgentKey { kind: String::from_utf8_lossy(kind).into_owned(), fingerprint });
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// An agent's answer with keys of these kinds.
    fn answer(kinds: &[&str]) -> Vec<u8> {
        let string = |it: &[u8]| [&u32::try_from(it.len()).unwrap().to_be_bytes(), it].concat();
        let key = |kind: &&str| {
            let public = [string(kind.as_bytes()), string(&[7; 32])].concat();
            [string(&public), string(b"bob")].concat()
        };
        let keys: Vec<_> = kinds.iter().map(key).collect();
        let count = u32::try_from(kinds.len()).unwrap().to_be_bytes();
        [&[12], count.as_slice(), &keys.concat()].concat()
    }

    #[test]
    fn keys_in_hardware_are_told_from_those_that_sign_by_themselves() {
        let kinds = [
            "ssh-ed25519",
            "sk-ssh-ed25519@openssh.com",
            "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
            "ssh-rsa-cert-v01@openssh.com",
        ];
        let keys = identities(&answer(&kinds)).unwrap();
        let soft: Vec<_> = keys.iter().filter(|it| !it.is_hardware()).map(|it| &*it.kind).collect();
        assert_eq!(soft, ["ssh-ed25519", "ssh-rsa-cert-v01@openssh.com"]);
        assert!(keys[0].fingerprint.starts_with("SHA256:"));
    }

    /// Sockets in a folder as ssh-agent makes them, and one elsewhere that `SSH_AUTH_SOCK` names, which is the last by name.
    fn machine() -> (tempfile::TempDir, Vec<UnixListener>, BTreeMap<String, OsString>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("tmp/ssh-x")).unwrap();
        let bind = |name: String| UnixListener::bind(dir.path().join(name)).unwrap();
        let mut all: Vec<_> =
            (0..SOCKETS + 6).map(|it| bind(format!("tmp/ssh-x/{it:03}"))).collect();
        all.push(bind("z".to_owned()));
        let named = ("SSH_AUTH_SOCK".to_owned(), dir.path().join("z").into());
        (dir, all, BTreeMap::from([named]))
    }

    fn answer_as_an_agent(listener: &UnixListener) {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        let keys = answer(&["ssh-ed25519"]);
        let length = u32::try_from(keys.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, keys.as_slice()].concat()).unwrap();
        // Until it hangs up.
        let _ = stream.read_to_end(&mut Vec::new());
    }

    #[test]
    fn sockets_where_nobody_listens_hide_none() {
        let (dir, mut listeners, environment) = machine();
        // The one that is named, and another behind all that are dead.
        let alive = listeners.split_off(SOCKETS + 5);
        drop(listeners);
        for listener in alive {
            std::thread::spawn(move || answer_as_an_agent(&listener));
        }
        let sockets = gather(dir.path(), &environment, &[]);
        let keys = |it: &Socket| matches!(&it.answer, Answer::Keys(keys) if keys.len() == 1);
        assert_eq!(sockets.asked.iter().filter(|it| keys(it)).count(), 2);
        assert_eq!((sockets.asked.len(), sockets.cut), (2, vec![]));
    }

    #[test]
    fn an_agent_in_any_folder_of_tmp_is_found_and_other_servers_are_no_matter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("tmp/a/b")).unwrap();
        std::fs::create_dir_all(dir.path().join("tmp/.X11-unix")).unwrap();
        let bind = |name: &str| UnixListener::bind(dir.path().join("tmp").join(name)).unwrap();
        let names = ["x.sock", "own", "a/x", "a/b/too-deep", ".X11-unix/X0", "mysql.sock"];
        for listener in names.map(bind) {
            std::thread::spawn(move || answer_as_an_agent(&listener));
        }
        let _mute = bind("a/mute");
        let sockets = gather(dir.path(), &BTreeMap::new(), &[]);
        let asked: Vec<_> = sockets.asked.iter().map(|it| &it.path).collect();
        let found = ["tmp/a/x", "tmp/own", "tmp/x.sock"].map(|it| dir.path().join(it));
        assert_eq!(asked, found.iter().collect::<Vec<_>>());
    }

    #[test]
    fn who_speaks_first_or_hangs_up_is_no_agent_and_who_waits_may_be_one() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(!speaks_first(&mut ours));
        theirs.write_all(b"hello").unwrap();
        assert!(speaks_first(&mut ours));
        drop(theirs);
        assert!(speaks_first(&mut ours));
    }

    #[test]
    fn what_a_limit_keeps_from_being_asked_is_said_and_is_not_the_one_that_is_named() {
        let (dir, _listeners, environment) = machine();
        let sockets = gather(dir.path(), &environment, &[]);
        assert!(sockets.asked.iter().any(|it| it.path == dir.path().join("z")));
        assert_eq!(sockets.cut, ["only 64 sockets were asked, and 7 more were not"]);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_none() {
        let whole = answer(&["ssh-ed25519", "ssh-ed25519"]);
        for length in 0..whole.len() {
            assert_eq!(identities(&whole[..length]), None, "{length}");
        }
        // More keys than there are.
        assert_eq!(identities(&[&[12, 0xff, 0xff, 0xff, 0xff], &whole[5..]].concat()), None);
    }
}
