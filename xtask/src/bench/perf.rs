//! `bench perf`: `perf bench sched lazy-tlb --compare` in all its modes in a guest, which changes the
//! policy by itself.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::paired::{self, Bench, Options, Sample};
use crate::guest::initramfs::{self, GuestFile};
use crate::kernel::build::Build;
use crate::kernel::programs::perf;
use crate::kernel::workshop::{Project, Workshop};

/// What the guest puts in front of perf's lines.
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
    let pair = |pair: &'_ [&'_ str]| Some((pair[0].to_owned(), pair.get(1)?.to_string()));
    let pairs = |words: &[&str]| {
        words
            .chunks(2)
            .map(pair)
            .collect::<Option<BTreeMap<_, _>>>()
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

fn read(console: &str, boot: u32) -> Result<Vec<Sample>> {
    let lines = console.lines().filter_map(|line| line.strip_prefix(PREFIX));
    let mut all = Vec::new();
    for line in lines.filter(|line| line.starts_with("repeat ")) {
        all.extend(samples(line, boot).with_context(|| format!("`{line}` is damaged"))?);
    }
    match all.is_empty() {
        true => Err(paired::nothing("anything that perf measured")),
        false => Ok(all),
    }
}

/// `bench perf` itself.
pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let perf = perf(&shop.tree, build.arch, &build.out)?;
    let program = project.guest_program(build.arch, "perf-init")?;
    let initramfs = build.out.join("perf-init.cpio");
    let files = [
        GuestFile::program("init", &program)?,
        GuestFile::program("perf", &perf)?,
    ];
    initramfs::write_initramfs(&initramfs, &files)?;
    let bench = Bench {
        name: "perf",
        build,
        initramfs,
        rounds: 5,
        read,
    };
    bench.run(project, &shop.base.version.to_string(), options, json)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
lazy-tlb-perf: policy refcount,handover
lazy-tlb-perf: repeat 2 policy handover mode threads cpus 4 trips_per_sec 10000
lazy-tlb-perf: repeat 2 policy handover mode exit cpus 4 alone exits 500 p50_ns 150000 p99_ns 4200000 max_ns 5100000
lazy-tlb-perf: ratio handover to refcount mode threads cpus 4 trip median 1.0000 min 0.9000 max 1.1000
";

    #[test]
    fn trips_and_exits_are_times() {
        let samples = read(CONSOLE, 1).unwrap();
        let facts = |s: &Sample| (s.what.clone(), s.case.clone(), s.round, s.cpus, s.value);
        let facts: Vec<_> = samples.iter().map(facts).collect();
        assert_eq!(
            facts,
            [
                ("threads".into(), String::new(), 2, 4, 200.0),
                ("exit".into(), "none".into(), 2, 4, 150.0),
                ("exit, p99".into(), "none".into(), 2, 4, 4200.0),
            ]
        );
    }

    #[test]
    fn a_damaged_line_or_none_is_an_error() {
        assert!(read("Run /init\n", 1).is_err());
        assert!(read(&CONSOLE.replace(" 10000", ""), 1).is_err());
        assert!(read(&CONSOLE.replace(" cpus 4 alone", " alone"), 1).is_err());
    }
}
