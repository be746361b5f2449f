#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleLstmBFloat16 = single_kernels_of<cells::Lstm, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda
