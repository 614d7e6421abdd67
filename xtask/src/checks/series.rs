//! The stage `series`: what is mailed is what is built.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::host::failure::Exit;
use crate::host::sh;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::Case;
use crate::series::git;
use crate::series::mail;
use crate::series::patch::Selection;
use crate::series::user;

/// What is mailed applies with `git am` and gives the tree that is built; `apply` can be undone.
pub fn cases(project: &Project, shop: &Workshop<'_>) -> Result<Vec<Case>> {
    let cache = &project.cache;
    let dir = tempfile::tempdir_in(cache.dir("tree")?)?;
    let threads = mail::export(cache, &shop.base, &shop.series, &dir.path().join("mails"))?;
    let patches = mail::patches(&threads);
    let mut cases = vec![match patches.len() {
        0 => Case::failed("series/export", "the series has no patch"),
        _ => Case::passed("series/export"),
    }];

    for thread in &threads {
        let name = thread.dir.file_name().unwrap_or_default().to_string_lossy();
        cases.push(Case::of(
            format!("series/recipients of {name}"),
            mail::recipients(&shop.base, thread).map(|_| ()),
        ));
    }

    let whole = dir.path().join("whole");
    git::export(
        cache,
        &shop.base,
        &shop.series,
        &Selection::default(),
        &whole,
        git::Checkout::Nothing,
    )?;
    let pristine = dir.path().join("pristine");
    let none = Selection::first(0);
    git::export(
        cache,
        &shop.base,
        &shop.series,
        &none,
        &pristine,
        git::Checkout::Touched,
    )?;
    cases.push(Case::of("series/git am gives the same tree", {
        // As a person would, who has them all in a folder.
        let mails: Vec<&PathBuf> = threads
            .iter()
            .flat_map(|thread| thread.cover.iter().chain(&thread.patches))
            .collect();
        git_am(&pristine, &mails, &dir.path().join("am.log")).and_then(|()| {
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
    git::touched(&shop.base.dir, &shop.series, &scratch)?;
    let before = git::snapshot(&scratch)?;
    cases.push(Case::of("series/apply", {
        user::apply(&shop.series, &scratch, false).and_then(|()| {
            anyhow::ensure!(git::snapshot(&scratch)? != before, "apply changed nothing");
            Ok(())
        })
    }));
    cases.push(Case::of(
        "series/apply --reverse leaves the tree as it was",
        {
            user::apply(&shop.series, &scratch, true).and_then(|()| {
                anyhow::ensure!(git::snapshot(&scratch)? == before, "something is left over");
                Ok(())
            })
        },
    ));
    Ok(cases)
}

fn git_am(dir: &Path, mails: &[&PathBuf], log: &Path) -> Result<()> {
    let mut git = sh::git(dir);
    git.env("GIT_COMMITTER_NAME", "xtask")
        .env("GIT_COMMITTER_EMAIL", "xtask@localhost");
    // Cover letters have no patch.
    git.args(["am", "--quiet", "--empty=drop"]).args(mails);
    sh::logged(
        &git,
        log,
        Exit::Patch,
        "export it and look at the mail named in the log",
        |_| (),
    )
}
