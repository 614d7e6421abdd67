// SPDX-License-Identifier: GPL-2.0

//! Lazy TLB mms: handing those CPUs a reference that still use an mm when everybody else is done.
//!
//! A CPU that runs the idle task or a kernel thread keeps the page tables of the last user mm
//! loaded: it is *lazy* on that mm. While the mm lives nobody counts these uses. The CPU names the
//! mm in a slot of its own, and [`FinalDrop::hand_over`] makes up for the counting when `mm_count`
//! has become zero.
//!
//! Whether a CPU that was handed a reference is asked to let go of the mm is up to the policies in
//! `mm/lazy_tlb/`.
//!
//! C header: [`include/linux/lazy_tlb.h`](srctree/include/linux/lazy_tlb.h)

use crate::{
    bindings,
    cpu::CpuId,
    mm::Mm,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed, //
    },
    types::NotThreadSafe, //
};
use core::ptr::{
    self,
    NonNull, //
};

/// In a slot, beside the address of the mm: the CPU has been handed a reference.
const HANDED: usize = bindings::LAZY_TLB_SLOT_HANDED as usize;

/// An mm whose `mm_count` has become zero.
///
/// The set of CPUs that are lazy on it can only shrink: a new user would need a reference, and a
/// switch from one kernel thread to the next inherits the mm on a CPU that is in the set already.
///
/// # Invariants
///
/// Points to a valid `mm_struct` that nobody else is going to free. Its `mm_count` was brought to
/// zero by a fully ordered operation, and no slot has its address with `HANDED`, unless
/// `MMF_LAZY_TLB_HANDED` is set, in which case no slot has its address at all.
#[must_use = "whoever has it must hand the mm over, or it is leaked"]
pub struct FinalDrop(NonNull<bindings::mm_struct>);

/// What became of a final drop.
#[must_use]
#[derive(Clone, Copy, Default)]
pub struct Outcome {
    /// Nobody uses the mm: the caller has to free it. If not, lazy CPUs have it.
    pub unused: bool,
    /// This is not the first time that `mm_count` has become zero.
    pub again: bool,
    /// Slots that were read.
    pub scanned: usize,
    /// CPUs that were handed a reference.
    pub handed: usize,
}

/// A CPU that was handed a reference on an mm, and does not go offline while this exists.
pub struct Handed<'a> {
    cpu: CpuId,
    /// Where the final drop began.
    home: CpuId,
    _pinned: &'a PreemptDisabled,
}

impl Handed<'_> {
    /// Asks the CPU to let go of the mm, and does not wait for that. Returns `false` for the one on
    /// which the final drop began, which keeps the mm until it switches to something else.
    #[inline]
    #[doc(alias("lazy_tlb_nudge"))]
    pub fn nudge(&self) -> bool {
        if self.cpu == self.home {
            return false;
        }

        // SAFETY: The CPU was lazy after preemption had been disabled. So it was online, for one
        // that goes offline gives up its slot first, and does not go offline before preemption is
        // enabled again, for hotplug stops all CPUs for that.
        unsafe { bindings::lazy_tlb_nudge(u32::from(self.cpu)) };
        true
    }
}

/// Preemption is disabled as long as this exists.
struct PreemptDisabled(NotThreadSafe);

impl PreemptDisabled {
    #[inline]
    fn new() -> Self {
        // SAFETY: Can be called from any context.
        unsafe { bindings::preempt_disable() };
        Self(NotThreadSafe)
    }
}

impl Drop for PreemptDisabled {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `new()` has disabled it, on the same CPU.
        unsafe { bindings::preempt_enable() };
    }
}

