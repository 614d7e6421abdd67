//! The policies that the kernel has: the one list of them.

/// Lazy CPUs hold a reference, as without the series.
pub const REFCOUNT: &str = "refcount";
/// The last one interrupts the lazy CPUs.
pub const SHOOTDOWN: &str = "shootdown";
/// The last one hands its reference to the lazy CPUs.
pub const HANDOVER: &str = "handover";

/// All of them, in the order of the tables.
pub const ALL: [&str; 3] = [REFCOUNT, SHOOTDOWN, HANDOVER];
/// What the kernel takes unless told otherwise.
pub const DEFAULT: &str = SHOOTDOWN;
