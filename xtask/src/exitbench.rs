//! `bench exit`: what an exit waits for under each policy, by trace events of the guest's kernel.
//!
//! perf times an exit from `_exit()` to the parent's return from `waitpid()`. The events tell how much of
//! that is the final drop's cross-call, and how much comes before and after.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{ensure, Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::bench::append_option;
use crate::guest::Append;
use crate::kbuild::Build;
use crate::kernelbench;
use crate::lab;
use crate::perfbench::PerfGuest;
use crate::policy;
use crate::project::{Project, Workshop};
use crate::results::{self, Machine, Spread};
use crate::sh;

/// How the names of its files begin.
pub const FILES: &str = "exit-";
/// The kernel that has the events.
pub const VARIANT: &str = "traced";
/// The two cases of `perf bench sched lazy-tlb --exit`, and what they are.
const CASES: [(&str, &str); 2] = [
    ("lazy", "the other CPUs were lazy on the mm"),
    ("alone", "no other CPU was (control)"),
];

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many CPUs the guest has.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub cpus: u32,
    /// How often each policy is booted.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub boots: u32,
    #[command(flatten)]
    pub append: Append,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 300, value_name = "S")]
    pub timeout: u64,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// How to measure it again.
    pub command: String,
    #[serde(flatten)]
    pub machine: Machine,
    /// The guest's architecture.
    pub guest: String,
    pub guest_cpus: u32,
    /// More words of its command line.
    pub append: String,
    /// Whether the times are an emulator's.
    pub times_emulated: bool,
    pub kernel: String,
    pub variant: String,
    pub boots: u32,
    /// What perf said of the exits before the events were turned on.
    pub untraced: Vec<Untraced>,
    /// The kernel's own benchmark, at boot.
    pub calls: Vec<kernelbench::Sample>,
    #[serde(with = "in_groups")]
    pub exits: Vec<Traced>,
}

/// perf's median of one boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Untraced {
    /// From 1.
    pub boot: u32,
    pub policy: String,
    pub case: String,
    pub exits: f64,
    pub p50_ns: f64,
}

/// One exit, by its events; us since it entered `exit_group()`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traced {
    /// From 1.
    pub boot: u32,
    pub policy: String,
    pub case: String,
    /// When CPUs were called to let go, by the final drop or by a flush.
    pub called: Option<u64>,
    /// When the first of them began to answer.
    pub first_began: Option<u64>,
    /// When the last of them had answered.
    pub last_ended: Option<u64>,
    /// When the final drop was done, if that was before the parent was woken.
    pub dropped: Option<u64>,
    /// When the parent was woken, ran, and returned from `wait4()`.
    pub woken: u64,
    pub ran: u64,
    pub returned: u64,
}

/// Exits in a file: there are thousands, so each is a list of [`Traced::marks`].
mod in_groups {
    use super::{Traced, MARKS};
    use serde::de::{Deserializer, Error};
    use serde::{Deserialize, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Group {
        boot: u32,
        policy: String,
        case: String,
        /// What the numbers are.
        us_until: Vec<String>,
        exits: Vec<[Option<u64>; MARKS.len()]>,
    }

    const NAMES: [&str; MARKS.len()] = [
        "called",
        "first_began",
        "last_ended",
        "dropped",
        "woken",
        "ran",
        "returned",
    ];

    pub fn serialize<S: Serializer>(exits: &[Traced], to: S) -> Result<S::Ok, S::Error> {
        let mut groups: Vec<Group> = Vec::new();
        for exit in exits {
            let of = |group: &&mut Group| {
                (group.boot, &group.policy, &group.case) == (exit.boot, &exit.policy, &exit.case)
            };
            match groups.iter_mut().find(of) {
                Some(group) => group.exits.push(exit.marks()),
                None => groups.push(Group {
                    boot: exit.boot,
                    policy: exit.policy.clone(),
                    case: exit.case.clone(),
                    us_until: NAMES.map(String::from).to_vec(),
                    exits: vec![exit.marks()],
                }),
            }
        }
        groups.serialize(to)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<Traced>, D::Error> {
        let mut exits = Vec::new();
        for group in Vec::<Group>::deserialize(from)? {
            if group.us_until != NAMES {
                return Err(D::Error::custom("us_until has other names"));
            }
            for marks in group.exits {
                let [called, first_began, last_ended, dropped, woken, ran, returned] = marks;
                let must =
                    |us: Option<u64>| us.ok_or_else(|| D::Error::custom("an exit has no end"));
                exits.push(Traced {
                    boot: group.boot,
                    policy: group.policy.clone(),
                    case: group.case.clone(),
                    called,
                    first_began,
                    last_ended,
                    dropped,
                    woken: must(woken)?,
                    ran: must(ran)?,
                    returned: must(returned)?,
                });
            }
        }
        Ok(exits)
    }
}

/// `  comm-12  [003] d..2.   1.263777: what`, as tracefs writes it.
static EVENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^ *\S.*-(\d+) +\[(\d+)\] \S+ +(\d+)\.(\d{6}): (.*)$").expect("a constant")
});

