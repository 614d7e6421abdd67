// SPDX-License-Identifier: GPL-2.0

//! Lazy TLB mms: which CPUs still use an address space that is to be freed.
//!
//! A CPU that runs the idle task or a kernel thread keeps the page tables of the last user mm
//! loaded, and says so in a per-CPU slot. It is *lazy* on that mm. Nobody counts these uses, so
//! whoever drops the last reference has to look for them first. This module offers what is needed
//! for that as evidence: a [`FinalDrop`] can only be had from the C code that has just dropped
//! the last reference. It owns the mm, and [`FinalDrop::free`] frees it only after it has seen for
//! itself that no CPU is lazy. So a policy can be wrong about when to free an mm, or how many CPUs
//! to interrupt for it, but it cannot free one that is in use.
//!
//! It does not decide what to do about a lazy CPU. That is up to the policies in
//! `mm/lazy_tlb/`.
//!
//! C headers: [`include/linux/lazy_tlb.h`](srctree/include/linux/lazy_tlb.h),
//! [`include/asm-generic/lazy_tlb.h`](srctree/include/asm-generic/lazy_tlb.h)

use crate::{
    bindings,
    cpu::{
        self,
        CpuId, //
    },
    cpumask::LiveCpumask,
    interrupt::LocalInterruptDisabled,
    mm::Mm,
    prelude::*,
    sync::{
        aref::ARef,
        barrier::{
            smp_mb,
            Full, //
        },
        global_lock, //
    },
    time::{
        Msecs,
        NSEC_PER_MSEC, //
    },
    warn_on, //
};
use core::ptr::{
    self,
    NonNull, //
};

/// The final drop of an address space: what is left of the `mm_struct`, and the duty to free it.
///
/// `mm_count` has reached zero. Because of that, the set of CPUs that are lazy on the mm can only
/// shrink: a new user would need a reference, and a switch from one kernel thread to the next
/// inherits the mm on a CPU that is in the set already.
///
/// # Invariants
///
/// Points to a valid `mm_struct` whose `mm_count` is zero, and is the only thing left that will
/// free it.
#[must_use = "an mm whose final drop does not end is leaked"]
pub struct FinalDrop(NonNull<bindings::mm_struct>);

// SAFETY: An mm may be freed by any task.
unsafe impl Send for FinalDrop {}

// SAFETY: All methods that take `&self` can be called on several CPUs in parallel.
unsafe impl Sync for FinalDrop {}

/// What a look at the slots has found.
#[derive(Clone, Copy, Default)]
pub struct Scan {
    /// Slots that were read.
    pub scanned: usize,
    /// CPUs that were lazy.
    pub lazy: usize,
}

/// The mm could not be freed: CPUs are lazy on it.
pub struct StillLazy {
    /// The mm.
    pub mm: FinalDrop,
    /// What was found.
    pub scan: Scan,
}

impl FinalDrop {
    /// Takes over the mm from `__mmdrop()`.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a valid `mm_struct` that nobody else is going to free. Its `mm_count`
    /// must have become zero by a fully ordered operation that precedes this call.
    #[inline]
    pub unsafe fn from_raw(ptr: NonNull<bindings::mm_struct>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(ptr)
    }

    #[inline]
    fn as_raw(&self) -> *mut bindings::mm_struct {
        self.0.as_ptr()
    }

