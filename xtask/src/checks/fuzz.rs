//! `fuzz`: programs of system calls around the lifetime of mms, which guest/fuzz.c makes from seeds and runs in a
//! guest. One that fails can be made shorter: steps are left out as long as what is left fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use tempfile::TempDir;

use crate::checks::guests::{variants, Built, TestGuest, Variant, LEFT_OVER};
use crate::checks::mutants;
use crate::guest::console::Report;
use crate::guest::machine::Vm;
use crate::host::arch::{self, Kind};
use crate::host::failure::{fail, Exit};
use crate::host::policy;
use crate::host::sh;
use crate::kernel::workshop::Project;
use crate::results::case::{Case, Recorder, Status};
use crate::series::git;
use crate::series::patch::Selection;

/// Seconds that a guest may be silent: it names each program, the longest of which is given up after a minute.
const SILENCE: Duration = Duration::from_secs(180);
/// Seconds that it gets for all programs, besides those that it is told to run for.
const PROGRAM_TIMEOUT: u64 = 120;
/// Seconds that each shorter program is run for, again and again, before it counts as one that does not fail.
const EACH: u64 = 5;
/// How many of them at most are run in one boot.
const AT_ONCE: usize = 12;

/// What the guest says before it runs a program.
const RUNS: &str = "fuzz: program ";

/// What is run, and where.
#[derive(Args)]
pub struct Options {
    /// The guest: x86_64, arm64, s390, powerpc-radix, powerpc-hash, riscv, arm, loongarch or um.
    #[arg(long, default_value = "x86_64", env = "ARCH", hide_env_values = true)]
    arch: String,
    /// The policy at the start of each program; a program may change it.
    #[arg(long, default_value = policy::DEFAULT, value_parser = policy::ALL)]
    policy: String,
    /// How the guest's kernel is built: test, kasan, kcsan, rt, norust or off.
    #[arg(long, default_value = Variant::TEST.name, env = "VARIANT", hide_env_values = true)]
    variant: String,
    /// The first seed; the next ones follow.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
    /// How long programs are run.
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Run this program, again and again, and none of a seed; those that once failed are in guest/fuzz/.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// If a program fails, look for a shorter one that fails as well. This boots the guest for minutes, many times.
    #[arg(long)]
    minimise: bool,
    /// Of the kernel with this bug of mutants/.
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
}

type Steps = Vec<String>;

/// The steps of a program's text.
fn steps(text: &str) -> Steps {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let kind = one("guest", &options.arch, arch::kinds(&options.arch)?)?;
    let variant = one("variant", &options.variant, variants(&options.variant)?)?;
    variant.check(kind.arch())?;
    let given = match &options.program {
        Some(path) => Some(written(project, &path.to_string_lossy())?),
        None => None,
    };
    let mutant = match &options.mutant {
        Some(name) => Some(mutants::find(&project.repo, name)?),
        None => None,
    };
    let shop = project.workshop(&[], &[kind.arch()])?;
    if let Some(mutant) = &mutant {
        let all = Selection::default();
        let all = shop.series.changes(&shop.base.dir, &all)?;
        git::mutated(&project.cache, &shop.base, &all, &mutant.patch)?;
    }
    let built = Built::build(project, &shop, kind.arch(), variant)?;
    let fuzzer = Fuzzer {
        project,
        kind,
        tree: &shop.tree,
        built,
        dir: tempfile::tempdir()?,
        // One that knows no policy has no choice.
        policy: match variant.policies.contains(&&*options.policy) {
            true => &options.policy,
            false => variant.policies[0],
        },
    };
    let result = fuzzer.fuzz(options, given);
    if mutant.is_some() {
        git::patched(&project.cache, &shop.base, &shop.series, &shop.selection)?;
    }
    result
}

/// The only one of what a name means.
fn one<T>(what: &str, name: &str, mut found: Vec<T>) -> Result<T> {
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        _ => Err(fail(
            Exit::Usage,
            format!("{name} is more than one {what}"),
            "name one of them",
        )),
    }
}

