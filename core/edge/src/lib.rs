//! ovs-edge
