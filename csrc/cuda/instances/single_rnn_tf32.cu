#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnTf32 = single_kernels_of<Rnn, Numeric::kTf32>();

}  // namespace fastrnn::cuda
