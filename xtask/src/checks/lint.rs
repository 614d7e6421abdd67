//! `lint`: what the kernel's own checkers say of the files that the series touches.
//!
//! They are built apart from all other kernels, for a checker's flags would have everything rebuilt. What
//! a checker says of other files of the tree, or of lines that the base has as well, is not the series'
//! doing, and is left out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::host::arch::{self, Arch};
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::build::Build;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::{Case, Recorder};

/// Where pages of the series are, as sphinx is told.
const PAGES: &str = "mm admin-guide/mm";

/// sparse, of which no release knows what the kernel asks it for first.
const SPARSE: &str = "CHECK=sparse -D__typeof_unqual__=__typeof__";
/// What make says where it will not use a checker.
const UNUSED: &str = "is not available or not up to date";

/// What is looked at.
#[derive(Args)]
pub struct Options {
    /// x86_64, arm64, s390, powerpc, riscv, arm, loongarch, um, or all but the last four.
    #[arg(long, default_value = "x86_64", env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Leave out `make rustdoc` and `make htmldocs`.
    #[arg(long)]
    without_docs: bool,
    /// Write every case to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A run of make: its name, the program that it needs besides the usual tools and the package that brings
/// it, words and targets.
struct Check<'a>(
    &'static str,
    Option<(&'static str, &'static str)>,
    Vec<&'a str>,
    Vec<&'a str>,
);

pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let arches = arch::of_kinds(&arch::kinds(&options.arch)?);
    let shop = project.workshop(&[], &arches)?;
    let mut recorder = Recorder::default();
    for arch in arches {
        recorder.stage(&format!("lint/{}", arch.name), || {
            let docs = !options.without_docs && arch.name == "x86_64";
            cases(&shop, arch, docs)
        });
    }
    if let Some(path) = &options.json {
        recorder.write_json(path)?;
    }
    Ok(recorder.finish())
}

fn cases(shop: &Workshop<'_>, arch: &'static Arch, docs: bool) -> Result<Vec<Case>> {
    let build = shop.build(arch, "lint")?;
    build.configure()?;
    let files = files_of(shop);
    let objects = objects(&files, &shop.tree, arch.folder());
    let driver = shop.tools.rustc.with_file_name("clippy-driver");
    let clippy = format!("CLIPPY_DRIVER={}", driver.display());
    let pages = format!("SPHINXDIRS={PAGES}");
    let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
    let needs_clippy = Some(("clippy-driver", "rust-web-clippy, or clippy by rustup"));
    let mut checks = vec![
        Check("W=1", None, vec!["W=1"], objects.clone()),
        Check(
            "sparse",
            Some(("sparse", "sparse")),
            vec!["W=1", "C=2", SPARSE],
            objects,
        ),
        Check(
            "clippy",
            needs_clippy,
            vec!["CLIPPY=1", &clippy],
            vec!["rust/kernel.o", "mm/lazy_tlb/"],
        ),
    ];
    if docs {
        checks.push(Check("rustdoc", None, Vec::new(), vec!["rustdoc"]));
        checks.push(Check(
            "htmldocs",
            Some(("sphinx-build", "python3-sphinx")),
            // Documentation/Makefile has a variable of that name itself, and means something else by it.
            vec!["RUSTDOC=", &pages],
            vec!["htmldocs"],
        ));
    }
    let tried = |check: &Check<'_>| {
        let name = format!("lint/{}/{}", arch.name, check.0);
        match check.1 {
            Some((program, package)) if !there_is(program, &driver) => Ok(Case {
                detail: format!("no {program}; install {package}"),
                ..Case::skipped(name)
            }),
            _ => Ok(Case::of(name, tried(shop, &build, check, &files)?)),
        }
    };
    checks.iter().map(tried).collect()
}

/// Whether a program is there; the one of clippy has to be that of the compiler.
fn there_is(program: &str, driver: &Path) -> bool {
    match driver.ends_with(program) {
        true => driver.exists(),
        false => sh::capture(Command::new(program).arg("--version")).is_ok(),
    }
}

