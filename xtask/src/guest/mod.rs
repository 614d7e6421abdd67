//! What boots a kernel, and what its console says.

pub mod console;
pub mod firmware;
pub mod initramfs;
pub mod ktap;
pub mod machine;
