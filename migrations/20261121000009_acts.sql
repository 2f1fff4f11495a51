-- Acts of authority beside the decision about a lease: starting a task, ending a freeze, changing people and keys. Each is a
-- statement that a person signs, and what is done is read from the signed bytes, here.

create table act (
    id           uuid        primary key,
    -- The exact bytes that people sign. Never changed.
    bytes        bytea       not null,
    sha256       bytea       not null generated always as (sha256(bytes)) stored unique,
    -- The bytes once more, for reading: who may sign, and what is done.
    doc          jsonb       not null generated always as (event_doc(bytes) -> 'predicate') stored,
    kind         text        not null check (kind in ('task-start', 'thaw', 'admin-change')),
    -- Who had it drawn up; null for an operator on the server's host.
    proposed_by  text        references person,
    proposed_at  timestamptz not null,
    sign_by      timestamptz not null,
    state        text        not null default 'proposed'
                             check (state in ('proposed', 'signed', 'done', 'refused', 'lapsed', 'failed')),
    signed_at    timestamptz,
    -- The end of its cool-down.
    effective_at timestamptz,
    ended_at     timestamptz,
    end_reason   text,
    constraint columns_are_as_doc check (
        (id, kind, proposed_by) is not distinct from
            ((doc ->> 'id')::uuid, doc -> 'act' ->> 'kind', doc ->> 'proposed_by')
        and (proposed_at, sign_by) is not distinct from
            ((doc ->> 'proposed_at')::timestamptz, (doc ->> 'sign_by')::timestamptz)),
    -- What the guards below read has to be there: nothing is decided by a null.
    constraint doc_is_whole check (
        jsonb_typeof(doc -> 'signers' -> 'eligible') = 'array'
        and (doc -> 'signers' ->> 'assurance') in ('software', 'present', 'verified')
        and (doc ->> 'cool_down_seconds')::integer >= 0
        and (doc ->> 'cool_down_seconds') is not null
        and (doc -> 'signers' ->> 'assurance') is not null
        and case kind
                when 'task-start' then (doc -> 'act' ->> 'sponsor', doc -> 'act' ->> 'agent', doc -> 'act' ->> 'ttl_seconds') is not null
                when 'thaw' then (doc -> 'act' ->> 'freeze_id') is not null
                else coalesce(doc -> 'act' ->> 'handle', doc -> 'act' -> 'person' ->> 'handle') is not null
                     and coalesce(doc -> 'act' ->> 'change', '') in
                         ('add-person', 'set-groups', 'disable-person', 'enable-person', 'enrol-key', 'revoke-key')
            end),
    check ((signed_at is null) = (effective_at is null)),
    check (state not in ('signed', 'done', 'failed') or signed_at is not null),
    check ((state in ('proposed', 'signed')) = (ended_at is null)),
    check (state not in ('refused', 'lapsed', 'failed') or end_reason is not null)
);
create index act_open on act (state, proposed_at) where state in ('proposed', 'signed');
create index act_by_proposer on act (proposed_by, proposed_at desc);

create table act_signature (
    act_id      uuid        not null references act,
    person      text        not null,
    fingerprint text        not null,
    decision    text        not null check (decision in ('approve', 'refuse')),
    -- As it came.
    signature   text        not null,
    -- Of the key when it signed, and what the authenticator said of the human; null for keys without such flags.
    assurance   text        not null check (assurance in ('software', 'present', 'verified')),
    touched     boolean,
    verified    boolean,
    reason      text        check (length(reason) <= 1000),
    signed_at   timestamptz not null,
    -- Whoever approved may think again, until it is done.
    primary key (act_id, person, decision),
    foreign key (fingerprint, person) references person_key (fingerprint, person)
);
-- One signature does it.
create unique index act_signed_once on act_signature (act_id) where decision = 'approve';

