//! Lists come in pages; a cursor says where the next one starts.

use super::Request;
use crate::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Items on a page when the request does not say.
pub const LIMIT_DEFAULT: u32 = 100;
/// Items on a page at most.
pub const LIMIT_MAX: u32 = 1000;
const CURSOR_BYTES_MAX: usize = 1024;

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Give this as `cursor` for the next page; missing on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<Cursor>,
}

/// Where a page starts: opaque to clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Cursor(
    // Keys are made of names, which are ASCII.
    #[schemars(regex(pattern = r"^([0-7][0-9a-f])*$"), length(max = 1024))] pub String,
);

impl Cursor {
    /// The page after the item with this key.
    pub fn after(key: &str) -> Cursor {
        Cursor(key.bytes().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The key of the last item of the page before; refused when the cursor is none of ours.
    pub fn key(&self) -> Result<String, Problem> {
        let digits = self.0.as_bytes();
        let bytes = (digits.len() <= CURSOR_BYTES_MAX && digits.len().is_multiple_of(2)).then(|| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            digits.chunks(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
        });
        let bytes: Option<Vec<u8>> = bytes.flatten();
        let key = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        key.ok_or_else(|| Problem::field("cursor", &self.0, "a next_cursor of this list"))
    }
}

impl<T> Page<T> {
    /// The page that a request asks for, out of all items in the order of their keys (which are distinct).
    pub fn cut(
        items: impl IntoIterator<Item = (String, T)>,
        limit: Option<u32>,
        cursor: Option<&Cursor>,
    ) -> Result<Page<T>, Problem> {
        let after = cursor.map(Cursor::key).transpose()?;
        let limit = limit.unwrap_or(LIMIT_DEFAULT) as usize;
        let mut rest = items.into_iter().filter(|(key, _)| after.as_ref().is_none_or(|after| key > after));
        let mut page = Page { items: Vec::new(), next_cursor: None };
        let mut last_key = None;
        for (key, item) in rest.by_ref().take(limit) {
            page.items.push(item);
            last_key = Some(key);
        }
        if rest.next().is_some() {
            page.next_cursor = last_key.as_deref().map(Cursor::after);
        }
        Ok(page)
    }
}

/// Which page of a list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Items on the page, 100 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// Refuses a page of none or too many.
pub(crate) fn check_limit(limit: Option<u32>) -> Result<(), Problem> {
    match limit {
        Some(limit) if !(1..=LIMIT_MAX).contains(&limit) => Err(Problem::field("limit", limit, "1 to 1000")),
        _ => Ok(()),
    }
}

impl Request for ListQuery {
    fn check(&self) -> Result<(), Problem> {
        check_limit(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let all: Vec<(String, u32)> = (0..25).map(|n| (format!("{n:03}"), n)).collect();
        let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = Page::cut(all.clone(), Some(10), cursor.as_ref()).unwrap();
            seen.extend(page.items);
            pages += 1;
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!((seen, pages), ((0..25).collect(), 3));
    }

    #[test]
    fn a_full_last_page_has_no_successor() {
        let page = Page::cut([("a".to_owned(), 1), ("b".to_owned(), 2)], Some(2), None).unwrap();
        assert_eq!(page.next_cursor, None);
    }

    #[test]
    fn foreign_cursors_are_refused() {
        for bad in ["x", "0", "zz", "é", "ff", &"00".repeat(600)] {
            assert!(Cursor(bad.to_owned()).key().is_err(), "{bad}");
        }
        assert_eq!(Cursor::after("default/é").key().unwrap(), "default/é");
    }
}
