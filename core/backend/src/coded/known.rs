//! What is known of objects without asking; all of it can be found out again.

use super::encode;
use super::name::Place;
use crate::ObjectName;
use ovs_format::fragment::{FrameEntry, Geometry, Header};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    rc::Rc,
};

/// Objects that are known without asking, at most, …
const OBJECTS_MAX: usize = 4096;
/// … and bytes of their frames' entries.
const INDEX_BYTES_MAX: usize = 32 << 20;

/// The frames of a data fragment.
pub(super) type Index = Rc<[FrameEntry]>;

/// Objects, the oldest of which go.
#[derive(Default)]
pub(super) struct Known {
    objects: HashMap<ObjectName, Rc<Object>>,
    /// In the order in which they came.
    order: VecDeque<ObjectName>,
    index_bytes: usize,
}

/// One object.
pub(super) struct Object {
    pub(super) name: ObjectName,
    /// What every fragment's header says, chunk and number apart.
    template: Header,
    layout: u32,
    indexes: RefCell<HashMap<(u32, u8), Index>>,
    index_bytes: Cell<usize>,
    /// Drives of fragments that are not where they belong, once somebody has looked.
    pub(super) elsewhere: RefCell<Option<Rc<Found>>>,
}

/// Which drives have which fragments.
#[derive(Clone, Default)]
pub(super) struct Found {
    pub(super) fragments: BTreeMap<Place, Vec<usize>>,
    /// A drive that is made of drives has some of a fragment, and too little for it to be one.
    pub(super) is_begun: bool,
    /// One of those said that some of its own do not answer.
    pub(super) is_silent_within: bool,
    /// Drives that did not answer.
    pub(super) silent: BTreeSet<usize>,
    /// What one of them said.
    pub(super) failure: Option<String>,
}

impl Found {
    /// Was there anything that did not answer?
    pub(super) fn is_anything_silent(&self) -> bool {
        self.is_silent_within || !self.silent.is_empty()
    }

    /// A drive does not have it after all.
    pub(super) fn forget(&mut self, place: Place, drive: usize) {
        if let Some(drives) = self.fragments.get_mut(&place) {
            drives.retain(|other| *other != drive);
            if drives.is_empty() {
                self.fragments.remove(&place);
            }
        }
    }
}

impl Known {
    pub(super) fn get(&self, name: &ObjectName) -> Option<Rc<Object>> {
        self.objects.get(name).cloned()
    }

    pub(super) fn learn(&mut self, object: Object) -> Rc<Object> {
        let object = Rc::new(object);
        self.forget(&object.name);
        self.index_bytes += object.index_bytes.get();
        self.objects.insert(object.name.clone(), Rc::clone(&object));
        self.order.push_back(object.name.clone());
        self.make_room();
        object
    }

    pub(super) fn learn_index(&mut self, object: &Rc<Object>, chunk: u32, fragment: u8, index: Index) {
        let is_known = self.objects.get(&object.name).is_some_and(|known| Rc::ptr_eq(known, object));
        let before = object.index_bytes.get();
        object.insert_index(chunk, fragment, index);
        if is_known {
            self.index_bytes = self.index_bytes - before + object.index_bytes.get();
            self.make_room();
        }
    }

    pub(super) fn forget(&mut self, name: &ObjectName) {
        if let Some(object) = self.objects.remove(name) {
            self.index_bytes -= object.index_bytes.get();
            self.order.retain(|known| known != name);
        }
    }

    fn make_room(&mut self) {
        while self.objects.len() > OBJECTS_MAX || self.index_bytes > INDEX_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(object) = self.objects.remove(&oldest) {
                self.index_bytes -= object.index_bytes.get();
            }
        }
    }
}

impl Object {
    pub(super) fn new(name: &ObjectName, template: Header) -> Object {
        let layout = encode::layout(&template);
        Object {
            name: name.clone(),
            template,
            layout,
            indexes: RefCell::default(),
            index_bytes: Cell::new(0),
            elsewhere: RefCell::default(),
        }
    }

    pub(super) fn layout(&self) -> u32 {
        self.layout
    }

    pub(super) fn place(&self, chunk: u32, number: u8) -> Place {
        Place { layout: self.layout, chunk, number }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.template.geometry
    }

    pub(super) fn header(&self, chunk: u32, fragment: u8) -> Header {
        Header { chunk, fragment, ..self.template }
    }

    /// Is this the header of a fragment of the same put?
    pub(super) fn is_own(&self, found: &Header, chunk: u32, fragment: u8) -> bool {
        let Header { body_bytes, body_checksum, .. } = *found;
        *found == Header { body_bytes, body_checksum, ..self.header(chunk, fragment) }
    }

    pub(super) fn index(&self, chunk: u32, fragment: u8) -> Option<Index> {
        self.indexes.borrow().get(&(chunk, fragment)).cloned()
    }

    /// Of one that nobody else knows yet; else [`Known::learn_index`].
    pub(super) fn insert_index(&self, chunk: u32, fragment: u8, index: Index) {
        let added = size_of_val(&*index);
        let before = self.indexes.borrow_mut().insert((chunk, fragment), index);
        let gone = before.map_or(0, |before| size_of_val(&*before));
        self.index_bytes.set(self.index_bytes.get() - gone + added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_format::fragment::Compression;
    use ovs_units::PutId;

    fn object(number: usize) -> Object {
        let geometry =
            Geometry { object_bytes: 1, data: 1, parity: 0, frame_bytes: 4096, fragment_bytes: 4096 };
        let name = ObjectName::new(format!("v/s/{number}")).expect("a good name");
        let header = Header {
            name: [0; 16],
            put: PutId(uuid::Uuid::nil()),
            geometry,
            chunk: 0,
            fragment: 0,
            compression: Compression::None,
            key: 0,
            body_bytes: 0,
            body_checksum: 0,
        };
        Object::new(&name, header)
    }

    #[test]
    fn what_is_known_is_bounded_by_objects_and_by_bytes() {
        let mut known = Known::default();
        for number in 0..OBJECTS_MAX + 9 {
            known.learn(object(number));
        }
        assert_eq!(known.objects.len(), OBJECTS_MAX);
        let entry = FrameEntry { offset: 0, stored_bytes: 0, is_compressed: false, checksum: 0 };
        let index: Index = vec![entry; INDEX_BYTES_MAX / 10 / size_of::<FrameEntry>()].into();
        for number in 0..30 {
            let object = known.learn(object(number));
            known.learn_index(&object, 0, 0, Rc::clone(&index));
            known.learn_index(&object, 0, 0, Rc::clone(&index));
            assert!(known.index_bytes <= INDEX_BYTES_MAX);
            assert!(known.get(&object.name).is_some());
        }
        assert_eq!(known.objects.values().filter(|object| object.index_bytes.get() > 0).count(), 10);
        for number in 0..OBJECTS_MAX + 9 {
            known.forget(&object(number).name);
        }
        assert_eq!((known.index_bytes, known.order.len()), (0, 0));
    }
}