-- What let it happen; null for what an operator set up, before there were two admins.
alter table task add started_by uuid unique references act;
create index task_by_agent on task (agent, started_at desc);
create index task_by_sponsor on task (sponsor) where ended_at is null;
alter table person_key add enrolled_by uuid references act;

-- Set once, when the second admin has a key. From then on people and keys change by signed acts alone.
create table bootstrap (
    over_at  timestamptz not null,
    only_row boolean     primary key default true check (only_row)
);

create function bootstrap_ends() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    -- Two at once would each see one admin.
    lock table bootstrap in share row exclusive mode;
    if 2 <= (select count(distinct p.handle) from person p join person_key k on k.person = p.handle where 'admins' = any (p.groups)) then
        insert into bootstrap (over_at) values (clock_timestamp()) on conflict do nothing;
    end if;
    return null;
end
$$;
create trigger bootstrap_ends after insert or update on person for each row execute function bootstrap_ends();
create trigger bootstrap_ends after insert on person_key for each row execute function bootstrap_ends();

-- Whether an act that changes people is taking effect in this very transaction.
create function people_are_changing() returns boolean
language sql stable set search_path = pg_catalog, public, pg_temp
as $$
    select exists (select from act a
                    where a.id = nullif(current_setting('broker.act', true), '')::uuid
                      and a.kind = 'admin-change' and a.state = 'done' and a.xmin = pg_current_xact_id()::xid);
$$;

create function person_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if not exists (select from bootstrap) then
        return new;
    end if;
    if not people_are_changing() then
        raise exception 'people change by a signed act alone' using errcode = 'integrity_constraint_violation';
    end if;
    if tg_op = 'UPDATE' and (new.handle, new.created_at) is distinct from (old.handle, old.created_at) then
        raise exception 'who % is cannot change', old.handle using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger person_guard before insert or update on person for each row execute function person_guard();

create function person_key_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if not exists (select from bootstrap) then
        return new;
    end if;
    if not people_are_changing() then
        raise exception 'keys change by a signed act alone' using errcode = 'integrity_constraint_violation';
    end if;
    if tg_op = 'UPDATE'
       and ((new.fingerprint, new.person, new.public_key, new.assurance, new.evidence, new.enrolled_at, new.enrolled_by)
            is distinct from
            (old.fingerprint, old.person, old.public_key, old.assurance, old.evidence, old.enrolled_at, old.enrolled_by)
            or (old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at)) then
        raise exception 'what key % is cannot change', old.fingerprint using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger person_key_guard before insert or update on person_key for each row execute function person_key_guard();

create function task_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if (new.id, new.agent, new.sponsor, new.task, new.started_at, new.expires_at, new.started_by) is distinct from
       (old.id, old.agent, old.sponsor, old.task, old.started_at, old.expires_at, old.started_by)
       or (old.ended_at is not null and new.ended_at is distinct from old.ended_at) then
        raise exception 'a task only ends, and once' using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;

create function act_starts() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if new.state <> 'proposed' then
        raise exception 'an act cannot start as %', new.state using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger act_starts before insert on act for each row execute function act_starts();

