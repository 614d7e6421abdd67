//! `bisect`: whether each patch of the series leaves a kernel that builds, and boots.
//!
//! One tree goes through the series patch by patch, so that only what a patch changes is compiled.
//! A tree in the middle of the series does not know every line of `configs/` yet: those that are
//! about symbols of the series are left out there, and said to be. After the last patch none is.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{ensure, Context, Result};
use clap::Args;
use serde::Serialize;

use crate::guest::machine::Vm;
use crate::host::arch::{self, Arch};
use crate::host::cache::Cache;
use crate::host::failure::{classify, fail, Exit};
use crate::host::sh;
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::series::base::Base;
use crate::series::git;
use crate::series::patch::{assemble, Changes, Series};

/// The variant with the option off.
const OFF: &str = "plain";
/// The variant with the option on, where the tree offers it; with Rust alone where not.
const ON: &str = "default";
/// The symbol that tells whether the option is there.
const OPTION: &str = "CONFIG_MMU_LAZY_TLB_SHOOTDOWN_RUST=";

/// Which patches, and where.
#[derive(Args)]
pub struct Options {
    /// x86_64, arm64, s390, powerpc, riscv, um, or all but the last two.
    #[arg(long, default_value = arch::ALL, env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Only the patch of that number, or those from N to M.
    #[arg(long, value_name = "N[..M]")]
    patch: Option<Range>,
    /// Write what became of each patch to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Some patches, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: usize,
    last: usize,
}

impl FromStr for Range {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| {
            text.parse::<usize>()
                .with_context(|| format!("{text} is no number"))
        };
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        ensure!(
            first >= 1 && first <= last,
            "patches are counted from 1, the first one before the last"
        );
        Ok(Range { first, last })
    }
}