/// An event of a trace.
struct Event<'a> {
    pid: u32,
    cpu: u32,
    us: u64,
    what: &'a str,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let fields = EVENT.captures(line)?;
        let field = |n| fields.get(n).map(|field| field.as_str());
        Some(Event {
            pid: field(1)?.parse().ok()?,
            cpu: field(2)?.parse().ok()?,
            us: field(3)?.parse::<u64>().ok()? * 1_000_000 + field(4)?.parse::<u64>().ok()?,
            what: field(5)?,
        })
    }

    /// What follows the event's name, if it is that event.
    fn of(&self, name: &str) -> Option<&'a str> {
        self.what.strip_prefix(name)
    }

    /// The value of a field.
    fn value(&self, key: &str) -> Option<&'a str> {
        let words = || {
            self.what
                .split([' ', ','])
                .filter_map(|word| word.split_once('='))
        };
        words()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    fn number(&self, key: &str) -> Option<u32> {
        self.value(key)?.parse().ok()
    }

    /// Whether it is about a function that makes CPUs let go: the final drop's, or on powerpc that of the
    /// last flush.
    fn is_ours(&self) -> bool {
        self.value("func")
            .is_some_and(|func| func.contains("lazy_tlb"))
    }
}

/// An exit that is going on.
#[derive(Default)]
struct Going {
    began: u64,
    case: &'static str,
    /// The calls, each on its way to a CPU.
    calls: Vec<(u32, String)>,
    called: Option<u64>,
    first_began: Option<u64>,
    last_ended: Option<u64>,
    dropped: Option<u64>,
    /// Who was woken, and when.
    woken: BTreeMap<u32, u64>,
    ran: BTreeMap<u32, u64>,
}

/// The exits in a trace, those that it has from beginning to end.
fn exits(trace: &str, policy: &str, boot: u32) -> Vec<Traced> {
    let mut going: BTreeMap<u32, Going> = BTreeMap::new();
    // Those that have woken another process of perf's: only the control does so before it exits.
    let mut have_woken: Vec<u32> = Vec::new();
    let mut exits = Vec::new();
    for event in trace.lines().filter_map(Event::parse) {
        if event.of("sys_exit_group(").is_some() {
            let case = match have_woken.contains(&event.pid) {
                true => CASES[1].0,
                false => CASES[0].0,
            };
            let began = Going {
                began: event.us,
                case,
                ..Going::default()
            };
            going.insert(event.pid, began);
        } else if event.of("sched_waking:").is_some() {
            let woken = event.number("pid").unwrap_or_default();
            match going.get_mut(&event.pid) {
                Some(exit) => drop(exit.woken.insert(woken, event.us)),
                // Its own timer wakes it as well, from an interrupt.
                None if woken != event.pid => have_woken.push(event.pid),
                None => (),
            }
        } else if event.of("sched_switch:").is_some() {
            let next = event.number("next_pid").unwrap_or_default();
            for exit in going
                .values_mut()
                .filter(|exit| exit.woken.contains_key(&next))
            {
                exit.ran.entry(next).or_insert(event.us);
            }
        } else if event.of("csd_queue_cpu:").is_some() && event.is_ours() {
            let (cpu, csd) = (event.number("cpu"), event.value("csd"));
            if let (Some(exit), Some(cpu), Some(csd)) = (going.get_mut(&event.pid), cpu, csd) {
                exit.calls.push((cpu, csd.to_owned()));
                exit.called.get_or_insert(event.us);
            }
        } else if event.of("csd_function_").is_some() && event.is_ours() {
            let call = (event.cpu, event.value("csd").unwrap_or_default().to_owned());
            // A CPU's csd is used by one caller at a time.
            for exit in going.values_mut().filter(|exit| exit.calls.contains(&call)) {
                match event.of("csd_function_entry:") {
                    Some(_) => drop(exit.first_began.get_or_insert(event.us)),
                    None => exit.last_ended = Some(event.us),
                }
            }
        } else if event.of("lazy_tlb_final_drop:").is_some() {
            if let Some(exit) = going.get_mut(&event.pid) {
                exit.dropped.get_or_insert(event.us);
            }
        } else if let Some(child) = event.of("sys_wait4 -> 0x") {
            let child = u32::from_str_radix(child, 16).unwrap_or_default();
            let Some(exit) = going.remove(&child) else {
                continue;
            };
            let since = |us: u64| us.saturating_sub(exit.began);
            // The parent may not have slept yet.
            let parent = exit.woken.get(&event.pid).zip(exit.ran.get(&event.pid));
            let Some((&woken, &ran)) = parent else {
                continue;
            };
            exits.push(Traced {
                boot,
                policy: policy.into(),
                case: exit.case.into(),
                called: exit.called.map(since),
                first_began: exit.first_began.map(since),
                last_ended: exit.last_ended.map(since),
                dropped: exit.dropped.filter(|&us| us <= woken).map(since),
                woken: since(woken),
                ran: since(ran),
                returned: since(event.us),
            });
        }
    }
    exits
}

