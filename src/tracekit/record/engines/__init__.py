"""One adapter a vLLM generation: each translates its engine's step into the recorder's few calls."""
