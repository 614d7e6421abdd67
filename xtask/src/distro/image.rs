//! A Debian system as the disk of a guest, made once from the machine's own apt sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::distro::list::FOLDER;
use crate::host::apt::{self, Suites};
use crate::host::arch::Arch;
use crate::host::cache::digest;
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

/// A system is another one with other packages; newer versions of them change nothing.
fn name(release: &str, arch: &str, packages: &[String]) -> String {
    let mut packages = packages.to_vec();
    packages.sort();
    packages.dedup();
    let names: Vec<&[u8]> = packages.iter().map(String::as_bytes).collect();
    format!("{release}-{arch}-{}", digest(&names))
}

pub fn tools(log_dir: &Path) -> Result<()> {
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

/// The archive of a system with the packages, made where it is not there.
pub fn system(project: &Project, arch: &Arch, packages: &[String], dir: &Path) -> Result<PathBuf> {
    let debian = debian_name(arch)?;
    let path = |release: &str| dir.join(format!("{}.tar", name(release, debian, packages)));
    // For one that is there the sources are not asked.
    if let Some(there) = RELEASES.map(path).into_iter().find(|path| path.exists()) {
        return Ok(there);
    }
    if arch.machine_name != std::env::consts::ARCH {
        return Err(fail(
            Exit::Environment,
            format!("a Debian system for {debian} is made on a machine of that architecture only"),
            "programs of the packages run while they are installed",
        ));
    }
    project.cache.need_space(6, "a Debian guest")?;
    let (release, sources) = release(project)?;
    let tar = path(release);
    let part = tar.with_extension("part");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--variant=minbase", "--format=tar"]);
    mmdebstrap.arg(format!("--architectures={debian}"));
    if !packages.is_empty() {
        mmdebstrap.arg(format!("--include={}", packages.join(",")));
    }
    mmdebstrap.arg(release).arg(&part).arg(&sources);
    let log = tar.with_extension("log");
    let remedy = "mmdebstrap's own messages are in the log";
    sh::logged(&mmdebstrap, &log, Exit::Environment, remedy, |_| ())?;
    fs::rename(&part, &tar).with_context(|| format!("creating {}", tar.display()))?;
    Ok(tar)
}

/// The image, made where it is not there.
pub fn find(project: &Project, arch: &Arch, packages: &[String]) -> Result<PathBuf> {
    let folder = project.repo.join(FOLDER);
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let files = FILES.map(read).into_iter().collect::<Result<Vec<_>>>()?;
    let dir = project.cache.dir("distro")?;
    tools(&dir)?;
    let tar = system(project, arch, packages, &dir)?;
    let mut parts: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    parts.push(SIZE.as_bytes());
    let image = tar.with_extension(format!("{}.img", digest(&parts)));
    if image.exists() {
        return Ok(image);
    }
    let work = tempfile::tempdir_in(&dir)?;
    let part = work.path().join("image");
    // Files of root and others become so in the image, and nowhere else.
    let mut fakeroot = Command::new("fakeroot");
    fakeroot.arg("sh").arg(folder.join(FILES[0]));
    fakeroot.arg(&tar).arg(&part).arg(SIZE);
    fakeroot.current_dir(work.path());
    let log = tar.with_extension("image.log");
    let remedy = "what fakeroot, tar and mke2fs say is in the log";
    sh::logged(&fakeroot, &log, Exit::Environment, remedy, |_| ())?;
    fs::rename(&part, &image).with_context(|| format!("creating {}", image.display()))?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::arch;

    #[test]
    fn a_system_is_of_a_release_and_packages() {
        let packages =
            |names: &[&str]| -> Vec<String> { names.iter().map(|name| name.to_string()).collect() };
        let of = |release: &str, names: &[&str]| name(release, "amd64", &packages(names));
        let one = of("trixie", &["a", "b"]);
        assert!(one.starts_with("trixie-amd64-"), "{one}");
        assert_eq!(one, of("trixie", &["b", "a", "a"]));
        for other in [
            of("forky", &["a", "b"]),
            of("trixie", &["a", "bc"]),
            of("trixie", &["ab"]),
        ] {
            assert_ne!(one, other);
        }
        assert_ne!(digest(&[b"a", b"b"]), digest(&[b"ab"]));
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
