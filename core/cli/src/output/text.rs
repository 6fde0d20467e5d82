//! Values as people read them.

use jiff::tz::TimeZone;
use ovs_api::Timestamp;
use ovs_units::format_size;

/// Text that stays on its line and cannot steer a terminal: control characters are shown escaped.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        // Also the marks that reverse the direction of what follows.
        if character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// `10GiB`.
pub fn size(bytes: u64) -> String {
    format_size(bytes)
}

/// `2026-11-20 11:17:03` in a time zone; what is no time as it came.
pub fn time(timestamp: &Timestamp, zone: &TimeZone) -> String {
    match timestamp.0.parse::<jiff::Timestamp>() {
        Ok(moment) => moment.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => timestamp.0.clone(),
    }
}

/// `3d 4h`, `4h 5m`, `5m 6s`, `6s`: the two largest units.
pub fn duration(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = parts[first..].iter().take(2).filter(|(count, _)| *count > 0 || first == 3);
    shown.map(|(count, unit)| format!("{count}{unit}")).collect::<Vec<_>>().join(" ")
}

/// `yes` or `no`.
pub fn yes_no(value: bool) -> String {
    if value { "yes".into() } else { "no".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_local() {
        let moment = Timestamp("2026-11-20T10:17:03.12Z".into());
        assert_eq!(time(&moment, &TimeZone::UTC), "2026-11-20 10:17:03");
        assert_eq!(time(&moment, &TimeZone::fixed(jiff::tz::offset(-5))), "2026-11-20 05:17:03");
        assert_eq!(time(&Timestamp("yesterday".into()), &TimeZone::UTC), "yesterday");
    }

    #[test]
    fn durations() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (3600, "1h"),
            (90_061, "1d 1h"),
            (7 * 86_400, "7d"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(one_line("plain ümlaut"), "plain ümlaut");
        assert_eq!(one_line("a\u{1b}[31m\r\n\u{202e}"), "a\\u{1b}[31m\\r\\n\\u{202e}");
    }
}
