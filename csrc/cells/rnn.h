// Elman's recurrent network (1990): h = tanh(a) or h = relu(a).
#pragma once
#include "cells/cell.h"

namespace fastrnn::cells {

// What both have: h is the activated value.
struct Rnn {
  static constexpr int kProducts = 1, kStates = 1, kColumns = 1, kCandidate = -1, kVectors = 0;
  static constexpr bool kCarriesH = false, kKeepsH = true;

  template <class V>
  static FASTRNN_CELL void update(const V (&a)[1], const V (&)[1], V (&after)[1]) {
    after[0] = a[0];
  }
  template <class V>
  static FASTRNN_CELL void emit(const V (&)[1], V (&)[1]) {}
  template <class V>
  static FASTRNN_CELL void emit_backward(const V (&)[1], const V (&)[1], V (&)[1], V (&)[1]) {}
  template <class V>
  static FASTRNN_CELL void update_backward(const V (&)[1], const V (&)[1], const V (&d)[1],
                                           V (&)[1], V (&d_a)[1]) {
    d_a[0] = d[0];
  }
};

struct RnnTanh : Rnn {
  static constexpr char kName[] = "rnn_tanh";

  template <class V>
  static FASTRNN_CELL void activate(V (&a)[1]) {
    a[0] = tanh(a[0]);
  }
  template <class V>
  static FASTRNN_CELL void activate_backward(const V (&a)[1], V (&d_a)[1]) {
    d_a[0] = through_tanh(d_a[0], a[0]);
  }
  template <class V>
  static FASTRNN_CELL void activate_tangent(const V (&a)[1], V (&t)[1]) {
    activate_backward(a, t);
  }
};

struct RnnRelu : Rnn {
  static constexpr char kName[] = "rnn_relu";

  template <class V>
  static FASTRNN_CELL void activate(V (&a)[1]) {
    a[0] = relu(a[0]);
  }
  template <class V>
  static FASTRNN_CELL void activate_backward(const V (&a)[1], V (&d_a)[1]) {
    d_a[0] = zero_where_not_positive(a[0], d_a[0]);
  }
  template <class V>
  static FASTRNN_CELL void activate_tangent(const V (&a)[1], V (&t)[1]) {
    activate_backward(a, t);
  }
};

}  // namespace fastrnn::cells
