// The forward recurrence of one layer with packed int8 or bfloat16 weights, all directions, any
// cell, for inference. States, cell equations and everything else are float.
//
// It follows forward.h: the input products of a chunk of steps come first, then each step
// multiplies the state before it and applies the cell. In int8 a thread quantizes by itself the
// rows of h that it multiplies, after the barrier of the step before: cheaper than one more.
//
// Invariants: as forward.h. Besides, states are zero from H or P on, since a product pads its
// terms with them, and whatever a unit beyond the last computes is not stored.
#pragma once
#include "cpu/kernels/cells.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/plan.h"
#include "cpu/kernels/quantized_tile.h"

namespace fastrnn::cpu {
namespace {

template <class Cell, class Weight>
class Quantized {
  using V = Vec<float>;
  using Element = typename Weight::Element;
  static constexpr int L = V::kLanes;
  static constexpr int G = Cell::kProducts, K = Cell::kColumns;
  static constexpr bool kSingle = G == 1, kHasC = Cell::kStates > 1;
  static constexpr int NV = kSingle ? kSingleVectors : G;  // vectors of a block
  static constexpr int kUnits = kSingle ? NV * kBlockLanes : kBlockLanes;
  static constexpr int kBias = cells::kApart<Cell> ? K : NV;       // vectors of a block's bias
  static constexpr int kProjected = kSingleVectors * kBlockLanes;  // values of h in a block
  static constexpr int kWidth = NV * kBlockLanes;

 public:
  static size_t workspace_bytes(const QuantizedParams& p, int threads) {
    return Quantized(p, threads, 0, nullptr).bytes_;
  }
  static void run(const QuantizedParams& p, const Worker& worker) {
    Quantized(p, worker.threads, worker.thread, p.workspace).run_worker(worker);
  }

 private:
  struct Direction {
    float* h;  // [2][B][h_stride]
    float* c;  // [B][stride], LSTM
    float* m;  // [B][stride], h before its projection
  };

  // Rows as a product takes them: int8 and their scales, or float.
  struct Rows {
    const Element* values;
    int64_t stride;
    const float* scales;
  };

  // What belongs to one thread.
  struct Scratch {
    float* pre;           // [chunk rows][pre_width]
    Element* x;           // [chunk rows][x_stride]
    float* x_scales;      // [chunk rows]
    Element* state;       // [B][stride of the state], int8
    float* state_scales;  // [B], int8
  };

  struct Step {
    int d;
    int64_t first_row;  // of the step, in tensors of N rows
    const float* pre;   // bias + x w_ih^T, [rows][pre_stride], for row 0
    const float* h_in;
    float* h_out;
  };

  Quantized(const QuantizedParams& p, int threads, int thread, void* workspace)
      : p_(p),
        s_(p.shape),
        I_(s_.input_size),
        H_(s_.hidden_size),
        P_(s_.proj_size),
        B_(s_.steps.batch),
        blocks_(ceil_div(H_, kUnits)),
        h_blocks_(s_.projected ? ceil_div(P_, kProjected) : blocks_),
        stride_(padded(H_)),
        h_stride_(padded(P_)),
        x_stride_(padded(I_)),
        weight_bytes_(blocks_ * kWidth * P_ * kInt8Group / Weight::kGroup) {
    const Place place = place_of(0, threads, s_.directions, B_, blocks_, weight_bytes_);
    Arena arena(workspace);
    for (int d = 0; d < s_.directions; ++d) {
      Direction& a = directions_[d];
      a.h = arena.take<float>(2 * B_ * h_stride_);
      a.c = arena.take<float>(kHasC ? B_ * stride_ : 0);
      a.m = arena.take<float>(s_.projected ? B_ * stride_ : 0);
    }
    // Batch groups of packed data are uneven, so a thread may have all rows.
    const int64_t rows = s_.steps.counts ? B_ : ceil_div(B_, place.split.batch_groups);
    pre_width_ = ceil_div(blocks_, place.split.unit_groups) * kWidth;
    chunk_steps_ = larger(1, kChunkBytes / (int64_t{sizeof(float)} * larger(1, rows * pre_width_)));
    chunk_steps_ = smaller(chunk_steps_, s_.steps.seq_len);
    const int64_t state = Weight::kPrepares ? larger(h_stride_, s_.projected ? stride_ : 0) : 0;
    for (int i = 0; i < threads; ++i) {
      Scratch scratch;
      scratch.pre = arena.take<float>(chunk_steps_ * rows * pre_width_);
      scratch.x = arena.take<Element>(chunk_steps_ * rows * x_stride_);
      scratch.x_scales = arena.take<float>(chunk_steps_ * rows);
      scratch.state = arena.take<Element>(B_ * state);
      scratch.state_scales = arena.take<float>(Weight::kPrepares ? B_ : 0);
      if (i == thread) scratch_ = scratch;
    }
    bytes_ = arena.used();
  }

