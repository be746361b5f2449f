// The gradients of one layer that are products over all steps:
//   d_input = d_gates w_ih,   d_w_ih = d_gates^T input,
//   d_w_hh = d_gates^T h_prev,   d_b = sum over rows of d_gates.
//
// d_input is divided over threads by rows, the weight gradients by columns of
// d_gates, so that no sum is shared. Rows pass in blocks of kProductRows; a
// block's sum starts from zero and is then added to the total, which keeps the
// rounding error of a long sequence as small as that of a blocked product.
#pragma once
#include "cpu/kernels/pack.h"
#include "cpu/kernels/plan.h"

namespace fastrnn::cpu {
namespace {

template <class S>
class Products {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr bool kConverts = !std::is_same_v<S, C>;
  // A line more than the columns: rows then fall into all sets of a cache.
  static constexpr int64_t kCopyStride = kProductColumns + 16;
  static constexpr int64_t kCopyElements = kProductRows * kCopyStride;
  using Blocks = VectorBlocks<kWideVectors>;
  using Rows = RowBlocks<kWideRows>;

 public:
  Products(const ProductParams& p, int threads, void* workspace)
      : p_(p),
        s_(p.shape),
        N_(s_.steps.rows),
        I_(s_.input_size),
        P_(s_.proj_size),
        gates_(s_.hidden_size),
        columns_(gates_ + p.apart) {
    direct_ = !kConverts && N_ < kDirectRows && I_ % L == 0;
    Arena arena(workspace);
    const int64_t padded = ceil_div(I_, L) * L;
    for (int d = 0; d < s_.directions; ++d) {
      w_ih_[d] = arena.take<C>(p.d_input && !direct_ ? gates_ * padded : 0);
    }
    panel_elements_ = kProductRows * (padded + ceil_div(P_, L) * L);
    converted_elements_ = kConverts ? kProductRows * gates_ : 0;
    partial_elements_ = kConverts ? kProductRows * padded : 0;
    sum_elements_ = kConverts ? columns_ * (I_ + P_) : 0;
    panel_ = arena.take<C>(threads * panel_elements_);
    copy_ = arena.take<C>(threads * kCopyElements);
    converted_ = arena.take<C>(threads * converted_elements_);
    partial_ = arena.take<C>(threads * partial_elements_);
    for (int d = 0; d < s_.directions; ++d) {
      sums_[d] = arena.take<C>(sum_elements_);
      column_sums_[d] = arena.take<C>(2 * columns_);
    }
    bytes_ = arena.used();
  }
  size_t bytes() const { return bytes_; }
  bool wants_input() const { return p_.d_input; }
  int64_t columns() const { return columns_; }

  // Before anything else: this thread's part of the scratch.
  void start(const Worker& worker) {
    panel_ += worker.thread * panel_elements_;
    copy_ += worker.thread * kCopyElements;
    converted_ += worker.thread * converted_elements_;
    partial_ += worker.thread * partial_elements_;
    mine_ = my_columns(worker);
  }

  // ---- d_input -------------------------------------------------------------

  void pack(const Worker& worker) const {
    if (!p_.d_input || direct_) return;
    const Blocks blocks{0, ceil_div(I_, L)};
    int64_t job = 0;
    for (int d = 0; d < s_.directions; ++d) {
      for (int64_t i = 0; i < blocks.count(); ++i) {
        if (job++ % worker.threads != worker.thread) continue;
        blocks.call(i, [&](auto nv, int64_t v) {
          pack_columns<nv()>(static_cast<const S*>(p_.weights[d].w_ih), gates_, I_, v,
                             w_ih_[d] + v * L * gates_);
        });
      }
    }
  }

