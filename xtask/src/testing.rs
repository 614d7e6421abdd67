//! `test`: every stage, each result a case.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::failure::{fail, Exit};
use crate::guest::{self, Guest, GuestFile};
use crate::kbuild::Build;
use crate::project::{Project, Workshop};
use crate::report::{Case, Recorder};
use crate::series::{Content, Selection};
use crate::{compare, disasm, ktap, mail, sh, tidy, tree};

/// The stages, in order; `--stage` names them.
pub const STAGES: [&str; 7] = ["xtask", "tidy", "series", "off", "ktap", "guests", "run"];
/// A policy that no kernel knows.
const BOGUS: &str = "bogus";
/// The selftests, each of which may take minutes under emulation.
const TEST_TIMEOUT: Duration = Duration::from_secs(1200);
/// Somewhat longer than the guest gives one program.
const TEST_SILENCE: Duration = Duration::from_secs(330);

/// What `test` is asked for.
pub struct Plan<'a> {
    /// The architecture.
    pub arch: &'static Arch,
    /// Patches to leave out of what is built.
    pub skip: &'a [String],
    /// Only these stages; all where empty.
    pub stages: &'a [String],
    /// Where all cases go as JSON.
    pub json: Option<&'a Path>,
}

/// Runs the stages, prints every case, and counts.
pub fn run(project: &Project, plan: &Plan<'_>) -> Result<Exit> {
    if let Some(unknown) = plan.stages.iter().find(|s| !STAGES.contains(&s.as_str())) {
        return Err(fail(
            Exit::Usage,
            format!("unknown stage {unknown}"),
            format!("use some of: {}", STAGES.join(",")),
        ));
    }
    let wanted = |stage: &str| plan.stages.is_empty() || plan.stages.iter().any(|s| s == stage);
    let mut recorder = Recorder::default();
    if wanted("xtask") {
        recorder.stage("xtask", || own_tests(project));
    }
    // Without tools and trees nothing below can run; that they come is a case of its own.
    let mut shop = None;
    recorder.stage("setup", || {
        shop = Some(project.workshop(plan.skip)?);
        Ok(vec![Case::passed("setup/tools, base tree, patched tree")])
    });
    if let Some(shop) = &shop {
        if wanted("tidy") {
            recorder.stage("tidy", || tidy::cases(project));
        }
        if wanted("series") {
            recorder.stage("series", || series(project, shop));
        }
        if wanted("off") {
            recorder.stage("off", || disasm::option_off(shop, plan.arch));
        }
        if wanted("ktap") {
            recorder.stage("ktap", || ktap::self_test(&shop.tree));
        }
        if wanted("guests") {
            recorder.stage("guests", || guests(project, shop, plan.arch));
        }
        if wanted("run") {
            recorder.stage("run", || main_job(project, shop, plan.arch));
        }
    }
    if let Some(path) = plan.json {
        recorder.write_json(path)?;
    }
    Ok(recorder.finish())
}

/// xtask's own tests, by cargo.
fn own_tests(project: &Project) -> Result<Vec<Case>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(&project.repo)
        .args(["test", "--package", "xtask", "--color", "never"]);
    let log = project.cache.dir("log")?.join("cargo-test.log");
    let mut lines = Vec::new();
    let remedy = "run `cargo test` to see it alone";
    let ran = sh::logged(&cargo, &log, Exit::Failed, remedy, |line| {
        lines.push(line.to_owned())
    });
    let mut cases: Vec<Case> = lines.iter().filter_map(|line| cargo_case(line)).collect();
    if let Err(error) = ran {
        // Says what the failing tests printed, and covers a crate that does not compile.
        cases.push(Case::failed("xtask/cargo test", format!("{error:#}")));
    }
    Ok(cases)
}

/// `test module::name ... ok`.
fn cargo_case(line: &str) -> Option<Case> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = format!("xtask/{name}");
    Some(match result {
        "ok" => Case::passed(name),
        "FAILED" => Case::failed(name, ""),
        _ => Case::skipped(name),
    })
}

