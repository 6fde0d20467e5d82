//! `ovs`, the command line of the service.
pub mod image;
