//! `docs/api-map.md` names operations; what it names must exist, and be built or not built as it says.

use ovs_api::OPERATIONS;
use std::collections::BTreeSet;

const API_MAP: &str = include_str!("../../../docs/api-map.md");

/// The words in backticks of a table cell that look like an operation's id, and whether each is bold.
fn ids(cell: &str) -> Vec<(String, bool)> {
    let verbs = [
        "get_",
        "list_",
        "create_",
        "update_",
        "delete_",
        "set_",
        "rollback_",
        "snapshot_",
        "clone_",
        "stream_",
        "cancel_",
    ];
    let mut ids = Vec::new();
    for (delimiter, bold) in [("`", false), ("**", true)] {
        for word in cell.split(delimiter).skip(1).step_by(2) {
            let id: String = word.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if verbs.iter().any(|verb| id.starts_with(verb)) {
                ids.push((id, bold));
            }
        }
    }
    ids
}

/// The second column of every row under the heading of a door.
fn core_cells() -> Vec<&'static str> {
    let doors = API_MAP.split("\n## ").filter(|section| section.contains("| native operation | core RPC |"));
    doors
        .flat_map(str::lines)
        .filter(|line| line.starts_with('|') && !line.contains("---") && !line.contains("native operation"))
        .filter_map(|line| line.split('|').nth(2))
        .collect()
}

#[test]
fn every_operation_named_exists_and_is_bold_when_it_answers_501() {
    let mut named = BTreeSet::new();
    for (id, bold) in core_cells().into_iter().flat_map(ids) {
        let operation = OPERATIONS.iter().find(|operation| operation.id == id);
        let operation = operation.unwrap_or_else(|| panic!("{id} is no operation"));
        assert_eq!(operation.until.is_some(), bold, "{id}: bold means that it answers 501");
        named.insert(id);
    }
    assert!(named.len() > 25, "{named:?}");
}

#[test]
fn everything_missing_is_asked_for_and_described() {
    let missing = API_MAP.split("\n## What is missing").nth(1).unwrap();
    let described: BTreeSet<&str> = missing
        .lines()
        .filter_map(|line| line.strip_prefix("| *")?.split_once('*').map(|(what, _)| what))
        .collect();
    let mut asked = BTreeSet::new();
    for cell in core_cells() {
        asked.extend(cell.split("→ *").skip(1).map(|rest| rest.split('*').next().unwrap()));
    }
    // One is asked for in the notes of its row.
    asked.insert("replace by rename");
    assert_eq!(asked, described);
}
