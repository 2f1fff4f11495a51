//! `brokerd recover`: a database that is behind its log, because it was restored, is taken up again.

use anyhow::Context as _;
use sqlx::Connection as _;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::audit::Scribe;
use crate::aws::{Access, AwsOptions};
use crate::clock::Clock;
use crate::config::Config;
use crate::lease::FreezeKind;
use crate::sequencer::{Behind, Sequencer};
use crate::store::{self, NewFreeze};

/// What there was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The database is not behind.
    Nothing,
    /// It is, and nobody said yes.
    Asked,
    Done,
}

/// The logins that it takes.
#[derive(Clone, Copy, Debug)]
pub struct Logins<'a> {
    pub admin: &'a str,
    pub sequencer: &'a str,
}

/// Says how far the database is behind its anchors; with `yes` it voids everything that is open, freezes everything, and lets the
/// log go on under a new name.
pub async fn run(
    config: &Config,
    logins: Logins<'_>,
    clock: &Clock,
    yes: bool,
    mut say: impl FnMut(&str),
) -> anyhow::Result<Outcome> {
    let access = Access::new(config.settings.aws.clone(), AwsOptions::default());
    let log = Sequencer::new(config, logins.sequencer, &access, clock.clone())?;
    let (behind, silent) = log.behind().await?;
    for silent in &silent {
        say(&format!("warning: an anchor that may have more: {silent}"));
    }
    let Some(behind) = behind else {
        // Or it is not what was signed, which nobody takes up again.
        log.compare().await.context(
            "the database is not behind its anchors, and yet no server will serve it: `brokerd audit verify` says what is wrong and since when; restore a backup of before, then recover that",
        )?;
        say("the database is not behind its anchors: there is nothing to recover");
        return Ok(Outcome::Nothing);
    };
    let last = last_event(&log).await?;
    tell(&behind, last, &mut say);
    if !yes {
        say(
            "\nstop every server, keep a copy of this database, then run it again with --yes: it voids every open lease, act and task, freezes everything, and lets the log go on under a new name",
        );
        return Ok(Outcome::Asked);
    }
    let now = crate::broker::whole_microseconds(clock.now());
    let scribe = Scribe { source: config.settings.origin.clone() };
    let mut owner = store::admin(logins.admin).await?;
    // Those too that are in no scope any more.
    let mut roles = store::roles_of_leases(&mut owner).await?;
    roles.extend(config.catalogue.scopes().map(|it| it.role_arn.clone()));
    roles.sort();
    roles.dedup();
    let new = NewFreeze {
        id: Uuid::now_v7(),
        kind: FreezeKind::All,
        target: None,
        reason: "the database was taken up again after events were lost",
        person: "operator",
        roles: &roles,
        // Sessions that we know nothing of are refused too.
        cut_off: config.settings.aws.cut_off(now),
    };
    let mut transaction = owner.begin().await?;
    let voided = store::void_everything(&mut transaction, &scribe, new, now).await?;
    let head = log.go_on(&mut transaction, &behind, now).await?;
    transaction.commit().await?;
    let anchored = log.anchor().await?;
    say(&format!(
        "\nvoided {} leases, {} acts and {} tasks; frozen: everything (freeze {}); the log goes on as {:?} from entry {}",
        voided.leases, voided.acts, voided.tasks, new.id, head.origin, behind.head.size
    ));
    if anchored == 0 {
        say("warning: no anchor took the new checkpoint; servers try again: see to the anchors");
    }
    say(
        "next: start the servers; they tell AWS to refuse every session. Compare people, keys and freezes with what you know (docs/log.md, \"After a loss\"), then have an admin thaw the freeze",
    );
    Ok(Outcome::Done)
}

/// When the newest event that is left was recorded.
async fn last_event(log: &Sequencer) -> anyhow::Result<Option<OffsetDateTime>> {
    let head = store::log::head(&log.pool).await?.context("there is a log")?;
    let last = store::log::entries(&log.pool, head.size.saturating_sub(1), 1).await?.pop();
    Ok(last.map(|it| it.recorded_at))
}

fn tell(behind: &Behind, last: Option<OffsetDateTime>, say: &mut impl FnMut(&str)) {
    let (had, anchored) = (behind.head.size, behind.anchored.checkpoint.size);
    let last = last.map_or_else(|| "nothing".to_owned(), |it| it.to_string());
    say(&format!(
        "the database is behind its log: it has {had} entries of {:?}, and an anchor has a checkpoint of {anchored} entries of {:?}",
        behind.head.origin, behind.anchored.checkpoint.origin
    ));
    say(&format!(
        "missing: entries {had} to {}, at least; the last one that is left was recorded at {last}",
        anchored.saturating_sub(1)
    ));
}