/// What happens in the course of an exit; some of it, not in each.
const MARKS: [&str; 7] = [
    "- until CPUs are called to let go",
    "- until the first of them begins to answer",
    "- until the last has answered",
    "- until the final drop is done",
    "- until the parent is woken",
    "until the parent runs",
    "until wait4() returns",
];

impl Traced {
    /// When each of [`MARKS`] was reached.
    fn marks(&self) -> [Option<u64>; MARKS.len()] {
        [
            self.called,
            self.first_began,
            self.last_ended,
            self.dropped,
            Some(self.woken),
            Some(self.ran),
            Some(self.returned),
        ]
    }

    /// Which of them were.
    fn way(&self) -> [bool; MARKS.len()] {
        self.marks().map(|us| us.is_some())
    }

    /// How long it took to get to a mark from the one before, or from the beginning.
    fn part(&self, mark: usize) -> Option<f64> {
        let marks = self.marks();
        let before = marks[..mark].iter().flatten().last();
        Some(marks[mark]? as f64 - before.map_or(0.0, |&us| us as f64))
    }
}

/// Of the middle half of `exits` by how long they took, what `part` comes to on average, so that parts
/// add up to the whole.
fn middle(mut exits: Vec<&Traced>, part: impl Fn(&Traced) -> Option<f64>) -> Option<f64> {
    exits.sort_by_key(|exit| exit.returned);
    let quarter = exits.len() / 4;
    let half = &exits[quarter..exits.len() - quarter];
    let parts: Vec<f64> = half.iter().filter_map(|exit| part(exit)).collect();
    let enough = !parts.is_empty() && parts.len() == half.len();
    enough.then(|| parts.iter().sum::<f64>() / parts.len() as f64)
}

impl Results {
    /// What the file is called.
    pub fn file(&self) -> String {
        let append = match self.append.as_str() {
            "" => String::new(),
            words => format!("-{}", crate::bench::in_a_name(words)),
        };
        format!("{FILES}{}-{}{append}.json", self.guest, self.guest_cpus)
    }

    fn of(&self, policy: &str, case: &str) -> Vec<&Traced> {
        let of = |exit: &&Traced| exit.policy == policy && exit.case == case;
        self.exits.iter().filter(of).collect()
    }

    /// Those that went the way that most did.
    fn usual(&self, policy: &str, case: &str) -> Vec<&Traced> {
        let mut ways: BTreeMap<_, Vec<&Traced>> = BTreeMap::new();
        for exit in self.of(policy, case) {
            ways.entry(exit.way()).or_default().push(exit);
        }
        ways.into_values().max_by_key(Vec::len).unwrap_or_default()
    }

