#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleLstmHalf = single_kernels_of<Lstm, Numeric::kHalf>();

}  // namespace fastrnn::cuda
