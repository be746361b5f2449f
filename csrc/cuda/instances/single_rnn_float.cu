#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleRnnFloat = single_kernels_of<Rnn, Numeric::kFloat>();

}  // namespace fastrnn::cuda
