// The walk of a pass that goes forward in time, over all directions of one layer: the forward
// recurrence and its tangent.
//
// Per step, a tile of rows x one block of units accumulates h_prev w_hh^T in registers; the pass
// says what the input brings. Both go through memory to the cell, which makes the new states: so a
// tile is compiled once for all cells with as many products, and a cell once for all tiles.
//
// Invariants: the state h has two slots, step s reads slot s % 2 and writes the other; a thread
// writes h and c of its own rows and units only. Rows that are not active at a step (packed data)
// are not touched, and both slots hold h0 before step 0, so a row may start at any step. With
// options inside the recurrence a step has a second phase, over whole rows (inside.h).
#pragma once
#include "cpu/kernels/inside.h"
#include "cpu/kernels/walk.h"

namespace fastrnn::cpu {
namespace {

// What a pass and its cells share: states in the compute type, [D] each.
template <class S>
struct States : Walk<S> {
  using C = Compute<S>;

  States(const LayerShape& shape, const Inside& options, Arena& arena)
      : Walk<S>(shape),
        inside(options),
        apart(apart_columns(this->cell, options.norm)),
        rows(options, shape, this->cell.products + apart, arena) {
    for (int d = 0; d < shape.directions; ++d) {
      h[d] = arena.take<C>(2 * this->B * this->h_stride);
      c[d] = arena.take<C>(this->cell.has_c() ? this->B * this->stride : 0);
      m[d] = arena.take<C>(shape.projected ? this->B * this->stride : 0);
      bias_u[d] = arena.take<C>(this->cell.apart() ? this->stride : 0);
    }
  }

  const Inside& inside;
  const int apart;  // columns of a recurrent product of their own
  RowMemory<S> rows;
  C* h[2];       // [2][B][h_stride]
  C* c[2];       // [B][stride]
  C* m[2];       // [B][stride], h before its projection
  C* bias_u[2];  // [stride], of a recurrent product apart
};

// One step of one thread.
template <class S>
struct Step {
  using C = Compute<S>;

  int d;
  StepRows at;
  const C* x;         // where the input's product is part of the tile: its rows, x_stride apart
  int64_t x_stride;   // (x and pre are for row 0 of the batch)
  const C* pre;       // where not: what the input brings, [rows][pre_stride]
  int64_t pre_first;  // the first vector of units in pre
  int64_t pre_stride;
  const C* h_in;
  const C* multiplied;  // h_in, or what it becomes before the product
  C* h_out;
};

// The same of one whole row with options inside the recurrence, [columns][stride].
template <class C>
struct Row {
  int64_t b;
  C* values;
  RowMasks<C> masks;
  C* scratch;  // where c is normalised, [parts of a number][1 + K][stride]
};

// What a cell does in a pass.
template <class Params, class S>
struct CellSteps {
  void (*tile)(const Params&, const States<S>&, const Step<S>&, const Tile<Compute<S>>&);
  void (*row)(const Params&, const States<S>&, const Step<S>&, const Row<Compute<S>>&);
};

// Where a pass takes the first states from and puts the last ones.
struct Ends {
  const void *h0, *c0;
  void *h_n, *c_n;
};

template <class Pass, class Params, int G, class S>
class Recurrence {
 protected:
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = V::kLanes;
  using Blocks = VectorBlocks<kUnitVectors<G>>;
  using Rows = RowBlocks<kUnitRows<G>>;
  using WideBlocks = VectorBlocks<kWideVectors>;
  using WideRows = RowBlocks<kWideRows>;

 public:
  size_t bytes() const { return arena_.used(); }

  void run(const Worker& worker) {
    const Place place = w_.place(worker.thread, worker.threads);
    pack(worker, place.split.unit_groups);
    worker.barriers[0].wait(worker.threads);
    static_cast<Pass*>(this)->settle(worker.thread);
    for (int d = place.first_direction; d <= place.last_direction; ++d) {
      run_direction(d, w_.share(place, worker), worker.thread);
    }
  }

