//! What `perf bench sched lazy-tlb` measured on boots of a real machine, as `lab/lazy-tlb-lab.sh` writes it
//! down: line by line and as it is.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};

use crate::bench::ipis::COUNTER;
use crate::bench::kernel;
use crate::results::machine::Machine;
use crate::results::sample::{Counted, Spread};

/// How the names of the files begin.
pub const FILES: &str = "perf-";

/// What the script puts in front of its lines.
const PREFIX: &str = "lazy-tlb-lab: ";

/// The form of what the script writes.
const FORM: &str = "1";

/// What was measured on one boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    #[serde(flatten)]
    pub machine: Machine,
    pub policy: String,
    /// `uname -v`.
    pub version: String,
    /// The kernel's command line, without what names disks and addresses, and without `lazy_tlb=`.
    pub cmdline: String,
    /// Seconds since 1970.
    pub started: u64,
    /// The state of the machine, by file.
    pub facts: BTreeMap<String, String>,
    /// Where the machine was a guest of `bench perf`: what the report calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    pub runs: Vec<Run>,
    /// What the kernel's own benchmark printed, each time that it was loaded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<kernel::Sample>,
    /// What it said besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_said: Vec<String>,
}

/// A guest that stood in for a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Guest {
    /// How to measure it again, all policies.
    pub command: String,
    pub arch: String,
    /// How its kernel was built.
    #[serde(default = "usual")]
    pub variant: String,
    /// More words of its command line.
    pub append: String,
    pub cpus: usize,
    /// Whether the times are an emulator's.
    pub times_emulated: bool,
    /// What it ran on.
    pub host: String,
}

/// The variant of results that do not name one.
fn usual() -> String {
    "default".into()
}

/// One call of perf.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// From 1.
    pub round: u32,
    /// `threads`, `futex`, `process`, `flush` or `exit`.
    pub mode: String,
    pub command: String,
    /// How it ended; nothing was measured unless it is 0. -1 if that is not known.
    pub status: i32,
    pub samples: Vec<Sample>,
    /// What each CPU did, by names that perf gives.
    pub cpus: Vec<BTreeMap<String, f64>>,
    pub counters: BTreeMap<String, Counted>,
    /// What perf said besides.
    pub said: Vec<String>,
}

/// One repeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Where perf measures two things in turn: `lazy` or `alone`.
    pub case: Option<String>,
    pub values: BTreeMap<String, f64>,
}

/// `NAME VALUE NAME VALUE`, as perf prints with `-f simple`.
fn pairs(words: &[&str]) -> Option<BTreeMap<String, f64>> {
    let pair = |pair: &[&str]| match pair {
        [name, value] => Some(((*name).to_owned(), value.parse().ok()?)),
        _ => None,
    };
    words.chunks(2).map(pair).collect()
}

impl Run {
    fn parse(rest: &str) -> Result<Self> {
        let mut words = rest.splitn(3, ' ');
        let mut word = || {
            words
                .next()
                .context("a run without a round, mode or command")
        };
        Ok(Run {
            round: word()?.parse().context("a round is a number")?,
            mode: word()?.into(),
            command: word()?.into(),
            status: -1,
            ..Run::default()
        })
    }

    /// A line of perf's.
    fn take(&mut self, line: &str, policy: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let known = match words.as_slice() {
            ["policy", in_force] => {
                ensure!(
                    *in_force == policy,
                    "perf saw the policy {in_force}, and the script {policy}"
                );
                true
            }
            // The script reads the counters itself.
            ["vmstat", ..] | [] => true,
            ["repeat", _, case @ ("lazy" | "alone"), rest @ ..] => self.sample(Some(case), rest),
            ["repeat", _, rest @ ..] => self.sample(None, rest),
            cpu @ ["cpu", ..] => pairs(cpu).map(|cpu| self.cpus.push(cpu)).is_some(),
            _ => false,
        };
        if !known {
            self.said.push(line.to_owned());
        }
        Ok(())
    }

    fn sample(&mut self, case: Option<&str>, rest: &[&str]) -> bool {
        let case = case.map(str::to_owned);
        let sample = pairs(rest).map(|values| Sample { case, values });
        sample.map(|sample| self.samples.push(sample)).is_some()
    }