create function act_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if (new.id, new.bytes, new.kind, new.proposed_by, new.proposed_at, new.sign_by) is distinct from
       (old.id, old.bytes, old.kind, old.proposed_by, old.proposed_at, old.sign_by)
       or (old.signed_at is not null and (new.signed_at, new.effective_at) is distinct from (old.signed_at, old.effective_at)) then
        raise exception 'what act % is cannot change', old.id using errcode = 'integrity_constraint_violation';
    end if;
    if old.ended_at is not null then
        raise exception 'act % has ended (%) and stays so', old.id, old.state using errcode = 'integrity_constraint_violation';
    end if;
    if new.state <> old.state and (old.state, new.state) not in (
        ('proposed', 'signed'), ('proposed', 'refused'), ('proposed', 'lapsed'),
        ('signed', 'done'), ('signed', 'refused'), ('signed', 'failed')) then
        raise exception 'act % cannot go from % to %', old.id, old.state, new.state using errcode = 'integrity_constraint_violation';
    end if;
    -- Of the old row: generated columns of the new one are not there yet.
    if new.state = 'signed' and old.state = 'proposed'
       and ((new.effective_at >= new.signed_at + make_interval(secs => (old.doc ->> 'cool_down_seconds')::integer)) is not true
            or not exists (select from act_signature g
                            where g.act_id = new.id and g.decision = 'approve' and g.signed_at = new.signed_at)
            or exists (select from act_signature g where g.act_id = new.id and g.decision = 'refuse')) then
        raise exception 'act % is not signed', old.id using errcode = 'integrity_constraint_violation';
    end if;
    -- apply_act() runs as the owner.
    if new.state = 'done' and old.state <> 'done' and current_user <> 'broker_owner' then
        raise exception 'an act is done by doing it' using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger act_guard before update on act for each row execute function act_guard();

-- A signature counts only from a person whom the statement names, who is neither concerned nor proposed it, in time.
create function act_signature_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
declare
    a act;
    terms jsonb;
    about text;
    admin boolean;
begin
    select * into strict a from act where id = new.act_id for update;
    terms := a.doc -> 'act';
    about := coalesce(terms ->> 'handle', terms -> 'person' ->> 'handle');
    admin := exists (select from person p where p.handle = new.person and 'admins' = any (p.groups));
    if new.decision = 'approve' then
        if a.state <> 'proposed' or new.signed_at not between a.proposed_at and a.sign_by then
            raise exception 'act % is not waiting for a signature', a.id using errcode = 'integrity_constraint_violation';
        end if;
        if not (a.doc -> 'signers' -> 'eligible' ? new.person) then
            raise exception '% may not sign for act %', new.person, a.id using errcode = 'integrity_constraint_violation';
        end if;
    elsif a.kind <> 'admin-change' or a.state not in ('proposed', 'signed') then
        raise exception 'act % cannot be refused', a.id using errcode = 'integrity_constraint_violation';
    end if;
    if a.kind = 'task-start' and new.person <> terms ->> 'sponsor' then
        raise exception 'a task is started by its sponsor' using errcode = 'integrity_constraint_violation';
    end if;
    if a.kind = 'thaw' and not exists (
        select from "freeze" f
         where f.id = (terms ->> 'freeze_id')::uuid and f.created_by <> new.person
           and not (f.kind = 'sponsor' and f.target = new.person)
           and not (f.kind = 'agent' and exists (select from task t where t.agent = f.target and t.sponsor = new.person))) then
        raise exception '% may not thaw what they froze, or what stops them', new.person using errcode = 'integrity_constraint_violation';
    end if;
    if a.kind = 'admin-change' then
        if not admin and (new.decision = 'approve' and terms ->> 'change' <> 'revoke-key' or new.person <> about) then
            raise exception '% is no admin', new.person using errcode = 'integrity_constraint_violation';
        end if;
        if new.decision = 'approve' and terms ->> 'change' <> 'revoke-key'
           and (new.person = about or new.person = a.proposed_by) then
            raise exception 'another admin signs act %', a.id using errcode = 'integrity_constraint_violation';
        end if;
    end if;
    if not exists (select from person p join person_key k on k.person = p.handle
                    where p.handle = new.person and p.disabled_at is null
                      and k.fingerprint = new.fingerprint and k.assurance = new.assurance
                      and (k.revoked_at is null or new.signed_at < k.revoked_at)) then
        raise exception 'the key of % is not good', new.person using errcode = 'integrity_constraint_violation';
    end if;
    -- To stop something a weaker key will do.
    if new.decision = 'approve' and array_position('{software,present,verified}'::text[], new.assurance)
       < array_position('{software,present,verified}'::text[], a.doc -> 'signers' ->> 'assurance') then
        raise exception 'the key of % is too weak for act %', new.person, a.id using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger act_signature_guard before insert on act_signature for each row execute function act_signature_guard();

