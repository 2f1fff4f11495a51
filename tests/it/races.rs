//! Two things at once, many times: whoever wins, the database tells one story, and it is the one that callers heard.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::http::Method;
use broker::lease::LeaseId;
use serde_json::json;
use sqlx::PgPool;
use tests::program::until;
use tests::sts::{FakeSts, Mood};
use tests::{Answer, Sender, Setup, TestBroker, wide_budgets};
use time::Duration;
use tokio::task::JoinHandle;

/// So often is each race run.
const ROUNDS: usize = 40;

/// Two replicas on one database, and an STS that counts.
struct Track {
    sts: FakeSts,
    one: TestBroker,
    two: TestBroker,
    /// Who won, and how often.
    wins: BTreeMap<String, usize>,
}

impl Track {
    async fn new() -> Self {
        Self::with(None).await
    }

    /// Where production takes two signatures.
    async fn for_two() -> Self {
        let scopes = include_str!("../../config/scopes.toml")
            .replace("assurance = \"present\" }", "count = 2 }");
        Self::with(Some(scopes)).await
    }

    async fn with(scopes: Option<String>) -> Self {
        let sts = FakeSts::start().await;
        let setup = Setup { settings: wide_budgets(), scopes, ..Setup::fake(&sts) };
        let one = TestBroker::new(setup).await;
        let two = one.replica(sts.options()).await;
        Self { sts, one, two, wins: BTreeMap::new() }
    }

    fn owner(&self) -> &PgPool {
        &self.one.database.owner
    }

    async fn approved_lease(&self) -> LeaseId {
        let id = self.one.pending_lease().await;
        let answer = self.one.approve(id, &self.one.bob).await;
        assert_eq!(answer.body["state"], "approved", "{}", answer.body);
        id
    }

    /// Sends a person's decision, as a task of its own.
    async fn start_signing(
        &self,
        at: &TestBroker,
        id: LeaseId,
        key: &tests::keys::Key,
        decision: &'static str,
        head_start: usize,
    ) -> JoinHandle<Answer> {
        let signature = key.sign(decision, &self.one.statement(id).await);
        let body = json!({ "decision": decision, "signature": signature });
        let path = format!("/v1/leases/{id}/signatures");
        start(at, self.owner(), head_start, path, None, body)
    }

    fn start_claiming(&self, at: &TestBroker, id: LeaseId, wait: usize) -> JoinHandle<Answer> {
        let path = format!("/v1/leases/{id}/credentials");
        start(at, self.owner(), wait, path, Some(self.one.token.clone()), json!({}))
    }

    fn start_withdrawing(&self, at: &TestBroker, id: LeaseId, wait: usize) -> JoinHandle<Answer> {
        let path = format!("/v1/leases/{id}/withdraw");
        start(at, self.owner(), wait, path, Some(self.one.token.clone()), json!({}))
    }

    fn won(&mut self, who: &str) {
        *self.wins.entry(who.to_owned()).or_default() += 1;
    }

    /// Both outcomes can happen; which one does is the scheduler's, so it is told and not asserted.
    fn tell(&self, race: &str) {
        println!("{race}: {:?}", self.wins);
    }

