//! `lab`: the series in a person's own kernel, to be measured on a real machine, and what comes back.
//!
//! There, `lab/lazy-tlb-lab.sh` writes down what `perf bench sched lazy-tlb` prints, line by line and
//! as it is; here it becomes JSON beside the other results, and part of the same report.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{ensure, Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::arch::{self, Arch};
use crate::bench::{Counted, COUNTER};
use crate::failure::{fail, Exit};
use crate::kbuild::{self, Build};
use crate::kernelbench;
use crate::policy;
use crate::project::Project;
use crate::results::{Machine, Spread};
use crate::sh;

/// How the names of the files begin.
pub const FILES: &str = "perf-";
/// What runs on the machine, relative to the repository.
const SCRIPT: &str = "lab/lazy-tlb-lab.sh";
/// The same with the selftests, for a job of a fleet.
const JOB: &str = "lab/job.sh";
/// What the script puts in front of its lines.
const PREFIX: &str = "lazy-tlb-lab: ";
/// The form of what the script writes.
const FORM: &str = "1";
/// At the end of the kernel's release, so that it is installed beside another of the same version.
const LOCALVERSION: &str = "LOCALVERSION=-lazy-tlb";
/// Nothing that `perf bench sched` needs, and perf then runs on any machine of the architecture.
const PERF: [&str; 14] = [
    "LDFLAGS=-static",
    "BUILD_BPF_SKEL=0",
    "NO_JEVENTS=1",
    "NO_JVMTI=1",
    "NO_LIBBPF=1",
    "NO_LIBELF=1",
    "NO_LIBNUMA=1",
    "NO_LIBPFM4=1",
    "NO_LIBPYTHON=1",
    "NO_LIBTRACEEVENT=1",
    "NO_RUST=1",
    "NO_SHELLCHECK=1",
    "NO_SLANG=1",
    "WERROR=0",
];

/// What is built, or taken in.
#[derive(Args)]
pub struct Options {
    /// The configuration of the machine's kernel, such as /boot/config-VERSION.
    #[arg(long, value_name = "FILE", required_unless_present = "import")]
    config: Option<PathBuf>,
    /// How the kernel is packaged.
    #[arg(long, value_enum, default_value_t = Format::Deb)]
    format: Format,
    /// Where packages and tools go, and the build; without it, into the cache.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The machine's architecture; without it, this one's.
    #[arg(long, env = "ARCH", hide_env_values = true)]
    arch: Option<String>,
    /// Take in files that lazy-tlb-lab.sh wrote, or logs of consoles with such files in them.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["config", "out"])]
    import: Vec<PathBuf>,
}

/// What the kernel is packaged as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Debian packages.
    Deb,
    /// RPM packages.
    Rpm,
    /// A tarball of /boot and /lib/modules.
    Tar,
    /// Not at all: image and modules stay in the build folder.
    None,
}

impl Format {
    /// kbuild's target, the ending of what it makes, and how to install that.
    fn facts(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Format::Deb => Some(("bindeb-pkg", ".deb", "dpkg -i linux-image-*.deb")),
            Format::Rpm => Some(("binrpm-pkg", ".rpm", "rpm -i kernel-[0-9]*.rpm")),
            Format::Tar => Some(("tarxz-pkg", ".tar.xz", UNPACK)),
            Format::None => None,
        }
    }
}

/// Without the option tar replaces a /lib that is a symbolic link by a folder with nothing but modules.
const UNPACK: &str = "tar -C / --keep-directory-symlink -xf linux-*.tar.xz\n  \
                      (an initramfs and an entry in the boot loader are left to you)";

/// What keeps RUST off, in `depends on` lines of the kernel: symbols that are on, symbols that are
/// off, and the line.
const AGAINST_RUST: [(&[&str], &[&str], &str); 7] = [
    (
        &["MODVERSIONS"],
        &["GENDWARFKSYMS"],
        "!MODVERSIONS || GENDWARFKSYMS (that one needs DEBUG_INFO)",
    ),
    (&["RANDSTRUCT"], &[], "!RANDSTRUCT"),
    (
        &["DEBUG_INFO_BTF"],
        &["PAHOLE_HAS_LANG_EXCLUDE"],
        "!DEBUG_INFO_BTF || (PAHOLE_HAS_LANG_EXCLUDE && !LTO) (install pahole 1.24 or later)",
    ),
    (
        &["DEBUG_INFO_BTF", "LTO"],
        &[],
        "!DEBUG_INFO_BTF || (PAHOLE_HAS_LANG_EXCLUDE && !LTO)",
    ),
    (
        &["CFI"],
        &["HAVE_CFI_ICALL_NORMALIZE_INTEGERS_RUSTC"],
        "!CFI || HAVE_CFI_ICALL_NORMALIZE_INTEGERS_RUSTC",
    ),
    (
        &["KASAN_SW_TAGS"],
        &[],
        "!KASAN_SW_TAGS || RUSTC_VERSION >= 109600",
    ),
    (&["EXPOLINE"], &[], "HAVE_RUST, which s390 has if !EXPOLINE"),
];

