//! The series as mails, by `git format-patch`: one thread for each part that has a cover letter.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::cache::Cache;
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::series::base::{Base, Origin};
use crate::series::git::{self, Commits};
use crate::series::patch::{Part, Series, DIR};

/// Says whom the kernel wants to be asked.
const GET_MAINTAINER: &str = "scripts/get_maintainer.pl";
/// The line by which git says what mails are made on.
const BASE_COMMIT: &str = "base-commit: ";
/// A line of a cover letter that names somebody who gets a copy, whatever the kernel says.
const COPY: &str = "cc: ";

pub struct Thread {
    pub dir: PathBuf,
    pub cover: Option<PathBuf>,
    pub patches: Vec<PathBuf>,
    /// Who gets a copy because of what the cover letter says.
    copies: Vec<String>,
}

/// The patches of all threads, in the order in which they apply.
pub fn patches(threads: &[Thread]) -> Vec<&PathBuf> {
    threads.iter().flat_map(|thread| &thread.patches).collect()
}

/// Writes the mails, and whom they are for, into `out`, which is there once all is in it.
pub fn write(cache: &Cache, base: &Base, series: &Series, out: &Path) -> Result<()> {
    git::whole_folder(out, |part| {
        let threads = export(cache, base, series, part)?;
        threads
            .iter()
            .try_for_each(|thread| recipients(base, thread))
    })
}

/// Writes the mails into `out`, which is new; if there are several threads, into a folder each.
pub fn export(cache: &Cache, base: &Base, series: &Series, out: &Path) -> Result<Vec<Thread>> {
    // Each on what it needs and no more, so that its mails say so.
    let (parts, mut end) = (series.parts(), 0);
    let mut lists = Vec::new();
    for part in &parts {
        let first = end;
        end += part.patches.len();
        lists.push(series.with_needs(first..end)?);
    }
    let commits = Commits::make(cache, base, series, &lists)?;
    let made_on = made_on(&commits, base)?;
    let mut threads = Vec::new();
    for (index, (part, tip)) in parts.iter().zip(&commits.tips).enumerate() {
        let out = match parts.len() {
            1 => out.to_owned(),
            _ => out.join(format!("{}-{}", index + 1, part.name())),
        };
        let thread = format_patch(&commits, &series.repo, part, tip, &out)?;
        for mail in thread.cover.iter().chain(&thread.patches) {
            say_base(mail, &made_on)?;
        }
        threads.push(thread);
    }
    Ok(threads)
}

/// What mails say that they are made on. Nobody else has the commit that the cache has for the base. So it is the
/// one that is checked out in the base tree, if that has the same files, and otherwise the tree.
fn made_on(commits: &Commits, base: &Base) -> Result<String> {
    let of = |dir: &Path, rev: &str| {
        let mut log = sh::git(dir);
        log.args(["log", "-1", "--format=%H %T", rev]);
        Some(sh::capture(&mut log).ok()?.trim().to_owned())
    };
    let own = of(&commits.repository, &commits.base).context("the commit that was just made")?;
    let tree = own.split_once(' ').map_or("", |(_, tree)| tree);
    let there = of(&base.dir, "HEAD").unwrap_or_default();
    Ok(match there.split_once(' ') {
        Some((commit, same)) if same == tree => format!("{BASE_COMMIT}{commit}"),
        _ => {
            let whose = match base.origin {
                Origin::Upstream => "",
                Origin::Debian => " with Debian's patches",
                Origin::User => " of one's own",
            };
            format!("base-tree: {tree}, Linux {}{whose}", base.version)
        }
    })
}

/// Puts that in place of git's line, which is after the patch.
fn say_base(mail: &Path, made_on: &str) -> Result<()> {
    let text = fs::read_to_string(mail).with_context(|| format!("reading {}", mail.display()))?;
    let Some((before, after)) = text.rsplit_once(&format!("\n{BASE_COMMIT}")) else {
        return Ok(());
    };
    let rest = after.split_once('\n').map_or("", |(_, rest)| rest);
    sh::write_whole(mail, format!("{before}\n{made_on}\n{rest}").as_bytes())
}

