-- Thirteen months of what a broker does, with every state of every table in it: written in bulk by a superuser, past the
-- guards. `fill.events` says about how many events. Nothing here is random: the same number gives the same history, but for its times.

set local session_replication_role = replica;
set local timezone = 'UTC';
set local work_mem = '256MB';
set local synchronous_commit = off;
set local client_min_messages = warning;
create schema fill;

-- Triggers that fire for everybody are off until the end.
create table fill.guard as
    select tgrelid::regclass::text as on_table, tgname::text as name from pg_trigger
     where not tgisinternal and tgenabled = 'A' and tgparentid = 0 and tgrelid::regclass::text !~ '^event_';
do $$
declare g fill.guard;
begin
    for g in select * from fill.guard loop execute format('alter table %s disable trigger %I', g.on_table, g.name); end loop;
end
$$;
select make_event_partition((now() - make_interval(months => m))::date) from generate_series(0, 14) as m;

create function fill.dice(n bigint, what bigint, sides bigint) returns bigint language sql immutable parallel safe
return (hashint8extended(n, what) & 9007199254740991) % sides;

-- As a UUIDv7 is: its time first.
create function fill.id(at timestamptz, n bigint, what text) returns uuid language sql immutable parallel safe
return (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7' || substr(md5(what || n), 1, 3) || 'a'
        || substr(md5(what || n), 4, 15))::uuid;

create function fill.time(at timestamptz) returns text language sql immutable parallel safe
return to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');

-- ---------------------------------------------------------------------------------------------------------- people

create table fill.person as
    select n, case when n < 5 then (array['alice', 'bob', 'carol', 'dave', 'erin'])[n + 1] else 'person-' || n end as handle,
           'SHA256:' || rtrim(encode(sha256(('key of ' || n)::bytea), 'base64'), '=') as fingerprint
      from generate_series(0, 59) as n;
insert into person (handle, display_name, email, groups, created_at, disabled_at)
select handle, initcap(handle), handle || '@example.com', case when n < 3 then '{admins,production-signers}' else '{production-signers}' end::text[],
       now() - interval '14 months', case when n = 59 then now() - interval '20 days' end
  from fill.person on conflict do nothing;
insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at, revoked_at)
select fingerprint, handle, 'sk-ssh-ed25519@openssh.com AAAA' || n, (array['verified', 'present', 'software'])[1 + n % 3], 'seen by a fill',
       now() - interval '14 months', case when n = 59 then now() - interval '20 days' end
  from fill.person;

insert into ruleset (content, first_in_force_at)
select convert_to('{"scopes":"","policies":{},"home":{},"action_table":"' || n || '","software_keys":false}', 'UTF8'), now() - make_interval(months => n)
  from generate_series(1, 12) as n;

-- ----------------------------------------------------------------------------------------------------------- leases

-- How a lease of the past goes, in how many of a thousand; and those of the last minutes.
create table fill.fate (name text primary key, signed boolean, weight int, state text, end_reason text, session_state text);
insert into fill.fate values
    ('expired', false, 800, 'expired', null, 'expired'),
    ('unminted', false, 10, 'expired', null, 'failed'),
    ('lapsed', false, 20, 'lapsed', 'not claimed in time', null),
    ('withdrawn', false, 10, 'withdrawn', 'not needed', null),
    ('denied', false, 40, 'denied', 'no rule lets the agent have it', null),
    ('revoked', false, 8, 'revoked', 'it does what it should not', 'stopped'),
    ('revoked-late', false, 4, 'revoked', 'it does what it should not', 'expired'),
    ('frozen', false, 8, 'expired', null, 'stopped'),
    ('signed-expired', true, 60, 'expired', null, 'expired'),
    ('signed-refused', true, 10, 'refused', 'not during the sale', null),
    ('signed-withdrawn', true, 4, 'withdrawn', 'not needed', null),
    ('signed-unsigned', true, 12, 'lapsed', 'not signed in time', null),
    ('signed-lapsed', true, 3, 'lapsed', 'not claimed in time', null),
    ('signed-failed', true, 4, 'failed', 'STS did not answer in time', 'failed'),
    ('signed-revoked', true, 3, 'revoked', 'it does what it should not', 'stopped'),
    ('signed-denied', true, 4, 'denied', 'too few could sign', null),
    ('now-pending', true, 0, 'pending', null, null),
    ('now-approved', false, 0, 'approved', null, null),
    ('now-signed', true, 0, 'approved', null, null),
    ('now-issuing', false, 0, 'approved', null, 'issuing'),
    ('now-live', false, 0, 'issued', null, 'live'),
    ('now-signed-live', true, 0, 'issued', null, 'live'),
    ('now-revoking', false, 0, 'revoked', 'it does what it should not', 'revoking'),
    ('now-held', false, 0, 'issued', null, 'revoking');
