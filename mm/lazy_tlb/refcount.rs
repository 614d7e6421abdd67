// SPDX-License-Identifier: GPL-2.0

//! The policy that counts: every lazy CPU holds a reference in `mm_count`.
//!
//! This is what the kernel does without `CONFIG_MMU_LAZY_TLB_SHOOTDOWN`. It costs two atomic
//! operations on a shared cache line for every trip from a user task to idle and back.

use crate::policy::Policy;
use kernel::{
    mm::lazy_tlb::FinalDrop,
    prelude::*,
    warn_on, //
};

/// See the [module documentation](self).
pub(crate) struct Refcount;

impl Policy for Refcount {
    fn name(&self) -> &'static CStr {
        c"refcount"
    }

    fn refcounts(&self) -> bool {
        true
    }

    /// The count would not be zero if a CPU were lazy on the mm. `__mmdrop()` does not even ask.
    fn final_drop(&self, mm: FinalDrop) {
        warn_on!(mm.free().is_err());
    }
}
