// SPDX-License-Identifier: GPL-2.0

//! Cross-calls: running a closure on other CPUs.
//!
//! A cross-call interrupts CPUs (an IPI) and waits until every one of them has run the closure.
//! Waiting is not an option here: because the call returns only when all CPUs are done with it,
//! the closure may borrow from the caller's stack.
//!
//! C header: [`include/linux/smp.h`](srctree/include/linux/smp.h)
//!
//! # Context
//!
//! The functions of this module must be called from a task, with interrupts enabled. The caller
//! may hold spinlocks, as long as no CPU takes them with interrupts disabled. They do not sleep:
//! where the kernel is preemptible the caller can be preempted while it waits. C warns about a
//! call from the wrong context (`smp_call_function_many_cond()`); such a call can deadlock, but
//! is no memory safety issue.
//!
//! The closure runs in hard interrupt context on the CPUs that get the IPI, and with interrupts
//! disabled on the calling CPU. It must not sleep and should be short.
//!
//! # Ordering
//!
//! What the caller wrote before the call is visible to the closure, and what the closure wrote is
//! visible to the caller when the call has returned. C provides both: `llist_add()` pairs with
//! `llist_del_all()`, `csd_unlock()` with `csd_lock_wait()` in `kernel/smp.c`.

use crate::{
    bindings,
    cpu::CpuId,
    cpumask::LiveCpumask,
    interrupt::LocalInterruptDisabled,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Where a cross-call has run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// On how many other CPUs, each of which got an IPI for it.
    pub remote: usize,
    /// Whether it has run on the calling CPU.
    pub here: bool,
}

/// What a cross-call passes to C: where to run the closure, the closure, and where it has run.
struct Call<'a, C, F> {
    cond: &'a C,
    func: &'a F,
    /// The calling CPU, noted by `call_cond()`.
    caller: Atomic<u32>,
    remote: Atomic<usize>,
    here: Atomic<usize>,
}

