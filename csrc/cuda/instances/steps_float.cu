#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

const StepKernels kStepFloat = step_kernels_of<float>();

}  // namespace fastrnn::cuda
