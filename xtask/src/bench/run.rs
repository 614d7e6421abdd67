//! The main job: the same workload under every policy, one table, one verdict.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use comfy_table::{CellAlignment, Table};

use crate::guest::console::Report;
use crate::guest::machine::{self, Guest};
use crate::host::arch::Arch;
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::kernel::workshop::Project;
use crate::results::case::{Case, Status};

/// What the first process puts in front of its results.
const PREFIX: &str = "lazy-tlb-run";

/// One guest's results.
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

/// Boots a guest for each policy, `words` on their command line; an error is one that did not come to its end.
pub fn boot(
    project: &Project,
    arch: &'static Arch,
    image: &Path,
    accel: &str,
    words: &str,
) -> Result<Vec<Results>> {
    let initramfs = project.guest_initramfs(arch, "run-init")?;
    let mut results = Vec::new();
    for policy in policy::ALL {
        let append = format!("lazy_tlb={policy} {} {words}", machine::NO_KUNIT);
        let report = Guest {
            append: append.trim_end(),
            ..Guest::of(
                arch,
                accel,
                image,
                &initramfs,
                project
                    .cache
                    .path(format!("log/run-{}-{policy}.log", arch.name)),
            )
        }
        .boot()?;
        results.push(Results::new(policy, report));
    }
    Ok(results)
}

/// The table, side by side.
pub fn table(results: &[Results], accel: &str) -> String {
    // Times under an emulator say nothing about hardware: said beside each of them.
    let how = if accel.starts_with("tcg") {
        "emulated"
    } else {
        accel
    };
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    let policies = results.iter().map(|r| format!("lazy_tlb={}", r.asked));
    table.set_header(std::iter::once(String::new()).chain(policies));
    type Column = Box<dyn Fn(&Results) -> String>;
    let key = |key: &'static str| -> Column { Box::new(move |r| r.text(key).to_owned()) };
    let rows: Vec<(String, Column)> = vec![
        ("CPUs seen".into(), key("cpus")),
        ("lazy CPUs at exit".into(), key("lazy_cpus")),
        ("mm_count held by lazies".into(), key("mm_count_lazy")),
        (
            "cross-call interrupts per 1000 exits".into(),
            Box::new(|r| r.per_thousand("cal_irqs")),
        ),
        (
            "TLB interrupts per 1000 exits".into(),
            Box::new(|r| r.per_thousand("tlb_irqs")),
        ),
        (
            format!("switches/s, median (min..max), {how}"),
            Box::new(|r| r.spread("switches_per_s")),
        ),
        (
            format!("exit us, median (min..max), {how}"),
            Box::new(|r| r.spread("exit_us")),
        ),
        (
            format!("fork+exit us, median (min..max), {how}"),
            Box::new(|r| r.spread("fork_exit_us")),
        ),
        (
            "warnings in the log".into(),
            Box::new(|r| r.report.warnings.len().to_string()),
        ),
    ];
    for (name, column) in rows {
        table.add_row(std::iter::once(name).chain(results.iter().map(column)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// What must hold, each as a case.
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
    let accel = machine::accelerator(&project.cache, arch, &image)?;
    let results = boot(project, arch, &image, &accel, "")?;
    println!("\n{}\n", table(&results, &accel));
    let failed: Vec<Case> = verdict(&results)
        .into_iter()
        .filter(|case| case.status == Status::Fail)
        .collect();
    for case in &failed {
        println!("{}: {}", case.name, case.detail);
    }
    // A guest that did not finish is another failure than one that counted wrongly.
    for result in &results {
        result
            .report
            .check_end()
            .and_then(|()| result.report.check_cpus())?;
    }
    if failed.is_empty() {
        println!("verdict: PASS (every CPU came up, lazy CPUs hold references only in refcount mode, no warnings)");
        return Ok(Exit::Ok);
    }
    println!("verdict: FAIL ({} of the checks above)", failed.len());
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
    fn the_expected_counts_pass() {
        assert!(failures(&[guest("refcount", 3, 3), guest("shootdown", 3, 0)]).is_empty());
    }

    #[test]
    fn wrong_counts_fail() {
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
        let text = table(&[guest("refcount", 3, 3), guest("shootdown", 3, 0)], "tcg");
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
