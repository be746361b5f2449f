// Elman's recurrent network (1990): h = tanh(a) or h = relu(a).
#pragma once
#include "cells/common.h"

namespace fastrnn::cells {

struct Tanh {
  template <class V>
  static FASTRNN_CELL V forward(V a) {
    return tanh(a);
  }
  // d_a from h and d_h
  template <class V>
  static FASTRNN_CELL V backward(V h, V d_h) {
    return d_h * fnma(h, h, V::set1(1));
  }
};

struct Relu {
  template <class V>
  static FASTRNN_CELL V forward(V a) {
    return relu(a);
  }
  template <class V>
  static FASTRNN_CELL V backward(V h, V d_h) {
    return zero_where_not_positive(h, d_h);
  }
};

}  // namespace fastrnn::cells