/// Returns the CPUs in a mask. Of CPUs that join meanwhile, it may miss some.
///
/// # Safety
///
/// `mask` must be valid as long as the iterator is in use.
unsafe fn cpus_in(mask: *const bindings::cpumask) -> impl Iterator<Item = CpuId> {
    let mut last = -1;

    core::iter::from_fn(move || {
        // SAFETY: By the requirements of this function. `last` is -1 or the number of a CPU.
        // Returns `nr_cpu_ids` or more when there is none left.
        let cpu = CpuId::from_u32(unsafe { bindings::cpumask_next(last, mask) })?;

        last = i32::from(cpu);
        Some(cpu)
    })
}

/// Returns the slot of a CPU.
///
/// # Safety
///
/// `cpu` must be a possible CPU.
#[inline]
unsafe fn slot(cpu: CpuId) -> &'static Atomic<usize> {
    // SAFETY: By the requirements of this function. Per-CPU variables of possible CPUs are never
    // freed. C accesses this one with READ_ONCE(), WRITE_ONCE() and xchg() only.
    unsafe { Atomic::from_ptr(bindings::lazy_tlb_slot_ptr(u32::from(cpu)).cast()) }
}

impl FinalDrop {
    /// Takes over the mm from `__mmdrop()`.
    ///
    /// # Safety
    ///
    /// `mm` must point to a valid `mm_struct` whose `mm_count` has just become zero by a fully
    /// ordered operation, and which nobody else is going to free. The caller must do what
    /// [`Outcome::unused`] says.
    #[inline]
    pub unsafe fn from_raw(mm: NonNull<bindings::mm_struct>) -> Self {
        // INVARIANT: By the requirements of this function. A slot gets `HANDED` in `hand_over()`
        // only, and is given up, tag and all, before the reference that came with it is dropped.
        // Where the flag is set, `hand_over()` has left no slot with the mm and without a tag, and
        // nobody can borrow an mm that has no references.
        Self(mm)
    }

    #[inline]
    fn mm_count(&self) -> &Atomic<i32> {
        // SAFETY: The mm is valid by the type invariant, and stays so while there is a reference of
        // our own. `mm_count` is an atomic_t: every access to it is atomic.
        unsafe { Atomic::from_ptr(bindings::mm_count_ptr(self.0.as_ptr())) }
    }

    /// Hands each CPU that is lazy on the mm a reference, and calls `handed` for it.
    ///
    /// Can be called from any context but NMI. Does not wait for anybody, and takes no lock.
    /// `handed` is called with preemption disabled.
    ///
    /// A CPU that switches to a user task empties its slot with `xchg()`, after its last access to
    /// the mm. If it was handed a reference before that, it finds the tag and drops the reference:
    /// the last one to do so gets to `__mmdrop()` again.
    pub fn hand_over(self, mut handed: impl FnMut(Handed<'_>)) -> Outcome {
        let mm = self.0.as_ptr();
        let address = mm.addr();
        // Only once: the caller may be moved meanwhile, and would leave out one CPU after another.
        let home = CpuId::current();
        let mut outcome = Outcome::default();
        let mut counted = false;

        // SAFETY: The mm is valid by the type invariant.
        if unsafe { bindings::mm_test_and_set_handed(mm) } {
            outcome.again = true;
            outcome.unused = true;
            return outcome;
        }

        // SAFETY: The mask is part of the mm, which is valid by the type invariant, and stays so:
        // once there is a reference that others may drop, there is our own as well.
        for cpu in unsafe { cpus_in(bindings::mm_lazy_tlb_cpumask(mm)) } {
            // SAFETY: Only possible CPUs are in the mask: C sets the bits of CPUs that are online.
            let slot = unsafe { slot(cpu) };

            outcome.scanned += 1;
            // Pairs with `xchg()` in `lazy_tlb_return()`: if the slot does not have the mm any
            // more, every access of that CPU to it comes before what follows, freeing included.
            if slot.load(Acquire) != address {
                continue;
            }

            if !counted {
                // Our own, until all CPUs were seen. Nobody else can access the count yet: there is
                // no reference. Others see it by way of `cmpxchg()`.
                self.mm_count().store(1, Relaxed);
                counted = true;
            }

            let pinned = PreemptDisabled::new();

            // Comes before the tag: the CPU may drop it at once.
            self.mm_count().add(1, Relaxed);
            // Pairs with `xchg()` in `lazy_tlb_return()`, which either finds the tag, or comes
            // before, so that this fails. Then this orders nothing, but `fetch_sub()` below does.
            if slot.cmpxchg(address, address | HANDED, Full).is_ok() {
                outcome.handed += 1;
                handed(Handed {
                    cpu,
                    home,
                    _pinned: &pinned,
                });
            } else {
                self.mm_count().add(-1, Relaxed);
            }
        }

        // Pairs with `xchg()` and the `mmdrop()` after it of the other CPUs: what comes next,
        // freeing the mm, comes after the last access of those that were not handed a reference,
        // and of those that have dropped theirs.
        outcome.unused = !counted || self.mm_count().fetch_sub(1, Full) == 1;
        outcome
    }
}

/// What is counted, in `/proc/vmstat`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Event {
    /// `mm_count` of an mm has become zero for the first time.
    FinalDrops = bindings::vm_event_item_LAZY_TLB_FINAL_DROPS,
    /// Slots read by final drops.
    Scanned = bindings::vm_event_item_LAZY_TLB_SCANNED,
    /// CPUs that were handed a reference.
    Handed = bindings::vm_event_item_LAZY_TLB_HANDED,
    /// Those of them that were asked to let go, by an interrupt.
    Nudged = bindings::vm_event_item_LAZY_TLB_NUDGED,
    /// Changes of the policy.
    PolicyChanges = bindings::vm_event_item_LAZY_TLB_POLICY_CHANGES,
}

