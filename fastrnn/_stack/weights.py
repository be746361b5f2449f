"""The weights of a module, read by name at each call."""

# Classes here are known to have no property of a weight's name; a subclass, as parametrizations
# make one, may.
_OURS = "fastrnn.modules", "fastrnn.variants"


def weights(module, names):
    """The attributes of these names, as getattr gives them: nn.Module keeps parameters where only
    its slow __getattr__ looks."""
    if type(module).__module__ in _OURS:
        parameters, own = module._parameters, module.__dict__
        found = []
        for name in names:
            if name in own or name not in parameters:
                break
            found.append(parameters[name])
        else:
            return found
    return [_attribute(module, name) for name in names]


def _attribute(module, name):
    try:
        return getattr(module, name)
    except AttributeError:
        # A deleted parameter: torch.nn goes on with the tensor it had last, or that was put there.
        if name in getattr(module, "_flat_weights_names", ()):
            return module._flat_weights[module._flat_weights_names.index(name)]
        raise
