//! `bench model`: what a lazy TLB borrow costs on this machine, in a model of the hot path that runs
//! as an ordinary program. It is not the kernel.
//!
//! One thread per CPU does nothing but borrow and give back, all of one mm: more contention than any
//! kernel has. What is modelled, and what is left out, is in the `hotpath` crate.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use hotpath::{Mm, Mode, Slot};
use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};
use rustix::time::{clock_gettime, ClockId};
use serde::{Deserialize, Serialize};

use crate::failure::{fail, Exit};
use crate::project::Project;
use crate::results::{self, Machine};
use crate::sh::{self, Progress};

/// What every output of this says about itself.
pub const LABEL: &str = "a model of the hot path, not the kernel";
/// A run is disturbed if a thread had less of its CPU than this share of its time.
const LEAST_ON_CPU: f64 = 0.9;
/// Or if the threads ran at once for less than this share. They end at different times anyway.
const LEAST_TOGETHER: f64 = 0.5;
/// What the file is called.
pub const FILE: &str = "model.json";

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How often everything is run, after a run that is not kept.
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Trips from user to idle and back, per thread and run.
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub trips: u64,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`LABEL`].
    pub what: String,
    /// How to measure it again.
    pub command: String,
    #[serde(flatten)]
    pub machine: Machine,
    /// The CPUs that threads were pinned to, in this order.
    pub allowed_cpus: Vec<usize>,
    /// The load average before.
    pub load: f64,
    pub repeat: u32,
    pub trips: u64,
    pub modes: Vec<ModeFacts>,
    pub samples: Vec<Sample>,
}

/// What is known of a mode by construction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModeFacts {
    pub mode: String,
    /// Atomic read-modify-writes of a shared line: counted in the code, not measured.
    pub shared_rmws_per_trip: u32,
}

/// One run in one mode on some CPUs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// From 1.
    pub repeat: u32,
    pub mode: String,
    pub cpus: usize,
    /// The mean of the threads.
    pub ns_per_trip: f64,
    /// Of each thread, in the order of the CPUs.
    pub threads_ns_per_trip: Vec<f64>,
    /// The share of its time that a thread was on its CPU, of the thread that had the least. Less
    /// than one is other work on this machine; what a hypervisor takes is not seen.
    pub on_cpu: f64,
    /// The share of the time, from the first start to the last end, in which no thread had yet to
    /// start or had ended: without it, nothing contends.
    pub together: f64,
}

/// A median with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Spread { median, min, max })
    }

    /// `median (min..max)`.
    pub fn shown(&self) -> String {
        format!("{:.2} ({:.2}..{:.2})", self.median, self.min, self.max)
    }
}

impl Results {
    /// The modes, as the file names them.
    pub fn modes(&self) -> impl Iterator<Item = &str> {
        self.modes.iter().map(|facts| facts.mode.as_str())
    }

