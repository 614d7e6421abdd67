// SPDX-License-Identifier: GPL-2.0

//! Lazy TLB mms: which CPUs still use an address space that is about to be freed.
//!
//! A CPU that runs the idle task or a kernel thread keeps the page tables of the last user mm
//! loaded, and says so in a per-CPU slot. It is *lazy* on that mm. Nobody counts these uses, so
//! whoever drops the last reference has to look for them first. This module offers what is needed
//! for that as evidence: a [`FinalDrop`] can only be had from the C code that has just dropped
//! the last reference, and everything one may ask about the slots hangs on it.
//!
//! It does not decide what to do about a lazy CPU. That is up to the policies in
//! `mm/lazy_tlb/`.
//!
//! C headers: [`include/linux/lazy_tlb.h`](srctree/include/linux/lazy_tlb.h),
//! [`include/asm-generic/lazy_tlb.h`](srctree/include/asm-generic/lazy_tlb.h)

use crate::{
    bindings,
    cpu::CpuId,
    cpumask::LiveCpumask,
    interrupt::LocalInterruptDisabled,
    mm::Mm,
    prelude::*,
    types::Opaque, //
};

/// Evidence that the final drop of an address space is going on.
///
/// `mm_count` has reached zero, and the `mm_struct` stays allocated for as long as a reference to
/// this exists. Because of that, the set of CPUs that are lazy on it can only shrink: a new user
/// would need a reference, and a switch from one kernel thread to the next inherits the mm on a
/// CPU that is in the set already.
///
/// # Invariants
///
/// Points to a valid `mm_struct` whose `mm_count` is zero.
#[repr(transparent)]
pub struct FinalDrop(Opaque<bindings::mm_struct>);

// SAFETY: All methods can be called from several threads, and on several CPUs, in parallel.
unsafe impl Sync for FinalDrop {}

impl FinalDrop {
    /// Creates the evidence from the pointer that `__mmdrop()` got.
    ///
    /// # Safety
    ///
    /// For the whole life `'a`, `ptr` must point to a valid `mm_struct`, and its `mm_count` must
    /// be zero. It must have become zero by a fully ordered operation that precedes this call.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::mm_struct) -> &'a Self {
        // SAFETY: By the requirements of this function; the layouts are the same.
        //
        // INVARIANT: By the requirements of this function.
        unsafe { &*ptr.cast() }
    }

    #[inline]
    fn as_raw(&self) -> *mut bindings::mm_struct {
        self.0.get()
    }

    /// Returns the CPUs that [`is_lazy_on`](Self::is_lazy_on) has to be asked about.
    ///
    /// The architecture vouches for it that no CPU outside of this mask is lazy on the mm.
    #[inline]
    #[doc(alias("arch_lazy_tlb_cpumask"))]
    pub fn candidates(&self) -> &LiveCpumask {
        // SAFETY: The mask belongs to the `mm_struct`, which is valid by the type invariant, and
        // is only updated with atomic bit operations.
        unsafe { LiveCpumask::from_raw(bindings::arch_lazy_tlb_cpumask(self.as_raw())) }
    }

    /// Tells whether `cpu` was lazy on the mm when its slot was read.
    ///
    /// `false` is final: the CPU has made its last access to the mm, and will make no other. What
    /// the caller does next, freeing the mm included, is ordered after that access. `true` can be
    /// out of date when it arrives.
    ///
    /// The acquire in `lazy_tlb_slot_of()` pairs with the release in `lazy_tlb_retire()`.
    #[inline]
    #[doc(alias("lazy_tlb_slot_of"))]
    pub fn is_lazy_on(&self, cpu: CpuId) -> bool {
        // SAFETY: `cpu` is a possible CPU by its type invariant.
        let slot = unsafe { bindings::lazy_tlb_slot_of(u32::from(cpu)) };

        slot == self.as_raw()
    }

    /// Makes the calling CPU let go of the mm, if it is lazy on it.
    ///
    /// It runs on `init_mm` afterwards. Returns whether there was anything to let go of.
    #[inline]
    #[doc(alias("lazy_tlb_let_go"))]
    pub fn let_go(&self, _irq: &LocalInterruptDisabled) -> bool {
        // SAFETY: The mm is valid by the type invariant and not refcounted by the lazy CPU, or
        // its count would not be zero. Interrupts are disabled, as `_irq` proves.
        unsafe { bindings::lazy_tlb_let_go(self.as_raw()) }
    }
}

/// Counts the CPUs that are lazy on `mm` right now.
///
/// Reads the slots of all online CPUs. For a live mm this is out of date when it arrives.
pub fn lazy_cpus(mm: &Mm) -> usize {
    LiveCpumask::online()
        .iter()
        // SAFETY: `cpu` is a possible CPU by its type invariant.
        .filter(|&cpu| unsafe { bindings::lazy_tlb_slot_of(u32::from(cpu)) } == mm.as_raw())
        .count()
}

/// Returns the name of the policy in force, as `lazy_tlb=` takes it.
#[inline]
pub fn policy_name() -> &'static CStr {
    // SAFETY: Returns a pointer to a constant, nul-terminated string.
    unsafe { CStr::from_char_ptr(bindings::lazy_tlb_policy_name()) }
}
