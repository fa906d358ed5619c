"""Tasks: examples, prompts and scores. No torch, no tokenizers."""
