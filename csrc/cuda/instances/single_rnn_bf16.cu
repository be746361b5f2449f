#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnTanhBFloat16 =
    single_kernels_of<cells::RnnTanh, Numeric::kBFloat16>();
const SingleKernels kSingleRnnReluBFloat16 =
    single_kernels_of<cells::RnnRelu, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda
