// The second phase of a backward step with options inside the recurrence (inside.h): from what
// reaches a row's h and c to the gradients of its products, and to those of gains and biases.
//
// Invariants: gradients of gains and biases are summed over time row by row, each row by itself,
// and over rows at the end: the same sums whoever works on a row. The derivative of all this in a
// direction is the same on dual numbers, whose tangents are the results.
#pragma once
#include "cpu/kernels/inside.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class BackwardRows {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;
  static constexpr int kSums = 7;  // of b_ih, b_hh, gain_ih, gain_hh, cell_gain, cell_bias, w_ch

 public:
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

  BackwardRows(const BackwardParams& p, int threads, void* workspace)
      : p_(p),
        o_(p.inside),
        s_(p.shape),
        H_(s_.hidden_size),
        vectors_(ceil_div(H_, L)),
        stride_(vectors_ * L),
        gate_stride_(G * H_ + L),
        arena_(workspace),
        masks_(o_, H_, threads, arena_) {
    for (int d = 0; d < s_.directions; ++d) {
      for (int i = 0; i < kSums; ++i) {
        sums_[d][i] = result(d, i) ? arena_.take<C>(s_.steps.batch * stride_of(i)) : nullptr;
        wants_[d][i] = result(d, i);
      }
    }
    wide_ = 3 * gate_stride_ + (2 + K) * stride_;
    scratch_elements_ = o_.any ? (p.direction ? 2 : 1) * wide_ : 0;
    scratch_ = arena_.take<C>(threads * scratch_elements_);
  }
  size_t bytes() const { return arena_.used(); }
  int columns() const { return G + apart_columns<Cell>(o_.norm); }
  // Whether h reaches the next one by other ways than the product.
  bool skips() const { return Cell::kCarriesH || o_.zoneout_h > 0; }

  void clear_sums(int d, Range rows) const {
    for (int i = 0; i < kSums; ++i) {
      if (!wants_[d][i] || rows.size() <= 0) continue;
      std::memset(sums_[d][i] + rows.begin * stride_of(i), 0,
                  static_cast<size_t>(rows.size() * stride_of(i)) * sizeof(C));
    }
  }

  void apply(const Row& row, int thread) const {
    const RowMasks<C> masks = masks_.row(thread, row.d, row.t, row.b);
    C* const scratch = scratch_ + thread * scratch_elements_;
    if (p_.direction) {
      apply<Dual<V>>(row, scratch, masks);
    } else {
      apply<V>(row, scratch, masks);
    }
  }

  // The gains' and biases' gradients: sums over rows, each thread some columns.
  void sum_rows(const Worker& worker) const {
    for (int d = 0; d < s_.directions; ++d) {
      for (int i = 0; i < kSums; ++i) {
        if (!wants_[d][i]) continue;
        const int64_t columns = columns_of(i);
        const Range mine = part(ceil_div(columns, L), worker.threads, worker.thread);
        for (int64_t j = mine.begin * L; j < smaller(mine.end * L, columns); j += L) {
          const int k = static_cast<int>(smaller(L, columns - j));
          V all = V::zero();
          for (int64_t b0 = 0; b0 < s_.steps.batch; b0 += kSumRows) {
            V some = V::zero();
            for (int64_t b = b0; b < smaller(s_.steps.batch, b0 + kSumRows); ++b) {
              some = some + load_lanes<V>(sums_[d][i] + b * stride_of(i) + j, k);
            }
            all = all + some;
          }
          store_lanes(all, static_cast<S*>(result(d, i)) + j, k);
        }
      }
    }
  }

 private:
  void* result(int d, int i) const {
    const InsideGradients& r = p_.inside_gradients[d];
    void* const each[kSums] = {r.d_b_ih,      r.d_b_hh,      r.d_gain_ih, r.d_gain_hh,
                               r.d_cell_gain, r.d_cell_bias, r.d_w_ch};
    return each[i];
  }
  int64_t columns_of(int i) const { return i < 4 ? G * H_ : i < 6 ? H_ : Cell::kVectors * H_; }
  int64_t stride_of(int i) const { return i < 4 || i == 6 ? columns_of(i) + L : stride_; }
  // The place of row b's sums, or null.
  C* sums_of(const Row& row, int i) const {
    return wants_[row.d][i] ? sums_[row.d][i] + row.b * stride_of(i) : nullptr;
  }

  Source<S> source(const void* values, const void* tangents) const {
    return {static_cast<const S*>(values), static_cast<const S*>(tangents)};
  }

  // A thread's scratch for one row, each with its tangents behind it.
  template <class N>
  struct Scratch {
    C *d_x, *d_u;      // [G*H], of what became of the input's product and of h's
    C* scaled;         // [G*H], a gradient times a gain
    C *cell, *d_cell;  // [stride], where c is normalised; d_a: [K][stride]
    C* d_a;
  };

  // Phases over the whole row where c is normalised, else all of it vector by vector.
  template <class N>
  FASTRNN_NOINLINE void apply(const Row& row, C* memory, RowMasks<C> masks) const {
    using Ns = Numbers<N>;
    C* const narrow = memory + 3 * gate_stride_;
    const Scratch<N> scratch{memory, memory + gate_stride_, memory + 2 * gate_stride_,
                             narrow, narrow + stride_,      narrow + 2 * stride_};
    const bool normalises_c = kHasC && p_.weights[row.d].cell_gain;
    if constexpr (kHasC) {
      if (normalises_c) back_to_c<N>(row, scratch, masks);
    }
    for (int64_t v = 0; v < vectors_; ++v) {
      const int k = lanes(v);
      Unit<N> u;
      load_unit(row, v, masks, u);
      N d_states[Cell::kStates], d_before[Cell::kStates], d[K];
      for (int s = 0; s < Cell::kStates; ++s) d_states[s] = d_before[s] = N::set1(0);
      if (normalises_c) {
        for (int i = 0; i < K; ++i) {
          d[i] = Ns::load(scratch.d_a + i * stride_ + v * L, wide_, L);
        }
        d_states[Cell::kStates - 1] = Ns::load(scratch.d_cell + v * L, wide_, L);
      } else {
        d_states[0] = through_zoneout<N>(row, v, masks, d_before[0]);
        Cell::update(u.kept, u.before, u.after);
        Cell::emit_backward(u.kept, u.after, d_states, d);
        if constexpr (Cell::kVectors > 0) finish_backward<N>(row, v, u, d_states, d);
      }
      if constexpr (kHasC) {
        const N d_c = arriving_d_c<N>(row, v);
        const N kept = masks.zoneout_c ? factor<N>(masks.zoneout_c, v) : N::set1(0);
        d_before[1] = d_c * kept;
        d_states[1] = d_states[1] + d_c * (N::set1(1) - kept);
      }
      Cell::update_backward(u.kept, u.before, d_states, d_before, d);
      if constexpr (Cell::kCandidate >= 0) {
        d[Cell::kCandidate] = d[Cell::kCandidate] * u.factor;
        u.kept[Cell::kCandidate] = u.candidate;
      }
      Cell::activate_backward(u.kept, d);
      if constexpr (Cell::kVectors > 0) {
        N own[cells::kOwn<Cell>], d_own[cells::kOwn<Cell>];
        load_vectors(row, v, own, d_own);
        Cell::enter_backward(own, u.before, d, d_before, d_own);
        add_vectors<N>(row, v, d_own);
      }
      if constexpr (kHasC) Ns::result(d_before[1]).store(row.d_c + v * L);
      if (skips() && !normalises_c) Ns::result(d_before[0]).store(row.d_skip + v * L);
      if (o_.norm == Norm::kNone) {
        for (int i = 0; i < K; ++i) {
          store_lanes(Ns::result(d[i]), row.target + i * H_ + v * L, k);
        }
        for (int g = 0; g < G; ++g) {
          const V product = Ns::result(d[cells::recurrent_column<Cell>(g)]);
          store_lanes(product, row.next + g * H_ + v * L, k);
        }
        continue;
      }
      for (int g = 0; g < G; ++g) {
        Ns::store(d[g], scratch.d_x + g * H_ + v * L, wide_, k);
        Ns::store(d[cells::recurrent_column<Cell>(g)], scratch.d_u + g * H_ + v * L, wide_, k);
      }
    }
    through_norms(row, scratch);
  }

  // What a step of one row and vector was made of.
  template <class N>
  struct Unit {
    N kept[K], before[Cell::kStates], after[Cell::kStates];
    N candidate, factor;  // of recurrent dropout: what it multiplied, and by what
  };
  template <class N>
  FASTRNN_INLINE void load_unit(const Row& row, int64_t v, RowMasks<C> masks, Unit<N>& u) const {
    const Source<S> gates = source(p_.gates, direction().t_gates).at(row.n * K * H_ + v * L);
    for (int i = 0; i < K; ++i) u.kept[i] = Numbers<N>::load(gates, i * H_, lanes(v));
    const BackwardDirection& t = direction();
    u.before[0] = N::set1(0);
    if constexpr (Cell::kCarriesH) {
      u.before[0] = before<N>(row, v, source(p_.hidden, t.t_hidden), source(p_.h0, t.t_h0));
    }
    if constexpr (kHasC) {
      u.before[1] = before<N>(row, v, source(p_.cells, t.t_cells), source(p_.c0, t.t_c0));
    }
    if constexpr (Cell::kCandidate >= 0) {
      u.candidate = u.kept[Cell::kCandidate];
      u.factor = masks.dropout ? factor<N>(masks.dropout, v) : N::set1(1);
      u.kept[Cell::kCandidate] = u.candidate * u.factor;
    }
  }

  // Vectors of the cell, and zeros for their gradients.
  template <class N>
  FASTRNN_INLINE void load_vectors(const Row& row, int64_t v, N (&own)[cells::kOwn<Cell>],
                                   N (&d_own)[cells::kOwn<Cell>]) const {
    load_own<Cell>(source(p_.weights[row.d].w_ch, direction().t_weights[row.d].w_ch), H_, v * L,
                   own);
    for (N& d : d_own) d = N::set1(0);
  }
  template <class N>
  FASTRNN_INLINE void add_vectors(const Row& row, int64_t v,
                                  const N (&d_own)[cells::kOwn<Cell>]) const {
    C* const sums = sums_of(row, 6);
    if (!sums) return;
    for (int i = 0; i < Cell::kVectors; ++i) {
      C* const sum = sums + i * H_ + v * L;
      store_lanes(load_lanes<V>(sum, lanes(v)) + Numbers<N>::result(d_own[i]), sum, lanes(v));
    }
  }
  template <class N>
  FASTRNN_INLINE void finish_backward(const Row& row, int64_t v, const Unit<N>& u,
                                      N (&d_states)[Cell::kStates], N (&d)[K]) const {
    N own[cells::kOwn<Cell>], d_own[cells::kOwn<Cell>];
    load_vectors(row, v, own, d_own);
    Cell::finish_backward(own, u.after, u.kept, d_states, d, d_own);
    add_vectors<N>(row, v, d_own);
  }

  // The value that a state had before this step.
  template <class N>
  FASTRNN_INLINE N before(const Row& row, int64_t v, Source<S> saved, Source<S> initial) const {
    if (row.before >= 0) return Numbers<N>::load(saved, row.before * H_ + v * L, lanes(v));
    const int64_t at = (row.d * s_.steps.batch + row.b) * H_ + v * L;
    const auto of = [&](const S* from) {
      return from ? load_lanes<V>(from + at, lanes(v)) : V::zero();
    };
    return Numbers<N>::of(of(initial.values), of(initial.tangents));
  }

  // From h to c as it was before normalisation: leaves its gradient, and those of the columns that
  // h was made with.
  template <class N>
  FASTRNN_INLINE void back_to_c(const Row& row, const Scratch<N>& scratch,
                                RowMasks<C> masks) const {
    using Ns = Numbers<N>;
    const Weights& w = p_.weights[row.d];
    const Weights& t = direction().t_weights[row.d];
    for (int64_t v = 0; v < vectors_; ++v) {
      Unit<N> u;
      load_unit(row, v, masks, u);
      Cell::update(u.kept, u.before, u.after);
      Ns::store(u.after[1], scratch.cell + v * L, wide_, L);
    }
    const RowStatistics<N> of = row_statistics<N>(scratch.cell, wide_, 1, H_, 0, o_.eps);
    C* const gains = sums_of(row, 4);
    C* const biases = sums_of(row, 5);
    for (int64_t v = 0; v < vectors_; ++v) {
      const int k = lanes(v);
      Unit<N> u;
      load_unit(row, v, masks, u);
      N skip, d_states[2], d[K];
      d_states[0] = through_zoneout<N>(row, v, masks, skip);
      d_states[1] = N::set1(0);
      if (skips()) Ns::result(skip).store(row.d_skip + v * L);
      const N normed = (Ns::load(scratch.cell + v * L, wide_, L) - of.mean) * of.rstd;
      Ns::store(normed, scratch.cell + v * L, wide_, L);
      const N gain = Ns::load(source(w.cell_gain, t.cell_gain), v * L, k);
      N shift = N::set1(0);
      if (w.cell_bias) shift = Ns::load(source(w.cell_bias, t.cell_bias), v * L, k);
      u.after[0] = N::set1(0);
      u.after[1] = fma(normed, gain, shift);
      for (N& x : d) x = N::set1(0);
      Cell::emit_backward(u.kept, u.after, d_states, d);
      if constexpr (Cell::kVectors > 0) finish_backward<N>(row, v, u, d_states, d);
      for (int i = 0; i < K; ++i) Ns::store(d[i], scratch.d_a + i * stride_ + v * L, wide_, L);
      if (gains) {
        (V::load(gains + v * L) + Ns::result(d_states[1] * normed)).store(gains + v * L);
      }
      if (biases) {
        (V::load(biases + v * L) + Ns::result(d_states[1])).store(biases + v * L);
      }
      Ns::store(d_states[1] * gain, scratch.d_cell + v * L, wide_, L);
    }
    row_norm_backward<N>(scratch.cell, of.rstd, H_, wide_, scratch.d_cell);
  }

  // The gradient of h before zoneout; `skip`: what goes to the h of the step before.
  template <class N>
  FASTRNN_INLINE N through_zoneout(const Row& row, int64_t v, RowMasks<C> masks, N& skip) const {
    const N d_h = received<N>(row, v, V::load(row.d_h + v * L), direction().d_cell_h, p_.d_cell_h);
    skip = N::set1(0);
    if (!masks.zoneout_h) return d_h;
    const N keep = factor<N>(masks.zoneout_h, v);
    skip = d_h * keep;
    return d_h * (N::set1(1) - keep);
  }

  // The gradient of c but for what its h brings.
  template <class N>
  FASTRNN_INLINE N arriving_d_c(const Row& row, int64_t v) const {
    const auto load = [&](const void* from, int64_t at) {
      return from ? load_lanes<V>(static_cast<const S*>(from) + at + v * L, lanes(v)) : V::zero();
    };
    V d_c = row.joined ? load(p_.d_c_n, (row.d * s_.steps.batch + row.b) * H_)
                       : V::load(row.d_c + v * L);
    if (p_.d_cells) d_c = d_c + load(p_.d_cells, row.n * H_);
    return received<N>(row, v, d_c, direction().d_cell_c, p_.d_cell_c);
  }

  // What a cell received, left for the derivative, which gets it with its tangent.
  template <class N>
  FASTRNN_INLINE N received(const Row& row, int64_t v, V d, const void* primal, void* left) const {
    const int64_t at = row.n * H_ + v * L;
    if (left) store_lanes(d, static_cast<S*>(left) + at, lanes(v));
    if constexpr (Numbers<N>::kParts == 1) return d;
    return Numbers<N>::of(load_lanes<V>(static_cast<const S*>(primal) + at, lanes(v)), d);
  }

  template <class N>
  static FASTRNN_INLINE N factor(const C* mask, int64_t v) {
    return Numbers<N>::of(V::load(mask + v * L), V::zero());
  }

  // From d_x and d_u on: back through the normalisations, with the sums for gains and biases.
  template <class N>
  FASTRNN_NOINLINE void through_norms(const Row& row, const Scratch<N>& scratch) const {
    const Weights& w = p_.weights[row.d];
    const Weights& t = direction().t_weights[row.d];
    if (o_.norm == Norm::kRecurrent) {
      through_norm(row, scratch, 0, scratch.d_x, source(w.gain_ih, t.gain_ih), sums_of(row, 2),
                   sums_of(row, 0), row.target, static_cast<S*>(nullptr));
      through_norm(row, scratch, 1, scratch.d_u, source(w.gain_hh, t.gain_hh), sums_of(row, 3),
                   sums_of(row, 1), row.next, row.target + G * H_);
    } else if (o_.norm == Norm::kJoint) {
      through_norm(row, scratch, 0, scratch.d_u, source(w.gain_hh, t.gain_hh), sums_of(row, 3),
                   sums_of(row, 1), row.next, row.target);
    }
  }

  // d, the gradient of gain * x^ + bias, to that of what was normalised, in `to` and, unless null,
  // `also`: rstd (g - mean(g) - x^ mean(g x^)) with g = gain d. Adds to the gain's and bias's sums
  // that are not null.
  template <class N, class To>
  FASTRNN_INLINE void through_norm(const Row& row, const Scratch<N>& scratch, int part, const C* d,
                                   Source<S> gain, C* gains, C* biases, To* to, S* also) const {
    using Ns = Numbers<N>;
    const int64_t columns = G * H_, place = row.n * o_.parts() + part;
    const Source<S> normed = source(p_.normed, direction().t_normed).at(place * columns);
    const auto statistic = [&](const void* of) {
      return of ? V::set1(static_cast<const C*>(of)[place]) : V::zero();
    };
    const N rstd = Ns::of(statistic(p_.rstd), statistic(direction().t_rstd));
    N sum = N::set1(0), product = N::set1(0);
    each_vector<V>(columns, [&](int64_t i, int k) {
      const N d_y = Ns::load(d + i, wide_, k), x = Ns::load(normed, i, k);
      if (gains) {
        store_lanes(load_lanes<V>(gains + i, k) + Ns::result(d_y * x), gains + i, k);
      }
      if (biases) store_lanes(load_lanes<V>(biases + i, k) + Ns::result(d_y), biases + i, k);
      const N g = d_y * Ns::load(gain, i, k);
      sum = sum + g;
      product = fma(g, x, product);  // beyond the end g is zero, whatever x is
      Ns::store(g, scratch.scaled + i, wide_, k);
    });
    const N mean = Ns::mean(sum, columns), slope = Ns::mean(product, columns);
    each_vector<V>(columns, [&](int64_t i, int k) {
      const N g = Ns::load(scratch.scaled + i, wide_, k), x = Ns::load(normed, i, k);
      const V value = Ns::result(rstd * fnma(x, slope, g - mean));
      store_lanes(value, to + i, k);
      if (also) store_lanes(value, also + i, k);
    });
  }

  const BackwardDirection& direction() const {
    static constexpr BackwardDirection kNone{};
    return p_.direction ? *p_.direction : kNone;
  }
  FASTRNN_INLINE int lanes(int64_t v) const { return static_cast<int>(smaller(L, H_ - v * L)); }

  const BackwardParams& p_;
  const Inside& o_;
  const LayerShape& s_;
  const int64_t H_, vectors_, stride_;
  const int64_t gate_stride_;  // of a row of G*H values in scratch
  Arena arena_;
  const Masks<C> masks_;
  C* sums_[2][kSums];  // over time, of every row
  bool wants_[2][kSums];
  int64_t wide_;  // of a thread's scratch for one row
  int64_t scratch_elements_;
  C* scratch_;
};

}  // namespace
}  // namespace fastrnn::cpu
