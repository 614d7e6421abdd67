//! A CPU is asked to let go while preemption is disabled, not later.

use kernel::mm::lazy_tlb::{FinalDrop, Handed};

pub fn keep(mm: FinalDrop) {
    let mut _kept: Option<Handed<'_>> = None;
    let _ = mm.hand_over(|cpu| {
        _kept = Some(cpu); //~ E0521 | cpu.nudge();
    });
}
