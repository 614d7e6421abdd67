//! The forms in which results are kept.

pub mod case;
