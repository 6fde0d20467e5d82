//! Words that people and programs give: names, paths, sizes, times, and what else the command line takes.

use crate::Family;
use ovs_backend::ObjectName;
use ovs_cli::args::target::{
    NewVdisk, SnapshotTarget, SourceTarget, VdiskTarget, byte_count, duration_ms, label, label_selector,
    policy, vdisk_size,
};
use ovs_units::{Name, VDISK_SIZE_BYTES_MAX, VdiskId, VdiskPath, format_size, parse_size};
use std::{fmt::Debug, fmt::Display, str::FromStr};

/// One word.
pub(crate) const TEXT: Family = Family {
    name: "text",
    check: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let taken = [
            name(text),
            size(text),
            word::<VdiskPath>(text),
            word::<VdiskId>(text),
            word::<VdiskTarget>(text),
            word::<SnapshotTarget>(text),
            word::<SourceTarget>(text),
            word::<NewVdisk>(text),
            ObjectName::new(text).is_ok_and(|name| name.as_str() == text),
            duration(text),
            label(text).is_ok_and(|(key, value)| format!("{key}={value}") == text),
            label_selector(text).is_ok_and(|selector| String::from(selector) == text),
            policy(text).is_ok(),
        ];
        taken.contains(&true)
    },
    seeds: || SEEDS.iter().map(|text| text.as_bytes().to_vec()).collect(),
    memory_bytes: 32 << 10,
    memory_per_byte: 16,
};

/// Never a path.
fn name(text: &str) -> bool {
    let Ok(name) = Name::new(text) else { return false };
    assert_eq!(name.as_str(), text);
    assert!(!text.contains('/') && !text.starts_with('.') && text.len() <= 128);
    true
}

fn size(text: &str) -> bool {
    if let Ok(size) = vdisk_size(text) {
        assert!(size.0 > 0 && size.0.is_multiple_of(4096) && size.0 <= VDISK_SIZE_BYTES_MAX);
    }
    let Ok(bytes) = parse_size(text) else { return false };
    assert_eq!(byte_count(text).map(|count| count.0), Ok(bytes));
    assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
    // What people are shown is rounded down to a tenth of the unit.
    let shown = format_size(bytes);
    assert!(shown.len() <= "16777215.9TiB".len(), "{shown}");
    true
}

fn duration(text: &str) -> bool {
    let Ok(ms) = duration_ms(text) else { return false };
    assert_eq!(duration_ms(&format!("{ms}ms")), Ok(ms));
    true
}

fn word<T: FromStr + Display + Debug + PartialEq>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{value:?}");
    true
}

const SEEDS: [&str; 13] = [
    "a",
    "pg-data_1.2",
    "default/x",
    "default/x@s",
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
    "67e55044-10b1-426f-9247-bb680e5fe0c8@s",
    "10GiB",
    "1.5 GiB",
    "99999999999999999999",
    "500ms",
    "a=b=c",
    "4,2,5,1",
    "v/0a1b/j/1-2",
];
