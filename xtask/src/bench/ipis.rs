//! `bench ipis`: the same seeded workload under every policy, and what each policy did for it.
//!
//! All that is compared are counts of the kernel's own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::guest::console::{self, number, pairs, text, Report};
use crate::guest::machine::{self, Append, Guest};
use crate::host::arch::Arch;
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::build::Build;
use crate::kernel::workshop::Project;
use crate::results::case::{Case, Status};
use crate::results::machine::of_this_machine;
use crate::results::sample::{in_a_name, Counted};

/// Every workload that the guest program knows.
pub const WORKLOADS: [&str; 3] = ["build", "threaded", "mix"];
/// What the first process puts in front of its lines.
const PREFIX: &str = "lazy-tlb-bench: ";
/// The last of our own words on the kernel's command line.
const LAST_WORD: &str = "LAZY_TLB_BIG=";
/// What the kernel calls its counters in /proc/vmstat.
pub const COUNTER: &str = "lazy_tlb_";

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many emulated CPUs.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub cpus: usize,
    /// Only these policies.
    #[arg(long, value_delimiter = ',', value_name = "NAME[,NAME]", default_values = policy::ALL,
          value_parser = policy::ALL)]
    pub policy: Vec<String>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',', value_name = "NAME[,NAME]", default_values = WORKLOADS,
          value_parser = WORKLOADS)]
    pub workload: Vec<String>,
    /// The same seed gives the same processes.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u32,
    /// Jobs of the build, of three to five processes each.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub jobs: u32,
    /// Big threaded processes to end.
    #[arg(long, default_value_t = 40, value_name = "N")]
    pub big: u32,
    /// How often everything is run.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub repeat: u32,
    #[command(flatten)]
    pub append: Append,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 1800, value_name = "S")]
    pub timeout: u64,
}

/// One workload under one policy in one guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub policy: String,
    pub arch: String,
    pub mmu: String,
    pub cpus: usize,
    pub workload: String,
    pub seed: u32,
    pub run: u32,
    /// Processes that ended.
    pub exits: u64,
    pub final_drops: u64,
    /// Slots that final drops looked at.
    pub scanned: u64,
    /// CPUs that were handed a reference.
    pub handed: u64,
    /// CPUs that were interrupted for that.
    pub nudged: u64,
    /// Interrupts of cross-calls, whoever made them.
    pub irqs_call: u64,
    /// Interrupts of TLB flushes, where the architecture counts them.
    pub irqs_tlb: Option<u64>,
    /// Lazy CPUs of the big processes when they ended, all together.
    pub lazy_at_exit: u64,
    pub workload_ms: u64,
    pub jobs: u32,
    pub big: u32,
    pub kernel: String,
    /// The kernel's configuration.
    pub variant: String,
    pub qemu: Vec<String>,
    counters: BTreeMap<String, Counted>,
}

/// A record with what the console says besides.
pub struct Outcome {
    record: Record,
    report: Report,
}

/// What the host knows of a run.
struct Asked<'a> {
    arch: &'a str,
    policy: &'a str,
    workload: &'a str,
    options: &'a Options,
    run: u32,
    qemu: Vec<String>,
    variant: &'a str,
}

/// The kernel that is measured, and what it runs on.
pub struct Bed<'a> {
    pub arch: &'static Arch,
    pub image: &'a Path,
    pub accel: &'a str,
    /// Its configuration, one of configs/variants/.
    pub variant: &'a str,
}

/// What runs have in common that may be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub arch: String,
    pub mmu: String,
    pub variant: String,
    /// More words of the kernel's command line.
    pub append: String,
}

impl Setting {
    /// The kernel's configuration, where it is not the usual one.
    pub fn unusual_variant(&self) -> Option<&str> {
        let variant = self.variant.as_str();
        (variant != "default").then_some(variant)
    }

    /// The beginning of the names of files about it: `ipis-<arch>-<mmu>`, the number of CPUs if it
    /// is of one, and what else is not as usual.
    pub fn file_stem(&self, cpus: Option<usize>) -> String {
        let mut name = format!("ipis-{}-{}", self.arch, self.mmu);
        let cpus = cpus.map_or(String::new(), |cpus| cpus.to_string());
        let variant = self.unusual_variant().unwrap_or_default();
        let rest = [&cpus, variant, &self.append];
        for what in rest.iter().filter(|what| !what.is_empty()) {
            name.push('-');
            name.push_str(&in_a_name(what));
        }
        name
    }
}

