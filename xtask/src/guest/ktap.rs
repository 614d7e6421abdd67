//! Test results on a guest's console, read by the kernel's own parser.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::guest::console::without_stamps;
use crate::host::sh;
use crate::results::case::{Case, Status};

/// The guest's first process announces itself; what stands before is KUnit's, at boot.
const HANDOVER: &str = "lazy-tlb-guest: cpus=";

/// What cases at boot are named by.
pub const KUNIT: &str = "kunit";

/// How much of what a test said before it failed is repeated, in lines.
const MAX_SAID: usize = 20;

/// The kselftest runner's prefix, which says nothing here.
const RUNNER: &str = "selftests: lazy_tlb: ";

/// One group of kunit.py's JSON.
#[derive(Deserialize)]
struct Group {
    name: String,
    sub_groups: Vec<Group>,
    test_cases: Vec<TestCase>,
}

#[derive(Deserialize)]
struct TestCase {
    name: String,
    status: String,
}

/// All results on a console: KUnit's and the first process's, which are two documents.
pub fn results(tree: &Path, console: &str) -> Result<Vec<Case>> {
    let text = without_stamps(console);
    let split = text.find(HANDOVER).unwrap_or(text.len());
    let mut cases = Vec::new();
    for (name, part) in [(KUNIT, &text[..split]), ("kselftest", &text[split..])] {
        if part.lines().any(|line| line.ends_with("KTAP version 1")) {
            cases.extend(parse(tree, name, part)?);
        } else {
            cases.push(Case::failed(
                name,
                "no KTAP on the console: no test reported",
            ));
        }
    }
    // The log stays on the machine that ran the guest; what a test said about its failure does not.
    for failure in course(console).failed {
        let of_it = |case: &&mut Case| case.status == Status::Fail && case.name == failure.test;
        if let Some(case) = cases.iter_mut().find(of_it) {
            let first = failure.said.len().saturating_sub(MAX_SAID);
            for line in &failure.said[first..] {
                case.detail += &format!("\n{line}");
            }
        }
    }
    Ok(cases)
}

/// A test that reported a failure, and the comments between the report before and that one.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub test: String,
    pub said: Vec<String>,
}

/// What a console says itself about where it stopped being good.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// In the order of their reports.
    pub failed: Vec<Failure>,
    /// The test that was running at the end.
    pub running: Option<String>,
}

/// Follows the tests on a console, which are named as in [`results`].
pub fn course(console: &str) -> Course {
    let mut course = Course::default();
    let mut half = KUNIT;
    // The groups that are open, with their indentation.
    let mut groups: Vec<(usize, &str)> = Vec::new();
    let mut said = Vec::new();
    let text = without_stamps(console);
    for line in text.lines() {
        let words = line.trim_start();
        let indent = line.len() - words.len();
        let path = |groups: &[(usize, &str)], last: &str| {
            let names = groups.iter().map(|(_, name)| *name);
            let names = std::iter::once(half).chain(names).chain([last]);
            names.collect::<Vec<_>>().join("/")
        };
        if words.starts_with(HANDOVER) {
            half = "kselftest";
            groups.clear();
            course.running = None;
        } else if let Some(name) = words.strip_prefix("# Subtest: ") {
            groups.retain(|(other, _)| *other < indent);
            groups.push((indent, name.trim_start_matches(RUNNER)));
            course.running = Some(path(&groups, "(the first)"));
        } else if let Some(name) = started(words) {
            course.running = Some(path(&groups, name));
        } else if let Some((ok, name)) = result(words) {
            groups.retain(|(other, _)| *other <= indent);
            let said = std::mem::take(&mut said);
            if !ok {
                let test = path(&groups, name);
                course.failed.push(Failure { test, said });
            }
            // KUnit does not say which test it goes on with.
            let next = (!groups.is_empty()).then(|| path(&groups, &format!("(after {name})")));
            course.running = next;
        } else if words.starts_with("# ") {
            said.push(words.to_string());
        }
    }
    course
}

/// The test that a selftest announces: `#  RUN           exit.blocked.lazies ...`.
fn started(words: &str) -> Option<&str> {
    let words = words.strip_prefix('#')?.trim_start().strip_prefix("RUN ")?;
    words.split_whitespace().next()
}

/// `ok 1 NAME` and `not ok 1 NAME # why`.
fn result(words: &str) -> Option<(bool, &str)> {
    let (ok, rest) = match words.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, words.strip_prefix("ok ")?),
    };
    let (number, name) = rest.split_once(' ')?;
    number.parse::<usize>().ok()?;
    let name = name.split(" # ").next().unwrap_or(name);
    Some((ok, name.trim_start_matches(RUNNER)))
}

