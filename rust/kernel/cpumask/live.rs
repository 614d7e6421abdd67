// SPDX-License-Identifier: GPL-2.0

//! A CPU mask that other CPUs change while one looks at it.

use super::Cpumask;
use crate::{
    bindings,
    cpu::CpuId,
    types::Opaque, //
};

/// A shared view of a CPU mask that may change at any time.
///
/// [`Cpumask`] has plain, non-atomic setters behind `&mut self`, so a reference to it promises
/// that nobody else writes. The masks that matter most are not like that: every CPU sets and
/// clears its own bit in `cpu_online_mask` or in the `mm_cpumask()` of a process. This type
/// offers what is meaningful on such a mask: atomic updates of one bit, and reads whose result
/// can be out of date when it arrives.
///
/// None of the reads orders anything. Where a bit says something about other memory, the caller
/// needs a barrier and a partner for it.
///
/// # Invariants
///
/// Points to a valid `struct cpumask` that all users access atomically, bit by bit or word by
/// word.
///
/// # Examples
///
/// ```
/// use kernel::{
///     cpu::CpuId,
///     cpumask::LiveCpumask, //
/// };
///
/// let online = LiveCpumask::online();
/// let me = CpuId::current();
///
/// assert!(online.test(me));
/// assert!(!online.is_empty());
/// assert!(online.iter().any(|cpu| cpu == me));
/// ```
///
/// A [`Cpumask`] that is only shared, not written, can be viewed as a live one:
///
/// ```
/// use kernel::{
///     cpu::CpuId,
///     cpumask::{
///         CpumaskVar,
///         LiveCpumask, //
///     },
/// };
///
/// let mask = CpumaskVar::new_zero(GFP_KERNEL)?;
/// let live: &LiveCpumask = (*mask).as_ref();
/// let first = CpuId::from_u32(0).ok_or(EINVAL)?;
///
/// assert!(live.is_empty() && live.iter().next().is_none());
/// live.set(first);
/// assert_eq!(live.iter().next(), Some(first));
/// assert_eq!(live.weight(), 1);
/// live.clear(first);
/// assert!(!live.test(first));
/// # Ok::<(), Error>(())
/// ```
#[repr(transparent)]
pub struct LiveCpumask(Opaque<bindings::cpumask>);

// SAFETY: By the type invariant all accesses are atomic, from whichever thread.
unsafe impl Sync for LiveCpumask {}

impl LiveCpumask {
    /// Creates a reference from a `struct cpumask` pointer.
    ///
    /// # Safety
    ///
    /// For the whole life `'a`, `ptr` must be valid, and nobody may access the mask other than
    /// atomically.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *const bindings::cpumask) -> &'a Self {
        // SAFETY: By the requirements of this function; the layouts are the same.
        //
        // INVARIANT: By the requirements of this function.
        unsafe { &*ptr.cast() }
    }

    /// Returns the mask of the CPUs that are online, C's `cpu_online_mask`.
    #[inline]
    #[doc(alias("cpu_online_mask"))]
    pub fn online() -> &'static Self {
        // SAFETY: `__cpu_online_mask` is a global that is updated with atomic bit operations.
        unsafe { Self::from_raw(&raw const bindings::__cpu_online_mask) }
    }

    /// Returns the raw `struct cpumask` pointer.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::cpumask {
        self.0.get()
    }

    /// Sets `cpu` in the mask, atomically and without ordering.
    #[inline]
    #[doc(alias("cpumask_set_cpu"))]
    pub fn set(&self, cpu: CpuId) {
        // SAFETY: By the type invariant `as_raw` is a valid mask, and `cpu` lies within it.
        unsafe { bindings::cpumask_set_cpu(u32::from(cpu), self.as_raw()) };
    }

    /// Clears `cpu` in the mask, atomically and without ordering.
    #[inline]
    #[doc(alias("cpumask_clear_cpu"))]
    pub fn clear(&self, cpu: CpuId) {
        // SAFETY: By the type invariant `as_raw` is a valid mask, and `cpu` lies within it.
        unsafe { bindings::cpumask_clear_cpu(i32::from(cpu), self.as_raw()) };
    }

    /// Tells whether `cpu` is in the mask.
    #[inline]
    #[doc(alias("cpumask_test_cpu"))]
    pub fn test(&self, cpu: CpuId) -> bool {
        // SAFETY: By the type invariant `as_raw` is a valid mask, and `cpu` lies within it.
        unsafe { bindings::cpumask_test_cpu(i32::from(cpu), self.as_raw()) }
    }

    /// Tells whether no CPU is in the mask.
    #[inline]
    #[doc(alias("cpumask_empty"))]
    pub fn is_empty(&self) -> bool {
        // SAFETY: By the type invariant `as_raw` is a valid mask.
        unsafe { bindings::cpumask_empty(self.as_raw()) }
    }

    /// Counts the CPUs in the mask.
    #[inline]
    #[doc(alias("cpumask_weight"))]
    pub fn weight(&self) -> u32 {
        // SAFETY: By the type invariant `as_raw` is a valid mask.
        unsafe { bindings::cpumask_weight(self.as_raw()) }
    }

    /// Iterates over the CPUs in the mask, in ascending order.
    ///
    /// A CPU that joins or leaves while the iterator runs may or may not be seen; one that is in
    /// the mask all the time is.
    #[inline]
    #[doc(alias("for_each_cpu"))]
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            mask: self,
            last: -1,
        }
    }
}

impl<'a> IntoIterator for &'a LiveCpumask {
    type Item = CpuId;
    type IntoIter = Iter<'a>;

    #[inline]
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl AsRef<LiveCpumask> for Cpumask {
    #[inline]
    fn as_ref(&self) -> &LiveCpumask {
        // SAFETY: The borrow keeps the mask valid, and rules out the non-atomic setters, which
        // take `&mut self`.
        unsafe { LiveCpumask::from_raw(self.as_raw()) }
    }
}

/// The iterator of [`LiveCpumask::iter`].
pub struct Iter<'a> {
    mask: &'a LiveCpumask,
    last: i32,
}

impl Iterator for Iter<'_> {
    type Item = CpuId;

    #[inline]
    fn next(&mut self) -> Option<CpuId> {
        // SAFETY: By the type invariant `as_raw` is a valid mask; `last` is -1 or the number of a
        // CPU.
        let cpu = unsafe { bindings::cpumask_next(self.last, self.mask.as_raw()) };

        // C returns `nr_cpu_ids` or more when there is none left.
        let cpu = CpuId::from_u32(cpu)?;
        self.last = i32::from(cpu);
        Some(cpu)
    }
}
