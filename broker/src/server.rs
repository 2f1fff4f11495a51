//! Puts the parts together and runs them: the same for `brokerd serve` and `brokerd dev`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::aws::{Access, AwsOptions, Revoker, Sts};
use crate::broker::{Broker, Cloud};
use crate::clock::Clock;
use crate::config::Config;
use crate::doctor::rounds::Rounds;
use crate::identity::Tokens;
use crate::sequencer::Sequencer;
use crate::{http, store};

const SWEEP_EVERY: Duration = Duration::from_secs(1);
const STOP_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at whether something may be served, and between two rounds to the anchors when somebody waits.
const MOMENT: Duration = Duration::from_millis(100);
const PARTITIONS_EVERY: Duration = Duration::from_hours(6);
/// How long requests under way may take to end when we are told to stop, beyond a call to STS.
const GRACE: Duration = Duration::from_secs(3);
/// After a failure in the background, before the next try.
const PAUSE: Duration = Duration::from_secs(2);

/// The server's two logins to its database.
#[derive(Clone, Copy, Debug)]
pub struct Databases<'a> {
    /// `broker_app`.
    pub app: &'a str,
    /// `broker_sequencer`.
    pub sequencer: &'a str,
}

/// Composes a broker. Nothing is connected yet.
pub async fn compose(
    config: Config,
    databases: Databases<'_>,
    aws: AwsOptions,
    clock: Clock,
) -> anyhow::Result<Arc<Broker>> {
    let pool = store::pool(databases.app).context("BROKER_DATABASE_URL is not a PostgreSQL URL")?;
    let settings = &config.settings;
    let tokens =
        Tokens::load(&settings.instance_key, &settings.former_instance_keys, &settings.origin)?;
    let access = Access::new(settings.aws.clone(), aws);
    let sts = Sts::new(&access, clock.clone()).await;
    let log = Sequencer::new(&config, databases.sequencer, &access, clock.clone())?;
    let cloud = Cloud { sts, revoker: Revoker::new(access) };
    Ok(Arc::new(Broker::new(config, pool, cloud, tokens, log, clock)))
}

/// What the doctor looks with, as `compose` has it.
pub fn rounds(config: &Config, aws: AwsOptions) -> Rounds {
    Rounds::new(Access::new(config.settings.aws.clone(), aws))
}

/// Serves until `shutdown`, then lets requests under way end, for a while.
pub async fn serve(
    broker: Arc<Broker>,
    rounds: Rounds,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    broker.log.hold_back("it is being asked".to_owned());
    let background = [
        tokio::spawn(sweep_for_ever(broker.clone())),
        tokio::spawn(watch_for_ever(broker.clone())),
        tokio::spawn(make_partitions_for_ever(broker.clone())),
        tokio::spawn(stop_for_ever(broker.clone())),
        tokio::spawn(sequence_for_ever(broker.clone())),
        tokio::spawn(anchor_for_ever(broker.clone())),
        tokio::spawn(make_rounds_for_ever(broker.clone(), rounds)),
    ];
    let grace = broker.config.settings.aws.call_timeout.std() + GRACE;
    let (told, mut hears) = watch::channel(());
    let graceful =
        axum::serve(listener, http::router(broker.clone())).with_graceful_shutdown(async move {
            shutdown.await;
            drop(told);
        });
    let served = tokio::select! {
        served = async { graceful.await } => served,
        () = async {
            let _ = hears.changed().await;
            tokio::time::sleep(grace).await;
        } => {
            tracing::warn!("stopped with requests under way; what they claimed and did not settle is swept");
            Ok(())
        }
    };
    for task in background {
        task.abort();
    }
    if tokio::time::timeout(GRACE, broker.tell_all_refusals()).await.is_err() {
        tracing::warn!("stopped before the last refusals were counted in the record");
    }
    broker.pool.close().await;
    broker.log.pool.close().await;
    broker.log.readers.close().await;
    served.context("serving failed")
}

/// Waits until something may be served: what a restored database says of acts and stops is of before.
async fn until_open(broker: &Broker) {
    while broker.log.gate().is_err() {
        tokio::time::sleep(MOMENT).await;
    }
}

async fn sweep_for_ever(broker: Arc<Broker>) {
    loop {
        until_open(&broker).await;
        match broker.sweep().await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "swept"),
            Err(error) => tracing::warn!(?error, "sweep failed"),
        }
        broker.tell_refusals().await;
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}

/// Tells AWS what is stopped. A role that AWS is slow about holds up no other.
async fn stop_for_ever(broker: Arc<Broker>) {
    loop {
        until_open(&broker).await;
        match broker.stop_sessions().await {
            Ok(mut roles) => roles.detach_all(),
            Err(error) => tracing::warn!(?error, "stopping sessions failed"),
        }
        let _ = tokio::time::timeout(STOP_EVERY, broker.something_to_stop()).await;
    }
}

async fn sequence_for_ever(broker: Arc<Broker>) {
    while let Err(error) = broker.log.compare().await {
        tracing::warn!(%error, "nothing is served before the database is compared with the log's anchors");
        broker.log.hold_back(error.to_string());
        tokio::time::sleep(PAUSE).await;
    }
    broker.log.run().await;
}

async fn anchor_for_ever(broker: Arc<Broker>) {
    let every = broker.config.settings.log.anchor_every.std();
    loop {
        // What somebody waits for has to be under a checkpoint first.
        if let Err(error) = broker.log.tick().await {
            tracing::warn!(%error, "events get no place in the log");
        }
        if let Err(error) = broker.log.anchor().await {
            tracing::warn!(%error, "the log is not anchored");
        }
        // Somebody who waits is no reason to ask an anchor that does not answer without a pause.
        tokio::time::sleep(MOMENT).await;
        let _ = tokio::time::timeout(every, broker.log.somebody_waits()).await;
    }
}

async fn watch_for_ever(broker: Arc<Broker>) {
    loop {
        if let Err(error) = broker.watch().await {
            tracing::warn!(?error, "listening for changes failed");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn make_rounds_for_ever(broker: Arc<Broker>, mut rounds: Rounds) {
    loop {
        if rounds.has_looked() {
            tokio::time::sleep(broker.config.settings.doctor.every.std()).await;
        }
        rounds.go(&broker).await;
    }
}

async fn make_partitions_for_ever(broker: Arc<Broker>) {
    loop {
        let pause = match store::make_partitions(&broker.pool, broker.clock.now()).await {
            Ok(()) => PARTITIONS_EVERY,
            Err(error) => {
                tracing::warn!(?error, "making event partitions failed");
                PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}
