// Operators called by themselves where gradients are recorded, as exported programs call them: each
// that a graph may hold then goes to a twin of its name, which fastrnn/_layer implements with a
// Function of autograd. Inside such a Function, and without gradients, the kernel is next.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <algorithm>

namespace fastrnn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A gradient in reverse mode, or a tangent of forward mode.
bool records(const Tensor& t) {
  if (t.requires_grad() && at::GradMode::is_enabled()) return true;
  return t.unsafeGetTensorImpl()->autograd_meta() != nullptr && t._fw_grad(0).defined();
}
bool records(const OptionalTensor& t) { return t && records(*t); }
bool records(at::TensorList list) {
  return std::any_of(list.begin(), list.end(), [](const Tensor& t) { return records(t); });
}
bool records(const c10::List<OptionalTensor>& list) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (records(list.get(i))) return true;
  }
  return false;
}
template <class Other>
bool records(const Other&) {
  return false;
}

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <class Names, class Signature>
struct Operator;
template <class Names, class Result, class... Arguments>
struct Operator<Names, Result(Arguments...)> {
  static Result call(c10::DispatchKeySet keys, Arguments... arguments) {
    static const auto kernel = find<Result(Arguments...)>(Names::kKernel);
    if ((records(arguments) || ...)) {
      static const auto recorded = find<Result(Arguments...)>(Names::kRecorded);
      return recorded.call(arguments...);
    }
    return kernel.redispatch(keys & c10::after_ADInplaceOrView_keyset, arguments...);
  }
};

struct LayerForward {
  static constexpr char kKernel[] = "fastrnn::layer_forward";
  static constexpr char kRecorded[] = "fastrnn::layer_recorded";
};
struct GatherRows {
  static constexpr char kKernel[] = "fastrnn::gather_rows";
  static constexpr char kRecorded[] = "fastrnn::rows_recorded";
};
struct DropWeights {
  static constexpr char kKernel[] = "fastrnn::drop_weights";
  static constexpr char kRecorded[] = "fastrnn::drop_recorded";
};

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, Autograd, m) {
  m.impl("layer_forward",
         &Operator<LayerForward,
                   std::vector<Tensor>(c10::string_view, const Tensor&, const OptionalTensor&,
                                       const c10::List<OptionalTensor>&, at::TensorList, bool, bool,
                                       const OptionalTensor&, bool, c10::string_view, double,
                                       std::optional<at::ArrayRef<double>>, at::OptionalIntArrayRef,
                                       const OptionalTensor&, const OptionalTensor&)>::call);
  m.impl("gather_rows",
         &Operator<GatherRows, std::vector<Tensor>(at::TensorList, at::TensorList)>::call);
  m.impl("drop_weights",
         &Operator<DropWeights, Tensor(const Tensor&, const Tensor&, int64_t, double)>::call);
}

}  // namespace fastrnn
