//! `report`: tables and plots of what the benchmarks wrote into `results/`, one folder per machine.
//!
//! The same files give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::de::DeserializeOwned;

use crate::bench::boots::{self, MEASURES};
use crate::bench::ipis::{Group, Record, Setting, CELLS, WORKLOADS};
use crate::bench::kernel;
use crate::bench::lines;
use crate::bench::paired;
use crate::host::arch::{Kind, KINDS};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::workshop::Project;
use crate::report::plot::{diagram, page, Axis, Line, Point, PANEL};
use crate::results::machine::Machine;
use crate::results::sample::{append_option, Spread};

/// What the report is called.
const REPORT: &str = "REPORT.md";
/// How the names of `bench ipis`' files and of their plots begin.
const IPIS: &str = "ipis-";

/// Which results.
#[derive(Args)]
pub struct Options {
    /// The folder with one folder per machine; without it, results/.
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

/// Everything in the folder of one machine.
#[derive(Default)]
struct Folder {
    name: String,
    /// Each file by its name.
    kernel: BTreeMap<String, kernel::Results>,
    /// Each file by its name.
    paired: BTreeMap<String, paired::Results>,
    /// Each file by its name.
    lines: BTreeMap<String, lines::Results>,
    /// Each file by its name.
    ipis: BTreeMap<String, Vec<Record>>,
    perf: BTreeMap<String, boots::Results>,
    /// JSON that no benchmark of today writes.
    unknown: Vec<String>,
}

impl Folder {
    /// Whether no benchmark has written anything here.
    fn is_empty(&self) -> bool {
        let timed = self.kernel.is_empty() && self.perf.is_empty() && self.paired.is_empty();
        timed && self.ipis.is_empty() && self.lines.is_empty()
    }

    /// Reads it; a file that cannot be read is an error that names it.
    fn load(dir: &Path) -> Result<Self> {
        let mut folder = Folder {
            name: name_of(dir),
            ..Folder::default()
        };
        for path in files(dir)? {
            let name = name_of(&path);
            if !name.ends_with(".json") {
                continue;
            }
            if name.starts_with(kernel::FILES) {
                let kernel: kernel::Results = parse(&path, "cargo xtask bench kernel")?;
                if kernel.samples.is_empty() {
                    return Err(bad(&path, "cargo xtask bench kernel", "it has no sample"));
                }
                folder.kernel.insert(name, kernel);
            } else if name.starts_with(paired::FILES) {
                let paired: paired::Results = parse(&path, "cargo xtask bench exit")?;
                if paired.samples.is_empty() {
                    return Err(bad(&path, "cargo xtask bench exit", "it has no sample"));
                }
                folder.paired.insert(name, paired);
            } else if name.starts_with(lines::FILES) {
                let lines: lines::Results = parse(&path, "cargo xtask bench lines")?;
                if lines.samples.is_empty() {
                    return Err(bad(&path, "cargo xtask bench lines", "it has no sample"));
                }
                folder.lines.insert(name, lines);
            } else if name.starts_with(IPIS) {
                let records: Vec<Record> = parse(&path, "cargo xtask bench ipis")?;
                if records.is_empty() {
                    return Err(bad(&path, "cargo xtask bench ipis", "it has no record"));
                }
                folder.ipis.insert(name, records);
            } else if name.starts_with(boots::FILES) {
                let results = parse(&path, "cargo xtask lab --import FILE")?;
                folder.perf.insert(name, results);
            } else {
                folder.unknown.push(name);
            }
        }
        Ok(folder)
    }

