#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnHalf = single_kernels_of<Rnn, Numeric::kHalf>();

}  // namespace fastrnn::cuda
