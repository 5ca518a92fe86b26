"""Pretraining methods: representations from images, mostly without labels.

A file in a folder that the environment variable SSL_FAST_METHODS names (several as in PATH) is a method like those
here; where names are equal, the one here is taken. See docs/adding_a_method.md.
"""

import os

__path__ += [os.path.abspath(folder) for folder in os.environ.get("SSL_FAST_METHODS", "").split(os.pathsep) if folder]
