//! The same Debian system as the root of a guest that has no disk: an archive for its kernel to unpack.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cpio::newc::{self, ModeFileType};
use walkdir::WalkDir;

use crate::distro::image;
use crate::host::arch::Arch;
use crate::host::cache::digest;
use crate::host::sh;
use crate::kernel::workshop::Project;

/// What no program asks for while it runs, and the kernel would unpack into memory.
const WITHOUT: [&str; 9] = [
    "./boot/*",
    "./dev/*",
    "./usr/share/doc/*",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
    "./var/cache/*",
    "./var/lib/apt/*",
    "./var/lib/dpkg/*",
];

/// Writes everything below a folder into an archive; in it all is root's.
fn write_archive(root: &Path, to: &Path) -> Result<()> {
    let file = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let mut archive = BufWriter::new(file);
    let entries = WalkDir::new(root).min_depth(1).sort_by_file_name();
    for (number, entry) in entries.into_iter().enumerate() {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type());
        let (kind, bytes) = match () {
            _ if kind.is_dir() => (ModeFileType::Directory, Vec::new()),
            _ if kind.is_file() => (ModeFileType::Regular, fs::read(path)?),
            _ if kind.is_symlink() => {
                let target = fs::read_link(path)?;
                (
                    ModeFileType::Symlink,
                    target.as_os_str().as_bytes().to_vec(),
                )
            }
            () => continue,
        };
        let name = path.strip_prefix(root)?.to_string_lossy();
        let about = entry.metadata()?;
        let size = u32::try_from(bytes.len()).context("a file is too large")?;
        let builder = newc::Builder::new(&name)
            .ino(number as u32 + 1)
            .nlink(1)
            .mode(about.mode() & 0o7777)
            .mtime(about.mtime() as u32)
            .set_mode_file_type(kind);
        let mut writer = builder.write(&mut archive, size);
        writer.write_all(&bytes)?;
        writer.finish()?;
    }
    newc::trailer(&mut archive)?;
    archive.flush()?;
    Ok(())
}

/// The archive, made where it is not there.
pub fn find(project: &Project, arch: &Arch, packages: &[String]) -> Result<PathBuf> {
    let dir = project.cache.dir("distro")?;
    image::tools(&dir)?;
    let tar = image::system(project, arch, packages, &dir)?;
    let without: Vec<&[u8]> = WITHOUT.iter().map(|path| path.as_bytes()).collect();
    let archive = tar.with_extension(format!("{}.cpio", digest(&without)));
    if archive.exists() {
        return Ok(archive);
    }
    let work = tempfile::tempdir_in(&dir)?;
    let (root, part) = (work.path().join("root"), work.path().join("archive"));
    fs::create_dir(&root)?;
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&tar).arg("-C").arg(&root);
    unpack.arg("--no-same-owner");
    unpack.args(WITHOUT.map(|path| format!("--exclude={path}")));
    sh::capture(&mut unpack)?;
    write_archive(&root, &part)?;
    fs::rename(&part, &archive).with_context(|| format!("creating {}", archive.display()))?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{symlink, PermissionsExt};

    #[test]
    fn an_archive_has_folders_files_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (root, archive) = (dir.path().join("root"), dir.path().join("archive"));
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/sh"), b"abc").unwrap();
        fs::set_permissions(root.join("usr/bin/sh"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        write_archive(&root, &archive).unwrap();
        let bytes = fs::read(&archive).unwrap();
        let mut rest: &[u8] = &bytes;
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            std::io::Read::read_to_string(&mut reader, &mut content).unwrap();
            let entry = reader.entry();
            // Whatever this machine gives to new folders.
            let mode = match entry.mode() & 0o170000 {
                0o100000 => entry.mode(),
                other => other,
            };
            found.push(format!("{} {mode:o} {content}", entry.name()));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            found,
            [
                "bin 120000 usr/bin",
                "usr 40000 ",
                "usr/bin 40000 ",
                "usr/bin/sh 100750 abc"
            ]
        );
    }
}
