//! What differs between architectures, and between their guests, on the host side.

use crate::host::failure::{fail, Exit};

/// What `--arch` says for every guest.
pub const ALL: &str = "all";

/// UEFI for an architecture's guests.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    pub file: &'static str,
    pub package: &'static str,
    /// What the emulator needs to be told besides.
    pub args: &'static [&'static str],
}

/// One architecture.
#[derive(Debug)]
pub struct Arch {
    /// As `--arch` and kbuild's `ARCH=` have it.
    pub name: &'static str,
    /// As rustc calls the machine, which tells whether this one is of it.
    pub machine_name: &'static str,
    /// The bootable image, relative to the build folder.
    pub image: &'static str,
    /// The emulator; empty where the kernel is a program of this machine, see [`Arch::is_program`].
    pub qemu: &'static str,
    /// The packages that may bring it, the first that is on offer being taken.
    pub qemu_packages: &'static [&'static str],
    /// Its arguments besides the accelerator, the CPUs and the image.
    pub machine: &'static [&'static str],
    pub cpu: &'static str,
    pub console: &'static str,
    /// What to type there for the backtraces of all CPUs (SysRq-l); nothing where that does not work.
    pub sysrq: &'static [u8],
    pub elf_machine: u16,
    pub line_bytes: u64,
    /// Words for the kernel's command line that have it trust the emulator's clock. On x86_64 the watchdog of the
    /// clocks deadlocks at boot now and then: it waits for another CPU, with interrupts disabled, until a timeout
    /// that is told in jiffies, which this CPU counts, while the other one is in stop_machine() and waits for this one.
    pub steady: &'static str,
    /// The compiler for static guest programs.
    pub gcc: &'static str,
    /// The packages that bring it with a C library.
    pub gcc_packages: &'static [&'static str],
    /// In their place, where the oldest Debian has none: the packages of a newer one's C library, for clang.
    pub libc_packages: &'static [&'static str],
    /// The rustc that scripts/min-tool-version.sh of the kernel asks for.
    pub least_rustc: [u64; 3],
    /// What can start its guests in place of the emulator's own firmware.
    pub uefi: Option<Firmware>,
    /// Whether it is left out of [`ALL`]: tools, kernel and guests only where it is asked for.
    pub by_name: bool,
}

/// SysRq-l by a break, which the emulator sends for Ctrl-A b.
const BREAK_L: &[u8] = b"\x01bl";
/// SysRq-l on consoles that take Ctrl-O for SysRq.
const CTRL_O_L: &[u8] = b"\x0fl";

