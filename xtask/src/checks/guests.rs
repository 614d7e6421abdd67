//! The guests of `test`: how their kernels are built, what they are booted with, and what they must show.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::console::Report;
use crate::guest::initramfs::{self, GuestFile};
use crate::guest::ktap;
use crate::guest::machine::{self, Guest, Vm};
use crate::host::apt;
use crate::host::arch::{self, Arch, Firmware, Kind};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::Case;

/// What a guest is booted with that knows no policy.
const NO_POLICY: [&str; 1] = ["no-policy"];
/// The series' own suites, which run at boot.
pub const SUITES: [&str; 2] = ["lazy_tlb", "lazy_tlb_policy"];
/// The one of the fixes before it, on x86_64.
const X86_SUITE: &str = "x86_tlb";
/// Where other guests have their policy: one that never ends.
pub const HANG: &str = "hang";
const HANG_SILENCE: u64 = 20;
pub const BOGUS: &str = "bogus";

/// Seconds that the guest gives one program: generous, for others build and boot beside it.
const PROGRAM_TIMEOUT: u64 = 600;
/// What a guest may be silent for longer than a program may run.
const SILENCE_MORE: u64 = 60;
/// How long a test that could go on for ever does, unless told: many guests are booted one after the
/// other.
pub const SECONDS: u64 = 2;

/// Mms that may be more at the end than at first: what CPUs keep.
const SLACK: u64 = 64;
/// Pages of page tables that may be more at the end than at first: those of the kernel count, and stacks
/// of threads that have ended keep their addresses until 32 MiB and more for each doubling of CPUs have
/// come together.
const PAGE_TABLE_SLACK: u64 = 256;

/// KiB that may be less, of 2 GiB. KASAN keeps half of that from being used again.
const MEMORY_SLACK: u64 = 128 * 1024;

/// What an x86_64 guest is told besides, since nothing of it is on by default under emulation: no CPU of QEMU
/// has IBPB, and a write to its register does nothing there.
const MITIGATIONS: &str = "pti=on spectre_v2=on spectre_v2_user=on setcpuid=ibpb";

/// What it says then.
const MITIGATED: [&str; 3] = [
    "Kernel/User page tables isolation: enabled",
    "Mitigation: Retpolines",
    "Enabling always-on Indirect Branch Prediction Barrier",
];

/// All the selftests, each of which may take minutes under emulation.
const TEST_TIMEOUT: Duration = Duration::from_secs(2400);

/// How test kernels can be built, and how their guests then differ.
#[derive(Debug)]
pub struct Variant {
    pub name: &'static str,
    /// Where it can be built; everywhere if empty.
    arches: &'static [&'static str],
    pub policies: &'static [&'static str],
    suites: &'static [&'static str],
    append: &'static str,
    /// How many times as long as others its guests may take.
    patience: u32,
    /// Whether its x86_64 guest goes on to another kernel in the end.
    kexec: bool,
    /// Whether UEFI starts one of its guests, where there is any.
    uefi: bool,
    /// Whether its spinlocks sleep.
    realtime: bool,
}

/// The first is what all other stages use as well.
pub static VARIANTS: [Variant; 6] = [
    Variant::TEST,
    Variant {
        name: "kasan",
        arches: &["x86_64", "arm64"],
        // With five levels, Linux 7.3.4 on x86 takes its own memory for wild when an interrupt comes just
        // as it identifies the first CPU, in one boot of six.
        append: "slab_debug=FZPU,mm_struct page_poison=1 no5lvl LAZY_TLB_SUSPEND=1",
        patience: 4,
        kexec: true,
        uefi: true,
        ..Variant::TEST
    },
    Variant {
        name: "kcsan",
        arches: &["x86_64", "arm64"],
        // The first race of the kernel's own would end the guest. A watched access waits for so many
        // microseconds, and at most so many go by unwatched: by default a CPU under emulation does not
        // get anywhere meanwhile, and nothing at all is found.
        append: "panic_on_warn=0 kcsan.udelay_task=2000 kcsan.udelay_interrupt=500 \
                 kcsan.skip_watch=2000",
        patience: 4,
        ..Variant::TEST
    },
    Variant {
        name: "rt",
        arches: &["x86_64", "arm64"],
        patience: 2,
        realtime: true,
        ..Variant::TEST
    },
    Variant {
        name: "norust",
        policies: &NO_POLICY,
        suites: &[],
        ..Variant::TEST
    },
    Variant {
        name: "off",
        policies: &NO_POLICY,
        suites: &[],
        ..Variant::TEST
    },
];

