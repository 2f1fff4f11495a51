-- The audit log's events: plain inserts in the transaction of the change they tell. Names of the envelope are
-- those of CloudEvents 1.0. Nobody writes here but append_event().

create sequence event_seq as bigint;

-- convert_from() is only `stable`, because encodings can be dropped; UTF8 cannot.
create function event_doc(body bytea) returns jsonb language sql immutable parallel safe
as $$ select convert_from(body, 'UTF8')::jsonb $$;

create table event (
    seq         bigint      not null default nextval('event_seq'),
    recorded_at timestamptz not null default clock_timestamp(),
    -- The transaction that wrote it: the same as that of the change it tells.
    xid         xid8        not null default pg_current_xact_id(),
    id          uuid        not null,
    type        text        not null,
    occurred_at timestamptz not null,
    -- Who did it: `agent:NAME`, `person:HANDLE` or `broker`.
    actor       text        not null,
    agent       text,
    sponsor     text,
    scope       text,
    lease_id    uuid,
    session_id  uuid,
    -- The canonical body, exactly as it is hashed.
    body        bytea       not null,
    doc         jsonb       not null generated always as (event_doc(body)) stored,
    -- RFC 6962, section 2.1: SHA-256 of a zero byte and the entry.
    leaf_hash   bytea       not null generated always as (sha256('\x00'::bytea || body)) stored,
    primary key (recorded_at, seq),
    -- The columns are for people who filter; they say what the body says, whoever writes.
    constraint columns_are_as_doc check (
        (id, occurred_at) is not distinct from ((doc ->> 'id')::uuid, (doc ->> 'time')::timestamptz)
        and (type, actor) is not distinct from (doc ->> 'type', doc ->> 'actor')
        and (agent, sponsor, scope) is not distinct from
            (doc -> 'data' ->> 'agent', doc -> 'data' ->> 'sponsor', doc -> 'data' ->> 'scope')
        and (lease_id, session_id) is not distinct from
            ((doc -> 'data' ->> 'lease_id')::uuid, (doc -> 'data' ->> 'session_id')::uuid))
) partition by range (recorded_at);
alter sequence event_seq owned by event.seq;

create index on event (lease_id, seq) where lease_id is not null;
create index on event (type, recorded_at);
create index on event (actor, recorded_at);

create function refuse_event_change() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    raise exception 'events are never changed or removed' using errcode = 'integrity_constraint_violation';
end
$$;
create trigger event_is_fixed before update or delete on event for each row execute function refuse_event_change();
alter table event enable always trigger event_is_fixed;

-- Makes the partition of the month (UTC) that holds `day`, guarded like the others; does nothing when it is there,
-- or when events of that month lie in the default partition already, where they stay.
create function make_event_partition(day date) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp set timezone = 'UTC' as $$
declare
    first_day date := date_trunc('month', day);
    name text := 'event_' || to_char(first_day, 'YYYYMM');
begin
    if current_date + 366 < day then
        raise exception 'partitions are made for the coming year' using errcode = 'invalid_parameter_value';
    end if;
    lock table public.event in share update exclusive mode;
    if to_regclass('public.' || name) is not null then
        return;
    end if;
    begin
        execute format('create table public.%I partition of public.event for values from (%L) to (%L)',
                       name, first_day, (first_day + interval '1 month')::date);
    exception when check_violation then
        raise warning 'events of % are in the default partition, and stay there', to_char(first_day, 'YYYY-MM');
        return;
    end;
    -- Row triggers are cloned from the parent as they fire there; TRUNCATE triggers are not cloned at all.
    execute format('alter table public.%I enable always trigger event_is_fixed', name);
    execute format('create trigger event_is_kept before truncate on public.%I for each statement execute function public.refuse_event_change()', name);
    execute format('alter table public.%I enable always trigger event_is_kept', name);
end
$$;
grant execute on function make_event_partition(date) to broker_app;

select make_event_partition((current_date + make_interval(months => m))::date) from generate_series(0, 2) as m;

-- A month nobody prepared must not stop the broker: its events land here.
create table event_default partition of event default;
alter table event_default enable always trigger event_is_fixed;
create trigger event_is_kept before truncate on event_default for each statement execute function refuse_event_change();
alter table event_default enable always trigger event_is_kept;

-- The only way in. Columns are read from the body, so that they cannot differ from it.
create function append_event(body bytea) returns bigint
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    doc jsonb := public.event_doc(body);
    new_seq bigint;
begin
    insert into public.event (id, type, occurred_at, actor, agent, sponsor, scope, lease_id, session_id, body)
    values ((doc ->> 'id')::uuid, doc ->> 'type', (doc ->> 'time')::timestamptz, doc ->> 'actor',
            doc -> 'data' ->> 'agent', doc -> 'data' ->> 'sponsor', doc -> 'data' ->> 'scope',
            (doc -> 'data' ->> 'lease_id')::uuid, (doc -> 'data' ->> 'session_id')::uuid, body)
    returning seq into new_seq;
    return new_seq;
end
$$;
grant execute on function append_event(bytea) to broker_app;
