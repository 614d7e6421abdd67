//! `neighbours`: the kernel's own selftests of what lazy TLB is close to, without the series and under
//! each policy. They know nothing of it, so all must come to the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use comfy_table::Table;

use crate::arch::{self, Arch};
use crate::failure::{fail, Exit};
use crate::guest::{self, Guest, GuestFile};
use crate::kbuild::{self, Build};
use crate::ktap;
use crate::project::{Project, Workshop};
use crate::report::{Case, Status};
use crate::sh;
use crate::testing::POLICIES;

/// The programs: those that build as one static program and need no shell. Each is a folder of
/// tools/testing/selftests, and the sources in it, the first of which names it.
const PROGRAMS: [(&str, &[&str]); 13] = [
    ("membarrier", &["membarrier_test_single_thread"]),
    ("membarrier", &["membarrier_test_multi_thread"]),
    ("rseq", &["basic_test", "rseq"]),
    ("rseq", &["basic_percpu_ops_test", "rseq"]),
    ("rseq", &["param_test", "rseq"]),
    ("rseq", &["syscall_errors_test", "rseq"]),
    ("sched", &["cs_prctl_test"]),
    ("mm", &["map_fixed_noreplace"]),
    ("mm", &["mremap_dontunmap"]),
    ("mm", &["madv_populate", "vm_util"]),
    ("mm", &["droppable"]),
    ("mm", &["on-fault-limit"]),
    ("mm", &["mrelease_test", "vm_util"]),
];
/// Where the column without the series has its name.
const BASE: &str = "base tree";

/// Where they run.
#[derive(Args)]
pub struct Options {
    /// x86_64, arm64, s390 or powerpc.
    #[arg(long, default_value = "x86_64", env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Leave out the kernel without the series, which has to be built.
    #[arg(long)]
    without_base: bool,
}

/// What came of each case, by column.
#[derive(Default)]
struct Results {
    columns: Vec<String>,
    cases: BTreeMap<String, Vec<Option<Status>>>,
}

impl Results {
    fn add(&mut self, column: &str, cases: Vec<Case>) {
        self.columns.push(column.into());
        for case in cases {
            let row = self.cases.entry(case.name).or_default();
            row.resize(self.columns.len() - 1, None);
            row.push(Some(case.status));
        }
        for row in self.cases.values_mut() {
            row.resize(self.columns.len(), None);
        }
    }

    /// The cases that did not come to the same everywhere.
    fn different(&self) -> Vec<&str> {
        let differs = |row: &&Vec<Option<Status>>| row.iter().any(|status| *status != row[0]);
        let rows = self.cases.iter().filter(|(_, row)| differs(row));
        rows.map(|(name, _)| name.as_str()).collect()
    }

    /// How many passed, failed and were skipped in each program, and each case that differs.
    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        let columns = self.columns.iter().map(String::as_str);
        table.set_header(["passed, failed, skipped"].into_iter().chain(columns));
        let program = |name: &str| name.split('/').take(2).collect::<Vec<_>>().join("/");
        let mut counts: BTreeMap<String, Vec<[usize; 3]>> = BTreeMap::new();
        for (name, row) in &self.cases {
            let empty = || vec![[0; 3]; self.columns.len()];
            let count = counts.entry(program(name)).or_insert_with(empty);
            for (count, status) in count.iter_mut().zip(row) {
                match status {
                    Some(Status::Pass) => count[0] += 1,
                    Some(Status::Fail) => count[1] += 1,
                    Some(Status::Skip) => count[2] += 1,
                    None => (),
                }
            }
        }
        for (name, row) in counts {
            let cell =
                |[passed, failed, skipped]: [usize; 3]| format!("{passed}, {failed}, {skipped}");
            table.add_row([name].into_iter().chain(row.into_iter().map(cell)));
        }
        for name in self.different() {
            let cell = |status: &Option<Status>| {
                status.map_or("missing".into(), |s| format!("{s:?}").to_lowercase())
            };
            let cells = self.cases[name].iter().map(cell);
            table.add_row([format!("differs: {name}")].into_iter().chain(cells));
        }
        table.to_string()
    }
}

