// SPDX-License-Identifier: GPL-2.0

//! Freeing an address space that CPUs may still use lazily.
//!
//! The law, and the table of who writes a CPU's slot and when, are at the top of
//! [`include/linux/lazy_tlb.h`](srctree/include/linux/lazy_tlb.h). The hot path, publishing and
//! retiring a slot, is C inline code there. This crate is the slow path: what happens once in the
//! life of an mm, when `mm_count` reaches zero, and which policy is in force.
//!
//! The functions here are what C calls by name, and the only place with `unsafe`. The policies
//! are in files of their own, see [`policy`].

use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::c_char,
    mm::lazy_tlb::{
        self,
        FinalDrop, //
    },
    prelude::*, //
};

mod defer;
mod policy;
mod refcount;
mod shootdown;
#[cfg(CONFIG_LAZY_TLB_UNCONDITIONAL)]
mod unconditional;

/// Prefix of our messages.
const __LOG_PREFIX: &[u8] = b"lazy_tlb\0";

/// Frees `mm` when no CPU uses it any more, and does about that what the policy in force says.
///
/// Called by `__mmdrop()`. May wait for other CPUs, so it must be called from a task with
/// interrupts enabled, which `__mmdrop()` takes care of.
///
/// # Safety
///
/// `mm` must point to a valid `mm_struct` that is the callee's to free from now on. Its `mm_count`
/// must have been brought to zero by a fully ordered operation, as `mmdrop()` does.
#[export]
pub unsafe extern "C" fn lazy_tlb_final_drop(mm: *mut bindings::mm_struct) {
    if let Some(mm) = NonNull::new(mm) {
        // SAFETY: By the requirements of this function.
        policy::in_force().final_drop(unsafe { FinalDrop::from_raw(mm) });
    }
}

/// Looks at the mms that wait for lazy CPUs.
///
/// # Safety
///
/// Must be called from a task that may sleep, one at a time.
#[export]
pub unsafe extern "C" fn lazy_tlb_scan() {
    defer::scan();
}

/// Frees all mms that wait, which takes a cross-call if CPUs are lazy on them.
///
/// # Safety
///
/// Must be called from a task that may sleep, one at a time.
#[export]
pub unsafe extern "C" fn lazy_tlb_flush() {
    defer::round();
}

/// Returns how many mms wait.
///
/// # Safety
///
/// Always safe to call, once `lazy_tlb_policy_init()` has been.
#[export]
pub unsafe extern "C" fn lazy_tlb_nr_waiting() -> usize {
    lazy_tlb::waiting()
}

/// Chooses the policy named on the kernel command line.
///
/// Returns whether there is such a policy. If not, says so and keeps the one chosen so far.
/// Called while the kernel is booting on one CPU, before the first user mm exists.
///
/// # Safety
///
/// `name` must point to a nul-terminated string.
#[export]
pub unsafe extern "C" fn lazy_tlb_select_policy(name: *const c_char) -> bool {
    // SAFETY: By the requirements of this function.
    policy::select(unsafe { CStr::from_char_ptr(name) }).is_ok()
}

/// Prepares for the first final drop. Returns whether the policy in force counts lazy uses in
/// `mm_count`.
///
/// # Safety
///
/// Must be called once, while there is one CPU only, before the first user mm exists.
#[export]
pub unsafe extern "C" fn lazy_tlb_policy_init() -> bool {
    // SAFETY: By the requirements of this function.
    unsafe { lazy_tlb::init() };
    policy::in_force().refcounts()
}

/// Tells whether the policy in force would rather wait for lazy CPUs than interrupt them.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn lazy_tlb_policy_waits() -> bool {
    policy::in_force().waits()
}

/// Returns the name of the policy in force.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn lazy_tlb_policy_name() -> *const c_char {
    policy::in_force().name().as_char_ptr()
}