    /// The numbers of CPUs, from the least on.
    pub fn cpus(&self) -> Vec<usize> {
        let mut cpus: Vec<usize> = self.samples.iter().map(|sample| sample.cpus).collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    /// ns per trip over the runs.
    pub fn spread(&self, mode: &str, cpus: usize) -> Option<Spread> {
        let of = |sample: &&Sample| sample.mode == mode && sample.cpus == cpus;
        let samples = self.samples.iter().filter(of);
        Spread::of(samples.map(|sample| sample.ns_per_trip).collect())
    }

    /// How much longer a trip takes on all CPUs than on one; none if there is only one.
    pub fn ratio(&self, mode: &str) -> Option<f64> {
        let most = self.cpus().pop().filter(|&cpus| cpus > 1)?;
        Some(self.spread(mode, most)?.median / self.spread(mode, 1)?.median)
    }

    /// One row for each number of CPUs, one column for each mode; empty where nothing is known.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        let first = "ns per trip, median (min..max)";
        table.set_header(std::iter::once(first).chain(self.modes()));
        let cpus = self.cpus();
        for &cpus in &cpus {
            let s = if cpus == 1 { "" } else { "s" };
            let cells = self.modes().map(|mode| {
                let spread = self.spread(mode, cpus);
                spread.map_or(String::new(), |spread| spread.shown())
            });
            table.add_row(std::iter::once(format!("{cpus} CPU{s}")).chain(cells));
        }
        let ratios: Vec<f64> = self.modes().filter_map(|mode| self.ratio(mode)).collect();
        if ratios.len() == self.modes.len() {
            let cells = ratios.iter().map(|ratio| format!("{ratio:.2}"));
            let name = format!("{} CPUs / 1 CPU", cpus.last().unwrap_or(&1));
            table.add_row(std::iter::once(name).chain(cells));
        }
        let facts = self.modes.iter();
        let cells = facts.map(|facts| facts.shared_rmws_per_trip.to_string());
        let name = "shared read-modify-writes per trip, by construction".to_owned();
        table.add_row(std::iter::once(name).chain(cells));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    /// What the numbers say, in one line.
    pub fn verdict(&self) -> String {
        let most = self.cpus().pop().unwrap_or(1);
        if most < 2 {
            return "one CPU is allowed: there is no contention to see, and no ratio".into();
        }
        if self.disturbed() * 2 > self.samples.len() {
            return "none: this machine was too busy; run it again when it is quiet".into();
        }
        let ratios = self
            .modes()
            .filter_map(|mode| Some(format!("{mode} {:.2}", self.ratio(mode)?)));
        let ratios: Vec<String> = ratios.collect();
        let at_most = |mode: Mode| self.spread(mode.name(), most);
        let apart = || {
            let counted = at_most(Mode::Refcount)?;
            let others = [at_most(Mode::Shootdown)?, at_most(Mode::Defer)?];
            Some(others.iter().all(|other| other.max < counted.min))
        };
        let apart = match apart() {
            Some(true) => "every run of the others was faster than every run of refcount",
            _ => "the runs of refcount and of the others overlap",
        };
        format!(
            "a trip on {most} CPUs takes this many times as long as on one: {}; on {most}, {apart}",
            ratios.join(", ")
        )
    }

    fn disturbed(&self) -> usize {
        let disturbed =
            |sample: &&Sample| sample.on_cpu < LEAST_ON_CPU || sample.together < LEAST_TOGETHER;
        self.samples.iter().filter(disturbed).count()
    }

    /// Why the times may be wrong, if other work ran beside it.
    pub fn warning(&self) -> Option<String> {
        let count = self.disturbed();
        (count > 0).then(|| {
            format!(
                "other work disturbed {count} of {} runs (the threads did not run all the time, or \
                 not at once); the load average was {} before",
                self.samples.len(),
                self.load
            )
        })
    }
}

/// 1, 2, 4 and so on, and all.
fn counts(all: usize) -> Vec<usize> {
    let doubled = std::iter::successors(Some(1), |count| Some(count * 2));
    let mut counts: Vec<usize> = doubled.take_while(|&count| count < all).collect();
    counts.push(all);
    counts
}

/// The CPUs that this process may run on.
fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("asking which CPUs are allowed")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("pinning a thread to CPU {cpu}"))
}

/// What one thread did.
struct Timed {
    started: Instant,
    ended: Instant,
    /// ns that it was on its CPU.
    on_cpu: f64,
}

impl Timed {
    fn ns(&self) -> f64 {
        (self.ended - self.started).as_nanos() as f64
    }
}

/// ns of CPU time that this thread has used.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// One thread on each of these CPUs, all at once.
fn measure(mode: Mode, cpus: &[usize], trips: u64) -> Result<Vec<Timed>> {
    let mm = Mm::default();
    let slots: Vec<Slot> = cpus.iter().map(|_| Slot::default()).collect();
    let barrier = Barrier::new(cpus.len());
    let running = AtomicUsize::new(0);
    let work = |cpu: usize, slot: &Slot| -> Result<Timed> {
        // Before the barrier an error must not return: the others would wait for ever.
        let pinned = pin(cpu);
        barrier.wait();
        // Sleepers wake one after the other; none begins before all are awake.
        running.fetch_add(1, Ordering::Relaxed);
        while running.load(Ordering::Relaxed) < cpus.len() {
            std::hint::spin_loop();
        }
        pinned?;
        let before = cpu_time();
        let started = Instant::now();
        let last = hotpath::trips(mode, &mm, slot, trips);
        let ended = Instant::now();
        let on_cpu = cpu_time() - before;
        ensure!(last == 0, "the count fell to zero while it was held");
        Ok(Timed {
            started,
            ended,
            on_cpu,
        })
    };
    let timed: Result<Vec<Timed>> = std::thread::scope(|scope| {
        let start = |(&cpu, slot)| {
            let work = &work;
            scope.spawn(move || work(cpu, slot))
        };
        let threads: Vec<_> = cpus.iter().zip(&slots).map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Timed>>| {
            thread.join().expect("a thread of the model does not panic")
        };
        threads.into_iter().map(join).collect()
    });
    ensure!(mm.count() == 1, "{} references are left", mm.count());
    timed
}

