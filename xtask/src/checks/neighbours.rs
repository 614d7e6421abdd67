//! `neighbours`: the kernel's own selftests of what lazy TLB is close to, without the series and under
//! each policy. They know nothing of it, so all must come to the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::guest::console::Report;
use crate::guest::initramfs::{self, GuestFile};
use crate::guest::ktap;
use crate::guest::machine::{self, Guest, Vm};
use crate::host::arch::{self, Arch};
use crate::host::failure::Exit;
use crate::host::policy;
use crate::host::sh;
use crate::kernel::build::{builder, Build};
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::{Case, Recorder};

/// The programs: those that build as one static program and need no shell. Each is a folder of
/// tools/testing/selftests, and the sources in it, the first of which names it.
const PROGRAMS: [(&str, &[&str]); 12] = [
    ("membarrier", &["membarrier_test_single_thread"]),
    ("membarrier", &["membarrier_test_multi_thread"]),
    ("rseq", &["basic_test", "rseq"]),
    (PARAM_TEST.0, &[PARAM_TEST.1, "rseq"]),
    ("rseq", &["syscall_errors_test", "rseq"]),
    ("sched", &["cs_prctl_test"]),
    ("mm", &["map_fixed_noreplace"]),
    ("mm", &["mremap_dontunmap"]),
    ("mm", &["madv_populate", "vm_util"]),
    ("mm", &["droppable"]),
    ("mm", &["on-fault-limit"]),
    ("mm", &["mrelease_test", "vm_util"]),
];
/// One of these that has several tests to choose from, and is too long for an emulator with the
/// arguments of its own script.
const PARAM_TEST: (&str, &str) = ("rseq", "param_test");
/// Its arguments: spinlock, list, buffer, increment, and membarrier.
const PARAMS: [&str; 5] = ["-T s", "-T l", "-T b", "-T i", "-T r"];
const PARAM_SIZE: &str = "-r 100 -t 8";
/// A selftest that is a shell script: its folder and its name.
const SCRIPT: (&str, &str) = ("cpu-hotplug", "cpu-on-off-test");
/// The shell that it runs in, with all the commands that it needs.
const BUSYBOX: &str = "/bin/busybox";
/// Seconds of scftorture, after the ten that it waits at first.
const SCF_SECONDS: u64 = 40;
/// The tests of rseq register by themselves.
const OWN_RSEQ: &str = "GLIBC_TUNABLES=glibc.pthread.rseq=0";
const NO_SCF: &str = "initcall_blacklist=scf_torture_init";
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
    /// Write every case to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A case for each test, which holds if it came to the same in every column.
fn compared(columns: &[(&str, Vec<Case>)]) -> Vec<Case> {
    let names: BTreeSet<&str> = columns
        .iter()
        .flat_map(|(_, cases)| cases.iter().map(|case| case.name.as_str()))
        .collect();
    let compare = |name: &str| {
        let status = columns.iter().map(|(column, cases)| {
            let own = cases.iter().find(|case| case.name == name);
            let word = own.map_or("missing".into(), |case| format!("{:?}", case.status));
            (*column, word.to_lowercase())
        });
        let status: Vec<(&str, String)> = status.collect();
        let detail = match status.iter().all(|(_, word)| *word == status[0].1) {
            true => {
                return Case {
                    detail: format!("{} everywhere", status[0].1),
                    ..Case::passed(name)
                }
            }
            false => status
                .iter()
                .map(|(column, word)| format!("{column}: {word}\n")),
        };
        Case::failed(name, detail.collect::<String>())
    };
    let cases = names.into_iter().map(compare);
    cases.map(|case| case.within("neighbours")).collect()
}

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
    let mut gcc = builder(build.arch.gcc);
    gcc.args(["-static", "-O2", "-pthread", "-D_GNU_SOURCE", "-w", "-o"])
        .arg(&program);
    for dir in [
        tests.join(suite),
        tests.clone(),
        shop.tree.join("tools/include"),
    ] {
        gcc.arg("-I").arg(dir);
    }
    let own = format!("tools/arch/{}/include", build.arch.folder());
    gcc.arg("-I")
        .arg(shop.tree.join(own))
        .arg("-isystem")
        .arg(build.out.join("usr/include"));
    for source in sources {
        gcc.arg(tests.join(suite).join(format!("{source}.c")));
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

/// The script as a program of the guest, with a shell, where this machine has one for it.
fn script(tree: &Path, arch: &Arch) -> Result<std::result::Result<[GuestFile; 2], String>> {
    let (suite, name) = SCRIPT;
    let without = |why: &str| Ok(Err(format!("{suite} is left out: {why}")));
    if arch.machine_name != std::env::consts::ARCH {
        return without("it needs a shell, and busybox-static is of this machine's architecture");
    }
    let busybox = Path::new(BUSYBOX);
    let Ok(bytes) = std::fs::read(busybox) else {
        return without("no /bin/busybox; install busybox-static");
    };
    if initramfs::check_init(&bytes, busybox, arch).is_err() {
        return without("/bin/busybox is not static; install busybox-static");
    }
    let path = tree.join(format!("tools/testing/selftests/{suite}/{name}.sh"));
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (_, rest) = text.split_once('\n').unwrap_or_default();
    Ok(Ok([
        GuestFile {
            path: BUSYBOX.trim_start_matches('/').into(),
            bytes,
        },
        GuestFile {
            path: format!("tests/{suite}.{name}"),
            bytes: format!("#!{BUSYBOX} ash\n{rest}").into_bytes(),
        },
    ]))
}

/// A kernel, and what is the same each time that it is booted.
struct Subject<'a> {
    vm: Vm<'a>,
    tree: &'a Path,
}

