"""One layer, all its directions: the operators, autograd, derivatives and batching rules."""
