"""Training data that a model writes: self-instruct and its parts."""
