//! ovs-service

pub mod rpc;
