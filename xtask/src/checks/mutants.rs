//! `mutants`: whether the tests notice when the series is broken on purpose.
//!
//! A mutant is one bug, as a patch to the patched tree in `mutants/`. It is built and booted like
//! any other kernel. Where a test goes red the mutant is caught, where all pass it has survived.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::checks::guests::{self, Built, TestGuest, Variant};
use crate::checks::litmus;
use crate::guest::console::{End, Report};
use crate::guest::ktap;
use crate::host::arch::{self, Kind};
use crate::host::failure::{classify, fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::{Case, Status};
use crate::results::table;
use crate::series::git;
use crate::series::patch::{on_top, Changes, Entry, Patch, Selection};

/// Where the mutants are.
const DIR: &str = "mutants";
/// What stands in place of a guest where a litmus test is changed.
const LITMUS: &str = "litmus";
/// Seconds that a program has in a guest: nothing else runs beside it, and some bugs are hangs.
const PROGRAM_TIMEOUT: u64 = 150;

/// Which mutants, and what to do with them.
#[derive(Args)]
pub struct Options {
    /// Only those that are shown on x86_64, arm64, s390, powerpc, riscv, arm, loongarch, a guest, or by litmus.
    #[arg(long, default_value = arch::ALL, env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Only the one of that name, on whatever guest; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Say what they are, and try none.
    #[arg(long)]
    list: bool,
    /// Write what became of each to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a mutant is shown on.
#[derive(Clone, Copy, Debug)]
enum Shown {
    /// A guest under a policy.
    Guest(&'static Kind, &'static str),
    /// The memory model.
    Litmus,
}

/// A bug.
#[derive(Debug)]
pub struct Mutant {
    /// The file's name without `.patch`.
    pub name: String,
    /// The bug: what it is as the subject, and the change.
    pub patch: Patch,
    shown: Shown,
    /// How the guest's kernel is built.
    variant: &'static Variant,
    /// More words for the kernel's command line, for a bug that takes longer to show.
    words: String,
}

impl Mutant {
    /// Reads a mutant: a patch whose message has `Arch:`, `Policy:` and `Variant:` where those are others
    /// than the default, and `Words:` for the kernel's command line.
    fn parse(name: &str, text: &str) -> Result<Self> {
        let entry = Entry::new(format!("{name}.patch"));
        let patch = Patch::parse(DIR, entry, text)?;
        let bad = |what: String| {
            fail(
                Exit::Patch,
                format!("{DIR}/{name}.patch: {what}"),
                "a mutant is a patch whose message has `Arch:` and may have `Policy:`, `Variant:` and `Words:`",
            )
        };
        let value = |key: &str| {
            let mut lines = patch.body.lines();
            lines.find_map(|line| Some(line.strip_prefix(key)?.trim()))
        };
        let policy = match value("Policy:") {
            None => policy::DEFAULT,
            Some(name) => *policy::ALL
                .iter()
                .find(|policy| **policy == name)
                .ok_or_else(|| bad(format!("there is no policy {name}")))?,
        };
        let arch = value("Arch:").ok_or_else(|| bad("no `Arch:` line".into()))?;
        let shown = match arch::KINDS.iter().find(|kind| kind.name == arch) {
            Some(kind) => Shown::Guest(kind, policy),
            None if arch == LITMUS => Shown::Litmus,
            None => return Err(bad(format!("there is no guest {arch}"))),
        };
        let variant = match value("Variant:") {
            None => &Variant::TEST,
            Some(name) => match guests::variants(name).as_deref() {
                Ok([variant]) => variant,
                _ => return Err(bad(format!("there is no variant {name}"))),
            },
        };
        if let Shown::Guest(kind, _) = shown {
            let unfit = |_| bad(format!("{} is not for {}", variant.name, kind.name));
            variant.check(kind.arch()).map_err(unfit)?;
        }
        if patch.touches().is_empty() {
            return Err(bad("it changes nothing".into()));
        }
        Ok(Mutant {
            name: name.into(),
            shown,
            variant,
            words: value("Words:").unwrap_or_default().to_owned(),
            patch,
        })
    }

    /// The guest's name.
    fn arch(&self) -> &'static str {
        match self.shown {
            Shown::Guest(kind, _) => kind.name,
            Shown::Litmus => LITMUS,
        }
    }

    /// The same with the policy, for a person.
    fn guest(&self) -> String {
        match self.shown {
            Shown::Guest(kind, policy) => format!("{}, {policy}", self.variant.guest(kind.name)),
            Shown::Litmus => LITMUS.into(),
        }
    }
}

/// Every mutant of a repository, by name.
pub fn load(repo: &Path) -> Result<Vec<Mutant>> {
    let entries = std::fs::read_dir(repo.join(DIR)).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "patch"))
        .collect();
    paths.sort();
    let parse = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Mutant::parse(&name, &std::fs::read_to_string(path)?)
    };
    paths.iter().map(parse).collect()
}