fn format_patch(
    commits: &Commits,
    repo: &Path,
    part: &Part<'_>,
    tip: &str,
    out: &Path,
) -> Result<Thread> {
    // The cover letter is what git calls a branch's description.
    let branch = format!("mail-{}", part.name());
    let own = || sh::git(&commits.repository);
    sh::capture(own().args(["branch", "--force", &branch, tip]))?;
    let (mut git, mut copies) = (own(), Vec::new());
    if let Some(file) = part.cover {
        let text = cover(&repo.join(DIR).join(file))?;
        let (cc, text): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with(COPY));
        copies.extend(cc.iter().map(|line| line[COPY.len()..].to_owned()));
        let key = format!("branch.{branch}.description");
        sh::capture(own().args(["config", &key, &text.join("\n")]))?;
    }
    git.args(["format-patch", "--thread=shallow", "--no-signature"]);
    git.args(["--no-signoff", "--encode-email-headers"]);
    // What comes before this thread is named as well, by `prerequisite-patch-id:`.
    git.arg(format!("--base={}", commits.base));
    if part.cover.is_some() {
        git.args(["--cover-letter", "--cover-from-description=subject"]);
    }
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    git.arg("-o")
        .arg(out.canonicalize()?)
        .arg(format!("{tip}~{}..{branch}", part.patches.len()));
    sh::announce(&git);
    let names = sh::capture(&mut git)?;
    let mut patches: Vec<PathBuf> = names.lines().map(PathBuf::from).collect();
    let cover = part.cover.map(|_| patches.remove(0));
    Ok(Thread {
        dir: out.to_owned(),
        cover,
        patches,
        copies,
    })
}

/// A cover letter's text, whose first paragraph is its subject.
fn cover(path: &Path) -> Result<String> {
    let bad = |what: &str, remedy: &str| {
        let what = format!("{}: {what}", path.display());
        fail(Exit::Patch, what, remedy)
    };
    let text = fs::read_to_string(path)
        .map_err(|error| bad(&error.to_string(), "restore it (`git checkout patches`)"))?;
    let titled = text.strip_prefix("# ").filter(|text| {
        let title = text.split_once("\n\n");
        title.is_some_and(|(title, _)| !title.contains('\n'))
    });
    let titled = titled.ok_or_else(|| {
        let what = "it does not begin with `# title` and an empty line";
        bad(what, "write the cover letter's subject there")
    })?;
    Ok(titled.to_owned())
}

/// Writes whom a thread is for into `recipients` beside it, as headers: who maintains what it
/// touches is asked, reviewers, lists, and those whom the cover letter names get a copy.
pub fn recipients(base: &Base, thread: &Thread) -> Result<()> {
    let mut perl = Command::new("perl");
    perl.current_dir(&base.dir)
        .args([GET_MAINTAINER, "--roles", "--norolestats"])
        .args(["--nogit", "--nogit-fallback"])
        // A word in a message is no reason to write to somebody.
        .arg("--nokeywords")
        .args(&thread.patches);
    let mut said = sh::capture(&mut perl)?;
    for copy in &thread.copies {
        said.push_str(&format!("{copy} (cover letter)\n"));
    }
    let headers = headers(&said);
    if headers.is_empty() {
        return Err(fail(
            Exit::Internal,
            format!("{GET_MAINTAINER} names nobody"),
            format!("run it by hand on the mails in {}", thread.dir.display()),
        ));
    }
    sh::write_whole(&thread.dir.join("recipients"), headers.as_bytes())
}

