"""The fastest settings of a model on this machine, found by trying those that are predicted to be."""
