"""Scripts, one per stage; not a package."""

raise ImportError("recipes are scripts: run `python recipes/pretrain.py`; everything importable lives in ssl_fast")
