// Vector types on AVX-512 (F, BW, VL, DQ). The interface that every target
// offers and the kernels use is listed in vec_generic.h.
#pragma once
#include "cpu/kernels/types.h"

namespace fastrnn::cpu {
namespace {

template <class C>
struct Vec;

template <>
struct Vec<float> {
  using Scalar = float;
  static constexpr int kLanes = 16;
  __m512 v;

  static FASTRNN_INLINE __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static FASTRNN_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static FASTRNN_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
  static FASTRNN_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FASTRNN_INLINE Vec load(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(mask(n), p)};
  }
  FASTRNN_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  FASTRNN_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }

  static FASTRNN_INLINE Vec from_bf16(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  static FASTRNN_INLINE Vec load(const BFloat16* p) {
    return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static FASTRNN_INLINE Vec load(const BFloat16* p, int n) {
    return from_bf16(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  static FASTRNN_INLINE Vec load(const Half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static FASTRNN_INLINE Vec load(const Half* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p))};
  }
  // Round to nearest even; a NaN keeps a mantissa bit.
  FASTRNN_INLINE __m256i to_bf16() const {
    const __m512i x = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(x, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
  }
  FASTRNN_INLINE void store(BFloat16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16());
  }
  FASTRNN_INLINE void store(BFloat16* p, int n) const {
    _mm256_mask_storeu_epi16(p, mask(n), to_bf16());
  }
  FASTRNN_INLINE __m256i to_half() const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  FASTRNN_INLINE void store(Half* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_half());
  }
  FASTRNN_INLINE void store(Half* p, int n) const {
    _mm256_mask_storeu_epi16(p, mask(n), to_half());
  }

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec min_keep_nan(Vec x, Vec limit) { return {_mm512_min_ps(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec max_keep_nan(Vec x, Vec limit) { return {_mm512_max_ps(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
  friend FASTRNN_INLINE Vec copysign(Vec magnitude, Vec sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(magnitude.v, _mm512_and_ps(bit, sign.v))};
  }
  friend FASTRNN_INLINE Vec round(Vec a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // a * 2^n for whole n
  friend FASTRNN_INLINE Vec scale(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  friend FASTRNN_INLINE Vec zero_where_not_positive(Vec test, Vec a) {
    const __mmask16 keep = _mm512_cmp_ps_mask(test.v, _mm512_setzero_ps(), _CMP_NLE_UQ);
    return {_mm512_maskz_mov_ps(keep, a.v)};
  }
  friend FASTRNN_INLINE Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
  }
  FASTRNN_INLINE float sum() const { return _mm512_reduce_add_ps(v); }

  static FASTRNN_INLINE __m512d pd(Vec x) { return _mm512_castps_pd(x.v); }
  // rows[i] lane j <-> rows[j] lane i
  static FASTRNN_INLINE void transpose(Vec (&rows)[kLanes]) {
    Vec a[16];
    for (int i = 0; i < 16; i += 2) {  // pairs of rows, 1 x 1
      a[i] = {_mm512_unpacklo_ps(rows[i].v, rows[i + 1].v)};
      a[i + 1] = {_mm512_unpackhi_ps(rows[i].v, rows[i + 1].v)};
    }
    for (int i = 0; i < 16; i += 4) {  // 2 x 2
      rows[i] = {_mm512_castpd_ps(_mm512_unpacklo_pd(pd(a[i]), pd(a[i + 2])))};
      rows[i + 1] = {_mm512_castpd_ps(_mm512_unpackhi_pd(pd(a[i]), pd(a[i + 2])))};
      rows[i + 2] = {_mm512_castpd_ps(_mm512_unpacklo_pd(pd(a[i + 1]), pd(a[i + 3])))};
      rows[i + 3] = {_mm512_castpd_ps(_mm512_unpackhi_pd(pd(a[i + 1]), pd(a[i + 3])))};
    }
    for (int i = 0; i < 4; ++i) {  // 4 x 4 blocks within halves
      a[i] = {_mm512_shuffle_f32x4(rows[i].v, rows[i + 4].v, 0x88)};
      a[i + 4] = {_mm512_shuffle_f32x4(rows[i].v, rows[i + 4].v, 0xdd)};
      a[i + 8] = {_mm512_shuffle_f32x4(rows[i + 8].v, rows[i + 12].v, 0x88)};
      a[i + 12] = {_mm512_shuffle_f32x4(rows[i + 8].v, rows[i + 12].v, 0xdd)};
    }
    for (int i = 0; i < 8; ++i) {  // halves
      rows[i] = {_mm512_shuffle_f32x4(a[i].v, a[i + 8].v, 0x88)};
      rows[i + 8] = {_mm512_shuffle_f32x4(a[i].v, a[i + 8].v, 0xdd)};
    }
  }
};

template <>
struct Vec<double> {
  using Scalar = double;
  static constexpr int kLanes = 8;
  __m512d v;

  static FASTRNN_INLINE __mmask8 mask(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static FASTRNN_INLINE Vec set1(double x) { return {_mm512_set1_pd(x)}; }
  static FASTRNN_INLINE Vec zero() { return {_mm512_setzero_pd()}; }
  static FASTRNN_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static FASTRNN_INLINE Vec load(const double* p, int n) {
    return {_mm512_maskz_loadu_pd(mask(n), p)};
  }
  FASTRNN_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  FASTRNN_INLINE void store(double* p, int n) const { _mm512_mask_storeu_pd(p, mask(n), v); }

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  friend FASTRNN_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
  friend FASTRNN_INLINE Vec min_keep_nan(Vec x, Vec limit) { return {_mm512_min_pd(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec max_keep_nan(Vec x, Vec limit) { return {_mm512_max_pd(limit.v, x.v)}; }
  friend FASTRNN_INLINE Vec abs(Vec a) { return {_mm512_abs_pd(a.v)}; }
  friend FASTRNN_INLINE Vec copysign(Vec magnitude, Vec sign) {
    const __m512d bit = _mm512_set1_pd(-0.0);
    return {_mm512_or_pd(magnitude.v, _mm512_and_pd(bit, sign.v))};
  }
  friend FASTRNN_INLINE Vec round(Vec a) {
    return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  friend FASTRNN_INLINE Vec scale(Vec a, Vec n) { return {_mm512_scalef_pd(a.v, n.v)}; }
  friend FASTRNN_INLINE Vec zero_where_not_positive(Vec test, Vec a) {
    const __mmask8 keep = _mm512_cmp_pd_mask(test.v, _mm512_setzero_pd(), _CMP_NLE_UQ);
    return {_mm512_maskz_mov_pd(keep, a.v)};
  }
  friend FASTRNN_INLINE Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
  }
  FASTRNN_INLINE double sum() const { return _mm512_reduce_add_pd(v); }

  static FASTRNN_INLINE void transpose(Vec (&rows)[kLanes]) {
    Vec a[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = {_mm512_unpacklo_pd(rows[i].v, rows[i + 1].v)};
      a[i + 1] = {_mm512_unpackhi_pd(rows[i].v, rows[i + 1].v)};
    }
    for (int i = 0; i < 2; ++i) {
      rows[i] = {_mm512_shuffle_f64x2(a[i].v, a[i + 2].v, 0x88)};
      rows[i + 2] = {_mm512_shuffle_f64x2(a[i].v, a[i + 2].v, 0xdd)};
      rows[i + 4] = {_mm512_shuffle_f64x2(a[i + 4].v, a[i + 6].v, 0x88)};
      rows[i + 6] = {_mm512_shuffle_f64x2(a[i + 4].v, a[i + 6].v, 0xdd)};
    }
    for (int i = 0; i < 4; ++i) {
      a[i] = {_mm512_shuffle_f64x2(rows[i].v, rows[i + 4].v, 0x88)};
      a[i + 4] = {_mm512_shuffle_f64x2(rows[i].v, rows[i + 4].v, 0xdd)};
    }
    for (int i = 0; i < 8; ++i) rows[i] = a[i];
  }
};

constexpr int kVectorRegisters = 32;

}  // namespace
}  // namespace fastrnn::cpu