 protected:
  // direct: w_hh is read where it lies.
  Recurrence(const Params& p, const CellSteps<Params, S>& cell, const Ends& ends, bool direct,
             int threads, void* workspace)
      : p_(p),
        arena_(workspace),
        w_(p.shape, p.inside, arena_),
        cell_(cell),
        ends_(ends),
        direct_(direct),
        masks_(p.inside, w_.H, threads, arena_) {
    for (int d = 0; d < w_.s.directions; ++d) {
      w_hh_[d] = arena_.template take<C>(direct ? 0 : G * w_.stride * w_.P);
      w_hr_[d] = arena_.template take<C>(w_.s.projected ? w_.h_stride * w_.H : 0);
    }
    const bool normalises_c = w_.cell.has_c() && p.weights[0].cell_gain;
    scratch_elements_ = normalises_c ? Pass::kParts * (w_.cell.columns + 1) * w_.stride : 0;
    scratch_ = arena_.template take<C>(threads * scratch_elements_);
  }

  // What a pass may do besides; those of its own hide these.
  void set_input(Step<S>&, Range) const {}
  void set_product(const Step<S>&, int64_t, int64_t, Columns<C>&) const {}
  void complete(const Step<S>&, const Tile<C>&, C*) const {}
  template <int MR, int NU>
  void expect_writes(const Step<S>&, int64_t, int64_t) const {}

  // What the input brings to a tile.
  FASTRNN_INLINE const C* pre_of(const Step<S>& step, int64_t v, int64_t b) const {
    return step.pre + b * step.pre_stride + (v - step.pre_first) * pre_columns_ * L;
  }

 private:
  const Pass& pass() const { return static_cast<const Pass&>(*this); }

  void pack(const Worker& worker, int unit_groups) const {
    int64_t job = 0;
    const auto mine = [&] { return job++ % worker.threads == worker.thread; };
    for (int d = 0; d < w_.s.directions; ++d) {
      const Weights& w = p_.weights[d];
      for (int g = 0; g < unit_groups; ++g) {
        const Range units = part(w_.vectors, unit_groups, g);
        const Blocks blocks{units.begin, units.end};
        for (int64_t i = 0; i < blocks.count(); ++i) {
          if (!mine()) continue;
          blocks.call(i, [&](auto nu, int64_t v) {
            pass().template pack_block<nu()>(d, v);
            if (direct_) return;
            pack_rows(static_cast<const S*>(w.w_hh), G, w_.H, w_.P, v, nu(),
                      w_hh_[d] + v * L * G * w_.P);
          });
        }
        if (!w_.s.projected) continue;
        const Range out = part(w_.h_vectors, unit_groups, g);
        const WideBlocks projections{out.begin, out.end};
        for (int64_t i = 0; i < projections.count(); ++i) {
          if (!mine()) continue;
          projections.call(i, [&](auto nu, int64_t v) {
            pack_rows(static_cast<const S*>(w.w_hr), 1, w_.P, w_.H, v, nu(),
                      w_hr_[d] + v * L * w_.H);
          });
        }
      }
    }
  }

  // ---- one direction -------------------------------------------------------

  void run_direction(int d, const Share& mine, int thread) const {
    const Steps& steps = w_.s.steps;
    start(d, mine);
    mine.meet();
    const C* const scaled = w_.rows.h_in(d);
    Step<S> step{};
    step.d = d;
    step.pre_first = mine.units.begin;
    step.pre_stride = mine.units.size() * pre_columns_ * L;
    for (int64_t s0 = 0; s0 < steps.seq_len; s0 += chunk_steps_) {
      const int64_t s1 = smaller(s0 + chunk_steps_, steps.seq_len);
      if (!fused_) pass().fill_chunk(step, s0, s1, mine);
      int64_t chunk_row = 0;
      for (int64_t s = s0; s < s1; ++s) {
        step.at = StepRows(steps, w_.time(d, s), w_.time(d, s - 1));
        const Range active = w_.within(mine.rows, steps.count(step.at.t));
        step.h_in = w_.h[d] + (s % 2) * w_.B * w_.h_stride;
        step.multiplied = scaled ? scaled : step.h_in;
        step.h_out = w_.h[d] + ((s + 1) % 2) * w_.B * w_.h_stride;
        if (fused_) {
          pass().set_input(step, active);
        } else {
          step.pre = pre_ + (chunk_row - active.begin) * step.pre_stride;
          chunk_row += active.size();
        }
        // Back and forth, so that what is still in the cache is used first.
        multiply(step, mine.units, active, s % 2);
        if (w_.s.projected) {
          mine.meet();
          project(step, active, mine.h_units);
        }
        if (p_.inside.any) {
          mine.meet();
          apply_rows(step, mine.rows_of(active), thread);
        }
        mine.meet();
      }
    }
    finish(d, mine);
  }

