//! `drift`: whether the series still applies to the kernels that there are.
//!
//! Each is reduced to the files that the series touches, and gets the patches one by one: as they are,
//! else with `git am -3`, which knows the files that they were made for. Where even that conflicts,
//! the hunks in question are named and left out, and the next patch is tried. Nothing is built.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{ensure, Context, Result};
use clap::Args;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::host::apt::{version_key, Suites};
use crate::host::cache::{Cache, Part};
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::workshop::Project;
use crate::series::base::{self, Base, Offer, Origin};
use crate::series::git::{self, Checkout};
use crate::series::mail;
use crate::series::patch::{explain, Patch, Selection, Series};

/// The oldest release that is tried.
const OLDEST: &str = "7.2";

/// Which kernels, and where results go.
#[derive(Args)]
pub struct Options {
    /// Only versions that begin so, such as 7.3.
    #[arg(long, value_name = "VERSION", default_value = "")]
    only: String,
    /// A folder that is not there yet, for the mails as git could bring them onto each kernel.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write what became of each patch to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How a patch fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Fit {
    /// As it is; lines may have moved.
    Clean,
    /// `git am -3` has merged it.
    Merged,
    /// Some of it does not.
    Conflict,
}

/// A patch on a kernel.
#[derive(Debug, Serialize)]
struct Tried {
    patch: String,
    fit: Fit,
    /// The hunks that do not apply as they are.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

/// A kernel, and how the series fits.
#[derive(Debug, Serialize)]
struct Outcome {
    linux: String,
    from: &'static str,
    patches: Vec<Tried>,
    /// Why it could not be tried. The rest of it is the end of a log, with paths of this machine.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "first_line")]
    error: Option<String>,
}

impl Outcome {
    fn count(&self, fit: Fit) -> usize {
        self.patches.iter().filter(|tried| tried.fit == fit).count()
    }

    /// Whether it is one that the series should apply to and does not.
    fn is_broken(&self) -> bool {
        self.count(Fit::Conflict) != 0 && version_key(&self.linux) >= version_key(base::SERIES)
    }
}

fn first_line<S: Serializer>(
    error: &Option<String>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    let line = error.as_deref().and_then(|error| error.lines().next());
    serializer.serialize_some(&line)
}

/// Tries the kernels; the last line printed counts them.
pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    if let Some(out) = options.out.as_ref().filter(|out| out.exists()) {
        return Err(fail(
            Exit::Usage,
            format!("{} exists", out.display()),
            "name a folder that is not there yet",
        ));
    }
    // What the patches were made for. `--linux` is another kernel to try, of any version.
    let (cache, series) = (&project.cache, project.series()?);
    let own = base::find(cache, None)?;
    let mut bases = vec![Ok(own.clone())];
    if let Some(dir) = &project.linux {
        bases.push(Ok(Base {
            dir: dir.clone(),
            version: base::any_version_of(dir)?,
            origin: Origin::User,
            id: "user".into(),
        }));
    }
    let wanted = |version: &str| {
        version_key(version) >= version_key(OLDEST) && version.starts_with(&options.only)
    };
    bases.extend(archive(cache, &series, &own, wanted)?);

    // In the cache, so that git's objects are linked and not copied.
    let scratch = tempfile::tempdir_in(cache.dir("tree")?)?;
    let mails = mails(cache, &own, &series, scratch.path())?;
    let mut outcomes = Vec::new();
    for (index, base) in bases.into_iter().enumerate() {
        let dir = scratch.path().join(index.to_string());
        let outcome = match base {
            Ok(base) if !base.version.starts_with(&options.only) => continue,
            Ok(base) => {
                println!("\n== Linux {} ({})", base.version, base.origin.name());
                let out = options.out.as_ref().map(|out| out.join(&base.version));
                let tried = attempt(cache, &series, &mails, &base, &dir, out.as_deref());
                let (patches, error) = match tried {
                    Ok(patches) => (patches, None),
                    Err(error) => (Vec::new(), Some(format!("{error:#}"))),
                };
                Outcome {
                    linux: base.version,
                    from: base.origin.name(),
                    patches,
                    error,
                }
            }
            Err(absent) => absent,
        };
        print!("{}", details(&outcome));
        outcomes.push(outcome);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&outcomes)?;
        sh::write_whole(path, text.as_bytes())?;
    }
    println!("\n{}\n", table(&outcomes));
    let broken = outcomes.iter().filter(|o| o.is_broken()).count();
    println!(
        "{} kernels; from {} on, {broken} that the series does not apply to",
        outcomes.len(),
        base::SERIES
    );
    Ok(match (outcomes.is_empty(), broken) {
        (true, _) => Exit::NoTests,
        (_, 0) => Exit::Ok,
        _ => Exit::Patch,
    })
}

