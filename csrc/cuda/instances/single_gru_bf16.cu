#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleGruBFloat16 = single_kernels_of<cells::Gru, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda
