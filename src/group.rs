//! Control groups: a limit on memory that the system enforces, where this process may set one.
//!
//! Two file trees are spoken, version 2 and the memory controller of version 1. The parent makes a group below its own, the
//! child enters it by itself, and the parent reads what the group says at the end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sphinx_runtime::memory;

/// A group with a limit. Dropping it removes it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    version: u8,
}

/// What a group counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The most that was ever taken, pages of files included.
    pub peak_bytes: Option<u64>,
    /// How often something was ended for want of memory.
    pub kills: Option<u64>,
}

impl Group {
    /// A new group that may take `bytes`.
    ///
    /// # Errors
    /// What the system says, mostly that it is not allowed.
    pub fn create(bytes: u64) -> io::Result<Group> {
        let (version, parent) = own(&fs::read_to_string("/proc/self/cgroup")?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "there are no control groups here"))?;
        let group = Group { path: parent.join(format!("sphinx-bench-{}", std::process::id())), version };
        // Before it is there: a signal may come in between.
        crate::interrupt::groups(Some(&group.path));
        fs::create_dir(&group.path)?;
        if version == 2 {
            fs::write(group.path.join("memory.max"), bytes.to_string())?;
            // A budget is no budget if the rest goes to swap; a kernel without swap has no such file.
            let _ = fs::write(group.path.join("memory.swap.max"), "0");
        } else {
            fs::write(group.path.join("memory.limit_in_bytes"), bytes.to_string())?;
            let _ = fs::write(group.path.join("memory.memsw.limit_in_bytes"), bytes.to_string());
        }
        Ok(group)
    }

    /// Where it is, for the child to enter.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `cgroup v1` or `cgroup v2`.
    pub fn name(&self) -> &'static str {
        if self.version == 2 { "cgroup v2" } else { "cgroup v1" }
    }

    /// Puts this process into the group at `path`; `/dev/null` stands for none.
    ///
    /// # Errors
    /// What the system says.
    pub fn enter(path: &Path) -> io::Result<()> {
        if path == Path::new("/dev/null") {
            return Ok(());
        }
        fs::write(path.join("cgroup.procs"), std::process::id().to_string())
    }

    /// What it counted so far.
    pub fn counted(&self) -> Counted {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let line = |file: &str, name: &str| {
            let text = read(file)?;
            text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        match self.version {
            2 => Counted { peak_bytes: number("memory.peak"), kills: line("memory.events", "oom_kill ") },
            _ => Counted { peak_bytes: number("memory.max_usage_in_bytes"), kills: line("memory.oom_control", "oom_kill ") },
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while something is in it, which is then not ours to end.
        let _ = fs::remove_dir(&self.path);
        crate::interrupt::groups(None);
    }
}

/// Ends what is in the group at `path`, and removes it: for when the process that made it is being ended itself.
pub fn end(path: &Path) {
    // A process that has been ended leaves its group a moment later, and one that has just been started enters it so.
    for _ in 0..100 {
        for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The directory of the group that this process is in, by what `/proc/self/cgroup` says; where both versions are there, the
/// memory controller is version 1's.
fn own(groups: &str) -> Option<(u8, PathBuf)> {
    let group = memory::groups(groups).min_by_key(|group| group.version)?;
    Some((group.version, PathBuf::from(format!("{}{}", group.root, group.path))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_controller_of_version_1_comes_first() {
        assert_eq!(own("9:name=systemd:/\n4:memory:/a/b\n0::/\n"), Some((1, "/sys/fs/cgroup/memory/a/b".into())));
        assert_eq!(own("0::/user.slice\n"), Some((2, "/sys/fs/cgroup/user.slice".into())));
        assert_eq!(own("0::/\n"), Some((2, "/sys/fs/cgroup".into())));
        assert_eq!(own(""), None);
    }
}