/// A program as the fuzzer itself writes it, by a file or by a seed. It is the same on every machine.
fn written(project: &Project, what: &str) -> Result<Steps> {
    let own = |arch: &&arch::Arch| arch.machine_name == std::env::consts::ARCH;
    let Some(own) = arch::ARCHES.iter().find(own) else {
        return Err(fail(
            Exit::Environment,
            "no compiler for this machine is known",
            "use one of another architecture",
        ));
    };
    let text = sh::capture(Command::new(project.fuzzer(own)?).args(["print", what]));
    let text = text.map_err(|error| {
        fail(
            Exit::Usage,
            format!("{error:#}"),
            "a program is a line for each step, as in guest/fuzz/*.txt",
        )
    })?;
    Ok(steps(&text))
}

struct Fuzzer<'a> {
    project: &'a Project,
    kind: &'static Kind,
    tree: &'a Path,
    built: Built,
    /// For what it is booted with.
    dir: TempDir,
    policy: &'a str,
}

/// What came of a boot.
struct Outcome {
    cases: Vec<Case>,
    /// The program that was running at the first warning, or at the end.
    last: Option<String>,
}

impl Outcome {
    fn of(report: &Report, mut cases: Vec<Case>) -> Self {
        // A guest is not up for long enough.
        cases.retain(|case| !case.name.ends_with("went round"));
        let warned = report.warnings.first();
        let warned = warned.and_then(|warning| report.text.find(warning.as_str()));
        let until = warned.unwrap_or(report.text.len());
        let mut lines = report.text[..until].lines().rev();
        let last = lines.find_map(|line| Some(line.split_once(RUNS)?.1.trim().to_owned()));
        Outcome { cases, last }
    }

    fn failed(&self) -> bool {
        self.cases.iter().any(|case| case.status == Status::Fail)
    }

    /// The program that was running when it failed; none where something was left over by any of them.
    fn guilty(&self) -> Option<&str> {
        let left_over = |case: &&Case| LEFT_OVER.iter().any(|(_, name)| case.name == *name);
        let mut failed = self.cases.iter().filter(|c| c.status == Status::Fail);
        match failed.all(|case| left_over(&case)) {
            true => None,
            false => self.last.as_deref(),
        }
    }
}