-- A thousand in a row have each fate as often as it weighs.
create table fill.wheel as
    select row_number() over (order by name, i) - 1 as place, name as fate from fill.fate, generate_series(1, weight) as i;

create table fill.scope (n int, name text, environment text, tier text, account text, role text, signed boolean);
insert into fill.scope values
    (0, 'staging-ro', 'staging', 'read-only', '111111111111', 'staging', false),
    (1, 'staging-rw', 'staging', 'staging-write', '111111111111', 'staging', false),
    (2, 'dev-rw', 'development', 'staging-write', '111111111111', 'staging', false),
    (3, 'prod-ro', 'production', 'read-only', '222222222222', 'production', false),
    (4, 'backup-ro', 'backup', 'read-only', '333333333333', 'backup', false),
    (0, 'staging-secrets', 'staging', 'staging-sensitive', '111111111111', 'staging', true),
    (1, 'prod-rw', 'production', 'production-write', '222222222222', 'production', true),
    (2, 'prod-rw', 'production', 'production-write', '222222222222', 'production', true),
    (3, 'prod-destructive', 'production', 'destructive', '222222222222', 'production', true),
    (4, 'backup-destructive', 'backup', 'destructive', '333333333333', 'backup', true);
insert into role_stop (role_arn, cut_off, written_at, next_check_at, last_error)
select distinct 'arn:aws:iam::' || account || ':role/broker-' || role, null::timestamptz, now() - interval '3 minutes', now(), case role when 'backup' then 'IAM refused' end
  from fill.scope;
insert into role_writer (role_arn) select role_arn from role_stop on conflict do nothing;

insert into "freeze" (id, kind, target, reason, created_by, created_at, thawed_at, thawed_by)
select fill.id(at, n, 'freeze'), kind, (array['agent-' || n + 9, 'person-9', 'backup-destructive', 'backup', null])[1 + n % 5],
       'it runs wild', 'carol', at, case when n % 5 = 4 or n >= 5 then at + interval '2 hours' end, case when n % 5 = 4 or n >= 5 then 'bob' end
  from (select n, (array['agent', 'sponsor', 'scope', 'environment', 'all'])[1 + n % 5] as kind,
               now() - interval '30 minutes' - n * interval '5 days' as at
          from generate_series(0, 77) as n) as it;

