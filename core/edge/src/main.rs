//! ovsd-edge: see the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match ovs_edge::run(ovs_edge::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ovsd-edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}
