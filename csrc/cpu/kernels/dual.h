// Dual numbers v + t e with e * e = 0: an equation written on a value type, given
// them, also yields its derivative in the direction t. This is all of the vector
// interface (vec_generic.h) that the backward equations of the cells use.
#pragma once
#include "cpu/kernels/math.h"

namespace fastrnn::cpu {
namespace {

template <class V>
struct Dual {
  V v, t;

  static FASTRNN_INLINE Dual set1(typename V::Scalar x) { return {V::set1(x), V::zero()}; }

  friend FASTRNN_INLINE Dual operator+(Dual a, Dual b) { return {a.v + b.v, a.t + b.t}; }
  friend FASTRNN_INLINE Dual operator-(Dual a, Dual b) { return {a.v - b.v, a.t - b.t}; }
  friend FASTRNN_INLINE Dual operator*(Dual a, Dual b) {
    return {a.v * b.v, fma(a.v, b.t, a.t * b.v)};
  }
  friend FASTRNN_INLINE Dual fma(Dual a, Dual b, Dual c) {
    return {fma(a.v, b.v, c.v), fma(a.v, b.t, fma(a.t, b.v, c.t))};
  }
  friend FASTRNN_INLINE Dual fnma(Dual a, Dual b, Dual c) {
    return {fnma(a.v, b.v, c.v), fnma(a.v, b.t, fnma(a.t, b.v, c.t))};
  }
  friend FASTRNN_INLINE Dual tanh(Dual a) {
    const V value = tanh(a.v);
    return {value, a.t * fnma(value, value, V::set1(1))};
  }
  friend FASTRNN_INLINE Dual zero_where_not_positive(Dual test, Dual a) {
    return {zero_where_not_positive(test.v, a.v), zero_where_not_positive(test.v, a.t)};
  }
};

}  // namespace
}  // namespace fastrnn::cpu
