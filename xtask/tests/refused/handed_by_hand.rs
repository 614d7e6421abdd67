//! Only a CPU that was handed a reference is asked to let go.

use kernel::{cpu::CpuId, mm::lazy_tlb::Handed};

pub fn another(handed: &mut Handed<'_>) {
    handed.cpu = CpuId::current(); //~ E0616 | let _ = CpuId::current();
    handed.nudge();
}