-- Does what a signed act says, as of `at`: all of it, or with SQLSTATE BR001 nothing, if what it builds on is no longer so.
create function apply_act(act_id uuid, at timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    a act;
    terms jsonb;
    new_key jsonb;
    signer text;
    strings text[];
    changed integer := 1;
begin
    select * into strict a from act where id = act_id for update;
    terms := a.doc -> 'act';
    -- The caller's clock is not this one, but a cool-down is not the caller's to end.
    if a.state <> 'signed' or (at between a.effective_at and clock_timestamp() + interval '1 minute') is not true then
        raise exception 'act % is not due', a.id using errcode = 'integrity_constraint_violation';
    end if;
    -- Who signed must still be good: a key that is revoked in the cool-down was stolen before.
    select g.person into signer
      from act_signature g
      join person p on p.handle = g.person
      join person_key k on k.fingerprint = g.fingerprint
     where g.act_id = a.id and g.decision = 'approve' and p.disabled_at is null and k.revoked_at is null
       and (a.kind <> 'admin-change' or 'admins' = any (p.groups)
            or terms ->> 'change' = 'revoke-key' and g.person = terms ->> 'handle')
       for share of p, k;
    if signer is null then
        raise exception 'whoever signed act % no longer may', a.id using errcode = 'BR001';
    end if;
    update act set state = 'done', ended_at = at where id = a.id;
    perform set_config('broker.act', a.id::text, true);

    if a.kind = 'task-start' then
        insert into task (id, agent, sponsor, task, started_at, expires_at, started_by)
        values (a.id, terms ->> 'agent', terms ->> 'sponsor', terms ->> 'task', at,
                at + make_interval(secs => (terms ->> 'ttl_seconds')::integer), a.id);
    elsif a.kind = 'thaw' then
        update "freeze" set thawed_at = at, thawed_by = signer
         where id = (terms ->> 'freeze_id')::uuid and thawed_at is null;
        get diagnostics changed = row_count;
    elsif terms ->> 'change' = 'add-person' then
        select coalesce(array_agg(it), '{}') into strings from jsonb_array_elements_text(terms -> 'person' -> 'groups') as it;
        insert into person (handle, display_name, email, groups, created_at)
        values (terms -> 'person' ->> 'handle', terms -> 'person' ->> 'display_name', terms -> 'person' ->> 'email', strings, at)
            on conflict do nothing;
        get diagnostics changed = row_count;
    elsif terms ->> 'change' = 'set-groups' then
        select coalesce(array_agg(it), '{}') into strings from jsonb_array_elements_text(terms -> 'from') as it;
        update person p set groups = (select coalesce(array_agg(it), '{}') from jsonb_array_elements_text(terms -> 'to') as it)
         where p.handle = terms ->> 'handle' and p.groups @> strings and p.groups <@ strings;
        get diagnostics changed = row_count;
    elsif terms ->> 'change' = 'disable-person' then
        update person p set disabled_at = at
         where p.handle = terms ->> 'handle' and p.disabled_at is null
           and ('admins' = any (p.groups)) = (terms ->> 'was_admin')::boolean;
        get diagnostics changed = row_count;
    elsif terms ->> 'change' = 'enable-person' then
        select coalesce(array_agg(it), '{}') into strings from jsonb_array_elements_text(terms -> 'groups') as it;
        update person p set disabled_at = null
         where p.handle = terms ->> 'handle' and p.disabled_at is not null and p.groups @> strings and p.groups <@ strings;
        get diagnostics changed = row_count;
    elsif terms ->> 'change' = 'revoke-key' then
        update person_key set revoked_at = at
         where fingerprint = terms ->> 'fingerprint' and person = terms ->> 'handle' and revoked_at is null;
        get diagnostics changed = row_count;
    elsif terms ->> 'change' <> 'enrol-key' then
        raise exception 'act % is of an unknown kind', a.id using errcode = 'integrity_constraint_violation';
    end if;

    new_key := coalesce(terms -> 'key', nullif(terms -> 'person' -> 'key', 'null'));
    if changed = 1 and a.kind = 'admin-change' and new_key is not null then
        insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at, enrolled_by)
        values (new_key ->> 'fingerprint', coalesce(terms ->> 'handle', terms -> 'person' ->> 'handle'), new_key ->> 'public_key',
                new_key ->> 'assurance', (new_key -> 'evidence')::text, at, a.id)
            on conflict do nothing;
        get diagnostics changed = row_count;
    end if;
    if changed <> 1 then
        raise exception 'what act % builds on is no longer so', a.id using errcode = 'BR001';
    end if;
    -- A key is revoked whatever follows; nothing else may leave nobody who could change people.
    if a.kind = 'admin-change' and terms ->> 'change' <> 'revoke-key'
       and not exists (select from person p join person_key k on k.person = p.handle
                        where 'admins' = any (p.groups) and p.disabled_at is null and k.revoked_at is null
                          and array_position('{software,present,verified}'::text[], k.assurance)
                              >= array_position('{software,present,verified}'::text[], a.doc -> 'signers' ->> 'assurance')) then
        raise exception 'after act % nobody could change people', a.id using errcode = 'BR001';
    end if;
    perform set_config('broker.act', '', true);
