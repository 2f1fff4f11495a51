-- The log over the events (RFC 6962): which event has which index, the tree's inner hashes, and signed checkpoints.
-- Written by the sequencer alone, after the events: nothing here is on the way of a request.

-- Where the log stands. What is signed is in log_checkpoint; this is what the next one is computed from, and the sequencer
-- believes it only if it hashes to the newest checkpoint of its own.
create table log_state (
    only_row     boolean     primary key default true check (only_row),
    -- The checkpoints' origin: it changes when a log goes on after events were lost.
    origin       text        not null check (origin ~ '^[^\s+]+$'),
    epoch        integer     not null default 1 check (epoch >= 1),
    -- The verifier key (C2SP signed-note) that signs now.
    key          text        not null,
    -- What it began with.
    first_origin text        not null,
    first_key    text        not null,
    size         bigint      not null default 0 check (size >= 0),
    -- The hashes of the complete subtrees that the tree ends with, the largest first: one for each bit of the size.
    frontier     bytea       not null default '',
    check (length(frontier) = 32 * length(replace(size::bit(64)::text, '0', '')))
);

-- Events up to `floor` have their index, or will never be there: their transaction was rolled back. `seen` follows when every
-- transaction of before `horizon` is over.
create table log_scan (
    only_row boolean primary key default true check (only_row),
    floor    bigint  not null default 0,
    -- The last number that was taken when `seen_by` looked.
    seen     bigint  not null default 0,
    seen_by  xid8    not null default '0',
    -- The id of a transaction that began after that one: whoever had a number up to `seen` has a smaller one.
    horizon  xid8,
    check (floor <= seen)
);

create table log_leaf (
    index       bigint      primary key check (index >= 0),
    seq         bigint      not null unique,
    recorded_at timestamptz not null,
    event_id    uuid        not null,
    leaf_hash   bytea       not null check (length(leaf_hash) = 32)
);
-- Ids are UUIDs of version 7: in the order of time, like the log. So this costs an event nothing, and whoever looks one up a millisecond.
create index log_leaf_of_event on log_leaf using brin (event_id) with (autosummarize = on);

-- Hashes of complete subtrees of 256, 65536 … leaves: what tiles above the lowest level are made of (C2SP tlog-tiles).
create table log_node (
    level smallint not null check (level between 1 and 7),
    index bigint   not null check (index >= 0),
    hash  bytea    not null check (length(hash) = 32),
    primary key (level, index)
);

create table log_checkpoint (
    epoch     integer     not null check (epoch >= 1),
    size      bigint      not null check (size > 0),
    root      bytea       not null check (length(root) = 32),
    -- The signed note, as it leaves.
    note      text        not null,
    signed_at timestamptz not null,
    primary key (epoch, size)
);

-- Checkpoints that an anchor has taken.
create table log_anchored (
    anchor      text        not null,
    epoch       integer     not null,
    size        bigint      not null,
    anchored_at timestamptz not null,
    primary key (anchor, epoch, size),
    foreign key (epoch, size) references log_checkpoint
);
create index log_anchored_by_size on log_anchored (epoch, size);

-- What the sequencer looks for.
create index event_by_seq on event (seq);

create function log_state_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if new.size < old.size or new.epoch < old.epoch or (new.epoch = old.epoch and new.origin <> old.origin)
       or (new.first_origin, new.first_key) <> (old.first_origin, old.first_key) then
        raise exception 'the log does not go back' using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger log_state_guard before update on log_state for each row execute function log_state_guard();

create function log_checkpoint_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
declare
    newest log_checkpoint;
begin
    select * into newest from log_checkpoint c order by c.epoch desc, c.size desc limit 1;
    if new.epoch < newest.epoch or new.size < newest.size or (new.epoch, new.size) = (newest.epoch, newest.size) then
        raise exception 'a checkpoint follows the ones before it' using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger log_checkpoint_guard before insert on log_checkpoint for each row execute function log_checkpoint_guard();

