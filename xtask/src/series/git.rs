//! Patched kernel trees: one in the cache to build from, and git trees with a commit per patch.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{ensure, Context, Result};
use walkdir::WalkDir;

use crate::host::cache::{Cache, Part};
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::series::base::{Base, Origin};
use crate::series::patch::{
    assemble, changed, on_top, Changes, Content, Patch, Selection, Series, Step,
};

/// 2026-01-01; a fixed date makes commit ids reproducible.
const EPOCH: u64 = 1_767_225_600;

/// What the names end with of the tree in [`stepped`], and of what is built of it.
pub const STEPPED: &str = "-bisect";

const BRANCH: &str = "lazy-tlb";
/// What a tree's git configuration calls the digest of the series that it has.
pub const NOTE: &str = "lazy-tlb.series";

/// Brings the cache's patched tree up to date and returns where it is.
///
/// Only files whose content differs are written, so kbuild stays incremental.
pub fn patched(
    cache: &Cache,
    base: &Base,
    series: &Series,
    selection: &Selection,
) -> Result<PathBuf> {
    let wanted = series.changes(&base.dir, selection)?;
    hold(cache, base, &selection.suffix(), &wanted)
}

/// The same with all that the series changes and a mutant, which the next [`patched`] takes out
/// again.
pub fn mutated(cache: &Cache, base: &Base, all: &Changes, mutant: &Patch) -> Result<PathBuf> {
    let mut wanted = all.clone();
    wanted.extend(on_top(&base.dir, all, mutant)?);
    hold(cache, base, &Selection::default().suffix(), &wanted)
}

/// The tree that goes through the series patch by patch, with what the patches so far change.
pub fn stepped(cache: &Cache, base: &Base, wanted: &Changes) -> Result<PathBuf> {
    hold(cache, base, STEPPED, wanted)
}

/// The tree that all kernels are built of, with some of the patches, so that little is built anew. The next
/// [`patched`] brings the others back.
pub fn partly(cache: &Cache, base: &Base, wanted: &Changes) -> Result<PathBuf> {
    hold(cache, base, &Selection::default().suffix(), wanted)
}

/// Makes the cache's tree of that suffix hold the base with the wanted changes.
fn hold(cache: &Cache, base: &Base, suffix: &str, wanted: &Changes) -> Result<PathBuf> {
    cache.lock(Part::Trees)?;
    let name = format!("{}{suffix}", base.id);
    let dir = cache.path("tree").join(&name);
    let record = cache.path("tree").join(format!("{name}.patched"));
    let stamp = cache.path("tree").join(format!("{name}.stamp"));
    let patched_before: BTreeSet<PathBuf> = fs::read_to_string(&record)
        .unwrap_or_default()
        .lines()
        .map(PathBuf::from)
        .collect();
    let patched_now: BTreeSet<PathBuf> = wanted.keys().cloned().collect();
    let patched: BTreeSet<_> = patched_before.union(&patched_now).cloned().collect();
    // Written before the files are: after an interruption they are all looked at again.
    let lines: String = patched
        .iter()
        .map(|p| format!("{}\n", p.display()))
        .collect();
    sh::write_whole(&record, lines.as_bytes())?;

    // A downloaded base never changes; a person's own tree may.
    if base.origin == Origin::User || !stamp.exists() {
        cache.need_space(3, "a kernel tree")?;
        mirror(&base.dir, &dir, &patched)?;
        sh::write_whole(&stamp, b"")?;
    }
    for path in &patched {
        let content = changed(&base.dir, wanted, path)?;
        update(&dir.join(path), content.as_ref())?;
    }
    Ok(dir)
}

