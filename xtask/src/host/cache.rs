//! The cache folder: where it is, who may write to it, and whether it has room.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::fs::{flock, statvfs, FlockOperation};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::host::failure::{fail, Exit, DISK_REMEDY};

/// What only one run at a time may change. A run takes them in this order, so that none waits in
/// a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Setup,
    /// Patched trees and what is built of them.
    Trees,
    /// herd7, which may be fetched while kernels build.
    Herd,
    /// The git repository that trees and mails are made from.
    Git,
}

/// `$XDG_CACHE_HOME/lazy-tlb`: everything downloaded or built.
pub struct Cache {
    root: PathBuf,
    locks: Mutex<BTreeMap<Part, File>>,
}

impl Cache {
    pub fn of_user() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = match (set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(dir), _) => PathBuf::from(dir),
            (None, Some(home)) => Path::new(&home).join(".cache"),
            (None, None) => {
                return Err(fail(
                    Exit::Environment,
                    "neither HOME nor XDG_CACHE_HOME is set",
                    "set XDG_CACHE_HOME to a folder with about 10 GiB free",
                ))
            }
        };
        Self::at(base.join("lazy-tlb"))
    }

    pub fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let locks = Mutex::default();
        Ok(Cache { root, locks })
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    pub fn dir(&self, relative: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.path(relative);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Keeps other runs out of a part until this process ends; waits for one that is in.
    pub fn lock(&self, part: Part) -> Result<()> {
        let mut locks = self.locks.lock().expect("no holder panics");
        if locks.contains_key(&part) {
            return Ok(());
        }
        debug_assert!(
            locks.keys().all(|held| *held < part),
            "{part:?} after {locks:?}"
        );
        let path = self.path(format!("lock-{part:?}").to_lowercase());
        let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                println!("waiting for another `cargo xtask` ({})", path.display());
                flock(&file, FlockOperation::LockExclusive)?;
            }
            other => other?,
        }
        locks.insert(part, file);
        Ok(())
    }

    /// Fails early where `purpose` would fill the disk.
    pub fn need_space(&self, gib: u64, purpose: &str) -> Result<()> {
        let dir = &self.root;
        let stat = statvfs(dir).with_context(|| format!("looking at {}", dir.display()))?;
        let free = (stat.f_bavail * stat.f_frsize) >> 30;
        if free >= gib {
            return Ok(());
        }
        Err(fail(
            Exit::Environment,
            format!(
                "disk full: {purpose} needs {gib} GiB and {} has {free} GiB free",
                dir.display()
            ),
            DISK_REMEDY,
        ))
    }
}

/// A short name for some content.
pub fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;

    #[test]
    fn too_little_space_says_how_much_where_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let error = cache.need_space(1 << 30, "a kernel build").unwrap_err();
        let (exit, error) = classify(error);
        let text = error.to_string();
        assert_eq!(exit, Exit::Environment);
        assert!(text.contains("GiB") && text.contains(&dir.path().display().to_string()));
        assert!(text.contains("XDG_CACHE_HOME"));
        cache.need_space(0, "nothing").unwrap();
    }

    #[test]
    fn a_second_run_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Cache::at(dir.path().to_owned()).unwrap();
        first.lock(Part::Trees).unwrap();
        first.lock(Part::Trees).unwrap();
        let other = File::open(dir.path().join("lock-trees")).unwrap();
        let busy = flock(&other, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(busy, Err(Errno::WOULDBLOCK));
        drop(first);
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        // Another part is free meanwhile.
        let second = Cache::at(dir.path().to_owned()).unwrap();
        second.lock(Part::Git).unwrap();
    }
}
