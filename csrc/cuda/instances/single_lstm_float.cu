#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleLstmFloat = single_kernels_of<Lstm, Numeric::kFloat>();

}  // namespace fastrnn::cuda
