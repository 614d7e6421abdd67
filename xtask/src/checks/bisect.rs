//! `bisect`: whether each patch of the series leaves a kernel that builds, and boots; `--alone`: whether
//! some of them do on what they need and nothing else.
//!
//! One tree goes through the series patch by patch, so that only what a patch changes is compiled.
//! A tree in the middle of the series does not know every line of `configs/` yet: those that are
//! about symbols of the series are left out there, and said to be. After the last patch none is.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Args;

use crate::checks::guests::{Variant, SUITES};
use crate::guest::ktap;
use crate::guest::machine::{Guest, Vm};
use crate::host::arch::{self, Arch};
use crate::host::cache::Cache;
use crate::host::failure::{classify, fail, Exit};
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::{Case, Recorder};
use crate::series::base::Base;
use crate::series::git;
use crate::series::patch::{assemble, combined, Changes, Patch, Selection, Series};

const OFF: &str = "plain";
/// The variant with the option on, where the tree offers it; with Rust alone where not.
const ON: &str = "default";
/// The symbol that tells whether the option is there.
const OPTION: &str = "CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST=";
/// The same of the series' own suites.
const KUNIT_OPTION: &str = "CONFIG_LAZY_TLB_KUNIT_TEST=";

/// For a kernel with every check, under emulation, and all suites at boot.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Which patches, and where.
#[derive(Args)]
pub struct Options {
    /// x86_64, arm64, s390, powerpc, riscv, arm, loongarch, um, or all but the last four.
    #[arg(long, default_value = arch::ALL, env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Only the patch of that number, or those from N to M.
    #[arg(long, value_name = "N[..M]", value_parser = range)]
    patch: Option<RangeInclusive<usize>>,
    /// These patches together, on what they need in place of all before them, with every check; the
    /// kernel boots on each architecture, and KUnit must pass.
    #[arg(long, requires = "patch")]
    alone: bool,
    /// Write every case to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// `N` or `N..M`, counted from 1.
fn range(text: &str) -> Result<RangeInclusive<usize>> {
    let number = |text: &str| {
        let number = text.parse::<usize>();
        number.with_context(|| format!("{text} is no number"))
    };
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    ensure!(
        first >= 1 && first <= last,
        "patches are counted from 1, the first one before the last"
    );
    Ok(first..=last)
}

/// Those of a series that are meant, of which it must have each.
fn meant(range: Option<RangeInclusive<usize>>, series: &Series) -> Result<RangeInclusive<usize>> {
    let count = series.patches.len();
    match range {
        None => Ok(1..=count),
        Some(range) if *range.end() <= count => Ok(range),
        Some(range) => Err(fail(
            Exit::Usage,
            format!("--patch {}: the series has {count} patches", range.end()),
            "ask for fewer",
        )),
    }
}

/// What is tried at each patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The kernel without the option builds and boots.
    Off,
    /// So does the one with it.
    On,
    /// One kernel builds: with the option as soon as there is one.
    Builds,
}

/// A kernel that is tried at each patch.
struct Column {
    arch: &'static Arch,
    what: What,
}

impl Column {
    /// Both kernels boot on x86_64. For the others it has to do that they build.
    fn of(arches: &[&'static Arch]) -> Vec<Self> {
        let columns = arches.iter().flat_map(|arch| {
            let tried: &[What] = match arch.name {
                "x86_64" => &[What::Off, What::On],
                _ => &[What::Builds],
            };
            tried.iter().map(|what| Column { arch, what: *what })
        });
        columns.collect()
    }

    fn name(&self) -> String {
        match self.what {
            What::Off => format!("{} off", self.arch.name),
            What::On => format!("{} on", self.arch.name),
            What::Builds => self.arch.name.into(),
        }
    }
}

/// Tries the patches; the last line printed counts them.
pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let arches = arch::of_kinds(&arch::kinds(&options.arch)?);
    let meant = meant(options.patch.clone(), &project.series()?)?;
    let shop = project.workshop(&[], &arches)?;
    if options.alone {
        let mut recorder = Recorder::default();
        let patches = shop.series.with_needs(meant.start() - 1..*meant.end())?;
        let changes = combined(assemble(
            &shop.base.dir,
            &shop.series.repo,
            &patches,
            false,
        )?);
        let tree = git::partly(&project.cache, &shop.base, &changes)?;
        for arch in arches {
            recorder.stage(
                &format!("{} patches alone, {}", patches.len(), arch.name),
                || alone(project, &shop, &patches, &tree, arch),
            );
        }
        git::patched(&project.cache, &shop.base, &shop.series, &shop.selection)?;
        if let Some(path) = &options.json {
            recorder.write_json(path)?;
        }
        return Ok(recorder.finish());
    }
    let columns = Column::of(&arches);
    let (recorder, first) = walk(
        &project.cache,
        &shop.base,
        &shop.series,
        &columns,
        meant,
        |number, tree, column| match shop.tools.check_rustc(column.arch) {
            Err(error) => Ok(Err(error)),
            Ok(()) => kernel(project, &shop, number, tree, column).map(Ok),
        },
    )?;
    if let Some(path) = &options.json {
        recorder.write_json(path)?;
    }
    Ok(match recorder.finish() {
        Exit::Failed => first,
        other => other,
    })
}

