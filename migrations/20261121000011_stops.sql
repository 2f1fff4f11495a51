-- Stopping what AWS has minted: a deny policy on each role, and the proof that it is in effect.

-- One row a role that something was stopped on.
create table role_stop (
    role_arn       text        primary key,
    -- AWS refuses every session of the role that began before; until then none is minted.
    cut_off        timestamptz,
    -- What the policy says that is on the role, as far as we wrote it; null when there is none.
    written_at     timestamptz,
    written_cut_off timestamptz,
    -- When the role is looked at again, to see that the policy is still there.
    next_check_at  timestamptz,
    -- Since it last worked.
    failures       integer     not null default 0 check (failures >= 0),
    next_try_at    timestamptz,
    last_error     text,
    check (written_cut_off is null or written_at is not null),
    -- AWS counts in whole seconds.
    check (cut_off = date_trunc('second', cut_off, 'UTC'))
);

-- Whoever holds a role's row, of all servers, is the one who writes the role's policy. It is held while AWS is asked, so nothing
-- else may be in it: a freeze that has to wait for AWS is none.
create table role_writer (role_arn text primary key references role_stop);

-- A session of the broker's own, that a role's policy is tried with: minted before the policy is written, seen to work, and
-- covered by it. It may do nothing but `sts:GetAccessKeyInfo`. Written before AWS is asked, like every session.
create table probe (
    id            uuid        primary key,
    role_arn      text        not null references role_stop,
    session_name  text        not null unique check (length(session_name) between 2 and 64),
    claimed_at    timestamptz not null,
    access_key_id text,
    expires_at    timestamptz,
    -- When it was tried last.
    tried_at      timestamptz,
    -- When AWS let it, before the policy was written.
    proven_at     timestamptz,
    -- When the policy that covers it was written.
    denied_at     timestamptz,
    -- When AWS refused it, and which Region's endpoint did.
    refused_at    timestamptz,
    region        text,
    failure       text        check (failure <> ''),
    check ((access_key_id is null) = (expires_at is null)),
    check (proven_at is null or access_key_id is not null),
    check (denied_at is null or proven_at <= denied_at),
    check (refused_at is null or denied_at is not null),
    -- Only what AWS let is proof when it refuses it; and only after the policy was written.
    check (claimed_at <= proven_at),
    check (denied_at <= refused_at),
    check (refused_at is null or failure is null),
    check (proven_at is null or tried_at is not null),
    check ((refused_at is null) = (region is null)),
    check (denied_at is null or proven_at is not null)
);
create index on probe (role_arn, claimed_at desc);

alter table session
    add column revoking_at    timestamptz,
    add column stop_reason    text check (stop_reason <> ''),
    -- The freeze that stopped it, if one did.
    add column freeze_id      uuid references "freeze",
    -- When the policy that refuses it was written, and what the policy was tried with.
    add column denied_at      timestamptz,
    add column probe_id       uuid references probe,
    add column stopped_at     timestamptz,
    add column stopped_region text;
update session set revoking_at = settled_at, stop_reason = 'stopped' where state = 'revoking';
alter table session
    add check (state not in ('revoking', 'stopped') or (revoking_at, stop_reason) is not null),
    add check ((state = 'stopped') = (stopped_at is not null)),
    add check (state <> 'stopped' or (denied_at, probe_id, stopped_region) is not null);
-- What a role's policy has to refuse, until it expires by itself.
create index session_denied on session (expires_at) where revoking_at is not null;
create index session_of_freeze on session (freeze_id) where freeze_id is not null;

-- Whether AWS refuses a session of the role that began at that time, or will. None is minted then.
create function role_is_cut_off(role_arn text, at timestamptz) returns boolean
language sql volatile
begin atomic
    select exists (select from role_stop r where r.role_arn = role_is_cut_off.role_arn and at < r.cut_off);
end;

