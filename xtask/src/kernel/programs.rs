//! Programs for guests and machines: first processes, the selftests, perf.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::arch::Arch;
use crate::host::cache::digest;
use crate::host::cross;
use crate::host::failure::Exit;
use crate::host::sh;
use crate::kernel::build::{builder, Build};
use crate::kernel::workshop::{Project, Workshop};

/// What the first process has in common with the selftests.
const HELPERS: &str = "tools/testing/selftests/lazy_tlb/lazy_tlb.h";

/// The file in `guest/` that is a program of its own.
const FUZZER: &str = "fuzz.c";

/// A test of the series in another suite of the kernel.
const MEMBARRIER_IPI: &str = "membarrier_test_global_ipi";

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
    /// The first process of every guest.
    pub fn init(&self, arch: &Arch) -> Result<PathBuf> {
        self.guest_program(arch, "init", |name| name != FUZZER)
    }

    /// What makes programs of system calls, and runs them.
    pub fn fuzzer(&self, arch: &Arch) -> Result<PathBuf> {
        self.guest_program(arch, "fuzz", |name| name == FUZZER)
    }

    /// Compiles some files of `guest/` as one static program, if anything there has changed.
    fn guest_program(
        &self,
        arch: &Arch,
        name: &str,
        is_source: fn(&str) -> bool,
    ) -> Result<PathBuf> {
        let dir = self.cache.dir(format!("guest/{}", arch.name))?;
        let (program, stamp) = (dir.join(name), dir.join(format!("{name}.inputs")));
        let entries = fs::read_dir(self.repo.join("guest"))?.flatten();
        let mut sources: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        sources.push(self.repo.join(HELPERS));
        sources.retain(|path| path.is_file());
        sources.sort();
        let compiler = cross::compiler(&self.cache, arch);
        let mut gcc = Command::new(&compiler);
        gcc.args(["-static", "-O2", "-Wall", "-Wextra", "-pthread"]);
        if arch.name == "x86_64" {
            // Where no other program is: an emulator's plugin knows its functions by their addresses.
            gcc.arg("-Wl,-Ttext-segment=0x20000000");
        }
        let mut inputs = vec![sh::shown(&gcc).into_bytes()];
        if compiler.is_absolute() {
            inputs.push(fs::read(&compiler)?);
        }
        for source in &sources {
            inputs.push(fs::read(source)?);
        }
        let inputs = digest(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>());
        if program.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == inputs) {
            return Ok(program);
        }
        // Several guests may be made ready at once: the program appears when it is whole.
        let part = tempfile::NamedTempFile::new_in(&dir)?.into_temp_path();
        sources.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".c") && is_source(&name)
        });
        gcc.arg("-o").arg(&part).args(sources);
        let log = dir.join(format!("{name}.log"));
        let remedy = "the compiler's message is in the log";
        sh::logged(&gcc, &log, Exit::Build, remedy, |_| ())?;
        part.persist(&program)?;
        sh::write_whole(&stamp, inputs.as_bytes())?;
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
        let log = kernel.out.join("selftests.log");
        let remedy = "the compiler's message is in the log";
        let membarrier = out.join(MEMBARRIER_IPI);
        for (suite, target) in [("lazy_tlb", None), ("membarrier", Some(membarrier))] {
            let mut make = builder("make");
            make.arg("-C")
                .arg(self.tree.join("tools/testing/selftests").join(suite));
            make.arg(format!("OUTPUT={}", out.display()));
            make.arg(sh::assignment("CC", self.compiler(arch)))
                .arg("USERLDFLAGS=-static")
                .args(target);
            sh::logged(&make, &log, Exit::Build, remedy, |_| ())?;
        }
        let mut programs: Vec<PathBuf> = std::fs::read_dir(&out)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && path.extension().is_none())
            .collect();
        programs.sort();
        Ok(programs)
    }
}
