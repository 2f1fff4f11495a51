//! Stopping: leases that end before their time, freezes, and what AWS has still to be told.

use serde_json::json;
use sqlx::{PgConnection, PgExecutor, PgPool, Postgres, Transaction};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::sign::tell_all;
use super::{Result, word};
use crate::audit::{Actor, EventType, Scribe, Subject};
use crate::aws::{PROBE_NAME, StopPolicy};
use crate::lease::{FreezeKind, LeaseId};
use crate::wire::{self, Receipt};

/// A probe that was not tried for so long has lost its server.
const PROBE_LOST_AFTER: Duration = Duration::seconds(10);
/// So many probes of a role are waited for at once, the oldest first.
const PROBES_AT_ONCE: i64 = 20;
/// AWS has no longer sessions: what a cut-off is about has expired by then.
const LONGEST_SESSION: Duration = Duration::hours(12);
/// A policy just written is looked at again soon: a write that AWS was slow about may have replaced it.
const NEW_FOR: Duration = Duration::minutes(2);
const CHECK_NEW_AFTER: Duration = Duration::seconds(10);
const CHECK_AFTER: Duration = Duration::minutes(1);
/// The longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::seconds(10);
/// AWS's clock and ours may be that far apart when a session expires.
const SKEW: Duration = Duration::minutes(1);

/// Stops an open lease, which the caller has locked, and its sessions as far as they are ours to stop.
pub(super) async fn stop_lease(
    connection: &mut PgConnection,
    scribe: &Scribe,
    actor: Actor<'_>,
    subject: Subject<'_>,
    id: Uuid,
    why: &str,
    now: OffsetDateTime,
) -> Result<Receipt> {
    let event = scribe.entry(EventType::LeaseRevoked, actor, subject, json!({ "why": why }), now);
    sqlx::query!(
        r#"
        with stopped as (
            update lease set state = 'revoked', ended_at = $2, end_reason = $3 where id = $1 returning id
        )
        select append_event($4) as seq from stopped
        "#,
        id,
        now,
        why,
        event.body,
    )
    .fetch_one(&mut *connection)
    .await?;
    let sessions = sqlx::query_scalar!(
        "update session set state = 'revoking', revoking_at = $2, stop_reason = $3 where lease_id = $1 and state = 'live' returning id",
        id,
        now,
        why,
    )
    .fetch_all(&mut *connection)
    .await?;
    for session in sessions {
        let subject = Subject { session_id: Some(session), ..subject };
        let detail = json!({ "why": why });
        let event = scribe.body(EventType::SessionRevoking, actor, subject, detail, now);
        sqlx::query!("select append_event($1) as seq", event).fetch_one(&mut *connection).await?;
    }
    Ok(event.receipt())
}

/// Stops one lease. Nothing if it has ended already.
pub async fn revoke(
    pool: &PgPool,
    scribe: &Scribe,
    actor: Actor<'_>,
    lease: &wire::Lease,
    why: &str,
    now: OffsetDateTime,
) -> Result<Option<Receipt>> {
    let mut transaction = pool.begin().await?;
    let open = sqlx::query!(
        "select id from lease where id = $1 and state in ('pending', 'approved', 'issued') for update",
        lease.id.0
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if open.is_none() {
        return Ok(None);
    }
    let (subject, id) = (lease.into(), lease.id.0);
    let receipt = stop_lease(&mut transaction, scribe, actor, subject, id, why, now).await?;
    transaction.commit().await?;
    Ok(Some(receipt))
}

/// A freeze to be.
#[derive(Clone, Copy, Debug)]
pub struct NewFreeze<'a> {
    pub id: Uuid,
    pub kind: FreezeKind,
    pub target: Option<&'a str>,
    pub reason: &'a str,
    /// Whoever orders it.
    pub person: &'a str,
    /// Roles that it covers as a whole: every session of theirs that begins before `cut_off` is refused, whether we know
    /// of it or not.
    pub roles: &'a [String],
    pub cut_off: OffsetDateTime,
}