/// The parts that the series touches of the kernels in Debian's archive, the newest first.
fn archive(
    cache: &Cache,
    series: &Series,
    own: &Base,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<std::result::Result<Base, Outcome>>> {
    cache.lock(Part::Setup)?;
    let mut offers = Vec::new();
    for suites in base::SUITES {
        match Suites::open(cache, suites) {
            Ok(apt) => {
                let found = Offer::all(&apt, &wanted)?;
                offers.push((apt, found));
            }
            Err(error) => println!("{} cannot be asked: {error:#}", suites.join(", ")),
        }
    }
    let versions = offers.iter().flat_map(|(_, found)| found);
    let mut versions: Vec<&str> = versions.map(|offer| offer.version.as_str()).collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version_key(version)));
    versions.dedup();
    let mut bases = Vec::new();
    for version in versions.into_iter().filter(|v| *v != own.version) {
        let ways = offers.iter().flat_map(|(apt, found)| {
            let same = found.iter().filter(|offer| offer.version == version);
            same.map(move |offer| (apt, offer))
        });
        let mut said = Vec::new();
        let mut found = None;
        for (apt, offer) in ways {
            match reduced(cache, series, apt, offer) {
                Ok(base) => {
                    found = Some(base);
                    break;
                }
                Err(error) => said.push(format!("{error:#}")),
            }
        }
        bases.push(found.ok_or_else(|| Outcome {
            linux: version.into(),
            from: "",
            patches: Vec::new(),
            error: Some(said.join("\n")),
        }));
    }
    Ok(bases)
}

/// What the series touches of a kernel in the archive; of the rest nothing is kept.
fn reduced(cache: &Cache, series: &Series, apt: &Suites, offer: &Offer) -> Result<Base> {
    let mut hash = Sha256::new();
    let touched: BTreeSet<PathBuf> = series.patches.iter().flat_map(Patch::touches).collect();
    for path in &touched {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
    }
    let hash: String = hash.finalize()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let id = format!("{}-{}-{hash}", offer.version, offer.origin.name());
    let dir = cache.path("drift").join(&id);
    if !dir.exists() {
        cache.need_space(3, "a kernel tree")?;
        let download = offer.download(cache, apt)?;
        let (whole, _) = base::unpack(cache, &download, offer.origin)?;
        let part = tempfile::tempdir_in(cache.dir("drift")?)?;
        git::touched(&whole, series, part.path())?;
        fs::rename(part.keep(), &dir)?;
        fs::remove_dir_all(&whole)?;
        fs::remove_dir_all(&download)?;
    }
    let version = base::any_version_of(&dir)?;
    let origin = offer.origin;
    Ok(Base {
        dir,
        version,
        origin,
        id,
    })
}

/// A base of the touched files alone, from which git trees are made in no time.
fn small(base: &Base, series: &Series, dir: &Path) -> Result<Base> {
    git::touched(&base.dir, series, dir)?;
    Ok(Base {
        dir: dir.to_owned(),
        // So that it is put into git each time.
        origin: Origin::User,
        id: format!("{}-touched", base.id),
        version: base.version.clone(),
    })
}

/// The series as mails, which name the files that they were made for.
fn mails(cache: &Cache, own: &Base, series: &Series, scratch: &Path) -> Result<Vec<PathBuf>> {
    let own = small(own, series, &scratch.join("own"))?;
    let threads = mail::export(cache, &own, series, &scratch.join("mails"))?;
    Ok(threads
        .into_iter()
        .flat_map(|thread| thread.patches)
        .collect())
}

