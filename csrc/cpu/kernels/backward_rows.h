// The second phase of a backward step with options inside the recurrence (inside.h), as far as no
// cell has a say in it: masks, the way back through the normalisations of products, and the sums
// for gains, biases and cells' vectors.
//
// Invariants: gradients of gains and biases are summed over time row by row, each row by itself,
// and over rows at the end: the same sums whoever works on a row. The derivative of all this in a
// direction is the same on dual numbers, whose tangents are the results.
#pragma once
#include "cpu/kernels/inside.h"
#include "cpu/kernels/walk.h"

namespace fastrnn::cpu {
namespace {

template <class S>
class BackwardRows {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;

 public:
  enum Sum { kBIh, kBHh, kGainIh, kGainHh, kCellGain, kCellBias, kWCh, kSums };

  // One row of a step.
  struct Row {
    int d;
    int64_t t, b;
    int64_t n;       // in tensors [D, N, *]
    int64_t before;  // the same of its row a step before; below 0: it had the initial state
    bool joined;     // c starts from the gradient of the final state
    const C* d_h;    // what reaches h
    C *d_skip, *d_c;
    C* next;    // [G*H], gradients of h's product, for the next step
    S* target;  // [columns]
  };

  // A thread's scratch for one row, each with its tangents `wide` elements behind it.
  struct Scratch {
    C *d_x, *d_u;      // [G*H], of what became of the input's product and of h's
    C* scaled;         // [G*H], a gradient times a gain
    C *cell, *d_cell;  // [stride], where c is normalised
    C* d_a;            // [S][stride]
  };

  BackwardRows(const BackwardParams& params, const Walk<S>& walk, int threads, Arena& arena)
      : p(params),
        w(walk),
        products_(w.cell.products * w.H),
        gate_stride_(products_ + L),
        masks_(p.inside, w.H, threads, arena) {
    for (int d = 0; d < w.s.directions; ++d) {
      for (int i = 0; i < kSums; ++i) {
        wants_[d][i] = result(d, i);
        sums_[d][i] = wants_[d][i] ? arena.take<C>(w.B * stride_of(i)) : nullptr;
      }
    }
    wide = 3 * gate_stride_ + (2 + w.cell.columns) * w.stride;
    scratch_elements_ = p.inside.any ? (p.direction ? 2 : 1) * wide : 0;
    scratch_ = arena.take<C>(threads * scratch_elements_);
  }
  BackwardRows(const BackwardRows&) = delete;

  RowMasks<C> masks(const Row& row, int thread) const {
    return masks_.row(thread, row.d, row.t, row.b);
  }
  Scratch scratch(int thread) const {
    C* const memory = scratch_ + thread * scratch_elements_;
    C* const narrow = memory + 3 * gate_stride_;
    return {memory, memory + gate_stride_, memory + 2 * gate_stride_,
            narrow, narrow + w.stride,     narrow + 2 * w.stride};
  }

  // The place of row b's sums, or null.
  C* sums_of(const Row& row, int i) const {
    return wants_[row.d][i] ? sums_[row.d][i] + row.b * stride_of(i) : nullptr;
  }

  void clear_sums(int d, Range rows) const {
    for (int i = 0; i < kSums; ++i) {
      if (!wants_[d][i] || rows.size() <= 0) continue;
      std::memset(sums_[d][i] + rows.begin * stride_of(i), 0,
                  static_cast<size_t>(rows.size() * stride_of(i)) * sizeof(C));
    }
  }

  // The gains' and biases' gradients: sums over rows, each thread some columns.
  void sum_rows(const Worker& worker) const {
    for (int d = 0; d < w.s.directions; ++d) {
      for (int i = 0; i < kSums; ++i) {
        if (!wants_[d][i]) continue;
        const int64_t columns = columns_of(i);
        const Range mine = part(ceil_div(columns, L), worker.threads, worker.thread);
        for (int64_t j = mine.begin * L; j < smaller(mine.end * L, columns); j += L) {
          const int k = static_cast<int>(smaller(L, columns - j));
          V all = V::zero();
          for (int64_t b0 = 0; b0 < w.B; b0 += kSumRows) {
            V some = V::zero();
            for (int64_t b = b0; b < smaller(w.B, b0 + kSumRows); ++b) {
              some = some + load_lanes<V>(sums_[d][i] + b * stride_of(i) + j, k);
            }
            all = all + some;
          }
          store_lanes(all, static_cast<S*>(result(d, i)) + j, k);
        }
      }
    }
  }

