//! Wiring: client, watches, planner, controller and the HTTP server, until a signal ends them.

use std::{convert::identity, fmt::Debug, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures::{
    Stream, StreamExt, TryStreamExt,
    channel::mpsc::{UnboundedSender, unbounded},
    future::{self, BoxFuture, FutureExt},
};
use k8s_openapi::api::{
    apps::v1::Deployment, core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    client::ClientBuilder,
    core::DeserializeGuard,
    runtime::{
        Controller, WatchStreamExt,
        controller::{self, Error as ControllerError},
        events::{Recorder, Reporter},
        reflector::{self, ObjectRef, store::Writer},
        watcher::{self, Event},
    },
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};

use super::{
    apply::Memory,
    build::MANAGER,
    class_status,
    images::Checker,
    nodes::Nodes,
    observe::{GuardedClass, GuardedDeployment, Node, Pod, World},
    planner::{Planner, Plans},
    reconcile::{error_policy, reconcile},
    scope::{Events, Scope, source},
    status::shorten,
    verify::{self, Devices, Verifier},
};
use crate::{
    args::RunArgs,
    context::{Backoff, Context, Reported},
    events::Throttle,
    hardware::Grace,
    http,
    metrics::Metrics,
    registry::{Lookups, source::Registries},
};

/// Events of one object within this time lead to one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(200);

type Trigger = UnboundedSender<ObjectRef<GuardedDeployment>>;

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// When the API server cannot be found, the address is taken, or a part ends that should not.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let client = client(&metrics).await?;
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
        recorder: recorder(&client, &args),
        throttle: Throttle::default(),
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

    let (stop, stopped) = watch::channel(false);
    let main = deployment_stream(&client, &scope, deployment_writer, dirty, metrics.clone());
    let reconciled = Controller::for_stream(main, hawkeye_deployments)
        .with_config(
            controller::Config::default()
                .debounce(DEBOUNCE)
                .concurrency(args.concurrency),
        )
        .reconcile_on(triggered)
        .graceful_shutdown_on(until(stopped.clone()))
        .run(reconcile, error_policy, context)
        .for_each(async |result| log(result));

    // The controller ends last: what it has begun it finishes, for which it needs planner and watches.
    let mut server = pin!(http::serve(listener, metrics, plans, until(stopped)));
    let mut watches = pin!(watches);
    let mut lookups = pin!(lookups);
    let mut planner = pin!(planner.run());
    let mut class_status = pin!(class_status);
    let mut verifier = pin!(verifier.run(verify::ask));
    let mut reconciled = pin!(reconciled);
    let mut signal = pin!(signalled());
    tokio::select! {
        () = &mut reconciled => bail!("the controller has ended"),
        () = &mut watches => bail!("a watch has ended"),
        result = &mut planner => bail!("the planner has ended: {result:?}"),
        () = &mut class_status => bail!("the status of the classes is no longer kept"),
        () = &mut lookups => bail!("the lookups of images have ended"),
        result = &mut verifier => bail!("the verifier has ended: {result:?}"),
        result = &mut server => bail!("the HTTP server has ended: {result:?}"),
        result = &mut signal => result?,
    }
    tracing::info!("told to end");
    stop.send_replace(true);
    tokio::select! {
        () = reconciled => {}
        () = watches => bail!("a watch has ended"),
        () = lookups => bail!("the lookups of images have ended"),
        result = planner => bail!("the planner has ended: {result:?}"),
    }
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

/// A client that counts its requests and never retries by itself: retries are ours, with a limit for each object.
async fn client(metrics: &Metrics) -> anyhow::Result<Client> {
    let mut config = Config::infer()
        .await
        .context("no cluster: neither a service account nor a kubeconfig")?;
    config.default_retry = false;
    Ok(ClientBuilder::try_from(config)
        .context("the cluster's settings are not usable")?
        .with_layer(&metrics.layer())
        .build())
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
        .events::<GuardedDeployment>(client, &watcher::Config::default().any_semantic(), identity)
        .reflect(writer)
        .inspect_ok(move |_| dirty.notify_one())
        .inspect_err(move |error| failed(error, &metrics))
        .applied_objects()
}

fn recorder(client: &Client, args: &RunArgs) -> Recorder {
    let reporter = Reporter {
        controller: MANAGER.to_owned(),
        instance: args.pod_name.clone(),
    };
    Recorder::new(client.clone(), reporter)
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
    hawkeye_deployments: reflector::Store<GuardedDeployment>,
    changed: &Marks,
    triggers: &Trigger,
    metrics: &Metrics,
) -> (World, BoxFuture<'static, ()>) {
    let dirty = &changed.dirty;
    let any = watcher::Config::default().any_semantic();
    let ours = any.clone().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
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
    let on_deployment = marks(dirty, sends(triggers, owner_of::<Deployment>));
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
        .default_backoff()
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
