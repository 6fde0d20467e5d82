//! Limits of a vDisk's guests on the command line.

use super::target::duration_ms;
use clap::Args;
use ovs_api::{LimitsPatch, RatesPatch};
use ovs_units::parse_size;

/// A limit, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(Option<u64>);

/// What guests may do per second. Those who say something of reads and of writes say it of both at once; each that is given holds.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Limits per second; \"none\" takes one away")]
pub struct LimitArgs {
    /// Requests
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub iops: Option<Limit>,
    /// Requests in a burst, after a rest
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub iops_burst: Option<Limit>,
    /// Bytes read and written, such as 100MiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub bandwidth: Option<Limit>,
    /// The same in a burst
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub bandwidth_burst: Option<Limit>,
    /// Reads
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub read_iops: Option<Limit>,
    /// Reads in a burst
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub read_iops_burst: Option<Limit>,
    /// Bytes read
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub read_bandwidth: Option<Limit>,
    /// Bytes read in a burst
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub read_bandwidth_burst: Option<Limit>,
    /// Writes, discards and write-zeroes
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub write_iops: Option<Limit>,
    /// The same in a burst
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub write_iops_burst: Option<Limit>,
    /// Bytes written
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub write_bandwidth: Option<Limit>,
    /// Bytes written in a burst
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub write_bandwidth_burst: Option<Limit>,
    /// For how long a burst goes on, whole seconds such as 30s [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = burst_time)]
    pub burst_time: Option<Limit>,
}

impl LimitArgs {
    /// As the RPC has it.
    pub fn patch(&self) -> LimitsPatch {
        let rates = |iops: &Option<Limit>,
                     iops_burst: &Option<Limit>,
                     bytes: &Option<Limit>,
                     burst: &Option<Limit>| {
            let given = |limit: &Option<Limit>| limit.map(|limit| limit.0);
            RatesPatch {
                iops: given(iops),
                iops_burst: given(iops_burst),
                bytes_per_s: given(bytes),
                bytes_per_s_burst: given(burst),
            }
        };
        LimitsPatch {
            total: rates(&self.iops, &self.iops_burst, &self.bandwidth, &self.bandwidth_burst),
            read: rates(
                &self.read_iops,
                &self.read_iops_burst,
                &self.read_bandwidth,
                &self.read_bandwidth_burst,
            ),
            write: rates(
                &self.write_iops,
                &self.write_iops_burst,
                &self.write_bandwidth,
                &self.write_bandwidth_burst,
            ),
            burst_s: self.burst_time.map(|limit| limit.0),
        }
    }
}

fn limit(text: &str, read: impl FnOnce(&str) -> Result<u64, String>) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => read(text).map(|value| Limit(Some(value))),
    }
}

fn count(text: &str) -> Result<Limit, String> {
    let refused = |_| {
        let given: String = text.chars().take(40).collect();
        format!("{given:?} is no count per second: write 500, or none")
    };
    limit(text, |text| text.parse().map_err(refused))
}

fn bytes(text: &str) -> Result<Limit, String> {
    let refused = |error| format!("{error}; or none");
    limit(text, |text| parse_size(text.strip_suffix("/s").unwrap_or(text)).map_err(refused))
}

fn burst_time(text: &str) -> Result<Limit, String> {
    let whole = |ms: u64| match ms.is_multiple_of(1000) {
        true => Ok(ms / 1000),
        false => Err(format!("time {text:?} is no whole seconds: write 30s, or none")),
    };
    limit(text, |text| duration_ms(text).and_then(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_their_units() {
        assert_eq!((count("500"), count("none")), (Ok(Limit(Some(500))), Ok(Limit(None))));
        assert_eq!(bytes("100MiB"), Ok(Limit(Some(100 << 20))));
        assert_eq!(bytes("1.5GiB/s"), Ok(Limit(Some(3 << 29))));
        assert_eq!(burst_time("2m"), Ok(Limit(Some(120))));
        for (read, bad) in [
            (count as fn(&str) -> Result<Limit, String>, "-5"),
            (count, "5k"),
            (count, ""),
            (count, "99999999999999999999"),
            (bytes, "-1MiB"),
            (bytes, "fast"),
            (bytes, "99999999TiB"),
            (burst_time, "1500ms"),
            (burst_time, "30"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("none") || error.contains("30s"), "{error}");
        }
    }
}