/// The one of that name.
pub fn find(repo: &Path, name: &str) -> Result<Mutant> {
    let all = load(repo)?;
    let known = all.into_iter().find(|mutant| mutant.name == name);
    known.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> anyhow::Error {
    fail(
        Exit::Usage,
        format!("there is no mutant {name}"),
        "see `cargo xtask check mutants --list`",
    )
}

/// Those that are meant, of which there must be some.
fn select(mutants: Vec<Mutant>, arch: &str, only: &[String]) -> Result<Vec<Mutant>> {
    let known = |name: &&String| mutants.iter().any(|mutant| mutant.name == **name);
    if let Some(name) = only.iter().find(|name| !known(name)) {
        return Err(unknown(name));
    }
    let kinds = match arch {
        LITMUS => Vec::new(),
        _ => arch::kinds(arch)?,
    };
    let meant = |mutant: &Mutant| {
        let here = match mutant.shown {
            Shown::Guest(kind, _) => kinds.iter().any(|meant| meant.name == kind.name),
            Shown::Litmus => [LITMUS, arch::ALL].contains(&arch),
        };
        match only {
            [] => here,
            // Who names one means it, be its architecture among those that `all` is or not.
            _ => only.contains(&mutant.name) && (here || arch == arch::ALL),
        }
    };
    let selected: Vec<Mutant> = mutants.into_iter().filter(meant).collect();
    if selected.is_empty() {
        return Err(fail(
            Exit::NoTests,
            "no mutant is selected",
            "see `cargo xtask check mutants --list`",
        ));
    }
    Ok(selected)
}

/// What became of a mutant.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    name: &'a str,
    arch: &'static str,
    caught: bool,
    /// The first test that went red; empty where none did.
    by: String,
    /// All that did, with those that were still to come.
    red: Vec<String>,
    /// Why it could not be tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// And how to exit because of that.
    #[serde(skip)]
    exit: Exit,
}

impl<'a> Outcome<'a> {
    fn new(mutant: &'a Mutant, tried: Result<Red>) -> Self {
        let none = Outcome {
            name: &mutant.name,
            arch: mutant.arch(),
            caught: false,
            by: String::new(),
            red: Vec::new(),
            error: None,
            exit: Exit::Ok,
        };
        match tried {
            Ok(red) => Outcome {
                caught: !red.all.is_empty(),
                by: red.first,
                red: red.all,
                ..none
            },
            Err(error) => {
                let (exit, error) = classify(error);
                let error = Some(format!("{error:#}"));
                Outcome {
                    error,
                    exit,
                    ..none
                }
            }
        }
    }

    /// In a few words.
    fn verdict(&self) -> String {
        match &self.error {
            Some(error) => format!(
                "NOT TRIED: {}",
                error.lines().next().unwrap_or_default().trim()
            ),
            None if self.caught => self.by.clone(),
            None => "SURVIVED".into(),
        }
    }
}

/// The tests that went red.
#[derive(Debug, Default, PartialEq, Eq)]
struct Red {
    /// The one that did so first, or was running when the guest ended.
    first: String,
    all: Vec<String>,
}

impl Red {
    fn of(cases: &[Case]) -> Self {
        let red = cases.iter().filter(|case| case.status == Status::Fail);
        let all: Vec<String> = red.map(|case| case.name.clone()).collect();
        let first = all.first().cloned().unwrap_or_default();
        Red { first, all }
    }

    /// Of a guest, whose console knows better which was the first.
    fn of_guest(report: &Report, cases: &[Case]) -> Self {
        let red = Red::of(cases);
        if red.all.is_empty() {
            return red;
        }
        let course = ktap::course(&report.text);
        let place = course.running.as_deref().unwrap_or("boot");
        let words = report.warnings.first().map_or(String::new(), |warning| {
            // Which CPU and process it was says nothing about the bug.
            format!(": {}", warning.split(", CPU#").next().unwrap_or(warning))
        });
        let first = match course.failed.into_iter().next() {
            Some(failure) => failure.test,
            None if report.end != End::Exited && !report.panicked() => {
                format!("hang in {place}{words}")
            }
            None if !words.is_empty() => format!("{place}{words}"),
            None => red.first,
        };
        Red { first, ..red }
    }
}