/// Runs make, which may fail: what counts is what is said of our files, and that something was built.
fn tried(
    shop: &Workshop<'_>,
    build: &Build<'_>,
    check: &Check<'_>,
    files: &BTreeSet<PathBuf>,
) -> Result<Result<()>> {
    let mut make = build.make();
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    make.arg(format!("-j{jobs}")).args(&check.2).args(&check.3);
    let name = check.0.replace('=', "");
    let log = build.out.join(format!("lint-{name}.log"));
    let mut found = Vec::new();
    let (mut last, mut unused) = (String::new(), false);
    let remedy = "the first `error:` in the log says what is wrong";
    let built = sh::logged(&make, &log, Exit::Build, remedy, |line| {
        let ours = finding(line, &last, files);
        found.extend(ours.filter(|found| found.is_new(&shop.base.dir, &shop.tree)));
        unused |= line.contains(UNUSED);
        if !line.trim_start().starts_with("--> ") {
            line.clone_into(&mut last);
        }
    });
    if unused {
        let what = format!("make does not use {}", check.0);
        return Ok(Err(fail(Exit::Environment, what, "install a newer one")));
    }
    let found: BTreeSet<String> = found.iter().map(Finding::to_string).collect();
    Ok(match (found.is_empty(), built) {
        (true, Ok(())) => Ok(()),
        (true, Err(error)) => Err(error),
        (false, _) => Err(fail(
            Exit::Failed,
            format!("{} findings:\n{}", found.len(), shown(&found)),
            format!("the whole log is {}", log.display()),
        )),
    })
}

fn shown(found: &BTreeSet<String>) -> String {
    found
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Something that is said of one of our files.
#[derive(Debug)]
struct Finding {
    file: PathBuf,
    /// From one; none is named if it is zero.
    line: usize,
    said: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.said)
    }
}

impl Finding {
    /// Whether the base has no such file, or its file no such line.
    fn is_new(&self, base: &Path, tree: &Path) -> bool {
        let read = |dir: &Path| std::fs::read_to_string(dir.join(&self.file)).unwrap_or_default();
        let (old, new) = (read(base), read(tree));
        let line = self.line.checked_sub(1).and_then(|n| new.lines().nth(n));
        match line {
            Some(line) => !old.lines().any(|other| other == line),
            None => old.is_empty(),
        }
    }
}

/// What a line of a compiler or a checker says of one of our files. Rust's tools say what it is
/// about in the line before the one with the place.
fn finding(line: &str, last: &str, files: &BTreeSet<PathBuf>) -> Option<Finding> {
    let (place, said) = match line.trim_start().strip_prefix("--> ") {
        Some(place) => (place, last),
        None => {
            let words = [": warning: ", ": error: ", ": WARNING: ", ": ERROR: "];
            let at = words.iter().find_map(|word| line.find(word))?;
            (&line[..at], &line[at + 2..])
        }
    };
    let mut place = place.split(':');
    let path = place.next().unwrap_or_default();
    // objtool names the object of the file, and no line.
    let source = ["c", "rs"].map(|e| Path::new(path).with_extension(e));
    let object = path.ends_with(".o");
    let ours = |file: &&PathBuf| match object {
        true => source.iter().any(|source| source.ends_with(file)),
        false => Path::new(path).ends_with(file),
    };
    Some(Finding {
        file: files.iter().find(ours)?.clone(),
        line: place
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or_default(),
        said: said.into(),
    })
}

fn files_of(shop: &Workshop<'_>) -> BTreeSet<PathBuf> {
    let touched = shop.series.patches.iter().flat_map(|patch| patch.touches());
    let added = shop.series.added().into_iter().map(Path::to_owned);
    touched.chain(added).collect()
}

