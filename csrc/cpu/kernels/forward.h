// The forward recurrence of one layer: recurrence.h, where the input brings bias + x w_ih^T, in the
// same tile as h's product or for a chunk of steps beforehand.
#pragma once
#include "cpu/kernels/forward_cells.h"

namespace fastrnn::cpu {
namespace {

template <int G, class S>
class Forward : public Recurrence<Forward<G, S>, ForwardParams, G, S> {
  using Base = Recurrence<Forward, ForwardParams, G, S>;
  friend Base;
  using Base::arena_, Base::chunk_steps_, Base::fused_, Base::L, Base::p_, Base::pre_, Base::w_;
  using typename Base::Blocks;
  using typename Base::C;
  using typename Base::Rows;
  using typename Base::V;
  static constexpr int kParts = 1;

 public:
  Forward(const ForwardParams& p, const ForwardCell<S>& cell, int threads, void* workspace)
      : Base(p, cell, {p.h0, p.c0, p.h_n, p.c_n}, reads_in_place(p.shape), threads, workspace),
        x_each_(G * w_.H <= kFewColumns ? kFewTerms : kSumTerms) {
    constexpr int64_t kSize = sizeof(C);
    const Steps& steps = w_.s.steps;
    direct_ih_ = steps.rows < kDirectRows;
    const Split split = w_.place(0, threads).split;
    // With options inside, products go through memory anyway: w_ih is read once a chunk then.
    fused_ =
        !p.inside.any && !reads_in_place(p.shape) && w_.B >= kFusedRows &&
        (G * w_.H * w_.I * kSize <= kFusedBytes || w_.B / split.batch_groups >= kFusedRowsLarge);
    const int64_t rows = w_.most_rows(split);
    const int64_t row = ceil_div(w_.vectors, split.unit_groups) * G * L;
    const int64_t row_bytes = kSize * larger(1, rows * row);
    packs_late_ = !direct_ih_ && !fused_ && split.batch_groups == 1 &&
                  steps.seq_len <= kLateBytes / row_bytes;
    chunk_steps_ = fused_ ? 1 : larger(1, kChunkBytes / row_bytes);
    if (packs_late_) chunk_steps_ = steps.seq_len;
    chunk_steps_ = smaller(chunk_steps_, steps.seq_len);
    for (int d = 0; d < w_.s.directions; ++d) {
      w_ih_[d] = arena_.template take<C>(direct_ih_ || packs_late_ ? 0 : G * w_.stride * w_.I);
      bias_[d] = arena_.template take<C>(G * w_.stride);
    }
    x_elements_ = ceil_div(chunk_steps_ * rows * w_.I, L) * L;
    pre_elements_ = fused_ ? 0 : chunk_steps_ * rows * row;
    panel_elements_ = packs_late_ ? w_.I * G * kUnitVectors<G> * L : 0;
    x_ = arena_.template take<C>(threads * x_elements_);
    pre_ = arena_.template take<C>(threads * pre_elements_);
    panel_ = arena_.template take<C>(threads * panel_elements_);
  }

 private:
  // Whether w_hh is read where it lies.
  static bool reads_in_place(const LayerShape& s) {
    const int64_t bytes = G * s.hidden_size * s.proj_size * static_cast<int64_t>(sizeof(C));
    return s.steps.rows < kDirectRows || (s.steps.batch <= kDirectBatch && bytes > kDirectBytes);
  }

  void settle(int thread) {
    x_ += thread * x_elements_;
    pre_ += thread * pre_elements_;
    panel_ += thread * panel_elements_;
  }

  template <int NU>
  void pack_block(int d, int64_t v) const {
    const Weights& w = p_.weights[d];
    const int64_t at = v * L * G;
    if (!direct_ih_ && !packs_late_) pack_input<NU>(d, v, w_ih_[d] + at * w_.I);
    const bool normalised = p_.inside.norm != Norm::kNone;  // biases are added after that
    for (int g = 0; g < G; ++g) {
      const bool separate = w_.cell.apart() && g + 1 == G;
      for (int u = 0; u < NU; ++u) {
        const V b_ih = normalised ? V::zero() : w_.load_bias(w.b_ih, g, v + u);
        const V b_hh = normalised ? V::zero() : w_.load_bias(w.b_hh, g, v + u);
        (separate ? b_ih : b_ih + b_hh).store(bias_[d] + at + (u * G + g) * L);
        if (separate) b_hh.store(w_.bias_u[d] + (v + u) * L);
      }
    }
  }

  template <int NU>
  void pack_input(int d, int64_t v, C* panel) const {
    pack_rows(static_cast<const S*>(p_.weights[d].w_ih), G, w_.H, w_.I, v, NU, panel);
  }

  // ---- the input product ---------------------------------------------------

  const S* input_row(int64_t t, int64_t b) const {
    const Steps& steps = w_.s.steps;
    const int64_t step =
        steps.offsets ? steps.offsets[t] * p_.input_row_stride : t * p_.input_step_stride;
    return static_cast<const S*>(p_.input) + step + b * p_.input_row_stride;
  }

