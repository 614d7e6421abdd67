//! Debian's archive: packages for this machine, and a private configuration for other suites.
//!
//! The private configuration is the machine's own source entry with the suite replaced, with lists
//! and cache of its own. So no mirror is named here and the machine's package state is untouched.

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

/// An apt configuration that sees other suites than the machine's own.
pub struct Suites {
    config: PathBuf,
    /// The last suite of the list.
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
        let sources = sources_for(
            &machine_sources(Path::new("/etc/apt"))?,
            &codename()?,
            suites,
        )?;
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
        self.binary_versions(package, "").ok()?.into_iter().next()
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

    /// Versions of a source package on offer that start with `prefix`, newest first.
    pub fn source_versions(&self, package: &str, prefix: &str) -> Result<Vec<String>> {
        let mut apt = self.command("apt-cache");
        let text = sh::capture(apt.args(["showsrc", "--only-source", package])).unwrap_or_default();
        newest_first(
            text.lines().filter_map(|l| l.strip_prefix("Version: ")),
            prefix,
        )
    }

    /// Versions of a binary package on offer that start with `prefix`, newest first.
    pub fn binary_versions(&self, package: &str, prefix: &str) -> Result<Vec<String>> {
        let mut apt = self.command("apt-cache");
        let text = sh::capture(apt.args(["madison", package])).unwrap_or_default();
        let version = |line: &'_ str| line.split('|').nth(1).map(|v| v.trim().to_owned());
        let versions: Vec<String> = text.lines().filter_map(version).collect();
        newest_first(versions.iter().map(String::as_str), prefix)
    }

    /// Downloads with `apt-get ARGS` into `dir`; the bytes that arrive are shown.
    ///
    /// `dir` appears only when all of it is there.
    pub fn download(&self, args: &[&str], dir: &Path) -> Result<()> {
        // Versions have dots, so these are appended and not set as an extension.
        let beside = |ending: &str| PathBuf::from(format!("{}.{ending}", dir.display()));
        let part = beside("part");
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        let mut list = self.command("apt-get");
        let uris = sh::capture(list.current_dir(&part).args(args).arg("--print-uris"))?;
        let total = uris.lines().filter_map(size_of_uri).sum();
        let mut apt = self.command("apt-get");
        apt.current_dir(&part)
            .args(["-q", "-o", "Acquire::Retries=2"])
            .args(args);
        let log = beside("log");
        let finished = std::sync::atomic::AtomicBool::new(false);
        let ran = std::thread::scope(|scope| {
            let watch = scope.spawn({
                let (finished, part) = (&finished, &part);
                move || {
                    let mut progress = Progress::bytes("download", total);
                    while !finished.load(std::sync::atomic::Ordering::Relaxed) {
                        progress.set(bytes_in(part), "");
                        std::thread::sleep(std::time::Duration::from_millis(250));
                    }
                    progress.set(bytes_in(part), "");
                }
            });
            let ran = sh::logged(&apt, &log, Exit::Environment, NETWORK_REMEDY, |_| ());
            finished.store(true, std::sync::atomic::Ordering::Relaxed);
            watch.join().expect("the watcher does not panic");
            ran
        });
        ran?;
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::rename(&part, dir).with_context(|| format!("creating {}", dir.display()))
    }
}

