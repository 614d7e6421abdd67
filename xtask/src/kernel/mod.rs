//! Kernels, and what else is built of a tree.

pub mod build;
pub mod programs;
pub mod workshop;
