//! Firmware that starts more CPUs than the emulator's own.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::host::apt::Suites;
use crate::host::arch::Arch;
use crate::host::cache::Cache;
use crate::host::sh;

/// With more CPUs than these, riscv's is another one: OpenSBI 1.5.1, of Debian 12's QEMU, starts 116.
const FEW: u32 = 64;
/// The release whose package starts 128.
const SUITE: &str = "trixie";
const PACKAGE: &str = "opensbi";
const FILE: &str = "usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin";
/// Behind itself it has a stack and a heap for each CPU. QEMU puts the kernel 2 MiB above it, and with 115 CPUs and
/// more one writes over the other; above a longer file the kernel is farther away.
const BYTES: usize = 4 << 20;

/// Fetches it, where so many CPUs need it.
pub fn for_many(cache: &Cache, arch: &Arch, cpus: u32) -> Result<Option<PathBuf>> {
    if arch.name != "riscv" || cpus <= FEW {
        return Ok(None);
    }
    let root = cache.dir("cross")?.join(PACKAGE);
    // Whoever built the kernel holds the lock on trees, so nobody else is here.
    if !root.exists() {
        let download = cache.dir("dl")?.join(PACKAGE);
        Suites::open(cache, &[SUITE])?.unpack(&[PACKAGE], &download, &root)?;
    }
    let mut text = fs::read(root.join(FILE))?;
    text.resize(text.len().max(BYTES), 0);
    let path = root.join("firmware");
    sh::write_whole(&path, &text)?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::arch::find;

    #[test]
    fn riscv_has_a_longer_one_for_many_cpus() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().into()).unwrap();
        let root = cache.dir("cross").unwrap().join(PACKAGE);
        sh::write_whole(&root.join(FILE), b"OpenSBI").unwrap();
        let of = |arch: &str, cpus| for_many(&cache, find(arch).unwrap(), cpus).unwrap();
        assert_eq!(of("riscv", 32), None);
        assert_eq!(of("arm64", 128), None);
        let text = fs::read(of("riscv", 128).unwrap()).unwrap();
        assert!(text.starts_with(b"OpenSBI") && text.len() == BYTES);
    }
}