/// A kernel of some patches and no others: with every check where they bring the option, else as the base
/// tree is. It boots, and what KUnit reports of the series at boot must be good.
fn alone(
    project: &Project,
    shop: &Workshop<'_>,
    patches: &[&Patch],
    tree: &Path,
    arch: &'static Arch,
) -> Result<Vec<Case>> {
    shop.tools.check_rustc(arch)?;
    let lacks = |left_out: &[String], option: &str| left_out.iter().any(|l| l.starts_with(option));
    let suffix = Selection::default().suffix();
    let place = || (suffix.as_str(), tree.to_owned());
    let mut build = shop.build_step(patches, place(), arch, Variant::TEST.name)?;
    let mut left_out = build.configure()?;
    let suites = !lacks(&left_out, KUNIT_OPTION);
    if lacks(&left_out, OPTION) {
        build = shop.build_step(patches, place(), arch, OFF)?;
        left_out = build.configure()?;
    }
    println!(
        "variant {}, left out: {}",
        build.variant,
        left_out.join(", ")
    );
    let image = build.image()?;
    let initramfs = project.initramfs(arch, "alive")?;
    let vm = Vm::new(project, arch, &image)?;
    // KUnit comes before the first process.
    let report = Guest {
        timeout: PATIENCE,
        silence: PATIENCE,
        ..vm.guest(&initramfs, &format!("alone-{}", arch.name))
    }
    .boot()?;
    let mut cases = vec![Case::of("boot", report.check())];
    if suites {
        let ran = ktap::results(tree, &report.text)?;
        cases.extend(
            ran.into_iter()
                .filter(|case| case.name.starts_with(ktap::KUNIT)),
        );
        let expected = ktap::expected_suites(&cases, &SUITES);
        cases.extend(expected);
    }
    let within = |case: Case| case.within(arch.name).within("alone");
    Ok(cases.into_iter().map(within).collect())
}

/// Goes through the series. A kernel is what `attempt` makes of the tree after so many patches: it says what
/// that is, or why it cannot be tried here. What is broken keeps none of the others from being tried, and the
/// first that is says how to exit.
fn walk(
    cache: &Cache,
    base: &Base,
    series: &Series,
    columns: &[Column],
    meant: RangeInclusive<usize>,
    mut attempt: impl FnMut(usize, &Path, &Column) -> Result<std::result::Result<String, anyhow::Error>>,
) -> Result<(Recorder, Exit)> {
    let patches: Vec<&Patch> = series.patches.iter().collect();
    let mut changes = Changes::new();
    let (mut recorder, mut first) = (Recorder::default(), Exit::Ok);
    let steps = assemble(&base.dir, &series.repo, &patches, false)?;
    for (number, step) in (1..).zip(steps) {
        changes.extend(step.changes);
        if !meant.contains(&number) {
            continue;
        }
        let tree = git::stepped(cache, base, &changes)?;
        recorder.stage(&format!("patch {number}: {}", step.patch.subject), || {
            let case = |column: &Column| {
                let name = format!("bisect/{number}/{}", column.name());
                match attempt(number, &tree, column) {
                    Ok(Ok(detail)) => Case {
                        detail,
                        ..Case::passed(name)
                    },
                    Ok(Err(why)) => Case {
                        detail: format!("{why:#}"),
                        ..Case::skipped(name)
                    },
                    Err(error) => {
                        let (exit, error) = classify(error);
                        first = if first == Exit::Ok { exit } else { first };
                        Case::failed(name, format!("{error:#}"))
                    }
                }
            };
            Ok(columns.iter().map(case).collect())
        });
    }
    Ok((recorder, first))
}