/// From its commit on nothing is issued to what it covers. What was issued is for [`stop_what_is_frozen`].
pub async fn freeze(
    connection: impl PgExecutor<'_>,
    scribe: &Scribe,
    actor: Actor<'_>,
    new: NewFreeze<'_>,
    now: OffsetDateTime,
) -> Result<Receipt> {
    let detail = json!({ "freeze_id": new.id, "kind": new.kind, "target": new.target, "why": new.reason, "roles": new.roles });
    let event = scribe.entry(EventType::FreezeCreated, actor, Subject::default(), detail, now);
    sqlx::query!(
        r#"
        with frozen as (
            insert into "freeze" (id, kind, target, reason, created_by, created_at) values ($1, $2, $3, $4, $5, $6) returning id
        ), cut_off as (
            insert into role_stop as r (role_arn, cut_off) select unnest($7::text[]), $8
            on conflict (role_arn) do update set cut_off = greatest(r.cut_off, excluded.cut_off)
        )
        select append_event($9) as seq from frozen
        "#,
        new.id,
        new.kind.as_str(),
        new.target,
        new.reason,
        new.person,
        now,
        new.roles,
        new.cut_off,
        event.body,
    )
    .fetch_one(connection)
    .await?;
    Ok(event.receipt())
}

/// Freezes that stand, the newest first; or one of any age.
pub async fn freezes(pool: &PgPool, id: Option<Uuid>) -> Result<Vec<wire::Freeze>> {
    let rows = sqlx::query!(
        r#"
        select f.id, f.kind, f.target, f.reason, f.created_by, f.created_at, f.thawed_by, f.thawed_at,
               o.count + (select count(*) from session s where s.freeze_id = f.id) as "sessions!",
               o.count + (select count(*) from session s where s.freeze_id = f.id and s.state = 'revoking') as "not_yet_stopped!",
               (select max(s.stopped_at) from session s where s.freeze_id = f.id) as stopped_at,
               (select count(*) from role_stop r
                 where f.kind in ('all', 'environment') and f.created_at < r.cut_off and r.cut_off is distinct from r.written_cut_off) as "roles_not_told!"
          from "freeze" f
          -- What it covers and was not come to yet.
          cross join lateral (
              select count(*) from session s join lease l on l.id = s.lease_id
               where s.state = 'live' and f.thawed_at is null
                 and (f.kind = 'all' or (f.kind, f.target) in (('agent', l.agent), ('sponsor', l.sponsor),
                                                               ('scope', l.scope), ('environment', l.environment)))) o
         where f.id = $1 or $1::uuid is null and f.thawed_at is null
         order by f.created_at desc limit 200
        "#,
        id
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|it| {
            Ok(wire::Freeze {
                id: it.id,
                kind: word(&it.kind)?,
                target: it.target,
                reason: it.reason,
                created_by: it.created_by,
                created_at: it.created_at,
                thawed_by: it.thawed_by,
                thawed_at: it.thawed_at,
                sessions: it.sessions,
                not_yet_stopped: it.not_yet_stopped,
                stopped_at: it.stopped_at,
                roles_not_told: it.roles_not_told,
                receipt: None,
            })
        })
        .collect()
}

/// Whether there ever was an agent, a person, or a lease on a scope of that name.
pub async fn is_known(pool: &PgPool, kind: FreezeKind, target: &str) -> Result<bool> {
    sqlx::query_scalar!(
        r#"
        select case $1 when 'agent' then exists (select from task where agent = $2)
                       when 'sponsor' then exists (select from person where handle = $2)
                       when 'scope' then exists (select from lease where scope = $2)
                       else true end as "known!"
        "#,
        kind.as_str(),
        target,
    )
    .fetch_one(pool)
    .await
}

