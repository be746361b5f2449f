// Products of int8 in plain C++. This is what every target offers:
//   Integers: kLanes sums in int32: zero(), load(p), a - b, to_float()
//   Activation: load(p), four int8 of a row as `store_activations` left them
//   Int8Vector: load(p), four int8 of each of kLanes rows of a weight, none of them -128
//   dot(sum, activation, weight): sum + the products, exactly (int32 that wraps)
//   kActivationOffset: what `store_activations` adds to every value, 0 or 128: the sums then
//     are too large by that times the sum of the weight
//   store_activations(x, p): whole numbers from -127 to 127 to kLanes bytes; of NaN, any byte
//   load_bf16_pairs(p, even, odd): kLanes pairs of bfloat16, the first of each and the second
#pragma once
#include "cpu/kernels/types.h"

namespace fastrnn::cpu {
namespace {

constexpr int kActivationOffset = 0;

struct Integers {
  static constexpr int kLanes = Vec<float>::kLanes;
  int32_t v[kLanes];

  static FASTRNN_INLINE Integers zero() { return {}; }
  static FASTRNN_INLINE Integers load(const int32_t* p) {
    Integers r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  friend FASTRNN_INLINE Integers operator-(Integers a, Integers b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] -= b.v[i];
    return a;
  }
  FASTRNN_INLINE Vec<float> to_float() const {
    return Vec<float>::each([&](int i) { return static_cast<float>(v[i]); });
  }
};

struct Activation {
  int8_t v[4];
  static FASTRNN_INLINE Activation load(const uint8_t* p) {
    Activation r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
};

struct Int8Vector {
  int8_t v[4 * Integers::kLanes];
  static FASTRNN_INLINE Int8Vector load(const int8_t* p) {
    Int8Vector r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
};

FASTRNN_INLINE Integers dot(Integers sum, const Activation& x, const Int8Vector& w) {
  for (int i = 0; i < Integers::kLanes; ++i) {
    for (int k = 0; k < 4; ++k) sum.v[i] += x.v[k] * w.v[4 * i + k];
  }
  return sum;
}

FASTRNN_INLINE void store_activations(Vec<float> x, uint8_t* p) {
  // Adding 1.5 * 2^23 leaves whole numbers in the low bits, as integers.
  for (int i = 0; i < Integers::kLanes; ++i) {
    p[i] = static_cast<uint8_t>(float_bits(x.v[i] + 12582912.0f));
  }
}

FASTRNN_INLINE void load_bf16_pairs(const uint16_t* p, Vec<float>& even, Vec<float>& odd) {
  even = Vec<float>::each([&](int i) { return widen(BFloat16{p[2 * i]}); });
  odd = Vec<float>::each([&](int i) { return widen(BFloat16{p[2 * i + 1]}); });
}

}  // namespace
}  // namespace fastrnn::cpu
