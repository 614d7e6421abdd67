//! `bench ipis`: the same seeded workload under every policy, and what each policy did for it.
//!
//! All that is compared are counts of the kernel's own. Times are recorded too, and marked where an
//! emulator made them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::console::{self, Report};
use crate::failure::{fail, Exit};
use crate::guest::{self, Append, Guest};
use crate::kbuild::Build;
use crate::project::Project;
use crate::report::{Case, Status};
use crate::{results, sh};

/// Every policy, in the table's order.
pub const POLICIES: [&str; 4] = ["unconditional", "shootdown", "defer", "refcount"];
/// Every workload that the guest program knows.
pub const WORKLOADS: [&str; 3] = ["build", "threaded", "mix"];
/// What the first process puts in front of its lines.
const PREFIX: &str = "lazy-tlb-bench: ";
/// The last of our own words on the kernel's command line.
const LAST_WORD: &str = "LAZY_TLB_SKIP_FLUSH=";
/// What the kernel calls its counters in /proc/vmstat.
pub const COUNTER: &str = "lazy_tlb_";

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many emulated CPUs.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub cpus: usize,
    /// Only these policies.
    #[arg(long, value_delimiter = ',', value_name = "NAME[,NAME]", default_values = POLICIES,
          value_parser = POLICIES)]
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
    pub rounds: u32,
    /// x86: flushes leave lazy CPUs alone, so that the policy finds them all.
    #[arg(long)]
    pub skip_flush: bool,
    /// How often everything is run.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub repeat: u32,
    #[command(flatten)]
    pub append: Append,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 1800, value_name = "S")]
    pub timeout: u64,
}

/// A counter of the kernel, before the workload and when no mm waited any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub before: u64,
    pub after: u64,
}

/// How many mms were waiting from a time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    ms: u64,
    mms: u64,
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
    pub scanned: u64,
    pub lazy_found: u64,
    pub ipis: u64,
    pub local: u64,
    pub piggybacked: u64,
    pub deferred: u64,
    pub reaped: u64,
    pub batched_rounds: u64,
    pub batched_ipis: u64,
    /// Since boot, as is the next.
    pub max_waiting: u64,
    pub longest_wait_ms: u64,
    /// `yes`, `no`, or `unknown` where the kernel does not count what rounds freed.
    pub drained: String,
    pub drain_ms: u64,
    /// Lazy CPUs of the big processes when they ended, all together.
    pub lazy_at_exit: u64,
    pub workload_ms: u64,
    /// Whether the times are an emulator's.
    pub times_emulated: bool,
    pub skip_flush: bool,
    pub jobs: u32,
    pub rounds: u32,
    pub kernel: String,
    /// The kernel's configuration; empty in files that are older than this key.
    #[serde(default)]
    pub variant: String,
    pub qemu: Vec<String>,
    /// Every change in the number of waiting mms that was seen.
    waiting: Vec<Waiting>,
    /// If not, the numbers in `waiting` include mms that a round has freed.
    pub waiting_exact: bool,
    counters: BTreeMap<String, Counted>,
    /// Objects in use of what an mm is made of, where the kernel tells.
    #[serde(default)]
    slabs: BTreeMap<String, Counted>,
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
    accel: &'a str,
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
    pub skip_flush: bool,
    /// Empty if it is not known.
    pub variant: String,
    /// More words of the kernel's command line.
    pub append: String,
}

impl Setting {
    /// The kernel's configuration, where it is known and not the usual one.
    pub fn unusual_variant(&self) -> Option<&str> {
        let variant = self.variant.as_str();
        (!["", "default"].contains(&variant)).then_some(variant)
    }

    /// The beginning of the names of files about it: `ipis-<arch>-<mmu>`, the number of CPUs if it
    /// is of one, and what else is not as usual.
    pub fn file_stem(&self, cpus: Option<usize>) -> String {
        let mut name = format!("ipis-{}-{}", self.arch, self.mmu);
        let cpus = cpus.map_or(String::new(), |cpus| cpus.to_string());
        let skip_flush = if self.skip_flush { "skipflush" } else { "" };
        let variant = self.unusual_variant().unwrap_or_default();
        let rest = [&cpus, skip_flush, variant, &self.append];
        for what in rest.iter().filter(|what| !what.is_empty()) {
            name.push('-');
            name.push_str(&in_a_name(what));
        }
        name
    }
}