    /// `NAME VALUE` of /proc/vmstat, before or after.
    fn count(&mut self, rest: &str, after: bool) -> Result<()> {
        let (name, value) = rest.split_once(' ').context("a counter without a value")?;
        let value = value.trim().parse().context("a counter is a number")?;
        let new = Counted {
            before: value,
            after: value,
        };
        let counted = self.counters.entry(name.to_owned()).or_insert(new);
        if after {
            counted.after = value;
        }
        Ok(())
    }

    /// What a call must have, or nothing can be said of it.
    fn check(&self) -> Result<()> {
        ensure!(
            self.counters.keys().any(|name| name.starts_with(COUNTER)),
            "round {}, {}: no {COUNTER}* counters of /proc/vmstat",
            self.round,
            self.mode
        );
        ensure!(
            self.status != 0 || !self.samples.is_empty(),
            "round {}, {}: perf ended well and reported nothing; it said: {}",
            self.round,
            self.mode,
            self.said.join(" / ")
        );
        Ok(())
    }
}

/// The calls of perf on one boot, each of which must have what can be said something of.
fn runs(lines: &[&str], policy: &str) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for line in lines {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let run = runs.last_mut().context("no call of perf has begun");
        match kind {
            "fact" | "cpuinfo" | "kernel" => (),
            "run" => runs.push(Run::parse(rest)?),
            "before" | "after" => run?.count(rest, kind == "after")?,
            "perf" => run?.take(rest, policy)?,
            "status" => run?.status = rest.parse().context("a status is a number")?,
            _ => anyhow::bail!("`{line}` is damaged"),
        }
    }
    for run in &runs {
        run.check()?;
    }
    ensure!(
        runs.iter().any(|run| run.status == 0),
        "no call of perf measured anything; the first said: {}",
        runs.first()
            .map_or(String::new(), |run| run.said.join(" / "))
    );
    Ok(runs)
}

/// What the kernel's own benchmark measured on one boot, and what it said besides.
fn in_kernel(lines: &[&str]) -> Result<(Vec<kernel::Sample>, Vec<String>)> {
    let (mut samples, mut said) = (Vec::new(), Vec::new());
    for line in lines {
        let (round, rest) = line.split_once(' ').unwrap_or((line, ""));
        let round = round.parse().context("a round is a number")?;
        if !rest.starts_with("what=") {
            said.push(rest.to_owned());
            continue;
        }
        samples.push(kernel::Sample::parse(rest, round)?);
    }
    Ok((samples, said))
}

