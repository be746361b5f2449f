#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleGruFloat = single_kernels_of<cells::Gru, Numeric::kFloat>();

}  // namespace fastrnn::cuda