/// Why the lines of configs/lab.config were not taken, and what to do.
fn check_config(config: &str, refused: &[String]) -> Result<()> {
    if refused.is_empty() {
        return Ok(());
    }
    let values = kbuild::values(config);
    let on = |name: &&str| values.get(*name) == Some(&"y");
    let mut remedies = Vec::new();
    if !on(&"RUST") {
        for (set, unset, line) in AGAINST_RUST {
            if set.iter().all(on) && !unset.iter().any(on) {
                remedies.push(format!("RUST depends on {line}"));
            }
        }
        if remedies.is_empty() {
            let line = "RUST depends on HAVE_RUST (64-bit, little-endian) and RUST_IS_AVAILABLE \
                        (`make rustavailable` in the tree says what is missing)";
            remedies.push(line.into());
        }
    } else if !on(&"MMU_LAZY_TLB_SHOOTDOWN") {
        remedies.push(
            "MMU_LAZY_TLB_SHOOTDOWN depends on ARCH_SUPPORTS_MMU_LAZY_TLB_SHOOTDOWN (x86_64, \
             arm64, s390, powerpc book3s64)"
                .into(),
        );
    } else if !on(&"MODULES") {
        remedies.push("MODULES=y, for the kernel's own benchmark is a module".into());
    } else {
        remedies.push("see their `depends on` lines, in arch/Kconfig and lib/Kconfig.debug".into());
    }
    Err(fail(
        Exit::Build,
        format!(
            "kconfig did not take {} of the lines in configs/lab.config:\n  {}",
            refused.len(),
            refused.join("\n  ")
        ),
        format!(
            "change your configuration: {}",
            remedies.join("\n          and: ")
        ),
    ))
}

/// A person's configuration; a compressed one, or another file, is refused.
fn read_config(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| {
        let what = format!("--config {}: {error}", path.display());
        fail(
            Exit::Usage,
            what,
            "name the configuration of the machine's kernel",
        )
    })?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    if kbuild::values(&text).is_empty() {
        return Err(fail(
            Exit::Usage,
            format!("{} is no kernel configuration", path.display()),
            "take /boot/config-VERSION, or what `zcat /proc/config.gz` prints",
        ));
    }
    Ok(text)
}

fn arch_of(name: Option<&str>) -> Result<&'static Arch> {
    let own = |arch: &&Arch| arch.machine_name == std::env::consts::ARCH && !arch.is_program();
    match name.filter(|name| !name.is_empty()) {
        Some(name) => arch::find(name),
        None => arch::ARCHES.iter().find(own).ok_or_else(|| {
            let what = format!("the series is not for {}", std::env::consts::ARCH);
            fail(Exit::Usage, what, "name another with --arch")
        }),
    }
}

/// `lab` itself.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    match &options.config {
        Some(config) => build(project, options, config),
        None => import(project, &options.import),
    }
}

fn build(project: &Project, options: &Options, config: &Path) -> Result<()> {
    let arch = arch_of(options.arch.as_deref())?;
    // Checked before anything that takes minutes.
    let config = read_config(config)?;
    let shop = project.workshop(&[], &[arch])?;
    let out = match &options.out {
        Some(out) => std::path::absolute(out)?,
        None => (project.cache).path(format!("lab/{}-{}", arch.name, shop.base.id)),
    };
    let build = shop.build_own(arch, out.join("build"))?;
    let (config, refused) =
        build.configure_own(&config, &project.repo.join("configs/lab.config"))?;
    check_config(&config, &refused)?;

    let tools = out.join("lab");
    fs::create_dir_all(tools.join("selftests"))
        .with_context(|| format!("creating {}", tools.display()))?;
    let copy = |from: &Path, to: PathBuf| {
        fs::copy(from, &to).with_context(|| format!("writing {}", to.display()))
    };
    for script in [SCRIPT, JOB] {
        copy(&project.repo.join(script), out.join(script))?;
    }
    copy(&perf(&shop.tree, arch, &out)?, tools.join("perf"))?;
    for program in shop.selftests(&build)? {
        let name = program.file_name().context("a program has a name")?;
        copy(&program, tools.join("selftests").join(name))?;
    }
    let packages = package(&build, &out, options.format)?;
    println!("\n{}", instructions(&out, &packages, options.format));
    Ok(())
}

/// Builds perf, with as little as it can do with, and returns where it is.
pub fn perf(tree: &Path, arch: &Arch, out: &Path) -> Result<PathBuf> {
    let dir = out.join("perf-build");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut make = Command::new("make");
    make.arg("-C").arg(tree.join("tools/perf"));
    make.arg(sh::assignment("O", &dir));
    make.arg(format!("ARCH={}", arch.name));
    let cross = arch.gcc.strip_suffix("gcc").unwrap_or_default();
    if !cross.is_empty() {
        make.arg(format!("CROSS_COMPILE={cross}"));
    }
    make.args(PERF);
    // Nothing else: perf's shared objects cannot be linked like this.
    make.arg(dir.join("perf"));
    for name in kbuild::FOREIGN {
        make.env_remove(name);
    }
    let remedy = "install what the log asks for";
    let log = dir.join("build.log");
    sh::logged(&make, &log, Exit::Build, remedy, |_| ())?;
    Ok(dir.join("perf"))
}

/// Builds the kernel and returns its packages, or its image where there are to be none.
fn package(build: &Build<'_>, out: &Path, format: Format) -> Result<Vec<PathBuf>> {
    let Some((target, ending, _)) = format.facts() else {
        let image = Path::new(build.arch.image).file_name().unwrap_or_default();
        build.targets(&[&image.to_string_lossy(), "modules", LOCALVERSION])?;
        return Ok(vec![build.out.join(build.arch.image)]);
    };
    let started = SystemTime::now();
    build.targets(&[target, LOCALVERSION])?;
    // Debian's are put beside the build folder, the others into it.
    let files = WalkDir::new(out).sort_by_file_name().into_iter().flatten();
    let mut packages = Vec::new();
    for file in files.map(walkdir::DirEntry::into_path) {
        if file.to_string_lossy().ends_with(ending) && file.metadata()?.modified()? >= started {
            packages.push(file);
        }
    }
    ensure!(!packages.is_empty(), "{target} made no *{ending}");
    Ok(packages)
}

