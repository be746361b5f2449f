// Products of int8 on AVX2; the interface is listed in dot_generic.h. vpmaddubsw multiplies
// unsigned by signed bytes and adds pairs of products in 16 bits: with |x| <= 127 and |w| <= 127
// they are at most 32,258, so nothing saturates. The sign of x goes to w.
#pragma once
#include "cpu/kernels/types.h"

namespace fastrnn::cpu {
namespace {

constexpr int kActivationOffset = 0;

struct Integers {
  static constexpr int kLanes = 8;
  __m256i v;

  static FASTRNN_INLINE Integers zero() { return {_mm256_setzero_si256()}; }
  static FASTRNN_INLINE Integers load(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  friend FASTRNN_INLINE Integers operator-(Integers a, Integers b) {
    return {_mm256_sub_epi32(a.v, b.v)};
  }
  FASTRNN_INLINE Vec<float> to_float() const { return {_mm256_cvtepi32_ps(v)}; }
};

struct Activation {
  __m256i sign, magnitude;
  static FASTRNN_INLINE Activation load(const uint8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const __m256i x = _mm256_set1_epi32(four);
    return {x, _mm256_abs_epi8(x)};
  }
};

struct Int8Vector {
  __m256i v;
  static FASTRNN_INLINE Int8Vector load(const int8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
};

FASTRNN_INLINE Integers dot(Integers sum, const Activation& x, const Int8Vector& w) {
  const __m256i pairs = _mm256_maddubs_epi16(x.magnitude, _mm256_sign_epi8(w.v, x.sign));
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}

FASTRNN_INLINE void store_activations(Vec<float> x, uint8_t* p) {
  const __m256i whole = _mm256_cvtps_epi32(x.v);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

FASTRNN_INLINE void load_bf16_pairs(const uint16_t* p, Vec<float>& even, Vec<float>& odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)))};
}

}  // namespace
}  // namespace fastrnn::cpu
