//! This ovsd at a glance, its host, and the one preset there is.

use super::Core;
use crate::rpc::RequestContext;
use ovs_api::*;
use ovs_units::Name;
use uuid::Uuid;

/// The built-in preset, for ever.
const PRESET_UUID: Uuid = Uuid::from_u128(0x6f76_735f_7072_6573_6574_0000_0000_0001);

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

    /// The presets: the built-in one.
    pub async fn list_presets(&self, query: ListQuery, _: &RequestContext) -> Result<Page<Preset>, Problem> {
        let preset = built_in_preset();
        Page::cut([(preset.name.to_string(), preset)], query.limit, query.cursor.as_ref())
    }

    /// One preset.
    pub async fn get_preset(&self, preset: Name, _: &RequestContext) -> Result<Preset, Problem> {
        let built_in = built_in_preset();
        if preset == built_in.name {
            return Ok(built_in);
        }
        Err(Problem::new(ProblemKind::NotFound, format!("there is no preset {preset}")))
    }
}

/// One copy of each object, whole, as it is.
fn built_in_preset() -> Preset {
    Preset {
        uuid: PRESET_UUID,
        name: Name::new("default").expect("a name"),
        revision: 1,
        compression: Compression::None,
        encryption: Encryption::None,
        fragment_size_bytes: 4 << 20,
        policies: vec![Policy { k: 1, m: 0, c: 1, x: 1 }],
        is_default: true,
    }
}
