// What options put inside the recurrence (layer_shape.h, Inside), for every pass: masks, and the
// normalisation of a row.
//
// With any of them a step has two phases: the products, tile by tile into memory, and the rest, one
// whole row after the other. Threads that share rows divide the first by units and the second by
// rows, with a barrier after either; a row is worked on in the same order whoever does it.
//
// Numbers N are vectors or, where a pass is differentiated, dual numbers of vectors.
#pragma once
#include "cpu/kernels/cells.h"
#include "cpu/kernels/dual.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/philox.h"
#include "cpu/kernels/plan.h"

namespace fastrnn::cpu {
namespace {

// Columns of h's product that have a place of their own, behind those that the input's adds to.
FASTRNN_INLINE int apart_columns(const cells::Traits& cell, Norm norm) {
  if (norm == Norm::kRecurrent) return cell.products;
  return norm == Norm::kJoint ? 0 : cell.columns - cell.products;
}

// ---- masks -----------------------------------------------------------------------------------

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
  Masks(const Inside& o, int64_t hidden_size, int threads, Arena& arena)
      : o_(o),
        size_(ceil_div(hidden_size, kPhiloxGroup) * kPhiloxGroup),
        key_{static_cast<uint32_t>(o.seed), static_cast<uint32_t>(o.seed >> 32)} {
    values_ = arena.take<C>(o.any ? threads * 3 * size_ : 0);
    words_ = arena.take<uint32_t>(o.any ? threads * size_ : 0);
  }

  // Writes this thread's scratch: what it returns is good until the thread's next call.
  RowMasks<C> row(int thread, int direction, int64_t t, int64_t b) const {
    C* const c = values_ + thread * 3 * size_;
    C* const h = c + size_;
    C* const candidate = h + size_;
    uint32_t* const words = words_ + thread * size_;
    const bool zoneout = o_.zoneout_c > 0 || o_.zoneout_h > 0;
    if (!o_.random) {
      for (int64_t i = 0; i < size_ && zoneout; ++i) {
        c[i] = static_cast<C>(o_.zoneout_c);
        h[i] = static_cast<C>(o_.zoneout_h);
      }
      return {o_.zoneout_c > 0 ? c : nullptr, o_.zoneout_h > 0 ? h : nullptr, nullptr};
    }
    const uint32_t stream = o_.stream + static_cast<uint32_t>(2 * direction);
    const uint32_t row = static_cast<uint32_t>(b),
                   step = static_cast<uint32_t>(o_.first_step + o_.step * t);
    if (zoneout) {
      philox_row(key_, row, step, stream, size_ / kPhiloxGroup, words);
      const uint32_t c_below = philox_threshold(o_.zoneout_c),
                     h_below = philox_threshold(o_.zoneout_h);
      for (int64_t i = 0; i < size_; ++i) {
        c[i] = (words[i] & 0xffffu) < c_below ? C(1) : C(0);
        h[i] = (words[i] >> 16) < h_below ? C(1) : C(0);
      }
    }
    if (o_.dropout > 0) {
      philox_row(key_, row, step, stream + 1, size_ / kPhiloxGroup, words);
      const uint32_t below = philox_threshold(o_.dropout);
      const C kept = static_cast<C>(1 / (1 - o_.dropout));
      for (int64_t i = 0; i < size_; ++i) candidate[i] = (words[i] >> 16) < below ? C(0) : kept;
    }
    return {o_.zoneout_c > 0 ? c : nullptr, o_.zoneout_h > 0 ? h : nullptr,
            o_.dropout > 0 ? candidate : nullptr};
  }

 private:
  const Inside& o_;
  const int64_t size_;  // of a row's masks
  const PhiloxKey key_;
  C* values_;
  uint32_t* words_;
};

// ---- numbers ---------------------------------------------------------------------------------

// Values of a row in memory: dual numbers have their tangents, null for zeros, elsewhere.
template <class X>
struct Source {
  const X *values, *tangents;

