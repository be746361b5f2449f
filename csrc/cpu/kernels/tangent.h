// The derivative of the forward recurrence in a direction, all directions of one
// layer, any cell. It is linear in the tangents: per step, a tile of rows x one
// block of units accumulates t_h_prev w_hh^T, and with what the tangents of the
// input, the weights and the biases bring and what the forward pass saved, the
// cell's derivative turns it into the tangents of c and h. What they bring is
// known before any step,
//   t_x w_ih^T + x t_w_ih^T + h_prev t_w_hh^T + t_b,
// one product over rows and weights laid side by side: for a chunk of steps
// beforehand, in scratch of a thread's own.
//
// Invariants: those of the forward recurrence (two slots of h, rows that are not
// active are not touched, both slots hold the tangent of h0 before step 0). The
// product goes through memory, so that each cell is compiled once and not once a
// tile shape.
#pragma once
#include "cpu/kernels/cell_traits.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/plan.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class Tangent {
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kGates;
  // Columns of what is brought: a GRU's n has its two products apart, [r, z, n, u].
  static constexpr int Q = Cell::kIsGru ? 4 : G;
  using Blocks = VectorBlocks<Cell::kUnitVectors>;
  using ProjectionBlocks = VectorBlocks<kRnnUnitVectors>;

 public:
  static size_t workspace_bytes(const TangentParams& p, int threads) {
    return Tangent(p, threads, nullptr).bytes_;
  }
  static void run(const TangentParams& p, const Worker& worker) {
    Tangent(p, worker.threads, p.workspace).run_worker(worker);
  }

 private:
  struct Direction {
    int64_t terms;      // of the products of a chunk: those of its rows in x_
    int64_t own_terms;  // of them, those for w_hh of a GRU; they are the last
    bool brings;        // whether there are terms or biases at all
    C* w;               // panels [terms][G][NU * L], one a block of units
    C* bias;            // [G][NU * L], one a block
    C* bias_u;          // the same, GRU: of w_hh's product
    C* w_hh;            // panels [P][G][NU * L]
    C* w_hr;            // panels [H][NU * L]
    C* h;               // [2][B][h_stride], tangents of h
    C* c;               // [B][stride], of c
    C* m;               // [B][stride], of h before its projection
  };

  // One step of one thread.
  struct Step {
    int d;
    int64_t row;            // first row of this step in tensors of N rows
    int64_t previous_row;   // the same of the step before it in the recurrence
    int64_t previous_rows;  // rows that have such a step; the others had h0, c0
    const C* pre;           // what is brought, [rows][pre_stride], for row 0; or null
    int64_t pre_first;      // the first vector of units in pre
    int64_t pre_stride;
    const C* h_in;
    C* h_out;
  };

  Tangent(const TangentParams& p, int threads, void* workspace)
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
        weight_bytes_(G * H_ * P_ * static_cast<int64_t>(sizeof(C))) {
    Arena arena(workspace);
    for (int d = 0; d < s_.directions; ++d) {
      Direction& a = directions_[d];
      const Weights& t = p.t_weights[d];
      a.terms = (p.t_input ? I_ : 0) + (t.w_ih ? I_ : 0) + (t.w_hh ? P_ : 0);
      a.own_terms = Cell::kIsGru && t.w_hh ? P_ : 0;
      a.brings = a.terms > 0 || t.b_ih || t.b_hh;
      terms_ = larger(terms_, a.terms);
      a.w = arena.take<C>(G * stride_ * a.terms);
      a.bias = arena.take<C>(a.brings ? G * stride_ : 0);
      a.bias_u = arena.take<C>(a.brings && Cell::kIsGru ? G * stride_ : 0);
      a.w_hh = arena.take<C>(G * stride_ * P_);
      a.w_hr = arena.take<C>(s_.projected ? h_stride_ * H_ : 0);
      a.h = arena.take<C>(2 * B_ * h_stride_);
      a.c = arena.take<C>(Cell::kIsLstm ? B_ * stride_ : 0);
      a.m = arena.take<C>(s_.projected ? B_ * stride_ : 0);
    }
    const Place place = place_of(0, threads, s_.directions, B_, vectors_, weight_bytes_);
    // Batch groups of packed data are uneven, so a thread may have all rows.
    const int64_t rows = s_.steps.counts ? B_ : ceil_div(B_, place.split.batch_groups);
    const int64_t row = ceil_div(vectors_, place.split.unit_groups) * Q * L;
    const int64_t bytes = rows * (row + terms_) * static_cast<int64_t>(sizeof(C));
    chunk_steps_ = smaller(larger(1, kChunkBytes / larger(1, bytes)), s_.steps.seq_len);
    const bool brings = directions_[0].brings || (s_.directions == 2 && directions_[1].brings);
    x_elements_ = (chunk_steps_ * rows * terms_ + L - 1) / L * L;
    pre_elements_ = brings ? chunk_steps_ * rows * row : 0;
    x_ = arena.take<C>(threads * x_elements_);
    pre_ = arena.take<C>(threads * pre_elements_);
    bytes_ = arena.used();
  }

  void run_worker(const Worker& worker) {
    const Place place =
        place_of(worker.thread, worker.threads, s_.directions, B_, vectors_, weight_bytes_);
    pack(worker, place.split.unit_groups);
    worker.barriers[0].wait(worker.threads);
    x_ += worker.thread * x_elements_;
    pre_ += worker.thread * pre_elements_;
    for (int d = place.first_direction; d <= place.last_direction; ++d) {
      run_direction(d, place, worker);
    }
  }

  void pack(const Worker& worker, int unit_groups) const {
    int64_t job = 0;
    const auto mine = [&] { return job++ % worker.threads == worker.thread; };
    for (int d = 0; d < s_.directions; ++d) {
      for (int g = 0; g < unit_groups; ++g) {
        const Range units = part(vectors_, unit_groups, g);
        const Blocks blocks{units.begin, units.end};
        for (int64_t i = 0; i < blocks.count(); ++i) {
          if (!mine()) continue;
          blocks.call(i, [&](auto nu, int64_t v) { pack_block<nu()>(d, v); });
        }
        if (!s_.projected) continue;
        const Range out = part(h_vectors_, unit_groups, g);
        const ProjectionBlocks projections{out.begin, out.end};
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
    const Weights& t = p_.t_weights[d];
    const Direction& a = directions_[d];
    const int64_t at = v * L * G;
    pack_rows<G, NU>(static_cast<const S*>(p_.weights[d].w_hh), H_, P_, v, a.w_hh + at * P_);
    if (!a.brings) return;
    C* to = a.w + at * a.terms;
    const auto append = [&](const void* w, int64_t terms) {
      pack_rows<G, NU>(static_cast<const S*>(w), H_, terms, v, to);
      to += terms * G * NU * L;
    };
    if (p_.t_input) append(p_.weights[d].w_ih, I_);
    if (t.w_ih) append(t.w_ih, I_);
    if (t.w_hh) append(t.w_hh, P_);
    for (int g = 0; g < G; ++g) {
      for (int u = 0; u < NU; ++u) {
        const V b_ih = load_bias(t.b_ih, g, v + u), b_hh = load_bias(t.b_hh, g, v + u);
        const int64_t i = at + (g * NU + u) * L;
        (Cell::kIsGru ? b_ih : b_ih + b_hh).store(a.bias + i);
        if constexpr (Cell::kIsGru) b_hh.store(a.bias_u + i);
      }
    }
  }

  V load_bias(const void* bias, int g, int64_t v) const {
    if (!bias) return V::zero();
    return load_lanes<V>(static_cast<const S*>(bias) + g * H_ + v * L, lanes(v, H_));
  }

  void run_direction(int d, const Place& place, const Worker& worker) const {
    const Steps& steps = s_.steps;
    const Direction& a = directions_[d];
    const int64_t T = steps.seq_len;
    const Range rows = batch_rows(steps, place.split.batch_groups, place.batch_group);
    const Range units = part(vectors_, place.split.unit_groups, place.unit_group);
    const Range h_units =
        s_.projected ? part(h_vectors_, place.split.unit_groups, place.unit_group) : units;
    SpinBarrier& barrier = worker.barriers[place.barrier];
    const int peers = place.split.unit_groups;

    start(d, rows, units, h_units);
    barrier.wait(peers);

    Step step{};
    step.d = d;
    step.pre_first = units.begin;
    step.pre_stride = units.size() * Q * L;
    int64_t chunk_row = 0;
    for (int64_t s = 0; s < T; ++s) {
      if (a.brings && s % chunk_steps_ == 0) {
        bring(d, s, smaller(s + chunk_steps_, T), rows, units);
        chunk_row = 0;
      }
      place_step(step, s);
      step.h_in = a.h + (s % 2) * B_ * h_stride_;
      step.h_out = a.h + ((s + 1) % 2) * B_ * h_stride_;
      const Range active = active_rows(rows, s, d);
      if (a.brings) {
        step.pre = pre_ + (chunk_row - active.begin) * step.pre_stride;
        chunk_row += active.size();
      }
      const Blocks blocks{units.begin, units.end};
      const int64_t count = blocks.count();
      for (int64_t i = 0; i < count; ++i) {
        // Back and forth, so that what is still in the cache is used first.
        blocks.call(s % 2 ? count - 1 - i : i, [&](auto nu, int64_t v) {
          RowBlocks<Cell::kRows>::each(active.begin, active.end,
                                       [&](auto mr, int64_t b) { tile<mr(), nu()>(step, v, b); });
        });
      }
      if (s_.projected) {
        barrier.wait(peers);
        project(step, active, h_units);
      }
      barrier.wait(peers);
    }
    finish(d, rows, units, h_units);
  }

  // Where the rows of step s are, and those of the step before it.
  void place_step(Step& step, int64_t s) const {
    const Steps& steps = s_.steps;
    const int64_t t = time(step.d, s), previous = time(step.d, s - 1);
    step.row = steps.offset(t);
    step.previous_row = s > 0 ? steps.offset(previous) : 0;
    step.previous_rows = s > 0 ? steps.count(previous) : 0;
  }

  int64_t time(int d, int64_t s) const { return d == 1 ? s_.steps.seq_len - 1 - s : s; }

  Range active_rows(Range rows, int64_t s, int d) const {
    return {rows.begin, larger(rows.begin, smaller(rows.end, s_.steps.count(time(d, s))))};
  }

  // ---- what tangents of the input, the weights and the biases bring ----------

  // pre for the active rows of steps [s0, s1), in order.
  void bring(int d, int64_t s0, int64_t s1, Range rows, Range units) const {
    const Direction& a = directions_[d];
    const Weights& t = p_.t_weights[d];
    int64_t count = 0;
    Step step{};
    step.d = d;
    for (int64_t s = s0; s < s1; ++s) {
      place_step(step, s);
      const Range active = active_rows(rows, s, d);
      for (int64_t b = active.begin; b < active.end; ++b) {
        C* to = x_ + count++ * a.terms;
        const int64_t n = step.row + b;
        if (p_.t_input) {
          convert(static_cast<const S*>(p_.t_input) + n * I_, I_, to);
          to += I_;
        }
        if (t.w_ih) {
          convert(static_cast<const S*>(p_.input) + n * I_, I_, to);
          to += I_;
        }
        if (t.w_hh) previous_h(step, b, to);
      }
    }
    const int64_t stride = units.size() * Q * L;
    const Blocks blocks{units.begin, units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        C* pre = pre_ + (v - units.begin) * Q * L;
        RowBlocks<Cell::kRows>::each(0, count, [&](auto mr, int64_t row) {
          bring_tile<mr(), nu()>(a, v, row, pre + row * stride, stride);
        });
      });
    }
  }

  void previous_h(const Step& step, int64_t b, C* to) const {
    const bool had = b < step.previous_rows;
    const void* from = had ? p_.hidden : p_.h0;
    const int64_t n = had ? step.d * s_.steps.rows + step.previous_row + b : step.d * B_ + b;
    if (from) {
      convert(static_cast<const S*>(from) + n * P_, P_, to);
    } else {
      for (int64_t j = 0; j < P_; ++j) to[j] = 0;
    }
  }

  template <int MR, int NU>
  FASTRNN_NOINLINE void bring_tile(const Direction& a, int64_t v, int64_t row, C* pre,
                                   int64_t stride) const {
    constexpr int NV = G * NU;
    const int64_t at = v * L * G, terms = a.terms - a.own_terms;
    const C* w = a.w + at * a.terms;
    V acc[MR][NV];
    from_bias<MR, NV>(a.bias + at, acc);
    accumulate<MR, NV>(terms, x_ + row * a.terms, a.terms, w, NV * L, acc);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) acc[m][i].store(pre + m * stride + i * L);
    }
    if constexpr (Cell::kIsGru) {
      from_bias<MR, NV>(a.bias_u + at, acc);
      accumulate<MR, NV>(a.own_terms, x_ + row * a.terms + terms, a.terms, w + terms * NV * L,
                         NV * L, acc);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        C* to = pre + m * stride;
#pragma GCC unroll 8
        for (int i = 0; i < NV; ++i) {
          if (i < 2 * NU) {
            (acc[m][i] + V::load(to + i * L)).store(to + i * L);
          } else {
            acc[m][i].store(to + (i + NU) * L);
          }
        }
      }
    }
  }

  template <int MR, int NV>
  FASTRNN_INLINE void from_bias(const C* bias, V (&acc)[MR][NV]) const {
#pragma GCC unroll 8
    for (int i = 0; i < NV; ++i) {
      const V value = V::load(bias + i * L);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) acc[m][i] = value;
    }
  }

  // ---- the ends --------------------------------------------------------------

  void start(int d, Range rows, Range units, Range h_units) const {
    const Direction& a = directions_[d];
    const int64_t slot = B_ * h_stride_;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t v = h_units.begin; v < h_units.end; ++v) {
        const V h = load_state(p_.t_h0, d, b, v, P_);
        h.store(a.h + b * h_stride_ + v * L);
        h.store(a.h + slot + b * h_stride_ + v * L);
      }
      if constexpr (Cell::kIsLstm) {
        for (int64_t v = units.begin; v < units.end; ++v) {
          load_state(p_.t_c0, d, b, v, H_).store(a.c + b * stride_ + v * L);
        }
      }
    }
  }

  void finish(int d, Range rows, Range units, Range h_units) const {
    const Steps& steps = s_.steps;
    const Direction& a = directions_[d];
    int64_t length = steps.seq_len;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      // As in the forward recurrence: where the last step of row b left its state.
      while (d == 0 && steps.count(length - 1) <= b) --length;
      const C* h = a.h + (length % 2) * B_ * h_stride_ + b * h_stride_;
      for (int64_t v = h_units.begin; v < h_units.end; ++v) {
        store_lanes(V::load(h + v * L), static_cast<S*>(p_.t_h_n) + (d * B_ + b) * P_ + v * L,
                    lanes(v, P_));
      }
      if constexpr (Cell::kIsLstm) {
        for (int64_t v = units.begin; v < units.end; ++v) {
          store_lanes(V::load(a.c + b * stride_ + v * L),
                      static_cast<S*>(p_.t_c_n) + (d * B_ + b) * H_ + v * L, lanes(v, H_));
        }
      }
    }
  }

  // ---- tiles ---------------------------------------------------------------

  template <int MR, int NV>
  FASTRNN_INLINE void product(int64_t terms, const C* a, int64_t lda, const C* w, C* to) const {
    V acc[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) acc[m][i] = V::zero();
    }
    accumulate<MR, NV>(terms, a, lda, w, NV * L, acc);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) acc[m][i].store(to + (m * NV + i) * L);
    }
  }

  template <int MR, int NU>
  FASTRNN_NOINLINE void tile(const Step& step, int64_t v, int64_t b) const {
    alignas(64) C products[MR * G * NU * L];  // [MR][G][NU * L]
    product<MR, G * NU>(P_, step.h_in + b * h_stride_, h_stride_,
                        directions_[step.d].w_hh + v * L * G * P_, products);
    apply_cells(step, v, NU, b, MR, products);
  }

  FASTRNN_NOINLINE void apply_cells(const Step& step, int64_t v, int vectors, int64_t b, int rows,
                                    const C* products) const {
    const C* pre = nullptr;
    if (step.pre) pre = step.pre + b * step.pre_stride + (v - step.pre_first) * Q * L;
    for (int m = 0; m < rows; ++m, products += G * vectors * L) {
      for (int u = 0; u < vectors; ++u) {
        const C* mine = pre ? pre + m * step.pre_stride + u * L : nullptr;
        const V h = apply_cell(step, v + u, b + m, products + u * L, mine, vectors * L);
        if (s_.projected) {
          h.store(directions_[step.d].m + (b + m) * stride_ + (v + u) * L);
        } else {
          publish(step, v + u, b + m, h);
        }
      }
    }
  }

  // products, pre (or null): of this row and vector, those of the gates `stride` apart.
  FASTRNN_INLINE V apply_cell(const Step& step, int64_t v, int64_t b, const C* products,
                              const C* pre, int64_t stride) const {
    const int k = lanes(v, H_);
    const int64_t n = step.d * s_.steps.rows + step.row + b;
    const S* saved = static_cast<const S*>(p_.gates) + n * Cell::kSaved * H_ + v * L;
    const auto add = [&](V x, const void* through, int gate) {
      if (!through) return x;
      return x + load_lanes<V>(static_cast<const S*>(through) + (n * G + gate) * H_ + v * L, k);
    };
    const auto input = [&](int gate) {
      return add(pre ? V::load(pre + gate * stride) : V::zero(), p_.through_w_ih, gate);
    };
    const auto recurrent = [&](int gate) {
      return add(V::load(products + gate * stride), p_.through_w_hh, gate);
    };
    if constexpr (Cell::kIsLstm) {
      const cells::LstmGates<V> gates{load_lanes<V>(saved, k), load_lanes<V>(saved + H_, k),
                                      load_lanes<V>(saved + 2 * H_, k),
                                      load_lanes<V>(saved + 3 * H_, k)};
      const V c = load_lanes<V>(static_cast<const S*>(p_.cells) + n * H_ + v * L, k);
      const V c_previous = previous(step, p_.cells, p_.c0, v, b, k);
      cells::LstmGates<V> t{input(0) + recurrent(0), input(1) + recurrent(1),
                            input(2) + recurrent(2), input(3) + recurrent(3)};
      C* state = directions_[step.d].c + b * stride_ + v * L;
      V t_c = V::load(state);
      const V t_h = cells::lstm_cell_tangent(gates, t, c_previous, c, t_c);
      t_c.store(state);
      save_gates(n, v, k, t.i, t.f, t.g, t.o);
      if (p_.t_cells) store_lanes(t_c, static_cast<S*>(p_.t_cells) + n * H_ + v * L, k);
      return t_h;
    } else if constexpr (Cell::kIsGru) {
      const cells::GruGates<V> gates{load_lanes<V>(saved, k), load_lanes<V>(saved + H_, k),
                                     load_lanes<V>(saved + 2 * H_, k),
                                     load_lanes<V>(saved + 3 * H_, k)};
      const V h_previous = previous(step, p_.hidden, p_.h0, v, b, k);
      V u = recurrent(2);
      if (pre) u = u + V::load(pre + 3 * stride);
      cells::GruGates<V> t{input(0) + recurrent(0), input(1) + recurrent(1), input(2), u};
      const V t_h =
          cells::gru_cell_tangent(gates, t, h_previous, V::load(step.h_in + b * h_stride_ + v * L));
      save_gates(n, v, k, t.r, t.z, t.n, t.u);
      return t_h;
    } else {
      const V h = load_lanes<V>(static_cast<const S*>(p_.hidden) + n * H_ + v * L, k);
      const V t = input(0) + recurrent(0);
      // One factor for each unit: the same for tangents as for gradients.
      return s_.cell == CellKind::kRnnRelu ? cells::Relu::backward(h, t)
                                           : cells::Tanh::backward(h, t);
    }
  }

  // The value a state had before this step.
  FASTRNN_INLINE V previous(const Step& step, const void* saved, const void* initial, int64_t v,
                            int64_t b, int k) const {
    if (b >= step.previous_rows) return load_state(initial, step.d, b, v, H_);
    const int64_t n = step.d * s_.steps.rows + step.previous_row + b;
    return load_lanes<V>(static_cast<const S*>(saved) + n * H_ + v * L, k);
  }

  FASTRNN_INLINE V load_state(const void* state, int d, int64_t b, int64_t v, int64_t size) const {
    if (!state) return V::zero();
    return load_lanes<V>(static_cast<const S*>(state) + (d * B_ + b) * size + v * L,
                         lanes(v, size));
  }

  FASTRNN_INLINE void save_gates(int64_t n, int64_t v, int k, V g0, V g1, V g2, V g3) const {
    if (!p_.t_gates) return;
    S* out = static_cast<S*>(p_.t_gates) + n * Cell::kSaved * H_ + v * L;
    store_lanes(g0, out, k);
    store_lanes(g1, out + H_, k);
    store_lanes(g2, out + 2 * H_, k);
    store_lanes(g3, out + 3 * H_, k);
  }

  FASTRNN_INLINE void publish(const Step& step, int64_t v, int64_t b, V h) const {
    h.store(step.h_out + b * h_stride_ + v * L);
    const int64_t n = step.d * s_.steps.rows + step.row + b;
    store_lanes(h, static_cast<S*>(p_.t_hidden) + n * P_ + v * L, lanes(v, P_));
  }

  void project(const Step& step, Range active, Range h_units) const {
    const ProjectionBlocks blocks{h_units.begin, h_units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        RowBlocks<kRnnRows>::each(active.begin, active.end, [&](auto mr, int64_t b) {
          project_tile<mr(), nu()>(step, v, b);
        });
      });
    }
  }

  template <int MR, int NU>
  FASTRNN_NOINLINE void project_tile(const Step& step, int64_t v, int64_t b) const {
    const Direction& a = directions_[step.d];
    alignas(64) C products[MR * NU * L];
    product<MR, NU>(H_, a.m + b * stride_, stride_, a.w_hr + v * L * H_, products);
    for (int m = 0; m < MR; ++m) {
      for (int u = 0; u < NU; ++u) {
        V h = V::load(products + (m * NU + u) * L);
        if (p_.through_w_hr) {
          const int64_t n = step.d * s_.steps.rows + step.row + b + m;
          const S* more = static_cast<const S*>(p_.through_w_hr) + n * P_ + (v + u) * L;
          h = h + load_lanes<V>(more, lanes(v + u, P_));
        }
        publish(step, v + u, b + m, h);
      }
    }
  }

  static FASTRNN_INLINE int lanes(int64_t v, int64_t size) {
    return static_cast<int>(smaller(L, size - v * L));
  }

  const TangentParams& p_;
  const LayerShape& s_;
  const int64_t I_, H_, P_, B_;
  const int64_t vectors_, h_vectors_;  // of units, of values of h
  const int64_t stride_, h_stride_;    // the same in elements, padded
  const int64_t weight_bytes_;         // of w_hh in the compute type
  int64_t terms_ = 0;                  // of either direction at most
  int64_t chunk_steps_, x_elements_, pre_elements_;
  C *x_, *pre_;  // a thread's chunk of rows and of what they bring
  Direction directions_[2];
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
