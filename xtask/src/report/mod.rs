//! `report`: tables and plots of what was measured.

pub mod page;
pub mod plot;