/// What is mailed applies with `git am` and gives the tree that is built; `apply` can be undone.
fn series(project: &Project, shop: &Workshop<'_>) -> Result<Vec<Case>> {
    let cache = &project.cache;
    let dir = tempfile::tempdir_in(cache.dir("tree")?)?;
    let mails = mail::export(cache, &shop.base, &shop.series, &dir.path().join("mails"))?;
    let patches: Vec<&PathBuf> = mails
        .iter()
        .filter(|m| !m.ends_with("0000-cover-letter.patch"))
        .collect();
    let mut cases = vec![match patches.len() {
        0 => Case::failed("series/export", "the series has no patch"),
        _ => Case::passed("series/export"),
    }];

    let whole = dir.path().join("whole");
    tree::export(
        cache,
        &shop.base,
        &shop.series,
        &Selection::default(),
        &whole,
        tree::Checkout::Nothing,
    )?;
    let pristine = dir.path().join("pristine");
    let none = Selection {
        upto: Some(0),
        skip: Vec::new(),
    };
    tree::export(
        cache,
        &shop.base,
        &shop.series,
        &none,
        &pristine,
        tree::Checkout::Touched,
    )?;
    cases.push(Case::of("series/git am gives the same tree", {
        git_am(&pristine, &patches, &dir.path().join("am.log")).and_then(|()| {
            let hash = |dir: &Path| sh::capture(sh::git(dir).args(["rev-parse", "HEAD^{tree}"]));
            let (mailed, built) = (hash(&pristine)?, hash(&whole)?);
            anyhow::ensure!(
                mailed == built,
                "git am gives {mailed}, `tree` gives {built}"
            );
            Ok(())
        })
    }));

    let scratch = dir.path().join("scratch");
    scratch_tree(&scratch, shop)?;
    let before = tree::snapshot(&scratch)?;
    cases.push(Case::of("series/apply", {
        tree::apply(&shop.series, &scratch, false).and_then(|()| {
            anyhow::ensure!(tree::snapshot(&scratch)? != before, "apply changed nothing");
            Ok(())
        })
    }));
    cases.push(Case::of(
        "series/apply --reverse leaves the tree as it was",
        {
            tree::apply(&shop.series, &scratch, true).and_then(|()| {
                anyhow::ensure!(
                    tree::snapshot(&scratch)? == before,
                    "something is left over"
                );
                Ok(())
            })
        },
    ));
    Ok(cases)
}

fn git_am(dir: &Path, patches: &[&PathBuf], log: &Path) -> Result<()> {
    let mut git = sh::git(dir);
    git.env("GIT_COMMITTER_NAME", "xtask")
        .env("GIT_COMMITTER_EMAIL", "xtask@localhost");
    git.args(["am", "--quiet"]).args(patches);
    sh::logged(
        &git,
        log,
        Exit::Patch,
        "export it and look at the mail named in the log",
        |_| (),
    )
}

/// The part of the base tree that the series touches.
fn scratch_tree(to: &Path, shop: &Workshop<'_>) -> Result<()> {
    let touched = shop.series.patches.iter().flat_map(|patch| patch.touches());
    for path in touched.chain([PathBuf::from("Makefile")]) {
        if let Some(content) = Content::read(&shop.base.dir.join(&path))? {
            content.write(&to.join(&path))?;
        }
    }
    Ok(())
}

