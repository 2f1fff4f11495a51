//! Instance and container metadata: credentials that a machine hands to whoever asks from it.
//!
//! The addresses are AWS's and fixed: no variable moves or silences them, since an agent could set it. An address that
//! does not answer within the time limit counts as not there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Check, Look, Severity};

const LIMIT: Duration = Duration::from_millis(300);
const ANSWER_LIMIT: u64 = 16 << 10;

/// Where to ask.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) instance: SocketAddr,
    /// Of ECS's agent and EKS's.
    pub(super) containers: [SocketAddr; 2],
}

const fn link_local(last: [u8; 2]) -> SocketAddr {
    let ip = std::net::Ipv4Addr::new(169, 254, last[0], last[1]);
    SocketAddr::new(std::net::IpAddr::V4(ip), 80)
}

pub(super) const ADDRESSES: Addresses = Addresses {
    instance: link_local([169, 254]),
    containers: [link_local([170, 2]), link_local([170, 23])],
};

/// What answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) instance: Option<Instance>,
    pub(super) containers: Vec<SocketAddr>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Instance {
    /// Whether it answers without a session token too.
    pub(super) version_1: bool,
    pub(super) roles: Vec<String>,
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "instance-role",
        severity: Severity::Critical,
        looks: "EC2 instance metadata (169.254.169.254), by both versions, for a role",
        gains: "whatever the instance's role may do, for as long as the machine runs; AWS renews the credentials",
        fix: "take the role off (`aws ec2 disassociate-iam-instance-profile`), or keep the agent from the address: `aws ec2 modify-instance-metadata-options --http-tokens required --http-put-response-hop-limit 1` for containers, a firewall rule for its user",
        run: instance_role,
    },
    Check {
        id: "instance-metadata",
        severity: Severity::Low,
        looks: "EC2 instance metadata that answers without a role",
        gains: "user data, which often has secrets in it; and a role, as soon as somebody attaches one",
        fix: "`aws ec2 modify-instance-metadata-options --http-endpoint disabled`, or keep the agent from the address",
        run: instance_metadata,
    },
    Check {
        id: "container-metadata",
        severity: Severity::Medium,
        looks: "the credential endpoints of ECS (169.254.170.2) and EKS (169.254.170.23)",
        gains: "the task's or the pod's role, with the path or the token that the container's first process was given",
        fix: "give the agent's task or pod no role, or keep it from the address",
        run: container_metadata,
    },
];

fn asked<'a>(look: &mut Look<'a>) -> Option<&'a Metadata> {
    let metadata = look.ground.metadata.as_ref();
    if metadata.is_none() {
        look.left_out("not asked, because of --no-network");
    }
    metadata
}

fn instance_role(look: &mut Look<'_>) {
    let Some(Some(instance)) = asked(look).map(|it| &it.instance) else { return };
    let how = if instance.version_1 { ", without a session token too (IMDSv1)" } else { "" };
    for role in &instance.roles {
        look.found("169.254.169.254", format!("hands out credentials of the role {role}{how}"));
    }
}

fn instance_metadata(look: &mut Look<'_>) {
    let Some(Some(instance)) = asked(look).map(|it| &it.instance) else { return };
    if instance.roles.is_empty() {
        look.found("169.254.169.254", "answers, and has no role now");
    }
}

fn container_metadata(look: &mut Look<'_>) {
    let Some(metadata) = asked(look) else { return };
    for address in &metadata.containers {
        look.found(address.ip().to_string(), "answers as an endpoint of credentials does");
    }
}

/// Asks all at once.
pub(super) fn gather(addresses: Addresses) -> Metadata {
    std::thread::scope(|scope| {
        let instance = scope.spawn(move || instance(addresses.instance));
        let containers =
            addresses.containers.map(|it| scope.spawn(move || container(it).then_some(it)));
        let containers = containers.into_iter().filter_map(|it| it.join().ok().flatten()).collect();
        Metadata { instance: instance.join().ok().flatten(), containers }
    })
}

fn instance(address: SocketAddr) -> Option<Instance> {
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    let ask = |method, path, header: &str| ask(address, method, path, header);
    let put = ask("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n");
    // Something may listen there that is not EC2's: what answers neither way as it does is not it.
    let token = put.filter(|(status, it)| *status == 200 && is_word(it, 512)).map(|(_, it)| it);
    let bare = ask("GET", ROLES, "");
    let version_1 = match &bare {
        Some((200, roles)) => !names(roles).is_empty(),
        Some((404, _)) => ask("GET", "/latest/meta-data/instance-id", "")
            .is_some_and(|(status, id)| status == 200 && id.trim().starts_with("i-")),
        _ => false,
    };
    if token.is_none() && !version_1 {
        return None;
    }
    let roles = match &token {
        Some(token) => {
            ask("GET", ROLES, &format!("X-aws-ec2-metadata-token: {}\r\n", token.trim()))
        }
        None => bare,
    };
    let roles = roles.filter(|(status, _)| *status == 200).map(|(_, it)| names(&it));
    Some(Instance { version_1, roles: roles.unwrap_or_default() })
}