  Source at(int64_t i) const { return {values + i, tangents ? tangents + i : nullptr}; }
};

template <class N>
struct Numbers {  // N = V
  using V = N;
  static constexpr int kParts = 1;
  template <class X>
  static FASTRNN_INLINE N load(Source<X> from, int64_t i, int k) {
    return load_lanes<V>(from.values + i, k);
  }
  // Scratch has tangents `apart` elements behind the values.
  template <class C>
  static FASTRNN_INLINE N load(const C* from, int64_t, int k) {
    return load_lanes<V>(from, k);
  }
  template <class C>
  static FASTRNN_INLINE void store(N x, C* to, int64_t, int k) {
    store_lanes(x, to, k);
  }
  static FASTRNN_INLINE N of(V value, V) { return value; }
  // What a pass is about: the values, or their tangents.
  static FASTRNN_INLINE V result(N x) { return x; }
  static FASTRNN_INLINE N mean(N sum, int64_t count) {
    using C = typename V::Scalar;
    return V::set1(sum.sum() / static_cast<C>(count));
  }
  // 1 / sqrt(variance + eps), of a variance that is the same in all lanes.
  template <class C>
  static FASTRNN_INLINE N rstd(N variance, C eps) {
    alignas(64) C lanes[V::kLanes];
    variance.store(lanes);
    return V::set1(C(1) / std::sqrt(lanes[0] + eps));
  }
  static FASTRNN_INLINE N first_lanes(N x, int k) {
    if (k == V::kLanes) return x;
    alignas(64) typename V::Scalar apart[V::kLanes];
    x.store(apart);
    return V::load(apart, k);
  }
};

template <class W>
struct Numbers<Dual<W>> {
  using N = Dual<W>;
  using V = W;
  static constexpr int kParts = 2;
  template <class X>
  static FASTRNN_INLINE N load(Source<X> from, int64_t i, int k) {
    return {load_lanes<V>(from.values + i, k),
            from.tangents ? load_lanes<V>(from.tangents + i, k) : V::zero()};
  }
  template <class C>
  static FASTRNN_INLINE N load(const C* from, int64_t apart, int k) {
    return {load_lanes<V>(from, k), load_lanes<V>(from + apart, k)};
  }
  template <class C>
  static FASTRNN_INLINE void store(N x, C* to, int64_t apart, int k) {
    store_lanes(x.v, to, k);
    store_lanes(x.t, to + apart, k);
  }
  static FASTRNN_INLINE N of(V value, V tangent) { return {value, tangent}; }
  static FASTRNN_INLINE V result(N x) { return x.t; }
  static FASTRNN_INLINE N mean(N sum, int64_t count) {
    return {Numbers<V>::mean(sum.v, count), Numbers<V>::mean(sum.t, count)};
  }
  template <class C>
  static FASTRNN_INLINE N rstd(N variance, C eps) {
    const V r = Numbers<V>::rstd(variance.v, eps);
    return {r, V::set1(C(-0.5)) * r * r * r * variance.t};
  }
  static FASTRNN_INLINE N first_lanes(N x, int k) {
    return {Numbers<V>::first_lanes(x.v, k), Numbers<V>::first_lanes(x.t, k)};
  }
};

// ---- rows ------------------------------------------------------------------------------------

// Calls f(offset, lanes) for the vectors of `size` values that lie side by side.
template <class V, class F>
FASTRNN_INLINE void each_vector(int64_t size, F&& f) {
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) f(i, V::kLanes);
  if (i < size) f(i, static_cast<int>(size - i));
}

template <class N>
struct RowStatistics {
  N mean, rstd;  // the same in all lanes
};

