//! A Debian system as the disk of a guest, made once from the machine's own apt sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::distro::list::FOLDER;
use crate::host::apt::{self, Suites};
use crate::host::arch::Arch;
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::workshop::Project;

/// The releases, the first that the machine's sources have being taken.
const RELEASES: [&str; 2] = ["trixie", "bookworm"];
/// How large the disk is; what is not used takes no room.
const SIZE: &str = "4G";
/// What makes it, and the packages that bring those.
const TOOLS: [(&str, &str); 3] = [
    ("mmdebstrap", "mmdebstrap"),
    ("fakeroot", "fakeroot"),
    ("mke2fs", "e2fsprogs"),
];
/// What a system is made of besides its packages.
const FILES: [&str; 2] = ["customize.sh", "lazy-tlb-tests.service"];

/// As Debian calls the architecture.
fn debian_name(arch: &Arch) -> Result<&'static str> {
    match arch.name {
        "x86_64" => Ok("amd64"),
        "arm64" => Ok("arm64"),
        name => Err(fail(
            Exit::Usage,
            format!("no Debian guest is made for {name}"),
            "use x86_64 or arm64",
        )),
    }
}

/// Changes whenever what is in the image could, but for newer versions of the packages.
fn key(release: &str, arch: &str, packages: &[String], files: &[Vec<u8>]) -> String {
    let mut packages = packages.to_vec();
    packages.sort();
    packages.dedup();
    let mut hash = Sha256::new();
    for part in [release.as_bytes(), arch.as_bytes(), SIZE.as_bytes()]
        .into_iter()
        .chain(packages.iter().map(String::as_bytes))
        .chain(files.iter().map(Vec::as_slice))
    {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn tools(log_dir: &Path) -> Result<()> {
    // mke2fs is where only root looks.
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let missing = TOOLS
        .iter()
        .filter(|(program, _)| sh::find_program(program, &path).is_none());
    let missing: Vec<String> = missing.map(|(_, package)| package.to_string()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt::install(&missing, log_dir)
}

/// The release that the image is of, and the sources for it.
fn release(project: &Project) -> Result<(&'static str, PathBuf)> {
    for name in RELEASES {
        if let Ok(suites) = Suites::open(&project.cache, &[name]) {
            return Ok((name, suites.sources()));
        }
    }
    Err(fail(
        Exit::Environment,
        format!(
            "the machine's apt sources have none of {}",
            RELEASES.join(", ")
        ),
        apt::NETWORK_REMEDY,
    ))
}

/// The image, made where it is not there.
pub fn find(project: &Project, arch: &Arch, packages: &[String]) -> Result<PathBuf> {
    let name = debian_name(arch)?;
    let folder = project.repo.join(FOLDER);
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let files = FILES.map(read).into_iter().collect::<Result<Vec<_>>>()?;
    let dir = project.cache.dir("distro")?;
    let path = |release: &str| {
        let key = key(release, name, packages, &files);
        dir.join(format!("{release}-{name}-{key}.img"))
    };
    // One that is there needs no archive.
    if let Some(there) = RELEASES.map(path).into_iter().find(|path| path.exists()) {
        return Ok(there);
    }
    if arch.machine_name != std::env::consts::ARCH {
        return Err(fail(
            Exit::Environment,
            format!("a Debian system for {name} is made on a machine of that architecture only"),
            "programs of the packages run while they are installed",
        ));
    }
    project.cache.need_space(6, "a Debian guest")?;
    tools(&dir)?;
    let (release, sources) = release(project)?;
    let image = path(release);
    let work = tempfile::tempdir_in(&dir)?;
    let tar = work.path().join("root.tar");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--variant=minbase", "--format=tar"]);
    mmdebstrap.arg(format!("--architectures={name}"));
    mmdebstrap.arg(format!("--include={}", packages.join(",")));
    mmdebstrap.arg(sh::assignment(
        "--customize-hook",
        folder.join("customize.sh"),
    ));
    mmdebstrap.arg(release).arg(&tar).arg(&sources);
    let log = image.with_extension("log");
    let remedy = "mmdebstrap's own messages are in the log";
    sh::logged(&mmdebstrap, &log, Exit::Environment, remedy, |_| ())?;
    // Its files are root's and others', which only a file system image needs to know.
    let script = "mkdir root && tar -xf root.tar -C root --exclude='./dev/*' && \
                  PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -d root root.img \"$1\"";
    let mut mke2fs = Command::new("fakeroot");
    mke2fs.args(["sh", "-c", script, "sh", SIZE]);
    mke2fs.current_dir(work.path());
    let log = image.with_extension("mke2fs.log");
    sh::logged(&mke2fs, &log, Exit::Environment, remedy, |_| ())?;
    fs::rename(work.path().join("root.img"), &image)?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::arch;

    #[test]
    fn an_image_is_of_a_release_packages_and_files() {
        let packages =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| name.to_string()).collect() };
        let of = |release: &str, names: &[&str], file: &str| {
            key(release, "amd64", &packages(names), &[file.into()])
        };
        let one = of("trixie", &["a", "b"], "unit");
        assert_eq!(one, of("trixie", &["b", "a", "a"], "unit"));
        for other in [
            of("forky", &["a", "b"], "unit"),
            of("trixie", &["a", "bc"], "unit"),
            of("trixie", &["ab"], "unit"),
            of("trixie", &["a", "b"], "another"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_files_of_the_image_are_there() {
        let folder = crate::kernel::workshop::repository().join(FOLDER);
        for name in FILES {
            assert!(folder.join(name).is_file(), "{name}");
        }
    }

    #[test]
    fn an_architecture_without_a_debian_guest_is_refused() {
        let named = |name: &str| debian_name(arch::find(name).unwrap());
        assert_eq!(named("x86_64").unwrap(), "amd64");
        assert!(named("powerpc").is_err());
    }
}