    /// Returns the address of the mm, which says nothing about whether it is still there.
    #[inline]
    pub fn address(&self) -> usize {
        self.as_raw().addr()
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
    /// the caller does next is ordered after that access. `true` can be out of date when it
    /// arrives.
    ///
    /// The acquire in `lazy_tlb_slot_of()` pairs with the release in `lazy_tlb_retire()`.
    #[inline]
    #[doc(alias("lazy_tlb_slot_of"))]
    pub fn is_lazy_on(&self, cpu: CpuId) -> bool {
        // SAFETY: `cpu` is a possible CPU by its type invariant.
        let slot = unsafe { bindings::lazy_tlb_slot_of(u32::from(cpu)) };

        slot == self.as_raw()
    }

    /// Looks at the slots of all candidates.
    pub fn scan(&self) -> Scan {
        let mut scan = Scan::default();

        for cpu in self.candidates() {
            scan.scanned += 1;
            scan.lazy += usize::from(self.is_lazy_on(cpu));
        }
        scan
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

    /// Frees the mm, unless a CPU is lazy on it.
    ///
    /// Must be called from a task. Does not sleep.
    pub fn free(self) -> Result<Scan, StillLazy> {
        let scan = self.scan();

        if scan.lazy != 0 {
            return Err(StillLazy { mm: self, scan });
        }

        // A CPU that had left the candidates was not asked. Pairs with the full barrier between
        // its last access to the mm and its leaving, see `arch_lazy_tlb_cpumask()`: what comes
        // after this, freeing the mm, comes after that access.
        smp_mb(Full);

        // SAFETY: The mm is valid, and it is ours to free, by the type invariant, which ends here.
        // No CPU uses it: each candidate was seen not to be lazy, which is final, and no other
        // CPU is.
        unsafe { bindings::lazy_tlb_free(self.as_raw()) };
        Ok(scan)
    }
}

/// Makes the calling CPU let go of the mm that it is lazy on, if the final drop of that is going
/// on. Which mm that is need not be known.
///
/// Returns whether there was anything to let go of.
#[inline]
#[doc(alias("lazy_tlb_let_go_dropped"))]
pub fn let_go_dropped(_irq: &LocalInterruptDisabled) -> bool {
    // SAFETY: Interrupts are disabled, as `_irq` proves.
    unsafe { bindings::lazy_tlb_let_go_dropped() }
}

/// Mms that wait for lazy CPUs to let go by themselves, the one that was looked at last at the
/// end.
///
/// # Invariants
///
/// - `first` is null, or the first of a list of mms, linked by `lazy_tlb_waiting.next`, which ends
///   with `last`. The list owns them, as a [`FinalDrop`] does.
/// - `count` is the length of the list, plus the number of [`Waiting`] objects.
struct WaitingList {
    first: *mut bindings::mm_struct,
    last: *mut bindings::mm_struct,
    count: usize,
    most: usize,
    longest: Msecs,
}

// SAFETY: The list owns the mms, and an mm may be freed by any task.
unsafe impl Send for WaitingList {}

impl WaitingList {
    fn push(&mut self, mm: FinalDrop) {
        let mm = mm.as_raw();

        // SAFETY: The mm is ours, and its work item is not in use after the last `mmdrop()`, so
        // that what shares the memory with it is.
        unsafe { (*bindings::lazy_tlb_waiting_of(mm)).next = ptr::null_mut() };
        if self.first.is_null() {
            self.first = mm;
        } else {
            // SAFETY: `last` is valid by the type invariant.
            unsafe { (*bindings::lazy_tlb_waiting_of(self.last)).next = mm };
        }
        // INVARIANT: `mm` is at the end of the list.
        self.last = mm;
    }

    fn pop(&mut self) -> Option<FinalDrop> {
        let mm = NonNull::new(self.first)?;

        // SAFETY: `first` is valid by the type invariant.
        //
        // INVARIANT: What follows `mm` is a list that ends with `last`.
        self.first = unsafe { (*bindings::lazy_tlb_waiting_of(mm.as_ptr())).next };

        // INVARIANT: The list has owned `mm` and does not any more.
        Some(FinalDrop(mm))
    }
}

global_lock! {
    // SAFETY: Initialized by `init()`.
    unsafe(uninit) static WAITING_MMS: SpinLock<WaitingList> = WaitingList {
        first: ptr::null_mut(),
        last: ptr::null_mut(),
        count: 0,
        most: 0,
        longest: 0,
    };
}

/// Initializes what the other functions of this module use.
///
/// # Safety
///
/// Must be called once, before any other function here, while there is one CPU only.
pub unsafe fn init() {
    // SAFETY: By the requirements of this function.
    unsafe { WAITING_MMS.init() };
}

/// An mm that waits, taken off the list to be looked at.
pub struct Waiting(FinalDrop);

impl core::ops::Deref for Waiting {
    type Target = FinalDrop;

    fn deref(&self) -> &FinalDrop {
        &self.0
    }
}

/// Milliseconds since the system was booted.
fn now() -> i64 {
    // SAFETY: Timekeeping works before the first user mm exists.
    unsafe { bindings::ktime_get() / NSEC_PER_MSEC }
}

impl Waiting {
    /// Returns for how long the mm has been waiting.
    pub fn age(&self) -> Msecs {
        // SAFETY: The mm is valid, and was put on the list by `wait()`, which has set `since_ms`.
        let since = unsafe { (*bindings::lazy_tlb_waiting_of(self.as_raw())).since_ms };

        Msecs::try_from(now() - since).unwrap_or(0)
    }

    /// Frees the mm, unless a CPU is lazy on it. Returns for how long it has been waiting.
    pub fn free(self) -> Result<Msecs, Self> {
        let age = self.age();

        if let Err(StillLazy { mm, .. }) = self.0.free() {
            return Err(Self(mm));
        }

        let mut list = WAITING_MMS.lock();
        list.count -= 1;
        if age > list.longest {
            count(Event::LongestWaitMs, (age - list.longest) as usize);
            list.longest = age;
        }
        Ok(age)
    }

    /// Puts the mm back, to the end of the list.
    pub fn put_back(self) {
        WAITING_MMS.lock().push(self.0);
    }
}

/// Lets an mm wait until someone looks at it, see [`take_waiting`].
///
/// There is room for as many mms as there can be CPUs. Since a CPU is lazy on one mm at a time,
/// looking at those that wait makes room for another. If there is none, returns the mm.
pub fn wait(mm: FinalDrop) -> Result<(), FinalDrop> {
    let mut list = WAITING_MMS.lock();

    if list.count >= cpu::nr_cpu_ids() as usize {
        return Err(mm);
    }

    // SAFETY: The mm is ours; see `WaitingList::push()`.
    unsafe { (*bindings::lazy_tlb_waiting_of(mm.as_raw())).since_ms = now() };
    list.push(mm);
    list.count += 1;
    if cfg!(CONFIG_DEBUG_VM) {
        warn_on!(list.count > cpu::nr_cpu_ids() as usize);
    }
    count(Event::Deferred, 1);
    if list.count > list.most {
        count(Event::MaxWaiting, list.count - list.most);
        list.most = list.count;
    }
    Ok(())
}

/// Takes the mm that was looked at least recently off the list.
pub fn take_waiting() -> Option<Waiting> {
    WAITING_MMS.lock().pop().map(Waiting)
}

/// Returns how many mms wait, including those which somebody is looking at.
pub fn waiting() -> usize {
    WAITING_MMS.lock().count
}

/// Sees to it that the mms which wait are looked at in some `delay`, if that is not going to
/// happen anyway.
#[doc(alias("lazy_tlb_scan_later"))]
pub fn scan_later(delay: Msecs) {
    // SAFETY: Can be called from any context.
    unsafe { bindings::lazy_tlb_scan_later(delay) };
}

/// What is counted, in `/proc/vmstat`.
///
/// The last two are maxima. They are counted as well: a new maximum adds what it exceeds the old
/// one by.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Event {
    /// `mm_count` of an mm has reached zero.
    FinalDrops = bindings::vm_event_item_LAZY_TLB_FINAL_DROPS,
    /// Slots read by final drops.
    Scanned = bindings::vm_event_item_LAZY_TLB_SCANNED,
    /// CPUs whose slot held the mm.
    FoundLazy = bindings::vm_event_item_LAZY_TLB_FOUND_LAZY,
    /// CPUs interrupted by a final drop.
    Ipis = bindings::vm_event_item_LAZY_TLB_IPIS,
    /// The calling CPU was lazy, and let go without an interrupt.
    Local = bindings::vm_event_item_LAZY_TLB_LOCAL,
    /// Mms that had to wait.
    Deferred = bindings::vm_event_item_LAZY_TLB_DEFERRED,
    /// Waiting mms that were freed without an interrupt.
    Reaped = bindings::vm_event_item_LAZY_TLB_REAPED,
    /// Waiting mms that were freed after one.
    Flushed = bindings::vm_event_item_LAZY_TLB_FLUSHED,
    /// Batched cross-calls.
    Rounds = bindings::vm_event_item_LAZY_TLB_ROUNDS,
    /// CPUs interrupted by these.
    RoundIpis = bindings::vm_event_item_LAZY_TLB_ROUND_IPIS,
    /// The most mms that have been waiting at a time.
    MaxWaiting = bindings::vm_event_item_LAZY_TLB_MAX_WAITING,
    /// The longest that an mm has been waiting.
    LongestWaitMs = bindings::vm_event_item_LAZY_TLB_LONGEST_WAIT_MS,
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
        /// `policy` must point to a nul-terminated string.
        pub(super) unsafe fn lazy_tlb_final_drop(
            mm: *const bindings::mm_struct,
            policy: *const c_char,
            scanned: c_uint,
            lazy: c_uint,
            ipis: c_uint,
            deferred: bool,
        );

        /// # Safety
        ///
        /// `policy` must point to a nul-terminated string.
        pub(super) unsafe fn lazy_tlb_reap(
            mm: *const bindings::mm_struct,
            policy: *const c_char,
            waited_ms: c_uint,
        );

        /// # Safety
        ///
        /// `policy` must point to a nul-terminated string.
        pub(super) unsafe fn lazy_tlb_round(
            policy: *const c_char,
            waiting: c_uint,
            ipis: c_uint,
        );
    }
}

