//! `import`: patches and new files again from a git tree with a commit for each patch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::series::git::update;
use crate::series::patch::{Changes, Content, Entry, Patch, Series};

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
    let old = match repo.join(crate::series::patch::LIST).exists() {
        true => Series::load(repo)?.patches,
        false => Vec::new(),
    };
    let entries = || old.iter().map(|patch| &patch.entry);
    for entry in entries().filter(|entry| entry.cover.is_some()) {
        let same = patches
            .iter_mut()
            .find(|new| new.entry.slug() == entry.slug());
        let same = same.ok_or_else(|| {
            fail(
                Exit::Patch,
                format!("{} has a cover letter and is gone", entry.file),
                format!(
                    "give its `cover` to another patch in {}",
                    crate::series::patch::LIST
                ),
            )
        })?;
        same.entry.cover = entry.cover.clone();
    }
    for new in &mut patches {
        let same = entries().find(|entry| entry.slug() == new.entry.slug());
        new.entry.needs = same.and_then(|entry| entry.needs.clone());
    }
    let files = |patches: &[Patch]| -> BTreeSet<PathBuf> {
        let new = patches.iter().flat_map(|p| p.entry.adds.clone());
        let own = patches.iter().map(Patch::path);
        new.chain(own).collect()
    };
    let mut changes = Changes::new();
    for path in files(&old) {
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
    changes.insert(crate::series::patch::LIST.into(), Some(list));
    for (path, content) in &changes {
        update(&repo.join(path), content.as_ref())?;
    }
    println!("{} patches, {} files", patches.len(), changes.len());
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
    use crate::series::git::tests::base_at;
    use crate::series::git::{export, Checkout};
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
}
