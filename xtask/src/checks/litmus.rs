//! `litmus`: what the kernel's memory model says about each litmus test of the series.
//!
//! The model is the base tree's, `tools/memory-model`. herd7, which runs it, is packaged in Debian
//! sid only. It is unpacked in the cache together with the C library that it was built for, which
//! is used where the machine's own is too old.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use anyhow::{bail, ensure, Context, Result};

use crate::host::apt::Suites;
use crate::host::cache::{Cache, Part};
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::workshop::Project;
use crate::results::case::Case;

pub const DIR: &str = "Documentation/litmus-tests/lazy-tlb";
const SUITE: &str = "sid";
/// herd7, and the libraries it is linked with.
const PACKAGES: [&str; 3] = ["herdtools7", "libc6", "libgmp10"];
/// Tests that run at the same time.
const THREADS: usize = 2;

/// Whether the outcome in a test's `exists` clause can happen.
const VERDICTS: [&str; 3] = ["Never", "Sometimes", "Always"];

pub fn cases(project: &Project) -> Result<Vec<Case>> {
    cases_in(project, &project.repo.join(DIR))
}

pub fn cases_in(project: &Project, dir: &Path) -> Result<Vec<Case>> {
    let tests = tests_in(dir)?;
    let model = project.base()?.dir.join("tools/memory-model");
    let herd = Herd::find(&project.cache)?;
    println!(
        "+ (in {}) {}",
        model.display(),
        sh::shown(&herd.command(Path::new("FILE")))
    );
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let case = Case::of(name_of(test), herd.check(&model, test));
                    done.lock().expect("nobody panics with it").push(case);
                }
            });
        }
    });
    let mut cases = done.into_inner().expect("nobody panics with it");
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

fn name_of(test: &Path) -> String {
    let file = test.file_name().unwrap_or_default();
    format!("litmus/{}", file.to_string_lossy())
}

/// The tests in a folder, of which there must be some.
fn tests_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let tests: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "litmus"))
        .collect();
    if tests.is_empty() {
        return Err(fail(
            Exit::NoTests,
            format!("there is no litmus test in {}", dir.display()),
            format!("run this in a complete checkout; the tests are {DIR}/*.litmus"),
        ));
    }
    Ok(tests)
}

struct Herd {
    root: PathBuf,
    /// The loader to run it with, where the machine's own C library is too old.
    loader: Option<PathBuf>,
}

impl Herd {
    fn find(cache: &Cache) -> Result<Self> {
        let root = cache.path("herd7");
        if !root.exists() {
            cache.lock(Part::Herd)?;
        }
        if !root.exists() {
            fetch(cache, &root)?;
        }
        let own = Herd { root, loader: None };
        if own.runs() {
            return Ok(own);
        }
        let bundled = Herd {
            loader: Some(loader_in(&own.libraries())?),
            ..own
        };
        if bundled.runs() {
            return Ok(bundled);
        }
        Err(fail(
            Exit::Environment,
            format!("herd7 in {} does not run here", bundled.root.display()),
            "remove that folder and run this again to have it fetched anew",
        ))
    }

    fn runs(&self) -> bool {
        sh::capture(self.program().arg("-version")).is_ok()
    }

    /// Where Debian puts libraries: `usr/lib/<triplet>`, the only folder of such a name.
    fn libraries(&self) -> PathBuf {
        let lib = self.root.join("usr/lib");
        let dirs = fs::read_dir(&lib).into_iter().flatten().flatten();
        let triplet = dirs
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
        triplet.unwrap_or(lib)
    }

    fn program(&self) -> Command {
        let herd7 = self.root.join("usr/bin/herd7");
        let Some(loader) = &self.loader else {
            return Command::new(herd7);
        };
        let mut command = Command::new(loader);
        command
            .arg("--library-path")
            .arg(self.libraries())
            .arg(herd7);
        command
    }

    fn command(&self, test: &Path) -> Command {
        let mut command = self.program();
        command
            .arg("-set-libdir")
            .arg(self.root.join("usr/share/herdtools7/herd"))
            .args(["-conf", "linux-kernel.cfg"])
            .arg(test);
        command
    }

    /// Runs a test and compares with what it promises.
    fn check(&self, model: &Path, test: &Path) -> Result<()> {
        let text = fs::read_to_string(test)?;
        let mut command = self.command(test);
        command.current_dir(model);
        let output = command
            .output()
            .with_context(|| format!("failed to run {}", sh::shown(&command)))?;
        // It exits with 0 even where it could not read the test, and says so on stderr.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        compare(&text, &said)
    }
}

/// The dynamic loader among the libraries of a package of libc6.
fn loader_in(libraries: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(libraries).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ld-linux") || name.starts_with("ld64")
        })
        .with_context(|| format!("no dynamic loader in {}", libraries.display()))
}

/// Downloads the packages and unpacks them below `root`, which appears when it is whole.
fn fetch(cache: &Cache, root: &Path) -> Result<()> {
    cache.need_space(1, "herd7")?;
    let apt = Suites::open(cache, &[SUITE])?;
    cache.dir("dl")?;
    apt.unpack(&PACKAGES, &cache.path("dl/herd7"), root)
}