create trigger log_state_is_kept before delete on log_state for each row execute function refuse_change();
create trigger log_scan_is_kept before delete on log_scan for each row execute function refuse_change();
create trigger log_leaf_is_fixed before update or delete on log_leaf for each row execute function refuse_change();
create trigger log_node_is_fixed before update or delete on log_node for each row execute function refuse_change();
create trigger log_checkpoint_is_fixed before update or delete on log_checkpoint for each row execute function refuse_change();
create trigger log_anchored_is_fixed before update or delete on log_anchored for each row execute function refuse_change();
create trigger log_state_is_kept_whole before truncate on log_state for each statement execute function refuse_change();
create trigger log_scan_is_kept_whole before truncate on log_scan for each statement execute function refuse_change();
create trigger log_leaf_is_kept before truncate on log_leaf for each statement execute function refuse_change();
create trigger log_node_is_kept before truncate on log_node for each statement execute function refuse_change();
create trigger log_checkpoint_is_kept before truncate on log_checkpoint for each statement execute function refuse_change();
create trigger log_anchored_is_kept before truncate on log_anchored for each statement execute function refuse_change();
alter table log_state enable always trigger log_state_guard;
alter table log_state enable always trigger log_state_is_kept;
alter table log_state enable always trigger log_state_is_kept_whole;
alter table log_scan enable always trigger log_scan_is_kept;
alter table log_scan enable always trigger log_scan_is_kept_whole;
alter table log_leaf enable always trigger log_leaf_is_fixed;
alter table log_leaf enable always trigger log_leaf_is_kept;
alter table log_node enable always trigger log_node_is_fixed;
alter table log_node enable always trigger log_node_is_kept;
alter table log_checkpoint enable always trigger log_checkpoint_guard;
alter table log_checkpoint enable always trigger log_checkpoint_is_fixed;
alter table log_checkpoint enable always trigger log_checkpoint_is_kept;
alter table log_anchored enable always trigger log_anchored_is_fixed;
alter table log_anchored enable always trigger log_anchored_is_kept;

-- As before, and quicker: PostgreSQL prepares a table's expressions for every statement that writes to it, and what is written in
-- PL/pgSQL only once a session. Half of what an event cost was that.
create or replace function event_doc(body bytea) returns jsonb
language plpgsql immutable parallel safe as $$
begin
    return pg_catalog.convert_from(body, 'UTF8')::pg_catalog.jsonb;
end
$$;

create function event_is_as_doc(doc jsonb, id uuid, type text, occurred_at timestamptz, actor text, agent text, sponsor text, scope text,
                                lease_id uuid, session_id uuid) returns boolean
language plpgsql immutable parallel safe set search_path = pg_catalog, public, pg_temp as $$
declare
    data jsonb := doc -> 'data';
begin
    return (id, occurred_at) is not distinct from ((doc ->> 'id')::uuid, (doc ->> 'time')::timestamptz)
       and (type, actor) is not distinct from (doc ->> 'type', doc ->> 'actor')
       and (agent, sponsor, scope) is not distinct from (data ->> 'agent', data ->> 'sponsor', data ->> 'scope')
       and (lease_id, session_id) is not distinct from ((data ->> 'lease_id')::uuid, (data ->> 'session_id')::uuid);
end
$$;
alter table event drop constraint columns_are_as_doc;
alter table event add constraint columns_are_as_doc
      check (event_is_as_doc(doc, id, type, occurred_at, actor, agent, sponsor, scope, lease_id, session_id));

-- The hash of a body is what the body hashes to: kept in the row it was a fifth of what an event cost, and proved nothing. The one
-- that counts is the log's.
create or replace view log_events as
    select e.seq, e.id, e.recorded_at, e.type, e.body, sha256('\x00'::bytea || e.body) as leaf_hash from event e;
alter table event drop column leaf_hash;

