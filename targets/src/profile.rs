//! Devices as data: how much memory, how many threads, how fast a disk. A profile has no code, and a target has no device's name.

use serde::Deserialize;

use crate::{Result, TargetError};

/// A device that plans can be made for without having it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What it is.
    pub name: String,
    /// Memory, in GiB.
    pub memory_gib: f64,
    /// What its system takes of it, in GiB.
    pub system_gib: f64,
    /// Threads that compute.
    pub threads: usize,
    /// What its disk reads, in GB/s.
    pub disk_gb_per_s: f64,
    /// Where figures come from.
    pub source: String,
    /// Those that do.
    pub from_source: Vec<String>,
    /// Those that are assumptions: what a system keeps for itself, what an ordinary disk for the device reads.
    pub assumed: Vec<String>,
    /// Those that were measured on the device.
    pub measured: Vec<String>,
}

/// The files of `profiles/`, by name.
const FILES: [(&str, &str); 9] = [
    ("agx-orin-64", include_str!("../profiles/agx-orin-64.toml")),
    ("laptop-16", include_str!("../profiles/laptop-16.toml")),
    ("laptop-32", include_str!("../profiles/laptop-32.toml")),
    ("macbook-air-16", include_str!("../profiles/macbook-air-16.toml")),
    ("macbook-air-24", include_str!("../profiles/macbook-air-24.toml")),
    ("macbook-air-8", include_str!("../profiles/macbook-air-8.toml")),
    ("orin-nano-8", include_str!("../profiles/orin-nano-8.toml")),
    ("orin-nx-16", include_str!("../profiles/orin-nx-16.toml")),
    ("pi-5-8", include_str!("../profiles/pi-5-8.toml")),
];

impl Profile {
    /// Names of all profiles.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FILES.iter().map(|(name, _)| *name)
    }

    /// The profile called `name`.
    ///
    /// # Errors
    /// [`TargetError::Option`] when there is none.
    pub fn named(name: &str) -> Result<Profile> {
        let wrong = |remedy| TargetError::Option { name: "--target", value: name.to_owned(), remedy };
        let known = "use one of agx-orin-64, laptop-16, laptop-32, macbook-air-8, -16, -24, orin-nano-8, orin-nx-16, pi-5-8";
        let (_, text) = FILES.iter().find(|(known, _)| *known == name).ok_or_else(|| wrong(known))?;
        toml::from_str(text).map_err(|_| wrong("the profile that came with this program is broken"))
    }

    /// What the figures are, in words: from the source, assumed, measured.
    pub fn basis(&self) -> String {
        let part = |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")));
        let parts = [part("from it", &self.from_source), part("assumed", &self.assumed), part("measured", &self.measured)];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }

    /// Bytes that a model may take.
    pub fn budget_bytes(&self) -> u64 {
        ((self.memory_gib - self.system_gib) * f64::from(1 << 30)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_whole() {
        for name in Profile::names() {
            let p = Profile::named(name).unwrap();
            assert!(p.system_gib < p.memory_gib && p.threads > 0 && p.disk_gb_per_s > 0.0 && !p.source.is_empty(), "{name}");
            assert!(name.ends_with(&format!("{}", p.memory_gib)), "{name}");
            // Each figure says what it is, once.
            let mut told: Vec<&str> = [&p.from_source, &p.assumed, &p.measured].into_iter().flatten().map(String::as_str).collect();
            told.sort_unstable();
            assert_eq!(told, ["disk_gb_per_s", "memory_gib", "system_gib", "threads"], "{name}");
        }
        assert!(Profile::named("toaster").unwrap_err().to_string().contains("pi-5-8"));
    }
}
