//! A patch file: a message and the hunks to files of the base tree, and what these make of that.
//!
//! A file that is new in the kernel stands in this repository at its final path and is whole in exactly one patch.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::host::failure::{fail, Exit};

pub const DIR: &str = "patches";
pub const LIST: &str = "patches/series.toml";

/// One entry of `series.toml`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub file: String,
    /// The cover letter in `patches/` of the part that begins with this patch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cover: Option<String>,
    /// What it needs besides the base: a cover letter, which is all of that part, or the subject of a
    /// patch. Without it, what comes before it in its part, and what the first patch there needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Vec<String>>,
    /// The new files it brings, relative to the repository's (and the kernel's) top level.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adds: Vec<PathBuf>,
}

impl Entry {
    pub fn new(file: impl Into<String>) -> Self {
        Entry {
            file: file.into(),
            cover: None,
            needs: None,
            adds: Vec::new(),
        }
    }

    /// The file name without the number in front, which changes when patches come and go.
    pub fn slug(&self) -> &str {
        self.file.trim_start_matches(|c: char| c.is_ascii_digit())
    }
}

/// A patch with its message and hunks.
#[derive(Clone, Debug)]
pub struct Patch {
    pub dir: &'static str,
    pub entry: Entry,
    pub subject: String,
    pub body: String,
    /// A git-style diff to base files; may be empty.
    pub diff: String,
}

impl Patch {
    pub fn path(&self) -> PathBuf {
        Path::new(self.dir).join(&self.entry.file)
    }

    pub fn touches(&self) -> Vec<PathBuf> {
        let paths = self.diff.lines().filter_map(diff_path);
        paths.map(PathBuf::from).collect()
    }

    /// Reads a patch file: `Subject:`, an empty line, the body, `---`, the diff.
    pub fn parse(dir: &'static str, entry: Entry, text: &str) -> Result<Self> {
        let bad = |what: &str| {
            fail(
                Exit::Patch,
                format!("{dir}/{}: {what}", entry.file),
                "a patch file is `Subject: one line`, an empty line, the message, a line `---`, \
                 and a git diff",
            )
        };
        let rest = text
            .strip_prefix("Subject: ")
            .ok_or_else(|| bad("no Subject line"))?;
        let (subject, rest) = rest
            .split_once("\n\n")
            .ok_or_else(|| bad("no empty line after the subject"))?;
        let rest = format!("\n{rest}");
        let (body, diff) = rest
            .split_once("\n---\n")
            .ok_or_else(|| bad("no line `---`"))?;
        if subject.contains('\n') {
            return Err(bad("the subject is longer than a line"));
        }
        let (subject, body, diff) = (subject.into(), body.trim().into(), diff.into());
        Ok(Patch {
            dir,
            entry,
            subject,
            body,
            diff,
        })
    }

    pub fn text(&self) -> String {
        format!(
            "Subject: {}\n\n{}\n---\n{}",
            self.subject, self.body, self.diff
        )
    }
}

fn diff_path(line: &str) -> Option<&str> {
    line.strip_prefix("diff --git a/")?
        .split_once(" b/")
        .map(|(path, _)| path)
}

/// The Kconfig symbols whose definitions a diff touches.
pub fn symbols_of(diff: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let (mut inside, mut symbol) = (false, None);
    for line in diff.lines() {
        if let Some(path) = diff_path(line) {
            let name = path.rsplit('/').next();
            inside = name.is_some_and(|name| name.starts_with("Kconfig"));
        } else if let Some((_, place)) = line.strip_prefix("@@ ").and_then(|l| l.split_once("@@ "))
        {
            // Where git found it, the definition that the hunk begins in.
            symbol = place.strip_prefix("config ");
        } else if inside && !line.starts_with("+++") && !line.starts_with("---") {
            let text = line.get(1..).unwrap_or_default();
            symbol = text.strip_prefix("config ").or(symbol);
            if line.starts_with(['+', '-']) {
                found.extend(symbol.map(str::to_owned));
            }
        }
    }
    found
}

/// A file's content and whether it is executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub executable: bool,
}

impl Content {
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_file() => Ok(Some(Content {
                bytes: fs::read(path).with_context(|| format!("reading {}", path.display()))?,
                executable: meta.permissions().mode() & 0o100 != 0,
            })),
            Ok(_) => anyhow::bail!("{} is not a plain file", path.display()),
            Err(e) if matches!(e.raw_os_error(), Some(2 | 20)) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes it whole or not at all. Who may read and write a file that is there stays as it is.
    pub fn write(&self, path: &Path) -> Result<()> {
        let is_executable = |p: &fs::Permissions| p.mode() & 0o100 != 0;
        let old = fs::metadata(path).ok().map(|meta| meta.permissions());
        crate::host::sh::write_whole(path, &self.bytes)?;
        match old {
            Some(old) if is_executable(&old) == self.executable => fs::set_permissions(path, old)?,
            _ if self.executable => fs::set_permissions(path, fs::Permissions::from_mode(0o755))?,
            _ => (),
        }
        Ok(())
    }
}

/// Files and what they become; `None` is a file that goes away.
pub type Changes = BTreeMap<PathBuf, Option<Content>>;

