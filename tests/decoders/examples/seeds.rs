//! Writes the seeds of every family into `DIR/<family>/`, for a fuzzer to begin with.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).expect("usage: seeds DIR"));
    for family in &ovs_decoders::FAMILIES {
        let folder = folder.join(family.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (family.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