fn records_of(outcomes: &[Outcome]) -> Vec<&Record> {
    outcomes.iter().map(|outcome| &outcome.record).collect()
}

impl Record {
    /// Reads a console; an error is a guest that did not report everything.
    fn parse(console: &str, asked: &Asked<'_>) -> Result<Self> {
        let console = console::without_stamps(console);
        let mut setup = BTreeMap::new();
        let mut result = BTreeMap::new();
        let mut counters = BTreeMap::new();
        for line in console
            .lines()
            .filter_map(|line| line.strip_prefix(PREFIX))
            .map(pairs)
        {
            match text(&line, "what")? {
                "setup" => setup = line,
                "result" => result = line,
                "counter" => {
                    let counted = Counted {
                        before: number(&line, "before")?,
                        after: number(&line, "after")?,
                    };
                    counters.insert(text(&line, "name")?.to_owned(), counted);
                }
                other => anyhow::bail!("the guest reports an unknown {other}"),
            }
        }
        let policy = text(&setup, "policy")?;
        ensure!(
            policy == asked.policy,
            "the guest's policy is {policy}, asked was {}",
            asked.policy
        );
        let grown = |name: &str| -> Result<Option<u64>> {
            let Some(Counted { before, after }) = counters.get(name) else {
                return Ok(None);
            };
            let grown = after
                .checked_sub(*before)
                .with_context(|| format!("{name} fell from {before} to {after}"))?;
            Ok(Some(grown))
        };
        let counted = |name: &str| -> Result<u64> {
            grown(name)?.with_context(|| format!("the kernel does not count {name}"))
        };
        let options = asked.options;
        Ok(Record {
            policy: policy.into(),
            arch: asked.arch.into(),
            mmu: text(&setup, "mmu")?.into(),
            cpus: usize::try_from(number(&setup, "cpus")?)?,
            workload: text(&setup, "workload")?.into(),
            seed: u32::try_from(number(&setup, "seed")?)?,
            run: asked.run,
            exits: number(&result, "exits")?,
            final_drops: counted("lazy_tlb_final_drops")?,
            scanned: counted("lazy_tlb_scanned")?,
            handed: counted("lazy_tlb_handed")?,
            nudged: counted("lazy_tlb_nudged")?,
            irqs_call: counted("irqs_call")?,
            irqs_tlb: grown("irqs_tlb")?,
            lazy_at_exit: number(&result, "lazy_at_exit")?,
            workload_ms: number(&result, "ms")?,
            jobs: options.jobs,
            big: options.big,
            kernel: text(&setup, "kernel")?.into(),
            variant: asked.variant.into(),
            qemu: asked.qemu.clone(),
            counters,
        })
    }

    /// What it may be compared with.
    pub fn setting(&self) -> Setting {
        Setting {
            arch: self.arch.clone(),
            mmu: self.mmu.clone(),
            variant: self.variant.clone(),
            append: self.append(),
        }
    }

    /// What `--append` was: the end of the kernel's command line, after our own words.
    fn append(&self) -> String {
        let line = self.qemu.join(" ");
        let rest = line.split_once(LAST_WORD).map_or("", |(_, rest)| rest);
        rest.split_once(' ')
            .map_or("", |(_, append)| append)
            .to_owned()
    }
}

/// Boots a guest for each run, workload and policy.
///
/// What there is so far is kept after each: a later guest may not come to its end.
pub fn measure(
    project: &Project,
    bed: &Bed<'_>,
    options: &Options,
    keep: impl Fn(&[Outcome]) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let Bed {
        arch,
        image,
        accel,
        variant,
    } = *bed;
    let initramfs = project.guest_initramfs(arch, "bench-init")?;
    let limit = Duration::from_secs(options.timeout);
    let mut outcomes = Vec::new();
    for run in 1..=options.repeat {
        for workload in &options.workload {
            for policy in &options.policy {
                let append = format!(
                    "lazy_tlb={policy} {} LAZY_TLB_WORKLOAD={workload} LAZY_TLB_SEED={} \
                     LAZY_TLB_JOBS={} {LAST_WORD}{} {}",
                    machine::NO_KUNIT,
                    options.seed,
                    options.jobs,
                    options.big,
                    options.append.words
                );
                let log = format!("log/ipis-{}-{workload}-{policy}-{run}.log", arch.name);
                let guest = Guest {
                    smp: options.cpus,
                    append: append.trim_end(),
                    timeout: limit,
                    // It says nothing while it works.
                    silence: limit,
                    ..Guest::of(arch, accel, image, &initramfs, project.cache.path(log))
                };
                let asked = Asked {
                    arch: arch.name,
                    policy,
                    workload,
                    options,
                    run,
                    qemu: command_line(&guest),
                    variant,
                };
                let report = guest.boot()?;
                report.check_end()?;
                report.check_cpus()?;
                let record = Record::parse(&report.text, &asked)
                    .with_context(|| format!("{policy}/{}", asked.workload))?;
                outcomes.push(Outcome { record, report });
                keep(&outcomes)?;
            }
        }
    }
    Ok(outcomes)
}

