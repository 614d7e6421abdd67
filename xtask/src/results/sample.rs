//! Samples: what benchmarks count and time, the form in which that is kept, and the table of it.
//!
//! A value of one policy and the one of `refcount` of the same round are of the same moments of the same boot.
//! Their ratio says more than two medians do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::host::policy;
use crate::host::sh;
use crate::results::machine::Machine;
use crate::results::table;

/// The policies, each compared with the first.
pub const POLICIES: [&str; 3] = [policy::REFCOUNT, policy::HANDOVER, policy::SHOOTDOWN];
pub const FILES: &str = "paired-";
/// The units, or how they begin, of which less is better.
const COSTS: [&str; 7] = [
    "us",
    "ns",
    "per trip",
    "per switch",
    "per exit",
    "per fork",
    "per munmap",
];
const SAME: &str = "same";
const WORSE: &str = "worse";

/// Everything that a benchmark found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Samples {
    /// How to measure it again.
    pub command: String,
    pub machine: Machine,
    /// The guest's architecture; empty where there was no guest.
    pub guest: String,
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

/// What the samples of a row have in common: what, case, CPUs, unit.
pub type Row<'a> = (&'a str, &'a str, u32, &'a str);

impl Sample {
    pub fn row(&self) -> Row<'_> {
        (&self.what, &self.case, self.cpus, &self.unit)
    }
}

/// A median with the least, the greatest, and the middle half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub quartiles: (f64, f64),
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
        let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
        let quartiles = (at(0.25), at(0.75));
        Some(Spread {
            median,
            min,
            max,
            quartiles,
        })
    }
}

impl Samples {
    /// What `cargo xtask bench` calls it; perf measures a machine itself.
    pub fn bench(&self) -> &str {
        self.command.split(' ').nth(3).unwrap_or("perf")
    }

    /// Writes it, a line for each sample, where that is said or beside the other results of its machine, whose
    /// names say what is unusual; returns where.
    pub fn write(
        &self,
        repo: &Path,
        cpus: u32,
        unusual: &[&str],
        json: Option<&Path>,
    ) -> Result<PathBuf> {
        let cpus = cpus.to_string();
        let variant = self.variant.as_str();
        let variant = if variant == "default" { "" } else { variant };
        let mut words = vec![self.bench(), &self.guest, &cpus];
        words.extend(unusual);
        words.extend([variant, &self.append]);
        words.retain(|word| !word.is_empty());
        let words: Vec<String> = words.into_iter().map(in_a_name).collect();
        let name = format!("{FILES}{}", words.join("-"));
        let folder = repo.join("results").join(self.machine.slug());
        let own = || folder.join(format!("{name}.json"));
        let path = json.map_or_else(own, Path::to_owned);
        let text = serde_json::to_string(self)?.replace("},{", "},\n{") + "\n";
        sh::write_whole(&path, text.as_bytes())?;
        Ok(path)
    }