-- Of some six events each; the last sixty within minutes.
create unlogged table fill.lease as
with size as (
    select (current_setting('fill.events')::bigint * 10 / 60) as leases
), numbered as (
    select n, leases, leases - n <= 60 as now,
           case when leases - n <= 60 then now() - (leases - n + 240) * interval '1 second'
                else now() - interval '20 minutes' - ((leases - n) * (395.0 * 86400 / leases)) * interval '1 second' end as at
      from size, generate_series(1, leases) as n
), agents as (
    -- A few agents ask for much, most for little.
    select *, case when now then n / 12 % 3 else floor(300 * power(fill.dice(n, 1, 1000000) / 1000000.0, 2)) end::int as agent_no,
           case when now then (array['now-pending', 'now-approved', 'now-signed', 'now-issuing', 'now-live', 'now-signed-live',
                                     'now-revoking', 'now-held', 'signed-refused', 'denied', 'revoked', 'signed-revoked'])[1 + n % 12]
           end as fate_now
      from numbered
), fated as (
    select a.*, f.name as fate, f.signed, f.state, f.end_reason, f.session_state, a.agent_no % 40 as sponsor_no
      from agents a
      left join fill.wheel w on w.place = (a.n * 617) % 1000 and a.fate_now is null
      join fill.fate f on f.name = coalesce(a.fate_now, w.fate)
), timed as (
    select f.*,
           case when f.signed and f.fate not in ('signed-refused', 'signed-withdrawn', 'signed-unsigned', 'signed-denied', 'now-pending')
                then f.at + (5 + fill.dice(f.n, 2, case when f.now then 200 else 1500 end)) * interval '1 second'
                when not f.signed and f.state <> 'denied' then f.at end as approved_at
      from fated f
)
select t.n, t.fate, t.at, t.signed, t.state, t.end_reason, t.session_state,
       case when t.agent_no = 0 then 'demo-agent' else 'agent-' || t.agent_no end as agent, p.handle as sponsor,
       fill.id(t.at, t.n, 'lease') as id, s.name as scope, s.environment, s.tier, s.account,
       'arn:aws:iam::' || s.account || ':role/broker-' || s.role as role_arn,
       (t.at::date - date '2020-01-01') * 300 + t.agent_no as task_no, 'OPS-' || fill.dice((t.at::date - date '2020-01-01') * 300 + t.agent_no, 3, 500) as task,
       -- Two sign for each other alone; others are signed for by whoever is there.
       case when t.sponsor_no < 2 then 1 - t.sponsor_no else 40 + fill.dice(t.n, 4, 19) end as signer_no,
       t.approved_at, t.approved_at + interval '15 minutes' as claim_by,
       case when t.session_state is not null then t.approved_at + interval '1 second' end as claimed_at,
       case when t.session_state not in ('issuing', 'failed') then t.approved_at + interval '1.3 seconds' end as issued_at,
       case when t.session_state is not null then t.approved_at + interval '1 second' + case when t.signed then interval '15 minutes' else interval '1 hour' end end as ends_at,
       case when t.session_state in ('stopped', 'revoking') or t.fate = 'revoked-late'
            then t.approved_at + (2 + fill.dice(t.n, 5, 30)) * interval '1 second' end as revoking_at,
       fill.id(t.approved_at, t.n, 'session') as session_id,
       case when t.session_state = 'stopped' then fill.id(t.approved_at, t.n, 'probe') end as probe_id,
       case when t.fate = 'frozen' then fill.id(f.created_at, 0, 'x') end as unused,
       case when t.fate in ('frozen', 'now-held') then f.id end as freeze_id,
       -- One in a hundred asks for much.
       1 + fill.dice(t.n, 6, 3) + case when t.fate = 'now-live' or fill.dice(t.n, 7, 100) = 0 then 9 else 0 end as width
  from timed t
  join fill.person p on p.n = t.sponsor_no
  join fill.scope s on s.n = fill.dice(t.n, 8, 5) and s.signed = t.signed
  left join lateral (select id, created_at from "freeze" where t.fate in ('frozen', 'now-held') order by id limit 1 offset case when t.fate = 'now-held' then 77 else t.n % 70 end) f on true;
alter table fill.lease drop column unused;
analyze fill.lease;

-- ------------------------------------------------------------------------------------------------------------ acts

create table fill.task as
    select task_no, min(task) as task, min(agent) as agent, min(sponsor) as sponsor, min(at) - interval '10 minutes' as at,
           fill.id(min(at) - interval '10 minutes', task_no, 'act') as id
      from fill.lease group by task_no;
create unique index on fill.task (task_no);
analyze fill.task;

create function fill.act(id uuid, kind text, terms text, proposed_by text, at timestamptz, cool_down int) returns bytea language sql immutable parallel safe
return convert_to(format('{"_type":"https://in-toto.io/Statement/v1","predicate":{"act":%s,"broker":"https://broker.example.com","cool_down_seconds":%s,"id":"%s","proposed_at":"%s","proposed_by":"%s","sign_by":"%s","signers":{"assurance":"present","eligible":["alice","bob","carol"]}},"predicateType":"urn:broker:act:v1"}',
    terms, cool_down, id, fill.time(at), proposed_by, fill.time(at + interval '7 days')), 'UTF8');

create table fill.act_done as
    select id, 'task-start' as kind, at, sponsor as proposed_by, sponsor as signer, 'done' as state, null as end_reason, task_no as n,
           format('{"agent":"%s","kind":"task-start","sponsor":"%s","task":"%s","ttl_seconds":28800}', agent, sponsor, task) as terms
      from fill.task
    union all
    select fill.id(at, n, 'change'), 'admin-change', at, 'alice', 'bob', state,
           case state when 'refused' then 'not on call' when 'lapsed' then 'not signed in time' when 'failed' then 'the groups are others by now' end, n,
           format('{"change":"set-groups","from":[],"handle":"%s","kind":"admin-change","to":["ops"]}', 'person-' || 5 + n % 50)
      from (select n, now() - n * interval '8 hours' - interval '5 minutes' as at,
                   (array['signed', 'done', 'refused', 'lapsed', 'failed', 'proposed'])[1 + n % 6] as state from generate_series(0, 1187) as n) it
    union all
    select fill.id(f.thawed_at, 0, f.id::text), 'thaw', f.thawed_at, 'bob', 'bob', 'done', null, 0, format('{"freeze_id":"%s","kind":"thaw"}', f.id)
      from "freeze" f where f.thawed_at is not null;
