//! `drift`: whether the series still applies to the kernels that there are.
//!
//! Each is reduced to the files that the series touches, and gets the patches one by one: as they are,
//! else with `git cherry-pick`, which knows the files that they were made for. Where even that conflicts,
//! the hunks in question are named and left out, and the next patch is tried. Nothing is built.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use clap::Args;

use crate::host::apt::{version_key, Suites};
use crate::host::cache::{digest, Cache, Part};
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::workshop::Project;
use crate::results::case::{Case, Recorder};
use crate::series::base::{self, Base, Offer, Origin};
use crate::series::git::{self, Checkout, Commits};
use crate::series::patch::{explain, Patch, Selection, Series};

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
    /// Write every case to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Tries the kernels; the last line printed counts the patches.
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
    let mut bases = vec![(own.version.clone(), Ok(own.clone()))];
    if let Some(dir) = &project.linux {
        let version = base::any_version_of(dir)?;
        let user = Base {
            dir: dir.clone(),
            version: version.clone(),
            origin: Origin::User,
            id: "user".into(),
        };
        bases.push((version, Ok(user)));
    }
    let wanted = |version: &str| {
        version_key(version) >= version_key(OLDEST) && version.starts_with(&options.only)
    };
    bases.extend(archive(cache, &series, &own, wanted)?);

    // In the cache, so that git's objects are linked and not copied.
    let scratch = tempfile::tempdir_in(cache.dir("tree")?)?;
    let own = commits(cache, &own, &series, &scratch.path().join("own"))?;
    let mut recorder = Recorder::default();
    let bases = bases.into_iter().enumerate();
    for (index, (version, base)) in bases.filter(|(_, b)| b.0.starts_with(&options.only)) {
        let dir = scratch.path().join(index.to_string());
        let out = options.out.as_ref().map(|out| out.join(&version));
        recorder.stage(&format!("Linux {version}"), || {
            let tried =
                base.and_then(|base| attempt(cache, &series, &own, &base, &dir, out.as_deref()));
            // Only those that can be had can be tried.
            let cases = tried.unwrap_or_else(|error| {
                vec![Case {
                    detail: format!("{error:#}"),
                    ..Case::skipped("not tried")
                }]
            });
            let within = |case: Case| case.within(&version).within("drift");
            Ok(cases.into_iter().map(within).collect())
        });
    }
    if let Some(path) = &options.json {
        recorder.write_json(path)?;
    }
    Ok(match recorder.finish() {
        Exit::Failed => Exit::Patch,
        other => other,
    })
}

/// The parts that the series touches of the kernels in Debian's archive, the newest first.
fn archive(
    cache: &Cache,
    series: &Series,
    own: &Base,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Result<Base>)>> {
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
        let found = found.ok_or_else(|| anyhow::anyhow!("{}", said.join("\n")));
        bases.push((version.to_owned(), found));
    }
    Ok(bases)
}

