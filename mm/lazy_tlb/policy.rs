// SPDX-License-Identifier: GPL-2.0

//! What the policies say, and which of them is in force.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// What is done about CPUs that are lazy on an mm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Policy {
    /// Do not count. Hand lazy CPUs a reference at the final drop, and ask them to let go.
    Shootdown,
    /// Do not count. Hand lazy CPUs a reference at the final drop.
    Handover,
    /// Count each borrow in `mm_count`, as without `CONFIG_MMU_LAZY_TLB_SHOOTDOWN`.
    Refcount,
}

/// What Kconfig has chosen.
pub(crate) const DEFAULT: Policy = if cfg!(CONFIG_LAZY_TLB_DEFAULT_REFCOUNT) {
    Policy::Refcount
} else if cfg!(CONFIG_LAZY_TLB_DEFAULT_HANDOVER) {
    Policy::Handover
} else {
    Policy::Shootdown
};

/// The policy in force.
///
/// Relaxed accesses are enough. Nothing depends on who has seen which policy: the slot of a CPU
/// tells how its borrow was taken.
static IN_FORCE: Atomic<i32> = Atomic::new(DEFAULT as i32);

impl Policy {
    /// All there are.
    pub(crate) const ALL: [Self; 3] = [Self::Shootdown, Self::Handover, Self::Refcount];

    /// The name that `lazy_tlb=` takes.
    pub(crate) fn name(self) -> &'static CStr {
        match self {
            Self::Shootdown => c"shootdown",
            Self::Handover => c"handover",
            Self::Refcount => c"refcount",
        }
    }

    /// Whether borrows are counted in `mm_count`.
    pub(crate) fn counts(self) -> bool {
        self == Self::Refcount
    }

    /// Whether CPUs that were handed a reference are asked to let go.
    pub(crate) fn nudges(self) -> bool {
        self == Self::Shootdown
    }

    /// Returns the policy called `name`.
    pub(crate) fn find(name: &CStr) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.name().to_bytes() == name.to_bytes())
    }

    /// Returns the policy in force.
    pub(crate) fn in_force() -> Self {
        let now = IN_FORCE.load(Relaxed);

        Self::ALL
            .into_iter()
            .find(|&policy| policy as i32 == now)
            .unwrap_or(DEFAULT)
    }

    /// Puts a policy in force for what is borrowed and finally dropped from now on. Returns the
    /// one that it replaces.
    pub(crate) fn put_in_force(self) -> Self {
        let before = Self::in_force();

        IN_FORCE.store(self as i32, Relaxed);
        before
    }
}

#[cfg(CONFIG_LAZY_TLB_KUNIT_TEST)]
#[kernel::macros::kunit_tests(lazy_tlb_policy)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_found_by_its_name() {
        for policy in Policy::ALL {
            assert_eq!(Policy::find(policy.name()), Some(policy));
        }
    }

    #[test]
    fn other_names_are_refused() {
        assert!(Policy::find(c"").is_none());
        assert!(Policy::find(c"shoot").is_none());
        assert!(Policy::find(c"shootdownx").is_none());
        assert!(Policy::find(c"Shootdown").is_none());
        assert!(Policy::find(c"defer").is_none());
    }

    #[test]
    fn only_refcount_counts() {
        for policy in Policy::ALL {
            assert_eq!(policy.counts(), policy.name().to_bytes() == b"refcount");
        }
    }

    #[test]
    fn only_shootdown_nudges() {
        for policy in Policy::ALL {
            assert_eq!(policy.nudges(), policy.name().to_bytes() == b"shootdown");
        }
    }
}