// Of `columns` times `size` values in scratch, a column's `stride` from the next one's; of dual
// numbers as Numbers says. Two passes: the sum of squares less the square of the sum would cancel.
// Four sums side by side: each addition waits for the one before it.
template <class N, class C>
FASTRNN_NOINLINE RowStatistics<N> row_statistics(const C* x, int64_t apart, int columns,
                                                 int64_t size, int64_t stride, double eps) {
  using Ns = Numbers<N>;
  using V = typename Ns::V;
  constexpr int64_t kEach = V::kLanes, kAll = 4 * kEach;
  const int64_t whole = size / kAll * kAll;
  const auto sum_of = [&](auto&& add) __attribute__((always_inline)) {
    N s[4] = {N::set1(0), N::set1(0), N::set1(0), N::set1(0)};
    for (int c = 0; c < columns; ++c) {
      const C* const from = x + c * stride;
      for (int64_t i = 0; i < whole; i += kAll) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          s[j] = add(s[j], Ns::load(from + i + j * kEach, apart, V::kLanes), V::kLanes);
        }
      }
      each_vector<V>(size - whole, [&](int64_t i, int k) __attribute__((always_inline)) {
        s[0] = add(s[0], Ns::load(from + whole + i, apart, k), k);
      });
    }
    return (s[0] + s[1]) + (s[2] + s[3]);
  };
  const int64_t count = columns * size;
  const N mean = Ns::mean(sum_of([](N s, N v, int) { return s + v; }), count);
  const N variance = Ns::mean(sum_of([&](N s, N v, int k) {
                                // Lanes beyond the end count for nothing.
                                const N d = Ns::first_lanes(v - mean, k);
                                return fma(d, d, s);
                              }),
                              count);
  return {mean, Ns::rstd(variance, static_cast<C>(eps))};
}

// d, the gradient of normalised values x^ (both in scratch), in place to that of what was
// normalised: rstd (d - mean(d) - x^ mean(d x^)).
template <class N, class C>
FASTRNN_NOINLINE void row_norm_backward(const C* normed, N rstd, int64_t size, int64_t apart,
                                        C* d) {
  using Ns = Numbers<N>;
  using V = typename Ns::V;
  N sum = N::set1(0), product = N::set1(0);
  each_vector<V>(size, [&](int64_t i, int k) {
    const N g = Ns::load(d + i, apart, k);
    sum = sum + g;
    product = fma(g, Ns::load(normed + i, apart, k), product);
  });
  const N mean = Ns::mean(sum, size), slope = Ns::mean(product, size);
  each_vector<V>(size, [&](int64_t i, int k) {
    const N g = Ns::load(d + i, apart, k), x = Ns::load(normed + i, apart, k);
    Ns::store(rstd * fnma(x, slope, g - mean), d + i, apart, k);
  });
}

// What the two phases of a step that goes forward hand each other: the products of every row, in
// columns of units, and h as it enters the next product.
template <class S>
class RowMemory {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;

 public:
  RowMemory(const Inside& o, const LayerShape& s, int columns, Arena& arena)
      : o_(o),
        B_(s.steps.batch),
        H_(s.hidden_size),
        stride_(ceil_div(H_, L) * L),
        columns_(columns),
        row_stride_(columns * stride_ + L) {
    const int64_t rows = o.any ? B_ : 0;
    for (int d = 0; d < s.directions; ++d) {
      values_[d] = arena.take<C>(rows * row_stride_);
      h_in_[d] = arena.take<C>(o.h_scale ? rows * stride_ : 0);
    }
  }

  int64_t stride() const { return stride_; }
  int columns() const { return columns_; }
  // h times h_scale, of every row; null: as it is.
  const C* h_in(int d) const { return o_.h_scale ? h_in_[d] : nullptr; }
  FASTRNN_INLINE void put_h(int d, int64_t b, int64_t i, V h) const {
    if (!o_.h_scale) return;
    const S* const factor = static_cast<const S*>(o_.h_scale) + (d * B_ + b) * H_ + i;
    const int lanes = static_cast<int>(smaller(L, H_ - i));
    (h * load_lanes<V>(factor, lanes)).store(h_in_[d] + b * stride_ + i);
  }

  // [columns][stride] of a row.
  C* values(int d, int64_t b) const { return values_[d] + b * row_stride_; }
  // Takes over a tile [rows][vectors][columns][L] of units from vector v on.
  FASTRNN_NOINLINE void take(int d, int64_t v, int vectors, int64_t b, int rows,
                             const C* tile) const {
    for (int m = 0; m < rows; ++m) {
      for (int u = 0; u < vectors; ++u) {
        C* to = values(d, b + m) + (v + u) * L;
        for (int c = 0; c < columns_; ++c, to += stride_, tile += L) V::load(tile).store(to);
      }
    }
  }

 private:
  const Inside& o_;
  const int64_t B_, H_, stride_;
  const int columns_;
  const int64_t row_stride_;  // a vector more than its columns, so that rows fall into all sets
  C *values_[2], *h_in_[2];
};

