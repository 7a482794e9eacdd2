//! Vectors of `f32` under the same names for 256 and 512 bits and pairs of 128, so that a kernel is written once for all.
//!
//! Functions here are safe inside functions compiled for the same features. Loads and stores take arrays, whose
//! type says that the elements are there.

/// 8 numbers.
#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    use std::arch::x86_64::*;

    /// Numbers of a vector.
    pub const N: usize = 8;
    /// A vector.
    pub type V = __m256;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn splat(x: f32) -> V {
        _mm256_set1_ps(x)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn load(x: &[f32; N]) -> V {
        // SAFETY: the array holds the 8 numbers read here; `loadu` asks for no alignment.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn store(x: &mut [f32; N], v: V) {
        // SAFETY: the array holds the 8 numbers written here; `storeu` asks for no alignment.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
    }
    /// Past the caches, to where a vector may begin.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn store_past(x: &mut [f32; N], v: V) {
        assert!(x.as_ptr().cast::<V>().is_aligned());
        // SAFETY: the array holds the 8 numbers written here, and is aligned, as asserted; `settle` follows before others read.
        unsafe { _mm256_stream_ps(x.as_mut_ptr(), v) }
    }
    /// Half-precision numbers, widened.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn load_half(x: &[u16; N]) -> V {
        // SAFETY: the array holds the 16 bytes read here; `loadu` asks for no alignment.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
    }
    /// bfloat16 numbers, widened.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn load_brain(x: &[u16; N]) -> V {
        // SAFETY: the array holds the 16 bytes read here; `loadu` asks for no alignment.
        let bits = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(x.as_ptr().cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
    }
    /// Small integers, converted.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn load_i8(x: &[i8; N]) -> V {
        // SAFETY: the array holds the 8 bytes read here; `loadl` asks for no alignment.
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(x.as_ptr().cast()) }))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn add(a: V, b: V) -> V {
        _mm256_add_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn sub(a: V, b: V) -> V {
        _mm256_sub_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn mul(a: V, b: V) -> V {
        _mm256_mul_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn div(a: V, b: V) -> V {
        _mm256_div_ps(a, b)
    }
    /// `1 / a` within 2⁻²³, for positive numbers.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn reciprocal(a: V) -> V {
        div(splat(1.0), a)
    }
    /// `a · b + c`, rounded once.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fma(a: V, b: V, c: V) -> V {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn max(a: V, b: V) -> V {
        _mm256_max_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn min(a: V, b: V) -> V {
        _mm256_min_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn abs(a: V) -> V {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), a)
    }
    /// The magnitude of `a` with the sign of `b`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn with_sign(a: V, b: V) -> V {
        let sign = _mm256_set1_ps(-0.0);
        _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
    }
    /// The nearest whole numbers, ties to even.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn round(a: V) -> V {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
    }
    /// `a · 2^n` for whole `n` in −126..=127.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn scale_by_power(a: V, n: V) -> V {
        let exponent = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
        _mm256_mul_ps(a, _mm256_castsi256_ps(exponent))
    }
    /// A half-precision number everywhere, widened.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn splat_half(x: u16) -> V {
        _mm256_cvtph_ps(_mm_set1_epi16(x as i16))
    }
    /// The greatest number.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn greatest(v: V) -> f32 {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
    }
    /// The sum of the numbers, in pairs.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn total(v: V) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

