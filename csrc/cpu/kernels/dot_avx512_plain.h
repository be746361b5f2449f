// The product of int8 on AVX-512 without VNNI: dot_avx2.h says why nothing saturates.
#pragma once
#include "cpu/kernels/dot_avx512.h"

namespace fastrnn::cpu {
namespace {

constexpr int kActivationOffset = 0;

struct Activation {
  __mmask64 negative;
  __m512i magnitude;
  static FASTRNN_INLINE Activation load(const uint8_t* p) {
    const __m512i x = broadcast_four(p);
    return {_mm512_movepi8_mask(x), _mm512_abs_epi8(x)};
  }
};

FASTRNN_INLINE Integers dot(Integers sum, const Activation& x, const Int8Vector& w) {
  const __m512i turned = _mm512_mask_sub_epi8(w.v, x.negative, _mm512_setzero_si512(), w.v);
  const __m512i pairs = _mm512_maddubs_epi16(x.magnitude, turned);
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}

FASTRNN_INLINE void store_activations(Vec<float> x, uint8_t* p) { store_bytes(x.v, p); }

}  // namespace
}  // namespace fastrnn::cpu
