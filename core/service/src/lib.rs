//! ovs-service
