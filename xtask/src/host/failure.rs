//! What can go wrong, as a documented exit code, and the remedy that goes with it.

use std::fmt;

/// The exit codes of every command; listed in `--help` and in README.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    Environment = 3,
    BaseTree = 4,
    Patch = 5,
    Build = 6,
    Guest = 7,
    NoTests = 8,
    Internal = 9,
}

/// The table of exit codes, for `--help`.
pub const EXIT_HELP: &str = "\
Exit codes:
  0  done, and every check held
  1  a test or the verdict failed
  2  wrong command line
  3  this machine lacks something: a tool, a package, disk space, the network
  4  the base tree is missing or is not Linux 7.3
  5  a patch does not apply
  6  the kernel or a guest program did not build
  7  the guest was silent, hung, crashed, or had fewer CPUs than asked
  8  no test ran
  9  anything else (an I/O error, or a bug in xtask)";

/// An expected failure: what happened, what to do about it, and how to exit.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    what: String,
    remedy: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  remedy: {}", self.what, self.remedy)
    }
}

impl std::error::Error for Failure {}

pub fn fail(exit: Exit, what: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
    let (what, remedy) = (what.into(), remedy.into());
    Failure { exit, what, remedy }.into()
}

/// The remedy for a full disk, the same wherever it is noticed.
pub const DISK_REMEDY: &str =
    "free some space, or point XDG_CACHE_HOME (and TMPDIR) at a larger disk and run this again";

/// Turns any error into one that says how to exit; a full disk is found in the causes.
pub fn classify(error: anyhow::Error) -> (Exit, anyhow::Error) {
    let full = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
    });
    if full {
        let what = format!("disk full: {error:#}");
        return (
            Exit::Environment,
            fail(Exit::Environment, what, DISK_REMEDY),
        );
    }
    let exit = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or(Exit::Internal, |failure| failure.exit);
    (exit, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_survives_context_and_a_full_disk_is_found() {
        let of = |error: anyhow::Error| classify(error.context("writing bzImage"));
        assert_eq!(of(fail(Exit::Patch, "a", "b")).0, Exit::Patch);
        assert_eq!(of(anyhow::anyhow!("bug")).0, Exit::Internal);
        let (exit, error) = of(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
        assert_eq!(exit, Exit::Environment);
        assert!(format!("{error:#}").contains("XDG_CACHE_HOME"));
    }
}
