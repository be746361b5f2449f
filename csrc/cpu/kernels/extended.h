// What both passes of the extended recurrence share: its masks, and layer normalisation of a row.
//
// The extended recurrence is that of a layer whose input product is already made (gates_x), with
// any of these between the products and the state:
//   normalisation of gates_x's rows, each by itself (gain_x);
//   normalisation of the recurrent product, or of its sum with gates_x (Norm);
//   normalisation of state c before h is made of it;
//   a factor for h before the recurrent product, the same at every step (h_scale);
//   zoneout and recurrent dropout, whose masks come from counters (philox.h).
// Each step has two phases: the recurrent product, tile by tile into memory, and the rest, one
// whole row after the other. Threads that share rows divide the first by units and the second by
// rows, with a barrier after either; a row is worked on in the same order whoever does it.
#pragma once
#include "cpu/kernels/cells.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/philox.h"
#include "cpu/kernels/plan.h"

namespace fastrnn::cpu {
namespace {

// The masks of one row and step, one value a unit. A null pointer: the option is off.
template <class C>
struct RowMasks {
  const C* zoneout_c;  // how much of the old c stays: 0 or 1, in expectation the rate
  const C* zoneout_h;
  const C* dropout;  // factor of the candidate: 0 or 1 / (1 - rate)
};

template <class C>
class Masks {
 public:
  Masks(const ExtendedOptions& o, int64_t hidden_size)
      : o_(o),
        groups_(ceil_div(hidden_size, kPhiloxGroup)),
        key_{static_cast<uint32_t>(o.seed), static_cast<uint32_t>(o.seed >> 32)} {}

  void allocate(Arena& arena, int threads) {
    each_ = 3 * groups_ * kPhiloxGroup;
    values_ = arena.take<C>(threads * each_);
    words_ = arena.take<uint32_t>(threads * groups_ * kPhiloxGroup);
  }

  // Writes this thread's scratch: what it returns is good until the thread's next call.
  RowMasks<C> row(int thread, int direction, int64_t t, int64_t b) const {
    const int64_t size = groups_ * kPhiloxGroup;
    C* const c = values_ + thread * each_;
    C* const h = c + size;
    C* const candidate = h + size;
    uint32_t* const words = words_ + thread * size;
    const bool zoneout = o_.zoneout_c > 0 || o_.zoneout_h > 0;
    if (!o_.random) {
      for (int64_t i = 0; i < size && zoneout; ++i) {
        c[i] = static_cast<C>(o_.zoneout_c);
        h[i] = static_cast<C>(o_.zoneout_h);
      }
      return {o_.zoneout_c > 0 ? c : nullptr, o_.zoneout_h > 0 ? h : nullptr, nullptr};
    }
    const uint32_t stream = static_cast<uint32_t>(o_.layer * 4 + direction * 2);
    const uint32_t row = static_cast<uint32_t>(b), step = static_cast<uint32_t>(t);
    if (zoneout) {
      philox_row(key_, row, step, stream, groups_, words);
      const uint32_t c_below = philox_threshold(o_.zoneout_c),
                     h_below = philox_threshold(o_.zoneout_h);
      for (int64_t i = 0; i < size; ++i) {
        c[i] = (words[i] & 0xffffu) < c_below ? C(1) : C(0);
        h[i] = (words[i] >> 16) < h_below ? C(1) : C(0);
      }
    }
    if (o_.dropout > 0) {
      philox_row(key_, row, step, stream + 1, groups_, words);
      const uint32_t below = philox_threshold(o_.dropout);
      const C kept = static_cast<C>(1 / (1 - o_.dropout));
      for (int64_t i = 0; i < size; ++i) candidate[i] = (words[i] >> 16) < below ? C(0) : kept;
    }
    return {o_.zoneout_c > 0 ? c : nullptr, o_.zoneout_h > 0 ? h : nullptr,
            o_.dropout > 0 ? candidate : nullptr};
  }

 private:
  const ExtendedOptions& o_;
  const int64_t groups_;
  const PhiloxKey key_;
  int64_t each_ = 0;
  C* values_ = nullptr;
  uint32_t* words_ = nullptr;
};

// Calls f(offset, lanes) for the vectors of `size` values that lie side by side.
template <class V, class F>
FASTRNN_INLINE void each_vector(int64_t size, F&& f) {
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) f(i, V::kLanes);
  if (i < size) f(i, static_cast<int>(size - i));
}

template <class C>
struct RowStatistics {
  C mean, rstd;
};

// Of `size` values. Two passes: the sum of squares less the square of the sum would cancel. Four
// sums side by side: each addition waits for the one before it.
template <class V, class X, class C = typename V::Scalar>
FASTRNN_NOINLINE RowStatistics<C> row_statistics(const X* x, int64_t size, double eps) {
  constexpr int64_t kEach = V::kLanes, kAll = 4 * kEach;
  const int64_t whole = size / kAll * kAll;
  V s[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for (int64_t i = 0; i < whole; i += kAll) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) s[j] = s[j] + V::load(x + i + j * kEach);
  }
  each_vector<V>(size - whole,
                 [&](int64_t i, int k) { s[0] = s[0] + load_lanes<V>(x + whole + i, k); });
  const C mean = ((s[0] + s[1]) + (s[2] + s[3])).sum() / static_cast<C>(size);
  V q[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  const V center = V::set1(mean);
  for (int64_t i = 0; i < whole; i += kAll) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const V d = V::load(x + i + j * kEach) - center;
      q[j] = fma(d, d, q[j]);
    }
  }
  each_vector<V>(size - whole, [&](int64_t i, int k) {
    alignas(64) C apart[V::kLanes];
    V d = load_lanes<V>(x + whole + i, k) - center;
    if (k < V::kLanes) {  // lanes beyond the end count for nothing
      d.store(apart);
      d = V::load(apart, k);
    }
    q[0] = fma(d, d, q[0]);
  });
  const C variance = ((q[0] + q[1]) + (q[2] + q[3])).sum() / static_cast<C>(size);
  return {mean, C(1) / std::sqrt(variance + static_cast<C>(eps))};
}

// d, the gradient of normalised values x^, in place to that of what was normalised:
// rstd (d - mean(d) - x^ mean(d x^)).
template <class V, class X, class C = typename V::Scalar>
FASTRNN_NOINLINE void row_norm_backward(const X* normed, C rstd, int64_t size, C* d) {
  V sum = V::zero(), product = V::zero();
  each_vector<V>(size, [&](int64_t i, int k) {
    const V g = load_lanes<V>(d + i, k);
    sum = sum + g;
    product = fma(g, load_lanes<V>(normed + i, k), product);
  });
  const V mean = V::set1(sum.sum() / static_cast<C>(size));
  const V slope = V::set1(product.sum() / static_cast<C>(size));
  each_vector<V>(size, [&](int64_t i, int k) {
    const V g = load_lanes<V>(d + i, k);
    const V x = load_lanes<V>(normed + i, k);
    store_lanes(V::set1(rstd) * fnma(x, slope, g - mean), d + i, k);
  });
}

}  // namespace
}  // namespace fastrnn::cpu
