//! The driver against a simulated kernel and ovsd, with dockerd's habits, killed at every step.
//!
//! [`world`] is what outlives the plugin: vDisks, devices, mount namespaces, the disk with the records. Every operation
//! on it is two steps, before and after its effect; at a chosen step the plugin is dead: nothing it does afterwards has
//! any effect, its descriptors close. Then a new driver starts on the same world, and dockerd sends its request again,
//! as it does when a connection breaks.
//!
//! Checked all the time, by the world itself: a vDisk never has two living devices; a file system that was handed to a
//! container is never formatted; fsck and mkfs never touch a device that a namespace has mounted.

mod cases;
mod world;
