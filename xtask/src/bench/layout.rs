//! What is where in a kernel that is built: its symbols, and the fields of its structs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol};
use regex::Regex;

use crate::host::failure::{fail, Exit};
use crate::host::sh;

/// What pahole prints of a field.
const FIELD: &str = r"\b(\w+)(?:\[\w*\])*\)?(?:\(.*\))?(?::\d+)?(?: __attribute__.*)?;\s+/\*\s+(\d+)(?::\s*\d+)?\s+(\d+)\s+\*/$";

/// A field of a struct: its name, where it is, how long it is.
type Field = (String, u64, u64);

/// The fields in what pahole prints of a struct, those of anonymous structs and unions among them.
fn fields(pahole: &str) -> Vec<Field> {
    let field = Regex::new(FIELD).expect("a valid pattern");
    let of = |line: &str| {
        let found = field.captures(line)?;
        let number = |i: usize| found[i].parse().ok();
        Some((found[1].to_owned(), number(2)?, number(3)?))
    };
    // The end of a struct without a name has attributes where that would be.
    let named = |field: &Field| field.0 != "__attribute__";
    pahole.lines().filter_map(of).filter(named).collect()
}

/// Which field a place is in: the shortest, for a struct is around its fields. An array without a length at the
/// end goes on to the end; a struct without fields is nowhere.
fn field_at(fields: &[Field], at: u64) -> &str {
    let around = |field: &&Field| field.1 <= at && at - field.1 < field.2;
    let found = fields.iter().filter(around).min_by_key(|field| field.2);
    let last = fields.iter().map(|field| field.1).max().unwrap_or_default();
    let open = |field: &&Field| field.2 == 0 && field.1 == last && last <= at;
    found
        .or_else(|| fields.iter().rfind(open))
        .map_or("rest", |field| &field.0)
}

/// Where the image of s390 is: its boot code moves it there from the address that it is linked for.
const IMAGE_BASE: &str = "CONFIG_KERNEL_IMAGE_BASE=0x";

fn image_base(config: &str) -> Result<u64> {
    let mut lines = config.lines();
    let base = lines.find_map(|line| line.strip_prefix(IMAGE_BASE));
    Ok(base.map_or(Ok(0), |base| u64::from_str_radix(base, 16))?)
}

/// What System.map has, that much higher.
fn symbols(map: &str, moved: u64) -> Vec<(u64, String)> {
    let symbol = |line: &str| {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address.wrapping_add(moved), words.nth(1)?.to_owned()))
    };
    map.lines().filter_map(symbol).collect()
}

pub struct Layout {
    /// How much higher the kernel is than the addresses that it is linked for, by which its memory is found.
    moved: u64,
    /// From the least address on.
    symbols: BTreeMap<u64, String>,
    addresses: BTreeMap<String, u64>,
    mm: Vec<Field>,
    task: Vec<Field>,
    slab: Vec<Field>,
}

/// The fields of a struct that a file of a kernel knows. The kernel has no debug information, so the file is
/// compiled again.
fn struct_fields(out: &Path, folder: &str, file: &str, name: &str) -> Result<Vec<Field>> {
    let object = format!("xtask-layout-{file}.o");
    let kept = fs::read_to_string(out.join(format!("{folder}/.{file}.o.cmd")))?;
    let command = kept.lines().next().and_then(|line| line.split_once(":= "));
    let command = command
        .with_context(|| format!("{folder}/.{file}.o.cmd has no command"))?
        .1;
    if !out.join(&object).exists() || is_stale(out, folder, file, &object)? {
        // Only what is compiled, without what comes after it.
        let command = command.split(" ; ").next().unwrap_or_default();
        let command = command.replace(&format!("{folder}/.{file}.o.d"), "xtask-layout.d");
        let command = command.replace(&format!("-o {folder}/{file}.o"), &format!("-g -o {object}"));
        sh::capture(Command::new("sh").current_dir(out).args(["-c", &command]))?;
    }
    let found = pahole(out, name, &object)?;
    if !found.is_empty() {
        return Ok(found);
    }
    // The library of Debian 12's pahole does not know loongarch's relocations. A linker does.
    let linked = format!("{object}.linked");
    // The compiler is clang's, by the version at the end of its name.
    let compiler = command.split_whitespace().next().unwrap_or_default();
    let llvm = match compiler.rsplit_once('-') {
        Some((_, version)) if version.parse::<u32>().is_ok() => format!("-{version}"),
        _ => String::new(),
    };
    let mut link = Command::new(format!("ld.lld{llvm}"));
    link.current_dir(out)
        .args(["-static", "-e", "0", "--noinhibit-exec"])
        .args(["--unresolved-symbols=ignore-all", "-o", &linked, &object]);
    sh::capture(&mut link)?;
    pahole(out, name, &linked)
}

