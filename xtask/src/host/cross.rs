//! The compiler for static guest programs: gcc, or clang with the C library of a newer Debian.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;

use crate::host::apt::Suites;
use crate::host::arch::Arch;
use crate::host::cache::{Cache, Part};
use crate::host::sh;
use crate::host::tools::Tools;

/// The oldest release with such packages.
const SUITE: &str = "trixie";

/// What glibc chooses by the CPU when a program begins, and its other names. lld 19 takes the
/// address of what chooses (an IFUNC) before it removes the padding in front of it, and the program
/// dies. So each is its plainest variant from the start.
const CHOSEN: [(&str, &[&str]); 14] = [
    ("memchr", &[]),
    ("memcmp", &["bcmp", "__memcmpeq"]),
    ("memcpy", &[]),
    ("memmove", &["__libc_memmove"]),
    ("memset", &[]),
    ("stpcpy", &["__stpcpy"]),
    ("strchr", &["index"]),
    ("strchrnul", &["__strchrnul"]),
    ("strcmp", &[]),
    ("strcpy", &[]),
    ("strlen", &[]),
    ("strncmp", &[]),
    ("strnlen", &["__strnlen"]),
    ("strrchr", &["rindex"]),
];

/// What compiles an architecture's programs, by name or by path.
pub fn compiler(cache: &Cache, arch: &Arch) -> PathBuf {
    match arch.libc_packages {
        [] => arch.gcc.into(),
        _ => cache.path(format!("cross/{}-cc", arch.name)),
    }
}

/// Fetches the C library, and writes a script that is the compiler.
pub fn ensure(cache: &Cache, arch: &Arch, tools: &Tools) -> Result<()> {
    let root = cache.dir("cross")?.join(arch.name);
    if !root.exists() {
        cache.lock(Part::Setup)?;
    }
    if !root.exists() {
        let download = cache.dir("dl")?.join(format!("libc-{}", arch.name));
        let apt = Suites::open(cache, &[SUITE])?;
        apt.unpack(arch.libc_packages, &download, &root)?;
    }
    let script = compiler(cache, arch);
    let text = script_text(arch, &root.display().to_string(), &tools.llvm);
    if fs::read_to_string(&script).ok().as_deref() != Some(&text) {
        sh::write_whole(&script, text.as_bytes())?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn script_text(arch: &Arch, root: &str, llvm: &str) -> String {
    let triple = format!("{}-linux-gnu", arch.machine_name);
    let libc = format!("{root}/usr/{triple}");
    let names = |(name, others): &(&'static str, &[&'static str])| {
        let variant = format!("=__{name}_aligned");
        let all = std::iter::once(*name).chain(others.iter().copied());
        all.map(move |name| format!("\t-Wl,--defsym={name}{variant} \\\n"))
            .collect::<String>()
    };
    let chosen: String = CHOSEN.iter().map(names).collect();
    format!(
        "#!/bin/sh\n\
         exec clang{llvm} --target={triple} -fuse-ld=lld{llvm} --sysroot='{root}' \\\n\
         \t-isystem '{libc}/include' -B '{libc}/lib' -L '{libc}/lib' \\\n\
         {chosen}\t\"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::arch;

    #[test]
    fn an_architecture_has_one_compiler_or_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().into()).unwrap();
        for arch in &arch::ARCHES {
            let own = arch.libc_packages.is_empty();
            assert_eq!(own, !arch.gcc_packages.is_empty(), "{}", arch.name);
            assert_eq!(compiler(&cache, arch).is_absolute(), !own, "{}", arch.name);
        }
        let text = script_text(arch::find("loongarch").unwrap(), "/x", "-19");
        assert!(text.contains("clang-19 --target=loongarch64-linux-gnu"));
        assert!(text.contains("-L '/x/usr/loongarch64-linux-gnu/lib'"));
        assert!(text.contains("\t-Wl,--defsym=bcmp=__memcmp_aligned \\\n"));
        assert!(text.ends_with("\t\"$@\"\n"));
    }
}
