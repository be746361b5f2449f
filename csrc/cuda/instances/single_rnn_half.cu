#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnTanhHalf = single_kernels_of<cells::RnnTanh, Numeric::kHalf>();
const SingleKernels kSingleRnnReluHalf = single_kernels_of<cells::RnnRelu, Numeric::kHalf>();

}  // namespace fastrnn::cuda
