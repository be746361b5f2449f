// The value type that the cell equations of csrc/cells/ are instantiated with in
// a CUDA thread: one number, its arithmetic and its functions.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/primitives.h"
#include "layer_shape.h"

namespace fastrnn::cuda {

// A is float or double.
template <class A>
struct Value {
  A v;

  static FASTRNN_DEVICE Value set1(A x) { return {x}; }
  friend FASTRNN_DEVICE Value operator+(Value a, Value b) { return {a.v + b.v}; }
  friend FASTRNN_DEVICE Value operator-(Value a, Value b) { return {a.v - b.v}; }
  friend FASTRNN_DEVICE Value operator*(Value a, Value b) { return {a.v * b.v}; }
  friend FASTRNN_DEVICE Value fma(Value a, Value b, Value c) { return {fused(a.v, b.v, c.v)}; }
  friend FASTRNN_DEVICE Value fnma(Value a, Value b, Value c) { return {fused(-a.v, b.v, c.v)}; }
  friend FASTRNN_DEVICE Value sigmoid(Value a) { return {sigmoid_of(a.v)}; }
  friend FASTRNN_DEVICE Value tanh(Value a) { return {tanh_of(a.v)}; }
  // NaN is neither above nor below zero and stays.
  friend FASTRNN_DEVICE Value relu(Value a) { return {a.v <= A(0) ? A(0) : a.v}; }
  friend FASTRNN_DEVICE Value zero_where_not_positive(Value test, Value a) {
    return {test.v <= A(0) ? A(0) : a.v};
  }
};

template <class T>
FASTRNN_DEVICE T narrowed(Compute<T> x) {
  T result;
  narrow(x, result);
  return result;
}

// x as storage of type T keeps it.
template <class T>
FASTRNN_DEVICE Compute<T> rounded(Compute<T> x) {
  return widen(narrowed<T>(x));
}

// Element i, or zero where the tensor is absent.
template <class T>
FASTRNN_DEVICE Compute<T> load(const void* tensor, int64_t i) {
  return tensor == nullptr ? Compute<T>(0) : widen(static_cast<const T*>(tensor)[i]);
}

// From a row of `size` elements on, or null where the tensor is absent.
template <class T>
FASTRNN_DEVICE T* rows_of(void* tensor, int64_t row, int size) {
  return tensor == nullptr ? nullptr : static_cast<T*>(tensor) + row * size;
}
template <class T>
FASTRNN_DEVICE const T* rows_of(const void* tensor, int64_t row, int size) {
  return tensor == nullptr ? nullptr : static_cast<const T*>(tensor) + row * size;
}

// Does nothing where the tensor is absent.
template <class T>
FASTRNN_DEVICE void store(void* tensor, int64_t i, Compute<T> x) {
  if (tensor != nullptr) static_cast<T*>(tensor)[i] = narrowed<T>(x);
}

FASTRNN_DEVICE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// What a kernel needs to know of a cell beyond its equations. kGates: products a unit;
// kSaved: columns of d_gates, times H; kLoads: what a backward step reads for a unit and row
// besides d_output.
struct Lstm {
  static constexpr int kGates = 4, kSaved = 4, kLoads = 6;
  static constexpr bool kIsLstm = true, kIsGru = false;
};
struct Gru {
  static constexpr int kGates = 3, kSaved = 4, kLoads = 5;
  static constexpr bool kIsLstm = false, kIsGru = true;
};
struct Rnn {
  static constexpr int kGates = 1, kSaved = 1, kLoads = 1;
  static constexpr bool kIsLstm = false, kIsGru = false;
};

// One unit of one row. pre: the input product and every bias but a GRU's b_hn, which is in
// `inner` alone: the recurrent product of n, that the reset gate scales, starts from it.
// recurrent: the recurrent product. state: c of an LSTM, h of a GRU. saved: what backward reads.
template <class Cell, class A>
FASTRNN_DEVICE A step_forward(CellKind kind, const A (&pre)[Cell::kGates], A inner,
                              const A (&recurrent)[Cell::kGates], A& state, A (&saved)[4]) {
  using V = Value<A>;
  if constexpr (Cell::kIsLstm) {
    cells::LstmGates<V> a{{pre[0] + recurrent[0]},
                          {pre[1] + recurrent[1]},
                          {pre[2] + recurrent[2]},
                          {pre[3] + recurrent[3]}};
    V h;
    state = cells::lstm_cell_forward(a, V{state}, h).v;
    saved[0] = a.i.v;
    saved[1] = a.f.v;
    saved[2] = a.g.v;
    saved[3] = a.o.v;
    return h.v;
  } else if constexpr (Cell::kIsGru) {
    cells::GruGates<V> a{
        {pre[0] + recurrent[0]}, {pre[1] + recurrent[1]}, {pre[2]}, {inner + recurrent[2]}};
    state = cells::gru_cell_forward(a, V{state}).v;
    saved[0] = a.r.v;
    saved[1] = a.z.v;
    saved[2] = a.n.v;
    saved[3] = a.u.v;
    return state;
  } else {
    const V a{pre[0] + recurrent[0]};
    return (kind == CellKind::kRnnRelu ? cells::Relu::forward(a) : cells::Tanh::forward(a)).v;
  }
}

// One unit of one row. in: what the forward pass saved, LSTM i, f, g, o, c and c of the step
// before; GRU r, z, n, u and h of the step before; RNN h. d_h: in, the gradient of h; out, what
// bypasses the product. d_c: LSTM. d: the columns of d_gates.
template <class Cell, class A>
FASTRNN_DEVICE void step_backward(CellKind kind, const A (&in)[Cell::kLoads], A& d_h, A& d_c,
                                  A (&d)[Cell::kSaved]) {
  using V = Value<A>;
  if constexpr (Cell::kIsLstm) {
    const cells::LstmGates<V> a{{in[0]}, {in[1]}, {in[2]}, {in[3]}};
    V carried{d_c};
    const auto g = cells::lstm_cell_backward(a, V{in[5]}, V{in[4]}, V{d_h}, carried);
    d_c = carried.v;
    d_h = A(0);
    d[0] = g.i.v;
    d[1] = g.f.v;
    d[2] = g.g.v;
    d[3] = g.o.v;
  } else if constexpr (Cell::kIsGru) {
    const cells::GruGates<V> a{{in[0]}, {in[1]}, {in[2]}, {in[3]}};
    V bypass{d_h};
    const auto g = cells::gru_cell_backward(a, V{in[4]}, bypass);
    d_h = bypass.v;
    d[0] = g.r.v;
    d[1] = g.z.v;
    d[2] = g.n.v;
    d[3] = g.u.v;
  } else {
    const V h{in[0]};
    d[0] = (kind == CellKind::kRnnRelu ? cells::Relu::backward(h, V{d_h})
                                       : cells::Tanh::backward(h, V{d_h}))
               .v;
    d_h = A(0);
  }
}

// A reset before a step of the backward pass: nothing of it reaches the step before. What would go
// past the recurrent product belongs to the initial state, if anybody collects it; what would go
// through it is left out of the operand, and the host makes it of d_gates.
template <class Cell, class Params>
FASTRNN_DEVICE void forget(const Params& p, int64_t at, float& d_h, float& d_c) {
  if (Cell::kIsGru && p.reset_d_h != nullptr) p.reset_d_h[at] += d_h;
  if (Cell::kIsLstm && p.reset_d_c != nullptr) p.reset_d_c[at] += d_c;
  d_h = d_c = 0;
}

// Column of d_gates that the recurrent product of gate g sees: a GRU's last is d_n times r.
template <class Cell>
FASTRNN_DEVICE constexpr int recurrent_column(int g) {
  return Cell::kIsGru && g == 2 ? 3 : g;
}

}  // namespace fastrnn::cuda
