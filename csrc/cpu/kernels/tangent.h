// The derivative of the forward recurrence in a direction. It is linear in the tangents, so it is
// the same walk (recurrence.h) for the tangents of states; the input's part is
//   t_x w_ih^T + x t_w_ih^T + h_prev t_w_hh^T + t_b,
// known before any step: one product over rows and weights laid side by side, for a chunk of steps
// beforehand, and what the caller has multiplied already.
#pragma once
#include "cpu/kernels/tangent_cells.h"

namespace fastrnn::cpu {
namespace {

template <int G, class S>
class Tangent : public Recurrence<Tangent<G, S>, TangentParams, G, S> {
  using Base = Recurrence<Tangent, TangentParams, G, S>;
  friend Base;
  using Base::arena_, Base::chunk_steps_, Base::L, Base::p_, Base::pre_, Base::pre_columns_,
      Base::w_;
  using typename Base::Blocks;
  using typename Base::C;
  using typename Base::Rows;
  using typename Base::V;
  static constexpr int kParts = 2;

 public:
  Tangent(const TangentParams& p, const TangentCell<S>& cell, int threads, void* workspace)
      : Base(p, cell, {p.t_h0, p.t_c0, p.t_h_n, p.t_c_n}, false, threads, workspace) {
    for (int d = 0; d < w_.s.directions; ++d) {
      const Weights& t = p.t_weights[d];
      terms_[d] = (p.t_input ? w_.I : 0) + (t.w_ih ? w_.I : 0) + (t.w_hh ? w_.P : 0);
      own_terms_[d] = w_.apart > 0 && t.w_hh ? w_.P : 0;
      most_terms_ = larger(most_terms_, terms_[d]);
      panels_[d] = arena_.template take<C>(G * w_.stride * terms_[d]);
      bias_[d] = arena_.template take<C>(G * w_.stride);
      own_bias_[d] = arena_.template take<C>(w_.apart > 0 ? G * w_.stride : 0);
    }
    pre_columns_ = G + w_.apart;
    const Split split = w_.place(0, threads).split;
    const int64_t rows = w_.most_rows(split);
    const int64_t row = ceil_div(w_.vectors, split.unit_groups) * pre_columns_ * L;
    const int64_t bytes = rows * (row + most_terms_) * static_cast<int64_t>(sizeof(C));
    chunk_steps_ = smaller(larger(1, kChunkBytes / larger(1, bytes)), w_.s.steps.seq_len);
    x_elements_ = ceil_div(chunk_steps_ * rows * most_terms_, L) * L;
    pre_elements_ = chunk_steps_ * rows * row;
    x_ = arena_.template take<C>(threads * x_elements_);
    pre_ = arena_.template take<C>(threads * pre_elements_);
  }

 private:
  void settle(int thread) {
    x_ += thread * x_elements_;
    pre_ += thread * pre_elements_;
  }

  template <int NU>
  void pack_block(int d, int64_t v) const {
    const Weights& t = p_.t_weights[d];
    const int64_t at = v * L * G;
    C* to = panels_[d] + at * terms_[d];
    const auto append = [&](const void* w, int64_t terms) {
      pack_rows(static_cast<const S*>(w), G, w_.H, terms, v, NU, to);
      to += terms * G * NU * L;
    };
    if (p_.t_input) append(p_.weights[d].w_ih, w_.I);
    if (t.w_ih) append(t.w_ih, w_.I);
    if (t.w_hh) append(t.w_hh, w_.P);
    const bool normalised = p_.inside.norm != Norm::kNone;  // biases are added after that
    for (int g = 0; g < G; ++g) {
      for (int u = 0; u < NU; ++u) {
        const V b_ih = normalised ? V::zero() : w_.load_bias(t.b_ih, g, v + u);
        const V b_hh = normalised ? V::zero() : w_.load_bias(t.b_hh, g, v + u);
        const int64_t i = at + (u * G + g) * L;
        (w_.apart > 0 ? b_ih : b_ih + b_hh).store(bias_[d] + i);
        if (w_.apart > 0) b_hh.store(own_bias_[d] + i);
      }
    }
  }

  // ---- what tangents of the input, the weights and the biases bring ----------

  // pre for the active rows of steps [s0, s1), in order.
  void fill_chunk(const Step<S>& step, int64_t s0, int64_t s1, const Share& mine) const {
    const int d = step.d;
    const Weights& t = p_.t_weights[d];
    const Blocks blocks{mine.units.begin, mine.units.end};
    int64_t count = 0;
    each_row(d, s0, s1, mine, [&](const StepRows& at, int64_t b) {
      C* to = x_ + count++ * terms_[d];
      const int64_t row = at.first + b;
      if (p_.t_input) {
        convert(static_cast<const S*>(p_.t_input) + row * w_.I, w_.I, to);
        to += w_.I;
      }
      if (t.w_ih) {
        convert(static_cast<const S*>(p_.input) + row * w_.I, w_.I, to);
        to += w_.I;
      }
      if (t.w_hh) previous_h(d, at, b, to);
    });
    for (int64_t i = 0; i < blocks.count(); ++i) {
      blocks.call(i, [&](auto nu, int64_t v) {
        C* const pre = pre_ + (v - mine.units.begin) * pre_columns_ * L;
        Rows::each(0, count, [&](auto mr, int64_t row) {
          product<mr(), nu()>(d, v, row, pre + row * step.pre_stride, step.pre_stride);
        });
        if (!p_.through_w_ih && !p_.through_w_hh) return;
        C* to = pre;
        each_row(d, s0, s1, mine, [&](const StepRows& at, int64_t b) {
          const int64_t n = w_.row(d, at.first + b);
          for (int g = 0; g < G; ++g) {
            for (int u = 0; u < nu(); ++u) {
              C* const unit = to + u * pre_columns_ * L;
              add(p_.through_w_ih, n * G + g, v + u, unit + g * L);
              add(p_.through_w_hh, n * G + g, v + u, unit + column_of(g) * L);
            }
          }
          to += step.pre_stride;
        });
      });
    }
  }

