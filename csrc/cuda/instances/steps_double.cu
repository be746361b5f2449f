#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

const StepKernels kStepDouble = step_kernels_of<double>();

}  // namespace fastrnn::cuda
