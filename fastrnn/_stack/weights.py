"""The weights of a module, read by name at each call.

torch.nn's layers compute with a list of weights, `_flat_weights`, that they keep beside their
attributes. Attributes are what counts here. Where somebody assigns a list of other tensors, it is
that list, as long as it is for torch.nn: until an attribute changes.
"""

_OURS = "fastrnn.modules", "fastrnn.variants"
_ASSIGNED = "_flat_weights_assigned"  # in a module's __dict__: that list is what counts


def is_ours(module):
    """Whether its class is one of ours: known to have no property of a weight's name, and nothing
    overridden. A subclass, as parametrizations make one, may have both."""
    return type(module).__module__ in _OURS


def weights(module, names):
    """The attributes of these names, as getattr gives them: nn.Module keeps parameters where only
    its slow __getattr__ looks."""
    own = module.__dict__
    if _ASSIGNED in own:
        module._update_flat_weights()  # torch.nn's rule; it may assign
        if _ASSIGNED in own:
            return [_assigned(module, name) for name in names]
    if is_ours(module):
        parameters = module._parameters
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
            return _assigned(module, name)
        raise


def _assigned(module, name):
    if name in module._flat_weights_names:
        return module._flat_weights[module._flat_weights_names.index(name)]
    return _attribute(module, name)  # one that torch.nn has not


def note_assignment(module):
    """To be called when `_flat_weights` was assigned to: by torch.nn, from the attributes, or by
    somebody who wants to compute with other tensors."""
    names, parameters = module.__dict__.get("_flat_weights_names", ()), module._parameters
    pairs = zip(names, module._flat_weights)
    # What is no parameter, as where a parametrization makes it anew each time, cannot be compared.
    if any(name in parameters and parameters[name] is not tensor for name, tensor in pairs):
        module.__dict__[_ASSIGNED] = True
    else:
        module.__dict__.pop(_ASSIGNED, None)