create or replace function session_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if (new.id, new.lease_id, new.signed, new.session_name, new.claimed_at) is distinct from
       (old.id, old.lease_id, old.signed, old.session_name, old.claimed_at)
       or (old.access_key_id is not null and new.access_key_id is distinct from old.access_key_id)
       or (old.expires_at is not null and new.expires_at is distinct from old.expires_at)
       or new.deliveries < old.deliveries then
        raise exception 'what session % is cannot change', old.id using errcode = 'integrity_constraint_violation';
    end if;
    if new.state <> old.state and (old.state, new.state) not in (
        ('issuing', 'live'), ('issuing', 'failed'), ('issuing', 'revoking'),
        ('live', 'expired'), ('live', 'revoking'),
        ('revoking', 'stopped'), ('revoking', 'expired')) then
        raise exception 'session % cannot go from % to %', old.id, old.state, new.state using errcode = 'integrity_constraint_violation';
    end if;
    if new.deliveries > old.deliveries and new.state <> 'live' then
        raise exception 'session % is not live', old.id using errcode = 'integrity_constraint_violation';
    end if;
    -- Why it is stopped is said when it is; what AWS does about it, until it ends.
    if ((old.state = 'revoking' or new.state <> 'revoking')
        and (new.revoking_at, new.stop_reason, new.freeze_id) is distinct from (old.revoking_at, old.stop_reason, old.freeze_id))
       or (old.state <> 'revoking'
           and (new.denied_at, new.probe_id, new.stopped_at, new.stopped_region)
               is distinct from (old.denied_at, old.probe_id, old.stopped_at, old.stopped_region)) then
        raise exception 'how session % is stopped cannot change', old.id using errcode = 'integrity_constraint_violation';
    end if;
    -- Nothing is called stopped that AWS was not seen to refuse: by a policy that was written after it was to be stopped, as far
    -- as the clocks of two servers agree.
    if new.state = 'stopped' and old.state <> 'stopped' and not exists (
        select from probe p join lease l on l.role_arn = p.role_arn
         where p.id = new.probe_id and l.id = new.lease_id and p.denied_at = new.denied_at
           and new.revoking_at <= p.denied_at + interval '1 minute' and p.refused_at <= new.stopped_at and p.region = new.stopped_region) then
        raise exception 'nobody has seen AWS refuse session %', old.id using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;

create function probe_starts() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if 0 < num_nonnulls(new.access_key_id, new.expires_at, new.tried_at, new.proven_at, new.denied_at, new.refused_at, new.region, new.failure) then
        raise exception 'a probe starts before it has seen anything' using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger probe_starts before insert on probe for each row execute function probe_starts();

create function probe_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if (new.id, new.role_arn, new.session_name, new.claimed_at) is distinct from (old.id, old.role_arn, old.session_name, old.claimed_at)
       or (old.access_key_id is not null and (new.access_key_id, new.expires_at) is distinct from (old.access_key_id, old.expires_at))
       or (old.proven_at is not null and new.proven_at is distinct from old.proven_at)
       or (old.denied_at is not null and new.denied_at is distinct from old.denied_at)
       or (old.refused_at is not null and (new.refused_at, new.region) is distinct from (old.refused_at, old.region))
       or (old.failure is not null and new.failure is distinct from old.failure) then
        raise exception 'what probe % has seen cannot change', old.id using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger probe_guard before update on probe for each row execute function probe_guard();
create trigger probe_is_kept before delete on probe for each row execute function refuse_change();
create trigger probe_is_kept_whole before truncate on probe for each statement execute function refuse_change();

-- A cut-off only moves on, until the last session that it could be about has expired: AWS has none longer than twelve hours.
create function role_stop_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if new.role_arn <> old.role_arn
       or new.cut_off < old.cut_off
       or (new.cut_off is null and clock_timestamp() < old.cut_off + interval '12 hours') then
        raise exception 'what is cut off from % stays so', old.role_arn using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger role_stop_guard before update on role_stop for each row execute function role_stop_guard();
create trigger role_stop_is_kept before delete on role_stop for each row execute function refuse_change();
create trigger role_writer_is_fixed before update or delete on role_writer for each row execute function refuse_change();
create trigger role_writer_is_kept before truncate on role_writer for each statement execute function refuse_change();
create trigger role_stop_is_kept_whole before truncate on role_stop for each statement execute function refuse_change();

-- A freeze stands until a person who signed for it has thawed it.
create function freeze_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if (new.id, new.kind, new.target, new.reason, new.created_by, new.created_at) is distinct from
       (old.id, old.kind, old.target, old.reason, old.created_by, old.created_at) or old.thawed_at is not null then
        raise exception 'freeze % cannot change', old.id using errcode = 'integrity_constraint_violation';
    end if;
    if new.thawed_at is not null and not exists (
        select from act a join act_signature g on g.act_id = a.id and g.decision = 'approve' and g.person = new.thawed_by
         where a.id::text = current_setting('broker.act', true) and a.kind = 'thaw' and a.state = 'done'
           and a.xmin = pg_current_xact_id()::xid and a.doc -> 'act' ->> 'freeze_id' = old.id::text) then
        raise exception 'freeze % is thawed by a signed statement', old.id using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create function freeze_starts() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if new.thawed_at is not null then
        raise exception 'a freeze starts standing' using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger freeze_starts before insert on "freeze" for each row execute function freeze_starts();
