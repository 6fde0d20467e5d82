//! ovs-api
