//! `test` and all else that passes or fails.

pub mod bisect;
pub mod drift;
pub mod lint;
pub mod litmus;
pub mod mutants;
pub mod neighbours;
pub mod off;
pub mod stages;
pub mod tidy;
