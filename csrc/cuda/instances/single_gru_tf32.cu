#include "cuda/kernels/single_table.h"

namespace fastrnn::cuda {

const SingleKernels kSingleGruTf32 = single_kernels_of<cells::Gru, Numeric::kTf32>();

}  // namespace fastrnn::cuda