    /// The report and its plots, each with its name.
    fn write_up(&self) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        let mut report = format!(
            "# Results: {}\n\nWritten by `cargo xtask report` from the JSON files beside it.\n",
            self.name
        );
        report.push_str("\n## The kernel's own benchmark\n");
        match self.kernel.is_empty() {
            true => report.push_str("\nNothing was measured.\n"),
            false => report.push_str(KERNEL_INTRODUCTION),
        }
        for (file, kernel) in &self.kernel {
            report.push_str(&kernel.section(file));
        }
        report.push_str("\n## Interrupts\n\n");
        let sections = self.sections();
        match sections.is_empty() {
            true => report.push_str("Nothing was measured.\n"),
            false => report.push_str(IPIS_INTRODUCTION),
        }
        for (setting, section) in &sections {
            let plot = format!("{}.svg", setting.file_stem(None));
            report.push_str(&ipis_section(setting, section, &plot));
            files.insert(plot, ipis_plot(setting, section)?);
        }
        report.push_str("\n## perf bench sched lazy-tlb\n\n");
        let boots = self.boots();
        match boots.is_empty() {
            true => report.push_str("Nothing was measured.\n"),
            false => report.push_str(PERF_INTRODUCTION),
        }
        for (index, (setting, boots)) in boots.iter().enumerate() {
            let plot = format!("{}{}.svg", boots::FILES, index + 1);
            report.push_str(&perf_section(setting, boots, &plot));
            files.insert(plot, perf_plot(setting, boots)?);
        }
        report.push_str("\n## Policies beside each other on one boot\n");
        match self.paired.is_empty() {
            true => report.push_str("\nNothing was measured.\n"),
            false => report.push_str(PAIRED_INTRODUCTION),
        }
        for (file, paired) in &self.paired {
            report.push_str(&paired.section(file));
        }
        report.push_str("\n## Cache lines\n");
        match self.lines.is_empty() {
            true => report.push_str("\nNothing was counted.\n"),
            false => report.push_str(LINES_INTRODUCTION),
        }
        for (file, lines) in &self.lines {
            report.push_str(&lines.section(file));
        }
        report.push_str("\n## Missing\n\n");
        report.push_str(&list(&self.missing()));
        if !self.unknown.is_empty() {
            report.push_str("\n## Not read\n\n");
            report.push_str(&list(&self.unknown));
        }
        files.insert(REPORT.to_owned(), report);
        Ok(files)
    }

    /// The records of all files by what they may be compared with.
    fn sections(&self) -> BTreeMap<Setting, Section<'_>> {
        let mut sections: BTreeMap<Setting, Section<'_>> = BTreeMap::new();
        for (file, records) in &self.ipis {
            for record in records {
                let section = sections.entry(record.setting()).or_default();
                section.files.entry(file).or_default().push(record);
                let place = |names: &[&str], name: &str| {
                    let known = names.iter().position(|known| *known == name);
                    (known.unwrap_or(names.len()), name.to_owned())
                };
                let key = (
                    place(&WORKLOADS, &record.workload),
                    record.cpus,
                    place(&policy::ALL, &record.policy),
                );
                let row = section.rows.entry(key).or_insert_with(|| Group {
                    policy: &record.policy,
                    workload: &record.workload,
                    records: Vec::new(),
                });
                row.records.push(record);
            }
        }
        sections
    }

    /// What perf bench measured, by what it may be compared with, and then by policy.
    fn boots(&self) -> BTreeMap<boots::Setting, Boots<'_>> {
        let mut boots: BTreeMap<boots::Setting, Boots<'_>> = BTreeMap::new();
        for (file, results) in &self.perf {
            // A column for each of the three, whether or not it was booted.
            let all = || policy::ALL.iter().enumerate();
            let columns = boots.entry(results.setting()).or_insert_with(|| {
                let column = |(place, name): (usize, &&str)| (place, (*name).to_owned());
                all().map(|c| (column(c), BTreeMap::new())).collect()
            });
            let known = all().find(|(_, name)| **name == results.policy);
            let place = known.map_or(policy::ALL.len(), |(place, _)| place);
            let column = (place, results.policy.clone());
            columns.entry(column).or_default().insert(file, results);
        }
        boots
    }

    /// What nobody has measured on this machine, and how to.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.kernel.is_empty() {
            let how = "cargo xtask bench kernel --arch um";
            missing.push(format!("the kernel's own benchmark: `{how}`"));
        }
        for (setting, boots) in self.boots() {
            for (_, policy) in boots.iter().filter(|b| b.1.is_empty()).map(|b| b.0) {
                missing.push(match &setting.guest {
                    None => format!(
                        "perf bench of {policy} on Linux {}: boot it with `lazy_tlb={policy}` and \
                         run `lazy-tlb-lab.sh`",
                        setting.release
                    ),
                    Some(guest) => format!("perf bench of {policy}: `{}`", guest.command),
                });
            }
        }
        if self.perf.is_empty() {
            missing.push("perf bench, under all policies: `cargo xtask lab --config FILE`".into());
        }
        for kind in &KINDS {
            let is_of = |record: &Record| {
                let same = |mmu: &str| mmu.eq_ignore_ascii_case(&record.mmu);
                record.arch == kind.arch().name && kind.mmu.is_none_or(same)
            };
            if !self.ipis.values().flatten().any(is_of) {
                missing.push(format!("interrupts of {}: `{}`", kind.name, again(kind)));
            }
        }
        missing
    }
}

/// The runs of one setting.
#[derive(Default)]
struct Section<'a> {
    files: BTreeMap<&'a str, Vec<&'a Record>>,
    rows: BTreeMap<Key, Group<'a>>,
}