/// What to do on the machine.
fn instructions(out: &Path, packages: &[PathBuf], format: Format) -> String {
    let list = |paths: &[PathBuf]| -> String {
        let line = |path: &PathBuf| format!("  {}\n", path.display());
        paths.iter().map(line).collect()
    };
    let install = format
        .facts()
        .map_or("install them as you do", |(_, _, install)| install);
    let boots = policy::ALL.map(|policy| format!("  lazy_tlb={policy}\n"));
    format!(
        "The kernel, with all policies in one build:\n{}\
         perf, the selftests and the script:\n{}\n\
         1. Take all that to the machine and install the kernel, as root:\n  {install}\n\
         2. Boot it three times, each time with one of these on its command line:\n{}\
         (in GRUB press e on its entry and put it at the end of the line that begins with linux; or \
         kexec -l IMAGE --initrd=INITRD --command-line=\"... lazy_tlb=handover\" && systemctl kexec)\n\
         3. On each boot, as root, while the machine has nothing else to do:\n  \
         sh lab/lazy-tlb-lab.sh\n\
         4. Bring the lazy-tlb-*.txt back here:\n  \
         cargo xtask lab --import lazy-tlb-*.txt && cargo xtask report\n",
        list(packages),
        list(&[out.join("lab")]),
        boots.concat(),
    )
}

/// What was measured on one boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    #[serde(flatten)]
    pub machine: Machine,
    pub policy: String,
    /// `uname -v`.
    pub version: String,
    /// The kernel's command line, without what names disks and addresses, and without `lazy_tlb=`.
    pub cmdline: String,
    /// Seconds since 1970.
    pub started: u64,
    /// The state of the machine, by file.
    pub facts: BTreeMap<String, String>,
    /// Where the machine was a guest of `bench perf`: what the report calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    pub runs: Vec<Run>,
    /// What the kernel's own benchmark printed, each time that it was loaded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<kernelbench::Sample>,
    /// What it said besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_said: Vec<String>,
}

/// A guest that stood in for a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Guest {
    /// How to measure it again, all policies.
    pub command: String,
    pub arch: String,
    /// How its kernel was built.
    #[serde(default = "usual")]
    pub variant: String,
    /// More words of its command line.
    pub append: String,
    pub cpus: usize,
    /// Whether the times are an emulator's.
    pub times_emulated: bool,
    /// What it ran on.
    pub host: String,
}

/// The variant of results that do not name one.
fn usual() -> String {
    "default".into()
}

/// One call of perf.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// From 1.
    pub round: u32,
    /// `threads`, `futex`, `process`, `flush` or `exit`.
    pub mode: String,
    pub command: String,
    /// How it ended; nothing was measured unless it is 0. -1 if that is not known.
    pub status: i32,
    pub samples: Vec<Sample>,
    /// What each CPU did, by names that perf gives.
    pub cpus: Vec<BTreeMap<String, f64>>,
    pub counters: BTreeMap<String, Counted>,
    /// What perf said besides.
    pub said: Vec<String>,
}

/// One repeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Where perf measures two things in turn: `lazy` or `alone`.
    pub case: Option<String>,
    pub values: BTreeMap<String, f64>,
}

/// `NAME VALUE NAME VALUE`, as perf prints with `-f simple`.
fn pairs(words: &[&str]) -> Option<BTreeMap<String, f64>> {
    let pair = |pair: &[&str]| match pair {
        [name, value] => Some(((*name).to_owned(), value.parse().ok()?)),
        _ => None,
    };
    words.chunks(2).map(pair).collect()
}

impl Run {
    fn parse(rest: &str) -> Result<Self> {
        let mut words = rest.splitn(3, ' ');
        let mut word = || {
            words
                .next()
                .context("a run without a round, mode or command")
        };
        Ok(Run {
            round: word()?.parse().context("a round is a number")?,
            mode: word()?.into(),
            command: word()?.into(),
            status: -1,
            ..Run::default()
        })
    }

    /// A line of perf's.
    fn take(&mut self, line: &str, policy: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let known = match words.as_slice() {
            ["policy", in_force] => {
                ensure!(
                    *in_force == policy,
                    "perf saw the policy {in_force}, and the script {policy}"
                );
                true
            }
            // The script reads the counters itself.
            ["vmstat", ..] | [] => true,
            ["repeat", _, case @ ("lazy" | "alone"), rest @ ..] => self.sample(Some(case), rest),
            ["repeat", _, rest @ ..] => self.sample(None, rest),
            cpu @ ["cpu", ..] => pairs(cpu).map(|cpu| self.cpus.push(cpu)).is_some(),
            _ => false,
        };
        if !known {
            self.said.push(line.to_owned());
        }
        Ok(())
    }

    fn sample(&mut self, case: Option<&str>, rest: &[&str]) -> bool {
        let case = case.map(str::to_owned);
        let sample = pairs(rest).map(|values| Sample { case, values });
        sample.map(|sample| self.samples.push(sample)).is_some()
    }