/// Tries the mutants; the last line printed counts them.
pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let mutants = select(load(&project.repo)?, &options.arch, &options.only)?;
    if options.list {
        for mutant in &mutants {
            println!("{} ({})", mutant.name, mutant.guest());
            println!("    {}", mutant.patch.subject);
        }
        return Ok(Exit::Ok);
    }
    let base = project.base()?;
    let all = project
        .series()?
        .changes(&base.dir, &Selection::default())?;
    // Before anything is built, which takes minutes for each.
    for mutant in &mutants {
        on_top(&base.dir, &all, &mutant.patch)?;
    }
    let kinds: Vec<&Kind> = mutants
        .iter()
        .filter_map(|mutant| match mutant.shown {
            Shown::Guest(kind, _) => Some(kind),
            Shown::Litmus => None,
        })
        .collect();
    let shop = match kinds.is_empty() {
        true => None,
        false => Some(project.workshop(&[], &arch::of_kinds(&kinds))?),
    };
    let mut outcomes = Vec::new();
    for mutant in &mutants {
        println!("\n== {} ({})", mutant.name, mutant.guest());
        let tried = match (mutant.shown, &shop) {
            (Shown::Guest(kind, policy), Some(shop)) => {
                in_guest(project, shop, &all, mutant, kind, policy)
            }
            _ => in_model(project, &base.dir, &all, mutant),
        };
        let outcome = Outcome::new(mutant, tried);
        match &outcome.error {
            Some(error) => eprintln!("error: {error}"),
            None => println!("== {}: {}", mutant.name, outcome.verdict()),
        }
        outcomes.push(outcome);
    }
    if let Some(shop) = &shop {
        let all = &shop.selection;
        git::patched(&project.cache, &shop.base, &shop.series, all)?;
    }
    if let Some(path) = &options.json {
        sh::write_whole(path, json(&outcomes)?.as_bytes())?;
    }
    println!("\n{}\n", table(&mutants, &outcomes));
    let [caught, survived] = counts(&outcomes);
    println!("{caught} caught, {survived} survived");
    Ok(exit(&outcomes))
}

/// Builds and boots a mutant.
fn in_guest(
    project: &Project,
    shop: &Workshop<'_>,
    all: &Changes,
    mutant: &Mutant,
    kind: &'static Kind,
    policy: &str,
) -> Result<Red> {
    // The same folder as `shop.tree`: kbuild goes on from what it has.
    git::mutated(&project.cache, &shop.base, all, &mutant.patch)?;
    let built = Built::build(project, shop, kind.arch(), mutant.variant)?;
    let guest = TestGuest::new(project, shop, kind, &built)?.until_red(PROGRAM_TIMEOUT);
    let (report, cases) = guest.run(policy, &mutant.words, &format!("mutant-{}", mutant.name))?;
    Ok(Red::of_guest(&report, &cases))
}

/// Asks the memory model about the litmus tests that a mutant changes.
fn in_model(project: &Project, base: &Path, all: &Changes, mutant: &Mutant) -> Result<Red> {
    let dir = tempfile::tempdir()?;
    for (path, content) in on_top(base, all, &mutant.patch)? {
        if let Some(content) = content {
            content.write(&dir.path().join(path))?;
        }
    }
    let cases = litmus::cases_in(project, &dir.path().join(litmus::DIR))?;
    Ok(Red::of(&cases))
}

