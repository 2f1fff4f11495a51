-- Who there is: people, their keys, and the tasks that their agents work on.

revoke all on schema public from public;
-- A temporary table would come before ours in a search path, and is room to write in for whoever may only read.
do $$ begin execute format('revoke temporary on database %I from public', current_database()); end $$;
grant usage on schema public to broker_app, broker_ops;
-- PostgreSQL lets everybody run new functions; ours are for whom they are granted to.
alter default privileges revoke execute on functions from public;

create table person (
    handle       text        primary key check (handle ~ '^[a-z][a-z0-9._-]{0,62}$'),
    display_name text        not null check (display_name <> ''),
    email        text        not null check (email <> ''),
    -- Signing groups and roles: `admins`, `ops`, …
    groups       text[]      not null default '{}',
    created_at   timestamptz not null,
    disabled_at  timestamptz
);

create table person_key (
    -- `SHA256:…`, as ssh-keygen -l prints it. One key belongs to one person, for ever.
    fingerprint text        primary key check (fingerprint ~ '^SHA256:[A-Za-z0-9+/]{43}$'),
    person      text        not null references person,
    -- One line in OpenSSH's format.
    public_key  text        not null,
    assurance   text        not null check (assurance in ('software', 'present', 'verified')),
    -- How we know the assurance.
    evidence    text        not null check (evidence <> ''),
    enrolled_at timestamptz not null,
    revoked_at  timestamptz,
    unique (fingerprint, person)
);
create index on person_key (person);

-- One task of one agent, started by its sponsor; a task token names it and is good while it lives.
create table task (
    id         uuid        primary key,
    agent      text        not null check (agent ~ '^[a-z][a-z0-9._-]{0,62}$'),
    sponsor    text        not null references person,
    task       text        not null check (task <> ''),
    started_at timestamptz not null,
    expires_at timestamptz not null check (started_at < expires_at),
    ended_at   timestamptz
);

-- Login nonces that were used, so that none is used twice.
create table login (
    nonce       uuid        primary key,
    fingerprint text        not null,
    person      text        not null,
    at          timestamptz not null,
    foreign key (fingerprint, person) references person_key (fingerprint, person)
);

grant select on person, person_key, task to broker_app;
grant select, insert on login to broker_app;