impl Variant {
    pub const TEST: Variant = Variant {
        name: "test",
        arches: &[],
        policies: &policy::ALL,
        suites: &SUITES,
        // An mm that was freed is no mm to whoever still looks at it.
        append: "slab_debug=FZP,mm_struct",
        patience: 1,
        kexec: false,
        uefi: false,
        realtime: false,
    };

    /// An error where it cannot be built for an architecture.
    pub fn check(&self, arch: &Arch) -> Result<()> {
        if self.arches.is_empty() || self.arches.contains(&arch.name) {
            return Ok(());
        }
        Err(fail(
            Exit::Usage,
            format!("{} is not for {}", self.name, arch.name),
            format!("it is for {}", self.arches.join(", ")),
        ))
    }

    pub fn kexecs(&self, arch: &Arch) -> bool {
        self.kexec && arch.name == "x86_64"
    }

    /// What starts a guest, where it is not the emulator's own firmware. It is installed if it is missing.
    pub fn firmware(
        &self,
        project: &Project,
        arch: &'static Arch,
        policy: &str,
    ) -> Result<Option<&'static Firmware>> {
        // With the others, suspend to RAM and kexec are without it.
        let firmware = match &arch.uefi {
            Some(firmware) if self.uefi && policy == policy::DEFAULT => firmware,
            _ => return Ok(None),
        };
        if !Path::new(firmware.file).exists() {
            apt::install(&[firmware.package.into()], &project.cache.dir("log")?)?;
        }
        Ok(Some(firmware))
    }

    /// What a guest's cases, log and stage are named by; the usual variant is not worth a word.
    pub fn guest(&self, guest: &str) -> String {
        match self.name {
            name if name == Variant::TEST.name => guest.into(),
            name => format!("{name}/{guest}"),
        }
    }
}

pub fn variants(name: &str) -> Result<Vec<&'static Variant>> {
    let meant = |variant: &&Variant| name == arch::ALL || variant.name == name;
    let found: Vec<&Variant> = VARIANTS.iter().filter(meant).collect();
    if found.is_empty() {
        let known: Vec<&str> = VARIANTS.iter().map(|variant| variant.name).collect();
        return Err(fail(
            Exit::Usage,
            format!("there is no test variant {name}"),
            format!("use one of: {}, {}", known.join(", "), arch::ALL),
        ));
    }
    Ok(found)
}

/// A kernel that was built and what its guests boot with.
#[derive(Clone)]
pub struct Built {
    pub variant: &'static Variant,
    pub image: PathBuf,
    /// kbuild's `O=`.
    pub out: PathBuf,
    pub initramfs: PathBuf,
}

impl Built {
    /// Builds an architecture's test kernel, and what its guests boot with.
    pub fn build(
        project: &Project,
        shop: &Workshop<'_>,
        arch: &'static Arch,
        variant: &'static Variant,
    ) -> Result<Self> {
        let build = shop.build(arch, variant.name)?;
        let image = build.image()?;
        let kernel = variant.kexecs(arch).then_some(image.as_path());
        let initramfs = test_initramfs(project, shop, &build, kernel)?;
        Ok(Built {
            variant,
            image,
            out: build.out,
            initramfs,
        })
    }
}

