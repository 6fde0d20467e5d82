//! Which containers use our volumes, asked of dockerd.

use crate::driver::ContainerUse;
use bollard::{
    API_DEFAULT_VERSION, Docker, models::ContainerSummaryStateEnum,
    query_parameters::ListContainersOptionsBuilder,
};
use ovs_units::Name;
use std::{collections::BTreeMap, path::Path, time::Duration};
use tokio::time::timeout;

/// A busy dockerd answers in seconds. One that waits for this plugin does not answer at all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks dockerd which containers run, or may be about to, with volumes of the driver of this name.
pub async fn running(socket: &Path, driver: &str) -> Result<ContainerUse, String> {
    let ask = async {
        let socket = socket.to_str().ok_or("the socket's path is no text")?;
        let docker = Docker::connect_with_unix(socket, TIMEOUT.as_secs(), API_DEFAULT_VERSION)
            .map_err(|error| error.to_string())?;
        let docker = docker.negotiate_version().await.map_err(|error| error.to_string())?;
        let options = ListContainersOptionsBuilder::default().all(true).build();
        docker.list_containers(Some(options)).await.map_err(|error| error.to_string())
    };
    let containers = timeout(TIMEOUT, ask).await.map_err(|_| "no answer".to_owned())??;
    let mut uses: BTreeMap<Name, Vec<String>> = BTreeMap::new();
    for container in containers {
        if !may_run(container.state) {
            continue;
        }
        let id: String = container.id.unwrap_or_default().chars().take(12).collect();
        for mount in container.mounts.unwrap_or_default() {
            let is_ours = mount.driver.as_deref() == Some(driver);
            if let Some(name) = mount.name.filter(|_| is_ours).and_then(|name| Name::new(&name).ok()) {
                uses.entry(name).or_default().push(id.clone());
            }
        }
    }
    Ok(ContainerUse(uses))
}

/// `created` is also what a container is while it starts: its volumes are mounted before its state changes.
fn may_run(state: Option<ContainerSummaryStateEnum>) -> bool {
    !matches!(state, Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_ended_does_not_run() {
        use ContainerSummaryStateEnum as State;
        for state in
            [State::CREATED, State::RUNNING, State::PAUSED, State::RESTARTING, State::REMOVING, State::EMPTY]
        {
            assert!(may_run(Some(state)), "{state}");
        }
        assert!(may_run(None));
        assert!(!may_run(Some(State::EXITED)) && !may_run(Some(State::DEAD)));
    }

    #[tokio::test]
    async fn no_dockerd_is_an_error_and_not_no_containers() {
        let directory = tempfile::tempdir().unwrap();
        assert!(running(&directory.path().join("docker.sock"), "ovs").await.is_err());
    }
}
