//! `bench` and `run`: what is measured.

pub mod counts;
pub mod exit;
pub mod ipis;
pub mod kernel;
pub mod layout;
pub mod lines;
pub mod load;
pub mod paired;
pub mod perf;
pub mod run;
pub mod transfers;
