#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleGruHalf = single_kernels_of<cells::Gru, Numeric::kHalf>();

}  // namespace fastrnn::cuda