/// Workload, CPUs, policy; the names with their places in the tables' order.
type Key = ((usize, String), usize, (usize, String));

const KERNEL_INTRODUCTION: &str = "
CPUs borrow and give back one mm, all at once, and do nothing else. A final drop looks at the slots of so
many CPUs and finds none lazy; on um it also ends a process of the host, which is nearly all of its time.
";

const LINES_INTRODUCTION: &str = "
Pairs of threads of one process hand a byte to and fro, the two ends of each pair on different CPUs: a trip goes
from user to idle and back. A plugin of the emulator counts how often each line has to move to another CPU, all
caches being as large as it takes; a read that writes asks for its line once. Over the boots: the median, with the
least and the greatest. `slot` is `lazy_tlb_slot` alone; then come the ten lines that move most, of those that more
than two CPUs touch. A name with `()` is of the function that moves it most. Nothing here is a time.
";

const PAIRED_INTRODUCTION: &str = "
The guest changes the policy itself, all of them once in each round. A ratio is of two values of the same round. An exit
is timed from `_exit()` to the parent's return from `waitpid()`, when it leaves all CPUs lazy on its mm, or none.
";

/// The files of each policy, the policies with their places in the table's order.
type Boots<'a> = BTreeMap<(usize, String), BTreeMap<&'a str, &'a boots::Results>>;

const PERF_INTRODUCTION: &str = "\
Medians with the least and the greatest of all repeats, and how many those are. The controls should not
differ between policies; a difference within the spread is none. The numbers of mms and interrupts are the
kernel's own counts over all runs, of the whole system. The time of an exit includes freeing the mm itself, but
with refcount, where the next task on that CPU does it, after the exit was reported.
";

const IPIS_INTRODUCTION: &str = "\
Counts of the kernel's own, in guests. Runs of the same row are taken together. Function-call interrupts are
all that there were, whoever made them; only x86 counts those of TLB flushes.
";

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What is in a folder, by name.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|e| Ok(e?.path())).collect();
    let mut paths = paths?;
    paths.sort();
    Ok(paths)
}

fn parse<T: DeserializeOwned>(path: &Path, command: &str) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| bad(path, command, &error.to_string()))
}

fn bad(path: &Path, command: &str, why: &str) -> anyhow::Error {
    fail(
        Exit::Internal,
        format!("{} is not what `{command}` writes: {why}", path.display()),
        format!("write it again with `{command}`, or move it out of the folder"),
    )
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        return "Nothing.\n".into();
    }
    items.iter().map(|item| format!("- {item}\n")).collect()
}

/// How to measure what is missing.
fn again(kind: &Kind) -> String {
    let mut command = format!("cargo xtask bench ipis --arch {}", kind.arch().name);
    // What the others append is for the tests only.
    if kind.mmu.is_some() && !kind.append.is_empty() {
        command.push_str(&format!(" --append {}", kind.append));
    }
    command
}

/// What a setting is called.
fn title(setting: &Setting) -> String {
    let kinds = || KINDS.iter().filter(|kind| kind.arch().name == setting.arch);
    let mut words = vec![setting.arch.clone()];
    // Said where the architecture has several, or if it is not the architecture's own name.
    if kinds().any(|kind| kind.mmu.is_some()) {
        words.push(format!("{} MMU", setting.mmu));
    }
    if let Some(variant) = setting.unusual_variant() {
        words.push(format!("variant {variant}"));
    }
    if !setting.append.is_empty() {
        words.push(setting.append.clone());
    }
    words.join(", ")
}

/// The different values, the least first.
fn distinct<T: Ord + ToString>(values: impl Iterator<Item = T>) -> String {
    let values: BTreeSet<T> = values.collect();
    let values: Vec<String> = values.iter().map(T::to_string).collect();
    values.join(", ")
}

