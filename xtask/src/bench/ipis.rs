//! `bench ipis`: the same seeded workload under every policy, and what each policy did for it.
//!
//! All that is compared are counts of the kernel's own.

use std::collections::BTreeMap;
use std::path::Path;
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
}

/// A record with what the console says besides.
struct Outcome {
    record: Record,
    report: Report,
}

impl Record {
    /// Reads a console; an error is a guest that did not report everything.
    fn parse(console: &str, arch: &'static str, policy: &str, run: u32) -> Result<Self> {
        let console = console::without_stamps(console);
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
            mmu: text(&setup, "mmu")?.into(),
            workload: text(&setup, "workload")?.into(),
            run,
            exits: number(&result, "exits")?,
            final_drops: counted("lazy_tlb_final_drops")?,
            scanned: counted("lazy_tlb_scanned")?,
            handed: counted("lazy_tlb_handed")?,
            nudged: counted("lazy_tlb_nudged")?,
            irqs_call: counted("irqs_call")?,
            irqs_tlb: counters.get("irqs_tlb").copied(),
        })
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

/// Boots a guest for each run, workload and policy.
///
/// What there is so far is kept after each: a later guest may not come to its end.
fn measure(
    vm: &Vm<'_>,
    options: &Options,
    keep: impl Fn(&[Outcome]) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let initramfs = vm.project.guest_initramfs(vm.arch, "bench-init")?;
    let limit = Duration::from_secs(options.timeout);
    let mut outcomes = Vec::new();
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
                let record = Record::parse(&report.text, vm.arch.name, policy, run)
                    .with_context(|| format!("{policy}/{workload}"))?;
                outcomes.push(Outcome { record, report });
                keep(&outcomes)?;
            }
        }
    }
    Ok(outcomes)
}

fn verdict(records: &[&Record]) -> Vec<Case> {
    let mut cases = Vec::new();
    for record in records {
        let name = |what: &str| {
            let Record {
                policy,
                workload,
                run,
                ..
            } = record;
            format!("{workload}/{policy}/{run} {what}")
        };
        let mut check = |what: &str, checked: Result<()>| cases.push(Case::of(name(what), checked));
        match record.policy.as_str() {
            policy::SHOOTDOWN => check("nudges those it hands to", check_nudged(record)),
            _ => check("nudges nobody", check_silent(record)),
        }
        if finds(record) {
            check("finds lazy CPUs", check_found(record));
        }
    }
    for workload in WORKLOADS {
        let exits: Vec<u64> = records
            .iter()
            .filter(|record| record.workload == workload)
            .map(|record| record.exits)
            .collect();
        if exits.len() > 1 {
            cases.push(Case::of(
                format!("{workload}/is the same everywhere"),
                check_exits(&exits),
            ));
        }
    }
    cases
}

/// Those that are handed a reference are nudged, but for the CPU that hands it.
fn check_nudged(record: &Record) -> Result<()> {
    let Record { nudged, handed, .. } = record;
    ensure!(
        nudged <= handed,
        "{nudged} CPUs were nudged, {handed} were handed a reference"
    );
    Ok(())
}

fn check_silent(record: &Record) -> Result<()> {
    ensure!(record.nudged == 0, "{} CPUs were nudged", record.nudged);
    Ok(())
}

/// Whether final drops must find lazy CPUs: an ordinary exit may leave none, but big processes that
/// unmap themselves do, unless the flush of that makes lazy CPUs let go or they hold references.
fn finds(record: &Record) -> bool {
    let flush_lets_go = record.arch == "x86_64" || record.mmu == "radix";
    record.workload == "threaded" && record.policy != policy::REFCOUNT && !flush_lets_go
}

fn check_found(record: &Record) -> Result<()> {
    ensure!(
        record.handed > 0,
        "no CPU was found lazy in {} final drops, so nothing was shown",
        record.final_drops
    );
    Ok(())
}

fn check_exits(exits: &[u64]) -> Result<()> {
    ensure!(
        exits[0] > 0 && exits.iter().all(|&other| other == exits[0]),
        "processes ended: {exits:?}"
    );
    Ok(())
}

/// The verdict, the consoles' part included.
fn cases_of(outcomes: &[Outcome]) -> Vec<Case> {
    let warnings = outcomes.iter().map(|Outcome { record, report }| {
        let name = format!(
            "{}/{}/{} has no warning",
            record.workload, record.policy, record.run
        );
        Case::of(name, report.check_warnings())
    });
    let mut cases: Vec<Case> = warnings.collect();
    let records: Vec<&Record> = outcomes.iter().map(|outcome| &outcome.record).collect();
    cases.extend(verdict(&records));
    cases
}

