//! `report`: tables of what was measured.

pub mod page;
