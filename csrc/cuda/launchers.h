// What csrc/cuda/instances/ exports: the launchers of one dtype's kernels, and of
// one cell's in one number format for regime S. Each returns null or what went
// wrong.
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
extern const SingleKernels kSingleRnnFloat, kSingleRnnTf32, kSingleRnnBFloat16, kSingleRnnHalf;

inline const SingleKernels& single_kernels(CellKind cell, Numeric numeric) {
  const SingleKernels* const all[3][4] = {
      {&kSingleLstmFloat, &kSingleLstmTf32, &kSingleLstmBFloat16, &kSingleLstmHalf},
      {&kSingleGruFloat, &kSingleGruTf32, &kSingleGruBFloat16, &kSingleGruHalf},
      {&kSingleRnnFloat, &kSingleRnnTf32, &kSingleRnnBFloat16, &kSingleRnnHalf}};
  const int row = cell == CellKind::kLstm ? 0 : cell == CellKind::kGru ? 1 : 2;
  return *all[row][static_cast<int>(numeric)];
}

const char* upload(const Upload& piece, Stream stream);

}  // namespace fastrnn::cuda
