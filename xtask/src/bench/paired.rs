//! Policies beside each other on one boot: what `bench exit` and `bench perf` have in common.
//!
//! The guest changes the policy itself, in rounds, so that a value of one policy and the one of `refcount` of
//! the same round are of the same moments of the same boot. Their ratio says more than two medians do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::guest::machine::{self, Append, Guest};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::build::Build;
use crate::kernel::workshop::Project;
use crate::results::machine::{of_this_machine, Machine};
use crate::results::sample::{append_option, in_a_name, Spread};

/// What is compared, each with the first.
pub const POLICIES: [&str; 3] = [policy::REFCOUNT, policy::HANDOVER, policy::SHOOTDOWN];
/// How the names of the files begin.
pub const FILES: &str = "paired-";

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many CPUs the guest has.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub cpus: u32,
    /// How often it is booted.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub boots: u32,
    /// How often all policies come on each boot; without it, as often as the benchmark has use for.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// One clock for all CPUs, which goes by instructions: what else the host does is out of the picture.
    #[arg(long)]
    pub icount: bool,
    #[command(flatten)]
    pub append: Append,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 1800, value_name = "S")]
    pub timeout: u64,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// How to measure it again.
    pub command: String,
    pub machine: Machine,
    /// The guest's architecture.
    pub guest: String,
    /// More words of its command line.
    pub append: String,
    pub kernel: String,
    pub variant: String,
    /// What the times are.
    pub clock: String,
    pub samples: Vec<Sample>,
}

/// A value of one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub policy: String,
    /// From 1.
    pub boot: u32,
    /// From 1.
    pub round: u32,
    pub what: String,
    /// Empty where there is only one.
    #[serde(default)]
    pub case: String,
    pub cpus: u32,
    pub unit: String,
    pub value: f64,
}

/// What the samples of a row have in common.
type Row<'a> = (&'a str, &'a str, u32, &'a str);

impl Sample {
    fn row(&self) -> Row<'_> {
        (&self.what, &self.case, self.cpus, &self.unit)
    }
}

/// A benchmark that a guest runs by itself.
pub struct Bench<'a> {
    /// As `cargo xtask bench` calls it.
    pub name: &'static str,
    pub build: &'a Build<'a>,
    pub initramfs: PathBuf,
    /// How often all policies come, unless the options say it.
    pub rounds: u32,
    /// Reads the console of a boot, without stamps.
    pub read: fn(&str, u32) -> Result<Vec<Sample>>,
}

impl Bench<'_> {
    /// Boots the guests, writes the file, prints the table.
    pub fn run(
        &self,
        project: &Project,
        kernel: &str,
        options: &Options,
        json: Option<&Path>,
    ) -> Result<Results> {
        let build = self.build;
        let arch = build.arch;
        let rounds = options.rounds.unwrap_or(self.rounds);
        ensure!(
            !(options.icount && arch.is_program()),
            "{} has no emulator whose clock could go by instructions",
            arch.name
        );
        let image = build.image()?;
        let accel = match options.icount {
            true => machine::TCG_BY_TURNS.into(),
            false => {
                let accel = machine::accelerator(&project.cache, arch, &image)?;
                machine::for_cpus(&accel, options.cpus as usize)
            }
        };
        let clock = match (options.icount, accel.starts_with("tcg")) {
            (true, _) => "virtual, by instructions",
            (false, true) => "emulated",
            (false, false) => "this machine's",
        };
        let mut results = Results {
            command: format!(
                "cargo xtask bench {} --arch {} --variant {} --cpus {} --boots {} --rounds {rounds}{}{}",
                self.name,
                arch.name,
                build.variant,
                options.cpus,
                options.boots,
                if options.icount { " --icount" } else { "" },
                append_option(&options.append.words)
            ),
            machine: Machine::here()?,
            guest: arch.name.into(),
            append: options.append.words.clone(),
            kernel: kernel.into(),
            variant: build.variant.into(),
            clock: clock.into(),
            samples: Vec::new(),
        };
        let stem = results.stem(self.name, options);
        let append = format!(
            "{} LAZY_TLB_POLICIES={} LAZY_TLB_ROUNDS={rounds} {}",
            machine::NO_KUNIT,
            POLICIES.join(","),
            options.append.words
        );
        let limit = Duration::from_secs(options.timeout);
        for boot in 1..=options.boots {
            let log = project.cache.path(format!("log/{stem}-{boot}.log"));
            let guest = Guest {
                smp: options.cpus as usize,
                append: append.trim_end(),
                timeout: limit,
                silence: machine::SILENCE.min(limit),
                icount: options.icount,
                ..Guest::of(arch, accel.clone(), &image, &self.initramfs, log)
            };
            let report = guest.boot()?;
            report.check()?;
            let console = crate::guest::console::without_stamps(&report.text);
            let samples = (self.read)(&console, boot).and_then(|samples| {
                check(&samples, rounds)?;
                Ok(samples)
            });
            let samples = samples.map_err(|error| guest.misread("all policies", &error))?;
            results.samples.extend(samples);
        }
        let path: PathBuf = match json {
            Some(path) => path.to_owned(),
            None => of_this_machine(&project.repo)?.join(format!("{stem}.json")),
        };
        sh::write_whole(&path, results.as_json()?.as_bytes())?;
        println!("\n{}\n\n{}", results.table(), path.display());
        Ok(results)
    }
}