/// Stops the live sessions that a standing freeze or a role's cut-off covers: those that were issued before, and those
/// that were being settled just then. Returns how many.
pub async fn stop_what_is_frozen(
    pool: &PgPool,
    scribe: &Scribe,
    now: OffsetDateTime,
) -> Result<usize> {
    let found = sqlx::query_scalar!(
        r#"
        select distinct s.lease_id
          from session s join lease l on l.id = s.lease_id
         where s.state in ('issuing', 'live')
           and (exists (select from "freeze" f
                         where f.thawed_at is null
                           and (f.kind = 'all' or (f.kind, f.target) in (('agent', l.agent), ('sponsor', l.sponsor),
                                                                         ('scope', l.scope), ('environment', l.environment))))
                or exists (select from role_stop r where r.role_arn = l.role_arn and s.claimed_at < r.cut_off))
         order by s.lease_id
        "#
    )
    .fetch_all(pool)
    .await?;
    if found.is_empty() {
        return Ok(0);
    }
    let mut transaction = pool.begin().await?;
    // Whoever settles one of them just now is waited for, and its outcome seen.
    sqlx::query!("select id from lease where id = any ($1) order by id for update", &found)
        .fetch_all(&mut *transaction)
        .await?;
    let sessions = sqlx::query!(
        r#"
        update session s
           set state = 'revoking', revoking_at = $2, freeze_id = f.id,
               stop_reason = coalesce('frozen: ' || f.reason, 'all sessions of the role were stopped')
          from lease l
          left join lateral (
              select f.id, f.reason from "freeze" f
               where f.thawed_at is null
                 and (f.kind = 'all' or (f.kind, f.target) in (('agent', l.agent), ('sponsor', l.sponsor),
                                                               ('scope', l.scope), ('environment', l.environment)))
               order by f.created_at limit 1) f on true
         where l.id = any ($1) and s.lease_id = l.id and s.state = 'live'
           and (f.id is not null or role_is_cut_off(l.role_arn, s.claimed_at))
        returning s.id, s.lease_id, l.agent, l.sponsor, l.scope, s.freeze_id, s.stop_reason as "stop_reason!"
        "#,
        &found,
        now,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let events: Vec<_> = sessions
        .iter()
        .map(|it| {
            let subject = Subject {
                agent: Some(&it.agent),
                sponsor: Some(&it.sponsor),
                scope: Some(&it.scope),
                lease_id: Some(LeaseId(it.lease_id)),
                session_id: Some(it.id),
            };
            let detail = json!({ "why": it.stop_reason, "freeze_id": it.freeze_id });
            scribe.body(EventType::SessionRevoking, Actor::Broker, subject, detail, now)
        })
        .collect();
    tell_all(&mut *transaction, &events).await?;
    transaction.commit().await?;
    Ok(sessions.len())
}

/// A role whose policy has to be written, proven or looked at.
#[derive(Debug)]
pub struct ToStop {
    pub role_arn: String,
    /// As in the last lease on the role.
    pub external_id: Option<String>,
}

/// The roles that AWS has still to be told about, and those whose policy is to be looked at again.
pub async fn roles_to_stop(pool: &PgPool, now: OffsetDateTime) -> Result<Vec<ToStop>> {
    sqlx::query_as!(
        ToStop,
        r#"
        with wanted as (
            select l.role_arn
              from session s join lease l on l.id = s.lease_id
             where s.state = 'revoking' and $1 < s.expires_at
               and not exists (select from probe p where p.id = s.probe_id and p.failure is null
                                                     and (p.refused_at is not null or $2 < p.tried_at))
            union
            select r.role_arn from role_stop r
             where r.cut_off is distinct from r.written_cut_off or (r.written_at is not null and r.next_check_at <= $1)
        )
        select w.role_arn as "role_arn!",
               (select l.assume_role ->> 'external_id' from lease l where l.role_arn = w.role_arn order by l.id desc limit 1) as external_id
          from wanted w left join role_stop r on r.role_arn = w.role_arn
         where coalesce(r.next_try_at <= $1, true)
         order by w.role_arn
        "#,
        now,
        now - PROBE_LOST_AFTER,
    )
    .fetch_all(pool)
    .await
}

/// The right to write one role's policy: only one server has it at a time, and it ends with this value.
pub struct HeldRole {
    transaction: Transaction<'static, Postgres>,
    pub role_arn: String,
    failures: i32,
    written_at: Option<OffsetDateTime>,
    written_cut_off: Option<OffsetDateTime>,
}

/// A cut-off of before is over: no session can be about it any more.
fn over_by(now: OffsetDateTime) -> OffsetDateTime {
    now - LONGEST_SESSION - SKEW
}

/// What a role's policy has to refuse.
#[derive(Debug)]
pub struct WhatStops {
    pub policy: StopPolicy,
    /// Sessions that AWS was not yet seen to refuse, and that nobody is looking after.
    pub unproven: Vec<Uuid>,
}

impl HeldRole {
    /// `None` if another server has it.
    pub async fn hold(pool: &PgPool, role_arn: &str) -> Result<Option<Self>> {
        sqlx::query!(
            r#"
            with role as (
                insert into role_stop (role_arn)
                select $1 where not exists (select from role_stop where role_arn = $1) on conflict do nothing
            )
            insert into role_writer (role_arn)
            select $1 where not exists (select from role_writer where role_arn = $1) on conflict do nothing
            "#,
            role_arn
        )
        .execute(pool)
        .await?;
        let mut transaction = pool.begin().await?;
        let row = sqlx::query!(
            r#"
            select r.failures, r.written_at, r.written_cut_off
              from role_writer w join role_stop r on r.role_arn = w.role_arn
             where w.role_arn = $1 for update of w skip locked
            "#,
            role_arn
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let role_arn = role_arn.to_owned();
        Ok(row.map(|it| Self {
            transaction,
            role_arn,
            failures: it.failures,
            written_at: it.written_at,
            written_cut_off: it.written_cut_off,
        }))
    }

    /// Whether, as far as we know, there is a policy of ours on the role.
    pub fn is_written(&self) -> bool {
        self.written_at.is_some()
    }

    /// Whether, as far as we know, such a cut-off is on the role.
    pub fn has_written(&self, cut_off: Option<OffsetDateTime>) -> bool {
        self.is_written() && self.written_cut_off == cut_off
    }

    pub async fn what_stops(&mut self, now: OffsetDateTime) -> Result<WhatStops> {
        let cut_off =
            sqlx::query_scalar!("select cut_off from role_stop where role_arn = $1", self.role_arn)
                .fetch_one(&mut *self.transaction)
                .await?
                .filter(|it| over_by(now) <= *it);
        // Those that sessions wait for. One that has served, or that has lost its server, needs no room; nor do more than
        // a few: what waits for the others gets the next.
        let probes = sqlx::query!(
            r#"
            select p.id, p.session_name from probe p
             where p.role_arn = $1 and p.denied_at is not null and p.refused_at is null and p.failure is null
               and $2 < p.tried_at and $3 < p.expires_at
               and exists (select from session s where s.probe_id = p.id and s.state = 'revoking')
             order by p.denied_at limit $4
            "#,
            self.role_arn,
            now - PROBE_LOST_AFTER,
            now - SKEW,
            PROBES_AT_ONCE,
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let looked_after: Vec<_> = probes.iter().map(|it| it.id).collect();
        let sessions = sqlx::query!(
            r#"
            select s.id, s.session_name,
                   s.state = 'revoking' and not coalesce(s.probe_id = any ($4), false) as "unproven!",
                   -- By AWS's clock, too: that is the one that AWS compares with.
                   coalesce(s.claimed_at < $3
                            and s.expires_at - make_interval(secs => (l.assume_role ->> 'duration_seconds')::integer + 1) < $3,
                            false) as "cut_off!"
              from session s join lease l on l.id = s.lease_id
             -- What has expired by our clock may have a minute left by AWS's.
             where l.role_arn = $1 and s.revoking_at is not null and s.state in ('revoking', 'stopped', 'expired')
               and $2 < s.expires_at
            "#,
            self.role_arn,
            now - SKEW,
            cut_off,
            &looked_after,
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let named = sessions.iter().filter(|it| !it.cut_off).map(|it| it.session_name.clone());
        let probes = probes.into_iter().map(|it| it.session_name);
        Ok(WhatStops {
            policy: StopPolicy { cut_off, session_names: named.chain(probes).collect() },
            unproven: sessions.iter().filter(|it| it.unproven).map(|it| it.id).collect(),
        })
    }

    /// The policy has no room for single sessions any more: all of the role's are stopped. Committed before AWS is told,
    /// so that nobody mints what AWS would refuse.
    pub async fn cut_off(
        mut self,
        scribe: &Scribe,
        cut_off: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<()> {
        let detail = json!({
            "role_arn": self.role_arn,
            "why": "the role's policy has no room for more single sessions",
        });
        let (kind, subject) = (EventType::RoleCutOff, Subject::default());
        let event = scribe.body(kind, Actor::Broker, subject, detail, now);
        sqlx::query!(
            r#"
            with cut_off as (
                update role_stop set cut_off = greatest(cut_off, $2) where role_arn = $1 returning role_arn
            )
            select append_event($3) as seq from cut_off
            "#,
            self.role_arn,
            cut_off,
            event,
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        self.transaction.commit().await
    }

    /// AWS has taken `policy`, which covers `probe`, if there is one.
    pub async fn written(
        mut self,
        scribe: &Scribe,
        policy: &StopPolicy,
        unproven: &[Uuid],
        probe: Option<Uuid>,
        now: OffsetDateTime,
    ) -> Result<()> {
        let there = !policy.is_empty();
        let detail = json!({
            "role_arn": self.role_arn,
            "cut_off": policy.cut_off.map(OffsetDateTime::unix_timestamp),
            "sessions": policy.session_names.len(),
            "probe_id": probe,
        });
        let (kind, subject) = (EventType::StopWritten, Subject::default());
        let event = scribe.body(kind, Actor::Broker, subject, detail, now);
        sqlx::query!(
            r#"
            with written as (
                update role_stop
                   set written_at = case when $2 then $3::timestamptz end, written_cut_off = $4, next_check_at = $5,
                       failures = 0, next_try_at = null, last_error = null, cut_off = case when $9 <= cut_off then cut_off end
                 where role_arn = $1 returning role_arn
            ), proving as (
                update probe set denied_at = $3 where id = $6
            ), denied as (
                update session set denied_at = $3, probe_id = $6 where id = any ($7) and state = 'revoking'
            )
            select append_event($8) as seq from written
            "#,
            self.role_arn,
            there,
            now,
            policy.cut_off,
            now + CHECK_NEW_AFTER,
            probe,
            unproven,
            event,
            over_by(now),
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        self.transaction.commit().await
    }

    /// The policy on the role is as it has to be.
    pub async fn checked(mut self, policy: &StopPolicy, now: OffsetDateTime) -> Result<()> {
        let new = self.written_at.is_none_or(|it| now < it + NEW_FOR);
        let pause = if new { CHECK_NEW_AFTER } else { CHECK_AFTER };
        sqlx::query!(
            r#"
            update role_stop
               set written_at = case when $2 then coalesce(written_at, $3) end, written_cut_off = $4, next_check_at = $5,
                   failures = 0, next_try_at = null, last_error = null, cut_off = case when $6 <= cut_off then cut_off end
             where role_arn = $1
            "#,
            self.role_arn,
            !policy.is_empty(),
            now,
            policy.cut_off,
            now + pause,
            over_by(now),
        )
        .execute(&mut *self.transaction)
        .await?;
        self.transaction.commit().await
    }

    /// It did not work; it is tried again, at `not_before` at the earliest.
    pub async fn failed(
        mut self,
        why: &str,
        not_before: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<()> {
        let pause = Duration::seconds(1 << self.failures.clamp(0, 5)).min(LONGEST_PAUSE);
        let next = not_before.unwrap_or(now).max(now + pause);
        sqlx::query!(
            "update role_stop set failures = failures + 1, next_try_at = $2, last_error = $3 where role_arn = $1",
            self.role_arn,
            next,
            why,
        )
        .execute(&mut *self.transaction)
        .await?;
        self.transaction.commit().await
    }
}

/// A session of the broker's own, about to be minted to try a role's policy with.
#[derive(Clone, Debug)]
pub struct NewProbe {
    pub id: Uuid,
    pub session_name: String,
}

/// Writes that AWS is about to be asked.
pub async fn new_probe(
    pool: &PgPool,
    scribe: &Scribe,
    role_arn: &str,
    now: OffsetDateTime,
) -> Result<NewProbe> {
    let id = Uuid::now_v7();
    let probe =
        NewProbe { id, session_name: format!("{PROBE_NAME}{id}-{:08x}", rand::random::<u32>()) };
    let detail =
        json!({ "probe_id": id, "role_arn": role_arn, "session_name": probe.session_name });
    let (kind, subject) = (EventType::ProbeIssuing, Subject::default());
    let event = scribe.body(kind, Actor::Broker, subject, detail, now);
    sqlx::query!(
        r#"
        with probing as (
            insert into probe (id, role_arn, session_name, claimed_at) values ($1, $2, $3, $4) returning id
        )
        select append_event($5) as seq from probing
        "#,
        id,
        role_arn,
        probe.session_name,
        now,
        event,
    )
    .fetch_one(pool)
    .await?;
    Ok(probe)
}

/// AWS has minted the probe.
pub async fn probe_minted(
    pool: &PgPool,
    id: Uuid,
    access_key_id: &str,
    expires_at: OffsetDateTime,
) -> Result<()> {
    sqlx::query!(
        "update probe set access_key_id = $2, expires_at = $3 where id = $1",
        id,
        access_key_id,
        expires_at,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The probe was tried, and not refused: the first time, before the policy is written, because AWS let it.
pub async fn probe_works(pool: &PgPool, id: Uuid, now: OffsetDateTime) -> Result<()> {
    sqlx::query!(
        "update probe set tried_at = $2, proven_at = coalesce(proven_at, $2) where id = $1",
        id,
        now,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The probe is of no use any more.
pub async fn probe_failed(pool: &PgPool, id: Uuid, why: &str) -> Result<()> {
    sqlx::query!("update probe set failure = coalesce(failure, $2) where id = $1", id, why)
        .execute(pool)
        .await?;
    Ok(())
}

/// AWS has refused the probe: every session that the same policy covers is stopped. Returns how many.
pub async fn probe_refused(
    pool: &PgPool,
    scribe: &Scribe,
    id: Uuid,
    region: &str,
    now: OffsetDateTime,
) -> Result<usize> {
    let mut transaction = pool.begin().await?;
    let leases = sqlx::query_scalar!(
        r#"select distinct lease_id from session where probe_id = $1 and state = 'revoking' order by lease_id"#,
        id
    )
    .fetch_all(&mut *transaction)
    .await?;
    sqlx::query!("select id from lease where id = any ($1) order by id for update", &leases)
        .fetch_all(&mut *transaction)
        .await?;
    sqlx::query!(
        // If this was committed before, and the answer lost, it stays as it was.
        "update probe set tried_at = $2, refused_at = $2, region = $3 where id = $1 and refused_at is null",
        id,
        now,
        region,
    )
    .execute(&mut *transaction)
    .await?;
    let stopped = sqlx::query!(
        r#"
        update session s set state = 'stopped', stopped_at = $2, stopped_region = $3
          from lease l
         where s.probe_id = $1 and s.state = 'revoking' and l.id = s.lease_id
        returning s.id, s.lease_id, l.agent, l.sponsor, l.scope, s.revoking_at as "revoking_at!"
        "#,
        id,
        now,
        region,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let events: Vec<_> = stopped
        .iter()
        .map(|it| {
            let subject = Subject {
                agent: Some(&it.agent),
                sponsor: Some(&it.sponsor),
                scope: Some(&it.scope),
                lease_id: Some(LeaseId(it.lease_id)),
                session_id: Some(it.id),
            };
            let after = (now - it.revoking_at).whole_milliseconds();
            let detail = json!({
                "region": region,
                "probe_id": id,
                "after_milliseconds": i64::try_from(after).unwrap_or(i64::MAX),
            });
            scribe.body(EventType::SessionStopped, Actor::Broker, subject, detail, now)
        })
        .collect();
    tell_all(&mut *transaction, &events).await?;
    transaction.commit().await?;
    Ok(stopped.len())
}