/// The fields of a struct, none if the object does not have it.
fn pahole(out: &Path, name: &str, object: &str) -> Result<Vec<Field>> {
    let mut pahole = Command::new("pahole");
    pahole.current_dir(out).args(["-C", name, object]);
    let printed = sh::capture(&mut pahole).map_err(|error| {
        fail(
            Exit::Environment,
            format!("{error:#}"),
            "install the package dwarves",
        )
    })?;
    Ok(fields(&printed))
}

/// Whether the kernel's own object was made later.
fn is_stale(out: &Path, folder: &str, file: &str, object: &str) -> Result<bool> {
    let made = |path: String| anyhow::Ok(fs::metadata(out.join(path))?.modified()?);
    Ok(made(format!("{folder}/{file}.o"))? >= made(object.to_owned())?)
}

impl Layout {
    /// Of a kernel that was built in a folder.
    pub fn of(out: &Path) -> Result<Self> {
        let path = out.join("System.map");
        let map =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let moved = image_base(&fs::read_to_string(out.join(".config"))?)?;
        let symbols = symbols(&map, moved);
        let addresses = symbols
            .iter()
            .map(|(at, name)| (name.clone(), *at))
            .collect();
        Ok(Layout {
            moved,
            symbols: symbols.into_iter().collect(),
            addresses,
            mm: struct_fields(out, "kernel", "fork", "mm_struct")?,
            task: struct_fields(out, "kernel", "fork", "task_struct")?,
            slab: struct_fields(out, "mm", "slub", "kmem_cache")?,
        })
    }

    /// What the workload looks up in the kernel's memory.
    pub fn for_guest(&self) -> String {
        let symbols = ["_text", "init_task", "__per_cpu_offset", "mm_cachep"].into_iter();
        let mut lines: Vec<String> = symbols
            .filter_map(|name| {
                let at = self.addresses.get(name)?.wrapping_sub(self.moved);
                Some(format!("{name}={at:#x}\n"))
            })
            .collect();
        for (name, at, _) in &self.task {
            if ["tasks", "pid", "mm"].contains(&&**name) {
                lines.push(format!("task_struct.{name}={at}\n"));
            }
        }
        let size = self.slab.iter().find(|(name, ..)| name == "object_size");
        lines.extend(size.map(|(name, at, _)| format!("kmem_cache.{name}={at}\n")));
        lines.concat()
    }

    pub fn symbol(&self, at: u64) -> &str {
        let found = self.symbols.range(..=at).next_back();
        found.map_or("?", |(_, name)| name)
    }

    /// Whether the kernel is there, and not a program.
    pub fn is_code(&self, at: u64) -> bool {
        let symbol = |name: &str| self.addresses.get(name).copied();
        let (from, to) = (symbol("_text"), symbol("_end"));
        from.is_none_or(|from| from <= at) && to.is_none_or(|to| at < to)
    }

    pub fn has(&self, name: &str) -> bool {
        self.addresses.contains_key(name)
    }

    /// The kernel's own variable at an address, `percpu` being where each CPU's are from where the linker
    /// put them.
    pub fn variable(&self, percpu: &[u64], at: u64) -> Option<&str> {
        let within = |from: &str, to: &str, at: u64| {
            let range = *self.addresses.get(from)?..*self.addresses.get(to)?;
            range.contains(&at).then(|| self.symbol(at))
        };
        let mut bases = percpu.iter().map(|offset| at.wrapping_sub(*offset));
        let percpu = bases.find_map(|at| within("__per_cpu_start", "__per_cpu_end", at));
        percpu.or_else(|| within("_text", "_end", at))
    }

    pub fn mm_field(&self, at: u64) -> &str {
        field_at(&self.mm, at)
    }
}