  // Calls f(step, b) for the active rows of steps [s0, s1).
  template <class F>
  void each_row(int d, int64_t s0, int64_t s1, const Share& mine, F&& f) const {
    for (int64_t s = s0; s < s1; ++s) {
      const StepRows at(w_.s.steps, w_.time(d, s), w_.time(d, s - 1));
      const Range active = w_.within(mine.rows, w_.s.steps.count(at.t));
      for (int64_t b = active.begin; b < active.end; ++b) f(at, b);
    }
  }

  // Adds vector v of row n of a tensor [*, H], or nothing.
  void add(const void* from, int64_t n, int64_t v, C* to) const {
    if (from) (V::load(to) + w_.load_row(from, n, v, w_.H)).store(to);
  }

  void previous_h(int d, const StepRows& at, int64_t b, C* to) const {
    const bool had = b < at.previous_rows;
    const void* const from = had ? p_.hidden : p_.h0;
    const int64_t n = had ? w_.row(d, at.previous_first + b) : d * w_.B + b;
    if (from) {
      convert(static_cast<const S*>(from) + n * w_.P, w_.P, to);
    } else {
      for (int64_t j = 0; j < w_.P; ++j) to[j] = 0;
    }
    if (!p_.inside.h_scale) return;
    const S* const factor = static_cast<const S*>(p_.inside.h_scale) + (d * w_.B + b) * w_.P;
    each_vector<V>(w_.P, [&](int64_t i, int k) {
      store_lanes(load_lanes<V>(to + i, k) * load_lanes<V>(factor + i, k), to + i, k);
    });
  }

  template <int MR, int NU>
  FASTRNN_NOINLINE void product(int d, int64_t v, int64_t row, C* pre, int64_t stride) const {
    constexpr int NV = G * NU;
    const int64_t at = v * L * G, terms = terms_[d] - own_terms_[d];
    const C* const x = x_ + row * terms_[d];
    const C* const w = panels_[d] + at * terms_[d];
    if (w_.apart == 0) {
      product_tile<MR, NV, C>({terms, x, terms_[d], w, NV * L, bias_[d] + at, 0, pre, stride});
      return;
    }
    alignas(64) C all[MR * NV * L], own[MR * NV * L];
    product_tile<MR, NV, C>({terms, x, terms_[d], w, NV * L, bias_[d] + at, 0, all, NV * L});
    product_tile<MR, NV, C>({own_terms_[d], x + terms, terms_[d], w + terms * NV * L, NV * L,
                             own_bias_[d] + at, 0, own, NV * L});
    for (int i = 0; i < MR * NV; ++i) {
      const int m = i / NV, u = i % NV / G, g = i % G;
      C* const unit = pre + m * stride + u * pre_columns_ * L;
      const V of_input = V::load(all + i * L), of_h = V::load(own + i * L);
      const bool together = column_of(g) == g;
      (together ? of_input + of_h : of_input).store(unit + g * L);
      if (!together) of_h.store(unit + column_of(g) * L);
    }
  }

  // The column that recurrent product g adds to: the last w_.apart are apart.
  int column_of(int g) const { return g < G - w_.apart ? g : g + w_.apart; }

  // ---- results ---------------------------------------------------------------

  // The columns apart have h's product; what the input brings besides is behind the others in pre.
  void complete(const Step<S>& step, const Tile<C>& tile, C* columns) const {
    const int all = pre_columns_ * L;
    for (int m = 0; m < tile.rows && w_.apart > 0; ++m) {
      const C* pre = this->pre_of(step, tile.v, tile.b + m);
      for (int u = 0; u < tile.vectors; ++u, columns += all, pre += all) {
        for (int i = all - w_.apart * L; i < all; i += L) {
          (V::load(columns + i) + V::load(pre + i)).store(columns + i);
        }
      }
    }
  }

  // Vector v of row b's t_h after its projection.
  void publish(const Step<S>& step, int64_t v, int64_t b, V h) const {
    const int64_t n = w_.row(step.d, step.at.first + b);
    if (p_.through_w_hr) h = h + w_.load_row(p_.through_w_hr, n, v, w_.P);
    h.store(step.h_out + b * w_.h_stride + v * L);
    w_.store_row(h, p_.t_hidden, n, v, w_.P);
  }

  int64_t terms_[2];      // of the products of a chunk: those of a row of x_
  int64_t own_terms_[2];  // of them, those for w_hh where it has a product apart; they are last
  int64_t most_terms_ = 0;
  C* panels_[2];    // [terms][NU][G][L], one a block of units
  C* bias_[2];      // [vectors of units][G][L]
  C* own_bias_[2];  // the same of w_hh's product, where one is apart
  int64_t x_elements_, pre_elements_;
  C* x_;  // a thread's chunk of rows
};

}  // namespace
}  // namespace fastrnn::cpu