  // What directions `d_begin` to `d_end` bring to these rows, added to what is there or not. Narrow
  // dtypes round what they store: there all directions come in one call.
  void input_gradient(Range rows, int d_begin, int d_end, const GateRows<const S>* d_gates,
                      bool adds) const {
    const Blocks blocks{0, ceil_div(I_, L)};
    for (int64_t n0 = rows.begin; n0 < rows.end; n0 += kProductRows) {
      const int64_t n1 = smaller(n0 + kProductRows, rows.end);
      for (int d = d_begin; d < d_end; ++d) {
        const C* a = d_gates_rows(d_gates[d], n0, n1);
        const int64_t lda = kConverts ? gates_ : columns_;
        for (int64_t k = 0; k < gates_; k += kReduction) {
          const int64_t terms = smaller(kReduction, gates_ - k);
          const bool first = !adds && d == d_begin && k == 0;
          for (int64_t i = 0; i < blocks.count(); ++i) {
            blocks.call(i, [&](auto nv, int64_t v) {
              Rows::each(0, n1 - n0, [&](auto mr, int64_t r) {
                input_tile<mr(), nv()>(d, v, a + r * lda + k, lda, k, terms, first,
                                       kConverts
                                           ? partial_ + r * I_ + v * L
                                           : static_cast<C*>(p_.d_input) + (n0 + r) * I_ + v * L);
              });
            });
          }
        }
      }
      if constexpr (kConverts) {
        narrow_row(partial_, (n1 - n0) * I_, static_cast<S*>(p_.d_input) + n0 * I_);
      }
    }
  }

  // ---- d_w_ih, d_w_hh, d_b -------------------------------------------------

  // What these rows, of steps from `step` on, bring to this thread's columns; `first`: nothing is
  // there yet.
  void weight_gradients(int d, Range rows_of, int64_t step, GateRows<const S> d_gates,
                        bool first) const {
    if (mine_.size() <= 0) return;
    const Gradients& g = p_.gradients[d];
    const auto [w_ih, w_hh] = sums(d);
    const bool biases = g.d_b_ih || g.d_b_hh;
    Segment list[3];
    const int count = segments(list);

    C* const input_panel = panel_;
    C* const hidden_panel = panel_ + kProductRows * ceil_div(I_, L) * L;
    Walk walk(s_.steps, d, step);
    const int64_t parts = ceil_div(rows_of.size(), kProductRows);
    for (int64_t i = 0; i < parts; ++i, first = false) {
      const Range block = part(rows_of.size(), parts, i);
      const int64_t n0 = rows_of.begin + block.begin, rows = block.size();
      if (g.d_w_ih) {
        pack_panel(I_, rows, input_panel, [&](int64_t r) {
          return PanelRow{static_cast<const S*>(p_.input) + (n0 + r) * I_, nullptr};
        });
      }
      if (g.d_w_hh) {
        pack_panel(P_, rows, hidden_panel, [&](int64_t) { return previous_h(d, walk); });
      }
      for (int j = 0; j < count; ++j) {
        const Segment& s = list[j];
        const Range own = overlap(mine_, s.columns);
        for (int64_t m0 = own.begin; m0 < own.end; m0 += kProductColumns) {
          const Range m{m0, smaller(m0 + kProductColumns, own.end)};
          const int64_t r = m.begin - s.recurrent_shift;  // row of d_w_hh
          const S* a = d_gates.data + (n0 - d_gates.first) * columns_ + m.begin;
          const bool input = s.input && g.d_w_ih, recurrent = s.recurrent && g.d_w_hh;
          if (!input && !recurrent && !biases) continue;
          copy_columns(a, rows, m.size(), first, biases ? column_sums_[d] + m.begin : nullptr);
          if (input) outer(m.size(), rows, input_panel, I_, first, w_ih + m.begin * I_);
          if (recurrent) outer(m.size(), rows, hidden_panel, P_, first, w_hh + r * P_);
        }
      }
    }
  }

