//! A model of the hot path, not the kernel: what a CPU does to borrow a lazy TLB mm and to give it
//! back, in the code shape of the kernel's inlines, with their static key already decided.
//!
//! A crate of its own, because xtask is built without optimisation and this must not be.
//!
//! What is the same in every mode is left out: the switch itself, switch_mm(), and the full barrier
//! of `__schedule()`. So is the CPU mask of ARCH_LAZY_TLB_STICKY_CPUMASK, which is only read.

use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Whether this was built as [`trips()`] has to be to mean something.
pub const OPTIMISED: bool = !cfg!(debug_assertions);

/// A policy of the kernel's `lazy_tlb=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A lazy CPU holds a reference in mm_count.
    Refcount,
    /// The final drop interrupts lazy CPUs.
    Shootdown,
    /// The final drop waits for lazy CPUs. Its hot path is that of `Shootdown`.
    Defer,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 3] = [Mode::Refcount, Mode::Shootdown, Mode::Defer];

    /// As `lazy_tlb=` has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Refcount => "refcount",
            Mode::Shootdown => "shootdown",
            Mode::Defer => "defer",
        }
    }

    /// Atomic read-modify-writes of a line that CPUs share, per trip: known from the code below,
    /// not measured.
    pub fn shared_rmws(self) -> u32 {
        match self {
            Mode::Refcount => 2,
            Mode::Shootdown | Mode::Defer => 0,
        }
    }
}

/// What matters of an mm: its count, on cache lines of its own.
#[repr(align(128))]
pub struct Mm {
    count: AtomicU32,
}

impl Default for Mm {
    /// As it is while a process has it: one reference.
    fn default() -> Self {
        Mm {
            count: AtomicU32::new(1),
        }
    }
}

impl Mm {
    /// mm_count.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// `mmgrab()`: `atomic_inc()`, which orders nothing.
    fn grab(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// `mmdrop()`: whether it was the last.
    ///
    /// The kernel's `atomic_dec_and_test()` is fully ordered, which membarrier needs, and there is
    /// no such read-modify-write in Rust. On x86_64 and s390 the instruction is the same, on arm64
    /// with LSE too; elsewhere the model is cheaper than the kernel here, in favour of refcount.
    fn drop(&self) -> bool {
        self.count.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// The per-CPU variable `lazy_tlb_slot` of one CPU, on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
pub struct Slot {
    mm: AtomicPtr<Mm>,
}

impl Slot {
    /// `lazy_tlb_publish()`: `WRITE_ONCE()`.
    fn publish(&self, mm: &Mm) {
        let mm = ptr::from_ref(mm).cast_mut();
        self.mm.store(mm, Ordering::Relaxed);
    }

    /// `lazy_tlb_retire()`: `smp_store_release()` of NULL.
    fn retire(&self) {
        self.mm.store(ptr::null_mut(), Ordering::Release);
    }
}

/// The `smp_mb()` that `mmdrop_lazy_tlb_sched()` still has where it does not count: membarrier needs
/// it. It writes no line that CPUs share.
///
/// On x86_64 a locked operation on the stack, as in the kernel; Rust's own fence is the slower
/// `mfence` there.
fn full_barrier(stack: &AtomicU32) {
    if cfg!(target_arch = "x86_64") {
        stack.fetch_add(0, Ordering::SeqCst);
    } else {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Goes from user to idle and back so many times; returns how often the count fell to zero, which
/// it must not.
// Never inlined: the caller may be built without optimisation.
#[inline(never)]
pub fn trips(mode: Mode, mm: &Mm, slot: &Slot, count: u64) -> u64 {
    match mode {
        Mode::Refcount => refcounted(mm, slot, count),
        Mode::Shootdown => not_counted(mm, slot, count),
        Mode::Defer => not_counted(mm, slot, count),
    }
}

fn refcounted(mm: &Mm, slot: &Slot, count: u64) -> u64 {
    let mut last = 0;
    for _ in 0..count {
        mm.grab();
        slot.publish(mm);
        lazy(mm);
        slot.retire();
        if mm.drop() {
            last += 1;
        }
    }
    last
}

fn not_counted(mm: &Mm, slot: &Slot, count: u64) -> u64 {
    let stack = AtomicU32::new(0);
    for _ in 0..count {
        slot.publish(mm);
        lazy(mm);
        slot.retire();
        full_barrier(&stack);
    }
    0
}

/// What the CPU does in between is unknown to the optimiser, so that both stores stay.
fn lazy(mm: &Mm) {
    black_box(ptr::from_ref(mm));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trip_leaves_nothing_behind() {
        for mode in Mode::ALL {
            let (mm, slot) = (Mm::default(), Slot::default());
            assert_eq!(trips(mode, &mm, &slot, 1000), 0);
            assert_eq!(mm.count(), 1);
            assert!(slot.mm.into_inner().is_null());
        }
    }

    #[test]
    fn nothing_shares_a_line() {
        assert_eq!(align_of::<Mm>(), 128);
        assert_eq!(size_of::<[Slot; 2]>(), 256);
    }
}