/// Where the marks are in the workload of `bench lines`.
pub fn marks(program: &Path) -> Result<String> {
    let bytes = fs::read(program)?;
    let file = object::File::parse(&*bytes)?;
    // There the lowest bit says that a function is of Thumb instructions.
    let thumb = u64::from(file.architecture() == object::Architecture::Arm);
    let mark = |name: &str| {
        let symbol = file.symbol_by_name(&format!("lines_{name}"));
        let at = symbol
            .with_context(|| format!("the workload has no lines_{name}"))?
            .address()
            & !thumb;
        anyhow::Ok(format!(",{name}={at:#x}"))
    };
    Ok([mark("arm")?, mark("begin")?, mark("end")?].concat())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const PAHOLE: &str = "\
struct mm_struct {
\tstruct {
\t\tstruct {
\t\t\tatomic_t   mm_count;             /*     0     4 */
\t\t} __attribute__((__aligned__(64))) __attribute__((__aligned__(64)));      /*     0    64 */

\t\t/* XXX last struct has 60 bytes of padding */

\t\t/* --- cacheline 1 boundary (64 bytes) --- */
\t\tint                a __attribute__((__aligned__(64))); /*    64     4 */
\t\tvoid *             (*get)(int);          /*    72     8 */
\t\tlong unsigned int  bits[3];              /*    80    24 */
\t\tunion {
\t\t\tint        u;                    /*   120     4 */
\t\t\tlong int   v;                    /*   120     8 */
\t\t};                                       /*   120     8 */
\t\tunsigned int       f:3;                  /*   128: 0  4 */
\t\tstruct {
\t\t\tint        w;                    /*   136     4 */
\t\t} gen;                                   /*   136     8 */
\t} __attribute__((__aligned__(64))) __attribute__((__aligned__(64)));              /*     0   192 */
\tstruct none                nothing;              /*   140     0 */
\tlong unsigned int          cpu_bitmap[];         /*   192     0 */

\t/* size: 192, cachelines: 3, members: 2 */
} __attribute__((__aligned__(64)));
";

    #[test]
    fn s390_runs_elsewhere_than_it_is_linked_for() {
        assert_eq!(image_base("CONFIG_SMP=y\n").unwrap(), 0);
        let moved = image_base("CONFIG_SMP=y\nCONFIG_KERNEL_IMAGE_BASE=0x3FFE0000000\n").unwrap();
        let symbols = symbols(
            "0000000000100000 T _text\n0000000000529400 D init_task\n",
            moved,
        );
        let layout = Layout {
            moved,
            addresses: symbols
                .iter()
                .map(|(at, name)| (name.clone(), *at))
                .collect(),
            symbols: symbols.into_iter().collect(),
            ..example()
        };
        assert_eq!(layout.symbol(0x3ffe0100010), "_text");
        assert!(layout
            .for_guest()
            .starts_with("_text=0x100000\ninit_task=0x529400\n"));
    }

    pub fn example() -> Layout {
        let symbols = [
            (0x1000, "_text"),
            (0x1100, "switch"),
            (0x1200, "wake"),
            (0x1800, "jiffies"),
            (0x2000, "__per_cpu_start"),
            (0x2040, "lazy_tlb_slot"),
            (0x3000, "__per_cpu_end"),
            (0x4000, "_end"),
        ];
        Layout {
            moved: 0,
            symbols: symbols.map(|(at, name)| (at, name.to_owned())).into(),
            addresses: symbols.map(|(at, name)| (name.to_owned(), at)).into(),
            mm: vec![("mm_count".into(), 0, 4), ("pgd".into(), 8, 8)],
            task: vec![("pid".into(), 8, 4)],
            slab: vec![("object_size".into(), 24, 4)],
        }
    }

    #[test]
    fn a_field_is_found_by_its_place() {
        let fields = fields(PAHOLE);
        for (at, name) in [
            (0, "mm_count"),
            (3, "mm_count"),
            (4, "rest"),
            (64, "a"),
            (72, "get"),
            (96, "bits"),
            (124, "v"),
            (128, "f"),
            (136, "w"),
            (140, "gen"),
            (192, "cpu_bitmap"),
            (1000, "cpu_bitmap"),
        ] {
            assert_eq!(field_at(&fields, at), name, "{at}");
        }
    }

    #[test]
    fn a_variable_is_found_in_every_cpus_own() {
        let layout = example();
        let percpu = [0xf000_0000, 0xf001_0000];
        let variable = |at| layout.variable(&percpu, at);
        assert_eq!(variable(0x1804), Some("jiffies"));
        assert_eq!(variable(0xf000_2047), Some("lazy_tlb_slot"));
        assert_eq!(variable(0xf001_2040), Some("lazy_tlb_slot"));
        assert_eq!(variable(0xf001_3000), None);
        assert_eq!(
            layout.for_guest(),
            "_text=0x1000\ntask_struct.pid=8\nkmem_cache.object_size=24\n"
        );
    }
}
