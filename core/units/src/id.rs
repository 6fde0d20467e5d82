//! Identities and counters.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map($name)
            }
        }
    };
}

uuid_id!(
    /// One vDisk, for ever: it outlives renames and is never given again.
    VdiskId
);
uuid_id!(
    /// One vPool.
    VpoolId
);
uuid_id!(
    /// One snapshot of one vDisk.
    SnapshotId
);
uuid_id!(
    /// One attempt to store an object; every attempt after a crash draws a new one.
    PutId
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
            schemars::JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// A number that rises whenever a vDisk is opened for writing; the fence between its owners.
    Epoch
);
counter!(
    /// The position of an operation in the accepted order of one vDisk; dense, never reset.
    Sequence
);
counter!(
    /// The position of a record in one epoch of a vDisk's journal on the backend; dense from 0.
    JournalIndex
);
counter!(
    /// The number of an SCO within one epoch of a vDisk.
    ScoNumber
);

impl Sequence {
    /// None is later.
    pub const LAST: Sequence = Sequence(crate::COUNTER_MAX - 1);
}