    /// What the database says of a lease, once it has been found to be one story.
    async fn story(&self, id: LeaseId, delivered: usize) -> Story {
        let sql = "select l.state, l.signatures_needed::int8, l.approved_at is not null, l.issued_at is not null,
                          (select count(*) from signature g where g.lease_id = l.id and g.decision = 'approve'),
                          (select count(*) from signature g where g.lease_id = l.id and g.decision = 'refuse'),
                          array (select s.state from session s where s.lease_id = l.id),
                          (select coalesce(sum(s.deliveries), 0) from session s where s.lease_id = l.id)
                     from lease l where l.id = $1";
        let row: (String, i64, bool, bool, i64, i64, Vec<String>, i64) =
            sqlx::query_as(sql).bind(id.0).fetch_one(self.owner()).await.expect("a lease");
        let (state, needed, approved, issued, approvals, refusals, sessions, deliveries) = row;
        let story = Story { state, sessions, events: self.one.events(id).await };
        let state = story.state.as_str();

        // Signatures, and what they came to.
        assert_eq!(story.count("signature.accepted"), approvals + refusals, "{story:?}");
        assert_eq!(story.count("lease.approved"), i64::from(approved), "{story:?}");
        assert!(approvals <= needed && refusals <= 1 && (refusals == 1) == (state == "refused"));
        assert!(approved == (needed <= approvals && refusals == 0), "{story:?}");
        assert!(state != "pending" || !approved, "{story:?}");

        // How it ended: once, and an owner's hand writes no event.
        let ends = ["refused", "withdrawn", "lapsed", "failed", "expired", "denied"];
        for end in ends {
            let told = story.count(&format!("lease.{end}"));
            assert_eq!(told, i64::from(state == end), "{end}: {story:?}");
        }

        // At most one session, whose outcome is what the agent got.
        let live = i64::from(story.sessions == ["live"]);
        let failed = i64::from(story.sessions == ["failed"]);
        assert_eq!(live + failed, i64::try_from(story.sessions.len()).unwrap(), "{story:?}");
        assert!(story.sessions.is_empty() || approved, "{story:?}");
        assert_eq!(story.count("session.issuing"), live + failed, "{story:?}");
        assert_eq!((story.count("session.issued"), story.count("lease.issued")), (live, live));
        assert_eq!(story.count("session.dropped"), failed, "{story:?}");
        assert_eq!(issued, live == 1, "{story:?}");
        assert_eq!(deliveries, i64::try_from(delivered).unwrap(), "{story:?}");
        assert_eq!(delivered == 0, live == 0, "{story:?}");
        story
    }
}

/// What happened to one lease.
#[derive(Debug)]
struct Story {
    state: String,
    sessions: Vec<String>,
    events: Vec<String>,
}

impl Story {
    fn count(&self, event: &str) -> i64 {
        self.events.iter().filter(|it| *it == event).count().try_into().expect("few")
    }
}

/// Round trips to the database: how races get their head starts without a clock.
async fn pings(pool: &PgPool, count: usize) {
    for _ in 0..count {
        sqlx::query("select 1").execute(pool).await.expect("a ping");
    }
}

fn start(
    at: &TestBroker,
    pool: &PgPool,
    wait: usize,
    path: String,
    token: Option<String>,
    body: serde_json::Value,
) -> JoinHandle<Answer> {
    let (sender, pool) = (Sender::of(at), pool.clone());
    tokio::spawn(async move {
        pings(&pool, wait).await;
        sender.send(Method::POST, &path, token.as_deref(), &[], Some(body)).await
    })
}

fn delivered(answers: &[&Answer]) -> usize {
    answers.iter().filter(|it| it.body["session_token"].is_string()).count()
}

/// Of a rejection: that it says one of these reasons.
fn lost(answer: &Answer, reasons: &[&str]) {
    let problem = answer.problem().rsplit('/').next().unwrap_or_default();
    assert!(
        reasons.contains(&answer.reason()) || reasons.contains(&problem),
        "{}: {}",
        answer.status,
        answer.body
    );
}