impl Results {
    /// What the script wrote, in all of a text: a file of its own, or a log of a console.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines().filter_map(|line| {
            let at = line.find(PREFIX)?;
            // Consoles of a fleet may be in colour.
            let line = line[at + PREFIX.len()..].split('\x1b').next();
            Some(line.unwrap_or_default().trim_end())
        });
        let mut all = Vec::new();
        let mut open: Option<Vec<&str>> = None;
        for line in lines {
            match (line.split_once(' '), &mut open) {
                (Some(("begin", form)), None) => {
                    ensure!(form == FORM, "its form is {form}, this is for {FORM}");
                    open = Some(Vec::new());
                }
                _ if line == "end" => {
                    let lines = open.take().context("an end without a beginning")?;
                    all.push(Results::of(&lines)?);
                }
                (_, Some(lines)) => lines.push(line),
                (_, None) => anyhow::bail!("`{line}` before any beginning"),
            }
        }
        ensure!(open.is_none(), "it has no end: the script was interrupted");
        ensure!(!all.is_empty(), "no line in it is of lazy-tlb-lab.sh");
        Ok(all)
    }

    fn of(lines: &[&str]) -> Result<Self> {
        let after = |kind: &str| -> Vec<&str> {
            let all = lines.iter().filter_map(|line| line.strip_prefix(kind));
            all.filter_map(|rest| rest.strip_prefix(' ')).collect()
        };
        let facts = after("fact").into_iter();
        let facts: BTreeMap<&str, &str> = facts
            .map(|fact| fact.split_once(' ').unwrap_or((fact, "")))
            .collect();
        let fact = |name: &str| -> Result<String> {
            let value = facts
                .get(name)
                .with_context(|| format!("it does not say the {name}"))?;
            Ok((*value).to_owned())
        };
        let policy = fact("policy")?;
        let cmdline = fact("cmdline")?;
        let (asked, others): (Vec<&str>, Vec<&str>) =
            (cmdline.split_whitespace()).partition(|word| word.starts_with("lazy_tlb="));
        ensure!(
            asked
                .last()
                .is_none_or(|asked| *asked == format!("lazy_tlb={policy}")),
            "the policy in force is {policy}, and the command line says {}",
            asked.join(" ")
        );
        // As Rust calls it, for results of one machine are in one folder.
        let arch = match fact("machine")?.as_str() {
            "ppc64le" => "powerpc64".to_owned(),
            other => other.to_owned(),
        };
        let runs = runs(lines, &policy)?;
        let (kernel, kernel_said) = in_kernel(&after("kernel"))?;
        Ok(Results {
            machine: Machine::parse(&after("cpuinfo").join("\n"), &arch, &fact("release")?),
            version: fact("version")?,
            cmdline: others.join(" "),
            started: fact("started")?.parse().context("started is a number")?,
            facts: facts
                .iter()
                .filter(|(name, _)| name.contains('/'))
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            policy,
            guest: None,
            runs,
            kernel,
            kernel_said,
        })
    }

    /// The name of its file; the same results again have the same.
    pub fn file(&self) -> String {
        let arch = &self.machine.arch;
        format!("{FILES}{arch}-{}-{}.json", self.policy, self.started)
    }

    /// What it may be compared with.
    pub fn setting(&self) -> Setting {
        Setting {
            release: self.machine.host_kernel.clone(),
            version: self.version.clone(),
            cmdline: self.cmdline.clone(),
            guest: self.guest.clone(),
        }
    }

    /// The calls that measured something.
    fn good(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.status == 0)
    }
}

/// What boots have in common that may be compared: the kernel, and its command line but for the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub release: String,
    pub version: String,
    pub cmdline: String,
    pub guest: Option<Guest>,
}

/// Something that perf measures.
pub struct Measure {
    pub what: &'static str,
    pub unit: &'static str,
    mode: &'static str,
    case: Option<&'static str>,
    value: &'static str,
}

impl Measure {
    const fn trips(what: &'static str, mode: &'static str) -> Self {
        Measure {
            what,
            unit: "1000 trips/s",
            mode,
            case: None,
            value: "trips_per_sec",
        }
    }

    const fn exit(what: &'static str, case: &'static str, value: &'static str) -> Self {
        Measure {
            what,
            unit: "us",
            mode: "exit",
            case: Some(case),
            value,
        }
    }

    /// Over all repeats of some boots, and how many those are. Both units are a thousandth of perf's.
    pub fn spread(&self, boots: &[&Results]) -> Option<(Spread, usize)> {
        let runs = boots.iter().flat_map(|boot| boot.good());
        let samples = runs
            .filter(|run| run.mode == self.mode)
            .flat_map(|run| &run.samples);
        let own = samples.filter(|sample| sample.case.as_deref() == self.case);
        let values = own.filter_map(|sample| sample.values.get(self.value));
        let values: Vec<f64> = values.map(|value| value / 1000.0).collect();
        let count = values.len();
        Some((Spread::of(values)?, count))
    }
}

/// The rows of the table, and the plots.
pub const MEASURES: [Measure; 8] = [
    Measure::trips("threads, pipes", "threads"),
    Measure::trips("threads, futexes", "futex"),
    Measure::trips("processes (control)", "process"),
    Measure::trips("threads that unmap", "flush"),
    Measure::exit("exit, CPUs lazy, p50", "lazy", "p50_ns"),
    Measure::exit("exit, CPUs lazy, p99", "lazy", "p99_ns"),
    Measure::exit("exit, none lazy (control), p50", "alone", "p50_ns"),
    Measure::exit("exit, none lazy (control), p99", "alone", "p99_ns"),
];

