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
// product goes through memory to the cell. With options inside the recurrence a step
// has a second phase, which is tangent_rows.h's.
#pragma once
#include "cpu/kernels/tangent_rows.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class S>
class Tangent {
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
  static size_t workspace_bytes(const TangentParams& p, int threads) {
    return Tangent(p, threads, nullptr).bytes_;
  }
  static void run(const TangentParams& p, const Worker& worker) {
    Tangent(p, worker.threads, p.workspace).run_worker(worker);
  }

 private:
  struct Direction {
    int64_t terms;      // of the products of a chunk: those of its rows in x_
    int64_t own_terms;  // of them, those for w_hh where it has a product apart; they are last
    bool brings;        // whether there are terms or biases at all
    C* w;               // panels [terms][G][NU * L], one a block of units
    C* bias;            // [G][NU * L], one a block
    C* bias_u;          // the same of w_hh's product, where one is apart
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
    const C* multiplied;  // h_in, or what it becomes before the product
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
        apart_(apart_columns<Cell>(p.inside.norm)),
        weight_bytes_(G * H_ * P_ * static_cast<int64_t>(sizeof(C))),
        rows_(p, threads, workspace) {
    Arena arena(after(workspace, rows_.bytes()));
    for (int d = 0; d < s_.directions; ++d) {
      Direction& a = directions_[d];
      const Weights& t = p.t_weights[d];
      a.terms = (p.t_input ? I_ : 0) + (t.w_ih ? I_ : 0) + (t.w_hh ? P_ : 0);
      a.own_terms = apart_ > 0 && t.w_hh ? P_ : 0;
      a.brings = a.terms > 0 || t.b_ih || t.b_hh;
      terms_ = larger(terms_, a.terms);
      a.w = arena.take<C>(G * stride_ * a.terms);
      a.bias = arena.take<C>(a.brings ? G * stride_ : 0);
      a.bias_u = arena.take<C>(a.brings && apart_ > 0 ? G * stride_ : 0);
      a.w_hh = arena.take<C>(G * stride_ * P_);
      a.w_hr = arena.take<C>(s_.projected ? h_stride_ * H_ : 0);
      a.h = arena.take<C>(2 * B_ * h_stride_);
      a.c = arena.take<C>(kHasC ? B_ * stride_ : 0);
      a.m = arena.take<C>(s_.projected ? B_ * stride_ : 0);
    }
    const Place place = place_of(0, threads, s_.directions, B_, vectors_, weight_bytes_);
    // Batch groups of packed data are uneven, so a thread may have all rows.
    const int64_t rows = s_.steps.counts ? B_ : ceil_div(B_, place.split.batch_groups);
    const int64_t row = ceil_div(vectors_, place.split.unit_groups) * (G + apart_) * L;
    const int64_t bytes = rows * (row + terms_) * static_cast<int64_t>(sizeof(C));
    chunk_steps_ = smaller(larger(1, kChunkBytes / larger(1, bytes)), s_.steps.seq_len);
    const bool brings = directions_[0].brings || (s_.directions == 2 && directions_[1].brings);
    x_elements_ = (chunk_steps_ * rows * terms_ + L - 1) / L * L;
    pre_elements_ = brings ? chunk_steps_ * rows * row : 0;
    x_ = arena.take<C>(threads * x_elements_);
    pre_ = arena.take<C>(threads * pre_elements_);
    bytes_ = rows_.bytes() + arena.used();
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
        const bool normalised = p_.inside.norm != Norm::kNone;  // biases are added after that
        const V b_ih = normalised ? V::zero() : load_bias(t.b_ih, g, v + u);
        const V b_hh = normalised ? V::zero() : load_bias(t.b_hh, g, v + u);
        const int64_t i = at + (g * NU + u) * L;
        (apart_ > 0 ? b_ih : b_ih + b_hh).store(a.bias + i);
        if (apart_ > 0) b_hh.store(a.bias_u + i);
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

    const C* const scaled = rows_.memory().h_in(d);
    Step step{};
    step.d = d;
    step.pre_first = units.begin;
    step.pre_stride = units.size() * (G + apart_) * L;
    int64_t chunk_row = 0;
    for (int64_t s = 0; s < T; ++s) {
      if (a.brings && s % chunk_steps_ == 0) {
        bring(d, s, smaller(s + chunk_steps_, T), rows, units);
        chunk_row = 0;
      }
      place_step(step, s);
      step.h_in = a.h + (s % 2) * B_ * h_stride_;
      step.multiplied = scaled ? scaled : step.h_in;
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
          Rows::each(active.begin, active.end,
                     [&](auto mr, int64_t b) { tile<mr(), nu()>(step, v, b); });
        });
      }
      if (s_.projected) {
        barrier.wait(peers);
        project(step, active, h_units);
      }
      if (p_.inside.any) {
        barrier.wait(peers);
        apply_rows(step, time(d, s), share_of(active, peers, place.unit_group), worker.thread);
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
    const int64_t stride = units.size() * (G + apart_) * L;
    const Blocks blocks{units.begin, units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        C* pre = pre_ + (v - units.begin) * (G + apart_) * L;
        Rows::each(0, count, [&](auto mr, int64_t row) {
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
    if (!p_.inside.h_scale) return;
    const S* const factor = static_cast<const S*>(p_.inside.h_scale) + (step.d * B_ + b) * P_;
    each_vector<V>(P_, [&](int64_t i, int k) {
      store_lanes(load_lanes<V>(to + i, k) * load_lanes<V>(factor + i, k), to + i, k);
    });
  }

  template <int MR, int NU>
  FASTRNN_NOINLINE void bring_tile(const Direction& a, int64_t v, int64_t row, C* pre,
                                   int64_t stride) const {
    constexpr int NV = G * NU, width = NU * L;
    const int64_t at = v * L * G, terms = a.terms - a.own_terms;
    const C* const x = x_ + row * a.terms;
    const C* const w = a.w + at * a.terms;
    product_tile<MR, NV, C>({terms, x, a.terms, w, NV * L, a.bias + at, 0, pre, stride});
    if (apart_ == 0) return;
    alignas(64) C own[MR * NV * L];
    product_tile<MR, NV, C>({a.own_terms, x + terms, a.terms, w + terms * NV * L, NV * L,
                             a.bias_u + at, 0, own, NV * L});
    for (int m = 0; m < MR; ++m, pre += stride) {
      for (int g = 0; g < G; ++g) {
        const int column = column_of(g);
        for (int i = 0; i < width; i += L) {
          const V more = V::load(own + (m * G + g) * width + i);
          C* const to = pre + column * width + i;
          (column == g ? more + V::load(to) : more).store(to);
        }
      }
    }
  }

  // The column that recurrent product g adds to: the last apart_ are apart.
  int column_of(int g) const { return g < G - apart_ ? g : g + apart_; }

  // ---- the ends --------------------------------------------------------------

  void start(int d, Range rows, Range units, Range h_units) const {
    const Direction& a = directions_[d];
    const int64_t slot = B_ * h_stride_;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for (int64_t v = h_units.begin; v < h_units.end; ++v) {
        const V h = load_state(p_.t_h0, d, b, v, P_);
        h.store(a.h + b * h_stride_ + v * L);
        h.store(a.h + slot + b * h_stride_ + v * L);
        rows_.memory().put_h(d, b, v * L, h);
      }
      if constexpr (kHasC) {
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
      if constexpr (kHasC) {
        for (int64_t v = units.begin; v < units.end; ++v) {
          store_lanes(V::load(a.c + b * stride_ + v * L),
                      static_cast<S*>(p_.t_c_n) + (d * B_ + b) * H_ + v * L, lanes(v, H_));
        }
      }
    }
  }

  // ---- tiles ---------------------------------------------------------------

  template <int MR, int NU>
  FASTRNN_NOINLINE void tile(const Step& step, int64_t v, int64_t b) const {
    constexpr int NV = G * NU;
    alignas(64) C products[MR * NV * L];  // [rows][G][vectors * L]
    product_tile<MR, NV, C>({P_, step.multiplied + b * h_stride_, h_stride_,
                             directions_[step.d].w_hh + v * L * G * P_, NV * L, nullptr, 0,
                             products, NV * L});
    if (p_.inside.any) {
      take_columns(step, v, NU * L, b, MR, products);
    } else {
      apply_cells(step, v, NU, b, MR, products);
    }
  }

  // Products [rows][G][width], and what is brought, to the rows' phase.
  FASTRNN_NOINLINE void take_columns(const Step& step, int64_t v, int width, int64_t b, int rows,
                                     const C* products) const {
    alignas(64) C columns[2 * G * kUnitVectors<Cell> * L];
    const int count = (G + apart_) * width;
    for (int m = 0; m < rows; ++m, products += G * width) {
      const C* const pre =
          step.pre ? step.pre + (b + m) * step.pre_stride + (v - step.pre_first) * (G + apart_) * L
                   : nullptr;
      for (int i = 0; i < count; i += L) {
        (pre ? V::load(pre + i) : V::zero()).store(columns + i);
      }
      for (int g = 0; g < G; ++g) {
        C* const to = columns + column_of(g) * width;
        for (int i = 0; i < width; i += L) {
          (V::load(to + i) + V::load(products + g * width + i)).store(to + i);
        }
      }
      rows_.memory().take(step.d, v * L, width, b + m, 1, columns);
    }
  }

  void apply_rows(const Step& step, int64_t t, Range rows, int thread) const {
    const Direction& a = directions_[step.d];
    const int64_t first = step.d * s_.steps.rows;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      rows_.apply({step.d, t, b, first + step.row + b,
                   b < step.previous_rows ? first + step.previous_row + b : -1,
                   step.h_in + b * h_stride_, step.h_out + b * h_stride_, a.c + b * stride_},
                  thread);
    }
  }

  FASTRNN_NOINLINE void apply_cells(const Step& step, int64_t v, int vectors, int64_t b, int rows,
                                    const C* products) const {
    const C* pre = nullptr;
    if (step.pre) pre = step.pre + b * step.pre_stride + (v - step.pre_first) * K * L;
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
    const auto add = [&](V& x, const void* through, int gate) {
      if (!through) return;
      x = x + load_lanes<V>(static_cast<const S*>(through) + (n * G + gate) * H_ + v * L, k);
    };
    V kept[K], t[K];
    const S* const saved = static_cast<const S*>(Cell::kKeepsH ? p_.hidden : p_.gates);
    for (int i = 0; i < K; ++i) {
      kept[i] = load_lanes<V>(saved + (n * K + i) * H_ + v * L, k);
      t[i] = pre ? V::load(pre + i * stride) : V::zero();
    }
    for (int g = 0; g < G; ++g) {
      add(t[g], p_.through_w_ih, g);
      V recurrent = V::load(products + g * stride);
      add(recurrent, p_.through_w_hh, g);
      V& sum = t[cells::recurrent_column<Cell>(g)];
      sum = sum + recurrent;
    }
    Cell::activate_tangent(kept, t);

    using D = Dual<V>;
    D a[K], before[Cell::kStates], after[Cell::kStates];
    for (int i = 0; i < K; ++i) a[i] = {kept[i], t[i]};
    before[0] = D::set1(0);
    if constexpr (Cell::kCarriesH) {
      before[0] = {previous(step, p_.hidden, p_.h0, v, b, k),
                   V::load(step.h_in + b * h_stride_ + v * L)};
    }
    C* const state = directions_[step.d].c + b * stride_ + v * L;
    if constexpr (kHasC) before[1] = {previous(step, p_.cells, p_.c0, v, b, k), V::load(state)};
    Cell::update(a, before, after);
    if constexpr (kHasC) {
      after[1].v = load_lanes<V>(static_cast<const S*>(p_.cells) + n * H_ + v * L, k);
    }
    Cell::emit(a, after);
    if (kSaved<Cell> > 0 && p_.t_gates) {
      S* const out = static_cast<S*>(p_.t_gates) + n * K * H_ + v * L;
      for (int i = 0; i < K; ++i) store_lanes(t[i], out + i * H_, k);
    }
    if constexpr (kHasC) {
      after[1].t.store(state);
      if (p_.t_cells) store_lanes(after[1].t, static_cast<S*>(p_.t_cells) + n * H_ + v * L, k);
    }
    return after[0].t;
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

  FASTRNN_INLINE void publish(const Step& step, int64_t v, int64_t b, V h) const {
    h.store(step.h_out + b * h_stride_ + v * L);
    const int64_t n = step.d * s_.steps.rows + step.row + b;
    store_lanes(h, static_cast<S*>(p_.t_hidden) + n * P_ + v * L, lanes(v, P_));
  }

  void project(const Step& step, Range active, Range h_units) const {
    const Direction& a = directions_[step.d];
    const WideBlocks blocks{h_units.begin, h_units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        WideRows::each(active.begin, active.end, [&](auto mr, int64_t b) {
          constexpr int kWidth = nu() * L;
          alignas(64) C products[mr() * kWidth];
          product_tile<mr(), nu(), C>({H_, a.m + b * stride_, stride_, a.w_hr + v * L * H_, kWidth,
                                       nullptr, 0, products, kWidth});
          for (int m = 0; m < mr(); ++m) {
            for (int u = 0; u < nu(); ++u) {
              V h = V::load(products + m * kWidth + u * L);
              if (p_.through_w_hr) {
                const int64_t n = step.d * s_.steps.rows + step.row + b + m;
                const S* more = static_cast<const S*>(p_.through_w_hr) + n * P_ + (v + u) * L;
                h = h + load_lanes<V>(more, lanes(v + u, P_));
              }
              publish(step, v + u, b + m, h);
            }
          }
        });
      });
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
  const int apart_;                    // columns of a recurrent product of their own
  const int64_t weight_bytes_;         // of w_hh in the compute type
  const TangentRows<Cell, S> rows_;
  int64_t terms_ = 0;  // of either direction at most
  int64_t chunk_steps_, x_elements_, pre_elements_;
  C *x_, *pre_;  // a thread's chunk of rows and of what they bring
  Direction directions_[2];
  size_t bytes_;
};

}  // namespace
}  // namespace fastrnn::cpu
