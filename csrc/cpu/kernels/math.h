// sigmoid, tanh and relu on vectors. In float, on 600,000 inputs in [-30, 30] and
// around zero, the largest error seen against double is 2.5 ulp for sigmoid and
// 3.1 ulp for tanh, the same on every target. NaN stays NaN, infinities
// saturate, results below the normal range flush to zero with FTZ.
#pragma once

namespace fastrnn::cpu {
namespace {

template <class C>
struct MathConstants;

// (e^r - 1) / r on |r| <= ln(2) / 2: Chebyshev fit, relative error 1.2e-8.
template <>
struct MathConstants<float> {
  static constexpr float kExpm1[] = {0.001393364999630925f, 0.008369155667697397f,
                                     0.041666464925285905f, 0.16666505195758111f,
                                     0.50000000134658092f,  1.0000000107780401f};
  static constexpr float kLn2High = 0.693145751953125f;  // 16 bits: n * kLn2High is exact
  static constexpr float kLn2Low = 1.42860682030941723212e-6f;
  static constexpr float kExpLimit = 100.0f;  // e^100 is infinite, 1 / e^100 is 0
  static constexpr float kTanhLimit = 10.0f;  // tanh rounds to 1 from 9.02 on
};

// The same to relative error 2e-17.
template <>
struct MathConstants<double> {
  static constexpr double kExpm1[] = {2.5105217004720745e-8,
                                      2.7626371065696356e-7,
                                      2.7557255400206424e-6,
                                      2.4801504313785540e-5,
                                      1.9841269874820625e-4,
                                      1.3888888932514780e-3,
                                      8.3333333333261351e-3,
                                      4.1666666666573068e-2,
                                      1.6666666666666671e-1,
                                      5.0000000000000056e-1,
                                      1.0};
  static constexpr double kLn2High = 0.693147180369123816490;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kExpLimit = 720.0;
  static constexpr double kTanhLimit = 20.0;
};

// e^x = 2^n * (1 + p), |x| <= kExpLimit
template <class V>
FASTRNN_INLINE void split_exp(V x, V& n, V& p) {
  using K = MathConstants<typename V::Scalar>;
  n = round(x * V::set1(typename V::Scalar(1.44269504088896340736)));
  V r = fnma(n, V::set1(K::kLn2High), x);
  r = fnma(n, V::set1(K::kLn2Low), r);
  V q = V::set1(K::kExpm1[0]);
  constexpr int kTerms = sizeof(K::kExpm1) / sizeof(K::kExpm1[0]);
#pragma GCC unroll 16
  for (int i = 1; i < kTerms; ++i) q = fma(q, r, V::set1(K::kExpm1[i]));
  p = q * r;
}

template <class C>
FASTRNN_INLINE Vec<C> sigmoid(Vec<C> x) {
  using V = Vec<C>;
  using K = MathConstants<C>;
  const V one = V::set1(1);
  V y = V::zero() - x;
  y = max_keep_nan(min_keep_nan(y, V::set1(K::kExpLimit)), V::set1(-K::kExpLimit));
  V n, p;
  split_exp(y, n, p);
  return one / (one + scale(one + p, n));
}

// tanh |x| = e / (e + 2) with e = e^(2|x|) - 1, which keeps its relative
// accuracy down to zero.
template <class C>
FASTRNN_INLINE Vec<C> tanh(Vec<C> x) {
  using V = Vec<C>;
  const V one = V::set1(1);
  const V a = min_keep_nan(abs(x), V::set1(MathConstants<C>::kTanhLimit));
  V n, p;
  split_exp(a + a, n, p);
  const V power = scale(one, n);
  const V e = fma(p, power, power - one);
  return copysign(e / (e + V::set1(2)), x);
}

template <class C>
FASTRNN_INLINE Vec<C> relu(Vec<C> x) {
  return max_keep_nan(x, Vec<C>::zero());
}

}  // namespace
}  // namespace fastrnn::cpu
