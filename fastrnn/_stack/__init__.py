"""Many layers: what a call of a stack, a module or a function, goes through before a layer runs."""