impl Range {
    /// The numbers, of which the series must have each.
    fn of(range: Option<Self>, series: &Series) -> Result<RangeInclusive<usize>> {
        let count = series.patches.len();
        match range {
            None => Ok(1..=count),
            Some(range) if range.last <= count => Ok(range.first..=range.last),
            Some(range) => Err(fail(
                Exit::Usage,
                format!("--patch {}: the series has {count} patches", range.last),
                "ask for fewer",
            )),
        }
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

/// A column of the table.
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

/// A kernel that was fine.
#[derive(Debug, Default)]
struct Fine {
    booted: bool,
    /// Whether it has the option.
    option: bool,
    /// The lines of its configuration that the tree does not take yet.
    left_out: Vec<String>,
}

/// What became of a kernel.
#[derive(Debug, Serialize)]
struct Outcome {
    kernel: String,
    /// `booted`, `built` or `broken`.
    state: &'static str,
    option: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// How to exit because of it.
    #[serde(skip)]
    exit: Exit,
}

impl Outcome {
    fn new(kernel: String, tried: Result<Fine>) -> Self {
        let (fine, exit, error) = match tried {
            Ok(fine) => (fine, Exit::Ok, None),
            Err(error) => {
                let (exit, error) = classify(error);
                (Fine::default(), exit, Some(format!("{error:#}")))
            }
        };
        let state = match error {
            Some(_) => "broken",
            None if fine.booted => "booted",
            None => "built",
        };
        Outcome {
            kernel,
            state,
            option: fine.option,
            left_out: fine.left_out,
            error,
            exit,
        }
    }

    /// In a word or two.
    fn verdict(&self) -> String {
        match self.exit {
            Exit::Ok if self.option => format!("{}, on", self.state),
            Exit::Ok => self.state.into(),
            Exit::Build => "DOES NOT BUILD".into(),
            Exit::Guest => "DOES NOT BOOT".into(),
            _ => "NOT TRIED".into(),
        }
    }
}

/// A patch, and what became of its kernels.
#[derive(Debug, Serialize)]
struct Row {
    patch: usize,
    subject: String,
    kernels: Vec<Outcome>,
}

impl Row {
    /// Tries every column; what is broken keeps none of the others from being tried.
    fn of(
        patch: usize,
        subject: &str,
        columns: &[Column],
        mut attempt: impl FnMut(&Column) -> Result<Fine>,
    ) -> Self {
        println!("\n== patch {patch}: {subject}");
        let kernels = columns.iter().map(|column| {
            let outcome = Outcome::new(column.name(), attempt(column));
            match &outcome.error {
                Some(error) => eprintln!("error: {error}"),
                None => println!("== {}: {}", outcome.kernel, outcome.verdict()),
            }
            if !outcome.left_out.is_empty() {
                println!("   left out: {}", outcome.left_out.join(", "));
            }
            outcome
        });
        Row {
            patch,
            subject: subject.into(),
            kernels: kernels.collect(),
        }
    }

    fn exit(&self) -> Exit {
        let mut exits = self.kernels.iter().map(|kernel| kernel.exit);
        exits.find(|exit| *exit != Exit::Ok).unwrap_or(Exit::Ok)
    }
}

/// Tries the patches; the last line printed counts them.
pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let arches = arch::of_kinds(&arch::kinds(&options.arch)?);
    let meant = Range::of(options.patch, &project.series()?)?;
    let shop = project.workshop(&[], &arches)?;
    let (able, skipped): (Vec<_>, Vec<_>) = arches
        .into_iter()
        .map(|arch| (arch, shop.tools.check_rustc(arch)))
        .partition(|(_, checked)| checked.is_ok());
    let able: Vec<&Arch> = able.into_iter().map(|(arch, _)| arch).collect();
    let skipped: Vec<String> = skipped
        .into_iter()
        .filter_map(|(_, checked)| Some(format!("{:#}", checked.err()?)))
        .collect();
    for skip in &skipped {
        println!("skipped: {skip}");
    }
    let columns = Column::of(&able);
    if columns.is_empty() {
        return Ok(Exit::NoTests);
    }
    let rows = walk(
        &project.cache,
        &shop.base,
        &shop.series,
        &columns,
        meant,
        |number, tree, column| kernel(project, &shop, number, tree, column),
    )?;
    if let Some(path) = &options.json {
        let text = json(&shop.base.version, &rows, &skipped)?;
        sh::write_whole(path, text.as_bytes())?;
    }
    println!("\n{}\n", table(&columns, &rows));
    for skip in &skipped {
        println!("skipped: {skip}");
    }
    let broken = rows.iter().filter(|row| row.exit() != Exit::Ok).count();
    println!("{} patches, {broken} broken", rows.len());
    Ok(exit(&rows))
}

/// Goes through the series; a kernel is what `attempt` makes of the tree after so many patches.
fn walk(
    cache: &Cache,
    base: &Base,
    series: &Series,
    columns: &[Column],
    meant: RangeInclusive<usize>,
    mut attempt: impl FnMut(usize, &Path, &Column) -> Result<Fine>,
) -> Result<Vec<Row>> {
    let patches: Vec<_> = series.patches.iter().collect();
    let mut changes = Changes::new();
    let mut rows = Vec::new();
    let steps = assemble(&base.dir, &series.repo, &patches, false)?;
    for (number, step) in (1..).zip(steps) {
        changes.extend(step.changes);
        if meant.contains(&number) {
            let tree = git::stepped(cache, base, &changes)?;
            let subject = &step.patch.subject;
            rows.push(Row::of(number, subject, columns, |column| {
                attempt(number, &tree, column)
            }));
        }
    }
    Ok(rows)
}

/// Builds a kernel at a patch, and boots it where that is asked for.
fn kernel(
    project: &Project,
    shop: &Workshop<'_>,
    number: usize,
    tree: &Path,
    column: &Column,
) -> Result<Fine> {
    let configured = |variant: &'static str| -> Result<(Build<'_>, Vec<String>)> {
        let build = shop.build_step(number, tree.to_owned(), column.arch, variant)?;
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
    let booted = column.what != What::Builds;
    if booted {
        boot(project, column, &image)?;
    }
    Ok(Fine {
        booted,
        option: build.variant == ON && has_option(&left_out),
        left_out,
    })
}

/// Boots the smallest guest that tells whether the kernel lives.
fn boot(project: &Project, column: &Column, image: &Path) -> Result<()> {
    let initramfs = project.guest_initramfs(column.arch, "alive-init")?;
    let vm = Vm::new(project, column.arch, image)?;
    let log = format!("bisect-{}", column.name().replace(' ', "-"));
    vm.guest(&initramfs, &log).boot()?.check()
}

/// The first that is broken says how.
fn exit(rows: &[Row]) -> Exit {
    let mut exits = rows.iter().map(Row::exit);
    exits.find(|exit| *exit != Exit::Ok).unwrap_or(Exit::Ok)
}

fn json(version: &str, rows: &[Row], skipped: &[String]) -> Result<String> {
    let summary = serde_json::json!({
        "linux": version,
        "skipped": skipped,
        "patches": rows,
    });
    Ok(serde_json::to_string_pretty(&summary)?)
}

fn table(columns: &[Column], rows: &[Row]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    let names = columns.iter().map(Column::name);
    table.set_header(["patch".into(), "subject".into()].into_iter().chain(names));
    for row in rows {
        let first = [row.patch.to_string(), row.subject.clone()];
        let verdicts = row.kernels.iter().map(Outcome::verdict);
        table.add_row(first.into_iter().chain(verdicts));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::base::Origin;
    use crate::series::patch::tests::fixture;
    use std::fs;

    #[test]
    fn a_range_is_a_number_or_two() {
        let range = |text: &str| text.parse::<Range>().map(|r| (r.first, r.last)).ok();
        assert_eq!(range("3"), Some((3, 3)));
        assert_eq!(range("2..5"), Some((2, 5)));
        for bad in ["", "0", "0..2", "5..2", "2..", "..2", "a"] {
            assert_eq!(range(bad), None, "{bad}");
        }
        let (_dir, _base, repo) = fixture();
        let series = Series::load(&repo).unwrap();
        assert_eq!(Range::of(None, &series).unwrap(), 1..=3);
        assert_eq!(Range::of("2".parse().ok(), &series).unwrap(), 2..=2);
        let error = Range::of("2..4".parse().ok(), &series).unwrap_err();
        assert_eq!(classify(error).0, Exit::Usage);
    }

    #[test]
    fn both_kernels_are_tried_on_x86_64_and_one_elsewhere() {
        let names = |arch: &str| -> Vec<String> {
            let arches = arch::of_kinds(&arch::kinds(arch).unwrap());
            Column::of(&arches).iter().map(Column::name).collect()
        };
        assert_eq!(
            names("all"),
            ["x86_64 off", "x86_64 on", "arm64", "s390", "powerpc"]
        );
        assert_eq!(names("um"), ["um"]);
    }

    /// Goes through the fixture's series.
    fn walked(
        meant: RangeInclusive<usize>,
        attempt: impl Fn(&Path, &Column) -> Result<Fine>,
    ) -> Vec<Row> {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let series = Series::load(&repo).unwrap();
        let base = Base {
            dir: base,
            version: "7.3.4".into(),
            origin: Origin::Upstream,
            id: "7.3.4-test".into(),
        };
        let columns = Column::of(&[arch::find("x86_64").unwrap()]);
        walk(
            &cache,
            &base,
            &series,
            &columns,
            meant,
            |_, tree, column| attempt(tree, column),
        )
        .unwrap()
    }

    /// The option comes with the second patch; the third, which is the last, breaks its kernel.
    fn some_break(tree: &Path, column: &Column) -> Result<Fine> {
        let fork = fs::read_to_string(tree.join("kernel/fork.c"))?;
        let option = column.what == What::On && tree.join("mm/lazy_tlb/lazy_tlb.rs").exists();
        if option && fork.contains("third") {
            return Err(fail(Exit::Guest, "the guest hangs", "look"));
        }
        let missing = column.what == What::On && !option;
        let line = format!("{OPTION}y (is not there)");
        Ok(Fine {
            booted: true,
            option,
            left_out: missing.then_some(line).into_iter().collect(),
        })
    }

    #[test]
    fn every_patch_is_a_row_and_a_broken_one_is_named() {
        let rows = walked(1..=3, some_break);
        let verdicts: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.kernels.iter().map(Outcome::verdict).collect())
            .collect();
        assert_eq!(
            verdicts,
            [
                ["booted", "booted"],
                ["booted", "booted, on"],
                ["booted", "DOES NOT BOOT"],
            ]
        );
        assert_eq!(exit(&rows), Exit::Guest);
        assert_eq!(exit(&rows[..2]), Exit::Ok);
        let shown = table(&Column::of(&[arch::find("x86_64").unwrap()]), &rows);
        let last = shown.lines().last().unwrap();
        assert!(
            last.contains("fork: third") && last.contains("DOES NOT BOOT"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_left_out_is_reported() {
        let rows = walked(1..=3, some_break);
        let text = json("7.3.4", &rows, &["s390 needs rustc 1.96.0".into()]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["skipped"][0], "s390 needs rustc 1.96.0");
        let kernel = |patch: usize, column: usize| &value["patches"][patch]["kernels"][column];
        assert_eq!(
            kernel(0, 1)["left_out"][0],
            format!("{OPTION}y (is not there)")
        );
        assert_eq!(kernel(0, 1)["option"], false);
        assert!(kernel(1, 1).get("left_out").is_none());
        assert_eq!(kernel(1, 1)["option"], true);
        assert_eq!(kernel(2, 1)["state"], "broken");
        assert!(kernel(2, 1)["error"].as_str().unwrap().contains("hangs"));
    }

    #[test]
    fn the_first_that_is_broken_says_how_to_exit() {
        let rows = walked(2..=2, |_, column| match column.what {
            What::Off => Err(fail(Exit::Build, "make failed", "look")),
            _ => Err(fail(Exit::Guest, "the guest hangs", "look")),
        });
        assert_eq!(exit(&rows), Exit::Build);
        assert_eq!(rows[0].kernels[0].verdict(), "DOES NOT BUILD");
        assert_eq!((rows.len(), rows[0].patch), (1, 2));
    }
}
