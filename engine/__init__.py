"""The engine: scheduler, workers, model, weights, KV cache, layouts. It knows nothing of HTTP."""