/// The emulator's arguments, files by their names only: where they lie is of one machine.
fn command_line(guest: &Guest<'_>) -> Vec<String> {
    let command = guest.command();
    let initrd = sh::assignment(machine::INITRD, guest.initramfs);
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| match Path::new(word) {
            path if path.is_absolute() => path.file_name().unwrap_or(word).to_owned(),
            _ if word == initrd => {
                let name = guest.initramfs.file_name().unwrap_or_default();
                sh::assignment(machine::INITRD, name)
            }
            _ => word.to_owned(),
        })
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// The runs of one policy and workload.
pub struct Group<'a> {
    pub policy: &'a str,
    pub workload: &'a str,
    pub records: Vec<&'a Record>,
}

/// What [`Group::cells()`] are called.
pub const CELLS: [&str; 7] = [
    "exits",
    "final drops",
    "slots scanned per exit",
    "CPUs handed",
    "CPUs nudged",
    "function-call interrupts per 1000 exits",
    "TLB interrupts per 1000 exits",
];

impl Group<'_> {
    fn sum(&self, count: impl Fn(&Record) -> u64) -> u64 {
        self.records.iter().map(|record| count(record)).sum()
    }

    /// Slots that final drops looked at.
    pub fn scanned_per_exit(&self) -> Option<f64> {
        ratio(self.sum(|r| r.scanned), self.sum(|r| r.exits), 1.0)
    }

    /// CPUs that final drops interrupted.
    pub fn nudged_per_1000_exits(&self) -> Option<f64> {
        ratio(self.sum(|r| r.nudged), self.sum(|r| r.exits), 1000.0)
    }

    /// Interrupts of cross-calls, whoever made them.
    pub fn calls_per_1000_exits(&self) -> Option<f64> {
        ratio(self.sum(|r| r.irqs_call), self.sum(|r| r.exits), 1000.0)
    }

    fn flushes_per_1000_exits(&self) -> Option<f64> {
        let counted = self.records.iter().map(|record| record.irqs_tlb);
        ratio(counted.sum::<Option<u64>>()?, self.sum(|r| r.exits), 1000.0)
    }

    /// What a table has of it, as [`CELLS`] calls it.
    pub fn cells(&self) -> [String; CELLS.len()] {
        [
            self.sum(|r| r.exits).to_string(),
            self.sum(|r| r.final_drops).to_string(),
            shown(self.scanned_per_exit()),
            self.sum(|r| r.handed).to_string(),
            self.sum(|r| r.nudged).to_string(),
            shown(self.calls_per_1000_exits()),
            shown(self.flushes_per_1000_exits()),
        ]
    }
}

fn groups<'a>(records: &[&'a Record]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for &record in records {
        let same = |g: &&mut Group<'_>| g.policy == record.policy && g.workload == record.workload;
        match groups.iter_mut().find(same) {
            Some(group) => group.records.push(record),
            None => groups.push(Group {
                policy: &record.policy,
                workload: &record.workload,
                records: vec![record],
            }),
        }
    }
    groups
}

fn ratio(count: u64, of: u64, factor: f64) -> Option<f64> {
    (of > 0).then(|| count as f64 * factor / of as f64)
}

fn shown(ratio: Option<f64>) -> String {
    ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"))
}

