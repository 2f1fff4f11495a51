-- Budgets: how much a sponsor, each of their agents and each task may ask for and hold. What counts is in the leases
-- themselves; the limits are configuration, and come with each request.

-- An agent of one sponsor and an agent of another are two, whatever they are called; a task is one agent's. So
-- everything is found by the sponsor, in the range of rows that still count.
drop index lease_open;
create index lease_open on lease (state, sponsor) where state in ('pending', 'approved', 'issued');
create index lease_signed on lease (sponsor, requested_at desc) where signed;

-- When an agent was last recorded to be over a budget: a loop in it must not fill the log.
create table over_budget (
    sponsor text        not null references person,
    agent   text        not null,
    whose   text        not null check (whose in ('agent', 'task', 'sponsor')),
    budget  text        not null,
    told_at timestamptz not null,
    primary key (sponsor, agent, whose, budget)
);

-- Everything that counts against the budgets of an agent, of one of its tasks and of its sponsor at a time: one row a
-- thing and budget, with when it stops to count by itself. Of a denied request only that it was made. (That nothing is
-- asked for a day from now has to be said for the planner: of a range with two ends it knows that it is a small part.)
create function counted(agent text, sponsor text, task_id uuid, at timestamptz)
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

-- Whether a request may be written: `open`, or why not. With `open`, the sponsor's requests wait for one another until
-- this transaction ends: nobody else has counted what is about to be written as not there.
--
-- The lock is on the sponsor's row. That is there already, it conflicts with whoever disables the sponsor, and not with
-- the foreign keys that point to it; and unlike an advisory lock, only who may write there can hold it. This function
-- has to be volatile: each of its statements then sees what was committed before it, and not only what was before the
-- statement that calls it.
create function admit(
    agent text, sponsor text, task_id uuid, idempotency_key text,
    -- What the lease would start as, and be about.
    state text, scope text, environment text, resources text[],
    -- {"agent": {"live_leases": 20, …}, "task": {…}, "sponsor": {…}}
    limits jsonb, at timestamptz,
    -- With `over-budget`: of those that are used up, the one that takes longest to have room for this request.
    out verdict text, out budget text, out whose text, out allowed bigint, out retry_at timestamptz)
language plpgsql volatile security definer
set search_path = pg_catalog, public, pg_temp
-- The best plan is the same whatever is asked; making it anew, or compiling it, takes longer than following it.
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
    locked boolean;
begin
    foreach locked in array array[false, true] loop
        if locked then
            perform from public.person p where p.handle = admit.sponsor for no key update;
        elsif not exists (select from public.over_budget o where o.sponsor = admit.sponsor and o.agent = admit.agent
                                                             and at - interval '1 minute' < o.told_at) then
            -- Who was just refused is most likely refused again, and then makes nobody wait: see below without the lock
            -- first. Everybody else is judged once.
            continue;
        end if;

        if not public.task_is_live(task_id, agent, sponsor, at) then
            verdict := 'task-ended';
            return;
        end if;
        -- The same request again is no new one.
        if exists (select from public.lease l where l.agent = admit.agent and l.sponsor = admit.sponsor
                                                and l.idempotency_key = admit.idempotency_key) then
            verdict := 'known';
            return;
        end if;
        if state <> 'denied' and public.is_frozen(agent, sponsor, scope, environment) then
            verdict := 'frozen';
            return;
        end if;

        -- What this request adds must fit beside what is there. What is there and is not new does not count twice.
        -- Things only go: when the last of those that are too many has gone, there is room.
        with asked as (
            select w.key as whose, b.key as budget, b.value::bigint as allowed,
                   case when b.key = 'requests_per_minute' then 1
                        when state = 'denied' then 0
                        when b.key in ('pending_leases', 'signed_per_day') then (state = 'pending')::int
                        when b.key = 'resources_per_hour' then (select count(distinct it) from unnest(resources) as it)
                        else 1 end as adds
              from jsonb_each(limits) as w, jsonb_each_text(w.value) as b
        ), used as materialized (
            select c.budget, c.whose, c.until from public.counted(agent, sponsor, task_id, at) as c
             where not (c.budget = 'scopes_per_hour' and c.what = scope)
               and not (c.budget = 'resources_per_hour' and c.what = any (resources))
        )
        select a.budget, a.whose, a.allowed,
               (select coalesce(max(u.until), at)
                  from (select u.until from used u where u.budget = a.budget and u.whose = a.whose
                         order by u.until desc offset greatest(a.allowed - a.adds, 0) limit 1) as u)
          into admit.budget, admit.whose, admit.allowed, admit.retry_at
          from asked a
          left join (select u.budget, u.whose, count(*) as things from used u group by u.budget, u.whose) as n
                 on n.budget = a.budget and n.whose = a.whose
         where a.adds > 0 and a.allowed < coalesce(n.things, 0) + a.adds
         order by 4 desc, a.whose, a.budget limit 1;
        if found then
            verdict := 'over-budget';
            return;
        end if;
    end loop;
    verdict := 'open';
end
$$;

grant execute on function counted, admit to broker_app;
grant select, insert, update (told_at) on over_budget to broker_app;
