//! How much memory this process uses.

use std::path::Path;

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
        let (_, system) = Memory::system()?;
        Some(limit().map_or(system, |limit| system.min(limit)))
    }

    /// Bytes of the whole machine: all, and what new work may use, whatever this process's control groups allow it.
    pub fn system() -> Option<(u64, u64)> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        Some((kilobytes(&text, "MemTotal")?, kilobytes(&text, "MemAvailable")?))
    }

    /// Resident bytes of what this process has mapped of the file at `path`.
    pub fn of_file(path: &Path) -> Option<u64> {
        let path = path.canonicalize().ok()?;
        Some(resident(&std::fs::read_to_string("/proc/self/smaps").ok()?, path.to_str()?))
    }

    fn parse(status: &str) -> Option<Memory> {
        let bytes = |name: &str| kilobytes(status, name);
        Some(Memory { anonymous_bytes: bytes("RssAnon")?, mapped_bytes: bytes("RssFile")?, peak_bytes: bytes("VmHWM")? })
    }
}

/// Bytes that the line `name: N kB` of a file under `/proc` tells of.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Resident bytes of the mappings of `path` in `smaps`, which is `/proc/self/smaps`: a line per mapping, with the file at its end,
/// and lines that tell about it.
fn resident(smaps: &str, path: &str) -> u64 {
    let mut ours = false;
    let mut sum = 0;
    for line in smaps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rest) if ours => sum += rest.trim().strip_suffix(" kB").and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024,
            Some(_) => (),
            // A mapping begins with its addresses, in small hexadecimal letters; what is told of it with a capital.
            None if !line.starts_with(|c: char| c.is_ascii_uppercase()) => {
                ours = line.strip_suffix(path).is_some_and(|before| before.ends_with(' '));
            }
            None => (),
        }
    }
    sum
}

/// The least that a control group allows this process, in bytes.
fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limits(&groups, &|file| std::fs::read_to_string(file).ok()).min()
}

/// A control group that has a say about this process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlGroup<'a> {
    /// 1 or 2.
    pub version: u8,
    /// Where the tree of groups is mounted.
    pub root: &'static str,
    /// The group in it: empty, or `/a/b`.
    pub path: &'a str,
}

/// The groups that `text`, which is `/proc/self/cgroup`, names. Version 2 has one line with an empty list of controllers; version 1
/// a line for each.
pub fn groups(text: &str) -> impl Iterator<Item = ControlGroup<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_end_matches('/'));
        match controllers {
            "" => Some(ControlGroup { version: 2, root: "/sys/fs/cgroup", path }),
            c if c.split(',').any(|c| c == "memory") => Some(ControlGroup { version: 1, root: "/sys/fs/cgroup/memory", path }),
            _ => None,
        }
    })
}

/// The limits of the groups in `text`, and of those around them.
fn limits(text: &str, read: &dyn Fn(&str) -> Option<String>) -> impl Iterator<Item = u64> {
    let mut found = Vec::new();
    for ControlGroup { version, root, mut path } in groups(text) {
        let file = if version == 2 { "memory.max" } else { "memory.limit_in_bytes" };
        loop {
            found.extend(read(&format!("{root}{path}/{file}")).and_then(|text| text.trim().parse::<u64>().ok()));
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
    fn a_file_is_told_from_others() {
        let text = "7f00-7f10 r--p 0000 fe:00 12   /a b/m.gguf\nSize: 900 kB\nRss: 12 kB\nVmFlags: rd\n\
                    7f10-7f20 r--p 0000 fe:00 12   /c/a b/m.gguf\nRss: 4 kB\n7f20-7f30 rw-p 0 0:0 0\nRss: 4 kB\n\
                    7f30-7f40 r--p 0000 fe:00 12   /a b/m.gguf\nRss: 8 kB\n";
        assert_eq!(resident(text, "/a b/m.gguf"), 20 << 10);
        assert_eq!(resident(text, "/m.gguf"), 0);
        #[cfg(target_os = "linux")]
        assert!(Memory::of_file(&std::env::current_exe().unwrap()).unwrap() > 4096, "the running program is mapped");
    }

    #[test]
    fn reads_the_three_lines() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nRssAnon:\t      12 kB\nRssFile:\t       3 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { anonymous_bytes: 12288, mapped_bytes: 3072, peak_bytes: 2 << 20 }));
        assert_eq!(Memory::parse("VmHWM:\t1 kB\n"), None);
        assert_eq!(Memory::parse("VmHWM:\tx kB\nRssAnon:\t1 kB\nRssFile:\t1 kB\n"), None);
    }
}
