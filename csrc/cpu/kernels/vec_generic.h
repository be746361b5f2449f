// Vector types in plain C++, for any CPU: short arrays that the compiler may
// vectorise as it likes. This is the interface every target offers:
//   set1, zero, load(p), load(p, n) (the first n lanes, zero beyond),
//   store(p), store(p, n), + - * /, fma(a, b, c) = a*b + c,
//   fnma(a, b, c) = c - a*b, min_keep_nan(x, limit), max_keep_nan(x, limit)
//   (NaN in x stays), abs, copysign(magnitude >= 0, sign), round (to even),
//   scale(a, n) = a * 2^n, zero_where_not_positive(test, a) (NaN in test
//   keeps a), select_greater(a, b, yes, no) (NaN in either: no), sum(), transpose(rows) (kLanes
//   vectors: rows[i] lane j <-> rows[j] lane i). 0 < n < kLanes.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/types.h"

namespace fastrnn::cpu {
namespace {

FASTRNN_INLINE uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
FASTRNN_INLINE float bits_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
FASTRNN_INLINE float widen(float x) { return x; }
FASTRNN_INLINE double widen(double x) { return x; }
FASTRNN_INLINE float widen(BFloat16 x) { return bits_float(uint32_t{x.bits} << 16); }
// Those of half are long, and in every load and store of its file: not inlined, they halve its
// compilation.
inline FASTRNN_NOINLINE float widen(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t exponent = (x.bits >> 10) & 31u;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 31) return bits_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return bits_float(sign | float_bits(magnitude));
  }
  return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
FASTRNN_INLINE void narrow(float x, float* p) { *p = x; }
FASTRNN_INLINE void narrow(double x, double* p) { *p = x; }
FASTRNN_INLINE void narrow(float x, BFloat16* p) {
  const uint32_t u = float_bits(x);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline FASTRNN_NOINLINE void narrow(float x, Half* p) {
  const uint32_t u = float_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t r;
  if (magnitude > 0x7f800000u) {
    r = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds beyond the largest half
    r = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 moves the rounding to the last bit of a half.
    r = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    r = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  p->bits = static_cast<uint16_t>(sign | r);
}
FASTRNN_INLINE float times_pow2(float a, float n) {
  const int whole = n == n ? static_cast<int>(n) : 0;
  const int first = whole / 2;
  const int second = whole - first;
  return a * bits_float(static_cast<uint32_t>(first + 127) << 23) *
         bits_float(static_cast<uint32_t>(second + 127) << 23);
}
FASTRNN_INLINE double times_pow2(double a, double n) {
  const int whole = n == n ? static_cast<int>(n) : 0;
  const int first = whole / 2;
  const int second = whole - first;
  const auto pow2 = [](int k) {
    const uint64_t u = static_cast<uint64_t>(k + 1023) << 52;
    double x;
    std::memcpy(&x, &u, sizeof x);
    return x;
  };
  return a * pow2(first) * pow2(second);
}

// The arithmetic is the compiler's own vector extension (GCC and Clang), which
// every CPU has in some form; the rest goes lane by lane.
template <class C>
struct Vec {
  using Scalar = C;
  static constexpr int kLanes = 16 / sizeof(C);
  typedef C Lanes __attribute__((vector_size(16)));
  Lanes v;

  template <class F>
  static FASTRNN_INLINE Vec each(F f) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }
  static FASTRNN_INLINE Vec set1(C x) { return {Lanes{} + x}; }
  static FASTRNN_INLINE Vec zero() { return {Lanes{}}; }
  static FASTRNN_INLINE Vec load(const C* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  template <class S>
  static FASTRNN_INLINE Vec load(const S* p) {
    return each([&](int i) { return widen(p[i]); });
  }
  template <class S>
  static FASTRNN_INLINE Vec load(const S* p, int n) {
    return each([&](int i) { return i < n ? widen(p[i]) : C(0); });
  }
  FASTRNN_INLINE void store(C* p) const { std::memcpy(p, &v, sizeof v); }
  template <class S>
  FASTRNN_INLINE void store(S* p) const {
    for (int i = 0; i < kLanes; ++i) narrow(v[i], p + i);
  }
  template <class S>
  FASTRNN_INLINE void store(S* p, int n) const {
    for (int i = 0; i < n; ++i) narrow(v[i], p + i);
  }

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  friend FASTRNN_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  friend FASTRNN_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {c.v - a.v * b.v}; }
  friend FASTRNN_INLINE Vec min_keep_nan(Vec x, Vec limit) {
    return {limit.v < x.v ? limit.v : x.v};
  }
  friend FASTRNN_INLINE Vec max_keep_nan(Vec x, Vec limit) {
    return {limit.v > x.v ? limit.v : x.v};
  }
  friend FASTRNN_INLINE Vec abs(Vec a) {
    return each([&](int i) { return std::fabs(a.v[i]); });
  }
  friend FASTRNN_INLINE Vec copysign(Vec magnitude, Vec sign) {
    return each([&](int i) { return std::copysign(magnitude.v[i], sign.v[i]); });
  }
  friend FASTRNN_INLINE Vec round(Vec a) {
    // Adding and taking away 1.5 * 2^(mantissa bits) leaves the whole part.
    const Lanes magic = Lanes{} + (sizeof(C) == 4 ? C(12582912.0) : C(6755399441055744.0));
    return {(a.v + magic) - magic};
  }
  friend FASTRNN_INLINE Vec scale(Vec a, Vec n) {
    return each([&](int i) { return times_pow2(a.v[i], n.v[i]); });
  }
  friend FASTRNN_INLINE Vec zero_where_not_positive(Vec test, Vec a) {
    return {test.v <= 0 ? Lanes{} : a.v};
  }
  friend FASTRNN_INLINE Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
    return {a.v > b.v ? yes.v : no.v};
  }
  FASTRNN_INLINE C sum() const {
    C s = v[0];
    for (int i = 1; i < kLanes; ++i) s += v[i];
    return s;
  }
  static FASTRNN_INLINE void transpose(Vec (&rows)[kLanes]) {
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < i; ++j) {
        const C x = rows[i].v[j];
        rows[i].v[j] = rows[j].v[i];
        rows[j].v[i] = x;
      }
    }
  }
};

constexpr int kVectorRegisters = 16;

}  // namespace
}  // namespace fastrnn::cpu
