//! `test`: every stage, each result a case.
//!
//! Kernels build in the background while what needs none of them runs, and a guest boots as soon
//! as its kernel is there. A stage's cases are printed when it ends.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use anyhow::Result;

use crate::bench::ipis;
use crate::bench::lines;
use crate::bench::run;
use crate::checks::guests::{
    bogus, efi_called, ended, hang, kexeced, Built, TestGuest, Variant, BOGUS, HANG,
};
use crate::checks::litmus;
use crate::checks::off;
use crate::checks::series;
use crate::checks::tidy;
use crate::guest::ktap;
use crate::guest::machine;
use crate::host::arch::{self, Arch, Kind};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::{Case, Recorder};

/// A stage that needs no kernel.
type HostStage = fn(&Project, &Workshop<'_>) -> Result<Vec<Case>>;

/// The stages that run while the first kernels build, in order.
const HOST_STAGES: [(&str, HostStage); 5] = [
    ("xtask", |project, _| own_tests(project)),
    ("litmus", |project, _| litmus::cases(project)),
    ("tidy", |project, _| tidy::cases(project)),
    ("series", series::cases),
    ("ktap", |_, shop| ktap::self_test(&shop.tree)),
];
/// The stages that need kernels. All but `guests` are x86_64's.
const KERNEL_STAGES: [&str; 4] = [GUESTS, "off", "run", "bench"];
/// The stage that boots test guests.
const GUESTS: &str = "guests";

/// What `test` is asked for.
pub struct Plan<'a> {
    /// The guests.
    pub guests: Vec<&'static Kind>,
    /// How their kernels are built.
    pub variants: Vec<&'static Variant>,
    /// Patches to leave out of what is built.
    pub skip: &'a [String],
    /// Only these stages; all where empty.
    pub stages: &'a [String],
    /// Only guests with these policies; all where empty.
    pub policies: &'a [String],
    /// Where all cases go as JSON.
    pub json: Option<&'a Path>,
    /// How long a test goes on that could do so for ever.
    pub seconds: u64,
    /// More words for the guests' command lines.
    pub append: &'a str,
}

impl Plan<'_> {
    /// Guests are of any variant; the other stages are part of the usual one.
    fn wants(&self, stage: &str) -> bool {
        let usual = || self.variants.iter().any(|v| v.name == Variant::TEST.name);
        match self.stages.iter().any(|s| s == stage) {
            false if !self.stages.is_empty() => false,
            _ => stage == GUESTS || usual(),
        }
    }

    /// The kernels to build, in order, and what each is for.
    ///
    /// One for each variant and architecture: the main job and the benchmark are the same on a
    /// kernel that checks itself, only slower, and a second kernel would take longer than that.
    fn kernels(&self) -> VecDeque<Kernel> {
        let others = [("run", Use::Run), ("off", Use::Off), ("bench", Use::Bench)];
        let mut kernels = VecDeque::new();
        for variant in &self.variants {
            let usual = variant.name == Variant::TEST.name;
            for arch in arch::of_kinds(&self.guests) {
                let mut uses = Vec::new();
                // The longest ones first, or one of them would go on alone at the end.
                if usual && arch.name == "x86_64" {
                    let wanted = others.iter().filter(|(stage, _)| self.wants(stage));
                    uses.extend(wanted.map(|(_, use_of)| *use_of));
                }
                if self.wants(GUESTS) {
                    let ours = |kind: &&&Kind| kind.arch().name == arch.name;
                    for kind in self.guests.iter().filter(ours) {
                        let policies = variant.policies.iter().filter(|policy| {
                            self.policies.is_empty() || self.policies.iter().any(|p| p == *policy)
                        });
                        uses.extend(policies.map(|policy| Use::Guest(kind, policy)));
                        if !usual || !self.policies.is_empty() {
                            continue;
                        }
                        if !arch.is_program() {
                            uses.push(Use::Lines(kind));
                        }
                        if !arch.sysrq.is_empty() {
                            uses.push(Use::Guest(kind, HANG));
                        }
                        // The kernel reads the parameter in the same way on every architecture.
                        if arch.name == "x86_64" {
                            uses.push(Use::Guest(kind, BOGUS));
                        }
                    }
                }
                if !uses.is_empty() {
                    kernels.push_back(Kernel {
                        arch,
                        variant,
                        uses,
                    });
                }
            }
        }
        kernels
    }
}

