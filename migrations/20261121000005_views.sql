-- What operations review: the only things that broker_ops can see. Views run with their owner's rights.

create view lease_history as
    select l.id, l.agent, l.sponsor, l.actor, l.task, l.reason, l.scope, l.environment, l.tier, l.account, l.role_arn,
           l.actions, l.resources, l.state, l.requested_at, l.approved_at, l.issued_at, l.ends_at, l.ended_at,
           s.signers, s.key_kinds, s.assurances, m.access_key_ids, m.session_names,
           l.rollback, l.end_reason, l.decided_by, l.rules_sha256, encode(t.sha256, 'hex') as statement_sha256
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

comment on view lease_history is 'One row a lease: who asked, who signed, what exactly, when, with which AWS keys, and how it ended.';
comment on column lease_history.id is 'the lease; also the SourceIdentity of its sessions in CloudTrail';
comment on column lease_history.agent is 'who asked';
comment on column lease_history.sponsor is 'the named human behind the agent';
comment on column lease_history.actor is 'who set a pipeline off, if somebody did';
comment on column lease_history.task is 'what the agent was working on';
comment on column lease_history.reason is 'why, in the agent''s words';
comment on column lease_history.scope is 'the catalogue entry asked for';
comment on column lease_history.environment is 'development, staging, production or backup';
comment on column lease_history.tier is 'how dangerous, as computed';
comment on column lease_history.account is 'the AWS account';
comment on column lease_history.role_arn is 'the role assumed';
comment on column lease_history.actions is 'exactly what was allowed';
comment on column lease_history.resources is 'exactly on what';
comment on column lease_history.state is 'where it stands';
comment on column lease_history.requested_at is 'when it was asked for';
comment on column lease_history.approved_at is 'when rules or signatures allowed it';
comment on column lease_history.issued_at is 'when credentials were first delivered';
comment on column lease_history.ends_at is 'when the window or the one session ends';
comment on column lease_history.ended_at is 'when it reached a terminal state';
comment on column lease_history.signers is 'who approved, in order';
comment on column lease_history.key_kinds is 'the kinds of their keys';
comment on column lease_history.assurances is 'how sure we were of their hand';
comment on column lease_history.access_key_ids is 'AWS key ids minted, as in CloudTrail';
comment on column lease_history.session_names is 'names of the STS sessions';
comment on column lease_history.rollback is 'how to undo it, in the agent''s words';
comment on column lease_history.end_reason is 'why it was denied, refused, withdrawn, stopped or failed';
comment on column lease_history.decided_by is 'the rules that decided';
comment on column lease_history.rules_sha256 is 'digest of the configuration in force';
comment on column lease_history.statement_sha256 is 'digest of the bytes that were signed';

create view pending_leases as
    select l.id, l.agent, l.sponsor, l.task, l.reason, l.scope, l.environment, l.tier, l.actions, l.resources, l.requested_at, l.sign_by,
           l.signatures_needed - (select count(*) from signature g where g.lease_id = l.id and g.decision = 'approve') as signatures_missing,
           l.eligible_signers
      from lease l where l.state = 'pending' order by l.sign_by;

comment on view pending_leases is 'Leases that wait for signatures, the most urgent first.';
comment on column pending_leases.id is 'the lease';
comment on column pending_leases.agent is 'who asked';
comment on column pending_leases.sponsor is 'the human behind the agent, who cannot sign';
comment on column pending_leases.task is 'what it is for';
comment on column pending_leases.reason is 'why, in the agent''s words';
comment on column pending_leases.scope is 'what was asked for';
comment on column pending_leases.environment is 'where';
comment on column pending_leases.tier is 'how dangerous';
comment on column pending_leases.actions is 'what exactly';
comment on column pending_leases.resources is 'on what exactly';
comment on column pending_leases.requested_at is 'since when it waits';
comment on column pending_leases.sign_by is 'when it lapses';
comment on column pending_leases.signatures_missing is 'how many more people are needed';
comment on column pending_leases.eligible_signers is 'who may sign';

create view live_sessions as
    select x.id, x.lease_id, l.agent, l.sponsor, l.scope, l.environment, l.tier, l.role_arn, x.state, x.session_name, x.access_key_id,
           x.claimed_at, x.expires_at, x.deliveries, x.last_delivered_at
      from session x join lease l on l.id = x.lease_id
     where x.state in ('issuing', 'live', 'revoking');