/// Makes one file what it should be, touching it only where it differs.
pub fn update(path: &Path, content: Option<&Content>) -> Result<()> {
    let present = Content::read(path)?;
    match content {
        Some(content) if present.as_ref() != Some(content) => content.write(path),
        None if present.is_some() => {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes all files what they should be; if one cannot be, they are again as they were.
pub fn update_all(top: &Path, changes: &Changes) -> Result<()> {
    let put = |path: &Path, content: Option<&Content>| {
        update(&top.join(path), content)?;
        if content.is_none() {
            remove_empty_parents(top, path);
        }
        Ok(())
    };
    let read = |path: &PathBuf| Ok((path.clone(), Content::read(&top.join(path))?));
    let before = changes.keys().map(read).collect::<Result<Changes>>()?;
    let mut all = changes.iter();
    let done = all.try_for_each(|(path, content)| put(path, content.as_ref()));
    done.map_err(|error: anyhow::Error| {
        // What goes away makes room for the others.
        let (new, old): (Vec<_>, Vec<_>) = before.iter().partition(|(_, old)| old.is_none());
        let all = new.into_iter().chain(old);
        let lost = all.filter(|(path, old)| put(path, old.as_ref()).is_err());
        let lost: Vec<_> = lost.map(|(path, _)| path.to_string_lossy()).collect();
        error.context(match lost.is_empty() {
            true => "every file is again as it was".to_owned(),
            false => format!("bring these back by hand: {}", lost.join(", ")),
        })
    })
}

/// Folders that only held files of ours go with them.
fn remove_empty_parents(top: &Path, path: &Path) {
    for dir in path
        .ancestors()
        .skip(1)
        .filter(|dir| !dir.as_os_str().is_empty())
    {
        // Fails, as it should, where something is left in it.
        if fs::remove_dir(top.join(dir)).is_err() {
            return;
        }
    }
}

/// The files of a tree, with relative paths: what git says where it is a git tree.
pub fn files_of(dir: &Path) -> Result<BTreeSet<PathBuf>> {
    if dir.join(".git").exists() {
        let mut git = sh::git(dir);
        git.args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]);
        let output = git.output().context("failed to run git")?;
        ensure!(
            output.status.success(),
            "git ls-files failed in {}",
            dir.display()
        );
        let names = output.stdout.split(|byte| *byte == 0);
        return Ok(names
            .filter(|name| !name.is_empty())
            .map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)))
            .filter(|path| dir.join(path).symlink_metadata().is_ok())
            .collect());
    }
    let mut files = BTreeSet::new();
    for entry in WalkDir::new(dir) {
        let entry = entry?;
        if !entry.file_type().is_dir() {
            files.insert(entry.path().strip_prefix(dir)?.to_owned());
        }
    }
    Ok(files)
}

/// Makes `to` a copy of `from`, except for the paths in `but`; hard links where it can.
///
/// Nothing ever writes into a file of such a tree: a changed file is a new one, renamed over it.
fn mirror(from: &Path, to: &Path, but: &BTreeSet<PathBuf>) -> Result<()> {
    println!("copying {} to {}", from.display(), to.display());
    let wanted = files_of(from)?;
    for path in wanted.difference(but) {
        let (source, target) = (from.join(path), to.join(path));
        let meta = source.symlink_metadata()?;
        let same = target.symlink_metadata().is_ok_and(|there| {
            (there.len(), there.mtime(), there.mtime_nsec(), there.mode())
                == (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.mode())
        });
        if same {
            continue;
        }
        fs::create_dir_all(target.parent().context("a file has a folder")?)?;
        if target.symlink_metadata().is_ok() {
            fs::remove_file(&target)?;
        }
        if meta.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).with_context(|| format!("writing {}", target.display()))?;
            let copy = fs::File::open(&target)?;
            copy.set_modified(meta.modified()?)?;
        }
    }
    for gone in files_of(to)?.difference(&wanted) {
        if !but.contains(gone) {
            fs::remove_file(to.join(gone))?;
        }
    }
    Ok(())
}

/// Writes what the series touches of a tree, and the Makefile that says which tree it is.
pub fn touched(from: &Path, series: &Series, to: &Path) -> Result<()> {
    let touched = series.patches.iter().flat_map(|patch| patch.touches());
    for path in touched.chain([PathBuf::from("Makefile")]) {
        if let Some(content) = Content::read(&from.join(&path))? {
            content.write(&to.join(&path))?;
        }
    }
    Ok(())
}

/// Commits for lists of patches, each on the base.
pub struct Commits {
    /// The repository that has them, in the cache.
    pub repository: PathBuf,
    pub base: String,
    /// The last one of each list.
    pub tips: Vec<String>,
}

impl Commits {
    pub fn make(
        cache: &Cache,
        base: &Base,
        series: &Series,
        lists: &[Vec<&Patch>],
    ) -> Result<Self> {
        cache.lock(Part::Git)?;
        cache.need_space(3, "a kernel tree with its git objects")?;
        let repository = repository(cache, base)?;
        let commit = |patches: &Vec<&Patch>| {
            let steps = assemble(&base.dir, &series.repo, patches, false)?;
            commit(&repository, base, &steps)
        };
        Ok(Commits {
            tips: lists.iter().map(commit).collect::<Result<_>>()?,
            base: base_commit(&repository, base)?,
            repository,
        })
    }
}

