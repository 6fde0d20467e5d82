//! `ovs`, the command line. All of it is in the library, so that tests reach it.

fn main() -> std::process::ExitCode {
    ovs_cli::main_with(std::env::args_os().collect())
}
