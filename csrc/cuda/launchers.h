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

const char* upload(const Upload& piece, Stream stream);

}  // namespace fastrnn::cuda