    /// A part of them in us, over the boots.
    fn spread(
        &self,
        policy: &str,
        case: &str,
        part: impl Fn(&Traced) -> Option<f64>,
    ) -> Option<Spread> {
        let usual = self.usual(policy, case);
        let of_boot = |boot| {
            let exits = usual.iter().copied().filter(|exit| exit.boot == boot);
            middle(exits.collect(), &part)
        };
        Spread::of((1..=self.boots).filter_map(of_boot).collect())
    }

    fn untraced(&self, policy: &str, case: &str) -> Option<Spread> {
        let of = |p: &&Untraced| p.policy == policy && p.case == case;
        let us = |untraced: &Untraced| untraced.p50_ns / 1000.0;
        Spread::of(self.untraced.iter().filter(of).map(us).collect())
    }

    /// The kernel's benchmark: a cross-call to all CPUs, in us.
    fn call(&self, policy: &str) -> Option<Spread> {
        let of = |call: &&kernelbench::Sample| {
            call.what == "call" && call.policy == policy && call.cpus == u64::from(self.guest_cpus)
        };
        let us = |call: &kernelbench::Sample| call.ps_median as f64 / 1e6;
        Spread::of(self.calls.iter().filter(of).map(us).collect())
    }

    /// One table for each case.
    fn tables(&self) -> String {
        let mut text = String::new();
        for (case, what) in CASES {
            let mut table = Table::new();
            table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
            table.set_header([what].into_iter().chain(policy::ALL));
            let mut row = |name: &str, cell: &dyn Fn(&str) -> Option<String>| {
                let cells = policy::ALL.map(cell);
                if cells.iter().any(Option::is_some) {
                    let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".into()));
                    table.add_row([name.to_owned()].into_iter().chain(cells));
                }
            };
            let shown = |s: Spread| format!("{:.0} ({:.0}..{:.0})", s.median, s.min, s.max);
            row("exits traced, and those like most", &|policy| {
                let (all, usual) = (self.of(policy, case), self.usual(policy, case));
                Some(format!("{}, {}", all.len(), usual.len()))
            });
            row("_exit() until wait4() returns, as perf says", &|policy| {
                self.untraced(policy, case).map(shown)
            });
            let mut part = |name: &str, part: &dyn Fn(&Traced) -> Option<f64>| {
                row(name, &|policy| self.spread(policy, case, part).map(shown));
            };
            part("the same with trace events", &|exit| {
                Some(exit.returned as f64)
            });
            part("until the parent is woken", &|exit| Some(exit.woken as f64));
            for (mark, name) in MARKS.into_iter().enumerate() {
                part(name, &|exit| exit.part(mark));
            }
            row("for comparison: a cross-call to idle CPUs", &|policy| {
                self.call(policy).map(shown)
            });
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            text.push_str(&format!("{table}\n\n"));
        }
        text
    }

    /// A row of the [`summary`]: the guest, whole exits with refcount and with shootdown, and what the
    /// difference is made of. None where one of the two was not measured.
    fn difference(&self) -> Option<Vec<String>> {
        let us = |policy: &str, case: &str, part: &dyn Fn(&Traced) -> Option<f64>| {
            Some(self.spread(policy, case, part)?.median)
        };
        let [(lazy, _), (alone, _)] = CASES;
        let whole = |exit: &Traced| Some(exit.returned as f64);
        let woken = |exit: &Traced| Some(exit.woken as f64);
        let call = |exit: &Traced| Some(exit.last_ended?.checked_sub(exit.called?)? as f64);
        let before = us("refcount", lazy, &whole)?;
        let after = us("shootdown", lazy, &whole)?;
        // Nobody is called where none is lazy any more.
        let call_to = |case| us("shootdown", case, &call).unwrap_or_default();
        let free = us("shootdown", alone, &woken)? - us("refcount", alone, &woken)?;
        let (call, free) = (call_to(lazy), free - call_to(alone));
        let more = after - before;
        let numbers = [before, after, more, call, free, more - call - free];
        let mut row = vec![self.name()];
        row.extend(numbers.map(|us| format!("{us:.0}")));
        Some(row)
    }

