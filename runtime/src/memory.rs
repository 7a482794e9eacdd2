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

    /// Bytes that new work may use without pushing anything out, pages of files counted as free: what the system has, or what
    /// the control groups that this process is in leave of it. `None` where the system does not tell.
    pub fn available() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let system = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)?;
        Some(limit().map_or(system, |limit| system.min(limit)))
    }

    fn parse(status: &str) -> Option<Memory> {
        let bytes = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Memory { anonymous_bytes: bytes("RssAnon")?, mapped_bytes: bytes("RssFile")?, peak_bytes: bytes("VmHWM")? })
    }
}

/// The least that a control group allows this process, in bytes.
fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limits(&groups, &|file| std::fs::read_to_string(file).ok()).min()
}

/// The limits of the groups in `groups`, which is `/proc/self/cgroup`, and of those around them. Version 2 has one line with an
/// empty list of controllers; version 1 a line for each.
fn limits(groups: &str, read: &dyn Fn(&str) -> Option<String>) -> impl Iterator<Item = u64> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            let limit = read(&format!("{root}{path}/{file}")).and_then(|text| text.trim().parse::<u64>().ok());
            found.extend(limit);
            let Some((parent, _)) = path.rsplit_once('/') else { break };
            path = parent;
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_groups_counts() {
        let read = |file: &str| {
            let text = match file {
                "/sys/fs/cgroup/a/b/memory.max" => "max\n",
                "/sys/fs/cgroup/a/memory.max" => "1000\n",
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes" => "900\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "9223372036854771712\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(limits("0::/a/b\n", &read).min(), Some(1000));
        assert_eq!(limits("5:cpu,cpuacct:/x\n4:memory:/x\n", &read).collect::<Vec<_>>(), [900, 9_223_372_036_854_771_712]);
        assert_eq!(limits("4:memory:/\n", &read).min(), Some(9_223_372_036_854_771_712));
        assert_eq!(limits("nonsense", &read).min(), None);
    }

    #[test]
    fn reads_the_three_lines() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nRssAnon:\t      12 kB\nRssFile:\t       3 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { anonymous_bytes: 12288, mapped_bytes: 3072, peak_bytes: 2 << 20 }));
        assert_eq!(Memory::parse("VmHWM:\t1 kB\n"), None);
        assert_eq!(Memory::parse("VmHWM:\tx kB\nRssAnon:\t1 kB\nRssFile:\t1 kB\n"), None);
    }
}
