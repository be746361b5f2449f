#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

const StepKernels kStepHalf = step_kernels_of<Half>();

}  // namespace fastrnn::cuda
