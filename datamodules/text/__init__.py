"""Text: tables of rows, prompts, conversations, and how they become token ids."""