impl Subject<'_> {
    fn boot(
        &self,
        initramfs: &Path,
        policy: &str,
        append: &str,
        log: &str,
        silence: Duration,
    ) -> Result<Report> {
        let append = format!("lazy_tlb={policy} {} {append}", machine::NO_KUNIT);
        let log = format!("neighbours-{}-{policy}{log}", self.vm.arch.name);
        let report = Guest {
            append: &append,
            timeout: Duration::from_secs(1800),
            silence,
            ..self.vm.guest(initramfs, &log)
        }
        .boot()?;
        report.check_cpus()?;
        Ok(report)
    }

    fn tests(&self, initramfs: &Path, policy: &str) -> Result<Vec<Case>> {
        let append = format!("{NO_SCF} {OWN_RSEQ} LAZY_TLB_TEST_TIMEOUT=600");
        let report = self.boot(initramfs, policy, &append, "", machine::SILENCE)?;
        let mut cases = ktap::results(self.tree, &report.text)?;
        // No suite of KUnit's runs here.
        cases.retain(|case| case.name != ktap::KUNIT);
        cases.push(Case::of("end", report.check_end()));
        cases.push(Case::of("no warnings", report.check_warnings()));
        Ok(cases)
    }

    /// scftorture, which switches the machine off.
    fn torture(&self, initramfs: &Path, policy: &str) -> Result<Vec<Case>> {
        let append = format!(
            "LAZY_TLB_WAIT=1 scftorture.shutdown_secs={}",
            SCF_SECONDS + 10
        );
        // It says nothing until its end. x86_64 without PCI knows no way to switch itself off after that.
        let silence = Duration::from_secs(2 * SCF_SECONDS);
        let report = self.boot(initramfs, policy, &append, "-scf", silence)?;
        Ok(vec![
            Case::of("scftorture/end of test", tortured(&report.text)),
            Case::of("scftorture/no warnings", report.check_warnings()),
        ])
    }
}

fn tortured(console: &str) -> Result<()> {
    let said = console
        .lines()
        .find_map(|line| line.split_once("End of test: "));
    match said {
        Some((_, rest)) if rest.starts_with("SUCCESS") => Ok(()),
        Some((_, rest)) => anyhow::bail!("it says {}", rest.trim()),
        None => anyhow::bail!("it did not come to its end"),
    }
}

pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let arch = arch::find(&options.arch)?;
    let shop = project.workshop(&[], &[arch])?;
    let build = shop.build(arch, "neighbours")?;
    let image = build.image()?;
    build.targets(&["headers"])?;
    let mut files = Vec::new();
    for (suite, sources) in PROGRAMS {
        let program = compile(&shop, &build, suite, sources)?;
        let name = format!("tests/{suite}.{}", sources[0]);
        let names = match (suite, sources[0]) == PARAM_TEST {
            true => Vec::from(PARAMS.map(|which| format!("{name} {which} {PARAM_SIZE}"))),
            false => vec![name],
        };
        for name in names {
            files.push(GuestFile::program(name, &program)?);
        }
    }
    match script(&shop.tree, arch)? {
        Ok(script) => files.extend(script),
        Err(why) => println!("{why}"),
    }
    let initramfs = project.initramfs_with(arch, "test", files, &build.out)?;
    let alive = project.initramfs(arch, "alive")?;
    let base = match options.without_base {
        true => None,
        false => Some(shop.build_base(arch, "neighbours-plain")?.image()?),
    };
    let mut columns = Vec::new();
    columns.extend(base.as_deref().map(|base| (BASE, "none", base)));
    columns.extend(policy::ALL.map(|policy| (policy, policy, image.as_path())));
    let mut results = Vec::new();
    for (column, policy, image) in columns {
        let subject = Subject {
            vm: Vm::new(project, arch, image)?,
            tree: &shop.tree,
        };
        let mut cases = subject.tests(&initramfs, policy)?;
        cases.extend(subject.torture(&alive, policy)?);
        results.push((column, cases));
    }
    let mut recorder = Recorder::default();
    recorder.stage("neighbours", || Ok(compared(&results)));
    if let Some(path) = &options.json {
        recorder.write_json(path)?;
    }
    Ok(recorder.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::case::counts;

    #[test]
    fn torture_is_over_when_it_says_so() {
        let said = |what: &str| format!("[ 1.0] scftorture: ---  End of test: {what} nthreads=4\n");
        assert!(tortured(&said("SUCCESS")).is_ok());
        let failed = tortured(&said("FAILURE")).unwrap_err().to_string();
        assert!(failed.contains("FAILURE"), "{failed}");
        assert!(tortured("[ 1.0] scftorture: verbose=0\n").is_err());
    }

    #[test]
    fn what_differs_is_named() {
        let both = || vec![Case::failed("a/1", "no"), Case::skipped("a/2")];
        let found = |third: Vec<Case>| {
            let columns = [(BASE, both()), ("refcount", both()), ("handover", third)];
            compared(&columns)
        };
        let same = found(both());
        assert_eq!(counts(&same), [2, 0, 0]);
        assert_eq!(same[0].detail, "fail everywhere");
        let other = found(vec![Case::passed("a/1"), Case::passed("new")]);
        assert_eq!(counts(&other), [0, 3, 0]);
        assert_eq!(other[0].name, "neighbours/a/1");
        assert_eq!(
            other[0].detail,
            "base tree: fail\nrefcount: fail\nhandover: pass\n"
        );
        assert!(other[2].detail.contains("base tree: missing"));
    }
}