/// A small run for `test`.
pub fn cases(vm: &Vm<'_>) -> Result<Vec<Case>> {
    let options = Options {
        cpus: 4,
        policy: policy::ALL.map(String::from).into(),
        workload: ["build", "threaded"].map(String::from).into(),
        seed: 1,
        jobs: 60,
        big: 20,
        repeat: 1,
        append: Append::default(),
        timeout: 300,
    };
    let cases = cases_of(&measure(vm, &options, |_| Ok(()))?);
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
    let of = |outcomes: &[Outcome]| {
        let all = outcomes.iter().map(|outcome| outcome.record.samples(*cpus));
        all.flatten().collect()
    };
    let seed = format!("seed{seed}");
    let write = |samples: &Samples| samples.write(&project.repo, *cpus, &[&seed], json);
    let outcomes = measure(&vm, options, |outcomes| {
        let so_far = Samples {
            samples: of(outcomes),
            ..samples.clone()
        };
        write(&so_far).map(drop)
    })?;
    samples.samples = of(&outcomes);
    println!("\n{}\n\n{}", samples.table(), write(&samples)?.display());
    let cases = cases_of(&outcomes);
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
lazy-tlb-bench: what=setup policy=shootdown workload=threaded seed=7 jobs=60 big=20 cpus=4 mmu=hash kernel=7.3.4
[    3.141592] lazy-tlb-bench: what=counter name=lazy_tlb_final_drops before=9 after=29
lazy-tlb-bench: what=counter name=lazy_tlb_scanned before=20 after=80
lazy-tlb-bench: what=counter name=lazy_tlb_handed before=1 after=31
lazy-tlb-bench: what=counter name=lazy_tlb_nudged before=0 after=25
lazy-tlb-bench: what=counter name=irqs_call before=100 after=160
lazy-tlb-bench: what=result exits=20 lazy_at_exit=60 ms=812
lazy-tlb-guest: done status=0
";

    fn parse(console: &str, policy: &str) -> Result<Record> {
        Record::parse(console, "powerpc", policy, 1)
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
        let records: Vec<&Record> = records.iter().collect();
        verdict(&records)
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
        assert_eq!(record.mmu, "hash");
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
    fn good_records_pass() {
        assert_eq!(failures(&all()), Vec::<String>::new());
        let all = all();
        let count = verdict(&all.iter().collect::<Vec<_>>()).len();
        // One for each, what two of them find, and the exits.
        assert_eq!(count, 3 + 2 + 1);
    }

    #[test]
    fn only_shootdown_nudges_and_only_whom_it_hands_to() {
        assert_eq!(
            broken("shootdown", |r| r.nudged = r.handed + 1),
            ["threaded/shootdown/1 nudges those it hands to"]
        );
        for policy in ["handover", "refcount"] {
            assert_eq!(
                broken(policy, |r| r.nudged = 1),
                [format!("threaded/{policy}/1 nudges nobody")]
            );
        }
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
    fn another_workload_than_the_others_fails() {
        assert_eq!(
            broken("refcount", |r| r.exits += 1),
            ["threaded/is the same everywhere"]
        );
        let none: Vec<Record> = all()
            .into_iter()
            .map(|r| Record { exits: 0, ..r })
            .collect();
        assert_eq!(failures(&none), ["threaded/is the same everywhere"]);
    }

    #[test]
    fn a_warning_fails() {
        let text = format!("{CONSOLE}[ 4.0] WARNING: CPU: 1 PID: 1 at mm/lazy_tlb/slot.c:1\n");
        let outcome = |text: String| Outcome {
            record: record("handover"),
            report: Report::new(text, End::Exited, 4, Path::new("gone")),
        };
        let failed = |outcome: Outcome| {
            let cases = cases_of(&[outcome]);
            let failed = cases.into_iter().filter(|case| case.status == Status::Fail);
            failed.map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(
            failed(outcome(text)),
            ["threaded/handover/1 has no warning"]
        );
        assert!(failed(outcome(CONSOLE.into())).is_empty());
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
            cpus: 4,
            policy: policy::ALL.map(String::from).into(),
            workload: ["build", "threaded"].map(String::from).into(),
            seed: 7,
            jobs: 60,
            big: 20,
            repeat: 2,
            append: Append {
                words: "disable_radix".into(),
            },
            timeout: 30,
        };
        let kept = std::cell::Cell::new(0);
        let outcomes = measure(&vm, &options, |so_far| {
            kept.set(kept.get() + 1);
            assert_eq!(so_far.len(), kept.get());
            Ok(())
        })
        .unwrap();
        assert_eq!((outcomes.len(), kept.get()), (2 * 2 * 3, 12));
        let last = &outcomes[11].record;
        let facts = (last.workload.as_str(), last.policy.as_str(), last.run);
        assert_eq!(facts, ("threaded", "handover", 2));
    }
}
