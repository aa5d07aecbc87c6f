"""What goes wrong between a run and the engine that samples for it."""


class SamplerError(RuntimeError):
    """The engine does not answer, answers what is no response, or samples from other weights."""
