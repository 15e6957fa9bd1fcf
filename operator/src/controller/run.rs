//! Wiring: client, watches, planner, controller and the HTTP server, until a signal ends them.

use std::{convert::identity, fmt::Debug, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use futures::{
    Stream, StreamExt, TryStreamExt,
    channel::mpsc::{UnboundedSender, unbounded},
    future::{self, BoxFuture, FutureExt},
    stream::{self, BoxStream},
};
use k8s_openapi::api::{core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        Controller, WatchStreamExt,
        controller::{self, Error as ControllerError},
        events::{Recorder, Reporter},
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    apply::Memory,
    build::MANAGER,
    class_status,
    election::Election,
    images::Checker,
    nodes::Nodes,
    observe::{GuardedClass, GuardedDeployment, Node, Pod, World},
    planner::{Planner, Plans},
    pool::PoolDeployment,
    reconcile::{error_policy, reconcile},
    scope::{Events, Scope, paged, source},
    status::shorten,
    verify::{self, Devices, Verifier},
};
use crate::{
    args::RunArgs,
    context::{Backoff, Context, Reported},
    events::Publisher,
    hardware::Grace,
    http,
    metrics::Metrics,
    registry::{Lookups, source::Registries},
};

/// Events of one object within this time lead to one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(200);

type Trigger = UnboundedSender<ObjectRef<GuardedDeployment>>;

/// Longest time that reconciles get to end after a signal. With what follows it stays below the 30 s that Kubernetes
/// gives a pod.
const DRAIN: Duration = Duration::from_secs(20);

/// Runs the operator until SIGTERM or SIGINT.
///
/// It reads the cluster at once, and writes while it holds the Lease. When it loses the Lease it ends with an error and
/// counts on being started again: nothing that was begun as leader goes on as something else.
///
/// # Errors
/// When the API server cannot be found, the address is taken, the Lease is lost, or a part ends that should not.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let election = Election::new(&args, &metrics).await?;
    let client = election.client.clone();
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let scope = Scope::new(args.watch_namespaces.clone());
    tracing::info!(listen = %args.listen, version = env!("CARGO_PKG_VERSION"), ?scope, "started");

    let (triggers, triggered) = unbounded();
    let (hawkeye_deployments, deployment_writer) = reflector::store();
    let marks = Marks::default();
    let dirty = Arc::clone(&marks.dirty);
    let (world, watches) = watches(
        &client,
        &scope,
        hawkeye_deployments.clone(),
        &marks,
        &triggers,
        &metrics,
    );
    let verifier = verifier(&world, &marks, &triggers, &args, &metrics);
    let memory = Arc::new(Memory::default());
    let (sender, plans) = watch::channel(Plans::default());
    let (indexes, index) = watch::channel(Arc::default());
    let class_status = match scope {
        Scope::Cluster => class_status::keep(client.clone(), world.classes.clone(), index).boxed(),
        // Without the right to, and maybe beside another operator that does.
        Scope::Namespaces(_) => future::pending().boxed(),
    };
    let (checker, lookups) = images(&args, &client, &dirty, &metrics)?;
    let planner = Planner {
        checker,
        world: world.clone(),
        models: args.models(),
        dirty: Arc::clone(&dirty),
        grace: Grace::new(args.label_grace),
        plans: sender,
        indexes,
        triggers,
        memory: Arc::clone(&memory),
        metrics: metrics.clone(),
    };
    let context = Arc::new(Context {
        events: Publisher::new(client.clone(), reporter(&args)),
        client: client.clone(),
        world,
        images: args.images(),
        models: args.models(),
        namespace: args.pod_namespace.clone(),
        blind_spot: scope.blind_spot(),
        plans: plans.clone(),
        dirty: Arc::clone(&dirty),
        memory,
        devices: Arc::clone(&verifier.devices),
        backoff: Backoff::default(),
        invalid: Reported::default(),
        metrics: metrics.clone(),
    });

    // It is served until the end: a replica that ends is alive, too.
    let (end, at_end) = watch::channel(false);
    let mut server = pin!(http::serve(listener, metrics.clone(), plans, until(at_end)));
    let work = Work {
        changes: deployment_stream(&client, &scope, deployment_writer, dirty, metrics).boxed(),
        triggered: triggered.boxed(),
        hawkeye_deployments,
        class_status,
        verifier: verifier.run(verify::ask).map(|_| ()).boxed(),
        concurrency: args.concurrency,
        recorder: Recorder::new(client.clone(), reporter(&args)),
        context,
    };
    let result = tokio::select! {
        result = lead(election, work) => result,
        () = watches => Err(anyhow!("a watch has ended")),
        () = lookups => Err(anyhow!("the lookups of images have ended")),
        result = planner.run() => Err(anyhow!("the planner has ended: {result:?}")),
        result = &mut server => Err(anyhow!("the HTTP server has ended: {result:?}")),
    };
    if let Err(error) = &result {
        tracing::error!(%error, "ending, and nothing more is written");
        return result;
    }
    end.send_replace(true);
    server.await.context("the HTTP server failed")?;
    tracing::info!("ended");
    Ok(())
}

