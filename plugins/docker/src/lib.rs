//! ovs-docker
