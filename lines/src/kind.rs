//! What an instruction is, by its disassembly.

/// What is counted of an instruction besides its accesses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// It reads and writes at once.
    Atomic,
    /// A load-linked: a store-conditional may follow.
    Linked,
    /// A store-conditional.
    Conditional,
    /// A full barrier and nothing else.
    Barrier,
}

/// Of an instruction of `target`, as the emulator calls the architecture.
pub fn kind(target: &str, text: &str) -> Kind {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap_or_default();
    let rest: String = words.collect();
    let starts = |names: &[&str]| names.iter().any(|n| name.starts_with(n));
    let is = |names: &[&str]| names.contains(&name);
    match target {
        "x86_64" => match name {
            "mfence" => Kind::Barrier,
            // What the kernel's smp_mb() is: of nothing, at the top of the stack.
            "lock" if rest.starts_with("add") || rest.starts_with("or") => {
                match (rest.contains("$0,") || rest.contains("$0x0,")) && rest.contains("(%rsp)") {
                    true => Kind::Barrier,
                    false => Kind::Atomic,
                }
            }
            "lock" => Kind::Atomic,
            _ if name.starts_with("xchg") && rest.contains('(') => Kind::Atomic,
            _ => Kind::Plain,
        },
        "aarch64" => match name {
            "dmb" | "dsb" if ["ish", "sy", "osh", "nsh"].contains(&&*rest) => Kind::Barrier,
            _ if starts(&["ldxr", "ldaxr", "ldxp", "ldaxp"]) => Kind::Linked,
            _ if starts(&["stxr", "stlxr", "stxp", "stlxp"]) => Kind::Conditional,
            _ if starts(&[
                "cas", "swp", "ldadd", "ldclr", "ldeor", "ldset", "ldsmax", "ldsmin",
            ]) || starts(&["ldumax", "ldumin", "stadd", "stclr", "steor", "stset"]) =>
            {
                Kind::Atomic
            }
            _ => Kind::Plain,
        },
        // A condition may follow the name.
        "arm" => match name {
            "dmb" | "dsb" if ["ish", "sy", "osh", "nsh"].contains(&&*rest) => Kind::Barrier,
            _ if starts(&["ldrex", "ldaex"]) => Kind::Linked,
            _ if starts(&["strex", "stlex"]) => Kind::Conditional,
            _ => Kind::Plain,
        },
        "s390x" => match name {
            // bcr 14 and 15 to nowhere.
            "bcr" if rest.starts_with("14,") || rest.starts_with("15,") => Kind::Barrier,
            "br" | "bnor" if rest.ends_with("r0") => Kind::Barrier,
            _ if is(&[
                "cs", "csy", "csg", "cds", "cdsy", "cdsg", "asi", "agsi", "alsi", "algsi",
            ]) || is(&[
                "laa", "laag", "laal", "laalg", "lan", "lang", "lao", "laog", "lax",
            ]) || is(&["laxg", "ni", "niy", "oi", "oiy", "xi", "xiy", "ts"]) =>
            {
                Kind::Atomic
            }
            _ => Kind::Plain,
        },
        "ppc64" => match name {
            "sync" | "hwsync" if ["", "0"].contains(&&*rest) => Kind::Barrier,
            _ if is(&["lbarx", "lharx", "lwarx", "ldarx", "lqarx"]) => Kind::Linked,
            _ if is(&["stbcx.", "sthcx.", "stwcx.", "stdcx.", "stqcx."]) => Kind::Conditional,
            _ => Kind::Plain,
        },
        "riscv64" => match name {
            "fence" if rest.is_empty() || rest == "rw,rw" || rest == "iorw,iorw" => Kind::Barrier,
            _ if starts(&["lr."]) => Kind::Linked,
            _ if starts(&["sc."]) => Kind::Conditional,
            _ if starts(&["amo"]) => Kind::Atomic,
            _ => Kind::Plain,
        },
        "loongarch64" => match name {
            // The other hints are about loads or stores only.
            "dbar" if ["0", "0x0", "16", "0x10"].contains(&&*rest) => Kind::Barrier,
            _ if starts(&["ll."]) => Kind::Linked,
            _ if starts(&["sc."]) => Kind::Conditional,
            _ if starts(&["am"]) => Kind::Atomic,
            _ => Kind::Plain,
        },
        _ => Kind::Plain,
    }
}