-- As before, and besides: the transaction has its id before the event has its number, so that whoever has seen the number and
-- then waits for the transactions of that moment has waited for this one. A body is an entry of a tile: its length has 16 bits.
create or replace function append_event(body bytea) returns bigint
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    doc jsonb := public.event_doc(body);
    new_seq bigint;
begin
    perform pg_current_xact_id();
    -- What the log tells of itself is not for the server's login to say.
    if session_user = 'broker_app' and doc ->> 'type' like 'log.%' then
        raise exception 'events of the log are the log''s' using errcode = 'insufficient_privilege';
    end if;
    if 65535 < length(body) or position('\x0a'::bytea in body) <> 0 then
        raise exception 'an event is one line of at most 65535 bytes' using errcode = 'program_limit_exceeded';
    end if;
    insert into public.event (id, type, occurred_at, actor, agent, sponsor, scope, lease_id, session_id, body)
    values ((doc ->> 'id')::uuid, doc ->> 'type', (doc ->> 'time')::timestamptz, doc ->> 'actor',
            doc -> 'data' ->> 'agent', doc -> 'data' ->> 'sponsor', doc -> 'data' ->> 'scope',
            (doc -> 'data' ->> 'lease_id')::uuid, (doc -> 'data' ->> 'session_id')::uuid, body)
    returning seq into new_seq;
    return new_seq;
end
$$;

-- Appends an event of the log's own, of that type and no other.
create function append_log_event(type text, body bytea) returns void
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if public.event_doc(body) ->> 'type' is distinct from type then
        raise exception 'that is no event %', type using errcode = 'invalid_parameter_value';
    end if;
    perform public.append_event(body);
end
$$;

-- Begins the log, with the event that says so. Nothing happens when there is one.
create function log_begin(origin text, key text, body bytea) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    insert into public.log_state (origin, key, first_origin, first_key) values (origin, key, origin, key) on conflict do nothing;
    if found then
        insert into public.log_scan default values;
        perform public.append_log_event('log.started', body);
    end if;
end
$$;

-- The next events without an index, if nobody else is giving them one: whoever gets the lock is the leader until its transaction
-- ends. Committed ones, in whatever order they were committed; none waits for a transaction that is still open.
create function log_pending(batch integer)
returns table (seq bigint, recorded_at timestamptz, id uuid, type text, body bytea)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    floor bigint;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('broker.log', 0)) then
        return;
    end if;
    select s.floor into floor from public.log_scan s;
    return query
        select e.seq, e.recorded_at, e.id, e.type, e.body from public.event e
         where e.seq > floor and not exists (select from public.log_leaf l where l.seq = e.seq and l.seq > floor)
         order by e.seq limit batch;
end
$$;

-- Gives events their indexes, and adds the checkpoint that says so: all of it, or nothing if somebody else was first. That the
-- hashes are those of the events is for whoever verifies; the sequencer could sign anything.
create function log_integrate(expected_epoch integer, expected_size bigint, seqs bigint[], recorded timestamptz[], ids uuid[],
                              leaf_hashes bytea[], levels smallint[], indexes bigint[], hashes bytea[], new_frontier bytea,
                              new_key text, root bytea, note text, signed_at timestamptz) returns boolean
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    new_size bigint := expected_size + cardinality(seqs);
begin
    update public.log_state s set size = new_size, frontier = new_frontier, key = new_key
     where s.size = expected_size and s.epoch = expected_epoch;
    if not found then
        return false;
    end if;
    insert into public.log_leaf (index, seq, recorded_at, event_id, leaf_hash)
    select expected_size + n.place - 1, n.seq, n.recorded_at, n.id, n.leaf_hash
      from unnest(seqs, recorded, ids, leaf_hashes) with ordinality as n (seq, recorded_at, id, leaf_hash, place);
    insert into public.log_node (level, index, hash) select * from unnest(levels, indexes, hashes);
    insert into public.log_checkpoint (epoch, size, root, note, signed_at) values (expected_epoch, new_size, root, note, signed_at);
    perform public.log_scan_on();
    return true;
