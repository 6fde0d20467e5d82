//! What nobody may see, taken out of what a store says: it may say back to us what we sent, whole, in other spellings, or cut off.
//!
//! Invariant: text of a store's is cleaned here before anything else is done with it, shortening above all.

use crate::Credentials;
use http::{HeaderMap, HeaderName, header};
use std::fmt::Write as _;

const HIDDEN: &str = "(secret)";
/// What of an error's text is read.
pub(crate) const ERROR_BYTES_MAX: usize = 16 * 1024;
/// What of it is shown.
const SHOWN_MAX: usize = 300;
/// A name so short may be a part of any word.
const NAME_BYTES_MIN: usize = 8;
/// Headers with tokens and signatures.
const SECRET_HEADERS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-auth-key"),
    HeaderName::from_static("x-subject-token"),
];

/// Secrets in all their spellings.
#[derive(Clone)]
pub(crate) struct Redactor {
    secrets: Vec<String>,
    /// Who asks: hidden as words of their own.
    names: Vec<String>,
}

impl Redactor {
    /// Of what is configured.
    pub(crate) fn new(credentials: &Credentials) -> Redactor {
        let mut redactor = Redactor { secrets: Vec::new(), names: Vec::new() };
        let (name, secret) = (credentials.name.reveal(), credentials.secret.reveal());
        redactor.add(secret);
        // Google's: a document with the key in it.
        if let Ok(serde_json::Value::Object(parts)) = serde_json::from_str(secret) {
            parts.values().filter_map(|part| part.as_str()).filter(|part| part.len() >= 16).for_each(
                |part| {
                    redactor.add(part);
                },
            );
        }
        match name.len() {
            0..NAME_BYTES_MIN => redactor.names = spellings(name),
            _ => redactor.add(name),
        }
        redactor
    }

    /// A token, or another part of what is sent.
    pub(crate) fn add(&mut self, secret: &str) {
        self.secrets.extend(spellings(secret));
        self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        self.secrets.dedup();
    }

    /// With what a request has of its own: tokens that OpenDAL has asked for, signatures.
    pub(crate) fn and(&self, headers: &HeaderMap) -> Redactor {
        let mut redactor = self.clone();
        for value in SECRET_HEADERS.iter().filter_map(|name| headers.get(name)?.to_str().ok()) {
            redactor.add(value);
            redactor.add(value.rsplit([' ', '=']).next().unwrap_or_default());
        }
        redactor
    }

    /// The beginning of an answer.
    pub(crate) fn clean_body(&self, body: &[u8]) -> String {
        let read = &body[..body.len().min(ERROR_BYTES_MAX)];
        self.clean(&String::from_utf8_lossy(read), read.len() < body.len())
    }

    /// `is_cut`: the text goes on, so that its end may be the beginning of a secret.
    pub(crate) fn clean(&self, text: &str, is_cut: bool) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret, HIDDEN);
        }
        for name in &self.names {
            text = hide_word(&text, name);
        }
        if is_cut {
            let begun = |secret: &String| {
                (1..secret.len())
                    .rev()
                    .find(|&length| secret.is_char_boundary(length) && text.ends_with(&secret[..length]))
            };
            let begun = self.secrets.iter().chain(&self.names).filter_map(begun).max().unwrap_or(0);
            text.truncate(text.len() - begun);
        }
        text
    }
}

/// The beginning of a text that is clean, on one line.
pub(crate) fn shorten(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(SHOWN_MAX).collect()
}

