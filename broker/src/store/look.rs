//! What the database's catalogs say, for the doctor. Reads only.

use std::collections::BTreeSet;

use sqlx::error::DatabaseError;
use sqlx::{PgConnection, PgPool};
use time::{Duration, OffsetDateTime};

use super::{MIGRATOR, Result};
use crate::clock::Clock;
use crate::doctor::estate::{Database, Part, PersonKey, Unread};

/// What the catalogs of a database say that was just migrated, a line each; `event_MONTH` is any month's. A test
/// compares.
pub const CATALOG: &str = include_str!("catalog.txt");

/// The version of the schema that this program was built for.
pub fn newest_migration() -> i64 {
    MIGRATOR.iter().map(|it| it.version).max().unwrap_or_default()
}

/// The lines. What belongs to another database of the cluster, or to its administrator, is not among them.
const FACTS: &str = r"
with ours as (select oid, rolname from pg_roles
               where rolname in ('broker_owner', 'broker_migrate', 'broker_app', 'broker_ops', 'broker_sequencer', 'broker_retention')),
     relation as (select c.* from pg_class c
                   where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')),
     routine as (select p.*, p.proname || '(' || replace(oidvectortypes(p.proargtypes), ' ', '') || ')' as name
                   from pg_proc p where p.pronamespace = 'public'::regnamespace),
     owned (name, owner) as (
         select relname::text, relowner from relation
         union all select name, proowner from routine
         union all select 'database', datdba from pg_database where datname = current_database()),
     acl (name, of_column, entry, owner) as (
         select c.relname::text, '', a, c.relowner
           from relation c, aclexplode(c.relacl) a
         union all select c.relname::text, '(' || t.attname || ')', a, c.relowner
           from relation c join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
         union all select p.name, '', a, p.proowner
           from routine p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
         union all select 'schema', '', a, n.nspowner
           from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a where n.nspname = 'public'
         union all select 'database', '', a, d.datdba
           from pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a where d.datname = current_database())
select line from (
    select 'role ' || r.rolname || ' ' || attribute
      from pg_roles r, lateral (values ('superuser', r.rolsuper), ('createrole', r.rolcreaterole), ('createdb', r.rolcreatedb),
                                       ('replication', r.rolreplication), ('bypassrls', r.rolbypassrls), ('login', r.rolcanlogin)) v (attribute, has)
     where has and r.oid in (select oid from ours)
    union select 'member ' || m.rolname || ' of ' || g.rolname
      from pg_auth_members a join pg_roles m on m.oid = a.member join pg_roles g on g.oid = a.roleid
     where a.member in (select oid from ours) or a.roleid in (select oid from ours)
    union select 'owner ' || name || ' ' || owner::regrole from owned where owner <> 'broker_owner'::regrole
    union select 'trigger ' || c.relname || ' ' || t.tgname || ' '
                 || case t.tgenabled when 'A' then 'always' when 'O' then 'ordinarily' when 'R' then 'on-replicas' else 'never' end
      from pg_trigger t join relation c on c.oid = t.tgrelid where not t.tgisinternal
    union select 'month ' || inhrelid::regclass from pg_inherits
     where inhparent = to_regclass('public.event') and inhrelid::regclass::text ~ '^event_[0-9]{6}$'
    union select 'function ' || p.name || ' ' || case when p.prosecdef then 'definer' else 'invoker' end || ' ' || l.lanname || ' '
                 || p.provolatile::text || ' ' || md5(p.prosrc || coalesce(reads, '')) || ' ' || coalesce(replace(array_to_string(p.proconfig, ';'), ' ', ''), '-')
      from routine p join pg_language l on l.oid = p.prolang
      -- A body that is kept parsed is written differently by each version of PostgreSQL: of it, the tables count.
      left join lateral (select string_agg(distinct r.relname::text, ',' order by r.relname::text) as reads
                           from pg_depend d join pg_class r on r.oid = d.refobjid
                          where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass
                            and p.prosqlbody is not null) b on true
    union select 'grant ' || name || ' ' || case (entry).grantee when 0 then 'public' else (entry).grantee::regrole::text end
                 || ' ' || (entry).privilege_type || of_column
      from acl where (entry).grantee <> owner
) as lines (line) order by line";

/// Looks at the database that `pool` is of.
pub async fn look(pool: &PgPool, clock: &Clock) -> Part<Database> {
    let mut connection = pool.acquire().await.map_err(|error| unread(&error))?;
    read(&mut connection, clock).await.map_err(|error| unread(&error))
}

async fn read(connection: &mut PgConnection, clock: &Clock) -> Result<Database> {
    let before = clock.now();
    let sql = "select session_user::text, clock_timestamp(),
                      to_regprocedure('public.schema_version()') is not null,
                      coalesce(has_function_privilege(to_regprocedure('public.schema_version()'), 'execute'), false),
                      coalesce(has_table_privilege(to_regclass('public.person_key'), 'select'), false),
                      coalesce(has_table_privilege(to_regclass('public.enrolled_keys'), 'select'), false),
                      coalesce(has_table_privilege(to_regclass('public.log_anchors'), 'select'), false)";
    let (login, theirs, has_schema, tells_version, has_keys, has_view, has_log): (
        String,
        OffsetDateTime,
        bool,
        bool,
        bool,
        bool,
        bool,
    ) = sqlx::query_as(sql).fetch_one(&mut *connection).await?;
    let taken: Duration = clock.now() - before;
    let ours: OffsetDateTime = before + taken / 2_i32;
    let schema_version = if tells_version {
        sqlx::query_scalar("select public.schema_version()").fetch_one(&mut *connection).await?
    } else {
        (!has_schema).then_some(0)
    };
    let facts: Vec<String> = if has_schema {
        sqlx::query_scalar(FACTS).fetch_all(&mut *connection).await?
    } else {
        Vec::new()
    };
    let sql = if has_keys {
        "select person, fingerprint, assurance, enrolled_at from public.person_key where revoked_at is null"
    } else {
        "select person, fingerprint, assurance, enrolled_at from public.enrolled_keys where revoked_at is null"
    };
    let keys: Vec<(String, String, String, OffsetDateTime)> = if has_keys || has_view {
        sqlx::query_as(sql).fetch_all(&mut *connection).await?
    } else {
        Vec::new()
    };
    let key = |(person, fingerprint, assurance, enrolled_at)| PersonKey {
        person,
        fingerprint,
        assurance,
        enrolled_at,
    };
    let sql = "with newest as (select epoch from public.log_heads),
                    anchored as (select max(size) as size from public.log_anchors where epoch = (select epoch from newest))
               select signed_at from public.log_checkpoints
                where epoch = (select epoch from newest) and size > coalesce((select size from anchored), 0)
                order by size limit 1";
    let unanchored_since =
        if has_log { sqlx::query_scalar(sql).fetch_optional(connection).await? } else { None };
    Ok(Database {
        login,
        ahead_seconds: (theirs - ours).whole_seconds(),
        schema_version,
        facts: facts.into_iter().collect::<BTreeSet<_>>(),
        keys: keys.into_iter().map(key).collect(),
        unanchored_since,
    })
}

/// Whether the database said no, or nothing.
fn unread(error: &sqlx::Error) -> Unread {
    let code = error.as_database_error().and_then(DatabaseError::code);
    // Class 28: it does not take our login; 3D000: there is no such database; 42501: no right.
    match code.as_deref() {
        Some(it) if it.starts_with("28") || it == "3D000" || it == "42501" => {
            Unread::Refused(error.to_string())
        }
        _ => Unread::Unreachable(error.to_string()),
    }
}
