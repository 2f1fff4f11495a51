-- The cluster's roles. Run once by whoever administers PostgreSQL (`psql -f`), before `brokerd migrate`;
-- running it again changes nothing. Then give the five logins a password (or another way to authenticate) and
-- create the database:  create database broker owner broker_owner;
do $$
begin
    -- Owns everything and never logs in.
    if not exists (select from pg_roles where rolname = 'broker_owner') then
        create role broker_owner nologin;
    end if;
    -- Runs migrations, by taking the owner's role. Not a superuser.
    if not exists (select from pg_roles where rolname = 'broker_migrate') then
        create role broker_migrate login noinherit;
    end if;
    -- The server.
    if not exists (select from pg_roles where rolname = 'broker_app') then
        create role broker_app login;
    end if;
    -- Gives events their place in the log, and signs it: the server's too, but a login of its own.
    if not exists (select from pg_roles where rolname = 'broker_sequencer') then
        create role broker_sequencer login;
    end if;
    -- Drops months of events that were exported.
    if not exists (select from pg_roles where rolname = 'broker_retention') then
        create role broker_retention login;
    end if;
    -- People who review: sees views, changes nothing.
    if not exists (select from pg_roles where rolname = 'broker_ops') then
        create role broker_ops login;
        alter role broker_ops set default_transaction_read_only = on;
    end if;
end
$$;

grant broker_owner to broker_migrate;
