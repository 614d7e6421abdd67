//! An mm is handed over once.

use kernel::mm::lazy_tlb::FinalDrop;

pub fn twice(mm: FinalDrop) {
    let _ = mm.hand_over(|_| ());
    let _ = mm.hand_over(|_| ()); //~ E0382
}
