//! `test`: every stage, each result a case.
//!
//! Kernels build in the background while what needs none of them runs, and a guest boots as soon
//! as its kernel is there. A stage's cases are printed when it ends.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::arch::{self, Arch, Firmware, Kind};
use crate::console::Report;
use crate::failure::{fail, Exit};
use crate::guest::{self, Guest, GuestFile};
use crate::kbuild::Build;
use crate::project::{Project, Workshop};
use crate::report::{Case, Recorder};
use crate::series::Selection;
use crate::{bench, compare, disasm, ktap, litmus, mail, policy, sh, tidy, tree};

/// A stage that needs no kernel.
type HostStage = fn(&Project, &Workshop<'_>) -> Result<Vec<Case>>;

/// The stages that run while the first kernels build, in order.
const HOST_STAGES: [(&str, HostStage); 5] = [
    ("xtask", |project, _| own_tests(project)),
    ("litmus", |project, _| litmus::cases(project)),
    ("tidy", |project, _| tidy::cases(project)),
    ("series", series),
    ("ktap", |_, shop| ktap::self_test(&shop.tree)),
];
/// The stages that need kernels. All but `guests` are x86_64's.
const KERNEL_STAGES: [&str; 4] = [GUESTS, "off", "run", "bench"];
/// The stage that boots test guests.
const GUESTS: &str = "guests";

/// What a guest is booted with that knows no policy.
const NO_POLICY: [&str; 1] = ["no-policy"];
/// The suites that must have run at boot.
const SUITES: [&str; 2] = ["lazy_tlb", "lazy_tlb_policy"];
/// Where other guests have their policy: one that never ends.
const HANG: &str = "hang";
/// Seconds until it is given up.
const HANG_SILENCE: u64 = 20;
/// A policy that no kernel knows.
const BOGUS: &str = "bogus";
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
/// All the selftests, each of which may take minutes under emulation.
const TEST_TIMEOUT: Duration = Duration::from_secs(2400);

/// How test kernels can be built, and how their guests then differ.
pub struct Variant {
    /// The fragment in `configs/variants/`.
    pub name: &'static str,
    /// Where it can be built; everywhere if empty.
    arches: &'static [&'static str],
    /// What its guests are booted with.
    policies: &'static [&'static str],
    /// The suites that must have run at boot.
    suites: &'static [&'static str],
    /// More words for the kernel's command line.
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
    /// What `test` boots unless told otherwise.
    pub const TEST: Variant = Variant {
        name: "test",
        arches: &[],
        policies: &policy::ALL,
        suites: &SUITES,
        append: "",
        patience: 1,
        kexec: false,
        uefi: false,
        realtime: false,
    };

    /// An error where it cannot be built for an architecture.
    fn check(&self, arch: &Arch) -> Result<()> {
        if self.arches.is_empty() || self.arches.contains(&arch.name) {
            return Ok(());
        }
        Err(fail(
            Exit::Usage,
            format!("{} is not for {}", self.name, arch.name),
            format!("it is for {}", self.arches.join(", ")),
        ))
    }

    /// Whether a guest goes on to another kernel.
    fn kexecs(&self, arch: &Arch) -> bool {
        self.kexec && arch.name == "x86_64"
    }

    /// What starts a guest, where it is not the emulator's own firmware.
    fn firmware(&self, arch: &'static Arch, policy: &str) -> Result<Option<&'static Firmware>> {
        // With the others, suspend to RAM and kexec are without it.
        let firmware = match &arch.uefi {
            Some(firmware) if self.uefi && policy == policy::DEFAULT => firmware,
            _ => return Ok(None),
        };
        match Path::new(firmware.file).exists() {
            true => Ok(Some(firmware)),
            false => Err(fail(
                Exit::Environment,
                format!("no {}, which starts this guest", firmware.file),
                format!("install {}", firmware.package),
            )),
        }
    }

    /// What a guest's cases, log and stage are named by; the usual variant is not worth a word.
    fn guest(&self, guest: &str) -> String {
        match self.name {
            name if name == Variant::TEST.name => guest.into(),
            name => format!("{name}/{guest}"),
        }
    }
}

/// The variants that a name means.
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
            Use::Run => "run".into(),
            Use::Off => "off".into(),
            Use::Bench => "bench".into(),
        }
    }
}