impl Fuzzer<'_> {
    /// Boots the guest with programs to be run for some seconds each, and then seeds.
    fn boot(&self, programs: &[Steps], each: u64, seeds: (u32, u64), log: &str) -> Result<Outcome> {
        let arch = self.kind.arch();
        // By number, so that they are run in this order.
        let file = |(index, steps): (usize, &Steps)| {
            (format!("{index:0>3}"), format!("{}\n", steps.join("\n")))
        };
        let programs: Vec<_> = programs.iter().enumerate().map(file).collect();
        let files = self.project.fuzz_files(arch, &programs)?;
        let built = Built {
            initramfs: self
                .project
                .initramfs_with(arch, "test", files, self.dir.path())?,
            ..self.built.clone()
        };
        let (seed, seconds) = seeds;
        let guest = TestGuest {
            vm: Vm::new(self.project, arch, &built.image)?,
            tree: self.tree,
            kind: self.kind,
            built: &built,
            seconds: seconds + each * programs.len() as u64,
            program: PROGRAM_TIMEOUT,
            firmware: None,
            silence: Some(SILENCE),
            kunit: false,
            until_red: false,
        };
        let append =
            format!("LAZY_TLB_SEED={seed} LAZY_TLB_FUZZ={seconds} LAZY_TLB_FUZZ_EACH={each}");
        let (report, cases) = guest.run(self.policy, &append, log)?;
        Ok(Outcome::of(&report, cases))
    }

    fn fuzz(&self, options: &Options, given: Option<Steps>) -> Result<Exit> {
        let log = format!("fuzz-{}-{}", self.kind.name, self.policy);
        let started = Instant::now();
        let outcome = match &given {
            Some(steps) => self.boot(std::slice::from_ref(steps), options.seconds, (0, 0), &log)?,
            None => self.boot(&[], 0, (options.seed, options.seconds), &log)?,
        };
        let mut recorder = Recorder::default();
        recorder.ended("fuzz", started, Ok(outcome.cases.clone()));
        let exit = recorder.finish();
        if !outcome.failed() {
            return Ok(exit);
        }
        let guilty = match (given, outcome.guilty()) {
            (Some(steps), _) => steps,
            (None, Some(seed)) => {
                println!("\nprogram {seed}");
                written(self.project, seed)?
            }
            (None, None) => {
                println!("\nsomething is left over, by no program more than by others");
                let first = (options.seed..).take(AT_ONCE);
                let first = first.map(|seed| written(self.project, &seed.to_string()));
                let mut first = first.collect::<Result<Vec<_>>>()?;
                match options.minimise {
                    false => return Ok(exit),
                    true => match self.first_that_fails(&first)? {
                        None => return Ok(exit),
                        Some(index) => first.swap_remove(index),
                    },
                }
            }
        };
        println!("{}", guilty.join("\n"));
        if options.minimise {
            self.minimise(guilty, options.mutant.as_deref())?;
        }
        Ok(exit)
    }

    /// The last line printed is where the shorter program is.
    fn minimise(&self, guilty: Steps, mutant: Option<&str>) -> Result<()> {
        if self
            .first_that_fails(std::slice::from_ref(&guilty))?
            .is_none()
        {
            println!("it does not fail by itself in {EACH} s");
            return Ok(());
        }
        let least = least(guilty, |programs| self.first_that_fails(programs))?;
        let mutant_line = mutant.map_or(String::new(), |name| format!("# mutant {name}\n"));
        let name = format!("{}-{}.txt", mutant.unwrap_or("fuzz"), self.kind.name);
        let path = self.project.cache.path("fuzz").join(name);
        let text = format!("{mutant_line}{}\n", least.join("\n"));
        sh::write_whole(&path, text.as_bytes())?;
        println!("\n{} steps:\n{text}{}", least.len(), path.display());
        Ok(())
    }

    fn first_that_fails(&self, programs: &[Steps]) -> Result<Option<usize>> {
        for (group, first) in programs.chunks(AT_ONCE).zip((0..).step_by(AT_ONCE)) {
            let outcome = self.boot(group, EACH, (0, 0), "fuzz-minimise")?;
            if !outcome.failed() {
                continue;
            }
            let guilty = outcome.guilty().and_then(|name| name.rsplit('/').next());
            if let Some(index) = guilty.and_then(|name| name.parse::<usize>().ok()) {
                return Ok(Some(first + index));
            }
            if group.len() == 1 {
                return Ok(Some(first));
            }
            // Something is left over, and only a boot of its own tells by which.
            for (program, index) in group.iter().zip(first..) {
                if self
                    .first_that_fails(std::slice::from_ref(program))?
                    .is_some()
                {
                    return Ok(Some(index));
                }
            }
        }
        Ok(None)
    }
}

/// Leaves steps out, first all of a task, then halves and so on, while what is left fails. `fails` is asked about
/// several programs, and names the first that does.
fn least(
    mut steps: Steps,
    mut fails: impl FnMut(&[Steps]) -> Result<Option<usize>>,
) -> Result<Steps> {
    // 0: those of a task.
    let mut size = 0;
    let mut from = 0;
    loop {
        let mut shorter = match size {
            0 => without_a_task(&steps),
            _ => without_a_part(&steps, size),
        };
        shorter.retain(|program| !program.is_empty());
        // Those before the one that failed last did not fail then.
        from = from.min(shorter.len());
        shorter.rotate_left(from);
        let failed = match shorter.is_empty() {
            true => None,
            false => fails(&shorter)?,
        };
        match failed {
            Some(index) => {
                from = (from + index) % shorter.len();
                steps = shorter.swap_remove(index);
                println!("{} steps still fail", steps.len());
            }
            None if size == 1 => return Ok(steps),
            None => {
                size = match size {
                    0 => steps.len().div_ceil(2),
                    _ => size.div_ceil(2),
                };
                from = 0;
            }
        }
    }
}

fn task(step: &str) -> &str {
    step.split(' ').next().unwrap_or_default()
}

fn without_a_task(steps: &[String]) -> Vec<Steps> {
    let mut tasks: Vec<&str> = steps.iter().map(|step| task(step)).collect();
    tasks.sort();
    tasks.dedup();
    let others = |left_out: &&str| {
        let others = steps.iter().filter(|step| task(step) != *left_out);
        others.cloned().collect()
    };
    tasks.iter().map(others).collect()
}

