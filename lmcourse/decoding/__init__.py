"""From logits to text: how the next token is chosen."""
