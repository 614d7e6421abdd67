//! The patch series: its list, its parts, and what is meant of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::host::cache::digest;
use crate::host::failure::{fail, Exit};
pub use crate::series::hunks::{
    assemble, changed, combined, explain, on_top, symbols_of, Changes, Content, Entry, Patch, Step,
    DIR, LIST,
};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    patch: Vec<Entry>,
}

/// The whole series and the repository that its new files are in.
#[derive(Debug)]
pub struct Series {
    pub repo: PathBuf,
    pub patches: Vec<Patch>,
}

pub struct Part<'a> {
    pub cover: Option<&'a str>,
    pub patches: &'a [Patch],
}

impl Part<'_> {
    pub fn name(&self) -> &str {
        self.cover.unwrap_or("patches").trim_end_matches(".md")
    }
}

/// Which part of a series is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only the first so many patches.
    pub upto: Option<usize>,
    /// Without the patches whose file name starts with one of these.
    pub skip: Vec<String>,
}

impl Selection {
    /// The first so many patches.
    pub fn first(count: usize) -> Self {
        Selection {
            upto: Some(count),
            skip: Vec::new(),
        }
    }

    /// A suffix for cache names, so that a part of the series is never taken for the whole.
    pub fn suffix(&self) -> String {
        let mut suffix = String::new();
        if let Some(upto) = self.upto {
            suffix.push_str(&format!("-upto{upto}"));
        }
        if !self.skip.is_empty() {
            suffix.push_str(&format!("-skip{}", self.skip.join("+")));
        }
        suffix
    }
}

impl Series {
    pub fn load(repo: &Path) -> Result<Self> {
        let path = repo.join(LIST);
        let text = fs::read_to_string(&path).map_err(|error| {
            fail(
                Exit::Patch,
                format!("failed to read {}: {error}", path.display()),
                "restore it (`git checkout patches`)",
            )
        })?;
        let list: List = toml::from_str(&text).map_err(|error| {
            let what = format!("{}: {error}", path.display());
            fail(
                Exit::Patch,
                what,
                "each [[patch]] has `file`, and may have `cover`, `needs` and `adds`",
            )
        })?;
        let mut patches = Vec::new();
        for entry in list.patch {
            let path = repo.join(DIR).join(&entry.file);
            let text = fs::read_to_string(&path).map_err(|error| {
                fail(
                    Exit::Patch,
                    format!("failed to read {}: {error}", path.display()),
                    format!("restore it, or take it out of {LIST}"),
                )
            })?;
            patches.push(Patch::parse(DIR, entry, &text)?);
        }
        let repo = repo.to_owned();
        Ok(Series { repo, patches })
    }

    pub fn list_text(entries: Vec<Entry>) -> Result<String> {
        let list = toml::to_string_pretty(&List { patch: entries })?;
        Ok(format!(
            "# The series, in order. `adds` are the new files of a patch; each stands in this\n\
             # repository at its final path, and is in exactly one patch. With a `cover` begins\n\
             # what is mailed as a thread of its own. `needs` is what a patch needs besides the\n\
             # base: all patches of a cover, or the one with that subject. Without `needs`, it\n\
             # needs those before it in its thread, and what the first one of these needs.\n\n{list}"
        ))
    }