fn compare(test: &str, output: &str) -> Result<()> {
    let promised = promised(test)?;
    let seen = observed(output)?;
    ensure!(
        seen == promised,
        "the Result line says {promised}, the model says {seen}:\n{}",
        output.trim()
    );
    Ok(())
}

/// What the first line of a test's first comment says.
fn promised(test: &str) -> Result<&str> {
    let (_, comment) = test
        .split_once("(*")
        .context("the test has no comment, so no Result line")?;
    let mut lines = comment.lines().map(|line| line.trim_matches([' ', '*']));
    let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let name = first
        .strip_prefix("Result: ")
        .context("the first comment does not begin with a Result line")?;
    ensure!(VERDICTS.contains(&name), "unknown result {name}");
    Ok(name)
}

/// What herd7 printed: `Observation NAME VERDICT POSITIVE NEGATIVE`.
fn observed(output: &str) -> Result<&str> {
    if let Some(flag) = output.lines().find(|line| line.starts_with("Flag ")) {
        bail!("the model objects: {flag}");
    }
    let words = output
        .lines()
        .find_map(|line| line.strip_prefix("Observation "))
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let Some([_, verdict, positive, negative]) = words.as_deref() else {
        bail!("herd7 came to no result:\n{}", output.trim());
    };
    ensure!(
        [positive, negative] != [&"0", &"0"],
        "no execution is possible, so the test shows nothing"
    );
    ensure!(VERDICTS.contains(verdict), "herd7 said {verdict}");
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;

    const TEST: &str = "C x\n\n(*\n * Result: Never\n *\n * This one ...\n *)\n\n{\n}\n";

    /// What herd7 7.58 printed, for a test of our own and for spoilt ones.
    const NEVER: &str =
        "Test ipi-fixed Allowed\nStates 1\n0:r0=0; 1:r1=0; 1:r2=1;\nNo\nWitnesses\n\
        Positive: 0 Negative: 1\nCondition exists (0:r0=2 \\/ 1:r2=0)\n\
        Observation ipi-fixed Never 0 1\nTime ipi-fixed 0.00\n\
        Hash=55d4d047a47b1e6e8549aaf6e358e70b\n\n";
    const SOMETIMES: &str = "Test retire-early-broken Allowed\nStates 5\n\
        0:r0=0; 1:r1=0; 1:r2=0;\n0:r0=0; 1:r1=0; 1:r2=1;\n0:r0=0; 1:r1=1; 1:r2=0;\n\
        0:r0=2; 1:r1=0; 1:r2=0;\n0:r0=2; 1:r1=0; 1:r2=1;\nOk\nWitnesses\n\
        Positive: 3 Negative: 2\nCondition exists (1:r1=0 /\\ (0:r0=2 \\/ 1:r2=0))\n\
        Observation retire-early-broken Sometimes 3 2\nTime retire-early-broken 0.01\n\
        Hash=97d0d766658b0e085a0b35d2d98c996d\n\n";
    const RACE: &str = "Test race Allowed\nStates 1\n0:r0=0; 1:r1=0; 1:r2=0;\nOk\nWitnesses\n\
        Positive: 3 Negative: 2\nFlag data-race\nCondition exists (1:r1=0)\n\
        Observation race Sometimes 3 2\nTime race 0.01\n";
    const UNREADABLE: &str =
        "\nWarning: File \"bad.litmus\", line 44, characters 20-21: unexpected ';' \
        (in prog) (User error)\n";
    const VACUOUS: &str = "Test ipi-fixed Allowed\nStates 0\nNo\nWitnesses\n\
        Positive: 0 Negative: 0\nCondition exists (0:r0=2)\nObservation ipi-fixed Never 0 0\n";

    fn error(result: Result<&str>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn a_test_without_a_result_line_fails() {
        for text in [
            "C x\n\n{\n}\n",
            "C x\n(*\n * About.\n * Result: Never\n *)\n",
        ] {
            assert!(error(promised(text)).contains("Result line"), "{text}");
        }
        let other = TEST.replace("Never", "Rarely");
        assert!(error(promised(&other)).contains("Rarely"));
    }

    #[test]
    fn an_output_that_proves_nothing_fails() {
        assert!(error(observed(RACE)).contains("data-race"));
        assert!(error(observed(UNREADABLE)).contains("unexpected ';'"));
        assert!(error(observed(VACUOUS)).contains("shows nothing"));
        assert!(error(observed("")).contains("no result"));
    }

    #[test]
    fn another_result_than_promised_fails() {
        compare(TEST, NEVER).unwrap();
        let text = format!("{:#}", compare(TEST, SOMETIMES).unwrap_err());
        assert!(text.contains("says Never") && text.contains("says Sometimes"));
        let fixed = TEST.replace("Never", "Sometimes");
        assert!(compare(&fixed, NEVER).is_err());
    }

    #[test]
    fn no_tests_is_a_failure_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("README"), "").unwrap();
        let missing = dir.path().join("missing");
        for dir in [dir.path(), &missing] {
            assert_eq!(classify(tests_in(dir).unwrap_err()).0, Exit::NoTests);
        }
        fs::write(dir.path().join("x.litmus"), TEST).unwrap();
        assert_eq!(tests_in(dir.path()).unwrap().len(), 1);
    }
}
