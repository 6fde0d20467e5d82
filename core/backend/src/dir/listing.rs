//! Listing objects in the byte order of their names.
//!
//! A folder's name is compared with a `/` behind it, as in the names of the objects below it (`a-b` < `a/x` < `a0`).
//! Of a folder of any size only as many entries are held as are still asked for; it is read again for more.

use super::{
    disk::Disk,
    error::{Failure, is_no_object},
    store::Store,
};
use crate::{BackendError, ObjectInfo, ObjectName};
use std::{collections::BTreeMap, fs, io};

/// An entry of a folder, under its name from the root (a folder's with `/` behind it).
enum Found {
    Object(ObjectInfo),
    Folder,
}

struct Listing<'a> {
    prefix: &'a str,
    after: &'a str,
    limit: usize,
    objects: Vec<ObjectInfo>,
}

impl<D: Disk> Store<D> {
    /// As the trait says. Temporary files, and whatever else has no object's name, are not seen.
    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, BackendError> {
        let folder = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
        // A prefix that no name can have never becomes a path.
        let is_possible = folder.is_empty() || ObjectName::new(folder.trim_end_matches('/')).is_ok();
        let mut listing =
            Listing { prefix, after: after.map_or("", ObjectName::as_str), limit, objects: Vec::new() };
        if is_possible && !folder.ends_with("//") {
            self.list_folder(folder, &mut listing).map_err(|failure| failure.of("list", prefix))?;
        }
        // Last: only the folder itself may say that it holds nothing.
        self.check_marker("list", prefix)?;
        Ok(listing.objects)
    }

    /// `folder` is empty or ends with `/`.
    fn list_folder(&self, folder: &str, listing: &mut Listing<'_>) -> Result<(), Failure> {
        let mut last_seen = String::new();
        loop {
            let room = listing.limit.saturating_sub(listing.objects.len());
            if room == 0 {
                return Ok(());
            }
            let (entries, is_all) = self.read_folder(folder, &last_seen, room, listing)?;
            for (name, found) in entries {
                match found {
                    Found::Object(info) => listing.objects.push(info),
                    Found::Folder => self.list_folder(&name, listing)?,
                }
                if listing.objects.len() >= listing.limit {
                    return Ok(());
                }
                last_seen = name;
            }
            if is_all {
                return Ok(());
            }
        }
    }

    /// The first `room` entries after `last_seen` that the listing wants, and whether these are all of them.
    fn read_folder(
        &self,
        folder: &str,
        last_seen: &str,
        room: usize,
        listing: &Listing<'_>,
    ) -> Result<(BTreeMap<String, Found>, bool), Failure> {
        let path = self.root().join(folder);
        let entries = match fs::read_dir(&path) {
            Err(error) if is_no_object(&error) => return Ok((BTreeMap::new(), true)),
            entries => entries.map_err(Failure::at("read", &path))?,
        };
        let (mut first, mut is_all) = (BTreeMap::new(), true);
        for entry in entries {
            let entry = entry.map_err(Failure::at("read", &path))?;
            let Ok(segment) = entry.file_name().into_string() else { continue };
            let Ok(object) = ObjectName::new(format!("{folder}{segment}")) else { continue };
            let file_type = entry.file_type().map_err(Failure::at("read", &path))?;
            let name = match (file_type.is_file(), file_type.is_dir()) {
                (true, _) if listing.wants_object(object.as_str()) => object.to_string(),
                (_, true) if listing.wants_folder(&format!("{object}/")) => format!("{object}/"),
                _ => continue,
            };
            let is_too_late =
                first.len() == room && first.last_key_value().is_some_and(|(last, _)| *last < name);
            if name.as_str() <= last_seen {
                continue;
            }
            if is_too_late {
                is_all = false;
                continue;
            }
            let found = if file_type.is_dir() {
                Found::Folder
            } else {
                match length_bytes(&entry) {
                    Ok(length_bytes) => Found::Object(ObjectInfo { name: object, length_bytes }),
                    // Deleted since it was read.
                    Err(error) if is_no_object(&error) => continue,
                    Err(error) => return Err(Failure::at("read", &entry.path())(error)),
                }
            };
            first.insert(name, found);
            if first.len() > room {
                first.pop_last();
                is_all = false;
            }
        }
        Ok((first, is_all))
    }
}

impl Listing<'_> {
    fn wants_object(&self, name: &str) -> bool {
        name > self.after && name.starts_with(self.prefix)
    }

    /// Can an object below this folder be wanted?
    fn wants_folder(&self, name: &str) -> bool {
        (name > self.after || self.after.starts_with(name))
            && (name.starts_with(self.prefix) || self.prefix.starts_with(name))
    }
}

fn length_bytes(entry: &fs::DirEntry) -> io::Result<u64> {
    entry.metadata().map(|metadata| metadata.len())
}
