//! A final drop stays in its thread.

use kernel::mm::lazy_tlb::FinalDrop;

fn send<T: Send>(_: T) {}

pub fn elsewhere(mm: FinalDrop) {
    send(mm); //~ E0277 | send(mm.hand_over(|_| ()).unused);
}
