//! What was ever found, again: every file of `fuzz/cases/<family>/` does no harm.

use ovs_decoders::FAMILIES;
use std::{fs, path::Path};

#[test]
fn what_was_found_stays_mended() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/cases");
    let mut folders = 0;
    for folder in fs::read_dir(&cases).expect("fuzz/cases") {
        let folder = folder.expect("an entry").path();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(FAMILIES.iter().any(|family| family.name == name), "{name} is no family");
        folders += 1;
        for case in fs::read_dir(&folder).expect("a folder of cases") {
            let case = case.expect("an entry").path();
            // The last line before a panic: which case it was.
            eprintln!("{}", case.display());
            ovs_decoders::check(&name, &fs::read(&case).expect("a case"));
        }
    }
    assert!(folders > 0, "nothing in {}", cases.display());
}

/// A family without a target is not fuzzed; a target without a family has no properties.
#[test]
fn every_family_has_a_target() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let mut found: Vec<String> = fs::read_dir(targets)
        .expect("fuzz/fuzz_targets")
        .map(|target| {
            target.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect();
    found.sort();
    let mut names: Vec<String> = FAMILIES.iter().map(|family| family.name.to_owned()).collect();
    names.sort();
    assert_eq!(found, names);
    let listed =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/decoders.md")).expect("it");
    for name in names {
        assert!(listed.contains(&format!("`{name}`")), "docs/decoders.md does not have {name}");
    }
}
