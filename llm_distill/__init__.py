"""llm_distill: turn a large teacher model, reached through an API, into a small specialised model."""

__version__ = "0.1.0"
