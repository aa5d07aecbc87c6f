"""A reward of one's own: short answers, and polite ones."""


def short_and_polite(prompts, responses, metadata=None):
    """One number for each response: 1 for a thank-you, less a hundredth for each character."""
    return [float("thank" in text.lower()) - len(text) / 100 for text in responses]
