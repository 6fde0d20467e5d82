//! Planted defects: one small, realistic mistake each, compiled in only with the feature `planted` and chosen at run time,
//! so that the tests can show that they would find it. `tests/planted/` has the list and who finds each.

/// Is this defect chosen, by `OVS_PLANTED`? Always false in a build without the feature, and then costs nothing.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// Is this defect chosen, by `OVS_PLANTED`?
#[cfg(feature = "planted")]
pub fn planted(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("OVS_PLANTED").unwrap_or_default()) == name
}