// ------------------------------------------------------------------------------------------------- two signers

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_signers_at_once_where_one_is_enough_one_counts() {
    let mut track = Track::new().await;
    for round in 1..=ROUNDS {
        let id = track.one.pending_lease().await;
        let bob =
            track.start_signing(&track.one, id, &track.one.bob, "approve", round % 2 * 5).await;
        let carol =
            track.start_signing(&track.two, id, &track.one.carol, "approve", round % 3).await;
        let (bob, carol) = (bob.await.unwrap(), carol.await.unwrap());
        let (winner, loser) =
            if bob.status.is_success() { ("bob", &carol) } else { ("carol", &bob) };
        assert_ne!(bob.status.is_success(), carol.status.is_success());
        lost(loser, &["not-pending"]);
        assert_eq!(track.sts.calls(), round - 1, "signatures mint nothing");
        let story = track.story(id, 0).await;
        assert_eq!((story.state.as_str(), story.count("signature.rejected")), ("approved", 1));
        let claim = track.two.claim(id).await;
        assert_eq!(delivered(&[&claim]), 1, "{}", claim.body);
        track.story(id, 1).await;
        track.won(winner);
    }
    assert_eq!(track.sts.calls(), ROUNDS);
    track.tell("two signers, one needed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_signers_at_once_where_two_are_needed_both_count_and_the_last_one_approves() {
    let mut track = Track::for_two().await;
    for round in 1..=ROUNDS {
        let id = track.one.pending_lease().await;
        let bob =
            track.start_signing(&track.one, id, &track.one.bob, "approve", round % 2 * 5).await;
        // The same person again, at the other replica: one voice.
        let again =
            track.start_signing(&track.two, id, &track.one.bob, "approve", round % 2 * 5).await;
        let carol =
            track.start_signing(&track.two, id, &track.one.carol, "approve", round % 3).await;
        let claim = track.start_claiming(&track.one, id, round % 7);
        let (bob, again, carol) = (bob.await.unwrap(), again.await.unwrap(), carol.await.unwrap());
        assert_ne!(bob.status.is_success(), again.status.is_success());
        lost(if bob.status.is_success() { &again } else { &bob }, &["already-signed"]);
        assert!(carol.status.is_success(), "{}", carol.body);
        let claim = claim.await.unwrap();
        let early = delivered(&[&claim]);
        if early == 0 {
            lost(&claim, &["pending"]);
        }
        track.story(id, early).await;
        track.won(if carol.body["state"] == "pending" { "carol first" } else { "bob first" });
        track.won(if early == 1 { "claimed at once" } else { "claimed too early" });
        let later = track.one.claim(id).await;
        let got = early + delivered(&[&later]);
        assert_eq!(track.story(id, got).await.state, "issued");
        assert_eq!(track.sts.calls(), round);
    }
    track.tell("two signers, two needed, and a claim");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_approval_and_a_refusal_at_once_one_decides() {
    let mut track = Track::new().await;
    for round in 0..ROUNDS {
        let id = track.one.pending_lease().await;
        let (first, second) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let yes = track.start_signing(&track.one, id, &track.one.bob, "approve", first).await;
        let no = track.start_signing(&track.two, id, &track.one.carol, "refuse", second).await;
        let claim = track.start_claiming(&track.two, id, round % 5);
        let (yes, no, claim) = (yes.await.unwrap(), no.await.unwrap(), claim.await.unwrap());
        assert_ne!(yes.status.is_success(), no.status.is_success());
        lost(if yes.status.is_success() { &no } else { &yes }, &["not-pending"]);
        let story = track.story(id, delivered(&[&claim])).await;
        assert_eq!(story.state == "refused", no.status.is_success(), "{story:?}");
        if no.status.is_success() {
            lost(&claim, &["pending", "refused"]);
            lost(&track.one.claim(id).await, &["refused"]);
        }
        track.won(if no.status.is_success() { "refused" } else { "approved" });
    }
    // One call for each lease that was issued, and none for the others.
    let issued = sqlx::query_scalar::<_, i64>("select count(*) from session");
    let issued = issued.fetch_one(track.owner()).await.unwrap();
    assert_eq!(i64::try_from(track.sts.calls()).unwrap(), issued);
    track.tell("approve and refuse");
}

// ------------------------------------------------------------------------------------------------------ claims

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_claims_at_once_one_mints() {
    let mut track = Track::new().await;
    for round in 1..=ROUNDS {
        let id = track.approved_lease().await;
        let one = track.start_claiming(&track.one, id, round % 2);
        let two = track.start_claiming(&track.two, id, (round + 1) % 2);
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        assert_eq!(delivered(&[&one, &two]), 1, "{} {}", one.body, two.body);
        let loser = if delivered(&[&one]) == 1 { &two } else { &one };
        lost(loser, &["already-issued"]);
        assert_eq!(track.story(id, 1).await.state, "issued");
        assert_eq!(track.sts.calls(), round);
        track.won(if delivered(&[&one]) == 1 { "one" } else { "two" });
    }
    track.tell("two claims");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_claim_and_a_withdrawal_at_once_one_wins() {
    let mut track = Track::new().await;
    for round in 0..ROUNDS {
        let id = track.approved_lease().await;
        let before = track.sts.calls();
        let claim = track.start_claiming(&track.one, id, 0);
        let back = track.start_withdrawing(&track.two, id, round % 8);
        let (claim, back) = (claim.await.unwrap(), back.await.unwrap());
        let got = delivered(&[&claim]);
        assert_ne!(got == 1, back.status.is_success(), "{} {}", claim.body, back.body);
        let story = track.story(id, got).await;
        assert_eq!(story.state, if got == 1 { "issued" } else { "withdrawn" });
        assert_eq!(track.sts.calls() - before, got);
        track.won(if got == 1 { "claimed" } else { "withdrawn" });
    }
    track.tell("claim and withdraw");
}

// --------------------------------------------------------------------------------------- what ends a pending one

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_signature_and_a_withdrawal_at_once_the_withdrawal_is_never_undone() {
    let mut track = Track::new().await;
    for round in 0..ROUNDS {
        let id = track.one.pending_lease().await;
        let sign = track.start_signing(&track.one, id, &track.one.bob, "approve", 0).await;
        let back = track.start_withdrawing(&track.two, id, (round * 7) % 41);
        let claim = track.start_claiming(&track.two, id, 5 + round % 9);
        let (sign, back, claim) = (sign.await.unwrap(), back.await.unwrap(), claim.await.unwrap());
        let got = delivered(&[&claim]);
        let story = track.story(id, got).await;
        // An approved lease can be withdrawn too, until it is claimed.
        assert_eq!(story.state == "withdrawn", back.status.is_success(), "{story:?}");
        assert_eq!(story.count("lease.approved") == 1, sign.status.is_success(), "{story:?}");
        assert!(story.state != "withdrawn" || story.sessions.is_empty(), "{story:?}");
        if !sign.status.is_success() {
            lost(&sign, &["not-pending"]);
        }
        track.won(match (back.status.is_success(), sign.status.is_success()) {
            (true, true) => "withdrawn after the signature",
            (true, false) => "withdrawn before it",
            _ => "claimed before the withdrawal",
        });
    }
    track.tell("sign, withdraw and claim");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_signature_and_a_lapse_at_once_one_wins() {
    // A task lasts eight hours, and each round takes half of one.
    const BROKERS: usize = 3;
    let mut wins = BTreeMap::<_, usize>::new();
    for _ in 0..BROKERS {
        let track = Track::new().await;
        for round in 0..ROUNDS / BROKERS {
            let id = track.one.pending_lease().await;
            // The last moment in which a signature is in time.
            track.one.clock.advance(Duration::minutes(30));
            let sign = track.start_signing(&track.one, id, &track.one.bob, "approve", 0).await;
            let (clock, broker) = (track.one.clock.clone(), track.two.broker.clone());
            let pool = track.owner().clone();
            let sweep = tokio::spawn(async move {
                pings(&pool, round % 7).await;
                clock.advance(Duration::SECOND);
                broker.sweep().await.expect("swept");
            });
            let sign = sign.await.unwrap();
            sweep.await.unwrap();
            // A sweep leaves what somebody holds to the next.
            track.one.broker.sweep().await.expect("swept");
            let story = track.story(id, 0).await;
            let state = if sign.status.is_success() { "approved" } else { "lapsed" };
            assert_eq!(story.state, state, "{story:?}");
            if state == "lapsed" {
                lost(&sign, &["too-late"]);
            }
            track.sts.set(Mood::Good { now: track.one.clock.now() });
            let claim = track.two.claim(id).await;
            assert_eq!(delivered(&[&claim]) == 1, state == "approved", "{}", claim.body);
            track.story(id, delivered(&[&claim])).await;
            *wins.entry(state).or_default() += 1;
        }
    }
    println!("sign and lapse: {wins:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_signature_and_a_revocation_at_once_the_revocation_stays() {
    let mut track = Track::new().await;
    for round in 0..ROUNDS {
        let id = track.one.pending_lease().await;
        let sign = track.start_signing(&track.one, id, &track.one.bob, "approve", 0).await;
        let claim = track.start_claiming(&track.two, id, 5 + round % 9);
        let pool = track.owner().clone();
        let revoke = tokio::spawn(async move {
            pings(&pool, (round * 7) % 41).await;
            stop(&pool, REVOKE, id).await;
        });
        let (sign, claim) = (sign.await.unwrap(), claim.await.unwrap());
        revoke.await.unwrap();
        let got = delivered(&[&claim]);
        let story = track.story(id, got).await;
        assert_eq!(story.state, "revoked", "{story:?}");
        assert_eq!(story.count("lease.approved") == 1, sign.status.is_success(), "{story:?}");
        if !sign.status.is_success() {
            lost(&sign, &["not-pending"]);
        }
        lost(&track.one.claim(id).await, &["ended"]);
        track.won(match (sign.status.is_success(), got) {
            (false, _) => "revoked before the signature",
            (true, 0) => "revoked after the signature",
            (true, _) => "revoked after the delivery",
        });
    }
    track.tell("sign, claim and revoke");
}

// ----------------------------------------------------------------------------------- what stops an approved one

const REVOKE: &str =
    "update lease set state = 'revoked', ended_at = now(), end_reason = 'stopped' where id = $1";
const FREEZE: &str = "insert into \"freeze\" (id, kind, reason, created_by, created_at)
    select gen_random_uuid(), 'all', 'stop', 'carol', now() from lease where id = $1";
const REVOKE_KEY: &str =
    "update person_key set revoked_at = enrolled_at from lease where person = 'bob' and id = $1";
const DISABLE_SIGNER: &str =
    "update person set disabled_at = created_at from lease where handle = 'bob' and id = $1";
const DISABLE_SPONSOR: &str =
    "update person set disabled_at = created_at from lease where handle = 'alice' and id = $1";
const END_TASK: &str =
    "update task t set ended_at = now() from lease l where l.task_id = t.id and l.id = $1";

const MEND: &str = "update person_key set revoked_at = null; update person set disabled_at = null; alter table task disable trigger task_guard; update task set ended_at = null";

async fn stop(pool: &PgPool, sql: &'static str, id: LeaseId) {
    let stopped = sqlx::query(sql).bind(id.0).execute(pool).await.expect(sql);
    assert_eq!(stopped.rows_affected(), 1, "{sql}");
}

/// Claims and stops at once, with STS answering at some moment in between. What was stopped before STS was let to
/// answer is never delivered, and what was stopped before the claim was sent never gets to STS.
async fn claim_and_stop(how: &'static str, name: &str) {
    let mut track = Track::new().await;
    for round in 0..ROUNDS {
        let id = track.approved_lease().await;
        let calls = track.sts.calls();
        track.sts.hold().await;
        let pool = track.owner().clone();
        // One of them now and then has a long head start; and the stop comes early, in the middle, or late.
        let (wait, sent_late) = ((round * 7) % 29, round % 10 == 0);
        let stopping = tokio::spawn(async move {
            pings(&pool, if sent_late { 0 } else { wait }).await;
            stop(&pool, how, id).await;
            Instant::now()
        });
        let (sender, token) = (Sender::of(&track.one), track.one.token.clone());
        let pool = track.owner().clone();
        let claiming = tokio::spawn(async move {
            pings(&pool, if sent_late { 12 } else { 0 }).await;
            let sent = Instant::now();
            let path = format!("/v1/leases/{id}/credentials");
            (sent, sender.send(Method::POST, &path, Some(&token), &[], Some(json!({}))).await)
        });
        pings(track.two.pool(), (round * 11) % 31).await;
        let released = Instant::now();
        track.sts.release();
        let (sent, claim) = claiming.await.unwrap();
        let stopped = stopping.await.unwrap();

        let (got, called) = (delivered(&[&claim]), track.sts.calls() - calls);
        let story = track.story(id, got).await;
        assert_eq!(called, story.sessions.len(), "{name}: {story:?}");
        assert!(
            released < stopped || got == 0,
            "{name}: delivered after it was stopped: {story:?}"
        );
        assert!(sent < stopped || called == 0, "{name}: claimed after it was stopped: {story:?}");
        if got == 0 {
            lost(&claim, &["denied", "frozen", "ended", "unauthenticated", "task-ended"]);
        }
        // Once stopped there is no second way in, and nothing is delivered again.
        let again = [track.one.claim(id).await, track.two.claim(id).await];
        if how == REVOKE || how == FREEZE || how == DISABLE_SPONSOR || how == END_TASK {
            assert_eq!(delivered(&[&again[0], &again[1]]), 0, "{name}: {}", again[0].body);
        }
        assert_eq!(track.sts.calls() - calls, called, "{name}");
        track.one.thaw().await;
        track.one.as_owner(MEND).await;
        track.won(match (called, got) {
            (0, _) => "stopped before STS",
            (_, 0) => "stopped while STS was asked",
            _ => "delivered before the stop",
        });
    }
    track.tell(name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_while_the_lease_is_revoked_is_delivered_before_it_or_not_at_all() {
    claim_and_stop(REVOKE, "claim and revoke").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_while_everything_is_frozen_is_delivered_before_it_or_not_at_all() {
    claim_and_stop(FREEZE, "claim and freeze").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_while_the_signers_key_is_revoked_is_delivered_before_it_or_not_at_all() {
    claim_and_stop(REVOKE_KEY, "claim and revoke the key").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_while_the_signer_is_disabled_is_delivered_before_it_or_not_at_all() {
    claim_and_stop(DISABLE_SIGNER, "claim and disable the signer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_while_the_sponsor_is_disabled_is_delivered_before_it_or_not_at_all() {
    claim_and_stop(DISABLE_SPONSOR, "claim and disable the sponsor").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_while_its_task_is_ended_is_delivered_before_it_or_not_at_all() {
    claim_and_stop(END_TASK, "claim and end the task").await;
}

// ---------------------------------------------------------------------------------- a stop that holds the lease

/// Stops the lease in a transaction that locks it first, and has the claim meet that lock: with STS asked, or before.
async fn stop_behind_a_lock(how: &'static str, asked: bool) {
    let track = Track::new().await;
    let id = track.approved_lease().await;
    track.sts.hold().await;
    let early = asked.then(|| track.start_claiming(&track.one, id, 0));
    track.sts.arrived(usize::from(asked)).await;
    let mut stopping = track.owner().begin().await.unwrap();
    sqlx::query("select from lease where id = $1 for update")
        .bind(id.0)
        .execute(&mut *stopping)
        .await
        .unwrap();
    let claim = early.unwrap_or_else(|| track.start_claiming(&track.one, id, 0));
    track.sts.release();
    let sql = "select exists (select from pg_locks l join pg_stat_activity a using (pid) where not l.granted and a.datname = current_database())";
    until("the claim meets the lock", std::time::Duration::from_secs(20), async || {
        sqlx::query_scalar(sql).fetch_one(track.owner()).await.unwrap()
    })
    .await;
    sqlx::query(how).bind(id.0).execute(&mut *stopping).await.unwrap();
    stopping.commit().await.unwrap();
    let claim = claim.await.unwrap();
    let story = track.story(id, delivered(&[&claim])).await;
    assert_eq!(delivered(&[&claim]), 0, "delivered after {how}: {story:?}");
    assert_eq!(track.sts.calls(), usize::from(asked), "asked STS after {how}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_waited_for_a_revocation_sees_it() {
    stop_behind_a_lock(REVOKE, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_minted_while_a_revocation_held_the_lease_is_dropped() {
    stop_behind_a_lock(REVOKE, true).await;
}

/// Whoever waits for a lock in PostgreSQL goes on with what was so before the wait. The lease row itself is read anew;
/// what functions of the same statement look up is not.
async fn every_stop_behind_a_lock(asked: bool) {
    for how in [FREEZE, REVOKE_KEY, DISABLE_SIGNER, DISABLE_SPONSOR, END_TASK] {
        stop_behind_a_lock(how, asked).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_waited_for_the_lease_sees_what_stopped_it_meanwhile() {
    every_stop_behind_a_lock(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_minted_is_dropped_if_it_was_stopped_while_its_outcome_waited_for_the_lease() {
    every_stop_behind_a_lock(true).await;
}
