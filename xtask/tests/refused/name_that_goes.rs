//! A name that is traced stays.

use kernel::{mm::lazy_tlb::trace_policy, prelude::*};

pub fn change(name: &CStr) {
    trace_policy(c"handover", name); //~ E0521 | trace_policy(c"handover", c"shootdown");
    let _ = name;
}
