//! `bench lines --load`: programs that people run, which `guest/loads.toml` lists, and what such a guest boots with.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use serde::Deserialize;

use crate::distro::root;
use crate::guest::initramfs::GuestFile;
use crate::host::arch::Arch;
use crate::host::failure::{fail, Exit};
use crate::kernel::workshop::Project;

/// The list.
const LIST: &str = "guest/loads.toml";
/// What the guest's first process is told to do.
const WORKLOAD: &str = "load";
/// The variant with what such programs ask a kernel for.
pub const VARIANT: &str = "loads";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(rename = "load")]
    loads: Vec<Load>,
}

/// A program that people run; see the list for what its fields mean.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    pub name: String,
    packages: Vec<String>,
    prepare: Option<String>,
    start: String,
    watch: String,
    operation: Option<Operation>,
    warm: u32,
    count: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    field: String,
    is: String,
}

impl List {
    fn parse(text: &str) -> Result<Self> {
        let list: List = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        for load in &list.loads {
            let word = |text: &str| {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                !text.is_empty() && text.chars().all(plain)
            };
            // They go to the kernel's command line, and into the name of a file.
            ensure!(
                word(&load.name) && word(&load.watch),
                "{:?}: a name is one word",
                load.name
            );
            ensure!(
                names.insert(&load.name),
                "two loads are called {}",
                load.name
            );
        }
        Ok(list)
    }
}

impl Load {
    /// The load of that name.
    pub fn find(repo: &Path, name: &str) -> Result<Self> {
        let path = repo.join(LIST);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let list = List::parse(&text).with_context(|| format!("in {LIST}"))?;
        let known: Vec<&str> = list.loads.iter().map(|load| &*load.name).collect();
        let remedy = format!("use one of: {}", known.join(", "));
        let found = list.loads.iter().find(|load| load.name == name).cloned();
        found.ok_or_else(|| fail(Exit::Usage, format!("no load is called {name}"), remedy))
    }

    /// What an operation is called, where the guest can count them.
    pub fn operation(&self) -> Option<&str> {
        Some(&self.operation.as_ref()?.is)
    }

    /// What the guest's first process is told on the kernel's command line.
    pub fn words(&self) -> String {
        let mut words = format!(
            "LAZY_TLB_WATCH={} LAZY_TLB_WARM={} LAZY_TLB_COUNT={}",
            self.watch, self.warm, self.count
        );
        if let Some(operation) = &self.operation {
            words.push_str(&format!(" LAZY_TLB_OPERATION={}", operation.field));
        }
        words
    }

    /// The Debian system with the load, and what else the guest is booted with.
    pub fn initramfs(
        &self,
        project: &Project,
        arch: &'static Arch,
        mut files: Vec<GuestFile>,
        dir: &Path,
    ) -> Result<PathBuf> {
        let system = root::find(project, arch, &self.packages)?;
        let script = |name: &str, text: &str| GuestFile {
            path: format!("load/{name}"),
            bytes: text.into(),
        };
        files.push(script("start", &self.start));
        files.extend(self.prepare.as_ref().map(|text| script("prepare", text)));
        let own = project.initramfs_with(arch, WORKLOAD, files, dir)?;
        // The kernel takes one archive after the other.
        let both = dir.join(format!("{WORKLOAD}-{}.cpio", self.name));
        let mut to = File::create(&both).with_context(|| format!("creating {}", both.display()))?;
        for part in [&system, &own] {
            io::copy(&mut File::open(part)?, &mut to)?;
        }
        Ok(both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::failure::classify;
    use crate::kernel::workshop::repository;

    #[test]
    fn the_list_in_the_repository_can_be_read() {
        let load = Load::find(&repository(), "hackbench").unwrap();
        assert_eq!(load.operation(), Some("message"));
        for word in ["LAZY_TLB_WATCH=hackbench", "LAZY_TLB_OPERATION=syscw"] {
            assert!(load.words().contains(word), "{}", load.words());
        }
        let (exit, error) = classify(Load::find(&repository(), "nothing").unwrap_err());
        assert_eq!(exit, Exit::Usage);
        assert!(error.to_string().contains("hackbench"), "{error}");
    }

    #[test]
    fn what_a_guest_would_not_understand_is_refused() {
        let load = |name: &str, more: &str| {
            format!(
                "[[load]]\nname = \"{name}\"\npackages = []\nstart = \"true\"\nwatch = \"true\"\n\
                 warm = 1\ncount = 1\n{more}"
            )
        };
        let refused = |text: &str| format!("{:#}", List::parse(text).unwrap_err());
        assert!(List::parse(&load("a", "")).is_ok());
        assert!(refused(&load("a b", "")).contains("one word"));
        assert!(refused(&(load("a", "") + &load("a", ""))).contains("two loads"));
        assert!(refused(&load("a", "timeout = 1\n")).contains("timeout"));
        assert!(refused(&load("a", "operation = { field = \"syscr\" }\n")).contains("is"));
    }
}
