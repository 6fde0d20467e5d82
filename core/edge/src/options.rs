//! The command line of ovsd-edge.

use crate::log::LogFormat;
use clap::Parser;
use ovs_units::Name;
use std::{path::PathBuf, time::Duration};

/// Shows the vDisks of an ovsd as files: every vPool on /mnt/ovs/<VPOOL>, every vDisk as <NAME>.raw.
#[derive(Debug, Clone, Parser)]
#[command(name = "ovsd-edge", version)]
pub struct Options {
    /// Everything below this directory instead of the system's: sockets in DIR/run/ovs, mounts in DIR/mnt/ovs.
    #[arg(long, value_name = "DIR", env = "OVS_ROOT")]
    pub root: Option<PathBuf>,

    /// Mount this vPool only; may be given several times. [default: all there are]
    #[arg(long, value_name = "VPOOL")]
    pub vpool: Vec<Name>,

    /// How long I/O waits for an ovsd that is away before it fails, in seconds. [default: for ever]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub io_timeout: Option<Duration>,

    /// A request older than this, while ovsd is there and answers nothing, is reported to the log.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "120")]
    pub stuck_after: Duration,

    /// Also abort a mount that is stuck: who uses it gets errors, and it is mounted anew.
    #[arg(long)]
    pub abort_stuck: bool,

    /// How log lines look. What is logged: OVS_LOG (error, warn, info, debug).
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=31_536_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not allowed: whole seconds from 1 to 31536000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let options =
            Options::parse_from(["ovsd-edge", "--vpool", "a", "--vpool", "b", "--io-timeout", "30"]);
        assert_eq!(options.vpool.len(), 2);
        assert_eq!(options.io_timeout, Some(Duration::from_secs(30)));
    }

    #[test]
    fn senseless_times_and_names_are_refused() {
        for bad in ["0", "-1", "1.5", "x", "99999999999"] {
            assert!(Options::try_parse_from(["ovsd-edge", "--io-timeout", bad]).is_err(), "{bad}");
        }
        assert!(Options::try_parse_from(["ovsd-edge", "--vpool", "../x"]).is_err());
    }
}
