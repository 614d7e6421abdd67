//! Whoever makes a final drop of a pointer has to vouch for it.

use core::ptr::NonNull;
use kernel::{bindings::mm_struct, mm::lazy_tlb::FinalDrop};

pub unsafe fn make(mm: NonNull<mm_struct>) -> FinalDrop {
    FinalDrop::from_raw(mm) //~ E0133 | unsafe { FinalDrop::from_raw(mm) }
}
