"""torch.nn's recurrent modules into ours and back, in models that exist or are being built.

A converted module stays the same object: only its class changes. Whatever holds it or hangs on it
(parameters and the optimizer's references to them, tied or shared ones, hooks, buffers, flags,
pruning, the hook style of weight_norm and spectral_norm, other modules, closures) therefore stays
as it was. Both libraries' classes keep the same attributes (tests/surface/test_modules.py checks).
"""

import contextlib
import contextvars
import functools
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from fastrnn import modules

__all__ = ["Conversion", "convert", "patch_torch_nn", "restore"]

TO_OURS = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNN: modules.RNN,
    nn.LSTMCell: modules.LSTMCell,
    nn.GRUCell: modules.GRUCell,
    nn.RNNCell: modules.RNNCell,
}
TO_TORCH = {ours: theirs for theirs, ours in TO_OURS.items()}


@dataclass(frozen=True)
class Conversion:
    """What `convert` or `restore` did: names are those of `model.named_modules()`.

    The model itself has the name "", a module that is in several places its first name.

    Attributes:
        converted: name of each converted module, and the name of its class.
        skipped: name of each recurrent module that was left alone, and the reason.
    """

    converted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        lines = [f"{name or '(model)'}: {kind}" for name, kind in self.converted.items()]
        lines += [f"{name or '(model)'}: skipped, {why}" for name, why in self.skipped.items()]
        return "\n".join(lines) or "no recurrent modules"


def convert(model: nn.Module, *, exclude: str | Iterable[str] = ()) -> Conversion:
    """Makes every torch.nn recurrent layer and cell in a model one of fastrnn, in place.

    LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell, the model itself included. `convert`, `restore`
    and `fastrnn.quantize(inplace=True)` change the model they are given; `copy.deepcopy(model)`
    keeps one as it was. The modules and
    their parameters stay the same objects, so optimizers, hooks, tied weights, pruning and
    parametrizations go on as before, whatever holds them.

    Left alone and reported: modules of other classes derived from torch.nn's (they may rely on the
    base class), and modules whose `forward` was replaced on the instance (the replacement would
    still call the old one). Not seen: modules that `model.named_modules()` does not reach, such as
    those in a plain list, and TorchScript modules.

    Args:
        model: any module, in any mode, on any device.
        exclude: names of modules, as `model.named_modules()` has them, that are left alone with all
            that is in them.

    Returns:
        What was converted and what was skipped with the reason. Calling it again finds nothing.

    Raises:
        TypeError: model is not a module. ValueError: a name in exclude that there is not.
    """
    return _swap(model, TO_OURS, "convert", exclude)


def restore(model: nn.Module, *, exclude: str | Iterable[str] = ()) -> Conversion:
    """Makes every fastrnn layer and cell in a model one of torch.nn: the inverse of `convert`.

    Also those that were built as fastrnn's in the first place. Arguments, result and exceptions
    to the rule are those of `convert`.
    """
    return _swap(model, TO_TORCH, "restore", exclude)


def excluded(function, model, exclude):
    """The ids of the modules of these names and of all that is in them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: expected a torch.nn.Module, got {type(model).__name__}")
    found, known = set(), dict(model.named_modules(remove_duplicate=False))
    for name in (exclude,) if isinstance(exclude, str) else exclude:
        if name not in known:
            raise ValueError(f"{function}: expected exclude to name modules, got {name!r}")
        found.update(map(id, known[name].modules()))
    return found


def _swap(model, table, function, exclude):
    left = excluded(function, model, exclude)
    result, classes = Conversion(), {}
    for name, module in list(model.named_modules()):
        cls = type(module)
        base = cls.__bases__[0] if is_parametrized(cls) else cls
        if base not in table:
            if known := [known for known in table if isinstance(module, known)]:
                result.skipped[name] = f"{base.__qualname__} is a subclass of {_path(known[0])}"
        elif id(module) in left:
            result.skipped[name] = "it was excluded"
        elif "forward" in vars(module):
            result.skipped[name] = "its forward was replaced on the instance"
        else:
            if cls not in classes:  # copies of a parametrized module have one class: keep it so
                classes[cls] = table[base] if cls is base else _rebased(cls, table[base])
            module.__class__ = classes[cls]
            if isinstance(module, nn.RNNBase):  # a list that was assigned stays in use
                module._flat_weights = module._flat_weights
            result.converted[name] = base.__name__
    return result


def _path(cls):
    library = "torch.nn" if cls in TO_OURS else "fastrnn"
    return f"{library}.{cls.__name__}"


def is_parametrized(cls):
    """Whether register_parametrization made this class, with properties in place of parameters."""
    return cls.__module__ == parametrize.__name__ and len(cls.__bases__) == 1


def _rebased(cls, base):
    """A class like cls over another base. cls itself may serve modules outside the model."""
    members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (base,), members)


# -- While a library builds its own -------------------------------------------------------------

# Whether modules built here and now become ours: of its own in each thread and asyncio task.
_active = contextvars.ContextVar("fastrnn.patch_torch_nn", default=False)
_lock = threading.Lock()
_blocks = 0  # that are open in all threads; the constructors are wrapped while there are any
_originals = {}


@contextlib.contextmanager
def patch_torch_nn():
    """Makes code in the `with` block that builds torch.nn's recurrent modules build ours.

    ::

        with fastrnn.patch_torch_nn():
            model = some_library.Model()        # its nn.LSTM(...) are fastrnn.LSTM

    The constructors of nn.LSTM, nn.GRU, nn.RNN and the three cells finish with `convert`. It does
    not matter whether the library wrote `nn.LSTM` or `from torch.nn import LSTM`, nor when it was
    imported. Modules stay what they became after the block ends.

    Subclasses: modules of classes derived from torch.nn's are built unchanged, also where such a
    class is defined inside the block.

    isinstance: `nn.LSTM` is still torch's class, so `isinstance(layer, nn.LSTM)` is false for the
    layers built here. Where a library initialises weights by such a question, build the model
    without the block and call `convert` on it.

    Pickles: layers are saved as fastrnn's, and loading them needs fastrnn. Loading or copying a
    torch.nn layer inside the block gives a torch.nn layer, since no constructor runs; state_dicts
    are the same either way.

    Threads: the block counts for the thread (or asyncio task) that opened it; others, also those
    started inside, build what they ask for. Blocks may be nested and may overlap in several
    threads. An exception in the block ends it like any other exit.
    """
    _wrap_constructors()
    token = _active.set(True)
    try:
        yield
    finally:
        _unwrap_constructors()  # first: reset raises where another task ends the block
        _active.reset(token)


def _wrap_constructors():
    global _blocks
    with _lock:
        if _blocks == 0:
            for cls in TO_OURS:
                _originals[cls] = cls.__init__
                cls.__init__ = _converting(cls, cls.__init__)
        _blocks += 1


def _unwrap_constructors():
    global _blocks
    with _lock:
        _blocks -= 1
        if _blocks == 0:
            for cls, original in _originals.items():
                cls.__init__ = original


def _converting(cls, original):
    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if type(self) is cls and _active.get():
            self.__class__ = TO_OURS[cls]

    return __init__
