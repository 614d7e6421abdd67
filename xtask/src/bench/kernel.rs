//! `bench kernel`: what a borrow and a final drop cost in the kernel itself, as its own benchmark
//! (`CONFIG_LAZY_TLB_BENCHMARK`) says at boot, where policies take turns.
//!
//! User-mode Linux runs it at the speed of this machine's CPUs. Everywhere else an emulator makes the
//! times.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::guest::console::{self, number, pairs, text};
use crate::guest::machine::{self, Guest};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::build::Build;
use crate::kernel::workshop::Project;
use crate::results::machine::{of_this_machine, Machine};
use crate::results::sample::Spread;

/// What the kernel puts in front of its lines.
const PREFIX: &str = "lazy_tlb_benchmark: ";
/// How the names of its files begin.
pub const FILES: &str = "kernel-";
/// What is timed, and how it is called.
const TIMED: [(&str, &str); 2] = [("trip", "borrow and give back"), ("drop", "final drop")];

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many CPUs the guest has.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub cpus: u32,
    /// How many guests are booted.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
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
    /// Whether the times are an emulator's.
    pub times_emulated: bool,
    pub kernel: String,
    pub variant: String,
    pub repeat: u32,
    pub samples: Vec<Sample>,
}

/// What one boot says of one thing: over the rounds that the kernel makes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// From 1.
    pub repeat: u32,
    pub policy: String,
    /// `trip` or `drop`.
    pub what: String,
    pub cpus: u64,
    pub rounds: u64,
    /// Trips of each CPU, or drops, in a round.
    pub times: u64,
    pub ps_median: u64,
    pub ps_min: u64,
    pub ps_max: u64,
}

impl Sample {
    /// Reads what the kernel prints after its prefix.
    pub fn parse(line: &str, repeat: u32) -> Result<Self> {
        Self::fields(line, repeat)
            .with_context(|| format!("`{line}` of the kernel's benchmark is damaged"))
    }

    fn fields(line: &str, repeat: u32) -> Result<Self> {
        let line = pairs(line);
        let what = text(&line, "what")?;
        Ok(Sample {
            repeat,
            policy: text(&line, "policy")?.into(),
            what: what.into(),
            cpus: number(&line, "cpus")?,
            rounds: number(&line, "rounds")?,
            times: number(&line, &format!("{what}s"))?,
            ps_median: number(&line, "ps_median")?,
            ps_min: number(&line, "ps_min")?,
            ps_max: number(&line, "ps_max")?,
        })
    }
}

/// What a guest said; an error is a guest that did not measure everything.
pub fn samples(console: &str, repeat: u32) -> Result<Vec<Sample>> {
    let console = console::without_stamps(console);
    let lines = console.lines().filter_map(|line| line.strip_prefix(PREFIX));
    let samples = lines.map(|line| Sample::parse(line, repeat));
    let samples: Vec<Sample> = samples.collect::<Result<_>>()?;
    for (what, _) in TIMED {
        for policy in policy::ALL {
            let of = |sample: &Sample| sample.what == what && sample.policy == policy;
            ensure!(
                samples.iter().any(of),
                "the kernel did not time a {what} under {policy}: CONFIG_LAZY_TLB_BENCHMARK is in \
                 the configuration of um and in `--variant traced`"
            );
        }
    }
    Ok(samples)
}

/// The numbers of CPUs, from the least on.
fn cpus(samples: &[Sample]) -> Vec<u64> {
    let cpus: BTreeSet<u64> = samples.iter().map(|sample| sample.cpus).collect();
    cpus.into_iter().collect()
}

/// ns, over the boots.
fn spread(samples: &[Sample], what: &str, policy: &str, cpus: u64) -> Option<Spread> {
    let of = |s: &&Sample| s.what == what && s.policy == policy && s.cpus == cpus;
    let ns = |sample: &Sample| sample.ps_median as f64 / 1000.0;
    Spread::of(samples.iter().filter(of).map(ns).collect())
}

/// How much longer it takes with all CPUs than with one.
fn ratio(samples: &[Sample], what: &str, policy: &str) -> Option<f64> {
    let most = cpus(samples).pop().filter(|&cpus| cpus > 1)?;
    Some(spread(samples, what, policy, most)?.median / spread(samples, what, policy, 1)?.median)
}