/// Builds a kernel at a patch, and boots it where that is asked for; returns what it is, in words.
fn kernel(
    project: &Project,
    shop: &Workshop<'_>,
    number: usize,
    tree: &Path,
    column: &Column,
) -> Result<String> {
    let patches: Vec<&Patch> = shop.series.patches[..number].iter().collect();
    let configured = |variant: &'static str| -> Result<(Build<'_>, Vec<String>)> {
        let build = shop.build_step(
            &patches,
            (git::STEPPED, tree.to_owned()),
            column.arch,
            variant,
        )?;
        let left_out = build.configure()?;
        Ok((build, left_out))
    };
    let has_option = |left_out: &[String]| !left_out.iter().any(|line| line.starts_with(OPTION));
    let (build, left_out) = match column.what {
        What::Off => configured(OFF)?,
        What::On => configured(ON)?,
        // On powerpc the Rust code of the base tree alone does not build.
        What::Builds => match configured(ON)? {
            on if has_option(&on.1) => on,
            _ => configured(OFF)?,
        },
    };
    let image = build.image()?;
    if column.what != What::Builds {
        boot(project, column, &image)?;
    }
    let option = match build.variant == ON && has_option(&left_out) {
        true => "with the option",
        false => "without the option",
    };
    Ok(match left_out.is_empty() {
        true => option.into(),
        false => format!("{option}; left out: {}", left_out.join(", ")),
    })
}

/// Boots the smallest guest that tells whether the kernel lives.
fn boot(project: &Project, column: &Column, image: &Path) -> Result<()> {
    let initramfs = project.initramfs(column.arch, "alive")?;
    let vm = Vm::new(project, column.arch, image)?;
    let log = format!("bisect-{}", column.name().replace(' ', "-"));
    vm.guest(&initramfs, &log).boot()?.check()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::case::counts;
    use crate::series::git::tests::base_at;
    use crate::series::patch::tests::fixture;
    use std::fs;

    #[test]
    fn a_range_is_a_number_or_two() {
        assert_eq!(range("3").unwrap(), 3..=3);
        assert_eq!(range("2..5").unwrap(), 2..=5);
        for bad in ["", "0", "0..2", "5..2", "2..", "..2", "a"] {
            assert!(range(bad).is_err(), "{bad}");
        }
        let (_dir, _base, repo) = fixture();
        let series = Series::load(&repo).unwrap();
        assert_eq!(meant(None, &series).unwrap(), 1..=3);
        let error = meant(Some(2..=4), &series).unwrap_err();
        assert_eq!(classify(error).0, Exit::Usage);
    }

    #[test]
    fn both_kernels_are_tried_on_x86_64_and_one_elsewhere() {
        let arches = arch::of_kinds(&arch::kinds("all").unwrap());
        let names: Vec<String> = Column::of(&arches).iter().map(Column::name).collect();
        assert_eq!(
            names,
            ["x86_64 off", "x86_64 on", "arm64", "s390", "powerpc"]
        );
    }

    #[test]
    fn the_first_that_is_broken_says_how_to_exit_and_the_others_are_tried() {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let series = Series::load(&repo).unwrap();
        let columns = Column::of(&[arch::find("x86_64").unwrap()]);
        // The second patch brings the option, the last one breaks its kernel.
        let attempt = |number: usize, tree: &Path, column: &Column| {
            let third = fs::read_to_string(tree.join("kernel/fork.c"))?.contains("third");
            assert_eq!(third, number == 3);
            match (column.what, number) {
                (What::On, 3) => Err(fail(Exit::Guest, "the guest hangs", "look")),
                (What::Off, 3) => Ok(Err(anyhow::anyhow!("no rustc"))),
                _ => Ok(Ok("with the option".into())),
            }
        };
        let walked = |meant| walk(&cache, &base_at(&base), &series, &columns, meant, attempt);
        let (recorder, first) = walked(1..=3).unwrap();
        assert_eq!(first, Exit::Guest);
        assert_eq!(counts(&recorder.cases), [4, 1, 1]);
        assert_eq!(recorder.cases[5].name, "bisect/3/x86_64 on");
        assert!(recorder.cases[5].detail.contains("hangs"));
        let (recorder, first) = walked(2..=2).unwrap();
        assert_eq!((counts(&recorder.cases), first), ([2, 0, 0], Exit::Ok));
    }
}
