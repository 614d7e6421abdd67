// SPDX-License-Identifier: GPL-2.0

//! The policy that interrupts: the final drop makes the CPUs that are still lazy let go.
//!
//! It reads the slots of the candidates. Where no CPU is lazy, as after the last flush of an
//! ordinary exit on x86, that is all. Otherwise it interrupts exactly those CPUs whose slot holds
//! the mm, and waits for them. The calling CPU is switched without an interrupt.

use crate::policy::Policy;
use core::cell::Cell;
use kernel::{
    mm::lazy_tlb::{
        FinalDrop,
        Outcome,
        StillLazy, //
    },
    prelude::*,
    smp, //
};

/// See the [module documentation](self).
pub(crate) struct Shootdown;

/// Makes every CPU that is lazy on `mm` let go.
pub(crate) fn shoot(mm: &FinalDrop, outcome: &mut Outcome) {
    let lazy = Cell::new(0);
    let ran = smp::on_each_cpu_cond_mask(
        // A CPU that is not lazy here will not become so: it can be left alone.
        |cpu| {
            let is_lazy = mm.is_lazy_on(cpu);

            lazy.set(lazy.get() + usize::from(is_lazy));
            is_lazy
        },
        // A CPU may have switched to a user task since. Then there is nothing to do.
        |irq| {
            mm.let_go(irq);
        },
        mm.candidates(),
    );

    // What a scan has found before this is out of date.
    outcome.scan.lazy = lazy.get();
    outcome.ipis += ran.remote;
    outcome.local += usize::from(ran.here);
}

/// Frees `mm`, after a shootdown if one is needed.
pub(crate) fn shoot_and_free(mm: FinalDrop, outcome: &mut Outcome) {
    let mut free = mm.free();

    outcome.scan = match &free {
        Ok(scan) | Err(StillLazy { scan, .. }) => *scan,
    };
    // Once is enough: no CPU becomes lazy on an mm whose count is zero.
    while let Err(StillLazy { mm, .. }) = free {
        shoot(&mm, outcome);
        free = mm.free();
    }
}

impl Policy for Shootdown {
    fn name(&self) -> &'static CStr {
        c"shootdown"
    }

    fn refcounts(&self) -> bool {
        false
    }

    fn final_drop(&self, mm: FinalDrop) {
        let address = mm.address();
        let mut outcome = Outcome::default();

        shoot_and_free(mm, &mut outcome);
        outcome.record(address, self.name());
    }
}
