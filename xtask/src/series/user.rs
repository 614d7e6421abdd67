//! `apply`: the series in a person's own tree.

use std::path::Path;

use anyhow::Result;

use crate::host::failure::{fail, Exit};
use crate::series::git::update_all;
use crate::series::patch::{assemble, combined, Content, Selection, Series};

/// Applies the series to a person's own tree, or takes it off; nothing is written unless it fits.
pub fn apply(series: &Series, linux: &Path, reverse: bool) -> Result<()> {
    crate::series::base::version_of(linux)?;
    let patches = series.select(&Selection::default())?;
    for path in series.added() {
        let present = Content::read(&linux.join(path))?;
        if reverse && present != Content::read(&series.repo.join(path))? {
            return Err(fail(
                Exit::Patch,
                format!(
                    "{} is not as this series has it",
                    linux.join(path).display()
                ),
                "the series is not applied, or in another version; undo it by hand",
            ));
        }
        if !reverse && present.is_some() {
            return Err(fail(
                Exit::Patch,
                format!(
                    "{} exists: the series is already applied",
                    linux.join(path).display()
                ),
                format!(
                    "undo it with `cargo xtask apply --reverse --linux {}`",
                    linux.display()
                ),
            ));
        }
    }
    let changes = combined(assemble(linux, &series.repo, &patches, reverse)?);
    update_all(linux, &changes)?;
    let verb = if reverse { "took off" } else { "applied" };
    println!(
        "{verb} {} patches, {} files in {}",
        patches.len(),
        changes.len(),
        linux.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;
    use crate::series::git::snapshot;
    use crate::series::patch::tests::fixture;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn apply_and_reverse_leave_a_tree_as_it_was() {
        let (_dir, base, repo) = fixture();
        let series = Series::load(&repo).unwrap();
        // As a umask of 002 leaves it.
        let group_writes = fs::Permissions::from_mode(0o664);
        fs::set_permissions(base.join("kernel/fork.c"), group_writes).unwrap();
        let before = snapshot(&base).unwrap();
        apply(&series, &base, false).unwrap();
        assert_ne!(snapshot(&base).unwrap(), before);
        let (exit, error) = classify(apply(&series, &base, false).unwrap_err());
        assert_eq!(exit, Exit::Patch);
        assert!(error.to_string().contains("--reverse"), "{error}");
        apply(&series, &base, true).unwrap();
        assert_eq!(snapshot(&base).unwrap(), before);
        assert!(!base.join("mm/lazy_tlb").exists());
    }

    #[test]
    fn apply_writes_nothing_where_a_hunk_does_not_fit() {
        let (_dir, base, repo) = fixture();
        fs::write(base.join("mm/Makefile"), "something else\n").unwrap();
        let before = snapshot(&base).unwrap();
        let (exit, _) = classify(apply(&Series::load(&repo).unwrap(), &base, false).unwrap_err());
        assert_eq!(exit, Exit::Patch);
        assert_eq!(snapshot(&base).unwrap(), before);
    }

    #[test]
    fn apply_takes_back_what_it_wrote_where_a_file_cannot_be_written() {
        let (_dir, base, repo) = fixture();
        // Where a folder is to be, after two files that can be written.
        fs::write(base.join("mm/lazy_tlb"), "").unwrap();
        let before = snapshot(&base).unwrap();
        let error = apply(&Series::load(&repo).unwrap(), &base, false).unwrap_err();
        assert_eq!(snapshot(&base).unwrap(), before);
        let error = format!("{error:#}");
        assert!(
            error.contains("as it was: ") && error.contains("mm/lazy_tlb"),
            "{error}"
        );
    }

    #[test]
    fn apply_refuses_another_kernel() {
        let (_dir, base, repo) = fixture();
        fs::write(
            base.join("Makefile"),
            "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\n",
        )
        .unwrap();
        let (exit, error) =
            classify(apply(&Series::load(&repo).unwrap(), &base, false).unwrap_err());
        assert_eq!(exit, Exit::BaseTree);
        assert!(error.to_string().contains("6.12.1"), "{error}");
    }
}
