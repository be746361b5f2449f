#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleLstmFloat = single_kernels_of<cells::Lstm, Numeric::kFloat>();

}  // namespace fastrnn::cuda