/// 16 numbers.
#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    use std::arch::x86_64::*;

    /// Numbers of a vector.
    pub const N: usize = 16;
    /// A vector.
    pub type V = __m512;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn splat(x: f32) -> V {
        _mm512_set1_ps(x)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn load(x: &[f32; N]) -> V {
        // SAFETY: the array holds the 16 numbers read here; `loadu` asks for no alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn store(x: &mut [f32; N], v: V) {
        // SAFETY: the array holds the 16 numbers written here; `storeu` asks for no alignment.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
    }
    /// Past the caches, to where a vector may begin.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn store_past(x: &mut [f32; N], v: V) {
        assert!(x.as_ptr().cast::<V>().is_aligned());
        // SAFETY: the array holds the 16 numbers written here, and is aligned, as asserted; `settle` follows before others read.
        unsafe { _mm512_stream_ps(x.as_mut_ptr(), v) }
    }
    /// Half-precision numbers, widened.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn load_half(x: &[u16; N]) -> V {
        // SAFETY: the array holds the 32 bytes read here; `loadu` asks for no alignment.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
    }
    /// bfloat16 numbers, widened.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn load_brain(x: &[u16; N]) -> V {
        // SAFETY: the array holds the 32 bytes read here; `loadu` asks for no alignment.
        let bits = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
    }
    /// Small integers, converted.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn load_i8(x: &[i8; N]) -> V {
        // SAFETY: the array holds the 16 bytes read here; `loadu` asks for no alignment.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(x.as_ptr().cast()) }))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn add(a: V, b: V) -> V {
        _mm512_add_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn sub(a: V, b: V) -> V {
        _mm512_sub_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn mul(a: V, b: V) -> V {
        _mm512_mul_ps(a, b)
    }
    /// `1 / a` within 2⁻²³, for positive numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn reciprocal(a: V) -> V {
        // An estimate of 14 bits and one step of Newton take a third of the time of a division.
        let estimate = _mm512_rcp14_ps(a);
        fma(estimate, _mm512_fnmadd_ps(a, estimate, splat(1.0)), estimate)
    }
    /// `a · b + c`, rounded once.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn fma(a: V, b: V, c: V) -> V {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn max(a: V, b: V) -> V {
        _mm512_max_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn min(a: V, b: V) -> V {
        _mm512_min_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn abs(a: V) -> V {
        _mm512_abs_ps(a)
    }
    /// The nearest whole numbers, ties to even.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn round(a: V) -> V {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
    }
    /// `a · 2^n` for whole `n` in −126..=127.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn scale_by_power(a: V, n: V) -> V {
        _mm512_scalef_ps(a, n)
    }
    /// A half-precision number everywhere, widened.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn splat_half(x: u16) -> V {
        _mm512_cvtph_ps(_mm256_set1_epi16(x as i16))
    }
    /// The greatest number.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn greatest(v: V) -> f32 {
        _mm512_reduce_max_ps(v)
    }
    /// The sum of the numbers, in pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn total(v: V) -> f32 {
        _mm512_reduce_add_ps(v)
    }
}

/// 8 numbers, in two registers of 4: as many of these as AVX2 has registers.
#[cfg(target_arch = "aarch64")]
pub mod neon {
    use std::arch::aarch64::*;

    /// Numbers of a vector.
    pub const N: usize = 8;
    /// A vector.
    pub type V = float32x4x2_t;

    /// What `f` makes of the halves of `a`.
    #[inline(always)]
    fn each(a: V, f: impl Fn(float32x4_t) -> float32x4_t) -> V {
        float32x4x2_t(f(a.0), f(a.1))
    }

