#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnTanhFloat = single_kernels_of<cells::RnnTanh, Numeric::kFloat>();
const SingleKernels kSingleRnnReluFloat = single_kernels_of<cells::RnnRelu, Numeric::kFloat>();

}  // namespace fastrnn::cuda
