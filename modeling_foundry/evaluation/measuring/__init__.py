"""How a model is measured: lm-eval, its tokens, its answers."""
