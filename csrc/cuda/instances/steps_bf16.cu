#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

const StepKernels kStepBFloat16 = step_kernels_of<BFloat16>();

}  // namespace fastrnn::cuda