/// Which files of an exported tree are checked out.
pub enum Checkout {
    /// Only what the series touches.
    Touched,
    All,
}

/// Makes a git repository with a commit for the base and one for each patch.
pub fn export(
    cache: &Cache,
    base: &Base,
    series: &Series,
    selection: &Selection,
    out: &Path,
    checkout: Checkout,
) -> Result<()> {
    whole_folder(out, |part| {
        let patches = series.select(selection)?;
        println!(
            "putting {} patches on Linux {}",
            patches.len(),
            base.version
        );
        let whole = patches.len() == series.patches.len();
        let commits = Commits::make(cache, base, series, &[patches])?;
        let mut clone = sh::git(Path::new("."));
        clone.args(["clone", "--quiet", "--local", "--no-tags", "--no-checkout"]);
        clone.args(["-c", "gc.auto=0", "--branch", BRANCH]);
        clone.arg(&commits.repository).arg(part);
        sh::announce(&clone);
        sh::capture(&mut clone)?;
        let git = |args: &[&str]| sh::capture(sh::git(part).args(args));
        git(&["remote", "remove", "origin"])?;
        if whole {
            note(part, series)?;
        }
        git(&["tag", "base", &commits.base])?;
        if let Checkout::Touched = checkout {
            let changed = series
                .patches
                .iter()
                .flat_map(|p| p.touches().into_iter().chain(p.entry.adds.clone()));
            let patterns: Vec<String> =
                changed.map(|path| format!("/{}", path.display())).collect();
            let mut sparse = vec!["sparse-checkout", "set", "--no-cone", "--"];
            sparse.extend(patterns.iter().map(String::as_str));
            git(&sparse)?;
        }
        git(&["checkout", "--quiet", BRANCH])?;
        Ok(())
    })
}

/// Has a tree remember what the series is like that it has the whole of.
pub fn note(tree: &Path, series: &Series) -> Result<()> {
    let mut git = sh::git(tree);
    sh::capture(git.args(["config", NOTE, &series.digest()?]))?;
    Ok(())
}

/// Makes a folder under another name, so that a run that fails leaves no half of it at `out`.
pub fn whole_folder(out: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    must_be_new(out)?;
    // Without a slash at the end.
    let mut part = out.components().as_path().as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("removing {}", part.display()))?;
    }
    make(&part)?;
    if out.exists() {
        fs::remove_dir(out)?;
    }
    fs::rename(&part, out).with_context(|| format!("creating {}", out.display()))
}

/// An error if something is there that could be lost.
fn must_be_new(out: &Path) -> Result<()> {
    if out.exists() && fs::read_dir(out).map_or(true, |mut dir| dir.next().is_some()) {
        return Err(fail(
            Exit::Usage,
            format!("{} exists and is not an empty folder", out.display()),
            "name a folder that is not there yet",
        ));
    }
    Ok(())
}

fn base_ref(base: &Base) -> String {
    format!("refs/base/{}", base.id)
}

fn base_commit(git_dir: &Path, base: &Base) -> Result<String> {
    let mut git = sh::git(git_dir);
    git.args(["rev-parse", "--verify", "--quiet", &base_ref(base)]);
    Ok(sh::capture(&mut git)?.trim().to_owned())
}

/// The cache's repository with the base tree in it; only `tree` and `series` need one.
fn repository(cache: &Cache, base: &Base) -> Result<PathBuf> {
    let git_dir = cache.path("git");
    if !git_dir.join("HEAD").exists() {
        let mut init = sh::git(Path::new("."));
        init.args(["init", "--quiet", "--bare"]).arg(&git_dir);
        sh::capture(&mut init)?;
    }
    if base.origin != Origin::User && base_commit(&git_dir, base).is_ok() {
        return Ok(git_dir);
    }
    println!("putting Linux {} into {}", base.version, git_dir.display());
    fast_import(&git_dir, |to| {
        writeln!(to, "commit {}", base_ref(base))?;
        writeln!(to, "committer {} {EPOCH} +0000", identity())?;
        data(to, b"base\n")?;
        for path in files_of(&base.dir)? {
            let source = base.dir.join(&path);
            if source.symlink_metadata()?.is_symlink() {
                let target = fs::read_link(&source)?;
                file(to, "120000", &path, target.as_os_str().as_bytes())?;
            } else {
                let content = Content::read(&source)?.context("a file went away")?;
                file(to, mode(&content), &path, &content.bytes)?;
            }
        }
        Ok(())
    })?;
    Ok(git_dir)
}