/// The architectures. The order is that of the builds in `test`.
pub static ARCHES: [Arch; 8] = [
    Arch {
        name: "x86_64",
        machine_name: "x86_64",
        image: "arch/x86/boot/bzImage",
        qemu: "qemu-system-x86_64",
        qemu_packages: &["qemu-system-x86"],
        machine: &["-machine", "q35"],
        elf_machine: object::elf::EM_X86_64,
        steady: "tsc=reliable",
        uefi: Some(Firmware {
            file: "/usr/share/ovmf/OVMF.fd",
            package: "ovmf",
            args: &[],
        }),
        ..Arch::USUAL
    },
    Arch {
        name: "arm64",
        machine_name: "aarch64",
        image: "arch/arm64/boot/Image",
        qemu: "qemu-system-aarch64",
        qemu_packages: &["qemu-system-arm"],
        machine: &["-machine", "virt"],
        console: "ttyAMA0",
        elf_machine: object::elf::EM_AARCH64,
        gcc: "aarch64-linux-gnu-gcc",
        gcc_packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        uefi: Some(Firmware {
            file: "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
            package: "qemu-efi-aarch64",
            // It hands either ACPI tables or the device tree on; the kernels know the latter.
            args: &["-machine", "acpi=off"],
        }),
        ..Arch::USUAL
    },
    Arch {
        name: "s390",
        machine_name: "s390x",
        image: "arch/s390/boot/bzImage",
        qemu: "qemu-system-s390x",
        // Debian moved it between packages.
        qemu_packages: &["qemu-system-s390x", "qemu-system-misc"],
        machine: &["-machine", "s390-ccw-virtio"],
        sysrq: CTRL_O_L,
        elf_machine: object::elf::EM_S390,
        line_bytes: 256,
        gcc: "s390x-linux-gnu-gcc",
        gcc_packages: &["gcc-s390x-linux-gnu", "libc6-dev-s390x-cross"],
        least_rustc: [1, 96, 0],
        ..Arch::USUAL
    },
    Arch {
        name: "powerpc",
        machine_name: "powerpc64",
        image: "vmlinux",
        qemu: "qemu-system-ppc64",
        qemu_packages: &["qemu-system-ppc"],
        machine: &["-machine", "pseries"],
        cpu: "power9",
        console: "hvc0",
        sysrq: CTRL_O_L,
        elf_machine: object::elf::EM_PPC64,
        line_bytes: 128,
        gcc: "powerpc64le-linux-gnu-gcc",
        gcc_packages: &["gcc-powerpc64le-linux-gnu", "libc6-dev-ppc64el-cross"],
        least_rustc: [1, 95, 0],
        ..Arch::USUAL
    },
    Arch {
        name: "riscv",
        machine_name: "riscv64",
        image: "arch/riscv/boot/Image",
        qemu: "qemu-system-riscv64",
        // Debian moved it between packages. The firmware has one of its own.
        qemu_packages: &["qemu-system-riscv", "qemu-system-misc"],
        machine: &["-machine", "virt"],
        cpu: "rv64",
        elf_machine: object::elf::EM_RISCV,
        gcc: "riscv64-linux-gnu-gcc",
        gcc_packages: &["gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross"],
        by_name: true,
        ..Arch::USUAL
    },
    Arch {
        name: "arm",
        machine_name: "arm",
        image: "arch/arm/boot/zImage",
        qemu: "qemu-system-arm",
        qemu_packages: &["qemu-system-arm"],
        machine: &["-machine", "virt"],
        console: "ttyAMA0",
        elf_machine: object::elf::EM_ARM,
        gcc: "arm-linux-gnueabihf-gcc",
        gcc_packages: &["gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross"],
        by_name: true,
        ..Arch::USUAL
    },
    Arch {
        name: "loongarch",
        machine_name: "loongarch64",
        image: "vmlinux",
        qemu: "qemu-system-loongarch64",
        qemu_packages: &["qemu-system-loongarch", "qemu-system-misc"],
        machine: &["-machine", "virt"],
        cpu: "la464",
        elf_machine: object::elf::EM_LOONGARCH,
        gcc: "loongarch64-linux-gnu-gcc",
        gcc_packages: &[],
        libc_packages: &[
            "libc6-dev-loong64-cross",
            "libc6-loong64-cross",
            "libgcc-14-dev-loong64-cross",
            "linux-libc-dev-loong64-cross",
        ],
        by_name: true,
        ..Arch::USUAL
    },
    Arch {
        name: "um",
        // It could be of any; with several CPUs it is of this one.
        machine_name: "x86_64",
        image: "linux",
        cpu: "",
        console: "tty0",
        sysrq: b"",
        elf_machine: object::elf::EM_X86_64,
        by_name: true,
        ..Arch::USUAL
    },
];

impl Arch {
    /// What most have in common.
    const USUAL: Arch = Arch {
        name: "",
        machine_name: "",
        image: "",
        qemu: "",
        qemu_packages: &[],
        machine: &[],
        cpu: "max",
        console: "ttyS0",
        sysrq: BREAK_L,
        elf_machine: object::elf::EM_NONE,
        line_bytes: 64,
        steady: "",
        gcc: "gcc",
        gcc_packages: &["gcc", "libc6-dev"],
        libc_packages: &[],
        least_rustc: [1, 85, 0],
        uefi: None,
        by_name: false,
    };

    /// Its folder in arch/.
    pub fn folder(&self) -> &'static str {
        self.name.trim_end_matches("_64")
    }

    /// Whether the kernel itself is a program of this machine (user-mode Linux), so that it needs
    /// no emulator: its code runs at this machine's speed, on its CPUs.
    pub fn is_program(&self) -> bool {
        self.qemu.is_empty()
    }
}

/// An architecture in one of its MMU modes: what `test` boots.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    arch: &'static str,
    /// What the kernel's command line says for it.
    pub append: &'static str,
    /// The MMU that /proc/cpuinfo must name, where there are several.
    pub mmu: Option<&'static str>,
}

