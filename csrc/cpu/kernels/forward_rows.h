// The second phase of a forward step with options inside the recurrence (inside.h): from a row's
// products to its new states.
//
// Invariant: only this phase writes states, of rows that are active alone; only the first reads h
// as it enters the product.
#pragma once
#include "cpu/kernels/inside.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class ForwardRows {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;

 public:
  // One row of a step.
  struct Row {
    int d;
    int64_t t, b;
    int64_t row;      // in tensors of N rows
    const C* bias_u;  // of a recurrent product apart that is not normalised
    const C* h_before;
    C *h, *c;
  };

  ForwardRows(const ForwardParams& p, int threads, void* workspace)
      : p_(p),
        o_(p.inside),
        s_(p.shape),
        H_(s_.hidden_size),
        arena_(workspace),
        masks_(o_, H_, threads, arena_),
        memory_(o_, s_, G + apart_columns<Cell>(o_.norm), arena_) {
    scratch_elements_ = normalises_c() ? (K + 1) * memory_.stride() : 0;
    scratch_ = arena_.take<C>(threads * scratch_elements_);
  }
  size_t bytes() const { return arena_.used(); }
  const RowMemory<S>& memory() const { return memory_; }

  void apply(const Row& row, int thread) const {
    const C* const values = memory_.values(row.d, row.b);
    const RowMasks<C> masks = masks_.row(thread, row.d, row.t, row.b);
    C* const scratch = scratch_ + thread * scratch_elements_;
    switch (o_.norm) {
      case Norm::kNone:
        return apply<Norm::kNone>(row, values, masks, scratch);
      case Norm::kRecurrent:
        return apply<Norm::kRecurrent>(row, values, masks, scratch);
      case Norm::kJoint:
        return apply<Norm::kJoint>(row, values, masks, scratch);
    }
  }

 private:
  bool normalises_c() const { return kHasC && p_.weights[0].cell_gain; }

  // One of the parts of a row that are normalised, each by itself.
  struct Part {
    RowStatistics<V> of;
    const S *gain, *bias;  // bias: or null
    S* normed;             // or null

    // What becomes of k values of column g from unit i on.
    FASTRNN_INLINE V affine(V x, int64_t at, int k) const {
      x = (x - of.mean) * of.rstd;
      if (normed) store_lanes(x, normed + at, k);
      const V shift = bias ? load_lanes<V>(bias + at, k) : V::zero();
      return fma(x, load_lanes<V>(gain + at, k), shift);
    }
  };
  Part part_of(const Row& row, int index, const void* gain, const void* bias,
               const C* values) const {
    const int64_t place = (row.d * s_.steps.rows + row.row) * o_.parts() + index;
    const Part part{row_statistics<V>(values, 0, G, H_, memory_.stride(), o_.eps),
                    static_cast<const S*>(gain), static_cast<const S*>(bias),
                    p_.normed ? static_cast<S*>(p_.normed) + place * G * H_ : nullptr};
    if (p_.rstd) part.of.rstd.store(static_cast<C*>(p_.rstd) + place, 1);
    return part;
  }

  template <Norm N>
  FASTRNN_NOINLINE void apply(const Row& row, const C* values, RowMasks<C> masks,
                              C* scratch) const {
    const Weights& w = p_.weights[row.d];
    Part input{}, recurrent{};
    if constexpr (N == Norm::kRecurrent) {
      input = part_of(row, 0, w.gain_ih, w.b_ih, values);
      recurrent = part_of(row, 1, w.gain_hh, w.b_hh, values + G * memory_.stride());
    } else if constexpr (N == Norm::kJoint) {
      recurrent = part_of(row, 0, w.gain_hh, w.b_hh, values);
    }
    const int64_t n = row.d * s_.steps.rows + row.row;
    const auto source = [](const void* from) {
      return Source<S>{static_cast<const S*>(from), nullptr};
    };
    const CellNorm<S> norm{source(w.cell_gain), source(w.cell_bias), o_.eps};
    new_states<Cell, V, S>(
        H_, memory_.stride(), masks, normalises_c() ? &norm : nullptr, scratch,
        [&](int64_t i, V(&a)[K]) __attribute__((always_inline)) {
          load_columns<N>(values, row.bias_u, input, recurrent, i, a);
          if constexpr (Cell::kVectors > 0) {
            V own[cells::kOwn<Cell>];
            load_own<Cell>(source(w.w_ch), H_, i, own);
            const V before[] = {V::zero(), V::load(row.c + i)};
            Cell::enter(own, before, a);
          }
          Cell::activate(a);
          if (!p_.gates) return;
          S* const gates = static_cast<S*>(p_.gates) + n * K * H_ + i;
          for (int k = 0; k < K; ++k) store_lanes(a[k], gates + k * H_, lanes(i));
        },
        [&](int64_t i, V(&before)[Cell::kStates]) __attribute__((always_inline)) {
          before[0] = V::load(row.h_before + i);
          if constexpr (kHasC) before[1] = V::load(row.c + i);
        },
        [&](int64_t i, const V(&states)[Cell::kStates], V(&a)[K]) __attribute__((always_inline)) {
          if constexpr (Cell::kVectors > 0) {
            V own[cells::kOwn<Cell>];
            load_own<Cell>(source(w.w_ch), H_, i, own);
            Cell::finish(own, states, a);
            if (!p_.gates) return;
            store_lanes(a[K - 1], static_cast<S*>(p_.gates) + (n * K + K - 1) * H_ + i, lanes(i));
          }
        },
        [&](int64_t i, V h, V c) __attribute__((always_inline)) {
          if constexpr (kHasC) {
            c.store(row.c + i);
            if (p_.cells) store_lanes(c, static_cast<S*>(p_.cells) + n * H_ + i, lanes(i));
          }
          h.store(row.h + i);
          memory_.put_h(row.d, row.b, i, h);
          const int64_t to = (row.row * s_.directions + row.d) * H_ + i;
          store_lanes(h, static_cast<S*>(p_.output) + to, lanes(i));
          if (p_.hidden) store_lanes(h, static_cast<S*>(p_.hidden) + n * H_ + i, lanes(i));
        });
  }

  // A unit's values before activation, from the products' columns.
  template <Norm N>
  FASTRNN_INLINE void load_columns(const C* values, const C* bias_u, const Part& input,
                                   const Part& recurrent, int64_t i, V (&a)[K]) const {
    const int64_t stride = memory_.stride();
    if constexpr (N == Norm::kNone) {
      for (int k = 0; k < K; ++k) a[k] = V::load(values + k * stride + i);
      if constexpr (cells::kApart<Cell>) a[K - 1] = a[K - 1] + V::load(bias_u + i);
      return;
    }
    const int k = lanes(i);
    for (V& x : a) x = V::zero();
    for (int g = 0; g < G; ++g) {
      V& sum = a[cells::recurrent_column<Cell>(g)];
      if constexpr (N == Norm::kRecurrent) {
        a[g] = input.affine(V::load(values + g * stride + i), g * H_ + i, k);
        sum = sum + recurrent.affine(V::load(values + (G + g) * stride + i), g * H_ + i, k);
      } else {
        sum = recurrent.affine(V::load(values + g * stride + i), g * H_ + i, k);
      }
    }
  }

  FASTRNN_INLINE int lanes(int64_t i) const { return static_cast<int>(smaller(L, H_ - i)); }

  const ForwardParams& p_;
  const Inside& o_;
  const LayerShape& s_;
  const int64_t H_;
  Arena arena_;
  const Masks<C> masks_;
  const RowMemory<S> memory_;
  C* scratch_;  // a thread's own for one row where c is normalised, [1 + K][stride]
  int64_t scratch_elements_;
};

}  // namespace
}  // namespace fastrnn::cpu