-- Older ones no longer wait.
update fill.act_done set state = 'lapsed', end_reason = 'not signed in time' where state = 'proposed' and at < now() - interval '7 days';
update fill.act_done set state = 'done' where state = 'signed' and at < now() - interval '2 days';

insert into act (id, bytes, kind, proposed_by, proposed_at, sign_by, state, signed_at, effective_at, ended_at, end_reason)
select id, fill.act(id, kind, terms, proposed_by, at, 0), kind, proposed_by, at, at + interval '7 days', state,
       case when state in ('signed', 'done', 'failed') then at + interval '1 minute' end,
       case when state in ('signed', 'done', 'failed') then at + interval '1 minute' end,
       case when state in ('done', 'refused', 'lapsed', 'failed') then at + interval '1 minute' end, end_reason
  from fill.act_done order by at;
insert into act_signature (act_id, person, fingerprint, decision, signature, assurance, touched, verified, reason, signed_at)
select a.id, a.signer, p.fingerprint, case when a.state = 'refused' then 'refuse' else 'approve' end, repeat('x', 600), (array['verified', 'present', 'software'])[1 + p.n % 3], true, p.n % 3 = 0,
       case when a.state = 'refused' then a.end_reason end, a.at + interval '1 minute'
  from fill.act_done a join fill.person p on p.handle = a.signer where a.state not in ('proposed', 'lapsed') order by a.at;
insert into task (id, agent, sponsor, task, started_at, expires_at, ended_at, started_by)
select id, agent, sponsor, task, at, at + interval '24 hours', case when task_no % 2 = 0 and at < now() - interval '1 day' then at + interval '20 hours' end, id
  from fill.task order by at;

-- ------------------------------------------------------------------------------------------- leases and their parts

insert into lease (id, idempotency_key, request_sha256, agent, sponsor, task_id, task, reason, rollback, scope, environment, tier, account, region,
                   role_arn, actions, resources, assume_role, window_seconds, rules_sha256, decided_by, signatures_needed, eligible_signers,
                   state, requested_at, sign_by, approved_at, claim_by, claimed_at, issued_at, ends_at, ended_at, end_reason)
select l.id, l.id::text, sha256(l.id::text::bytea), l.agent, l.sponsor, t.id, l.task, 'the deployment of ' || l.task || ' needs it', 'put the old one back', l.scope, l.environment,
       l.tier, l.account, 'us-east-1', l.role_arn,
       (select array_agg('s3:Action' || i) from generate_series(1, l.width) as i),
       (select array_agg('arn:aws:s3:::app-' || l.account || '/data/' || fill.dice(l.n, 9 + i, 10000)) from generate_series(1, l.width) as i),
       jsonb_build_object('role_arn', l.role_arn, 'duration_seconds', 3600, 'source_identity', l.id, 'policy', repeat('"s3:GetObject",', 40)),
       case when l.signed then 900 else 3600 end, (select min(sha256) from ruleset), '{agents-may-ask}', l.signed::int,
       case when l.signed then array[s.handle, 'carol'] else '{}' end, l.state, l.at,
       case when l.signed and l.state <> 'denied' then l.at + interval '30 minutes' end, l.approved_at, case when l.approved_at is not null then l.claim_by end,
       l.claimed_at, l.issued_at, l.ends_at,
       case when l.state in ('pending', 'approved', 'issued') then null when l.state = 'revoked' then l.revoking_at when l.state = 'denied' then l.at
            else coalesce(l.ends_at, l.approved_at + interval '15 minutes', l.at + interval '1 minute') end, l.end_reason
  from fill.lease l join fill.task t on t.task_no = l.task_no join fill.person s on s.n = l.signer_no order by l.n;

insert into statement (lease_id, bytes)
select id, convert_to(format('{"id":"%s","terms":"%s"}', id, repeat('what a person judges, and AWS enforces; ', 60)), 'UTF8') from fill.lease where signed and state <> 'denied' order by n;