fn ipis_section(setting: &Setting, section: &Section<'_>, plot: &str) -> String {
    let mut text = format!("\n### {}\n\n", title(setting));
    for (file, records) in &section.files {
        let commands = commands(setting, records);
        text.push_str(&format!(
            "From `{file}`; again: {}\n\n",
            commands.join(", ")
        ));
    }
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    let names = ["workload", "CPUs", "policy", "runs", "seeds", "kernel"];
    table.set_header(names.into_iter().chain(CELLS));
    for ((_, cpus, _), row) in &section.rows {
        let records = || row.records.iter();
        let names = [
            row.workload.into(),
            cpus.to_string(),
            row.policy.into(),
            row.records.len().to_string(),
            distinct(records().map(|record| record.seed)),
            distinct(records().map(|record| record.kernel.as_str())),
        ];
        table.add_row(names.into_iter().chain(row.cells()));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if ![0, 2, 5].contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    text.push_str(&format!("{table}\n\n![{}]({plot})\n", title(setting)));
    text
}

/// The commands that write a file again: one, unless it was put together by hand.
fn commands(setting: &Setting, records: &[&Record]) -> Vec<String> {
    let mut calls: BTreeMap<(usize, u32, u32, u32), Vec<&Record>> = BTreeMap::new();
    for &record in records {
        let Record {
            cpus,
            seed,
            jobs,
            big,
            ..
        } = *record;
        calls
            .entry((cpus, seed, jobs, big))
            .or_default()
            .push(record);
    }
    let command = |((cpus, seed, jobs, big), records): (_, Vec<&Record>)| {
        let mut command = format!("cargo xtask bench ipis --arch {}", setting.arch);
        if let Some(variant) = setting.unusual_variant() {
            command.push_str(&format!(" --variant {variant}"));
        }
        command.push_str(&format!(
            " --cpus {cpus} --seed {seed} --jobs {jobs} --big {big}"
        ));
        let some = |flag: &str, all: &[&str], of: fn(&Record) -> &str| {
            let used = |name: &&&str| records.iter().any(|record| of(record) == **name);
            let some: Vec<&str> = all.iter().filter(used).copied().collect();
            match some.len() == all.len() {
                true => String::new(),
                false => format!(" --{flag} {}", some.join(",")),
            }
        };
        command.push_str(&some("policy", &policy::ALL, |record| &record.policy));
        command.push_str(&some("workload", &WORKLOADS, |record| &record.workload));
        let runs = records.iter().map(|record| record.run).max().unwrap_or(1);
        if runs > 1 {
            command.push_str(&format!(" --repeat {runs}"));
        }
        command.push_str(&append_option(&setting.append));
        format!("`{command}`")
    };
    calls.into_iter().map(command).collect()
}

/// The boots of each policy, in the table's order.
fn columns<'a, 'b>(boots: &'b Boots<'a>) -> Vec<(&'b str, Vec<&'a boots::Results>)> {
    boots
        .iter()
        .map(|((_, policy), files)| (policy.as_str(), files.values().copied().collect()))
        .collect()
}

/// A column for each policy.
fn perf_section(setting: &boots::Setting, boots: &Boots<'_>, plot: &str) -> String {
    let columns = columns(boots);
    let mut text = format!("\n### Linux {}\n\n", setting.release);
    let first = columns.iter().find_map(|(_, boots)| boots.first());
    let emulated = match &setting.guest {
        Some(guest) => guest.times_emulated,
        // Where somebody tried the script in QEMU, the CPU's name says so on x86.
        None => first.is_some_and(|boot| boot.machine.cpu_model.contains("QEMU TCG")),
    };
    if let Some(guest) = &setting.guest {
        let append = match guest.append.as_str() {
            "" => String::new(),
            words => format!(", `{words}`"),
        };
        let variant = match guest.variant.as_str() {
            "default" => String::new(),
            variant => format!(", variant {variant}"),
        };
        text = format!(
            "\n### Guest {}{variant}{append}, {} CPUs\n\n",
            guest.arch, guest.cpus
        );
        text.push_str(&format!(
            "On {}; again: `{}`\n\n",
            guest.host, guest.command
        ));
    }
    if emulated {
        text.push_str(
            "**Emulated:** the times are an emulator's, and say nothing of a machine. What can be \
             compared is whether one policy does more than another.\n\n",
        );
    }
    if let Some(first) = first {
        let Machine {
            cpu_model, cpus, ..
        } = &first.machine;
        text.push_str(&format!(
            "{cpu_model}, {cpus} CPUs ({}), Linux {} {}, command line: `{}`\n\n",
            first.machine.kind(),
            setting.release,
            setting.version,
            setting.cmdline
        ));
    }
    let files: Vec<String> = boots
        .values()
        .flat_map(BTreeMap::keys)
        .map(|file| format!("`{file}`"))
        .collect();
    text.push_str(&format!("From {}\n\n", files.join(", ")));
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    let names = columns.iter().map(|(policy, _)| *policy);
    table.set_header(std::iter::once("").chain(names));
    let mut row = |name: String, cell: &dyn Fn(&[&boots::Results]) -> Option<String>| {
        let cells = columns.iter().map(|(_, boots)| match boots.is_empty() {
            true => "missing".into(),
            false => cell(boots).unwrap_or_else(|| "-".into()),
        });
        table.add_row(std::iter::once(name).chain(cells));
    };
    row("boots".into(), &|boots| Some(boots.len().to_string()));
    for measure in &MEASURES {
        row(format!("{}, {}", measure.what, measure.unit), &|boots| {
            let (spread, count) = measure.spread(boots)?;
            Some(format!("{} of {count}", spread.shown()))
        });
    }
    row("least switches per trip".into(), &|boots| {
        Some(format!("{:.2}", boots::switches_per_trip(boots)?))
    });
    for (name, counter) in [
        ("final drops", "final_drops"),
        ("CPUs handed a reference", "handed"),
        ("CPUs nudged", "nudged"),
    ] {
        row(name.into(), &|boots| {
            Some(boots::counted(boots, counter)?.to_string())
        });
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    text.push_str(&format!(
        "{table}\n\n![Medians, bars from the least to the greatest]({plot})\n"
    ));
    let all = columns.iter().flat_map(|(_, boots)| boots);
    let kernel: Vec<_> = all.flat_map(|boot| boot.kernel.clone()).collect();
    if !kernel.is_empty() {
        let first = "the kernel's own benchmark: ns, median (min..max) of its runs' medians";
        text.push_str(&format!("\n{}\n", kernel::table(&kernel, first)));
    }
    text
}

/// What is plotted of `bench ipis`: what it is called, its unit, and how to get it.
type Metric = (&'static str, &'static str, fn(&Group<'_>) -> Option<f64>);
const METRICS: [Metric; 3] = [
    ("CPUs nudged", "per 1000 exits", |row| {
        row.nudged_per_1000_exits()
    }),
    ("function-call interrupts", "per 1000 exits", |row| {
        row.calls_per_1000_exits()
    }),
    ("slots scanned", "per exit", |row| row.scanned_per_exit()),
];

/// A column for each workload, a row for each metric.
fn ipis_plot(setting: &Setting, section: &Section<'_>) -> Result<String> {
    let rows = || section.rows.values();
    let cpus: BTreeSet<usize> = section.rows.keys().map(|(_, cpus, _)| *cpus).collect();
    let cpus: Vec<usize> = cpus.into_iter().collect();
    let places: BTreeSet<&(usize, String)> = section.rows.keys().map(|key| &key.0).collect();
    let workloads: Vec<&str> = places.iter().map(|(_, name)| name.as_str()).collect();
    let policies: BTreeSet<&(usize, String)> = section.rows.keys().map(|key| &key.2).collect();
    let policies = policies.iter().map(|(_, name)| name.as_str());
    let policies: Vec<&str> = policies
        .filter(|name| rows().any(|row| row.policy == *name))
        .collect();
    let columns = workloads.len();
    let grid = (columns, METRICS.len());
    page(&title(setting), &policies, PANEL, grid, |index, area| {
        let workload = workloads[index % columns];
        let (what, unit, value) = METRICS[index / columns];
        let lines = policies.iter().map(|&name| {
            let of = |row: &&Group<'_>| row.policy == name && row.workload == workload;
            let point = |row: &Group<'_>| {
                let own = row.records[0].cpus;
                Some(Point {
                    place: cpus.iter().position(|&cpus| cpus == own)?,
                    value: value(row)?,
                    range: None,
                })
            };
            let points = rows().filter(of).filter_map(point).collect();
            Line { name, points }
        });
        let lines: Vec<Line<'_>> = lines.collect();
        let title = format!("{workload}: {what}");
        diagram(area, &title, unit, &Axis::of_cpus(&cpus), &lines)
    })
}

/// A diagram for each measure, with the policies side by side.
fn perf_plot(setting: &boots::Setting, boots: &Boots<'_>) -> Result<String> {
    let columns = columns(boots);
    let policies: Vec<&str> = columns.iter().map(|(policy, _)| *policy).collect();
    let axis = Axis {
        name: "lazy_tlb=",
        places: policies.iter().map(|policy| (*policy).to_owned()).collect(),
    };
    let title = format!("perf bench sched lazy-tlb, Linux {}", setting.release);
    page(&title, &policies, PANEL, (4, 2), |index, area| {
        let measure = &MEASURES[index];
        let point = |place, (spread, _): (Spread, usize)| Point {
            place,
            value: spread.median,
            range: Some((spread.min, spread.max)),
        };
        let lines = columns
            .iter()
            .enumerate()
            .map(|(place, (name, boots))| Line {
                name,
                points: (measure.spread(boots).into_iter())
                    .map(|spread| point(place, spread))
                    .collect(),
            });
        let lines: Vec<Line<'_>> = lines.collect();
        diagram(area, measure.what, measure.unit, &axis, &lines)
    })
}

/// Writes the files of a folder, and removes plots that nothing is left to plot of.
fn write(dir: &Path, written: &BTreeMap<String, String>) -> Result<()> {
    for (name, content) in written {
        sh::write_whole(&dir.join(name), content.as_bytes())?;
    }
    for path in files(dir)? {
        let name = name_of(&path);
        let ours = [IPIS, boots::FILES]
            .iter()
            .any(|begin| name.starts_with(begin));
        if ours && name.ends_with(".svg") && !written.contains_key(&name) {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// `report` itself: reads every folder, and writes only if all could be read.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    let own = || project.repo.join("results");
    let results = options.results.clone().unwrap_or_else(own);
    let nothing = || {
        fail(
            Exit::Usage,
            format!("there are no results in {}", results.display()),
            "run `cargo xtask bench kernel --arch um` or `cargo xtask bench ipis` first",
        )
    };
    if !results.is_dir() {
        return Err(nothing());
    }
    let mut reports = Vec::new();
    for dir in files(&results)?.into_iter().filter(|path| path.is_dir()) {
        let folder = Folder::load(&dir)?;
        if !folder.is_empty() {
            reports.push((dir, folder.write_up()?));
        }
    }
    if reports.is_empty() {
        return Err(nothing());
    }
    for (dir, written) in reports {
        write(&dir, &written)?;
        println!("{}", dir.join(REPORT).display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;

    /// A file of `bench ipis` with one record for each policy.
    fn ipis(arch: &str, mmu: &str, cpus: usize, seed: u32) -> String {
        let record = |policy: &&str| {
            serde_json::json!({
                "policy": policy, "arch": arch, "mmu": mmu, "cpus": cpus, "workload": "build",
                "seed": seed, "run": 1, "exits": 1000, "final_drops": 1000, "scanned": 3000,
                "handed": 50, "nudged": if *policy == "shootdown" { 40 } else { 0 },
                "irqs_call": 700, "irqs_tlb": null, "lazy_at_exit": 0, "workload_ms": 1,
                "jobs": 60, "big": 20, "kernel": "7.3.4", "variant": "default",
                "qemu": ["qemu", "a=b LAZY_TLB_BIG=20"], "counters": {},
            })
        };
        let records: Vec<_> = policy::ALL.iter().map(record).collect();
        serde_json::to_string(&records).unwrap()
    }

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let machine = dir.path().join("machine");
        fs::create_dir(&machine).unwrap();
        for (name, content) in files {
            fs::write(machine.join(name), content).unwrap();
        }
        dir
    }

    fn loaded(files: &[(&str, String)]) -> Result<Folder> {
        Folder::load(&folder(files).path().join("machine"))
    }

    fn report(files: &[(&str, String)]) -> String {
        let mut written = loaded(files).unwrap().write_up().unwrap();
        written.remove(REPORT).unwrap()
    }

    const KERNEL_FILE: &str = "kernel-um-2.json";

    fn kernel() -> String {
        serde_json::to_string(&kernel::tests::example()).unwrap()
    }

    /// The cells of a row that begins with these.
    fn row(report: &str, begin: [&str; 3]) -> Vec<String> {
        let cells = |line: &str| -> Vec<String> {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        };
        let found = report
            .lines()
            .map(cells)
            .find(|row| row.starts_with(&begin.map(String::from)));
        found.unwrap_or_else(|| panic!("no {begin:?} in {report}"))
    }

    #[test]
    fn files_of_one_setting_are_taken_together() {
        let report = report(&[
            ("ipis-a.json", ipis("x86_64", "x86_64", 4, 1)),
            ("ipis-b.json", ipis("x86_64", "x86_64", 4, 2)),
            ("ipis-c.json", ipis("x86_64", "x86_64", 8, 1)),
            ("ipis-d.json", ipis("powerpc", "hash", 4, 1)),
        ]);
        assert_eq!(report.matches("\n### ").count(), 2, "{report}");
        assert!(report.contains("### powerpc, hash MMU\n"), "{report}");
        let both = row(&report, ["build", "4", "shootdown"]);
        assert!(report.find("### powerpc") < report.find("### x86_64"));
        // The first is of powerpc, with one run.
        assert_eq!(both[3..5], ["1", "1"]);
        let x86 = &report[report.find("### x86_64").unwrap()..];
        let both = row(x86, ["build", "4", "shootdown"]);
        assert_eq!(both[3..9], ["2", "1, 2", "7.3.4", "2000", "2000", "3.00"]);
        assert_eq!(both[9..13], ["100", "80", "700.00", "-"]);
        for file in ["ipis-a.json", "ipis-b.json", "ipis-c.json"] {
            assert!(x86.contains(&format!("From `{file}`")), "{x86}");
        }
        let again = "`cargo xtask bench ipis --arch x86_64 --cpus 4 --seed 2 --jobs 60 \
             --big 20 --workload build`";
        assert!(x86.contains(again), "{x86}");
    }

    #[test]
    fn settings_that_differ_are_not() {
        let text = ipis("x86_64", "x86_64", 4, 1);
        let report = report(&[
            ("ipis-a.json", text.clone()),
            ("ipis-c.json", text.replace("\"default\"", "\"test\"")),
            ("ipis-d.json", text.replace("BIG=20", "BIG=20 quiet x")),
        ]);
        for title in [
            "### x86_64\n",
            "### x86_64, variant test\n",
            "### x86_64, quiet x\n",
        ] {
            assert!(report.contains(title), "{title} {report}");
        }
        for words in [" --variant test ", " --append 'quiet x'`"] {
            assert!(report.contains(words), "{words} {report}");
        }
    }

    #[test]
    fn what_is_missing_is_listed_with_its_command() {
        let report_of_kernel = report(&[(KERNEL_FILE, kernel())]);
        assert!(!report_of_kernel.contains("- the kernel's own benchmark"));
        for command in [
            "--arch s390`",
            "--arch powerpc`",
            "--arch powerpc --append disable_radix`",
        ] {
            assert!(report_of_kernel.contains(command), "{report_of_kernel}");
        }
        let hash = report(&[("ipis-a.json", ipis("powerpc", "hash", 4, 1))]);
        assert!(
            hash.contains("- the kernel's own benchmark: `cargo xtask bench kernel --arch um`"),
            "{hash}"
        );
        assert!(hash.contains("of powerpc-radix") && !hash.contains("of powerpc-hash"));
    }

    #[test]
    fn a_guest_is_told_from_a_machine_and_its_times_from_times() {
        let mut guest = boots::tests::example("handover");
        let command = "cargo xtask bench perf --arch arm64";
        guest.guest = Some(boots::Guest {
            command: command.into(),
            arch: "arm64".into(),
            variant: "test".into(),
            append: "nosmt quiet".into(),
            cpus: 4,
            times_emulated: true,
            host: "Some CPU, 2 CPUs".into(),
        });
        let name = String::from("perf-guest-arm64-4-test-nosmt-quiet-handover-2.json");
        assert_eq!(name, "perf-guest-arm64-4-test-nosmt-quiet-handover-2.json");
        let machine = boots::tests::example("handover");
        let files = [(name, &guest), (machine.file(), &machine)]
            .map(|(name, results)| (name, serde_json::to_string(results).unwrap()));
        let files = files.each_ref().map(|(n, text)| (n.as_str(), text.clone()));
        let report = report(&files);
        assert_eq!(report.matches("\n### ").count(), 2, "{report}");
        assert_eq!(report.matches("**Emulated:**").count(), 1, "{report}");
        for words in [
            "### Guest arm64, variant test, `nosmt quiet`, 4 CPUs\n".to_owned(),
            format!("- perf bench of refcount: `{command}`"),
        ] {
            assert!(report.contains(&words), "{words}: {report}");
        }
    }

    #[test]
    fn policies_stand_side_by_side_and_one_without_a_boot_is_missing() {
        let file = |policy| {
            let results = boots::tests::example(policy);
            (results.file(), serde_json::to_string(&results).unwrap())
        };
        let boots = ["handover", "refcount"].map(file);
        let boots = boots
            .each_ref()
            .map(|(name, text)| (name.as_str(), text.clone()));
        let written = loaded(&boots).unwrap().write_up().unwrap();
        let report = &written[REPORT];
        let header = row(report, ["", "refcount", "shootdown"]);
        assert_eq!(header[3], "handover");
        let trips = row(
            report,
            [
                "threads, pipes, 1000 trips/s",
                "9.00 (9.00..9.00) of 2",
                "missing",
            ],
        );
        assert_eq!(trips[3], trips[1]);
        row(report, ["threads, futexes, 1000 trips/s", "-", "missing"]);
        row(report, ["CPUs nudged", "6", "missing"]);
        row(
            report,
            ["borrow and give back, 2 CPUs / 1 CPU", "1.02", "missing"],
        );
        assert!(!report.contains("**Emulated:**"), "{report}");
        for words in [
            "### Linux 7.3.4-lazy-tlb\n",
            "`perf-x86_64-refcount-1767225600.json`",
            "- perf bench of shootdown on Linux 7.3.4-lazy-tlb: boot it with `lazy_tlb=shootdown`",
            "(perf-1.svg)",
        ] {
            assert!(report.contains(words), "{words}: {report}");
        }
        assert!(written["perf-1.svg"].contains("1000 trips/s"));
        let (_, other) = file("shootdown");
        let other = other.replace("\"#1 SMP\"", "\"#2 SMP\"");
        let other = other.replace("Some CPU", "QEMU TCG CPU version 2.5+");
        let boots = [boots[0].clone(), ("perf-b.json", other)];
        let report = super::tests::report(&boots);
        assert_eq!(report.matches("**Emulated:**").count(), 1, "{report}");
        assert_eq!(
            report.matches("\n### Linux").count(),
            2,
            "another kernel: {report}"
        );
    }

    #[test]
    fn policies_on_one_boot_have_a_section() {
        let example = paired::tests::example(1.0, 1.1);
        let text = report(&[(
            "paired-exit-arm64-4.json",
            serde_json::to_string(&example).unwrap(),
        )]);
        assert!(text.contains("\n### Guest arm64: exit\n"), "{text}");
        assert!(text.contains("From `paired-exit-arm64-4.json`"), "{text}");
        let empty = serde_json::to_string(&paired::tests::of(Vec::new())).unwrap();
        assert!(loaded(&[("paired-exit-arm64-4.json", empty)]).is_err());
    }

    #[test]
    fn a_file_that_nobody_here_writes_is_named() {
        let report = report(&[(KERNEL_FILE, kernel()), ("other.json", "{}".into())]);
        assert!(report.contains("## Not read\n\n- other.json\n"), "{report}");
    }

    #[test]
    fn a_bad_file_is_named_with_a_remedy() {
        let cases = [
            ("ipis-a.json", "[", "bench ipis"),
            ("ipis-a.json", "[]", "no record"),
            ("ipis-a.json", "[{\"policy\": \"handover\"}]", "arch"),
            (KERNEL_FILE, "{}", "bench kernel"),
            ("perf-a.json", "{}", "lab --import"),
        ];
        for (name, content, why) in cases {
            let error = loaded(&[(name, content.into())]).err().unwrap();
            let text = format!("{:#}", classify(error).1);
            for word in [name, why, "remedy: write it again"] {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes_and_old_plots_go() {
        let dir = folder(&[
            (KERNEL_FILE, kernel()),
            ("ipis-a.json", ipis("s390", "s390x", 4, 1)),
            ("ipis-gone.svg", String::new()),
            ("mine.svg", String::new()),
        ]);
        let project = Project {
            repo: dir.path().into(),
            cache: crate::host::cache::Cache::at(dir.path().join("cache")).unwrap(),
            linux: None,
        };
        let options = Options {
            results: Some(dir.path().into()),
        };
        let content = || {
            run(&project, &options).unwrap();
            let paths = files(&dir.path().join("machine")).unwrap();
            let read = |path: &PathBuf| (name_of(path), fs::read_to_string(path).unwrap());
            paths.iter().map(read).collect::<Vec<_>>()
        };
        let first = content();
        assert_eq!(first, content());
        let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                REPORT,
                "ipis-a.json",
                "ipis-s390-s390x.svg",
                KERNEL_FILE,
                "mine.svg"
            ]
        );
        let report = &first[0].1;
        assert!(report.contains("(ipis-s390-s390x.svg)"), "{report}");
    }

    #[test]
    fn plots_have_their_words() {
        let files = [
            (KERNEL_FILE, kernel()),
            ("ipis-a.json", ipis("arm64", "aarch64", 4, 1)),
            ("ipis-b.json", ipis("arm64", "aarch64", 128, 1)),
        ];
        let plots = loaded(&files).unwrap().write_up().unwrap();
        for word in ["shootdown", "per 1000 exits", "128"] {
            assert!(plots["ipis-arm64-aarch64.svg"].contains(word), "{word}");
        }
    }

    #[test]
    fn no_results_are_an_error() {
        let dir = folder(&[]);
        let project = Project {
            repo: dir.path().into(),
            cache: crate::host::cache::Cache::at(dir.path().join("cache")).unwrap(),
            linux: None,
        };
        for results in [None, Some(dir.path().to_owned())] {
            let error = run(&project, &Options { results }).unwrap_err();
            assert_eq!(classify(error).0, Exit::Usage);
        }
    }
}
