//! What differs between architectures on the host side.

use crate::failure::{fail, Exit};

/// One architecture.
#[derive(Debug)]
pub struct Arch {
    /// As `--arch` and kbuild's `ARCH=` have it.
    pub name: &'static str,
    /// The bootable image, relative to the build folder.
    pub image: &'static str,
    /// The emulator.
    pub qemu: &'static str,
    /// Its arguments besides the accelerator, the CPUs and the image.
    pub machine: &'static [&'static str],
    /// The CPU model, emulated.
    pub cpu: &'static str,
    /// The kernel's console.
    pub console: &'static str,
    /// The ELF machine number of its programs.
    pub elf_machine: u16,
    /// The compiler for static guest programs.
    pub gcc: &'static str,
}

const ARCHES: [Arch; 1] = [Arch {
    name: "x86_64",
    image: "arch/x86/boot/bzImage",
    qemu: "qemu-system-x86_64",
    machine: &["-machine", "q35"],
    cpu: "max",
    console: "ttyS0",
    elf_machine: object::elf::EM_X86_64,
    gcc: "gcc",
}];

/// The architecture of that name.
pub fn find(name: &str) -> anyhow::Result<&'static Arch> {
    ARCHES.iter().find(|arch| arch.name == name).ok_or_else(|| {
        let known: Vec<&str> = ARCHES.iter().map(|arch| arch.name).collect();
        fail(
            Exit::Usage,
            format!("unknown architecture {name}"),
            format!("use one of: {}", known.join(", ")),
        )
    })
}
