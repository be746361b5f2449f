// Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate
// of Gers et al. 2000), in torch.nn's form and gate order i, f, g, o:
//   i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)    g = tanh(a_g)
//   c = f * c_prev + i * g                               h = o * tanh(c)
#pragma once
#include "cells/cell.h"

namespace fastrnn::cells {

// States h and c, h = o * tanh(c) with the output gate o in the last of K columns.
template <int K>
struct OutputGated {
  static constexpr int kStates = 2, kColumns = K, kVectors = 0;
  static constexpr bool kCarriesH = false, kKeepsH = false;

  template <class V>
  static FASTRNN_CELL void emit(const V (&a)[K], V (&states)[2]) {
    states[0] = a[K - 1] * tanh(states[1]);
  }

  template <class V>
  static FASTRNN_CELL void emit_backward(const V (&a)[K], const V (&states)[2], V (&d)[2],
                                         V (&d_a)[K]) {
    const V tanh_c = tanh(states[1]);
    d[1] = fma(d[0] * a[K - 1], fnma(tanh_c, tanh_c, V::set1(1)), d[1]);
    d_a[K - 1] = d[0] * tanh_c;
  }
};

struct Lstm : OutputGated<4> {
  static constexpr char kName[] = "lstm";
  static constexpr int kProducts = 4, kCandidate = 2;

  template <class V>
  static FASTRNN_CELL void activate(V (&a)[4]) {
    a[0] = sigmoid(a[0]);
    a[1] = sigmoid(a[1]);
    a[2] = tanh(a[2]);
    a[3] = sigmoid(a[3]);
  }
  template <class V>
  static FASTRNN_CELL void update(const V (&a)[4], const V (&before)[2], V (&after)[2]) {
    after[1] = fma(a[1], before[1], a[0] * a[2]);
  }

  template <class V>
  static FASTRNN_CELL void update_backward(const V (&a)[4], const V (&before)[2], const V (&d)[2],
                                           V (&d_before)[2], V (&d_a)[4]) {
    d_a[0] = d[1] * a[2];
    d_a[1] = d[1] * before[1];
    d_a[2] = d[1] * a[0];
    d_before[1] = fma(d[1], a[1], d_before[1]);
  }
  template <class V>
  static FASTRNN_CELL void activate_backward(const V (&a)[4], V (&d_a)[4]) {
    d_a[0] = through_sigmoid(d_a[0], a[0]);
    d_a[1] = through_sigmoid(d_a[1], a[1]);
    d_a[2] = through_tanh(d_a[2], a[2]);
    d_a[3] = through_sigmoid(d_a[3], a[3]);
  }
  // One factor for each column: the same for tangents as for gradients.
  template <class V>
  static FASTRNN_CELL void activate_tangent(const V (&a)[4], V (&t)[4]) {
    activate_backward(a, t);
  }
};

}  // namespace fastrnn::cells