/// From lines like `A Name <a@b> (maintainer:AREA)`, each address once.
fn headers(said: &str) -> String {
    let (mut to, mut cc): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for line in said.lines() {
        let (address, role) = line.split_once(" (").unwrap_or((line, ""));
        let asked = ["maintainer", "supporter"];
        let list = match asked.iter().any(|word| role.starts_with(word)) {
            true => &mut to,
            false => &mut cc,
        };
        if address.contains('@') && !list.contains(&address) {
            list.push(address);
        }
    }
    cc.retain(|address| !to.contains(address));
    let lines = |key: &str, list: &[&str]| -> String {
        list.iter().map(|a| format!("{key}: {a}\n")).collect()
    };
    lines("To", &to) + &lines("Cc", &cc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::patch::tests::fixture;
    use crate::series::patch::LIST;

    fn names(paths: &[PathBuf]) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        paths.iter().map(name).collect()
    }

    /// The fixture's series, with cover letters for the patches that are named; the last one of these
    /// needs what is said.
    fn exported(covers: &[(&str, &str)], needs: &str) -> (tempfile::TempDir, Result<Vec<Thread>>) {
        exported_on(|_| (), covers, needs)
    }

    fn exported_on(
        prepare: impl Fn(&Path),
        covers: &[(&str, &str)],
        needs: &str,
    ) -> (tempfile::TempDir, Result<Vec<Thread>>) {
        let (dir, base, repo) = fixture();
        prepare(&base);
        let mut list = fs::read_to_string(repo.join(LIST)).unwrap();
        for (patch, cover) in covers {
            let file = format!("file = \"{patch}\"\n");
            assert!(list.contains(&file), "{list}");
            let needs = match covers.last() {
                Some((last, _)) if last == patch => needs,
                _ => "[]",
            };
            let more = format!("{file}cover = \"{cover}\"\nneeds = {needs}\n");
            list = list.replace(&file, &more);
            let text = format!(
                "# mm: {cover}\n\nWhat it is.\n\nWhy it is.\n\ncc: X <x@y>\nchange-id: 1-{cover}\n"
            );
            fs::write(repo.join(DIR).join(cover), text).unwrap();
        }
        fs::write(repo.join(LIST), list).unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let base = git::tests::base_at(&base);
        let out = dir.path().join("mails");
        let series = Series::load(&repo).unwrap();
        let threads = export(&cache, &base, &series, &out);
        (dir, threads)
    }

    #[test]
    fn mails_are_there_once_it_is_known_whom_they_are_for() {
        let (dir, base, repo) = fixture();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let series = Series::load(&repo).unwrap();
        let out = dir.path().join("mails/");
        let run = |said: &str| {
            fs::write(base.join(GET_MAINTAINER), format!("print '{said}';")).unwrap();
            write(&cache, &git::tests::base_at(&base), &series, &out)
        };
        let error = run("").unwrap_err().to_string();
        assert!(
            error.contains("names nobody") && error.contains("mails.part"),
            "{error}"
        );
        assert!(!out.exists());
        run("A <a@x> (maintainer:MM)").unwrap();
        assert!(out.join("0003-fork-third.patch").exists());
        let recipients = fs::read_to_string(out.join("recipients")).unwrap();
        assert_eq!(recipients, "To: A <a@x>\n");
        assert!(run("").is_err(), "not into a full folder");
        assert!(out.join("recipients").exists());
    }

    #[test]
    fn mails_are_numbered_threaded_and_unsigned() {
        let (_dir, threads) = exported(&[("0001-first.patch", "all.md")], "[]");
        let threads = threads.unwrap();
        let [thread] = &threads[..] else {
            panic!("one thread");
        };
        assert_eq!(
            names(&thread.patches),
            [
                "0001-fork-first.patch",
                "0002-mm-second.patch",
                "0003-fork-third.patch"
            ]
        );
        let cover = fs::read_to_string(thread.cover.as_ref().unwrap()).unwrap();
        assert!(cover.contains("Subject: [PATCH 0/3] mm: all.md\n"));
        assert!(cover.contains("What it is.\n\nWhy it is.\n"));
        assert!(cover.contains("fork: first"));
        assert!(
            cover.contains("\nchange-id: 1-all.md\n") && cover.contains("\nbase-tree: "),
            "{cover}"
        );
        assert!(!cover.contains("HERE ***") && !cover.contains("cc: "));
        assert_eq!(thread.copies, ["X <x@y>"]);
        let text = |i: usize| fs::read_to_string(&thread.patches[i]).unwrap();
        assert!(text(1).contains("+//! Ours."), "new files are in the mail");
        for i in 0..3 {
            assert!(text(i).contains("In-Reply-To: "), "{i}");
            assert!(!text(i).contains("Signed-off-by"), "{i}");
        }
        assert_eq!(patches(&threads).len(), 3);
    }

    #[test]
    fn each_cover_letter_begins_a_thread() {
        let covers = [
            ("0001-first.patch", "fixes.md"),
            ("0002-second.patch", "rest.md"),
        ];
        let (_dir, threads) = exported(&covers, "[\"fixes.md\"]");
        let threads = threads.unwrap();
        let dirs: Vec<PathBuf> = threads.iter().map(|thread| thread.dir.clone()).collect();
        assert_eq!(names(&dirs), ["1-fixes", "2-rest"]);
        assert_eq!(names(&threads[0].patches), ["0001-fork-first.patch"]);
        assert_eq!(
            names(&threads[1].patches),
            ["0001-mm-second.patch", "0002-fork-third.patch"]
        );
        let cover = fs::read_to_string(threads[1].cover.as_ref().unwrap()).unwrap();
        assert!(cover.contains("[PATCH 0/2] mm: rest.md\n"));
        assert!(cover.contains("prerequisite-patch-id: "), "{cover}");
    }

    #[test]
    fn a_thread_is_made_on_what_it_needs_and_no_more() {
        // The third patch changes lines next to what the first one brings.
        let covers = [
            ("0001-first.patch", "fixes.md"),
            ("0003-third.patch", "rest.md"),
        ];
        assert!(exported(&covers, "[]").1.is_err());
        let (_dir, threads) = exported(&covers, "[\"fork: first\"]");
        let cover = fs::read_to_string(threads.unwrap()[1].cover.as_ref().unwrap()).unwrap();
        let needed = cover.matches("prerequisite-patch-id: ").count();
        assert_eq!(needed, 1, "{cover}");
    }

    #[test]
    fn the_commit_of_a_base_that_is_a_git_tree_is_named() {
        let covers = [
            ("0001-first.patch", "fixes.md"),
            ("0002-second.patch", "rest.md"),
        ];
        let commit = |dir: &Path| {
            for args in [
                &["init", "--quiet"][..],
                &["add", "."],
                &["commit", "--quiet", "-m", "v7.3.4"],
            ] {
                sh::capture(sh::git(dir).args(args)).unwrap();
            }
        };
        let cover = |dir: &Path, threads: Result<Vec<Thread>>| {
            let cover = fs::read_to_string(threads.unwrap()[1].cover.as_ref().unwrap()).unwrap();
            let head = sh::git(&dir.join("base"))
                .args(["rev-parse", "HEAD"])
                .output();
            (cover, String::from_utf8(head.unwrap().stdout).unwrap())
        };
        let (dir, threads) = exported_on(commit, &covers, "[\"fixes.md\"]");
        let (text, head) = cover(dir.path(), threads);
        let named = format!("\nbase-commit: {head}prerequisite-patch-id: ");
        assert!(text.contains(&named), "{text}");
        // What was changed there is in no commit.
        let change = |dir: &Path| {
            commit(dir);
            fs::write(dir.join("scripts/run.sh"), "exit\n").unwrap();
        };
        let (dir, threads) = exported_on(change, &covers, "[\"fixes.md\"]");
        let (text, _) = cover(dir.path(), threads);
        assert!(
            text.contains("\nbase-tree: ") && !text.contains(BASE_COMMIT),
            "{text}"
        );
    }

    #[test]
    fn without_cover_letters_there_is_one_thread() {
        let (_dir, threads) = exported(&[], "");
        let threads = threads.unwrap();
        assert_eq!((threads.len(), patches(&threads).len()), (1, 3));
        assert!(threads[0].cover.is_none());
    }

    #[test]
    fn a_cover_without_a_title_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["no title\n\ntext", "# title only", "# two\nlines\n\ntext"] {
            fs::write(file.path(), text).unwrap();
            assert!(cover(file.path()).is_err(), "{text}");
        }
    }

    #[test]
    fn those_who_maintain_are_asked_and_others_get_a_copy() {
        let said = "A <a@x> (maintainer:MM)\nB <b@x> (reviewer:MM)\nl@x (open list:MM)\n\
                    C <c@x> (supporter:X86)\nA <a@x> (reviewer:X86)\n";
        assert_eq!(
            headers(said),
            "To: A <a@x>\nTo: C <c@x>\nCc: B <b@x>\nCc: l@x\n"
        );
        assert_eq!(headers(""), "");
    }
}
