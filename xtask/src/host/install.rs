//! Getting the tools that are not there: from the machine's own suites, their backports, and cargo.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::host::apt;
use crate::host::arch::{Arch, ARCHES};
use crate::host::cache::{Cache, Part};
use crate::host::cross;
use crate::host::failure::{fail, Exit};
use crate::host::sh::{self, Progress};
use crate::host::tools::{dotted, look, numbers, Machine, Missing, Tools, Version, RUSTC_PACKAGES};

/// The bindgen that cargo installs where the packaged one is too old.
const BINDGEN: &str = "0.72.1";
/// Roughly how many crates bindgen is made of, for progress.
const BINDGEN_CRATES: u64 = 60;

/// The tools for some architectures, installed where they are missing.
pub fn ensure(cache: &Cache, arches: &[&Arch]) -> Result<Tools> {
    let tools = ensure_tools(cache, arches)?;
    for arch in arches.iter().filter(|arch| !arch.libc_packages.is_empty()) {
        cross::ensure(cache, arch, &tools)?;
    }
    Ok(tools)
}

fn ensure_tools(cache: &Cache, arches: &[&Arch]) -> Result<Tools> {
    let machine = Machine::real(cache);
    let tools = match look(&machine, arches) {
        Ok(tools) => tools,
        Err(_) => {
            cache.lock(Part::Setup)?;
            let missing = look(&machine, arches).err().unwrap_or_default();
            for tool in &missing {
                println!("missing: {}", tool.what);
            }
            if !has_apt() {
                let remedy = "install them; this machine has no apt-get";
                return Err(not_installed(&missing, remedy));
            }
            install(cache, &missing)?;
            again(&machine, arches)?
        }
    };
    // Newer only once: a changed rustc makes every kernel build start from nothing.
    let tried = |tools: &Tools| cache.path(format!("rustc-{}{TRIED}", tools.rustc_version));
    if !lags(&tools.rustc_version) || tried(&tools).exists() {
        return Ok(tools);
    }
    renew_rustc(cache, &tools.rustc_version);
    let tools = again(&machine, arches)?;
    sh::write_whole(&tried(&tools), b"")?;
    Ok(tools)
}

/// How the name of a file ends that says that no newer rustc than some was on offer.
const TRIED: &str = "-is-what-there-is";

/// Forgets that no newer rustc was on offer, so that it is asked for again.
pub fn ask_again(cache: &Cache) {
    for file in std::fs::read_dir(cache.path(""))
        .into_iter()
        .flatten()
        .flatten()
    {
        if file.file_name().to_string_lossy().ends_with(TRIED) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

fn has_apt() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    sh::find_program("apt-get", &path).is_some()
}

fn again(machine: &Machine, arches: &[&Arch]) -> Result<Tools> {
    look(machine, arches).map_err(|missing| {
        let remedy = "install what is named above; Debian 12 and 13 have packages";
        not_installed(&missing, remedy)
    })
}

/// The rustc that every architecture is content with.
fn wanted_rustc() -> Version {
    let least = ARCHES.iter().map(|arch| arch.least_rustc);
    least.max().expect("there are architectures")
}

/// Whether some architecture asks for a newer rustc.
fn lags(version: &str) -> bool {
    numbers(version) < wanted_rustc()
}

/// Installs a rustc for every architecture where there is one; else says what goes without.
fn renew_rustc(cache: &Cache, version: &str) {
    let least = dotted(wanted_rustc());
    println!("rustc is {version}; looking for {least}, which every architecture can be built with");
    let newest = Missing {
        what: format!("rustc {least}"),
        packages: RUSTC_PACKAGES.iter().map(|p| p.to_vec()).collect(),
        least: wanted_rustc(),
    };
    let renewed = match has_apt() {
        true => cache
            .lock(Part::Setup)
            .and_then(|()| install(cache, &[newest])),
        false => Err(anyhow::anyhow!("this machine has no apt-get")),
    };
    let Err(error) = renewed else { return };
    let without = ARCHES
        .iter()
        .filter(|arch| numbers(version) < arch.least_rustc);
    let without: Vec<&str> = without.map(|arch| arch.name).collect();
    println!(
        "note: no rustc {least} ({error:#})\nnote: with rustc {version} there is no kernel for {}",
        without.join(", ")
    );
}

fn not_installed(missing: &[Missing], remedy: &str) -> anyhow::Error {
    let list: Vec<&str> = missing.iter().map(|tool| tool.what.as_str()).collect();
    let what = format!("missing or too old: {}", list.join("; "));
    fail(Exit::Environment, what, remedy)
}

fn install(cache: &Cache, missing: &[Missing]) -> Result<()> {
    let logs = cache.dir("log")?;
    // Lists that are too old name packages that are gone, and hide newer ones.
    apt::update(&logs)?;
    let (packages, mut unmet) = choose(missing, apt::candidate);
    let wants_bindgen = unmet.iter().any(|tool| tool.packages == [["bindgen"]]);
    unmet.retain(|tool| tool.packages != [["bindgen"]]);
    if !packages.is_empty() {
        apt::install(&packages, &logs)?;
    }
    if !unmet.is_empty() {
        let backports = apt::Suites::backports(cache)?;
        let packages;
        (packages, unmet) = choose(unmet, |package| backports.newest(package));
        if !packages.is_empty() {
            backports.install(&packages, &logs)?;
        }
    }
    if let Some(tool) = unmet.first() {
        let names: Vec<String> = tool.packages.iter().map(|p| p.join(" ")).collect();
        return Err(fail(
            Exit::Environment,
            format!(
                "{}: neither this machine's suites nor their backports have a new enough package",
                tool.what
            ),
            format!(
                "install it by hand ({}); Debian 12 and 13 have it",
                names.join(" or ")
            ),
        ));
    }
    match wants_bindgen {
        true => install_bindgen(cache, &logs),
        false => Ok(()),
    }
}

/// The packages to install, and the tools for which none is on offer. Of several alternatives the
/// newest is taken, of equally new ones the first.
fn choose<'a>(
    missing: impl IntoIterator<Item = &'a Missing>,
    candidate: impl Fn(&str) -> Option<String>,
) -> (Vec<String>, Vec<&'a Missing>) {
    let (mut packages, mut unmet) = (Vec::new(), Vec::new());
    for tool in missing {
        let version = |alternative: &Vec<&str>| candidate(alternative[0]).map(|v| numbers(&v));
        let fits = |alternative: &&Vec<&str>| version(alternative).is_some_and(|v| v >= tool.least);
        let fitting = tool.packages.iter().rev().filter(fits);
        match fitting.max_by_key(|alternative| version(alternative)) {
            Some(alternative) => packages.extend(alternative.iter().map(|p| p.to_string())),
            None => unmet.push(tool),
        }
    }
    packages.sort();
    packages.dedup();
    (packages, unmet)
}

