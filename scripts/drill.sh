#!/usr/bin/env bash
# Runs the commands of docs/runbook.md, all of them and in their order, on a stack of its own, and compares what
# they print with what the page says they print.
#
#   make drill
#
# The page is the only source. What its fences mean here:
#
#   ```sh drill=WHO     run as WHO: `agent`, `operator`, `break-glass`, or a person of `brokerd dev`
#   ```sql drill        asked as operations; `drill=owner` as the owner of the schema
#   ```text             what the block before printed, both streams, and `exit code N` where that is not 0; a line
#                       `…` stands for any lines. A block without one has to end with exit code 0
#   ```sh aws-only      needs a real account: is only read for its syntax, and named in the summary
#   <!-- drill=WHO      not for readers: brings about what a section is about; exit code 0
#
# Any other block fails the drill. Ids, times, key ids, fingerprints, codes, ports and seconds are compared by their
# form, tables without their widths; ssh-keygen's own lines do not count.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
page=${1-$root/docs/runbook.md}
programs=${CARGO_TARGET_DIR:-$root/target}/debug
case $programs in /*) ;; *) programs=$root/$programs ;; esac
start_limit_seconds=300 # the first start installs the AWS emulator
stop_limit_seconds=30

scratch='' server=''

stop() {
    local status=$? waited=0
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$server" ] && kill -CONT "$server" 2>/dev/null && kill -TERM "$server" 2>/dev/null; then
        while kill -0 "$server" 2>/dev/null && [ "$waited" -lt $((stop_limit_seconds * 10)) ]; do
            sleep 0.1
            waited=$((waited + 1))
        done
        # What it started ends with it, however it ends.
        kill -KILL "$server" 2>/dev/null || true
    fi
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    [ -z "$scratch" ] || rm -rf "$scratch"
    exit "$status"
}

fail() {
    printf 'drill: %s\n' "$*" >&2
    if [ -n "$scratch" ] && [ -s "$scratch/brokerd.log" ]; then
        printf '%s\n' "the last that brokerd said:" >&2
        tail -n 5 "$scratch/brokerd.log" | cut -c 1-1000 >&2
    fi
    exit 1
}

# Takes the page apart: for each block a folder with `line`, `kind`, `who`, `section`, `body` and, if it has one, `expected`.
take_apart() {
    awk -v out="$scratch/blocks" '
        function begin(the_kind, the_who) {
            count++
            dir = sprintf("%s/%03d", out, count)
            system("mkdir -p " dir)
            print NR > (dir "/line"); print the_kind > (dir "/kind"); print the_who > (dir "/who")
            print section > (dir "/section")
            file = dir "/body"
            printf "" > file
            may_expect = (the_kind != "aws-only" && the_kind != "hidden")
        }
        function bad(why) { printf "line %d: %s\n", NR, why > (out "/bad") }
        file == "" && /^## / { section = substr($0, 4); next }
        file == "" && /^<!-- drill=[a-z-]+$/ { begin("hidden", substr($2, 7)); closes = "-->"; next }
        file == "" && /^```sh drill=[a-z-]+$/ { begin("sh", substr($2, 7)); closes = "```"; next }
        file == "" && /^```sql drill$/ { begin("sql", "ops"); closes = "```"; next }
        file == "" && /^```sql drill=owner$/ { begin("sql", "owner"); closes = "```"; next }
        file == "" && /^```sh aws-only$/ { begin("aws-only", "nobody"); closes = "```"; next }
        file == "" && /^```text$/ {
            if (!may_expect) bad("nothing printed this")
            file = dir "/expected"; printf "" > file; may_expect = 0; closes = "```"; next
        }
        file == "" && /^ *(```|~~~)/ { bad("a block that the drill does not run: " $0); exit }
        file == "" { next }
        $0 == closes { close(file); file = ""; next }
        { print > file }
        END { if (file != "") bad("a block has no end") }
    ' "$page"
    [ ! -e "$scratch/blocks/bad" ] || fail "$page: $(cat "$scratch/blocks/bad")"
    [ -d "$scratch/blocks/001" ] || fail "$page has no blocks"
}

start() {
    [ -x "$programs/brokerd" ] || fail "$programs has no brokerd; run \`make drill\`, which builds it"
    "$programs/brokerd" dev --dir "$scratch/dev" --listen 127.0.0.1:0 >"$scratch/brokerd.log" 2>&1 </dev/null &
    server=$!
    local waited=0
    while [ ! -e "$scratch/dev/dev.env" ]; do
        kill -0 "$server" 2>/dev/null || fail "brokerd dev did not start"
        [ "$waited" -lt $((start_limit_seconds * 5)) ] ||
            fail "brokerd dev is not ready after $start_limit_seconds seconds"
        sleep 0.2
        waited=$((waited + 1))
    done
}

# --- what the hidden blocks are made of

# Fails unless AWS denied command $@ with these words in its answer.
aws_refuses() {
    local words=$1 answer
    shift
    if answer=$("$@" 2>&1); then
        printf 'AWS let it: %s\n' "$*"
        return 1
    fi
    [[ $answer == *'(AccessDenied)'*"$words"* ]] || {
        printf '%s\n' "$answer"
        return 1
    }
}

# The answer of operations' database to query $1.
ops() { psql -XAtq "$BROKER_OPS_DATABASE_URL" -c "$1"; }

# Waits until query $1 says `t`.
until_ops() {
    local waited=0
    until [ "$(ops "$1")" = t ]; do
        [ "$waited" -lt 450 ] || {
            printf 'not within 45 s: %s\n' "$1"
            return 1
        }
        sleep 0.1
        waited=$((waited + 1))
    done
}

# The key of IAM user $1, as assignments.
aws_key_of() {
    "$python" - "$scratch/dev/emulator.keys.json" "$1" <<'PYTHON'
import json, sys
keys = json.load(open(sys.argv[1]))
key = keys["admin"] if sys.argv[2] == "admin" else keys["users"][sys.argv[2]]
print(f"AWS_ACCESS_KEY_ID={key['access_key_id']}\nAWS_SECRET_ACCESS_KEY={key['secret_access_key']}")
print(f"external_id={keys['external_id']}")
PYTHON
}

# From here on person $1 signs with key file $2.
signs_with() {
    mkdir -p "$scratch/config-of-$1/broker"
    printf 'key = "%s"\n' "$2" >"$scratch/config-of-$1/broker/config.toml"
}

# --- running

# What an agent holds, and nobody else: its token, and the credentials of a lease.
agents=(BROKER_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN)

become() {
    unset "${agents[@]}"
    export XDG_STATE_HOME=$scratch/state-of-$1 XDG_CONFIG_HOME=$scratch/config-of-$1
    set -a
    case $1 in
        agent) . "$scratch/agent" ;;
        break-glass) . "$scratch/break-glass" ;;
        operator) ;;
        *) [ -e "$BROKER_KEYS/$1" ] || fail "nobody is called $1" ;;
    esac
    set +a
}

leave() {
    local name
    [ "$1" = agent ] || return 0
    for name in "${agents[@]}"; do
        [ -z "${!name-}" ] || printf '%s=%q\n' "$name" "${!name}"
    done >"$scratch/agent"
}

# By its form, what differs from run to run.
formed() {
    sed -E -e '/^(Signing file|Write signature to) /d' \
        -e 's/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/UUID/g' -e 's/UUID-[0-9a-f]{8}/SESSION/g' \
        -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|\+00)?/TIME/g' \
        -e 's/(ASIA|AKIA|AIDA)[0-9A-Z]{12,}/KEY-ID/g' -e 's#SHA256:[0-9A-Za-z+/]{43}#FINGERPRINT#g' \
        -e 's/[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}/CODE/g' -e 's/(localhost|127\.0\.0\.1):[0-9]+/HOST/g' \
        -e 's/[0-9]+\.[0-9]+ s/SECONDS s/g' -e 's/[0-9]+\.[0-9]{3}/SECONDS/g' \
        -e 's/-{2,}/-/g' -e 's/[[:space:]]+/ /g' -e 's/ $//' -e 's/^ //'
}

# Whether text $1 is what page text $2 says.
is_as_said() {
    local pattern
    pattern=$(printf '%s\n' "$2" | sed -e 's/[][\\*?()|!+@]/\\&/g' -e 's/^…$/*/')
    # shellcheck disable=SC2053 # it is a pattern
    [[ $1 == $pattern ]]
}

