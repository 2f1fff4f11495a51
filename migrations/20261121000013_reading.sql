-- What operations ask for, and what keeps the answers quick when there are ten million events: docs/queries.md. An index is
-- paid for by every request, so each of these names what it is for. While they are made on a database that is in use, its
-- requests wait: half a minute for ten million events.

create view event_history as
    select e.seq, e.recorded_at, e.occurred_at, e.type, e.actor, e.agent, e.sponsor, e.scope, e.lease_id, e.session_id, e.doc -> 'data' as data
      from event e;

comment on view event_history is 'All events as a person reads them. Name a time in recorded_at: only its months are looked through.';
comment on column event_history.seq is 'order of insertion; not an index in the log';
comment on column event_history.recorded_at is 'by the database''s clock';
comment on column event_history.occurred_at is 'by the server''s clock';
comment on column event_history.type is 'what happened';
comment on column event_history.actor is 'who did it: agent:NAME, person:HANDLE, broker, operator or unknown';
comment on column event_history.agent is 'the agent it is about, if it is about one';
comment on column event_history.sponsor is 'the human behind that agent';
comment on column event_history.scope is 'the scope, if it is about one';
comment on column event_history.lease_id is 'the lease, if it is about one';
comment on column event_history.session_id is 'the session, if it is about one';
comment on column event_history.data is 'what the event says; the rest of it is under detail';

create view session_history as
    select s.id, s.lease_id, l.agent, l.sponsor, l.task, l.scope, l.environment, l.tier, l.account, l.role_arn, s.state, s.session_name,
           s.access_key_id, s.claimed_at, s.settled_at, s.expires_at, s.failure, s.deliveries, s.last_delivered_at,
           s.revoking_at, s.stop_reason, s.stopped_at
      from session s join lease l on l.id = s.lease_id;

comment on view session_history is 'Every STS session that was minted under a lease, or may have been.';
comment on column session_history.id is 'the session';
comment on column session_history.lease_id is 'the lease it was minted under; also its SourceIdentity in CloudTrail';
comment on column session_history.agent is 'who holds or held it';
comment on column session_history.sponsor is 'the human behind the agent';
comment on column session_history.task is 'what the agent was working on';
comment on column session_history.scope is 'the lease''s scope';
comment on column session_history.environment is 'where';
comment on column session_history.tier is 'how dangerous';
comment on column session_history.account is 'the AWS account';
comment on column session_history.role_arn is 'the role assumed';
comment on column session_history.state is 'issuing, live, failed, expired, revoking or stopped';
comment on column session_history.session_name is 'its name at AWS';
comment on column session_history.access_key_id is 'its key id, as in CloudTrail; null if AWS named none';
comment on column session_history.claimed_at is 'when AWS was about to be asked for it: it cannot be older';
comment on column session_history.settled_at is 'when AWS''s answer was recorded, or given up';
comment on column session_history.expires_at is 'when AWS ends it by itself; null if AWS did not say';
comment on column session_history.failure is 'why it came to nothing';
comment on column session_history.deliveries is 'how often its credentials were handed out';
comment on column session_history.last_delivered_at is 'when last';
comment on column session_history.revoking_at is 'from when on the broker no longer handed it out, if it was stopped';
comment on column session_history.stop_reason is 'why it was stopped';
comment on column session_history.stopped_at is 'when AWS was seen to refuse it';

create view probes as
    select p.id, p.role_arn, p.session_name, p.access_key_id, p.claimed_at, p.expires_at, p.proven_at, p.denied_at, p.refused_at, p.region, p.failure
      from probe p;

comment on view probes is 'The broker''s own STS sessions, that a role''s deny policy was tried with. They may do nothing else; CloudTrail shows them.';
comment on column probes.id is 'the probe';
comment on column probes.role_arn is 'the role whose policy it tries';
comment on column probes.session_name is 'its name at AWS';
comment on column probes.access_key_id is 'its key id, as in CloudTrail';
comment on column probes.claimed_at is 'when AWS was about to be asked for it';
comment on column probes.expires_at is 'when AWS ends it by itself';
comment on column probes.proven_at is 'when AWS let it, before the policy was written';
comment on column probes.denied_at is 'when the policy was written that refuses it';
comment on column probes.refused_at is 'when AWS was seen to refuse it';
comment on column probes.region is 'the Region whose endpoint refused';
comment on column probes.failure is 'why nothing can be seen by it';