/// Commits the steps onto the base and returns the last commit's id.
fn commit(git_dir: &Path, base: &Base, steps: &[Step<'_>]) -> Result<String> {
    let branch = format!("refs/heads/{BRANCH}");
    let from = base_commit(git_dir, base)?;
    if steps.is_empty() {
        sh::capture(sh::git(git_dir).args(["update-ref", &branch, &from]))?;
        return Ok(from);
    }
    fast_import(git_dir, |to| {
        writeln!(to, "reset {branch}\nfrom {from}\n")?;
        for (index, step) in steps.iter().enumerate() {
            let date = EPOCH + 1 + index as u64;
            writeln!(to, "commit {branch}")?;
            writeln!(to, "author {} {date} +0000", identity())?;
            writeln!(to, "committer {} {date} +0000", identity())?;
            let message = format!("{}\n\n{}\n", step.patch.subject, step.patch.body);
            data(to, message.as_bytes())?;
            for (path, content) in &step.changes {
                match content {
                    Some(content) => file(to, mode(content), path, &content.bytes)?,
                    None => writeln!(to, "D {}", path.display())?,
                }
            }
        }
        Ok(())
    })?;
    Ok(sh::capture(sh::git(git_dir).args(["rev-parse", &branch]))?
        .trim()
        .to_owned())
}

fn identity() -> String {
    let (name, address) = sh::IDENTITY;
    format!("{name} <{address}>")
}

fn fast_import(git_dir: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut git = sh::git(git_dir);
    git.args(["-c", "core.compression=1", "-c", "pack.compression=1"]);
    git.args(["-c", "fastimport.unpackLimit=0"]);
    git.args(["fast-import", "--quiet", "--force", "--depth=0", "--done"]);
    let mut child = git
        .stdin(Stdio::piped())
        .spawn()
        .context("failed to run git")?;
    let mut to = BufWriter::with_capacity(1 << 20, child.stdin.take().expect("stdin is piped"));
    let written = write(&mut to).and_then(|()| Ok(writeln!(to, "done")?));
    let flushed = to.flush();
    drop(to);
    let status = child.wait()?;
    written?;
    flushed?;
    ensure!(status.success(), "git fast-import failed ({status})");
    Ok(())
}

fn data(to: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    writeln!(to, "data {}", bytes.len())?;
    to.write_all(bytes)?;
    Ok(writeln!(to)?)
}

fn file(to: &mut dyn Write, mode: &str, path: &Path, bytes: &[u8]) -> Result<()> {
    writeln!(to, "M {mode} inline {}", path.display())?;
    data(to, bytes)
}

fn mode(content: &Content) -> &'static str {
    if content.executable {
        "100755"
    } else {
        "100644"
    }
}

