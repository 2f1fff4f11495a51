#!/usr/bin/env bash
# The whole product step by step, on this machine, without an account: starts `brokerd dev` in a directory of its own,
# asks, is refused, signs, writes, stops, reads the history, rewrites it, is seen, and leaves nothing behind.
#
#   make demo
#
# What is shown is what is run. Each step says what it expects; where that does not happen the demo
# says so and fails.
#
# shellcheck disable=SC2016,SC2034 # commands are shown as they are written; names are exported by `set -a`
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
programs=${CARGO_TARGET_DIR:-$root/target}/debug
case $programs in /*) ;; *) programs=$root/$programs ;; esac
start_limit_seconds=300 # the first start installs the AWS emulator
stop_limit_seconds=30

if [ -t 1 ] && [ -z "${NO_COLOR-}" ] && [ "${TERM-dumb}" != dumb ]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' plain=''
fi

# --- the stack: started here, always stopped

scratch='' server='' held=0 step=0

stop() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then
        local waited=0
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
    printf '\n%sdemo: %s%s\n' "$red" "$*" "$plain" >&2
    if [ -s "$scratch/brokerd.log" ]; then
        printf '%s\n' "the last that brokerd said:" >&2
        tail -n 8 "$scratch/brokerd.log" | cut -c 1-2000 >&2
    fi
    exit 1
}

start() {
    [ -x "$programs/brokerd" ] ||
        fail "$programs has no brokerd; run \`make demo\`, which builds them"
    printf 'starting brokerd dev: a private PostgreSQL, an AWS emulator that enforces IAM, demo people '
    "$programs/brokerd" dev --dir "$scratch/dev" --listen 127.0.0.1:0 >"$scratch/brokerd.log" 2>&1 </dev/null &
    server=$!
    local waited=0
    while [ ! -e "$scratch/dev/dev.env" ]; do
        if ! kill -0 "$server" 2>/dev/null; then
            fail "brokerd dev did not start"
        fi
        [ "$waited" -lt $((start_limit_seconds * 5)) ] ||
            fail "brokerd dev is not ready after $start_limit_seconds seconds"
        [ $((waited % 5)) != 0 ] || printf '.'
        sleep 0.2
        waited=$((waited + 1))
    done
    printf ' ready\n'
}

# --- telling and checking

heading() {
    step=$((step + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$step" "$1" "$plain"
}

# What the last command printed, both streams, and its exit code.
said='' status=0

# Shows command $2, as the person or program $1 would type it, and runs it.
run_as() {
    printf '\n%s%s$%s %s\n' "$dim" "$1" "$plain" "$2"
    status=0
    case $1 in
        # In this shell: what it is given by `eval` stays for the next command.
        agent) eval "$2" >"$scratch/said" 2>&1 </dev/null || status=$? ;;
        # People have no agent's token, and are each logged in for themselves.
        *) (
            unset BROKER_TOKEN
            export XDG_STATE_HOME=$scratch/state-of-$1
            eval "$2"
        ) >"$scratch/said" 2>&1 </dev/null || status=$? ;;
    esac
    said=$(cat "$scratch/said")
    local secret
    for secret in "$token" "${AWS_SECRET_ACCESS_KEY-}" "${AWS_SESSION_TOKEN-}"; do
        if [ -n "$secret" ] && [[ $said == *"$secret"* ]]; then
            fail "step $step: a secret was about to be shown"
        fi
    done
    [ -z "$said" ] || printf '%s\n' "$said"
}
agent() { run_as agent "$1"; }

holds() {
    held=$((held + 1))
    printf '%s   ✓ %s%s\n' "$green" "$1" "$plain"
}

# The exit code is $1; $2 says what that means.
exits() {
    [ "$status" = "$1" ] || fail "step $step: expected exit code $1 ($2), and it was $status"
    holds "exit code $1: $2"
}

fails() {
    [ "$status" != 0 ] || fail "step $step: expected a failure ($1), and it went through"
}

# What was said has the text $1 in it; $2 says what that means.
says() {
    [[ $said == *"$1"* ]] || fail "step $step: expected \"$1\" ($2)"
    holds "$2"
}

says_not() {
    [[ $said != *"$1"* ]] || fail "step $step: did not expect \"$1\" ($2)"
    holds "$2"
}

# The answer of operations' database to query $1 is $2; $3 says what that means.
database_says() {
    local answer
    answer=$(psql "$BROKER_OPS_DATABASE_URL" -XAtq -c "$1") || fail "step $step: the database does not answer"
    [ "$answer" = "$2" ] || fail "step $step: expected \"$2\" from the database ($3), and it says \"$answer\""
    holds "$3"
}

# AWS refused the call $1. Its CLI prints that sentence and nobody else does.
aws_refuses() {
    fails "$2"
    says "(AccessDenied) when calling the $1 operation" "$2"
}

# --- surroundings

aws_cli=$("$root/scripts/setup.sh" --print-aws)
[ -x "$aws_cli" ] || fail "the AWS CLI is not installed; run scripts/setup.sh"
postgres=$("$root/scripts/setup.sh" --print-postgres) || exit 1

# Nothing of the user's own may help, or be touched.
for name in $(compgen -v AWS_) $(compgen -v BROKER_) $(compgen -v PG); do
    unset "$name"
done
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
scratch=$(mktemp -d "${TMPDIR:-/tmp}/broker-demo.XXXXXX")
# Started by root, PostgreSQL runs as another user, who has to get through.
chmod 711 "$scratch"
start

mkdir "$scratch/bin" "$scratch/home"
ln -s "$programs/broker" "$programs/brokerd" "$postgres/psql" "$scratch/bin/"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$aws_cli" >"$scratch/bin/aws"
chmod 755 "$scratch/bin/aws"
set -a
# shellcheck disable=SC1091 # written by brokerd
. "$scratch/dev/dev.env"
PATH=$scratch/bin:$PATH
HOME=$scratch/home
XDG_CONFIG_HOME=$scratch/home XDG_STATE_HOME=$scratch/state-of-agent
AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
NO_COLOR=1 # of what is captured
set +a
token=$BROKER_TOKEN
cd "$scratch/home"

# --- the story

original='{"debug": false, "workers": 16}'
changed='{"debug": false, "workers": 32}'
config=s3://prod-app-data/config/app.json

heading 'An agent needs staging: the lease is issued at once, and used for real'
agent 'eval "$(broker lease --scope staging-rw --task OPS-7 --reason "tidy up after the test run" -o env)"'
exits 0 'issued, and the secrets went into the environment, not onto the screen'
agent 'aws s3 ls --recursive s3://staging-app-data'
says tmp/scratch-1.txt 'AWS lists the bucket'
agent 'echo "tidied by OPS-7" | aws s3 cp - s3://staging-app-data/reports/tidied.txt && aws s3 rm s3://staging-app-data/tmp/scratch-1.txt'
exits 0 'AWS writes and deletes'
agent 'aws s3 ls --recursive s3://staging-app-data'
says reports/tidied.txt 'the new object is there'
says_not tmp/scratch-1.txt 'and the old one is gone'

heading 'The same agent turns to production: AWS itself refuses'
agent 'aws sts get-caller-identity --query Arn --output text'
says assumed-role/broker-staging/ 'what it holds is a session of the staging role'
agent "aws s3 rm $config"
aws_refuses DeleteObject 'IAM, not the broker, refuses the staging credentials a delete in production'
agent "echo '$changed' | broker exec --scope prod-ro -- aws s3 cp - $config"
aws_refuses PutObject 'nor does a lease that may read production write there'
agent "broker exec --scope prod-ro -- aws s3 cp $config -"
says "$original" 'production is as it was'
unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN

heading 'A write to production is asked for: nothing is issued until somebody signs'
agent "broker explain --scope prod-rw --action s3:PutObject --resource arn:aws:s3:::prod-app-data/config/app.json \\
    --reason 'twice the workers for the sale' --rollback 'write workers 16 again' -o text"
says 'outcome    pending' 'what would happen, and why, is told before anything is asked for'
says 'is data-read in production' 'the tier is computed from what the scope does and where'
agent "broker lease --scope prod-rw --action s3:PutObject --resource arn:aws:s3:::prod-app-data/config/app.json \\
    --task OPS-7 --reason 'twice the workers for the sale' --rollback 'write workers 16 again' -o text"
exits 3 'pending, not signed yet'
lease=$(sed -n 's/^lease  *\([0-9a-f-]\{36\}\)$/\1/p' "$scratch/said" | head -n 1)
[ -n "$lease" ] || fail "step $step: the answer names no lease"
says 'bob, carol' 'the agent is told who may sign; alice, who stands behind it, is not among them'
write="echo '$changed' | broker exec --lease $lease -- aws s3 cp - $config"
agent "$write"
exits 3 'no credentials'
database_says "select count(*) filter (where type = 'lease.pending') || ' ' || count(*) filter (where session_id is not null)
    from lease_events where lease_id = '$lease'" '1 0' \
    'AWS was not asked for a session: the database would have been told before'

heading 'Alice, the sponsor, signs: her signature does not count'
run_as alice "broker sign $lease --key \$BROKER_KEYS/alice -o text"
exits 4 'denied'
says 'this person stands behind the agent' 'one human cannot both send the agent and approve what it does'
agent "$write"
exits 3 'still pending'

heading 'Bob, a second human, reads the exact request and signs it'
run_as bob "broker sign $lease --key \$BROKER_KEYS/bob -o text"
exits 0 'the signature counts'
says 'approve by bob' 'the lease is approved by name'

heading 'The write happens, once, and nothing else does'
agent "$write"
exits 0 'AWS took the write'
agent "broker exec --scope prod-ro -- aws s3 cp $config -"
says "$changed" 'production has changed'
agent "echo gone | broker exec --lease $lease -- aws s3 cp - s3://prod-app-data/reports/2026-01.csv"
aws_refuses PutObject 'what was signed is what AWS enforces: the same credentials write no other object'
database_says "select cardinality(access_key_ids) from lease_history where id = '$lease'" 1 \
    'one approval, one session: those were the credentials of before, for the rest of their 15 minutes'

heading 'The approval leaves as one file, which anybody checks without the broker'
run_as bob "broker approval export $lease -f approval.json && broker audit verify approval.json -o text"
exits 0 'what bob signed, his key, and that it covers these very bytes'
run_as auditor 'sed "s/A/B/" approval.json >forged.json; broker audit verify forged.json -o text'
exits 4 'one changed letter, and it is not valid'

heading 'Who may sign is itself signed'
run_as operator "brokerd person --config $scratch/dev/config groups dave --add production-signers"
exits 0 'on the server an operator proposes, and nothing more'
change=$(sed -n 's/^  statement  *\([0-9a-f-]\{36\}\)$/\1/p' "$scratch/said" | head -n 1)
[ -n "$change" ] || fail "step $step: the proposal names no statement"
run_as dave "broker sign $change --key \$BROKER_KEYS/dave -o text"
exits 4 'dave does not make himself a signer'
database_says "select 'production-signers' = any (groups) from people where handle = 'dave'" f 'he is none yet'
run_as erin "broker sign $change --key \$BROKER_KEYS/erin -o text"
exits 0 'another admin does; here at once, elsewhere after a day in which it can be refused'
database_says "select 'production-signers' = any (groups) from people where handle = 'dave'" t 'now he is one'
agent 'broker task start --agent helper --task OPS-8 -o text'
exits 2 'a token starts no task: that takes a person and their key'
run_as alice 'broker task start --agent helper --task OPS-8 --write-token helper.token --key $BROKER_KEYS/alice'
exits 0 'its sponsor has, and answers for it'

heading 'Carol stops the agent: here at once, and on AWS until AWS is seen to refuse'
agent 'eval "$(broker lease --scope staging-rw --task OPS-7 --reason "keep a session" -o env)"
aws s3 ls s3://staging-app-data
broker revoke $(broker leases -o json | sed -n "s/^ *\"id\": \"\([0-9a-f-]\{36\}\)\".*/\1/p" | head -n 1) --reason "not needed" -o text
aws s3 ls s3://staging-app-data'
aws_refuses ListObjectsV2 'the session that worked a moment ago is refused by AWS itself'
run_as carol 'broker freeze --agent demo-agent --reason "what else does it do" --key $BROKER_KEYS/carol -o text'
exits 0 'nothing more is issued to it, until another person signs that it may go on'
agent 'broker exec --scope staging-ro -- aws s3 ls s3://staging-app-data'
exits 6 'frozen'
database_says "select count(*) from stopped_sessions where state = 'revoking'" 0 'nothing is called stopped that AWS was not seen to refuse'
run_as operator "brokerd doctor --config $scratch/dev/config"
exits 0 'the live account and the database are what the catalogue believes they are'

