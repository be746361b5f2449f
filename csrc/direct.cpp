// Plain layers and cells called from Python for inference, past torch's dispatcher and everything
// that fastrnn/_stack looks at: a step of a small layer takes less time than those. What is not
// known to be right here, or needs more than a kernel (a graph, a mode, a transform, another
// device), gives None, and the caller goes the long way, which also says what is wrong with a call.
#include "direct.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>

#include "cpu/inference.h"

namespace fastrnn {
namespace {

using at::Tensor;

// Whether kernels may be called as they are: nothing is around the call that wants to see it.
bool nobody_looks() {
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  return c10::default_included_set.has_all(local.included_) &&
         local.excluded_.has_all(c10::default_excluded_set) &&  // no autocast
         !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::impl::torch_function_mode_enabled() &&
         !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
}

// The tensor of a Python object, null where it is none that kernels may read as it is.
const Tensor* plain(PyObject* object) {
  using c10::DispatchKey;
  if (object == nullptr || !THPVariable_CheckExact(object)) return nullptr;
  const Tensor& t = THPVariable_Unpack(object);
  if (!t.defined()) return nullptr;
  static const c10::DispatchKeySet known =
      c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::ADInplaceOrView,
                           DispatchKey::AutocastCPU});
  if (!known.has_all(t.key_set()) || t.numel() == 0) return nullptr;
  if (t.requires_grad() && at::GradMode::is_enabled()) return nullptr;
  if (t.unsafeGetTensorImpl()->autograd_meta() && t._fw_grad(0).defined()) return nullptr;
  return &t;
}

struct Layer {
  Tensor input;
  std::vector<Tensor> states;  // none: zeros
  std::vector<Tensor> params;
  int64_t num_layers = 1;
  bool bidirectional = false, batch_first = false;

  bool add(std::vector<Tensor>& list, PyObject* object) {
    const Tensor* t = plain(object);
    if (t == nullptr || t->scalar_type() != input.scalar_type()) return false;
    list.push_back(*t);
    return true;
  }
};

// What Python takes an attribute for, which need be no bool.
std::optional<bool> truth(PyObject* attributes, const char* name) {
  PyObject* const value = PyDict_GetItemString(attributes, name);
  const int is_true = value == nullptr ? -1 : PyObject_IsTrue(value);
  if (is_true >= 0) return is_true != 0;
  PyErr_Clear();
  return std::nullopt;
}

// The parameters of these names, which are no attributes besides. may_lack: biases may be None.
bool take_params(Layer& layer, PyObject* attributes, PyObject* names, bool may_lack) {
  PyObject* const parameters = PyDict_GetItemString(attributes, "_parameters");
  if (parameters == nullptr || names == nullptr) return false;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(names);
  layer.params.reserve(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const name = PySequence_Fast_GET_ITEM(names, i);
    if (PyDict_GetItem(attributes, name) != nullptr) return false;
    PyObject* const parameter = PyDict_GetItem(parameters, name);
    if (may_lack && parameter == Py_None && i >= 2) continue;
    if (!layer.add(layer.params, parameter)) return false;
  }
  return true;
}

bool take_states(Layer& layer, PyObject* hx, bool has_c) {
  if (hx == Py_None) return true;
  if (!has_c) return layer.add(layer.states, hx);
  return PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2 &&
         layer.add(layer.states, PyTuple_GET_ITEM(hx, 0)) &&
         layer.add(layer.states, PyTuple_GET_ITEM(hx, 1));
}

// The output and the final states of all layers.
std::vector<Tensor> run(CellKind cell, const Layer& layer) {
  const int64_t directions = layer.bidirectional ? 2 : 1;
  const size_t each = layer.params.size() / static_cast<size_t>(layer.num_layers);
  std::vector<std::vector<Tensor>> finals;
  Tensor x = layer.batch_first ? layer.input.transpose(0, 1) : layer.input;
  for (int64_t i = 0; i < layer.num_layers; ++i) {
    std::vector<Tensor> states = layer.states;
    for (Tensor& state : states) {
      TORCH_CHECK(state.dim() == 3 && state.size(0) == layer.num_layers * directions);
      if (layer.num_layers > 1) state = state.narrow(0, i * directions, directions);
    }
    const at::TensorList params(layer.params.data() + static_cast<size_t>(i) * each, each);
    std::vector<Tensor> results = cpu::infer(cell, x, states, params, layer.bidirectional);
    x = std::move(results[0]);
    if (layer.num_layers == 1) {
      results[0] = std::move(x);
      if (layer.batch_first) results[0] = results[0].transpose(0, 1);
      return results;
    }
    finals.emplace_back(std::make_move_iterator(results.begin() + 1),
                        std::make_move_iterator(results.end()));
  }
  std::vector<Tensor> results{layer.batch_first ? x.transpose(0, 1) : x};
  for (size_t s = 0; s < finals[0].size(); ++s) {
    std::vector<Tensor> parts;
    for (std::vector<Tensor>& of_layer : finals) parts.push_back(std::move(of_layer[s]));
    results.push_back(at::cat(parts));
  }
  return results;
}

