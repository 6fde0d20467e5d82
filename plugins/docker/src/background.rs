//! What runs beside the requests: the reconciler, and the watch for vDisks that are resized.

use crate::{
    containers,
    driver::{ContainerUse, Driver, Watch},
    host::Host,
    message::{Answer, Request},
    ovsd::Ovsd,
    record::Records,
    server::Plugin,
};
use ovs_api::{ApiError, Client, EventKind, ProblemKind};
use ovs_units::VdiskId;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Between attempts to hear events from an ovsd that is away.
const EVENTS_DELAY: Duration = Duration::from_secs(2);

impl<O: Ovsd, H: Host, R: Records> Plugin for Driver<O, H, R> {
    async fn call(&self, request: Request) -> Result<Answer, String> {
        let result = match &request {
            Request::Activate => Ok(Answer::activate()),
            Request::Capabilities => Ok(Answer::capabilities()),
            Request::Create(name, opts) => self.create(name, opts).await.map(|()| Answer::done()),
            Request::Remove(name) => self.remove(name).await.map(|()| Answer::done()),
            Request::Mount(name, id) => self
                .mount(name, id)
                .await
                .map(|mounted| Answer::mountpoint(mounted.path.display().to_string())),
            Request::Unmount(name, id) => self.unmount(name, id).await.map(|()| Answer::done()),
            Request::Path(name) => self.path(name).await.map(Answer::mountpoint),
            Request::Get(name) => self.get(name).await.map(Answer::volume),
            Request::List => self.list().await.map(Answer::volumes),
        };
        result.map_err(|error| error.to_string())
    }

    async fn abandoned(&self, request: Request, _: Answer) {
        if let Request::Mount(name, id) = request {
            self.mount_abandoned(&name, &id).await;
        }
    }
}

/// Looks after all volumes, now and every `every`, for ever. `driver_name`: what Docker calls this plugin.
pub async fn reconcile<O: Ovsd, H: Host, R: Records>(
    driver: Arc<Driver<O, H, R>>,
    docker_sockets: Vec<PathBuf>,
    driver_name: String,
    every: Duration,
) {
    let mut watch = Watch::default();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let containers = containers_of_all(&docker_sockets, &driver_name).await;
        driver.reconcile(containers.as_ref(), &mut watch).await;
    }
}

/// What all dockerds together run; none if one of them could not be asked.
async fn containers_of_all(sockets: &[PathBuf], driver_name: &str) -> Option<ContainerUse> {
    let mut all: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for socket in sockets {
        match containers::running(socket, driver_name).await {
            Ok(uses) => {
                for (name, ids) in uses.0 {
                    all.entry(name).or_default().extend(ids);
                }
            }
            Err(error) => {
                tracing::debug!(socket = %socket.display(), %error, "dockerd does not say what runs");
                return None;
            }
        }
    }
    Some(ContainerUse(all))
}

/// Follows ovsd's events, for ever, and lets the file systems of resized vDisks grow. What is missed while ovsd is away
/// the reconciler sees.
pub async fn follow_events<O: Ovsd, H: Host, R: Records>(driver: Arc<Driver<O, H, R>>, client: Client) {
    let mut last = None;
    loop {
        match client.events(last).await {
            Ok(mut events) => {
                while let Ok(Some(event)) = events.next().await {
                    if let (EventKind::VdiskResized, Some(vdisk)) = (event.kind, event.subject) {
                        // On its own: a file system that takes its time must not hold up the events of others.
                        tokio::spawn(grow(driver.clone(), VdiskId(vdisk)));
                    }
                }
                last = events.last_id().or(last);
            }
            Err(ApiError::Refused(problem)) if problem.kind() == ProblemKind::Gone => last = None,
            Err(error) => tracing::debug!(%error, "no events"),
        }
        sleep(EVENTS_DELAY).await;
    }
}

async fn grow<O: Ovsd, H: Host, R: Records>(driver: Arc<Driver<O, H, R>>, vdisk: VdiskId) {
    if let Err(error) = driver.grow(vdisk).await {
        tracing::warn!(%vdisk, %error, "the file system keeps its size for now");
    }
}
