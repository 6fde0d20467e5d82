//! Labels: the key-value pairs that doors keep with an object (Cinder metadata, VASA metadata, Docker labels, and the
//! owner and mode of a file under FUSE).

use crate::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, str::FromStr};

/// Labels of one object at most.
pub const LABEL_COUNT_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 4096;
/// All of an object's labels together: they are in its record, which is written with every change.
const TOTAL_BYTES_MAX: usize = 32 << 10;

/// Labels of an object, stored verbatim: any text but NUL, a value in at most 4096 bytes of UTF-8, all keys and values
/// together in at most 32 KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend(
    "propertyNames" = { "pattern": "^[a-zA-Z0-9._/:-]{1,128}$" },
    "additionalProperties" = { "type": "string", "pattern": "^[^\\x00]*$", "maxLength": 4096 },
    "maxProperties" = 64
))]
pub struct Labels(pub BTreeMap<String, String>);

/// A change to labels: a value sets, null removes, a key that is not named stays. What comes of it must be allowed as
/// labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend(
    "propertyNames" = { "pattern": "^[a-zA-Z0-9._/:-]{1,128}$" },
    "additionalProperties" = { "type": ["string", "null"], "pattern": "^[^\\x00]*$", "maxLength": 4096 },
    "maxProperties" = 128
))]
pub struct LabelsPatch(pub BTreeMap<String, Option<String>>);

/// `KEY` (has the label) or `KEY=VALUE` (has it with that value, of at most 4096 bytes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(
    with = "String",
    extend("pattern" = "^[a-zA-Z0-9._/:-]{1,128}(=[^\\x00]*)?$", "maxLength" = 128 + 1 + 4096)
)]
pub struct LabelSelector {
    /// The label's key.
    pub key: String,
    /// Its value, when that matters.
    pub value: Option<String>,
}

fn check_key(key: &str) -> Result<(), Problem> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':');
    if (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(allowed) {
        return Ok(());
    }
    Err(Problem::field("labels", key, "keys of 1 to 128 letters, digits, '.', '_', '-', '/' or ':'"))
}

fn check_value(value: &str) -> Result<(), Problem> {
    if value.len() <= VALUE_BYTES_MAX && !value.contains('\0') {
        return Ok(());
    }
    Err(Problem::field("labels", value, "values of at most 4096 bytes without NUL"))
}

impl Labels {
    /// Refuses keys and values that no object may have, and too many of them.
    pub fn check(&self) -> Result<(), Problem> {
        for (key, value) in &self.0 {
            check_key(key)?;
            check_value(value)?;
        }
        let total: usize = self.0.iter().map(|(key, value)| key.len() + value.len()).sum();
        if self.0.len() > LABEL_COUNT_MAX || total > TOTAL_BYTES_MAX {
            let given = format!("{} labels of {total} bytes", self.0.len());
            return Err(Problem::field("labels", given, "at most 64 labels of 32 KiB together"));
        }
        Ok(())
    }

    /// The labels after a change; refused when the result is not allowed.
    pub fn patched(&self, patch: &LabelsPatch) -> Result<Labels, Problem> {
        let mut labels = self.clone();
        for (key, value) in &patch.0 {
            match value {
                Some(value) => labels.0.insert(key.clone(), value.clone()),
                None => labels.0.remove(key),
            };
        }
        labels.check()?;
        Ok(labels)
    }

    /// True when every selector holds.
    pub fn match_all(&self, selectors: &[LabelSelector]) -> bool {
        selectors.iter().all(|selector| {
            self.0
                .get(&selector.key)
                .is_some_and(|value| selector.value.as_ref().is_none_or(|wanted| wanted == value))
        })
    }
}

impl LabelsPatch {
    /// Refuses keys and values that no object may have.
    pub fn check(&self) -> Result<(), Problem> {
        if self.0.len() > 2 * LABEL_COUNT_MAX {
            return Err(Problem::field(
                "labels",
                format!("{} changes", self.0.len()),
                "at most 128 changes at once",
            ));
        }
        for (key, value) in &self.0 {
            check_key(key)?;
            check_value(value.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl FromStr for LabelSelector {
    type Err = Problem;
    fn from_str(text: &str) -> Result<LabelSelector, Problem> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text, None),
        };
        check_key(key)?;
        check_value(value.unwrap_or_default())?;
        Ok(LabelSelector { key: key.to_owned(), value: value.map(str::to_owned) })
    }
}

impl TryFrom<String> for LabelSelector {
    type Error = Problem;
    fn try_from(text: String) -> Result<LabelSelector, Problem> {
        text.parse()
    }
}

impl From<LabelSelector> for String {
    fn from(selector: LabelSelector) -> String {
        match selector.value {
            Some(value) => format!("{}={value}", selector.key),
            None => selector.key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_patch_sets_and_removes() {
        let patch: LabelsPatch = serde_json::from_str(r#"{"a": null, "b": "2", "c": "3"}"#).unwrap();
        let patched = labels(&[("a", "1"), ("b", "1"), ("d", "4")]).patched(&patch).unwrap();
        assert_eq!(patched, labels(&[("b", "2"), ("c", "3"), ("d", "4")]));
    }

    #[test]
    fn selectors_ask_for_a_key_or_a_value() {
        let all = labels(&[("VMW_VVolType", "Data"), ("empty", "")]);
        for (text, expected) in
            [("VMW_VVolType", true), ("VMW_VVolType=Data", true), ("VMW_VVolType=Swap", false)]
        {
            assert_eq!(all.match_all(&[text.parse().unwrap()]), expected, "{text}");
        }
        assert!(all.match_all(&["empty=".parse().unwrap()]));
        assert!(!all.match_all(&["VMW_VVolType".parse().unwrap(), "missing".parse().unwrap()]));
    }

    #[test]
    fn too_much_is_refused() {
        assert!(labels(&[("k e y", "1")]).check().is_err());
        assert!(labels(&[("", "1")]).check().is_err());
        assert!(labels(&[("k", &"x".repeat(4097))]).check().is_err());
        let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
        assert!(Labels(many.iter().map(|key| (key.clone(), String::new())).collect()).check().is_err());
        let value = "x".repeat(4096);
        assert!(Labels((0..9).map(|n| (n.to_string(), value.clone())).collect()).check().is_err());
    }
}