/// A kernel that was built and what its guests boot with.
#[derive(Clone)]
pub struct Built {
    variant: &'static Variant,
    image: PathBuf,
    /// Of the test guests.
    initramfs: PathBuf,
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
                Use::Run => main_job(self.project, &built),
                Use::Off => disasm::option_off(self.shop, arch::find("x86_64")?),
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

/// What is mailed applies with `git am` and gives the tree that is built; `apply` can be undone.
fn series(project: &Project, shop: &Workshop<'_>) -> Result<Vec<Case>> {
    let cache = &project.cache;
    let dir = tempfile::tempdir_in(cache.dir("tree")?)?;
    let threads = mail::export(cache, &shop.base, &shop.series, &dir.path().join("mails"))?;
    let patches = mail::patches(&threads);
    let mut cases = vec![match patches.len() {
        0 => Case::failed("series/export", "the series has no patch"),
        _ => Case::passed("series/export"),
    }];

    for thread in &threads {
        let name = thread.dir.file_name().unwrap_or_default().to_string_lossy();
        cases.push(Case::of(
            format!("series/recipients of {name}"),
            mail::recipients(&shop.base, thread).map(|_| ()),
        ));
    }

    let whole = dir.path().join("whole");
    tree::export(
        cache,
        &shop.base,
        &shop.series,
        &Selection::default(),
        &whole,
        tree::Checkout::Nothing,
    )?;
    let pristine = dir.path().join("pristine");
    let none = Selection {
        upto: Some(0),
        skip: Vec::new(),
    };
    tree::export(
        cache,
        &shop.base,
        &shop.series,
        &none,
        &pristine,
        tree::Checkout::Touched,
    )?;
    cases.push(Case::of("series/git am gives the same tree", {
        // As a person would, who has them all in a folder.
        let mails: Vec<&PathBuf> = threads
            .iter()
            .flat_map(|thread| thread.cover.iter().chain(&thread.patches))
            .collect();
        git_am(&pristine, &mails, &dir.path().join("am.log")).and_then(|()| {
            let hash = |dir: &Path| sh::capture(sh::git(dir).args(["rev-parse", "HEAD^{tree}"]));
            let (mailed, built) = (hash(&pristine)?, hash(&whole)?);
            anyhow::ensure!(
                mailed == built,
                "git am gives {mailed}, `tree` gives {built}"
            );
            Ok(())
        })
    }));

    let scratch = dir.path().join("scratch");
    tree::touched(&shop.base.dir, &shop.series, &scratch)?;
    let before = tree::snapshot(&scratch)?;
    cases.push(Case::of("series/apply", {
        tree::apply(&shop.series, &scratch, false).and_then(|()| {
            anyhow::ensure!(tree::snapshot(&scratch)? != before, "apply changed nothing");
            Ok(())
        })
    }));
    cases.push(Case::of(
        "series/apply --reverse leaves the tree as it was",
        {
            tree::apply(&shop.series, &scratch, true).and_then(|()| {
                anyhow::ensure!(
                    tree::snapshot(&scratch)? == before,
                    "something is left over"
                );
                Ok(())
            })
        },
    ));
    Ok(cases)
}

fn git_am(dir: &Path, mails: &[&PathBuf], log: &Path) -> Result<()> {
    let mut git = sh::git(dir);
    git.env("GIT_COMMITTER_NAME", "xtask")
        .env("GIT_COMMITTER_EMAIL", "xtask@localhost");
    // Cover letters have no patch.
    git.args(["am", "--quiet", "--empty=drop"]).args(mails);
    sh::logged(
        &git,
        log,
        Exit::Patch,
        "export it and look at the mail named in the log",
        |_| (),
    )
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
            initramfs,
        })
    }
}

/// A test guest, which may be booted more than once.
pub struct TestGuest<'a> {
    project: &'a Project,
    tree: &'a Path,
    kind: &'static Kind,
    built: &'a Built,
    accel: String,
    /// How long a test goes on that could do so for ever.
    seconds: u64,
    /// Seconds that a program has.
    program: u64,
    /// What starts it, if not the emulator's own firmware.
    firmware: Option<&'static Firmware>,
    /// Whether KUnit runs, which goes through all policies by itself.
    kunit: bool,
}

impl<'a> TestGuest<'a> {
    /// A guest of that kind.
    pub fn new(
        project: &'a Project,
        shop: &'a Workshop<'_>,
        kind: &'static Kind,
        built: &'a Built,
    ) -> Result<Self> {
        Ok(TestGuest {
            project,
            tree: &shop.tree,
            kind,
            built,
            accel: guest::accelerator(&project.cache, kind.arch(), &built.image)?,
            seconds: SECONDS,
            program: PROGRAM_TIMEOUT * u64::from(built.variant.patience),
            firmware: None,
            kunit: true,
        })
    }

