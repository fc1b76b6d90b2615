"""One file a transform: a model in, a model out."""
