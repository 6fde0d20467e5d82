//! Create and Remove.

use super::{Driver, DriverError};
use crate::{
    host::Host,
    options::{OptionError, Origin, VolumeOptions, check_size_for},
    ovsd::{
        FORMATTED_NO, LABEL_DIRECTORY, LABEL_FORMATTED, LABEL_FSTYPE, LABEL_OPTIONS, LABEL_ORIGIN,
        LABEL_VOLUME, NewVdisk, Ovsd, OvsdError, Vdisk,
    },
    record::{Records, VolumeDirectory},
};
use ovs_units::{Name, format_size};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a vDisk may still be held after the last unmount: its device and its file are closed by the kernel in
/// their own time, and `docker run --rm` removes at once.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_POLL: Duration = Duration::from_millis(100);

impl<O: Ovsd, H: Host, R: Records> Driver<O, H, R> {
    /// Makes a volume: a vDisk with labels; the file system comes with the first mount. The same again succeeds.
    pub async fn create(&self, name: &Name, opts: &BTreeMap<String, String>) -> Result<(), DriverError> {
        let options = VolumeOptions::parse(opts)?;
        let _creating = self.lock_name(name).await;
        if let Some(existing) = self.volume(name).await? {
            let existing = existing.as_existing().map_err(DriverError::Refused)?;
            let differences = options.differences(&existing);
            if differences.is_empty() {
                return Ok(());
            }
            let differences = differences.join("; ");
            return Err(DriverError::Refused(format!(
                "volume {name} exists already, and differs: {differences}"
            )));
        }
        let new = self.plan(name, &options).await?;
        let made = self.ovsd.create(&new).await.map_err(|error| match error {
            OvsdError::Exists(_) => DriverError::Refused(format!(
                "the vDisk {}/{name} exists already and is not a Docker volume (it has no label {LABEL_VOLUME}); choose \
                 another name, or clone it: -o from={}/{name}",
                new.vpool, new.vpool
            )),
            other => other.into(),
        })?;
        tracing::info!(vdisk = %made.uuid, volume = %name, vpool = %made.vpool, size = made.size_bytes, "created");
        Ok(())
    }

    async fn plan(&self, name: &Name, options: &VolumeOptions) -> Result<NewVdisk, DriverError> {
        let mut labels = options.labels.clone();
        let mut label = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
        label(LABEL_VOLUME, name.as_str());
        label(LABEL_FORMATTED, FORMATTED_NO);
        label(LABEL_OPTIONS, &options.remembered());
        let Some(origin) = &options.origin else {
            let fstype = options.fstype_or_default();
            let size_bytes = options.size_bytes.unwrap_or(self.settings.size_bytes);
            check_size_for(fstype, size_bytes)?;
            label(LABEL_FSTYPE, fstype.as_str());
            label(LABEL_DIRECTORY, VolumeDirectory::Data.as_label());
            let vpool = options.vpool.clone().unwrap_or_else(|| self.settings.vpool.clone());
            return Ok(NewVdisk {
                vpool,
                name: name.clone(),
                size_bytes: Some(size_bytes),
                origin: None,
                limits: options.limits,
                cache: options.cache,
                labels,
            });
        };

        let source = self.origin(origin, options.vpool.as_ref()).await?;
        check_source(&source, origin, options)?;
        let fstype = source.fstype().or(options.fstype);
        if let Some(fstype) = fstype {
            label(LABEL_FSTYPE, fstype.as_str());
        }
        // What the plugin made has its data/; what it did not make is handed out whole.
        let directory = match source.labels.contains_key(LABEL_VOLUME) {
            true => source.directory(),
            false => VolumeDirectory::Root,
        };
        label(LABEL_DIRECTORY, directory.as_label());
        label(LABEL_ORIGIN, &Origin { vpool: Some(source.vpool.clone()), ..origin.clone() }.to_string());
        Ok(NewVdisk {
            vpool: source.vpool,
            name: name.clone(),
            size_bytes: options.size_bytes,
            origin: Some((source.uuid, origin.clone())),
            limits: options.limits,
            cache: options.cache,
            labels,
        })
    }

