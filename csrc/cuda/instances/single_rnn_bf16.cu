#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnBFloat16 = single_kernels_of<Rnn, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda
