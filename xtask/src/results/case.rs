//! Test cases, as they are printed, counted and written to a file.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::host::failure::Exit;
use crate::host::sh;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    Fail,
    /// It could not be tried here; never counted as passed.
    Skip,
}

#[derive(Clone, Debug, Serialize)]
pub struct Case {
    pub name: String,
    pub status: Status,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Case {
    pub fn passed(name: impl Into<String>) -> Self {
        Case {
            name: name.into(),
            status: Status::Pass,
            detail: String::new(),
        }
    }

    pub fn skipped(name: impl Into<String>) -> Self {
        Case {
            status: Status::Skip,
            ..Case::passed(name)
        }
    }

    pub fn failed(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Case {
            status: Status::Fail,
            detail: detail.into(),
            ..Case::passed(name)
        }
    }

    /// A case that holds or not, and why it would not.
    pub fn when(holds: bool, name: impl Into<String>, detail: impl Into<String>) -> Self {
        match holds {
            true => Case::passed(name),
            false => Case::failed(name, detail),
        }
    }

    /// A case that holds where there is no error.
    pub fn of(name: impl Into<String>, result: Result<()>) -> Self {
        match result {
            Ok(()) => Case::passed(name),
            Err(error) => Case::failed(name, format!("{error:#}")),
        }
    }

    /// The same in a group.
    pub fn within(mut self, group: &str) -> Self {
        self.name = format!("{group}/{}", self.name);
        self
    }
}

pub fn counts(cases: &[Case]) -> [usize; 3] {
    [Status::Pass, Status::Fail, Status::Skip]
        .map(|status| cases.iter().filter(|case| case.status == status).count())
}

/// Prints those that failed, and says how many they are.
pub fn print_failed(cases: &[Case]) -> usize {
    for case in cases.iter().filter(|case| case.status == Status::Fail) {
        println!("{}: {}", case.name, case.detail);
    }
    counts(cases)[1]
}

/// Collects the cases of a run and prints each as it comes.
#[derive(Default)]
pub struct Recorder {
    pub cases: Vec<Case>,
}

impl Recorder {
    /// Runs a stage; an error that ends it early is a failed case of its name.
    pub fn stage(&mut self, name: &str, run: impl FnOnce() -> Result<Vec<Case>>) {
        println!("\n== {name}");
        let started = Instant::now();
        let result = run();
        self.ended(name, started, result);
    }

    /// Gets what stages cannot do without. That it is there tests nothing yet; that it is not has failed.
    pub fn need<T>(&mut self, name: &str, get: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n== {name}");
        let started = Instant::now();
        match get() {
            Ok(got) => {
                println!("== {name}: {} s", started.elapsed().as_secs());
                Some(got)
            }
            Err(error) => {
                self.ended(name, started, Err(error));
                None
            }
        }
    }

    /// Takes and prints the cases of a stage that ran elsewhere, while others did.
    pub fn ended(&mut self, name: &str, started: Instant, result: Result<Vec<Case>>) {
        let cases = match result {
            Ok(cases) if cases.is_empty() => vec![Case::failed(name, "the stage ran no test")],
            Ok(cases) => cases,
            Err(error) => vec![Case::failed(name, format!("{error:#}"))],
        };
        for case in cases {
            self.add(case);
        }
        println!("== {name}: {} s", started.elapsed().as_secs());
    }

    fn add(&mut self, case: Case) {
        let status = match case.status {
            Status::Pass => "PASS",
            Status::Fail => "FAIL",
            Status::Skip => "SKIP",
        };
        println!("{status:>8} {}", case.name);
        for line in case.detail.lines() {
            println!("         | {line}");
        }
        self.cases.push(case);
    }

    pub fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.cases)?;
        sh::write_whole(path, text.as_bytes())
    }

    /// Prints the failures again and the count, alone on the last line.
    pub fn finish(&self) -> Exit {
        let [passed, failed, skipped] = counts(&self.cases);
        println!();
        for case in self.cases.iter().filter(|case| case.status == Status::Fail) {
            println!("    FAIL {}", case.name);
        }
        let exit = match (passed, failed) {
            (0, 0) => Exit::NoTests,
            (_, 0) => Exit::Ok,
            _ => Exit::Failed,
        };
        if exit == Exit::NoTests {
            println!("no test ran: nothing that was asked for can be done here");
        }
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(cases: Vec<Case>) -> Exit {
        let mut recorder = Recorder::default();
        recorder.stage("stage", || Ok(cases));
        recorder.finish()
    }

    #[test]
    fn any_failure_fails_and_a_skip_does_not_pass() {
        assert_eq!(
            finished(vec![Case::passed("a"), Case::skipped("b")]),
            Exit::Ok
        );
        assert_eq!(
            finished(vec![Case::passed("a"), Case::failed("b", "")]),
            Exit::Failed
        );
        assert_eq!(finished(vec![Case::skipped("a")]), Exit::NoTests);
        assert_eq!(Recorder::default().finish(), Exit::NoTests);
    }

    #[test]
    fn what_stages_need_is_no_test_but_fails_one_where_it_is_missing() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.need("setup", || Ok(1)), Some(1));
        assert_eq!(recorder.finish(), Exit::NoTests);
        let missing: Option<()> = recorder.need("setup", || anyhow::bail!("missing"));
        assert_eq!((missing, recorder.finish()), (None, Exit::Failed));
    }

    #[test]
    fn an_empty_or_broken_stage_is_a_failure() {
        assert_eq!(finished(Vec::new()), Exit::Failed);
        let mut recorder = Recorder::default();
        recorder.stage("stage", || anyhow::bail!("broken"));
        assert_eq!(recorder.finish(), Exit::Failed);
        assert_eq!(recorder.cases[0].detail, "broken");
    }
}