/// What the planner asks about images, and the task that asks registries.
fn images(
    args: &RunArgs,
    client: &Client,
    dirty: &Arc<Notify>,
    metrics: &Metrics,
) -> anyhow::Result<(Checker, impl Future<Output = ()> + use<>)> {
    let registries = Registries {
        client: args.verify.client().context("the client of image registries")?,
        cluster: client.clone(),
    };
    let lookups = Arc::new(Lookups::new(Arc::clone(dirty), metrics.clone()));
    let checker = Checker {
        policy: args.verify.policy().context("the registries to ask about images")?,
        images: args.images(),
        models: args.models(),
        lookups: Arc::clone(&lookups),
    };
    Ok((checker, async move { lookups.run(&registries).await }))
}

/// What a leader does, and a replica that stands by only looks at.
struct Work {
    /// HawkeyeDeployments that changed; reading it keeps their store up to date.
    changes: BoxStream<'static, Result<GuardedDeployment, watcher::Error>>,
    /// HawkeyeDeployments to look at again.
    triggered: BoxStream<'static, ObjectRef<GuardedDeployment>>,
    hawkeye_deployments: Store<GuardedDeployment>,
    /// Keeps the status of the classes.
    class_status: BoxFuture<'static, ()>,
    /// Asks pods what they compute on.
    verifier: BoxFuture<'static, ()>,
    concurrency: u16,
    /// Says who leads.
    recorder: Recorder,
    context: Arc<Context>,
}

impl Work {
    /// Keeps the store up to date and does nothing else.
    async fn stand_by(&mut self) -> anyhow::Error {
        loop {
            let more = tokio::select! {
                change = self.changes.next() => change.is_some(),
                object = self.triggered.next() => object.is_some(),
            };
            if !more {
                return anyhow!("a watch has ended");
            }
        }
    }

    /// Reconciles, first everything that there is already, until `stopped`; then ends what it has begun.
    async fn run(self, stopped: watch::Receiver<bool>) {
        let known = self.hawkeye_deployments.state();
        let known: Vec<_> = known.iter().map(|object| ObjectRef::from_obj(&**object)).collect();
        let reconciled = Controller::for_stream(self.changes, self.hawkeye_deployments)
            .with_config(
                controller::Config::default()
                    .debounce(DEBOUNCE)
                    .concurrency(self.concurrency),
            )
            .reconcile_on(stream::iter(known).chain(self.triggered))
            .graceful_shutdown_on(until(stopped))
            .run(reconcile, error_policy, self.context)
            .for_each(async |result| log(result));
        // Neither ends before it is told to.
        tokio::select! {
            () = reconciled => {}
            () = self.class_status => {}
            () = self.verifier => {}
        }
    }
}

