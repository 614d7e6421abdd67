// SPDX-License-Identifier: GPL-2.0

//! The tracepoints, see `include/trace/events/lazy_tlb.h`.

use core::ptr;
use kernel::{
    ffi::{
        c_char,
        c_uint,
        c_void, //
    },
    mm::lazy_tlb::Outcome,
    prelude::*, //
};

kernel::tracepoint::declare_trace! {
    /// # Safety
    ///
    /// `policy` must point to a nul-terminated string. `mm` need not be valid.
    unsafe fn lazy_tlb_final_drop(
        mm: *const c_void,
        policy: *const c_char,
        scanned: c_uint,
        handed: c_uint,
        nudged: c_uint,
    );

    /// # Safety
    ///
    /// Both must point to nul-terminated strings.
    unsafe fn lazy_tlb_policy(before: *const c_char, after: *const c_char);
}

/// Traces the final drop of the mm that is, or was, at `address`.
pub(crate) fn final_drop(address: usize, policy: &'static CStr, outcome: &Outcome, nudged: usize) {
    // SAFETY: `policy` is nul-terminated. The address is not dereferenced.
    unsafe {
        lazy_tlb_final_drop(
            ptr::without_provenance(address),
            policy.as_char_ptr(),
            outcome.scanned as c_uint,
            outcome.handed as c_uint,
            nudged as c_uint,
        )
    };
}

/// Traces a change of the policy.
pub(crate) fn policy(before: &'static CStr, after: &'static CStr) {
    // SAFETY: Both are nul-terminated.
    unsafe { lazy_tlb_policy(before.as_char_ptr(), after.as_char_ptr()) };
}