/// A kernel to build.
struct Kernel {
    arch: &'static Arch,
    variant: &'static Variant,
    uses: Vec<Use>,
}

/// What a kernel is for.
#[derive(Clone, Copy)]
enum Use {
    /// A test guest, booted under a policy.
    Guest(&'static Kind, &'static str),
    /// The count of lines that move per trip.
    Lines(&'static Kind),
    /// The main job.
    Run,
    /// The comparison with the option off.
    Off,
    /// The small benchmark of interrupts.
    Bench,
}

impl Use {
    fn stage(&self, variant: &Variant) -> String {
        match self {
            Use::Guest(kind, policy) => format!("{}/{policy}", variant.guest(kind.name)),
            Use::Lines(kind) => format!("{}/lines", variant.guest(kind.name)),
            Use::Run => "run".into(),
            Use::Off => "off".into(),
            Use::Bench => "bench".into(),
        }
    }
}

/// What waits to be done, shared by the threads that do it.
struct Board {
    kernels: VecDeque<Kernel>,
    /// How many builds have not ended, the waiting ones included.
    building: usize,
    ready: VecDeque<(Use, Built)>,
}

struct Work<'a> {
    project: &'a Project,
    shop: &'a Workshop<'a>,
    plan: &'a Plan<'a>,
    recorder: &'a Mutex<Recorder>,
    /// The mms that ended in guests, as far as they counted.
    ended: AtomicU64,
    board: Mutex<Board>,
    changed: Condvar,
}

/// Runs the stages, prints every case, and counts.
pub fn run(project: &Project, plan: &Plan<'_>) -> Result<Exit> {
    let known = || {
        let host = HOST_STAGES.iter().map(|(name, _)| *name);
        host.chain(KERNEL_STAGES)
    };
    if let Some(unknown) = plan.stages.iter().find(|s| !known().any(|k| k == *s)) {
        return Err(fail(
            Exit::Usage,
            format!("unknown stage {unknown}"),
            format!("use some of: {}", known().collect::<Vec<_>>().join(",")),
        ));
    }
    let mut recorder = Recorder::default();
    let shop = recorder.need("setup", || {
        project.workshop(plan.skip, &arch::of_kinds(&plan.guests))
    });
    let recorder = Mutex::new(recorder);
    if let Some(shop) = &shop {
        let kernels = plan.kernels();
        let work = Work {
            project,
            shop,
            plan,
            recorder: &recorder,
            ended: AtomicU64::new(0),
            board: Mutex::new(Board {
                building: kernels.len(),
                kernels,
                ready: VecDeque::new(),
            }),
            changed: Condvar::new(),
        };
        std::thread::scope(|scope| {
            // Two build; one of them goes on with guests, beside this thread.
            scope.spawn(|| {
                work.build_all();
                work.use_all();
            });
            scope.spawn(|| work.build_all());
            for (name, stage) in HOST_STAGES.iter().filter(|(name, _)| plan.wants(name)) {
                work.stage(name, || stage(project, shop));
            }
            work.use_all();
        });
        let ended = work.ended.into_inner();
        if ended != 0 {
            println!("\n{ended} mms ended in guests, those under lazy_tlb=refcount not counted");
        }
    }
    let recorder = recorder.into_inner().expect("no holder panics");
    if let Some(path) = plan.json {
        recorder.write_json(path)?;
    }
    Ok(recorder.finish())
}

