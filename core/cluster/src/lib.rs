//! ovs-cluster