insert into signature (lease_id, person, fingerprint, decision, signature, assurance, touched, verified, reason, signed_at)
select l.id, s.handle, s.fingerprint, case when l.state = 'refused' then 'refuse' else 'approve' end, repeat('x', 600), (array['verified', 'present', 'software'])[1 + s.n % 3], true, s.n % 3 = 0,
       case when l.state = 'refused' then l.end_reason end, coalesce(l.approved_at, l.at + interval '1 minute')
  from fill.lease l join fill.person s on s.n = l.signer_no
 where l.signed and (l.approved_at is not null or l.state = 'refused') order by l.n;

insert into probe (id, role_arn, session_name, claimed_at, access_key_id, expires_at, tried_at, proven_at, denied_at, refused_at, region)
select probe_id, role_arn, 'broker-probe-' || probe_id, revoking_at, 'ASIAP' || upper(substr(md5(probe_id::text), 1, 15)), revoking_at + interval '15 minutes',
       revoking_at + interval '1 second', revoking_at + interval '0.3 seconds', revoking_at + interval '0.5 seconds', revoking_at + interval '1.2 seconds', 'us-east-1'
  from fill.lease where probe_id is not null order by n;

insert into session (id, lease_id, signed, state, session_name, claimed_at, settled_at, access_key_id, expires_at, failure, deliveries, last_delivered_at,
                     revoking_at, stop_reason, freeze_id, denied_at, probe_id, stopped_at, stopped_region)
select session_id, id, signed, session_state, id || '-' || substr(md5(n::text), 1, 8), claimed_at, case when session_state <> 'issuing' then claimed_at + interval '0.3 seconds' end,
       case when session_state not in ('issuing', 'failed') then 'ASIA' || upper(substr(md5(session_id::text), 1, 16)) end,
       case when session_state not in ('issuing', 'failed') then ends_at end, case when session_state = 'failed' then 'STS did not answer in time' end,
       (session_state not in ('issuing', 'failed'))::int, case when session_state not in ('issuing', 'failed') then issued_at end,
       revoking_at, case when revoking_at is not null then coalesce(end_reason, 'frozen: it runs wild') end, freeze_id,
       case when probe_id is not null then revoking_at + interval '0.5 seconds' end, probe_id,
       case when probe_id is not null then revoking_at + interval '1.2 seconds' end, case when probe_id is not null then 'us-east-1' end
  from fill.lease where session_state is not null order by n;
-- Every fifth that went on to its end minted a second one.
insert into session (id, lease_id, signed, state, session_name, claimed_at, settled_at, access_key_id, expires_at, deliveries, last_delivered_at)
select fill.id(claimed_at, n, 'second'), id, false, 'expired', id || '-' || substr(md5('second' || n), 1, 8), claimed_at + interval '20 minutes',
       claimed_at + interval '20.3 minutes', 'ASIA' || upper(substr(md5('second' || n), 1, 16)), ends_at, 1, claimed_at + interval '20.3 minutes'
  from fill.lease where fate = 'expired' and n % 5 = 0 order by n;
-- A probe that found nothing.
insert into probe (id, role_arn, session_name, claimed_at, tried_at, failure)
select gen_random_uuid(), role_arn, 'broker-probe-failed', now() - interval '5 minutes', now() - interval '5 minutes', 'STS did not answer in time' from role_stop limit 1;

insert into over_budget (sponsor, agent, whose, budget, told_at)
select 'alice', 'agent-40', whose, 'requests_per_minute', now() - interval '3 minutes' from unnest('{agent,task,sponsor}'::text[]) as whose;

-- ----------------------------------------------------------------------------------------------------------- events

