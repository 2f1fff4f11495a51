//! SSH: agents that sign for whoever reaches their socket, and private keys that are files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
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

/// A socket of an agent, and the keys that it lists.
pub(super) struct Socket {
    pub(super) path: PathBuf,
    pub(super) answer: Answer,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Keys(Vec<AgentKey>),
    /// It is there for us, and did not answer as an agent does.
    Silent,
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
        looks: "SSH agents: SSH_AUTH_SOCK, and sockets in /tmp, ~/.ssh/agent, ~/.gnupg and XDG_RUNTIME_DIR, for keys that are not `sk-`",
        gains: "signatures without a touch: `git push`, every host that the key opens, and approvals at a broker where software keys count",
        fix: "start the agent with SSH_AUTH_SOCK unset and as another user; or keep `sk-` keys only (`ssh-keygen -t ed25519-sk`), and `ssh-add -D` the others",
        run: agent_key,
    },
    Check {
        id: "ssh-key-open",
        severity: Severity::High,
        looks: "private keys without a passphrase in ~/.ssh, of all homes that can be read",
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

fn key_open(look: &mut Look<'_>) {
    for home in &look.ground.homes {
        for path in look.list(&home.join(".ssh")) {
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
    let mut paths = BTreeSet::new();
    let mut cut = Vec::new();
    let mut entries = |dir: PathBuf| {
        let all = std::fs::read_dir(&dir).into_iter().flatten().flatten().take(ENTRIES + 1);
        let mut all: Vec<_> = all.map(|it| it.path()).collect();
        if all.len() > ENTRIES {
            all.truncate(ENTRIES);
            let dir = dir.display();
            cut.push(format!("{dir}: only {ENTRIES} of its entries were looked at for sockets"));
        }
        all
    };
    for dir in entries(root.join("tmp")) {
        if dir.file_name().is_some_and(|it| it.to_string_lossy().starts_with("ssh-")) {
            paths.extend(entries(dir));
        }
    }
    let mut runtimes = entries(root.join("run/user"));
    runtimes.extend(environment.get("XDG_RUNTIME_DIR").map(PathBuf::from));
    for dir in runtimes {
        let names = [
            "ssh-agent.socket",
            "gcr/ssh",
            "keyring/ssh",
            "gnupg/S.gpg-agent.ssh",
            "openssh_agent",
        ];
        paths.extend(names.map(|it| dir.join(it)));
    }
    for home in homes {
        paths.extend(entries(home.join(".ssh/agent")));
        paths.insert(home.join(".gnupg/S.gpg-agent.ssh"));
    }
    // The one that every tool would ask comes first: no limit hides it.
    let named = environment.get("SSH_AUTH_SOCK").filter(|it| !it.is_empty()).map(PathBuf::from);
    paths.retain(|it| Some(it) != named.as_ref());
    let is_socket = |it: &PathBuf| std::fs::metadata(it).is_ok_and(|it| it.file_type().is_socket());
    let mut sockets = ask_all(named.into_iter().chain(paths).filter(is_socket).collect());
    sockets.cut.append(&mut cut);
    sockets
}

/// Asks in this order, [`SOCKETS`] at once. One where nobody listens makes room for the next.
fn ask_all(paths: Vec<PathBuf>) -> Sockets {
    let (tell, told) = mpsc::channel();
    let mut sockets = Sockets::default();
    let mut waiting = BTreeSet::new();
    let mut paths = paths.into_iter();
    let began = Instant::now();
    loop {
        let room = SOCKETS - waiting.len() - sockets.asked.len();
        for path in paths.by_ref().take(room) {
            let tell = tell.clone();
            waiting.insert(path.clone());
            // Connecting to a socket whose queue is full waits without a limit: then the thread ends with the program.
            std::thread::spawn(move || {
                let answer = ask(&path);
                let _ = tell.send((path, answer));
            });
        }
        if waiting.is_empty() {
            break;
        }
        let left = LIMIT.saturating_sub(began.elapsed());
        let Ok((path, answer)) = told.recv_timeout(left) else { break };
        waiting.remove(&path);
        sockets.asked.extend(answer.map(|answer| Socket { path, answer }));
    }
    let silent = waiting.into_iter().map(|path| Socket { path, answer: Answer::Silent });
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
fn ask(path: &Path) -> Option<Answer> {
    let mut stream = UnixStream::connect(path).ok()?;
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

    #[test]
    fn sockets_where_nobody_listens_hide_none() {
        let (dir, mut listeners, environment) = machine();
        // The one that is named, and another behind all that are dead.
        let alive = listeners.split_off(SOCKETS + 5);
        drop(listeners);
        for listener in alive {
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let keys = answer(&["ssh-ed25519"]);
                let length = u32::try_from(keys.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length, keys.as_slice()].concat()).unwrap();
                // Until it hangs up.
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
        let sockets = gather(dir.path(), &environment, &[]);
        let keys = |it: &Socket| matches!(&it.answer, Answer::Keys(keys) if keys.len() == 1);
        assert_eq!(sockets.asked.iter().filter(|it| keys(it)).count(), 2);
        assert_eq!((sockets.asked.len(), sockets.cut), (2, vec![]));
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