/// The guests, those of one architecture side by side.
pub static KINDS: [Kind; 9] = [
    Kind::plain("x86_64"),
    Kind::plain("arm64"),
    Kind {
        // QEMU 7.2 may deadlock when CPUs come and go, see CAVEATS.md.
        append: "LAZY_TLB_HOTPLUG=0",
        ..Kind::plain("s390")
    },
    Kind {
        name: "powerpc-radix",
        arch: "powerpc",
        append: "",
        mmu: Some("Radix"),
    },
    Kind {
        name: "powerpc-hash",
        arch: "powerpc",
        append: "disable_radix",
        mmu: Some("Hash"),
    },
    Kind {
        // OpenSBI 1.1 hangs when CPUs come and go under load, see CAVEATS.md.
        append: "LAZY_TLB_HOTPLUG=0",
        ..Kind::plain("riscv")
    },
    Kind::plain("arm"),
    Kind::plain("loongarch"),
    Kind {
        // More processes than it can have, see machine.rs.
        append: "LAZY_TLB_CROWD=300",
        ..Kind::plain("um")
    },
];

impl Kind {
    const fn plain(name: &'static str) -> Self {
        Kind {
            name,
            arch: name,
            append: "",
            mmu: None,
        }
    }

    pub fn arch(&self) -> &'static Arch {
        let mut arches = ARCHES.iter();
        let found = arches.find(|arch| arch.name == self.arch);
        found.expect("every guest is of an architecture in the table")
    }
}

pub fn find(name: &str) -> anyhow::Result<&'static Arch> {
    let known = || ARCHES.iter().map(|arch| arch.name).collect();
    ARCHES
        .iter()
        .find(|arch| arch.name == name)
        .ok_or_else(|| unknown(name, known()))
}

/// The guests that a name means: all, those of an architecture, or one.
///
/// Some have to be asked for by name. User-mode Linux, because where a sandbox forbids what it needs of
/// the host, the other guests would fail with it. riscv, because it is one kernel more to build.
pub fn kinds(name: &str) -> anyhow::Result<Vec<&'static Kind>> {
    let meant = |kind: &&Kind| match name {
        ALL => !kind.arch().by_name,
        _ => kind.arch == name || kind.name == name,
    };
    let found: Vec<&Kind> = KINDS.iter().filter(meant).collect();
    if found.is_empty() {
        let known = ARCHES.iter().map(|arch| arch.name).chain([ALL]).collect();
        return Err(unknown(name, known));
    }
    Ok(found)
}

/// The architectures of some guests, each once.
pub fn of_kinds(kinds: &[&Kind]) -> Vec<&'static Arch> {
    let used = |arch: &&Arch| kinds.iter().any(|kind| kind.arch == arch.name);
    ARCHES.iter().filter(used).collect()
}

fn unknown(name: &str, known: Vec<&str>) -> anyhow::Error {
    fail(
        Exit::Usage,
        format!("unknown architecture {name}"),
        format!("use one of: {}", known.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;

    fn names(name: &str) -> Vec<&str> {
        kinds(name).unwrap().iter().map(|kind| kind.name).collect()
    }

    #[test]
    fn an_architecture_is_its_guests() {
        let by_name = ["riscv", "arm", "loongarch", "um"].map(names).concat();
        let every: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!([names(ALL), by_name].concat(), every);
        assert_eq!(names("s390"), ["s390"]);
        assert_eq!(names("powerpc"), ["powerpc-radix", "powerpc-hash"]);
        assert_eq!(names("powerpc-hash"), ["powerpc-hash"]);
        assert_eq!(of_kinds(&kinds("powerpc").unwrap()).len(), 1);
        for kind in &KINDS {
            assert!(ARCHES.iter().any(|arch| arch.name == kind.arch().name));
        }
    }

    #[test]
    fn an_unknown_architecture_is_named_with_the_known_ones() {
        for error in [find("vax").unwrap_err(), kinds("vax").unwrap_err()] {
            let (exit, error) = classify(error);
            assert_eq!(exit, Exit::Usage);
            let text = error.to_string();
            assert!(text.contains("vax") && text.contains("s390"), "{text}");
        }
    }
}