// As a caller gets them: (output, h_n) or (output, (h_n, c_n)); of a cell h or (h, c).
PyObject* wrapped(std::vector<Tensor> results, bool is_cell) {
  PyObject* states = nullptr;
  if (results.size() == 2) {
    states = THPVariable_Wrap(std::move(results[1]));
  } else {
    states = PyTuple_New(2);
    for (Py_ssize_t i = 0; states && i < 2; ++i) {
      PyTuple_SET_ITEM(states, i, THPVariable_Wrap(std::move(results[static_cast<size_t>(i) + 1])));
    }
  }
  if (is_cell || states == nullptr) return states;
  PyObject* const pair = PyTuple_New(2);
  if (pair == nullptr) return nullptr;
  PyTuple_SET_ITEM(pair, 0, THPVariable_Wrap(std::move(results[0])));
  PyTuple_SET_ITEM(pair, 1, states);
  return pair;
}

// Runs what was taken, or gives None.
template <class Run>
PyObject* called(bool is_cell, Run&& run) {
  std::vector<Tensor> results;
  PyThreadState* const state = PyEval_SaveThread();
  bool done = false;
  try {
    const at::AutoDispatchBelowADInplaceOrView guard;
    results = run();
    done = true;
  } catch (const std::exception&) {  // the long way says it
  }
  PyEval_RestoreThread(state);
  if (!done) Py_RETURN_NONE;
  return wrapped(std::move(results), is_cell);
}

std::optional<CellKind> cell_of(PyObject* name) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(name, &size);
  if (text == nullptr) {
    PyErr_Clear();
    return std::nullopt;
  }
  return host::find_cell({text, static_cast<size_t>(size)});
}

// direct_layer(attributes, cell, input, hx): attributes are a module's __dict__.
PyObject* direct_layer(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4 || !PyDict_Check(arguments[0]) || !nobody_looks()) Py_RETURN_NONE;
  PyObject* const attributes = arguments[0];
  const std::optional<CellKind> cell = cell_of(arguments[1]);
  const Tensor* input = plain(arguments[2]);
  PyObject* const layers = PyDict_GetItemString(attributes, "num_layers");
  PyObject* const names = PyDict_GetItemString(attributes, "_flat_weights_names");
  if (!cell || !input || input->dim() != 3 || !layers || !PyLong_CheckExact(layers) || !names ||
      !PyList_CheckExact(names) ||
      PyDict_GetItemString(attributes, "_flat_weights_assigned") != nullptr) {
    Py_RETURN_NONE;
  }
  Layer layer;
  layer.input = *input;
  layer.num_layers = PyLong_AsLong(layers);
  const std::optional<bool> bidirectional = truth(attributes, "bidirectional"),
                            batch_first = truth(attributes, "batch_first"),
                            training = truth(attributes, "training"),
                            dropout = truth(attributes, "dropout");
  if (!bidirectional || !batch_first || !training || !dropout) Py_RETURN_NONE;
  layer.bidirectional = *bidirectional;
  layer.batch_first = *batch_first;
  const bool drops = layer.num_layers > 1 && *training && *dropout;
  const int64_t blocks = layer.num_layers * (layer.bidirectional ? 2 : 1);
  if (drops || layer.num_layers < 1 || !take_params(layer, attributes, names, false) ||
      layer.params.size() % static_cast<size_t>(blocks) != 0 ||
      !take_states(layer, arguments[3], cells::traits(*cell).has_c())) {
    Py_RETURN_NONE;
  }
  return called(false, [&] { return run(*cell, layer); });
}

// direct_cell(attributes, cell, names of the weights, input, hx).
PyObject* direct_cell(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 5 || !PyDict_Check(arguments[0]) || !nobody_looks()) Py_RETURN_NONE;
  const std::optional<CellKind> cell = cell_of(arguments[1]);
  const Tensor* input = plain(arguments[3]);
  Layer layer;
  if (!cell || !input || input->dim() != 2 || !PyTuple_CheckExact(arguments[2])) Py_RETURN_NONE;
  layer.input = *input;
  if (!take_params(layer, arguments[0], arguments[2], true) ||
      !take_states(layer, arguments[4], cells::traits(*cell).has_c())) {
    Py_RETURN_NONE;
  }
  return called(true, [&] {
    layer.input = layer.input.unsqueeze(0);
    for (Tensor& state : layer.states) {
      TORCH_CHECK(state.dim() == 2);
      state = state.unsqueeze(0);
    }
    std::vector<Tensor> results = run(*cell, layer);
    for (size_t i = 1; i < results.size(); ++i) results[i] = results[i].squeeze(0);
    return results;
  });
}

PyMethodDef kMethods[] = {
    {"direct_layer", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(direct_layer)),
     METH_FASTCALL,
     "direct_layer(attributes, cell, input, hx): what a plain layer gives, or None where only the "
     "long way knows."},
    {"direct_cell", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(direct_cell)),
     METH_FASTCALL, "direct_cell(attributes, cell, names, input, hx): the same of a cell."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_direct(PyObject* module) { return PyModule_AddFunctions(module, kMethods) == 0; }

}  // namespace fastrnn
