//! The fences: what may stand where, checked file by file. A message is `file:line: what`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{ensure, Context, Result};
use regex::Regex;

use crate::checks::fences::{unpaired_barriers, unsafe_outside_rooms, upward_imports, Text};
use crate::checks::mutants::{self, Mutant};
use crate::host::failure::{fail, Exit};
use crate::host::{install, tools};
use crate::kernel::workshop::Project;
use crate::results::case::Case;
use crate::series::base::Base;
use crate::series::git;
use crate::series::mail;
use crate::series::patch::{on_top, Changes, Patch, Selection, Series};

/// The folders at the top level that are not the kernel's.
const HOST: [&str; 10] = [
    "xtask", "lines", "guest", "configs", "patches", "mutants", "results", "lab", ".ci", ".cargo",
];

struct Tidy<'a> {
    project: &'a Project,
    series: Series,
    base: Base,
    /// The files that git knows or would take up, relative to the top.
    files: BTreeSet<PathBuf>,
}

type Check = fn(&Tidy<'_>) -> Result<Vec<String>>;

const CHECKS: [(&str, Check); 12] = [
    ("unsafe and bindings stay in their rooms", unsafe_rooms),
    ("every new file is in exactly one patch", files_in_patches),
    ("hunks touch the base tree only", hunks),
    ("every mutant applies to the patched tree", mutants_apply),
    ("every .rs begins with what it is", module_docs),
    ("every barrier names its partner", barriers),
    ("imports of the host side go one way", imports),
    ("rustfmt", rustfmt),
    ("checkpatch --strict", checkpatch),
    ("kernel-doc -Werror", kernel_doc),
    ("no path or host of one machine", machine_paths),
    ("nobody is signed off for", sign_offs),
];

pub fn cases(project: &Project) -> Result<Vec<Case>> {
    install::ensure(&project.cache, &[])?;
    let tidy = Tidy {
        project,
        series: project.series()?,
        base: project.base()?,
        files: git::files_of(&project.repo)?,
    };
    let mut cases = Vec::new();
    for (name, check) in CHECKS {
        let found = check(&tidy).and_then(|messages| {
            ensure!(messages.is_empty(), "{}", messages.join("\n"));
            Ok(())
        });
        cases.push(Case::of(format!("tidy/{name}"), found));
    }
    Ok(cases)
}

impl Tidy<'_> {
    /// The patched tree.
    fn tree(&self) -> Result<PathBuf> {
        let all = Selection::default();
        git::patched(&self.project.cache, &self.base, &self.series, &all)
    }

    fn read(&self, path: &Path) -> Result<String> {
        let full = self.project.repo.join(path);
        fs::read_to_string(&full).with_context(|| format!("reading {}", full.display()))
    }

    fn changes(&self) -> Result<Changes> {
        self.series.changes(&self.base.dir, &Selection::default())
    }

    fn kernel_files(&self) -> Vec<&Path> {
        let kernel = |path: &&Path| {
            let mut parts = path.components();
            let top = parts
                .next()
                .map(|part| part.as_os_str().to_owned())
                .unwrap_or_default();
            // A file at the very top is the repository's own.
            parts.next().is_some() && !HOST.iter().any(|dir| top == *dir)
        };
        self.files
            .iter()
            .map(PathBuf::as_path)
            .filter(kernel)
            .collect()
    }

    /// The lines that our patches and files bring into the kernel: file, line, text.
    ///
    /// A hunk's lines are numbered within the patch file, for that is what one edits.
    fn texts(&self) -> Result<Vec<Text>> {
        let mut texts = Vec::new();
        for path in self.kernel_files() {
            // Binary files have no lines to look at.
            let Ok(text) = self.read(path) else { continue };
            texts.push(Text::of_file(path, &text));
        }
        for patch in &self.series.patches {
            texts.extend(Text::of_patch(patch));
        }
        Ok(texts)
    }
}

fn unsafe_rooms(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let texts = tidy.texts()?;
    Ok(texts.iter().flat_map(unsafe_outside_rooms).collect())
}

fn barriers(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let texts = tidy.texts()?;
    Ok(texts.iter().flat_map(unpaired_barriers).collect())
}

fn imports(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let rooms = tidy.files.iter().filter_map(|path| {
        let room = path.strip_prefix("xtask/src").ok()?;
        Some(tidy.read(path).map(|text| (room.to_owned(), text)))
    });
    Ok(upward_imports(&rooms.collect::<Result<Vec<_>>>()?))
}

