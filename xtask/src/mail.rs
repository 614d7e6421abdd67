//! The series as mails, by `git format-patch`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::base::Base;
use crate::cache::Cache;
use crate::failure::{fail, Exit};
use crate::series::{Selection, Series};
use crate::{sh, tree};

/// The cover letter's title (`# …` on the first line) and text.
pub const COVER: &str = "patches/cover.md";

/// Writes the mails into `out` and returns them in order, the cover letter first.
pub fn export(cache: &Cache, base: &Base, series: &Series, out: &Path) -> Result<Vec<PathBuf>> {
    if out.exists() && fs::read_dir(out).map_or(true, |mut dir| dir.next().is_some()) {
        return Err(fail(
            Exit::Usage,
            format!("{} exists and is not an empty folder", out.display()),
            "name a folder that is not there yet",
        ));
    }
    // In the cache, so that the base's objects are linked and not copied.
    let dir = tempfile::tempdir_in(cache.dir("tree")?)?;
    let clone = dir.path().join("series");
    tree::export(
        cache,
        base,
        series,
        &Selection::default(),
        &clone,
        tree::Checkout::Nothing,
    )?;
    let cover = series.repo.join(COVER);
    let mut git = sh::git(&clone);
    let (name, address) = tree::IDENTITY.split_once(" <").context("an identity")?;
    // The cover letter has no author of its own.
    git.env("GIT_COMMITTER_NAME", name);
    git.env("GIT_COMMITTER_EMAIL", address.trim_end_matches('>'));
    git.args([
        "format-patch",
        "--thread=shallow",
        "--no-signature",
        "--no-signoff",
    ]);
    git.args(["--base=base", "--encode-email-headers"]);
    if cover.exists() {
        git.args(["--cover-letter", "--cover-from-description=none"]);
    }
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    git.arg("-o").arg(out.canonicalize()?).arg("base..HEAD");
    sh::announce(&git);
    let names = sh::capture(&mut git)?;
    let mails: Vec<PathBuf> = names.lines().map(PathBuf::from).collect();
    if cover.exists() {
        let text = fs::read_to_string(&cover)?;
        let mail = mails.first().context("git format-patch wrote nothing")?;
        let filled = fill_cover(&fs::read_to_string(mail)?, &text)?;
        sh::write_whole(mail, filled.as_bytes())?;
    }
    Ok(mails)
}

/// Puts title and text where git left room; it wrote shortlog and diffstat itself.
fn fill_cover(letter: &str, cover: &str) -> Result<String> {
    let malformed = || {
        fail(
            Exit::Patch,
            format!("{COVER} does not begin with `# title` and an empty line"),
            "write the cover letter's subject there",
        )
    };
    let (title, text) = cover.split_once("\n\n").ok_or_else(malformed)?;
    let title = title
        .strip_prefix("# ")
        .filter(|title| !title.contains('\n'));
    Ok(letter
        .replacen("*** SUBJECT HERE ***", title.ok_or_else(malformed)?, 1)
        .replacen("*** BLURB HERE ***", text.trim(), 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Origin;
    use crate::series::tests::fixture;

    #[test]
    fn mails_are_numbered_threaded_and_unsigned() {
        let (dir, base, repo) = fixture();
        let cover = "# mm: fixture series\n\nWhat it is.\n\nWhy it is.\n";
        fs::write(repo.join(COVER), cover).unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let base = Base {
            dir: base,
            version: "7.3.4".into(),
            origin: Origin::Upstream,
            id: "7.3.4-test".into(),
        };
        let out = dir.path().join("mails");
        let series = Series::load(&repo).unwrap();
        let mails = export(&cache, &base, &series, &out).unwrap();
        let names: Vec<_> = mails
            .iter()
            .map(|m| m.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "0000-cover-letter.patch",
                "0001-fork-first.patch",
                "0002-mm-second.patch",
                "0003-fork-third.patch"
            ]
        );
        let text = |i: usize| fs::read_to_string(&mails[i]).unwrap();
        assert!(text(0).contains("Subject: [PATCH 0/3] mm: fixture series\n"));
        assert!(text(0).contains("What it is.\n\nWhy it is.\n"));
        assert!(text(0).contains("fork: first") && text(0).contains("base-commit: "));
        assert!(!text(0).contains("HERE ***"));
        assert!(text(2).contains("+//! Ours."), "new files are in the mail");
        for i in 1..4 {
            assert!(text(i).contains("In-Reply-To: "), "{i}");
            assert!(!text(i).contains("Signed-off-by"), "{i}");
        }
        assert!(
            export(&cache, &base, &series, &out).is_err(),
            "not into a full folder"
        );
    }

    #[test]
    fn a_cover_without_a_title_is_refused() {
        assert!(fill_cover("*** SUBJECT HERE ***", "no title\n\ntext").is_err());
        assert!(fill_cover("*** SUBJECT HERE ***", "# title only").is_err());
    }
}
