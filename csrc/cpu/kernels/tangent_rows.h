// The second phase of a step of tangent.h with options inside the recurrence (inside.h): from the
// tangents of a row's products to those of its new states.
#pragma once
#include "cpu/kernels/inside.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class TangentRows {
  using C = Compute<S>;
  using V = Vec<C>;
  using N = Dual<V>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;

 public:
  // One row of a step.
  struct Row {
    int d;
    int64_t t, b;
    int64_t n;       // in tensors [D, N, *]
    int64_t before;  // the same of its row a step before; below 0: it had the initial state
    const C* t_h_before;
    C *t_h, *t_c;
  };

  TangentRows(const TangentParams& p, int threads, void* workspace)
      : p_(p),
        o_(p.inside),
        s_(p.shape),
        H_(s_.hidden_size),
        arena_(workspace),
        masks_(o_, H_, threads, arena_),
        memory_(o_, s_, G + apart_columns<Cell>(o_.norm), arena_) {
    scratch_elements_ = normalises_c() ? 2 * (K + 1) * memory_.stride() : 0;
    scratch_ = arena_.take<C>(threads * scratch_elements_);
  }
  size_t bytes() const { return arena_.used(); }
  const RowMemory<S>& memory() const { return memory_; }

  FASTRNN_NOINLINE void apply(const Row& row, int thread) const {
    C* const values = memory_.values(row.d, row.b);
    const Weights& w = p_.weights[row.d];
    const Weights& t = p_.t_weights[row.d];
    if (o_.norm == Norm::kRecurrent) {
      normalise(row, 0, source(w.gain_ih, t.gain_ih), t.b_ih, values);
      normalise(row, 1, source(w.gain_hh, t.gain_hh), t.b_hh, values + G * memory_.stride());
    } else if (o_.norm == Norm::kJoint) {
      normalise(row, 0, source(w.gain_hh, t.gain_hh), t.b_hh, values);
    }
    const CellNorm<S> norm{source(w.cell_gain, t.cell_gain), source(w.cell_bias, t.cell_bias),
                           o_.eps};
    const S* const gates = static_cast<const S*>(p_.gates) + row.n * K * H_;
    new_states<Cell, N, S>(
        H_, memory_.stride(), masks_.row(thread, row.d, row.t, row.b),
        normalises_c() ? &norm : nullptr, scratch_ + thread * scratch_elements_,
        [&](int64_t i, N(&a)[K]) {
          V kept[K], tangents[K];
          load_columns(values + i, tangents);
          for (int k = 0; k < K; ++k) kept[k] = load_lanes<V>(gates + k * H_ + i, lanes(i));
          if constexpr (Cell::kVectors > 0) {
            N own[cells::kOwn<Cell>], before[Cell::kStates], entered[K];
            load_own<Cell>(source(w.w_ch, t.w_ch), H_, i, own);
            load_before(row, i, before);
            for (int k = 0; k < K; ++k) entered[k] = {V::zero(), tangents[k]};
            Cell::enter(own, before, entered);
            for (int k = 0; k < K; ++k) tangents[k] = entered[k].t;
          }
          Cell::activate_tangent(kept, tangents);
          for (int k = 0; k < K; ++k) a[k] = {kept[k], tangents[k]};
          if (!p_.t_gates) return;
          S* const to = static_cast<S*>(p_.t_gates) + row.n * K * H_ + i;
          for (int k = 0; k < K; ++k) store_lanes(tangents[k], to + k * H_, lanes(i));
        },
        [&](int64_t i, N(&before)[Cell::kStates]) { load_before(row, i, before); },
        [&](int64_t i, const N(&states)[Cell::kStates], N(&a)[K]) {
          if constexpr (Cell::kVectors > 0) {
            N own[cells::kOwn<Cell>];
            load_own<Cell>(source(w.w_ch, t.w_ch), H_, i, own);
            Cell::finish_tangent(own, states, a);
            if (!p_.t_gates) return;
            S* const to = static_cast<S*>(p_.t_gates) + (row.n * K + K - 1) * H_ + i;
            store_lanes(a[K - 1].t, to, lanes(i));
          }
        },
        [&](int64_t i, N h, N c) {
          const int64_t to = row.n * H_ + i;
          if constexpr (kHasC) {
            c.t.store(row.t_c + i);
            if (p_.t_cells) store_lanes(c.t, static_cast<S*>(p_.t_cells) + to, lanes(i));
          }
          h.t.store(row.t_h + i);
          memory_.put_h(row.d, row.b, i, h.t);
          store_lanes(h.t, static_cast<S*>(p_.t_hidden) + to, lanes(i));
        });
  }

 private:
  bool normalises_c() const { return kHasC && p_.weights[0].cell_gain; }
  static Source<S> source(const void* values, const void* tangents) {
    return {static_cast<const S*>(values), static_cast<const S*>(tangents)};
  }

  // `part` of what is normalised: tangents of G columns of products, in place to those of
  // gain x^ + bias. With rstd r and means over the row, that of x^ is r (t - mean(t) - x^
  // mean(x^ t)), that of r is -r^2 mean(x^ t).
  void normalise(const Row& row, int part, Source<S> gain, const void* t_biases, C* values) const {
    const int64_t place = row.n * o_.parts() + part, count = G * H_, stride = memory_.stride();
    const S* const normed = static_cast<const S*>(p_.normed) + place * count;
    S* const t_normed = p_.t_normed ? static_cast<S*>(p_.t_normed) + place * count : nullptr;
    const S* const t_bias = static_cast<const S*>(t_biases);
    const V rstd = V::set1(static_cast<const C*>(p_.rstd)[place]);
    V sum = V::zero(), product = V::zero();
    for (int g = 0; g < G; ++g) {
      each_vector<V>(H_, [&](int64_t i, int k) {
        const V t = load_lanes<V>(values + g * stride + i, k);
        sum = sum + t;
        product = fma(t, load_lanes<V>(normed + g * H_ + i, k), product);
      });
    }
    const V mean = Numbers<V>::mean(sum, count), slope = Numbers<V>::mean(product, count);
    if (p_.t_rstd) {
      const V t = V::zero() - rstd * rstd * slope;
      t.store(static_cast<C*>(p_.t_rstd) + place, 1);
    }
    for (int g = 0; g < G; ++g) {
      each_vector<V>(H_, [&](int64_t i, int k) {
        C* const at = values + g * stride + i;
        const int64_t column = g * H_ + i;
        const V x = load_lanes<V>(normed + column, k);
        const V t = rstd * fnma(x, slope, V::load(at) - mean);
        if (t_normed) store_lanes(t, t_normed + column, k);
        V result = t * load_lanes<V>(gain.values + column, k);
        if (gain.tangents) result = fma(x, load_lanes<V>(gain.tangents + column, k), result);
        if (t_bias) result = result + load_lanes<V>(t_bias + column, k);
        result.store(at);
      });
    }
  }

  // Tangents of a unit's values before activation, from the products' columns.
  FASTRNN_INLINE void load_columns(const C* from, V (&t)[K]) const {
    const int64_t stride = memory_.stride();
    for (int k = 0; k < K; ++k) {
      t[k] = o_.norm == Norm::kNone ? V::load(from + k * stride) : V::zero();
    }
    if (o_.norm == Norm::kNone) return;
    for (int g = 0; g < G; ++g) {
      V& recurrent = t[cells::recurrent_column<Cell>(g)];
      if (o_.norm == Norm::kRecurrent) {
        t[g] = V::load(from + g * stride);
        recurrent = recurrent + V::load(from + (G + g) * stride);
      } else {
        recurrent = V::load(from + g * stride);
      }
    }
  }

  FASTRNN_INLINE void load_before(const Row& row, int64_t i, N (&before)[Cell::kStates]) const {
    before[0] = {previous(row, p_.hidden, p_.h0, i), V::load(row.t_h_before + i)};
    if constexpr (kHasC) {
      before[1] = {previous(row, p_.cells, p_.c0, i), V::load(row.t_c + i)};
    }
  }

  // The value that a state had before this step.
  FASTRNN_INLINE V previous(const Row& row, const void* saved, const void* initial,
                            int64_t i) const {
    const int64_t n = row.before >= 0 ? row.before : row.d * s_.steps.batch + row.b;
    const void* const from = row.before >= 0 ? saved : initial;
    if (!from) return V::zero();
    return load_lanes<V>(static_cast<const S*>(from) + n * H_ + i, lanes(i));
  }

  FASTRNN_INLINE int lanes(int64_t i) const { return static_cast<int>(smaller(L, H_ - i)); }

  const TangentParams& p_;
  const Inside& o_;
  const LayerShape& s_;
  const int64_t H_;
  Arena arena_;
  const Masks<C> masks_;
  const RowMemory<S> memory_;
  C* scratch_;  // a thread's own for one row where c is normalised, [2][1 + K][stride]
  int64_t scratch_elements_;
};

}  // namespace
}  // namespace fastrnn::cpu