fn files_in_patches(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let mut owners: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for patch in &tidy.series.patches {
        for path in &patch.entry.adds {
            owners.entry(path).or_default().push(&patch.entry.file);
        }
    }
    let list = crate::series::patch::LIST;
    let mut messages = Vec::new();
    for path in tidy.kernel_files() {
        if !owners.contains_key(path) {
            messages.push(format!("{}:1: in no patch of {list}", path.display()));
        }
    }
    for (path, patches) in &owners {
        let path_text = path.display();
        if patches.len() > 1 {
            messages.push(format!(
                "{path_text}:1: in more than one patch: {}",
                patches.join(", ")
            ));
        }
        if !tidy.files.contains(*path) {
            messages.push(format!("{list}:1: {path_text} is not in this repository"));
        }
        if tidy.base.dir.join(path).exists() {
            messages.push(format!(
                "{path_text}:1: is in the base tree; change it by a hunk"
            ));
        }
    }
    let listed: BTreeSet<PathBuf> = tidy
        .series
        .patches
        .iter()
        .map(|patch| Path::new("patches").join(&patch.entry.file))
        .collect();
    for path in &tidy.files {
        let patch = path.starts_with("patches") && path.extension().is_some_and(|e| e == "patch");
        if patch && !listed.contains(path) {
            messages.push(format!("{}:1: not in {list}", path.display()));
        }
    }
    Ok(messages)
}

fn hunks(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let added = tidy.series.added();
    let mut messages = Vec::new();
    for patch in &tidy.series.patches {
        for path in patch.touches() {
            let place = format!("patches/{}:1: {}", patch.entry.file, path.display());
            if added.contains(path.as_path()) {
                messages.push(format!(
                    "{place} is a file of ours; edit it where it stands"
                ));
            } else if !tidy.base.dir.join(&path).exists() {
                messages.push(format!("{place} is not in the base tree"));
            }
        }
    }
    Ok(messages)
}

fn mutants_apply(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let mutants = mutants::load(&tidy.project.repo)?;
    let changes = tidy.changes()?;
    let apply = |mutant: &Mutant| on_top(&tidy.base.dir, &changes, &mutant.patch).err();
    let failed = mutants.iter().filter_map(apply);
    Ok(failed.map(|error| format!("{error:#}")).collect())
}

fn module_docs(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let mut messages = Vec::new();
    for path in tidy
        .files
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
    {
        if !tidy
            .read(path)?
            .lines()
            .any(|line| line.starts_with("//! "))
        {
            messages.push(format!(
                "{}:1: no `//!` says what this file is",
                path.display()
            ));
        }
    }
    Ok(messages)
}

fn rustfmt(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let rustfmt = tools::rustfmt().ok_or_else(|| {
        let remedy = "run `cargo xtask setup`";
        fail(Exit::Environment, "there is no rustfmt", remedy)
    })?;
    let tree = tidy.tree()?;
    let is_rust = |path: &Path| path.extension().is_some_and(|e| e == "rs");
    let host = |path: &Path| path.starts_with("xtask") || path.starts_with("lines");
    let own = tidy.files.iter().filter(|path| is_rust(path) && host(path));
    let own = own.map(|path| tidy.project.repo.join(path));
    let changed = tidy.changes()?;
    let changed = changed
        .iter()
        .filter(|(path, content)| is_rust(path) && content.is_some());
    let changed = changed.map(|(path, _)| tree.join(path));
    let mut command = Command::new(rustfmt);
    command.args(["--check", "--edition", "2021", "--config-path"]);
    command.arg(tidy.project.repo.join(".rustfmt.toml"));
    let output = command.args(own.chain(changed)).output();
    let output = output.context("failed to run rustfmt")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let places = said
        .lines()
        .filter_map(|line| line.strip_prefix("Diff in "));
    let messages: Vec<String> = places.map(|place| format!("{place} rustfmt")).collect();
    match (output.status.success(), messages.is_empty()) {
        (false, true) => Ok(vec![format!("rustfmt:1: it failed: {said}")]),
        _ => Ok(messages),
    }
}

/// checkpatch on every mail, in the patched tree, so that it knows the files around a hunk.
fn checkpatch(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let cache = &tidy.project.cache;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("mails");
    let tree = tidy.tree()?;
    let threads = mail::export(cache, &tidy.base, &tidy.series, &out)?;
    let mails = mail::patches(&threads);
    ensure!(!mails.is_empty(), "the series has no patch to check");
    // It takes a second to start, and seconds for a large patch.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let share = |first: usize| -> Vec<&PathBuf> {
        let own = mails.iter().skip(first).step_by(threads);
        own.copied().collect()
    };
    let mut messages = std::thread::scope(|scope| -> Result<Vec<String>> {
        let (tree, out) = (&tree, &out);
        let start = |mails| scope.spawn(move || checkpatch_of(tree, out, mails));
        let shares = (0..threads).map(share).filter(|mails| !mails.is_empty());
        let workers: Vec<_> = shares.map(start).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().expect("a worker does not panic")?);
        }
        Ok(all)
    })?;
    messages.sort();
    Ok(messages)
}