  void start(int d, const Share& mine) const {
    const int64_t slot = w_.B * w_.h_stride;
    for (int64_t b = mine.rows.begin; b < mine.rows.end; ++b) {
      for (int64_t v = mine.h_units.begin; v < mine.h_units.end; ++v) {
        const V h = w_.load_state(ends_.h0, d, b, v, w_.P);
        C* const to = w_.h[d] + b * w_.h_stride + v * L;
        h.store(to);
        h.store(to + slot);
        w_.rows.put_h(d, b, v * L, h);
      }
      if (!w_.cell.has_c()) continue;
      for (int64_t v = mine.units.begin; v < mine.units.end; ++v) {
        w_.load_state(ends_.c0, d, b, v, w_.H).store(w_.c[d] + b * w_.stride + v * L);
      }
    }
  }

  void finish(int d, const Share& mine) const {
    const Steps& steps = w_.s.steps;
    int64_t length = steps.seq_len;
    for (int64_t b = mine.rows.begin; b < mine.rows.end; ++b) {
      // Going forward, the last step of row b is its length - 1; in reverse, the
      // last step is that of time 0 for all rows.
      while (d == 0 && steps.count(length - 1) <= b) --length;
      const C* const h = w_.h[d] + ((length % 2) * w_.B + b) * w_.h_stride;
      for (int64_t v = mine.h_units.begin; v < mine.h_units.end; ++v) {
        w_.store_state(V::load(h + v * L), ends_.h_n, d, b, v, w_.P);
      }
      if (!w_.cell.has_c()) continue;
      for (int64_t v = mine.units.begin; v < mine.units.end; ++v) {
        w_.store_state(V::load(w_.c[d] + b * w_.stride + v * L), ends_.c_n, d, b, v, w_.H);
      }
    }
  }

  // ---- tiles ---------------------------------------------------------------

  // The products of a step, and what a cell makes of them: called once for many tiles, of the rows
  // of a block of units or, of one row, of many blocks.
  void multiply(const Step<S>& step, Range units, Range active, bool backwards) const {
    const Blocks blocks{units.begin, units.end};
    const int64_t count = blocks.count(), rows = active.size();
    alignas(64) C columns[kCellRows * 2 * G * kUnitVectors<G> * L];
    if (rows == 1) {
      for (int64_t i = 0; i < count; i += kCellRows) {
        const int64_t last = smaller(i + kCellRows, count);
        const int64_t first = blocks.first(backwards ? count - last : i);
        const int64_t end = blocks.first(backwards ? count - i : last);
        for (int64_t j = i; j < last; ++j) {
          blocks.call(backwards ? count - 1 - j : j, [&](auto nu, int64_t v) {
            tile<1, nu()>(step, v, active.begin, columns + (v - first) * row_width(1));
          });
        }
        hand_over(step, {first, static_cast<int>(end - first), active.begin, 1, columns}, columns);
      }
      return;
    }
    const int64_t parts = ceil_div(rows, kCellRows);
    for (int64_t i = 0; i < count; ++i) {
      blocks.call(backwards ? count - 1 - i : i, [&](auto nu, int64_t v) {
        for (int64_t j = 0; j < parts; ++j) {
          const Range mine = part(rows, parts, j);
          const int64_t first = active.begin + mine.begin, end = active.begin + mine.end;
          Rows::each(first, end, [&](auto mr, int64_t b) {
            tile<mr(), nu()>(step, v, b, columns + (b - first) * row_width(nu()));
          });
          hand_over(step, {v, nu(), first, static_cast<int>(end - first), columns}, columns);
        }
      });
    }
  }

  // Of the columns of a row of a tile.
  int row_width(int vectors) const { return vectors * (G + w_.apart) * L; }

  template <int MR, int NU>
  FASTRNN_INLINE void tile(const Step<S>& step, int64_t v, int64_t b, C* columns) const {
    if (direct_) {
      for (int m = 0; m < MR; ++m) direct_tile<NU>(step, v, b + m, columns + m * row_width(NU));
      return;
    }
    Columns<C> product = of_h<NU>(step, v, b);
    if (fused_) pass().set_product(step, v, b, product);
    if (!p_.inside.any) pass().template expect_writes<MR, NU>(step, v, b);
    with_apart([&](auto apart) { column_tile<MR, NU, G, apart()>(product, columns); });
  }

