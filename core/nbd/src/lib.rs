//! ovs-nbd