create trigger freeze_guard before update on "freeze" for each row execute function freeze_guard();
create trigger freeze_is_kept before delete on "freeze" for each row execute function refuse_change();
create trigger freeze_is_kept_whole before truncate on "freeze" for each statement execute function refuse_change();

alter table probe enable always trigger probe_starts;
alter table probe enable always trigger probe_guard;
alter table probe enable always trigger probe_is_kept;
alter table probe enable always trigger probe_is_kept_whole;
alter table role_writer enable always trigger role_writer_is_fixed;
alter table role_writer enable always trigger role_writer_is_kept;
alter table role_stop enable always trigger role_stop_guard;
alter table role_stop enable always trigger role_stop_is_kept;
alter table role_stop enable always trigger role_stop_is_kept_whole;
alter table "freeze" enable always trigger freeze_starts;
alter table "freeze" enable always trigger freeze_guard;
alter table "freeze" enable always trigger freeze_is_kept;
alter table "freeze" enable always trigger freeze_is_kept_whole;

grant select, insert on role_stop, role_writer, probe to broker_app;
-- To hold a row takes the right to change it; the trigger takes that back.
grant update (role_arn) on role_writer to broker_app;
grant insert on "freeze" to broker_app;
grant update (cut_off, written_at, written_cut_off, next_check_at, failures, next_try_at, last_error) on role_stop to broker_app;
grant update (access_key_id, expires_at, tried_at, proven_at, denied_at, refused_at, region, failure) on probe to broker_app;
grant update (revoking_at, stop_reason, freeze_id, denied_at, probe_id, stopped_at, stopped_region) on session to broker_app;
grant execute on function role_is_cut_off(text, timestamptz) to broker_app;

-- As before, and besides: a session that was stopped takes room in its role's policy until it expires, so that long it counts
-- as live. Otherwise an agent that stops its own leases would fill the policy, and every session of the role be stopped.
create or replace function counted(agent text, sponsor text, task_id uuid, at timestamptz)
returns table (budget text, whose text, what text, until timestamptz)
language sql stable
begin atomic
    with open as (
        select l.state, l.agent = counted.agent as by_agent, l.task_id = counted.task_id as by_task,
               case when l.state = 'pending' then l.sign_by
                    -- Not claimed yet.
                    when l.claimed_at is null then least(l.claim_by, l.ends_at)
                    -- The session of a signed lease has its end when AWS has given it.
                    else coalesce(l.ends_at, l.claimed_at + make_interval(secs => l.window_seconds)) end as until
          from lease l where l.sponsor = counted.sponsor and l.state in ('pending', 'approved', 'issued')
    ), recent as materialized (
        select l.requested_at, l.agent = counted.agent as by_agent, l.task_id = counted.task_id as by_task,
               l.state <> 'denied' as granted, l.scope, l.resources
          from lease l
         where l.sponsor = counted.sponsor and l.requested_at > at - interval '1 hour' and l.requested_at < at + interval '1 day'
    ), thing (budget, what, of_sponsor, of_agent, of_task) as (
        select case o.state when 'pending' then 'pending_leases' else 'live_leases' end, null,
               o.until, case when o.by_agent then o.until end, case when o.by_task then o.until end
          from open o
        union all
        select 'live_leases', null, s.expires_at, case when l.agent = counted.agent then s.expires_at end,
               case when l.task_id = counted.task_id then s.expires_at end
          from session s join lease l on l.id = s.lease_id
         where s.revoking_at is not null and at < s.expires_at
           and l.sponsor = counted.sponsor and l.state not in ('pending', 'approved', 'issued')
        union all
        select 'requests_per_minute', null, i.until, case when r.by_agent then i.until end, case when r.by_task then i.until end
          from recent r, lateral (select r.requested_at + interval '1 minute') as i (until) where at < i.until
        union all
        select 'scopes_per_hour', r.scope, max(i.until), max(i.until) filter (where r.by_agent), max(i.until) filter (where r.by_task)
          from recent r, lateral (select r.requested_at + interval '1 hour') as i (until) where r.granted group by r.scope
        union all
        select 'resources_per_hour', resource, max(i.until), max(i.until) filter (where r.by_agent), max(i.until) filter (where r.by_task)
          from recent r, lateral (select r.requested_at + interval '1 hour') as i (until), unnest(r.resources) as resource
         where r.granted group by resource
        union all
        select 'signed_per_day', null, i.until, case when l.agent = counted.agent then i.until end,
               case when l.task_id = counted.task_id then i.until end
          from lease l, lateral (select l.requested_at + interval '1 day') as i (until)
         where l.sponsor = counted.sponsor and l.signed and l.state <> 'denied'
           and l.requested_at > at - interval '1 day' and l.requested_at < at + interval '1 day'
    )
    select t.budget, w.whose, t.what, w.until
      from thing t, lateral (values ('sponsor', t.of_sponsor), ('agent', t.of_agent), ('task', t.of_task)) as w (whose, until)
     where at < w.until;
