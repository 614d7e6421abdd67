//! What the commands share: this repository, the cache, the base tree, and what is built of them.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::host::arch::Arch;
use crate::host::cache::{Cache, Part};
use crate::host::cross;
use crate::host::install;
use crate::host::tools::Tools;
use crate::kernel::build::{Build, Source};
use crate::series::base::{self, Base};
use crate::series::git;
use crate::series::patch::{Patch, Selection, Series};

/// The command line's surroundings.
pub struct Project {
    pub repo: PathBuf,
    pub cache: Cache,
    pub linux: Option<PathBuf>,
}

/// Everything that a kernel build needs, found or made.
pub struct Workshop<'a> {
    project: &'a Project,
    pub tools: Tools,
    pub base: Base,
    pub series: Series,
    pub selection: Selection,
    pub tree: PathBuf,
}

impl Project {
    pub fn series(&self) -> Result<Series> {
        Series::load(&self.repo)
    }

    pub fn base(&self) -> Result<Base> {
        base::find(&self.cache, self.linux.as_deref())
    }

    pub fn workshop(&self, skip: &[String], arches: &[&Arch]) -> Result<Workshop<'_>> {
        let tools = install::ensure(&self.cache, arches)?;
        let base = self.base()?;
        let series = self.series()?;
        let selection = Selection {
            upto: None,
            skip: skip.to_vec(),
        };
        let tree = git::patched(&self.cache, &base, &series, &selection)?;
        Ok(Workshop {
            project: self,
            tools,
            base,
            series,
            selection,
            tree,
        })
    }
}

impl Workshop<'_> {
    /// What compiles an architecture's programs.
    pub fn compiler(&self, arch: &Arch) -> PathBuf {
        cross::compiler(&self.project.cache, arch)
    }

    pub fn build<'b>(&'b self, arch: &'static Arch, variant: &'b str) -> Result<Build<'b>> {
        let suffix = self.selection.suffix();
        let patches = self.series.select(&self.selection)?;
        self.build_of(&patches, &suffix, self.tree.clone(), arch, variant)
    }

    pub fn build_base<'b>(&'b self, arch: &'static Arch, variant: &'b str) -> Result<Build<'b>> {
        self.build_upto(0, arch, variant)
    }

    /// A build of the base tree with the fixes that the series begins with: what comes before
    /// lazy_tlb.h.
    pub fn build_fixed<'b>(&'b self, arch: &'static Arch, variant: &'b str) -> Result<Build<'b>> {
        let header = Path::new("include/linux/lazy_tlb.h");
        let mut patches = self.series.patches.iter();
        let fixes = patches.position(|p| p.entry.adds.iter().any(|file| file == header));
        self.build_upto(fixes.unwrap_or(0), arch, variant)
    }

    fn build_upto<'b>(
        &'b self,
        upto: usize,
        arch: &'static Arch,
        variant: &'b str,
    ) -> Result<Build<'b>> {
        let selection = Selection::first(upto);
        let tree = git::patched(&self.project.cache, &self.base, &self.series, &selection)?;
        let patches = self.series.select(&selection)?;
        self.build_of(&patches, &selection.suffix(), tree, arch, variant)
    }

    /// A build of a tree of that suffix with some of the patches. Only with all of them does it have to have
    /// every symbol that the series brings.
    pub fn build_step<'b>(
        &'b self,
        patches: &[&Patch],
        (suffix, tree): (&str, PathBuf),
        arch: &'static Arch,
        variant: &'b str,
    ) -> Result<Build<'b>> {
        let build = self.build_of(patches, suffix, tree, arch, variant)?;
        Ok(match patches.len() < self.series.patches.len() {
            true => build.without(self.series.symbols()),
            false => build,
        })
    }

    fn build_of<'b>(
        &'b self,
        patches: &[&Patch],
        suffix: &str,
        tree: PathBuf,
        arch: &'static Arch,
        variant: &'b str,
    ) -> Result<Build<'b>> {
        self.project.cache.lock(Part::Trees)?;
        self.project.cache.need_space(3, "a kernel build")?;
        Build::new(
            &self.project.cache,
            &self.tools,
            self.source(suffix, tree),
            patches,
            arch,
            variant,
        )
    }

    /// A build of the patched tree for a person's own configuration, in a folder of its own.
    pub fn build_own(&self, arch: &'static Arch, out: PathBuf) -> Result<Build<'_>> {
        self.project.cache.lock(Part::Trees)?;
        let source = self.source(&self.selection.suffix(), self.tree.clone());
        Build::own(&self.project.cache, &self.tools, source, arch, out)
    }

    fn source(&self, suffix: &str, tree: PathBuf) -> Source {
        Source {
            tree,
            id: format!("{}{suffix}", self.base.id),
            origin: self.base.origin,
            repo: self.project.repo.clone(),
        }
    }
}

/// The repository: cargo says where this crate is.
pub fn repository() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or(own.clone(), Path::to_path_buf)
}