/// A test guest, which may be booted more than once.
pub struct TestGuest<'a> {
    pub vm: Vm<'a>,
    pub tree: &'a Path,
    pub kind: &'static Kind,
    pub built: &'a Built,
    /// How long a test goes on that could do so for ever.
    pub seconds: u64,
    pub program: u64,
    /// What starts it, if not the emulator's own firmware.
    pub firmware: Option<&'static Firmware>,
    /// How long it may be silent, if not for as long as its tests take.
    pub silence: Option<Duration>,
    /// Whether KUnit runs, which goes through all policies by itself.
    pub kunit: bool,
    /// Whether the first test that fails ends it.
    pub until_red: bool,
}

impl<'a> TestGuest<'a> {
    pub fn new(
        project: &'a Project,
        shop: &'a Workshop<'_>,
        kind: &'static Kind,
        built: &'a Built,
    ) -> Result<Self> {
        Ok(TestGuest {
            vm: Vm::new(project, kind.arch(), &built.image)?,
            tree: &shop.tree,
            kind,
            built,
            seconds: SECONDS,
            program: PROGRAM_TIMEOUT * u64::from(built.variant.patience),
            firmware: None,
            silence: None,
            kunit: true,
            until_red: false,
        })
    }

    /// The same with so many seconds for a program, where the first test that fails is enough.
    pub fn until_red(self, program: u64) -> Self {
        TestGuest {
            program,
            until_red: true,
            ..self
        }
    }

    /// Runs every test under a policy; `append` has more words for the first process.
    pub fn run(&self, policy: &str, append: &str, log: &str) -> Result<(Report, Vec<Case>)> {
        // The kernel's own suites of Rust come along, but Linux 7.3.4 does not pass them with PREEMPT_RT.
        let kunit = match (self.kunit, self.built.variant.realtime) {
            (false, _) => machine::NO_KUNIT,
            (true, true) => "kunit.filter_glob=lazy_tlb*",
            (true, false) => "",
        };
        let TestGuest {
            program, seconds, ..
        } = self;
        let mitigated = self.kind.arch().name == "x86_64";
        let mitigations = if mitigated { MITIGATIONS } else { "" };
        let append = format!(
            "{mitigations} {kunit} LAZY_TLB_TEST_TIMEOUT={program} LAZY_TLB_SECONDS={seconds} {append}"
        );
        let report = self.boot(policy, append.trim(), &self.built.initramfs, log)?;
        let mut cases = ktap::results(self.tree, &report.text)?;
        let suites = match self.kunit {
            true => self.built.variant.suites,
            false => &[],
        };
        if suites.is_empty() {
            // So nothing was reported, which is no failure then.
            cases.retain(|case| case.name != ktap::KUNIT);
        }
        cases.extend(ktap::expected_suites(&cases, suites));
        if mitigated && !suites.is_empty() && !self.built.variant.realtime {
            cases.extend(ktap::expected_suites(&cases, &[X86_SUITE]));
        }
        cases.push(Case::of("boot", report.check_end()));
        cases.push(Case::of("cpus", report.check_cpus()));
        cases.push(Case::of("no warnings", report.check_warnings()));
        cases.extend(left_over(&report));
        if mitigated {
            cases.push(mitigations_on(&report.text));
        }
        // They wait between their rounds for longer than one test takes.
        if !append.contains("LAZY_TLB_ONLY=") {
            cases.extend(scanners(&report));
        }
        if let Some(mmu) = self.kind.mmu {
            cases.push(Case::of("mmu", report.check_mmu(mmu)));
        }
        Ok((report, cases))
    }

    /// Boots it; the console goes to a log of that name.
    fn boot(&self, policy: &str, append: &str, initramfs: &Path, log: &str) -> Result<Report> {
        let variant = self.built.variant;
        // A program is silent while it runs, and has twice as long as it is to go on.
        let longer = Duration::from_secs(self.seconds);
        let known = !NO_POLICY.contains(&policy);
        let policy = known.then(|| format!("lazy_tlb={policy}"));
        let words = [policy.as_deref().unwrap_or_default(), self.kind.append];
        let append = [&words[..], &[append, variant.append]].concat().join(" ");
        let silence = Duration::from_secs(self.program + SILENCE_MORE) + 3 * longer;
        Guest {
            append: &append,
            timeout: TEST_TIMEOUT * variant.patience + 10 * longer,
            silence: self.silence.unwrap_or(silence),
            firmware: self.firmware,
            until_red: self.until_red,
            ..self.vm.guest(initramfs, log)
        }
        .boot()
    }
}

