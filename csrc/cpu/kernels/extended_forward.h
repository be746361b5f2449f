// The forward pass of the extended recurrence (extended.h), all directions of one layer, any cell.
//
// Invariants: h and c in scratch are the states of every row, of rows that are not active too;
// only the second phase of a step writes them, only the first reads h_in. `products` holds G*H
// values a row side by side, as gates_x does, so that whole rows are normalised in one sweep.
#pragma once
#include "cpu/kernels/extended.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class ExtendedForward {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;
  using Blocks = VectorBlocks<kUnitVectors<Cell>>;
  using Rows = RowBlocks<kCellRows<Cell>>;

 public:
  static size_t workspace_bytes(const ExtendedForwardParams& p, int threads) {
    return ExtendedForward(p, threads, nullptr).bytes_;
  }
  static void run(const ExtendedForwardParams& p, const Worker& worker) {
    ExtendedForward(p, worker.threads, p.workspace).run_worker(worker);
  }

 private:
  struct Direction {
    C* w_hh;      // panels [H][G][NU * L], one a block of units
    C* h;         // [B][stride]
    C* h_in;      // [B][stride]: h times h_scale, or h itself
    C* c;         // [B][stride]
    C* products;  // [B][gate_stride]
  };

  ExtendedForward(const ExtendedForwardParams& p, int threads, void* workspace)
      : p_(p),
        s_(p.shape),
        H_(s_.hidden_size),
        B_(s_.steps.batch),
        vectors_(ceil_div(H_, L)),
        stride_(vectors_ * L),
        gate_stride_(G * H_ + L),
        weight_bytes_(G * H_ * H_ * static_cast<int64_t>(sizeof(C))),
        direct_(s_.steps.rows < kDirectRows),
        masks_(p.options, H_) {
    Arena arena(workspace);
    for (int d = 0; d < s_.directions; ++d) {
      Direction& a = directions_[d];
      a.w_hh = arena.take<C>(direct_ ? 0 : G * stride_ * H_);
      a.h = arena.take<C>(B_ * stride_);
      a.h_in = p.options.h_scale ? arena.take<C>(B_ * stride_) : a.h;
      a.c = arena.take<C>(kHasC ? B_ * stride_ : 0);
      a.products = arena.take<C>(B_ * gate_stride_);
    }
    row_elements_ = p.options.cell_gain ? (K + 1) * stride_ : 0;
    row_ = arena.take<C>(threads * row_elements_);
    masks_.allocate(arena, threads);
    bytes_ = arena.used();
  }

  void run_worker(const Worker& worker) {
    const Place place =
        place_of(worker.thread, worker.threads, s_.directions, B_, vectors_, weight_bytes_);
    if (!direct_) pack(worker, place.split.unit_groups);
    worker.barriers[0].wait(worker.threads);
    row_ += worker.thread * row_elements_;
    for (int d = place.first_direction; d <= place.last_direction; ++d) {
      run_direction(d, place, worker);
    }
  }

  const S* w_hh(int d) const { return static_cast<const S*>(p_.options.w_hh) + d * G * H_ * H_; }

  void pack(const Worker& worker, int unit_groups) const {
    int64_t job = 0;
    for (int d = 0; d < s_.directions; ++d) {
      for (int g = 0; g < unit_groups; ++g) {
        const Range units = part(vectors_, unit_groups, g);
        const Blocks blocks{units.begin, units.end};
        for (int64_t i = 0; i < blocks.count(); ++i) {
          if (job++ % worker.threads != worker.thread) continue;
          blocks.call(i, [&](auto nu, int64_t v) {
            pack_rows<G, nu()>(w_hh(d), H_, H_, v, directions_[d].w_hh + v * L * G * H_);
          });
        }
      }
    }
  }

  void run_direction(int d, const Place& place, const Worker& worker) const {
    const Steps& steps = s_.steps;
    const int64_t T = steps.seq_len;
    const Range rows = batch_rows(steps, place.split.batch_groups, place.batch_group);
    const Range units = part(vectors_, place.split.unit_groups, place.unit_group);
    SpinBarrier& barrier = worker.barriers[place.barrier];
    const int peers = place.split.unit_groups;
    const auto share = [&](Range of) {
      const Range r = part(of.size(), peers, place.unit_group);
      return Range{of.begin + r.begin, of.begin + r.end};
    };
    const Range own = share(rows);
    start(d, own);
    barrier.wait(peers);
    for (int64_t s = 0; s < T; ++s) {
      const int64_t t = d == 1 ? T - 1 - s : s;
      const Range active{rows.begin, larger(rows.begin, smaller(rows.end, steps.count(t)))};
      multiply(d, s, active, units);
      barrier.wait(peers);
      const Range mine = share(active);
      for (int64_t b = mine.begin; b < mine.end; ++b) {
        apply_row(d, t, b, masks_.row(worker.thread, d, t, b));
      }
      barrier.wait(peers);
    }
    finish(d, own);
  }

  void start(int d, Range rows) const {
    const Direction& a = directions_[d];
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t v = 0; v < vectors_; ++v) {
        set_h(d, b, v, load_state(p_.h0, d, b, v));
        if constexpr (kHasC) {
          load_state(p_.c0, d, b, v).store(a.c + b * stride_ + v * L);
        }
      }
    }
  }

  void finish(int d, Range rows) const {
    const Direction& a = directions_[d];
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t v = 0; v < vectors_; ++v) {
        const int64_t to = (d * B_ + b) * H_ + v * L;
        store_lanes(V::load(a.h + b * stride_ + v * L), static_cast<S*>(p_.h_n) + to, lanes(v));
        if constexpr (kHasC) {
          store_lanes(V::load(a.c + b * stride_ + v * L), static_cast<S*>(p_.c_n) + to, lanes(v));
        }
      }
    }
  }

  // ---- the recurrent product -------------------------------------------------

  void multiply(int d, int64_t s, Range active, Range units) const {
    if (direct_) return multiply_direct(d, active, units);
    const Blocks blocks{units.begin, units.end};
    const int64_t count = blocks.count();
    for (int64_t i = 0; i < count; ++i) {
      // Back and forth, so that what is still in the cache is used first.
      blocks.call(s % 2 ? count - 1 - i : i, [&](auto nu, int64_t v) {
        Rows::each(active.begin, active.end,
                   [&](auto mr, int64_t b) { tile<mr(), nu()>(d, v, b); });
      });
    }
  }

  template <int MR, int NU>
  FASTRNN_NOINLINE void tile(int d, int64_t v, int64_t b) const {
    const Direction& a = directions_[d];
    constexpr int NV = G * NU;
    alignas(64) C products[MR * NV * L];
    product_tile<MR, NV, C>({H_, a.h_in + b * stride_, stride_, a.w_hh + v * L * G * H_, NV * L,
                             nullptr, 0, products, NV * L});
    const C* from = products;
    for (int m = 0; m < MR; ++m) {
      for (int g = 0; g < G; ++g) {
        for (int u = 0; u < NU; ++u, from += L) {
          C* to = a.products + (b + m) * gate_stride_ + g * H_ + (v + u) * L;
          store_lanes(V::load(from), to, lanes(v + u));
        }
      }
    }
  }

  // Few rows in all: w_hh is read where it lies.
  FASTRNN_NOINLINE void multiply_direct(int d, Range active, Range units) const {
    const Direction& a = directions_[d];
    const int64_t end = smaller(units.end * L, H_);
    for (int64_t b = active.begin; b < active.end; ++b) {
      C* to = a.products + b * gate_stride_;
      for (int64_t j = units.begin * L; j < end; ++j) {
        const S* w[G];
        C sums[G];
        for (int g = 0; g < G; ++g) w[g] = w_hh(d) + (g * H_ + j) * H_;
        dots<G, V>(H_, a.h_in + b * stride_, w, sums);
        for (int g = 0; g < G; ++g) to[g * H_ + j] = sums[g];
      }
    }
  }

  // ---- the rest of a step, one row -------------------------------------------

  // What one row's gates are made of, u, the product, and x, the input's share, as they are read.
  // Its functions know at compile time which of them are normalised (N): at every vector and gate
  // the questions would cost as much as what they ask for.
  template <Norm N>
  struct Row {
    int64_t n;  // of N rows and directions
    const C* u;
    const S* x;
    RowStatistics<C> of_u, of_x;
    const S *gain, *bias;      // of u
    const S *gain_x, *bias_x;  // of x
    S* normed;

    // The input's share at `at`, k lanes of it.
    FASTRNN_INLINE V input(int64_t at, int k) const {
      if constexpr (N == Norm::kJoint) return V::zero();
      const V v = load_lanes<V>(x + at, k);
      if constexpr (N == Norm::kNone) return v;
      return affine(v, of_x, gain_x, bias_x, at, k, nullptr);
    }
    // What the product became.
    FASTRNN_INLINE V product(int64_t at, int k) const {
      const V v = load_lanes<V>(u + at, k);
      if constexpr (N != Norm::kNone) return affine(v, of_u, gain, bias, at, k, normed);
      return bias ? v + load_lanes<V>(bias + at, k) : v;
    }
  };

  template <Norm N>
  FASTRNN_INLINE Row<N> row_of(int d, int64_t n, C* u) const {
    const ExtendedOptions& o = p_.options;
    const int64_t columns = G * H_;
    const auto of_direction = [&](const void* t) {
      return t ? static_cast<const S*>(t) + d * columns : nullptr;
    };
    const S* x = static_cast<const S*>(p_.gates_x) + n * columns;
    RowStatistics<C> of_x{}, of_u{};
    if constexpr (N == Norm::kRecurrent) {
      of_x = row_statistics<V>(x, columns, o.eps);
      if (p_.moments_x) {
        C* to = static_cast<C*>(p_.moments_x) + 2 * n;
        to[0] = of_x.mean;
        to[1] = of_x.rstd;
      }
    }
    if constexpr (N == Norm::kJoint) {
      each_vector<V>(columns, [&](int64_t i, int k) {
        store_lanes(load_lanes<V>(u + i, k) + load_lanes<V>(x + i, k), u + i, k);
      });
    }
    if constexpr (N != Norm::kNone) {
      of_u = row_statistics<V>(u, columns, o.eps);
      if (p_.rstd) static_cast<C*>(p_.rstd)[n] = of_u.rstd;
    }
    return {n,
            u,
            x,
            of_u,
            of_x,
            of_direction(o.gain),
            of_direction(o.bias),
            of_direction(o.gain_x),
            of_direction(o.bias_x),
            p_.normed ? static_cast<S*>(p_.normed) + n * columns : nullptr};
  }

  static FASTRNN_INLINE V affine(V x, RowStatistics<C> of, const S* gain, const S* bias, int64_t at,
                                 int k, S* normed) {
    x = (x - V::set1(of.mean)) * V::set1(of.rstd);
    if (normed) store_lanes(x, normed + at, k);
    const V shift = bias ? load_lanes<V>(bias + at, k) : V::zero();
    return fma(x, load_lanes<V>(gain + at, k), shift);
  }

  void apply_row(int d, int64_t t, int64_t b, RowMasks<C> masks) const {
    switch (p_.options.norm) {
      case Norm::kNone:
        return apply_row<Norm::kNone>(d, t, b, masks);
      case Norm::kRecurrent:
        return apply_row<Norm::kRecurrent>(d, t, b, masks);
      case Norm::kJoint:
        return apply_row<Norm::kJoint>(d, t, b, masks);
    }
  }

  template <Norm N>
  FASTRNN_NOINLINE void apply_row(int d, int64_t t, int64_t b, RowMasks<C> masks) const {
    const int64_t r = s_.steps.offset(t) + b;
    const Direction& of = directions_[d];
    const Row<N> row = row_of<N>(d, d * s_.steps.rows + r, of.products + b * gate_stride_);
    const bool normalises_c = p_.options.cell_gain;
    const auto finish = [&](int64_t v, const V(&kept)[K], const V(&before)[Cell::kStates],
                            V(&after)[Cell::kStates], V fresh_c) __attribute__((always_inline)) {
      const int k = lanes(v);
      Cell::emit(kept, after);
      if constexpr (kHasC) {
        const V c = blend(masks.zoneout_c, v, before[1], fresh_c);
        c.store(of.c + b * stride_ + v * L);
        if (p_.cells) store_lanes(c, static_cast<S*>(p_.cells) + row.n * H_ + v * L, k);
      }
      publish(d, row.n, r, b, v, blend(masks.zoneout_h, v, before[0], after[0]), k);
    };
    for (int64_t v = 0; v < vectors_; ++v) {
      const int k = lanes(v);
      V a[K], before[Cell::kStates], after[Cell::kStates];
      for (int g = 0; g < G; ++g) a[g] = row.input(g * H_ + v * L, k);
      for (int g = 0; g < G; ++g) {
        const int column = cells::recurrent_column<Cell>(g);
        const V product = row.product(g * H_ + v * L, k);
        a[column] = column == g ? a[column] + product : product;
      }
      Cell::activate(a);
      if (p_.gates) {
        S* const gates = static_cast<S*>(p_.gates) + row.n * K * H_ + v * L;
        for (int i = 0; i < K; ++i) store_lanes(a[i], gates + i * H_, k);
      }
      load_states(d, b, v, before);
      if constexpr (Cell::kCandidate >= 0) {
        V& candidate = a[Cell::kCandidate];
        if (masks.dropout) candidate = candidate * V::load(masks.dropout + v * L);
      }
      Cell::update(a, before, after);
      if (!normalises_c) {
        finish(v, a, before, after, after[Cell::kStates - 1]);
        continue;
      }
      if constexpr (kHasC) {
        after[1].store(row_ + v * L);
        for (int i = 0; i < K; ++i) a[i].store(row_ + (i + 1) * stride_ + v * L);
      }
    }
    if constexpr (kHasC) {
      if (!normalises_c) return;
      const RowStatistics<C> statistics = row_statistics<V>(row_, H_, p_.options.eps);
      const S* gain = static_cast<const S*>(p_.options.cell_gain) + d * H_;
      const S* bias = static_cast<const S*>(p_.options.cell_bias) + d * H_;
      for (int64_t v = 0; v < vectors_; ++v) {
        V a[K], before[Cell::kStates], after[Cell::kStates];
        for (int i = 0; i < K; ++i) a[i] = V::load(row_ + (i + 1) * stride_ + v * L);
        load_states(d, b, v, before);
        const V fresh = V::load(row_ + v * L);
        after[1] = affine(fresh, statistics, gain, bias, v * L, lanes(v), nullptr);
        finish(v, a, before, after, fresh);
      }
    }
  }

  // The states before a step.
  FASTRNN_INLINE void load_states(int d, int64_t b, int64_t v, V (&before)[Cell::kStates]) const {
    before[0] = V::load(directions_[d].h + b * stride_ + v * L);
    if constexpr (kHasC) before[1] = V::load(directions_[d].c + b * stride_ + v * L);
  }

  // Exactly the old value where the mask is 1, exactly the new one where it is 0.
  static FASTRNN_INLINE V blend(const C* mask, int64_t v, V old_value, V new_value) {
    if (!mask) return new_value;
    const V keep = V::load(mask + v * L);
    return fma(keep, old_value, (V::set1(1) - keep) * new_value);
  }

  FASTRNN_INLINE void publish(int d, int64_t n, int64_t row, int64_t b, int64_t v, V h,
                              int k) const {
    set_h(d, b, v, h);
    store_lanes(h, static_cast<S*>(p_.output) + (row * s_.directions + d) * H_ + v * L, k);
    if (p_.hidden) store_lanes(h, static_cast<S*>(p_.hidden) + n * H_ + v * L, k);
  }

  FASTRNN_INLINE void set_h(int d, int64_t b, int64_t v, V h) const {
    h.store(directions_[d].h + b * stride_ + v * L);
    if (!p_.options.h_scale) return;
    (h * load_state(p_.options.h_scale, d, b, v)).store(directions_[d].h_in + b * stride_ + v * L);
  }

  FASTRNN_INLINE V load_state(const void* state, int d, int64_t b, int64_t v) const {
    if (!state) return V::zero();
    return load_lanes<V>(static_cast<const S*>(state) + (d * B_ + b) * H_ + v * L, lanes(v));
  }

  FASTRNN_INLINE int lanes(int64_t v) const { return static_cast<int>(smaller(L, H_ - v * L)); }

  const ExtendedForwardParams& p_;
  const LayerShape& s_;
  const int64_t H_, B_;
  const int64_t vectors_, stride_, gate_stride_;
  const int64_t weight_bytes_;  // of w_hh in the compute type
  const bool direct_;
  Masks<C> masks_;
  // A thread's scratch for one row where c is normalised: c before that and zoneout, and what is
  // kept; [1 + K][stride].
  C* row_;
  int64_t row_elements_;
  Direction directions_[2];
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
