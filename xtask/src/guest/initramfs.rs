//! What a guest boots with: its first process, and files beside it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{self, ModeFileType};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::host::arch::Arch;
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::workshop::Project;

/// A file of an initramfs: its path in the guest, its content.
pub struct GuestFile {
    /// Without the leading slash.
    pub path: String,
    pub bytes: Vec<u8>,
}

impl GuestFile {
    pub fn program(path: impl Into<String>, host: &Path) -> Result<Self> {
        let bytes = fs::read(host).map_err(|error| {
            fail(
                Exit::Usage,
                format!("failed to read {}: {error}", host.display()),
                "name a static program",
            )
        })?;
        let path = path.into();
        Ok(GuestFile { path, bytes })
    }
}

/// Writes an initramfs with the folders and devices that a first process needs.
pub fn write_initramfs(to: &Path, files: &[GuestFile]) -> Result<()> {
    let mut archive = Vec::new();
    let mut entries = 0;
    let mut entry = |name: &str| {
        entries += 1;
        newc::Builder::new(name).ino(entries).nlink(1)
    };
    let mut dirs = vec!["proc", "sys", "dev", "tmp"];
    dirs.extend(
        files
            .iter()
            .filter_map(|file| Some(file.path.rsplit_once('/')?.0)),
    );
    dirs.dedup();
    for dir in dirs {
        let builder = entry(dir)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Directory);
        builder.write(&mut archive, 0).finish()?;
    }
    for (name, major, minor) in [("dev/console", 5, 1), ("dev/null", 1, 3)] {
        let builder = entry(name)
            .mode(0o666)
            .set_mode_file_type(ModeFileType::Char);
        let builder = builder.rdev_major(major).rdev_minor(minor);
        builder.write(&mut archive, 0).finish()?;
    }
    for file in files {
        let builder = entry(&file.path)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Regular);
        let size = u32::try_from(file.bytes.len()).context("a guest file is too large")?;
        let mut writer = builder.write(&mut archive, size);
        writer.write_all(&file.bytes)?;
        writer.finish()?;
    }
    newc::trailer(&mut archive)?;
    sh::write_whole(to, &archive)
}

/// Checks that a program can be the guest's first process: static, and of its architecture.
pub fn check_init(bytes: &[u8], name: &Path, arch: &Arch) -> Result<()> {
    let name = name.display();
    let remedy = format!("build it with `{} -static`", arch.gcc);
    let refuse = |what: String| Err(fail(Exit::Usage, format!("{name} {what}"), &*remedy));
    let (machine, dynamic) = match elf_facts(bytes) {
        Some(facts) => facts,
        None => return refuse("is not an ELF program".into()),
    };
    if machine != arch.elf_machine {
        return refuse(format!(
            "is a program for another machine than {}",
            arch.name
        ));
    }
    if dynamic {
        return refuse("is dynamically linked, and the guest has no libraries".into());
    }
    Ok(())
}

/// The machine number, and whether it asks for a dynamic loader.
fn elf_facts(bytes: &[u8]) -> Option<(u16, bool)> {
    fn facts<Elf: FileHeader<Endian = object::Endianness>>(bytes: &[u8]) -> Option<(u16, bool)> {
        let header = Elf::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, bytes).ok()?;
        let dynamic = segments
            .iter()
            .any(|s| s.p_type(endian) == object::elf::PT_INTERP);
        Some((header.e_machine(endian), dynamic))
    }
    match object::FileKind::parse(bytes).ok()? {
        object::FileKind::Elf64 => facts::<object::elf::FileHeader64<object::Endianness>>(bytes),
        object::FileKind::Elf32 => facts::<object::elf::FileHeader32<object::Endianness>>(bytes),
        _ => None,
    }
}

impl Project {
    /// An initramfs in which the first process does that workload, which needs nothing else.
    pub fn initramfs(&self, arch: &Arch, workload: &str) -> Result<PathBuf> {
        let dir = self.cache.dir(format!("guest/{}", arch.name))?;
        self.initramfs_with(arch, workload, Vec::new(), &dir)
    }

    /// The fuzzer as a test, with programs to begin with, each a name and a text.
    pub fn fuzz_files(&self, arch: &Arch, programs: &[(String, String)]) -> Result<Vec<GuestFile>> {
        let mut files = vec![GuestFile::program("tests/fuzz", &self.fuzzer(arch)?)?];
        files.extend(programs.iter().map(|(name, text)| GuestFile {
            path: format!("fuzz/{name}"),
            bytes: text.clone().into(),
        }));
        Ok(files)
    }

    /// The programs that are kept, by name.
    pub fn corpus(&self) -> Result<Vec<(String, String)>> {
        let mut programs = Vec::new();
        let entries = fs::read_dir(self.repo.join("guest/fuzz"));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            programs.push((name, fs::read_to_string(entry.path())?));
        }
        programs.sort();
        Ok(programs)
    }

    /// The same with files, in a folder that is the caller's.
    pub fn initramfs_with(
        &self,
        arch: &Arch,
        workload: &str,
        mut files: Vec<GuestFile>,
        dir: &Path,
    ) -> Result<PathBuf> {
        let init = self.init(arch)?;
        files.push(GuestFile::program("init", &init)?);
        files.push(GuestFile {
            path: "workload".into(),
            bytes: workload.into(),
        });
        let initramfs = dir.join(format!("{workload}.cpio"));
        write_initramfs(&initramfs, &files)?;
        Ok(initramfs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_or_foreign_init_is_refused() {
        let arch = crate::host::arch::find("x86_64").unwrap();
        let ours = fs::read("/proc/self/exe").unwrap();
        let name = Path::new("init");
        if cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
            let text = check_init(&ours, name, arch).unwrap_err().to_string();
            assert!(
                text.contains("dynamically linked") && text.contains("-static"),
                "{text}"
            );
        }
        assert!(check_init(b"#!/bin/sh\n", name, arch).is_err());
        let mut foreign = ours;
        foreign[18] = 0xb7;
        let text = check_init(&foreign, name, arch).unwrap_err().to_string();
        assert!(text.contains("another machine"), "{text}");
    }

    #[test]
    fn an_initramfs_has_what_a_first_process_needs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initramfs");
        let file = |path: &str| GuestFile {
            path: path.into(),
            bytes: b"abc".to_vec(),
        };
        write_initramfs(&path, &[file("init"), file("tests/a"), file("tests/b")]).unwrap();
        let archive = fs::read(&path).unwrap();
        let mut rest: &[u8] = &archive;
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            names.push(format!("{} {:o}", entry.name(), entry.mode()));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            names,
            [
                "proc 40755",
                "sys 40755",
                "dev 40755",
                "tmp 40755",
                "tests 40755",
                "dev/console 20666",
                "dev/null 20666",
                "init 100755",
                "tests/a 100755",
                "tests/b 100755",
            ]
        );
    }
}
