//! `bench exit`: how long an exit takes under each policy, from `_exit()` to the parent's return from
//! `waitpid()`, when the process has left all other CPUs lazy on its mm and when it has left none.

use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::paired::{self, Bench, Options, Sample};
use crate::guest::console::{number, pairs, text};
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};

/// What the guest puts in front of its lines.
const PREFIX: &str = "lazy-tlb-exit: ";
/// How much slower than with refcount an exit may be, in percent.
const LIMITS: [(&str, f64); 2] = [("handover", 3.0), ("shootdown", 10.0)];

/// A line of the guest's is the median of the exits of a round, and what the kernel did in one of them.
fn samples(line: &str, boot: u32) -> Result<[Sample; 3]> {
    let line = pairs(line);
    let count = |key| number(&line, key);
    let exits = count("exits")? as f64;
    let us: f64 = text(&line, "us")?.parse().context("us is a number")?;
    let sample = |what: &str, unit: &str, value| -> Result<Sample> {
        Ok(Sample {
            policy: text(&line, "policy")?.into(),
            boot,
            round: count("round")?.try_into()?,
            what: what.into(),
            case: text(&line, "case")?.into(),
            cpus: count("cpus")?.try_into()?,
            unit: unit.into(),
            value,
        })
    };
    Ok([
        sample("exit", "us", us)?,
        sample("handed", "CPUs per exit", count("handed")? as f64 / exits)?,
        sample("nudged", "CPUs per exit", count("nudged")? as f64 / exits)?,
    ])
}

fn read(console: &str, boot: u32) -> Result<Vec<Sample>> {
    let lines = console.lines().filter_map(|line| line.strip_prefix(PREFIX));
    let mut all = Vec::new();
    for line in lines {
        let samples = samples(line, boot).with_context(|| format!("`{line}` is damaged"))?;
        all.extend(samples);
    }
    all.sort_by_key(|sample| sample.what != "exit");
    match all.is_empty() {
        true => Err(paired::nothing("any exit")),
        false => Ok(all),
    }
}

/// `bench exit` itself.
pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let bench = Bench {
        name: "exit",
        build,
        initramfs: project.guest_initramfs(build.arch, "exit-init")?,
        rounds: 20,
        read,
    };
    let results = bench.run(project, &shop.base.version.to_string(), options, json)?;
    for (policy, percent) in LIMITS {
        for line in results.verdict("exit", policy, percent) {
            println!("{line}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
lazy-tlb-exit: round=1 policy=handover case=lazy cpus=4 exits=20 handed=80 nudged=0 us=211.500
lazy-tlb-exit: round=1 policy=shootdown case=none cpus=4 exits=20 handed=20 nudged=0 us=201.250
";

    #[test]
    fn a_line_is_a_time_and_two_counts() {
        let samples = read(CONSOLE, 2).unwrap();
        assert_eq!(samples.len(), 6);
        let Sample {
            policy,
            boot,
            round,
            what,
            case,
            cpus,
            unit,
            value,
        } = &samples[0];
        assert_eq!((policy.as_str(), what.as_str()), ("handover", "exit"));
        assert_eq!((case.as_str(), unit.as_str()), ("lazy", "us"));
        assert_eq!((*boot, *round, *cpus, *value), (2, 1, 4, 211.5));
        assert_eq!(
            (samples[1].case.as_str(), samples[1].value),
            ("none", 201.25)
        );
        assert_eq!(
            (samples[2].what.as_str(), samples[2].value),
            ("handed", 4.0)
        );
    }

    #[test]
    fn a_console_without_exits_or_with_damaged_ones_is_an_error() {
        assert!(read("Run /init\n", 1).is_err());
        let cut = read(&CONSOLE.replace(" us=211.500", ""), 1).unwrap_err();
        assert!(format!("{cut:#}").contains("did not report us"), "{cut:#}");
    }
}
