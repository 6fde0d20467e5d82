//! `ovs generate ...`: what packages install beside the program.

use super::Context;
use crate::{
    args::{Cli, GenerateCommand},
    failure::Failure,
};
use clap::CommandFactory;
use clap_complete::Shell;
use ovs_api::ProblemKind;
use std::{fs, io, path::Path};

pub(super) fn run(context: &Context, command: GenerateCommand) -> Result<(), Failure> {
    let (directory, written) = match &command {
        GenerateCommand::Completion { directory } => (directory, completion(directory)),
        GenerateCommand::Man { directory } => (directory, man(directory)),
    };
    let refused = |error| {
        Failure::new(ProblemKind::Unavailable, format!("cannot write to {}: {error}", directory.display()))
    };
    context.output.gone(format!("{} files in {}", written.map_err(refused)?, directory.display()))
}

/// `ovs.bash`, `_ovs` for zsh, `ovs.fish`.
fn completion(directory: &Path) -> io::Result<usize> {
    fs::create_dir_all(directory)?;
    let shells = [Shell::Bash, Shell::Zsh, Shell::Fish];
    for shell in shells {
        clap_complete::generate_to(shell, &mut Cli::command(), "ovs", directory)?;
    }
    Ok(shells.len())
}

/// `ovs.1`, `ovs-vdisk.1`, `ovs-vdisk-create.1` and so on.
fn man(directory: &Path) -> io::Result<usize> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)?;
    Ok(fs::read_dir(directory)?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_and_man_pages_know_the_verbs() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(completion(directory.path()).unwrap(), 3);
        let bash = fs::read_to_string(directory.path().join("ovs.bash")).unwrap();
        assert!(bash.contains("--allow-shrink") && !bash.contains("ovs__generate__man) "));
        let directory = tempfile::tempdir().unwrap();
        assert!(man(directory.path()).unwrap() > 40);
        let page = fs::read_to_string(directory.path().join("ovs-vdisk-import.1")).unwrap();
        assert!(page.contains("qcow2") && page.contains("overwrite"), "{page}");
        assert!(!directory.path().join("ovs-generate.1").exists());
    }
}
