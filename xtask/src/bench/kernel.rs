//! `bench kernel`: what a borrow and a final drop cost in the kernel itself, as its own benchmark
//! (`CONFIG_LAZY_TLB_BENCHMARK`) says at boot, where policies take turns.
//!
//! User-mode Linux runs it at the speed of this machine's CPUs. Everywhere else an emulator makes the
//! times.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use crate::bench::paired::{self, Bench};
use crate::guest::console::{number, pairs, text};
use crate::guest::machine::Append;
use crate::host::failure::{fail, Exit};
use crate::kernel::build::{values, Build};
use crate::kernel::workshop::{Project, Workshop};
use crate::results::sample::Sample;

/// What the kernel puts in front of its lines.
const PREFIX: &str = "lazy_tlb_benchmark: ";
/// It has run before the first process, which has nothing to do.
const IDLE: &str = "LAZY_TLB_WORKLOAD=build LAZY_TLB_JOBS=0";

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many CPUs the guest has.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub cpus: u32,
    /// How many guests are booted.
    #[arg(long, alias = "repeat", default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub boots: u32,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 300, value_name = "S")]
    pub timeout: u64,
}

/// A line is of the rounds that the kernel makes, of one thing on so many CPUs.
fn read(line: &str, boot: u32) -> Result<Vec<Sample>> {
    let line = line.strip_prefix(PREFIX).map(pairs);
    let Some(line) = line.filter(|line| line.contains_key("what")) else {
        return Ok(Vec::new());
    };
    Ok(vec![Sample {
        policy: text(&line, "policy")?.into(),
        boot,
        round: 1,
        what: text(&line, "what")?.into(),
        case: String::new(),
        cpus: number(&line, "cpus")?.try_into()?,
        unit: "ns".into(),
        value: number(&line, "ps_median")? as f64 / 1000.0,
    }])
}

pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let bench = Bench {
        name: "kernel",
        build,
        initramfs: project.initramfs(build.arch, "alive")?,
        words: IDLE,
        rounds: None,
        read,
    };
    let options = paired::Options {
        cpus: options.cpus,
        boots: options.boots,
        rounds: None,
        icount: false,
        append: Append::default(),
        timeout: options.timeout,
    };
    build.configure()?;
    let config = build.out.join(".config");
    let config =
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    if values(&config).get("LAZY_TLB_BENCHMARK") != Some(&"y") {
        return Err(fail(
            Exit::Usage,
            "this kernel has no benchmark of its own (CONFIG_LAZY_TLB_BENCHMARK)",
            "use --arch um, whose configuration has it",
        ));
    }
    bench.run(project, shop, &options, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_median() {
        let line = "lazy_tlb_benchmark: what=drop policy=refcount cpus=2 rounds=31 \
                    ps_median=42500 ps_min=5900 ps_max=70000 drops=8";
        let sample = read(line, 3).unwrap().remove(0);
        assert_eq!(sample.row(), ("drop", "", 2, "ns"));
        assert_eq!((sample.boot, sample.value), (3, 42.5));
        assert!(read(&line.replace("ps_median=42500 ", ""), 1).is_err());
        let said = "lazy_tlb_benchmark: not all of 4 CPUs came in time";
        assert!(read(said, 1).unwrap().is_empty());
    }
}
