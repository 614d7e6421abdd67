//! Programs for guests and machines: first processes, the selftests, perf.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::arch::Arch;
use crate::host::cross;
use crate::host::failure::Exit;
use crate::host::sh;
use crate::kernel::build::{builder, Build};
use crate::kernel::workshop::{Project, Workshop};

/// Nothing that `perf bench sched` needs, and perf then runs on any machine of the architecture.
const PERF: [&str; 14] = [
    "LDFLAGS=-static",
    "BUILD_BPF_SKEL=0",
    "NO_JEVENTS=1",
    "NO_JVMTI=1",
    "NO_LIBBPF=1",
    "NO_LIBELF=1",
    "NO_LIBNUMA=1",
    "NO_LIBPFM4=1",
    "NO_LIBPYTHON=1",
    "NO_LIBTRACEEVENT=1",
    "NO_RUST=1",
    "NO_SHELLCHECK=1",
    "NO_SLANG=1",
    "WERROR=0",
];

/// Builds perf, with as little as it can do with, and returns where it is.
pub fn perf(tree: &Path, arch: &Arch, out: &Path) -> Result<PathBuf> {
    let dir = out.join("perf-build");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut make = builder("make");
    make.arg("-C").arg(tree.join("tools/perf"));
    make.arg(sh::assignment("O", &dir));
    make.arg(format!("ARCH={}", arch.name));
    let cross = arch.gcc.strip_suffix("gcc").unwrap_or_default();
    if !cross.is_empty() {
        make.arg(format!("CROSS_COMPILE={cross}"));
    }
    make.args(PERF);
    // Nothing else: perf's shared objects cannot be linked like this.
    make.arg(dir.join("perf"));
    let remedy = "install what the log asks for";
    let log = dir.join("build.log");
    sh::logged(&make, &log, Exit::Build, remedy, |_| ())?;
    Ok(dir.join("perf"))
}

impl Project {
    /// Compiles a first process of `guest/` as a static program.
    pub fn guest_program(&self, arch: &Arch, name: &str) -> Result<PathBuf> {
        let dir = self.cache.dir(format!("guest/{}", arch.name))?;
        let program = dir.join(name);
        let mut gcc = Command::new(cross::compiler(&self.cache, arch));
        // Several guests may be made ready at once: the program appears when it is whole.
        let part = tempfile::NamedTempFile::new_in(&dir)?.into_temp_path();
        gcc.args(["-static", "-O2", "-Wall", "-Wextra", "-pthread", "-o"])
            .arg(&part);
        gcc.arg(self.repo.join("guest").join(format!("{name}.c")));
        let log = dir.join(format!("{name}.log"));
        let remedy = "the compiler's message is in the log";
        sh::logged(&gcc, &log, Exit::Build, remedy, |_| ())?;
        part.persist(&program)?;
        Ok(program)
    }
}

impl Workshop<'_> {
    /// Builds the selftests with their own Makefile and returns the programs.
    ///
    /// They are kept with a kernel, for which they are; several may be built at once.
    pub fn selftests(&self, kernel: &Build<'_>) -> Result<Vec<PathBuf>> {
        let arch = kernel.arch;
        let out = kernel.out.join("selftests");
        // What an older series built must not be run.
        if out.exists() {
            std::fs::remove_dir_all(&out)?;
        }
        std::fs::create_dir_all(&out)?;
        let mut make = builder("make");
        make.arg("-C")
            .arg(self.tree.join("tools/testing/selftests/lazy_tlb"));
        make.arg(format!("OUTPUT={}", out.display()));
        make.arg(sh::assignment("CC", self.compiler(arch)))
            .arg("USERLDFLAGS=-static");
        let log = kernel.out.join("selftests.log");
        let remedy = "the compiler's message is in the log";
        sh::logged(&make, &log, Exit::Build, remedy, |_| ())?;
        let mut programs: Vec<PathBuf> = std::fs::read_dir(&out)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && path.extension().is_none())
            .collect();
        programs.sort();
        Ok(programs)
    }
}
