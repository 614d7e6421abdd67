//! The counts of `bench lines`, as their file and their table have them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bench::transfers::{PER_EXIT, RUN};
use crate::results::machine::Machine;
use crate::results::sample::{self, distinct, Samples};
use crate::results::table;

/// How many of the lines that many CPUs share are told of a trip; of others, half of them. Of an exit, how many functions.
const TOP: usize = 10;
/// What most counts are per.
pub const PER_TRIP: &str = "per trip";

/// Everything that was counted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// How to count it again.
    pub command: String,
    #[serde(flatten)]
    pub machine: Machine,
    /// The guest's architecture.
    pub guest: String,
    pub guest_cpus: u32,
    /// What ran, if not the bench's own threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<String>,
    pub line_bytes: u64,
    pub variant: String,
    pub qemu: String,
    pub samples: Vec<Sample>,
}

/// One count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub policy: String,
    /// From 1; each round of a boot has a number of its own.
    pub boot: u32,
    /// `transfers`, of which are `exclusive transfers`, `writes`, `instructions`, `atomics` or `barriers`; of a load
    /// `share`, in per cent of the transfers of all lines that more than two CPUs touch, `busier lines`, how many of
    /// those move more often, of which are `busier kernel lines`, and `counted`, how many switches or operations there were.
    pub what: String,
    /// Of which lines: `mm`, `mm.` and a field, or a symbol of the kernel.
    pub case: String,
    pub cpus: u32,
    pub unit: String,
    pub value: f64,
}

/// Over the boots and rounds: the median, the least, the greatest.
pub struct Spread(pub f64, pub f64, pub f64);

impl Spread {
    pub fn of(
        samples: &[Sample],
        unit: &str,
        policy: &str,
        what: &str,
        case: &str,
    ) -> Option<Self> {
        let of =
            |s: &&Sample| s.unit == unit && s.policy == policy && s.what == what && s.case == case;
        let mut values: Vec<f64> = samples.iter().filter(of).map(|s| s.value).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        Some(Spread(values[last / 2], values[0], values[last]))
    }

    fn shown(&self) -> String {
        let Spread(median, min, max) = self;
        match min == max {
            true => format!("{median:.2}"),
            false => format!("{median:.2} ({min:.2}..{max:.2})"),
        }
    }
}

impl Results {
    fn policies(&self) -> Vec<&str> {
        distinct(self.samples.iter().map(|sample| &*sample.policy))
    }

    /// A table for trips, for exits and so on.
    pub fn tables(&self) -> String {
        let units = distinct(self.samples.iter().map(|sample| &*sample.unit));
        let tables: Vec<String> = units.into_iter().map(|unit| self.table(unit)).collect();
        tables.join("\n\n")
    }

    /// A row for each case, those of the mm first, then those that move most; a column for each policy.
    fn table(&self, unit: &str) -> String {
        let policies = self.policies();
        let spread = |policy: &str, what: &str, case: &str| {
            Spread::of(&self.samples, unit, policy, what, case)
        };
        let most = |case: &str| {
            let medians = policies
                .iter()
                .filter_map(|p| Some(spread(p, "transfers", case)?.0));
            medians.fold(0.0, f64::max)
        };
        let transfers = self
            .samples
            .iter()
            .filter(|s| s.what == "transfers" && s.unit == unit);
        let cases: BTreeSet<&str> = transfers.map(|s| &*s.case).collect();
        let (mut own, mut others): (Vec<&str>, Vec<&str>) = cases
            .into_iter()
            .partition(|case| *case == "slot" || *case == "mm" || case.starts_with("mm."));
        own.retain(|case| !case.starts_with("mm.") || most(case) >= 0.005);
        others.sort_by(|a, b| most(b).total_cmp(&most(a)));
        others.retain(|case| most(case) >= 0.005);
        others.truncate(if unit == PER_TRIP { TOP } else { TOP / 2 });
        let mut rows = vec![("writes", "mm")];
        rows.extend(own.iter().chain(&others).map(|case| ("transfers", *case)));
        let more = [
            ("share", "mm"),
            ("share", "mm.mm_count"),
            ("busier lines", "mm.mm_count"),
            ("busier kernel lines", "mm.mm_count"),
            ("instructions", "its own CPU"),
            ("counted", "all"),
        ];
        let [share, of_count, busier, of_kernel, own_cpu, counted] = more;
        rows.extend([share, of_count, busier, of_kernel]);
        rows.extend([("instructions", "all"), own_cpu]);
        rows.extend([("atomics", "all"), ("barriers", "all"), counted]);
        let of = self
            .samples
            .iter()
            .filter(|s| s.what == RUN && s.unit == unit);
        rows.extend(
            distinct(of.map(|s| &*s.case))
                .into_iter()
                .map(|name| (RUN, name)),
        );
        let is_there = |row: &(&str, &str)| {
            let is_it = |s: &Sample| s.unit == unit && (&*s.what, &*s.case) == *row;
            self.samples.iter().any(is_it)
        };
        rows.retain(|row| !more.contains(row) || is_there(row));
        let lines = rows.into_iter().map(|(what, case)| {
            let cell = |policy: &&str| spread(policy, what, case).map_or("-".into(), |s| s.shown());
            let name = match case {
                "all" => what.to_owned(),
                case => format!("{what}, {case}"),
            };
            std::iter::once(name)
                .chain(policies.iter().map(cell))
                .collect::<Vec<_>>()
        });
        table::of([unit].iter().chain(&policies), lines, &[0])
    }