// Exactly the old value where the mask is 1, exactly the new one where it is 0.
template <class N, class C>
FASTRNN_INLINE N blend(const C* mask, int64_t at, N old_value, N new_value) {
  if (!mask) return new_value;
  using Ns = Numbers<N>;
  using V = typename Ns::V;
  const V keep = V::load(mask + at), rest = V::set1(1) - keep;
  return fma(Ns::of(keep, V::zero()), old_value, Ns::of(rest, V::zero()) * new_value);
}

// Of a row whose c is normalised before h is made of it.
template <class S>
struct CellNorm {
  Source<S> gain, bias;  // bias.values null: none
  double eps;
};

// A cell's vectors for the units from i on.
template <class Cell, class N, class S>
FASTRNN_INLINE void load_own(Source<S> w_ch, int64_t size, int64_t i, N (&own)[cells::kOwn<Cell>]) {
  using Ns = Numbers<N>;
  const int lanes = static_cast<int>(smaller(Ns::V::kLanes, size - i));
  for (int k = 0; k < Cell::kVectors; ++k) own[k] = Ns::load(w_ch, k * size + i, lanes);
}

// The new states of a row of `size` units: recurrent dropout, the cell, normalisation of c,
// zoneout. Of the vector of units that begins at i, kept(i, a) gives what activation left and
// before(i, s) the states before; late(i, s, a) does what a cell with vectors does before emit;
// put(i, h, c) takes the states after, c of a cell that has one. norm: null, or with scratch for
// (1 + K) rows of `stride` numbers.
template <class Cell, class N, class S, class C, class Kept, class Before, class Late, class Put>
FASTRNN_INLINE void new_states(int64_t size, int64_t stride, RowMasks<C> masks,
                               const CellNorm<S>* norm, C* scratch, Kept&& kept, Before&& before,
                               Late&& late, Put&& put) {
  using Ns = Numbers<N>;
  using V = typename Ns::V;
  constexpr int L = V::kLanes, K = Cell::kColumns, kStates = Cell::kStates;
  constexpr bool kHasC = kStates > 1;
  const int64_t apart = (1 + K) * stride;
  const auto finish = [&](int64_t i, N(&a)[K], const N(&old)[kStates], N(&states)[kStates],
                          N fresh_c) __attribute__((always_inline)) {
    if constexpr (Cell::kVectors > 0) late(i, states, a);
    Cell::emit(a, states);
    const N c = kHasC ? blend(masks.zoneout_c, i, old[kStates - 1], fresh_c) : fresh_c;
    put(i, blend(masks.zoneout_h, i, old[0], states[0]), c);
  };
  for (int64_t i = 0; i < size; i += L) {
    N a[K], old[kStates], states[kStates];
    kept(i, a);
    before(i, old);
    if constexpr (Cell::kCandidate >= 0) {
      N& candidate = a[Cell::kCandidate];
      if (masks.dropout) candidate = candidate * Ns::of(V::load(masks.dropout + i), V::zero());
    }
    Cell::update(a, old, states);
    if (!kHasC || !norm) {
      finish(i, a, old, states, states[kStates - 1]);
      continue;
    }
    Ns::store(states[kStates - 1], scratch + i, apart, L);
    for (int k = 0; k < K; ++k) Ns::store(a[k], scratch + (k + 1) * stride + i, apart, L);
  }
  if (!kHasC || !norm) return;
  const RowStatistics<N> of = row_statistics<N>(scratch, apart, 1, size, 0, norm->eps);
  for (int64_t i = 0; i < size; i += L) {
    const int lanes = static_cast<int>(smaller(L, size - i));
    N a[K], old[kStates], states[kStates];
    for (int k = 0; k < K; ++k) a[k] = Ns::load(scratch + (k + 1) * stride + i, apart, L);
    before(i, old);
    const N fresh = Ns::load(scratch + i, apart, L);
    N shift = N::set1(0);
    if (norm->bias.values) shift = Ns::load(norm->bias, i, lanes);
    states[0] = N::set1(0);
    states[kStates - 1] = fma((fresh - of.mean) * of.rstd, Ns::load(norm->gain, i, lanes), shift);
    finish(i, a, old, states, fresh);
  }
}

}  // namespace
}  // namespace fastrnn::cpu