  // After the last rows: sums to results.
  void finish(int d) const {
    const Gradients& g = p_.gradients[d];
    const auto [w_ih, w_hh] = sums(d);
    Segment list[3];
    const int count = segments(list);
    for (int i = 0; i < count; ++i) {
      const Segment& s = list[i];
      const Range m = overlap(mine_, s.columns);
      if (m.size() <= 0) continue;
      const int64_t r = m.begin - s.recurrent_shift;
      const auto store = [&](const C* from, int64_t row, int64_t size, void* result) {
        if (result) narrow_row(from, m.size() * size, static_cast<S*>(result) + row * size);
      };
      if (kConverts && s.input) store(w_ih + m.begin * I_, m.begin, I_, g.d_w_ih);
      if (kConverts && s.recurrent) store(w_hh + r * P_, r, P_, g.d_w_hh);
      if (s.input) store(column_sums_[d] + m.begin, m.begin, 1, g.d_b_ih);
      if (s.recurrent) store(column_sums_[d] + m.begin, r, 1, g.d_b_hh);
    }
  }

  // All of it.
  void run(const Worker& worker) {
    start(worker);
    GateRows<const S> d_gates[2];
    for (int d = 0; d < s_.directions; ++d) {
      d_gates[d] = {static_cast<const S*>(p_.d_gates) + d * N_ * columns_, 0};
    }
    if (p_.d_input) {
      pack(worker);
      if (!direct_) worker.barriers[0].wait(worker.threads);
      input_gradient(part(N_, worker.threads, worker.thread), 0, s_.directions, d_gates, false);
    }
    for (int d = 0; d < s_.directions; ++d) {
      weight_gradients(d, {0, N_}, 0, d_gates[d], true);
      finish(d);
    }
  }

 private:
  template <int MR, int NV>
  FASTRNN_NOINLINE void input_tile(int d, int64_t v, const C* a, int64_t lda, int64_t k,
                                   int64_t terms, bool first, C* out) const {
    V acc[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) {
        acc[m][i] = first ? V::zero() : load_lanes<V>(out + m * I_ + i * L, lanes(v + i, I_));
      }
    }
    if (direct_) {
      const C* w = static_cast<const C*>(p_.weights[d].w_ih) + k * I_ + v * L;
      accumulate<MR, NV>(terms, a, lda, w, I_, acc);
    } else {
      accumulate<MR, NV>(terms, a, lda, w_ih_[d] + v * L * gates_ + k * NV * L, NV * L, acc);
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) {
        store_lanes(acc[m][i], out + m * I_ + i * L, lanes(v + i, I_));
      }
    }
  }

  // Columns of d_gates that belong to the input product, to the recurrent one, or to both. Three
  // segments there are only where the last recurrent product is apart.
  struct Segment {
    Range columns;
    bool input, recurrent;
    int64_t recurrent_shift;  // row of d_w_hh = column - shift
  };
  int segments(Segment (&out)[3]) const {
    if (columns_ == gates_) {
      out[0] = {{0, columns_}, true, true, 0};
      return 1;
    }
    const int64_t apart = columns_ - gates_;
    out[0] = {{0, gates_ - apart}, true, true, 0};
    out[1] = {{gates_ - apart, gates_}, true, false, 0};
    out[2] = {{gates_, columns_}, false, true, apart};
    return 3;
  }

  // This thread's columns: an equal share of the multiplications.
  Range my_columns(const Worker& worker) const {
    Segment list[3];
    const int count = segments(list);
    const auto boundary = [&](int64_t index) {
      if (index == worker.threads) return columns_;
      int64_t all = 0;
      for (int i = 0; i < count; ++i) all += list[i].columns.size() * weight(list[i]);
      int64_t left = all * index / worker.threads;
      for (int i = 0; i < count; ++i) {
        const int64_t work = list[i].columns.size() * weight(list[i]);
        if (left < work) return list[i].columns.begin + left / weight(list[i]);
        left -= work;
      }
      return columns_;
    };
    return {boundary(worker.thread), boundary(worker.thread + 1)};
  }
  int64_t weight(const Segment& s) const { return (s.input ? I_ : 0) + (s.recurrent ? P_ : 0); }

