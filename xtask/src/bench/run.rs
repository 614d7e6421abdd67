//! The main job: the same workload under every policy, one table, one verdict.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};

use crate::guest::console::Report;
use crate::guest::machine::{self, Guest, Vm};
use crate::host::arch::Arch;
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::kernel::workshop::Project;
use crate::results::case::{self, Case};
use crate::results::table;

/// What the first process puts in front of its results.
const PREFIX: &str = "lazy-tlb-run";

pub struct Results {
    asked: &'static str,
    report: Report,
    values: BTreeMap<String, String>,
}

impl Results {
    fn new(asked: &'static str, report: Report) -> Self {
        let values = report.values(PREFIX);
        Results {
            asked,
            report,
            values,
        }
    }

    fn text(&self, key: &str) -> &str {
        self.values.get(key).map_or("not reported", String::as_str)
    }

    fn number(&self, key: &str) -> Result<f64> {
        let value = self.values.get(key);
        let value = value.with_context(|| format!("the guest did not report {key}"))?;
        value
            .parse()
            .with_context(|| format!("{key}={value} is no number"))
    }

    /// A count per 1000 exits; none where the architecture does not count it.
    fn per_thousand(&self, key: &str) -> String {
        match (self.number(key), self.number("exits")) {
            (Ok(count), Ok(exits)) if exits > 0.0 => format!("{:.0}", count * 1000.0 / exits),
            _ => "not reported".into(),
        }
    }

    /// A median with the least and the greatest.
    fn spread(&self, key: &str) -> String {
        let value = |suffix: &str| self.text(&format!("{key}{suffix}")).to_owned();
        format!("{} ({}..{})", value(""), value("_min"), value("_max"))
    }
}

/// Boots a guest for each policy, `words` on their command line.
pub fn boot(vm: &Vm<'_>, words: &str) -> Result<Vec<Results>> {
    let initramfs = vm.project.initramfs(vm.arch, "run")?;
    let mut results = Vec::new();
    for policy in policy::ALL {
        let append = format!("lazy_tlb={policy} {} {words}", machine::NO_KUNIT);
        let guest = Guest {
            append: append.trim_end(),
            ..vm.guest(&initramfs, &format!("run-{}-{policy}", vm.arch.name))
        };
        results.push(Results::new(policy, guest.boot()?));
    }
    Ok(results)
}

pub fn table(results: &[Results], vm: &Vm<'_>) -> String {
    // Times under an emulator say nothing about hardware: said beside each of them.
    let how = match vm.is_emulated() {
        true => "emulated",
        false => &vm.accel,
    };
    let policies = results.iter().map(|r| format!("lazy_tlb={}", r.asked));
    let header = std::iter::once(String::new()).chain(policies);
    let plain = |key: &'static str| results.iter().map(|r| r.text(key).to_owned()).collect();
    let rates = |key| results.iter().map(|r| r.per_thousand(key)).collect();
    let spreads = |key| results.iter().map(|r| r.spread(key)).collect();
    let warnings = results.iter().map(|r| r.report.warnings.len().to_string());
    let times = |what: &str| format!("{what}, median (min..max), {how}");
    let rows: [(String, Vec<String>); 9] = [
        ("CPUs seen".into(), plain("cpus")),
        ("lazy CPUs at exit".into(), plain("lazy_cpus")),
        ("mm_count held by lazies".into(), plain("mm_count_lazy")),
        (
            "cross-call interrupts per 1000 exits".into(),
            rates("cal_irqs"),
        ),
        ("TLB interrupts per 1000 exits".into(), rates("tlb_irqs")),
        (times("switches/s"), spreads("switches_per_s")),
        (times("exit us"), spreads("exit_us")),
        (times("fork+exit us"), spreads("fork_exit_us")),
        ("warnings in the log".into(), warnings.collect()),
    ];
    let rows = rows.into_iter();
    let rows = rows.map(|(name, cells)| std::iter::once(name).chain(cells));
    table::of(header, rows, &[0])
}

pub fn verdict(results: &[Results]) -> Vec<Case> {
    let mut cases = Vec::new();
    for result in results {
        let checks = [
            ("finishes", result.report.check_end()),
            ("has every CPU", result.report.check_cpus()),
            ("has no warning", result.report.check_warnings()),
            ("runs the policy asked for", check_policy(result)),
            ("counts its lazies", check_lazies(result)),
        ];
        for (name, checked) in checks {
            cases.push(Case::of(format!("{} {name}", result.asked), checked));
        }
    }
    cases
}

fn check_policy(result: &Results) -> Result<()> {
    let policy = result.text("policy");
    ensure!(policy == result.asked, "the guest's policy is {policy}");
    Ok(())
}