/// What became of a final drop, for the counters and the tracepoint.
#[derive(Clone, Copy, Default)]
pub struct Outcome {
    /// What was found.
    pub scan: Scan,
    /// How many CPUs were interrupted.
    pub ipis: usize,
    /// How many times the calling CPU let go, which is once at most.
    pub local: usize,
    /// Whether the mm has to wait.
    pub deferred: bool,
}

impl Outcome {
    /// Counts and traces the final drop of the mm that was at `address`.
    pub fn record(&self, address: usize, policy: &'static CStr) {
        count(Event::FinalDrops, 1);
        count(Event::Scanned, self.scan.scanned);
        if self.scan.lazy != 0 {
            count(Event::FoundLazy, self.scan.lazy);
            count(Event::Ipis, self.ipis);
            count(Event::Local, self.local);
        }

        // SAFETY: `policy` is nul-terminated. The address is not dereferenced.
        unsafe {
            trace::lazy_tlb_final_drop(
                ptr::without_provenance(address),
                policy.as_char_ptr(),
                self.scan.scanned as c_uint,
                self.scan.lazy as c_uint,
                self.ipis as c_uint,
                self.deferred,
            )
        };
    }
}

/// Traces that the mm which was at `address` is freed after it had to wait.
pub fn trace_reap(address: usize, policy: &'static CStr, waited: Msecs) {
    // SAFETY: `policy` is nul-terminated. The address is not dereferenced.
    unsafe {
        trace::lazy_tlb_reap(
            ptr::without_provenance(address),
            policy.as_char_ptr(),
            waited,
        )
    };
}

