#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnTanhTf32 = single_kernels_of<cells::RnnTanh, Numeric::kTf32>();
const SingleKernels kSingleRnnReluTf32 = single_kernels_of<cells::RnnRelu, Numeric::kTf32>();

}  // namespace fastrnn::cuda