  // Where gradients of weights are summed: the results, or scratch of the compute type.
  struct Sums {
    C *w_ih, *w_hh;
  };
  Sums sums(int d) const {
    const Gradients& g = p_.gradients[d];
    if constexpr (kConverts) {
      return {sums_[d], sums_[d] + columns_ * I_};
    } else {
      return {static_cast<C*>(g.d_w_ih), static_cast<C*>(g.d_w_hh)};
    }
  }

  static Range overlap(Range a, Range b) {
    return {larger(a.begin, b.begin), smaller(a.end, b.end)};
  }

  // Goes through rows, from the first of step t on, and knows each one's place.
  struct Walk {
    Walk(const Steps& steps, int direction, int64_t t) : steps(steps), direction(direction), t(t) {}
    const Steps& steps;
    int direction;
    int64_t t, b = 0;
    void next() {
      if (++b == steps.count(t)) {
        b = 0;
        ++t;
      }
    }
  };

  struct PanelRow {
    const S* values;  // null: zeros
    const S* factor;  // null: ones
  };

  // h before the walk's row, as it entered the product.
  PanelRow previous_h(int d, Walk& walk) const {
    const int64_t t = walk.t + (d == 0 ? -1 : 1), b = walk.b;
    walk.next();
    const auto of_state = [&](const void* state) {
      return state ? static_cast<const S*>(state) + (d * s_.steps.batch + b) * P_ : nullptr;
    };
    const S* const factor = of_state(p_.h_scale);
    if (t >= 0 && t < s_.steps.seq_len && b < s_.steps.count(t)) {
      const int64_t n = d * N_ + s_.steps.offset(t) + b;
      return {static_cast<const S*>(p_.hidden) + n * P_, factor};
    }
    return {of_state(p_.h0), factor};
  }

  // panel: `rows` rows of `size` values in blocks of vectors, [block][row][NV * L].
  template <class F>
  void pack_panel(int64_t size, int64_t rows, C* panel, F row) const {
    const Blocks blocks{0, ceil_div(size, L)};
    const int64_t count = blocks.count();
    for (int64_t r = 0; r < rows; ++r) {
      const PanelRow from = row(r);
      for (int64_t i = 0; i < count; ++i) {
        blocks.call(i, [&](auto nv, int64_t v) {
          C* to = panel + v * L * rows + r * nv() * L;
          for (int u = 0; u < nv(); ++u) {
            const int k = lanes(v + u, size);
            V x = from.values ? load_lanes<V>(from.values + (v + u) * L, k) : V::zero();
            if (from.factor) x = x * load_lanes<V>(from.factor + (v + u) * L, k);
            x.store(to + u * L);
          }
        });
      }
    }
  }

  // copy_ [rows][kCopyStride]: `count` columns of d_gates from `a` on, in the compute type. Read
  // where they lie they would share a few cache sets, rows being a power of two apart more often
  // than not.
  //
  // On the way, sums of the columns are added to column_sums, where wanted. What an addition rounds
  // off goes into the next one (Kahan, Communications of the ACM 8(1), 1965): a long sequence has
  // hundreds of blocks.
  void copy_columns(const S* a, int64_t rows, int64_t count, bool first, C* column_sums) const {
    constexpr int kVectors = static_cast<int>(kProductColumns) / L;
    V sums[kVectors];
    for (int i = 0; i < kVectors; ++i) sums[i] = V::zero();
    for (int64_t r0 = 0; r0 < rows; r0 += kSumRows) {  // in blocks, as all long sums
      for (int i = 0; i * L < count; ++i) {
        const int k = lanes(i, count);
        V part = V::zero();
        for (int64_t r = r0; r < smaller(rows, r0 + kSumRows); ++r) {
          const V x = load_lanes<V>(a + r * columns_ + i * L, k);
          x.store(copy_ + r * kCopyStride + i * L);
          part = part + x;
        }
        sums[i] = sums[i] + part;
      }
    }
    if (!column_sums) return;
    C* const rounded_off = column_sums + columns_;
    for (int i = 0; i * L < count; ++i) {
      const int k = lanes(i, count);
      V sum = sums[i], lost = V::zero();
      if (!first) {
        const V before = load_lanes<V>(column_sums + i * L, k);
        const V more = sum - load_lanes<V>(rounded_off + i * L, k);
        sum = before + more;
        lost = (sum - before) - more;
        // An infinite sum stays one.
        lost = select_greater(V::set1(static_cast<C>(INFINITY)), abs(lost), lost, V::zero());
      }
      store_lanes(sum, column_sums + i * L, k);
      store_lanes(lost, rounded_off + i * L, k);
    }
  }

