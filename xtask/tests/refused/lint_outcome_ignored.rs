//! The same where nobody looks at what became of it.

use kernel::mm::lazy_tlb::FinalDrop;

pub fn ignore(mm: FinalDrop) {
    mm.hand_over(|_| ()); //~ unused_must_use | let _ = mm.hand_over(|_| ()).unused;
}
