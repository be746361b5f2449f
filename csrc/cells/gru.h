// Gated recurrent unit (Cho et al. 2014) in torch.nn's form, the reset gate
// applied after the recurrent product, gate order r, z, n:
//   r, z = sigmoid(a_r), sigmoid(a_z)
//   n = tanh(a_n + r * u)       u = W_hn h_prev + b_hn, a_n = W_in x + b_in
//   h = (1 - z) * n + z * h_prev
// Columns are r, z, n, u.
#pragma once
#include "cells/cell.h"

namespace fastrnn::cells {

struct Gru {
  static constexpr char kName[] = "gru";
  static constexpr int kProducts = 3, kStates = 1, kColumns = 4, kCandidate = 2, kVectors = 0;
  static constexpr bool kCarriesH = true, kKeepsH = false;

  template <class V>
  static FASTRNN_CELL void activate(V (&a)[4]) {
    a[0] = sigmoid(a[0]);
    a[1] = sigmoid(a[1]);
    a[2] = tanh(fma(a[0], a[3], a[2]));
  }
  template <class V>
  static FASTRNN_CELL void update(const V (&a)[4], const V (&before)[1], V (&after)[1]) {
    after[0] = fma(a[1], before[0] - a[2], a[2]);
  }
  template <class V>
  static FASTRNN_CELL void emit(const V (&)[4], V (&)[1]) {}

  template <class V>
  static FASTRNN_CELL void emit_backward(const V (&)[4], const V (&)[1], V (&)[1], V (&)[4]) {}
  template <class V>
  static FASTRNN_CELL void update_backward(const V (&a)[4], const V (&before)[1], const V (&d)[1],
                                           V (&d_before)[1], V (&d_a)[4]) {
    d_a[1] = d[0] * (before[0] - a[2]);
    d_a[2] = d[0] * (V::set1(1) - a[1]);
    d_before[0] = fma(d[0], a[1], d_before[0]);
  }
  template <class V>
  static FASTRNN_CELL void activate_backward(const V (&a)[4], V (&d_a)[4]) {
    d_a[1] = through_sigmoid(d_a[1], a[1]);
    d_a[2] = through_tanh(d_a[2], a[2]);
    d_a[0] = through_sigmoid(d_a[2] * a[3], a[0]);
    d_a[3] = d_a[2] * a[0];
  }
  template <class V>
  static FASTRNN_CELL void activate_tangent(const V (&a)[4], V (&t)[4]) {
    t[0] = through_sigmoid(t[0], a[0]);
    t[1] = through_sigmoid(t[1], a[1]);
    t[2] = through_tanh(fma(t[0], a[3], fma(a[0], t[3], t[2])), a[2]);
  }
};

}  // namespace fastrnn::cells