/// Traces a cross-call on behalf of all mms that wait.
pub fn trace_round(policy: &'static CStr, waiting: usize, ipis: usize) {
    // SAFETY: `policy` is nul-terminated.
    unsafe { trace::lazy_tlb_round(policy.as_char_ptr(), waiting as c_uint, ipis as c_uint) };
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

/// Makes an mm with nothing in it, and no users. It is freed with its last reference.
///
/// May sleep.
#[doc(alias("mm_alloc"))]
pub fn new_mm() -> Option<ARef<Mm>> {
    // SAFETY: Returns null, or an mm with one user, which is ours.
    let mm = NonNull::new(unsafe { bindings::mm_alloc() })?;

    // SAFETY: The mm is valid. Its user is ours to end, once there is a reference for ourselves.
    unsafe {
        bindings::mmgrab(mm.as_ptr());
        bindings::mmput(mm.as_ptr());
    }

    // SAFETY: The mm is valid, and the reference that was taken is passed on.
    Some(unsafe { ARef::from_raw(mm.cast()) })
}

/// Returns the CPUs that a final drop of `mm` would look at.
///
/// One that is added without ever being lazy on `mm` makes the final drop look at a slot for
/// nothing, and does no harm.
#[doc(alias("arch_lazy_tlb_cpumask"))]
pub fn candidates(mm: &Mm) -> &LiveCpumask {
    // SAFETY: The mask belongs to the mm, which is valid since `mm` is a reference, and is only
    // updated with atomic bit operations.
    unsafe { LiveCpumask::from_raw(bindings::arch_lazy_tlb_cpumask(mm.as_raw())) }
}

/// The calling CPU while it is lazy on nothing, for benchmarks.
///
/// # Invariants
///
/// Interrupts are disabled. Either the CPU is not lazy, or lazy uses are refcounted; then `slot` is
/// what its slot is to hold afterwards.
pub struct NotLazy<'a> {
    slot: *mut bindings::mm_struct,
    _irq: &'a LocalInterruptDisabled,
}