/// As it is, and as a store may write it: in a URL, in XML, in JSON.
fn spellings(secret: &str) -> Vec<String> {
    let (mut url, mut small_url, mut xml) = (String::new(), String::new(), String::new());
    for byte in secret.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                url.push(char::from(byte));
                small_url.push(char::from(byte));
            }
            _ => {
                write!(url, "%{byte:02X}").unwrap_or_default();
                write!(small_url, "%{byte:02x}").unwrap_or_default();
            }
        }
    }
    for letter in secret.chars() {
        match letter {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\'' => xml.push_str("&apos;"),
            _ => xml.push(letter),
        }
    }
    let json = serde_json::Value::from(secret).to_string();
    let json = json[1..json.len() - 1].to_owned();
    let all = [secret.to_owned(), url.replace('%', "%25"), small_url, url, xml, json];
    let mut all: Vec<String> = all.into_iter().filter(|one| !one.is_empty()).collect();
    all.sort();
    all.dedup();
    all
}

fn hide_word(text: &str, word: &str) -> String {
    let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let (mut clean, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let last = before.chars().next_back().or_else(|| clean.chars().next_back());
        clean.push_str(before);
        clean.push_str(if is_part(last) || is_part(after.chars().next()) { word } else { HIDDEN });
        rest = after;
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, secret: &str, text: &str, is_cut: bool, expected: &str) {
        let clean = Redactor::new(&Credentials::new(name, secret)).clean(text, is_cut);
        assert_eq!(clean, expected, "{name} {secret} {text}");
    }

    #[test]
    fn secrets_are_hidden_in_all_spellings() {
        check("me", "hunter2", "hunter2, xhunter2x", false, "(secret), x(secret)x");
        check(
            "me",
            "a/b+c=",
            "a/b+c= a%2Fb%2Bc%3D a%252Fb%252Bc%253D a%2fb%2bc%3d",
            false,
            "(secret) (secret) (secret) (secret)",
        );
        check("me", "a&<\"b", "a&amp;&lt;&quot;b a&<\\\"b", false, "(secret) (secret)");
        check("AKIAIOSFODNN7EXAMPLE", "x", "id AKIAIOSFODNN7EXAMPLE.", false, "id (secret).");
        check(
            "me",
            "",
            "me or me? some men, theme: me",
            false,
            "(secret) or (secret)? some men, theme: (secret)",
        );
        check("", "", "text", true, "text");
        let google = r#"{"private_key": "-----BEGIN\nabcdefgh", "type": "x"}"#;
        check("", google, "x -----BEGIN\nabcdefgh -----BEGIN\\nabcdefgh", false, "x (secret) (secret)");
    }

    #[test]
    fn the_text_of_an_error_is_short_and_on_one_line() {
        let redactor = Redactor::new(&Credentials::new("", ""));
        let text = redactor.clean_body(b"<Error>\r\n  <Code>x</Code>\0\xff");
        assert_eq!(shorten(&text), "<Error> <Code>x</Code> \u{fffd}");
        assert_eq!(shorten(&redactor.clean_body(&[b'x'; 100_000])).len(), SHOWN_MAX);
    }

    #[test]
    fn what_is_cut_off_is_no_secret_either() {
        check("me", "hunter2", "it is hunt", true, "it is ");
        check("me", "hunter2", "it is hunt", false, "it is hunt");
        check("me", "hunter2", "it is hunter2", true, "it is (secret)");
        check("me", "ää-öö", "it is ää-ö", true, "it is ");
    }

    #[test]
    fn what_a_request_carries_is_hidden_too() {
        let mut headers = HeaderMap::new();
        let signed = "AWS4-HMAC-SHA256 Credential=x/y, SignedHeaders=host, Signature=0123456789abcdef";
        headers.insert(header::AUTHORIZATION, signed.parse().unwrap());
        headers.insert("x-auth-token", "the-token".parse().unwrap());
        let redactor = Redactor::new(&Credentials::new("me", "hunter2")).and(&headers);
        assert_eq!(redactor.clean("got 0123456789abcdef and the-token", false), "got (secret) and (secret)");
        headers.insert(header::AUTHORIZATION, "Bearer of-google".parse().unwrap());
        let redactor = redactor.and(&headers);
        assert_eq!(redactor.clean(&format!("of-google, {signed}"), false), "(secret), (secret)");
    }
}