/// The C callback that decides whether `cpu` takes part. C calls it on the calling CPU only.
///
/// # Safety
///
/// `info` must point to a valid `Call<'_, C, F>`, and the call must come from the thread that
/// owns it.
unsafe extern "C" fn call_cond<C, F>(cpu: c_int, info: *mut c_void) -> bool
where
    C: Fn(CpuId) -> bool,
{
    // SAFETY: By the requirements of this function.
    let call = unsafe { &*info.cast::<Call<'_, C, F>>() };

    // C has preemption disabled from here on until it has run the closure on this CPU, if it does.
    call.caller.store(u32::from(CpuId::current()), Relaxed);

    // A CPU number that C made up would be a bug there; leave that CPU alone.
    CpuId::from_i32(cpu).is_some_and(|cpu| (call.cond)(cpu))
}

/// The C callback that runs the closure on a CPU.
///
/// # Safety
///
/// `info` must point to a valid `Call<'_, C, F>`, and local interrupts must be disabled.
unsafe extern "C" fn call_func<C, F>(info: *mut c_void)
where
    F: Fn(&LocalInterruptDisabled) + Sync,
{
    // SAFETY: By the requirements of this function. `C` need not be `Sync`, since `cond` is not
    // used here.
    let call = unsafe { &*info.cast::<Call<'_, C, F>>() };

    // Relaxed is enough here: `caller` was stored before the call, and the counts are read after
    // it, which C orders, see the module documentation.
    if u32::from(CpuId::current()) == call.caller.load(Relaxed) {
        call.here.fetch_add(1, Relaxed);
    } else {
        call.remote.fetch_add(1, Relaxed);
    }

    // SAFETY: By the requirements of this function.
    (call.func)(unsafe { LocalInterruptDisabled::assume_disabled() });
}

/// Runs `func` on the online CPUs of `mask` for which `cond` holds, and waits for all of them.
///
/// `cond` is called on the calling CPU, once for each candidate, right before the IPIs are sent.
/// A CPU for which it returns `false` is not disturbed. If no CPU is left, no IPI is sent. When
/// the calling CPU takes part, it runs `func` itself, without an IPI. Returns where `func` has run.
///
/// `mask` may change concurrently. A CPU that is added to it late may be missed.
///
/// See the [module documentation](self) for the context this may be called from.
///
/// # Examples
///
/// ```
/// use kernel::{
///     cpu::CpuId,
///     cpumask::LiveCpumask,
///     smp,
///     sync::atomic::{
///         Atomic,
///         Relaxed, //
///     },
/// };
///
/// let runs = Atomic::new(0);
/// let first = CpuId::from_u32(0).ok_or(EINVAL)?;
///
/// // Only on the first CPU.
/// let ran = smp::on_each_cpu_cond_mask(
///     |cpu| cpu == first,
///     |_irq| {
///         runs.fetch_add(1, Relaxed);
///     },
///     LiveCpumask::online(),
/// );
/// assert_eq!(runs.load(Relaxed), 1);
/// assert_eq!(ran.remote + usize::from(ran.here), 1);
///
/// // On none at all.
/// let ran = smp::on_each_cpu_cond_mask(
///     |_cpu| false,
///     |_irq| {
///         runs.fetch_add(1, Relaxed);
///     },
///     LiveCpumask::online(),
/// );
/// assert_eq!(runs.load(Relaxed), 1);
/// assert_eq!(ran, smp::Ran::default());
/// # Ok::<(), Error>(())
/// ```
#[doc(alias("smp_call_function_many_cond"))]
pub fn on_each_cpu_cond_mask<C, F>(cond: C, func: F, mask: &LiveCpumask) -> Ran
where
    C: Fn(CpuId) -> bool,
    F: Fn(&LocalInterruptDisabled) + Sync,
{
    let call = Call {
        cond: &cond,
        func: &func,
        caller: Atomic::new(0),
        remote: Atomic::new(0),
        here: Atomic::new(0),
    };

    // SAFETY: `wait` is true, so C does not use `call` after this returns, and `mask` is a valid
    // cpumask by its type invariant. C calls `call_cond` on this CPU only, and `call_func` with
    // local interrupts disabled; `func` is `Sync`, so other CPUs may call it.
    unsafe {
        bindings::on_each_cpu_cond_mask(
            Some(call_cond::<C, F>),
            Some(call_func::<C, F>),
            (&raw const call).cast_mut().cast(),
            true,
            mask.as_raw(),
        )
    };

    Ran {
        remote: call.remote.load(Relaxed),
        here: call.here.load(Relaxed) != 0,
    }
}

/// Runs `func` on every online CPU of `mask`, and waits for all of them.
///
/// When the calling CPU is in `mask`, it runs `func` itself, without an IPI. Returns where `func`
/// has run.
///
/// See the [module documentation](self) for the context this may be called from.
///
/// # Examples
///
/// ```
/// use kernel::{
///     cpumask::LiveCpumask,
///     smp,
///     sync::atomic::{
///         Atomic,
///         Relaxed, //
///     },
/// };
///
/// let runs = Atomic::new(0u32);
///
/// // The closure borrows `runs` from this stack frame.
/// smp::on_each_cpu_mask(LiveCpumask::online(), |_irq| {
///     runs.fetch_add(1, Relaxed);
/// });
/// assert_eq!(runs.load(Relaxed), LiveCpumask::online().weight());
/// ```
pub fn on_each_cpu_mask<F>(mask: &LiveCpumask, func: F) -> Ran
where
    F: Fn(&LocalInterruptDisabled) + Sync,
{
    on_each_cpu_cond_mask(|_| true, func, mask)
}

/// Runs `func` on every online CPU of `mask` but the calling one, and waits for all of them.
///
/// This is C's `smp_call_function_many()` with `wait`, except that preemption need not be
/// disabled: which CPU is the calling one is decided after C has disabled it. Returns where `func`
/// has run.
///
/// See the [module documentation](self) for the context this may be called from.
///
/// # Examples
///
/// ```
/// use kernel::{
///     cpumask::LiveCpumask,
///     smp,
///     sync::atomic::{
///         Atomic,
///         Relaxed, //
///     },
/// };
///
/// let runs = Atomic::new(0u32);
///
/// smp::call_function_many(LiveCpumask::online(), |_irq| {
///     runs.fetch_add(1, Relaxed);
/// });
/// assert_eq!(runs.load(Relaxed) + 1, LiveCpumask::online().weight());
/// ```
#[doc(alias("smp_call_function_many"))]
pub fn call_function_many<F>(mask: &LiveCpumask, func: F) -> Ran
where
    F: Fn(&LocalInterruptDisabled) + Sync,
{
    on_each_cpu_cond_mask(|cpu| cpu != CpuId::current(), func, mask)
}