    /// `NAME VALUE` of /proc/vmstat, before or after.
    fn count(&mut self, rest: &str, after: bool) -> Result<()> {
        let (name, value) = rest.split_once(' ').context("a counter without a value")?;
        let value = value.trim().parse().context("a counter is a number")?;
        let new = Counted {
            before: value,
            after: value,
        };
        let counted = self.counters.entry(name.to_owned()).or_insert(new);
        if after {
            counted.after = value;
        }
        Ok(())
    }

    /// What a call must have, or nothing can be said of it.
    fn check(&self) -> Result<()> {
        ensure!(
            self.counters.keys().any(|name| name.starts_with(COUNTER)),
            "round {}, {}: no {COUNTER}* counters of /proc/vmstat",
            self.round,
            self.mode
        );
        ensure!(
            self.status != 0 || !self.samples.is_empty(),
            "round {}, {}: perf ended well and reported nothing; it said: {}",
            self.round,
            self.mode,
            self.said.join(" / ")
        );
        Ok(())
    }
}

/// The calls of perf on one boot, each of which must have what can be said something of.
fn runs(lines: &[&str], policy: &str) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for line in lines {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let run = runs.last_mut().context("no call of perf has begun");
        match kind {
            "fact" | "cpuinfo" | "kernel" => (),
            "run" => runs.push(Run::parse(rest)?),
            "before" | "after" => run?.count(rest, kind == "after")?,
            "perf" => run?.take(rest, policy)?,
            "status" => run?.status = rest.parse().context("a status is a number")?,
            _ => anyhow::bail!("`{line}` is damaged"),
        }
    }
    for run in &runs {
        run.check()?;
    }
    ensure!(
        runs.iter().any(|run| run.status == 0),
        "no call of perf measured anything; the first said: {}",
        runs.first()
            .map_or(String::new(), |run| run.said.join(" / "))
    );
    Ok(runs)
}

/// What the kernel's own benchmark measured on one boot, and what it said besides.
fn in_kernel(lines: &[&str]) -> Result<(Vec<kernelbench::Sample>, Vec<String>)> {
    let (mut samples, mut said) = (Vec::new(), Vec::new());
    for line in lines {
        let (round, rest) = line.split_once(' ').unwrap_or((line, ""));
        let round = round.parse().context("a round is a number")?;
        if !rest.starts_with("what=") {
            said.push(rest.to_owned());
            continue;
        }
        samples.push(kernelbench::Sample::parse(rest, round)?);
    }
    Ok((samples, said))
}

impl Results {
    /// What the script wrote, in all of a text: a file of its own, or a log of a console.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines().filter_map(|line| {
            let at = line.find(PREFIX)?;
            // Consoles of a fleet may be in colour.
            let line = line[at + PREFIX.len()..].split('\x1b').next();
            Some(line.unwrap_or_default().trim_end())
        });
        let mut all = Vec::new();
        let mut open: Option<Vec<&str>> = None;
        for line in lines {
            match (line.split_once(' '), &mut open) {
                (Some(("begin", form)), None) => {
                    ensure!(form == FORM, "its form is {form}, this is for {FORM}");
                    open = Some(Vec::new());
                }
                _ if line == "end" => {
                    let lines = open.take().context("an end without a beginning")?;
                    all.push(Results::of(&lines)?);
                }
                (_, Some(lines)) => lines.push(line),
                (_, None) => anyhow::bail!("`{line}` before any beginning"),
            }
        }
        ensure!(open.is_none(), "it has no end: the script was interrupted");
        ensure!(!all.is_empty(), "no line in it is of lazy-tlb-lab.sh");
        Ok(all)
    }

    fn of(lines: &[&str]) -> Result<Self> {
        let after = |kind: &str| -> Vec<&str> {
            let all = lines.iter().filter_map(|line| line.strip_prefix(kind));
            all.filter_map(|rest| rest.strip_prefix(' ')).collect()
        };
        let facts = after("fact").into_iter();
        let facts: BTreeMap<&str, &str> = facts
            .map(|fact| fact.split_once(' ').unwrap_or((fact, "")))
            .collect();
        let fact = |name: &str| -> Result<String> {
            let value = facts
                .get(name)
                .with_context(|| format!("it does not say the {name}"))?;
            Ok((*value).to_owned())
        };
        let policy = fact("policy")?;
        let cmdline = fact("cmdline")?;
        let (asked, others): (Vec<&str>, Vec<&str>) =
            (cmdline.split_whitespace()).partition(|word| word.starts_with("lazy_tlb="));
        ensure!(
            asked
                .last()
                .is_none_or(|asked| *asked == format!("lazy_tlb={policy}")),
            "the policy in force is {policy}, and the command line says {}",
            asked.join(" ")
        );
        // As Rust calls it, for results of one machine are in one folder.
        let arch = match fact("machine")?.as_str() {
            "ppc64le" => "powerpc64".to_owned(),
            other => other.to_owned(),
        };
        let runs = runs(lines, &policy)?;
        let (kernel, kernel_said) = in_kernel(&after("kernel"))?;
        Ok(Results {
            machine: Machine::parse(&after("cpuinfo").join("\n"), &arch, &fact("release")?),
            version: fact("version")?,
            cmdline: others.join(" "),
            started: fact("started")?.parse().context("started is a number")?,
            facts: facts
                .iter()
                .filter(|(name, _)| name.contains('/'))
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            policy,
            guest: None,
            runs,
            kernel,
            kernel_said,
        })
    }

    /// The name of its file; the same results again have the same.
    pub fn file(&self) -> String {
        let arch = &self.machine.arch;
        format!("{FILES}{arch}-{}-{}.json", self.policy, self.started)
    }

    /// What it may be compared with.
    pub fn setting(&self) -> Setting {
        Setting {
            release: self.machine.host_kernel.clone(),
            version: self.version.clone(),
            cmdline: self.cmdline.clone(),
            guest: self.guest.clone(),
        }
    }

    /// The calls that measured something.
    fn good(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.status == 0)
    }
}

