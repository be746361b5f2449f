"""Modules as leaves of torch.fx: a call with proxies is a node, as of torch.nn's own modules.

Tracers know torch.nn's by the place that their classes come from. They step into all others, so
that what they have to record is recorded from inside.
"""

from torch.fx.proxy import TraceError


def recorded(module, input, hx, **options):
    """The node of `module(input, hx, **options)`; options that are None are left out."""
    tracer = input.tracer
    if getattr(tracer, "root", None) is module:
        raise TraceError(
            f"{module._get_name().lower()}: expected input to be a Tensor, got a Proxy: a "
            "recurrent module is a leaf of torch.fx, so trace a module that holds it"
        )
    arguments = (input,) if hx is None else (input, hx)
    options = {name: value for name, value in options.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, options)


def refuse_script(module):
    """What torch.jit.script asks a module for: something that it can compile."""
    raise RuntimeError(
        "fastrnn: torch.jit.script knows no operator of fastrnn; use fastrnn.restore(model), whose "
        "layers are torch.nn's (fastrnn.convert is the way back), torch.jit.trace or torch.export"
    )