    /// The guest, as the report calls it.
    fn name(&self) -> String {
        let append = match self.append.as_str() {
            "" => String::new(),
            words => format!(", `{words}`"),
        };
        format!("{}{append}, {} CPUs", self.guest, self.guest_cpus)
    }

    /// Its part of the report.
    pub fn section(&self, file: &str) -> String {
        let emulated = match self.times_emulated {
            true => "**Emulated:** the times are an emulator's, and no measure of a machine. ",
            false => "",
        };
        format!(
            "\n### Guest {}\n\n{emulated}{}, {} CPUs, Linux {} (variant {}); {} boots \
             of each policy.\n\nFrom `{file}`; again: `{}`\n\n{}",
            self.name(),
            self.machine.cpu_model,
            self.machine.cpus,
            self.kernel,
            self.variant,
            self.boots,
            self.command,
            self.tables(),
        )
    }

    /// As JSON, with a line for each exit, and for each thing that perf and the kernel have said.
    fn as_json(&self) -> Result<String> {
        let text = serde_json::to_string(self)?;
        Ok(text.replace("],[", "],\n[").replace("},{", "},\n{") + "\n")
    }

    /// Takes what a guest said, and perf in it.
    fn take(&mut self, console: &str, perf: lab::Results, policy: &str, boot: u32) -> Result<()> {
        self.kernel = perf.machine.host_kernel;
        // The second run is that with events.
        for sample in perf.runs.iter().take(1).flat_map(|run| &run.samples) {
            let value = |key: &str| {
                let value = sample.values.get(key).copied();
                value.with_context(|| format!("perf did not report {key}"))
            };
            self.untraced.push(Untraced {
                boot,
                policy: policy.into(),
                case: sample.case.clone().context("an exit without a case")?,
                exits: value("exits")?,
                p50_ns: value("p50_ns")?,
            });
        }
        let calls = kernelbench::samples(console, policy, boot)?;
        self.calls
            .extend(calls.into_iter().filter(|call| call.what == "call"));
        let exits = exits(console, policy, boot);
        for (case, _) in CASES {
            ensure!(
                exits.iter().any(|exit| exit.case == case),
                "the trace has no whole exit of the case `{case}`"
            );
        }
        self.exits.extend(exits);
        Ok(())
    }
}

