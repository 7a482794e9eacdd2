//! What this machine can do at most: bytes read from memory, multiplications in 8, 16 and 32 bits.
//!
//! The loops are in assembly, so that nothing but the instruction they are named after decides. They run on the threads
//! of the project's own pool, like the kernels they are compared with.

use memmap2::MmapMut;
use sphinx_targets::cpu::Isa;
use sphinx_targets::cpu::pool::Pool;

use super::clock::{Took, time};

/// Bytes that are read, by all threads together: far more than any cache holds.
const READ_BYTES: usize = 1 << 30;
/// Turns of an arithmetic loop, a hundredth of a second or two.
const TURNS: u64 = 6_000_000;

/// Something that a machine has a highest rate of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes read from memory with the widest loads there are.
    Read,
    /// `vpdpbusd` on 512 bits.
    Vnni512,
    /// `vpdpbusd` on 256 bits, in whichever encoding there is.
    Vnni256,
    /// `vpmaddubsw`, `vpmaddwd`, `vpaddd` on 512 bits: 8-bit products without VNNI.
    Maddubs512,
    /// The same on 256 bits.
    Maddubs256,
    /// `vdpbf16ps` on 512 bits.
    Bf16,
    /// `vfmadd231ps` on 512 bits.
    Fma512,
    /// The same on 256 bits.
    Fma256,
}

impl Limit {
    pub const ALL: [Limit; 8] =
        [Limit::Read, Limit::Vnni512, Limit::Vnni256, Limit::Maddubs512, Limit::Maddubs256, Limit::Bf16, Limit::Fma512, Limit::Fma256];

