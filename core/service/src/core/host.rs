//! This ovsd at a glance, and its host.

use super::Core;
use crate::rpc::RequestContext;
use ovs_api::*;

impl Core {
    /// How this ovsd is.
    pub async fn get_status(&self, _: &RequestContext) -> Result<Status, Problem> {
        let host = self.host();
        let started_ms = self.identity.started_ms;
        self.wait(move |volumes| async move { volumes.status(host, started_ms).await }).await
    }

    /// The hosts that run ovsd: this one.
    pub async fn list_hosts(&self, query: ListQuery, _: &RequestContext) -> Result<Page<Host>, Problem> {
        let host = self.host();
        Page::cut([(host.name.clone(), host)], query.limit, query.cursor.as_ref())
    }

    fn host(&self) -> Host {
        Host {
            uuid: self.identity.host,
            name: self.identity.host_name.clone(),
            state: HostState::Online,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            is_local: true,
            started_at: Timestamp::from_unix_ms(self.identity.started_ms),
        }
    }
}