/// A row for each number of CPUs, a column for each policy; empty where nothing is known. `first`
/// says of what the medians are.
pub fn table(samples: &[Sample], first: &str) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([first].into_iter().chain(policy::ALL));
    let cpus = cpus(samples);
    for (what, name) in TIMED {
        for &cpus in &cpus {
            let s = if cpus == 1 { "" } else { "s" };
            let cells = policy::ALL.map(|policy| {
                let spread = spread(samples, what, policy, cpus);
                spread.map_or("missing".into(), |spread| spread.shown())
            });
            table.add_row([format!("{name}, {cpus} CPU{s}")].into_iter().chain(cells));
        }
        let cells = policy::ALL.map(|policy| {
            let ratio = ratio(samples, what, policy);
            ratio.map_or("missing".into(), |ratio| format!("{ratio:.2}"))
        });
        let name = format!("{name}, {} CPUs / 1 CPU", cpus.last().unwrap_or(&1));
        table.add_row([name].into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

impl Results {
    /// What the file is called.
    pub fn file(&self) -> String {
        let variant = match self.variant.as_str() {
            "default" => String::new(),
            variant => format!("-{variant}"),
        };
        format!("{FILES}{}-{}{variant}.json", self.guest, self.guest_cpus)
    }

    /// What it is a measure of.
    pub fn label(&self) -> &'static str {
        match self.times_emulated {
            true => "the times are an emulator's, and no measure of a machine",
            false => "the kernel's own code at the speed of this machine's CPUs",
        }
    }

    fn table(&self) -> String {
        table(&self.samples, "ns, median (min..max) of the boots' medians")
    }

    /// Its part of the report.
    pub fn section(&self, file: &str) -> String {
        format!(
            "\n### {}, {} CPUs\n\n{}, Linux {} (variant {}); {} boots: {}.\n\n\
             From `{file}`; again: `{}`\n\n{}\n",
            self.guest,
            self.guest_cpus,
            self.machine.cpu_model,
            self.kernel,
            self.variant,
            self.repeat,
            self.label(),
            self.command,
            self.table(),
        )
    }
}

/// `bench kernel` itself: the guests, the file, the table.
pub fn run(
    project: &Project,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let arch = build.arch;
    let image = build.image()?;
    let accel = machine::accelerator(&project.cache, arch, &image)?;
    let accel = machine::for_cpus(&accel, options.cpus as usize);
    let initramfs = project.guest_initramfs(arch, "bench-init")?;
    let limit = Duration::from_secs(options.timeout);
    let mut results = Results {
        command: format!(
            "cargo xtask bench kernel --arch {} --variant {} --cpus {} --repeat {}",
            arch.name, build.variant, options.cpus, options.repeat
        ),
        machine: Machine::here()?,
        guest: arch.name.into(),
        guest_cpus: options.cpus,
        times_emulated: accel.starts_with("tcg"),
        kernel: String::new(),
        variant: build.variant.into(),
        repeat: options.repeat,
        samples: Vec::new(),
    };
    let mut path = PathBuf::new();
    for repeat in 1..=options.repeat {
        // The benchmark has run before the first process, which has nothing to do.
        let append = format!(
            "{} LAZY_TLB_WORKLOAD=build LAZY_TLB_JOBS=0",
            machine::NO_KUNIT
        );
        let guest = Guest {
            smp: options.cpus as usize,
            append: &append,
            timeout: limit,
            silence: limit,
            ..Guest::of(
                arch,
                accel.clone(),
                &image,
                &initramfs,
                project
                    .cache
                    .path(format!("log/kernel-{}-{repeat}.log", arch.name)),
            )
        };
        let report = guest.boot()?;
        report.check()?;
        results.kernel = kernel_of(&report.text)?;
        let measured =
            samples(&report.text, repeat).map_err(|error| guest.misread("kernel", &error))?;
        results.samples.extend(measured);
        path = match json {
            Some(path) => path.to_owned(),
            None => of_this_machine(&project.repo)?.join(results.file()),
        };
        sh::write_whole(&path, serde_json::to_string_pretty(&results)?.as_bytes())?;
    }
    println!(
        "\n{}\n\n{}\n{}",
        results.table(),
        path.display(),
        results.label()
    );
    Ok(())
}

/// The release that the first process says it runs on.
fn kernel_of(console: &str) -> Result<String> {
    let console = console::without_stamps(console);
    let setup = console.lines().find(|line| line.contains("what=setup"));
    let setup = setup.context("the first process did not say which kernel it runs on")?;
    Ok(text(&pairs(setup), "kernel")?.into())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const CONSOLE: &str = "\
[    0.210000] lazy_tlb_benchmark: what=trip policy=refcount cpus=1 rounds=31 ps_median=6000 ps_min=5900 ps_max=70000 trips=10000
[    0.220000] lazy_tlb_benchmark: what=trip policy=shootdown cpus=1 rounds=31 ps_median=7000 ps_min=5900 ps_max=70000 trips=10000
[    0.230000] lazy_tlb_benchmark: what=trip policy=handover cpus=1 rounds=31 ps_median=7000 ps_min=5900 ps_max=70000 trips=10000
[    0.240000] lazy_tlb_benchmark: what=drop policy=refcount cpus=1 rounds=31 ps_median=500000 ps_min=400000 ps_max=900000 drops=8
[    0.250000] lazy_tlb_benchmark: what=drop policy=shootdown cpus=1 rounds=31 ps_median=500000 ps_min=400000 ps_max=900000 drops=8
[    0.260000] lazy_tlb_benchmark: what=drop policy=handover cpus=1 rounds=31 ps_median=500000 ps_min=400000 ps_max=900000 drops=8
[    0.270000] lazy_tlb_benchmark: what=trip policy=refcount cpus=2 rounds=31 ps_median=42000 ps_min=5900 ps_max=70000 trips=10000
[    0.280000] lazy_tlb_benchmark: what=trip policy=shootdown cpus=2 rounds=31 ps_median=7000 ps_min=5900 ps_max=70000 trips=10000
[    0.290000] lazy_tlb_benchmark: what=trip policy=handover cpus=2 rounds=31 ps_median=7000 ps_min=5900 ps_max=70000 trips=10000
[    0.300000] lazy_tlb_benchmark: what=drop policy=refcount cpus=2 rounds=31 ps_median=500000 ps_min=400000 ps_max=900000 drops=8
[    0.310000] lazy_tlb_benchmark: what=drop policy=shootdown cpus=2 rounds=31 ps_median=500000 ps_min=400000 ps_max=900000 drops=8
[    0.320000] lazy_tlb_benchmark: what=drop policy=handover cpus=2 rounds=31 ps_median=500000 ps_min=400000 ps_max=900000 drops=8
lazy-tlb-bench: what=setup policy=refcount workload=build seed=1 kernel=7.3.4
";

    pub fn example() -> Results {
        let mut all = samples(CONSOLE, 1).unwrap();
        all.extend(samples(&CONSOLE.replace("=42000", "=40000"), 2).unwrap());
        Results {
            command: "cargo xtask bench kernel --arch um".into(),
            machine: Machine::parse("model name\t: Some CPU\n", "x86_64", "6.1.0"),
            guest: "um".into(),
            guest_cpus: 2,
            times_emulated: false,
            kernel: kernel_of(CONSOLE).unwrap(),
            variant: "default".into(),
            repeat: 2,
            samples: all,
        }
    }

    #[test]
    fn every_line_is_a_sample() {
        let all = samples(CONSOLE, 3).unwrap();
        assert_eq!(all.len(), 12);
        assert_eq!((all[3].what.as_str(), all[3].times), ("drop", 8));
        assert_eq!(
            (all[6].cpus, all[6].ps_median, all[6].times),
            (2, 42000, 10000)
        );
    }

    #[test]
    fn a_guest_that_did_not_measure_everything_is_an_error() {
        let nothing = samples("Run /init\n", 1).unwrap_err();
        assert!(nothing.to_string().contains("CONFIG_LAZY_TLB_BENCHMARK"));
        let two = samples(&CONSOLE.replace("=handover", "=refcount"), 1).unwrap_err();
        assert!(two.to_string().contains("under handover"), "{two}");
        let cut = CONSOLE.replace(" ps_max=70000", "");
        assert!(format!("{:#}", samples(&cut, 1).unwrap_err()).contains("ps_max"));
    }

    #[test]
    fn the_table_has_ratios_and_says_what_is_missing() {
        let results = example();
        let table = results.table();
        assert!(table.contains("41.00 (40.00..42.00)"), "{table}");
        assert!(table.contains("6.83"), "{table}");
        assert_eq!(results.file(), "kernel-um-2.json");
        let text = serde_json::to_string(&results).unwrap();
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(read.samples, results.samples);
    }
}
