// The CUDA operators, running on the shim, as fastrnn_cuda_shim::layer_forward and so on for CPU
// tensors. Their schemas are those of the namespace fastrnn, which must be loaded first.
#include <ATen/core/dispatch/Dispatcher.h>

#include "cuda/host.h"

TORCH_LIBRARY(fastrnn_cuda_shim, m) {
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.rfind("fastrnn::", 0) != 0) continue;
    const auto schema = c10::Dispatcher::singleton().findSchemaOrThrow(name.name.c_str(), "");
    const std::string text = c10::toString(schema.schema());
    m.def(text.c_str() + text.find("::") + 2);
  }
  fastrnn::host::implement<fastrnn::cuda::Engine>(m);
}
