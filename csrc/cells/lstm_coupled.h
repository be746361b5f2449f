// Long short-term memory with coupled input and forget gate (CIFG; Greff et al. 2017,
// "LSTM: A Search Space Odyssey"), without peepholes, gate order f, g, o:
//   f, o = sigmoid(a_f), sigmoid(a_o)    g = tanh(a_g)
//   c = f * c_prev + (1 - f) * g         h = o * tanh(c)
#pragma once
#include "cells/lstm.h"

namespace fastrnn::cells {

struct LstmCoupled : OutputGated<3> {
  static constexpr char kName[] = "lstm_coupled";
  static constexpr int kProducts = 3, kCandidate = 1;

  template <class V>
  static FASTRNN_CELL void activate(V (&a)[3]) {
    a[0] = sigmoid(a[0]);
    a[1] = tanh(a[1]);
    a[2] = sigmoid(a[2]);
  }
  template <class V>
  static FASTRNN_CELL void update(const V (&a)[3], const V (&before)[2], V (&after)[2]) {
    after[1] = fma(a[0], before[1] - a[1], a[1]);
  }

  template <class V>
  static FASTRNN_CELL void update_backward(const V (&a)[3], const V (&before)[2], const V (&d)[2],
                                           V (&d_before)[2], V (&d_a)[3]) {
    d_a[0] = d[1] * (before[1] - a[1]);
    d_a[1] = d[1] * (V::set1(1) - a[0]);
    d_before[1] = fma(d[1], a[0], d_before[1]);
  }
  template <class V>
  static FASTRNN_CELL void activate_backward(const V (&a)[3], V (&d_a)[3]) {
    d_a[0] = through_sigmoid(d_a[0], a[0]);
    d_a[1] = through_tanh(d_a[1], a[1]);
    d_a[2] = through_sigmoid(d_a[2], a[2]);
  }
  // One factor for each column: the same for tangents as for gradients.
  template <class V>
  static FASTRNN_CELL void activate_tangent(const V (&a)[3], V (&t)[3]) {
    activate_backward(a, t);
  }
};

}  // namespace fastrnn::cells