    /// Keeps the functions of which one policy runs most more than another.
    pub fn without_like_functions(mut self) -> Self {
        let (policies, of) = (self.policies(), |s: &&Sample| s.what == RUN);
        let mut names = distinct(self.samples.iter().filter(of).map(|s| &*s.case));
        let median = |p, name: &str| {
            Spread::of(&self.samples, PER_EXIT, p, RUN, name).map_or(0, |s| s.0 as u64)
        };
        names.sort_by_cached_key(|name| {
            let medians = policies.iter().map(|p| median(p, name));
            Reverse(medians.clone().max().unwrap_or(0) - medians.min().unwrap_or(0))
        });
        let kept: Vec<String> = names.into_iter().take(TOP).map(str::to_owned).collect();
        self.samples
            .retain(|s| s.what != RUN || kept.contains(&s.case));
        self
    }

    /// How often lines of these cases, the mm's among them, move, whatever that is counted per.
    pub fn moves(&self, cases: &[&str]) -> Samples {
        let moves = |s: &Sample, case: &str| s.what == "transfers" && s.case == case;
        let of_mm = self.samples.iter().filter(|s| moves(s, "mm"));
        let samples = of_mm.map(|s| {
            let same = |o: &&Sample| (&o.unit, &o.policy, o.boot) == (&s.unit, &s.policy, s.boot);
            let ours = |o: &&Sample| cases.iter().any(|case| moves(o, case));
            let values = self.samples.iter().filter(same).filter(ours);
            sample::Sample {
                policy: s.policy.clone(),
                boot: s.boot,
                round: 1,
                what: s.what.clone(),
                case: match &self.load {
                    Some(load) => format!("{load}: {}", cases.join(" + ")),
                    None => cases.join(" + "),
                },
                cpus: s.cpus,
                unit: s.unit.clone(),
                value: values.map(|other| other.value).sum(),
            }
        });
        let append = self.command.split_once(" --append ");
        Samples {
            command: self.command.clone(),
            machine: self.machine.clone(),
            guest: self.guest.clone(),
            append: append.map_or("", |(_, words)| words).replace('\'', ""),
            kernel: String::new(),
            variant: self.variant.clone(),
            clock: "none".into(),
            samples: samples.collect(),
        }
    }

    /// Its part of the report.
    pub fn section(&self, file: &str) -> String {
        format!(
            "\n### {}, {} CPUs{}\n\nvariant {}, lines of {} bytes, {}.\n\n\
             From `{file}`; again: `{}`\n\n{}\n",
            self.guest,
            self.guest_cpus,
            self.load
                .as_ref()
                .map_or(String::new(), |load| format!(": {load}")),
            self.variant,
            self.line_bytes,
            self.qemu,
            self.command,
            self.tables(),
        )
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn sample(policy: &str, boot: u32, what: &str, case: &str, value: f64) -> Sample {
        Sample {
            policy: policy.into(),
            boot,
            what: what.into(),
            case: case.into(),
            cpus: 4,
            unit: PER_TRIP.into(),
            value,
        }
    }

    pub fn example() -> Results {
        Results {
            command: "cargo xtask bench lines".into(),
            machine: Machine::parse("model name\t: Some CPU\n", "x86_64", "6.1.0"),
            guest: "x86_64".into(),
            guest_cpus: 4,
            load: None,
            line_bytes: 64,
            variant: "lines".into(),
            qemu: "QEMU 10".into(),
            samples: vec![
                sample("refcount", 1, "transfers", "jiffies", 0.2),
                sample("refcount", 1, "transfers", "nohz", 0.3),
                sample("refcount", 1, "transfers", "mm", 2.0),
                sample("refcount", 2, "transfers", "mm", 2.1),
                sample("refcount", 1, "transfers", "mm.pgd", 0.001),
                sample("shootdown", 1, "transfers", "mm", 0.0),
            ],
        }
    }

    #[test]
    fn functions_that_all_policies_run_alike_are_left_out() {
        let run = |policy: &str, boot, case: &str, value| Sample {
            unit: PER_EXIT.into(),
            ..sample(policy, boot, RUN, case, value)
        };
        let mut results = example();
        let others = results.samples.len();
        for nth in 0..TOP + 2 {
            let name = format!("f{nth:02}");
            // The more, the later; the last of them as often as the first, whatever one boot says.
            let more = if nth == TOP + 1 { 0 } else { nth };
            for (boot, noise) in [(1, 0), (2, 0), (3, 900)] {
                let more = if nth == 0 { noise } else { more };
                results.samples.push(run("refcount", boot, &name, 5000.0));
                results
                    .samples
                    .push(run("shootdown", boot, &name, (5000 + more) as f64));
            }
        }
        let kept = results.without_like_functions().samples;
        let of = |s: &&Sample| s.what == RUN;
        let names = distinct(kept.iter().filter(of).map(|s| &*s.case));
        let expected: Vec<String> = (1..=TOP).map(|nth| format!("f{nth:02}")).collect();
        assert_eq!(names, expected);
        assert_eq!(kept.len(), others + 6 * TOP, "nothing else went");
    }

    #[test]
    fn the_table_has_the_mm_first_and_then_what_moves_most() {
        let results = example();
        let table = results.table(PER_TRIP);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        let starts = |row: usize, text: &str| assert!(rows[row].starts_with(text), "{table}");
        starts(0, "| writes, mm");
        starts(1, "| transfers, mm ");
        starts(2, "| transfers, nohz");
        starts(3, "| transfers, jiffies");
        assert!(
            rows[1].contains(" 2.00 (2.00..2.10) ") && rows[1].contains(" 0.00 "),
            "{table}"
        );
        let text = serde_json::to_string(&results).unwrap();
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(read.samples, results.samples);
    }
}
