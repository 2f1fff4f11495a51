-- Tasks of workloads: started by a token that a trusted issuer signed, instead of by a sponsor's signature. One token is one task,
-- for ever: whoever brings it again is given that task, or nothing.

alter table task
    -- Who vouched for the workload, and what it is called there.
    add issuer        text  check (issuer <> ''),
    add subject       text  check (subject <> ''),
    -- Of what the issuer signed.
    add token_sha256  bytea unique check (length(token_sha256) = 32),
    -- Who set it off: a person, or somebody whom nobody could name. Neither: the sponsor.
    add actor         text  references person,
    add actor_unknown boolean not null default false,
    -- What its token says that rules may ask for.
    add claims        jsonb check (jsonb_typeof(claims) = 'object'),
    add constraint task_of_workload check (num_nulls(issuer, subject, token_sha256, claims) in (0, 4)),
    add constraint task_started_once check (issuer is null or started_by is null),
    add constraint task_actor check (not (actor_unknown and actor is not null)),
    add constraint task_of_sponsor check (issuer is not null or (actor is null and not actor_unknown));

create or replace function task_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if (new.id, new.agent, new.sponsor, new.task, new.started_at, new.expires_at, new.started_by,
        new.issuer, new.subject, new.token_sha256, new.actor, new.actor_unknown, new.claims) is distinct from
       (old.id, old.agent, old.sponsor, old.task, old.started_at, old.expires_at, old.started_by,
        old.issuer, old.subject, old.token_sha256, old.actor, old.actor_unknown, old.claims)
       or (old.ended_at is not null and new.ended_at is distinct from old.ended_at) then
        raise exception 'a task only ends, and once' using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;

-- As before, and besides: who set the task off is who set the lease off, and does not sign for it. If nobody knows who that is,
-- nobody knows who must not sign: then nobody is asked to.
create or replace function lease_starts() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if new.state not in ('pending', 'approved', 'denied') or (new.state = 'approved' and new.signatures_needed > 0) then
        raise exception 'a lease cannot start as %', new.state using errcode = 'integrity_constraint_violation';
    end if;
    -- For leases that nobody signs it only says something; then the look is saved where it says nothing.
    if (new.state = 'pending' or new.actor is not null)
       and not exists (select from task t where t.id = new.task_id and t.actor is not distinct from new.actor
                                            and not (new.state = 'pending' and t.actor_unknown)) then
        raise exception 'lease % does not say who set it off', new.id using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;

-- Starts the task of a workload's token, with its event. `verdict`: `started`; `known`, with the task that the token started
-- before; `ended`, if that has ended, or would be another's by today's configuration; `no-sponsor`; or `over-budget`, with when there is room again.
create function start_workload_task(
    id uuid, agent text, sponsor text, task text, issuer text, subject text, token_sha256 bytea,
    actor text, actor_unknown boolean, claims jsonb, at timestamptz, expires_at timestamptz,
    -- How many an agent may start a minute.
    most bigint, event bytea,
    out verdict text, out task_id uuid, out ends_at timestamptz, out retry_at timestamptz)
language plpgsql volatile security definer
set search_path = pg_catalog, public, pg_temp
as $$
declare
    known public.task;
    locked boolean;
begin
    if expires_at > at + interval '1 day' then
        raise exception 'a task of a workload lasts a day at most' using errcode = 'integrity_constraint_violation';
    end if;
    -- Of the same token that comes twice at once, and of tokens beyond the budget, one is first: that takes the sponsor's lock, for
    -- which every request of their agents waits. So who comes again, or too often, is found out without it.
    foreach locked in array array[false, true] loop
        if locked then
            perform from public.person p where p.handle = start_workload_task.sponsor for no key update;
        end if;
        if not exists (select from public.person p where p.handle = start_workload_task.sponsor and p.disabled_at is null) then
            verdict := 'no-sponsor';
            return;
        end if;
        select * into known from public.task t where t.token_sha256 = start_workload_task.token_sha256;
        if found then
            task_id := known.id;
            ends_at := known.expires_at;
            verdict := case when known.ended_at is null and at < known.expires_at and known.agent = start_workload_task.agent
                                 and known.sponsor = start_workload_task.sponsor and known.actor is not distinct from start_workload_task.actor
                                 and known.actor_unknown = start_workload_task.actor_unknown then 'known' else 'ended' end;
            return;
        end if;
        select t.started_at + interval '1 minute' into retry_at
          from public.task t
         where t.agent = start_workload_task.agent and t.sponsor = start_workload_task.sponsor and t.issuer is not null
           and at - interval '1 minute' < t.started_at and t.started_at <= at
         order by t.started_at desc offset most - 1 limit 1;
        if found then
            verdict := 'over-budget';
            return;
        end if;
    end loop;
    insert into public.task (id, agent, sponsor, task, started_at, expires_at, issuer, subject, token_sha256, actor, actor_unknown, claims)
    values (start_workload_task.id, start_workload_task.agent, start_workload_task.sponsor, start_workload_task.task, at,
            start_workload_task.expires_at, start_workload_task.issuer, start_workload_task.subject,
            start_workload_task.token_sha256, start_workload_task.actor, start_workload_task.actor_unknown,
            start_workload_task.claims);
    perform public.append_event(event);
    task_id := start_workload_task.id;
    ends_at := start_workload_task.expires_at;
    verdict := 'started';
end
$$;

grant execute on function start_workload_task to broker_app;

create view tasks as
    select t.id, t.agent, t.sponsor, t.task, t.started_at, t.expires_at, t.ended_at, t.started_by as act_id, t.issuer, t.subject, t.actor,
           t.actor_unknown, t.claims
      from task t;

comment on view tasks is 'Every task that an agent worked on: who stands behind it, and how it began.';
comment on column tasks.id is 'the task; its token has the same id';
comment on column tasks.agent is 'the agent';
comment on column tasks.sponsor is 'the human who stands behind it';
comment on column tasks.task is 'what it works on: a ticket, a run, or the workload''s subject';
comment on column tasks.started_at is 'when it began';
comment on column tasks.expires_at is 'when it ends by itself';
comment on column tasks.ended_at is 'when it was ended before; null if it was not';
comment on column tasks.act_id is 'the sponsor''s signed act that started it; null for a workload''s';
comment on column tasks.issuer is 'who vouched for the workload; null where the sponsor started it';
comment on column tasks.subject is 'what the workload is called there';
comment on column tasks.actor is 'the person who set the workload off, if one did';
comment on column tasks.actor_unknown is 'somebody set it off, and nobody knows who: it gets no scope that people sign for';
comment on column tasks.claims is 'what the workload''s token said, as far as the configuration keeps it';

grant select on tasks to broker_ops;

-- What a lease was judged by has this too.
create or replace view rulesets as
    select r.sha256, r.first_in_force_at, c.doc ->> 'scopes' as scopes, c.doc -> 'policies' as policies, c.doc -> 'home' as home,
           c.doc ->> 'action_table' as action_table, (c.doc ->> 'software_keys')::boolean as software_keys,
           coalesce(c.doc -> 'issuers', '[]') as issuers
      from ruleset r, lateral (select convert_from(r.content, 'UTF8')::jsonb as doc) c;

comment on column rulesets.issuers is 'whose word counted for what a workload is: [[issuers]] of broker.toml';
