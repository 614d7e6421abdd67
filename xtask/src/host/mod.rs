//! The machine that all this runs on: commands, cache, packages, and what is known of architectures and policies.

pub mod apt;
pub mod arch;
pub mod cache;
pub mod cross;
pub mod failure;
pub mod install;
pub mod policy;
pub mod sh;
pub mod spent;
pub mod tools;
