// The value type that the cell equations of csrc/cells/ are instantiated with in
// a CUDA thread: one number, its arithmetic and its functions.
#pragma once
#include "cells/list.h"
#include "cuda/primitives.h"

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

template <class Cell>
inline constexpr bool kHasC = Cell::kStates > 1;
// What a backward step reads for a unit and row besides d_output: what the forward pass kept and,
// where the cell's equations ask for it, c and what c or h was a step before.
template <class Cell>
inline constexpr bool kReadsPrevious = kHasC<Cell> || Cell::kCarriesH;
template <class Cell>
inline constexpr int kLoads = Cell::kColumns + kHasC<Cell> + kReadsPrevious<Cell>;
// Among them, that of a tensor with a value for each step's unit: c, or h where the cell keeps it.
template <class Cell>
inline constexpr int kCurrent = Cell::kKeepsH ? 0 : Cell::kColumns;
template <class Cell>
inline constexpr bool kReadsCurrent = kHasC<Cell> || Cell::kKeepsH;

// What a unit's columns start from: of_input and of_h give the bias of a product, or zero.
template <class Cell, class A, class OfInput, class OfH>
FASTRNN_DEVICE void column_biases(A (&bias)[Cell::kColumns], OfInput of_input, OfH of_h) {
  bias[Cell::kColumns - 1] = 0;
  FASTRNN_UNROLL
  for (int g = 0; g < Cell::kProducts; ++g) bias[g] = of_input(g);
  FASTRNN_UNROLL
  for (int g = 0; g < Cell::kProducts; ++g) bias[cells::recurrent_column<Cell>(g)] += of_h(g);
}

// One unit of one row. a: in, the columns but for the recurrent products; out, what is kept.
// recurrent: those products. state: c, or h of a cell without; own: its vectors; returns h.
template <class Cell, class A>
FASTRNN_DEVICE A step_forward(A (&a)[Cell::kColumns], const A (&recurrent)[Cell::kProducts],
                              A& state, const Value<A> (&own)[cells::kOwn<Cell>]) {
  using V = Value<A>;
  FASTRNN_UNROLL
  for (int g = 0; g < Cell::kProducts; ++g) {
    a[cells::recurrent_column<Cell>(g)] += recurrent[g];
  }
  V kept[Cell::kColumns], before[Cell::kStates], after[Cell::kStates];
  FASTRNN_UNROLL
  for (int k = 0; k < Cell::kColumns; ++k) kept[k] = {a[k]};
  before[0] = {state};
  if constexpr (kHasC<Cell>) before[1] = {state};
  cells::forward<Cell>(kept, before, after, own);
  FASTRNN_UNROLL
  for (int k = 0; k < Cell::kColumns; ++k) a[k] = kept[k].v;
  state = after[Cell::kStates - 1].v;
  return after[0].v;
}
template <class Cell, class A>
FASTRNN_DEVICE A step_forward(A (&a)[Cell::kColumns], const A (&recurrent)[Cell::kProducts],
                              A& state) {
  static_assert(Cell::kVectors == 0, "a cell with vectors needs them");
  const Value<A> none[1] = {{0}};
  return step_forward<Cell>(a, recurrent, state, none);
}

// One unit of one row. in: what is kept, c and what the last state was a step before. d_h: in, the
// gradient of h; out, what bypasses the product. d_c: that of c. d: the columns of d_gates. own:
// the cell's vectors, d_own: their gradients.
template <class Cell, class A>
FASTRNN_DEVICE void step_backward(const A (&in)[kLoads<Cell>], A& d_h, A& d_c,
                                  A (&d)[Cell::kColumns], const Value<A> (&own)[cells::kOwn<Cell>],
                                  Value<A> (&d_own)[cells::kOwn<Cell>]) {
  using V = Value<A>;
  constexpr int K = Cell::kColumns, kLast = Cell::kStates - 1;
  V kept[K], before[Cell::kStates], after[Cell::kStates], d_states[Cell::kStates], d_columns[K];
  FASTRNN_UNROLL
  for (int k = 0; k < K; ++k) kept[k] = {in[k]};
  before[0] = after[0] = {0};
  if constexpr (kReadsPrevious<Cell>) before[kLast] = {in[kLoads<Cell> - 1]};
  if constexpr (kHasC<Cell>) {
    after[1] = {in[K]};
    d_states[1] = {d_c};
  }
  d_states[0] = {d_h};
  cells::backward<Cell>(kept, before, after, d_states, d_columns, own, d_own);
  FASTRNN_UNROLL
  for (int k = 0; k < K; ++k) d[k] = d_columns[k].v;
  d_h = d_states[0].v;
  if constexpr (kHasC<Cell>) d_c = d_states[1].v;
}
template <class Cell, class A>
FASTRNN_DEVICE void step_backward(const A (&in)[kLoads<Cell>], A& d_h, A& d_c,
                                  A (&d)[Cell::kColumns]) {
  static_assert(Cell::kVectors == 0, "a cell with vectors needs them");
  const Value<A> none[1] = {{0}};
  Value<A> d_none[1];
  step_backward<Cell>(in, d_h, d_c, d, none, d_none);
}

// A cell's vectors for unit j.
template <class Cell, class T, class A>
FASTRNN_DEVICE void load_own(Value<A> (&own)[cells::kOwn<Cell>], const void* w_ch, int64_t j,
                             int64_t hidden_size) {
  own[0] = {0};
  FASTRNN_UNROLL
  for (int k = 0; k < Cell::kVectors; ++k) own[k] = {load<T>(w_ch, k * hidden_size + j)};
}

// A reset before a step of the backward pass: nothing of it reaches the step before. What would go
// past the recurrent product belongs to the initial state, if anybody collects it; what would go
// through it is left out of the operand, and the host makes it of d_gates.
template <class Cell, class Params>
FASTRNN_DEVICE void forget(const Params& p, int64_t at, float& d_h, float& d_c) {
  if (Cell::kCarriesH && p.reset_d_h != nullptr) p.reset_d_h[at] += d_h;
  if (kHasC<Cell> && p.reset_d_c != nullptr) p.reset_d_c[at] += d_c;
  d_h = d_c = 0;
}

}  // namespace fastrnn::cuda