  // The input rows of a fused step: where they lie, or converted.
  void set_input(Step<S>& step, Range active) const {
    if constexpr (std::is_same_v<S, C>) {
      step.x = input_row(step.at.t, 0);
      step.x_stride = p_.input_row_stride;
    } else {
      for (int64_t b = active.begin; b < active.end; ++b) {
        convert(input_row(step.at.t, b), w_.I, x_ + (b - active.begin) * w_.I);
      }
      step.x = x_ - active.begin * w_.I;
      step.x_stride = w_.I;
    }
  }

  FASTRNN_INLINE void set_product(const Step<S>& step, int64_t v, int64_t b,
                                  Columns<C>& product) const {
    product.x_terms = w_.I;
    product.x = step.x + b * step.x_stride;
    product.ldx = step.x_stride;
    product.w_ih = w_ih_[step.d] + v * L * G * w_.I;
    product.bias = bias_[step.d] + v * L * G;
    product.x_each = x_each_;
  }

  // pre[row] = bias + x w_ih^T for the active rows of steps [s0, s1), in order.
  void fill_chunk(const Step<S>& step, int64_t s0, int64_t s1, const Share& mine) const {
    const int d = step.d;
    int64_t count = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = w_.time(d, s);
      const Range active = w_.within(mine.rows, w_.s.steps.count(t));
      for (int64_t b = active.begin; b < active.end; ++b) {
        convert(input_row(t, b), w_.I, x_ + count++ * w_.I);
      }
    }
    const int64_t stride = step.pre_stride;
    const Blocks blocks{mine.units.begin, mine.units.end};
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        C* pre = pre_ + (v - mine.units.begin) * G * L;
        const C* panel = packs_late_ ? panel_ : w_ih_[d] + v * L * G * w_.I;
        if (packs_late_) pack_input<nu()>(d, v, panel_);
        Rows::each(0, count, [&](auto mr, int64_t row) {
          if (direct_ih_) {
            for (int m = 0; m < mr(); ++m) direct_input<nu()>(d, v, row + m, pre, stride);
          } else {
            product_tile<mr(), G * nu(), C>({w_.I, x_ + row * w_.I, w_.I, panel, G * nu() * L,
                                             bias_[d] + v * L * G, 0, pre + row * stride, stride,
                                             x_each_});
          }
        });
      });
    }
  }

  template <int NU>
  FASTRNN_NOINLINE void direct_input(int d, int64_t v, int64_t row, C* pre, int64_t stride) const {
    alignas(64) C products[G * NU * L];
    direct_products<G, NU>(static_cast<const S*>(p_.weights[d].w_ih), w_.H, w_.I, x_ + row * w_.I,
                           v, products);
    for (int i = 0; i < G * NU; ++i) {
      (V::load(bias_[d] + v * L * G + i * L) + V::load(products + i * L))
          .store(pre + row * stride + i * L);
    }
  }

  // ---- results ---------------------------------------------------------------

  // Asks for the lines that the cell will write, far away since the pass before: a store that
  // misses holds up those behind it. (prefetchw, a no-operation to processors that lack it.)
  template <int MR, int NU>
  FASTRNN_INLINE void expect_writes(const Step<S>& step, int64_t v, int64_t b) const {
    const auto touch = [](void* base, int64_t element) {
      __builtin_prefetch(static_cast<S*>(base) + element, 1);
    };
    const int64_t H = w_.H, K = w_.cell.columns;
    for (int m = 0; m < MR; ++m) {
      const int64_t row = step.at.first + b + m, n = step.d * w_.s.steps.rows + row;
      for (int u = 0; u < NU; ++u) {
        const int64_t unit = (v + u) * L;
        if (p_.gates) {
          for (int k = 0; k < K; ++k) touch(p_.gates, (n * K + k) * H + unit);
        }
        if (p_.cells) touch(p_.cells, n * H + unit);
        if (w_.s.projected) continue;
        if (p_.hidden) touch(p_.hidden, n * H + unit);
        touch(p_.output, (row * w_.s.directions + step.d) * H + unit);
      }
    }
  }

  // Vector v of row b's h after its projection.
  void publish(const Step<S>& step, int64_t v, int64_t b, V h) const {
    const int64_t row = step.at.first + b;
    h.store(step.h_out + b * w_.h_stride + v * L);
    w_.store_row(h, p_.output, row * w_.s.directions + step.d, v, w_.P);
    if (p_.hidden) w_.store_row(h, p_.hidden, w_.row(step.d, row), v, w_.P);
  }

  const int64_t x_each_;  // terms of a block of the input's sums
  bool direct_ih_;        // w_ih is read where it lies
  bool packs_late_;       // a block of it at a time, just before its only use
  int64_t x_elements_, pre_elements_, panel_elements_;
  C *w_ih_[2], *bias_[2];  // panels [I][NU][G][L], one a block of units; [vectors][G][L]
  C* x_;                   // a thread's chunk of input rows
  C* panel_;               // a thread's block of w_ih, where packed late
};

}  // namespace
}  // namespace fastrnn::cpu
