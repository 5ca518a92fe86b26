"""What is learned: one file per method, found by its file name (`method=simclr` is `pretrain/simclr.py`)."""