/// Both answer a request that has neither path nor token with a refusal of their own, in JSON.
fn container(address: SocketAddr) -> bool {
    let path = if address.ip() == ADDRESSES.containers[1].ip() {
        "/v1/credentials"
    } else {
        "/v2/credentials"
    };
    ask(address, "GET", path, "").is_some_and(|(status, body)| {
        let body = body.to_lowercase();
        (400..404).contains(&status)
            && (body.contains("credential") || body.contains("token") || body.contains("authoriz"))
            || status == 404 && body.contains("credential")
    })
}

/// A list of roles' names, or nothing if anything in it is none.
fn names(body: &str) -> Vec<String> {
    let all: Vec<_> = body.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    let fine = |it: &&str| {
        it.len() <= 64 && it.chars().all(|it| it.is_ascii_alphanumeric() || "+=,.@-_".contains(it))
    };
    if all.len() <= 16 && all.iter().all(fine) {
        all.into_iter().map(str::to_owned).collect()
    } else {
        Vec::new()
    }
}

fn is_word(text: &str, limit: usize) -> bool {
    let text = text.trim();
    !text.is_empty() && text.len() <= limit && text.bytes().all(|it| it.is_ascii_graphic())
}

/// One request on a connection of its own, past any proxy: status and body.
fn ask(address: SocketAddr, method: &str, path: &str, header: &str) -> Option<(u16, String)> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
    stream.set_write_timeout(Some(LIMIT)).ok()?;
    let length = if method == "PUT" { "Content-Length: 0\r\n" } else { "" };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\n{header}{length}Connection: close\r\n\r\n",
        address.ip()
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // One byte a while must not keep us: the time limit is for the whole answer.
    while answer.len() < usize::try_from(ANSWER_LIMIT).ok()? {
        let left = (2 * LIMIT).checked_sub(began.elapsed()).filter(|it| !it.is_zero());
        let Some(left) = left else { break };
        stream.set_read_timeout(Some(left)).ok()?;
        let mut part = [0; 1024];
        match stream.read(&mut part) {
            Ok(count @ 1..) => answer.extend_from_slice(&part[..count]),
            _ => break,
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::net::TcpListener;

    use super::*;

    /// Answers each request by its first line and whether a session token came with it.
    fn serve(answer: impl Fn(&str, bool) -> (u16, &'static str) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let reader = std::io::BufReader::new(stream.try_clone().unwrap());
                let head: Vec<_> =
                    reader.lines().map_while(Result::ok).take_while(|it| !it.is_empty()).collect();
                let token = head.iter().any(|it| it == "X-aws-ec2-metadata-token: t0ken");
                let (status, body) = answer(head.first().map_or("", String::as_str), token);
                let length = body.len();
                let _ =
                    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
            }
        });
        address
    }

    /// A port that nobody listens on.
    fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn with_instance(instance: SocketAddr) -> Metadata {
        gather(Addresses { instance, containers: [nobody(), nobody()] })
    }

    const TOKEN: &str = "PUT /latest/api/token HTTP/1.1";
    const ROLES: &str = "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1";

    #[test]
    fn a_role_of_the_instance_is_seen_by_either_version() {
        let second = serve(|line, token| match (line, token) {
            (TOKEN, _) => (200, "t0ken"),
            (ROLES, true) => (200, "admin"),
            _ => (401, ""),
        });
        let roles = vec!["admin".to_owned()];
        let expected = Instance { version_1: false, roles: roles.clone() };
        assert_eq!(with_instance(second).instance, Some(expected));
        let first = serve(|line, _| if line == ROLES { (200, "admin\n") } else { (404, "") });
        assert_eq!(with_instance(first).instance, Some(Instance { version_1: true, roles }));
    }

    #[test]
    fn an_instance_without_a_role_is_seen_too() {
        let none = serve(|line, token| match (line, token) {
            (TOKEN, _) => (200, "t0ken"),
            (_, true) => (404, ""),
            _ => (401, ""),
        });
        let expected = Instance { version_1: false, roles: Vec::new() };
        assert_eq!(with_instance(none).instance, Some(expected));
    }

    #[test]
    fn whoever_else_answers_there_is_no_instance() {
        for body in ["<html>log in to this network</html>", "", "no such page here"] {
            let portal = serve(move |_, _| (200, body));
            assert_eq!(with_instance(portal), Metadata::default(), "{body}");
        }
        assert_eq!(with_instance(nobody()), Metadata::default());
    }

    #[test]
    fn an_endpoint_of_containers_is_known_by_how_it_refuses() {
        let ecs =
            serve(|_, _| (400, "{\"code\":\"NoIdInRequest\",\"message\":\"No Credential ID\"}"));
        let other = serve(|_, _| (404, "not found"));
        let metadata = gather(Addresses { instance: nobody(), containers: [ecs, other] });
        assert_eq!(metadata.containers, [ecs]);
    }

    #[test]
    fn who_takes_the_connection_and_says_nothing_does_not_keep_us() {
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let began = Instant::now();
        assert_eq!(with_instance(mute.local_addr().unwrap()), Metadata::default());
        // Three requests at most, each with its limit.
        assert!(began.elapsed() < 3 * 2 * LIMIT + Duration::from_secs(2));
    }
}