/// A case for each suite that must have been run at boot.
pub fn expected_suites(cases: &[Case], suites: &[&str]) -> Vec<Case> {
    let ran = |suite: &&str| {
        let group = format!("kunit/{suite}/");
        let of_suite = |case: &&Case| case.name.starts_with(&group);
        let name = format!("kunit/{suite} was run");
        match cases.iter().filter(of_suite).count() {
            0 => Case::failed(name, "the console has no result of it"),
            _ => Case::passed(name),
        }
    };
    suites.iter().map(ran).collect()
}

/// Leaves out what others wrote between the first two lines of a suite, the kernel or a test that
/// does not ask the runner: the parser would lose the suite, and all that come after it.
fn together(text: &str) -> String {
    let mut begins = false;
    let mut kept = String::new();
    for line in text.lines() {
        let words = line.trim();
        let first = words.ends_with("KTAP version 1");
        // A result, where there is no second one.
        let second = ["# Subtest:", "1..", "ok ", "not ok "];
        let second = second.iter().any(|begin| words.starts_with(begin));
        if first || second || !begins {
            kept += line;
            kept.push('\n');
        }
        begins = first || (begins && !second);
    }
    kept
}

/// One document, through `kunit.py parse` of the tree.
fn parse(tree: &Path, name: &str, text: &str) -> Result<Vec<Case>> {
    let dir = tempfile::tempdir()?;
    let (log, json) = (
        dir.path().join("console.log"),
        dir.path().join("results.json"),
    );
    sh::write_whole(&log, together(text).as_bytes())?;
    let mut python = Command::new("python3");
    python
        .arg(tree.join("tools/testing/kunit/kunit.py"))
        .arg("parse");
    python.arg(format!("--json={}", json.display())).arg(&log);
    // The tree is hard links to the base: nothing may be written beside the script.
    let output = python
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .context("running kunit.py")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let text = match std::fs::read_to_string(&json) {
        Ok(text) => text,
        Err(_) => {
            return Ok(vec![Case::failed(
                name,
                format!("kunit.py found no results:\n{said}"),
            )])
        }
    };
    cases_of(name, &text, output.status.success(), &said)
}

/// The cases in kunit.py's JSON; what only the parser itself objects to is a case as well.
fn cases_of(name: &str, json: &str, success: bool, said: &str) -> Result<Vec<Case>> {
    let top: Group = serde_json::from_str(json).context("reading kunit.py's JSON")?;
    let mut cases = Vec::new();
    flatten(&top, name, &mut cases);
    if cases.is_empty() {
        cases.push(Case::failed(name, "the console's KTAP holds no test"));
    } else if !success && !cases.iter().any(|case| case.status == Status::Fail) {
        let problem = format!("kunit.py is not content:\n{said}");
        cases.push(Case::failed(format!("{name}/ktap"), problem));
    }
    Ok(cases)
}

fn flatten(group: &Group, prefix: &str, cases: &mut Vec<Case>) {
    for case in &group.test_cases {
        let missing = case.name.is_empty();
        let last = if missing {
            "(did not report)"
        } else {
            &case.name
        };
        let name = format!("{prefix}/{last}");
        cases.push(match case.status.as_str() {
            "PASS" => Case::passed(name),
            "SKIP" => Case::skipped(name),
            other => Case::failed(name, format!("{other} in the guest; its log has more")),
        });
    }
    for sub in &group.sub_groups {
        let name = sub.name.trim_start_matches(RUNNER);
        flatten(sub, &format!("{prefix}/{name}"), cases);
    }
}