section='' ran=0 compared=0 only_read=0

run_block() {
    local dir=$1 kind who line body status=0 said expected began=$SECONDS
    kind=$(cat "$dir/kind") who=$(cat "$dir/who") line=$(cat "$dir/line") body=$(cat "$dir/body")
    if [ "$section" != "$(cat "$dir/section")" ]; then
        section=$(cat "$dir/section")
        printf '\n%s\n' "$section"
    fi
    if [ "$kind" = aws-only ]; then
        bash -n "$dir/body" || fail "line $line: not a shell's syntax"
        only_read=$((only_read + 1))
        printf '  %4d  only read   %s\n' "$line" "$(head -n 1 "$dir/body")"
        return
    fi
    case $kind-$who in
        sql-ops) psql -X -v ON_ERROR_STOP=1 "$BROKER_OPS_DATABASE_URL" -f "$dir/body" >"$scratch/said" 2>&1 || status=$? ;;
        sql-owner)
            { echo 'set role broker_owner;' && cat "$dir/body"; } >"$scratch/owner.sql"
            psql -Xq -v ON_ERROR_STOP=1 "$BROKER_ADMIN_DATABASE_URL" -f "$scratch/owner.sql" >"$scratch/said" 2>&1 || status=$?
            ;;
        *)
            become "$who"
            # In this shell: what it sets is there for the next block.
            eval "$body" >"$scratch/said" 2>&1 </dev/null || status=$?
            leave "$who"
            ;;
    esac
    [ "$status" = 0 ] || printf 'exit code %d\n' "$status" >>"$scratch/said"
    said=$(formed <"$scratch/said")
    ran=$((ran + 1))
    if [ -e "$dir/expected" ]; then
        expected=$(formed <"$dir/expected")
        if ! is_as_said "$said" "$expected"; then
            printf '%s\n' "$body"
            diff -u --label "the page" --label "what was seen" <(printf '%s\n' "$expected") <(printf '%s\n' "$said") || true
            fail "$page:$line: it printed something else than the page says"
        fi
        compared=$((compared + 1))
    elif [ "$status" != 0 ]; then
        printf '%s\n' "$body"
        cat "$scratch/said"
        fail "$page:$line: it failed"
    fi
    if [ "$kind" != hidden ]; then
        printf '  %4d  %-11s %s%s\n' "$line" "$who" "$(head -n 1 "$dir/body" | cut -c 1-90)" "$(
            [ $((SECONDS - began)) -lt 2 ] || printf '   (%d s)' $((SECONDS - began))
        )"
    fi
}