/// Stands by, leads, and hands over.
async fn lead(mut election: Election, mut work: Work) -> anyhow::Result<()> {
    let mut signal = pin!(signalled());
    let told = tokio::select! {
        () = election.won() => None,
        error = work.stand_by() => return Err(error),
        result = &mut signal => Some(result),
    };
    if let Some(result) = told {
        result?;
        tracing::info!("told to end while standing by");
        election.free().await;
        return Ok(());
    }
    let (stop, stopped) = watch::channel(false);
    let announced = election.announce(work.recorder.clone());
    let mut reconciled = pin!(future::join(announced, work.run(stopped)).map(|_| ()));
    tokio::select! {
        () = &mut reconciled => bail!("the controller has ended"),
        lost = election.lost() => return Err(lost.into()),
        result = &mut signal => result?,
    }
    tracing::info!("told to end");
    stop.send_replace(true);
    // What was begun is ended as leader.
    tokio::select! {
        () = reconciled => election.free().await,
        lost = election.lost() => return Err(lost.into()),
        // Something of ours may still be on its way, so the Lease has to run out.
        () = sleep(DRAIN) => tracing::warn!("reconciles did not end in {} s and are broken off", DRAIN.as_secs()),
    }
    Ok(())
}

async fn signalled() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is an end as well.
    let _ended = stopped.wait_for(|stopped| *stopped).await;
}

fn log(result: Result<(ObjectRef<GuardedDeployment>, controller::Action), ReconcileError>) {
    match result {
        Ok((object, action)) => tracing::debug!(%object, ?action, "reconciled"),
        // The error policy has logged and counted it.
        Err(ControllerError::ReconcilerFailed(..)) => {}
        // Deleted between its event and its turn.
        Err(ControllerError::ObjectNotFound(object)) => tracing::debug!(%object, "gone"),
        Err(error) => tracing::warn!(%error, "the controller met an error"),
    }
}

type ReconcileError = ControllerError<crate::error::Error, watcher::Error>;

fn deployment_stream(
    client: &Client,
    scope: &Scope,
    writer: Writer<GuardedDeployment>,
    dirty: Arc<Notify>,
    metrics: Metrics,
) -> impl Stream<Item = Result<GuardedDeployment, watcher::Error>> + Send + 'static {
    scope
        .events::<GuardedDeployment>(client, &paged(), identity)
        .reflect(writer)
        .inspect_ok(move |_| dirty.notify_one())
        .inspect_err(move |error| failed(error, &metrics))
        .applied_objects()
}

fn reporter(args: &RunArgs) -> Reporter {
    Reporter {
        controller: MANAGER.to_owned(),
        instance: args.pod_name.clone(),
    }
}

fn verifier(world: &World, changed: &Marks, triggers: &Trigger, args: &RunArgs, metrics: &Metrics) -> Verifier {
    Verifier {
        pods: world.pods.clone(),
        changed: Arc::clone(&changed.pods),
        devices: Arc::new(Devices::new(args.device_checks == 0)),
        triggers: triggers.clone(),
        concurrency: args.device_checks.into(),
        metrics: metrics.clone(),
    }
}

/// Who is told of changes.
#[derive(Default)]
struct Marks {
    /// The planner, of everything.
    dirty: Arc<Notify>,
    /// The verifier, of pods.
    pods: Arc<Notify>,
}

/// Starts every watch but that of the HawkeyeDeployments, which is the controller's.
fn watches(
    client: &Client,
    scope: &Scope,
    hawkeye_deployments: Store<GuardedDeployment>,
    changed: &Marks,
    triggers: &Trigger,
    metrics: &Metrics,
) -> (World, BoxFuture<'static, ()>) {
    let dirty = &changed.dirty;
    let any = paged();
    let ours = paged().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    let (classes, class_writer) = reflector::store();
    let nodes = Nodes::default();
    let (pods, pod_writer) = reflector::store();
    let (deployments, deployment_writer) = reflector::store();
    let (services, service_writer) = reflector::store();
    let (disruption_budgets, budget_writer) = reflector::store();
    let (network_policies, policy_writer) = reflector::store();

    let on_class = marks(dirty, |class: &GuardedClass| {
        if let Err(invalid) = &class.0 {
            tracing::warn!(
                name = invalid.metadata.name,
                error = invalid.error,
                "a HardwareClass does not decode"
            );
        }
    });
    let to_owner = sends(triggers, |pod: &Pod| {
        pod.instance()
            .map(|(namespace, name)| ObjectRef::new(name).within(namespace))
    });
    let mut on_relevant = marks(dirty, marks(&changed.pods, to_owner));
    // Most pods of a cluster neither are ours nor hold a GPU, and change often.
    let on_pod = move |pod: &Pod| {
        if pod.relevant() {
            on_relevant(pod);
        }
    };
    // Hand-over waits for the end of rollouts.
    let on_deployment = marks(dirty, sends(triggers, owner_of::<PoolDeployment>));
    let on_service = sends(triggers, owner_of::<Service>);
    let on_budget = sends(triggers, owner_of::<PodDisruptionBudget>);
    let on_policy = sends(triggers, owner_of::<NetworkPolicy>);

    let class_events = source(Api::all(client.clone()), &any, identity);
    let node_events = source(Api::all(client.clone()), &any, identity);
    let pod_events = scope.events(client, &any, only_relevant);
    let all: Vec<BoxFuture<'static, ()>> = vec![
        keep(class_events, class_writer, on_class, metrics),
        keep_nodes(node_events, nodes.clone(), dirty, metrics),
        keep(pod_events, pod_writer, on_pod, metrics),
        keep(
            scope.events(client, &ours, identity),
            deployment_writer,
            on_deployment,
            metrics,
        ),
        keep(
            scope.events(client, &ours, identity),
            service_writer,
            on_service,
            metrics,
        ),
        keep(scope.events(client, &ours, identity), budget_writer, on_budget, metrics),
        keep(scope.events(client, &ours, identity), policy_writer, on_policy, metrics),
    ];
    let ended = future::select_all(all).map(|_| ()).boxed();
    (
        World {
            hawkeye_deployments,
            classes,
            nodes,
            pods,
            deployments,
            services,
            disruption_budgets,
            network_policies,
        },
        ended,
    )
}

