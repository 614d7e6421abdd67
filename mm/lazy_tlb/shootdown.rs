// SPDX-License-Identifier: GPL-2.0

//! The policy that interrupts: the final drop makes the CPUs that are still lazy let go.
//!
//! It reads the slots of the candidates, interrupts exactly those CPUs whose slot holds the mm,
//! and waits for them. The calling CPU is switched without an interrupt. Where no CPU is lazy, as
//! after the last flush of an ordinary exit on x86, there is none to interrupt.

use crate::policy::Policy;
use kernel::{
    mm::lazy_tlb::FinalDrop,
    prelude::*,
    smp,
    sync::barrier::{
        smp_mb,
        Full, //
    }, //
};

/// See the [module documentation](self).
pub(crate) struct Shootdown;

impl Policy for Shootdown {
    fn name(&self) -> &'static CStr {
        c"shootdown"
    }

    fn refcounts(&self) -> bool {
        false
    }

    fn final_drop(&self, mm: &FinalDrop) {
        smp::on_each_cpu_cond_mask(
            // A CPU that is not lazy here will not become so: it can be left alone.
            |cpu| mm.is_lazy_on(cpu),
            // A CPU may have switched to a user task since. Then there is nothing to do.
            |irq| {
                mm.let_go(irq);
            },
            mm.candidates(),
        );

        // A CPU that had left the candidates was not asked. Pairs with the full barrier between
        // its last access to the mm and its leaving, see `arch_lazy_tlb_cpumask()`: what comes
        // after this, freeing the mm, comes after that access.
        smp_mb(Full);
    }
}