# --- surroundings

aws_cli=$("$root/scripts/setup.sh" --print-aws)
[ -x "$aws_cli" ] || fail "the AWS CLI is not installed; run scripts/setup.sh"
python=$(dirname "$aws_cli")/python
postgres=$("$root/scripts/setup.sh" --print-postgres) || exit 1

# Nothing of the user's own may help, or be touched.
for name in $(compgen -v AWS_) $(compgen -v BROKER_) $(compgen -v PG); do
    unset "$name"
done
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
scratch=$(mktemp -d "${TMPDIR:-/tmp}/broker-drill.XXXXXX")
# Started by root, PostgreSQL runs as another user, who has to get through.
chmod 711 "$scratch"
mkdir "$scratch/blocks" "$scratch/bin" "$scratch/home"
take_apart
start

ln -s "$programs/broker" "$programs/brokerd" "$postgres/psql" "$scratch/bin/"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$aws_cli" >"$scratch/bin/aws"
chmod 755 "$scratch/bin/aws"
set -a
# shellcheck disable=SC1091 # written by brokerd
. "$scratch/dev/dev.env"
PATH=$scratch/bin:$PATH
HOME=$scratch/home
BROKER_CONFIG=$scratch/dev/config
AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
NO_COLOR=1 PAGER='' AWS_PAGER='' BROKER_URL=$BROKER_URL
set +a
leave agent
aws_key_of admin | grep ^AWS_ >"$scratch/break-glass"
for key in "$BROKER_KEYS"/*.pub; do
    signs_with "$(basename "$key" .pub)" "${key%.pub}"
done
cd "$scratch/home"

for block in "$scratch/blocks"/*/; do
    run_block "${block%/}"
done

printf '\nTime to effect, from the command to AWS refusing (the slowest revoke is the last, where IAM was kept from the broker):\n'
psql -X -P footer=off "$BROKER_OPS_DATABASE_URL" -c "
    select case when freeze_id is null then 'revoke' else 'freeze' end as by, count(*) as sessions,
           min(seconds_to_stop) as fastest_seconds, max(seconds_to_stop) as slowest_seconds
      from stopped_sessions where state = 'stopped' group by 1 order by 1"
printf 'All of it is as the page says: %d blocks ran in %d s, %d of them compared; %d need a real account and were only read.\n' \
    "$ran" "$SECONDS" "$compared" "$only_read"
