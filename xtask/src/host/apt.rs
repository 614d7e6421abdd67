//! Debian's archive: packages for this machine, and a private configuration for other suites.
//!
//! The private configuration is of the archive that the machine's own release comes from, with lists and
//! cache of its own. So no mirror is named here and the machine's package state is untouched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::cache::Cache;
use crate::host::failure::{fail, Exit};
use crate::host::sh::{self, Progress};

/// What is said where apt cannot get something.
pub const NETWORK_REMEDY: &str =
    "look at the lines above (network, mirror, full disk), then run this again";

/// The keys of Debian's archive, all suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt configuration that sees other suites than the machine's own.
pub struct Suites {
    config: PathBuf,
    last: String,
}

impl Suites {
    /// Writes the configuration for `suites` below the cache and fetches their lists.
    pub fn open(cache: &Cache, suites: &[&str]) -> Result<Self> {
        Self::with_status(cache, suites, false)
    }

    /// The machine's own release and its backports, over what is installed here, so that packages
    /// can be installed from there without a change to the machine's own sources.
    pub fn backports(cache: &Cache) -> Result<Self> {
        let own = codename()?;
        Self::with_status(cache, &[&own, &format!("{own}-backports")], true)
    }

    fn with_status(cache: &Cache, suites: &[&str], installed: bool) -> Result<Self> {
        let name = format!("apt/{}", suites.join("+"));
        let dir = cache.dir(&name)?;
        for sub in ["sources", "lists/partial", "cache/archives/partial"] {
            cache.dir(format!("{name}/{sub}"))?;
        }
        let own = codename()?;
        let mut archive = archive_of(&own);
        if archive.is_none() {
            // A machine that was just installed may have no lists.
            update(&dir)?;
            archive = archive_of(&own);
        }
        let archive = archive.ok_or_else(|| {
            fail(
                Exit::Environment,
                format!("no entry for {own} main in the machine's apt sources"),
                "add Debian's own entry to /etc/apt/sources.list, or use LINUX=DIR",
            )
        })?;
        let sources = sources_for(&archive, suites);
        sh::write_whole(&dir.join("sources/archive.sources"), sources.as_bytes())?;
        let config = dir.join("apt.conf");
        let path = dir.display();
        // apt drops to its own user, who cannot write here, unless told not to.
        let mut text = format!(
            "Dir::Etc::SourceList \"{path}/none.list\";\n\
             Dir::Etc::SourceParts \"{path}/sources/\";\n\
             Dir::State::Lists \"{path}/lists\";\n\
             Dir::Cache \"{path}/cache\";\n\
             APT::Sandbox::User \"\";\n\
             Acquire::Languages \"none\";\n"
        );
        if !installed {
            sh::write_whole(&dir.join("status"), b"")?;
            text.push_str(&format!("Dir::State::status \"{path}/status\";\n"));
        }
        sh::write_whole(&config, text.as_bytes())?;
        let last = suites.last().copied().unwrap_or_default().to_owned();
        let suites = Suites { config, last };
        let mut update = suites.command("apt-get");
        update.args(["update", "-q"]);
        sh::logged(
            &update,
            &dir.join("update.log"),
            Exit::Environment,
            NETWORK_REMEDY,
            |_| (),
        )?;
        Ok(suites)
    }

    /// The entries, for a program that makes a configuration of its own of them.
    pub fn sources(&self) -> PathBuf {
        self.config.with_file_name("sources/archive.sources")
    }

    /// The newest version of a binary package on offer.
    pub fn newest(&self, package: &str) -> Option<String> {
        self.versions(package, "").into_iter().next()
    }

    /// Installs packages from the last of these suites, where it has them.
    pub fn install(&self, packages: &[String], log_dir: &Path) -> Result<()> {
        let mut apt = as_root("apt-get")?;
        // Through sudo no variable gets there.
        apt.arg("-c").arg(&self.config).arg("-t").arg(&self.last);
        install_with(apt, packages, log_dir)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        command
    }

    /// Versions of a package on offer, source or binary, that start with `prefix`, newest first.
    pub fn versions(&self, package: &str, prefix: &str) -> Vec<String> {
        let mut apt = self.command("apt-cache");
        let text = sh::capture(apt.args(["madison", package])).unwrap_or_default();
        let versions = text.lines().filter_map(|line| line.split('|').nth(1));
        newest_first(versions.map(str::trim), prefix)
    }

    /// Downloads with `apt-get ARGS` into `dir`, which appears only when all of it is there.
    pub fn download(&self, args: &[&str], dir: &Path) -> Result<()> {
        // Versions have dots, so this is appended and not set as an extension.
        let part = PathBuf::from(format!("{}.part", dir.display()));
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        let mut apt = self.command("apt-get");
        apt.current_dir(&part)
            .args(["-o", "Acquire::Retries=2"])
            .args(args);
        sh::announce(&apt);
        // apt shows the bytes that arrive itself.
        let status = apt.status().context("failed to run apt-get")?;
        if !status.success() {
            let what = format!("apt-get failed ({status})");
            return Err(fail(Exit::Environment, what, NETWORK_REMEDY));
        }
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::rename(&part, dir).with_context(|| format!("creating {}", dir.display()))
    }