comment on view live_sessions is 'STS sessions that may still be of use to somebody: being minted, live, or stopped here but not yet seen refused by AWS.';
comment on column live_sessions.id is 'the session';
comment on column live_sessions.lease_id is 'the lease it was minted under';
comment on column live_sessions.agent is 'who holds it';
comment on column live_sessions.sponsor is 'the human behind the agent';
comment on column live_sessions.scope is 'the lease''s scope';
comment on column live_sessions.environment is 'where';
comment on column live_sessions.tier is 'how dangerous';
comment on column live_sessions.role_arn is 'the role assumed';
comment on column live_sessions.state is 'issuing, live or revoking';
comment on column live_sessions.session_name is 'its name at AWS';
comment on column live_sessions.access_key_id is 'its key id, as in CloudTrail';
comment on column live_sessions.claimed_at is 'when AWS was asked for it';
comment on column live_sessions.expires_at is 'when AWS ends it by itself';
comment on column live_sessions.deliveries is 'how often its credentials were handed out';
comment on column live_sessions.last_delivered_at is 'when last';

create view approval_trail as
    select g.lease_id, g.person as signer, g.decision, g.signed_at, g.assurance, g.touched, g.verified, g.fingerprint as key_fingerprint,
           l.agent, l.sponsor, l.account as system, l.environment, l.tier, l.scope, l.actions, l.resources, l.rollback, g.reason, l.state as lease_state
      from signature g join lease l on l.id = g.lease_id;

comment on view approval_trail is 'Who approved or refused what for whom, in which environment, and what the way back was.';
comment on column approval_trail.lease_id is 'the lease decided on';
comment on column approval_trail.signer is 'who decided';
comment on column approval_trail.decision is 'approve or refuse';
comment on column approval_trail.signed_at is 'when';
comment on column approval_trail.assurance is 'how sure we are of their hand';
comment on column approval_trail.touched is 'whether the key was touched, if it can tell';
comment on column approval_trail.verified is 'whether PIN or biometric was given, if it can tell';
comment on column approval_trail.key_fingerprint is 'the key used';
comment on column approval_trail.agent is 'who had asked';
comment on column approval_trail.sponsor is 'the human behind the agent';
comment on column approval_trail.system is 'the AWS account';
comment on column approval_trail.environment is 'where';
comment on column approval_trail.tier is 'how dangerous';
comment on column approval_trail.scope is 'the scope';
comment on column approval_trail.actions is 'what exactly was approved';
comment on column approval_trail.resources is 'on what exactly';
comment on column approval_trail.rollback is 'the way back, in the agent''s words';
comment on column approval_trail.reason is 'why it was refused, in the signer''s words';
comment on column approval_trail.lease_state is 'what became of it';

create view agent_activity as
    select l.agent, l.sponsor, count(*) as requests,
           count(*) filter (where l.issued_at is not null) as issued,
           count(*) filter (where l.state = 'denied') as denied,
           count(*) filter (where l.state = 'refused') as refused,
           count(*) filter (where l.signed) as needed_signatures,
           array_agg(distinct l.scope) as scopes, min(l.requested_at) as first_request, max(l.requested_at) as last_request
      from lease l group by l.agent, l.sponsor;

comment on view agent_activity is 'One row an agent and sponsor: how much was asked, granted, denied and signed.';
comment on column agent_activity.agent is 'who asked';
comment on column agent_activity.sponsor is 'the human behind the agent';
comment on column agent_activity.requests is 'leases asked for';
comment on column agent_activity.issued is 'leases that credentials were delivered for';
comment on column agent_activity.denied is 'denied by rules';
comment on column agent_activity.refused is 'refused by a signer';
comment on column agent_activity.needed_signatures is 'leases that people had to sign';
comment on column agent_activity.scopes is 'scopes asked for';
comment on column agent_activity.first_request is 'the first time';
comment on column agent_activity.last_request is 'the latest time';

create view lease_events as
    select e.lease_id, e.seq, e.recorded_at, e.occurred_at, e.type, e.actor, e.session_id, e.doc -> 'data' as data
      from event e where e.lease_id is not null;

comment on view lease_events is 'The timeline of a lease: every event that names it, in the order it was recorded.';
comment on column lease_events.lease_id is 'the lease';
comment on column lease_events.seq is 'order of insertion; not an index in the log';
comment on column lease_events.recorded_at is 'by the database''s clock';
comment on column lease_events.occurred_at is 'by the server''s clock';
comment on column lease_events.type is 'what happened';
comment on column lease_events.actor is 'who did it';
comment on column lease_events.session_id is 'the session, if it is about one';
comment on column lease_events.data is 'the rest of the body';

create view log_events as
    select e.seq, e.id, e.recorded_at, e.type, e.body, e.leaf_hash from event e;

comment on view log_events is 'All events as a verifier needs them: exact body and leaf hash.';
comment on column log_events.seq is 'order of insertion';
comment on column log_events.id is 'the event''s id';
comment on column log_events.recorded_at is 'by the database''s clock';
comment on column log_events.type is 'what happened';
comment on column log_events.body is 'the canonical bytes that are hashed';
comment on column log_events.leaf_hash is 'RFC 6962 leaf hash of the body';

grant select on lease_history, pending_leases, live_sessions, approval_trail, agent_activity, lease_events, log_events to broker_ops;
