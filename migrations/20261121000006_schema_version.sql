-- The newest migration that was applied; the server compares it with the one it was built for.
create function schema_version() returns bigint
language sql stable security definer set search_path = pg_catalog, public, pg_temp
as $$ select max(version) from public._sqlx_migrations where success $$;
grant execute on function schema_version() to broker_app;
