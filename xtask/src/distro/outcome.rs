//! What a guest's console says of its tests, and the policies side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;

use crate::distro::list::Test;
use crate::guest::console::{self, Report};
use crate::host::failure::Exit;
use crate::results::case::{Case, Status};
use crate::results::table;

/// What the runner says of itself begins so.
pub const PREFIX: &str = "lazy-tlb-distro";

/// What came of a test, and what the guest said of it: `exit 0, 12 s`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    status: Status,
    words: String,
}

/// `ok 3 NAME # exit 0, 12 s`, by name.
fn said(console: &str) -> BTreeMap<String, Said> {
    static LINE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^(not )?ok \d+ (\S+)(?: # (.*))?$").expect("valid"));
    let mut found = BTreeMap::new();
    for line in console::without_stamps(console).lines() {
        let Some(captures) = LINE.captures(line.trim_end()) else {
            continue;
        };
        let text = |index: usize| captures.get(index).map_or("", |text| text.as_str());
        let (status, words) = match (captures.get(1), text(3).strip_prefix("SKIP ")) {
            (Some(_), _) => (Status::Fail, text(3)),
            (None, Some(why)) => (Status::Skip, why),
            (None, None) => (Status::Pass, text(3)),
        };
        let words = words.to_owned();
        found
            .entry(text(2).to_owned())
            .or_insert(Said { status, words });
    }
    found
}

/// What a suite of tests says of each of its own, as `case kselftest-mm: ok mm:mremap_test`: by test, then by name.
fn own_cases(console: &str) -> BTreeMap<String, BTreeMap<String, Status>> {
    static LINE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^case (\S+): (ok|not ok|skip) (\S.*)$").expect("valid"));
    let mut found: BTreeMap<String, BTreeMap<String, Status>> = BTreeMap::new();
    for line in console::without_stamps(console).lines() {
        let Some(captures) = LINE.captures(line.trim_end()) else {
            continue;
        };
        let status = match &captures[2] {
            "ok" => Status::Pass,
            "skip" => Status::Skip,
            _ => Status::Fail,
        };
        let of_test = found.entry(captures[1].to_owned()).or_default();
        of_test.insert(captures[3].to_owned(), status);
    }
    found
}

/// What a test that failed said at its end, and how it ended.
fn last_words(console: &str, name: &str) -> String {
    let text = console::without_stamps(console);
    let start = format!("# running {name}");
    let lines = text.lines().skip_while(|line| line.trim_end() != start);
    let own = lines
        .take_while(|line| !line.starts_with("ok ") && !line.starts_with("not ok "))
        .filter_map(|line| line.strip_prefix("#   "));
    own.collect::<Vec<_>>().join("\n")
}

/// A run of the list under one policy.
pub struct Column {
    /// Above it in the table.
    pub name: String,
    /// Each test in the list, and how the guest did.
    pub cases: Vec<Case>,
    said: BTreeMap<String, Said>,
    own: BTreeMap<String, BTreeMap<String, Status>>,
    values: BTreeMap<String, String>,
    warnings: usize,
}

impl Column {
    /// Reads a guest that was booted with a policy, none where the kernel has no choice.
    pub fn read(name: &str, policy: Option<&str>, tests: &[Test], report: &Report) -> Self {
        let said = said(&report.text);
        let values = report.values(PREFIX);
        let mut cases: Vec<Case> = tests
            .iter()
            .map(|test| match said.get(&test.name) {
                None => Case::failed(&test.name, "the guest did not say what came of it"),
                Some(it) => Case {
                    status: it.status,
                    detail: match it.status {
                        Status::Pass => String::new(),
                        Status::Skip => it.words.clone(),
                        Status::Fail => {
                            let words = last_words(&report.text, &test.name);
                            format!("{}\n{words}", it.words).trim_end().to_owned()
                        }
                    },
                    ..Case::passed(&test.name)
                },
            })
            .collect();
        let booted = values.get("policy").map(String::as_str);
        cases.push(match booted == Some(policy.unwrap_or("none")) {
            true => Case::passed("policy"),
            false => Case::failed("policy", format!("the guest has {booted:?}")),
        });
        cases.push(Case::of("end", report.check_end()));
        let off = report.text.contains("reboot: Power down");
        cases.push(match off {
            true => Case::passed("power off"),
            false => Case::failed("power off", "the guest did not switch itself off"),
        });
        cases.push(Case::of("cpus", report.check_cpus()));
        cases.push(Case::of("no warnings", report.check_warnings()));
        let cases = cases.into_iter().map(|case| case.within(name)).collect();
        Column {
            name: name.into(),
            cases,
            said,
            own: own_cases(&report.text),
            values,
            warnings: report.warnings.len(),
        }
    }

    fn cell(&self, test: &str) -> String {
        let Some(said) = self.said.get(test) else {
            return "MISSING".into();
        };
        match said.status {
            Status::Pass => {
                let time = said.words.rsplit(", ").next().unwrap_or_default();
                let Some(own) = self.own.get(test) else {
                    return format!("ok, {time}");
                };
                let of = |status| own.values().filter(|own| **own == status).count();
                let [passed, failed, skipped] = [Status::Pass, Status::Fail, Status::Skip].map(of);
                format!("{passed} ok, {failed} not, {skipped} skip, {time}")
            }
            Status::Fail => format!("FAIL, {}", said.words),
            Status::Skip => "skip".into(),
        }
    }

    /// Of a test, or of one of a suite's own.
    fn status(&self, test: &str, own: Option<&str>) -> Option<Status> {
        match own {
            None => self.said.get(test).map(|said| said.status),
            Some(own) => self.own.get(test)?.get(own).copied(),
        }
    }
}

/// The columns side by side: each test, the kernel's warnings, and what the guests counted.
pub fn table(tests: &[Test], columns: &[Column]) -> String {
    let names = columns.iter().map(|column| column.name.as_str());
    let row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        let cells = columns.iter().map(cell);
        [name.to_owned()]
            .into_iter()
            .chain(cells)
            .collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for test in tests {
        rows.push(row(&test.name, &|column| column.cell(&test.name)));
    }
    rows.push(row("warnings of the kernel", &|column| {
        column.warnings.to_string()
    }));
    let keys: BTreeSet<&String> = columns.iter().flat_map(|c| c.values.keys()).collect();
    for key in keys {
        rows.push(row(key, &|column| {
            column.values.get(key).cloned().unwrap_or_default()
        }));
    }
    let left: Vec<usize> = (0..=columns.len()).collect();
    table::of(["test"].into_iter().chain(names), rows, &left)
}

/// A case for each test: it holds where the test, and each of its own, came to the same in every column. None
/// where there is one column.
pub fn same(tests: &[Test], columns: &[Column]) -> Vec<Case> {
    if columns.len() < 2 {
        return Vec::new();
    }
    let differs = |test: &str, own: Option<&str>| {
        let statuses: Vec<_> = columns.iter().map(|c| c.status(test, own)).collect();
        if statuses.iter().all(|status| *status == statuses[0]) {
            return None;
        }
        let word = |(column, status): (&Column, &Option<Status>)| match status {
            Some(status) => format!("{} {status:?}", column.name).to_lowercase(),
            None => format!("{} missing", column.name),
        };
        let words: Vec<String> = columns.iter().zip(&statuses).map(word).collect();
        Some(format!("{}: {}", own.unwrap_or(test), words.join(", ")))
    };
    let same = |test: &Test| {
        let name = test.name.as_str();
        let own: BTreeSet<&String> = columns
            .iter()
            .filter_map(|column| column.own.get(name))
            .flat_map(BTreeMap::keys)
            .collect();
        let mut found: Vec<String> = differs(name, None).into_iter().collect();
        found.extend(own.into_iter().filter_map(|own| differs(name, Some(own))));
        Case::when(found.is_empty(), name, found.join("\n")).within("same")
    };
    tests.iter().map(same).collect()
}

/// How a run exits: as a run of no test where all were skipped.
pub fn exit(columns: &[Column]) -> Exit {
    let tests = |status| {
        columns
            .iter()
            .any(|c| c.said.values().any(|s| s.status == status))
    };
    let failed = |column: &Column| column.cases.iter().any(|c| c.status == Status::Fail);
    match columns.iter().any(failed) {
        true => Exit::Failed,
        false if tests(Status::Pass) => Exit::Ok,
        false => Exit::NoTests,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::console::End;
    use std::path::Path;

    const CONSOLE: &str = "[    0.5] smp: Brought up 2 nodes, 4 CPUs\n\
        [   20.1] 1..4\n\
        [   20.2] lazy-tlb-distro: policy=handover\n\
        [   20.3] # running pipe\n\
        [   32.4] ok 1 pipe # exit 0, 12 s\n\
        [   32.5] # running swap\n\
        [   33.0] #   BUG: in the test's own words\n\
        [   33.1] not ok 2 swap # exit 124, 1 s\n\
        [   33.2] ok 3 bpftrace # SKIP no BTF\n\
        [   34.0] lazy-tlb-distro: flips=7\n\
        [   34.1] lazy-tlb-guest: cpus=4\n\
        [   34.2] lazy-tlb-guest: done status=0\n\
        [   36.0] reboot: Power down\n";

    fn tests() -> Vec<Test> {
        let test = |name: &str| Test {
            name: name.into(),
            ..Test::default()
        };
        ["pipe", "swap", "bpftrace", "last"].map(test).into()
    }

    fn column(name: &str, policy: Option<&str>, console: &str) -> Column {
        let report = Report::new(console.into(), End::Exited, 4, Path::new("log"));
        Column::read(name, policy, &tests(), &report)
    }

    fn of(column: &Column, name: &str) -> (Status, String) {
        let name = format!("{}/{name}", column.name);
        let case = column.cases.iter().find(|case| case.name == name).unwrap();
        (case.status, case.detail.clone())
    }

    #[test]
    fn a_console_becomes_cases() {
        let column = column("handover", Some("handover"), CONSOLE);
        assert_eq!(of(&column, "pipe"), (Status::Pass, String::new()));
        let (status, detail) = of(&column, "swap");
        assert_eq!(status, Status::Fail);
        assert_eq!(detail, "exit 124, 1 s\nBUG: in the test's own words");
        assert_eq!(of(&column, "bpftrace"), (Status::Skip, "no BTF".into()));
        assert_eq!(of(&column, "last").0, Status::Fail, "it did not report");
        for name in ["policy", "end", "power off", "cpus", "no warnings"] {
            assert_eq!(of(&column, name).0, Status::Pass, "{name}");
        }
    }

    #[test]
    fn a_guest_that_crashed_or_ran_another_policy_fails() {
        let crash = CONSOLE.split("lazy-tlb-distro: flips").next().unwrap();
        let crash = format!("{crash}WARNING: kernel/fork.c:1 at __mmdrop\n");
        let column = column("refcount", Some("refcount"), &crash);
        for name in ["policy", "end", "power off", "no warnings"] {
            assert_eq!(of(&column, name).0, Status::Fail, "{name}");
        }
        assert_eq!(exit(&[column]), Exit::Failed);
    }

    #[test]
    fn a_kernel_without_the_series_has_no_policy() {
        let console = CONSOLE.replace("policy=handover", "policy=none");
        let column = column("base", None, &console);
        assert_eq!(of(&column, "policy").0, Status::Pass);
    }

    #[test]
    fn columns_stand_side_by_side_and_what_differs_is_named() {
        let better = CONSOLE.replace("not ok 2 swap # exit 124", "ok 2 swap # exit 0");
        let columns = [
            column("base", None, CONSOLE),
            column("handover", Some("handover"), &better),
        ];
        let table = table(&tests(), &columns);
        for cell in [
            "FAIL, exit 124, 1 s",
            "ok, 12 s",
            "skip",
            "MISSING",
            "| flips",
            "| warnings",
        ] {
            assert!(table.contains(cell), "{cell}: {table}");
        }
        let failed: Vec<Case> = same(&tests(), &columns)
            .into_iter()
            .filter(|case| case.status == Status::Fail)
            .collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].name, "same/swap");
        assert_eq!(failed[0].detail, "swap: base fail, handover pass");
        assert!(same(&tests(), &columns[..1]).is_empty());
    }

    #[test]
    fn a_suite_that_passes_by_other_tests_of_its_own_is_not_the_same() {
        let with = |own: &str| CONSOLE.replace("# running swap", &format!("{own}\n[ 33.0] #"));
        let columns = [
            column(
                "base",
                None,
                &with("case pipe: ok a:b\n[ 1.0] case pipe: skip c"),
            ),
            column("handover", None, &with("case pipe: not ok a:b")),
        ];
        assert!(table(&tests(), &columns).contains("1 ok, 0 not, 1 skip, 12 s"));
        let cases = same(&tests(), &columns);
        assert_eq!(
            cases[0].detail,
            "a:b: base pass, handover fail\nc: base skip, handover missing"
        );
    }

    #[test]
    fn a_run_of_skips_is_no_pass() {
        let mut skips = column("handover", Some("handover"), CONSOLE);
        skips.said.retain(|_, said| said.status == Status::Skip);
        skips.cases.retain(|case| case.status != Status::Fail);
        assert_eq!(exit(&[skips]), Exit::NoTests);
    }
}