/// What boots have in common that may be compared: the kernel, and its command line but for the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub release: String,
    pub version: String,
    pub cmdline: String,
    pub guest: Option<Guest>,
}

/// Something that perf measures.
pub struct Measure {
    pub what: &'static str,
    pub unit: &'static str,
    mode: &'static str,
    case: Option<&'static str>,
    value: &'static str,
}

impl Measure {
    const fn trips(what: &'static str, mode: &'static str) -> Self {
        Measure {
            what,
            unit: "1000 trips/s",
            mode,
            case: None,
            value: "trips_per_sec",
        }
    }

    const fn exit(what: &'static str, case: &'static str, value: &'static str) -> Self {
        Measure {
            what,
            unit: "us",
            mode: "exit",
            case: Some(case),
            value,
        }
    }

    /// Over all repeats of some boots, and how many those are. Both units are a thousandth of perf's.
    pub fn spread(&self, boots: &[&Results]) -> Option<(Spread, usize)> {
        let runs = boots.iter().flat_map(|boot| boot.good());
        let samples = runs
            .filter(|run| run.mode == self.mode)
            .flat_map(|run| &run.samples);
        let own = samples.filter(|sample| sample.case.as_deref() == self.case);
        let values = own.filter_map(|sample| sample.values.get(self.value));
        let values: Vec<f64> = values.map(|value| value / 1000.0).collect();
        let count = values.len();
        Some((Spread::of(values)?, count))
    }
}

/// The rows of the table, and the plots.
pub const MEASURES: [Measure; 8] = [
    Measure::trips("threads, pipes", "threads"),
    Measure::trips("threads, futexes", "futex"),
    Measure::trips("processes (control)", "process"),
    Measure::trips("threads that unmap", "flush"),
    Measure::exit("exit, CPUs lazy, p50", "lazy", "p50_ns"),
    Measure::exit("exit, CPUs lazy, p99", "lazy", "p99_ns"),
    Measure::exit("exit, none lazy (control), p50", "alone", "p50_ns"),
    Measure::exit("exit, none lazy (control), p99", "alone", "p99_ns"),
];

/// The least that a CPU went idle per trip, in the modes where it should each time.
pub fn switches_per_trip(boots: &[&Results]) -> Option<f64> {
    let runs = boots.iter().flat_map(|boot| boot.good());
    let idle = runs.filter(|run| run.mode != "flush");
    let values = idle
        .flat_map(|run| &run.cpus)
        .filter_map(|cpu| cpu.get("switches_per_trip"));
    values.copied().min_by(f64::total_cmp)
}

/// How much a counter of the kernel grew in all runs.
pub fn counted(boots: &[&Results], name: &str) -> Option<u64> {
    let name = format!("{COUNTER}{name}");
    let runs = boots.iter().flat_map(|boot| boot.good());
    let counters = runs.filter_map(|run| run.counters.get(&name));
    let grown = counters.map(|counted| counted.after.saturating_sub(counted.before));
    grown.fold(None, |sum, grown| Some(sum.unwrap_or(0) + grown))
}

