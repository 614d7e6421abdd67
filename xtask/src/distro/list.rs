//! The tests that a guest runs, and the archive in which it finds them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::host::failure::{fail, Exit};
use crate::host::sh;

/// The list, and what else a guest is made of.
pub const FOLDER: &str = "guest/distro";
/// What runs a collection of the kernel's selftests there, the word after it.
const KSELFTEST: &str = "kselftest.sh";
/// Where the guest unpacks its tests, as lazy-tlb-tests.service says.
const PLACE: &str = "/var/tmp/lazy-tlb";

/// A list of tests.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// What must be installed in the guest.
    pub packages: Vec<String>,
    /// The tests, in their order.
    #[serde(rename = "test")]
    pub tests: Vec<Test>,
}

/// One test.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// One word.
    pub name: String,
    /// Lines for bash.
    #[serde(default)]
    pub run: String,
    /// In their place: collections of the kernel's own selftests, one once the list is read.
    #[serde(default)]
    pub kselftest: Vec<String>,
    /// How long it may take.
    pub seconds: u64,
    /// A line for bash; where it fails, the test is skipped.
    #[serde(rename = "if")]
    pub needs: Option<String>,
    /// The reason for that.
    pub why: Option<String>,
}

impl List {
    /// The project's own list, whole or the tests of these names; or the list in a file.
    pub fn find(repo: &Path, wanted: &[String]) -> Result<Self> {
        let own = repo.join(FOLDER).join("tests.toml");
        if let [file] = wanted {
            let path = Path::new(file);
            if path.is_file() {
                return Self::read(path);
            }
        }
        let list = Self::read(&own)?;
        if wanted.is_empty() {
            return Ok(list);
        }
        let known: Vec<&str> = list.tests.iter().map(|test| test.name.as_str()).collect();
        // All of a suite, or one of its collections.
        let means = |name: &str, wanted: &String| {
            name == wanted
                || name
                    .split_once('/')
                    .is_some_and(|(suite, _)| suite == wanted)
        };
        let unknown = |wanted: &&String| !known.iter().any(|name| means(name, wanted));
        if let Some(unknown) = wanted.iter().find(unknown) {
            return Err(fail(
                Exit::Usage,
                format!("{unknown} is neither a test nor a file"),
                format!("use some of: {}", known.join(", ")),
            ));
        }
        let mut tests = list.tests.clone();
        tests.retain(|test| wanted.iter().any(|name| means(&test.name, name)));
        Ok(List { tests, ..list })
    }

    fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut list: List = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        for test in &list.tests {
            let name = &test.name;
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            anyhow::ensure!(
                !name.is_empty() && name.chars().all(plain),
                "{name:?} is no name for a test: one word"
            );
            anyhow::ensure!(names.insert(name.clone()), "two tests are called {name}");
            anyhow::ensure!(
                test.run.is_empty() != test.kselftest.is_empty(),
                "{name}: either `run` or `kselftest`"
            );
            anyhow::ensure!(
                test.needs.is_some() == test.why.is_some(),
                "{name}: `if` and `why` go together"
            );
        }
        // A test for each collection, so that one that ends its shell ends no other.
        let apart = |test: Test| match test.kselftest.is_empty() {
            true => vec![test],
            false => {
                let of = |collection: &String| Test {
                    name: format!("{}/{collection}", test.name),
                    kselftest: vec![collection.clone()],
                    ..test.clone()
                };
                test.kselftest.iter().map(of).collect()
            }
        };
        list.tests = list.tests.into_iter().flat_map(apart).collect();
        Ok(list)
    }

    /// The same with so many times the seconds for each.
    pub fn with_patience(mut self, times: u64) -> Self {
        for test in &mut self.tests {
            test.seconds *= times.max(1);
        }
        self
    }

    /// The collections of the kernel's selftests that its tests are.
    pub fn collections(&self) -> Vec<String> {
        let tests = self.tests.iter();
        tests.flat_map(|test| test.kselftest.clone()).collect()
    }

    /// The longest that any test may take.
    pub fn longest(&self) -> u64 {
        let seconds = self.tests.iter().map(|test| test.seconds);
        seconds.max().unwrap_or_default()
    }

    /// The most that all may take.
    pub fn total(&self) -> u64 {
        self.tests.iter().map(|test| test.seconds).sum()
    }

    /// Writes an archive with the runner and the tests into `dir`, a disk for the guest.
    /// `kselftests` is where those are installed, if there are any.
    pub fn disk(
        &self,
        repo: &Path,
        dir: &Path,
        flip: bool,
        kselftests: Option<&Path>,
    ) -> Result<PathBuf> {
        let files = dir.join("files");
        let put = |name: &str, text: &str| sh::write_whole(&files.join(name), text.as_bytes());
        for script in ["runner.sh", KSELFTEST] {
            put(script, &fs::read_to_string(repo.join(FOLDER).join(script))?)?;
        }
        if flip {
            put("flip", "")?;
        }
        for (index, test) in self.tests.iter().enumerate() {
            let file = |name: &str| format!("tests/{:03}/{name}", index + 1);
            put(&file("name"), &test.name)?;
            match test.kselftest.first() {
                None => put(&file("run"), &test.run)?,
                Some(collection) => {
                    put(
                        &file("run"),
                        &format!("bash {PLACE}/{KSELFTEST} {collection}"),
                    )?;
                    // It may say that it was skipped.
                    put(&file("kselftest"), "")?;
                }
            }
            put(&file("seconds"), &test.seconds.to_string())?;
            if let (Some(needs), Some(why)) = (&test.needs, &test.why) {
                put(&file("if"), needs)?;
                put(&file("why"), why)?;
            }
        }
        let disk = dir.join("tests.tar");
        let mut tar = Command::new("tar");
        // A disk of whole sectors.
        tar.args(["-b", "2048", "-cf"]).arg(&disk);
        tar.arg("-C").arg(&files).arg(".");
        if let Some(dir) = kselftests {
            tar.arg("-C").arg(dir).arg(".");
        }
        sh::capture(&mut tar)?;
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;
    use crate::kernel::workshop::repository;

    #[test]
    fn the_list_in_the_repository_is_whole_or_in_part() {
        let names = |wanted: &[&str]| -> Result<Vec<String>> {
            let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
            let list = List::find(&repository(), &wanted)?;
            Ok(list.tests.into_iter().map(|test| test.name).collect())
        };
        assert!(names(&[]).unwrap().len() > 20);
        let collections = List::find(&repository(), &[]).unwrap().collections();
        assert!(collections.iter().any(|name| name == "membarrier"));
        let scheduler = names(&["kselftest-sched"]).unwrap();
        assert_eq!(
            scheduler[..2],
            ["kselftest-sched/membarrier", "kselftest-sched/rseq"]
        );
        assert_eq!(names(&["kselftest-sched/rseq"]).unwrap(), [&*scheduler[1]]);
        // The order is the list's.
        assert_eq!(
            names(&["swap", "cyclictest"]).unwrap(),
            ["cyclictest", "swap"]
        );
        let (exit, error) = classify(names(&["cyclictest", "nothing"]).unwrap_err());
        assert_eq!(exit, Exit::Usage);
        assert!(error.to_string().contains("hackbench-threads"), "{error}");
    }

    #[test]
    fn a_list_of_ones_own_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own.toml");
        let text = "packages = [\"x\"]\n[[test]]\nname = \"a\"\nrun = \"true\"\nseconds = 7\n";
        fs::write(&file, text).unwrap();
        let list = List::find(&repository(), &[file.display().to_string()]).unwrap();
        assert_eq!((list.tests.len(), list.longest(), list.total()), (1, 7, 7));
        assert_eq!(list.with_patience(3).longest(), 21);
    }

    #[test]
    fn what_a_runner_could_not_tell_apart_is_refused() {
        let refused = |tests: &str| {
            let error = List::parse(&format!("packages = []\n{tests}")).unwrap_err();
            error.to_string()
        };
        let test = |name: &str, more: &str| {
            format!("[[test]]\nname = \"{name}\"\nrun = \"true\"\nseconds = 1\n{more}")
        };
        assert!(refused(&test("a b", "")).contains("one word"));
        assert!(refused(&(test("a", "") + &test("a", ""))).contains("two tests"));
        assert!(refused(&test("a", "if = \"false\"\n")).contains("go together"));
        assert!(refused(&test("a", "timeout = 1\n")).contains("timeout"));
    }

    #[test]
    fn a_disk_has_the_runner_and_each_test() {
        let dir = tempfile::tempdir().unwrap();
        let skipped = Test {
            name: "b".into(),
            needs: Some("false".into()),
            why: Some("never".into()),
            ..Test::default()
        };
        let plain = Test {
            name: "a".into(),
            seconds: 7,
            ..Test::default()
        };
        let list = List {
            packages: Vec::new(),
            tests: vec![plain, skipped],
        };
        let disk = list.disk(&repository(), dir.path(), true, None).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len() % 512, 0);
        let listed = sh::capture(Command::new("tar").arg("-tf").arg(&disk)).unwrap();
        for name in [
            "./flip",
            "./runner.sh",
            "./tests/001/run",
            "./tests/001/seconds",
            "./tests/002/why",
        ] {
            assert!(listed.lines().any(|line| line == name), "{name}: {listed}");
        }
        assert!(!listed.contains("001/why"), "{listed}");
    }
}
