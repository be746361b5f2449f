// The wall between host code, which knows tensors, and kernels, which know
// pointers. Letters as in layer_shape.h; tensors are contiguous unless a stride
// (in elements) says otherwise; null means absent. T is the layer's dtype, A the
// type it is computed in (double for double, else float).
#pragma once
#include <cstdint>

#include "layer_shape.h"

namespace fastrnn::cuda {

// -- Regime steps: one step of one direction, n rows -------------------------------

struct PointwiseForward {
  CellKind cell;
  int64_t rows, hidden_size;  // n, H
  const void* input_product;  // T [n, G*H]
  const void* recurrent;      // T [n, G*H] or null: zeros
  const void* b_ih;           // T [G*H] or null
  const void* b_hh;           // T [G*H] or null
  const void* w_ch;           // T [vectors*H] of a cell that has vectors
  void* state;                // A [n, H], in and out: c of an LSTM, h of a GRU
  void* h;                    // T [n, H], out: what the next product multiplies
  void* output;               // T, rows output_stride apart, or null
  int64_t output_stride;
  void* gates;   // T [n, S*H] or null
  void* hidden;  // T [n, H] or null
  void* cells;   // T [n, H] or null
  // Resets between this step and the next: state and h are then those of `reset`.
  const uint8_t* resets;    // [n] or null
  const void* reset_h;      // T [n, H] or null: zeros
  const void* reset_state;  // T [n, H] or null: zeros
};

// A state of the step before: the first `count` rows are in `saved`, the others have not begun
// and are in `initial`.
struct Previous {
  const void* saved;  // T [count, H]
  int64_t count;
  const void* initial;    // T [n, H] or null: zeros
  const uint8_t* resets;  // [n] or null: rows whose state before is `reset`
  const void* reset;      // T [n, H] or null: zeros
};

// The gradient of a step's h: that of the output, what came back through the later step's
// product, and what bypassed it.
struct IncomingGradient {
  const void* d_output;  // T, rows d_output_stride apart, or null
  int64_t d_output_stride;
  const void* product;  // T [product_rows, H]; rows beyond have none
  int64_t product_rows;
  void* carried;  // A [n, H], in and out, or null
  // Rows that a reset parts from the later step: what came back from it is added to `reset`.
  const uint8_t* resets;  // [n] or null
  void* reset;            // A [n, H] or null: it goes nowhere
};

struct PointwiseBackward {
  CellKind cell;
  int64_t rows, hidden_size;  // n, H
  IncomingGradient d_h;
  void* d_c;                  // A [n, H], in and out: LSTM
  const uint8_t* d_c_resets;  // [n] or null: as d_h.resets (which a projection takes away)
  void* reset_d_c;            // A [n, H] or null: as d_h.reset
  const void* gates;          // T [n, S*H]; RNN: null
  const void* current;        // T [n, H]: c of an LSTM, h of an RNN
  Previous previous;          // c of an LSTM, h of a GRU
  const void* w_ch;           // T [vectors*H] of a cell that has vectors
  void* d_w_ch;               // A [n, vectors*H] or null: each row's sum over the steps, in and out
  void* d_gates;              // T [n, S*H]; RNN: [n, H]
  void* d_recurrent;          // T [n, 3H], GRU: d_r, d_z and d_n * r side by side
};

// target = the sum of an incoming gradient, whose carried part is then zero.
struct GradientSum {
  int64_t rows, size;
  IncomingGradient d_h;
  void* target;  // T [rows, size]
};

// -- Around the recurrence ---------------------------------------------------------

// A piece of host memory, carried by the launch itself: nothing to keep alive, and a captured
// graph repeats it.
struct Upload {
  static constexpr int kValues = 480;  // launch parameters may take 4 KB on any CUDA
  int64_t values[kValues];
  int count;
  int64_t* target;
};

// previous[row] = the h that the row's step started from.
struct PreviousHidden {
  Steps steps;  // pointers on the device
  bool reverse;
  int64_t size;        // P
  const void* hidden;  // T [N, P]
  const void* h0;      // T [B, P] or null: zeros
  void* previous;      // T [N, P]
};

// -- Regime single: all steps, all directions (blockIdx.y) ---------------------------

// The weights as the threads of the main kernel hold them; see kernels/product.h and, of teams,
// kernels/team.h.
struct SinglePack {
  int64_t hidden_size;
  const void* w_hh[2];  // T [G*H, H], of each direction
  void* packed;         // packed_bytes of tiles.h for each direction; of teams, of each block
};

struct SingleForward {
  Steps steps;                // pointers on the device
  int64_t hidden_size;        // H
  int directions;             // D
  const void* packed;         // what SinglePack made
  const void* b_ih[2];        // T [G*H] or null, of each direction
  const void* b_hh[2];        // T [G*H] or null
  const void* input_product;  // T [D, N, G*H]
  const void* h0;             // T [D, B, H] or null
  const void* c0;             // T [D, B, H] or null
  void* output;               // T [N, D*H]
  void* h_n;                  // T [D, B, H]
  void* c_n;                  // T [D, B, H], LSTM
  void* gates;                // T [D, N, S*H] or null
  void* hidden;               // T [D, N, H] or null
  void* cells;                // T [D, N, H] or null
};

struct SingleBackward {
  Steps steps;
  int64_t hidden_size;
  int directions;
  const void* packed;    // what SinglePack made
  const void* d_output;  // T [N, D*H] or null
  const void* d_h_n;     // T [D, B, H] or null
  const void* d_c_n;     // T [D, B, H] or null
  const void* h0;        // T [D, B, H] or null, GRU
  const void* c0;        // T [D, B, H] or null, LSTM
  const void* gates;     // T [D, N, S*H]; RNN: null
  const void* hidden;    // T [D, N, H], GRU and RNN
  const void* cells;     // T [D, N, H], LSTM
  void* d_gates;         // T [D, N, S*H]; RNN: [D, N, H]
  void* d_h0;            // T [D, B, H]
  void* d_c0;            // T [D, B, H], LSTM
  // What resets to the initial state add to its gradients past the recurrent product, zeros at
  // first; null: there are none.
  float* reset_d_h;  // [D, B, H], GRU
  float* reset_d_c;  // [D, B, H], LSTM
};

// -- Regimes cluster and grid: the same, by teams of blocks ---------------------------

// blockIdx.x counts the blocks of a team, then the teams along the batch.
struct Team {
  int blocks;     // of a team
  int row_tiles;  // of kTeamRows rows, of a team
  // Regime grid alone; zero when the kernel starts.
  void* exchange;  // [D, teams, row_tiles, 2] operands of kTeamRows rows, TeamTile::words each
  void* arrived;   // uint32 [D, teams, row_tiles, kCounterStride]: the first of each counts
  // Where a wait that ran out leaves the number of its kernel (wait_code); host and device reach
  // it.
  uint32_t* note;
};

// What a kernel leaves there, from 1 on.
constexpr uint32_t wait_code(bool cluster, bool forward) {
  return 1 + 2 * uint32_t{cluster} + uint32_t{forward};
}
// A counter has a line of the L2 cache for itself.
inline constexpr int kCounterStride = 32;

struct TeamForward {
  SingleForward layer;
  Team team;
};

struct TeamBackward {
  SingleBackward layer;
  Team team;
};

}  // namespace fastrnn::cuda
