//! `bench ipis`: the same seeded workload under every policy, and what each policy did for it.
//!
//! All that is compared are counts of the kernel's own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Args;

use crate::guest::console::{self, number, pairs, text, Report};
use crate::guest::machine::{self, Append, Guest, Vm};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::{self, Case};
use crate::results::machine::Machine;
use crate::results::sample::{append_option, Sample, Samples};

/// Every workload that the guest program knows.
pub const WORKLOADS: [&str; 3] = ["build", "threaded", "mix"];
/// What the first process puts in front of its lines.
const PREFIX: &str = "lazy-tlb-bench: ";

/// What is measured.
#[derive(Args, Clone)]
pub struct Options {
    /// How many emulated CPUs.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub cpus: u32,
    /// Only these policies.
    #[arg(long, value_delimiter = ',', value_name = "NAME[,NAME]", default_values = policy::ALL,
          value_parser = policy::ALL)]
    pub policy: Vec<String>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',', value_name = "NAME[,NAME]", default_values = WORKLOADS,
          value_parser = WORKLOADS)]
    pub workload: Vec<String>,
    /// The same seed gives the same processes.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u32,
    /// Jobs of the build, of three to five processes each.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub jobs: u32,
    /// Big threaded processes to end.
    #[arg(long, default_value_t = 40, value_name = "N")]
    pub big: u32,
    /// How often everything is run.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    #[command(flatten)]
    pub append: Append,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 1800, value_name = "S")]
    pub timeout: u64,
}

/// One workload under one policy in one guest.
#[derive(Clone, Debug)]
struct Record {
    policy: String,
    arch: &'static str,
    mmu: String,
    workload: String,
    run: u32,
    exits: u64,
    final_drops: u64,
    /// Slots that final drops looked at.
    scanned: u64,
    /// CPUs that were handed a reference.
    handed: u64,
    /// CPUs that were interrupted for that.
    nudged: u64,
    /// Interrupts of cross-calls, whoever made them.
    irqs_call: u64,
    /// Interrupts of TLB flushes, where the architecture counts them.
    irqs_tlb: Option<u64>,
    warnings: Vec<String>,
}

impl Record {
    /// Reads a console; an error is a guest that did not report everything.
    fn parse(report: &Report, arch: &'static str, policy: &str, run: u32) -> Result<Self> {
        let console = console::without_stamps(&report.text);
        let mut setup = BTreeMap::new();
        let mut result = BTreeMap::new();
        let mut counters = BTreeMap::new();
        let lines = console.lines().filter_map(|line| line.strip_prefix(PREFIX));
        for line in lines.map(pairs) {
            match text(&line, "what")? {
                "setup" => setup = line,
                "result" => result = line,
                "counter" => {
                    let (name, before) = (text(&line, "name")?, number(&line, "before")?);
                    let after = number(&line, "after")?;
                    let grown = after.checked_sub(before);
                    let grown =
                        grown.with_context(|| format!("{name} fell from {before} to {after}"))?;
                    counters.insert(name, grown);
                }
                other => anyhow::bail!("the guest reports an unknown {other}"),
            }
        }
        let said = report.values("lazy-tlb-guest").remove("mmu");
        let ran = text(&setup, "policy")?;
        ensure!(
            ran == policy,
            "the guest's policy is {ran}, asked was {policy}"
        );
        let counted = |name: &str| -> Result<u64> {
            let count = counters.get(name).copied();
            count.with_context(|| format!("the kernel does not count {name}"))
        };
        Ok(Record {
            policy: policy.into(),
            arch,
            mmu: said.unwrap_or_default(),
            workload: text(&setup, "workload")?.into(),
            run,
            exits: number(&result, "exits")?,
            final_drops: counted("lazy_tlb_final_drops")?,
            scanned: counted("lazy_tlb_scanned")?,
            handed: counted("lazy_tlb_handed")?,
            nudged: counted("lazy_tlb_nudged")?,
            irqs_call: counted("irqs_call")?,
            irqs_tlb: counters.get("irqs_tlb").copied(),
            warnings: report.warnings.clone(),
        })
    }

    /// Whether final drops must find lazy CPUs: an ordinary exit may leave none, but big processes that
    /// unmap themselves do, unless the flush of that makes lazy CPUs let go or they hold references.
    fn finds(&self) -> bool {
        let flush_lets_go = self.arch == "x86_64" || self.mmu == "Radix";
        self.workload == "threaded" && self.policy != policy::REFCOUNT && !flush_lets_go
    }

