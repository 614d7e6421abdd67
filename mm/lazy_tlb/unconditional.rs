// SPDX-License-Identifier: GPL-2.0

//! The policy that does not look: the final drop interrupts all candidates, lazy or not.
//!
//! This is what the code in `kernel/fork.c` does, with counters. It is here to be compared with.

use crate::policy::Policy;
use core::cell::Cell;
use kernel::{
    cpu::CpuId,
    mm::lazy_tlb::{
        FinalDrop,
        Outcome,
        Scan,
        StillLazy, //
    },
    prelude::*,
    smp, //
};

/// See the [module documentation](self).
pub(crate) struct Unconditional;

impl Policy for Unconditional {
    fn name(&self) -> &'static CStr {
        c"unconditional"
    }

    fn refcounts(&self) -> bool {
        false
    }

    fn final_drop(&self, mm: FinalDrop) {
        let address = mm.address();
        let (lazy, local) = (Cell::new(0), Cell::new(0));
        let scanned = mm.scan().scanned;

        let ran = smp::on_each_cpu_cond_mask(
            // What is counted is not acted upon.
            |cpu| {
                if mm.is_lazy_on(cpu) {
                    lazy.set(lazy.get() + 1);
                    local.set(local.get() + usize::from(cpu == CpuId::current()));
                }
                true
            },
            |irq| {
                mm.let_go(irq);
            },
            mm.candidates(),
        );
        let outcome = Outcome {
            scan: Scan {
                scanned,
                lazy: lazy.get(),
            },
            ipis: ran.remote,
            local: local.get(),
            deferred: false,
        };

        if let Err(StillLazy { .. }) = mm.free() {
            pr_err!("an mm is in use after all its CPUs were interrupted, leaking it\n");
        }
        outcome.record(address, self.name());
    }
}
