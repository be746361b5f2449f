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
        vectors_(ceil_div(H_, L)),
        stride_(vectors_ * L),
        columns_(G + apart_columns<Cell>(o_.norm)),
        arena_(workspace),
        masks_(o_, H_, threads, arena_) {
    const int64_t rows = o_.any ? s_.steps.batch : 0;
    for (int d = 0; d < s_.directions; ++d) {
      values_[d] = arena_.take<C>(rows * columns_ * stride_);
      h_in_[d] = arena_.take<C>(o_.h_scale ? rows * stride_ : 0);
    }
    scratch_elements_ = normalises_c() ? (K + 1) * stride_ : 0;
    scratch_ = arena_.take<C>(threads * scratch_elements_);
  }
  size_t bytes() const { return arena_.used(); }

  // h as it enters the product, of every row; null: as it is.
  const C* h_in(int d) const { return o_.h_scale ? h_in_[d] : nullptr; }

  // h of a row and vector as the first step finds it.
  FASTRNN_INLINE void start(int d, int64_t b, int64_t v, V h) const {
    if (o_.h_scale) scale(d, b, v, h);
  }

  // Takes over columns [rows][columns][width] of a tile, `width` values of units from v on.
  FASTRNN_NOINLINE void take(int d, int64_t v, int width, int64_t b, int rows,
                             const C* columns) const {
    C* to = values_[d] + b * columns_ * stride_ + v * L;
    for (int m = 0; m < rows; ++m) {
      for (int c = 0; c < columns_; ++c, to += stride_, columns += width) {
        for (int i = 0; i < width; i += L) V::load(columns + i).store(to + i);
      }
    }
  }

  void apply(const Row& row, int thread) const {
    C* const values = values_[row.d] + row.b * columns_ * stride_;
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

  // `part` of what is normalised, G columns of values in place: gain x^ + bias.
  void normalise(const Row& row, int part, int parts, const void* gains, const void* biases,
                 C* values) const {
    const RowStatistics<V> of = row_statistics<V>(values, 0, G, H_, stride_, o_.eps);
    const int64_t place = (row.d * s_.steps.rows + row.row) * parts + part;
    if (p_.rstd) of.rstd.store(static_cast<C*>(p_.rstd) + place, 1);
    S* const normed = p_.normed ? static_cast<S*>(p_.normed) + place * G * H_ : nullptr;
    const S* const gain = static_cast<const S*>(gains);
    const S* const bias = static_cast<const S*>(biases);
    for (int g = 0; g < G; ++g) {
      each_vector<V>(H_, [&](int64_t i, int k) {
        C* const at = values + g * stride_ + i;
        const V x = (V::load(at) - of.mean) * of.rstd;
        if (normed) store_lanes(x, normed + g * H_ + i, k);
        const V shift = bias ? load_lanes<V>(bias + g * H_ + i, k) : V::zero();
        fma(x, load_lanes<V>(gain + g * H_ + i, k), shift).store(at);
      });
    }
  }

  template <Norm N>
  FASTRNN_NOINLINE void apply(const Row& row, C* values, RowMasks<C> masks, C* scratch) const {
    const Weights& w = p_.weights[row.d];
    if constexpr (N == Norm::kRecurrent) {
      normalise(row, 0, 2, w.gain_ih, w.b_ih, values);
      normalise(row, 1, 2, w.gain_hh, w.b_hh, values + G * stride_);
    } else if constexpr (N == Norm::kJoint) {
      normalise(row, 0, 1, w.gain_hh, w.b_hh, values);
    }
    const int64_t n = row.d * s_.steps.rows + row.row;
    const bool normalises = normalises_c();
    const auto finish = [&](int64_t v, const V(&kept)[K], const V(&before)[Cell::kStates],
                            V(&after)[Cell::kStates], V fresh_c) __attribute__((always_inline)) {
      Cell::emit(kept, after);
      if constexpr (kHasC) {
        const V c = blend(masks.zoneout_c, v * L, before[1], fresh_c);
        c.store(row.c + v * L);
        if (p_.cells) store_lanes(c, static_cast<S*>(p_.cells) + n * H_ + v * L, lanes(v));
      }
      publish(row, n, v, blend(masks.zoneout_h, v * L, before[0], after[0]));
    };
    for (int64_t v = 0; v < vectors_; ++v) {
      V a[K], before[Cell::kStates], after[Cell::kStates];
      load_columns<N>(values + v * L, row.bias_u + v * L, a);
      Cell::activate(a);
      if (p_.gates) {
        S* const gates = static_cast<S*>(p_.gates) + n * K * H_ + v * L;
        for (int i = 0; i < K; ++i) store_lanes(a[i], gates + i * H_, lanes(v));
      }
      load_states(row, v, before);
      if constexpr (Cell::kCandidate >= 0) {
        V& candidate = a[Cell::kCandidate];
        if (masks.dropout) candidate = candidate * V::load(masks.dropout + v * L);
      }
      Cell::update(a, before, after);
      if (!normalises) {
        finish(v, a, before, after, after[Cell::kStates - 1]);
        continue;
      }
      if constexpr (kHasC) {
        after[1].store(scratch + v * L);
        for (int i = 0; i < K; ++i) a[i].store(scratch + (i + 1) * stride_ + v * L);
      }
    }
    if constexpr (kHasC) {
      if (!normalises) return;
      const RowStatistics<V> of = row_statistics<V>(scratch, 0, 1, H_, 0, o_.eps);
      const S* const gain = static_cast<const S*>(w.cell_gain);
      const S* const bias = static_cast<const S*>(w.cell_bias);
      for (int64_t v = 0; v < vectors_; ++v) {
        V a[K], before[2], after[2];
        for (int i = 0; i < K; ++i) a[i] = V::load(scratch + (i + 1) * stride_ + v * L);
        load_states(row, v, before);
        const V fresh = V::load(scratch + v * L);
        const V shift = bias ? load_lanes<V>(bias + v * L, lanes(v)) : V::zero();
        after[1] = fma((fresh - of.mean) * of.rstd, load_lanes<V>(gain + v * L, lanes(v)), shift);
        finish(v, a, before, after, fresh);
      }
    }
  }

  // A unit's values before activation, from the products' columns.
  template <Norm N>
  FASTRNN_INLINE void load_columns(const C* from, const C* bias_u, V (&a)[K]) const {
    if constexpr (N == Norm::kNone) {
      for (int i = 0; i < K; ++i) a[i] = V::load(from + i * stride_);
      if constexpr (cells::kApart<Cell>) a[K - 1] = a[K - 1] + V::load(bias_u);
      return;
    }
    for (int i = 0; i < K; ++i) a[i] = V::zero();
    for (int g = 0; g < G; ++g) {
      V& input = a[g];
      V& recurrent = a[cells::recurrent_column<Cell>(g)];
      if constexpr (N == Norm::kRecurrent) {
        input = V::load(from + g * stride_);
        recurrent = recurrent + V::load(from + (G + g) * stride_);
      } else {
        recurrent = V::load(from + g * stride_);
      }
    }
  }

  FASTRNN_INLINE void load_states(const Row& row, int64_t v, V (&before)[Cell::kStates]) const {
    before[0] = V::load(row.h_before + v * L);
    if constexpr (kHasC) before[1] = V::load(row.c + v * L);
  }

  FASTRNN_INLINE void publish(const Row& row, int64_t n, int64_t v, V h) const {
    h.store(row.h + v * L);
    if (o_.h_scale) scale(row.d, row.b, v, h);
    const int k = lanes(v);
    store_lanes(h, static_cast<S*>(p_.output) + (row.row * s_.directions + row.d) * H_ + v * L, k);
    if (p_.hidden) store_lanes(h, static_cast<S*>(p_.hidden) + n * H_ + v * L, k);
  }

  FASTRNN_INLINE void scale(int d, int64_t b, int64_t v, V h) const {
    const S* const factor =
        static_cast<const S*>(o_.h_scale) + (d * s_.steps.batch + b) * H_ + v * L;
    (h * load_lanes<V>(factor, lanes(v))).store(h_in_[d] + b * stride_ + v * L);
  }

  FASTRNN_INLINE int lanes(int64_t v) const { return static_cast<int>(smaller(L, H_ - v * L)); }

  const ForwardParams& p_;
  const Inside& o_;
  const LayerShape& s_;
  const int64_t H_, vectors_, stride_;
  const int columns_;  // of the products of a row
  Arena arena_;
  const Masks<C> masks_;
  C* values_[2];  // of a direction: the products, [B][columns][stride]
  C* h_in_[2];    // h times h_scale, [B][stride]
  // A thread's own for one row where c is normalised: c before that and zoneout, and what is kept;
  // [1 + K][stride].
  C* scratch_;
  int64_t scratch_elements_;
};

}  // namespace
}  // namespace fastrnn::cpu