    fn samples(&self, cpus: u32) -> Vec<Sample> {
        let thousand = "per 1000 exits";
        let counts = [
            ("exits", "processes", Some(self.exits)),
            ("final drops", thousand, Some(self.final_drops)),
            ("slots scanned", thousand, Some(self.scanned)),
            ("CPUs handed a reference", thousand, Some(self.handed)),
            ("CPUs nudged", thousand, Some(self.nudged)),
            ("function-call interrupts", thousand, Some(self.irqs_call)),
            ("TLB interrupts", thousand, self.irqs_tlb),
        ];
        let sample = |(what, unit, count): (&str, &str, Option<u64>)| {
            let count = count? as f64;
            let value = match unit == thousand {
                true => count * 1000.0 / self.exits.max(1) as f64,
                false => count,
            };
            Some(Sample {
                policy: self.policy.clone(),
                boot: self.run,
                round: 1,
                what: what.into(),
                case: self.workload.clone(),
                cpus,
                unit: unit.into(),
                value,
            })
        };
        counts.into_iter().filter_map(sample).collect()
    }
}

/// Boots a guest for each run, workload and policy; what there is so far is kept after each.
fn measure(
    vm: &Vm<'_>,
    options: &Options,
    mut keep: impl FnMut(&[Record]) -> Result<()>,
) -> Result<Vec<Record>> {
    let initramfs = vm.project.initramfs(vm.arch, "ipis")?;
    let limit = Duration::from_secs(options.timeout);
    let mut records = Vec::new();
    for run in 1..=options.repeat {
        for workload in &options.workload {
            for policy in &options.policy {
                let append = format!(
                    "lazy_tlb={policy} {} LAZY_TLB_WORKLOAD={workload} LAZY_TLB_SEED={} \
                     LAZY_TLB_JOBS={} LAZY_TLB_BIG={} {}",
                    machine::NO_KUNIT,
                    options.seed,
                    options.jobs,
                    options.big,
                    options.append.words
                );
                let log = format!("ipis-{}-{workload}-{policy}-{run}", vm.arch.name);
                let guest = Guest {
                    smp: options.cpus as usize,
                    append: append.trim_end(),
                    timeout: limit,
                    // It says nothing while it works.
                    silence: limit,
                    ..vm.guest(&initramfs, &log)
                };
                let report = guest.boot()?;
                report.check_end()?;
                report.check_cpus()?;
                let record = Record::parse(&report, vm.arch.name, policy, run);
                records.push(record.with_context(|| format!("{policy}/{workload}"))?);
                keep(&records)?;
            }
        }
    }
    Ok(records)
}

fn verdict(records: &[Record]) -> Vec<Case> {
    let mut cases = Vec::new();
    for record in records {
        let Record {
            nudged,
            handed,
            workload,
            policy,
            run,
            ..
        } = record;
        let mut check = |what: &str, holds: bool, detail: &str| {
            let name = format!("{workload}/{policy}/{run} {what}");
            cases.push(Case::when(holds, name, detail));
        };
        let warnings = &record.warnings;
        check("has no warning", warnings.is_empty(), &warnings.join("\n"));
        let said = format!("{nudged} CPUs were nudged, {handed} were handed a reference");
        match policy.as_str() {
            // All but the CPU that hands it.
            policy::SHOOTDOWN => check("nudges those it hands to", nudged <= handed, &said),
            _ => check("nudges nobody", *nudged == 0, &said),
        }
        if record.finds() {
            let said = format!("{} final drops found none", record.final_drops);
            check("finds lazy CPUs", *handed > 0, &said);
        }
    }
    for workload in WORKLOADS {
        let own = records.iter().filter(|record| record.workload == workload);
        let exits: Vec<u64> = own.map(|record| record.exits).collect();
        if exits.len() > 1 {
            let same = exits[0] > 0 && exits.iter().all(|&other| other == exits[0]);
            let name = format!("{workload}/is the same everywhere");
            cases.push(Case::when(
                same,
                name,
                format!("processes ended: {exits:?}"),
            ));
        }
    }
    cases
}

/// What `test` runs.
fn small() -> Options {
    Options {
        cpus: 4,
        policy: policy::ALL.map(String::from).into(),
        workload: ["build", "threaded"].map(String::from).into(),
        seed: 1,
        jobs: 60,
        big: 20,
        repeat: 1,
        append: Append::default(),
        timeout: 300,
    }
}