/// Writes what came back from a machine beside the other results; nothing unless all can be read.
fn import(project: &Project, files: &[PathBuf]) -> Result<()> {
    let mut written = BTreeMap::new();
    for file in files {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let all = Results::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| {
            fail(
                Exit::Usage,
                format!("{}: {error:#}", file.display()),
                "name files that lazy-tlb-lab.sh wrote, or run it again on that boot",
            )
        })?;
        for results in all {
            let folder = project.repo.join("results").join(results.machine.slug());
            written.insert(folder.join(results.file()), results);
        }
    }
    for (path, results) in &written {
        sh::write_whole(path, serde_json::to_string_pretty(results)?.as_bytes())?;
        println!("{}", path.display());
        let failed: Vec<&Run> = results.runs.iter().filter(|run| run.status != 0).collect();
        if let Some(first) = failed.first() {
            println!(
                "warning: {} of {} calls of perf failed; the first, `{}`, said: {}",
                failed.len(),
                results.runs.len(),
                first.command,
                first.said.join(" / ")
            );
        }
        if results.kernel.is_empty() {
            let said = match results.kernel_said.first() {
                Some(said) => format!("it said: {said}"),
                None => "was the module lazy_tlb_benchmark installed?".into(),
            };
            println!("warning: the kernel's own benchmark measured nothing; {said}");
        }
    }
    println!("now `cargo xtask report` has them");
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::failure::classify;
    use std::os::unix::fs::PermissionsExt;

    /// What perf prints in two of the modes.
    const THREADS: &str = "policy POLICY\nrepeat 1 trips_per_sec 9000\n\
        cpu 0 trips_per_sec 9000 switches_per_trip 0.999\n\
        cpu 1 trips_per_sec 9000 switches_per_trip 0.980\nvmstat lazy_tlb_nudged 3\n";
    const EXIT: &str = "policy POLICY\n\
        repeat 1 lazy exits 500 p50_ns 150000 p99_ns 4200000 max_ns 5100000\n\
        repeat 1 alone exits 500 p50_ns 146000 p99_ns 4300000 max_ns 5000000\n";

    /// What the kernel's own benchmark prints on two CPUs.
    const KERNEL: &str = "\
        what=trip policy=POLICY cpus=1 rounds=31 ps_median=6000 ps_min=5900 ps_max=7000 trips=10000\n\
        what=drop policy=POLICY cpus=1 rounds=31 ps_median=9000 ps_min=8000 ps_max=9900 drops=8\n\
        what=trip policy=POLICY cpus=2 rounds=31 ps_median=6100 ps_min=5900 ps_max=7000 trips=5000\n\
        not all of 4 CPUs came in time, try again when the system is idle\n";

    /// What the script writes on a boot, with two rounds of two modes.
    fn raw(policy: &str) -> String {
        let mut lines = vec!["begin 1".into()];
        lines.push(format!("fact policy {policy}"));
        for fact in [
            "started 1767225600",
            "machine x86_64",
            "release 7.3.4-lazy-tlb",
            "version #1 SMP",
            "proc/loadavg 0.01 0.02 0.03 1/100 999",
        ] {
            lines.push(format!("fact {fact}"));
        }
        lines.push(format!("fact cmdline quiet lazy_tlb={policy}"));
        for line in ["processor\t: 0", "model name\t: Some CPU", "processor\t: 1"] {
            lines.push(format!("cpuinfo {line}"));
        }
        let mut nudged = 10;
        for round in [1, 2] {
            for (mode, output) in [("threads", THREADS), ("exit", EXIT)] {
                lines.push(format!("run {round} {mode} perf bench sched lazy-tlb"));
                lines.push(format!("before lazy_tlb_nudged {nudged}"));
                let output = output.replace("POLICY", policy);
                lines.extend(output.lines().map(|line| format!("perf {line}")));
                nudged += round;
                lines.push(format!("after lazy_tlb_nudged {nudged}"));
                lines.push("status 0".into());
            }
            let output = KERNEL.replace("POLICY", policy);
            lines.extend(output.lines().map(|line| format!("kernel {round} {line}")));
        }
        lines.push("end".into());
        let line = |line: &String| format!("{PREFIX}{line}\n");
        lines.iter().map(line).collect()
    }

    /// One boot.
    pub fn example(policy: &str) -> Results {
        Results::parse(&raw(policy)).unwrap().remove(0)
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", Results::parse(text).unwrap_err())
    }

    #[test]
    fn every_sample_is_kept() {
        let results = example("handover");
        assert_eq!(results.machine.slug(), "x86_64-2cpus-some-cpu");
        assert_eq!(results.file(), "perf-x86_64-handover-1767225600.json");
        assert_eq!(results.cmdline, "quiet");
        assert_eq!(results.facts.len(), 1);
        assert_eq!(results.runs.len(), 4);
        let [threads, exit] = [&results.runs[0], &results.runs[1]];
        assert_eq!(threads.samples[0].values["trips_per_sec"], 9000.0);
        assert_eq!(threads.cpus[1]["switches_per_trip"], 0.98);
        assert_eq!(exit.samples[1].case.as_deref(), Some("alone"));
        assert_eq!(exit.samples[1].values["p99_ns"], 4_300_000.0);
        assert!(results.runs.iter().all(|run| run.said.is_empty()));
        let both = [&results, &results];
        assert_eq!(counted(&both, "nudged"), Some(12));
        assert_eq!(counted(&both, "other"), None);
        assert_eq!(switches_per_trip(&both), Some(0.98));
        let (spread, count) = MEASURES[4].spread(&both).unwrap();
        assert_eq!((spread.median, count), (150.0, 4));
        assert!(MEASURES[1].spread(&both).is_none(), "no run with futexes");
        assert_eq!(results.kernel.len(), 6);
        assert_eq!(
            (results.kernel[5].repeat, results.kernel[5].times),
            (2, 5000)
        );
        assert!(results.kernel_said[1].starts_with("not all of 4"));
        let text = serde_json::to_string(&results).unwrap();
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn a_log_may_have_several_boots() {
        let console = |policy| {
            let lines = raw(policy).replace('\n', "\x1b[0m\r\n");
            format!(
                "[    1.0] Linux\n{}",
                lines.replace(PREFIX, "12:00 lazy-tlb-lab: ")
            )
        };
        let log = console("refcount") + "[    2.0] reboot\n" + &console("shootdown");
        let all = Results::parse(&log).unwrap();
        let policies: Vec<&str> = all.iter().map(|results| results.policy.as_str()).collect();
        assert_eq!(policies, ["refcount", "shootdown"]);
    }

    #[test]
    fn a_file_without_all_of_it_is_refused() {
        let whole = raw("handover");
        let begin = |lines: usize| -> String { whole.split_inclusive('\n').take(lines).collect() };
        let lines = whole.lines().count();
        for lines in [1, 5, 20, lines - 1] {
            assert!(refusal(&begin(lines)).contains("interrupted"), "{lines}");
        }
        assert!(refusal("").contains("no line"));
        let line = format!("{PREFIX}begin 1\n");
        assert!(refusal(&whole.replace(&line, "")).contains("before any beginning"));
        assert!(refusal(&whole.replace("begin 1", "begin 2")).contains("form"));
        assert!(refusal(&whole.replace("fact release", "fact x")).contains("the release"));
        assert!(refusal(&whole.replace("status 0", "statu")).contains("damaged"));
    }

    #[test]
    fn another_policy_than_asked_for_is_refused() {
        let asked = raw("handover").replace("lazy_tlb=handover", "lazy_tlb=handovers");
        assert!(refusal(&asked).contains("lazy_tlb=handovers"));
        let seen = raw("handover").replace("perf policy handover", "perf policy shootdown");
        assert!(refusal(&seen).contains("perf saw the policy shootdown"));
        let cut = raw("handover").replace(" trips=10000", "");
        assert!(refusal(&cut).contains("damaged"));
    }

    #[test]
    fn a_kernel_without_counters_is_refused() {
        let text = raw("handover");
        let others = |line: &&str| !line.contains(" lazy_tlb_nudged ");
        let lines: Vec<&str> = text.lines().filter(others).collect();
        assert!(refusal(&lines.join("\n")).contains("round 1, threads: no lazy_tlb_"));
    }

    #[test]
    fn a_call_of_perf_may_fail_but_not_all() {
        let said = raw("handover").replacen("perf repeat 1 trips_per_sec 9000", "perf fork: no", 1);
        assert!(refusal(&said).contains("it said: fork: no"));
        let failed = said.replacen("status 0", "status 1", 1);
        let results = Results::parse(&failed).unwrap().remove(0);
        assert_eq!(results.runs[0].said, ["fork: no"]);
        assert_eq!(MEASURES[0].spread(&[&results]).unwrap().1, 1);
        assert!(refusal(&said.replace("status 0", "status 1")).contains("no call of perf"));
    }

    #[test]
    fn a_symbol_that_is_missing_is_told_with_its_dependency() {
        let check = |config: &str| {
            let refused = ["CONFIG_RUST=y (is not there)".to_owned()];
            let (exit, error) = classify(check_config(config, &refused).unwrap_err());
            assert_eq!(exit, Exit::Build);
            error.to_string()
        };
        let text = check("CONFIG_MODVERSIONS=y\nCONFIG_RANDSTRUCT=y\nCONFIG_LTO=y\n");
        for words in [
            "CONFIG_RUST=y",
            "!MODVERSIONS || GENDWARFKSYMS",
            "!RANDSTRUCT",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(
            !text.contains("BTF") && !text.contains("RUST_IS_AVAILABLE"),
            "{text}"
        );
        let text = check("CONFIG_MODVERSIONS=y\nCONFIG_GENDWARFKSYMS=y\n");
        assert!(text.contains("RUST_IS_AVAILABLE"), "{text}");
        let btf = "CONFIG_DEBUG_INFO_BTF=y\nCONFIG_PAHOLE_HAS_LANG_EXCLUDE=y\n";
        assert!(!check(btf).contains("BTF"));
        assert!(check(&format!("{btf}CONFIG_LTO=y\n")).contains("!LTO"));
        assert!(check("CONFIG_RUST=y\n").contains("ARCH_SUPPORTS_MMU_LAZY_TLB_SHOOTDOWN"));
        let option = "CONFIG_RUST=y\nCONFIG_MMU_LAZY_TLB_SHOOTDOWN=y\n";
        assert!(check(option).contains("MODULES=y"));
        check_config("", &[]).unwrap();
    }

    #[test]
    fn only_a_configuration_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        for bytes in [&b"\x1f\x8b\x08\xff"[..], b"hello\n"] {
            fs::write(&file, bytes).unwrap();
            let (exit, error) = classify(read_config(&file).unwrap_err());
            assert_eq!(exit, Exit::Usage);
            assert!(error.to_string().contains("zcat /proc/config.gz"));
        }
        fs::write(&file, "# CONFIG_SMP is not set\n").unwrap();
        read_config(&file).unwrap();
    }

    #[test]
    fn the_instructions_have_the_boots_and_one_command() {
        let packages = [PathBuf::from("/out/linux-image.deb")];
        let text = instructions(Path::new("/out"), &packages, Format::Deb);
        for policy in policy::ALL {
            assert!(text.contains(&format!("  lazy_tlb={policy}\n")), "{text}");
        }
        for words in [
            "/out/linux-image.deb",
            "dpkg -i",
            "\n  sh lab/lazy-tlb-lab.sh\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn the_tarball_leaves_a_symbolic_link_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (root, packed) = (dir.path().join("root"), dir.path().join("packed"));
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
        fs::create_dir_all(packed.join("lib/modules")).unwrap();
        let run = |program: &str, words: &[&str]| {
            let mut command = Command::new(program);
            assert!(command
                .args(words)
                .current_dir(dir.path())
                .status()
                .unwrap()
                .success());
        };
        run("tar", &["-C", "packed", "-cf", "linux-7.tar.xz", "lib"]);
        let command = UNPACK.lines().next().unwrap().replace(" / ", " root ");
        run("sh", &["-c", &command]);
        assert!(root.join("lib").is_symlink());
        assert!(root.join("usr/lib/modules").is_dir());
    }

    #[test]
    fn the_architecture_is_this_machine_s_or_one_that_is_named() {
        assert_eq!(arch_of(Some("s390")).unwrap().name, "s390");
        assert!(arch_of(Some("vax")).is_err());
        for name in [None, Some("")] {
            if let Ok(arch) = arch_of(name) {
                assert_eq!(arch.machine_name, std::env::consts::ARCH);
            }
        }
    }

    /// A machine for the script: its /proc and /sys, its programs, and the script.
    fn machine(policy: &str, user: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        put(
            "proc/vmstat",
            "nr_free_pages 9\nlazy_tlb_final_drops 4\nlazy_tlb_nudged 2\n",
        );
        put(
            "proc/cpuinfo",
            "processor\t: 0\ncpu MHz\t: 7\nmodel name\t: Some CPU\n",
        );
        put(
            "proc/cmdline",
            &format!("BOOT_IMAGE=x root=UUID=1-2 quiet lazy_tlb={policy}\n"),
        );
        put("proc/loadavg", "0.00 0.00 0.00 1/9 9\n");
        put("sys/kernel/debug/lazy_tlb/policy", "handover\n");
        put("bin/id", &format!("#!/bin/sh\necho {user}\n"));
        // A log that has what the module said before, which is of no matter.
        let old = "[    1.0] lazy_tlb_benchmark: what=old\n";
        put("dev/kmsg", "");
        put("bin/dmesg", "#!/bin/sh\nexec cat \"$LAZY_TLB_ROOT/log\"\n");
        put("log", old);
        put(
            "bin/modprobe",
            &format!(
                "#!/bin/sh\ncd \"$LAZY_TLB_ROOT\" && cat dev/kmsg >>log && printf '{}' |\n\
                 sed 's/^/[    2.0][    T1] lazy_tlb_benchmark: /' >>log\nexit 1\n",
                KERNEL.replace("POLICY", "handover").replace('\n', "\\n")
            ),
        );
        let perf = format!(
            "#!/bin/sh\ncase \"$*\" in\n'bench sched') echo '  lazy-tlb: x' ;;\n\
             'bench -f simple sched lazy-tlb -i 1 --exit') printf '{}' ;;\n*) printf '{}' ;;\nesac\n",
            EXIT.replace('\n', "\\n"),
            THREADS.replace('\n', "\\n")
        );
        put("perf", &perf.replace("POLICY", "handover"));
        let script = crate::project::repository().join(SCRIPT);
        fs::copy(script, dir.path().join("lab.sh")).unwrap();
        dir
    }

    /// What the script writes and says there.
    fn run_script(dir: &Path, rounds: &str) -> std::process::Output {
        let mut path = dir.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut sh = Command::new("sh");
        sh.arg(dir.join("lab.sh")).arg(rounds).current_dir(dir);
        sh.env("PATH", path)
            .env("LAZY_TLB_ROOT", dir)
            .env_remove("PERF");
        sh.output().unwrap()
    }

    #[test]
    fn what_the_script_writes_is_read() {
        let dir = machine("handover", 0);
        let output = run_script(dir.path(), "2");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let file = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        let results = Results::parse(&text).unwrap().remove(0);
        assert_eq!(results.policy, "handover");
        assert_eq!(results.cmdline, "quiet");
        assert_eq!(results.machine.cpu_model, "Some CPU");
        assert_eq!(results.runs.len(), 10);
        assert_eq!(
            results.runs[4].command,
            "perf bench -f simple sched lazy-tlb -i 1 --exit"
        );
        assert_eq!(counted(&[&results], "final_drops"), Some(0));
        assert_eq!((results.kernel.len(), results.kernel_said.len()), (6, 2));
        let (_, count) = MEASURES[7].spread(&[&results]).unwrap();
        assert_eq!(count, 2);
    }

    #[test]
    fn a_job_does_not_call_passed_what_was_skipped() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("selftests")).unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let totals = |pass: u32, fail: u32, skip: u32| {
            format!("echo '# Totals: pass:{pass} fail:{fail} xfail:0 xpass:0 skip:{skip} error:0'")
        };
        put("lazy-tlb-lab.sh", "echo file >file; echo file");
        put("selftests/all", &totals(13, 0, 0));
        put("selftests/some", &totals(10, 0, 8));
        put("selftests/none", &totals(0, 0, 8));
        put("selftests/without", "exit 4");
        let run = || {
            fs::copy(
                crate::project::repository().join(JOB),
                dir.path().join("job.sh"),
            )
            .unwrap();
            let mut sh = Command::new("sh");
            sh.arg(dir.path().join("job.sh")).env("TMPDIR", dir.path());
            let output = sh.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            (output.status.code(), said)
        };
        let (status, said) = run();
        assert_eq!(status, Some(0), "{said}");
        for line in [
            "measurement: pass",
            "lazy_tlb-all: pass",
            "lazy_tlb-some: pass",
            "lazy_tlb-none: skip",
            "lazy_tlb-without: skip",
        ] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        put("selftests/bad", &format!("{}\nexit 1", totals(0, 1, 8)));
        let (status, said) = run();
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("lazy_tlb-bad: fail"), "{said}");
    }

    #[test]
    fn the_script_refuses_where_nothing_can_be_measured() {
        let refused = |dir: &tempfile::TempDir, why: &str| {
            let output = run_script(dir.path(), "1");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(why) && said.contains("remedy"), "{said}");
        };
        refused(&machine("handover", 1000), "only root");
        refused(&machine("refcount", 0), "the policy in force is handover");
        let dir = machine("handover", 0);
        fs::write(dir.path().join("perf"), "#!/bin/sh\necho messaging\n").unwrap();
        refused(&dir, "no `bench sched lazy-tlb`");
        fs::write(dir.path().join("proc/vmstat"), "nr_free_pages 9\n").unwrap();
        refused(&dir, "no lazy_tlb_* counters");
    }
}
