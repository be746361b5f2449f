// What one layer is, for host code and kernels of every device. Letters: T
// seq_len, B batch, I input_size, H hidden_size, P the size of h (proj_size or
// H), D directions, G products of a unit, S its columns (cells/cell.h), N rows of
// all steps together.
#pragma once
#include <cstdint>

namespace fastrnn {

enum class CellKind : int {};  // the place of a cell in cells/list.h
enum class DType { kFloat, kDouble, kBFloat16, kHalf };

// Rows of step t are [offset(t), offset(t) + count(t)); counts never increase.
struct Steps {
  int64_t seq_len;         // T
  int64_t batch;           // B, the count of step 0
  int64_t rows;            // N
  const int64_t* counts;   // [T] or null: every step has B rows
  const int64_t* offsets;  // [T] or null
  // Of padded data on CUDA: nonzero where what came before step t is forgotten, in either
  // direction.
  const uint8_t* resets = nullptr;  // [T, B] or null
  bool to_initial = false;          // a reset's state is the initial one, not zeros

  constexpr int64_t count(int64_t t) const { return counts ? counts[t] : batch; }
  constexpr int64_t offset(int64_t t) const { return offsets ? offsets[t] : t * batch; }
};

struct LayerShape {
  CellKind cell;
  DType dtype;
  Steps steps;
  int64_t input_size, hidden_size, proj_size;  // I, H, P (P = H without projection)
  bool projected;
  int directions;
};

// What is normalised with one mean and variance a row: nothing; the input's product and h's, each
// by itself, b_ih and b_hh added after; or their sum, with gain_hh and b_hh.
enum class Norm { kNone, kRecurrent, kJoint };

// What stands between the products of a step and its states, besides the cell. All of it is zero
// for a plain layer; none of it goes with a projection.
struct Inside {
  bool any;
  Norm norm;
  double eps;                            // of every normalisation
  double zoneout_c, zoneout_h, dropout;  // rates
  bool random;                           // masks; else zoneout in expectation and no dropout
  uint64_t seed;                         // key of the masks
  // In their counter: the first direction's stream (the other's is 2 more), and that step t is
  // number first_step + t * step.
  uint32_t stream;
  int64_t first_step, step;
  const void* h_scale;  // [D, B, H] or null: factor of h before the product

  // Parts of a row that are normalised, each by itself.
  constexpr int parts() const {
    return norm == Norm::kRecurrent ? 2 : norm == Norm::kJoint ? 1 : 0;
  }
};

}  // namespace fastrnn