  // Room for whole blocks of any kind, and for a vector's load at any of a block's vectors.
  static int64_t padded(int64_t n) { return ceil_div(n, kProjected) * kProjected; }

  void run_worker(const Worker& worker) {
    const Place place =
        place_of(worker.thread, worker.threads, s_.directions, B_, blocks_, weight_bytes_);
    for (int d = place.first_direction; d <= place.last_direction; ++d) {
      run_direction(d, place, worker);
    }
  }

  void run_direction(int d, const Place& place, const Worker& worker) const {
    const Steps& steps = s_.steps;
    const Direction& a = directions_[d];
    const Range rows = batch_rows(steps, place.split.batch_groups, place.batch_group);
    const Range blocks = part(blocks_, place.split.unit_groups, place.unit_group);
    const Range h_blocks =
        s_.projected ? part(h_blocks_, place.split.unit_groups, place.unit_group) : blocks;
    SpinBarrier& barrier = worker.barriers[place.barrier];
    const int peers = place.split.unit_groups;

    start(d, rows, blocks, h_blocks);
    barrier.wait(peers);

    Step step{};
    step.d = d;
    for (int64_t s0 = 0; s0 < steps.seq_len; s0 += chunk_steps_) {
      const int64_t s1 = smaller(s0 + chunk_steps_, steps.seq_len);
      chunk_input(d, s0, s1, rows, blocks);
      int64_t chunk_row = 0;
      for (int64_t s = s0; s < s1; ++s) {
        const int64_t t = time(d, s);
        const Range active = active_rows(rows, t);
        step.first_row = steps.offset(t);
        step.h_in = a.h + (s % 2) * B_ * h_stride_;
        step.h_out = a.h + ((s + 1) % 2) * B_ * h_stride_;
        step.pre = scratch_.pre + (chunk_row - active.begin) * pre_width_;
        chunk_row += active.size();
        const Rows h = state_rows(step.h_in, h_stride_, P_, active);
        for (int64_t i = 0; i < blocks.size(); ++i) {
          // Back and forth, so that what is still in the cache is used first.
          const int64_t block = s % 2 ? blocks.end - 1 - i : blocks.begin + i;
          RowBlocks<kQuantizedRows>::each(active.begin, active.end, [&](auto mr, int64_t b) {
            tile<mr()>(step, h, block, blocks.begin, b);
          });
        }
        if (s_.projected) {
          barrier.wait(peers);
          project(step, active, h_blocks);
        }
        barrier.wait(peers);
      }
    }
    finish(d, rows, blocks, h_blocks);
  }

  int64_t time(int d, int64_t s) const { return d == 1 ? s_.steps.seq_len - 1 - s : s; }

  Range active_rows(Range rows, int64_t t) const {
    return {rows.begin, larger(rows.begin, smaller(rows.end, s_.steps.count(t)))};
  }

  // Values [first, last) of a state that blocks of `units` hold, within its padded row; whoever
  // has the last block has the rest of the row too.
  static Range span(Range blocks, int64_t count, int units, int64_t stride) {
    return {blocks.begin * units, blocks.end == count ? stride : blocks.end * units};
  }
  Range h_span(Range h_blocks) const {
    return span(h_blocks, h_blocks_, s_.projected ? kProjected : kUnits, h_stride_);
  }

  void start(int d, Range rows, Range blocks, Range h_blocks) const {
    const Direction& a = directions_[d];
    const Range units = span(blocks, blocks_, kUnits, stride_), h_units = h_span(h_blocks);
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = d * B_ + b;
      float* h = a.h + b * h_stride_;
      load_state(p_.h0, row, P_, h_units, h);
      load_state(p_.h0, row, P_, h_units, h + B_ * h_stride_);
      if constexpr (kHasC) load_state(p_.c0, row, H_, units, a.c + b * stride_);
      if (s_.projected) load_state(nullptr, row, H_, units, a.m + b * stride_);
    }
  }

