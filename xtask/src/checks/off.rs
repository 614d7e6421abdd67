//! With the option off the hot functions must be those of the base tree with the fixes that the
//! series begins with, instruction by instruction.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{ensure, Result};
use regex::Regex;

use crate::host::arch::Arch;
use crate::host::sh;
use crate::kernel::workshop::Workshop;
use crate::results::case::Case;

/// The variant that is compared with the base tree: its option is off.
const COMPARED: &str = "compare";
/// What must not change, the symbol that it is compiled into, and where that is. exit_mm() does: it
/// takes the reference some instructions later, with interrupts disabled.
const FUNCTIONS: [(&str, &str, &str); 3] = [
    ("context_switch", "__schedule", "kernel/sched/core.o"),
    (
        "finish_task_switch",
        "finish_task_switch",
        "kernel/sched/core.o",
    ),
    ("__mmdrop", "__mmdrop", "kernel/fork.o"),
];

/// Builds the objects of both trees and compares them; one case for each function.
pub fn option_off(shop: &Workshop<'_>, arch: &'static Arch) -> Result<Vec<Case>> {
    let objects = ["kernel/sched/core.o", "kernel/fork.o"];
    let base = shop.build_fixed(arch, COMPARED)?;
    let off = shop.build(arch, COMPARED)?;
    // As `test` has built it already.
    let on = shop.build(arch, "test")?;
    for build in [&base, &off, &on] {
        build.configure()?;
        build.targets(&objects)?;
    }
    let objdump = format!("llvm-objdump{}", shop.tools.llvm);
    let mut cases = Vec::new();
    let mut seen_when_on = 0;
    for (name, symbol, object) in FUNCTIONS {
        let of = |out: &Path| function(&objdump, &out.join(object), symbol);
        let was = of(&base.out)?;
        let is = of(&off.out)?;
        cases.push(Case::of(
            format!("option off/{name} is unchanged"),
            compare(&was, &is),
        ));
        let ours = |line: &String| line.contains("lazy_tlb_");
        seen_when_on += usize::from(of(&on.out)?.iter().any(ours));
    }
    // A comparison of lines that do not show it where the option is on would find nothing anywhere.
    let name = "option off/what is compared shows the option on";
    cases.push(match seen_when_on {
        0 => Case::failed(name, "no function refers to lazy_tlb_* with the option on"),
        _ => Case::passed(name),
    });
    Ok(cases)
}

/// The normalised instructions of a function, the parts the compiler split off included.
fn function(objdump: &str, object: &Path, symbol: &str) -> Result<Vec<String>> {
    let mut command = Command::new(objdump);
    command.args(["-dr", "--no-show-raw-insn"]).arg(object);
    let text = sh::capture(&mut command)?;
    let lines = normalised(&text, symbol);
    ensure!(
        lines.len() > 3,
        "{} has no function {symbol}, or it is empty",
        object.display()
    );
    Ok(lines)
}

static HEADER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[0-9a-f]+ <([^>]+)>:$").expect("valid"));
static ADDRESS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\s*[0-9a-f]+:\s*").expect("valid"));
static TARGET: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"0x[0-9a-f]+ <([^>+]+)(\+0x[0-9a-f]+)?>").expect("valid"));
static SECTION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(\s)(__bug_table|\.[\w.]+)[+-]0x[0-9a-f]+").expect("valid"));

/// The instructions of `symbol`, `symbol.cold` and the like, without what moves when other code
/// does: addresses, offsets into other functions and into sections.
///
/// A line number in a `__bug_table` entry is data in another section, so it is not seen here; an
/// instruction that carries one would be.
fn normalised(objdump: &str, symbol: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = None;
    for line in objdump.lines() {
        if let Some(header) = HEADER.captures(line) {
            let name = &header[1];
            let ours = name == symbol
                || name
                    .strip_prefix(symbol)
                    .is_some_and(|rest| rest.starts_with('.'));
            inside = ours.then(|| name.to_owned());
            continue;
        }
        let Some(name) = &inside else { continue };
        if line.trim().is_empty() {
            continue;
        }
        let line = ADDRESS.replace(line, "");
        let line = TARGET.replace_all(&line, |found: &regex::Captures<'_>| {
            let offset = found.get(2).map_or("", |m| m.as_str());
            // Only an offset into the function itself says something about it.
            let offset = if found[1] == **name { offset } else { "" };
            format!("<{}{offset}>", &found[1])
        });
        let line = SECTION.replace_all(&line, "$1$2");
        lines.push(line.trim_end().to_owned());
    }
    // Padding between functions belongs to none.
    let padding = |line: &String| line.starts_with("nop") || line.starts_with("int3");
    while lines.last().is_some_and(padding) {
        lines.pop();
    }
    lines
}

fn compare(was: &[String], is: &[String]) -> Result<()> {
    let same = was.iter().zip(is).take_while(|(a, b)| a == b).count();
    if same == was.len() && same == is.len() {
        return Ok(());
    }
    let line = |lines: &[String]| lines.get(same).cloned().unwrap_or("(end)".into());
    anyhow::bail!(
        "{} lines against {} in the base tree; the first difference is line {}:\n- {}\n+ {}",
        is.len(),
        was.len(),
        same + 1,
        line(was),
        line(is)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "\
0000000000000010 <other>:
      10: retq

0000000000000100 <__mmdrop>:
     100: pushq\t%rbx
     101: movq\t0x40(%rdi), %rax
     105: callq\t0x10a <__mmdrop+0xa>
\t\t0000000000000106:  R_X86_64_PLT32\tkmem_cache_free-0x4
     10a: jmp\t0x10 <other>
     10c: leaq\t(%rip), %rdi
\t\t000000000000010f:  R_X86_64_PC32\t.rodata.str1.1+0x1c
     111: jmp\t0x101 <__mmdrop+0x1>
     113: nopw\t(%rax,%rax)
";

    #[test]
    fn what_only_moved_is_the_same() {
        let moved = ONE
            .replace("0x10a <", "0x20a <")
            .replace("0x101 <", "0x201 <")
            .replace("     10", "     20")
            .replace("     11", "     21")
            .replace("jmp\t0x10 <other>", "jmp\t0x30 <other+0x8>")
            .replace("000000000000010", "000000000000020")
            .replace("str1.1+0x1c", "str1.1+0x99");
        assert_ne!(moved, ONE);
        let (was, is) = (normalised(ONE, "__mmdrop"), normalised(&moved, "__mmdrop"));
        assert_eq!(was.len(), 8, "{was:#?}");
        compare(&was, &is).unwrap();
    }

    #[test]
    fn a_changed_instruction_operand_or_callee_is_found() {
        let was = normalised(ONE, "__mmdrop");
        for (from, to) in [
            ("0x40(%rdi)", "0x48(%rdi)"),
            ("pushq\t%rbx", "pushq\t%rbp"),
            ("kmem_cache_free", "lazy_tlb_shoot"),
            ("__mmdrop+0x1>", "__mmdrop+0x5>"),
            ("<other>\n     10c", "<another>\n     10c"),
        ] {
            let is = normalised(&ONE.replace(from, to), "__mmdrop");
            let error = compare(&was, &is).expect_err(from);
            assert!(error.to_string().contains("first difference"), "{error}");
        }
    }

    #[test]
    fn an_added_or_missing_instruction_is_found() {
        let was = normalised(ONE, "__mmdrop");
        assert!(compare(&was, &was[..5]).is_err());
        assert!(compare(&was[..5], &was).is_err());
        assert!(normalised(ONE, "__mmdrop_async").is_empty());
    }
}
