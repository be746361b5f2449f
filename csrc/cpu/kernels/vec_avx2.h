// Vector types on AVX2 + FMA + F16C. The interface is listed in vec_generic.h.
#pragma once
#include "cpu/kernels/types.h"

namespace fastrnn::cpu {
namespace {

template <class C>
struct Vec;

template <>
struct Vec<float> {
  using Scalar = float;
  static constexpr int kLanes = 8;
  __m256 v;

  static FASTRNN_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static FASTRNN_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static FASTRNN_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
  static FASTRNN_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FASTRNN_INLINE Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, mask(n))}; }
  FASTRNN_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  FASTRNN_INLINE void store(float* p, int n) const { _mm256_maskstore_ps(p, mask(n), v); }

  static FASTRNN_INLINE __m128i load16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  // AVX2 has no 16-bit masks: the tail goes through a small array.
  template <class S>
  static FASTRNN_INLINE __m128i load16(const S* p, int n) {
    alignas(16) uint16_t lanes[8] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i].bits;
    return _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
  }
  template <class S>
  static FASTRNN_INLINE void store16(S* p, int n, __m128i x) {
    alignas(16) uint16_t lanes[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), x);
    for (int i = 0; i < n; ++i) p[i].bits = lanes[i];
  }
  static FASTRNN_INLINE Vec from_bf16(__m128i x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
  }
  static FASTRNN_INLINE Vec load(const BFloat16* p) { return from_bf16(load16(p)); }
  static FASTRNN_INLINE Vec load(const BFloat16* p, int n) { return from_bf16(load16(p, n)); }
  static FASTRNN_INLINE Vec load(const Half* p) { return {_mm256_cvtph_ps(load16(p))}; }
  static FASTRNN_INLINE Vec load(const Half* p, int n) { return {_mm256_cvtph_ps(load16(p, n))}; }
  // Round to nearest even; a NaN keeps a mantissa bit.
  FASTRNN_INLINE __m128i to_bf16() const {
    const __m256i x = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(x, bias), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
  }
  FASTRNN_INLINE void store(BFloat16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16());
  }
  FASTRNN_INLINE void store(BFloat16* p, int n) const { store16(p, n, to_bf16()); }
  FASTRNN_INLINE __m128i to_half() const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  FASTRNN_INLINE void store(Half* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_half());
  }
  FASTRNN_INLINE void store(Half* p, int n) const { store16(p, n, to_half()); }

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec min_keep_nan(Vec x, Vec limit) { return {_mm256_min_ps(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec max_keep_nan(Vec x, Vec limit) { return {_mm256_max_ps(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
  friend FASTRNN_INLINE Vec copysign(Vec magnitude, Vec sign) {
    return {_mm256_or_ps(magnitude.v, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign.v))};
  }
  friend FASTRNN_INLINE Vec round(Vec a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // a * 2^n for whole n, in two factors, so that n may reach 128 + 126
  friend FASTRNN_INLINE Vec scale(Vec a, Vec n) {
    const __m256i whole = _mm256_cvtps_epi32(n.v);
    const __m256i first = _mm256_srai_epi32(whole, 1);
    const __m256i second = _mm256_sub_epi32(whole, first);
    return {_mm256_mul_ps(_mm256_mul_ps(a.v, pow2(first)), pow2(second))};
  }
  static FASTRNN_INLINE __m256 pow2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  friend FASTRNN_INLINE Vec zero_where_not_positive(Vec test, Vec a) {
    return {_mm256_and_ps(_mm256_cmp_ps(test.v, _mm256_setzero_ps(), _CMP_NLE_UQ), a.v)};
  }
  friend FASTRNN_INLINE Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
  }
  FASTRNN_INLINE float sum() const {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }

  // rows[i] lane j <-> rows[j] lane i
  static FASTRNN_INLINE void transpose(Vec (&rows)[kLanes]) {
    Vec a[8];
    for (int i = 0; i < 8; i += 2) {  // pairs of rows, 1 x 1
      a[i] = {_mm256_unpacklo_ps(rows[i].v, rows[i + 1].v)};
      a[i + 1] = {_mm256_unpackhi_ps(rows[i].v, rows[i + 1].v)};
    }
    for (int i = 0; i < 8; i += 4) {  // 2 x 2
      rows[i] = {_mm256_shuffle_ps(a[i].v, a[i + 2].v, 0x44)};
      rows[i + 1] = {_mm256_shuffle_ps(a[i].v, a[i + 2].v, 0xee)};
      rows[i + 2] = {_mm256_shuffle_ps(a[i + 1].v, a[i + 3].v, 0x44)};
      rows[i + 3] = {_mm256_shuffle_ps(a[i + 1].v, a[i + 3].v, 0xee)};
    }
    for (int i = 0; i < 4; ++i) {  // halves
      a[i] = {_mm256_permute2f128_ps(rows[i].v, rows[i + 4].v, 0x20)};
      a[i + 4] = {_mm256_permute2f128_ps(rows[i].v, rows[i + 4].v, 0x31)};
    }
    for (int i = 0; i < 8; ++i) rows[i] = a[i];
  }
};

template <>
struct Vec<double> {
  using Scalar = double;
  static constexpr int kLanes = 4;
  __m256d v;

  static FASTRNN_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static FASTRNN_INLINE Vec set1(double x) { return {_mm256_set1_pd(x)}; }
  static FASTRNN_INLINE Vec zero() { return {_mm256_setzero_pd()}; }
  static FASTRNN_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static FASTRNN_INLINE Vec load(const double* p, int n) {
    return {_mm256_maskload_pd(p, mask(n))};
  }
  FASTRNN_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  FASTRNN_INLINE void store(double* p, int n) const { _mm256_maskstore_pd(p, mask(n), v); }

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec min_keep_nan(Vec x, Vec limit) { return {_mm256_min_pd(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec max_keep_nan(Vec x, Vec limit) { return {_mm256_max_pd(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec abs(Vec a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
  friend FASTRNN_INLINE Vec copysign(Vec magnitude, Vec sign) {
    return {_mm256_or_pd(magnitude.v, _mm256_and_pd(_mm256_set1_pd(-0.0), sign.v))};
  }
  friend FASTRNN_INLINE Vec round(Vec a) {
    return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  friend FASTRNN_INLINE Vec scale(Vec a, Vec n) {
    const __m128i whole = _mm256_cvtpd_epi32(n.v);
    const __m128i first = _mm_srai_epi32(whole, 1);
    const __m128i second = _mm_sub_epi32(whole, first);
    return {_mm256_mul_pd(_mm256_mul_pd(a.v, pow2(first)), pow2(second))};
  }
  static FASTRNN_INLINE __m256d pow2(__m128i n) {
    const __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(n), _mm256_set1_epi64x(1023));
    return _mm256_castsi256_pd(_mm256_slli_epi64(wide, 52));
  }
  friend FASTRNN_INLINE Vec zero_where_not_positive(Vec test, Vec a) {
    return {_mm256_and_pd(_mm256_cmp_pd(test.v, _mm256_setzero_pd(), _CMP_NLE_UQ), a.v)};
  }
  friend FASTRNN_INLINE Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ))};
  }
  FASTRNN_INLINE double sum() const {
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
  }

  static FASTRNN_INLINE void transpose(Vec (&rows)[kLanes]) {
    Vec a[4];
    for (int i = 0; i < 4; i += 2) {
      a[i] = {_mm256_unpacklo_pd(rows[i].v, rows[i + 1].v)};
      a[i + 1] = {_mm256_unpackhi_pd(rows[i].v, rows[i + 1].v)};
    }
    for (int i = 0; i < 2; ++i) {
      rows[i] = {_mm256_permute2f128_pd(a[i].v, a[i + 2].v, 0x20)};
      rows[i + 2] = {_mm256_permute2f128_pd(a[i].v, a[i + 2].v, 0x31)};
    }
  }
};

constexpr int kVectorRegisters = 16;

}  // namespace
}  // namespace fastrnn::cpu
