// What products of int8 on AVX-512 have in common; the interface is listed in dot_generic.h, the
// product itself stands in dot_avx512_plain.h and dot_avx512_vnni.h.
#pragma once
#include "cpu/kernels/types.h"

namespace fastrnn::cpu {
namespace {

struct Integers {
  static constexpr int kLanes = 16;
  __m512i v;

  static FASTRNN_INLINE Integers zero() { return {_mm512_setzero_si512()}; }
  static FASTRNN_INLINE Integers load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  friend FASTRNN_INLINE Integers operator-(Integers a, Integers b) {
    return {_mm512_sub_epi32(a.v, b.v)};
  }
  FASTRNN_INLINE Vec<float> to_float() const { return {_mm512_cvtepi32_ps(v)}; }
};

struct Int8Vector {
  __m512i v;
  static FASTRNN_INLINE Int8Vector load(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
};

FASTRNN_INLINE __m512i broadcast_four(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

FASTRNN_INLINE void store_bytes(__m512 x, uint8_t* p) {
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

FASTRNN_INLINE void load_bf16_pairs(const uint16_t* p, Vec<float>& even, Vec<float>& odd) {
  const __m512i pairs = _mm512_loadu_si512(p);
  even = {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))};
  odd = {_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
}

}  // namespace
}  // namespace fastrnn::cpu