/// The test kernel under each policy, and under one that it does not know.
fn guests(project: &Project, shop: &Workshop<'_>, arch: &'static Arch) -> Result<Vec<Case>> {
    let build = shop.build(arch, "test")?;
    let image = build.image()?;
    let accel = guest::accelerator(&project.cache, arch, &image)?;
    let boot = |name: &str, append: &str, initramfs: &Path| {
        Guest {
            arch,
            qemu: arch.qemu.into(),
            accel: accel.clone(),
            image: &image,
            initramfs,
            smp: 4,
            append,
            timeout: TEST_TIMEOUT,
            silence: TEST_SILENCE,
            log: project
                .cache
                .path(format!("log/test-{}-{name}.log", arch.name)),
            echo: false,
        }
        .boot()
    };

    let initramfs = test_initramfs(project, shop, &build)?;
    let mut cases = Vec::new();
    for policy in ["shootdown", "refcount"] {
        let report = boot(policy, &format!("lazy_tlb={policy}"), &initramfs)?;
        let results = ktap::results(&shop.tree, &report.text)?;
        cases.extend(results.into_iter().map(|case| case.within(policy)));
        cases.push(Case::of(format!("{policy}/boot"), report.check_end()));
        cases.push(Case::of(format!("{policy}/cpus"), report.check_cpus()));
        cases.push(Case::of(
            format!("{policy}/no warnings"),
            report.check_warnings(),
        ));
    }

    // The workload's first process reports the policy; a few exits are enough for that.
    let append = format!("lazy_tlb={BOGUS} LAZY_TLB_EXITS=10 LAZY_TLB_REPEAT=1");
    let report = boot(BOGUS, &append, &compare::run_initramfs(project, arch)?)?;
    let policy = report.values("lazy-tlb-run").remove("policy");
    cases.push(Case::of(format!("{BOGUS}/boot"), report.check()));
    cases.push(match policy.as_deref() {
        Some("shootdown") => Case::passed(format!("{BOGUS}/the default is kept")),
        other => Case::failed(
            format!("{BOGUS}/the default is kept"),
            format!("policy {other:?}"),
        ),
    });
    cases.push(match complains(&report.text) {
        true => Case::passed(format!("{BOGUS}/the console says so")),
        false => Case::failed(format!("{BOGUS}/the console says so"), "no line names it"),
    });
    Ok(cases)
}

/// Whether the kernel itself names the value, besides printing its command line.
fn complains(console: &str) -> bool {
    let mut lines = console.lines().filter(|line| line.contains(BOGUS));
    lines.any(|line| line.contains("lazy_tlb") && !line.contains("ommand line:"))
}

/// The initramfs of the test guest: its first process and every selftest.
fn test_initramfs(project: &Project, shop: &Workshop<'_>, build: &Build<'_>) -> Result<PathBuf> {
    let init = project.guest_program(build.arch, "test-init")?;
    let mut files = vec![GuestFile::program("init", &init)?];
    for program in shop.selftests(build.arch)? {
        let name = program
            .file_name()
            .context("a program has a name")?
            .to_string_lossy();
        let file = GuestFile::program(format!("tests/{name}"), &program)?;
        guest::check_init(&file.bytes, &program, build.arch)?;
        files.push(file);
    }
    if files.len() == 1 {
        return Err(fail(
            Exit::NoTests,
            "the selftests' Makefile built no program",
            "look at TEST_GEN_PROGS in tools/testing/selftests/lazy_tlb/Makefile",
        ));
    }
    let initramfs = init.with_extension("cpio");
    guest::write_initramfs(&initramfs, &files)?;
    fs::metadata(&initramfs).context("the initramfs that was just written")?;
    Ok(initramfs)
}

/// The main job's verdict.
fn main_job(project: &Project, shop: &Workshop<'_>, arch: &'static Arch) -> Result<Vec<Case>> {
    let image = shop.build(arch, "default")?.image()?;
    let accel = guest::accelerator(&project.cache, arch, &image)?;
    let results = compare::boot(project, arch, &image, &accel)?;
    println!("\n{}\n", compare::table(&results, &accel));
    let cases = compare::verdict(&results);
    Ok(cases.into_iter().map(|case| case.within("run")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Status;

    #[test]
    fn cargos_lines_become_cases() {
        let status = |line: &str| cargo_case(line).map(|case| case.status);
        assert_eq!(status("test a::b ... ok"), Some(Status::Pass));
        assert_eq!(status("test a::b ... FAILED"), Some(Status::Fail));
        assert_eq!(status("test a::b ... ignored"), Some(Status::Skip));
        assert_eq!(status("test result: ok. 3 passed; 0 failed"), None);
    }

    #[test]
    fn an_echoed_command_line_is_no_complaint() {
        assert!(!complains(
            "[    0.0] Kernel command line: lazy_tlb=bogus\n"
        ));
        assert!(!complains("[    0.0] Command line: lazy_tlb=bogus\n"));
        assert!(complains(
            "[    0.0] lazy_tlb: unknown policy \"bogus\", keeping shootdown\n"
        ));
    }
}