fn checkpatch_of(tree: &Path, dir: &Path, mails: Vec<&PathBuf>) -> Result<Vec<String>> {
    // Whoever sends the series signs it off, one patch has all of MAINTAINERS, and the tree has no
    // history to look commits up in. Nothing else is waived.
    let mut perl = Command::new("perl");
    perl.current_dir(tree)
        .args(["scripts/checkpatch.pl", "--strict", "--terse"]);
    perl.args([
        "--no-summary",
        "--no-signoff",
        "--ignore=FILE_PATH_CHANGES,UNKNOWN_COMMIT_ID",
        "--show-types",
        "--color=never",
    ])
    .args(mails);
    let output = perl.output().context("failed to run perl")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let own = said.lines().filter(|line| !line.trim().is_empty());
    // What it prints begins with the mail's path.
    let dir = format!("{}/", dir.display());
    let mut messages: Vec<String> = own
        .map(|line| match line.find(&dir) {
            Some(at) => line[at + dir.len()..].to_owned(),
            None => format!("checkpatch:1: {line}"),
        })
        .collect();
    if !output.status.success() && said.trim().is_empty() {
        let error = String::from_utf8_lossy(&output.stderr);
        messages.push(format!("checkpatch:1: it failed: {error}"));
    }
    Ok(messages)
}

/// The kernel's own check of the comments that become documentation, on our C files.
fn kernel_doc(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let tree = tidy.tree()?;
    let is_c = |path: &&Path| path.extension().is_some_and(|e| e == "c" || e == "h");
    let files: Vec<&Path> = tidy.kernel_files().into_iter().filter(is_c).collect();
    // It has moved from the second place to the first.
    let places = ["tools/docs/kernel-doc", "scripts/kernel-doc"];
    let script = places.iter().find(|place| tree.join(place).is_file());
    let script = script.context("the kernel tree has no kernel-doc")?;
    let mut command = Command::new(tree.join(script));
    command.current_dir(&tree).args(["-Werror", "-none"]);
    let output = command.args(files).output();
    let output = output.with_context(|| format!("failed to run {script}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok(kernel_doc_messages(output.status.success(), &said))
}

/// `Warning: file:line what`, each of them twice, and how many there are.
fn kernel_doc_messages(success: bool, said: &str) -> Vec<String> {
    let found = said.lines().filter_map(|line| {
        let (_, found) = line.split_once(": ")?;
        found.contains(':').then(|| found.to_owned())
    });
    let found: BTreeSet<String> = found.collect();
    match found.is_empty() && !success {
        true => vec![format!("kernel-doc:1: it failed: {said}")],
        false => found.into_iter().collect(),
    }
}

/// A package mirror, or a folder that only some machine has. The brackets keep this line itself
/// from matching.
static FOREIGN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(?:https?|ftp)://[^\s/"']+/(?:debian|ubuntu)|\b(?:deb|security|ftp)[.]debian[.]org|(?:^|[\s"'=(`])/(?:wor[k]|far[m]|tmp/[w])/"#)
        .expect("valid")
});

fn machine_paths(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let here = tidy.project.repo.display().to_string();
    let cache = tidy.project.cache.path("").display().to_string();
    let mut messages = Vec::new();
    for path in &tidy.files {
        let Ok(text) = tidy.read(path) else { continue };
        for (index, line) in text.lines().enumerate() {
            let own = line.contains(&here) || line.contains(cache.trim_end_matches('/'));
            let foreign = FOREIGN.is_match(line) && !line.contains("archive.example/");
            if own || foreign {
                messages.push(format!(
                    "{}:{}: names a path or host of one machine: {}",
                    path.display(),
                    index + 1,
                    line.trim()
                ));
            }
        }
    }
    Ok(messages)
}

