// Launches of regimes cluster and grid: from a plan's sizes to the compiled kernel.
#pragma once
#include "cuda/kernels/team_backward.h"
#include "cuda/launchers.h"

namespace fastrnn::cuda {
namespace {

template <class Config>
Grid team_grid(const TeamSize& size) {
  return {size.blocks * size.teams,           size.directions,  kTeamThreads, size.shared_bytes,
          Config::kCluster ? size.blocks : 1, !Config::kCluster};
}

template <class Config>
constexpr auto team_kernel() {
  if constexpr (Config::kIsForward) {
    return team_forward_kernel<Config>;
  } else {
    return team_backward_kernel<Config>;
  }
}

// The weights are packed, then all steps run.
template <class Config, class Params>
const char* run_team(const SinglePack& pack, const Params& p, const TeamSize& size, Stream stream) {
  static_assert(Config::kPackedBlocks * kTeamThreads * sizeof(Words) == Config::kTile.packed_bytes,
                "the host allocates them");
  const char* const error =
      launch(team_pack_kernel<Config>,
             {int64_t{Config::kPackedBlocks} * size.blocks, size.directions, kTeamThreads, 0},
             stream, pack);
  if (error != nullptr) return error;
  return launch(team_kernel<Config>(), team_grid<Config>(size), stream, p);
}

template <class Config>
int64_t team_capacity(const TeamSize& size) {
  return capacity(team_kernel<Config>(), team_grid<Config>(size));
}

template <class Cell, Numeric kNumeric, int kHidden, bool kCluster>
constexpr TeamKernels team_kernels_of() {
  using Forward = TeamConfig<Cell, Pass::kForward, kNumeric, kHidden, kCluster>;
  using Backward = TeamConfig<Cell, Pass::kBackward, kNumeric, kHidden, kCluster>;
  constexpr TeamMemory forward =
      team_memory(Cell::kProducts, Pass::kForward, kNumeric, kHidden, kCluster);
  constexpr TeamMemory backward =
      team_memory(Cell::kProducts, Pass::kBackward, kNumeric, kHidden, kCluster);
  static_assert(sizeof(typename Forward::Shared) == forward.block &&
                    sizeof(typename Forward::RowTile) == forward.row_tile &&
                    sizeof(typename Backward::Shared) == backward.block &&
                    sizeof(typename Backward::RowTile) == backward.row_tile,
                "the plan counts on it");
  return {run_team<Forward, TeamForward>,
          run_team<Backward, TeamBackward>,
          {team_capacity<Forward>, team_capacity<Backward>}};
}

// In the order of kTeamHidden; clusters hold only the first of them.
template <class Cell, Numeric kNumeric>
constexpr TeamTable team_table_of() {
  static_assert(sizeof(kTeamHidden) == 4 * sizeof(int), "one column a compiled size");
  constexpr int kClusterColumns = cluster_columns(kNumeric);
  TeamTable table{{team_kernels_of<Cell, kNumeric, kTeamHidden[0], false>(),
                   team_kernels_of<Cell, kNumeric, kTeamHidden[1], false>(),
                   team_kernels_of<Cell, kNumeric, kTeamHidden[2], false>(),
                   team_kernels_of<Cell, kNumeric, kTeamHidden[3], false>()},
                  {team_kernels_of<Cell, kNumeric, kTeamHidden[0], true>(), {}}};
  if constexpr (kClusterColumns == 2) {
    table.clusters[1] = team_kernels_of<Cell, kNumeric, kTeamHidden[1], true>();
  }
  return table;
}

}  // namespace
}  // namespace fastrnn::cuda
