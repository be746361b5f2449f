// Which instruction set the kernels run on.
#pragma once
#include <string>
#include <vector>

#include "cpu/params.h"
#include "cpu/quantized_params.h"

namespace fastrnn::cpu {

// Names of the targets this CPU can run, the fastest last: generic, avx2, avx512 and avx512_vnni,
// which differs from avx512 in the kernels of quantized layers alone.
std::vector<std::string> available_targets();

// The target in use: the fastest, unless FASTRNN_CPU_TARGET names another.
std::string current_target();

// Returns the target that was in use. Throws std::invalid_argument for a name
// that is not available here.
std::string set_target(const std::string& name);

// The kernels of the target in use. A call of an operator asks once.
const Kernels& kernels(DType dtype);
const QuantizedKernels& quantized_kernels();

}  // namespace fastrnn::cpu
