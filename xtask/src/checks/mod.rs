//! `test` and all else that passes or fails.

pub mod bisect;
pub mod drift;
pub mod fences;
pub mod fuzz;
pub mod guests;
pub mod lines;
pub mod lint;
pub mod litmus;
pub mod mutants;
pub mod off;
pub mod refused;
pub mod series;
pub mod stages;
pub mod tidy;
