//! ovs-cli
