"""Fused functions, one file per op: equation, plain reference, autograd, function and module. Needs torch alone."""