fn bytes_in(dir: &Path) -> u64 {
    let files = walkdir::WalkDir::new(dir).into_iter().flatten();
    files
        .filter_map(|f| f.metadata().ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

/// `'URI' name size hash` as `apt-get --print-uris` prints it.
fn size_of_uri(line: &str) -> Option<u64> {
    line.strip_prefix('\'')?.split(' ').nth(2)?.parse().ok()
}

fn newest_first<'a>(versions: impl Iterator<Item = &'a str>, prefix: &str) -> Result<Vec<String>> {
    let mut found: Vec<String> = versions
        .filter(|v| v.starts_with(prefix))
        .map(str::to_owned)
        .collect();
    found.sort_by_key(|version| std::cmp::Reverse(version_key(version)));
    found.dedup();
    Ok(found)
}

/// Numbers as numbers; enough to order Debian's versions of one package.
pub fn version_key(version: &str) -> Vec<(u64, String)> {
    let words = version.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .map(|w| (w.parse().unwrap_or(0), w.to_owned()))
        .collect()
}

/// The machine's release name.
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

/// The machine's source entries, one text for each file: (is deb822, content).
fn machine_sources(etc: &Path) -> Result<Vec<(bool, String)>> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(dir) = fs::read_dir(etc.join("sources.list.d")) {
        let mut parts: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut sources = Vec::new();
    for file in files {
        let extension = file.extension().unwrap_or_default().to_owned();
        if extension != "list" && extension != "sources" {
            continue;
        }
        if let Ok(text) = fs::read_to_string(&file) {
            sources.push((extension == "sources", text));
        }
    }
    Ok(sources)
}

/// The machine's entry for its own release, for other suites: a deb822 text.
fn sources_for(machine: &[(bool, String)], codename: &str, suites: &[&str]) -> Result<String> {
    let stanzas = machine.iter().flat_map(|(deb822, text)| {
        if *deb822 {
            from_deb822(text, codename)
        } else {
            from_one_line(text, codename)
        }
    });
    let stanza = stanzas.into_iter().next().ok_or_else(|| {
        fail(
            Exit::Environment,
            format!("no entry for {codename} main in the machine's apt sources"),
            "add Debian's own entry to /etc/apt/sources.list, or use LINUX=DIR",
        )
    })?;
    Ok(format!(
        "Types: deb deb-src\nSuites: {}\nComponents: main\n{stanza}",
        suites.join(" ")
    ))
}

/// Whether an entry is the release's own, not updates or security.
fn is_release(suite: &str, codename: &str) -> bool {
    let suite = suite.trim_end_matches('/');
    suite == codename || matches!(suite, "stable" | "oldstable")
}

fn from_deb822(text: &str, codename: &str) -> Vec<String> {
    let mut found = Vec::new();
    for stanza in text.split("\n\n") {
        // A field is a line and the indented lines after it; comments may stand in between.
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let words = |name: &str| {
            let value = fields.iter().find(|(n, _)| n == name);
            value.map_or(Vec::new(), |(_, v)| v.split_whitespace().collect())
        };
        let ours = words("types").contains(&"deb")
            && words("suites")
                .iter()
                .any(|suite| is_release(suite, codename))
            && words("components").contains(&"main")
            && words("enabled") != ["no"];
        if ours {
            let kept = fields.iter().filter(|(name, _)| {
                !matches!(name.as_str(), "types" | "suites" | "components" | "enabled")
            });
            found.push(
                kept.map(|(name, value)| format!("{}: {value}\n", title(name)))
                    .collect(),
            );
        }
    }
    found
}

/// `deb [options] URI suite components` lines.
fn from_one_line(text: &str, codename: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ") else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let [uri, suite, components @ ..] = words.as_slice() else {
            continue;
        };
        if !is_release(suite, codename) || !components.contains(&"main") {
            continue;
        }
        let mut stanza = format!("URIs: {uri}\n");
        for option in options.split_whitespace() {
            if let Some((name, value)) = option.split_once('=') {
                // `arch` is the one option with another name in deb822.
                let name = if name == "arch" {
                    "architectures"
                } else {
                    name
                };
                stanza.push_str(&format!("{}: {}\n", title(name), value.replace(',', " ")));
            }
        }
        found.push(stanza);
    }
    found
}

/// `signed-by` as `Signed-By`.
fn title(name: &str) -> String {
    if name == "uris" {
        return "URIs".into();
    }
    let capital = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
    name.split('-').map(capital).collect::<Vec<_>>().join("-")
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

/// Fetches the machine's own lists.
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

    const DEB822: &str = "Types: deb\n# a comment\nURIs: http://archive.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\n\
        Signed-By: /usr/share/keyrings/k.gpg\n\n\
        Types: deb\nURIs: http://archive.example/debian-security\n\
        Suites: bookworm-security\nComponents: main\n";

    #[test]
    fn a_deb822_entry_gets_another_suite() {
        let text = sources_for(&[(true, DEB822.into())], "bookworm", &["trixie-backports"]);
        assert_eq!(
            text.unwrap(),
            "Types: deb deb-src\nSuites: trixie-backports\nComponents: main\n\
             URIs: http://archive.example/debian\nSigned-By: /usr/share/keyrings/k.gpg\n"
        );
    }

    #[test]
    fn an_embedded_key_is_kept_whole() {
        let text = "Types: deb\nURIs: http://archive.example/\nSuites: trixie\n\
                    Components: main\nSigned-By:\n -----BEGIN-----\n .\n abc\n";
        let text = sources_for(&[(true, text.into())], "trixie", &["sid"]).unwrap();
        assert!(
            text.ends_with("Signed-By: \n -----BEGIN-----\n .\n abc\n"),
            "{text}"
        );
    }

    #[test]
    fn a_one_line_entry_gets_another_suite() {
        let list = "# deb http://no.example/ trixie main\n\
                    deb http://other.example/ nodistro main\n\
                    deb [signed-by=/k.gpg arch=amd64,arm64] http://archive.example/debian trixie main\n";
        let text = sources_for(
            &[(false, list.into())],
            "trixie",
            &["trixie-backports", "sid"],
        );
        assert_eq!(
            text.unwrap(),
            "Types: deb deb-src\nSuites: trixie-backports sid\nComponents: main\n\
             URIs: http://archive.example/debian\nSigned-By: /k.gpg\nArchitectures: amd64 arm64\n"
        );
    }

    #[test]
    fn a_machine_without_debian_is_told_so() {
        let error = sources_for(
            &[(false, "deb http://a.example/ x main".into())],
            "trixie",
            &[],
        );
        assert!(error.unwrap_err().to_string().contains("trixie"));
    }

    #[test]
    fn versions_are_ordered_as_numbers() {
        let versions = [
            "7.3.4-1~bpo13+1",
            "7.3.10-1~bpo13+1",
            "7.2.8-1",
            "7.3.10-1~bpo13+1",
        ];
        assert_eq!(
            newest_first(versions.into_iter(), "7.3.").unwrap(),
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

    #[test]
    fn sizes_are_read_from_uris() {
        let line = "'http://archive.example/l.tar.xz' l.tar.xz 163554268 SHA256:ab";
        assert_eq!(size_of_uri(line), Some(163_554_268));
        assert_eq!(size_of_uri("Reading package lists..."), None);
    }
}
