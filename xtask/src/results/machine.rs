//! The machine that a benchmark ran on, and where its results are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The machine that a benchmark ran on. Its host name is nobody's business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub arch: String,
    pub cpus: usize,
    pub cpu_model: String,
    /// Whether /proc/cpuinfo says so; nothing where it does not say (all but x86).
    #[serde(rename = "virtual")]
    pub is_virtual: Option<bool>,
    /// The release of the kernel that it runs; only `lab` measures that kernel.
    pub host_kernel: String,
}

impl Machine {
    pub fn here() -> Result<Self> {
        let read = |file| fs::read_to_string(file).with_context(|| format!("reading {file}"));
        Ok(Machine::parse(
            &read("/proc/cpuinfo")?,
            std::env::consts::ARCH,
            read("/proc/sys/kernel/osrelease")?.trim(),
        ))
    }

    /// Reads /proc/cpuinfo, which differs between architectures.
    pub fn parse(cpuinfo: &str, arch: &str, host_kernel: &str) -> Self {
        let lines = || cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let value = |key: &str| {
            let found = lines().find(|(name, _)| name.trim() == key);
            found.map(|(_, value)| value.trim().to_owned())
        };
        // s390 has the number of the CPU before the colon.
        let is_cpu = |name: &str| {
            let number = name.trim().strip_prefix("processor");
            number.is_some_and(|number| number.trim().chars().all(|c| c.is_ascii_digit()))
        };
        let arm = || {
            Some(format!(
                "{} {}",
                value("CPU implementer")?,
                value("CPU part")?
            ))
        };
        let cpu_model = value("model name")
            .or_else(|| value("cpu"))
            .or_else(arm)
            .or_else(|| value("vendor_id"));
        let hypervisor = |flags: String| flags.split_whitespace().any(|flag| flag == "hypervisor");
        Machine {
            arch: arch.into(),
            cpus: lines().filter(|(name, _)| is_cpu(name)).count().max(1),
            cpu_model: cpu_model.unwrap_or_else(|| "unknown".into()),
            is_virtual: value("flags").map(hypervisor),
            host_kernel: host_kernel.into(),
        }
    }

    /// What its folder is called, such as `x86_64-2cpus-amd-epyc`.
    pub fn slug(&self) -> String {
        let plain = self.cpu_model.to_lowercase();
        let plain = plain.replace("(r)", " ").replace("(tm)", " ");
        let words = plain.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        format!("{}-{}cpus-{}", self.arch, self.cpus, words.join("-"))
    }
}

pub fn of_this_machine(repo: &Path) -> Result<PathBuf> {
    Ok(repo.join("results").join(Machine::here()?.slug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: &str = "processor\t: 0\nmodel name\t: Some(R) CPU (TM) @ 2.00GHz\n\
        flags\t\t: fpu hypervisor\n\nprocessor\t: 1\nmodel name\t: Some(R) CPU\n";

    #[test]
    fn the_machine_is_named() {
        let machine = Machine::parse(X86, "x86_64", "6.1.0");
        assert_eq!(machine.slug(), "x86_64-2cpus-some-cpu-2-00ghz");
        assert_eq!(machine.is_virtual, Some(true));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        let machine = Machine::parse(arm, "aarch64", "6.1.0");
        assert_eq!(machine.slug(), "aarch64-1cpus-0x41-0xd0c");
        assert_eq!(machine.is_virtual, None);
        let s390 = "vendor_id       : IBM/S390\n# processors    : 2\n\
            processor 0: version = FF, machine = 8561\nprocessor 1: version = FF\n";
        let machine = Machine::parse(s390, "s390x", "6.1.0");
        assert_eq!(machine.slug(), "s390x-2cpus-ibm-s390");
        let power = "processor\t: 0\ncpu\t\t: POWER9 (architected)\n";
        let machine = Machine::parse(power, "powerpc64", "6.1.0");
        assert_eq!(machine.slug(), "powerpc64-1cpus-power9-architected");
        assert_eq!(Machine::parse("", "x", "").slug(), "x-1cpus-unknown");
    }
}
