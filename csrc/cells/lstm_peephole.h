// Long short-term memory whose gates see the cell (peepholes; Gers and Schmidhuber 2000, "Recurrent
// Nets that Time and Count"), gate order i, f, g, o; own: p_i, p_f, p_o, the diagonals of the
// weights from the cell:
//   i, f = sigmoid(a_i + p_i * c_prev), sigmoid(a_f + p_f * c_prev)
//   c = f * c_prev + i * tanh(a_g)
//   o = sigmoid(a_o + p_o * c)           h = o * tanh(c)
// Where c is normalised, o and h see what that leaves.
#pragma once
#include "cells/lstm.h"

namespace fastrnn::cells {

struct LstmPeephole : Lstm {
  static constexpr char kName[] = "lstm_peephole";
  static constexpr int kVectors = 3;

  template <class V>
  static FASTRNN_CELL void enter(const V (&own)[3], const V (&before)[2], V (&a)[4]) {
    a[0] = fma(own[0], before[1], a[0]);
    a[1] = fma(own[1], before[1], a[1]);
  }
  template <class V>
  static FASTRNN_CELL void activate(V (&a)[4]) {
    a[0] = sigmoid(a[0]);
    a[1] = sigmoid(a[1]);
    a[2] = tanh(a[2]);
  }
  template <class V>
  static FASTRNN_CELL void finish(const V (&own)[3], const V (&after)[2], V (&a)[4]) {
    a[3] = sigmoid(fma(own[2], after[1], a[3]));
  }

  template <class V>
  static FASTRNN_CELL void finish_backward(const V (&own)[3], const V (&after)[2], const V (&a)[4],
                                           V (&d)[2], V (&d_a)[4], V (&d_own)[3]) {
    d_a[3] = through_sigmoid(d_a[3], a[3]);
    d[1] = fma(d_a[3], own[2], d[1]);
    d_own[2] = d_a[3] * after[1];
  }
  template <class V>
  static FASTRNN_CELL void activate_backward(const V (&a)[4], V (&d_a)[4]) {
    d_a[0] = through_sigmoid(d_a[0], a[0]);
    d_a[1] = through_sigmoid(d_a[1], a[1]);
    d_a[2] = through_tanh(d_a[2], a[2]);
  }
  template <class V>
  static FASTRNN_CELL void enter_backward(const V (&own)[3], const V (&before)[2],
                                          const V (&d_a)[4], V (&d_before)[2], V (&d_own)[3]) {
    d_before[1] = fma(d_a[0], own[0], fma(d_a[1], own[1], d_before[1]));
    d_own[0] = d_a[0] * before[1];
    d_own[1] = d_a[1] * before[1];
  }
  // One factor for each column: the same for tangents as for gradients.
  template <class V>
  static FASTRNN_CELL void activate_tangent(const V (&a)[4], V (&t)[4]) {
    activate_backward(a, t);
  }
  template <class Dual>
  static FASTRNN_CELL void finish_tangent(const Dual (&own)[3], const Dual (&after)[2],
                                          Dual (&a)[4]) {
    a[3].t = through_sigmoid((own[2] * after[1]).t + a[3].t, a[3].v);
  }
};

}  // namespace fastrnn::cells
