//! The base tree: an unpatched Linux 7.3, a person's own or one from Debian's archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::host::apt::{version_key, Suites};
use crate::host::cache::{Cache, Part};
use crate::host::failure::{fail, Exit};
use crate::host::sh::{self, Progress};

pub const SERIES: &str = "7.3";
/// Where Debian has 7.3, in the order of asking; later suites hold it only for a while.
pub const SUITES: [&[&str]; 2] = [&["trixie-backports"], &["forky", "sid"]];
/// Roughly how many files a kernel tarball has, for progress.
const FILES: u64 = 96_000;

/// Where a base tree came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Upstream,
    Debian,
    User,
}

impl Origin {
    pub fn name(&self) -> &'static str {
        match self {
            Origin::Upstream => "upstream",
            Origin::Debian => "debian",
            Origin::User => "user",
        }
    }
}

/// A base tree, on disk.
#[derive(Clone, Debug)]
pub struct Base {
    /// Where it is; never written to.
    pub dir: PathBuf,
    pub version: String,
    pub origin: Origin,
    /// A name for cache entries that are made from it.
    pub id: String,
}

/// The version in a kernel tree's Makefile.
pub fn any_version_of(dir: &Path) -> Result<String> {
    let makefile = fs::read_to_string(dir.join("Makefile")).unwrap_or_default();
    let field = |name: &str| {
        let value = makefile.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        });
        value.unwrap_or_default()
    };
    let (version, patchlevel) = (field("VERSION"), field("PATCHLEVEL"));
    if version.is_empty() || patchlevel.is_empty() {
        return Err(fail(
            Exit::BaseTree,
            format!("{} is not a Linux tree", dir.display()),
            format!("name the top folder of a Linux {SERIES}.x tree"),
        ));
    }
    let (sublevel, extra) = (field("SUBLEVEL"), field("EXTRAVERSION"));
    Ok(format!("{version}.{patchlevel}.{sublevel}{extra}"))
}

/// The same; an error where it is not the series'.
pub fn version_of(dir: &Path) -> Result<String> {
    let found = any_version_of(dir)?;
    if !found.starts_with(&format!("{SERIES}.")) {
        return Err(fail(
            Exit::BaseTree,
            format!(
                "{} is Linux {found}, and the series is for {SERIES}.x",
                dir.display()
            ),
            format!("use a {SERIES}.x tree, or leave LINUX= out to have one fetched"),
        ));
    }
    Ok(found)
}

/// The base tree: the person's own, one that is in the cache, or one fetched now.
pub fn find(cache: &Cache, linux: Option<&Path>) -> Result<Base> {
    if let Some(dir) = linux {
        return of_user(dir);
    }
    if let Some(base) = cached(cache) {
        return Ok(base);
    }
    cache.lock(Part::Setup)?;
    match cached(cache) {
        Some(base) => Ok(base),
        None => fetch(cache),
    }
}

