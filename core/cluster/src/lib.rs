//! ovs-cluster

pub mod catalogue;
