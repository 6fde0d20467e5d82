//! ovs-tests