/// An error unless there is something, and of each policy as much.
fn check(samples: &[Sample], rounds: u32) -> Result<()> {
    ensure!(!samples.is_empty(), "the guest reported nothing");
    let mut counts: BTreeMap<(Row<'_>, &str), u32> = BTreeMap::new();
    for sample in samples {
        *counts.entry((sample.row(), &sample.policy)).or_default() += 1;
    }
    for ((row, policy), count) in &counts {
        ensure!(
            *count == rounds,
            "{count} samples of {row:?} with {policy}, and {rounds} rounds"
        );
    }
    let rows = counts.keys().map(|(row, _)| row);
    let rows = rows.collect::<std::collections::BTreeSet<_>>().len();
    ensure!(
        counts.len() == rows * POLICIES.len(),
        "not every policy has been measured"
    );
    Ok(())
}

/// The quarter and three quarters of values, and how many there are.
pub fn quartiles(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |part: f64| values[(last as f64 * part).round() as usize];
    Some((at(0.25), at(0.75)))
}

impl Results {
    /// What the file is called, but for its ending.
    fn stem(&self, name: &str, options: &Options) -> String {
        let mut stem = format!("{FILES}{name}-{}-{}", self.guest, options.cpus);
        if options.icount {
            stem.push_str("-icount");
        }
        if self.variant != "default" {
            stem.push_str(&format!("-{}", self.variant));
        }
        if !self.append.is_empty() {
            stem.push_str(&format!("-{}", in_a_name(&self.append)));
        }
        stem
    }

    /// As JSON, a line for each sample.
    fn as_json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?.replace("},{", "},\n{") + "\n")
    }

    /// The rows, as they came.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        for sample in &self.samples {
            if !rows.contains(&sample.row()) {
                rows.push(sample.row());
            }
        }
        rows
    }

    /// The values of a row, by boot and round.
    fn values(&self, row: Row<'_>, policy: &str) -> BTreeMap<(u32, u32), f64> {
        let of = |sample: &&Sample| sample.row() == row && sample.policy == policy;
        let samples = self.samples.iter().filter(of);
        samples.map(|s| ((s.boot, s.round), s.value)).collect()
    }

    /// What a row comes to with a policy.
    fn absolute(&self, row: Row<'_>, policy: &str) -> Vec<f64> {
        self.values(row, policy).into_values().collect()
    }

    /// Ratios to refcount, each of one round.
    fn ratios(&self, row: Row<'_>, policy: &str) -> Vec<f64> {
        let base = self.values(row, POLICIES[0]);
        let ratio = |(at, value): (_, f64)| base.get(&at).map(|base| value / base);
        let ratios = self.values(row, policy).into_iter().filter_map(ratio);
        ratios.filter(|ratio| ratio.is_finite()).collect()
    }

    /// A line for each policy in each row.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header([
            "",
            "CPUs",
            "policy",
            "median",
            "min..max",
            "to refcount, paired",
            "quartiles",
            "min..max",
        ]);
        for row in self.rows() {
            let (what, case, cpus, unit) = row;
            for policy in POLICIES {
                let Some(s) = Spread::of(self.absolute(row, policy)) else {
                    continue;
                };
                let mut cells = vec![
                    format!("{what} {case}").trim_end().to_owned() + ", " + unit,
                    cpus.to_string(),
                    policy.to_owned(),
                    format!("{:.1}", s.median),
                    format!("{:.1}..{:.1}", s.min, s.max),
                ];
                let ratios = self.ratios(row, policy);
                let spread = Spread::of(ratios.clone()).zip(quartiles(ratios));
                cells.extend(match spread.filter(|_| policy != POLICIES[0]) {
                    Some((s, (first, third))) => [
                        format!("{:.3}", s.median),
                        format!("{first:.3}..{third:.3}"),
                        format!("{:.3}..{:.3}", s.min, s.max),
                    ],
                    None => Default::default(),
                });
                table.add_row(cells);
            }
        }
        for (_, column) in table
            .column_iter_mut()
            .enumerate()
            .filter(|(index, _)| ![0, 2].contains(index))
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    /// Whether a policy is within `percent` of refcount, paired, or in the middle half of what refcount
    /// itself comes to: for each row of `what`, in words.
    pub fn verdict(&self, what: &str, policy: &str, percent: f64) -> Vec<String> {
        let rows = self.rows().into_iter().filter(|row| row.0 == what);
        let verdict = |row: Row<'_>| {
            let ratio = Spread::of(self.ratios(row, policy))?.median;
            let median = Spread::of(self.absolute(row, policy))?.median;
            let (_, third) = quartiles(self.absolute(row, POLICIES[0]))?;
            let how = match (ratio <= 1.0 + percent / 100.0, median <= third) {
                (true, _) => "yes",
                (false, true) => "no, but inside refcount's own middle half",
                (false, false) => "NO",
            };
            let (what, case, ..) = row;
            Some(format!(
                "{what} {case}: {policy} within {percent} % of refcount ({:+.1} %): {how}",
                (ratio - 1.0) * 100.0
            ))
        };
        rows.filter_map(verdict).collect()
    }

    /// Its part of the report.
    pub fn section(&self, file: &str) -> String {
        let append = match self.append.as_str() {
            "" => String::new(),
            words => format!(", `{words}`"),
        };
        let clock = match self.clock.starts_with("this") {
            true => "",
            false => ", and no measure of a machine",
        };
        format!(
            "\n### Guest {}{append}: {}\n\n{}, {} CPUs, Linux {} (variant {}); the clock is {}{clock}.\n\n\
             From `{file}`; again: `{}`\n\n{}\n",
            self.guest,
            self.command.split(' ').nth(3).unwrap_or_default(),
            self.machine.cpu_model,
            self.machine.cpus,
            self.kernel,
            self.variant,
            self.clock,
            self.command,
            self.table(),
        )
    }
}

