// sigmoid, tanh and relu on vectors. In float the largest error seen against double is 2.3 ulp
// for sigmoid and 2.4 ulp for tanh, the same on every target (tests/numbers/test_accuracy.py). NaN
// stays NaN, infinities saturate, results below the normal range flush to zero with FTZ.
#pragma once

namespace fastrnn::cpu {
namespace {

template <class C>
struct MathConstants;

// (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2: minimax fit, which leaves e^r - 1 a
// relative error of 1.3e-8.
template <>
struct MathConstants<float> {
  static constexpr float kExpm1[] = {0.0013946451316f, 0.0083665911892f, 0.041666282006f,
                                     0.16666542937f, 0.50000000619f};
  static constexpr float kLn2High = 0.693145751953125f;  // 16 bits: n * kLn2High is exact
  static constexpr float kLn2Low = 1.42860682030941723212e-6f;
  static constexpr float kExpLimit = 88.0f;   // 1 / (1 + e^88) is below the normal range
  static constexpr float kTanhLimit = 10.0f;  // tanh rounds to 1 from 9.02 on
};

// The same to relative error 1.8e-17.
template <>
struct MathConstants<double> {
  static constexpr double kExpm1[] = {2.511336568157668586e-8, 2.762636790381589085e-7,
                                      2.755723142892239409e-6, 2.480150433077740449e-5,
                                      1.984126989918009844e-4, 1.388888893248963538e-3,
                                      8.333333333316341636e-3, 4.166666666657320085e-2,
                                      0.1666666666666668333,   0.5000000000000005602};
  static constexpr double kLn2High = 0.693147180369123816490;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kExpLimit = 709.0;
  static constexpr double kTanhLimit = 20.0;
};

// e^x = power * (1 + p), power of two, |x| <= kExpLimit
template <class V>
FASTRNN_INLINE void split_exp(V x, V& power, V& p) {
  using K = MathConstants<typename V::Scalar>;
  const V n = round(x * V::set1(typename V::Scalar(1.44269504088896340736)));
  V r = fnma(n, V::set1(K::kLn2High), x);
  r = fnma(n, V::set1(K::kLn2Low), r);
  V q = V::set1(K::kExpm1[0]);
  constexpr int kTerms = sizeof(K::kExpm1) / sizeof(K::kExpm1[0]);
#pragma GCC unroll 16
  for (int i = 1; i < kTerms; ++i) q = fma(q, r, V::set1(K::kExpm1[i]));
  p = fma(r * r, q, r);  // one rounding where r is small, and little beside it elsewhere
  power = scale(V::set1(1), n);
}

template <class C>
FASTRNN_INLINE Vec<C> sigmoid(Vec<C> x) {
  using V = Vec<C>;
  using K = MathConstants<C>;
  const V one = V::set1(1);
  V y = V::zero() - x;
  y = max_keep_nan(min_keep_nan(y, V::set1(K::kExpLimit)), V::set1(-K::kExpLimit));
  V power, p;
  split_exp(y, power, p);
  return one / fma(p, power, one + power);
}

// tanh |x| = e / (e + 2) with e = e^(2|x|) - 1, which keeps its relative accuracy down to
// zero; and for larger x the same as 1 - 2 / (e + 2), which keeps that of 1 - tanh^2, the slope.
template <class C>
FASTRNN_INLINE Vec<C> tanh(Vec<C> x) {
  using V = Vec<C>;
  const V one = V::set1(1), large = V::set1(C(0.7));
  const V a = min_keep_nan(abs(x), V::set1(MathConstants<C>::kTanhLimit));
  V power, p;
  split_exp(a + a, power, p);
  const V e = fma(p, power, power - one);
  const V t = select_greater(a, large, V::set1(-2), e) / (e + V::set1(2));
  return copysign(t + select_greater(a, large, one, V::zero()), x);
}

template <class C>
FASTRNN_INLINE Vec<C> relu(Vec<C> x) {
  return max_keep_nan(x, Vec<C>::zero());
}

}  // namespace
}  // namespace fastrnn::cpu