end
$$;

-- Moves the floor on, if it can be. In three transactions: what a snapshot calls its end is not the last id that was given, so
-- that somebody who has a number may be behind it; an id that is given after the number was read is larger than theirs.
create function log_scan_on() returns void
language plpgsql set search_path = pg_catalog, public, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    scan public.log_scan;
    last_seq bigint;
begin
    select * into scan from public.log_scan;
    -- A horizon that is still to come is of another cluster, that this database was dumped from: nobody here would ever be behind it.
    if scan.floor < scan.seen and scan.seen_by <> pg_current_xact_id()
       and (scan.horizon is null or pg_current_xact_id() < scan.horizon) then
        update public.log_scan set horizon = pg_current_xact_id();
    -- One snapshot: whoever had a number up to `seen` is over in it, and what it wrote has its index.
    elsif scan.floor < scan.seen and (
        select scan.horizon <= pg_snapshot_xmin(pg_current_snapshot())
               and not exists (select from public.event e
                                where e.seq > scan.floor and e.seq <= scan.seen
                                  and not exists (select from public.log_leaf l where l.seq = e.seq and l.seq > scan.floor))) then
        update public.log_scan set floor = scan.seen;
        scan.floor := scan.seen;
    end if;
    -- Batch by batch: what is behind the floor is looked through again and again.
    select least(q.last_value, (select max(l.seq) from public.log_leaf l)) into last_seq from public.event_seq q;
    if scan.floor = scan.seen and scan.seen < last_seq then
        update public.log_scan set seen = last_seq, seen_by = pg_current_xact_id(), horizon = null;
    end if;
end
$$;

create function log_tell_anchored(anchor text, epoch integer, size bigint, at timestamptz) returns void
language sql security definer set search_path = pg_catalog, public, pg_temp
as $$
    insert into public.log_anchored (anchor, epoch, size, anchored_at) values (anchor, epoch, size, at) on conflict do nothing;
$$;