end
$$;

-- Whoever holds a sponsor's row has every new request of their agents wait: see admit().
create function hold_sponsor(sponsor text) returns void
language sql security definer set search_path = pg_catalog, public, pg_temp
as $$
    select from public.person p where p.handle = sponsor for no key update;
$$;

create trigger task_guard before update on task for each row execute function task_guard();
create trigger act_signature_is_fixed before update or delete on act_signature for each row execute function refuse_change();
create trigger act_is_kept before delete on act for each row execute function refuse_change();
create trigger bootstrap_is_fixed before update or delete on bootstrap for each row execute function refuse_change();
create trigger person_is_kept before delete on person for each row execute function refuse_change();
create trigger person_key_is_kept before delete on person_key for each row execute function refuse_change();
create trigger act_is_kept_whole before truncate on act for each statement execute function refuse_change();
create trigger act_signature_is_kept before truncate on act_signature for each statement execute function refuse_change();
create trigger bootstrap_is_kept before truncate on bootstrap for each statement execute function refuse_change();

alter table person enable always trigger bootstrap_ends;
alter table person enable always trigger person_guard;
alter table person enable always trigger person_is_kept;
alter table person_key enable always trigger bootstrap_ends;
alter table person_key enable always trigger person_key_guard;
alter table person_key enable always trigger person_key_is_kept;
alter table task enable always trigger task_guard;
alter table act enable always trigger act_starts;
alter table act enable always trigger act_guard;
alter table act enable always trigger act_is_kept;
alter table act enable always trigger act_is_kept_whole;
alter table act_signature enable always trigger act_signature_guard;
alter table act_signature enable always trigger act_signature_is_fixed;
alter table act_signature enable always trigger act_signature_is_kept;
alter table bootstrap enable always trigger bootstrap_is_fixed;
alter table bootstrap enable always trigger bootstrap_is_kept;

-- An installation that has its admins already.
insert into bootstrap (over_at)
select clock_timestamp()
 where 2 <= (select count(distinct p.handle) from person p join person_key k on k.person = p.handle where 'admins' = any (p.groups));

grant select, insert on act, act_signature to broker_app;
grant update (state, signed_at, effective_at, ended_at, end_reason) on act to broker_app;
grant update (ended_at) on task to broker_app;
-- The generated column of `act` is computed as whoever writes it.
grant execute on function apply_act(uuid, timestamptz), event_doc(bytea), hold_sponsor(text) to broker_app;

