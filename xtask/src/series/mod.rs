//! The series as it stands in this repository, and the trees and mails that are made of it.

pub mod base;
pub mod git;
pub mod hunks;
pub mod import;
pub mod mail;
pub mod patch;
pub mod user;
