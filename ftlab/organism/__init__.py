"""The embedded model: `world` is what it knows, `build` is how it is made."""