    /// Downloads packages by way of `download` and unpacks them below `root`, which appears when it is whole.
    pub fn unpack(&self, packages: &[&str], download: &Path, root: &Path) -> Result<()> {
        self.download(&[&["download"], packages].concat(), download)?;
        let part = root.with_extension("part");
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        for package in fs::read_dir(download)? {
            sh::capture(Command::new("dpkg").args([
                "-x".as_ref(),
                package?.path().as_os_str(),
                part.as_os_str(),
            ]))?;
        }
        fs::rename(&part, root).with_context(|| format!("creating {}", root.display()))?;
        // They are not needed again.
        fs::remove_dir_all(download)?;
        Ok(())
    }
}

fn newest_first<'a>(versions: impl Iterator<Item = &'a str>, prefix: &str) -> Vec<String> {
    let mut found: Vec<String> = versions
        .filter(|v| v.starts_with(prefix))
        .map(str::to_owned)
        .collect();
    found.sort_by_key(|version| std::cmp::Reverse(version_key(version)));
    found.dedup();
    found
}

/// Numbers as numbers; enough to order Debian's versions of one package.
pub fn version_key(version: &str) -> Vec<(u64, String)> {
    let words = version.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .map(|w| (w.parse().unwrap_or(0), w.to_owned()))
        .collect()
}

fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned())
        .ok_or_else(|| {
            fail(
                Exit::Environment,
                "this machine is not a Debian release (no VERSION_CODENAME in /etc/os-release)",
                "use Debian 12 or 13, or bring the tools and LINUX=DIR yourself",
            )
        })
}

/// Where this machine has its own release from, as apt says where it has lists.
fn archive_of(codename: &str) -> Option<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(REPO_URI)"]);
    apt.args(["Created-By: Packages", "Component: main"]);
    let found = sh::capture(apt.arg(format!("Codename: {codename}"))).ok()?;
    found.lines().next().map(str::to_owned)
}

/// The source entry of other suites there.
fn sources_for(archive: &str, suites: &[&str]) -> String {
    let signed = match Path::new(KEYRING).exists() {
        true => format!("Signed-By: {KEYRING}\n"),
        false => String::new(),
    };
    format!(
        "Types: deb deb-src\nURIs: {archive}\nSuites: {}\nComponents: main\n{signed}",
        suites.join(" ")
    )
}

/// The version the machine's own apt would install.
pub fn candidate(package: &str) -> Option<String> {
    let mut apt = Command::new("apt-cache");
    let text = sh::capture(apt.env("LC_ALL", "C").args(["policy", package])).ok()?;
    candidate_in(&text)
}

fn candidate_in(policy: &str) -> Option<String> {
    let line = policy
        .lines()
        .find_map(|l| l.trim().strip_prefix("Candidate: "))?;
    (line != "(none)").then(|| line.to_owned())
}

fn as_root(program: &str) -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if sh::find_program("sudo", &path).is_none() {
        return Err(fail(
            Exit::Environment,
            "packages are missing, and this is neither root nor is there sudo",
            "run `cargo xtask setup` once as root",
        ));
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["env", "DEBIAN_FRONTEND=noninteractive", program]);
    Ok(sudo)
}

pub fn update(log_dir: &Path) -> Result<()> {
    let mut apt = as_root("apt-get")?;
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["update", "-q"]);
    let log = log_dir.join("apt-update.log");
    sh::logged(&apt, &log, Exit::Environment, NETWORK_REMEDY, |_| ())
}

/// Installs packages of the machine's own suites.
pub fn install(packages: &[String], log_dir: &Path) -> Result<()> {
    install_with(as_root("apt-get")?, packages, log_dir)
}

fn install_with(mut apt: Command, packages: &[String], log_dir: &Path) -> Result<()> {
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    // Somebody else may be at it.
    apt.args(["-o", "DPkg::Lock::Timeout=300"]);
    apt.args(["install", "-q", "-y", "--no-install-recommends"])
        .args(packages);
    // Each package is unpacked and set up once.
    let mut progress = Progress::counted("packages", 2 * packages.len() as u64);
    let log = log_dir.join("apt-install.log");
    sh::logged(&apt, &log, Exit::Environment, NETWORK_REMEDY, |line| {
        if line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
            progress.tick(line);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_numbers() {
        let versions = [
            "7.3.4-1~bpo13+1",
            "7.3.10-1~bpo13+1",
            "7.2.8-1",
            "7.3.10-1~bpo13+1",
        ];
        assert_eq!(
            newest_first(versions.into_iter(), "7.3."),
            ["7.3.10-1~bpo13+1", "7.3.4-1~bpo13+1"]
        );
    }

    #[test]
    fn policy_without_a_candidate_is_none() {
        assert_eq!(
            candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
        assert_eq!(
            candidate_in("x:\n  Candidate: 1.2-3\n"),
            Some("1.2-3".into())
        );
    }
}
