//! `agentapi-operator run`: waits for its turn, leads, and leaves in order. Wiring only.
use crate::{
    apply::Applier,
    config::Config,
    context::{Context, Failures, Tried},
    controllers::{self, watches},
    egress::Closed,
    health::Health,
    isolation,
    keys::Keyring,
    lease::{Elector, Outcome},
    metrics::Metrics,
    shutdown, system, tenancy,
};
use agentapi_crds::names;
use anyhow::{Context as _, bail};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Config as Cluster,
    runtime::events::{Recorder, Reporter},
};
use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longer than any answer of the API server is silent: it ends a watch after 290 seconds. A request that its machine took
/// with it would never end otherwise, and neither would the loop that waits for it.
const API_SERVER_SILENCE: Duration = Duration::from_secs(300);

/// Run until a signal, or until another replica leads.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::token().context("can't listen for signals")?;
    let metrics = Metrics::new().context("can't make the metrics")?;
    let health = Health::new(metrics.clone());
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("can't listen on {}", config.listen))?;
    let probes = tokio::spawn(health.clone().serve(listener, stop.clone()));
    let client = client().await.context(
        "can't find the Kubernetes API; run in a pod with a ServiceAccount, or set KUBECONFIG to a kubeconfig file",
    )?;
    let identity = config.pod_name.clone().unwrap_or_else(|| format!("operator-{}", Uuid::new_v4()));
    let mut elector = Elector::new(
        client.clone(),
        &config.system_namespace,
        names::OPERATOR,
        identity.clone(),
        config.lease_duration(),
        Timestamp::now,
    );
    let result = match wait_for_turn(&mut elector, &health, &stop).await {
        Turn::Ours => {
            tracing::info!(identity, "leading");
            metrics.leader.set(1);
            let result = lead(config, client, metrics.clone(), identity, &mut elector, &stop).await;
            metrics.leader.set(0);
            result
        }
        Turn::Stopped => Ok(()),
    };
    stop.cancel();
    if tokio::time::timeout(Duration::from_secs(2), probes).await.is_err() {
        tracing::debug!("a probe connection was still open");
    }
    result
}

async fn client() -> kube::Result<Client> {
    let mut cluster = Cluster::infer().await.map_err(kube::Error::InferConfig)?;
    cluster.read_timeout = Some(API_SERVER_SILENCE);
    cluster.reset_reader_on_write = true;
    Client::try_from(cluster)
}

enum Turn {
    Ours,
    Stopped,
}

async fn wait_for_turn(elector: &mut Elector, health: &Health, stop: &CancellationToken) -> Turn {
    loop {
        let attempt = tokio::select! {
            () = stop.cancelled() => return Turn::Stopped,
            attempt = tokio::time::timeout(elector.period() * 3, elector.attempt()) => attempt,
        };
        match attempt {
            Ok(Ok(Outcome::Leading)) => {
                health.set_ready(true);
                return Turn::Ours;
            }
            Ok(Ok(Outcome::Standby)) => health.set_ready(true),
            Ok(Err(error)) => tracing::warn!(%error, "can't take part in the leader election"),
            Err(_) => tracing::warn!("taking part in the leader election takes too long"),
        }
        tokio::select! {
            () = stop.cancelled() => return Turn::Stopped,
            () = tokio::time::sleep(elector.period()) => {}
        }
    }
}

async fn lead(
    config: Config,
    client: Client,
    metrics: Arc<Metrics>,
    identity: String,
    elector: &mut Elector,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (keys, signer) = system::ensure(&client, &config.system_namespace).await?;
    let database = tenancy::pool(&config.database_url)?;
    let tenant_database = tenant_database(&config, &database);
    let closed = Closed::new([], &config.system_namespace);
    let mut watches = watches(&client);
    let mut watching = watches.start();
    let reporter = Reporter { controller: names::OPERATOR.into(), instance: Some(identity) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        config,
        tenant_database,
        database,
        postgres_up: AtomicBool::new(true),
        applier: Applier::new(metrics.clone()),
        metrics,
        clock: Timestamp::now,
        stores: watches.stores,
        triggers: watches.triggers,
        keys: Keyring::new(keys),
        signer,
        failures: Failures::default(),
        logins: Tried::default(),
        isolation: isolation::State::new(closed),
    });
    let ours = stop.child_token();
    let queues = watches.queues;
    let mut controllers = tokio::spawn({
        let (context, ours) = (context.clone(), ours.clone());
        async move {
            // A reconcile that does not see everything yet would take existing objects for missing ones.
            tokio::select! {
                () = ours.cancelled() => {}
                () = begin(&context) => controllers::run(context.clone(), queues, ours.clone()).await,
            }
        }
    });
    let lost = tokio::select! {
        () = stop.cancelled() => false,
        () = hold(elector) => true,
        _ = &mut controllers => bail!("the controllers have ended by themselves"),
        _ = watching.join_next() => bail!("a watch has ended by itself"),
    };
    ours.cancel();
    if lost {
        // Whoever leads now must not meet writes of ours.
        controllers.abort();
        bail!("another replica leads, or the lease could not be renewed in time; starting over as a standby");
    }
    if tokio::time::timeout(shutdown::DEADLINE, &mut controllers).await.is_err() {
        tracing::warn!("some reconciles were still under way at the deadline; they are taken up again");
        controllers.abort();
    }
    context.database.close().await;
    if let Err(error) = elector.release().await {
        tracing::warn!(%error, "can't give the lease back; a standby takes over when it runs out");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The first connection takes longer than all later ones; without this, tenants would be reported as not ready
/// whenever the operator starts.
async fn begin(context: &Context) {
    // Ranges too: a policy that was built without them would be wrong for a moment.
    tokio::join!(all_stores(context), controllers::database::first_contact(context), isolation::ranges::first(context));
}

async fn all_stores(context: &Context) {
    let stores = &context.stores;
    let (organizations, workspaces, connections, policies, namespaces) = tokio::join!(
        stores.organizations.wait_until_ready(),
        stores.workspaces.wait_until_ready(),
        stores.connections.wait_until_ready(),
        stores.policies.wait_until_ready(),
        stores.namespaces.wait_until_ready(),
    );
    let failed = [organizations, workspaces, connections, policies, namespaces].into_iter().find_map(Result::err);
    if let Some(error) = failed {
        tracing::error!(%error, "a watch ended before its first list");
    }
}

/// Renew the lease; returns when this replica can't be sure to lead any more.
async fn hold(elector: &mut Elector) {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(elector.period()).await;
        let began = Instant::now();
        // A standby waits for the whole duration from the renewal that it saw: leave a quarter earlier.
        let patience = (elector.period() * 3).saturating_sub(renewed.elapsed());
        match tokio::time::timeout(patience, elector.attempt()).await {
            Ok(Ok(Outcome::Leading)) => renewed = began,
            Ok(Ok(Outcome::Standby)) => return,
            Ok(Err(error)) => tracing::warn!(%error, "can't renew the lease"),
            Err(_) => tracing::warn!("renewing the lease takes too long"),
        }
        if renewed.elapsed() >= elector.period() * 3 {
            return;
        }
    }
}

/// Where tenants reach Postgres, and the database's name.
fn tenant_database(config: &Config, pool: &sqlx::PgPool) -> (String, String) {
    let options = pool.connect_options();
    let host =
        config.tenant_database_host.clone().unwrap_or_else(|| format!("{}:{}", options.get_host(), options.get_port()));
    (host, options.get_database().unwrap_or("agentapi").to_owned())
}