impl Work<'_> {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("no holder panics")
    }

    /// Runs a stage beside others; its cases are printed together.
    fn stage(&self, name: &str, run: impl FnOnce() -> Result<Vec<Case>>) {
        let started = Instant::now();
        let result = run();
        self.ended(name, started, result);
    }

    fn ended(&self, name: &str, started: Instant, result: Result<Vec<Case>>) {
        let mut recorder = self.recorder.lock().expect("no holder panics");
        println!("\n== {name}");
        recorder.ended(name, started, result);
    }

    /// Builds kernels until none waits.
    fn build_all(&self) {
        loop {
            // In a statement of its own, or the board would be locked during the build.
            let next = self.board().kernels.pop_front();
            let Some(kernel) = next else { return };
            let started = Instant::now();
            let Kernel { arch, variant, .. } = kernel;
            // A panic here would leave the other threads waiting for this kernel.
            let run = std::panic::AssertUnwindSafe(|| {
                variant.check(arch)?;
                Built::build(self.project, self.shop, arch, variant)
            });
            let built = std::panic::catch_unwind(run)
                .unwrap_or_else(|_| anyhow::bail!("xtask panicked; its message is above"));
            let mut board = self.board();
            board.building -= 1;
            match built {
                Ok(built) => {
                    let ready = kernel.uses.into_iter().map(|u| (u, built.clone()));
                    board.ready.extend(ready);
                    drop(board);
                }
                // The others go on; each thing that this kernel was for is named.
                Err(error) => {
                    drop(board);
                    let possible = variant.check(arch);
                    let impossible = possible.and_then(|()| self.shop.tools.check_rustc(arch));
                    let impossible = impossible.err();
                    let said = format!("{error:#}");
                    for use_of in &kernel.uses {
                        let stage = use_of.stage(variant);
                        let case = not_built(&stage, &said, &impossible);
                        self.ended(&stage, started, Ok(vec![case]));
                    }
                }
            }
            self.changed.notify_all();
        }
    }

    /// Boots and compares what is ready until nothing can become ready any more.
    fn use_all(&self) {
        loop {
            let mut board = self.board();
            let (use_of, built) = loop {
                match board.ready.pop_front() {
                    Some(ready) => break ready,
                    None if board.building == 0 => return,
                    None => board = self.changed.wait(board).expect("no holder panics"),
                }
            };
            drop(board);
            self.stage(&use_of.stage(built.variant), || match &use_of {
                Use::Guest(kind, policy) => self.guest(kind, &built, policy),
                Use::Lines(kind) => lines_of(self.project, kind, &built),
                Use::Run => main_job(self.project, &built),
                Use::Off => off::option_off(self.shop, arch::find("x86_64")?),
                Use::Bench => small_bench(self.project, &built),
            });
        }
    }

    /// What a guest shows under a policy, which may be one that it does not know.
    fn guest(&self, kind: &'static Kind, built: &Built, policy: &'static str) -> Result<Vec<Case>> {
        let Work { project, plan, .. } = self;
        let guest = TestGuest::new(project, self.shop, kind, built)?;
        let firmware = built.variant.firmware(kind.arch(), policy)?;
        let guest = TestGuest {
            seconds: plan.seconds,
            firmware,
            kunit: policy == policy::DEFAULT,
            ..guest
        };
        let name = built.variant.guest(kind.name);
        let log = format!("test-{}-{policy}", name.replace('/', "-"));
        let found = match policy {
            BOGUS => bogus(project, &guest, &log),
            HANG => hang(project, &guest, &log),
            _ => {
                let kexecs = policy == policy::HANDOVER && built.variant.kexecs(kind.arch());
                let kexec = if kexecs { "LAZY_TLB_KEXEC=1" } else { "" };
                let ran = guest.run(policy, &format!("{} {kexec}", plan.append), &log);
                ran.map(|(report, mut cases)| {
                    self.ended.fetch_add(ended(&report), Ordering::Relaxed);
                    if firmware.is_some() {
                        cases.push(Case::of("EFI is called", efi_called(&report.text)));
                    }
                    if kexecs {
                        cases.push(Case::of(
                            "another kernel comes up by kexec",
                            kexeced(&report.text),
                        ));
                    }
                    cases
                })
            }
        };
        let cases = found.unwrap_or_else(|error| vec![Case::failed("boot", format!("{error:#}"))]);
        let within = |case: Case| case.within(policy).within(&name);
        Ok(cases.into_iter().map(within).collect())
    }
}