/// What the kernel does about a policy that it does not know, and about more than one.
pub fn bogus(guest: &TestGuest<'_>, log: &str) -> Result<Vec<Case>> {
    let append = format!(
        "lazy_tlb=shootdown lazy_tlb=handover {} LAZY_TLB_EXITS=10 LAZY_TLB_REPEAT=1",
        machine::NO_KUNIT
    );
    // The workload's first process reports the policy; a few exits are enough for that.
    let vm = &guest.vm;
    let initramfs = vm.project.initramfs(vm.arch, "run")?;
    let report = guest.boot(BOGUS, &append, &initramfs, log)?;
    let policy = report.values("lazy-tlb-run").remove("policy");
    let kept = complains(&report.text, &[BOGUS, "keeping shootdown"]);
    Ok(vec![
        Case::of("boot", report.check()),
        Case::when(
            kept,
            "the default is kept, and the console says so",
            "no line does",
        ),
        Case::when(
            policy.as_deref() == Some(policy::HANDOVER),
            "the last of two counts",
            format!("policy {policy:?}"),
        ),
    ])
}

/// Whether a guest that hangs is found to, and tells where.
pub fn hang(guest: &TestGuest<'_>, log: &str) -> Result<Vec<Case>> {
    let vm = &guest.vm;
    let initramfs = vm.project.initramfs(vm.arch, "alive")?;
    let append = format!(
        "{} {} LAZY_TLB_WAIT=1",
        guest.kind.append,
        machine::NO_KUNIT
    );
    let report = Guest {
        append: &append,
        timeout: TEST_TIMEOUT,
        silence: Duration::from_secs(HANG_SILENCE),
        ..vm.guest(&initramfs, log)
    }
    .boot()?;
    let judged = report
        .check()
        .err()
        .map_or(String::new(), |error| error.to_string());
    let shown = report.backtraces().unwrap_or_default();
    // Of each CPU there is at least a line; on x86_64, one that is idle has no more.
    let cpus = (0..report.asked)
        .filter(|cpu| names_cpu(shown, *cpu))
        .count();
    Ok(vec![
        Case::when(
            judged.contains("the guest hangs"),
            "a hang is found",
            format!("it is judged: {judged}"),
        ),
        Case::when(
            cpus == report.asked,
            "it says where its CPUs are",
            format!("{cpus} CPUs are in its backtraces: {shown}"),
        ),
    ])
}

/// Whether a kernel's backtraces have one of this CPU.
fn names_cpu(shown: &str, cpu: usize) -> bool {
    let words = [
        format!("cpu {cpu}"),
        format!("CPU: {cpu} "),
        format!("CPU{cpu}:"),
    ];
    let mut lines = shown.lines().map(|line| format!("{line} "));
    lines.any(|line| words.iter().any(|word| line.contains(word)))
}

