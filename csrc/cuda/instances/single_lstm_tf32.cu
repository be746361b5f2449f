#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleLstmTf32 = single_kernels_of<cells::Lstm, Numeric::kTf32>();

}  // namespace fastrnn::cuda
