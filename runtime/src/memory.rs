//! How much memory this process uses.

/// Bytes, from `/proc/self/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident memory of its own: buffers, caches, repacked weights.
    pub anonymous_bytes: u64,
    /// Resident pages of mapped files: weights that were read. The system may drop them at any time.
    pub mapped_bytes: u64,
    /// The most that was ever resident, both kinds together.
    pub peak_bytes: u64,
}

impl Memory {
    /// Now; `None` where the system has no such file.
    pub fn now() -> Option<Memory> {
        Memory::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    /// Bytes that new work may use without pushing anything out, pages of files counted as free; `None` where the system does
    /// not tell.
    pub fn available() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    }

    fn parse(status: &str) -> Option<Memory> {
        let bytes = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Memory { anonymous_bytes: bytes("RssAnon")?, mapped_bytes: bytes("RssFile")?, peak_bytes: bytes("VmHWM")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_lines() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nRssAnon:\t      12 kB\nRssFile:\t       3 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { anonymous_bytes: 12288, mapped_bytes: 3072, peak_bytes: 2 << 20 }));
        assert_eq!(Memory::parse("VmHWM:\t1 kB\n"), None);
        assert_eq!(Memory::parse("VmHWM:\tx kB\nRssAnon:\t1 kB\nRssFile:\t1 kB\n"), None);
    }
}