fn without_a_part(steps: &[String], size: usize) -> Vec<Steps> {
    let starts = (0..steps.len()).step_by(size);
    starts
        .map(|start| {
            let end = (start + size).min(steps.len());
            [&steps[..start], &steps[end..]].concat()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::console::End;
    use crate::host::failure::classify;

    fn outcome(text: &str, cases: Vec<Case>) -> Outcome {
        let report = Report::new(text.into(), End::Exited, 4, Path::new("gone"));
        Outcome::of(&report, cases)
    }

    #[test]
    fn the_program_that_ran_last_is_guilty_of_a_crash_and_of_no_leak() {
        let text = "fuzz: program 7\nfuzz: program /fuzz/002\n[    1.0] BUG: ...\n";
        let guilty = |text: &str| {
            let crash = outcome(text, vec![Case::failed("boot", "")]);
            crash.guilty().map(str::to_owned)
        };
        assert_eq!(guilty(text).as_deref(), Some("/fuzz/002"));
        let goes_on = format!("{text}fuzz: program 8\n");
        assert_eq!(guilty(&goes_on).as_deref(), Some("/fuzz/002"));
        let leak = outcome(text, vec![Case::failed(LEFT_OVER[0].1, "")]);
        assert!(leak.failed() && leak.guilty().is_none());
        assert!(!outcome(text, vec![Case::failed("ksmd went round", "")]).failed());
    }

    #[test]
    fn comments_are_no_steps() {
        assert_eq!(
            steps("# mutant x\n\n0 fork 1\n1 exit\n"),
            ["0 fork 1", "1 exit"]
        );
    }

    /// What is left of so many steps of four tasks if all of `needed` are needed.
    fn left(count: usize, needed: &[usize]) -> (Vec<usize>, usize) {
        let step = |n: usize| format!("{} nap {n}", n % 4);
        let wanted: Steps = needed.iter().map(|n| step(*n)).collect();
        let mut asked = 0;
        let fails = |programs: &[Steps]| {
            asked += 1;
            let fails = |program: &Steps| wanted.iter().all(|step| program.contains(step));
            Ok(programs.iter().position(fails))
        };
        let steps = least((0..count).map(step).collect(), fails).unwrap();
        let number = |step: &String| step.rsplit(' ').next().unwrap().parse().unwrap();
        (steps.iter().map(number).collect(), asked)
    }

    #[test]
    fn what_is_not_needed_is_left_out() {
        for needed in [
            &[0][..],
            &[5],
            &[63],
            &[0, 63],
            &[3, 7, 31, 40],
            &[1, 2, 3, 4, 5],
        ] {
            let (steps, asked) = left(64, needed);
            assert_eq!(steps, needed);
            assert!(asked < 40, "{needed:?}: {asked} boots");
        }
        assert_eq!(left(1, &[0]).0, [0]);
    }

    #[test]
    fn every_kept_program_names_its_mutant_and_can_be_read() {
        let repo = crate::kernel::workshop::repository();
        let cache = tempfile::tempdir().unwrap();
        let project = Project {
            repo: repo.clone(),
            cache: crate::host::cache::Cache::at(cache.path().into()).unwrap(),
            linux: None,
        };
        for (name, text) in project.corpus().unwrap() {
            let mutant = text.lines().find_map(|l| l.strip_prefix("# mutant "));
            mutants::find(&repo, mutant.unwrap_or_default()).unwrap();
            let path = repo.join("guest/fuzz").join(&name);
            assert_eq!(
                written(&project, &path.to_string_lossy()).unwrap(),
                steps(&text)
            );
        }
        let first = written(&project, "1").unwrap();
        assert_eq!(first, written(&project, "1").unwrap());
        let bad = cache.path().join("bad.txt");
        std::fs::write(&bad, "0 fork 1\n0 forks 2\n").unwrap();
        let (exit, error) = classify(written(&project, &bad.to_string_lossy()).unwrap_err());
        assert_eq!(exit, Exit::Usage);
        assert!(error.to_string().contains("bad.txt:2"), "{error}");
    }

    #[test]
    fn only_one_guest_is_meant() {
        let guest = |name: &str| one("guest", name, arch::kinds(name).unwrap());
        assert_eq!(guest("powerpc-hash").unwrap().name, "powerpc-hash");
        assert_eq!(classify(guest("powerpc").unwrap_err()).0, Exit::Usage);
    }
}