fn sign_offs(tidy: &Tidy<'_>) -> Result<Vec<String>> {
    let signed = |patch: &&Patch| {
        patch
            .body
            .lines()
            .any(|line| line.starts_with("Signed-off-by:"))
    };
    let message = |patch: &Patch| {
        format!(
            "patches/{}:1: whoever sends the series signs it off",
            patch.entry.file
        )
    };
    Ok(tidy
        .series
        .patches
        .iter()
        .filter(signed)
        .map(message)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cache::Cache;
    use crate::series::patch::tests::fixture;

    /// The fixture's repository with more files in it, seen by one check.
    fn check(check: Check, more: &[(&str, &str)]) -> Vec<String> {
        let (dir, base, repo) = fixture();
        for (path, text) in more {
            let path = repo.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let project = Project {
            repo: repo.clone(),
            cache: Cache::at(dir.path().join("cache")).unwrap(),
            linux: Some(base.clone()),
        };
        let tidy = Tidy {
            series: project.series().unwrap(),
            base: project.base().unwrap(),
            files: git::files_of(&repo).unwrap(),
            project: &project,
        };
        check(&tidy).unwrap()
    }

    #[test]
    fn a_file_in_no_patch_or_in_two_is_found() {
        assert!(check(files_in_patches, &[]).is_empty());
        let messages = check(files_in_patches, &[("include/linux/lazy_tlb.h", "")]);
        assert!(
            messages[0].starts_with("include/linux/lazy_tlb.h:1: in no patch"),
            "{messages:?}"
        );
        let twice = "[[patch]]\nfile = \"0001-first.patch\"\nadds = [\"mm/lazy_tlb/lazy_tlb.rs\"]\n\
                     [[patch]]\nfile = \"0002-second.patch\"\nadds = [\"mm/lazy_tlb/lazy_tlb.rs\"]\n";
        let messages = check(files_in_patches, &[(crate::series::patch::LIST, twice)]);
        assert!(messages[0].contains("more than one patch"), "{messages:?}");
        assert!(
            messages[1].contains("0003-third.patch:1: not in"),
            "{messages:?}"
        );
        assert!(check(files_in_patches, &[("xtask/src/main.rs", "")]).is_empty());
    }

    #[test]
    fn a_new_file_that_the_base_has_is_found() {
        let list = "[[patch]]\nfile = \"0001-first.patch\"\nadds = [\"mm/Makefile\"]\n";
        let messages = check(
            files_in_patches,
            &[(crate::series::patch::LIST, list), ("mm/Makefile", "")],
        );
        assert!(
            messages.iter().any(|m| m.contains("is in the base tree")),
            "{messages:?}"
        );
    }

    #[test]
    fn a_hunk_to_a_file_of_ours_or_of_nobody_is_found() {
        assert!(check(hunks, &[]).is_empty());
        for (path, what) in [
            ("mm/lazy_tlb/lazy_tlb.rs", "file of ours"),
            ("mm/none.c", "not in"),
        ] {
            let patch = format!("Subject: a\n\nb\n---\ndiff --git a/{path} b/{path}\n");
            let messages = check(hunks, &[("patches/0001-first.patch", &patch)]);
            assert!(messages[0].contains(what), "{messages:?}");
        }
    }

    #[test]
    fn a_mutant_that_does_not_apply_is_found() {
        let mutant = |line: &str| {
            format!(
                "Subject: a\n\nb\n\nArch: x86_64\n---\n\
                 diff --git a/mm/Makefile b/mm/Makefile\n--- a/mm/Makefile\n+++ b/mm/Makefile\n\
                 @@ -2 +1,0 @@\n-{line}\n"
            )
        };
        let check = |line: &str| check(mutants_apply, &[("mutants/lost.patch", &mutant(line))]);
        assert!(check("obj-y += lazy_tlb/").is_empty());
        let messages = check("obj-y += lazier/");
        assert!(
            messages[0].contains("mutants/lost.patch does not apply")
                && messages[0].contains("hunk 1 of 1 in mm/Makefile"),
            "{messages:?}"
        );
    }

    #[test]
    fn a_rust_file_that_does_not_say_what_it_is_is_found() {
        assert!(check(module_docs, &[]).is_empty());
        let messages = check(module_docs, &[("xtask/src/a.rs", "// SPDX\nfn f() {}\n")]);
        assert_eq!(
            messages,
            ["xtask/src/a.rs:1: no `//!` says what this file is"]
        );
    }

    #[test]
    fn paths_and_hosts_of_a_machine_are_found() {
        // Put together here, so that this file itself has none.
        let bad = [
            ["see /wor", "k/x"].concat(),
            ["http://mirror.test", "/debian"].concat(),
        ];
        for line in bad {
            assert_eq!(
                check(machine_paths, &[("README.md", &line)]).len(),
                1,
                "{line}"
            );
        }
        let good = ["kernel/wor", "k/x /proc/x\n"].concat();
        assert!(check(machine_paths, &[("README.md", &good)]).is_empty());
    }

    #[test]
    fn a_sign_off_is_found() {
        assert!(check(sign_offs, &[]).is_empty());
        let patch = "Subject: a\n\nSigned-off-by: A <a@b>\n---\n";
        assert_eq!(
            check(sign_offs, &[("patches/0001-first.patch", patch)]).len(),
            1
        );
    }

    #[test]
    fn what_kernel_doc_says_is_a_message_and_its_failure_too() {
        let warning = "Warning: mm/a.c:6 parameter 'a' not described in 'f'";
        let twice = format!("{warning}\n{warning}\n2 warnings as errors\n");
        let message = ["mm/a.c:6 parameter 'a' not described in 'f'"];
        assert_eq!(kernel_doc_messages(false, &twice), message);
        assert!(kernel_doc_messages(true, "").is_empty());
        assert_eq!(kernel_doc_messages(false, "no python3\n").len(), 1);
    }
}
