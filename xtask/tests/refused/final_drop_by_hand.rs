//! What a final drop is made of is private.

use core::ptr::NonNull;
use kernel::{bindings::mm_struct, mm::lazy_tlb::FinalDrop};

pub unsafe fn make(mm: NonNull<mm_struct>) -> FinalDrop {
    FinalDrop(mm) //~ E0423 | unsafe { FinalDrop::from_raw(mm) }
}
