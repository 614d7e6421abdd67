//! `bench perf`: `perf bench sched lazy-tlb --compare` in all its modes in a guest, which changes the
//! policy by itself.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::paired::{Bench, Options};
use crate::guest::initramfs::GuestFile;
use crate::kernel::build::Build;
use crate::kernel::programs::perf;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::sample::Sample;

/// What the guest, and a machine's own script, puts in front of perf's lines.
const PREFIX: &str = "lazy-tlb-perf: ";
/// What is taken of perf's exits.
const QUANTILES: [(&str, &str); 2] = [("p50_ns", "exit"), ("p99_ns", "exit, p99")];

/// `repeat N policy P mode M cpus C`, and then either `trips_per_sec R` or `lazy exits N p50_ns T ...`.
fn samples(line: &str, boot: u32) -> Option<Vec<Sample>> {
    let words: Vec<&str> = line.split(' ').collect();
    let (head, rest) = words.split_at_checked(8)?;
    let (case, rest) = match *rest.first()? {
        "lazy" => ("lazy", &rest[1..]),
        "alone" => ("none", &rest[1..]),
        _ => ("", rest),
    };
    let pairs = |words: &[&str]| -> Option<BTreeMap<String, String>> {
        let pair = |pair: &[&str]| Some((pair[0].to_owned(), pair.get(1)?.to_string()));
        words.chunks(2).map(pair).collect()
    };
    let (head, rest) = (pairs(head)?, pairs(rest)?);
    let cpus: u32 = head.get("cpus")?.parse().ok()?;
    let sample = |what: &str, us: f64| {
        Some(Sample {
            policy: head.get("policy")?.clone(),
            boot,
            round: head.get("repeat")?.parse().ok()?,
            what: what.into(),
            case: case.into(),
            cpus,
            unit: "us".into(),
            value: us,
        })
    };
    if let Some(rate) = rest.get("trips_per_sec") {
        let rate: f64 = rate.parse().ok()?;
        let pairs = f64::from(cpus / 2);
        return Some(vec![sample(head.get("mode")?, 1e6 * pairs / rate)?]);
    }
    let exit = |(key, what): (&str, &str)| sample(what, rest.get(key)?.parse::<f64>().ok()? / 1e3);
    QUANTILES.into_iter().map(exit).collect()
}

/// Reads a line, in which perf's begin after the prefix.
pub fn read(line: &str, boot: u32) -> Result<Vec<Sample>> {
    match line.split_once(PREFIX) {
        Some((_, line)) if line.starts_with("repeat ") => {
            samples(line.trim_end(), boot).context("not all of a repeat is there")
        }
        _ => Ok(Vec::new()),
    }
}

pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let perf = perf(&shop.tree, build.arch, &build.out)?;
    let files = vec![GuestFile::program("perf", &perf)?];
    let initramfs = project.initramfs_with(build.arch, "perf", files, &build.out)?;
    let bench = Bench {
        name: "perf",
        build,
        initramfs,
        words: "",
        rounds: Some(5),
        read,
    };
    bench.run(project, shop, options, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_and_exits_are_times() {
        let trips =
            "lazy-tlb-perf: repeat 2 policy handover mode threads cpus 4 trips_per_sec 10000";
        let exits = "lazy-tlb-perf: repeat 2 policy handover mode exit cpus 4 alone exits 500 \
                     p50_ns 150000 p99_ns 4200000 max_ns 5100000\r";
        let facts = |line: &str| -> Vec<_> {
            let samples = read(line, 1).unwrap().into_iter();
            samples
                .map(|s| (s.what, s.case, s.round, s.cpus, s.value))
                .collect()
        };
        let none = String::new();
        assert_eq!(facts(trips), [("threads".into(), none, 2, 4, 200.0)]);
        assert_eq!(
            facts(exits),
            [
                ("exit".into(), "none".into(), 2, 4, 150.0),
                ("exit, p99".into(), "none".into(), 2, 4, 4200.0),
            ]
        );
        for other in [
            "Run /init",
            "lazy-tlb-perf: ratio handover to refcount mode",
        ] {
            assert!(facts(other).is_empty());
        }
        assert!(read(&trips.replace(" 10000", ""), 1).is_err());
        assert!(read(&exits.replace(" cpus 4 alone", " alone"), 1).is_err());
    }
}
