//! The forms in which results are kept.

pub mod case;
pub mod machine;
pub mod sample;
pub mod table;