    /// The same with so many seconds for a program, where a guest that hangs is no surprise.
    pub fn impatient(self, program: u64) -> Self {
        TestGuest { program, ..self }
    }

    /// Runs every test under a policy; `append` has more words for the first process.
    pub fn run(&self, policy: &str, append: &str, log: &str) -> Result<(Report, Vec<Case>)> {
        // The kernel's own suites of Rust come along, but Linux 7.3.4 does not pass them with PREEMPT_RT.
        let kunit = match (self.kunit, self.built.variant.realtime) {
            (false, _) => guest::NO_KUNIT,
            (true, true) => "kunit.filter_glob=lazy_tlb*",
            (true, false) => "",
        };
        let TestGuest {
            program, seconds, ..
        } = self;
        let append =
            format!("{kunit} LAZY_TLB_TEST_TIMEOUT={program} LAZY_TLB_SECONDS={seconds} {append}");
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
        cases.push(Case::of("boot", report.check_end()));
        cases.push(Case::of("cpus", report.check_cpus()));
        cases.push(Case::of("no warnings", report.check_warnings()));
        cases.extend(left_over(&report));
        if let Some(mmu) = self.kind.mmu {
            cases.push(Case::of("mmu", report.check_mmu(mmu)));
        }
        Ok((report, cases))
    }

    /// Boots it; the console goes to a log of that name.
    fn boot(&self, policy: &str, append: &str, initramfs: &Path, log: &str) -> Result<Report> {
        let arch = self.kind.arch();
        let variant = self.built.variant;
        // A program is silent while it runs, and has twice as long as it is to go on.
        let longer = Duration::from_secs(self.seconds);
        let known = !NO_POLICY.contains(&policy);
        let policy = known.then(|| format!("lazy_tlb={policy}"));
        let words = [policy.as_deref().unwrap_or_default(), self.kind.append];
        let append = [&words[..], &[append, variant.append]].concat().join(" ");
        Guest {
            append: &append,
            timeout: TEST_TIMEOUT * variant.patience + 10 * longer,
            silence: Duration::from_secs(self.program + SILENCE_MORE) + 3 * longer,
            firmware: self.firmware,
            ..Guest::of(
                arch,
                self.accel.clone(),
                &self.built.image,
                initramfs,
                self.project.cache.path(format!("log/{log}.log")),
            )
        }
        .boot()
    }
}

/// What the kernel does about a policy that it does not know, and about more than one.
fn bogus(project: &Project, guest: &TestGuest<'_>, log: &str) -> Result<Vec<Case>> {
    let append = format!(
        "lazy_tlb=shootdown lazy_tlb=handover {} LAZY_TLB_EXITS=10 LAZY_TLB_REPEAT=1",
        guest::NO_KUNIT
    );
    // The workload's first process reports the policy; a few exits are enough for that.
    let initramfs = project.guest_initramfs(guest.kind.arch(), "run-init")?;
    let report = guest.boot(BOGUS, &append, &initramfs, log)?;
    let policy = report.values("lazy-tlb-run").remove("policy");
    let last = match policy.as_deref() {
        Some(policy::HANDOVER) => Ok(()),
        other => Err(anyhow::anyhow!("policy {other:?}")),
    };
    let says = |words: &[&str]| match complains(&report.text, words) {
        true => Ok(()),
        false => Err(anyhow::anyhow!("no line names {}", words.join(" and "))),
    };
    Ok(vec![
        Case::of("boot", report.check()),
        Case::of(
            "the default is kept, and the console says so",
            says(&[BOGUS, "keeping shootdown"]),
        ),
        Case::of("the last of two counts", last),
    ])
}