  static void load_state(const float* state, int64_t row, int64_t size, Range units, float* to) {
    for (int64_t j = units.begin; j < units.end; ++j) {
      to[j] = state && j < size ? state[row * size + j] : 0.0f;
    }
  }

  void finish(int d, Range rows, Range blocks, Range h_blocks) const {
    const Steps& steps = s_.steps;
    const Direction& a = directions_[d];
    const Range units = span(blocks, blocks_, kUnits, stride_), h_units = h_span(h_blocks);
    int64_t length = steps.seq_len;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      // Going forward, the last step of row b is its length - 1; in reverse, the
      // last step is that of time 0 for all rows.
      while (d == 0 && steps.count(length - 1) <= b) --length;
      const float* h = a.h + (length % 2) * B_ * h_stride_ + b * h_stride_;
      const int64_t row = d * B_ + b;
      for (int64_t j = h_units.begin; j < smaller(h_units.end, P_); ++j)
        p_.h_n[row * P_ + j] = h[j];
      if constexpr (kHasC) {
        const float* c = a.c + b * stride_;
        for (int64_t j = units.begin; j < smaller(units.end, H_); ++j) p_.c_n[row * H_ + j] = c[j];
      }
    }
  }

  // ---- products ------------------------------------------------------------

  const float* input_row(int64_t t, int64_t b) const {
    const int64_t step =
        s_.steps.offsets ? s_.steps.offsets[t] * p_.input_row_stride : t * p_.input_step_stride;
    return p_.input + step + b * p_.input_row_stride;
  }