/// For a console that has nothing of what was expected.
pub fn nothing(what: &str) -> anyhow::Error {
    fail(
        Exit::Failed,
        format!("the guest did not report {what}"),
        "its console says why",
    )
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn of(samples: Vec<Sample>) -> Results {
        Results {
            command: "cargo xtask bench exit --arch arm64".into(),
            machine: Machine::parse("model name\t: Some CPU\n", "x86_64", "6.1.0"),
            guest: "arm64".into(),
            append: String::new(),
            kernel: "7.3.4".into(),
            variant: "default".into(),
            clock: "emulated".into(),
            samples,
        }
    }

    /// Three rounds, each slower than the one before; `handover` and `shootdown` times refcount.
    pub fn example(handover: f64, shootdown: f64) -> Results {
        let sample = |round: u32, policy: usize| Sample {
            policy: POLICIES[policy].into(),
            boot: 1,
            round,
            what: "exit".into(),
            case: "lazy".into(),
            cpus: 4,
            unit: "us".into(),
            value: 100.0 * f64::from(round) * [1.0, handover, shootdown][policy],
        };
        of((1..=3)
            .flat_map(|round| (0..3).map(move |policy| sample(round, policy)))
            .collect())
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        let table = example(1.02, 1.5).table();
        assert!(
            table.contains("1.020 | 1.020..1.020 | 1.020..1.020"),
            "{table}"
        );
        assert!(table.contains("300.0 | 150.0..450.0 |"), "{table}");
    }

    #[test]
    fn the_verdict_has_a_limit() {
        let verdict = |ratio, policy| {
            example(ratio, ratio)
                .verdict("exit", policy, 10.0)
                .remove(0)
        };
        assert!(verdict(1.09, "shootdown").ends_with("(+9.0 %): yes"));
        assert!(verdict(1.2, "shootdown").contains("inside"));
        assert!(verdict(2.0, "shootdown").ends_with("NO"));
    }

    #[test]
    fn a_policy_that_is_missing_is_an_error() {
        let mut samples = example(1.0, 1.0).samples;
        check(&samples, 3).unwrap();
        assert!(check(&samples, 4).is_err());
        assert!(check(&[], 0).is_err());
        samples.retain(|sample| sample.policy != "handover");
        let error = check(&samples, 3).unwrap_err().to_string();
        assert!(error.contains("not every policy"), "{error}");
    }

    #[test]
    fn the_file_has_a_line_for_each_sample_and_can_be_read() {
        let results = example(1.0, 1.25);
        let text = results.as_json().unwrap();
        assert_eq!(text.lines().count(), 9);
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(read.samples, results.samples);
        let section = results.section("paired-exit-arm64-4.json");
        assert!(section.contains("### Guest arm64: exit\n"), "{section}");
    }
}
