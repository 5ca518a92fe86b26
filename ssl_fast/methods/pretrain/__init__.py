"""Pretraining methods: representations from images, mostly without labels."""
