//! No other thread asks a CPU to let go by way of a reference.

use kernel::mm::lazy_tlb::FinalDrop;

fn send<T: Send>(_: T) {}

pub fn elsewhere(mm: FinalDrop) {
    let _ = mm.hand_over(|cpu| {
        send(&cpu); //~ E0277 | send(cpu.nudge());
    });
}
