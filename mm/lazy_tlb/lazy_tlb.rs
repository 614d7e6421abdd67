// SPDX-License-Identifier: GPL-2.0

//! The final drop of an mm that CPUs may still use lazily, and the policy in force.
//!
//! The slots, and the table of who writes them and when, are at the top of
//! [`include/linux/lazy_tlb.h`](srctree/include/linux/lazy_tlb.h). The hot path, borrowing and
//! returning an mm, is C inline code there.
//!
//! The functions here are what C calls by name, and the only place with `unsafe` in this crate.

use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::{
        c_char,
        c_int, //
    },
    mm::lazy_tlb::{
        self,
        count,
        Event,
        FinalDrop, //
    },
    prelude::*, //
};

mod policy;

use policy::Policy;

/// Prefix of our messages.
const __LOG_PREFIX: &[u8] = b"lazy_tlb\0";

/// Hands `mm` over to the CPUs that are lazy on it, and nudges them if the policy says so.
///
/// Returns whether there are none, so that the caller has to free it. Never waits.
///
/// # Safety
///
/// For `__mmdrop()` only: `mm` must point to a valid `mm_struct` whose `mm_count` has just become
/// zero by a fully ordered operation, and which nobody else is going to free. If this returns
/// `true`, the caller must free it, and else not access it any more.
#[export]
pub unsafe extern "C" fn lazy_tlb_final_drop(mm: *mut bindings::mm_struct) -> bool {
    let Some(mm) = NonNull::new(mm) else {
        return false;
    };
    let address = mm.addr().get();
    let policy = Policy::in_force();
    let mut nudged = 0;

    // SAFETY: By the requirements of this function.
    let outcome = unsafe { FinalDrop::from_raw(mm) }.hand_over(|cpu| {
        if policy.nudges() {
            nudged += usize::from(cpu.nudge());
        }
    });

    if !outcome.again {
        count(Event::FinalDrops, 1);
        count(Event::Scanned, outcome.scanned);
        count(Event::Handed, outcome.handed);
        count(Event::Nudged, nudged);
        lazy_tlb::trace_final_drop(address, policy.name(), &outcome, nudged);
    }
    outcome.unused
}

/// Tells whether the policy in force asks CPUs that were lazy at a final drop to let go. A flush
/// that interrupts them anyway may do that earlier.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn lazy_tlb_shoots() -> bool {
    Policy::in_force().nudges()
}

/// Tells whether the policy in force counts borrows in `mm_count`.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn lazy_tlb_policy_counts() -> bool {
    Policy::in_force().counts()
}

/// Returns the name of the policy in force.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn lazy_tlb_policy_name() -> *const c_char {
    Policy::in_force().name().as_char_ptr()
}

/// Puts the policy in force that is called `name`. Returns 0, or `-EINVAL` if there is no such
/// policy, and then changes nothing.
///
/// The caller sees to it that no other change goes on, and that `lazy_tlb_borrow()` is told.
///
/// # Safety
///
/// `name` must point to a nul-terminated string that nobody changes meanwhile.
#[export]
pub unsafe extern "C" fn lazy_tlb_set_policy(name: *const c_char) -> c_int {
    // SAFETY: By the requirements of this function.
    let name = unsafe { CStr::from_char_ptr(name) };
    let Some(policy) = Policy::find(name) else {
        let keeping = Policy::in_force().name();

        pr_warn!("unknown policy \"{name}\", keeping {keeping}\n");
        for policy in Policy::ALL {
            pr_warn!("known policy: lazy_tlb={}\n", policy.name());
        }
        return EINVAL.to_errno();
    };
    let before = policy.put_in_force();

    if before != policy {
        count(Event::PolicyChanges, 1);
        lazy_tlb::trace_policy(before.name(), policy.name());
    }
    0
}