create table fill.step (fate text, ord int, type text, actor text, moment text, of_session boolean);
insert into fill.step
select f.name, s.ord, s.type, s.actor, s.moment, s.of_session
  from fill.fate f,
       lateral (values
           (1, 'lease.denied', 'agent', 'at', false, f.state = 'denied'),
           (1, 'lease.approved', 'agent', 'at', false, not f.signed and f.state <> 'denied'),
           (1, 'lease.pending', 'agent', 'at', false, f.signed and f.state <> 'denied'),
           (2, 'signature.accepted', 'signer', 'approved', false, f.signed and f.name not in ('signed-withdrawn', 'signed-unsigned', 'signed-denied', 'now-pending')),
           (2, 'signature.rejected', 'sponsor', 'approved', false, f.name in ('signed-unsigned', 'now-pending')),
           (3, 'lease.approved', 'signer', 'approved', false, f.signed and f.name not in ('signed-refused', 'signed-withdrawn', 'signed-unsigned', 'signed-denied', 'now-pending')),
           (3, 'lease.refused', 'signer', 'approved', false, f.state = 'refused'),
           (4, 'session.issuing', 'agent', 'claimed', true, f.session_state is not null),
           (5, 'session.issued', 'agent', 'issued', true, f.session_state not in ('issuing', 'failed')),
           (5, 'session.failed', 'agent', 'issued', true, f.session_state = 'failed'),
           (6, 'lease.issued', 'agent', 'issued', true, f.session_state not in ('issuing', 'failed')),
           (6, 'lease.failed', 'agent', 'issued', true, f.state = 'failed'),
           (7, 'session.redelivered', 'agent', 'issued', true, f.name = 'signed-expired'),
           (8, 'lease.revoked', 'sponsor', 'revoking', false, f.state = 'revoked'),
           (9, 'session.revoking', 'broker', 'revoking', true, f.session_state in ('stopped', 'revoking') or f.name = 'revoked-late'),
           (10, 'session.stopped', 'broker', 'revoking', true, f.session_state = 'stopped'),
           (11, 'session.expired', 'broker', 'ended', true, f.session_state = 'expired'),
           (12, 'lease.expired', 'broker', 'ended', false, f.state = 'expired'),
           (12, 'lease.lapsed', 'broker', 'ended', false, f.state = 'lapsed'),
           (12, 'lease.withdrawn', 'agent', 'ended', false, f.state = 'withdrawn')) as s (ord, type, actor, moment, of_session, happens)
 where s.happens;

create function fill.body(type text, actor text, agent text, sponsor text, scope text, lease uuid, session uuid, detail text, at timestamptz, id uuid)
returns bytea language sql immutable parallel safe
return convert_to('{"actor":"' || actor || '","data":{' || coalesce('"agent":"' || agent || '",', '') || '"detail":' || detail || coalesce(',"lease_id":"' || lease || '"', '')
    || coalesce(',"scope":"' || scope || '"', '') || coalesce(',"session_id":"' || session || '"', '') || coalesce(',"sponsor":"' || sponsor || '"', '')
    || '},"id":"' || id || '","source":"https://broker.example.com","specversion":"1.0","time":"' || fill.time(at) || '","type":"' || type || '"}', 'UTF8');