/// Tries the patches on a kernel; what became of them is written into `out`.
fn attempt(
    cache: &Cache,
    series: &Series,
    mails: &[PathBuf],
    base: &Base,
    dir: &Path,
    out: Option<&Path>,
) -> Result<Vec<Tried>> {
    let small = small(base, series, &dir.join("files"))?;
    let none = Selection {
        upto: Some(0),
        skip: Vec::new(),
    };
    let tree = dir.join("tree");
    git::export(cache, &small, series, &none, &tree, Checkout::All)?;
    ensure!(
        mails.len() == series.patches.len(),
        "there are {} mails for {} patches",
        mails.len(),
        series.patches.len()
    );
    let patches = series.patches.iter().zip(mails);
    let tried = patches
        .map(|(patch, mail)| one(&tree, patch, mail))
        .collect::<Result<Vec<_>>>()?;
    if let Some(out) = out {
        fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
        let mut git = git(&tree);
        git.args(["format-patch", "--quiet", "--no-signature", "-o"]);
        sh::capture(git.arg(out.canonicalize()?).arg("base..HEAD"))?;
    }
    Ok(tried)
}

fn git(tree: &Path) -> Command {
    let mut git = sh::git(tree);
    git.env("GIT_COMMITTER_NAME", "xtask");
    git.env("GIT_COMMITTER_EMAIL", "xtask@localhost");
    git
}

fn output(git: &mut Command) -> Result<Output> {
    git.output().context("failed to run git")
}

/// Applies a patch as well as git can.
fn one(tree: &Path, patch: &Patch, mail: &Path) -> Result<Tried> {
    let as_it_is = output(git(tree).args(["apply", "--check"]).arg(mail))?;
    let mut detail = match as_it_is.status.success() {
        true => String::new(),
        false => explain(patch, &String::from_utf8_lossy(&as_it_is.stderr)),
    };
    let merged = output(git(tree).args(["am", "--quiet", "-3"]).arg(mail))?;
    let fit = match (merged.status.success(), detail.is_empty()) {
        (true, true) => Fit::Clean,
        (true, false) => Fit::Merged,
        (false, _) => {
            for path in without_conflicts(tree)? {
                detail.push_str(&format!("\n  left out: what conflicts in {path}"));
            }
            Fit::Conflict
        }
    };
    Ok(Tried {
        patch: patch.entry.file.clone(),
        fit,
        detail,
    })
}

/// Goes on with a patch that conflicts, without the hunks that do; returns the files that these are in.
fn without_conflicts(tree: &Path) -> Result<Vec<String>> {
    let unmerged = sh::capture(git(tree).args(["diff", "--name-only", "--diff-filter=U"]))?;
    for path in unmerged.lines() {
        let scratch = tempfile::tempdir()?;
        // The common ancestor, what the kernel has, what the patch makes of it.
        let mut whole = true;
        let versions = ["1", "2", "3"].map(|stage| scratch.path().join(stage));
        for (stage, file) in (1..).zip(&versions) {
            let object = format!(":{stage}:{path}");
            let content = output(git(tree).args(["cat-file", "blob", &object]))?;
            whole &= content.status.success();
            fs::write(file, content.stdout)?;
        }
        let [ancestor, kernel, patched] = &versions;
        if whole {
            let mut merge = git(tree);
            merge.args(["merge-file", "--ours"]);
            sh::capture(merge.args([kernel, ancestor, patched]))?;
            fs::copy(kernel, tree.join(path))?;
            sh::capture(git(tree).args(["add", "--", path]))?;
        } else {
            // The kernel has no such file, or has one that the patch brings.
            sh::capture(git(tree).args(["reset", "--quiet", "--", path]))?;
            sh::capture(git(tree).args(["checkout", "--quiet", "--", path]))
                .or_else(|_| fs::remove_file(tree.join(path)).map(|()| String::new()))?;
        }
    }
    // Nothing may be left of it, or git had not even begun to merge.
    let left = output(git(tree).args(["diff", "--cached", "--quiet", "HEAD"]))?;
    let end = match left.status.success() {
        true => "--skip",
        false => "--continue",
    };
    sh::capture(git(tree).args(["am", "--quiet", end]))?;
    Ok(unmerged.lines().map(str::to_owned).collect())
}

/// What does not apply as it is.
fn details(outcome: &Outcome) -> String {
    let mut text = String::new();
    for tried in outcome.patches.iter().filter(|t| t.fit != Fit::Clean) {
        let words = match tried.fit {
            Fit::Merged => "merged",
            _ => "CONFLICT",
        };
        text.push_str(&format!("{words:>8} {}\n", tried.patch));
        for line in tried.detail.lines() {
            text.push_str(&format!("         | {line}\n"));
        }
    }
    if let Some(error) = &outcome.error {
        text.push_str(&format!("not tried: Linux {}: {error}\n", outcome.linux));
    }
    text
}

