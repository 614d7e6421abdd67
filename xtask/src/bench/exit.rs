//! `bench exit`: how long an exit takes under each policy, from `_exit()` to the parent's return from
//! `waitpid()`, when the process has left all other CPUs lazy on its mm and when it has left none.

use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::paired::{Bench, Options};
use crate::guest::console::{number, pairs, text};
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::sample::Sample;

/// What the guest puts in front of its lines.
const PREFIX: &str = "lazy-tlb-exit: ";

/// A line of the guest's is the median of the exits of a round, and what the kernel did in one of them.
fn read(line: &str, boot: u32) -> Result<Vec<Sample>> {
    let Some(line) = line.strip_prefix(PREFIX).map(pairs) else {
        return Ok(Vec::new());
    };
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
    Ok(vec![
        sample("exit", "us", us)?,
        sample("handed", "CPUs per exit", count("handed")? as f64 / exits)?,
        sample("nudged", "CPUs per exit", count("nudged")? as f64 / exits)?,
    ])
}

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
        initramfs: project.initramfs(build.arch, "exit")?,
        words: "",
        rounds: Some(20),
        read,
    };
    bench.run(project, shop, options, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "lazy-tlb-exit: round=1 policy=handover case=lazy cpus=4 exits=20 \
                        handed=80 nudged=0 us=211.500";

    #[test]
    fn a_line_is_a_time_and_two_counts() {
        let samples = read(LINE, 2).unwrap();
        let exit = Sample {
            policy: "handover".into(),
            boot: 2,
            round: 1,
            what: "exit".into(),
            case: "lazy".into(),
            cpus: 4,
            unit: "us".into(),
            value: 211.5,
        };
        assert_eq!((samples.len(), &samples[0]), (3, &exit));
        assert_eq!(
            (samples[1].what.as_str(), samples[1].value),
            ("handed", 4.0)
        );
        assert!(read("Run /init", 1).unwrap().is_empty());
        let cut = read(&LINE.replace(" us=211.500", ""), 1).unwrap_err();
        assert!(cut.to_string().contains("did not report us"), "{cut}");
    }
}