pub struct Step<'a> {
    pub patch: &'a Patch,
    pub changes: Changes,
}

/// Applies patches to the files of `base` on a scratch copy and returns what each one changes.
///
/// Nothing outside a temporary folder is written. `reverse` takes the patches off again, last
/// one first.
pub fn assemble<'a>(
    base: &Path,
    repo: &Path,
    patches: &[&'a Patch],
    reverse: bool,
) -> Result<Vec<Step<'a>>> {
    let scratch = tempfile::tempdir().context("creating a scratch folder")?;
    let touched: BTreeSet<PathBuf> = patches.iter().flat_map(|p| p.touches()).collect();
    for path in &touched {
        if let Some(content) = Content::read(&base.join(path))? {
            content.write(&scratch.path().join(path))?;
        }
    }
    let mut order: Vec<&Patch> = patches.to_vec();
    if reverse {
        order.reverse();
    }
    let mut steps = Vec::new();
    for patch in order {
        git_apply(scratch.path(), patch, reverse)?;
        let mut changes = effect(scratch.path(), patch)?;
        for path in &patch.entry.adds {
            let content = Content::read(&repo.join(path))?.ok_or_else(|| {
                fail(
                    Exit::Patch,
                    format!(
                        "{} adds {}, which is not here",
                        patch.path().display(),
                        path.display()
                    ),
                    format!("restore the file, or take it out of {LIST}"),
                )
            })?;
            changes.insert(path.clone(), (!reverse).then_some(content));
        }
        steps.push(Step { patch, changes });
    }
    Ok(steps)
}

/// What one more patch makes of a base tree with `changes`; these may be files that it adds.
pub fn on_top(base: &Path, changes: &Changes, patch: &Patch) -> Result<Changes> {
    let scratch = tempfile::tempdir().context("creating a scratch folder")?;
    for path in patch.touches() {
        if let Some(content) = changed(base, changes, &path)? {
            content.write(&scratch.path().join(&path))?;
        }
    }
    git_apply(scratch.path(), patch, false)?;
    effect(scratch.path(), patch)
}

/// A file of a base tree with `changes`.
pub fn changed(base: &Path, changes: &Changes, path: &Path) -> Result<Option<Content>> {
    match changes.get(path) {
        Some(content) => Ok(content.clone()),
        None => Content::read(&base.join(path)),
    }
}

/// The files that a patch touches, as they are in the folder that it was applied to.
fn effect(dir: &Path, patch: &Patch) -> Result<Changes> {
    let content = |path: PathBuf| Ok((path.clone(), Content::read(&dir.join(path))?));
    patch.touches().into_iter().map(content).collect()
}

pub fn combined(steps: Vec<Step<'_>>) -> Changes {
    steps.into_iter().flat_map(|step| step.changes).collect()
}

fn git_apply(dir: &Path, patch: &Patch, reverse: bool) -> Result<()> {
    if patch.diff.is_empty() {
        return Ok(());
    }
    let mut file = tempfile::NamedTempFile::new().context("creating a scratch file")?;
    std::io::Write::write_all(&mut file, patch.diff.as_bytes())?;
    let mut git = crate::host::sh::git(dir);
    // The scratch folder may lie inside somebody's repository; git must not look for it.
    git.env("GIT_CEILING_DIRECTORIES", dir.parent().unwrap_or(dir));
    git.args(["apply", "--whitespace=nowarn"]);
    if reverse {
        git.arg("--reverse");
    }
    let output = git.arg(file.path()).output().context("failed to run git")?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let remedy = if reverse {
        "the tree does not hold this series as it is here; undo it by hand".to_owned()
    } else {
        format!(
            "use an unpatched Linux 7.3.x tree, or bring the hunk up to date in {}/",
            patch.dir
        )
    };
    Err(fail(Exit::Patch, explain(patch, &stderr), remedy))
}

/// Says which hunk of which file git stumbled over.
pub fn explain(patch: &Patch, stderr: &str) -> String {
    let path = patch.path();
    let mut what = format!("{} does not apply: {}", path.display(), stderr.trim());
    for line in stderr.lines() {
        let Some((path, number)) = line
            .strip_prefix("error: patch failed: ")
            .and_then(|place| place.rsplit_once(':'))
        else {
            continue;
        };
        let hunks = hunks_of(&patch.diff, path);
        let starts_there = |hunk: &str| hunk_start(hunk) == number.parse().ok();
        if let Some(index) = hunks.iter().position(|hunk| starts_there(hunk)) {
            what.push_str(&format!(
                "\n  hunk {} of {} in {path}: {}",
                index + 1,
                hunks.len(),
                hunks[index]
            ));
        }
    }
    what
}

fn hunks_of<'a>(diff: &'a str, path: &str) -> Vec<&'a str> {
    let mut inside = false;
    let mut hunks = Vec::new();
    for line in diff.lines() {
        if let Some(other) = diff_path(line) {
            inside = other == path;
        } else if inside && line.starts_with("@@ -") {
            hunks.push(line);
        }
    }
    hunks
}

fn hunk_start(hunk: &str) -> Option<usize> {
    let number = hunk.strip_prefix("@@ -")?.split([',', ' ']).next()?;
    number.parse().ok()
}
