//! Sizes as people write them: `10GiB`, `512MiB`, `1G`, `4096`.

use thiserror::Error;

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not a number with a known unit.
    #[error("size {0:?} is not a number with a unit: write 10GiB, 512MiB, 1TiB, or bytes")]
    Form(String),
    /// More than 64 bits of bytes.
    #[error("size {0:?} is too large")]
    TooLarge(String),
}

/// Bytes from text. `K`, `M`, `G`, `T` and `KiB` … `TiB` are powers of 1024, `kB`, `MB`, `GB`, `TB` powers of 1000;
/// case does not matter, a fraction is allowed where it gives whole bytes (`1.5GiB`).
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let form = || SizeError::Form(text.chars().take(40).collect());
    let trimmed = text.trim();
    let unit_at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_at);
    let factor: u128 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(form()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 12 || number.ends_with('.') {
        return Err(form());
    }
    let whole: u128 = whole.parse().map_err(|_| form())?;
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| form())? };
    let too_large = || SizeError::TooLarge(text.chars().take(40).collect());
    // Twenty digits, twelve behind the point and a factor of 2^40 are more than 128 bits.
    let scaled = (whole * scale + fraction).checked_mul(factor).ok_or_else(too_large)?;
    if !scaled.is_multiple_of(scale) {
        return Err(form());
    }
    u64::try_from(scaled / scale).map_err(|_| too_large())
}

/// Bytes as people read them: `1.5GiB`, `10GiB`, `0B`; one decimal at most, rounded down.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = ((63 - bytes.max(1).leading_zeros()) / 10).min(4);
    let tenths = ((bytes as u128 * 10) >> (10 * unit)) as u64;
    let name = UNITS[unit as usize];
    match tenths % 10 {
        0 => format!("{}{name}", tenths / 10),
        tenth => format!("{}.{tenth}{name}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(parse_size(text).ok(), expected, "{text:?}");
    }

    #[test]
    fn sizes_with_units() {
        check("4096", Some(4096));
        check("1GiB", Some(1 << 30));
        check("1g", Some(1 << 30));
        check("1.5 GiB", Some(3 << 29));
        check("10MB", Some(10_000_000));
        check("64TiB", Some(64 << 40));
        for bad in
            ["", "GiB", "-1", "1.", "0x10", "1 parsec", "99999999999999999999999", "1.0000000000001k", "1e3"]
        {
            check(bad, None);
        }
        check("99999999999TiB", None);
        check("99999999999999999999.999999999999TiB", None);
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in
            [(0, "0B"), (4096, "4KiB"), (3 << 29, "1.5GiB"), (64 << 40, "64TiB"), (1023, "1023B")]
        {
            assert_eq!(format_size(bytes), text);
        }
    }
}
