-- One row a request. Rows are never deleted; a terminal state never changes.
create table lease (
    id                uuid        primary key,
    -- What the client called this request, and what it asked: the same key must mean the same request.
    idempotency_key   text        check (length(idempotency_key) between 1 and 255),
    request_sha256    bytea       not null check (length(request_sha256) = 32),

    -- Who and why. Written at request, never changed.
    agent             text        not null,
    sponsor           text        not null references person,
    actor             text,
    task_id           uuid        not null references task,
    task              text        not null,
    reason            text        check (length(reason) <= 1000),
    rollback          text        check (length(rollback) <= 1000),

    -- What. Null only where a denied request named nothing that exists.
    scope             text        not null,
    environment       text        check (environment in ('development', 'staging', 'production', 'backup')),
    tier              text        check (tier in ('read-only', 'staging-write', 'staging-sensitive', 'production-write', 'destructive')),
    account           text        check (account ~ '^[0-9]{12}$'),
    region            text,
    role_arn          text,
    actions           text[]      not null,
    resources         text[]      not null,
    -- The AssumeRole input but for the session name. A signed lease is minted from its statement, not from this.
    assume_role       jsonb,
    window_seconds    integer     check (window_seconds between 900 and 43200),

    -- Why it was decided so.
    rules_sha256      text        not null,
    decided_by        text[]      not null,
    signatures_needed smallint    not null check (signatures_needed >= 0),
    eligible_signers  text[]      not null,
    signed            boolean     not null generated always as (signatures_needed > 0) stored,

    -- Where it stands.
    state             text        not null check (state in ('pending', 'approved', 'issued', 'expired', 'denied',
                                                            'refused', 'withdrawn', 'lapsed', 'failed', 'revoked')),
    requested_at      timestamptz not null,
    sign_by           timestamptz,
    approved_at       timestamptz,
    claim_by          timestamptz,
    claimed_at        timestamptz,
    issued_at         timestamptz,
    ends_at           timestamptz,
    ended_at          timestamptz,
    end_reason        text,

    unique (agent, sponsor, idempotency_key),
    unique (id, signed),

    -- Everything but a denial is about something that exists.
    check (state = 'denied' or (environment, tier, account, region, role_arn, assume_role, window_seconds) is not null),
    check (state = 'denied' or (cardinality(actions) > 0 and cardinality(resources) > 0)),
    -- The tier, not the configuration, says whether people must sign.
    check (state = 'denied' or (tier in ('read-only', 'staging-write')) = (signatures_needed = 0)),
    check (signatures_needed <= cardinality(eligible_signers)),
    check (signatures_needed = 0 or (reason is not null and rollback is not null)),
    -- A state and its columns.
    check (state <> 'pending' or (signatures_needed > 0 and approved_at is null)),
    check ((signatures_needed > 0 and state <> 'denied') = (sign_by is not null)),
    check (state not in ('approved', 'issued', 'expired', 'failed') or (approved_at is not null and claim_by is not null)),
    check ((approved_at is null) = (claim_by is null)),
    check (claimed_at is null or approved_at is not null),
    check (state <> 'issued' or (claimed_at is not null and issued_at is not null and ends_at is not null)),
    check ((state in ('pending', 'approved', 'issued')) = (ended_at is null)),
    check (state not in ('denied', 'refused', 'withdrawn', 'failed', 'revoked') or end_reason is not null)
);

create index lease_by_agent on lease (agent, requested_at desc);
create index lease_by_sponsor on lease (sponsor, requested_at desc);
-- What a sweep looks for, and what an agent has open: the rows that can still change.
create index lease_open on lease (state, agent) where state in ('pending', 'approved', 'issued');

-- The exact bytes that people sign. Written with the pending lease, never changed.
create table statement (
    lease_id uuid    primary key,
    bytes    bytea   not null,
    sha256   bytea   not null generated always as (sha256(bytes)) stored unique,
    -- Only a lease that needs signatures has one.
    signed   boolean not null default true check (signed),
    foreign key (lease_id, signed) references lease (id, signed)
);

