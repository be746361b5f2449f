// What csrc/cuda/instances/ exports: the launchers of one dtype's kernels, and of
// one cell's in one number format for regimes single, cluster and grid. Each returns null or what
// went wrong.
#pragma once
#include "cuda/launch.h"
#include "cuda/params.h"
#include "cuda/tiles.h"

namespace fastrnn::cuda {

struct StepKernels {
  const char* (*forward)(const PointwiseForward&, Stream);
  const char* (*backward)(const PointwiseBackward&, Stream);
  const char* (*gradient_sum)(const GradientSum&, Stream);
  const char* (*previous_hidden)(const PreviousHidden&, Stream);
};

extern const StepKernels kStepFloat, kStepDouble, kStepBFloat16, kStepHalf;

inline const StepKernels& step_kernels(DType dtype) {
  const StepKernels* const all[] = {&kStepFloat, &kStepDouble, &kStepBFloat16, &kStepHalf};
  return *all[static_cast<int>(dtype)];
}

// By the index of the padded hidden size in kSingleHidden. Two launches: the weights are packed,
// then all steps run.
struct SingleKernels {
  const char* (*forward[3])(const SinglePack&, const SingleForward&, Stream);
  const char* (*backward[3])(const SinglePack&, const SingleBackward&, Stream);
};

extern const SingleKernels kSingleLstmFloat, kSingleLstmTf32, kSingleLstmBFloat16, kSingleLstmHalf;
extern const SingleKernels kSingleGruFloat, kSingleGruTf32, kSingleGruBFloat16, kSingleGruHalf;
extern const SingleKernels kSingleRnnTanhFloat, kSingleRnnTanhTf32, kSingleRnnTanhBFloat16,
    kSingleRnnTanhHalf;
extern const SingleKernels kSingleRnnReluFloat, kSingleRnnReluTf32, kSingleRnnReluBFloat16,
    kSingleRnnReluHalf;

inline const SingleKernels& single_kernels(CellKind cell, Numeric numeric) {
  const SingleKernels* const all[kPersistentCells][4] = {
      {&kSingleLstmFloat, &kSingleLstmTf32, &kSingleLstmBFloat16, &kSingleLstmHalf},
      {&kSingleGruFloat, &kSingleGruTf32, &kSingleGruBFloat16, &kSingleGruHalf},
      {&kSingleRnnTanhFloat, &kSingleRnnTanhTf32, &kSingleRnnTanhBFloat16, &kSingleRnnTanhHalf},
      {&kSingleRnnReluFloat, &kSingleRnnReluTf32, &kSingleRnnReluBFloat16, &kSingleRnnReluHalf}};
  return *all[static_cast<int>(cell)][static_cast<int>(numeric)];
}

// The teams of a launch.
struct TeamSize {
  int blocks;     // of a team
  int64_t teams;  // along the batch, for each direction
  int directions;
  size_t shared_bytes;  // of a block
};

struct TeamKernels {
  const char* (*forward)(const SinglePack&, const TeamForward&, const TeamSize&, Stream);
  const char* (*backward)(const SinglePack&, const TeamBackward&, const TeamSize&, Stream);
  int64_t (*capacity[2])(const TeamSize&);  // by Pass; see launch.h
};

// By the index of the padded hidden size in kTeamHidden; clusters: cluster_columns() of them.
struct TeamTable {
  TeamKernels grids[4], clusters[2];
};

extern const TeamTable kTeamLstmFloat, kTeamLstmTf32, kTeamLstmBFloat16, kTeamLstmHalf;
extern const TeamTable kTeamGruFloat, kTeamGruTf32, kTeamGruBFloat16, kTeamGruHalf;
extern const TeamTable kTeamRnnTanhFloat, kTeamRnnTanhTf32, kTeamRnnTanhBFloat16, kTeamRnnTanhHalf;
extern const TeamTable kTeamRnnReluFloat, kTeamRnnReluTf32, kTeamRnnReluBFloat16, kTeamRnnReluHalf;

inline const TeamTable& team_table(CellKind cell, Numeric numeric) {
  const TeamTable* const all[kPersistentCells][4] = {
      {&kTeamLstmFloat, &kTeamLstmTf32, &kTeamLstmBFloat16, &kTeamLstmHalf},
      {&kTeamGruFloat, &kTeamGruTf32, &kTeamGruBFloat16, &kTeamGruHalf},
      {&kTeamRnnTanhFloat, &kTeamRnnTanhTf32, &kTeamRnnTanhBFloat16, &kTeamRnnTanhHalf},
      {&kTeamRnnReluFloat, &kTeamRnnReluTf32, &kTeamRnnReluBFloat16, &kTeamRnnReluHalf}};
  return *all[static_cast<int>(cell)][static_cast<int>(numeric)];
}

const char* upload(const Upload& piece, Stream stream);

}  // namespace fastrnn::cuda
