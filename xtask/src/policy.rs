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

/// All boots, each policy first in turn, so that a change of the machine's speed meets all alike.
pub fn in_turn(boots: u32) -> impl Iterator<Item = (u32, &'static str)> {
    (1..=boots).flat_map(|boot| {
        let mut policies = ALL;
        policies.rotate_left(boot as usize % ALL.len());
        policies.map(|policy| (boot, policy))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_is_the_first_one_in_turn() {
        let boots: Vec<_> = in_turn(2).collect();
        assert_eq!(boots[..2], [(1, SHOOTDOWN), (1, HANDOVER)]);
        assert_eq!(boots[2..4], [(1, REFCOUNT), (2, HANDOVER)]);
        assert_eq!(boots.len(), 2 * ALL.len());
    }
}