create table signature (
    lease_id    uuid        not null references statement (lease_id),
    person      text        not null,
    fingerprint text        not null,
    decision    text        not null check (decision in ('approve', 'refuse')),
    -- The armored SSHSIG as it came.
    signature   text        not null,
    -- Of the key when it signed, and what the authenticator said of the human; null for keys without such flags.
    assurance   text        not null check (assurance in ('software', 'present', 'verified')),
    touched     boolean,
    verified    boolean,
    reason      text        check (length(reason) <= 1000),
    signed_at   timestamptz not null,
    -- One person, one voice.
    primary key (lease_id, person),
    foreign key (fingerprint, person) references person_key (fingerprint, person)
);

-- One row an STS session. `issuing` is written before AWS is asked.
create table session (
    id                uuid        primary key,
    lease_id          uuid        not null,
    signed            boolean     not null,
    state             text        not null check (state in ('issuing', 'live', 'failed', 'expired', 'revoking', 'stopped')),
    session_name      text        not null unique check (length(session_name) between 2 and 64),
    claimed_at        timestamptz not null,
    settled_at        timestamptz,
    -- AWS's key id: no secret, and what CloudTrail shows.
    access_key_id     text,
    expires_at        timestamptz,
    failure           text,
    -- How often its credentials were handed out, and when last.
    deliveries        integer     not null default 0,
    last_delivered_at timestamptz,
    foreign key (lease_id, signed) references lease (id, signed),
    check ((state = 'issuing') = (settled_at is null)),
    check (state not in ('live', 'expired', 'stopped') or (access_key_id is not null and expires_at is not null)),
    check (state <> 'failed' or failure is not null),
    check ((deliveries > 0) = (last_delivered_at is not null)),
    check (deliveries = 0 or state not in ('issuing', 'failed'))
);
create index session_of_lease on session (lease_id);
create index session_open on session (state) where state in ('issuing', 'live', 'revoking');
-- One approval, one mint.
create unique index session_signed_once on session (lease_id) where signed;

-- Standing orders that nothing is issued. (Quoted: FREEZE is a keyword.)
create table "freeze" (
    id         uuid        primary key,
    kind       text        not null check (kind in ('agent', 'sponsor', 'scope', 'environment', 'all')),
    target     text        check ((kind = 'all') = (target is null)),
    reason     text        not null check (reason <> ''),
    created_by text        not null,
    created_at timestamptz not null,
    thawed_at  timestamptz,
    thawed_by  text        check (thawed_by <> created_by),
    check ((thawed_at is null) = (thawed_by is null))
);
create index freeze_standing on "freeze" (kind, target) where thawed_at is null;

create function is_frozen(agent text, sponsor text, scope text, environment text) returns boolean
language sql stable
begin atomic
    select exists (
        select from "freeze" f
         where f.thawed_at is null
           and (f.kind = 'all'
                or (f.kind = 'agent' and f.target = agent)
                or (f.kind = 'sponsor' and f.target = sponsor)
                or (f.kind = 'scope' and f.target = scope)
                or (f.kind = 'environment' and f.target = environment)));
end;

-- Whether a task's token is still good: the task is this agent's and sponsor's, it lives, and its sponsor is not disabled.
create function task_is_live(task_id uuid, agent text, sponsor text, at timestamptz) returns boolean
language sql stable
begin atomic
    select exists (
        select from task t join person p on p.handle = t.sponsor
         where t.id = task_id and t.agent = task_is_live.agent and t.sponsor = task_is_live.sponsor
           and t.ended_at is null and at < t.expires_at and p.disabled_at is null);
end;

-- Whether as many people as a lease needs have approved it who are active, with keys that are not revoked.
create function has_its_approvals(lease_id uuid, needed smallint) returns boolean
language sql stable
begin atomic
    select needed <= (
        select count(*) from signature g
          join person p on p.handle = g.person
          join person_key k on k.fingerprint = g.fingerprint
         where g.lease_id = has_its_approvals.lease_id and g.decision = 'approve'
           and p.disabled_at is null and k.revoked_at is null);
end;

-- The replica that holds this row sweeps. A row, because anybody who may connect can take an advisory lock.
create table sweeper (only_row boolean primary key default true check (only_row));
insert into sweeper default values;

grant select, insert on lease, statement, signature, session to broker_app;
grant select on "freeze" to broker_app;
grant select, update on sweeper to broker_app;
grant execute on function is_frozen, task_is_live, has_its_approvals to broker_app;
grant update (state, approved_at, claim_by, claimed_at, issued_at, ends_at, ended_at, end_reason) on lease to broker_app;
grant update (state, settled_at, access_key_id, expires_at, failure, deliveries, last_delivered_at) on session to broker_app;