fn of_user(dir: &Path) -> Result<Base> {
    let dir = dir.canonicalize().map_err(|error| {
        fail(
            Exit::BaseTree,
            format!("--linux {}: {error}", dir.display()),
            format!("name the top folder of a Linux {SERIES}.x tree"),
        )
    })?;
    let version = version_of(&dir)?;
    if dir.join(".config").exists() || dir.join("include/config").exists() {
        return Err(fail(
            Exit::BaseTree,
            format!(
                "{} has been built in; kbuild will not build it elsewhere",
                dir.display()
            ),
            format!(
                "run `make -C {} mrproper` first; it removes the .config, so save that elsewhere",
                dir.display()
            ),
        ));
    }
    let hash = hex(&Sha256::digest(dir.as_os_str().as_encoded_bytes()));
    let id = format!("{version}-user-{}", &hash[..8]);
    Ok(Base {
        dir,
        version,
        origin: Origin::User,
        id,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The newest complete base tree in the cache; upstream's own before Debian's.
fn cached(cache: &Cache) -> Option<Base> {
    let entries = fs::read_dir(cache.path("base")).into_iter().flatten();
    let bases = entries.flatten().filter_map(|entry| {
        let id = entry.file_name().into_string().ok()?;
        let origins = [Origin::Upstream, Origin::Debian];
        let origin = origins.into_iter().find(|origin| {
            let mut words = id.split('-');
            words.nth(1) == Some(origin.name()) && words.count() == 1
        })?;
        let dir = entry.path();
        let version = version_of(&dir).ok()?;
        Some(Base {
            dir,
            version,
            origin,
            id,
        })
    });
    bases.max_by_key(|base| (base.origin == Origin::Upstream, version_key(&base.version)))
}

/// A kernel in Debian's archive, in one of the two ways in which it is there.
pub struct Offer {
    pub version: String,
    /// Upstream's tarball, or a package with Debian's patches.
    pub origin: Origin,
    spec: String,
}

impl Offer {
    /// What some suites have, upstream's tarballs first.
    pub fn all(apt: &Suites, wanted: impl Fn(&str) -> bool) -> Result<Vec<Self>> {
        let offer = |origin: Origin, package: &str, version: &str| {
            let upstream = version.split('-').next().unwrap_or(version).to_owned();
            wanted(&upstream).then(|| Offer {
                version: upstream,
                origin,
                spec: format!("{package}={version}"),
            })
        };
        let sources = apt.versions("linux", "");
        let mut offers: Vec<Self> = sources
            .iter()
            .filter_map(|version| offer(Origin::Upstream, "linux", version))
            .collect();
        let release = |version: &str| version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        let mut releases: Vec<String> = offers.iter().map(|o| release(&o.version)).collect();
        releases.push(SERIES.into());
        releases.sort();
        releases.dedup();
        for release in releases {
            let package = format!("linux-source-{release}");
            let versions = apt.versions(&package, &format!("{release}."));
            let debian = versions
                .iter()
                .filter_map(|version| offer(Origin::Debian, &package, version));
            offers.extend(debian);
        }
        Ok(offers)
    }

    pub fn download(&self, cache: &Cache, apt: &Suites) -> Result<PathBuf> {
        let (args, dir): (&[&str], _) = match self.origin {
            Origin::Debian => (&["download"], self.spec.replace('=', "_")),
            _ => (
                &["source", "--download-only", "--tar-only"],
                format!("linux-{}-orig", self.version),
            ),
        };
        let dir = cache.path("dl").join(dir);
        apt.download(&[args, &[&self.spec]].concat(), &dir)
            .inspect_err(|_| match self.origin {
                Origin::Debian => println!("{} is not to be had", self.spec),
                _ => println!("upstream's tarball of {} is not to be had", self.version),
            })?;
        Ok(dir)
    }
}

fn fetch(cache: &Cache) -> Result<Base> {
    cache.need_space(6, "a base tree and a kernel build")?;
    let prefix = format!("{SERIES}.");
    let mut said = Vec::new();
    for suites in SUITES {
        let apt = Suites::open(cache, suites)?;
        for offer in Offer::all(&apt, |version| version.starts_with(&prefix))? {
            match offer.download(cache, &apt) {
                Ok(dir) => return keep(cache, &dir, offer.origin),
                Err(error) => said.push(format!("{error:#}")),
            }
        }
    }
    Err(fail(
        Exit::BaseTree,
        format!(
            "found no Linux {SERIES} in Debian's archive\n{}",
            said.join("\n")
        ),
        format!(
            "unpack Linux {SERIES}.x yourself and give its folder as LINUX=DIR; with one, \
             `cargo xtask check drift` tries the series on the other kernels that the archive has"
        ),
    ))
}

/// Unpacks what was downloaded into a scratch folder of the cache; returns it and the file.
pub fn unpack(cache: &Cache, download: &Path, origin: Origin) -> Result<(PathBuf, PathBuf)> {
    let ending = match origin {
        Origin::Debian => ".deb",
        _ => ".orig.tar.xz",
    };
    let file = fs::read_dir(download)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with(ending))
        .with_context(|| format!("no *{ending} in {}", download.display()))?;
    let part = cache.path("base/unpacking");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part)?;
    // The source package holds a tarball in a package; both are one folder deep.
    let script = match origin {
        Origin::Debian => {
            "set -o pipefail; dpkg-deb --fsys-tarfile \"$1\" \
             | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' \
             | tar -xJv --strip-components=1 --no-same-owner -C \"$2\""
        }
        _ => "tar -xJvf \"$1\" --strip-components=1 --no-same-owner -C \"$2\"",
    };
    let mut command = Command::new("bash");
    command.args(["-c", script, "unpack"]).arg(&file).arg(&part);
    let mut progress = Progress::counted("unpacking", FILES);
    let remedy = "remove the file named above and run this again";
    let log = cache.path("base/unpack.log");
    sh::logged(&command, &log, Exit::Environment, remedy, |_| {
        progress.tick("")
    })?;
    Ok((part, file))
}

/// Keeps what was downloaded as a base tree.
fn keep(cache: &Cache, download: &Path, origin: Origin) -> Result<Base> {
    let (part, file) = unpack(cache, download, origin)?;
    let sha256 = hash_file(&file)?;
    let version = version_of(&part)?;
    let origin_name = origin.name();
    if origin == Origin::Debian {
        println!(
            "note: this base is Linux {version} with Debian's patches; upstream's own tarball was \
             not to be had (LINUX=DIR takes another tree)"
        );
    }
    let id = format!("{version}-{origin_name}-{}", &sha256[..8]);
    let dir = cache.path("base").join(&id);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::rename(&part, &dir)?;
    // The download has served; a base tree is unpacked once.
    fs::remove_dir_all(download)?;
    cached(cache).context("the base tree that was just unpacked")
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;

    fn tree(dir: &Path, version: &str) {
        let mut parts = version.split('.');
        let mut next = || parts.next().unwrap_or("0");
        let text = format!(
            "# SPDX\nVERSION = {}\nPATCHLEVEL = {}\nSUBLEVEL = {}\nEXTRAVERSION =\n",
            next(),
            next(),
            next()
        );
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("Makefile"), text).unwrap();
    }

    #[test]
    fn another_kernel_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), "7.2.9");
        let (exit, error) = classify(of_user(dir.path()).unwrap_err());
        assert_eq!(exit, Exit::BaseTree);
        let text = error.to_string();
        assert!(text.contains("7.2.9") && text.contains("7.3.x"), "{text}");
    }

    #[test]
    fn a_folder_that_is_no_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(classify(of_user(dir.path()).unwrap_err()).0, Exit::BaseTree);
        let missing = dir.path().join("missing");
        assert_eq!(classify(of_user(&missing).unwrap_err()).0, Exit::BaseTree);
    }

    #[test]
    fn a_tree_that_was_built_in_is_refused_with_mrproper() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), "7.3.4");
        assert_eq!(of_user(dir.path()).unwrap().version, "7.3.4");
        fs::write(dir.path().join(".config"), "").unwrap();
        assert!(of_user(dir.path())
            .unwrap_err()
            .to_string()
            .contains("mrproper"));
    }

    #[test]
    fn upstreams_own_tree_is_taken_and_none_that_is_half_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        tree(&cache.path("base/unpacking"), "7.3.6");
        assert!(cached(&cache).is_none());
        for (id, version) in [("7.3.10-debian-bb", "7.3.10"), ("7.3.9-debian-cc", "7.3.9")] {
            tree(&cache.path("base").join(id), version);
        }
        assert_eq!(cached(&cache).unwrap().id, "7.3.10-debian-bb");
        tree(&cache.path("base/7.3.4-upstream-aa"), "7.3.4");
        assert_eq!(cached(&cache).unwrap().id, "7.3.4-upstream-aa");
    }
}
