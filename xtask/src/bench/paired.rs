//! Policies beside each other on one boot: what the benchmarks that a guest runs by itself have in common.
//!
//! The guest, or its kernel, changes the policy itself, in rounds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Args;

use crate::guest::console::without_stamps;
use crate::guest::machine::{self, Append, Guest, Vm};
use crate::host::failure::{fail, Exit};
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::machine::Machine;
use crate::results::sample::{append_option, Row, Sample, Samples, POLICIES};

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

/// A benchmark that a guest runs by itself.
pub struct Bench<'a> {
    pub name: &'static str,
    pub build: &'a Build<'a>,
    pub initramfs: PathBuf,
    pub words: &'static str,
    /// How often all policies come, unless the options say it; nothing if that is not to be chosen.
    pub rounds: Option<u32>,
    /// Reads a line of the console, without its stamp: no sample, some, or an error if it is damaged.
    pub read: fn(&str, u32) -> Result<Vec<Sample>>,
}

impl Bench<'_> {
    pub fn run(
        &self,
        project: &Project,
        shop: &Workshop<'_>,
        options: &Options,
        json: Option<&Path>,
    ) -> Result<()> {
        let build = self.build;
        let arch = build.arch;
        ensure!(
            !(options.icount && arch.is_program()),
            "{} has no emulator whose clock could go by instructions",
            arch.name
        );
        let rounds = options.rounds.or(self.rounds);
        let image = build.image()?;
        let mut vm = Vm::new(project, arch, &image)?.for_cpus(options.cpus as usize);
        if options.icount {
            vm.accel = machine::TCG_BY_TURNS.into();
        }
        let clock = match (options.icount, vm.is_emulated()) {
            (true, _) => "virtual, by instructions",
            (false, true) => "emulated",
            (false, false) => "this machine's",
        };
        let mut samples = Samples {
            command: format!(
                "cargo xtask bench {} --arch {} --variant {} --cpus {} --boots {}{}{}{}",
                self.name,
                arch.name,
                build.variant,
                options.cpus,
                options.boots,
                rounds.map_or(String::new(), |rounds| format!(" --rounds {rounds}")),
                if options.icount { " --icount" } else { "" },
                append_option(&options.append.words)
            ),
            machine: Machine::here()?,
            guest: arch.name.into(),
            append: options.append.words.clone(),
            kernel: shop.base.version.to_string(),
            variant: build.variant.into(),
            clock: clock.into(),
            samples: Vec::new(),
        };
        let rounds = rounds.unwrap_or(1);
        let append = format!(
            "{} LAZY_TLB_POLICIES={} LAZY_TLB_ROUNDS={rounds} {} {}",
            machine::NO_KUNIT,
            POLICIES.join(","),
            self.words,
            options.append.words
        );
        let limit = Duration::from_secs(options.timeout);
        for boot in 1..=options.boots {
            let log = format!("{}-{}-{}-{boot}", self.name, arch.name, options.cpus);
            let guest = Guest {
                smp: options.cpus as usize,
                append: append.trim_end(),
                timeout: limit,
                silence: machine::SILENCE.min(limit),
                icount: options.icount,
                ..vm.guest(&self.initramfs, &log)
            };
            let report = guest.boot()?;
            report.check()?;
            let found = self.samples(&without_stamps(&report.text), boot, rounds);
            samples.samples.extend(found.map_err(|error| {
                let remedy = format!("the console is in {}", guest.log.display());
                fail(Exit::Failed, format!("{error:#}"), remedy)
            })?);
        }
        let clock = if options.icount { "icount" } else { "" };
        let path = samples.write(&project.repo, options.cpus, &[clock], json)?;
        println!("\n{}\n\n{}", samples.table(), path.display());
        Ok(())
    }

    /// Those of one boot, the times first.
    fn samples(&self, console: &str, boot: u32, rounds: u32) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for line in console.lines() {
            let found = (self.read)(line, boot).with_context(|| format!("`{line}` is damaged"))?;
            samples.extend(found);
        }
        samples.sort_by_key(|sample| sample.unit.contains("per"));
        check(&samples, rounds)?;
        Ok(samples)
    }
}

/// An error unless there is something, and of each policy as much.
pub fn check(samples: &[Sample], rounds: u32) -> Result<()> {
    ensure!(!samples.is_empty(), "the guest measured nothing");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample::tests::example;

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
}
