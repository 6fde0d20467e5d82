//! `ovs`, the command line.
fn main() {}
