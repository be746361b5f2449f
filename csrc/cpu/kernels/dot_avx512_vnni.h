// The product of int8 on AVX-512 with VNNI, whose instruction takes unsigned by signed bytes: 128
// is added to the activations, and what that adds to the sums is taken away at the end.
#pragma once
#include "cpu/kernels/dot_avx512.h"

namespace fastrnn::cpu {
namespace {

constexpr int kActivationOffset = 128;

struct Activation {
  __m512i v;
  static FASTRNN_INLINE Activation load(const uint8_t* p) { return {broadcast_four(p)}; }
};

FASTRNN_INLINE Integers dot(Integers sum, const Activation& x, const Int8Vector& w) {
  return {_mm512_dpbusd_epi32(sum.v, x.v, w.v)};
}

FASTRNN_INLINE void store_activations(Vec<float> x, uint8_t* p) {
  store_bytes(_mm512_add_ps(x.v, _mm512_set1_ps(kActivationOffset)), p);
}

}  // namespace
}  // namespace fastrnn::cpu
