// Launches of the single regime: from a plan's sizes to the compiled kernel.
#pragma once
#include "cuda/kernels/single_backward.h"
#include "cuda/kernels/single_forward.h"
#include "cuda/launchers.h"

namespace fastrnn::cuda {
namespace {

template <class Config>
Grid single_grid(const Steps& steps, int directions) {
  return {(steps.batch + Config::kRows - 1) / Config::kRows, directions, Config::kThreads,
          Config::kTile.shared_bytes};
}

template <class Config>
const char* run_single_pack(const SinglePack& p, int directions, Stream stream) {
  static_assert(
      Config::kPackedBlocks * Config::kThreads * sizeof(Words) == Config::kTile.packed_bytes,
      "the host allocates them");
  return launch(single_pack_kernel<Config>,
                {Config::kPackedBlocks, directions, Config::kThreads, 0}, stream, p);
}

template <class Cell, Numeric kNumeric, int kHidden>
const char* run_single_forward(const SinglePack& pack, const SingleForward& p, Stream stream) {
  using Config = SingleConfig<Cell, Pass::kForward, kNumeric, kHidden>;
  const char* const error = run_single_pack<Config>(pack, p.directions, stream);
  if (error != nullptr) return error;
  return launch(single_forward_kernel<Config>, single_grid<Config>(p.steps, p.directions), stream,
                p);
}

template <class Cell, Numeric kNumeric, int kHidden>
const char* run_single_backward(const SinglePack& pack, const SingleBackward& p, Stream stream) {
  using Config = SingleConfig<Cell, Pass::kBackward, kNumeric, kHidden>;
  const char* const error = run_single_pack<Config>(pack, p.directions, stream);
  if (error != nullptr) return error;
  return launch(single_backward_kernel<Config>, single_grid<Config>(p.steps, p.directions), stream,
                p);
}

// In the order of kSingleHidden.
template <class Cell, Numeric kNumeric>
constexpr SingleKernels single_kernels_of() {
  static_assert(sizeof(kSingleHidden) == 3 * sizeof(int), "one column a compiled size");
  return {{run_single_forward<Cell, kNumeric, kSingleHidden[0]>,
           run_single_forward<Cell, kNumeric, kSingleHidden[1]>,
           run_single_forward<Cell, kNumeric, kSingleHidden[2]>},
          {run_single_backward<Cell, kNumeric, kSingleHidden[0]>,
           run_single_backward<Cell, kNumeric, kSingleHidden[1]>,
           run_single_backward<Cell, kNumeric, kSingleHidden[2]>}};
}

}  // namespace
}  // namespace fastrnn::cuda