/// Every file of a tree with its content, to compare two trees.
pub fn snapshot(dir: &Path) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    for path in files_of(dir)? {
        let full = dir.join(&path);
        let mode = full.symlink_metadata()?.permissions().mode();
        files.insert(path, (mode, fs::read(&full)?));
    }
    Ok(files)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::host::failure::classify;
    use crate::series::import::import;
    use crate::series::patch::tests::fixture;
    use crate::series::patch::Entry;

    pub fn base_at(dir: &Path) -> Base {
        Base {
            dir: dir.to_owned(),
            version: "7.3.4".into(),
            origin: Origin::Upstream,
            id: "7.3.4-test".into(),
        }
    }

    fn head(dir: &Path, what: &str) -> String {
        sh::capture(sh::git(dir).args(["rev-parse", what])).unwrap()
    }

    #[test]
    fn the_cached_tree_is_updated_in_place() {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let base = base_at(&base);
        let all = Selection::default();
        let tree = patched(&cache, &base, &Series::load(&repo).unwrap(), &all).unwrap();
        let fork = tree.join("kernel/fork.c");
        assert!(fs::read_to_string(&fork).unwrap().contains("third again"));
        assert!(tree.join("mm/lazy_tlb/lazy_tlb.rs").exists());
        let first = fs::metadata(&fork).unwrap().modified().unwrap();

        // The same again writes nothing.
        patched(&cache, &base, &Series::load(&repo).unwrap(), &all).unwrap();
        assert_eq!(fs::metadata(&fork).unwrap().modified().unwrap(), first);

        // A patch that is gone takes its hunks and files along.
        fs::write(
            repo.join(crate::series::patch::LIST),
            "[[patch]]\nfile = \"0001-first.patch\"\n",
        )
        .unwrap();
        patched(&cache, &base, &Series::load(&repo).unwrap(), &all).unwrap();
        let text = fs::read_to_string(&fork).unwrap();
        assert!(text.contains("first") && !text.contains("third"));
        assert!(!tree.join("mm/lazy_tlb/lazy_tlb.rs").exists());
        assert_eq!(
            fs::read_to_string(tree.join("mm/Makefile")).unwrap(),
            "obj-y := mm.o\n"
        );
        assert!(
            !fs::read_to_string(base.dir.join("kernel/fork.c"))
                .unwrap()
                .contains("first"),
            "the base stays as it was"
        );
    }

    #[test]
    fn the_next_build_takes_a_mutant_out_again() {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let (base, series) = (base_at(&base), Series::load(&repo).unwrap());
        let all = Selection::default();
        let tree = patched(&cache, &base, &series, &all).unwrap();
        let changes = series.changes(&base.dir, &all).unwrap();
        let before = snapshot(&tree).unwrap();
        let mutant = |ours: &str| {
            let entry = Entry::new("a.patch");
            // A file of ours, and one that the series leaves alone.
            let hunk = |path: &str, line: &str| {
                format!(
                    "diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n\
                     @@ -1 +1 @@\n-{line}\n+broken\n"
                )
            };
            let text = format!(
                "Subject: a\n\nb\n---\n{}{}",
                hunk("mm/lazy_tlb/lazy_tlb.rs", ours),
                hunk("scripts/run.sh", "#!/bin/sh")
            );
            Patch::parse("mutants", entry, &text).unwrap()
        };
        let (exit, error) =
            classify(mutated(&cache, &base, &changes, &mutant("other")).unwrap_err());
        assert_eq!(exit, Exit::Patch);
        let text = error.to_string();
        assert!(text.contains("mutants/a.patch does not apply"), "{text}");
        assert_eq!(snapshot(&tree).unwrap(), before);

        let there = mutated(&cache, &base, &changes, &mutant("//! Ours.")).unwrap();
        assert_eq!(there, tree);
        for path in ["mm/lazy_tlb/lazy_tlb.rs", "scripts/run.sh"] {
            let text = fs::read_to_string(tree.join(path)).unwrap();
            assert_eq!(text, "broken\n", "{path}");
        }
        patched(&cache, &base, &series, &all).unwrap();
        assert_eq!(snapshot(&tree).unwrap(), before);
    }

    #[test]
    fn exported_commits_are_reproducible_and_import_gives_the_series_back() {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let (base, series) = (base_at(&base), Series::load(&repo).unwrap());
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let all = Selection::default();
        export(&cache, &base, &series, &all, &one, Checkout::All).unwrap();
        fs::remove_dir_all(cache.path("git")).unwrap();
        export(&cache, &base, &series, &all, &two, Checkout::All).unwrap();
        assert_eq!(head(&one, "HEAD"), head(&two, "HEAD"));
        assert_eq!(head(&one, "HEAD~3"), head(&one, "base"));
        assert!(
            export(&cache, &base, &series, &all, &one, Checkout::All).is_err(),
            "not into a full folder"
        );

        // What is imported makes the same commits, and is imported again as the same files.
        let (once, three, twice) = (
            dir.path().join("once"),
            dir.path().join("three"),
            dir.path().join("twice"),
        );
        import(&once, &one).unwrap();
        let back = Series::load(&once).unwrap();
        export(&cache, &base, &back, &all, &three, Checkout::All).unwrap();
        assert_eq!(head(&one, "HEAD"), head(&three, "HEAD"));
        import(&twice, &three).unwrap();
        assert_eq!(snapshot(&once).unwrap(), snapshot(&twice).unwrap());
        let adds = |series: &Series| series.added().into_iter().map(Path::to_owned).collect();
        let (before, after): (Vec<PathBuf>, Vec<PathBuf>) = (adds(&series), adds(&back));
        assert_eq!(before, after);
    }
}
