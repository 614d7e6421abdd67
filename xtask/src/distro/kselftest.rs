//! The kernel's own selftests as they are installed on a machine, for a guest to run.

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

/// Builds collections of them with their own Makefile, once for a tree. What does not build here, for want of a
/// library or a compiler, is left out by that, and the guest says which collections it does not have.
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
    let (out, whole) = (dir.join("out"), dir.join("whole"));
    if whole.exists() {
        return Ok(dir.join("installed"));
    }
    std::fs::create_dir_all(&out)?;
    apt::install(&LIBRARIES.map(str::to_owned), &dir)?;
    let remedy = "the make's messages are in the log";
    let make = |more: &[String]| {
        let mut make = builder("make");
        make.arg("-C").arg(&shop.tree);
        make.arg(format!("ARCH={}", arch.name))
            .arg(sh::assignment("O", &out))
            .args(more);
        sh::logged(&make, &dir.join("make.log"), Exit::Build, remedy, |_| ())
    };
    make(&["headers".into()])?;
    let installed = dir.join("installed").join(FOLDER);
    let mut install = builder("make");
    install
        .arg("-k")
        .arg("-C")
        .arg(shop.tree.join("tools/testing/selftests"));
    install
        .arg(format!("ARCH={}", arch.name))
        .arg(sh::assignment("O", &out));
    install.arg("CC=gcc").arg(format!("TARGETS={targets}"));
    install
        .arg(sh::assignment("KSFT_INSTALL_PATH", &installed))
        .arg("install");
    sh::logged(
        &install,
        &dir.join("install.log"),
        Exit::Build,
        remedy,
        |_| (),
    )?;
    sh::write_whole(&whole, b"")?;
    Ok(dir.join("installed"))
}