/// The least that a CPU went idle per trip, in the modes where it should each time.
pub fn switches_per_trip(boots: &[&Results]) -> Option<f64> {
    let runs = boots.iter().flat_map(|boot| boot.good());
    let idle = runs.filter(|run| run.mode != "flush");
    let values = idle
        .flat_map(|run| &run.cpus)
        .filter_map(|cpu| cpu.get("switches_per_trip"));
    values.copied().min_by(f64::total_cmp)
}

/// How much a counter of the kernel grew in all runs.
pub fn counted(boots: &[&Results], name: &str) -> Option<u64> {
    let name = format!("{COUNTER}{name}");
    let runs = boots.iter().flat_map(|boot| boot.good());
    let counters = runs.filter_map(|run| run.counters.get(&name));
    let grown = counters.map(|counted| counted.after.saturating_sub(counted.before));
    grown.fold(None, |sum, grown| Some(sum.unwrap_or(0) + grown))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What perf prints in two of the modes.
    pub const THREADS: &str = "policy POLICY\nrepeat 1 trips_per_sec 9000\n\
        cpu 0 trips_per_sec 9000 switches_per_trip 0.999\n\
        cpu 1 trips_per_sec 9000 switches_per_trip 0.980\nvmstat lazy_tlb_nudged 3\n";

    pub const EXIT: &str = "policy POLICY\n\
        repeat 1 lazy exits 500 p50_ns 150000 p99_ns 4200000 max_ns 5100000\n\
        repeat 1 alone exits 500 p50_ns 146000 p99_ns 4300000 max_ns 5000000\n";

    /// What the kernel's own benchmark prints on two CPUs.
    pub const KERNEL: &str = "\
        what=trip policy=POLICY cpus=1 rounds=31 ps_median=6000 ps_min=5900 ps_max=7000 trips=10000\n\
        what=drop policy=POLICY cpus=1 rounds=31 ps_median=9000 ps_min=8000 ps_max=9900 drops=8\n\
        what=trip policy=POLICY cpus=2 rounds=31 ps_median=6100 ps_min=5900 ps_max=7000 trips=5000\n\
        not all of 4 CPUs came in time, try again when the system is idle\n";

    /// What the script writes on a boot, with two rounds of two modes.
    fn raw(policy: &str) -> String {
        let mut lines = vec!["begin 1".into()];
        lines.push(format!("fact policy {policy}"));
        for fact in [
            "started 1767225600",
            "machine x86_64",
            "release 7.3.4-lazy-tlb",
            "version #1 SMP",
            "proc/loadavg 0.01 0.02 0.03 1/100 999",
        ] {
            lines.push(format!("fact {fact}"));
        }
        lines.push(format!("fact cmdline quiet lazy_tlb={policy}"));
        for line in ["processor\t: 0", "model name\t: Some CPU", "processor\t: 1"] {
            lines.push(format!("cpuinfo {line}"));
        }
        let mut nudged = 10;
        for round in [1, 2] {
            for (mode, output) in [("threads", THREADS), ("exit", EXIT)] {
                lines.push(format!("run {round} {mode} perf bench sched lazy-tlb"));
                lines.push(format!("before lazy_tlb_nudged {nudged}"));
                let output = output.replace("POLICY", policy);
                lines.extend(output.lines().map(|line| format!("perf {line}")));
                nudged += round;
                lines.push(format!("after lazy_tlb_nudged {nudged}"));
                lines.push("status 0".into());
            }
            let output = KERNEL.replace("POLICY", policy);
            lines.extend(output.lines().map(|line| format!("kernel {round} {line}")));
        }
        lines.push("end".into());
        let line = |line: &String| format!("{PREFIX}{line}\n");
        lines.iter().map(line).collect()
    }

    /// One boot.
    pub fn example(policy: &str) -> Results {
        Results::parse(&raw(policy)).unwrap().remove(0)
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", Results::parse(text).unwrap_err())
    }

    #[test]
    fn every_sample_is_kept() {
        let results = example("handover");
        assert_eq!(results.machine.slug(), "x86_64-2cpus-some-cpu");
        assert_eq!(results.file(), "perf-x86_64-handover-1767225600.json");
        assert_eq!(results.cmdline, "quiet");
        assert_eq!(results.facts.len(), 1);
        assert_eq!(results.runs.len(), 4);
        let [threads, exit] = [&results.runs[0], &results.runs[1]];
        assert_eq!(threads.samples[0].values["trips_per_sec"], 9000.0);
        assert_eq!(threads.cpus[1]["switches_per_trip"], 0.98);
        assert_eq!(exit.samples[1].case.as_deref(), Some("alone"));
        assert_eq!(exit.samples[1].values["p99_ns"], 4_300_000.0);
        assert!(results.runs.iter().all(|run| run.said.is_empty()));
        let both = [&results, &results];
        assert_eq!(counted(&both, "nudged"), Some(12));
        assert_eq!(counted(&both, "other"), None);
        assert_eq!(switches_per_trip(&both), Some(0.98));
        let (spread, count) = MEASURES[4].spread(&both).unwrap();
        assert_eq!((spread.median, count), (150.0, 4));
        assert!(MEASURES[1].spread(&both).is_none(), "no run with futexes");
        assert_eq!(results.kernel.len(), 6);
        assert_eq!(
            (results.kernel[5].repeat, results.kernel[5].times),
            (2, 5000)
        );
        assert!(results.kernel_said[1].starts_with("not all of 4"));
        let text = serde_json::to_string(&results).unwrap();
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn a_log_may_have_several_boots() {
        let console = |policy| {
            let lines = raw(policy).replace('\n', "\x1b[0m\r\n");
            format!(
                "[    1.0] Linux\n{}",
                lines.replace(PREFIX, "12:00 lazy-tlb-lab: ")
            )
        };
        let log = console("refcount") + "[    2.0] reboot\n" + &console("shootdown");
        let all = Results::parse(&log).unwrap();
        let policies: Vec<&str> = all.iter().map(|results| results.policy.as_str()).collect();
        assert_eq!(policies, ["refcount", "shootdown"]);
    }

    #[test]
    fn a_file_without_all_of_it_is_refused() {
        let whole = raw("handover");
        let begin = |lines: usize| -> String { whole.split_inclusive('\n').take(lines).collect() };
        let lines = whole.lines().count();
        for lines in [1, 5, 20, lines - 1] {
            assert!(refusal(&begin(lines)).contains("interrupted"), "{lines}");
        }
        assert!(refusal("").contains("no line"));
        let line = format!("{PREFIX}begin 1\n");
        assert!(refusal(&whole.replace(&line, "")).contains("before any beginning"));
        assert!(refusal(&whole.replace("begin 1", "begin 2")).contains("form"));
        assert!(refusal(&whole.replace("fact release", "fact x")).contains("the release"));
        assert!(refusal(&whole.replace("status 0", "statu")).contains("damaged"));
    }

    #[test]
    fn another_policy_than_asked_for_is_refused() {
        let asked = raw("handover").replace("lazy_tlb=handover", "lazy_tlb=handovers");
        assert!(refusal(&asked).contains("lazy_tlb=handovers"));
        let seen = raw("handover").replace("perf policy handover", "perf policy shootdown");
        assert!(refusal(&seen).contains("perf saw the policy shootdown"));
        let cut = raw("handover").replace(" trips=10000", "");
        assert!(refusal(&cut).contains("damaged"));
    }

    #[test]
    fn a_kernel_without_counters_is_refused() {
        let text = raw("handover");
        let others = |line: &&str| !line.contains(" lazy_tlb_nudged ");
        let lines: Vec<&str> = text.lines().filter(others).collect();
        assert!(refusal(&lines.join("\n")).contains("round 1, threads: no lazy_tlb_"));
    }

    #[test]
    fn a_call_of_perf_may_fail_but_not_all() {
        let said = raw("handover").replacen("perf repeat 1 trips_per_sec 9000", "perf fork: no", 1);
        assert!(refusal(&said).contains("it said: fork: no"));
        let failed = said.replacen("status 0", "status 1", 1);
        let results = Results::parse(&failed).unwrap().remove(0);
        assert_eq!(results.runs[0].said, ["fork: no"]);
        assert_eq!(MEASURES[0].spread(&[&results]).unwrap().1, 1);
        assert!(refusal(&said.replace("status 0", "status 1")).contains("no call of perf"));
    }
}
