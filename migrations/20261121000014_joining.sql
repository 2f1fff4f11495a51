-- Requests in the same words: whoever asks again for what is open already, under the same task, is given that lease. An AWS
-- tool that starts a credential process for each command would else hold one lease a command, and people would be asked twice.
-- The gate decides it, first without its lock and then with it: of two that come at once, one opens and the other joins.

drop function admit(text, text, uuid, text, text, text, text, text[], jsonb, timestamptz);

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
    -- The digest of a request that an open lease in the same words will do for; null if it wants one of its own. What ends within
    -- `join_margin` will not do.
    join_sha256 bytea, join_margin interval,
    -- With `over-budget`: of those that are used up, the one that takes longest to have room for this request.
    out verdict text, out budget text, out whose text, out allowed bigint, out retry_at timestamptz,
    -- With `joined`: the lease that will do.
    out lease_id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, public, pg_temp
-- The best plan is the same whatever is asked; making it anew, or compiling it, takes longer than following it.
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
    locked boolean;
    -- Who was just refused is most likely refused again, and then makes nobody wait: see below without the lock first.
    refused boolean := exists (select from public.over_budget o where o.sponsor = admit.sponsor and o.agent = admit.agent
                                                                  and at - interval '1 minute' < o.told_at);
begin
    -- Whoever joins is to make nobody wait either, nor commit a lock: so it looks without it, and once more with it.
    foreach locked in array array[false, true] loop
        if locked then
            perform from public.person p where p.handle = admit.sponsor for no key update;
        elsif join_sha256 is null and not refused then
            -- Judged once.
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

        if join_sha256 is not null and state <> 'denied' then
            select l.id into admit.lease_id
              from public.lease l
             where l.state in ('pending', 'approved', 'issued') and l.sponsor = admit.sponsor and l.agent = admit.agent
               and l.task_id = admit.task_id and l.request_sha256 = join_sha256
               and case when l.state = 'pending' then at < l.sign_by
                        else at + join_margin < least(case when l.claimed_at is null then l.claim_by end,
                                                      coalesce(l.ends_at, l.claimed_at + make_interval(secs => l.window_seconds))) end
             order by l.requested_at desc, l.id desc limit 1;
            if found then
                verdict := 'joined';
                return;
            end if;
        end if;

        if not locked and not refused then
            continue;
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

grant execute on function admit to broker_app;
