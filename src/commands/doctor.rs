//! `sphinx doctor`: this machine, the kernels chosen, memory and disk speed, what fits.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};
use sphinx_runtime::Memory;

use crate::arguments::DoctorArgs;
use crate::device::{self, Device};
use crate::failure::{Failure, shown};
use crate::output::say;
use crate::table;

/// Bytes of the whole pair at Q4_K_M with Q8_0 encoders, and of the key/value cache at 4096 positions (f16).
const MEMBERS: [(&str, u64, u64); 4] = [
    ("SPHINX-Tiny, -Tiny-1k", 2_890_000_000, 92_274_688),
    ("SPHINX-Intern2", 6_900_000_000, 536_870_912),
    ("SPHINX-Plus", 10_100_000_000, 3_355_443_200),
    ("SPHINX-MoE", 31_900_000_000, 536_870_912),
];

pub fn run(args: DoctorArgs) -> Result<()> {
    let target = device::cpu(None)?;
    let memory = Memory::system();
    let read = memory_read_speed(target.threads());
    let disk = disk_speed(&args.disk)?;
    let free = free_disk(&args.disk);
    let cpu = cpu_name();
    let features: Vec<&str> = sphinx_targets::cpu::features().into_iter().filter(|f| f.1).map(|f| f.0).collect();
    let available = memory.map(|(_, available)| available);
    let fits: Vec<Value> = MEMBERS
        .iter()
        .map(|&(name, weights, kv)| {
            let need = weights + kv + (600 << 20);
            json!({ "member": name, "needs_bytes": need, "fits": available.map(|a| need <= a) })
        })
        .collect();
    let devices: Vec<(Device, &str, Result<(), String>)> = Device::ALL.into_iter().map(|(d, what)| (d, what, d.usable())).collect();
    // GPUs are there to be asked for: what has been measured is the processor.
    let chosen =
        json!({ "device": "cpu", "why": format!("the default of --device; {} kernels are the best this processor has", target.isa()) });
    if args.json {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"), "cpu": cpu, "features": features, "isa": target.isa().name(), "threads": target.threads(),
            "memory_bytes": memory.map(|m| m.0), "memory_available_bytes": available, "memory_read_gb_per_s": read,
            "disk": { "path": args.disk, "free_bytes": free, "write_mb_per_s": disk.0, "read_mb_per_s": disk.1 },
            "members": fits, "target": chosen,
            "devices": devices.iter().map(|(d, what, usable)| json!({
                "device": d.name(), "what": what, "usable": usable.is_ok(), "why_not": usable.as_ref().err(),
            })).collect::<Value>(),
        });
        return say!("{report}");
    }
    say!("sphinx {}", env!("CARGO_PKG_VERSION"))?;
    say!("processor  {cpu}: {}", features.join(" "))?;
    say!("kernels    {} on {} threads (SPHINX_ISA caps the set)", target.isa().name(), target.threads())?;
    say!("target     {}: {}", chosen["device"].as_str().unwrap_or_default(), chosen["why"].as_str().unwrap_or_default())?;
    for (device, what, usable) in &devices {
        let state = usable.as_ref().map_or_else(|why| format!("no: {why}"), |()| (*what).to_owned());
        say!("           --device {:<10} {state}", device.name())?;
    }
    if let Some((total, available)) = memory {
        say!("memory     {} of {} available, read at {read:.1} GB/s", table::bytes(available), table::bytes(total))?;
    }
    let free = free.map_or(String::from("free space unknown"), |f| format!("{} free", table::bytes(f)));
    say!("disk       {free} at {}, written at {:.0} MB/s, read back at {:.0} MB/s", shown(&args.disk), disk.0, disk.1)?;
    say!("fits       at Q4_K_M with Q8_0 encoders, 4096 positions, resident:")?;
    for (member, fit) in MEMBERS.iter().zip(&fits) {
        let need = fit["needs_bytes"].as_u64().unwrap_or(0);
        let verdict = match fit["fits"].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        say!("           {:<24} {:>10}  {verdict}", member.0, table::bytes(need))?;
    }
    Ok(())
}

/// The processor's name as the system gives it.
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, n)| n.trim().to_owned())
}

/// Sequential read of 256 MiB per thread, in GB/s: the best of three.
fn memory_read_speed(threads: usize) -> f64 {
    const WORDS: usize = 32 << 20;
    let buffer: Vec<u64> = vec![1; WORDS];
    let part = WORDS / threads.max(1);
    let mut best = 0.0f64;
    for _ in 0..3 {
        let start = Instant::now();
        let sum: u64 = std::thread::scope(|s| {
            let work: Vec<_> = buffer.chunks(part).map(|c| s.spawn(move || c.iter().fold(0u64, |a, &b| a.wrapping_add(b)))).collect();
            work.into_iter().map(|w| w.join().unwrap_or(0)).fold(0, u64::wrapping_add)
        });
        std::hint::black_box(sum);
        best = best.max((WORDS * 8) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// Writes and reads back 64 MiB, in MB/s, past the page cache as far as the system lets us.
fn disk_speed(dir: &Path) -> Result<(f64, f64)> {
    const BYTES: usize = 64 << 20;
    let path = dir.join(format!(".sphinx-doctor-{}", std::process::id()));
    let fail = |e: std::io::Error| Failure::io(&path, &e);
    let measure = || -> std::io::Result<(f64, f64)> {
        // Not compressible, so that a clever file system does not flatter itself.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let data: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(1 << 20)
        .collect();
        let mut file = std::fs::File::options().write(true).read(true).create_new(true).open(&path)?;
        let start = Instant::now();
        for _ in 0..BYTES >> 20 {
            file.write_all(&data)?;
        }
        file.sync_all()?;
        let written = start.elapsed().as_secs_f64();
        let mut again = std::fs::File::open(&path)?;
        #[cfg(not(target_vendor = "apple"))]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        #[cfg(target_vendor = "apple")]
        rustix::fs::fcntl_nocache(&again, true)?;
        let mut buffer = vec![0u8; 1 << 20];
        let start = Instant::now();
        while again.read(&mut buffer)? > 0 {}
        let read = start.elapsed().as_secs_f64();
        Ok((BYTES as f64 / written / 1e6, BYTES as f64 / read / 1e6))
    };
    let result = measure();
    let _gone = std::fs::remove_file(&path);
    result.map_err(fail)
}

/// Free bytes of the file system under `dir`.
fn free_disk(dir: &Path) -> Option<u64> {
    let s = rustix::fs::statvfs(dir).ok()?;
    s.f_bavail.checked_mul(s.f_frsize)
}