fn table(outcomes: &[Outcome]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["Linux", "from", "clean", "merged", "conflicts"]);
    for outcome in outcomes {
        let counts = [Fit::Clean, Fit::Merged, Fit::Conflict];
        let counts = counts.map(|fit| match outcome.error {
            Some(_) => "not tried".into(),
            None => outcome.count(fit).to_string(),
        });
        let first = [outcome.linux.clone(), outcome.from.into()];
        table.add_row(first.into_iter().chain(counts));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::patch::tests::fixture;

    /// Tries the fixture's series on its base after a change to that.
    fn drifted(version: &str, change: impl Fn(&Path)) -> (Outcome, String) {
        let (dir, tree, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let series = Series::load(&repo).unwrap();
        let base = |version: &str| Base {
            dir: tree.clone(),
            version: version.into(),
            origin: Origin::Upstream,
            id: format!("{version}-test"),
        };
        let own = base("7.3.4");
        let mails = mails(&cache, &own, &series, &dir.path().join("scratch")).unwrap();
        change(&tree);
        let (work, out) = (dir.path().join("work"), dir.path().join("out"));
        let changed = base(version);
        let patches = attempt(&cache, &series, &mails, &changed, &work, Some(&out)).unwrap();
        let outcome = Outcome {
            linux: version.into(),
            from: "upstream",
            patches,
            error: None,
        };
        let fork = fs::read_to_string(work.join("tree/kernel/fork.c")).unwrap();
        let mails = fs::read_dir(&out).unwrap().count();
        (outcome, format!("{mails} mails\n{fork}"))
    }

    fn replace(path: PathBuf, from: &str, to: &str) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    }

    fn fits(outcome: &Outcome) -> Vec<Fit> {
        outcome.patches.iter().map(|tried| tried.fit).collect()
    }

    #[test]
    fn a_kernel_whose_lines_have_moved_is_clean() {
        let (outcome, fork) = drifted("7.3.5", |base| {
            replace(base.join("kernel/fork.c"), "line 1\n", "line 0\nline 1\n");
        });
        assert_eq!(fits(&outcome), [Fit::Clean; 3]);
        assert!(!outcome.is_broken());
        assert_eq!(details(&outcome), "");
        assert!(fork.starts_with("3 mails\n"), "{fork}");
    }

    #[test]
    fn what_git_can_merge_is_merged_and_said_to_be() {
        let (outcome, fork) = drifted("7.4.1", |base| {
            replace(
                base.join("kernel/fork.c"),
                "line 29\nline 30\n",
                "line 30\n",
            );
            replace(base.join("kernel/fork.c"), "line 33\n", "");
        });
        assert_eq!(fits(&outcome), [Fit::Clean, Fit::Clean, Fit::Merged]);
        assert!(fork.contains("third again"), "{fork}");
        assert!(!outcome.is_broken());
        let said = details(&outcome);
        assert!(said.starts_with("  merged 0003-third.patch"), "{said}");
    }

    #[test]
    fn a_conflict_names_the_hunk_and_the_rest_goes_on() {
        let (outcome, fork) = drifted("7.4.1", |base| {
            replace(base.join("kernel/fork.c"), "line 31\n", "other 31\n");
        });
        assert_eq!(fits(&outcome), [Fit::Clean, Fit::Clean, Fit::Conflict]);
        let said = details(&outcome);
        assert!(
            said.contains("CONFLICT 0003-third.patch")
                && said.contains("hunk 2 of 2 in kernel/fork.c")
                && said.contains("left out: what conflicts in kernel/fork.c"),
            "{said}"
        );
        // The other hunk is in, and the mail with it.
        assert!(fork.starts_with("3 mails\n"), "{fork}");
        assert!(
            fork.contains("third\n") && !fork.contains("third again"),
            "{fork}"
        );
        assert!(outcome.is_broken());
        assert!(!drifted("7.2.9", |base| {
            replace(base.join("kernel/fork.c"), "line 31\n", "other 31\n");
        })
        .0
        .is_broken());
    }

    #[test]
    fn a_file_that_is_gone_takes_its_patch_along() {
        let (outcome, fork) = drifted("7.4.1", |base| {
            fs::remove_file(base.join("mm/Makefile")).unwrap();
        });
        assert_eq!(fits(&outcome), [Fit::Clean, Fit::Conflict, Fit::Clean]);
        assert!(fork.contains("third again"), "{fork}");
        let table = table(&[outcome]);
        assert!(table.contains("7.4.1"), "{table}");
    }
}
