// SPDX-License-Identifier: GPL-2.0

//! The policy that waits: an mm is freed when its lazy CPUs have let go by themselves.
//!
//! Most lazy CPUs do, soon: they switch to a user task of another process. So an mm whose slots
//! are not all empty waits, and is looked at again by the next final drops and by a work item that
//! runs as long as an mm is waiting. No exit sends an interrupt.
//!
//! A CPU that stays idle, or runs a `nohz_full` task in the kernel, may hold an mm for as long as
//! it likes. If an mm has been waiting for [`BOUND`], one cross-call to the CPUs that are lazy on
//! any waiting mm frees all of them: a *round*. Since a CPU is lazy on one mm at a time, there are
//! never more mms waiting than there are CPUs.
//!
//! What user space sees of an exit is over by then. All that waits is the `mm_struct`, the top
//! level of its page tables, and what else `__mmdrop()` frees.

use crate::{
    policy::Policy,
    shootdown, //
};
use kernel::{
    cpumask::{
        CpumaskVar,
        LiveCpumask, //
    },
    interrupt,
    mm::lazy_tlb::{
        self,
        Event,
        FinalDrop,
        Outcome,
        StillLazy,
        Waiting, //
    },
    prelude::*,
    smp,
    time::Msecs, //
};

/// An mm that has been waiting for so long makes the next scan interrupt CPUs.
const BOUND: Msecs = 1000;

/// Time between two scans of the mms that wait.
const SCAN_INTERVAL: Msecs = 250;

/// How many waiting mms a final drop looks at: more than one, so that they get fewer.
const LOOKS: usize = 2;

/// See the [module documentation](self).
pub(crate) struct Defer;

/// Frees those of the next `looks` waiting mms that no CPU is lazy on, and calls `lazy` for the
/// others. Returns how many were freed.
fn reap(looks: usize, mut lazy: impl FnMut(&Waiting)) -> usize {
    let mut freed = 0;

    for _ in 0..looks {
        let Some(mm) = lazy_tlb::take_waiting() else {
            break;
        };
        let address = mm.address();

        match mm.free() {
            Ok(waited) => {
                lazy_tlb::trace_reap(address, Defer.name(), waited);
                freed += 1;
            }
            Err(mm) => {
                lazy(&mm);
                mm.put_back();
            }
        }
    }
    freed
}

/// Makes all CPUs that are lazy on a waiting mm let go, with one cross-call, and frees what waits.
///
/// Sleeps.
pub(crate) fn round() {
    let Ok(mask) = CpumaskVar::new_zero(GFP_KERNEL) else {
        // No memory, of which this gets some: one cross-call for each mm, then.
        reap(lazy_tlb::waiting(), |mm| {
            let mut outcome = Outcome::default();

            shootdown::shoot(mm, &mut outcome);
            lazy_tlb::count(Event::Rounds, 1);
            lazy_tlb::count(Event::RoundIpis, outcome.ipis);
        });
        lazy_tlb::count(Event::Flushed, reap(lazy_tlb::waiting(), |_| ()));
        return;
    };
    let held: &LiveCpumask = (*mask).as_ref();

    let reaped = reap(lazy_tlb::waiting(), |mm| {
        for cpu in mm.candidates() {
            if mm.is_lazy_on(cpu) {
                held.set(cpu);
            }
        }
    });
    lazy_tlb::count(Event::Reaped, reaped);
    if held.is_empty() {
        return;
    }

    let waiting = lazy_tlb::waiting();
    let ran = smp::on_each_cpu_mask(held, |irq| {
        lazy_tlb::let_go_dropped(irq);
    });

    lazy_tlb::count(Event::Rounds, 1);
    lazy_tlb::count(Event::RoundIpis, ran.remote);
    lazy_tlb::trace_round(Defer.name(), waiting, ran.remote);

    lazy_tlb::count(Event::Flushed, reap(lazy_tlb::waiting(), |_| ()));
}

/// Looks at all mms that wait, and sees to it that this is done again if any is left.
pub(crate) fn scan() {
    let mut overdue = false;
    let reaped = reap(lazy_tlb::waiting(), |mm| overdue |= mm.age() >= BOUND);

    lazy_tlb::count(Event::Reaped, reaped);
    if overdue {
        round();
    }

    if lazy_tlb::waiting() != 0 {
        lazy_tlb::scan_later(SCAN_INTERVAL);
    }
}

impl Policy for Defer {
    fn name(&self) -> &'static CStr {
        c"defer"
    }

    fn refcounts(&self) -> bool {
        false
    }

    fn waits(&self) -> bool {
        true
    }

    fn final_drop(&self, mm: FinalDrop) {
        let address = mm.address();
        let mut outcome = Outcome {
            // Where it takes no interrupt there is nothing to wait for.
            local: usize::from(mm.let_go(&interrupt::local_interrupt_disable())),
            ..Outcome::default()
        };

        match mm.free() {
            Ok(scan) => outcome.scan = scan,
            Err(StillLazy { mm, scan }) => {
                outcome.scan = scan;
                outcome.deferred = true;
                if let Err(mm) = lazy_tlb::wait(mm) {
                    // As many mms wait as there are CPUs. They cannot all be in use.
                    lazy_tlb::count(Event::Reaped, reap(lazy_tlb::waiting(), |_| ()));
                    if let Err(mm) = lazy_tlb::wait(mm) {
                        // Others were faster.
                        outcome.deferred = false;
                        shootdown::shoot_and_free(mm, &mut outcome);
                    }
                }
                lazy_tlb::scan_later(SCAN_INTERVAL);
            }
        }
        outcome.scan.lazy += outcome.local;
        outcome.record(address, self.name());

        let reaped = reap(LOOKS, |_| ());
        lazy_tlb::count(Event::Reaped, reaped);
    }
}
