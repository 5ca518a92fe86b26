"""Triton kernels, one module per op, imported on first use.

Every module keeps the interface of its op: ``unavailable(*tensors)`` says why the kernels cannot take these tensors
(or None), ``forward`` and ``backward`` compute. Validation, autograd and groups belong to ``ssl_fast.ops.<op>``.
"""