/// Lazy CPUs there must be; only with `refcount` they hold references.
fn check_lazies(result: &Results) -> Result<()> {
    let lazy = result.number("lazy_cpus")?;
    let held = result.number("mm_count_lazy")?;
    let expected = if result.asked == policy::REFCOUNT {
        lazy
    } else {
        0.0
    };
    ensure!(lazy > 0.0, "no CPU was lazy, so nothing was shown");
    ensure!(
        held == expected,
        "{lazy} lazy CPUs hold {held} references, {expected} were expected"
    );
    Ok(())
}

/// `run` itself: the guests, the table, the verdict.
pub fn run(project: &Project, arch: &'static Arch, skip: &[String]) -> Result<Exit> {
    let shop = project.workshop(skip, &[arch])?;
    let image = shop.build(arch, "default")?.image()?;
    let vm = Vm::new(project, arch, &image)?;
    let results = boot(&vm, "")?;
    println!("\n{}\n", table(&results, &vm));
    let failed = case::print_failed(&verdict(&results));
    // A guest that did not finish is another failure than one that counted wrongly.
    for result in &results {
        result
            .report
            .check_end()
            .and_then(|()| result.report.check_cpus())?;
    }
    if failed == 0 {
        println!("verdict: PASS (every CPU came up, lazy CPUs hold references only in refcount mode, no warnings)");
        return Ok(Exit::Ok);
    }
    println!("verdict: FAIL ({} of the checks above)", failed);
    Err(fail(
        Exit::Failed,
        "the verdict failed",
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
    use std::path::Path;

    fn guest(policy: &'static str, lazy: u32, held: u32) -> Results {
        let text = format!(
            "lazy-tlb-guest: cpus=4\nlazy-tlb-run: policy={policy}\nlazy-tlb-run: cpus=4\n\
             lazy-tlb-run: lazy_cpus={lazy}\nlazy-tlb-run: mm_count_lazy={held}\n\
             lazy-tlb-run: exits=500\nlazy-tlb-run: cal_irqs=750\n\
             lazy-tlb-run: switches_per_s=100\nlazy-tlb-run: switches_per_s_min=90\n\
             lazy-tlb-run: switches_per_s_max=110\nlazy-tlb-guest: done status=0\n"
        );
        Results::new(policy, Report::new(text, End::Exited, 4, Path::new("gone")))
    }

    fn failures(results: &[Results]) -> Vec<String> {
        let failed = |case: &Case| case.status == Status::Fail;
        verdict(results)
            .into_iter()
            .filter(failed)
            .map(|case| case.name)
            .collect()
    }

    #[test]
    fn only_the_expected_counts_pass() {
        assert!(failures(&[guest("refcount", 3, 3), guest("shootdown", 3, 0)]).is_empty());
        for (refcount, shootdown) in [
            (guest("refcount", 3, 2), guest("shootdown", 3, 0)),
            (guest("refcount", 3, 3), guest("shootdown", 3, 3)),
            (guest("refcount", 0, 0), guest("shootdown", 3, 0)),
            (guest("refcount", 3, 3), guest("shootdown", 0, 0)),
        ] {
            assert_eq!(failures(&[refcount, shootdown]).len(), 1);
        }
    }

    #[test]
    fn another_policy_than_asked_fails() {
        let mut result = guest("refcount", 3, 3);
        result.asked = "shootdown";
        assert_eq!(
            failures(&[result]),
            [
                "shootdown runs the policy asked for",
                "shootdown counts its lazies"
            ]
        );
    }

    #[test]
    fn a_guest_that_reports_nothing_fails() {
        let report = Report::new(String::new(), End::Exited, 4, Path::new("gone"));
        assert_eq!(failures(&[Results::new("refcount", report)]).len(), 4);
    }

    #[test]
    fn the_table_has_medians_spreads_and_rates() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            repo: dir.path().into(),
            cache: crate::host::cache::Cache::at(dir.path().into()).unwrap(),
            linux: None,
        };
        let vm = Vm {
            project: &project,
            arch: crate::host::arch::find("x86_64").unwrap(),
            image: dir.path(),
            accel: "tcg".into(),
        };
        let text = table(&[guest("refcount", 3, 3), guest("shootdown", 3, 0)], &vm);
        assert!(text.contains("100 (90..110)"), "{text}");
        assert!(
            text.contains("1500"),
            "750 in 500 exits are 1500 in 1000:\n{text}"
        );
        assert!(
            text.contains("emulated") && text.contains("not reported"),
            "{text}"
        );
    }
}
