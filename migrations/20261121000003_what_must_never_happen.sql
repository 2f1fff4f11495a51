-- The server checks all of this too. A bug there, or a hand in the database, meets it again here.

create function refuse_change() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    raise exception 'rows of % are never changed or removed', tg_table_name using errcode = 'integrity_constraint_violation';
end
$$;

create function lease_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if (new.id, new.idempotency_key, new.request_sha256, new.agent, new.sponsor, new.actor, new.task_id, new.task,
        new.reason, new.rollback, new.scope, new.environment, new.tier, new.account, new.region, new.role_arn,
        new.actions, new.resources, new.assume_role, new.window_seconds, new.rules_sha256, new.decided_by,
        new.signatures_needed, new.eligible_signers, new.requested_at, new.sign_by)
       is distinct from
       (old.id, old.idempotency_key, old.request_sha256, old.agent, old.sponsor, old.actor, old.task_id, old.task,
        old.reason, old.rollback, old.scope, old.environment, old.tier, old.account, old.region, old.role_arn,
        old.actions, old.resources, old.assume_role, old.window_seconds, old.rules_sha256, old.decided_by,
        old.signatures_needed, old.eligible_signers, old.requested_at, old.sign_by) then
        raise exception 'what lease % asks for cannot change', old.id using errcode = 'integrity_constraint_violation';
    end if;
    if old.ended_at is not null then
        raise exception 'lease % has ended (%) and stays so', old.id, old.state using errcode = 'integrity_constraint_violation';
    end if;
    if old.claimed_at is not null and new.claimed_at is distinct from old.claimed_at then
        raise exception 'lease % was claimed already', old.id using errcode = 'integrity_constraint_violation';
    end if;
    if (old.approved_at is not null and new.approved_at is distinct from old.approved_at)
       or (old.claim_by is not null and new.claim_by is distinct from old.claim_by)
       or (old.issued_at is not null and new.issued_at is distinct from old.issued_at)
       or (old.ends_at is not null and new.ends_at is distinct from old.ends_at) then
        raise exception 'the times of lease % are set once', old.id using errcode = 'integrity_constraint_violation';
    end if;
    if new.state <> old.state then
        if (old.state, new.state) not in (
            ('pending', 'approved'), ('pending', 'refused'), ('pending', 'withdrawn'), ('pending', 'lapsed'), ('pending', 'revoked'),
            ('approved', 'issued'), ('approved', 'withdrawn'), ('approved', 'lapsed'), ('approved', 'failed'), ('approved', 'expired'), ('approved', 'revoked'),
            ('issued', 'expired'), ('issued', 'revoked')) then
            raise exception 'lease % cannot go from % to %', old.id, old.state, new.state using errcode = 'integrity_constraint_violation';
        end if;
        if old.state = 'pending' and new.state = 'approved' and new.signatures_needed >
           (select count(*) from signature s where s.lease_id = new.id and s.decision = 'approve') then
            raise exception 'lease % has not enough signatures', old.id using errcode = 'integrity_constraint_violation';
        end if;
        if old.state = 'pending' and new.state = 'approved'
           and exists (select from signature s where s.lease_id = new.id and s.decision = 'refuse') then
            raise exception 'lease % was refused', old.id using errcode = 'integrity_constraint_violation';
        end if;
    end if;
    return new;
end
$$;
create trigger lease_guard before update on lease for each row execute function lease_guard();

create function lease_starts() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if new.state not in ('pending', 'approved', 'denied') or (new.state = 'approved' and new.signatures_needed > 0) then
        raise exception 'a lease cannot start as %', new.state using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger lease_starts before insert on lease for each row execute function lease_starts();

-- A signature counts only from an eligible, active person who is neither the sponsor nor the actor, in time.
create function signature_guard() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
declare
    l lease;
begin
    select * into strict l from lease where id = new.lease_id for update;
    if l.state <> 'pending' or new.signed_at not between l.requested_at and l.sign_by then
        raise exception 'lease % is not waiting for signatures', l.id using errcode = 'integrity_constraint_violation';
    end if;
    if (new.person = l.sponsor and l.tier <> 'staging-sensitive') or new.person = l.actor then
        raise exception '% stands behind lease % and cannot sign for it', new.person, l.id using errcode = 'integrity_constraint_violation';
    end if;
    if not (new.person = any (l.eligible_signers)) then
        raise exception '% may not sign for lease %', new.person, l.id using errcode = 'integrity_constraint_violation';
    end if;
    if not exists (select from person p join person_key k on k.person = p.handle
                    where p.handle = new.person and p.disabled_at is null
                      and k.fingerprint = new.fingerprint and k.assurance = new.assurance
                      and (k.revoked_at is null or new.signed_at < k.revoked_at)) then
        raise exception 'the key of % is not good', new.person using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger signature_guard before insert on signature for each row execute function signature_guard();

-- After the insert, because a request and its claim are one statement: the lease is there only when it is done.
create function session_starts() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if new.state <> 'issuing' then
        raise exception 'a session cannot start as %', new.state using errcode = 'integrity_constraint_violation';
    end if;
    if not exists (select from lease l where l.id = new.lease_id and l.signed = new.signed and l.claimed_at is not null
                    and (l.state = 'approved' or (l.state = 'issued' and not l.signed))) then
        raise exception 'lease % is not claimed', new.lease_id using errcode = 'integrity_constraint_violation';
    end if;
    return null;
end
$$;
create trigger session_starts after insert on session for each row execute function session_starts();

create function session_guard() returns trigger
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
    return new;
end
$$;
create trigger session_guard before update on session for each row execute function session_guard();

create trigger statement_is_fixed before update or delete on statement for each row execute function refuse_change();
create trigger signature_is_fixed before update or delete on signature for each row execute function refuse_change();
create trigger lease_is_kept before delete on lease for each row execute function refuse_change();
create trigger session_is_kept before delete on session for each row execute function refuse_change();
create trigger statement_is_kept before truncate on statement for each statement execute function refuse_change();
create trigger signature_is_kept before truncate on signature for each statement execute function refuse_change();
create trigger lease_is_kept_whole before truncate on lease for each statement execute function refuse_change();
create trigger session_is_kept_whole before truncate on session for each statement execute function refuse_change();

-- Whoever can set session_replication_role would switch ordinary triggers off.
alter table lease enable always trigger lease_guard;
alter table lease enable always trigger lease_starts;
alter table lease enable always trigger lease_is_kept;
alter table lease enable always trigger lease_is_kept_whole;
alter table statement enable always trigger statement_is_fixed;
alter table statement enable always trigger statement_is_kept;
alter table signature enable always trigger signature_guard;
alter table signature enable always trigger signature_is_fixed;
alter table signature enable always trigger signature_is_kept;
alter table session enable always trigger session_starts;
alter table session enable always trigger session_guard;
alter table session enable always trigger session_is_kept;
alter table session enable always trigger session_is_kept_whole;

-- Wakes whoever waits for a lease. Not for `issued`: the one who would wait caused it.
create function lease_changed() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    perform pg_notify('lease_changed', new.id::text);
    return null;
end
$$;
create trigger lease_changed after update on lease for each row
    when (new.state <> old.state and new.state <> 'issued') execute function lease_changed();