/// What there is to say of a guest whose kernel there is not: it is skipped where this machine has
/// no rustc for it or it cannot be, and has failed otherwise.
fn not_built(stage: &str, said: &str, impossible: &Option<anyhow::Error>) -> Case {
    match impossible {
        Some(error) => Case {
            detail: format!("{error:#}"),
            ..Case::skipped(format!("{stage}/kernel"))
        },
        None => Case::failed(format!("{stage}/kernel"), said),
    }
}

/// xtask's own tests, by cargo.
fn own_tests(project: &Project) -> Result<Vec<Case>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(&project.repo)
        .args(["test", "-p", "xtask", "-p", "lines", "--color", "never"]);
    let log = project.cache.dir("log")?.join("cargo-test.log");
    let mut lines = Vec::new();
    let remedy = "run `cargo test` to see it alone";
    let ran = sh::logged(&cargo, &log, Exit::Failed, remedy, |line| {
        lines.push(line.to_owned())
    });
    let mut cases: Vec<Case> = lines.iter().filter_map(|line| cargo_case(line)).collect();
    if let Err(error) = ran {
        // Says what the failing tests printed, and covers a crate that does not compile.
        cases.push(Case::failed("xtask/cargo test", format!("{error:#}")));
    }
    Ok(cases)
}

/// `test module::name ... ok`.
fn cargo_case(line: &str) -> Option<Case> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = format!("xtask/{name}");
    Some(match result {
        "ok" => Case::passed(name),
        "FAILED" => Case::failed(name, ""),
        _ => Case::skipped(name),
    })
}

/// The main job's verdict.
fn main_job(project: &Project, built: &Built) -> Result<Vec<Case>> {
    let arch = arch::find("x86_64")?;
    let accel = machine::accelerator(&project.cache, arch, &built.image)?;
    // Whether it works; what it measures is for a kernel that does not check itself.
    let few = "LAZY_TLB_EXITS=250 LAZY_TLB_REPEAT=3";
    let results = run::boot(project, arch, &built.image, &accel, few)?;
    println!("\n{}\n", run::table(&results, &accel));
    let cases = run::verdict(&results);
    Ok(cases.into_iter().map(|case| case.within("run")).collect())
}

/// Which lines move per trip.
fn lines_of(project: &Project, kind: &'static Kind, built: &Built) -> Result<Vec<Case>> {
    let cases = lines::cases(project, kind, &built.out, &built.image)?;
    let stage = Use::Lines(kind).stage(built.variant);
    Ok(cases.into_iter().map(|case| case.within(&stage)).collect())
}