/// The objects of the C files among them that this architecture may build, as kbuild's targets.
fn objects(files: &BTreeSet<PathBuf>, tree: &Path, arch: &str) -> Vec<String> {
    let of_another = |path: &Path| {
        let mut parts = path.iter().map(|part| part.to_string_lossy());
        parts.next().is_some_and(|first| first == "arch")
            && parts.next().is_some_and(|second| second != arch)
    };
    let built = |path: &&PathBuf| {
        let outside = ["tools", "rust", "mm/lazy_tlb", "drivers"];
        path.extension().is_some_and(|e| e == "c")
            && !outside.iter().any(|dir| path.starts_with(dir))
            && !of_another(path)
            && tree.join(path).exists()
    };
    // A few files are parts of another one, which includes them.
    let whole = |path: &PathBuf| -> PathBuf {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return path.clone();
        };
        let include = format!("#include \"{}\"", name.to_string_lossy());
        let includes = |entry: &fs::DirEntry| {
            entry.path().extension().is_some_and(|e| e == "c")
                && fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(&include))
        };
        let mut entries = fs::read_dir(tree.join(dir)).into_iter().flatten().flatten();
        entries
            .find(includes)
            .map_or(path.clone(), |entry| dir.join(entry.file_name()))
    };
    let object = |path: PathBuf| path.with_extension("o").to_string_lossy().into_owned();
    let objects: BTreeSet<String> = files.iter().filter(built).map(whole).map(object).collect();
    objects.into_iter().chain(["mm/lazy_tlb/".into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_our_files_is_found() {
        let files = BTreeSet::from(["kernel/fork.c", "rust/kernel/smp.rs"].map(PathBuf::from));
        let found = |line: &str, last: &str| finding(line, last, &files).map(|f| f.to_string());
        assert_eq!(
            found("/tree/kernel/fork.c:7:2: warning: unused", "").as_deref(),
            Some("kernel/fork.c:7: warning: unused")
        );
        assert_eq!(
            found("  --> rust/kernel/smp.rs:9:1", "warning: needless").as_deref(),
            Some("rust/kernel/smp.rs:9: warning: needless")
        );
        assert_eq!(
            found("kernel/fork.o: warning: objtool: falls through", "").as_deref(),
            Some("kernel/fork.c:0: warning: objtool: falls through")
        );
        assert!(found("kernel/exit.c:7:2: warning: unused", "").is_none());
        assert!(found("my/kernel/fork.c.h:7: warning: x", "").is_none());
        assert!(found("  CC      kernel/fork.o", "").is_none());
    }

    #[test]
    fn what_the_base_has_as_well_is_not_ours() {
        let dirs = ["base", "tree"].map(|_| tempfile::tempdir().unwrap());
        let [base, tree] = dirs.each_ref().map(tempfile::TempDir::path);
        std::fs::write(base.join("a.c"), "old\n").unwrap();
        std::fs::write(tree.join("a.c"), "new\nold\n").unwrap();
        std::fs::write(tree.join("b.c"), "new\n").unwrap();
        let is_new = |file: &str, line| {
            let (file, said) = (file.into(), String::new());
            Finding { file, line, said }.is_new(base, tree)
        };
        assert!(is_new("a.c", 1) && !is_new("a.c", 2));
        assert!(is_new("b.c", 1));
        assert!(!is_new("a.c", 0) && is_new("b.c", 0));
    }

    #[test]
    fn objects_are_those_of_the_architecture() {
        let tree = tempfile::tempdir().unwrap();
        let names = [
            "kernel/fork.c",
            "kernel/sched/debug.c",
            "arch/x86/mm/tlb.c",
            "arch/s390/mm/init.c",
            "tools/perf/bench/a.c",
            "mm/lazy_tlb/slot.c",
            "include/linux/lazy_tlb.h",
        ];
        for name in names {
            let path = tree.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let whole = tree.path().join("kernel/sched/build_utility.c");
        std::fs::write(whole, "#include \"debug.c\"\n").unwrap();
        let files = names.map(PathBuf::from).into();
        assert_eq!(
            objects(&files, tree.path(), "x86"),
            [
                "arch/x86/mm/tlb.o",
                "kernel/fork.o",
                "kernel/sched/build_utility.o",
                "mm/lazy_tlb/"
            ]
        );
    }
}
