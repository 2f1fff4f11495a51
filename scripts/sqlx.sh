#!/usr/bin/env bash
# Makes .sqlx anew: what the database says of each query in the code, so that building needs no database.
#
#   make sqlx
#
# Starts an empty PostgreSQL of its own and applies the migrations by hand, because `brokerd` cannot be
# built while a query is not in .sqlx yet.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
postgres=$("$root/scripts/setup.sh" --print-postgres)
for name in $(compgen -v PG); do
    unset "$name"
done

scratch=$(mktemp -d "${TMPDIR:-/tmp}/broker-sqlx.XXXXXX")
chmod 711 "$scratch"
mkdir "$scratch/made"
password=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
(umask 077 && printf '%s\n' "$password" >"$scratch/password")
as_server=()
if [ "$(id -u)" = 0 ]; then # PostgreSQL does not run as root
    as_server=(runuser -u postgres --)
    mkdir "$scratch/data"
    chown postgres "$scratch/data" "$scratch/password"
fi

server() { (cd / && ${as_server[@]+"${as_server[@]}"} "$@"); }
stop() {
    local status=$?
    trap - EXIT
    server "$postgres/pg_ctl" --silent --pgdata="$scratch/data" --mode=fast stop 2>/dev/null || true
    rm -rf "$scratch"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

server "$postgres/initdb" --pgdata="$scratch/data" --username=postgres --auth=scram-sha-256 --encoding=UTF8 \
    --no-sync --pwfile="$scratch/password" >/dev/null
port=$(python3 -I -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
server "$postgres/pg_ctl" --silent --wait --pgdata="$scratch/data" --log="$scratch/data/log" \
    --options="-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off" start

export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGPASSWORD=$password PGDATABASE=postgres
sql() { "$postgres/psql" -Xq -v ON_ERROR_STOP=1 "$@" >/dev/null; }
sql -f "$root/migrations/bootstrap/roles.sql" -c 'create database broker owner broker_owner'
export PGDATABASE=broker
# `brokerd migrate` has this table; one migration reads it.
sql -c 'set role broker_owner' -c 'create table _sqlx_migrations (version bigint primary key, description text not null,
    installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, execution_time bigint not null)'
for migration in "$root"/migrations/*.sql; do
    sql --single-transaction -c 'set role broker_owner' -f "$migration"
done

cd "$root"
# Only `broker` has queries. cargo does not know that they depend on a database.
grep -rlE 'query(_as|_scalar)?!' --include='*.rs' broker | while read -r file; do touch "$file"; done
DATABASE_URL="postgres://postgres:$password@127.0.0.1:$port/broker" SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$scratch/made" \
    cargo check --package broker --all-targets --locked
ls "$scratch/made"/query-*.json >/dev/null
mkdir -p .sqlx
rm -f .sqlx/query-*.json
cp "$scratch/made"/query-*.json .sqlx/
printf '.sqlx describes %d queries; commit it with the code\n' "$(find .sqlx -name 'query-*.json' | wc -l)"
