#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleLstmHalf = single_kernels_of<cells::Lstm, Numeric::kHalf>();

}  // namespace fastrnn::cuda