-- As before, and besides whether people had to sign.
create or replace view lease_history as
    select l.id, l.agent, l.sponsor, l.actor, l.task, l.reason, l.scope, l.environment, l.tier, l.account, l.role_arn,
           l.actions, l.resources, l.state, l.requested_at, l.approved_at, l.issued_at, l.ends_at, l.ended_at,
           s.signers, s.key_kinds, s.assurances, m.access_key_ids, m.session_names,
           l.rollback, l.end_reason, l.decided_by, l.rules_sha256, encode(t.sha256, 'hex') as statement_sha256, l.signed
      from lease l
      left join statement t on t.lease_id = l.id
      left join lateral (
          select array_agg(g.person order by g.signed_at) as signers,
                 array_agg(split_part(k.public_key, ' ', 1) order by g.signed_at) as key_kinds,
                 array_agg(g.assurance order by g.signed_at) as assurances
            from signature g join person_key k on k.fingerprint = g.fingerprint
           where g.lease_id = l.id and g.decision = 'approve') s on true
      left join lateral (
          select array_agg(x.access_key_id order by x.claimed_at) filter (where x.access_key_id is not null) as access_key_ids,
                 array_agg(x.session_name order by x.claimed_at) as session_names
            from session x where x.lease_id = l.id) m on true;

comment on column lease_history.signed is 'whether it is one that people have to sign';

-- As before; scopes are counted by scope, because sorting an agent's leases to find them took longer than reading them.
create or replace view agent_activity as
    select l.agent, l.sponsor, sum(l.requests)::bigint as requests, sum(l.issued)::bigint as issued, sum(l.denied)::bigint as denied,
           sum(l.refused)::bigint as refused, sum(l.needed_signatures)::bigint as needed_signatures,
           array_agg(l.scope order by l.scope) as scopes, min(l.first_request) as first_request, max(l.last_request) as last_request
      from (
          select agent, sponsor, scope, count(*) as requests,
                 count(*) filter (where issued_at is not null) as issued,
                 count(*) filter (where state = 'denied') as denied,
                 count(*) filter (where state = 'refused') as refused,
                 count(*) filter (where signed) as needed_signatures,
                 min(requested_at) as first_request, max(requested_at) as last_request
            from lease group by agent, sponsor, scope) l
     group by l.agent, l.sponsor;

-- As before, and besides what the wait for a signature is measured by.
create or replace view approval_trail as
    select g.lease_id, g.person as signer, g.decision, g.signed_at, g.assurance, g.touched, g.verified, g.fingerprint as key_fingerprint,
           l.agent, l.sponsor, l.account as system, l.environment, l.tier, l.scope, l.actions, l.resources, l.rollback, g.reason, l.state as lease_state,
           l.task, l.requested_at
      from signature g join lease l on l.id = g.lease_id;

comment on column approval_trail.task is 'what the agent was working on';
comment on column approval_trail.requested_at is 'when it was asked for';

grant select on event_history, session_history, probes to broker_ops;

-- Everything around one agent, for a time.
create index event_by_agent on event (agent, recorded_at) where agent is not null;
-- What was asked for in the last day or days: denied, asked again, more than others, not signed.
create index lease_by_time on lease (requested_at);
-- What people signed for in the last week. Of these there are few.
create index lease_signed_by_time on lease (requested_at) where signed;
-- Who approved what for whom, how long it took, and who approves whose.
create index signature_by_time on signature (signed_at);
-- Whose key CloudTrail shows.
create index session_by_key on session (access_key_id) where access_key_id is not null;
create index probe_by_key on probe (access_key_id) where access_key_id is not null;
-- Which keys could be used at a time.
create index session_by_time on session (claimed_at);
-- What was stopped, as stopped_sessions orders it. Of these there are few.
create index session_by_stop on session ((state = 'revoking') desc, revoking_at desc) where revoking_at is not null;
-- What an agent did in all, from the index alone; as before, its latest.
drop index lease_by_agent;
create index lease_by_agent on lease (agent, requested_at desc) include (sponsor, scope, state, signed, issued_at);
-- What changed about people, keys and freezes; which tasks were started.
create index act_by_kind on act (kind, proposed_at);