/// Keeps a store up to date and says what changed.
fn keep<K>(
    events: impl Stream<Item = Events<K>> + Send + 'static,
    writer: Writer<K>,
    mut on: impl FnMut(&K) + Send + 'static,
    metrics: &Metrics,
) -> BoxFuture<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let metrics = metrics.clone();
    events
        .reflect(writer)
        .for_each(move |event| {
            match event {
                Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => on(&object),
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => failed(&error, &metrics),
            }
            future::ready(())
        })
        .boxed()
}

/// The same for nodes, of which only the facts are kept.
fn keep_nodes(
    events: impl Stream<Item = Events<Node>> + Send + 'static,
    nodes: Nodes,
    dirty: &Arc<Notify>,
    metrics: &Metrics,
) -> BoxFuture<'static, ()> {
    let (dirty, metrics) = (Arc::clone(dirty), metrics.clone());
    events
        .for_each(move |event| {
            match event {
                Ok(event) => {
                    if nodes.take(event) {
                        dirty.notify_one();
                    }
                }
                Err(error) => failed(&error, &metrics),
            }
            future::ready(())
        })
        .boxed()
}

fn failed(error: &watcher::Error, metrics: &Metrics) {
    metrics.watch_failed();
    tracing::warn!(
        error = shorten(&error.to_string()),
        "a watch failed and is started again"
    );
}

/// A pod that does not matter is never kept; one that mattered and no longer does leaves the store.
fn only_relevant(event: Event<Pod>) -> Event<Pod> {
    match event {
        Event::Apply(pod) | Event::InitApply(pod) if !pod.relevant() => Event::Delete(pod),
        other => other,
    }
}

fn marks<K>(dirty: &Arc<Notify>, mut then: impl FnMut(&K) + Send + 'static) -> impl FnMut(&K) + Send + 'static {
    let dirty = Arc::clone(dirty);
    move |object| {
        dirty.notify_one();
        then(object);
    }
}

fn sends<K>(
    triggers: &Trigger,
    target: impl Fn(&K) -> Option<ObjectRef<GuardedDeployment>> + Send + 'static,
) -> impl FnMut(&K) + Send + 'static {
    let triggers = triggers.clone();
    move |object| {
        if let Some(target) = target(object) {
            // It fails only when the controller is gone, and then the process ends.
            let _gone = triggers.unbounded_send(target);
        }
    }
}

fn owner_of<K: Resource>(object: &K) -> Option<ObjectRef<GuardedDeployment>> {
    let kind = <DeserializeGuard<hawkeye_crds::v1alpha1::HawkeyeDeployment> as Resource>::kind(&());
    let owner = object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.kind == kind)?;
    Some(ObjectRef::new(&owner.name).within(&object.namespace()?))
}
