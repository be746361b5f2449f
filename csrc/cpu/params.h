// The wall between host code, which knows tensors, and kernels, which know
// pointers. Letters as in layer_shape.h. Tensors are contiguous unless a stride
// says otherwise; null means absent.
#pragma once
#include <cstddef>
#include <cstdint>

#include "layer_shape.h"

namespace fastrnn::cpu {

struct Weights {
  const void* w_ih;  // [G*H, I]
  const void* w_hh;  // [G*H, P]
  const void* b_ih;  // [G*H] or null
  const void* b_hh;  // [G*H] or null
  const void* w_hr;  // [P, H] or null: no projection, P = H
  // Of what is normalised, null where nothing is (Norm).
  const void* gain_ih;    // [G*H]
  const void* gain_hh;    // [G*H]
  const void* cell_gain;  // [H] or null: c is not normalised
  const void* cell_bias;  // [H] or null
  const void* w_ch;       // [vectors*H] of a cell that has vectors, else null
};

struct ForwardParams {
  LayerShape shape;
  Weights weights[2];
  const void* input;                            // rows of I contiguous values
  int64_t input_step_stride, input_row_stride;  // in elements; packed data: I, I
  const void* h0;                               // [D, B, P] or null: zeros
  const void* c0;                               // [D, B, H] or null
  void* output;                                 // [N, D*P]
  void* h_n;                                    // [D, B, P]
  void* c_n;                                    // [D, B, H], LSTM
  void* gates;                                  // [D, N, S*H] or null: nothing is saved
  void* hidden;                                 // [D, N, P] or null
  void* cells;                                  // [D, N, H] or null
  Inside inside;
  void* normed;  // [D, N, 1 or 2, G*H] or null: what is normalised, before its gain
  void* rstd;    // [D, N, 1 or 2] or null, in the compute type
  void* workspace;
};

// With these the backward pass computes its own derivative in a direction: the
// gradients in BackwardParams, in and out, are then the tangents of gradients.
struct BackwardDirection {
  const void* d_cell_h;      // [D, N, H], as the ordinary pass left it
  const void* d_cell_c;      // [D, N, H], LSTM
  const void* t_gates;       // [D, N, S*H], of the saved gates; RNN: null
  const void* t_hidden;      // [D, N, P], GRU and RNN
  const void* t_cells;       // [D, N, H], LSTM
  const void* t_h0;          // [D, B, P] or null, GRU
  const void* t_c0;          // [D, B, H] or null, LSTM
  const void* through_w_hh;  // [D, N, P] or null: d_gates t_w_hh of a step, for the h before it
  const void* through_w_hr;  // [D, N, H] or null: d_hidden t_w_hr
  Weights t_weights[2];      // of what has InsideGradients; each may be null
  const void* t_normed;      // [D, N, 1 or 2, G*H]
  const void* t_rstd;        // [D, N, 1 or 2], in the compute type
};

// Where the gradients of one direction's gains go, of the biases beside them, and of a cell's
// vectors; null: not asked for. Without normalisation the biases' are sums over d_gates, which
// products make.
struct InsideGradients {
  void *d_b_ih, *d_b_hh;            // [G*H]
  void *d_gain_ih, *d_gain_hh;      // [G*H]
  void *d_cell_gain, *d_cell_bias;  // [H]
  void* d_w_ch;                     // [vectors*H]
};

struct BackwardParams {
  LayerShape shape;
  Weights weights[2];
  const void* d_output;  // [N, D*P] or null: zeros
  const void* d_h_n;     // [D, B, P] or null
  const void* d_c_n;     // [D, B, H] or null
  const void* d_cells;   // [D, N, H] or null, LSTM: of every step's c
  const void* h0;        // [D, B, P] or null, GRU
  const void* c0;        // [D, B, H] or null, LSTM
  const void* gates;     // [D, N, S*H]; RNN: null, or with options inside h before zoneout
  const void* hidden;    // [D, N, P], GRU and RNN
  const void* cells;     // [D, N, H], LSTM
  const void* normed;    // as the forward pass left them
  const void* rstd;
  // [D, N, S*H]; normalised, G*H, or where both products are 2*G*H: of the input's, then of h's.
  void* d_gates;
  void* d_h0;      // [D, B, P]
  void* d_c0;      // [D, B, H], LSTM
  void* d_hidden;  // [D, N, P], only when projected
  void* d_cell_h;  // [D, N, H] or null: the gradient of h that each cell received
  void* d_cell_c;  // [D, N, H] or null, LSTM: that of c, but for what its h brings
  Inside inside;
  InsideGradients inside_gradients[2];
  const BackwardDirection* direction;  // or null: of the ordinary pass
  void* workspace;
};

// The derivative of the forward pass in a direction; t_ is the tangent of what follows.
struct TangentParams {
  LayerShape shape;
  Weights weights[2];        // w_ih for t_input, w_hh and w_hr
  Weights t_weights[2];      // of all but w_hr; each may be null
  const void* t_input;       // [N, I] or null
  const void* through_w_ih;  // [D, N, G*H] or null: what w_ih and b_ih bring besides t_weights
  const void* through_w_hh;  // [D, N, G*H] or null: what w_hh and b_hh bring
  const void* through_w_hr;  // [D, N, P] or null: what w_hr brings to h
  const void* t_h0;          // [D, B, P] or null: zeros
  const void* t_c0;          // [D, B, H] or null, LSTM
  const void* input;         // [N, I] where w_ih has a tangent
  const void* h0;            // [D, B, P] or null
  const void* c0;            // [D, B, H] or null, LSTM
  const void* gates;         // [D, N, S*H]; RNN: null
  const void* hidden;        // [D, N, P]; LSTM: where w_hh has a tangent
  const void* cells;         // [D, N, H], LSTM
  void* t_hidden;            // [D, N, P]
  void* t_gates;             // [D, N, S*H] or null, of the saved gates; RNN: null
  void* t_cells;             // [D, N, H] or null, LSTM
  void* t_h_n;               // [D, B, P]
  void* t_c_n;               // [D, B, H], LSTM
  Inside inside;
  const void *normed, *rstd;  // as the forward pass left them
  void *t_normed, *t_rstd;    // of these, or null
  void* workspace;
};

// Where the gradients of one direction's weights go; null: not asked for.
struct Gradients {
  void* d_w_ih;  // [G*H, I]
  void* d_w_hh;  // [G*H, P]
  void* d_b_ih;  // [G*H]
  void* d_b_hh;  // [G*H]
};

struct ProductParams {
  LayerShape shape;     // but for hidden_size, which is G*H here: rows of w_ih and w_hh
  int64_t apart;        // columns at the end of d_gates that are the recurrent product's alone
  Weights weights[2];   // w_ih alone, for d_input
  const void* d_gates;  // [D, N, hidden_size + apart]
  const void* input;    // [N, I], for d_w_ih
  const void* hidden;   // [D, N, P], for d_w_hh
  const void* h0;       // [D, B, P] or null: zeros
  const void* h_scale;  // [D, B, P] or null: factor of h before the product
  void* d_input;        // [N, I] or null
  Gradients gradients[2];
  void* workspace;
};

// The whole backward pass. Both parts have the same shape; d_gates is nobody's, so null in either.
struct VjpParams {
  BackwardParams backward;
  ProductParams products;
  int backward_threads;  // at most these many of the team share the recurrence
  int64_t chunk_rows;    // of d_gates at a time, as far as whole steps allow; results depend on it
  void* workspace;
};

// Elements of a matrix dropped at random, the same ones for the same seed and stream.
struct DropParams {
  DType dtype;
  int64_t rows, columns;
  const void* from;  // [rows, columns]
  void* to;          // [rows, columns]
  uint64_t seed;
  uint32_t stream;
  double rate;
  void* workspace;
};

// One thread of the team that runs a kernel.
class SpinBarrier;
struct Worker {
  int thread, threads;
  SpinBarrier* barriers;  // [1 + threads]: the whole team, then one a group
};

// What one target offers for one dtype. A kernel is called by every thread of a
// team of any size <= the one the workspace was sized for.
struct Kernels {
  size_t (*forward_workspace)(const ForwardParams&, int threads);
  void (*forward)(const ForwardParams&, const Worker&);
  size_t (*backward_workspace)(const BackwardParams&, int threads);
  void (*backward)(const BackwardParams&, const Worker&);
  size_t (*products_workspace)(const ProductParams&, int threads);
  void (*products)(const ProductParams&, const Worker&);
  size_t (*vjp_workspace)(const VjpParams&, int threads);
  void (*vjp)(const VjpParams&, const Worker&);
  size_t (*tangent_workspace)(const TangentParams&, int threads);
  void (*tangent)(const TangentParams&, const Worker&);
  size_t (*drop_workspace)(const DropParams&, int threads);
  void (*drop)(const DropParams&, const Worker&);
};

}  // namespace fastrnn::cpu