  // out [count, size] += d_gates columns (copy_)^T times the rows in panel
  void outer(int64_t count, int64_t rows, const C* panel, int64_t size, bool first, C* out) const {
    const Blocks blocks{0, ceil_div(size, L)};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nv, int64_t v) {
        Rows::each(0, count, [&](auto mr, int64_t column) {
          outer_tile<mr(), nv()>(copy_ + column, panel + v * L * rows, v, rows, size, first,
                                 out + column * size + v * L);
        });
      });
    }
  }

  template <int MR, int NV>
  FASTRNN_NOINLINE void outer_tile(const C* a, const C* panel, int64_t v, int64_t rows,
                                   int64_t size, bool first, C* out) const {
    V acc[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      // The sums of a large layer lie in memory, each row in a page of its own: they are asked for
      // before the tile needs them.
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) {
        __builtin_prefetch(out + m * size + i * L, 1);
        acc[m][i] = V::zero();
      }
    }
    accumulate_columns<MR, NV>(rows, a, kCopyStride, panel, acc);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) {
        const int k = lanes(v + i, size);
        C* to = out + m * size + i * L;
        if (!first) acc[m][i] = acc[m][i] + load_lanes<V>(to, k);
        store_lanes(acc[m][i], to, k);
      }
    }
  }

  // Rows [n0, n1) of the input product's columns of d_gates in the compute type:
  // where they lie, or converted and then side by side.
  const C* d_gates_rows(GateRows<const S> d_gates, int64_t n0, int64_t n1) const {
    const S* from = d_gates.data + (n0 - d_gates.first) * columns_;
    if constexpr (kConverts) {
      for (int64_t r = 0; r < n1 - n0; ++r) {
        convert(from + r * columns_, gates_, converted_ + r * gates_);
      }
      return converted_;
    } else {
      return from;
    }
  }

  static void narrow_row(const C* from, int64_t n, S* to) {
    for (int64_t i = 0; i < n; i += L) {
      const int k = static_cast<int>(smaller(L, n - i));
      store_lanes(load_lanes<V>(from + i, k), to + i, k);
    }
  }

  static FASTRNN_INLINE int lanes(int64_t v, int64_t size) {
    return static_cast<int>(smaller(L, size - v * L));
  }

  const ProductParams& p_;
  const LayerShape& s_;
  const int64_t N_, I_, P_;
  const int64_t gates_;    // rows of w_ih and w_hh
  const int64_t columns_;  // of d_gates
  bool direct_;            // w_ih is read where it lies
  int64_t panel_elements_, converted_elements_, partial_elements_, sum_elements_;
  C *panel_, *copy_, *converted_, *partial_;  // a thread's own
  C* sums_[2];                                // of the compute type, where results are narrower
  C* column_sums_[2];  // of d_gates, [columns], and what they were rounded off by, [columns]
  C* w_ih_[2];         // panels [G*H][NV * L]
  Range mine_;         // this thread's columns of d_gates
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
