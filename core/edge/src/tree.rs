//! The files of one mount: by inode, by name, by vDisk.

use crate::{
    file::{Change, File},
    inode,
    rpc::Rpc,
};
use ovs_api::Vdisk;
use ovs_units::{Name, VdiskId};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// A directory: the only one a mount has.
#[derive(Debug)]
pub struct Tree {
    rpc: Arc<Rpc>,
    maps: RwLock<Maps>,
}

#[derive(Debug, Default)]
struct Maps {
    by_id: HashMap<VdiskId, Arc<File>>,
    by_inode: HashMap<u64, Arc<File>>,
    by_name: HashMap<Name, VdiskId>,
}

impl Tree {
    /// An empty directory.
    pub fn new(rpc: Arc<Rpc>) -> Tree {
        Tree { rpc, maps: RwLock::default() }
    }

    /// The file of a name.
    pub fn named(&self, name: &Name) -> Option<Arc<File>> {
        let maps = self.read();
        maps.by_name.get(name).and_then(|id| maps.by_id.get(id)).cloned()
    }

    /// The file of an inode number.
    pub fn numbered(&self, inode: u64) -> Option<Arc<File>> {
        self.read().by_inode.get(&inode).cloned()
    }

    /// The file of a vDisk.
    pub fn of_vdisk(&self, id: VdiskId) -> Option<Arc<File>> {
        self.read().by_id.get(&id).cloned()
    }

    /// All files in the order of their names.
    pub fn list(&self) -> Vec<Arc<File>> {
        let mut files: Vec<Arc<File>> = self.read().by_id.values().cloned().collect();
        files.sort_by_cached_key(|file| file.name());
        files
    }

    /// Takes in what ovsd says of a vDisk, new or known.
    pub fn upsert(&self, vdisk: &Vdisk) -> (Arc<File>, Change) {
        let mut maps = self.write();
        let Some(file) = maps.by_id.get(&vdisk.uuid).cloned() else {
            let number = inode::assign(vdisk.uuid, |number| maps.by_inode.contains_key(&number));
            let file = Arc::new(File::new(vdisk, number, Arc::clone(&self.rpc)));
            maps.by_id.insert(file.id, Arc::clone(&file));
            maps.by_inode.insert(file.inode, Arc::clone(&file));
            maps.by_name.insert(vdisk.name.clone(), file.id);
            return (file, Change::default());
        };
        let change = file.apply(vdisk);
        if let Some(before) = &change.name_before {
            maps.forget_name(before, file.id);
            maps.by_name.insert(vdisk.name.clone(), file.id);
        }
        (file, change)
    }

    /// Takes a file out. Handles that are open on it keep it.
    pub fn remove(&self, id: VdiskId) -> Option<Arc<File>> {
        let mut maps = self.write();
        let file = maps.by_id.remove(&id)?;
        maps.by_inode.remove(&file.inode);
        maps.forget_name(&file.name(), id);
        Some(file)
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    /// A name that another vDisk has taken meanwhile stays that one's.
    fn forget_name(&mut self, name: &Name, id: VdiskId) {
        if self.by_name.get(name) == Some(&id) {
            self.by_name.remove(name);
        }
    }
}