/// One row for each policy and workload; runs are taken together.
fn table(records: &[&Record]) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    let names = ["workload", "policy"].map(String::from);
    table.set_header(names.into_iter().chain(CELLS.map(String::from)));
    for group in groups(records) {
        let names = [group.workload, group.policy].map(String::from);
        table.add_row(names.into_iter().chain(group.cells()));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// What must hold of the records, each as a case.
fn verdict(records: &[&Record]) -> Vec<Case> {
    let mut cases = Vec::new();
    for record in records {
        let name = |what: &str| {
            let Record {
                policy,
                workload,
                run,
                ..
            } = record;
            format!("{workload}/{policy}/{run} {what}")
        };
        let mut check = |what: &str, checked: Result<()>| cases.push(Case::of(name(what), checked));
        match record.policy.as_str() {
            policy::SHOOTDOWN => check("nudges those it hands to", check_nudged(record)),
            _ => check("nudges nobody", check_silent(record)),
        }
        if finds(record) {
            check("finds lazy CPUs", check_found(record));
        }
    }
    for workload in WORKLOADS {
        let exits: Vec<u64> = records
            .iter()
            .filter(|record| record.workload == workload)
            .map(|record| record.exits)
            .collect();
        if exits.len() > 1 {
            cases.push(Case::of(
                format!("{workload}/is the same everywhere"),
                check_exits(&exits),
            ));
        }
    }
    cases
}

/// Those that are handed a reference are nudged, but for the CPU that hands it.
fn check_nudged(record: &Record) -> Result<()> {
    let Record { nudged, handed, .. } = record;
    ensure!(
        nudged <= handed,
        "{nudged} CPUs were nudged, {handed} were handed a reference"
    );
    Ok(())
}

fn check_silent(record: &Record) -> Result<()> {
    ensure!(record.nudged == 0, "{} CPUs were nudged", record.nudged);
    Ok(())
}

/// Whether final drops must find lazy CPUs: an ordinary exit may leave none, but big processes that
/// unmap themselves do, unless the flush of that makes lazy CPUs let go or they hold references.
fn finds(record: &Record) -> bool {
    let flush_lets_go = record.arch == "x86_64" || record.mmu == "radix";
    record.workload == "threaded" && record.policy != policy::REFCOUNT && !flush_lets_go
}

fn check_found(record: &Record) -> Result<()> {
    ensure!(
        record.handed > 0,
        "no CPU was found lazy in {} final drops, so nothing was shown",
        record.final_drops
    );
    Ok(())
}

fn check_exits(exits: &[u64]) -> Result<()> {
    ensure!(
        exits[0] > 0 && exits.iter().all(|&other| other == exits[0]),
        "processes ended: {exits:?}"
    );
    Ok(())
}

/// The verdict, the consoles' part included.
fn cases_of(outcomes: &[Outcome]) -> Vec<Case> {
    let warnings = outcomes.iter().map(|Outcome { record, report }| {
        let name = format!(
            "{}/{}/{} has no warning",
            record.workload, record.policy, record.run
        );
        Case::of(name, report.check_warnings())
    });
    let mut cases: Vec<Case> = warnings.collect();
    cases.extend(verdict(&records_of(outcomes)));
    cases
}

/// A small run for `test`.
pub fn cases(
    project: &Project,
    arch: &'static Arch,
    image: &Path,
    accel: &str,
) -> Result<Vec<Case>> {
    let bed = Bed {
        arch,
        image,
        accel,
        variant: "test",
    };
    let options = Options {
        cpus: 4,
        policy: policy::ALL.map(String::from).into(),
        workload: ["build", "threaded"].map(String::from).into(),
        seed: 1,
        jobs: 60,
        big: 20,
        repeat: 1,
        append: Append::default(),
        timeout: 300,
    };
    let outcomes = measure(project, &bed, &options, |_| Ok(()))?;
    println!("\n{}\n", table(&records_of(&outcomes)));
    let cases = cases_of(&outcomes);
    Ok(cases.into_iter().map(|case| case.within("bench")).collect())
}

/// Where the records go if nothing else is said; the first says which MMU the guest has.
fn default_json(project: &Project, first: &Record) -> Result<PathBuf> {
    let name = first.setting().file_stem(Some(first.cpus));
    let dir = of_this_machine(&project.repo)?;
    Ok(dir.join(format!("{name}-seed{}.json", first.seed)))
}

/// `bench ipis` itself: the guests, the file, the table, the verdict.
pub fn run(
    project: &Project,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<Exit> {
    if options.cpus < 2 || options.repeat < 1 {
        return Err(fail(
            Exit::Usage,
            "nothing can be measured on one CPU, or in no run",
            "give --cpus 2 and --repeat 1 at least",
        ));
    }
    let arch = build.arch;
    let image = build.image()?;
    let accel = machine::accelerator(&project.cache, arch, &image)?;
    let accel = machine::for_cpus(&accel, options.cpus);
    let bed = Bed {
        arch,
        image: &image,
        accel: &accel,
        variant: build.variant,
    };
    let path = |first: &Record| match json {
        Some(path) => Ok(path.to_owned()),
        None => default_json(project, first),
    };
    let outcomes = measure(project, &bed, options, |outcomes| {
        let records = records_of(outcomes);
        let text = serde_json::to_string_pretty(&records)?;
        sh::write_whole(&path(records[0])?, text.as_bytes())
    })?;
    let records = records_of(&outcomes);
    let first = records.first().context("no guest was asked for")?;
    println!("\n{}\n\n{}", table(&records), path(first)?.display());
    let cases = cases_of(&outcomes);
    let failed: Vec<&Case> = cases
        .iter()
        .filter(|case| case.status == Status::Fail)
        .collect();
    for case in &failed {
        println!("{}: {}", case.name, case.detail);
    }
    if failed.is_empty() {
        println!("verdict: PASS ({} checks)", cases.len());
        return Ok(Exit::Ok);
    }
    Err(fail(
        Exit::Failed,
        format!("{} of {} checks failed", failed.len(), cases.len()),
        format!(
            "the consoles are in {}",
            project.cache.path("log").display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::console::End;

    /// A guest's console, as far as it matters.
    const CONSOLE: &str = "\
[    2.000000] Run /init as init process
lazy-tlb-guest: cpus=4
lazy-tlb-bench: what=setup policy=shootdown workload=threaded seed=7 jobs=60 big=20 cpus=4 mmu=hash kernel=7.3.4
[    3.141592] lazy-tlb-bench: what=counter name=lazy_tlb_final_drops before=9 after=29
lazy-tlb-bench: what=counter name=lazy_tlb_scanned before=20 after=80
lazy-tlb-bench: what=counter name=lazy_tlb_handed before=1 after=31
lazy-tlb-bench: what=counter name=lazy_tlb_nudged before=0 after=25
lazy-tlb-bench: what=counter name=irqs_call before=100 after=160
lazy-tlb-bench: what=result exits=20 lazy_at_exit=60 ms=812
lazy-tlb-guest: done status=0
";

    fn options() -> Options {
        Options {
            cpus: 4,
            policy: policy::ALL.map(String::from).into(),
            workload: WORKLOADS.map(String::from).into(),
            seed: 7,
            jobs: 60,
            big: 20,
            repeat: 1,
            append: Append::default(),
            timeout: 1,
        }
    }

    fn parse(console: &str, policy: &str) -> Result<Record> {
        let asked = Asked {
            arch: "powerpc",
            policy,
            workload: "threaded",
            options: &options(),
            run: 1,
            qemu: vec!["qemu".into()],
            variant: "default",
        };
        Record::parse(console, &asked)
    }

    fn record(policy: &str) -> Record {
        let console = CONSOLE.replace("policy=shootdown", &format!("policy={policy}"));
        let mut record = parse(&console, policy).unwrap();
        if policy != policy::SHOOTDOWN {
            record.nudged = 0;
        }
        record
    }

    fn all() -> Vec<Record> {
        policy::ALL.map(record).into()
    }

    fn failures(records: &[Record]) -> Vec<String> {
        let records: Vec<&Record> = records.iter().collect();
        verdict(&records)
            .into_iter()
            .filter(|case| case.status == Status::Fail)
            .map(|case| case.name)
            .collect()
    }

    /// The failures after a change to the record of one policy.
    fn broken(policy: &str, change: impl Fn(&mut Record)) -> Vec<String> {
        let mut records = all();
        for record in records.iter_mut().filter(|r| r.policy == policy) {
            change(record);
        }
        failures(&records)
    }

    #[test]
    fn a_console_is_read() {
        let record = parse(CONSOLE, "shootdown").unwrap();
        assert_eq!((record.final_drops, record.scanned), (20, 60));
        assert_eq!((record.handed, record.nudged), (30, 25));
        assert_eq!((record.irqs_call, record.irqs_tlb), (60, None));
        assert_eq!((record.mmu.as_str(), record.seed), ("hash", 7));
        assert_eq!(record.counters["lazy_tlb_handed"].after, 31);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |console: &str, policy: &str| {
            let error = parse(console, policy).err().unwrap();
            format!("{error:#}")
        };
        assert!(error(CONSOLE, "handover").contains("policy is shootdown"));
        let without = CONSOLE.replace("lazy_tlb_nudged", "lazy_tlb_other");
        assert!(error(&without, "shootdown").contains("does not count lazy_tlb_nudged"));
        let fallen = CONSOLE.replace("before=9 after=29", "before=9 after=8");
        assert!(error(&fallen, "shootdown").contains("fell from 9 to 8"));
        assert!(error(&CONSOLE.replace(" exits=20", ""), "shootdown").contains("exits"));
        assert!(error("", "shootdown").contains("policy"));
    }

    #[test]
    fn good_records_pass() {
        assert_eq!(failures(&all()), Vec::<String>::new());
        let all = all();
        let count = verdict(&all.iter().collect::<Vec<_>>()).len();
        // One for each, what two of them find, and the exits.
        assert_eq!(count, 3 + 2 + 1);
    }

    #[test]
    fn only_shootdown_nudges_and_only_whom_it_hands_to() {
        assert_eq!(
            broken("shootdown", |r| r.nudged = r.handed + 1),
            ["threaded/shootdown/1 nudges those it hands to"]
        );
        for policy in ["handover", "refcount"] {
            assert_eq!(
                broken(policy, |r| r.nudged = 1),
                [format!("threaded/{policy}/1 nudges nobody")]
            );
        }
    }

    #[test]
    fn a_run_without_lazy_cpus_shows_nothing() {
        let none = |r: &mut Record| (r.handed, r.nudged) = (0, 0);
        assert_eq!(
            broken("handover", none),
            ["threaded/handover/1 finds lazy CPUs"]
        );
        assert!(broken("refcount", none).is_empty());
        // The build need not find any.
        let mut build = record("shootdown");
        build.workload = "build".into();
        none(&mut build);
        assert!(failures(&[build]).is_empty());
    }

    #[test]
    fn another_workload_than_the_others_fails() {
        assert_eq!(
            broken("refcount", |r| r.exits += 1),
            ["threaded/is the same everywhere"]
        );
        let none: Vec<Record> = all()
            .into_iter()
            .map(|r| Record { exits: 0, ..r })
            .collect();
        assert_eq!(failures(&none), ["threaded/is the same everywhere"]);
    }

    #[test]
    fn a_warning_fails() {
        let text = format!("{CONSOLE}[ 4.0] WARNING: CPU: 1 PID: 1 at mm/lazy_tlb/slot.c:1\n");
        let outcome = |text: String| Outcome {
            record: record("handover"),
            report: Report::new(text, End::Exited, 4, Path::new("gone")),
        };
        let failed = |outcome: Outcome| {
            let cases = cases_of(&[outcome]);
            let failed = cases.into_iter().filter(|case| case.status == Status::Fail);
            failed.map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(
            failed(outcome(text)),
            ["threaded/handover/1 has no warning"]
        );
        assert!(failed(outcome(CONSOLE.into())).is_empty());
    }

    #[test]
    fn the_table_has_rates_and_takes_runs_together() {
        let mut records = all();
        records.push(Record {
            run: 2,
            nudged: 15,
            irqs_tlb: Some(8),
            ..record("shootdown")
        });
        let text = table(&records.iter().collect::<Vec<_>>());
        let cells = |policy: &str| -> Vec<String> {
            let row = text.lines().find(|line| line.contains(policy)).unwrap();
            row.split('|').map(|cell| cell.trim().into()).collect()
        };
        // Of two runs: 120 scanned in 40 exits. One of them did not count the flushes.
        let shootdown = ["40", "40", "3.00", "60", "40", "3000.00", "-"];
        assert_eq!(cells("shootdown")[3..10], shootdown, "{text}");
        assert_eq!(cells("handover")[6..8], ["30", "0"], "{text}");
    }

    #[test]
    fn the_json_is_a_list_of_records_with_the_keys_promised() {
        let all = all();
        let text = serde_json::to_string(&all.iter().collect::<Vec<_>>()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let list = json.as_array().unwrap();
        assert_eq!(list.len(), 3);
        for key in [
            "policy",
            "arch",
            "mmu",
            "cpus",
            "workload",
            "seed",
            "exits",
            "scanned",
            "handed",
            "nudged",
            "irqs_call",
            "irqs_tlb",
            "run",
            "kernel",
            "qemu",
            "counters",
        ] {
            assert!(list[0].get(key).is_some(), "{key}");
        }
        assert_eq!(list[2]["counters"]["lazy_tlb_handed"]["after"], 31);
    }

    /// With a script as the emulator: who is booted, with what, and what is kept.
    #[test]
    fn every_policy_and_workload_gets_a_guest() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("qemu");
        let fill =
            "s/policy=shootdown/policy='$policy'/; s/workload=threaded/workload='$workload'/";
        let text = format!(
            "#!/bin/sh\npolicy=$(echo \"$*\" | sed 's/.*lazy_tlb=\\([a-z]*\\).*/\\1/')\n\
             workload=$(echo \"$*\" | sed 's/.*_WORKLOAD=\\([a-z]*\\).*/\\1/')\n\
             sed '{fill}' <<END\n{CONSOLE}END\n"
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let arch = Arch {
            qemu: Box::leak(script.to_string_lossy().into_owned().into_boxed_str()),
            gcc: "gcc",
            ..*crate::host::arch::find("x86_64").unwrap()
        };
        let project = Project {
            repo: crate::kernel::workshop::repository(),
            cache: crate::host::cache::Cache::at(dir.path().join("cache")).unwrap(),
            linux: None,
        };
        let options = Options {
            workload: ["build", "threaded"].map(String::from).into(),
            repeat: 2,
            append: Append {
                words: "disable_radix".into(),
            },
            timeout: 30,
            ..options()
        };
        let kept = std::cell::Cell::new(0);
        let bed = Bed {
            arch: Box::leak(arch.into()),
            image: Path::new("bzImage"),
            accel: "tcg",
            variant: "default",
        };
        let outcomes = measure(&project, &bed, &options, |so_far| {
            kept.set(kept.get() + 1);
            assert_eq!(so_far.len(), kept.get());
            Ok(())
        })
        .unwrap();
        assert_eq!((outcomes.len(), kept.get()), (2 * 2 * 3, 12));
        let last = &outcomes[11].record;
        assert_eq!(
            (last.workload.as_str(), last.policy.as_str()),
            ("threaded", "handover")
        );
        assert_eq!(last.run, 2);
        assert_eq!(last.setting().append, "disable_radix");
        let line = last.qemu.join(" ");
        for words in [
            "LAZY_TLB_SEED=7",
            "LAZY_TLB_JOBS=60",
            "disable_radix",
            "-smp 4",
        ] {
            assert!(line.contains(words), "{line}");
        }
    }

    #[test]
    fn a_file_is_named_after_what_is_in_it() {
        let setting = record("handover").setting();
        assert_eq!(setting.file_stem(Some(4)), "ipis-powerpc-hash-4");
        let setting = Setting {
            variant: "test".into(),
            append: "a=1 b".into(),
            ..setting
        };
        let stem = "ipis-powerpc-hash-8-test-a-1-b";
        assert_eq!(setting.file_stem(Some(8)), stem);
        assert_eq!(setting.file_stem(None), stem.replace("-8", ""));
    }

    #[test]
    fn the_command_line_names_no_folder() {
        let mut guest = Guest {
            smp: 128,
            append: "lazy_tlb=handover",
            ..Guest::of(
                crate::host::arch::find("x86_64").unwrap(),
                "tcg",
                Path::new("/some/where/bzImage"),
                Path::new("/some/where/bench-init.cpio"),
                "log".into(),
            )
        };
        let line = command_line(&guest).join(" ");
        assert!(line.starts_with("qemu-system-x86_64 "), "{line}");
        assert!(line.contains("-smp 128") && line.contains("lazy_tlb=handover"));
        assert!(line.contains("-kernel bzImage") && !line.contains("/some"));
        guest.arch = crate::host::arch::find("um").unwrap();
        let line = command_line(&guest).join(" ");
        assert!(
            line.starts_with("bzImage ") && !line.contains("/some"),
            "{line}"
        );
        assert!(line.contains(" initrd=bench-init.cpio ") && line.contains("rdinit=/init"));
    }
}