/// How many were caught and how many survived; one that could not be tried did neither.
fn counts(outcomes: &[Outcome<'_>]) -> [usize; 2] {
    let tried = outcomes.iter().filter(|outcome| outcome.error.is_none());
    let caught = tried.clone().filter(|outcome| outcome.caught).count();
    [caught, tried.count() - caught]
}

/// A survivor fails; else the first that could not be tried says how to exit.
fn exit(outcomes: &[Outcome<'_>]) -> Exit {
    if counts(outcomes)[1] != 0 {
        return Exit::Failed;
    }
    let mut exits = outcomes.iter().map(|outcome| outcome.exit);
    exits.find(|exit| *exit != Exit::Ok).unwrap_or(Exit::Ok)
}

fn json(outcomes: &[Outcome<'_>]) -> Result<String> {
    let summary = serde_json::json!({
        "mutants": outcomes.len(),
        "caught": counts(outcomes)[0],
        "results": outcomes,
    });
    Ok(serde_json::to_string_pretty(&summary)?)
}

fn table(mutants: &[Mutant], outcomes: &[Outcome<'_>]) -> String {
    let rows = mutants
        .iter()
        .zip(outcomes)
        .map(|(mutant, outcome)| [mutant.name.clone(), mutant.guest(), outcome.verdict()]);
    table::of(["mutant", "guest", "caught by"], rows, &[0, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A mutant of the fixture's series, with these lines in its message.
    fn text(lines: &str) -> String {
        format!(
            "Subject: fork: forget it\n\nWhy it is a bug.\n\n{lines}\n---\n\
             diff --git a/kernel/fork.c b/kernel/fork.c\n--- a/kernel/fork.c\n+++ b/kernel/fork.c\n\
             @@ -5 +5,0 @@\n-first\n"
        )
    }

    fn mutant(name: &str, lines: &str) -> Mutant {
        Mutant::parse(name, &text(lines)).unwrap()
    }

    fn console(text: &str, end: End) -> Report {
        Report::new(text.into(), end, 4, Path::new("gone/console.log"))
    }

    const SILENT: End = End::Silent(Duration::from_secs(660));

    #[test]
    fn a_mutant_names_its_guest_and_policy() {
        let plain = mutant("a", "Arch: powerpc-hash");
        assert_eq!(
            (plain.arch(), plain.guest().as_str()),
            ("powerpc-hash", "powerpc-hash, shootdown")
        );
        assert_eq!(plain.patch.subject, "fork: forget it");
        let other = mutant(
            "a",
            "Arch: x86_64\nPolicy: handover\nVariant: kasan\nWords: A=1 B=2",
        );
        assert_eq!(other.guest(), "kasan/x86_64, handover");
        assert_eq!((&*plain.words, &*other.words), ("", "A=1 B=2"));
        assert_eq!(mutant("a", "Arch: litmus").guest(), "litmus");
    }

    #[test]
    fn a_malformed_mutant_is_refused_by_name() {
        let no_diff = "Subject: a\n\nb\n\nArch: s390\n---\n".to_owned();
        for (bad, what) in [
            (text(""), "no `Arch:`"),
            (text("Arch: vax"), "no guest vax"),
            // That is two guests.
            (text("Arch: powerpc"), "no guest powerpc"),
            (text("Arch: s390\nPolicy: bogus"), "no policy bogus"),
            (text("Arch: s390\nVariant: bogus"), "no variant bogus"),
            (text("Arch: s390\nVariant: kasan"), "not for s390"),
            (no_diff, "changes nothing"),
            ("Arch: s390\n---\n".into(), "no Subject"),
        ] {
            let (exit, error) = classify(Mutant::parse("bad", &bad).unwrap_err());
            let said = error.to_string();
            assert_eq!(exit, Exit::Patch);
            assert!(
                said.contains("mutants/bad.patch") && said.contains(what),
                "{said}"
            );
        }
    }

    #[test]
    fn mutants_are_selected_by_guest_and_name() {
        let names = |arch: &str, only: &[&str]| {
            let mutants = vec![
                mutant("a", "Arch: x86_64"),
                mutant("b", "Arch: powerpc-hash"),
                mutant("c", "Arch: litmus"),
                mutant("e", "Arch: riscv"),
            ];
            let only: Vec<String> = only.iter().map(|name| name.to_string()).collect();
            select(mutants, arch, &only)
                .map(|found| found.into_iter().map(|m| m.name).collect::<String>())
                .map_err(|error| classify(error).0)
        };
        assert_eq!(names("all", &[]), Ok("abc".into()));
        assert_eq!(names("powerpc", &[]), Ok("b".into()));
        assert_eq!(names("litmus", &[]), Ok("c".into()));
        assert_eq!(names("all", &["a", "c"]), Ok("ac".into()));
        assert_eq!(names("all", &["e"]), Ok("e".into()));
        assert_eq!(names("s390", &[]), Err(Exit::NoTests));
        assert_eq!(names("powerpc", &["a"]), Err(Exit::NoTests));
        assert_eq!(names("all", &["d"]), Err(Exit::Usage));
        assert_eq!(names("vax", &[]), Err(Exit::Usage));
    }

    #[test]
    fn the_mutants_of_this_repository_can_be_read() {
        let mutants = load(&crate::kernel::workshop::repository()).unwrap();
        assert!(!mutants.is_empty());
    }

    #[test]
    fn a_mutant_is_caught_by_the_test_that_fails_first() {
        let report = console(
            include_str!("../../tests/consoles/ktap-fail.log"),
            End::Exited,
        );
        let cases = [
            Case::passed("kunit/lazy_tlb/shoots_none"),
            Case::failed("kselftest/exit/exit.sparse", ""),
            Case::failed("kunit/lazy_tlb/shoots_one", ""),
        ];
        let red = Red::of_guest(&report, &cases);
        assert_eq!(red.first, "kunit/lazy_tlb/shoots_one");
        assert_eq!(
            red.all,
            ["kselftest/exit/exit.sparse", "kunit/lazy_tlb/shoots_one"]
        );
    }

    #[test]
    fn a_crash_counts_for_the_test_that_was_running() {
        let text = include_str!("../../tests/consoles/ktap-crash.log");
        let red = Red::of_guest(&console(text, End::Exited), &[Case::failed("boot", "")]);
        assert_eq!(
            red.first,
            "kunit/lazy_tlb/(after shoots_one): \
             BUG: kernel NULL pointer dereference, address: 0000000000000008"
        );
        // A kernel that gives up, and an emulator that stays, are no hang.
        let stays = Red::of_guest(&console(text, SILENT), &[Case::failed("boot", "")]);
        assert_eq!(stays.first, red.first);
        let early = include_str!("../../tests/consoles/warn.log");
        let red = Red::of_guest(&console(early, End::Exited), &[Case::failed("kunit", "")]);
        assert_eq!(
            red.first,
            "boot: WARNING: kernel/fork.c:706 at __mmdrop+0x8c/0x140"
        );
    }

    #[test]
    fn a_hang_is_told_from_a_failure() {
        let text = include_str!("../../tests/consoles/ktap-hang.log");
        let red = Red::of_guest(&console(text, SILENT), &[Case::failed("boot", "")]);
        assert_eq!(
            red.first,
            "hang in kselftest/exit/exit.blocked.nothing_mapped"
        );
    }

    #[test]
    fn all_green_is_a_survivor() {
        let text = include_str!("../../tests/consoles/ktap-pass.log");
        let cases = [Case::passed("boot"), Case::skipped("mmu")];
        let red = Red::of_guest(&console(text, End::Exited), &cases);
        assert_eq!(red, Red::default());
        let mutant = mutant("a", "Arch: s390");
        let outcome = Outcome::new(&mutant, Ok(red));
        assert_eq!(
            (outcome.caught, outcome.verdict().as_str()),
            (false, "SURVIVED")
        );
    }

    #[test]
    fn a_survivor_fails_and_what_could_not_be_tried_has_its_own_exit() {
        let mutant = mutant("a", "Arch: s390");
        let red = || Red {
            first: "kunit/x".into(),
            all: vec!["kunit/x".into()],
        };
        let caught = || Outcome::new(&mutant, Ok(red()));
        let survived = || Outcome::new(&mutant, Ok(Red::default()));
        let broken = || {
            let error = fail(Exit::Build, "make failed\nmore", "look");
            Outcome::new(&mutant, Err(error))
        };
        assert_eq!(exit(&[caught()]), Exit::Ok);
        assert_eq!(exit(&[caught(), broken()]), Exit::Build);
        assert_eq!(exit(&[broken(), survived()]), Exit::Failed);
        let all = [caught(), survived(), broken()];
        assert_eq!(counts(&all), [1, 1]);
        assert_eq!(broken().verdict(), "NOT TRIED: make failed");

        let value: serde_json::Value = serde_json::from_str(&json(&all).unwrap()).unwrap();
        assert_eq!(
            (&value["mutants"], &value["caught"]),
            (&3.into(), &1.into())
        );
        let first = &value["results"][0];
        assert_eq!(
            (&first["name"], &first["arch"]),
            (&"a".into(), &"s390".into())
        );
        assert_eq!(
            (&first["by"], &first["red"][0]),
            (&"kunit/x".into(), &"kunit/x".into())
        );
        assert_eq!(value["results"][1]["caught"], false);
    }
}