/// Counts `n` events.
#[inline]
pub fn count(event: Event, n: usize) {
    // SAFETY: `event` is a valid `vm_event_item`.
    unsafe { bindings::count_vm_events(event as u32, n as c_long) };
}

/// The tracepoints, see `include/trace/events/lazy_tlb.h`.
mod trace {
    use super::*;

    crate::tracepoint::declare_trace! {
        /// # Safety
        ///
        /// `policy` must point to a nul-terminated string. `mm` need not be valid.
        pub(super) unsafe fn lazy_tlb_final_drop(
            mm: *const c_void,
            policy: *const c_char,
            scanned: c_uint,
            handed: c_uint,
            nudged: c_uint,
        );

        /// # Safety
        ///
        /// Both must point to nul-terminated strings.
        pub(super) unsafe fn lazy_tlb_policy(before: *const c_char, after: *const c_char);
    }
}

/// Traces the final drop of the mm that is, or was, at `address`.
pub fn trace_final_drop(address: usize, policy: &'static CStr, outcome: &Outcome, nudged: usize) {
    // SAFETY: `policy` is nul-terminated.
    unsafe {
        trace::lazy_tlb_final_drop(
            ptr::without_provenance(address),
            policy.as_char_ptr(),
            outcome.scanned as c_uint,
            outcome.handed as c_uint,
            nudged as c_uint,
        )
    };
}

/// Traces a change of the policy.
pub fn trace_policy(before: &'static CStr, after: &'static CStr) {
    // SAFETY: Both are nul-terminated.
    unsafe { trace::lazy_tlb_policy(before.as_char_ptr(), after.as_char_ptr()) };
}

/// Counts the CPUs that are lazy on `mm` right now, as far as that is not counted in `mm_count`.
///
/// Reads the slots of all CPUs that have ever been. It is out of date when it arrives.
pub fn lazy_cpus(mm: &Mm) -> usize {
    // SAFETY: The mask is part of the mm, which is valid since `mm` is a reference.
    unsafe { cpus_in(bindings::mm_lazy_tlb_cpumask(mm.as_raw())) }
        // SAFETY: Only possible CPUs are in the mask: C sets the bits of CPUs that are online.
        .filter(|&cpu| unsafe { slot(cpu) }.load(Relaxed) & !HANDED == mm.as_raw().addr())
        .count()
}