end;

create view stopped_sessions as
    select s.id, s.lease_id, l.agent, l.sponsor, l.scope, l.environment, l.role_arn, s.session_name, s.access_key_id, s.state,
           s.stop_reason, s.freeze_id, s.revoking_at, s.denied_at, s.stopped_at, s.stopped_region,
           extract(epoch from s.denied_at - s.revoking_at)::numeric(10, 3) as seconds_to_deny,
           extract(epoch from s.stopped_at - s.revoking_at)::numeric(10, 3) as seconds_to_stop,
           s.expires_at, case when s.state = 'revoking' then r.last_error end as last_error
      from session s join lease l on l.id = s.lease_id left join role_stop r on r.role_arn = l.role_arn
     where s.revoking_at is not null
     order by (s.state = 'revoking') desc, s.revoking_at desc;

comment on view stopped_sessions is 'STS sessions that were stopped before their time, those first that AWS was not yet seen to refuse.';
comment on column stopped_sessions.id is 'the session';
comment on column stopped_sessions.lease_id is 'the lease it was minted under';
comment on column stopped_sessions.agent is 'who holds it';
comment on column stopped_sessions.sponsor is 'the human behind the agent';
comment on column stopped_sessions.scope is 'the lease''s scope';
comment on column stopped_sessions.environment is 'where';
comment on column stopped_sessions.role_arn is 'the role whose policy refuses it';
comment on column stopped_sessions.session_name is 'its name at AWS, which the policy names';
comment on column stopped_sessions.access_key_id is 'its key id, as in CloudTrail';
comment on column stopped_sessions.state is 'revoking: stopped here, AWS may still take it. stopped: AWS was seen to refuse it. expired: it ended by itself before that';
comment on column stopped_sessions.stop_reason is 'why it was stopped';
comment on column stopped_sessions.freeze_id is 'the freeze that stopped it, if one did';
comment on column stopped_sessions.revoking_at is 'from when on the broker no longer handed it out';
comment on column stopped_sessions.denied_at is 'when the policy was written that refuses it, and that its probe was tried on; null while AWS is not told';
comment on column stopped_sessions.stopped_at is 'when AWS was seen to refuse what that policy covers';
comment on column stopped_sessions.stopped_region is 'the Region whose endpoint refused';
comment on column stopped_sessions.seconds_to_deny is 'from revoking_at to denied_at';
comment on column stopped_sessions.seconds_to_stop is 'from revoking_at to stopped_at: the time to effect';
comment on column stopped_sessions.expires_at is 'when AWS ends it in any case';
comment on column stopped_sessions.last_error is 'what keeps AWS from being told, if something does';

create view freezes as
    select f.id, f.kind, f.target, f.reason, f.created_by, f.created_at, f.thawed_by, f.thawed_at,
           count(s.id) as sessions, count(s.id) filter (where s.state = 'revoking') as not_yet_stopped
      from "freeze" f left join session s on s.freeze_id = f.id
     group by f.id order by f.thawed_at is not null, f.created_at desc;

comment on view freezes is 'Standing orders that nothing is issued, and those of before.';
comment on column freezes.id is 'the freeze; `broker thaw ID` ends it';
comment on column freezes.kind is 'agent, sponsor, scope, environment or all';
comment on column freezes.target is 'which one; null for all';
comment on column freezes.reason is 'why';
comment on column freezes.created_by is 'who ordered it';
comment on column freezes.created_at is 'since when';
comment on column freezes.thawed_by is 'who ended it, by signature; null while it stands';
comment on column freezes.thawed_at is 'when';
comment on column freezes.sessions is 'STS sessions that it stopped';
comment on column freezes.not_yet_stopped is 'those of them that AWS was not yet seen to refuse';

create view role_stops as
    select role_arn, cut_off, written_at, next_check_at, failures, next_try_at, last_error from role_stop;

comment on view role_stops is 'Roles that sessions were stopped on, and how their deny policies stand.';
comment on column role_stops.role_arn is 'the role';
comment on column role_stops.cut_off is 'sessions that began before are refused, all of them; null when only single ones are';
comment on column role_stops.written_at is 'when its policy was written last; null when there is none';
comment on column role_stops.next_check_at is 'when it is looked at again, whether the policy is still there';
comment on column role_stops.failures is 'tries since it last worked';
comment on column role_stops.next_try_at is 'the next one';
comment on column role_stops.last_error is 'why the last one failed';

grant select on stopped_sessions, freezes, role_stops to broker_ops;
