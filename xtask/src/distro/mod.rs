//! `distro`: other people's tests in a Debian guest, on a kernel that is configured as Debian's own.

pub mod config;

use anyhow::Result;
use clap::Args;

use crate::host::arch;
use crate::host::failure::Exit;
use crate::kernel::workshop::Project;

/// What is run, where.
#[derive(Args)]
pub struct Options {
    /// x86_64 or arm64.
    #[arg(long, default_value = "x86_64", env = "ARCH", hide_env_values = true)]
    arch: String,
    /// Write configs/ARCH-distro.config from the configuration of Debian's kernel package, and do no more.
    #[arg(long)]
    config: bool,
}

/// `distro` itself.
pub fn run(project: &Project, options: &Options) -> Result<Exit> {
    let arch = arch::find(&options.arch)?;
    if options.config {
        config::write(project, arch)?;
        return Ok(Exit::Ok);
    }
    Ok(Exit::NoTests)
}
