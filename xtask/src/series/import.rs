//! `import`: patches and new files again from a git tree with a commit for each patch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::series::git::{note, update_all, NOTE};
use crate::series::patch::{Changes, Content, Entry, Patch, Series, LIST};

/// Rewrites `patches/` and the new files from a git tree with one commit per patch.
pub fn import(repo: &Path, from: &Path) -> Result<()> {
    let git = |args: &[&str]| sh::capture(sh::git(from).args(args));
    let usage = |what: String| {
        fail(
            Exit::Usage,
            what,
            "make the tree with `cargo xtask tree --out DIR` and change its commits",
        )
    };
    let ids = git(&["rev-list", "--reverse", "HEAD"])
        .map_err(|_| usage(format!("{} is not a git tree", from.display())))?;
    let mut ids = ids.lines();
    let root = ids.next().unwrap_or_default();
    if git(&["log", "-1", "--format=%s", root])?.trim() != "base" {
        return Err(usage(format!(
            "{}: the first commit is not `base`",
            from.display()
        )));
    }
    if !git(&["status", "--porcelain"])?.trim().is_empty() {
        return Err(fail(
            Exit::Usage,
            format!("{} has changes that are in no commit", from.display()),
            "commit them into the patch that they belong to",
        ));
    }

    let mut owner: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut patches = Vec::new();
    for (index, id) in ids.enumerate() {
        let range = format!("{id}^..{id}");
        let subject = git(&["log", "-1", "--format=%s", id])?.trim().to_owned();
        let status = git(&["diff", "--no-renames", "--name-status", &range])?;
        let (mut adds, mut touches) = (Vec::new(), Vec::new());
        for line in status.lines() {
            let (kind, path) = line.split_once('\t').context("git diff --name-status")?;
            let path_buf = PathBuf::from(path);
            if let Some(first) = owner.get(&path_buf) {
                return Err(fail(
                    Exit::Patch,
                    format!("{path} is new in \"{first}\" and changed in \"{subject}\""),
                    "a new file is whole in one patch: squash the change into the first commit",
                ));
            }
            if kind == "A" {
                owner.insert(path_buf.clone(), subject.clone());
                adds.push(path_buf);
            } else {
                touches.push(path);
            }
        }
        let mut diff = String::new();
        if !touches.is_empty() {
            let mut args = vec!["diff", "--no-renames", "--no-color"];
            args.extend([
                "--no-ext-diff",
                "--src-prefix=a/",
                "--dst-prefix=b/",
                "-U3",
                &range,
                "--",
            ]);
            args.extend(touches);
            diff = without_index_lines(&git(&args)?);
        }
        let slug = git(&["log", "-1", "--format=%f", id])?;
        let file = format!("{:04}-{}.patch", index + 1, slug.trim());
        let body = git(&["log", "-1", "--format=%b", id])?.trim().to_owned();
        let entry = Entry {
            adds,
            ..Entry::new(file)
        };
        patches.push(Patch {
            dir: crate::series::patch::DIR,
            entry,
            subject,
            body,
            diff,
        });
    }

    write_series(repo, from, patches)
}

/// Replaces what the repository holds; the files of the old series that are not in the new go.
fn write_series(repo: &Path, from: &Path, mut patches: Vec<Patch>) -> Result<()> {
    let old = match repo.join(LIST).exists() {
        true => Some(Series::load(repo)?),
        false => None,
    };
    let entries = || {
        let patches = old.iter().flat_map(|series| &series.patches);
        patches.map(|patch| &patch.entry)
    };
    for entry in entries().filter(|entry| entry.cover.is_some()) {
        let same = patches
            .iter_mut()
            .find(|new| new.entry.slug() == entry.slug());
        let same = same.ok_or_else(|| {
            fail(
                Exit::Patch,
                format!("{} has a cover letter and is gone", entry.file),
                format!("give its `cover` to another patch in {LIST}"),
            )
        })?;
        same.entry.cover = entry.cover.clone();
    }
    for new in &mut patches {
        let same = entries().find(|entry| entry.slug() == new.entry.slug());
        new.entry.needs = same.and_then(|entry| entry.needs.clone());
    }
    let mut changes = Changes::new();
    for path in old.iter().flat_map(Series::files) {
        changes.insert(path, None);
    }
    for patch in &patches {
        for path in &patch.entry.adds {
            changes.insert(path.clone(), Content::read(&from.join(path))?);
        }
        let content = Content {
            bytes: patch.text().into_bytes(),
            executable: false,
        };
        changes.insert(patch.path(), Some(content));
    }
    let entries = patches.iter().map(|p| p.entry.clone()).collect();
    let list = Content {
        bytes: Series::list_text(entries)?.into_bytes(),
        executable: false,
    };
    changes.insert(LIST.into(), Some(list));
    must_lose_nothing(repo, from, old.as_ref(), &changes)?;
    update_all(repo, &changes)?;
    note(from, &Series::load(repo)?)?;
    println!("{} patches, {} files", patches.len(), changes.len());
    Ok(())
}