pub fn ended(report: &Report) -> u64 {
    let values = report.values("lazy-tlb-guest");
    let drops = values.get("final_drops");
    drops.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// What is made of pages that the kernel's own mappings need, too.
const PAGE_TABLES: &str = "page_tables";

/// What has become less if some is lost, unlike the others.
const MEMORY: &str = "memory";

/// What may be left over, and the case about it.
pub const LEFT_OVER: [(&str, &str); 3] = [
    ("mms", "no mm is left over"),
    (PAGE_TABLES, "no page table is left over"),
    (MEMORY, "no memory is lost"),
];

/// Whether what mms are made of has become more, where the guest can tell.
fn left_over(report: &Report) -> Vec<Case> {
    let values = report.values("lazy-tlb-guest");
    let case = |key: &str, name: &str| {
        let (before, after) = values.get(key)?.split_once("..")?;
        // Negative where it is not known.
        let (before, after): (u64, u64) = (before.parse().ok()?, after.parse().ok()?);
        let enough = match key {
            MEMORY => before <= after + MEMORY_SLACK,
            PAGE_TABLES => after <= before + PAGE_TABLE_SLACK,
            _ => after <= before + SLACK,
        };
        Some(Case {
            detail: format!("{before} at first, {after} in the end"),
            ..Case::when(enough, name, "")
        })
    };
    let mut cases = LEFT_OVER.map(|(key, name)| case(key, name).unwrap_or(Case::skipped(name)));
    // So that a file of results has it.
    cases[0].detail = format!("{} mms ended\n{}", ended(report), cases[0].detail);
    cases.into()
}

fn mitigations_on(console: &str) -> Case {
    let missing: Vec<_> = MITIGATED
        .iter()
        .filter(|said| !console.contains(**said))
        .collect();
    let detail = format!("the kernel did not say {missing:?}");
    Case::when(missing.is_empty(), "mitigations are on", detail)
}

/// Whether the threads went round that look at mms, where the kernel has them.
fn scanners(report: &Report) -> Vec<Case> {
    let values = report.values("lazy-tlb-guest");
    let went = |name: &&str| {
        let rounds = values.get(*name)?;
        let detail = format!("{rounds} rounds");
        Some(Case::when(
            rounds != "0",
            format!("{name} went round"),
            detail,
        ))
    };
    ["ksmd", "khugepaged"].iter().filter_map(went).collect()
}

const KERNEL: &str = "Linux version ";

/// What a guest says when its tests are over.
const TESTED: &str = "lazy-tlb-guest: mms=";

pub fn kexeced(console: &str) -> Case {
    let after = console.split_once(TESTED).map_or("", |(_, after)| after);
    Case::when(
        after.contains(KERNEL) && after.contains("lazy-tlb-guest: cpus="),
        "another kernel comes up by kexec",
        "no other kernel has started a first process",
    )
}

/// Whether the guest was started by UEFI, and torture has called that.
pub fn efi_called(console: &str) -> Case {
    let started = console.contains("efi: EFI v");
    let detail = match started {
        true => "torture found nothing to call it with",
        false => "UEFI did not start it",
    };
    let called = started && !console.contains("left out: efi:");
    Case::when(called, "EFI is called", detail)
}

/// Whether the kernel itself says all this in a line, besides printing its command line.
fn complains(console: &str, words: &[&str]) -> bool {
    let mut lines = console
        .lines()
        .filter(|line| words.iter().all(|word| line.contains(word)));
    lines.any(|line| line.contains("lazy_tlb") && !line.contains("ommand line:"))
}

/// The initramfs of the test guest: its first process and every selftest.
fn test_initramfs(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    kernel: Option<&Path>,
) -> Result<PathBuf> {
    let mut files = Vec::new();
    for program in shop.selftests(build)? {
        let name = program
            .file_name()
            .context("a program has a name")?
            .to_string_lossy();
        let file = GuestFile::program(format!("tests/{name}"), &program)?;
        initramfs::check_init(&file.bytes, &program, build.arch)?;
        files.push(file);
    }
    if files.is_empty() {
        return Err(fail(
            Exit::NoTests,
            "the selftests' Makefile built no program",
            "look at TEST_GEN_PROGS in tools/testing/selftests/lazy_tlb/Makefile",
        ));
    }
    if build.arch.name == "x86_64" && build.variant == Variant::TEST.name {
        files.extend(project.fuzz_files(build.arch, &project.corpus()?)?);
    }
    if let Some(kernel) = kernel {
        let alive = project.initramfs(build.arch, "alive")?;
        files.push(GuestFile::program("kexec/kernel", kernel)?);
        files.push(GuestFile::program("kexec/initramfs", &alive)?);
    }
    // Beside the kernel: another variant's may be made at the same time.
    project.initramfs_with(build.arch, "test", files, &build.out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::case::Status;

    #[test]
    fn what_the_kernel_did_not_do_is_found() {
        let on = MITIGATED.join("\n");
        assert_eq!(mitigations_on(&on).status, Status::Pass);
        let off = mitigations_on("Mitigation: Retpolines");
        assert!(off.status == Status::Fail && off.detail.contains("Barrier"));
        let scanned = |text: &str| {
            let end = crate::guest::console::End::Exited;
            let cases = scanners(&Report::new(text.into(), end, 4, Path::new("gone")));
            cases.iter().map(|case| case.status).collect::<Vec<_>>()
        };
        assert!(scanned("").is_empty());
        let text = "lazy-tlb-guest: ksmd=0\nlazy-tlb-guest: khugepaged=9\n";
        assert_eq!(scanned(text), [Status::Fail, Status::Pass]);
    }

    #[test]
    fn what_is_left_over_is_found() {
        let found = |mms: &str, tables: &str, memory: &str| {
            let text = format!(
                "lazy-tlb-guest: final_drops=700\nlazy-tlb-guest: mms={mms}\n\
                 lazy-tlb-guest: page_tables={tables}\nlazy-tlb-guest: memory={memory}\n"
            );
            let report = Report::new(
                text,
                crate::guest::console::End::Exited,
                4,
                Path::new("gone"),
            );
            assert_eq!(ended(&report), 700);
            let cases = left_over(&report);
            assert!(cases[0].detail.starts_with("700 mms ended\n"));
            cases.iter().map(|case| case.status).collect::<Vec<_>>()
        };
        use Status::{Fail, Pass, Skip};
        let all = "2000000..1900000";
        assert_eq!(found("2..2", "30..286", all), [Pass, Pass, Pass]);
        assert_eq!(found("2..67", "30..287", all), [Fail, Fail, Pass]);
        assert_eq!(found("-1..-1", "94..30", all), [Skip, Pass, Pass]);
        assert_eq!(
            found("2..2", "30..30", "2000000..1800000"),
            [Pass, Pass, Fail]
        );
    }

    #[test]
    fn every_variant_is_a_fragment_and_an_unknown_one_is_named() {
        let known = crate::kernel::build::variants(&crate::kernel::workshop::repository()).unwrap();
        for variant in &VARIANTS {
            assert!(known.iter().any(|name| name == variant.name));
            assert!(variant.check(arch::find("x86_64").unwrap()).is_ok());
        }
        let s390 = arch::find("s390").unwrap();
        let said = variants("rt").unwrap()[0].check(s390).unwrap_err();
        assert!(said.to_string().contains("rt is not for s390"), "{said}");
        let (exit, error) = crate::host::failure::classify(variants("none").err().unwrap());
        assert_eq!(exit, Exit::Usage);
        assert!(error.to_string().contains("kasan"), "{error}");
    }

    #[test]
    fn only_a_kernel_after_the_tests_came_by_kexec() {
        let came = |text: &str| kexeced(text).status == crate::results::case::Status::Pass;
        let tested = "lazy-tlb-guest: mms=2..2\n";
        let next = "[ 0.0] Linux version 7.3.4\nlazy-tlb-guest: cpus=4\n";
        assert!(came(&format!("{tested}{next}")));
        assert!(!came(&format!("{next}{tested}")));
        let (silent, _) = next.split_once('\n').unwrap();
        assert!(!came(&format!("{tested}{silent}")));
    }

    #[test]
    fn an_echoed_command_line_is_no_complaint() {
        let of_bogus = |line: &str| complains(line, &[BOGUS]);
        assert!(!of_bogus("[    0.0] Kernel command line: lazy_tlb=bogus\n"));
        assert!(!of_bogus("[    0.0] Command line: lazy_tlb=bogus\n"));
        let said = "[    0.0] lazy_tlb: unknown policy \"bogus\", keeping shootdown\n";
        assert!(of_bogus(said));
        assert!(complains(said, &[BOGUS, "keeping shootdown"]));
        assert!(!complains(said, &[BOGUS, "keeping handover"]));
    }
}
