-- Every set of scopes and rules that was in force, whole, under the digest that leases name.
create table ruleset (
    sha256            text        primary key generated always as (encode(sha256(content), 'hex')) stored,
    -- Canonical JSON: the scopes file and the rule files as text, the broker's own home, the digest of the action table, and
    -- whether software keys count.
    content           bytea       not null,
    first_in_force_at timestamptz not null
);

create trigger ruleset_is_fixed before update or delete on ruleset for each row execute function refuse_change();
create trigger ruleset_is_kept before truncate on ruleset for each statement execute function refuse_change();
alter table ruleset enable always trigger ruleset_is_fixed;
alter table ruleset enable always trigger ruleset_is_kept;

-- A lease is judged by something that is kept. Leases from before this table are judged by what was not.
alter table lease add constraint lease_rules_are_kept foreign key (rules_sha256) references ruleset not valid;

grant select, insert on ruleset to broker_app;

create view rulesets as
    select r.sha256, r.first_in_force_at, c.doc ->> 'scopes' as scopes, c.doc -> 'policies' as policies, c.doc -> 'home' as home,
           c.doc ->> 'action_table' as action_table, (c.doc ->> 'software_keys')::boolean as software_keys
      from ruleset r, lateral (select convert_from(r.content, 'UTF8')::jsonb as doc) c;

comment on view rulesets is 'Every set of scopes and rules that was in force. lease_history.rules_sha256 names one.';
comment on column rulesets.sha256 is 'digest of all of it';
comment on column rulesets.first_in_force_at is 'when a server first judged by it';
comment on column rulesets.scopes is 'scopes.toml as it was';
comment on column rulesets.policies is 'rule files: name to text';
comment on column rulesets.home is 'what the broker itself is made of, which no scope reaches';
comment on column rulesets.action_table is 'digest of the table of AWS actions, which is part of the program';
comment on column rulesets.software_keys is 'whether keys that a program can use by itself counted: brokerd dev only';
grant select on rulesets to broker_ops;
