//! The stage `series`: what is mailed is what is built, and can be taken apart as it says.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{ensure, Result};
use regex::Regex;

use crate::host::failure::Exit;
use crate::host::sh;
use crate::kernel::workshop::{Project, Workshop};
use crate::results::case::Case;
use crate::series::git::{self, Commits};
use crate::series::mail;
use crate::series::patch::{assemble, Patch, Selection, Series};
use crate::series::user;

/// Each message ends with what has assisted, as `process/coding-assistants.rst` wants it.
static ASSISTED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\nAssisted-by: LLM( [a-z0-9-]+)*$").expect("valid"));
/// The kernel's list of who looks after what: one patch brings all of ours, or trees would conflict.
const MAINTAINERS: &str = "MAINTAINERS";

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
            mail::recipients(&shop.base, thread),
        ));
    }

    cases.extend(apart(&shop.base.dir, &shop.series));

    let all = [shop.series.select(&Selection::default())?];
    let whole = Commits::make(cache, &shop.base, &shop.series, &all)?;
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
            let hash = |dir: &Path, commit: &str| {
                let tree = format!("{commit}^{{tree}}");
                sh::capture(sh::git(dir).args(["rev-parse", &tree]))
            };
            let mailed = hash(&pristine, "HEAD")?;
            let built = hash(&whole.repository, &whole.tips[0])?;
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

/// What can be seen of the patches alone.
fn apart(base: &Path, series: &Series) -> Vec<Case> {
    let none = |what: &str, found: Vec<&Patch>| {
        let files: Vec<&str> = found.iter().map(|p| p.entry.file.as_str()).collect();
        ensure!(found.is_empty(), "{what}: {}", files.join(", "));
        Ok(())
    };
    let all = || series.patches.iter();
    let silent = all().filter(|p| !ASSISTED.is_match(&p.body)).collect();
    let listing = all().filter(|p| p.touches().contains(&MAINTAINERS.into()));
    vec![
        Case::of(
            "series/each patch applies on what it needs",
            alone(base, series),
        ),
        Case::of("series/others apply in any order", orders(base, series)),
        Case::of(
            "series/each message says what has assisted",
            none("the last line is no `Assisted-by: LLM [TOOL]`", silent),
        ),
        Case::of(
            "series/one patch has all of MAINTAINERS",
            none("more than one touches it", listing.skip(1).collect()),
        ),
    ]
}

/// Each patch applies to the base with what it needs and nothing else.
fn alone(base: &Path, series: &Series) -> Result<()> {
    for index in 0..series.patches.len() {
        let wanted = series.with_needs(index..index + 1)?;
        let subject = &series.patches[index].subject;
        assemble(base, &series.repo, &wanted, false)
            .map_err(|error| error.context(format!("\"{subject}\" on what it needs")))?;
    }
    Ok(())
}

/// Where one patch does not need another, both apply, the later one first. If they have no file in
/// common, there is nothing to try.
fn orders(base: &Path, series: &Series) -> Result<()> {
    for (late, patch) in series.patches.iter().enumerate() {
        let before = series.needed(late..late + 1)?;
        let touched = patch.touches();
        for (early, other) in series.patches[..late].iter().enumerate() {
            if before[early] || !other.touches().iter().any(|path| touched.contains(path)) {
                continue;
            }
            let after = series.needed(early..early + 1)?;
            let first = (0..=late).filter(|index| before[*index]);
            let then = (0..=early).filter(|index| after[*index] && !before[*index]);
            let order = first.chain(then).map(|index| &series.patches[index]);
            assemble(base, &series.repo, &order.collect::<Vec<_>>(), false).map_err(|error| {
                let (late, early) = (&patch.subject, &other.subject);
                error.context(format!("\"{late}\" before \"{early}\""))
            })?;
        }
    }
    Ok(())
}

