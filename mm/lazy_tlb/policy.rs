// SPDX-License-Identifier: GPL-2.0

//! What to do about CPUs that are still lazy on an mm when it is freed, and which of the possible
//! answers is in force.
//!
//! A new policy is a file of its own and a line in [`POLICIES`].

use crate::{
    defer::Defer,
    refcount::Refcount,
    shootdown::Shootdown, //
};
use kernel::{
    mm::lazy_tlb::FinalDrop,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// An answer to the question what to do about lazy CPUs.
pub(crate) trait Policy: Sync {
    /// The name that `lazy_tlb=` takes.
    fn name(&self) -> &'static CStr;

    /// Whether a lazy CPU holds a reference in `mm_count`.
    fn refcounts(&self) -> bool;

    /// Whether it waits for lazy CPUs, so that nobody should interrupt them on its behalf.
    fn waits(&self) -> bool {
        false
    }

    /// Frees the mm, or arranges for that, when no CPU uses it any more.
    ///
    /// Called from a task with interrupts enabled, which may hold spinlocks. May wait for other
    /// CPUs.
    fn final_drop(&self, mm: FinalDrop);
}

/// All policies. The first one is the default.
static POLICIES: &[&dyn Policy] = &[
    &Shootdown,
    &Defer,
    &Refcount,
    #[cfg(CONFIG_LAZY_TLB_UNCONDITIONAL)]
    &crate::unconditional::Unconditional,
];

/// No policy was asked for.
const UNSET: i32 = -1;

/// Index of the chosen policy, or [`UNSET`].
///
/// Relaxed accesses are enough: it is written while there is one CPU only.
static CHOSEN: Atomic<i32> = Atomic::new(UNSET);

/// Returns the index of the policy called `name`.
fn find(name: &CStr) -> Option<usize> {
    POLICIES
        .iter()
        .position(|policy| policy.name().to_bytes() == name.to_bytes())
}

/// Returns the policy with an index, or the default one.
fn get(index: i32) -> &'static dyn Policy {
    usize::try_from(index)
        .ok()
        .and_then(|index| POLICIES.get(index))
        .copied()
        .unwrap_or(&Shootdown)
}

/// Returns the policy in force.
pub(crate) fn in_force() -> &'static dyn Policy {
    get(CHOSEN.load(Relaxed))
}

/// Chooses the policy called `name`. When called more than once the last valid name counts.
pub(crate) fn select(name: &CStr) -> Result {
    let Some(index) = find(name) else {
        pr_warn!(
            "unknown policy \"{}\", keeping {}\n",
            name,
            in_force().name()
        );
        for policy in POLICIES {
            pr_warn!("known policy: lazy_tlb={}\n", policy.name());
        }
        return Err(EINVAL);
    };

    let before = CHOSEN.load(Relaxed);
    if before != UNSET && get(before).name().to_bytes() != name.to_bytes() {
        pr_warn!(
            "lazy_tlb= given more than once, {} replaces {}\n",
            name,
            get(before).name()
        );
    }

    CHOSEN.store(index as i32, Relaxed);
    Ok(())
}

#[cfg(CONFIG_LAZY_TLB_KUNIT_TEST)]
#[kernel::macros::kunit_tests(lazy_tlb_policy)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_found_by_its_name() {
        for (index, policy) in POLICIES.iter().enumerate() {
            assert_eq!(find(policy.name()), Some(index));
        }
    }

    #[test]
    fn other_names_are_refused() {
        assert!(find(c"").is_none());
        assert!(find(c"shoot").is_none());
        assert!(find(c"shootdownx").is_none());
        assert!(find(c"Shootdown").is_none());
    }

    #[test]
    fn a_refused_name_changes_nothing() {
        let before = CHOSEN.load(Relaxed);

        assert!(select(c"no-such-policy").is_err());
        assert_eq!(CHOSEN.load(Relaxed), before);
    }

    #[test]
    fn shootdown_is_the_default() {
        assert_eq!(get(UNSET).name().to_bytes(), b"shootdown");
        assert_eq!(get(POLICIES.len() as i32).name().to_bytes(), b"shootdown");
        assert_eq!(POLICIES[0].name().to_bytes(), b"shootdown");
    }

    #[test]
    fn only_refcount_counts() {
        for policy in POLICIES {
            assert_eq!(policy.refcounts(), policy.name().to_bytes() == b"refcount");
        }
    }
}