-- Whether the lease's approval is under a checkpoint that an anchor has taken.
create function is_anchored(lease_id uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, public, pg_temp
as $$
    select exists (
        select from public.event e join public.log_leaf l on l.seq = e.seq
         where e.lease_id = is_anchored.lease_id and e.type = 'lease.approved'
           and l.index < (select max(a.size) from public.log_anchored a join public.log_state s on s.epoch = a.epoch));
$$;

-- As before, and besides: what destroys waits until somebody else than us holds the proof of who approved it.
create or replace function session_starts() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
declare
    l lease;
begin
    if new.state <> 'issuing' then
        raise exception 'a session cannot start as %', new.state using errcode = 'integrity_constraint_violation';
    end if;
    select * into l from lease where id = new.lease_id;
    if l.signed is distinct from new.signed or l.claimed_at is null
       or not (l.state = 'approved' or (l.state = 'issued' and not l.signed)) then
        raise exception 'lease % is not claimed', new.lease_id using errcode = 'integrity_constraint_violation';
    end if;
    if l.tier = 'destructive' and not is_anchored(l.id) then
        raise exception 'the approval of lease % is not anchored', new.lease_id using errcode = 'integrity_constraint_violation';
    end if;
    return null;
end
$$;

-- Every entry of the log, in its order, with the event that it is of; the event's columns are null once its partition is dropped.
create view log_entries as
    select l.index, l.leaf_hash, l.seq, l.recorded_at, l.event_id, e.type, e.occurred_at, e.actor, e.agent, e.sponsor, e.scope, e.lease_id,
           e.session_id, e.body, e.id, e.doc = convert_from(e.body, 'UTF8')::jsonb as doc_is_body
      from log_leaf l left join event e on e.recorded_at = l.recorded_at and e.seq = l.seq;

comment on view log_entries is 'The log, entry by entry: what a verifier reads.';
comment on column log_entries.index is 'its index in the log';
comment on column log_entries.leaf_hash is 'RFC 6962 leaf hash, as it went into the tree';
comment on column log_entries.seq is 'the event''s order of insertion';
comment on column log_entries.recorded_at is 'when it was recorded, by the database''s clock';
comment on column log_entries.event_id is 'the event''s id when it got its index';
comment on column log_entries.type is 'what happened; null when the event''s partition was dropped, like what follows';
comment on column log_entries.occurred_at is 'when, by the server''s clock';
comment on column log_entries.actor is 'who did it';
comment on column log_entries.agent is 'the agent it is about';
comment on column log_entries.sponsor is 'the human behind the agent';
comment on column log_entries.scope is 'the scope it is about';
comment on column log_entries.lease_id is 'the lease it is about';
comment on column log_entries.session_id is 'the session it is about';
comment on column log_entries.body is 'the canonical bytes that are hashed';
comment on column log_entries.id is 'the event''s id now';
comment on column log_entries.doc_is_body is 'whether the readable copy says what the bytes say';

create view log_leaves as select index, event_id, leaf_hash from log_leaf;

comment on view log_leaves is 'The lowest hashes of the log''s tree.';
comment on column log_leaves.index is 'its index in the log';
comment on column log_leaves.event_id is 'the event';
comment on column log_leaves.leaf_hash is 'RFC 6962 leaf hash';

create view log_nodes as select level, index, hash from log_node;

comment on view log_nodes is 'Hashes of the complete subtrees of 256, 65536 … leaves: what tiles above the lowest level are made of.';
comment on column log_nodes.level is 'of tiles: 1 for subtrees of 256 leaves';
comment on column log_nodes.index is 'its place in its level';
comment on column log_nodes.hash is 'RFC 6962 hash of the subtree';

create view log_waiting as
    select e.seq, e.recorded_at, e.id, e.type, e.occurred_at, e.actor, e.agent, e.sponsor, e.scope, e.lease_id, e.session_id, e.body
      from event e
     -- Row by row: whoever asks from a number on is not answered by way of the whole log.
     where not exists (select from log_leaf l where l.seq = e.seq offset 0)
     order by e.seq;

comment on view log_waiting is 'Events that are not under a checkpoint: those of the last moments, or of longer when nobody signs.';
comment on column log_waiting.seq is 'order of insertion';
comment on column log_waiting.recorded_at is 'when it was recorded, by the database''s clock';
comment on column log_waiting.id is 'the event';
comment on column log_waiting.type is 'what happened';
comment on column log_waiting.occurred_at is 'when, by the server''s clock';
comment on column log_waiting.actor is 'who did it';
comment on column log_waiting.agent is 'the agent it is about';
comment on column log_waiting.sponsor is 'the human behind the agent';
comment on column log_waiting.scope is 'the scope it is about';
comment on column log_waiting.lease_id is 'the lease it is about';
comment on column log_waiting.session_id is 'the session it is about';
comment on column log_waiting.body is 'the canonical bytes that will be hashed';

create view log_checkpoints as
    select c.epoch, c.size, encode(c.root, 'base64') as root, c.note, c.signed_at,
           (select min(a.anchored_at) from log_anchored a where a.epoch = c.epoch and a.size >= c.size) as anchored_at,
           (select array_agg(a.anchor order by a.anchor) from log_anchored a where (a.epoch, a.size) = (c.epoch, c.size)) as anchors
      from log_checkpoint c;

comment on view log_checkpoints is 'Signed checkpoints of the log: each covers every event with a smaller index.';
comment on column log_checkpoints.epoch is '1, and one more for each time that the log went on after events were lost';
comment on column log_checkpoints.size is 'how many events it covers';
comment on column log_checkpoints.root is 'RFC 6962 tree hash, in base64';
comment on column log_checkpoints.note is 'the C2SP signed note';
comment on column log_checkpoints.signed_at is 'when, by the server''s clock';
comment on column log_checkpoints.anchored_at is 'since when an anchor has it, or one that covers it; null while none has';
comment on column log_checkpoints.anchors is 'the anchors that have this very one';

create view log_anchors as select anchor, epoch, size, anchored_at from log_anchored;

comment on view log_anchors is 'Which anchor has taken which checkpoint.';
comment on column log_anchors.anchor is 'its name in broker.toml';
comment on column log_anchors.epoch is 'the checkpoint''s epoch';
comment on column log_anchors.size is 'how many events the checkpoint covers';
comment on column log_anchors.anchored_at is 'when it was there';

create view log_heads as
    select s.origin, s.epoch, s.key, s.size, s.frontier, c.note, n.floor, s.first_origin, s.first_key
      from log_state s join log_scan n on true left join log_checkpoint c on (c.epoch, c.size) = (s.epoch, s.size);

comment on view log_heads is 'Where the log stands: one row, once there is a log.';
comment on column log_heads.origin is 'the origin line of its checkpoints';
comment on column log_heads.epoch is '1, and one more for each time that it went on after events were lost';
comment on column log_heads.key is 'the verifier key that signs now';
comment on column log_heads.size is 'how many events have an index';
comment on column log_heads.frontier is 'hashes of the complete subtrees that the tree ends with';
comment on column log_heads.note is 'the newest checkpoint';
comment on column log_heads.first_origin is 'the origin that it began with';
comment on column log_heads.first_key is 'the verifier key that it began with';
comment on column log_heads.floor is 'events up to this `seq` have their index or will never be there; to look for waiting ones behind it is quick';

-- Months whose events were exported, to be dropped.
create table log_partition (
    month       date        primary key check (month = date_trunc('month', month)),
    events      bigint      not null check (events > 0),
    -- In which range their indexes are; others of the months beside it may be in it too.
    first_index bigint      not null,
    last_index  bigint      not null check (last_index - first_index + 1 >= events),
    -- Of the exported file.
    sha256      bytea       not null check (length(sha256) = 32),
    exported_at timestamptz not null,
    dropped_at  timestamptz
);
create trigger log_partition_is_kept before delete on log_partition for each row execute function refuse_change();
create trigger log_partition_is_kept_whole before truncate on log_partition for each statement execute function refuse_change();
alter table log_partition enable always trigger log_partition_is_kept;
alter table log_partition enable always trigger log_partition_is_kept_whole;

-- Records that a month was exported, with the event that tells it.
create function log_tell_exported(new_month date, events bigint, first_index bigint, last_index bigint, sha256 bytea, at timestamptz, body bytea)
returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    insert into public.log_partition as p (month, events, first_index, last_index, sha256, exported_at)
    values (new_month, events, first_index, last_index, sha256, at)
    on conflict (month) do update
       set events = excluded.events, first_index = excluded.first_index, last_index = excluded.last_index, sha256 = excluded.sha256,
           exported_at = excluded.exported_at where p.dropped_at is null;
    perform public.append_log_event('log.partition-exported', body);
end
$$;

-- Drops a month's events: one that was exported as it is now, whose export is told under an anchored checkpoint, and that is older
-- than the month before this one. What it holds of the log, the hashes, stays. While it waits for a lock on the events, every request
-- waits behind it: it gives up soon.
create function log_drop_month(old_month date, at timestamptz, body bytea) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp set timezone = 'UTC' set lock_timeout = '2s' as $$
declare
    name text := 'event_' || to_char(old_month, 'YYYYMM');
    exported public.log_partition;
    anchored bigint;
    found_events bigint;
    found_logged bigint;
    found_last bigint;
begin
    if date_trunc('month', current_date) - interval '1 month' <= old_month then
        raise exception 'this month and the one before it are kept' using errcode = 'invalid_parameter_value';
    end if;
    select * into exported from public.log_partition p where p.month = old_month and p.dropped_at is null for update;
    if not found then
        raise exception '% was not exported', name using errcode = 'invalid_parameter_value';
    end if;
    select max(a.size) into anchored from public.log_anchored a join public.log_state s on s.epoch = a.epoch;
    execute format('select count(*), count(l.index), max(l.index)
                      from public.%I e left join public.log_leaf l
                           on l.seq = e.seq and l.recorded_at = e.recorded_at and l.leaf_hash = sha256(''\x00''::bytea || e.body)', name)
       into found_events, found_logged, found_last;
    if (found_events, found_logged, found_last) is distinct from (exported.events, exported.events, exported.last_index) then
        raise exception '% is not as it was exported', name using errcode = 'integrity_constraint_violation';
    end if;
    if not exists (
        select from public.event e join public.log_leaf l on l.seq = e.seq
         where e.type = 'log.partition-exported' and e.doc -> 'data' -> 'detail' ->> 'partition' = name
           and e.doc -> 'data' -> 'detail' ->> 'sha256' = encode(exported.sha256, 'hex')
           and exported.last_index < l.index and l.index < anchored) then
        raise exception 'the export of % is not under an anchored checkpoint', name using errcode = 'integrity_constraint_violation';
    end if;
    update public.log_partition set dropped_at = at where month = old_month;
    execute format('alter table public.event detach partition public.%I', name);
    execute format('drop table public.%I', name);
    perform public.append_log_event('log.partition-dropped', body);
end
$$;

create view log_partitions as
    select p.month, p.events, p.first_index, p.last_index, encode(p.sha256, 'hex') as sha256, p.exported_at, p.dropped_at from log_partition p;

comment on view log_partitions is 'Months whose events were exported, and those that were then dropped.';
comment on column log_partitions.month is 'the month, UTC, by its first day';
comment on column log_partitions.events is 'how many events';
comment on column log_partitions.first_index is 'the smallest of their indexes in the log';
comment on column log_partitions.last_index is 'the largest';
comment on column log_partitions.sha256 is 'of the exported file';
comment on column log_partitions.exported_at is 'when';
comment on column log_partitions.dropped_at is 'since when the events are in that file alone; null while they are here';

-- What there is without the event that has to tell of it. Of what began in months that were dropped nothing is said.
create view log_unrecorded as
    with kept as (select coalesce(max(p.month) + interval '1 month 1 day', '-infinity') as since from log_partition p where p.dropped_at is not null)
    select 'session' as kind, s.id, s.lease_id, 'session.issuing' as event, s.claimed_at as at
      from session s, kept
     where kept.since < s.claimed_at and not exists (select from event e where e.lease_id = s.lease_id and e.session_id = s.id and e.type = 'session.issuing')
    union all
    select 'session', s.id, s.lease_id, 'session.issued', s.claimed_at
      from session s, kept
     where kept.since < s.claimed_at and s.access_key_id is not null
       and not exists (select from event e where e.lease_id = s.lease_id and e.session_id = s.id
                                             and e.type in ('session.issued', 'session.dropped', 'session.failed'))
    union all
    select 'lease', l.id, l.id, 'lease.' || t.told, l.requested_at
      from lease l, kept, lateral (values
           (case when l.state = 'denied' then 'denied' when l.signed then 'pending' else 'approved' end),
           (case when l.signed and l.approved_at is not null then 'approved' end),
           (case when l.issued_at is not null then 'issued' end),
           (case when l.ended_at is not null then l.state end)) as t (told)
     where kept.since < l.requested_at and t.told is not null
       and not exists (select from event e where e.lease_id = l.id and e.type = 'lease.' || t.told);

comment on view log_unrecorded is 'Leases and sessions without the event that has to tell of them: none, unless somebody wrote past the broker.';
comment on column log_unrecorded.kind is 'lease or session';
comment on column log_unrecorded.id is 'which one';
comment on column log_unrecorded.lease_id is 'the lease';
comment on column log_unrecorded.event is 'the type of the event that is not there';
comment on column log_unrecorded.at is 'when the lease was asked for, or the session';

-- What people signed about a lease, with their keys and how these came to be enrolled.
create view log_approvals as
    select l.id as lease_id, l.state, l.tier, l.approved_at, l.claim_by, l.claimed_at, l.issued_at, l.ends_at, l.ended_at, l.end_reason, t.bytes,
           coalesce((select jsonb_agg(jsonb_build_object(
                        'person', g.person, 'decision', g.decision, 'signed_at', g.signed_at,
                        'signature', g.signature, 'assurance', g.assurance, 'touched', g.touched, 'verified', g.verified,
                        'key', jsonb_build_object(
                            'public_key', k.public_key, 'fingerprint', k.fingerprint, 'assurance', k.assurance,
                            'evidence', k.evidence, 'enrolled_at', k.enrolled_at, 'revoked_at', k.revoked_at,
                            'enrolled_by', e.act)) order by g.signed_at, g.person)
                       from signature g
                       join person_key k on k.fingerprint = g.fingerprint
                       left join lateral (
                           select jsonb_build_object(
                                      -- PostgreSQL breaks base64 into lines.
                                      'statement', translate(encode(a.bytes, 'base64'), e'\n', ''), 'signature', x.signature,
                                      'signer', x.person, 'public_key', y.public_key, 'signed_at', x.signed_at) as act
                             from act a
                             join act_signature x on x.act_id = a.id and x.decision = 'approve'
                             join person_key y on y.fingerprint = x.fingerprint
                            where a.id = k.enrolled_by) e on true
                      where g.lease_id = l.id), '[]') as signatures
      from lease l join statement t on t.lease_id = l.id;

comment on view log_approvals is 'What people signed about a lease, as `broker approval export` has it.';
comment on column log_approvals.lease_id is 'the lease';
comment on column log_approvals.state is 'where it stands';
comment on column log_approvals.tier is 'how dangerous, as computed';
comment on column log_approvals.approved_at is 'when enough people had signed';
comment on column log_approvals.claim_by is 'until when it could be claimed';
comment on column log_approvals.claimed_at is 'when AWS was asked';
comment on column log_approvals.issued_at is 'when credentials were first delivered';
comment on column log_approvals.ends_at is 'when its one session ends';
comment on column log_approvals.ended_at is 'when it reached a terminal state';
comment on column log_approvals.end_reason is 'why it was refused, withdrawn, stopped or failed';
comment on column log_approvals.bytes is 'the exact bytes that people signed about';
comment on column log_approvals.signatures is 'their signatures, keys, and the acts that enrolled these';

grant usage on schema public to broker_sequencer, broker_retention;
grant select on log_approvals to broker_app;
grant execute on function is_anchored(uuid) to broker_app;
grant select on log_heads, log_checkpoints, log_anchors to broker_app;

grant execute on function log_begin(text, text, bytea) to broker_sequencer;
grant execute on function log_pending(integer) to broker_sequencer;
grant execute on function append_event(bytea) to broker_sequencer;
grant execute on function log_integrate(integer, bigint, bigint[], timestamptz[], uuid[], bytea[], smallint[], bigint[], bytea[], bytea, text, bytea, text, timestamptz)
      to broker_sequencer;
grant execute on function log_tell_anchored(text, integer, bigint, timestamptz) to broker_sequencer;
grant execute on function log_tell_exported(date, bigint, bigint, bigint, bytea, timestamptz, bytea) to broker_retention;
grant execute on function log_drop_month(date, timestamptz, bytea) to broker_retention;
grant select on log_entries, log_waiting, log_checkpoints, log_anchors, log_heads, log_partitions, log_unrecorded, log_approvals, log_leaves, log_nodes
      to broker_ops, broker_sequencer, broker_retention;