create view act_history as
    select a.id, a.kind, coalesce(a.doc -> 'act' ->> 'handle', a.doc -> 'act' -> 'person' ->> 'handle', a.doc -> 'act' ->> 'sponsor') as about,
           a.doc -> 'act' as act, a.state, coalesce(a.proposed_by, 'operator') as proposed_by, a.proposed_at, a.sign_by,
           s.signer, s.assurance, a.signed_at, a.effective_at, a.ended_at, a.end_reason, encode(a.sha256, 'hex') as statement_sha256
      from act a
      left join lateral (
          select g.person as signer, g.assurance from act_signature g where g.act_id = a.id and g.decision = 'approve') s on true;

comment on view act_history is 'Every act of authority beside the decision about a lease: tasks started, freezes ended, people and keys changed.';
comment on column act_history.id is 'the act; a task that it started has the same id';
comment on column act_history.kind is 'task-start, thaw or admin-change';
comment on column act_history.about is 'the person it changes something for, or who stands behind the task';
comment on column act_history.act is 'what exactly, as it was signed';
comment on column act_history.state is 'proposed, signed (in its cool-down), done, refused, lapsed or failed';
comment on column act_history.proposed_by is 'who had it drawn up; operator: on the server''s host';
comment on column act_history.proposed_at is 'when';
comment on column act_history.sign_by is 'when it lapses unless it is signed';
comment on column act_history.signer is 'who signed it';
comment on column act_history.assurance is 'of the key that signed';
comment on column act_history.signed_at is 'when it was signed';
comment on column act_history.effective_at is 'when it takes effect, or did; until then it can be refused';
comment on column act_history.ended_at is 'when it was done, or came to nothing';
comment on column act_history.end_reason is 'why it came to nothing';
comment on column act_history.statement_sha256 is 'digest of the bytes that were signed';

create view people as
    select p.handle, p.display_name, p.email, p.groups, p.created_at, p.disabled_at,
           count(k.fingerprint) filter (where k.revoked_at is null) as keys,
           max(k.assurance) filter (where k.revoked_at is null and k.assurance = 'verified') is not null as can_sign_for_production
      from person p left join person_key k on k.person = p.handle group by p.handle;

comment on view people is 'Everybody who may do anything here.';
comment on column people.handle is 'what they are called everywhere else';
comment on column people.display_name is 'their name';
comment on column people.email is 'their address';
comment on column people.groups is 'what they may sign and change';
comment on column people.created_at is 'since when they are here';
comment on column people.disabled_at is 'since when they may do nothing; null while they are active';
comment on column people.keys is 'how many keys of theirs are good';
comment on column people.can_sign_for_production is 'whether one of them is of assurance verified';

create view enrolled_keys as
    select k.fingerprint, k.person, case when k.public_key like '{%' then 'passkey' else split_part(k.public_key, ' ', 1) end as kind, k.assurance, k.evidence, k.enrolled_at,
           k.enrolled_by, g.person as approved_by, k.revoked_at
      from person_key k left join act_signature g on g.act_id = k.enrolled_by and g.decision = 'approve';

comment on view enrolled_keys is 'Every key that ever counted, and why.';
comment on column enrolled_keys.fingerprint is 'the key, as ssh-keygen -l prints it; of a passkey, that of its credential id';
comment on column enrolled_keys.person is 'whose it is';
comment on column enrolled_keys.kind is 'its kind in OpenSSH''s words, or passkey';
comment on column enrolled_keys.assurance is 'how sure we are of the hand that uses it';
comment on column enrolled_keys.evidence is 'how that is known';
comment on column enrolled_keys.enrolled_at is 'from when on it counts';
comment on column enrolled_keys.enrolled_by is 'the act that enrolled it; null if an operator did, before there were two admins';
comment on column enrolled_keys.approved_by is 'the admin who signed that';
comment on column enrolled_keys.revoked_at is 'from when on it counts no more; what it signed before stays signed';

grant select on act_history, people, enrolled_keys to broker_ops;
