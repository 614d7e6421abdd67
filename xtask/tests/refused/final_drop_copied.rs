//! A final drop has one owner.

use kernel::mm::lazy_tlb::FinalDrop;

pub fn copy(mm: &FinalDrop) {
    let _ = Clone::clone(mm); //~ E0277 | let _ = mm;
}
