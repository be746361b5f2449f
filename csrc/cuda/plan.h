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

// kSteps: a matrix product and a pointwise kernel a step. Any shape.
// kSingle: blocks that keep w_hh on chip and run through all steps.
// kCluster and kGrid: teams of blocks do, that exchange h through the shared memory of a cluster
// or through the L2 cache.
enum class Regime { kSteps, kSingle, kCluster, kGrid };

struct Problem {
  CellKind cell;
  Pass pass;
  DType dtype;
  bool tf32;  // float32 products may round their operands to TF32
  int64_t hidden_size;
  int64_t batch;
  int directions;
  bool projected;
  int64_t seq_len;
};

struct DeviceLimits {
  int capability;  // 80 is sm_80
  int multiprocessors;
  size_t shared_bytes;  // a block may ask for this many
  // Blocks of a grid, each filling a multiprocessor, and clusters of 8 and 16 of them that the
  // device holds at once; 0 where it has no such launches, or they are ruled out.
  int64_t cooperative_blocks, clusters[2];
};

struct Plan {
  Regime regime;
  std::string reason;  // kSteps: why no other
  // The rest is zero for kSteps.
  Numeric numeric;
  int hidden;        // hidden_size padded to the compiled size
  int rows;          // batch rows of a block
  int threads;       // of a block
  int64_t replicas;  // blocks (kSingle) or teams along the batch, for each direction
  size_t shared_bytes;
  // Of kCluster and kGrid: blocks of a team; its row tiles of kTeamRows rows, which are `rows`
  // together; what a step costs, in microseconds, and what starting costs (step_costs.h).
  int blocks, row_tiles;
  double step_us, start_us;
};

// forced: the regime to take instead of choosing; std::invalid_argument where it cannot be.
Plan make_plan(const Problem& problem, const DeviceLimits& limits, std::optional<Regime> forced);

// What FASTRNN_CUDA_REGIME asks for by name, or nothing; std::invalid_argument on anything else.
std::optional<Regime> forced_regime();

// Whether cooperative launches are ruled out: FASTRNN_CUDA_COOPERATIVE=0.
bool cooperative_ruled_out();

// How many clusters of this many blocks the device holds at once.
int64_t& clusters_of(DeviceLimits& limits, int blocks);

// "steps", "single", "cluster" or "grid".
const char* name_of(Regime regime);

struct KnownDevice {
  const char* name;
  DeviceLimits limits;
};
// One device of each architecture that the build covers, to plan for without a GPU.
const std::vector<KnownDevice>& known_devices();

// "steps (reason)" or "single ...": one line for people.
std::string describe(const Plan& plan);

}  // namespace fastrnn::cuda
