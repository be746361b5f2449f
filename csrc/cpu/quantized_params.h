// The wall between host code and kernels for layers whose weights are kept packed in int8 or
// bfloat16. Letters as in layer_shape.h; tensors are contiguous unless a stride says otherwise.
//
// A weight w [G*H, K] is packed into panels [blocks][groups][V][16][k], the same on every CPU so
// that files can move between them: lane l of vector v of a block is one row of w, a group has 4
// consecutive terms of it in int8 and 2 in bfloat16, and zeros fill rows and terms up. LSTM and
// GRU: V = G gates of the same 16 units. Products of one gate (RNN, projection): V = 4, so that
// a block has 64 units. Either way a step reads a panel front to back, 64 bytes a vector.
#pragma once
#include "cpu/params.h"

namespace fastrnn::cpu {

constexpr int kBlockLanes = 16;    // rows of a weight in a vector of a panel
constexpr int kSingleVectors = 4;  // V of a product of one gate
constexpr int kInt8Group = 4, kBFloat16Group = 2;

struct QuantizedMatrix {
  const void* panels;   // [blocks][groups][V][16][4 or 2]
  const float* scales;  // [blocks][V][16], int8: a row of w is its scale times its integers
  const int32_t* sums;  // [blocks][V][16], int8: 128 times the sum of a row's integers
};

struct QuantizedWeights {
  QuantizedMatrix w_ih, w_hh;
  QuantizedMatrix w_hr;  // null panels: no projection
  const float* bias;     // [blocks][V][16]: b_ih + b_hh; GRU [blocks][4][16]: r, z, b_in and b_hn
};

struct QuantizedParams {
  LayerShape shape;  // dtype kFloat: of input, states and output
  bool int8;         // or bfloat16
  QuantizedWeights weights[2];
  const float* input;                           // rows of I contiguous values
  int64_t input_step_stride, input_row_stride;  // in elements; packed data: I, I
  const float* h0;                              // [D, B, P] or null: zeros
  const float* c0;                              // [D, B, H] or null
  float* output;                                // [N, D*P]
  float* h_n;                                   // [D, B, P]
  float* c_n;                                   // [D, B, H], LSTM
  float* gates;                                 // [D, N, G*H] or null
  float* cells;                                 // [D, N, H] or null
  void* workspace;
};

// What one target offers; the contract is that of Kernels.
struct QuantizedKernels {
  size_t (*forward_workspace)(const QuantizedParams&, int threads);
  void (*forward)(const QuantizedParams&, const Worker&);
};

}  // namespace fastrnn::cpu