fn git_am(dir: &Path, mails: &[&PathBuf], log: &Path) -> Result<()> {
    let mut git = sh::git(dir);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::patch::tests::fixture;
    use crate::series::patch::{DIR, LIST};

    /// What is said of the fixture's series, with more lines in its list for some patches.
    fn failures(more: &[(&str, &str)], change: impl Fn(&Path)) -> Vec<String> {
        let (_dir, base, repo) = fixture();
        let mut list = std::fs::read_to_string(repo.join(LIST)).unwrap();
        for (patch, lines) in more {
            let file = format!("file = \"{patch}\"\n");
            assert!(list.contains(&file), "{list}");
            list = list.replace(&file, &format!("{file}{lines}\n"));
        }
        std::fs::write(repo.join(LIST), list).unwrap();
        change(&repo);
        let cases = apart(&base, &Series::load(&repo).unwrap());
        let texts = cases
            .iter()
            .map(|case| serde_json::to_string(case).unwrap());
        texts.filter(|text| text.contains("\"fail\"")).collect()
    }

    fn replace(path: PathBuf, from: &str, to: &str) {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Gives all messages the tag.
    fn assisted(repo: &Path) {
        let patches = repo.join(DIR);
        replace(
            patches.join("0001-first.patch"),
            "Why.\n",
            "Why.\n\nAssisted-by: LLM\n",
        );
        replace(
            patches.join("0002-second.patch"),
            "not.\n",
            "not.\n\nFixes: 0123456789ab (\"a\")\nAssisted-by: LLM herd7 sparse\n",
        );
        replace(
            patches.join("0003-third.patch"),
            "paragraphs.\n",
            "paragraphs.\n\nAssisted-by: LLM\n",
        );
    }

    #[test]
    fn a_message_without_the_tag_is_named() {
        assert!(failures(&[], assisted).is_empty());
        let found = failures(&[], |repo| {
            assisted(repo);
            let first = repo.join(DIR).join("0001-first.patch");
            replace(first, "Assisted-by: LLM\n", "Assisted-by: Somebody\n");
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("0001-first.patch"), "{found:?}");
    }

    #[test]
    fn a_patch_that_needs_more_than_it_says_is_found() {
        let second = ("0002-second.patch", "needs = []");
        assert!(failures(&[second], assisted).is_empty());
        let found = failures(&[("0003-third.patch", "needs = []")], assisted);
        assert!(found[0].contains("on what it needs"), "{found:?}");
        let named = ("0003-third.patch", "needs = [\"fork: first\"]");
        assert!(failures(&[second, named], assisted).is_empty());
        let unknown = ("0003-third.patch", "needs = [\"fork: fourth\"]");
        let found = failures(&[unknown], assisted);
        assert!(found[0].contains("fork: fourth"), "{found:?}");
    }

    #[test]
    fn patches_that_do_not_need_each_other_apply_in_any_order() {
        let third = ("0003-third.patch", "needs = []");
        let apart = |line: &'static str| {
            failures(&[third], move |repo| {
                assisted(repo);
                let path = repo.join(DIR).join("0003-third.patch");
                let text = std::fs::read_to_string(&path).unwrap();
                let hunk = text.find("@@ -3,4").unwrap()..text.find("@@ -30,3").unwrap();
                std::fs::write(path, text.replace(&text[hunk], line)).unwrap();
            })
        };
        // Far away from what the first patch changes, and next to it.
        assert!(apart("").is_empty());
        let next = "@@ -3,2 +3,3 @@ line 2\n line 3\n+third\n line 4\n";
        let found = apart(next);
        assert!(
            found.iter().any(|text| text.contains("before")),
            "{found:?}"
        );
    }

    #[test]
    fn maintainers_are_in_one_patch() {
        let found = failures(&[], |repo| {
            assisted(repo);
            for patch in ["0001-first.patch", "0002-second.patch"] {
                let path = repo.join(DIR).join(patch);
                let text = std::fs::read_to_string(&path).unwrap();
                let hunk = "diff --git a/MAINTAINERS b/MAINTAINERS\n";
                std::fs::write(path, text + hunk).unwrap();
            }
        });
        let said = found.iter().find(|text| text.contains("touches it"));
        let said = said.unwrap();
        assert!(
            said.contains("0002-second.patch") && !said.contains("0001"),
            "{said}"
        );
    }
}