    /// The vDisk that an origin names: in the vPool that was said, else the Docker volume, else in the default vPool.
    async fn origin(&self, origin: &Origin, vpool: Option<&Name>) -> Result<Vdisk, DriverError> {
        let vpool = origin.vpool.as_ref().or(vpool);
        if vpool.is_none()
            && !origin.is_template
            && let Some(volume) = self.volume(&origin.vdisk).await?
        {
            return Ok(volume);
        }
        let vpool = vpool.unwrap_or(&self.settings.vpool);
        self.ovsd.vdisk_named(vpool, &origin.vdisk).await.map_err(|error| match error {
            OvsdError::NotFound(_) => {
                let what = if origin.is_template { "template" } else { "volume or vDisk" };
                DriverError::Refused(format!("no such {what}: {vpool}/{}", origin.vdisk))
            }
            other => other.into(),
        })
    }

    /// Moves a volume's vDisk to the trash. One that is not there is as good as removed.
    pub async fn remove(&self, name: &Name) -> Result<(), DriverError> {
        let vdisk = match (self.volume(name).await?, self.record_of(name, None)) {
            (Some(vdisk), _) => vdisk.uuid,
            // Renamed while in use: the containers that use it still count.
            (None, Some(record)) if !record.refs.is_empty() => record.vdisk,
            (None, _) => return Ok(()),
        };
        let _guard = self.lock(vdisk).await;
        if let Some(record) = self.record(vdisk) {
            if !record.refs.is_empty() {
                let count = record.refs.total();
                return Err(DriverError::InUse(format!("volume {name} is in use: mounted {count} times")));
            }
            self.release(record).await?;
        }
        if let Some(Some(device)) = self.record(vdisk).map(|record| record.device) {
            return Err(DriverError::InUse(format!(
                "volume {name} is in use: {} is still mounted in another mount namespace",
                device.path.display()
            )));
        }
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            match self.ovsd.delete(vdisk).await {
                Err(OvsdError::InUse(_)) if Instant::now() < deadline => sleep(RELEASE_POLL).await,
                Err(OvsdError::InUse(detail)) => {
                    return Err(DriverError::InUse(format!("volume {name} is in use: {detail}")));
                }
                result => {
                    result?;
                    break;
                }
            }
        }
        tracing::info!(%vdisk, volume = %name, "removed");
        Ok(())
    }
}

fn check_source(source: &Vdisk, origin: &Origin, options: &VolumeOptions) -> Result<(), DriverError> {
    let refuse = |text: String| Err(DriverError::Refused(text));
    let path = format!("{}/{}", source.vpool, source.name);
    if origin.is_template != source.is_template {
        return match source.is_template {
            true => refuse(format!("{path} is a template: use -o template={path}")),
            false => {
                refuse(format!("{path} is not a template: use -o from={path}, or `ovs template set {path}`"))
            }
        };
    }
    if let Some(vpool) = options.vpool.as_ref().filter(|vpool| **vpool != source.vpool) {
        return refuse(format!("a clone lives in its origin's vPool: {path} is not in {vpool}"));
    }
    if source.labels.contains_key(LABEL_VOLUME) && !source.is_formatted() {
        return refuse(format!("{path} has no file system to clone yet: it was never mounted"));
    }
    if let (Some(asked), Some(have)) = (options.fstype, source.fstype())
        && asked != have
    {
        return refuse(format!("fstype={asked} cannot be given for a clone of {path}, which has {have}"));
    }
    if let Some(size_bytes) = options.size_bytes.filter(|size_bytes| *size_bytes < source.size_bytes) {
        return Err(OptionError::Value {
            key: "size",
            given: format_size(size_bytes),
            reason: format!("a clone of {path} has at least {}", format_size(source.size_bytes)),
        }
        .into());
    }
    Ok(())
}
