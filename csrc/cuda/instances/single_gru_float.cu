#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleGruFloat = single_kernels_of<Gru, Numeric::kFloat>();

}  // namespace fastrnn::cuda