fn install_bindgen(cache: &Cache, logs: &Path) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["install", "bindgen-cli", "--locked", "--version", BINDGEN]);
    cargo.arg("--root").arg(cache.dir("bindgen")?);
    let mut progress = Progress::counted("bindgen", BINDGEN_CRATES);
    let log = logs.join("bindgen.log");
    let remedy = apt::NETWORK_REMEDY;
    sh::logged(&cargo, &log, Exit::Environment, remedy, |line| {
        if line.trim_start().starts_with("Compiling ") {
            progress.tick(line.trim());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_enough_package_is_chosen_and_of_several_the_newest() {
        let missing = |packages: &[&[&'static str]], least| Missing {
            what: packages[0][0].into(),
            packages: packages.iter().map(|p| p.to_vec()).collect(),
            least,
        };
        let rustc = RUSTC_PACKAGES.each_ref().map(|p| &p[..]);
        let tools = [
            missing(&rustc, [1, 85, 0]),
            missing(&[&["bindgen"]], [0, 71, 1]),
            // Debian 12 has no package of the first name.
            missing(&[&["qemu-system-s390x"], &["qemu-system-misc"]], [8, 2, 0]),
        ];
        let bookworm = |package: &str| match package {
            "rustc" => Some("1.63.0+dfsg1-2".to_owned()),
            "rustc-web" => Some("1.96.0+dfsg1-1~deb12u2".to_owned()),
            "bindgen" => Some("0.60.1-2".to_owned()),
            "qemu-system-misc" => Some("1:8.2.1".to_owned()),
            _ => None,
        };
        let (packages, unmet) = choose(&tools, bookworm);
        let web = ["cargo-web", "qemu-system-misc", "rust-web-src", "rustc-web"];
        assert_eq!(packages, web);
        assert_eq!(unmet[0].what, "bindgen", "it comes from cargo");
        let trixie = |package: &str| match package {
            "rustc" => Some("1.85.0+dfsg3-1".to_owned()),
            "bindgen" => Some("0.71.1-4".to_owned()),
            _ => None,
        };
        let (packages, unmet) = choose(&tools[..2], trixie);
        assert_eq!(packages, ["bindgen", "cargo", "rust-src", "rustc"]);
        assert!(unmet.is_empty());
        assert!(lags("1.95.0") && !lags("1.96.0+dfsg1-1~bpo13+1"));
    }
}