    /// What `f` makes of the halves of `a` and `b`.
    #[inline(always)]
    fn both(a: V, b: V, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> V {
        float32x4x2_t(f(a.0, b.0), f(a.1, b.1))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn splat(x: f32) -> V {
        let v = vdupq_n_f32(x);
        float32x4x2_t(v, v)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn load(x: &[f32; N]) -> V {
        // SAFETY: the array holds the 8 numbers read here.
        unsafe { float32x4x2_t(vld1q_f32(x.as_ptr()), vld1q_f32(x.as_ptr().add(4))) }
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn store(x: &mut [f32; N], v: V) {
        // SAFETY: the array holds the 8 numbers written here.
        unsafe {
            vst1q_f32(x.as_mut_ptr(), v.0);
            vst1q_f32(x.as_mut_ptr().add(4), v.1);
        }
    }
    /// Past the caches, as far as the processor cares.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn store_past(x: &mut [f32; N], v: V) {
        // SAFETY: the array holds the 32 bytes written here; `settle` follows before others read.
        unsafe {
            std::arch::asm!("stnp {0:q}, {1:q}, [{2}]", in(vreg) v.0, in(vreg) v.1, in(reg) x.as_mut_ptr(), options(nostack, preserves_flags))
        }
    }
    /// Half-precision numbers, widened.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn load_half(x: &[u16; N]) -> V {
        // SAFETY: the array holds the 16 bytes read here.
        widened(unsafe { vld1q_u16(x.as_ptr()) })
    }
    /// Half-precision numbers, widened: the intrinsics for it are not stable, the instructions are of the first NEON.
    #[inline]
    #[target_feature(enable = "neon")]
    fn widened(halves: uint16x8_t) -> V {
        let (low, high): (float32x4_t, float32x4_t);
        // SAFETY: instructions on registers that every processor with NEON has.
        unsafe {
            std::arch::asm!(
                "fcvtl {low:v}.4s, {halves:v}.4h",
                "fcvtl2 {high:v}.4s, {halves:v}.8h",
                halves = in(vreg) halves, low = out(vreg) low, high = lateout(vreg) high,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        float32x4x2_t(low, high)
    }
    /// bfloat16 numbers, widened.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn load_brain(x: &[u16; N]) -> V {
        // SAFETY: the array holds the 16 bytes read here.
        let bits = unsafe { vld1q_u16(x.as_ptr()) };
        let (low, high) = (vshll_n_u16::<16>(vget_low_u16(bits)), vshll_high_n_u16::<16>(bits));
        float32x4x2_t(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
    }
    /// Small integers, converted.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn load_i8(x: &[i8; N]) -> V {
        // SAFETY: the array holds the 8 bytes read here.
        let x = vmovl_s8(unsafe { vld1_s8(x.as_ptr()) });
        float32x4x2_t(vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_high_s16(x)))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn add(a: V, b: V) -> V {
        both(a, b, |a, b| vaddq_f32(a, b))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn sub(a: V, b: V) -> V {
        both(a, b, |a, b| vsubq_f32(a, b))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn mul(a: V, b: V) -> V {
        both(a, b, |a, b| vmulq_f32(a, b))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn div(a: V, b: V) -> V {
        both(a, b, |a, b| vdivq_f32(a, b))
    }
    /// `1 / a` within 2⁻²³, for positive numbers.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn reciprocal(a: V) -> V {
        div(splat(1.0), a)
    }
    /// `a · b + c`, rounded once.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn fma(a: V, b: V, c: V) -> V {
        float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn max(a: V, b: V) -> V {
        both(a, b, |a, b| vmaxq_f32(a, b))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn min(a: V, b: V) -> V {
        both(a, b, |a, b| vminq_f32(a, b))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn abs(a: V) -> V {
        each(a, |a| vabsq_f32(a))
    }
    /// The magnitude of `a` with the sign of `b`.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn with_sign(a: V, b: V) -> V {
        let sign = vdupq_n_u32(0x8000_0000);
        both(a, b, |a, b| vbslq_f32(sign, b, a))
    }
    /// The nearest whole numbers, ties to even.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn round(a: V) -> V {
        each(a, |a| vrndnq_f32(a))
    }
    /// `a · 2^n` for whole `n` in −126..=127.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn scale_by_power(a: V, n: V) -> V {
        let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127))));
        both(a, n, |a, n| vmulq_f32(a, power(n)))
    }
    /// A half-precision number everywhere, widened.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn splat_half(x: u16) -> V {
        widened(vdupq_n_u16(x))
    }
    /// The greatest number.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn greatest(v: V) -> f32 {
        vmaxvq_f32(vmaxq_f32(v.0, v.1))
    }
    /// The sum of the numbers, in pairs.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn total(v: V) -> f32 {
        vaddvq_f32(vaddq_f32(v.0, v.1))
    }
}