    pub fn name(self) -> &'static str {
        match self {
            Limit::Read => "memory read",
            Limit::Vnni512 => "int8 vpdpbusd zmm",
            Limit::Vnni256 => "int8 vpdpbusd ymm",
            Limit::Maddubs512 => "int8 vpmaddubsw zmm",
            Limit::Maddubs256 => "int8 vpmaddubsw ymm",
            Limit::Bf16 => "bf16 vdpbf16ps zmm",
            Limit::Fma512 => "f32 vfmadd231ps zmm",
            Limit::Fma256 => "f32 vfmadd231ps ymm",
        }
    }

    /// What a rate of 1e12 (of 1e9 for reads) is called.
    pub fn unit(self) -> &'static str {
        match self {
            Limit::Read => "GB/s",
            Limit::Vnni512 | Limit::Vnni256 | Limit::Maddubs512 | Limit::Maddubs256 => "TOPS",
            Limit::Bf16 | Limit::Fma512 | Limit::Fma256 => "TFLOPS",
        }
    }

    /// `rate` per second in [`unit`](Limit::unit)s.
    pub fn in_units(self, rate: f64) -> f64 {
        rate / if self == Limit::Read { 1e9 } else { 1e12 }
    }

    /// Whether this processor can do it at all.
    pub fn available(self) -> bool {
        if self == Limit::Read {
            return true;
        }
        #[cfg(target_arch = "x86_64")]
        return match self {
            Limit::Read => true,
            Limit::Vnni512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"),
            Limit::Vnni256 => {
                is_x86_feature_detected!("avxvnni") || is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
            }
            Limit::Maddubs512 => is_x86_feature_detected!("avx512bw"),
            Limit::Maddubs256 => is_x86_feature_detected!("avx2"),
            Limit::Bf16 => is_x86_feature_detected!("avx512bf16"),
            Limit::Fma512 => is_x86_feature_detected!("avx512f"),
            Limit::Fma256 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// The limit of 8-bit kernels of `isa`; `None` where there is no loop for it.
    pub fn int8(isa: Isa) -> Option<Limit> {
        let limit = match isa.name() {
            "avx512vnni" => Limit::Vnni512,
            "avx512" => Limit::Maddubs512,
            "avxvnni" => Limit::Vnni256,
            _ => Limit::Maddubs256,
        };
        limit.available().then_some(limit)
    }
}

/// Threads, and memory to read.
pub struct Limits {
    pool: Pool,
    memory: Option<MmapMut>,
}

impl Limits {
    pub fn new(threads: usize) -> Limits {
        Limits { pool: Pool::new(threads).expect("threads start"), memory: None }
    }

    /// Threads that it measures with.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Measures once; `None` when the processor does not have it. A median of several is what to quote.
    pub fn rate(&mut self, limit: Limit) -> Option<f64> {
        let threads = self.pool.threads();
        self.measure(limit).map(|(amount, took)| amount / took.seconds(threads))
    }

    /// Bytes or operations of all threads, and what they took.
    fn measure(&mut self, limit: Limit) -> Option<(f64, Took)> {
        let threads = self.pool.threads();
        if limit == Limit::Read {
            let memory = self.memory.take().unwrap_or_else(memory);
            let took = self.read(&memory);
            return Some((self.memory.insert(memory).len() as f64, took));
        }
        if !limit.available() {
            return None;
        }
        #[cfg(target_arch = "x86_64")]
        {
            let took = time(threads, || self.pool.run(threads, &|_, mine| mine.for_each(|_| x86::arithmetic(limit, TURNS))));
            Some(((threads as u64 * TURNS * x86::operations(limit)) as f64, took))
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Reads `data` once, every thread a part, and does nothing with it.
    pub fn read(&self, data: &[u8]) -> Took {
        let threads = self.pool.threads();
        time(threads, || {
            self.pool.run(threads, &|_, mine| {
                let part = data.len() / threads / 512 * 512;
                mine.for_each(|i| read(&data[i * part..][..part]));
            });
        })
    }
}

/// Memory that occupies pages of its own, large ones where the system has them.
fn memory() -> MmapMut {
    let mut memory = MmapMut::map_anon(READ_BYTES).expect("a GiB of memory");
    #[cfg(target_os = "linux")]
    memory.advise(memmap2::Advice::HugePage).ok();
    memory.fill(1);
    memory
}

fn read(data: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { x86::read_512(data) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { x86::read_256(data) };
    }
    let mut sums = [0u64; 8];
    for chunk in data.as_chunks::<64>().0 {
        for (sum, bytes) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum ^= u64::from_ne_bytes(*bytes);
        }
    }
    std::hint::black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    use super::Limit;

    /// Defines a function that does `steps` a number of times. Registers 0 to 15 are what it adds to, or 0 to 7 with 8 to 11
    /// for what lies between; `b` and `c` hold `value` in every element. They are independent of each other, so that only the
    /// number of instructions per cycle limits, not how long one takes.
    macro_rules! steps {
        (zmm, $name:ident, $features:literal, $value:expr, $($steps:literal),+) => {
            #[target_feature(enable = $features)]
            fn $name(turns: u64) {
                let value: u32 = $value;
                // SAFETY: reads `value`, and else works in registers that are named below.
                unsafe {
                    asm!(
                        "vpbroadcastd zmm30, dword ptr [{value}]",
                        "vmovdqa64 zmm31, zmm30",
                        ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                        r"vpxord zmm\a, zmm\a, zmm\a",
                        ".endr",
                        ".p2align 6",
                        "2:",
                        $($steps,)+
                        "dec {turns}",
                        "jnz 2b",
                        value = in(reg) &value,
                        turns = inout(reg) turns => _,
                        out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _,
                        out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _,
                        out("zmm14") _, out("zmm15") _, out("zmm30") _, out("zmm31") _,
                        options(nostack, readonly)
                    );
                }
            }
        };
        (ymm, $name:ident, $features:literal, $value:expr, $($steps:literal),+) => {
            #[target_feature(enable = $features)]
            fn $name(turns: u64) {
                let value: u32 = $value;
                // SAFETY: reads `value`, and else works in registers that are named below.
                unsafe {
                    asm!(
                        "vpbroadcastd ymm14, dword ptr [{value}]",
                        "vmovdqa ymm15, ymm14",
                        ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13",
                        r"vpxor ymm\a, ymm\a, ymm\a",
                        ".endr",
                        ".p2align 6",
                        "2:",
                        $($steps,)+
                        "dec {turns}",
                        "jnz 2b",
                        value = in(reg) &value,
                        turns = inout(reg) turns => _,
                        out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
                        out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _,
                        out("ymm14") _, out("ymm15") _,
                        options(nostack, readonly)
                    );
                }
            }
        };
    }

    /// Four small bytes, of which the sums below stay small.
    const BYTES: u32 = 0x0102_0301;
    /// A half, in `f32` and twice in `bf16`.
    const HALF: u32 = 0x3f00_0000;
    const HALVES: u32 = 0x3f00_3f00;

    steps!(
        zmm,
        vnni_512,
        "avx512f,avx512vnni",
        BYTES,
        ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        r"vpdpbusd zmm\a, zmm30, zmm31",
        ".endr"
    );
    steps!(
        ymm,
        vnni_256_vex,
        "avx2,avxvnni",
        BYTES,
        ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13",
        r"{{vex}} vpdpbusd ymm\a, ymm14, ymm15",
        ".endr"
    );
    steps!(
        ymm,
        vnni_256_evex,
        "avx2,avx512vl,avx512vnni",
        BYTES,
        ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13",
        r"{{evex}} vpdpbusd ymm\a, ymm14, ymm15",
        ".endr"
    );
    steps!(
        zmm,
        maddubs_512,
        "avx512f,avx512bw",
        BYTES,
        ".irp a,0,1,2,3,4,5,6,7",
        "vpmaddubsw zmm8, zmm30, zmm31",
        "vpmaddwd zmm8, zmm8, zmm30",
        r"vpaddd zmm\a, zmm\a, zmm8",
        ".endr"
    );
    steps!(
        ymm,
        maddubs_256,
        "avx2",
        BYTES,
        ".irp a,0,1,2,3,4,5,6,7",
        "vpmaddubsw ymm8, ymm14, ymm15",
        "vpmaddwd ymm8, ymm8, ymm14",
        r"vpaddd ymm\a, ymm\a, ymm8",
        ".endr"
    );
    steps!(
        zmm,
        bf16_512,
        "avx512f,avx512bf16",
        HALVES,
        ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        r"vdpbf16ps zmm\a, zmm30, zmm31",
        ".endr"
    );
    steps!(zmm, fma_512, "avx512f", HALF, ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", r"vfmadd231ps zmm\a, zmm30, zmm31", ".endr");
    steps!(ymm, fma_256, "avx2,fma", HALF, ".irp a,0,1,2,3,4,5,6,7,8,9,10,11,12,13", r"vfmadd231ps ymm\a, ymm14, ymm15", ".endr");

    /// Operations of one turn, a multiplication and an addition being two.
    pub fn operations(limit: Limit) -> u64 {
        match limit {
            Limit::Read => 0,
            Limit::Vnni512 => 16 * 128,
            Limit::Vnni256 => 14 * 64,
            Limit::Maddubs512 => 8 * 128,
            Limit::Maddubs256 => 8 * 64,
            Limit::Bf16 => 16 * 64,
            Limit::Fma512 => 16 * 32,
            Limit::Fma256 => 14 * 16,
        }
    }

    /// `turns` turns of a limit that is available.
    pub fn arithmetic(limit: Limit, turns: u64) {
        assert!(limit.available());
        // SAFETY: the processor has what the limit needs.
        unsafe {
            match limit {
                Limit::Read => (),
                Limit::Vnni512 => vnni_512(turns),
                Limit::Vnni256 if is_x86_feature_detected!("avxvnni") => vnni_256_vex(turns),
                Limit::Vnni256 => vnni_256_evex(turns),
                Limit::Maddubs512 => maddubs_512(turns),
                Limit::Maddubs256 => maddubs_256(turns),
                Limit::Bf16 => bf16_512(turns),
                Limit::Fma512 => fma_512(turns),
                Limit::Fma256 => fma_256(turns),
            }
        }
    }

    /// Defines a function that loads all whole 512 bytes, asking for what comes 4 KiB later.
    macro_rules! read {
        ($name:ident, $features:literal, $($loads:literal),+) => {
            #[target_feature(enable = $features)]
            pub fn $name(data: &[u8]) {
                let turns = data.len() / 512;
                if turns == 0 {
                    return;
                }
                // SAFETY: `turns` times 512 bytes are read, which are there; a prefetch of any address is allowed.
                unsafe {
                    asm!(
                        ".p2align 6",
                        "2:",
                        ".irp a,0,1,2,3,4,5,6,7",
                        r"prefetcht0 byte ptr [{at} + 4096 + 64 * \a]",
                        $($loads,)+
                        ".endr",
                        "add {at}, 512",
                        "dec {turns}",
                        "jnz 2b",
                        at = inout(reg) data.as_ptr() => _,
                        turns = inout(reg) turns => _,
                        out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
                        out("ymm7") _,
                        options(nostack, readonly)
                    );
                }
            }
        };
    }

    read!(read_512, "avx512f", r"vmovdqu64 zmm\a, zmmword ptr [{at} + 64 * \a]");
    read!(read_256, "avx2", r"vmovdqu ymm\a, ymmword ptr [{at} + 64 * \a]", r"vmovdqu ymm\a, ymmword ptr [{at} + 64 * \a + 32]");
}