  static Source<S> source(const void* values, const void* tangents) {
    return {static_cast<const S*>(values), static_cast<const S*>(tangents)};
  }
  const BackwardDirection& direction() const {
    static constexpr BackwardDirection kNone{};
    return p.direction ? *p.direction : kNone;
  }

  // From d_x and d_u on: back through the normalisations, with the sums for gains and biases.
  template <class N>
  FASTRNN_NOINLINE void through_norms(const Row& row, const Scratch& scratch) const {
    const Weights& weights = p.weights[row.d];
    const Weights& t = direction().t_weights[row.d];
    if (p.inside.norm == Norm::kRecurrent) {
      through_norm<N>(row, scratch, 0, scratch.d_x, source(weights.gain_ih, t.gain_ih),
                      sums_of(row, kGainIh), sums_of(row, kBIh), row.target,
                      static_cast<S*>(nullptr));
      through_norm<N>(row, scratch, 1, scratch.d_u, source(weights.gain_hh, t.gain_hh),
                      sums_of(row, kGainHh), sums_of(row, kBHh), row.next, row.target + products_);
    } else if (p.inside.norm == Norm::kJoint) {
      through_norm<N>(row, scratch, 0, scratch.d_u, source(weights.gain_hh, t.gain_hh),
                      sums_of(row, kGainHh), sums_of(row, kBHh), row.next, row.target);
    }
  }

  const BackwardParams& p;
  const Walk<S>& w;
  int64_t wide;  // of a thread's scratch for one row

 private:
  void* result(int d, int i) const {
    const InsideGradients& r = p.inside_gradients[d];
    void* const each[kSums] = {r.d_b_ih,      r.d_b_hh,      r.d_gain_ih, r.d_gain_hh,
                               r.d_cell_gain, r.d_cell_bias, r.d_w_ch};
    return each[i];
  }
  int64_t columns_of(int i) const {
    return i <= kGainHh ? products_ : i <= kCellBias ? w.H : w.cell.vectors * w.H;
  }
  int64_t stride_of(int i) const {
    return i == kCellGain || i == kCellBias ? w.stride : columns_of(i) + L;
  }

  // d, the gradient of gain * x^ + bias, to that of what was normalised, in `to` and, unless null,
  // `also`: rstd (g - mean(g) - x^ mean(g x^)) with g = gain d. Adds to the gain's and bias's sums
  // that are not null.
  template <class N, class To>
  FASTRNN_INLINE void through_norm(const Row& row, const Scratch& scratch, int part, const C* d,
                                   Source<S> gain, C* gains, C* biases, To* to, S* also) const {
    using Ns = Numbers<N>;
    const int64_t columns = products_, place = row.n * p.inside.parts() + part;
    const Source<S> normed = source(p.normed, direction().t_normed).at(place * columns);
    const auto statistic = [&](const void* of) {
      return of ? V::set1(static_cast<const C*>(of)[place]) : V::zero();
    };
    const N rstd = Ns::of(statistic(p.rstd), statistic(direction().t_rstd));
    N sum = N::set1(0), product = N::set1(0);
    each_vector<V>(columns, [&](int64_t i, int k) {
      const N d_y = Ns::load(d + i, wide, k), x = Ns::load(normed, i, k);
      if (gains) {
        store_lanes(load_lanes<V>(gains + i, k) + Ns::result(d_y * x), gains + i, k);
      }
      if (biases) store_lanes(load_lanes<V>(biases + i, k) + Ns::result(d_y), biases + i, k);
      const N g = d_y * Ns::load(gain, i, k);
      sum = sum + g;
      product = fma(g, x, product);  // beyond the end g is zero, whatever x is
      Ns::store(g, scratch.scaled + i, wide, k);
    });
    const N mean = Ns::mean(sum, columns), slope = Ns::mean(product, columns);
    each_vector<V>(columns, [&](int64_t i, int k) {
      const N g = Ns::load(scratch.scaled + i, wide, k), x = Ns::load(normed, i, k);
      const V value = Ns::result(rstd * fnma(x, slope, g - mean));
      store_lanes(value, to + i, k);
      if (also) store_lanes(value, also + i, k);
    });
  }

  const int64_t products_;     // G*H
  const int64_t gate_stride_;  // of a row of products in scratch
  const Masks<C> masks_;
  C* sums_[2][kSums];  // over time, of every row
  bool wants_[2][kSums];
  int64_t scratch_elements_;
  C* scratch_;
};

}  // namespace
}  // namespace fastrnn::cpu