  // pre[row] = bias + x w_ih^T for the active rows of steps [s0, s1), in order.
  void chunk_input(int d, int64_t s0, int64_t s1, Range rows, Range blocks) const {
    int64_t count = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = time(d, s);
      const Range active = active_rows(rows, t);
      for (int64_t b = active.begin; b < active.end; ++b, ++count) {
        scratch_.x_scales[count] =
            Weight::prepare(input_row(t, b), I_, x_stride_, scratch_.x + count * x_stride_);
      }
    }
    const QuantizedWeights& w = p_.weights[d];
    const int64_t groups = ceil_div(I_, Weight::kGroup);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const float* bias = w.bias + block * kBias * kBlockLanes;
      float* pre = scratch_.pre + (block - blocks.begin) * kWidth;
      RowBlocks<kQuantizedRows>::each(0, count, [&](auto mr, int64_t row) {
        alignas(64) float products[mr() * kWidth];
        Weight::template multiply<mr(), NV>(w.w_ih, block, groups, scratch_.x + row * x_stride_,
                                            x_stride_, scratch_.x_scales + row, products);
        for (int m = 0; m < mr(); ++m) {
          for (int i = 0; i < kWidth; i += L) {
            (V::load(bias + i) + V::load(products + m * kWidth + i))
                .store(pre + (row + m) * pre_width_ + i);
          }
        }
      });
    }
  }

  // Active rows of a state [B][stride], ready for a product.
  Rows state_rows(const float* state, int64_t stride, int64_t size, Range active) const {
    if constexpr (Weight::kPrepares) {
      for (int64_t b = active.begin; b < active.end; ++b) {
        scratch_.state_scales[b] =
            Weight::prepare(state + b * stride, size, stride, scratch_.state + b * stride);
      }
      return {scratch_.state, stride, scratch_.state_scales};
    } else {
      return {state, stride, nullptr};
    }
  }

  template <int MR>
  void tile(const Step& step, const Rows& h, int64_t block, int64_t first_block, int64_t b) const {
    alignas(64) float products[MR * kWidth];
    const QuantizedWeights& w = p_.weights[step.d];
    Weight::template multiply<MR, NV>(w.w_hh, block, ceil_div(P_, Weight::kGroup),
                                      h.values + b * h.stride, h.stride, h.scales + b, products);
    for (int m = 0; m < MR; ++m) {
      const float* pre = step.pre + (b + m) * pre_width_ + (block - first_block) * kWidth;
      for (int j = 0; j < kUnits && block * kUnits + j < H_; j += L) {
        apply_cell(step, block, j, b + m, pre + j, products + m * kWidth + j);
      }
    }
  }

  // ---- cells ---------------------------------------------------------------

  // L units from unit j of a block on; pre and recurrent are the products of the first gate.
  FASTRNN_INLINE void apply_cell(const Step& step, int64_t block, int j, int64_t b,
                                 const float* pre, const float* recurrent) const {
    constexpr int kGate = kBlockLanes;
    const int64_t unit = block * kUnits + j;
    V a[K], before[Cell::kStates], after[Cell::kStates];
    for (int g = 0; g < G; ++g) a[g] = V::load(pre + g * kGate);
    if constexpr (cells::kApart<Cell>) {
      a[K - 1] = V::load(p_.weights[step.d].bias + (block * kBias + K - 1) * kBlockLanes + j);
    }
    for (int g = 0; g < G; ++g) {
      V& sum = a[cells::recurrent_column<Cell>(g)];
      sum = sum + V::load(recurrent + g * kGate);
    }
    before[0] = Cell::kCarriesH ? V::load(step.h_in + b * h_stride_ + unit) : V::zero();
    float* const c = directions_[step.d].c + b * stride_ + unit;
    if constexpr (kHasC) before[1] = V::load(c);
    if constexpr (Cell::kVectors == 0) cells::forward<Cell>(a, before, after);
    const int n = lanes(unit, H_);
    if constexpr (kHasC) store_lanes(after[1], c, n);
    if (kSaved<Cell> > 0 && p_.gates) {
      const int64_t row = step.d * s_.steps.rows + step.first_row + b;
      for (int g = 0; g < G; ++g) store_lanes(a[g], p_.gates + (row * G + g) * H_ + unit, n);
      if constexpr (kHasC) store_lanes(after[1], p_.cells + row * H_ + unit, n);
    }
    const V h = after[0];
    if (s_.projected) {
      store_lanes(h, directions_[step.d].m + b * stride_ + unit, n);
    } else {
      publish(step, unit, b, h);
    }
  }

  FASTRNN_INLINE void publish(const Step& step, int64_t unit, int64_t b, V h) const {
    const int n = lanes(unit, P_);
    const int64_t row = step.first_row + b;
    store_lanes(h, step.h_out + b * h_stride_ + unit, n);
    store_lanes(h, p_.output + (row * s_.directions + step.d) * P_ + unit, n);
  }

  void project(const Step& step, Range active, Range h_blocks) const {
    const Rows m_rows = state_rows(directions_[step.d].m, stride_, H_, active);
    const QuantizedMatrix& w = p_.weights[step.d].w_hr;
    for (int64_t block = h_blocks.begin; block < h_blocks.end; ++block) {
      RowBlocks<kQuantizedRows>::each(active.begin, active.end, [&](auto mr, int64_t b) {
        alignas(64) float products[mr() * kProjected];
        Weight::template multiply<mr(), kSingleVectors>(w, block, ceil_div(H_, Weight::kGroup),
                                                        m_rows.values + b * m_rows.stride,
                                                        m_rows.stride, m_rows.scales + b, products);
        for (int m = 0; m < mr(); ++m) {
          for (int j = 0; j < kProjected && block * kProjected + j < P_; j += L) {
            publish(step, block * kProjected + j, b + m, V::load(products + m * kProjected + j));
          }
        }
      });
    }
  }

  static FASTRNN_INLINE int lanes(int64_t unit, int64_t size) {
    return static_cast<int>(smaller(L, size - unit));
  }

  const QuantizedParams& p_;
  const LayerShape& s_;
  const int64_t I_, H_, P_, B_;
  const int64_t blocks_, h_blocks_;             // of units, of values of h
  const int64_t stride_, h_stride_, x_stride_;  // padded rows, in elements
  const int64_t weight_bytes_;                  // of w_hh, packed
  int64_t chunk_steps_, pre_width_;
  Direction directions_[2];
  Scratch scratch_;
  size_t bytes_;
};

template <class F>
auto with_quantized(const QuantizedParams& p, F f) {
  return cells::All::visit(p.shape.cell, [&](auto cell) {
    return p.int8 ? f(cell, Int8{}) : f(cell, PackedBFloat16{});
  });
}

constexpr QuantizedKernels make_quantized_kernels() {
  return {
      [](const QuantizedParams& p, int threads) {
        return with_quantized(p, [&](auto cell, auto weight) {
          return Quantized<decltype(cell), decltype(weight)>::workspace_bytes(p, threads);
        });
      },
      [](const QuantizedParams& p, const Worker& worker) {
        with_quantized(p, [&](auto cell, auto weight) {
          Quantized<decltype(cell), decltype(weight)>::run(p, worker);
        });
      },
  };
}

}  // namespace
}  // namespace fastrnn::cpu
