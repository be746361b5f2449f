// The contract of a cell: its equations for one unit, on a value type V (a vector of the CPU, a
// number of a CUDA thread, a dual number: anything with + - *, fma, fnma and the functions
// sigmoid(V), tanh(V), relu(V), which argument-dependent lookup finds beside V).
//
// A cell is a struct of constants
//   kName       as users and operators call it
//   kProducts   G: blocks of H rows of w_ih and w_hh
//   kColumns    S: a unit's values before activation, so of what is kept and of d_gates. A product
//               of the input and one of h add up in the column of their number; with one column
//               more than products, the last product of h is apart, in the last column
//   kStates     1: h, which the recurrent product multiplies; 2: h and c
//   kCarriesH   whether update reads h, so that its gradient goes past the product too
//   kKeepsH     whether column 0 of what is kept is h itself, and need not be saved beside it
//   kCandidate  the column that recurrent dropout multiplies; -1: none
//   kVectors    parameters of H values besides the products' weights, `own`; 0: none
// and of functions on one row's unit
//   activate(a)                           a: in, values before activation; out, what is kept
//   update(a, before, after)              states but for what emit makes of them
//   emit(a, states)                       h of the others (nothing where update made it)
//   emit_backward(a, states, d, d_a)      d: gradients of the states, h's goes on to the others
//   update_backward(a, before, d, d_before, d_a)   adds to d_before what does not go through the
//                                         products; d: gradients of the states after
//   activate_backward(a, d_a)             in, gradients of what is kept; out, of a's values before
//   activate_tangent(a, t)                the same for tangents
// and, of a cell with vectors, whose last column is activated late, from the states after,
//   enter(own, before, a)                 before activate: adds to a what vectors bring
//   finish(own, after, a)                 before emit: activates the last column
//   finish_backward(own, after, a, d, d_a, d_own)
//                                         d_a of the last column: in, of what is kept; out, before
//                                         activation. Adds to d what the vectors bring
//   enter_backward(own, before, d_a, d_before, d_own)
//                                         adds to d_before what the vectors bring
//   finish_tangent(own, after, a)         dual numbers, of the last column in: what is kept and its
//                                         tangent before activation; out: of what is kept
// In d_own each of the backward ones sets the gradients of the vectors that its part reads.
// Between these parts options have their places: normalisation of the state and zoneout after
// update, recurrent dropout before it. The tangent of update and emit is that of dual numbers.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_CELL __host__ __device__ __forceinline__
#else
#define FASTRNN_CELL inline __attribute__((always_inline))
#endif

namespace fastrnn::cells {

// Whether the last recurrent product has a column of its own.
template <class Cell>
inline constexpr bool kApart = Cell::kColumns > Cell::kProducts;

// The column that recurrent product g adds to.
template <class Cell>
FASTRNN_CELL constexpr int recurrent_column(int g) {
  return g + 1 == Cell::kProducts ? Cell::kColumns - 1 : g;
}

// d sigmoid(x) times d, from the sigmoid s.
template <class V>
FASTRNN_CELL V through_sigmoid(V d, V s) {
  return d * s * (V::set1(1) - s);
}
// d tanh(x) times d, from the tanh t.
template <class V>
FASTRNN_CELL V through_tanh(V d, V t) {
  return d * fnma(t, t, V::set1(1));
}

// Room for a cell's vectors, though it may have none.
template <class Cell>
inline constexpr int kOwn = Cell::kVectors > 0 ? Cell::kVectors : 1;

// A step. a: in, values before activation; out, what is kept.
template <class Cell, class V>
FASTRNN_CELL void forward(V (&a)[Cell::kColumns], const V (&before)[Cell::kStates],
                          V (&after)[Cell::kStates], const V (&own)[kOwn<Cell>]) {
  if constexpr (Cell::kVectors > 0) Cell::enter(own, before, a);
  Cell::activate(a);
  Cell::update(a, before, after);
  if constexpr (Cell::kVectors > 0) Cell::finish(own, after, a);
  Cell::emit(a, after);
}
template <class Cell, class V>
FASTRNN_CELL void forward(V (&a)[Cell::kColumns], const V (&before)[Cell::kStates],
                          V (&after)[Cell::kStates]) {
  static_assert(Cell::kVectors == 0, "a cell with vectors needs them");
  const V none[1] = {V::set1(0)};
  forward<Cell>(a, before, after, none);
}

// Its gradients. d_states: in, of the states after the step; out, of those before it, but for what
// goes through the products. d: of the values before activation.
template <class Cell, class V>
FASTRNN_CELL void backward(const V (&a)[Cell::kColumns], const V (&before)[Cell::kStates],
                           const V (&after)[Cell::kStates], V (&d_states)[Cell::kStates],
                           V (&d)[Cell::kColumns], const V (&own)[kOwn<Cell>],
                           V (&d_own)[kOwn<Cell>]) {
  Cell::emit_backward(a, after, d_states, d);
  if constexpr (Cell::kVectors > 0) Cell::finish_backward(own, after, a, d_states, d, d_own);
  V d_before[Cell::kStates];
  for (int s = 0; s < Cell::kStates; ++s) d_before[s] = V::set1(0);
  Cell::update_backward(a, before, d_states, d_before, d);
  Cell::activate_backward(a, d);
  if constexpr (Cell::kVectors > 0) Cell::enter_backward(own, before, d, d_before, d_own);
  for (int s = 0; s < Cell::kStates; ++s) d_states[s] = d_before[s];
}
template <class Cell, class V>
FASTRNN_CELL void backward(const V (&a)[Cell::kColumns], const V (&before)[Cell::kStates],
                           const V (&after)[Cell::kStates], V (&d_states)[Cell::kStates],
                           V (&d)[Cell::kColumns]) {
  static_assert(Cell::kVectors == 0, "a cell with vectors needs them");
  const V none[1] = {V::set1(0)};
  V d_none[1];
  backward<Cell>(a, before, after, d_states, d, none, d_none);
}

}  // namespace fastrnn::cells
