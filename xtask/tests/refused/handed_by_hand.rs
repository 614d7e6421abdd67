//! Only a CPU that was handed a reference is asked to let go.

use kernel::{cpu::CpuId, mm::lazy_tlb::Handed};

pub fn another<'a>(_cpu: CpuId, handed: Handed<'a>) -> Handed<'a> {
    Handed { cpu: _cpu, ..handed } //~ E0451 | handed
}
