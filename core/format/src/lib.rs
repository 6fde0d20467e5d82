//! ovs-format