/// An error if the repository has something that is neither in the tree's past nor in a commit.
fn must_lose_nothing(
    repo: &Path,
    from: &Path,
    old: Option<&Series>,
    changes: &Changes,
) -> Result<()> {
    let mut known = BTreeSet::new();
    let noted = sh::capture(sh::git(from).args(["config", NOTE]));
    // What `git am` made has no note.
    if let (Some(old), Ok(noted)) = (old, noted) {
        if noted.trim() != old.digest()? {
            return Err(fail(
                Exit::Usage,
                format!("the series is not as it was when {} was made", from.display()),
                format!(
                    "make a new tree and cherry-pick your commits; or bring into this one what has changed \
                     here, and then `git -C {} config --unset {NOTE}`",
                    from.display()
                ),
            ));
        }
        known = old.files();
    }
    let mut paths = Vec::new();
    for (path, content) in changes {
        if !known.contains(path) && Content::read(&repo.join(path))? != *content {
            paths.push(path);
        }
    }
    if paths.is_empty() || !repo.join(".git").exists() {
        return Ok(());
    }
    let mut git = sh::git(repo);
    git.args(["status", "--porcelain", "--untracked-files=all", "--"]);
    let lost = sh::capture(git.args(paths))?;
    if !lost.is_empty() {
        return Err(fail(
            Exit::Usage,
            format!("changes in no commit would be lost:\n{}", lost.trim_end()),
            "commit them, and import again",
        ));
    }
    Ok(())
}

/// `index` lines carry object ids that say nothing to a reader and change with every base.
fn without_index_lines(diff: &str) -> String {
    let mut header = false;
    let mut kept = String::new();
    for line in diff.split_inclusive('\n') {
        if line.starts_with("diff --git ") {
            header = true;
        } else if line.starts_with("@@ ") {
            header = false;
        }
        if !(header && line.starts_with("index ")) {
            kept.push_str(line);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cache::Cache;
    use crate::host::failure::classify;
    use crate::series::git::tests::base_at;
    use crate::series::git::{export, snapshot, Checkout};
    use crate::series::mail;
    use crate::series::patch::tests::fixture;
    use crate::series::patch::Selection;
    use std::fs;

    #[test]
    fn import_removes_what_the_series_no_longer_has() {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let (base, series) = (base_at(&base), Series::load(&repo).unwrap());
        let tree = dir.path().join("tree");
        let first = Selection::first(1);
        export(&cache, &base, &series, &first, &tree, Checkout::All).unwrap();
        import(&repo, &tree).unwrap();
        assert_eq!(Series::load(&repo).unwrap().patches.len(), 1);
        assert!(!repo.join("mm/lazy_tlb/lazy_tlb.rs").exists());
        assert!(!repo.join("patches/0003-third.patch").exists());
    }

    #[test]
    fn import_refuses_a_new_file_in_two_patches() {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let (base, series) = (base_at(&base), Series::load(&repo).unwrap());
        let tree = dir.path().join("tree");
        export(
            &cache,
            &base,
            &series,
            &Selection::default(),
            &tree,
            Checkout::All,
        )
        .unwrap();
        fs::write(tree.join("mm/lazy_tlb/lazy_tlb.rs"), "//! Changed.\n").unwrap();
        let mut git = sh::git(&tree);
        sh::capture(git.args(["commit", "-qam", "later"])).unwrap();
        let text = import(&repo, &tree).unwrap_err().to_string();
        assert!(text.contains("squash"), "{text}");
    }

    /// A repository in git with the fixture's series, and a tree of as much of it.
    fn committed(upto: Option<usize>) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let (base, series) = (base_at(&base), Series::load(&repo).unwrap());
        let tree = dir.path().join("tree");
        let selection = Selection {
            upto,
            ..Selection::default()
        };
        export(&cache, &base, &series, &selection, &tree, Checkout::All).unwrap();
        git(&repo, &["init", "--quiet"]);
        commit(&repo);
        (dir, repo, tree)
    }

    fn git(dir: &Path, args: &[&str]) {
        sh::capture(sh::git(dir).args(args)).unwrap();
    }

    fn commit(repo: &Path) {
        git(repo, &["add", "."]);
        git(repo, &["commit", "--quiet", "-m", "more"]);
    }

    const OURS: &str = "mm/lazy_tlb/lazy_tlb.rs";

    fn refused(repo: &Path, tree: &Path) -> String {
        let before = snapshot(repo).unwrap();
        let (exit, error) = classify(import(repo, tree).unwrap_err());
        assert_eq!(exit, Exit::Usage);
        assert_eq!(snapshot(repo).unwrap(), before);
        error.to_string()
    }

    #[test]
    fn import_refuses_where_the_series_changed_since_the_tree_was_made() {
        let (_dir, repo, tree) = committed(None);
        import(&repo, &tree).unwrap();
        fs::write(repo.join(OURS), "//! Edited.\n").unwrap();
        let text = refused(&repo, &tree);
        assert!(text.contains("--unset"), "{text}");
        commit(&repo);
        refused(&repo, &tree);
        // Once it is said that this is well, git has it.
        git(&tree, &["config", "--unset", NOTE]);
        import(&repo, &tree).unwrap();
        // What was imported is of the tree, and need be in no commit when more is.
        git(
            &tree,
            &["commit", "--quiet", "--amend", "-m", "fork: other\n\nWhy."],
        );
        import(&repo, &tree).unwrap();
        assert!(repo.join("patches/0003-fork-other.patch").exists());
    }

    #[test]
    fn import_of_a_tree_made_by_git_am_refuses_what_is_in_no_commit() {
        let (dir, repo, tree) = committed(Some(0));
        let series = Series::load(&repo).unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let base = base_at(&dir.path().join("base"));
        let threads = mail::export(&cache, &base, &series, &dir.path().join("mails")).unwrap();
        let mut am = sh::git(&tree);
        sh::capture(am.args(["am", "--quiet"]).args(mail::patches(&threads))).unwrap();
        fs::write(repo.join(OURS), "//! Edited.\n").unwrap();
        let text = refused(&repo, &tree);
        assert!(text.contains(OURS), "{text}");
        commit(&repo);
        import(&repo, &tree).unwrap();
        assert_eq!(fs::read_to_string(repo.join(OURS)).unwrap(), "//! Ours.\n");
    }
}
