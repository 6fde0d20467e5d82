//! What crashes have left on the backend.

use super::name_of;
use crate::VolumeError;
use crate::sco::{parse_sco_name, sco_prefix};
use crate::vdisk::Inner;
use ovs_backend::ObjectName;
use ovs_units::planted;
use std::collections::HashSet;

impl Inner {
    /// SCOs of epochs that are over and that the table does not name: what crashes have left.
    pub(super) async fn remove_strays(&self) -> Result<u64, VolumeError> {
        let (epoch, named) = {
            let _meta = self.meta.lock().await;
            self.check_may_scrub()?;
            self.start_epoch_if_needed().await?;
            let scos = self.table.borrow().scos_of(self.id);
            let mut named: HashSet<ObjectName> = scos.iter().map(|(sco, _)| name_of(sco)).collect();
            if !planted("scrub: what is read is a stray") {
                // Somebody may be reading those yet.
                named.extend(self.scrub.going.borrow().iter().map(|(_, sco)| name_of(sco)));
            }
            self.check_is_newest().await?;
            (self.epoch(), named)
        };
        let prefix = sco_prefix(self.id);
        let (mut removed, mut after) = (0, None);
        loop {
            let page = self.backend.list(&prefix, after.as_ref(), 1000).await?;
            let Some(last) = page.last() else { return Ok(removed) };
            after = Some(last.name.clone());
            for object in page {
                let found = parse_sco_name(&object.name, &prefix);
                let is_over = found.is_some_and(|(of, _)| {
                    of < epoch || planted("scrub: what is on its way is taken for a stray")
                });
                if is_over && !named.contains(&object.name) {
                    self.check_may_scrub()?;
                    self.backend.delete(&object.name).await?;
                    removed += 1;
                }
            }
        }
    }
}
