//! Doing nothing about a final drop leaks the mm, which is sound: only a lint says so.

use kernel::mm::lazy_tlb::FinalDrop;

pub fn leak(make: impl FnOnce() -> FinalDrop) {
    make(); //~ unused_must_use | let _ = make().hand_over(|_| ());
}