impl<'a> NotLazy<'a> {
    /// Makes the calling CPU let go of what it is lazy on. Where lazy uses are refcounted, the
    /// reference stays, and the slot is not more than a note, which is put back in the end.
    pub fn new(irq: &'a LocalInterruptDisabled) -> Self {
        // SAFETY: The calling CPU is a possible one.
        let mut slot = unsafe { bindings::lazy_tlb_slot_of(u32::from(CpuId::current())) };
        // SAFETY: Can be called from any context.
        let refcounted = unsafe { bindings::lazy_tlb_refcounted() };

        if !slot.is_null() && !refcounted {
            // SAFETY: Interrupts are disabled, as `irq` proves. A slot keeps its mm valid where
            // lazy uses are not refcounted.
            unsafe { bindings::lazy_tlb_let_go(slot) };
            slot = ptr::null_mut();
        }

        // INVARIANT: As above.
        Self { slot, _irq: irq }
    }

    /// Does about lazy TLB what a switch from a task that uses `mm` to the idle task does, and one
    /// back to it.
    #[inline]
    #[doc(alias("lazy_tlb_publish"))]
    #[doc(alias("lazy_tlb_retire"))]
    pub fn borrow_and_return(&self, mm: &Mm) {
        // SAFETY: The mm is valid since `mm` is a reference. Interrupts are disabled, and the slot
        // is free, by the type invariant. `mm` is not used by the CPU, and the reference that is
        // dropped is the one that was taken, if any.
        unsafe {
            bindings::lazy_tlb_borrow(mm.as_raw());
            bindings::lazy_tlb_return(mm.as_raw());
        }
    }
}

impl Drop for NotLazy<'_> {
    fn drop(&mut self) {
        if !self.slot.is_null() {
            // SAFETY: Interrupts are still disabled, and by the type invariant the CPU holds a
            // reference on the mm that it was lazy on all the time.
            unsafe { bindings::lazy_tlb_publish(self.slot) };
        }
    }
}

/// Returns the name of the policy in force, as `lazy_tlb=` takes it.
pub fn policy_name() -> &'static CStr {
    // SAFETY: Returns a pointer to a constant, nul-terminated string.
    unsafe { CStr::from_char_ptr(bindings::lazy_tlb_policy_name()) }
}