/// What the difference between shootdown and refcount is made of where CPUs are lazy, for each guest, in us.
pub fn summary<'a>(all: impl Iterator<Item = &'a Results>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "CPUs are lazy",
        "refcount",
        "shootdown",
        "more",
        "of that: cross-call",
        "mm freed before the parent is woken",
        "rest",
    ]);
    for row in all.filter_map(Results::difference) {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// `bench exit` itself: the guests, the file, the tables.
pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let arch = build.arch;
    let (cpus, timeout) = (options.cpus, options.timeout);
    let guest = PerfGuest::prepare(project, shop, build, cpus, &options.append, timeout)?;
    let mut results = Results {
        command: format!(
            "cargo xtask bench exit --arch {} --cpus {} --boots {}{}",
            arch.name,
            options.cpus,
            options.boots,
            append_option(&options.append.words)
        ),
        machine: Machine::here()?,
        guest: arch.name.into(),
        guest_cpus: options.cpus,
        append: options.append.words.clone(),
        times_emulated: guest.times_emulated(),
        kernel: String::new(),
        variant: build.variant.into(),
        boots: options.boots,
        untraced: Vec::new(),
        calls: Vec::new(),
        exits: Vec::new(),
    };
    let path: PathBuf = match json {
        Some(path) => path.to_owned(),
        None => results::of_this_machine(project)?.join(results.file()),
    };
    let stem = results.file();
    let stem = stem.strip_suffix(".json").unwrap_or(&stem);
    for (boot, policy) in policy::in_turn(options.boots) {
        let log = format!("{stem}-{policy}-{boot}.log");
        guest.boot(policy, "LAZY_TLB_TRACE=1", &log, |console, perf| {
            results.take(console, perf, policy, boot)
        })?;
    }
    sh::write_whole(&path, results.as_json()?.as_bytes())?;
    println!(
        "\n{}{}\n\n{}",
        results.tables(),
        summary(std::iter::once(&results)),
        path.display()
    );
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
  sched-lazy-tlb-73      [003] .....     1.263020: sys_exit_group(error_code: 0)
  sched-lazy-tlb-73      [003] ...1.     1.263777: csd_queue_cpu: cpu=0 callsite=on_each_cpu_cond_mask+0x24/0x2c func=_RINv_lazy_tlb9shootdown5shoot csd=0000000041d67bcd
  sched-lazy-tlb-73      [003] ...1.     1.263792: csd_queue_cpu: cpu=1 callsite=on_each_cpu_cond_mask+0x24/0x2c func=_RINv_lazy_tlb9shootdown5shoot csd=00000000dba7fb00
  sched-lazy-tlb-73      [003] d..1.     1.263841: csd_function_entry: func=_RINv_lazy_tlb9shootdown5shoot, csd=0000000000000000
  sched-lazy-tlb-73      [003] d..1.     1.263888: csd_function_exit: func=_RINv_lazy_tlb9shootdown5shoot, csd=0000000000000000
          <idle>-0       [002] d.h1.     1.263900: csd_function_entry: func=sched_ttwu_pending, csd=00000000188240d1
          <idle>-0       [001] d.h1.     1.263937: csd_function_entry: func=_RINv_lazy_tlb9shootdown5shoot, csd=00000000dba7fb00
          <idle>-0       [001] d.h1.     1.263974: csd_function_exit: func=_RINv_lazy_tlb9shootdown5shoot, csd=00000000dba7fb00
          <idle>-0       [000] d.h1.     1.264144: csd_function_entry: func=_RINv_lazy_tlb9shootdown5shoot, csd=0000000041d67bcd
          <idle>-0       [000] d.h1.     1.264214: csd_function_exit: func=_RINv_lazy_tlb9shootdown5shoot, csd=0000000041d67bcd
  sched-lazy-tlb-73      [003] .....     1.265439: lazy_tlb_final_drop: mm=000000005725869d policy=shootdown scanned=4 lazy=4 ipis=3 deferred=0
  sched-lazy-tlb-73      [003] d..5.     1.265572: sched_waking: comm=sched-lazy-tlb pid=49 prio=120 target_cpu=000
  sched-lazy-tlb-73      [003] d..5.     1.265591: csd_queue_cpu: cpu=0 callsite=ttwu_queue_wakelist+0xf8/0x110 func=sched_ttwu_pending csd=000000008b8c791f
          <idle>-0       [000] d..2.     1.265800: sched_switch: prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=sched-lazy-tlb next_pid=49 next_prio=120
  sched-lazy-tlb-49      [000] .....     1.266000: sys_wait4 -> 0x49
  sched-lazy-tlb-74      [003] d..4.     1.270000: sched_waking: comm=sched-lazy-tlb pid=49 prio=120 target_cpu=000
          <idle>-0       [003] d.h3.     1.271000: sched_waking: comm=sched-lazy-tlb pid=74 prio=120 target_cpu=003
  sched-lazy-tlb-74      [003] .....     1.272000: sys_exit_group(error_code: 0)
  sched-lazy-tlb-74      [003] d..5.     1.272500: sched_waking: comm=sched-lazy-tlb pid=49 prio=120 target_cpu=000
          <idle>-0       [000] d..2.     1.272600: sched_switch: prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=sched-lazy-tlb next_pid=49 next_prio=120
  sched-lazy-tlb-49      [000] .....     1.272700: sys_wait4 -> 0x4a
          <idle>-0       [003] .....     1.272900: lazy_tlb_final_drop: mm=000000005725869d policy=refcount scanned=0 lazy=0 ipis=0 deferred=0
  sched-lazy-tlb-75      [003] .....     1.280000: sys_exit_group(error_code: 0)
";

    pub fn example() -> Results {
        Results {
            command: "cargo xtask bench exit --arch arm64".into(),
            machine: Machine::parse("model name\t: Some CPU\n", "x86_64", "6.1.0"),
            guest: "arm64".into(),
            guest_cpus: 4,
            append: String::new(),
            times_emulated: true,
            kernel: "7.3.4".into(),
            variant: VARIANT.into(),
            boots: 1,
            untraced: Vec::new(),
            calls: Vec::new(),
            exits: exits(TRACE, "shootdown", 1),
        }
    }

    #[test]
    fn the_parts_of_an_exit_are_between_its_events() {
        let exits = exits(TRACE, "shootdown", 1);
        // The third has no end.
        assert_eq!(exits.len(), 2);
        assert_eq!(
            exits[0],
            Traced {
                boot: 1,
                policy: "shootdown".into(),
                case: "lazy".into(),
                called: Some(757),
                first_began: Some(917),
                last_ended: Some(1194),
                dropped: Some(2419),
                woken: 2552,
                ran: 2780,
                returned: 2980,
            }
        );
    }

    #[test]
    fn one_that_has_woken_its_parent_before_is_the_control() {
        let exits = exits(TRACE, "refcount", 2);
        assert_eq!((exits[1].case.as_str(), exits[1].boot), ("alone", 2));
        assert_eq!((exits[1].called, exits[1].dropped), (None, None));
        assert_eq!((exits[1].woken, exits[1].returned), (500, 700));
    }

    #[test]
    fn parts_add_up_and_are_of_the_middle_half() {
        let exit = &exits(TRACE, "shootdown", 1)[0];
        let parts: Vec<f64> = (0..MARKS.len())
            .filter_map(|mark| exit.part(mark))
            .collect();
        assert_eq!(parts, [757.0, 160.0, 277.0, 1225.0, 133.0, 228.0, 200.0]);
        assert_eq!(parts.iter().sum::<f64>(), exit.returned as f64);
        let slow = Traced {
            returned: 99_999,
            ..exit.clone()
        };
        let all = vec![&slow, exit, exit, exit];
        assert_eq!(middle(all, |exit| exit.part(6)), Some(200.0));
        assert_eq!(middle(Vec::new(), |exit| exit.part(6)), None);
    }

    #[test]
    fn the_difference_is_call_freeing_and_the_rest() {
        let mut both = example();
        // The control is as fast, and no CPU is called.
        let refcount = both.exits.iter().map(|exit| Traced {
            policy: "refcount".into(),
            called: None,
            first_began: None,
            last_ended: None,
            dropped: None,
            woken: exit.woken - 100,
            returned: exit.returned - 600,
            ..exit.clone()
        });
        let refcount: Vec<Traced> = refcount.collect();
        assert_eq!(example().difference(), None);
        both.exits.extend(refcount);
        let row = ["arm64, 4 CPUs", "2380", "2980", "600", "437", "100", "63"];
        assert_eq!(both.difference().unwrap(), row);
        assert!(summary([&both].into_iter()).contains("437"));
    }

    #[test]
    fn a_cross_call_of_the_control_is_not_taken_for_freeing() {
        // With a last flush that calls whoever is in the mask, lazy or not, as powerpc's radix has it.
        let exit = |policy: &str, case: &str, called: Option<u64>, woken: u64| Traced {
            boot: 1,
            policy: policy.into(),
            case: case.into(),
            called,
            first_began: called.map(|us| us + 10),
            last_ended: called.map(|us| us + 40),
            woken,
            ran: woken + 1,
            returned: woken + 2,
            ..Traced::default()
        };
        let mut flushed = example();
        flushed.exits = vec![
            exit("refcount", "lazy", None, 100),
            exit("refcount", "alone", None, 100),
            exit("shootdown", "lazy", Some(20), 170),
            exit("shootdown", "alone", Some(20), 165),
        ];
        let row = ["arm64, 4 CPUs", "102", "172", "70", "40", "25", "5"];
        assert_eq!(flushed.difference().unwrap(), row);
    }

    #[test]
    fn the_tables_have_each_part_and_nothing_where_there_is_none() {
        let section = example().section("exit-arm64-4.json");
        assert!(section.contains("Emulated"), "{section}");
        assert!(section.contains(" 1, 1 |"), "{section}");
        assert!(section.contains("1225 (1225..1225)"), "{section}");
        let text = example().as_json().unwrap();
        assert!(
            text.contains("[[757,917,1194,2419,2552,2780,2980]]"),
            "{text}"
        );
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(read.exits, example().exits);
        let renamed = text.replace("\"ran\"", "\"slept\"");
        assert!(serde_json::from_str::<Results>(&renamed).is_err());
        assert_eq!(read.file(), "exit-arm64-4.json");
    }
}
