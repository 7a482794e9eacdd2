//! Kernels on vectors of numbers, written once for every width: siblings of [`super::portable`], file by file and function by
//! function.
//!
//! [`vector`] has the same names for vectors of several instruction sets; a file here has a macro with the kernels, and calls it
//! once for each. Floats use fused multiply-add throughout, which the portable kernels do not.

#![allow(clippy::needless_range_loop)] // register tiles read best by index

pub mod act;
pub mod attend;
pub mod conv;
pub mod dot;
#[cfg(target_arch = "x86_64")]
pub mod norm;
#[cfg(target_arch = "x86_64")]
pub mod rope;
pub mod softmax;
pub mod vector;

/// Has the cache line at `at` fetched, which is read soon, if there is such a line.
#[inline(always)]
fn prefetch<T>(at: *const T) {
    // SAFETY: fetching ahead of a read is no access: any address will do.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, readonly, preserves_flags));
    }
}