/// What arm64's LSE brought, by its encoding: the disassembler of QEMU 10 in Debian does not know it.
pub fn kind_of_arm64(insn: u32) -> Option<Kind> {
    // LDADD and the like, and SWP.
    let modifies = insn & 0x3b20_0c00 == 0x3820_0000;
    // CAS and CASP.
    let compares = insn & 0x3fa0_7c00 == 0x08a0_7c00 || insn & 0xbfa0_7c00 == 0x0820_7c00;
    // LDAPR is among the former, and only loads.
    let loads = insn & 0x3fff_fc00 == 0x38bf_c000;
    ((modifies && !loads) || compares).then_some(Kind::Atomic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Atomic, Barrier, Conditional, Linked, Plain};

    #[test]
    fn every_architecture_has_its_own() {
        for (target, text, expected) in [
            ("x86_64", "lock cmpxchgl %ecx, 0x28(%rbx)", Atomic),
            ("x86_64", "lock decl 0x64(%rdi)", Atomic),
            ("x86_64", "lock addl $0, -4(%rsp)", Barrier),
            ("x86_64", "lock addl $0x0, -4(%rsp)", Barrier),
            ("x86_64", "lock addl $1, (%rax)", Atomic),
            ("x86_64", "xchgq %rax, (%rdi)", Atomic),
            ("x86_64", "xchgw %ax, %ax", Plain),
            ("x86_64", "mfence", Barrier),
            ("x86_64", "addl $1, 4(%rax)", Plain),
            ("x86_64", "cmpxchgq %rcx, %gs:8(%rbx)", Plain),
            ("aarch64", "ldaxr w0, [x1]", Linked),
            ("aarch64", "stxr w2, w0, [x1]", Conditional),
            ("aarch64", "ldaddal w0, w1, [x2]", Atomic),
            ("aarch64", "stset x0, [x1]", Atomic),
            ("aarch64", "str x0, [x1]", Plain),
            ("aarch64", "ldar x0, [x1]", Plain),
            ("aarch64", "dmb ish", Barrier),
            ("aarch64", "dmb ishst", Plain),
            ("aarch64", "dsb sy", Barrier),
            ("arm", "ldrex r2, [r3]", Linked),
            ("arm", "strexeq r1, r2, [r3]", Conditional),
            ("arm", "stlexd r1, r2, r3, [r4]", Conditional),
            ("arm", "str r1, [r3]", Plain),
            ("arm", "dmb ish", Barrier),
            ("arm", "dmb ishst", Plain),
            ("s390x", "csg %r1, %r2, 0(%r3)", Atomic),
            ("s390x", "asi 64(%r1), 1", Atomic),
            ("s390x", "bcr 14, %r0", Barrier),
            ("s390x", "br %r14", Plain),
            ("ppc64", "ldarx r3, 0, r4", Linked),
            ("ppc64", "stdcx. r3, 0, r4", Conditional),
            ("ppc64", "sync", Barrier),
            ("ppc64", "lwsync", Plain),
            ("riscv64", "amoadd.w.aqrl a0,a1,(a2)", Atomic),
            ("riscv64", "lr.d a0,(a1)", Linked),
            ("riscv64", "sc.d a0,a1,(a2)", Conditional),
            ("riscv64", "fence rw,rw", Barrier),
            ("riscv64", "fence r,rw", Plain),
            ("loongarch64", "amswap_db.d $a0, $a1, $a2", Atomic),
            ("loongarch64", "ll.d $a0, $a1, 0", Linked),
            ("loongarch64", "sc.d $a0, $a1, 0", Conditional),
            ("loongarch64", "dbar 16", Barrier),
            ("loongarch64", "dbar 1792", Plain),
        ] {
            assert_eq!(kind(target, text), expected, "{target}: {text}");
        }
    }

    #[test]
    fn atomics_of_arm64_are_known_by_their_encoding() {
        let atomic = [
            0xb8ea_0149, // ldaddal w10, w9, [x10]
            0xb82a_013f, // stadd w10, [x9]
            0xf8e9_8108, // swpal x9, x8, [x8]
            0xc8e8_fd29, // casal x8, x9, [x9]
            0x4868_7d2a, // caspa x8, x9, x10, x11, [x9]
        ];
        for insn in atomic {
            assert_eq!(kind_of_arm64(insn), Some(Atomic), "{insn:#x}");
        }
        // ldr x8, [x9]; str w8, [x9, x10]; ldapr x8, [x9]; ldxr w10, [x8]; stxr w11, w10, [x8]; add x0, x0, #1
        for insn in [
            0xf940_0128,
            0xb82a_6928,
            0xf8bf_c128,
            0x885f_7d0a,
            0x880b_7d0a,
            0x9100_0400,
        ] {
            assert_eq!(kind_of_arm64(insn), None, "{insn:#x}");
        }
    }
}