impl Sample {
    fn of(repeat: u32, mode: Mode, trips: u64, timed: &[Timed]) -> Self {
        let ns = timed.iter().map(|thread| thread.ns() / trips as f64);
        let ns: Vec<f64> = ns.collect();
        // The clock of the CPU is read just outside.
        let on_cpu = timed.iter().map(|thread| thread.on_cpu / thread.ns());
        Sample {
            repeat,
            mode: mode.name().into(),
            cpus: timed.len(),
            ns_per_trip: rounded(ns.iter().sum::<f64>() / ns.len() as f64),
            threads_ns_per_trip: ns.into_iter().map(rounded).collect(),
            on_cpu: rounded(on_cpu.fold(1.0, f64::min)),
            together: rounded(together(timed)),
        }
    }
}

fn together(timed: &[Timed]) -> f64 {
    let starts = || timed.iter().map(|thread| thread.started);
    let ends = || timed.iter().map(|thread| thread.ended);
    let spans = [
        (starts().max(), ends().min()),
        (starts().min(), ends().max()),
    ];
    let [all, any] = spans.map(|span| match span {
        (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
        _ => 0.0,
    });
    match any > 0.0 {
        true => all / any,
        false => 0.0,
    }
}

/// Three digits are more than the clock has.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// All modes and numbers of CPUs in turn, so that a change of the machine's speed meets all alike.
fn samples(cpus: &[usize], options: &Options) -> Result<Vec<Sample>> {
    let counts = counts(cpus.len());
    let runs = (u64::from(options.repeat) + 1) * (counts.len() * Mode::ALL.len()) as u64;
    let mut progress = Progress::counted("runs of the model", runs);
    let mut samples = Vec::new();
    for repeat in 0..=options.repeat {
        for &count in &counts {
            let mut modes = Mode::ALL;
            modes.rotate_left(repeat as usize % Mode::ALL.len());
            for mode in modes {
                let timed = measure(mode, &cpus[..count], options.trips)?;
                progress.tick(mode.name());
                // The first run warms the machine up.
                if repeat > 0 {
                    samples.push(Sample::of(repeat, mode, options.trips, &timed));
                }
            }
        }
    }
    Ok(samples)
}

/// The load average of the last minute.
fn load() -> Result<f64> {
    let file = "/proc/loadavg";
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first
        .parse()
        .with_context(|| format!("{file} begins with {first}"))
}

fn all(options: &Options) -> Result<Results> {
    let allowed_cpus = allowed()?;
    let load = load()?;
    let facts = |mode: Mode| ModeFacts {
        mode: mode.name().into(),
        shared_rmws_per_trip: mode.shared_rmws(),
    };
    Ok(Results {
        what: LABEL.into(),
        command: format!(
            "cargo xtask bench model --repeat {} --trips {}",
            options.repeat, options.trips
        ),
        machine: Machine::here()?,
        load,
        repeat: options.repeat,
        trips: options.trips,
        modes: Mode::ALL.map(facts).into(),
        samples: samples(&allowed_cpus, options)?,
        allowed_cpus,
    })
}

/// `bench model` itself: the runs, the file, the table, the verdict.
pub fn run(project: &Project, options: &Options, json: Option<&Path>) -> Result<()> {
    if !hotpath::OPTIMISED {
        return Err(fail(
            Exit::Build,
            "the model was built without optimisation, its times would mean nothing",
            "run it with `cargo xtask`, which takes the profile in this repository's Cargo.toml",
        ));
    }
    let path = match json {
        Some(path) => path.to_owned(),
        None => results::of_this_machine(project)?.join(FILE),
    };
    let results = all(options)?;
    sh::write_whole(&path, serde_json::to_string_pretty(&results)?.as_bytes())?;
    println!("\n{LABEL}; shootdown and defer have the same hot path, both are measured\n");
    println!("{}\n\n{}", results.table(), path.display());
    if let Some(warning) = results.warning() {
        println!("warning: {warning}");
    }
    println!("verdict: {} ({LABEL})", results.verdict());
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Three runs of each mode, on 1 and 2 CPUs or on 1 only.
    pub fn example(counts: &[usize]) -> Results {
        let mut samples = Vec::new();
        for repeat in 1..=3 {
            for &cpus in counts {
                for mode in Mode::ALL {
                    let contended = f64::from(mode.shared_rmws()) * 20.0 * (cpus as f64 - 1.0);
                    let ns = 5.0 + contended + f64::from(repeat);
                    samples.push(Sample {
                        repeat,
                        mode: mode.name().into(),
                        cpus,
                        ns_per_trip: ns,
                        threads_ns_per_trip: vec![ns; cpus],
                        on_cpu: 1.0,
                        together: 0.99,
                    });
                }
            }
        }
        let facts = |mode: Mode| ModeFacts {
            mode: mode.name().into(),
            shared_rmws_per_trip: mode.shared_rmws(),
        };
        Results {
            what: LABEL.into(),
            command: "cargo xtask bench model --repeat 3 --trips 10".into(),
            machine: Machine::parse("model name\t: Some CPU\n", "x86_64", "6.1.0"),
            allowed_cpus: vec![0, 1],
            load: 0.1,
            repeat: 3,
            trips: 10,
            modes: Mode::ALL.map(facts).into(),
            samples,
        }
    }

    #[test]
    fn one_and_all_cpus_are_always_among_the_counts() {
        assert_eq!(counts(1), [1]);
        assert_eq!(counts(2), [1, 2]);
        assert_eq!(counts(6), [1, 2, 4, 6]);
        assert_eq!(counts(8), [1, 2, 4, 8]);
    }

    #[test]
    fn the_spread_is_from_the_least_to_the_greatest() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread.shown(), "2.00 (1.00..3.00)");
        assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn the_table_and_the_verdict_have_the_ratios() {
        let results = example(&[1, 2]);
        let table = results.table();
        for cell in [
            "7.00 (6.00..8.00)",
            "47.00 (46.00..48.00)",
            "2 CPUs / 1 CPU",
        ] {
            assert!(table.contains(cell), "{table}");
        }
        let verdict = results.verdict();
        assert!(
            verdict.contains("refcount 6.71, shootdown 1.00"),
            "{verdict}"
        );
        assert!(verdict.contains("faster than every run"), "{verdict}");
    }

    #[test]
    fn one_cpu_has_no_ratio() {
        let results = example(&[1]);
        assert!(!results.table().contains(" / 1 CPU"));
        assert!(results.verdict().contains("no contention to see"));
    }

    #[test]
    fn runs_that_overlap_are_not_called_faster() {
        let mut results = example(&[1, 2]);
        for sample in results.samples.iter_mut().filter(|s| s.mode == "defer") {
            sample.ns_per_trip = 46.0;
        }
        assert!(results.verdict().contains("overlap"));
    }

    #[test]
    fn other_work_is_warned_of() {
        assert_eq!(example(&[1]).warning(), None);
        let mut busy = example(&[1, 2]);
        busy.samples[0].on_cpu = 0.5;
        busy.samples[1].together = 0.0;
        assert!(busy.warning().unwrap().contains("2 of 18 runs"));
        assert!(busy.verdict().contains("refcount 6.71"));
        for sample in &mut busy.samples {
            sample.on_cpu = 0.8;
        }
        assert!(busy.verdict().contains("too busy"));
    }

    #[test]
    fn what_threads_did_at_once_is_a_share_of_all() {
        let start = Instant::now();
        let thread = |from: u64, to: u64| {
            let at = |ms| start + std::time::Duration::from_millis(ms);
            let (started, ended, on_cpu) = (at(from), at(to), 1e6);
            Timed {
                started,
                ended,
                on_cpu,
            }
        };
        assert_eq!(together(&[thread(0, 10)]), 1.0);
        assert_eq!(together(&[thread(0, 10), thread(5, 20)]), 0.25);
        assert_eq!(together(&[thread(0, 10), thread(15, 20)]), 0.0);
        let sample = Sample::of(1, Mode::Defer, 1000, &[thread(0, 2), thread(0, 4)]);
        assert_eq!((sample.ns_per_trip, sample.on_cpu), (3000.0, 0.25));
    }

    #[test]
    fn every_run_but_the_first_is_kept() {
        let options = Options {
            repeat: 2,
            trips: 100,
        };
        let results = all(&options).unwrap();
        let counts = counts(results.allowed_cpus.len());
        assert_eq!(results.cpus(), counts);
        assert_eq!(results.samples.len(), 2 * counts.len() * Mode::ALL.len());
        for sample in &results.samples {
            assert_eq!(sample.threads_ns_per_trip.len(), sample.cpus);
        }
        let text = serde_json::to_string(&results).unwrap();
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}
