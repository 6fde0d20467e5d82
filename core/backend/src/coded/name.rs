//! What a fragment is called on its drive: so that a drive lists fragments in the order of their objects.
//!
//! The object's name, each `-` as `-.`, then `--`, how it was cut up, the chunk and the number. What is put again under another
//! policy lies beside what there is. `--` is below everything that may follow in a
//! name, so of two names of which one begins with the other, the shorter one's fragments come first, too.

use crate::{BackendError, ObjectName};

/// The beginning of names that fragments of objects with this prefix have.
pub(super) fn prefix_of(prefix: &str) -> String {
    prefix.replace('-', "-.")
}

/// The beginning of the names of one object's fragments.
pub(super) fn fragments_of(name: &ObjectName) -> String {
    format!("{}--", prefix_of(name.as_str()))
}

/// A fragment's name on its drive. An object whose name leaves no room for it can have none.
pub(super) fn fragment(
    name: &ObjectName,
    layout: u32,
    chunk: u32,
    number: u8,
) -> Result<ObjectName, BackendError> {
    ObjectName::new(format!("{}{layout:x}.{chunk:x}.{number:x}", fragments_of(name))).map_err(|error| {
        BackendError::Retry {
            operation: "name",
            object: name.to_string(),
            reason: format!("a fragment of it: {error}"),
        }
    })
}

/// Behind all fragments of an object and before those of the next; where that is longer than a name may be, before the
/// object's own: whoever lists from there leaves out what comes first.
pub(super) fn behind(name: &ObjectName) -> Option<ObjectName> {
    let exact = format!("{}zz", fragments_of(name));
    let escaped = prefix_of(name.as_str());
    let shorter = (1..escaped.len()).rev().filter_map(|end| ObjectName::new(&escaped[..end]).ok());
    ObjectName::new(exact).ok().or_else(|| shorter.into_iter().next())
}

/// The reverse of [`fragment`]; `None` for what is no fragment of ours.
pub(super) fn parse(found: &ObjectName) -> Option<(ObjectName, Place)> {
    let (escaped, place) = found.as_str().rsplit_once("--")?;
    let mut numbers = place.split('.').map(|text| u32::from_str_radix(text, 16).ok());
    let (layout, chunk, number) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let place = Place { layout, chunk, number: number.try_into().ok()? };
    let name = ObjectName::new(escaped.replace("-.", "-")).ok()?;
    (fragment(&name, layout, chunk, place.number).ok()? == *found).then_some((name, place))
}

/// Which of an object's fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// How the object was cut up.
    pub(super) layout: u32,
    pub(super) chunk: u32,
    pub(super) number: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object() -> impl Strategy<Value = ObjectName> {
        "[a0-][a0_.-]{0,6}(/[a0-][a0.-]{0,4}){0,2}"
            .prop_map(|text| ObjectName::new(text).expect("a good name"))
    }

    /// The longest names there are, in a composite of composites.
    #[test]
    fn a_map_s_copy_has_a_name_on_every_drive() {
        let digits = |count: usize| "f".repeat(count);
        let vdisk = uuid::Uuid::max();
        let copy = format!("v/{vdisk}/c/{}-{}-{}-{}", digits(16), digits(16), digits(32), digits(8));
        let copy = ObjectName::new(copy).expect("a good name");
        let outer = fragment(&copy, u32::MAX, 0xffff, u8::MAX).expect("short enough");
        fragment(&outer, u32::MAX, 0xff, u8::MAX).expect("short enough");
    }

    proptest! {
        #[test]
        fn fragments_are_in_the_order_of_their_objects(
            (a, b) in (object(), object()), (chunk, number, other) in (0..300u32, any::<u8>(), 0..300u32)
        ) {
            let of_a = fragment(&a, other, chunk, number).expect("short");
            let of_b = fragment(&b, chunk, other, 255 - number).expect("short");
            if a != b {
                prop_assert_eq!(a.cmp(&b), of_a.cmp(&of_b));
            }
            prop_assert_eq!(parse(&of_a), Some((a.clone(), Place { layout: other, chunk, number })));
            let behind = behind(&a).expect("short");
            prop_assert!(of_a < behind && (b <= a || behind < of_b), "{behind} {of_b}");
            prop_assert!(of_a.as_str().starts_with(&prefix_of(&a.as_str()[..a.as_str().len() / 2])));
        }

        #[test]
        fn what_is_no_fragment_is_none(text in "[a0-]([a0_.-]{0,6})--[0-9a-g.]{0,7}") {
            let found = ObjectName::new(text).expect("a good name");
            if let Some((name, Place { layout, chunk, number })) = parse(&found) {
                prop_assert_eq!(fragment(&name, layout, chunk, number).expect("it was"), found);
            }
        }
    }
}