/// A small run for `test`.
pub fn cases(vm: &Vm<'_>) -> Result<Vec<Case>> {
    let cases = verdict(&measure(vm, &small(), |_| Ok(()))?);
    Ok(cases.into_iter().map(|case| case.within("bench")).collect())
}

/// `bench ipis` itself: the guests, the file, the table, the verdict.
pub fn run(
    project: &Project,
    shop: &Workshop<'_>,
    build: &Build<'_>,
    options: &Options,
    json: Option<&Path>,
) -> Result<()> {
    let image = build.image()?;
    let vm = Vm::new(project, build.arch, &image)?.for_cpus(options.cpus as usize);
    let Options {
        cpus,
        seed,
        jobs,
        big,
        repeat,
        ..
    } = options;
    let append = &options.append.words;
    let mut samples = Samples {
        command: format!(
            "cargo xtask bench ipis --arch {} --variant {} --cpus {cpus} --policy {} --workload {} \
             --seed {seed} --jobs {jobs} --big {big} --repeat {repeat}{}",
            build.arch.name,
            build.variant,
            options.policy.join(","),
            options.workload.join(","),
            append_option(append)
        ),
        machine: Machine::here()?,
        guest: build.arch.name.into(),
        append: append.clone(),
        kernel: shop.base.version.to_string(),
        variant: build.variant.into(),
        clock: "of no matter to counts".into(),
        samples: Vec::new(),
    };
    let unusual = format!("seed{seed}");
    let mut path = PathBuf::new();
    let records = measure(&vm, options, |records| {
        // A later guest may not come to its end.
        let all = records.iter().flat_map(|record| record.samples(*cpus));
        samples.samples = all.collect();
        path = samples.write(&project.repo, *cpus, &[&unusual], json)?;
        Ok(())
    })?;
    println!("\n{}\n\n{}", samples.table(), path.display());
    let cases = verdict(&records);
    let failed = case::print_failed(&cases);
    if failed == 0 {
        println!("verdict: PASS ({} checks)", cases.len());
        return Ok(());
    }
    Err(fail(
        Exit::Failed,
        format!("{failed} of {} checks failed", cases.len()),
        format!(
            "the consoles are in {}",
            project.cache.path("log").display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::console::End;
    use crate::results::case::Status;

    /// A guest's console, as far as it matters.
    const CONSOLE: &str = "\
[    2.000000] Run /init as init process
lazy-tlb-guest: cpus=4
lazy-tlb-guest: mmu=Hash
lazy-tlb-bench: what=setup policy=shootdown workload=threaded
[    3.141592] lazy-tlb-bench: what=counter name=lazy_tlb_final_drops before=9 after=29
lazy-tlb-bench: what=counter name=lazy_tlb_scanned before=20 after=80
lazy-tlb-bench: what=counter name=lazy_tlb_handed before=1 after=31
lazy-tlb-bench: what=counter name=lazy_tlb_nudged before=0 after=25
lazy-tlb-bench: what=counter name=irqs_call before=100 after=160
lazy-tlb-bench: what=result exits=20
lazy-tlb-guest: done status=0
";

    fn parse(console: &str, policy: &str) -> Result<Record> {
        let report = Report::new(console.into(), End::Exited, 4, Path::new("gone"));
        Record::parse(&report, "powerpc", policy, 1)
    }

    fn record(policy: &str) -> Record {
        let console = CONSOLE.replace("policy=shootdown", &format!("policy={policy}"));
        let mut record = parse(&console, policy).unwrap();
        if policy != policy::SHOOTDOWN {
            record.nudged = 0;
        }
        record
    }

    fn all() -> Vec<Record> {
        policy::ALL.map(record).into()
    }

    fn failures(records: &[Record]) -> Vec<String> {
        verdict(records)
            .into_iter()
            .filter(|case| case.status == Status::Fail)
            .map(|case| case.name)
            .collect()
    }

    /// The failures after a change to the record of one policy.
    fn broken(policy: &str, change: impl Fn(&mut Record)) -> Vec<String> {
        let mut records = all();
        for record in records.iter_mut().filter(|r| r.policy == policy) {
            change(record);
        }
        failures(&records)
    }

    #[test]
    fn a_console_is_read() {
        let record = parse(CONSOLE, "shootdown").unwrap();
        assert_eq!((record.final_drops, record.scanned), (20, 60));
        assert_eq!((record.handed, record.nudged), (30, 25));
        assert_eq!((record.irqs_call, record.irqs_tlb), (60, None));
        assert_eq!(record.mmu, "Hash");
        let samples = record.samples(4);
        assert_eq!(
            samples[2].row(),
            ("slots scanned", "threaded", 4, "per 1000 exits")
        );
        assert_eq!((samples.len(), samples[2].value), (6, 3000.0));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |console: &str, policy: &str| {
            let error = parse(console, policy).err().unwrap();
            format!("{error:#}")
        };
        assert!(error(CONSOLE, "handover").contains("policy is shootdown"));
        let without = CONSOLE.replace("lazy_tlb_nudged", "lazy_tlb_other");
        assert!(error(&without, "shootdown").contains("does not count lazy_tlb_nudged"));
        let fallen = CONSOLE.replace("before=9 after=29", "before=9 after=8");
        assert!(error(&fallen, "shootdown").contains("fell from 9 to 8"));
        assert!(error(&CONSOLE.replace(" exits=20", ""), "shootdown").contains("exits"));
        assert!(error("", "shootdown").contains("policy"));
    }

    #[test]
    fn only_shootdown_nudges_and_only_whom_it_hands_to() {
        assert_eq!(failures(&all()), Vec::<String>::new());
        assert_eq!(
            broken("shootdown", |r| r.nudged = r.handed + 1),
            ["threaded/shootdown/1 nudges those it hands to"]
        );
        assert_eq!(
            broken("handover", |r| r.nudged = 1),
            ["threaded/handover/1 nudges nobody"]
        );
    }

    #[test]
    fn a_run_without_lazy_cpus_shows_nothing() {
        let none = |r: &mut Record| (r.handed, r.nudged) = (0, 0);
        assert_eq!(
            broken("handover", none),
            ["threaded/handover/1 finds lazy CPUs"]
        );
        assert!(broken("refcount", none).is_empty());
        // The build need not find any.
        let mut build = record("shootdown");
        build.workload = "build".into();
        none(&mut build);
        assert!(failures(&[build]).is_empty());
    }

    #[test]
    fn another_workload_than_the_others_or_a_warning_fails() {
        let same = ["threaded/is the same everywhere"];
        assert_eq!(broken("refcount", |r| r.exits += 1), same);
        let mut none = all();
        none.iter_mut().for_each(|record| record.exits = 0);
        assert_eq!(failures(&none), same);
        let text = format!("{CONSOLE}[ 4.0] WARNING: CPU: 1 PID: 1 at mm/lazy_tlb/slot.c:1\n");
        let warned = parse(&text, "shootdown").unwrap();
        assert_eq!(failures(&[warned]), ["threaded/shootdown/1 has no warning"]);
    }

    /// With a script as the emulator: who is booted, with what, and what is kept.
    #[test]
    fn every_policy_and_workload_gets_a_guest() {
        let fill =
            "s/policy=shootdown/policy='$policy'/; s/workload=threaded/workload='$workload'/";
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "policy=$(echo \"$*\" | sed 's/.*lazy_tlb=\\([a-z]*\\).*/\\1/')\n\
             workload=$(echo \"$*\" | sed 's/.*_WORKLOAD=\\([a-z]*\\).*/\\1/')\n\
             echo \"$*\" | grep -q 'LAZY_TLB_SEED=7 .* disable_radix' || exit\n\
             sed '{fill}' <<END\n{CONSOLE}END"
        );
        let arch = crate::guest::machine::tests::scripted(dir.path(), &script);
        let project = Project {
            repo: crate::kernel::workshop::repository(),
            cache: crate::host::cache::Cache::at(dir.path().join("cache")).unwrap(),
            linux: None,
        };
        let vm = Vm {
            project: &project,
            arch,
            image: Path::new("bzImage"),
            accel: "tcg".into(),
        };
        let options = Options {
            seed: 7,
            repeat: 2,
            append: Append {
                words: "disable_radix".into(),
            },
            timeout: 30,
            ..small()
        };
        let mut kept = 0;
        let records = measure(&vm, &options, |so_far| {
            kept += 1;
            assert_eq!(so_far.len(), kept);
            Ok(())
        })
        .unwrap();
        assert_eq!((records.len(), kept), (2 * 2 * 3, 12));
        let last = &records[11];
        let facts = (last.workload.as_str(), last.policy.as_str(), last.run);
        assert_eq!(facts, ("threaded", "handover", 2));
    }
}