    pub fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        let mut rest = &self.patches[..];
        while let Some(first) = rest.first() {
            let next = rest[1..].iter().position(|p| p.entry.cover.is_some());
            let (patches, others) = rest.split_at(next.map_or(rest.len(), |next| next + 1));
            let cover = first.entry.cover.as_deref();
            parts.push(Part { cover, patches });
            rest = others;
        }
        parts
    }

    /// Some patches with those that must be there before them, in order.
    pub fn with_needs(&self, wanted: std::ops::Range<usize>) -> Result<Vec<&Patch>> {
        let needed = self.needed(wanted)?;
        let all = self.patches.iter().zip(needed);
        Ok(all.filter(|(_, needed)| *needed).map(|(p, _)| p).collect())
    }

    /// Whether each patch must be there before one of `wanted` can be applied, `wanted` included.
    pub fn needed(&self, wanted: std::ops::Range<usize>) -> Result<Vec<bool>> {
        let mut needed = vec![false; self.patches.len()];
        needed[wanted.clone()].fill(true);
        // What is needed comes before, so that once through from the end finds it all.
        for index in (0..wanted.end).rev() {
            if needed[index] {
                for others in self.needs(index)? {
                    needed[others].fill(true);
                }
            }
        }
        Ok(needed)
    }

    /// What a patch says that it needs, which comes before it.
    fn needs(&self, index: usize) -> Result<Vec<std::ops::Range<usize>>> {
        let patch = &self.patches[index];
        let starts = |i: &usize| *i == 0 || self.patches[*i].entry.cover.is_some();
        let first = (0..=index).rev().find(starts).unwrap_or(0);
        let mut found = Vec::new();
        let names = match &patch.entry.needs {
            Some(names) => names.as_slice(),
            None => {
                found.push(first..index);
                self.patches[first].entry.needs.as_deref().unwrap_or(&[])
            }
        };
        for name in names {
            let is_it = |p: &Patch| p.entry.cover.as_ref() == Some(name) || p.subject == *name;
            let start = self.patches[..index].iter().position(is_it);
            let start = start.ok_or_else(|| {
                let path = patch.path();
                fail(
                    Exit::Patch,
                    format!(
                        "{} needs \"{name}\", which is not before it",
                        path.display()
                    ),
                    format!("name a cover letter or a subject in {LIST}"),
                )
            })?;
            let last = match self.patches[start].entry.cover.as_ref() == Some(name) {
                true => (start + 1..index).find(starts).unwrap_or(index),
                false => start + 1,
            };
            found.push(start..last);
        }
        Ok(found)
    }

    /// The patches that are meant, in order.
    pub fn select(&self, selection: &Selection) -> Result<Vec<&Patch>> {
        let named = |prefix: &String| {
            let file = |p: &Patch| p.entry.file.starts_with(prefix.as_str());
            !prefix.is_empty() && self.patches.iter().any(file)
        };
        if let Some(unknown) = selection.skip.iter().find(|prefix| !named(prefix)) {
            return Err(fail(
                Exit::Usage,
                format!("--skip {unknown}: no patch has a file name that starts so"),
                format!("see {LIST} for the names"),
            ));
        }
        let count = selection.upto.unwrap_or(self.patches.len());
        if count > self.patches.len() {
            return Err(fail(
                Exit::Usage,
                format!(
                    "--upto {count}: the series has {} patches",
                    self.patches.len()
                ),
                "ask for fewer",
            ));
        }
        let skipped = |p: &&Patch| !selection.skip.iter().any(|s| p.entry.file.starts_with(s));
        Ok(self.patches[..count].iter().filter(skipped).collect())
    }

    /// What the patches that are meant make of a base tree.
    pub fn changes(&self, base: &Path, selection: &Selection) -> Result<Changes> {
        let patches = self.select(selection)?;
        Ok(combined(assemble(base, &self.repo, &patches, false)?))
    }

    /// The Kconfig symbols that the hunks define or change.
    pub fn symbols(&self) -> BTreeSet<String> {
        self.patches
            .iter()
            .flat_map(|patch| symbols_of(&patch.diff))
            .collect()
    }

    /// Every file of this repository that `import` writes.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let added = self.added().into_iter().map(Path::to_owned);
        let patches = self.patches.iter().map(Patch::path);
        added.chain(patches).chain([LIST.into()]).collect()
    }

    /// A short name for what these files hold.
    pub fn digest(&self) -> Result<String> {
        let mut parts = Vec::new();
        for path in self.files() {
            let content = Content::read(&self.repo.join(&path))?;
            parts.push(path.into_os_string().into_encoded_bytes());
            parts.extend(content.map(|content| content.bytes));
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        Ok(digest(&parts))
    }

    /// Every file of this repository that belongs into the kernel.
    pub fn added(&self) -> BTreeSet<&Path> {
        let adds = self.patches.iter().flat_map(|patch| &patch.entry.adds);
        adds.map(PathBuf::as_path).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::host::failure::classify;
    use std::os::unix::fs::PermissionsExt;

    /// A base tree of two files and a series of three patches, as small as they can be.
    pub fn fixture() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (base, repo) = (dir.path().join("base"), dir.path().join("repo"));
        let put = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            base.join("Makefile"),
            "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\n",
        );
        let lines = |n: usize| (1..=n).map(|i| format!("line {i}\n")).collect::<String>();
        put(base.join("kernel/fork.c"), &lines(40));
        put(base.join("mm/Makefile"), "obj-y := mm.o\n");
        put(base.join("scripts/run.sh"), "#!/bin/sh\n");
        fs::set_permissions(
            base.join("scripts/run.sh"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        put(
            repo.join(LIST),
            "[[patch]]\nfile = \"0001-first.patch\"\n\n\
             [[patch]]\nfile = \"0002-second.patch\"\nadds = [\"mm/lazy_tlb/lazy_tlb.rs\"]\n\n\
             [[patch]]\nfile = \"0003-third.patch\"\n",
        );
        put(repo.join("mm/lazy_tlb/lazy_tlb.rs"), "//! Ours.\n");
        put(
            repo.join("patches/0001-first.patch"),
            "Subject: fork: first\n\nWhy.\n---\n\
             diff --git a/kernel/fork.c b/kernel/fork.c\n--- a/kernel/fork.c\n+++ b/kernel/fork.c\n\
             @@ -3,3 +3,4 @@ line 2\n line 3\n line 4\n+first\n line 5\n",
        );
        put(
            repo.join("patches/0002-second.patch"),
            "Subject: mm: second\n\nWhy not.\n---\n\
             diff --git a/mm/Makefile b/mm/Makefile\n--- a/mm/Makefile\n+++ b/mm/Makefile\n\
             @@ -1 +1,2 @@\n obj-y := mm.o\n+obj-y += lazy_tlb/\n",
        );
        put(
            repo.join("patches/0003-third.patch"),
            "Subject: fork: third\n\nTwo hunks.\n\nAnd two paragraphs.\n---\n\
             diff --git a/kernel/fork.c b/kernel/fork.c\n--- a/kernel/fork.c\n+++ b/kernel/fork.c\n\
             @@ -3,4 +3,5 @@ line 2\n line 3\n line 4\n first\n+third\n line 5\n\
             @@ -30,3 +31,4 @@ line 29\n line 30\n line 31\n+third again\n line 32\n",
        );
        (dir, base, repo)
    }

    #[test]
    fn patches_build_on_each_other() {
        let (_dir, base, repo) = fixture();
        let series = Series::load(&repo).unwrap();
        let patches = series.select(&Selection::default()).unwrap();
        let steps = assemble(&base, &repo, &patches, false).unwrap();
        assert_eq!(steps.len(), 3);
        let changes = combined(steps);
        let fork = changes[Path::new("kernel/fork.c")].as_ref().unwrap();
        let text = String::from_utf8(fork.bytes.clone()).unwrap();
        assert!(text.contains("line 4\nfirst\nthird\nline 5\n"));
        assert!(text.contains("line 31\nthird again\nline 32\n"));
        let ours = changes[Path::new("mm/lazy_tlb/lazy_tlb.rs")]
            .as_ref()
            .unwrap();
        assert_eq!(ours.bytes, b"//! Ours.\n");
        assert!(
            !fs::read_to_string(base.join("kernel/fork.c"))
                .unwrap()
                .contains("first"),
            "the base is not written to"
        );
    }

    #[test]
    fn a_hunk_that_does_not_fit_is_named() {
        let (_dir, base, repo) = fixture();
        let fork = base.join("kernel/fork.c");
        let text = fs::read_to_string(&fork)
            .unwrap()
            .replace("line 31", "other");
        fs::write(&fork, text).unwrap();
        let series = Series::load(&repo).unwrap();
        let patches = series.select(&Selection::default()).unwrap();
        let error = assemble(&base, &repo, &patches, false).err().unwrap();
        let (exit, error) = classify(error);
        let text = error.to_string();
        assert_eq!(exit, Exit::Patch);
        assert!(text.contains("0003-third.patch"), "{text}");
        assert!(
            text.contains("hunk 2 of 2 in kernel/fork.c: @@ -30,3 +31,4 @@"),
            "{text}"
        );
    }

    #[test]
    fn one_more_patch_may_change_what_the_series_adds() {
        let (_dir, base, repo) = fixture();
        let series = Series::load(&repo).unwrap();
        let changes = series.changes(&base, &Selection::default()).unwrap();
        let more = |line: &str| {
            let entry = Entry::new("more.patch");
            let text = format!(
                "Subject: a\n\nb\n---\n\
                 diff --git a/mm/lazy_tlb/lazy_tlb.rs b/mm/lazy_tlb/lazy_tlb.rs\n\
                 --- a/mm/lazy_tlb/lazy_tlb.rs\n+++ b/mm/lazy_tlb/lazy_tlb.rs\n\
                 @@ -1 +1 @@\n-{line}\n+//! Theirs.\n"
            );
            on_top(
                &base,
                &changes,
                &Patch::parse("more", entry, &text).unwrap(),
            )
        };
        let after = more("//! Ours.").unwrap();
        let ours = after[Path::new("mm/lazy_tlb/lazy_tlb.rs")]
            .as_ref()
            .unwrap();
        assert_eq!((after.len(), &ours.bytes[..]), (1, &b"//! Theirs.\n"[..]));
        let text = more("//! Nobody's.").err().unwrap().to_string();
        assert!(text.contains("more/more.patch does not apply"), "{text}");
        assert!(
            text.contains("hunk 1 of 1 in mm/lazy_tlb/lazy_tlb.rs"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let (_dir, base, repo) = fixture();
        let series = Series::load(&repo).unwrap();
        let patches = series.select(&Selection::default()).unwrap();
        let error = || {
            assemble(&base, &repo, &patches, false)
                .err()
                .unwrap()
                .to_string()
        };
        fs::remove_file(repo.join("mm/lazy_tlb/lazy_tlb.rs")).unwrap();
        assert!(error().contains("adds mm/lazy_tlb/lazy_tlb.rs"));
        fs::remove_file(base.join("mm/Makefile")).unwrap();
        let text = error();
        assert!(
            text.contains("0002-second.patch") && text.contains("mm/Makefile"),
            "{text}"
        );
    }

    #[test]
    fn skipping_leaves_out_hunks_and_files() {
        let (_dir, base, repo) = fixture();
        let series = Series::load(&repo).unwrap();
        let skip = |names: &[&str]| Selection {
            upto: None,
            skip: names.iter().map(|s| s.to_string()).collect(),
        };
        let patches = series.select(&skip(&["0002", "0003"])).unwrap();
        let changes = combined(assemble(&base, &repo, &patches, false).unwrap());
        assert_eq!(changes.len(), 1);
        assert!(series.select(&skip(&["0009"])).is_err());
        assert!(series.select(&skip(&[""])).is_err());
        assert_eq!(skip(&["0002", "0003"]).suffix(), "-skip0002+0003");
        assert_eq!(series.select(&Selection::first(2)).unwrap().len(), 2);
        assert!(series.select(&Selection::first(4)).is_err());
    }

    #[test]
    fn symbols_are_those_that_a_hunk_defines_or_changes() {
        let diff = "diff --git a/kernel/fork.c b/kernel/fork.c\n--- a/kernel/fork.c\n\
                    +++ b/kernel/fork.c\n@@ -1 +1,2 @@ config NONE\n a\n+config NEITHER\n\
                    diff --git a/arch/Kconfig b/arch/Kconfig\n--- a/arch/Kconfig\n\
                    +++ b/arch/Kconfig\n@@ -5,5 +5,6 @@ config FIRST\n \n+\tdepends on A\n \n \
                    config SECOND\n-\tbool\n+\tbool \"Second\"\n config NOT_THIS\n@@ -50 +51,3 @@\n \
                    a\n+config THIRD\n+\tbool\n";
        let found: Vec<String> = symbols_of(diff).into_iter().collect();
        assert_eq!(found, ["FIRST", "SECOND", "THIRD"]);
        // What the variants ask for without the series, the last one aside.
        let ours = Series::load(&crate::kernel::workshop::repository()).unwrap();
        for symbol in ["MMU_LAZY_TLB_SHOOTDOWN", "MMU_LAZY_TLB_SHOOTDOWN_RUST"] {
            assert!(ours.symbols().contains(symbol), "{symbol}");
        }
        assert!(!ours.symbols().contains("RUST"));
    }

    #[test]
    fn a_patch_file_is_read_back_as_written() {
        let (_dir, _base, repo) = fixture();
        for patch in Series::load(&repo).unwrap().patches {
            let path = repo.join(patch.path());
            assert_eq!(patch.text(), fs::read_to_string(path).unwrap());
        }
    }

    #[test]
    fn a_malformed_patch_file_is_refused() {
        for text in [
            "",
            "Subject: a\nb\n\nc\n---\n",
            "Subject: a\n\nb\n",
            "a\n\nb\n---\n",
        ] {
            let entry = Entry::new("0001-a.patch");
            assert!(Patch::parse(DIR, entry, text).is_err(), "{text:?}");
        }
    }
}
