"""Model families in the hub's layouts, on transformers' own modules; no remote code."""