/// Counts of a few seconds, and what must hold for them.
fn small_bench(project: &Project, built: &Built) -> Result<Vec<Case>> {
    let arch = arch::find("x86_64")?;
    let accel = machine::accelerator(&project.cache, arch, &built.image)?;
    ipis::cases(project, arch, &built.image, &accel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::guests::{variants, SECONDS, VARIANTS};
    use crate::results::case::Status;

    #[test]
    fn cargos_lines_become_cases() {
        let status = |line: &str| cargo_case(line).map(|case| case.status);
        assert_eq!(status("test a::b ... ok"), Some(Status::Pass));
        assert_eq!(status("test a::b ... FAILED"), Some(Status::Fail));
        assert_eq!(status("test a::b ... ignored"), Some(Status::Skip));
        assert_eq!(status("test result: ok. 3 passed; 0 failed"), None);
    }

    fn plan<'a>(arch: &str, stages: &'a [String]) -> Plan<'a> {
        plan_of("test", arch, stages)
    }

    fn plan_of<'a>(variant: &str, arch: &str, stages: &'a [String]) -> Plan<'a> {
        Plan {
            guests: arch::kinds(arch).unwrap(),
            variants: variants(variant).unwrap(),
            skip: &[],
            stages,
            policies: &[],
            json: None,
            seconds: SECONDS,
            append: "",
        }
    }

    fn kernels(plan: &Plan<'_>) -> Vec<String> {
        let uses = |kernel: &Kernel| {
            kernel
                .uses
                .iter()
                .map(|use_of| use_of.stage(kernel.variant))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let shown = |k: &Kernel| format!("{}: {}", k.arch.name, uses(k));
        plan.kernels().iter().map(shown).collect()
    }

    #[test]
    fn a_kernel_is_built_once_for_all_that_it_is_for() {
        assert_eq!(
            kernels(&plan("all", &[])),
            [
                "x86_64: run off bench x86_64/refcount x86_64/shootdown x86_64/handover x86_64/lines x86_64/hang \
                 x86_64/bogus",
                "arm64: arm64/refcount arm64/shootdown arm64/handover arm64/lines arm64/hang",
                "s390: s390/refcount s390/shootdown s390/handover s390/lines s390/hang",
                "powerpc: powerpc-radix/refcount powerpc-radix/shootdown powerpc-radix/handover powerpc-radix/lines \
                 powerpc-radix/hang powerpc-hash/refcount powerpc-hash/shootdown powerpc-hash/handover powerpc-hash/lines \
                 powerpc-hash/hang",
            ]
        );
        assert_eq!(
            kernels(&plan("um", &[])),
            ["um: um/refcount um/shootdown um/handover"]
        );
        assert_eq!(
            kernels(&plan("powerpc-hash", &[])),
            [
                "powerpc: powerpc-hash/refcount powerpc-hash/shootdown powerpc-hash/handover powerpc-hash/lines \
                 powerpc-hash/hang"
            ]
        );
        let off = ["off".to_owned()];
        assert_eq!(kernels(&plan("all", &off)), ["x86_64: off"]);
        assert!(kernels(&plan("s390", &off)).is_empty());
    }

    #[test]
    fn another_variant_has_guests_only() {
        assert_eq!(
            kernels(&plan_of("kasan", "x86_64", &[])),
            ["x86_64: kasan/x86_64/refcount kasan/x86_64/shootdown kasan/x86_64/handover"]
        );
        assert_eq!(
            kernels(&plan_of("norust", "powerpc-radix", &[])),
            ["powerpc: norust/powerpc-radix/no-policy"]
        );
        let all = kernels(&plan_of("all", "x86_64", &[]));
        assert_eq!(all.len(), VARIANTS.len());
        assert!(all[0].starts_with("x86_64: run off bench x86_64/refcount"));
        assert!(plan_of("all", "x86_64", &[]).wants("litmus"));
        assert!(!plan_of("kasan", "x86_64", &[]).wants("litmus"));
        let handover = ["handover".to_owned()];
        let plan = Plan {
            policies: &handover,
            ..plan_of("test", "x86_64", &[])
        };
        assert_eq!(kernels(&plan), ["x86_64: run off bench x86_64/handover"]);
        let run = ["run".to_owned()];
        assert!(kernels(&plan_of("kasan", "all", &run)).is_empty());
    }

    #[test]
    fn a_guest_without_a_kernel_failed_or_is_skipped_with_the_reason() {
        let failed = not_built("s390", "make failed; whole log: build.log", &None);
        assert_eq!(
            (failed.name.as_str(), failed.status),
            ("s390/kernel", Status::Fail)
        );
        assert!(failed.detail.contains("build.log"));
        let too_old = Some(anyhow::anyhow!("s390 needs rustc 1.96.0"));
        let skipped = not_built("s390", "", &too_old);
        assert_eq!(skipped.status, Status::Skip);
        assert!(
            skipped.detail.contains("s390 needs rustc"),
            "{}",
            skipped.detail
        );
    }
}