heading 'What happened, for whoever writes SQL'
run_as ops 'psql "$BROKER_OPS_DATABASE_URL" -X -P border=0 -P footer=off -c "
    select id, agent, sponsor, scope, tier, state, signers, access_key_ids from lease_history order by requested_at"'
exits 0 'every lease, with the AWS key ids that CloudTrail shows'
run_as ops "psql \"\$BROKER_OPS_DATABASE_URL\" -X -P border=0 -P footer=off -c \"
    select to_char(recorded_at, 'HH24:MI:SS.MS') as at, type, actor,
           coalesce(data -> 'detail' ->> 'reason', data -> 'detail' ->> 'access_key_id') as detail
      from lease_events where lease_id = '$lease' order by seq\""
exits 0 'the story of the production write'
database_says "select agent, sponsor, tier, state, signers, cardinality(access_key_ids) from lease_history where id = '$lease'" \
    'demo-agent|alice|production-write|issued|{bob}|1' 'asked by demo-agent for alice, signed by bob, issued once'
database_says "select string_agg(type || ' ' || actor, ', ' order by seq) from lease_events
    where lease_id = '$lease' and type in ('lease.pending', 'signature.rejected', 'signature.accepted', 'session.issuing', 'session.issued')" \
    'lease.pending agent:demo-agent, signature.rejected person:alice, signature.accepted person:bob, session.issuing agent:demo-agent, session.issued agent:demo-agent' \
    'asked, refused, signed, recorded, and only then issued'

heading 'The owner of the database rewrites who signed, and it is seen'
run_as carol "broker login --key \$BROKER_KEYS/carol && broker audit export -f log.ndjson && broker audit verify log.ndjson --key \$(brokerd audit key --config $scratch/dev/config) -o text"
exits 0 'the whole log as one file: every entry under a signed checkpoint, every approval verified anew'
run_as owner "psql \"\$BROKER_ADMIN_DATABASE_URL\" -X -q -c \"
    set role broker_owner; alter table event disable trigger event_is_fixed;
    update event set actor = 'person:dave', body = convert_to(replace(convert_from(body, 'UTF8'), 'person:bob', 'person:dave'), 'UTF8')
     where lease_id = '$lease' and type = 'signature.accepted'\""
exits 0 'triggers do not hold up who owns them'
run_as operator "brokerd audit verify --config $scratch/dev/config"
exits 4 'the bytes are not those that were logged, at which entry, and since which checkpoint'
says body-changed 'nobody has the key that would sign another story, and the anchor has the first one'

printf '\n%sAll %d expectations held.%s Try it yourself: make dev\n' "$bold" "$held" "$plain"
