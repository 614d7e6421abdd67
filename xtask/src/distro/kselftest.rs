//! The kernel's own selftests as they are installed on a machine, for a guest to run.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;

use crate::host::apt;
use crate::host::arch::Arch;
use crate::host::cache::digest;
use crate::host::failure::{fail, Exit};
use crate::host::sh;
use crate::kernel::build::builder;
use crate::kernel::workshop::{Project, Workshop};

/// What they call themselves in the guest, `run_kselftest.sh` being in it.
const FOLDER: &str = "kselftest";

/// The packages of the libraries that they are built with.
const LIBRARIES: [&str; 7] = [
    "libcap-dev",
    "libcap-ng-dev",
    "libfuse-dev",
    "libmount-dev",
    "libnuma-dev",
    "libpopt-dev",
    "rsync",
];

/// Builds collections of them with their own Makefile, which knows what is old. What does not build here, for want of
/// a library or a compiler, is left out by that, and the guest says which collections it does not have.
///
/// Returns where a folder `kselftest` is.
pub fn install(
    project: &Project,
    shop: &Workshop<'_>,
    arch: &'static Arch,
    collections: &[String],
) -> Result<PathBuf> {
    if arch.machine_name != std::env::consts::ARCH {
        return Err(fail(
            Exit::Environment,
            format!(
                "the kernel's selftests for {} are built on a machine of that architecture only",
                arch.name
            ),
            "they need its libraries; name other tests with --list",
        ));
    }
    let targets = collections.join(" ");
    let tree = shop.tree.to_string_lossy();
    let name = digest(&[tree.as_bytes(), targets.as_bytes()]);
    let dir = project.cache.dir(format!("kselftest/{name}"))?;
    let root = dir.join("installed");
    // What an older series installed must not be run.
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    apt::install(&LIBRARIES.map(str::to_owned), &dir)?;
    let make = |folder: &str, log: &str, more: &[OsString]| {
        let mut make = builder("make");
        make.arg("-C").arg(shop.tree.join(folder));
        make.arg(format!("ARCH={}", arch.name));
        make.arg(sh::assignment("O", dir.join("out"))).args(more);
        let remedy = "the make's messages are in the log";
        sh::logged(&make, &dir.join(log), Exit::Build, remedy, |_| ())
    };
    make("", "headers.log", &["headers".into()])?;
    let install = [
        "-k".into(),
        "CC=gcc".into(),
        format!("TARGETS={targets}").into(),
        sh::assignment("KSFT_INSTALL_PATH", root.join(FOLDER)),
        "install".into(),
    ];
    make("tools/testing/selftests", "install.log", &install)?;
    Ok(root)
}
