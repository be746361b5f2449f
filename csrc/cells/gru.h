// Gated recurrent unit (Cho et al. 2014) in torch.nn's form, the reset gate
// applied after the recurrent product, gate order r, z, n:
//   r, z = sigmoid(a_r), sigmoid(a_z)
//   n = tanh(a_n + r * u_n)     u_n = W_hn h_prev + b_hn, a_n = W_in x + b_in
//   h = (1 - z) * n + z * h_prev
#pragma once
#include "cells/common.h"

namespace fastrnn::cells {

template <class V>
struct GruGates {
  V r, z, n, u;  // u is the recurrent product of n, before r scales it
};

// Activates r, z, n in place (u stays) and returns h.
template <class V>
FASTRNN_CELL V gru_cell_forward(GruGates<V>& a, V h_prev) {
  a.r = sigmoid(a.r);
  a.z = sigmoid(a.z);
  a.n = tanh(fma(a.r, a.u, a.n));
  return fma(a.z, h_prev - a.n, a.n);
}

// Gradients of a_r, a_z, a_n and u (in that order in the result). d_h: in, the
// gradient of h; out, the part of h_prev's gradient that bypasses the products.
template <class V>
FASTRNN_CELL GruGates<V> gru_cell_backward(const GruGates<V>& a, V h_prev, V& d_h) {
  const V one = V::set1(1);
  GruGates<V> d;
  d.z = d_h * (h_prev - a.n) * a.z * (one - a.z);
  d.n = d_h * (one - a.z) * fnma(a.n, a.n, one);
  d.r = d.n * a.u * a.r * (one - a.r);
  d.u = d.n * a.r;
  d_h = d_h * a.z;
  return d;
}

// The derivative of a step in a direction. t: in, the tangents of a_r, a_z, a_n and u; out, those
// of r, z, n and u. Returns the tangent of h.
template <class V>
FASTRNN_CELL V gru_cell_tangent(const GruGates<V>& a, GruGates<V>& t, V h_prev, V t_h_prev) {
  const V one = V::set1(1);
  t.r = t.r * a.r * (one - a.r);
  t.z = t.z * a.z * (one - a.z);
  t.n = fma(t.r, a.u, fma(a.r, t.u, t.n)) * fnma(a.n, a.n, one);
  return fma(t.z, h_prev - a.n, fma(a.z, t_h_prev - t.n, t.n));
}

}  // namespace fastrnn::cells