  // What a tile multiplies but for what the input brings in a fused one.
  template <int NU>
  FASTRNN_INLINE Columns<C> of_h(const Step<S>& step, int64_t v, int64_t b) const {
    Columns<C> product;
    product.h_terms = w_.P;
    product.h = step.multiplied + b * w_.h_stride;
    product.ldh = w_.h_stride;
    product.w_hh = w_hh_[step.d] + v * L * G * w_.P;
    product.x = nullptr;
    product.pre = fused_ ? nullptr : pre_of(step, v, b);
    product.pre_stride = step.pre_stride;
    product.pre_each = pre_columns_ * L;
    return product;
  }

  // f(integral_constant) of the columns apart.
  template <class F>
  FASTRNN_INLINE void with_apart(F&& f) const {
    if (w_.apart == 0) {
      f(std::integral_constant<int, 0>{});
    } else if (w_.apart == G) {
      f(std::integral_constant<int, G>{});
    } else if constexpr (cells::All::any_apart(G)) {
      f(std::integral_constant<int, 1>{});
    }
  }

  template <int NU>
  FASTRNN_NOINLINE void direct_tile(const Step<S>& step, int64_t v, int64_t b, C* columns) const {
    alignas(64) C products[G * NU * L];
    direct_products<G, NU>(static_cast<const S*>(p_.weights[step.d].w_hh), w_.H, w_.P,
                           step.multiplied + b * w_.h_stride, v, products);
    const C* pre = pre_of(step, v, b);
    for (int i = 0; i < G * NU; ++i) {
      const int g = i % G;
      const V x = V::load(pre + g * L), recurrent = V::load(products + i * L);
      const bool together = g < G - w_.apart;
      (together ? recurrent + x : x).store(columns + g * L);
      if (!together) recurrent.store(columns + (g + w_.apart) * L);
      if (g + 1 < G) continue;
      pre += pre_columns_ * L;
      columns += (G + w_.apart) * L;
    }
  }

  FASTRNN_INLINE void hand_over(const Step<S>& step, const Tile<C>& tile, C* columns) const {
    pass().complete(step, tile, columns);
    if (p_.inside.any) {
      w_.rows.take(step.d, tile.v, tile.vectors, tile.b, tile.rows, columns);
    } else {
      cell_.tile(p_, w_, step, tile);
    }
  }

  void apply_rows(const Step<S>& step, Range rows, int thread) const {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      cell_.row(p_, w_, step,
                {b, w_.rows.values(step.d, b), masks_.row(thread, step.d, step.at.t, b),
                 scratch_ + thread * scratch_elements_});
    }
  }

  void project(const Step<S>& step, Range active, Range h_units) const {
    const WideBlocks blocks{h_units.begin, h_units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        WideRows::each(active.begin, active.end, [&](auto mr, int64_t b) {
          constexpr int kWidth = nu() * L;
          alignas(64) C h[mr() * kWidth];
          product_tile<mr(), nu(), C>({w_.H, w_.m[step.d] + b * w_.stride, w_.stride,
                                       w_hr_[step.d] + v * L * w_.H, kWidth, nullptr, 0, h,
                                       kWidth});
          for (int m = 0; m < mr(); ++m) {
            for (int u = 0; u < nu(); ++u) {
              pass().publish(step, v + u, b + m, V::load(h + m * kWidth + u * L));
            }
          }
        });
      });
    }
  }

 protected:
  const Params& p_;
  Arena arena_;
  const States<S> w_;

 private:
  const CellSteps<Params, S>& cell_;
  const Ends ends_;
  const bool direct_;
  const Masks<C> masks_;
  C *w_hh_[2], *w_hr_[2];  // panels [P][NU][G][L], one a block of units; [H][NU][L]
  C* scratch_;             // of each thread
  int64_t scratch_elements_;

 protected:
  bool fused_ = false;       // the input's product is part of the tile
  int pre_columns_ = G;      // of units in pre
  int64_t chunk_steps_ = 1;  // in pre_
  C* pre_ = nullptr;         // this thread's chunk of what the input brings
};

}  // namespace
}  // namespace fastrnn::cpu
