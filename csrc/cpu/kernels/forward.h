// The forward recurrence of one layer, all directions, any cell.
//
// Per step, a tile of rows x one block of units accumulates
//   bias + x w_ih^T and, apart, h_prev w_hh^T
// in registers. Their sums go through memory to the cell, which makes the new states:
// it is compiled once and not once a tile shape. The input part is computed in the
// same tile, or for a chunk of steps beforehand.
//
// Invariants: the state h has two slots, step s reads slot s % 2 and writes the
// other; a thread writes h and c of its own rows and units only. Rows that are
// not active at a step (packed data) are not touched, and both slots hold h0
// before step 0, so a row may start at any step. With options inside the recurrence
// a step has a second phase, which is forward_rows.h's.
#pragma once
#include "cpu/kernels/forward_rows.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class Forward {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kHasC = Cell::kStates > 1;
  using Blocks = VectorBlocks<kUnitVectors<Cell>>;
  using Rows = RowBlocks<kCellRows<Cell>>;
  using WideBlocks = VectorBlocks<kWideVectors>;
  using WideRows = RowBlocks<kWideRows>;

 public:
  static size_t workspace_bytes(const ForwardParams& p, int threads) {
    return Forward(p, threads, nullptr).bytes_;
  }
  static void run(const ForwardParams& p, const Worker& worker) {
    Forward(p, worker.threads, p.workspace).run_worker(worker);
  }

 private:
  // The parts of the workspace that belong to one direction.
  struct Direction {
    C* w_ih;    // panels [I][G][NU * L], one a block of units; none where packed late
    C* w_hh;    // panels [P][G][NU * L]
    C* w_hr;    // panels [H][NU * L]
    C* bias;    // [G][NU * L], one a block, but for what is in bias_u
    C* bias_u;  // [vectors * L], of a recurrent product apart
    C* h;       // [2][B][h_stride]
    C* c;       // [B][stride]
    C* m;       // [B][stride], h before its projection
  };

  // One step of one thread.
  struct Step {
    int d;
    int64_t first_row;  // of the step, in tensors of N rows
    const C* x;         // fused: rows of this step, x_stride apart, for row 0 of the batch
    int64_t x_stride;
    const C* pre;       // not fused: bias + x w_ih^T, [rows][pre_stride], for row 0
    int64_t pre_first;  // the first vector of units in pre
    int64_t pre_stride;
    const C* h_in;
    const C* multiplied;  // h_in, or what it becomes before the product
    C* h_out;
  };

  Forward(const ForwardParams& p, int threads, void* workspace)
      : p_(p),
        s_(p.shape),
        I_(s_.input_size),
        H_(s_.hidden_size),
        P_(s_.proj_size),
        B_(s_.steps.batch),
        vectors_(ceil_div(H_, L)),
        h_vectors_(ceil_div(P_, L)),
        stride_(vectors_ * L),
        h_stride_(h_vectors_ * L),
        x_each_(G * H_ <= kFewColumns ? kFewTerms : kSumTerms),
        rows_(p, threads, workspace) {
    constexpr int64_t kSize = sizeof(C);
    weight_bytes_ = G * H_ * P_ * kSize;
    direct_ih_ = s_.steps.rows < kDirectRows;
    direct_hh_ = direct_ih_ || (B_ <= kDirectBatch && weight_bytes_ > kDirectBytes);
    const Place place = place_of(0, threads, s_.directions, B_, vectors_, weight_bytes_);
    // With options inside, products go through memory anyway: w_ih is read once a chunk then.
    fused_ =
        !p.inside.any && !direct_hh_ && B_ >= kFusedRows &&
        (G * H_ * I_ * kSize <= kFusedBytes || B_ / place.split.batch_groups >= kFusedRowsLarge);
    // Batch groups of packed data are uneven, so a thread may have all rows.
    const int64_t rows = s_.steps.counts ? B_ : ceil_div(B_, place.split.batch_groups);
    const int64_t row = ceil_div(vectors_, place.split.unit_groups) * G * L;
    const int64_t row_bytes = kSize * larger(1, rows * row);
    packs_late_ = !direct_ih_ && !fused_ && place.split.batch_groups == 1 &&
                  s_.steps.seq_len <= kLateBytes / row_bytes;
    chunk_steps_ = fused_ ? 1 : larger(1, kChunkBytes / row_bytes);
    if (packs_late_) chunk_steps_ = s_.steps.seq_len;

    Arena arena(after(workspace, rows_.bytes()));
    for (int d = 0; d < s_.directions; ++d) {
      Direction& a = directions_[d];
      a.w_ih = arena.take<C>(direct_ih_ || packs_late_ ? 0 : G * stride_ * I_);
      a.w_hh = arena.take<C>(direct_hh_ ? 0 : G * stride_ * P_);
      a.w_hr = arena.take<C>(s_.projected ? h_stride_ * H_ : 0);
      a.bias = arena.take<C>(G * stride_);
      a.bias_u = arena.take<C>(cells::kApart<Cell> ? stride_ : 0);
      a.h = arena.take<C>(2 * B_ * h_stride_);
      a.c = arena.take<C>(kHasC ? B_ * stride_ : 0);
      a.m = arena.take<C>(s_.projected ? B_ * stride_ : 0);
    }
    chunk_steps_ = smaller(chunk_steps_, s_.steps.seq_len);
    x_elements_ = (chunk_steps_ * rows * I_ + L - 1) / L * L;
    pre_elements_ = fused_ ? 0 : chunk_steps_ * rows * row;
    x_ = arena.take<C>(threads * x_elements_);
    pre_ = arena.take<C>(threads * pre_elements_);
    panel_elements_ = packs_late_ ? I_ * G * kUnitVectors<Cell> * L : 0;
    panel_ = arena.take<C>(threads * panel_elements_);
    bytes_ = rows_.bytes() + arena.used();
  }

  void run_worker(const Worker& worker) {
    const Place place =
        place_of(worker.thread, worker.threads, s_.directions, B_, vectors_, weight_bytes_);
    pack(worker, place.split.unit_groups);
    worker.barriers[0].wait(worker.threads);
    x_ += worker.thread * x_elements_;
    pre_ += worker.thread * pre_elements_;
    panel_ += worker.thread * panel_elements_;
    for (int d = place.first_direction; d <= place.last_direction; ++d) {
      run_direction(d, place, worker);
    }
  }

  // ---- packing -------------------------------------------------------------

  void pack(const Worker& worker, int unit_groups) const {
    int64_t job = 0;
    const auto mine = [&] { return job++ % worker.threads == worker.thread; };
    for (int d = 0; d < s_.directions; ++d) {
      for (int g = 0; g < unit_groups; ++g) {
        const Range units = part(vectors_, unit_groups, g);
        const Blocks blocks{units.begin, units.end};
        for (int64_t i = 0; i < blocks.count(); ++i) {
          if (mine()) blocks.call(i, [&](auto nu, int64_t v) { pack_block<nu()>(d, v); });
        }
        if (!s_.projected) continue;
        const Range out = part(h_vectors_, unit_groups, g);
        const WideBlocks projections{out.begin, out.end};
        for (int64_t i = 0; i < projections.count(); ++i) {
          if (!mine()) continue;
          projections.call(i, [&](auto nu, int64_t v) {
            pack_rows<1, nu()>(static_cast<const S*>(p_.weights[d].w_hr), P_, H_, v,
                               directions_[d].w_hr + v * L * H_);
          });
        }
      }
    }
  }

  template <int NU>
  void pack_block(int d, int64_t v) const {
    const Weights& w = p_.weights[d];
    const Direction& a = directions_[d];
    const int64_t at = v * L * G;
    if (!direct_ih_ && !packs_late_) pack_input<NU>(d, v, a.w_ih + at * I_);
    if (!direct_hh_) pack_rows<G, NU>(static_cast<const S*>(w.w_hh), H_, P_, v, a.w_hh + at * P_);
    const bool normalised = p_.inside.norm != Norm::kNone;  // biases are added after that
    for (int g = 0; g < G; ++g) {
      const bool separate = cells::recurrent_column<Cell>(g) != g;
      for (int u = 0; u < NU; ++u) {
        const V b_ih = normalised ? V::zero() : load_bias(w.b_ih, g, v + u);
        const V b_hh = normalised ? V::zero() : load_bias(w.b_hh, g, v + u);
        (separate ? b_ih : b_ih + b_hh).store(a.bias + at + (g * NU + u) * L);
        if (separate) b_hh.store(a.bias_u + (v + u) * L);
      }
    }
  }

  template <int NU>
  void pack_input(int d, int64_t v, C* panel) const {
    pack_rows<G, NU>(static_cast<const S*>(p_.weights[d].w_ih), H_, I_, v, panel);
  }

  V load_bias(const void* bias, int g, int64_t v) const {
    if (!bias) return V::zero();
    return load_lanes<V>(static_cast<const S*>(bias) + g * H_ + v * L, lanes_of(v, H_));
  }

  // ---- one direction -------------------------------------------------------

  void run_direction(int d, const Place& place, const Worker& worker) const {
    const Steps& steps = s_.steps;
    const Direction& a = directions_[d];
    const Range rows = batch_rows(steps, place.split.batch_groups, place.batch_group);
    const Range units = part(vectors_, place.split.unit_groups, place.unit_group);
    const Range h_units =
        s_.projected ? part(h_vectors_, place.split.unit_groups, place.unit_group) : units;
    SpinBarrier& barrier = worker.barriers[place.barrier];
    const int peers = place.split.unit_groups;

    start(d, rows, units, h_units);
    barrier.wait(peers);

    const C* const scaled = rows_.memory().h_in(d);
    Step step{};
    step.d = d;
    step.pre_first = units.begin;
    step.pre_stride = units.size() * G * L;
    for (int64_t s0 = 0; s0 < steps.seq_len; s0 += chunk_steps_) {
      const int64_t s1 = smaller(s0 + chunk_steps_, steps.seq_len);
      if (!fused_) chunk_input(d, s0, s1, rows, units);
      int64_t chunk_row = 0;
      for (int64_t s = s0; s < s1; ++s) {
        const int64_t t = time(d, s);
        const Range active = active_rows(rows, t);
        step.first_row = steps.offset(t);
        step.h_in = a.h + (s % 2) * B_ * h_stride_;
        step.multiplied = scaled ? scaled : step.h_in;
        step.h_out = a.h + ((s + 1) % 2) * B_ * h_stride_;
        if (fused_) {
          set_input(step, t, active);
        } else {
          step.pre = pre_ + (chunk_row - active.begin) * step.pre_stride;
          chunk_row += active.size();
        }
        const Blocks blocks{units.begin, units.end};
        const int64_t count = blocks.count();
        for (int64_t i = 0; i < count; ++i) {
          // Back and forth, so that what is still in the cache is used first.
          blocks.call(s % 2 ? count - 1 - i : i, [&](auto nu, int64_t v) {
            Rows::each(active.begin, active.end, [&](auto mr, int64_t b) {
              if (direct_hh_) {
                for (int m = 0; m < mr(); ++m) direct_tile<nu()>(step, v, b + m);
              } else {
                tile<mr(), nu()>(step, v, b);
              }
            });
          });
        }
        if (s_.projected) {
          barrier.wait(peers);
          project(step, active, h_units);
        }
        if (p_.inside.any) {
          barrier.wait(peers);
          apply_rows(step, t, share_of(active, peers, place.unit_group), worker.thread);
        }
        barrier.wait(peers);
      }
    }
    finish(d, rows, units, h_units);
  }

  int64_t time(int d, int64_t s) const { return d == 1 ? s_.steps.seq_len - 1 - s : s; }

  Range active_rows(Range rows, int64_t t) const {
    return {rows.begin, larger(rows.begin, smaller(rows.end, s_.steps.count(t)))};
  }

  void start(int d, Range rows, Range units, Range h_units) const {
    const Direction& a = directions_[d];
    const int64_t slot = B_ * h_stride_;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t v = h_units.begin; v < h_units.end; ++v) {
        const V h = load_state(p_.h0, d, b, v, P_);
        h.store(a.h + b * h_stride_ + v * L);
        h.store(a.h + slot + b * h_stride_ + v * L);
        rows_.memory().put_h(d, b, v * L, h);
      }
      if constexpr (kHasC) {
        for (int64_t v = units.begin; v < units.end; ++v) {
          load_state(p_.c0, d, b, v, H_).store(a.c + b * stride_ + v * L);
        }
      }
    }
  }

  V load_state(const void* state, int d, int64_t b, int64_t v, int64_t size) const {
    if (!state) return V::zero();
    return load_lanes<V>(static_cast<const S*>(state) + (d * B_ + b) * size + v * L,
                         lanes_of(v, size));
  }

  void finish(int d, Range rows, Range units, Range h_units) const {
    const Steps& steps = s_.steps;
    const Direction& a = directions_[d];
    int64_t length = steps.seq_len;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      // Going forward, the last step of row b is its length - 1; in reverse, the
      // last step is that of time 0 for all rows.
      while (d == 0 && steps.count(length - 1) <= b) --length;
      const C* h = a.h + (length % 2) * B_ * h_stride_ + b * h_stride_;
      for (int64_t v = h_units.begin; v < h_units.end; ++v) {
        store_lanes(V::load(h + v * L), static_cast<S*>(p_.h_n) + (d * B_ + b) * P_ + v * L,
                    lanes_of(v, P_));
      }
      if constexpr (kHasC) {
        for (int64_t v = units.begin; v < units.end; ++v) {
          store_lanes(V::load(a.c + b * stride_ + v * L),
                      static_cast<S*>(p_.c_n) + (d * B_ + b) * H_ + v * L, lanes_of(v, H_));
        }
      }
    }
  }

  // ---- the input product ---------------------------------------------------

  const S* input_row(int64_t t, int64_t b) const {
    const int64_t step =
        s_.steps.offsets ? s_.steps.offsets[t] * p_.input_row_stride : t * p_.input_step_stride;
    return static_cast<const S*>(p_.input) + step + b * p_.input_row_stride;
  }

  // The input rows of a fused step: where they lie, or converted.
  void set_input(Step& step, int64_t t, Range active) const {
    if constexpr (std::is_same_v<S, C>) {
      step.x = input_row(t, 0);
      step.x_stride = p_.input_row_stride;
    } else {
      for (int64_t b = active.begin; b < active.end; ++b) {
        convert(input_row(t, b), I_, x_ + (b - active.begin) * I_);
      }
      step.x = x_ - active.begin * I_;
      step.x_stride = I_;
    }
  }

  // pre[row] = bias + x w_ih^T for the active rows of steps [s0, s1), in order.
  void chunk_input(int d, int64_t s0, int64_t s1, Range rows, Range units) const {
    int64_t count = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = time(d, s);
      const Range active = active_rows(rows, t);
      for (int64_t b = active.begin; b < active.end; ++b) {
        convert(input_row(t, b), I_, x_ + count++ * I_);
      }
    }
    const int64_t stride = units.size() * G * L;
    const Blocks blocks{units.begin, units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        C* pre = pre_ + (v - units.begin) * G * L;
        const C* panel = packs_late_ ? panel_ : directions_[d].w_ih + v * L * G * I_;
        if (packs_late_) pack_input<nu()>(d, v, panel_);
        Rows::each(0, count, [&](auto mr, int64_t row) {
          if (direct_ih_) {
            for (int m = 0; m < mr(); ++m) direct_input<nu()>(d, v, row + m, pre, stride);
          } else {
            product_tile<mr(), G * nu(), C>({I_, x_ + row * I_, I_, panel, G * nu() * L,
                                             directions_[d].bias + v * L * G, 0, pre + row * stride,
                                             stride, x_each_});
          }
        });
      });
    }
  }

  template <int NU>
  FASTRNN_NOINLINE void direct_input(int d, int64_t v, int64_t row, C* pre, int64_t stride) const {
    alignas(64) C products[G * NU * L];
    direct_products<NU>(static_cast<const S*>(p_.weights[d].w_ih), I_, x_ + row * I_, v, products);
    for (int i = 0; i < G * NU; ++i) {
      (V::load(directions_[d].bias + v * L * G + i * L) + V::load(products + i * L))
          .store(pre + row * stride + i * L);
    }
  }

  // products [G][NU * L] = a w^T for one row, w where it lies. Four rows of w at a time: fewer
  // leave the multipliers waiting, eight are read more slowly (docs/decisions.md).
  template <int NU>
  void direct_products(const S* w, int64_t terms, const C* a, int64_t v, C* products) const {
    constexpr int W = NU * L;
    constexpr int N = W < 4 ? W : 4;
    for (int g = 0; g < G; ++g) {
      for (int i = 0; i < W; i += N) {
        const S* rows[N];
        for (int j = 0; j < N; ++j) {  // lanes beyond the last unit repeat it
          rows[j] = w + (g * H_ + smaller(v * L + i + j, H_ - 1)) * terms;
        }
        dots<N, V>(terms, a, rows, products + g * W + i);
      }
    }
  }

  // ---- tiles ---------------------------------------------------------------

  template <int MR, int NU>
  FASTRNN_NOINLINE void tile(const Step& step, int64_t v, int64_t b) const {
    const Direction& a = directions_[step.d];
    Columns<C> product{P_,
                       step.multiplied + b * h_stride_,
                       h_stride_,
                       a.w_hh + v * L * G * P_,
                       I_,
                       nullptr,
                       step.x_stride,
                       a.w_ih + v * L * G * I_,
                       a.bias + v * L * G,
                       nullptr,
                       step.pre_stride,
                       x_each_};
    if (fused_) {
      product.x = step.x + b * step.x_stride;
    } else {
      product.pre = pre_of(step, v, b);
    }
    if (p_.inside.any) return tile_for_rows<MR, NU>(step, v, b, product);
    if constexpr (Cell::kVectors == 0) {
      alignas(64) C columns[MR * K * NU * L];
      expect_writes<MR, NU>(step, v, b);
      column_tile<MR, G * NU, (K - G) * NU>(product, columns);
      apply_cells<NU>(step, v, b, MR, columns);
    }
  }

  template <int NU>
  FASTRNN_NOINLINE void direct_tile(const Step& step, int64_t v, int64_t b) const {
    alignas(64) C products[G * NU * L], columns[2 * G * NU * L];
    direct_products<NU>(static_cast<const S*>(p_.weights[step.d].w_hh), P_,
                        step.multiplied + b * h_stride_, v, products);
    const C* const pre = pre_of(step, v, b);
    const int apart = apart_columns<Cell>(p_.inside.norm) * NU * L, together = G * NU * L - apart;
    for (int i = 0; i < G * NU * L; i += L) {
      const V x = V::load(pre + i), recurrent = V::load(products + i);
      (i < together ? recurrent + x : x).store(columns + i);
      if (i >= together) recurrent.store(columns + i + apart);
    }
    if (p_.inside.any) return rows_.memory().take(step.d, v * L, NU * L, b, 1, columns);
    if constexpr (Cell::kVectors == 0) apply_cells<NU>(step, v, b, 1, columns);
  }

  // ---- options inside the recurrence -----------------------------------------

  template <int MR, int NU>
  FASTRNN_NOINLINE void tile_for_rows(const Step& step, int64_t v, int64_t b,
                                      const Columns<C>& product) const {
    constexpr int NV = G * NU;
    alignas(64) C columns[MR * 2 * NV * L];
    switch (p_.inside.norm) {
      case Norm::kNone:
        column_tile<MR, NV, apart_columns<Cell>(Norm::kNone) * NU>(product, columns);
        break;
      case Norm::kRecurrent:
        column_tile<MR, NV, apart_columns<Cell>(Norm::kRecurrent) * NU>(product, columns);
        break;
      case Norm::kJoint:
        column_tile<MR, NV, apart_columns<Cell>(Norm::kJoint) * NU>(product, columns);
        break;
    }
    rows_.memory().take(step.d, v * L, NU * L, b, MR, columns);
  }

  void apply_rows(const Step& step, int64_t t, Range rows, int thread) const {
    const Direction& a = directions_[step.d];
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      rows_.apply({step.d, t, b, step.first_row + b, a.bias_u, step.h_in + b * h_stride_,
                   step.h_out + b * h_stride_, a.c + b * stride_},
                  thread);
    }
  }

  // bias + x w_ih^T of a tile: [rows][G][NU * L], rows pre_stride apart.
  FASTRNN_INLINE const C* pre_of(const Step& step, int64_t v, int64_t b) const {
    return step.pre + b * step.pre_stride + (v - step.pre_first) * G * L;
  }

  // Asks for the lines that the cell will write, far away since the pass before: a store that
  // misses holds up those behind it. (prefetchw, a no-operation to processors that lack it.)
  template <int MR, int NU>
  FASTRNN_INLINE void expect_writes(const Step& step, int64_t v, int64_t b) const {
    const auto touch = [](void* base, int64_t element) {
      __builtin_prefetch(static_cast<S*>(base) + element, 1);
    };
    for (int m = 0; m < MR; ++m) {
      const int64_t row = step.first_row + b + m;
      const int64_t n = step.d * s_.steps.rows + row;
      for (int u = 0; u < NU; ++u) {
        const int64_t unit = (v + u) * L;
        if (kSaved<Cell> > 0 && p_.gates) {
          for (int k = 0; k < K; ++k) touch(p_.gates, (n * K + k) * H_ + unit);
          if (kHasC) touch(p_.cells, n * H_ + unit);
        }
        if (s_.projected) continue;
        if (p_.hidden) touch(p_.hidden, n * H_ + unit);
        touch(p_.output, (row * s_.directions + step.d) * H_ + unit);
      }
    }
  }

  // ---- cells ---------------------------------------------------------------

  // columns [rows][K][NU * L]: of units before activation. Everything that a row's place follows
  // from is worked out before the first row: whatever is stored might change the members, for all
  // the compiler knows.
  template <int NU>
  FASTRNN_NOINLINE void apply_cells(const Step& step, int64_t v, int64_t b, int rows,
                                    const C* columns) const {
    constexpr int kWidth = NU * L;
    const Direction& of = directions_[step.d];
    const int64_t unit = v * L, row = step.first_row + b;
    const int64_t H = H_, h_stride = h_stride_, stride = stride_;
    const bool projected = s_.projected, saves = kSaved<Cell> > 0 && p_.gates;
    int64_t n = step.d * s_.steps.rows + row;
    S* const gates = static_cast<S*>(p_.gates);
    S* const cells = static_cast<S*>(p_.cells);
    const C* h_in = step.h_in + b * h_stride + unit;
    C* c = kHasC ? of.c + b * stride + unit : nullptr;
    C* h_out = (projected ? of.m + b * stride : step.h_out + b * h_stride) + unit;
    const int64_t h_out_stride = projected ? stride : h_stride;
    Published to = published(step, row, unit);
    V bias_u[NU];
    int lanes[NU];
    for (int u = 0; u < NU; ++u) {
      bias_u[u] = cells::kApart<Cell> ? V::load(of.bias_u + unit + u * L) : V::zero();
      lanes[u] = lanes_of(v + u, H);
    }
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
      for (int u = 0; u < NU; ++u) {
        V a[K], before[Cell::kStates], after[Cell::kStates];
        for (int k = 0; k < K; ++k) a[k] = V::load(columns + k * kWidth + u * L);
        if constexpr (cells::kApart<Cell>) a[K - 1] = a[K - 1] + bias_u[u];
        before[0] = Cell::kCarriesH ? V::load(h_in + u * L) : V::zero();
        if constexpr (kHasC) before[1] = V::load(c + u * L);
        cells::forward<Cell>(a, before, after);
        if constexpr (kHasC) after[1].store(c + u * L);
        if (saves) {
          S* const kept = gates + n * K * H + unit + u * L;
          for (int k = 0; k < K; ++k) store_lanes(a[k], kept + k * H, lanes[u]);
          if constexpr (kHasC) store_lanes(after[1], cells + n * H + unit + u * L, lanes[u]);
        }
        after[0].store(h_out + u * L);
        if (!projected) to.put(after[0], u * L, lanes[u]);
      }
      columns += K * kWidth;
      h_in += h_stride;
      if (kHasC) c += stride;
      ++n;
      h_out += h_out_stride;
      to.next();
    }
  }

  // Where h of a row goes besides the state: the output and, in training, the saved copy.
  struct Published {
    S *output, *hidden;  // hidden: or null
    int64_t output_stride, hidden_stride;
    FASTRNN_INLINE void put(V h, int64_t at, int lanes) const {
      store_lanes(h, output + at, lanes);
      if (hidden) store_lanes(h, hidden + at, lanes);
    }
    FASTRNN_INLINE void next() {
      output += output_stride;
      if (hidden) hidden += hidden_stride;
    }
  };
  FASTRNN_INLINE Published published(const Step& step, int64_t row, int64_t unit) const {
    S* const hidden = static_cast<S*>(p_.hidden);
    return {static_cast<S*>(p_.output) + (row * s_.directions + step.d) * P_ + unit,
            hidden ? hidden + (step.d * s_.steps.rows + row) * P_ + unit : nullptr,
            s_.directions * P_, P_};
  }

  void project(const Step& step, Range active, Range h_units) const {
    const Direction& a = directions_[step.d];
    const WideBlocks blocks{h_units.begin, h_units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        WideRows::each(active.begin, active.end, [&](auto mr, int64_t b) {
          constexpr int kWidth = nu() * L;
          alignas(64) C h[mr() * kWidth];
          product_tile<mr(), nu(), C>(
              {H_, a.m + b * stride_, stride_, a.w_hr + v * L * H_, kWidth, nullptr, 0, h, kWidth});
          Published to = published(step, step.first_row + b, v * L);
          for (int m = 0; m < mr(); ++m, to.next()) {
            for (int u = 0; u < nu(); ++u) {
              const V value = V::load(h + m * kWidth + u * L);
              value.store(step.h_out + (b + m) * h_stride_ + (v + u) * L);
              to.put(value, u * L, lanes_of(v + u, P_));
            }
          }
        });
      });
    }
  }

  static FASTRNN_INLINE int lanes_of(int64_t v, int64_t size) {
    return static_cast<int>(smaller(L, size - v * L));
  }

  const ForwardParams& p_;
  const LayerShape& s_;
  const int64_t I_, H_, P_, B_;
  const int64_t vectors_, h_vectors_;  // of units, of values of h
  const int64_t stride_, h_stride_;    // the same in elements, padded
  const int64_t x_each_;               // terms of a block of the input's sums
  int64_t weight_bytes_;               // of w_hh in the compute type
  bool direct_ih_, direct_hh_;         // the weight is read where it lies
  bool fused_;                         // the input product is part of the tile
  bool packs_late_;                    // w_ih a block at a time, just before its only use
  int64_t chunk_steps_, x_elements_, pre_elements_, panel_elements_;
  C *x_, *pre_;  // a thread's chunk of input rows and of their products
  C* panel_;     // a thread's block of w_ih, where packed late
  ForwardRows<Cell, S> rows_;
  Direction directions_[2];
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