/// Recorded consoles with their outcome, to prove the parser of this tree on.
pub fn self_test(tree: &Path) -> Result<Vec<Case>> {
    let recorded = [
        (
            "pass",
            include_str!("../../tests/consoles/ktap-pass.log"),
            [4, 0, 1],
        ),
        (
            "fail",
            include_str!("../../tests/consoles/ktap-fail.log"),
            [2, 2, 0],
        ),
        (
            "crash",
            include_str!("../../tests/consoles/ktap-crash.log"),
            [1, 2, 0],
        ),
        (
            "none",
            include_str!("../../tests/consoles/hang.log"),
            [0, 2, 0],
        ),
    ];
    let mut cases = Vec::new();
    for (name, console, expected) in recorded {
        let results = results(tree, console)?;
        let found = crate::results::case::counts(&results);
        let name = format!("ktap/recorded {name}");
        cases.push(if found == expected {
            Case::passed(name)
        } else {
            Case::failed(
                name,
                format!("{found:?} passed, failed, skipped; {expected:?} expected"),
            )
        });
        if console.contains("EXPECTATION FAILED") {
            let told = |case: &Case| case.detail.contains("lazy_tlb_test.c:40");
            let name = "ktap/what a test said before it failed is repeated";
            let detail = format!("{results:?}");
            cases.push(Case::when(results.iter().any(told), name, detail));
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::case::counts;

    const JSON: &str = include_str!("../../tests/consoles/kunit.json");

    #[test]
    fn the_parsers_json_becomes_cases() {
        let cases = cases_of("kunit", JSON, false, "").unwrap();
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "kunit/lazy_tlb/shoots_one",
                "kunit/lazy_tlb/shoots_none",
                "kunit/rust_kernel_smp/x",
                "kunit/rust_kernel_smp/y",
            ]
        );
        assert_eq!(counts(&cases), [2, 1, 1]);
    }

    #[test]
    fn the_first_lines_of_a_suite_stand_together() {
        let console =
            "KTAP version 1\n[    1.0] a message\n1..1\n    KTAP version 1\nfuzz: program 7\n    \
                       # Subtest: a\n    1..1\nfuzz: program 8\n    ok 1 a.b\nok 1 a\n    KTAP version 1\nnot ok 2 b\n";
        let kept = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: a\n    1..1\nfuzz: program 8\n    \
                    ok 1 a.b\nok 1 a\n    KTAP version 1\nnot ok 2 b\n";
        assert_eq!(together(console), kept);
    }

    #[test]
    fn a_suite_that_is_not_there_is_a_failure() {
        let cases = cases_of("kunit", JSON, false, "").unwrap();
        let found = expected_suites(&cases, &["lazy_tlb", "lazy_tlb_policy"]);
        let status: Vec<Status> = found.iter().map(|case| case.status).collect();
        assert_eq!(status, [Status::Pass, Status::Fail]);
        assert_eq!(found[1].name, "kunit/lazy_tlb_policy was run");
    }

    #[test]
    fn what_only_the_parser_sees_is_a_failure() {
        let of = |cases: &str, success: bool| {
            let json = format!(r#"{{"name": "a", "sub_groups": [], "test_cases": [{cases}]}}"#);
            cases_of("kunit", &json, success, "").unwrap()
        };
        let passed = r#"{"name": "b", "status": "PASS"}"#;
        assert_eq!(counts(&of(passed, true)), [1, 0, 0]);
        assert_eq!(counts(&of(passed, false)), [1, 1, 0]);
        assert_eq!(counts(&of("", true)), [0, 1, 0], "no test");
        let silent = of(r#"{"name": "", "status": "ERROR"}"#, true);
        assert_eq!(silent[0].name, "kunit/(did not report)");
        assert_eq!(counts(&silent), [0, 1, 0]);
    }

    #[test]
    fn a_console_tells_which_test_failed_first_and_which_was_running() {
        let failed = course(include_str!("../../tests/consoles/ktap-fail.log"));
        let tests: Vec<&str> = failed.failed.iter().map(|one| one.test.as_str()).collect();
        assert_eq!(
            tests,
            [
                "kunit/lazy_tlb/shoots_one",
                "kunit/lazy_tlb",
                "kselftest/exit/exit.sparse",
                "kselftest/exit",
            ]
        );
        assert_eq!(
            failed.failed[0].said,
            ["# shoots_one: EXPECTATION FAILED at mm/lazy_tlb/lazy_tlb_test.c:40"]
        );
        assert!(failed.failed[2].said.is_empty(), "that of another");
        assert_eq!(failed.running, None);
        let crashed = course(include_str!("../../tests/consoles/ktap-crash.log"));
        assert_eq!(
            (crashed.failed, crashed.running.as_deref()),
            (Vec::new(), Some("kunit/lazy_tlb/(after shoots_one)"))
        );
        let passed = course(include_str!("../../tests/consoles/ktap-pass.log"));
        assert_eq!(passed, Course::default());
        let hung = course(include_str!("../../tests/consoles/ktap-hang.log"));
        assert_eq!(
            (hung.failed, hung.running.as_deref()),
            (
                Vec::new(),
                Some("kselftest/exit/exit.blocked.nothing_mapped")
            )
        );
    }

    #[test]
    fn a_program_that_failed_as_a_whole_is_named() {
        let text = "lazy-tlb-guest: cpus=4\nKTAP version 1\n1..1\n    KTAP version 1\n    \
                    # Subtest: selftests: lazy_tlb: exit\n    1..2\n    ok 1 exit.idle\n\
                    not ok 1 selftests: lazy_tlb: exit # TIMEOUT 600 seconds\n";
        assert_eq!(course(text).failed[0].test, "kselftest/exit");
    }

    #[test]
    fn a_console_without_ktap_fails_twice() {
        // Neither half has a document, so the tree is never asked.
        let cases = results(Path::new("nowhere"), "booting\nlazy-tlb-guest: cpus=4\n").unwrap();
        assert_eq!(counts(&cases), [0, 2, 0]);
    }
}
