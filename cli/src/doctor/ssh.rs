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
const SOCKETS: usize = 64;

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
    Refused,
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
    for socket in &look.ground.sockets {
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
            Answer::Refused => {}
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
) -> Vec<Socket> {
    let mut paths = BTreeSet::new();
    paths.extend(environment.get("SSH_AUTH_SOCK").filter(|it| !it.is_empty()).map(PathBuf::from));
    let entries = |dir: PathBuf| {
        let all = std::fs::read_dir(dir).into_iter().flatten().flatten().take(4096);
        all.map(|it| it.path()).collect::<Vec<_>>()
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
    let is_socket = |it: &PathBuf| std::fs::metadata(it).is_ok_and(|it| it.file_type().is_socket());
    let (tell, told) = mpsc::channel();
    let mut waiting = BTreeSet::new();
    for path in paths.into_iter().filter(is_socket).take(SOCKETS) {
        let tell = tell.clone();
        waiting.insert(path.clone());
        // Connecting to a socket whose queue is full waits without a limit: then the thread ends with the program.
        std::thread::spawn(move || {
            let answer = ask(&path);
            let _ = tell.send(Socket { path, answer });
        });
    }
    drop(tell);
    let mut sockets = Vec::new();
    let began = Instant::now();
    while let Ok(socket) = told.recv_timeout(LIMIT.saturating_sub(began.elapsed())) {
        waiting.remove(&socket.path);
        sockets.push(socket);
    }
    sockets.extend(waiting.into_iter().map(|path| Socket { path, answer: Answer::Silent }));
    sockets.sort_by(|a, b| a.path.cmp(&b.path));
    sockets
}

/// `SSH_AGENTC_REQUEST_IDENTITIES` (draft-ietf-sshm-ssh-agent): lists keys, and makes no agent sign or ask.
fn ask(path: &Path) -> Answer {
    let Ok(mut stream) = UnixStream::connect(path) else { return Answer::Refused };
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
    exchange().ok().and_then(|it| identities(&it)).map_or(Answer::Silent, Answer::Keys)
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
