// SPDX-License-Identifier: GPL-2.0

//! Lazy TLB state in debugfs.
//!
//! `lazy_tlb/self` is about the mm of the process that reads it: `mm_users`, `mm_count`, and
//! `lazy_cpus`, the number of CPUs that are lazy on it without being counted in `mm_count`. The
//! values are read one after the other while the system runs.

use kernel::{
    current,
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    mm::lazy_tlb,
    prelude::*, //
};

module! {
    type: LazyTlbDebugfs,
    name: "lazy_tlb_debugfs",
    authors: ["The lazy TLB developers"],
    description: "Lazy TLB state in debugfs",
    license: "GPL",
}

/// The debugfs files. They take no data of their own.
#[pin_data]
struct LazyTlbDebugfs {
    #[pin]
    this: File<()>,
    _dir: Dir,
}

/// Contents of `self`. Runs in the process that reads the file.
fn show_self(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let task = current!();
    let Some(mm) = task.mm() else {
        return Err(fmt::Error);
    };

    writeln!(f, "mm_users {}", mm.users())?;
    writeln!(f, "mm_count {}", mm.count())?;
    writeln!(f, "lazy_cpus {}", lazy_tlb::lazy_cpus(mm))
}

impl kernel::InPlaceModule for LazyTlbDebugfs {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let dir = Dir::new(c"lazy_tlb");

        try_pin_init!(Self {
            this <- dir.read_callback_file(c"self", (), &show_self),
            _dir: dir.clone(),
        })
    }
}