/// Whether a guest that hangs is found to, and tells where.
fn hang(project: &Project, guest: &TestGuest<'_>, log: &str) -> Result<Vec<Case>> {
    let arch = guest.kind.arch();
    let initramfs = project.guest_initramfs(arch, "alive-init")?;
    let append = format!("{} {} LAZY_TLB_WAIT=1", guest.kind.append, guest::NO_KUNIT);
    let report = Guest {
        append: &append,
        timeout: TEST_TIMEOUT,
        silence: Duration::from_secs(HANG_SILENCE),
        ..Guest::of(
            arch,
            guest.accel.clone(),
            &guest.built.image,
            &initramfs,
            project.cache.path(format!("log/{log}.log")),
        )
    }
    .boot()?;
    let found = match report.check() {
        Err(error) if error.to_string().contains("the guest hangs") => Ok(()),
        other => Err(anyhow::anyhow!("it is judged {other:?}")),
    };
    let shown = report.backtraces().unwrap_or_default();
    // Of each CPU there is at least a line; on x86_64, one that is idle has no more.
    let cpus = (0..report.asked)
        .filter(|cpu| names_cpu(shown, *cpu))
        .count();
    let told = match cpus == report.asked {
        true => Ok(()),
        false => Err(anyhow::anyhow!(
            "{cpus} CPUs are in its backtraces: {shown}"
        )),
    };
    Ok(vec![
        Case::of("a hang is found", found),
        Case::of("it says where its CPUs are", told),
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

/// How many mms have ended in a guest, as far as it knows.
fn ended(report: &Report) -> u64 {
    let values = report.values("lazy-tlb-guest");
    let drops = values.get("final_drops");
    drops.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// What is made of pages that the kernel's own mappings need, too.
const PAGE_TABLES: &str = "page_tables";
/// What has become less if some is lost, unlike the others.
const MEMORY: &str = "memory";

/// Whether what mms are made of has become more, where the guest can tell.
fn left_over(report: &Report) -> Vec<Case> {
    let values = report.values("lazy-tlb-guest");
    let case = |(key, name): &(&str, &str)| {
        let (before, after) = values.get(*key)?.split_once("..")?;
        // Negative where it is not known.
        let (before, after): (u64, u64) = (before.parse().ok()?, after.parse().ok()?);
        let what = format!("{before} at first, {after} in the end");
        let enough = match *key {
            MEMORY => before <= after + MEMORY_SLACK,
            PAGE_TABLES => after <= before + PAGE_TABLE_SLACK,
            _ => after <= before + SLACK,
        };
        Some(match enough {
            true => Case {
                detail: what,
                ..Case::passed(*name)
            },
            false => Case::failed(*name, what),
        })
    };
    let kinds = [
        ("mms", "no mm is left over"),
        (PAGE_TABLES, "no page table is left over"),
        (MEMORY, "no memory is lost"),
    ];
    let cases = kinds
        .iter()
        .map(|kind| case(kind).unwrap_or(Case::skipped(kind.1)));
    // So that a file of results has it.
    let ended = format!("{} mms ended\n", ended(report));
    cases
        .map(|case| Case {
            detail: match case.name == kinds[0].1 {
                true => ended.clone() + &case.detail,
                false => case.detail,
            },
            ..case
        })
        .collect()
}

/// What a kernel says first.
const KERNEL: &str = "Linux version ";
/// What a guest says when its tests are over.
const TESTED: &str = "lazy-tlb-guest: mms=";

/// Whether another kernel has come up after the tests.
fn kexeced(console: &str) -> Result<()> {
    let after = console.split_once(TESTED).map_or("", |(_, after)| after);
    anyhow::ensure!(
        after.contains(KERNEL) && after.contains("lazy-tlb-guest: cpus="),
        "no other kernel has started a first process"
    );
    Ok(())
}

/// Whether the guest was started by UEFI, and torture has called that.
fn efi_called(console: &str) -> Result<()> {
    anyhow::ensure!(console.contains("efi: EFI v"), "UEFI did not start it");
    anyhow::ensure!(
        !console.contains("left out: efi:"),
        "torture found nothing to call it with"
    );
    Ok(())
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
    let init = project.guest_program(build.arch, "test-init")?;
    let mut files = vec![GuestFile::program("init", &init)?];
    for program in shop.selftests(build)? {
        let name = program
            .file_name()
            .context("a program has a name")?
            .to_string_lossy();
        let file = GuestFile::program(format!("tests/{name}"), &program)?;
        guest::check_init(&file.bytes, &program, build.arch)?;
        files.push(file);
    }
    if files.len() == 1 {
        return Err(fail(
            Exit::NoTests,
            "the selftests' Makefile built no program",
            "look at TEST_GEN_PROGS in tools/testing/selftests/lazy_tlb/Makefile",
        ));
    }
    if let Some(kernel) = kernel {
        let alive = project.guest_initramfs(build.arch, "alive-init")?;
        files.push(GuestFile::program("kexec/kernel", kernel)?);
        files.push(GuestFile::program("kexec/initramfs", &alive)?);
    }
    // Beside the kernel: another variant's may be made at the same time.
    let initramfs = build.out.join("test-init.cpio");
    guest::write_initramfs(&initramfs, &files)?;
    Ok(initramfs)
}

/// The main job's verdict.
fn main_job(project: &Project, built: &Built) -> Result<Vec<Case>> {
    let arch = arch::find("x86_64")?;
    let accel = guest::accelerator(&project.cache, arch, &built.image)?;
    // Whether it works; what it measures is for a kernel that does not check itself.
    let few = "LAZY_TLB_EXITS=250 LAZY_TLB_REPEAT=3";
    let results = compare::boot(project, arch, &built.image, &accel, few)?;
    println!("\n{}\n", compare::table(&results, &accel));
    let cases = compare::verdict(&results);
    Ok(cases.into_iter().map(|case| case.within("run")).collect())
}

/// Counts of a few seconds, and what must hold for them.
fn small_bench(project: &Project, built: &Built) -> Result<Vec<Case>> {
    let arch = arch::find("x86_64")?;
    let accel = guest::accelerator(&project.cache, arch, &built.image)?;
    bench::cases(project, arch, &built.image, &accel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Status;

    #[test]
    fn cargos_lines_become_cases() {
        let status = |line: &str| cargo_case(line).map(|case| case.status);
        assert_eq!(status("test a::b ... ok"), Some(Status::Pass));
        assert_eq!(status("test a::b ... FAILED"), Some(Status::Fail));
        assert_eq!(status("test a::b ... ignored"), Some(Status::Skip));
        assert_eq!(status("test result: ok. 3 passed; 0 failed"), None);
    }

    #[test]
    fn what_is_left_over_is_found() {
        let found = |mms: &str, tables: &str, memory: &str| {
            let text = format!(
                "lazy-tlb-guest: final_drops=700\nlazy-tlb-guest: mms={mms}\n\
                 lazy-tlb-guest: page_tables={tables}\nlazy-tlb-guest: memory={memory}\n"
            );
            let report = Report::new(text, crate::console::End::Exited, 4, Path::new("gone"));
            assert_eq!(ended(&report), 700);
            let cases = left_over(&report);
            assert!(cases[0].detail.starts_with("700 mms ended\n"));
            cases.iter().map(|case| case.status).collect::<Vec<_>>()
        };
        use crate::report::Status::{Fail, Pass, Skip};
        let all = "2000000..1900000";
        assert_eq!(found("2..2", "30..286", all), [Pass, Pass, Pass]);
        assert_eq!(found("2..67", "30..287", all), [Fail, Fail, Pass]);
        assert_eq!(found("-1..-1", "94..30", all), [Skip, Pass, Pass]);
        assert_eq!(
            found("2..2", "30..30", "2000000..1800000"),
            [Pass, Pass, Fail]
        );
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
                "x86_64: run off bench x86_64/refcount x86_64/shootdown x86_64/handover x86_64/hang \
                 x86_64/bogus",
                "arm64: arm64/refcount arm64/shootdown arm64/handover arm64/hang",
                "s390: s390/refcount s390/shootdown s390/handover s390/hang",
                "powerpc: powerpc-radix/refcount powerpc-radix/shootdown powerpc-radix/handover \
                 powerpc-radix/hang powerpc-hash/refcount powerpc-hash/shootdown powerpc-hash/handover \
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
                "powerpc: powerpc-hash/refcount powerpc-hash/shootdown powerpc-hash/handover \
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
    fn every_variant_is_a_fragment_and_an_unknown_one_is_named() {
        let known = crate::kbuild::variants(&crate::project::repository()).unwrap();
        for variant in &VARIANTS {
            assert!(known.iter().any(|name| name == variant.name));
            assert!(variant.check(arch::find("x86_64").unwrap()).is_ok());
        }
        let s390 = arch::find("s390").unwrap();
        let said = variants("rt").unwrap()[0].check(s390).unwrap_err();
        assert!(said.to_string().contains("rt is not for s390"), "{said}");
        let (exit, error) = crate::failure::classify(variants("none").err().unwrap());
        assert_eq!(exit, Exit::Usage);
        assert!(error.to_string().contains("kasan"), "{error}");
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

    #[test]
    fn only_a_kernel_after_the_tests_came_by_kexec() {
        let tested = "lazy-tlb-guest: mms=2..2\n";
        let next = "[ 0.0] Linux version 7.3.4\nlazy-tlb-guest: cpus=4\n";
        assert!(kexeced(&format!("{tested}{next}")).is_ok());
        assert!(kexeced(&format!("{next}{tested}")).is_err());
        let (silent, _) = next.split_once('\n').unwrap();
        assert!(kexeced(&format!("{tested}{silent}")).is_err());
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
