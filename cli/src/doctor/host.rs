//! Ways to be root, who reads everything that anybody keeps on this machine.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::ground::read;
use super::{Check, Look, Severity};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "container-socket",
        severity: Severity::High,
        looks: "sockets of Docker, Podman, containerd and CRI-O that can be written, also DOCKER_HOST's",
        gains: "root on the machine that the engine runs on: a container with its disk mounted",
        fix: "do not mount the socket for the agent, and take its user out of the group that may write it; rootless Podman as a user of its own",
        run: container_socket,
    },
    Check {
        id: "root-group",
        severity: Severity::Medium,
        looks: "membership in sudo, wheel, admin, docker, lxd, libvirt, disk and shadow",
        gains: "root, perhaps after a password: whether `sudo` asks for one is not tried",
        fix: "`gpasswd -d USER GROUP`, or a user of its own for the agent",
        run: root_group,
    },
    Check {
        id: "root-user",
        severity: Severity::Low,
        looks: "whether we are root",
        gains: "every file of every user of this machine, or of this container",
        fix: "run the agent as a user of its own (`USER` in a Dockerfile)",
        run: root_user,
    },
];

fn container_socket(look: &mut Look<'_>) {
    let names = [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/containerd/containerd.sock",
        "/run/crio/crio.sock",
    ];
    let mut paths: Vec<PathBuf> = names.map(|it| look.ground.at(it)).to_vec();
    paths.extend(
        look.ground
            .text("DOCKER_HOST")
            .and_then(|it| it.strip_prefix("unix://").map(PathBuf::from)),
    );
    for home in &look.ground.homes {
        paths.extend(
            [
                ".docker/run/docker.sock",
                ".docker/desktop/docker.sock",
                ".colima/default/docker.sock",
            ]
            .map(|it| home.join(it)),
        );
    }
    let mut seen = Vec::new();
    for path in paths {
        let Ok(real) = path.canonicalize() else { continue };
        let is_socket = real.metadata().is_ok_and(|it| it.file_type().is_socket());
        // By the effective user, as the agent's programs are.
        let writable = accessat(CWD, &real, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
        if is_socket && writable && !seen.contains(&real) {
            look.found(&path, "a socket of a container engine, which can be written");
            seen.push(real);
        }
    }
}

fn root_group(look: &mut Look<'_>) {
    const NAMES: [&str; 10] = [
        "sudo",
        "wheel",
        "admin",
        "docker",
        "lxd",
        "incus-admin",
        "libvirt",
        "disk",
        "shadow",
        "podman",
    ];
    let list = read(&look.ground.at("/etc/group"), 1 << 20).unwrap_or_default().0;
    let list = String::from_utf8_lossy(&list);
    let row = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse::<u32>().ok()?, name))
    };
    let names: BTreeMap<_, _> = list.lines().filter_map(row).collect();
    for gid in &look.ground.gids {
        let name = names.get(gid).map_or("", String::as_str);
        // Root needs no group.
        if NAMES.contains(&name) && look.ground.uid != 0 {
            look.found(format!("group {name}"), "we are a member");
        }
    }
}

fn root_user(look: &mut Look<'_>) {
    if look.ground.uid == 0 {
        look.found("user 0", "we are root");
    }
}