    pub fn rows(&self) -> Vec<Row<'_>> {
        distinct(self.samples.iter().map(Sample::row))
    }

    /// The values of a row, by boot and round.
    fn values(&self, row: Row<'_>, policy: &str) -> BTreeMap<(u32, u32), f64> {
        let of = |sample: &&Sample| sample.row() == row && sample.policy == policy;
        let samples = self.samples.iter().filter(of);
        samples.map(|s| ((s.boot, s.round), s.value)).collect()
    }

    pub fn absolute(&self, row: Row<'_>, policy: &str) -> Option<Spread> {
        Spread::of(self.values(row, policy).into_values().collect())
    }

    /// Ratios to refcount, each of one round.
    fn ratios(&self, row: Row<'_>, policy: &str) -> Option<Spread> {
        let base = self.values(row, POLICIES[0]);
        let ratio = |(at, value): (_, f64)| base.get(&at).map(|base| value / base);
        let ratios = self.values(row, policy).into_iter().filter_map(ratio);
        Spread::of(ratios.filter(|ratio| ratio.is_finite()).collect())
    }

    /// A line for each policy in each row.
    pub fn table(&self) -> String {
        let mut lines = Vec::new();
        for row in self.rows() {
            let (what, case, cpus, unit) = row;
            for policy in POLICIES {
                let Some(s) = self.absolute(row, policy) else {
                    continue;
                };
                let ratio = self.ratios(row, policy).filter(|_| policy != POLICIES[0]);
                let ratio = ratio.map(|s| {
                    let (first, third) = s.quartiles;
                    [
                        format!("{:.3}", s.median),
                        format!("{first:.3}..{third:.3}"),
                        format!("{:.3}..{:.3}", s.min, s.max),
                    ]
                });
                let mut cells = vec![
                    format!("{what} {case}").trim_end().to_owned() + ", " + unit,
                    cpus.to_string(),
                    policy.to_owned(),
                    format!("{:.1}", s.median),
                    format!("{:.1}..{:.1}", s.min, s.max),
                ];
                cells.extend(ratio.unwrap_or_default());
                lines.push(cells);
            }
        }
        let header = [
            "",
            "CPUs",
            "policy",
            "median",
            "min..max",
            "to refcount, paired",
            "quartiles",
            "min..max",
        ];
        table::of(header, lines, &[0, 2])
    }

    /// A line for each row that costs something: how each policy compares with refcount, in a word.
    pub fn answers(&self) -> Vec<Vec<String>> {
        let rows = self.rows().into_iter();
        let costs = rows.filter(|(.., unit)| COSTS.iter().any(|cost| unit.starts_with(cost)));
        let line = |row: Row<'_>| {
            let (what, case, cpus, unit) = row;
            let rounds = self.values(row, POLICIES[0]).len();
            let mut cells = vec![
                format!("{what} {case}").trim_end().to_owned() + ", " + unit,
                format!("{} {}", self.guest, self.append).trim_end().into(),
                cpus.to_string(),
                rounds.to_string(),
            ];
            for policy in &POLICIES[1..] {
                cells.extend(match self.ratios(row, policy) {
                    Some(s) => [
                        format!("{:.3}", s.median),
                        format!("{:.3}..{:.3}", s.min, s.max),
                        word(s.min, s.max).into(),
                    ],
                    None => ["".into(), "".into(), self.word_beside_nothing(row, policy)],
                });
            }
            cells
        };
        let compared = costs.filter(|row| !self.values(*row, POLICIES[0]).is_empty());
        compared.map(line).collect()
    }

    /// The word where refcount costs nothing, so that there is no ratio.
    fn word_beside_nothing(&self, row: Row<'_>, policy: &str) -> String {
        match self.absolute(row, policy) {
            None => "not measured".into(),
            Some(s) if s.max == 0.0 => SAME.into(),
            Some(s) => format!("{WORSE}: {:.1} more than none", s.median),
        }
    }

    pub fn title(&self) -> String {
        let append = match self.append.as_str() {
            "" => String::new(),
            words => format!(", `{words}`"),
        };
        match self.guest.as_str() {
            "" => format!("The machine itself: {}", self.bench()),
            guest => format!("Guest {guest}{append}: {}", self.bench()),
        }
    }

    pub fn section(&self, file: &str) -> String {
        let clock = match self.clock.starts_with("this") {
            true => "",
            false => ", and no measure of a machine",
        };
        format!(
            "\n### {}\n\n{}, {} CPUs, Linux {} (variant {}); the clock is {}{clock}.\n\n\
             From `{file}`; again: `{}`\n\n{}\n",
            self.title(),
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

/// What ratios from the least to the greatest say: a difference is one in all rounds.
fn word(min: f64, max: f64) -> &'static str {
    match (max < 1.0, min > 1.0) {
        (true, _) => "better",
        (_, true) => WORSE,
        _ => SAME,
    }
}

/// Each of them once, in the order of the first.
pub fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for item in items {
        if !found.contains(&item) {
            found.push(item);
        }
    }
    found
}

/// How such words are asked for, after the rest of a command; nothing if there are none.
pub fn append_option(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(" --append '{words}'"),
    }
}

/// Words of a command line as part of a file's name.
fn in_a_name(words: &str) -> String {
    let plain = words.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => c,
        _ => '-',
    });
    plain.collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn of(command: &str, samples: Vec<Sample>) -> Samples {
        Samples {
            command: command.into(),
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
    pub fn example(handover: f64, shootdown: f64) -> Samples {
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
        let rounds = (1..=3).flat_map(|round| (0..3).map(move |policy| sample(round, policy)));
        of("cargo xtask bench exit --arch arm64", rounds.collect())
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
    fn what_is_better_in_all_rounds_is_better() {
        let answers = example(0.9, 1.5).answers();
        let exit = "exit lazy, us|arm64|4|3|0.900|0.900..0.900|better|1.500|1.500..1.500|worse";
        assert_eq!(answers[0].join("|"), exit);
        let mut samples = example(0.9, 0.0);
        let handover = |s: &&mut Sample| s.policy == policy::HANDOVER;
        samples.samples.iter_mut().find(handover).unwrap().value = 101.0;
        assert_eq!(samples.answers()[0][6], "same");
        let refcount = |s: &&mut Sample| s.policy == policy::REFCOUNT;
        samples
            .samples
            .iter_mut()
            .filter(refcount)
            .for_each(|s| s.value = 0.0);
        let answer = samples.answers().remove(0);
        assert_eq!(answer[6], "worse: 180.0 more than none");
        assert_eq!(answer[9], "same");
    }

    #[test]
    fn a_file_is_named_after_what_is_in_it_and_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut samples = example(1.0, 1.25);
        (samples.variant, samples.append) = ("test".into(), "a=1 b".into());
        let path = samples.write(dir.path(), 4, &["icount"], None).unwrap();
        let name = "results/x86_64-1cpus-some-cpu/paired-exit-arm64-4-icount-test-a-1-b.json";
        assert_eq!(path, dir.path().join(name));
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 9);
        let read: Samples = serde_json::from_str(&text).unwrap();
        assert_eq!(read.samples, samples.samples);
    }
}