-- Month for month, in the order in which they were recorded.
create procedure fill.events_between(since timestamptz, until timestamptz) language sql as $$
insert into event (recorded_at, id, type, occurred_at, actor, agent, sponsor, scope, lease_id, session_id, body)
select e.at + interval '3 milliseconds', e.id, e.type, e.at, e.actor, e.agent, e.sponsor, e.scope, e.lease, e.session,
       fill.body(e.type, e.actor, e.agent, e.sponsor, e.scope, e.lease, e.session, e.detail, e.at, e.id)
  from (
    select m.at, fill.id(m.at, l.n, s.type) as id, s.type,
           case s.actor when 'agent' then 'agent:' || l.agent when 'signer' then 'person:' || p.handle when 'sponsor' then 'person:' || l.sponsor else 'broker' end as actor,
           l.agent, l.sponsor, l.scope, l.id as lease, case when s.of_session then l.session_id end as session,
           case s.ord when 1 then '{"decided_by":["agents-may-ask"],"rules_sha256":"' || md5(l.task) || md5(l.agent) || '","task":"' || l.task || '","tier":"' || l.tier || '","why":"' || coalesce(l.end_reason, '') || '"}'
                      when 2 then '{"assurance":"verified","decision":"approve","key_fingerprint":"' || p.fingerprint || '"}'
                      when 4 then '{"session_name":"' || l.id || '-' || substr(md5(l.n::text), 1, 8) || '"}'
                      when 5 then '{"access_key_id":"ASIA' || upper(substr(md5(l.session_id::text), 1, 16)) || '","session_name":"' || l.id || '"}'
                      else '{"why":"' || coalesce(l.end_reason, '') || '"}' end as detail, l.n, s.ord
      from fill.lease l
      join fill.step s on s.fate = l.fate
      join fill.person p on p.n = l.signer_no,
           lateral (select case s.moment when 'at' then l.at when 'approved' then coalesce(l.approved_at, l.at + interval '1 minute') when 'claimed' then l.claimed_at
                                         when 'issued' then coalesce(l.issued_at, l.claimed_at) when 'revoking' then l.revoking_at
                                         else coalesce(l.ends_at, l.approved_at + interval '15 minutes', l.at + interval '30 minutes') end + s.ord * interval '1 millisecond') as m (at)
     where l.at >= since and l.at < until
    union all
    select a.at + s.after, fill.id(a.at, a.n, s.type || a.id), s.type, 'person:' || s.who, t.agent, t.sponsor, null, null, null,
           '{"act_id":"' || a.id || '"}', a.n, s.ord
      from fill.act_done a
      left join fill.task t on t.id = a.id,
           lateral (values (1, 'statement.proposed', a.proposed_by, interval '0', true),
                           (2, 'statement.signed', a.signer, interval '1 minute', a.state in ('signed', 'done', 'failed')),
                           (2, 'statement.refused', a.signer, interval '1 minute', a.state = 'refused'),
                           (3, 'task.started', a.signer, interval '1 minute', a.kind = 'task-start'),
                           (3, 'person.groups-changed', a.signer, interval '1 minute', a.kind = 'admin-change' and a.state = 'done'),
                           (3, 'freeze.thawed', a.signer, interval '1 minute', a.kind = 'thaw')) as s (ord, type, who, after, happens)
     where s.happens and a.at >= since and a.at < until
    union all
    select f.created_at, fill.id(f.created_at, 0, 'x' || f.id), 'freeze.created', 'person:' || f.created_by, null, null, null, null, null,
           format('{"freeze_id":"%s","kind":"%s","why":"%s"}', f.id, f.kind, f.reason), 0, 0
      from "freeze" f where f.created_at >= since and f.created_at < until
    union all
    select x.at, fill.id(x.at, i, 'loop'), 'budget.exceeded', 'agent:agent-' || i % 300, 'agent-' || i % 300, p.handle, 'staging-rw', null, null,
           '{"budget":"requests_per_minute","limit":10,"of":"agent"}', i, 0
      from generate_series(0, 3950) as i, lateral (select now() - i * interval '144 minutes') as x (at), fill.person p
     where p.n = i % 300 % 40 and x.at >= since and x.at < until) e
 order by e.at, e.n, e.ord;
$$;
do $$
declare month timestamptz;
begin
    for month in select generate_series(date_trunc('month', now() - interval '14 months'), now(), interval '1 month') loop
        call fill.events_between(month, month + interval '1 month');
    end loop;
end
$$;

-- The log over them, but for the last few; with a hash in each place, and a signature in none.
insert into log_leaf (index, seq, recorded_at, event_id, leaf_hash)
select row_number() over (order by seq) - 1, seq, recorded_at, id, leaf_hash from log_events where seq < (select max(seq) - 3 from event);
insert into log_node (level, index, hash)
select 1, n, sha256(int8send(n)) from generate_series(0, (select count(*) from log_leaf) / 256 - 1) as n;
insert into log_state (origin, key, first_origin, first_key, size, frontier)
select 'history.test/log', 'history.test/log+00000000+key', 'history.test/log', 'history.test/log+00000000+key', c.size,
       decode(repeat('00', 32 * length(replace(c.size::bit(64)::text, '0', ''))), 'hex')
  from (select count(*) as size from log_leaf) as c;
insert into log_scan (floor, seen) select max(seq), max(seq) from log_leaf;
insert into log_checkpoint (epoch, size, root, note, signed_at)
select 1, l.index + 1, l.leaf_hash, 'a note', l.recorded_at from log_leaf l where l.index % 50 = 49 order by l.index;
insert into log_anchored (anchor, epoch, size, anchored_at)
select 'folder', 1, c.size, c.signed_at + interval '1 minute' from log_checkpoint c where c.size % 500 = 0;
insert into log_partition (month, events, first_index, last_index, sha256, exported_at, dropped_at)
select date_trunc('month', now() - m * interval '1 month')::date, 1000, 0, 999, sha256('x'), now(), case m when 20 then now() end
  from (values (19), (20)) as months (m);

-- As it was.
do $$
declare g fill.guard;
begin
    for g in select * from fill.guard loop execute format('alter table %s enable always trigger %I', g.on_table, g.name); end loop;
end
$$;
drop schema fill cascade;