/// Compiles a program with the tree's own headers.
fn compile(
    shop: &Workshop<'_>,
    build: &Build<'_>,
    suite: &str,
    sources: &[&str],
) -> Result<PathBuf> {
    let tests = shop.tree.join("tools/testing/selftests");
    let out = build.out.join("neighbours");
    std::fs::create_dir_all(&out)?;
    let program = out.join(format!("{suite}.{}", sources[0]));
    let mut gcc = Command::new(build.arch.gcc);
    gcc.args(["-static", "-O2", "-pthread", "-D_GNU_SOURCE", "-w", "-o"])
        .arg(&program);
    for dir in [
        tests.join(suite),
        tests.clone(),
        shop.tree.join("tools/include"),
    ] {
        gcc.arg("-I").arg(dir);
    }
    let header = |name: &str| shop.tree.join(format!("tools/arch/{name}/include"));
    let own = match build.arch.name {
        "x86_64" => header("x86"),
        name => header(name),
    };
    gcc.arg("-I")
        .arg(own)
        .arg("-isystem")
        .arg(build.out.join("usr/include"));
    for source in sources {
        gcc.arg(tests.join(suite).join(format!("{source}.c")));
    }
    for name in kbuild::FOREIGN {
        gcc.env_remove(name);
    }
    let log = out.join(format!("{}.log", sources[0]));
    sh::logged(
        &gcc,
        &log,
        Exit::Build,
        "the compiler's message is in the log",
        |_| (),
    )?;
    Ok(program)
}

/// Boots them once.
fn boot(
    project: &Project,
    tree: &Path,
    arch: &'static Arch,
    image: &Path,
    initramfs: &Path,
    accel: &str,
    policy: &str,
) -> Result<Vec<Case>> {
    let append = format!(
        "lazy_tlb={policy} {} LAZY_TLB_TEST_TIMEOUT=600",
        guest::NO_KUNIT
    );
    let limit = Duration::from_secs(1800);
    let report = Guest {
        arch,
        qemu: arch.qemu.into(),
        accel: accel.into(),
        image,
        initramfs,
        smp: 4,
        append: &append,
        timeout: limit,
        silence: guest::SILENCE,
        log: (project.cache).path(format!("log/neighbours-{}-{policy}.log", arch.name)),
        echo: false,
    }
    .boot()?;
    report.check_cpus()?;
    let mut cases = ktap::results(tree, &report.text)?;
    // No suite of KUnit's runs here.
    cases.retain(|case| case.name != ktap::KUNIT);
    cases.push(Case::of("no warnings", report.check_warnings()));
    Ok(cases)
}

/// `neighbours` itself.
pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let arch = arch::find(&options.arch)?;
    let shop = project.workshop(&[], &[arch])?;
    let build = shop.build(arch, "test")?;
    let image = build.image()?;
    let accel = guest::accelerator(&project.cache, arch, &image)?;
    build.targets(&["headers"])?;
    let init = project.guest_program(arch, "test-init")?;
    let mut files = vec![GuestFile::program("init", &init)?];
    for (suite, sources) in PROGRAMS {
        let program = compile(&shop, &build, suite, sources)?;
        files.push(GuestFile::program(
            format!("tests/{suite}.{}", sources[0]),
            &program,
        )?);
    }
    let initramfs = build.out.join("neighbours.cpio");
    guest::write_initramfs(&initramfs, &files)?;
    let mut results = Results::default();
    let boot =
        |image: &Path, policy| boot(project, &shop.tree, arch, image, &initramfs, &accel, policy);
    if !options.without_base {
        let base = shop.build_base(arch, "plain")?.image()?;
        results.add(BASE, boot(&base, "none")?);
    }
    for policy in POLICIES {
        results.add(policy, boot(&image, policy)?);
    }
    println!("\n{}\n", results.table());
    let different = results.different();
    if results.cases.is_empty() {
        let remedy = "look at the console in the cache's log/";
        return Err(fail(Exit::NoTests, "no test reported", remedy));
    }
    if !different.is_empty() {
        println!("verdict: FAIL ({} cases differ)", different.len());
        return Ok(Exit::Failed);
    }
    println!(
        "verdict: PASS ({} cases, the same everywhere)",
        results.cases.len()
    );
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_and_the_rest_counted() {
        let mut results = Results::default();
        let both = || {
            vec![
                Case::passed("kselftest/a/1"),
                Case::skipped("kselftest/a/2"),
            ]
        };
        results.add("base tree", both());
        results.add("shootdown", both());
        assert!(results.different().is_empty());
        assert!(
            results
                .table()
                .contains("| kselftest/a             | 1, 0, 1"),
            "{}",
            results.table()
        );
        results.add(
            "defer",
            vec![Case::failed("kselftest/a/1", "no"), Case::passed("new")],
        );
        assert_eq!(
            results.different(),
            ["kselftest/a/1", "kselftest/a/2", "new"]
        );
        let table = results.table();
        for cell in ["differs: kselftest/a/1", "fail", "missing"] {
            assert!(table.contains(cell), "{table}");
        }
    }
}
