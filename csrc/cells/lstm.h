// Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate
// of Gers et al. 2000), in torch.nn's form and gate order i, f, g, o:
//   i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)    g = tanh(a_g)
//   c = f * c_prev + i * g                               h = o * tanh(c)
#pragma once
#include "cells/common.h"

namespace fastrnn::cells {

template <class V>
struct LstmGates {
  V i, f, g, o;
};

// Activates the gates in place and returns c; h goes to `h`.
template <class V>
FASTRNN_CELL V lstm_cell_forward(LstmGates<V>& a, V c_prev, V& h) {
  a.i = sigmoid(a.i);
  a.f = sigmoid(a.f);
  a.g = tanh(a.g);
  a.o = sigmoid(a.o);
  const V c = fma(a.f, c_prev, a.i * a.g);
  h = a.o * tanh(c);
  return c;
}

// Gradients of the pre-activations. d_c: in, the gradient that reaches c from
// the next step; out, the gradient that reaches c_prev.
template <class V>
FASTRNN_CELL LstmGates<V> lstm_cell_backward(const LstmGates<V>& a, V c_prev, V c, V d_h, V& d_c) {
  const V one = V::set1(1);
  const V tanh_c = tanh(c);
  const V d_cell = fma(d_h * a.o, fnma(tanh_c, tanh_c, one), d_c);
  LstmGates<V> d;
  d.i = d_cell * a.g * a.i * (one - a.i);
  d.f = d_cell * c_prev * a.f * (one - a.f);
  d.g = d_cell * a.i * fnma(a.g, a.g, one);
  d.o = d_h * tanh_c * a.o * (one - a.o);
  d_c = d_cell * a.f;
  return d;
}

// The derivative of a step in a direction. t: in, the tangents of the pre-activations; out, those
// of the gates. t_c: in, the tangent of c_prev; out, of c. Returns that of h.
template <class V>
FASTRNN_CELL V lstm_cell_tangent(const LstmGates<V>& a, LstmGates<V>& t, V c_prev, V c, V& t_c) {
  const V one = V::set1(1);
  const V tanh_c = tanh(c);
  t.i = t.i * a.i * (one - a.i);
  t.f = t.f * a.f * (one - a.f);
  t.g = t.g * fnma(a.g, a.g, one);
  t.o = t.o * a.o * (one - a.o);
  t_c = fma(a.f, t_c, fma(t.f, c_prev, fma(a.i, t.g, t.i * a.g)));
  return fma(t_c * a.o, fnma(tanh_c, tanh_c, one), t.o * tanh_c);
}

}  // namespace fastrnn::cells
