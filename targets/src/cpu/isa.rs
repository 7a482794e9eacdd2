//! Which instruction set the kernels use: found once, and capped by `SPHINX_ISA`.

use std::fmt;

use crate::{Result, TargetError};

/// The environment variable that caps the instruction set.
pub const ISA_VARIABLE: &str = "SPHINX_ISA";

/// An instruction set for which there are kernels, family by family, in each from the least to the most capable.
///
/// A new family adds its members here, a folder of siblings beside `x86/` and `arm/` and a branch in `Kernels::for_isa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, whatever the processor.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 256-bit vectors.
    Avx2,
    /// As [`Isa::Avx2`], with the byte dot products of AVX-VNNI. Processors with AVX-512 need not have it.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL and DQ: 512-bit vectors.
    Avx512,
    /// As [`Isa::Avx512`], with the byte dot products of AVX-512 VNNI.
    Avx512Vnni,
    /// aarch64: 128-bit vectors.
    Neon,
    /// As [`Isa::Neon`], with the dot products of bytes (FEAT_DotProd).
    DotProd,
    /// As [`Isa::DotProd`], with products of matrices of bytes (FEAT_I8MM).
    I8mm,
}

impl Isa {
    /// Every member, the least capable first.
    pub const ALL: [Isa; 8] = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Vnni, Isa::Neon, Isa::DotProd, Isa::I8mm];

    /// The name used in logs and in `SPHINX_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
            Isa::DotProd => "dotprod",
            Isa::I8mm => "i8mm",
        }
    }

    /// The member called `name`.
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name))
    }

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Isa::Avx512.available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::DotProd => Isa::Neon.available() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => Isa::DotProd.available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            _ => false,
        }
    }

    /// The members that this processor has, the least capable first.
    pub fn supported() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    /// The most capable member that this processor has, at most `cap`.
    pub fn best(cap: Option<Isa>) -> Isa {
        Isa::supported().filter(|&isa| cap.is_none_or(|cap| isa <= cap)).last().unwrap_or(Isa::Portable)
    }

    /// The cap that `SPHINX_ISA` asks for; `None` when it is not set.
    ///
    /// # Errors
    /// [`TargetError::Option`] for a value that is no member's name.
    pub fn cap_from_env() -> Result<Option<Isa>> {
        match std::env::var_os(ISA_VARIABLE) {
            None => Ok(None),
            Some(value) => Isa::parse_cap(&value.to_string_lossy()).map(Some),
        }
    }

    fn parse_cap(value: &str) -> Result<Isa> {
        Isa::from_name(value).ok_or_else(|| TargetError::Option {
            name: ISA_VARIABLE,
            value: value.to_owned(),
            remedy: "use portable, or avx2, avxvnni, avx512, avx512vnni (x86-64), neon, dotprod, i8mm (aarch64), or leave it unset",
        })
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A feature of the processor and whether it has it, for reports: the ones that kernels ask for, and the ones
/// that tell a reader of a bug report what else there is.
pub fn features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as detected;
        return vec![
            ("neon", detected!("neon")),
            ("dotprod", detected!("dotprod")),
            ("i8mm", detected!("i8mm")),
            ("fp16", detected!("fp16")),
            ("bf16", detected!("bf16")),
            ("sve", detected!("sve")),
            ("sve2", detected!("sve2")),
        ];
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_unknown_ones_are_refused() {
        for isa in Isa::ALL {
            assert_eq!(Isa::parse_cap(isa.name()).unwrap(), isa);
        }
        let message = Isa::parse_cap("sse9").unwrap_err().to_string();
        assert!(message.contains("SPHINX_ISA") && message.contains("sse9") && message.contains("avx2"), "{message}");
    }

    #[test]
    fn a_cap_is_kept() {
        for cap in Isa::ALL {
            assert!(Isa::best(Some(cap)) <= cap);
        }
        assert_eq!(Isa::best(Some(Isa::Portable)), Isa::Portable);
        assert_eq!(Some(Isa::best(None)), Isa::supported().last());
        println!("kernels here: {}", Isa::supported().map(Isa::name).collect::<Vec<_>>().join(", "));
    }
}
