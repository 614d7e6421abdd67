//! `test`: every stage, each result a case.
//!
//! Kernels build in the background while what needs none of them runs, and a guest boots as soon
//! as its kernel is there. A stage's cases are printed when it ends.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::bench::ipis;
use crate::bench::run;
use crate::checks::guests::{
    bogus, efi_called, ended, hang, kexeced, variants, Built, TestGuest, Variant, BOGUS, HANG,
    SECONDS,
};
use crate::checks::lines;
use crate::checks::litmus;
use crate::checks::off;
use crate::checks::refused;
use crate::checks::series;
use crate::checks::tidy;
use crate::guest::ktap;
use crate::guest::machine::{Append, Vm};
use crate::host::arch::{self, Arch, Kind};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::host::spent;
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
const KERNEL_STAGES: [&str; 5] = [GUESTS, "refused", "off", "run", "bench"];
const GUESTS: &str = "guests";

/// What has a guest run programs made from a seed, for so many seconds, after those that are kept, for one each.
const FUZZ: &str = "LAZY_TLB_FUZZ=60 LAZY_TLB_FUZZ_EACH=1";

#[derive(Args)]
pub struct Options {
    /// x86_64, arm64, s390, powerpc, riscv, arm, loongarch, um, a guest such as powerpc-hash, or all.
    #[arg(long, default_value = arch::ALL, env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Leave out the patches whose file names start so (to see the tests fail without them).
    #[arg(long, value_name = "N[,N]", value_delimiter = ',')]
    skip: Vec<String>,
    /// How the guests' kernels are built: test, kasan, kcsan, rt, norust, off, or all of them.
    #[arg(long, default_value = Variant::TEST.name, env = "VARIANT", hide_env_values = true)]
    variant: String,
    /// Write every case to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these stages; an unknown one has the known ones listed.
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    stage: Vec<String>,
    /// Only guests with these policies.
    #[arg(long, value_parser = policy::ALL, value_delimiter = ',')]
    policy: Vec<String>,
    /// How long the tests in guests go on that could do so for ever (churn, torture and others).
    #[arg(long, value_name = "S", default_value_t = SECONDS)]
    seconds: u64,
    #[command(flatten)]
    append: Append,
}

/// The same, with names looked up.
struct Plan<'a> {
    options: &'a Options,
    guests: Vec<&'static Kind>,
    variants: Vec<&'static Variant>,
}

impl Plan<'_> {
    /// Guests are of any variant; the other stages are part of the usual one.
    fn wants(&self, stage: &str) -> bool {
        let usual = || self.variants.iter().any(|v| v.name == Variant::TEST.name);
        let stages = &self.options.stage;
        match stages.iter().any(|s| s == stage) {
            false if !stages.is_empty() => false,
            _ => stage == GUESTS || usual(),
        }
    }

    /// The kernels to build, in order, and what each is for.
    ///
    /// One for each variant and architecture: the main job and the benchmark are the same on a
    /// kernel that checks itself, only slower, and a second kernel would take longer than that.
    fn kernels(&self) -> VecDeque<Kernel> {
        let others = [
            ("refused", Use::Refused),
            ("run", Use::Run),
            ("off", Use::Off),
            ("bench", Use::Bench),
        ];
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
                            let asked = &self.options.policy;
                            asked.is_empty() || asked.iter().any(|p| p == *policy)
                        });
                        uses.extend(policies.map(|policy| Use::Guest(kind, policy)));
                        if !usual || !self.options.policy.is_empty() {
                            continue;
                        }
                        // It is the emulator that counts.
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

struct Kernel {
    arch: &'static Arch,
    variant: &'static Variant,
    uses: Vec<Use>,
}

/// What a kernel is for.
#[derive(Clone, Copy)]
enum Use {
    Guest(&'static Kind, &'static str),
    /// The count of lines that move per trip.
    Lines(&'static Kind),
    /// What does not compile against it.
    Refused,
    Run,
    Off,
    Bench,
}

impl Use {
    fn stage(&self, variant: &Variant) -> String {
        match self {
            Use::Guest(kind, policy) => format!("{}/{policy}", variant.guest(kind.name)),
            Use::Lines(kind) => format!("{}/lines", variant.guest(kind.name)),
            Use::Refused => "refused".into(),
            Use::Run => "run".into(),
            Use::Off => "off".into(),
            Use::Bench => "bench".into(),
        }
    }
}

/// A kernel that is there, and what it is for.
type Ready = (Use, Built);

struct Work<'a> {
    project: &'a Project,
    shop: &'a Workshop<'a>,
    plan: &'a Plan<'a>,
    recorder: &'a Mutex<Recorder>,
    /// The mms that ended in guests, as far as they counted.
    ended: AtomicU64,
    kernels: Mutex<VecDeque<Kernel>>,
    ready: Mutex<Receiver<Ready>>,
}

pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let plan = Plan {
        options,
        guests: arch::kinds(&options.arch)?,
        variants: variants(&options.variant)?,
    };
    let known = || {
        let host = HOST_STAGES.iter().map(|(name, _)| *name);
        host.chain(KERNEL_STAGES)
    };
    if let Some(unknown) = options.stage.iter().find(|s| !known().any(|k| k == *s)) {
        return Err(fail(
            Exit::Usage,
            format!("unknown stage {unknown}"),
            format!("use some of: {}", known().collect::<Vec<_>>().join(",")),
        ));
    }
    let mut recorder = Recorder::default();
    let shop = recorder.need("setup", || {
        project.workshop(&options.skip, &arch::of_kinds(&plan.guests))
    });
    let recorder = Mutex::new(recorder);
    if let Some(shop) = &shop {
        let (builder, ready) = mpsc::channel();
        let work = Work {
            project,
            shop,
            plan: &plan,
            recorder: &recorder,
            ended: AtomicU64::new(0),
            kernels: Mutex::new(plan.kernels()),
            ready: Mutex::new(ready),
        };
        std::thread::scope(|scope| {
            // Two build; one of them goes on with guests, beside this thread.
            let (work, other) = (&work, builder.clone());
            scope.spawn(move || {
                work.build_all(other);
                work.use_all();
            });
            scope.spawn(move || work.build_all(builder));
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
    if let Some(path) = &options.json {
        recorder.write_json(path)?;
    }
    println!("\n{}", spent::shown());
    Ok(recorder.finish())
}

impl Work<'_> {
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

    fn build_all(&self, ready: Sender<Ready>) {
        loop {
            // In a statement of its own, or the others would wait for the build.
            let next = self.kernels.lock().expect("no holder panics").pop_front();
            let Some(kernel) = next else { return };
            let started = Instant::now();
            let Kernel { arch, variant, .. } = kernel;
            let run = std::panic::AssertUnwindSafe(|| {
                variant.check(arch)?;
                Built::build(self.project, self.shop, arch, variant)
            });
            let built = std::panic::catch_unwind(run)
                .unwrap_or_else(|_| anyhow::bail!("xtask panicked; its message is above"));
            // The others go on; each thing that this kernel was for is named.
            let impossible = variant.check(arch);
            let impossible = impossible.and_then(|()| self.shop.tools.check_rustc(arch));
            let impossible = impossible.err();
            for use_of in kernel.uses {
                match &built {
                    Ok(built) => ready.send((use_of, built.clone())).expect("it is received"),
                    Err(error) => {
                        let stage = use_of.stage(variant);
                        let case = not_built(&stage, &format!("{error:#}"), &impossible);
                        self.ended(&stage, started, Ok(vec![case]));
                    }
                }
            }
        }
    }

    /// Boots and compares what is ready until nothing can become ready any more.
    fn use_all(&self) {
        loop {
            let next = self.ready.lock().expect("no holder panics").recv();
            let Ok((use_of, built)) = next else { return };
            self.stage(&use_of.stage(built.variant), || match &use_of {
                Use::Guest(kind, policy) => self.guest(kind, &built, policy),
                Use::Lines(kind) => lines_of(self.project, kind, &built),
                Use::Refused => refused_of(self.project, &built),
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
        let firmware = built.variant.firmware(project, kind.arch(), policy)?;
        let guest = TestGuest {
            seconds: plan.options.seconds,
            firmware,
            kunit: policy == policy::DEFAULT,
            ..guest
        };
        let name = built.variant.guest(kind.name);
        let log = format!("test-{}-{policy}", name.replace('/', "-"));
        let found = match policy {
            BOGUS => bogus(&guest, &log),
            HANG => hang(&guest, &log),
            _ => {
                let kexecs = policy == policy::HANDOVER && built.variant.kexecs(kind.arch());
                let kexec = if kexecs { "LAZY_TLB_KEXEC=1" } else { "" };
                // One guest is enough: what it does is random, and so is the policy then.
                let fuzz = match kind.name == "x86_64" && policy == policy::DEFAULT {
                    true => FUZZ,
                    false => "",
                };
                let ran = guest.run(
                    policy,
                    &format!("{} {kexec} {fuzz}", plan.options.append.words),
                    &log,
                );
                ran.map(|(report, mut cases)| {
                    self.ended.fetch_add(ended(&report), Ordering::Relaxed);
                    if firmware.is_some() {
                        cases.push(efi_called(&report.text));
                    }
                    if kexecs {
                        cases.push(kexeced(&report.text));
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

fn main_job(project: &Project, built: &Built) -> Result<Vec<Case>> {
    let arch = arch::find("x86_64")?;
    let vm = Vm::new(project, arch, &built.image)?;
    // Whether it works; what it measures is for a kernel that does not check itself.
    let few = "LAZY_TLB_EXITS=250 LAZY_TLB_REPEAT=3";
    let results = run::boot(&vm, few)?;
    println!("\n{}\n", run::table(&results, &vm));
    let cases = run::verdict(&results);
    Ok(cases.into_iter().map(|case| case.within("run")).collect())
}

fn refused_of(project: &Project, built: &Built) -> Result<Vec<Case>> {
    let cases = refused::cases(&project.repo, &built.out)?;
    Ok(cases
        .into_iter()
        .map(|case| case.within("refused"))
        .collect())
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
    ipis::cases(&Vm::new(project, arch, &built.image)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::guests::VARIANTS;
    use crate::results::case::Status;

    #[test]
    fn cargos_lines_become_cases() {
        let status = |line: &str| cargo_case(line).map(|case| case.status);
        assert_eq!(status("test a::b ... ok"), Some(Status::Pass));
        assert_eq!(status("test a::b ... FAILED"), Some(Status::Fail));
        assert_eq!(status("test a::b ... ignored"), Some(Status::Skip));
        assert_eq!(status("test result: ok. 3 passed; 0 failed"), None);
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    /// What becomes of such a command line.
    fn with_plan<T>(line: &str, of: impl FnOnce(&Plan<'_>) -> T) -> T {
        let Line { options } = clap::Parser::parse_from(line.split(' '));
        of(&Plan {
            options: &options,
            guests: arch::kinds(&options.arch).unwrap(),
            variants: variants(&options.variant).unwrap(),
        })
    }

    fn planned(line: &str) -> Vec<String> {
        with_plan(line, kernels)
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
            planned("test --variant test"),
            [
                "x86_64: refused run off bench x86_64/refcount x86_64/shootdown x86_64/handover x86_64/lines x86_64/hang \
                 x86_64/bogus",
                "arm64: arm64/refcount arm64/shootdown arm64/handover arm64/lines arm64/hang",
                "s390: s390/refcount s390/shootdown s390/handover s390/lines s390/hang",
                "powerpc: powerpc-radix/refcount powerpc-radix/shootdown powerpc-radix/handover powerpc-radix/lines \
                 powerpc-radix/hang powerpc-hash/refcount powerpc-hash/shootdown powerpc-hash/handover powerpc-hash/lines \
                 powerpc-hash/hang",
            ]
        );
        assert_eq!(
            planned("test --arch um"),
            ["um: um/refcount um/shootdown um/handover"]
        );
        assert_eq!(
            planned("test --arch powerpc-hash"),
            [
                "powerpc: powerpc-hash/refcount powerpc-hash/shootdown powerpc-hash/handover powerpc-hash/lines \
                 powerpc-hash/hang"
            ]
        );
        assert_eq!(planned("test --arch all --stage off"), ["x86_64: off"]);
        assert!(planned("test --arch s390 --stage off").is_empty());
    }

    #[test]
    fn another_variant_has_guests_only() {
        assert_eq!(
            planned("test --variant kasan --arch x86_64"),
            ["x86_64: kasan/x86_64/refcount kasan/x86_64/shootdown kasan/x86_64/handover"]
        );
        assert_eq!(
            planned("test --variant norust --arch powerpc-radix"),
            ["powerpc: norust/powerpc-radix/no-policy"]
        );
        let all = planned("test --variant all --arch x86_64");
        assert_eq!(all.len(), VARIANTS.len());
        assert!(all[0].starts_with("x86_64: refused run off bench x86_64/refcount"));
        let wants = |line: &str| with_plan(line, |plan| plan.wants("litmus"));
        assert!(wants("test --variant all --arch x86_64"));
        assert!(!wants("test --variant kasan --arch x86_64"));
        assert_eq!(
            planned("test --variant test --arch x86_64 --policy handover"),
            ["x86_64: refused run off bench x86_64/handover"]
        );
        assert!(planned("test --variant kasan --arch all --stage run").is_empty());
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
