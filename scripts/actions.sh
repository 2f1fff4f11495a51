#!/usr/bin/env bash
# Makes broker/src/actions/table.zz, the table of every AWS action, and says what changed. See docs/actions.md.
#
#   scripts/actions.sh            write the table
#   scripts/actions.sh --check    write nothing; fail when the table is not what would be written
#
# Its packages live in an environment of their own, one for each state of requirements.txt.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/actions" && pwd)
case ${XDG_CACHE_HOME-} in
    /*) cache=$XDG_CACHE_HOME/broker ;;
    *) cache=${HOME:?is not set; set it, or XDG_CACHE_HOME}/.cache/broker ;;
esac
python3 -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo 'actions: python3 is older than 3.10; put a newer one first in PATH' >&2 && exit 1; }
state=$(python3 -I -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read() + sys.version.encode()).hexdigest()[:16])' "$here/requirements.txt")
environment=$cache/actions-$state

# It has its name only when it is whole; its Python may have gone since.
is_whole() { "$environment/bin/python" -I -c 'import zopfli' 2>/dev/null; }

install() {
    local unfinished
    (umask 077 && mkdir -p "$cache")
    find "$cache" -maxdepth 1 -name 'actions-*.unfinished.*' -mmin +60 -exec rm -rf {} +
    unfinished=$(mktemp -d "$environment.unfinished.XXXXXX")
    # shellcheck disable=SC2064 # the name is known now
    trap "rm -rf '$unfinished'" EXIT
    python3 -I -m venv "$unfinished"
    "$unfinished/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-deps \
        --require-hashes --only-binary :all: --requirement "$here/requirements.txt" ||
        { echo 'actions: pip could not install the sources; check that it reaches its index' >&2 && exit 1; }
    is_whole || rm -rf "$environment"
    # Unlike mv, this fails when somebody else was first.
    python3 -I -c 'import os, sys; os.rename(*sys.argv[1:])' "$unfinished" "$environment" 2>/dev/null ||
        is_whole || { echo "actions: cannot make $environment" >&2 && exit 1; }
    trap - EXIT
    rm -rf "$unfinished"
}

is_whole || install
exec "$environment/bin/python" -I "$here/build.py" "$@"