/// How such words are asked for, after the rest of a command; nothing if there are none.
pub fn append_option(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(" --append '{words}'"),
    }
}

/// Words of a command line as part of a file's name.
pub fn in_a_name(words: &str) -> String {
    let plain = words.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
        _ => '-',
    });
    plain.collect()
}

fn records_of(outcomes: &[Outcome]) -> Vec<&Record> {
    outcomes.iter().map(|outcome| &outcome.record).collect()
}

/// `key=value key=value`.
pub fn pairs(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .collect()
}

/// The value of a key that must be there.
pub fn text<'a>(pairs: &BTreeMap<&str, &'a str>, key: &str) -> Result<&'a str> {
    let value = pairs.get(key);
    Ok(value.with_context(|| format!("the guest did not report {key}"))?)
}

/// The same, as a count.
pub fn number(pairs: &BTreeMap<&str, &str>, key: &str) -> Result<u64> {
    let value = text(pairs, key)?;
    value
        .parse()
        .with_context(|| format!("{key}={value} is no count"))
}

impl Record {
    /// Reads a console; an error is a guest that did not report everything.
    fn parse(console: &str, asked: &Asked<'_>) -> Result<Self> {
        let console = console::without_stamps(console);
        let mut setup = BTreeMap::new();
        let mut result = BTreeMap::new();
        let mut counters = BTreeMap::new();
        let mut slabs = BTreeMap::new();
        let mut waiting = Vec::new();
        for line in console
            .lines()
            .filter_map(|line| line.strip_prefix(PREFIX))
            .map(pairs)
        {
            match text(&line, "what")? {
                "setup" => setup = line,
                "result" => result = line,
                what @ ("counter" | "slab") => {
                    let counted = Counted {
                        before: number(&line, "before")?,
                        after: number(&line, "after")?,
                    };
                    let of_its_kind = match what {
                        "slab" => &mut slabs,
                        _ => &mut counters,
                    };
                    of_its_kind.insert(text(&line, "name")?.to_owned(), counted);
                }
                "waiting" => waiting.push(Waiting {
                    ms: number(&line, "ms")?,
                    mms: number(&line, "mms")?,
                }),
                other => anyhow::bail!("the guest reports an unknown {other}"),
            }
        }
        let policy = text(&setup, "policy")?;
        ensure!(
            policy == asked.policy,
            "the guest's policy is {policy}, asked was {}",
            asked.policy
        );
        let counted = |name: &str| -> Result<Counted> {
            let name = format!("{COUNTER}{name}");
            let counted = counters.get(&name).copied();
            counted.with_context(|| format!("the kernel has no {name} in /proc/vmstat"))
        };
        let grown = |name: &str| -> Result<u64> {
            let Counted { before, after } = counted(name)?;
            after
                .checked_sub(before)
                .with_context(|| format!("{COUNTER}{name} fell from {before} to {after}"))
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
            final_drops: grown("final_drops")?,
            scanned: grown("scanned")?,
            lazy_found: grown("found_lazy")?,
            ipis: grown("ipis")?,
            local: grown("local")?,
            piggybacked: grown("piggybacked")?,
            deferred: grown("deferred")?,
            reaped: grown("reaped")?,
            batched_rounds: grown("rounds")?,
            batched_ipis: grown("round_ipis")?,
            max_waiting: counted("max_waiting")?.after,
            longest_wait_ms: counted("longest_wait_ms")?.after,
            drained: text(&result, "drained")?.into(),
            drain_ms: number(&result, "drain_ms")?,
            lazy_at_exit: number(&result, "lazy_at_exit")?,
            workload_ms: number(&result, "ms")?,
            times_emulated: asked.accel.starts_with("tcg"),
            skip_flush: options.skip_flush,
            jobs: options.jobs,
            rounds: options.rounds,
            kernel: text(&setup, "kernel")?.into(),
            variant: asked.variant.into(),
            qemu: asked.qemu.clone(),
            waiting,
            waiting_exact: number(&result, "waiting_exact")? == 1,
            counters,
            slabs,
        })
    }

    /// What it may be compared with.
    pub fn setting(&self) -> Setting {
        Setting {
            arch: self.arch.clone(),
            mmu: self.mmu.clone(),
            skip_flush: self.skip_flush,
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

    /// IPIs of final drops that went to a lazy CPU.
    fn ipis_to_lazy(&self) -> u64 {
        self.lazy_found.saturating_sub(self.local).min(self.ipis)
    }
}

/// Boots a guest for each run, workload and policy.
///
/// Each gets a fresh one, because the kernel counts maxima from its boot on. What there is so far
/// is kept after each: a later guest may not come to its end.
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
                     LAZY_TLB_JOBS={} LAZY_TLB_ROUNDS={} {LAST_WORD}{} {}",
                    guest::NO_KUNIT,
                    options.seed,
                    options.jobs,
                    options.rounds,
                    u8::from(options.skip_flush),
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
                    accel,
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
    let initrd = sh::assignment(guest::INITRD, guest.initramfs);
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| match Path::new(word) {
            path if path.is_absolute() => path.file_name().unwrap_or(word).to_owned(),
            _ if word == initrd => {
                let name = guest.initramfs.file_name().unwrap_or_default();
                sh::assignment(guest::INITRD, name)
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
pub const CELLS: [&str; 11] = [
    "exits",
    "IPIs per 1000 exits",
    "scanned per exit",
    "found lazy",
    "piggybacked",
    "precision %",
    "rounds",
    "round IPIs",
    "all IPIs, % of unconditional",
    "max waiting",
    "longest wait ms",
];

impl Group<'_> {
    fn sum(&self, count: impl Fn(&Record) -> u64) -> u64 {
        self.records.iter().map(|record| count(record)).sum()
    }

    fn max(&self, value: impl Fn(&Record) -> u64) -> u64 {
        let values = self.records.iter().map(|record| value(record));
        values.max().unwrap_or(0)
    }

    /// Whether one of its times is an emulator's.
    fn emulated(&self) -> bool {
        self.records.iter().any(|record| record.times_emulated)
    }

    /// Whether lazy CPUs hold references, so that nothing is scanned, found or interrupted.
    pub fn counts_nothing(&self) -> bool {
        self.policy == "refcount"
    }

    /// Of final drops.
    pub fn ipis_per_1000_exits(&self) -> Option<f64> {
        ratio(self.sum(|r| r.ipis), self.sum(|r| r.exits), 1000.0)
    }

    /// Of final drops and of rounds.
    pub fn all_ipis_per_1000_exits(&self) -> Option<f64> {
        let all = self.sum(|r| r.ipis + r.batched_ipis);
        ratio(all, self.sum(|r| r.exits), 1000.0)
    }

    /// Slots looked at.
    pub fn scanned_per_exit(&self) -> Option<f64> {
        ratio(self.sum(|r| r.scanned), self.sum(|r| r.exits), 1.0)
    }

    /// The share of interrupted CPUs that were lazy, in percent.
    pub fn precision(&self) -> Option<f64> {
        let to_lazy = self.sum(Record::ipis_to_lazy);
        ratio(to_lazy, self.sum(|r| r.ipis), 100.0)
    }

    /// What a table has of it, as [`CELLS`] calls it; a time that an emulator made is marked.
    /// `rows` are those among which the policy to compare with is looked for.
    pub fn cells<'b>(&self, mut rows: impl Iterator<Item = &'b Group<'b>>) -> Vec<String> {
        let mut cells = vec![self.sum(|r| r.exits).to_string()];
        if self.counts_nothing() {
            cells.resize(CELLS.len(), "-".into());
            return cells;
        }
        let longest = self.max(|r| r.longest_wait_ms);
        let cpus = |group: &Group<'_>| group.max(|r| r.cpus as u64);
        let all = rows.find(|other| {
            let same = other.workload == self.workload && cpus(other) == cpus(self);
            same && other.policy == "unconditional"
        });
        let share = || {
            let all = all?.all_ipis_per_1000_exits().filter(|&all| all > 0.0)?;
            Some(self.all_ipis_per_1000_exits()? * 100.0 / all)
        };
        cells.extend([
            shown(self.ipis_per_1000_exits()),
            shown(self.scanned_per_exit()),
            self.sum(|r| r.lazy_found).to_string(),
            self.sum(|r| r.piggybacked).to_string(),
            shown(self.precision()),
            self.sum(|r| r.batched_rounds).to_string(),
            self.sum(|r| r.batched_ipis).to_string(),
            shown(share()),
            self.max(|r| r.max_waiting).to_string(),
            match self.emulated() {
                true => format!("{longest} (emulated)"),
                false => longest.to_string(),
            },
        ]);
        cells
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
    let groups = groups(records);
    for group in &groups {
        let names = [group.workload, group.policy].map(String::from);
        table.add_row(names.into_iter().chain(group.cells(groups.iter())));
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
        check("has no more mms waiting than CPUs", check_bound(record));
        // With fewer exits a leak could hide in what CPUs keep.
        if record.exits > 10 * SLAB_SLACK && !record.slabs.is_empty() {
            check("leaks no mm", check_slabs(record));
        }
        match record.policy.as_str() {
            "shootdown" => {
                check("interrupts lazy CPUs only", check_precision(record));
                if finds(record) {
                    check("finds lazy CPUs", check_found(record));
                }
            }
            "defer" => {
                check("interrupts in rounds only", check_rounds_only(record));
                check("has its rounds a bound apart", check_rounds_apart(record));
                check("interrupts lazy CPUs only", check_round_ipis(record));
                if finds(record) {
                    check("finds lazy CPUs", check_found(record));
                    check("defers", check_deferred(record));
                }
            }
            _ => (),
        }
        cases.push(match record.drained.as_str() {
            "unknown" => Case::skipped(name("leaves no mm waiting")),
            drained => Case::of(name("leaves no mm waiting"), check_drained(record, drained)),
        });
    }
    let groups = groups(records);
    for group in &groups {
        let other = |policy: &str| {
            let same = |g: &&Group<'_>| g.policy == policy && g.workload == group.workload;
            groups.iter().find(same)
        };
        if group.policy != "unconditional" {
            continue;
        }
        if let Some(shootdown) = other("shootdown") {
            cases.push(Case::of(
                format!("{}/unconditional interrupts no less", group.workload),
                check_order(group, shootdown),
            ));
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

fn check_precision(record: &Record) -> Result<()> {
    let Record {
        ipis,
        lazy_found,
        local,
        ..
    } = record;
    ensure!(
        *ipis <= lazy_found.saturating_sub(*local),
        "{ipis} CPUs were interrupted, {lazy_found} were found lazy, {local} of them its own"
    );
    Ok(())
}

/// Whether final drops must find lazy CPUs: an ordinary exit may leave none, but big processes that
/// unmap themselves do, unless the flush of that makes lazy CPUs let go.
fn finds(record: &Record) -> bool {
    let flush_lets_go = match record.arch.as_str() {
        "x86_64" => !record.skip_flush,
        _ => record.mmu == "radix" && record.policy != "defer",
    };
    record.workload == "threaded" && !flush_lets_go
}

fn check_found(record: &Record) -> Result<()> {
    ensure!(
        record.lazy_found > 0,
        "no CPU was found lazy in {} final drops, so nothing was shown",
        record.final_drops
    );
    Ok(())
}

fn check_rounds_only(record: &Record) -> Result<()> {
    ensure!(record.ipis == 0, "final drops sent {} IPIs", record.ipis);
    Ok(())
}

/// How long an mm waits before there is a round, `BOUND` in mm/lazy_tlb/defer.rs.
const BOUND_MS: u64 = 1000;

/// A round leaves no mm waiting, and the next one is for an mm that waits as long as the bound.
fn check_rounds_apart(record: &Record) -> Result<()> {
    let ms = record.workload_ms + record.drain_ms;
    ensure!(
        record.batched_rounds <= ms / BOUND_MS + 1,
        "{} rounds in {ms} ms",
        record.batched_rounds
    );
    Ok(())
}

/// The CPUs that are lazy on a waiting mm are among those that its final drop has found.
fn check_round_ipis(record: &Record) -> Result<()> {
    let found = record.lazy_found.saturating_sub(record.local);
    ensure!(
        record.batched_ipis <= found,
        "rounds interrupted {} CPUs, {found} were found lazy",
        record.batched_ipis
    );
    Ok(())
}

fn check_deferred(record: &Record) -> Result<()> {
    ensure!(record.deferred > 0, "no mm waited, so nothing was shown");
    Ok(())
}

fn check_bound(record: &Record) -> Result<()> {
    ensure!(
        record.max_waiting <= record.cpus as u64,
        "{} mms waited on {} CPUs",
        record.max_waiting,
        record.cpus
    );
    Ok(())
}

/// Objects that may be more in use after a workload than before: what a CPU keeps for itself.
const SLAB_SLACK: u64 = 64;

fn check_slabs(record: &Record) -> Result<()> {
    for (name, Counted { before, after }) in &record.slabs {
        ensure!(
            *after <= before + SLAB_SLACK,
            "{name} grew from {before} to {after} objects in {} exits",
            record.exits
        );
    }
    Ok(())
}

fn check_drained(record: &Record, drained: &str) -> Result<()> {
    ensure!(
        drained == "yes",
        "drained={drained} after {} ms: {} deferred, {} reaped, {} rounds",
        record.drain_ms,
        record.deferred,
        record.reaped,
        record.batched_rounds
    );
    Ok(())
}

fn check_order(unconditional: &Group<'_>, shootdown: &Group<'_>) -> Result<()> {
    let [more, less] = [unconditional, shootdown].map(|group| group.sum(|r| r.ipis));
    // Where the mask has lazy CPUs only, as on s390, both do the same, and how many CPUs were lazy is
    // by chance.
    let exact = unconditional.sum(|r| r.scanned) == unconditional.sum(|r| r.lazy_found);
    ensure!(
        more >= less || exact,
        "unconditional sent {more} IPIs, shootdown {less}"
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
    let small = |workload: &str, skip_flush: bool| {
        let options = Options {
            cpus: 4,
            policy: ["unconditional", "shootdown", "defer"]
                .map(String::from)
                .into(),
            workload: vec![workload.into()],
            seed: 1,
            jobs: 60,
            rounds: 20,
            skip_flush,
            repeat: 1,
            append: Append::default(),
            timeout: 300,
        };
        measure(project, &bed, &options, |_| Ok(()))
    };
    let mut outcomes = small("build", false)?;
    outcomes.extend(small("threaded", true)?);
    println!("\n{}\n", table(&records_of(&outcomes)));
    let cases = cases_of(&outcomes);
    Ok(cases.into_iter().map(|case| case.within("bench")).collect())
}

/// Where the records go if nothing else is said; the first says which MMU the guest has.
fn default_json(project: &Project, first: &Record) -> Result<PathBuf> {
    let name = first.setting().file_stem(Some(first.cpus));
    let dir = results::of_this_machine(project)?;
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
    let accel = guest::accelerator(&project.cache, arch, &image)?;
    let accel = guest::for_cpus(&accel, options.cpus);
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
    for case in cases.iter().filter(|case| case.status == Status::Skip) {
        println!("{}: cannot be told", case.name);
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
    use crate::console::End;

    /// A guest's console, as far as it matters.
    const CONSOLE: &str = "\
[    2.000000] Run /init as init process
lazy-tlb-guest: cpus=4
lazy-tlb-bench: what=setup policy=defer workload=threaded seed=7 jobs=60 rounds=20 skip_flush=0 cpus=4 mmu=hash kernel=7.3.4
[    3.141592] lazy-tlb-bench: what=counter name=lazy_tlb_final_drops before=9 after=29
lazy-tlb-bench: what=counter name=lazy_tlb_scanned before=20 after=80
lazy-tlb-bench: what=counter name=lazy_tlb_found_lazy before=1 after=31
lazy-tlb-bench: what=counter name=lazy_tlb_ipis before=0 after=0
lazy-tlb-bench: what=counter name=lazy_tlb_local before=0 after=0
lazy-tlb-bench: what=counter name=lazy_tlb_piggybacked before=5 after=35
lazy-tlb-bench: what=counter name=lazy_tlb_deferred before=1 after=11
lazy-tlb-bench: what=counter name=lazy_tlb_reaped before=1 after=8
lazy-tlb-bench: what=counter name=lazy_tlb_rounds before=0 after=1
lazy-tlb-bench: what=counter name=lazy_tlb_round_ipis before=0 after=3
lazy-tlb-bench: what=counter name=lazy_tlb_max_waiting before=1 after=4
lazy-tlb-bench: what=counter name=lazy_tlb_longest_wait_ms before=12 after=1103
lazy-tlb-bench: what=waiting ms=0 mms=0
lazy-tlb-bench: what=waiting ms=40 mms=3
lazy-tlb-bench: what=result exits=20 lazy_at_exit=60 ms=812 drained=yes drain_ms=1250 waiting_exact=1 samples=90 samples_dropped=0
lazy-tlb-guest: done status=0
";

    fn options() -> Options {
        Options {
            cpus: 4,
            policy: POLICIES.map(String::from).into(),
            workload: WORKLOADS.map(String::from).into(),
            seed: 7,
            jobs: 60,
            rounds: 20,
            skip_flush: false,
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
            accel: "tcg,thread=multi",
            variant: "default",
        };
        Record::parse(console, &asked)
    }

    fn record(policy: &str) -> Record {
        let console = CONSOLE.replace("policy=defer", &format!("policy={policy}"));
        let mut record = parse(&console, policy).unwrap();
        match policy {
            "shootdown" => (record.ipis, record.local) = (25, 5),
            "unconditional" => (record.ipis, record.local) = (40, 20),
            _ => (),
        }
        record
    }

    fn all() -> Vec<Record> {
        POLICIES.map(record).into()
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
        let record = parse(CONSOLE, "defer").unwrap();
        assert_eq!((record.final_drops, record.scanned), (20, 60));
        assert_eq!((record.lazy_found, record.ipis), (30, 0));
        assert_eq!((record.deferred, record.reaped), (10, 7));
        assert_eq!((record.batched_rounds, record.batched_ipis), (1, 3));
        assert_eq!((record.max_waiting, record.longest_wait_ms), (4, 1103));
        assert_eq!((record.mmu.as_str(), record.seed), ("hash", 7));
        assert_eq!(record.waiting[1], Waiting { ms: 40, mms: 3 });
        assert_eq!(record.counters["lazy_tlb_piggybacked"].after, 35);
        assert!(record.times_emulated && record.waiting_exact);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |console: &str, policy: &str| {
            let error = parse(console, policy).err().unwrap();
            format!("{error:#}")
        };
        assert!(error(CONSOLE, "shootdown").contains("policy is defer"));
        let without = CONSOLE.replace("lazy_tlb_round_ipis", "lazy_tlb_other");
        assert!(error(&without, "defer").contains("no lazy_tlb_round_ipis"));
        let fallen = CONSOLE.replace("before=9 after=29", "before=9 after=8");
        assert!(error(&fallen, "defer").contains("fell from 9 to 8"));
        assert!(error(&CONSOLE.replace(" exits=20", ""), "defer").contains("exits"));
        assert!(error("", "defer").contains("policy"));
    }

    #[test]
    fn good_records_pass() {
        assert_eq!(failures(&all()), Vec::<String>::new());
        let all = all();
        let count = verdict(&all.iter().collect::<Vec<_>>()).len();
        // Bound and drained for each; 2 of shootdown, 5 of defer; the order; the exits.
        assert_eq!(count, 2 * 4 + 2 + 5 + 1 + 1);
    }

    #[test]
    fn an_ipi_to_a_cpu_that_is_not_lazy_fails() {
        assert_eq!(
            broken("shootdown", |r| r.ipis += 1),
            ["threaded/shootdown/1 interrupts lazy CPUs only"]
        );
        assert_eq!(
            broken("shootdown", |r| r.local += 1),
            ["threaded/shootdown/1 interrupts lazy CPUs only"]
        );
    }

    #[test]
    fn a_run_without_lazy_cpus_shows_nothing() {
        let none = |r: &mut Record| {
            (r.lazy_found, r.ipis, r.local, r.batched_ipis) = (0, 0, 0, 0);
        };
        assert_eq!(
            broken("shootdown", none),
            ["threaded/shootdown/1 finds lazy CPUs"]
        );
        assert_eq!(broken("defer", none), ["threaded/defer/1 finds lazy CPUs"]);
        assert_eq!(
            broken("defer", |r| r.deferred = 0),
            ["threaded/defer/1 defers"]
        );
        // The build need not find any.
        let mut build = record("shootdown");
        build.workload = "build".into();
        none(&mut build);
        assert!(failures(&[build]).is_empty());
    }

    #[test]
    fn defer_must_not_interrupt_outside_rounds() {
        assert_eq!(
            broken("defer", |r| r.ipis = 1),
            ["threaded/defer/1 interrupts in rounds only"]
        );
    }

    #[test]
    fn rounds_are_rare_and_for_lazy_cpus() {
        let often = "threaded/defer/1 has its rounds a bound apart";
        let most = |r: &mut Record| r.batched_rounds = (r.workload_ms + r.drain_ms) / BOUND_MS + 1;
        assert!(broken("defer", most).is_empty());
        let more = |r: &mut Record| r.batched_rounds = (r.workload_ms + r.drain_ms) / BOUND_MS + 2;
        assert_eq!(broken("defer", more), [often]);
        assert_eq!(
            broken("defer", |r| r.batched_ipis = r.lazy_found - r.local + 1),
            ["threaded/defer/1 interrupts lazy CPUs only"]
        );
    }

    #[test]
    fn more_waiting_mms_than_cpus_fail() {
        assert_eq!(
            broken("defer", |r| r.max_waiting = 5),
            ["threaded/defer/1 has no more mms waiting than CPUs"]
        );
    }

    #[test]
    fn unconditional_must_not_interrupt_less() {
        assert_eq!(
            broken("unconditional", |r| r.ipis = 24),
            ["threaded/unconditional interrupts no less"]
        );
        assert!(broken("unconditional", |r| r.ipis = 25).is_empty());
        let exact = broken("unconditional", |r| {
            r.ipis = 24;
            r.lazy_found = r.scanned;
        });
        assert!(exact.is_empty(), "{exact:?}");
    }

    #[test]
    fn a_mm_that_is_left_fails_and_an_unknown_is_skipped() {
        assert_eq!(
            broken("defer", |r| r.drained = "no".into()),
            ["threaded/defer/1 leaves no mm waiting"]
        );
        let mut unknown = record("defer");
        unknown.drained = "unknown".into();
        let cases = verdict(&[&unknown]);
        assert!(cases.iter().any(|case| case.status == Status::Skip));
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
            record: record("defer"),
            report: Report::new(text, End::Exited, 4, Path::new("gone")),
        };
        let failed = |outcome: Outcome| {
            let cases = cases_of(&[outcome]);
            let failed = cases.into_iter().filter(|case| case.status == Status::Fail);
            failed.map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(failed(outcome(text)), ["threaded/defer/1 has no warning"]);
        assert!(failed(outcome(CONSOLE.into())).is_empty());
    }

    #[test]
    fn the_table_has_rates_and_takes_runs_together() {
        let mut records = all();
        records.push(Record {
            run: 2,
            ipis: 15,
            lazy_found: 20,
            ..record("shootdown")
        });
        let text = table(&records.iter().collect::<Vec<_>>());
        let row = text
            .lines()
            .find(|line| line.contains("shootdown"))
            .unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        // 25 + 15 IPIs in 40 exits, 120 scanned, all 40 to lazy CPUs.
        assert_eq!(cells[3..6], ["40", "1000.00", "3.00"], "{text}");
        assert_eq!(cells[8], "100.00", "{text}");
        // With those of rounds, 46 in 40; unconditional has 43 in 20.
        assert_eq!(cells[11], "53.49", "{text}");
        // 30 were lazy, but 20 of these its own CPU: 10 of 40.
        let row = text
            .lines()
            .find(|l| l.contains("| unconditional"))
            .unwrap();
        assert!(row.contains("25.00"), "{text}");
        assert!(text.contains("emulated"), "{text}");
    }

    #[test]
    fn the_json_is_a_list_of_records_with_the_keys_promised() {
        let all = all();
        let text = serde_json::to_string(&all.iter().collect::<Vec<_>>()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let list = json.as_array().unwrap();
        assert_eq!(list.len(), 4);
        for key in [
            "policy",
            "arch",
            "mmu",
            "cpus",
            "workload",
            "seed",
            "exits",
            "scanned",
            "lazy_found",
            "ipis",
            "local",
            "piggybacked",
            "batched_rounds",
            "batched_ipis",
            "max_waiting",
            "longest_wait_ms",
            "run",
            "kernel",
            "qemu",
            "counters",
        ] {
            assert!(list[0].get(key).is_some(), "{key}");
        }
        assert_eq!(list[2]["waiting"][1]["mms"], 3);
        assert_eq!(list[2]["counters"]["lazy_tlb_rounds"]["after"], 1);
    }

    /// With a script as the emulator: who is booted, with what, and what is kept.
    #[test]
    fn every_policy_and_workload_gets_a_guest() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("qemu");
        let fill = "s/policy=defer/policy='$policy'/; s/workload=threaded/workload='$workload'/";
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
            ..*crate::arch::find("x86_64").unwrap()
        };
        let project = Project {
            repo: crate::project::repository(),
            cache: crate::cache::Cache::at(dir.path().join("cache")).unwrap(),
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
        assert_eq!((outcomes.len(), kept.get()), (2 * 2 * 4, 16));
        let last = &outcomes[15].record;
        assert_eq!(
            (last.workload.as_str(), last.policy.as_str()),
            ("threaded", "refcount")
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
    fn an_mm_that_leaks_is_noticed_after_enough_exits() {
        let console =
            format!("{CONSOLE}lazy-tlb-bench: what=slab name=mm_struct before=40 after=90\n");
        let read = parse(&console, "defer").unwrap();
        let grown = read.slabs["mm_struct"];
        assert_eq!((grown.before, grown.after), (40, 90));
        let failures = |exits: u64, after: u64| {
            broken("defer", |record| {
                record.exits = exits;
                record.slabs = [("mm_struct".into(), Counted { before: 40, after })].into();
            })
        };
        let leaks =
            |failures: Vec<String>| failures.iter().any(|name| name.contains("leaks no mm"));
        assert!(leaks(failures(10_000, 10_000)));
        assert!(!leaks(failures(10_000, 60)));
        assert!(!leaks(failures(100, 10_000)), "too few to tell");
    }

    #[test]
    fn a_file_is_named_after_what_is_in_it() {
        let setting = record("defer").setting();
        assert_eq!(setting.file_stem(Some(4)), "ipis-powerpc-hash-4");
        let setting = Setting {
            skip_flush: true,
            variant: "test".into(),
            append: "a=1 b".into(),
            ..setting
        };
        let stem = "ipis-powerpc-hash-8-skipflush-test-a-1-b";
        assert_eq!(setting.file_stem(Some(8)), stem);
        assert_eq!(setting.file_stem(None), stem.replace("-8", ""));
    }

    #[test]
    fn a_record_is_read_back_and_may_be_older_than_the_variant() {
        let text = serde_json::to_string(&record("defer")).unwrap();
        let read: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(read.variant, "default");
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let older = text.replace("\"variant\":\"default\",", "");
        assert_ne!(older, text);
        let read: Record = serde_json::from_str(&older).unwrap();
        assert_eq!(read.variant, "");
    }

    #[test]
    fn the_command_line_names_no_folder() {
        let mut guest = Guest {
            smp: 128,
            append: "lazy_tlb=defer",
            ..Guest::of(
                crate::arch::find("x86_64").unwrap(),
                "tcg",
                Path::new("/some/where/bzImage"),
                Path::new("/some/where/bench-init.cpio"),
                "log".into(),
            )
        };
        let line = command_line(&guest).join(" ");
        assert!(line.starts_with("qemu-system-x86_64 "), "{line}");
        assert!(line.contains("-smp 128") && line.contains("lazy_tlb=defer"));
        assert!(line.contains("-kernel bzImage") && !line.contains("/some"));
        guest.arch = crate::arch::find("um").unwrap();
        let line = command_line(&guest).join(" ");
        assert!(
            line.starts_with("bzImage ") && !line.contains("/some"),
            "{line}"
        );
        assert!(line.contains(" initrd=bench-init.cpio ") && line.contains("rdinit=/init"));
    }
}
