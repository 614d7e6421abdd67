//! A QEMU TCG plugin that counts which cache lines move between emulated CPUs, see [`model`].
//!
//! Its arguments: `out=FILE`, `line=BYTES`, `turn=INSNS` (0: the emulator's own turns), `seed=N`, and
//! the addresses of three empty functions of the workload: `arm=`, from which on who has which line is
//! known, `begin=` and `end=`, between which counts are made. After each `end` they are added to FILE.
//!
//! Counting needs one emulator thread, `-accel tcg,thread=single`.

pub mod count;
#[cfg(not(test))]
mod ffi;
pub mod kind;
pub mod model;