/// What the series touches of a kernel in the archive; of the rest nothing is kept.
fn reduced(cache: &Cache, series: &Series, apt: &Suites, offer: &Offer) -> Result<Base> {
    let touched: BTreeSet<PathBuf> = series.patches.iter().flat_map(Patch::touches).collect();
    let names: Vec<_> = touched
        .iter()
        .map(|path| path.as_os_str().as_encoded_bytes())
        .collect();
    let hash = digest(&names);
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

/// A commit for each patch, on what the series touches of its own base; they are in the cache's repository.
fn commits(cache: &Cache, base: &Base, series: &Series, dir: &Path) -> Result<Vec<String>> {
    let small = small(base, series, dir)?;
    let all = [series.select(&Selection::default())?];
    let made = Commits::make(cache, &small, series, &all)?;
    let range = format!("{}..{}", made.base, made.tips[0]);
    let ids = sh::capture(sh::git(&made.repository).args(["rev-list", "--reverse", &range]))?;
    Ok(ids.lines().map(str::to_owned).collect())
}

/// Tries the patches on a kernel, a case for each; what became of them is written into `out`.
fn attempt(
    cache: &Cache,
    series: &Series,
    own: &[String],
    base: &Base,
    dir: &Path,
    out: Option<&Path>,
) -> Result<Vec<Case>> {
    let small = small(base, series, &dir.join("files"))?;
    let tree = dir.join("tree");
    // With all objects of the cache's repository.
    git::export(
        cache,
        &small,
        series,
        &Selection::first(0),
        &tree,
        Checkout::All,
    )?;
    ensure!(own.len() == series.patches.len(), "a patch has no commit");
    // A kernel from before the series' own release need not take it.
    let is_new = version_key(&base.version) >= version_key(base::SERIES);
    let tried = series.patches.iter().zip(own);
    let cases = tried
        .map(|(patch, id)| one(&tree, patch, id, is_new))
        .collect::<Result<Vec<_>>>()?;
    if let Some(out) = out {
        fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
        let mut git = sh::git(&tree);
        git.args(["format-patch", "--quiet", "--no-signature", "-o"]);
        sh::capture(git.arg(out.canonicalize()?).arg("base..HEAD"))?;
    }
    Ok(cases)
}

/// Applies a patch as well as git can: as it is, merged, or without the hunks that conflict.
fn one(tree: &Path, patch: &Patch, id: &str, is_new: bool) -> Result<Case> {
    let name = patch.entry.file.as_str();
    let diff = sh::capture(sh::git(tree).args(["show", "--format=", "--binary", id]))?;
    let scratch = tempfile::NamedTempFile::new()?;
    fs::write(&scratch, diff)?;
    let check = sh::git(tree)
        .args(["apply", "--check"])
        .arg(scratch.path())
        .output();
    let check = check.context("failed to run git")?;
    let pick = |words: &[&str]| sh::capture(sh::git(tree).arg("cherry-pick").args(words));
    if pick(&["--allow-empty", "--keep-redundant-commits", id]).is_ok() {
        let detail = match check.status.success() {
            true => String::new(),
            false => format!(
                "merged: {}",
                explain(patch, &String::from_utf8_lossy(&check.stderr))
            ),
        };
        return Ok(Case {
            detail,
            ..Case::passed(name)
        });
    }
    let mut detail = explain(patch, &String::from_utf8_lossy(&check.stderr));
    let unmerged = || sh::capture(sh::git(tree).args(["diff", "--name-only", "--diff-filter=U"]));
    for path in unmerged()?.lines() {
        detail.push_str(&format!("\n  left out: what conflicts in {path}"));
    }
    pick(&["--abort"])?;
    if pick(&[
        "-X",
        "ours",
        "--allow-empty",
        "--keep-redundant-commits",
        id,
    ])
    .is_err()
    {
        // The kernel has no such file, or has one that the patch brings.
        for path in unmerged()?.lines() {
            let ours = sh::capture(sh::git(tree).args(["checkout", "--ours", "--", path]));
            let word = if ours.is_ok() { "add" } else { "rm" };
            sh::capture(sh::git(tree).args([word, "--", path]))?;
        }
        sh::capture(sh::git(tree).args(["commit", "--allow-empty", "--no-edit", "--quiet"]))?;
    }
    Ok(match is_new {
        true => Case::failed(name, detail),
        false => Case {
            detail,
            ..Case::skipped(name)
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::case::Status::{self, Fail, Pass, Skip};
    use crate::series::patch::tests::fixture;

    /// Tries the fixture's series on its base after a change to that.
    fn drifted(version: &str, change: impl Fn(&Path)) -> (Vec<Case>, String) {
        let (dir, tree, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let series = Series::load(&repo).unwrap();
        let base = |version: &str| Base {
            dir: tree.clone(),
            version: version.into(),
            origin: Origin::Upstream,
            id: format!("{version}-test"),
        };
        let own = commits(&cache, &base("7.3.4"), &series, &dir.path().join("own")).unwrap();
        change(&tree);
        let (work, out) = (dir.path().join("work"), dir.path().join("out"));
        let cases = attempt(&cache, &series, &own, &base(version), &work, Some(&out)).unwrap();
        let fork = fs::read_to_string(work.join("tree/kernel/fork.c")).unwrap();
        let mails = fs::read_dir(&out).unwrap().count();
        (cases, format!("{mails} mails\n{fork}"))
    }

    fn replace(path: PathBuf, from: &str, to: &str) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    }

    fn status(cases: &[Case]) -> Vec<Status> {
        cases.iter().map(|case| case.status).collect()
    }

    #[test]
    fn a_kernel_whose_lines_have_moved_is_clean_and_what_git_can_merge_is_said() {
        let (cases, fork) = drifted("7.3.5", |base| {
            replace(base.join("kernel/fork.c"), "line 1\n", "line 0\nline 1\n");
        });
        assert_eq!(status(&cases), [Pass; 3]);
        assert!(cases.iter().all(|case| case.detail.is_empty()), "{cases:?}");
        assert!(fork.starts_with("3 mails\n"), "{fork}");
        let (cases, fork) = drifted("7.4.1", |base| {
            let fork = base.join("kernel/fork.c");
            replace(fork.clone(), "line 29\nline 30\n", "line 30\n");
            replace(fork, "line 33\n", "");
        });
        assert_eq!(status(&cases), [Pass; 3]);
        assert!(cases[2].detail.starts_with("merged: "), "{cases:?}");
        assert!(fork.contains("third again"), "{fork}");
    }

    #[test]
    fn a_conflict_names_the_hunk_and_the_rest_goes_on() {
        let change = |base: &Path| {
            replace(base.join("kernel/fork.c"), "line 31\n", "other 31\n");
        };
        let (cases, fork) = drifted("7.4.1", change);
        assert_eq!(status(&cases), [Pass, Pass, Fail]);
        let said = &cases[2].detail;
        assert!(
            said.contains("hunk 2 of 2 in kernel/fork.c")
                && said.contains("left out: what conflicts in kernel/fork.c"),
            "{said}"
        );
        // The other hunk is in, and the mail with it.
        assert!(fork.starts_with("3 mails\n"), "{fork}");
        assert!(
            fork.contains("third\n") && !fork.contains("third again"),
            "{fork}"
        );
        assert_eq!(status(&drifted("7.2.9", change).0), [Pass, Pass, Skip]);
    }

    #[test]
    fn a_file_that_is_gone_takes_its_patch_along() {
        let (cases, fork) = drifted("7.4.1", |base| {
            fs::remove_file(base.join("mm/Makefile")).unwrap();
        });
        assert_eq!(status(&cases), [Pass, Fail, Pass]);
        assert!(fork.contains("third again"), "{fork}");
    }
}
