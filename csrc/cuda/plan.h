// Which regime runs a layer on a CUDA device, and with which tiles: a pure
// function of the problem and the device's limits that needs neither a GPU nor
// a CUDA header, so that every build has it and tests reach all of it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/tiles.h"
#include "layer_shape.h"

namespace fastrnn::cuda {

// kSteps (P): a matrix product and a pointwise kernel a step. Any shape.
// kSingle (S): blocks that keep w_hh on chip and run through all steps.
enum class Regime { kSteps, kSingle };

struct Problem {
  CellKind cell;
  Pass pass;
  DType dtype;
  bool tf32;  // float32 products may round their operands to TF32
  int64_t hidden_size;
  int64_t batch;
  int directions;
  bool projected;
};

struct DeviceLimits {
  int capability;  // 80 is sm_80
  int multiprocessors;
  size_t shared_bytes;  // a block may ask for this many
};

struct Plan {
  Regime regime;
  std::string reason;  // why not S; empty where it is S
  // The rest is S's alone, and zero otherwise.
  Numeric numeric;
  int hidden;        // hidden_size padded to the compiled size
  int rows;          // batch rows of a block
  int threads;       // of a block
  int64_t replicas;  // blocks along the batch, for each direction
  size_t shared_bytes;
};

// forced: the regime to take instead of choosing; std::invalid_argument where it cannot be.
Plan make_plan(const Problem& problem, const DeviceLimits& limits, std::optional<Regime> forced);

// What FASTRNN_CUDA_REGIME asks for: P, S or nothing; std::invalid_argument on anything else.
std::optional<Regime> forced_regime();

struct KnownDevice {
  const char* name;
  DeviceLimits limits;
};
// One device of each architecture that the build covers, to plan for without a GPU.
const std::vector<KnownDevice>& known_devices();

// "P (reason)" or "S ...": one line for people.
std::string describe(const Plan& plan);

}  // namespace fastrnn::cuda
